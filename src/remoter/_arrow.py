"""Arrow's arrays and tables, and polars' frames, as trees and buffers; at both ends, loaded beside `_frames.py`.

An array crosses as the very buffers that Arrow holds, not copied, and a description of its type in
our own few words. There is no Arrow IPC: its parser would have to be trusted with the peer's bytes,
it would decompress what it is given, and it calls the classes of registered extension types. Here
the sizes of all buffers are compared with the type and the length before any memory is taken, and
`validate(full=True)` looks at every offset and index before anything else does.

A type is a name (`"int8"`) or a list (`["timestamp", "us", "UTC"]`). The content of an array is a list:

    null                             [length]
    numbers, dates, fixed_size_binary [length, validity, values]
    string, binary                   [length, validity, offsets, bytes]
    list, map                        [length, validity, offsets, content of the items]
    fixed_size_list                  [length, validity, content of the items]
    struct                           [length, validity, [content of each field]]
    dictionary                       [content of the indices, content of the dictionary]
    extension                        content of its storage

This is one file because it travels with `_values.py` and `_frames.py`, to where nothing of ours is installed.
"""

# ruff: noqa: B905 - `zip` has no `strict` before Python 3.10

from __future__ import annotations

import functools
import importlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._values import Reader, Writer

Type = Any  # the JSON of a type: a name or a list
Content = Any  # the JSON of an array

INSTALL = ("`pip install pyarrow`",)

OLDEST = (14, 0, 1)
"""Earlier versions of pyarrow ran code that data from elsewhere asked them to run (CVE-2023-47248)."""

DEEPEST = 40
"""Levels of nesting of a type; real ones have three."""

SMALL = 256 * 1024
"""Bytes of a chunk below which it does not pay to keep many of them apart."""


class Facts(NamedTuple):
    """What checking a node has shown; the same as in `_values`, which may not be imported here."""

    type: str
    length: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()


def load(library: str) -> Any:
    """A library: one of those named in this file, and only when there is an object of it."""
    return importlib.import_module(library)


# --- Types ---

# By name: bits of one value, as pyarrow's function of that name makes them.
FIXED = {
    "bool_": 1, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64,
    "uint64": 64, "float16": 16, "float32": 32, "float64": 64, "date32": 32, "date64": 64,
    "month_day_nano_interval": 128,
}  # fmt: skip
# By name: bytes of one offset. Views cross as what they are views of.
VARIABLE = {
    "string": 4, "binary": 4, "large_string": 8, "large_binary": 8, "string_view": 8, "binary_view": 8,
}  # fmt: skip
VIEWS = {"string_view": "large_string", "binary_view": "large_binary"}
# By name: bits and the units that there are.
TEMPORAL = {
    "time32": (32, ("s", "ms")),
    "time64": (64, ("us", "ns")),
    "timestamp": (64, ("s", "ms", "us", "ns")),
    "duration": (64, ("s", "ms", "us", "ns")),
}
DECIMAL = {"decimal32": (32, 9), "decimal64": (64, 18), "decimal128": (128, 38), "decimal256": (256, 76)}
LISTS = {"list_": 4, "large_list": 8, "map_": 4}
EXTENSIONS = {"arrow.uuid": "uuid", "arrow.json": "json_", "arrow.bool8": "bool8"}
"""Arrow's own extension types, and the functions that make them. All others are refused: a name
from the peer must never choose a class."""

ZONE = re.compile(r"[A-Za-z0-9_+:/-]{1,64}")


def describe_type(kind: Any) -> Type:
    """The JSON of a type. TypeError: one that does not cross."""
    pyarrow = load("pyarrow")
    if isinstance(kind, pyarrow.BaseExtensionType):
        name = kind.extension_name
        if name not in EXTENSIONS or type(kind).__module__.partition(".")[0] != "pyarrow":
            raise TypeError(f"extension type `{name}`")
        return ["extension", name, describe_type(kind.storage_type)]
    name = _simple_names().get(kind)
    if name is not None:
        return name
    types = pyarrow.types
    for name in TEMPORAL:
        if getattr(types, "is_" + name)(kind):
            return [name, kind.unit] + ([kind.tz] if name == "timestamp" else [])
    for name in DECIMAL:
        if getattr(types, "is_" + name, _never)(kind):
            return [name, kind.precision, kind.scale]
    if types.is_fixed_size_binary(kind):
        return ["binary", kind.byte_width]
    if types.is_dictionary(kind):
        return [
            "dictionary",
            describe_type(kind.index_type),
            describe_type(kind.value_type),
            bool(kind.ordered),
        ]
    if types.is_map(kind):
        return [
            "map_",
            describe_field(kind.key_field),
            describe_field(kind.item_field),
            bool(kind.keys_sorted),
        ]
    if types.is_list(kind) or types.is_large_list(kind):
        return ["list_" if types.is_list(kind) else "large_list", describe_field(kind.value_field)]
    if types.is_fixed_size_list(kind):
        return ["fixed_list", describe_field(kind.value_field), kind.list_size]
    if types.is_struct(kind):
        return ["struct", [describe_field(kind.field(i)) for i in range(kind.num_fields)]]
    raise TypeError(f"Arrow type `{kind}`")


def describe_field(field: Any) -> list[Any]:
    return [field.name, describe_type(field.type), bool(field.nullable)]


def make_type(kind: Type) -> Any:
    """pyarrow's type of a JSON that `check_type` has passed."""
    pyarrow = load("pyarrow")
    if isinstance(kind, str):
        return getattr(pyarrow, kind)()
    name, *parts = kind
    if name in TEMPORAL or name in DECIMAL:
        return getattr(pyarrow, name)(*parts)
    if name == "binary":
        return pyarrow.binary(parts[0])
    if name == "dictionary":
        return pyarrow.dictionary(make_type(parts[0]), make_type(parts[1]), ordered=parts[2])
    if name == "map_":
        return pyarrow.map_(make_field(parts[0]), make_field(parts[1]), keys_sorted=parts[2])
    if name in LISTS:
        return getattr(pyarrow, name)(make_field(parts[0]))
    if name == "fixed_list":
        return pyarrow.list_(make_field(parts[0]), parts[1])
    if name == "struct":
        return pyarrow.struct([make_field(field) for field in parts[0]])
    factory = getattr(pyarrow, EXTENSIONS[parts[0]])
    return factory(make_type(parts[1])) if parts[0] == "arrow.json" else factory()


def make_field(field: list[Any], metadata: dict[bytes, bytes] | None = None) -> Any:
    pyarrow = load("pyarrow")
    name, kind, nullable = field
    return pyarrow.field(name, make_type(kind), nullable, metadata)


def check_type(kind: Type, reader: Reader, depth: int = 0) -> None:
    """Refuses what is not one of our types; needs no pyarrow."""
    if depth > DEEPEST:
        reader.refuse("an Arrow type is nested too deeply")
    if isinstance(kind, str):
        if kind != "null" and kind not in FIXED and kind not in VARIABLE:
            reader.refuse(f"there is no Arrow type {kind!r:.40}")
        return
    name, *parts = kind
    known = False
    if name in TEMPORAL:
        unit, *zone = parts
        known = unit in TEMPORAL[name][1] and len(zone) == (name == "timestamp")
        known = known and (not zone or zone[0] is None or ZONE.fullmatch(zone[0]) is not None)
    elif name in DECIMAL:
        precision, scale = parts
        known = _is_int(precision, 1, DECIMAL[name][1]) and _is_int(scale, -200, 200)
    elif name == "binary":
        (width,) = parts
        known = _is_int(width, 0, 2**31 - 1)
    elif name == "dictionary":
        index, value, ordered = parts
        check_type(value, reader, depth + 1)
        known = isinstance(index, str) and re.fullmatch("u?int(8|16|32|64)", index) is not None
        known = known and isinstance(ordered, bool)
    elif name == "map_":
        key, item, is_sorted = parts
        _check_field(key, reader, depth)
        _check_field(item, reader, depth)
        known = isinstance(is_sorted, bool)
    elif name in LISTS:
        (field,) = parts
        _check_field(field, reader, depth)
        known = True
    elif name == "fixed_list":
        field, size = parts
        _check_field(field, reader, depth)
        known = _is_int(size, 0, 2**31 - 1)
    elif name == "struct":
        (fields,) = parts
        for field in fields:
            _check_field(field, reader, depth)
        known = isinstance(fields, list)
    elif name == "extension":
        extension, storage = parts
        check_type(storage, reader, depth + 1)
        known = isinstance(extension, str) and extension in EXTENSIONS
    if not known:
        reader.refuse(f"there is no Arrow type {kind!r:.80}")


def _check_field(field: Any, reader: Reader, depth: int) -> None:
    name, kind, nullable = field
    check_type(kind, reader, depth + 1)
    if not (isinstance(name, str) and isinstance(nullable, bool)):
        reader.refuse("a field of an Arrow type makes no sense")


@functools.lru_cache(maxsize=None)  # noqa: UP033 - Python 3.8
def _simple_names() -> dict[Any, str]:
    pyarrow = load("pyarrow")
    names = ("null", *FIXED, *VARIABLE)
    return {getattr(pyarrow, name)(): name for name in names if hasattr(pyarrow, name)}


def _never(kind: Any) -> bool:
    return False


def _is_int(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def bits_of(kind: Type) -> int | None:
    """Bits of one value where all have the same number, else None."""
    if isinstance(kind, str):
        return FIXED.get(kind)
    if kind[0] in TEMPORAL:
        return TEMPORAL[kind[0]][0]
    if kind[0] in DECIMAL:
        return DECIMAL[kind[0]][0]
    return int(kind[1]) * 8 if kind[0] == "binary" else None


# --- Arrays ---


def flatten(kind: Type, array: Any, writer: Writer) -> Content:
    """The content of an array of this type: its own memory, only the part that belongs to it."""
    pyarrow = load("pyarrow")
    name = kind if isinstance(kind, str) else kind[0]
    if name == "extension":
        return flatten(kind[2], array.storage, writer)
    if name == "dictionary":
        return [flatten(kind[1], array.indices, writer), flatten(kind[2], array.dictionary, writer)]
    if name in VIEWS:
        return flatten(VIEWS[name], array.cast(make_type(VIEWS[name])), writer)
    length, offset, buffers = len(array), array.offset, array.buffers()
    bits, validity = bits_of(kind), None
    if name == "null":
        validity = writer.data(bytes((length + 7) // 8))
    elif array.null_count:
        validity = writer.data(_bits(buffers[0], offset, length))
    elif _is_weightless(kind):
        validity = writer.data(b"\xff" * ((length + 7) // 8))
    head = [length, validity]
    if name == "null":
        return head
    if name == "struct":
        return [*head, [flatten(field[1], array.field(i), writer) for i, field in enumerate(kind[1])]]
    if name == "fixed_list":
        size = kind[2]
        return [*head, flatten(kind[1][1], array.values.slice(offset * size, length * size), writer)]
    if bits == 1:
        return [*head, writer.data(_bits(buffers[1], offset, length))]
    if bits is not None:
        width = bits // 8
        return [*head, writer.data(_bytes(buffers[1])[offset * width : (offset + length) * width])]
    offsets, first, last = _offsets(buffers[1], _offset_width(name), offset, length)
    head.append(writer.data(offsets))
    if name in VARIABLE:
        return [*head, writer.data(_bytes(buffers[2])[first:last])]
    if name == "map_":
        items = pyarrow.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
    else:
        items = array.values
    return [*head, flatten(_items_type(kind), items.slice(first, last - first), writer)]


def _items_type(kind: Type) -> Type:
    """The type of the items of a list or map."""
    return ["struct", [kind[1], kind[2]]] if kind[0] == "map_" else kind[1][1]


def _offset_width(name: str) -> int:
    return VARIABLE[name] if name in VARIABLE else LISTS[name]


def _is_weightless(kind: Type) -> bool:
    """Whether any number of such values takes no memory. These cross with a bit for each: whoever says
    that there are 2**60 of them has to send as much."""
    return kind in ("null", ["binary", 0], ["struct", []]) or (kind[0] == "fixed_list" and kind[2] == 0)


def _bytes(buffer: Any) -> memoryview:
    return memoryview(b"" if buffer is None else buffer).cast("B")


def _bits(buffer: Any, offset: int, length: int) -> Any:
    """`length` bits from `offset` on, beginning with the first bit of the first byte."""
    first, skipped = divmod(offset, 8)
    view = _bytes(buffer)[first : (offset + length + 7) // 8]
    if skipped == 0:
        return view
    shifted = int.from_bytes(view, "little") >> skipped
    return (shifted & ((1 << length) - 1)).to_bytes((length + 7) // 8, "little")


def _offsets(buffer: Any, width: int, offset: int, length: int) -> tuple[Any, int, int]:
    """The offsets, counted from the first; where the items begin and where they end."""
    pyarrow = load("pyarrow")
    if length == 0:
        return bytes(width), 0, 0
    view = _bytes(buffer)[offset * width : (offset + length + 1) * width]
    first = int.from_bytes(view[:width], "little")
    last = int.from_bytes(view[-width:], "little")
    if first:
        kind = pyarrow.int64() if width == 8 else pyarrow.int32()
        counted = pyarrow.Array.from_buffers(kind, length + 1, [None, pyarrow.py_buffer(view)])
        counted = load("pyarrow.compute").subtract(counted, pyarrow.scalar(first, kind))
        view = _bytes(counted.buffers()[1])[: len(view)]
    return view, first, last


def check_array(kind: Type, content: Content, reader: Reader) -> int:
    """Refuses a content whose buffers do not have the sizes that its type and length ask for; the length."""
    name = kind if isinstance(kind, str) else kind[0]
    if name == "extension":
        return check_array(kind[2], content, reader)
    if name == "dictionary":
        indices, dictionary = content
        check_array(kind[2], dictionary, reader)
        return check_array(kind[1], indices, reader)
    length = reader.length(content[0])
    rest = content[2:]
    if content[1] is not None:
        reader.check_data(content[1], (length + 7) // 8)
    elif _is_weightless(kind):
        reader.refuse("an Arrow array has a length and no memory")
    bits = bits_of(kind)
    if name == "null":
        () = rest
    elif bits is not None:
        (values,) = rest
        reader.check_data(values, (length * bits + 7) // 8)
    elif name == "struct":
        (fields,) = rest
        if len(fields) != len(kind[1]):
            reader.refuse("an Arrow struct lacks fields")
        for field, part in zip(kind[1], fields):
            if check_array(field[1], part, reader) != length:
                reader.refuse("the fields of an Arrow struct differ in length")
    elif name == "fixed_list":
        (items,) = rest
        if check_array(kind[1][1], items, reader) != length * kind[2]:
            reader.refuse("the items of an Arrow list are not as many as they should be")
    else:
        offsets, items = rest
        reader.check_data(offsets, (length + 1) * _offset_width(name))
        if name in VARIABLE:
            reader.check_data(items)
        else:
            check_array(_items_type(kind), items, reader)
    return length


def build_array(kind: Type, content: Content, reader: Reader) -> Any:
    """The array; every offset and index in it has been looked at."""
    array = _assemble(kind, content, reader)
    array.validate(full=True)
    return array


def _assemble(kind: Type, content: Content, reader: Reader) -> Any:
    """The array, made over the buffers, nothing copied. Nothing may look into it before it is validated."""
    pyarrow = load("pyarrow")

    def data(item: Any) -> Any:
        return None if item is None else pyarrow.py_buffer(reader.data(item))

    def over(made: Any, buffers: list[Any], *children: Any) -> Any:
        nulls = 0 if content[1] is None else -1
        whole = [data(content[1]), *buffers]
        return pyarrow.Array.from_buffers(made, content[0], whole, nulls, children=list(children))

    name = kind if isinstance(kind, str) else kind[0]
    if name in VIEWS:
        array = build_array(VIEWS[name], content, reader)
        return array.cast(make_type(name))
    made = make_type(kind)
    if name == "null":
        return pyarrow.nulls(content[0])
    if name == "extension":
        return pyarrow.ExtensionArray.from_storage(made, _assemble(kind[2], content, reader))
    if name == "dictionary":
        indices, dictionary = (build_array(part, content[i], reader) for i, part in enumerate(kind[1:3]))
        return pyarrow.DictionaryArray.from_arrays(indices, dictionary, ordered=kind[3])
    if bits_of(kind) is not None:
        return over(made, [data(content[2])])
    if name in VARIABLE:
        return over(made, [data(content[2]), data(content[3])])
    if name == "struct":
        parts = [_assemble(field[1], part, reader) for field, part in zip(kind[1], content[2])]
        return over(made, [], *parts)
    if name == "fixed_list":
        return over(made, [], _assemble(kind[1][1], content[2], reader))
    return over(made, [data(content[2])], _assemble(_items_type(kind), content[3], reader))


# --- Columns and tables ---


def flatten_column(kind: Type, column: Any, writer: Writer) -> list[Content]:
    """The chunks of a column, as they are; many small ones become one, and so do those of one dictionary."""
    pyarrow = load("pyarrow")
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    if kind[0] == "dictionary":
        is_whole = len(chunks) > 1 and all(chunk.dictionary.equals(chunks[0].dictionary) for chunk in chunks)
    else:
        is_whole = len(chunks) > 16 and column.nbytes < len(chunks) * SMALL
    if is_whole:
        whole = column.combine_chunks()
        chunks = whole.chunks if isinstance(whole, pyarrow.ChunkedArray) else [whole]
    return [flatten(kind, chunk, writer) for chunk in chunks]


def check_column(kind: Type, chunks: Any, reader: Reader) -> int:
    check_type(kind, reader)
    if not isinstance(chunks, list):
        reader.refuse("an Arrow column has no chunks")
    return sum(check_array(kind, chunk, reader) for chunk in chunks)


def build_column(kind: Type, chunks: list[Content], reader: Reader) -> Any:
    pyarrow = need_pyarrow(reader)
    return pyarrow.chunked_array([build_array(kind, chunk, reader) for chunk in chunks], make_type(kind))


def need_pyarrow(reader: Reader) -> Any:
    """pyarrow, of a version that may see what a peer has made."""
    pyarrow = reader.need("pyarrow", hints=INSTALL)
    found = tuple(int(part) for part in re.findall(r"\d+", pyarrow.__version__)[:3])
    if found < OLDEST:
        message = "`pyarrow` 14.0.1 or later is needed to open what comes"
        fail(
            reader,
            "versions",
            message,
            f"{pyarrow.__version__} is not safe with data from elsewhere",
            INSTALL,
        )
    return pyarrow


def fail(
    reader: Reader, kind: str, message: str, cause: str | None = None, hints: tuple[str, ...] = ()
) -> NoReturn:
    """Refuse for a reason that is not the peer's fault. The class of the error is in a module that may not
    be imported here, so it is taken from an error."""
    try:
        reader.refuse(message)
    except Exception as error:
        raise type(error)(kind, message, cause, hints) from None


def _flatten_table(table: Any, writer: Writer, *, keep_metadata: bool = True) -> Content:
    """[fields, rows, [chunks of each column], metadata]"""
    fields = []
    for field in table.schema:
        try:
            fields.append(describe_field(field))
        except TypeError as error:
            _refuse_type(error, f"column `{field.name}` of this table", writer)
    columns = [flatten_column(field[1], column, writer) for field, column in zip(fields, table.columns)]
    return [fields, table.num_rows, columns, _describe_metadata(table.schema) if keep_metadata else None]


def _check_table(content: Content, reader: Reader, *, allow_metadata: bool = True) -> Facts:
    fields, rows, columns, metadata = content
    check_type(["struct", fields], reader)
    rows = reader.length(rows)
    if len(fields) != len(columns):
        reader.refuse("a table has more or fewer columns than names")
    for field, column in zip(fields, columns):
        if check_column(field[1], column, reader) != rows:
            reader.refuse(f"column {field[0]!r:.40} of a table is not as long as the table")
    if metadata is not None:
        if not allow_metadata or len(metadata) != len(fields) + 1:
            reader.refuse("the metadata of a table make no sense")
        for pairs in metadata:
            _check_metadata(pairs, reader)
    return Facts("Table", rows, "", (rows, len(fields)))


def _build_table(content: Content, reader: Reader) -> Any:
    pyarrow = need_pyarrow(reader)
    fields, rows, columns, metadata = content
    whole, *parts = metadata or [None] * (len(fields) + 1)
    made = [make_field(field, _make_metadata(pairs)) for field, pairs in zip(fields, parts)]
    schema = pyarrow.schema(made, _make_metadata(whole))
    if not fields:  # a table without columns has rows nevertheless
        return pyarrow.table({"": pyarrow.nulls(rows)}, metadata=schema.metadata).select([])
    arrays = [build_column(field[1], column, reader) for field, column in zip(fields, columns)]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _describe_metadata(schema: Any) -> list[Any] | None:
    """What users attached to the table and to its columns: bytes that nothing here ever looks into."""

    def pairs(metadata: Any) -> list[list[str]]:
        texts = [[key.decode("latin-1"), text.decode("latin-1")] for key, text in (metadata or {}).items()]
        return [pair for pair in texts if not pair[0].startswith("ARROW:")]

    whole = [pairs(schema.metadata), *(pairs(field.metadata) for field in schema)]
    return whole if any(whole) else None


def _make_metadata(pairs: list[list[str]] | None) -> dict[bytes, bytes] | None:
    return {key.encode("latin-1"): text.encode("latin-1") for key, text in pairs} if pairs else None


def _check_metadata(pairs: Any, reader: Reader) -> None:
    for key, text in pairs:
        key.encode("latin-1"), text.encode("latin-1")
        if key.startswith("ARROW:"):  # names a class to the next who reads it
            reader.refuse("the metadata of a table name an extension type")


def _refuse_type(error: TypeError, place: str, writer: Writer) -> NoReturn:
    writer.refuse("unsafe", f"{place} is of a kind that does not cross: {error}")


# --- pyarrow's objects ---


def encode_arrow(value: Any, writer: Writer) -> dict[str, Any] | None:
    pyarrow = load("pyarrow")
    if type(value) is pyarrow.Table:
        return {"arrow.table": _flatten_table(value, writer)}
    if type(value) is pyarrow.RecordBatch:
        return {"arrow.batch": _flatten_table(pyarrow.Table.from_batches([value]), writer)}
    if type(value) is not pyarrow.ChunkedArray and not _is_array(value):
        return None
    try:
        kind = describe_type(value.type)
    except TypeError as error:
        _refuse_type(error, "this array", writer)
    if type(value) is pyarrow.ChunkedArray:
        return {"arrow.chunked": [kind, flatten_column(kind, value, writer)]}
    return {"arrow.array": [kind, flatten(kind, value, writer)]}


def describe_arrow(value: Any) -> str | None:
    pyarrow = load("pyarrow")
    name = type(value).__name__
    if type(value) in (pyarrow.Table, pyarrow.RecordBatch):
        return f"{name} {value.num_rows}x{value.num_columns}"
    return f"{name} {len(value)}" if type(value) is pyarrow.ChunkedArray or _is_array(value) else None


def _is_array(value: Any) -> bool:
    """Whether it is an array whose class is pyarrow's own."""
    pyarrow = load("pyarrow")
    return isinstance(value, pyarrow.Array) and type(value).__module__ == "pyarrow.lib"


def _check_whole_array(content: Content, reader: Reader) -> Facts:
    kind, array = content
    check_type(kind, reader)
    return Facts("Array", check_array(kind, array, reader))


def _build_whole_array(content: Content, reader: Reader) -> Any:
    need_pyarrow(reader)
    return build_array(content[0], content[1], reader)


def _check_chunked(content: Content, reader: Reader) -> Facts:
    kind, chunks = content
    return Facts("ChunkedArray", check_column(kind, chunks, reader))


def _build_chunked(content: Content, reader: Reader) -> Any:
    return build_column(content[0], content[1], reader)


def _check_batch(content: Content, reader: Reader) -> Facts:
    return _check_table(content, reader)._replace(type="RecordBatch")


def _build_batch(content: Content, reader: Reader) -> Any:
    table = _build_table(content, reader)
    arrays = [column.combine_chunks() for column in table.columns]
    return need_pyarrow(reader).RecordBatch.from_arrays(arrays, schema=table.schema)


# --- polars ---
#
# A frame crosses as the Arrow table that it is inside. An Enum is a dictionary there; that it was
# one, polars would find in the table's metadata, which we do not let it read from a peer. So a hint
# goes along with each column: null; ["enum", content of the categories]; ["list", hint]; ["struct", [hints]].

POLARS = {"null", "string", "large_string", "binary", "large_binary", "struct", "list_", "large_list",
          "fixed_list", "dictionary", "decimal128", *TEMPORAL, *FIXED} - {"month_day_nano_interval"}  # fmt: skip
"""The types that polars opens without a panic."""


def encode_polars(value: Any, writer: Writer) -> dict[str, Any] | None:
    polars = load("polars")
    if type(value) is polars.LazyFrame:
        hints = ("collect it first: `.collect()`",)
        writer.refuse("kind", "a LazyFrame does not cross: it is a plan that has no rows yet", hints=hints)
    if type(value) is polars.Series:
        return {"polars.series": [value.name, *_flatten_frame(value.to_frame("values"), writer)]}
    return {"polars.frame": _flatten_frame(value, writer)} if type(value) is polars.DataFrame else None


def describe_polars(value: Any) -> str | None:
    polars = load("polars")
    if type(value) is polars.DataFrame:
        return f"polars DataFrame {value.height}x{value.width}"
    return f"polars Series {len(value)} {value.dtype}" if type(value) is polars.Series else None


def _flatten_frame(frame: Any, writer: Writer) -> list[Any]:
    """[table, hints]"""
    polars = load("polars")
    try:
        table = calmly(frame.to_arrow)
    except ImportError as error:
        writer.refuse("versions", "polars needs `pyarrow` to hand out its columns", str(error), INSTALL)
    except Exception as error:  # there are types that Arrow does not have
        writer.refuse("unsafe", "a column of this polars frame has no form in Arrow", str(error))
    content = _flatten_table(table, writer, keep_metadata=False)
    # What polars makes of this at the other end, it also makes of no rows, here.
    again = calmly(polars.from_arrow, _make_empty(content[0])).schema
    for name, kind in frame.schema.items():
        if again[name] != _without_enum(kind):
            writer.refuse("unsafe", f"column `{name}` of this polars frame does not cross: it is `{kind}`")
    return [content, [_describe_hint(kind, writer) for kind in frame.schema.values()]]


def _make_empty(fields: list[Any]) -> Any:
    """A table without rows."""
    pyarrow = load("pyarrow")
    schema = pyarrow.schema([make_field(field) for field in fields])
    return pyarrow.Table.from_arrays([pyarrow.nulls(0, field.type) for field in schema], schema=schema)


def _without_enum(kind: Any) -> Any:
    """The type that a column has when its table comes without metadata."""
    polars = load("polars")
    if isinstance(kind, polars.Enum):
        return polars.Categorical()
    if isinstance(kind, polars.List):
        return polars.List(_without_enum(kind.inner))
    if isinstance(kind, polars.Struct):
        return polars.Struct({field.name: _without_enum(field.dtype) for field in kind.fields})
    return kind


def _describe_hint(kind: Any, writer: Writer) -> Any:
    polars = load("polars")
    if isinstance(kind, polars.Enum):
        pyarrow = load("pyarrow")
        names = kind.categories.to_list()
        return ["enum", flatten("large_string", pyarrow.array(names, pyarrow.large_string()), writer)]
    if isinstance(kind, polars.List):
        hint = _describe_hint(kind.inner, writer)
        return None if hint is None else ["list", hint]
    if isinstance(kind, polars.Struct):
        hints = [_describe_hint(field.dtype, writer) for field in kind.fields]
        return ["struct", hints] if any(hints) else None
    return None


def _check_hint(hint: Any, kind: Type, reader: Reader) -> None:
    """Refuses a hint that does not go with the column's Arrow type."""
    if hint is None:
        return
    word, content = hint
    name = kind if isinstance(kind, str) else kind[0]
    if word == "enum" and name == "dictionary":
        check_array("large_string", content, reader)
    elif word == "list" and name in LISTS:
        _check_hint(content, kind[1][1], reader)
    elif word == "struct" and name == "struct" and len(content) == len(kind[1]):
        for part, field in zip(content, kind[1]):
            _check_hint(part, field[1], reader)
    else:
        reader.refuse("a polars column cannot have the type that it is said to have")


def _apply_hint(hint: Any, kind: Any, reader: Reader) -> Any:
    """The polars type of a column that came as `kind`."""
    polars = load("polars")
    if hint is None:
        return kind
    word, content = hint
    if word == "enum":
        return polars.Enum(build_array("large_string", content, reader).to_pylist())
    if word == "list":
        return polars.List(_apply_hint(content, kind.inner, reader))
    fields = zip(kind.fields, content)
    return polars.Struct({field.name: _apply_hint(part, field.dtype, reader) for field, part in fields})


def _check_frame(content: Content, reader: Reader) -> Facts:
    table, hints = content
    facts = _check_table(table, reader, allow_metadata=False)
    if len(hints) != len(table[0]):
        reader.refuse("a polars frame has more or fewer columns than types")
    for hint, field in zip(hints, table[0]):
        _check_polars(field[1], reader)
        _check_hint(hint, field[1], reader)
        if isinstance(field[1], str) and field[1] in VARIABLE:
            reader.charge(16 * facts.length)  # polars looks at texts through 16 bytes each
    return facts._replace(type="DataFrame")


def _check_polars(kind: Type, reader: Reader) -> None:
    name, *parts = [kind] if isinstance(kind, str) else kind
    if name not in POLARS:
        reader.refuse(f"polars has no type `{name}`")
    fields = parts[0] if name == "struct" else parts[:1] if "list" in name else []
    for inner in [parts[1]] if name == "dictionary" else [field[1] for field in fields]:
        _check_polars(inner, reader)


def _build_frame(content: Content, reader: Reader) -> Any:
    polars = reader.need("polars")
    frame = calmly(polars.from_arrow, _build_table(content[0], reader))
    kinds = {
        name: _apply_hint(hint, kind, reader) for hint, (name, kind) in zip(content[1], frame.schema.items())
    }
    wanted = {name: kind for name, kind in kinds.items() if kind != frame.schema[name]}
    return calmly(frame.cast, wanted) if wanted else frame


def _check_series(content: Content, reader: Reader) -> Facts:
    name, *frame = content
    facts = _check_frame(frame, reader)
    if not isinstance(name, str) or facts.shape[1] != 1:
        reader.refuse("a polars series is one column that has a name")
    return Facts("Series", facts.length)


def _build_series(content: Content, reader: Reader) -> Any:
    return _build_frame(content[1:], reader).to_series().alias(content[0])


def calmly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls polars. Where Rust gives up, it raises what is no Exception, so that nobody catches it."""
    try:
        return function(*arguments)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise RuntimeError(f"polars gave up: {error}") from None
        raise


decoders: dict[str, tuple[Callable[[Any, Reader], Facts], Callable[[Any, Reader], Any]]] = {
    "arrow.table": (_check_table, _build_table),
    "arrow.batch": (_check_batch, _build_batch),
    "arrow.array": (_check_whole_array, _build_whole_array),
    "arrow.chunked": (_check_chunked, _build_chunked),
    "polars.frame": (_check_frame, _build_frame),
    "polars.series": (_check_series, _build_series),
}
