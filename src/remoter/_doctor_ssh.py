"""The steps of `remoter doctor ssh://host`: from the ssh program here to a session there; in the shell's process.

One ssh process does it all: it logs in, looks around there, and then carries the connection that is
measured. What fails in it is known by ssh's own words (`_ssh_errors`), and told at the step where it
belongs. Nothing is started or changed there, and nothing stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import select
import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from . import __version__, _answer, _channel, _ssh_errors
from ._answer import Answer, Found
from ._bootstrap import Task
from ._errors import ConnectError, RemoterError
from ._r import R, seen_of
from ._records import Record
from ._security import fingerprint
from ._ssh import Master, Ssh, say_to_person
from ._ssh_errors import escape, lasted

if TYPE_CHECKING:
    from ._client import Session
    from ._saved import Saved

LOGIN = 20.0  # seconds, where nobody is asked; and for the first answer of a step
PATIENCE = 10.0  # seconds for each small step
WAITING = 8.0  # seconds of one step after which a person is told
ECHOES = 15
ECHOING = 2.0  # seconds for them all: fewer on a slow network
RATE_SIZE = 8_000_000  # bytes
SLOW = 1_000_000  # bytes in a second
SLOW_ECHO = 0.2  # seconds

OLDEST_PYTHON = (3, 11)
OLDEST_OPENSSH = (7, 3)

Seen = tuple[str, ...]
"""What a step has to say: its mark, what was seen, and what to do."""


class _Way(Ssh):
    """The way there, on which the doctor goes step by step."""

    def open(self, timeout: float) -> Record:
        """The session that was found; the way leads to it already."""
        assert self.record is not None
        return self.record

    @property
    def first_master(self) -> Master:
        """The ssh process that carries everything."""
        master = self.master or self.opening
        assert isinstance(master, Master)
        return master

    def lead_to(self, record: Record, *, by_bridge: bool) -> Path:
        """A socket here whose connections come out at that session."""
        self.is_forbidden = by_bridge
        self._settle(self.first_master, record)
        assert self.socket is not None
        return self.socket


class Journey:
    """The steps to one host, and what is known so far.

    Args:
        saved: where to, and how sessions are started there.
        measure: in how many seconds a session answers, and that in words; the step that both kinds of
            addresses share.
        secure: as in `connect`.
    """

    def __init__(
        self, saved: Saved, measure: Callable[[Session], tuple[float, str]], *, secure: bool = True
    ) -> None:
        self.address, self.prelude, self.lang = saved.address, saved.prelude, saved.lang or ""
        self.measure, self.secure = measure, secure
        self.configured: dict[str, str] = {}
        self.asks = False
        self.error: RemoterError | None = None
        self.way: _Way | None = None
        self.lines: list[tuple[str, str]] = []
        self.noise = b""
        self.seconds = 0.0
        self.record: Record | None = None
        self.session: Session | None = None

    def steps(self) -> list[tuple[str, Callable[[], Seen]]]:
        """Each step with its name, in the order in which they stand on each other."""
        looks = [
            ("ssh", self._look_at_program),
            ("configuration", self._look_at_configuration),
            ("connection", self._log_in),
            ("host key", self._look_at_host_key),
            ("authentication", self._look_at_login),
            ("login shell", self._look_at_shell),
            ("python", self._look_at_python),
            ("remoter", self._look_at_remoter),
            ("R", self._look_at_r),
            ("session", self._look_for_session),
            ("forwarding", self._forward),
            ("key", self._look_at_key),
            ("round trip", self._connect),
            ("rate", self._pull),
        ]
        return [(name, functools.partial(self._take, name, look)) for name, look in looks]

    def _take(self, name: str, look: Callable[[], Seen]) -> Seen:
        """One step; when it lasts, the person hears that it goes on, unless a password is typed just now."""
        has_ended = threading.Event()

        def tell() -> None:
            while not has_ended.wait(WAITING):
                if name != "connection" or self._is_asked_nothing:
                    say_to_person(f"{name}: no answer yet")

        threading.Thread(target=tell, name="remoter-doctor", daemon=True).start()
        try:
            return look()
        finally:
            has_ended.set()

    @property
    def _is_asked_nothing(self) -> bool:
        return self.way is not None and (not self.asks or self.way.first_master.has_said_hello)

    def close(self) -> None:
        """Leave nothing behind, wherever it was broken off."""
        if self.session is not None:
            self.session.close()
        if self.way is not None:
            self.way.close()

    # --- here --------------------------------------------------------------------------------

    def _look_at_program(self) -> Seen:
        words = _channel.program()
        done = _ask([*words, "-V"])
        version = escape(((done.stderr or done.stdout).strip().splitlines() or ["it says no version"])[0])
        seen = f"{shutil.which(words[0])}: {version}"
        number = re.match(r"OpenSSH_([0-9]+)\.([0-9]+)", version)
        if number is None:
            return (
                "note",
                seen,
                "remoter is made for OpenSSH; the variable REMOTER_SSH may name another program",
            )
        if (int(number[1]), int(number[2])) < OLDEST_OPENSSH:
            raise ConnectError(f"{seen}: too old", hints="OpenSSH 7.3 or later is needed", id="ssh")
        return "ok", seen

    def _look_at_configuration(self) -> Seen:
        """What the user's ssh configuration makes of the address."""
        user = ["-l", self.address.user] if self.address.user else []
        port = ["-p", str(self.address.port)] if self.address.port is not None else []
        done = _ask([*_channel.program(), "-G", *user, *port, self.address.host])
        if done.returncode:
            raise _ssh_errors.explain(done.stderr, done.returncode, self.address, may_ask=False)
        for line in done.stdout.splitlines():
            key, _, value = line.partition(" ")
            self.configured.setdefault(key.lower(), escape(value))
        known = self.configured
        seen = (
            f"`{self.address.host}` is {known.get('user')}@{known.get('hostname')}, port {known.get('port')}"
        )
        if self._jump:
            seen += f", through `{self._jump}`"
        elif known.get("proxycommand", "none") != "none":
            seen += f", through `{known['proxycommand']}`"
        if known.get("controlmaster", "false") != "false" or known.get("controlpath", "none") != "none":
            seen += "; your ControlMaster stays as it is"
        if known.get("stricthostkeychecking") in ("false", "off"):
            return (
                "note",
                f"{seen}; host keys are not checked",
                "take `StrictHostKeyChecking no` out of ~/.ssh/config",
            )
        return "ok", seen

    @property
    def _jump(self) -> str:
        jump = self.configured.get("proxyjump", "none")
        return "" if jump == "none" else jump

    # --- logging in --------------------------------------------------------------------------

    def _log_in(self) -> Seen:
        """Log in, and look around there; what fails is told at the step where it belongs."""
        began = time.monotonic()
        task = Task("look", name=self.address.name, only=self.lang, prelude=self.prelude)
        self.way = _Way(self.address, task, say=say_to_person)
        self.asks, master = self.way.asks, self.way.first_master
        answer = Answer(master, self.address, self.asks, LOGIN, lambda: master.is_in, self.way.say)
        try:
            self.lines = answer.read("hello")
            self.noise = master.reader.noise.strip()
            self.seconds = time.monotonic() - began
            self.lines += answer.read()
        except RemoterError as error:
            self.error = self._explain_again(error, master)
        self.lines = [(word, rest if word == "record" else escape(rest)) for word, rest in self.lines]
        if self.error is not None and self.error.id not in _LATER:
            raise self.error
        way = f", through `{self._jump}`" if self._jump else ""
        return (
            "ok",
            f"an ssh server answers at {self.configured.get('hostname')}:{self.configured.get('port')}{way}",
        )

    def _explain_again(self, error: RemoterError, master: Master) -> RemoterError:
        """With what only we know: the jump host's name; that the script had begun."""
        if self.lines and error.id == "timeout":
            return _ssh_errors.no_answer_from_shell(self.address, master.reader.noise, _answer.ASKED)
        if self._jump and error.id.startswith("ssh") and error.id != "ssh-shell" and not master.is_alive:
            said = "\n".join(master.said)
            return _ssh_errors.explain(
                said,
                master.process.poll(),
                self.address,
                may_ask=self.asks,
                jump=self._jump.rpartition(",")[2],
            )
        return error

    def _look_at_host_key(self) -> Seen:
        assert self.way is not None
        if self.error is not None and self.error.id in _ABOUT_HOST_KEY:
            raise self.error
        said = list(self.way.first_master.said)
        if any("Permanently added" in line for line in said):
            if self.configured.get("stricthostkeychecking") == "ask":
                return "ok", "new here, and accepted just now"
            return "note", "unknown until now, and ssh has added it without asking", _COMPARE
        return "ok", "the one that ssh knows"

    def _look_at_login(self) -> Seen:
        if self.error is not None and self.error.id in _ABOUT_LOGIN:
            raise self.error
        took = f", in {lasted(self.seconds)}" if self.seconds and not self.asks else ""  # persons type slowly
        return "ok", f"let in as {self.configured.get('user')}{took}"

    # --- there -------------------------------------------------------------------------------

    def _look_at_shell(self) -> Seen:
        """Whether the login shell comes to run what it is given, and prints nothing of its own."""
        if self.error is not None:
            raise self.error
        found = Found.of([line for line in self.lines if line[0] != "record"])
        if found.failed == "login":
            raise _ssh_errors.shell_ended(self.address, "\n".join(found.said).encode(), _number(found.code))
        if found.failed == "prelude":
            raise _answer.failure(found, self.address)
        said = self._said("hello").split()
        shell = self._said("shell") or self._said("login")
        seen = f"{shell} on {found.host}, {' '.join(said[:2])}"
        if not self.noise:
            return "ok", f"{seen}; prints nothing of its own"
        last = escape(self.noise.decode(errors="replace").splitlines()[-1])
        return (
            "note",
            f"{seen}; prints {len(self.noise)} bytes before it does what it is told, and last: {last}",
            "remoter ignores that, but `scp`, `rsync` and `git` may not: print it only where `[ -t 1 ]`",
        )

    def _look_at_python(self) -> Seen:
        path, _, version = self._said("python").rpartition(" ")
        if not path:
            return "note", "no `python3` on PATH", "not needed if remoter is there; sessions need one"
        numbers = tuple(int(number) for number in re.findall(r"[0-9]+", version)[:2])
        seen = f"{path}, {version}"
        if numbers < OLDEST_PYTHON:
            return (
                "note",
                f"{seen}: too old for remoter, which needs 3.11",
                "remoter there may have a Python of its own",
            )
        return "ok", seen

    def _look_at_remoter(self) -> Seen:
        path, _, version = self._said("program").rpartition(" ")
        if not path:
            said = [f"{word} {rest}" for word, rest in self.lines if word == "python"]
            raise _answer.failure(Found(failed="remoter", code="127", said=said), self.address)
        seen = f"{path}, {version}"
        if version != __version__:
            return (
                "note",
                f"{seen}; here {__version__}",
                "the round trip shows whether they understand each other",
            )
        return "ok", f"{seen}, as here"

    def _look_at_r(self) -> Seen:
        """Whether R sessions can be started there."""
        path, _, version = self._said("r").rpartition(" ")
        found = R(path, self._said("home"), version, self._said("library") or None) if path else None
        return seen_of(found, "there", "`apt install r-base-core` there, or what its system has")

    def _look_for_session(self) -> Seen:
        found = Found.of(self.lines)
        start = dataclasses.replace(self.address, name=self.address.name or "main")
        elsewhere = [f"`{name}` on {host}" for host, name in found.others]
        if found.damaged and not found.records:
            return (
                "note",
                f"a connection file on {found.host} cannot be read: {found.damaged}",
                "`remoter ls` there",
            )
        if not found.records:
            which = f"no session `{self.address.name}` runs" if self.address.name else "no session runs"
            more = f"; elsewhere: {', '.join(elsewhere)}" if elsewhere else ""
            return "note", f"{which} on {found.host}{more}", f"`remoter client {start}` starts one"
        self.record = record = found.records[0]
        seen = f"`{escape(record.name)}`, {escape(record.lang.capitalize())}"
        with contextlib.suppress(ValueError, OverflowError, OSError):  # whatever it says of its start
            seen += time.strftime(", since %Y-%m-%d %H:%M", time.localtime(record.started))
        if len(found.records) > 1:
            names = ", ".join(f"`{escape(each.name)}`" for each in found.records[1:])
            named = dataclasses.replace(self.address, name=record.name)
            return "note", f"{seen}; beside it {names}", f"name the one you mean: `remoter doctor {named}`"
        return "ok", seen

    def _said(self, word: str) -> str:
        return next((rest for said, rest in self.lines if said == word), "")

    # --- to the session ----------------------------------------------------------------------

    def _forward(self) -> Seen:
        """Whether ssh carries connections to the session's socket; if not, whether the bridge does."""
        if self.record is None:
            return _NO_SESSION
        assert self.way is not None
        if self.way.first_master.control is None:
            return self._bridge("your own ssh master carries it, which forwards nothing for us", "ok")
        refused = ""
        try:
            if _is_answered(self.way.lead_to(self.record, by_bridge=False), LOGIN / 2):
                return "ok", "a socket here leads to the session's socket there"
        except RemoterError as error:
            if error.id != "ssh-forward":
                raise
            refused = f" ({error.cause})"
        return self._bridge(
            f"the ssh server forwards no sockets{refused}",
            "note",
            "`AllowStreamLocalForwarding yes` in its sshd_config spares each connection a process",
        )

    def _bridge(self, why: str, mark: str, *do: str) -> Seen:
        assert self.way is not None
        assert self.record is not None
        if _is_answered(self.way.lead_to(self.record, by_bridge=True), LOGIN):
            return mark, f"{why}; the bridge leads to the session", *do
        raise ConnectError(
            f"neither forwarding nor the bridge leads to session `{self.record.name}`",
            cause=(self.way.tunnel and self.way.tunnel.detail) or "its socket does not answer",
            hints=f"`remoter ls {self.address}` shows whether it is well",
            id="ssh-forward",
        )

    def _look_at_key(self) -> Seen:
        if self.record is None:
            return _NO_SESSION
        if not self.record.secure:
            return "note", "the published key, which protects nothing by itself; ssh does"
        return "ok", f"{fingerprint(self.record.server_public)}, read over ssh"

    def _connect(self) -> Seen:
        """How long a question takes, and how much of that is ssh and the network."""
        if self.record is None:
            return _NO_SESSION
        from ._client import open_session

        assert self.way is not None
        self.session = open_session(
            str(self.address), secure=self.secure, timeout=LOGIN, existing=True, quiet=True, ssh=self.way
        )
        seconds, seen = self.measure(self.session)
        echo = _echo(self.way.first_master.command())
        if echo is None:
            return (
                "note",
                f"{seen}; ssh and the network alone: no answer",
                "no `cat` there, or a network that is lost",
            )
        seen += f"; ssh and the network alone {lasted(echo)}"
        if echo > SLOW_ECHO:
            return "note", seen, "a slow network"
        if seconds > echo + SLOW_ECHO:
            return "note", seen, "that machine, or the session, has much to do: the network is not slow"
        return "ok", seen

    def _pull(self) -> Seen:
        """How fast bytes come from there."""
        assert self.way is not None
        size, seconds = _pull(self.way.first_master.command())
        if not size or not seconds:
            return "note", "nothing came", "a slow network, or no `head` there"
        rate = size / seconds
        what = f"{_amount(rate)}/s: {_amount(size)} of zeros from there, through ssh"
        if self.configured.get("compression") in ("true", "yes"):
            return (
                "note",
                f"{what}, which compresses them",
                "`Compression no` in ~/.ssh/config, unless the network is slow",
            )
        return ("note", what, "a slow network: large transfers take long") if rate < SLOW else ("ok", what)


_ABOUT_HOST_KEY = ("ssh-key-unknown", "key-changed")
_ABOUT_LOGIN = ("ssh-login",)
_LATER = (*_ABOUT_HOST_KEY, *_ABOUT_LOGIN, "ssh-shell", "timeout")
_COMPARE = "compare its fingerprint with who runs that machine; `StrictHostKeyChecking ask` has ssh ask you"
_NO_SESSION: Seen = ("skip", "not tried, because no session runs there")


# --- small measurements ----------------------------------------------------------------------


def _ask(words: list[str]) -> subprocess.CompletedProcess[str]:
    """A question to the ssh program that needs no network."""
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConnectError(f"`{' '.join(words)}` does not work", cause=str(error), id="ssh") from None


def _amount(size: float) -> str:
    """Bytes for a person."""
    if size < 999.5e3:
        return f"{size / 1e3:.{0 if size >= 9.95e3 else 1}f} kB"
    return f"{size / 1e6:.{0 if size >= 9.95e6 else 1}f} MB"


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) else None


def _is_answered(path: Path, patience: float) -> bool:
    """Whether a session listens behind that socket: to how ZeroMQ begins it answers in the same way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience)
        try:
            connection.connect(str(path))
            connection.sendall(b"\xff" + bytes(7) + b"\x01\x7f")
            return connection.recv(1) == b"\xff"
        except OSError:
            return False


@contextlib.contextmanager
def _started(words: list[str], there: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The input and the output of a command there; it is ended afterwards."""
    process = subprocess.Popen(
        [*words, there],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdin, process.stdout
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read(output: IO[bytes], deadline: float) -> bytes:
    """What has come; empty at the end, and when it takes too long."""
    ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
    return os.read(output.fileno(), 1 << 16) if ready else b""


def _echo(words: list[str]) -> float | None:
    """Seconds in which a line comes back from there: the median of a few; None if none does."""
    began_all = time.monotonic()
    deadline = began_all + LOGIN
    times: list[float] = []
    with _started(words, "cat") as (into, output), contextlib.suppress(OSError):
        for number in range(ECHOES + 1):
            if len(times) > 1 and time.monotonic() > began_all + ECHOING:
                break
            line, heard = f"remoter-echo-{number}\n".encode(), b""
            began = time.perf_counter()
            into.write(line)
            into.flush()
            while line not in heard:
                if not (data := _read(output, deadline)):
                    return _median(times)
                heard = (heard + data)[-RATE_SIZE:]
            times.append(time.perf_counter() - began)
    return _median(times)


def _median(times: list[float]) -> float | None:
    """Of all but the first, which waits for the shell too."""
    return statistics.median(times[1:] or times) if times else None


def _pull(words: list[str]) -> tuple[int, float]:
    """How many bytes came from there, in how many seconds from the first on."""
    size = 0
    with _started(words, f"head -c {RATE_SIZE} /dev/zero") as (_, output):
        first = _read(output, time.monotonic() + LOGIN)
        began, deadline = time.perf_counter(), time.monotonic() + PATIENCE
        while first and size < RATE_SIZE and (data := _read(output, deadline)):
            size += len(data)
    return size, time.perf_counter() - began
