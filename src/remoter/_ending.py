"""`remoter stop`: ends a session, also one that does not answer; on either machine, in the shell's process."""

from __future__ import annotations

import os
import signal
import time

import click

from ._errors import ConnectError, LinkLostError, RemoterError, VersionError
from ._records import is_keeper, records, restore_records
from ._saved import Saved
from ._usage import Target, report, tell

BY_KEEPER = 25.0
"""Seconds in which a keeper ends its session, whatever that does."""


def end(target: Target) -> None:
    """End that session, and say so.

    Raises:
        RemoterError: it was not reached, and cannot be ended from outside.
    """
    there = target.there
    try:
        with target.connect(timeout=10.0 if there else 5.0, quiet=True) as session:
            name = session.info.name
            session.shutdown()
    except (ConnectError, LinkLostError, VersionError) as error:
        # A server that does not answer must not live for ever: its keeper can end it.
        if there is not None:
            _end_there(there, error)
            return
        ended = None
        if not isinstance(error, LinkLostError):
            why = "speaks another protocol" if isinstance(error, VersionError) else "does not answer"
            ended = _end_by_keeper(target.address, why)
        if ended is None:
            raise
        name = ended
    click.echo(f"ended `{name}`" + (f" on {there.address.host}" if there else ""))


def end_all() -> int:
    """End all sessions on this machine; returns the exit code of the worst."""
    restore_records()
    here = [record for record in records() if record.is_here]
    if not here:
        click.echo("no session runs here")
    worst = 0
    for record in here:
        try:
            end(Target(record.name, not record.secure))
        except RemoterError as error:
            worst = max(worst, report(error, debug=False))
    return worst


def _end_by_keeper(address: str | None, why: str) -> str | None:
    """Have the keeper of that session on this machine end it; its name, or None if it has none."""
    here = [record for record in records() if record.is_here and address in (None, record.name)]
    if len(here) != 1:
        return None
    record = here[0]
    if not is_keeper(record.pid, record.name):
        return None
    tell(f"`{record.name}` {why}; ending it from outside, within 20 s")
    os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + BY_KEEPER
    while record.is_alive and time.monotonic() < deadline:
        time.sleep(0.05)
    return None if record.is_alive else record.name


def _end_there(there: Saved, error: RemoterError) -> None:
    """Have the session ended by `remoter stop` on its own machine, if that was reached and the session was not."""
    if error.id.startswith("ssh") or error.id in ("no-session", "several", "ended"):
        raise error
    from ._there import print_there

    name = there.address.name
    print_there(there, ["stop", name] if name else ["stop"], click.echo, timeout=60.0)
