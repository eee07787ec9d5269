"""One `ssh` process and the script that it runs there, step by step; in the client's process, read by threads of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from . import _ssh_errors
from ._address import Address
from ._bootstrap import COMMAND, Reader, Task, render
from ._config import WINDOWS
from ._errors import ConnectError, RemoterError

if TYPE_CHECKING:
    from ._records import Record

ASKED = 10.0
"""Seconds for the script's first word, once ssh has logged in; and for short questions."""

ENTERING = 20.0
"""Seconds for the login shell there to read its login files."""

STARTING = 60.0
"""Seconds for a session to start there: modules are loaded, shared disks are slow."""

KILLING = 0.5
"""Seconds for a process that was told to end."""

LAST_WORDS = 1000  # milliseconds for what ssh says when its output has ended
LONGEST_COMPLAINT = 64 * 1024
SENDING = 100  # milliseconds between looks whether it takes more of a long script

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
_WATCHED = '(read -r word </dev/fd/"$1" || kill -TERM {whom}) </dev/null >/dev/null 2>&1 & shift; exec "$@"'
"""How ssh is started: until it has logged in it does not see its input end, and would outlive a client
that was killed. So a shell beside it waits for the end of a pipe that only the client can write to."""

_ON_TERMINAL = 'trap "" INT QUIT TSTP; ' + _WATCHED.format(whom="$$")
"""On the terminal: Ctrl-C is for what runs in the session, not for the connection."""

_APART = _WATCHED.format(whom="-$$")  # with the ssh processes of its jump hosts

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

_living: weakref.WeakSet[Channel] = weakref.WeakSet()


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
        nonce = os.urandom(8).hex()
        self.unsent = memoryview(render(task, nonce))
        self.reader = Reader(nonce)
        self.lines: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self.said: deque[str] = deque(maxlen=100)
        self.complaint = b""  # the line that has not ended
        self.on_terminal = on_terminal
        self.has_ended = threading.Event()  # nothing more will be in `lines`
        self.lock = threading.Lock()
        self._start([*words, COMMAND], {**os.environ, **(environment or {})})
        _living.add(self)
        self.thread = threading.Thread(target=self._serve, name="remoter-ssh", daemon=True)
        self.thread.start()

    def _start(self, words: list[str], environment: dict[str, str]) -> None:
        """ssh, with a pipe for its input, and sockets for what it says: these wake whoever waits on them."""
        watched, lifeline = os.pipe()
        entry, self.input = os.pipe()
        self.lifeline: int | None = lifeline
        pairs = [socket.socketpair(), socket.socketpair()]
        self.output, self.errors = pairs[0][0], pairs[1][0]
        shell = ["/bin/sh", "-c", _ON_TERMINAL if self.on_terminal else _APART, "sh", str(watched)]
        try:
            self.process = subprocess.Popen(
                [*shell, *words],
                stdin=entry,
                stdout=pairs[0][1].fileno(),
                stderr=pairs[1][1].fileno(),
                env=environment,
                pass_fds=(watched,),
                start_new_session=not self.on_terminal,
            )
        except BaseException:
            self._let_go()
            self._end_input()
            self.output.close()
            self.errors.close()
            raise
        finally:
            os.close(watched)
            os.close(entry)
            for _, theirs in pairs:
                theirs.close()
        os.set_blocking(self.input, False)

    # --- on its own thread ---

    def _serve(self) -> None:
        """Send the script and take what ssh says, until it has ended or nobody wants to know."""
        poll = select.poll()
        takers = {self.output.fileno(): self._take_output, self.errors.fileno(): self._take_errors}
        output = self.output.fileno()
        for descriptor in takers:
            poll.register(descriptor, select.POLLIN)
        try:
            while takers:
                self._send()
                if output not in takers and not self.has_ended.is_set() and not poll.poll(LAST_WORDS):
                    self._tell_end()
                for descriptor, _ in poll.poll(SENDING if self.unsent else None):
                    if not takers[descriptor]():
                        poll.unregister(descriptor)
                        del takers[descriptor]
        finally:
            self._tell_end()
            self.output.close()
            self.errors.close()

    def _tell_end(self) -> None:
        if not self.has_ended.is_set():
            self.has_ended.set()
            self.lines.put(None)

    def _send(self) -> None:
        """As much of the script as ssh takes now; before it has logged in that is not much."""
        with self.lock:
            if self.input < 0:
                self.unsent = memoryview(b"")
            while self.unsent:
                try:
                    self.unsent = self.unsent[os.write(self.input, self.unsent) :]
                except BlockingIOError:
                    return
                except OSError:  # it has ended: its exit code tells
                    self.unsent = memoryview(b"")

    def _take_output(self) -> bool:
        data = self._receive(self.output)
        for line in self.reader.feed(data):
            self._let_go()  # it has logged in, and sees its input end
            self.lines.put(line)
        return bool(data)

    def _take_errors(self) -> bool:
        data = self._receive(self.errors)
        self.complaint += data
        *lines, self.complaint = self.complaint[-LONGEST_COMPLAINT:].split(b"\n")
        if not data and self.complaint:
            lines, self.complaint = [self.complaint], b""
        self.said.extend(line.decode(errors="replace").rstrip("\r") for line in lines)
        return bool(data)

    @staticmethod
    def _receive(source: socket.socket) -> bytes:
        try:
            return source.recv(1 << 16)
        except OSError:
            return b""

    # --- on any thread ---

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def read_rest(self, timeout: float) -> bytes:
        """All that follows the line `raw`, up to the end.

        Raises:
            ConnectError: it has not ended in that time.
        """
        if not self.has_ended.wait(timeout):
            raise ConnectError(f"no end of the answer within {timeout:g} s", id="timeout")
        return bytes(self.reader.rest)

    def wait(self, timeout: float) -> int | None:
        """Its exit code; None: it has not ended in that time."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def close(self, grace: float = 0.0) -> None:
        """End it: by the end of its input, after `grace` seconds by signals. Takes a second more at most."""
        self._let_go()
        self._end_input()
        if grace:
            self.wait(grace)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self._signal(number)
                self.wait(KILLING)
        if self.thread is not threading.current_thread():
            self.thread.join(0.05)  # somebody else may still hold the other ends
            for each in (self.output, self.errors):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self.thread.join(KILLING)

    def _signal(self, number: int) -> None:
        """To it, and to those through which it reaches jump hosts: these do not notice before they are in."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not self.on_terminal:
                os.killpg(self.process.pid, number)
                return
            for child in _children(self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)
            self.process.send_signal(number)

    def _end_input(self) -> None:
        with self.lock:
            descriptor, self.input = self.input, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _let_go(self) -> None:
        """The shell beside ssh has nothing to watch any more."""
        with self.lock:
            descriptor, self.lifeline = self.lifeline, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(descriptor, b"\n")
            os.close(descriptor)

    def forked(self) -> None:
        """In a child of our process: hold nothing open that tells ssh whether the client lives."""
        for descriptor in (self.input, self.lifeline):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self.input, self.lifeline = -1, None

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _children(pid: int) -> list[int]:
    """The child processes, on Linux."""
    with contextlib.suppress(OSError, ValueError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _forked() -> None:
    for channel in list(_living):
        channel.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Answer:
    """Reads what the script says, with a deadline for each step of the way.

    Args:
        channel: the ssh process.
        address: the host, for errors.
        asks: a person may be typing a password: the login has no deadline but ssh's own.
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
        self.deadline = float("inf") if asks else self.began + patience
        self.step = ASKED if asks else min(ASKED, patience)
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
                self.deadline = time.monotonic() + self.step
            elif word in ("login", "prelude", "starting"):
                self.words.add(word)
                seconds = min(ENTERING, 2 * self.step) if word == "login" else STARTING
                self.deadline = time.monotonic() + seconds
            lines.append(line)
            if word in last or word == "end":
                return lines

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
            said = "\n".join(self.channel.said)
            raise _ssh_errors.explain(
                f"{said}\nssh: connect: Connection timed out", None, self.address, may_ask=self.asks
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
                self.say(line)
            self.shown = len(said)

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
    import msgspec  # here: ssh logs in meanwhile

    from ._records import Record

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
