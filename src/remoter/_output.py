"""What a run puts out, printed here as it comes; in the client's process, in the thread that waits for the run."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

from ._run import Run, show_displays


class Output:
    """Prints what a run puts out."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.shown = 0

    def follow(self, run: Run, timeout: float | None) -> None:
        """Print until the run ends; raises what waiting raises."""
        try:
            for _ in run._follow(timeout, tell=not self.quiet):
                self._show_new(run)
        finally:
            self._show_new(run)

    def _show_new(self, run: Run) -> None:
        events = run._events
        if self.quiet or self.shown >= len(events):
            return
        while self.shown < len(events):
            event = events[self.shown]
            self.shown += 1
            if event.kind == "stdout":
                _write(sys.stdout, event.text or "")
            elif event.kind == "stderr" or (event.kind == "notice" and event.text):
                _write(sys.stderr, event.text or "")
            elif event.kind == "display":
                show_displays([dict(event.data or {})])
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()


def _write(stream: TextIO | None, text: str) -> None:
    """Write text of the session, also where our stream's encoding lacks a character of it."""
    if stream is None:
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def width() -> int:
    """Columns of the terminal that is printed to; 0 if it is none."""
    try:
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    except (AttributeError, ValueError):
        return 0
