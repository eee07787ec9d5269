"""R's vectors as numpy arrays, and back; on the client, and only where numpy is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

from .._values import ValuesError
from .compact import expand
from .stream import (
    CHARACTER,
    COMPACT,
    COMPLEX,
    DOUBLE,
    INTEGER,
    LIST,
    LOGICAL,
    RAW,
    Node,
    attach,
    make,
)
from .texts import refuse

if TYPE_CHECKING:
    from .writer import Writer

DTYPES = {LOGICAL: "<i4", INTEGER: "<i4", DOUBLE: "<f8", COMPLEX: "<c16", RAW: "u1"}
NA_INTEGER = -(1 << 31)
NA_BITS = 1954
"""The lower half of R's missing number; what else is no number has another."""

EXACT = 1 << 53
"""Whole numbers up to here are numbers of R's."""


class RArray(numpy.ndarray):
    """A matrix or array of R's that has more than numbers: names of rows and columns, a class.

    What is made from it by slicing or computing has lost that.
    """

    attributes: dict[str, Any]

    def __array_finalize__(self, other: Any) -> None:
        """As numpy wants it."""
        self.attributes = {}

    def plain(self) -> Any:
        """The numbers alone."""
        return self.view(numpy.ndarray)

    @property
    def dimnames(self) -> list[list[str] | None] | None:
        """For each dimension its names, or None."""
        return names_of(self.attributes.get("dimnames"))


def names_of(dimnames: Any) -> list[list[Any] | None] | None:
    """What R has of a matrix or array under that name, as lists."""
    if dimnames is None:
        return None
    dimensions = dimnames.values() if isinstance(dimnames, dict) else dimnames
    return [
        None if names is None else [names] if isinstance(names, str | bytes) else list(names)
        for names in dimensions
    ]


def numbers(node: Node) -> Any:
    """The numbers of a node: a view where that can be, aligned and to be written to."""
    if node.type == COMPACT:
        node = expand(node) or refuse("it holds a vector of a kind that is not known")
    values = numpy.frombuffer(node.data, DTYPES[node.type])
    return values if values.flags.writeable and values.flags.aligned else values.copy()


def texts(node: Node) -> list[Any]:
    """The texts of a node."""
    return list(node.data) if isinstance(node.data, list) else node.data.tolist()


def objects(values: list[Any]) -> Any:
    """An array of any objects; numpy would look into those that are lists."""
    made = numpy.empty(len(values), object)
    made[:] = values
    return made


def open_array(node: Node) -> Any:
    """The values alone: integers and truths of which some are missing are masked."""
    if node.type == CHARACTER:
        return objects(texts(node))
    values = numbers(node)
    if node.type not in (LOGICAL, INTEGER):
        return values
    missing = values == NA_INTEGER
    if node.type == LOGICAL:
        values = values != 0
    if not missing.any():
        return values
    return numpy.ma.MaskedArray(values, missing, copy=False)


def open_matrix(node: Node, shape: list[int], attributes: dict[str, Any]) -> Any:
    """An array of that shape; None: it cannot keep its attributes."""
    values = open_array(node)
    if any(size < 0 for size in shape) or numpy.prod(shape, dtype=object) != len(values) or len(shape) > 32:
        refuse("an array has another shape")
    values = values.reshape(shape, order="F")
    if not attributes and len(shape) > 1 and node.type != RAW:
        return values
    if isinstance(values, numpy.ma.MaskedArray):
        return None
    values = values.view(RArray)
    values.attributes = attributes if len(shape) > 1 else {"dim": shape[0], **attributes}
    return values


def is_missing(values: Any) -> Any:
    """Where numbers are R's missing one, and not just no numbers."""
    return numpy.isnan(values) & (values.view("<i8").astype(numpy.uint32) == NA_BITS)


def missing_double() -> Any:
    """R's missing number."""
    return numpy.array([0x7FF00000000007A2], "<u8").view("<f8")


# --- to R ------------------------------------------------------------------------------------


def close_array(array: Any, writer: Writer) -> Node:
    """The node of any array."""
    if isinstance(array, numpy.generic):
        array = numpy.asarray(array)
    if array.dtype.names is not None:
        rows = array.reshape(-1)  # a field that is an array itself is a matrix in the frame
        columns = {name: writer.node(rows[name], f"column `{name}`") for name in array.dtype.names}
        return close_frame(columns, array.size)
    extra = getattr(array, "attributes", None) if isinstance(array, RArray) else None
    shape = array.shape
    flat = array.reshape(-1, order="F") if array.ndim != 1 else array
    node = close_flat(flat, writer, is_raw=isinstance(array, RArray))
    attributes: dict[str, Node] = {}
    if array.ndim > 1 or (extra and "dim" in extra):
        if max(shape) > -1 - NA_INTEGER:
            raise ValuesError("kind", "an array of R has no more than `2147483647` rows or columns")
        attributes["dim"] = make(INTEGER, numpy.array(shape, "<i4"))
    for name, value in (extra or {}).items():
        if name != "dim":
            attributes[name] = writer.node(value, f"the attribute `{name}`")
    return attach(node, attributes)


def close_frame(columns: dict[Any, Node], rows: int) -> Node:
    """A data frame of columns that have names of their own."""
    return make(
        LIST,
        list(columns.values()),
        {
            "names": make(CHARACTER, list(columns)),
            "class": make(CHARACTER, ["data.frame"]),
            "row.names": automatic_rows(rows),
        },
    )


def automatic_rows(rows: int) -> Node:
    """Row names that are only numbers."""
    return make(INTEGER, numpy.array([NA_INTEGER, -rows] if rows else [], "<i4"))


def close_flat(array: Any, writer: Writer, *, is_raw: bool = False) -> Node:
    """The node of an array in one dimension."""
    mask = None
    if isinstance(array, numpy.ma.MaskedArray):
        mask = numpy.ma.getmaskarray(array)
        array = array.data
        mask = mask if mask.any() else None
    kind = array.dtype.kind
    if kind == "O":
        values = array.tolist()
        if mask is not None:
            values = [None if is_masked else value for value, is_masked in zip(values, mask, strict=True)]
        return writer.objects(values)
    if kind in "UT":
        values = array.astype(object)
        if mask is not None:
            values[mask] = None
        return make(CHARACTER, writer.encode_texts([_text_or_none(value) for value in values.tolist()]))
    if kind in "Mm":
        return writer.close_times(
            array if mask is None else numpy.where(mask, numpy.array("NaT", array.dtype), array)
        )
    if kind == "b":
        return make(LOGICAL, _with_missing(array.astype("<i4"), mask))
    if kind == "u" and is_raw and array.dtype.itemsize == 1 and mask is None:
        return make(RAW, _whole(array))
    if kind in "iu":
        return close_integers(array, mask, writer)
    if kind == "f":
        return close_doubles(array.astype("<f8", copy=False), mask)
    if kind == "c":
        values = array.astype("<c16", copy=False)
        if mask is not None:
            values = values.copy()
            values.view("<f8").reshape(-1, 2)[mask] = missing_double()
        return make(COMPLEX, _whole(values))
    raise ValuesError("kind", f"an array of `{array.dtype}` does not cross to R")


def _text_or_none(value: Any) -> str | None:
    return str(value) if isinstance(value, str) else None


def _whole(values: Any) -> Any:
    return numpy.ascontiguousarray(values)


def _with_missing(values: Any, mask: Any) -> Any:
    if mask is not None:
        values = values.copy() if values.base is not None or not values.flags.writeable else values
        values[mask] = NA_INTEGER
    return values


def close_doubles(values: Any, mask: Any) -> Node:
    """Numbers; those that the mask hides are missing."""
    if mask is not None:
        values = values.copy()
        values[mask] = missing_double()
    return make(DOUBLE, _whole(values))


def close_integers(values: Any, mask: Any, writer: Writer) -> Node:
    """Whole numbers, as R's integers if they are small enough, else as its numbers."""
    if mask is not None:
        if values.dtype == numpy.dtype("<i4") and bool(((values == NA_INTEGER) == mask).all()):
            return make(INTEGER, _whole(values))
        values = values.copy()
        values[mask] = 0
    if values.dtype.str in ("|i1", "|u1", "<i2", "<u2") or not len(values):
        fits = True
    else:
        fits = bool(values.min() > NA_INTEGER and values.max() < -NA_INTEGER)
    if fits:
        return make(INTEGER, _with_missing(_whole(values.astype("<i4", copy=False)), mask))
    doubles = values.astype("<f8")
    large = values > EXACT
    if values.dtype.kind == "i":
        large |= values < -EXACT
    if large.any():
        writer.lose_digits(
            any(
                int(whole) != int(double) for whole, double in zip(values[large], doubles[large], strict=True)
            )
        )
    return close_doubles(doubles, mask)


def close_vector(type: int, values: Any, writer: Writer) -> Node:
    """Values that have to become a vector of a type; where they cannot, they become what they are."""
    if type == RAW:
        return make(RAW, _whole(numpy.asarray(values, "u1")))
    if type == CHARACTER:
        return make(CHARACTER, writer.encode_texts(list(values)))
    return close_array(values if isinstance(values, numpy.ndarray) else numpy.asarray(values), writer)
