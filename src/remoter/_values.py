"""Values as a JSON tree with buffers beside it, and back; on the client and in the user's interpreter.

`pack` makes the two of a value, without a copy of anything large; `Layout` checks all that the
other end says, gives the memory to receive into, and builds the value. What comes from the peer
is hostile: nothing in it is evaluated or looked up by name, and memory is taken only for what fits.

It travels: it runs in any Python from 3.8 on with nothing but the standard library, also where remoter
is not installed, and is then loaded by its path. It is one file because all of it is needed for the
smallest value. Objects of libraries have files of their own, found beside it when such an object or its tag
is met: `_arrays.py` (numpy, scipy, torch, other tensors) and `_frames.py` (pandas, polars, pyarrow). To be
loaded they need nothing of this one: what they use of it is in the `Writer` or `Reader` that they are given.

From top to bottom: words and limits, packing, the layout, builtins, columns, the tables.

What crosses without a pickle, besides the objects of those libraries. Exact types only: a subclass is code.

| value | comes back as |
|---|---|
| None, bool, int, float, complex, str, bytes, bytearray, range, slice, Ellipsis | itself, to the bit |
| list, tuple, set, frozenset, dict, OrderedDict, Counter, deque, defaultdict of a builtin | itself; one that is met twice becomes two |
| date, time, datetime, timedelta, timezone, ZoneInfo, Decimal, Fraction, UUID, paths | itself; a path of another system as a pure one |
| array.array, memoryview | itself; over memory of its own, writable |

Named tuples, enums, dataclasses, functions and all other objects need their class, so a pickle.
Cycles and more than `DEPTH` levels do not cross without one either.
"""

# ruff: noqa: B905 - `zip` has no `strict` before Python 3.10

from __future__ import annotations

import array
import contextlib
import datetime
import decimal
import fractions
import functools
import importlib
import importlib.util
import io
import json
import keyword
import math
import mmap
import operator
import os
import pathlib
import re
import stat
import struct
import sys
import types
import unicodedata
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

try:
    import zoneinfo
except ImportError:  # Python 3.8
    zoneinfo = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEPTH = 200
"""Levels of containers within containers; a cycle has more."""

JSON_DEPTH = 3 * DEPTH + 50  # a dict in a dict costs three brackets
LONGEST_TREE = 64 << 10  # characters; a longer tree is a buffer itself: the control connection stays free
MAPPED = 16 << 20  # bytes from which on a file is mapped, and not read
ALIGNED = 64  # bytes; in a file each buffer begins at a multiple of that, as numpy and Arrow like it
LONGEST_PIECE = 32 << 10  # bytes; shorter data shares one buffer, the heap
MOST_NODES = 20_000_000
MANY = 64  # elements of one kind from which on they go as one column of numbers or of text
TREE_COST = 40  # bytes that a character of the tree may cost when it is built
PLACES = 8  # subscripts that are shown of where something is
TEXT_COST = 80  # bytes of a short text in a list
KEY_COST = 100  # bytes that a place in a set or dict may take
MANY_KEYS = 1000  # of a set or dict that are looked at before they are put into it; that may have one hash
BATCH = 4096  # keys that are put into a set or dict in one step
ATTEMPTS = 5  # to look at a container that another thread changes at the same time
FREE_ENOUGH = 8 << 20  # bytes that are always taken to be free
SHARE = 0.8  # of the free memory that one value may take
PACKAGES = ("numpy", "pandas", "pyarrow", "polars", "scipy", "torch")
ARRAYS = ("numpy", "scipy", "torch")  # packages whose objects `_arrays.py` knows
ARRAY_TAGS = ("ndarray", "scalar", "scalars", "objects", "strings", "masked", "numpy", "sparse", "tensor")
FRAMES = ("pandas", "polars", "pyarrow")  # packages whose objects `_frames.py` knows
FRAME_TAGS = ("pandas", "polars", "arrow")  # what its tags begin with


# --- words -----------------------------------------------------------------------------------


class ValuesError(Exception):
    """A value does not cross: one clean line each of message and cause.

    `kind` is the id of the TransferError that the caller makes of it.
    """

    def __init__(
        self, kind: str, message: str, cause: str | None = None, hints: tuple[str, ...] = ()
    ) -> None:
        message, cause = clean(message, 1000), None if cause is None else clean(cause, 1000)
        super().__init__(message)
        self.kind, self.message, self.cause, self.hints = kind, message, cause, tuple(hints)
        self.path: list[str] = []  # from the culprit up to the whole: "['model']", "[3]"


def clean(text: str, longest: int = 200) -> str:
    """A text from elsewhere in one line: what a terminal would obey is written with backslashes."""
    shown = text[:longest]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown + "..." if len(text) > longest else shown


def _line(error: BaseException) -> str:
    """An error in one line. Its own `__str__` may be anybody's."""
    try:
        text = str(error)
    except Exception:
        text = ""
    name = type(error).__name__
    return clean(f"{name}: {text}" if text else name, 300)


def _house(kind: type) -> tuple[str, str]:
    """Module and name of a class, asked past its metaclass: nothing of the user's runs."""
    names = []
    for attribute in ("__module__", "__qualname__"):
        try:
            name = type.__dict__[attribute].__get__(kind)
        except AttributeError:  # made where there is no `__name__`
            name = None
        names.append(clean(name, 100) if type(name) is str else "?")
    return names[0], names[1]


def named(kind: type) -> str:
    module, name = _house(kind)
    return f"`{name}`" if module in ("builtins", "?") else f"`{name}` ({module})"


def _is_found(kind: type) -> bool:
    """Whether a class is where it says; anybody's may say that it is pandas'."""
    module, name = _house(kind)
    return getattr(sys.modules.get(module), "__dict__", {}).get(name) is kind


def find_numpy() -> Any:
    """numpy if it was imported here, or None. Half of it may be there, while another thread imports it: that
    is waited for. And anything may have been put in its place.
    """
    if sys.modules.get("numpy") is None:
        return None
    try:
        numpy = importlib.import_module("numpy")
    except Exception:  # the other thread failed
        return None
    names = vars(numpy) if isinstance(numpy, types.ModuleType) else {}
    return numpy if {"empty", "generic", "ndarray", "uint8"} <= set(names) else None


def size_in_words(size: float) -> str:
    """48 bytes, 1.2 MB."""
    if size < 1000:
        return f"{size:.0f} bytes" if size != 1 else "1 byte"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        size /= 1000
        if size < 999.95 or unit == "PB":
            break
    return f"{size:.1f} {unit}"


def describe(value: Any) -> str:
    """What it is, in a few words: "DataFrame 3x2". Cheap, and calls nothing that is not of a known library."""
    kind = type(value)
    module, name = _house(kind)
    root = module.partition(".")[0]
    if kind in _SIZED:
        return f"{name} of {len(value)}"
    if root in FRAMES and _is_found(kind):
        return _beside("_frames").describe(value) or name
    if root in ARRAYS and find_numpy() is not None:
        return _beside("_arrays").describe(value, root) or name
    return name


def check_name(name: Any) -> str:
    """The name as Python itself would read it. Raises ValuesError if it is none that a variable may have."""
    text = unicodedata.normalize("NFKC", name) if type(name) is str else ""
    if not text.isidentifier() or keyword.iskeyword(text):
        shown = clean(name, 80) if type(name) is str else type(name).__name__
        raise ValuesError(
            "name", f"`{shown}` cannot be the name of a variable", hints=("letters, digits and `_`",)
        )
    if text.startswith("__") and text.endswith("__"):
        raise ValuesError("name", f"`{text}` belongs to Python itself")
    return text


@functools.lru_cache(maxsize=None)  # noqa: UP033 - Python 3.8
def _installed(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except Exception:  # not there, or its metadata is broken
        return None


def versions() -> dict[str, str]:
    """Python and the libraries that are installed; nothing is imported for that."""
    found = {package: _installed(package) for package in PACKAGES}
    python = "{}.{}.{}".format(*sys.version_info)
    return {"python": python, **{package: version for package, version in found.items() if version}}


def free_memory() -> int | None:
    """Bytes that can still be had here, by the machine and by our control group; None where nobody says."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        with open("/proc/self/cgroup", encoding="utf-8") as lines:  # noqa: PTH123
            group = "/sys/fs/cgroup" + lines.read().split("::", 1)[1].strip()
        numbers = [pathlib.Path(group, "memory." + name).read_text() for name in ("max", "current", "stat")]
        cached = re.findall(r"^inactive_file (\d+)$", numbers[2], re.MULTILINE)
        found.append(int(numbers[0]) - int(numbers[1]) + int(cached[0]))
    return max(0, min(found)) if found else None


def afford(size: int, what: str) -> None:
    """Refuse what would not fit into memory: Linux would grant it, and kill somebody later."""
    free = free_memory() if size > FREE_ENOUGH else None  # to ask costs more than a small value
    if free is not None and size > free * SHARE:
        raise ValuesError(
            "memory",
            f"{what} needs `{size_in_words(size)}` of memory here",
            cause=f"{size_in_words(free)} are free",
        )


def places(sizes: list[int]) -> tuple[list[int], int]:
    """Where buffers of those sizes begin in a file that is to be mapped, and where the last one ends."""
    starts, end = [], 0
    for size in sizes:
        starts.append(-(-end // ALIGNED) * ALIGNED)
        end = starts[-1] + size
    return starts, end


def open_memory(pid: int, descriptor: int, device: int, inode: int, size: int) -> memoryview:
    """An open file of another process of this user, as writable memory that is ours alone.

    It has no name any more and is just the one that is meant: process numbers mean nothing across
    containers. Short ones are copied, for where Python cannot help it each mapping keeps a descriptor.

    Raises:
        OSError, ValueError: it is another one, or cannot be seen from here.
    """
    path = f"/proc/{pid}/fd/{descriptor}"
    ours = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(ours)
        is_meant = (status.st_dev, status.st_ino, status.st_size) == (device, inode, size)
        if (
            not is_meant
            or not stat.S_ISREG(status.st_mode)
            or status.st_uid != os.geteuid()
            or status.st_nlink
        ):
            raise OSError("that is another file")
        if size >= MAPPED:
            how = {"trackfd": False} if sys.version_info >= (3, 13) else {}
            return memoryview(
                mmap.mmap(ours, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, **how)
            )
        memory = _make_memory(size)[1]
        done = 0
        while done < size:
            got = os.preadv(ours, [memory[done:]], done)
            if not got:
                raise OSError("it is shorter than it was")
            done += got
        return memory
    finally:
        os.close(ours)


def allocate(size: int) -> memoryview:
    """Writable memory for bytes that are to come. Raises ValuesError: there is not as much."""
    afford(size, "what comes")
    return _make_memory(size)[1]


@functools.lru_cache(maxsize=None)  # noqa: UP033 - Python 3.8
def _beside(name: str) -> Any:
    """A module that stands beside us, whether we are part of a package or were loaded by path."""
    if __package__:
        return importlib.import_module("." + name, __package__)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")  # noqa: PTH100, PTH118, PTH120
    spec = importlib.util.spec_from_file_location(__name__ + name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _refuse_unsafe(what: str, hints: tuple[str, ...] = ()) -> NoReturn:
    message = f"{what} crosses only as a pickle, and opening a pickle runs code that the session chose"
    raise ValuesError("unsafe", message, hints=hints)


@contextlib.contextmanager
def blaming(kind: str, message: str) -> Iterator[None]:
    """Whatever goes wrong within is a ValuesError."""
    try:
        yield
    except ValuesError:
        raise
    except MemoryError as error:
        raise ValuesError("memory", "there is not enough memory here", cause=_line(error)) from None
    except Exception as error:
        raise ValuesError(kind, message, cause=_line(error)) from None


# --- packing ---------------------------------------------------------------------------------
#
# A node is JSON: null, true, numbers and strings stand for themselves, a list is a list of nodes,
# all else is an object with one member, {tag: content}. Data in a content is a number: that of a
# buffer; or [offset, size]: a piece of the heap, the one buffer that all short data shares.
# Around the root stands the envelope: {"value": node} or {"pickle": [body, buffers], "type": name},
# with "heap" if there is one; or {"tree": number, ...}: an envelope too long for here is that buffer.


class Packed(NamedTuple):
    """A value on its way: `tree` (ASCII) first, then the bytes of the `buffers`, one after the other."""

    tree: str
    buffers: list[memoryview]
    type: str
    text: str
    is_pickle: bool


def pack(value: Any, *, pickle: Callable[..., bytes] | None = None) -> Packed:
    """Make tree and buffers of a value. The buffers are views: it must not change before they were sent.

    Args:
        value: anything.
        pickle: how to pickle what does not cross otherwise: called as `pickle(value, protocol=5,
            buffer_callback=...)`, such as `cloudpickle.dumps`. Left out, that is refused.

    Raises:
        ValuesError: it does not cross; "unsafe" if a pickle would carry it.
    """
    name = _house(type(value))[1]
    try:
        with blaming("kind", f"{named(type(value))} does not cross"):
            writer = Writer()
            try:
                tree, buffers = writer.finish({"value": writer.node(value)}, name)
            except RecursionError:  # the caller was deep already
                writer.refuse_depth()
            is_pickle = False
    except ValuesError as error:
        if pickle is None or error.kind != "unsafe":
            _add_place(error)
            raise
        writer = Writer()
        tree, buffers = writer.finish({"pickle": _pickled(value, pickle, writer), "type": name}, name)
        is_pickle = True
    text = describe(value)
    if type(value) not in _SCALARS:
        text += ", " + size_in_words(sum(map(len, buffers)) or len(tree))
    return Packed(tree, buffers, name, text, is_pickle)


def _add_place(error: ValuesError) -> None:
    """Say where in the value the part is that does not cross."""
    if error.path:
        shown = "".join(error.path[: -PLACES - 1 : -1]) + ("..." if len(error.path) > PLACES else "")
        place = f"it is in `{shown}`"
        error.cause = place if error.cause is None else f"{error.cause}; {place}"


def _subscript(key: Any) -> str:
    """A key or an index as one would write it."""
    plain = type(key) in (str, int, float, bool, type(None)) and not (type(key) is int and abs(key) >> 64)
    return f"[{clean(repr(key), 60)}]" if plain else "[...]"


def pickle_body(packed: Packed) -> memoryview:
    """The pickle itself, without the buffers beside it; empty if the tree is too long to say where it is."""
    envelope: dict[str, Any] = json.loads(packed.tree)
    if "pickle" not in envelope or "tree" in envelope:
        return memoryview(b"")
    body = envelope["pickle"][0]
    if type(body) is not list:
        return memoryview(packed.buffers[body])
    offset, size = body
    return memoryview(packed.buffers[envelope["heap"]])[offset : offset + size]


def _pickled(value: Any, pickle: Callable[..., bytes], writer: Writer) -> list[Any]:
    """Body and buffers of a pickle; what is large and contiguous in it is not copied."""
    pieces: list[memoryview] = []

    def take(buffer: Any) -> bool:
        try:
            pieces.append(buffer.raw())
        except BufferError:  # not contiguous: in the body, then
            return True
        return False

    try:
        body = pickle(value, protocol=5, buffer_callback=take)
    except MemoryError:
        raise ValuesError("memory", "there is not enough memory to pickle it") from None
    except Exception as error:
        message = f"{named(type(value))} does not cross: it cannot be pickled"
        raise ValuesError("kind", message, cause=_line(error)) from None
    return [writer.data(body), [writer.data(piece) for piece in pieces]]


class Writer:
    """Makes nodes of values, and collects the buffers beside them."""

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self._heap = bytearray()
        self._depth = 0
        self._nodes = 0

    def node(self, value: Any) -> Any:
        """The value as a node. Raises ValuesError for what is not safe."""
        encode = _ENCODERS.get(type(value), _encode_object)
        return encode(value, self)

    def nodes(self, values: list[Any]) -> Any:
        """A list that is ours, to change, as a node: one column where all is of one kind."""
        if len(values) >= MANY:
            kinds = set(map(type, values))
            column = _COLUMNS.get(kinds.pop(), _encode_foreign)(values, self) if len(kinds) == 1 else None
            if column is not None:
                return column
        self.enter(len(values))
        encoders, index = _ENCODERS, 0
        try:
            for index, value in enumerate(values):  # as flat as can be: the stack has to hold for all levels
                values[index] = encoders.get(type(value), _encode_object)(value, self)
        except ValuesError as error:
            error.path.append(f"[{index}]")
            raise
        self.leave()
        return values

    def data(self, view: Any) -> Any:
        """Bytes beside the tree, as they stand in it. Long ones are not copied: they must stay as they are."""
        view = memoryview(view)
        if view.nbytes <= LONGEST_PIECE:
            offset = len(self._heap)
            self._heap += view
            return [offset, view.nbytes]
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        self.buffers.append(view)
        return len(self.buffers) - 1

    def enter(self, objects: int) -> None:
        """One level deeper, where so many objects are."""
        self._depth += 1
        self._nodes += objects
        if self._depth > DEPTH or self._nodes > MOST_NODES:
            self.refuse_depth()

    def leave(self) -> None:
        """Up again."""
        self._depth -= 1

    def afford(self, size: int, what: str) -> None:
        """Packing takes a copy of that many bytes. Raises ValuesError where they are not free."""
        afford(size, what)

    def refuse(
        self, kind: str, message: str, cause: str | None = None, hints: tuple[str, ...] = ()
    ) -> NoReturn:
        """The value does not cross, for a reason of its own."""
        raise ValuesError(kind, message, cause, hints)

    def refuse_unsafe(self, what: str) -> NoReturn:
        """The value crosses only if pickles are allowed."""
        _refuse_unsafe(what)

    def refuse_depth(self) -> NoReturn:
        """The value is too large for a tree."""
        if self._nodes > MOST_NODES:
            hints = ("put the numbers or texts into an array or a data frame",)
            _refuse_unsafe(f"a value that holds more than `{MOST_NODES}` objects", hints)
        _refuse_unsafe(f"a value that holds itself, or is nested more than `{DEPTH}` levels deep,")

    def finish(self, envelope: dict[str, Any], name: str) -> tuple[str, list[memoryview]]:
        """The tree as text, and all buffers."""
        if self._heap:
            envelope["heap"] = len(self.buffers)
            self.buffers.append(memoryview(self._heap))
        tree = _to_json(envelope)
        if len(tree) > LONGEST_TREE:
            outer = {"tree": len(self.buffers), "pickle": "pickle" in envelope, "type": name}
            self.buffers.append(memoryview(tree.encode("ascii")))
            tree = _to_json(outer)
        return tree, self.buffers


_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


# --- the layout: what is to come, checked ----------------------------------------------------


class Facts(NamedTuple):
    """What checking a node has shown. `dtype` of a list: the one kind of its elements, if known."""

    type: str
    length: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()


class Layout:
    """What a peer says that it will send; wrong if it can be seen to be wrong.

    Make one, receive into what `allocate` gives, then `build`. It serves once.

    Args:
        tree: from the peer.
        sizes: of the buffers, in bytes; from the peer.

    Attributes:
        type: what it says it is ("ndarray"); of a pickle or a long tree, in the peer's words.
        is_pickle: `build` runs code that the peer chose.
        total: bytes to receive.
    """

    def __init__(self, tree: str, sizes: list[int]) -> None:
        with blaming("corrupt", _DAMAGED):
            if len(tree) > LONGEST_TREE:
                _refuse("the tree is too long")
            for size in sizes:
                if type(size) is not int or not 0 <= size < 1 << 62:
                    _refuse("a buffer has no possible size")
            self.total = sum(sizes)
            self._reader = Reader(sizes)
            self._tree_buffer: int | None = None
            self._into: Any = None
            self._is_direct = False
            envelope = _parse(tree)
            if "tree" in envelope:
                self._tree_buffer = self._reader.own(envelope["tree"])
                self.is_pickle = bool(envelope["pickle"])
                self.type = clean(str(envelope["type"]), 80)
            else:
                self._open(envelope)

    def _open(self, envelope: dict[str, Any]) -> None:
        reader = self._reader
        if "heap" in envelope:
            reader.heap = reader.own(envelope["heap"])
        self.is_pickle = "pickle" in envelope
        if self.is_pickle:
            body, buffers = self._node = envelope["pickle"]
            for data in [body, *buffers]:
                reader.check_data(data)
            self.type = clean(str(envelope["type"]), 80)
        else:
            self._node = envelope["value"]
            self.type = reader.check(self._node).type
        reader.check_rest()

    def allocate(self, into: Any = None) -> list[memoryview]:
        """Writable views of the exact sizes, to receive into, one after the other. `build` releases them.

        Args:
            into: a numpy array of the right dtype and shape, or a writable buffer for bytes, to
                be filled and to be what `build` returns.
        """
        reader = self._reader
        with blaming("corrupt", _DAMAGED):
            if into is not None:
                self._into, self._is_direct = into, self._aim(into)
            need = self.total + reader.extra
            if self._tree_buffer is not None:
                need += TREE_COST * reader.sizes[self._tree_buffer]
            afford(need, "what comes")
            reader.views = []
            for number, size in enumerate(reader.sizes):
                reader.owners[number], view = reader.makers.get(number, _make_memory)(size)
                reader.views.append(view)
        return reader.views

    @property
    def end(self) -> int:
        """Bytes of a file that `adopt` takes."""
        return places(self._reader.sizes)[1]

    def adopt(self, memory: memoryview, into: Any = None) -> None:
        """Take the buffers where they stand already, in place of `allocate` and receiving.

        Args:
            memory: writable, ours alone, with the buffers at the `places` of their sizes.
            into: as in `allocate`; then they are copied.
        """
        reader = self._reader
        starts, end = places(reader.sizes)
        if len(memory) != end:
            _refuse("there are more or fewer bytes than it says")
        found = [memory[start : start + size] for start, size in zip(starts, reader.sizes)]
        if into is not None:
            for view, here in zip(self.allocate(into), found):
                view[:] = here
            return
        with blaming("corrupt", _DAMAGED):
            afford(reader.extra, "what comes")
            reader.views = found
            reader.owners = dict(enumerate(found))
            reader.is_late = True

    def _aim(self, into: Any) -> bool:
        """Check that what comes fits; True if it comes as one buffer, which can be the caller's own memory."""
        reader, arrays = self._reader, _beside("_arrays")
        is_array = arrays.is_array(into)
        tag, content = "", cast("Any", None)
        if self._tree_buffer is None and not self.is_pickle and type(self._node) is dict:
            ((tag, content),) = self._node.items()
        if tag == "ndarray" and is_array:
            data, view = content[3], arrays.room_in(into, content, reader)
        elif tag in ("bytes", "bytearray") and not is_array:
            data = content
            with blaming("kind", f"{named(type(into))} is no buffer that can be filled"):
                view = memoryview(into).cast("B")
            if view.readonly or len(view) != reader.size_of(data):
                size = size_in_words(reader.size_of(data))
                raise ValuesError("kind", f"`into` has to be writable and as long as what comes: `{size}`")
        else:
            raise ValuesError(
                "kind", f"`into` is filled with an array or with bytes; what comes is `{self.type}`"
            )
        if view is None or type(data) is list:
            return False
        reader.makers[data] = lambda size: (into, view)
        reader.extra -= len(view)
        return True

    def build(self, *, allow_pickle: bool = False) -> Any:
        """The value, once the buffers are full.

        Args:
            allow_pickle: open a pickle: run what the peer chose.
        """
        reader = self._reader
        try:
            if self._tree_buffer is not None:
                with blaming("corrupt", _DAMAGED):
                    reader.is_late = True
                    self._open(_parse(str(reader.view(self._tree_buffer), "ascii")))
                afford(reader.extra, "what came")
            if self.is_pickle:
                return self._unpickle(allow_pickle)
            if self._is_direct:
                return self._into
            with blaming("corrupt", f"the {self.type} that came is damaged, or is not what it says"):
                return self._fill(reader.build(self._node))
        finally:
            for view in reader.views:
                _release(view)

    def _fill(self, value: Any) -> Any:
        into = self._into
        if into is None:
            return value
        if _beside("_arrays").is_array(into):
            into[...] = value
        else:
            memoryview(into).cast("B")[:] = value
        return into

    def _unpickle(self, allow_pickle: bool) -> Any:
        if not allow_pickle:
            raise ValuesError(
                "unsafe",
                f"`{self.type}` came as a pickle, and opening a pickle runs code that the peer chose",
            )
        import pickle

        body, buffers = self._node
        with blaming("versions", f"`{self.type}` came, but its pickle cannot be opened here"):
            return pickle.loads(  # noqa: S301 - the user trusts the peer
                self._reader.data(body), buffers=[self._reader.data(data) for data in buffers]
            )


_DAMAGED = "what the other end says of the value makes no sense"


def _refuse(message: str, cause: str | None = None) -> NoReturn:
    raise ValuesError("corrupt", _DAMAGED, cause=message if cause is None else f"{message}: {cause}")


def _parse(tree: str) -> dict[str, Any]:
    """The envelope. Depth and numbers are looked at before the parser does: it recurses, and `int` is quadratic."""
    outside = tree.replace("\\\\", "").replace('\\"', "").split('"')[::2]  # of strings
    bare = "".join(outside).encode("ascii")
    steps = map(_STEPS.__getitem__, bare.translate(None, _NO_BRACKETS))
    if max(accumulate(steps), default=0) > JSON_DEPTH or re.search(rb"\d{30}", bare):
        _refuse("the tree is too deep, or has too long numbers")
    envelope = json.loads(tree, parse_constant=_refuse)
    if type(envelope) is not dict:
        _refuse("there is no envelope")
    return envelope


_STEPS = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]
_NO_BRACKETS = bytes(byte for byte in range(256) if _STEPS[byte] == 0)


def _make_memory(size: int) -> tuple[Any, memoryview]:
    """Memory for anything; numpy gives it without writing to it first."""
    numpy = find_numpy()
    owner = bytearray(size) if numpy is None else numpy.empty(size, numpy.uint8)
    return owner, memoryview(owner)


def _make_bytes(size: int) -> tuple[io.BytesIO, memoryview]:
    """Memory that becomes a `bytes` without a copy: BytesIO gives its own away when nobody else looks at it."""
    owner = io.BytesIO()
    owner.seek(size - 1)
    owner.write(b"\0")
    return owner, owner.getbuffer()


def _release(view: memoryview) -> None:
    """Let go of memory, so that its owner can grow it or give it away; unless somebody else looks at it still."""
    with contextlib.suppress(BufferError):
        view.release()


class Reader:
    """Checks nodes, sees that each byte is spoken for once, then makes values of them."""

    facts = Facts  # for those who cannot import it

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.heap: int | None = None
        self.makers: dict[int, Callable[[int], tuple[Any, memoryview]]] = {}
        self.owners: dict[int, Any] = {}
        self.views: list[memoryview] = []
        self.is_late = False  # memory was there before the tree was read, so that is plain memory
        self.extra = 0  # bytes that building takes beyond the buffers
        self._pieces: list[tuple[int, int]] = []
        self._claimed: set[int] = set()

    # While checking.

    def check(self, node: Any) -> Facts:
        """Check a node and all below it."""
        kind = type(node)
        if kind is list:
            kinds = set(map(type, node))
            if not kinds.isdisjoint(_BRANCHES):
                for inner in node:
                    if type(inner) is dict:
                        _codec_of(inner)[0](*inner.values(), self)
                    elif type(inner) is list:
                        self.check(inner)
            return Facts("list", len(node), kinds.pop().__name__ if len(kinds) == 1 else "", (len(node),))
        if kind is dict:
            facts: Facts = _codec_of(node)[0](*node.values(), self)
            return facts
        return _LEAVES[kind]

    def check_data(
        self, data: Any, size: int | None = None, make: Callable[[int], tuple[Any, memoryview]] = _make_memory
    ) -> int:
        """Claim data: its size, which has to be `size`. `make` gives the memory to receive it into."""
        if type(data) is list:
            offset, found = map(self.length, data)
            self._pieces.append((offset, found))
        else:
            found = self.sizes[self.own(data)]
            self.makers[data] = make
        if size is not None and found != size:
            _refuse(f"there are {found} bytes for {size}")
        return found

    def own(self, number: Any) -> int:
        """Claim a buffer."""
        if self.length(number) >= len(self.sizes) or number in self._claimed:
            _refuse("a buffer is missing, or stands for two things")
        self._claimed.add(number)
        return int(number)

    def check_rest(self) -> None:
        """After all nodes: nothing is left over, nothing overlaps."""
        end = 0
        for offset, size in sorted(self._pieces):
            if offset != end:
                _refuse("the heap is torn")
            end += size
        if len(self._claimed) != len(self.sizes) or end != (
            0 if self.heap is None else self.sizes[self.heap]
        ):
            _refuse("there is more data than anything needs")

    def charge(self, size: int) -> None:
        """Building takes that many bytes beyond the buffers."""
        self.extra += size

    def length(self, value: Any) -> int:
        """A number from the peer that has to be a size."""
        if type(value) is not int or not 0 <= value < 1 << 63:
            _refuse("a number is no size")
        return value

    def need(self, name: str, hints: tuple[str, ...] = ()) -> Any:
        """A library of this side."""
        try:
            module = importlib.import_module(name)
            if name == "numpy" and find_numpy() is None:
                raise ImportError("what goes by that name is something else")
            return module
        except Exception as error:
            message = f"`{name}` is needed to open what comes, and is not there"
            raise ValuesError("versions", message, cause=_line(error), hints=hints) from None

    def check_keys(self, keys: list[Any]) -> None:
        """Refuse the labels of an index, to look up which would take for ever; some may be no keys at all."""
        try:
            _check_keys(keys)
        except TypeError:
            _check_keys(list(filter(_is_hashable, keys)))

    def refuse(self, message: str, cause: str | None = None) -> NoReturn:
        """What the peer says makes no sense."""
        _refuse(message, cause)

    def fail(
        self, kind: str, message: str, cause: str | None = None, hints: tuple[str, ...] = ()
    ) -> NoReturn:
        """It makes sense, and cannot be opened here all the same."""
        raise ValuesError(kind, message, cause, hints)

    # While building.

    def build(self, node: Any) -> Any:
        """The value of a node that was checked."""
        if type(node) is dict:
            return _codec_of(node)[1](*node.values(), self)
        if type(node) is list and not _BRANCHES.isdisjoint(map(type, node)):
            for index, inner in enumerate(node):
                if type(inner) is dict:
                    node[index] = _codec_of(inner)[1](*inner.values(), self)
                elif type(inner) is list:
                    self.build(inner)
        return node

    def view(self, data: Any) -> memoryview:
        """The bytes of data, to look at."""
        if type(data) is list:
            heap = memoryview(b"") if self.heap is None else self.views[self.heap]
            return heap[data[0] : data[0] + data[1]]
        return self.views[int(data)]

    def data(self, data: Any) -> memoryview:
        """The bytes of data in writable memory that belongs to whoever holds the view."""
        if type(data) is list:
            return memoryview(bytearray(self.view(data)))
        return memoryview(self.owners[data])

    def bytes(self, data: Any) -> bytes:
        """The bytes of data as `bytes`; not copied if they were asked for so."""
        owner = None if type(data) is list else self.owners[data]
        if type(owner) is not io.BytesIO:
            return bytes(self.view(data))
        _release(self.views[data])
        return owner.getvalue()

    def size_of(self, data: Any) -> int:
        """Bytes of data."""
        return int(data[1]) if type(data) is list else self.sizes[data]


_BRANCHES = {list, dict}
_LEAVES = {kind: Facts(kind.__name__) for kind in (type(None), bool, int, float, str)}


def _codec_of(node: dict[str, Any]) -> Any:
    if len(node) != 1:
        _refuse("a node has no tag")
    (tag,) = node
    codec = _CODECS.get(tag)
    if codec is None and tag in ARRAY_TAGS:
        codec = _beside("_arrays").decoders[tag]
    elif codec is None and tag.partition(".")[0] in FRAME_TAGS:
        codec = _beside("_frames").decoders.get(tag)
    if codec is None:
        _refuse(f"`{clean(tag, 40)}` is not known here")
    return codec


# --- builtins --------------------------------------------------------------------------------


class _Parts:
    """A value that is made by calling something with a few parts, each of which is a node.

    Args:
        kind: its type, whose name is the tag.
        take: the parts of a value: a function, or the names of its attributes.
        make: the value of its parts.
        types: what each part may be, "any" anything; a peer's `set(range(10**12))` must not be.
    """

    def __init__(
        self, kind: type, take: str | Callable[[Any], Any], make: Callable[..., Any], types: str
    ) -> None:
        self.kind, self.tag, self.make = kind, kind.__name__, make
        self.take = operator.attrgetter(*take.split()) if isinstance(take, str) else take
        self.types = [set(choice.split("|")) for choice in types.split()]
        self.is_hashed = issubclass(kind, (set, frozenset, dict))

    def encode(self, value: Any, writer: Writer) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                parts = self.take(value)
                break
            except RuntimeError as error:  # another thread changed it
                if attempt == ATTEMPTS - 1:
                    message = f"{named(self.kind)} was changed while it was packed"
                    raise ValuesError("changed", message, cause=_line(error)) from None
        content: list[Any] = []
        try:
            for part, choice in zip(parts, self.types):  # what has to be a list is a list of ours
                content.append(writer.nodes(part) if "list" in choice else writer.node(part))
        except ValuesError as error:
            self._place(error, parts, len(content))
            raise
        return {self.tag: content}

    def _place(self, error: ValuesError, parts: Any, number: int) -> None:
        """Turn the place in a list of parts, which stands last in the path, into one in the value."""
        if not error.path or "list" not in self.types[number] or self.kind in (set, frozenset):
            error.path.clear()
        elif issubclass(self.kind, dict):
            if number != len(parts) - 1:  # it is in a key
                error.path.clear()
            else:
                error.path[-1] = _subscript(parts[-2][int(error.path[-1][1:-1])])

    def check(self, content: Any, reader: Reader) -> Facts:
        if type(content) is not list or len(content) != len(self.types):
            _refuse(f"a {self.tag} has other parts")
        length = 0
        for node, choice in zip(content, self.types):
            facts = reader.check(node)
            if facts.type not in choice and "any" not in choice:
                _refuse(f"a {self.tag} is not made of a {facts.type}")
            length = facts.length
        if self.is_hashed:
            reader.charge(KEY_COST * length)
        return Facts(self.tag, length)

    def build(self, content: Any, reader: Reader) -> Any:
        return self.make(*map(reader.build, content))


def _columns_of(value: Any) -> tuple[list[Any], list[Any]]:
    """Keys and values: two lists, which are columns where all is of one kind."""
    if type(value) is OrderedDict:  # its order is not that of the dict below it
        pairs = list(value.items())
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    items = dict.copy(value)  # in one step: nobody comes between
    return list(items), list(items.values())


def _make_defaultdict(factory: str | None, keys: list[Any], values: list[Any]) -> Any:
    return defaultdict(_FACTORIES[factory], _make_dict(keys, values))


# The hashes of numbers, and so of tuples of them, are no secret: a peer could choose many of one hash, for
# which a set takes a time that grows with their square, in one step of C that nothing interrupts. So no
# more than a few may have one hash, and they are put into it batch by batch.


def _check_keys(keys: list[Any]) -> None:
    """Refuse many different keys of one hash."""
    kinds = set(map(type, keys)) if len(keys) > MANY_KEYS else set()
    if kinds <= {str, bytes, float}:  # hashed with a secret; of floats, a few hundred can have the same
        return
    if kinds == {int} and min(keys) >= -(1 << 63) and max(keys) < 1 << 63:  # of these, nine
        return
    counts: Counter[int] = Counter()
    for start in range(0, len(keys), BATCH):
        counts.update(map(hash, keys[start : start + BATCH]))
    different: dict[int, list[Any]] = {number: [] for number, count in counts.items() if count > MANY_KEYS}
    for key in keys if different else ():  # labels of an index may be equal
        found = different.get(hash(key))
        if found is not None and key not in found:
            found.append(key)
            if len(found) > MANY_KEYS:
                _refuse("too many keys have the same hash")


def _is_hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _make_set(keys: list[Any]) -> set[Any]:
    if len(keys) <= MANY_KEYS:
        return set(keys)
    _check_keys(keys)
    made: set[Any] = set()
    for start in range(0, len(keys), BATCH):
        made.update(keys[start : start + BATCH])
    return made


def _make_dict(keys: list[Any], values: list[Any], kind: Callable[..., dict[Any, Any]] = dict) -> Any:
    if len(keys) != len(values):
        _refuse("there are more keys than values, or fewer")
    if len(keys) <= MANY_KEYS:
        return kind(zip(keys, values))
    _check_keys(keys)
    made = kind()
    for start in range(0, len(keys), BATCH):
        made.update(zip(keys[start : start + BATCH], values[start : start + BATCH]))
    return made


def _take_defaultdict(value: Any) -> tuple[Any, ...]:
    names = [name for name, factory in _FACTORIES.items() if factory is value.default_factory]
    if not names:
        _refuse_unsafe("a `defaultdict` of no builtin type")
    return (names[0], *_columns_of(value))


def _take_timezone(value: datetime.timezone) -> tuple[Any, ...]:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    return offset, name[0] if name else None


def _make_timezone(offset: datetime.timedelta, name: str | None) -> datetime.timezone:
    return datetime.timezone(offset) if name is None else datetime.timezone(offset, name)


def _take_zone(value: Any) -> tuple[Any, ...]:
    if value.key is None:
        raise ValuesError("kind", "a `ZoneInfo` without a name does not cross")
    return (value.key,)


def _make_zone(key: str) -> Any:
    with blaming("versions", f"the time zone `{clean(key, 80)}` is not known here"):
        if not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", key):
            raise ValueError("it is no name of one")
        return zoneinfo.ZoneInfo(key)


_FACTORIES: dict[str | None, Any] = {
    None: None,
    **{kind.__name__: kind for kind in (list, dict, set, int, float, str, bytes, bool, tuple, complex)},
}
_POSIX, _WINDOWS = pathlib.PosixPath, pathlib.WindowsPath  # a path of the other system comes as a pure one
_HERE = (pathlib.PurePosixPath, _WINDOWS) if os.name == "nt" else (_POSIX, pathlib.PureWindowsPath)
_DATE, _CLOCK, _ZONE = (
    "year month day",
    "hour minute second microsecond tzinfo fold",
    "NoneType|timezone|ZoneInfo",
)


def _make_fraction(numerator: int, denominator: int) -> fractions.Fraction:
    if min(numerator.bit_length(), denominator.bit_length()) > 1 << 19:  # to shorten it would take minutes
        raise ValuesError("kind", "a `Fraction` of such long numbers does not cross")
    return fractions.Fraction(numerator, denominator)


def _text(value: Any) -> tuple[str]:
    return (str(value),)


def _elements(value: Any) -> tuple[list[Any]]:
    return (list(value),)


_PARTS = [
    _Parts(tuple, _elements, tuple, "list"),
    _Parts(set, _elements, _make_set, "list"),
    _Parts(frozenset, _elements, lambda keys: frozenset(_make_set(keys)), "list"),
    _Parts(dict, _columns_of, _make_dict, "list list"),
    _Parts(OrderedDict, _columns_of, lambda keys, values: _make_dict(keys, values, OrderedDict), "list list"),
    _Parts(Counter, _columns_of, lambda *columns: Counter(_make_dict(*columns)), "list list"),
    _Parts(defaultdict, _take_defaultdict, _make_defaultdict, "NoneType|str list list"),
    _Parts(deque, lambda value: (list(value), value.maxlen), deque, "list NoneType|int"),
    _Parts(complex, "real imag", complex, "float float"),
    _Parts(range, "start stop step", range, "int int int"),
    _Parts(slice, "start stop step", slice, "any any any"),
    _Parts(type(...), lambda value: (), lambda: ..., ""),
    _Parts(datetime.date, _DATE, datetime.date, "int int int"),
    _Parts(
        datetime.time, _CLOCK, lambda *a: datetime.time(*a[:5], fold=a[5]), f"int int int int {_ZONE} int"
    ),
    _Parts(
        datetime.datetime,
        f"{_DATE} {_CLOCK}",
        lambda *a: datetime.datetime(*a[:8], fold=a[8]),
        f"int int int int int int int {_ZONE} int",
    ),
    _Parts(datetime.timedelta, "days seconds microseconds", datetime.timedelta, "int int int"),
    _Parts(datetime.timezone, _take_timezone, _make_timezone, "timedelta NoneType|str"),
    _Parts(decimal.Decimal, _text, decimal.Decimal, "str"),
    _Parts(fractions.Fraction, "numerator denominator", _make_fraction, "int int"),
    _Parts(uuid.UUID, lambda value: (value.hex,), uuid.UUID, "str"),
    _Parts(pathlib.PurePosixPath, _text, pathlib.PurePosixPath, "str"),
    _Parts(pathlib.PureWindowsPath, _text, pathlib.PureWindowsPath, "str"),
    _Parts(_POSIX, _text, _HERE[0], "str"),
    _Parts(_WINDOWS, _text, _HERE[1], "str"),
]
if zoneinfo is not None:
    _PARTS.append(_Parts(zoneinfo.ZoneInfo, _take_zone, _make_zone, "str"))


# Numbers and texts that JSON does not carry, or not well.


def _encode_int(value: int, writer: Writer) -> Any:
    if -(1 << 63) <= value < 1 << 63:
        return value
    return {"int": writer.data(value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))}


def _build_int(content: Any, reader: Reader) -> int:
    return int.from_bytes(reader.view(content), "little", signed=True)


def _encode_float(value: float, writer: Writer) -> Any:
    return value if math.isfinite(value) else {"float": writer.data(struct.pack("<d", value))}


def _build_float(content: Any, reader: Reader) -> float:
    return float(struct.unpack("<d", reader.view(content))[0])


def _encode_str(value: str, writer: Writer) -> Any:
    # Two lone surrogates that follow one another would become one character in JSON.
    if len(value) <= LONGEST_PIECE and (value.isascii() or not _SURROGATE.search(value)):
        return value
    return {"str": writer.data(value.encode("utf-8", "surrogatepass"))}


def _check_str(content: Any, reader: Reader) -> Facts:
    size = reader.check_data(content)
    reader.charge(size)
    return Facts("str", size)


def _build_str(content: Any, reader: Reader) -> str:
    return str(reader.view(content), "utf-8", "surrogatepass")


_SURROGATE = re.compile("[\ud800-\udfff]")


def _check_bytes(content: Any, reader: Reader) -> Facts:
    return Facts("bytes", reader.check_data(content, make=_make_bytes))


def _check_bytearray(content: Any, reader: Reader) -> Facts:
    return Facts("bytearray", reader.check_data(content, make=_make_bytearray))


def _make_bytearray(size: int) -> tuple[bytearray, memoryview]:
    owner = bytearray(size)
    return owner, memoryview(owner)


def _build_bytearray(content: Any, reader: Reader) -> bytearray:
    owner = None if type(content) is list else reader.owners[content]
    return owner if type(owner) is bytearray else bytearray(reader.view(content))


# array.array and memoryview: the same few C numbers.


def _encode_array_array(value: array.array[Any], writer: Writer) -> Any:
    if value.typecode not in _CODES:
        _refuse_unsafe("an `array` of characters")
    # Copied: as long as a buffer of it is in use, the user could not append to it.
    data = writer.data(_in_little_endian(value[:]))
    return {"array": [value.typecode, value.itemsize, [len(value)], data]}


def _in_little_endian(column: array.array[Any]) -> array.array[Any]:
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _encode_memoryview(value: memoryview, writer: Writer) -> Any:
    shape = list(value.shape or ())
    if (value.format not in _CODES and value.format not in ("c", "?")) or (0 in shape and len(shape) > 1):
        raise ValuesError("kind", f"a `memoryview` of format `{clean(value.format, 40)}` does not cross")
    data = writer.data(value if value.c_contiguous else value.tobytes())
    return {"memoryview": [value.format, value.itemsize, shape, data]}


def _check_numbers(name: str) -> Callable[[Any, Reader], Facts]:
    def check(content: Any, reader: Reader) -> Facts:
        code, size, lengths, data = content
        shape = tuple(map(reader.length, lengths))
        known = code in _CODES or (name == "memoryview" and code in ("c", "?"))
        if not known or (name == "array" and len(shape) != 1):
            _refuse("it is no array of numbers")
        if size != struct.calcsize(code):
            raise ValuesError(
                "kind",
                f"`{name}` of `{code}` has another size here, {struct.calcsize(code)} bytes and not {size}",
            )
        reader.check_data(data, size * math.prod(shape))
        return Facts(name, shape[0] if shape else 0, code, shape)

    return check


def _build_array_array(content: Any, reader: Reader) -> array.array[Any]:
    value = array.array(content[0])
    value.frombytes(reader.view(content[3]))
    return _in_little_endian(value)


def _build_memoryview(content: Any, reader: Reader) -> memoryview:
    code, _, shape, data = content
    view = reader.data(data).cast("B")
    return view.cast(code, shape) if len(shape) != 1 else view.cast(code)


_CODES = tuple("bBhHiIlLqQfd")


# --- columns: lists whose elements are all of one kind ---------------------------------------


def _encode_numbers(code: str) -> Callable[[list[Any], Writer], Any]:
    def encode(values: list[Any], writer: Writer) -> Any:
        try:
            column = array.array(code, values)
        except OverflowError:  # an int that needs more than 64 bits
            return None
        return {"column": [code, len(values), writer.data(_in_little_endian(column))]}

    return encode


def _encode_texts(values: list[str], writer: Writer) -> Any:
    """The texts, joined by NUL, which few texts contain: to split is much faster than to count characters."""
    text = "\0".join(values)
    lengths = None
    if text.count("\0") != len(values) - 1:
        text = "".join(values)
        lengths = writer.nodes(list(map(len, values)))
    return {"texts": [len(values), writer.data(text.encode("utf-8", "surrogatepass")), lengths]}


def _check_column(content: Any, reader: Reader) -> Facts:
    code, length, data = content
    size, dtype = _NUMBERS[code]
    reader.check_data(data, reader.length(length) * size)
    reader.charge(length * 40)
    return Facts("list", length, dtype, (length,))


def _build_column(content: Any, reader: Reader) -> list[Any]:
    column = array.array(content[0])
    column.frombytes(reader.view(content[2]))
    numbers = _in_little_endian(column).tolist()
    return numbers if content[0] != "B" else list(map((False, True).__getitem__, numbers))


def _check_texts(content: Any, reader: Reader) -> Facts:
    length, data, lengths = content
    reader.charge(reader.check_data(data) + reader.length(length) * TEXT_COST)
    if lengths is not None:
        facts = reader.check(lengths)
        if (facts.type, facts.length, facts.dtype) != ("list", length, "int"):
            _refuse("texts have no lengths")
    return Facts("list", length, "str", (length,))


def _build_texts(content: Any, reader: Reader) -> list[str]:
    length, data, lengths = content
    text = _build_str(data, reader)
    if lengths is None:
        if text.count("\0") != length - 1:  # looked at before memory is taken for them
            _refuse("texts are more than they say, or fewer")
        return text.split("\0")
    lengths = reader.build(lengths)
    ends = list(accumulate(lengths))
    if min(lengths) < 0 or ends[-1] != len(text):
        _refuse("texts are longer than they say, or shorter")
    return [text[start:end] for start, end in zip([0, *ends], ends)]


def _encode_rows(rows: list[Any], writer: Writer) -> Any:
    """Short rows that are all alike, such as points or records: turned, so one list for each place in them."""
    kind = type(rows[0])
    if kind is not tuple:
        rows = list(map(kind.copy, rows))  # another thread may change them
    places: list[Any] = list(rows[0]) if kind is dict else list(range(len(rows[0])))
    if not 0 < len(places) < MANY or set(map(len, rows)) != {len(places)}:
        return None
    if kind is dict:  # names only: to compare other keys could run code of the user's
        names = set(map(type, chain.from_iterable(rows))) == {str}
        if not names or not all(map(places.__eq__, map(list, rows))):
            return None
        if any(map(_SURROGATE.search, places)):
            return None  # no text in JSON, so no name of a column
    writer.enter(len(rows) * len(places))
    columns, place = [], None
    try:
        for place in places:
            columns.append(writer.nodes(list(map(operator.itemgetter(place), rows))))
    except ValuesError as error:
        if error.path:  # what stands last is the row
            error.path.insert(-1, _subscript(place))
        raise
    writer.leave()
    return {"rows": [kind.__name__, writer.nodes(places) if kind is dict else None, columns]}


def _check_rows(content: Any, reader: Reader) -> Facts:
    kind, keys, columns = content
    facts = list(map(reader.check, columns))
    length = facts[0].length
    fits = all(column.type == "list" and column.length == length for column in facts)
    if kind == "dict":
        names = reader.check(keys)
        fits = fits and names[:3] == ("list", len(columns), "str")
    if not fits or kind not in _ROWS:
        _refuse("columns do not make rows")
    reader.charge(length * (200 + 60 * len(columns)))
    return Facts("list", length, "", (length,))


def _build_rows(content: Any, reader: Reader) -> list[Any]:
    kind, keys, columns = content
    rows = zip(*reader.build(columns))
    if kind == "dict":
        keys = reader.build(keys)
        return [dict(zip(keys, row)) for row in rows]
    return list(rows) if kind == "tuple" else list(map(list, rows))


def _encode_foreign(values: list[Any], writer: Writer) -> Any:
    """Numbers of numpy, if they are that."""
    module, _ = _house(type(values[0]))
    is_numpy = module == "numpy" and find_numpy() is not None
    return _beside("_arrays").encode_column(values, writer) if is_numpy else None


_NUMBERS = {"d": (8, "float"), "q": (8, "int"), "B": (1, "bool")}
_COLUMNS: dict[type, Callable[[list[Any], Writer], Any]] = {
    float: _encode_numbers("d"),
    int: _encode_numbers("q"),
    bool: _encode_numbers("B"),
    str: _encode_texts,
    list: _encode_rows,
    tuple: _encode_rows,
    dict: _encode_rows,
}
_ROWS = ("list", "tuple", "dict")


# --- the tables ------------------------------------------------------------------------------


def _encode_object(value: Any, writer: Writer) -> Any:
    """A value of no builtin type."""
    kind = type(value)
    module, name = _house(kind)
    root = module.partition(".")[0]
    node = None
    if root in FRAMES:
        node = _beside("_frames").encode(value, writer) if _is_found(kind) else None
    elif find_numpy() is not None:  # of any library: tensors of others are arrays to us
        node = _beside("_arrays").encode(value, root, writer)
    if node is None and f"{module}.{name}" in _NEVER:
        raise ValuesError("kind", f"{named(kind)} never crosses: it lives in its own process only")
    if node is None:
        _refuse_unsafe(named(kind))
    return node


def _itself(value: Any, writer: Writer) -> Any:
    return value


_ENCODERS: dict[type, Callable[[Any, Writer], Any]] = {
    type(None): _itself,
    bool: _itself,
    int: _encode_int,
    float: _encode_float,
    str: _encode_str,
    bytes: lambda value, writer: {"bytes": writer.data(value)},
    bytearray: lambda value, writer: {"bytearray": writer.data(bytes(value))},  # copied, as array.array is
    list: lambda value, writer: writer.nodes(value[:]),
    array.array: _encode_array_array,
    memoryview: _encode_memoryview,
    **{parts.kind: parts.encode for parts in _PARTS},
}
_CODECS: dict[str, tuple[Callable[[Any, Reader], Facts], Callable[[Any, Reader], Any]]] = {
    "int": (lambda content, reader: Facts("int", reader.check_data(content)), _build_int),
    "float": (lambda content, reader: Facts("float", reader.check_data(content, 8)), _build_float),
    "str": (_check_str, _build_str),
    "bytes": (_check_bytes, lambda content, reader: reader.bytes(content)),
    "bytearray": (_check_bytearray, _build_bytearray),
    "column": (_check_column, _build_column),
    "texts": (_check_texts, _build_texts),
    "rows": (_check_rows, _build_rows),
    "array": (_check_numbers("array"), _build_array_array),
    "memoryview": (_check_numbers("memoryview"), _build_memoryview),
    **{parts.kind.__name__: (parts.check, parts.build) for parts in _PARTS},
}
_SCALARS = (type(None), bool, int, float, complex, type(...))
_SIZED = (list, tuple, set, frozenset, dict, deque, Counter, OrderedDict)
_NEVER = {
    *(f"builtins.{name}" for name in ("generator", "coroutine", "async_generator", "frame", "traceback")),
    *(
        f"_io.{name}"
        for name in ("TextIOWrapper", "BufferedReader", "BufferedWriter", "BufferedRandom", "FileIO")
    ),
    *("_thread.lock", "_thread.RLock", "mmap.mmap", "socket.socket", "threading.Thread"),
}
