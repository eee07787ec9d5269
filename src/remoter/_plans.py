"""What of a folder is to cross: what the receiver wants of a manifest, and what it has already; on both machines.

The receiver makes a plan; the sender confirms that parts which the receiver has are the beginnings of its files.
"""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
from collections.abc import Callable

from ._config import WINDOWS
from ._errors import TransferError
from ._files import FileSource, find_part
from ._folders import MARK, NO_MARK, Folder, Trail, Unfinished, is_in_the_way, is_same_time, split
from ._manifest import Entry, Manifest, Problems, Tree
from ._paths import is_case_insensitive, join, objection, reason, shown, write_error
from ._steps import Offset, Plan

LARGE = 8 * 1024 * 1024
"""Bytes of a file above which it arrives as a part, and can be resumed."""

EXISTS = "it exists, and differs: `overwrite=True` or `update=True` replaces it"
IN_THE_WAY = "a folder cannot be there: a link or a file is in the way"
A_MARK = "so only remoter calls what it marks folders with"


class Selection:
    """The files of a manifest that are wanted, and how many bytes of each are there already.

    Args:
        manifest: what there is.
        wanted: a bit for each of its entries, the lowest first.
        offsets: the bytes that are there, by the number of the entry.

    Raises:
        TransferError: they do not fit together.
    """

    def __init__(self, manifest: Manifest, wanted: bytes, offsets: dict[int, int]) -> None:
        self.manifest = manifest
        entries = manifest.entries
        if len(wanted) != (len(entries) + 7) // 8:
            raise _mismatch()
        self.files = [
            (entry, offsets.get(index, 0))
            for index, entry in enumerate(entries)
            if wanted[index >> 3] >> (index & 7) & 1 and entry.kind == "file"
        ]
        if not all(0 <= offset <= entry.size for entry, offset in self.files):
            raise _mismatch()
        self.size = sum(entry.size - offset + 1 for entry, offset in self.files)


def _mismatch() -> TransferError:
    return TransferError("the two ends do not mean the same files", id="corrupt")


# --- what is wanted --------------------------------------------------------------------------


def make_plan(
    root: Folder | None, path: str, manifest: Manifest, *, overwrite: bool, skip_same: bool, resume: bool
) -> Plan:
    """What of a manifest is to cross.

    Args:
        root: the folder that it goes to; None: it is not there yet.
        path: where that is.
        manifest: what there is.
        overwrite: replace files that are there.
        skip_same: but not those that are the same.
        resume: go on with those that are there in part.
    """
    plan = _Planning(path, manifest, overwrite, skip_same, resume)
    trail = Trail(root.copy()) if root is not None else None
    try:
        for index, entry in enumerate(manifest.entries):
            if entry.kind == "file":
                plan.look_at(index, entry, trail)
    finally:
        if trail is not None:
            trail.close()
    return Plan(
        wanted=bytes(plan.wanted),
        offsets=plan.offsets,
        files=plan.files,
        skipped=plan.skipped,
        problems=plan.problems.lines(),
    )


class _Planning:
    """One plan in the making."""

    def __init__(self, path: str, manifest: Manifest, replaces: bool, skips: bool, resumes: bool) -> None:
        self.wanted = bytearray((len(manifest.entries) + 7) // 8)
        self.offsets: list[Offset] = []
        self.files = self.skipped = 0
        self.problems = Problems()
        self._replaces, self._skips, self._resumes = replaces, skips, resumes
        self._names: dict[str, bytes] | None = {} if is_case_insensitive(path) else None
        self._path: bytes | None = None
        self._folder: Folder | None = None
        self._is_blocked = False

    def look_at(self, index: int, entry: Entry, trail: Trail | None) -> None:
        """Whether this file is wanted."""
        if why := self._objection(entry.path):
            self.problems.add(entry.path, why)
            return
        path, name = split(entry.path)
        if path != self._path:
            self._enter(path, trail)
        if self._is_blocked or (self._folder is not None and not self._is_free(entry, name, self._folder)):
            return
        self.wanted[index >> 3] |= 1 << (index & 7)
        self.files += 1
        if self._resumes and self._folder is not None and entry.size > LARGE:
            had, digest = find_part(self._folder, os.fsdecode(name), entry.size, entry.mtime_ns)
            if had:
                self.offsets.append(Offset(index, had, digest))

    def _objection(self, path: bytes) -> str:
        """Why there can be no such file here."""
        if split(path)[1] == MARK:
            return A_MARK
        if WINDOWS and (why := objection(path)):
            return why
        if self._names is None:
            return ""
        name = unicodedata.normalize("NFC", os.fsdecode(path)).casefold()
        other = self._names.setdefault(name, path)
        return "" if other == path else f"its name differs from `{shown(other)}` only in case"

    def _enter(self, path: bytes, trail: Trail | None) -> None:
        """Open the folder at that path, if it is there."""
        self._path, self._folder, self._is_blocked = path, None, False
        if trail is None:
            return
        try:
            self._folder = trail.go(path)
        except FileNotFoundError:
            pass  # then all that is to be in it is wanted
        except OSError as error:
            self._is_blocked = True
            self.problems.add(path, IN_THE_WAY if is_in_the_way(error) else reason(error))

    def _is_free(self, entry: Entry, name: bytes, folder: Folder) -> bool:
        """Whether the file may be put there; if not, it is noted why."""
        try:
            status = folder.status(name)
        except FileNotFoundError:
            return True
        except OSError as error:
            self.problems.add(entry.path, reason(error))
            return False
        mode = status.st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            self.problems.add(entry.path, "something that is no file is in the way")
            return False
        is_same = status.st_size == entry.size and is_same_time(status.st_mtime_ns, entry.mtime_ns)
        if self._skips and is_same and stat.S_ISREG(mode):
            self.skipped += 1
            return False
        if not self._replaces:
            self.problems.add(entry.path, EXISTS)
        return self._replaces


def open_target(
    folder: str,
    name: str,
    root: str | None = None,
    *,
    make: bool,
    is_whole: bool = True,
    mark: Unfinished = NO_MARK,
) -> Folder | None:
    """The folder that a tree goes to; None: it is not there, and is not to be made.

    Args:
        folder, name: where it is; without a name the folder itself.
        root: nothing outside of it is used.
        make: make it if it is missing.
        is_whole: it gets its mode when it is complete, and is closed to others until then.
        mark: what a new one is marked with.

    Raises:
        TransferError: something else is there.
    """
    path = join(folder, name)
    try:
        above = Folder.open(folder, root)
        if not name:
            return above
        with above:
            with contextlib.suppress(FileNotFoundError):
                return above.enter(name)
            if not make:
                return None
            above.make(name, 0o700 if is_whole else 0o777)
            with above.enter(name) as made:
                mark.put(made)
                return made.copy()
    except OSError as error:
        if is_in_the_way(error):
            raise TransferError(f"`{shown(path)}` exists, and is no folder", id="exists") from None
        raise write_error(path, error) from None


def confirm(
    tree: Tree, offsets: list[Offset], root: str | None = None, check: Callable[[], object] = lambda: None
) -> dict[int, int]:
    """Of what the receiver has in part, that which really is the beginning of these files.

    Args:
        tree: what was found.
        offsets: what the receiver has.
        root: nothing outside of it is read.
        check: called now and then; may raise, for it can take long.
    """
    confirmed = {}
    for offset in offsets:
        if not 0 <= offset.index < len(tree.manifest.entries):
            raise _mismatch()
        entry = tree.manifest.entries[offset.index]
        folder, path = tree.place(entry)
        with contextlib.suppress(TransferError):  # then its contents will tell what is wrong with it
            source = FileSource.open(os.path.join(folder, os.fsdecode(path)), root or folder)  # noqa: PTH118
            with contextlib.closing(source):
                is_same = (source.size, source.mtime_ns) == (entry.size, entry.mtime_ns)
                if (
                    is_same
                    and offset.had <= source.size
                    and source.digest(offset.had, check) == offset.digest
                ):
                    confirmed[offset.index] = offset.had
    return confirmed
