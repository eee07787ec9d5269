"""What R's values are in Python, and back; on the client.

| R | Python | and with attributes |
|---|---|---|
| NULL | None | |
| one TRUE, 1L, 1.5, 1i, "a" | bool, int, float, complex, str | |
| one that is missing | array of one, masked or of None; `NA_real_` a float that is no number | |
| raw | bytes | |
| logical, integer | numpy array; a masked one where some are missing | RVector |
| double, complex | numpy array over the memory that came; NA and NaN stay apart | RVector |
| character | numpy array of str and None; `bytes` for texts that R marked so | RVector |
| vector with names | pandas Series | RVector |
| matrix, array | numpy array in R's order of memory; masked where some are missing | RArray |
| factor | pandas Categorical | Series with names, else RVector |
| one Date, POSIXct, difftime | date, datetime with its zone, timedelta | |
| more Dates | numpy array of days: exact, and no moments of a day | RVector |
| more POSIXct, difftime | pandas Series: numpy has no time zones | RVector |
| list with names | dict | RDict: also where names are missing or come twice |
| list without | RList | RList |
| data.frame, tibble | pandas DataFrame, what else it has in `attrs["R"]` | RDict if it holds frames or matrices |
| function, call, formula, environment, S4, pointer | RValue | |

Without pandas RVector and RDict stand for its classes, without numpy RVector for arrays. All of these give the
same value back to R, environments that are there twice included, if they go back together. `RDate`, `RDatetime` and
`RTimedelta` are dates and spans that keep what R had beside what Python can say.

| Python | R |
|---|---|
| list, tuple, set of bool, int, float, str, dates; None among them is missing | vector |
| of other things, or of several kinds | list |
| dict | list with names |
| int | integer; a double beyond 32 bits, which says so where digits are lost |
| Decimal, Fraction | double |
| arrays, masked arrays, Series, Categorical, frames of pandas, polars and pyarrow | vectors, factors, data.frame |
| numbers with 64 bits | integers if all fit, else doubles |
| datetime without a zone | POSIXct as a clock in UTC |
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import importlib
import struct
from typing import TYPE_CHECKING, Any

from .._values import ValuesError, blaming, named
from . import times
from .compact import NA_INTEGER, expand, is_installed, length_of, texts_of
from .kinds import DEPTH, RDict, RList, RValue, RVector, open_plain, open_values
from .stream import (
    CHARACTER,
    COMPACT,
    DOUBLE,
    HAS_ATTRIBUTES,
    INTEGER,
    LIST,
    NAMES,
    NULL,
    S4_OBJECT,
    WIDTHS,
    Node,
    dump,
    parse,
)
from .texts import refuse
from .writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator


def write(value: Any) -> tuple[list[memoryview], list[str]]:
    """The stream of a value as R's `unserialize` reads it, as buffers, and what was lost on the way, a sentence each.

    The buffers are views of the value's own memory where that can be: it must not change before they were sent.

    Raises:
        ValuesError: R has nothing like it.
    """
    if isinstance(value, RValue) and value.stream is not None:
        return [memoryview(value.stream).cast("B")], []
    with blaming("kind", f"{named(type(value))} does not cross to R"), _keeping_all():
        writer = Writer()
        try:
            buffers = dump(writer.node(value))
        except RecursionError:
            writer.refuse_depth()
    return buffers, list(dict.fromkeys(writer.notes))


_SENSELESS = "what the other end says of the value makes no sense"


@contextlib.contextmanager
def _keeping_all() -> Iterator[None]:
    """No garbage is looked for meanwhile: among so many new objects there is none, and it would take half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _beside(name: str) -> Any:
    return importlib.import_module("." + name, __package__)


def read(data: memoryview, format: str | None = None) -> Any:
    """The Python value of a serialized value of R's. The memory belongs to it from then on.

    Args:
        data: all of the stream, in memory of one's own: numbers stay in it, and may be moved a little, so it can
            be read once.
        format: "pandas", "polars", "arrow", "numpy", or "raw" for an RValue whatever it is. In these forms one
            element is a vector too.

    Raises:
        ValuesError: it is damaged, does not fit into memory, or has no such form.
    """
    if format == "raw":
        with blaming("corrupt", _SENSELESS):
            return RValue(data, node=parse(data).root)
    if format is not None:
        return _read_as(data, format)
    with blaming("corrupt", _SENSELESS), _keeping_all():
        return value_of(parse(data, settle=True).root)


def _read_as(data: memoryview, format: str) -> Any:
    """The value in a form that was asked for."""
    if not is_installed("numpy"):
        raise ValuesError("kind", "a `format` needs a library that is not installed here", "it is `numpy`")
    formats, frames = _beside("formats"), _beside("frames")
    formats.check(format)
    with blaming("corrupt", _SENSELESS), _keeping_all():
        root = parse(data, settle=True).root
        if root.type == COMPACT:
            root = expand(root) or root
        if format in ("polars", "arrow"):
            if frames.is_frame(root):
                return frames.open_frame_as(root, format, value_of)
            column = frames.open_vector_as(root, format, value_of)
            if column is not None:
                return column
        value = _vector_of(root)
    with blaming("kind", f"this value of R's has no form as `{format}`"):
        return formats.convert(value, format)


def _vector_of(node: Node) -> Any:
    """The value of a node, a vector also where it has but one element: what a script gets is no matter of chance."""
    if node.flags & S4_OBJECT or (node.type not in WIDTHS and node.type != CHARACTER):
        return value_of(node)
    if not node.flags & HAS_ATTRIBUTES:
        return open_values(node)
    value = _open_vector(node, node.attributes, 0, is_one=False)
    if isinstance(value, RVector) and texts_of(node.attributes.get("class")) == ["Date"]:
        series = _beside("frames").open_series(node, value_of) if is_installed("pandas") else None
        return value if series is None else series  # dates rather than their numbers
    return value


def is_code(data: memoryview) -> bool:
    """Whether a stream holds anything but data: what R may evaluate or run, and environments, which hold anything."""
    with blaming("corrupt", _SENSELESS):
        return parse(data).is_code


def value_of(node: Node, depth: int = 0) -> Any:
    """The Python value of a node."""
    if node.type == NULL:
        return None
    if node.type == COMPACT:
        node = expand(node) or node
    is_vector = node.type in WIDTHS or node.type in (CHARACTER, LIST)
    if not is_vector or node.flags & S4_OBJECT or depth > DEPTH:
        return RValue(None, node=node)
    if node.type == LIST:
        return _open_list(node, depth)
    if not node.flags & HAS_ATTRIBUTES:
        return open_plain(node)
    return _open_vector(node, node.attributes, depth, is_one=length_of(node) == 1)


def _open_list(node: Node, depth: int) -> Any:
    attributes = node.attributes
    classes = texts_of(attributes.get("class")) or ()
    if "data.frame" in classes and is_installed("pandas"):
        frame = _beside("frames").open_frame(node, functools.partial(value_of, depth=depth + 1))
        if frame is not None:
            return frame
    names = texts_of(attributes.pop("names", None))
    values = [value_of(item, depth + 1) for item in node.items]
    rest = {name: value_of(value, depth + 1) for name, value in attributes.items()}
    if names is None:
        return RList(values, rest)
    if len(names) != len(values):
        refuse("a list has more names than elements, or fewer")
    if not rest and len(set(names)) == len(names) and "" not in names and set(map(type, names)) <= {str}:
        return dict(zip(names, values, strict=True))
    made: dict[Any, Any] = {}
    aside: dict[Any, Any] = {}
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        key = name if isinstance(name, str) and name and name not in made else place
        if key is not name:
            aside[key] = name
        made[key] = value
    return RDict(made, rest, aside)


def _open_vector(node: Node, attributes: dict[str, Node], depth: int, *, is_one: bool) -> Any:
    """A vector with attributes; `is_one`: a date, moment or span comes as what Python has for one."""
    classes = texts_of(attributes.get("class"))
    value = None
    if classes:
        value = _open_class(node, classes, attributes, is_one)
    elif set(attributes) == {"names"} and is_installed("pandas"):
        value = _beside("frames").open_series(node, functools.partial(value_of, depth=depth + 1))
    if value is None and "dim" in attributes and "names" not in attributes and is_installed("numpy"):
        rest = {name: value_of(held, depth + 1) for name, held in attributes.items() if name != "dim"}
        shape = _beside("arrays").numbers(attributes["dim"]).tolist()
        value = _beside("arrays").open_matrix(node, list(map(int, shape)), rest)
    return value if value is not None else _open_any(node, depth)


def _open_any(node: Node, depth: int = 0) -> RVector:
    held = {name: value_of(value, depth + 1) for name, value in node.attributes.items()}
    return RVector(NAMES[node.type], open_values(node), held)


def _open_class(node: Node, classes: list[Any], attributes: dict[str, Node], is_one: bool) -> Any:
    """A vector with a class; None: nothing in Python is like it."""
    is_time = classes in (["Date"], ["POSIXct", "POSIXt"], ["difftime"]) and node.type in (INTEGER, DOUBLE)
    if is_time and is_one and "names" not in attributes:
        return _open_time(node, classes[0], attributes)
    if classes == ["Date"] and set(attributes) == {"class"} and is_installed("numpy"):
        return _open_dates(node)
    if (is_time and classes != ["Date"]) or "factor" in classes or (is_time and "names" in attributes):
        return _beside("frames").open_series(node, value_of) if is_installed("pandas") else None
    return None


def _open_dates(node: Node) -> Any:
    """Days, where they are nothing but days."""
    if node.type != DOUBLE:
        return None
    days, wrong = times.count_days(_beside("arrays").numbers(node))
    return None if wrong.any() else days.view("<M8[D]")


def _open_time(node: Node, kind: str, attributes: dict[str, Node]) -> Any:
    """One date, moment or span; None: there is none like it."""
    (number,) = struct.unpack("<i" if node.type == INTEGER else "<d", node.data)
    if node.type == INTEGER and number == NA_INTEGER:
        return None
    keys = set(attributes)
    made: Any = None
    plain, again = None, 0.0
    if kind == "Date":
        made = times.open_date(number)
        plain, again = (times.plain_date(made), times.days_of(made)) if made else (None, 0.0)
        is_plain = keys == {"class"}
    elif kind == "POSIXct":
        zones = texts_of(attributes.get("tzone")) or [""]
        zone = times.find_zone(zones[0])
        made = times.open_moment(number, zone)
        plain, again = (times.plain_moment(made), times.seconds_of(made)) if made else (None, 0.0)
        is_plain = keys == {"class", "tzone"} and len(zones) == 1 and zone is not None
    else:
        unit = (texts_of(attributes.get("units")) or [""])[0]
        made = times.open_span(number, unit) if unit in times.SECONDS else None
        plain, again = (made + datetime.timedelta(), times.span_of(made)) if made is not None else (None, 0.0)
        is_plain = keys == {"class", "units"} and unit == "secs"
    if made is None:
        return None
    if is_plain and node.type == DOUBLE and struct.pack("<d", again) == bytes(node.data):
        return plain
    made.vector = _open_any(node)
    return made
