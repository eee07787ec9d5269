"""A stream in pieces, without a network: whatever is lost, damaged or lied about, what arrives is what was sent, or an error."""

import errno
import functools
import os
from collections import deque

import msgspec
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from remoter import TransferError
from remoter._messages import LONGEST_CHUNK, Chunk, Read
from remoter._pieces import (
    FIRST_WINDOW,
    LARGEST_WINDOW,
    MIB,
    MOST_READS,
    SMALLEST_WINDOW,
    STRAYS,
    USUAL_WINDOW,
    MemorySink,
    MemorySource,
    Meter,
    Receiving,
    Sending,
    error_from,
)

TEXT = b"all work and no play makes jack a dull boy. " * 50_000


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Wire:
    """Carries what one end asks and the other answers, in order, as a connection would."""

    def __init__(self, data, *, size=None, compress=None, position=0, clock=None):
        self.buffer = bytearray(len(data) if size is None else size)
        self.buffer[:position] = data[:position]
        self.sending = Sending(MemorySource([data]))
        self.sink = MemorySink([self.buffer])
        self.sink.position = position
        self.receiving = Receiving(self.sink, compress=compress, clock=clock or Clock())
        self.under_way = []
        self.chunks = []

    def ask(self):
        for read in self.receiving.asks():
            self.sending.asked(read)
        while self.sending.is_asked:
            chunk, payload = self.sending.next()
            self.chunks.append(chunk)
            self.under_way.append((chunk, bytes(payload)))

    def pass_one(self, damage=None):
        chunk, payload = self.under_way.pop(0)
        if damage is not None:
            chunk, payload = damage(chunk, payload)
        self.receiving.take(chunk, memoryview(payload))

    def cut(self):
        """The connection breaks: what is under way is lost."""
        self.under_way.clear()
        self.sending.forget()
        self.receiving.restart_asking()

    def run(self):
        while not self.receiving.is_complete:
            self.ask()
            self.pass_one()
        self.sink.finish()


def split(data, sizes):
    """The data in pieces of these sizes, and what remains."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# --- what arrives is what was sent -----------------------------------------------------------


@settings(deadline=None)
@given(
    st.binary(max_size=3000),
    st.lists(st.integers(0, 700), max_size=6),
    st.lists(st.integers(0, 700), max_size=6),
)
def test_memory_arrives_however_it_is_divided_at_either_end(data, here, there):
    pieces = [bytearray(piece) for piece in split(bytes(len(data)), there)]
    sink = MemorySink(pieces)
    source = MemorySource(split(data, here))
    assert source.size == sink.size == len(data)
    sending, receiving = Sending(source), Receiving(sink)
    while not receiving.is_complete:
        for read in receiving.asks():
            sending.asked(read)
        chunk, payload = sending.next()
        receiving.take(chunk, memoryview(payload))
    assert b"".join(pieces) == data
    assert sink.finish() == {}


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=2000), st.data())
def test_any_stretch_of_memory_can_be_read(data, draw):
    source = MemorySource(split(data, draw.draw(st.lists(st.integers(0, 300), max_size=8))))
    offset = draw.draw(st.integers(0, len(data) - 1))
    into = bytearray(draw.draw(st.integers(0, len(data) - offset)))
    source.read(offset, memoryview(into))
    assert into == data[offset : offset + len(into)]


def test_memory_of_any_shape_and_kind_can_be_sent_and_filled():
    numpy = pytest.importorskip("numpy")
    arrays = [
        numpy.arange(12.0).reshape(3, 4),
        numpy.array(5),
        numpy.empty((0, 3)),
        numpy.arange(3, dtype=">i2"),
    ]
    there = [numpy.zeros_like(array) for array in arrays]
    sink = MemorySink(there)
    sending = Sending(MemorySource(arrays))
    receiving = Receiving(sink)
    for read in receiving.asks():
        sending.asked(read)
    while sending.is_asked:
        chunk, payload = sending.next()
        receiving.take(chunk, memoryview(payload))
    assert all((one == other).all() for one, other in zip(arrays, there, strict=True))


def test_a_stream_of_nothing_is_complete_at_once():
    wire = Wire(b"")
    assert wire.receiving.is_complete
    assert wire.receiving.asks() == []
    assert wire.sink.finish() == {}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5 * MIB),
    st.integers(0, 3),
    st.lists(st.integers(0, 12), max_size=4),
    st.sampled_from([None, True]),
)
def test_whatever_is_lost_or_damaged_the_stream_arrives_whole(size, damaged, cuts, compress):
    data = os.urandom(size // 2) + TEXT[: size - size // 2]
    data = data[:size]
    wire = Wire(data, compress=compress)
    for passes in cuts:
        wire.ask()
        for _ in range(min(passes, len(wire.under_way))):
            wire.pass_one()
        wire.cut()
    for _ in range(damaged):
        wire.ask()
        if wire.under_way:
            wire.pass_one(lambda chunk, payload: (chunk, flip(payload, len(payload) // 2)))
    wire.run()
    assert wire.buffer == data


@settings(deadline=None)
@given(st.integers(0, 3000))
def test_a_stream_goes_on_from_where_its_sink_is(position):
    data = os.urandom(3000)
    wire = Wire(data, position=position)
    wire.run()
    assert wire.buffer == data
    assert sum(chunk.size for chunk in wire.chunks) == 3000 - position


# --- what is not believed --------------------------------------------------------------------


def test_a_chunk_that_comes_damaged_is_asked_for_three_times_and_no_more():
    wire = Wire(TEXT)
    for _ in range(3):
        wire.ask()
        wire.pass_one(lambda chunk, payload: (chunk, flip(payload, 7)))
        wire.under_way.clear()
    wire.ask()
    assert [chunk.offset for chunk in wire.chunks].count(0) == 4
    with pytest.raises(TransferError, match="damaged") as caught:
        wire.pass_one(lambda chunk, payload: (chunk, flip(payload, 7)))
    assert caught.value.id == "corrupt"
    assert wire.sink.position == 0


def test_a_chunk_out_of_order_is_dropped_and_an_endless_row_of_them_is_an_error():
    wire = Wire(TEXT)
    wire.ask()
    chunk, payload = wire.under_way[1]
    for _ in range(STRAYS):
        wire.receiving.take(chunk, memoryview(payload))
    assert wire.sink.position == 0
    with pytest.raises(TransferError, match="damaged"):
        wire.receiving.take(chunk, memoryview(payload))


def chunk_of(data, *, offset=0, size=None, packed=False):
    return Chunk(
        offset=offset,
        size=len(data) if size is None else size,
        digest=xxhash.xxh3_128_digest(data),
        packed=packed,
    )


@pytest.mark.parametrize(
    "chunk",
    [
        chunk_of(b"x" * 10, offset=95),
        chunk_of(b"x" * 10, offset=1 << 60),
        chunk_of(b"x" * 101),
        chunk_of(b"x" * 10, size=11),
        chunk_of(b"x" * 10, size=9),
    ],
)
def test_lies_about_offset_and_size_are_errors(chunk):
    wire = Wire(bytes(100))
    wire.ask()
    with pytest.raises(TransferError) as caught:
        wire.receiving.take(chunk, memoryview(b"x" * 10))
    assert caught.value.id == "corrupt"
    assert wire.sink.position == 0


def test_a_chunk_that_was_not_asked_for_or_is_longer_than_that_is_an_error():
    data = bytes(4 * MIB)
    wire = Wire(data)
    with pytest.raises(TransferError, match="damaged"):
        wire.receiving.take(chunk_of(data[:5]), memoryview(data[:5]))
    wire = Wire(data)
    wire.ask()
    huge = data[: LONGEST_CHUNK + 1]
    with pytest.raises(TransferError, match="damaged"):
        wire.receiving.take(chunk_of(huge), memoryview(huge))


@pytest.mark.parametrize("declared", [True, False])
def test_a_bomb_is_an_error_and_takes_no_memory(declared):
    import tracemalloc

    packer = zstandard.ZstdCompressor(level=1, write_content_size=declared)
    bomb = packer.compress(bytes(256 * MIB))
    assert len(bomb) < 100_000
    wire = Wire(bytes(MIB), compress=True)
    wire.ask()
    tracemalloc.start()
    try:
        with pytest.raises(TransferError) as caught:
            wire.receiving.take(chunk_of(bytes(1000), packed=True), memoryview(bomb))
        assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    finally:
        tracemalloc.stop()
    assert caught.value.id == "corrupt"


def test_a_frame_that_tells_the_right_size_and_holds_more_is_damaged():
    """The size in its head is what memory is taken for, so it is the rest that has to be refused."""
    wire = Wire(bytes(2000), compress=True)
    wire.ask()
    packer = zstandard.ZstdCompressor()
    payload = packer.compress(bytes(1000)) + packer.compress(bytes(1000))
    for _ in range(3):
        wire.receiving.take(chunk_of(bytes(1000), packed=True), memoryview(payload))
        assert wire.sink.position == 0
        wire.ask()
    with pytest.raises(TransferError, match="damaged"):
        wire.receiving.take(chunk_of(bytes(1000), packed=True), memoryview(payload))


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 20), st.integers(1, 400), st.binary(min_size=16, max_size=16))
def test_no_bytes_of_a_sender_do_more_than_fail(payload, offset, size, digest):
    wire = Wire(bytes(300))
    wire.ask()
    for packed in (True, False):
        try:
            wire.receiving.take(
                Chunk(offset=offset, size=size, digest=digest, packed=packed), memoryview(payload)
            )
        except TransferError as error:
            assert error.id == "corrupt"
    assert wire.sink.position == 0
    assert wire.buffer == bytes(300)


def test_a_receiver_that_asks_for_what_is_not_there_is_refused():
    sending = Sending(MemorySource([bytes(10)]))
    for read in (Read(offset=0, size=11), Read(offset=10, size=1), Read(offset=1 << 62, size=1 << 62)):
        with pytest.raises(TransferError) as caught:
            sending.asked(read)
        assert caught.value.id == "corrupt"
    for _ in range(MOST_READS):
        sending.asked(Read(offset=0, size=1))
    with pytest.raises(TransferError):
        sending.asked(Read(offset=0, size=1))


# --- how much, and how -----------------------------------------------------------------------


ZEROS = bytes(LONGEST_CHUNK)


@functools.cache
def zeros(size):
    return chunk_of(ZEROS[:size])


class Void:
    """A sink of any size that keeps nothing."""

    def __init__(self, size):
        self.size, self.position = size, 0

    def write(self, data):
        self.position += len(data)


def flow(size, rate, *, compress=None, ratio=1.0, seconds=60.0):
    """Carry zeros over a connection of that many bytes a second; after each chunk what is under way, and the last Read."""
    clock = Clock()
    receiving = Receiving(Void(size), compress=compress, clock=clock)
    reads, given = deque(), 0
    while not receiving.is_complete and clock.now < 100 + seconds:
        reads.extend(receiving.asks())
        length = min(LONGEST_CHUNK, reads[0].size - given)
        clock.now += length * (ratio if reads[0].compress else 1.0) / rate
        chunk = msgspec.structs.replace(zeros(length), offset=reads[0].offset + given)
        receiving.take(chunk, memoryview(ZEROS)[:length])
        given += length
        if given == reads[0].size:
            reads.popleft()
            given = 0
        if reads:
            yield reads[-1].offset + reads[-1].size - receiving.sink.position, reads[-1]


@pytest.mark.parametrize(
    ("rate", "first", "least", "most"),
    [
        (1e9, FIRST_WINDOW, USUAL_WINDOW // 2, LARGEST_WINDOW),
        (4e6, FIRST_WINDOW, FIRST_WINDOW, USUAL_WINDOW),
        (3e4, FIRST_WINDOW, SMALLEST_WINDOW // 2, SMALLEST_WINDOW),
    ],
)
def test_the_window_suits_the_connection(rate, first, least, most):
    under_way = [size for size, _ in flow(1 << 29, rate, compress=False, seconds=300)]
    assert under_way[0] <= first
    settled = under_way[len(under_way) // 2 : -100] or under_way[-3:]
    assert least <= max(settled) <= most
    assert max(under_way) <= LARGEST_WINDOW


def test_a_connection_that_broke_gets_a_smaller_window_for_heartbeats_have_to_pass():
    wire = Wire(bytes(3 * MIB))
    wire.ask()
    for _ in range(5):
        wire.cut()
        wire.ask()
    assert sum(len(payload) for _, payload in wire.under_way) == SMALLEST_WINDOW
    assert max(chunk.size for chunk, _ in wire.under_way) <= SMALLEST_WINDOW // 4
    wire.run()


@pytest.mark.parametrize(
    ("rate", "ratio", "expected"),
    [
        (1e9, 0.1, False),  # a fast connection: not even tried
        (1e7, 0.2, True),
        (1e7, 1.5, False),  # the processor is slower than the connection
    ],
)
def test_compressing_is_asked_for_where_that_is_faster(rate, ratio, expected):
    compressed = [read.compress for _, read in flow(1 << 29, rate, ratio=ratio, seconds=1000)]
    assert (sum(compressed) > 0.7 * len(compressed)) == expected
    if rate > 1e8:
        assert not any(compressed)


@pytest.mark.parametrize("wish", [True, False])
def test_a_wish_about_compressing_is_obeyed(wish):
    assert {read.compress for _, read in flow(1 << 28, 1e7, compress=wish)} == {wish}
    sending = Sending(MemorySource([TEXT]), compress=wish)
    sending.asked(Read(offset=0, size=1000, compress=not wish))
    assert sending.next()[0].packed == wish


def test_what_does_not_become_smaller_is_sent_as_it_is_and_seldom_tried():
    noise = os.urandom(50 * 1000)
    tried = []

    class Counting(Sending):
        def _pack(self, raw):
            before = self._packer
            self._packer = type("Packer", (), {"compress": lambda _, data: tried.append(1) or bytes(data)})()
            try:
                return super()._pack(raw)
            finally:
                self._packer = before

    sending = Counting(MemorySource([noise]))
    for offset in range(0, len(noise), 1000):
        sending.asked(Read(offset=offset, size=1000, compress=True))
    while sending.is_asked:
        assert not sending.next()[0].packed
    assert len(tried) == 5
    text = Sending(MemorySource([TEXT]))
    text.asked(Read(offset=0, size=100_000, compress=True))
    chunk, payload = text.next()
    assert chunk.packed
    assert len(payload) < 10_000


def test_a_rate_is_that_of_the_last_seconds_and_fades():
    clock = Clock()
    meter = Meter(clock)
    assert meter.rate == 0
    meter.restart(500)
    assert meter.rate == 0
    for _ in range(100):
        clock.now += 0.1
        meter.add(int((clock.now - 100) * 1000) + 500)
    assert 950 < meter.rate < 1050
    assert len(meter._samples) < 40
    clock.now += 30
    assert meter.rate < 100


# --- errors ----------------------------------------------------------------------------------


def test_errors_of_disk_and_memory_become_ours():
    full = error_from(OSError(errno.ENOSPC, "No space left on device", "/x/y"), "write")
    assert (full.id, full.cause) == ("no-space", "`/x/y`: No space left on device")
    assert error_from(OSError(errno.EIO, "Input/output error"), "read").line == (
        "cannot read the data: Input/output error"
    )
    assert error_from(MemoryError(), "write").id == "memory"
    assert error_from(ZeroDivisionError("x"), "read").cause == "ZeroDivisionError: x"
    own = TransferError("x")
    assert error_from(own, "read") is own


def test_buffers_are_let_go_when_a_stream_is_closed():
    buffer = bytearray(10)
    for stream in (MemorySource([buffer]), MemorySink([buffer])):
        stream.close()
        stream.close()
    buffer.append(1)  # a buffer that somebody views cannot be resized
