"""The prompt: a REPL whose lines run in a session; on the client's machine, in the caller's main thread.

Threads. The client's loop thread delivers events; all it does here is to put them into `News`
and to wake the main thread. Only the main thread takes them out, keeps the state and writes to
the terminal. It is always in one of two places: reading a line (the editor, whose own loop it
runs; what comes is written above the line) or following a run (`_follow`; what comes is written
as it is). Ctrl-C never raises while we follow a run: the handler notes it and wakes us, so
that no output is torn and nothing is ever run on this side by accident.

Longer than other modules because it is one state machine: what may happen in each place is read here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NoReturn

from . import _rverbs, _verbs
from ._calls import Calls, Leave
from ._config import state_directory
from ._errors import ConnectError, RemoterError, render
from ._language import Language, Side
from ._messages import Event, RunId
from ._paper import News, Paper, Silence, columns, duration, label
from ._pictures import Album, picture_in
from ._plain import Face, PlainFace, has_terminal, is_piped
from ._questions import SshQuestions
from ._visits import HISTORY_LIMIT, Left, Presence, last_visit, read_until, remember_visit

if TYPE_CHECKING:
    from ._client import Run, Session

REPEAT = 2.0  # seconds in which another Ctrl-C is about the same thing
PATIENCE = 1.0  # seconds that a command may wait for its turn before we say for what

LANGUAGES: dict[str, Language] = {"python": _verbs, "r": _rverbs}


# --- the prompt -------------------------------------------------------------------------------


class Prompt:
    """One visit to a session. See the module's first lines for its threads.

    Args:
        session: where lines run.
        prompt: the text of the prompt; `remoter` names the machine too when it is another one.
        timer: show the time that each command took.
        namespace: the names of the local side; None: a private one.
    """

    def __init__(
        self,
        session: Session,
        *,
        prompt: str = "remoter",
        timer: bool = False,
        namespace: dict[str, Any] | None = None,
    ) -> None:
        self.session = session
        self.timer = timer
        # Watched from before we ask how things stand: what happens in between is told twice, never not.
        self.news = News()
        self._stop_watching = session._watch(self.news.put, self.news.put)
        self.paper = Paper()
        self.album = Album()
        self.info: dict[str, Any] = session._query("info")
        self.host = str(self.info.get("host") or "?").split(".")[0]
        self.is_here = self.session._is_here
        self.language: Language = LANGUAGES.get(str(self.info.get("lang")), _verbs)
        self.color = "NO_COLOR" not in os.environ
        self.local: Side = self._make_side(namespace)
        self._is_side_private = namespace is None
        self._text = prompt
        # What is followed, and what it asks.
        self.following: RunId | None = None
        self.label = ""
        self.left: Left | None = None
        self.done: dict[str, Any] | None = None
        self.told_of_exit = False
        self.queue = Queue(self)
        self.asks: dict[tuple[RunId, int], Event] = {}
        # Ctrl-C: how often, when last, and whether anything has happened since.
        self.presses = 0
        self.pressed = 0  # and not yet looked at
        self.pressed_at = 0.0
        self.heard_since_press = False
        self.raising = False
        self.hung_up = False
        # The connection.
        self.silence = Silence(self.host, self.say, lambda: session._link.state)
        self.ssh_questions = SshQuestions(self, session._target.ssh)
        self.ended: str | None = None
        self.last_seen = 0
        self.presence = Presence(self._visit_key())
        self.calls = Calls(self)
        self.face: Face = self._make_face()

    def _make_side(self, namespace: dict[str, Any] | None) -> Side:
        """This side: the caller's own names, or R for an R session where R is, or private names."""
        if namespace is None and self.language.NAME == "R":
            from ._rside import RSide, is_r_here

            if is_r_here():
                return RSide(self.write_local, self.say_now, self._ask_here, self._show_here)
        return _verbs.LocalSide(namespace, self.write_local, self.language)

    def _make_face(self) -> Face:
        text = self._prompt_text()
        if not has_terminal():
            return PlainFace(text, self)
        from ._editor import Editor, Wiring

        wiring = Wiring(
            decide=self.calls.decide,
            names=self.calls.names,
            news=self.take_news,
            write=self.paper.write,
            above=lambda: self.paper.last if self.paper.held else "",
            link=lambda: self.ssh_questions.hint() or self.silence.text(),
            hint=self.say,
        )
        history = state_directory() / f"history-{self.language.NAME.lower()}"
        editor = Editor(text, wiring, history=history, language=self.language, color=self.color)
        self.news.listeners.append(editor.wake)
        return editor

    def _prompt_text(self) -> str:
        if self._text == "remoter":
            return "remoter> " if self.is_here else f"remoter@{self.host}> "
        return self._text if self._text.endswith(" ") else f"{self._text}> "

    # --- the loop ----------------------------------------------------------------------------

    def run(self) -> int:
        """Greet, read and run until the user leaves. Returns the exit code: 255 when the session is gone."""
        with self._signals(), self._terminal():
            try:
                self._greet()
                self._tell_meanwhile()
                self._join()
                while True:
                    self._read_and_run()
            except Leave:
                pass
            finally:
                self._close()
            if self.ended is None:
                self._say_goodbye()
        return 0 if self.ended is None or self.ended == "by us" else 255

    def _read_and_run(self) -> None:
        self.take_and_write()
        if self.asks and (ask := next(iter(self.asks.values()))).run is not None:
            self._follow(ask.run, None)
            return
        self._leave_if_ended()
        self.paper.hold(same_line=False)
        code: str | None = None
        wants_out = False
        try:
            code = self.face.read_code()
        except EOFError:
            raise Leave from None
        except KeyboardInterrupt:
            wants_out = True
        finally:
            self.paper.release()
        if wants_out:
            self.offer_to_leave()
        elif code is not None and not code.strip() and self.ssh_questions.are_open:
            self.ssh_questions.put()
        elif code is not None:
            self.execute(code)

    def execute(self, code: str) -> None:
        """Run what was typed, stretch by stretch; after a failure the rest is not run."""
        code = self.language.trim(code)
        if not code.strip():
            return
        parts = self.language.pieces(code)
        for index, piece in enumerate(parts):
            if piece.verb and not self.calls.is_shadowed(piece):
                went_well = self.calls.do(piece)
            else:
                went_well = self._run_remotely(piece.code)
            if not went_well and index < len(parts) - 1:
                self.say("stopped here: what was typed after it is not run")
                return

    # --- running there -----------------------------------------------------------------------

    def _run_remotely(self, code: str) -> bool:
        self.album.start_run()
        try:
            run = self.session._submit(code, width=columns(), color=self.color)
        except RemoterError as error:
            self._tell_failure(error)
            return False
        self.label = label(code)
        if self.silence.since is not None:
            self.say(f"it goes to {self.host} when that answers again; Ctrl-C offers to leave")
        return self._follow(run.id, run)

    def _follow(self, run_id: RunId, run: Run | None) -> bool:
        """Be with a run until its end: write what it puts out, answer, interrupt. Says whether it went well."""
        self.following = _same(run_id)
        self.done = None
        self.told_of_exit = False
        self.presses = self.pressed = 0
        self.queue.clear()
        try:
            while True:
                self.take_and_write()
                if self.hung_up:
                    self.leave_it_running()
                if self.done is not None:
                    break
                if run is None and self.ended:
                    break
                self.pressed += self.face.interrupts_typed_ahead()
                if self.pressed:
                    self.pressed -= 1
                    if sys.stdin is not None and sys.stdin.isatty():
                        self.write("\n")  # after the `^C` that the terminal shows
                    self._interrupt(run)
                    continue
                if self.ssh_questions.are_open:
                    self.ssh_questions.put()
                    continue
                if ask := self._next_ask():
                    self._answer(ask)
                    continue
                keys_came = self.news.wait(0.5, self.keyboard())
                if keys_came:
                    if (key := self.face.look_at_keys()) is not None:
                        self.write("\n" if key == "\x04" else "")  # after the `^D` that the terminal shows
                        self.leave_it_running()
                    continue
                if run is not None and run.status in ("ok", "error", "interrupted", "died", "cancelled"):
                    self.take_and_write()
                    if self.done is None:
                        return self._end_without_word(run)
                self.queue.look()
        finally:
            self.following = None
            self.asks = {key: ask for key, ask in self.asks.items() if key[0] != _same(run_id)}
            self.paper.end_line()
        done: dict[str, Any] = self.done or {}
        if self.timer and done.get("elapsed") is not None:
            self.write_line(f"-- {duration(float(done['elapsed']))}")
        if done.get("status") == "cancelled":
            self.say("taken back before it had started")
        if done.get("exit") is not None and not self.told_of_exit:
            self.say(f"the code asked to exit with {done['exit']}; the session goes on")
        return bool(done.get("status", "ok") == "ok")

    def _end_without_word(self, run: Run) -> bool:
        """The run is over and its `done` will not come: refused, or lost with the interpreter."""
        try:
            result = run.wait(0)
        except RemoterError as error:
            self._tell_failure(error)
            return False
        except TimeoutError:
            return False
        if result.status not in ("ok", "error"):
            self.say(f"the run ended: {result.status}")
        return result.status == "ok"

    def _tell_failure(self, error: RemoterError) -> None:
        """Why a run was not accepted, or has no end; that the session has ended is said only once."""
        self.take_and_write()
        if self.ended is None or error.id != "ended":
            self.write_line(render(error))

    def _join(self) -> None:
        """Be with the command that runs already, unless it is somebody else's who is there."""
        for ask in self.session._pending_asks:
            self._handle_ask(ask)
        run, busy = self.info.get("run"), self.info.get("busy")
        if not busy or not run:
            return
        self.label = label(str(self.info.get("running") or ""))
        owner = _same(run)[0]
        present = {client.get("client") for client in self.info.get("clients") or ()}
        since = self.info.get("since")
        for_long = f" for {duration(time.time() - since)}" if since else ""
        if owner in present:
            self.say(f"another client's command runs{for_long}: {self.label}; yours waits")
            return
        self.say(f"`{self.label}` has been running{for_long}; Ctrl-C interrupts it")
        self._follow(_same(run), None)

    # --- Ctrl-C, and keys while something runs ------------------------------------------------

    def _interrupt(self, run: Run | None) -> None:
        """Ctrl-C while a command runs: interrupt there; again and say so; offer to leave."""
        now = time.monotonic()
        if self.heard_since_press and now - self.pressed_at > REPEAT:
            self.presses = 0
        self.presses += 1
        self.pressed_at, self.heard_since_press = now, False
        if self.silence.since is None:
            self._send_interrupt(run)
        if self.silence.since is not None:
            self.offer_to_leave()
        elif self.presses >= 3:
            with self.face.keys_aside():
                leaves = self.confirm(f"leave `{self.label}` running on {self.host}? [y/N] ")
            if leaves:
                self.leave_it_running()
        elif self.presses == 2:
            self.say(f"interrupt sent again; waiting for `{self.label}`")
            self.say("Ctrl-C once more offers to leave")

    def offer_to_leave(self) -> None:
        """Ctrl-C while the link is lost. When it is back, the question has no object any more."""
        name = f"`{self.label}`" if self.following is not None else f"`{self.info.get('name')}`"
        if self._is_unsent():
            question = f"leave? {name} has not reached {self.host} yet and may never run"
        else:
            question = f"leave {name} running on {self.host}?"
        with self.face.keys_aside():
            leaves = self.confirm(f"{question} [y/N] ", lambda: self.silence.since is None)
        if leaves:
            self.leave_it_running()

    def _is_unsent(self) -> bool:
        """Whether the run that we follow was entered while the link was lost, and still waits here."""
        if self.silence.since is None:
            return False  # it was sent; that the session has it may still be on its way
        if self.following is None or self.following[0] != self.session._client:
            return False
        return self.following[1] in self.session._link.unfinished.submits

    def leave_it_running(self) -> NoReturn:
        if self.following is not None and not self._is_unsent():
            self.left = Left(self.following, self.label)
            self.info |= {"busy": True, "running": self.label}  # should nobody tell us better
        raise Leave

    def _send_interrupt(self, run: Run | None) -> None:
        """In a thread: asking for it may block, and we have output to write."""

        def send() -> None:
            with contextlib.suppress(RemoterError, OSError):
                if run is not None:
                    run.interrupt()
                else:
                    self.session.interrupt()

        threading.Thread(target=send, name="remoter-interrupt", daemon=True).start()

    def confirm(self, question: str, is_void: Callable[[], bool] | None = None) -> bool:
        self.paper.end_line()
        try:
            answer = self.read_answer(question, is_void=is_void)
            return (answer or "").strip().lower() in ("y", "yes")
        except (KeyboardInterrupt, EOFError):
            return False

    def keyboard(self) -> int | None:
        """The terminal's descriptor, where keys can be looked at while a command runs."""
        reader = getattr(self.face, "input", None)
        if reader is None or os.name == "nt" or reader.closed:
            return None
        return int(reader.fileno())

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C is noted, not raised, except while code of the user runs on this side."""

        def note(number: int, frame: Any) -> None:
            if self.raising:
                if sys.stdin is not None and sys.stdin.isatty():
                    self.paper.last = "^C"  # the terminal shows it
                raise KeyboardInterrupt
            if self.face.is_reading and self.face.press_interrupt():
                return
            self.pressed += 1
            self.news.wake()

        def hang_up(number: int, frame: Any) -> None:
            self.hung_up = True  # the terminal is closed: leave in order, so that this visit is kept
            self.news.wake()

        handlers = {signal.SIGINT: note}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = hang_up
        try:
            before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        except ValueError:  # not the main thread: nobody sends us Ctrl-C either
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _terminal(self) -> contextlib.AbstractContextManager[None]:
        if self.keyboard() is None:
            return contextlib.nullcontext()
        from ._keys import typing_ahead

        return typing_ahead(sys.stdin)

    # --- asks --------------------------------------------------------------------------------

    def _next_ask(self) -> Event | None:
        return next((ask for key, ask in self.asks.items() if key[0] == self.following), None)

    def _handle_ask(self, event: Event) -> None:
        if event.run is not None:
            self.asks[_same(event.run), int((event.data or {}).get("id", 0))] = event

    def _answer(self, ask: Event) -> None:
        assert ask.run is not None
        data = ask.data or {}
        key = (_same(ask.run), int(data.get("id", 0)))
        text: str | None
        try:
            text = self.read_answer(ask.text or "", hidden=bool(data.get("hidden")))
            if text is None:
                return  # somebody else was first, or the run is over
        except KeyboardInterrupt:
            self.pressed += 1
            self.asks.pop(key, None)
            return
        except EOFError:
            text = None
        if self.asks.pop(key, None) is not None:
            self.session._answer(ask.run, key[1], text)

    def read_answer(
        self, question: str, *, hidden: bool = False, is_void: Callable[[], bool] | None = None
    ) -> str | None:
        """None: it is no longer asked. Raises KeyboardInterrupt, EOFError."""
        # Only the last line of the question stands before the answer.
        before, newline, question = question.rpartition("\n")
        if newline:
            self.write(before + newline)
        self.paper.hold(same_line=True)
        self.asked_for, self.is_void = self.following, is_void
        try:
            return self.face.read_answer(question, hidden=hidden)
        finally:
            self.asked_for = self.is_void = None
            self.paper.release()

    def _ask_here(self, question: str, hidden: bool) -> str | None:
        """What code on this side asks. None is end of file. Raises KeyboardInterrupt."""
        with contextlib.suppress(EOFError):
            return self.read_answer(question, hidden=hidden)
        return None

    asked_for: RunId | None = None
    """The run whose question is being answered, or which we were asked to leave."""

    is_void: Callable[[], bool] | None = None
    """Whether what we ask, of ourselves or for ssh, need not be asked any more."""

    # --- news --------------------------------------------------------------------------------

    def take_news(self) -> bool:
        """Take in all that has come. Says whether there is a finished line to write."""
        items, skipped = self.news.take()
        if skipped:
            self.say(f"{skipped:,} lines are skipped here; `remoter log {self._address()}` has them")
        for item in items:
            if isinstance(item, Event):
                self._handle(item)
            else:
                self.silence.look(item)
                if item.state == "ok":
                    self.ssh_questions.inbox.cancel()  # the network thawed: nothing needs to be asked
                if item.state == "closed" and self.ended is None:
                    self.ended = item.detail or "the session has ended"
                    self.say(self.ended)
        self.silence.tell()
        self.ssh_questions.announce()
        if self.face.is_reading:
            if self.is_void is not None:
                void = self.is_void() or (self.following is not None and self.done is not None)
            else:
                void = self.asked_for is not None and (
                    self.done is not None or (self.asks_before and not self._next_ask())
                )
            wanted = self.following is None and bool(self.asks)
            if void or wanted or (self.ended and self.following is None) or self.hung_up:
                self.face.stop()
        self.asks_before = self._next_ask() is not None
        return self.paper.has_lines() if self.paper.held else False

    asks_before = False

    def take_and_write(self) -> None:
        self.take_news()
        self.paper.write()

    def _handle(self, event: Event) -> None:
        if event.seq and event.seq <= self.last_seen and event.kind != "ask":
            return  # told already, when we came
        self.last_seen = max(self.last_seen, event.seq)
        is_followed = event.run is not None and _same(event.run) == self.following
        if is_followed:
            self.heard_since_press = True
            self.queue.note(event.kind)
        data = event.data or {}
        match event.kind:
            case "stdout" | "stderr":
                self.paper.add(event.text or "")
            case "result" | "display":
                self._show_value(event)
            case "error":
                if not event.printed:
                    self.paper.add_line(event.text or "")
                if hint := self.language.hint_about(data):
                    self.say(hint)
            case "ask":
                self._handle_ask(event)
            case "done":
                if is_followed:
                    self.done = data
                self.asks = {
                    key: ask
                    for key, ask in self.asks.items()
                    if event.run is None or key[0] != _same(event.run)
                }
            case "notice" if data.get("about") == "answered":
                self.asks = {key: ask for key, ask in self.asks.items() if key[1] != data.get("id")}
            case "notice" if event.text:
                self.say(event.text)
                self.told_of_exit |= is_followed and data.get("about") == "exit"
                if data.get("about") == "ended":
                    self.ended = event.text
            case "died":
                if data.get("replaced"):
                    self.say(
                        "the session was restarted: its interpreter is a new one, the variables are lost"
                    )
                else:
                    self.say(f"the interpreter died: {event.text or 'no word from it'}")
                    self._say_restart()
                if self.following is not None:
                    self.done = self.done or {"status": "died"}
            case "gap":
                self.say("part of the output is no longer kept")
            case "queued" if event.run is not None and not is_followed and self._is_of_others(event):
                self.say(f"{self._who(event)} runs: {label(event.text or '')}")

    def _is_of_others(self, event: Event) -> bool:
        return event.run is not None and event.run[0] != self.session._client

    def _who(self, event: Event) -> str:
        """Whose run it is, as the session's list of clients calls him."""
        labels = {client.get("client"): client.get("label") for client in self.info.get("clients") or ()}
        return str((event.data or {}).get("label") or labels.get(event.client) or "another client")

    def _say_restart(self) -> None:
        self.say(f"`remoter restart {self._address()}` gives the session a new one; its variables are lost")

    def _show_value(self, event: Event) -> None:
        picture = picture_in(event.data or {})
        page = self.album.page(*picture) if picture is not None else None
        if page is not None:
            self.paper.add_line(page)
        if event.text and not event.printed and (picture is None or event.kind == "result"):
            self.paper.add_line(event.text)

    def _show_here(self, event: Event) -> None:
        """A plot that code on this side has drawn."""
        self.album.start_run()
        self._show_value(event)
        self.paper.write()

    # --- the connection ----------------------------------------------------------------------

    def _leave_if_ended(self) -> None:
        if self.ended is not None or self.hung_up:
            raise Leave

    def _close(self) -> None:
        self._stop_watching()
        self.ssh_questions.close()
        self.local.close()
        with contextlib.suppress(RemoterError, OSError):
            if self.last_seen:
                remember_visit(self._visit_key(), self.last_seen, self.left)
        self.presence.end()
        self.news.listeners.clear()
        self.paper.end_line()
        self.news.close()

    # --- coming and going ----------------------------------------------------------------------

    def fresh_info(self) -> dict[str, Any]:
        with contextlib.suppress(RemoterError, TimeoutError):
            self.info = self.session._query("info")
        return self.info

    def _address(self) -> str:
        return str(self.session._address or self.info.get("name") or "")

    def _greet(self) -> None:
        info = self.info
        meaning = self.session._greeting or f"`{info.get('name')}` on {self._machine()}"
        if self.session._target.ssh is not None and self.session._target.ssh.started:
            meaning += ", started now"
        if info.get("pid"):
            self.write_line(f"{meaning}: {self.language.NAME} {info.get('version')}, pid {info.get('pid')}")
            self.write_line(f"typed lines run on {self.host}; helpc() for here{self._told_of_side()}")
        else:
            self.write_line(f"{meaning}: it has no interpreter, that one died")
            self._say_restart()
        if not self.session.is_secure:
            self.say("this connection is NOT secure: anyone on the way can read it and send commands")

    def _told_of_side(self) -> str:
        """Which language it is here, if that is not the session's."""
        if self.local.NAME == self.language.NAME:
            return ""
        return f", in {self.local.NAME}" + (": no R on this machine" if self._is_side_private else "")

    def _machine(self) -> str:
        return "this machine" if self.is_here else self.host

    def _visit_key(self) -> str:
        return f"{self.host}-{self.session._journal}"

    def _tell_meanwhile(self) -> None:
        """What happened since this user was last here."""
        last = int((self.info.get("journal") or {}).get("last") or 0)
        visit = last_visit(self._visit_key())
        since = visit.seq if visit else 0
        self.last_seen = max(self.last_seen, min(since, last))
        if last <= since or not self.presence.is_first:
            return
        left = visit.left if visit else None
        try:
            meanwhile = read_until(self.session, max(since, last - HISTORY_LIMIT), last, left=left)
        except RemoterError as error:
            self.write_line(render(error))
            return
        self.last_seen = max(self.last_seen, meanwhile.last)
        if sentence := meanwhile.sentence(visit.time if visit else None, self._address()):
            self.write_line(sentence)
            self.write("".join(f"{line}\n" for line in meanwhile.last_lines()))

    def _say_goodbye(self) -> None:
        info = self.fresh_info() if self.silence.since is None else self.info
        busy = f" (busy: {label(str(info.get('running') or self.label))})" if info.get("busy") else ""
        left = f"left `{info.get('name')}` running on {self._machine()}{busy}."
        back = f"Back: remoter client {self._address()}    End it: remoter stop {self._address()}"
        fits = len(left) + len(back) < columns()
        self.write_line(left + (" " if fits else "\n") + back)

    # --- writing -------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line of ours among the session's."""
        self.paper.add_line(f"-- {text}")

    def say_now(self, text: str) -> None:
        """The same, at once: before something that takes a while."""
        self.say(text)
        self.paper.write()

    def write(self, text: str) -> None:
        self.paper.add(text)
        self.paper.write()

    def write_line(self, text: str) -> None:
        self.paper.add_line(text)
        self.paper.write()

    def write_local(self, text: str) -> None:
        self.paper.end_line()
        self.write(text)


class Queue:
    """Why the run that we follow does not begin: said when the session itself says that it does another.

    That it is not heard of proves nothing: the network may be frozen.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self.clear()

    def clear(self) -> None:
        """Another run is followed."""
        self._since: float | None = None
        self._asked: Future[dict[str, Any]] | None = None

    def note(self, kind: str) -> None:
        """An event of the run has come: `queued` is the first, and any other means that it has begun."""
        self.clear()
        if kind == "queued":
            self._since = time.monotonic()

    def look(self) -> None:
        """Ask the session when the run has waited for a while; say what it answered."""
        if self._since is None or time.monotonic() - self._since < PATIENCE:
            return
        if self._asked is None:
            with contextlib.suppress(RemoterError):
                self._asked = self._prompt.session._link.query("info")
                self._asked.add_done_callback(lambda _: self._prompt.news.wake())
        elif self._asked.done():
            asked, self._asked, self._since = self._asked, None, time.monotonic()
            info = {} if asked.exception() else asked.result()
            if info.get("busy") and info.get("run") and _same(info["run"]) != self._prompt.following:
                self.clear()
                self._prompt.say("waits for the running command of another client; Ctrl-C takes it back")


def _same(run: Any) -> RunId:
    """A run's id in the one form that compares."""
    return (str(run[0]), int(run[1]))


# --- the public faces -------------------------------------------------------------------------


def run(
    session: Session, *, prompt: str = "remoter", timer: bool = False, namespace: dict[str, Any] | None = None
) -> int:
    """A prompt on a connected session, until the user leaves; the session goes on.

    Where standard input is a file or a pipe, that is read to its end and run as a script.

    Args:
        session: where lines run.
        prompt: the text of the prompt.
        timer: show the seconds that each command took.
        namespace: the names of the local side; None: a private one.

    Returns:
        The exit code for the command line.
    """
    if is_piped():
        from ._batch import run_script

        return int(run_script(session, sys.stdin.read(), filename="<stdin>", timer=timer))
    return Prompt(session, prompt=prompt, timer=timer, namespace=namespace).run()


def connect_or_offer(connect: Callable[[bool], Session]) -> Session:
    """Connect; where no session runs and a person sits here, offer to start one.

    Args:
        connect: connects; with True it starts a session if none runs.

    Raises:
        ConnectError: there is none and none is wanted, or nobody was reached.
    """
    from ._run import ask_at_terminal, is_person_here

    try:
        return connect(False)
    except ConnectError as error:
        if error.id != "no-session" or not is_person_here():
            raise
        answer = ask_at_terminal(f"{error.message}. Start one? [Y/n] ", False)
        if answer is None or answer.strip().lower() not in ("", "y", "yes"):
            raise
    return connect(True)


def client(
    addr: str | None = None,
    port: int | None = None,
    password: str | None = None,
    *,
    prompt: str = "remoter",
    timer: bool = False,
    secure: bool = True,
) -> None:
    """A prompt here whose lines run in a session there, until you leave; the session goes on.

    Args:
        addr: where the session is; my one session on this machine when left out.
        port: the server's port, when the address does not say it.
        password: the server's password; not needed where a key admits us.
        prompt: the text of the prompt; of another machine its name is added.
        timer: show the seconds that each command took.
        secure: False only for a server that is insecure on purpose.

    Raises:
        ConnectError, AuthError: the session could not be reached.
    """
    from ._client import open_session

    def connect(start: bool) -> Session:
        return open_session(addr, port, password, secure=secure, start=start, quiet=True)

    with connect_or_offer(connect) as session:
        run(session, prompt=prompt, timer=timer, namespace=_verbs.caller_namespace())
