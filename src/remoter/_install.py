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
from collections import deque
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import msgspec

from . import __version__
from ._bootstrap import Reader, Task, render
from ._errors import ConnectError, RemoterError
from ._wheels import Far, NoWheelsError, gather, last_words, pack_own

PLACE = "~/.local/share/remoter"

TIME = 300.0
"""Seconds for all of it."""

PATIENCE = 8.0
"""Seconds that the other end has to take back what it did."""

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
    """Put this version of remoter there; the version that is there then.

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
    with Dialogue(start(script), nonce, host, explain) as dialogue:
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
    """Answer what the other end asks, up to its end."""
    host = dialogue.host
    olds: dict[str, None] = {}
    failed = done = ""
    with tempfile.TemporaryDirectory(prefix="remoter-") as name:
        while True:
            word, rest = dialogue.read()
            match word:
                case "step":
                    say(f"installing on {host}: {rest}")
                case "old":
                    path, _, version = rest.rpartition(" ")
                    olds[f"{path} is {version}"] = None
                case "ask-own":
                    dialogue.send([_own_wheel(Path(name), host)])
                case "ask-all":
                    dialogue.send(_all_wheels(Path(name), rest, dialogue, say))
                case "failed":
                    failed = rest
                    dialogue.words.clear()
                case "said":
                    dialogue.words.append(rest)
                case "have":
                    done = f"remoter {__version__} is on {host} already: {rest}"
                case "installed":
                    done = f"installed remoter {__version__} on {host}: {rest}"
                case "end" if done:
                    say(done)
                    return __version__
                case "end":
                    raise _failed(failed, host, list(dialogue.words), list(olds))


def _own_wheel(directory: Path, host: str) -> Path:
    try:
        return pack_own(directory)
    except NoWheelsError as error:
        raise RemoterError(f"remoter cannot be sent to {host}", cause=str(error), id="install") from None


def _all_wheels(
    directory: Path, description: str, dialogue: Dialogue, say: Callable[[str], None]
) -> list[Path]:
    far = msgspec.json.decode(description, type=Far)
    wheels = directory / "all"
    wheels.mkdir()
    there = last_words(list(dialogue.words)) if dialogue.words else "neither uv nor pip"
    own = next(directory.glob("remoter-*.whl"))
    try:
        how = gather(own, far, wheels, dialogue.until)
    except NoWheelsError as error:
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
    say(f"installing on {dialogue.host}: sending {len(found)} wheels for {far}, {how}, {size:.0f} MB")
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
    """No remoter is there: the three ways to go on.

    Args:
        python: path and version of the `python3` there, if any.
        host: what to call the machine.
        address: what was typed, to type again.
    """
    version = re.search(r" (\d+)\.(\d+)", python or "")
    is_old = version is not None and (int(version[1]), int(version[2])) < (3, 11)
    return ConnectError(
        f"no remoter on {host}",
        cause=f"it is neither in {PLACE} nor on PATH there; "
        + (f"Python is {python}" if python else "nor is there a `python3`"),
        hints=[
            f"let it be put into {PLACE} there: `remoter client {address} --install`"
            + (", which needs Python 3.11 or newer, or `uv` there" if is_old or not python else ""),
            f"or install it there yourself, on {host}: `uv tool install remoter` or `pipx install remoter`",
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
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        nonce: str,
        host: str,
        explain: Callable[[str, int | None], RemoterError] | None = None,
    ) -> None:
        self.process, self.host, self.explain = process, host, explain
        self.until = time.monotonic() + TIME
        self.words: deque[str] = deque(maxlen=40)  # what programs there said
        self.step = "logging in"
        self._has_begun = self._is_closing = False
        self._reader = Reader(nonce)
        self._lines: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=40)
        self._threads = [
            threading.Thread(target=read, name="remoter-install", daemon=True)
            for read in (self._read_errors, self._read_output)
        ]
        for thread in self._threads:
            thread.start()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(self.process.stdout.fileno(), 1 << 16):
                for line in self._reader.feed(data):
                    self._lines.put(line)
        self._threads[0].join(1.0)  # what it said last belongs to its end
        self._lines.put(None)

    def _read_errors(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stderr or ():
                self._errors.append(line.decode(errors="replace").rstrip("\r\n"))

    def read(self) -> tuple[str, str]:
        """The next line.

        Raises:
            RemoterError: there is none in time, or the connection ended.
        """
        try:
            line = self._lines.get(timeout=max(0.0, self.until - time.monotonic()))
        except queue.Empty:
            raise RemoterError(
                f"remoter was not installed on {self.host} within {TIME:g} s",
                cause=f"the last step was: {self.step}",
                id="timeout",
            ) from None
        if line is None:
            raise self._ended()
        self._has_begun = True
        if line[0] == "step":
            self.step = line[1]
        return line

    def _ended(self) -> RemoterError:
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
                    piece = piece[os.write(descriptor, piece) :]

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
