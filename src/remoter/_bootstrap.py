"""What ssh runs on the other machine, and how its answer is read; on the client's machine, in its process.

`bootstrap.sh` does the work there. It comes to its shell's standard input, behind empty lines, for
login files may read some of it; and as one group, which the shell reads to the end before it does
anything. All values are quoted: nothing is evaluated but the prelude, and that in a login shell.

Nothing may be sent behind the script before it has said `raw`: shells read their input in blocks.

What it says, each a line `remoter:NONCE WORD REST`, between whatever login files print:

    hello SYSTEM MACHINE HOST   first
    record JSON                 a live session: its connection record
    other HOST NAME             a record of another machine that has the same home
    login PATH                  that login shell is entered: from here on, login files run
    prelude                     the prelude begins
    starting NAME               no such session runs, one is started
    shell PATH                  (look) the user's own shell
    python PATH VERSION         (look, install) its python3, if there is one
    program PATH VERSION        (look) its remoter, if there is one
    r PATH VERSION              (look) its R, if there is one; then `home PATH`, and `library PATH` if it has one
    raw                         (run, bridge) all that follows is the program's
    failed STEP CODE            STEP: login, prelude, remoter, start, session
    said TEXT                   what the failed step printed last, at most 40 lines
    end                         last
"""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ._errors import RemoterError

COMMAND = "exec /bin/sh"
"""The command for ssh: every login shell understands it, csh and fish too."""

PADDING = 64  # empty lines, for login files that read
LONGEST = 120_000  # bytes: the script becomes one variable of an environment, which Linux limits to 128 KiB
NOISE = 64 * 1024
LONGEST_LINE = 1024 * 1024  # of a line that has not ended; the script's own are a few kB


@dataclass(frozen=True)
class Task:
    """What is to be done there.

    Attributes:
        verb: `find` tells the sessions; `start` starts one if there is none; `run` runs the program
            with `arguments`; `bridge` joins our pipes to a session; `look` tells what is there;
            `install` does what the `extra` script says.
        name: the session; none: any, or `main` for a new one.
        lang, python, r, r_engine: how a new one is started.
        only: the language that an unnamed one has to have; none: any.
        prelude: what to do in the login shell before.
        stay: wait for the end of input afterwards (not with `run` and `bridge`).
    """

    verb: Literal["find", "start", "run", "bridge", "look", "install"]
    name: str = ""
    lang: str = "python"
    python: str | None = None
    r: str | None = None
    r_engine: str | None = None
    only: str = ""
    prelude: str | None = None
    arguments: tuple[str, ...] = ()
    stay: bool = False


def render(task: Task, nonce: str, extra: bytes = b"") -> bytes:
    """The script for the shell's standard input.

    Args:
        task: what is to be done.
        nonce: a random word that nobody there knows; letters and digits.
        extra: shell text that is the work of `install`; see the head of `bootstrap.sh`.

    Raises:
        RemoterError: no shell can be given one of the values.
    """
    values = {
        "nonce": nonce,
        "verb": task.verb,
        "name": task.name,
        "lang": task.lang,
        "python": task.python or "",
        "r": task.r or "",
        "r_engine": task.r_engine or "",
        "only": task.only,
        "prelude": task.prelude if task.prelude and task.prelude.strip() else "",
        "stay": "1" if task.stay and task.verb not in ("run", "bridge") else "",
        "extra": extra.decode("utf-8", "surrogateescape"),
    }
    lines = [f"{key}={_quoted(key, value)}" for key, value in values.items()]
    arguments = " ".join(_quoted("arguments", argument) for argument in task.arguments)
    lines.append(f'with_arguments() {{ "$@" {arguments}; }}')
    text = "\n".join([*lines, _script()])
    script = f'{{\ntext={shlex.quote(text)}\neval "$text"\nexit\n}}\n'.encode("utf-8", "surrogateescape")
    if len(text.encode("utf-8", "surrogateescape")) > LONGEST:
        raise RemoterError(
            "what is to be done on the other machine is too long",
            cause=f"prelude and arguments have more than {LONGEST // 1000} kB",
            hints="put the prelude into a file there, and give `. FILE`",
            id="prelude",
        )
    return b"\n" * PADDING + script


def _quoted(key: str, value: str) -> str:
    """The value as a shell reads it back."""
    try:
        if "\0" not in value:
            value.encode("utf-8", "surrogateescape")
            return shlex.quote(value)
        cause = "it has a NUL character"
    except UnicodeEncodeError as error:
        cause = f"it has {value[error.start]!r}, which is no character"
    raise RemoterError(f"the {key} cannot be sent to another machine", cause=cause, id=key)


@functools.cache
def _script() -> str:
    """The text of `bootstrap.sh`, without its comments."""
    text = Path(__file__).with_name("bootstrap.sh").read_text(encoding="utf-8")
    return re.sub(r"(?m)^[ \t]*(#.*)?\n", "", text)


class Reader:
    """Takes what ssh prints, in any pieces, and gives the lines that mean something.

    Args:
        nonce: that of the script.

    Attributes:
        rest: what followed the line `raw`, as it came.
    """

    def __init__(self, nonce: str) -> None:
        self._mark = f"remoter:{nonce} ".encode()
        self._pending = bytearray()  # a line that has not ended
        self._noise = bytearray()
        self.is_raw = False
        self.rest = bytearray()

    @property
    def noise(self) -> bytes:
        """What else was printed, the last 64 KiB of it."""
        return bytes((self._noise + self._pending)[-NOISE:])

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """The lines that are whole now, as word and rest."""
        lines: list[tuple[str, str]] = []
        if self.is_raw:
            self.rest += data
            return lines
        searched = len(self._pending)
        self._pending += data
        while (end := self._pending.find(b"\n", searched)) >= 0:
            line = bytes(self._pending[:end])
            del self._pending[: end + 1]
            searched = 0
            before, mark, said = line.partition(self._mark)
            self._drop(before if mark else before + b"\n")
            if not mark:
                continue
            word, _, rest = said.decode(errors="replace").partition(" ")
            lines.append((word, rest))
            if word == "raw":
                self.is_raw = True
                self.rest += self._pending
                self._pending.clear()
                break
        kept = len(self._mark) - 1
        if len(self._pending) > LONGEST_LINE or (
            len(self._pending) > NOISE and self._mark not in self._pending
        ):
            self._drop(self._pending[:-kept])
            del self._pending[:-kept]
        return lines

    def _drop(self, chatter: bytes | bytearray) -> None:
        self._noise += chatter
        del self._noise[:-NOISE]
