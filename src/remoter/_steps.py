"""What the steps hold by which objects, files and folders cross, typed and checked; on both machines.

Paths are bytes: names on Unix need not be text. A file goes so, from the session and to it:

    read: Asked ── FileOffer ── (select: is what I have its beginning? ── Digest) ── stream
    write: FileRequest ── FilePlace ── (select: what you have is not ── Chosen) ── stream

and a folder so, whose manifest has a stream of its own before that of the contents:

    read: Asked ── TreeOffer ── stream of the manifest ── select: wanted ── Chosen ── stream
    write: TreeRequest ── TreePlace ── stream of the manifest ── Plan ── select: confirmed ── Chosen ── stream ── TreeDone
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ._errors import TransferError
from ._folders import Origin

LARGEST = 1 << 62
"""Bytes of a file or folder beyond which somebody lies."""

Size = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Symlinks = Literal["skip", "keep"]


class _Step(msgspec.Struct, kw_only=True):
    """What one end says to the other."""


class Asked(_Step):
    """What somebody wants to have from the session."""

    path: bytes | list[bytes]
    symlinks: Symlinks = "skip"


class FileOffer(_Step, tag="file", tag_field="kind"):
    """It is one file."""

    path: bytes
    name: bytes
    size: Size
    mtime_ns: int
    mode: int
    is_sparse: bool = False


class TreeOffer(_Step, tag="tree", tag_field="kind"):
    """It is a folder; or several things, without a name of their own. `manifest` is the length of that.

    `origin` is a word for the folder that is the same as long as that is the same: for the mark of a copy.
    """

    path: bytes
    name: bytes
    files: int
    size: Size
    manifest: int
    origin: Origin = ""


class FileRequest(_Step, tag="file", tag_field="kind"):
    """A file that is to be put into the session. `source` is where it is here, for who finds a part of it.

    Without a `mode` it gets that of a new file there.
    """

    path: bytes | None
    name: bytes
    size: Size
    mtime_ns: int
    mode: int | None
    is_sparse: bool = False
    source: str = ""
    overwrite: bool = False
    skip_same: bool = False
    resume: bool = True


class TreeRequest(_Step, tag="tree", tag_field="kind"):
    """A folder, or several things, that are to be put into the session; `origin` as in `TreeOffer`."""

    path: bytes | None
    name: bytes
    manifest: int
    source: str = ""
    origin: Origin = ""
    overwrite: bool = False
    skip_same: bool = False
    resume: bool = True
    symlinks: Symlinks = "skip"


class FilePlace(_Step):
    """Where a file will be, and with which digest how much of it is there. `skip`: all of it is."""

    path: bytes
    position: Size = 0
    digest: bytes = b""
    starts_over: bool = False
    skip: bool = False


class TreePlace(_Step):
    """Where a folder will be."""

    path: bytes


class Offset(msgspec.Struct, array_like=True):
    """What an earlier attempt left of a file: the number of its entry, the bytes, their digest."""

    index: int
    had: Size
    digest: bytes


class Plan(_Step):
    """What the receiver wants of a manifest, a bit for each entry, the lowest first; and what it has already."""

    wanted: bytes
    offsets: list[Offset]
    files: int
    skipped: int
    problems: list[str]


class Select(_Step):
    """What is settled after the first step, each with an answer of its own.

    - `have` bytes of a file: their `digest` as the session has them (`Digest`)
    - `anew`: what the session has of a file is not its beginning (`Chosen`)
    - `wanted` of a folder, and `offsets` of what is there in part (`Chosen`)
    - `confirmed`: the numbers of those entries of which the session has the beginning indeed (`Chosen`)
    """

    have: Size | None = None
    anew: bool = False
    wanted: bytes | None = None
    offsets: list[Offset] = []
    confirmed: list[int] | None = None


class Digest(_Step):
    """The XXH3-128 of the beginning of a file; empty if it is shorter."""

    digest: bytes


class Chosen(_Step):
    """The length of the stream, and the numbers of those entries of which only the rest is sent."""

    size: Size
    confirmed: list[int] = []


class TreeDone(_Step):
    """What has arrived of a folder."""

    files: int
    bytes: int
    problems: list[str]


class FileHere(msgspec.Struct):
    """An open file, for the other end on the same machine: which process has it, as which descriptor.

    The object begins after `lead` bytes; `size` counts them too.
    """

    pid: int
    descriptor: int
    device: int
    inode: int
    size: Size
    lead: Size


class ObjectOffer(_Step):
    """An object of the session: what it is, by a tree and the sizes of its buffers; `inline` holds them if they are few.

    With the format `r` there is no tree, but one buffer that R has serialized. `file` is where a client that
    asked for that finds them, each buffer at the next multiple of 64 bytes.
    """

    tree: str
    sizes: list[Size]
    inline: bytes | None = None
    format: Literal["", "r"] = ""
    type: str = ""
    file: FileHere | None = None


class Bound(_Step):
    """An object has arrived in the session under that name; what had it before."""

    name: str
    replaced: str | None = None


class Found(_Step):
    """Whether the session has that name, and which versions of what its interpreter has."""

    found: bool = False
    text: str = ""
    versions: dict[str, str] = {}


STEPS = (
    FileHere,
    ObjectOffer,
    Bound,
    Found,
    Asked,
    FileOffer,
    TreeOffer,
    Select,
    Digest,
    Chosen,
    FileRequest,
    FilePlace,
    TreeRequest,
    TreePlace,
    Plan,
    Offset,
    TreeDone,
)


def as_data(step: msgspec.Struct) -> dict[str, Any]:
    """What is said, as it is sent."""
    data: dict[str, Any] = msgspec.to_builtins(step, builtin_types=(bytes,))
    return data


def as_step(data: Any, kind: Any) -> Any:
    """What the other end said, as one of these; `kind` may be a union.

    Raises:
        TransferError: it is something else.
    """
    try:
        return msgspec.convert(data, kind, builtin_types=(bytes,))  # else text would pass as bytes in base64
    except msgspec.ValidationError as error:
        raise TransferError(
            "what the other end said is not understood", cause=str(error)[:200], id="corrupt"
        ) from None
