"""The attached clients, each a cursor into the journal with a window; in the server's process.

There are no queues: what a client has not got yet stands in the journal, and is read from there
when the client has acknowledged what it was sent. A client that does not read stops its own
cursor and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from ._journal import Journal
from ._messages import Attach, Events, Goodbye, Message, RunId

WINDOW = 1024 * 1024
"""Bytes of events that may be on the way to one client, not acknowledged."""

CHUNK = 256 * 1024
FULL = 0.02
"""Seconds after which a client is tried again whose connection takes no more."""

SILENCE = 12.0
PROBE = 4.0
"""Seconds without a word after which a client is away, and after which its connection is probed."""

Send = Callable[[bytes, Message], bool | None]
"""Send to a connection: True sent, None later (it takes no more), False it is gone."""


class Cursor:
    """One attached connection: which client's, what it may see, how far it is."""

    def __init__(self, identity: bytes, attach: Attach, position: int) -> None:
        self.client = attach.client
        self.identity = identity
        self.owner = attach.reader or attach.client
        self.reads_only = attach.reader is not None
        self.all = attach.all
        self.label = attach.label
        self.position = position
        self.sent: deque[tuple[int, int]] = deque()
        self.unacknowledged = 0
        self.since = time.time()
        self.heard = time.monotonic()
        self.is_full = False

    def acknowledge(self, seq: int) -> None:
        """Everything up to `seq` was processed: the window opens."""
        while self.sent and self.sent[0][0] <= seq:
            self.unacknowledged -= self.sent.popleft()[1]


class Cursors:
    """All attached connections of a session.

    Args:
        journal: what they read.
        send: sends a message to a connection.
        left: is told of a cursor whose connection turned out to be gone.
    """

    def __init__(self, journal: Journal, send: Send, left: Callable[[Cursor], None]) -> None:
        self.journal = journal
        self.send = send
        self.left = left
        self.by_identity: dict[bytes, Cursor] = {}
        self.loop = asyncio.get_running_loop()

    def __iter__(self) -> Iterator[Cursor]:
        """Those of clients; not the second connections that only read."""
        return (cursor for cursor in self.by_identity.values() if not cursor.reads_only)

    def get(self, identity: bytes) -> Cursor | None:
        """The cursor of a connection, heard of just now."""
        cursor = self.by_identity.get(identity)
        if cursor is not None:
            cursor.heard = time.monotonic()
        return cursor

    def attach(self, identity: bytes, attach: Attach) -> Cursor:
        """A connection says who it is; an older one of the same client gives way."""
        older = [c for c in self.by_identity.values() if c.client == attach.client and c.identity != identity]
        for cursor in older:
            del self.by_identity[cursor.identity]
            self.send(cursor.identity, Goodbye(reason="superseded", message="attached from elsewhere"))
        if attach.since is None:
            position = self.journal.last
        elif attach.journal not in (None, self.journal.id):
            position = 0
        else:
            position = attach.since
        cursor = Cursor(identity, attach, position)
        self.by_identity[identity] = cursor
        return cursor

    def detach(self, identity: bytes) -> None:
        """A connection is gone."""
        cursor = self.by_identity.pop(identity, None)
        if cursor is not None:
            self.left(cursor)

    def may_see(self, cursor: Cursor, run: RunId | None) -> bool:
        """Whether events of that run are for that cursor: all, its own, nobody's, and those of clients that are away."""
        if cursor.all or run is None or run[0] == cursor.owner:
            return True
        return not any(other.client == run[0] for other in self)

    def pump_all(self) -> None:
        """Send everybody what is new."""
        for cursor in list(self.by_identity.values()):
            self.pump(cursor)

    def pump(self, cursor: Cursor) -> None:
        """Send what the client may see and has room for."""
        accept = None if cursor.all else lambda event: self.may_see(cursor, event.run)
        while not cursor.is_full and cursor.unacknowledged < WINDOW and cursor.position < self.journal.last:
            events, position = self.journal.read(cursor.position, CHUNK, accept)
            if position == cursor.position:
                return
            message = Events(events=[msgspec.Raw(event) for event in events], cursor=position)
            sent = self.send(cursor.identity, message)
            if sent is None:
                cursor.is_full = True
                self.loop.call_later(FULL, self._try_again, cursor)
                return
            if sent is False:
                self.detach(cursor.identity)
                return
            size = sum(map(len, events))
            cursor.position = position
            cursor.unacknowledged += size
            cursor.sent.append((position, size))

    def _try_again(self, cursor: Cursor) -> None:
        cursor.is_full = False
        if self.by_identity.get(cursor.identity) is cursor:
            self.pump(cursor)

    def drop_silent(self, probe: Callable[[], Message], *, probe_after: float = PROBE) -> None:
        """Find connections that broke without a word: those silent for `probe_after` seconds are sent `probe`."""
        now = time.monotonic()
        for cursor in list(self.by_identity.values()):
            silent = now - cursor.heard
            if silent > SILENCE or (silent > probe_after and self.send(cursor.identity, probe()) is False):
                self.detach(cursor.identity)

    def dismiss(self, message: str) -> None:
        """The session is over: say so to everybody."""
        for identity in self.by_identity:
            self.send(identity, Goodbye(reason="shutdown", message=message))
