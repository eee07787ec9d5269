"""Python's values as nodes of R's; on the client. The tables of `reader.py` say what becomes what."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import importlib
import struct
from collections.abc import Iterator
from typing import Any, NoReturn

from .._values import ValuesError, find_numpy, named
from . import times
from .compact import NA_INTEGER, is_installed
from .kinds import DEPTH, RDict, RList, RValue, RVector
from .stream import (
    CHARACTER,
    COMPLEX,
    DOUBLE,
    INTEGER,
    LIST,
    LOGICAL,
    NAMES,
    NOTHING,
    RAW,
    WIDTHS,
    Node,
    attach,
    make,
)
from .texts import encode_texts
from .times import RDate, RDatetime, RTimedelta

NA_DOUBLE = struct.pack("<Q", 0x7FF00000000007A2)
_TYPES = {name: type for type, name in NAMES.items() if type in WIDTHS or type in (CHARACTER, LIST)}


def _beside(name: str) -> Any:
    return importlib.import_module("." + name, __package__)


class Writer:
    """Makes nodes of Python values. `notes` are what was lost."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.places: list[str] = []
        self.names: dict[tuple[Any, ...], Node] = {}

    def node(self, value: Any, place: str | None = None) -> Node:
        """The node of a value, which stands at a place that has a name."""
        if place is not None:
            self.places.append(place)
        if len(self.places) > DEPTH + 1:  # as deep as what is read
            self.refuse_depth()
        made = self.make(value)
        if place is not None:
            self.places.pop()
        return made

    def make(self, value: Any) -> Node:
        """The node of a value."""
        maker = _MAKERS.get(type(value))
        if maker is not None:
            made: Node = maker(self, value)
            return made
        root = type(value).__module__.partition(".")[0]
        if root == "numpy" and find_numpy() is not None:
            return self.array(value)
        if root in ("pandas", "polars", "pyarrow"):
            column: Node | None = _beside("columns").close(value, self)
            if column is not None:
                return column
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self.mapping(dict(zip(value._fields, value, strict=True)))
        for kind in (
            str,
            bool,
            int,
            float,
            complex,
            bytes,
            dict,
            list,
            tuple,
            set,
            frozenset,
            datetime.datetime,
        ):
            if isinstance(value, kind):
                return self.make_as(kind, value)
        if find_numpy() is not None and isinstance(value, importlib.import_module("numpy").ndarray):
            return self.array(value)
        return self.refuse(value)

    def make_as(self, kind: type, value: Any) -> Node:
        """The node of a value of a subclass."""
        made: Node = _MAKERS[kind](self, value)
        return made

    def array(self, value: Any) -> Node:
        """The node of something of numpy's."""
        numpy = importlib.import_module("numpy")
        if value is numpy.ma.masked:
            return self.missing()
        if isinstance(value, numpy.ndarray | numpy.generic):
            made: Node = _beside("arrays").close_array(value, self)
            return made
        return self.refuse(value)

    def memory(self, value: Any) -> Node:
        """Numbers of C's."""
        view = memoryview(value)
        if view.format in ("B", "c") and isinstance(value, memoryview):
            return make(RAW, view.tobytes())
        if view.format not in tuple("?bBhHiIlLqQfd"):
            return self.refuse(value)
        return (
            self.array(importlib.import_module("numpy").asarray(view))
            if is_installed("numpy")
            else self.node(view.tolist())
        )

    def refuse(self, value: Any) -> NoReturn:
        """R has nothing like it."""
        hints = ("make it a dict, a list, an array or a data frame of what R has",)
        raise ValuesError(
            "kind", f"{named(type(value))} does not cross to R", cause=self.where(), hints=hints
        )

    def refuse_depth(self) -> NoReturn:
        """It is too deep."""
        raise ValuesError(
            "kind",
            f"a value that holds itself, or is nested more than `{DEPTH}` levels deep, does not cross to R",
        )

    def where(self) -> str | None:
        """The place of what is being written."""
        return f"it is in {', in '.join(reversed(self.places[:8]))}" if self.places else None

    def note(self, text: str) -> None:
        """Say what was lost."""
        place = self.places[-1] if self.places else ""
        self.notes.append(f"{place}: {text}" if place else text)

    def lose_digits(self, is_so: bool) -> None:
        """Whole numbers became doubles."""
        if is_so:
            self.note("whole numbers beyond 2^53 lost digits as R has no 64-bit integers")

    def missing(self) -> Node:
        """One that is missing, of no kind."""
        return make(LOGICAL, struct.pack("<i", NA_INTEGER))

    def whole(self, value: int) -> Node:
        """An int."""
        if NA_INTEGER < value < -NA_INTEGER:
            return make(INTEGER, struct.pack("<i", value))
        return self.integers([value])

    def integers(self, values: list[int | None]) -> Node:
        """Whole numbers."""
        present = [int(value) for value in values if value is not None]
        if not present or (min(present) > NA_INTEGER and max(present) < -NA_INTEGER):
            numbers = [NA_INTEGER if value is None else value for value in values]
            return make(INTEGER, memoryview(array.array("i", numbers)).cast("B"))
        try:
            self.lose_digits(any(int(float(value)) != value for value in present))
        except OverflowError:
            raise ValuesError("kind", "a whole number is too large for R", cause=self.where()) from None
        return self.doubles(values)

    def doubles(self, values: list[Any]) -> Node:
        """Numbers; None is missing."""
        data = memoryview(array.array("d", [0.0 if value is None else value for value in values])).cast("B")
        for place, value in enumerate(values):
            if value is None:
                data[8 * place : 8 * place + 8] = NA_DOUBLE
        return make(DOUBLE, data)

    def encode_texts(self, texts: list[Any]) -> Any:
        """Texts as they are written."""
        try:
            return encode_texts(texts)
        except ValuesError as error:
            if error.cause is None:
                error.cause = self.where()
            raise

    def texts(self, texts: list[Any]) -> Node:
        """A vector of texts."""
        return make(CHARACTER, self.encode_texts(texts))

    def sequence(self, value: list[Any]) -> Node:
        """A list: a vector if all elements are of one kind."""
        if type(value) is RList:
            return self.elements(list(value), self.attributes(value.attributes))
        return self.vector(list(value)) or self.elements(list(value), {})

    def objects(self, values: list[Any]) -> Node:
        """The elements of an array of objects: texts if there is nothing else, also where there is nothing."""
        if set(map(type, values)) <= {str, bytes, type(None)}:
            return self.texts(values)
        return self.vector(values) or self.elements(values, {})

    def elements(self, values: list[Any], attributes: dict[str, Node]) -> Node:
        """A list, whatever it holds."""
        nodes = [self.node(value, f"element {place + 1}") for place, value in enumerate(values)]
        return make(LIST, nodes, attributes)

    def attributes(self, values: dict[str, Any]) -> dict[str, Node]:
        """As nodes."""
        return {name: self.node(value, f"the attribute `{name}`") for name, value in values.items()}

    def vector(self, values: list[Any]) -> Node | None:
        """Values of one kind as a vector; None: they are none, or of several kinds."""
        kinds = set(map(type, values))
        numpy = find_numpy()
        if numpy is not None and any(issubclass(kind, numpy.generic) for kind in kinds):
            if len(kinds) == 1:
                return self.array(numpy.array(values))
            values = [
                value.item() if isinstance(value, numpy.number | numpy.bool_) else value for value in values
            ]
            kinds = set(map(type, values))
        kinds -= {type(None)}
        if kinds == {bool}:
            numbers = [NA_INTEGER if value is None else int(value) for value in values]
            return make(LOGICAL, memoryview(array.array("i", numbers)).cast("B"))
        if kinds == {int}:
            return self.integers(values)
        if kinds and kinds <= {int, float}:
            return self.doubles(values)
        if kinds == {str}:
            return self.texts(values)
        if kinds and kinds <= {int, float, complex}:
            pairs = [part for value in values for part in _parts_of(value)]
            return make(COMPLEX, b"".join(pairs))
        if kinds and kinds <= {decimal.Decimal, fractions.Fraction}:
            return self.doubles([None if value is None else float(value) for value in values])
        if kinds == {datetime.date}:
            return times.close_dates(self.doubles([value and times.days_of(value) for value in values]).data)
        if kinds == {datetime.timedelta}:
            spans = [None if value is None else times.span_of(value) for value in values]
            return times.close_spans(self.doubles(spans).data)
        if kinds == {datetime.datetime}:
            return self.moments(values)
        return None

    def moments(self, values: list[datetime.datetime | None]) -> Node:
        """Moments; of several time zones the first is the vector's."""
        zone = next((value.tzinfo for value in values if value is not None), None)
        numbers = self.doubles([value and times.seconds_of(value) for value in values])
        return times.close_moments(numbers.data, self.zone(zone))

    def zone(self, zone: Any) -> str:
        """R's name of a time zone."""
        name = times.zone_name(zone)
        if name is None:
            self.note(f"R has no name for the time zone `{zone}`: it is UTC there")
        return name or "UTC"

    def time(self, value: Any) -> Node:
        """One date, moment or span."""
        if isinstance(value, RDate | RDatetime | RTimedelta):
            if value.vector is not None:
                return self.vector_of(value.vector)
            if isinstance(value, RDatetime):
                value = times.plain_moment(value)
            else:
                value = times.plain_date(value) if isinstance(value, RDate) else value + datetime.timedelta()
        elif isinstance(value, datetime.datetime):
            return self.moments([value])
        made = self.vector([value])
        return made if made is not None else self.refuse(value)

    def close_times(self, values: Any) -> Node:
        """An array of moments or spans of numpy's."""
        made: Node = _beside("columns").close_times(values)
        return made

    def vector_of(self, value: RVector) -> Node:
        """A vector with attributes."""
        type = _TYPES.get(value.type)
        if type is None:
            raise ValuesError("kind", f"R has no vectors of type `{value.type}`")
        if isinstance(value.values, list):
            node = self.plain_vector(type, value.values)
        else:
            node = _beside("arrays").close_vector(type, value.values, self)
        return attach(node, self.attributes(value.attributes))

    def plain_vector(self, type: int, values: list[Any]) -> Node:
        """A vector of that type, of what is in a list."""
        if type == RAW:
            return make(RAW, bytes(values))
        if type == DOUBLE:
            return self.doubles(values)
        if type == CHARACTER:
            return self.texts(values)
        empty = b"" if type != LIST else []
        return (self.vector(values) if values else make(type, empty)) or make(
            type, struct.pack("<i", NA_INTEGER) * len(values)
        )

    def mapping(self, value: dict[Any, Any]) -> Node:
        """A list with names."""
        aside = value.names if type(value) is RDict else {}
        more = value.attributes if type(value) is RDict else {}
        keys, nodes = [], []
        for place, (key, element) in enumerate(value.items()):
            name = aside.get(key, key)
            keys.append(name if name is None or isinstance(name, str | bytes) else str(name))
            shown = f"`{name}`" if isinstance(name, str) else f"element {place + 1}"
            nodes.append(self.node(element, shown))
        names = self.names.get(tuple(keys))
        if names is None:  # of many dicts that are alike, one serves all
            names = self.names[tuple(keys)] = self.texts(keys)
        return make(LIST, nodes, {"names": names, **self.attributes(more)})


def _parts_of(value: Any) -> Iterator[bytes]:
    if value is None:
        yield NA_DOUBLE * 2
    else:
        value = complex(value)
        yield struct.pack("<dd", value.real, value.imag)


_MAKERS: dict[type, Any] = {
    type(None): lambda writer, value: NOTHING,
    bool: lambda writer, value: make(LOGICAL, struct.pack("<i", value)),
    int: Writer.whole,
    float: lambda writer, value: make(DOUBLE, struct.pack("<d", value)),
    complex: lambda writer, value: make(COMPLEX, struct.pack("<dd", value.real, value.imag)),
    str: lambda writer, value: writer.texts([value]),
    bytes: lambda writer, value: make(RAW, value),
    bytearray: lambda writer, value: make(RAW, value),
    memoryview: Writer.memory,
    array.array: Writer.memory,
    collections.deque: Writer.sequence,
    RValue: lambda writer, value: value.node,
    RVector: Writer.vector_of,
    RList: Writer.sequence,
    RDict: Writer.mapping,
    dict: Writer.mapping,
    list: Writer.sequence,
    tuple: Writer.sequence,
    set: Writer.sequence,
    frozenset: Writer.sequence,
    range: Writer.sequence,
    decimal.Decimal: lambda writer, value: writer.doubles([float(value)]),
    fractions.Fraction: lambda writer, value: writer.doubles([float(value)]),
    **dict.fromkeys(
        (datetime.date, datetime.datetime, datetime.timedelta, RDate, RDatetime, RTimedelta), Writer.time
    ),
}
