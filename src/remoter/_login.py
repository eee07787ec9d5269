"""Asking a server what it is, and logging in by password: the client's end of the hello, in the client's process.

Plain blocking sockets with a deadline for each step, in the thread that calls. The other end,
and what is said, are in `_hello`.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from . import __version__
from ._address import through_ssh
from ._errors import AuthError, ConnectError, KeyChangedError, VersionError
from ._hello import (
    GREETING,
    HINT,
    LONGEST_GREETING,
    STEP,
    TURN,
    VERDICT,
    Admitted,
    Challenge,
    Frame,
    Guess,
    NotAFrameError,
    Proof,
    Refused,
    Wait,
    body_length,
    decode_body,
    encode_frame,
)
from ._messages import PROTOCOL, common_protocol
from ._security import INSECURE_KEYS, KeyPair, fingerprint, is_key

if TYPE_CHECKING:
    from ._password import ClientProof

PACE = 0.02
"""Seconds: the client answers at a multiple of this, so that the time its cryptography takes tells nothing."""

PATIENCE = 120.0
"""Seconds that a client waits for its turn to guess, in all."""


class ServerHello(NamedTuple):
    """What a server says of itself. Nothing of it is proved yet: believe `public` only if it is pinned or logged in to."""

    public: str
    secure: bool
    auth: tuple[str, ...]
    version: str
    protocol: tuple[int, int]
    salt: bytes
    stretching: str


def ask_server(host: str, port: int, timeout: float = STEP, *, secure: bool | None = True) -> ServerHello:
    """Ask what listens there. Blocks for `timeout` seconds at most.

    `secure`: what the caller wants; None takes either.

    Raises:
        ConnectError: `no-host`, `refused`, `no-answer`, `closed` or `not-remoter`.
        AuthError: `insecure`: one end encrypts and the other does not.
        VersionError: no common protocol.
    """
    with _call(host, port, timeout) as caller:
        hello, _ = caller.ask(timeout)
        caller.check(hello, secure)
        return hello


def login(
    host: str,
    port: int,
    password: str | Iterable[str],
    keys: KeyPair,
    *,
    expected: str | None = None,
    timeout: float = STEP,
    on_wait: Callable[[float], None] | None = None,
    patience: float = PATIENCE,
) -> str:
    """Have `keys` admitted by password (of several: by the first that is right). Returns the server's proven public key.

    Each step may take `timeout` seconds. While the guess waits for its turn, `on_wait` is told the
    seconds, and after `patience` seconds it is given up.

    Raises:
        AuthError: `password`: wrong, or no turn in time; `insecure`; `impostor`: the server does not know it.
        KeyChangedError: the server's key is not `expected`; no guess was made.
        ConnectError, VersionError: as `ask_server`.
    """
    from ._password import STRETCHING, ClientProof, WrongPasswordError, stretch

    with _call(host, port, timeout) as caller:
        hello, hint = caller.ask(timeout)
        caller.check(hello, True)
        if expected is not None and hello.public != expected:
            raise key_changed(caller.where, expected, hello.public)
        if "password" not in hello.auth:
            raise AuthError(
                f"`{caller.where}` takes no password",
                hints="it takes keys: see `remoter keys`",
                id="password",
            )
        if hello.stretching not in STRETCHING:
            raise VersionError(
                f"`{caller.where}` wants passwords stretched in a way that is unknown here",
                cause=f"`{hello.stretching}`; here remoter is {__version__}, there {hello.version}",
            )
        refused = Refused(error="password")
        for one in [password] if isinstance(password, str) else password:
            began = time.monotonic()
            guess = ClientProof(stretch(one, hello.salt, hello.stretching))
            _sleep_to_pace(began)
            verdict = caller.guess(guess, keys.public, timeout, on_wait, patience)
            if isinstance(verdict, Admitted):
                try:
                    guess.check(verdict.proof, hint, verdict.public)
                except WrongPasswordError:
                    raise _impostor(caller.where) from None
                if verdict.public != hello.public:
                    raise _impostor(caller.where)
                return verdict.public
            refused = verdict
            if not refused.left:
                break
        raise _wrong_password(caller.where, refused.seconds)


class _Caller:
    """The client's end of one connection, with a deadline for each step."""

    def __init__(self, host: str, port: int, connection: socket.socket) -> None:
        self.host, self.port = host, port
        self.where = place(host, port)
        self._connection = connection
        self._read = b""

    def ask(self, timeout: float) -> tuple[ServerHello, bytes]:
        """Greet, and take the server's hint: read, and as it came."""
        deadline = time.monotonic() + timeout
        self._send(GREETING, timeout)
        greeting = self._greeting(deadline)
        if greeting != GREETING:
            raise VersionError(
                f"no common way to say hello with `{self.where}`",
                cause=f"it says `{greeting.decode('ascii', 'replace').strip()}`, here it is `REMOTER/1`",
                hints="install the same version of remoter at both ends",
            )
        body = self._frame(deadline)
        hint = self._decoded(HINT, body)
        if not is_key(hint.public):
            raise self._not_remoter("it names no key", body)
        secure = hint.security == "curve" and hint.public != INSECURE_KEYS.public
        hello = ServerHello(
            hint.public, secure, hint.auth, hint.version, hint.protocol, hint.salt, hint.stretching
        )
        return hello, body

    def check(self, hello: ServerHello, secure: bool | None) -> None:
        """Refuse a server that cannot be meant."""
        if common_protocol(hello.protocol) is None:
            raise VersionError(
                f"no common protocol: here {_span(PROTOCOL)} (remoter {__version__}), "
                f"on {self.host} {_span(hello.protocol)} (remoter {hello.version})",
                hints=f"on {'this machine' if hello.protocol > PROTOCOL else self.host} run `pip install -U remoter`",
            )
        if secure and not hello.secure:
            raise AuthError(
                f"`{self.where}` does not encrypt",
                cause="it was started with `secure=False`, or somebody in between says so",
                hints="start it without; or give `secure=False` here too, and everyone on the way can read and change all",
                id="insecure",
            )
        if secure is False and hello.secure:
            raise AuthError(
                f"`{self.where}` encrypts, but `secure=False` was given",
                hints="leave `secure=False` out",
                id="insecure",
            )

    def guess(
        self,
        guess: ClientProof,
        public: str,
        timeout: float,
        on_wait: Callable[[float], None] | None,
        patience: float,
    ) -> Admitted | Refused:
        """One guess, from the client's message to the server's verdict."""
        from ._password import WrongPasswordError

        self._send(encode_frame(Guess(a=guess.message)), timeout)
        said: Wait | Challenge | Refused = Wait(seconds=0)
        end = time.monotonic() + patience
        while isinstance(said, Wait):
            until = time.monotonic() + timeout + min(said.seconds, STEP)
            said = self._decoded(TURN, self._frame(until))
            if isinstance(said, Wait):
                if time.monotonic() + said.seconds > end:
                    raise _wrong_password(self.where, said.seconds, "too many guesses were made")
                if on_wait is not None:
                    on_wait(said.seconds)
        if isinstance(said, Refused):
            return said
        began = time.monotonic()
        try:
            proof = guess.answer(said.b, GREETING + GREETING, public)
        except WrongPasswordError:
            raise _impostor(self.where) from None
        _sleep_to_pace(began)
        self._send(encode_frame(Proof(public=public, proof=proof)), timeout)
        return self._decoded(VERDICT, self._frame(time.monotonic() + timeout))

    def _greeting(self, deadline: float) -> bytes:
        """The server's first line, or an error that says who answers there instead."""
        try:
            while b"\n" not in self._read and len(self._read) < LONGEST_GREETING:
                self._receive(deadline)
                if not b"REMOTER/".startswith(self._read[:8]):
                    self._linger()
                    break
        except EOFError:
            if not self._read:
                raise ConnectError(
                    f"`{self.where}` closed the connection without a word",
                    cause="the server there just ended, or a relay or an ssh tunnel listens whose server is down",
                    hints="on the server's machine look with `remoter ls`",
                    id="closed",
                ) from None
        if not re.match(rb"REMOTER/[0-9]{1,3}\n", self._read):
            raise self._not_remoter(*self._who_answers(self._read))
        greeting, newline, self._read = self._read.partition(b"\n")
        return greeting + newline

    def _linger(self) -> None:
        """A little more of what a stranger says, to name him."""
        with contextlib.suppress(EOFError, ConnectError):
            while len(self._read) < 64:
                self._receive(time.monotonic() + 0.2)

    def _who_answers(self, said: bytes) -> tuple[str, bytes]:
        if said.startswith(b"SSH-"):
            return f"ssh answers there; {through_ssh(self.host)}", said
        if said.startswith(b"HTTP/") or b"<html" in said.lower():
            return "a web server answers there", said
        if said[:1] == b"\x15" and said[1:2] == b"\x03":
            return "something that speaks TLS answers there", said
        if said[:1] == b"\xff":
            mechanism = _mechanism(self.host, self.port)
            return f"a ZeroMQ socket answers there ({mechanism}), perhaps a Jupyter kernel", said
        return "", said

    def _not_remoter(self, who: str, said: bytes) -> ConnectError:
        cause = who or f"it says {said[:40]!r}"
        hints = (
            []
            if "through ssh" in cause
            else ["the port of a session is printed when it starts; see `remoter ls` there"]
        )
        return ConnectError(
            f"what listens on `{self.where}` is no remoter server", cause=cause, hints=hints, id="not-remoter"
        )

    def _decoded(self, decoder: msgspec.json.Decoder[Frame], body: bytes) -> Frame:
        try:
            return decode_body(decoder, body)
        except NotAFrameError as error:
            raise self._not_remoter(f"it says what cannot be read: {error}", body) from None

    def _frame(self, deadline: float) -> bytes:
        try:
            while len(self._read) < 2:
                self._receive(deadline)
            length = body_length(self._read[:2])
            while len(self._read) < 2 + length:
                self._receive(deadline)
        except EOFError:
            raise ConnectError(
                f"`{self.where}` closed the connection in the middle of the hello", id="closed"
            ) from None
        except NotAFrameError as error:
            raise self._not_remoter(str(error), self._read) from None
        body, self._read = self._read[2 : 2 + length], self._read[2 + length :]
        return body

    def _receive(self, deadline: float) -> None:
        try:
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._connection.recv(8192)
        except TimeoutError:
            raise ConnectError(
                f"`{self.where}` takes the connection but says nothing",
                cause="it is stopped, overloaded, or no remoter server",
                id="no-answer",
            ) from None
        except OSError:
            data = b""
        if not data:
            raise EOFError
        self._read += data

    def _send(self, data: bytes, timeout: float) -> None:
        self._connection.settimeout(timeout)
        with contextlib.suppress(OSError):  # the answer, or that there is none, tells more
            self._connection.sendall(data)


@contextlib.contextmanager
def _call(host: str, port: int, timeout: float) -> Iterator[_Caller]:
    with _connect(host, port, timeout) as connection:
        yield _Caller(host, port, connection)


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection to the first address of that host that takes it."""
    where = place(host, port)
    began = time.monotonic()
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConnectError(
            f"no machine named `{host}`",
            cause=getattr(error, "strerror", None) or str(error),
            hints="check the spelling, or give the IP address",
            id="no-host",
        ) from None
    failures: list[OSError] = []
    for left, (family, kind, protocol, _, address) in zip(
        range(len(addresses), 0, -1), addresses, strict=True
    ):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(max(0.05, (began + timeout - time.monotonic()) / left))
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failures.append(error)
        else:
            return connection
    elapsed = time.monotonic() - began
    if any(isinstance(error, ConnectionRefusedError) for error in failures):
        raise ConnectError(
            f"nothing listens on `{where}`",
            cause=f"connection refused in {elapsed * 1000:.0f} ms, so the machine is up and reachable",
            hints=[
                "start a session there: `remoter server`"
                if _ways_around(host)
                else "start a session: `remoter server`; or is this the end of a tunnel, whose `ssh -L` has ended?"
            ]
            + [f"one that listens only on its own machine is reached {way}" for way in _ways_around(host)],
            id="refused",
        )
    why = "" if isinstance(failures[-1], TimeoutError) else f" ({failures[-1].strerror})"
    raise ConnectError(
        f"no answer from `{where}`",
        cause=f"none in {elapsed:.1f} s{why}: wrong machine, wrong port, or a firewall",
        hints=_ways_around(host),
        id="no-answer",
    )


def _ways_around(host: str) -> list[str]:
    """How ssh could help, where the host is another machine."""
    return [] if host in ("localhost", "127.0.0.1", "::1") else [through_ssh(host)]


def _mechanism(host: str, port: int) -> str:
    """What a ZeroMQ socket says of its security: 11 bytes are asked, 64 answered, the name at 12 to 31."""
    said = b""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(b"\xff" + bytes(7) + b"\x01\x7f\x03")
        while len(said) < 64 and (data := connection.recv(64 - len(said))):
            said += data
    return said[12:32].rstrip(b"\0").decode("ascii", "replace") or "unknown security"


def _sleep_to_pace(began: float) -> None:
    elapsed = time.monotonic() - began
    time.sleep(PACE - elapsed % PACE)


def place(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _span(protocol: tuple[int, int]) -> str:
    oldest, newest = protocol
    return str(newest) if oldest == newest else f"{oldest} to {newest}"


def _wrong_password(where: str, seconds: float, why: str = "refused by the server") -> AuthError:
    until = f"; next try in {seconds:.0f} s" if seconds >= 0.5 else ""
    return AuthError(
        f"wrong password for `{where}`" if why.startswith("refused") else f"no turn to log in to `{where}`",
        cause=why + until,
        hints="the server printed it when it started, unless it was given one",
        id="password",
    )


def _impostor(where: str) -> AuthError:
    return AuthError(
        f"the server on `{where}` does not know the password",
        cause="it could not prove it: it is another server, or someone sits in between",
        hints="type no password there; compare its key with `remoter keys` on the server's machine",
        id="impostor",
    )


def key_changed(where: str, expected: str, found: str, since: str = "") -> KeyChangedError:
    """The server's key is not the one that was pinned, saved on the date `since` if known."""
    saved = f"the one saved on {since}" if since else "the one that was given"
    return KeyChangedError(
        f"the key of `{where}` is not {saved}",
        cause=f"expected {fingerprint(expected)}, found {fingerprint(found)}",
        hints=[
            "if the server was set up anew, compare with `remoter keys` on its machine",
            "if it was not, someone may sit in between: type no password",
        ],
    )
