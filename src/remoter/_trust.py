"""Servers whose pickles this user opens without being asked again, and the question before; in the client's process.

A pickle is a program: to open one is to run code that the other side has chosen. So nobody's are
opened unless the user says so, and what he says always holds for is the server's public key, never
its name: who takes over a name gets nothing. The file `trusted_pickles` (0600, in the
configuration directory) has lines `KEY LABEL DATE`, as `known_servers` has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ._config import config_directory
from ._security import Pin, Pins
from ._ssh_errors import escape

if TYPE_CHECKING:
    from ._run import AskPerson


def is_trusted(public: str) -> bool:
    """Whether the pickles of the server with that key are opened always. The published key's never are.

    Raises:
        RemoterError: others could write the file.
    """
    return _pins().is_trusted(public)


def trust(public: str, label: str) -> None:
    """Open that server's pickles from now on; what had the label before is trusted no more.

    Raises:
        RemoterError: it is no key, or the published one; others could write the file.
    """
    _pins().trust(public, escape(label))


def forget(public: str) -> bool:
    """Ask again before a pickle of that server is opened. Returns whether it was trusted."""
    return _pins().forget(public)


def trusted() -> list[Pin]:
    """The servers whose pickles are opened always."""
    return list(_pins())


def _pins() -> Pins:
    return Pins(config_directory() / "trusted_pickles")


def ask_to_open(ask: AskPerson, type_text: str, host: str) -> Literal["no", "once", "always"]:
    """Ask whether an object that only a pickle can carry is to be opened; what is not clear is no."""
    question = (
        f"{escape(type_text)} is no plain data. "
        f"Load this object by running code chosen by {escape(host)}? [no/once/always] "
    )
    match (ask(question, False) or "").strip().lower():
        case "once":
            return "once"
        case "always":
            return "always"
        case _:
            return "no"


def three_ways(name: str, where: str) -> tuple[str, ...]:
    """What to do about an object that was refused for being a pickle, as hints of that error."""
    name, where = escape(name), escape(where)
    return (
        f'`pull("{name}", allow_pickle=True)` opens it, this once: it runs code that {where} chose',
        "`connect(..., trust=True)` opens whatever that connection brings",
        "at the prompt and in a notebook you are asked; the answer `always` is kept for that server's key",
    )
