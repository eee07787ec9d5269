"""Upload and download: a file, a folder, several things; in the client's process, in the transfer's thread.

Which steps are taken for it is written in `_steps`. The session's machine is not trusted: whatever names it sends,
nothing is written but what was asked for, and nothing outside of the folder that it goes to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import msgspec

from ._errors import RemoterError, TransferError
from ._files import PIECE, FileSink, FileSource, is_wanted
from ._folders import Folder, Unfinished
from ._manifest import (
    MANIFEST,
    Manifest,
    Problems,
    Tree,
    check_asked,
    check_length,
    decode_manifest,
    encode_manifest,
    find,
    split_pattern,
    typed_name,
)
from ._paths import amount, decode_name, decode_path, encode_path, find_target, join, shown, write_error
from ._pieces import MemorySink, MemorySource
from ._plans import Selection, confirm, make_plan, open_target
from ._steps import (
    Asked,
    Chosen,
    Digest,
    FileOffer,
    FilePlace,
    FileRequest,
    Plan,
    Select,
    TreeDone,
    TreeOffer,
    TreePlace,
    TreeRequest,
    as_data,
    as_step,
)
from ._transfer import Forgotten
from ._trees import TreeSink, TreeSource

if TYPE_CHECKING:
    from ._transfer import Carrier

AnyPath = str | os.PathLike[str]
Paths = AnyPath | Iterable[AnyPath]

STARTS_OVER = "starting over: the source changed"


@dataclass(frozen=True)
class Options:
    """How something is copied.

    Attributes:
        overwrite: replace what is there.
        update: replace what differs in size or time, skip what does not.
        resume: go on with what an earlier attempt left; leave something if this one is cut off.
        symlinks: "skip" them in folders, or "keep" those that stay inside.
        compress: True or False; None: as the connection's rate suggests.
    """

    overwrite: bool = False
    update: bool = False
    resume: bool = True
    symlinks: Literal["skip", "keep"] = "skip"
    compress: bool | None = None

    def __post_init__(self) -> None:
        if self.symlinks not in ("skip", "keep"):
            raise ValueError(f'symlinks has to be "skip" or "keep", not {self.symlinks!r}')


@dataclass(frozen=True)
class Copied:
    """What was copied.

    Attributes:
        path: where it is now.
        files: how many files have crossed.
        bytes: how many bytes of them.
        skipped: files that were there already, and the same.
        problems: what did not cross, and why.
        elapsed: seconds.
        links: symbolic links that were left out.
    """

    path: str
    files: int = 0
    bytes: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    elapsed: float = 0.0
    links: int = 0

    def __str__(self) -> str:
        text = f"{shown(self.path)}: {_count(self.files, 'file')}, {amount(self.bytes)}"
        if self.skipped:
            text += f"; {self.skipped:,} skipped"
        if self.links:
            text += f"; {_count(self.links, 'symbolic link')} left out"
        if self.problems:
            text += f"; {_count(len(self.problems), 'problem')}"
        return text

    __repr__ = __str__


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def label_of(path: Paths) -> str:
    """What is copied, for people."""
    paths = _as_list(path)
    return shown(paths[0]) if len(paths) == 1 else f"{len(paths)} things"


def _as_list(path: Paths) -> list[str]:
    """The paths, checked. Raises TypeError, ValueError, TransferError."""
    if isinstance(path, str | bytes | os.PathLike) or not isinstance(path, Iterable):
        return [_as_text(path)]
    paths = [_as_text(each) for each in path]
    if not paths:
        raise ValueError("nothing to copy: the list of paths is empty")
    return paths


def _as_text(path: Any) -> str:
    """One path, checked. Raises TypeError, TransferError."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"a path is a str or a pathlib.Path, not {type(text).__name__}")
    if not text:
        raise TransferError("a path is empty", hints="`.` is the working directory", id="path")
    if "\0" in text:
        raise TransferError(f"`{shown(text)}` is no path", cause="it has a NUL in it", id="path")
    return text


@contextlib.contextmanager
def _hinting(way_on: Callable[[], tuple[str, ...]]) -> Iterator[None]:
    """Add to every error what to do so that it goes on; but of what has changed, nothing that is there helps."""
    try:
        yield
    except RemoterError as error:
        if not isinstance(error, Forgotten) and error.id != "changed":
            error.hints = tuple(dict.fromkeys([*error.hints, *way_on()]))
        raise


class _Copying:
    """One copy, either way.

    Args:
        carrier: takes the steps and carries the streams.
        options: as asked for.
    """

    def __init__(self, carrier: Carrier, options: Options) -> None:
        self.carrier, self.options = carrier, options
        self.is_again = False

    def attempt(self, work: Callable[[], Copied]) -> Copied:
        """Have it done; again if the server was started again meanwhile, and has forgotten all about it."""
        began = time.monotonic()
        while True:
            try:
                copied = work()
            except Forgotten:
                self.carrier.note("going on: the server was started again")
                self.is_again = True
            else:
                self.carrier.note("")
                return dataclasses.replace(copied, elapsed=time.monotonic() - began)

    @property
    def overwrite(self) -> bool:
        """Whether files that are there may be replaced."""
        return self.options.overwrite or self.options.update

    @property
    def skips_same(self) -> bool:
        """Whether a file is left alone that is there and the same; it may be what we have copied just now."""
        return self.options.update or self.is_again

    def step(self, what: str, data: msgspec.Struct, answer: Any) -> Any:
        """Take a step; the answer is of that kind."""
        return as_step(self.carrier.step(what, as_data(data)), answer)

    def release(self) -> None:
        """Nothing will be carried: the server need keep nothing open for us."""
        self.carrier.step("release", {})

    # --- to the session ----------------------------------------------------------------------

    def upload(self, found: FileSource | Tree, to: str | None) -> Copied:
        """Bring that."""
        path = encode_path(to) if to is not None else None
        return self.send_file(found, path) if isinstance(found, FileSource) else self._send_tree(found, path)

    def send_file(self, source: FileSource, to: bytes | None, *, keeps_mode: bool = True) -> Copied:
        """Bring one file, which is called `to` there; with its own permissions, or those of a new file there."""
        with contextlib.closing(source):
            request = FileRequest(
                path=to,
                name=encode_path(source.name),
                size=source.size,
                mtime_ns=source.mtime_ns,
                mode=source.mode if keeps_mode else None,
                is_sparse=source.is_sparse,
                source=shown(source.path),
                overwrite=self.overwrite,
                skip_same=self.skips_same,
                resume=self.options.resume,
            )
            place: FilePlace = self.step("write", request, FilePlace)
            path = decode_path(place.path)
            if place.skip:
                return Copied(path, skipped=1)
            position = self._go_on(source, place)
            with _hinting(self._way_on):
                self.carrier.send(source, transfer=self.carrier.id, compress=self.options.compress)
            return Copied(path, files=1, bytes=source.size - position)

    def _go_on(self, source: FileSource, place: FilePlace) -> int:
        """Where the file goes on: behind what the session has of it, if that is its beginning."""
        position = place.position
        if position:
            self.carrier.note("resuming")
            if position > source.size or source.digest(position, self.carrier.check) != place.digest:
                self.step("select", Select(anew=True), Chosen)
                position = 0
        self.carrier.note(STARTS_OVER if place.starts_over or position != place.position else "")
        return position

    def _send_tree(self, tree: Tree, to: bytes | None) -> Copied:
        manifest = encode_manifest(tree.manifest)
        request = TreeRequest(
            path=to,
            name=encode_path(tree.name),
            manifest=len(manifest),
            source=shown(tree.path),
            origin=tree.origin,
            overwrite=self.overwrite,
            skip_same=self.skips_same or self.options.resume,
            resume=self.options.resume,
            symlinks=self.options.symlinks,
        )
        place: TreePlace = self.step("write", request, TreePlace)
        answer = self.carrier.send(MemorySource([manifest]), transfer=self.carrier.id + MANIFEST)
        plan: Plan = as_step(answer, Plan)
        offsets = confirm(tree, plan.offsets, check=self.carrier.check)
        selection = Selection(tree.manifest, plan.wanted, offsets)
        self.step("select", Select(confirmed=list(offsets)), Chosen)
        self.carrier.total(selection.size, plan.files)
        with _hinting(self._way_on):
            answer = self.carrier.send(
                TreeSource(tree, selection, on_file=self.carrier.file_done),
                transfer=self.carrier.id,
                compress=self.options.compress,
            )
        done: TreeDone = as_step(answer, TreeDone)
        return _copied(decode_path(place.path), tree.manifest, plan, done)

    def _way_on(self) -> tuple[str, ...]:
        return ("copy it again, and it goes on where it was",) if self.options.resume else ()

    # --- from the session --------------------------------------------------------------------

    def ask(self, paths: list[str]) -> FileOffer | TreeOffer:
        """What is there of that."""
        path = [encode_path(each) for each in paths]
        asked = Asked(path=path, symlinks=self.options.symlinks)
        offer: FileOffer | TreeOffer = self.step("read", asked, FileOffer | TreeOffer)
        return offer

    def download(self, paths: list[str], to: str | None) -> Copied:
        """Fetch that."""
        offer = self.ask(paths)
        name, mark = _name_of(offer, paths), Unfinished()
        if isinstance(offer, TreeOffer):
            mark = Unfinished.copy_of(name, offer.origin, decode_path(offer.path))
        folder, name = find_target(to, name, str(Path.cwd()), is_unfinished=mark.is_on)
        if name.startswith(".") and name == decode_path(offer.name) and not typed_name(paths[0]):
            raise TransferError(
                f"`{shown(paths[0])}` is called `{shown(name)}` there, as hidden files are that configure programs",
                hints="say how it is to be called here",
                id="path",
            )
        if isinstance(offer, FileOffer):
            return self._receive_file(offer, folder, name)
        manifest = self._receive_manifest(offer.manifest)
        if not offer.name:
            check_asked(manifest, paths)
        return self._receive_tree(manifest, folder, name, mark, shown(decode_path(offer.path)))

    def _receive_file(self, offer: FileOffer, folder: str, name: str) -> Copied:
        try:
            opened = Folder.open(folder)
        except OSError as error:
            raise write_error(folder, error) from None
        with opened:
            if not is_wanted(
                opened,
                name,
                offer.size,
                offer.mtime_ns,
                overwrite=self.overwrite,
                skip_same=self.skips_same,
            ):
                self.release()
                return Copied(opened.path_of(name), skipped=1)
            sink = FileSink(
                opened.copy(),
                name,
                size=offer.size,
                mtime_ns=offer.mtime_ns,
                mode=offer.mode,
                overwrite=self.overwrite,
                resume=self.options.resume,
                is_sparse=offer.is_sparse,
                source=shown(decode_path(offer.path)),
            )
        with contextlib.closing(sink), _hinting(sink.way_on):
            self._check_part(sink)
            missing = sink.size - sink.position
            if not missing:
                self.release()
            self.carrier.receive(sink, transfer=self.carrier.id, compress=self.options.compress)
        return Copied(sink.path, files=1, bytes=missing)

    def _check_part(self, sink: FileSink) -> None:
        """Whether what is here is the beginning of the file there; else it starts over."""
        if sink.position:
            self.carrier.note("resuming")
            theirs: Digest = self.step("select", Select(have=sink.position), Digest)
            if theirs.digest != sink.digest(self.carrier.check):
                sink.starts_over = True
                sink.restart()
        self.carrier.note(STARTS_OVER if sink.starts_over else "")

    def _receive_tree(
        self, manifest: Manifest, folder: str, name: str, mark: Unfinished, source: str
    ) -> Copied:
        path = join(folder, name)
        there = open_target(folder, name, make=False)
        with contextlib.nullcontext() if there is None else there:
            plan = make_plan(
                there,
                path,
                manifest,
                overwrite=self.overwrite,
                skip_same=self.skips_same or self.options.resume,
                resume=self.options.resume,
            )
        chosen: Chosen = self.step("select", Select(wanted=plan.wanted, offsets=plan.offsets), Chosen)
        offsets = {offset.index: offset.had for offset in plan.offsets if offset.index in chosen.confirmed}
        selection = Selection(manifest, plan.wanted, offsets)
        self.carrier.total(selection.size, plan.files)
        root = open_target(folder, name, make=True, is_whole=manifest.root is not None, mark=mark)
        assert root is not None
        sink = TreeSink(
            root,
            selection,
            overwrite=self.overwrite,
            resume=self.options.resume,
            keeps_links=self.options.symlinks == "keep",
            mark=mark,
            source=source,
            on_file=self.carrier.file_done,
        )
        with _hinting(sink.way_on):
            self.carrier.receive(sink, transfer=self.carrier.id, compress=self.options.compress)
        done = TreeDone(files=sink.files, bytes=sink.bytes, problems=sink.problems.lines())
        return _copied(path, manifest, plan, done)

    def _receive_manifest(self, length: int) -> Manifest:
        check_length(length)
        data = bytearray(length)
        self.carrier.receive(MemorySink([data]), transfer=self.carrier.id + MANIFEST)
        return decode_manifest(data)


def _name_of(offer: FileOffer | TreeOffer, paths: list[str]) -> str:
    """What it is to be called here: as it was asked for, whatever the session says. Empty: several things.

    Raises:
        TransferError: the session sends something else.
    """
    is_several = isinstance(offer, TreeOffer) and not offer.name
    if is_several != (len(paths) > 1 or (is_several and split_pattern(paths[0]) is not None)):
        raise TransferError("the session sends something else than was asked for", id="corrupt")
    if is_several:
        return ""
    return decode_name(typed_name(paths[0]) or offer.name)


def _copied(path: str, manifest: Manifest, plan: Plan, done: TreeDone) -> Copied:
    problems = Problems()
    for lines in (manifest.problems, plan.problems, done.problems):
        problems.extend(lines)
    return Copied(
        path,
        files=done.files,
        bytes=done.bytes,
        skipped=plan.skipped,
        problems=problems.lines(),
        links=manifest.links,
    )


# --- what a session calls --------------------------------------------------------------------


def prepare(
    what: Literal["upload", "download"], path: Paths, to: AnyPath | None, options: Mapping[str, Any]
) -> tuple[str, Callable[[Carrier], Copied]]:
    """What is to be copied, in a word or two, and what does it; nobody is asked before.

    Args:
        what: one of the two below.
        path, to: as they take them.
        options: those of `Options`, by name.

    Raises:
        TypeError, ValueError, TransferError: that cannot be meant.
    """
    known = [field.name for field in dataclasses.fields(Options)]
    for name in options:
        if name not in known:
            takes = "`, `".join([*known, "background", "progress"])
            raise TypeError(f"{what}() has no option `{name}`; it has `{takes}`")
    paths, place = _as_list(path), None if to is None else _as_text(to)
    copy = upload if what == "upload" else download
    return label_of(paths), partial(copy, path=paths, to=place, options=Options(**options))


def upload(carrier: Carrier, path: Paths, to: AnyPath | None, options: Options) -> Copied:
    """Copy a file, a folder, or several things to the session's machine.

    Args:
        carrier: the transfer.
        path: what is here: a path, a pattern, or a list of them.
        to: its place there; relative to the session's working directory, where it goes without one.
        options: as asked for.

    Raises:
        TransferError: it did not cross, and why.
    """
    copying = _Copying(carrier, options)
    paths, place = _as_list(path), None if to is None else _as_text(to)

    def work() -> Copied:
        found = find(paths, str(Path.cwd()), symlinks=options.symlinks, check=carrier.check)
        return copying.upload(found, place)

    return copying.attempt(work)


def download(carrier: Carrier, path: Paths, to: AnyPath | None, options: Options) -> Copied:
    """Copy a file, a folder, what matches a pattern, or several things from the session's machine.

    Args:
        carrier: the transfer.
        path: what is there; relative to the session's working directory.
        to: its place here; without one the working directory.
        options: as asked for.

    Raises:
        TransferError: it did not cross, and why.
    """
    copying = _Copying(carrier, options)
    paths, place = _as_list(path), None if to is None else _as_text(to)
    return copying.attempt(lambda: copying.download(paths, place))


def upload_stream(carrier: Carrier, file: BinaryIO, to: str, options: Options) -> Copied:
    """Copy what an open file or a pipe still has to the session's machine.

    How long a stream is has to be known before it crosses: all but a plain file is written to
    a temporary file first, until its end. What arrives has the mode of a new file, as after `>` in a shell.
    """
    copying = _Copying(carrier, options)
    with _plain_file(file, carrier) as descriptor:

        def work() -> Copied:
            source = FileSource(os.dup(descriptor), "stdin")
            return copying.send_file(source, encode_path(to), keeps_mode=False)

        return copying.attempt(work)


@contextlib.contextmanager
def _plain_file(file: BinaryIO, carrier: Carrier) -> Iterator[int]:
    """The descriptor of a plain file that has what the stream has."""
    if _is_plain(file):
        yield file.fileno()
        return
    with tempfile.TemporaryFile() as spool:
        carrier.note("reading standard input")
        while piece := file.read(PIECE):
            carrier.check()
            spool.write(piece)
        spool.flush()
        carrier.note("")
        yield spool.fileno()


def _is_plain(file: BinaryIO) -> bool:
    """Whether it is a plain file of which nothing was read yet."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.tell() == 0
    except OSError:  # a pipe, or no file of the system's
        return False


class StreamSink:
    """A file that is written to a stream as it arrives."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size, self.position = size, 0
        self._file = file

    def write(self, data: memoryview) -> None:
        """The next bytes."""
        while data:
            count = self._file.write(data)
            self.position += count
            data = data[count:]

    def finish(self) -> dict[str, Any]:
        """All of it has been written."""
        self._file.flush()
        return {}

    def close(self) -> None:
        """The stream is not ours to close."""


def download_stream(carrier: Carrier, path: str, file: BinaryIO, options: Options) -> Copied:
    """Write a file of the session's machine to an open file or a pipe, as it comes.

    Raises:
        TransferError: it is a folder; or it did not cross, and its beginning may have been written.
    """
    copying = _Copying(carrier, options)
    sink: StreamSink | None = None
    stamp: tuple[int, int] | None = None

    def work() -> Copied:
        nonlocal sink, stamp
        offer = copying.ask([path])
        if isinstance(offer, TreeOffer):
            raise TransferError(f"`{shown(path)}` is not one file, and a stream takes no more", id="kind")
        if sink is None:
            sink, stamp = StreamSink(file, offer.size), (offer.size, offer.mtime_ns)
        elif stamp != (offer.size, offer.mtime_ns):  # what was written cannot be taken back
            raise TransferError(f"`{shown(path)}` changed while it was copied", id="changed")
        carrier.receive(sink, transfer=carrier.id, compress=options.compress)
        return Copied(shown(path), files=1, bytes=offer.size)

    return copying.attempt(work)
