"""What the script on the other machine says, read with a deadline for each step; in the client's process, by whoever waits."""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import _ssh_errors
from ._address import Address
from ._channel import Channel, Say, is_typing_hidden
from ._errors import ConnectError, RemoterError

if TYPE_CHECKING:
    from ._records import Record

ASKED = 10.0
"""Seconds for the script's first word, once ssh has logged in; and for short questions."""

ANSWERING = 600.0
"""Seconds for a login in which a person may be asked. sshd itself waits for 120 s, unless told otherwise."""

ENTERING = 20.0
"""Seconds for the login shell there to read its login files."""

STARTING = 60.0
"""Seconds for a session to start there: modules are loaded, shared disks are slow."""

QUIET = 1.0
"""Seconds after which what ssh says while it logs in is shown to the person."""

WAITING = 8.0
"""Seconds after which a person is told that ssh has not logged in yet."""

_SLOW = {"starting": "the start of a session", "prelude": "the prelude"}


class Answer:
    """Reads what the script says, with a deadline for each step of the way.

    Args:
        channel: the ssh process.
        address: the host, for errors.
        asks: a person may be typing a password: that has its time.
        patience: seconds for the login of who is not asked; of a caller in a hurry, for the next steps too.
        is_in: says whether the login is through; without it, only the script's first word does.
    """

    def __init__(
        self,
        channel: Channel,
        address: Address,
        asks: bool,
        patience: float,
        is_in: Callable[[], bool] = lambda: False,
        say: Say = lambda text: None,
    ) -> None:
        self.channel, self.address, self.asks, self.say = channel, address, asks, say
        self.is_in = is_in
        self.began = time.monotonic()
        self.deadline = self.began + (ANSWERING if asks else patience)
        self.step = ASKED if asks else min(ASKED, patience)
        self.in_since: float | None = None
        self.words: set[str] = set()
        self.shown = 0
        self.has_told = False

    def read(self, *last: str) -> list[tuple[str, str]]:
        """All lines up to one of `last`, or the end.

        Raises:
            RemoterError: the step that failed, and why.
        """
        lines: list[tuple[str, str]] = []
        while True:
            try:
                line = self.channel.lines.get(timeout=0.05)
            except queue.Empty:
                self._check_time()
                continue
            if line is None:
                raise self._ended(lines)
            word, _ = line
            if word in ("hello", "login", "prelude", "starting") and word not in self.words:
                self.words.add(word)
                self.deadline = time.monotonic() + self._seconds_after(word)
            lines.append(line)
            if word in last or word == "end":
                return lines
            self._check_time()

    def _seconds_after(self, word: str) -> float:
        if word == "hello":
            return self.step
        return min(ENTERING, 2 * self.step) if word == "login" else STARTING

    def _check_time(self) -> None:
        now = time.monotonic()
        if "hello" not in self.words:
            if self.in_since is None and self.is_in():
                self.in_since, self.deadline = now, now + self.step
            self._show_what_ssh_says(now)
        if now < self.deadline:
            return
        seconds = round(now - (self.in_since or self.began))
        if "hello" not in self.words and self.in_since is None:
            said = self.channel.said[-1] if self.channel.said else "it says nothing"
            raise ConnectError(
                f"no answer from `{self.address.host}`",
                cause=f"ssh has not logged in within {seconds} s: {_ssh_errors.escape(said)}",
                hints=f"`{_ssh_errors.typed(self.address, 'true')}` shows how far it gets",
                id="ssh-timeout",
            )
        if "hello" not in self.words or self.words == {"hello", "login"}:
            raise _ssh_errors.shell_hangs(self.address, self.channel.reader.noise, seconds)
        slow = next((what for word, what in _SLOW.items() if word in self.words), None)
        if slow is None:
            raise _ssh_errors.no_answer_from_shell(self.address, self.channel.reader.noise, self.step)
        raise ConnectError(
            f"{slow} on {self.address.host} takes longer than {STARTING:g} s",
            cause=self.channel.said[-1] if self.channel.said else None,
            hints=f"`remoter doctor {self.address}` looks at each step",
            id="timeout",
        )

    def _show_what_ssh_says(self, now: float) -> None:
        """While a person may be asked, what ssh prints meanwhile belongs to the question."""
        if self.asks and now - self.began > QUIET:
            said = list(self.channel.said)
            for line in said[self.shown :]:
                if line != _ssh_errors.ASKS_AGAIN:  # the question that follows says it
                    self.say(line)
            self.shown = len(said)
        if self.asks and now - self.began > WAITING and not self.has_told and not is_typing_hidden():
            self.has_told = True
            self.say(f"ssh has not logged in to {self.address.host} yet; if it asks nothing, Ctrl-C gives up")

    def _ended(self, lines: list[tuple[str, str]]) -> RemoterError:
        code = self.channel.wait(1.0)
        said = "\n".join(self.channel.said)
        if code == 255 or (code is not None and code < 0) or code is None:
            return _ssh_errors.explain(said, code, self.address, may_ask=self.asks)
        return _ssh_errors.shell_ended(self.address, self.channel.reader.noise or said.encode(), code)


# --- what the script found -------------------------------------------------------------------


@dataclasses.dataclass
class Found:
    """What the bootstrap says of the sessions there."""

    host: str = ""
    records: list[Record] = dataclasses.field(default_factory=list)
    others: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    damaged: str = ""  # what is wrong with a record that cannot be read
    started: bool = False
    failed: str = ""
    code: str = ""
    said: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, lines: list[tuple[str, str]]) -> Found:
        """What the lines say; harmless on any terminal, whoever wrote them."""
        found = cls()
        for word, line in lines:
            rest = line if word == "record" else _ssh_errors.escape(line)
            match word:
                case "hello":
                    found.host = rest.rpartition(" ")[2]
                case "record":
                    record = _record(rest)
                    if isinstance(record, str):
                        found.damaged = record
                    else:
                        found.records.append(record)
                case "other":
                    host, _, name = rest.partition(" ")
                    found.others.append((host, name))
                case "starting":
                    found.started = True
                case "failed":
                    found.failed, _, found.code = rest.partition(" ")
                case "said":
                    found.said.append(rest)
        return found


def _record(text: str) -> Record | str:
    """The connection record, or what is wrong with it."""
    import msgspec  # here: ssh logs in meanwhile

    from ._records import Record

    try:
        record = msgspec.json.decode(text, type=Record)
    except (msgspec.MsgspecError, RecursionError) as error:
        return _ssh_errors.escape(str(error))
    odd = [text for text in (record.name, record.host, record.directory) if not text.isprintable()]
    return f"{odd[0]!r} is no name" if odd else record


def failure(found: Found, address: Address) -> RemoterError:
    """The step that failed there, as an error."""
    host = address.host
    last = next((line for line in reversed(found.said) if line.strip()), "")
    if found.failed == "remoter":
        from ._install import missing

        python = next(
            (line.removeprefix("python ") for line in found.said if line.startswith("python ")), None
        )
        return missing(python, host, address)
    if found.failed == "login":
        code = int(found.code) if found.code.isdigit() else None
        return _ssh_errors.shell_ended(address, "\n".join(found.said).encode(), code)
    if found.failed == "prelude":
        return ConnectError(
            f"the prelude failed on {host}",
            cause=last or f"its exit code is {found.code}",
            hints=f"try it there: `ssh {host}`",
            id="prelude",
        )
    causes, hints = told(found.said)
    return ConnectError(
        f"no session could be started on {host}",
        cause=": ".join(causes) or f"exit code {found.code}",
        hints=hints or f"`ssh {host}` and then `remoter server` shows what happens",
        id="start",
    )


def told(said: list[str]) -> tuple[list[str], list[str]]:
    """Causes and hints of an error that a `remoter` command printed."""
    causes, hints = [], []
    for line in said:
        word, _, text = line.strip().partition(": ")
        if word == "hint":
            hints.append(text)
        elif line.strip():
            causes.append(text.partition("   [")[0] if word in ("error", "cause") else line.strip())
    return causes, hints
