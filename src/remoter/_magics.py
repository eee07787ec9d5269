"""`%remoter`, `%%remoter`, `%push` and `%pull`: sessions from a notebook or IPython; in the client's process.

The cell's thread, which IPython interrupts, waits and prints, so that each line comes under its
cell and whoever stops the cell stops what runs there. Rich values and pictures become outputs of
the cell. A failure there is the cell's failure here: it ends "run all" as one of this side would,
but what is shown is the session's traceback alone; our own errors are shown without any.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import keyword
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from IPython.core.error import StdinNotImplementedError
from IPython.core.magic import no_var_expand

from . import _objects, _values
from ._client import AFTER_INTERRUPT, Run, Session, open_session
from ._errors import (
    LinkLostError,
    NameNotFoundError,
    RemoterError,
    RunError,
    RunTimeoutError,
    SessionDiedError,
    TransferError,
    render,
)
from ._messages import Event
from ._paper import columns
from ._pictures import Album, picture_in
from ._run import ask_at_terminal, is_person_here
from ._saved import find_ssh
from ._usage import as_typed, read_password

TURN = 1.0
"""Seconds that a cell may wait for its turn before that is said."""


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext remoter`."""
    magics = Magics(ipython)
    ipython.register_magic_function(magics.remoter, magic_kind="line_cell", magic_name="remoter")
    ipython.register_magic_function(magics.push, magic_kind="line", magic_name="push")
    ipython.register_magic_function(magics.pull, magic_kind="line", magic_name="pull")


def unload_ipython_extension(ipython: Any) -> None:
    """`%unload_ext remoter`: close the connections; the sessions go on."""
    registered = ipython.magics_manager.magics
    registered["line"]["remoter"].__self__.close_all()
    del registered["cell"]["remoter"]
    for name in ("remoter", "push", "pull"):
        del registered["line"][name]


class Magics:
    """The magics of one IPython, and the sessions that they are connected to.

    Args:
        shell: the IPython.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._sessions: dict[str, Session] = {}
        self._current = ""

    # --- the magics --------------------------------------------------------------------------

    def remoter(self, line: str, cell: str | None = None) -> None:
        """Connect to a session; as `%%remoter`, run the cell there.

            %remoter ssh://big          connect; a session is started there if none runs
            %remoter                    which session is connected; else connect to mine on this machine
            %remoter --close            leave it; it goes on
            %%remoter                   run this cell in the session that was named last
            %%remoter ssh://big         run this cell in that one

        An address is whatever `remoter client` takes. Options:

            --start                     start a session if none runs: also on this machine
            --password-file FILE        the server's password; else you are asked
            --lang LANG                 python or r: of the session that is meant, or started
            --r PATH                    the R that runs there
            --prelude TEXT              shell text to run there first, as "module load python"; with ssh
            --python PATH               the interpreter of a session that is started
            --install                   put remoter there if it is missing; with ssh
            --insecure                  no encryption; both sides must say so
            --trust                     %pull may open pickles, which run code that the session chose
        """
        with _shown_plainly():
            wanted = _parse(line)
            if wanted.close:
                self._close(wanted.address)
                return
            session = self._find(wanted, is_cell=cell is not None)
            if cell is not None:
                Cell(self._shell, session).run(cell)

    @no_var_expand
    def push(self, line: str) -> None:
        """Send objects of this notebook to the session.

        %push x y                   they have the same names there
        %push x --as z              another name
        %push x * 2 --as z          the value of an expression
        """
        with _shown_plainly():
            typed = _split_objects(line, "push")
            session = self._find(_parse(""))
            objects = _name_objects(*typed, "push", _is_name, session._crossing.check_name)
            for source, name in objects:
                if source in self._shell.user_ns:
                    value = self._shell.user_ns[source]
                elif _is_name(source):
                    raise NameNotFoundError(f"no object `{source}` here", hints="`%who` lists what is here")
                else:
                    value = self._shell.ev(source)
                _say(str(session.push(name, value)))

    @no_var_expand
    def pull(self, line: str) -> None:
        """Bring objects of the session here.

        %pull x y                   they have the same names here
        %pull x --as z              another name
        %pull df.head() --as top    the value of an expression, which is evaluated there
        """
        with _shown_plainly():
            typed = _split_objects(line, "pull")
            if typed[1] is not None:
                _objects.check_name(typed[1])
            session = self._find(_parse(""))
            is_name = session._crossing.plain_name
            objects = _name_objects(*typed, "pull", is_name, _objects.check_name)
            for source, name in objects:
                value = _pull(session, source)
                names = self._shell.user_ns
                replaced = f"; replaced {_values.describe(names[name])}" if name in names else ""
                self._shell.push({name: value})
                _say(f"{name}: {_values.describe(value)}{replaced}")

    # --- sessions ----------------------------------------------------------------------------

    def _find(self, wanted: argparse.Namespace, *, is_cell: bool = True) -> Session:
        """The session that is meant, connected now if it was not; it is the current one from now on.

        Raises:
            LinkLostError: it has ended. Only a `%remoter` of its own connects anew then: what runs there
                now is another session, without the variables that the cell counts on.
        """
        name = wanted.address or self._current
        session = self._sessions.get(name)
        if session is not None and session._link.state.state == "closed":
            if is_cell:
                raise _has_ended(session, name)
            del self._sessions[name]
            session.close()
            session = None
        if session is None:
            session = self._sessions[name] = _connect(wanted, name)
            is_news = True
        else:
            is_news = not is_cell
        self._current = name
        session._crossing.trust |= wanted.trust
        if is_news:
            _say(_greeting(session))
            if not session.is_secure:
                _say("-- this connection is NOT secure: anyone on the way can read it and send commands")
        return session

    def _close(self, address: str | None) -> None:
        name = address or self._current
        session = self._sessions.pop(name, None)
        if session is None:
            what = f"`{name}` is not connected" if name else "no session is connected"
            raise LinkLostError(what, hints="`%remoter ADDRESS` connects", id="closed")
        has_ended = session._link.state.state == "closed"
        session.close()
        if name == self._current:
            self._current = ""
        _say(f"{session._where} has ended" if has_ended else f"left {session._where}; it goes on")

    def close_all(self) -> None:
        """Close all connections; the sessions go on."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._current = ""


def _connect(wanted: argparse.Namespace, address: str) -> Session:
    file = wanted.password_file and os.path.expanduser(wanted.password_file)  # noqa: PTH111
    # Where ssh leads, nobody is asked for a password of ours: the variable is for other addresses.
    is_ssh = bool(address) and find_ssh(address) is not None
    return open_session(
        address or None,
        password=read_password(file) if file or not is_ssh else None,
        start=True if wanted.start else None,
        python=wanted.python,
        prelude=wanted.prelude,
        lang=wanted.lang,
        r=wanted.r,
        install=wanted.install,
        secure=not wanted.insecure,
        trust=wanted.trust,
        ask=_ask,
        ask_person=_ask,
        quiet=True,
    )


def _greeting(session: Session) -> str:
    """Which session it is, in the words of the prompt."""
    meaning = session._greeting
    if session._link.state.state == "lost":
        return f"{meaning}: no answer at the moment; trying to come back"
    info, ssh = session._query("info"), session._target.ssh
    if not info.get("pid"):
        return f"{meaning}: it has no interpreter, that one died; `remoter restart {session._address}` gives a new one"
    started = ", started now" if ssh is not None and ssh.started else ""
    language = {"python": "Python", "r": "R"}.get(str(info.get("lang")), info.get("lang"))
    return f"{meaning}{started}: {language} {info.get('version')}, pid {info['pid']}"


def _has_ended(session: Session, name: str) -> RemoterError:
    try:
        session._link.check()
    except RemoterError as error:
        error.hints = (*error.hints, f"`{f'%remoter {name}'.strip()}` connects to what runs there now")
        return error
    return LinkLostError(f"{session._where} has ended", id="ended")


def _ask(prompt: str, hidden: bool) -> str | None:
    """The person's answer, in the notebook's own input line; None where nobody can be asked."""
    if not is_person_here():
        return None
    try:
        return ask_at_terminal(prompt, hidden)
    except StdinNotImplementedError:  # the notebook is run by a program
        return None


def _pull(session: Session, source: str) -> Any:
    """The object there; one that only a pickle can carry, if the person says so."""
    name, id = session._crossing.plain_name(source), os.urandom(8).hex()
    if name is None:
        session._evaluate(source, id, quiet=False)  # once, also where a question follows

    try:
        return session._crossing.pull_asking(id, name or source, _ask, is_name=name is not None)[0]
    except TransferError as error:
        if error.id == "unsafe":
            error.hints = (
                "where you are asked, answer `once` or `always` to have it opened",
                f"`%remoter --trust` has all pickles opened: they run code that {session._where} chose",
            )
        raise


# --- what was typed --------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RemoterError(message, hints="`%remoter?` shows what can be written", id="usage")


def _parse(line: str) -> argparse.Namespace:
    """The words after `%remoter`. Raises RemoterError."""
    parser = _Parser(prog="%remoter", add_help=False, allow_abbrev=False)
    parser.add_argument("address", nargs="?")
    for option in ("start", "install", "insecure", "trust", "close"):
        parser.add_argument(f"--{option}", action="store_true")
    for option in ("password-file", "prelude", "python", "r"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--lang", choices=("python", "r"))
    try:
        words = shlex.split(line)
    except ValueError as error:
        parser.error(f"`{line}` cannot be read: {str(error).lower()}")
    return parser.parse_args(words)


def _split_objects(line: str, magic: str) -> tuple[list[str], str | None]:
    """The names, or the one expression, that are to cross, and the name after `--as`. Raises RemoterError."""
    match = re.fullmatch(r"(?P<source>.*?)(?:(?:^|\s)--as[\s=]+(?P<name>\S+))?", line.strip(), re.DOTALL)
    source, name = (match["source"].strip(), match["name"]) if match else ("", None)
    words = source.split()
    if not words or words[-1] == "--as":
        raise RemoterError(
            f"`%{magic}` takes names", hints=f"`%{magic} x y`, or `%{magic} x --as z`", id="usage"
        )
    if name is None and not all(re.fullmatch(r"[\w.]+", word) for word in words):
        raise _nameless(source, magic)
    if name is not None and len(words) > 1 and all(map(_is_name, words)):
        raise RemoterError(f"one name for {len(words)} objects", hints=f"a `%{magic}` for each", id="usage")
    return ([source], name) if name is not None else (words, None)


def _name_objects(
    sources: list[str],
    name: str | None,
    magic: str,
    is_name: Callable[[str], object],
    check_name: Callable[[str], str],
) -> list[tuple[str, str]]:
    """Each with what it is to be called on the other side.

    Args:
        sources, name: what was typed.
        magic: after which magic.
        is_name: whether the language on this end of the way takes it for a name.
        check_name: the name as it will be at the other end, or an error.

    Raises:
        RemoterError: it cannot be understood. TransferError: a name cannot be one.
    """
    if name is not None:
        return [(sources[0], check_name(name))]
    if not all(map(is_name, sources)):
        raise _nameless(" ".join(sources), magic)
    return [(source, check_name(source)) for source in sources]


def _nameless(source: str, magic: str) -> RemoterError:
    return RemoterError(
        f"`{source}` is no name, and what it gives needs one",
        hints=f"`%{magic} {source} --as NAME`",
        id="usage",
    )


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


# --- one cell --------------------------------------------------------------------------------


class Cell:
    """A cell that runs in a session: shows what it puts out, answers with the person, passes interrupts on.

    Args:
        shell: the IPython here.
        session: where it runs.
    """

    def __init__(self, shell: Any, session: Session) -> None:
        self._session = session
        self._in_notebook = getattr(shell, "kernel", None) is not None
        self._publish = shell.display_pub.publish
        self._album = Album()
        self._shown = 0

    def run(self, code: str) -> None:
        """Run it and wait for its end.

        Raises:
            RunError: it raised; all it has put out is shown. KeyboardInterrupt: it was left running.
        """
        # Colours and widths are for terminals: notebooks have lines of any length, and bars that are
        # drawn with escape sequences would fill them.
        look: dict[str, Any] = {} if self._in_notebook else {"width": columns(), "color": _likes_colours()}
        run = self._session._submit(code, **look)
        self._follow_to_end(run)
        result = run._make_result()
        if result.exit is not None:
            _say(f"-- the code asked to exit with {result.exit}; the session goes on")
        run._raise_if_failed(result)

    def _follow_to_end(self, run: Run) -> None:
        """Until it is over. The first interrupt goes there; a second one leaves the run as it is."""
        patience: float | None = TURN
        is_interrupted = False
        word = ""
        while True:
            try:
                if word:
                    _say(f"-- {word}")
                    word = ""
                self._follow(run, patience)
            except RunTimeoutError:
                patience = None
                if is_interrupted:
                    word = "interrupted, but it has not ended; interrupt again to leave it running"
                elif run.status == "queued" and run._events:
                    word = "waits for the running command of another client; interrupt takes it back"
            except KeyboardInterrupt:
                if is_interrupted:
                    hint = f"`remoter interrupt {self._session._address}` interrupts it again"
                    raise KeyboardInterrupt(f"left running; {hint}") from None
                run.interrupt()
                is_interrupted, patience = True, AFTER_INTERRUPT
            else:
                return

    def _follow(self, run: Run, timeout: float | None) -> None:
        try:
            for _ in run._follow(timeout, tell=True):
                self._show_new(run)
        finally:
            self._show_new(run)

    def _show_new(self, run: Run) -> None:
        events = run._events
        if self._shown >= len(events):
            return
        while self._shown < len(events):
            event = events[self._shown]
            self._shown += 1
            self._show(event)
        sys.stdout.flush()
        sys.stderr.flush()

    def _show(self, event: Event) -> None:
        data = event.data or {}
        match event.kind:
            case "stdout":
                sys.stdout.write(event.text or "")
            case "stderr":
                sys.stderr.write(event.text or "")
            case "result" | "display" if not event.printed:
                self._show_value(event)
            case "gap":
                _say("-- part of the output is no longer kept")
            case "notice" if event.text and data.get("about") != "answered":
                _say(f"-- {event.text}")

    def _show_value(self, event: Event) -> None:
        forms = {**({"text/plain": event.text} if event.text else {}), **(event.data or {})}
        if self._in_notebook:
            # Rich values come in their order among the printed lines.
            sys.stdout.flush()
            sys.stderr.flush()
            self._publish({mime: _as_published(mime, form) for mime, form in forms.items()})
            return
        picture = picture_in(forms)
        page = self._album.page(*picture) if picture is not None else None
        if page is not None:
            sys.stdout.write(page)
        if event.text and (picture is None or event.kind == "result"):
            _say(event.text)


def _as_published(mime: str, form: Any) -> Any:
    """A form of a value as Jupyter wants it: bytes as base64, JSON as what it stands for."""
    if isinstance(form, bytes | bytearray | memoryview):
        return base64.b64encode(form).decode("ascii")
    if mime.endswith("json") and isinstance(form, str):
        with contextlib.suppress(ValueError):
            return json.loads(form)
    return form


def _likes_colours() -> bool:
    return "NO_COLOR" not in os.environ and sys.stdout.isatty()


# --- what is said ----------------------------------------------------------------------------


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _shown_plainly() -> Iterator[None]:
    """What fails in here is shown by IPython as the prompt would show it, without a traceback of this machine.

    It is raised all the same: the cell has failed, and a program that runs the notebook stops.
    """
    try:
        yield
    except RemoterError as error:
        if isinstance(error, RunError) and not isinstance(error, SessionDiedError):
            text = error.message
            # What lists of errors show beside the class; a KeyboardInterrupt has nothing behind its colon.
            error.message = text.rstrip().rpartition("\n")[2].removesuffix(":")
        else:
            text = as_typed(render(error))
        _show_as(error, text)
        raise
    except KeyboardInterrupt as error:
        _show_as(error, f"KeyboardInterrupt: {error}" if error.args else "KeyboardInterrupt")
        raise


def _show_as(error: BaseException, text: str) -> None:
    """IPython asks an exception for its traceback before it makes one."""
    error.__dict__["_render_traceback_"] = lambda: text.split("\n")
