"""What the prompt reads with, and its plain form with `input()`, for consoles that can do no more; on the client's machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ._prompt import Prompt


GLANCE = 0.2  # seconds between looks whether Ctrl-C was pressed


class Face(Protocol):
    """How code and answers are read: `_editor.Editor`, or `PlainFace`."""

    def read_code(self) -> str | None:
        """The next piece of code; None when `stop` was called.

        Raises:
            EOFError: they want to leave. KeyboardInterrupt: they may, while the link is lost.
        """

    def read_answer(self, question: str, *, hidden: bool = False) -> str | None:
        """One line in answer to a question; None when `stop` was called."""

    def stop(self) -> None:
        """End the reading."""

    def press_interrupt(self) -> bool:
        """A signal stands for Ctrl-C; says whether the line that is read took it."""

    def interrupts_typed_ahead(self) -> int:
        """How often Ctrl-C was pressed just when a line was finished: it means what runs now."""

    def keys_aside(self) -> contextlib.AbstractContextManager[None]:
        """What was typed ahead is no answer to the question that is asked in this context."""

    def look_at_keys(self) -> str | None:
        """Look at keys that came while nothing was read; the key that means to leave, if one does."""

    @property
    def is_reading(self) -> bool:
        """Whether a line is being read."""


class PlainFace:
    """Reads with `input()`, for terminals and consoles that can do no more.

    News that comes meanwhile is written by a thread: there is nothing on the line to protect.
    """

    def __init__(self, prompt: str, owner: Prompt) -> None:
        self.prompt = prompt
        self.is_reading = False
        self._owner = owner

    def read_code(self) -> str:
        """Lines until they are complete."""
        lines: list[str] = []
        while True:
            try:
                line = self._input("+ ".rjust(len(self.prompt)) if lines else self.prompt)
            except KeyboardInterrupt:
                if self._owner.silence.since is not None and not lines:
                    raise
                self._owner.say("nothing runs; Ctrl-D or exit() leaves, and the session goes on")
                self._owner.paper.write()  # before the next prompt
                lines.clear()
                continue
            except EOFError:
                if not lines:
                    raise
                return "\n".join(lines)
            lines.append(line)
            code = "\n".join(lines)
            if not code.strip() or self._owner.calls.decide(code, 1.0)[0] != "incomplete":
                return code

    def read_answer(self, question: str, *, hidden: bool = False) -> str:
        """One line in answer to a question."""
        return self._input(question, hidden=hidden)

    def _input(self, text: str, *, hidden: bool = False) -> str:
        over = threading.Event()
        thread = threading.Thread(
            target=self._write_news, args=(text, over), name="remoter-news", daemon=True
        )
        thread.start()
        self.is_reading = True
        try:
            if hidden:
                import getpass

                return getpass.getpass(text)
            if not _can_wait():
                return input(text)
            # `input()` does not see a Ctrl-C that comes just before it blocks.
            self._owner.paper.put(text)
            while not select.select([sys.stdin], [], [], GLANCE)[0]:
                if self._owner.hung_up:
                    raise EOFError
            return input()
        except (EOFError, KeyboardInterrupt):
            self._owner.write("\n")  # after the `^C`, or the question
            raise
        finally:
            self.is_reading = False
            over.set()
            self._owner.news.wake()
            thread.join()

    def _write_news(self, text: str, over: threading.Event) -> None:
        """What comes stands on lines of its own, after the prompt or question; that is then shown again."""
        paper = self._owner.paper
        while not over.is_set():
            self._owner.news.wait(1.0)
            if not over.is_set() and self._owner.take_news() and not over.is_set():
                paper.put("\n")
                paper.write()
                paper.put(text)

    def stop(self) -> None:
        """`input()` cannot be ended from outside; the next line will find out."""

    def interrupts_typed_ahead(self) -> int:
        """None: here Ctrl-C is always a signal."""
        return 0

    def keys_aside(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is typed ahead that we could keep."""
        return contextlib.nullcontext()

    def look_at_keys(self) -> str | None:
        """Nothing is typed ahead that we could see."""
        return None

    def press_interrupt(self) -> bool:
        """`input()` is ended by the exception."""
        raise KeyboardInterrupt


def has_terminal() -> bool:
    """Whether the line editor can work here."""
    try:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return False
        sys.stdin.fileno()
        sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    if threading.current_thread() is not threading.main_thread() or _is_loop_running():
        return False
    return os.name == "nt" or not (os.environ.get("TERM", "dumb") == "dumb" or "INSIDE_EMACS" in os.environ)


def _can_wait() -> bool:
    """Whether a line on standard input can be waited for before it is read: not where readline reads keys."""
    if os.name == "nt" or "readline" in sys.modules or sys.stdin is not sys.__stdin__:
        return False
    return sys.stdin is not None and sys.stdin.isatty()


def is_piped() -> bool:
    """Whether standard input is a file or a pipe that is to be run as a script."""
    if (
        "INSIDE_EMACS" in os.environ
        or sys.stdin is None
        or sys.stdin is not sys.__stdin__
        or _is_loop_running()
    ):
        return False
    return not sys.__stdin__.isatty()


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
