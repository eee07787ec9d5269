"""Values cross and are the same afterwards; what a peer says is checked before it can do harm."""

import array
import ast
import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import importlib.util
import io
import json
import mmap
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import threading
import tracemalloc
import types
import uuid
import zoneinfo

import cloudpickle
import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from remoter import _arrays, _values
from remoter._values import Layout, ValuesError, check_name, describe, pack, versions

MODULE = pathlib.Path(_values.__file__)
quick = settings(max_examples=70, deadline=None, suppress_health_check=list(HealthCheck))


def receive(packed, into=None, fill=None):
    """The layout at the other end, with all bytes in it."""
    layout = Layout(packed.tree, [len(buffer) for buffer in packed.buffers])
    for view, buffer in zip(layout.allocate(into), packed.buffers, strict=True):
        view[:] = buffer if fill is None else fill(buffer)
    return layout


def cross(value, into=None, **options):
    return receive(pack(value, **options), into).build(allow_pickle=bool(options))


def refusal(call, *arguments, expect=ValuesError, **options):
    """The error of a call that has to fail: one clean line each of message and cause."""
    with pytest.raises(expect) as caught:
        call(*arguments, **options)
    for text in (caught.value.message, caught.value.cause or ""):
        assert text.isprintable(), text
    return caught.value


def assert_same(one, other):
    """Equal, of the same type, and to the bit where `==` would not see a difference."""
    assert type(one) is type(other)
    if isinstance(one, float):
        assert struct.pack("<d", one) == struct.pack("<d", other)
    elif isinstance(one, complex):
        assert_same([one.real, one.imag], [other.real, other.imag])
    elif isinstance(one, list | tuple | collections.deque):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, dict):
        assert_same(list(one), list(other))
        assert_same(list(one.values()), list(other.values()))
    elif isinstance(one, np.ndarray):
        assert_same_array(one, other)
    elif isinstance(one, decimal.Decimal):
        assert one.as_tuple() == other.as_tuple()
    elif isinstance(one, slice):
        assert_same([one.start, one.stop, one.step], [other.start, other.stop, other.step])
    elif isinstance(one, set | frozenset):
        assert one == other
        assert sorted(type(inner).__name__ for inner in one) == sorted(
            type(inner).__name__ for inner in other
        )
    else:
        assert one == other
        if isinstance(one, datetime.datetime | datetime.time):
            assert (one.fold, repr(one.tzinfo)) == (other.fold, repr(other.tzinfo))


def assert_same_array(one, other):
    assert (type(one), one.dtype, one.shape) == (type(other), other.dtype, other.shape)
    if one.dtype.kind == "O":
        assert_same(one.ravel().tolist(), other.ravel().tolist())
    else:
        assert one.tobytes() == other.tobytes()
    if one.flags.forc:
        assert (one.flags.c_contiguous, one.flags.f_contiguous) == (
            other.flags.c_contiguous,
            other.flags.f_contiguous,
        )
    assert other.flags.writeable


# --- builtins --------------------------------------------------------------------------------

texts = some.text(some.characters(), max_size=20)  # lone surrogates and NUL too
zones = some.one_of(
    some.none(),
    some.just(datetime.UTC),
    some.builds(datetime.timezone, some.integers(-1439, 1439).map(lambda n: datetime.timedelta(minutes=n))),
    some.sampled_from(["Europe/Berlin", "America/New_York", "UTC"]).map(zoneinfo.ZoneInfo),
)
scalars = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(),
    some.integers(-(2**2000), 2**2000),
    some.floats(),
    some.complex_numbers(),
    texts,
    some.binary(max_size=30),
    some.decimals().filter(lambda number: not number.is_snan()),
    some.fractions(),
    some.uuids(),
    some.dates(),
    some.times(timezones=zones),
    some.datetimes(timezones=zones, allow_imaginary=True),
    some.timedeltas(),
    some.builds(range, some.integers(), some.integers(), some.integers().filter(bool)),
    some.just(...),
    some.builds(pathlib.PurePosixPath, texts),
    some.builds(pathlib.PureWindowsPath, texts),
)
keys = some.recursive(
    scalars.filter(lambda value: value == value),  # NaN is a key that cannot be found again
    lambda inner: some.one_of(some.tuples(inner, inner), some.frozensets(inner, max_size=3)),
    max_leaves=4,
)
values = some.recursive(
    some.one_of(scalars, some.binary().map(bytearray), some.builds(slice, scalars, scalars, scalars)),
    lambda inner: some.one_of(
        some.lists(inner, max_size=5),
        some.lists(inner, max_size=5).map(tuple),
        some.sets(keys, max_size=3),
        some.dictionaries(keys, inner, max_size=4),
        some.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict),
        some.builds(collections.deque, some.lists(inner, max_size=3), some.none() | some.integers(3, 9)),
    ),
    max_leaves=9,
)


@quick
@given(values)
@example("\ud83d\ude00")  # two surrogates are not the one character that they would make in JSON
@example(["\ud83d", "\ude00"] * 100)
@example(struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000123))[0])
@example(datetime.timezone(datetime.timedelta(hours=1), "\x1b[1m"))
def test_builtins_come_back_equal(value):
    assert_same(value, cross(value))


@quick
@given(some.sampled_from([some.floats(), some.integers(), some.booleans(), texts, some.none()]), some.data())
def test_lists_of_one_kind_come_back_equal_whatever_their_length(kind, data):
    some_values = data.draw(some.lists(kind, min_size=1, max_size=8))
    for value in (some_values, some_values * 40):
        assert_same(value, cross(value))
        assert_same(tuple(value), cross(tuple(value)))
        assert_same(dict(enumerate(value)), cross(dict(enumerate(value))))


@settings(quick, max_examples=30)
@given(some.lists(texts, min_size=1, max_size=4, unique=True), some.data())
def test_rows_that_are_alike_come_back_equal(names, data):
    row = some.tuples(*[scalars for _ in names])
    rows = data.draw(some.lists(row, min_size=1, max_size=3)) * 64
    for value in (rows, list(map(list, rows)), [dict(zip(names, row, strict=True)) for row in rows]):
        back = cross([value])[0]
        assert len(back) == len(value)
        assert_same(back[:3], value[:3])
        assert_same(back[-3:], value[-3:])


def test_rows_are_turned_into_columns_only_if_each_has_the_same_places():
    records = [{"name": f"n{number}", "at": (number, 0.5)} for number in range(1000)]
    assert len(pack(records).tree) < 200
    odd = {**records[0], "more": 1}
    for value in [
        [*records, odd],
        [odd, *records],
        [*records, dict(reversed(records[0].items()))],
        [*records, {"name": 1, 2: 3}],
        [*records, {}],
        [{}] * 100,
        [[]] * 100,
        [{1: 2}] * 100,
        [*[(1, 2)] * 100, (1, 2, 3)],
        [(1, 2**70)] * 100,
        *([tuple(range(width))] * 64 for width in (63, 64, 65)),
        [tuple(range(width)) for width in range(100)],
    ]:
        assert_same(value, cross(value))


def test_no_code_of_the_user_runs_to_compare_the_keys_of_rows():
    class Key(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            raise AssertionError("ran")

    assert refusal(pack, [{"a": 1}] * 64 + [{Key("b"): 1}]).kind == "unsafe"


def test_more_builtins_come_back_equal():
    for value in [
        collections.Counter("hello"),
        collections.defaultdict(list, {"a": [1]}),
        collections.defaultdict(None, {1: 2}),
        array.array("i", [1, -2, 3]),
        array.array("d", range(100_000)),
        memoryview(b"abc"),
        memoryview(array.array("d", [1.5, 2.5])),
        memoryview(bytes(24)).cast("i", (2, 3)),
        memoryview(b"abcdef")[::2],
        pathlib.Path("/tmp/x"),
        "é" * 100_000,
        "\udc80" * 100_000,
        "x" * 100_000,
        10**30_000,  # more digits than `int()` reads
        {"a": [1, {"b": (2, {3})}]},
        list(range(-(2**63), 2**63, 2**57)),
        [2**63, *range(100)],
    ]:
        back = cross(value)
        assert type(back) is type(value)
        assert back == value
    assert str(cross(decimal.Decimal("-sNaN123"))) == "-sNaN123"


def test_the_order_of_a_dict_and_of_an_ordered_dict_is_kept():
    ordered = collections.OrderedDict.fromkeys("abc")
    ordered.move_to_end("a")
    assert list(cross(ordered)) == ["b", "c", "a"]
    assert list(cross({"z": 1, "a": 2})) == ["z", "a"]


def test_a_shared_object_becomes_two():
    inner = [1]
    one, other = cross([inner, inner])
    one.append(2)
    assert other == [1]


def test_what_was_packed_and_what_was_built_can_grow():
    value = bytearray(100_000)
    packed = pack(value)
    value.append(1)
    back = receive(packed).build()
    back.append(1)
    numbers = array.array("d", bytes(80_000))
    packed = pack(numbers)
    numbers.append(1.0)
    assert len(receive(packed).build()) == 10_000


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: [value],
        lambda value: (value,),
        lambda value: {"a": value},
        lambda value: collections.OrderedDict(a=value),
        lambda value: collections.deque([value]),
    ],
    ids=["list", "tuple", "dict", "OrderedDict", "deque"],
)
def test_two_hundred_levels_cross_and_one_more_does_not(wrap):
    value = 1
    for _ in range(200):
        value = wrap(value)
    assert cross(value) == value
    error = refusal(pack, wrap(value))
    assert error.kind == "unsafe"
    assert "`200` levels" in error.message


def test_rows_of_many_levels_cross_and_a_cycle_of_rows_does_not():
    value = 1
    for _ in range(190):
        value = {"a": value, "b": 2}
    assert cross([value] * 64) == [value] * 64
    rows = [{"number": number} for number in range(100)]
    for row in rows:
        row["again"] = rows
    assert "holds itself" in refusal(pack, rows).message


def test_a_cycle_is_refused_and_a_deep_stack_is_no_recursion_error():
    value = []
    value.append({"again": (value,)})
    assert "holds itself" in refusal(pack, value).message
    nested = 1
    for _ in range(150):
        nested = [nested]

    def deeper():
        try:
            return deeper()
        except RecursionError:
            return refusal(pack, nested)

    assert deeper().kind == "unsafe"


def test_a_cycle_crosses_as_a_pickle_if_that_is_allowed():
    value = []
    value.append(value)
    back = cross(value, pickle=cloudpickle.dumps)
    assert back[0] is back


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda bad: [1, 2, {"model": bad}], "[2]['model']"),
        (lambda bad: (1, [bad]), "[1][0]"),
        (lambda bad: [[1, 2]] * 80 + [[3, bad]], "[80][1]"),
        (lambda bad: [{"a": 1, "b": (2,)}] * 70 + [{"a": 2, "b": (bad,)}], "[70]['b'][0]"),
        (lambda bad: {"x": collections.OrderedDict({2.5: collections.deque([bad])})}, "['x'][2.5][0]"),
        (lambda bad: collections.defaultdict(int, {True: [bad]}), "[True][0]"),
        (lambda bad: {(1, 2): bad}, "[...]"),
        (lambda bad: [{1, bad}], "[0]"),
        (lambda bad: [{bad: 1}], "[0]"),
        (lambda bad: [{1: 2, (1, bad): 1}], "[0]"),
        (lambda bad: [slice(1, [bad])], "[0]"),
        (lambda bad: [np.array([None, bad], object)], "[0][1]"),
        (lambda bad: [np.array([[None, bad]], object)], "[0]"),
        (lambda bad: {"evil\x1b[2J" + "x" * 100: bad}, "['evil\\x1b[2J" + "x" * 48 + "...]"),
    ],
    ids=range(14),
)
def test_the_refusal_of_a_container_says_where_the_bad_item_is(wrap, place):
    error = refusal(pack, wrap(Model(1)))
    assert error.kind == "unsafe"
    assert error.cause == f"it is in `{place}`"


def test_packing_leaves_a_list_within_a_slice_as_it_is():
    stop = [1, (2,)]
    assert cross(slice(stop)) == slice(stop)
    assert stop == [1, (2,)]


def test_the_place_is_shown_only_so_far_and_beside_another_cause():
    value = Model(1)
    for _ in range(20):
        value = [value]
    assert refusal(pack, value).cause == "it is in `" + "[0]" * 8 + "...`"
    assert refusal(pack, Model(1)).cause is None
    broadcast = np.broadcast_to(np.float64(1), (10**6, 10**6))
    assert refusal(pack, [1, broadcast]).cause.endswith(" are free; it is in `[1]`")


def test_a_class_that_has_no_module_needs_a_pickle_too():
    scope = {"__builtins__": {"type": type}}
    exec("made = type('A', (), {})", scope)
    odd = scope["made"]()
    error = refusal(pack, [odd])
    assert error.kind == "unsafe"
    assert error.message.startswith("`A` crosses only as a pickle")
    assert describe(odd) == "A"


def test_too_many_objects_are_refused_with_advice(monkeypatch):
    monkeypatch.setattr(_values, "MOST_NODES", 1000)
    value = [1, "a"]
    for _ in range(20):  # a million, of which it holds few
        value = [value, value]
    error = refusal(pack, value)
    assert "1000" in error.message
    assert error.kind == "unsafe"
    assert "array" in error.hints[0]


def test_a_container_that_changes_meanwhile_is_looked_at_again():
    seen = []

    def take(value):
        seen.append(value)
        if len(seen) < 3:
            raise RuntimeError("dictionary changed size during iteration")
        return (list(value),)

    parts = _values._Parts(set, take, set, "list")
    assert parts.encode({1}, _values.Writer()) == {"set": [[1]]}
    always = _values._Parts(
        set, lambda value: next(iter([]), None) or _raise(RuntimeError("changed")), set, "list"
    )
    error = refusal(always.encode, {1}, _values.Writer())
    assert error.kind == "changed"
    assert "RuntimeError: changed" in error.cause


def _raise(error):
    raise error


def test_containers_that_other_threads_change_cross_or_are_refused():
    shared = {
        "dict": {0: 0},
        "set": {0},
        "deque": collections.deque([0]),
        "ordered": collections.OrderedDict({0: 0}),
    }
    stopping = threading.Event()

    def change():
        number = 0
        while not stopping.is_set():
            number += 1
            for key in ("dict", "ordered"):
                shared[key][number] = number
                shared[key].pop(number - 500, None)
            shared["set"].add(number)
            shared["set"].discard(number - 500)
            shared["deque"].append(number)
            while len(shared["deque"]) > 500:
                shared["deque"].popleft()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(100):
            try:
                back = cross(shared)
            except ValuesError as error:
                assert error.kind == "changed"
            else:
                assert all(key == value for key, value in back["dict"].items())
    finally:
        stopping.set()
        thread.join()


# --- into ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 100_000])
def test_bytes_can_be_received_into_a_buffer_that_is_there(size):
    value = random.Random(1).randbytes(size)
    with mmap.mmap(-1, size) as mapped:
        assert cross(value, into=mapped) is mapped
        assert mapped[:] == value
    into = bytearray(size)
    assert cross(value, into=into) is into
    assert into == value
    into.append(1)


# --- what does not cross, and pickles --------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Model:
    def __init__(self, numbers):
        self.numbers = numbers


Point = collections.namedtuple("Point", "x y")


class OwnInt(int):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED,
        Model(1),
        Point(1, 2),
        OwnInt(3),
        collections.UserDict(),
        lambda: 1,
        Model,
        int,
        np.random.default_rng(1),
        collections.defaultdict(lambda: 1),
        array.array("u", "ab") if sys.version_info < (3, 13) else Model(2),
        types.SimpleNamespace(a=1),
        datetime.datetime(2000, 1, 1, tzinfo=type("Zone", (datetime.tzinfo,), {})()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_needs_its_class_crosses_only_as_a_pickle(value):
    error = refusal(pack, {"a": [value]})
    assert error.kind == "unsafe"
    assert error.message.endswith(
        "crosses only as a pickle, and opening a pickle runs code that the session chose"
    )
    packed = pack([value], pickle=cloudpickle.dumps)
    assert packed.is_pickle


def test_the_refusal_names_the_class_and_its_module():
    assert refusal(pack, Model(1)).message.startswith(f"`Model` ({__name__}) crosses only as a pickle")


def test_a_pickle_is_opened_only_when_that_is_allowed():
    value = {"model": Model(np.arange(100_000.0)), "small": np.arange(3)}
    packed = pack(value, pickle=cloudpickle.dumps)
    assert packed.is_pickle
    assert any(np.shares_memory(np.asarray(buffer), value["model"].numbers) for buffer in packed.buffers)
    layout = receive(packed)
    assert (layout.is_pickle, layout.type) == (True, "dict")
    assert refusal(layout.build).kind == "unsafe"
    back = receive(packed).build(allow_pickle=True)
    assert_same(back["model"].numbers, value["model"].numbers)
    back["model"].numbers[0] = 7


def test_a_pickle_hidden_in_a_safe_value_is_not_opened():
    packed = pack(Model(1), pickle=pickle.dumps)
    envelope = json.loads(packed.tree)
    envelope["value"] = {"pickle": envelope.pop("pickle")}
    error = refusal(Layout, json.dumps(envelope), [len(buffer) for buffer in packed.buffers])
    assert error.kind == "corrupt"


def test_a_pickle_that_cannot_be_made_or_opened_is_explained():
    class Stubborn:
        def __reduce_ex__(self, protocol):
            raise KeyError("no\x1b[31m")

    error = refusal(pack, Stubborn(), pickle=cloudpickle.dumps)
    assert "Stubborn" in error.message
    assert "KeyError" in error.cause
    packed = pack(Model(1), pickle=lambda value, **options: b"cnosuch.module\nname\n.")
    error = refusal(receive(packed).build, allow_pickle=True)
    assert error.kind == "versions"
    assert "nosuch" in error.cause


def test_what_lives_in_its_process_never_crosses():
    with open("/dev/null") as file:  # noqa: SIM117
        with mmap.mmap(-1, 10) as mapped:
            for value in [(n for n in []), file, threading.Lock(), threading.Thread(), mapped]:
                error = refusal(pack, [value], pickle=cloudpickle.dumps)
                assert "never crosses" in error.message


def test_no_code_of_the_user_runs_to_refuse_or_to_describe():
    class Meta(type):
        @property
        def __module__(cls):
            raise AssertionError("ran")

        @property
        def __mro__(cls):
            raise AssertionError("ran")

        def __getattribute__(cls, name):
            raise AssertionError("ran")

        __name__ = __dict__ = __mro__

        def __instancecheck__(cls, other):
            raise AssertionError("ran")

        __subclasscheck__ = __instancecheck__

    def fail(*arguments):
        raise AssertionError("ran")

    methods = (
        "__getattribute__",
        "__repr__",
        "__str__",
        "__len__",
        "__iter__",
        "__eq__",
        "__hash__",
        "__bool__",
    )
    for module in ("user", "numpy", "scipy.sparse", "torch", "pandas", "polars", "pyarrow"):
        for bases in ((), (list,), (dict,), (str,)):
            body = dict.fromkeys(methods, fail)
            odd = Meta("Odd\x1b[2J", bases, {**body, "__class__": property(fail), "__module__": module})
            value = object.__new__(odd) if not bases else bases[0].__new__(odd)
            error = refusal(pack, value)
            assert error.kind == "unsafe", (module, bases, error.cause)
            text = describe(value)
            assert text == "Odd\\x1b[2J", (module, bases)


def test_an_error_whose_text_cannot_be_had_is_named_all_the_same():
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    def dumps(value, **options):
        raise Mute

    assert refusal(pack, Model(1), pickle=dumps).cause == "Mute"


# --- what a peer may say ---------------------------------------------------------------------


def examples():
    """A value of each tag, with what lies beside it."""
    sparse = scipy.sparse.random(8, 8, 0.5, random_state=1)
    return [
        pack(value)
        for value in [
            {"a": [1, 2.5, None, True, "x", float("nan"), 2**80, b"abc", bytearray(b"d"), "\udc80"]},
            [1.5] * 100 + [2.5],
            list(range(100)),
            [True] * 100,
            ["a", "b\0"] * 50,
            ["a"] * 100,
            [{"a": n, "b": "x"} for n in range(70)],
            [(n, [n, 1.5]) for n in range(70)],
            (1, {2}, frozenset([3]), range(4), slice(5), ..., 1j),
            (datetime.datetime.now(zoneinfo.ZoneInfo("UTC")), datetime.timedelta(1), decimal.Decimal(1)),
            (
                fractions.Fraction(1, 2),
                uuid.UUID(int=1),
                pathlib.PurePosixPath("a"),
                pathlib.PureWindowsPath("b"),
            ),
            (collections.Counter("ab"), collections.defaultdict(list), collections.deque([1], 2)),
            (array.array("i", [1]), memoryview(bytes(8)).cast("i", (1, 2))),
            np.arange(6.0).reshape(2, 3),
            np.zeros(2, [("a", "i4"), ("b", "f8", (2,))]),
            [np.float64(1), np.str_("a"), np.longdouble(1), np.ma.masked],
            list(np.arange(100.0)),
            np.array([1, "a"], object),
            np.array(["a", "b"], np.dtypes.StringDType(na_object=None)),
            np.ma.MaskedArray([1, 2], [0, 1], fill_value=3),
            *[sparse.asformat(form) for form in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")],
            np.zeros(10_000),
            bytes(50_000),
        ]
    ]


EXAMPLES = examples()
odd_numbers = some.sampled_from([-1, 0, 1, 2, 3, 7, 8, 64, 2**31, 2**53, 2**62, 2**63, 2**64, 1.5, True])
odd_nodes = some.one_of(
    odd_numbers,
    some.sampled_from(
        [None, "", "C", "F", "<f8", "|O", "O", "<f16/63", "V9999999999", "<U999999999", "d", "csr_array"]
    ),
    some.sampled_from(
        [[], {}, [0, 0], [0, 2**62], [[]], {"list": []}, {"ndarray": []}, {"range": [0, 10**12, 1]}]
    ),
    some.sampled_from(
        [
            {"pickle": [[0, 1], []]},
            {"nosuch": []},
            {"pandas.nosuch": []},
            {"arrow.nosuch": {}},
            {"numpy.nosuch": 1},
            {"__class__": 1},
            {"ndarray": ["O", [1], "C", 0, "ndarray"]},
        ]
    ),
)


def places_in(node, path=()):
    """All places in a tree of JSON."""
    yield path
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield from places_in(value, (*path, key))


def put(node, path, value):
    if not path:
        return value
    node = dict(node) if isinstance(node, dict) else list(node)
    node[path[0]] = put(node[path[0]], path[1:], value)
    return node


def open_hostile(tree, sizes, contents=None):
    """Go as far as it goes; all that may come out is a value or a ValuesError."""
    with contextlib.suppress(ValuesError):
        layout = Layout(tree, sizes)
        for view in layout.allocate():
            if contents is not None:
                view[:] = (contents * (len(view) // len(contents) + 1))[: len(view)]
        value = layout.build()
        if (
            scipy.sparse.issparse(value)
            and len(value.shape) == 2
            and 0 < min(value.shape) <= max(value.shape) < 1000
        ):
            value @ np.ones(value.shape[1])


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(_values, "free_memory", lambda: 50_000_000)


@settings(quick, max_examples=220)
@given(some.sampled_from(EXAMPLES), some.data())
def test_a_tree_that_was_tampered_with_is_refused_and_nothing_else(little_memory, packed, data):
    tree = json.loads(packed.tree)
    sizes = [len(buffer) for buffer in packed.buffers]
    for _ in range(data.draw(some.integers(1, 2))):
        path = data.draw(some.sampled_from(list(places_in(tree))))
        tree = put(tree, path, data.draw(odd_nodes))
    if data.draw(some.booleans()):
        sizes = data.draw(
            some.lists(some.sampled_from([*sizes, 0, 1, 8, 2**62, -1, 2**40, True]), max_size=3)
        )
    open_hostile(json.dumps(tree), sizes, data.draw(some.sampled_from([None, b"\0", b"\xff", b"\x07\0\0\0"])))


@settings(quick, max_examples=150)
@given(some.sampled_from(EXAMPLES), some.data())
def test_text_that_was_tampered_with_is_refused_and_nothing_else(little_memory, packed, data):
    position = data.draw(some.integers(0, len(packed.tree)))
    length = data.draw(some.integers(0, 3))
    tree = packed.tree[:position] + data.draw(some.text(max_size=4)) + packed.tree[position + length :]
    open_hostile(tree, [len(buffer) for buffer in packed.buffers])


@settings(quick, max_examples=150)
@given(some.sampled_from(EXAMPLES), some.binary(min_size=1, max_size=64))
def test_any_bytes_in_the_buffers_make_a_value_or_an_error(packed, contents):
    open_hostile(packed.tree, [len(buffer) for buffer in packed.buffers], contents)


@quick
@given(
    some.recursive(
        odd_nodes | some.text(max_size=4),
        lambda inner: (
            some.lists(inner, max_size=4)
            | some.dictionaries(
                some.sampled_from(
                    [*_values._CODECS, *_arrays.decoders, "value", "heap", "tree", "type", "pickle"]
                ),
                inner,
                max_size=3,
            )
        ),
    )
)
def test_made_up_trees_are_refused_and_nothing_else(little_memory, tree):
    for envelope in (tree, {"value": tree}, {"value": tree, "heap": 0}):
        open_hostile(json.dumps(envelope), [8])


@pytest.mark.parametrize(
    ("tree", "sizes"),
    [
        ("", []),
        ("[" * 100_000, []),
        ('{"value":' + "[" * 1000 + "]" * 1000 + "}", []),
        ('{"value":' + "9" * 5000 + "}", []),
        ('{"value":NaN}', []),
        ('{"value":"' + '\\"' * 400_000, []),
        ("x" * (_values.LONGEST_TREE + 1), []),
        ('{"value":1}', [8]),
        ('{"value":{"bytes":0}}', []),
        ('{"value":[{"bytes":0},{"bytes":0}]}', [8]),
        ('{"value":{"bytes":true}}', [8, 8]),
        ('{"value":{"bytes":-1}}', [8]),
        ('{"value":[{"bytes":[0,5]},{"bytes":[4,4]}],"heap":0}', [8]),
        ('{"value":[{"bytes":[0,4]}],"heap":0}', [8]),
        ('{"value":{"ndarray":["<f8",[3],"C",0,"ndarray"]}}', [25]),
        ('{"value":{"ndarray":["<f8",[4611686018427387904,4],"C",0,"ndarray"]}}', [0]),
        ('{"value":{"ndarray":["|O",[1],"C",0,"ndarray"]}}', [8]),
        ('{"value":{"ndarray":["<f8",[-1,-1],"C",0,"ndarray"]}}', [8]),
        (
            '{"value":{"ndarray":[{"size":8,"aligned":false,"fields":[["a",null,4,"<f8",[]]]},[1],"C",0,"ndarray"]}}',
            [8],
        ),
        (
            '{"value":{"ndarray":[{"size":8,"aligned":false,"fields":[["a",null,0,"<i4",[]],["a",null,4,"<i4",[]]]},[1],"C",0,"ndarray"]}}',
            [8],
        ),
        ('{"value":{"set":[{"range":[0,1000000000000,1]}]}}', []),
        ('{"value":{"Fraction":["1e1000000000",1]}}', []),
        ('{"value":{"rows":["tuple",null,[[1,2],[1]]]}}', []),
        ('{"value":{"rows":["tuple",null,[]]}}', []),
        ('{"value":{"rows":["tuple",null,[{"range":[0,1000000000000,1]}]]}}', []),
        ('{"value":{"rows":["dict",["a"],[[1],[2]]]}}', []),
        ('{"value":{"rows":["dict",[["a"]],[[1]]]}}', []),
        ('{"value":{"rows":["set",null,[[1]]]}}', []),
        ('{"value":{"texts":[1,0,null]}}', [100]),
        ('{"value":{"strings":[[8],true,[],{"bytes":0}]}}', [8]),
        ('{"value":{"nosuch":1}}', []),
        ('{"value":{"a":1,"b":2}}', []),
        ('{"tree":0,"pickle":false,"type":"list"}', [8, 8]),
    ],
    ids=range(33),
)
def test_a_tree_that_makes_no_sense_is_refused_at_once(tree, sizes):
    def open_it():
        layout = Layout(tree, sizes)
        for view in layout.allocate():
            view[:] = bytes(len(view))
        layout.build()

    assert refusal(open_it).kind == "corrupt"


def test_more_than_there_is_memory_for_is_refused_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(_values, "free_memory", lambda: 10**9)
    layout = Layout('{"value":{"bytes":0}}', [900_000_000])
    error = refusal(layout.allocate)
    assert (error.kind, error.message) == ("memory", "what comes needs `900.0 MB` of memory here")
    assert error.cause == "1.0 GB are free"
    numbers = Layout('{"value":{"column":["q",50000000,0]}}', [400_000_000])
    assert refusal(numbers.allocate).kind == "memory"


def test_what_building_takes_is_counted_for_a_tree_that_comes_late(monkeypatch):
    layout = Layout('{"tree":0,"pickle":false,"type":"list"}', [100_000_000])
    monkeypatch.setattr(_values, "free_memory", lambda: 10**9)
    assert refusal(layout.allocate).kind == "memory"


PRIME = 2**61 - 1  # by which Python divides a number for its hash


def hostile_keys(count):
    return {
        "ints": [number * PRIME for number in range(10, 10 + count)],
        "fractions": [fractions.Fraction(number * PRIME + 1, 3) for number in range(10, 10 + count)],
        "decimals": [decimal.Decimal(number * PRIME) for number in range(10, 10 + count)],
        "tuples": [(1, number * PRIME) for number in range(10, 10 + count)],
        "half of them": [*range(count), *(number * PRIME for number in range(10, 10 + count))],
    }


@pytest.mark.parametrize("name", hostile_keys(1))
def test_keys_that_a_hash_table_is_slow_with_are_refused(name):
    keys = hostile_keys(1100)[name]
    assert max(collections.Counter(map(hash, keys)).values()) >= 1100
    packed = pack([keys])
    (node,) = json.loads(open_tree(packed))["value"]
    for kind in ("set", "frozenset", "dict", "OrderedDict", "Counter", "defaultdict"):
        content = [node] if "set" in kind else [node, list(range(len(keys)))]
        content = [None, *content] if kind == "defaultdict" else content
        envelope = json.loads(open_tree(packed))
        envelope["value"] = {kind: content}
        error = refusal(receive(late(packed, envelope)).build)
        assert (error.kind, error.cause) == ("corrupt", "too many keys have the same hash")


def open_tree(packed):
    outer = json.loads(packed.tree)
    return bytes(packed.buffers[outer["tree"]]).decode() if "tree" in outer else packed.tree


def late(packed, envelope):
    """The same buffers under another tree, which comes as a buffer of its own."""
    outer = json.loads(packed.tree)
    buffers = packed.buffers[: outer.get("tree", len(packed.buffers))]
    tree = json.dumps({"tree": len(buffers), "pickle": False, "type": "odd"})
    return packed._replace(tree=tree, buffers=[*buffers, memoryview(json.dumps(envelope).encode())])


@pytest.mark.parametrize(
    "keys",
    [
        range(20_000),
        range(-20_000, 0),
        [number / 7 for number in range(-5000, 5000)],
        [2.0**number for number in range(-1000, 1000)],
        [2**number for number in range(3000)],
        [number * PRIME for number in range(900)],
        [*range(3000), *(number + 0.5 for number in range(3000))],
        [decimal.Decimal(number) / 100 for number in range(-3000, 3000)],
        [fractions.Fraction(1, number) for number in range(1, 3000)],
        [(x, y) for x in range(-50, 50) for y in range(50)],
        [complex(x, y) for x in range(-50, 50) for y in range(50)],
        [str(number) for number in range(5000)],
        [None, True, "a", b"a", 2, *(datetime.date.fromordinal(day) for day in range(1, 5000))],
    ],
    ids=range(13),
)
def test_many_honest_keys_cross(keys):
    for value in (set(keys), frozenset(keys), dict.fromkeys(keys), collections.Counter(keys)):
        assert cross(value) == value
    value = collections.OrderedDict.fromkeys(keys, 1)
    assert_same(cross(value), value)
    value = collections.defaultdict(int, value)
    assert_same(cross(value), value)


def test_keys_of_rows_are_names_only():
    keys = json.dumps([number * PRIME for number in range(10)])
    columns = json.dumps([[1]] * 10)
    tree = f'{{"value":{{"rows":["dict",{keys},{columns}]}}}}'
    assert refusal(Layout, tree, []).kind == "corrupt"


@pytest.mark.parametrize("kind", ["texts", "pandas.text"])
def test_texts_are_counted_and_measured_before_they_are_cut_apart(kind):
    def envelope(count, lengths):
        texts = [count, 0, lengths]
        content = texts if kind == "texts" else ["object", count, "joined", texts, None]
        return json.dumps({"value": {kind: content}})

    pytest.importorskip("pandas")  # to import it takes memory too
    size = 2_000_000
    longest = [1, *[size - 2, -(size - 2)] * 50, size - 1]
    for count, lengths in ((1, None), (size // 2, None), (102, longest), (2, [size, size])):
        layout = Layout(envelope(count, lengths), [size])
        for view in layout.allocate():
            view[:] = b"a\0" * (size // 2) if lengths is None else b"a" * size
        tracemalloc.start()
        try:
            error = refusal(layout.build)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert error.kind == "corrupt"
        assert peak < layout.total + layout._reader.extra + 200_000


def test_many_small_texts_are_charged_for_before_they_are_made(monkeypatch):
    value = [f"{number % 100:02}" for number in range(500_000)]
    packed = pack(value)
    sizes = [len(buffer) for buffer in packed.buffers]
    assert sum(sizes) < 2_000_000
    monkeypatch.setattr(_values, "free_memory", lambda: 40_000_000)
    assert refusal(Layout(packed.tree, sizes).allocate).kind == "memory"
    monkeypatch.setattr(_values, "free_memory", lambda: 60_000_000)
    tracemalloc.start()
    try:
        layout = receive(packed)
        layout.build()
        assert tracemalloc.get_traced_memory()[1] <= layout.total + layout._reader.extra
    finally:
        tracemalloc.stop()


def test_a_fraction_that_would_take_minutes_to_shorten_is_refused():
    packed = pack([3**1_000_000, 5**500_000])
    envelope = json.loads(packed.tree)
    envelope["value"] = {"Fraction": envelope["value"]}
    error = refusal(receive(packed._replace(tree=json.dumps(envelope))).build)
    assert "long numbers" in error.message


def test_free_memory_is_known_on_linux():
    free = _values.free_memory()
    assert free is None or 0 < free < 1 << 50
    if sys.platform == "linux":
        assert free is not None


def test_a_long_tree_comes_as_a_buffer_and_all_in_it_is_right():
    value = {
        "many": [{str(n): [n, (n,), "é"]} for n in range(2500)],
        "array": np.arange(100_000, dtype=np.uint8).reshape(100, 1000),
        "fortran": np.asfortranarray(np.arange(100_000.0).reshape(100, 1000)),
        "bytes": bytes(100_000),
        "bytearray": bytearray(100_000),
        "text": "x" * 100_000,
        "numbers": list(range(100_000)),
    }
    packed = pack(value)
    assert len(packed.tree) < 100
    assert Layout(packed.tree, [len(buffer) for buffer in packed.buffers]).type == "dict"
    back = receive(packed).build()
    assert_same(value, back)
    back["bytearray"].append(1)
    assert "dict" in refusal(receive, packed, into=bytearray(3)).message


def test_a_long_tree_of_a_pickle_is_no_way_around_trust():
    packed = pack([Model(np.zeros(5000)) for _ in range(100)], pickle=cloudpickle.dumps)
    inner = packed.tree.encode()
    tree = json.dumps({"tree": len(packed.buffers), "pickle": False, "type": "list"})
    layout = receive(packed._replace(tree=tree, buffers=[*packed.buffers, memoryview(inner)]))
    assert not layout.is_pickle
    assert refusal(layout.build).kind == "unsafe"


def test_texts_of_the_peer_are_shown_without_what_a_terminal_would_obey():
    tree = json.dumps({"pickle": [[0, 1], []], "heap": 0, "type": "Evil\x1b]0;x\x07\u202e"})
    layout = Layout(tree, [1])
    assert layout.type == "Evil\\x1b]0;x\\x07\\u202e"
    assert "\\x1b" in refusal(Layout, json.dumps({"value": {"\x1b[2J": 1}}), []).cause


def test_a_time_zone_is_no_path():
    tree = '{"value":{"ZoneInfo":["../../../etc/passwd"]}}'
    layout = Layout(tree, [])
    layout.allocate()
    assert refusal(layout.build).kind == "versions"


# --- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "int"),
        (None, "NoneType"),
        (np.zeros((3, 2)), "ndarray (3, 2) float64, 48 bytes"),
        (np.zeros((1000, 1000)), "ndarray (1000, 1000) float64, 8.0 MB"),
        (np.zeros(2, [("a", "i4"), ("b", "i4")]), "ndarray (2,) of 2 fields, 16 bytes"),
        (scipy.sparse.eye_array(3).tocsr(), "csr_array 3x3 float64, 52 bytes"),
        ([1.0] * 1000, "list of 1000, 8.0 kB"),
        (b"abc", "bytes, 3 bytes"),
        (b"a", "bytes, 1 byte"),
    ],
    ids=str,
)
def test_a_value_is_described_in_a_few_words(value, text):
    packed = pack(value)
    assert packed.text == text
    assert packed.text.startswith(describe(value))
    assert packed.type == text.partition(" ")[0].rstrip(",")
    assert Layout(packed.tree, [len(buffer) for buffer in packed.buffers]).type == packed.type


def test_names_are_read_as_python_reads_them():
    assert check_name("größe") == "größe"
    assert check_name("ﬁ") == "fi"
    for name in [
        "",
        "a b",
        "1a",
        "my.df",
        "for",
        "__class__",
        "a\0",
        None,
        3,
        "x" * 300 + "!",
        "\x1b[2J",
        "\ud800",
    ]:
        assert refusal(check_name, name).kind == "name"


def test_versions_are_those_of_what_is_installed():
    found = versions()
    assert found["python"] == "{}.{}.{}".format(*sys.version_info)
    assert found["numpy"] == np.__version__
    assert "torch" not in found or found["torch"]


def test_versions_and_builtins_import_no_library():
    code = "from remoter import _values as v; v.versions(); v.pack({'a': [1, 2.5, b'x']}); import sys; print(sorted({'numpy', 'pandas', 'torch', 'pickle'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- a file that travels ---------------------------------------------------------------------


@pytest.mark.parametrize("module", [_values, _arrays], ids=lambda module: module.__name__)
def test_the_files_are_python_3_8_and_need_nothing_but_the_standard_library(module):
    text = pathlib.Path(module.__file__).read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    imported |= {
        node.module.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level  # ours: for the types only
    }
    assert imported <= sys.stdlib_module_names


def load(path, name="values_by_path"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FRAMES = '''
"""Stands for `_frames.py`: what it is given, and how it is found."""

def encode(value, writer):
    return {"pandas.box": [writer.data(value.content), writer.node(value.more)]}

def describe(value):
    return f"Box of {len(value.content)}"

def check(content, reader):
    data, node = content
    size = reader.check_data(data)
    facts = reader.check(node)
    reader.charge(1)
    if facts.type != "list":
        reader.refuse("no list", facts.type)
    return facts._replace(type="Box", length=size)

def build(content, reader):
    return "box", reader.data(content[0]), reader.build(content[1])

decoders = {"pandas.box": (check, build)}
'''


def test_frames_plug_in_from_beside_when_we_are_loaded_by_path(home, monkeypatch):
    for name, text in [("_values.py", MODULE.read_text(encoding="utf-8")), ("_frames.py", FRAMES)]:
        (home / name).write_text(text, encoding="utf-8")
    ours = load(home / "_values.py")
    monkeypatch.setitem(sys.modules, "pandas.boxes", types.ModuleType("pandas.boxes"))
    kind = type("Box", (), {"__module__": "pandas.boxes", "content": bytes(100_000), "more": [1, (2,)]})
    assert (
        refusal(ours.pack, kind(), expect=ours.ValuesError).kind == "unsafe"
    )  # it only says that it is theirs
    sys.modules["pandas.boxes"].Box = kind
    box = kind()
    packed = ours.pack(box)
    assert packed.text == "Box of 100000, 100.0 kB"
    layout = ours.Layout(packed.tree, [len(buffer) for buffer in packed.buffers])
    assert layout.type == "Box"
    for view, buffer in zip(layout.allocate(), packed.buffers, strict=True):
        view[:] = buffer
    name, content, more = layout.build()
    assert (name, bytes(content), more) == ("box", bytes(100_000), [1, (2,)])
    content[0] = 1
    box.more = 3
    packed = ours.pack(box)
    error = refusal(ours.Layout, packed.tree, [len(packed.buffers[0])], expect=ours.ValuesError)
    assert error.cause == "no list: int"


def test_two_interpreters_understand_one_another():
    """What a process packs that has loaded the file by its path, another opens that has remoter."""
    code = (
        "import importlib.util, sys, struct\n"
        f"spec = importlib.util.spec_from_file_location('v', {str(MODULE)!r})\n"
        "v = importlib.util.module_from_spec(spec); spec.loader.exec_module(v)\n"
        "packed = v.pack({'a': [1.5] * 10_000, 'b': ('x', b'y' * 100_000)})\n"
        "sys.stdout.write(packed.tree + '\\n'); sys.stdout.flush()\n"
        "for buffer in packed.buffers: sys.stdout.buffer.write(struct.pack('<Q', len(buffer)) + bytes(buffer))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True)
    assert done.stderr == b""
    stream = io.BytesIO(done.stdout)
    tree, buffers = stream.readline().decode().strip(), []
    while head := stream.read(8):
        buffers.append(memoryview(stream.read(*struct.unpack("<Q", head))))
    back = receive(_values.Packed(tree, buffers, "", "", False)).build()
    assert back == {"a": [1.5] * 10_000, "b": ("x", b"y" * 100_000)}
