"""The one TCP port: a thread in the server's process; and the relay, which is the same code in a process of its own.

The door looks at the first bytes of each connection. 0xFF is ZeroMQ: its bytes are copied, unread,
to the server's CURVE socket and back, or to the one for bulk data. `REMOTER/` is the hello dialogue
(`_hello`). A browser gets a line of text. All else is closed. It never runs user code and never
waits for anyone.

What a stranger can do here is bounded: until the server has admitted him he gets 1 KiB inward,
10 s, and one of a limited number of places; when these are taken the oldest stranger goes, so
that a crowd of silent ones keeps nobody out.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import ipaddress
import logging
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ._address import DEFAULT_PORT, check_port, parse
from ._errors import AddressError, RemoterError
from ._hello import Hello
from ._login import place
from ._messages import DATA_ROUTING_ID
from ._splice import BUFFER, Splice

log = logging.getLogger("remoter.door")

Target = Path | tuple[str, int]
"""Where ZeroMQ connections go: a unix socket, or a host and its port."""

STRANGER_BYTES = 1024
"""Bytes that pass inward before that. CURVE needs 64 + 202 (HELLO) + 301 (INITIATE) = 567, and 822
with the longest routing id; what is above waits outside."""

SIGNATURE = 10  # bytes at the beginning of ZeroMQ, by which connections for bulk data are known

HELLO_BYTES = 16 * 1024
HELLO_TIME = 600.0
"""The same for a hello that passes through a relay: bytes inward, and seconds in all."""

SILENCE = 10.0
"""Seconds in which a stranger has to be admitted."""

PATIENCE = 2.0
"""Seconds that a relay waits, at its start, for a word of the server that it leads to."""

BACKLOG = 512
PAUSE_WITHOUT_DESCRIPTORS = 0.5
NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
VERBS = (
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"OPTIONS ",
    b"DELETE ",
    b"PATCH ",
    b"CONNECT ",
    b"TRACE ",
    b"PRI ",
)

_TEXT = b"""This is a port of remoter, not of a web server.
Use it with:  remoter client HOST:PORT   or, in Python:  remoter.client("HOST", PORT)
"""
WEB_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_TEXT), _TEXT)
)


class Limits(NamedTuple):
    """How many connections there may be. Loopback has a larger share: tunnels and relays come from there."""

    total: int
    strangers: int
    one_address: int
    loopback: int

    @classmethod
    def of_this_process(cls) -> Limits:
        """As many as there are descriptors for, of which each connection takes 3."""
        descriptors = raise_descriptor_limit()
        total = max(4, (descriptors - min(128, descriptors // 3)) // 3)
        strangers = max(3, min(1024, total // 2))
        return cls(total, strangers, max(2, strangers // 8), max(2, strangers * 3 // 4))


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as it may have, 65536 at most; how many that are."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (65536, 10240):  # macOS takes no more than the second
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft == resource.RLIM_INFINITY or wanted <= soft:
            break
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return 65536 if soft == resource.RLIM_INFINITY else soft


# --- one who comes ---------------------------------------------------------------------------


class _Visitor:
    """One connection, from its acceptance to its end. Who comes by a unix socket comes from this machine."""

    __slots__ = ("address", "connection", "name", "task")

    def __init__(self, connection: socket.socket, peer: object) -> None:
        self.connection = connection
        self.address, self.name = "127.0.0.1", "a tunnel"
        if isinstance(peer, tuple):
            self.address, port = peer[0], peer[1]
            if self.address.startswith("::ffff:") and "." in self.address:  # IPv4 on a socket for both
                self.address = self.address.removeprefix("::ffff:")
            self.name = place(self.address, port)
        self.task: asyncio.Task[None] | None = None


class _SocketLine:
    """What the hello dialogue reads from and writes to."""

    def __init__(self, connection: socket.socket, early: bytes) -> None:
        self._connection, self._read = connection, early

    async def readexactly(self, n: int, /) -> bytes:
        loop = asyncio.get_running_loop()
        while len(self._read) < n:
            data = await loop.sock_recv(self._connection, 8192)
            if not data:
                raise EOFError
            self._read += data
        data, self._read = self._read[:n], self._read[n:]
        return data

    async def write(self, data: bytes, /) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, data)


class _Strangers:
    """Who was not admitted yet, by address, oldest first; and who has to go when there are too many.

    Always the oldest: a client that knows what it wants is through in milliseconds. The door has
    one of these for handshakes and one for hellos, so that a crowd of one kind does not crowd
    out the other.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: dict[str, collections.OrderedDict[_Visitor, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, visitor: _Visitor) -> Iterator[_Visitor]:
        """Take him in; those who have to go for him."""
        mine = self._of.setdefault(visitor.address, collections.OrderedDict())
        mine[visitor] = None
        self._count += 1
        is_near = ipaddress.ip_address(visitor.address.partition("%")[0]).is_loopback
        if len(mine) > (self._limits.loopback if is_near else self._limits.one_address):
            yield next(iter(mine))
        elif self._count > self._limits.strangers:
            yield self.oldest_of_most()

    def oldest_of_most(self) -> _Visitor:
        """The oldest of the address that has the most."""
        most = max(self._of.values(), key=len)
        return next(iter(most))

    def remove(self, visitor: _Visitor) -> bool:
        """Whether he was one."""
        mine = self._of.get(visitor.address)
        if mine is None or visitor not in mine:
            return False
        del mine[visitor]
        self._count -= 1
        if not mine:
            del self._of[visitor.address]
        return True


# --- the door --------------------------------------------------------------------------------


class Door:
    """Accepts at the listening sockets, in a thread of its own, and joins to `target` who speaks ZeroMQ.

    Args:
        listeners: bound and listening TCP or unix sockets; closed by `stop`.
        target: the server's unix socket; or host and port, for a relay.
        hello: answers `REMOTER/`; None passes it on too, as a relay does.
        limits: how many connections there may be.
        report: is told of each connection in one line, in the door's thread.
        data: the server's unix socket for bulk data; None: there is no other target.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        target: Target,
        hello: Hello | None,
        *,
        limits: Limits | None = None,
        report: Callable[[str], None] | None = None,
        data: Path | None = None,
    ) -> None:
        self._listeners = list(listeners)
        self._target = target
        self._data = data
        self._hello = hello
        self._limits = limits or Limits.of_this_process()
        self._report = report or log.info
        self._strangers = _Strangers(self._limits)
        self._callers = _Strangers(self._limits)
        self._visitors: set[_Visitor] = set()
        self._view = memoryview(bytearray(BUFFER))
        self._thread = threading.Thread(target=self._run, name="remoter-door", daemon=True)

    def start(self) -> None:
        """Open the door."""
        self._loop = asyncio.SelectorEventLoop(selectors.DefaultSelector())
        for listener in self._listeners:
            listener.setblocking(False)
            self._loop.add_reader(listener, self._accept, listener)
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Close the door and every connection. A second call does nothing."""
        if self._thread.ident is None:  # never opened
            for listener in self._listeners:
                listener.close()
            if self._hello is not None:
                self._hello.close()
        if not self._thread.is_alive():
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout)

    @property
    def counts(self) -> tuple[int, int]:
        """How many connections there are, and how many of them are not admitted yet."""
        return len(self._visitors), len(self._strangers) + len(self._callers)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._close())
        finally:
            self._loop.close()
            if self._hello is not None:
                self._hello.close()

    async def _close(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        tasks = [visitor.task for visitor in self._visitors if visitor.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(64):
            try:
                connection, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listener, error)
                return
            connection.setblocking(False)
            self._welcome(_Visitor(connection, peer))

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """Out of descriptors: whoever waits stays readable, so without a pause this would spin."""
        log.warning("cannot accept a connection: %s", error.strerror)
        if error.errno in NO_DESCRIPTORS:
            self._make_room()
        self._loop.remove_reader(listener)
        self._loop.call_later(
            PAUSE_WITHOUT_DESCRIPTORS, self._loop.add_reader, listener, self._accept, listener
        )

    def _welcome(self, visitor: _Visitor) -> None:
        if len(self._visitors) >= self._limits.total and not self._make_room():
            log.warning("too many connections: %s is closed", visitor.name)
            visitor.connection.close()
            return
        self._visitors.add(visitor)
        for one in self._strangers.add(visitor):
            self._dismiss(one)
        visitor.task = self._loop.create_task(self._visit(visitor))
        visitor.task.add_done_callback(lambda task: self._left(visitor))

    def _make_room(self) -> bool:
        """Send the oldest stranger away; whether there was one."""
        crowd = max(self._strangers, self._callers, key=len)
        if len(crowd):
            self._dismiss(crowd.oldest_of_most())
            return True
        return False

    def _dismiss(self, visitor: _Visitor) -> None:
        log.debug("too many strangers: %s is closed", visitor.name)
        self._forget(visitor)
        if visitor.task is not None:
            visitor.task.cancel()

    async def _visit(self, visitor: _Visitor) -> None:
        """The whole of one connection."""
        connection = visitor.connection
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(SILENCE) as deadline:
                kind, early = await _first_words(connection, SIGNATURE if self._data is not None else 1)
                if kind == "hello":
                    deadline.reschedule(None)
                    self._strangers.remove(visitor)
                    for one in self._callers.add(visitor):
                        self._dismiss(one)
                    if self._hello is not None:
                        await self._hello.answer(_SocketLine(connection, early), visitor.address)
                        await _close_gently(connection)
                    else:
                        deadline.reschedule(self._loop.time() + HELLO_TIME)
                        await self._splice(visitor, early, HELLO_BYTES, deadline)
                elif kind == "zmtp":
                    await self._splice(visitor, early, STRANGER_BYTES, deadline)
                elif kind == "web":
                    await self._loop.sock_sendall(connection, WEB_ANSWER)
                    await _close_gently(connection)
        except TimeoutError:
            log.debug("%s was not admitted in time", visitor.name)
        except OSError as error:
            log.debug("connection of %s ended: %s", visitor.name, error)

    def _left(self, visitor: _Visitor) -> None:
        """The end of a visit: also of one that was called off before it had begun."""
        visitor.connection.close()
        self._forget(visitor)
        self._visitors.discard(visitor)

    def _forget(self, visitor: _Visitor) -> None:
        """He is no stranger any more."""
        self._strangers.remove(visitor)
        self._callers.remove(visitor)

    async def _splice(
        self, visitor: _Visitor, early: bytes, allowance: int, deadline: asyncio.Timeout
    ) -> None:
        target = self._data if self._data is not None and carries_data(early) else self._target
        try:
            inner = await _open(target)
        except OSError as error:
            self._report(f"{visitor.name}: closed, nothing listens on {_text(target)} ({error})")
            return
        self._report(f"{visitor.name}: connected to {_text(target)}")

        def admitted() -> None:
            deadline.reschedule(None)
            self._forget(visitor)

        with inner:
            splice = Splice(visitor.connection, inner, self._view, allowance, admitted)
            try:
                splice.start(early)
                await splice.done
            finally:
                splice.stop()
                self._report(f"{visitor.name}: disconnected")


async def _first_words(connection: socket.socket, greeting: int) -> tuple[str, bytes]:
    """What kind of visitor this is, and what he said so far: so much at least, if it is ZeroMQ."""
    loop = asyncio.get_running_loop()
    early = b""
    while True:
        data = await loop.sock_recv(connection, STRANGER_BYTES - len(early))
        early += data
        kind = kind_of(early)
        if not data or (kind and (kind != "zmtp" or len(early) >= greeting)):
            return kind, early


def carries_data(early: bytes) -> bool:
    """Whether it is a connection for bulk data: libzmq begins with the length of its routing id plus one.

    Only ours for data have one of just that length. Who lies gets to a socket that wants the same keys.
    """
    return int.from_bytes(early[1:9], "big") == DATA_ROUTING_ID + 1


def kind_of(early: bytes) -> str:
    """`zmtp`, `hello`, `web` or `other`, from the first bytes; empty if they are too few to tell."""
    if early[:1] == b"\xff":
        return "zmtp"
    for kind, word in [("hello", b"REMOTER/"), *(("web", verb) for verb in VERBS)]:
        if early.startswith(word):
            return kind
        if word.startswith(early):
            return ""
    return "other"


async def _open(target: Target) -> socket.socket:
    """A connection to the target. Raises OSError."""
    loop = asyncio.get_running_loop()
    if isinstance(target, Path):
        inner = socket.socket(socket.AF_UNIX)
        try:
            inner.setblocking(False)
            await _connect_unix(inner, target)
        except BaseException:
            inner.close()
            raise
        return inner
    problem = OSError(f"no address of {target[0]}")
    for family, kind, protocol, _, address in await loop.getaddrinfo(*target, type=socket.SOCK_STREAM):
        inner = socket.socket(family, kind, protocol)
        try:
            inner.setblocking(False)
            await loop.sock_connect(inner, address)
            inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            inner.close()
            problem = error
        except BaseException:
            inner.close()
            raise
        else:
            return inner
    raise problem


async def _connect_unix(inner: socket.socket, path: Path) -> None:
    """A unix socket connects at once, or says that the backlog is full; there is nothing to wait on then."""
    while True:
        try:
            inner.connect(str(path))
        except BlockingIOError:
            await asyncio.sleep(0.01)
        else:
            return


async def _close_gently(connection: socket.socket) -> None:
    """Let the last words arrive: a socket closed with something unread in it takes back what it sent."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(2):
            while await loop.sock_recv(connection, 8192):
                pass


def _text(target: Target) -> str:
    return str(target) if isinstance(target, Path) else place(*target)


# --- the relay -------------------------------------------------------------------------------


def relay(
    addr: str,
    recvport: int = 55556,
    sendport: int = DEFAULT_PORT,
    *,
    listen: str = "127.0.0.1",
    verbose: bool = False,
) -> None:
    """Pass connections on to a session on another machine, until Ctrl-C.

    The relay reads nothing: encryption goes through it from end to end. Relays can be chained.

    Args:
        addr: the session's host, or host:port.
        recvport: where to listen; 0 takes a free one.
        sendport: the session's port.
        listen: the address to listen on; `0.0.0.0` or `::` for all of this machine.
        verbose: print a line for each connection.

    Raises:
        AddressError: an address or port that cannot be meant, or a relay to itself.
        RemoterError: the port is taken.
    """
    recvport = check_port(recvport)
    goal = parse(addr, None if sendport == DEFAULT_PORT else sendport)
    if goal.kind not in ("word", "tcp"):
        raise AddressError(f"a relay cannot go to `{addr}`", hints="write host and port: `big:55555`")
    target = (goal.host or goal.word, goal.port or sendport)
    if target[1] == recvport and _is_here(target[0]):
        raise AddressError(
            f"the relay would send to itself: `{place(*target)}` is this machine and this port",
            hints=f"give it another port: `--recvport {recvport + 1 if recvport < 65535 else 1024}`",
        )
    listeners = _listen(listen, recvport)
    door = Door(listeners, target, None, report=_say if verbose else log.info)
    over = threading.Event()
    with _ends_on_sigterm(over), contextlib.suppress(KeyboardInterrupt):
        try:
            door.start()
            _say(f"relay from {place(*listeners[0].getsockname()[:2])} to {place(*target)}; Ctrl-C ends it")
            if (reason := _silence_of(target)) is not None:
                _say(
                    f"nothing answers on {place(*target)} now ({reason}); who connects is passed on once it does"
                )
            over.wait()
        finally:
            door.stop()


def _silence_of(target: tuple[str, int]) -> str | None:
    """Why nobody takes a connection there; None if somebody does."""
    try:
        socket.create_connection(target, timeout=PATIENCE).close()
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


@contextlib.contextmanager
def _ends_on_sigterm(over: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of that name, all on one port."""
    listeners: list[socket.socket] = []
    problem: OSError | None = None
    both = host == "::" and socket.has_dualstack_ipv6()
    with contextlib.ExitStack() as undo:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            addresses, problem = [], error
        for family, _, _, _, address in addresses:
            if listeners and port == 0:
                address = (address[0], listeners[0].getsockname()[1], *address[2:])
            try:
                listener = socket.create_server(
                    address, family=family, backlog=BACKLOG, dualstack_ipv6=both and family == socket.AF_INET6
                )
            except OSError as error:  # `localhost` may have an address that this machine has switched off
                problem = error
                if error.errno == errno.EADDRINUSE:
                    raise RemoterError(
                        f"port `{port}` is taken", hints="`--recvport 0` takes a free one", id="port-taken"
                    ) from None
            else:
                listeners.append(undo.enter_context(listener))
        if not listeners:
            why = (problem.strerror or str(problem)) if problem else "it has no address"
            raise AddressError(f"cannot listen on `{place(host, port)}`", cause=why)
        undo.pop_all()
    return listeners


def _is_here(host: str) -> bool:
    """Whether the host is this machine: only its own addresses can be bound."""
    with contextlib.suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind(address)
                return True
    return False


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
