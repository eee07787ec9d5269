"""What the prompt must know of the session's language, and what its own calls mean in any; in the prompt's process.

A language is a module that has what `Language` says: `_verbs` for Python, `_rverbs` for R. The
calls are spelled differently there; what they ask for is the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ._errors import RemoterError, TransferError, render
from ._run import AskPerson

if TYPE_CHECKING:
    from ._client import Session

CARRYING = ("s2c", "c2s", "sendfile", "recvfile")

LEAVING = ("exit", "quit")

FILE_OPTIONS: dict[str, type] = {
    "overwrite": bool,
    "update": bool,
    "resume": bool,
    "symlinks": str,
    "compress": bool,
}
"""What `sendfile` and `recvfile` take beside the two paths, as `Session.upload` does."""

MARK = "here| "
"""Stands before each line that this machine put out, so that nobody takes it for the session's."""

_Node = TypeVar("_Node")


@dataclass(frozen=True)
class Piece:
    """A stretch of what was typed: code for the session, or one of our calls.

    Attributes:
        code: it.
        verb: which call; None: it is for the session.
        arguments, keywords: what the call is given, in the form of the language.
        word: the call as it is spelled, if not as `verb`.
    """

    code: str
    verb: str | None = None
    arguments: tuple[Any, ...] = ()
    keywords: tuple[Any, ...] = ()
    word: str = ""

    @property
    def name(self) -> str:
        """What was typed for the verb."""
        return self.word or self.verb or ""


@dataclass(frozen=True)
class Cargo:
    """An object that `s2c` or `c2s` carries.

    Attributes:
        source: the typed expression, to be evaluated on the side that has it, in the form of the language.
        name: what it is to be called on the other side.
        overwrite: whether an object of that name may be replaced.
        text: the expression as text; of a name, the name itself.
        is_name: whether it is one.
    """

    source: Any
    name: str
    overwrite: bool = True
    text: str = ""
    is_name: bool = False


class Language(Protocol):
    """How one language is written, and the prompt's calls in it. A module is one."""

    @property
    def NAME(self) -> str:
        """As people call it."""

    @property
    def VERBS(self) -> tuple[str, ...]:
        """The calls, as they are spelled."""

    @property
    def HELP(self) -> str:
        """What `helpc()` says; `{host}` is where lines run."""

    @property
    def INDENT(self) -> int:
        """Blanks of one step of indentation."""

    @property
    def CLOSERS(self) -> str:
        """The brackets that stand a step further out than what is before them."""

    @property
    def SHORTCUTS(self) -> dict[tuple[str, ...], str]:
        """Keys that write something."""

    @property
    def ENDS_BLOCKS(self) -> bool:
        """Whether a blank line ends a block, whatever the session thinks."""

    @property
    def WORD(self) -> str:
        """A pattern of a name, or its beginning."""

    @property
    def FORGET(self) -> str:
        """How the session is told to forget the name `{}`."""

    @property
    def TRUTH(self) -> tuple[str, str]:
        """How it prints no and yes."""

    def lexer(self) -> Any:
        """What colours its code: a class of pygments."""

    def trim(self, code: str) -> str:
        """The code without what the way it was typed has put before it."""

    def pieces(self, code: str) -> list[Piece]:
        """What was typed, in order, in stretches that run in one place each; the first is always there."""

    def judge(self, code: str) -> tuple[str, str]:
        """Whether code is complete, incomplete or invalid, and the indent of the next line."""

    def split(self, text: str) -> list[str]:
        """Lines, cut where a prompt would have run what was entered so far; together they are the text."""

    def shadows(self, piece: Piece, variable: dict[str, Any]) -> bool:
        """Whether that variable of the session, which has the call's name, is what the call means there."""

    def hint_about(self, error: dict[str, Any]) -> str | None:
        """What to say about an error of the session, if it is about one of our calls."""

    def check_name(self, name: str) -> str:
        """The name as `Session.push` takes it. Raises RemoterError: no object can have it."""

    def ends_session(self, piece: Piece) -> bool:
        """Whether this leaving call means to end the session too. Raises RemoterError: it cannot be understood."""

    def cargo(self, piece: Piece) -> Cargo:
        """What `s2c` or `c2s` is to carry. Raises RemoterError: it cannot be understood."""

    def paths(self, piece: Piece) -> tuple[str, str | None, dict[str, Any]]:
        """From where and to where files go, and the options. Raises RemoterError."""

    def listing(self, piece: Piece) -> tuple[str | None, bool]:
        """What `lsc` is to list: names of a pattern, and hidden ones or not. Raises RemoterError."""

    def removal(self, piece: Piece) -> list[str]:
        """The names that `rmc` is to remove. Raises RemoterError."""

    def evaluation(self, piece: Piece) -> str:
        """The code that `evalc` is to run, as text. Raises RemoterError."""

    def matches(self, pattern: str, name: str) -> bool:
        """Whether the name is one of the pattern. Raises RemoterError: it is no pattern."""


def bind(
    verb: str,
    arguments: Sequence[_Node],
    keywords: Sequence[tuple[str, _Node]],
    by_place: tuple[str, ...],
    by_name: tuple[str, ...],
) -> dict[str, _Node]:
    """The arguments of a call by their names.

    Raises:
        RemoterError: too many; one that is not known, or twice.
    """
    if len(arguments) > len(by_place):
        by_name_too = f"by name it takes `{'=`, `'.join(by_name)}=`"
        raise RemoterError(
            f"`{verb}` takes {len(by_place)} argument{'s' * (len(by_place) != 1)}, not {len(arguments)}",
            hints=by_name_too if by_name else (),
            id="arguments",
        )
    given = dict(zip(by_place, arguments, strict=False))
    for name, node in keywords:
        if name not in (*by_place, *by_name):
            known = "`, `".join((*by_place, *by_name))
            raise RemoterError(
                f"`{verb}` has no argument `{name}`",
                hints=f"it has `{known}`" if known else (),
                id="arguments",
            )
        if name in given:
            raise RemoterError(f"`{verb}` is given `{name}` twice", id="arguments")
        given[name] = node
    return given


class Marked(io.TextIOBase):
    """A stream that passes text on with the mark before each line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self._write("".join(f"{MARK}{line}\n" for line in lines))
        return len(text)

    def finish(self) -> None:
        """Ends a line that is not ended."""
        if self._line:
            self.write("\n")


class Side(Protocol):
    """This side of the prompt: its objects, and what may be done with them."""

    @property
    def NAME(self) -> str:
        """The language here, as people call it."""

    def do(self, piece: Piece) -> bool:
        """Do `lsc`, `rmc` or `evalc`. A failure is shown and stays here; says whether it went well."""

    def attempt(self, action: Callable[[Marked], None]) -> bool:
        """Do something here that may fail. A failure is shown and stays here; says whether it went well."""

    def expect(self, cargo: Cargo) -> Cargo:
        """What is to be brought here, under a name that it may have. Raises RemoterError: it has none."""

    def bring(self, session: Session, cargo: Cargo, transfer: str, ask: AskPerson, stream: Marked) -> None:
        """Get it from the session, where it is kept for that transfer if it is no name. Raises RemoterError."""

    def send(self, session: Session, cargo: Cargo, stream: Marked) -> None:
        """Give it to the session. Raises what its evaluation raises."""

    def close(self) -> None:
        """The prompt ends."""


def attempt(
    write: Callable[[str], None], action: Callable[[Marked], None], explain: Callable[[BaseException], str]
) -> bool:
    """Do something on this side that may fail; what it writes is marked. Says whether it went well.

    Args:
        write: puts out marked text.
        action: it.
        explain: the text of what is no error of ours.
    """
    stream = Marked(write)
    try:
        action(stream)
    except BaseException as error:  # also SystemExit: what runs here never ends the prompt
        stream.finish()
        text = render(error) if isinstance(error, RemoterError) else explain(error)
        stream.write(f"{text}\n" if text else "")
        return False
    finally:
        stream.finish()
    return True


def already_here(name: str, text: str) -> RemoterError:
    """The error of what is not to be replaced on this side."""
    return TransferError(
        f"`{name}` is here already",
        cause=f"it is `{text}`",
        hints="leave `overwrite` out, or give another name",
        id="exists",
    )


def stands_alone(word: str) -> str:
    """The hint about a call of ours that the session did not know."""
    return (
        f"hint: `{word}()` is a call of this prompt; it works only as a statement of its own, "
        "not inside other code"
    )
