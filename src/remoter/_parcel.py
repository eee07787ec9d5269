"""An object on its way through a file: of an interpreter that has no thread to move it, or to a client on this machine; in the server's process.

R writes an object to a file that we made, and reads one from a file that we filled: both in one go of its
own C code. The file lies in memory where there is room, else in the run directory, and loses its
name as soon as both have it open: nothing is left of it, however who ends.

A client on this machine need not have the bytes sent: it is told which open file of ours they are in
(`FileHere`), and maps it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._errors import TransferError
from ._steps import FileHere

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - each file there is made under a new name, for us alone
FREE = 64 * 1024 * 1024
"""Bytes that must be free in shared memory for it to be used at all: containers often have just that much."""

LEAD = 1
"""Bytes before the object in a file that R writes: the numbers of a plain vector then begin at a multiple of eight."""


class Parcel:
    """A file that holds one object.

    Args:
        directories: where it may be; the first that takes it is used.
        label: what its name begins with.
        lead: bytes that are skipped at its beginning.

    Raises:
        TransferError: none takes it.
    """

    def __init__(self, directories: list[Path], label: str, lead: int = 0) -> None:
        self.lead = lead
        for directory in directories:
            try:
                self.descriptor, name = tempfile.mkstemp(prefix=label, dir=directory)
                break
            except OSError as error:
                cause = f"`{directory}`: {error.strerror}"
        else:
            raise TransferError("there is no place for the object", cause=cause, id="no-space")
        self.path = Path(name)
        self.size = 0
        self._is_hidden = False
        os.write(self.descriptor, bytes(lead))

    def seal(self) -> None:
        """The object is in it: its size is known, and it needs no name any more."""
        self.size = max(0, os.fstat(self.descriptor).st_size - self.lead)
        self.hide()

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` from that offset on."""
        while into.nbytes:
            size = os.preadv(self.descriptor, [into], self.lead + offset)
            if not size:
                raise TransferError("the object is shorter than it was", id="changed")
            offset, into = offset + size, into[size:]

    def write(self, data: memoryview) -> None:
        """Append bytes."""
        while data.nbytes:
            data = data[os.write(self.descriptor, data) :]

    def where(self) -> FileHere:
        """Where another process of this user finds it."""
        status = os.fstat(self.descriptor)
        return FileHere(
            pid=os.getpid(),
            descriptor=self.descriptor,
            device=status.st_dev,
            inode=status.st_ino,
            size=status.st_size,
            lead=self.lead,
        )

    def hide(self) -> None:
        """Take its name away; who has it open keeps it."""
        if not self._is_hidden:
            self._is_hidden = True
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let it go."""
        self.hide()
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            with contextlib.suppress(OSError):
                os.close(descriptor)


def directories(run_directory: Path | None, size: int = 0) -> list[Path]:
    """Where a parcel may lie now, the best first; `size`: how large it will be, if that is known."""
    others = [run_directory] if run_directory is not None else []
    return [SHARED_MEMORY, *others] if has_room(size) else others


def has_room(size: int = 0) -> bool:
    """Whether shared memory is of use."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize >= FREE + size


def label(run_directory: Path) -> str:
    """What the names of a session's parcels begin with."""
    return f".remoter-{zlib.crc32(bytes(run_directory)):08x}-"


def sweep(run_directory: Path) -> None:
    """Remove the session's parcels from shared memory: a server that was killed may have left one with its name."""
    for path in SHARED_MEMORY.glob(label(run_directory) + "*"):
        with contextlib.suppress(OSError):
            path.unlink()


class ParcelSink:
    """An object that comes from the client into a file, and then into the interpreter.

    Args:
        parcel: the file.
        size: bytes that will come.
        bind: has the interpreter read the file and give the object its name; called in the dock's thread.
    """

    def __init__(self, parcel: Parcel, size: int, bind: Callable[[], dict[str, Any]]) -> None:
        self.size = size
        self.position = 0
        self._parcel, self._bind = parcel, bind

    def write(self, data: memoryview) -> None:
        """The next bytes."""
        self._parcel.write(data)
        self.position += data.nbytes

    def finish(self) -> dict[str, Any]:
        """All is there: it gets its name."""
        return self._bind()

    def close(self) -> None:
        self._parcel.close()
