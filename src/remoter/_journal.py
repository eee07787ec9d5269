"""The numbered record of all that a session put out; in the server's process, read-only in `remoter log`'s.

    meta.json                  whose journal it is: id, name, host, started, ended
    0000000000000001.segment   records, one after the other; the name is the first event's number
    highest                    the highest number given while the disk was full
    lock                       held by the server that writes

A record is its length and its checksum, four bytes each, then its payload. The first record of a
segment is the session's state when the segment was begun, after two numbers: up to which event
that state tells, and with which event the segment before ended. All others are events, as they
are sent to clients, numbered without a hole within a segment.

What is readable is on disk: `flush` writes before anybody is sent anything. While the disk is
full, memory stands in for it; what memory cannot hold is dropped, and readers are told by a `gap`.

Longer than most, because it is the only file that knows how a journal lies on the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec

from . import _config
from ._errors import RemoterError
from ._messages import LONGEST_MESSAGE, Event, Kind, RunId, decode_event, encode

MIB = 1024 * 1024
KEPT_DAYS = 7
_FRAME = struct.Struct("!II")
_PREFACE = struct.Struct("!QQ")
_OVERHEAD = 256  # what an event costs in memory beside its bytes
_LONGEST_EVENT = LONGEST_MESSAGE * 3 // 4  # one that fits into no message would stop every reader for ever
_LONGEST_PART = 10 * MIB
_EXAMINED = 32 * MIB  # what one filtered read looks at: the server has others to serve


class Heading(msgspec.Struct, frozen=True):
    """What a filter looks at; the rest of an event is not decoded for it."""

    seq: int
    kind: Kind
    time: float
    run: RunId | None = None
    client: str | None = None


_heading = msgspec.msgpack.Decoder(Heading)


def _accepted(accept: Callable[[Event], bool], encoded: bytes) -> bool:
    """Whether the filter takes the event, of which it sees the heading."""
    it = _heading.decode(encoded)
    return accept(Event(seq=it.seq, kind=it.kind, time=it.time, run=it.run, client=it.client))


def _gap(first: int, last: int, now: float) -> Event:
    return Event(seq=last, kind="gap", time=now, data={"first": first, "last": last})


# --- on disk ---------------------------------------------------------------------------------


@dataclasses.dataclass
class _Segment:
    """One file: its events are numbered `first` to `last` and begin at byte `start`."""

    path: Path
    first: int
    last: int
    start: int
    size: int
    told: int  # the state at its beginning tells of events up to this number
    before: int  # with which number the segment before ended


def _records(content: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """The whole, undamaged records from that offset on, each with the offset of the next."""
    end = len(content)
    while offset + 8 <= end:
        length, checksum = _FRAME.unpack_from(content, offset)
        offset += 8 + length
        if offset > end:
            return
        payload = content[offset - length : offset]
        if zlib.crc32(payload) != checksum:
            return
        yield offset, payload


def _framed(payload: bytes) -> bytes:
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _open_segment(path: Path) -> _Segment | None:
    """What the file's first record tells; nothing if that is damaged. `last` is not known yet."""
    with path.open("rb") as file:
        frame = file.read(8)
        length = _FRAME.unpack(frame)[0] if len(frame) == 8 else 0
        head = frame + file.read(length)
        size = os.fstat(file.fileno()).st_size
    for start, payload in _records(head, 0):
        told, before = _PREFACE.unpack_from(payload)
        first = int(path.stem)
        return _Segment(path, first, first - 1, start, size, told, before)
    return None


class _Shelf:
    """The segments of one directory, oldest first, and where its readers are."""

    def __init__(self, directory: Path) -> None:
        self.segments: list[_Segment] = []
        self.damaged: list[Path] = []
        self._positions: OrderedDict[int, tuple[_Segment, int]] = OrderedDict()
        for path in sorted(directory.glob("*.segment")):
            with contextlib.suppress(OSError):
                if segment := _open_segment(path):
                    if self.segments:
                        self.segments[-1].last = min(segment.before, segment.first - 1)
                    self.segments.append(segment)
                else:
                    self.damaged.append(path)
        if self.segments:
            self._measure(self.segments[-1])

    def _measure(self, segment: _Segment) -> None:
        """Find the last event and the end of what is undamaged."""
        end = segment.start
        for end, _ in _records(segment.path.read_bytes(), segment.start):  # noqa: B007 - wanted after the loop
            segment.last += 1
        segment.size = end

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)

    def next_number(self, seq: int) -> int | None:
        """The lowest number from `seq` on that is here."""
        return next((max(s.first, seq) for s in self.segments if s.last >= max(s.first, seq)), None)

    def read(
        self, seq: int, limit: int, accept: Callable[[bytes], bool] | None = None
    ) -> tuple[list[bytes], int, int]:
        """The events from `seq` on that stand in one segment, encoded, until `limit` bytes are reached.

        Then the number to go on from, which is `seq` itself where that event is not here or turns out
        to be lost, and how many bytes were looked at.
        """
        segment = next((s for s in self.segments if s.first <= seq <= s.last), None)
        if segment is None:
            return [], seq, 0
        found: list[bytes] = []
        size = examined = 0
        following = seq
        try:
            content, begin = self._content(segment, seq, limit if accept is None else max(limit, MIB))
        except OSError:
            content = b""
        for examined, payload in _records(content, 0):  # noqa: B007 - wanted after the loop
            following += 1
            if accept is None or accept(payload):
                found.append(payload)
                size += len(payload)
            if size >= limit or following > segment.last:
                break
        if following == seq:
            segment.last = seq - 1  # damaged, or removed by somebody: what follows is lost too
            return [], seq, 0
        self._positions[following] = segment, begin + examined
        if len(self._positions) > 64:
            self._positions.popitem(last=False)
        return found, following, examined

    def _content(self, segment: _Segment, seq: int, limit: int) -> tuple[bytes, int]:
        """Some of the file, from that event on, and at which byte that is."""
        known, offset = self._positions.pop(seq, (None, 0))
        with segment.path.open("rb") as file:
            if known is not segment:
                offset = self._skip(file.fileno(), segment, seq)
            content = os.pread(file.fileno(), min(max(limit, 64 * 1024), 8 * MIB), offset)
            if len(content) >= 8:
                length = 8 + _FRAME.unpack_from(content)[0]
                if length > len(content):
                    content = os.pread(file.fileno(), length, offset)
        return content, offset

    def _skip(self, descriptor: int, segment: _Segment, seq: int) -> int:
        """The offset of that event, found by hopping from record to record."""
        content = os.pread(descriptor, segment.size, 0)
        offset = segment.start
        for _ in range(seq - segment.first):
            offset += 8 + _FRAME.unpack_from(content, min(offset, len(content) - 8))[0]
        return offset

    def forget(self, segment: _Segment) -> None:
        """Drop the segment, and what readers know of it."""
        self.segments.remove(segment)
        for seq in [seq for seq, (known, _) in self._positions.items() if known is segment]:
            del self._positions[seq]
        segment.path.unlink(missing_ok=True)

    def replay(self) -> Iterator[Event | bytes]:
        """The newest state, unless there is none, and the events after it."""
        if not self.segments:
            return
        newest = self.segments[-1]
        content = newest.path.read_bytes()[: newest.size]
        records = _records(content, 0)
        if state := next(records)[1][_PREFACE.size :]:
            yield state
        for seq, (_, payload) in enumerate(records, newest.first):
            if seq > newest.told:
                yield decode_event(payload)


# --- the server's journal --------------------------------------------------------------------


class Journal:
    """The journal of one session, for its server.

    Args:
        directory: where it is or will be; made 0700.
        name: the session's, for people.
        limit: how much is kept on disk, in bytes; the oldest segments are dropped whole.
        segment_size: how many bytes of events make a segment.
        memory: how much of the newest is kept in memory too, in bytes.
        reserve: how much memory may stand in for a full disk, in bytes.
        retry: how often a full disk is tried again, in seconds.
        clock: tells the time of an event.
        snapshot: gives the session's state, telling of every event appended so far. It is called
            within `flush`; what it gave last comes first in `replay`. Empty: there is no state.

    Raises:
        RemoterError: another server writes to it, or others could read it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "",
        limit: int = 256 * MIB,
        segment_size: int = 8 * MIB,
        memory: int = 4 * MIB,
        reserve: int = 64 * MIB,
        retry: float = 1.0,
        clock: Callable[[], float] = time.time,
        snapshot: Callable[[], bytes] = bytes,
    ) -> None:
        self.directory = directory
        self.snapshot = snapshot
        self._limit, self._segment_size, self._memory, self._reserve = limit, segment_size, memory, reserve
        self._retry, self._clock = retry, clock
        self._retry_at = 0.0
        self._disk_full = False
        _config.private_directory(directory.parent)
        _config.private_directory(directory)
        self._lock = _take_lock(directory / "lock")
        self._highest = os.open(directory / "highest", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file: int | None = None
        self._shelf = _Shelf(directory)
        for path in self._shelf.damaged:
            path.unlink(missing_ok=True)
        self._open_meta(name)
        newest = self._shelf.segments[-1] if self._shelf.segments else None
        given = self._recall_number()
        self._appended = max(newest.last, newest.told, given) if newest else given
        self.last = self._appended
        """The highest number that may be read."""
        self._written = self._appended
        # Events in memory, oldest first: those after `_written` are not on disk yet.
        self._ring: list[tuple[bytes, Event]] = []
        self._ring_start = 0  # entries before it were dropped; cut off when there are many
        self._ring_first = self._appended + 1  # the number of the entry at `_ring_start`
        self._ring_size = 0
        if newest:
            self._file = os.open(newest.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.ftruncate(self._file, newest.size)  # a torn tail was never sent to anybody

    def _open_meta(self, name: str) -> None:
        self._meta = {
            "id": secrets.token_hex(8),
            "name": name,
            "host": _config.host_name(),
            "started": self._clock(),
            **_read_meta(self.directory),
            "ended": None,
        }
        self._write_meta()

    def _write_meta(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk; the journal can be read without it
            _config.write_private(self.directory / "meta.json", json.dumps(self._meta).encode())

    @property
    def id(self) -> str:
        """Made with the journal and kept across restarts of the server: of what the numbers are."""
        return str(self._meta["id"])

    @property
    def is_disk_full(self) -> bool:
        """Whether memory stands in for the disk."""
        return self._disk_full

    @property
    def first(self) -> int:
        """The lowest number that is kept; above `last` if none is."""
        return min(self._shelf.next_number(0) or self._ring_first, self._ring_first)

    # --- writing ---

    def append(
        self,
        kind: Kind,
        *,
        run: RunId | None = None,
        client: str | None = None,
        text: str | None = None,
        data: dict[str, Any] | None = None,
        printed: bool = False,
        frame: int = 0,
    ) -> Event:
        """Give it the next number. It can be read, and must be sent, only after `flush`."""
        seq = self._appended + 1
        now = self._clock()
        event = Event(
            seq=seq,
            kind=kind,
            time=now,
            run=run,
            client=client,
            text=text,
            data=data,
            printed=printed,
            frame=frame,
        )
        try:
            encoded = encode(event)
        except UnicodeEncodeError:  # lone surrogates: bytes that were no text
            event = msgspec.structs.replace(event, text=_encodable(text), data=_encodable(data))
            encoded = encode(event)
        if len(encoded) > _LONGEST_EVENT and kind != "queued":
            event = _without_its_longest_parts(event)
            encoded = encode(event)
        heading = event
        if text is not None or data is not None:
            heading = Event(seq=seq, kind=kind, time=now, run=run, client=client)
        self._ring.append((encoded, heading))
        self._ring_size += len(encoded) + _OVERHEAD
        self._appended = seq
        return event

    def flush(self) -> None:
        """Write what was appended; before anything of it is sent. A full disk is told by a `notice`."""
        if self._written < self._appended and (not self._disk_full or time.monotonic() >= self._retry_at):
            try:
                self._write()
                if self._disk_full:
                    self._disk_full = False
                    self._write_meta()
                    self.append("notice", text="the disk has room again", data={"about": "disk-back"})
                    self._write()
                self._begin_segment_if_due()
                self._drop_segments()
            except OSError as error:
                self._bear(error)
        if self._disk_full:
            self._remember_number()
        self._trim()
        self.last = self._appended

    def _bear(self, error: OSError) -> None:
        """The disk is full, or worse: memory stands in for it, and everybody is told once."""
        self._retry_at = time.monotonic() + self._retry
        if self._disk_full:
            return
        self._disk_full = True
        megabytes = self._reserve // 1_000_000
        self.append(
            "notice",
            text=f"cannot write the journal ({error.strerror or error}): "
            f"the last {megabytes} MB of output are kept in memory",
            data={"about": "disk-full", "directory": str(self.directory)},
        )

    def _recall_number(self) -> int:
        """The highest number given while the disk was full; 0 if it never was."""
        kept = os.pread(self._highest, 8, 0)
        if len(kept) < 8:
            with contextlib.suppress(OSError):  # have the block now, there may be none later
                os.pwrite(self._highest, bytes(8), 0)
        return int.from_bytes(kept, "big")

    def _remember_number(self) -> None:
        """Numbers that only memory knows must not be given again by the next server."""
        with contextlib.suppress(OSError):
            os.pwrite(self._highest, self._appended.to_bytes(8, "big"), 0)

    def _write(self) -> None:
        """Write all that is not on disk: one write, unless there is a backlog."""
        while self._written < self._appended:
            seq = max(self._written + 1, self._ring_first)
            segment = self._shelf.segments[-1] if self._file is not None else None
            if segment is None or segment.last + 1 != seq or self._is_due(segment):
                segment = self._begin_segment(seq)
            begin = end = self._ring_start + seq - self._ring_first
            parts: list[bytes] = []
            size = 0
            for payload, _ in self._ring[begin:] if begin else self._ring:
                parts += _FRAME.pack(len(payload), zlib.crc32(payload)), payload
                size += len(payload)
                end += 1
                if size >= self._segment_size:
                    break
            self._write_to(segment, b"".join(parts), self._ring[begin:end])

    def _write_to(self, segment: _Segment, content: bytes, entries: list[tuple[bytes, Event]]) -> None:
        assert self._file is not None
        done = 0
        try:
            while done < len(content):
                done += os.write(self._file, content[done:] if done else content)
        except OSError:
            # Some of it may be there. Whole records stay, the torn one goes.
            whole = count = 0
            for payload, _ in entries:
                if whole + 8 + len(payload) > done:
                    break
                whole += 8 + len(payload)
                count += 1
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, segment.size + whole)
            self._count(segment, count, whole)
            raise
        self._count(segment, len(entries), done)

    def _count(self, segment: _Segment, events: int, size: int) -> None:
        segment.last += events
        segment.size += size
        self._written = max(self._written, segment.last)

    def _is_due(self, segment: _Segment) -> bool:
        return segment.size - segment.start >= max(self._segment_size, segment.start)

    def _begin_segment_if_due(self) -> None:
        if self._shelf.segments and self._is_due(self._shelf.segments[-1]):
            self._begin_segment(self._appended + 1)

    def _begin_segment(self, first: int) -> _Segment:
        """Begin the file whose first event has that number, with the state of the session."""
        _config.private_directory(self.directory)  # where somebody cleaned up
        segments = self._shelf.segments
        # At the very beginning there is nothing to tell.
        told, state = (self._appended, self.snapshot()) if first > 1 else (0, b"")
        before = segments[-1].last if segments else 0
        content = _framed(_PREFACE.pack(told, before) + state)
        path = self.directory / f"{first:016d}.segment"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        try:
            done = 0
            while done < len(content):
                done += os.write(file, content[done:])
        except OSError:
            os.close(file)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        if self._file is not None:
            os.close(self._file)
        self._file = file
        segment = _Segment(path, first, first - 1, len(content), len(content), told, before)
        segments.append(segment)
        return segment

    def _drop_segments(self) -> None:
        while len(self._shelf.segments) > 1 and self._shelf.size > self._limit:
            self._shelf.forget(self._shelf.segments[0])

    def _trim(self) -> None:
        """Keep the bounds of memory: of what is on disk, and of what is not."""
        start, first, size = self._ring_start, self._ring_first, self._ring_size
        while size > self._memory and start < len(self._ring):
            if first > self._written and size <= self._reserve:
                break
            size -= len(self._ring[start][0]) + _OVERHEAD
            self._ring[start] = _DROPPED
            start += 1
            first += 1
        if start > 1024 and start > len(self._ring) // 2:
            del self._ring[:start]
            start = 0
        self._ring_start, self._ring_first, self._ring_size = start, first, size

    # --- reading ---

    def read(
        self, after: int, limit: int, accept: Callable[[Event], bool] | None = None
    ) -> tuple[list[bytes], int]:
        """The events after that number, encoded, in order, until `limit` bytes are reached.

        The second value is the highest number looked at: go on from there. There is more as long
        as it is below `last`, also when nothing of what was looked at was accepted. What is
        lost is told by a `gap`, which no filter refuses.

        Args:
            after: the number from which to go on; 0 is the beginning.
            limit: in bytes; at least one event comes if there is any.
            accept: which events are wanted; it sees them without their text and data.
        """
        found: list[bytes] = []
        cursor = max(after, 0)
        size = examined = 0
        while cursor < self.last and size < limit and examined < _EXAMINED:
            if cursor + 1 >= self._ring_first:
                taken, cursor, looked = self._read_memory(cursor, limit - size, accept)
            else:
                taken, cursor, looked = self._read_disk(cursor, limit - size, accept)
            found += taken
            size += sum(map(len, taken))
            examined += looked
        return found, cursor

    def _read_memory(
        self, cursor: int, limit: int, accept: Callable[[Event], bool] | None
    ) -> tuple[list[bytes], int, int]:
        found: list[bytes] = []
        size = 0
        begin = self._ring_start + cursor + 1 - self._ring_first
        end = len(self._ring) - (self._appended - self.last)
        for index in range(begin, end):
            encoded, heading = self._ring[index]
            cursor += 1
            if accept is None or accept(heading):
                found.append(encoded)
                size += len(encoded)
                if size >= limit:
                    break
        return found, cursor, size

    def _read_disk(
        self, cursor: int, limit: int, accept: Callable[[Event], bool] | None
    ) -> tuple[list[bytes], int, int]:
        wanted = None if accept is None else partial(_accepted, accept)
        found, following, examined = self._shelf.read(cursor + 1, limit, wanted)
        if following == cursor + 1:
            following = min(self._shelf.next_number(following) or self._ring_first, self._ring_first)
            found = [encode(_gap(cursor + 1, following - 1, self._clock()))]
        return found, following - 1, 0 if accept is None else examined

    def replay(self) -> Iterator[Event | bytes]:
        """For a server that starts again: the last snapshot, if there is one, and the events after it."""
        return self._shelf.replay()

    # --- the end ---

    def finish(self) -> None:
        """Mark the session as ended; `sweep` removes the journal 7 days later."""
        self._meta["ended"] = self._clock()
        if self.directory.is_dir():  # or somebody has removed it already: it is not made anew
            self._write_meta()

    def close(self) -> None:
        """Write what is left and let go of the files."""
        if self._lock < 0:
            return
        self._retry_at = 0.0
        self.flush()
        for descriptor in (self._file, self._highest, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._file, self._lock = None, -1

    def remove(self) -> None:
        """Close the journal and remove it from the disk."""
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)


_DROPPED = (b"", Event(seq=0, kind="gap", time=0.0))


def _without_its_longest_parts(event: Event) -> Event:
    """The event with what is too long for a message left out, and a word about that in its text."""
    text, data = event.text or "", dict(event.data or {})
    left_out = []
    for part, content in list(data.items()):
        if isinstance(content, str | bytes) and len(content) > _LONGEST_PART:
            del data[part]
            left_out.append(f"{part} ({len(content) / 1e6:.0f} MB)")
    if len(text) > _LONGEST_PART:
        left_out.append(f"text after the first million characters ({len(text) / 1e6:.0f} MB)")
        text = text[:1_000_000]
    note = f"[too long, left out: {', '.join(left_out)}]"
    return msgspec.structs.replace(event, text=f"{text}\n{note}" if text else note, data=data or None)


def _encodable(value: Any) -> Any:
    """The same with `?` in place of what no UTF-8 can hold."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_encodable(key): _encodable(item) for key, item in value.items()}
        case list() | tuple():
            return [_encodable(item) for item in value]
    return value


def _take_lock(path: Path) -> int:
    import fcntl  # no session runs where it is missing

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise RemoterError(
            f"the journal `{path.parent}` is in use", cause="another server writes to it", id="journal"
        ) from None
    return descriptor


# --- journals of sessions that ended ---------------------------------------------------------


def _read_meta(directory: Path) -> dict[str, Any]:
    try:
        meta = json.loads((directory / "meta.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


class Archive:
    """A journal for reading only, whether or not its session lives."""

    def __init__(self, directory: Path) -> None:
        meta = _read_meta(directory)
        self.directory = directory
        self.id: str = meta.get("id", "")
        self.name: str = meta.get("name", "")
        self.host: str = meta.get("host", "")
        self.started: float | None = meta.get("started")
        self.ended: float | None = meta.get("ended")

    @cached_property
    def _shelf(self) -> _Shelf:
        return _Shelf(self.directory)

    @property
    def first(self) -> int:
        """The lowest number that is kept; above `last` if none is."""
        return self._shelf.next_number(0) or self.last + 1

    @property
    def last(self) -> int:
        """The highest number that is kept."""
        return self._shelf.segments[-1].last if self._shelf.segments else 0

    def events(self, since: int = 0) -> Iterator[Event]:
        """The events after that number; what is lost is told by a `gap`."""
        cursor, last = max(since, 0), self.last
        while cursor < last:
            found, following, _ = self._shelf.read(cursor + 1, MIB)
            if following == cursor + 1:
                following = self._shelf.next_number(following) or last + 1
                yield _gap(cursor + 1, following - 1, time.time())
            yield from map(decode_event, found)
            cursor = following - 1


def archives(root: Path) -> list[Archive]:
    """All journals in that directory, the newest last.

    Raises:
        RemoterError: others could have written them.
    """
    if not root.is_dir():
        return []
    _config.private_directory(root)
    found = [Archive(path.parent) for path in root.glob("*/meta.json") if not path.parent.is_symlink()]
    return sorted(found, key=lambda archive: archive.started or 0.0)


def sweep(root: Path, *, now: float | None = None) -> None:
    """Remove the journals of sessions that ended, or were last heard of, more than 7 days ago."""
    before = (time.time() if now is None else now) - KEPT_DAYS * 86400
    for directory in root.iterdir() if root.is_dir() else ():
        if directory.is_symlink() or not directory.is_dir() or _config.is_locked(directory / "lock"):
            continue
        with contextlib.suppress(OSError):
            ours = any((directory / name).exists() for name in ("meta.json", "lock"))
            ended = _read_meta(directory).get("ended") or max(
                path.lstat().st_mtime for path in (directory, *directory.iterdir())
            )
            if ours and ended < before:
                shutil.rmtree(directory, ignore_errors=True)
