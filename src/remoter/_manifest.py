"""What crosses, before its contents do: files and folders are found and listed; on both machines, in the sender's process.

A folder crosses as a manifest, which lists all that is in it, and one stream with the contents of those files that the
receiver wants. Several things that were asked for together, or that match a pattern, cross as a folder that has no
name of its own.
"""

# ruff: noqa: PTH116, PTH118, PTH119 - as in `_paths`: names need not be text

from __future__ import annotations

import contextlib
import fnmatch
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
import xxhash

from ._config import WINDOWS
from ._errors import TransferError
from ._files import FileSource, is_sparse
from ._folders import MARK, PERMISSIONS, Folder, Trail, kind_of, split
from ._paths import check_relative, missing, read_error, reason, resolve, shown, stays_inside
from ._steps import LARGEST, Size, Symlinks

LONGEST_MANIFEST = 512 * 1024 * 1024
"""Bytes: some millions of files. More are better packed into an archive first."""

MOST_PROBLEMS = 1000
LONGEST_PROBLEM = 1000
"""How many problems are told, and how many characters of each."""

MANIFEST = "-m"
"""What stands behind a transfer's id in the name of the stream that has its manifest."""


class Problems:
    """What did not cross, and why, a line for each: the first thousand, and how many more there are."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}  # an ordered set: the two ends may find the same
        self._more = 0

    def add(self, path: bytes | str, why: str) -> None:
        """One more."""
        self.extend([f"`{shown(path)[:700]}`: {why}"])

    def extend(self, lines: Iterable[str]) -> None:
        """Some more. They may come from the other end, which may say anything."""
        for line in (shown(line[:LONGEST_PROBLEM]) for line in lines):
            if len(self._lines) < MOST_PROBLEMS:
                self._lines[line] = None
            elif line not in self._lines:
                self._more += 1

    def lines(self) -> list[str]:
        """All of them, as far as they are kept."""
        return [*self._lines, *([f"and {self._more:,} more"] if self._more else [])]


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One file, folder or link; its path is relative, with `/` between the parts."""

    path: bytes
    kind: Literal["file", "folder", "link"]
    mode: int
    mtime_ns: int
    size: Size = 0
    is_sparse: bool = False
    target: bytes = b""


class Manifest(msgspec.Struct, array_like=True):
    """All that is in a folder; each folder stands before what is in it.

    `root` is the mode and the time of the folder itself, none if it has no name of its own. `links` were left
    out, `problems` could not be read.
    """

    entries: list[Entry]
    root: tuple[int, int] | None = None
    links: int = 0
    problems: list[str] = []

    @property
    def files(self) -> int:
        """How many files there are."""
        return sum(entry.kind == "file" for entry in self.entries)

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(entry.size for entry in self.entries)


_decoder = msgspec.msgpack.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as it is sent. Raises TransferError: it is too long."""
    data = msgspec.msgpack.encode(manifest)
    check_length(len(data))
    return data


def check_length(length: int) -> None:
    """Raises TransferError: no manifest is so long; checked before there is memory for it."""
    if not 0 <= length <= LONGEST_MANIFEST:
        raise TransferError(
            "there are too many files to copy them one by one",
            hints="pack them into an archive first",
            id="memory",
        )


def decode_manifest(data: bytes | bytearray | memoryview) -> Manifest:
    """The manifest that the other end has sent.

    Raises:
        TransferError: it is damaged, or a path in it leads out of the folder.
    """
    try:
        manifest = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise TransferError("the list of files came damaged", cause=str(error)[:200], id="corrupt") from None
    if manifest.size > LARGEST:
        raise TransferError("the list of files came damaged", cause="impossible sizes", id="corrupt")
    folders = {b""}
    for entry in manifest.entries:
        folder, name = split(entry.path)
        if folder not in folders:
            check_relative(folder)
            folders.add(folder)
        if name in (b"", b".", b"..") or b"\0" in name or entry.path[:1] == b"/":
            check_relative(entry.path)
    return manifest


# --- what is in a folder ---------------------------------------------------------------------


class Survey:
    """Lists folders, following no links.

    Args:
        symlinks: whether to "keep" those that stay inside, or to "skip" all.
        check: called now and then; may raise, for it can take long.
    """

    def __init__(self, symlinks: Symlinks = "skip", check: Callable[[], object] = lambda: None) -> None:
        self._keeps_links, self._check = symlinks == "keep", check
        self._entries: dict[bytes, Entry] = {}
        self._listed: set[bytes] = set()
        self._links = 0
        self._problems = Problems()

    def manifest(self, root: os.stat_result | None = None) -> Manifest:
        """What was found."""
        own = (root.st_mode & PERMISSIONS, root.st_mtime_ns) if root is not None else None
        return Manifest(list(self._entries.values()), own, self._links, self._problems.lines())

    def add(self, folder: Folder, name: bytes, path: bytes) -> None:
        """The file that is called `name` in that folder; it will be called `path`."""
        try:
            self._take(folder, name, path, folder.status(name))
        except OSError as error:
            self._problems.add(path, reason(error))

    def add_folder(self, trail: Trail, status: os.stat_result, path: bytes) -> None:
        """A folder, which will be called `path`, with all that is in it."""
        self._take(trail.root, b".", path, status)
        self.add_below(trail, prefix=path + b"/")

    def add_match(self, trail: Trail, path: bytes) -> bool:
        """What is at that path, with all that is in it, and the folders on the way to it. Whether it crosses."""
        above = b""
        for name in path.split(b"/"):
            whole = above + b"/" + name if above else name
            if whole not in self._entries:
                try:
                    folder = trail.go(above)
                    self._take(folder, name, whole, folder.status(name))
                except OSError as error:
                    self._problems.add(whole, reason(error))
            above = whole
        if path in self._entries and self._entries[path].kind == "folder":
            self.add_below(trail, path)
        return path in self._entries

    def add_below(self, trail: Trail, path: bytes = b"", prefix: bytes = b"") -> None:
        """All that is in the folder at that path; `prefix` stands before it at the other end."""
        pending = [path]
        while pending:
            path = pending.pop()
            if prefix + path in self._listed:
                continue
            self._listed.add(prefix + path)
            self._check()
            try:
                folder = trail.go(path)
                found = _contents(folder)
            except OSError as error:
                self._problems.add(prefix + path or trail.root.path, reason(error))
                continue
            start = path + b"/" if path else b""
            folders = []
            for name, status in found:
                inner = start + name
                if stat.S_ISDIR(status.st_mode):
                    folders.append(inner)
                self._take(folder, name, prefix + inner, status)
            pending += reversed(folders)

    def _take(self, folder: Folder, name: bytes, path: bytes, status: os.stat_result) -> None:
        mode = status.st_mode
        if stat.S_ISREG(mode):
            self._entries[path] = Entry(
                path, "file", mode & PERMISSIONS, status.st_mtime_ns, status.st_size, is_sparse(status)
            )
        elif stat.S_ISDIR(mode):
            self._entries[path] = Entry(path, "folder", mode & PERMISSIONS, status.st_mtime_ns)
        elif not stat.S_ISLNK(mode):
            self._problems.add(path, f"it is {kind_of(status)}, and only files and folders cross")
        elif not self._keeps_links:
            self._links += 1
        else:
            self._take_link(folder, name, path, status)

    def _take_link(self, folder: Folder, name: bytes, path: bytes, status: os.stat_result) -> None:
        try:
            target = folder.target(name)
        except OSError as error:
            self._problems.add(path, reason(error))
            return
        if stays_inside(path, target):
            self._entries[path] = Entry(path, "link", 0, status.st_mtime_ns, target=target)
        else:
            self._problems.add(path, f"the link leads out of the folder, to `{shown(target)}`")


def _contents(folder: Folder) -> list[tuple[bytes, os.stat_result]]:
    """All that is in it, but not the mark that it is not complete. Raises OSError."""
    return [found for found in folder.contents() if found[0] != MARK]


# --- patterns --------------------------------------------------------------------------------

_MAGIC = re.compile(r"[*?\[]")


def split_pattern(pattern: str) -> tuple[str, list[str]] | None:
    """The folder that a pattern begins with, and its other parts; None if it is none."""
    if not _MAGIC.search(pattern):
        return None
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    base = "/".join(parts[:first])
    if parts[0] == "" and not base:
        base = "/"
    return base or ".", [part for part in parts[first:] if part not in ("", ".")]


Pattern = list["re.Pattern[str] | None"]
"""The parts of a pattern; none is `**`, any number of folders."""


def compile_pattern(parts: list[str]) -> Pattern:
    """The parts of a pattern, ready to be matched."""
    return [None if part == "**" else _matcher(part) for part in parts]


def _matcher(part: str) -> re.Pattern[str]:
    """As in a shell, what begins with a dot is only found by a pattern that does."""
    text = fnmatch.translate(part)
    return re.compile(text if part.startswith(".") else r"(?!\.)" + text)


_VISIBLE = _matcher("*")


def find_matches(trail: Trail, pattern: Pattern, path: bytes = b"") -> Iterator[bytes]:
    """What matches, in order, perhaps more than once. No link is followed."""
    part, rest = pattern[0], pattern[1:]
    if part is None and rest:
        yield from find_matches(trail, rest, path)
    try:
        found = _contents(trail.go(path))
    except OSError:
        return  # as in a shell
    matches = (part or _VISIBLE).match
    for name, status in found:
        if not matches(os.fsdecode(name)):
            continue
        inner = path + b"/" + name if path else name
        if not rest:
            yield inner
        elif stat.S_ISDIR(status.st_mode):
            yield from find_matches(trail, pattern if part is None else rest, inner)


# --- what somebody asked for -----------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """A folder that is to be sent; or several things together.

    Attributes:
        path: what it is, for people.
        name: its own name; empty for several things together.
        manifest: what is in it.
        tops: where the things are that the first parts of the paths name; under `b""` the folder that all are in.
        origin: a word for the folder; empty for several things.
    """

    path: str
    name: str
    manifest: Manifest
    tops: dict[bytes, str]
    origin: str = ""

    def place(self, entry: Entry) -> tuple[str, bytes]:
        """Where something is: a resolved folder, and the path from there, on which no link is followed."""
        if b"" in self.tops:
            return self.tops[b""], entry.path
        first, _, rest = entry.path.partition(b"/")
        if rest:
            return self.tops[first], rest
        folder, name = os.path.split(self.tops[first])
        return folder, os.fsencode(name)


def typed_name(path: str) -> str:
    """What something is called that somebody named by a path; empty if only its place tells, as of `..`."""
    name = posixpath.basename(posixpath.normpath(path))
    return "" if name in ("", ".", "..") or (path.startswith("~") and "/" not in path) else name


def find(
    paths: list[str],
    base: str,
    root: str | None = None,
    *,
    symlinks: Symlinks = "skip",
    check: Callable[[], object] = lambda: None,
) -> FileSource | Tree:
    """What somebody wants to have copied: one file, or a folder, or several things together.

    Args:
        paths: as they were typed; one that does not exist may be a pattern.
        base: what they are relative to.
        root: nothing outside of it is looked at.
        symlinks: whether links in folders are kept.
        check: called now and then; may raise.

    Raises:
        TransferError: it does not exist, cannot be read, or is nothing that crosses.
    """
    if WINDOWS:
        paths = [path.replace("\\", "/") for path in paths]
    if len(paths) == 1:
        path = resolve(paths[0], base, root)
        status = _status(path)
        name = typed_name(paths[0]) or os.path.basename(path) or "root"
        if status is not None and not stat.S_ISDIR(status.st_mode):
            return FileSource.open(path, root, name)
        if status is not None:
            survey = Survey(symlinks, check)
            with _trail(path, root) as trail:
                survey.add_below(trail)
            return Tree(path, name, survey.manifest(status), {b"": path}, origin_of(path, status))
    return _find_several(paths, base, root, Survey(symlinks, check))


def origin_of(path: str, status: os.stat_result) -> str:
    """A word for a folder: for its place, and for that which is there now."""
    return xxhash.xxh3_128_hexdigest(os.fsencode(path) + b"\0%d" % status.st_ino)


def _find_several(paths: list[str], base: str, root: str | None, survey: Survey) -> Tree:
    tops: dict[bytes, str] = {}
    crosses = False
    for typed in paths:
        path = resolve(typed, base, root)
        status = _status(path)
        if status is not None:
            folder, actual = os.path.split(path)
            name = os.fsencode(typed_name(typed) or actual or "root")
            _claim(tops, name, path)
            crosses = True
            is_folder = stat.S_ISDIR(status.st_mode)
            with _trail(path if is_folder else folder, root) as trail:
                if is_folder:
                    survey.add_folder(trail, status, name)
                else:
                    survey.add(trail.root, os.fsencode(actual), name)
        elif (pattern := split_pattern(typed)) is not None:
            folder = resolve(pattern[0], base, root)
            if _status(folder) is None:
                raise missing(folder, root, what="folder")
            matches = list(_add_matches(survey, folder, root, pattern[1], tops))
            if not matches:
                raise TransferError(
                    f"nothing matches `{shown(typed)}`", cause=f"in `{shown(folder)}`", id="path"
                )
            crosses |= any(matches)
        else:
            raise missing(path, root)
    manifest, words = survey.manifest(), ", ".join(paths)
    if not crosses:
        raise _nothing_crosses(words, manifest)
    return Tree(words, "", manifest, tops)


def _nothing_crosses(words: str, manifest: Manifest) -> TransferError:
    """The error that all that matches is left out, for that reason."""
    hints = ["name a link itself, and what it leads to is copied"]
    if manifest.links:
        one = manifest.links == 1
        cause = f"{manifest.links:,} symbolic link{' was' if one else 's were'} left out"
        hints.insert(0, '`symlinks="keep"` copies those that lead to something in the same folder')
    else:
        cause, hints = "; ".join(manifest.problems[:3]), []
    return TransferError(f"nothing of `{shown(words)}` crosses", cause=cause, hints=hints, id="path")


def _add_matches(
    survey: Survey, folder: str, root: str | None, parts: list[str], tops: dict[bytes, str]
) -> Iterator[bool]:
    """Add what matches a pattern; of each whether it crosses."""
    # While one trail looks for matches, the other goes into those that are folders.
    with _trail(folder, root) as trail, _trail(folder, root) as other:
        for match in find_matches(trail, compile_pattern(parts)):
            first = match.partition(b"/")[0]
            _claim(tops, first, os.path.join(folder, os.fsdecode(first)))
            yield survey.add_match(other, match)


def _status(path: str) -> os.stat_result | None:
    """What is at a resolved path; None: nothing. Raises TransferError."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise read_error(path, error) from None


@contextlib.contextmanager
def _trail(path: str, root: str | None) -> Iterator[Trail]:
    try:
        trail = Trail(Folder.open(path, root))
    except OSError as error:
        raise read_error(path, error) from None
    with contextlib.closing(trail):
        yield trail


def _claim(tops: dict[bytes, str], name: bytes, path: str) -> None:
    """Note what the paths lead to that begin so. Raises TransferError: to two things."""
    if tops.setdefault(name, path) != path:
        raise TransferError(
            f"two of the things to be copied are called `{shown(name)}`",
            cause=f"one is `{shown(tops[name])}`, one `{shown(path)}`",
            hints="copy them one after the other, to different places",
            id="path",
        )


# --- what somebody asked for, and what came --------------------------------------------------


def check_asked(manifest: Manifest, paths: list[str]) -> None:
    """Whether several things that a session sends are those that were asked for.

    It could send `.bashrc` to who asked for `*.csv`, and have it written where that is read.

    Raises:
        TransferError: they are others.
    """
    names = {os.fsencode(typed_name(path)) for path in paths}
    patterns = [compile_pattern(found[1]) for path in paths if (found := split_pattern(path)) is not None]
    if b"" in names:
        patterns.append([_VISIBLE])  # nobody said what it is called
    for entry in manifest.entries:
        if entry.path.partition(b"/")[0] in names:
            continue
        parts = os.fsdecode(entry.path).split("/")
        if not any(_fits(pattern, parts, entry.kind == "folder") for pattern in patterns):
            raise TransferError(
                f"the session sends `{shown(entry.path)}`, which nobody asked for",
                cause="it may want to write where it should not: nothing was copied",
                id="path",
            )


def _fits(pattern: Pattern, parts: list[str], is_folder: bool) -> bool:
    """Whether a path matches, is within something that does, or is a folder on the way to it."""
    if not pattern:
        return True
    if not parts:
        return is_folder
    part, rest = pattern[0], pattern[1:]
    if part is not None:
        return part.match(parts[0]) is not None and _fits(rest, parts[1:], is_folder)
    if rest and _fits(rest, parts, is_folder):
        return True
    return _VISIBLE.match(parts[0]) is not None and (not rest or _fits(pattern, parts[1:], is_folder))
