"""One `ssh` process and the script that it runs there, step by step; in the client's process, read by threads of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import secrets
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from . import _ssh_errors
from ._address import Address
from ._bootstrap import COMMAND, Reader, Task, render
from ._config import WINDOWS, Record
from ._errors import ConnectError, RemoterError

ASKED = 10.0
"""Seconds for the script's first word, once ssh has logged in; and for short questions."""

ENTERING = 20.0
"""Seconds for the login shell there to read its login files."""

STARTING = 60.0
"""Seconds for a session to start there: modules are loaded, shared disks are slow."""

QUIET = 1.0
"""Seconds after which what ssh says while it logs in is shown to the person."""

_OPTIONS = {
    # What a configuration may hold for logins by hand, and what would be in the way here.
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "ControlPersist": "no",
    "EscapeChar": "none",
    "LogLevel": "INFO",
    # Only we may use the socket; a dead network is noticed.
    "StreamLocalBindUnlink": "yes",
    "StreamLocalBindMask": "0177",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
_HERE = 'trap "" INT QUIT TSTP; exec "$@"'
"""How ssh is started on the terminal: Ctrl-C is for what runs in the session, not for the connection."""

_SLOW = {"starting": "the start of a session", "prelude": "the prelude"}

Say = Callable[[str], None]
Asker = Callable[[str, bool], str | None]


def program() -> list[str]:
    """The ssh program, with options: `ssh`, or what REMOTER_SSH names.

    Raises:
        ConnectError: there is none.
    """
    words = shlex.split(os.environ.get("REMOTER_SSH") or "ssh")
    if WINDOWS:
        raise ConnectError(
            "`ssh://` addresses do not work from Windows yet",
            hints="`ssh -N -L 55555:127.0.0.1:55555 HOST`, and then `remoter client localhost:55555`",
            id="ssh",
        )
    if not words or shutil.which(words[0]) is None:
        raise _ssh_errors.no_ssh_program(words[0] if words else "ssh")
    return words


def command(address: Address, *more: str, batch: bool = False, **options: str) -> list[str]:
    """The words that reach that host, up to and with its name."""
    words = [*program(), "-T", *more]
    for key, value in {**_OPTIONS, **({"BatchMode": "yes"} if batch else {}), **options}.items():
        words += ["-o", f"{key}={value}"]
    words += ["-p", str(address.port)] if address.port is not None else []
    words += ["-l", address.user] if address.user else []
    return [*words, address.host]


def can_ask_on_terminal() -> bool:
    """Whether ssh can ask for a password itself: a terminal, in whose foreground we are."""
    try:
        if not (sys.stdin.isatty() or sys.stderr.isatty()):
            return False
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except (AttributeError, ValueError, OSError):
        return False
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(descriptor)


# --- one ssh process -------------------------------------------------------------------------


class Channel:
    """One `ssh` process that runs the bootstrap script, and what comes back.

    Args:
        words: the command, up to the host.
        task: what the script is to do.
        on_terminal: ssh may ask on our terminal; otherwise it has none.
        environment: what is added to ours.
    """

    def __init__(
        self,
        words: list[str],
        task: Task,
        *,
        on_terminal: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        nonce = secrets.token_hex(8)
        self.reader = Reader(nonce)
        self.lines: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self.said: deque[str] = deque(maxlen=100)
        self.process = subprocess.Popen(
            [*(["/bin/sh", "-c", _HERE, "sh"] if on_terminal else []), *words, COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=not on_terminal,
        )
        self.readers = [
            threading.Thread(target=self._read_output, name="remoter-ssh", daemon=True),
            threading.Thread(target=self._read_errors, name="remoter-ssh-errors", daemon=True),
        ]
        for reader in self.readers:
            reader.start()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: its exit code tells
            self.process.stdin.write(render(task, nonce))
            self.process.stdin.flush()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while data := os.read(descriptor, 1 << 16):
            for line in self.reader.feed(data):
                self.lines.put(line)
        self.readers[1].join(1.0)  # what it said last belongs to its end
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.decode(errors="replace").rstrip("\r\n"))

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def read_rest(self, timeout: float) -> bytes:
        """All that follows the line `raw`, up to the end."""
        self.readers[0].join(timeout)
        if self.readers[0].is_alive():
            raise ConnectError(f"no end of the answer within {timeout:g} s", id="timeout")
        return bytes(self.reader.rest)

    def close(self, patience: float = 2.0) -> None:
        """End it: first by the end of its input, then by signals."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        for end in (self.process.terminate, self.process.kill):
            if self.process.poll() is None:
                with contextlib.suppress(OSError):
                    end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience)
        for reader in self.readers:
            if reader is not threading.current_thread():
                reader.join(patience)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Answer:
    """Reads what the script says, with a deadline for each step of the way.

    Args:
        channel: the ssh process.
        address: the host, for errors.
        asks: a person may be typing a password: the login has no deadline but ssh's own.
        patience: seconds for the login of who is not asked.
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
        self.deadline = float("inf") if asks else self.began + patience
        self.in_since: float | None = None
        self.words: set[str] = set()
        self.shown = 0

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
            if word == "hello":
                self.words.add(word)
                self.deadline = time.monotonic() + ASKED
            elif word in ("login", "prelude", "starting"):
                self.words.add(word)
                self.deadline = time.monotonic() + (ENTERING if word == "login" else STARTING)
            lines.append(line)
            if word in last or word == "end":
                return lines

    def _check_time(self) -> None:
        now = time.monotonic()
        if "hello" not in self.words:
            if self.in_since is None and self.is_in():
                self.in_since, self.deadline = now, now + ASKED
            self._show_what_ssh_says(now)
        if now < self.deadline:
            return
        seconds = round(now - (self.in_since or self.began))
        if "hello" not in self.words and self.in_since is None:
            said = "\n".join(self.channel.said)
            raise _ssh_errors.explain(
                f"{said}\nssh: connect: Connection timed out", None, self.address, may_ask=self.asks
            )
        if "hello" not in self.words or self.words == {"hello", "login"}:
            raise _ssh_errors.shell_hangs(self.address, self.channel.reader.noise, seconds)
        slow = next((what for word, what in _SLOW.items() if word in self.words), None)
        if slow is None:
            raise _ssh_errors.no_answer_from_shell(self.address, self.channel.reader.noise, ASKED)
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
                self.say(line)
            self.shown = len(said)

    def _ended(self, lines: list[tuple[str, str]]) -> RemoterError:
        process = self.channel.process
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = None
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
    started: bool = False
    failed: str = ""
    code: str = ""
    said: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, lines: list[tuple[str, str]]) -> Found:
        found = cls()
        for word, rest in lines:
            match word:
                case "hello":
                    found.host = rest.rpartition(" ")[2]
                case "record":
                    found.records.append(_record(rest))
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


def _record(text: str) -> Record:
    try:
        return msgspec.json.decode(text, type=Record)
    except msgspec.MsgspecError as error:
        raise ConnectError(
            "cannot read the connection file there", cause=str(error), id="private-file"
        ) from None


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
