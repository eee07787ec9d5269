"""The server: listens, admits, hands requests to the session; a process of its own on the session's machine.

Started, and started again when it dies, by the keeper, from which it has the listening sockets, the
lock and the configuration. It never runs user code. Threads: the control loop (this module, the
session, its engine and the journal), the door (the TCP port), one for logins, and the dock's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import msgspec
import zmq

from . import __version__
from ._config import host_name
from ._dock import Dock
from ._door import Door
from ._engines import WorkerEnd, is_gone
from ._errors import RemoterError
from ._hello import Hello
from ._journal import Journal, sweep
from ._keeper import remove_session, start_worker
from ._ledger import Ledger, decode_snapshot, encode_snapshot
from ._messages import (
    PROTOCOL,
    Attach,
    Message,
    MessageError,
    Refused,
    common_protocol,
    decode_event,
    decode_from_client,
    encode,
)
from ._records import Record, write_record
from ._security import (
    INSECURE_KEYS,
    ZAP_ADDRESS,
    Keyring,
    answer_zap,
    check_libzmq,
    fingerprint,
    is_readable,
    load_or_make_keys,
    receive_from,
    secure_server_socket,
    send_to,
    server_keys,
)
from ._session import Session

log = logging.getLogger("remoter.server")

HIGH_WATER = 1000
"""Messages that may wait for one client; its window of events is far smaller, so answers always find room."""

MESSAGES_AT_ONCE = 20
"""Messages taken before others have their turn: a client that floods us delays the rest by that much."""

LONGEST_LOG = 4 * 1024 * 1024
"""Bytes of the session's own log, of which there is one older part: strangers cannot fill the disk with it."""

SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread gives way: the door must not wait 5 ms behind a busy control loop."""


OWNER_NAP = 1.0
"""Seconds between looks at the process that a session belongs to."""


class KeeperLine:
    """The line to the keeper: JSON, one request or word a line.

    A keeper that was killed is no reason to end: then this process starts workers itself, and
    what is lost is only that nobody would start this process again.
    """

    def __init__(self, sock: socket.socket, directory: str) -> None:
        self.sock = sock
        self.directory = directory
        self.incoming = bytearray()
        self.alive = True
        self.spawned: Callable[[int | None, str | None], None] | None = None
        self.exited: Callable[[int, int], None] = lambda pid, status: None
        self.gone: Callable[[], None] = lambda: None
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(sock, self._readable)

    def say(self, word: dict[str, Any]) -> None:
        """Tell the keeper something."""
        with contextlib.suppress(OSError):
            self.sock.sendall(json.dumps(word).encode() + b"\n")

    def spawn(self, command: dict[str, Any], spawned: Callable[[int | None, str | None], None]) -> None:
        """Have a worker started; `spawned` gets its pid, or what went wrong."""
        if self.alive:
            self.spawned = spawned
            self.say({"spawn": command})
            return
        try:
            pid = start_worker(self.directory, command)
        except OSError as error:
            spawned(None, f"cannot start `{command['argv'][0]}`: {error}")
        else:
            spawned(pid, None)
            self._look_after(pid)

    def _look_after(self, pid: int) -> None:
        """Reap a worker that is this process's own child."""
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            self.exited(pid, status)
        else:
            self.loop.call_later(0.2, self._look_after, pid)

    def _readable(self) -> None:
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.loop.remove_reader(self.sock)
            self.alive = False
            self.gone()
            return
        self.incoming += data
        *lines, rest = self.incoming.split(b"\n")
        self.incoming = rest
        for line in lines:
            self._heard(json.loads(line))

    def _heard(self, word: dict[str, Any]) -> None:
        if "exited" in word:
            self.exited(word["exited"], word["status"])
        elif self.spawned is not None and ("spawned" in word or "failed" in word):
            spawned, self.spawned = self.spawned, None
            spawned(word.get("spawned"), word.get("failed"))


class Server:
    """One session's server, on its control loop."""

    def __init__(
        self, configuration: dict[str, Any], keeper: KeeperLine, listeners: list[socket.socket]
    ) -> None:
        check_libzmq()
        self.configuration = configuration
        self.directory = Path(configuration["run_directory"])
        self.keeper = keeper
        self.loop = asyncio.get_running_loop()
        self.over: asyncio.Future[str] = self.loop.create_future()
        self.was_ready = False
        self.secure = bool(configuration.get("secure", True))
        self.keys = server_keys() if self.secure else INSECURE_KEYS
        # The connection record's own client key: made at the first start, kept over restarts of the server.
        self.record_keys = load_or_make_keys(self.directory / "record_key")
        self.keyring = Keyring(
            [self.record_keys.public],
            clients_file=self.directory / "clients",
            admit_all=not self.secure,
        )
        self._open_sockets()
        self.dock = Dock(self.directory, self.keys, self.keyring)
        self.journal, ledger = self._open_journal()
        self.session = Session(
            configuration,
            self.directory,
            self.journal,
            ledger,
            spawn=self._spawn,
            send=self.send,
            ready=self._ready,
            ended=self._ended,
            dock=self.dock,
        )
        keeper.spawned = self._first_spawned
        keeper.exited = self._worker_exited
        keeper.gone = self._keeper_gone
        hello = Hello(
            self.keys.public,
            self.keyring,
            configuration.get("password"),
            secure=self.secure,
            maxretry=configuration.get("maxretry", 5),
        )
        # Who only connects is nobody yet: that is not worth a line of the log.
        self.door = Door(
            [*listeners, self._listen_for_tunnels()],
            self.directory / "zmq.sock",
            hello,
            report=log.debug,
            data=self.directory / "data.sock",
        )
        self.dock.start()
        self.door.start()
        self.session.start()
        if owner := configuration.get("only_while"):
            self._look_after_owner(int(owner))

    def _open_sockets(self) -> None:
        self.context = zmq.Context()
        self.zap = self.context.socket(zmq.ROUTER)
        self.zap.linger = 0
        self.zap.bind(ZAP_ADDRESS)
        self.router = secure_server_socket(self.context, self.keys, high_water=HIGH_WATER)
        path = self.directory / "zmq.sock"
        path.unlink(missing_ok=True)
        old_mask = os.umask(0o177)
        try:
            self.router.bind(f"ipc://{path}")
        finally:
            os.umask(old_mask)
        self.checking = False
        self.loop.add_reader(descriptor(self.zap), self._zap_readable)
        self.loop.add_reader(descriptor(self.router), self._readable)

    def _listen_for_tunnels(self) -> socket.socket:
        """The door's unix socket: ssh forwards one, and connections for data come through it too."""
        path = self.directory / "door.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        old_mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old_mask)
        listener.listen(64)
        return listener

    def _open_journal(self) -> tuple[Journal, Ledger]:
        directory = Path(self.configuration["journal_directory"])
        sweep(directory.parent)
        ledger = Ledger()
        journal = Journal(
            directory,
            name=self.configuration["name"],
            limit=self.configuration.get("journal_limit") or 256 * 1024 * 1024,
            snapshot=lambda: encode_snapshot(ledger),
        )
        for entry in journal.replay():
            if isinstance(entry, bytes):
                snapshot = decode_snapshot(entry)
                for field in snapshot.__struct_fields__:
                    setattr(ledger, field, getattr(snapshot, field))
            else:
                ledger.apply(entry)
        return journal, ledger

    # --- the network -------------------------------------------------------------------------

    def _zap_readable(self) -> None:
        while is_readable(self.zap):
            answer_zap(self.zap, self.keyring)

    def _readable(self) -> None:
        """Take all that is there: libzmq's descriptor tells of a change only once."""
        self.checking = False
        for _ in range(MESSAGES_AT_ONCE):
            if not is_readable(self.router):
                return
            frames = receive_from(self.router)
            if len(frames) == 2:
                self._receive(frames[0], frames[1])
        self._check_again()

    def _check_again(self) -> None:
        if not self.checking:
            self.checking = True
            self.loop.call_soon(self._readable)

    def send(self, identity: bytes, message: Message) -> bool | None:
        """Send to a connection: True sent, None its queue is full, False it is gone."""
        try:
            send_to(self.router, identity, encode(message))
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.ENOTSOCK, zmq.ETERM):
                return False
            raise
        finally:
            if not self.router.closed and is_readable(self.router):
                self._check_again()  # sending may have used up the descriptor's signal
        return True

    def _receive(self, identity: bytes, payload: bytes) -> None:
        try:
            message = decode_from_client(payload)
        except MessageError as error:
            log.warning("skipped a message that is not understood: %s", error)
            return
        match message:
            case Attach():
                self._attach(identity, message)
            case _:
                self.session.receive(identity, message)

    def _attach(self, identity: bytes, attach: Attach) -> None:
        if common_protocol(attach.protocol) is None:
            low, high = attach.protocol
            refusal = Refused(
                error="VersionError",
                message=f"no common protocol: here {PROTOCOL[0]} to {PROTOCOL[1]} (remoter {__version__}), "
                f"on the client's side {low} to {high} (remoter {attach.version})",
                hints=("update the older of the two",),
            )
            self.send(identity, refusal)
        else:
            self.session.attach(identity, attach)

    # --- the worker and the keeper -----------------------------------------------------------

    def _spawn(self, command: dict[str, Any], spawned: Callable[[str | None], None]) -> None:
        def heard(pid: int | None, error: str | None) -> None:
            if pid is not None:
                self.session.engine.pid = pid
            spawned(error)

        self.keeper.spawn(command, heard)

    def _first_spawned(self, pid: int | None, _: str | None) -> None:
        """The keeper has started the first worker by itself."""
        self.session.engine.pid = pid

    def _worker_exited(self, pid: int, status: int) -> None:
        engine = self.session.engine
        if pid != engine.pid:
            return
        code = os.waitstatus_to_exitcode(status)
        engine.has_ended(WorkerEnd(signal=-code) if code < 0 else WorkerEnd(code=code))

    def _keeper_gone(self) -> None:
        log.warning("the keeper is gone")
        self.session.notice(
            "the session's keeper was ended: the session goes on, but its server would not be started again",
            "keeper-gone",
        )

    # --- begin and end -----------------------------------------------------------------------

    def _look_after_owner(self, pid: int) -> None:
        """A session that belongs to one process is over when that is."""
        if is_gone(pid):
            self.session.end("the process that it belonged to has ended")
        else:
            self.loop.call_later(OWNER_NAP, self._look_after_owner, pid)

    def _ready(self, error: str | None) -> None:
        """The first interpreter is there, or could not be started: the launcher waits for that.

        A live process that is to be served waits itself until we listen, so it hears of that
        first; clients find the session when its interpreter is there.
        """
        if error is not None:
            if not self.was_ready:
                self.keeper.say({"error": self._start_error(error)})
                self.session.end("the interpreter could not be started")
            return
        record = self._record()
        if self.session.ledger.session:
            try:
                write_record(record)
            except RemoterError as failure:
                log.error("%s", failure.line)
                self.keeper.say({"error": words_of(failure)})  # it ends a session that has just begun
        if self.was_ready:
            return
        self.was_ready = True
        self.keeper.say(
            {
                "ready": {
                    "record": msgspec.to_builtins(record),
                    "worker": self.session.ledger.worker,
                    "server_pid": os.getpid(),
                    "fingerprint": fingerprint(self.keys.public),
                }
            }
        )
        log.info("INIT session `%s` on port %s", record.name, record.port)

    def _start_error(self, error: str) -> dict[str, Any]:
        words = "".join(
            event.text or "" for event in self._last_words() if event.kind in ("stdout", "stderr")
        ).strip()
        cause = f"{error}: {words[-2000:]}" if words else error
        if self.configuration.get("lang") == "r":
            r = self.configuration.get("r") or "R"
            hints = [
                "see whether it starts by itself: `R --interactive --no-readline`; `--r PATH` names another"
            ]
            return {"message": f"cannot start R with `{r}`", "cause": cause, "hints": hints, "id": "r"}
        python = self.configuration.get("python") or sys.executable
        hints = ["name a CPython of 3.8 or later with `--python`"]
        message = f"cannot start an interpreter with `{python}`"
        return {"message": message, "cause": cause, "hints": hints, "id": "python"}

    def _last_words(self) -> list[Any]:
        self.journal.flush()
        events, _ = self.journal.read(0, 65536)
        return [decode_event(event) for event in events]

    def _record(self) -> Record:
        configuration = self.configuration
        return Record(
            name=configuration["name"],
            host=host_name(),
            listen=configuration["listen"][0],
            port=configuration["port"],
            directory=str(self.directory),
            server_public=self.keys.public,
            client_public=self.record_keys.public,
            client_secret=self.record_keys.secret,
            pid=configuration.get("keeper_pid") or os.getppid(),
            journal=configuration["journal_directory"],
            started=configuration.get("started", time.time()),
            secure=self.secure,
            lang=configuration.get("lang") or "python",
            version=__version__,
        )

    def interrupt(self) -> None:
        """Ctrl-C on the server's own terminal."""
        self.session.interrupt(None)

    def stop(self, signal_name: str) -> None:
        """End the session, because a signal says so."""
        self.session.end(f"ended by {signal_name}")

    def _ended(self, reason: str) -> None:
        if not self.over.done():
            self.over.set_result(reason)

    def close(self) -> None:
        """Leave nothing behind but the journal."""
        self.door.stop()
        self.dock.stop()
        self.journal.finish()
        if self.configuration.get("only_while"):
            self.journal.remove()  # nobody else ever saw it
        else:
            self.journal.close()
        self.loop.remove_reader(descriptor(self.zap))
        self.loop.remove_reader(descriptor(self.router))
        self.router.close()
        self.zap.close()
        self.context.term()
        if not self.keeper.alive:
            remove_session(self.configuration)
        self.keeper.say({"stop": True})


def descriptor(socket: zmq.Socket[bytes]) -> int:
    """What a selector watches: readable when the socket's state may have changed."""
    return int(socket.get(zmq.FD))


def set_up_log(configuration: dict[str, Any]) -> None:
    """One log: in the run directory, in `logfile` as well, and on our terminal if asked for."""
    form = logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s")
    own = Path(configuration["run_directory"]) / "server.log"
    handlers: list[logging.Handler] = [RotatingFileHandler(own, maxBytes=LONGEST_LOG, backupCount=1)]
    if configuration.get("logfile"):
        handlers.append(logging.FileHandler(configuration["logfile"]))
    on_terminal = configuration.get("verbose") or configuration.get("showmsg")
    if on_terminal and not os.path.samestat(os.fstat(2), own.stat()):
        handlers.append(logging.StreamHandler())
    root = logging.getLogger("remoter")
    root.setLevel(logging.INFO)
    root.propagate = False
    for handler in handlers:
        handler.setFormatter(form)
        root.addHandler(handler)
    logging.raiseExceptions = False  # a terminal that went away is no reason to complain


def words_of(error: RemoterError) -> dict[str, Any]:
    """The error as the keeper takes it."""
    return {"message": error.message, "cause": error.cause, "hints": error.hints, "id": error.id}


async def serve(
    keeper_socket: socket.socket, listeners: list[socket.socket], configuration: dict[str, Any]
) -> None:
    """Serve the session until it ends."""
    loop = asyncio.get_running_loop()
    keeper_socket.setblocking(False)
    keeper = KeeperLine(keeper_socket, configuration["run_directory"])
    try:
        server = Server(configuration, keeper, listeners)
    except RemoterError as error:
        keeper.say({"error": words_of(error)})
        raise
    except OSError as error:  # a full disk, a quota, a limit
        where = f"`{error.filename}`: " if error.filename else ""
        failure = RemoterError("the server cannot start", cause=f"{where}{error.strerror}", id="start")
        keeper.say({"error": words_of(failure)})
        raise
    loop.add_signal_handler(signal.SIGINT, server.interrupt)
    loop.add_signal_handler(signal.SIGTERM, server.stop, "SIGTERM")
    await server.over
    server.close()


def read_configuration(sock: socket.socket) -> dict[str, Any]:
    """The first line on the keeper's line."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            raise SystemExit("the keeper ended before it said what to serve")
        line += byte
    configuration: dict[str, Any] = json.loads(line)
    return configuration


def keep_descriptors() -> None:
    """What the keeper handed over is for us alone: a worker that we start must not hold the session's lock."""
    for path in list(Path("/dev/fd").iterdir()):
        with contextlib.suppress(OSError):  # what listed them is closed by now
            if int(path.name) > 2:
                os.set_inheritable(int(path.name), False)


def main() -> None:
    """`python -m remoter._server SOCKET LISTENER...`: descriptors that the keeper hands over."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL)
    keep_descriptors()
    keeper_socket = socket.socket(fileno=int(sys.argv[1]))
    listeners = [socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[2:]]
    configuration = read_configuration(keeper_socket)
    set_up_log(configuration)
    try:
        asyncio.run(serve(keeper_socket, listeners, configuration))
    except Exception:
        log.exception("the server failed")
        raise


if __name__ == "__main__":
    main()
