"""How far a transfer is, for the person who waits for it: a bar, or a line in a notebook; in the client's process.

`Bar` is called with each `Progress` in the thread that waits, and decides what of it is seen. What
takes less than half a second is never shown. A terminal gets one line that is drawn again in its
place and goes when the transfer is over; of what was shown one plain line stays, with the size
and the rate. In a notebook that line is an output that changes. Where nobody watches (standard
error is a file, or a pipe) nothing is ever written.

To draw is a favour: whatever goes wrong with it ends the drawing and not the transfer.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from ._ssh_errors import escape, lasted

if TYPE_CHECKING:
    from ._transfer import Progress

PATIENCE = 0.5
"""Seconds that a transfer may take before anything is shown of it."""

LONG = 2.0
"""Seconds after which a terminal that cannot draw is told why nothing goes on."""

SHORTEST_LABEL = 6
SHORTEST_BAR = 10
LONGEST_BAR = 40
SPINNER = "|/-\\"

Watch = Callable[["Progress"], None]
"""Is called with how far a transfer is, at most ten times a second."""


def chosen(progress: Watch | bool | None, label: str) -> contextlib.AbstractContextManager[Watch]:
    """Who is to be told: a bar (None, True), nobody (False), or the caller's own function.

    Args:
        progress: what the caller of `pull`, `push`, `upload` or `download` gave.
        label: what crosses, in a word or two.

    Raises:
        TypeError: it is none of these.
    """
    if progress is None or progress is True:
        return Bar(label)
    if progress is False:
        return contextlib.nullcontext(_tell_nobody)
    if not callable(progress):
        raise TypeError(f"progress is False, None or a function, not {type(progress).__name__}")
    return contextlib.nullcontext(progress)


def _tell_nobody(progress: Progress) -> None:
    """Nobody wants to know."""


class Face(Protocol):
    """Where a person sees it."""

    pause: float
    """The fewest seconds between two drawings."""

    def draw(self, label: str, progress: Progress) -> None:
        """Show how far it is."""

    def end(self, line: str, *, went_well: bool) -> None:
        """Take away what was drawn; leave the line, which tells how it ended."""


class Bar:
    """Shows one transfer to whoever waits for it: `with Bar("x") as bar: ... bar(progress) ...`.

    Args:
        label: what crosses; it may hold anything.
    """

    def __init__(self, label: str) -> None:
        self._label = escape(label)
        self._face: Face | None = None
        self._last: Progress | None = None
        self._is_shown = False
        self._started = self._due = 0.0

    def __enter__(self) -> Self:
        self._face = _find_face()
        self._started = time.monotonic()
        self._due = self._started + PATIENCE
        return self

    def __call__(self, progress: Progress) -> None:
        """It is as far as this now."""
        self._last = progress
        now = time.monotonic()
        if self._face is None or now < self._due:
            return
        self._due = now + self._face.pause
        self._is_shown = True
        try:
            self._face.draw(self._label, progress)
        except Exception:
            self._end("", went_well=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None and self._is_shown:
            line = self._summary(self._last) if kind is None else f"stopped at {_amount(self._last)}"
            self._end(f"{self._label}: {line}", went_well=kind is None)

    def _end(self, line: str, *, went_well: bool) -> None:
        face, self._face = self._face, None
        if face is not None:
            with contextlib.suppress(Exception):
                face.end(line, went_well=went_well)

    def _summary(self, last: Progress) -> str:
        elapsed = time.monotonic() - self._started
        size = last.total or last.done
        files = f"{last.files_total:,} files, " if last.files_total else ""
        return f"{files}{_size(size)} in {_time(elapsed)} ({_size(size / elapsed)}/s)"


# --- where it is seen ------------------------------------------------------------------------


def _find_face() -> Face | None:
    """A notebook's output, the terminal of standard error, or nobody."""
    if (shell := _notebook_shell()) is not None:
        return Notebook(shell)
    stream = sys.stderr
    try:
        if not stream.isatty():
            return None
    except (AttributeError, ValueError):  # there is none, or it was closed
        return None
    can_draw = (
        os.environ.get("TERM", "").lower() not in ("dumb", "unknown") and "INSIDE_EMACS" not in os.environ
    )
    return Terminal(stream) if can_draw else DumbTerminal(stream)


def _notebook_shell() -> Any:
    """The IPython whose output goes to a frontend of Jupyter; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


class Terminal:
    """One line of a terminal, drawn with rich: it knows colours, NO_COLOR, wide letters and old Windows."""

    pause = 0.1

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console: Any = None

    def draw(self, label: str, progress: Progress) -> None:
        console = self._console = self._console or self._make_console()
        # The size is that of now, not what COLUMNS said when the process began.
        with contextlib.suppress(OSError, ValueError):
            if columns := os.get_terminal_size(self._stream.fileno()).columns:
                console.width = columns
        encoding = self._stream.encoding or "ascii"
        label = label.encode(encoding, "backslashreplace").decode(encoding)
        # One column less than there are: a full line would leave the cursor on the next.
        spare = 3 if console.width > 40 else 1  # room for the `^C` that a terminal adds
        parts = _lay_out(label, progress, console.width - spare)
        with console:  # all of it in one write
            console.control(self._erase())
            console.print(*parts, sep="", end="", soft_wrap=True)

    def end(self, line: str, *, went_well: bool) -> None:
        if self._console is not None:
            self._console.control(self._erase())
        if went_well:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def _make_console(self) -> Any:
        from rich.console import Console

        return Console(
            file=self._stream,
            force_terminal=True,
            force_jupyter=False,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def _erase(self) -> Any:
        from rich.control import Control
        from rich.segment import ControlType

        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


def _lay_out(label: str, progress: Progress, width: int) -> list[Any]:
    """The parts of the line, for rich: the label, a bar if there is room, and what can be said in the rest."""
    from rich.cells import cell_len  # here: to import rich takes a tenth of a second
    from rich.progress_bar import ProgressBar

    if not progress.total:
        label = f"{SPINNER[int(time.monotonic() * 10) % len(SPINNER)]} {label}"
    said = _that_fit(_facts(progress), width - 2 - min(cell_len(label), SHORTEST_LABEL))
    room = width - cell_len(said) - 2 if said else width
    has_bar = bool(progress.total) and room >= 2 * SHORTEST_BAR
    parts: list[Any] = [_cut(label, room - 2 - SHORTEST_BAR if has_bar else room)]
    if has_bar:
        length = min(LONGEST_BAR, room - 2 - cell_len(parts[0]))
        parts += ["  ", ProgressBar(progress.total, progress.done, width=length)]
    return [*parts, "  ", said] if said else parts


def _that_fit(facts: list[str], width: int) -> str:
    """As many of them as fit, from the first on."""
    shown = _cut(facts[0], width)
    for fact in facts[1:]:
        longer = f"{shown}  {fact}"
        if len(longer) > width:
            break
        shown = longer
    return shown


def _cut(text: str, width: int) -> str:
    """The text, or as much of it as fits before three dots."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    return (set_cell_size(text, max(0, width - 3)) + "...")[: max(0, width)]


class DumbTerminal:
    """A terminal that only takes lines: it is told what the transfer waits for, and how it ended."""

    pause = 0.1

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._note = ""
        self._since = 0.0
        self._is_told = False

    def draw(self, label: str, progress: Progress) -> None:
        now = time.monotonic()
        if progress.note != self._note:
            self._note, self._since, self._is_told = progress.note, now, False
        elif self._note and not self._is_told and now - self._since >= LONG:
            self._is_told = True
            self._write(f"{label}: {escape(self._note)}")

    def end(self, line: str, *, went_well: bool) -> None:
        if went_well:
            self._write(line)

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class Notebook:
    """An output of the cell that is running, which changes; it stays, so it tells how it ended in any case."""

    pause = 0.25

    def __init__(self, shell: Any) -> None:
        self._publish = shell.display_pub.publish
        self._id = f"remoter-{os.urandom(8).hex()}"
        self._is_there = False

    def draw(self, label: str, progress: Progress) -> None:
        self._show(f"{label}: {', '.join(_facts(progress))}")

    def end(self, line: str, *, went_well: bool) -> None:
        self._show(line)

    def _show(self, line: str) -> None:
        where = {"display_id": self._id}
        self._publish({"text/plain": line}, transient=where, update=self._is_there)
        self._is_there = True


# --- in words --------------------------------------------------------------------------------


def _facts(progress: Progress) -> list[str]:
    """What there is to say, the most important first."""
    facts = [_amount(progress)]
    if progress.files_total:
        facts.append(f"{progress.files_done:,}/{progress.files_total:,} files")
    if progress.note:
        return [escape(progress.note), *facts]
    if progress.rate > 0:
        facts.append(f"{_size(progress.rate)}/s")
        if progress.left is not None:
            facts.append(f"{_time(math.ceil(progress.left))} left")
    return facts


def _amount(progress: Progress) -> str:
    """`312/800 MB`."""
    if not progress.total:
        return _size(progress.done) if progress.done else "preparing"
    scale, unit = _unit(progress.total)
    digits = 0 if scale == 1 or progress.total / scale >= 99.95 else 1
    return f"{progress.done / scale:.{digits}f}/{progress.total / scale:.{digits}f} {unit}"


def _size(count: float) -> str:
    """Bytes with two or three digits and a unit."""
    scale, unit = _unit(count)
    count /= scale
    return f"{count:.1f} {unit}" if scale > 1 and count < 9.95 else f"{count:.0f} {unit}"


def _unit(count: float) -> tuple[int, str]:
    for power, unit in enumerate(("bytes", "kB", "MB", "GB")):
        if count < 999.5 * 1000**power:
            return 1000**power, unit
    return 1000**4, "TB"


def _time(seconds: float) -> str:
    """A duration for a person."""
    if seconds < 59.5:
        return lasted(seconds)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
