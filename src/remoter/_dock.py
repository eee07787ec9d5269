"""The dock: where the bytes of transfers come and go; in the server's process, in threads of its own.

One thread has the sockets. Each transfer that a client has joined has another, which reads its source or writes
to its sink: a slow disk, or an interpreter that is busy, keeps nobody waiting but who asked for it. The
control loop offers sources and accepts into sinks, and hears what became of a sink.

    control loop ── offer, accept, drop ──▶ berth ◀── mailbox ── socket thread ◀──▶ clients (CURVE, data.sock)
                                              └─ its thread: Sending | Receiving ── post ──▶ ┘

A connection means nothing: a client that comes again joins the same transfer, which goes on where it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import zmq

from . import __version__
from ._errors import RemoterError, TransferError
from ._messages import (
    PROTOCOL,
    Chunk,
    Done,
    Join,
    Joined,
    Message,
    MessageError,
    Read,
    Refused,
    common_protocol,
    decode_on_data,
    encode,
    error_of,
    refused_of,
)
from ._pieces import LARGEST_WINDOW, LONGEST_DATA_MESSAGE, MIB, Receiving, Sending, Sink, Source, error_from
from ._security import ZAP_ADDRESS, KeyPair, Keyring, answer_zap, is_readable, secure_server_socket

log = logging.getLogger("remoter.dock")

FORGET = 600.0
"""Seconds after which a transfer is dropped that no client has joined or touched."""

PROBE = 60.0
"""Seconds of silence after which we look whether the client that joined is still there."""

LOOK = 1.0
"""Seconds between looks at these clocks."""

AT_WORK = 16
LONGEST_TURN = 1.0
"""Transfers that may read, write, hash and compress at the same time. The others wait their turn, but not longer than
so many seconds: those at work may be stuck, in a busy interpreter or a dead file system."""

AHEAD = 3
"""Chunks that a transfer's thread makes before the first of them is with libzmq."""

HIGH_WATER = 34
"""Messages that libzmq holds for one client: a whole window, so that only who asks for more and does not read is held up."""

LONGEST_BACKLOG = 2 * LARGEST_WINDOW + 8 * MIB
"""Bytes from one client that wait for the transfer's thread: what was asked for before and after a new beginning."""

COST = 1024
"""What a message counts in that, beside the bytes of its chunk."""

RETRY = 5
"""Milliseconds between looks whether a client that was held up has room."""

MESSAGES_AT_ONCE = 64

Report = Callable[[dict[str, Any] | None, RemoterError | None], None]
"""Hears what became of a sink: what its `finish` returned, or what went wrong."""


# --- one transfer ----------------------------------------------------------------------------


class _Connection:
    """The connection over which a client carries a transfer now.

    The transfer's thread puts in what is to be sent, the dock's thread takes it out when libzmq has it.
    """

    def __init__(self, dock: Dock, identity: bytes, berth: _Berth) -> None:
        self.identity, self.berth = identity, berth
        self.is_gone = False
        self.waiting: deque[list[Any]] = deque()
        self.is_awaited = False
        self._dock = dock

    def send(self, *frames: Any) -> None:
        """Have it sent."""
        self.waiting.append([self.identity, *frames])
        self._dock.post(self._dock.flush, self)

    def has_room(self) -> bool:
        """Whether more should be sent. If not, something comes into the mailbox once there is room."""
        self.is_awaited = True  # before we look, or the last one could be taken out in between
        return len(self.waiting) < AHEAD


class _Berth:
    """One transfer at the dock: its mailbox, its thread, and what became of it.

    Its thread runs `work`, `ended`, and what they call; all else is called by the dock.
    """

    doing = ""

    def __init__(self, dock: Dock, name: str, stream: Source | Sink) -> None:
        self.dock, self.name, self.stream = dock, name, stream
        self.size = stream.size
        self.position = 0
        self.mailbox: SimpleQueue[tuple[Any, zmq.Frame | None]] = SimpleQueue()
        self.connection: _Connection | None = None
        self.outcome: bytes | None = None
        self.touched = time.monotonic()
        self.arrived = 0  # counted by the dock's thread, and
        self.worked = 0  # by the transfer's own: neither needs a lock
        self.is_dropped = False
        self.thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to work, if it has not begun."""
        with self._lock:
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="remoter-berth", daemon=True)
                self.thread.start()

    def put(self, item: Any, frame: zmq.Frame | None = None) -> None:
        """Into its mailbox. A client that sends far more than it was asked for is refused."""
        if self.is_dropped or self.outcome is not None:
            return
        self.touched = time.monotonic()
        was_too_much = self.arrived - self.worked > LONGEST_BACKLOG
        if not was_too_much:
            self.arrived += _cost(frame)
            if self.arrived - self.worked > LONGEST_BACKLOG:
                item, frame = Refused(error="TransferError", message="more was sent than was asked for"), None
            self.mailbox.put((item, frame))

    def drop(self) -> None:
        """Nobody wants it any more: its thread closes the stream and ends."""
        self.is_dropped = True
        if self.outcome is None:
            self.mailbox.put((None, None))
            self.start()

    def next(self) -> tuple[Any, zmq.Frame | None]:
        """What came, when something has come. Raises RemoterError if that is the end."""
        item, frame = self.mailbox.get()
        if self.is_dropped:
            raise TransferError("the transfer was given up", id="cancelled")
        if item is not None:
            self.worked += _cost(frame)
        if isinstance(item, Refused):
            raise error_of(item)
        return item, frame

    def _run(self) -> None:
        data: dict[str, Any] | None = None
        failure: RemoterError | None = None
        try:
            data = self.work()
        except Exception as error:
            failure = error_from(error, self.doing)
            if not isinstance(error, RemoterError | OSError | MemoryError):
                log.exception("a transfer failed")
        try:
            self.stream.close()
        except Exception:
            log.exception("while closing what a transfer used")
        self.ended(data, failure)
        outcome = Done(data=data or {}) if failure is None else refused_of(failure)
        self.dock.post(self.dock.settle, self, outcome)

    def work(self) -> dict[str, Any] | None:
        """All of the transfer. Raises RemoterError, OSError."""
        raise NotImplementedError

    def ended(self, data: dict[str, Any] | None, failure: RemoterError | None) -> None:
        """It is over."""


class _Outgoing(_Berth):
    """A source that a client reads."""

    doing = "read"

    def __init__(self, dock: Dock, name: str, source: Source) -> None:
        super().__init__(dock, name, source)
        self.source = source

    def work(self) -> None:
        sending = Sending(self.source)
        connection: _Connection | None = None
        while True:
            if connection is not None and connection.is_gone:
                connection = None
            if connection is None:
                sending.forget()
            elif sending.is_asked and connection.has_room() and self.mailbox.empty():
                self._send_next(sending, connection)
                continue
            item, _ = self.next()
            if isinstance(item, Done):
                return
            if isinstance(item, _Connection):
                connection = item
                sending.forget()
            elif isinstance(item, Read):
                sending.asked(item)

    def _send_next(self, sending: Sending, connection: _Connection) -> None:
        with self.dock.turn():
            chunk, data = sending.next()
            payload = zmq.Frame(data, copy=True)  # so the dock's thread, which serves all, copies nothing
        connection.send(encode(chunk), payload)


class _Incoming(_Berth):
    """A sink that a client fills."""

    doing = "write"

    def __init__(self, dock: Dock, name: str, sink: Sink, done: Report) -> None:
        super().__init__(dock, name, sink)
        self.sink, self.done = sink, done
        self.position = sink.position

    def work(self) -> dict[str, Any]:
        receiving = Receiving(self.sink)
        connection: _Connection | None = None
        while not receiving.is_complete:
            item, frame = self.next()
            if isinstance(item, _Connection):
                connection = item
                receiving.restart_asking()
            elif isinstance(item, Chunk) and frame is not None:
                with self.dock.turn():
                    receiving.take(item, frame.buffer)
                self.position = self.sink.position
            if connection is not None:
                for read in receiving.asks():
                    connection.send(encode(read))
        return self.sink.finish()

    def ended(self, data: dict[str, Any] | None, failure: RemoterError | None) -> None:
        try:
            self.done(data, failure)
        except Exception:
            log.exception("while telling what became of a transfer")


def _cost(frame: zmq.Frame | None) -> int:
    """What a message counts in the backlog."""
    return COST + (0 if frame is None else len(frame))


# --- the dock --------------------------------------------------------------------------------


class Dock:
    """The socket at which data comes and goes, and all transfers under way.

    `offer`, `accept`, `drop` and `known` may be called from any thread and never wait.

    Args:
        directory: the run directory, where `data.sock` is made.
        keys: the server's key pair.
        keyring: says which clients are admitted.
    """

    def __init__(self, directory: Path, keys: KeyPair, keyring: Keyring) -> None:
        self._turns = threading.Semaphore(AT_WORK)
        self._path = directory / "data.sock"
        self._keys, self._keyring = keys, keyring
        self._lock = threading.Lock()
        self._berths: dict[str, _Berth] = {}
        self._connections: dict[bytes, _Connection] = {}
        self._held_up: set[_Connection] = set()
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_woken = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="remoter-dock", daemon=True)

    def start(self) -> None:
        """Open the socket."""
        self._context = zmq.Context()
        self._zap = self._context.socket(zmq.ROUTER)
        self._zap.linger = 0
        self._zap.bind(ZAP_ADDRESS)
        self._router = secure_server_socket(
            self._context, self._keys, high_water=HIGH_WATER, longest=LONGEST_DATA_MESSAGE
        )
        self._path.unlink(missing_ok=True)
        old_mask = os.umask(0o177)
        try:
            self._router.bind(f"ipc://{self._path}")
        finally:
            os.umask(old_mask)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Give up what is under way and close the socket; waits, at most so long, until all streams are closed."""
        if self._thread.ident is None:  # never opened
            return
        with self._lock:
            berths = list(self._berths.values())
        for berth in berths:
            self._forget(berth)
        self._is_stopping = True
        self._wake()
        deadline = time.monotonic() + timeout
        for thread in [*(berth.thread for berth in berths), self._thread]:
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def offer(self, transfer: str, source: Source) -> None:
        """Let a client read this. It is closed when the client has all, or nobody wants it any more."""
        self._take_in(_Outgoing(self, transfer, source))

    def accept(self, transfer: str, sink: Sink, done: Report) -> None:
        """Let a client fill this.

        `done` is called once, in the transfer's thread, when the sink is closed: with what its `finish` returned, or
        with what went wrong. What `finish` returned is kept for the client until the transfer is dropped.
        """
        self._take_in(_Incoming(self, transfer, sink, done))

    def drop(self, transfer: str) -> None:
        """It is over, or nobody wants it any more. What is open is closed, in the transfer's thread."""
        if (berth := self._berths.get(transfer)) is not None:
            self._forget(berth)

    def known(self, transfer: str) -> bool:
        """Whether a client can join it: it is under way, or what became of it is still kept."""
        return transfer in self._berths

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """For the thread of a transfer that has work to do."""
        is_ours = self._turns.acquire(timeout=LONGEST_TURN)
        try:
            yield
        finally:
            if is_ours:
                self._turns.release()

    def _take_in(self, berth: _Berth) -> None:
        with self._lock:
            before = self._berths.get(berth.name)
            self._berths[berth.name] = berth
        if before is not None:
            before.drop()

    def _forget(self, berth: _Berth) -> None:
        with self._lock:
            if self._berths.get(berth.name) is berth:  # not one that has taken its place meanwhile
                del self._berths[berth.name]
        berth.drop()

    # --- the thread that has the sockets -----------------------------------------------------

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have that called in the dock's thread."""
        self._posted.append((function, arguments))
        self._wake()

    def _wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(OSError):  # it has been stopped
                self._wake_out.send(b"x")

    def _run(self) -> None:
        poller = zmq.Poller()
        for each in (self._zap, self._router, self._wake_in):
            poller.register(each, zmq.POLLIN)
        look_at = time.monotonic() + LOOK
        while not self._is_stopping:
            pause = RETRY if self._held_up else int(1000 * max(0.0, look_at - time.monotonic())) + 1
            poller.poll(pause)
            try:
                self._turn()
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + LOOK
                    self._look_at_clocks()
            except Exception:  # a mistake with one transfer must not end all others
                log.exception("at the dock")
        for sock in (self._zap, self._router):
            sock.close(0)
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()

    def _turn(self) -> None:
        """All that there is to do now."""
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)
        self._is_woken = False  # before we look: who posts from here on wakes us again
        for connection in list(self._held_up):
            self.flush(connection)
        for _ in range(len(self._posted)):
            function, arguments = self._posted.popleft()
            function(*arguments)
        while is_readable(self._zap):
            answer_zap(self._zap, self._keyring)
        for _ in range(MESSAGES_AT_ONCE):
            if not is_readable(self._router):
                break
            self._receive(self._router.recv_multipart(zmq.NOBLOCK, copy=False))

    def _receive(self, frames: list[zmq.Frame]) -> None:
        identity, payload = frames[0].bytes, frames[2] if len(frames) > 2 else None
        try:
            message = decode_on_data(frames[1].buffer if len(frames) > 1 else b"")
        except MessageError as error:
            log.warning("skipped a message of a data connection that is not understood: %s", error)
            return
        if isinstance(message, Join):
            self._join(identity, message)
        elif (connection := self._connections.get(identity)) is not None:
            connection.berth.put(message, payload)

    def _join(self, identity: bytes, join: Join) -> None:
        berth = self._berths.get(join.transfer)
        if berth is None or common_protocol(join.protocol) is None:
            refusal = _unknown() if berth is None else _no_common(join.protocol)
            with contextlib.suppress(zmq.ZMQError):
                self._router.send_multipart([identity, encode(refusal)], zmq.NOBLOCK)
            return
        if berth.connection is not None:
            self._connections.pop(berth.connection.identity, None)
        connection = self._connections[identity] = berth.connection = _Connection(self, identity, berth)
        log.debug("a client joins a transfer at %d of %d bytes", berth.position, berth.size)
        connection.send(encode(Joined(size=berth.size, position=berth.position)))
        if berth.outcome is not None:
            connection.send(berth.outcome)
            return
        berth.put(connection)
        berth.start()

    def settle(self, berth: _Berth, outcome: Message) -> None:
        """The transfer is over: its client is told, also one that is away just now and comes back."""
        berth.touched = time.monotonic()
        berth.outcome = encode(outcome)
        if len(berth.outcome) > LONGEST_DATA_MESSAGE:
            berth.outcome = encode(refused_of(TransferError("there is too much to say of what became of it")))
        if berth.is_dropped:
            if berth.connection is not None:
                berth.connection.send(encode(_unknown()))  # whoever still waits for it takes the step again
            return
        if isinstance(berth, _Outgoing) and isinstance(outcome, Done):
            self._forget(berth)  # it was the client that said so
        elif berth.connection is not None:
            berth.connection.send(berth.outcome)

    def flush(self, connection: _Connection) -> None:
        """Give libzmq what it has room for."""
        while connection.waiting and not connection.is_gone:
            try:
                self._router.send_multipart(connection.waiting[0], zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._held_up.add(connection)
                return
            except zmq.ZMQError as error:  # EHOSTUNREACH, as a rule
                log.debug("a data connection is gone: %s", error)
                connection.is_gone = True
            else:
                connection.waiting.popleft()
        if connection.is_gone:
            connection.waiting.clear()
        self._held_up.discard(connection)
        if connection.is_awaited:
            connection.is_awaited = False
            connection.berth.mailbox.put((None, None))

    def _look_at_clocks(self) -> None:
        """Forget transfers that nobody has touched. A client may be there for hours and wait for a busy interpreter."""
        now = time.monotonic()
        for berth in list(self._berths.values()):
            connection = berth.connection
            if connection is not None and berth.outcome is None and now - berth.touched > PROBE:
                connection.send(encode(Joined(size=berth.size, position=berth.position)))
                self.flush(connection)
                if not connection.is_gone:
                    berth.touched = now
            if now - berth.touched > FORGET:
                log.info("forgot a transfer of %d bytes that nobody asked for", berth.size)
                self._forget(berth)
        self._connections = {
            identity: connection
            for identity, connection in self._connections.items()
            if not connection.is_gone and self._berths.get(connection.berth.name) is connection.berth
        }


def _unknown() -> Refused:
    return Refused(
        error="TransferError", message="the session does not know of this transfer", kind="unknown"
    )


def _no_common(protocol: tuple[int, int]) -> Refused:
    return Refused(
        error="VersionError",
        message=f"no common protocol: here {PROTOCOL[0]} to {PROTOCOL[1]} (remoter {__version__}), "
        f"on the client's side {protocol[0]} to {protocol[1]}",
        hints=("update the older of the two",),
    )
