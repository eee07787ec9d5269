"""A stream in pieces: who asks for what, what is checked, what is compressed; on both machines, in a transfer's own thread.

The receiver asks for stretches of the stream (`Read`), the sender answers with chunks. So flow control, progress,
cancelling and resuming are one thing: who no longer asks gets no more, and who asks again goes on.
There is no network here, and no thread.
"""

from __future__ import annotations

import bisect
import collections
import errno
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import xxhash

from ._errors import RemoterError, TransferError
from ._messages import LONGEST_CHUNK, Chunk, Read

if TYPE_CHECKING:
    import zstandard

KIB = 1024
MIB = 1024 * KIB

LONGEST_DATA_MESSAGE = 8 * MIB
"""The largest message of a data connection: a chunk, or what is said at the end of many files."""

SMALLEST_WINDOW = 256 * KIB
FIRST_WINDOW = MIB
USUAL_WINDOW = 8 * MIB
LARGEST_WINDOW = 32 * MIB
"""Bytes that are asked for and have not come yet. A slow connection gets few, so that heartbeats pass between them."""

QUICK_LAP = 1.0
SLOW_LAP = 4.0
"""Seconds that a whole window takes, below which it may grow and above which it shrinks."""

FAST = 125_000_000
"""Bytes a second (1 Gbit/s) from which on compressing is not even tried."""

TRIAL = 8 * MIB
TRIAL_TIME = 2.0
TRIALS_BETWEEN = 16
"""How much, or how long, is measured before compressing is judged; and how often the other way is tried again."""

WORTH_KEEPING = 0.9
BARREN = 4
PROBE_EVERY = 32
"""A compressed chunk is sent if it is smaller by that; after 4 that were not, only every 32nd is tried."""

ATTEMPTS = 3
"""How often a chunk that came damaged is asked for again."""

STRAYS = 1024
"""Chunks that may come out of order, one after the other: more than any honest sender has under way."""

MOST_READS = 1024
"""Stretches that a receiver may ask for before it has got the first. One of ours asks for a few."""

RECENT = 3.0
"""Seconds over which a rate is measured."""


class Source(Protocol):
    """Where a stream comes from. All calls come from one thread and may block."""

    size: int

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the stream from `offset` on. Raises TransferError, OSError."""

    def close(self) -> None:
        """Nothing more is read."""


class Sink(Protocol):
    """Where a stream goes. All calls come from one thread and may block."""

    size: int

    @property
    def position(self) -> int:
        """Bytes that are there already; it takes the rest, in order."""

    def write(self, data: memoryview) -> None:
        """The next bytes. Raises TransferError, OSError."""

    def finish(self) -> dict[str, Any]:
        """All is there: put it in its place. What the sender should know of that. Raises TransferError, OSError."""

    def close(self) -> None:
        """Always called. Without `finish` it is given up, and what helps to resume is kept."""


def error_from(error: Exception, doing: str) -> RemoterError:
    """What stopped a source or a sink, as the error that both ends are told."""
    if isinstance(error, RemoterError):
        return error
    if isinstance(error, MemoryError):
        return TransferError(f"there is not enough memory to {doing} the data", id="memory")
    if isinstance(error, OSError):
        where = f"`{error.filename}`: " if error.filename else ""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = f"{where}{error.strerror or error}"
        return TransferError(f"cannot {doing} the data", cause=cause, id="no-space" if is_full else None)
    return TransferError(f"cannot {doing} the data", cause=f"{type(error).__name__}: {error}")


# --- memory ----------------------------------------------------------------------------------


class _Views:
    """Buffers that follow one another, as one stretch of bytes."""

    def __init__(self, buffers: Iterable[Any]) -> None:
        views = [memoryview(buffer) for buffer in buffers]
        self.views = [view.cast("B") for view in views if view.nbytes]
        self.starts = list(itertools.accumulate((view.nbytes for view in self.views), initial=0))
        self.size = self.starts.pop()

    def stretch(self, offset: int, size: int) -> Iterator[memoryview]:
        """The views that hold these bytes, in order."""
        index = bisect.bisect_right(self.starts, offset) - 1
        while size:
            start = offset - self.starts[index]
            view = self.views[index][start : start + size]
            yield view
            offset, size, index = offset + view.nbytes, size - view.nbytes, index + 1

    def close(self) -> None:
        self.views, self.starts = [], []


class MemorySource:
    """Buffers that are sent one after the other. They are held, not copied: who changes them sends a mixture."""

    def __init__(self, buffers: Iterable[Any]) -> None:
        self._views = _Views(buffers)
        self.size = self._views.size

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` from that offset on."""
        filled = 0
        for view in self._views.stretch(offset, into.nbytes):
            into[filled : filled + view.nbytes] = view
            filled += view.nbytes

    def close(self) -> None:
        """Let the buffers go."""
        self._views.close()


class MemorySink:
    """Writable buffers that are filled one after the other."""

    def __init__(self, buffers: Iterable[Any]) -> None:
        self._views = _Views(buffers)
        self.size = self._views.size
        self.position = 0

    def write(self, data: memoryview) -> None:
        """The next bytes, into their place."""
        taken = 0
        for view in self._views.stretch(self.position, data.nbytes):
            view[:] = data[taken : taken + view.nbytes]
            taken += view.nbytes
        self.position += taken

    def finish(self) -> dict[str, Any]:
        """All is in its place already."""
        return {}

    def close(self) -> None:
        """Let the buffers go."""
        self._views.close()


# --- the sender's end ------------------------------------------------------------------------


class Sending:
    """Answers what the receiver asks for, in its order.

    Args:
        source: what is sent.
        compress: True and False override what the receiver asks for.
    """

    def __init__(self, source: Source, *, compress: bool | None = None) -> None:
        self._source, self._compress = source, compress
        self._buffer = memoryview(bytearray(min(LONGEST_CHUNK, source.size)))
        self._reads: collections.deque[Read] = collections.deque()
        self._given = 0
        self._packer: zstandard.ZstdCompressor | None = None
        self._barren = 0

    @property
    def is_asked(self) -> bool:
        """Whether there is something to be sent."""
        return bool(self._reads)

    def asked(self, read: Read) -> None:
        """The receiver asks for that. Raises TransferError: for what is not there, or for no end of pieces."""
        end = read.offset + read.size
        if end > self._source.size or len(self._reads) >= MOST_READS:
            cause = (
                f"bytes {read.offset} to {end} of {self._source.size}, after {len(self._reads)} other pieces"
            )
            raise TransferError("the other end asked for what it cannot get", cause=cause, id="corrupt")
        self._reads.append(read)

    def forget(self) -> None:
        """Nobody waits for what was asked so far: there is a new connection."""
        self._reads.clear()
        self._given = 0

    def next(self) -> tuple[Chunk, bytes | memoryview]:
        """The next chunk of what was asked for, and its bytes, which are there until the next call.

        Raises:
            TransferError, OSError: of the source.
        """
        read = self._reads[0]
        offset = read.offset + self._given
        raw = self._buffer[: read.size - self._given]
        self._source.read(offset, raw)
        self._given += raw.nbytes
        if self._given == read.size:
            self._reads.popleft()
            self._given = 0
        compress = read.compress if self._compress is None else self._compress
        packed = self._pack(raw) if compress else None
        digest = xxhash.xxh3_128_digest(raw)
        chunk = Chunk(offset=offset, size=raw.nbytes, digest=digest, packed=packed is not None)
        return chunk, raw if packed is None else packed

    def _pack(self, raw: memoryview) -> bytes | None:
        """The bytes compressed, if that is worth it."""
        if self._barren >= BARREN:
            self._barren += 1
            if (self._barren - BARREN) % PROBE_EVERY:
                return None
        if self._packer is None:
            import zstandard  # of all transfers few compress, and it takes 20 ms to import

            self._packer = zstandard.ZstdCompressor(level=1)
        packed = self._packer.compress(raw)
        if len(packed) < WORTH_KEEPING * raw.nbytes:
            self._barren = 0
            return packed
        if self._barren < BARREN:
            self._barren += 1
        return None


# --- the receiver's end ----------------------------------------------------------------------


class Receiving:
    """Asks for what the sink wants, and gives it only what was asked for and came undamaged.

    Args:
        sink: what takes it.
        compress: True or False; None: as the connection's rate suggests.
        clock: seconds that only grow.
    """

    def __init__(
        self, sink: Sink, *, compress: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sink, self._clock = sink, clock
        self._window = _Window()
        self._judge = _Judge(compress)
        self._unpacker: zstandard.ZstdDecompressor | None = None
        self._failures = 0
        self._begin_asking()

    @property
    def is_complete(self) -> bool:
        """Whether all is there, so that the sink may finish."""
        return self.sink.position >= self.sink.size

    def restart_asking(self) -> None:
        """There is a new connection: what is under way on the old one will not come.

        Perhaps it broke because too much was under way for heartbeats to pass, so there is less from now on.
        """
        if self._asked > self.sink.position:
            self._window.shrink()
        self._begin_asking()

    def _begin_asking(self) -> None:
        self._asked = self.sink.position
        self._strays = 0
        now = self._clock()
        self._window.restart(self.sink.position, now)
        self._judge.restart(self.sink.position, now)

    def asks(self) -> list[Read]:
        """What to ask for now; nothing as long as enough is under way."""
        reads = []
        step = self._window.size // 4
        while self._asked < self.sink.size:
            size = min(step, self.sink.size - self._asked)
            if self._asked + size - self.sink.position > self._window.size:
                break
            reads.append(Read(offset=self._asked, size=size, compress=self._judge.compress))
            self._asked += size
        return reads

    def take(self, chunk: Chunk, payload: memoryview) -> None:
        """One chunk. One that is damaged is asked for again; one that is out of order is dropped.

        Raises:
            TransferError: the sender sends what was not asked for, or the same chunk damaged time and
                again. TransferError, OSError: of the sink.
        """
        if chunk.size > LONGEST_CHUNK or chunk.offset + chunk.size > self.sink.size:
            raise _corrupt(f"a chunk of {chunk.size} bytes at {chunk.offset}, of {self.sink.size} in all")
        if chunk.offset != self.sink.position:
            self._strays += 1
            if self._strays > STRAYS:
                raise _corrupt("nothing but chunks that were not asked for")
            return
        if chunk.offset + chunk.size > self._asked:
            raise _corrupt("a chunk that is longer than what was asked for")
        data = self._open(chunk, payload)
        if data is None or xxhash.xxh3_128_digest(data) != chunk.digest:
            self._failures += 1
            if self._failures > ATTEMPTS:
                raise _corrupt(f"the chunk at {chunk.offset} came damaged {self._failures} times")
            self._asked = self.sink.position
            return
        self.sink.write(data)
        self._failures = self._strays = 0
        now = self._clock()
        self._window.took(self.sink.position, now)
        self._judge.took(self.sink.position, self._asked, now)

    def _open(self, chunk: Chunk, payload: memoryview) -> memoryview | None:
        """The chunk's bytes; None if they are damaged. A lie about their number is an error: it may be a bomb."""
        if not chunk.packed:
            if payload.nbytes != chunk.size:
                raise _corrupt(f"a chunk of {payload.nbytes} bytes that was announced with {chunk.size}")
            return payload
        import zstandard

        if self._unpacker is None:
            self._unpacker = zstandard.ZstdDecompressor(max_window_size=8 * MIB)
        try:
            declared = zstandard.get_frame_parameters(payload).content_size
            if declared != chunk.size:
                raise _corrupt(f"a chunk of {declared} bytes that was announced with {chunk.size}")
            data = self._unpacker.decompress(payload, max_output_size=chunk.size, allow_extra_data=False)
        except zstandard.ZstdError:
            return None
        return memoryview(data)


def _corrupt(cause: str) -> TransferError:
    return TransferError("the data came damaged", cause=cause, id="corrupt")


class _Window:
    """How much may be under way: as much as comes within about a second, within bounds.

    A lap is the time in which a whole window comes. Up to the usual size the window doubles while
    laps are quick, beyond it only while that makes the stream faster, and it shrinks when laps are slow.
    """

    def __init__(self) -> None:
        self.size = FIRST_WINDOW
        self._rate = 0.0

    def restart(self, position: int, now: float) -> None:
        """A lap begins there."""
        self._begin, self._began = position, now

    def shrink(self) -> None:
        self.size = max(SMALLEST_WINDOW, self.size // 2)

    def took(self, position: int, now: float) -> None:
        """So far it is there."""
        if position - self._begin < self.size:
            return
        lap = max(now - self._began, 1e-6)
        rate = (position - self._begin) / lap
        rises = rate > 1.1 * self._rate
        self._rate = max(rate, self._rate)
        if lap > SLOW_LAP:
            self.shrink()
        elif lap < QUICK_LAP and (rises or self.size < USUAL_WINDOW):
            self.size = min(LARGEST_WINDOW, self.size * 2)
        self.restart(position, now)


class _Judge:
    """Whether to ask for compressed chunks: measured both ways, stretch by stretch.

    Which of the two is faster depends on the connection, on the data, and on both processors; nobody
    can know. So a stretch is timed as it is; if that was slow, another compressed; then it
    goes on with the faster way, and tries the other one again from time to time.
    """

    def __init__(self, forced: bool | None) -> None:
        self.compress = bool(forced)
        self._is_forced = forced is not None
        self._rates: dict[bool, float] = {}
        self._stretches = 0

    def restart(self, position: int, now: float) -> None:
        """The next stretch begins there."""
        self._begin, self._began = position, now

    def took(self, position: int, asked: int, now: float) -> None:
        """So far it is there, and so far it is asked for."""
        if self._is_forced:
            return
        if position <= self._begin:  # what comes here was asked for before the change
            self._began = now
            return
        size, time_taken = position - self._begin, now - self._began
        if size < TRIAL and (time_taken < TRIAL_TIME or size < SMALLEST_WINDOW):
            return
        self._rates[self.compress] = size / max(time_taken, 1e-6)
        self._stretches += 1
        before = self.compress
        self.compress = self._choose()
        self.restart(position if self.compress == before else asked, now)

    def _choose(self) -> bool:
        if self._rates.get(False, 0.0) >= FAST and not self.compress:
            return False
        if len(self._rates) < 2 or self._stretches % TRIALS_BETWEEN == 0:
            return not self.compress
        return self._rates[True] > self._rates[False]


class Meter:
    """A rate over the last seconds. One thread adds, any may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: collections.deque[tuple[float, int]] = collections.deque()

    def restart(self, done: int) -> None:
        """It begins there."""
        self._samples = collections.deque([(self._clock(), done)])

    def add(self, done: int) -> None:
        """It is as far as this."""
        now = self._clock()
        if len(self._samples) > 1 and now - self._samples[-2][0] < RECENT / 30:
            self._samples[-1] = (now, done)
        else:
            self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[1][0] > RECENT:
            self._samples.popleft()

    @property
    def rate(self) -> float:
        """Bytes a second; less and less while nothing comes."""
        samples = self._samples
        if len(samples) < 2:
            return 0.0
        (began, first), (_, last) = samples[0], samples[-1]
        return (last - first) / max(self._clock() - began, 1e-3)
