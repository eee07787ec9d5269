"""pandas' objects cross and are what they were; what a peer makes up is refused."""

from __future__ import annotations

import datetime
import decimal
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dateutil.tz
import hypothesis.extra.numpy as numpy_strategies
import numpy
import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remoter import _frames, _values
from remoter._frames import convert
from remoter._values import Layout, Packed, ValuesError, pack

IS_NEW = int(pandas.__version__.partition(".")[0]) >= 3


def receive(tree: str, sizes: list[int], stream: bytes) -> Any:
    """What the other end makes of a tree and the bytes that follow it."""
    layout, start = Layout(tree, sizes), 0
    for view in layout.allocate():
        view[:] = stream[start : start + len(view)]
        start += len(view)
    return layout.build()


def cross(value: Any) -> Any:
    packed = pack(value)
    return receive(packed.tree, [len(buffer) for buffer in packed.buffers], b"".join(packed.buffers))


def assert_same(left: Any, right: Any) -> None:
    """Equal in everything that pandas can tell apart."""
    assert type(left) is type(right)
    if isinstance(left, pandas.DataFrame):
        assert list(left.dtypes) == list(right.dtypes)
        assert_same(left.columns, right.columns)
        assert_same(left.index, right.index)
        exact = {"check_exact": True, "check_column_type": "exact", "check_index_type": "exact"}
        pandas.testing.assert_frame_equal(left, right, **exact)
        assert left.attrs == right.attrs
    elif isinstance(left, pandas.Series):
        assert left.dtype == right.dtype
        assert_same(left.index, right.index)
        pandas.testing.assert_series_equal(left, right, check_exact=True)
        if left.dtype == object:
            assert list(map(type, left)) == list(map(type, right))
    elif isinstance(left, pandas.MultiIndex):
        pandas.testing.assert_index_equal(left, right, exact=True)
        for one, other in zip(left.levels, right.levels, strict=True):
            assert_same(one, other)
    elif isinstance(left, pandas.Index):
        assert left.dtype == right.dtype
        assert getattr(left, "freq", None) == getattr(right, "freq", None)
        pandas.testing.assert_index_equal(left, right, exact=True)
    elif isinstance(left, pandas.api.extensions.ExtensionArray):
        pandas.testing.assert_extension_array_equal(left, right)
    else:
        assert left is right or left == right
        for name in ("tz", "unit", "freq", "closed"):
            assert getattr(left, name, None) == getattr(right, name, None)


# --- what crosses ---

ROWS = 7
TEXTS = [*"abcdef", None]


def every_kind_of_column() -> dict[str, Any]:
    columns: dict[str, Any] = {
        dtype: numpy.arange(ROWS).astype(dtype)
        for dtype in ("i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", "?", ">i4")
    }
    columns |= {f"M8[{unit}]": numpy.arange(ROWS).astype(f"M8[{unit}]") for unit in ("s", "ms", "us", "ns")}
    columns |= {f"m8[{unit}]": numpy.arange(ROWS).astype(f"m8[{unit}]") for unit in ("s", "ns")}
    nullable = [1, 2, None, 4, 5, 6, 7]
    columns |= {name: pandas.array(nullable, dtype=name) for name in ("Int8", "UInt64", "Float32", "Float64")}
    columns |= {
        "boolean": pandas.array([True, None, False, None, True, True, False], dtype="boolean"),
        "default texts": pandas.array(TEXTS, dtype="str" if IS_NEW else "string"),
        "string python": pandas.array(TEXTS, dtype="string[python]"),
        "string pyarrow": pandas.array(TEXTS, dtype="string[pyarrow]"),
        "object": pandas.Series(["a", None, numpy.nan, pandas.NA, pandas.NaT, "ü\0x", ""], dtype=object),
        "no text": pandas.Series([None] * ROWS, dtype=object),
        "surrogates": pandas.Series(["\ud800", "\udcff", "", "a", "b", "c", "d"], dtype=object),
        "numpy texts": pandas.Series([numpy.str_("a"), *"bcdefg"], dtype=object),
        "not only texts": pandas.Series(["a", 1.5, numpy.nan, "b", "c", "d", "e"], dtype=object),
        "anything": pandas.Series([1, "a", None, 2.5, (1, 2), [3], {"x": b"1"}], dtype=object),
        "dates": pandas.Series([datetime.date(2020, 1, day) for day in range(1, 8)], dtype=object),
        "decimals": pandas.Series([decimal.Decimal("1.50")] * ROWS, dtype=object),
        "frames": pandas.Series([pandas.DataFrame({"a": [1]})] + [None] * 6, dtype=object),
        "category": pandas.Categorical([*"abcabc", None], categories=list("cbax"), ordered=True),
        "category of numbers": pandas.Categorical([1.5, 2, 1.5, 2, 1.5, 2, 2]),
        "category of intervals": pandas.cut(numpy.arange(ROWS), 3),
        "zone": pandas.date_range("2020-10-24", periods=ROWS, freq="D", tz="Europe/Berlin"),
        "offset": pandas.date_range("2020", periods=ROWS, tz=datetime.timezone(datetime.timedelta(hours=-3))),
        "months": pandas.period_range("2020-01", periods=ROWS, freq="M"),
        "quarters": pandas.period_range("2020-01", periods=ROWS, freq="Q-FEB"),
        "intervals": pandas.interval_range(0, ROWS, closed="both"),
        "arrow numbers": pandas.array(nullable, dtype="int64[pyarrow]"),
        "arrow lists": pandas.array(
            [[1], None, [2, 3], [], [4], [5], [6]], dtype=pandas.ArrowDtype(pyarrow.list_(pyarrow.int64()))
        ),
    }
    return columns


@pytest.mark.parametrize("kind", every_kind_of_column())
def test_a_column_of_every_kind_comes_back_as_it_was_also_in_part(kind: str) -> None:
    values = every_kind_of_column()[kind]
    series = pandas.Series(values, name=("a", 1))
    if kind == "frames":
        assert_same(cross(series)[0], series[0])
        return
    frame = pandas.DataFrame({"a": values, "b": 1.5, "c": values})
    for part in (slice(None), slice(2, 5), slice(None, None, 2), slice(None, None, -1), slice(0, 0)):
        assert_same(series.iloc[part], cross(series.iloc[part]))
        assert_same(frame.iloc[part], cross(frame.iloc[part]))
    array = series.array
    if not hasattr(array, "to_numpy") or type(array).__name__ != "NumpyExtensionArray":
        assert_same(array, cross(array))


def test_a_frame_of_all_kinds_of_columns_comes_back_as_it_was() -> None:
    frame = pandas.DataFrame(every_kind_of_column()).drop(columns="frames")
    assert_same(frame, cross(frame))
    assert_same(frame[[]], cross(frame[[]]))


INDEXES: dict[str, Any] = {
    "range": pandas.RangeIndex(5, 5 + 3 * ROWS, 3, name="r"),
    "backwards": pandas.RangeIndex(ROWS, 0, -1),
    "int8": pandas.Index(numpy.arange(ROWS, dtype="i1"), name=3),
    "float": pandas.Index(numpy.arange(ROWS) / 2),
    "bool": pandas.Index([True, False, True]),
    "texts": pandas.Index(list("abc"), name=("x", 1)),
    "objects": pandas.Index([1, "a", None, 2.5], dtype=object),
    "nullable": pandas.Index(pandas.array([1, None], dtype="Int64")),
    "categories": pandas.CategoricalIndex(list("abca")),
    "intervals": pandas.IntervalIndex.from_breaks(pandas.date_range("2020", periods=ROWS), closed="left"),
    "periods": pandas.period_range("2020", periods=ROWS, freq="2D", name="p"),
    "deltas": pandas.timedelta_range("1h", periods=ROWS, freq="3h"),
    "no dates": pandas.DatetimeIndex([]),
    "not a time": pandas.DatetimeIndex(["2020", None]),
    "levels": pandas.MultiIndex.from_tuples(
        [("a", pandas.Timestamp("2020"), 1.5), ("b", pandas.NaT, None)], names=["x", None, 3]
    ),
    "levels that are not used": pandas.MultiIndex.from_product([list("ab"), [1, 2]])[:1],
    **{
        freq: pandas.date_range("2020-01-01", periods=ROWS, freq=freq)
        for freq in (
            *("s", "90min", "-2h", "D", "B", "W-TUE", "WOM-2MON", "MS", "2MS"),
            *("QS-FEB", "YS-APR", "SMS", "BMS", "BQS-MAR"),
        )
    },
    "UTC": pandas.date_range("2020", periods=ROWS, freq="h", tz="UTC"),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_of_every_kind_comes_back_as_it_was_also_around_a_frame(kind: str) -> None:
    index = INDEXES[kind]
    assert_same(index, cross(index))
    frame = pandas.DataFrame(numpy.random.default_rng(0).random((len(index), 3)), index=index)
    assert_same(frame, cross(frame))
    assert_same(frame.T, cross(frame.T))


def test_a_frequency_with_holidays_is_left_behind_and_the_dates_are_not() -> None:
    index = pandas.date_range(
        "2020", periods=5, freq=pandas.offsets.CustomBusinessDay(holidays=["2020-01-02"])
    )
    assert_same(cross(index), pandas.DatetimeIndex(list(index)).as_unit(index.unit))


def zones() -> dict[str, Any]:
    import zoneinfo

    found = {
        "utc": datetime.UTC,
        "offset": datetime.timezone(datetime.timedelta(minutes=-30)),
        "zoneinfo": zoneinfo.ZoneInfo("America/New_York"),
    }
    found["dateutil utc"] = dateutil.tz.UTC
    try:
        import pytz
    except ImportError:
        return found
    found |= {"pytz": pytz.timezone("Asia/Tokyo"), "pytz utc": pytz.UTC, "pytz offset": pytz.FixedOffset(90)}
    return found


@pytest.mark.parametrize("kind", zones())
def test_a_time_zone_stays_that_of_its_library(kind: str) -> None:
    index = pandas.date_range("2020-10-31 22:00", periods=5, freq="h", tz=zones()[kind])
    again = cross(index)
    assert_same(index, again)
    assert type(again.tz) is type(index.tz)
    moment = pandas.Timestamp("2020-11-01 05:30:00.123456789", tz="UTC").tz_convert(zones()[kind])
    assert_same(moment, cross(moment))


def test_a_zone_of_a_library_that_is_missing_becomes_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(pandas.date_range("2020", periods=3, tz="Asia/Tokyo"))
    tree = packed.tree.replace('"zoneinfo"', '"pytz"').replace('"datetime"', '"pytz"')
    monkeypatch.setitem(sys.modules, "pytz", None)
    assert str(receive(tree, [len(b) for b in packed.buffers], b"".join(packed.buffers)).tz) == "Asia/Tokyo"


@pytest.mark.parametrize(
    "value",
    [
        pandas.Timestamp("1700-01-01"),
        pandas.Timestamp("2020-01-01 10:11:12.123456789"),
        pandas.Timestamp(numpy.datetime64("9999-01-01", "s")),
        pandas.Timedelta("-1D 3ns"),
        pandas.Timedelta(numpy.timedelta64(5, "s")),
        pandas.Period("2020-03", "M"),
        pandas.Period("2020", "Y-FEB"),
        pandas.Interval(1, 2.5, closed="neither"),
        pandas.Interval(pandas.Timestamp("2020"), pandas.Timestamp("2021")),
        pandas.NA,
        pandas.NaT,
    ],
    ids=repr,
)
def test_a_scalar_of_pandas_comes_back_as_it_was(value: Any) -> None:
    assert_same(value, cross(value))
    assert_same(value, cross({"in": [value]})["in"][0])


def test_names_attributes_and_flags_go_along() -> None:
    frame = pandas.DataFrame([[1, 2], [3, 4]], columns=pandas.MultiIndex.from_product([["x"], [1, 2]]))
    frame.columns.names = ["A", None]
    frame.index.name = datetime.date(2020, 1, 1)
    frame.attrs = {"unit": "m", "nested": {"a": [1, (2.5, None)]}}
    again = cross(frame)
    assert_same(frame, again)
    assert again.columns.names == ["A", None]
    unique = frame.set_flags(allows_duplicate_labels=False)
    assert not cross(unique).flags.allows_duplicate_labels
    assert not cross(unique[("x", 1)]).flags.allows_duplicate_labels


def test_an_attribute_that_cannot_cross_does_not_hold_up_its_frame() -> None:
    frame = pandas.DataFrame({"a": [1]})
    zone = datetime.datetime(2020, 1, 1, tzinfo=dateutil.tz.tzlocal())
    frame.attrs = {
        "kept": 1,
        "object": object(),
        "class": {"deep": [object]},
        "array": numpy.arange(9),
        "at": zone,
    }
    assert cross(frame).attrs == {"kept": 1}


@pytest.mark.parametrize("names", [["a", "a", "b"], [3, 1, 2], [("a", 1), "b", None], [1.5, "a", b"x"]])
def test_columns_may_have_any_names_also_twice(names: list[Any]) -> None:
    frame = pandas.DataFrame({"x": [1.5, 2], "y": ["p", "q"], "z": [1, 2]})
    frame.columns = pandas.Index(names, dtype=object, tupleize_cols=False)
    assert_same(frame, cross(frame))


@pytest.mark.parametrize("rows", [0, 1])
def test_an_empty_frame_comes_back_as_it_was(rows: int) -> None:
    assert_same(pandas.DataFrame(index=range(rows)), cross(pandas.DataFrame(index=range(rows))))
    assert_same(pandas.DataFrame(columns=["a"]), cross(pandas.DataFrame(columns=["a"])))
    assert_same(pandas.Series(dtype=object), cross(pandas.Series(dtype=object)))
    none = pandas.DataFrame(numpy.empty((rows, 0)))
    assert_same(none, cross(none))
    assert_same(FRAME.iloc[:rows, :0], cross(FRAME.iloc[:rows, :0]))


# --- what crosses, drawn ---


@st.composite
def values(draw: st.DrawFn, rows: int) -> Any:
    """Values of a column."""
    shape = numpy_strategies.arrays
    text = st.text(max_size=5)
    kind = draw(st.integers(0, 8))
    if kind == 0:
        dtype = draw(st.sampled_from(["?", "i1", "u8", "i4", "f2", "f4", "f8", "c16", ">f8"]))
        return draw(shape(dtype, rows))
    if kind == 1:
        dtype = draw(st.sampled_from(["M8[s]", "M8[us]", "M8[ns]", "m8[ms]"]))
        return draw(shape("i8", rows)).view(dtype)
    nothing = st.sampled_from([None, numpy.nan, pandas.NA, pandas.NaT])
    if kind == 2:
        drawn = draw(st.lists(text | nothing | st.integers() | st.floats(), min_size=rows, max_size=rows))
        return pandas.Series(drawn, dtype=object)
    if kind in (3, 4):
        drawn = draw(st.lists(text | nothing, min_size=rows, max_size=rows))
        return pandas.Series(drawn, dtype=object)
    if kind == 5:
        names = ["string[python]", "string[pyarrow]", *(["str"] if IS_NEW else [])]
        encodable = st.text(st.characters(codec="utf-8"), max_size=5)
        drawn = draw(st.lists(encodable | st.none(), min_size=rows, max_size=rows))
        return pandas.array(drawn, dtype=draw(st.sampled_from(names)))
    if kind == 6:
        categories = draw(st.lists(text, unique=True, max_size=5))
        codes = draw(shape("i1", rows, elements=st.integers(-1, len(categories) - 1)))
        return pandas.Categorical.from_codes(
            codes, pandas.Index(categories, dtype=object), draw(st.booleans())
        )
    if kind == 7:
        numbers = draw(st.lists(st.none() | st.integers(-100, 100), min_size=rows, max_size=rows))
        return pandas.array(numbers, dtype=draw(st.sampled_from(["Int8", "Float64", "int32[pyarrow]"])))
    moments = pandas.to_datetime(draw(shape("i4", rows)).astype("M8[s]")).tz_localize("UTC")
    return moments.tz_convert(draw(st.sampled_from(["Europe/Berlin", "UTC", "Asia/Kathmandu"])))


@st.composite
def indexes(draw: st.DrawFn, rows: int) -> Any:
    name = draw(
        st.none() | st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.text(max_size=2))
    )
    kind = draw(st.integers(0, 2))
    if kind == 0:
        start, step = draw(st.integers(-9, 9)), draw(st.integers(-3, 3).filter(bool))
        return pandas.RangeIndex(start, start + step * rows, step, name=name)
    if kind == 1:
        drawn = draw(values(rows))
        return pandas.Index(drawn if getattr(drawn, "dtype", None) != "f2" else drawn.astype("f4"), name=name)
    levels = draw(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=1)), min_size=rows, max_size=rows))
    return (
        pandas.MultiIndex.from_tuples(levels, names=[name, None]) if levels else pandas.Index([], name=name)
    )


@st.composite
def frames(draw: st.DrawFn) -> pandas.DataFrame:
    rows, width = draw(st.integers(0, 12)), draw(st.integers(0, 6))
    frame = pandas.DataFrame({number: draw(values(rows)) for number in range(width)}, index=range(rows))
    frame.index = draw(indexes(rows))
    frame.columns = draw(indexes(width))
    if draw(st.booleans()):
        frame = frame.iloc[draw(st.integers(0, 3)) :: draw(st.integers(1, 3))]
    return frame.copy() if draw(st.booleans()) else frame


@settings(max_examples=150, deadline=None)
@given(frames())
def test_any_frame_comes_back_as_it_was(frame: pandas.DataFrame) -> None:
    assert_same(frame, cross(frame))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12).flatmap(values))
def test_any_series_and_index_comes_back_as_it_was(drawn: Any) -> None:
    series = pandas.Series(drawn)
    assert_same(series, cross(series))
    if series.dtype != "f2":
        assert_same(pandas.Index(series), cross(pandas.Index(series)))


# --- how it crosses ---


def memory_of(buffer: memoryview) -> Any:
    return numpy.frombuffer(buffer, numpy.uint8)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_frame_of_numbers_is_one_buffer_and_nobody_copies_it(order: str) -> None:
    numbers = numpy.require(numpy.random.default_rng(0).random((20_000, 10)), requirements=order)
    frame = pandas.DataFrame(numbers, copy=False)
    packed = pack(frame)
    large = [buffer for buffer in packed.buffers if len(buffer) > 100_000]
    assert len(large) == 1
    assert numpy.shares_memory(memory_of(large[0]), numbers)

    layout = Layout(packed.tree, [len(buffer) for buffer in packed.buffers])
    views = layout.allocate()
    there = [memory_of(view) for view in views]
    for view, buffer in zip(views, packed.buffers, strict=True):
        view[:] = buffer
    again = layout.build()
    assert_same(frame, again)
    received = max(there, key=len)
    again.iloc[0, 0] = 7.5
    assert again.iloc[0, 0] == 7.5
    assert numpy.shares_memory(again._mgr.blocks[0].values, received)
    assert len(again._mgr.blocks) == 1


def test_columns_of_a_mixed_frame_are_not_copied_and_stay_together() -> None:
    frame = pandas.DataFrame({name: numpy.arange(50_000.0) for name in "abcd"}).assign(
        n=numpy.arange(50_000), t=pandas.date_range("2020", periods=50_000, freq="s", tz="UTC")
    )
    memories = [block.values for block in frame._mgr.blocks]
    memories = [getattr(memory, "_ndarray", memory) for memory in memories]
    packed = pack(frame)
    large = [memory_of(buffer) for buffer in packed.buffers if len(buffer) > 100_000]
    assert len(large) == len(memories)
    for memory in memories:
        assert any(numpy.shares_memory(memory, buffer) for buffer in large)
    assert len(cross(frame)._mgr.blocks) == len(memories)


def test_rows_out_of_the_middle_go_column_by_column_and_are_not_copied() -> None:
    frame = pandas.DataFrame(
        numpy.asfortranarray(numpy.random.default_rng(0).random((40_000, 3))), copy=False
    )
    part = frame.iloc[100:30_000]
    packed = pack(part)
    large = [memory_of(buffer) for buffer in packed.buffers if len(buffer) > 100_000]
    assert len(large) == 3
    assert all(numpy.shares_memory(buffer, frame._mgr.blocks[0].values) for buffer in large)
    assert_same(part, cross(part))


def test_texts_of_arrow_are_not_copied_and_of_a_part_only_the_part_is_sent() -> None:
    texts = pandas.Series([f"text {number}" for number in range(50_000)], dtype="string[pyarrow]")
    (chunk,) = texts.array.__arrow_array__().chunks
    there = numpy.frombuffer(chunk.buffers()[2], numpy.uint8)
    assert any(numpy.shares_memory(memory_of(buffer), there) for buffer in pack(texts).buffers)
    part = texts.iloc[100:110]
    assert sum(map(len, pack(part).buffers)) < 1000
    assert_same(part, cross(part))


def test_texts_that_repeat_go_once() -> None:
    texts = pandas.Series((["Argentina", "Österreich", None, numpy.nan] * 5000), dtype=object)
    assert sum(map(len, pack(texts).buffers)) < 3 * len(texts)
    assert_same(texts, cross(texts))
    alternating = pandas.Series([None if n % 10 == 0 else f"text {n}" for n in range(20_000)], dtype=object)
    assert_same(alternating, cross(alternating))


def test_a_frame_that_was_received_can_be_changed_like_any_other() -> None:
    columns = {"n": [1, 2], "s": ["x", "y"], "t": pandas.to_datetime(["2020", "2021"], utc=True)}
    frame = cross(pandas.DataFrame(columns).assign(c=pandas.Categorical(["a", "b"])))
    frame.loc[0, "n"], frame.loc[0, "s"], frame.loc[0, "c"] = 9, "new", "b"
    frame.loc[0, "t"] = frame.loc[1, "t"]
    frame["more"] = 1.5
    assert frame.iloc[0].tolist() == [9, "new", pandas.Timestamp("2021", tz="UTC"), "b", 1.5]
    assert pandas.concat([frame, frame]).groupby("c", observed=True)["n"].sum().tolist() == [22]


def test_the_largest_things_are_described_without_being_looked_into() -> None:
    assert pack(pandas.DataFrame({"a": [1, 2, 3], "b": 1})).text.startswith("DataFrame 3x2")
    assert _values.describe(pandas.Series([1.5])) == "Series 1 float64"
    assert _values.describe(pandas.RangeIndex(10**15)) == f"RangeIndex {10**15}"
    assert _values.describe(pandas.Timestamp("2020")) == "Timestamp"

    class Mine(pandas.DataFrame):
        pass

    assert _frames.describe(Mine()) is None


# --- what does not cross ---


class Thing:
    pass


def test_a_column_that_needs_a_pickle_is_named() -> None:
    frame = pandas.DataFrame({"fine": [1], "odd": pandas.Series([Thing()], dtype=object)})
    with pytest.raises(ValuesError, match=r"column `odd`.*`Thing`") as caught:
        pack(frame)
    assert caught.value.kind == "unsafe"


def test_a_sparse_column_is_refused_with_the_way_out() -> None:
    frame = pandas.DataFrame({"s": pandas.arrays.SparseArray([0, 0, 1])})
    with pytest.raises(ValuesError, match=r"column `s`.*sparse") as caught:
        pack(frame)
    assert caught.value.kind == "unsafe"
    assert "to_dense" in caught.value.hints[0]


def test_a_class_of_the_user_is_not_taken_for_one_of_pandas() -> None:
    class DataFrame(pandas.DataFrame):
        pass

    class Categorical(pandas.Categorical):
        pass

    DataFrame.__module__ = Categorical.__module__ = "pandas"
    array = Categorical(["a", "b"])
    impostor = type("NaTType", (), {"__module__": "pandas"})()
    for value in (DataFrame({"a": [1]}), impostor, pandas.Series(array), array):
        with pytest.raises(ValuesError) as caught:
            pack(value)
        assert caught.value.kind == "unsafe"


def test_the_zone_of_that_machine_alone_does_not_cross() -> None:
    with pytest.raises(ValuesError, match="time zone") as caught:
        pack(pandas.Timestamp("2020", tz=dateutil.tz.tzlocal()))
    assert caught.value.kind == "unsafe"


# --- another pandas at the other end ---


def test_texts_become_what_an_older_pandas_has_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    if not IS_NEW:
        pytest.skip("pandas 3 is the newer one")
    texts = pandas.Series(["a", None, "ü"])
    packed = pack(texts)

    def of_2_2(storage: str) -> Any:
        raise AssertionError("it has no such option")

    monkeypatch.setattr(pandas, "StringDtype", of_2_2)
    again = receive(packed.tree, [len(b) for b in packed.buffers], b"".join(packed.buffers))
    assert again.dtype == object
    assert again.tolist()[::2] == ["a", "ü"]
    assert numpy.isnan(again[1])


def test_texts_become_pythons_where_there_is_no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(pandas.Series(["a", None, "ü", "n\0l"], dtype="string[pyarrow]"))
    dtype = pandas.StringDtype

    def without_pyarrow(storage: str, **options: Any) -> Any:
        if storage == "pyarrow":
            raise ImportError("no pyarrow")
        return dtype(storage, **options)

    monkeypatch.setattr(pandas, "StringDtype", without_pyarrow)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    again = receive(packed.tree, [len(b) for b in packed.buffers], b"".join(packed.buffers))
    assert again.dtype.storage == "python"
    assert again.tolist() == ["a", pandas.NA, "ü", "n\0l"]


def test_a_pandas_that_counts_nanoseconds_only_gets_these_or_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near = pandas.Series(numpy.array(["2020-01-01", "NaT"], "M8[s]"))
    far = pandas.Series(numpy.array(["9999-01-01", "NaT"], "M8[s]"))
    packed = [pack(series) for series in (near, far)]
    monkeypatch.setattr(pandas, "__version__", "1.5.3")
    streams = [(p.tree, [len(b) for b in p.buffers], b"".join(p.buffers)) for p in packed]
    assert receive(*streams[0]).dtype == "M8[ns]"
    with pytest.raises(ValuesError, match="too far away") as caught:
        receive(*streams[1])
    assert caught.value.kind == "versions"


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(pandas.Series([1]))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValuesError, match="`pandas` is needed") as caught:
        receive(packed.tree, [len(b) for b in packed.buffers], b"".join(packed.buffers))
    assert caught.value.kind == "versions"


BY_PATH = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("values", sys.argv[1])
values = importlib.util.module_from_spec(spec)
spec.loader.exec_module(values)
values.pack([1, "a", {"b": 2.5}])
assert not {"numpy", "pandas", "pyarrow", "polars"} & set(sys.modules), "not needed yet"
import pandas
packed = values.pack(pandas.DataFrame({"a": [1, 2], "b": ["x", None]}))
layout = values.Layout(packed.tree, [len(b) for b in packed.buffers])
for view, buffer in zip(layout.allocate(), packed.buffers):
    view[:] = buffer
print(layout.build().to_csv())
assert "polars" not in sys.modules and "remoter" not in sys.modules
"""


def test_the_files_alone_are_enough_and_load_only_what_the_object_needs(home: Path) -> None:
    folder = Path(_frames.__file__).parent
    for name in ("_values.py", "_arrays.py", "_frames.py", "_arrow.py"):
        shutil.copy(folder / name, home)
    command = [sys.executable, "-I", "-W", "error", "-c", BY_PATH, str(home / "_values.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [",a,b", "0,1,x", "1,2,", ""]


# --- what a peer makes up ---


def take_apart(value: Any) -> tuple[dict[str, Any], list[int], bytearray]:
    packed: Packed = pack(value)
    sizes = [len(buffer) for buffer in packed.buffers]
    return json.loads(packed.tree), sizes, bytearray(b"".join(packed.buffers))


def content_of(node: Any, tag: str) -> Any:
    """The content of the first node with that tag."""
    if isinstance(node, dict) and tag in node:
        return node[tag]
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    found = (content_of(part, tag) for part in parts)
    return next((content for content in found if content is not None), None)


def change(content: Any, place: Any, new: Any) -> None:
    content[place] = new


FRAME = pandas.DataFrame({"a": [1.5, 2.5], "b": [3.5, 4.5], "n": [1, 2]})
TEXT = pandas.Series(["ab", None, "c"], dtype=object)
CATEGORY = pandas.Series(pandas.Categorical(["x", "y"]))
LIES: dict[str, tuple[Any, str, Any]] = {
    "a column twice": (FRAME, "pandas.frame", lambda c: change(c[2][0][0], 0, 1)),
    "a column outside": (FRAME, "pandas.frame", lambda c: change(c[2][0][0], 0, 7)),
    "a column below zero": (FRAME, "pandas.frame", lambda c: change(c[2][0][0], 0, -1)),
    "no such block": (FRAME, "pandas.frame", lambda c: c[2].pop()),
    "an index that is longer": (FRAME, "pandas.range", lambda c: change(c, 1, 3)),
    "an index without end": (FRAME, "pandas.range", lambda c: change(c, 1, 2**62)),
    "an index that is a list": (FRAME, "pandas.frame", lambda c: change(c, 1, [0, 1])),
    "a step of zero": (FRAME, "pandas.range", lambda c: change(c, 2, 0)),
    "a block of another shape": (FRAME, "ndarray", lambda c: change(c, 1, [1, 4])),
    "a block of records": (FRAME, "ndarray", lambda c: change(c, 0, "|V8")),
    "attributes that are none": (FRAME, "pandas.frame", lambda c: change(c[3], 0, [])),
    "a list for a column": (pandas.Series([1, 2]), "pandas.series", lambda c: change(c, 0, [1, 2])),
    "a scalar for a column": (pandas.Series([1]), "pandas.series", lambda c: change(c, 0, 1)),
    "a name that is a list": (pandas.Series([1]), "pandas.series", lambda c: change(c, 2, [1])),
    "fewer texts": (TEXT, "pandas.text", lambda c: change(c[3], 0, 2)),
    "more texts": (TEXT, "pandas.text", lambda c: change(c, 1, 4)),
    "a flavour": (TEXT, "pandas.text", lambda c: change(c, 0, "python nil")),
    "a form": (TEXT, "pandas.text", lambda c: change(c, 2, "json")),
    "lengths of texts": (
        pandas.Series(["a\0b", "c"], dtype=object),
        "pandas.text",
        lambda c: change(c[3], 2, [1, 2]),
    ),
    "codes of floats": (CATEGORY, "ndarray", lambda c: change(c, 0, "<f2")),
    "no order": (CATEGORY, "pandas.category", lambda c: change(c, 2, "yes")),
    "a mask": (
        pandas.Series([1, None], dtype="Int8"),
        "pandas.masked",
        lambda c: change(c, 1, [True, False]),
    ),
    "ends of intervals": (INDEXES["intervals"], "pandas.interval", lambda c: change(c, 2, "ajar")),
    "a zone of the file system": (
        INDEXES["UTC"],
        "pandas.moments",
        lambda c: change(c, 1, ["zoneinfo", "../x"]),
    ),
    "a zone of no library": (INDEXES["UTC"], "pandas.moments", lambda c: change(c, 1, ["os", "UTC"])),
    "an offset of a year": (INDEXES["UTC"], "pandas.moments", lambda c: change(c, 1, 1e9)),
    "a frequency by name": (INDEXES["D"], "pandas.index", lambda c: change(c[2], 0, "DateOffset")),
    "a frequency with words": (INDEXES["D"], "pandas.index", lambda c: change(c[2], 2, {"calendar": 1})),
    "a frequency that is not so": (INDEXES["D"], "pandas.index", lambda c: change(c[2], 1, 2)),
    "a frequency of numbers": (INDEXES["float"], "pandas.index", lambda c: change(c, 2, ["Day", 1, {}])),
    "a period's frequency": (INDEXES["periods"], "pandas.period", lambda c: change(c[1], 0, "__class__")),
    "levels of two lengths": (INDEXES["levels"], "pandas.levels", lambda c: c[0].append([c[0][0][0], [0]])),
    "a level that is missing": (INDEXES["levels"], "pandas.levels", lambda c: c[1].pop()),
    "nothing": (pandas.NA, "pandas.nothing", lambda c: None),
    "a unit of time": (pandas.Timestamp("2020"), "pandas.timestamp", lambda c: change(c, 1, "Y")),
    "a time that is none": (pandas.Timestamp("2020"), "pandas.timestamp", lambda c: change(c, 0, -(2**63))),
}


SEEN_LATE = {"a name that is a list", "lengths of texts", "a frequency that is not so"}


@pytest.mark.parametrize("lie", LIES)
def test_a_tree_that_lies_is_refused_before_it_is_given_memory(lie: str) -> None:
    value, tag, tell = LIES[lie]
    tree, sizes, stream = take_apart(value)
    if lie == "nothing":
        tree["value"] = {tag: "None"}
    else:
        tell(content_of(tree, tag))
    with pytest.raises(ValuesError) as caught:
        if lie in SEEN_LATE:
            receive(json.dumps(tree), sizes, stream)
        else:
            Layout(json.dumps(tree), sizes)
    assert caught.value.kind == "corrupt"


def test_codes_outside_of_the_categories_are_refused() -> None:
    for value in (CATEGORY, pandas.MultiIndex.from_product([["a"], ["b", "c"]])):
        tree, sizes, stream = take_apart(value)
        offset, size = content_of(tree, "ndarray")[3]
        assert size == 2
        for code in (2, 127, 254):  # 254 is -2
            stream[offset] = code
            with pytest.raises(ValuesError) as caught:
                receive(json.dumps(tree), sizes, stream)
            assert caught.value.kind == "corrupt"


def test_codes_outside_of_the_texts_are_refused() -> None:
    tree, sizes, stream = take_apart(pandas.Series(["a", "b"] * 10_000, dtype=object))
    offset = content_of(tree, "ndarray")[3][0]
    stream[offset] = 2
    with pytest.raises(ValuesError, match=r"damaged|sense"):
        receive(json.dumps(tree), sizes, stream)


@pytest.mark.parametrize(
    ("before", "after"), [(b"\xc3\xa9", b"\xff\xfe"), (b"de", b"d\0"), (b"c\0d", b"c.d")]
)
def test_texts_that_are_no_text_or_more_or_fewer_are_refused(before: bytes, after: bytes) -> None:
    tree, sizes, stream = take_apart(pandas.Series(["é", "abc", "de"], dtype=object))
    with pytest.raises(ValuesError) as caught:
        receive(json.dumps(tree), sizes, stream.replace(before, after))
    assert caught.value.kind == "corrupt"
    tree, sizes, stream = take_apart(pandas.Series(["abc", "de"], dtype=object))
    with pytest.raises(ValuesError):  # one text where two should be must not stand for both
        receive(json.dumps(tree), sizes, stream.replace(b"\0d", b".d"))


def test_the_memory_that_texts_take_is_asked_for_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (pack(pandas.Series([str(n) for n in range(size)], dtype=object)) for size in (100, 400_000))
    monkeypatch.setattr(_values, "free_memory", lambda: 20_000_000)
    Layout(few.tree, [len(buffer) for buffer in few.buffers]).allocate()
    with pytest.raises(ValuesError) as caught:
        Layout(many.tree, [len(buffer) for buffer in many.buffers]).allocate()
    assert caught.value.kind == "memory"


@pytest.mark.parametrize("tag", ["pandas.interval", "pandas.category", "pandas.levels"])
def test_a_range_that_has_to_be_unrolled_is_charged_for(monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    endless = {"pandas.range": [0, 1 << 30, 1, None]}
    code = {"ndarray": ["|i1", [1], "C", 0, "ndarray"]}
    values: dict[str, Any] = {
        "pandas.interval": {"pandas.index": [{tag: [endless, endless, "left"]}, None, None]},
        "pandas.category": {tag: [code, endless, False]},
        "pandas.levels": {tag: [[[endless, code]], [None]]},
    }
    monkeypatch.setattr(_values, "free_memory", lambda: 10**9)
    layout = Layout(json.dumps({"value": values[tag]}), [] if tag == "pandas.interval" else [1])
    with pytest.raises(ValuesError) as caught:
        layout.allocate()
    assert caught.value.kind == "memory"


@pytest.mark.parametrize("wrap", [pandas.Index, pandas.CategoricalIndex])
def test_labels_that_a_hash_table_is_slow_with_are_refused_and_no_others(wrap: Any) -> None:
    prime = 2**61 - 1
    honest: list[Any] = [10**20, None, *["a", 2.5, 10**30] * 2000, *(n * prime for n in range(10, 500))]
    if wrap is pandas.Index:
        honest.append([1])  # not every label can be a key
        assert list(cross(pandas.Index(honest, dtype=object))) == honest
    else:
        honest = sorted({label for label in honest if type(label) is int})
        assert cross(wrap(honest)).tolist() == honest
    labels = pandas.Index([number * prime for number in range(10, 1200)], dtype=object)
    with pytest.raises(ValuesError) as caught:
        cross(wrap(labels))
    assert (caught.value.kind, caught.value.cause) == ("corrupt", "too many keys have the same hash")


def test_offsets_into_texts_are_looked_at_where_there_is_no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, sizes, stream = take_apart(pandas.Series(["ab", "c", ""], dtype="string[pyarrow]"))
    offset = content_of(tree, "pandas.text")[4][0][2][0]
    monkeypatch.setattr(_frames, "_text_dtype", lambda flavour, reader: None)
    assert receive(json.dumps(tree), sizes, stream).tolist() == ["ab", "c", ""]
    for place, number in ((0, 1), (8, 200), (8, 4), (24, 2)):
        torn = bytearray(stream)
        torn[offset + place] = number
        with pytest.raises(ValuesError) as caught:
            receive(json.dumps(tree), sizes, torn)
        assert caught.value.kind == "corrupt"


def damage(tree: Any, rng: random.Random) -> None:
    """Change one thing somewhere in a tree."""
    places = []

    def look(node: Any) -> None:
        keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            look(node[key])

    look(tree["value"])
    if not places:
        return
    node, key = rng.choice(places)
    odd = [0, 1, -1, 3, 255, 2**31, 2**62, 2**63, 1.5, None, True, "", "object", "<i8", [], {}, [0], "UTC"]
    other, other_key = rng.choice(places)
    node[key] = rng.choice([*odd, json.loads(json.dumps(other[other_key]))])


def test_no_damage_does_more_than_raise_a_values_error() -> None:
    rng = random.Random(0)
    everything: list[Any] = [pandas.Series(column) for column in every_kind_of_column().values()]
    everything += [*INDEXES.values(), FRAME, TEXT, pandas.DataFrame(every_kind_of_column())]
    parts = [take_apart(value) for value in everything]
    refused = 0
    for _ in range(1500):
        tree, sizes, stream = rng.choice(parts)
        tree, stream = json.loads(json.dumps(tree)), bytearray(stream)
        if rng.random() < 0.5 or not stream:
            damage(tree, rng)
        else:
            stream[rng.randrange(len(stream))] = rng.choice([0, 1, 127, 128, 255])
        try:
            receive(json.dumps(tree), sizes, stream)
        except ValuesError as error:
            assert error.kind in ("corrupt", "versions", "memory", "kind")
            refused += 1
    assert refused > 500


# --- what `format=` makes of a value ---


def test_a_value_comes_in_the_form_that_was_asked_for() -> None:
    import polars

    frame = pandas.DataFrame({"a": [1, 2], "b": [1.5, 2.5]})
    table, polar = (
        pyarrow.table({"a": [1, 2], "b": [1.5, 2.5]}),
        polars.DataFrame({"a": [1, 2], "b": [1.5, 2.5]}),
    )
    columns = {"a": numpy.array([1, 2]), "b": numpy.array([1.5, 2.5])}
    for value in (frame, table, polar, columns):
        assert_same(convert(value, "pandas"), frame)
        assert convert(value, "arrow").equals(table)
        assert convert(value, "polars").equals(polar)
        if value is not columns:
            assert convert(value, "numpy").tolist() == [[1, 1.5], [2, 2.5]]
    for value in (frame["a"], table["a"], polar["a"], columns["a"]):
        assert convert(value, "pandas").tolist() == [1, 2]
        assert convert(value, "arrow").to_pylist() == [1, 2]
        assert convert(value, "polars").to_list() == [1, 2]
        assert convert(value, "numpy").tolist() == [1, 2]
    assert convert([columns["a"], columns["b"]], "pandas").shape == (2, 2)
    assert convert(numpy.ones((2, 3)), "arrow").shape == (2, 3)
    assert convert(numpy.array([(1, 2.5)], "i4, f8"), "polars").shape == (1, 2)
    assert convert([1, 2], "numpy").tolist() == [1, 2]


def test_labels_of_rows_are_not_lost_where_there_are_none() -> None:
    labelled = pandas.DataFrame({"a": [1, 2]}, index=pandas.Index(["x", "y"], name="key"))
    assert convert(labelled, "polars")["key"].to_list() == ["x", "y"]
    assert convert(labelled, "arrow")["key"].to_pylist() == ["x", "y"]
    assert convert(labelled.reset_index(drop=True), "arrow").column_names == ["a"]


def test_what_a_table_says_to_pandas_in_its_metadata_is_not_heard() -> None:
    table = pyarrow.Table.from_pandas(pandas.DataFrame({"a": [1]}, index=["x"]))
    assert list(convert(table, "pandas").columns) == ["a", "__index_level_0__"]


@pytest.mark.parametrize("format", ["pandas", "polars", "arrow", "numpy"])
@pytest.mark.parametrize("value", [3, "text", None, {"a": [1], 2: [3]}, [[1], [1, 2]]], ids=str)
def test_what_has_no_such_form_is_refused(value: Any, format: str) -> None:
    with pytest.raises(ValuesError, match=f"has no form as `{format}`") as caught:
        convert(value, format)
    assert caught.value.kind == "kind"


def test_a_format_that_does_not_exist_or_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValuesError, match="no format `csv`"):
        convert(1, "csv")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ValuesError, match="not installed") as caught:
        convert(pandas.DataFrame({"a": [1]}), "polars")
    assert caught.value.kind == "kind"
