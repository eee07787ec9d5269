"""From the session to the terminal: what has come, and what is written; on the client's machine.

`News` takes events in the client's loop thread and hands them to the main thread; `Paper` is the
terminal as the main thread writes on it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._messages import Event

if TYPE_CHECKING:
    from ._connection import LinkState

MOST_WAITING = 16_000_000  # characters of output that wait for a slow terminal; then the oldest go
SILENCE = 6.0  # seconds without the server until we say so


class News:
    """Events and link states from the loop thread to the main thread, with something to wait on."""

    def __init__(self) -> None:
        self._items: deque[Event | LinkState] = deque()
        self._size = 0
        self._lock = threading.Lock()
        self.skipped = 0
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self.listeners: list[Any] = []

    def put(self, item: Event | LinkState) -> None:
        """In the loop thread: never blocks. Of an endless flood the oldest part goes, and is counted."""
        with self._lock:
            self._items.append(item)
            self._size += len(getattr(item, "text", None) or "")
            while self._size > MOST_WAITING and getattr(self._items[0], "kind", "") in ("stdout", "stderr"):
                text = getattr(self._items.popleft(), "text", None) or ""
                self._size -= len(text)
                self.skipped += text.count("\n")
        self.wake()

    def take(self) -> tuple[list[Event | LinkState], int]:
        """Everything that waits, and how many lines of output were skipped before it."""
        with contextlib.suppress(BlockingIOError):
            while self._receiver.recv(4096):
                pass
        with self._lock:
            items, skipped = list(self._items), self.skipped
            self._items.clear()
            self._size = self.skipped = 0
        return items, skipped

    def wake(self) -> None:
        """Wake the main thread; from any thread and from signal handlers."""
        with contextlib.suppress(BlockingIOError, OSError):
            self._sender.send(b".")
        for listener in self.listeners:
            listener()

    def wait(self, timeout: float, descriptor: int | None = None) -> bool:
        """Wait for news; says whether `descriptor` (the keyboard) has something to read."""
        watched: list[Any] = [self._receiver, *([descriptor] if descriptor is not None else [])]
        return descriptor in select.select(watched, [], [], timeout)[0]

    def close(self) -> None:
        """Give the sockets back."""
        self._receiver.close()
        self._sender.close()


class Paper:
    """The terminal as something written on, with the unfinished last line known.

    While a line is read, that unfinished line is shown by the editor above the typed one and
    rewritten in place; otherwise it stands on the terminal as it came.
    """

    def __init__(self) -> None:
        self.stream = sys.stdout  # as it is now: code of the user may run here with another one
        self.held = False
        self.last = ""
        self._pending: list[str] = []

    def add(self, text: str) -> None:
        """Text as it comes."""
        if text:
            self._pending.append(text)

    def add_line(self, text: str) -> None:
        """Text that stands on lines of its own."""
        before = self._pending[-1] if self._pending else self.last
        self.add(
            ("\n" if before and not before.endswith("\n") else "") + text + "\n" * (not text.endswith("\n"))
        )

    def has_lines(self) -> bool:
        """Whether there is a finished line to write; what is unfinished goes to `last`."""
        text = self.last + "".join(self._pending)
        lines, newline, rest = text.rpartition("\n")
        self.last = rest.rstrip("\r").rsplit("\r", 1)[-1]
        self._pending = [lines + newline] if newline else []
        return bool(newline)

    def write(self) -> None:
        """Write what waits."""
        text = "".join(self._pending)
        self._pending = []
        if not text:
            return
        if not self.held:
            self.last = (self.last + text).rpartition("\n")[2].rstrip("\r").rsplit("\r", 1)[-1]
        self.put(text)

    def hold(self, *, same_line: bool) -> None:
        """A line is going to be read: after an unfinished one, or (`same_line`) as its continuation."""
        self.write()
        self.held = True
        if self.last and same_line and len(self.last) < columns():
            self.put("\r\x1b[K" if self.stream.isatty() else "")
        elif self.last:
            self.put("\n")
            self.last = ""

    def put(self, text: str) -> None:
        """Write it at once, whatever is held."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "replace").decode(encoding)
        # A terminal that was closed takes nothing more: that is no error, we are leaving.
        with contextlib.suppress(OSError):
            self.stream.write(text)
            self.stream.flush()

    def release(self) -> None:
        """The line has been read: the editor has left the terminal at the start of a line."""
        self.held = False
        self.last = ""
        self.write()

    def end_line(self) -> None:
        """Finish an unfinished line."""
        if self.last or self._pending:
            self.add("" if not self.last and self._pending[-1].endswith("\n") else "\n")
            self.write()


class Silence:
    """Knows whether the session answers, and says so when it does not and when it does again.

    Args:
        host: where the session is.
        say: writes a line.
        state: how the link is now: its detail changes with each attempt to come back.
    """

    def __init__(self, host: str, say: Callable[[str], None], state: Callable[[], LinkState]) -> None:
        self.since: float | None = None
        self._host = host
        self._say = say
        self._state = state
        self._told = self._known = False
        self._reasons: set[str] = set()

    def look(self, state: LinkState) -> None:
        """The link is now so."""
        if state.state in ("lost", "connecting"):
            self.since = self.since or state.since
            return
        if (self._told or self._known) and self.since is not None and state.state == "ok":
            self._say(f"back after {duration(time.time() - self.since)}")
        self.since, self._told, self._known = None, False, False
        self._reasons.clear()

    def note_known(self) -> None:
        """The person knows by other means that the link is lost, and wants to know when it is back."""
        self._known = True

    def tell(self) -> None:
        """Say it, once, after a while: short breaks mend themselves. Then each new reason, once."""
        if self.since is None or time.time() - self.since < SILENCE:
            return
        if not self._told:
            self._told = True
            self._say(
                f"no answer from {self._host} for {time.time() - self.since:.0f} s. It goes on there; "
                "trying to come back. Ctrl-C offers to leave"
            )
        reason = self._reason()
        what = reason.partition(": ")[0]  # what follows can be new at each attempt
        if what and what not in self._reasons:
            self._reasons.add(what)
            self._say(reason)

    def _reason(self) -> str:
        """Why we cannot come back, if a person can do anything with it: it then names a host or ssh."""
        state = self._state()
        reason = state.detail.partition("; next try")[0]
        return reason if state.state in ("lost", "connecting") and re.search(r"`|\bssh\b", reason) else ""

    def text(self) -> str:
        """What stands under the typed line while it lasts."""
        if self.since is None:
            return ""
        silent = max(0.0, time.time() - self.since)
        return f"no answer from {self._host} for {silent:.0f} s; trying to come back"


def columns() -> int:
    """The terminal's width: its own word before that of COLUMNS, which may be older than the window's size."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if width := os.get_terminal_size(sys.__stdout__.fileno()).columns:  # type: ignore[union-attr]
            return width
    return shutil.get_terminal_size().columns


def label(code: str) -> str:
    """A few words for a piece of code."""
    first = next((line.strip() for line in code.splitlines() if line.strip()), "")
    return first if len(first) <= 40 else first[:37] + "..."


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
