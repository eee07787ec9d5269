"""Arrays, sparse matrices and tensors cross and are what they were."""

import json
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
import types

import cloudpickle
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra import numpy as some_numpy

from remoter import _arrays, _values
from remoter._values import Layout, describe, pack
from tests.test_values import assert_same, assert_same_array, cross, load, quick, receive, refusal

# --- numpy -----------------------------------------------------------------------------------

plain_dtypes = some.one_of(
    some_numpy.boolean_dtypes(),
    some_numpy.integer_dtypes(endianness="?"),
    some_numpy.unsigned_integer_dtypes(endianness="?"),
    some_numpy.floating_dtypes(endianness="?", sizes=(16, 32, 64, 128)),
    some_numpy.complex_number_dtypes(endianness="?"),
    some_numpy.datetime64_dtypes(endianness="?"),
    some_numpy.timedelta64_dtypes(endianness="?"),
    some_numpy.byte_string_dtypes(max_len=8),
    some_numpy.unicode_string_dtypes(endianness="?", max_len=8),
    some.sampled_from([np.dtype("V5"), np.dtype("M8[25s]"), np.dtype("m8"), np.dtype(np.clongdouble)]),
)
dtypes = some.one_of(plain_dtypes, some_numpy.nested_dtypes(plain_dtypes, max_leaves=6))


@some.composite
def arrays(draw):
    """Arrays of random bytes, in one order or the other, or with gaps."""
    base = draw(dtypes)
    base = base.base
    shape = draw(some_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    order = draw(some.sampled_from("CF"))
    value = np.ndarray(shape, base, order=order)
    source = random.Random(draw(some.integers(0, 1000)))
    if value.nbytes and base.kind != "b" and base.names is None:
        value[...] = np.frombuffer(source.randbytes(value.nbytes), base.newbyteorder("=")).reshape(shape)
    elif value.nbytes:
        value[...] = np.zeros((), base)
    if value.ndim and draw(some.booleans()):
        value = value[:: draw(some.sampled_from([2, -1]))]
    return value


@quick
@given(arrays())
def test_arrays_come_back_to_the_bit(value):
    assert_same(value, cross(value))


def test_no_element_of_an_array_is_lost_or_copied_on_its_way_out():
    for value in [
        np.arange(100_000.0),
        np.asfortranarray(np.random.default_rng(1).random((300, 200))),
        np.zeros(50_000, "M8[ns]"),
    ]:
        packed = pack(value)
        assert len(packed.buffers) == 1
        assert np.shares_memory(np.asarray(packed.buffers[0]), value)
        assert_same(value, receive(packed).build())
    constant = np.frombuffer(bytes(80_000))
    assert cross(constant).flags.writeable


def test_arrays_own_their_memory_and_can_be_resized():
    back = cross(np.arange(100_000.0))
    assert back.flags.owndata
    back.resize(10, refcheck=True)


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype([("a", "<i4"), ("b", ">f8", (2, 3)), ("c", [("d", "S3"), ("e", "U2")])]),
        np.dtype([("a", "i1"), ("b", "f8")], align=True),
        np.dtype({"names": ["x", "y"], "formats": ["i2", "f4"], "offsets": [6, 0], "itemsize": 32}),
        np.dtype([(("title", "a"), "i4"), ("b", "f8")]),
        np.dtype([("größe", "i4"), ("", "f8")]),
        np.dtype([]),
    ],
    ids=str,
)
def test_records_keep_names_offsets_titles_and_padding(dtype):
    value = np.frombuffer(random.Random(1).randbytes(50 * dtype.itemsize), np.uint8).copy()
    value = np.ndarray((5, 2), dtype, value.tobytes() or None).copy()
    back = cross(value)
    assert back.dtype == value.dtype
    assert back.dtype.fields == value.dtype.fields
    assert back.dtype.isalignedstruct == value.dtype.isalignedstruct
    assert str(back.tolist()) == str(value.tolist())


@pytest.mark.parametrize(
    "value",
    [
        *[
            np.float64(1.5),
            np.int8(-3),
            np.bool_(True),
            np.float16(0.1),
            np.longdouble(1) / 3,
            np.complex64(1j),
        ],
        np.datetime64("2020-01-01", "D"),
        np.timedelta64(5, "25s"),
        np.str_("a\0"),
        np.bytes_(b"a\0"),
        np.void(b"abc"),
        np.zeros((), [("a", "i4"), ("b", "f8")])[()],
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0],
    ],
    ids=lambda value: type(value).__name__,
)
def test_scalars_of_numpy_stay_scalars_of_numpy(value):
    for back in (cross(value), cross([value] * 100)[37]):
        assert type(back) is type(value)
        assert back == value
        assert back.dtype == value.dtype


def test_long_lists_of_numpy_scalars_go_as_one_array():
    packed = pack(list(np.arange(1000.0)))
    assert len(packed.tree) < 200
    assert_same(list(np.arange(1000.0)), receive(packed).build())


def test_subclasses_that_numpy_itself_has_are_kept(home):
    matrix = np.arange(4.0).reshape(2, 2).view(np.matrix)
    assert_same_array(matrix, cross(matrix))
    records = np.rec.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")])
    back = cross(records)
    assert type(back) is np.recarray
    assert back.b.tolist() == [2.0, 4.0]
    mapped = np.memmap(home / "mapped", np.float32, "w+", shape=(3, 4))
    mapped[:] = 7
    back = cross(mapped)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, mapped)


def test_masked_arrays_keep_data_mask_and_fill_value():
    plain = np.ma.MaskedArray([1.0, 2.0, 3.0])
    masked = np.ma.MaskedArray([[1, 2], [3, 4]], mask=[[0, 1], [1, 0]], fill_value=-9, hard_mask=True)
    records = np.ma.MaskedArray([(1, 2.0)], mask=[(0, 1)], dtype=[("a", "i4"), ("b", "f8")])
    for value in (plain, masked, records):
        back = cross(value)
        assert type(back) is np.ma.MaskedArray
        assert back.dtype == value.dtype
        assert back.data.tobytes() == value.data.tobytes()
        assert np.array_equal(np.ma.getmaskarray(back), np.ma.getmaskarray(value))
        assert (back.mask is np.ma.nomask) == (value.mask is np.ma.nomask)
        assert back.fill_value == value.fill_value
        assert back.hardmask == value.hardmask
    assert cross(np.ma.masked) is np.ma.masked


def test_object_arrays_cross_if_their_elements_do():
    value = np.empty((2, 3), object, order="F")
    value[0] = [1, "a", None]
    value[1] = [[1, 2], np.arange(3), {"a": (1,)}]
    back = cross(value)
    assert back.shape == (2, 3)
    assert back.flags.f_contiguous
    assert_same(back[1, 0], [1, 2])
    assert_same(back[1, 1], np.arange(3))
    assert_same_array(np.empty((0, 2), object), cross(np.empty((0, 2), object)))
    assert refusal(pack, np.array([1, object()])).kind == "unsafe"


@pytest.mark.parametrize(
    "missing", [{}, {"na_object": None}, {"na_object": np.nan}, {"na_object": "?"}], ids=str
)
def test_arrays_of_variable_strings_cross_with_what_is_missing(missing):
    dtype = np.dtypes.StringDType(**missing)
    value = np.array([["a", "bb" * 50], ["ß\0", missing.get("na_object", "")]], dtype)
    back = cross(value)
    assert back.dtype == dtype
    assert str(back.tolist()) == str(value.tolist())


def test_dtypes_that_are_not_of_numpy_need_a_pickle():
    assert "'O'" in refusal(pack, np.zeros(2, [("a", object)])).message
    with_units = type("Quantity", (np.ndarray,), {})
    assert refusal(pack, np.zeros(3).view(with_units)).kind == "unsafe"


def test_a_broadcast_array_that_would_not_fit_is_refused_before_it_is_copied(monkeypatch):
    monkeypatch.setattr(_values, "free_memory", lambda: 10**9)
    error = refusal(pack, np.broadcast_to(np.float64(1), (10**6, 10**6)))
    assert error.kind == "memory"
    assert "8.0 TB" in error.message
    assert "1.0 GB" in error.cause


def test_a_longdouble_of_another_machine_is_refused():
    packed = pack(np.zeros(3, np.longdouble))
    error = refusal(Layout, packed.tree.replace("/63", "/112"), [48])
    assert error.kind == "kind"
    assert "longdouble" in error.message


def test_without_numpy_an_array_cannot_be_opened_and_all_else_can(monkeypatch):
    packed = pack({"x": np.arange(3)})
    plain = pack({"x": list(range(100))})
    monkeypatch.setitem(sys.modules, "numpy", None)
    error = refusal(receive, packed)
    assert error.kind == "versions"
    assert error.message == "`numpy` is needed to open what comes, and is not there"
    assert receive(plain).build() == {"x": list(range(100))}


def test_only_a_whole_numpy_is_asked_for_memory_or_for_what_a_value_is(monkeypatch):
    packed = pack([bytes(100_000), b"a" * 100_000, "x" * 100_000])
    array = np.arange(3)
    packed_array = pack(array)
    half = types.ModuleType("numpy")
    for odd in (half, object(), 3, type("Odd", (), {"__getattr__": lambda self, name: 1 / 0})()):
        monkeypatch.setitem(sys.modules, "numpy", odd)
        assert receive(packed).build()[1] == b"a" * 100_000
        error = refusal(pack, [array])
        assert error.kind == "unsafe"
        assert describe(array) == "ndarray"
        error = refusal(receive, packed_array)
        assert error.kind == "versions"
        assert "needed to open what comes" in error.message


def test_an_array_crosses_where_nothing_but_numpy_was_imported():
    program = (
        "import numpy; from remoter import _values; "
        "assert 'numpy.ma' not in __import__('sys').modules or numpy.__version__ < '2'; "
        "print(_values.pack([numpy.arange(3)]).is_pickle, _values.describe(numpy.arange(3)))"
    )
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, timeout=80)
    assert (done.stdout, done.stderr) == ("False ndarray (3,) int64\n", "")


def test_a_numpy_that_another_thread_imports_is_waited_for(home):
    (home / "numpy.py").write_text(SLOW)
    run = [sys.executable, "-I", "-c", WAIT, str(home), str(pathlib.Path(_values.__file__))]
    done = subprocess.run(run, capture_output=True, text=True, timeout=80)
    assert (done.stdout, done.stderr) == ("waits\nwhole\n", "")


SLOW = """
import threading
begun.set()
go_on.wait(10)
empty = generic = ndarray = uint8 = None
"""

WAIT = """
import builtins, importlib.util, sys, threading
builtins.begun, builtins.go_on = threading.Event(), threading.Event()
sys.path.insert(0, sys.argv[1])
spec = importlib.util.spec_from_file_location("values", sys.argv[2])
values = importlib.util.module_from_spec(spec)
spec.loader.exec_module(values)
importing = threading.Thread(target=__import__, args=["numpy"])
importing.start()
begun.wait(10)
found = []
finding = threading.Thread(target=lambda: found.append(values.find_numpy()))
finding.start()
finding.join(0.2)
print("waits" if not found else found)
go_on.set()
finding.join(10), importing.join(10)
print("whole" if found[0] is sys.modules["numpy"] else found)
"""


@pytest.mark.parametrize("inner", ['{"range":[0,1099511627776,1]}', "[1,2]", "3", "null"])
def test_an_array_of_strings_holds_nothing_else(inner):
    tree = f'{{"value":{{"strings":[[2],true,[],["a",{inner}]]}}}}'
    layout = Layout(tree, [])
    layout.allocate()
    assert refusal(layout.build).kind == "corrupt"


@pytest.mark.parametrize("names", [[1, 2], [1], ["a", 2], [["a"]]])
def test_fields_of_a_record_have_names(names):
    fields = [[name, None, 0, "|b1", []] for name in names]
    content = [{"size": 8, "aligned": False, "fields": fields}, [1], "C", 0, "ndarray"]
    assert refusal(Layout, json.dumps({"value": {"ndarray": content}}), [8]).kind == "corrupt"


# --- into ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize("orders", ["CC", "FF", "CF", "FC"])
def test_an_array_can_be_received_into_one_that_is_there(size, orders):
    value = np.asarray(np.random.default_rng(1).random((size, 3)), order=orders[0])
    into = np.zeros((size, 3), order=orders[1])
    assert cross(value, into=into) is into
    np.testing.assert_array_equal(into, value)


def test_memory_that_does_not_fit_is_refused_before_anything_is_received():
    value = np.zeros((100, 50))
    for into in [
        np.zeros((50, 100)),
        np.zeros((100, 50), np.float32),
        np.zeros((200, 50))[::2],
        np.broadcast_to(np.zeros(50), (100, 50)),
        bytearray(40_000),
        [1, 2],
    ]:
        assert refusal(cross, value, into=into).kind == "kind"
    for into in (bytearray(9), bytes(10), memoryview(bytearray(20))[::2], np.zeros(10, np.uint8), "text"):
        assert refusal(cross, bytes(10), into=into).kind == "kind"
    assert "list" in refusal(cross, [1], into=np.zeros(1)).message
    assert refusal(cross, "text", into=bytearray(4)).kind == "kind"


def test_bytes_and_arrays_are_received_into_their_last_place():
    size = 20_000_000
    for value in (bytes(size), np.zeros(size // 8)):
        packed = pack(value)
        tracemalloc.start()
        try:
            layout = receive(packed)
            back = layout.build()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1.1 * size
        assert len(back) == len(value)


# --- scipy, torch, other tensors -------------------------------------------------------------

FORMATS = [
    form + flavour
    for form in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")
    for flavour in ("_matrix", "_array")
]


@pytest.mark.parametrize("name", FORMATS)
def test_sparse_matrices_come_back_in_their_format(name):
    dense = (np.random.default_rng(1).random((12, 10)) > 0.7) * 3.0
    kinds = [content.astype(dtype) for dtype in "bFd" for content in (dense, dense[:1])]
    for content in [*kinds, dense != 0, dense[:0], np.zeros_like(dense)]:
        value = getattr(scipy.sparse, name)(content)
        back = cross(value)
        assert type(back) is type(value)
        assert (back.dtype, back.shape, back.nnz) == (value.dtype, value.shape, value.nnz)
        np.testing.assert_array_equal(back.toarray(), value.toarray())
        if value.nnz:
            np.testing.assert_array_equal((back @ back.T).toarray(), (value @ value.T).toarray())


def test_sparse_matrices_with_blocks_duplicates_and_unsorted_indices_stay_right():
    blocks = scipy.sparse.bsr_array(np.kron(np.eye(3), np.ones((2, 4))), blocksize=(2, 4))
    assert cross(blocks).blocksize == (2, 4)
    twice = scipy.sparse.coo_matrix(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2))
    assert cross(twice).toarray()[0, 1] == 3
    assert cross(twice).tocsr().nnz == 1
    unsorted = scipy.sparse.csr_array(
        (np.array([1.0, 2.0]), np.array([2, 0]), np.array([0, 2])), shape=(1, 3)
    )
    assert not cross(unsorted).has_sorted_indices
    assert cross(unsorted)[0, 0] == 2
    one = scipy.sparse.csr_array(np.array([0, 1.0, 2.0]))
    np.testing.assert_array_equal(cross(one).toarray(), one.toarray())
    three = scipy.sparse.coo_array(np.arange(8.0).reshape(2, 2, 2))
    np.testing.assert_array_equal(cross(three).toarray(), three.toarray())


@pytest.mark.parametrize(
    "name", ["csr_array", "csc_matrix", "coo_array", "bsr_matrix", "dia_array", "lil_matrix"]
)
def test_a_wrong_index_in_a_sparse_matrix_is_found_before_it_is_used(name):
    dense = np.kron(np.eye(4), np.ones((2, 2)))
    packed = pack(getattr(scipy.sparse, name)(dense))
    *_, places = json.loads(packed.tree)["value"]["sparse"]
    for node in places[1:]:
        offset, size = node["ndarray"][3]
        for position in range(offset, offset + size, 4):
            for wrong in (-100, 10**6, -(2**31), 2**31 - 1):
                heap = bytearray(packed.buffers[0])
                heap[position : position + 4] = struct.pack("<i", wrong)
                layout = receive(packed._replace(buffers=[memoryview(heap)]))
                assert refusal(layout.build).kind == "corrupt"


class FakeTensor:
    """What we use of torch.Tensor, over a numpy array."""

    layout, is_quantized, is_nested = "strided", False, False

    def __init__(self, numbers, dtype=None, requires_grad=False, device="cpu"):
        self.numbers, self.requires_grad = numbers, requires_grad
        self.dtype = dtype or f"torch.{numbers.dtype}"
        self.shape, self.device = numbers.shape, types.SimpleNamespace(type=device)

    def detach(self):
        return FakeTensor(self.numbers, self.dtype)

    resolve_conj = resolve_neg = detach

    def view(self, dtype):
        return FakeTensor(self.numbers, dtype)

    def numpy(self):
        if self.dtype == "torch.bfloat16" or self.requires_grad:
            raise TypeError("numpy has no such numbers")
        return self.numbers

    def requires_grad_(self):
        self.requires_grad = True
        return self


FakeTensor.__module__, FakeTensor.__name__, FakeTensor.__qualname__ = "torch", "Tensor", "Tensor"


@pytest.fixture
def torch(monkeypatch):
    module = types.ModuleType("torch")
    module.Tensor, module.strided, module.from_numpy = FakeTensor, "strided", FakeTensor
    module.nn = types.SimpleNamespace(Parameter=type("Parameter", (FakeTensor,), {}))
    module.bfloat16, module.int16 = "torch.bfloat16", "torch.int16"
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_tensors_cross_through_numpy(torch):
    numbers = np.arange(12, dtype=np.int16).reshape(3, 4)
    for value in (FakeTensor(numbers), FakeTensor(numbers, "torch.bfloat16", requires_grad=True)):
        back = cross(value)
        assert type(back) is FakeTensor
        assert (back.dtype, back.requires_grad) == (value.dtype, value.requires_grad)
        assert_same(back.numbers, value.numbers)
    assert describe(value) == "Tensor (3, 4) bfloat16"


def test_a_tensor_is_refused_from_a_gpu_and_where_torch_is_missing(torch, monkeypatch):
    error = refusal(pack, FakeTensor(np.zeros(3), device="cuda"), pickle=cloudpickle.dumps)
    assert "`.cpu()`" in error.hints[0]
    packed = pack(FakeTensor(np.zeros(3)))
    monkeypatch.setitem(sys.modules, "torch", None)
    error = refusal(receive, packed)
    assert error.kind == "versions"
    assert ".numpy()" in error.hints[0]


class SomeTensor:
    dtype, shape, device = np.dtype("f8"), (3,), 1

    def __dlpack__(self, **options):
        return np.arange(3.0).__dlpack__(**options)

    def __dlpack_device__(self):
        return (self.device, 0)


def test_tensors_of_other_libraries_come_back_as_arrays():
    assert_same(cross(SomeTensor()), np.arange(3.0))
    interface = types.new_class("Interface")
    interface.dtype, interface.shape = np.dtype("f8"), (3,)
    interface.__array_interface__ = np.arange(3.0).__array_interface__
    keep = np.arange(3.0)
    interface.__array_interface__ = keep.__array_interface__
    assert_same(cross(interface()), keep)
    on_gpu = SomeTensor()
    on_gpu.device = 2
    assert "CPU" in refusal(pack, on_gpu).message
    broken = type("Broken", (SomeTensor,), {"__dlpack_device__": lambda self: 1 / 0})
    assert refusal(pack, broken()).kind == "unsafe"
    labelled = type("Table", (), {"dtype": 1, "shape": 1, "__array__": lambda self: np.zeros(3)})
    assert refusal(pack, labelled()).kind == "unsafe"


# --- a file that travels ---------------------------------------------------------------------


def test_the_file_is_found_beside_the_other_and_by_each_of_its_tags():
    assert set(_values.ARRAY_TAGS) == set(_arrays.decoders)
    assert not set(_values.ARRAY_TAGS) & set(_values._CODECS)


def test_two_interpreters_understand_one_another(home):
    """What a process packs that has loaded the files by path, another opens that has remoter."""
    for module in (_values, _arrays):
        shutil.copy(module.__file__, home)
    ours = load(home / "_values.py")
    value = {"a": np.arange(10_000.0), "b": scipy.sparse.eye_array(3).tocsr(), "c": [np.float64(1.5)] * 100}
    packed = ours.pack(value)
    assert packed.text == "dict of 3, 80.9 kB"
    back = receive(packed).build()
    assert_same(back["a"], value["a"])
    assert (back["b"] != value["b"]).nnz == 0
    assert_same(back["c"], value["c"])
    layout = ours.Layout(packed.tree, [len(buffer) for buffer in packed.buffers])
    for view, buffer in zip(layout.allocate(), packed.buffers, strict=True):
        view[:] = buffer
    assert_same(layout.build()["a"], value["a"])
    damaged = packed.tree.replace("csr_array", "nosuch")
    sizes = [len(buffer) for buffer in packed.buffers]
    assert refusal(ours.Layout, damaged, sizes, expect=ours.ValuesError).kind == "corrupt"
    assert ours._beside("_arrays") is not _arrays
