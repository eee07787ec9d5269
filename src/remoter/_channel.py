"""One `ssh` process and the script that it runs there, step by step; in the client's process, read by threads of its own."""

from __future__ import annotations

import contextlib
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
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from . import _ssh_errors
from ._address import Address
from ._bootstrap import COMMAND, Reader, Task, render
from ._config import WINDOWS
from ._errors import ConnectError

if TYPE_CHECKING:
    pass

KILLING = 0.5
ASKING = 3.0
"""Seconds for a process that was told to end; for one that asks a person, and has to give the terminal back."""

CONNECTING = "20"
"""Seconds for the connection up to the first word of the other sshd, where a person may be asked later."""

MOST_LINES = 10_000  # of the script's that nobody has taken: more come from no script of ours
MOST_OUTPUT = 512 * 1024 * 1024

LAST_WORDS = 1000  # milliseconds for what ssh says when its output has ended
LONGEST_COMPLAINT = 64 * 1024
SENDING = 100  # milliseconds between looks whether it takes more of a long script

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


Say = Callable[[str], None]
Asker = Callable[[str, bool], str | None]


def program() -> list[str]:
    """The ssh program, with options: `ssh`, or what REMOTER_SSH names.

    Raises:
        ConnectError: there is none.
    """
    named = os.environ.get("REMOTER_SSH") or "ssh"
    try:
        words = shlex.split(named)
    except ValueError as error:
        raise ConnectError(
            "the variable REMOTER_SSH is no command",
            cause=f"`{named}`: {str(error).lower()}",
            hints='write it as in a shell: `REMOTER_SSH="ssh -F FILE"`',
            id="ssh-missing",
        ) from None
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
    how = {"BatchMode": "yes"} if batch else {"ConnectTimeout": CONNECTING}
    for key, value in {**_OPTIONS, **how, **options}.items():
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


def is_typing_hidden() -> bool:
    """Whether somebody types a password on our terminal just now, as ssh asks for it."""
    try:
        import termios

        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except (ImportError, OSError):
        return False
    try:
        return not termios.tcgetattr(descriptor)[3] & termios.ECHO
    except termios.error:
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
        return bool(data) and self.lines.qsize() < MOST_LINES and len(self.reader.rest) < MOST_OUTPUT

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
        """End it: by the end of its input, after `grace` seconds by signals. Takes some seconds more at most."""
        self._let_go()
        self._end_input()
        if grace:
            self.wait(grace)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self._signal(number)
                is_asking = self.on_terminal and number == signal.SIGTERM
                self.wait(ASKING if is_asking else KILLING)
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
