"""The contents of a folder as one stream; on both machines, in the process that sends or receives.

The stream has the contents of the wanted files, one after the other, and behind each a byte that says what it is
worth. For while it crosses, files change, vanish or turn out to be unreadable, and that must not end the rest; but how long the
stream is was settled before. So such a file is filled up with zeros, and its byte tells the receiver not to put it in its place.

Small files are kept in memory until that byte is there, and written at once: six system calls each. Large ones
arrive as single files do, and are resumed as these are. Whatever goes wrong with one file is noted, and ends nothing
else; but a full disk ends all.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import stat
from collections.abc import Callable
from typing import Any

from ._config import WINDOWS
from ._errors import TransferError
from ._files import FileSink, read_at
from ._folders import (
    CREATE,
    NO_MARK,
    READ,
    Folder,
    Trail,
    Unfinished,
    check_room,
    dress,
    is_in_the_way,
    put_in_place,
    split,
)
from ._manifest import Entry, Problems, Tree
from ._paths import is_full, reason, stays_inside, write_error
from ._plans import EXISTS, IN_THE_WAY, LARGE, Selection
from ._steps import TreeDone, as_data

GOOD, CHANGED, GONE, UNREADABLE = 1, 2, 3, 4
"""What the byte behind a file says."""

_WORTH = {
    CHANGED: "it changed while it was copied",
    GONE: "it vanished before it was copied",
    UNREADABLE: "it cannot be read",
}


# --- the sender's end ------------------------------------------------------------------------


class _ChangedError(Exception):
    """A file is not what the manifest says."""


class TreeSource:
    """The contents of the selected files, as a source.

    Args:
        tree: what was found.
        selection: what of it is wanted.
        root: nothing outside of it is read.
        on_file: called when another file has been read.
    """

    def __init__(
        self,
        tree: Tree,
        selection: Selection,
        *,
        root: str | None = None,
        on_file: Callable[[], object] = lambda: None,
    ) -> None:
        self.size = selection.size
        self._files, self._tree = selection.files, tree
        self._root, self._on_file = root, on_file
        lengths = (entry.size - offset + 1 for entry, offset in self._files)
        self._starts = list(itertools.accumulate(lengths, initial=0))
        self._worth: dict[int, int] = {}  # of those that are not good
        self._trail: Trail | None = None
        self._top = ""
        self._open_at, self._descriptor = -1, -1

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` from that offset on."""
        at = bisect.bisect_right(self._starts, offset) - 1
        while into:
            part = into[: self._starts[at + 1] - offset]
            self._fill(at, offset - self._starts[at], part)
            offset, into, at = offset + len(part), into[len(part) :], at + 1

    def _fill(self, at: int, within: int, part: memoryview) -> None:
        """A stretch of one file, or its end, with the byte that tells what it is worth."""
        entry, skip = self._files[at]
        data = part[: max(0, entry.size - skip - within)]
        is_end = len(data) < len(part)
        if at not in self._worth:
            try:
                self._read(at, entry, skip + within, data)
                self._check(entry)
            except FileNotFoundError:
                self._worth[at] = GONE
            except OSError:
                self._worth[at] = UNREADABLE
            except _ChangedError:
                self._worth[at] = CHANGED
        if at in self._worth:
            data[:] = bytes(len(data))
        if is_end:
            part[-1] = self._worth.get(at, GOOD)
            self._close_file()
            self._on_file()

    def _read(self, at: int, entry: Entry, offset: int, into: memoryview) -> None:
        if at != self._open_at:
            self._open(at, entry)
        while into:
            count = read_at(self._descriptor, into, offset)
            if not count:
                raise _ChangedError
            into, offset = into[count:], offset + count

    def _open(self, at: int, entry: Entry) -> None:
        self._close_file()
        top, path = self._tree.place(entry)
        folder, name = split(path)
        if self._trail is None or top != self._top:
            self._close_trail()
            self._trail, self._top = Trail(Folder.open(top, self._root)), top
        where = self._trail.go(folder)
        self._descriptor = os.open(where.at(name), READ, dir_fd=where.descriptor)
        self._open_at = at

    def _check(self, entry: Entry) -> None:
        """Whether it still is what the manifest says, now that a stretch has been read."""
        status = os.fstat(self._descriptor)
        is_same = status.st_size == entry.size and status.st_mtime_ns == entry.mtime_ns
        if not is_same or not stat.S_ISREG(status.st_mode):
            raise _ChangedError

    def _close_file(self) -> None:
        if self._open_at >= 0:
            os.close(self._descriptor)
            self._open_at = -1

    def _close_trail(self) -> None:
        if self._trail is not None:
            self._trail.close()
            self._trail = None

    def close(self) -> None:
        """It is no longer needed."""
        self._close_file()
        self._close_trail()


# --- the receiver's end ----------------------------------------------------------------------


class TreeSink:
    """The contents of the selected files, as they arrive.

    Args:
        root: the folder that they are put in; ours from now on.
        selection: which files these are.
        overwrite: replace files that are there.
        resume: go on with the parts of large files, and leave one if this is cut off.
        keeps_links: make the links of the manifest.
        mark: what the folder is marked with, if it is new, until all is there.
        source: where it comes from, for who finds a part.
        on_file: called when another file is there, or has failed.

    Raises:
        TransferError: there is no room for them.
    """

    def __init__(
        self,
        root: Folder,
        selection: Selection,
        *,
        overwrite: bool = False,
        resume: bool = True,
        keeps_links: bool = False,
        mark: Unfinished = NO_MARK,
        source: str = "",
        on_file: Callable[[], object] = lambda: None,
    ) -> None:
        self.size, self.position = selection.size, 0
        self.files = self.bytes = 0
        self.problems = Problems()
        self._manifest, self._files = selection.manifest, selection.files
        self._overwrite, self._resume, self._keeps_links = overwrite, resume, keeps_links
        self._mark, self._source, self._on_file = mark, source, on_file
        self._trail = Trail(root, make=True)
        self._temporary = f".remoter-{os.urandom(4).hex()}.part".encode()
        self._at = self._within = 0
        self._gathered = bytearray()
        self._large: FileSink | None = None
        self._has_failed = False
        try:
            needed = sum(entry.size - offset for entry, offset in self._files if not entry.is_sparse)
            check_room(root, os.path.basename(root.path), needed)  # noqa: PTH119
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview) -> None:
        """The next bytes. Raises TransferError: the disk is full."""
        self.position += data.nbytes
        while data:
            entry, offset = self._files[self._at]
            missing = entry.size - offset - self._within
            content, data = data[:missing], data[missing:]
            self._within += len(content)
            if entry.size > LARGE:
                self._take_large(entry, offset, content)
            elif self._gathered or not data:
                self._gathered += content
            if not data:
                return  # what it is worth comes next
            self._end(entry, data[0], content)
            data = data[1:]

    def _end(self, entry: Entry, worth: int, content: memoryview) -> None:
        """All of a file is there, and it is known what it is worth."""
        whole = memoryview(self._gathered) if self._gathered else content
        if worth != GOOD:
            self.problems.add(entry.path, _WORTH.get(worth, "it did not come whole"))
        if entry.size > LARGE:
            self._end_large(entry, is_good=worth == GOOD)
        elif worth == GOOD:
            self._put(entry, whole)
        self._at, self._within = self._at + 1, 0
        self._gathered, self._has_failed = bytearray(), False
        self._on_file()

    def _count(self, entry: Entry, offset: int = 0) -> None:
        self.files += 1
        self.bytes += entry.size - offset

    # --- small files -------------------------------------------------------------------------

    def _put(self, entry: Entry, content: memoryview) -> None:
        """Write a file and put it in its place."""
        path, name = split(entry.path)
        folder = None
        try:
            folder = self._trail.go(path)
            descriptor = os.open(folder.at(self._temporary), CREATE, 0o600, dir_fd=folder.descriptor)
            try:
                while content:
                    content = content[os.write(descriptor, content) :]
                if not WINDOWS:
                    dress(folder, self._temporary, descriptor, entry.mode, entry.mtime_ns)
            finally:
                os.close(descriptor)
            if WINDOWS:
                dress(folder, self._temporary, None, entry.mode, entry.mtime_ns)
            put_in_place(folder, self._temporary, name, overwrite=self._overwrite)
            self._count(entry)
        except OSError as error:
            if folder is not None:
                folder.remove(self._temporary)
            self._note_failure(entry.path, error)

    def _note_failure(self, path: bytes, error: OSError) -> None:
        """One file cannot be written. Raises TransferError: nor can any other."""
        if is_full(error):
            raise write_error(path, error, hints=self.way_on())
        if isinstance(error, FileExistsError):
            self.problems.add(path, EXISTS)
        elif is_in_the_way(error):
            self.problems.add(path, IN_THE_WAY)
        else:
            self.problems.add(path, reason(error))

    # --- large files -------------------------------------------------------------------------

    def _take_large(self, entry: Entry, offset: int, content: memoryview) -> None:
        try:
            if self._large is None and not self._has_failed:
                self._large = self._open_large(entry, offset)
            if self._large is not None and content:
                self._large.write(content)
        except TransferError as error:
            self._fail_large(entry, error)
        except OSError as error:
            self._has_failed = True
            self._note_failure(entry.path, error)

    def _open_large(self, entry: Entry, offset: int) -> FileSink:
        path, name = split(entry.path)
        sink = FileSink(
            self._trail.go(path).copy(),
            os.fsdecode(name),
            size=entry.size,
            mtime_ns=entry.mtime_ns,
            mode=entry.mode,
            overwrite=self._overwrite,
            resume=self._resume,
            is_sparse=entry.is_sparse,
            source=self._source,
        )
        had = sink.position
        if had > offset:
            sink.restart(offset)
        elif had < offset:
            sink.close()
            raise TransferError("what was there of it is gone", id="changed")
        return sink

    def _end_large(self, entry: Entry, *, is_good: bool) -> None:
        sink, self._large = self._large, None
        if sink is None:
            return
        try:
            if is_good:
                skipped = self._files[self._at][1]
                sink.finish()
                self._count(entry, skipped)
            else:
                sink.discard()  # zeros help nobody to resume
        except TransferError as error:
            self._fail_large(entry, error)
        finally:
            sink.close()

    def _fail_large(self, entry: Entry, error: TransferError) -> None:
        self._has_failed = True
        if self._large is not None:
            self._large.close()
            self._large = None
        if error.id == "no-space":
            raise error
        self.problems.add(entry.path, EXISTS if error.id == "exists" else error.cause or error.message)

    # --- the end -----------------------------------------------------------------------------

    def way_on(self) -> tuple[str, ...]:
        """What to do when it was cut off."""
        return ("copy it again, and it goes on with what is missing",) if self._resume else ()

    def finish(self) -> dict[str, Any]:
        """All contents are there: now empty folders, links, and at last the times of all folders."""
        folders = [entry for entry in self._manifest.entries if entry.kind == "folder"]
        for entry in folders:
            try:
                self._trail.go(entry.path)
            except OSError as error:
                self._note_failure(entry.path, error)
        if self._keeps_links:
            for entry in self._manifest.entries:
                if entry.kind == "link":
                    self._make_link(entry)
        for entry in reversed(folders):  # the inner ones first: what is done in a folder changes its time
            path, name = split(entry.path)
            try:
                _dress_folder(self._trail.go(path), name, entry.mode, entry.mtime_ns)
            except OSError:
                continue  # it is not there, which has been noted
        self._mark.take_off(self._trail.root)
        if self._manifest.root is not None:
            with contextlib.suppress(OSError):
                _dress_folder(self._trail.root, b".", *self._manifest.root)
        return as_data(TreeDone(files=self.files, bytes=self.bytes, problems=self.problems.lines()))

    def _make_link(self, entry: Entry) -> None:
        if not stays_inside(entry.path, entry.target):
            self.problems.add(entry.path, "the link leads out of the folder")
            return
        path, name = split(entry.path)
        try:
            folder = self._trail.go(path)
            try:
                if folder.target(name) == entry.target:
                    return
            except OSError:
                pass  # there is none
            os.symlink(
                os.fsdecode(entry.target), folder.at(os.fsdecode(self._temporary)), dir_fd=folder.descriptor
            )
            try:
                put_in_place(folder, self._temporary, name, overwrite=self._overwrite)
            except OSError:
                folder.remove(self._temporary)
                raise
        except OSError as error:
            self._note_failure(entry.path, error)

    def close(self) -> None:
        """It is over. Parts of large files stay for the next attempt."""
        if self._large is not None:
            self._large.close()
            self._large = None
        self._trail.close()


def _dress_folder(parent: Folder, name: bytes, mode: int, mtime_ns: int) -> None:
    with parent.enter(name, to_read=True) as folder:
        dress(parent, name, folder.descriptor, mode, mtime_ns)
