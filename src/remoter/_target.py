"""Where an address leads and with which keys; in the client's process, before it connects and when it comes back.

The order in which a word is understood: a session of mine on this machine, a saved name, a host.
The keys come from the session's connection file, or from a password, or were trusted before;
else a person is shown the server's fingerprint and asked, and where there is none, nothing is sent.
"""

from __future__ import annotations

import dataclasses
import getpass
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from ._address import DEFAULT_PORT, Address, through_ssh
from ._config import host_name, record_path
from ._connection import Place
from ._errors import (
    AddressError,
    AuthError,
    ConnectError,
    KeyChangedError,
    LinkLostError,
    RemoterError,
    VersionError,
)
from ._link import Link, Owner
from ._login import ask_server, key_changed, login
from ._records import Record, read_record, record_here, records, restore_records
from ._run import AskPerson, ask_at_terminal, is_person_here
from ._saved import read_saved
from ._security import INSECURE_KEYS, KeyPair, Pins, client_keys, fingerprint, new_keys
from ._ssh import OPTIONS, Ssh, begin
from ._start import start

GUESSES = 3
AFTER_LOGIN = 10.0
"""Seconds that are left at least, after a login that had to wait for its turn, or went through ssh."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Target:
    """A session that can be connected to.

    Attributes:
        locate: where it is now, with the keys; raises LinkLostError when it has ended.
        where: its name in messages to people.
        address: what to type to come back.
        greeting: which meaning the address had.
        keys_again: called when a key was not admitted; asks for a password and returns whether that helped.
        diagnose: what is wrong with a server that breaks off handshakes.
        ssh: the way there, if it goes through ssh; whoever has the target closes it.
    """

    locate: Callable[[], Place]
    where: str
    address: Address
    greeting: str
    is_secure: bool = True
    is_here: bool = False
    keys_again: Callable[[], bool] | None = None
    diagnose: Callable[[], RemoterError | None] | None = None
    ssh: Ssh | None = None

    def link(self, owner: Owner, client: str, **how: Any) -> Link:
        """A link to it for that client, not yet started."""
        locate, ssh = self.locate, self.ssh
        if ssh is not None:
            locate = _locate_through(ssh)
            how |= {"is_slow": True, "on_silence": ssh.doubt}
        link = Link(
            locate,
            owner,
            client=client,
            where=self.where,
            label=_label(),
            diagnose=self.diagnose,
            **how,
        )
        if ssh is not None:
            link.opened.add_done_callback(lambda opened: None if opened.exception() else ssh.carried())
        return link

    def data_locator(self) -> Callable[[], Place]:
        """What a transfer asks before each connection for its bytes: where that goes. It may take long."""
        if self.ssh is not None:
            return _locate_through(self.ssh)  # to the session's door, which tells them apart
        return lambda: _for_data(self.locate())

    def is_near(self) -> bool:
        """Whether the server is a process of this machine that we reach by its own socket."""
        return self.ssh is None and self.is_here and self.locate().socket is not None

    def other_protocol(self, error: VersionError) -> VersionError:
        """The error of a session that speaks another protocol, with what mends it where ssh leads."""
        record = self.ssh.record if self.ssh is not None else None
        if record is None:
            return error
        there = dataclasses.replace(self.ssh.address, name="") if self.ssh is not None else self.address
        hints = [f"end it, with what it holds: `remoter stop {dataclasses.replace(there, name=record.name)}`"]
        if _number(record.version) > _number(__version__):
            hints = ["update remoter on this machine"]
        else:
            hints += [f"then `remoter client {there} --install` puts remoter {__version__} there"]
        return VersionError(
            f"{self.where} and this client have no protocol in common",
            cause=f"remoter {record.version or 'of an old version'} started it, here is {__version__}",
            hints=hints,
        )

    def close(self) -> None:
        """End what leads there; the session goes on."""
        if self.ssh is not None:
            self.ssh.close()


def _for_data(place: Place) -> Place:
    if place.socket is None:
        return place
    return dataclasses.replace(place, socket=str(Path(place.socket).with_name("data.sock")))


def _number(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


@dataclass
class Wish:
    """What the caller of `connect` wants, beside the address."""

    password: str | None = None
    secure: bool = True
    start: bool | None = None  # None: through ssh, but not here
    lang: str | None = None  # of a session that runs, too; None: any, and Python for one that is started
    lang_from: str = ""  # what asks for it
    python: str | None = None
    r: str | None = None
    r_engine: str | None = None
    deadline: float = float("inf")
    ask: AskPerson | None = None
    existing: bool = False  # no hint how to start a session: one that runs is meant
    prelude: str | None = None
    install: bool = False
    ask_ssh: AskPerson | None = None  # answers what ssh asks, where there is no terminal
    ssh: Ssh | None = None  # the way to the address, already begun
    is_typed: bool = True  # prelude and python were given now, and do not come with a saved name

    @property
    def remaining(self) -> float:
        """Seconds that are left, at least a few."""
        return min(max(self.deadline - time.monotonic(), 0.05), 1e6)

    def ask_person(self, text: str, hidden: bool) -> str | None:
        """The person's answer; None where there is nobody. Thinking does not count as waiting."""
        ask = self.ask or (ask_at_terminal if is_person_here() else None)
        before = time.monotonic()
        answer = ask(text, hidden) if ask is not None else None
        self.deadline += time.monotonic() - before
        return answer


def find(address: Address, wish: Wish) -> Target:
    """What the address means, here and now.

    Raises:
        AddressError, ConnectError, AuthError, KeyChangedError: nothing that can be connected to.
    """
    if address.kind == "none":
        return _only_session(wish)
    if address.kind == "ssh":
        return _through_ssh(address, wish)
    if address.kind == "tcp":
        return _host(address, wish, f"host {address.host}, port {address.port}")
    if (mine := record_here(address.word)) is not None:
        return _session(mine, wish)
    if (saved := read_saved().get(address.word)) is not None:
        greeting = f"saved name `{address.word}`, which is {saved.address}"
        if saved.address.kind == "ssh":
            wish.is_typed = any(getattr(wish, option) for option in OPTIONS)
            if wish.lang is None and saved.lang is not None:
                wish.lang, wish.lang_from = (
                    saved.lang,
                    f"`{address.word}` is saved with `--lang {saved.lang}`",
                )
            for option in OPTIONS:
                setattr(wish, option, getattr(wish, option) or getattr(saved, option))
            return _through_ssh(saved.address, wish, greeting, address)
        return _host(saved.address, wish, greeting, label=address.word, again=address)
    if wish.start:
        return _session(start(wish, address.word), wish)
    return _word_as_host(address, wish)


def _word_as_host(address: Address, wish: Wish) -> Target:
    mine_there = [record for record in records() if record.host == address.word and not record.is_here]
    if len(mine_there) == 1:
        return _session(mine_there[0], wish)
    host = Address("tcp", host=address.word, port=DEFAULT_PORT, text=address.text)
    try:
        return _host(host, wish, f"host {address.word}, port {DEFAULT_PORT}")
    except ConnectError as error:
        raise ConnectError(
            f"`{address.word}` is no session here, no saved name, and no host where a session answers",
            cause=": ".join(filter(None, [error.message, error.cause])),
            hints=["`remoter ls` lists the sessions here"]
            if wish.existing
            else [f"`remoter server --name {address.word}` starts a session of that name here", *error.hints],
            id=error.id,
        ) from None


def _label() -> str:
    """Who we are, for the people who look at a session's clients."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no entry in the password file
        user = "somebody"
    return f"{user}@{host_name()} pid {os.getpid()}"


# --- sessions of mine ------------------------------------------------------------------------


def _only_session(wish: Wish) -> Target:
    restore_records()
    all_here = [record for record in records() if record.is_here]
    here = [record for record in all_here if wish.lang in (None, record.lang)]
    if not here and len(all_here) == 1 and not wish.start:
        here = all_here  # `other_language` says what it is
    if len(here) == 1:
        return _session(here[0], wish)
    if here:
        names = ", ".join(f"`{record.name}`" for record in here)
        raise ConnectError(
            f"{len(here)} sessions run on this machine: {names}",
            hints=[
                f"name the one you mean, as in `remoter client {here[0].name}`",
                "`remoter ls` tells more",
            ],
            id="several",
        )
    if wish.start:
        return _session(start(wish, None), wish)
    kind, option = (
        (f"{wish.lang.capitalize()} session", f" --lang {wish.lang}") if wish.lang else ("session", "")
    )
    raise ConnectError(
        f"no {kind} runs on this machine",
        hints=[f"`remoter server{option}` starts one"]
        + ([] if wish.existing else ["or start it with the connection: `remoter.connect(start=True)`"]),
        id="no-session",
    )


def _session(record: Record, wish: Wish) -> Target:
    """A session whose connection file we have: no password is needed, but a given one must be right."""
    where = f"session `{record.name}`" if record.is_here else f"session `{record.name}` on {record.host}"
    _check_secure(record.secure, wish.secure, where)
    if not record.is_here and record.listen.strip("[]") in _LOOPBACK:
        raise ConnectError(
            f"{where} can be reached only from {record.host} itself",
            cause=f"it listens on {record.listen} there",
            hints=[
                f"start it with `remoter server --listen {record.host}`",
                through_ssh(record.host, record.name),
            ],
        )
    if wish.password is not None and record.secure:
        place = _place(record)
        login(
            place.host,
            place.port,
            wish.password,
            KeyPair(record.client_public, record.client_secret),
            expected=record.server_public,
            timeout=wish.remaining,
            patience=wish.remaining,
            on_wait=_tell_wait,
        )
    if record.is_here:
        address, on = Address("word", word=record.name), "on this machine"
    else:
        address, on = Address("tcp", host=record.host, port=record.port), f"on {record.host}"
    return Target(
        locate=lambda: _locate(record),
        where=where,
        address=address,
        greeting=f"session `{record.name}` {on}",
        is_secure=record.secure,
        is_here=record.is_here,
    )


def _locate(first: Record) -> Place:
    """Where the session of that record is now; its file is read again each time."""
    record: Record | None
    try:
        record = read_record(record_path(first.host, first.name))
    except FileNotFoundError:
        record = first if first.is_here else None  # its lock tells whether it lives
    if record is None or not record.is_alive:
        raise LinkLostError(
            f"session `{first.name}` has ended",
            hints=f"what it printed is kept for 7 days: `remoter log {first.name}`",
            id="ended",
        )
    if record.journal != first.journal:
        raise LinkLostError(
            f"session `{first.name}` has ended", cause="another session has that name now", id="ended"
        )
    return _place(record)


def _place(record: Record) -> Place:
    keys = KeyPair(record.client_public, record.client_secret)
    path = str(record.socket) if record.is_here and record.socket.exists() else None
    listen = record.listen.strip("[]")
    if listen in ("", "0.0.0.0", "::", "*"):  # noqa: S104 - compared, not bound
        listen = "127.0.0.1" if record.is_here else record.host
    return Place(keys, record.server_public, path, listen, record.port)


# --- through ssh -----------------------------------------------------------------------------


def _through_ssh(address: Address, wish: Wish, greeting: str = "", again: Address | None = None) -> Target:
    """A session that the user's own ssh reaches, found there or started."""
    if wish.password is not None:
        raise AddressError(
            f"no password is needed for `{address}`",
            cause="who may log in there by ssh may connect; the keys are read over ssh",
            hints="leave the password out",
        )
    ssh = wish.ssh or begin(address, wish)
    record = ssh.open(wish.remaining)
    wish.deadline = max(wish.deadline, time.monotonic() + AFTER_LOGIN)
    where = f"session `{record.name}` on {record.host}"
    try:
        _check_secure(record.secure, wish.secure, where)
    except AuthError:
        ssh.close()
        raise
    return Target(
        locate=_locate_through(ssh),
        where=where,
        address=again or dataclasses.replace(address, name=record.name),
        greeting=f"{greeting}: {where}" if greeting else where,
        is_secure=record.secure,
        ssh=ssh,
    )


def _locate_through(ssh: Ssh) -> Callable[[], Place]:
    """Where the session is, for one link; brings the ssh connection back when it is gone, which takes time."""
    find_socket = ssh.locator()

    def locate() -> Place:
        path, record = find_socket(), ssh.record
        assert record is not None
        keys = KeyPair(record.client_public, record.client_secret)
        return Place(keys, record.server_public, str(path))

    return locate


# --- hosts -----------------------------------------------------------------------------------


def _own_record(address: Address) -> Record | None:
    """The connection file for that host and port, if the session is mine: its keys need no password."""
    for record in records():
        is_its_host = _reaches(record, address.host) if record.is_here else address.host == record.host
        if record.port == address.port and is_its_host:
            return record
    return None


def _reaches(record: Record, host: str) -> bool:
    """Whether the session on this machine listens where that host leads, as far as its connection file tells.

    Where it does not tell, the server is asked: it admits this user by his own key.
    """
    listen = record.listen.strip("[]")
    if listen == "0.0.0.0":  # noqa: S104 - compared, not bound
        return host in ("localhost", "127.0.0.1", host_name())
    if listen == "::":
        return host in ("localhost", "::1", host_name())
    if listen in ("*", ""):
        return host in (*_LOOPBACK, host_name())
    return host == listen or (host == "localhost" and listen in _LOOPBACK)


def _is_mine(public: str) -> bool:
    """Whether a connection file of mine names that key: then it is trusted, also through a tunnel."""
    return any(record.server_public == public and record.secure for record in records())


def _host(
    address: Address, wish: Wish, greeting: str, *, label: str = "", again: Address | None = None
) -> Target:
    record = _own_record(address)
    if record is not None and address.key in (None, record.server_public):
        target = _session(record, wish)
        return dataclasses.replace(
            target,
            locate=lambda: dataclasses.replace(_locate(record), socket=None, host=address.host),
            address=again or address,
            greeting=f"{greeting}: {target.greeting}",
        )
    return _Login(address, wish, label).target(greeting, again or address)


class _Login:
    """How one client gets the keys for a server that it reaches over TCP."""

    def __init__(self, address: Address, wish: Wish, label: str) -> None:
        assert address.port is not None
        self.address, self.wish = address, wish
        self.host, self.port = address.host, address.port
        self.where = f"`{address.host}:{address.port}`"
        self.hello = ask_server(self.host, self.port, wish.remaining, secure=wish.secure)
        self.label = label or f"{self.host}:{self.port} {fingerprint(self.hello.public).split()[0]}"
        self.keys = client_keys() if self.hello.secure else new_keys()
        self.public = self._server_key()

    def target(self, greeting: str, again: Address) -> Target:
        """The target, once the server's key is known."""
        return Target(
            locate=lambda: Place(self.keys, self.public, None, self.host, self.port),
            where=self.where,
            address=again,
            greeting=greeting,
            is_secure=self.hello.secure,
            keys_again=self._keys_again,
            diagnose=self._diagnose,
        )

    def _server_key(self) -> str:
        if not self.hello.secure:
            if self.address.key is not None:
                raise KeyChangedError(
                    f"{self.where} is insecure, so it cannot have the key that the address names",
                    hints="someone may sit in between",
                )
            return INSECURE_KEYS.public
        if self.address.key not in (None, self.hello.public):
            raise key_changed(f"{self.host}:{self.port}", str(self.address.key), self.hello.public)
        is_known = (
            self.address.key is not None
            or _is_mine(self.hello.public)
            or Pins().is_trusted(self.hello.public)
        )
        if not is_known:
            self._tell_of_other_key()
        if self.wish.password is not None:
            return self._log_in(self.wish.password)
        if is_known:
            return self.hello.public
        return self._ask_about_key()

    def _tell_of_other_key(self) -> None:
        """Say that another server was known there. Behind tunnels that is usual, so it is no error."""
        there = f"{self.host}:{self.port}"
        before = [pin for pin in Pins() if pin.label == self.label or pin.label.startswith(f"{there} ")]
        if before:
            _say(
                f"the key of `{there}` is not the one that was there on {before[-1].date} "
                f"({fingerprint(before[-1].public)}); if that is the same machine, compare fingerprints"
            )

    def _log_in(self, password: str) -> str:
        public = login(
            self.host,
            self.port,
            password,
            self.keys,
            expected=self.address.key or self.hello.public,
            timeout=self.wish.remaining,
            on_wait=_tell_wait,
        )
        # To wait for one's turn does not count: what follows has its time.
        self.wish.deadline = max(self.wish.deadline, time.monotonic() + AFTER_LOGIN)
        Pins().trust(public, self.label)  # it has proved that it knows the password
        return public

    def _ask_about_key(self) -> str:
        """A server that we see for the first time: a password proves it, or a person compares."""
        if (public := self._ask_password()) is not None:
            return public
        question = (
            f"{self.where} is not known here. The fingerprint of its key:\n"
            f"    {fingerprint(self.hello.public)}\n"
            "Does the server show the same (yes/no)? "
        )
        answer = self.wish.ask_person(question, False)
        if (answer or "").strip().lower() in ("y", "yes"):
            Pins().trust(self.hello.public, self.label)
            return self.hello.public
        raise AuthError(
            f"{self.where} is not known here, and no password was given",
            cause=f"the fingerprint of its key is {fingerprint(self.hello.public)}",
            hints=[
                "give the password that the server printed: `password=...`, or REMOTER_PASSWORD for the commands",
                "or the whole address that it printed, `remoter://HOST:PORT/#KEY`, where this client's key is admitted",
            ],
            id="unknown-server",
        )

    def _ask_password(self) -> str | None:
        """Ask for the password until it is right; None: nobody answers, or he gives none."""
        if "password" not in self.hello.auth:
            return None
        before = ""
        for guess in range(GUESSES):
            password = self.wish.ask_person(f"{before}password of {self.where}: ", True)
            if not password:
                return None
            try:
                return self._log_in(password)
            except AuthError as error:
                if guess == GUESSES - 1 or error.id != "password":
                    raise
                before = f"{error.message} ({error.cause})\n"
        return None

    def _keys_again(self) -> bool:
        """The server does not know our key: a password introduces it."""
        public = self._ask_password()
        self.public = public or self.public
        return public is not None

    def _diagnose(self) -> RemoterError | None:
        """Whether it is another server that answers there now."""
        try:
            hello = ask_server(self.host, self.port, 5.0, secure=None)
        except RemoterError:
            return None  # unreachable: that can pass
        if hello.public == self.public:
            return None
        return key_changed(f"{self.host}:{self.port}", self.public, hello.public)


def _tell_wait(seconds: float) -> None:
    """Logins are queued after wrong passwords; who waits should know why."""
    if seconds >= 1:
        _say(f"the login waits {seconds:.0f} s for its turn, because wrong passwords were given")


def _say(text: str) -> None:
    """A word to whoever waits for the connection."""
    print(f"-- {text}", file=sys.stderr, flush=True)  # noqa: T201


def _check_secure(is_secure: bool, wanted: bool, where: str) -> None:
    if wanted and not is_secure:
        raise AuthError(
            f"{where} is not secure: it admits anyone and proves nothing",
            hints="if that is meant, connect with `secure=False` (`--insecure`)",
            id="insecure",
        )
    if is_secure and not wanted:
        raise AuthError(f"{where} is secure", hints="leave `secure=False` (`--insecure`) out", id="insecure")
