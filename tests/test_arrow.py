"""pyarrow's and polars' objects cross and are what they were; what a peer makes up is refused."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
import random
import subprocess
import sys
from typing import Any

import numpy
import polars
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remoter import _arrow, _values
from remoter._values import Layout, ValuesError, pack

from .test_frames import content_of, cross, memory_of, receive, take_apart

ROWS = 20
INTS = [number if number % 5 else None for number in range(ROWS)]
TEXTS = [None if number is None else "é" * number for number in INTS]
LISTS = [None if number is None else [*range(number % 4), None] for number in INTS]


def every_kind_of_array() -> dict[str, Any]:
    int64, field = pyarrow.array(INTS, pyarrow.int64()), pyarrow.field
    numbers = (
        *(pyarrow.int8(), pyarrow.uint64(), pyarrow.float32(), pyarrow.float64(), pyarrow.time64("ns")),
        *(
            pyarrow.timestamp("us"),
            pyarrow.timestamp("ns", "Europe/Berlin"),
            pyarrow.timestamp("s", "+05:30"),
        ),
        *(pyarrow.duration("ms"), pyarrow.decimal128(30, 3), pyarrow.decimal256(60, 4)),
    )
    texts = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
    blobs = (pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view())
    lists = (pyarrow.list_(pyarrow.int64()), pyarrow.large_list(field("x", pyarrow.int8())))
    pairs = [None if number is None else [(str(n), n) for n in range(number % 4)] for number in INTS]
    structs = [
        None if number is None else {"a": number, "b": [str(number)] * (number % 3)} for number in INTS
    ]
    dictionary = pyarrow.array(TEXTS).dictionary_encode()
    found = {str(kind): int64.cast(kind) for kind in numbers}
    found |= {str(kind): pyarrow.array(INTS, pyarrow.int32()).cast(kind) for kind in (pyarrow.date32(),)}
    found |= {str(kind): pyarrow.array(TEXTS, kind) for kind in texts}
    found |= {str(kind): pyarrow.array([t and t.encode() for t in TEXTS], kind) for kind in blobs}
    found |= {str(kind): pyarrow.array(LISTS, kind) for kind in lists}
    return found | {
        "float16": int64.cast(pyarrow.float32()).cast(pyarrow.float16()),
        "date64": pyarrow.array([datetime.date(2020, 1, 1), None] * 10, pyarrow.date64()),
        "time32": pyarrow.array(INTS, pyarrow.int32()).cast(pyarrow.time32("ms")),
        "bool": pyarrow.array([None if number is None else number % 2 == 0 for number in INTS]),
        "null": pyarrow.nulls(ROWS),
        "binary of 3": pyarrow.array([b"abc", None] * 10, pyarrow.binary(3)),
        "binary of 0": pyarrow.array([b"", None] * 10, pyarrow.binary(0)),
        "months": pyarrow.array([(1, 2, 3), None] * 10, pyarrow.month_day_nano_interval()),
        "lists of 2": pyarrow.array([n and [n, None] for n in INTS], pyarrow.list_(pyarrow.int16(), 2)),
        "lists of 0": pyarrow.array([[], None] * 10, pyarrow.list_(pyarrow.int16(), 0)),
        "struct": pyarrow.array(structs),
        "struct of nothing": pyarrow.array([{}, None] * 10, pyarrow.struct([])),
        "map": pyarrow.array(pairs, pyarrow.map_(pyarrow.string(), pyarrow.int8())),
        "dictionary": dictionary,
        "ordered": pyarrow.DictionaryArray.from_arrays(
            pyarrow.array([0, 1, None, 0] * 5, pyarrow.int8()), pyarrow.array(["x", "y"]), ordered=True
        ),
        "lists of dictionary": pyarrow.ListArray.from_arrays(
            pyarrow.array(range(ROWS + 1), pyarrow.int32()), dictionary
        ),
        "lists of structs": pyarrow.array([[{"a": 1, "b": "x"}], None, [], [{"a": None, "b": None}]] * 5),
        "uuid": pyarrow.array([b"0123456789abcdef", None] * 10, pyarrow.uuid()),
        "json": pyarrow.array(['{"a": 1}', None] * 10, pyarrow.json_()),
        "bool8": pyarrow.ExtensionArray.from_storage(
            pyarrow.bool8(), pyarrow.array([1, 0, None, 1] * 5, pyarrow.int8())
        ),
    }


@pytest.mark.parametrize("kind", every_kind_of_array())
def test_an_array_of_every_kind_comes_back_as_it_was_also_in_part(kind: str) -> None:
    array = every_kind_of_array()[kind]
    parts = [array] + [
        array.slice(start, n) for start, n in ((3, 12), (8, 12), (16, 4), (0, 0), (5, 0), (11, 9))
    ]
    for part in [*parts, parts[1].slice(2, 7)]:
        again = cross(part)
        assert type(again) is type(part)
        assert again.type == part.type
        assert again.equals(part)
    chunked = pyarrow.chunked_array([array.slice(0, 3), array.slice(3, 0), array.slice(3)])
    assert cross(chunked).equals(chunked)
    assert cross(chunked.slice(0, 0)).equals(chunked.slice(0, 0))


def everything() -> pyarrow.Table:
    table = pyarrow.table(every_kind_of_array())
    field = table.schema.field(0).with_metadata({"unit": "m"})
    return table.set_column(0, field, table.column(0)).replace_schema_metadata(
        {"k": b"\xff\0", "pandas": "{"}
    )


def test_a_table_comes_back_as_it_was_with_its_metadata() -> None:
    table = everything()
    twice = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    parts = [
        table.slice(3, 9),
        table.slice(0, 0),
        table.select([]),
        pyarrow.concat_tables([table, table.slice(5)]),
    ]
    for part in [table, *parts, twice, pyarrow.table({})]:
        again = cross(part)
        assert again.num_rows == part.num_rows
        assert again.schema.equals(part.schema, check_metadata=True)
        assert again.equals(part, check_metadata=True)
    (batch,) = table.to_batches()
    assert cross(batch).equals(batch, check_metadata=True)
    assert cross(batch.slice(0, 0)).equals(batch.slice(0, 0))


def test_many_small_chunks_become_one_and_others_stay_apart() -> None:
    small = pyarrow.chunked_array([[number] for number in range(500)])
    assert cross(small).num_chunks == 1
    assert cross(small).equals(small)
    large = pyarrow.chunked_array([numpy.arange(100_000)] * 3)
    assert cross(large).num_chunks == 3
    same = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    assert cross(pyarrow.chunked_array([same, same])).num_chunks == 1
    other = pyarrow.array(["c"]).dictionary_encode()
    assert cross(pyarrow.chunked_array([same, other])).equals(pyarrow.chunked_array([same, other]))


def test_nobody_copies_an_array_and_of_a_part_only_the_part_is_sent() -> None:
    array = pyarrow.array(numpy.arange(100_000))
    there = numpy.frombuffer(array.buffers()[1], numpy.uint8)
    assert numpy.shares_memory(memory_of(pack(array).buffers[0]), there)
    part = pack(array.slice(50_000, 20_000)).buffers
    assert numpy.shares_memory(memory_of(part[0]), there)
    assert sum(map(len, part)) == 160_000
    texts = pyarrow.table({"t": [f"text {number}" for number in range(50_000)]})
    assert sum(map(len, pack(texts.slice(40_000, 10)).buffers)) < 500


numbers = st.none() | st.integers(-(2**31), 2**31)
texts = st.none() | st.text(st.characters(codec="utf-8"), max_size=4)
nested = st.none() | st.lists(numbers, max_size=3)
pairs = st.dictionaries(st.integers(0, 9), numbers).map(lambda found: list(found.items()))
KINDS = {
    pyarrow.int64(): numbers,
    pyarrow.bool_(): st.none() | st.booleans(),
    pyarrow.string(): texts,
    pyarrow.large_list(pyarrow.int64()): nested,
    pyarrow.list_(pyarrow.list_(pyarrow.int64())): st.none() | st.lists(nested, max_size=3),
    pyarrow.list_(pyarrow.int64(), 1): st.none() | st.lists(numbers, min_size=1, max_size=1),
    pyarrow.struct({"a": pyarrow.int64(), "b": pyarrow.string()}): (
        st.none() | st.fixed_dictionaries({"a": numbers, "b": texts})
    ),
    pyarrow.map_(pyarrow.int8(), pyarrow.int64()): st.none() | pairs,
}


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(list(KINDS)))
def test_any_part_of_any_array_comes_back_as_it_was(data: st.DataObject, kind: Any) -> None:
    array = pyarrow.array(data.draw(st.lists(KINDS[kind], max_size=30)), kind)
    start = data.draw(st.integers(0, len(array)))
    part = array.slice(start, data.draw(st.integers(0, len(array) - start)))
    again = cross(part)
    assert again.equals(part)
    assert again.to_pylist() == part.to_pylist()
    again.validate(full=True)


class Mine(pyarrow.ExtensionType):
    """Of the user: has a name that a peer could give to his data too."""

    def __init__(self) -> None:
        super().__init__(pyarrow.int8(), "arrow.uuid.mine")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Mine:
        raise AssertionError("nobody may ask for this")


def test_what_does_not_cross_is_refused_and_a_column_is_named() -> None:
    mine = pyarrow.ExtensionArray.from_storage(Mine(), pyarrow.array([1], pyarrow.int8()))
    union = pyarrow.UnionArray.from_sparse(pyarrow.array([0], pyarrow.int8()), [pyarrow.array([1])])
    runs = pyarrow.RunEndEncodedArray.from_arrays([3], [1.5])
    for array, word in ((mine, "mine"), (union, "union"), (runs, "run_end")):
        with pytest.raises(ValuesError, match=word) as caught:
            pack(array)
        assert caught.value.kind == "unsafe"
        with pytest.raises(ValuesError, match="column `odd`") as caught:
            pack(pyarrow.table({"odd": array}))
        assert caught.value.kind == "unsafe"
    with pytest.raises(ValuesError) as caught:
        pack(pyarrow.schema([]))
    assert caught.value.kind == "unsafe"


def test_what_they_are_is_said_in_a_few_words() -> None:
    assert _values.describe(everything()).startswith("Table 20x")
    assert _values.describe(pyarrow.array([1])) == "Int64Array 1"
    assert _values.describe(polars.DataFrame({"a": [1, 2]})) == "polars DataFrame 2x1"
    assert _values.describe(polars.Series([1, 2])) == "polars Series 2 Int64"


# --- polars ---

ENUM = polars.Enum(["a", "b", "z"])


def every_kind_of_column() -> polars.DataFrame:
    moment, day = datetime.datetime(2020, 1, 1), datetime.date(2020, 1, 1)
    types: dict[str, tuple[list[Any], Any]] = {
        "i8": ([1, 2, None], polars.Int8),
        "u64": ([1, 2**64 - 1, None], polars.UInt64),
        "f32": ([1, None, float("nan")], polars.Float32),
        "bool": ([True, None, False], polars.Boolean),
        "text": (["é", None, "a text that is longer than twelve"], polars.String),
        "bytes": ([b"x", None, b"\0"], polars.Binary),
        "null": ([None] * 3, polars.Null),
        "date": ([day, None, day], polars.Date),
        "time": ([datetime.time(1, 2), None, datetime.time(3)], polars.Time),
        "ms": ([moment, None, moment], polars.Datetime("ms")),
        "zone": ([None, None, None], polars.Datetime("ns", "Europe/Berlin")),
        "delta": ([datetime.timedelta(1), None, datetime.timedelta(0)], polars.Duration("us")),
        "decimal": ([decimal.Decimal("1.50"), None, decimal.Decimal(2)], polars.Decimal(20, 2)),
        "category": (["a", "b", None], polars.Categorical),
        "enum": (["a", "z", None], ENUM),
        "list": ([[1], None, [None, 2]], polars.List(polars.Int16)),
        "array": ([[1, 2], None, [3, None]], polars.Array(polars.Int8, 2)),
        "arrays": ([[[1, 2], [3, 4]]] * 3, polars.Array(polars.Int8, (2, 2))),
        "struct": ([{"x": 1, "y": ["a"]}, None, {"x": None, "y": None}], None),
        "list of enum": ([["a"], ["b", "a"], None], polars.List(ENUM)),
        "list of category": ([["a"], ["b", "a"], None], polars.List(polars.Categorical)),
        "struct of enum": ([{"q": "a", "w": 1}] * 3, polars.Struct({"q": ENUM, "w": polars.Int8})),
    }
    return polars.DataFrame([polars.Series(name, values, kind) for name, (values, kind) in types.items()])


def test_a_frame_of_polars_comes_back_as_it_was() -> None:
    frame = every_kind_of_column()
    chunked = polars.concat([frame, frame], rechunk=False)
    parts = [frame.slice(1, 1), frame.head(0), chunked, frame.filter(polars.col("bool")), polars.DataFrame()]
    for part in [frame, *parts]:
        again = cross(part)
        assert again.schema == part.schema
        assert again.equals(part)


@pytest.mark.parametrize("name", every_kind_of_column().columns)
def test_a_series_of_polars_comes_back_as_it_was(name: str) -> None:
    series = every_kind_of_column()[name]
    for part in (series, series.slice(1, 1), series.head(0), series.alias("")):
        again = cross(part)
        assert again.dtype == part.dtype
        assert again.equals(part, check_names=True, check_dtypes=True)


def test_a_plan_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValuesError, match="no rows yet") as caught:
        pack(polars.LazyFrame({"a": [1]}))
    assert caught.value.kind == "kind"
    assert ".collect()" in caught.value.hints[0]


@pytest.mark.parametrize(
    "series",
    [
        polars.Series([object()]),
        polars.Series([1], dtype=polars.Int128),
        polars.Series([["a", "b"]], dtype=polars.Array(ENUM, 2)),
    ],
    ids=lambda series: str(series.dtype)[:9],
)
def test_a_column_of_polars_that_arrow_cannot_carry_is_refused(series: polars.Series) -> None:
    with pytest.raises(ValuesError, match="column") as caught:
        pack(series)
    assert caught.value.kind == "unsafe"


# --- what a peer makes up ---


def test_an_old_pyarrow_is_not_shown_what_a_peer_made(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        take_apart(value) for value in (pyarrow.array([1]), polars.Series([1]), pyarrow.table({"a": [1]}))
    ]
    monkeypatch.setattr(pyarrow, "__version__", "14.0.0")
    for tree, sizes, stream in parts:
        with pytest.raises(ValuesError, match=r"14\.0\.1 or later") as caught:
            receive(json.dumps(tree), sizes, stream)
        assert caught.value.kind == "versions"


def test_numbers_that_arrow_would_follow_out_of_its_memory_are_refused() -> None:
    texts = pyarrow.array(["ab", "c", ""], pyarrow.large_string())
    lists = pyarrow.array([[1], [2, 3]], pyarrow.list_(pyarrow.int8()))
    dictionary = pyarrow.array(["x", "y"]).dictionary_encode()
    for array, place, number in (
        *(
            (texts, 8, 200),
            (texts, 15, 127),
            (texts, 15, 255),
            (texts, 24, 9),
            (lists, 4, 200),
            (lists, 7, 255),
        ),
        *((dictionary, 0, 2), (dictionary, 3, 255)),
    ):
        tree, sizes, stream = take_apart(array)
        stream[place] = number
        with pytest.raises(ValuesError) as caught:
            receive(json.dumps(tree), sizes, stream)
        assert caught.value.kind == "corrupt"


def test_text_that_is_no_utf8_is_refused() -> None:
    for value in (pyarrow.array(["éé"]), polars.Series(["éé"])):
        tree, sizes, stream = take_apart(value)
        stream[stream.index("é".encode())] = 0xFF
        with pytest.raises(ValuesError) as caught:
            receive(json.dumps(tree), sizes, stream)
        assert caught.value.kind == "corrupt"


TABLE = pyarrow.table({"a": [1, 2], "s": [{"x": "y"}, None]})
POLAR = polars.DataFrame({"a": [1, 2], "e": polars.Series(["a", "b"], dtype=ENUM)})
LIES: dict[str, tuple[Any, str, list[Any], Any]] = {
    "more rows": (TABLE, "arrow.table", [1], 3),
    "more names": (TABLE, "arrow.table", [2], []),
    "a type that is none": (TABLE, "arrow.table", [0, 0, 1], "object"),
    "a function of pyarrow": (TABLE, "arrow.table", [0, 0, 1], "default_memory_pool"),
    "a wider type": (TABLE, "arrow.table", [0, 0, 1], "decimal128"),
    "a narrower type": (TABLE, "arrow.table", [0, 0, 1], "int8"),
    "texts for numbers": (TABLE, "arrow.table", [0, 0, 1], "string"),
    "a struct of more": (TABLE, "arrow.table", [0, 1, 1], ["struct", [["x", "string", True]] * 2]),
    "a decimal of 99": (TABLE, "arrow.table", [0, 0, 1], ["decimal128", 99, 0]),
    "a unit": (TABLE, "arrow.table", [0, 0, 1], ["timestamp", "y", None]),
    "a zone": (TABLE, "arrow.table", [0, 0, 1], ["timestamp", "us", "../../etc"]),
    "an extension": (TABLE, "arrow.table", [0, 0, 1], ["extension", "pandas.period", "int64"]),
    "its storage": (TABLE, "arrow.table", [0, 0, 1], ["extension", "arrow.uuid", "int64"]),
    "its name in metadata": (TABLE, "arrow.table", [3], [[["ARROW:extension:name", "x"]], [], []]),
    "other metadata": (TABLE, "arrow.table", [3], [[]]),
    "metadata for polars": (POLAR, "polars.frame", [0, 3], [[["a", "b"]], [], []]),
    "an enum of numbers": (POLAR, "polars.frame", [1, 0], ["enum", [0, None, [0, 0], [0, 0]]]),
    "no hints": (POLAR, "polars.frame", [1], []),
    "what polars does not open": (POLAR, "polars.frame", [0, 0, 0, 1], ["decimal64", 10, 0]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tree_that_lies_is_refused_before_it_is_given_memory(lie: str) -> None:
    value, tag, path, new = LIES[lie]
    tree, sizes, stream = take_apart(value)
    node = content_of(tree, tag)
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = new
    with pytest.raises(ValuesError) as caught:
        if lie == "its storage":
            receive(json.dumps(tree), sizes, stream)
        else:
            Layout(json.dumps(tree), sizes)
    assert caught.value.kind == "corrupt"


def test_a_type_that_is_nested_without_end_is_refused() -> None:
    array = pyarrow.array([1])
    for _ in range(60):
        array = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1], pyarrow.int32()), array)
    with pytest.raises(ValuesError) as caught:
        cross(array)
    assert caught.value.kind == "corrupt"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("null", [2**60, None]),
        (["struct", []], [2**60, None, []]),
        (["fixed_list", ["item", "int8", True], 0], [2**60, None, [0, None, [0, 0]]]),
        (["binary", 0], [2**60, None, [0, 0]]),
        (["binary", 2**31 - 1], [2**40, None, [0, 0]]),
        ("int64", [2**61, None, [0, 0]]),
    ],
)
def test_whoever_says_that_there_are_many_values_has_to_send_them(kind: Any, content: Any) -> None:
    tree = {"value": {"arrow.array": [kind, content]}, "heap": 0}
    with pytest.raises(ValuesError) as caught:
        receive(json.dumps(tree), [0], b"")
    assert caught.value.kind == "corrupt"


def test_where_polars_gives_up_it_is_an_error_like_others() -> None:
    class PanicException(BaseException):
        pass

    def panic() -> None:
        raise PanicException("at lib.rs")

    with pytest.raises(RuntimeError, match=r"at lib\.rs"):
        _arrow.calmly(panic)
    with pytest.raises(KeyboardInterrupt):
        _arrow.calmly(lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def damage_everything(seed: int, rounds: int) -> None:
    """Flip bytes in all that crosses and look at what is accepted: a wrong offset ends the process."""
    from .test_frames import damage

    rng = random.Random(seed)
    values = [*every_kind_of_array().values(), everything(), every_kind_of_column()]
    parts = [take_apart(value) for value in values]
    accepted = 0
    for _ in range(rounds):
        tree, sizes, stream = rng.choice(parts)
        tree, stream = json.loads(json.dumps(tree)), bytearray(stream)
        if rng.random() < 0.3 or not stream:
            damage(tree, rng)
        else:
            for _ in range(rng.choice([1, 1, 5])):
                stream[rng.randrange(len(stream))] = rng.choice([0, 1, 9, 127, 128, 255])
        try:
            value = receive(json.dumps(tree), sizes, stream)
        except ValuesError:
            continue
        accepted += 1
        # A date of the year 300,000 is none for Python.
        odd = (ValueError, TypeError, OverflowError, ArithmeticError, KeyError, NotImplementedError)
        with contextlib.suppress(*odd):
            assert len(value.to_pylist() if hasattr(value, "to_pylist") else value.to_arrow()) >= 0
    assert rounds * 0.05 < accepted < rounds * 0.95, accepted
    print("alive")


def test_no_damage_ends_the_process() -> None:
    script = "from tests.test_arrow import damage_everything; damage_everything(0, 2500)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80)
    assert done.stdout.endswith("alive\n"), done.stderr[-2000:]
