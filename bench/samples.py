"""The objects that are moved; imported at both ends, so that either can make them."""

import numpy
import pandas


def floats(count):
    """Random floats: nothing that compresses."""
    return numpy.random.default_rng(7).random(count)


def frame(rows):
    """Ten columns of the kinds that people have: floats, integers, truth, time, category, text."""
    random = numpy.random.default_rng(7)
    columns = {f"float{i}": random.random(rows) for i in range(4)}
    columns["count"] = random.integers(0, 1000, rows)
    columns["id"] = numpy.arange(rows)
    columns["flag"] = random.random(rows) < 0.5
    columns["time"] = pandas.date_range("2020-01-01", periods=rows, freq="s")
    columns["city"] = pandas.Categorical.from_codes(
        random.integers(0, 5, rows), ["Aachen", "Bern", "Cork", "Delft", "Espoo"]
    )
    columns["name"] = pandas.Series([f"customer {i:06d}" for i in range(rows)], dtype="str")
    return pandas.DataFrame(columns)


def size_of(value):
    """Bytes of an object's content."""
    return int(value.nbytes if isinstance(value, numpy.ndarray) else value.memory_usage(deep=True).sum())


def read_once(value):
    """Look at all numbers of it: what was only mapped comes now."""
    if isinstance(value, numpy.ndarray):
        value.sum()
    elif isinstance(value, pandas.DataFrame):
        value.select_dtypes("number").sum()


def is_same(one, other):
    """Whether an object arrived as it left."""
    if isinstance(one, numpy.ndarray):
        return one.dtype == other.dtype and bool((one == other).all())
    pandas.testing.assert_frame_equal(one, other)
    return True
