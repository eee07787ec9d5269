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
from typing import TYPE_CHECKING

import msgspec

from ._config import private_directory, read_private, state_directory, write_private
from ._errors import RemoterError
from ._messages import Event
from ._pictures import picture_in

if TYPE_CHECKING:
    from ._client import Session

LAST_LINES = 20
HISTORY_LIMIT = 20_000  # events that are read at most to tell what happened
READ_DEADLINE = 10.0  # seconds
_FORGET_AFTER = 30 * 86400.0  # seconds; journals of ended sessions are kept for 7 days


class Visit(msgspec.Struct, kw_only=True):
    """When this user was last in a session, and the last event that he saw."""

    seq: int
    time: float


def _path(journal: str) -> Path:
    return state_directory() / "visits" / (re.sub(r"[^A-Za-z0-9_-]", "_", journal)[:100] + ".json")


def last_visit(journal: str) -> Visit | None:
    """The visit before this one, if it is remembered."""
    try:
        return msgspec.json.decode(read_private(_path(journal)), type=Visit)
    except (OSError, RemoterError, msgspec.MsgspecError):
        return None


def remember_visit(journal: str, seq: int) -> None:
    """Keep that everything up to `seq` was seen; forget visits of long ago."""
    private_directory(state_directory())
    path = _path(journal)
    write_private(path, msgspec.json.encode(Visit(seq=seq, time=time.time())))
    for other in path.parent.glob("*.json"):
        if time.time() - other.stat().st_mtime > _FORGET_AFTER:
            other.unlink(missing_ok=True)


class Meanwhile:
    """Counts commands, lines and plots in a stretch of events, and keeps the last lines."""

    def __init__(self, kept: int = LAST_LINES) -> None:
        self.commands = self.lines = self.plots = 0
        self.last = 0
        self.tail: deque[str] = deque(maxlen=kept)
        self._kept = kept
        self._partial = ""

    def add(self, event: Event) -> None:
        """Take in the next event."""
        self.last = max(self.last, event.seq)
        if event.kind == "queued":
            self.commands += 1
            self._end_line()
            first, *rest = (event.text or "").splitlines() or [""]
            self.tail.append(f"> {first}{' ...' if rest else ''}")
        elif event.kind in ("stdout", "stderr"):
            *lines, self._partial = (self._partial + (event.text or "")).split("\n")
            self.lines += len(lines)
            self.tail.extend(line.rsplit("\r", 1)[-1] for line in lines[-self._kept :])
        elif event.kind == "display" and picture_in(event.data or {}):
            self.plots += 1
            self.tail.append("(plot)")
        elif event.kind in ("result", "error", "display", "died"):
            self._end_line()
            lines = (event.text or "").rstrip("\n").split("\n")
            self.lines += len(lines)
            self.tail.extend(lines[-self._kept :])

    def _end_line(self) -> None:
        if self._partial:
            self.lines += 1
            self.tail.append(self._partial)
            self._partial = ""

    def last_lines(self) -> list[str]:
        """The last lines, the unfinished one among them."""
        return [*self.tail, *([self._partial] if self._partial else [])][-self._kept :]

    def sentence(self, since: float | None, address: str) -> str | None:
        """What to tell; None when nothing happened."""
        counted = [(self.commands, "command"), (self.lines, "line"), (self.plots, "plot")]
        parts = [f"{count:,} {noun}{'s' if count != 1 else ''}" for count, noun in counted if count]
        if not parts:
            return None
        times = f" ({_clock(since)}-{_clock(time.time())})" if since else ""
        opening = f"while you were away{times}" if since else "before you came"
        rest = (
            f"; the last {LAST_LINES}, `remoter log {address}` shows all" if self.lines > LAST_LINES else ""
        )
        return f"-- {opening}: {', '.join(parts)}{rest}:"


def read_until(session: Session, since: int, last: int, kept: int = LAST_LINES) -> Meanwhile:
    """The events of everybody after number `since`, up to `last`; what can be had within 10 s.

    Raises:
        RemoterError: the session cannot be asked.
    """
    meanwhile = Meanwhile(kept)
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


def _clock(moment: float) -> str:
    then, now = time.localtime(moment), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)
