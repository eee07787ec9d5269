"""Values as a JSON tree with buffers beside it, and back; on the client, and in the user's own interpreter.

`pack` makes the two of a value, without a copy of anything large; `Layout` checks all that the
other end says, gives the memory to receive into, and builds the value. What comes from the peer
is hostile: nothing in it is evaluated or looked up by name, and memory is taken only for what fits.

This is one file because it travels: it runs in any Python from 3.8 on with nothing but the standard library,
also where remoter is not installed, and is then loaded by its path. `_frames.py` beside it adds
pandas, polars and pyarrow. From top to bottom: words and limits, packing, the layout, builtins,
numpy, scipy, torch and other tensors.

What crosses without a pickle. Exact types only: a subclass is code.

| value | comes back as |
|---|---|
| None, bool, int, float, complex, str, bytes, bytearray, range, slice, Ellipsis | itself, to the bit |
| list, tuple, set, frozenset, dict, OrderedDict, Counter, deque, defaultdict of a builtin | itself; one that is met twice becomes two |
| date, time, datetime, timedelta, timezone, ZoneInfo, Decimal, Fraction, UUID, paths | itself; a path of another system as a pure one |
| array.array, memoryview | itself; over memory of its own, writable |
| numpy array, recarray, matrix, masked array, scalar | itself, in C or Fortran order; object arrays if their elements cross |
| numpy.memmap | ndarray |
| scipy.sparse csr csc coo bsr dia lil dok, matrix and array | itself |
| torch.Tensor, Parameter: dense, on the CPU | itself; without its graph |
| another tensor on the CPU (DLPack, `__array_interface__`) | ndarray |

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
import operator
import os
import pathlib
import re
import struct
import sys
import unicodedata
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from itertools import accumulate
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
LONGEST_TREE = 1 << 20  # characters; a longer tree is a buffer itself, as it rides on the control connection
LONGEST_PIECE = 32 << 10  # bytes; shorter data shares one buffer, the heap
MOST_NODES = 20_000_000
MANY = 64  # elements of one kind from which on they go as one column of numbers or of text
TREE_COST = 40  # bytes that a character of the tree may cost when it is built
ATTEMPTS = 5  # to look at a container that another thread changes at the same time
FREE_ENOUGH = 8 << 20  # bytes that are always taken to be free
SHARE = 0.8  # of the free memory that one value may take
PACKAGES = ("numpy", "pandas", "pyarrow", "polars", "scipy", "torch")
FRAMES = ("pandas", "polars", "pyarrow")  # modules whose objects `_frames.py` knows
FRAME_TAGS = ("pandas", "polars", "arrow")  # what its tags begin with


# --- words -----------------------------------------------------------------------------------


class ValuesError(Exception):
    """A value does not cross. `kind` is the id of the TransferError that the caller makes of it."""

    def __init__(
        self, kind: str, message: str, cause: str | None = None, hints: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.cause, self.hints = kind, message, cause, tuple(hints)


class _TooDeepError(ValuesError):
    """Too deep or too many: only a pickle can carry that."""


def clean(text: str, longest: int = 200) -> str:
    """A text from elsewhere in one line: what a terminal would obey is written with backslashes."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:longest])
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
        name = type.__dict__[attribute].__get__(kind)
        names.append(clean(name, 100) if type(name) is str else "?")
    return names[0], names[1]


def _named(kind: type) -> str:
    module, name = _house(kind)
    return f"`{name}`" if module == "builtins" else f"`{name}` ({module})"


def _is_found(kind: type) -> bool:
    """Whether a class is where it says; anybody's may say that it is pandas'."""
    module, name = _house(kind)
    return getattr(sys.modules.get(module), "__dict__", {}).get(name) is kind


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
        return _frames().describe(value) or name
    if root == "numpy" and (_is_array(value) or kind is sys.modules["numpy"].ma.MaskedArray):
        fields = value.dtype.names
        return f"{name} {value.shape} {value.dtype if fields is None else f'of {len(fields)} fields'}"
    if root == "scipy" and _is_sparse(value):
        return f"{name} {'x'.join(map(str, value.shape))} {value.dtype}"
    if root == "torch" and _is_tensor(value):
        return f"{name} {tuple(value.shape)} {_torch_type(value)}"
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


def _afford(size: int, what: str) -> None:
    """Refuse what would not fit into memory: Linux would grant it, and kill somebody later."""
    free = free_memory() if size > FREE_ENOUGH else None  # to ask costs more than a small value
    if free is not None and size > free * SHARE:
        raise ValuesError(
            "memory",
            f"{what} needs `{size_in_words(size)}` of memory here",
            cause=f"{size_in_words(free)} are free",
        )


_ONLY_PICKLED = "crosses only as a pickle, and opening a pickle runs code that the session chose"
_frames_module: Any = None


def _frames() -> Any:
    """`_frames.py`, which stands beside us, whether we are part of a package or were loaded by path."""
    global _frames_module
    if _frames_module is None and __package__:
        _frames_module = importlib.import_module("._frames", __package__)
    elif _frames_module is None:
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_frames.py")  # noqa: PTH100, PTH118, PTH120
        spec = importlib.util.spec_from_file_location(__name__ + "_frames", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _frames_module = module
    return _frames_module


@contextlib.contextmanager
def _blaming(kind: str, message: str) -> Iterator[None]:
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
        with _blaming("kind", f"{_named(type(value))} does not cross"):
            writer = Writer()
            try:
                tree, buffers = writer.finish({"value": writer.node(value)}, name)
            except RecursionError:  # the caller was deep already
                writer.refuse_depth()
            is_pickle = False
    except ValuesError as error:
        if pickle is None or not (error.kind == "unsafe" or isinstance(error, _TooDeepError)):
            raise
        writer = Writer()
        tree, buffers = writer.finish({"pickle": _pickled(value, pickle, writer), "type": name}, name)
        is_pickle = True
    text = describe(value)
    if type(value) not in _SCALARS:
        text += ", " + size_in_words(sum(map(len, buffers)) or len(tree))
    return Packed(tree, buffers, name, text, is_pickle)


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
        message = f"{_named(type(value))} does not cross: it cannot be pickled"
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
            column = _COLUMNS.get(kinds.pop(), _encode_scalars)(values, self) if len(kinds) == 1 else None
            if column is not None:
                return column
        self._nodes += len(values)
        self._depth += 1
        if self._depth > DEPTH or self._nodes > MOST_NODES:
            self.refuse_depth()
        encoders = _ENCODERS
        for index, value in enumerate(values):  # as flat as can be: the stack has to hold for all levels
            values[index] = encoders.get(type(value), _encode_object)(value, self)
        self._depth -= 1
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

    def refuse(
        self, kind: str, message: str, cause: str | None = None, hints: tuple[str, ...] = ()
    ) -> NoReturn:
        raise ValuesError(kind, message, cause, hints)

    def refuse_depth(self) -> NoReturn:
        if self._nodes > MOST_NODES:
            message = f"the value holds more than `{MOST_NODES}` objects"
            hints = ("put the numbers or texts into an array or a data frame",)
            raise _TooDeepError("kind", message, hints=hints)
        raise _TooDeepError(
            "kind", f"the value is nested more than `{DEPTH}` levels deep, or contains itself"
        )

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
        type: what it says it is ("ndarray"); of a pickle, in the peer's words.
        is_pickle: `build` runs code that the peer chose.
        total: bytes to receive.
    """

    def __init__(self, tree: str, sizes: list[int]) -> None:
        with _blaming("corrupt", _DAMAGED):
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
        with _blaming("corrupt", _DAMAGED):
            if into is not None:
                self._into, self._is_direct = into, self._aim(into)
            need = self.total + reader.extra
            if self._tree_buffer is not None:
                need += TREE_COST * reader.sizes[self._tree_buffer]
            _afford(need, "what comes")
            reader.views = []
            for number, size in enumerate(reader.sizes):
                reader.owners[number], view = reader.makers.get(number, _make_memory)(size)
                reader.views.append(view)
        return reader.views

    def _aim(self, into: Any) -> bool:
        """Check that what comes fits; True if it comes as one buffer, which can be the caller's own memory."""
        reader, view = self._reader, None
        tag, content = "", cast("Any", None)
        if self._tree_buffer is None and not self.is_pickle and type(self._node) is dict:
            ((tag, content),) = self._node.items()
        if tag == "ndarray" and _is_array(into):
            data = content[3]
            if _fits(into, content, reader):
                view = _bytes_of(into)
        elif tag in ("bytes", "bytearray") and not _is_array(into):
            data = content
            with _blaming("kind", f"{_named(type(into))} is no buffer that can be filled"):
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
                with _blaming("corrupt", _DAMAGED):
                    reader.is_late = True
                    self._open(_parse(str(reader.view(self._tree_buffer), "ascii")))
                _afford(reader.extra, "what came")
            if self.is_pickle:
                return self._unpickle(allow_pickle)
            if self._is_direct:
                return self._into
            with _blaming("corrupt", f"the {self.type} that came is damaged, or is not what it says"):
                return self._fill(reader.build(self._node))
        finally:
            for view in reader.views:
                _release(view)

    def _fill(self, value: Any) -> Any:
        into = self._into
        if into is None:
            return value
        if _is_array(into):
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
        with _blaming("versions", f"`{self.type}` came, but its pickle cannot be opened here"):
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
    numpy = sys.modules.get("numpy")
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

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.heap: int | None = None
        self.makers: dict[int, Callable[[int], tuple[Any, memoryview]]] = {}
        self.owners: dict[int, Any] = {}
        self.views: list[memoryview] = []
        self.is_late = False  # the tree came after memory had been taken, so that is plain memory
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
            return importlib.import_module(name)
        except Exception as error:
            message = f"`{name}` is needed here to open what comes"
            raise ValuesError("versions", message, cause=_line(error), hints=hints) from None

    def refuse(self, message: str, cause: str | None = None) -> NoReturn:
        _refuse(message, cause)

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
        return int(data[1]) if type(data) is list else self.sizes[data]


_BRANCHES = {list, dict}
_LEAVES = {kind: Facts(kind.__name__) for kind in (type(None), bool, int, float, str)}


def _codec_of(node: dict[str, Any]) -> Any:
    if len(node) != 1:
        _refuse("a node has no tag")
    (tag,) = node
    codec = _CODECS.get(tag)
    if codec is None and tag.partition(".")[0] in FRAME_TAGS:
        codec = _frames().decoders.get(tag)
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

    def encode(self, value: Any, writer: Writer) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                parts = self.take(value)
                break
            except RuntimeError as error:  # another thread changed it
                if attempt == ATTEMPTS - 1:
                    message = f"{_named(self.kind)} was changed while it was packed"
                    raise ValuesError("changed", message, cause=_line(error)) from None
        return {self.tag: [writer.nodes(part) if type(part) is list else writer.node(part) for part in parts]}

    def check(self, content: Any, reader: Reader) -> Facts:
        if type(content) is not list or len(content) != len(self.types):
            _refuse(f"a {self.tag} has other parts")
        length = 0
        for node, types in zip(content, self.types):
            facts = reader.check(node)
            if facts.type not in types and "any" not in types:
                _refuse(f"a {self.tag} is not made of a {facts.type}")
            length = facts.length
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


def _pairs(keys: list[Any], values: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(keys) != len(values):
        _refuse("there are more keys than values, or fewer")
    return zip(keys, values)


def _make_defaultdict(factory: str | None, keys: list[Any], values: list[Any]) -> Any:
    return defaultdict(_FACTORIES[factory], _pairs(keys, values))


def _take_defaultdict(value: Any) -> tuple[Any, ...]:
    names = [name for name, factory in _FACTORIES.items() if factory is value.default_factory]
    if not names:
        raise ValuesError("unsafe", f"a `defaultdict` of no builtin type {_ONLY_PICKLED}")
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
    with _blaming("versions", f"the time zone `{clean(key, 80)}` is not known here"):
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


def _text(value: Any) -> tuple[str]:
    return (str(value),)


def _elements(value: Any) -> tuple[list[Any]]:
    return (list(value),)


_PARTS = [
    _Parts(tuple, _elements, tuple, "list"),
    _Parts(set, _elements, set, "list"),
    _Parts(frozenset, _elements, frozenset, "list"),
    _Parts(dict, _columns_of, lambda *columns: dict(_pairs(*columns)), "list list"),
    _Parts(OrderedDict, _columns_of, lambda *columns: OrderedDict(_pairs(*columns)), "list list"),
    _Parts(Counter, _columns_of, lambda *columns: Counter(dict(_pairs(*columns))), "list list"),
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
    _Parts(fractions.Fraction, "numerator denominator", fractions.Fraction, "int int"),
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


# Columns: a list whose elements are all of one kind.


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


def _in_little_endian(column: array.array[Any]) -> array.array[Any]:
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _check_texts(content: Any, reader: Reader) -> Facts:
    length, data, lengths = content
    reader.charge(reader.check_data(data) + reader.length(length) * 60)
    if lengths is not None:
        facts = reader.check(lengths)
        if (facts.type, facts.length, facts.dtype) != ("list", length, "int"):
            _refuse("texts have no lengths")
    return Facts("list", length, "str", (length,))


def _build_texts(content: Any, reader: Reader) -> list[str]:
    length, data, lengths = content
    text = _build_str(data, reader)
    if lengths is None:
        texts = text.split("\0")
    else:
        lengths = reader.build(lengths)
        ends = list(accumulate(lengths))
        texts = [text[start:end] for start, end in zip([0, *ends], ends)]
        if min(lengths) < 0 or ends[-1] != len(text):
            _refuse("texts are longer than they say, or shorter")
    if len(texts) != length:
        _refuse("texts are more than they say, or fewer")
    return texts


_NUMBERS = {"d": (8, "float"), "q": (8, "int"), "B": (1, "bool")}
_COLUMNS: dict[type, Callable[[list[Any], Writer], Any]] = {
    float: _encode_numbers("d"),
    int: _encode_numbers("q"),
    bool: _encode_numbers("B"),
    str: _encode_texts,
}


# array.array and memoryview: the same few C numbers.


def _encode_array_array(value: array.array[Any], writer: Writer) -> Any:
    if value.typecode not in _CODES:
        raise ValuesError("unsafe", f"an `array` of characters {_ONLY_PICKLED}")
    # Copied: as long as a buffer of it is in use, the user could not append to it.
    data = writer.data(_in_little_endian(value[:]))
    return {"array": [value.typecode, value.itemsize, [len(value)], data]}


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


# --- numpy -----------------------------------------------------------------------------------
#
# ndarray and scalar: [dtype, shape, order, data, class]. A dtype is numpy's own text for it, matched
# against a pattern; or of a record {"size", "aligned", "fields": [[name, title, offset, dtype, shape]]}.

_DTYPE = re.compile(
    r"[<>|](?:b1|[iu][1248]|f[248]|c8|c16|f(?:12|16)/\d+|c(?:24|32)/\d+|[SUV]\d{1,10}"
    r"|[mM]8(?:\[(?:[1-9]\d{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
)
_ARRAYS = ("ndarray", "recarray", "matrix")


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) in (numpy.ndarray, numpy.memmap, numpy.matrix, numpy.recarray)


def _bytes_of(value: Any) -> memoryview:
    """The memory of an array that is contiguous in either order."""
    numpy = sys.modules["numpy"]
    flat = value.view(numpy.ndarray)
    flat = (flat if flat.flags.c_contiguous else flat.T).reshape(-1)
    return memoryview(flat.view(numpy.uint8) if flat.nbytes else bytearray())


def _encode_numpy(value: Any, writer: Writer) -> Any:
    numpy, kind = sys.modules["numpy"], type(value)
    if _is_array(value):
        return _encode_array(value, writer)
    if kind is numpy.str_ or kind is numpy.bytes_:  # an array would cut NULs off at its end
        plain = str.__str__(value) if kind is numpy.str_ else bytes(value)
        return {"numpy": [kind.__name__, writer.node(plain)]}
    if kind is numpy.ma.MaskedArray:
        fill = value.__dict__.get("_fill_value")
        mask = None if value.mask is numpy.ma.nomask else value.mask
        parts = [value.data, mask, fill, bool(value.hardmask)]
        return {"masked": [writer.node(part) for part in parts]}
    if value is numpy.ma.masked:
        return {"numpy": ["masked", None]}
    if issubclass(kind, numpy.generic):
        scalar = numpy.asarray(value)
        if kind in (scalar.dtype.type, numpy.record) and not scalar.dtype.hasobject:
            house = "recarray" if kind is numpy.record else "ndarray"
            return {"scalar": _array_content(scalar, house, writer)}
    return None


def _encode_array(value: Any, writer: Writer) -> Any:
    house = "ndarray" if type(value).__name__ == "memmap" else type(value).__name__
    plain = value.view(sys.modules["numpy"].ndarray)
    if plain.dtype.kind == "T":
        return _encode_strings(plain, writer)
    if plain.dtype.kind == "O" and house == "ndarray":
        order = "C" if plain.flags.c_contiguous or not plain.flags.f_contiguous else "F"
        return {"objects": [list(plain.shape), order, writer.nodes(list(plain.ravel(order)))]}
    return {"ndarray": _array_content(plain, house, writer)}


def _array_content(value: Any, house: str, writer: Writer) -> list[Any]:
    dtype = _dtype_content(value.dtype)
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    if not value.flags.forc:
        _afford(value.nbytes, "a copy of the array in one piece")
        value = value.copy("C")
    return [dtype, list(value.shape), order, writer.data(_bytes_of(value)), house]


def _dtype_content(dtype: Any) -> Any:
    """A dtype in words, if it is one of numpy's own and its elements are plain bytes."""
    numpy = sys.modules["numpy"]
    if dtype.names is not None and not dtype.hasobject:
        fields = []
        for name in dtype.names:
            inner, offset, *title = dtype.fields[name]
            base, shape = inner.subdtype or (inner, ())
            if title and type(title[0]) is not str:
                break
            fields.append([name, title[0] if title else None, offset, _dtype_content(base), list(shape)])
        else:
            return {"size": dtype.itemsize, "aligned": bool(dtype.isalignedstruct), "fields": fields}
    text = dtype.str
    if dtype.kind in "fc" and dtype.itemsize in (12, 16, 24, 32) and text[1:] != "c16":
        text += f"/{numpy.finfo(numpy.longdouble).nmant}"
    if dtype.names is not None or not _DTYPE.fullmatch(text) or numpy.dtype(dtype.str) != dtype:
        raise ValuesError("unsafe", f"an array of `{clean(str(dtype), 80)}` {_ONLY_PICKLED}")
    return text


def _check_dtype(content: Any, reader: Reader) -> int:
    """Bytes of an element."""
    if type(content) is str:
        if not _DTYPE.fullmatch(content):
            _refuse(f"`{clean(content, 40)}` is no dtype that crosses")
        text, _, digits = content.partition("/")
        if digits:
            numpy = reader.need("numpy")
            size = numpy.longdouble().itemsize * (2 if text[1] == "c" else 1)
            if text[2:] != str(size) or digits != str(numpy.finfo(numpy.longdouble).nmant):
                raise ValuesError("kind", "`longdouble` is another kind of number on this machine")
        return int(re.findall(r"\d+", text)[0]) * (4 if text[1] == "U" else 1)
    size, names = reader.length(content["size"]), []
    for name, title, offset, inner, shape in content["fields"]:
        names += [name] if title is None else [name, title]
        end = reader.length(offset) + _check_dtype(inner, reader) * math.prod(map(reader.length, shape))
        if end > size:
            _refuse("a field stands outside of its record")
    if len(set(names)) != len(names) or set(map(type, names)) > {str}:
        _refuse("a record has two fields of one name")
    return size


def _make_dtype(content: Any) -> Any:
    numpy = sys.modules["numpy"]
    if type(content) is str:
        return numpy.dtype(content.partition("/")[0])
    fields = content["fields"]
    record = {
        "names": [field[0] for field in fields],
        "titles": [field[1] for field in fields],
        "offsets": [field[2] for field in fields],
        "formats": [
            (_make_dtype(inner), tuple(shape)) if shape else _make_dtype(inner) for *_, inner, shape in fields
        ],
        "itemsize": content["size"],
    }
    return numpy.dtype(record, align=content["aligned"] is True)


def _check_array(content: Any, reader: Reader) -> Facts:
    dtype, lengths, order, data, house = content
    shape = tuple(map(reader.length, lengths))
    if order not in ("C", "F") or house not in _ARRAYS or len(shape) > 64:
        _refuse("it is no array")
    size = _check_dtype(dtype, reader) * math.prod(shape)
    reader.need("numpy")

    def make(_: int) -> tuple[Any, memoryview]:
        value = _make_array(content)
        return value, _bytes_of(value)

    reader.check_data(data, size, make)
    return Facts(house, shape[0] if shape else 0, dtype if type(dtype) is str else "struct", shape)


def _make_array(content: Any, memory: memoryview | None = None) -> Any:
    dtype, shape, order, _, _ = content
    return sys.modules["numpy"].ndarray(tuple(shape), _make_dtype(dtype), memory, order=order)


def _build_array(content: Any, reader: Reader) -> Any:
    numpy, data, house = sys.modules["numpy"], content[3], content[4]
    if type(data) is list:
        value = _make_array(content)
        _bytes_of(value)[:] = reader.view(data)
    else:
        value = _make_array(content, reader.data(data)) if reader.is_late else reader.owners[data]
    return value if house == "ndarray" else value.view(numpy.matrix if house == "matrix" else numpy.recarray)


def _is_numeric(facts: Facts) -> bool:
    return facts.type == "ndarray" and re.match(r"[<>|][biufc]\d", facts.dtype) is not None


def _check_scalar(content: Any, reader: Reader) -> Facts:
    facts = _check_array(content, reader)
    if facts.shape:
        _refuse("a scalar has a shape")
    return Facts("scalar", 0, facts.dtype)


def _build_scalar(content: Any, reader: Reader) -> Any:
    return _build_array(content, reader)[()]


def _fits(into: Any, content: Any, reader: Reader) -> bool:
    """Check that the array that comes fits into the user's; True if its bytes stand there as they come."""
    dtype, shape, order, _, house = content
    flags = into.flags
    if house != "ndarray" or into.dtype != _make_dtype(dtype) or list(into.shape) != shape:
        there = f"{tuple(shape)} {_make_dtype(dtype)}"
        raise ValuesError("kind", f"`into` is {describe(into)}; what comes is {house} {there}")
    if not flags.writeable or not flags.forc:
        raise ValuesError("kind", "`into` has to be writable and in one piece (contiguous)")
    return bool(flags.c_contiguous if order == "C" else flags.f_contiguous)


def _encode_scalars(values: list[Any], writer: Writer) -> Any:
    """A long list of numpy numbers of one type, as the array of them."""
    numpy, kind = sys.modules.get("numpy"), type(values[0])
    if numpy is None or _house(kind)[0] != "numpy" or not issubclass(kind, (numpy.number, numpy.bool_)):
        return None
    if kind is numpy.timedelta64:  # each may have a unit of its own
        return None
    return {"scalars": _array_content(numpy.array(values, kind), "ndarray", writer)}


def _check_scalars(content: Any, reader: Reader) -> Facts:
    facts = _check_array(content, reader)
    if len(facts.shape) != 1:
        _refuse("a list has another shape")
    reader.charge(40 * facts.length)
    return Facts("list", facts.length, "", facts.shape[:1])


def _build_scalars(content: Any, reader: Reader) -> list[Any]:
    return list(_build_array(content, reader))


def _check_objects(content: Any, reader: Reader) -> Facts:
    lengths, order, node = content
    shape = tuple(map(reader.length, lengths))
    facts = reader.check(node)
    if facts.type != "list" or facts.length != math.prod(shape) or order not in ("C", "F") or len(shape) > 64:
        _refuse("an array has no elements")
    reader.need("numpy")
    return Facts("ndarray", shape[0] if shape else 0, "object", shape)


def _build_objects(content: Any, reader: Reader) -> Any:
    shape, order, node = content
    numpy, values = sys.modules["numpy"], reader.build(node)
    flat = numpy.empty(len(values), object)
    for index, value in enumerate(values):  # one by one: numpy would look into lists and arrays
        flat[index] = value
    return flat.reshape(shape, order=order)


def _encode_strings(value: Any, writer: Writer) -> Any:
    """StringDType: its memory is full of pointers, so as texts; where one is missing stands the first of all."""
    missing = [] if not hasattr(value.dtype, "na_object") else [value.dtype.na_object]
    if missing and type(missing[0]) not in (type(None), float, str):
        return None
    flat = value.astype(object).ravel().tolist()
    texts = [text if type(text) is str else None for text in flat]
    return {
        "strings": [list(value.shape), bool(value.dtype.coerce), writer.node(missing), writer.nodes(texts)]
    }


def _check_strings(content: Any, reader: Reader) -> Facts:
    lengths, _, missing, texts = content
    shape = tuple(map(reader.length, lengths))
    if reader.check(missing).length > 1 or reader.check(texts).length != math.prod(shape):
        _refuse("an array has no elements")
    if not hasattr(getattr(reader.need("numpy"), "dtypes", None), "StringDType"):
        raise ValuesError("versions", "numpy 2 is needed here to open an array of `StringDType`")
    return Facts("ndarray", shape[0] if shape else 0, "strings", shape)


def _build_strings(content: Any, reader: Reader) -> Any:
    shape, coerce, missing, texts = content
    numpy, missing = sys.modules["numpy"], reader.build(missing)
    dtype = numpy.dtypes.StringDType(coerce=coerce, **({"na_object": missing[0]} if missing else {}))
    flat = [missing[0] if text is None else text for text in reader.build(texts)]
    return numpy.array(flat, dtype).reshape(shape)


def _check_masked(content: Any, reader: Reader) -> Facts:
    data, mask, fill = map(reader.check, content[:3])
    if (
        data.type not in _ARRAYS
        or (mask.type != "NoneType" and mask.shape != data.shape)
        or len(content) != 4
    ):
        _refuse("a masked array has no data")
    if fill.type not in ("NoneType", "ndarray") or fill.shape:
        _refuse("a masked array has no value to fill it with")
    return data._replace(type="MaskedArray")


def _build_masked(content: Any, reader: Reader) -> Any:
    numpy = sys.modules["numpy"]
    data, mask, fill = map(reader.build, content[:3])
    mask = numpy.ma.nomask if mask is None else mask
    value = numpy.ma.MaskedArray(data, mask=mask, copy=False, hard_mask=content[3] is True)
    if fill is not None:
        value.fill_value = fill[()]
    return value


def _check_named(content: Any, reader: Reader) -> Facts:
    name, node = content
    if reader.check(node).type != {"str_": "str", "bytes_": "bytes", "masked": "NoneType"}[name]:
        _refuse("a scalar of numpy is of another kind")
    reader.need("numpy")
    return Facts(name)


def _build_named(content: Any, reader: Reader) -> Any:
    numpy, value = sys.modules["numpy"], reader.build(content[1])
    if value is None:
        return numpy.ma.masked
    return numpy.str_(value) if type(value) is str else numpy.bytes_(value)


# --- scipy.sparse ----------------------------------------------------------------------------
#
# [class, shape, arrays]: data first, then where it belongs. The arrays are set into an empty matrix: the
# constructors copy. Wrong indices would make scipy read and write anywhere: they are checked before.

_FORMATS = ("csr", "csc", "bsr", "coo", "dia", "lil", "dok")
_SPARSE = {f"{form}_{flavour}" for form in _FORMATS for flavour in ("matrix", "array")}


def _is_sparse(value: Any) -> bool:
    name = _house(type(value))[1]
    return name in _SPARSE and type(value) is getattr(sys.modules.get("scipy.sparse"), name, None)


def _encode_sparse(value: Any, writer: Writer) -> Any:
    if not _is_sparse(value) or value.dtype.kind not in "biufc":
        return None
    name, shape = type(value).__name__, list(map(int, value.shape))
    if name[:3] in ("lil", "dok"):
        value = value.tocoo()
    if name[:3] in ("csr", "csc", "bsr"):
        arrays = [value.data, value.indices, value.indptr]
    elif name[:3] == "dia":
        arrays = [value.data, value.offsets]
    else:
        arrays = [value.data, *(value.coords if hasattr(value, "coords") else (value.row, value.col))]
    return {"sparse": [name, shape, [writer.node(part) for part in arrays]]}


def _check_sparse(content: Any, reader: Reader) -> Facts:
    name, lengths, nodes = content
    shape = tuple(map(reader.length, lengths))
    data, *places = map(reader.check, nodes)
    form, lengths = name[:3], [place.length for place in places]
    fits = name in _SPARSE and _is_numeric(data)
    for place in places:
        fits = fits and place.type == "ndarray" and len(place.shape) == 1 and place.dtype in ("<i4", "<i8")
    if form in ("csr", "csc", "bsr"):
        fits = fits and _fits_compressed(name, shape, data, lengths)
    elif form == "dia":
        fits = fits and len(shape) == len(data.shape) == 2 and lengths == [data.length]
    else:
        fits = fits and len(data.shape) == 1 and lengths == [data.length] * len(shape)
        reader.charge(0 if form == "coo" else 200 * data.length + 120 * sum(shape[:1]) * (form == "lil"))
    if not fits:
        _refuse("the arrays do not make a sparse matrix")
    reader.need("scipy.sparse")
    return Facts(name, shape[0], data.dtype, shape)


def _fits_compressed(name: str, shape: tuple[int, ...], data: Facts, lengths: list[int]) -> bool:
    """Whether there is an index for each number or block, and a start for each row (column) of them, and an end."""
    if len(shape) == 1:
        return name == "csr_array" and data.shape == (data.length,) and lengths == [data.length, 2]
    block = data.shape[1:] if name[:3] == "bsr" else (1, 1)
    if len(shape) != 2 or len(block) != 2 or 0 in block or shape[0] % block[0] or shape[1] % block[1]:
        return False
    starts = (shape[1] if name[:3] == "csc" else shape[0]) // block[0] + 1
    return len(data.shape) == (3 if name[:3] == "bsr" else 1) and lengths == [data.length, starts]


def _build_sparse(content: Any, reader: Reader) -> Any:
    name, shape, nodes = content
    data, *places = map(reader.build, nodes)
    form, sparse = name[:3], sys.modules["scipy.sparse"]
    _check_places(form, shape, data, places)
    if form in ("csr", "csc", "bsr"):
        more = {"blocksize": data.shape[1:]} if form == "bsr" else {}
        value = getattr(sparse, name)(tuple(shape), **more)
        value.data, value.indices, value.indptr = data, *places
    elif form == "dia":
        value = getattr(sparse, name)(tuple(shape))
        value.data, value.offsets = data, places[0]
    else:
        value = getattr(sparse, "coo" + name[3:])(tuple(shape))
        value.data, value.has_canonical_format = data, False
        if hasattr(value, "coords"):
            value.coords = tuple(places)
        else:
            value.row, value.col = places
        value = value.asformat(form)
    return value


def _check_places(form: str, shape: list[int], data: Any, places: list[Any]) -> None:
    """Each index is inside of the matrix, and the stretches of the rows follow one another."""
    numpy = sys.modules["numpy"]
    if form == "dia":
        (offsets,) = places
        limit = sum(shape) + data.shape[1]
        fits = len(numpy.unique(offsets)) == len(offsets)
        fits = fits and all(abs(offset) <= limit for offset in offsets.tolist())
    elif form in ("csr", "csc", "bsr"):
        indices, starts = places
        minor = shape[-1] // (data.shape[2] if form == "bsr" else 1) if form != "csc" else shape[0]
        fits = _are_inside(indices, minor) and starts[0] == 0 and starts[-1] <= len(indices)
        fits = fits and bool((starts[1:] >= starts[:-1]).all())
    else:
        fits = all(map(_are_inside, places, shape))
    if not fits:
        _refuse("an index stands outside of the sparse matrix")


def _are_inside(indices: Any, limit: int) -> bool:
    return not len(indices) or bool(indices.min() >= 0 and indices.max() < limit)


# --- torch, and other tensors ----------------------------------------------------------------
#
# [ndarray, dtype, requires_grad, class]: numpy has no bfloat16: such a tensor goes as integers of its size.

_DISGUISED = {
    "bfloat16": "int16",
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), "uint8"
    ),
}
_CPU = 1  # as DLPack numbers devices


def _is_tensor(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and type(value) in (torch.Tensor, torch.nn.Parameter)


def _torch_type(value: Any) -> str:
    return str(value.dtype).rpartition(".")[2]


def _encode_torch(value: Any, writer: Writer) -> Any:
    torch: Any = sys.modules.get("torch")
    if not _is_tensor(value) or value.layout is not torch.strided or value.is_quantized or value.is_nested:
        return None
    if value.device.type != "cpu":
        _refuse_device(value, str(value.device), "`.cpu()`")
    dtype = _torch_type(value)
    disguise = _DISGUISED.get(dtype)
    plain = value.detach().resolve_conj().resolve_neg()
    try:
        numbers = plain.view(getattr(torch, disguise)).numpy() if disguise else plain.numpy()
    except TypeError:  # numpy has no such numbers
        return None
    name = "Tensor" if type(value) is torch.Tensor else "Parameter"
    return {"tensor": [writer.node(numbers), dtype if disguise else None, bool(value.requires_grad), name]}


def _check_tensor(content: Any, reader: Reader) -> Facts:
    node, dtype, _, name = content
    facts = reader.check(node)
    if not _is_numeric(facts) or name not in ("Tensor", "Parameter"):
        _refuse("it is no tensor")
    if dtype is not None and facts.dtype[1:] != {"int16": "i2", "uint8": "u1"}[_DISGUISED[dtype]]:
        _refuse("a tensor is of another type")
    reader.need("torch", hints=("pull it as an array: the expression `NAME.detach().numpy()`",))
    return Facts(name, facts.length, dtype or facts.dtype, facts.shape)


def _build_tensor(content: Any, reader: Reader) -> Any:
    torch: Any = sys.modules["torch"]
    node, dtype, gradient, name = content
    value = torch.from_numpy(reader.build(node))
    if dtype is not None:
        value = value.view(getattr(torch, dtype))
    if name == "Parameter":
        return torch.nn.Parameter(value, requires_grad=gradient is True)
    return value.requires_grad_() if gradient is True else value


def _encode_tensor_like(value: Any, writer: Writer) -> Any:
    """A tensor of another library, as a numpy array; not what can merely become one, such as a table with labels."""
    numpy: Any = sys.modules.get("numpy")
    classes = type.__dict__["__mro__"].__get__(type(value))
    known = {name for kind in classes for name in type.__dict__["__dict__"].__get__(kind)}
    if numpy is None or not {"dtype", "shape"} <= known or not {"__dlpack__", "__array_interface__"} & known:
        return None
    if numpy.ndarray in classes:  # with a meaning of its own, such as units
        return None
    try:
        device = value.__dlpack_device__()[0] if "__dlpack_device__" in known else _CPU
        if device != _CPU:
            _refuse_device(value, "a GPU", "its library's function for that, such as `.get()`")
        can_convert = "__array__" in known or "__array_interface__" in known
        plain = numpy.asarray(value) if can_convert else numpy.from_dlpack(value)
    except ValuesError:
        raise
    except Exception:  # it only looks like one
        return None
    return _encode_array(plain, writer) if _is_array(plain) else None


def _refuse_device(value: Any, device: str, how: str) -> NoReturn:
    message = f"{_named(type(value))} is on {clean(device, 40)}, and only what is on the CPU crosses"
    raise ValuesError("kind", message, hints=(f"bring it there first, with {how}",))


# --- the tables ------------------------------------------------------------------------------


def _encode_object(value: Any, writer: Writer) -> Any:
    """A value of no builtin type."""
    kind = type(value)
    module, name = _house(kind)
    root = module.partition(".")[0]
    if root in FRAMES:
        node = _frames().encode(value, writer) if _is_found(kind) else None
    else:
        node = _LIBRARIES.get(root, _encode_tensor_like)(value, writer)
    if node is None and f"{module}.{name}" in _NEVER:
        raise ValuesError("kind", f"{_named(kind)} never crosses: it lives in its own process only")
    if node is None:
        raise ValuesError("unsafe", f"{_named(kind)} {_ONLY_PICKLED}")
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
    "str": (lambda content, reader: Facts("str", reader.check_data(content)), _build_str),
    "bytes": (_check_bytes, lambda content, reader: reader.bytes(content)),
    "bytearray": (_check_bytearray, _build_bytearray),
    "column": (_check_column, _build_column),
    "texts": (_check_texts, _build_texts),
    "array": (_check_numbers("array"), _build_array_array),
    "memoryview": (_check_numbers("memoryview"), _build_memoryview),
    "ndarray": (_check_array, _build_array),
    "scalar": (_check_scalar, _build_scalar),
    "scalars": (_check_scalars, _build_scalars),
    "objects": (_check_objects, _build_objects),
    "strings": (_check_strings, _build_strings),
    "masked": (_check_masked, _build_masked),
    "numpy": (_check_named, _build_named),
    "sparse": (_check_sparse, _build_sparse),
    "tensor": (_check_tensor, _build_tensor),
    **{parts.kind.__name__: (parts.check, parts.build) for parts in _PARTS},
}
_LIBRARIES: dict[str, Callable[[Any, Writer], Any]] = {
    "numpy": _encode_numpy,
    "scipy": _encode_sparse,
    "torch": _encode_torch,
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
