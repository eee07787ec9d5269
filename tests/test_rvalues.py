"""R's values are natural ones in Python, and go back as they were; Python's values are natural ones in R."""

import array
import collections
import copy
import datetime
import decimal
import enum
import json
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import zoneinfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from remoter import _rvalues
from remoter._rvalues import RDict, RList, RValue, RVector
from remoter._rvalues import stream as _stream
from remoter._rvalues.arrays import RArray
from remoter._rvalues.stream import (
    CALL,
    CHARACTER,
    CLOSURE,
    COMPLEX,
    DOUBLE,
    HAS_ATTRIBUTES,
    INTEGER,
    LIST,
    LOGICAL,
    NOTHING,
    RAW,
    SYMBOL,
    Node,
    make,
)
from remoter._rvalues.times import RDatetime, RTimedelta
from remoter._values import ValuesError
from tests.test_rstreams import memory, stream

NA = -(1 << 31)
NA_REAL = struct.unpack("<d", struct.pack("<Q", 0x7FF00000000007A2))[0]
HERE = pathlib.Path(__file__).parent


def ints(*values, **attributes):
    return make(INTEGER, np.array(values, "<i4"), attributes)


def truths(*values, **attributes):
    return make(LOGICAL, np.array(values, "<i4"), attributes)


def doubles(*values, **attributes):
    return make(DOUBLE, np.array(values, "<f8"), attributes)


def texts(*values, **attributes):
    return make(CHARACTER, list(values), attributes)


def listed(*values, **attributes):
    return make(LIST, list(values), attributes)


def frame_of(more=None, rows=None, **columns):
    count = len(next(iter(columns.values())).data)
    attributes = {
        "names": texts(*columns),
        "class": texts("data.frame"),
        "row.names": rows or ints(NA, -count),
    }
    return make(LIST, list(columns.values()), {**attributes, **(more or {})})


def read(node, format=None):
    return _rvalues.read(memory(b"".join(_stream.dump(node))), format)


def written(value):
    return b"".join(_rvalues.write(value)[0])


def notes(value):
    return _rvalues.write(value)[1]


def again(value):
    """What a value of Python's is after it was in R."""
    return _rvalues.read(memory(written(value)))


def goes_back(node):
    return written(read(node)) == b"".join(_stream.dump(node))


def refused(value):
    with pytest.raises(ValuesError) as caught:
        _rvalues.write(value)
    return caught.value


# --- R says that all is as it was ------------------------------------------------------------

BARE = """
import sys
for library in ("numpy", "pandas", "polars", "pyarrow"):
    sys.modules[library] = None
import pathlib
from remoter import _rvalues
for path in pathlib.Path(sys.argv[1]).glob("*.plain"):
    buffers, notes = _rvalues.write(_rvalues.read(memoryview(bytearray(path.read_bytes()))))
    path.with_suffix(".bare.back").write_bytes(b"".join(buffers))
    assert not notes, path
try:
    _rvalues.read(memoryview(bytearray(path.read_bytes())), "pandas")
except Exception as error:
    assert (type(error).__name__, error.cause) == ("ValuesError", "it is `numpy`")
else:
    raise AssertionError
"""


def test_R_finds_all_that_comes_back_identical(r_program, tmp_path):
    """Nearly 300 values, in three forms of R's serialization, and without any library."""
    command = [r_program, "--vanilla", "--no-echo", "-f", str(HERE / "r_values.R"), "--args", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said, count = process.stdout.readline().split()
        assert said == "values"
        for kind in ("plain", "big", "old"):
            for number in range(1, int(count) + 1):
                path = tmp_path / f"{number}.{kind}"
                buffers, lost = _rvalues.write(_rvalues.read(memory(path.read_bytes())))
                path.with_suffix(f".{kind}.back").write_bytes(b"".join(buffers))
                assert lost == []
        subprocess.run([sys.executable, "-c", BARE, str(tmp_path)], check=True)
        output, _ = process.communicate("go\n")
    assert output.splitlines() == ["done"]


AS_IN_R = [
    (None, "NULL"),
    (True, "TRUE"),
    (3, "3L"),
    (2**31, "2147483648"),
    (-(2**31), "-2147483648"),
    (2.5, "2.5"),
    (2 + 1j, "2+1i"),
    ("\u00e9", "'\\u00e9'"),
    (b"ab", "charToRaw('ab')"),
    ([1, None, 3], "c(1L, NA, 3L)"),
    ((1, 2.5), "c(1, 2.5)"),
    ([1.5, None], "c(1.5, NA)"),
    (["a", None], "c('a', NA)"),
    ([1, "a"], "list(1L, 'a')"),
    ([], "list()"),
    ({}, "setNames(list(), character(0))"),
    ({"a": 1, "b": [[1], None]}, "list(a = 1L, b = list(1L, NULL))"),
    ({7}, "7L"),
    ([decimal.Decimal("1.5"), None], "c(1.5, NA)"),
    (datetime.date(2024, 1, 2), "as.Date('2024-01-02')"),
    (datetime.datetime(2024, 1, 2, 3), "as.POSIXct('2024-01-02 03:00', tz = 'UTC')"),
    (
        datetime.datetime(2024, 7, 2, 3, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        "as.POSIXct('2024-07-02 03:00', tz = 'Europe/Berlin')",
    ),
    (datetime.timedelta(minutes=2), "as.difftime(120, units = 'secs')"),
    (np.arange(6).reshape(2, 3), "matrix(0:5, 2, byrow = TRUE)"),
    (np.arange(24.0).reshape(2, 3, 4), "aperm(array(as.numeric(0:23), 4:2))"),
    (np.array([1, 2**40]), "c(1, 2^40)"),
    (np.array([[True], [False]]), "matrix(c(TRUE, FALSE))"),
    (np.ma.array([1, 2], mask=[0, 1]), "c(1L, NA)"),
    (np.array(["2024-01-02", "NaT"], "M8[D]"), "as.Date(c('2024-01-02', NA))"),
    (np.array(["2024-01-02T03", "NaT"], "M8[ns]"), "as.POSIXct(c('2024-01-02 03:00', NA), tz = 'UTC')"),
    (np.array([90], "m8[m]"), "as.difftime(5400, units = 'secs')"),
    (pd.Series([1.5, 2], index=["a", "b"]), "c(a = 1.5, b = 2)"),
    (pd.Series([1, None], dtype="Int64"), "c(1L, NA)"),
    (pd.Categorical(["x", None], ["y", "x"], ordered=True), "factor(c('x', NA), c('y', 'x'), ordered = TRUE)"),
    (
        pd.DataFrame(
            {
                "n": [1, 2],
                "s": ["x", None],
                "f": pd.Categorical(["u", "v"]),
                "t": pd.to_datetime(["2024-01-01T01:00", None]).tz_localize("UTC"),
                "b": pd.array([True, None], "boolean"),
            },
            index=["r", "q"],
        ),
        "data.frame(n = 1:2, s = c('x', NA), f = factor(c('u', 'v')), t = as.POSIXct(c('2024-01-01 01:00', NA),"
        " tz = 'UTC'), b = c(TRUE, NA), row.names = c('r', 'q'))",
    ),
    (
        pl.DataFrame({"a": [1, None], "e": pl.Series(["y", None], dtype=pl.Enum(["z", "y"])), "h": [[1], None]}),
        "local({ d <- data.frame(a = c(1L, NA), e = factor(c('y', NA), c('z', 'y'))); d$h <- list(1L, NULL); d })",
    ),
    (pa.table({"a": [1.5, None], "d": [datetime.date(2024, 1, 2), None]}),
     "data.frame(a = c(1.5, NA), d = as.Date(c('2024-01-02', NA)))"),
    (pa.array(["b", None] * 60), "rep(c('b', NA), 60)"),
    (
        np.array([(1, (2, 3)), (4, (5, 6))], [("a", "i4"), ("b", ">f8", (2,))]),
        "local({ d <- data.frame(a = c(1L, 4L)); d$b <- matrix(c(2, 5, 3, 6), 2); d })",
    ),
    (
        np.array([[(1, (2,))], [(4, (5,))]], [("a", "i4"), ("b", [("c", "i1")])]),
        "local({ d <- data.frame(a = c(1L, 4L)); d$b <- data.frame(c = c(2L, 5L)); d })",
    ),
    (pl.DataFrame({"a": [{"x": 1}, None]}), "local({ d <- data.frame(row.names = 1:2); d$a <- list(list(x = 1L), NULL); d })"),
    (pd.DataFrame({b"a": [1], "b": [2]}), "data.frame(a = 1L, b = 2L)"),
]  # fmt: skip


def test_values_of_Python_are_in_R_what_they_should_be(r_program, tmp_path):
    lines = []
    for number, (value, expected) in enumerate(AS_IN_R):
        path = tmp_path / str(number)
        path.write_bytes(written(value))
        lines.append(
            f"from <- file('{path}', 'rb'); value <- unserialize(from); close(from)\n"
            f"if (!isTRUE(all.equal(value, {expected}, tolerance = 0)) || typeof(value) != typeof({expected}))"
            f" cat('differs {number}', deparse(value), '\\n')"
        )
    script = tmp_path / "script.R"
    script.write_text("\n".join([*lines, "cat('done\\n')"]), "utf-8")
    command = [r_program, "--vanilla", "--no-echo", "-f", str(script)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["done"]


# --- single values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (NOTHING, None),
        (truths(1), True),
        (ints(5), 5),
        (doubles(1.5), 1.5),
        (make(COMPLEX, np.array([1 + 2j])), 1 + 2j),
        (texts("a"), "a"),
        (make(RAW, b"ab"), b"ab"),
        (make(RAW, b""), b""),
        (doubles(19724, **{"class": texts("Date")}), datetime.date(2024, 1, 2)),
        (
            doubles(0.5, **{"class": texts("POSIXct", "POSIXt"), "tzone": texts("UTC")}),
            datetime.datetime(1970, 1, 1, 0, 0, 0, 500000, datetime.UTC),
        ),
        (
            doubles(90, **{"class": texts("difftime"), "units": texts("secs")}),
            datetime.timedelta(seconds=90),
        ),
    ],
)
def test_one_of_a_kind_is_a_value_of_Python(node, value):
    found = read(node)
    assert found == value
    assert type(found) is type(value)
    assert goes_back(node)


def test_one_that_is_missing_stays_so():
    assert read(ints(NA)).mask.tolist() == [True]
    assert read(truths(NA)).mask.tolist() == [True]
    assert read(texts(None)).tolist() == [None]
    assert struct.pack("<d", read(doubles(NA_REAL))) == struct.pack("<d", NA_REAL)
    for node in (ints(NA), truths(NA), texts(None), doubles(NA_REAL), doubles(float("nan"))):
        assert goes_back(node)


def test_times_keep_what_Python_cannot_say():
    exact = doubles(1700000000.1234567, **{"class": texts("POSIXct", "POSIXt")})
    moment = read(exact)
    assert type(moment) is RDatetime
    assert moment.isoformat() == "2023-11-14T22:13:20.123457+00:00"
    assert goes_back(exact)
    hours = doubles(1.5, **{"class": texts("difftime"), "units": texts("hours")})
    span = read(hours)
    assert type(span) is RTimedelta
    assert span == datetime.timedelta(minutes=90)
    assert goes_back(hours)
    days = ints(3, **{"class": texts("Date")})
    assert read(days) == datetime.date(1970, 1, 4)
    assert goes_back(days)
    assert type(pickle.loads(pickle.dumps(moment))) is RDatetime
    assert again(moment + datetime.timedelta(1)) == moment + datetime.timedelta(1)


# --- vectors ---------------------------------------------------------------------------------


def test_vectors_are_arrays():
    assert read(ints(1, 2)).dtype == np.int32
    assert read(doubles(1, 2)).dtype == np.float64
    assert read(truths(1, 0)).tolist() == [True, False]
    assert read(ints(1, NA, 3)).tolist() == [1, None, 3]
    assert read(truths(1, NA)).tolist() == [True, None]
    assert read(texts("a", None, "")).tolist() == ["a", None, ""]
    assert read(make(COMPLEX, np.array([1j, 2]))).tolist() == [1j, 2]
    for node in (
        ints(1, NA),
        truths(0, NA),
        texts("a", None),
        doubles(NA_REAL, float("nan")),
        texts(),
        ints(),
        doubles(),
    ):
        assert goes_back(node)


def test_a_matrix_is_an_array_in_the_same_memory():
    node = doubles(*range(6), dim=ints(2, 3))
    matrix = read(node)
    assert type(matrix) is np.ndarray
    assert matrix.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert matrix.flags.f_contiguous
    assert goes_back(node)


def test_names_of_rows_and_columns_stay_with_a_matrix_and_not_with_a_part_of_it():
    node = ints(1, 2, 3, 4, dim=ints(2, 2), dimnames=listed(NOTHING, texts("x", "y")))
    matrix = read(node)
    assert type(matrix) is RArray
    assert matrix.dimnames == [None, ["x", "y"]]
    assert (matrix + 1).dimnames is None
    assert goes_back(node)
    assert again(matrix[:, 0]).tolist() == [1, 2]
    assert read(node, "pandas").columns.tolist() == ["x", "y"]


def test_a_vector_with_names_is_a_series():
    node = doubles(1, 2, names=texts("a", "b"))
    assert read(node).to_dict() == {"a": 1, "b": 2}
    assert read(ints(1, NA, names=texts("a", None))).dtype == "Int32"
    assert goes_back(ints(1, NA, names=texts("a", None)))
    assert goes_back(texts("x", "y", names=texts("a", "a")))


def test_a_factor_is_categorical():
    node = ints(2, NA, 1, levels=texts("b", "a"), **{"class": texts("ordered", "factor")})
    factor = read(node)
    assert factor.tolist()[::2] == ["a", "b"]
    assert factor.categories.tolist() == ["b", "a"]
    assert factor.ordered
    assert goes_back(node)


def test_dates_are_days_and_moments_have_their_zone():
    dates = doubles(0, NA_REAL, 19724, **{"class": texts("Date")})
    assert read(dates).astype(str).tolist() == ["1970-01-01", "NaT", "2024-01-02"]
    assert goes_back(dates)
    moments = doubles(0, NA_REAL, 1.5, **{"class": texts("POSIXct", "POSIXt"), "tzone": texts("Asia/Tokyo")})
    assert str(read(moments).dtype) == "datetime64[us, Asia/Tokyo]"
    assert read(moments)[0].hour == 9
    assert goes_back(moments)


def test_a_vector_with_more_is_an_RVector():
    node = doubles(1, 2, units=texts("m"), **{"class": texts("length")})
    vector = read(node)
    assert type(vector) is RVector
    assert (vector.type, list(vector), vector.attributes["class"]) == ("double", [1, 2], "length")
    assert np.array_equal(np.asarray(vector), [1, 2])
    assert goes_back(node)
    vector.values = np.array([3.0])
    assert again(vector).values.tolist() == [3]
    assert "units='m'" in repr(vector)


# --- lists -----------------------------------------------------------------------------------


def test_lists_with_names_are_dicts_and_others_are_lists():
    assert read(listed(ints(1), texts("x"), names=texts("a", "b"))) == {"a": 1, "b": "x"}
    assert type(read(listed(ints(1), names=texts("a")))) is dict
    assert read(listed(ints(1), ints(2))) == [1, 2]
    assert type(read(listed(ints(1), ints(2)))) is RList
    assert goes_back(listed(ints(1), ints(2)))
    assert goes_back(listed())
    assert read(listed(names=texts())) == {}


def test_elements_that_share_a_name_or_have_none():
    node = listed(ints(1), ints(2), ints(3), ints(4), names=texts("a", "a", "", None))
    value = read(node)
    assert value == {"a": 1, 1: 2, 2: 3, 3: 4}
    assert goes_back(node)
    del value["a"]
    assert list(again(value).names.values()) == ["", None]


def test_a_model_is_a_dict_with_opaque_parts_that_goes_back():
    model = _rvalues.read(memory(stream("model")))
    assert type(model) is RDict
    assert model.attributes["class"] == "m"
    assert (model["n"], model["data"].to_dict()) == (3, {"a": 1, "b": 2})
    assert repr(model["terms"]) == "<RValue language: y ~ x>"
    assert model["call"].text == "lm(y ~ x)"
    assert written(model)[23:] == stream("model")[23:]
    model["n"] = 4
    assert again(model)["n"] == 4


def test_what_is_shared_is_shared_again():
    value = _rvalues.read(memory(stream("shared")))
    assert [part.type for part in value] == ["environment", "environment", "language", "environment"]
    assert written(value)[23:] == stream("shared")[23:]
    assert value[3].text == "<globalenv>"


@pytest.mark.parametrize(
    "node",
    [
        Node(CALL | HAS_ATTRIBUTES, None, [ints(1), Node(SYMBOL, "f"), NOTHING]),
        Node(LIST | HAS_ATTRIBUTES, None, [ints(1)]),
        Node(CLOSURE, None, [ints(1)]),
        Node(CALL, None, [Node(SYMBOL, "f"), ints(1)]),
    ],
)
def test_an_opaque_value_that_is_damaged_is_shown_all_the_same(node):
    for value in (RValue(None, node=node), RValue(b""), RVector("integer", [1], {"a": RValue(b"B")})):
        assert repr(value)
        assert getattr(value, "text", "?")


def test_an_opaque_value_can_be_kept_and_sent_alone():
    value = _rvalues.read(memory(stream("model")))["terms"]
    assert _rvalues.read(memory(written(value))).text == "y ~ x"
    assert pickle.loads(pickle.dumps(value)).data == value.data
    assert _rvalues.is_code(memory(written(value)))


def test_raw_is_the_stream_untouched():
    value = _rvalues.read(memory(stream("frame")), "raw")
    assert (type(value), value.type) == (RValue, "list")
    assert written(value) == stream("frame")
    assert value.text == "<list of class `data.frame`>"
    assert isinstance(again({"a": value})["a"], pd.DataFrame)


def test_what_is_very_deep_is_opaque_from_some_depth_on():
    node = ints(1)
    for _ in range(1000):
        node = listed(node)
    assert goes_back(node)


# --- frames ----------------------------------------------------------------------------------


def test_a_frame_of_R_is_one_of_pandas():
    frame = _rvalues.read(memory(stream("frame")))
    text = "str" if int(pd.__version__.partition(".")[0]) >= 3 else "string"
    assert list(map(str, frame.dtypes))[:5] == ["float64", "Int32", "boolean", "category", text]
    assert str(frame["t"].dtype) == "datetime64[us, Europe/Berlin]"
    assert frame["s"].tolist()[::2] == ["x", "\u00e9"]
    assert frame["span"][2] == pd.Timedelta(hours=2.5)
    assert isinstance(frame.index, pd.RangeIndex)
    assert again(frame).equals(frame)


def test_a_frame_of_R_is_one_of_polars_or_arrow():
    frame = _rvalues.read(memory(stream("frame")), "polars")
    assert frame["d"].null_count() == 1
    assert frame["d"].is_nan().sum() == 1
    assert frame["i"].to_list() == [1, None, 3]
    assert frame["l"].to_list() == [True, None, False]
    assert frame["f"].dtype == pl.Enum(["b", "a"])
    assert frame["f"].to_list() == ["b", None, "a"]
    assert frame["t"].dtype == pl.Datetime("us", "Europe/Berlin")
    assert frame["day"].to_list() == [datetime.date(2022, 1, 8), None, datetime.date(1970, 1, 2)]
    assert frame["span"].to_list() == [datetime.timedelta(hours=1), None, datetime.timedelta(hours=2.5)]
    table = _rvalues.read(memory(stream("frame")), "arrow")
    assert table.schema.field("f").type == pa.dictionary(pa.int32(), pa.string())
    assert table["d"].null_count == 1
    assert table["s"].to_pylist() == ["x", None, "\u00e9"]
    assert str(table.schema.field("t").type) == "timestamp[us, tz=Europe/Berlin]"
    assert table.schema.field("day").type == pa.date32()
    for made in (frame, table):
        back = again(made)
        assert back["i"].tolist() == [1, pd.NA, 3]
        assert back["f"].tolist()[::2] == ["b", "a"]


def test_names_of_rows_are_the_index_and_a_column_elsewhere():
    node = frame_of(rows=texts("p", "q"), a=ints(1, 2))
    assert read(node).index.tolist() == ["p", "q"]
    assert read(node, "polars").columns == ["row.names", "a"]
    assert goes_back(frame_of(rows=ints(3, 5), a=ints(1, 2)))


def test_more_than_pandas_has_stays_as_long_as_it_fits():
    column = ints(1, 2, label=texts("a label"))
    frame = read(frame_of({"note": texts("hi")}, a=column, b=doubles(0.5, 1)))
    assert json.loads(json.dumps(frame.attrs)) == {"R": {"columns": {"a": "integer"}}}
    assert read_attributes(again(frame))["note"] == "hi"
    assert read_attributes(again(copy.deepcopy(frame)))["note"] == "hi"
    assert again(frame).attrs["R"].columns["a", 0].extra == {"label": "a label"}
    assert again(frame["a"].rename("a")).attributes == {"label": "a label"}
    longer = pd.concat([frame, frame], ignore_index=True)
    assert "note" not in read_attributes(again(longer))
    frame["a"] = ["x", "y"]
    assert ("a", 0) not in again(frame).attrs["R"].columns


def read_attributes(frame):
    return frame.attrs["R"].attributes if "R" in frame.attrs else {}


def test_a_moment_that_was_changed_is_not_what_it_was():
    moments = doubles(1 / 3, 5, **{"class": texts("POSIXct", "POSIXt"), "tzone": texts("UTC")})
    node = make(
        LIST, [moments], {"names": texts("t"), "class": texts("data.frame"), "row.names": ints(NA, -2)}
    )
    frame = read(node)
    frame.loc[1, "t"] = pd.Timestamp(7, unit="s", tz="UTC")
    root = _stream.parse(memory(written(frame))).root
    assert struct.unpack("<2d", root.items[0].data) == (1 / 3, 7)


def test_a_frame_with_a_matrix_in_it_is_a_dict():
    node = make(
        LIST,
        [ints(1, 2), ints(1, 2, 3, 4, dim=ints(2, 2))],
        {"names": texts("a", "m"), "class": texts("data.frame"), "row.names": ints(NA, -2)},
    )
    assert type(read(node)) is RDict
    assert goes_back(node)
    with pytest.raises(ValuesError, match="no form as `polars`"):
        read(node, "polars")


def test_names_that_are_no_texts_stay_what_they_are():
    for node in (
        frame_of(**{"\udcff": ints(1, 2)}),
        frame_of(rows=texts("\udcff", "b"), a=ints(1, 2)),
        ints(1, 2, names=texts("\udcff", "b")),
        ints(1, levels=texts("\udcff"), **{"class": texts("factor")}),
    ):
        assert goes_back(node)


def test_dates_that_no_library_has_are_missing_there_and_come_back():
    node = frame_of(d=doubles(9e17, 1, 2**40, **{"class": texts("Date")}))
    assert read(node)["d"].isna().tolist() == [True, False, False]
    assert read(node, "polars")["d"].to_list() == [None, datetime.date(1970, 1, 2), None]
    assert read(node, "arrow")["d"].to_pylist() == [None, datetime.date(1970, 1, 2), None]
    assert goes_back(node)


def test_names_that_are_bytes_stay_bytes_and_are_shown_as_R_does_elsewhere():
    node = make(
        LIST,
        [ints(1, 2, label=texts("x"))],
        {"names": texts(b"\xffa"), "class": texts("data.frame"), "row.names": texts(b"\xfe", "r")},
    )
    assert read(node).columns.tolist() == [b"\xffa"]
    assert read(node).index.tolist() == [b"\xfe", "r"]
    assert goes_back(node)
    for format in ("polars", "arrow"):
        table = read(node, format)
        assert table["row.names"].to_pylist() if format == "arrow" else table["row.names"].to_list()
        assert "\\xffa" in (table.columns if format == "polars" else table.column_names)


def test_a_frame_can_be_saved(tmp_path):
    frame = read(frame_of({"note": texts("hi")}, a=ints(1, 2, label=texts("x"))))
    frame.to_parquet(tmp_path / "frame")
    assert pd.read_parquet(tmp_path / "frame")["a"].tolist() == [1, 2]
    assert again(pd.read_parquet(tmp_path / "frame"))["a"].tolist() == [1, 2]
    assert read_attributes(again(pickle.loads(pickle.dumps(frame))))["note"] == "hi"


# --- to R ------------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, 1),
        (Point(1, "a"), {"x": 1, "y": "a"}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.deque([1.5, 2]), [1.5, 2]),
        (range(2), [0, 1]),
        (array.array("d", [1, 2]), [1, 2]),
        (memoryview(b"ab"), b"ab"),
        (np.float32(1.5), 1.5),
        (np.array(7), 7),
        ([np.int64(1), 2], [1, 2]),
        (np.arange(8)[::2], [0, 2, 4, 6]),
        (np.arange(3, dtype=">i2"), [0, 1, 2]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([1, "a"], object), [1, "a"]),
        (np.ma.masked, [None]),
        (pd.NA, [None]),
        (pd.Index(["a", "b"]), ["a", "b"]),
        (pd.Series(pd.period_range("2024-01", periods=2, freq="M")), ["2024-01", "2024-02"]),
        (pd.arrays.SparseArray([0, 1]), [0, 1]),
        (pd.Series([1, 2], dtype="int64[pyarrow]"), [1, 2]),
        (pd.Series(["a", None], dtype="string[python]"), ["a", None]),
        (pl.Series(["b", "a", "b"], dtype=pl.Categorical), ["b", "a", "b"]),
        (pa.array(["x", "y", "z"])[1:], ["y", "z"]),
        (pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
        (pa.nulls(2), [None, None]),
        (pa.array([b"a", None]), [b"a", None]),
    ],
)  # fmt: skip
def test_what_becomes_of_values(value, expected):
    found = again(value)
    assert (found.tolist() if hasattr(found, "tolist") else found) == expected


@pytest.mark.parametrize(
    "value",
    [2**53 + 1, np.array([2**60 + 1]), [1, 2**63 - 1], pd.Series([2**60 + 1, None], dtype="Int64"), pl.Series([2**60 + 1])],
)  # fmt: skip
def test_digits_are_not_lost_without_a_word(value):
    assert notes(value) == ["whole numbers beyond 2^53 lost digits as R has no 64-bit integers"]
    assert notes({"id": value}) == [f"`id`: {notes(value)[0]}"]


def test_a_column_that_lost_digits_is_named():
    assert notes(pd.DataFrame({"id": [2**60 + 1]}))[0].startswith("column `id`: whole numbers")
    assert notes(pd.DataFrame({"id": [2**60, 2**53]})) == []


def test_a_zone_that_R_has_no_name_for():
    zone = datetime.timezone(datetime.timedelta(minutes=90))
    assert notes(datetime.datetime(2024, 1, 1, tzinfo=zone)) == [
        "R has no name for the time zone `UTC+01:30`: it is UTC there"
    ]
    plus_two = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    assert again(plus_two) == plus_two


def test_an_index_that_can_name_no_rows_is_a_column():
    named = pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="k"))
    twice = pd.DataFrame({"a": [1, 2]}, index=["x", "x"])
    grouped = pd.DataFrame({"g": ["u", "v"], "h": [1, 2], "a": [1, 2]}).groupby(["g", "h"]).sum()
    assert again(named).columns.tolist() == ["k", "a"]
    assert again(twice).columns.tolist() == ["index", "a"]
    assert again(grouped).columns.tolist() == ["g", "h", "a"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "`object` does not cross to R"),
        (types, "`module` does not cross to R"),
        (lambda: 1, "`function` does not cross to R"),
        ("a\0b", "R has no texts with NUL in them"),
        (["x"] * 60 + ["a\0b"], "R has no texts with NUL in them"),
        (pd.DataFrame({"s": ["a\0"]}), "R has no texts with NUL in them"),
        ("\ud800", "a text with half a character does not cross to R"),
        (10**400, "a whole number is too large for R"),
        (pl.LazyFrame(), "a `LazyFrame` does not cross"),
        (pl.DataFrame({"a\0": [1]}), "R has no texts with NUL in them"),
        (pl.DataFrame({"a": [{"b\0": 1}]}), "R has no texts with NUL in them"),
        (pd.Categorical([1, "1"]), "a factor of R has no two levels that read the same, such as `1`"),
    ],
)
def test_what_R_cannot_hold_is_refused(value, message):
    error = refused(value)
    assert (error.kind, error.message) == ("kind", message)


def test_where_it_is_that_cannot_cross_is_said():
    assert refused({"x": [1, {"y": object()}]}).cause == "it is in `y`, in element 2, in `x`"
    assert refused(pd.DataFrame({"s": ["a\0"]})).cause == "it is in column `s`"
    assert refused({"t": pl.DataFrame({"a\0": [1]})}).cause == "it is in the names of the columns, in `t`"
    assert refused(pd.DataFrame({"f": pd.Categorical([1, "1"])})).cause == "it is in column `f`"
    loop = []
    loop.append(loop)
    assert "holds itself" in refused(loop).message


values = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**31) + 1, 2**31 - 1)
    | some.floats(allow_nan=False)
    | some.complex_numbers(allow_nan=False)
    | some.text(some.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    | some.binary(),
    lambda inner: (
        some.lists(inner, max_size=4).map(RList)
        | some.dictionaries(some.text("abc", min_size=1), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_values_come_back_equal(value):
    assert again(value) == value


@settings(max_examples=60, deadline=None)
@given(
    some.lists(some.floats(-1e15, 1e15) | some.just(NA_REAL), min_size=2, max_size=20),
    some.sampled_from(["secs", "mins", "hours", "days", "weeks"]),
)
def test_times_of_any_size_come_back_to_the_bit(numbers, unit):
    moments = {"class": texts("POSIXct", "POSIXt"), "tzone": texts("UTC")}
    for attributes in ({"class": texts("Date")}, moments, {"class": texts("difftime"), "units": texts(unit)}):
        assert goes_back(make(DOUBLE, np.array(numbers, "<f8"), attributes))
        assert goes_back(make(DOUBLE, np.array(numbers[:1], "<f8"), attributes))
