"""What happened in a session since this user last looked; on the client's machine, in the prompt's process.

For each journal the state directory keeps the number of the last event that this user saw, so
that coming back says what went on meanwhile.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from ._config import private_directory, read_private, state_directory, write_private
from ._errors import RemoterError
from ._messages import Event, RunId
from ._paper import columns, duration
from ._pictures import picture_in

if TYPE_CHECKING:
    from ._client import Session

LAST_LINES = 20
HISTORY_LIMIT = 20_000  # events that are read at most to tell what happened
READ_DEADLINE = 10.0  # seconds
_FORGET_AFTER = 30 * 86400.0  # seconds; journals of ended sessions are kept for 7 days


class Left(msgspec.Struct):
    """The command that still ran when this user left: which, and a few words of its code."""

    run: RunId
    label: str


class Visit(msgspec.Struct, kw_only=True):
    """When this user was last in a session, and the last event that he saw."""

    seq: int
    time: float
    left: Left | None = None


def _path(journal: str, suffix: str = ".json") -> Path:
    return state_directory() / "visits" / (re.sub(r"[^A-Za-z0-9_-]", "_", journal)[:100] + suffix)


def last_visit(journal: str) -> Visit | None:
    """The visit before this one, if it is remembered."""
    try:
        return msgspec.json.decode(read_private(_path(journal)), type=Visit)
    except (OSError, RemoterError, msgspec.MsgspecError):
        return None


def remember_visit(journal: str, seq: int, left: Left | None = None) -> None:
    """Keep that everything up to `seq` was seen; forget visits of long ago."""
    private_directory(state_directory())
    path = _path(journal)
    if before := last_visit(journal):
        seq = max(seq, before.seq)  # another prompt of this user saw more
    write_private(path, msgspec.json.encode(Visit(seq=seq, time=time.time(), left=left)))
    for other in path.parent.iterdir():
        if time.time() - other.stat().st_mtime > _FORGET_AFTER:
            other.unlink(missing_ok=True)


class Presence:
    """This prompt among the open ones of this user in one session: each holds a shared lock on a file.

    Attributes:
        is_first: no other was open when this one came, so that he was away before.
    """

    def __init__(self, journal: str) -> None:
        self.is_first = True
        self._file: IO[bytes] | None = None
        with contextlib.suppress(ImportError, OSError, RemoterError):  # then each counts as the first
            import fcntl

            private_directory(state_directory())
            private_directory(state_directory() / "visits")
            self._file = _path(journal, ".open").open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.is_first = False
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def end(self) -> None:
        """It is closed."""
        if self._file is not None:
            self._file.close()


class Meanwhile:
    """Counts commands, lines and plots in a stretch of events, and keeps the last lines.

    Args:
        kept: how many lines.
        left: the command that this user left running: its beginning is no news, its end is.
    """

    def __init__(self, kept: int = LAST_LINES, left: Left | None = None) -> None:
        self.commands = self.finished = self.lines = self.plots = 0
        self._left = left
        self._begun: set[RunId] = set()  # runs that were handed in within the stretch
        self.last = 0
        self.tail: deque[str] = deque(maxlen=kept)
        self._kept = kept
        self._partial = ""

    def add(self, event: Event) -> None:
        """Take in the next event."""
        self.last = max(self.last, event.seq)
        if event.kind == "queued" and not (self._left and event.run == self._left.run):
            self.commands += 1
            self._end_line()
            if event.run is not None:
                self._begun.add(event.run)
            first, *rest = (event.text or "").strip().splitlines() or [""]
            self.tail.append(_fitting(f"> {first}{' ...' if rest else ''}"))
        elif event.kind == "done":
            self._end_line()
            if event.run not in self._begun:
                self._finish(event)
        elif event.kind in ("stdout", "stderr"):
            *lines, self._partial = (self._partial + (event.text or "")).split("\n")
            self.lines += len(lines)
            self.tail.extend(map(_overwritten, lines[-self._kept :]))
        elif event.kind == "display" and picture_in(event.data or {}):
            self.plots += 1
            self.tail.append("(plot)")
        elif event.kind in ("result", "error", "display", "died"):
            self._end_line()
            if event.printed:
                return
            lines = (event.text or "").rstrip("\n").split("\n")
            self.lines += len(lines)
            self.tail.extend(lines[-self._kept :])

    def _finish(self, event: Event) -> None:
        """A command that began before: its code is not in the stretch, its end is news."""
        words = {
            "ok": "finished",
            "error": "failed",
            "interrupted": "was interrupted",
            "cancelled": "was taken back",
        }
        done = event.data or {}
        how = words.get(str(done.get("status")), "ended with the interpreter")
        after = f" after {duration(done['elapsed'])}" if done.get("elapsed") else ""
        self.finished += 1
        what = f"`{self._left.label}`" if self._left and self._left.run == event.run else "the command"
        self.tail.append(f"-- {what} {how}{after}")

    def _end_line(self) -> None:
        if self._partial:
            self.lines += 1
            self.tail.append(_overwritten(self._partial))
            self._partial = ""

    def last_lines(self) -> list[str]:
        """The last lines, the unfinished one among them."""
        return [*self.tail, *([_overwritten(self._partial)] if self._partial else [])][-self._kept :]

    def sentence(self, since: float | None, address: str) -> str | None:
        """What to tell; None when nothing happened."""
        counted = [(self.commands, "command"), (self.lines, "line"), (self.plots, "plot")]
        parts = [f"{count:,} {noun}{'s' if count != 1 else ''}" for count, noun in counted if count]
        if self.finished:
            several = f"{self.finished} commands that ran have ended"
            parts.insert(0, several if self.finished > 1 else "the command that ran has ended")
        elif self._partial and not parts:
            parts = ["1 line"]
        if not parts:
            return None
        begin, end = _clock(since or 0), _clock(time.time())
        times = f" ({begin}-{end})" if begin != end else f" ({end})"
        opening = f"while you were away{times}" if since else "before you came"
        rest = (
            f"; the last {LAST_LINES}, `remoter log {address}` shows all" if self.lines > LAST_LINES else ""
        )
        return f"-- {opening}: {', '.join(parts)}{rest}:"


def read_until(
    session: Session, since: int, last: int, kept: int = LAST_LINES, left: Left | None = None
) -> Meanwhile:
    """The events of everybody after number `since`, up to `last`; what can be had within 10 s.

    Raises:
        RemoterError: the session cannot be asked.
    """
    meanwhile = Meanwhile(kept, left)
    if last <= since:
        return meanwhile
    with contextlib.closing(session.events(since=since, all=True)) as events:
        deadline = threading.Timer(READ_DEADLINE, events.close)
        deadline.daemon = True
        deadline.start()
        try:
            for event in events:
                meanwhile.add(event)
                if event.seq >= last:
                    break
        finally:
            deadline.cancel()
    return meanwhile


def _fitting(line: str) -> str:
    """A line of code cut so that it does not wrap."""
    width = columns() - 1
    return line if len(line) <= width else line[: max(0, width - 4)] + " ..."


def _overwritten(line: str) -> str:
    """A line as it looked at last: a progress bar is written over itself."""
    return line.rstrip("\r").rsplit("\r", 1)[-1]


def _clock(moment: float) -> str:
    then, now = time.localtime(moment), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)
