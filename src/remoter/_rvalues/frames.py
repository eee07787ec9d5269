"""R's data frames, factors, times and named vectors as those of pandas, polars and pyarrow; on the client.

A column is what its dtype says. What that does not say, such as a label or a unit of R's, goes into
`attrs["R"]` of the frame, and is used on the way back as far as it still fits what stands in the column then.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from .._arrow import calmly
from .._values import ValuesError, blaming
from . import times
from .arrays import (
    NA_INTEGER,
    is_missing,
    missing_double,
    numbers,
    objects,
    texts,
)
from .compact import expand, is_installed
from .stream import CHARACTER, COMPACT, DOUBLE, INTEGER, LIST, LOGICAL, NAMES, S4_OBJECT, WIDTHS, Node, make
from .texts import Texts, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

NAT = -(1 << 63)
MOST_DAYS = 1 << 46
"""Beyond so many there are no moments of pandas', which counts days in seconds."""

ROW_NAMES = "row.names"
"""The column that they are in where a frame has no index."""


class RFacts(dict[str, Any]):
    """What a frame or column was in R, beyond its dtypes. To pandas it is a small dict that all copies share."""

    columns: dict[tuple[Any, int], Column]
    attributes: dict[str, Any]
    shape: tuple[Any, ...]

    def __deepcopy__(self, memo: Any) -> RFacts:
        return self


class Column(NamedTuple):
    """A column of R's: its kind, a type or class; the values; attributes that they do not have, None for one
    that they have and R had not; and the numbers in R with the counts that were made of them and their dtype,
    if not all come back from those.
    """

    kind: str
    values: Any
    extra: dict[str, Any]
    original: Any = None
    storage: int = DOUBLE

    @property
    def is_plain(self) -> bool:
        """Whether the values say all."""
        is_own = self.kind in ("raw", "integer64", "list", "bytes")
        return not (self.extra or is_own or self.original is not None or self.storage == INTEGER)


# --- R's columns -----------------------------------------------------------------------------


class Vector(NamedTuple):
    """A column before any library: values are numpy's, with a mask; or texts, or elements. `more` is what the
    kind says besides: levels and whether they are ordered, unit and zone.
    """

    kind: str
    values: Any
    missing: Any
    more: Any
    extra: dict[str, Node | None]
    original: Any = None
    storage: int = DOUBLE


def open_vector(node: Node) -> Vector | None:
    """A vector in one dimension; None: it is something else."""
    attributes = dict(node.attributes)
    is_vector = node.type in WIDTHS or node.type in (CHARACTER, LIST)
    if not is_vector or node.flags & S4_OBJECT or "dim" in attributes:
        return None
    classes = texts(attributes["class"]) if "class" in attributes else []
    for kind, opener in _CLASSES.items():
        if kind in classes and node.type in (INTEGER, DOUBLE):
            return opener(node, attributes, classes)
    extra: dict[str, Node | None] = {**attributes}
    if node.type == LIST:
        return None if "data.frame" in classes else Vector("list", node.items, None, None, extra)
    if node.type == CHARACTER:
        return Vector("character", node.data, None, None, extra)
    values = numbers(node)
    missing = None
    if node.type in (LOGICAL, INTEGER):
        missing = values == NA_INTEGER
        missing = missing if missing.any() else None
        values = values != 0 if node.type == LOGICAL else values
    return Vector(NAMES[node.type], values, missing, None, extra)


def _open_factor(node: Node, attributes: dict[str, Node], classes: list[Any]) -> Vector | None:
    levels = texts(_expanded(attributes.pop("levels"))) if "levels" in attributes else []
    if node.type != INTEGER or len(set(levels)) < len(levels) or set(map(type, levels)) - {str}:
        return None
    codes = numbers(node)
    missing = codes == NA_INTEGER
    present = codes[~missing] if missing.any() else codes
    if len(present) and not 1 <= present.min() <= present.max() <= len(levels):
        refuse("a factor has fewer levels than it says")
    if classes in (["factor"], ["ordered", "factor"]):
        del attributes["class"]
    codes = numpy.where(missing, -1, codes - 1) if missing.any() else codes - 1
    return Vector("factor", codes, missing, (levels, "ordered" in classes), {**attributes})


def _as_doubles(node: Node) -> Any:
    values = numbers(node)
    if node.type == DOUBLE:
        return values
    doubles = values.astype("<f8")
    doubles[values == NA_INTEGER] = missing_double()
    return doubles


def _open_dates(node: Node, attributes: dict[str, Node], classes: list[Any]) -> Vector | None:
    if classes != ["Date"]:
        return None
    doubles = _as_doubles(node)
    days, wrong = times.count_days(doubles)
    original = doubles if wrong.any() or (numpy.abs(days) > MOST_DAYS).any() else None
    del attributes["class"]
    return Vector("Date", days, days == NAT, None, {**attributes}, original, node.type)


def _open_moments(node: Node, attributes: dict[str, Node], classes: list[Any]) -> Vector | None:
    if classes != ["POSIXct", "POSIXt"]:
        return None
    doubles = _as_doubles(node)
    counts, unit, wrong = times.count(doubles)
    original = doubles if wrong.any() else None
    del attributes["class"]
    zones = texts(attributes["tzone"]) if attributes.get("tzone", node).type == CHARACTER else []
    zone = zones[0] if zones and times.find_zone(zones[0]) is not None else "UTC"
    extra: dict[str, Node | None] = {**attributes}
    if zones == [zone]:
        del extra["tzone"]
    else:
        extra.setdefault("tzone", None)
    return Vector("POSIXct", counts, counts == NAT, (unit, zone), extra, original, node.type)


def _open_spans(node: Node, attributes: dict[str, Node], classes: list[Any]) -> Vector | None:
    units = texts(attributes["units"]) if "units" in attributes else []
    if classes != ["difftime"] or len(units) != 1 or units[0] not in times.SECONDS:
        return None
    doubles = _as_doubles(node)
    counts, unit, wrong = times.count(doubles, times.SECONDS[units[0]])
    original = doubles if wrong.any() else None
    del attributes["class"]
    extra: dict[str, Node | None] = {**attributes}
    if units == ["secs"]:
        del extra["units"]
    return Vector("difftime", counts, counts == NAT, (unit, units[0]), extra, original, node.type)


def _open_long(node: Node, attributes: dict[str, Node], classes: list[Any]) -> Vector | None:
    if node.type != DOUBLE:
        return None
    values = numbers(node).view("<i8")
    missing = values == NAT
    return Vector("integer64", values, missing if missing.any() else None, None, {**attributes})


_CLASSES = {
    "factor": _open_factor,
    "Date": _open_dates,
    "POSIXct": _open_moments,
    "difftime": _open_spans,
    "integer64": _open_long,
}


def _expanded(node: Node) -> Node:
    return (expand(node) or node) if node.type == COMPACT else node


class Frame(NamedTuple):
    """A data frame before any library."""

    names: list[Any]
    vectors: list[Vector]
    rows: Any
    height: int
    extra: dict[str, Node]


def is_frame(node: Node) -> bool:
    """Whether a node is a data frame."""
    classes = node.attributes.get("class") if node.type == LIST else None
    return classes is not None and classes.type == CHARACTER and "data.frame" in texts(classes)


def open_parts(node: Node) -> Frame | None:
    """The parts of a data frame; None: it has columns that are none."""
    attributes = dict(node.attributes)
    items = list(map(_expanded, node.items))
    names = texts(_expanded(attributes.pop("names"))) if "names" in attributes else []
    rows, count = _open_rows(_expanded(attributes.pop("row.names")) if "row.names" in attributes else None)
    if len(names) != len(items) or count is None:
        return None
    vectors = []
    for item in items:
        vector = open_vector(item)
        length = -1 if vector is None else len(vector.values)
        if vector is None or length != count:
            return None
        vectors.append(vector)
    if texts(attributes["class"]) == ["data.frame"]:
        del attributes["class"]
    return Frame(names, vectors, rows, count, attributes)


def _open_rows(node: Node | None) -> tuple[Any, int | None]:
    """The names of the rows, None if they are only numbered; and how many they are."""
    if node is None or node.attributes:
        return None, None
    if node.type == CHARACTER:
        names = texts(node)
        return names, len(names)
    if node.type != INTEGER:
        return None, None
    rows = numbers(node)
    if len(rows) == 2 and rows[0] == NA_INTEGER:
        return None, abs(int(rows[1]))
    if bool((rows == numpy.arange(1, len(rows) + 1)).all()):
        return None, len(rows)
    return rows, len(rows)


# --- to pandas -------------------------------------------------------------------------------


def open_frame(node: Node, value_of: Callable[..., Any]) -> Any:
    """A frame of pandas; None: it has columns that pandas has not."""
    frame = open_parts(node)
    if frame is None:
        return None
    pandas = importlib.import_module("pandas")
    columns = [_to_pandas(vector, value_of) for vector in frame.vectors]
    index = pandas.RangeIndex(frame.height) if frame.rows is None else _label(frame.rows, pandas)
    parts = dict(enumerate(_keep_objects(column.values, index, pandas) for column in columns))
    made = pandas.DataFrame(parts, index=index, copy=False)
    made.columns = _label(frame.names, pandas)
    rest = {name: value_of(value) for name, value in frame.extra.items()}
    _remember(made, list(zip(frame.names, columns, strict=True)), rest)
    return made


def open_series(node: Node, value_of: Callable[..., Any]) -> Any:
    """A series of pandas, or a categorical if there are no names; None: neither fits."""
    attributes = node.attributes
    names = texts(_expanded(attributes["names"])) if "names" in attributes else None
    vector = open_vector(node)
    if vector is None or vector.kind == "raw":
        return None
    extra = {name: value for name, value in vector.extra.items() if name != "names"}
    column = _to_pandas(vector._replace(extra=extra), value_of)
    if names is not None and (len(names) != len(vector.values) or bytes in set(map(type, names))):
        return None
    if vector.kind == "factor" and (names is None or extra):
        return None if extra else column.values
    if vector.kind not in _CLASSES and not column.is_plain:
        return None
    pandas = importlib.import_module("pandas")
    index = None if names is None else _label(names, pandas)
    made = pandas.Series(_keep_objects(column.values, index, pandas), index=index, copy=False)
    _remember(made, [(None, column)], {})
    return made


def _keep_objects(values: Any, index: Any, pandas: Any) -> Any:
    """Objects as a column of any; pandas would look whether all are texts."""
    is_plain = isinstance(values, numpy.ndarray) and values.dtype == object
    return pandas.Series(values, index=index, dtype=object) if is_plain else values


def _label(names: Any, pandas: Any) -> Any:
    """An index of names; of none too, and of such as pandas takes for no texts."""
    if not len(names) or (isinstance(names, list) and None in names):
        return pandas.Index(names, dtype=object)
    try:
        return pandas.Index(names)
    except UnicodeEncodeError:
        return pandas.Index(names, dtype=object)


def _remember(made: Any, columns: list[tuple[Any, Column]], attributes: dict[str, Any]) -> None:
    """What else there was, beside what pandas has."""
    counts: dict[Any, int] = {}
    facts = RFacts()
    facts.columns, facts.attributes = {}, attributes
    facts.shape = (len(made), *(name for name, _ in columns))
    for name, column in columns:
        place = counts[name] = counts.get(name, -1) + 1
        if not column.is_plain:
            facts.columns[name, place] = column._replace(values=None)
    if facts.columns or attributes:
        if "class" in attributes:
            facts["class"] = (
                attributes["class"] if isinstance(attributes["class"], str) else list(attributes["class"])
            )
        facts["columns"] = {str(name): column.kind for (name, _), column in facts.columns.items()}
        made.attrs["R"] = facts


def _to_pandas(vector: Vector, value_of: Callable[..., Any]) -> Column:
    """The column of pandas."""
    pandas = importlib.import_module("pandas")
    kind, values, missing, more = vector[:4]
    extra = {name: None if value is None else value_of(value) for name, value in vector.extra.items()}
    if kind == "list":
        made = objects([value_of(item) for item in values])
    elif kind == "character":
        made = _texts_to_pandas(values)
    elif kind == "factor":
        dtype = pandas.CategoricalDtype(_label(more[0], pandas), more[1])
        made = pandas.Categorical.from_codes(values, dtype=dtype)
    elif kind == "Date":
        with numpy.errstate(over="ignore"):
            seconds = numpy.where(missing | (numpy.abs(values) > MOST_DAYS), NAT, values * 86400)
        made = pandas.array(seconds.view("<M8[s]"), copy=False)
    elif kind == "POSIXct":
        made = pandas.array(values.view(f"<M8[{more[0]}]"), copy=False)
        made = made._simple_new(
            made._ndarray, dtype=pandas.DatetimeTZDtype(more[0], times.find_zone(more[1]))
        )
    elif kind == "difftime":
        made = pandas.array(values.view(f"<m8[{more[0]}]"), copy=False)
    elif missing is None:
        made = values
    else:
        arrays = pandas.arrays
        made = (arrays.BooleanArray if kind == "logical" else arrays.IntegerArray)(values, missing)
    original = None
    if vector.original is not None:  # the counts as a copy: the user may change those in the column
        original = vector.original, made._ndarray.view("<i8").copy(), made._ndarray.dtype
    return Column(kind, made, extra, original, vector.storage)


def _texts_to_pandas(values: Any) -> Any:
    """Texts as pandas has them by default; objects where some are no texts to it."""
    pandas = importlib.import_module("pandas")
    column = texts_to_arrow(values) if isinstance(values, Texts) and is_installed("pyarrow") else None
    if column is not None:
        dtype = _text_dtype("pyarrow")
        return dtype.__from_arrow__(column)
    plain = values if isinstance(values, list) else values.tolist()
    if set(map(type, plain)) <= {str, type(None)}:
        try:
            "".join(filter(None, plain)).encode()
            return pandas.array(
                objects(plain), dtype=_text_dtype("pyarrow" if is_installed("pyarrow") else "python")
            )
        except UnicodeEncodeError:
            pass
    return objects(plain)


def _text_dtype(storage: str) -> Any:
    pandas = importlib.import_module("pandas")
    if int(pandas.__version__.partition(".")[0]) < 3:
        return pandas.StringDtype(storage)
    return pandas.StringDtype(storage, na_value=numpy.nan)


def texts_to_arrow(values: Texts) -> Any:
    """Texts as an array of pyarrow; None: some are no texts to it."""
    parts = values.joined()
    if parts is None:
        return None
    pyarrow = importlib.import_module("pyarrow")
    offsets, data = parts
    missing = _bitmap(values.is_missing)
    buffers = [missing, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data)]
    made = pyarrow.LargeStringArray.from_buffers(len(values), buffers[1], buffers[2], missing)
    try:
        made.validate(full=True)
    except pyarrow.ArrowInvalid:
        return None
    return made


def _bitmap(missing: Any) -> Any:
    """What says in Arrow which are there; None: all."""
    if missing is None or not missing.any():
        return None
    return importlib.import_module("pyarrow").py_buffer(numpy.packbits(~missing, bitorder="little"))


# --- to polars and pyarrow -------------------------------------------------------------------


def show_name(name: str | bytes | None) -> str:
    """A name where nothing but texts can be one, as R shows it."""
    if name is None:
        return "NA"
    data = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    return data.decode("ascii" if isinstance(name, bytes) else "utf-8", "backslashreplace")


def open_frame_as(node: Node, format: str, value_of: Callable[..., Any]) -> Any:
    """A frame of "polars" or "arrow"."""
    frame = open_parts(node)
    if frame is None:
        raise ValuesError(
            "kind", f"this data frame has no form as `{format}`", "a column of it is a frame or a matrix"
        )
    columns: list[tuple[str, Vector]] = list(zip(map(show_name, frame.names), frame.vectors, strict=True))
    if frame.rows is not None and isinstance(frame.rows, list):
        rows = list(map(show_name, frame.rows))
        columns.insert(0, (ROW_NAMES, Vector("character", rows, None, None, {})))
    with blaming("kind", f"this data frame has no form as `{format}`"):
        if format == "arrow":
            pyarrow = importlib.import_module("pyarrow")
            arrays = [_to_arrow(vector, value_of, name) for name, vector in columns]
            return pyarrow.Table.from_arrays(arrays, names=[name for name, _ in columns])
        polars = importlib.import_module("polars")
        return polars.DataFrame([calmly(_to_polars, name, vector, value_of) for name, vector in columns])


def open_vector_as(node: Node, format: str, value_of: Callable[..., Any]) -> Any:
    """A vector of "polars" or "arrow", like a column of that kind; None: no column is like it."""
    vector = open_vector(node) if node.type != LIST else None
    if vector is None or vector.kind == "complex":
        return None
    with blaming("kind", f"this vector has no form as `{format}`"):
        if format == "arrow":
            return _to_arrow(vector, value_of, "")
        return calmly(_to_polars, "", vector, value_of)


def _hidden(vector: Vector) -> Any:
    """Which values are missing: also those that numbers have a value for, and days that need more than 32 bits."""
    if vector.kind == "double":
        return is_missing(vector.values)
    if vector.kind == "Date":
        return vector.missing | (numpy.abs(vector.values) > -1 - NA_INTEGER)
    return vector.missing


def _to_arrow(vector: Vector, value_of: Callable[..., Any], name: str) -> Any:
    pyarrow = importlib.import_module("pyarrow")
    kind, values, more = vector.kind, vector.values, vector.more
    missing = _hidden(vector)
    if kind == "character":
        made = texts_to_arrow(values) if isinstance(values, Texts) else None
        return (
            made
            if made is not None
            else pyarrow.array(texts(make(CHARACTER, values)), pyarrow.large_string())
        )
    if kind == "list":
        return pyarrow.array([value_of(item) for item in values])
    if kind == "complex":
        raise ValuesError("kind", f"the column `{name}` has complex numbers, which have no form there")
    if kind == "factor":
        codes = _flat(pyarrow.int32(), values, missing)
        return pyarrow.DictionaryArray.from_arrays(
            codes, pyarrow.array(more[0], pyarrow.string()), ordered=more[1]
        )
    if kind == "logical":
        return pyarrow.array(values, mask=missing)
    if kind == "Date":
        return _flat(pyarrow.date32(), values.astype("<i4"), missing)
    types = {"POSIXct": lambda: pyarrow.timestamp(*more), "difftime": lambda: pyarrow.duration(more[0])}
    numbers_types = {
        "integer": pyarrow.int32,
        "double": pyarrow.float64,
        "raw": pyarrow.uint8,
        "integer64": pyarrow.int64,
    }
    return _flat({**numbers_types, **types}[kind](), values, missing)


def _flat(type: Any, values: Any, missing: Any) -> Any:
    pyarrow = importlib.import_module("pyarrow")
    return pyarrow.Array.from_buffers(type, len(values), [_bitmap(missing), pyarrow.py_buffer(values)])


def _to_polars(name: str, vector: Vector, value_of: Callable[..., Any]) -> Any:
    polars = importlib.import_module("polars")
    kind, values, more = vector.kind, vector.values, vector.more
    missing = _hidden(vector)
    if kind == "character":
        made = texts_to_arrow(values) if isinstance(values, Texts) and is_installed("pyarrow") else None
        plain = texts(make(CHARACTER, values)) if made is None else None
        return (
            polars.Series(name, plain, dtype=polars.String)
            if made is None
            else polars.from_arrow(made).alias(name)
        )
    if kind == "list":
        return polars.Series(name, [value_of(item) for item in values])
    if kind in ("factor", "Date"):
        values = numpy.where(missing, 0, values).astype("<u4" if kind == "factor" else "<i4")
    made = polars.Series(name, values)
    if missing is not None and missing.any():
        made = made.set(polars.Series(missing), None)
    if kind == "factor":
        levels = more[0] or [""]
        return polars.Series(name, levels, dtype=polars.Enum(levels)).gather(made)
    if kind == "Date":
        return made.cast(polars.Date)
    if kind == "POSIXct":
        return made.cast(polars.Datetime(*more))
    return made.cast(polars.Duration(more[0])) if kind == "difftime" else made
