"""One file as a source or a sink; on both machines, in the process that sends or receives.

What arrives is written beside its target under a hidden name, `.NAME.part`, and gets its name when all of it is
there: nobody ever sees half a file. Beside that stands `.NAME.part.json`, which says of what it is a part. Both stay
when the copy is cut off, and the next attempt goes on from there. How much is there is simply the length of the part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import xxhash

from ._config import WINDOWS
from ._errors import TransferError
from ._folders import (
    ALWAYS,
    PERMISSIONS,
    READ,
    Folder,
    check_room,
    dress,
    is_ours,
    is_same_time,
    kind_of,
    no_room,
    put_in_place,
    read_note,
    reserve,
    usual_mode,
    write_note,
)
from ._paths import amount, encode_path, exists_error, read_error, shown, write_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PIECE = 1024 * 1024
"""Bytes read at once where nobody asks for a certain number."""

LONGEST_NAME = 255
"""Bytes of a file name that every usual file system takes."""

IDLE = 5.0
"""Seconds without a byte after which a sink gives way to another one in this process that wants the same file."""

_OPEN_PART = os.O_RDWR | ALWAYS | getattr(os, "O_NONBLOCK", 0)
_CREATE_PART = os.O_RDWR | os.O_CREAT | os.O_EXCL | ALWAYS
_ZEROS = bytes(PIECE)


def is_wanted(
    folder: Folder, name: str | bytes, size: int, mtime_ns: int, *, overwrite: bool, skip_same: bool
) -> bool:
    """Whether a file is to be written there: not if `skip_same`, and it is the same already.

    Raises:
        TransferError: something is there that may not be replaced.
    """
    try:
        status = folder.status(name)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise write_error(folder.path_of(name), error) from None
    what = kind_of(status)
    if what not in ("", "a symbolic link"):
        raise exists_error(folder.path_of(name), what)
    if skip_same and not what and status.st_size == size and is_same_time(status.st_mtime_ns, mtime_ns):
        return False
    if not overwrite:
        raise exists_error(folder.path_of(name))
    return True


# --- reading ---------------------------------------------------------------------------------

if hasattr(os, "preadv"):

    def read_at(descriptor: int, into: memoryview, offset: int) -> int:
        """Read from that place, as much as there is; returns the number of bytes. Raises OSError."""
        return os.preadv(descriptor, [into], offset)

else:

    def read_at(descriptor: int, into: memoryview, offset: int) -> int:
        """Read from that place, as much as there is; returns the number of bytes. Raises OSError."""
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(into))
        into[: len(data)] = data
        return len(data)


def digest_of_prefix(descriptor: int, size: int, check: Callable[[], object] | None = None) -> bytes:
    """The XXH3-128 of the first `size` bytes of an open file.

    Args:
        descriptor: the file.
        size: so many bytes.
        check: called now and then; may raise, for it can take long.

    Raises:
        TransferError: it is shorter. OSError: it cannot be read.
    """
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(size, PIECE)))
    done = 0
    while done < size:
        count = read_at(descriptor, buffer[: size - done], done)
        if not count:
            raise TransferError("the file became shorter while it was read", id="changed")
        digest.update(buffer[:count])
        done += count
        if check is not None:
            check()
    return digest.digest()


def is_sparse(status: os.stat_result) -> bool:
    """Whether it has holes: it takes less of the disk than it is long."""
    return getattr(status, "st_blocks", sys.maxsize) * 512 < status.st_size


class FileSource:
    """One file that is read while it crosses; it must not change meanwhile.

    Args:
        descriptor: the open file, which is ours from now on.
        path: where it is.
        name: what it is to be called at the other end, if not as here.

    Raises:
        TransferError: it is no plain file.
    """

    def __init__(self, descriptor: int, path: str, name: str = "") -> None:
        self.path = path
        self.name = name or os.path.basename(path)  # noqa: PTH119 - it need not be text
        self._descriptor: int | None = descriptor
        status = os.fstat(descriptor)
        if what := kind_of(status):
            self.close()
            raise TransferError(f"`{shown(path)}` is {what}, and only files and folders cross", id="kind")
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns
        self.mode = status.st_mode & PERMISSIONS
        self.is_sparse = is_sparse(status)

    @classmethod
    def open(cls, path: str, root: str | None = None, name: str = "") -> FileSource:
        """The file at a resolved path, below `root` if one is given. Raises TransferError."""
        directory, actual = os.path.split(path)
        try:
            with Folder.open(directory, root) as folder:
                return cls(os.open(folder.at(actual), READ, dir_fd=folder.descriptor), path, name)
        except OSError as error:
            raise read_error(path, error) from None

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` from that offset on. Raises TransferError: also as soon as the file is another than it was."""
        assert self._descriptor is not None
        try:
            while into:
                count = read_at(self._descriptor, into, offset)
                if not count:
                    raise self._changed()
                into, offset = into[count:], offset + count
            # Before the piece is sent: nobody waits for gigabytes in vain, nor takes them for complete.
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise read_error(self.path, error) from None
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise self._changed()

    def digest(self, size: int, check: Callable[[], object] | None = None) -> bytes:
        """The digest of its first `size` bytes. Raises TransferError."""
        assert self._descriptor is not None
        try:
            return digest_of_prefix(self._descriptor, size, check)
        except OSError as error:
            raise read_error(self.path, error) from None

    def _changed(self) -> TransferError:
        return TransferError(
            f"`{shown(self.path)}` changed while it was copied",
            hints="copy it again when nothing writes to it; it begins anew then",
            id="changed",
        )

    def close(self) -> None:
        """It is no longer needed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


# --- parts -----------------------------------------------------------------------------------


class _Note(msgspec.Struct):
    """What stands beside a part: of which file it is one."""

    size: int
    mtime_ns: int
    source: str = ""


def part_name(name: str) -> str:
    """What the part of a file of that name is called; it fits where the name itself fits.

    `.json` behind it is the note's name.
    """
    part = f".{name}.part"
    if len(os.fsencode(part)) <= LONGEST_NAME - len(".json"):
        return part
    return f".{name[:20]}~{xxhash.xxh3_128_hexdigest(os.fsencode(name))}.part"


def _is_noted(folder: Folder, part: str, size: int, mtime_ns: int) -> bool:
    """Whether the note says that the part is one of this file."""
    note = read_note(folder, part + ".json", _Note)
    return note is not None and (note.size, note.mtime_ns) == (size, mtime_ns)


def find_part(folder: Folder, name: str, size: int, mtime_ns: int) -> tuple[int, bytes]:
    """How many bytes of this file an earlier attempt left, and their digest; (0, b"") if none."""
    part = part_name(name)
    if not _is_noted(folder, part, size, mtime_ns):
        return 0, b""
    try:
        descriptor = os.open(folder.at(part), READ, dir_fd=folder.descriptor)
    except OSError:
        return 0, b""
    try:
        status = os.fstat(descriptor)
        if is_ours(status) and 0 < status.st_size <= size:
            return status.st_size, digest_of_prefix(descriptor, status.st_size)
    except (OSError, TransferError):
        pass  # then there is none that helps
    finally:
        os.close(descriptor)
    return 0, b""


_writing: dict[tuple[int, int], FileSink] = {}
"""The sinks of this process by their parts. A server has some whose clients are gone and may yet come back."""


def _key_of(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


class FileSink:
    """One file that arrives. It gets its name in `finish`; until then it is a part.

    Args:
        folder: where it is to be; ours from now on.
        name: its name there.
        size, mtime_ns, mode: as they are at the other end; no mode: that of a new file here.
        overwrite: replace what has the name.
        resume: go on with the part of an earlier attempt, and leave one if this one fails.
        is_sparse: leave holes where there is nothing but zeros.
        source: where it comes from, for who finds the part.

    Raises:
        TransferError: it cannot be written, there is no room, or it is being written by somebody else.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        *,
        size: int,
        mtime_ns: int,
        mode: int | None,
        overwrite: bool = False,
        resume: bool = True,
        is_sparse: bool = False,
        source: str = "",
    ) -> None:
        self.path = folder.path_of(name)
        self.size, self.position = size, 0
        self._folder, self._name, self._part = folder, name, part_name(name)
        self._mtime_ns, self._mode, self._source = mtime_ns, mode, source
        self._overwrite, self._resume, self._is_sparse = overwrite, resume, is_sparse
        self.starts_over = False  # what was there is part of another file, or of this one before it changed
        self._descriptor: int | None = None
        self._guard, self._touched = threading.Lock(), time.monotonic()
        try:
            self._open()
        except OSError as error:
            self.close()
            raise write_error(self.path, error) from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._descriptor = self._take_part()
        length = os.fstat(self._descriptor).st_size
        is_noted = self._resume and _is_noted(self._folder, self._part, self.size, self._mtime_ns)
        if is_noted and length <= self.size:
            self.position = length
            self._reserve()
        else:
            self.starts_over = self._resume and length > 0
            self.restart()

    def restart(self, position: int = 0) -> None:
        """Keep only so much of what is there. Raises TransferError, OSError."""
        with self._guard:
            os.ftruncate(self._check(), position)
            self.position = position
            self._reserve()
            self._write_note()

    def digest(self, check: Callable[[], object] | None = None) -> bytes:
        """The digest of what is there. Raises TransferError."""
        with self._guard:
            try:
                return digest_of_prefix(self._check(), self.position, check)
            except OSError as error:
                raise write_error(self.path, error) from None
            finally:
                self._touched = time.monotonic()

    def _take_part(self) -> int:
        """Open the part, alone: nobody else may write to it, nor take it away under us."""
        part, at = self._folder.at(self._part), self._folder.descriptor
        for _ in range(10):
            try:
                descriptor = os.open(part, _CREATE_PART, 0o600, dir_fd=at)
                is_good = True  # also where the file system gives every file another owner
            except FileExistsError:
                try:
                    descriptor = os.open(part, _OPEN_PART, dir_fd=at)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno not in (
                        errno.ELOOP,
                        errno.ENXIO,
                        errno.EACCES,
                    ):  # a link, a socket, somebody's
                        raise
                    os.unlink(part, dir_fd=at)
                    continue
                is_good = is_ours(os.fstat(descriptor))
            try:
                if not is_good:
                    os.unlink(part, dir_fd=at)
                elif self._is_alone(descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise self._is_taken()

    def _is_alone(self, descriptor: int) -> bool:
        """Whether it is still the part, now that it is locked: who had it before may have finished it just now."""
        self._lock(descriptor)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), self._folder.status(self._part)):
                _writing[_key_of(descriptor)] = self
                return True
        return False

    def _lock(self, descriptor: int) -> None:
        """Have the part for ourselves; what was left behind in this process is put aside. Raises TransferError."""
        if fcntl is None:
            return
        deadline = time.monotonic() + IDLE + 1
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = _writing.get(_key_of(descriptor))
                if other is None:
                    raise self._is_taken() from None
                if not other.give_way():
                    if time.monotonic() > deadline:
                        raise self._is_taken() from None
                    time.sleep(0.05)
            except OSError:
                return  # some network file systems have no locks
            else:
                return

    def give_way(self) -> bool:
        """Stop if nothing has come for a while, as when the sender has gone: what there is stays. Any thread may ask."""
        with self._guard:
            if time.monotonic() - self._touched < IDLE:
                return False
            self._close()
            return True

    def _is_taken(self) -> TransferError:
        return TransferError(
            f"`{shown(self.path)}` is being written by another copy",
            hints="wait for that, or give this one another name",
            id="unwritable",
        )

    def _reserve(self) -> None:
        """Find out at once whether there is room for all of it."""
        if self._is_sparse:
            return  # how much it will need is not known
        missing = self.size - self.position
        check_room(
            self._folder, self._name, missing
        )  # first: or the disk would be full for everyone, for a moment
        try:
            reserve(self._check(), self.position, self.size)
        except OSError:
            raise no_room(self._folder, self._name, missing) from None

    def _write_note(self) -> None:
        note = _Note(self.size, self._mtime_ns, shown(self._source)[:1000])
        write_note(self._folder, self._part + ".json", note)

    def write(self, data: memoryview) -> None:
        """The next bytes. Raises TransferError."""
        with self._guard:
            descriptor = self._check()
            self._touched = time.monotonic()
            try:
                if self._is_sparse and not any(data[-8:]) and bytes(data) == _ZEROS[: data.nbytes]:
                    os.ftruncate(descriptor, self.position + data.nbytes)
                    self.position += data.nbytes
                    return
                os.lseek(descriptor, self.position, os.SEEK_SET)
                while data:
                    count = os.write(descriptor, data)
                    self.position += count
                    data = data[count:]
            except OSError as error:
                raise write_error(self.path, error, hints=self.way_on()) from None

    def _check(self) -> int:
        """The open part. Raises TransferError: another sink has it."""
        if self._descriptor is None:
            raise TransferError(f"another copy goes on with `{shown(self.path)}`", id="cancelled")
        return self._descriptor

    def way_on(self) -> tuple[str, ...]:
        """What to do when it was cut off."""
        if not self._resume or not self.position:
            return ()
        return (f"copy it again, and it goes on after the {amount(self.position)} that are there",)

    def finish(self) -> dict[str, Any]:
        """All is there: mode, time, name. Raises TransferError."""
        with self._guard:
            descriptor: int | None = self._check()
            if self.position != self.size:
                raise TransferError(f"`{shown(self.path)}` did not come whole", id="corrupt")
            try:
                mode = usual_mode(self._folder) if self._mode is None else self._mode
                if WINDOWS:  # which changes the time when a file is closed, and renames none that is open
                    os.close(self._check())
                    descriptor = self._descriptor = None
                dress(self._folder, self._part, descriptor, mode, self._mtime_ns)
                put_in_place(self._folder, self._part, self._name, overwrite=self._overwrite)
            except FileExistsError:
                raise exists_error(self.path) from None
            except OSError as error:
                raise write_error(self.path, error, hints=self.way_on()) from None
            self._folder.remove(self._part + ".json")
            self._part = ""
            self._close()
        return {"path": encode_path(self.path)}

    def close(self) -> None:
        """It is over. What is there stays for the next attempt, unless that would not help."""
        with self._guard:
            self._close()

    def discard(self) -> None:
        """Give it up, and keep nothing of it."""
        with self._guard:
            self._resume = False
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            is_kept = self._resume and self.position > 0
            _writing.pop(_key_of(descriptor), None)
            if self._part and is_kept:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, self.position)  # gives the reserved rest back to the disk
            if WINDOWS:  # no file is removed there that is open; elsewhere the lock must last until it is
                os.close(descriptor)
            if self._part and not is_kept:
                self._folder.remove(self._part + ".json")
                self._folder.remove(self._part)
            if not WINDOWS:
                os.close(descriptor)
        self._folder.close()
