"""R on this side of the prompt: a session of its own that nobody else sees; on the client's machine, in the prompt's process.

It is started when something is first done here, in a thread, and ends with this process, however
that ends. What crosses between the two sides is R's own serialization, which nobody opens on the way.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from . import _r, _rverbs
from ._config import WINDOWS
from ._errors import LinkLostError, NameNotFoundError, RemoterError, TransferError
from ._language import MARK, Cargo, Marked, Piece, already_here, attempt
from ._messages import Event
from ._paper import columns
from ._run import AskPerson, Run
from ._transfer import Carrier
from ._visits import read_until

if TYPE_CHECKING:
    from ._client import Session

PATIENCE = 0.5  # seconds until we say that R is being started
STARTING = 60.0  # seconds for R to start: a profile may load a lot
ENDING = 3.0  # seconds for it to end


class _Failed(Exception):
    """The code raised, and what it said has been shown."""


def is_r_here() -> bool:
    """Whether there is an R on this machine that could be this side."""
    if WINDOWS:
        return False
    try:
        _r.find()
    except RemoterError:
        return False
    return True


class RSide:
    """The objects on this side, in R.

    Args:
        write: puts out marked text.
        say: says something of ours, at once.
        ask: has a question of R's answered; None is end of file. Raises KeyboardInterrupt.
        show: shows a plot.
    """

    NAME = "R"

    def __init__(
        self,
        write: Callable[[str], None],
        say: Callable[[str], None],
        ask: AskPerson,
        show: Callable[[Event], None],
    ) -> None:
        self._write, self._say, self._ask, self._show = write, say, ask, show
        self._starting: Future[tuple[Session, list[str]]] | None = None

    # --- what the prompt wants ---------------------------------------------------------------

    def do(self, piece: Piece) -> bool:
        """Do `lsc`, `rmc` or `evalc`. A failure is shown and stays here; says whether it went well."""
        return self.attempt(lambda stream: self._run(_code(piece), piece.name, stream))

    def attempt(self, action: Callable[[Marked], None]) -> bool:
        """Do something here that may fail. A failure is shown and stays here; says whether it went well."""
        return attempt(self._write, action, _explained)

    def expect(self, cargo: Cargo) -> Cargo:
        """What is to be brought here, under a name that it may have. Raises RemoterError: it has none."""
        _rverbs.check_name(cargo.name)
        if not cargo.overwrite:
            found = self._session("s2c")._crossing._step("find", cargo.name)
            if found.get("found"):
                raise already_here(cargo.name, str(found.get("text") or "an object"))
        return cargo

    def bring(self, session: Session, cargo: Cargo, transfer: str, ask: AskPerson, stream: Marked) -> None:
        """Get it from the session as R has it. Who sits here is asked about what is code."""
        value = _pull(session, transfer, cargo, progress=None)
        if _is_code(value):
            _check_trust(session, cargo, ask)
        local = self._session("s2c")
        pushed = local.push(_rverbs.check_name(cargo.name), value, overwrite=cargo.overwrite, progress=False)
        stream.write(f"{pushed}\n")

    def send(self, session: Session, cargo: Cargo, stream: Marked) -> None:
        """Give its value to the session, as R has it."""
        local, transfer = self._session("c2s"), os.urandom(8).hex()
        if not cargo.is_name:
            self._run(cargo.text, "c2s", stream, keep=transfer)
        try:
            value = _pull(local, transfer, cargo, progress=False)
        except NameNotFoundError:
            raise RemoterError(
                f"no object `{cargo.text}` here", hints="`lsc()` lists what is here", id="name"
            ) from None
        try:
            pushed = session.push(cargo.name, value, overwrite=cargo.overwrite)
        except TransferError as error:
            if error.id == "exists":
                error.hints = ("leave `overwrite = FALSE` out, or give another name",)
            raise
        stream.write(f"{pushed}\n")

    def close(self) -> None:
        """The prompt ends, and R here with it."""
        self._drop()

    # --- running here ------------------------------------------------------------------------

    def _run(self, code: str, word: str, stream: Marked, *, keep: str = "") -> None:
        """Run it here, be with it until its end, and show what it puts out. Raises _Failed."""
        if not code.strip():
            return
        run = self._session(word)._submit(code, width=max(20, columns() - len(MARK)), color=False, keep=keep)
        seen = presses = 0
        while True:
            try:
                for index, event in enumerate(run.events()):
                    if index >= seen:
                        seen = index + 1
                        self._take(event, run, stream)
                break
            except KeyboardInterrupt:
                run.interrupt()
                presses += 1
                if presses > 2:
                    raise
        if run.status == "died":
            self._drop()
            stream.finish()
            stream.write("R here has died, and its objects are gone\n")
        if run.status != "ok":
            raise _Failed

    def _take(self, event: Event, run: Run, stream: Marked) -> None:
        """Show one event, where that is not shown already; answer what it asks."""
        data = event.data or {}
        match event.kind:
            case "stdout" | "stderr":
                stream.write(event.text or "")
            case "result" | "error" if not event.printed and event.text:
                stream.finish()
                stream.write(f"{event.text}\n")
            case "display":
                self._show(event)
            case "notice" if event.text and data.get("about") not in ("answered", "exit"):
                stream.finish()
                stream.write(f"-- {event.text}\n")
            case "ask" if event.run is not None:
                number = int(data.get("id", 0))
                if number in run._asks:  # it has not ended since
                    stream.finish()
                    answer = self._ask(f"{MARK}{event.text or ''}", bool(data.get("hidden")))
                    run._inbox.answer(event.run, number, answer)

    # --- the session here --------------------------------------------------------------------

    def _session(self, word: str) -> Session:
        """The session here, started now if there is none. Raises RemoterError: it cannot be."""
        if self._starting is not None and self._starting.done():
            if self._starting.exception() is not None:
                self._starting = None
            elif _is_over(self._starting.result()[0]):
                self._say("R here has ended, and its objects are gone; it is started again")
                self._drop()
        if self._starting is None:
            self._starting = Future()
            threading.Thread(
                target=_start, args=(self._starting,), name="remoter-r-here", daemon=True
            ).start()
        try:
            session, lines = self._starting.result(PATIENCE)
        except TimeoutError:
            self._say(f"starting R here for `{word}`")
            session, lines = self._starting.result()
        self._write("".join(f"{MARK}{line}\n" for line in lines))
        lines.clear()
        return session

    def _drop(self) -> None:
        """Have done with the session here, also if it is only starting."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.add_done_callback(_end)


def _code(piece: Piece) -> str:
    """What R runs for `lsc`, `rmc` or `evalc`. Raises RemoterError: it cannot be understood."""
    match piece.verb:
        case "lsc":
            pattern, is_all = _rverbs.listing(piece)
            matching = f", pattern = {_rverbs.quoted(pattern)}" if pattern else ""
            return f"ls(globalenv(), all.names = {'TRUE' if is_all else 'FALSE'}{matching})"
        case "rmc":
            names = ", ".join(map(_rverbs.quoted, _rverbs.removal(piece)))
            return f"rm(list = c({names}), envir = globalenv())" if names else ""
        case _:
            return _rverbs.evaluation(piece)


def _explained(error: BaseException) -> str:
    if isinstance(error, _Failed):
        return ""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "".join(traceback.format_exception_only(error)).rstrip("\n")


def _pull(session: Session, transfer: str, cargo: Cargo, *, progress: bool | None) -> Any:
    """The value as R has serialized it: an object of that name, or what is kept for that transfer."""
    from . import _robjects

    def work(carrier: Carrier) -> Any:
        name = cargo.text if cargo.is_name else None
        near = session._target.is_near()
        return _robjects.pull(carrier, name, format="raw", into=None, is_near=near)

    return session._crossing.carry(transfer, cargo.text, work, False, progress)


def _is_code(value: Any) -> bool:
    """Whether there is anything but data in it: R may run what it reads."""
    from ._rvalues import is_code

    return is_code(memoryview(value._data))


def _check_trust(session: Session, cargo: Cargo, ask: AskPerson) -> None:
    """Code of the session would be at home here. Raises TransferError: who sits here does not want that."""
    from ._trust import ask_to_open, trust

    crossing, target = session._crossing, session._target
    if crossing.trusts_pickles():
        return
    match ask_to_open(ask, f"`{cargo.text}`", target.where):
        case "no":
            raise TransferError(
                f"`{cargo.text}` has code in it, which {target.where} chose and which may run here",
                hints=f"`{cargo.text}` can be used there, and what it gives can be brought here",
                id="unsafe",
            )
        case "always":
            trust(target.locate().server_public, target.where)


def _start(future: Future[tuple[Session, list[str]]]) -> None:
    """In a thread of its own: start R and connect to it; what its profile printed comes with it."""
    from ._client import open_session
    from ._launcher import start_session

    try:
        ready, _ = start_session(lang="r", only_while=os.getpid(), port=0)
        session = open_session(ready["record"]["name"], quiet=True, existing=True, timeout=STARTING)
        last = int((session._query("info").get("journal") or {}).get("last") or 0)
        future.set_result((session, read_until(session, 0, last).last_lines()))
    except BaseException as error:
        future.set_exception(error)


def _is_over(session: Session) -> bool:
    try:
        session._link.check()
    except LinkLostError:
        return True
    return False


def _end(starting: Future[tuple[Session, list[str]]]) -> None:
    """End a session here that has been started."""
    if starting.exception() is not None:
        return
    session, _ = starting.result()
    with contextlib.suppress(RemoterError, TimeoutError):
        session._query("shutdown", timeout=ENDING)
    session.close()
