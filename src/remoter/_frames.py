"""pandas' objects as trees and buffers, polars' and pyarrow's through `_arrow.py`; on the client and in the user's interpreter.

`_values.py` loads this for objects of those libraries and for tags that begin with their names.

A frame crosses as the blocks that it is inside, columns of one type in one piece of memory, in the
order that they have: nothing is copied on its way out. At the other end it is put together the way
pandas opens its own pickles since 2014, from blocks as they are: every constructor would copy.
What pandas does not check on that way is checked here.

This is one file because it travels with `_values.py`, to where nothing of ours is installed, and because
for each kind of thing what writes it, what checks it and what builds it belong beside one another.
From top to bottom: arrays of each kind, texts, time zones and frequencies, indexes, series and
frames, scalars, and what `format=` makes of a value.
"""

# ruff: noqa: B905 - `zip` has no `strict` before Python 3.10

from __future__ import annotations

import datetime
import importlib
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from . import _arrow
    from ._values import Reader, Writer
elif __package__:
    _arrow = importlib.import_module("._arrow", __package__)
else:  # loaded by path
    _path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_arrow.py")  # noqa: PTH100, PTH118, PTH120
    _spec = importlib.util.spec_from_file_location(__name__ + "_arrow", _path)
    _arrow = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_arrow)

Facts = _arrow.Facts

LONG_ROW = 64 * 1024
"""Bytes of a column from which on it goes alone where its block is not in one piece."""

MANY = 10_000
"""Texts from which on it is worth a look whether they repeat."""


def encode(value: Any, writer: Writer) -> dict[str, Any] | None:
    """The node of a value of pandas, polars or pyarrow; None: it is not one that crosses."""
    kind = type(value)
    root = kind.__module__.partition(".")[0]
    if root == "pyarrow":
        return _arrow.encode_arrow(value, writer)
    if root == "polars":
        return _arrow.encode_polars(value, writer)
    encoder = _ENCODERS.get(kind.__name__) if _is_own(kind) else None
    return None if encoder is None else encoder(value, writer)


def describe(value: Any) -> str | None:
    """In a few words; None: not one of ours."""
    kind = type(value)
    root = kind.__module__.partition(".")[0]
    if root == "pyarrow":
        return _arrow.describe_arrow(value)
    if root == "polars":
        return _arrow.describe_polars(value)
    if kind.__name__ not in _ENCODERS or not _is_own(kind):
        return None
    if kind.__name__ == "DataFrame":
        return "DataFrame {}x{}".format(*value.shape)
    if kind.__name__ == "Series":
        return f"Series {len(value)} {value.dtype}"
    return f"{kind.__name__} {len(value)}" if hasattr(value, "__len__") else kind.__name__


def _is_own(kind: type) -> bool:
    """Whether a class that says it is pandas' is found there: subclasses and impostors are not."""
    return getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind


# --- arrays ----------------------------------------------------------------------------------
#
# The values of a column, of an index, of an array of its own. Plain numbers and dates are numpy's
# nodes; all others are these:
#
#     pandas.category  [codes, index of the categories, ordered]
#     pandas.masked    [values, mask]              Int64, Float32, boolean ...
#     pandas.moments   [values, zone]              with a time zone or without, and time deltas
#     pandas.period    [ordinals, frequency]
#     pandas.interval  [index of the left ends, of the right ends, closed]
#     pandas.arrow     [type, chunks]
#     pandas.text      [flavour, length, form, ...]

_PLAIN = re.compile(r"object|[<>|]([biuf]\d|[fc]\d+(/\d+)?|[mM]8\[(s|ms|us|ns)\])")


def _encode_values(values: Any, writer: Writer) -> Any:
    """The node of a column's values, numpy's or pandas'."""
    if type(values).__name__ in ("PandasArray", "NumpyExtensionArray"):
        values = values.to_numpy()
    if type(values) is not sys.modules["numpy"].ndarray:
        node = encode(values, writer)
        if node is None:
            writer.refuse("unsafe", f"an array of `{values.dtype}` crosses only as a pickle")
        return node
    if values.dtype == object and values.ndim == 1:
        text = _encode_text(values, "object", writer)
        return writer.node(values) if text is None else text
    return writer.node(values)


def _check_values(node: Any, reader: Reader) -> Any:
    """Check a node that has to be an array that can be a column; its facts."""
    facts = reader.check(node)
    if facts.type == "ndarray":
        if not _PLAIN.fullmatch(facts.dtype):
            reader.refuse(f"pandas has no columns of `{facts.dtype:.40}`")
    elif not isinstance(node, dict) or next(iter(node)) not in _ARRAYS:
        reader.refuse(f"a {facts.type:.40} is no column")
    return facts


def _build_values(node: Any, reader: Reader) -> Any:
    values = reader.build(node)
    if values.dtype.kind in "mM" and type(values).__module__ == "numpy":
        return _fit_moments(values, reader)
    return values


def _fit_moments(values: Any, reader: Reader) -> Any:
    """Moments in a unit that pandas has here: before 2.0 there were nanoseconds only."""
    if int(reader.need("pandas").__version__.partition(".")[0]) >= 2 or values.dtype.str.endswith("[ns]"):
        return values
    fitted = values.astype(values.dtype.kind + "8[ns]")
    if (fitted.astype(values.dtype) != values)[~sys.modules["numpy"].isnat(values)].any():
        _arrow.fail(reader, "versions", "a date is too far away for the old pandas here", str(values.dtype))
    return fitted


def _expect(node: Any, reader: Reader, kinds: str) -> Any:
    """Check a node that has to be numpy's array in one dimension, with a dtype of one of these kinds; its facts."""
    facts = reader.check(node)
    is_array = facts.type == "ndarray" and len(facts.shape) == 1
    if not is_array or re.match(f"[<>|][{kinds}]", facts.dtype) is None:
        reader.refuse(f"an array of {facts.dtype:.40} stands where another should")
    return facts


def _encode_categorical(array: Any, writer: Writer) -> dict[str, Any]:
    codes = writer.node(array.codes)
    return {"pandas.category": [codes, _encode_index(array.categories, writer), bool(array.ordered)]}


def _check_categorical(content: Any, reader: Reader) -> Any:
    codes, categories, ordered = content
    facts = _expect(codes, reader, "i")
    _check_unrolled(categories, reader)
    if not isinstance(ordered, bool):
        reader.refuse("categories are ordered or not")
    return facts._replace(type="Categorical", dtype="category")


def _build_categorical(content: Any, reader: Reader) -> Any:
    pandas = reader.need("pandas")
    dtype = pandas.CategoricalDtype(reader.build(content[1]), content[2])
    return pandas.Categorical.from_codes(reader.build(content[0]), dtype=dtype)  # looks at every code


def _encode_masked(array: Any, writer: Writer) -> dict[str, Any]:
    return {"pandas.masked": [writer.node(array._data), writer.node(array._mask)]}


def _check_masked(content: Any, reader: Reader) -> Any:
    values, mask = content
    facts = _expect(values, reader, "biuf")
    if _expect(mask, reader, "b").shape != facts.shape:
        reader.refuse("a mask is not as long as what it hides")
    return facts._replace(type="array", dtype="masked")


def _build_masked(content: Any, reader: Reader) -> Any:
    arrays = reader.need("pandas").arrays
    values, mask = map(reader.build, content)
    kinds = {"b": arrays.BooleanArray, "f": arrays.FloatingArray}
    return kinds.get(values.dtype.kind, arrays.IntegerArray)(values, mask)


def _encode_moments(array: Any, writer: Writer) -> dict[str, Any]:
    zone = _describe_zone(getattr(array.dtype, "tz", None), writer)
    return {"pandas.moments": [writer.node(array._ndarray), zone]}


def _check_moments(content: Any, reader: Reader) -> Any:
    values, zone = content
    facts = _expect(values, reader, "mM" if zone is None else "M")
    if not _PLAIN.fullmatch(facts.dtype):
        reader.refuse("pandas does not count time so")
    _check_zone(zone, reader)
    return facts._replace(type="DatetimeArray" if facts.dtype[1] == "M" else "TimedeltaArray")


def _build_moments(content: Any, reader: Reader) -> Any:
    pandas = reader.need("pandas")
    values, zone = _build_values(content[0], reader), _make_zone(content[1], reader)
    if values.dtype.kind == "m":
        return pandas.arrays.TimedeltaArray._simple_new(values, dtype=values.dtype)
    dtype = values.dtype
    if zone is not None:
        dtype = pandas.DatetimeTZDtype(sys.modules["numpy"].datetime_data(dtype)[0], zone)
    return pandas.arrays.DatetimeArray._simple_new(values, dtype=dtype)


def _encode_periods(array: Any, writer: Writer) -> dict[str, Any]:
    return {"pandas.period": [writer.node(array.asi8), _period_frequency(array.dtype.freq, writer)]}


def _check_periods(content: Any, reader: Reader) -> Any:
    ordinals, frequency = content
    _check_frequency(frequency, reader)
    return _expect(ordinals, reader, "i")._replace(type="PeriodArray", dtype="period")


def _build_periods(content: Any, reader: Reader) -> Any:
    pandas = reader.need("pandas")
    dtype = pandas.PeriodDtype(_make_frequency(content[1], reader))
    return pandas.arrays.PeriodArray(reader.build(content[0]), dtype=dtype)


def _encode_intervals(array: Any, writer: Writer) -> dict[str, Any]:
    ends = [_encode_index(end, writer) for end in (array.left, array.right)]
    return {"pandas.interval": [*ends, array.closed]}


def _check_intervals(content: Any, reader: Reader) -> Any:
    left, right, closed = content
    facts = _check_unrolled(left, reader)
    if _check_unrolled(right, reader).length != facts.length:
        reader.refuse("some intervals have one end")
    if closed not in ("left", "right", "both", "neither"):
        reader.refuse("intervals are closed on one side, on both or on neither")
    return Facts("IntervalArray", facts.length, "interval", (facts.length,))


def _build_intervals(content: Any, reader: Reader) -> Any:
    left, right, closed = content
    arrays = reader.need("pandas").arrays
    return arrays.IntervalArray.from_arrays(reader.build(left), reader.build(right), closed=closed)


def _encode_arrow(array: Any, writer: Writer) -> dict[str, Any]:
    column = _column_of(array)
    try:
        kind = _arrow.describe_type(column.type)
    except TypeError as error:
        writer.refuse("unsafe", f"an array of `{array.dtype}` crosses only as a pickle", str(error))
    return {"pandas.arrow": [kind, _arrow.flatten_column(kind, column, writer)]}


def _check_arrow(content: Any, reader: Reader) -> Any:
    kind, chunks = content
    length = _arrow.check_column(kind, chunks, reader)
    return Facts("ArrowExtensionArray", length, "arrow", (length,))


def _build_arrow(content: Any, reader: Reader) -> Any:
    dtype = getattr(reader.need("pandas"), "ArrowDtype", None)
    if dtype is None:
        _arrow.fail(reader, "versions", "`pandas` 1.5 or later is needed to open Arrow columns")
    column = _arrow.build_column(content[0], content[1], reader)
    dtype = dtype(column.type)
    return dtype.construct_array_type()(column)


def _refuse_sparse(array: Any, writer: Writer) -> NoReturn:
    hints = ("make it dense: `.sparse.to_dense()`",)
    writer.refuse("unsafe", "a sparse array of pandas crosses only as a pickle", hints=hints)


# --- texts -----------------------------------------------------------------------------------
#
#     [flavour, length, "joined", texts, nulls]
#     [flavour, length, "codes", codes, texts, nulls]   each text once, and which of them stands where
#     [flavour, length, "arrow", type, chunks]          as `_arrow.py` sends them
#
# The flavour is "object", or the storage of a string dtype and what stands for a missing text. `texts` are
# [count, bytes, lengths]: UTF-8 with a NUL between two of them, or with their lengths where one has
# a NUL inside. `nulls` has a byte for each text: 0, or which kind of nothing stands in its place.
#
# To join and to split is the fastest way there is in plain Python: a million texts take 40 ms and 50 ms,
# offsets and slices twice that. What pyarrow holds goes as it is, without a copy.

_FLAVOURS = ("object", "python nan", "python NA", "pyarrow nan", "pyarrow NA")


def _nothings() -> list[Any]:
    """What may stand in the place of a text, by its number; 0 is a text."""
    pandas = sys.modules["pandas"]
    return ["", None, sys.modules["numpy"].nan, pandas.NA, pandas.NaT]


def _encode_string_array(array: Any, writer: Writer) -> Any:
    dtype = array.dtype
    missing = "NA" if dtype.na_value is sys.modules["pandas"].NA else "nan"
    if dtype.storage == "python":
        return _encode_text(array._ndarray, "python " + missing, writer)
    column = _column_of(array)
    kind = _arrow.describe_type(column.type)
    chunks = _arrow.flatten_column(kind, column, writer)
    return {"pandas.text": ["pyarrow " + missing, len(array), "arrow", kind, chunks]}


def _encode_text(values: Any, flavour: str, writer: Writer) -> dict[str, Any] | None:
    """The node of an array of objects; None: not all of them are texts or nothing."""
    pandas, numpy = sys.modules["pandas"], sys.modules["numpy"]
    texts, nulls = values.tolist(), None
    kinds = set(map(type, texts))
    if kinds - {str}:
        numbers = {type(nothing): number for number, nothing in enumerate(_nothings()) if number}
        missing = pandas.isna(values)
        found = list(map(type, values[missing].tolist()))
        floats = list(map(type, texts)).count(float) if float in kinds else 0
        if kinds - {str, *numbers} or floats != found.count(float):  # a float that is a number
            return None
        nulls = numpy.zeros(len(values), numpy.uint8)
        nulls[missing] = list(map(numbers.__getitem__, found))
        values = numpy.where(missing, "", values)
        texts = values.tolist()
    form: list[Any] = ["joined"]
    if len(texts) >= MANY and _repeat(texts):
        codes, unique = pandas.factorize(values)
        if len(unique) <= 1 << 16:
            form = ["codes", writer.node(codes.astype("<u1" if len(unique) <= 1 << 8 else "<u2"))]
            texts = unique.tolist()
    tail = [_join(texts, writer), None if nulls is None else writer.data(nulls)]
    return {"pandas.text": [flavour, len(values), *form, *tail]}


def _repeat(texts: list[str]) -> bool:
    """Whether there seem to be few different texts, by a sample from all over."""
    sample = [texts[place * 2654435761 % len(texts)] for place in range(1000)]
    found = list(filter(None, sample))
    return len(set(found)) * 4 < len(found)


def _join(texts: list[str], writer: Writer) -> list[Any]:
    joined = "\0".join(texts)
    if joined.count("\0") == max(len(texts) - 1, 0):
        return [len(texts), writer.data(joined.encode("utf-8", "surrogatepass")), None]
    pieces = [text.encode("utf-8", "surrogatepass") for text in texts]
    return [len(texts), writer.data(b"".join(pieces)), writer.node(list(map(len, pieces)))]


def _check_texts(texts: Any, reader: Reader) -> int:
    count, data, lengths = texts
    size = reader.check_data(data)
    if reader.length(count) > size + 1 and lengths is None:
        reader.refuse("there are more texts than bytes")
    if lengths is not None:
        facts = reader.check(lengths)
        if facts[:3] != ("list", count, "int"):
            reader.refuse("texts have no lengths")
    reader.charge(80 * count + size)
    return int(count)


def _split(texts: Any, reader: Reader) -> list[str]:
    numpy = sys.modules["numpy"]
    count, data, lengths = texts
    if lengths is not None:
        ends = numpy.zeros(count + 1, numpy.int64)
        numpy.cumsum(numpy.array(reader.build(lengths), numpy.int64), out=ends[1:])
        return _cut(reader.data(data), ends, reader)
    text = str(reader.data(data), "utf-8", "surrogatepass")
    if text.count("\0") != max(count - 1, 0) or (text and not count):  # before memory is taken for them
        reader.refuse("there are more texts, or fewer, than they say")
    return text.split("\0") if count else []


def _cut(data: memoryview, offsets: Any, reader: Reader) -> list[str]:
    """The texts between offsets into UTF-8."""
    numpy = sys.modules["numpy"]
    if offsets[0] != 0 or offsets[-1] != len(data) or bool((offsets[1:] < offsets[:-1]).any()):
        reader.refuse("texts do not follow one another")
    count, raw = len(offsets) - 1, numpy.frombuffer(data, numpy.uint8)
    if count == 0:
        return []
    if not raw.all():
        pieces = map(data.__getitem__, map(slice, offsets[:-1].tolist(), offsets[1:].tolist()))
        return [str(piece, "utf-8", "surrogatepass") for piece in pieces]
    # No NUL in it: put one between each two, and split.
    is_text = numpy.ones(len(data) + count - 1, bool)
    is_text[offsets[1:-1] + numpy.arange(count - 1)] = False
    spread = numpy.zeros(len(is_text), numpy.uint8)
    spread[is_text] = raw
    return str(memoryview(spread), "utf-8", "surrogatepass").split("\0")


def _check_text(content: Any, reader: Reader) -> Any:
    flavour, length, form, *rest = content
    if flavour not in _FLAVOURS:
        reader.refuse("texts are of no flavour that is known")
    if form == "arrow":
        kind, chunks = rest
        found = _arrow.check_column(kind, chunks, reader)
        reader.charge(80 * found)
        if kind not in ("string", "large_string"):
            reader.refuse("texts are not texts")
    else:
        *codes, texts, nulls = rest
        found = _check_texts(texts, reader)
        if form == "codes":
            (node,) = codes
            found = _expect(node, reader, "u").length
        elif form != "joined" or codes:
            reader.refuse("texts are of no form that is known")
        if nulls is not None:
            reader.check_data(nulls, found)
        reader.charge(8 * found)
    if reader.length(length) != found:
        reader.refuse("there are more texts, or fewer, than they say")
    return Facts("array", length, "object" if flavour == "object" else "string", (length,))


def _build_text(content: Any, reader: Reader) -> Any:
    dtype = _text_dtype(content[0], reader)
    if content[2] == "arrow" and getattr(dtype, "storage", "") == "pyarrow":
        return dtype.__from_arrow__(_arrow.build_column(content[3], content[4], reader))
    values = _build_text_objects(content, reader)
    return values if dtype is None else dtype.construct_array_type()._from_sequence(values, dtype=dtype)


def _text_dtype(flavour: str, reader: Reader) -> Any:
    """The string dtype of a flavour, or what comes nearest to it here; None: objects."""
    pandas = reader.need("pandas")
    if flavour == "object":
        return None
    storage, missing = flavour.split()
    options = {} if missing == "NA" else {"na_value": _nothings()[2]}
    try:
        return pandas.StringDtype(storage, **options)
    except ImportError:  # no pyarrow here
        return pandas.StringDtype("python", **options)
    except TypeError:  # before pandas 2.3, what is `str` now was objects
        return None


def _build_text_objects(content: Any, reader: Reader) -> Any:
    numpy = sys.modules["numpy"]
    flavour, length, form, *rest = content
    values = numpy.empty(length, object)
    if form == "arrow":
        kind, chunks = rest
        nothing = _nothings()[3 if flavour.endswith("NA") else 2]
        start = 0
        for count, validity, offsets, data in chunks:
            part = values[start : start + count]
            ends = numpy.frombuffer(reader.data(offsets), "<i4" if kind == "string" else "<i8")
            part[:] = _cut(reader.data(data), ends, reader)
            if validity is not None:
                bits = numpy.frombuffer(reader.data(validity), numpy.uint8)
                part[numpy.unpackbits(bits, count=count, bitorder="little") == 0] = nothing
            start += count
        return values
    *codes, texts, nulls = rest
    if codes:
        unique = numpy.empty(texts[0], object)
        unique[:] = _split(texts, reader)
        values = unique.take(reader.build(codes[0]))  # looks at every code
    else:
        values[:] = _split(texts, reader)
    if nulls is not None:
        kinds = numpy.frombuffer(reader.data(nulls), numpy.uint8)
        for number, nothing in enumerate(_nothings()):
            if number:
                values[kinds == number] = nothing
    return values


def _column_of(array: Any) -> Any:
    """The column of pyarrow's that is inside of an array of pandas'; early versions hand out one chunk."""
    column = array.__arrow_array__()
    return column if hasattr(column, "chunks") else sys.modules["pyarrow"].chunked_array([column])


# --- time zones and frequencies --------------------------------------------------------------
#
# A zone is null, an offset in seconds (datetime.timezone), or [library, name]; pytz has offsets too, in
# minutes. A frequency is [class, n, {keyword: number}] and not its name: the names were changed in 2.2.

_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")

_FREQUENCIES = {
    "Nano", "Micro", "Milli", "Second", "Minute", "Hour", "Day", "BusinessDay", "Week", "WeekOfMonth",
    "LastWeekOfMonth", "SemiMonthBegin", "SemiMonthEnd", "MonthBegin", "MonthEnd", "BusinessMonthBegin",
    "BusinessMonthEnd", "QuarterBegin", "QuarterEnd", "BQuarterBegin", "BQuarterEnd", "YearBegin", "YearEnd",
    "BYearBegin", "BYearEnd",
}  # fmt: skip
_FREQUENCY_KEYWORDS = ("weekday", "week", "startingMonth", "month", "day_of_month")


def _describe_zone(zone: Any, writer: Writer) -> Any:
    kind = type(zone)
    library = _library_of(zone)
    if zone is None:
        return None
    if kind is datetime.timezone:
        return zone.utcoffset(None).total_seconds()
    if library == "zoneinfo" and zone.key is not None:
        return ["zoneinfo", zone.key]
    if library == "pytz":
        return ["pytz", zone.zone or round(zone.utcoffset(None).total_seconds() / 60)]
    if library == "dateutil":
        name = "UTC" if kind.__name__ == "tzutc" else str(getattr(zone, "_filename", ""))
        name = name.rpartition("zoneinfo/")[2]
        if _ZONE_NAME.fullmatch(name):
            return ["dateutil", name]
    return writer.refuse("unsafe", f"the time zone `{zone!r:.80}` crosses only as a pickle")


def _check_zone(zone: Any, reader: Reader) -> None:
    if zone is None or (type(zone) in (int, float) and abs(zone) < 86400):
        return
    library, name = zone
    known = library in ("zoneinfo", "pytz", "dateutil") and type(name) is str and _ZONE_NAME.fullmatch(name)
    if not known and not (library == "pytz" and type(name) is int and abs(name) < 1440):
        reader.refuse("there is no such time zone")


def _make_zone(zone: Any, reader: Reader) -> Any:
    """The zone by the library that made it, or by another that is here and knows it."""
    if zone is None:
        return None
    if not isinstance(zone, list):
        return datetime.timezone(datetime.timedelta(seconds=zone))
    wanted, name = zone
    if isinstance(name, int):
        try:
            return _arrow.load("pytz").FixedOffset(name)
        except ImportError:
            return datetime.timezone(datetime.timedelta(minutes=name))
    for library in sorted(("zoneinfo", "pytz", "dateutil"), key=lambda library: library != wanted):
        made = _find_zone(library, name)
        if made is not None:
            return made
    return _arrow.fail(
        reader, "versions", f"the time zone `{name}` is not known here", hints=("`pip install tzdata`",)
    )


def _find_zone(library: str, name: str) -> Any:
    """A zone by one library; None: that is not here, or does not know it, which each says in its own way."""
    try:
        if library == "zoneinfo":
            return _arrow.load("zoneinfo").ZoneInfo(name)
        if library == "pytz":
            return _arrow.load("pytz").timezone(name)
        dateutil = _arrow.load("dateutil.tz")
        return dateutil.UTC if name == "UTC" else dateutil.gettz(name)
    except Exception:
        return None


def _describe_frequency(frequency: Any) -> list[Any] | None:
    """Class, number and keywords; None: none, or one that has more to it, such as holidays."""
    if frequency is None:
        return None
    kind, nothing = type(frequency), (None, datetime.timedelta(0))  # what keywords are that say nothing
    keywords = {keyword: value for keyword, value in frequency.kwds.items() if value not in nothing}
    known = kind.__name__ in _FREQUENCIES and _is_own(kind) and not frequency.normalize
    known = known and all(k in _FREQUENCY_KEYWORDS and type(v) is int for k, v in keywords.items())
    return [kind.__name__, int(frequency.n), keywords] if known else None


def _check_frequency(frequency: Any, reader: Reader) -> None:
    kind, number, keywords = frequency
    known = kind in _FREQUENCIES and type(number) is int and set(keywords) <= set(_FREQUENCY_KEYWORDS)
    if not known or any(type(value) is not int for value in keywords.values()):
        reader.refuse("there is no such frequency")


def _make_frequency(frequency: Any, reader: Reader) -> Any:
    kind, number, keywords = frequency
    return getattr(reader.need("pandas").offsets, kind)(number, **keywords)


def _period_frequency(frequency: Any, writer: Writer) -> list[Any]:
    described = _describe_frequency(frequency)
    if described is None:
        writer.refuse("unsafe", f"periods of `{frequency!r:.80}` cross only as a pickle")
    return described


# --- indexes ---------------------------------------------------------------------------------
#
#     pandas.range   [start, stop, step, name]
#     pandas.index   [values, name, frequency]        of any one array; its kind tells the kind of index
#     pandas.levels  [[index of a level, codes], ...], names]


def _encode_index(index: Any, writer: Writer) -> Any:
    node = encode(index, writer)
    if node is None:
        writer.refuse("unsafe", f"an index of the type `{type(index).__name__}` crosses only as a pickle")
    return node


def _encode_range(index: Any, writer: Writer) -> dict[str, Any]:
    return {"pandas.range": [index.start, index.stop, index.step, writer.node(index.name)]}


def _encode_plain_index(index: Any, writer: Writer) -> dict[str, Any]:
    frequency = _describe_frequency(getattr(index, "freq", None)) if index.dtype.kind in "mM" else None
    return {"pandas.index": [_encode_values(index.array, writer), writer.node(index.name), frequency]}


def _encode_levels(index: Any, writer: Writer) -> dict[str, Any]:
    levels = [
        [_encode_index(level, writer), writer.node(sys.modules["numpy"].asarray(codes))]
        for level, codes in zip(index.levels, index.codes)
    ]
    return {"pandas.levels": [levels, writer.node(list(index.names))]}


def _check_index(node: Any, reader: Reader) -> Any:
    """Check a node that has to be an index; its facts."""
    if not isinstance(node, dict) or next(iter(node)) not in _INDEXES:
        reader.refuse("there is no index where one should be")
    return reader.check(node)


def _check_unrolled(node: Any, reader: Reader) -> Any:
    """Check an index that pandas looks into, for which a range becomes the numbers that it stands for."""
    facts = _check_index(node, reader)
    if facts.type == "RangeIndex":
        reader.charge(32 * facts.length)
    return facts


def _check_range(content: Any, reader: Reader) -> Any:
    start, stop, step, name = content
    numbers = (start, stop, step)
    if any(type(number) is not int or abs(number) >= 1 << 63 for number in numbers) or step == 0:
        reader.refuse("a range has no ends")
    reader.check(name)
    length = len(range(start, stop, step))
    return Facts("RangeIndex", length, "<i8", (length,))


def _build_range(content: Any, reader: Reader) -> Any:
    return reader.need("pandas").RangeIndex(*content[:3], name=reader.build(content[3]))


def _check_plain_index(content: Any, reader: Reader) -> Any:
    values, name, frequency = content
    facts = _check_values(values, reader)
    if len(facts.shape) != 1:
        reader.refuse("an index has one dimension")
    if frequency is not None:
        _check_frequency(frequency, reader)
        if facts.dtype[1:2] not in ("m", "M"):
            reader.refuse("only moments have a frequency")
    reader.check(name)
    return facts._replace(type="Index")


def _build_plain_index(content: Any, reader: Reader) -> Any:
    values = _build_values(content[0], reader)
    name = reader.build(content[1])
    if values.dtype == object:
        reader.check_keys(values.tolist())
    index = reader.need("pandas").Index(values, dtype=values.dtype, name=name, copy=False)
    if content[2] is not None:
        index.freq = _make_frequency(content[2], reader)  # pandas sees whether it is true
    return index


def _check_levels(content: Any, reader: Reader) -> Any:
    levels, names = content
    facts = [(_check_unrolled(level, reader), _expect(codes, reader, "i")) for level, codes in levels]
    lengths = {codes.length for _, codes in facts}
    if len(lengths) != 1 or reader.check(names).length != len(levels):
        reader.refuse("the levels of an index differ in length")
    length = lengths.pop()
    return Facts("MultiIndex", length, "object", (length,))


def _build_levels(content: Any, reader: Reader) -> Any:
    levels, names = content
    return reader.need("pandas").MultiIndex(  # looks at every code
        [reader.build(level) for level, _ in levels],
        [reader.build(codes) for _, codes in levels],
        names=reader.build(names),
    )


# --- series and frames -----------------------------------------------------------------------
#
#     pandas.series  [values, index, name, extras]
#     pandas.frame   [index of the columns, index, [[[place of a column, ...], values], ...], extras]
#
# The values of several columns are an array of numpy with a row for each; of one column, any array.
# Extras: [attrs, whether labels may appear twice].


def _encode_series(series: Any, writer: Writer) -> dict[str, Any]:
    values = _encode_values(series.array, writer)
    index = _encode_index(series.index, writer)
    return {"pandas.series": [values, index, writer.node(series.name), _encode_extras(series, writer)]}


def _check_series(content: Any, reader: Reader) -> Any:
    values, index, name, extras = content
    facts = _check_values(values, reader)
    if len(facts.shape) != 1 or _check_index(index, reader).length != facts.length:
        reader.refuse("a series is not as long as its index")
    reader.check(name)
    _check_extras(extras, reader)
    return facts._replace(type="Series")


def _build_series(content: Any, reader: Reader) -> Any:
    values, index = _build_values(content[0], reader), reader.build(content[1])
    name = reader.build(content[2])
    series = reader.need("pandas").Series(values, index, values.dtype, name, copy=False)
    return _add_extras(series, content[3], reader)


def _encode_frame(frame: Any, writer: Writer) -> dict[str, Any]:
    columns, index = _encode_index(frame.columns, writer), _encode_index(frame.index, writer)
    blocks = []
    for block in frame._mgr.blocks:
        places = block.mgr_locs.as_array.tolist()
        for rows, values in _pieces(block.values):
            if places[rows]:  # there may be blocks of no columns
                blocks.append([places[rows], _encode_column(values, frame.columns[places[rows][0]], writer)])
    return {"pandas.frame": [columns, index, blocks, _encode_extras(frame, writer)]}


def _pieces(values: Any) -> Iterator[tuple[slice, Any]]:
    """The values of a block as they can go: which rows, each of which is a column, and their values.

    All of them where they are numbers in one piece of memory. A row on its own where it is an array
    of pandas', where it holds objects, or where it is in one piece and the whole is not.
    """
    if (
        type(values).__name__ in ("DatetimeArray", "TimedeltaArray")
        and getattr(values.dtype, "tz", None) is None
    ):
        values = values._ndarray
    if values.ndim == 1:
        yield slice(1), values
        return
    if isinstance(values, sys.modules["numpy"].ndarray) and values.dtype.kind != "O":
        rows_only = values.strides[1] == values.itemsize and values[:1].nbytes >= LONG_ROW
        if values.flags.forc or not rows_only:
            yield slice(None), values
            return
    for row in range(len(values)):
        yield slice(row, row + 1), values[row]


def _encode_column(values: Any, name: Any, writer: Writer) -> Any:
    try:
        return _encode_values(values, writer)
    except Exception as error:
        if getattr(error, "kind", None) != "unsafe":
            raise
        shown = name if isinstance(name, str) and name.isprintable() else repr(name)
        message, cause, hints = (getattr(error, part) for part in ("message", "cause", "hints"))
        return writer.refuse("unsafe", f"column `{shown:.80}`: {message}", cause, hints)


def _check_frame(content: Any, reader: Reader) -> Any:
    columns, index, blocks, extras = content
    width, height = _check_index(columns, reader).length, _check_index(index, reader).length
    taken: list[int] = []
    for places, values in blocks:
        shape = _check_values(values, reader).shape
        if shape != (len(places), height) and (shape, len(places)) != ((height,), 1):
            reader.refuse("a column is not as long as the index")
        taken += map(reader.length, places)
    if len(taken) != width or sorted(taken) != list(range(width)):
        reader.refuse("a column is missing, or there twice")
    _check_extras(extras, reader)
    return Facts("DataFrame", height, "", (height, width))


def _build_frame(content: Any, reader: Reader) -> Any:
    pandas, numpy = reader.need("pandas"), reader.need("numpy")
    columns, index = reader.build(content[0]), reader.build(content[1])
    blocks = []
    for places, node in content[2]:
        values = _build_values(node, reader)
        in_rows = ("ndarray", "DatetimeArray", "TimedeltaArray", "PeriodArray")
        if values.ndim == 1 and type(values).__name__ in in_rows:
            values = values.reshape(1, -1)
        blocks.append({"values": values, "mgr_locs": numpy.array(places, numpy.intp)})
    # What follows is how pandas makes a frame of the state in a pickle, with blocks as they are.
    kind: Any = type(pandas.DataFrame()._mgr)
    manager = kind.__new__(kind)
    manager.__setstate__((None, None, None, {"0.14.1": {"axes": [columns, index], "blocks": blocks}}))
    frame = pandas.DataFrame.__new__(pandas.DataFrame)
    frame.__setstate__({"_mgr": manager, "_typ": "dataframe"})
    return _add_extras(frame, content[3], reader)


def _encode_extras(value: Any, writer: Writer) -> list[Any]:
    attrs = {key: item for key, item in value.attrs.items() if _is_simple(key) and _is_simple(item)}
    return [writer.node(attrs), bool(value.flags.allows_duplicate_labels)]


def _check_extras(extras: Any, reader: Reader) -> None:
    attrs, allows_duplicates = extras
    if reader.check(attrs).type != "dict" or not isinstance(allows_duplicates, bool):
        reader.refuse("attributes are no dict")


def _add_extras(value: Any, extras: Any, reader: Reader) -> Any:
    attrs, allows_duplicates = extras
    value.attrs.update(reader.build(attrs))
    if not allows_duplicates:
        value.flags.allows_duplicate_labels = False
    return value


def _is_simple(value: Any, depth: int = 0) -> bool:
    """Whether an attribute surely crosses; others stay behind, a frame is not held up by them."""
    kind = type(value)
    if kind in (dict, list, tuple):
        items = [*value, *value.values()] if kind is dict else value
        return depth < 10 and all(_is_simple(item, depth + 1) for item in items)
    if kind is datetime.datetime:
        return value.tzinfo is None
    return value is None or kind in (bool, int, float, complex, str, bytes, datetime.date)


# --- scalars ---------------------------------------------------------------------------------


def _encode_timestamp(value: Any, writer: Writer) -> dict[str, Any]:
    return {"pandas.timestamp": [*_count(value.asm8), _describe_zone(value.tz, writer)]}


def _check_timestamp(content: Any, reader: Reader) -> Any:
    number, unit, zone = content
    _check_count(number, unit, reader)
    _check_zone(zone, reader)
    return Facts("Timestamp")


def _build_timestamp(content: Any, reader: Reader) -> Any:
    number, unit, zone = content
    moment = reader.need("pandas").Timestamp(reader.need("numpy").datetime64(number, unit))
    zone = _make_zone(zone, reader)
    return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)


def _encode_timedelta(value: Any, writer: Writer) -> dict[str, Any]:
    return {"pandas.timedelta": _count(value.asm8)}


def _check_timedelta(content: Any, reader: Reader) -> Any:
    number, unit = content
    _check_count(number, unit, reader)
    return Facts("Timedelta")


def _build_timedelta(content: Any, reader: Reader) -> Any:
    return reader.need("pandas").Timedelta(reader.need("numpy").timedelta64(*content))


def _count(value: Any) -> list[Any]:
    """A moment or a delta of numpy's as a number and its unit."""
    numpy = sys.modules["numpy"]
    return [int(value.view("i8")), numpy.datetime_data(value.dtype)[0]]


def _check_count(number: Any, unit: Any, reader: Reader) -> None:
    if type(number) is not int or not -(1 << 63) < number < 1 << 63 or unit not in ("s", "ms", "us", "ns"):
        reader.refuse("that is no time")


def _encode_period(value: Any, writer: Writer) -> dict[str, Any]:
    return {"pandas.one_period": [int(value.ordinal), _period_frequency(value.freq, writer)]}


def _check_period(content: Any, reader: Reader) -> Any:
    ordinal, frequency = content
    _check_count(ordinal, "s", reader)
    _check_frequency(frequency, reader)
    return Facts("Period")


def _build_period(content: Any, reader: Reader) -> Any:
    frequency = _make_frequency(content[1], reader)
    return reader.need("pandas").Period(ordinal=content[0], freq=frequency)


def _encode_interval(value: Any, writer: Writer) -> dict[str, Any]:
    return {"pandas.one_interval": [writer.node(value.left), writer.node(value.right), value.closed]}


def _check_interval(content: Any, reader: Reader) -> Any:
    left, right, closed = content
    reader.check(left), reader.check(right)
    if closed not in ("left", "right", "both", "neither"):
        reader.refuse("an interval is closed on one side, on both or on neither")
    return Facts("Interval")


def _build_interval(content: Any, reader: Reader) -> Any:
    left, right, closed = content
    return reader.need("pandas").Interval(reader.build(left), reader.build(right), closed)


def _encode_nothing(value: Any, writer: Writer) -> dict[str, Any]:
    return {"pandas.nothing": "NaT" if type(value).__name__ == "NaTType" else "NA"}


def _check_nothing(content: Any, reader: Reader) -> Any:
    if content not in ("NA", "NaT"):
        reader.refuse("there is no such nothing")
    return Facts(content)


def _build_nothing(content: Any, reader: Reader) -> Any:
    pandas = reader.need("pandas")
    return pandas.NA if content == "NA" else pandas.NaT


# --- what `format=` makes of a value ---------------------------------------------------------
#
# On the client only. Each function gives None for what has no such form.


def convert(value: Any, format: str) -> Any:
    """A value in the form that the user wants it in: "pandas", "polars", "arrow" or "numpy".

    Raises:
        ValuesError: it has no such form, or the library is missing here.
    """
    from ._values import ValuesError
    from ._values import describe as describe_any

    make = _FORMATS.get(format)
    if make is None:
        raise ValuesError(
            "kind", f"there is no format `{format:.40}`", hints=("`pandas`, `polars`, `arrow`, `numpy`",)
        )
    try:
        made = _arrow.calmly(make, value)
        cause = None
    except ImportError as error:
        message = f"`{format}` needs a library that is not installed here"
        raise ValuesError("kind", message, str(error)) from None
    except Exception as error:  # each library has errors of its own
        made, cause = None, str(error)
    if made is None:
        raise ValuesError("kind", f"`{describe_any(value)}` has no form as `{format}`", cause)
    return made


def _to_pandas(value: Any) -> Any:
    root = _library_of(value)
    if root == "pandas":
        return value
    pandas = _arrow.load("pandas")

    if root == "polars":
        return value.to_pandas()
    if root == "pyarrow":
        # What the peer says about it in the metadata, pandas would act on.
        return (value.replace_schema_metadata(None) if hasattr(value, "schema") else value).to_pandas()
    if root == "numpy" and value.ndim in (1, 2):
        is_table = value.ndim == 2 or value.dtype.names is not None
        return pandas.DataFrame(value) if is_table else pandas.Series(value, copy=False)
    columns = _columns_in(value)
    return None if columns is None else pandas.DataFrame(columns)


def _to_polars(value: Any) -> Any:
    root = _library_of(value)
    if root == "polars":
        return value
    polars = _arrow.load("polars")

    if root == "pandas":
        return polars.from_pandas(value, include_index=_has_labels(value))
    if root == "pyarrow":
        return polars.from_arrow(value.replace_schema_metadata(None) if hasattr(value, "schema") else value)
    if root == "numpy" and value.ndim in (1, 2):
        return polars.DataFrame(value) if value.ndim == 2 or value.dtype.names else polars.Series(value)
    columns = _columns_in(value)
    return None if columns is None else polars.DataFrame(columns)


def _to_arrow(value: Any) -> Any:
    root = _library_of(value)
    if root == "pyarrow":
        return value
    pyarrow = _arrow.load("pyarrow")

    if root == "polars":
        return value.to_arrow()
    if root == "pandas":
        if not hasattr(value, "columns"):
            return pyarrow.array(value)
        return pyarrow.Table.from_pandas(value, preserve_index=_has_labels(value))
    if root == "numpy" and value.ndim == 1 and value.dtype.names is None:
        return pyarrow.array(value)
    if root == "numpy" and value.ndim in (1, 2):
        names = value.dtype.names
        return pyarrow.table(
            {n: value[n] for n in names} if names else {str(i): c for i, c in enumerate(value.T)}
        )
    columns = _columns_in(value)
    return None if columns is None else pyarrow.table(columns)


def _to_numpy(value: Any) -> Any:
    root = _library_of(value)
    if root == "numpy":
        return value
    numpy = _arrow.load("numpy")

    if root in ("pandas", "polars"):
        return value.to_numpy()
    if root == "torch":
        return value.detach().cpu().numpy()
    if root == "pyarrow" and hasattr(value, "schema"):
        return numpy.column_stack([column.to_numpy(zero_copy_only=False) for column in value.columns])
    if root == "pyarrow":
        return value.to_numpy(zero_copy_only=False)
    made = numpy.array(value) if isinstance(value, (list, tuple)) else None
    return None if made is None or made.dtype == object else made


def _columns_in(value: Any) -> dict[str, Any] | None:
    """A dict of columns, or a list of them, by name."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return value
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    if is_list and all(getattr(column, "ndim", 0) == 1 for column in value):
        return {str(number): column for number, column in enumerate(value)}
    return None


def _has_labels(value: Any) -> bool:
    """Whether it is a frame of pandas whose index says more than the numbers of the rows."""
    index = getattr(value, "index", None)
    return hasattr(value, "columns") and (
        type(index).__name__ != "RangeIndex" or value.index.name is not None
    )


def _library_of(value: Any) -> str:
    return str(getattr(type(value), "__module__", "")).partition(".")[0]  # a class may have none


_FORMATS = {"pandas": _to_pandas, "polars": _to_polars, "arrow": _to_arrow, "numpy": _to_numpy}


# --- the tables ------------------------------------------------------------------------------

_ARRAYS = {
    "pandas.category", "pandas.masked", "pandas.moments", "pandas.period", "pandas.interval", "pandas.arrow",
    "pandas.text",
}  # fmt: skip
_INDEXES = {"pandas.range", "pandas.index", "pandas.levels"}

_ENCODERS: dict[str, Callable[[Any, Writer], Any]] = {
    "DataFrame": _encode_frame,
    "Series": _encode_series,
    "RangeIndex": _encode_range,
    "MultiIndex": _encode_levels,
    **dict.fromkeys(("Index", "DatetimeIndex", "TimedeltaIndex", "PeriodIndex"), _encode_plain_index),
    **dict.fromkeys(("IntervalIndex", "CategoricalIndex"), _encode_plain_index),
    **dict.fromkeys(("Int64Index", "UInt64Index", "Float64Index"), _encode_plain_index),  # pandas 1
    "Categorical": _encode_categorical,
    **dict.fromkeys(("IntegerArray", "FloatingArray", "BooleanArray"), _encode_masked),
    **dict.fromkeys(("DatetimeArray", "TimedeltaArray"), _encode_moments),
    "PeriodArray": _encode_periods,
    "IntervalArray": _encode_intervals,
    "ArrowExtensionArray": _encode_arrow,
    "SparseArray": _refuse_sparse,
    **dict.fromkeys(("StringArray", "StringArrayNumpySemantics"), _encode_string_array),
    **dict.fromkeys(("ArrowStringArray", "ArrowStringArrayNumpySemantics"), _encode_string_array),
    "Timestamp": _encode_timestamp,
    "Timedelta": _encode_timedelta,
    "Period": _encode_period,
    "Interval": _encode_interval,
    **dict.fromkeys(("NAType", "NaTType"), _encode_nothing),
}

decoders: dict[str, tuple[Callable[[Any, Reader], Any], Callable[[Any, Reader], Any]]] = {
    "pandas.frame": (_check_frame, _build_frame),
    "pandas.series": (_check_series, _build_series),
    "pandas.range": (_check_range, _build_range),
    "pandas.index": (_check_plain_index, _build_plain_index),
    "pandas.levels": (_check_levels, _build_levels),
    "pandas.category": (_check_categorical, _build_categorical),
    "pandas.masked": (_check_masked, _build_masked),
    "pandas.moments": (_check_moments, _build_moments),
    "pandas.period": (_check_periods, _build_periods),
    "pandas.interval": (_check_intervals, _build_intervals),
    "pandas.arrow": (_check_arrow, _build_arrow),
    "pandas.text": (_check_text, _build_text),
    "pandas.timestamp": (_check_timestamp, _build_timestamp),
    "pandas.timedelta": (_check_timedelta, _build_timedelta),
    "pandas.one_period": (_check_period, _build_period),
    "pandas.one_interval": (_check_interval, _build_interval),
    "pandas.nothing": (_check_nothing, _build_nothing),
    **_arrow.decoders,
}
