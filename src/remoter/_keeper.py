"""The keeper: holds a session's port and pipes, and starts its server again if it dies; beside the server.

Two halves. `claim` and `launch` run in the process that starts a session: the command line, or the
live process that is to be served. `main` is the keeper itself: a process of its own that outlives both,
parent of the server and of the worker. It imports this module alone, out of its directory (`START`),
so that it stays small and no other directory can shadow what it loads; hence it is all one file. It
knows only its configuration: every path in there is made by `launch`.

The keeper's children do not die with it. The server holds the listening sockets and the lock too: if
the keeper is killed, the session goes on, and only a dead server is not started again.
"""

# pathlib, typing, subprocess and the rest of remoter would cost the keeper 3 MB.
# ruff: noqa: PTH100, PTH105, PTH106, PTH110, PTH108, PTH116, PTH118, PTH120, PTH123, PTH208, S606

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import Any, NoReturn

    from ._errors import RemoterError

USUAL_PORT = 55555
FREE_PORTS = (49152, 65535)
PIPES = ("in", "out", "err", "interrupt")
START_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0  # for the worker to end by itself
SERVER_TIMEOUT = 10.0  # for the server to end cleanly at SIGTERM
BACK_OFF = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
STEADY = 60.0  # a server that lived so long did not fail at its start
START = "import sys; sys.path.insert(0, sys.argv[1]); import _keeper; _keeper.main()"
LONGEST_NAME = 40
TOLD_AGAIN = 16
PIPE_SIZE = 1024 * 1024
HOLD_TRIES = 20


# --- in the process that starts a session ----------------------------------------------------


def launch(
    configuration: dict[str, Any],
    *,
    attach_log: bool,
    first_worker: Callable[[str], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Start the keeper, and with it the session.

    Args:
        configuration: what the session is to be; the paths are added here.
        first_worker: gives, for a run directory, the `id` and the `command` of the worker that is
            to be started together with the server; none: the server starts one, or has one.
        attach_log: whether the keeper and the server write their log to our stderr (a terminal
            that shows it) instead of `server.log` in the run directory.

    Returns:
        What the server said when it was ready, with `keeper_pid` and `run_directory`.

    Raises:
        RemoterError: the name or the port is taken, or the server did not start.
    """
    import subprocess

    from . import _config

    _config.private_directory(_config.journal_directory())
    run_directory, lock = claim(_config.runtime_directory(), configuration.get("name"))
    name = run_directory.name
    configuration = {
        "journal_directory": str(_config.journal_directory() / f"{name}-{os.urandom(4).hex()}"),
        **configuration,
        "name": name,
        "run_directory": str(run_directory),
        "record_path": str(_config.record_path(_config.host_name(), name)),
        "lock_fd": lock,
    }
    if first_worker is not None:
        configuration["worker"] = first_worker(str(run_directory))
    try:
        with _open_log(run_directory, attach_log) as log:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", START, os.path.dirname(os.path.abspath(__file__)), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                pass_fds=[lock],
                start_new_session=True,
            )
    except OSError as error:
        remove_session(configuration)
        raise _failure("cannot start the keeper", cause=str(error)) from None
    finally:
        os.close(lock)
    with keeper:  # what we started is gone at once: it forked the keeper, which is nobody's child
        return _await_ready(keeper, configuration)


def claim(runtime_root: Path, wanted: str | None) -> tuple[Path, int]:
    """A run directory that is ours alone, empty but for its lock, and the descriptor that holds the lock.

    Args:
        runtime_root: where the run directories of this machine are.
        wanted: the session's name. None: `main`, or the first free of `main-2`, `main-3`, ...

    Raises:
        RemoterError: the name is no name, or a live session has it.
    """
    from . import _config

    if wanted is not None:
        check_name(wanted)
    _config.private_directory(runtime_root)
    for number in range(1, 10_000):
        name = wanted or ("main" if number == 1 else f"main-{number}")
        directory = runtime_root / name
        _check_length(directory)
        lock = _lock(directory)
        if lock is not None:
            _empty(directory)
            os.utime(lock)  # its time is when the session began
            return directory, lock
        if wanted is not None:
            raise _name_taken(directory)
    raise _failure("there are too many sessions", id="name-taken")


def check_name(name: str) -> None:
    """Raises RemoterError unless it can name a session: letters, digits, `-`, `_`, `.`; 40 at most."""
    usable = all(letter.isalnum() or letter in "-_." for letter in name) and name.isascii()
    if usable and 0 < len(name) <= LONGEST_NAME and name[0] not in "-.":
        return
    raise _failure(
        f"`{name}` cannot name a session",
        cause=f"a name has letters, digits, `-`, `_` and `.`, begins with none of `-` and `.`, "
        f"and is at most {LONGEST_NAME} long",
        id="name",
    )


def _check_length(directory: Path) -> None:
    from . import _config

    longest = os.fsencode(directory / "worker.sock")
    if len(longest) > _config.LONGEST_SOCKET_PATH:
        raise _failure(
            f"the path `{directory}` is too long for a socket",
            cause=f"`{os.fsdecode(longest)}` has {len(longest)} bytes, "
            f"at most {_config.LONGEST_SOCKET_PATH} are possible",
            hints=["set REMOTER_RUNTIME_DIR to a short path, for example `/tmp/remoter-me`"],
            id="socket-path",
        )


def _lock(directory: Path) -> int | None:
    """Take the directory's lock, making both; None if a live session holds it."""
    from . import _config

    path = directory / "lock"
    for _ in range(1000):
        try:
            _config.private_directory(directory)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # removed in between by a session that ended
            continue
        if not _is_granted(lock, fcntl.LOCK_EX):
            alive = not _is_granted(lock, fcntl.LOCK_SH)
            os.close(lock)
            if alive:
                return None
            time.sleep(0.005)  # somebody only looked, whether a session has it
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(lock)):
                return lock
        os.close(lock)  # it was of a session that ended just now
    return None


def _is_granted(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _empty(directory: Path) -> None:
    """Remove what a session left that was killed with its keeper."""
    import shutil

    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink(missing_ok=True)


def _name_taken(directory: Path) -> RemoterError:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(os.stat(directory / "lock").st_mtime))
    return _failure(
        f"session `{directory.name}` is already running",
        cause=f"it was started on {since}",
        hints=[
            f"to use it: `remoter client {directory.name}`",
            f"to start another: `remoter server --name {directory.name[: LONGEST_NAME - 2]}-2`",
        ],
        id="name-taken",
    )


def _open_log(run_directory: Path, attach_log: bool) -> Any:
    if attach_log:
        return contextlib.nullcontext(None)
    descriptor = os.open(run_directory / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return os.fdopen(descriptor, "ab")


def _await_ready(keeper: subprocess.Popen[bytes], configuration: dict[str, Any]) -> dict[str, Any]:
    """Hand over the configuration and wait for the keeper's word."""
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT
    is_ending = False
    with contextlib.suppress(BrokenPipeError):
        keeper.stdin.write(json.dumps(configuration).encode() + b"\n")
        keeper.stdin.close()
    pid = 0
    received = b""
    try:
        while select.select([keeper.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(keeper.stdout.fileno(), 65536)
            received += piece
            *lines, received = received.split(b"\n")
            for message in map(json.loads, lines):
                if "ready" in message:
                    return {**message["ready"], "run_directory": configuration["run_directory"]}
                if "error" in message:
                    is_ending = True  # it removes what it made; a signal could come before that
                    _wait_until_free(configuration["run_directory"])
                    raise _explained(_failure(**message["error"]), configuration)
                pid = message["keeper"]
            if not piece:
                raise _failure(
                    "the keeper ended before the session was ready", cause=last_words(configuration)
                )
        raise _failure(
            f"the session did not start within {START_TIMEOUT:.0f} s",
            cause=last_words(configuration) or "its server has not said that it is ready",
            hints=["on a slow file system a second attempt may be faster"],
            id="start-timeout",
        )
    except BaseException:
        if pid and not is_ending:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        raise


def _wait_until_free(run_directory: str, patience: float = STOP_TIMEOUT) -> None:
    """Wait until a session that could not start is gone, so that its name can be used again."""
    deadline = time.monotonic() + patience
    while os.path.exists(os.path.join(run_directory, "lock")) and time.monotonic() < deadline:
        time.sleep(0.01)


def _explained(error: RemoterError, configuration: dict[str, Any]) -> RemoterError:
    """The error; if a port is taken by one of our sessions, it says by which."""
    from . import _records

    if error.id == "port-taken":
        for record in _records.records():
            if record.is_here and record.port == configuration["port"]:
                error.cause = f"it is the port of session `{record.name}`"
                error.hints = (f"to use that session: `remoter client {record.name}`", *error.hints)
    return error


def _failure(message: str, **more: Any) -> RemoterError:
    from ._errors import RemoterError

    return RemoterError(message, **{"id": "start", **more})


def wait_for_end(run_directory: str | Path) -> None:
    """Wait until that session has ended: neither its keeper nor its server lives. Signals interrupt it."""
    try:
        lock = os.open(os.path.join(run_directory, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


# --- in both, and in a server without its keeper ---------------------------------------------


def remove_session(configuration: dict[str, Any]) -> None:
    """Remove the connection record and the run directory, the lock last; the journal stays."""
    directory = configuration["run_directory"]
    try:
        names = sorted(os.listdir(directory), key=lambda name: name == "lock")
    except OSError:
        names = []
    paths = [configuration["record_path"], *(os.path.join(directory, name) for name in names)]
    for path in paths:
        try:
            os.unlink(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EISDIR, errno.EPERM):
                _log(f"cannot remove {path}: {error}")
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno != errno.ENOENT:
            _log(f"cannot remove {directory}: {error}")


def last_words(configuration: dict[str, Any]) -> str | None:
    """The last line of the log, if there is one."""
    try:
        with open(os.path.join(configuration["run_directory"], "server.log"), "rb") as log:
            lines = log.read()[-4096:].decode(errors="replace").strip().splitlines()
    except OSError:
        return None
    return lines[-1].strip() if lines else None


def _log(text: str) -> None:
    """A line on stderr, which may be a terminal that is gone."""
    with contextlib.suppress(OSError):
        os.write(2, f"{time.strftime('%H:%M:%S')} keeper: {text}\n".encode(errors="replace"))


def hold(directory: str) -> int | None:
    """Keep what cleans up old files (systemd-tmpfiles) out of the directory: it skips those that are locked.

    Returns the descriptor that holds it as long as it is open; None where that cannot be done.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    for _ in range(HOLD_TRIES):
        if _is_granted(descriptor, fcntl.LOCK_SH):
            return descriptor
        time.sleep(0.01)  # it is cleaning at this moment
    os.close(descriptor)
    return None


# --- the keeper: ports -----------------------------------------------------------------------


class Refusal(Exception):
    """Why the session cannot start, as the launcher will say it."""

    def __init__(self, message: str, cause: str, hints: Iterable[str] = (), id: str = "start") -> None:
        super().__init__(message)
        self.words = {"message": message, "cause": cause, "hints": list(hints), "id": id}


def open_listeners(addresses: Iterable[str], port: int | None) -> list[socket.socket]:
    """Sockets that listen on one port of every address.

    Args:
        addresses: host names or literal addresses; `*` is all of them.
        port: that one; 0 is any free one from 49152 up; None is 55555, or any free one if that is taken.

    Raises:
        Refusal: the port is taken, or an address is not ours.
    """
    addresses = list(addresses)
    if port:
        listeners = _listen_on_all(addresses, port)
        if listeners is None:
            raise Refusal(
                f"port `{port}` is taken",
                "another program listens on it",
                ["port 0 takes any free one"],
                "port-taken",
            )
        return listeners
    candidates = [USUAL_PORT] if port is None else []
    lowest, highest = FREE_PORTS
    candidates += [lowest + int.from_bytes(os.urandom(4), "big") % (highest - lowest + 1) for _ in range(200)]
    for candidate in candidates:
        listeners = _listen_on_all(addresses, candidate)
        if listeners is not None:
            return listeners
    raise Refusal("there is no free port", f"200 of {lowest} to {highest} were tried", id="port-taken")


def _listen_on_all(addresses: Iterable[str], port: int) -> list[socket.socket] | None:
    """The sockets; None if the port is taken on one of the addresses."""
    listeners: list[socket.socket] = []
    try:
        for address in addresses:
            listeners += _listen_on(address, port)
    except OSError as error:
        for listener in listeners:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise Refusal(f"cannot listen on `{address}`, port {port}", _reason(error), id="listen") from None
    return listeners


def _listen_on(address: str, port: int) -> list[socket.socket]:
    """A socket for each address that the name stands for; those that this machine lacks are left out."""
    host = None if address == "*" else address.strip("[]")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    for family, kind, protocol, _, where in dict.fromkeys(found):
        listener: socket.socket | None = None
        try:
            listener = socket.socket(family, kind, protocol)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(512)
        except OSError as error:
            if listener is not None:
                listener.close()
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for other in listeners:
                    other.close()
                raise
            missing = error
        else:
            listeners.append(listener)
    if missing is not None and not listeners:
        raise missing
    return listeners


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return error.strerror or str(error)


# --- the keeper: children --------------------------------------------------------------------


def start_process(
    argv: Sequence[str],
    *,
    standard: Sequence[int],
    inherit: Iterable[int] = (),
    environment: dict[str, str] | None = None,
    directory: str | None = None,
    new_session: bool = False,
) -> int:
    """Start a program and return its process id. Raises OSError if it cannot be executed.

    Args:
        argv: the program and its arguments.
        standard: the descriptors that become its 0, 1 and 2.
        inherit: others that it gets under their own numbers.
        environment: all of its variables; None: ours.
        directory: where it starts; None: where we are.
        new_session: whether it leads a session and a process group of its own.
    """
    readable, writable = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(readable)
        os.close(writable)
        raise
    if pid == 0:
        try:
            if new_session:
                os.setsid()
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for target, descriptor in enumerate(standard):
                os.dup2(descriptor, target)
            for descriptor in inherit:
                os.set_inheritable(descriptor, True)
            if directory:
                os.chdir(directory)
            os.execvpe(argv[0], list(argv), dict(os.environ) if environment is None else environment)
        except BaseException as error:
            os.write(
                writable, (getattr(error, "strerror", None) or str(error)).encode(errors="replace")[:4000]
            )
        finally:
            os._exit(127)
    os.close(writable)
    failure = b""
    while piece := os.read(readable, 4096):  # ends when the program is executed
        failure += piece
    os.close(readable)
    if failure:
        os.waitpid(pid, 0)
        raise OSError(failure.decode())
    return pid


def start_worker(directory: str, wish: dict[str, Any]) -> int:
    """Start a worker with its ends of the session's pipes as 0, 1 and 2. Raises OSError.

    The pipes are opened anew: whether they block is the worker's own, not shared with the server.
    """
    standard: list[int] = []
    try:
        for name, flags in (("in", os.O_RDONLY), ("out", os.O_WRONLY), ("err", os.O_WRONLY)):
            standard.append(os.open(os.path.join(directory, name), flags | os.O_CLOEXEC))
        return start_process(
            wish["argv"],
            standard=standard,
            environment=wish.get("env"),
            directory=wish.get("cwd"),
            new_session=True,
        )
    finally:
        for descriptor in standard:
            os.close(descriptor)


def kill_group(pid: int, number: int) -> None:
    """Signal a process and all of its group."""
    for send in (os.killpg, os.kill):
        try:
            send(pid, number)
        except OSError:
            continue
        return


class Keeper:
    """Keeps one session: its server, which it starts again, and its workers, which it does not.

    Args:
        configuration: what the launcher gave.
        listeners: the sockets that every server of this session inherits.
        report: tells the launcher something; called once.
    """

    def __init__(
        self,
        configuration: dict[str, Any],
        listeners: list[socket.socket],
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self.configuration = configuration
        self.listeners = listeners
        self.report = report
        self.is_reported = False
        self.is_ending = False
        self.is_stopped = False  # the server has ended the session, the worker too
        self.server = 0  # its process id, 0 while there is none
        self.channel: socket.socket | None = None
        self.received = b""
        self.outgoing = b""
        self.workers: set[int] = set()
        self.exits: dict[int, int] = {}  # what became of the last ones
        self.failures = 0
        self.started = 0.0
        self.start_at: float | None = None
        self.kill_at: float | None = None
        self.is_terminated = False
        self.record: bytes = b""  # the connection record, once there is one
        self.is_record_missed = False
        self.held = [hold(configuration["run_directory"])]
        self.wakeup = self._catch_signals()
        self.devnull = os.open(os.devnull, os.O_RDWR)
        self.pipes = self._make_pipes()

    def _catch_signals(self) -> int:
        """Let SIGCHLD and SIGTERM wake up `select`; what else a terminal may send is ignored."""
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "is_terminated", True))
        signal.signal(signal.SIGINT, lambda *_: self._pass_on(signal.SIGINT))
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "is_record_missed", True))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return readable

    def _make_pipes(self) -> list[int]:
        """The worker's pipes, held open at both ends: it is never cut off while there is no server."""
        held = []
        for name in PIPES:
            path = os.path.join(self.configuration["run_directory"], name)
            os.mkfifo(path, 0o600)
            held.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            if name in ("out", "err") and hasattr(fcntl, "F_SETPIPE_SZ"):
                try:
                    fcntl.fcntl(held[-1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
                except OSError as error:  # this user has many pipes already
                    _log(f"the pipe {name} stays small: {error}")
        return held

    def run(self) -> int:
        """Serve until the session has ended. Returns the exit status."""
        self._start_server()
        self._start_first_worker()
        while self.server or self.workers or not self.is_ending:
            moments = [moment for moment in (self.start_at, self.kill_at) if moment is not None]
            timeout = max(0.0, min(moments) - time.monotonic()) if moments else None
            readers = [self.wakeup] + ([self.channel.fileno()] if self.channel else [])
            writers = [self.channel.fileno()] if self.channel and self.outgoing else []
            ready = select.select(readers, writers, [], timeout)[0]
            if self.wakeup in ready:
                self._drain_wakeup()
            self._send()
            self._receive()
            if self.is_terminated:
                self.is_terminated = False
                self._terminate()
            if self.is_record_missed:
                self.is_record_missed = False
                self._restore_record()
            self._reap()
            self._watch_clock()
        return 0 if self.is_reported else 1

    def _drain_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wakeup, 4096):
                pass

    # --- the server ---

    def _start_server(self) -> None:
        """Start a server on the same sockets and give it the same configuration."""
        self.start_at = None
        self.started = time.monotonic()
        ours, theirs = socket.socketpair()
        inherit = [theirs.fileno(), *(listener.fileno() for listener in self.listeners)]
        argv = self.configuration.get("server_argv") or [sys.executable, "-P", "-m", "remoter._server"]
        try:
            self.server = start_process(
                [*argv, *map(str, inherit)],
                standard=[self.devnull, 2, 2],
                inherit=[*inherit, self.configuration["lock_fd"], *filter(None, self.held)],
            )
        except OSError as error:
            ours.close()
            self._server_ended(f"cannot be started: {error}")
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        self.channel, self.received = ours, b""
        configuration = {**self.configuration, "workers": sorted(self.workers)}
        lines = [configuration, *({"exited": pid, "status": status} for pid, status in self.exits.items())]
        self.outgoing = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self._send()

    def _tell(self, message: dict[str, Any]) -> None:
        if self.channel is not None:
            self.outgoing += json.dumps(message).encode() + b"\n"
            self._send()

    def _send(self) -> None:
        while self.channel is not None and self.outgoing:
            try:
                self.outgoing = self.outgoing[self.channel.send(self.outgoing) :]
            except BlockingIOError:
                return
            except OSError:  # it is dead; what it was to know is told to the next one
                self.outgoing = b""

    def _receive(self) -> None:
        """Read and do all that the server has said."""
        while self.channel is not None:
            try:
                piece = self.channel.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                piece = b""
            if not piece:
                self._hang_up()
                return
            *lines, self.received = (self.received + piece).split(b"\n")
            for line in lines:
                try:
                    self._obey(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    _log(f"the server said what is not understood: {line[:200]!r} ({error!r})")

    def _hang_up(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self.channel, self.outgoing = None, b""

    def _obey(self, message: dict[str, Any]) -> None:
        if "spawn" in message:
            self._spawn(message["spawn"])
        elif "ready" in message:
            self.record = json.dumps(message["ready"].get("record")).encode()
            if not self.is_reported and not self.is_ending:
                self.is_reported = True
                self._sign_lock()
                self.held.append(hold(self.configuration["journal_directory"]))  # the server has made it
                self.report({"ready": {**message["ready"], "keeper_pid": os.getpid()}})
        elif "error" in message:
            if self.is_reported:
                _log(f"the server failed: {message['error'].get('message')}")
            elif not self.is_ending:
                self._give_up(message["error"])
        elif "stop" in message:
            self.is_stopped = True
            self._end_within(STOP_TIMEOUT)

    def _sign_lock(self) -> None:
        """Write our pid into the lock: who misses the connection record finds there whom to signal."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.configuration["lock_fd"], 0)
            os.pwrite(self.configuration["lock_fd"], b"%d\n" % os.getpid(), 0)

    def _restore_record(self) -> None:
        """Write the connection record again if somebody has removed it."""
        path = self.configuration["record_path"]
        if not self.record or self.is_ending or os.path.exists(path):
            return
        written = f"{path}.{os.getpid()}"
        try:
            with open(written, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(self.record)
            os.replace(written, path)
        except OSError as error:
            _log(f"cannot write {path}: {error}")

    def _give_up(self, words: dict[str, Any]) -> None:
        """The session cannot start: say why and end."""
        self.report({"error": words})
        if self.server:
            os.kill(self.server, signal.SIGTERM)
        self._end_within(STOP_TIMEOUT)

    def _server_ended(self, how: str) -> None:
        """Start the server again, later and later; before it was ever ready that is no use."""
        self.server = 0
        self._hang_up()
        if self.is_ending:
            for pid in self.workers if not self.is_stopped else ():
                kill_group(pid, signal.SIGTERM)
        elif not self.is_reported:
            last = last_words(self.configuration)
            cause = f"it {how}: {last}" if last else f"it {how}"
            message = "the server ended before it was ready"
            self._give_up({"message": message, "cause": cause, "hints": [], "id": "start"})
        else:
            if time.monotonic() - self.started >= STEADY:
                self.failures = 0
            delay = BACK_OFF[min(self.failures, len(BACK_OFF) - 1)]
            self.failures += 1
            self.start_at = time.monotonic() + delay
            _log(f"the server {how}; starting it again" + (f" in {delay} s" if delay else ""))

    # --- workers ---

    def _start_first_worker(self) -> None:
        """Beside the server, not after it: each takes its time to load, and the worker waits for the server."""
        command = self.configuration.get("worker", {}).get("command")
        if command is None:
            return
        try:
            pid = start_worker(self.configuration["run_directory"], command)
        except OSError as error:
            self._give_up(
                {
                    "message": f"cannot start an interpreter with `{command['argv'][0]}`",
                    "cause": str(error),
                    "hints": ["name a CPython of 3.8 or later with `--python`"],
                    "id": "python",
                }
            )
            return
        self.workers.add(pid)
        self._tell({"spawned": pid})

    def _spawn(self, wish: dict[str, Any]) -> None:
        try:
            pid = start_worker(self.configuration["run_directory"], wish)
        except OSError as error:
            self._tell({"failed": str(error)})
            return
        self.workers.add(pid)
        self.exits.pop(pid, None)
        self._tell({"spawned": pid})

    def _reap(self) -> None:
        while self.server or self.workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.server:
                self._receive()  # its last words
                self._server_ended(_ending(status))
            elif pid in self.workers:
                self.workers.discard(pid)
                self.exits[pid] = status
                while len(self.exits) > TOLD_AGAIN:
                    del self.exits[next(iter(self.exits))]
                self._tell({"exited": pid, "status": status})

    # --- the end ---

    def _terminate(self) -> None:
        """At SIGTERM the server ends the session; without one the workers are told themselves."""
        if self.server:
            self._end_within(SERVER_TIMEOUT)
            self._pass_on(signal.SIGTERM)
        else:
            self._end_within(STOP_TIMEOUT)
            for pid in self.workers:
                kill_group(pid, signal.SIGTERM)

    def _end_within(self, seconds: float) -> None:
        self.is_ending = True
        self.start_at = None
        self.kill_at = time.monotonic() + seconds

    def _pass_on(self, number: int) -> None:
        """What the launcher relays from its terminal is for the server."""
        if self.server:
            with contextlib.suppress(ProcessLookupError):  # it has just been reaped
                os.kill(self.server, number)

    def _watch_clock(self) -> None:
        now = time.monotonic()
        if self.start_at is not None and now >= self.start_at:
            self._start_server()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = now + 1.0
            self._pass_on(signal.SIGKILL)
            for pid in self.workers:
                kill_group(pid, signal.SIGKILL)


def _ending(status: int) -> str:
    """How a process ended, in words."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"
    return f"ended with status {code}"


def main() -> NoReturn:
    """The keeper's process: the configuration comes on stdin, the launcher hears of us on stdout."""
    configuration = json.loads(sys.stdin.buffer.readline())
    if os.fork():
        os._exit(0)  # the launcher has no child, and we can never get a terminal
    launcher = os.dup(1)
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 0)
    os.dup2(2, 1)
    os.set_inheritable(configuration["lock_fd"], False)

    def report(message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody waits any more; the session is none the worse
            os.write(launcher, json.dumps(message).encode() + b"\n")
        if "keeper" not in message:
            os.close(launcher)

    report({"keeper": os.getpid()})
    status = 1
    try:
        listen = configuration["listen"]
        listeners = open_listeners([listen] if isinstance(listen, str) else listen, configuration["port"])
        configuration["port"] = listeners[0].getsockname()[1]
        configuration["addresses"] = [listener.getsockname()[0] for listener in listeners]
        configuration["keeper_pid"] = os.getpid()
        keeper = Keeper(configuration, listeners, report)
    except Refusal as refusal:
        report({"error": refusal.words})
    except OSError as error:
        directory = configuration["run_directory"]
        report({"error": Refusal(f"cannot use the directory `{directory}`", str(error)).words})
    else:
        status = keeper.run()
    remove_session(configuration)  # not after another error: then the server goes on without a keeper
    os._exit(status)
