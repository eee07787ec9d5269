"""One connection to a session, and the loop thread on which all of them live; in the client's process.

Sockets are single-use: libzmq's own reconnecting is off, because it loses what was in flight and
after one odd answer never tries again. What to do when a connection fails is the link's matter.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from ._messages import FromServer, MessageError, decode_from_server
from ._security import NOBLOCK, KeyPair, is_readable, secure_client_socket

log = logging.getLogger("remoter.link")

MESSAGES_AT_ONCE = 100
LINGER = 500  # milliseconds in which a goodbye may still leave


@dataclass(frozen=True)
class Pace:
    """How fast a link reacts, in seconds."""

    ping: float = 2.0
    lost: float = 6.0
    give_up: float = 30.0
    attempt: float = 10.0
    first_wait: float = 0.05
    longest_wait: float = 5.0
    acknowledge: float = 0.05


@dataclass(frozen=True)
class Place:
    """Where a server listens now, and the keys for it: a unix socket, or a host and its port."""

    keys: KeyPair
    server_public: str
    socket: str | None = None
    host: str = ""
    port: int = 0


@dataclass(frozen=True)
class LinkState:
    """How a link is. `since`: since when (of `lost`: when the server was last heard), by `time.time()`."""

    state: Literal["connecting", "ok", "lost", "closed"]
    since: float
    detail: str = ""


# --- the loop thread -------------------------------------------------------------------------


class LoopThread:
    """The one thread of this process on which all links live."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.SelectorEventLoop()
        self.context = zmq.Context()
        self.at_end: set[Callable[[], None]] = set()
        self.thread = threading.Thread(target=self._run, name="remoter-client", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        for say_goodbye in list(self.at_end):
            say_goodbye()
        self.loop.close()
        self.context.destroy(linger=LINGER)

    def stop(self) -> None:
        """Say goodbye for all links, within a second."""
        if self.pid == os.getpid() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(2 * LINGER / 1000)


_threads: list[LoopThread] = []  # never shortened: what a fork copied must not be collected
_threads_lock = threading.Lock()


def loop_thread() -> LoopThread:
    with _threads_lock:
        if not _threads or _threads[-1].pid != os.getpid():
            _threads.append(LoopThread())
            atexit.register(_threads[-1].stop)
        return _threads[-1]


_wires: dict[int, int] = {}
"""The descriptors of connected sockets, which only libzmq has, and their inodes: a number may stand for another file by now."""


def _begin_child() -> None:
    """In a forked child: the other end must not take us for its client when that has ended."""
    global _threads_lock
    _threads_lock = threading.Lock()
    for descriptor, inode in list(_wires.items()):
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == inode:
                nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(nowhere, descriptor, inheritable=False)  # the copied context believes that it has it
                os.close(nowhere)
    _wires.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


# --- one connection --------------------------------------------------------------------------


class User(Protocol):
    """Whoever uses a connection: the link. All is called on the loop thread."""

    def attach_message(self) -> bytes:
        """The first message."""

    def receive(self, connection: Connection, message: FromServer) -> None:
        """What the server says."""

    def connection_failed(self, connection: Connection, kind: str, detail: str) -> None:
        """The connection came to nothing, or broke."""


_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)


class Connection:
    """One socket, from connect to close.

    A zmq socket's descriptor is edge-triggered: it wakes us once, and any call on the socket can
    eat that wake-up. So everything is read until nothing is left, and looked at again after sends.
    """

    def __init__(self, user: User, thread: LoopThread, place: Place, endpoint: str, patience: float) -> None:
        self.user = user
        self.loop = thread.loop
        self.patience = patience
        self.unsent: deque[bytes] = deque()
        self.heard = self.loop.time()
        self.attached_at: float | None = None
        self.attach_sent = False
        self.is_closed = False
        self.wire = (-1, 0)
        self.socket = secure_client_socket(thread.context, place.keys, place.server_public)
        told = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILURES
        self.monitor = self.socket.get_monitor_socket(told)
        self.descriptors = [self.socket.fileno(), self.monitor.fileno()]
        self.loop.add_reader(self.descriptors[0], self._readable)
        self.loop.add_reader(self.descriptors[1], self._observe)
        self.expiry = self.loop.call_later(patience, self._expire)
        self.socket.connect(endpoint)
        self.loop.call_soon(self._observe)

    def send(self, data: bytes) -> None:
        """Send now, or when there is room."""
        if self.is_closed:
            return
        self.unsent.append(data)
        self._flush()
        if is_readable(self.socket):
            self.loop.call_soon(self._readable)

    def _flush(self) -> None:
        while self.unsent:
            try:
                self.socket.send(self.unsent[0], NOBLOCK)
            except zmq.Again:
                return
            self.unsent.popleft()

    def _readable(self) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            if self.is_closed:
                return
            if self.unsent:
                self._flush()
            if not is_readable(self.socket):
                return
            data = self.socket.recv(NOBLOCK)
            self.heard = self.loop.time()
            try:
                message = decode_from_server(data)
            except MessageError as error:
                log.info("skipped a message of the server: %s", error)
                continue
            try:
                self.user.receive(self, message)
            except Exception:
                # A watcher's mistake must not end the reading: the wake-up would be lost.
                log.exception("while taking in %s", type(message).__name__)
        self.loop.call_soon(self._readable)  # let others have their turn

    def _observe(self) -> None:
        """What libzmq says about the handshake."""
        while not self.is_closed:
            try:
                report = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            event, value = report["event"], report["value"]
            if event == zmq.EVENT_CONNECTED:
                with contextlib.suppress(OSError):
                    self.wire = value, os.fstat(value).st_ino
                    _wires[value] = self.wire[1]
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.attach_sent = True
                self.send(self.user.attach_message())
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self.fail("rejected", f"the server does not admit this key (status {value})")
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self.fail("protocol", "what answers there does not speak CURVE")
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self.fail("cut", "the connection was closed in the handshake, as for a wrong server key")
            elif event == zmq.EVENT_CLOSED:
                self.fail("refused", "nobody accepts connections there")
            elif event == zmq.EVENT_DISCONNECTED:
                self.fail("dropped", "the connection broke")

    def _expire(self) -> None:
        self.fail("silent", f"no answer within {self.patience:g} s")

    def fail(self, kind: str, detail: str) -> None:
        """This connection has come to nothing."""
        if not self.is_closed:
            self._drain()
        if not self.is_closed:
            self.close()
            self.user.connection_failed(self, kind, detail)

    def _drain(self) -> None:
        """Read what came before the end: a goodbye, the last events."""
        with contextlib.suppress(zmq.ZMQError):
            while not self.is_closed and is_readable(self.socket):
                self._readable()

    def close(self, linger: int = 0) -> None:
        """Give the socket back."""
        if self.is_closed:
            return
        self.is_closed = True
        if self.wire in _wires.items():
            del _wires[self.wire[0]]
        self.expiry.cancel()
        for descriptor in self.descriptors:
            self.loop.remove_reader(descriptor)
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger)


# --- looking up hosts ------------------------------------------------------------------------


def look_up_host(
    loop: asyncio.AbstractEventLoop, host: str, port: int, found: Callable[[list[str] | OSError], None]
) -> None:
    """The host's addresses; names are looked up in a thread, since that can take long."""
    with contextlib.suppress(OSError):
        found(_endpoints(host, port, socket.AI_NUMERICHOST))
        return

    def look_up() -> list[str] | OSError:
        try:
            return _endpoints(host, port)
        except OSError as error:
            return error

    in_thread(loop, look_up, found)


def _endpoints(host: str, port: int, flags: int = 0) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [f"tcp://[{a}]:{port}" if ":" in a else f"tcp://{a}:{port}" for a in addresses]


def in_thread(
    loop: asyncio.AbstractEventLoop, function: Callable[[], Any], done: Callable[[Any], None]
) -> None:
    """Call the function in a thread of its own, which nobody waits for, and `done` with what it returned."""

    def call() -> None:
        value = function()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done, value)

    threading.Thread(target=call, name="remoter-look-up", daemon=True).start()
