"""The password login as cryptography: argon2id, SPAKE2 and two proofs; on both machines, in server and client.

Pure computation: the words on the wire are in `_hello`. The two ends prove to each other that
they know the same password and bind both CURVE public keys to the proof, so that whoever sits
between them (a relay does) learns nothing, can replace nothing, and gets one guess for each
connection that he spoils:

    w    = argon2id(sha512(NFKC(password)), salt)             64 MiB, 3 passes: a stolen `w` is slow to guess from
    A, B = the two SPAKE2 messages made with w                A by the client, B by the server; K = the shared key
    T    = label, greeting, identities, A, B, C               every field with its length in front; C = the client's key
    Pc   = HMAC(HKDF(K, "client"), T)                         the client proves first: a prober learns nothing
    Ps   = HMAC(HKDF(K, "server"), T, hint, S)                hint = the server's whole hello as the client heard it

After Pc the server admits C: only somebody who knows the password could have named it. After Ps
the client knows that S, the version, the salt and all else in the hello came from the server.

The `spake2` package is not constant-time. Therefore both ends answer at fixed moments
(`PACE` in `_hello`), and what it computes with is `w`, never the password.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import unicodedata

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B

from ._errors import RemoterError

STRETCHING = {"argon2id-3-65536-1": (3, 65536, 1)}
"""By name: passes, KiB of memory, lanes. The cost never comes from the wire.

One lane, because OpenSSL computes several in threads of a pool that two derivations at once
share: each takes part of it and waits for ever for the rest (seen with OpenSSL 4.0 and 4 lanes).
An attacker gains nothing by it; he would rather have more lanes."""

DEFAULT_STRETCHING = "argon2id-3-65536-1"

_one_at_a_time = threading.Lock()  # 64 MiB once, however many threads log in

_LABEL = b"remoter password login 1"
_CLIENT, _SERVER = b"remoter client", b"remoter server"


class WrongPasswordError(Exception):
    """The other end does not know the password, or somebody changed what was said."""


def stretch(password: str, salt: bytes, name: str = DEFAULT_STRETCHING) -> bytes:
    """The password made slow to guess: 32 bytes after about 0.1 s and 64 MiB.

    The same password typed on another keyboard (composed or decomposed accents, wide letters)
    is the same; a very long one is hashed before anything.

    Raises:
        KeyError: no such way of stretching.
        RemoterError: this machine's OpenSSL has no argon2id.
    """
    passes, memory, lanes = STRETCHING[name]
    text = unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
    try:
        kdf = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory)
        with _one_at_a_time:
            return kdf.derive(hashlib.sha512(text).digest())
    except UnsupportedAlgorithm:
        raise RemoterError(
            "passwords need argon2id, which the OpenSSL here does not have",
            cause="it is older than 3.2",
            hints="install cryptography's own build: `pip install --force-reinstall cryptography`",
            id="argon2id",
        ) from None


def new_salt() -> bytes:
    """A salt for one server's life."""
    return secrets.token_bytes(16)


def transcript(*fields: bytes) -> bytes:
    """The fields with their lengths in front: no two different lists read the same."""
    return b"".join(len(field).to_bytes(4) + field for field in fields)


class ClientProof:
    """The client's side of one guess: `message`, then `answer`, then `check`."""

    def __init__(self, stretched: bytes) -> None:
        self._spake = SPAKE2_A(stretched, idA=_CLIENT, idB=_SERVER)
        self.message: bytes = self._spake.start()
        self._said = b""
        self._key = b""

    def answer(self, theirs: bytes, greeting: bytes, client_public: str) -> bytes:
        """The proof for the server. Raises WrongPasswordError if its message is malformed."""
        self._key = _finish(self._spake, theirs)
        self._said = _said(greeting, self.message, theirs, client_public)
        return _proof(self._key, b"client", self._said)

    def check(self, proof: bytes, hint: bytes, server_public: str) -> None:
        """Raises WrongPasswordError unless the server knows the password and said that hint."""
        said = self._said + transcript(hint, server_public.encode())
        if not hmac.compare_digest(proof, _proof(self._key, b"server", said)):
            raise WrongPasswordError


class ServerProof:
    """The server's side of one guess: `message`, then `check`, then `answer`."""

    def __init__(self, stretched: bytes, theirs: bytes) -> None:
        """Answer the client's message. Raises WrongPasswordError if it is malformed."""
        spake = SPAKE2_B(stretched, idA=_CLIENT, idB=_SERVER)
        self.message: bytes = spake.start()
        self._theirs = theirs
        self._key = _finish(spake, theirs)
        self._said = b""

    def check(self, proof: bytes, greeting: bytes, client_public: str) -> None:
        """Raises WrongPasswordError unless the client knows the password and named that key."""
        self._said = _said(greeting, self._theirs, self.message, client_public)
        if not hmac.compare_digest(proof, _proof(self._key, b"client", self._said)):
            raise WrongPasswordError

    def answer(self, hint: bytes, server_public: str) -> bytes:
        """The proof for the client; only after `check`."""
        return _proof(self._key, b"server", self._said + transcript(hint, server_public.encode()))


class PasswordVerifier:
    """What a server keeps of its password.

    It is stretched when the first client tries it: a session that is only reached by key never
    spends the 64 MiB and the tenth of a second.

    Raises:
        RemoterError: the password is empty.
    """

    stretching = DEFAULT_STRETCHING

    def __init__(self, password: str) -> None:
        if not password:
            raise RemoterError(
                "the password is empty", hints="leave it out, and one is made up", id="password"
            )
        self.salt = new_salt()
        self._password = password
        self._stretched: bytes | None = None

    def begin(self, theirs: bytes) -> ServerProof:
        """Answer a client's first message: some work, so not on an event loop, and in one thread at a time.

        Raises:
            WrongPasswordError: the message is malformed.
        """
        if self._stretched is None:
            self._stretched = stretch(self._password, self.salt, self.stretching)
        return ServerProof(self._stretched, theirs)


def _finish(spake: SPAKE2_A | SPAKE2_B, theirs: bytes) -> bytes:
    if len(theirs) != 33:
        raise WrongPasswordError
    try:
        key: bytes = spake.finish(theirs)
    except Exception:  # of several kinds: not a point, not in the group, reflected, the wrong side
        raise WrongPasswordError from None
    return key


def _said(greeting: bytes, a: bytes, b: bytes, client_public: str) -> bytes:
    return transcript(_LABEL, greeting, _CLIENT, _SERVER, a, b, client_public.encode())


def _proof(key: bytes, end: bytes, said: bytes) -> bytes:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=transcript(_LABEL, end)).derive(key)
    return hmac.digest(derived, said, "sha256")
