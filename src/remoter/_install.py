"""`--install`: puts remoter on a machine that ssh reaches; the near end, in the client's process.

    here                                    there
    the bootstrap script with install.sh  ▶ login shell, prelude, a Python of 3.11 or newer
                                            `_installer.py` in it, which makes an environment
    remoter's own wheel                   ◀▶ `ask-own`
                                            fetches what remoter needs from an index, if there is one
    wheels of all that                    ◀▶ `ask-all`: it could not
                                            looks whether it runs, switches the link

What is sent goes over the script's own input, after it was asked for and never before. When that
input ends, the other end takes back what it did.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import re
import secrets
import shlex
import subprocess
import tarfile
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import msgspec

from . import __version__
from ._bootstrap import Reader, Task, render
from ._errors import ConnectError, RemoterError
from ._ssh_errors import escape, lasted
from ._wheels import Far, NoWheelsError, gather, last_words, pack_own

PLACE = "~/.local/share/remoter"

TIME = 300.0
"""Seconds for all of it."""

PATIENCE = 8.0
"""Seconds that the other end has to take back what it did."""

WAITING = 8.0
"""Seconds of one step after which a person is told how it goes."""

LONGEST_LINE = 1 << 16  # bytes: the other end says no longer ones
MOST_LINES = 1000  # that wait to be read
MOST_PYTHONS = 20  # that are named in an error
PIECE = 1 << 15  # bytes that are sent at once: what has begun is finished, whoever gives up meanwhile
OLDEST_PYTHON = "3.11"


Start = Callable[[bytes], subprocess.Popen[bytes]]
"""Starts the command there, with pipes; writes the script to its input, and leaves that open."""


def install(
    start: Start,
    say: Callable[[str], None],
    *,
    host: str,
    prelude: str | None,
    explain: Callable[[str, int | None], RemoterError] | None = None,
) -> str:
    """Put this version of remoter there, unless a newer one is there; the version that is there then.

    Args:
        start: runs a script there.
        say: shows a person one line of what is going on, without the dashes before it.
        host: what to call the machine.
        prelude: shell commands that come first there.
        explain: what ssh's own words and exit code mean, if it ends before the script begins.

    Raises:
        RemoterError: it could not; there is what was there before.
    """
    say(f"putting remoter {__version__} into {PLACE} on {host}")
    nonce = secrets.token_hex(8)
    script = render(Task("install", prelude=prelude), nonce, extra=far_script())
    with Dialogue(start(script), nonce, host, explain, say) as dialogue:
        return _answer(dialogue, say)


def far_script() -> bytes:
    """The part of the script that installs: shell, with the installer's text in a variable."""
    values = {"own_version": __version__, "installer": _without_comments(_text("_installer.py"))}
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    return (assignments + _without_comments(_text("install.sh"))).encode()


def _without_comments(text: str) -> str:
    """The lines that do something: room in the script is scarce."""
    return re.sub(r"(?m)^[ \t]*(#.*)?\n", "", text)


def _text(name: str) -> str:
    return files("remoter").joinpath(name).read_text(encoding="utf-8")


def _answer(dialogue: Dialogue, say: Callable[[str], None]) -> str:
    """Answer what the other end asks, up to its end; it may say anything, in any order."""
    host, began = dialogue.host, time.monotonic()
    olds: dict[str, None] = {}
    own: Path | None = None
    failed = done = ""
    version = __version__
    with tempfile.TemporaryDirectory(prefix="remoter-") as name:
        while True:
            word, rest = dialogue.read()
            shown = escape(rest)
            match word:
                case "step":
                    say(f"installing on {host}: {shown}")
                case "old" if len(olds) < MOST_PYTHONS:
                    path, _, number = shown.rpartition(" ")
                    olds[f"{path} is {number}"] = None
                case "ask-own" if own is None:
                    own = _own_wheel(Path(name), host)
                    dialogue.send([own])
                case "ask-all" if own is not None:
                    dialogue.send(_all_wheels(own, rest, dialogue, say))
                case "ask-own" | "ask-all":
                    raise _not_understood(host, f"`{word}` is not its turn")
                case "failed":
                    failed = shown
                    dialogue.words.clear()
                case "said":
                    dialogue.words.append(rest)
                case "have":
                    done = f"remoter {__version__} is on {host} already: {shown}"
                case "newer":
                    version, _, path = shown.partition(" ")
                    done = f"remoter {version} is on {host}, newer than the {__version__} here, and stays: {path}"
                case "installed":
                    took = lasted(time.monotonic() - began)
                    done = f"installed remoter {__version__} on {host} in {took}: {shown}"
                case "end" if done and not failed:
                    say(done)
                    return version
                case "end":
                    raise _failed(failed, host, list(dialogue.words), list(olds))


def _not_understood(host: str, cause: str) -> ConnectError:
    """What comes from there is not what our installer says."""
    return ConnectError(
        f"what the installer on {host} says is not understood here", cause=escape(cause), id="install"
    )


def _own_wheel(directory: Path, host: str) -> Path:
    try:
        return pack_own(directory)
    except (NoWheelsError, OSError) as error:
        raise RemoterError(f"remoter cannot be sent to {host}", cause=str(error), id="install") from None


def _all_wheels(own: Path, description: str, dialogue: Dialogue, say: Callable[[str], None]) -> list[Path]:
    try:
        far = msgspec.json.decode(description, type=Far)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise _not_understood(dialogue.host, str(error)) from None
    say(f"installing on {dialogue.host}: gathering wheels for {far}")
    wheels = own.parent / "all"
    there = last_words(list(dialogue.words)) if dialogue.words else "neither uv nor pip"
    try:
        wheels.mkdir(exist_ok=True)
        how = gather(own, far, wheels, dialogue.until)
    except (NoWheelsError, OSError, zipfile.BadZipFile) as error:
        raise RemoterError(
            f"what remoter needs cannot be had on {dialogue.host}",
            cause=f"there: {there}; here: {error}",
            hints=[
                "name an index that is reached, here or there: the variable PIP_INDEX_URL, or `pip config`",
                f"or let both have the same Python: here {far.python} as there, or another there by `--prelude`",
            ],
            id="install",
        ) from None
    found = sorted(wheel for wheel in wheels.glob("*.whl") if wheel.name != own.name)  # that is there
    size = sum(wheel.stat().st_size for wheel in found) / 1e6
    count = f"{len(found)} wheel{'' if len(found) == 1 else 's'}"
    say(f"installing on {dialogue.host}: sending {count}, {size:.1f} MB, for {far}, {how}")
    return found


def _failed(what: str, host: str, said: list[str], olds: list[str]) -> RemoterError:
    """The error for the step that failed there."""
    step, _, code = what.partition(" ")
    last = last_words(said) if said else f"{step or 'it'} ended with {code or 'nothing'}"
    if step == "python":
        return _no_python(host, last if said else "", olds)
    if step == "prelude":
        return ConnectError(
            f"the prelude failed on {host}", cause=last, hints=f"try it there: `ssh {host}`", id="prelude"
        )
    room = "make room there: `du -sh ~/.cache ~/.local/share` shows what takes it"
    is_full = re.search(r"(?i)quota|no space", " ".join(said)) is not None
    return RemoterError(
        f"remoter could not be installed on {host}", cause=last, hints=room if is_full else (), id="install"
    )


def _no_python(host: str, said: str, olds: list[str]) -> RemoterError:
    return RemoterError(
        f"no Python {OLDEST_PYTHON} or newer on {host}",
        cause="; ".join([*olds, *([f"uv: {said}"] if said else [])]) or "there is no `python3` on PATH",
        hints=[
            'if a module has one: `--prelude "module load python/3.12"`',
            'if conda has one: `--prelude "source ~/miniforge3/bin/activate"`',
            "or install uv there, which fetches one: `curl -LsSf https://astral.sh/uv/install.sh | sh`",
        ],
        id="no-python",
    )


# --- the errors without --install ------------------------------------------------------------


def missing(python: str | None, host: str, address: object) -> ConnectError:
    """No remoter is there: the three ways to go on. Nothing is said of an index, which may not have it.

    Args:
        python: path and version of the `python3` there, if any.
        host: what to call the machine.
        address: what was typed, to type again.
    """
    python = escape(python) if python else None
    version = re.search(r" (\d{1,3})\.(\d{1,3})", python or "")
    is_old = version is not None and (int(version[1]), int(version[2])) < (3, 11)
    return ConnectError(
        f"no remoter on {host}",
        cause=f"it is neither in {PLACE} nor on PATH there; "
        + (f"Python is {python}" if python else "nor is there a `python3`"),
        hints=[
            f"let it be put into {PLACE} there: `remoter client {address} --install`"
            + (", which needs Python 3.11 or newer, or `uv` there" if is_old or not python else ""),
            f"or install it on {host} yourself, as you did here, into an environment that is on PATH in login shells",
            'or say how it is found there: `--prelude "module load remoter"` or '
            '`--prelude "source ENVIRONMENT/bin/activate"`',
        ],
        id="no-remoter",
    )


# --- the two ends ----------------------------------------------------------------------------


class Dialogue:
    """What the script says and is sent; leaving it ends the script.

    Args:
        process: runs the script.
        nonce: what the lines that count begin with.
        host: what to call the machine.
        explain: what the process's own words and exit code mean.
        say: shows a person that it goes on.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        nonce: str,
        host: str,
        explain: Callable[[str, int | None], RemoterError] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.process, self.host, self.explain, self.say = process, host, explain, say
        self.until = time.monotonic() + TIME
        self.words: deque[str] = deque(maxlen=40)  # what programs there said
        self.step = "logging in"
        self.since = time.monotonic()  # when that step began
        self._to_send = self._sent = 0  # bytes
        self._has_begun = self._is_closing = False
        self._odd = ""  # what it said that cannot be
        self._reader = Reader(nonce)
        self._lines: queue.Queue[tuple[str, str] | None] = queue.Queue(MOST_LINES)
        self._errors: deque[str] = deque(maxlen=40)
        self._threads = [
            threading.Thread(target=read, name="remoter-install", daemon=True)
            for read in (self._read_errors, self._read_output)
        ]
        for thread in self._threads:
            thread.start()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        length = 0  # of the line that has not ended
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(self.process.stdout.fileno(), 1 << 14):
                if self._odd:
                    continue  # it is not to wait for us
                length = len(data) - data.rfind(b"\n") - 1 if b"\n" in data else length + len(data)
                for line in self._reader.feed(data):
                    self._put(line)
                if length > LONGEST_LINE or self._reader.is_raw:
                    self._odd = f"while {self.step}: " + (
                        "`raw`" if self._reader.is_raw else "a line without an end"
                    )
                    self._put(None)
        self._threads[0].join(1.0)  # what it said last belongs to its end
        self._put(None)

    def _put(self, line: tuple[str, str] | None) -> None:
        """Wait for whoever reads, if too many lines do."""
        is_put = False
        while not (is_put or self._is_closing):
            with contextlib.suppress(queue.Full):
                self._lines.put(line, timeout=0.1)
                is_put = True

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while line := self.process.stderr.readline(LONGEST_LINE):
                self._errors.append(line.decode(errors="replace").rstrip("\r\n"))

    def read(self) -> tuple[str, str]:
        """The next line.

        Raises:
            RemoterError: there is none in time, or the connection ended.
        """
        while True:
            now = time.monotonic()
            if now >= self.until:
                raise RemoterError(
                    f"remoter was not installed on {self.host} within {TIME:g} s",
                    cause=f"the last step was: {self.step}",
                    id="timeout",
                )
            try:
                line = self._lines.get(timeout=min(WAITING, self.until - now))
                break
            except queue.Empty:
                self._tell_how_it_goes()
        if line is None:
            raise self._ended()
        self._has_begun = True
        if line[0] == "step":
            self.step, self.since = escape(line[1]), time.monotonic()
        return line

    def _tell_how_it_goes(self) -> None:
        text = f"installing on {self.host}: {self.step}, for {lasted(time.monotonic() - self.since)} now"
        if self._sent < self._to_send:
            text += f"; {self._sent / 1e6:.1f} of {self._to_send / 1e6:.1f} MB sent"
        self.say(text)

    def _ended(self) -> RemoterError:
        if self._odd:
            return _not_understood(self.host, self._odd)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.returncode
        if self.explain and not self._has_begun:
            return self.explain("\n".join(self._errors), code)
        said = last_words([*self.words, *self._errors]) if self.words or self._errors else None
        return ConnectError(
            f"the connection to {self.host} ended before remoter was installed",
            cause=f"while {self.step}: {said or (f'signal {-code}' if code and code < 0 else f'exit code {code}')}",
            id="install",
        )

    def send(self, wheels: list[Path]) -> None:
        """Send the wheels, on a thread: the other end may say something meanwhile."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for wheel in wheels:
                tar.add(wheel, wheel.name)
        self._to_send, self._sent = len(buffer.getvalue()), 0
        data = f"{len(buffer.getvalue())}\n".encode() + buffer.getvalue()
        threading.Thread(target=self._write, args=(data,), name="remoter-install-send", daemon=True).start()

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # the end is told by its output
            descriptor = self.process.stdin.fileno()
            for at in range(0, len(data), PIECE):
                if self._is_closing:
                    return
                piece = memoryview(data)[at : at + PIECE]
                while piece:
                    count = os.write(descriptor, piece)
                    piece = piece[count:]
                    self._sent += count

    def close(self) -> None:
        """End the script by the end of its input, and wait until it has taken back what it did."""
        self._is_closing = True
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.close()
        for end in (self.process.terminate, self.process.kill, lambda: None):
            try:
                self.process.wait(PATIENCE)
                break
            except subprocess.TimeoutExpired:
                end()
        for thread in self._threads:
            thread.join(1.0)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None and not any(thread.is_alive() for thread in self._threads):
                stream.close()

    def __enter__(self) -> Dialogue:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
