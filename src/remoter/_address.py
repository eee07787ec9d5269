"""What an address means, as text alone; on both machines, in every process.

Five ways to name a session, tried in this order:

    main                               a word: a session here, else a saved name, else a host
    big:55555   [fe80::1]:55555        a host and its port; also tcp://big:55555
    remoter://big:55555/#KEY           the same, with the server's public key: a pin, no secret
    ssh://user@big:22/main             a session on a host that ssh reaches
    (nothing)                          my one session here

Nothing here looks at the network or at files: which meaning a word has is found later.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal

from ._errors import AddressError

DEFAULT_PORT = 55555
HIGHEST_PORT = 65535
LONGEST_NAME = 40  # of a session
LOWEST_PORT = 1024  # what is below needs root

_WORD = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)\Z", re.DOTALL)

_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_TO_Z85 = str.maketrans(_B85, _Z85)
_FROM_Z85 = str.maketrans(_Z85, _B85)


@dataclass(frozen=True)
class Address:
    """Where a session is, as far as its text tells; `str()` is what to type again."""

    kind: Literal["word", "tcp", "ssh", "none"]
    word: str = ""
    host: str = ""
    port: int | None = None
    user: str = ""
    name: str = ""
    key: str | None = None
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.kind == "none":
            return ""
        if self.kind == "word":
            return self.word
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = host if self.port is None else f"{host}:{self.port}"
        if self.kind == "ssh":
            user = f"{self.user}@" if self.user else ""
            return f"ssh://{user}{place}" + (f"/{self.name}" if self.name else "")
        return f"remoter://{place}/#{key_to_text(self.key)}" if self.key else place


def parse(text: str | None, port: int | str | None = None) -> Address:
    """The address that `text` is, with the port that was given beside it.

    Raises:
        AddressError: it cannot be meant; the hint says what to write.
    """
    if text is not None and not isinstance(text, str):
        raise AddressError(
            f"address `{text!r}` is not a text", hints="write a name, or host and port as `big:55555`"
        )
    text = (text or "").strip()
    given = None if port is None else _port_to_reach(port)
    if not text:
        if given is None:
            return Address("none")
        return Address("tcp", host="localhost", port=given)
    if len(text) > 1000:
        raise AddressError(f"address `{text[:40]}...` is too long")
    if not text.isprintable():
        raise AddressError(f"address {text!r} has characters that cannot be meant")
    match = _SCHEME.match(text)
    if not match:
        return _plain(text, text, given)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "ssh":
        return _ssh(text, rest, given)
    if scheme == "remoter":
        rest, _, key = rest.partition("#")
        return _place(text, _without_slash(text, rest), given, key=_key_of(text, key) if key else None)
    if scheme == "tcp":
        return _place(text, _without_slash(text, rest), given)
    place = re.split(r"[/?#]", rest)[0].rpartition("@")[2]
    raise AddressError(
        f"address `{text}` has a protocol that remoter does not speak",
        hints=f"write `{place or 'big:55555'}`",
    )


def check_port(value: int | str) -> int:
    """The port as a number: 1024 to 65535, or 0 for a free one.

    Raises:
        AddressError: it is no such number.
    """
    number = _port_number(value)
    if 0 < number < LOWEST_PORT:
        raise AddressError(
            f"port `{number}` needs root; use 1024 or more",
            hints=f"leave it out for {DEFAULT_PORT}",
            id="port",
        )
    return number


def through_ssh(host: str, name: str = "") -> str:
    """What to type to reach a session on that host where only ssh comes through."""
    return f"through ssh: `remoter client {Address('ssh', host=host, name=name)}`"


def key_to_text(z85: str) -> str:
    """The public key (Z85, 40 characters) as it stands in an address (base64url, 43 characters)."""
    raw = base64.b85decode(z85.translate(_FROM_Z85))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def key_from_text(text: str) -> str:
    """The public key of an address as Z85.

    Raises:
        AddressError: it is no key.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}", text):
        raise AddressError(
            f"key `{text}` is not a server's public key",
            cause=f"a key has 43 letters, digits, `-` and `_`, this has {len(text)} characters",
            hints="copy the whole address that the server printed",
        )
    raw = base64.urlsafe_b64decode(text + "=")
    return base64.b85encode(raw).decode().translate(_TO_Z85)


# --- the parts -------------------------------------------------------------------------------


def _plain(text: str, rest: str, given: int | None) -> Address:
    """A word, or host:port without a protocol in front."""
    if "@" in rest:
        raise AddressError(
            f"address `{text}` names a user, which only ssh knows",
            hints=f"write `ssh://{rest.partition(':')[0]}`",
        )
    if "/" in rest or "\\" in rest:
        raise AddressError(
            f"address `{text}` is no name and no host",
            hints="write the name of a session, or host and port as `big:55555`",
        )
    if given is None and ":" not in rest and "[" not in rest:
        return Address("word", word=_checked(text, rest), text=text)
    return _place(text, rest, given)


def _place(text: str, rest: str, given: int | None, key: str | None = None) -> Address:
    """host, host:port or [v6]:port."""
    host, written = _host_and_port(text, rest)
    own = None if written is None else _port_to_reach(written)
    if own is not None and given is not None and own != given:
        raise AddressError(
            f"address `{text}` has port {own}, but port {given} is given too", hints="leave one of them out"
        )
    port = own if own is not None else given if given is not None else DEFAULT_PORT
    return Address("tcp", host=host, port=port, key=key, text=text)


def _ssh(text: str, rest: str, given: int | None) -> Address:
    place, _, name = rest.partition("/")
    user, at, place = place.rpartition("@")
    if at and not _USER.match(user):
        hint = "never write a password into an address" if ":" in user else "write `ssh://user@big`"
        raise AddressError(f"address `{text}` has no user that ssh could mean", hints=hint)
    host, written = _host_and_port(text, place)
    port = None if written is None else _port_of_ssh(written)
    if given is not None and given != port:
        raise AddressError(
            f"address `{text}` goes through ssh, which finds the session's port itself",
            hints=f"leave port {given} out; a port in the address is that of ssh",
        )
    if name and (not _WORD.match(name) or len(name) > LONGEST_NAME):
        raise AddressError(
            f"address `{text}` has `{name}` after the host, which is no name of a session",
            hints="write `ssh://big/main`",
        )
    return Address("ssh", host=host, port=port, user=user, name=name, text=text)


def _port_of_ssh(written: str) -> int:
    with contextlib.suppress(ValueError):
        if written.isascii() and 0 < int(written) <= HIGHEST_PORT:
            return int(written)
    raise AddressError(
        f"port `{written}` is not between 1 and {HIGHEST_PORT}", hints="leave it out for ssh's own", id="port"
    )


def _host_and_port(text: str, rest: str) -> tuple[str, str | None]:
    """The host, checked, and what stands after its colon."""
    if rest.startswith("["):
        host, bracket, after = rest[1:].partition("]")
        if not bracket or not _is_v6(host) or (after and not after.startswith(":")):
            raise AddressError(
                f"address `{text}` has no IPv6 address in its brackets", hints="write `[fe80::1]:55555`"
            )
        return host, after[1:] if after else None
    if rest.count(":") > 1:
        hint = (
            f"write `[{rest}]:{DEFAULT_PORT}`" if _is_v6(rest) else "write `big:55555` or `[fe80::1]:55555`"
        )
        raise AddressError(f"address `{text}` has more than one colon", hints=hint)
    host, colon, written = rest.partition(":")
    if not host:
        ssh = text.lower().startswith("ssh:")
        hint = "write `ssh://big`" if ssh else f"write `localhost:{written or DEFAULT_PORT}`"
        raise AddressError(f"address `{text}` names no host", hints=hint)
    return _checked(text, host), written if colon else None


def _checked(text: str, word: str) -> str:
    if not _WORD.match(word) or len(word) > 253:
        odd = next((letter for letter in word if not re.match(r"[A-Za-z0-9_.-]", letter)), None)
        raise AddressError(
            f"address `{text}` is no name and no host",
            cause=f"{odd!r} cannot stand in one" if odd else "it must begin and end with a letter or digit",
            hints="write the name of a session, or host and port as `big:55555`",
        )
    return word


def _is_v6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return re.fullmatch(r"[0-9A-Za-z:.%_-]+", host) is not None


def _key_of(text: str, key: str) -> str:
    try:
        return key_from_text(key)
    except AddressError as error:
        raise AddressError(
            f"address `{text}` has no key after its `#`", cause=error.cause, hints=error.hints
        ) from None


def _without_slash(text: str, rest: str) -> str:
    place, slash, more = rest.partition("/")
    if more:
        raise AddressError(
            f"address `{text}` goes on after its port",
            cause=f"`/{more}` means nothing here",
            hints=f"write `{place}`",
        )
    return place if slash else rest


def _port_number(value: int | str) -> int:
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value.strip(), re.ASCII):
        number = int(value)
    if number is None:
        shown = value if isinstance(value, str) else repr(value)
        raise AddressError(
            f"port `{shown}` is not a whole number", hints=f"leave it out for {DEFAULT_PORT}", id="port"
        )
    if not 0 <= number <= HIGHEST_PORT:
        raise AddressError(
            f"port `{number}` is not between {LOWEST_PORT} and {HIGHEST_PORT}",
            hints=f"leave it out for {DEFAULT_PORT}",
            id="port",
        )
    return number


def _port_to_reach(value: int | str) -> int:
    number = _port_number(value)
    if 0 < number < LOWEST_PORT:
        raise AddressError(
            f"port `{number}` is never that of a session: theirs are {LOWEST_PORT} and above",
            hints="write the port that the server printed",
            id="port",
        )
    if number == 0:
        raise AddressError(
            "port `0` is for servers, which take a free one; nobody can be reached there",
            hints="write the port that the server printed",
            id="port",
        )
    return number
