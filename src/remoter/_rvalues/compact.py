"""Vectors that R's serialization has in a shorter form, and what texts and lengths are in any form; on the client.

A sequence is its ends, texts of numbers are the numbers, and a vector that is known to be sorted is wrapped.
"""

from __future__ import annotations

import array
import functools
import importlib
import importlib.util
import math
import struct
from typing import Any

from .._values import DEPTH, afford
from .stream import (
    CHARACTER,
    COMPACT,
    DOUBLE,
    HAS_ATTRIBUTES,
    INTEGER,
    IS_OBJECT,
    LOGICAL,
    S4_OBJECT,
    WIDTHS,
    Node,
    attach,
    is_known,
    make,
)
from .texts import refuse

NA_INTEGER = -(1 << 31)
NUMBER_AS_TEXT = 120  # bytes that a number takes as a text


@functools.cache
def is_installed(library: str) -> bool:
    """Whether a library can be imported."""
    return importlib.util.find_spec(library) is not None


def length_of(node: Node) -> int:
    """How many elements a vector has."""
    if node.type in WIDTHS:
        return memoryview(node.data).nbytes // WIDTHS[node.type]
    return len(node.data) if node.type == CHARACTER else len(node.items)


def texts_of(node: Node | None) -> list[Any] | None:
    """The texts of an attribute, if it is there."""
    if node is None:
        return None
    if node.type == COMPACT:
        node = expand(node) or node
    if node.type != CHARACTER:
        return None
    return list(node.data) if isinstance(node.data, list) else node.data.tolist()


def expand(node: Node, beside: int = 0) -> Node | None:
    """A compact vector as an ordinary one; None: of a kind that is not known here.

    Args:
        node: the compact vector.
        beside: bytes that each element will take besides; they have to be free too before there are any.
    """
    for _ in range(DEPTH):
        if not is_known(node):
            return None
        name = node.parts[0].cells[0][1].data
        state = node.parts[1]
        parts = [value for _, value in state.cells] or state.items or [state]
        if name.startswith("wrap_"):
            made: Node | None = parts[0]
        elif name == "deferred_string":
            inner = expand(parts[0], NUMBER_AS_TEXT) if parts[0].type == COMPACT else parts[0]
            made = make(CHARACTER, _as_texts(inner)) if inner is not None else None
        else:
            made = _sequence(state, name, beside)
        if made is None:
            return None
        attributes = Node(node.flags | HAS_ATTRIBUTES, None, [node.parts[2]]).attributes
        if attributes or node.flags & S4_OBJECT:
            if made.type == COMPACT:
                made = expand(made, beside) or refuse("a compact vector is of an unknown kind")
            made = attach(made, attributes)
            made.flags |= node.flags & (S4_OBJECT | IS_OBJECT)
        if made.type != COMPACT:
            return made
        node = made
    return refuse("compact vectors are within one another too often")


def _sequence(state: Node, name: str, beside: int) -> Node:
    if state.type != DOUBLE or length_of(state) != 3:
        refuse("a sequence has no ends")
    count, first, step = struct.unpack("<3d", state.data)
    if not (0 <= count < 1 << 52 and math.isfinite(first) and step in (1, -1)):
        refuse("a sequence has no length")
    count = int(count)
    is_integer = name == "compact_intseq"
    afford(count * ((4 if is_integer else 8) + beside), "the value")
    if is_integer and not (abs(first) < 1 << 31 and abs(first + step * count) <= 1 << 31):
        refuse("a sequence is of no integers")
    if is_installed("numpy"):
        numpy = importlib.import_module("numpy")
        values = numpy.arange(count, dtype="<i4" if is_integer else "<f8")
        values *= int(step)
        values += int(first) if is_integer else first
    else:
        values = array.array("i" if is_integer else "d", [])
        for place in range(count):
            values.append(int(first + step * place) if is_integer else first + step * place)
    return make(INTEGER if is_integer else DOUBLE, memoryview(values).cast("B"))


def _as_texts(node: Node) -> list[str | None]:
    """As `as.character` has them."""
    if node.type not in (INTEGER, DOUBLE, LOGICAL):
        refuse("texts are made of no numbers")
    afford(length_of(node) * NUMBER_AS_TEXT, "so many texts")
    if node.type == DOUBLE:
        numbers = array.array("d", bytes(node.data))
        bits = array.array("I", bytes(node.data))[::2]
        return [
            None if number != number and low == 1954 else format_double(number)
            for number, low in zip(numbers, bits, strict=True)
        ]
    whole = array.array("i", bytes(node.data)).tolist()
    made: list[str | None] = list(map(str, whole))
    if NA_INTEGER in whole:
        made = [None if number == NA_INTEGER else text for number, text in zip(whole, made, strict=True)]
    return made


def format_double(number: float) -> str:
    """A number in up to 15 digits, in the shorter one of two forms."""
    if not math.isfinite(number):
        return "NaN" if number != number else "Inf" if number > 0 else "-Inf"
    mantissa, _, power = f"{number:.14e}".partition("e")
    digits, exponent = mantissa.lstrip("-").replace(".", "").rstrip("0") or "0", int(power)
    behind = max(0, len(digits) - 1 - exponent)
    fixed = max(1, exponent + 1) + (behind + 1 if behind else 0)
    scientific = len(digits) + (len(digits) > 1) + (4 if abs(exponent) < 100 else 5)
    return f"{number:.{behind}f}" if fixed <= scientific else f"{number:.{len(digits) - 1}e}"
