"""One script through a session, its output here as it is printed; on the client's machine, in the caller's process.

`batch()` for programs, `run_script()` for the command line. Both follow ONE run in script
mode: the loop thread of the client puts events into a queue, the calling thread takes them
out and prints, so that a slow reader of our output never slows the connection.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import queue
import signal
import sys
import threading
import time
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ._config import SUFFIXES
from ._errors import (
    AddressError,
    RemoterError,
    RunError,
    RunInterruptedError,
    SessionDiedError,
)
from ._messages import LONGEST_CODE, Event
from ._pictures import Album, picture_in

if TYPE_CHECKING:
    from ._client import Result, Run, Session
    from ._connection import LinkState

LOOK = 0.5  # seconds between looks at what no event tells
SILENCE = 6.0  # seconds without the server before we say so
PATIENCE = 2.0  # seconds after an interrupt until we say that it still runs
CLOSED_PIPE = 141  # what shells show of a program whose reader went away

NEVER_RUN = "cancelled, never run: the interpreter was gone before its turn"

_INTERRUPT = object()


def batch(
    addr: str | None = None,
    port: int | None = None,
    password: str | None = None,
    *,
    file: str | os.PathLike[str] | None = None,
    script: str | None = None,
    timer: bool = False,
    keep_going: bool = False,
    secure: bool = True,
) -> Result:
    """Run a script in a session, print what it prints as it comes, and return its result.

    The script runs top-level statement by statement and each value is shown, as at a prompt.

    Args:
        addr: where the session is; my one session on this machine when left out.
        port: the server's port, when the address does not say it.
        password: the server's password; not needed where a key admits us.
        file: the file that holds the script; or
        script: the script itself.
        timer: echo each statement with the time it took.
        keep_going: go on after a statement that raised.
        secure: False only for a server that is insecure on purpose.

    Returns:
        The result; `.exit` is the code that the script gave to `sys.exit()`.

    Raises:
        RunError: a statement raised (with `keep_going`: any of them); its traceback is the message.
        ConnectError, AuthError, LinkLostError: the session could not be reached, or was lost.
    """
    from ._client import connect

    if (file is None) == (script is None):
        raise AddressError("`batch` takes exactly one of `file` and `script`", id="usage")
    code, name = (read_script(file), os.fspath(file)) if file is not None else (script or "", "<script>")
    lang = SUFFIXES.get(os.path.splitext(file)[1]) if file is not None else None  # noqa: PTH122
    with connect(addr, port, password, secure=secure, lang=lang) as session:
        ending = _follow(session, code, filename=name, timer=timer, keep_going=keep_going)
        if ending.status == "unread":
            raise BrokenPipeError(errno.EPIPE, "nobody reads the output of the script")
        if ending.interrupted_at and ending.status in ("interrupted", "cancelled", "left"):
            raise KeyboardInterrupt
        result = ending.run.wait()
        if result.status == "ok":
            return result
        classes: dict[str, type[RunError]] = {"interrupted": RunInterruptedError, "died": SessionDiedError}
        message = result.error or f"the run ended: {result.status}"
        if result.status == "cancelled" and ending.is_gone:
            raise SessionDiedError(NEVER_RUN, result)
        raise classes.get(result.status, RunError)(message, result)


def run_script(
    session: Session,
    code: str,
    *,
    filename: str,
    timer: bool = False,
    keep_going: bool = False,
    detach: bool = False,
    timeout: float | None = None,
    answers: TextIO | None = None,
) -> int:
    """Run a script for the command line and return the exit code: 0; what the script gave to
    `sys.exit()`; 1 it raised; 124 not done after `timeout` seconds (it goes on); 130 interrupted;
    255 the interpreter or the link is gone.

    Questions of the script (`input()`) are answered from `answers`; without it they get end of file.
    """
    if detach:
        return _leave_running(session, code, filename=filename, timer=timer, keep_going=keep_going)
    ending = _follow(
        session,
        code,
        filename=filename,
        timer=timer,
        keep_going=keep_going,
        timeout=timeout,
        answers=answers,
    )
    if ending.status == "timeout":
        _tell(
            f"not done after {timeout:g} s; it goes on there. To end it: `remoter interrupt {session._address}`"
        )
        return 124
    if ending.status == "left":
        _tell(f"left; it goes on there. To end it: `remoter interrupt {session._address}`")
        return 130
    if ending.status == "unread":
        return CLOSED_PIPE
    if ending.exit is not None:
        return ending.exit & 0xFF
    if ending.status == "cancelled" and ending.is_gone:
        _tell(NEVER_RUN)
        return 255
    if ending.status != "ok" and not ending.explained:
        words = {"cancelled": "cancelled before it had started", "interrupted": "interrupted, from elsewhere"}
        _tell(words.get(ending.status, f"the run ended: {ending.status}"))
    return {"ok": 0, "interrupted": 130, "cancelled": 130, "died": 255}.get(ending.status, 1)


def read_script(path: str | os.PathLike[str] | None) -> str:
    """The text of a script, decoded as Python would, one of R as UTF-8; without a path that of standard input.

    Raises:
        RemoterError: it cannot be read, or is larger than a session takes.
    """
    name = "standard input" if path is None else os.fspath(path)
    try:
        content = sys.stdin.buffer.read() if path is None else Path(path).read_bytes()
        is_r = SUFFIXES.get(os.path.splitext(name)[1]) == "r"  # noqa: PTH122
        encoding = "utf-8-sig" if is_r else tokenize.detect_encoding(io.BytesIO(content).readline)[0]
        code = io.TextIOWrapper(io.BytesIO(content), encoding).read()
    except OSError as error:
        raise RemoterError(f"cannot read `{name}`", cause=error.strerror, id="file") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        cause = f"line {line} is not {encoding.removesuffix('-sig').upper()}"
        raise RemoterError(
            f"cannot read `{name}`", cause=cause, hints="save it as UTF-8", id="file"
        ) from None
    except SyntaxError as error:
        raise RemoterError(f"cannot read `{name}`", cause=str(error), id="file") from None
    if len(content) > LONGEST_CODE:
        raise RemoterError(
            f"`{name}` is larger than what a session takes",
            cause=f"it has {len(content) / 2**20:.1f} MB of {LONGEST_CODE // 2**20}",
            id="file",
        )
    return code


def read_file(file: str, is_alone: bool) -> str:
    """As `read_script`; a missing file that is the only word of a command was perhaps meant as a session."""
    try:
        return read_script(file)
    except RemoterError as error:
        if is_alone and not Path(file).exists():
            error.hints = (
                f"if `{file}` is a session: `remoter batch {file} -` runs standard input there, `-c CODE` a text",
            )
        raise


# --- following one run -----------------------------------------------------------------------


@dataclass
class _Ending:
    """How following ended: the run's own status, or timeout, left, unread (our reader went away)."""

    run: Run
    status: str = ""
    exit: int | None = None
    interrupted_at: float | None = None
    explained: bool = False
    is_gone: bool = False  # the interpreter has died, or the session was ended


@dataclass
class _Follower:
    """What is known while one run is followed."""

    session: Session
    inbox: queue.SimpleQueue[object]
    ending: _Ending
    answers: TextIO | None
    album: Album = field(default_factory=lambda: Album("file"))
    lost_since: float | None = None
    told_of_loss: bool = False
    told_to_wait: bool = False


def _follow(
    session: Session,
    code: str,
    *,
    filename: str,
    timer: bool,
    keep_going: bool,
    timeout: float | None = None,
    answers: TextIO | None = None,
) -> _Ending:
    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    deadline = None if timeout is None else time.monotonic() + timeout
    stop_watching = session._watch(inbox.put, inbox.put)
    try:
        with _interrupts_to(inbox):
            run = session._submit(code, mode="script", filename=filename, keep_going=keep_going, timer=timer)
            follower = _Follower(session, inbox, _Ending(run), answers)
            while not follower.ending.status:
                _take_one(follower, deadline)
        return follower.ending
    finally:
        stop_watching()


def _take_one(follower: _Follower, deadline: float | None) -> None:
    """Wait for one thing that happens, at most for LOOK; what it means goes to the ending."""
    ending = follower.ending
    try:
        item = follower.inbox.get(
            timeout=LOOK if deadline is None else min(LOOK, deadline - time.monotonic())
        )
    except (queue.Empty, ValueError):  # ValueError: the deadline has passed
        item = None
    try:
        if item is _INTERRUPT:
            _interrupt(follower)
        elif isinstance(item, Event):
            is_end = item.kind == "died" or (item.data or {}).get("about") == "ended"
            ending.is_gone = ending.is_gone or is_end
            if item.run == ending.run.id or is_end:
                _show(follower, item)
        elif item is not None:
            _note_link(follower, item)  # type: ignore[arg-type]
        if follower.inbox.empty():
            sys.stdout.flush()
    except BrokenPipeError:
        # As a local script would end when nobody reads it. The shell's own quiet way: no message.
        ending.run.interrupt()
        ending.status = "unread"
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    _tell_what_lasts(follower)
    is_over = ending.run.status not in ("queued", "running")
    if is_over and not ending.status and follower.inbox.empty():
        # It ended without a `done` for us: refused, its events no longer kept, or the link closed.
        result = ending.run.wait()  # raises where nobody knows what became of it
        ending.status, ending.exit = result.status, result.exit
    if not ending.status and deadline is not None and time.monotonic() >= deadline:
        ending.status = "timeout"


def _show(follower: _Follower, event: Event) -> None:
    """Print one event of our run, each kind where a local script would have put it."""
    ending, data = follower.ending, event.data or {}
    match event.kind:
        case "stdout":
            _write(sys.stdout, event.text or "")
        case "result" if not event.printed:
            _write(sys.stdout, _line(event.text or ""))
        case "stderr":
            _write(sys.stderr, event.text or "")
        case "notice" if data.get("about") == "answered":
            pass
        case "error" if data.get("name") == "quit":
            pass  # R's `q(status = 3)`: the code says it all
        case "error" if data.get("name") == "SystemExit":
            # As Python ends a script: a number is the exit code, anything else is printed.
            value = str(data.get("value") or "")
            if value and not value.lstrip("-").isdigit() and value != "None":
                _write(sys.stderr, _line(value))
        case "error" | "died" | "notice":
            ending.explained = True
            if not event.printed:
                _write(sys.stderr, _line(event.text or ""))
        case "display":
            _display(follower, event)
        case "ask":
            _ask(follower, event)
        case "done":
            ending.status = str(data.get("status", "ok"))
            ending.exit = data.get("exit")
        case "gap":
            _tell(
                f"what was printed here is no longer kept (events {data.get('first')} to {data.get('last')})"
            )
        case "queued" | "busy":
            pass


def _display(follower: _Follower, event: Event) -> None:
    data = event.data or {}
    picture = picture_in(data)
    if picture is None:
        _write(sys.stdout, _line(event.text or str(data.get("text/plain", ""))))
    elif said := follower.album.page(*picture):
        _tell(said.rstrip("\n"))


def _ask(follower: _Follower, event: Event) -> None:
    """Answer a question of the script from the local input; nobody there is end of file."""
    data = event.data or {}
    answers, answer = follower.answers, None
    sys.stdout.flush()
    if answers is not None:
        with _interrupts_raise():
            try:
                if data.get("hidden") and answers.isatty():
                    import getpass

                    answer = getpass.getpass(event.text or "")
                else:
                    _write(sys.stdout, event.text or "")
                    sys.stdout.flush()
                    line = answers.readline()
                    answer = line.removesuffix("\n") if line else None
            except EOFError:
                pass
            except KeyboardInterrupt:
                _interrupt(follower)
                return
    follower.session._answer(follower.ending.run.id, int(data.get("id", 0)), answer)


def _interrupt(follower: _Follower) -> None:
    """Ctrl-C: the first interrupts the run, where it is; the second leaves it alone and goes."""
    if follower.ending.interrupted_at is not None:
        follower.ending.status = "left"
        return
    follower.ending.interrupted_at = time.monotonic()
    follower.ending.run.interrupt()


def _note_link(follower: _Follower, state: LinkState) -> None:
    if state.state == "ok":
        if follower.told_of_loss and follower.lost_since is not None:
            _tell(f"back after {time.monotonic() - follower.lost_since:.0f} s")
        follower.lost_since, follower.told_of_loss = None, False
    elif follower.lost_since is None:
        follower.lost_since = time.monotonic()


def _tell_what_lasts(follower: _Follower) -> None:
    """A word about a link that stays lost, and about a script that does not heed an interrupt."""
    interrupted_at = follower.ending.interrupted_at
    if (
        interrupted_at is not None
        and not follower.told_to_wait
        and time.monotonic() - interrupted_at >= PATIENCE
    ):
        follower.told_to_wait = True
        _tell("interrupted, but it has not ended yet; Ctrl-C again leaves it alone and goes")
    since = follower.lost_since
    if since is not None and not follower.told_of_loss and time.monotonic() - since >= SILENCE:
        follower.told_of_loss = True
        _tell(
            f"no answer for {SILENCE:.0f} s. The script goes on there; trying to come back (Ctrl-C twice leaves)"
        )


def _leave_running(session: Session, code: str, *, filename: str, timer: bool, keep_going: bool) -> int:
    """Submit, wait until the server has it in its journal, print the run's id, and go."""
    run = session._submit(
        code, mode="script", filename=filename, keep_going=keep_going, timer=timer, detached=True
    )
    for event in run.events():  # the first one, `queued`, says that it is in the journal
        if event.kind == "queued":
            break
    client, number = run.id
    print(f"{client}-{number}", flush=True)  # noqa: T201 - what was asked for
    _tell(f"it runs there on its own. To follow it: `remoter log -f {session._address}`")
    return 0


# --- printing and signals --------------------------------------------------------------------


def _line(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _write(stream: TextIO, text: str) -> None:
    """Print text of the session, also where our terminal's encoding lacks a character of it."""
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    if stream is sys.stderr:
        stream.flush()


def _tell(text: str) -> None:
    sys.stdout.flush()
    _write(sys.stderr, text + "\n")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _interrupts_to(inbox: queue.SimpleQueue[object]) -> Iterator[None]:
    """Ctrl-C becomes an item in the queue, so that it never cuts a line that is being printed."""
    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: inbox.put(_INTERRUPT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _interrupts_raise() -> Iterator[None]:
    """While a line is read Ctrl-C has to end the reading."""
    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
