"""The user's own `ssh` to one machine: finds or starts a session there, and comes back; in the client's process, on threads of its own.

One `ssh` process, the master, carries everything. Its main channel is the bootstrap script, which
answers and then waits for the end of its input: when this process ends, however it ends, the pipe
closes, the script ends, and the master with it. Nothing has to be cleaned up on the other side.

    Ssh ── Master: `ssh -M` ── main channel: the bootstrap
     │        ├── forward: a socket here, whose connections come out at the session's socket there
     │        └── or, where sshd forbids that, a Tunnel: one more channel for each connection
     └── locate(): called before each attempt to connect; makes a new master when the last one is gone

Keys come from the connection file, read over ssh: who may log in there as this user may connect.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from . import _ssh_errors
from ._address import Address
from ._answer import ASKED, Answer, Found, failure
from ._bootstrap import COMMAND, Task, render
from ._channel import Asker, Channel, Say, can_ask_on_terminal, command, program
from ._config import LONGEST_SOCKET_PATH, is_locked, private_directory, runtime_directory
from ._errors import AuthError, ConnectError, LinkLostError, RemoterError

if TYPE_CHECKING:
    from ._records import Record
    from ._tunnel import Tunnel

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

REFUSED = 30.0
"""Seconds between attempts after a refused login: servers lock out who knocks too often."""

CHECKED = 5.0
"""Seconds for a master of the user's own to say that it is there."""

GRACE = 0.5
"""Seconds for ssh to end by itself, when nobody needs it any more: until then it passes on a goodbye."""

AnyChannel = TypeVar("AnyChannel", bound=Channel)


OPTIONS = ("prelude", "python", "r", "r_engine")  # how a session is started; of no use where it runs


class Wish(Protocol):
    """What a caller wants of a session there."""

    start: bool | None
    existing: bool
    lang: str | None
    python: str | None
    r: str | None
    r_engine: str | None
    prelude: str | None
    install: bool
    is_typed: bool
    ask_ssh: Asker | None


def begin(address: Address, wish: Wish) -> Ssh:
    """Start to log in there; what takes long goes on in other processes while the caller does other things.

    Raises:
        ConnectError: there is no ssh program.
    """
    verb: Literal["find", "start"] = "find" if wish.existing or wish.start is False else "start"
    how = {option: getattr(wish, option) for option in OPTIONS}
    task = Task(verb, name=address.name, lang=wish.lang or "python", only=wish.lang or "", **how)
    asker, install, is_typed = wish.ask_ssh, wish.install, wish.is_typed
    return Ssh(address, task, ask=asker, install=install, is_typed=is_typed, say=say_to_person)


def say_to_person(text: str) -> None:
    """A word to whoever waits."""
    print(f"-- {_ssh_errors.escape(text)}", file=sys.stderr, flush=True)  # noqa: T201


# --- the way to one session ------------------------------------------------------------------


class Master(Channel):
    """The `ssh` process that logs in, and carries all other channels.

    Where the user has a master of his own (ControlPath), it logs in through that one: nobody is asked
    for a second factor twice. It then carries nothing but its own channel, and forwards nothing.
    """

    def __init__(self, address: Address, control: Path | None, task: Task, batch: bool, **how: Any) -> None:
        self.address, self.control = address, control
        super().__init__(self._words("-M", batch=batch), task, **how)

    def _words(self, *more: str, batch: bool) -> list[str]:
        if self.control is None:
            return command(self.address, batch=batch, ControlMaster="no")
        return command(self.address, *more, "-S", str(self.control), batch=batch)

    @property
    def has_said_hello(self) -> bool:
        """Whether the script runs there."""
        return self.lifeline is None

    @property
    def is_in(self) -> bool:
        """Whether the login is through: only then ssh opens its control socket."""
        return self.control is None or self.control.exists()

    def command(self) -> list[str]:
        """The words for one more channel, without a login."""
        return self._words(batch=True)

    def forward(self, here: Path, there: Path) -> None:
        """Make a socket here whose connections come out at that socket there."""
        sockets = f"{_quoted(here)}:{_quoted(there)}"
        words = [*program(), "-S", str(self.control), "-O", "forward", "-L", sockets]
        try:
            done = subprocess.run(
                [*words, self.address.host],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ASKED,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConnectError(f"ssh to {self.address.host} does not answer", id="ssh-timeout") from None
        if done.returncode:
            raise _ssh_errors.explain(
                done.stderr.decode(errors="replace"), done.returncode, self.address, may_ask=False
            )


def has_master(address: Address) -> bool:
    """Whether the user's configuration names a ControlPath where a master of his listens."""
    try:
        done = subprocess.run(
            command(address, "-O", "check"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECKED,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _quoted(path: Path) -> str:
    """A socket's path as ssh reads it in a forwarding."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace("%", "%%")


class Ssh:
    """The way to one session on one machine, over as many ssh processes as it takes.

    Args:
        address: where to.
        task: find a session or start one, and how.
        ask: answers what ssh asks where there is no terminal; None: nobody.
        install: put remoter there first.
        is_typed: the person has just said how to start a session, and should hear if that is of no use.
        say: tells the person what goes on.
    """

    def __init__(
        self,
        address: Address,
        task: Task,
        *,
        ask: Asker | None = None,
        install: bool = False,
        is_typed: bool = True,
        say: Say = lambda text: None,
    ) -> None:
        self.address, self.install, self.is_typed, self.say = address, install, is_typed, say
        self.task = dataclasses.replace(task, stay=True)
        self.asker: Asker | None = None
        """Whoever can be asked when ssh cannot come back without a password; called in a thread of ours."""
        self.first_asker = ask
        self.record: Record | None = None
        self.started = False
        self.socket: Path | None = None
        self.master: Master | None = None
        self.tunnel: Tunnel | None = None
        self.is_forbidden = False  # sshd lets nobody forward
        self.may_borrow = True  # the user's own master has not failed us
        self.is_doubted = False
        self.closed = False
        self.refused_until = 0.0
        self.refusal: RemoterError | None = None
        self.pid = os.getpid()
        self.lock = threading.Lock()  # held by whoever brings us back
        self.numbers = itertools.count()
        self.opening: Master | None = None
        self.channels: set[Channel] = set()
        self.guard = threading.Lock()  # for `closed` and `channels`
        self.has_carried = False
        self.asks = False
        self.directory, self.held = _make_directory()
        _living.add(self)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Start to log in; nothing is waited for."""
        self.asks = can_ask_on_terminal()
        task = dataclasses.replace(self.task, verb="find") if self.install else self.task
        if self.asks or self.first_asker is None:
            self.opening = self._make_master(task, batch=not self.asks, on_terminal=self.asks)
        else:
            self.asks = True
            self.opening = self._make_asking_master(task, self.first_asker)

    def _make_master(self, task: Task, batch: bool, **how: Any) -> Master:
        borrowed = self.may_borrow and has_master(self.address)
        control = None if borrowed else self.directory / f"m{next(self.numbers)}"
        return self._keep(lambda: Master(self.address, control, task, batch, **how))

    def _keep(self, make: Callable[[], AnyChannel]) -> AnyChannel:
        """A new channel, which `close` ends too, whoever waits for it.

        Raises:
            LinkLostError: we are closed already.
        """
        with self.guard:
            if self.closed:
                raise _closed()
            channel = make()
            self.channels = {each for each in self.channels if each.is_alive} | {channel}
            return channel

    def _make_asking_master(self, task: Task, asker: Asker) -> Master:
        """A master whose questions come to `asker`, for it has no terminal."""
        from ._askpass import Askpass

        askpass = Askpass(self.directory, asker)
        master = self._make_master(task, batch=False, environment=askpass.environment())

        def end_with_it() -> None:
            while master.is_alive and not master.is_in and not self.closed:
                time.sleep(0.1)
            askpass.close()

        threading.Thread(target=end_with_it, name="remoter-askpass-end", daemon=True).start()
        return master

    # --- the first time ----------------------------------------------------------------------

    def open(self, timeout: float) -> Record:
        """The session there, found or started; then `locate` leads to it.

        Args:
            timeout: seconds for the login, unless a person is asked. A start has a minute of its own.

        Raises:
            ConnectError, AuthError, KeyChangedError: which step failed, and why.
        """
        try:
            with self.lock:
                master, found = self._read_first(timeout)
                if self.install:
                    found = self._install(master)
                self.record = self._choose(found)
                self.started = found.started
                self._tell(found)
                self._settle(master, self.record)
                return self.record
        except BaseException:
            self.close()
            raise

    def _read_first(self, timeout: float) -> tuple[Master, Found]:
        """What the first master says; the user's own, if it is borrowed and does not answer, is left alone."""
        assert self.opening is not None
        master = self.opening
        try:
            return master, self._read(master, self.asks, timeout)
        except ConnectError:
            if master.control is not None or master.has_said_hello:
                raise
        master.close()
        self.say(f"your ssh connection to {self.address.host} does not answer: trying a new one")
        self.may_borrow = False
        self._begin()
        return self.opening, self._read(self.opening, self.asks, timeout)

    def _read(self, channel: Channel, asks: bool, timeout: float) -> Found:
        is_in = (lambda: channel.is_in) if isinstance(channel, Master) else (lambda: True)
        answer = Answer(channel, self.address, asks, timeout, is_in, self.say)
        return Found.of(answer.read())

    def _install(self, master: Master) -> Found:
        """Put remoter there, then do what was wanted."""
        from ._install import install

        def start(script: bytes) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [*master.command(), COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it has ended: its exit code tells
                process.stdin.write(script)
                process.stdin.flush()
            return process

        def explain(said: str, code: int | None) -> RemoterError:
            return _ssh_errors.explain(said, code, self.address, may_ask=False)

        install(start, self.say, host=self.address.host, prelude=self.task.prelude, explain=explain)
        return self._ask_there(master, self.task)

    def _ask_there(self, master: Master, task: Task) -> Found:
        """One more channel, for one question."""
        task = dataclasses.replace(task, stay=False)
        with self._keep(lambda: Channel(master.command(), task)) as channel:
            return self._read(channel, False, ASKED)

    def _choose(self, found: Found) -> Record:
        host, only = self.address.host, self.task.only
        if found.failed:
            error = failure(found, self.address)
            error.cause = error.cause and error.cause.replace("on this machine", f"on {host}")  # said there
            raise error
        if len(found.records) == 1:
            return found.records[0]
        if found.records:
            names = ", ".join(f"`{record.name}`" for record in found.records)
            first = dataclasses.replace(self.address, name=found.records[0].name)
            raise ConnectError(
                f"{len(found.records)} sessions run on {host}: {names}",
                hints=[f"name the one you mean: `{first}`", f"`remoter ls {self.address}` tells more"],
                id="several",
            )
        if found.damaged:
            raise ConnectError(
                f"cannot read a connection file on {host}",
                cause=found.damaged,
                hints=f"`remoter ls` on {host} says which; it may be of another version",
                id="private-file",
            )
        kind, option = (f"{only.capitalize()} session", f" --lang {only}") if only else ("session", "")
        named = f"session `{self.address.name}`" if self.address.name else kind
        raise ConnectError(
            f"no {named} runs on {host}",
            cause=self._elsewhere(found),
            hints=[
                f"`remoter client ssh://{there}/{name}` reaches `{name}`" for there, name in found.others[:3]
            ]
            + [f"`remoter client {self.address}{option}` would start one"],
            id="no-session",
        )

    def _elsewhere(self, found: Found) -> str | None:
        """The same user's sessions on other machines of his home, in a sentence."""
        if not found.others:
            return None
        host, name = found.others[0]
        here = "" if self.address.host == found.host else f"; {self.address.host} leads to {found.host}"
        more = f", and {len(found.others) - 1} more elsewhere" if len(found.others) > 1 else ""
        return f"`{name}` runs on {host}{more}{here}"

    def _tell(self, found: Found) -> None:
        """What the person would otherwise wonder about."""
        assert self.record is not None
        if found.started:
            if elsewhere := self._elsewhere(found):
                self.say(f"started `{self.record.name}` on {found.host}; {elsewhere}")
        elif self.task.verb == "start" and self.is_typed:
            unused = [option for option in OPTIONS if getattr(self.task, option)]
            if unused:
                words = " and ".join(f"`--{option.replace('_', '-')}`" for option in unused)
                self.say(f"`{self.record.name}` runs already: {words} not used")

    def _settle(self, master: Master, record: Record) -> None:
        """From now on this master leads to that session."""
        old_master, old_tunnel = self.master, self.tunnel
        socket, tunnel = self.directory / f"s{next(self.numbers)}", None
        if self.is_forbidden or master.control is None:
            from ._tunnel import Tunnel

            tunnel = Tunnel(socket, lambda: self._bridge(master, record))
        else:
            master.forward(socket, record.door_socket)  # if that fails, all is as it was
        self.socket, self.tunnel = socket, tunnel
        self.master, self.record, self.opening, self.is_doubted = master, record, None, False
        if old_tunnel is not None:
            old_tunnel.close()
        if old_master is not None and old_master is not master:
            old_master.close()

    def _bridge(self, master: Master, record: Record) -> tuple[list[str], bytes, str]:
        """The command for one bridged connection, what to send it first, and the mark of its answer."""
        nonce = os.urandom(8).hex()
        return (
            [*master.command(), COMMAND],
            render(Task("bridge", name=record.name, prelude=self.task.prelude), nonce),
            nonce,
        )

    # --- each time ---------------------------------------------------------------------------

    def locator(self) -> Callable[[], Path]:
        """What one link asks before each attempt: the socket here that leads to the session. It may take long.

        Raises (what it returns, when called):
            LinkLostError: the session has ended. ConnectError, AuthError: not now.
        """
        attempts = itertools.count()
        return lambda: self._locate(next(attempts))

    def carried(self) -> None:
        """A link came through: forwarding is not forbidden."""
        self.has_carried = True

    def doubt(self) -> None:
        """The session has not answered for a while: the next attempt does not trust the present ssh process."""
        self.is_doubted = True

    def _locate(self, attempt: int) -> Path:
        before = self.socket
        with self.lock:
            if self.closed:
                raise _closed()
            master = self.master
            is_alive = master is not None and master.is_alive
            if attempt == 0 and is_alive:
                pass
            elif self.socket != before and is_alive:
                pass  # another link has just brought us back
            elif master is None or not is_alive or self.is_doubted:
                self._reopen()
            else:
                self._look_again(master)
            assert self.socket is not None
            return self.socket

    def _look_again(self, master: Master) -> None:
        """The ssh process lives: does the session? Or does sshd not let us forward?

        It does not tell: what is forbidden and what nobody listens on look the same. But a session
        that lives, and whose socket could never be opened, is behind a sshd that forbids it.
        """
        assert self.record is not None
        try:
            found = self._ask_there(master, Task("find", name=self.record.name))
        except RemoterError:
            if not master.is_alive:
                self._reopen()
                return
            raise
        record = self._same(found)
        refusal = "administratively prohibited" if self.has_carried else "open failed"
        if self.tunnel is None and any(refusal in line for line in master.said):
            self.is_forbidden = True
            self._settle(master, record)
        elif record.directory != self.record.directory:
            self._settle(master, record)

    def _reopen(self) -> None:
        """A new master, which nobody types a password for, unless somebody can be asked."""
        assert self.record is not None
        if time.monotonic() < self.refused_until and self.refusal is not None:
            raise self.refusal
        task = Task("find", name=self.record.name, stay=True)
        try:
            self._try_master(self._make_master(task, batch=True), False)
        except AuthError as error:
            if self.asker is None:
                self.refused_until, self.refusal = time.monotonic() + REFUSED, error
                raise
            self._try_master(self._make_asking_master(task, self.asker), True)

    def _try_master(self, master: Master, asks: bool) -> None:
        self.opening = master
        try:
            found = self._read(master, asks, ASKED + 5)
            self._settle(master, self._same(found))
        except BaseException:
            self.opening = None
            self.may_borrow = self.may_borrow and master.control is not None
            master.close()
            raise
        if self.closed:  # meanwhile
            master.close()
            if self.tunnel is not None:
                self.tunnel.close()

    def _same(self, found: Found) -> Record:
        """The session that we know, from what was found there."""
        assert self.record is not None
        known = self.record
        for record in found.records:
            if record.name == known.name and record.journal == known.journal:
                return record
        if found.host and found.host != known.host:
            raise ConnectError(
                f"ssh to {self.address.host} leads to {found.host} now; the session is on {known.host}",
                id="ssh-host",
            )
        log = dataclasses.replace(self.address, name=known.name)
        raise LinkLostError(
            f"session `{known.name}` on {known.host} has ended",
            cause="another session has that name now" if found.records else None,
            hints=f"what it printed is kept for 7 days: `remoter log {log}`",
            id="ended",
        )

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """End all ssh processes and remove what they left here. The session goes on.

        May be called while another thread brings us back. Takes 10 ms, or 2 s where nobody answers.
        """
        with self.guard:
            if self.closed or self.pid != os.getpid():
                return
            self.closed = True
            channels = set(self.channels)
        _living.discard(self)
        for channel in channels - {self.master}:
            channel.close()
        if self.tunnel is not None:
            self.tunnel.close(GRACE)
        if self.master is not None:
            self.master.close(GRACE)  # it ends by itself when it has sent on what the link said last
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self.held)

    def abandon(self) -> None:
        """As `close`, without waiting; also while the interpreter collects garbage."""
        if not self.closed and self.pid == os.getpid():
            with contextlib.suppress(RuntimeError):  # it ends: then all are closed
                threading.Thread(target=self.close, name="remoter-ssh-end").start()


def _closed() -> LinkLostError:
    return LinkLostError("the connection was closed", id="closed")


# --- the private directory -------------------------------------------------------------------

_living: weakref.WeakSet[Ssh] = weakref.WeakSet()
_LONGEST_NAME = len("/m99999.0123456789abcdef")  # ssh makes its socket under a longer name first


def _make_directory() -> tuple[Path, int]:
    """A short private directory, and the lock that shows that it is in use; those of the dead are removed.

    The lock is on the directory itself: so what clears old files out of /tmp passes it by.
    """
    try:
        parent = private_directory(runtime_directory())
        if len(os.fsencode(parent)) + len("/.ssh-01234567") + _LONGEST_NAME > LONGEST_SOCKET_PATH:
            raise OSError
    except (RemoterError, OSError):
        parent, prefix = Path("/tmp"), "remoter-ssh-"  # noqa: S108 - a new directory, 0700
    else:
        prefix = ".ssh-"
    for old in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > 60 and not is_locked(old):
                shutil.rmtree(old, ignore_errors=True)
    directory = parent / f"{prefix}{os.urandom(4).hex()}"
    directory.mkdir(mode=0o700)  # fails if somebody was there before us
    lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return directory, lock


def _close_all() -> None:
    for ssh in list(_living):
        ssh.close()


atexit.register(_close_all)
