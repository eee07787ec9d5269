"""A client's runs and what comes of them; in the client's process: filled on the loop thread, read by callers."""

from __future__ import annotations

import contextlib
import copy
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ._connection import LinkState
from ._errors import (
    LinkLostError,
    RemoterError,
    RunError,
    RunInterruptedError,
    RunTimeoutError,
    SessionDiedError,
)
from ._link import Link
from ._messages import Attached, Event, RunId, Status

AskPerson = Callable[[str, bool], str | None]
"""Ask whoever sits here: the prompt, and whether the typed text is hidden; None: nobody answers."""

SILENCE = 6.0
"""Seconds without a word from the server after which a waiting person is told."""

_FINAL = ("ok", "error", "interrupted", "died", "cancelled")
_NAP = 0.2 if os.name == "nt" else 3600.0  # Windows cannot interrupt a wait for Ctrl-C


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        id: the run's: the client's id and its number.
        status: ok, error, interrupted, died or cancelled.
        text: the value of the last expression as a prompt shows it; empty where there is none.
        stdout, stderr: all that was printed.
        displays: what was displayed (pictures, tables), and values that have more forms than
            text; each by mime type.
        error: the traceback, if there was one.
        elapsed: seconds; None when nobody could measure them.
        exit: the code that was given to `sys.exit()`.
    """

    id: RunId
    status: Status
    text: str = ""
    stdout: str = ""
    stderr: str = ""
    displays: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    elapsed: float | None = None
    exit: int | None = None


class Run:
    """One submitted piece of code; it goes on whatever becomes of this object.

    Attributes:
        id: the client's id and the run's number.
    """

    def __init__(self, id: RunId, link: Link, inbox: Inbox) -> None:
        self.id = id
        self._link = link
        self._inbox = inbox
        self._events: list[Event] = []
        self._asks: dict[int, Event] = {}
        self._status: Status = "queued"
        self._died: str | None = None
        self._is_replaced = False
        self._failure: RemoterError | None = None
        self._is_over = False
        self._waiting: list[queue.SimpleQueue[None]] = []
        self._result: Result | None = None

    def __repr__(self) -> str:
        return f"<Run {self.id[1]}: {self.status}>"

    @property
    def status(self) -> Status:
        """queued, running, ok, error, interrupted, died or cancelled."""
        return self._status

    def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end, at most `timeout` seconds, and return what came of it, errors too.

        Raises:
            RunTimeoutError: it goes on; wait again, or interrupt it.
            LinkLostError: the session has ended, or the interpreter was replaced before it ran.
        """
        for _ in self._follow(timeout):
            pass
        return self._make_result()

    def events(self) -> Iterator[Event]:
        """All that it puts out, from its beginning to its end, live."""
        seen = 0
        for _ in self._follow(None, answering=False):
            while seen < len(self._events):
                seen += 1
                yield self._events[seen - 1]
        yield from self._events[seen:]

    def interrupt(self) -> None:
        """Interrupt it; take it out of the queue if it has not started."""
        if not self._is_over:
            self._link.interrupt(self.id)

    def answer(self, text: str | None) -> None:
        """Answer what it asks; None is end of file. If it asks nothing within a second, the
        text goes to the standard input of whatever it started.
        """
        with self._listening() as wakeups:
            deadline = time.monotonic() + 1.0
            while not self._asks and not self._is_over and time.monotonic() < deadline:
                with contextlib.suppress(queue.Empty):
                    wakeups.get(timeout=max(0.0, deadline - time.monotonic()))
        ask = min(self._asks, default=0)
        self._inbox.answer(self.id, ask, text)

    # --- waiting -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _listening(self) -> Iterator[queue.SimpleQueue[None]]:
        """A queue that gets something whenever anything happens."""
        wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting.append(wakeups)
        try:
            yield wakeups
        finally:
            self._waiting.remove(wakeups)

    def _follow(self, timeout: float | None, *, tell: bool = False, answering: bool = True) -> Iterator[None]:
        """Give the caller a turn whenever something has come, until the end.

        `tell`: say on stderr when the link is silent. `answering`: asks are answered here.
        """
        self._link.check_process()
        deadline = None if timeout is None else time.monotonic() + timeout
        teller = _Teller(self._link.where) if tell else None
        with self._listening() as wakeups:
            while True:
                yield
                if self._is_over:
                    break
                if answering and self._asks:
                    yield  # what was printed before the question is shown before it
                    self._answer_asks()
                pauses = [_NAP]
                if deadline is not None:
                    pauses.append(deadline - time.monotonic())
                    if pauses[-1] <= 0:
                        raise RunTimeoutError(f"the run has not ended within {timeout:g} s; it goes on", self)
                if teller is not None and (pause := teller.look(self._link.state)) is not None:
                    pauses.append(pause)
                with contextlib.suppress(queue.Empty):
                    wakeups.get(timeout=min(pauses))
            if teller is not None:
                teller.look(self._link.state)
        if self._failure is not None:
            raise copy.copy(self._failure)

    def _answer_asks(self) -> None:
        for ask in list(self._asks):
            event = self._asks.pop(ask, None)  # of several waiting threads, one gets it
            if event is not None:
                hidden = bool((event.data or {}).get("hidden"))
                text = self._inbox.ask_person(event.text or "", hidden)
                self._inbox.answer(self.id, ask, text)

    # --- on the loop thread ------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        """The next event of this run."""
        if self._is_over:
            return
        self._events.append(event)
        data = event.data or {}
        if event.kind == "busy":
            self._status = "running"
        elif event.kind == "ask":
            self._asks[int(data.get("id", 0))] = event
        elif event.kind == "notice" and data.get("about") == "answered":
            self._asks.pop(int(data.get("id", 0)), None)
        elif event.kind == "done":
            self._status = data.get("status", "ok")
            self._over()

    def _fail(self, error: RemoterError) -> None:
        """It will never be known what came of it."""
        if not self._is_over:
            self._failure = error
            self._status = "died" if isinstance(error, SessionDiedError) else "cancelled"
            self._over()
            self._wake()

    def _end_as(self, status: Status) -> None:
        """It has ended so; its events are no longer kept."""
        if not self._is_over:
            self._status = status
            self._over()
            self._wake()

    def _over(self) -> None:
        self._asks.clear()
        self._is_over = True

    def _wake(self) -> None:
        for wakeups in self._waiting.copy():
            wakeups.put(None)

    # --- the result --------------------------------------------------------------------------

    def _make_result(self) -> Result:
        if self._result is None:
            parts: dict[str, list[str]] = {"stdout": [], "stderr": [], "result": [], "error": []}
            displays = []
            done: dict[str, Any] = {}
            for event in self._events:
                if event.kind in parts:
                    parts[event.kind].append(event.text or "")
                if event.kind == "display" or (event.kind == "result" and event.data):
                    displays.append({"text/plain": event.text or "", **(event.data or {})})
                if event.kind == "done":
                    done = event.data or {}
            self._result = Result(
                id=self.id,
                status=self._status,
                text=parts["result"][-1] if parts["result"] else "",
                stdout="".join(parts["stdout"]),
                stderr="".join(parts["stderr"]),
                displays=displays,
                error="\n".join(parts["error"]) if parts["error"] else None,
                elapsed=done.get("elapsed"),
                exit=done.get("exit"),
            )
        return self._result

    def _raise_if_failed(self, result: Result) -> None:
        """Raises RunError: the run did not end well."""
        where = self._link.where
        if result.status == "died" or (result.status == "cancelled" and self._died):
            cause = self._died or "its last words did not come through"
            hints = "`restart()` gives the session a new one; its variables are lost"
            if self._is_replaced:
                cause, hints = "the session was restarted", "the new one has none of its variables"
            raise SessionDiedError(f"the interpreter on {where} died", result, cause=cause, hints=hints)
        if result.status == "interrupted":
            by_itself = "the code broke off by itself" if result.error == "" else "KeyboardInterrupt"
            raise RunInterruptedError(result.error or by_itself, result)
        if result.status == "cancelled":
            raise RunInterruptedError("cancelled before it had started", result)
        if result.status == "error":
            raise RunError(result.error or "the code raised, but its traceback is lost", result)


class _Teller:
    """Says on stderr that the link is silent, and that it is back."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.told = False

    def look(self, state: LinkState) -> float | None:
        """Look at the link. Returns the seconds after which to look again, if nothing wakes us."""
        if state.state == "ok" and self.told:
            self.told = False
            print(f"-- {self.where} answers again", file=sys.stderr, flush=True)  # noqa: T201
        elif state.state == "lost" and not self.told:
            remains = state.since + SILENCE - time.time()
            if remains > 0:
                return remains
            self.told = True
            print(  # noqa: T201 - a person waits and should know why
                f"-- no answer from {self.where} for {SILENCE:.0f} s; it goes on there; trying to come back",
                file=sys.stderr,
                flush=True,
            )
        return None


class Inbox:
    """Where a session's events go: to its runs, to its watchers. Owner of the link.

    It knows nothing of the Session object, so that a forgotten session can be collected and closed.
    """

    def __init__(self, client: str, ask: AskPerson | None) -> None:
        self.client = client
        self.ask = ask
        self.link: Link | None = None
        self.runs: dict[int, Run] = {}
        self.asks: dict[tuple[RunId, int], Event] = {}
        self.watchers: list[tuple[Callable[[Event], None], Callable[[LinkState], None]]] = []
        self.touched: set[Run] = set()
        self.outcomes: tuple[int, dict[int, Status]] = (0, {})
        self.info: dict[str, Any] = {}
        self.features: tuple[str, ...] = ()

    # --- for callers -------------------------------------------------------------------------

    def answer(self, run: RunId, ask: int, text: str | None) -> None:
        """Answer an ask of any run."""
        self.asks.pop((run, ask), None)
        if run[0] == self.client and (mine := self.runs.get(run[1])) is not None:
            mine._asks.pop(ask, None)
        assert self.link is not None
        self.link.answer(run, ask, text)

    def ask_person(self, prompt: str, hidden: bool) -> str | None:
        """The answer of the session's `ask`, else of the person at this terminal, else None."""
        if self.ask is not None:
            return self.ask(prompt, hidden)
        return ask_at_terminal(prompt, hidden) if is_person_here() else None

    # --- on the loop thread ------------------------------------------------------------------

    def on_event(self, event: Event, size: int) -> None:
        """Hand the event to its run and to who watches."""
        link = self.link
        assert link is not None
        link.unconsumed -= size  # what runs collect is the user's own memory
        data = event.data or {}
        run = event.run
        if event.kind == "ask" and run is not None:
            self.asks[run, int(data.get("id", 0))] = event
        elif event.kind == "notice" and data.get("about") == "answered":
            self.asks = {key: asked for key, asked in self.asks.items() if key[1] != data.get("id")}
        elif event.kind == "done" and self.asks:
            self.asks = {key: asked for key, asked in self.asks.items() if key[0] != run}
        elif event.kind == "died":
            self.asks.clear()
            for mine in self.runs.values():
                mine._died, mine._is_replaced = event.text, bool(data.get("replaced"))
        if run is not None and run[0] == self.client and (target := self.runs.get(run[1])) is not None:
            if event.kind == "done":
                del self.runs[run[1]]
            target._take(event)
            self.touched.add(target)
        for watch, _ in tuple(self.watchers):
            watch(event)

    def on_state(self, state: LinkState) -> None:
        """Tell who waits and who watches."""
        for run in list(self.runs.values()):
            run._wake()
        for _, watch in tuple(self.watchers):
            watch(state)

    def on_attached(self, attached: Attached, journal_changed: bool) -> None:
        """Compare what the server knows of our runs with what we wait for."""
        self.info = attached.info
        self.features = attached.features
        for event in attached.asks:
            if event.run is not None:
                self._pending_again(event)
        outcomes: dict[int, Status] = {}
        link = self.link
        for n, run in list(self.runs.items()):
            status = attached.runs.get(n)
            if status in _FINAL:
                outcomes[n] = status
            elif journal_changed and status is None and not (link and n in link.unfinished.submits):
                del self.runs[n]
                run._fail(
                    LinkLostError(
                        "what became of the run is not known",
                        cause="the session was started anew and its record is gone",
                    )
                )
        # Their last events are on the way; only if they are no longer kept, the record decides.
        self.outcomes = (attached.last, outcomes)
        if link is not None and link.last is not None and link.last >= attached.last:
            self._settle_outcomes()

    def _pending_again(self, event: Event) -> None:
        assert event.run is not None
        key = (event.run, int((event.data or {}).get("id", 0)))
        if self.link is not None and key in self.link.unfinished.answers:
            return  # answered by us; the link says it again
        if key in self.asks or (self.link is not None and (self.link.last or 0) < event.seq):
            return  # known, or among the events that follow
        self.asks[key] = event
        if event.run[0] == self.client and (run := self.runs.get(event.run[1])) is not None:
            run._asks[key[1]] = event
            run._wake()
        for watch, _ in tuple(self.watchers):
            watch(event)

    def _settle_outcomes(self) -> None:
        outcomes, self.outcomes = self.outcomes[1], (0, {})
        for n, status in outcomes.items():
            if (run := self.runs.pop(n, None)) is not None:
                run._end_as(status)

    def on_cursor(self, last: int) -> None:
        """Everything up to `last` that we may see was seen: wake who waits, once for all that came."""
        for run in self.touched:
            run._wake()
        self.touched.clear()
        if self.outcomes[1] and last >= self.outcomes[0]:
            self._settle_outcomes()

    def on_refused(self, n: int, error: RemoterError) -> None:
        """Our run `n` will not be run."""
        if (run := self.runs.pop(n, None)) is not None:
            run._fail(error)

    def on_closed(self, error: RemoterError) -> None:
        """Nothing comes any more."""
        runs, self.runs = self.runs, {}
        for run in runs.values():
            run._fail(error)
        self.asks.clear()


# --- the person at this terminal --------------------------------------------------------------


def is_person_here() -> bool:
    """Whether somebody can answer: a terminal, or a notebook's own input line."""
    kernel = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    if kernel is not None and kernel.initialized():
        return True
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def ask_at_terminal(prompt: str, hidden: bool) -> str | None:
    """What the person types; None is end of file."""
    try:
        if hidden:
            import getpass

            return getpass.getpass(prompt)
        return input(prompt)
    except EOFError:
        return None


def show_displays(displays: list[dict[str, Any]]) -> None:
    """Show pictures and tables where this process is an IPython; elsewhere they are in the result."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return
    for data in displays:
        ipython.display.display(data, raw=True)
