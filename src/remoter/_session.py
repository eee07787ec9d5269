"""One session: the queue of runs, the clients attached to it, its interpreter; in the server's process.

Everything that happens is an event: appended to the journal, applied to the ledger, and in the
next turn of the loop written to disk and then sent to whoever may see it. A client is only a
cursor into the journal, with a window of bytes that it has not acknowledged: a client that
does not read stops its own cursor and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from . import __version__
from ._config import host_name
from ._engines import ENGINES, Engine, WorkerEnd
from ._journal import Journal
from ._ledger import Ledger, queued_data
from ._messages import (
    FEATURES,
    Accepted,
    Answer,
    Attach,
    Attached,
    Events,
    Goodbye,
    Interrupt,
    Message,
    Ping,
    Pong,
    Query,
    Refused,
    Reply,
    RunId,
    Status,
    Submit,
)

log = logging.getLogger("remoter.session")

WINDOW = 1024 * 1024
CHUNK = 256 * 1024
MOST_RUNS = 1000
MOST_CODE = 64 * 1024 * 1024
HOLD = 0.002
SILENCE = 12.0
PROBE = 4.0
TIDY = 1.0
KILL_AFTER = 2.0

Send = Callable[[bytes, Message], bool | None]
"""Send to a connection: True sent, None later (its queue is full), False it is gone."""


class Client:
    """One attached connection: a cursor into the journal."""

    def __init__(self, identity: bytes, attach: Attach, position: int) -> None:
        self.id = attach.client
        self.identity = identity
        self.owner = attach.reader or attach.client
        self.reads_only = attach.reader is not None
        self.all = attach.all
        self.label = attach.label
        self.position = position
        self.sent: deque[tuple[int, int]] = deque()
        self.unacknowledged = 0
        self.since = time.time()
        self.heard = time.monotonic()
        self.blocked = False

    def acknowledge(self, seq: int) -> None:
        """Everything up to `seq` was processed: the window opens."""
        while self.sent and self.sent[0][0] <= seq:
            self.unacknowledged -= self.sent.popleft()[1]


class Session:
    """One running interpreter together with everything it has printed.

    Args:
        configuration: what the session was started with.
        directory: the run directory.
        journal: its record; the ledger is rebuilt from it.
        spawn: starts a worker: takes the command and a function that gets an error, or None.
        send: sends a message to a connection.
        ended: called when the session is over, with the reason.
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
        self.loop = asyncio.get_running_loop()
        self.clients: dict[bytes, Client] = {}
        self.flush_handle: asyncio.Handle | None = None
        self.held: asyncio.TimerHandle | None = None
        self.restarts: list[Callable[[str | None], None]] = []
        self.stopping: str | None = None
        self.live_pid: int | None = configuration.get("live")
        self.engine = self._make_engine()
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
            self.notice("the server was started again; nothing that was printed is lost", "server-restarted")
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
        number, text = frame["frame"], frame.get("text")
        match frame.get("type"):
            case "result" | "display" as kind:
                bundle = {**frame.get("data", {}), **buffers}
                self.emit(kind, run=run, text=text, data=bundle or None, frame=number)
            case "error":
                data = {"name": frame.get("name"), "value": frame.get("value")}
                self.emit("error", run=run, text=text, data=data, frame=number)
            case "ask":
                data = {"id": frame["ask"], "hidden": bool(frame.get("hidden"))}
                self.emit("ask", run=run, text=frame.get("prompt") or "", data=data, frame=number)
            case "done":
                data = {key: frame.get(key) for key in ("status", "elapsed", "exit")}
                self.emit("done", run=run, data=data, frame=number)
                self._dispatch()
            case "end":
                self.emit("notice", text="stopped on the server's side", data={"about": "end"}, frame=number)
                self.end("stopped")
            case _:
                data = {"about": frame.get("about", "worker")}
                self.emit("notice", run=run, text=text, data=data, frame=number)

    def worker_ended(self, end: WorkerEnd) -> None:
        """The interpreter is gone: say so, end its runs, and start a new one if that was asked for."""
        was_ready = bool(self.ledger.session)
        text = describe_end(end)
        log.info("DIED %s", text)
        self.emit("died", text=text, data={"signal": end.signal, "code": end.code})
        for record in list(self.ledger.live):
            status = "died" if record.status == "running" else "cancelled"
            self.emit("done", run=record.id, data={"status": status, "elapsed": None, "exit": None})
        if self.stopping is not None:
            self._over()
        elif self.live_pid is not None:
            self.end("the process that was the session ended")
        elif not was_ready:
            self._settle(f"{text} before it was ready")
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

    def _submit(self, client: Client, submit: Submit) -> None:
        ledger = self.ledger
        if submit.n <= ledger.last.get(client.id, 0):
            status: Status = ledger.recent.get(client.id, {}).get(submit.n, "ok")
            self.send(client.identity, Accepted(n=submit.n, status=status))
        elif refusal := self._refusal(submit):
            self.send(client.identity, refusal)
        else:
            if self.configuration.get("showmsg"):
                log.info("RMSG %s: %s", client.label or client.id, submit.code)
            data = queued_data(ledger.number + 1, submit)
            self.emit("queued", run=(client.id, submit.n), text=submit.code, data=data, hold=True)
            self._dispatch()

    def _refusal(self, submit: Submit) -> Refused | None:
        live = self.ledger.live
        if not self.ledger.session:
            return Refused(
                error="SessionDiedError",
                message=f"session `{self.configuration['name']}` has no interpreter",
                cause="it died, or is being started",
                hints=(f"`remoter restart {self.configuration['name']}` starts a new one",),
                n=submit.n,
            )
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

    def _answer(self, client: Client, answer: Answer) -> None:
        asked = self.ledger.asks.get(answer.ask)
        if asked is not None and asked.run == answer.run:
            data = {"about": "answered", "id": answer.ask}
            self.emit("notice", run=asked.run, client=client.id, text="", data=data)
            self.journal.flush()
            self.engine.answer(answer.ask, answer.text)
        elif answer.ask == 0 and answer.text is not None:
            self.engine.type(answer.text)

    # --- clients -----------------------------------------------------------------------------

    def attach(self, identity: bytes, attach: Attach) -> None:
        """A connection says who it is; an older one of the same client gives way."""
        for other in [c for c in self.clients.values() if c.id == attach.client and c.identity != identity]:
            self.send(other.identity, Goodbye(reason="superseded", message="attached from elsewhere"))
            del self.clients[other.identity]
        if attach.since is None:
            position = self.journal.last
        elif attach.journal not in (None, self.journal.id):
            position = 0
        else:
            position = attach.since
        client = Client(identity, attach, position)
        self.clients[identity] = client
        log.info("ATTACH %s %s since=%s", client.id, client.label, attach.since)
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
                n=ledger.last.get(client.id, 0),
                runs=ledger.recent.get(client.id, {}),
                info=self.info(),
                asks=[event for event in ledger.asks.values() if self._may_see(client, event.run)],
            ),
        )
        self._pump(client)

    def receive(self, identity: bytes, message: Any) -> None:
        """A message of an attached connection."""
        client = self.clients.get(identity)
        if client is None:
            return
        client.heard = time.monotonic()
        match message:
            case Submit():
                if not client.reads_only:
                    self._submit(client, message)
            case Ping():
                self.send(identity, self._pong(message.id))
            case Query():
                self._query(client, message)
            case Interrupt():
                self.send(identity, Reply(id=message.id, data={"interrupted": self.interrupt(message.run)}))
            case Answer():
                self._answer(client, message)
        if client.unacknowledged < WINDOW:
            self._pump(client)

    def acknowledge(self, identity: bytes, seq: int) -> None:
        """A client has processed events."""
        client = self.clients.get(identity)
        if client is not None:
            client.heard = time.monotonic()
            client.acknowledge(seq)
            self._pump(client)

    def leave(self, identity: bytes) -> None:
        """A client is gone; what its runs ask is asked of the others."""
        client = self.clients.pop(identity, None)
        if client is None:
            return
        log.info("LEAVE %s", client.id)
        if not client.reads_only:
            for asked in [
                event for event in self.ledger.asks.values() if event.run and event.run[0] == client.id
            ]:
                self.emit("ask", run=asked.run, text=asked.text, data=asked.data)

    def _is_present(self, client_id: str) -> bool:
        return any(c.id == client_id and not c.reads_only for c in self.clients.values())

    def _may_see(self, client: Client, run: RunId | None) -> bool:
        return client.all or run is None or run[0] == client.owner or not self._is_present(run[0])

    def _tidy(self) -> None:
        """Once a second: find connections that broke without a word, and a worker that did."""
        now = time.monotonic()
        for client in list(self.clients.values()):
            silent = now - client.heard
            if silent > SILENCE or (silent > PROBE and self.send(client.identity, self._pong(0)) is False):
                self.leave(client.identity)
        self.engine.check()
        self.journal.flush()  # a disk that was full is tried again
        self.tidy_handle = self.loop.call_later(TIDY, self._tidy)

    # --- questions ---------------------------------------------------------------------------

    def _pong(self, id: int) -> Pong:
        current = self.ledger.current
        return Pong(
            id=id,
            session=self.ledger.session,
            clients=sum(not client.reads_only for client in self.clients.values()),
            run=current.id if current else None,
            since=current.started if current else None,
            now=time.time(),
        )

    def info(self) -> dict[str, Any]:
        """What there is to know about the session."""
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
            "since": current.started if current else None,
            "waiting": max(0, len(self.ledger.live) - (current is not None)),
            "clients": [
                {"client": client.id, "label": client.label, "since": client.since}
                for client in self.clients.values()
                if not client.reads_only
            ],
            "secure": self.configuration.get("secure", True),
            "port": self.configuration.get("port"),
            "journal": {"first": self.journal.first, "last": self.journal.last},
        }

    def _query(self, client: Client, query: Query) -> None:
        identity = client.identity

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
                self.end(f"shut down by {client.label or client.id}")
            case _:
                question = {"what": query.what, "code": query.code, "cursor": query.cursor}
                self.engine.query(question, lambda frame: answered(frame.get("data") or frame))

    def _fresh_info(self, answered: Callable[[dict[str, Any]], None]) -> None:
        """The session's info, with the working directory as it is now."""
        info = self.info()
        with contextlib.suppress(OSError):
            info["cwd"] = str(Path(f"/proc/{info['pid']}/cwd").readlink())
            answered(info)
            return

        def with_worker(frame: dict[str, Any]) -> None:
            info["cwd"] = frame.get("data", {}).get("cwd", info["cwd"])
            answered(info)

        self.engine.query({"what": "info"}, with_worker)

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
        text: str | None = None,
        data: dict[str, Any] | None = None,
        frame: int = 0,
        hold: bool = False,
    ) -> None:
        """Append an event and send it in the next turn.

        `hold`: it may wait 2 ms for what follows: a short command's `queued` and `busy` then
        travel with its result, which saves the client two wake-ups.
        """
        if client is None and run is not None:
            client = run[0]
        event = self.journal.append(kind, run=run, client=client, text=text, data=data, frame=frame)
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
        self.engine.journaled()
        for client in list(self.clients.values()):
            self._pump(client)

    def _pump(self, client: Client) -> None:
        """Send what a client may see and has room for."""
        accept = None if client.all else lambda event: self._may_see(client, event.run)
        while not client.blocked and client.unacknowledged < WINDOW and client.position < self.journal.last:
            events, cursor = self.journal.read(client.position, CHUNK, accept)
            if cursor == client.position:
                return  # the rest is not on disk yet
            sent = self.send(client.identity, Events(events=[msgspec.Raw(e) for e in events], cursor=cursor))
            if sent is None:
                client.blocked = True
                self.loop.call_later(0.02, self._unblock, client)
                return
            if sent is False:
                self.leave(client.identity)
                return
            client.position = cursor
            size = sum(map(len, events))
            client.unacknowledged += size
            client.sent.append((cursor, size))

    def _unblock(self, client: Client) -> None:
        client.blocked = False
        if self.clients.get(client.identity) is client:
            self._pump(client)

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
        for client in list(self.clients.values()):
            self.send(client.identity, Goodbye(reason="shutdown", message=self.stopping))
        self.tidy_handle.cancel()
        self.engine.close()
        self.ended(self.stopping)
        self.stopping = None


def describe_end(end: WorkerEnd) -> str:
    """How the interpreter ended, for a person."""
    if end.signal is not None:
        with contextlib.suppress(ValueError):
            return f"the interpreter was ended by {signal.Signals(end.signal).name} (signal {end.signal})"
        return f"the interpreter was ended by signal {end.signal}"
    if end.code is not None:
        return f"the interpreter ended with exit code {end.code}"
    return "the interpreter ended"
