"""Folders that are held open, notes and marks in them, and room on their disk; on both machines, in the process that sends or receives.

Nothing here trusts a path twice. A path is resolved once; then its folder is opened, and all that happens in it is
done relative to that open folder, by names without a slash, and following no links. Whoever swaps a
folder for a link meanwhile leads us nowhere. Windows has no such calls: there the parts of a path are looked at one by one.
"""

# ruff: noqa: PTH115, PTH116, PTH118, PTH206 - paths with names that are no text, and folders by descriptor: that is `os`

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import stat
import sys
from typing import Annotated, Any, TypeVar

import msgspec

from ._config import WINDOWS
from ._errors import TransferError
from ._paths import DEEPEST, amount, shown

PERMISSIONS = 0o777
"""What crosses of a mode: never setuid, setgid or the sticky bit."""

ALWAYS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
READ = os.O_RDONLY | ALWAYS | getattr(os, "O_NONBLOCK", 0)  # a pipe would have us wait for who writes to it
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | ALWAYS
_DIRECTORY = os.O_RDONLY | ALWAYS | getattr(os, "O_DIRECTORY", 0)
_PASS = _DIRECTORY | getattr(os, "O_PATH", 0)  # a folder that may be passed but not listed can be passed
_REPARSE_POINT = 0x400  # links and junctions of Windows
_NO_REPLACE = 1  # RENAME_NOREPLACE
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE

_KINDS = {
    stat.S_IFREG: "",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(status: os.stat_result) -> str:
    """What it is, in a word or two; empty if it is a plain file."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "something special")


# --- folders held open -----------------------------------------------------------------------


class Folder:
    """One open folder. What is in it is named without a path, so nobody can swap the way to it.

    The functions of `os` take `folder.at(name)` with `dir_fd=folder.descriptor`.
    """

    __slots__ = ("descriptor", "path")

    def __init__(self, path: str, descriptor: int | None) -> None:
        self.path = path
        self.descriptor = descriptor  # none on Windows, -1 when it is closed

    @classmethod
    def open(cls, path: str, root: str | None = None) -> Folder:
        """The folder at a resolved path; below `root` no link is followed on the way. Raises OSError."""
        start = path if root is None else root
        names = [] if path == start else os.path.relpath(path, start).split(os.sep)
        if ".." in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        descriptor = None if WINDOWS else os.open(start, _PASS & ~getattr(os, "O_NOFOLLOW", 0))
        folder = cls(start, descriptor)
        if WINDOWS and not stat.S_ISDIR(os.stat(start).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), start)
        for name in names:
            with folder:
                folder = folder.enter(name)
        return folder

    def at(self, name: str | bytes) -> str | bytes:
        """What the functions of `os` want as the path."""
        return name if self.descriptor is not None else self.path_of(name)

    def path_of(self, name: str | bytes) -> str:
        """The path, for people and where nothing else will do."""
        return os.path.join(self.path, os.fsdecode(name))

    def status(self, name: str | bytes) -> os.stat_result:
        """What is there under that name; of a link the link itself. Raises OSError."""
        return os.lstat(self.at(name), dir_fd=self.descriptor)

    def target(self, name: bytes) -> bytes:
        """Where the link of that name leads. Raises OSError."""
        if self.descriptor is None:
            return os.fsencode(os.readlink(self.path_of(name)))
        return os.readlink(name, dir_fd=self.descriptor)

    def enter(self, name: str | bytes, *, to_read: bool = False) -> Folder:
        """The folder of that name in this one; no link. Raises OSError."""
        if self.descriptor is not None:
            flags = _DIRECTORY if to_read else _PASS
            return Folder(self.path_of(name), os.open(name, flags, dir_fd=self.descriptor))
        status = self.status(name)
        if not stat.S_ISDIR(status.st_mode) or getattr(status, "st_file_attributes", 0) & _REPARSE_POINT:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return Folder(self.path_of(name), None)

    def contents(self) -> list[tuple[bytes, os.stat_result]]:
        """All that is in it, by name; of links the links themselves. Raises OSError."""
        found = []
        descriptor = None if self.descriptor is None else os.open(".", _DIRECTORY, dir_fd=self.descriptor)
        try:
            with os.scandir(self.path if descriptor is None else descriptor) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
                        found.append((os.fsencode(entry.name), entry.stat(follow_symlinks=False)))
        finally:
            if descriptor is not None:
                os.close(descriptor)
        found.sort(key=lambda each: each[0])
        return found

    def make(self, name: str | bytes, mode: int = 0o700) -> None:
        """Make a folder in it; usually for its owner only, until it is complete. Raises OSError."""
        os.mkdir(self.at(name), mode, dir_fd=self.descriptor)

    def remove(self, name: str | bytes) -> None:
        """Remove that file if it is there, and if that can be done."""
        with contextlib.suppress(OSError):
            os.unlink(self.at(name), dir_fd=self.descriptor)

    def copy(self) -> Folder:
        """The same folder, to be closed by somebody else."""
        return Folder(self.path, None if self.descriptor is None else os.dup(self.descriptor))

    def close(self) -> None:
        """It is no longer needed."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor is not None and descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Trail:
    """The way down from a folder, every folder on it open; where the next path begins alike, it is not walked again.

    Args:
        root: where it begins; ours from now on.
        make: make folders that are missing.
    """

    def __init__(self, root: Folder, *, make: bool = False) -> None:
        self._root, self._make = root, make
        self._names: list[bytes] = []
        self._folders = [root]
        self._path = b""

    @property
    def root(self) -> Folder:
        """Where it begins."""
        return self._root

    def go(self, path: bytes) -> Folder:
        """The folder at that checked, relative path; open until the next call. Raises OSError."""
        if path == self._path:
            return self._folders[-1]
        names = path.split(b"/") if path else []
        common = 0
        for one, other in zip(names, self._names, strict=False):
            if one != other:
                break
            common += 1
        while len(self._names) > common:
            self._names.pop()
            self._folders.pop().close()
        self._path = b"/".join(self._names)
        for name in names[common:]:
            if len(self._names) >= DEEPEST:
                raise OSError(errno.ENAMETOOLONG, f"more than {DEEPEST} folders within each other")
            self._folders.append(self._enter(self._folders[-1], name))
            self._names.append(name)
            self._path = b"/".join(self._names)
        return self._folders[-1]

    def _enter(self, folder: Folder, name: bytes) -> Folder:
        try:
            return folder.enter(name)
        except FileNotFoundError:
            if not self._make:
                raise
            folder.make(name)
            return folder.enter(name)

    def close(self) -> None:
        """It is no longer needed."""
        while self._folders:
            self._folders.pop().close()


def split(path: bytes) -> tuple[bytes, bytes]:
    """The folder and the name of a relative path."""
    folder, _, name = path.rpartition(b"/")
    return folder, name


def put_in_place(folder: Folder, temporary: str | bytes, name: str | bytes, *, overwrite: bool) -> None:
    """Give a complete file its name, at once; a link of that name is replaced, never followed.

    Raises:
        FileExistsError: the name is taken, and may not be overwritten.
    """
    old, new, descriptor = folder.at(temporary), folder.at(name), folder.descriptor
    if not overwrite:
        if descriptor is not None and _rename_to_free(descriptor, os.fsencode(old), os.fsencode(new)):
            return
        # A hard link fails where the name is taken, which a rename does not: nobody's file is lost in between.
        try:
            os.link(old, new, src_dir_fd=descriptor, dst_dir_fd=descriptor, follow_symlinks=False)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # a file system without hard links
            with contextlib.suppress(FileNotFoundError):
                folder.status(name)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        else:
            os.unlink(old, dir_fd=descriptor)
            return
    os.replace(old, new, src_dir_fd=descriptor, dst_dir_fd=descriptor)


def _rename_to_free(descriptor: int, old: bytes, new: bytes) -> bool:
    """Rename within that folder, unless the new name is taken; False: the system or file system cannot say that.

    One change of the folder where a link and an unlink are two: with many small files these are what takes time.
    """
    rename = _renameat2()
    if rename is None:
        return False
    if rename(descriptor, old, descriptor, new, _NO_REPLACE) == 0:
        return True
    import ctypes

    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number))


@functools.cache
def _renameat2() -> Any:
    """The C library's function of that name; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def is_in_the_way(error: OSError) -> bool:
    """Whether a folder could not be entered because it is none, or a link."""
    return error.errno in (errno.ENOTDIR, errno.ELOOP)


def dress(folder: Folder, name: str | bytes, descriptor: int | None, mode: int, mtime_ns: int) -> None:
    """Give a file or folder its permissions and its time, as far as the file system has such things."""
    try:
        if descriptor is None:  # Windows
            os.utime(folder.at(name), ns=(mtime_ns, mtime_ns))
        else:
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
            os.fchmod(descriptor, mode & PERMISSIONS)
    except OSError:
        pass


def is_same_time(there: int, wanted: int) -> bool:
    """Whether a file has that time, as far as its file system can tell: some know microseconds, some only seconds."""
    difference = abs(there - wanted)
    return difference < 1000 or (there % 1_000_000_000 == 0 and difference < 2_000_000_000)


def usual_mode(folder: Folder) -> int:
    """The permissions of a new file in that folder, as the umask has it, or rules of the folder. Raises OSError.

    A file is made to see them: the umask cannot be read without setting it, for all threads at once.
    """
    name = f".remoter-{os.urandom(4).hex()}.part"
    descriptor = os.open(folder.at(name), CREATE, 0o666, dir_fd=folder.descriptor)
    try:
        return os.fstat(descriptor).st_mode & PERMISSIONS
    finally:
        os.close(descriptor)
        folder.remove(name)


# --- notes that we leave for ourselves -------------------------------------------------------

_LONGEST_NOTE = 65536

N = TypeVar("N", bound=msgspec.Struct)


def is_ours(status: os.stat_result) -> bool:
    """Whether nobody else can have written to it: in a folder of many, somebody may have put it there for us."""
    is_alone = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    return is_alone and (WINDOWS or status.st_uid == os.geteuid())


def read_note(folder: Folder, name: str | bytes, kind: type[N]) -> N | None:
    """The note of that name; None if there is none, or if it makes no sense or may be somebody else's."""
    try:
        descriptor = os.open(folder.at(name), READ, dir_fd=folder.descriptor)
    except OSError:
        return None
    try:
        if not is_ours(os.fstat(descriptor)):
            return None
        return msgspec.json.decode(os.read(descriptor, _LONGEST_NOTE), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    finally:
        os.close(descriptor)


def write_note(folder: Folder, name: str | bytes, note: msgspec.Struct) -> None:
    """Leave that note, for its owner only, in the place of what has the name. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder.at(name), dir_fd=folder.descriptor)
    descriptor = os.open(folder.at(name), CREATE, 0o600, dir_fd=folder.descriptor)
    try:
        os.write(descriptor, msgspec.json.encode(note))
    finally:
        os.close(descriptor)


MARK = b".remoter-unfinished"
"""What the mark in a folder is called that is not complete yet. No copy takes it along."""

Origin = Annotated[str, msgspec.Meta(max_length=64)]
"""A word for the folder that is copied, which is the same as long as that is the same folder; empty: unknown."""


class Unfinished(msgspec.Struct, frozen=True):
    """What the mark in a new folder says: of what it is the copy, which is not complete yet.

    `cp big d3` makes the folder `d3` if there is none, and goes into it if there is. So after a cut the same
    command would mean another place; by the mark it means the same one. That is all that it is believed for.
    Several things that are copied together have no name, nor a mark.
    """

    name: str = ""
    origin: Origin = ""
    source: str = ""  # for who finds it

    @classmethod
    def copy_of(cls, name: str, origin: Origin, source: str) -> Unfinished:
        """The mark of a copy of that."""
        return cls(shown(name), origin, shown(source)[:1000]) if name and origin else cls()

    def is_on(self, path: str, root: str | None = None) -> bool:
        """Whether the folder at that resolved path, below `root`, is marked so."""
        with contextlib.suppress(OSError), Folder.open(path, root) as folder:
            return self._is_in(folder)
        return False

    def _is_in(self, folder: Folder) -> bool:
        mark = read_note(folder, MARK, Unfinished) if self.name else None
        return mark is not None and (mark.name, mark.origin) == (self.name, self.origin)

    def put(self, folder: Folder) -> None:
        """Mark a new folder. Raises OSError."""
        if self.name:
            write_note(folder, MARK, self)

    def take_off(self, folder: Folder) -> None:
        """The folder is complete. A mark that another copy has left stays."""
        if self._is_in(folder):
            folder.remove(MARK)


NO_MARK = Unfinished()


# --- room on the disk ------------------------------------------------------------------------


def reserve(descriptor: int, position: int, size: int) -> None:
    """Take the disk's room for a file without changing its length, where the file system can do that.

    `posix_fallocate` would set the length, which tells us how much has arrived; and where the file system
    has no such call it writes to every block instead, over the network if need be. Hence the system call itself.

    Raises:
        OSError: there is no room.
    """
    if size <= position or not sys.platform.startswith("linux"):
        return
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    # Where files are longer than a C `long`, the call that takes 64 bits has a name of its own.
    fallocate = getattr(library, "fallocate64", None) or library.fallocate
    start, length = ctypes.c_int64(position), ctypes.c_int64(size - position)
    while fallocate(descriptor, _KEEP_SIZE, start, length) != 0:
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(number, os.strerror(number))
        if number != errno.EINTR:
            return


def check_room(folder: Folder, name: str | bytes, needed: int) -> None:
    """Raises TransferError: the disk has less room than that."""
    try:
        total, _, free = shutil.disk_usage(folder.path)
    except OSError:
        return  # then writing will tell
    if needed > free and total:  # some file systems of storage elsewhere say nothing but zeros
        raise no_room(folder, name, needed)


def no_room(folder: Folder, name: str | bytes, needed: int) -> TransferError:
    """The error that the disk has less room than that."""
    cause = f"{amount(needed)} are needed"
    with contextlib.suppress(OSError):
        cause += f", {amount(shutil.disk_usage(folder.path).free)} are free"
    return TransferError(
        f"there is no room for `{shown(name)}` in `{shown(folder.path)}`", cause=cause, id="no-space"
    )
