"""R's values in the form that the user asks for: as those of pandas, polars, pyarrow or numpy; on the client."""

from __future__ import annotations

import datetime
import importlib
from typing import Any, NoReturn

import numpy

from .. import _frames
from .._values import ValuesError
from .arrays import names_of
from .compact import is_installed
from .frames import ROW_NAMES, show_name
from .kinds import RValue, RVector

FORMATS = ("pandas", "polars", "arrow", "numpy")
MOST_COLUMNS = 1_000_000
"""Of a matrix that becomes a frame: each takes some time, also where there are no rows."""

_HINT = "without `format` it comes as what it is"
_SCALARS = (bool, int, float, complex, str, datetime.date, datetime.timedelta)


def check(format: str) -> None:
    """Refuse what is no format, and one that needs a library that is not there."""
    if format not in FORMATS:
        hints = (", ".join(f"`{name}`" for name in (*FORMATS, "raw")),)
        raise ValuesError("kind", f"there is no format `{format:.40}`", hints=hints)
    library = "pyarrow" if format == "arrow" else format
    if not is_installed(library):
        raise ValuesError(
            "kind", f"`{format}` needs a library that is not installed here", f"it is `{library}`"
        )


def convert(value: Any, format: str) -> Any:
    """A value in that form; what is a vector in R has to be an array here, also of one element.

    Raises:
        ValuesError: it has no such form, or the library is missing here.
    """
    if value is None or isinstance(value, RValue):
        what = "`NULL`" if value is None else f"`{value.text}` of R ({value.type})"
        _refuse(what, format)
    if isinstance(value, dict):
        return _convert_list(value, format)
    if isinstance(value, list):
        return _convert_unnamed(value, format)
    if isinstance(value, RVector):
        value, names = _in_shape(value), names_of(value.attributes.get("dimnames"))
    else:
        names = getattr(value, "dimnames", None)
    if isinstance(value, numpy.ndarray):
        return value if format == "numpy" else _convert_array(value, names, format)
    if format == "pandas" and type(value).__name__ == "Categorical":
        value = importlib.import_module("pandas").Series(value)
    return _frames.convert(value, format)


def _refuse(what: str, format: str, cause: str | None = None, *hints: str) -> NoReturn:
    raise ValuesError("kind", f"{what} has no form as `{format}`", cause, (*hints, _HINT))


# --- lists -----------------------------------------------------------------------------------


def _convert_list(value: dict[Any, Any], format: str) -> Any:
    """A list with names as a frame: a vector of one element stands in all rows, as R has it."""
    classes = getattr(value, "attributes", {}).get("class", ())
    if "data.frame" in ([classes] if isinstance(classes, str) else list(classes)):
        cause = "a column of it is a frame or a matrix" if is_installed("pandas") else "that needs `pandas`"
        _refuse("this data frame", format, cause)
    if format == "numpy":
        _refuse("a list", format)
    if not all(isinstance(name, str) for name in value):
        _refuse("a list", format, "not all elements have a name of their own")
    if not is_installed("pandas"):
        return _frames.convert(dict(value), format)
    columns = {name: _column(item, name, format) for name, item in value.items()}
    if not any(hasattr(column, "dtype") for column in columns.values()):
        columns = {name: [column] for name, column in columns.items()}
    try:
        frame = importlib.import_module("pandas").DataFrame(columns)
    except ValueError as error:
        _refuse("a list", format, str(error), "its elements have to be vectors of one length")
    return _frames.convert(frame, format)


def _column(value: Any, name: str, format: str) -> Any:
    """An element of a list as a column, without names: pandas would put it in their order."""
    if isinstance(value, RVector):
        value = _in_shape(value)
    if isinstance(value, bytes):
        return numpy.frombuffer(value, numpy.uint8)
    if isinstance(value, numpy.ndarray) and value.ndim == 1:
        return _masked_as_pandas(value)
    if type(value).__name__ == "Series":
        return value.array
    if isinstance(value, _SCALARS) or type(value).__name__ == "Categorical":
        return value
    _refuse("a list", format, f"its element `{name}` is no vector")


def _convert_unnamed(value: list[Any], format: str) -> Any:
    """A list without names, of columns or of numbers."""
    try:
        return _frames.convert(list(value), format)
    except ValuesError:
        _refuse("a list without names", format, None, "`unlist` in R makes a vector of one")


# --- vectors and matrices --------------------------------------------------------------------


def _in_shape(vector: RVector) -> Any:
    """The values of a vector, which may be a matrix."""
    values, shape = vector.values, vector.attributes.get("dim")
    return values if shape is None else numpy.reshape(values, tuple(map(int, numpy.ravel(shape))), order="F")


def _masked_as_pandas(values: Any) -> Any:
    """Integers and truths of which some are missing as pandas' own; all others as they are."""
    if not isinstance(values, numpy.ma.MaskedArray):
        return values
    arrays = importlib.import_module("pandas").arrays
    kind = arrays.BooleanArray if values.dtype.kind == "b" else arrays.IntegerArray
    return kind(values.data, numpy.ma.getmaskarray(values))


def _convert_array(values: Any, names: list[Any] | None, format: str) -> Any:
    if values.ndim > 2:
        _refuse(f"an array of `{values.ndim}` dimensions", format)
    if values.ndim == 2 and values.shape[1] > MOST_COLUMNS:
        _refuse(f"a matrix of `{values.shape[1]}` columns", format)
    is_masked = isinstance(values, numpy.ma.MaskedArray)
    if not is_masked:
        values = values.view(numpy.ndarray)
    if not is_installed("pandas") or (not is_masked and not names):
        return _frames.convert(values, format)
    pandas = importlib.import_module("pandas")
    if values.ndim == 1:
        index = names[0] if names else None
        series = pandas.Series(_masked_as_pandas(values), index=index, copy=False)
        return _frames.convert(series, format)
    rows, columns = names or (None, None)
    if is_masked:
        parts: Any = {place: _masked_as_pandas(values[:, place]) for place in range(values.shape[1])}
        frame = pandas.DataFrame(parts, index=range(len(values)), copy=False)
    else:
        frame = pandas.DataFrame(values, copy=False)
    return _name_frame(frame, rows, columns, format)


def _name_frame(frame: Any, rows: list[Any] | None, columns: list[Any] | None, format: str) -> Any:
    """A frame of a matrix with its names; those of the rows are a column where there is no index."""
    if format == "pandas":
        if rows is not None:
            frame.index = rows
        if columns is not None:
            frame.columns = columns
        return frame
    first = "column_" if format == "polars" else ""  # as these call the columns that have no names
    frame.columns = list(map(show_name, columns)) if columns else [f"{first}{n}" for n in frame.columns]
    if rows is not None:
        frame.insert(0, ROW_NAMES, list(map(show_name, rows)), allow_duplicates=True)
    return _frames.convert(frame, format)
