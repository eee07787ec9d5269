"""One object, file or folder on its way: its handle, and the thread that carries it; in the client's process.

A `Transfer` runs a function, its work, in a thread of its own, and gives it a `Carrier`: with that the work takes steps
on the control connection, and has streams carried over a connection for data. That is a second one to the same
server, so that a command, an answer or Ctrl-C never waits behind a gigabyte. It is made for one
stream and closed with it; when it breaks, another is made, and the stream goes on where it was.

    caller's thread: Transfer.wait ──▶ progress
    transfer's thread: work ─ Carrier ─┬─ step ──▶ the link
                                       └─ receive, send ─ Passage ──▶ libzmq's thread ──▶ the server's dock
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import zmq

from ._connection import Place
from ._errors import AuthError, LinkLostError, RemoterError, TransferError
from ._messages import (
    PROTOCOL,
    Chunk,
    Done,
    Join,
    Joined,
    OnData,
    Read,
    Refused,
    error_of,
    refused_of,
)
from ._passage import BrokenError, Passage, endpoints_of
from ._pieces import Meter, Receiving, Sending, Sink, Source, error_from

log = logging.getLogger("remoter.transfer")

TICK = 0.1
"""Seconds between looks whether the transfer was cancelled, wherever its thread waits; and between two calls of `show`."""

STEP_PATIENCE = 1.0
STREAM_PATIENCE = 3.0
"""Seconds without an answer, or without anything of a stream, after which that is told."""

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
"""Seconds between attempts to connect."""

ATTEMPT = 10.0
"""Seconds that a connection may take from its beginning until the server has joined it to the transfer."""

REJECTIONS = 3
"""How often a key that the control connection came in with may be refused before we believe it."""

FRUITLESS = 10
QUICKLY = 5.0
"""Connections that broke within so many seconds and carried nothing, after which the transfer is given up."""

FORGOTTEN = 5
"""How often in a row a server may not know of a transfer that it was told of just before."""

LINGER = 200
"""Milliseconds that closing may take to tell the server how it ended. A cancelled transfer takes none."""

GRACE = 0.2
AFTER_INTERRUPT = 1.0
"""Seconds that a cancelled transfer's thread is waited for. It may be in a write to a disk, which nothing can interrupt."""

T = TypeVar("T")
Status = Literal["running", "done", "failed", "cancelled"]
Ask = Callable[[str, Any, dict[str, Any]], "Future[dict[str, Any]]"]
"""Has a step of a transfer done: its id, what, and the data."""


@dataclass(frozen=True)
class Progress:
    """How far a transfer is.

    Attributes:
        what: what crosses.
        done: bytes that have crossed, of `total`.
        rate: bytes a second, in the last seconds.
        left: seconds to go; None: nobody can say.
        files_done: of `files_total`, in a folder.
        note: why nothing moves, if so: "waiting for the session", "connection lost", "resuming".
    """

    what: str
    done: int = 0
    total: int = 0
    rate: float = 0.0
    left: float | None = None
    files_done: int = 0
    files_total: int = 0
    note: str = ""


class Forgotten(TransferError):
    """The server does not know of the transfer: it was started again. To take the step again makes it known."""

    id = "unknown"


class StillRunningError(TransferError, TimeoutError):
    """Waiting ended; the transfer goes on, and can be waited for again."""

    id = "timeout"


# --- the handle ------------------------------------------------------------------------------

_running: set[Transfer] = set()


class Transfer:
    """Something on its way, in a thread of its own.

    Args:
        id: names it at the server.
        label: names it to a person.
        work: does all of it, in the transfer's thread; what it returns is what `wait` returns.
        ask: has a step done on the control connection.
        place: says where the socket for data is now; may take long. It raises LinkLostError when the session is gone.
    """

    def __init__(
        self,
        id: str,
        label: str,
        work: Callable[[Carrier], Any],
        *,
        ask: Ask,
        place: Callable[[], Place],
    ) -> None:
        self.id = id
        self.session: Any = None  # kept alive for as long as this is
        self._pid = os.getpid()
        self._carrier = Carrier(id, label, ask, place)
        self._over = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="remoter-transfer", daemon=True)

    def __repr__(self) -> str:
        at = self.progress
        return f"<Transfer {at.what}: {self.status}, {at.done} of {at.total} bytes>"

    def start(self) -> None:
        """Begin."""
        _running.add(self)
        atexit.unregister(_cancel_all)
        atexit.register(_cancel_all)  # anew, so that it comes before the end of the link
        self._thread.start()

    @property
    def status(self) -> Status:
        """How it is: `running`, `done`, `failed` or `cancelled`."""
        if self._over.is_set() and self._error is None:
            return "done"
        if self._carrier.is_cancelled:
            return "cancelled"
        return "failed" if self._over.is_set() else "running"

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._carrier.progress

    def cancel(self) -> None:
        """Give it up, at once. What has arrived of a file is kept, so that it can be resumed."""
        self._carrier.cancel()

    def wait(self, timeout: float | None = None, *, show: Callable[[Progress], object] | None = None) -> Any:
        """Wait until it is over. Ctrl-C meanwhile cancels it.

        Args:
            timeout: seconds to wait, at most; then the transfer goes on.
            show: is called with the progress, in this thread, about ten times a second and at the end.

        Returns:
            The value that was pulled, or what became of what was pushed or copied.

        Raises:
            TransferError, LinkLostError: it did not cross, and why. TimeoutError: it is still on its way.
        """
        if self._pid != os.getpid():
            raise RemoterError("this transfer was begun before the process forked", id="forked")
        try:
            is_over = self._wait(timeout, show)
        except BaseException:  # Ctrl-C, as a rule
            self.cancel()
            self._over.wait(AFTER_INTERRUPT)
            raise
        if not is_over:
            what = self._carrier.label
            raise StillRunningError(f"`{what}` has not crossed within {timeout:g} s; it is still on its way")
        return self._outcome()

    def _wait(self, timeout: float | None, show: Callable[[Progress], object] | None) -> bool:
        """Whether it is over, or given up. In small steps: on Windows nothing else lets Ctrl-C through."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._over.wait(max(0.0, min(TICK, deadline - time.monotonic()))):
            if self._carrier.is_cancelled:
                self._over.wait(GRACE)
                break
            if time.monotonic() >= deadline:
                return False
            if show is not None:
                show(self.progress)
        if show is not None:
            show(self.progress)
        return True

    def _outcome(self) -> Any:
        if not self._over.is_set():
            raise _cancelled(self._carrier.label)
        if isinstance(self._error, RemoterError):
            raise copy.copy(self._error)  # each who is told gets a traceback of his own
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self, work: Callable[[Carrier], Any]) -> None:
        try:
            self._value = work(self._carrier)
        except RemoterError as error:
            # Its frames hold what was on its way, perhaps gigabytes, for as long as somebody has the error.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            self._error = error
        except BaseException as error:
            self._error = error
        self._carrier.release(went_well=self._error is None)
        _running.discard(self)
        self._over.set()


def _cancel_all() -> None:
    """The process ends."""
    transfers = [transfer for transfer in list(_running) if transfer._pid == os.getpid()]
    for transfer in transfers:
        transfer.cancel()
    for transfer in transfers:
        transfer._over.wait(GRACE)


def _cancelled(label: str) -> TransferError:
    return TransferError(f"the transfer of `{label}` was cancelled", id="cancelled")


# --- what a transfer's work does it with -----------------------------------------------------


class Carrier:
    """Takes steps and carries streams for a transfer's work, in the transfer's thread; counts; can be cancelled.

    Everything that waits here ends soon after `cancel`, with a TransferError whose id is "cancelled".
    """

    def __init__(self, id: str, label: str, ask: Ask, place: Callable[[], Place]) -> None:
        self.id, self.label = id, label
        self._ask, self._place = ask, place
        self._cancel = threading.Event()
        self._stepped: set[str] = set()
        self._has_carried = False
        self._forgotten = 0
        self._meter = Meter()
        self._base = self._done = self._total = 0
        self._files_done = self._files_total = 0
        self._doing = ""
        self._note = ""
        self._trouble = ""

    # --- for the work ------------------------------------------------------------------------

    def step(self, what: str, data: dict[str, Any], *, transfer: str | None = None) -> dict[str, Any]:
        """Take a step of the transfer (`Step`) and wait for its answer.

        Raises:
            RemoterError: it is refused, the session is gone, or the transfer was cancelled.
        """
        self.check()
        name = transfer or self.id
        self._stepped.add(name)
        future = self._ask(name, what, data)
        try:
            answer = self._await(future)
        finally:
            future.cancel()
            self._trouble = ""
        if what == "release":
            self._stepped.discard(name)
        return answer

    def begun(self) -> None:
        """The server has something of this transfer already, which it lets go at the end."""
        self._stepped.add(self.id)

    def found(self, bytes: int) -> None:
        """So much is here without a stream, since the server is on this machine; it may let go of it."""
        self.total(bytes)
        self._done, self._has_carried = bytes, True

    def receive(self, sink: Sink, *, transfer: str, compress: bool | None = None) -> dict[str, Any]:
        """Have the stream of that name carried here, into the sink, which is closed then, whatever happens.

        Args:
            sink: what takes it; it may have the beginning already.
            transfer: the stream's name.
            compress: True or False; None: as the connection's rate suggests.

        Returns:
            What the sink said when all was there.

        Raises:
            Forgotten: the server was started again: take the step again, and come back with another sink.
            RemoterError: it did not cross.
        """
        try:
            receiving = Receiving(sink, compress=compress)
            self._begin(sink.position, sink.size, "write")
            if receiving.is_complete:
                return sink.finish()
            return self._carry(transfer, sink.size, lambda connection: self._receive(connection, receiving))
        except (OSError, MemoryError) as error:
            raise error_from(error, "write") from None
        finally:
            sink.close()

    def send(self, source: Source, *, transfer: str, compress: bool | None = None) -> dict[str, Any]:
        """Have the stream of that name carried to the server, from the source, which is closed then.

        Args and what it raises: as `receive`.

        Returns:
            What the server said when it had all of it.
        """
        try:
            sending = Sending(source, compress=compress)
            self._begin(0, source.size, "read")
            return self._carry(transfer, source.size, lambda connection: self._send(connection, sending))
        except (OSError, MemoryError) as error:
            raise error_from(error, "read") from None
        finally:
            source.close()

    def note(self, text: str) -> None:
        """Say what is being waited for; empty: nothing special."""
        self._note = text

    def total(self, bytes: int, files: int = 0) -> None:
        """So much is to cross in all, in the streams from here on; without this each stream counts when it begins."""
        self._base = self._done = self._files_done = 0
        self._total, self._files_total = bytes, files
        self._meter.restart(0)

    def file_done(self) -> None:
        """One more file of a folder has crossed."""
        self._files_done += 1

    def check(self) -> None:
        """Raises TransferError: the transfer was cancelled."""
        if self._cancel.is_set():
            raise _cancelled(self.label)

    # --- for the handle ----------------------------------------------------------------------

    @property
    def is_cancelled(self) -> bool:
        return self._cancel.is_set()

    def cancel(self) -> None:
        """From any thread: give it up."""
        self._cancel.set()

    def release(self, *, went_well: bool) -> None:
        """It is over: the server need keep nothing of it. Nobody waits for its answer."""
        if self._has_carried or not went_well:
            for name in self._stepped:
                with contextlib.suppress(RemoterError):
                    self._ask(name, "release", {})

    @property
    def progress(self) -> Progress:
        """How far it is. From any thread."""
        rate, done, total = self._meter.rate, self._done, max(self._total, self._done)
        return Progress(
            what=self.label,
            done=done,
            total=total,
            rate=rate,
            left=(total - done) / rate if rate > 0 else None,
            files_done=self._files_done,
            files_total=self._files_total,
            note=self._trouble or self._note,
        )

    # --- steps -------------------------------------------------------------------------------

    def _await(self, future: Future[dict[str, Any]]) -> dict[str, Any]:
        began = time.monotonic()
        while True:
            try:
                return future.result(TICK)
            except TimeoutError:
                if future.done():
                    return future.result()
            self.check()
            if time.monotonic() - began > STEP_PATIENCE:
                self._trouble = "waiting for the session"

    # --- streams -----------------------------------------------------------------------------

    def _begin(self, position: int, size: int, doing: str) -> None:
        """A stream begins, of which so much has crossed already."""
        self._base, self._doing = self._done, doing
        self._total = max(self._total, self._base + size)
        self._done = self._base + position
        self._meter.restart(self._done)

    def _moved(self, position: int) -> None:
        """The stream is as far as this."""
        self._done = self._base + position
        self._meter.add(self._done)

    def _carry(self, transfer: str, size: int, drive: Callable[[Passage], T]) -> T:
        """Carry a stream over as many connections as it takes."""
        self._has_carried = True
        pause, rejections, fruitless = FIRST_PAUSE, 0, 0
        while True:
            done, joined_at = self._done, float("-inf")
            try:
                with self._join(transfer, size) as connection:
                    joined_at = time.monotonic()
                    return drive(connection)
            except BrokenError as error:
                log.info("the connection for `%s` at %d bytes: %s", transfer, self._done, error)
                self._trouble, cause = "connection lost", str(error)
                rejections = rejections + 1 if error.was_rejected else 0
            if self._done > done:
                pause, fruitless = FIRST_PAUSE, 0
            elif time.monotonic() - joined_at < QUICKLY:
                fruitless += 1
            if rejections >= REJECTIONS:
                raise AuthError("the session no longer admits this client", cause=cause)
            if fruitless >= FRUITLESS:
                raise TransferError(f"`{self.label}` does not cross: every connection breaks", cause=cause)
            self._cancel.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    @contextlib.contextmanager
    def _join(self, transfer: str, size: int) -> Iterator[Passage]:
        """A connection that carries that transfer; on leaving it the server is told what went wrong here."""
        connection = self._connect(transfer, size)
        linger = 0
        try:
            yield connection
            linger, self._trouble = LINGER, ""
        except (RemoterError, OSError, MemoryError) as error:
            failure = error_from(error, self._doing)
            if not self.is_cancelled and not isinstance(error, Forgotten):
                connection.send(refused_of(failure))
                linger = LINGER
            raise failure from None
        finally:
            connection.close(linger)

    def _connect(self, transfer: str, size: int) -> Passage:
        """Connect to one of the server's addresses and join the transfer there."""
        self.check()
        try:
            place = self._place()
            endpoints = endpoints_of(place)
        except LinkLostError:
            raise
        except (RemoterError, OSError) as error:  # not now: a shared home that stutters, a name server
            raise BrokenError(f"no way there: {error}") from None
        trouble = BrokenError("it has no address")
        for endpoint in endpoints:
            connection = Passage(place)
            try:
                connection.connect(endpoint)
                self._introduce(connection, transfer, size)
            except BrokenError as error:
                connection.close()
                trouble = error
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        raise trouble

    def _introduce(self, connection: Passage, transfer: str, size: int) -> None:
        deadline = time.monotonic() + ATTEMPT
        joined = False
        while time.monotonic() < deadline:
            message, _ = self._hear(connection)
            if connection.is_open and not joined:
                connection.send(Join(transfer=transfer, protocol=PROTOCOL))
                joined = True
            if isinstance(message, Joined):
                if message.size != size:
                    cause = f"{size} bytes were announced, now there are {message.size}"
                    raise TransferError(f"`{self.label}` is another one now", cause=cause, id="changed")
                self._trouble = "resuming" if self._trouble else ""
                return
        raise BrokenError(f"no answer within {ATTEMPT:g} s")

    def _hear(self, connection: Passage, wait: bool = True) -> tuple[OnData | None, zmq.Frame | None]:
        """What the server says; nothing, if that is so for a moment. Raises what it refuses with."""
        self.check()
        message, payload = connection.hear(int(TICK * 1000) if wait else 0)
        if isinstance(message, Refused):
            raise self._error_of(message)
        if message is not None:
            connection.heard = time.monotonic()
        if isinstance(message, Chunk | Read):
            self._trouble = ""
        elif wait and connection.is_open and time.monotonic() - connection.heard > STREAM_PATIENCE:
            self._trouble = "waiting for the session"
        return message, payload

    def _error_of(self, refused: Refused) -> RemoterError:
        if refused.kind != "unknown":
            return error_of(refused)
        # Its work takes the step again and comes back. If that does not help either, it is no restart.
        self._forgotten = 1 if self._done > self._base else self._forgotten + 1
        self._done = self._base
        if self._forgotten > FORGOTTEN:
            return TransferError(f"the session does not know of the transfer of `{self.label}`")
        self._cancel.wait(FIRST_PAUSE * self._forgotten)
        return Forgotten(refused.message)

    def _receive(self, connection: Passage, receiving: Receiving) -> dict[str, Any]:
        receiving.restart_asking()
        while not receiving.is_complete:
            for read in receiving.asks():
                connection.send(read)
            message, payload = self._hear(connection)
            if isinstance(message, Chunk) and payload is not None:
                receiving.take(message, payload.buffer)
                self._moved(receiving.sink.position)
        data = receiving.sink.finish()
        connection.send(Done())
        return data

    def _send(self, connection: Passage, sending: Sending) -> dict[str, Any]:
        sending.forget()
        while True:
            message, _ = self._hear(connection, wait=not sending.is_asked)
            if isinstance(message, Done):
                return message.data
            if isinstance(message, Read):
                sending.asked(message)
            elif sending.is_asked:
                chunk, payload = sending.next()
                while not connection.send(chunk, payload):
                    self.check()
                    connection.wait_for_room(int(TICK * 1000))
                self._moved(chunk.offset + chunk.size)
