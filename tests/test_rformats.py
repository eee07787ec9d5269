"""R's values in the form that was asked for; what has none is refused with what to do."""

import datetime

import polars as pl
import pyarrow as pa
import pytest

from remoter._rvalues.stream import NOTHING, RAW, SYMBOL, Node, make
from remoter._values import ValuesError
from tests.test_rvalues import NA, NA_REAL, doubles, ints, listed, read, texts, truths

MATRIX = ints(1, NA, 3, 4, dim=ints(2, 2), dimnames=listed(texts("a", "b"), texts("x", "y")))
FACTOR = ints(2, NA, 1, levels=texts("b", "a"), **{"class": texts("factor")})
COUNTS = ints(
    2, 1, dim=ints(2), dimnames=listed(texts("a", "b"), names=texts("")), **{"class": texts("table")}
)
COLUMNS = listed(doubles(1.5), texts("x", "y"), ints(
    1, 2, levels=texts("u", "v"), **{"class": texts("factor")}), names=texts("n", "s", "f"))  # fmt: skip


def as_listed(value):
    return value.to_pylist() if hasattr(value, "to_pylist") else value.to_list()


@pytest.mark.parametrize("format", ["pandas", "polars", "arrow"])
def test_a_vector_is_a_series_or_an_array_however_long_it_is(format):
    assert as_listed(read(doubles(1, 2), format)) == [1, 2]
    assert as_listed(read(doubles(1.5), format)) == [1.5]
    assert as_listed(read(texts("a"), format)) == ["a"]
    assert as_listed(read(truths(1), format)) == [True]
    assert as_listed(read(make(RAW, b"ab"), format)) == [97, 98]
    assert as_listed(read(doubles(1.5, unit=texts("m")), format)) == [1.5]
    assert as_listed(read(COUNTS, format)) == [2, 1]
    day = as_listed(read(doubles(1, **{"class": texts("Date")}), format))[0]
    assert str(day)[:10] == "1970-01-02"
    days = read(ints(0, 1, **{"class": texts("Date")}), format)
    assert [str(day)[:10] for day in as_listed(days)] == ["1970-01-01", "1970-01-02"]


def test_a_vector_is_like_a_column_where_there_is_no_more_to_it():
    numbers = doubles(1, NA_REAL, float("nan"))
    series, array_ = read(numbers, "polars"), read(numbers, "arrow")
    assert (series.null_count(), series.is_nan().sum(), array_.null_count) == (1, 1, 1)
    assert read(FACTOR, "polars").dtype == pl.Enum(["b", "a"])
    assert read(FACTOR, "arrow").type == pa.dictionary(pa.int32(), pa.string())
    with pytest.raises(ValuesError, match="this vector has no form as `arrow`"):
        read(texts("a", b"\xff"), "arrow")


def test_a_vector_is_an_array_of_numpy_however_long_it_is():
    assert read(doubles(1.5), "numpy").tolist() == [1.5]
    assert read(texts("a"), "numpy").tolist() == ["a"]
    assert read(make(RAW, b"ab"), "numpy").tolist() == [97, 98]
    assert read(FACTOR, "numpy")[::2].tolist() == ["a", "b"]
    assert read(doubles(1, **{"class": texts("Date")}), "numpy").tolist() == [datetime.date(1970, 1, 2)]
    assert read(MATRIX, "numpy").tolist() == [[1, 3], [None, 4]]


def test_a_matrix_is_a_frame_with_its_names():
    frame = read(MATRIX, "pandas")
    assert (frame.index.tolist(), frame.columns.tolist()) == (["a", "b"], ["x", "y"])
    assert frame["x"].isna().tolist() == [False, True]
    assert set(map(str, frame.dtypes)) == {"Int32"}
    assert read(MATRIX, "polars").rows() == [("a", 1, 3), ("b", None, 4)]
    assert read(MATRIX, "arrow").to_pydict() == {"row.names": ["a", "b"], "x": [1, None], "y": [3, 4]}
    assert read(COUNTS, "pandas").to_dict() == {"a": 2, "b": 1}
    bare = doubles(1, 2, dim=ints(1, 2))
    assert read(bare, "pandas").to_dict("list") == {0: [1], 1: [2]}
    assert read(bare, "polars").rows() == [(1, 2)]


@pytest.mark.parametrize("format", ["pandas", "polars", "arrow"])
def test_a_factor_and_a_list_of_columns_in_other_forms(format):
    factor = as_listed(read(FACTOR, format))
    assert factor[::2] == ["a", "b"]
    assert factor[1] is None or factor[1] != factor[1]
    table = read(COLUMNS, format)
    for name, values in (("n", [1.5, 1.5]), ("s", ["x", "y"]), ("f", ["u", "v"])):
        assert as_listed(table[name]) == values


@pytest.mark.parametrize("format", ["pandas", "polars", "arrow", "numpy"])
@pytest.mark.parametrize(
    ("node", "message"),
    [
        (listed(ints(1, 2), texts("x")), "a list without names has no form as"),
        (listed(ints(1, 2), ints(1, 2, 3), names=texts("a", "b")), "a list has no form as"),
        (listed(ints(1), ints(2), names=texts("a", "a")), "a list has no form as"),
        (NOTHING, "`NULL` has no form as"),
        (Node(SYMBOL, "x"), "`x` of R (symbol) has no form as"),
    ],
)
def test_what_has_no_such_form_is_refused_with_what_to_do(node, message, format):
    with pytest.raises(ValuesError) as caught:
        read(node, format)
    assert caught.value.message == f"{message} `{format}`"
    assert caught.value.hints
