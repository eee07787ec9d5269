"""What the user's `ssh` program printed when it failed, as one of our errors; in the client's process.

OpenSSH has one exit code for all of its failures (255), so its words decide; it says them in
English everywhere. They are looked for in the order of `_CASES`: what names a reason stands before
what only says that the connection is closed. What is not known here is shown as it was printed.

The ssh of a jump host prints into the same stream; the outer one then says `UNKNOWN port 65535`.

ids: ssh-missing, ssh-host, ssh-refused, ssh-timeout, ssh-unreachable, ssh-key-unknown, key-changed,
ssh-login, ssh-shell, ssh-forward, ssh
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass

from ._address import Address
from ._errors import AuthError, ConnectError, KeyChangedError, RemoterError, printable

ASKS_AGAIN = "Permission denied, please try again."  # ssh, before it asks for the password again
LONGEST_LINE = 240  # characters that are shown of a line
MOST_LINES = 3

_CHATTER = re.compile(
    r"debug[123]: |@+$|Warning: Permanently added |Pseudo-terminal will not|ControlSocket .* already exists|\*\* "
)
_HANGS_UP = re.compile(r"(kex|ssh)_exchange_identification: |Connection (closed|reset) by ")
_ABOUT_KEYS = re.compile(r"Load key |Permissions \S+ for |no such identity: |.*signing failed for ")


@dataclass(frozen=True)
class _Failure:
    """One failed ssh, as far as it is known."""

    lines: list[str]
    code: int | None
    address: Address
    may_ask: bool
    jump: str

    @property
    def host(self) -> str:
        return f"`{self.address.host}`"

    @property
    def is_on_the_way(self) -> bool:
        """Whether a jump host or a ProxyCommand failed, and not the machine that was meant."""
        return any("UNKNOWN port 65535" in line for line in self.lines)

    @property
    def hop(self) -> str:
        """The jump host, by its name if that is known."""
        return f"the jump host `{self.jump}`" if self.jump else "the jump host"

    @property
    def where(self) -> str:
        """The machine that failed."""
        return f"{self.hop} before {self.host}" if self.is_on_the_way else self.host

    def whom(self, name: str) -> str:
        """The machine that failed, by the name that ssh gives it."""
        return f"`{name}` (the jump host before {self.host})" if self.is_on_the_way else f"`{name}`"

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first line that has it, as a match whose `string` is that line."""
        return next(filter(None, (re.search(pattern, line) for line in self.lines)), None)


def explain(said: str, code: int | None, address: Address, *, may_ask: bool, jump: str = "") -> RemoterError:
    """The error that is in what ssh printed.

    Args:
        said: its standard error.
        code: its exit code, less than 0 for a signal; None if it has not ended.
        may_ask: it had somebody whom it could ask for a password.
        jump: the host of ProxyJump, if it is known.
    """
    lines = [escape(line) for line in said.splitlines() if line.strip()]
    failure = _Failure(lines, code, address, may_ask, jump)
    for pattern, build in _CASES:
        for line in lines:
            if not line.startswith("debug") and (match := pattern.search(line)):
                return build(failure, match)
    return _unknown(failure)


def typed(address: Address, *more: str, options: str = "") -> str:
    """The ssh command that a person types to reach that host."""
    words = [os.environ.get("REMOTER_SSH") or "ssh", *([options] if options else [])]
    words += ["-p", str(address.port)] if address.port is not None else []
    words += [f"{address.user}@{address.host}" if address.user else address.host, *more]
    return " ".join(words)


def escape(line: str) -> str:
    """One line of what another program printed: not too long, and harmless on any terminal."""
    shown = printable(line.rstrip("\r\n")[: LONGEST_LINE + 1].expandtabs(1))
    return shown if len(shown) <= LONGEST_LINE else shown[: LONGEST_LINE - 3] + "..."


def lasted(seconds: float) -> str:
    """A duration for a person, to two digits or the second."""
    if seconds < 0.1:
        return f"{seconds * 1000:.{1 if seconds < 0.00995 else 0}f} ms"
    if seconds < 0.995:
        return f"{round(seconds * 100) * 10} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 and round(seconds, 1) % 1 else f"{seconds:.0f} s"


# --- failures of which ssh says nothing ------------------------------------------------------


def no_ssh_program(word: str = "ssh") -> RemoterError:
    """There is no ssh on this machine."""
    return ConnectError(
        f"there is no program `{escape(word)}` on this machine",
        cause="`ssh://` addresses need the OpenSSH client, and it is not on PATH",
        hints="install it: `apt install openssh-client`, or your system's package of that name"
        if word == "ssh"
        else "the variable REMOTER_SSH names it; without that variable it is `ssh`",
        id="ssh-missing",
    )


def shell_hangs(address: Address, noise: bytes, seconds: float) -> RemoterError:
    """Logged in, but the login shell never came to run our script."""
    return ConnectError(
        f"the login shell on `{address.host}` does not run what it is given",
        cause=_last_words(noise, f"no answer for {lasted(seconds)}"),
        hints=_look_into_startup(address),
        id="ssh-shell",
    )


def shell_ended(address: Address, noise: bytes, code: int | None) -> RemoterError:
    """The login shell ended before our script answered."""
    if b"account is currently not available" in noise:
        return explain(noise.decode(errors="replace"), code, address, may_ask=False)
    how = "it ended" if code is None else f"exit code {code}" if code >= 0 else _signal_name(code)
    return ConnectError(
        f"the login shell on `{address.host}` ended before it ran what it was given",
        cause=_last_words(noise, how),
        hints=_look_into_startup(address),
        id="ssh-shell",
    )


def no_answer_from_shell(address: Address, noise: bytes, seconds: float) -> RemoterError:
    """Our script had begun there, and then said no more."""
    return ConnectError(
        f"`{address.host}` began to answer and then said nothing more",
        cause=_last_words(noise, f"nothing for {lasted(seconds)}"),
        hints=f"`{typed(address, 'uptime')}` shows whether that machine has too much to do",
        id="ssh-shell",
    )


def _look_into_startup(address: Address) -> list[str]:
    return [
        f"`{typed(address, 'true')}` must end at once, and print nothing",
        "look into .bashrc, .profile and their like there: without a terminal they must not wait, exit, "
        "or start something else",
    ]


def _last_words(noise: bytes, otherwise: str) -> str:
    lines = [line for line in noise.decode(errors="replace").splitlines() if line.strip()]
    return (
        f"{otherwise}; the last that it printed: {escape(lines[-1])}"
        if lines
        else f"{otherwise}, and nothing printed"
    )


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


# --- failures that need more than a row ------------------------------------------------------


def _bad_configuration(failure: _Failure, match: re.Match[str]) -> RemoterError:
    line = failure.find(r"^.+ line [0-9]+: ") or match
    return ConnectError(
        "ssh cannot read its configuration",
        cause=line.string,
        hints=f"correct that line; `ssh -G {failure.address.host}` checks it",
        id="ssh",
    )


def _key_changed(failure: _Failure, match: re.Match[str]) -> RemoterError:
    offending = failure.find(r"^Offending (?:\S+ )?key in (.+:[0-9]+)$")
    named = failure.find(r"^Host key for (\S+) has changed") or failure.find(r"ssh-keygen .*-R \"?([^\" ]+)")
    found = failure.find(r"^(SHA256:\S+?)\.?$")
    name = named[1] if named else failure.address.host
    saved = f"ssh knows the key in {offending[1]}" if offending else match.string.strip("@ !")
    file = f"-f {shlex.quote(offending[1].rpartition(':')[0])} " if offending else ""
    return KeyChangedError(
        f"the host key of {failure.whom(name)} is not the one that was there before",
        cause=f"{saved}, and now there is {found[1]}" if found else saved,
        hints=[
            "if that machine was set up anew, compare with who runs it; then "
            f"`ssh-keygen {file}-R {shlex.quote(name)}`, and `{typed(failure.address)}` once",
            "if it was not, someone may sit in between: type no password",
        ],
    )


def _key_unknown(failure: _Failure, match: re.Match[str]) -> RemoterError:
    named = failure.find(r"key is known for (\S+) and")  # not said by who would have asked on a terminal
    cause = named.string if named else match.string
    return AuthError(
        f"the host key of {failure.whom(named[1]) if named else failure.where} is not known here",
        cause=cause
        if failure.may_ask
        else f"{cause} Nobody was there to be asked whether it is the right one",
        hints=f"`{typed(failure.address)}` once in a terminal: compare the fingerprint that it shows, and say yes",
        id="ssh-key-unknown",
    )


def _no_way_on(failure: _Failure, match: re.Match[str]) -> RemoterError:
    """The jump host was reached, and cannot reach what comes after it."""
    reason = (failure.find(r"open failed:") or match).string
    ids = {
        "prohibited": "forward",
        "refused": "refused",
        "not known": "host",
        "resolve": "host",
        "timed out": "timeout",
    }
    id = next((id for word, id in ids.items() if word in reason), "unreachable")
    if id == "forward":
        what, hint = "lets nobody through to", "its ssh server needs `AllowTcpForwarding yes` for that"
    else:
        what, hint = "cannot reach", f"`ssh -G {failure.address.host}` shows which host and port that is"
    return ConnectError(f"{failure.hop} {what} {failure.host}", cause=reason, hints=hint, id=f"ssh-{id}")


def _denied(failure: _Failure, match: re.Match[str]) -> RemoterError:
    address, methods = failure.address, match[2]
    who = f"`{match[1]}`" if match[1] else failure.host
    causes = [line for line in failure.lines if _ABOUT_KEYS.match(line)][:MOST_LINES]
    unprotected = failure.find(r"Permissions \S+ for '(.+)' are too open")
    hints = [f"`chmod 600 {shlex.quote(unprotected[1])}`"] if unprotected else []
    can_ask = "password" in methods or "keyboard" in methods
    if failure.may_ask:
        hints += [] if address.user else [f"another user there? `ssh://USER@{address.host}`"]
        hints += [f"`{typed(address, options='-v')}` shows what was tried"]
    else:
        what = "a password or passphrase" if can_ask else "a key's passphrase"
        causes.append(f"no terminal is here, so {what} could not be asked for")
        hints += (
            ["`ssh-add` unlocks your key, so that nothing has to be asked"] if "publickey" in methods else []
        )
        hints += [f"give the command in a terminal, once `{typed(address)}` lets you in there"]
    return AuthError(
        f"the ssh server does not let in {who}{f', on {failure.hop}' if failure.is_on_the_way else ''}",
        cause="; ".join([match.string.rstrip("."), *causes]),
        hints=hints,
        id="ssh-login",
    )


def _nothing_in_common(failure: _Failure, match: re.Match[str]) -> RemoterError:
    what, offer = match[1], match[2]
    options = {
        "host key type": "HostKeyAlgorithms",
        "key exchange method": "KexAlgorithms",
        "cipher": "Ciphers",
    }
    option = options.get(what, "MACs")
    return ConnectError(
        f"this ssh and that of {failure.where} have no {what} in common",
        cause=match.string,
        hints=[
            "bring the older of the two up to date",
            f"where that cannot be, in ~/.ssh/config under `Host {failure.address.host}`: "
            f"`{option} +{offer.partition(',')[0]}`",
        ],
        id="ssh",
    )


def _closed(failure: _Failure, match: re.Match[str]) -> RemoterError:
    """The other end hung up before the login or in it; what was printed before is the reason, if anything was."""
    before = [line for line in failure.lines if not (_HANGS_UP.match(line) or _CHATTER.match(line))]
    cause = "; ".join(before[-MOST_LINES:] or dict.fromkeys(failure.lines[-2:]))
    command = typed(failure.address, "true")
    if failure.is_on_the_way:
        message = f"the way to {failure.host} failed, through its ProxyJump or ProxyCommand"
        hints = [f"`ssh -G {failure.address.host}` shows which way that is; try it alone"]
    else:
        message = f"{failure.host} closed the connection before the login was through"
        hints = [f"wait a minute, then `{command}`: it may have too many logins at once (`MaxStartups`)"]
        hints += (
            []
            if before
            else ["or it refuses this machine (firewall, fail2ban), or no ssh server is on that port"]
        )
    return ConnectError(message, cause=cause, hints=hints, id="ssh")


def _unknown(failure: _Failure) -> RemoterError:
    last = next((line for line in reversed(failure.lines) if not _CHATTER.match(line)), "")
    code = failure.code
    if code is not None and code < 0:
        name = _signal_name(code)
        cause = f"{name}; before that it said: {last}" if last else name
        return ConnectError("the ssh program was killed", cause=cause, id="ssh")
    return ConnectError(
        f"ssh to {failure.host} failed",
        cause=last or ("it said nothing" if code is None else f"exit code {code}, and it said nothing"),
        hints=f"`{typed(failure.address, 'true', options='-v')}` shows each of its steps",
        id="ssh",
    )


# --- the table -------------------------------------------------------------------------------

_Builder = Callable[[_Failure, re.Match[str]], RemoterError]
_KINDS: dict[str, type[RemoterError]] = {"ssh-login": AuthError, "key-changed": KeyChangedError}


def _case(pattern: str, message: str, *hints: str, id: str = "ssh") -> tuple[str, _Builder]:
    """A line of ssh that is a cause by itself.

    The texts may hold `{host}`, `{name}` (that without quotes), `{where}` (a jump host, if it failed),
    `{command}`, and of the pattern's group `{whom}` (a host) or `{file}`.
    """

    def build(failure: _Failure, match: re.Match[str]) -> RemoterError:
        group = (match[1] if match.re.groups else "") or failure.address.host
        words = {
            "host": failure.host,
            "name": failure.address.host,
            "where": failure.where,
            "whom": failure.whom(group),
            "file": shlex.quote(group),
            "command": typed(failure.address),
        }
        filled = [hint.format_map(words) for hint in hints]
        kind = _KINDS.get(id, ConnectError)
        return kind(message.format_map(words), cause=match.string.strip("@ !"), hints=filled, id=id)

    return pattern, build


_NO_ANSWER = (
    "no answer from {where}",
    "another machine is meant, a firewall is in between, or it takes a VPN or a jump host (`ProxyJump`)",
)
_NOT_FORWARDED = (
    "ssh forwards no connection to {host}",
    "its ssh server needs `AllowStreamLocalForwarding yes` for that, and no `DisableForwarding`",
)

_TABLE: list[tuple[str, _Builder]] = [
    _case(
        r"WARNING: REVOKED HOST KEY DETECTED",
        "the host key of {host} was revoked",
        "do not log in; ask who runs that machine",
        id="key-changed",
    ),
    (r"WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED", _key_changed),
    (r"^Host key verification failed\.", _key_unknown),
    _case(
        r"^Bad owner or permissions on (.+)$",
        "ssh does not read a configuration that others could have written",
        "`chmod 600 {file}`, and look whether it says what you wrote",
    ),
    _case(
        r"^command-line.* Bad configuration option: ",
        "this ssh does not know an option that remoter needs",
        "`ssh -V` must be OpenSSH 7.3 or later; the variable REMOTER_SSH may name another",
    ),
    (r": terminating, [0-9]+ bad conf|^Can't open user config file ", _bad_configuration),
    _case(
        r"unix_listener: path .* too long|^ControlPath too long",
        "the path of ssh's socket is too long",
        "set REMOTER_RUNTIME_DIR to a short path, as /tmp/remoter-$USER",
    ),
    _case(
        r"^ssh: Could not resolve hostname (\S+): Temporary ",
        "no machine called {whom} was found",
        "is this machine on the network?",
        id="ssh-host",
    ),
    _case(
        r"^ssh: Could not resolve hostname (\S+): ",
        "no machine is called {whom}",
        "check the spelling, or the alias in ~/.ssh/config: `ssh -G {name}` shows what that makes of it",
        id="ssh-host",
    ),
    _case(
        r"^ssh: connect to host (\S+) port [0-9]+: Connection refused",
        "no ssh server listens on {whom}",
        "it is not running there, or another port is meant: `ssh://HOST:PORT`",
        id="ssh-refused",
    ),
    _case(r"^ssh: connect to host \S+ port [0-9]+: .*timed out", *_NO_ANSWER, id="ssh-timeout"),
    _case(
        r"^ssh: connect to host (\S+) port [0-9]+: ",
        "there is no way to {whom}",
        "is this machine in the right network, or its VPN on?",
        id="ssh-unreachable",
    ),
    (r"^stdio forwarding failed", _no_way_on),
    (r"no matching (.*) found\. Their offer: (.*)", _nothing_in_common),
    _case(
        r"Too many authentication failures",
        "{where} ended the login after too many wrong keys",
        "in ~/.ssh/config under `Host {name}`: `IdentitiesOnly yes`, and `IdentityFile` with the right key",
        "`ssh-add -l` lists the keys that the agent offers before",
        id="ssh-login",
    ),
    _case(
        r"account (?:has expired|is currently not available)|^Password change required but no TTY",
        "your account on {where} is closed to logins",
        "`{command}` in a terminal shows whether you can mend that; else ask who runs it",
        id="ssh-login",
    ),
    (r"^(?:(\S+@\S+): )?Permission denied \((.*)\)\.?$", _denied),
    _case(
        r"^Connection timed out during|^Connection to \S+ port [0-9]+ timed out",
        *_NO_ANSWER,
        id="ssh-timeout",
    ),
    _case(r"^Timeout, server \S+ not responding", *_NO_ANSWER, id="ssh-timeout"),
    _case(r"^mux_client_forward: |forward request failed", *_NOT_FORWARDED, id="ssh-forward"),
    _case(r"administratively prohibited|^channel [0-9]+: open failed", *_NOT_FORWARDED, id="ssh-forward"),
    _case(
        r"^(?:shell|exec|subsystem) request failed on channel|: Session open refused by peer",
        "{host} started no shell for us",
        "it has too many processes, or its `MaxSessions` is too low",
        id="ssh-shell",
    ),
    (r"_exchange_identification: |^Connection (?:closed|reset) by ", _closed),
    _case(
        r"^Connection to \S+ closed by remote|[Bb]roken pipe|^Read from remote host |^Received disconnect from ",
        "the ssh connection to {host} broke",
        "`{command} true` shows whether it can be reached again",
    ),
]
_CASES = [(re.compile(pattern), build) for pattern, build in _TABLE]
