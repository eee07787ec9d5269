"""A client's way to a session, kept alive over many connections; in the client's process, on its loop thread.

A connection that breaks is replaced by a new one at once; one that is merely silent is kept, and
a new one tried beside it: whichever speaks first wins. Each new one begins with `Attach`, which
says what was processed; then what the server has not settled is sent again (`_unfinished`).

    caller's thread ── call_soon_threadsafe ──▶ loop thread: Link ── Connection ──▶ libzmq's thread
    caller's thread ◀── a queue that it waits on ── owner.on_event ──┘
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import zmq

from . import __version__
from ._connection import LINGER, Connection, LinkState, Pace, Place, in_thread, look_up_host, loop_thread
from ._errors import AuthError, ConnectError, KeyChangedError, LinkLostError, RemoterError
from ._messages import (
    FEATURES,
    PROTOCOL,
    Accepted,
    Acknowledge,
    Answer,
    Attach,
    Attached,
    Detach,
    Event,
    Events,
    Goodbye,
    Interrupt,
    MessageError,
    Ping,
    Pong,
    Query,
    Refused,
    Reply,
    RunId,
    Step,
    Submit,
    decode_event,
    encode,
    error_of,
    no_common_protocol,
)
from ._unfinished import Question, Unfinished

log = logging.getLogger("remoter.link")

ACKNOWLEDGE_BYTES = 128 * 1024
REJECTIONS = 3  # so often a key that was admitted may be refused before we believe it


class Owner(Protocol):
    """Whoever has a link. All is called on the loop thread and must not block."""

    def on_event(self, event: Event, size: int) -> None:
        """The next event; `size` in bytes."""

    def on_cursor(self, last: int) -> None:
        """All events up to `last` have come, as far as we see them."""

    def on_state(self, state: LinkState) -> None:
        """The link is now so."""

    def on_attached(self, attached: Attached, journal_changed: bool) -> None:
        """There is a new connection; events after the last one follow."""

    def on_refused(self, n: int, error: RemoterError) -> None:
        """Our run `n` is not and will not be run."""

    def on_closed(self, error: RemoterError) -> None:
        """The end: nothing comes any more."""


# --- the link --------------------------------------------------------------------------------


class Link:
    """One client's way to a session over all its connections.

    Public methods may be called from any thread; `receive`, `connection_failed`, `attach_message`
    and `end` belong to the loop thread.

    Args:
        locate: says where the server is now, before each attempt; raises when the session has ended.
        owner: gets what comes.
        client: the client's id.
        where: the server's name for people.
        since: the highest event number already processed; None: only what is yet to come.
        all: the events of all clients.
        reader: the client whose second connection this is.
        window: at most so many bytes of events are out with the owner, until it calls `consumed`.
        diagnose: asks the server, after failed handshakes, what is wrong; may block.
        is_slow: `locate` may take long, and is called in a thread.
        on_silence: called when the server has not answered for a while.
    """

    def __init__(
        self,
        locate: Callable[[], Place],
        owner: Owner,
        *,
        client: str,
        where: str,
        since: int | None = None,
        all: bool = False,
        reader: str | None = None,
        label: str = "",
        window: int | None = None,
        diagnose: Callable[[], RemoterError | None] | None = None,
        is_slow: bool = False,
        on_silence: Callable[[], None] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.locate, self.owner, self.client, self.where = locate, owner, client, where
        self.all, self.reader, self.label = all, reader, label
        self.window, self.diagnose, self.pace = window, diagnose, pace or Pace()
        self.is_slow, self.on_silence = is_slow, on_silence
        self.thread = loop_thread()
        self.state = LinkState("connecting", time.time())
        self.session = ""
        self.rtt: float | None = None
        self.pong: Pong | None = None
        self.opened: Future[Attached] = Future()
        self.closed = threading.Event()
        self.error: RemoterError | None = None
        self.last = since
        self.journal: str | None = None
        self.connection: Connection | None = None
        self.trying: Connection | None = None
        self.wait = self.pace.first_wait
        self.rejections = 0
        self.cuts = 0
        self.unfinished = Unfinished(client, where)
        self.numbers = itertools.count(1)
        self.pings: dict[int, float] = {}
        self.unacknowledged = 0
        self.unconsumed = 0
        self.holding = False
        self.retry: asyncio.TimerHandle | None = None
        self.acknowledging: asyncio.TimerHandle | None = None
        self.ticking: asyncio.TimerHandle | None = None
        self.looking = False

    # --- from any thread ---------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect."""
        self._post(self._begin)

    def wait_open(self, timeout: float) -> Attached:
        """Wait for the first connection, at most `timeout` seconds.

        Raises:
            ConnectError, AuthError, KeyChangedError, VersionError: there is none; the link is closed.
        """
        try:
            return self.opened.result(timeout)
        except TimeoutError:
            detail = self.state.detail or "nothing answered"
            self.close()
            raise ConnectError(
                f"no connection to {self.where} within {timeout:{'.0f' if timeout >= 1 else '.1g'}} s",
                cause=detail,
                id="timeout",
            ) from None
        except BaseException:
            self.close()
            raise

    def submit(self, submit: Submit) -> None:
        """Send a run; it is repeated until the server has it in its journal."""
        self._post(self._submit, submit, encode(submit))

    def answer(self, run: RunId, ask: int, text: str | None) -> None:
        """Answer what a run asks."""
        self._post(self._answer, run, ask, encode(Answer(run=run, ask=ask, text=text)))

    def interrupt(self, run: RunId | None) -> Future[dict[str, Any]]:
        """Interrupt a run, or the current one; the future says `interrupted`."""
        number = next(self.numbers)
        what = "interrupt" if run is not None else "interrupt the current run"
        return self._ask(number, encode(Interrupt(id=number, run=run)), what)

    def query(self, what: Any, code: str = "", cursor: int = 0) -> Future[dict[str, Any]]:
        """Ask the server something."""
        number = next(self.numbers)
        message = encode(Query(id=number, what=what, code=code, cursor=cursor))
        return self._ask(number, message, what)

    def step(self, transfer: str, what: Any, data: dict[str, Any]) -> Future[dict[str, Any]]:
        """Have a step of a transfer done; asked again over each new connection until it is answered."""
        number = next(self.numbers)
        return self._ask(number, encode(Step(id=number, transfer=transfer, what=what, data=data)), "step")

    def consumed(self, size: int) -> None:
        """So many bytes of events were taken by whoever they are for."""
        with contextlib.suppress(RemoterError):
            self._post(self._consumed, size)

    def close(self) -> None:
        """Say goodbye; nothing of ours is left when it returns."""
        self.abandon()
        if self.thread.pid == os.getpid() and threading.current_thread() is not self.thread.thread:
            self.closed.wait(2 * LINGER / 1000)

    def abandon(self) -> None:
        """Say goodbye without waiting; also while the interpreter collects garbage or ends."""
        with contextlib.suppress(RemoterError):
            self._post(
                self.end, LinkLostError(f"the connection to {self.where} was closed", id="closed"), True
            )

    def check_process(self) -> None:
        """Raises RemoterError: this process is a fork of the one that connected."""
        if self.thread.pid != os.getpid():
            raise RemoterError(
                "this connection was made before the process forked",
                hints="connect again in the child: `remoter.connect(...)`",
                id="forked",
            )

    def check(self) -> None:
        """Raises RemoterError: this link cannot be used (any more)."""
        self.check_process()
        if self.error is not None:
            raise copy.copy(self.error)  # each who is told gets a traceback of his own

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        self.check()
        try:
            self.thread.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            raise LinkLostError("this process ends") from None

    def _ask(self, number: int, data: bytes, what: str) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        self._post(self._question, number, Question(data, future, what))
        return future

    # --- what the caller sends ---------------------------------------------------------------

    def _submit(self, submit: Submit, data: bytes) -> None:
        if self.error is not None:
            self.owner.on_refused(submit.n, self.error)
            return
        self.unfinished.submits[submit.n] = (submit, data)
        if self.connection is not None:
            self.connection.send(data)

    def _answer(self, run: RunId, ask: int, data: bytes) -> None:
        if ask:
            self.unfinished.answers[run, ask] = data
        if self.connection is not None:
            self.connection.send(data)

    def _question(self, number: int, question: Question) -> None:
        if self.error is not None:
            question.fail(self.error)
            return
        self.unfinished.questions[number] = question
        if self.connection is not None:
            question.sent = True
            self.connection.send(question.data)

    def _consumed(self, size: int) -> None:
        self.unconsumed -= size
        if self.holding and self.window is not None and self.unconsumed <= self.window // 2:
            self.holding = False
            self._acknowledge()

    # --- connecting --------------------------------------------------------------------------

    def _begin(self) -> None:
        self.thread.at_end.add(self._process_ends)
        self.ticking = self.thread.loop.call_later(self.pace.ping, self._tick)
        self._try()

    def _try(self) -> None:
        """Start one attempt, unless one is under way."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        if self.error is not None or self.trying is not None or self.looking:
            return
        self.looking = True
        if self.is_slow:
            in_thread(self.thread.loop, self._ask_for_place, self._located)
        else:
            self._located(self._ask_for_place())

    def _ask_for_place(self) -> Place | RemoterError | OSError:
        try:
            return self.locate()
        except (RemoterError, OSError) as error:
            return error

    def _located(self, place: Place | RemoterError | OSError) -> None:
        self.looking = False
        if self.error is not None or (self.connection is not None and self.state.state == "ok"):
            return  # the old connection spoke again meanwhile
        if isinstance(place, Exception):
            if isinstance(place, LinkLostError) or not self.opened.done():
                self.end(place if isinstance(place, RemoterError) else ConnectError(str(place)))
            else:  # a shared home that stutters is no reason to give up
                self._try_later(place.line if isinstance(place, RemoterError) else str(place))
        elif place.socket is not None:
            self._connect(place, f"ipc://{place.socket}")
        else:
            self.looking = True
            look_up_host(self.thread.loop, place.host, place.port, lambda found: self._found(place, found))

    def _found(self, place: Place, endpoints: list[str] | OSError) -> None:
        self.looking = False
        if self.error is not None or (self.connection is not None and self.state.state == "ok"):
            return
        if isinstance(endpoints, OSError):
            self._try_later(f"cannot find `{place.host}`: {endpoints.strerror or endpoints}")
        else:
            # Another of the host's addresses at each attempt.
            self._connect(place, endpoints[next(self.numbers) % len(endpoints)])

    def _connect(self, place: Place, endpoint: str) -> None:
        try:
            self.trying = Connection(self, self.thread, place, endpoint, self.pace.attempt)
        except (zmq.ZMQError, OSError) as error:
            self._try_later(str(error))

    def _try_later(self, detail: str) -> None:
        if self.state.state != "ok":
            self._set_state(self.state.state, detail)
        if self.retry is None:
            self.retry = self.thread.loop.call_later(self.wait, self._try)
            self.wait = min(2 * self.wait, self.pace.longest_wait)

    def attach_message(self) -> bytes:
        """The first message of a connection."""
        return encode(
            Attach(
                client=self.client,
                protocol=PROTOCOL,
                features=FEATURES,
                version=__version__,
                since=self.last,
                journal=self.journal,
                all=self.all,
                reader=self.reader,
                label=self.label,
            )
        )

    def connection_failed(self, connection: Connection, kind: str, detail: str) -> None:
        """A connection came to nothing, or broke."""
        log.debug("%s: %s: %s", self.where, kind, detail)
        if connection is self.connection:
            self.connection = None
            if connection.attached_at is not None and self.thread.loop.time() - connection.attached_at > 5:
                self.wait = self.pace.first_wait
            self._set_state("lost", detail)
        if connection is self.trying:
            self.trying = None
            self.rejections = self.rejections + 1 if kind == "rejected" else 0
            self.cuts = self.cuts + 1 if kind == "cut" else 0
            if (error := self._verdict(kind, detail)) is not None:
                self.end(error)
                return
            if self.cuts >= REJECTIONS and self.diagnose is not None:
                self.cuts = 0
                in_thread(self.thread.loop, self.diagnose, self._diagnosed)
        if self.state.state == "lost" or (self.trying is None and self.connection is None):
            self._try_later(detail)

    def _verdict(self, kind: str, detail: str) -> RemoterError | None:
        """Whether a failed attempt settles the matter: the first connection sooner than a later one."""
        is_first = not self.opened.done()
        if kind == "rejected" and (is_first or self.rejections >= REJECTIONS):
            if is_first:
                return AuthError(f"{self.where} does not admit this key", cause=detail)
            return LinkLostError(
                f"{self.where} no longer admits this client",
                cause="the session ended, or another one is there now",
            )
        if kind == "protocol" and is_first:
            return ConnectError(f"what answers at {self.where} is no secure session", cause=detail)
        if kind == "cut" and is_first and self.cuts >= REJECTIONS:
            return KeyChangedError(
                f"the key of {self.where} is not the expected one",
                cause=detail,
                hints="if the server was set up anew, take the address that it printed",
            )
        return None

    def _diagnosed(self, error: RemoterError | None) -> None:
        if error is not None and self.error is None and self.state.state != "ok":
            self.end(error)

    def _tick(self) -> None:
        """Every two seconds: is the server still there?"""
        self.ticking = self.thread.loop.call_later(self.pace.ping, self._tick)
        connection = self.connection
        if connection is None:
            return
        silent = self.thread.loop.time() - connection.heard
        if silent >= self.pace.give_up:
            connection.fail("dropped", f"no answer for {silent:.0f} s")
            return
        if silent >= self.pace.lost and self.state.state == "ok":
            self._set_state("lost", f"no answer for {silent:.0f} s", since=time.time() - silent)
            self.wait = self.pace.first_wait
            if self.on_silence is not None:
                self.on_silence()
            self._try()
        number = next(self.numbers)
        self.pings = {number: time.perf_counter()} if silent < self.pace.lost else {}
        connection.send(encode(Ping(id=number)))

    def _set_state(self, state: Any, detail: str = "", since: float | None = None) -> None:
        same = state == self.state.state
        self.state = LinkState(state, self.state.since if same else since or time.time(), detail)
        if not same:
            self.owner.on_state(self.state)

    # --- what comes --------------------------------------------------------------------------

    def receive(self, connection: Connection, message: Any) -> None:
        """A message from the server."""
        if isinstance(message, Attached) and connection is self.trying:
            self._attached(connection, message)
            return
        if isinstance(message, Refused) and message.n is None and message.id is None:
            self.end(error_of(message))
            return
        if isinstance(message, Goodbye):
            self._goodbye(connection, message)
            return
        if connection is not self.connection:
            return
        if self.state.state == "lost":
            self._recovered()
        match message:
            case Events():
                self._events(message)
            case Accepted():
                self.unfinished.submits.pop(message.n, None)
            case Reply():
                self._reply(message)
            case Pong():
                self._pong(message)
            case Refused():
                self._refused(message)

    def _recovered(self) -> None:
        """The silent connection speaks again: leave the new one, unless the server knows of it."""
        if self.trying is not None and self.trying.attach_sent:
            return
        if self.trying is not None:
            self.trying.close()
            self.trying = None
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        self._set_state("ok")

    def _attached(self, connection: Connection, attached: Attached) -> None:
        if not PROTOCOL[0] <= attached.protocol <= PROTOCOL[1]:
            self.end(no_common_protocol(self.where, attached))
            return
        connection.expiry.cancel()
        connection.attached_at = self.thread.loop.time()
        old, self.connection, self.trying = self.connection, connection, None
        if old is not None:
            old.close()
        self.rejections = self.cuts = 0
        changed = self.journal is not None and self.journal != attached.journal
        self.journal = attached.journal
        if changed:
            self.last = 0
        elif self.last is None:
            self.last = attached.last
        if attached.session:
            self.session = attached.session
        self.owner.on_attached(attached, changed)
        self._set_state("ok")
        self.unfinished.resend(attached, connection.send, self.owner.on_refused)
        if not self.opened.done():
            self.opened.set_result(attached)

    def _goodbye(self, connection: Connection, goodbye: Goodbye) -> None:
        if goodbye.reason == "superseded":
            # By our own newer connection, as a rule; then this one is closed already.
            connection.fail("dropped", "another connection of this client took over")
            return
        detail = goodbye.message or goodbye.reason
        what = self.where if self.where.startswith("session") else f"the session on {self.where}"
        self.end(LinkLostError(f"{what} has ended", cause=detail, id="ended"))

    def _events(self, message: Events) -> None:
        size = 0
        assert self.last is not None
        for raw in message.events:
            size += len(raw)
            try:
                event = decode_event(raw)
            except MessageError as error:
                log.info("skipped an event: %s", error)
                continue
            if event.seq > self.last:
                self.last = event.seq
                self._note(event)
                self.unconsumed += len(raw)
                self.owner.on_event(event, len(raw))
        self.last = max(self.last, message.cursor)
        self.owner.on_cursor(self.last)
        self.unacknowledged += size or 1
        if self.unacknowledged >= ACKNOWLEDGE_BYTES:
            self._acknowledge()
        elif self.acknowledging is None:
            self.acknowledging = self.thread.loop.call_later(self.pace.acknowledge, self._acknowledge)

    def _note(self, event: Event) -> None:
        self.unfinished.note(event)
        if event.kind == "notice" and event.data and event.data.get("about") == "started":
            self.session = str(event.data.get("session") or self.session)

    def _acknowledge(self) -> None:
        if self.acknowledging is not None:
            self.acknowledging.cancel()
            self.acknowledging = None
        if self.window is not None and self.unconsumed > self.window:
            self.holding = True
        elif self.connection is not None and self.unacknowledged and self.last is not None:
            self.unacknowledged = 0
            self.connection.send(encode(Acknowledge(seq=self.last)))

    def _reply(self, reply: Reply) -> None:
        question = self.unfinished.questions.pop(reply.id, None)
        if question is not None and not question.future.cancelled():
            if question.what == "restart":
                self.session = str(reply.data.get("session") or self.session)
            question.future.set_result(reply.data)

    def _pong(self, pong: Pong) -> None:
        self.pong = pong
        if (sent := self.pings.pop(pong.id, None)) is not None:
            self.rtt = time.perf_counter() - sent
        if pong.session:
            self.session = pong.session

    def _refused(self, refused: Refused) -> None:
        error = error_of(refused)
        if refused.n is not None and self.unfinished.submits.pop(refused.n, None) is not None:
            self.owner.on_refused(refused.n, error)
        elif refused.id is not None and (question := self.unfinished.questions.pop(refused.id, None)):
            question.fail(error)

    # --- the end -----------------------------------------------------------------------------

    def _process_ends(self) -> None:
        self.end(LinkLostError("this process ends"), polite=True)

    def end(self, error: RemoterError, polite: bool = False) -> None:
        """Close for good; `polite`: the server is told."""
        if self.error is not None:
            return
        self.error = error
        for handle in (self.retry, self.acknowledging, self.ticking):
            if handle is not None:
                handle.cancel()
        if self.connection is not None and polite:
            self.connection.send(encode(Detach()))
        for connection in (self.trying, self.connection):
            if connection is not None:
                connection.close(LINGER)
        self.trying = self.connection = None
        self.thread.at_end.discard(self._process_ends)
        if not self.opened.done():
            self.opened.set_exception(error)
        self.unfinished.fail(error)
        self._set_state("closed", error.message)
        self.owner.on_closed(error)
        self.closed.set()
