"""`remoter doctor`: step by step from here to a session, what was seen and what to do; in the shell's process, by the client.

Each step stands on the one before it. The first that fails is the one to mend: what follows
it is not tried, except R and the terminal, which need nobody. The address decides which steps there
are; those of `ssh://host` are in `_doctor_ssh`.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from . import __version__
from ._address import DEFAULT_PORT, Address, parse, through_ssh
from ._config import host_name
from ._errors import KeyChangedError, RemoterError
from ._messages import PROTOCOL, common_protocol
from ._r import NO_R, how_to_install, seen_of
from ._r import find as find_r
from ._records import Record, records
from ._saved import Saved, find_ssh, saved_names
from ._ssh_errors import escape, lasted

if TYPE_CHECKING:
    from ._client import Session
    from ._login import ServerHello

PATIENCE = 10.0  # seconds for each step
ROUND_TRIPS = 5
SLOW = 0.3  # seconds for a question
WIDTH = len("authentication")  # the longest name of a step

MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD ", "skip": "-   "}

Step = dict[str, Any]
Seen = tuple[str, ...]
"""What a step has to say: its mark, what was seen, and what to do."""


@dataclass
class _Case:
    """What is known so far."""

    text: str | None
    password: str | None
    secure: bool
    address: Address = field(default_factory=lambda: Address("none"))
    record: Record | None = None
    host: str = ""
    port: int = DEFAULT_PORT
    hello: ServerHello | None = None
    session: Session | None = None

    def close(self) -> None:
        """End the connection, if one was made."""
        if self.session is not None:
            self.session.close()


def examine(text: str | Saved | None, password: str | None = None, *, secure: bool = True) -> Iterator[Step]:
    """Try each step to that address; gives each with its mark (ok, note, bad, skip), what was seen, what to do."""
    saved = _find_ssh(text)
    if saved is not None:
        from ._doctor_ssh import Journey

        journey = Journey(saved, _measure, secure=secure)
        yield from _walk(journey.steps(), journey.close)
    else:
        case = _Case(None if isinstance(text, Saved) else text, password, secure)
        looks = {
            "name": _name,
            "port": _port,
            "door": _door,
            "key": _key,
            "version": _version,
            "login": _login,
            "round trip": _round_trip,
        }
        yield from _walk([(name, partial(look, case)) for name, look in looks.items()], case.close)
    rest = {"terminal": _terminal} if saved is not None else {"R": _r, "terminal": _terminal}
    for step, find_out in rest.items():
        mark, seen, *do = find_out()
        yield {"step": step, "mark": mark, "seen": seen, "do": do}


def _find_ssh(text: str | Saved | None) -> Saved | None:
    try:
        return find_ssh(text)
    except RemoterError:
        return None  # told at the step `name`


def _walk(steps: list[tuple[str, Callable[[], Seen]]], close: Callable[[], None]) -> Iterator[Step]:
    """Go through the steps up to the first that fails; the rest is listed."""
    failed = ""
    try:
        for name, look in steps:
            if failed:
                yield {"step": name, "mark": "skip", "seen": f"not tried, because of `{failed}`", "do": []}
                continue
            try:
                mark, seen, *do = look()
            except RemoterError as error:
                mark, failed = "bad", name
                seen = error.message + (f" ({error.cause})" if error.cause else "")
                do = list(error.hints)
            yield {"step": name, "mark": mark, "seen": seen, "do": do}
    finally:
        close()


def shown(step: Step) -> str:
    """The step as lines for a person."""
    lines = [f"{MARKS[step['mark']]}  {step['step']:<{WIDTH}}  {step['seen']}"]
    lines += [f"{'':{WIDTH + 6}}  hint: {hint}" for hint in step["do"]]
    return "\n".join(lines)


def _name(case: _Case) -> Seen:
    """Which session or machine is meant."""
    address = case.address = parse(case.text)
    here = [record for record in records() if record.is_here]
    if address.kind == "none":
        if len(here) != 1:
            names = ", ".join(f"`{record.name}`" for record in here)
            raise RemoterError(
                "no session runs here" if not here else f"{len(here)} sessions run here: {names}",
                hints="start one: `remoter server`" if not here else "say which: `remoter doctor NAME`",
            )
        case.record = here[0]
    elif address.kind == "word":
        case.record = next((record for record in records() if record.name == address.word), None)
        if case.record is None and address.word in (saved := saved_names()):
            address = case.address = saved[address.word]
    if case.record is not None:
        record = case.record
        case.host = "127.0.0.1" if record.is_here else record.host
        case.port = record.port
        return "ok", f"session `{record.name}` on {record.host}, listening on {record.listen}:{record.port}"
    case.host, case.port = address.host or address.word, address.port or DEFAULT_PORT
    try:
        found = socket.getaddrinfo(case.host, case.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise RemoterError(
            f"no session, no saved name and no machine is called `{case.host}`",
            cause=getattr(error, "strerror", None),
            hints="`remoter ls` lists the sessions here; otherwise check the spelling",
        ) from None
    return "ok", f"`{case.host}` is {', '.join(sorted({str(entry[4][0]) for entry in found}))}"


def _port(case: _Case) -> Seen:
    """Whether somebody listens there."""
    from ._login import place

    where = place(case.host, case.port)
    began = time.monotonic()
    try:
        socket.create_connection((case.host, case.port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        raise RemoterError(
            f"nothing listens on `{where}`",
            cause="refused at once, so the machine is up",
            hints="start a session there: `remoter server`; or another port is meant",
        ) from None
    except OSError as error:
        raise RemoterError(
            f"no answer from `{where}` in {PATIENCE:g} s",
            cause=error.strerror or "the packets are dropped: wrong machine, or a firewall",
            hints=f"{through_ssh(case.host)}; `remoter doctor ssh://{case.host}` looks at that way",
        ) from None
    return "ok", f"`{where}` accepts connections, in {lasted(time.monotonic() - began)}"


def _door(case: _Case) -> Seen:
    """What the program that listens there says of itself."""
    from ._login import ask_server

    hello = case.hello = ask_server(case.host, case.port, PATIENCE, secure=None)
    if hello.secure != case.secure:
        if case.secure:
            raise RemoterError(
                "the server is insecure, and you did not ask for that",
                hints="`--insecure` on both sides, if you know what you do; else start the server without it",
            )
        raise RemoterError("the server is secure, and `--insecure` was given", hints="leave `--insecure` out")
    ways = ", ".join(hello.auth) or "none"
    kind = "encrypted" if hello.secure else "INSECURE, everyone is admitted"
    return "ok" if hello.secure else "note", f"a remoter server, {kind}; admits by: {ways}"


def _key(case: _Case) -> Seen:
    """Whether the server has the key that we know."""
    from ._security import Pins, fingerprint

    assert case.hello is not None
    found = case.hello.public
    words = fingerprint(found)
    if not case.hello.secure:
        return "note", "the published key, which protects nothing"
    expected = case.record.server_public if case.record else case.address.key
    source = "the connection file" if case.record else "the address"
    if expected is not None:
        if expected != found:
            raise KeyChangedError(
                f"the server's key is {words}, but {source} says {fingerprint(expected)}",
                hints="if you know why, trust it anew; if not, someone may sit in between: type no password",
            )
        return "ok", f"{words}, as {source} says"
    label = Pins().label_of(found)
    if label is not None:
        return "ok", f"{words}, trusted as `{label}`"
    return "note", f"{words}, not known here", "compare it with what the server printed at its start"


def _version(case: _Case) -> Seen:
    """Whether both ends speak a common protocol."""
    assert case.hello is not None
    common = common_protocol(case.hello.protocol)
    here, there = f"remoter {__version__}", f"remoter {case.hello.version}"
    if common is None:
        raise RemoterError(
            f"no common protocol: here {PROTOCOL[0]} to {PROTOCOL[1]} ({here}), "
            f"there {case.hello.protocol[0]} to {case.hello.protocol[1]} ({there})",
            hints="bring the older one up to date",
        )
    return "ok", f"protocol {common}; here {here}, there {there}"


def _login(case: _Case) -> Seen:
    """Whether the server lets us in."""
    from ._client import connect

    case.session = connect(
        case.text,
        password=case.password,
        secure=case.secure,
        timeout=PATIENCE,
        ask=lambda prompt, hidden: None,
    )
    how = "with the password" if case.password else "with our key"
    return "ok", f"admitted {how}"


def _round_trip(case: _Case) -> Seen:
    assert case.session is not None
    seconds, seen = _measure(case.session)
    if seconds > SLOW:
        return "note", seen, "a slow network, or a machine with much to do"
    return "ok", seen


def _measure(session: Session) -> tuple[float, str]:
    """How many seconds a question takes; that in words, and how the session is."""
    times = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        info = session._query("info", timeout=PATIENCE)
        times.append(time.perf_counter() - began)
    state = "busy" if info.get("busy") else "idle"
    median = statistics.median(times)
    name, lang, version = (escape(str(info.get(key))) for key in ("name", "lang", "version"))
    return median, f"{lasted(median)}; `{name}`: {lang.capitalize()} {version}, {state}"


def _r() -> Seen:
    """Whether R sessions can be started here; nobody needs one to reach another machine."""
    try:
        return seen_of(find_r(), "here")
    except RemoterError as error:
        if error.message == NO_R:
            return seen_of(None, "here", how_to_install())
        return "note", error.message + (f" ({error.cause})" if error.cause else ""), *error.hints


def _terminal() -> Seen:
    """What the prompt can show here."""
    from ._pictures import protocol

    if os.environ.get("NO_COLOR"):
        colours = "no colours (NO_COLOR is set)"
    elif os.environ.get("TERM", "") in ("", "dumb"):
        colours = "no colours"
    else:
        colours = "colours"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "note", f"no terminal here on {host_name()}: `remoter client` reads its input as a script"
    if os.environ.get("TERM", "dumb") == "dumb":
        return "note", "a dumb terminal: lines are read plainly, without editing", "set TERM"
    size = shutil.get_terminal_size()
    pictures = {"kitty": "pictures by kitty's way", "iterm": "pictures by iTerm2's way"}
    how = pictures.get(protocol(os.environ), "pictures are saved as files")
    encoding = (sys.stdout.encoding or "").lower()
    seen = f"{os.environ['TERM']}, {size.columns} x {size.lines}, {colours}, {how}"
    if "utf" not in encoding:
        return "note", f"{seen}, {encoding}", "set LANG to a UTF-8 locale to see all characters"
    return "ok", seen
