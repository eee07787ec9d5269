"""The hello dialogue: what a server is, and the login by password; what both ends say, and the server's end, in its door.

Spoken in the clear on the same port as everything else, before any ZeroMQ:

    client   REMOTER/1\\n
    server   REMOTER/1\\n  Hint         only a hint: nothing in it is believed before a pin or a password proves it
    client   Guess                     a client that only asks closes here
    server   Wait ...  Challenge       `Wait`: the guess is queued, for about so long
    client   Proof
    server   Admitted | Refused        after `Refused` another Guess may follow, `maxretry` in all

Each frame is 2 bytes of length (4096 at most) and JSON. Each step may take 10 s. The
cryptography is in `_password`, the client's end in `_login`. Guesses are never refused, only
delayed (`_turns`), and clients that have a key do not come here at all.
"""

from __future__ import annotations

import asyncio
import logging
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import msgspec

from . import __version__
from ._messages import PROTOCOL
from ._security import is_key
from ._turns import Turns

if TYPE_CHECKING:
    from ._password import PasswordVerifier
    from ._security import Keyring

log = logging.getLogger("remoter.hello")

GREETING = b"REMOTER/1\n"
LONGEST_GREETING = 16
LONGEST_FRAME = 4096

STEP = 10.0
"""Seconds that either end may take for one step. A person is asked for his password before."""

PACE = 0.1
"""Seconds: the server answers a guess at a multiple of this after it came, whatever the work took."""


# --- what is said ----------------------------------------------------------------------------


class Said(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="type"):
    """The common shape: a JSON object whose `type` names what is said."""


class Hint(Said, tag="hint"):
    """What this server is: its public key, whether it encrypts, how one may come in, which protocols it speaks."""

    security: Literal["curve", "none"]
    public: str
    protocol: tuple[int, int]  # no default: the two ends would fill in different ones
    auth: tuple[str, ...] = ()
    salt: bytes = b""
    stretching: str = ""
    version: str = ""


class Guess(Said, tag="guess"):
    """The client's SPAKE2 message."""

    a: bytes


class Wait(Said, tag="wait"):
    """The guess is queued and has its turn in about so many seconds."""

    seconds: float


class Challenge(Said, tag="challenge"):
    """The server's SPAKE2 message."""

    b: bytes


class Proof(Said, tag="proof"):
    """The client's key, and the proof that it knows the password."""

    public: str
    proof: bytes


class Admitted(Said, tag="admitted"):
    """The client's key is admitted; the server's key, and the proof that it knows the password too."""

    public: str
    proof: bytes


class Refused(Said, tag="refused"):
    """Not admitted: `password` (wrong) or `method` (nothing to log in to). The next guess has its turn in `seconds`; `left` more here."""

    error: str
    seconds: float = 0.0
    left: int = 0


class NotAFrameError(ValueError):
    """Bytes that are nothing the other end may say here."""


Frame = TypeVar("Frame", bound=Said)
_encoder = msgspec.json.Encoder()
GUESS = msgspec.json.Decoder(Guess)
PROOF = msgspec.json.Decoder(Proof)
HINT = msgspec.json.Decoder(Hint)
TURN: msgspec.json.Decoder[Wait | Challenge | Refused] = msgspec.json.Decoder(Wait | Challenge | Refused)
VERDICT: msgspec.json.Decoder[Admitted | Refused] = msgspec.json.Decoder(Admitted | Refused)


def encode_frame(said: Said) -> bytes:
    """One frame as it goes over the wire."""
    body = _encoder.encode(said)
    return struct.pack("!H", len(body)) + body


def decode_body(decoder: msgspec.json.Decoder[Frame], body: bytes) -> Frame:
    """What a frame's body says. Raises NotAFrameError."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        # The words may repeat what was sent: one short line of it is enough for a log.
        raise NotAFrameError(str(error)[:200].encode("unicode_escape").decode()) from None


def body_length(header: bytes) -> int:
    """How long the frame's body is. Raises NotAFrameError."""
    (length,) = struct.unpack("!H", header)
    if not 0 < length <= LONGEST_FRAME:
        raise NotAFrameError(f"a frame of {length} bytes")
    return int(length)


# --- the server's end ------------------------------------------------------------------------


class Line(Protocol):
    """The bytes of one connection, as the door gives them (an asyncio.StreamReader reads the same way)."""

    async def readexactly(self, n: int, /) -> bytes:
        """So many bytes. Raises EOFError if the other end closes before."""

    async def write(self, data: bytes, /) -> None:
        """Send all of it. Raises OSError."""


class Hello:
    """The server's end: what this server says of itself, and whom it admits by password.

    Used on one event loop (the door's); cryptography runs in a thread of its own.

    Args:
        public: the server's public key.
        keyring: where a client's key goes that was admitted.
        password: none means that nobody can log in.
        secure: false for a server with the published keys, which asks for nothing.
        maxretry: guesses for each connection.
    """

    def __init__(
        self,
        public: str,
        keyring: Keyring,
        password: str | None,
        *,
        secure: bool = True,
        maxretry: int = 5,
        turns: Turns | None = None,
    ) -> None:
        from ._password import PasswordVerifier

        self._public = public
        self._keyring = keyring
        self._retries = max(1, maxretry)
        self._turns = turns or Turns()
        self._executor = ThreadPoolExecutor(1, "remoter-login")
        self._verifier: PasswordVerifier | None = None
        if password is not None and secure:
            self._verifier = PasswordVerifier(password)
            hint = Hint(
                security="curve",
                public=public,
                protocol=PROTOCOL,
                auth=("key", "password"),
                salt=self._verifier.salt,
                stretching=self._verifier.stretching,
                version=__version__,
            )
        else:
            hint = Hint(
                security="curve" if secure else "none",
                public=public,
                protocol=PROTOCOL,
                auth=("key",) if secure else (),
                version=__version__,
            )
        self._hint = _encoder.encode(hint)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def answer(self, line: Line, address: str) -> None:
        """Hold the dialogue with one client that came from that IP address; returns when it is over."""
        try:
            await self._dialogue(line, address)
        except (EOFError, OSError, TimeoutError) as error:
            log.debug("hello with %s ended: %s", address, error)
        except NotAFrameError as error:
            log.info("hello with %s ended: it said %s", address, error)

    async def _dialogue(self, line: Line, address: str) -> None:
        async with asyncio.timeout(STEP):
            greeting = await self._read_greeting(line)
            await line.write(GREETING + struct.pack("!H", len(self._hint)) + self._hint)
        for left in range(self._retries - 1, -1, -1):
            guess = await _read(line, GUESS)
            if self._verifier is None:
                await line.write(encode_frame(Refused(error="method")))
                return
            if await self._is_right(line, address, guess, greeting):
                return
            self._turns.failed(address)
            seconds = self._turns.seconds_until(address)
            log.warning("wrong password from %s", address)
            await line.write(encode_frame(Refused(error="password", seconds=round(seconds, 1), left=left)))

    async def _read_greeting(self, line: Line) -> bytes:
        greeting = b""
        while not greeting.endswith(b"\n"):
            greeting += await line.readexactly(1)
            if len(greeting) > LONGEST_GREETING:
                raise NotAFrameError("no greeting")
        if not re.fullmatch(rb"REMOTER/[0-9]{1,3}\n", greeting):
            raise NotAFrameError(f"the greeting {greeting!r}")
        return greeting

    async def _is_right(self, line: Line, address: str, guess: Guess, greeting: bytes) -> bool:
        """One guess: wait for its turn, challenge, check, and admit the client if it is right."""
        from ._password import WrongPasswordError

        assert self._verifier is not None
        loop = asyncio.get_running_loop()
        await self._turn(line, address)
        began = loop.time()
        try:
            proof = await loop.run_in_executor(self._executor, self._verifier.begin, guess.a)
        except WrongPasswordError:
            raise NotAFrameError("a malformed guess") from None
        await _keep_pace(began)
        await line.write(encode_frame(Challenge(b=proof.message)))
        theirs = await _read(line, PROOF)
        try:
            proof.check(theirs.proof, greeting + GREETING, theirs.public)
        except WrongPasswordError:
            return False
        if not is_key(theirs.public):
            raise NotAFrameError("a client key that is none")
        self._turns.succeeded(address)
        self._keyring.add(theirs.public, f"password login from {address}")
        log.info("admitted a client from %s by password", address)
        answer = Admitted(public=self._public, proof=proof.answer(self._hint, self._public))
        await line.write(encode_frame(answer))
        return True

    async def _turn(self, line: Line, address: str) -> None:
        """Wait for the turn to guess. Raises EOFError if the client leaves: his guess must not count."""
        turn = asyncio.ensure_future(
            self._turns.take(address, lambda seconds: line.write(encode_frame(Wait(seconds=seconds))))
        )
        leaves = asyncio.ensure_future(line.readexactly(1))  # he has nothing to say now
        try:
            await asyncio.wait([turn, leaves], return_when=asyncio.FIRST_COMPLETED)
            if leaves.done():
                leaves.exception()
                raise EOFError("it left before its turn")
            turn.result()
        finally:
            for task in (turn, leaves):
                task.cancel()
            await asyncio.gather(turn, leaves, return_exceptions=True)


async def _read(line: Line, decoder: msgspec.json.Decoder[Frame]) -> Frame:
    async with asyncio.timeout(STEP):
        length = body_length(await line.readexactly(2))
        return decode_body(decoder, await line.readexactly(length))


async def _keep_pace(began: float) -> None:
    elapsed = asyncio.get_running_loop().time() - began
    await asyncio.sleep(PACE - elapsed % PACE)
