"""The prompt's line editor: keys, history, colours, completion, pastes; on the client's machine, in the main thread.

Made of prompt_toolkit. It knows nothing of sessions: what is complete, what completes a name and
what is printed above the line it is told by the callables in `Wiring`. While a line is read,
prompt_toolkit's event loop runs in this thread; whoever has news from another thread calls `wake`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER, EditingMode
from prompt_toolkit.filters import emacs_insert_mode, has_focus, vi_insert_mode
from prompt_toolkit.formatted_text import ANSI, StyleAndTextTuples, to_formatted_text
from prompt_toolkit.history import DummyHistory, FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from ._config import private_directory
from ._errors import RemoterError
from ._keys import Burst, merge_bursts, terminal_input, typed_ahead
from ._language import LEAVING, Language

COMPLETION_DEADLINE = 15.0  # seconds after which nobody waits for names; the first time there may be slow
PAUSE = 0.05  # seconds between two outputs above the line: a flood is written in few pieces

STYLE = Style.from_dict(
    {
        "prompt": "ansigreen",
        "continuation": "ansigreen",
        "bottom-toolbar": "noreverse",
        "bottom-toolbar.text": "ansiyellow",
        "pygments.keyword": "ansiblue",
        "pygments.keyword.constant": "ansiblue",
        "pygments.operator.word": "ansiblue",
        "pygments.literal.string": "ansigreen",
        "pygments.literal.number": "ansicyan",
        "pygments.comment": "italic ansibrightblack",
        "pygments.name.builtin": "ansicyan",
        "pygments.name.decorator": "ansimagenta",
        "pygments.error": "",
    }
)
"""Only the 16 colours of the terminal's own theme, so that light and dark backgrounds both work."""


class _Stopped(Exception):
    """Reading was ended from our side."""


@dataclass(frozen=True)
class Wiring:
    """What the editor asks of the prompt. All are called in the main thread, but `names`.

    Attributes:
        decide: whether the text is `complete`, `incomplete` or `invalid`, and the indent to go on with.
        names: for a text and a cursor: start, replacement and kind of each match; called in a thread, may block.
        news: take in what has come; says whether there is something to write above the line.
        write: write it; the line being typed is out of the way.
        above: an unfinished line of output that stands above the typed one (a progress bar).
        link: what to say under the line about the connection; empty when it is well.
    """

    decide: Callable[[str], tuple[str, str]]
    names: Callable[[str, int], list[tuple[int, str, str]]]
    news: Callable[[], bool]
    write: Callable[[], None]
    above: Callable[[], str]
    link: Callable[[], str]
    hint: Callable[[str], None]


def open_history(path: Path) -> History:
    """The history in that file (0600), or in memory where it cannot be."""
    try:
        private_directory(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        os.close(os.open(path, flags, 0o600))
    except Exception:
        return InMemoryHistory()
    return FileHistory(str(path))


def wants_vi() -> bool:
    """Whether the user's ~/.inputrc asks for vi keys: the one line of it that matters here."""
    path = Path(os.environ.get("INPUTRC") or "~/.inputrc").expanduser()
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return False
    modes = [line.split()[-1] for line in lines if line.split()[:2] == ["set", "editing-mode"]]
    return modes[-1:] == ["vi"]


class _Names(Completer):
    """Completion that asks in a thread and gives up after a deadline; typing goes on meanwhile."""

    def __init__(self, names: Callable[[str, int], list[tuple[int, str, str]]]) -> None:
        self._names = names

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        yield from ()

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[tuple[int, str, str]]] = loop.create_future()

        def deliver(found: list[tuple[int, str, str]]) -> None:
            if not answer.done():
                answer.set_result(found)

        def ask() -> None:
            try:
                found = self._names(document.text, document.cursor_position)
            except Exception:
                found = []  # no names are no reason to disturb somebody who types
            with contextlib.suppress(RuntimeError):  # the line is finished and its loop closed
                loop.call_soon_threadsafe(deliver, found)

        # Not the loop's own executor: it would be waited for when the line ends.
        threading.Thread(target=ask, name="remoter-names", daemon=True).start()
        try:
            matches = await asyncio.wait_for(answer, COMPLETION_DEADLINE)
        except TimeoutError:
            return
        for start, text, kind in matches:
            yield Completion(text, start - document.cursor_position, display_meta=kind)


class Editor:
    """Reads code, and answers to what the session asks, with everything else kept off the line.

    Args:
        prompt: the text of the prompt, with its final space.
        wiring: see there.
        history: where the history is kept.
        language: whose code is typed.
        color: False for plain text.
    """

    def __init__(
        self, prompt: str, wiring: Wiring, *, history: Path, language: Language, color: bool = True
    ) -> None:
        self.prompt = prompt
        self._wiring = wiring
        self._language = language
        self._kept = Document()
        self._empty_interrupts = 0
        self._indented: tuple[int, str] | None = None  # row and text of the indentation that we made
        self._sender_indents = False
        self._ahead = ""  # what was typed ahead on the last line
        self._wake: asyncio.Event | None = None
        self._reading: PromptSession[str] | None = None
        self.input = terminal_input()
        self.output = create_output(sys.stdout)
        common: dict[str, Any] = {
            "input": self.input,
            "output": self.output,
            "style": STYLE,
            "include_default_pygments_style": False,
            "color_depth": ColorDepth.DEPTH_4_BIT if color else ColorDepth.DEPTH_1_BIT,
            "editing_mode": EditingMode.VI if wants_vi() else EditingMode.EMACS,
        }
        self._code: PromptSession[str] = PromptSession(
            self._message,
            history=open_history(history),
            lexer=PygmentsLexer(language.lexer()),
            completer=_Names(wiring.names),
            complete_while_typing=False,
            complete_style=CompleteStyle.MULTI_COLUMN,
            enable_history_search=True,
            multiline=True,
            prompt_continuation=self._continuation,
            key_bindings=self._keys(),
            **common,
        )
        answering = KeyBindings()
        if hasattr(signal, "SIGTSTP"):
            answering.add("c-z")(self._suspend)
        common["key_bindings"] = answering
        self._ask: PromptSession[str] = PromptSession(history=InMemoryHistory(), **common)
        self._secret: PromptSession[str] = PromptSession(
            history=DummyHistory(), input_processors=[_Unseen()], **common
        )
        for each in (
            self._code,
            self._ask,
            self._secret,
        ):  # a slow network is no reason to doubt the terminal
            each.app.renderer.cpr_not_supported_callback = None

    # --- reading -----------------------------------------------------------------------------

    def read_code(self) -> str | None:
        """The next piece of code; None when `stop` was called: what is half typed comes again.

        Raises:
            EOFError: Ctrl-D on an empty line, or the terminal is gone.
            KeyboardInterrupt: Ctrl-C on an empty line while the link is lost.
        """
        # What was typed ahead runs line by line, as at a shell; what comes at once from now on is a program's.
        store_typeahead(self.input, merge_bursts(typed_ahead(self.input), self._language.split))
        self.input.merging = True  # type: ignore[attr-defined]
        self._empty_interrupts = 0
        kept, self._kept = self._kept, Document()
        try:
            return self._run(self._code, default=kept)
        except _Stopped:
            self._kept = self._code.default_buffer.document
            return None
        finally:
            self.input.merging = False  # type: ignore[attr-defined]

    def read_answer(self, question: str, *, hidden: bool = False) -> str | None:
        """One line in answer to a question; None when `stop` was called. A hidden one is not
        shown and nowhere kept.

        Raises:
            KeyboardInterrupt, EOFError: Ctrl-C; Ctrl-D.
        """
        session = self._secret if hidden else self._ask
        try:
            return self._run(session, message=lambda: ANSI(self._wiring.above() + question))
        except _Stopped:
            return None

    def _run(self, session: PromptSession[str], **arguments: Any) -> str:
        self._reading = session
        try:
            # Ctrl-C from outside (`kill -INT`) goes through the prompt's own handler.
            return session.prompt(pre_run=self._start_news, handle_sigint=False, **arguments)
        finally:
            self._reading = None
            self._wake = None
            self.output.enable_autowrap()
            self.output.flush()

    @property
    def is_reading(self) -> bool:
        """Whether a line is being read now."""
        return self._reading is not None

    def stop(self) -> None:
        """End the reading; in the main thread (from `news`)."""
        if self._reading and self._reading.app.is_running and not self._reading.app.is_done:
            # Nothing of the half-typed line stays: it comes again with the next reading.
            self._reading.app.erase_when_done = self._reading is self._code
            self._reading.app.exit(exception=_Stopped())

    def press_interrupt(self) -> bool:
        """A signal stands for Ctrl-C; from the signal handler in the main thread. False: the line is
        just finished, so it means what comes next.
        """
        app = self._reading.app if self._reading else None
        if app is None or app.loop is None or not app.is_running or app.is_done:
            return False
        app.loop.call_soon_threadsafe(app.key_processor.send_sigint)
        return True

    def wake(self) -> None:
        """There is news; from any thread."""
        reading, event = self._reading, self._wake
        loop = reading.app.loop if reading else None
        if loop and event:
            with contextlib.suppress(RuntimeError):  # the line was just finished: it will look itself
                loop.call_soon_threadsafe(event.set)

    def _start_news(self) -> None:
        assert self._reading is not None
        self._reading.app.erase_when_done = False
        self._wake = asyncio.Event()
        self._wake.set()
        self._reading.app.create_background_task(self._show_news(self._wake))

    async def _show_news(self, wake: asyncio.Event) -> None:
        """Write what comes above the typed line, in few pieces, however much it is.

        What has been taken in stays with the prompt until `write`, so that the end of this line
        (which cancels us, perhaps in the middle) loses nothing.
        """
        while True:
            # No `wait_for`: before Python 3.12 it can lose a cancellation, and then the line never ends.
            timer = asyncio.get_running_loop().call_later(1.0, wake.set) if self._wiring.link() else None
            try:
                await wake.wait()
            finally:
                if timer is not None:
                    timer.cancel()
            wake.clear()
            if self._wiring.news():
                async with in_terminal():
                    self.output.enable_autowrap()
                    self.output.flush()
                    self._wiring.write()
            self._code.bottom_toolbar = self._wiring.link() or None
            if self._reading:
                self._reading.app.invalidate()
            await asyncio.sleep(PAUSE)

    def _message(self) -> StyleAndTextTuples:
        above = self._wiring.above()
        start = [*to_formatted_text(ANSI(above)), ("", "\n")] if above else []
        return [*start, ("class:prompt", self.prompt)]

    def _continuation(self, width: int, line: int, wrapped: int) -> StyleAndTextTuples:
        return [("class:continuation", " " * (width if wrapped else width - 2) + ("" if wrapped else "+ "))]

    # --- keys while nothing is read ----------------------------------------------------------

    def interrupts_typed_ahead(self) -> int:
        """How often Ctrl-C was pressed just when a line was finished: it means what runs now."""
        keys = get_typeahead(self.input)
        store_typeahead(self.input, [key for key in keys if key.key != Keys.ControlC])
        return sum(key.key == Keys.ControlC for key in keys)

    @contextlib.contextmanager
    def keys_aside(self) -> Iterator[None]:
        """What was typed ahead is no answer to the question that is asked in this context."""
        kept = get_typeahead(self.input) + self.input.read_keys()
        try:
            yield
        finally:
            store_typeahead(self.input, kept + get_typeahead(self.input))

    def look_at_keys(self) -> str | None:
        """Keys that came while a command runs wait for the next line. Says how they mean to leave, if
        they do: Ctrl-D, a line `exit` or `quit()`, or an empty text: the terminal was closed.
        """
        keys = [key for key in self.input.read_keys() if key.key != Keys.CPRResponse]
        if not keys and self.input.closed:
            return ""
        store_typeahead(self.input, keys)
        for key in keys:
            leaves = key.key == Keys.ControlD and not self._ahead.strip()
            if key.key in (Keys.ControlM, Keys.ControlJ):
                leaves = self._is_leaving(self._ahead)
                self._ahead = ""
            elif key.key == Keys.ControlH:
                self._ahead = self._ahead[:-1]
            elif not isinstance(key.key, Keys):
                self._ahead += key.data
            if leaves:
                get_typeahead(self.input)
                return key.data
        return None

    # --- key bindings ------------------------------------------------------------------------

    def _keys(self) -> KeyBindings:
        bindings = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)
        inserting = typing & (emacs_insert_mode | vi_insert_mode)

        bindings.add("enter", filter=typing)(self._enter)
        bindings.add("c-j", filter=typing)(self._enter)
        bindings.add("escape", "enter", filter=typing)(lambda event: _accept(event))
        bindings.add("c-o", filter=typing)(lambda event: event.current_buffer.newline(copy_margin=True))
        bindings.add("tab", filter=inserting)(self._tab)
        bindings.add("backspace", filter=inserting)(self._backspace)
        for closer in self._language.CLOSERS:
            bindings.add(closer, filter=inserting)(self._outdent)
        for keys, text in self._language.SHORTCUTS.items():
            bindings.add(*keys, filter=inserting)(
                lambda event, text=text: event.current_buffer.insert_text(text)
            )
        bindings.add("c-c", filter=typing)(self._interrupt)
        bindings.add(Keys.SIGINT, filter=typing)(self._interrupt)
        bindings.add(Keys.BracketedPaste, filter=typing)(self._paste)
        if hasattr(signal, "SIGTSTP"):
            bindings.add("c-z")(self._suspend)
        return bindings

    def _enter(self, event: KeyPressEvent, *, whole: bool = False) -> None:
        """Run what is complete; else go on with a new line.

        `whole`: all of it came at once and ended in a newline, so an indented block is finished.
        """
        buffer = event.current_buffer
        if buffer.complete_state:
            if completion := buffer.complete_state.current_completion:
                buffer.apply_completion(completion)
            else:
                buffer.cancel_completion()
            return
        document = buffer.document
        if document.text_after_cursor.strip() and not document.on_last_line:
            buffer.newline(copy_margin=True)
            return
        if not document.text.strip():
            _accept(event)
            return
        # This asks the session and blocks for at most the time that `decide` allows: keys typed
        # meanwhile belong to the next line and wait, in order, in the terminal.
        status, indent = self._wiring.decide(document.text + "\n" * whole)
        if status == "incomplete":
            buffer.cursor_position = len(buffer.text)
            buffer.insert_text("\n" + indent)
            self._indented = (buffer.document.cursor_position_row, indent)
        else:
            _accept(event)

    def _paste(self, event: KeyPressEvent) -> None:
        """A paste is inserted as it is; a burst that ends in a newline is also run."""
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        if not isinstance(event.data, Burst):
            event.current_buffer.insert_text(text)
            return
        buffer = event.current_buffer
        row = buffer.document.cursor_position_row
        before = buffer.document.current_line_before_cursor
        # A sender that indents by himself does so from the second line of a block on.
        self._sender_indents = text[:1].isspace() or (self._sender_indents and "\n" in buffer.text)
        if before and self._indented == (row, before):
            closes = text[:1] in self._language.CLOSERS
            steps = len(before) if self._sender_indents else self._step_back(before) if closes else 0
            buffer.delete_before_cursor(steps)
        body = text.rstrip("\n")
        buffer.insert_text(body)
        if body != text:
            # A blank line at the end finishes a block, as it does when typed.
            self._enter(event, whole="\n" in body or text.endswith("\n\n"))

    def _tab(self, event: KeyPressEvent) -> None:
        """Indent at the start of a line, complete elsewhere."""
        buffer, step = event.current_buffer, self._language.INDENT
        before = buffer.document.current_line_before_cursor
        if not before.strip():
            buffer.insert_text(" " * (step - len(before) % step))
        elif buffer.complete_state:
            buffer.complete_next()
        else:
            buffer.start_completion(insert_common_part=True)

    def _backspace(self, event: KeyPressEvent) -> None:
        """Take back a whole step of indentation."""
        buffer = event.current_buffer
        buffer.delete_before_cursor(self._step_back(buffer.document.current_line_before_cursor) or 1)

    def _outdent(self, event: KeyPressEvent) -> None:
        """A bracket that closes what was opened further out stands there, if the indentation is ours."""
        buffer = event.current_buffer
        before = buffer.document.current_line_before_cursor
        if self._indented == (buffer.document.cursor_position_row, before):
            buffer.delete_before_cursor(self._step_back(before))
        buffer.insert_text(event.data)

    def _step_back(self, before: str) -> int:
        """How many blanks make the last step of an indentation; 0 where there is none."""
        if not before or not before.isspace() or "\t" in before:
            return 0
        return (len(before) - 1) % self._language.INDENT + 1

    def _is_leaving(self, line: str) -> bool:
        """Whether a line typed ahead is `exit` or `quit()`, and no more than that."""
        [piece, *more] = self._language.pieces(line)
        try:
            return piece.verb in LEAVING and not more and not self._language.ends_session(piece)
        except RemoterError:
            return False

    def _suspend(self, event: KeyPressEvent) -> None:
        """To the shell, as Ctrl-Z does while a command runs; the typed line is there again afterwards."""

        async def suspend() -> None:
            async with in_terminal():
                with self.input.shell_mode():  # type: ignore[attr-defined]
                    os.kill(0, signal.SIGTSTP)  # the whole job, as the terminal would do it

        event.app.create_background_task(suspend())

    def _interrupt(self, event: KeyPressEvent) -> None:
        """Clear the line; on an empty one say how to leave, the second time, or offer to while the link is lost."""
        buffer = event.current_buffer
        if buffer.text:
            self._empty_interrupts = 0
            buffer.reset()
            return
        if self._wiring.link():
            event.app.exit(exception=KeyboardInterrupt())
            return
        self._empty_interrupts += 1
        if self._empty_interrupts == 2:
            self._empty_interrupts = 0
            self._wiring.hint("nothing runs; Ctrl-D leaves, and the session goes on")
            self.wake()


def _accept(event: KeyPressEvent) -> None:
    buffer = event.current_buffer
    if "\n" in buffer.text:
        buffer.document = Document(buffer.text.rstrip())  # the blank line has done its work
    buffer.validate_and_handle()


class _Unseen(Processor):
    """Shows nothing of what is typed, not even how much."""

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        return Transformation([], source_to_display=lambda i: 0, display_to_source=lambda i: 0)
