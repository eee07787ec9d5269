"""Keys: who is who, who may come in, and the sockets they open; on both machines, in server and client.

Every connection is ZeroMQ CURVE: the server has a key pair, each client has one, and the server
admits only the client keys in its `Keyring`. The files, all 0600 in the configuration directory:

server_key           this user's server: one for all his sessions and machines, so that pins outlive restarts
client_key           this user as a client
authorized_clients   lines `KEY NAME`: other clients that may come in
known_servers        lines `KEY LABEL DATE`: servers whose key this user trusts (pins)

A pin is a key or a name, never a host and port: behind a tunnel every server is `localhost:55555`.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

from ._config import config_directory, private_directory, read_private, write_private
from ._errors import RemoterError
from ._messages import LONGEST_MESSAGE
from ._words import WORDS

log = logging.getLogger("remoter.security")

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"remoter"

HANDSHAKE_TIME = 10_000
"""Milliseconds for the whole of a CURVE handshake."""

HEARTBEAT_INTERVAL = 5_000
HEARTBEAT_TIMEOUT = 30_000
"""Milliseconds of silence after which a peer is given up: long enough to survive a hiccup of the network."""

HIGH_WATER = 64
"""Messages that may wait in one direction for one peer, before a send says so."""

LINGER = 500
"""Milliseconds that closing a socket may take to send the rest."""


class KeyPair(NamedTuple):
    """A CURVE key pair in Z85, 40 characters each."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public!r})"  # a secret in a traceback or a log is a secret no more


INSECURE_KEYS = KeyPair(
    "dB1vpLa-gNkF?*qLHMfe4]{NLk78i397EwH?M{/3", ")hLcgKg!LTr-&nqifRk?Fk?VUH#c<XSgd$c9?h^!"
)
"""The key pair of every server started with `secure=False`. It is published here: it protects nothing."""


def check_libzmq() -> None:
    """Refuse to go on with a libzmq that is known to be unsafe.

    Raises:
        RemoterError: it is older than 4.3.5 or lacks CURVE.
    """
    version = zmq.zmq_version_info()
    if version >= (4, 3, 5) and zmq.has("curve"):
        return
    lacks = "" if zmq.has("curve") else ", without CURVE"
    raise RemoterError(
        "this libzmq cannot be used safely",
        cause=f"it is {zmq.zmq_version()}{lacks}; needed is 4.3.5 or newer with CURVE",
        hints="install pyzmq's own build: `pip install --force-reinstall pyzmq`",
        id="libzmq",
    )


# --- key pairs and their files ---------------------------------------------------------------


def new_keys() -> KeyPair:
    """A fresh key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def server_keys() -> KeyPair:
    """This user's key pair as a server; made at first use.

    Raises:
        RemoterError: the file is open to others, not ours, or damaged.
    """
    return load_or_make_keys(config_directory() / "server_key")


def client_keys() -> KeyPair:
    """This user's key pair as a client; made at first use.

    Raises:
        RemoterError: the file is open to others, not ours, or damaged.
    """
    return load_or_make_keys(config_directory() / "client_key")


def load_or_make_keys(path: Path) -> KeyPair:
    """The key pair of that file, which is made if it is missing.

    Of two processes that make it together one wins, and both return what then stands there.

    Raises:
        RemoterError: the file is open to others, not ours, or damaged.
    """
    with contextlib.suppress(FileNotFoundError):
        return _parse_keys(path, read_private(path))
    keys = new_keys()
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    write_private(draft, f"public {keys.public}\nsecret {keys.secret}\n".encode())
    try:
        _publish_once(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return _parse_keys(path, read_private(path))


def _publish_once(draft: Path, path: Path) -> None:
    """Give the finished file its name unless somebody else did: a link, unlike a rename, never replaces."""
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            draft.replace(path)


def _parse_keys(path: Path, content: bytes) -> KeyPair:
    fields = dict(line.split(" ", 1) for line in content.decode(errors="replace").splitlines() if " " in line)
    keys = KeyPair(fields.get("public", ""), fields.get("secret", ""))
    if is_key(keys.public) and is_key(keys.secret) and _public_of(keys.secret) == keys.public:
        return keys
    raise RemoterError(
        f"`{path}` holds no key pair",
        cause="it is damaged or was edited",
        hints=f"remove it, and a new one is made: `rm {path}`; whoever pinned the old key is told that it changed",
        id="private-file",
    )


def _public_of(secret: str) -> str:
    return zmq.curve_public(secret.encode()).decode()


def is_key(text: str) -> bool:
    """Whether the text is a CURVE key in Z85."""
    if len(text) != 40 or not text.isascii():
        return False
    try:
        return len(z85.decode(text.encode())) == 32
    except (ValueError, KeyError):
        return False


# --- who may come in -------------------------------------------------------------------------


def authorized_clients_path() -> Path:
    """The file that names other clients that may come in."""
    return config_directory() / "authorized_clients"


def authorize_client(public: str, name: str = "") -> None:
    """Let that client in, from now on, also in sessions that are running."""
    _check_key(public)
    _append_line(authorized_clients_path(), f"{public} {_one_line(name)}".rstrip())


class Keyring:
    """The client keys that a server admits. Any thread may ask and add.

    - this user's own client key, and `keys`: that of the connection record
    - `authorized_clients`: lines `KEY NAME`, read again when the file changes: taking a line out is enough to revoke
    - `clients_file` in the run directory: keys admitted by password; `add` appends to it, so that
      neither a reconnect nor a restarted server needs a new login
    - `admit_all`: everyone, for `secure=False`

    Raises:
        RemoterError: a file is open to others or not ours.
    """

    def __init__(
        self, keys: Iterable[str] = (), *, clients_file: Path | None = None, admit_all: bool = False
    ) -> None:
        self.admit_all = admit_all
        self._lock = threading.Lock()
        self._labels = dict.fromkeys([client_keys().public, *keys], "")
        self._authorized_path = authorized_clients_path()
        self._authorized: dict[str, str] = {}
        self._seen: tuple[int, int, int] | None = None
        self._clients_path = clients_file
        if clients_file is not None:
            self._labels.update(_read_key_lines(clients_file))
        self._read_authorized()

    def admits(self, public: str) -> bool:
        """Whether that client may come in."""
        if self.admit_all:
            return True
        with self._lock:
            if public in self._labels:
                return True
            try:
                self._read_authorized()
            except RemoterError as error:  # fail closed: nobody comes in by a file that others can write
                log.warning("nobody is admitted by `authorized_clients`: %s", error)
                self._authorized, self._seen = {}, None
            return public in self._authorized

    def add(self, public: str, label: str = "") -> None:
        """Admit that client for as long as the session lives."""
        _check_key(public)
        with self._lock:
            if public in self._labels:
                return
            if self._clients_path is not None:
                _append_line(self._clients_path, f"{public} {_one_line(label)}".rstrip())
            self._labels[public] = _one_line(label)

    def label_of(self, public: str) -> str:
        """What the key was admitted as; empty if nothing is known."""
        with self._lock:
            return self._labels.get(public) or self._authorized.get(public, "")

    def _read_authorized(self) -> None:
        try:
            status = self._authorized_path.stat()
        except OSError:
            self._authorized, self._seen = {}, None
            return
        stamp = (status.st_mtime_ns, status.st_ino, status.st_ctime_ns)
        if stamp != self._seen:
            self._authorized = dict(_read_key_lines(self._authorized_path))
            self._seen = stamp


def answer_zap(socket: zmq.Socket[bytes], keyring: Keyring) -> None:
    """Answer one request of libzmq, whether a client's key is admitted, if one waits.

    `socket` is a ROUTER or REP bound to ZAP_ADDRESS in the context of the server's socket. The
    admitted key becomes the `User-Id` of every message of that connection: unlike the routing
    id, no client can choose it.
    """
    try:
        frames = socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return
    start = frames.index(b"") + 1 if socket.type == zmq.ROUTER and b"" in frames else 0
    envelope, request = frames[:start], frames[start:]
    if len(request) < 2:
        return
    status, text, user = b"400", b"refused", b""
    if len(request) == 7 and request[0] == b"1.0" and request[5] == b"CURVE" and len(request[6]) == 32:
        public = z85.encode(request[6]).decode()
        if keyring.admits(public):
            status, text, user = b"200", b"", public.encode()
    with contextlib.suppress(zmq.ZMQError):
        socket.send_multipart([*envelope, b"1.0", request[1], status, text, user, b""], zmq.NOBLOCK)


# --- sockets ---------------------------------------------------------------------------------


def secure_server_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    keys: KeyPair,
    *,
    high_water: int = HIGH_WATER,
    longest: int = LONGEST_MESSAGE,
) -> zmq.Socket[bytes]:
    """A ROUTER with every safe setting, not yet bound.

    A send to a client that does not read raises zmq.Again, to one that is gone zmq.ZMQError
    (EHOSTUNREACH): nothing is dropped in silence. Without somebody who answers ZAP requests
    nobody is admitted.
    """
    check_libzmq()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # or libzmq admits everyone where nobody answers
    socket.setsockopt(zmq.BACKLOG, 512)
    _set_common(socket, high_water, longest)
    return socket


def secure_client_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    keys: KeyPair,
    server_public: str,
    *,
    high_water: int = HIGH_WATER,
    longest: int = LONGEST_MESSAGE,
    routing_id: bytes | None = None,
) -> zmq.Socket[bytes]:
    """A DEALER with every safe setting, not yet connected.

    It connects once: libzmq's own reconnecting is off, because it loses what was under way and
    ends for ever at the first odd answer. Each connection takes a fresh socket.
    """
    check_libzmq()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    socket.setsockopt(zmq.CURVE_SERVERKEY, server_public.encode())
    socket.setsockopt(zmq.RECONNECT_IVL, -1)
    if routing_id is not None:
        socket.setsockopt(zmq.ROUTING_ID, routing_id)
    _set_common(socket, high_water, longest)
    return socket


def _set_common(socket: zmq.Socket[bytes], high_water: int, longest: int) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, longest)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIME)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_INTERVAL)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT)
    socket.setsockopt(zmq.SNDHWM, high_water)
    socket.setsockopt(zmq.RCVHWM, high_water)
    socket.setsockopt(zmq.LINGER, LINGER)
    socket.setsockopt(zmq.IPV6, 1)


NOBLOCK, _POLLIN, _SNDMORE = int(zmq.NOBLOCK), int(zmq.POLLIN), int(zmq.SNDMORE)
"""As numbers: `|` and `&` of pyzmq's own enums take longer than a small message does."""


def is_readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message waits. Cheaper than an exception that says no."""
    return bool(int(socket.get(zmq.EVENTS)) & _POLLIN)


def receive_from(router: zmq.Socket[bytes]) -> list[bytes]:
    """The frames of the message that waits: whose it is, and what he says, normally in one."""
    frames = [router.recv(NOBLOCK)]
    while router.get(zmq.RCVMORE):
        frames.append(router.recv(NOBLOCK))
    return frames


def send_to(router: zmq.Socket[bytes], identity: bytes, payload: bytes) -> None:
    """Send that to one connection. Raises zmq.ZMQError: it is full, or gone."""
    router.send(identity, NOBLOCK | _SNDMORE)
    router.send(payload, NOBLOCK)


# --- fingerprints and pins -------------------------------------------------------------------


def fingerprint(public: str) -> str:
    """A server's public key as people compare it: `otter-lamp-nine-salt 3fa912bc77d0e1a4`.

    The words carry 40 bits of the key's sha256 and the digits the next 64. The words alone are
    for recognising; who compares both compares 104 bits, which nobody can hit with a key of his
    own (2**104 keys to try).
    """
    number = int.from_bytes(hashlib.sha256(b"remoter fingerprint\0" + z85.decode(public.encode())).digest())
    words = [WORDS[number >> shift & 1023] for shift in (246, 236, 226, 216)]
    return f"{'-'.join(words)} {number >> 152 & (1 << 64) - 1:016x}"


class Pin(NamedTuple):
    """A server's key that this user trusts."""

    public: str
    label: str
    date: str


class Pins:
    """The servers that this user trusts: `known_servers`, by key or by label, never by host and port."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or config_directory() / "known_servers"

    def __iter__(self) -> Iterator[Pin]:
        """Each key once, as it was trusted last. Raises RemoterError if others can write the file."""
        pins = {}
        for public, rest in _read_key_lines(self._path):
            label, _, date = rest.rpartition(" ")
            pins[public] = Pin(public, label, date)
        return iter(pins.values())

    def is_trusted(self, public: str) -> bool:
        """Whether this user trusts the server that has that key. The published one nobody can."""
        return public != INSECURE_KEYS.public and any(pin.public == public for pin in self)

    def label_of(self, public: str) -> str | None:
        """What this user calls the server that has that key."""
        return next((pin.label for pin in self if pin.public == public), None)

    def trust(self, public: str, label: str) -> None:
        """Trust that server from now on; another key of that label is trusted no more."""
        _check_key(public)
        if public == INSECURE_KEYS.public:
            raise RemoterError("the published key of `secure=False` cannot be trusted", id="insecure")
        label = _one_line(label) or "server"
        for pin in list(self):
            if pin.label == label and pin.public != public:
                self.forget(pin.public)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        _append_line(self._path, f"{public} {label} {today}")

    def forget(self, public: str) -> bool:
        """Trust that server no more. Returns whether it was trusted."""
        pins = list(self)
        kept = [pin for pin in pins if pin.public != public]
        if len(kept) < len(pins):
            write_private(self._path, "".join(f"{' '.join(pin)}\n" for pin in kept).encode())
        return len(kept) < len(pins)


# --- files of lines that begin with a key ----------------------------------------------------


def _read_key_lines(path: Path) -> list[tuple[str, str]]:
    """Key and rest of each line. Whatever does not begin with a key is a comment: `#` is a letter of Z85."""
    try:
        text = read_private(path).decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = [line.strip().partition(" ") for line in text.splitlines()]
    return [(key, rest.strip()) for key, _, rest in lines if is_key(key)]


def _append_line(path: Path, line: str) -> None:
    """Add the line in one write, so that processes that add together lose nothing."""
    private_directory(path.parent)
    begin = ""
    with contextlib.suppress(FileNotFoundError):
        content = read_private(path)  # refuses a file that others could have written
        begin = "\n" if content and not content.endswith(b"\n") else ""
    flags = (
        os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    descriptor = os.open(path, flags, 0o600)
    try:
        os.write(descriptor, f"{begin}{line}\n".encode())
    finally:
        os.close(descriptor)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _check_key(public: str) -> None:
    if not is_key(public):
        raise RemoterError(
            f"`{public}` is not a public key", cause="a key has 40 characters in Z85", id="address"
        )
