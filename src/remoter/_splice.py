"""Two sockets joined: bytes copied both ways, with back-pressure; in the door's or the relay's thread, on its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

ADMITTED = 260
"""Bytes from the server after which it has admitted the client. CURVE says 64 (greeting) + 170
(WELCOME) = 234 to everyone, 246 with a refusal, and 301 or more with READY, which only an
admitted client gets."""

LINGER = 30.0
"""Seconds without a byte after which a connection is closed that one end has ended."""

BUFFER = 256 * 1024
"""Bytes read at once; one buffer for all connections. A peer that does not read holds back this much at most."""


class _Flow:
    """One direction of a connection: what is read from `source` is written to `sink`.

    It reads only when everything read before is written: the back-pressure of one end reaches
    the other, and what waits here never exceeds one buffer.
    """

    __slots__ = ("allowance", "ended", "loop", "moved", "on_end", "on_read", "rest", "sink", "source", "view")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        sink: socket.socket,
        view: memoryview,
        allowance: int | None,
    ) -> None:
        self.loop, self.source, self.sink, self.view = loop, source, sink, view
        self.allowance = allowance  # bytes that may still pass; None: any number
        self.moved = 0
        self.rest: memoryview | None = None
        self.ended = False
        self.on_end: Callable[[bool], None] = lambda broken: None
        self.on_read: Callable[[], None] | None = None

    def start(self, early: bytes = b"") -> None:
        if early:
            self._forward(memoryview(early))
        self.read_on()

    def read_on(self) -> None:
        if not self.ended and self.rest is None and self.allowance != 0:
            self.loop.add_reader(self.source, self._readable)

    def stop(self) -> None:
        self.ended = True
        self.rest = None
        self.loop.remove_reader(self.source)
        self.loop.remove_writer(self.sink)

    def _readable(self) -> None:
        view = self.view if self.allowance is None else self.view[: self.allowance]
        try:
            size = self.source.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(broken=True)
            return
        if size == 0:
            self._end(broken=False)
            return
        if self.allowance is not None:
            self.allowance -= size
            if self.allowance == 0:
                self.loop.remove_reader(self.source)
        self._forward(view[:size])
        if self.on_read is not None:
            self.on_read()

    def _forward(self, data: memoryview) -> None:
        self.moved += len(data)
        try:
            sent = self.sink.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._end(broken=False)  # the other direction may still have its last words
            return
        if sent < len(data):
            self.rest = memoryview(bytes(data[sent:]))  # a copy: the buffer serves all connections
            self.loop.remove_reader(self.source)
            self.loop.add_writer(self.sink, self._writable)

    def _writable(self) -> None:
        assert self.rest is not None
        try:
            sent = self.sink.send(self.rest)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(broken=False)
            return
        self.rest = self.rest[sent:]
        if not self.rest:
            self.rest = None
            self.loop.remove_writer(self.sink)
            self.read_on()

    def _end(self, broken: bool) -> None:
        """Nothing more comes this way: tell the sink so."""
        self.stop()
        with contextlib.suppress(OSError):
            self.sink.shutdown(socket.SHUT_WR)
        self.on_end(broken)


class Splice:
    """Two sockets joined. `done` is set when nothing more can pass."""

    def __init__(
        self,
        outer: socket.socket,
        inner: socket.socket,
        view: memoryview,
        allowance: int,
        admitted: Callable[[], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.inward = _Flow(self.loop, outer, inner, view, allowance)
        self.outward = _Flow(self.loop, inner, outer, view, None)
        self._admitted = admitted
        self._idle: asyncio.TimerHandle | None = None
        self.inward.on_end = self.outward.on_end = self._one_ended
        self.outward.on_read = self._count

    def start(self, early: bytes) -> None:
        if self.inward.allowance is not None:
            self.inward.allowance = max(0, self.inward.allowance - len(early))
        self.outward.start()
        self.inward.start(early)

    def stop(self) -> None:
        self.inward.stop()
        self.outward.stop()
        if self._idle is not None:
            self._idle.cancel()

    def _count(self) -> None:
        if self.outward.moved > ADMITTED:
            self.outward.on_read = None
            self.inward.allowance = None
            self.inward.read_on()
            self._admitted()

    def _one_ended(self, broken: bool) -> None:
        if broken or (self.inward.ended and self.outward.ended):
            self._finish()
        elif self._idle is None:
            self._watch(self._moved())

    def _watch(self, before: int) -> None:
        def look() -> None:
            if self._moved() == before:
                self._finish()
            else:
                self._watch(self._moved())

        self._idle = self.loop.call_later(LINGER, look)

    def _moved(self) -> int:
        return self.inward.moved + self.outward.moved

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
