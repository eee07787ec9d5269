"""What ssh asks (a password, a code, a passphrase), asked of a person; in the client's process, on threads of its own.

ssh (8.4 and later, without a terminal earlier ones too) runs a program for each question, with
the question as its argument, and reads the answer from it. Ours is a few lines that pass the
question on through a private socket and wait there. The answer takes no other way: it is never in
a file, an environment or an argument.

    ssh ── runs ──▶ askpass (question) ── socket ──▶ Askpass ──▶ ask(question, hidden)
     ▲                    │ stdout                      │
     └────── answer ──────┘◀──────── socket ────────────┘
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._errors import RemoterError

LONGEST_QUESTION = 64 * 1024
_numbers = itertools.count()
_YES_OR_NO = re.compile(r"[(\[](yes/no|y/n)\b|^Please type 'yes'", re.IGNORECASE)

_SCRIPT = r"""#!/bin/sh
exec {python} -I -S -c {code} {socket} "$@"
"""
# It ends when ssh does: to be forgotten with a question open would keep the person waiting.
_CODE = r"""
import json, os, select, socket, sys
parent = os.getppid()
question = " ".join(sys.argv[2:]), os.environ.get("SSH_ASKPASS_PROMPT", "")
answer = b""
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    connection.sendall(json.dumps(question).encode() + b"\n")
    while True:
        if select.select([connection], [], [], 1.0)[0]:
            data = connection.recv(4096)
            if not data:
                break
            answer += data
        elif os.getppid() != parent:
            sys.exit(1)
if answer[:1] != b"+":
    sys.exit(1)
sys.stdout.buffer.write(answer[1:] + b"\n")
sys.stdout.buffer.flush()
"""


class Askpass:
    """Answers what one ssh process (and those that it starts for a jump) asks; make one for each login.

    Once a question is not answered, the rest of that login is not asked either: ssh would go on
    with empty passwords.

    Args:
        directory: private, and short enough for a socket's path; two files are made in it.
        ask: the person's answer to a question, and whether it is typed unseen; None: there is none.
            May take any time. If it has a `cancel`, that is called when nobody wants the answer
            any more; if it has a `tell`, that gets what is to be read and not answered.

    Attributes:
        is_declined: a question had no answer.
        failure: what `ask` raised instead of an answer.

    Raises:
        RemoterError: programs cannot be run from that directory.
    """

    def __init__(self, directory: Path, ask: Callable[[str, bool], str | None]) -> None:
        self._ask = ask
        number = next(_numbers)  # another one, for an earlier login, may just be closing
        self._program, self._socket = directory / f"askpass{number}", directory / f"a{number}"
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._is_closed = False
        self.is_declined = False
        self.failure: BaseException | None = None
        self._write_program()
        self._listener = self._listen()
        self._thread = threading.Thread(target=self._accept, name="remoter-askpass", daemon=True)
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """What the ssh process needs in its environment, beside the usual."""
        required = {"SSH_ASKPASS": str(self._program), "SSH_ASKPASS_REQUIRE": "force"}
        # Before 8.4 there was no such requirement: ssh asks so where it has no terminal but a display.
        return required | ({} if os.environ.get("DISPLAY") else {"DISPLAY": "none:0"})

    def close(self) -> None:
        """Nobody is asked any more; what is asked right now has no answer."""
        with self._lock:
            self._is_closed = True
            connections = list(self._connections)
        for each in (self._listener, *connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join(2.0)
        self._listener.close()
        self._socket.unlink(missing_ok=True)
        self._program.unlink(missing_ok=True)

    def __enter__(self) -> Askpass:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_program(self) -> None:
        python = sys.executable or shutil.which("python3") or "python3"
        text = _SCRIPT.format(
            python=shlex.quote(python), code=shlex.quote(_CODE), socket=shlex.quote(str(self._socket))
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._program.unlink(missing_ok=True)
        with os.fdopen(os.open(self._program, flags, stat.S_IRWXU), "w", encoding="utf-8") as file:
            file.write(text)
        if not os.access(self._program, os.X_OK):
            self._program.unlink()
            raise RemoterError(
                f"programs cannot be run from `{self._program.parent}`, so ssh cannot ask here",
                cause="it is on a file system that forbids it",
                hints="name another directory with a short path by REMOTER_RUNTIME_DIR",
                id="askpass",
            )

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):  # not everywhere; the directory is private in any case
            os.fchmod(listener.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        try:
            listener.bind(str(self._socket))
        except OSError as error:
            listener.close()
            self._program.unlink(missing_ok=True)
            cause = error.strerror or str(error)
            raise RemoterError(f"cannot listen on `{self._socket}`", cause=cause, id="askpass") from None
        listener.listen(8)
        return listener

    # --- on threads of its own ---------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._is_closed:
                    return
                time.sleep(0.1)  # out of descriptors: others may give some back
                continue
            with self._lock:
                if self._is_closed:
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(
                target=self._serve, args=(connection,), name="remoter-askpass-question", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        """One question. The asking is done on a thread beside this one, which sees ssh go away."""
        over = threading.Event()
        try:
            prompt, kind = _read_question(connection)
            if kind == "none":
                self._tell(prompt)  # ssh ends the program when it is done: a touch of a key, as a rule
                _wait_for_end(connection)
                return
            thread = threading.Thread(
                target=self._answer,
                args=(connection, prompt, kind, over),
                name="remoter-askpass-answer",
                daemon=True,
            )
            thread.start()
            _wait_for_end(connection)
            if not over.is_set():
                self._cancel(over)
        except (OSError, ValueError):
            pass  # whoever that was has gone, or is no program of ours
        finally:
            with self._lock:
                self._connections.discard(connection)
            over.set()
            connection.close()

    def _answer(self, connection: socket.socket, prompt: str, kind: str, over: threading.Event) -> None:
        data = b"-"
        with self._turn:  # a jump host's ssh and the other may ask at the same time
            if not (over.is_set() or self.is_declined or self._is_closed):
                try:
                    data = _encoded(self._ask(prompt, is_hidden(prompt, kind)), kind)
                except BaseException as failure:
                    self.failure = failure
                self.is_declined = data == b"-" and not over.is_set()
            if over.is_set():
                return
            over.set()
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

    def _tell(self, text: str) -> None:
        tell: Callable[[str], Any] | None = getattr(self._ask, "tell", None)
        if tell is not None:
            tell(text)

    def _cancel(self, over: threading.Event) -> None:
        """Nobody waits for the answer any more: ssh has ended, or we are closed."""
        over.set()
        cancel: Callable[[], Any] | None = getattr(self._ask, "cancel", None)
        if cancel is not None:
            cancel()


def is_hidden(prompt: str, kind: str = "") -> bool:
    """Whether the answer is typed unseen. ssh does not say it, so all but a yes or no is."""
    return kind != "confirm" and not _YES_OR_NO.search(prompt)


def _encoded(answer: str | None, kind: str) -> bytes:
    """The answer as our program gets it."""
    if kind == "confirm" and (answer or "").strip().lower() not in ("y", "yes"):
        return b"-"  # to ssh even an empty answer would be a yes
    return (
        b"-" if answer is None else b"+" + (answer.splitlines() or [""])[0].encode(errors="surrogateescape")
    )


def _read_question(connection: socket.socket) -> tuple[str, str]:
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(4096)
        if not more or len(data) > LONGEST_QUESTION:
            raise ValueError("that is no question")
        data += more
    prompt, kind = json.loads(data)
    return _plain(str(prompt)), str(kind)


def _wait_for_end(connection: socket.socket) -> None:
    """Until the other side has closed, or we have."""
    while connection.recv(4096):
        pass


def _plain(prompt: str) -> str:
    """The question without what a server could have put into it to rule a terminal."""
    text = prompt.encode(errors="surrogateescape").decode(errors="replace").replace("\r\n", "\n")
    return "".join(each if each.isprintable() or each == "\n" else " " for each in text)
