"""One session: the queue of runs, the clients attached to it, its interpreter; in the server's process.

Everything that happens is an event: appended to the journal, applied to the ledger, and in the
next turn of the loop written to disk and then sent to whoever may see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import __version__
from ._cargo import OF_INTERPRETER, Cargo
from ._config import host_name
from ._cursors import Cursor, Cursors, Send
from ._dock import Dock
from ._engines import ENGINES, Engine, WorkerEnd, measure_memory
from ._errors import RemoterError, SessionDiedError
from ._journal import Journal
from ._ledger import Ledger, queued_data
from ._messages import (
    FEATURES,
    LONGEST_CODE,
    Accepted,
    Acknowledge,
    Answer,
    Attach,
    Attached,
    Detach,
    Interrupt,
    Ping,
    Pong,
    Query,
    Refused,
    Reply,
    RunId,
    Status,
    Step,
    Submit,
    refused_of,
)

log = logging.getLogger("remoter.session")

MOST_RUNS = 1000
MOST_CODE = 64 * 1024 * 1024
HOLD = 0.002
TIDY = 1.0
KILL_AFTER = 5.0


class Session:
    """One running interpreter together with everything it has printed.

    Args:
        configuration: what the session was started with.
        directory: the run directory.
        journal: its record; the ledger is rebuilt from it.
        spawn: starts a worker: takes the command and a function that gets an error, or None.
        send: sends a message to a connection.
        ended: called when the session is over, with the reason.
        dock: moves the bytes of what crosses.
    """

    def __init__(
        self,
        configuration: dict[str, Any],
        directory: Path,
        journal: Journal,
        ledger: Ledger,
        *,
        spawn: Callable[[dict[str, Any], Callable[[str | None], None]], None],
        send: Send,
        ready: Callable[[str | None], None],
        ended: Callable[[str], None],
        dock: Dock,
    ) -> None:
        self.configuration = configuration
        self.directory = directory
        self.journal = journal
        self.ledger = ledger
        self.spawn = spawn
        self.send = send
        self.ready = ready
        self.ended = ended
        self.started = time.time()
        self.disk_was_full = False
        self.loop = asyncio.get_running_loop()
        self.cursors = Cursors(journal, send, self._left)
        self.flush_handle: asyncio.Handle | None = None
        self.held: asyncio.TimerHandle | None = None
        self.restarts: list[Callable[[str | None], None]] = []
        self.stopping: str | None = None
        self.live_pid: int | None = configuration.get("live")
        self.engine = self._make_engine()
        root = configuration.get("files_root")
        self.cargo = Cargo(
            lambda: self.engine, dock, Path(root) if root else None, self._directory, self._give_up
        )
        self.tidy_handle = self.loop.call_later(TIDY, self._tidy)

    # --- the interpreter ---------------------------------------------------------------------

    def _make_engine(self) -> Engine:
        engine_class = ENGINES[self.configuration.get("lang") or "python"]
        return engine_class(self.directory, self, self.configuration, signal_group=self.live_pid is None)

    def start(self) -> None:
        """Start the interpreter, or wait for the one that outlived the last server."""
        if self.ledger.session:
            self.engine.worker_id = self.ledger.session
            self.engine.pid = self.ledger.worker["pid"]
            self.engine.frame = self.ledger.frame
            self.notice("the session's server had ended and was started again", "server-restarted")
            self.ready(None)
        elif self.live_pid is not None or self.configuration.get("worker"):
            self.engine.worker_id = self.configuration["worker"]["id"]
            self.engine.pid = self.configuration["worker"].get("pid")
            if self.live_pid is not None:
                self.ready(None)  # it waits for that word before it says hello
        else:
            self._start_worker()

    def _start_worker(self) -> None:
        self.engine.worker_id = os.urandom(8).hex()

        def spawned(error: str | None) -> None:
            if error is not None:
                self._settle(error)

        self.spawn(self.engine.command(self.engine.worker_id), spawned)

    def _settle(self, error: str | None) -> None:
        """Tell those who wait for an interpreter that it is there, or that there is none."""
        restarts, self.restarts = self.restarts, []
        for answered in restarts:
            answered(error)
        self.ready(error)

    def worker_ready(self, info: dict[str, Any]) -> None:
        """The worker has said hello on its side connection."""
        if self.ledger.session == self.engine.worker_id:
            return
        known = {key: info.get(key) for key in ("pid", "lang", "version", "python", "runner", "cwd")}
        self.notice("", "started", session=self.engine.worker_id, **known)
        log.info("INIT worker pid=%s version=%s", info.get("pid"), info.get("version"))
        self.flush()  # who waits for the restart knows the new interpreter before he hears of it
        self._settle(None)

    def worker_free(self, last: int) -> None:
        """The worker can take a run, or has lost the one that the last server was handing over."""
        current = self.ledger.current
        if current is not None and current.number > last:
            self.engine.run(current.number, current.submit)
        self._dispatch()

    def worker_printed(self, stream: str, text: str) -> None:
        """Text came out of `stdout` or `stderr`."""
        current = self.ledger.current
        self.emit(stream, run=current.id if current else None, text=text)
        if self.configuration.get("verbose"):
            log.info("%s %s", "SOUT" if stream == "stdout" else "SERR", text.rstrip("\n"))

    def worker_said(self, frame: dict[str, Any], buffers: dict[str, bytes]) -> None:
        """A numbered frame of the worker becomes an event."""
        current = self.ledger.current
        run = current.id if current and frame.get("number") == current.number else None
        number, text, is_printed = frame["frame"], frame.get("text"), bool(frame.get("printed"))
        data: dict[str, Any]
        match frame.get("type"):
            case "result" | "display" as kind:
                bundle = {**frame.get("data", {}), **buffers}
                self.emit(kind, run=run, text=text, data=bundle or None, printed=is_printed, frame=number)
            case "error":
                data = {key: frame[key] for key in ("name", "value", "traceback") if key in frame}
                self.emit("error", run=run, text=text, data=data, printed=is_printed, frame=number)
            case "ask":
                data = {"id": frame["ask"], "hidden": bool(frame.get("hidden"))}
                self.emit("ask", run=run, text=frame.get("prompt") or "", data=data, frame=number)
            case "done":
                if current is not None and current.submit.keep:
                    self.cargo.expect(current.submit.keep)
                data = {key: frame.get(key) for key in ("status", "elapsed", "exit")}
                self.emit("done", run=run, data=data, frame=number)
                self._dispatch()
            case "end":
                self.emit("notice", text="stopped on the server's side", data={"about": "end"}, frame=number)
                self.end("stopped")
            case _:
                data = {"about": frame.get("about", "worker")}
                self.emit("notice", run=run, text=text, data=data, frame=number)

    def worker_paused(self) -> None:
        """All that had come of the worker was handed over: do not wait for the loop's next turn."""
        if self.flush_handle is not None:
            self.flush_handle.cancel()
            self.flush()

    def worker_ended(self, end: WorkerEnd) -> None:
        """The interpreter is gone: say so, end its runs, and start a new one if that was asked for."""
        was_ready = bool(self.ledger.session)
        how = str(end)
        is_replaced = bool(self.restarts) and was_ready
        text = "it was replaced by a new one" if is_replaced else how
        log.info("DIED %s", how)
        if self.stopping is None:
            data = {"signal": end.signal, "code": end.code, "replaced": is_replaced}
            self.emit("died", text=text, data=data)
        else:
            self.notice(f"the session was ended: {self.stopping}", "ended")
        for record in list(self.ledger.live):
            status = "died" if record.status == "running" else "cancelled"
            self.emit("done", run=record.id, data={"status": status, "elapsed": None, "exit": None})
        if self.stopping is not None:
            self._over()
        elif self.live_pid is not None:
            self.end("the process that was the session ended")
        elif not was_ready:
            self._settle(f"{how} before it was ready")
        else:
            self._renew_engine()
            if self.restarts:
                self._start_worker()

    def _renew_engine(self) -> None:
        self.engine.close()
        self.engine = self._make_engine()

    def restart(self, answered: Callable[[str | None], None]) -> None:
        """Replace the interpreter by a new one; `answered` gets an error, or None when it is there."""
        self.restarts.append(answered)
        if len(self.restarts) > 1:
            return
        log.info("RESTART")
        if self.ledger.session:
            self._stop_worker()
        else:
            self._start_worker()

    def _stop_worker(self) -> None:
        engine = self.engine
        engine.stop()
        self.loop.call_later(KILL_AFTER, engine.signal, signal.SIGKILL)

    # --- runs --------------------------------------------------------------------------------

    def _submit(self, cursor: Cursor, submit: Submit) -> None:
        ledger = self.ledger
        if submit.n <= ledger.last.get(cursor.client, 0):
            status: Status = ledger.recent.get(cursor.client, {}).get(submit.n, "ok")
            self.send(cursor.identity, Accepted(n=submit.n, status=status))
        elif refusal := self._refusal(submit):
            self.send(cursor.identity, refusal)
        else:
            if self.configuration.get("showmsg"):
                code = submit.code.encode("unicode_escape").decode()  # one line, whatever it holds
                log.info("RMSG %s: %s", cursor.label or cursor.client, code)
            data = {**queued_data(ledger.number + 1, submit), "label": cursor.label}
            self.emit("queued", run=(cursor.client, submit.n), text=submit.code, data=data, hold=True)
            self._dispatch()

    def _refusal(self, submit: Submit) -> Refused | None:
        live, size = self.ledger.live, len(submit.code)
        if size > LONGEST_CODE // 4 and len(submit.code.encode()) > LONGEST_CODE:
            return Refused(
                error="RemoterError",
                message=f"code of {size / 1e6:.0f} MB is too long",
                cause=f"a run's code has at most {LONGEST_CODE >> 20} MiB",
                hints=("put the data into a file and read that",),
                n=submit.n,
            )
        if not self.ledger.session:
            return refused_of(self._no_interpreter(), n=submit.n)
        if submit.session != self.ledger.session:
            return Refused(
                error="LinkLostError",
                message="the interpreter that this was meant for is gone",
                cause="the session was restarted; nothing was run",
                hints=("send it again if it is meant for the new one",),
                n=submit.n,
            )
        if len(live) >= MOST_RUNS or sum(len(run.submit.code) for run in live) + len(submit.code) > MOST_CODE:
            return Refused(
                error="RemoterError",
                message=f"too much is waiting in session `{self.configuration['name']}`",
                cause=f"{len(live)} runs wait; at most {MOST_RUNS} or {MOST_CODE >> 20} MB may",
                hints=("wait for some to end, or `remoter interrupt` the current one",),
                n=submit.n,
            )
        return None

    def _no_interpreter(self) -> SessionDiedError:
        name = self.configuration["name"]
        return SessionDiedError(
            f"session `{name}` has no interpreter",
            cause="it died, or is being started",
            hints=f"`remoter restart {name}` starts a new one",
        )

    def _dispatch(self) -> None:
        record = self.ledger.waiting
        if record is None or not self.engine.is_free or not self.ledger.session:
            return
        self.emit("busy", run=record.id, hold=True)
        self.journal.flush()  # accepted means: in the journal before anything of it happens
        self.engine.run(record.number, record.submit)

    def interrupt(self, run: RunId | None) -> bool:
        """Interrupt the current run, or cancel a waiting one. False: there was nothing to interrupt."""
        record = self.ledger.find(run) if run is not None else self.ledger.current
        if record is None:
            return False
        if record.status == "queued":
            self.emit("done", run=record.id, data={"status": "cancelled", "elapsed": None, "exit": None})
        else:
            self.engine.interrupt(record.number)
        return True

    def _answer(self, cursor: Cursor, answer: Answer) -> None:
        asked = self.ledger.asks.get(answer.ask)
        if asked is not None and asked.run == answer.run:
            data = {"about": "answered", "id": answer.ask}
            self.emit("notice", run=asked.run, client=cursor.client, text="", data=data)
            self.journal.flush()
            self.engine.answer(answer.ask, answer.text)
        elif answer.ask == 0 and answer.text is not None:
            self.engine.type(answer.text)

    # --- clients -----------------------------------------------------------------------------

    def attach(self, identity: bytes, attach: Attach) -> None:
        """A connection says who it is: it is told how things are, and all it has missed."""
        # Who was killed and is back at once finds that he is away, and is asked what he was asked.
        self.cursors.drop_silent(lambda: self._pong(0), probe_after=0.0)
        cursor = self.cursors.attach(identity, attach)
        log.info("ATTACH %s %s since=%s", cursor.client, cursor.label, attach.since)
        ledger = self.ledger
        self.send(
            identity,
            Attached(
                protocol=1,
                features=FEATURES,
                version=__version__,
                session=ledger.session,
                journal=self.journal.id,
                first=self.journal.first,
                last=self.journal.last,
                n=ledger.last.get(cursor.client, 0),
                runs=ledger.recent.get(cursor.client, {}),
                info=self.info(),
                asks=[event for event in ledger.asks.values() if self.cursors.may_see(cursor, event.run)],
            ),
        )
        self.cursors.pump(cursor)

    def receive(self, identity: bytes, message: Any) -> None:
        """A message of an attached connection."""
        cursor = self.cursors.get(identity)
        if cursor is None:
            return
        match message:
            case Acknowledge():
                cursor.acknowledge(message.seq)
                self.cursors.pump(cursor)
            case Submit():
                if not cursor.reads_only:
                    self._submit(cursor, message)
            case Ping():
                self.send(identity, self._pong(message.id))
            case Query():
                self._query(cursor, message)
            case Step():
                self._step(cursor, message)
            case Interrupt():
                self.send(identity, Reply(id=message.id, data={"interrupted": self.interrupt(message.run)}))
            case Answer():
                self._answer(cursor, message)
            case Detach():
                self.cursors.detach(identity)

    def _left(self, cursor: Cursor) -> None:
        """A client is gone; what its runs ask is asked of the others."""
        log.info("LEAVE %s", cursor.client)
        if cursor.reads_only:
            return
        for asked in list(self.ledger.asks.values()):
            if asked.run is not None and asked.run[0] == cursor.client:
                self.emit("ask", run=asked.run, text=asked.text, data=asked.data)

    def _tidy(self) -> None:
        """Once a second: find connections that broke without a word, and a worker that did."""
        self.cursors.drop_silent(lambda: self._pong(0))
        self.engine.check()
        self.cargo.tidy()
        self.journal.flush()  # a disk that was full is tried again
        self.tidy_handle = self.loop.call_later(TIDY, self._tidy)

    # --- questions ---------------------------------------------------------------------------

    def _pong(self, id: int) -> Pong:
        current = self.ledger.current
        return Pong(
            id=id,
            session=self.ledger.session,
            clients=sum(1 for _ in self.cursors),
            run=current.id if current else None,
            since=current.started if current else None,
            now=time.time(),
        )

    def info(self) -> dict[str, Any]:
        """What there is to know about the session; `since`: when its state began, busy or not, by the clock `now`."""
        worker, current = self.ledger.worker, self.ledger.current
        return {
            "name": self.configuration["name"],
            "lang": self.configuration.get("lang") or "python",
            "version": worker.get("version"),
            "python": worker.get("python"),
            "runner": worker.get("runner"),
            "host": host_name(),
            "pid": worker.get("pid"),
            "server_pid": os.getpid(),
            "cwd": worker.get("cwd"),
            "started": self.configuration.get("started", self.started),
            "busy": current is not None,
            "run": current.id if current else None,
            "running": current.submit.code[:200] if current else None,
            "since": current.started if current else self.ledger.settled or self.started,
            "now": time.time(),
            "waiting": max(0, len(self.ledger.live) - (current is not None)),
            "clients": [
                {"client": cursor.client, "label": cursor.label, "since": cursor.since}
                for cursor in self.cursors
            ],
            "secure": self.configuration.get("secure", True),
            "port": self.configuration.get("port"),
            "journal": {"first": self.journal.first, "last": self.journal.last},
        }

    def _query(self, cursor: Cursor, query: Query) -> None:
        identity = cursor.identity

        def answered(data: dict[str, Any]) -> None:
            if error := data.get("error"):
                self.send(identity, Refused(error="RemoterError", message=str(error), id=query.id))
            else:
                self.send(identity, Reply(id=query.id, data=data))

        match query.what:
            case "info":
                self._fresh_info(answered)
            case "log":
                answered({"text": self._log_text()})
            case "restart" if self.live_pid is not None:
                answered({"error": "a session inside another process cannot be restarted"})
            case "restart":
                self.restart(
                    lambda error: answered({"error": error} if error else {"session": self.ledger.session})
                )
            case "shutdown":
                answered({"ended": True})
                self.end(f"shut down by {cursor.label or cursor.client}")
            case _:
                question = {"what": query.what, "code": query.code, "cursor": query.cursor}
                self.engine.query(question, lambda frame: answered(frame.get("data") or frame))

    def _step(self, cursor: Cursor, step: Step) -> None:
        identity = cursor.identity

        def answered(answer: dict[str, Any] | RemoterError) -> None:
            if isinstance(answer, RemoterError):
                self.send(identity, refused_of(answer, id=step.id))
            else:
                self.send(identity, Reply(id=step.id, data=answer))

        if not self.ledger.session and step.what in OF_INTERPRETER:
            answered(self._no_interpreter())
        else:
            self.cargo.step(step, answered)

    def _give_up(self, transfer: str) -> None:
        """Nobody waits any more for the value of that transfer's run."""
        for record in list(self.ledger.live):
            if record.submit.keep == transfer:
                self.interrupt(record.id)

    def _directory(self) -> str:
        """Where the interpreter works now."""
        worker = self.ledger.worker
        with contextlib.suppress(OSError):
            return str(Path(f"/proc/{worker.get('pid')}/cwd").readlink())
        return str(worker.get("cwd") or self.configuration["cwd"])

    def _fresh_info(self, answered: Callable[[dict[str, Any]], None]) -> None:
        """The session's info, with the interpreter's memory and working directory as they are now."""
        info = self.info()
        pid = info["pid"]

        def with_memory(size: int | None) -> None:
            info["memory"] = size
            with contextlib.suppress(OSError):
                info["cwd"] = str(Path(f"/proc/{pid}/cwd").readlink())
                answered(info)
                return
            self.engine.query({"what": "info"}, with_worker)

        def with_worker(frame: dict[str, Any]) -> None:
            info["cwd"] = frame.get("data", {}).get("cwd", info["cwd"])
            answered(info)

        if pid is None:
            with_memory(None)
        else:
            measure_memory(pid, with_memory)

    def _log_text(self) -> str:
        path = Path(self.configuration.get("logfile") or self.directory / "server.log")
        with contextlib.suppress(OSError):
            return path.read_bytes()[-65536:].decode(errors="replace")
        return ""

    # --- events ------------------------------------------------------------------------------

    def notice(self, text: str, about: str, **more: Any) -> None:
        """Something that every client should know."""
        self.emit("notice", text=text, data={"about": about, **more})

    def emit(
        self,
        kind: Any,
        *,
        run: RunId | None = None,
        client: str | None = None,
        hold: bool = False,
        **content: Any,
    ) -> None:
        """Append an event, with what the journal takes, and send it in the next turn.

        `hold`: it may wait 2 ms for what follows: a short command's `queued` and `busy` then
        travel with its result, which saves the client two wake-ups.
        """
        if client is None and run is not None:
            client = run[0]
        event = self.journal.append(kind, run=run, client=client, **content)
        self.ledger.apply(event)
        if self.flush_handle is not None:
            return
        if not hold:
            if self.held is not None:
                self.held.cancel()
                self.held = None
            self.flush_handle = self.loop.call_soon(self.flush)
        elif self.held is None:
            self.held = self.loop.call_later(HOLD, self.flush)

    def flush(self) -> None:
        """Write what was appended, then send it."""
        self.flush_handle = self.held = None
        self.journal.flush()
        if self.journal.is_disk_full != self.disk_was_full:
            self.disk_was_full = self.journal.is_disk_full
            state = "full: the journal is kept in memory" if self.disk_was_full else "has room again"
            log.warning("DISK %s", state)
        self.engine.journaled()
        self.cursors.pump_all()

    # --- the end -----------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """End the session: the interpreter first, then `ended` is called."""
        if self.stopping is not None:
            return
        self.stopping = reason
        log.info("END %s", reason)
        if self.ledger.session and not self.engine.ended:
            self._stop_worker()
            if self.live_pid is not None:  # it goes on as what it was before
                self.loop.call_later(0.05, self._over)
        else:
            self._over()

    def _over(self) -> None:
        if self.stopping is None:
            return
        self.flush()
        self.cursors.dismiss(self.stopping)
        self.tidy_handle.cancel()
        self.cargo.close()
        self.engine.close()
        self.ended(self.stopping)
        self.stopping = None
