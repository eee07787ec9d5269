"""R's serialization as a tree of nodes, and back; on the client.

`parse` reads what R's `serialize` wrote, version 2 or 3, in either byte order; `dump` writes version 3, little
endian: the one form that says how undecodable text is to be read, and that has R's compact vectors, which what
we only hand on may contain. R reads it since 3.5. The format is a walk over the tree, each node before its
parts, so one loop reads it and one loop writes it, however deep it goes. Nothing is evaluated. What comes from
the peer is hostile: lengths are compared with what is there, and memory is taken only for what fits.

Numbers stay where they are, as views; long vectors of texts too, see `texts.py`.
"""

from __future__ import annotations

import array
import struct
from typing import Any

from .._values import ValuesError, afford
from .texts import (
    CHARS,
    SHORT,
    TEXT_COST,
    Records,
    Texts,
    decode,
    encode_text,
    encode_texts,
    find_numpy,
    refuse,
)

LEAD = 1
"""Bytes to leave free before a stream, in memory that is aligned, so that the numbers of the first vector are too."""

SYMBOL, PAIRS, CLOSURE, ENVIRONMENT, PROMISE, CALL, SPECIAL, BUILTIN = range(1, 9)
LOGICAL = 10
INTEGER, DOUBLE, COMPLEX, CHARACTER, DOTS, LIST, EXPRESSION, BYTECODE = 13, 14, 15, 16, 17, 19, 20, 21
POINTER, WEAK, RAW, S4 = 22, 23, 24, 25
COMPACT, ATTRIBUTED_PAIRS, ATTRIBUTED_CALL, BASE, EMPTY, SEEN, DEFINED = range(238, 245)
PERSISTENT, PACKAGE, NAMESPACE, BASE_NAMESPACE, MISSING, UNBOUND, GLOBAL, NULL, REFERENCE = range(247, 256)

WIDTHS = {LOGICAL: 4, INTEGER: 4, DOUBLE: 8, COMPLEX: 16, RAW: 1}
IS_OBJECT, HAS_ATTRIBUTES, HAS_TAG = 1 << 8, 1 << 9, 1 << 10
S4_OBJECT = 16 << 12
"""What a flag word says beside the type."""

NAMES = {
    SYMBOL: "symbol", PAIRS: "pairlist", CLOSURE: "closure", ENVIRONMENT: "environment", PROMISE: "promise",
    CALL: "language", SPECIAL: "special", BUILTIN: "builtin", CHARS: "char", LOGICAL: "logical",
    INTEGER: "integer", DOUBLE: "double", COMPLEX: "complex", CHARACTER: "character", DOTS: "...", LIST: "list",
    EXPRESSION: "expression", BYTECODE: "bytecode", POINTER: "externalptr", WEAK: "weakref", RAW: "raw", S4: "S4",
    COMPACT: "altrep", BASE: "environment", EMPTY: "environment", PACKAGE: "environment",
    NAMESPACE: "environment", BASE_NAMESPACE: "environment", GLOBAL: "environment", PERSISTENT: "environment",
    MISSING: "symbol", UNBOUND: "symbol", NULL: "NULL",
}  # fmt: skip
"""What R's `typeof` says."""

_SINGLE = {NULL, GLOBAL, UNBOUND, MISSING, BASE_NAMESPACE, EMPTY, BASE}
_CELLS = {PAIRS, CALL, PROMISE, DOTS}
_CELLS_IN_BYTECODE = {PAIRS, CALL, ATTRIBUTED_PAIRS, ATTRIBUTED_CALL}
_IS_CODE = {
    CLOSURE, ENVIRONMENT, PROMISE, CALL, SPECIAL, BUILTIN, DOTS, EXPRESSION, BYTECODE, POINTER, WEAK, PERSISTENT,
    PACKAGE,
}  # fmt: skip
_KNOWN_COMPACT = {"compact_intseq", "compact_realseq", "deferred_string"}

SMALL = 64  # bytes of numbers up to which they are copied: a view takes more
NODE_COST = 250
NODES_AT_ONCE = 1 << 18
LONGEST_PIECE = 32 << 10  # bytes; shorter ones are written into one buffer


class Node:
    """One thing of R's. `data` is what only it has: numbers as bytes, texts, a name; `parts` are nodes.

    Attributes are a part: the first of a pairlist's cell and of a function, and the last of all others. What is
    within bytecode only has a negative type.
    """

    __slots__ = ("data", "flags", "parts")

    def __init__(self, flags: int, data: Any = None, parts: list[Node] | None = None) -> None:
        self.flags, self.data, self.parts = flags, data, [] if parts is None else parts

    @property
    def type(self) -> int:
        """R's number of the type; within bytecode it may be something else."""
        return self.flags & 255 if self.flags > 0 else -self.flags

    @property
    def attributes(self) -> dict[str, Node]:
        """By name."""
        if not self.flags & HAS_ATTRIBUTES:
            return {}
        cell = self.parts[0 if self.type in _CELLS or self.type == CLOSURE else -1]
        found: dict[str, Node] = {}
        while cell.type == PAIRS and cell.flags & HAS_TAG:
            tag, value = cell.parts[-3:-1]
            found[str(tag.data)] = value
            cell = cell.parts[-1]
        if cell.type != NULL:
            refuse("attributes are no list")
        return found

    @property
    def items(self) -> list[Node]:
        """The elements of a list."""
        return self.parts[:-1] if self.flags & HAS_ATTRIBUTES else self.parts

    @property
    def cells(self) -> list[tuple[Node | None, Node]]:
        """Tag and value of each place of a pairlist or call."""
        found, cell = [], self
        while cell.type in _CELLS:
            found.append((cell.parts[-3] if cell.flags & HAS_TAG else None, cell.parts[-2]))
            cell = cell.parts[-1]
        return found


NOTHING = Node(NULL)


# --- making nodes ----------------------------------------------------------------------------


def make(type: int, data: Any, attributes: dict[str, Node] | None = None) -> Node:
    """A vector: its numbers as anything with a buffer, texts as a list, `Texts` or `Records`, elements as a list."""
    parts: list[Node] = list(data) if type == LIST else []
    node = Node(type, None if type == LIST else data, parts)
    if attributes:
        node.flags |= HAS_ATTRIBUTES | (IS_OBJECT if "class" in attributes else 0)
        parts.append(make_pairs(attributes))
    return node


def make_pairs(values: dict[str, Node]) -> Node:
    """A pairlist of named things."""
    pairs = NOTHING
    for name, value in reversed(values.items()):
        pairs = Node(PAIRS | HAS_TAG, None, [Node(SYMBOL, name), value, pairs])
    return pairs


def attach(node: Node, attributes: dict[str, Node]) -> Node:
    """A vector with more attributes, or with others in place of those that it has."""
    if not attributes:
        return node
    return make(node.type, node.items if node.type == LIST else node.data, {**node.attributes, **attributes})


# --- reading ---------------------------------------------------------------------------------


class Tree:
    """What a stream holds. `types` are those of all nodes within; `compact` are R's compact vectors."""

    def __init__(self, root: Node, types: set[int], compact: list[Node]) -> None:
        self.root, self.types, self.compact = root, types, compact

    @property
    def is_code(self) -> bool:
        """Whether there is anything but data: what R may evaluate, or look up elsewhere, or what only points."""
        return bool(self.types & _IS_CODE) or not all(map(is_known, self.compact))


def is_known(node: Node) -> bool:
    """Whether a compact vector is of one of R's own kinds that hold nothing but data."""
    cells = node.parts[0].cells
    names = [value.data for _, value in cells if value.type == SYMBOL]
    known = names[0] in _KNOWN_COMPACT or names[0].startswith("wrap_") if names else False
    return known and names[1:] == ["base"]


def parse(data: memoryview, *, settle: bool = False) -> Tree:
    """The tree of a stream.

    Args:
        data: all of it.
        settle: whether numbers that are not aligned may be moved, a few bytes down, within `data`.

    Raises:
        ValuesError: it is damaged, or needs more memory than is free.
    """
    try:
        return _Parser(memoryview(data).cast("B"), settle).parse()
    except (struct.error, IndexError):
        refuse("it ends too early")
    except MemoryError:
        raise ValuesError("memory", "there is not enough memory here") from None


class _Parser:
    def __init__(self, data: memoryview, settle: bool) -> None:
        self.data, self.position = data, 0
        self.seen: list[Node] = []
        self.types: set[int] = set()
        self.compact: list[Node] = []
        self.encoding = "utf-8"
        self.count, self.afforded = 0, NODES_AT_ONCE
        self.address = _address_of(data) if settle and not data.readonly else None
        self.is_big = False
        self.read_int = struct.Struct("<i").unpack_from

    def parse(self) -> Tree:
        self.read_header()
        root = self.read_tree()
        if self.position != len(self.data):
            refuse("there is more after its end")
        return Tree(root, self.types, self.compact)

    def read_header(self) -> None:
        form = bytes(self.data[:2])
        if form not in (b"B\n", b"X\n"):
            refuse("it does not begin as R's binary serialization does")
        self.is_big = form == b"X\n" or bytes(self.data[2:5]) == b"\0\0\0"
        self.read_int = struct.Struct(">i" if self.is_big else "<i").unpack_from
        self.position = 2
        version = self.take_int()
        if version not in (2, 3):
            refuse(f"version `{version}` of R's serialization is not known")
        self.position += 8
        if version == 3:
            size = self.take_int()
            if not 0 <= size < 64:
                refuse("the name of an encoding is too long")
            name = bytes(self.take(size)).decode("latin-1")
            self.encoding = {"UTF-8": "utf-8", "ISO-8859-1": "latin-1", "latin1": "latin-1"}.get(name, name)

    def take_int(self) -> int:
        (value,) = self.read_int(self.data, self.position)
        self.position += 4
        return int(value)

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if size < 0 or end > len(self.data):
            refuse("it ends too early")
        view = self.data[self.position : end]
        self.position = end
        return view

    def length(self, width: int) -> int:
        """How many elements follow; that many bytes of each have to be there."""
        length = self.take_int()
        if length == -1:
            length = (self.take_int() << 32) + (self.take_int() & 0xFFFFFFFF)
        if length < 0 or length * width > len(self.data) - self.position:
            refuse("it ends too early")
        return length

    def read_tree(self) -> Node:
        """Each entry of the stack is a list of parts, how many of them are still to come, and where they stand."""
        root: list[Node] = []
        stack: list[tuple[list[Node], int, str]] = [(root, 1, "")]
        while stack:
            parts, missing, place = stack.pop()
            if place:
                self.read_in_bytecode(parts, missing, place, stack)
                continue
            while missing:
                node, more = self.read_node()
                parts.append(node)
                missing -= 1
                self.count += 1
                if self.count > self.afforded:
                    self.afford()
                if more:
                    if missing:
                        stack.append((parts, missing, ""))
                    if node.type == BYTECODE:
                        self.open_bytecode(node, stack)
                    else:
                        stack.append((node.parts, more, ""))
                    break
        return root[0]

    def afford(self) -> None:
        """Memory for some more nodes and short texts; what there were so far has taken its own already."""
        afford(NODES_AT_ONCE * NODE_COST, "a value of so many parts")
        self.afforded = self.count + NODES_AT_ONCE

    def read_node(self) -> tuple[Node, int]:
        """A node without its parts, and how many they are."""
        flags = self.take_int()
        if flags < 0:
            refuse("a flag is set that there is not")
        type = flags & 255
        more = 1 if flags & HAS_ATTRIBUTES else 0
        self.types.add(type)
        if type in WIDTHS:
            return Node(flags, self.read_numbers(type)), more
        if type == CHARACTER:
            return Node(flags, self.read_texts()), more
        if type in (LIST, EXPRESSION):
            return Node(flags), more + self.length(4)
        if type in _CELLS:
            return Node(flags), more + 2 + (1 if flags & HAS_TAG else 0)
        if type in _SINGLE:
            return NOTHING if type == NULL else Node(type), 0
        if type == REFERENCE:
            place = (flags >> 8) or self.take_int()
            if not 0 < place <= len(self.seen):
                refuse("it refers to what is not there")
            return self.seen[place - 1], 0
        return self.read_rare(flags, type, more)

    def read_rare(self, flags: int, type: int, more: int) -> tuple[Node, int]:
        if type == SYMBOL:
            name = self.read_text() or "NA"
            node = Node(type, name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
            self.seen.append(node)
            return node, 0
        if type in (ENVIRONMENT, POINTER, WEAK):
            node = Node(flags, self.take_int() if type == ENVIRONMENT else None)
            self.seen.append(node)
            return node, {ENVIRONMENT: 4, POINTER: 2 + more, WEAK: more}[type]
        if type in (NAMESPACE, PACKAGE, PERSISTENT):
            if self.take_int():
                refuse("names have names")
            node = Node(type, [self.read_text() for _ in range(self.length(8))])
            self.seen.append(node)
            return node, 0
        if type == CHARS:
            self.position -= 4
            return Node(type, self.read_text()), 0
        if type in (SPECIAL, BUILTIN):
            return Node(type, bytes(self.take(self.take_int()))), 0
        if type == BYTECODE:
            return Node(flags, self.take_int()), 1
        arity = {CLOSURE: 3 + more, S4: more, COMPACT: 3}.get(type)
        if arity is None:
            refuse(f"there is no type `{type}`")
        node = Node(flags)
        if type == COMPACT:
            self.compact.append(node)
        return node, arity

    # Within bytecode each thing has its type before it, and calls that are there twice are numbered.

    def open_bytecode(self, node: Node, stack: list[tuple[list[Node], int, str]]) -> None:
        if node.flags > 0 and node.flags & HAS_ATTRIBUTES:
            stack.append((node.parts, 1, ""))
        stack.append((node.parts, 1, "constants"))
        stack.append((node.parts, 1, ""))

    def read_in_bytecode(
        self, parts: list[Node], missing: int, place: str, stack: list[tuple[list[Node], int, str]]
    ) -> None:
        if place == "constants":
            missing = self.length(4)
            parts.append(Node(-INTEGER, missing))
        if missing > 1:
            stack.append((parts, missing - 1, "constant"))
        if not missing:
            return
        type, number = self.take_int(), None
        if type == DEFINED:
            number, type = self.take_int(), self.take_int()
        node = Node(-type, number)
        if type == SEEN:
            node.data = self.take_int()
        elif type == BYTECODE:
            self.open_bytecode(node, stack)
        elif type in _CELLS_IN_BYTECODE:
            stack.append((node.parts, 2, "constant"))
            stack.append((node.parts, 1 if type in (CALL, PAIRS) else 2, ""))
        else:
            stack.append((parts, 1, ""))
            return
        parts.append(node)

    def read_numbers(self, type: int) -> Any:
        width = WIDTHS[type]
        length = self.length(width)
        start, size = self.position, length * width
        if self.is_big and width > 1:
            afford(size, "the value")
            numbers = array.array("i" if width == 4 else "d")
            numbers.frombytes(self.take(size))
            numbers.byteswap()
            return memoryview(numbers).cast("B")
        view = self.take(size)
        if size <= SMALL:
            return bytes(view)
        off = (self.address + start) % min(width, 8) if self.address is not None else 0
        if off:  # the bytes before are the vector's own length, which was read
            moved = self.data[start - off : start - off + size]
            moved[:] = view
            return moved
        return view

    def read_text(self) -> str | bytes | None:
        flags, size = self.take_int(), self.take_int()
        if size == -1:
            return None
        return decode(bytes(self.take(size)), flags, self.encoding)

    def read_texts(self) -> Any:
        length = self.length(8)
        if length <= SHORT or find_numpy() is None:
            if length > NODES_AT_ONCE:
                afford(length * TEXT_COST, "so many texts")
            self.count += length
            return [self.read_text() for _ in range(length)]
        texts = Texts(self.data, self.position, length, self.is_big, self.encoding)
        self.position = texts.end
        return texts


def _address_of(data: memoryview) -> int | None:
    """Where in memory it stands."""
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(data)) if len(data) else None


# --- writing ---------------------------------------------------------------------------------

_VERSIONS = struct.pack("<iii", 3, 0x040000, 0x030500)  # of the format, of who wrote, of who can read
_PAD = Node(-NULL)


def dump(root: Node) -> list[memoryview]:
    """The stream of a tree, as buffers; long ones are views of what the nodes have."""
    return _Dumper().dump(root)


class _Dumper:
    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self.small = bytearray(b"B\n" + _VERSIONS + struct.pack("<i", 5) + b"UTF-8")
        self.seen: dict[Any, int] = {}

    def dump(self, root: Node) -> list[memoryview]:
        stack = [root]
        while stack:
            node = stack.pop()
            parts = self.write(node)
            if parts:
                stack.extend(reversed(parts))
        self.flush()
        return self.buffers

    def flush(self) -> None:
        if self.small:
            self.buffers.append(memoryview(self.small))
            self.small = bytearray()

    def ints(self, *values: int) -> None:
        self.small += struct.pack(f"<{len(values)}i", *values)

    def add(self, data: Any) -> None:
        view = memoryview(data)
        if view.nbytes <= LONGEST_PIECE:
            self.small += view
            return
        self.flush()
        self.buffers.append(view.cast("B") if view.format != "B" or view.ndim != 1 else view)

    def length(self, length: int) -> None:
        if length < 1 << 31:
            self.ints(length)
        else:
            self.ints(-1, length >> 32)
            self.small += struct.pack("<I", length & 0xFFFFFFFF)

    def write(self, node: Node) -> list[Node]:
        """A node without its parts, which are what comes next."""
        flags, type, data = node.flags, node.type, node.data
        if flags < 0:
            return self.write_in_bytecode(node)
        if type in WIDTHS:
            view = memoryview(data)
            self.ints(flags)
            self.length(view.nbytes // WIDTHS[type])
            self.add(view)
        elif type == CHARACTER:
            self.ints(flags)
            self.write_texts(data)
        elif type in (LIST, EXPRESSION):
            self.ints(flags)
            self.length(len(node.items))
        elif type in (SYMBOL, ENVIRONMENT, POINTER, WEAK, NAMESPACE, PACKAGE, PERSISTENT):
            return self.write_shared(node)
        elif type == CHARS:
            self.small += encode_text(data)
        elif type in (SPECIAL, BUILTIN):
            self.ints(flags, len(data))
            self.small += data
        elif type == BYTECODE:
            self.ints(flags, data)
            return padded(node.parts)
        else:
            self.ints(flags)
        return node.parts

    def write_texts(self, data: Any) -> None:
        if isinstance(data, Texts) and not data.is_big and not len(data.odd):
            self.length(len(data))
            self.add(data.data[data.start : data.end])
            return
        if not isinstance(data, Records):
            data = encode_texts(data.tolist() if isinstance(data, Texts) else data)
        self.length(data.count)
        for piece in data.pieces:
            self.add(piece)

    def write_shared(self, node: Node) -> list[Node]:
        """What may be referred to."""
        key = node.data if node.type == SYMBOL else id(node)
        place = self.seen.get(key)
        if place is not None:
            self.ints(*([place << 8 | REFERENCE] if place < 1 << 23 else [REFERENCE, place]))
            return []
        self.seen[key] = len(self.seen) + 1
        self.ints(node.flags)
        if node.type == SYMBOL:
            self.small += encode_text(node.data)
        elif node.type == ENVIRONMENT:
            self.ints(node.data)
        elif node.type in (NAMESPACE, PACKAGE, PERSISTENT):
            self.ints(0, len(node.data))
            self.small += b"".join(map(encode_text, node.data))
        return node.parts

    def write_in_bytecode(self, node: Node) -> list[Node]:
        type = node.type
        if node is _PAD:
            self.ints(0)
        elif type == INTEGER:
            self.ints(node.data)
        elif type == SEEN:
            self.ints(SEEN, node.data)
        elif type == BYTECODE:
            self.ints(BYTECODE)
            return padded(node.parts)
        else:
            self.ints(*([] if node.data is None else [DEFINED, node.data]), type)
            return [*node.parts[:-2], *padded(node.parts[-2:], 0)]
        return []


def padded(parts: list[Node], first: int = 2) -> list[Node]:
    """The parts of bytecode: before what is no code itself stands a number in place of its type.

    The first are the code and how many constants there are; attributes come behind the constants.
    """
    last = first + parts[1].data if first else len(parts)
    made = parts[:first]
    for part in parts[first:last]:
        made += [part] if part.flags < 0 else [_PAD, part]
    return made + parts[last:]
