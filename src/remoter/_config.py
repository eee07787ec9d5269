"""Directories, private files and connection records; on both machines, in every process.

Four directories, each with a variable that overrides it (the tests do):

config   REMOTER_CONFIG_DIR   keys, pins, saved names; in the home
state    REMOTER_STATE_DIR    connection records (shared by the machines of one home), prompt history
runtime  REMOTER_RUNTIME_DIR  sockets and pipes of live sessions; on this machine only, in /tmp
journal  REMOTER_JOURNAL_DIR  what sessions printed; on this machine's disk, kept 7 days after the end

Whatever holds a key is created with its mode (0600, directories 0700), never changed to it
afterwards, and refused when others could read or replace it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import platformdirs

from ._errors import RemoterError, warn

try:
    import fcntl
except ImportError:  # Windows: no sessions run there, so none can be alive
    fcntl = None  # type: ignore[assignment]

WINDOWS = os.name == "nt"
LONGEST_SOCKET_PATH = 103  # macOS allows 104 bytes with the final NUL, Linux 108


def _directory(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default)


def config_directory() -> Path:
    """Where keys, pins and saved names are."""
    return _directory("REMOTER_CONFIG_DIR", platformdirs.user_config_path("remoter"))


def state_directory() -> Path:
    """Where connection records and the prompt's history are."""
    default = Path("~/.local/state/remoter").expanduser()
    return _directory("REMOTER_STATE_DIR", platformdirs.user_state_path("remoter") if WINDOWS else default)


def runtime_directory() -> Path:
    """Where the sockets of live sessions are; short enough for a socket's path.

    Not XDG_RUNTIME_DIR: that is removed when its user logs out, and sessions outlive the login.
    And it is not set everywhere: two processes would look in different places.
    """
    return _directory("REMOTER_RUNTIME_DIR", Path("/tmp") / f"remoter-{_user_id()}")  # noqa: S108 - checked by private_directory


def journal_directory() -> Path:
    """Where journals are: a local disk that outlives a reboot where there is one."""
    root = Path("/var/tmp")  # noqa: S108 - checked by private_directory
    if not root.is_dir():
        root = Path(tempfile.gettempdir())
    return _directory("REMOTER_JOURNAL_DIR", root / f"remoter-{_user_id()}")


def _user_id() -> int:
    return 0 if WINDOWS else os.getuid()


def host_name() -> str:
    """This machine's name, without its domain."""
    return socket.gethostname().split(".")[0] or "localhost"


# --- private files ---------------------------------------------------------------------------


def private_directory(path: Path) -> Path:
    """The directory, made 0700 if it is missing.

    Raises:
        RemoterError: it cannot be made, is a link, not ours, or open to others.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    except OSError as error:
        raise RemoterError(
            f"cannot make the directory `{path}`", cause=error.strerror, id="private-file"
        ) from None
    _refuse_if_open(path, path.lstat(), stat.S_ISDIR)
    return path


def read_private(path: Path) -> bytes:
    """The bytes of a file that only we can read.

    Raises:
        FileNotFoundError: there is none.
        RemoterError: it is a link, not ours, or open to others.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RemoterError(
            f"cannot read `{path}`", cause=error.strerror or str(error), id="private-file"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        _refuse_if_open(path, os.fstat(file.fileno()), stat.S_ISREG)
        return file.read()


def read_password(file: str) -> str:
    """The first line of a password file.

    Raises:
        RemoterError: it cannot be read, is open to others, or is empty.
    """
    try:
        with Path(file).open(encoding="utf-8") as opened:
            status = os.fstat(opened.fileno())
            if not WINDOWS and stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                raise RemoterError(
                    f"the password file `{file}` is open to others",
                    cause=f"its mode is {stat.S_IMODE(status.st_mode):04o}",
                    hints=[f"`chmod 600 {file}`, and another password if somebody had it"],
                    id="password-file",
                )
            password = opened.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not text"
        raise RemoterError(
            f"cannot read the password file `{file}`", cause=cause, id="password-file"
        ) from None
    if not password:
        raise RemoterError(f"the password file `{file}` is empty", id="password-file")
    return password


def write_private(path: Path, content: bytes) -> None:
    """Write the file 0600 under another name, then move it into place."""
    private_directory(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _refuse_if_open(path: Path, status: os.stat_result, is_kind: object) -> None:
    if WINDOWS:
        return
    assert callable(is_kind)
    if not is_kind(status.st_mode):
        kind = "a directory" if is_kind is stat.S_ISDIR else "a plain file"
        raise RemoterError(f"`{path}` is not {kind}", hints=_other_place(path), id="private-file")
    if status.st_uid != os.getuid():
        raise RemoterError(
            f"`{path}` belongs to somebody else",
            cause=f"its owner is user {status.st_uid}, we are {os.getuid()}",
            hints=_other_place(path),
            id="private-file",
        )
    if status.st_mode & 0o077:
        mode = "700" if is_kind is stat.S_ISDIR else "600"
        raise RemoterError(
            f"`{path}` is open to others",
            cause=f"its mode is {stat.S_IMODE(status.st_mode):04o}; it holds keys",
            hints=[f"if nobody else had them, `chmod {mode} {path}`; otherwise remove it"],
            id="private-file",
        )


def _other_place(path: Path) -> list[str]:
    """What to do where others can make files, and somebody was first."""
    for variable, directory in (
        ("REMOTER_RUNTIME_DIR", runtime_directory()),
        ("REMOTER_JOURNAL_DIR", journal_directory()),
    ):
        if path == directory:
            return [f"set {variable} to a directory of your own, wherever you use remoter on this machine"]
    return []


# --- connection records ----------------------------------------------------------------------


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How to reach one session of this user: `<state>/servers/<host>-<name>.json`, 0600.

    Whoever can read it can connect; it is removed when the session ends.
    """

    name: str
    host: str
    listen: str
    port: int
    directory: str
    server_public: str
    client_public: str
    client_secret: str
    pid: int
    journal: str
    started: float
    secure: bool = True
    lang: str = "python"
    version: str = ""
    v: int = 1

    @property
    def socket(self) -> Path:
        """The session's unix socket, for clients on its own machine."""
        return Path(self.directory) / "zmq.sock"

    @property
    def is_here(self) -> bool:
        """Whether the session is on this machine."""
        return self.host == host_name()

    @property
    def is_alive(self) -> bool:
        """Whether its keeper holds the lock; of another machine's session: unknown, so yes."""
        return not self.is_here or is_locked(Path(self.directory) / "lock")


def record_path(host: str, name: str) -> Path:
    """Where the connection record of that session is."""
    return state_directory() / "servers" / f"{host}-{name}.json"


def write_record(record: Record) -> None:
    """Publish the session to this user's clients."""
    private_directory(state_directory())
    write_private(record_path(record.host, record.name), msgspec.json.encode(record))


def read_record(path: Path) -> Record:
    """The connection record in that file.

    Raises:
        FileNotFoundError: there is none.
        RemoterError: it is damaged, or others could read it; the hint says what to do.
    """
    name = path.stem.removeprefix(f"{host_name()}-")
    try:
        return msgspec.json.decode(read_private(path), type=Record)
    except msgspec.MsgspecError as error:
        raise RemoterError(
            f"cannot read the connection file `{path}`",
            cause=str(error),
            hints=[f"remove it, `rm {path}`: session `{name}` writes it again when it is looked for"],
            id="private-file",
        ) from None
    except RemoterError as error:
        error.hints = (
            f"if nobody else can have read it, `chmod 600 {path}`",
            f"otherwise `rm {path}`, and end the session: `remoter stop {name}`",
        )
        raise


def records(wanted: str | None = None) -> Iterator[Record]:
    """The connection records of all live sessions of this user; stale ones are removed.

    A file that cannot be trusted is left out, with a warning; but if it is that of the session
    `wanted` on this machine, it is refused.

    Raises:
        RemoterError: the connection file of `wanted` is damaged, or open to others.
    """
    for path in sorted((state_directory() / "servers").glob("*.json")):
        try:
            record = read_record(path)
        except FileNotFoundError:
            continue
        except RemoterError as error:
            if wanted is not None and path == record_path(host_name(), wanted):
                raise
            warn(f"left out: {error.message} ({error.cause}); {error.hints[0]}")
            continue
        if record.is_alive:
            yield record
        else:
            path.unlink(missing_ok=True)


def record_here(name: str) -> Record | None:
    """The connection record of the live session of that name on this machine.

    Raises:
        RemoterError: its connection file is damaged, or open to others.
    """
    for _ in range(2):
        for record in records(name):
            if record.is_here and record.name == name:
                return record
        if not restore_records():
            break
    return None


def restore_records(patience: float = 2.0) -> bool:
    """Have live sessions on this machine whose connection file was removed write it again.

    Their keepers do so when they are signalled. Waits `patience` seconds at most for the files.
    Returns whether there are any now that were missing.
    """
    lost = []
    for lock in _locks():
        name, path = lock.parent.name, record_path(host_name(), lock.parent.name)
        with contextlib.suppress(OSError, ValueError):
            if path.exists() or not is_locked(lock):
                continue
            pid = int(lock.read_text())  # the keeper's, once the session is ready
            if is_keeper(pid, name):
                os.kill(pid, signal.SIGUSR1)
                lost.append(path)
    deadline = time.monotonic() + patience
    while not all(path.exists() for path in lost) and time.monotonic() < deadline:
        time.sleep(0.01)
    return any(path.exists() for path in lost)


def _locks() -> list[Path]:
    """The locks of sessions, living and dead, of this user on this machine."""
    if fcntl is None:
        return []
    with contextlib.suppress(OSError):  # there is none
        if runtime_directory().lstat().st_uid == os.getuid():
            return list(runtime_directory().glob("*/lock"))
    return []


def is_keeper(pid: int, name: str) -> bool:
    """Whether that process is the keeper of the session: a pid may have been used again since."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return "_keeper" in listed.stdout and listed.stdout.split()[-1:] == [name]


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock file: unlike a pid, a lock is never reused."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
