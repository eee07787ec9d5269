"""Arrays, sparse matrices and tensors as trees and buffers; on the client and in the user's interpreter.

`_values.py` loads this for objects of numpy, scipy and torch, for tensors of others, and for the tags of
`decoders`. It travels beside it, so: Python 3.8, the standard library, and those libraries when there is
an object of theirs. Every library stays in `sys.modules`, where its objects, or the reader, have put it.

| value | comes back as |
|---|---|
| numpy array, recarray, matrix, masked array, scalar | itself, in C or Fortran order; object arrays if their elements cross |
| numpy.memmap | ndarray |
| scipy.sparse csr csc coo bsr dia lil dok, matrix and array | itself |
| torch.Tensor, Parameter: dense, on the CPU | itself; without its graph |
| another tensor on the CPU (DLPack, `__array_interface__`) | ndarray |

The bytes of an array cross as they lie in memory, and are received into the memory of the one that is built.
"""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._values import Facts, Reader, Writer


def encode(value: Any, root: str, writer: Writer) -> Any:
    """The node of a value whose class is at home in the package `root`; None: it is not one that crosses."""
    if root == "numpy":
        return _encode_numpy(value, writer)
    if root == "scipy":
        return _encode_sparse(value, writer)
    if root == "torch":
        return _encode_torch(value, writer)
    return _encode_tensor_like(value, root, writer)


def describe(value: Any, root: str) -> str | None:
    """In a few words; None: not one of ours."""
    kind = type(value)
    if is_array(value) or kind is sys.modules["numpy"].ma.MaskedArray:
        fields = value.dtype.names
        elements = value.dtype if fields is None else f"of {len(fields)} fields"
        return f"{kind.__name__} {value.shape} {elements}"
    if root == "scipy" and _sparse_name(value):
        return f"{kind.__name__} {'x'.join(map(str, value.shape))} {value.dtype}"
    if root == "torch" and _is_tensor(value):
        return f"{kind.__name__} {tuple(value.shape)} {_torch_type(value)}"
    return None


# --- arrays ----------------------------------------------------------------------------------
#
# ndarray and scalar: [dtype, shape, order, data, class]. A dtype is numpy's own text for it, matched
# against a pattern; or of a record {"size", "aligned", "fields": [[name, title, offset, dtype, shape]]}.

_DTYPE = re.compile(
    r"[<>|](?:b1|[iu][1248]|f[248]|c8|c16|f(?:12|16)/\d+|c(?:24|32)/\d+|[SUV]\d{1,10}"
    r"|[mM]8(?:\[(?:[1-9]\d{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
)
_CLASSES = ("ndarray", "recarray", "matrix")


def is_array(value: Any) -> bool:
    """Whether it is one that crosses as its bytes, or that bytes can be received into."""
    numpy = sys.modules.get("numpy")  # may be half of it, or what anybody has put there
    return any(type(value) is getattr(numpy, name, None) for name in (*_CLASSES, "memmap"))


def _bytes_of(value: Any) -> memoryview:
    """The memory of an array that is contiguous in either order."""
    numpy = sys.modules["numpy"]
    flat = value.view(numpy.ndarray)
    flat = (flat if flat.flags.c_contiguous else flat.T).reshape(-1)
    return memoryview(flat.view(numpy.uint8) if flat.nbytes else bytearray())


def _encode_numpy(value: Any, writer: Writer) -> Any:
    numpy, kind = sys.modules["numpy"], type(value)
    if is_array(value):
        return _encode_array(value, writer)
    if kind is numpy.str_ or kind is numpy.bytes_:  # an array would cut NULs off at its end
        plain = str.__str__(value) if kind is numpy.str_ else bytes(value)
        return {"numpy": [kind.__name__, writer.node(plain)]}
    if kind is numpy.ma.MaskedArray:
        fill = value.__dict__.get("_fill_value")
        mask = None if value.mask is numpy.ma.nomask else value.mask
        parts = [value.data, mask, fill, bool(value.hardmask)]
        return {"masked": [writer.node(part) for part in parts]}
    if value is numpy.ma.masked:
        return {"numpy": ["masked", None]}
    if issubclass(kind, numpy.generic):
        scalar = numpy.asarray(value)
        if kind in (scalar.dtype.type, numpy.record) and not scalar.dtype.hasobject:
            house = "recarray" if kind is numpy.record else "ndarray"
            return {"scalar": _array_content(scalar, house, writer)}
    return None


def _encode_array(value: Any, writer: Writer) -> Any:
    house = "ndarray" if type(value).__name__ == "memmap" else type(value).__name__
    plain = value.view(sys.modules["numpy"].ndarray)
    if plain.dtype.kind == "T":
        return _encode_strings(plain, writer)
    if plain.dtype.kind == "O" and house == "ndarray":
        order = "C" if plain.flags.c_contiguous or not plain.flags.f_contiguous else "F"
        try:
            nodes = writer.nodes(list(plain.ravel(order)))
        except Exception as error:
            if plain.ndim != 1:  # then the place in the list is none in the array
                getattr(error, "path", []).clear()
            raise
        return {"objects": [list(plain.shape), order, nodes]}
    return {"ndarray": _array_content(plain, house, writer)}


def _array_content(value: Any, house: str, writer: Writer) -> list[Any]:
    dtype = _dtype_content(value.dtype, writer)
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    if not value.flags.forc:
        writer.afford(value.nbytes, "a copy of the array in one piece")
        value = value.copy("C")
    return [dtype, list(value.shape), order, writer.data(_bytes_of(value)), house]


def _dtype_content(dtype: Any, writer: Writer) -> Any:
    """A dtype in words, if it is one of numpy's own and its elements are plain bytes."""
    numpy = sys.modules["numpy"]
    if dtype.names is not None and not dtype.hasobject:
        fields = []
        for name in dtype.names:
            inner, offset, *title = dtype.fields[name]
            base, shape = inner.subdtype or (inner, ())
            if title and type(title[0]) is not str:
                break
            fields.append(
                [name, title[0] if title else None, offset, _dtype_content(base, writer), list(shape)]
            )
        else:
            return {"size": dtype.itemsize, "aligned": bool(dtype.isalignedstruct), "fields": fields}
    text = dtype.str
    if dtype.kind in "fc" and dtype.itemsize in (12, 16, 24, 32) and text[1:] != "c16":
        text += f"/{numpy.finfo(numpy.longdouble).nmant}"
    if dtype.names is not None or not _DTYPE.fullmatch(text) or numpy.dtype(dtype.str) != dtype:
        writer.refuse_unsafe(f"an array of `{dtype!s:.80}`")
    return text


def _check_dtype(content: Any, reader: Reader) -> int:
    """Bytes of an element."""
    if type(content) is str:
        if not _DTYPE.fullmatch(content):
            reader.refuse(f"`{content:.40}` is no dtype that crosses")
        text, _, digits = content.partition("/")
        if digits:
            numpy = reader.need("numpy")
            size = numpy.longdouble().itemsize * (2 if text[1] == "c" else 1)
            if text[2:] != str(size) or digits != str(numpy.finfo(numpy.longdouble).nmant):
                reader.fail("kind", "`longdouble` is another kind of number on this machine")
        return int(re.findall(r"\d+", text)[0]) * (4 if text[1] == "U" else 1)
    size, names = reader.length(content["size"]), []
    for name, title, offset, inner, shape in content["fields"]:
        names += [name] if title is None else [name, title]
        end = reader.length(offset) + _check_dtype(inner, reader) * math.prod(map(reader.length, shape))
        if end > size:
            reader.refuse("a field stands outside of its record")
    if not set(map(type, names)) <= {str} or len(set(names)) != len(names):
        reader.refuse("a record has two fields of one name")
    return size


def _make_dtype(content: Any) -> Any:
    numpy = sys.modules["numpy"]
    if type(content) is str:
        return numpy.dtype(content.partition("/")[0])
    fields = content["fields"]
    record = {
        "names": [field[0] for field in fields],
        "titles": [field[1] for field in fields],
        "offsets": [field[2] for field in fields],
        "formats": [
            (_make_dtype(inner), tuple(shape)) if shape else _make_dtype(inner) for *_, inner, shape in fields
        ],
        "itemsize": content["size"],
    }
    return numpy.dtype(record, align=content["aligned"] is True)


def _check_array(content: Any, reader: Reader) -> Facts:
    dtype, lengths, order, data, house = content
    shape = tuple(map(reader.length, lengths))
    if order not in ("C", "F") or house not in _CLASSES or len(shape) > 64:
        reader.refuse("it is no array")
    size = _check_dtype(dtype, reader) * math.prod(shape)
    reader.need("numpy")

    def make(_: int) -> tuple[Any, memoryview]:
        value = _make_array(content)
        return value, _bytes_of(value)

    reader.check_data(data, size, make)
    return reader.facts(house, shape[0] if shape else 0, dtype if type(dtype) is str else "struct", shape)


def _make_array(content: Any, memory: memoryview | None = None) -> Any:
    dtype, shape, order, _, _ = content
    return sys.modules["numpy"].ndarray(tuple(shape), _make_dtype(dtype), memory, order=order)


def _build_array(content: Any, reader: Reader) -> Any:
    numpy, data, house = sys.modules["numpy"], content[3], content[4]
    if type(data) is list:
        value = _make_array(content)
        _bytes_of(value)[:] = reader.view(data)
    else:
        value = _make_array(content, reader.data(data)) if reader.is_late else reader.owners[data]
    return value if house == "ndarray" else value.view(numpy.matrix if house == "matrix" else numpy.recarray)


def room_in(into: Any, content: Any, reader: Reader) -> memoryview | None:
    """The memory of the user's array, to receive into; None: what comes has another order, and is copied there.

    Refuses an array that has no place for what comes.
    """
    dtype, shape, order, _, house = content
    flags = into.flags
    if house != "ndarray" or into.dtype != _make_dtype(dtype) or list(into.shape) != shape:
        there = f"{tuple(shape)} {_make_dtype(dtype)}"
        reader.fail("kind", f"`into` is {describe(into, 'numpy')}; what comes is {house} {there}")
    if not flags.writeable or not flags.forc:
        reader.fail("kind", "`into` has to be writable and in one piece (contiguous)")
    return _bytes_of(into) if (flags.c_contiguous if order == "C" else flags.f_contiguous) else None


def _is_numeric(facts: Facts) -> bool:
    return facts.type == "ndarray" and re.match(r"[<>|][biufc]\d", facts.dtype) is not None


def _check_scalar(content: Any, reader: Reader) -> Facts:
    facts = _check_array(content, reader)
    if facts.shape:
        reader.refuse("a scalar has a shape")
    return reader.facts("scalar", 0, facts.dtype)


def _build_scalar(content: Any, reader: Reader) -> Any:
    return _build_array(content, reader)[()]


def encode_column(values: list[Any], writer: Writer) -> Any:
    """A long list of numpy numbers of one type, as the array of them; None: they are none."""
    numpy, kind = sys.modules["numpy"], type(values[0])
    if not issubclass(kind, (numpy.number, numpy.bool_)):
        return None
    if kind is numpy.timedelta64:  # each may have a unit of its own
        return None
    return {"scalars": _array_content(numpy.array(values, kind), "ndarray", writer)}


def _check_scalars(content: Any, reader: Reader) -> Facts:
    facts = _check_array(content, reader)
    if len(facts.shape) != 1:
        reader.refuse("a list has another shape")
    reader.charge(40 * facts.length)
    return reader.facts("list", facts.length, "", facts.shape[:1])


def _build_scalars(content: Any, reader: Reader) -> list[Any]:
    return list(_build_array(content, reader))


def _check_objects(content: Any, reader: Reader) -> Facts:
    lengths, order, node = content
    shape = tuple(map(reader.length, lengths))
    facts = reader.check(node)
    if facts.type != "list" or facts.length != math.prod(shape) or order not in ("C", "F") or len(shape) > 64:
        reader.refuse("an array has no elements")
    reader.need("numpy")
    return reader.facts("ndarray", shape[0] if shape else 0, "object", shape)


def _build_objects(content: Any, reader: Reader) -> Any:
    shape, order, node = content
    numpy, values = sys.modules["numpy"], reader.build(node)
    flat = numpy.empty(len(values), object)
    for index, value in enumerate(values):  # one by one: numpy would look into lists and arrays
        flat[index] = value
    return flat.reshape(shape, order=order)


def _encode_strings(value: Any, writer: Writer) -> Any:
    """StringDType: its memory is full of pointers, so as texts; where one is missing stands the first of all."""
    missing = [] if not hasattr(value.dtype, "na_object") else [value.dtype.na_object]
    if missing and type(missing[0]) not in (type(None), float, str):
        return None
    flat = value.astype(object).ravel().tolist()
    texts = [text if type(text) is str else None for text in flat]
    return {
        "strings": [list(value.shape), bool(value.dtype.coerce), writer.node(missing), writer.nodes(texts)]
    }


def _check_strings(content: Any, reader: Reader) -> Facts:
    lengths, _, missing, texts = content
    shape = tuple(map(reader.length, lengths))
    if reader.check(missing).length > 1 or reader.check(texts)[:2] != ("list", math.prod(shape)):
        reader.refuse("an array has no elements")
    if not hasattr(getattr(reader.need("numpy"), "dtypes", None), "StringDType"):
        reader.fail("versions", "`numpy` 2 or later is needed to open an array of `StringDType`")
    return reader.facts("ndarray", shape[0] if shape else 0, "strings", shape)


def _build_strings(content: Any, reader: Reader) -> Any:
    shape, coerce, missing, texts = content
    numpy, missing, texts = sys.modules["numpy"], reader.build(missing), reader.build(texts)
    found = set(map(type, [*missing, *texts]))
    if not found <= {str, float, type(None)} or (
        None in texts and not missing
    ):  # numpy would look into a `range`
        reader.refuse("an array of texts has other elements")
    dtype = numpy.dtypes.StringDType(coerce=coerce, **({"na_object": missing[0]} if missing else {}))
    flat = [missing[0] if text is None else text for text in texts]
    return numpy.array(flat, dtype).reshape(shape)


def _check_masked(content: Any, reader: Reader) -> Facts:
    data, mask, fill = map(reader.check, content[:3])
    if data.type not in _CLASSES or len(content) != 4:
        reader.refuse("a masked array has no data")
    if mask.type != "NoneType" and mask.shape != data.shape:
        reader.refuse("a masked array has no mask of its shape")
    if fill.type not in ("NoneType", "ndarray") or fill.shape:
        reader.refuse("a masked array has no value to fill it with")
    return data._replace(type="MaskedArray")


def _build_masked(content: Any, reader: Reader) -> Any:
    numpy = sys.modules["numpy"]
    data, mask, fill = map(reader.build, content[:3])
    mask = numpy.ma.nomask if mask is None else mask
    value = numpy.ma.MaskedArray(data, mask=mask, copy=False, hard_mask=content[3] is True)
    if fill is not None:
        value.fill_value = fill[()]
    return value


def _check_named(content: Any, reader: Reader) -> Facts:
    name, node = content
    if reader.check(node).type != {"str_": "str", "bytes_": "bytes", "masked": "NoneType"}[name]:
        reader.refuse("a scalar of numpy is of another kind")
    reader.need("numpy")
    return reader.facts(name)


def _build_named(content: Any, reader: Reader) -> Any:
    numpy, value = sys.modules["numpy"], reader.build(content[1])
    if value is None:
        return numpy.ma.masked
    return numpy.str_(value) if type(value) is str else numpy.bytes_(value)


# --- scipy.sparse ----------------------------------------------------------------------------
#
# [class, shape, arrays]: data first, then where it belongs. The arrays are set into an empty matrix: the
# constructors copy. Wrong indices would make scipy read and write anywhere: they are checked before.

_COMPRESSED = ("csr", "csc", "bsr")
_FORMATS = (*_COMPRESSED, "coo", "dia", "lil", "dok")
_SPARSE = [f"{form}_{flavour}" for form in _FORMATS for flavour in ("matrix", "array")]


def _sparse_name(value: Any) -> str | None:
    """The name of its class, found by looking for the class: its own word for that would not do."""
    sparse, kind = sys.modules.get("scipy.sparse"), type(value)
    return next((name for name in _SPARSE if getattr(sparse, name, None) is kind), None)


def _encode_sparse(value: Any, writer: Writer) -> Any:
    name = _sparse_name(value)
    if name is None or value.dtype.kind not in "biufc":
        return None
    shape = list(map(int, value.shape))
    if name[:3] in ("lil", "dok"):
        value = value.tocoo()
    if name[:3] in _COMPRESSED:
        arrays = [value.data, value.indices, value.indptr]
    elif name[:3] == "dia":
        arrays = [value.data, value.offsets]
    else:
        arrays = [value.data, *(value.coords if hasattr(value, "coords") else (value.row, value.col))]
    return {"sparse": [name, shape, [writer.node(part) for part in arrays]]}


def _check_sparse(content: Any, reader: Reader) -> Facts:
    name, lengths, nodes = content
    shape = tuple(map(reader.length, lengths))
    data, *places = map(reader.check, nodes)
    form, lengths = name[:3], [place.length for place in places]
    fits = name in _SPARSE and _is_numeric(data)
    for place in places:
        fits = fits and place.type == "ndarray" and len(place.shape) == 1 and place.dtype in ("<i4", "<i8")
    if form in _COMPRESSED:
        fits = fits and _fits_compressed(name, shape, data, lengths)
    elif form == "dia":
        fits = fits and len(shape) == len(data.shape) == 2 and lengths == [data.length]
    else:
        fits = fits and len(data.shape) == 1 and lengths == [data.length] * len(shape)
        if form != "coo":
            reader.charge(200 * data.length)
        if form == "lil":
            reader.charge(120 * sum(shape[:1]))
    if not fits:
        reader.refuse("the arrays do not make a sparse matrix")
    reader.need("scipy.sparse")
    return reader.facts(name, shape[0], data.dtype, shape)


def _fits_compressed(name: str, shape: tuple[int, ...], data: Facts, lengths: list[int]) -> bool:
    """Whether there is an index for each number or block, and a start for each row (column) of them, and an end."""
    if len(shape) == 1:
        return name == "csr_array" and data.shape == (data.length,) and lengths == [data.length, 2]
    block = data.shape[1:] if name[:3] == "bsr" else (1, 1)
    if len(shape) != 2 or len(block) != 2 or 0 in block or shape[0] % block[0] or shape[1] % block[1]:
        return False
    starts = (shape[1] if name[:3] == "csc" else shape[0]) // block[0] + 1
    return len(data.shape) == (3 if name[:3] == "bsr" else 1) and lengths == [data.length, starts]


def _build_sparse(content: Any, reader: Reader) -> Any:
    name, shape, nodes = content
    data, *places = map(reader.build, nodes)
    form, sparse = name[:3], sys.modules["scipy.sparse"]
    if not _are_places_inside(form, shape, data, places):
        reader.refuse("an index stands outside of the sparse matrix")
    if form in _COMPRESSED:
        more = {"blocksize": data.shape[1:]} if form == "bsr" else {}
        value = getattr(sparse, name)(tuple(shape), **more)
        value.data, value.indices, value.indptr = data, *places
    elif form == "dia":
        value = getattr(sparse, name)(tuple(shape))
        value.data, value.offsets = data, places[0]
    else:
        value = getattr(sparse, "coo" + name[3:])(tuple(shape))
        value.data, value.has_canonical_format = data, False
        if hasattr(value, "coords"):
            value.coords = tuple(places)
        else:
            value.row, value.col = places
        value = value.asformat(form)
    return value


def _are_places_inside(form: str, shape: list[int], data: Any, places: list[Any]) -> bool:
    """Whether each index is inside of the matrix, and the stretches of the rows follow one another."""
    if form == "dia":
        (offsets,) = places
        limit = sum(shape) + data.shape[1]
        is_unique = len(sys.modules["numpy"].unique(offsets)) == len(offsets)
        return is_unique and all(abs(offset) <= limit for offset in offsets.tolist())
    if form in _COMPRESSED:
        indices, starts = places
        minor = shape[-1] // (data.shape[2] if form == "bsr" else 1) if form != "csc" else shape[0]
        fits = _are_inside(indices, minor) and starts[0] == 0 and starts[-1] <= len(indices)
        return fits and bool((starts[1:] >= starts[:-1]).all())
    return all(map(_are_inside, places, shape))


def _are_inside(indices: Any, limit: int) -> bool:
    return not len(indices) or bool(indices.min() >= 0 and indices.max() < limit)


# --- torch, and other tensors ----------------------------------------------------------------
#
# [ndarray, dtype, requires_grad, class]: numpy has no bfloat16: such a tensor goes as integers of its size.

_DISGUISED = {
    "bfloat16": "int16",
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), "uint8"
    ),
}
_CPU = 1  # as DLPack numbers devices


def _is_tensor(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and type(value) in (torch.Tensor, torch.nn.Parameter)


def _torch_type(value: Any) -> str:
    return str(value.dtype).rpartition(".")[2]


def _encode_torch(value: Any, writer: Writer) -> Any:
    torch: Any = sys.modules.get("torch")
    if not _is_tensor(value) or value.layout is not torch.strided or value.is_quantized or value.is_nested:
        return None
    if value.device.type != "cpu":
        _refuse_device("torch", str(value.device), "`.cpu()`", writer)
    dtype = _torch_type(value)
    disguise = _DISGUISED.get(dtype)
    plain = value.detach().resolve_conj().resolve_neg()
    try:
        numbers = plain.view(getattr(torch, disguise)).numpy() if disguise else plain.numpy()
    except TypeError:  # numpy has no such numbers
        return None
    name = "Tensor" if type(value) is torch.Tensor else "Parameter"
    return {"tensor": [writer.node(numbers), dtype if disguise else None, bool(value.requires_grad), name]}


def _check_tensor(content: Any, reader: Reader) -> Facts:
    node, dtype, _, name = content
    facts = reader.check(node)
    if not _is_numeric(facts) or name not in ("Tensor", "Parameter"):
        reader.refuse("it is no tensor")
    if dtype is not None and facts.dtype[1:] != {"int16": "i2", "uint8": "u1"}[_DISGUISED[dtype]]:
        reader.refuse("a tensor is of another type")
    reader.need("torch", hints=("pull it as an array: the expression `NAME.detach().numpy()`",))
    return reader.facts(name, facts.length, dtype or facts.dtype, facts.shape)


def _build_tensor(content: Any, reader: Reader) -> Any:
    torch: Any = sys.modules["torch"]
    node, dtype, gradient, name = content
    value = torch.from_numpy(reader.build(node))
    if dtype is not None:
        value = value.view(getattr(torch, dtype))
    if name == "Parameter":
        return torch.nn.Parameter(value, requires_grad=gradient is True)
    return value.requires_grad_() if gradient is True else value


def _encode_tensor_like(value: Any, root: str, writer: Writer) -> Any:
    """A tensor of another library, as a numpy array; not what can merely become one, such as a table with labels."""
    numpy = sys.modules["numpy"]
    classes = type.__dict__["__mro__"].__get__(type(value))
    known = {name for kind in classes for name in type.__dict__["__dict__"].__get__(kind)}
    if not {"dtype", "shape"} <= known or not {"__dlpack__", "__array_interface__"} & known:
        return None
    if numpy.ndarray in classes:  # with a meaning of its own, such as units
        return None
    try:
        device = value.__dlpack_device__()[0] if "__dlpack_device__" in known else _CPU
        if device == _CPU:
            can_convert = "__array__" in known or "__array_interface__" in known
            plain = numpy.asarray(value) if can_convert else numpy.from_dlpack(value)
    except Exception:  # it only looks like one
        return None
    if device != _CPU:
        _refuse_device(root, "a GPU", "its library's function for that, such as `.get()`", writer)
    return _encode_array(plain, writer) if is_array(plain) else None


def _refuse_device(root: str, device: str, how: str, writer: Writer) -> NoReturn:
    message = f"a tensor of `{root}` is on {device:.40}, and only what is on the CPU crosses"
    writer.refuse("kind", message, hints=(f"bring it there first, with {how}",))


decoders: dict[str, tuple[Callable[[Any, Reader], Facts], Callable[[Any, Reader], Any]]] = {
    "ndarray": (_check_array, _build_array),
    "scalar": (_check_scalar, _build_scalar),
    "scalars": (_check_scalars, _build_scalars),
    "objects": (_check_objects, _build_objects),
    "strings": (_check_strings, _build_strings),
    "masked": (_check_masked, _build_masked),
    "numpy": (_check_named, _build_named),
    "sparse": (_check_sparse, _build_sparse),
    "tensor": (_check_tensor, _build_tensor),
}
