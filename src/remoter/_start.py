"""A session that is started because somebody connects, and the language that he asked for; in the client's process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING

from ._answer import told
from ._errors import ConnectError
from ._records import Record, records

if TYPE_CHECKING:
    from ._target import Target, Wish


def start(wish: Wish, name: str | None) -> Record:
    """Start a session here and wait for it."""
    command = [sys.executable, "-m", "remoter", "server", "--background", "--json"]
    command += ["--name", name] if name else []
    for option in ("lang", "python", "r", "r_engine"):
        value = getattr(wish, option)
        command += [f"--{option.replace('_', '-')}", value] if value else []
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=wish.remaining,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConnectError("no session could be started in time", hints="give a longer timeout") from None
    try:
        said = json.loads(done.stdout)
        started = str(said["name"] if "name" in said else said["record"]["name"])
    except (ValueError, KeyError, TypeError):
        raise _not_started(done.stderr or done.stdout, done.returncode) from None
    for record in records():
        if record.is_here and record.name == started:
            return record
    raise ConnectError(f"session `{started}` was started and has ended again")


def _not_started(said: str, code: int) -> ConnectError:
    """What `remoter server` said of its failure, as an error of ours."""
    causes, hints = told(said.strip().splitlines())
    if "[r-missing]" in said:  # that is all there is to say
        return ConnectError(causes[0], cause=": ".join(causes[1:]), hints=hints, id="r-missing")
    return ConnectError(
        "no session could be started on this machine",
        cause=": ".join(causes) or f"exit code {code}",
        hints=hints or "`remoter server` shows what happens",
    )


def other_language(target: Target, lang: str, wish: Wish) -> ConnectError | None:
    """The error of a session that was reached and is not of the language that was asked for.

    What is to run would be nonsense there.
    """
    if wish.lang is None or wish.lang == lang:
        return None
    asks = wish.lang_from or f'`lang="{wish.lang}"`'
    is_typed = asks in (f"`--lang {wish.lang}`", f'`lang="{wish.lang}"`')
    other = f"remoter server --lang {wish.lang}"
    if target.ssh is not None:
        other = f"remoter client {dataclasses.replace(target.ssh.address, name='')} --lang {wish.lang}"
    return ConnectError(
        f"{target.where} is {_session_of(lang)}",
        cause=f"{asks} asks for {_session_of(wish.lang)}",
        hints=[
            f"`{other}` starts {_session_of(wish.lang)} beside it",
            f"leave {asks} out to use this one"
            if is_typed
            else f"`--lang {lang}` uses this one all the same",
        ],
        id="lang",
    )


def _session_of(lang: str) -> str:
    return f"{'an' if lang == 'r' else 'a'} {lang.capitalize()} session"
