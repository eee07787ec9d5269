"""A session's events as an iterator, over a connection of their own; in the client's process."""

from __future__ import annotations

import os
import queue
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from ._connection import LinkState
from ._errors import RemoterError
from ._messages import Attached, Event
from ._target import Target

READER_WINDOW = 16 * 1024 * 1024
"""Bytes of events that may wait here for an iterator that is not asked."""


class EventStream:
    """A session's events, one after the other, over a connection of its own; an iterator.

    What is not asked for waits here up to 16 MiB, then at the server: the session never waits for us.
    """

    def __init__(self, target: Target, reader: str, since: int | None, all: bool) -> None:
        self._items: queue.SimpleQueue[tuple[Event, int] | None] = queue.SimpleQueue()
        self._taken = 0
        self._is_closed = False
        client = os.urandom(8).hex()
        feed = _Feed(self._items)
        self._link = target.link(feed, client, since=since, all=all, reader=reader, window=READER_WINDOW)
        weakref.finalize(self, self._link.abandon).atexit = False
        self._link.start()
        self._link.wait_open(30.0)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        self._link.check_process()
        item = self._get()
        if item is None or self._is_closed:
            self._items.put(None)  # for the next who asks
            if not self._is_closed:
                self._link.check()
            raise StopIteration
        event, size = item
        self._taken += size
        if self._taken >= READER_WINDOW // 64 or (self._link.holding and self._items.empty()):
            self._link.consumed(self._taken)
            self._taken = 0
        return event

    def _get(self) -> tuple[Event, int] | None:
        while True:
            try:
                return self._items.get(timeout=0.2 if os.name == "nt" else None)
            except queue.Empty:
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close this connection; whoever waits for the next event gets the end."""
        self._is_closed = True
        self._link.close()


class _Feed:
    """Owner of a stream's link: puts events where the caller gets them."""

    def __init__(self, items: queue.SimpleQueue[tuple[Event, int] | None]) -> None:
        self.items = items

    def on_event(self, event: Event, size: int) -> None:
        self.items.put((event, size))

    def on_cursor(self, last: int) -> None:
        pass

    def on_state(self, state: LinkState) -> None:
        pass

    def on_attached(self, attached: Attached, journal_changed: bool) -> None:
        pass

    def on_refused(self, n: int, error: RemoterError) -> None:
        pass

    def on_closed(self, error: RemoterError) -> None:
        self.items.put(None)
