"""What stands in Python for values of R's that are nothing there; on the client."""

from __future__ import annotations

import array
import importlib
import struct
from collections.abc import Sequence
from typing import Any

from .._values import ValuesError, afford
from .compact import NA_INTEGER, is_installed, length_of, texts_of
from .stream import (
    BASE,
    CALL,
    CHARACTER,
    CLOSURE,
    COMPLEX,
    DOUBLE,
    EMPTY,
    GLOBAL,
    HAS_ATTRIBUTES,
    INTEGER,
    LOGICAL,
    NAMES,
    NAMESPACE,
    RAW,
    SYMBOL,
    WIDTHS,
    Node,
    dump,
    parse,
)

DEPTH = 100
"""Levels of lists within lists; what is deeper comes as an RValue."""

MOST_TEXT = 80  # characters that say what an opaque value is

_SCALARS = {LOGICAL: "<i", INTEGER: "<i", DOUBLE: "<d", COMPLEX: "<dd"}


class RValue:
    """A value of R's that is nothing in Python, such as a function or a formula. It can go back as it is."""

    def __init__(self, data: Any, *, node: Node | None = None) -> None:
        self._data, self._node = data, node

    @property
    def stream(self) -> Any:
        """What it came as, if it came alone."""
        return self._data

    @property
    def node(self) -> Node:
        """Its tree."""
        if self._node is None:
            self._node = parse(memoryview(self._data)).root
        return self._node

    @property
    def data(self) -> bytes:
        """What R's `unserialize` reads."""
        return bytes(self._data) if self._data is not None else b"".join(dump(self.node))

    @property
    def type(self) -> str:
        """What R's `typeof` says."""
        return NAMES.get(self.node.type, "?")

    @property
    def text(self) -> str:
        """What it is, in one line; of what is damaged, whatever can be said."""
        try:
            text = _deparse(self.node, 4)
        except Exception:  # only to write it, or to open it, says what is wrong
            text = "?"
        return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3] + "..."

    def __repr__(self) -> str:
        text = self.text
        return f"<RValue {self.type if self._node is not None else '?'}: {text}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RValue, (self.data,)


class RVector(Sequence[Any]):
    """A vector with attributes that nothing in Python has. `values` are those of the vector without them."""

    def __init__(self, type: str, values: Any, attributes: dict[str, Any] | None = None) -> None:
        self.type, self.values, self.attributes = type, values, dict(attributes or {})

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: Any) -> Any:
        return self.values[place]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        numpy = importlib.import_module("numpy")
        return numpy.array(self.values, dtype) if copy else numpy.asarray(self.values, dtype)

    @property
    def names(self) -> list[str] | None:
        """Those of its elements."""
        names = self.attributes.get("names")
        return None if names is None else _as_list(names)

    def __repr__(self) -> str:
        more = ", ".join(f"{name}={value!r:.40}" for name, value in self.attributes.items())
        return f"RVector({self.type}, {self.values!r}{', ' if more else ''}{more})"


class RList(list[Any]):
    """A list of R's without names: it stays one, also where all elements are of one kind."""

    def __init__(self, values: Any = (), attributes: dict[str, Any] | None = None) -> None:
        super().__init__(values)
        self.attributes = dict(attributes or {})


class RDict(dict[Any, Any]):
    """A list of R's with names and more, such as a class. An element without a name, or with one that is
    there before it, has its place as key.
    """

    def __init__(
        self, values: Any = (), attributes: dict[str, Any] | None = None, names: dict[Any, Any] | None = None
    ) -> None:
        super().__init__(values)
        self.attributes, self.names = dict(attributes or {}), dict(names or {})


def _as_list(values: Any) -> list[Any]:
    return [values] if values is None or isinstance(values, str | bytes) else list(values)


def plain(value: Any) -> Any:
    """R's kinds of values as Python's own, for a session that knows no others; what is R's alone is lost.

    What holds none of them is returned as it is.

    Raises:
        ValuesError: it is nothing in Python.
    """
    return _plain(value, 0) if _holds_ours(value, set(), 0) else value


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith(f"{__package__}.")


def _holds_ours(value: Any, seen: set[int], depth: int) -> bool:
    if _is_ours(type(value)):
        return True
    if type(value) not in (list, tuple, dict) or id(value) in seen or depth > DEPTH:
        return False
    seen.add(id(value))
    held = value.values() if type(value) is dict else value
    return any(_holds_ours(item, seen, depth + 1) for item in held)


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is RValue:
        raise ValuesError(
            "kind",
            f"`{value.text}` of R ({value.type}) is nothing in Python",
            hints=("it can go to an R session",),
        )
    if depth > DEPTH:
        raise ValuesError("kind", "the value is nested too deeply")
    if kind is RVector:
        return _plain(value.values, depth + 1)
    if kind in (list, RList):
        return [_plain(item, depth + 1) for item in value]
    if kind is tuple:
        return tuple(_plain(item, depth + 1) for item in value)
    if kind in (dict, RDict):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if _is_ours(kind):
        return value.plain()
    return value


# --- vectors without attributes ------------------------------------------------------------


def open_plain(node: Node) -> Any:
    """A vector of which there is no more to say."""
    if node.type == RAW:
        afford(length_of(node), "the value")
        return bytes(node.data)
    if length_of(node) == 1:
        if node.type == CHARACTER:
            (value,) = node.data
            if isinstance(value, str):
                return value
        else:
            numbers = struct.unpack(_SCALARS[node.type], node.data)
            if node.type == COMPLEX:
                return complex(*numbers)
            if node.type == DOUBLE:
                return numbers[0]
            if numbers[0] != NA_INTEGER:
                return bool(numbers[0]) if node.type == LOGICAL else numbers[0]
    values = open_values(node)
    return RVector(NAMES[node.type], values) if isinstance(values, list) else values


def open_values(node: Node) -> Any:
    """The values alone: an array, or a list where there is no numpy."""
    if is_installed("numpy"):
        return importlib.import_module(".arrays", __package__).open_array(node)
    if node.type == CHARACTER:
        return list(node.data)
    if node.type == RAW:
        return list(node.data)
    afford(length_of(node) * 40, "the value")
    numbers: Any = array.array("i" if WIDTHS[node.type] == 4 else "d")
    numbers.frombytes(node.data)
    numbers = numbers.tolist()
    if node.type == COMPLEX:
        return list(map(complex, numbers[::2], numbers[1::2]))
    if node.type == DOUBLE:
        return numbers
    make_one = bool if node.type == LOGICAL else int
    return [None if number == NA_INTEGER else make_one(number) for number in numbers]


# --- what an opaque value is ------------------------------------------------------------

_INFIX = {
    "+", "-", "*", "/", "^", "==", "!=", "<", ">", "<=", ">=", "&", "&&", "|", "||", "~", "<-", "=", ":", "$", "@",
    "::", ":::",
}  # fmt: skip
_TIGHT = {"^", ":", "$", "@", "::", ":::"}


def _deparse(node: Node, depth: int) -> str:
    """Roughly as R would write it."""
    if node.type == SYMBOL:
        return str(node.data)
    if node.type == CALL and depth:
        function, *arguments = node.cells[:12]
        name = _deparse(function[1], depth - 1)
        shown = [_deparse(value, depth - 1) for _, value in arguments]
        if name in _INFIX and len(shown) == 2:
            return f"{'' if name in _TIGHT else ' '}{name}{'' if name in _TIGHT else ' '}".join(shown)
        if name in ("~", "-", "!", "+") and len(shown) == 1:
            return name + shown[0]
        tags = ["" if tag is None else f"{tag.data} = " for tag, _ in arguments]
        return f"{name}({', '.join(map(''.join, zip(tags, shown, strict=True)))})"
    if node.type == CLOSURE:
        names = [str(tag.data) for tag, _ in node.parts[-2].cells if tag is not None]
        return f"function({', '.join(names)})"
    if node.type in WIDTHS or node.type == CHARACTER:
        if length_of(node) == 1 and not node.flags & HAS_ATTRIBUTES:
            return _show(open_plain(node))
        return f"<{NAMES[node.type]} of {length_of(node)}>"
    if "class" in (held := node.attributes):
        return f"<{NAMES.get(node.type, '?')} of class `{(texts_of(held['class']) or ['?'])[0]}`>"
    if node.type == NAMESPACE and node.data:
        return f"<namespace {node.data[0]}>"
    known = {EMPTY: "<emptyenv>", BASE: "<baseenv>", GLOBAL: "<globalenv>"}
    return known.get(node.type, f"<{NAMES.get(node.type, '?')}>")


def _show(value: Any) -> str:
    """One element."""
    if isinstance(value, str):
        return f'"{value}"' if value.isprintable() else "<text>"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return f"{value:.15g}" if isinstance(value, float) else f"{value}"
