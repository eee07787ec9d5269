"""Frames and columns of pandas, polars and pyarrow as R's; on the client."""

from __future__ import annotations

import collections
import importlib
from typing import TYPE_CHECKING, Any

import numpy

from .._arrow import calmly
from .._values import ValuesError
from . import times
from .arrays import (
    NA_INTEGER,
    automatic_rows,
    close_doubles,
    close_flat,
    close_integers,
    objects,
    texts,
)
from .compact import is_installed
from .frames import NAT, Column, RFacts, show_name
from .stream import CHARACTER, DOUBLE, INTEGER, LIST, LOGICAL, NAMES, Node, attach, make
from .texts import ASCII, CHARS, UTF8, Records

if TYPE_CHECKING:
    from .writer import Writer


def close(value: Any, writer: Writer) -> Node | None:
    """The node of something of pandas, polars or pyarrow; None: it is none that R has."""
    root = type(value).__module__.partition(".")[0]
    name = type(value).__name__
    library = importlib.import_module(root)
    if root == "pandas":
        return _close_pandas(value, name, library, writer)
    if root == "polars":
        if name == "DataFrame":
            return _close_table(value.columns, value.get_columns(), value.height, writer)
        if name == "LazyFrame":
            raise ValuesError("kind", "a `LazyFrame` does not cross", hints=("`.collect()` it first",))
        return _close_polars(value, writer) if name == "Series" else None
    if isinstance(value, library.Table | library.RecordBatch):
        return _close_table(value.schema.names, value.columns, value.num_rows, writer)
    if isinstance(value, library.Array | library.ChunkedArray):
        return close_arrow(value, writer)
    return writer.node(value.as_py()) if isinstance(value, library.Scalar) else None


_TIBBLE = ("tbl_df", "tbl", "data.frame")
"""Classes that a frame keeps whatever its rows are."""


def _close_table(names: list[str], columns: list[Any], rows: int, writer: Writer) -> Node:
    nodes = []
    for name, column in zip(names, columns, strict=True):
        writer.places.append(f"column `{name}`")
        nodes.append(
            _close_polars(column, writer)
            if type(column).__module__.startswith("polars")
            else close_arrow(column, writer)
        )
        writer.places.pop()
    return _frame_node(list(names), nodes, automatic_rows(rows), {}, writer)


def _frame_node(
    names: list[Any], columns: list[Node], rows: Node, more: dict[str, Node], writer: Writer
) -> Node:
    writer.places.append("the names of the columns")
    attributes = {
        "names": writer.texts(names),
        "class": make(CHARACTER, ["data.frame"]),
        "row.names": rows,
    }
    writer.places.pop()
    return make(LIST, columns, {**attributes, **more})


def _close_pandas(value: Any, name: str, pandas: Any, writer: Writer) -> Node | None:
    if isinstance(value, pandas.DataFrame):
        return _close_frame(value, pandas, writer)
    if isinstance(value, pandas.Series):
        return _close_series(value, pandas, writer)
    if isinstance(value, pandas.MultiIndex):
        return _close_frame(value.to_frame(index=False), pandas, writer)
    if isinstance(value, pandas.Index):
        return close_column(value.array, writer)
    if isinstance(value, pandas.api.extensions.ExtensionArray):
        return close_column(value, writer)
    if value is pandas.NA or value is pandas.NaT:
        return writer.missing()
    if isinstance(value, pandas.Timestamp | pandas.Timedelta):
        return close_column(pandas.array([value]), writer)
    if isinstance(value, pandas.Period | pandas.Interval):
        return writer.node(str(value))
    return None


def _facts_of(value: Any) -> RFacts | None:
    facts = value.attrs.get("R")
    return facts if isinstance(facts, RFacts) and hasattr(facts, "columns") else None


def _close_frame(frame: Any, pandas: Any, writer: Writer) -> Node:
    facts = _facts_of(frame)
    rows, frame = _close_rows(frame, pandas)
    names, nodes = [], []
    counts: dict[Any, int] = {}
    for place, label in enumerate(frame.columns):
        name = _name_of(label, pandas)
        counts[name] = turn = counts.get(name, -1) + 1
        fact = facts.columns.get((name, turn)) if facts else None
        writer.places.append(f"column `{show_name(name)}`")
        nodes.append(close_column(frame.iloc[:, place].array, writer, fact))
        writer.places.pop()
        names.append(name)
    more = _fitting(facts, len(frame), names) if facts else {}
    return _frame_node(names, nodes, rows, writer.attributes(more), writer)


def _name_of(label: Any, pandas: Any) -> str | bytes | None:
    """What a label of an index is among R's names."""
    if isinstance(label, str | bytes):
        return label
    if isinstance(label, tuple):
        return ".".join(map(str, label))
    return None if label is None or label is pandas.NA or label != label else str(label)


def _fitting(facts: RFacts, height: int, names: list[Any]) -> dict[str, Any]:
    """The attributes of a frame that say nothing of rows and columns that it has not any more."""
    if facts.shape == (height, *names):
        return facts.attributes
    classes = _listed(facts.attributes.get("class", "data.frame"))
    return {"class": objects([name for name in _TIBBLE if name in classes])}


def _close_rows(frame: Any, pandas: Any) -> tuple[Node, Any]:
    """The names of the rows, and the frame; an index that can be none becomes a column."""
    index, count = frame.index, len(frame)
    if isinstance(index, pandas.RangeIndex) and index.start == 0 and index.step == 1 and index.name is None:
        return automatic_rows(count), frame
    if index.nlevels == 1 and index.name is None and index.is_unique:
        kinds = set(map(type, index))
        if (kinds and kinds <= {str, bytes}) or (not kinds and index.dtype == object):
            return make(CHARACTER, list(index)), frame
        if index.dtype.kind in "iu" and (
            not count or (index.min() > NA_INTEGER and index.max() < -NA_INTEGER)
        ):
            return make(INTEGER, index.to_numpy().astype("<i4")), frame
    if not count:
        return automatic_rows(0), frame
    return automatic_rows(count), frame.reset_index(allow_duplicates=True)


def _close_series(series: Any, pandas: Any, writer: Writer) -> Node:
    facts = _facts_of(series)
    fact = (facts.columns.get((series.name, 0)) or facts.columns.get((None, 0))) if facts else None
    node = close_column(series.array, writer, fact)
    index = series.index
    if isinstance(index, pandas.RangeIndex) or index.dtype.kind in "iu":
        return node
    return attach(node, {"names": writer.texts([_name_of(label, pandas) for label in index])})


# --- columns to R ----------------------------------------------------------------------------


def close_column(array: Any, writer: Writer, fact: Column | None = None) -> Node:
    """The node of an array of numpy's or pandas'."""
    if type(array).__name__ in ("PandasArray", "NumpyExtensionArray"):
        array = array.to_numpy()
    if fact is not None and fact.kind == "list" and array.dtype == object:
        node = writer.elements(array.tolist(), {})
    elif isinstance(array, numpy.ndarray):
        if array.dtype == object:
            array = _without_nothings(array)
        node = close_flat(array, writer, is_raw=fact is not None and fact.kind == "raw")
    else:
        node = _close_extension(array, writer, fact)
    return node if fact is None else _restore(node, array, fact, writer)


def _without_nothings(array: Any) -> Any:
    """Objects, with None for all that pandas takes for nothing, if all others are texts."""
    pandas = importlib.import_module("pandas")
    kinds = set(map(type, array.tolist()))
    nothings = {type(None), type(pandas.NA), type(pandas.NaT)}
    if kinds & {type(pandas.NA), type(pandas.NaT)} or (float in kinds and kinds <= {str, float, *nothings}):
        array = array.copy()
        array[
            [
                value is None or value is pandas.NA or value is pandas.NaT or value != value
                for value in array.tolist()
            ]
        ] = None
    return array


def _close_extension(array: Any, writer: Writer, fact: Column | None) -> Node:
    name = type(array).__name__
    if name == "Categorical":
        return _close_categories(array.codes, array.categories.tolist(), bool(array.ordered), writer)
    if name in ("IntegerArray", "BooleanArray", "FloatingArray"):
        values, missing = array._data, array._mask
        if fact is not None and fact.kind == "integer64" and values.dtype == numpy.int64:
            return make(DOUBLE, numpy.where(missing, NAT, values))
        mask = missing if missing.any() else None
        if values.dtype.kind == "f":
            return close_doubles(values.astype("<f8"), mask)
        if values.dtype.kind == "b":
            return make(LOGICAL, numpy.where(missing, NA_INTEGER, values).astype("<i4"))
        return close_integers(values, mask, writer)
    if name in ("DatetimeArray", "TimedeltaArray"):
        unit = None if fact is None or fact.kind != "difftime" else fact.extra.get("units", "secs")
        return close_times(array._ndarray, getattr(array.dtype, "tz", None), unit, writer)
    if name in ("ArrowStringArray", "ArrowStringArrayNumpySemantics", "ArrowExtensionArray"):
        return close_arrow(array.__arrow_array__(), writer)
    if name in ("PeriodArray", "IntervalArray", "StringArray", "StringArrayNumpySemantics"):
        missing = array.isna().tolist()
        plain = array.astype(object).tolist()
        return writer.texts([None if no else str(text) for no, text in zip(missing, plain, strict=True)])
    if name == "SparseArray":
        return close_column(numpy.asarray(array), writer)
    raise ValuesError("kind", f"a column of `{array.dtype}` does not cross to R", cause=writer.where())


def _close_categories(codes: Any, categories: list[Any], is_ordered: bool, writer: Writer) -> Node:
    levels = list(map(str, categories))
    if len(set(levels)) < len(levels):
        ((level, _),) = collections.Counter(levels).most_common(1)
        raise ValuesError(
            "kind",
            f"a factor of R has no two levels that read the same, such as `{level:.80}`",
            writer.where(),
            ("rename the categories",),
        )
    codes = codes.astype("<i4") + 1
    codes[codes == 0] = NA_INTEGER
    classes = ["ordered", "factor"] if is_ordered else ["factor"]
    return make(
        INTEGER,
        codes,
        {"levels": writer.texts(levels), "class": make(CHARACTER, classes)},
    )


def close_times(array: Any, zone: Any = None, unit: str | None = None, writer: Writer | None = None) -> Node:
    """The node of moments or spans of numpy's: days are dates, and whole days that pandas counts in seconds."""
    counted = numpy.datetime_data(array.dtype)
    counts = numpy.ascontiguousarray(array).view("<i8")
    if array.dtype.kind == "M" and (counted == ("D", 1) or (zone is None and _are_days(counts, counted))):
        days = counts if counted[0] == "D" else numpy.where(counts == NAT, NAT, counts // 86400)
        return times.close_dates(times.uncount(days, "s"))
    if counted[0] not in times.PER_SECOND or counted[1] != 1:
        finer = "us" if counted[0] in ("D", "h", "m", "W", "M", "Y", "generic") or counted[1] != 1 else "ns"
        counts, counted = array.astype(f"{array.dtype.kind}8[{finer}]").view("<i8"), (finer, 1)
    if array.dtype.kind == "m":
        unit = unit if unit in times.SECONDS else "secs"
        return times.close_spans(times.uncount(counts, counted[0], times.SECONDS[unit]), unit)
    name = writer.zone(zone) if writer is not None else "UTC"
    return times.close_moments(times.uncount(counts, counted[0]), name)


def _are_days(counts: Any, counted: tuple[str, int]) -> bool:
    return counted == ("s", 1) and not bool((counts[counts != NAT] % 86400).any())


def _restore(node: Node, array: Any, fact: Column, writer: Writer) -> Node:
    """The node with what R had besides, as far as that fits still."""
    if fact.original is not None and node.type == DOUBLE and hasattr(array, "_ndarray"):
        doubles, counts, dtype = fact.original
        if array._ndarray.dtype.kind == dtype.kind and len(array) == len(counts):
            is_same = array._ndarray.astype(dtype).view("<i8") == counts
            node = attach(make(DOUBLE, numpy.where(is_same, doubles, node.data)), node.attributes)
    if fact.storage == INTEGER and node.type == DOUBLE:
        node = _as_integers(node)
    classes = node.attributes.get("class")
    if classes is None:
        kind = NAMES[node.type]
    else:
        kind = "factor" if "factor" in texts(classes) else texts(classes)[0]
    count = len(node.items) if node.type == LIST else len(array)
    fits = kind == fact.kind or (fact.kind == "integer64" and kind == "double")
    if fact.kind == "integer64" and isinstance(array, numpy.ndarray) and array.dtype == numpy.int64:
        node, fits = make(DOUBLE, array), True
    if not fits:
        return node
    extra = {
        name: value for name, value in fact.extra.items() if name != "names" or len(_listed(value)) == count
    }
    kept = {name: value for name, value in node.attributes.items() if name not in extra}
    given = writer.attributes({name: value for name, value in extra.items() if value is not None})
    return make(node.type, node.items if node.type == LIST else node.data, {**kept, **given})


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) or value is None else value


def _as_integers(node: Node) -> Node:
    """Numbers that were integers in R, if they still are."""
    doubles = numpy.asarray(node.data)
    missing = numpy.isnan(doubles)
    whole = numpy.where(missing, NA_INTEGER, doubles)
    if not bool((numpy.abs(whole) <= -NA_INTEGER).all()) or bool((whole != numpy.floor(whole)).any()):
        return node
    return make(INTEGER, whole.astype("<i4"), node.attributes)


# --- pyarrow and polars to R -----------------------------------------------------------------


def close_arrow(column: Any, writer: Writer) -> Node:
    """The node of an array of pyarrow's."""
    pyarrow = importlib.import_module("pyarrow")
    types = pyarrow.types
    if isinstance(column, pyarrow.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if isinstance(column, pyarrow.ChunkedArray):
            column = (
                pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], column.type)
            )
    kind = column.type
    if types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view":
        return make(CHARACTER, _arrow_records(column.cast(pyarrow.large_string()), writer, pyarrow))
    if types.is_dictionary(kind):
        return _close_dictionary(column, kind, writer, pyarrow)
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if types.is_boolean(kind):
        values = column.fill_null(False).to_numpy(zero_copy_only=False).astype("<i4")
        if missing is not None:
            values[missing] = NA_INTEGER
        return make(LOGICAL, values)
    if types.is_integer(kind):
        return close_integers(
            (column.fill_null(0) if column.null_count else column).to_numpy(), missing, writer
        )
    if types.is_floating(kind) or types.is_decimal(kind):
        column = column.cast(pyarrow.float64())
        return close_doubles((column.fill_null(0) if column.null_count else column).to_numpy(), missing)
    if types.is_date(kind) or types.is_timestamp(kind) or types.is_duration(kind):
        return _close_arrow_times(column, kind, missing, writer, pyarrow)
    if types.is_null(kind):
        return make(LOGICAL, numpy.full(len(column), NA_INTEGER, "<i4"))
    if types.is_time(kind):
        return writer.texts([None if value is None else str(value) for value in column.to_pylist()])
    return writer.elements(column.to_pylist(), {})


def _close_arrow_times(column: Any, kind: Any, missing: Any, writer: Writer, pyarrow: Any) -> Node:
    types = pyarrow.types
    if types.is_date64(kind):
        column, kind = column.cast(pyarrow.date32()), pyarrow.date32()
    integers = (
        column.cast(pyarrow.int32()).cast(pyarrow.int64())
        if types.is_date32(kind)
        else column.cast(pyarrow.int64())
    )
    counts = (integers.fill_null(0) if integers.null_count else integers).to_numpy().copy()
    if missing is not None:
        counts[missing] = NAT
    if types.is_date32(kind):
        return times.close_dates(times.uncount(counts, "s"))
    numbers = times.uncount(counts, kind.unit)
    if types.is_duration(kind):
        return times.close_spans(numbers)
    return times.close_moments(numbers, kind.tz or "UTC")


def _close_dictionary(column: Any, kind: Any, writer: Writer, pyarrow: Any) -> Node:
    types = pyarrow.types
    is_text = (
        types.is_string(kind.value_type)
        or types.is_large_string(kind.value_type)
        or str(kind.value_type) == "string_view"
    )
    levels = column.dictionary.to_pylist()
    if not is_text or None in levels or len(set(levels)) < len(levels):
        return close_arrow(column.cast(kind.value_type), writer)
    codes = column.indices.cast(pyarrow.int64()).fill_null(-1)
    return _close_categories(codes.to_numpy(), levels, kind.ordered, writer)


def _arrow_records(column: Any, writer: Writer, pyarrow: Any) -> Records:
    """Texts in R's form, without making objects of them: each joined to what stands before it."""
    count = len(column)
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if missing is not None:
        column = column.fill_null("")
    buffers = column.buffers()
    offsets = (
        numpy.frombuffer(buffers[1], "<i8", count + 1, 8 * column.offset) if count else numpy.zeros(1, "<i8")
    )
    data = numpy.frombuffer(buffers[2] or b"", numpy.uint8)[offsets[0] : offsets[-1]]
    if not count:
        return Records(0, [])
    if not data.all():
        raise ValuesError(
            "kind", "R has no texts with NUL in them", writer.where(), ("send them as `bytes`",)
        )
    lengths = numpy.diff(offsets)
    if lengths.max() >= 1 << 31:
        raise ValuesError("kind", "R has no texts of more than 2 GiB")
    words = lengths << 32 | (CHARS | (ASCII if bool((data < 128).all()) else UTF8) << 12)
    if missing is not None:
        words[missing] = CHARS | -1 << 32
    kind = pyarrow.large_binary()
    heads = numpy.arange(0, 8 * count + 1, 8)
    heads = pyarrow.Array.from_buffers(
        kind, count, [None, pyarrow.py_buffer(heads), pyarrow.py_buffer(words)]
    )
    joined = pyarrow.compute.binary_join_element_wise(heads, column.cast(kind), pyarrow.scalar(b"", kind))
    pieces = joined.chunks if isinstance(joined, pyarrow.ChunkedArray) else [joined]
    return Records(count, [_arrow_bytes(piece) for piece in pieces])


def _arrow_bytes(piece: Any) -> memoryview:
    offsets = numpy.frombuffer(piece.buffers()[1], "<i8", len(piece) + 1, 8 * piece.offset)
    return memoryview(piece.buffers()[2])[int(offsets[0]) : int(offsets[-1])]


def _close_polars(series: Any, writer: Writer) -> Node:
    polars = importlib.import_module("polars")
    kind = series.dtype
    if kind.is_nested():
        return writer.elements(series.to_list(), {})
    if isinstance(kind, polars.Enum | polars.Categorical):
        plain = series.cast(polars.String)
        levels = (
            kind.categories
            if isinstance(kind, polars.Enum)
            else plain.drop_nulls().unique(maintain_order=True)
        ).to_list()
        missing = series.is_null().to_numpy()
        codes = plain.cast(polars.Enum(levels)).to_physical().cast(polars.Int64).fill_null(0).to_numpy()
        return _close_categories(numpy.where(missing, -1, codes), levels, False, writer)
    if is_installed("pyarrow"):
        return close_arrow(calmly(series.alias("").to_arrow), writer)  # a name with NUL is the end of Rust
    missing = series.is_null().to_numpy() if series.null_count() else None
    if kind.is_integer():
        return close_integers(series.fill_null(0).to_numpy(), missing, writer)
    if kind.is_float():
        return close_doubles(series.fill_null(0).cast(polars.Float64).to_numpy(), missing)
    if isinstance(kind, polars.Datetime | polars.Duration):
        counts = series.to_physical().fill_null(NAT).to_numpy()
        unit = kind.time_unit
        if isinstance(kind, polars.Duration):
            return times.close_spans(times.uncount(counts, unit))
        return times.close_moments(times.uncount(counts, unit), kind.time_zone or "UTC")
    return writer.objects(series.to_list())
