"""connect() and the Session it gives: the blocking face of a connection; in the client's process."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from ._address import Address, parse
from ._connection import LinkState
from ._crossing import QUERY_TIMEOUT, CopyOptions, Crossing, Format, ShowProgress, Source, outcome
from ._errors import (
    AddressError,
    AuthError,
    LinkLostError,
    RemoterError,
    RunTimeoutError,
    VersionError,
    warn,
)
from ._messages import LONGEST_CODE, Attached, Event, RunId, Submit
from ._output import Output, width
from ._run import AskPerson, Inbox, Result, Run
from ._start import other_language
from ._stream import EventStream
from ._target import Target, Wish, find

__all__ = ["Event", "Info", "Result", "Run", "Session", "connect"]

AFTER_INTERRUPT = 2.0
"""Seconds that a local Ctrl-C leaves a run to end, before KeyboardInterrupt is raised here."""


class Info(dict[str, Any]):
    """What a session says of itself or of its objects: read as `info["name"]` or `info.name`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def connect(
    addr: str | None = None,
    port: int | str | None = None,
    password: str | None = None,
    *,
    start: bool | None = None,
    lang: Literal["python", "r"] | None = None,
    python: str | None = None,
    r: str | None = None,
    r_engine: Literal["auto", "embed", "pipe"] | None = None,
    prelude: str | None = None,
    install: bool = False,
    timeout: float = 10.0,
    secure: bool = True,
    ask: AskPerson | None = None,
    trust: bool = False,
) -> Session:
    """Connect to a session.

        with remoter.connect("ssh://big") as session:
            print(session.run("1 + 1").text)

    Args:
        addr: its name, or host, `ssh://[user@]host[:port][/name]`, `host:port`, `remoter://host:port/#KEY`;
            my one session here when left out.
        port: the server's port, when the address does not say it.
        password: the server's password; not needed where a key admits us, but verified if given.
        start: start a session if none runs; None: only through ssh, on the machine there.
        lang: the language of the session, `python` or `r`; None: any, and Python if one is started.
        python, r, r_engine: the interpreter of a session that is started; of an R session Python is
            what hosts R, `r` the R, and `r_engine` whether that is embedded.
        prelude: shell text that is run there first, as `module load python`; with ssh only.
        install: put remoter into a directory of its own there, if it is missing; with ssh only.
        timeout: seconds, in all; a session that is started through ssh has a minute more.
        secure: False only for a server that is insecure on purpose.
        ask: answers what runs ask, given the prompt and whether typing is hidden; None is end of file.
            Also what ssh asks, where there is no terminal.
        trust: `pull` may open pickles, which run code that the session chose.

    Raises:
        AddressError: the address cannot be meant.
        ConnectError: nobody was reached. AuthError: we were not admitted.
        KeyChangedError: the server's key is not the pinned one. VersionError: no common protocol.
    """
    return open_session(
        addr,
        port,
        password,
        start=start,
        lang=lang,
        python=python,
        r=r,
        r_engine=r_engine,
        prelude=prelude,
        install=install,
        timeout=timeout,
        secure=secure,
        ask=ask,
        trust=trust,
    )


def open_session(
    addr: str | None = None,
    port: int | str | None = None,
    password: str | None = None,
    *,
    timeout: float = 10.0,
    ask: AskPerson | None = None,
    trust: bool = False,
    ask_person: AskPerson | None = None,
    all: bool = False,
    quiet: bool = False,
    **wanted: Any,
) -> Session:
    """As `connect`, for our own faces. `ask_person` asks who sits here for a password or about a
    server's key; `all`: the events of every client are watched; `quiet`: no warning that it is not
    secure; `wanted`: what else a `Wish` holds.
    """
    if not isinstance(timeout, int | float):
        raise TypeError(f"timeout is a number of seconds, not {type(timeout).__name__}")
    if (wanted.get("r") or wanted.get("r_engine")) and wanted.get("lang") != "r":
        raise AddressError("`r` and `r_engine` are for R sessions", hints='`lang="r"` starts one', id="usage")
    deadline = time.monotonic() + timeout
    wish = Wish(password, deadline=deadline, ask=ask_person, ask_ssh=ask_person or ask, **wanted)
    target = find(parse(addr, port), wish)
    if not target.is_secure and not quiet:
        warn(f"the connection to {target.where} is not secure: anyone can join in, read and change it")
    while True:
        session = Session(target, ask=ask, all=all, trust=trust)
        try:
            attached = session._open(wish.remaining)
            refusal = other_language(target, str(attached.info.get("lang") or "python"), wish)
            if refusal is not None:
                session.close()
                raise refusal
        except AuthError as error:
            # Reached and proved, but our key is not on its list: a password puts it there.
            if target.keys_again is None or not target.keys_again():
                target.close()
                raise _not_admitted(target, error) from None
        except VersionError as error:
            target.close()
            raise target.other_protocol(error) from None
        except LinkLostError as error:
            target.close()
            if not wish.start or error.id != "ended" or wish.remaining < 1:
                raise
            time.sleep(0.05)  # it was just about to end: another one is started in its place
            target = find(parse(addr, port), wish)
        except BaseException:
            target.close()
            raise
        else:
            return session


def _not_admitted(target: Target, error: AuthError) -> AuthError:
    if error.hints:
        return error
    hints = [
        "give the password that the server printed: `password=...`, or REMOTER_PASSWORD for the commands"
    ]
    return AuthError(f"{target.where} does not admit this client's key", cause=error.cause, hints=hints)


class Session:
    """A connection to a session: leaving it closes the connection, never the session.

    It may be used from several threads. It does not survive a fork.
    """

    def __init__(
        self, target: Target, *, ask: AskPerson | None = None, all: bool = False, trust: bool = False
    ) -> None:
        self._target = target
        self._client = os.urandom(8).hex()
        self._lock = threading.Lock()
        self._n = 0
        self._inbox = Inbox(self._client, ask)
        self._link = target.link(self._inbox, self._client, all=all)
        self._inbox.link = self._link
        self._crossing = Crossing(weakref.ref(self), target, self._link, self._inbox, trust)
        weakref.finalize(self, self._link.abandon).atexit = False
        if target.ssh is not None:
            weakref.finalize(self, target.ssh.abandon).atexit = False
        self._link.start()

    def _open(self, timeout: float) -> Attached:
        return self._link.wait_open(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Session {self._address}: {self._link.state.state}>"

    # --- running -----------------------------------------------------------------------------

    def run(
        self, code: str, *, quiet: bool = False, check: bool = True, timeout: float | None = None
    ) -> Result:
        """Run the code and wait. What it prints appears here live, in the calling thread, unless `quiet`.

        Ctrl-C interrupts the code, waits 2 s for it to end, and raises KeyboardInterrupt.

        Args:
            code: statements; the value of a last expression is `.text` of the result.
            quiet: print nothing here; the result has it all the same.
            check: raise if the code raised; otherwise look at `.status`.
            timeout: seconds to wait; the run goes on afterwards.

        Raises:
            RunError: the code raised; its `str` is the traceback, `.result` the rest.
            RunInterruptedError, SessionDiedError: it was interrupted; the interpreter died.
            RunTimeoutError: `.run` can be waited for again.
            LinkLostError: the session has ended.
        """
        result, run = self._run(code, quiet=quiet, timeout=timeout, width=width())
        if check:
            run._raise_if_failed(result)
        return result

    def _run(self, code: str, *, quiet: bool, timeout: float | None, **how: Any) -> tuple[Result, Run]:
        run: Run | None = None
        output = Output(quiet)
        try:
            run = self._submit(code, **how)
            output.follow(run, timeout)
        except KeyboardInterrupt:
            if run is not None:
                run.interrupt()
                with contextlib.suppress(RunTimeoutError, RemoterError):
                    output.follow(run, AFTER_INTERRUPT)
            raise
        return run._make_result(), run

    def submit(self, code: str) -> Run:
        """Hand in the code and return at once; runs are run in order."""
        return self._submit(code)

    def interrupt(self) -> bool:
        """Interrupt the current run, whoever started it. Returns whether there was one."""
        return bool(outcome(self._link.interrupt(None), QUERY_TIMEOUT, self._where).get("interrupted", True))

    def restart(self) -> None:
        """Give the session a new interpreter; its variables are gone, what it printed is kept."""
        self._query("restart", timeout=120.0)

    # --- asking ------------------------------------------------------------------------------

    def is_complete(self, code: str) -> Info:
        """Whether the code is whole: `.status` complete, incomplete or invalid, `.indent` to go on with."""
        return Info(self._query("is_complete", code))

    def complete(self, code: str, cursor: int | None = None) -> Info:
        """What could stand at the cursor (its end): `.matches` for what stands from `.start` to `.end`."""
        return Info(self._query("complete", code, len(code) if cursor is None else cursor))

    def inspect(self, expr: str) -> Info:
        """What an object is: `.found`, `.text`."""
        return Info(self._query("inspect", expr, len(expr)))

    def variables(self) -> list[Info]:
        """The session's own variables: `.name`, `.type`, `.shape`, `.size`, `.text` of each.

        While R is inside one long call it cannot be asked: then each has an `.age`, the seconds since it was
        last seen so. Of very many in R the first are listed, and a warning says how many there are besides.
        """
        answer = self._query("variables")
        if more := answer.get("more"):
            warnings.warn(f"{more} more variables are not listed", stacklevel=2)
        return [Info(variable) for variable in answer.get("variables", [])]

    @property
    def info(self) -> Info:
        """name, lang, version, host, pid (of the interpreter), server_pid, cwd, started, busy,
        clients, secure, link, rtt (seconds). While the link is lost: as it was last known.
        """
        self._link.check()
        answer = self._link.query("info")
        deadline = time.monotonic() + QUERY_TIMEOUT
        while self._link.state.state == "ok" and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError, LinkLostError):
                self._inbox.info = answer.result(0.25)  # the link may be found lost meanwhile
                break
        answer.cancel()
        self._link.check()
        return Info(self._inbox.info, link=self._link.state.state, rtt=self._link.rtt)

    @property
    def is_secure(self) -> bool:
        """Whether both ends have proved who they are and nobody in between can read."""
        return self._target.is_secure

    def events(self, since: int | None = None, all: bool = False) -> EventStream:
        """Everything that the session puts out, live, over a connection of its own.

        Args:
            since: the highest event number already known; 0: everything that is kept; None: only what comes.
            all: what belongs to any client; otherwise what is mine or nobody's.
        """
        self._link.check()
        return EventStream(self._target, self._client, since, all)

    # --- data --------------------------------------------------------------------------------

    def pull(
        self,
        name: str,
        *,
        format: Format | None = None,
        into: Any = None,
        allow_pickle: bool | None = None,
        background: bool = False,
        progress: ShowProgress = None,
        timeout: float | None = None,
    ) -> Any:
        """Get an object of the session.

        A name is looked up beside whatever runs. An expression is a run: it waits for its turn.
        Arrays, frames and plain values come as they are, of any size; of other objects the session
        can only send a pickle, and opening one runs code that the session chose.

        Args:
            name: what it is called there, or an expression.
            format: what a table or an array is to be here: pandas, polars, arrow or numpy.
            into: an array or other writable memory, of just the right size, that is filled and returned.
            allow_pickle: open a pickle; None: if `connect` said `trust=True`, or this user said "always".
            background: return a `Transfer` at once; its `wait()` gives the object.
            progress: False: no bar; or a function that gets a `Progress` now and then.
            timeout: seconds to wait; the transfer is then given up, and an expression interrupted.

        Raises:
            NameNotFoundError: there is no such object. RunError: the expression raised.
            TimeoutError: that took longer than `timeout`.
            TransferError: it does not cross, and why. LinkLostError: the session has ended.
        """
        return self._crossing.pull(
            name,
            self._evaluate,
            format=format,
            into=into,
            allow_pickle=allow_pickle,
            timeout=timeout,
            background=background,
            progress=progress,
        )

    def push(
        self,
        *named: Any,
        overwrite: bool = True,
        background: bool = False,
        progress: ShowProgress = None,
        **objects: Any,
    ) -> Any:
        """Give the session an object, `push("x", value)`, or several, `push(x=value, y=other)`.

        It gets its name there only when all of it has arrived. Functions, classes and other objects that
        are no plain data cross as pickles, if both ends have the same version of Python.

        Args:
            name: what it is to be called there: a Python name.
            value: the object. An array is not copied: who changes it meanwhile sends a mixture.
            overwrite: whether what has the name there may be replaced; what was is said.
            background: return a `Transfer` at once; its `wait()` gives what is returned otherwise.
            progress: False: no bar; or a function that gets a `Progress` now and then.

        Returns:
            What arrived; of several, a list.

        Raises:
            TransferError: it does not cross, and why. LinkLostError: the session has ended.
        """
        if bool(objects) is bool(named) or len(named) not in (0, 2) or (objects and background):
            raise TypeError("push() takes a name and a value, or objects by keyword")
        how: dict[str, Any] = {"overwrite": overwrite, "progress": progress}
        if objects:
            return [self.push(name, value, **how) for name, value in objects.items()]
        return self._crossing.push(*named, background=background, **how)

    def __getitem__(self, name: str) -> Any:
        return self.pull(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.push(name, value)

    def __delitem__(self, name: str) -> None:
        self._crossing.remove(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._crossing.has(name)

    __iter__ = None  # or `for` would try session[0]

    def upload(self, path: Source, to: str | None = None, **options: Unpack[CopyOptions]) -> Any:
        """Copy a file or a folder from here to the session's machine, also while a command runs there.

        What was cut off goes on where it was; nothing that is there is overwritten unless asked.

        Args:
            path: the file or folder here, or several.
            to: its place there; relative to the session's working directory, where it goes if left out.
            overwrite: replace what is there.
            update: replace what differs in size or time, skip what does not.
            resume: go on with what an earlier attempt left.
            symlinks: "skip" them in folders, or "keep" those that stay inside.
            compress: True or False; None: as the connection's rate suggests.
            background: return a `Transfer` at once; its `wait()` gives what is returned otherwise.
            progress: False: no bar; or a function that gets a `Progress` now and then.

        Returns:
            `Copied`: where it is, how many files and bytes, what was skipped, and problems with single files.

        Raises:
            TransferError: it did not cross, and why. LinkLostError: the session has ended.
        """
        return self._crossing.copy("upload", path, to, options)

    def download(self, path: Source, to: str | None = None, **options: Unpack[CopyOptions]) -> Any:
        """Copy a file or a folder from the session's machine to here; as `upload`, the other way.

        `path` may be a pattern, as `runs/*.csv` or `**/*.log`.
        """
        return self._crossing.copy("download", path, to, options)

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection; the session and its runs go on, transfers do not."""
        self._crossing.close()
        self._link.close()
        self._target.close()

    def shutdown(self) -> None:
        """End the session for everyone, with all that it holds."""
        self._link.check()
        try:
            self._query("shutdown")
        except LinkLostError as error:
            if error.id != "ended":  # the session's goodbye may overtake the answer
                raise
        self._link.closed.wait(10.0)
        self.close()

    def _evaluate(self, expression: str, transfer: str, *, quiet: bool, timeout: float | None = None) -> Run:
        """Have the value of an expression kept for that transfer; unless `quiet`, wait and print as `run` does."""
        if quiet:
            return self._submit(expression, keep=transfer)
        result, run = self._run(expression, quiet=False, timeout=timeout, width=width(), keep=transfer)
        run._raise_if_failed(result)
        return run

    # --- for our own faces -------------------------------------------------------------------

    @property
    def _address(self) -> Address:
        return self._target.address

    @property
    def _greeting(self) -> str:
        return self._target.greeting

    @property
    def _where(self) -> str:
        return self._target.where

    @property
    def _is_here(self) -> bool:
        return self._target.is_here

    @property
    def _journal(self) -> str:
        return self._link.journal or ""

    @property
    def _last_event(self) -> int:
        return self._link.last or 0

    @property
    def _pending_asks(self) -> list[Event]:
        return list(self._inbox.asks.values())

    def _submit(
        self,
        code: str,
        *,
        mode: Literal["prompt", "script"] = "prompt",
        filename: str | None = None,
        keep_going: bool = False,
        timer: bool = False,
        width: int | None = None,
        color: bool | None = None,
        detached: bool = False,
        keep: str = "",
    ) -> Run:
        _check_code(code)
        with self._lock:
            self._link.check()
            self._n += 1
            run = Run((self._client, self._n), self._link, self._inbox)
            self._inbox.runs[self._n] = run
            try:
                self._link.submit(
                    Submit(
                        n=self._n,
                        session=self._link.session,
                        code=code,
                        mode=mode,
                        filename=filename,
                        keep_going=keep_going,
                        timer=timer,
                        width=width or 0,
                        color=bool(color),
                        detached=detached,
                        keep=keep,
                    )
                )
            except BaseException:
                self._inbox.runs.pop(self._n, None)
                raise
        return run

    def _watch(
        self, on_event: Callable[[Event], None], on_link: Callable[[LinkState], None]
    ) -> Callable[[], None]:
        """Call these on the loop thread for each event and state of the link. Returns what stops it."""
        watcher = (on_event, on_link)
        self._inbox.watchers.append(watcher)

        def stop() -> None:
            if watcher in self._inbox.watchers:
                self._inbox.watchers.remove(watcher)

        return stop

    def _answer(self, run: RunId, ask: int, text: str | None) -> None:
        self._inbox.answer(run, ask, text)

    def _query(
        self, what: str, code: str = "", cursor: int = 0, timeout: float = QUERY_TIMEOUT
    ) -> dict[str, Any]:
        return outcome(self._link.query(what, code, cursor), timeout, self._where)


# --- small things ----------------------------------------------------------------------------


def _check_code(code: str) -> None:
    if not isinstance(code, str):
        raise TypeError(f"code is a str, not {type(code).__name__}")
    if len(code) > LONGEST_CODE or len(_encoded(code)) > LONGEST_CODE:
        raise RemoterError(
            f"the code is longer than {LONGEST_CODE >> 20} MB",
            hints="put its data into a file",
            id="code",
        )


def _encoded(code: str) -> bytes:
    try:
        return code.encode()
    except UnicodeEncodeError as error:
        raise RemoterError(
            f"the code holds half a character, {code[error.start]!r}, at position {error.start}",
            cause="a lone surrogate is no text in any encoding",
            id="code",
        ) from None
