"""Connection records: how to reach each session of this user; on both machines, in every process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ._config import (
    WINDOWS,
    host_name,
    is_locked,
    private_directory,
    read_private,
    record_path,
    runtime_directory,
    state_directory,
    write_private,
)
from ._errors import RemoterError, warn


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
    def data_socket(self) -> Path:
        """The unix socket for the bytes of transfers, for clients on its own machine."""
        return Path(self.directory) / "data.sock"

    @property
    def door_socket(self) -> Path:
        """A unix socket that leads to the door, for connections of both kinds that come through ssh."""
        return Path(self.directory) / "door.sock"

    @property
    def is_here(self) -> bool:
        """Whether the session is on this machine."""
        return self.host == host_name()

    @property
    def is_alive(self) -> bool:
        """Whether its keeper holds the lock; of another machine's session: unknown, so yes."""
        return not self.is_here or is_locked(Path(self.directory) / "lock")


def private_name() -> str:
    """A name for a session that belongs to one process, and ends with it: whoever does not name it is not shown it."""
    return f"private-{os.urandom(4).hex()}"


def is_private(name: str) -> bool:
    """Whether that is such a name."""
    return re.fullmatch(r"private-[0-9a-f]{8}", name) is not None


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def write_record(record: Record) -> None:
    """Publish the session to this user's clients.

    Raises:
        RemoterError: its connection file cannot be written.
    """
    private_directory(state_directory())
    path = record_path(record.host, record.name)
    try:
        write_private(path, msgspec.json.encode(record))
    except OSError as error:
        raise RemoterError(
            f"cannot write the connection file `{path}`", cause=error.strerror, id="private-file"
        ) from None


def read_record(path: Path) -> Record:
    """The connection record in that file.

    Raises:
        FileNotFoundError: there is none.
        RemoterError: it is damaged, or others could read it; the hint says what to do.
    """
    name = path.stem.removeprefix(f"{host_name()}-")
    try:
        return msgspec.json.decode(read_private(path), type=Record)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RemoterError(
            f"cannot read the connection file `{path}`",
            cause=str(error),
            hints=[f"remove it, `rm {path}`: session `{name}` writes it again when it is looked for"],
            id="private-file",
        ) from None
    except RemoterError as error:
        if not _is_file(path):
            error.hints = (f"it is no connection file: remove it, `rm -r {path}`",)
            raise
        error.hints = (
            f"if nobody else can have read it, `chmod 600 {path}`",
            f"otherwise `rm {path}`, and end the session: `remoter stop {name}`",
        )
        raise


def records(wanted: str | None = None) -> Iterator[Record]:
    """The connection records of all live sessions of this user but private ones; stale ones are removed.

    A file that cannot be trusted is left out, with a warning; but if it is that of the session
    `wanted` on this machine, it is refused. That session is also given if it is private.

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
            cause = f" ({error.cause})" if error.cause else ""
            warn(f"left out: {error.message}{cause}; {error.hints[0]}")
            continue
        if record.is_alive:
            if record.name == wanted or not is_private(record.name):
                yield record
        else:
            with contextlib.suppress(OSError):  # nobody may write there now
                path.unlink()


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
    if WINDOWS:
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
