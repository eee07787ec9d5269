"""What `keys` shows and changes: my own keys, who is admitted, who is trusted, saved names; in the shell's process."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from ._address import Address, key_from_text, key_to_text
from ._config import read_private, write_private
from ._errors import AddressError, NameNotFoundError
from ._saved import Saved, forget_name, read_saved

AS_A_SERVER = "as a server"

_GROUPS = {
    "own": "my own",
    "authorized": "clients that may come in",
    "known": "servers that I trust",
    "saved": "saved names",
}


def keys() -> dict[str, list[dict[str, str]]]:
    """This user's own keys, the clients he admits, the servers he trusts, the names he gave to addresses."""
    from . import _security, _trust

    def entry(public: str, label: str) -> dict[str, str]:
        return {"name": label, "key": key_to_text(public), "fingerprint": _security.fingerprint(public)}

    pickles = {pin.public: pin.label for pin in _trust.trusted()}
    # A server that ssh leads to has no pin, and may be trusted with its pickles all the same.
    known = pickles | {pin.public: pin.label for pin in _security.Pins()}

    return {
        "own": [
            entry(_security.client_keys().public, "as a client"),
            entry(_security.server_keys().public, AS_A_SERVER),
        ],
        "authorized": [entry(public, name) for public, name in _authorized()],
        "known": [
            entry(public, _plain(label)) | ({"pickles": "always"} if public in pickles else {})
            for public, label in known.items()
        ],
        "saved": [_saved_entry(name, saved.address) for name, saved in read_saved().items()],
    }


def _plain(label: str) -> str:
    """What a server is called, as it may be typed: `main` for "session `main`", by which a person is asked."""
    return label.removeprefix("session ").replace("`", "")


def _saved_entry(name: str, address: Address) -> dict[str, str]:
    key = {"key": key_to_text(address.key)} if address.key else {}
    return {"name": name, "address": str(dataclasses.replace(address, key=None)), **key}


def keys_there(there: Saved) -> dict[str, list[dict[str, str]]]:
    """The same of that machine."""
    from ._ssh_errors import escape
    from ._there import read_there

    found = read_there(there, ["keys", "--json"], dict[str, list[dict[str, str]]])
    return {
        group: [{key: escape(text) for key, text in entry.items()} for entry in entries]
        for group, entries in found.items()
    }


def server_key_there(there: Saved) -> str:
    """The key that the sessions on that machine prove themselves with."""
    own = keys_there(there).get("own", ())
    key = next((entry.get("key", "") for entry in own if entry.get("name") == AS_A_SERVER), "")
    return _public(key, "server")


def key_lines(found: dict[str, list[dict[str, str]]]) -> Iterator[str]:
    """The keys as lines for a person."""
    for group, title in _GROUPS.items():
        entries = found.get(group, [])
        yield f"{title}:" + ("" if entries else " none")
        for entry in entries:
            yield f"  {entry.get('name', '?')}"
            for field in ("address", "key", "fingerprint", "pickles"):
                if field in entry:
                    yield f"    {field:<11}  {entry[field]}"


def authorize(key: str, name: str) -> None:
    """Admit that client."""
    from ._security import authorize_client

    authorize_client(_public(key, "client"), name)


def trust(key: str, name: str) -> None:
    """Trust that server."""
    from ._security import Pins

    Pins().trust(_public(key, "server"), name)


def forget(name: str) -> None:
    """Forget the server or the client of that name or key, and the address that is saved under the name.

    A forgotten server's pickles are not opened any more.

    Raises:
        NameNotFoundError: there is none.
    """
    from . import _trust
    from ._security import Pins, authorized_clients_path

    public = name
    with contextlib.suppress(AddressError):
        public = _public(name, "server")
    pins = Pins()
    # A server that was trusted without a name is called by its host, port and a word of its fingerprint.
    servers = {
        pin.public
        for pin in [*pins, *_trust.trusted()]
        if name in (pin.label, _plain(pin.label), pin.label.rpartition(" ")[0] if ":" in name else "")
        or public == pin.public
    }
    for server in servers:
        pins.forget(server)
        _trust.forget(server)
    clients = {key for key, label in _authorized() if name == label or public == key}
    if clients:
        path = authorized_clients_path()
        lines = read_private(path).decode(errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.split(" ", 1)[0].strip() not in clients]
        write_private(path, "".join(kept).encode())
    is_saved = name in read_saved()
    if is_saved:
        forget_name(name)
    if not servers and not clients and not is_saved:
        hint = "`remoter keys` lists them"
        raise NameNotFoundError(f"no server, no client and no address is known as `{name}`", hints=hint)


def _authorized() -> list[tuple[str, str]]:
    """The clients that may come in: key and name; all other lines of the file are comments."""
    from ._security import authorized_clients_path, is_key

    try:
        lines = read_private(authorized_clients_path()).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    pairs = [line.strip().partition(" ") for line in lines]
    return [(key, name.strip()) for key, _, name in pairs if is_key(key)]


def _public(key: str, whose: str) -> str:
    """The key in Z85; people give it as it stands in an address, or in Z85."""
    from ._security import is_key

    try:
        return key if is_key(key) else key_from_text(key)
    except AddressError as error:
        raise AddressError(
            f"`{key}` is not a {whose}'s public key",
            cause=error.cause,
            hints=f"`remoter keys` on the {whose}'s machine shows it, under `as a {whose}`",
        ) from None
