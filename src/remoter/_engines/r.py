"""The R engine: R on its own main loop, or at the end of pipes where that cannot be; in the server's process.

R is one thread. It answers questions when it is idle and, since its worker is called wherever R
checks for interrupts, while R code runs; but not inside one long call of C code. What a person
waits for at a prompt is then answered from here, with what was last known.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._messages import Submit
from .base import Engine, WorkerEnd

PATIENCE = {"variables": 1.0, "complete": 1.0, "inspect": 2.0, "is_complete": 0.5, "info": 1.0}
"""Seconds for an answer of R itself."""

SWALLOWED = 1 << 63
"""Set in the number of an interrupt whose signal R did not get: a program that it waits for did."""


AGAIN = 0.02
"""Seconds after which it is looked at again whether an interrupt got through."""

LOOKS = 100
"""So often, where R has not noted it: the signal may be on its way still, on a machine that has much to do."""

END_AFTER = 3
"""Interrupts after which a program that ignores them is ended."""


class REngine(Engine):
    """An R worker."""

    lang = "r"
    gives_files = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.temporary: Path | None = None
        self.pending: int | None = None  # where in its memory R notes an interrupt that it is still to act on
        self.number = self.presses = 0
        self.variables: dict[str, Any] = {}
        self.listed = 0.0

    def _first(self, connection: Any, frame: dict[str, Any], buffers: dict[str, bytes]) -> None:
        super()._first(connection, frame, buffers)
        if connection is self.side and isinstance(frame.get("tempdir"), str):
            self.temporary = Path(frame["tempdir"])
            self.pending = frame.get("pending")

    def run(self, number: int, submit: Submit) -> None:
        """Hand a run to the worker."""
        self.number, self.presses = number, 0
        super().run(number, submit)

    def interrupt(self, number: int) -> None:
        """Interrupt the run `number`, if it is still the one that runs.

        While R waits for another program, in `system()`, the signal reaches only that: R is told by the number.
        In the moment before there is that program nobody gets the signal; and what R gets just before, it acts
        on only after `system()`. So it is looked at again.
        """
        if self.number != number:  # a server that was started again has not handed it over itself
            self.number, self.presses = number, 0
        is_ignored, children = self._ignores_interrupts(), self._children()
        super().interrupt(number | SWALLOWED if is_ignored else number)
        if is_ignored and children != []:
            self.presses += 1
            self._end_deaf(children or [])
        elif is_ignored or self.pending is not None:
            self.loop.call_later(AGAIN, self._look_again, number, is_ignored)

    def _look_again(self, number: int, was_lost: bool, looks: int = LOOKS) -> None:
        """Send an interrupt again that was lost, or that R has noted while the program it now waits for did not get it."""
        if self.number != number or self.ended:
            return
        has_noted = self._has_noted()
        if was_lost or (has_noted and self._ignores_interrupts() and self._children() != []):
            self.interrupt(number)
        elif has_noted or looks:
            self.loop.call_later(AGAIN, self._look_again, number, False, max(0, looks - 1))

    def _has_noted(self) -> bool:
        """Whether R has got an interrupt that it has not acted on: its own flag, read from outside, for R is busy."""
        try:
            with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
                return any(os.pread(memory.fileno(), 4, self.pending or 0))
        except (OSError, OverflowError, TypeError):
            return False

    def _end_deaf(self, children: list[int]) -> None:
        """A program that R waits for and that ignores the third interrupt is ended, at the fourth with no more ado."""
        if self.presses >= END_AFTER:
            theirs = [grandchild for child in children for grandchild in self._children(child) or ()]
            for pid in [*children, *theirs]:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGTERM if self.presses == END_AFTER else signal.SIGKILL)

    def _children(self, pid: int | None = None) -> list[int] | None:
        """The programs that R, or another, has started; None where the system does not say."""
        pid = pid or self.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return None

    def _ignores_interrupts(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:  # another system: as at R's own console, what follows `system()` goes on
            return False
        mask = status.partition("SigIgn:")[2].split(None, 1)[0]
        return bool(int(mask, 16) & 1 << 1)

    def query(self, question: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        """Ask R; what it does not answer in time is answered from here."""
        what = question["what"]
        patience = PATIENCE.get(what)
        if patience is None:
            super().query(question, answered)
            return
        late: asyncio.TimerHandle | None = None

        def answer(frame: dict[str, Any]) -> None:
            nonlocal late
            if what == "variables" and "variables" in frame.get("data", {}):
                self.variables, self.listed = frame["data"], time.monotonic()
            if late is not None:
                late.cancel()
                late = None
                answered(frame)

        def give_up() -> None:
            nonlocal late
            late = None
            answered(self._known(what))

        late = self.loop.call_later(patience, give_up)
        super().query(question, answer)

    def _known(self, what: str) -> dict[str, Any]:
        """What can be said without R."""
        if what == "variables" and self.listed:
            age = time.monotonic() - self.listed
            listed = [{**variable, "age": age} for variable in self.variables["variables"]]
            return {"data": {**self.variables, "variables": listed}}
        if what == "complete":
            return {"data": {"matches": [], "types": [], "start": 0, "end": 0}}
        if what == "is_complete":
            return {"data": {"status": ""}}
        if what == "info":
            return {"data": {}}
        return {"error": "R is inside a long call and does not answer; ask again when it has ended"}

    def has_ended(self, end: WorkerEnd) -> None:
        """The process is gone: nor is its temporary folder needed, which R, if it was killed, has left."""
        if not self.ended and self.temporary is not None and self.temporary.name.startswith("Rtmp"):
            with contextlib.suppress(RuntimeError):
                self.loop.run_in_executor(None, shutil.rmtree, self.temporary, True)
        super().has_ended(end)
