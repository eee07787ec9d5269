"""What `remoter` prints on another machine, asked over ssh; on the client's machine, in the shell's process.

That is data from elsewhere: it is checked, and nothing of it reaches the terminal that could command it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import msgspec

from . import _ssh_errors
from ._answer import ASKED, Answer, Found, failure, told
from ._bootstrap import Task
from ._errors import AddressError, ConnectError, RemoterError
from ._saved import Saved
from ._ssh import Ssh, say_to_person
from ._ssh_errors import escape


def run_there(
    there: Saved, arguments: list[str], *, timeout: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run `remoter ARGUMENTS` on that machine, in a login shell; returns its outcome, as `subprocess.run` does.

    Args:
        timeout: seconds for the command, and at most for the login of who is not asked.

    Raises:
        ConnectError, AuthError, KeyChangedError: it was not reached. ConnectError: no remoter is there.
    """
    address = there.address
    way = Ssh(address, Task("run", prelude=there.prelude, arguments=tuple(arguments)), say=say_to_person)
    try:
        channel, asks = way.opening, way.asks
        assert channel is not None
        is_in = lambda: channel.is_in  # noqa: E731
        found = Found.of(Answer(channel, address, asks, min(timeout, ASKED), is_in, way.say).read("raw"))
        if found.failed:
            raise failure(found, address)
        output = channel.read_rest(timeout).decode(errors="replace")
        code = channel.wait(ASKED)
        is_its_own = any(line.startswith("error: ") for line in channel.said)  # 255 is also a code of ours
        if code is None or code < 0 or (code == 255 and not is_its_own):
            raise _ssh_errors.explain("\n".join(channel.said), code, address, may_ask=asks)
        return subprocess.CompletedProcess(arguments, code, output, "\n".join(channel.said))
    finally:
        way.close()


def check_there(there: Saved, done: subprocess.CompletedProcess[str]) -> None:
    """Raise the error that the command there ended with, if it did."""
    if done.returncode == 0:
        return
    host = there.address.host
    said = [escape(line) for line in done.stderr.splitlines()]
    begin = next((number for number, line in enumerate(said) if line.startswith("error: ")), None)
    causes, hints = told(said if begin is None else said[begin:])
    message = f"`remoter` failed on {host}" if begin is None else f"on {host}: {causes.pop(0)}"
    kinds: dict[int, type[RemoterError]] = {2: AddressError, 255: ConnectError}
    raise kinds.get(done.returncode, RemoterError)(
        message,
        cause=causes[-1] if causes else None if begin is not None else f"exit code {done.returncode}",
        hints=[f"on {host}: {hint}" for hint in hints],
        id="there",
    )


def read_there(there: Saved, arguments: list[str], kind: Any) -> Any:
    """What that command prints there as JSON.

    Raises:
        RemoterError: it failed there, or printed something else.
    """
    done = run_there(there, arguments)
    check_there(there, done)
    try:
        return msgspec.json.decode(done.stdout, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ConnectError(
            f"what `remoter {' '.join(arguments)}` prints on {there.address.host} is not understood here",
            cause=escape(str(error)),
            hints="the two may be of different versions: update the older one",
            id="there",
        ) from None


def print_there(
    there: Saved, arguments: list[str], show: Callable[[str], object], *, timeout: float = 30.0
) -> None:
    """Give each line that the command prints there to `show`, with the machine's name; raise what it ended with."""
    done = run_there(there, arguments, timeout=timeout)
    for line in done.stdout.splitlines():
        show(f"on {there.address.host}: {escape(line)}")
    check_there(there, done)


def log_there(there: Saved, since: int, as_json: bool) -> str:
    """The log of a session that has ended there; as it stands, as that of a live one: the user's own code printed it.

    Raises:
        RemoterError: there is none.
    """
    # A name that no session has would be taken for a host there.
    words = ["log", "--ended", *([there.address.name] if there.address.name else [])]
    words += ["--since", str(since)] if since else []
    words += ["--json"] if as_json else []
    done = run_there(there, words, timeout=120.0)
    check_there(there, done)
    return done.stdout
