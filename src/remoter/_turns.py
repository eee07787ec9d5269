"""Whose turn it is to guess a password: delays, never refusals; on the server's machine, on its door's event loop."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ipaddress
import itertools
import time
from collections.abc import Awaitable, Callable

NOTICE = 5.0
"""Seconds between two words to a client that waits."""


class _Guesser:
    """One address: its failures since its last success, when it may guess again, who waits there."""

    __slots__ = ("failures", "last", "next", "waiting")

    def __init__(self) -> None:
        self.failures = 0
        self.last = 0.0
        self.next = 0.0
        self.waiting: collections.deque[asyncio.Future[None]] = collections.deque()


class Turns:
    """When a guess has its turn: delayed, never refused. Used on one event loop.

    Each address pauses after a failure, 1 s at first, then twice as long each time up to 30 s.
    All together fail at most 5 times a second, after 20 at once; who waits for that is served
    address by address in turn, so that a crowd behind one address delays itself and not the
    others. A guess counts as failed from its turn on until it is known to be right, so that
    guesses made side by side gain nothing. Five quiet minutes forgive one failure.
    """

    LONGEST = 30.0
    FORGIVEN = 300.0
    ADDRESSES = 4096

    def __init__(
        self, *, rate: float = 5.0, burst: float = 20.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._filled = burst, clock()
        self._guessers: collections.OrderedDict[str, _Guesser] = collections.OrderedDict()
        self._queue: collections.OrderedDict[str, _Guesser] = collections.OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, address: str, tell: Callable[[float], Awaitable[None]]) -> None:
        """Wait until a guess from there has its turn; `tell` the client now and then for how long.

        Raises:
            OSError: by `tell`: the client is gone.
        """
        name = _network(address)
        guesser = self._guesser(name)
        turn = asyncio.get_running_loop().create_future()
        guesser.waiting.append(turn)
        self._queue.setdefault(name, guesser)
        self._serve()
        try:
            while not turn.done():
                await tell(round(max(0.1, self.seconds_until(address)), 1))
                await asyncio.wait([turn], timeout=NOTICE)
        finally:
            if turn in guesser.waiting:
                guesser.waiting.remove(turn)
            if not guesser.waiting:
                self._queue.pop(name, None)

    def failed(self, address: str) -> None:
        """The guess made from there was wrong: the pause begins now, however long the check took."""
        guesser = self._guesser(_network(address))
        pause = min(self.LONGEST, 2.0 ** max(0, guesser.failures - 1))
        guesser.next = max(guesser.next, self._clock() + pause)

    def succeeded(self, address: str) -> None:
        """The guess made from there was right: it costs nothing, and earlier failures are forgotten."""
        guesser = self._guesser(_network(address))
        guesser.failures, guesser.next = 0, 0.0
        self._tokens = min(self._burst, self._tokens + 1)
        self._serve()

    def seconds_until(self, address: str) -> float:
        """About how long a guess made there now waits for its turn."""
        guesser = self._guesser(_network(address))
        ahead = max(0, len(guesser.waiting) - 1) * min(self.LONGEST, 2.0**guesser.failures)
        own = max(0.0, guesser.next - self._clock()) + ahead
        everybody = max(0.0, (1 - self._tokens + len(self._queue) - 1) / self._rate) if self._queue else 0.0
        return max(own, everybody)

    def _guesser(self, name: str) -> _Guesser:
        guesser = self._guessers.get(name)
        if guesser is None:
            surplus = max(0, len(self._guessers) - self.ADDRESSES + 1)
            for other in list(itertools.islice(self._guessers, surplus)):
                if other not in self._queue:
                    del self._guessers[other]
            guesser = self._guessers[name] = _Guesser()
        now = self._clock()
        if forgiven := int((now - guesser.last) / self.FORGIVEN):
            guesser.failures = max(0, guesser.failures - forgiven)
            guesser.last = now
        return guesser

    def _serve(self) -> None:
        """Give turns to all whose time has come, and set the timer for the next."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        for name, guesser in list(self._queue.items()):
            if self._tokens < 1:
                break
            if guesser.next <= now and guesser.waiting:
                self._grant(name, guesser, now)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = [guesser.next for guesser in self._queue.values() if guesser.waiting]
        if waiting:
            delay = max(min(waiting) - now, (1 - self._tokens) / self._rate, 0.001)
            self._timer = asyncio.get_running_loop().call_later(delay, self._serve)

    def _grant(self, name: str, guesser: _Guesser, now: float) -> None:
        turn = guesser.waiting.popleft()
        if not turn.done():
            turn.set_result(None)
            self._tokens -= 1
            guesser.failures += 1
            guesser.last = now
            guesser.next = now + min(self.LONGEST, 2.0 ** (guesser.failures - 1))
            self._guessers.move_to_end(name)
        if guesser.waiting:
            self._queue.move_to_end(name)  # the others first
        else:
            self._queue.pop(name, None)


def _network(address: str) -> str:
    """Whose address it is: one IPv6 user has a whole /64."""
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address):
            if ip.ipv4_mapped:
                return str(ip.ipv4_mapped)
            return str(ipaddress.ip_network((ip, 64), strict=False))
    return address
