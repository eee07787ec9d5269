"""Every error that a user meets, on either machine; and the one way to print them.

RemoterError                    anything that remoter itself has to say
 +- AddressError                an address or port that cannot be meant (also a ValueError)
 +- ConnectError                nobody reached (also a ConnectionError)
 +- AuthError                   reached, not admitted
 +- KeyChangedError             the server's key is not the pinned one
 +- VersionError                no common protocol
 +- LinkLostError               the connection or the interpreter that was meant is gone
 +- NameNotFoundError           no such object in the session (also a KeyError)
 +- TransferError               an object or a file did not cross
 +- RunError                    the code raised; `.result` holds all it did
     +- RunInterruptedError     the code was interrupted
     +- SessionDiedError        the interpreter died under it
RunTimeoutError                 waiting ended, the run goes on; `.run` (a TimeoutError)

An error says what is wrong in one lower-case sentence with the value in backquotes,
then what was seen (`cause`), then what to type (`hints`), and has a stable id.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._client import Result, Run


class RemoterError(Exception):
    """Anything that remoter itself has to say."""

    id = "error"

    def __init__(
        self,
        message: str,
        *,
        cause: str | None = None,
        hints: tuple[str, ...] | list[str] | str = (),
        id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hints: tuple[str, ...] = (hints,) if isinstance(hints, str) else tuple(hints)
        if id is not None:
            self.id = id

    def __str__(self) -> str:
        lines = [self.message]
        if self.cause:
            lines.append(f"cause: {self.cause}")
        lines += [f"hint: {hint}" for hint in self.hints]
        return "\n".join(lines)

    @property
    def line(self) -> str:
        """Message and cause in one line."""
        return f"{self.message}: {self.cause}" if self.cause else self.message


class AddressError(RemoterError, ValueError):
    """An address or a port that cannot be meant."""

    id = "address"


class ConnectError(RemoterError, ConnectionError):
    """Nobody was reached."""

    id = "connect"


class AuthError(RemoterError):
    """The server was reached and did not admit us."""

    id = "auth"


class KeyChangedError(RemoterError):
    """The server's key is not the pinned one: set up anew, or someone sits in between."""

    id = "key-changed"


class VersionError(RemoterError):
    """The two ends have no protocol version in common."""

    id = "version"


class LinkLostError(RemoterError):
    """The connection, or the interpreter that was meant, is gone."""

    id = "link-lost"


class NameNotFoundError(RemoterError, KeyError):
    """The session has no object of that name."""

    id = "name"

    __str__ = RemoterError.__str__


class TransferError(RemoterError):
    """An object or a file did not cross."""

    id = "transfer"


class RunError(RemoterError):
    """The code raised. `result` holds everything it did; `str()` is its traceback."""

    id = "run"

    def __init__(self, message: str, result: Result | None = None, **more: Any) -> None:
        super().__init__(message, **more)
        self.result = result


class RunInterruptedError(RunError):
    """The code was interrupted."""

    id = "interrupted"


class SessionDiedError(RunError):
    """The interpreter died under the code."""

    id = "died"


class RunTimeoutError(TimeoutError):
    """Waiting for a run ended; the run itself goes on and can be waited for again."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


# The house of every public error is `remoter`, wherever its source stands.
for _error in [RemoterError, RunTimeoutError, *RemoterError.__subclasses__(), *RunError.__subclasses__()]:
    _error.__module__ = "remoter"


def printable(text: str) -> str:
    """Text from elsewhere in one line that any terminal may be given: control characters become escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def warn(text: str) -> None:
    """Warn whoever called us: the warning names the first line outside of remoter.

    The command line prints it as one plain line.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("remoter."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def render(error: RemoterError) -> str:
    """The error as a person meets it: sentence and id, cause, hints.

    A RunError is shown as its traceback alone, as a local prompt would.
    """
    if isinstance(error, RunError) and not isinstance(error, SessionDiedError):
        return error.message
    lines = [f"error: {error.message}   [{error.id}]"]
    if error.cause:
        lines.append(f"cause: {error.cause}")
    lines += [f" hint: {hint}" for hint in error.hints]
    return "\n".join(lines)
