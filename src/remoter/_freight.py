"""What a session's machine gives and takes of its files: each step of a copy, as an answer and streams; in the server's process.

Called in a thread, since disks may be slow. What is open belongs to the streams, and is closed with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ._errors import TransferError
from ._files import FileSink, FileSource, is_wanted
from ._folders import Folder, Unfinished
from ._manifest import MANIFEST, Manifest, Tree, check_length, decode_manifest, encode_manifest, find
from ._paths import decode_name, decode_path, encode_path, find_target, join, write_error
from ._pieces import MemorySource, Sink, Source
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
    TreeOffer,
    TreePlace,
    TreeRequest,
    as_data,
    as_step,
)
from ._trees import TreeSink, TreeSource


@dataclass
class Freight:
    """The answer to a step, and the streams that there are from then on.

    Attributes:
        reply: what the client is told.
        streams: sources and sinks by what stands behind the transfer's id in their names.
        choose: does the next step.
    """

    reply: dict[str, Any]
    streams: dict[str, Source | Sink] = field(default_factory=dict)
    choose: Callable[[Select], Freight] | None = None


def offer_path(
    data: dict[str, Any], cwd: Path, root: Path | None, check: Callable[[], object] = lambda: None
) -> Freight:
    """The step `read`: somebody wants a file, a folder, or what matches a pattern.

    Args:
        data: as `Asked`.
        cwd: what relative paths are relative to.
        root: nothing outside of it is looked at; None: whatever the user may.
        check: called now and then, for a search can take long; may raise.

    Raises:
        TransferError: there is no such thing, or it does not cross.
    """
    asked: Asked = as_step(data, Asked)
    paths = [decode_path(path) for path in (asked.path if isinstance(asked.path, list) else [asked.path])]
    top = _real(root)
    found = find([path or "." for path in paths], str(cwd), top, symlinks=asked.symlinks, check=check)
    if isinstance(found, FileSource):
        offer = FileOffer(
            path=encode_path(found.path),
            name=encode_path(found.name),
            size=found.size,
            mtime_ns=found.mtime_ns,
            mode=found.mode,
            is_sparse=found.is_sparse,
        )
        if found.size == 0:
            found.close()  # nobody will ask for its contents
            return Freight(as_data(offer))
        return Freight(as_data(offer), {"": found}, partial(_compare, found))
    manifest = encode_manifest(found.manifest)
    tree = TreeOffer(
        path=encode_path(found.path),
        name=encode_path(found.name),
        files=found.manifest.files,
        size=found.manifest.size,
        manifest=len(manifest),
        origin=found.origin,
    )
    return Freight(as_data(tree), {MANIFEST: MemorySource([manifest])}, partial(_send_tree, found, top))


def select(freight: Freight, data: dict[str, Any]) -> Freight:
    """The step `select`: what is settled after the first one. Raises TransferError."""
    if freight.choose is None:
        raise TransferError("there is nothing to select from", id="corrupt")
    chosen = freight.choose(as_step(data, Select))
    chosen.choose = freight.choose
    return chosen


def accept_path(data: dict[str, Any], cwd: Path, root: Path | None) -> Freight:
    """The step `write`: somebody brings a file or a folder.

    Args:
        data: as `FileRequest` or `TreeRequest`.
        cwd: what relative paths are relative to.
        root: nothing outside of it is touched; None: whatever the user may.

    Raises:
        TransferError: it cannot be written there.
    """
    request: FileRequest | TreeRequest = as_step(data, FileRequest | TreeRequest)
    top = _real(root)
    to = decode_path(request.path) if request.path is not None else None
    if isinstance(request, TreeRequest):
        name = decode_name(request.name) if request.name else ""
        mark = Unfinished.copy_of(name, request.origin, request.source)
        folder, name = find_target(to, name, str(cwd), top, is_unfinished=partial(mark.is_on, root=top))
        place = TreePlace(path=encode_path(join(folder, name)))
        incoming = Incoming(request, folder, name, top, mark)
        return Freight(as_data(place), {MANIFEST: incoming}, incoming.choose)
    folder, name = find_target(to, decode_name(request.name), str(cwd), top)
    return _accept_file(request, folder, name, top)


def _real(root: Path | None) -> str | None:
    return None if root is None else os.path.realpath(root)


# --- files -----------------------------------------------------------------------------------


def _compare(source: FileSource, select: Select) -> Freight:
    """The client has the beginning of a file: does it?"""
    have = select.have or 0
    return Freight(as_data(Digest(digest=source.digest(have) if have <= source.size else b"")))


def _accept_file(request: FileRequest, folder: str, name: str, root: str | None) -> Freight:
    path = encode_path(join(folder, name))
    try:
        opened = Folder.open(folder, root)
    except OSError as error:
        raise write_error(folder, error) from None
    try:
        is_missing = is_wanted(
            opened,
            name,
            request.size,
            request.mtime_ns,
            overwrite=request.overwrite,
            skip_same=request.skip_same,
        )
    except BaseException:
        opened.close()
        raise
    if not is_missing:
        opened.close()
        return Freight(as_data(FilePlace(path=path, skip=True)))
    sink = FileSink(
        opened,
        name,
        size=request.size,
        mtime_ns=request.mtime_ns,
        mode=request.mode,
        overwrite=request.overwrite,
        resume=request.resume,
        is_sparse=request.is_sparse,
        source=request.source,
    )
    try:
        digest = sink.digest() if sink.position else b""
    except BaseException:
        sink.close()
        raise
    place = FilePlace(path=path, position=sink.position, digest=digest, starts_over=sink.starts_over)
    return Freight(as_data(place), {"": sink}, partial(_begin_anew, sink))


def _begin_anew(sink: FileSink, select: Select) -> Freight:
    """What was there is not the beginning of that file."""
    if select.anew:
        sink.restart()
    return Freight(as_data(Chosen(size=sink.size)))


# --- folders ---------------------------------------------------------------------------------


def _send_tree(tree: Tree, root: str | None, select: Select) -> Freight:
    """The client has made its plan."""
    offsets = confirm(tree, select.offsets, root)
    selection = Selection(tree.manifest, select.wanted or b"", offsets)
    chosen = Chosen(size=selection.size, confirmed=list(offsets))
    return Freight(as_data(chosen), {"": TreeSource(tree, selection, root=root)})


class Incoming:
    """The manifest of a folder that comes here, as a sink; and what follows from it.

    Args:
        request: what the client wants.
        folder, name: where the folder will be.
        root: nothing outside of it is touched.
        mark: what the folder is marked with, if it is new, until it is complete.
    """

    def __init__(
        self, request: TreeRequest, folder: str, name: str, root: str | None, mark: Unfinished
    ) -> None:
        check_length(request.manifest)
        self.size, self.position = request.manifest, 0
        self._request, self._folder, self._name, self._root = request, folder, name, root
        self._mark = mark
        self._data = bytearray(self.size)
        self._manifest: Manifest | None = None
        self._plan: Plan | None = None

    def write(self, data: memoryview) -> None:
        """The next bytes."""
        self._data[self.position : self.position + data.nbytes] = data
        self.position += data.nbytes

    def finish(self) -> dict[str, Any]:
        """All of it is there: what of it is wanted?"""
        self._manifest = decode_manifest(self._data)
        there = open_target(self._folder, self._name, self._root, make=False)
        try:
            self._plan = make_plan(
                there,
                join(self._folder, self._name),
                self._manifest,
                overwrite=self._request.overwrite,
                skip_same=self._request.skip_same,
                resume=self._request.resume,
            )
        finally:
            if there is not None:
                there.close()
        return as_data(self._plan)

    def close(self) -> None:
        """The bytes are no longer needed."""
        self._data = bytearray()

    def choose(self, select: Select) -> Freight:
        """The client has confirmed what is here in part. Raises TransferError."""
        if self._manifest is None or self._plan is None:
            raise TransferError("the list of files has not come yet", id="corrupt")
        request, confirmed = self._request, set(select.confirmed or [])
        offsets = {offset.index: offset.had for offset in self._plan.offsets if offset.index in confirmed}
        selection = Selection(self._manifest, self._plan.wanted, offsets)
        root = open_target(
            self._folder,
            self._name,
            self._root,
            make=True,
            is_whole=self._manifest.root is not None,
            mark=self._mark,
        )
        assert root is not None
        sink = TreeSink(
            root,
            selection,
            overwrite=request.overwrite,
            resume=request.resume,
            keeps_links=request.symlinks == "keep",
            mark=self._mark,
            source=request.source,
        )
        return Freight(as_data(Chosen(size=sink.size)), {"": sink})
