"""Directories and private files; on both machines, in every process.

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
import socket
import stat
from pathlib import Path
from typing import Literal

from ._errors import RemoterError

SUFFIXES: dict[str, Literal["python", "r"]] = {".py": "python", ".R": "r", ".r": "r"}
"""The language of a script, by the end of its name."""

try:
    import fcntl
except ImportError:  # Windows: no sessions run there, so none can be alive
    fcntl = None  # type: ignore[assignment]

WINDOWS = os.name == "nt"
LONGEST_SOCKET_PATH = 103  # macOS allows 104 bytes with the final NUL, Linux 108


def _directory(variable: str, default: Path | str) -> Path:
    """What the variable names, or the default; a text is the function of platformdirs that knows it."""
    if named := os.environ.get(variable):
        return Path(named)
    if isinstance(default, Path):
        return default
    import platformdirs  # here: who only needs what a variable names should not wait for it

    return Path(getattr(platformdirs, default)("remoter"))


def config_directory() -> Path:
    """Where keys, pins and saved names are."""
    return _directory("REMOTER_CONFIG_DIR", "user_config_path")


def state_directory() -> Path:
    """Where connection records and the prompt's history are."""
    default = "user_state_path" if WINDOWS else Path("~/.local/state/remoter").expanduser()
    return _directory("REMOTER_STATE_DIR", default)


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
        import tempfile

        root = Path(tempfile.gettempdir())
    return _directory("REMOTER_JOURNAL_DIR", root / f"remoter-{_user_id()}")


def _user_id() -> int:
    return 0 if WINDOWS else os.getuid()


def host_name() -> str:
    """This machine's name, without its domain."""
    return socket.gethostname().split(".")[0] or "localhost"


def record_path(host: str, name: str) -> Path:
    """Where the connection record of that session is."""
    return state_directory() / "servers" / f"{host}-{name}.json"


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
    flags = os.O_RDONLY
    for flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"):  # a pipe would have us wait for who writes to it
        flags |= getattr(os, flag, 0)
    try:
        # A directory can be opened too, but not as a file.
        with open(path, "rb", opener=lambda name, _: _opened_file(path, os.open(name, flags))) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RemoterError(
            f"cannot read `{path}`", cause=error.strerror or str(error), id="private-file"
        ) from None


def _opened_file(path: Path, descriptor: int) -> int:
    """The descriptor, if it is that of a file which only we can read; else it is closed."""
    try:
        _refuse_if_open(path, os.fstat(descriptor), stat.S_ISREG)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


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
    before = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    descriptor = os.open(before, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        before.replace(path)
    except BaseException:
        before.unlink(missing_ok=True)
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


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock file: unlike a pid, a lock is never reused."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):  # a damaged connection file may name what is no path
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
