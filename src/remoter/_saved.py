"""Addresses that this user gave names, as in `remoter client big`; on the client's machine, in its process.

`<config>/saved.json`, 0600: for each name the address; with a host and port also the key of the
server that answered there when it was saved; with an ssh address also how a session is started.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ._address import Address, key_from_text, key_to_text, parse
from ._config import config_directory, read_private, write_private
from ._errors import AddressError, NameNotFoundError, RemoterError

FIRST_SESSION = "main"
"""What a session is called that nobody gave a name."""


@dataclass(frozen=True)
class Saved:
    """What a name stands for: an address, and how a session is started there.

    `lang` is the language that a session there is to have, whether it is started or runs.
    """

    address: Address
    prelude: str | None = None
    lang: str | None = None
    python: str | None = None
    r: str | None = None
    r_engine: str | None = None


HOW = tuple(field.name for field in dataclasses.fields(Saved) if field.name != "address")


def saved_names() -> dict[str, Address]:
    """The addresses by name, with the keys of their servers.

    Raises:
        RemoterError: the file is damaged, or others can read it.
    """
    return {name: saved.address for name, saved in read_saved().items()}


def read_saved() -> dict[str, Saved]:
    """All that is saved, by name.

    Raises:
        RemoterError: the file is damaged, or others can read it.
    """
    import msgspec  # here, as below: who names a host as `ssh://` should not wait for it

    path = _path()
    try:
        entries = msgspec.json.decode(read_private(path), type=dict[str, dict[str, str]])
        return {name: _saved(entry) for name, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, AddressError, UnicodeDecodeError) as error:
        raise RemoterError(
            f"cannot read the saved names in `{path}`",
            cause=error.message if isinstance(error, AddressError) else str(error),
            hints=f"mend it, or remove it and save the names again: `rm {path}`",
            id="private-file",
        ) from None


def check_name(name: str) -> None:
    """Whether addresses can have that name.

    Raises:
        AddressError: it would be taken for something else.
    """
    try:
        is_word = parse(name).word == name != ""
    except AddressError:
        is_word = False
    if not is_word:
        raise AddressError(f"`{name}` cannot be a name", hints="a name has letters, digits, `-`, `_` and `.`")
    if name == FIRST_SESSION:
        raise AddressError(
            f"`{name}` cannot be the name of an address",
            cause="it is that of the first session on each machine, and would mean now the one, now the other",
            hints="take that of the machine, or of what you do there",
        )


def save_name(
    name: str,
    address: Address,
    **how: str | None,
) -> Address | None:
    """Give an address a name; its key is pinned with it. Returns what else had that name before.

    Args:
        name: the name.
        address: what it is to stand for.
        how: how a session is started there, as in `Saved`.

    Raises:
        AddressError: the name is no word, or the address no host.
    """
    check_name(name)
    if address.kind not in ("tcp", "ssh"):
        shown = f"`{address}`" if str(address) else "the session here"
        raise AddressError(
            f"{shown} needs no name", hints="a name is for a host, with its port or through ssh"
        )
    saved = read_saved()
    before = saved.get(name)
    saved[name] = Saved(address, **how)
    _write(saved)
    return before.address if before is not None and before.address != address else None


def forget_name(name: str) -> None:
    """Take the name away.

    Raises:
        NameNotFoundError: nothing has it.
    """
    saved = read_saved()
    if saved.pop(name, None) is None:
        raise NameNotFoundError(f"nothing is saved as `{name}`", hints="`remoter keys` lists the names")
    _write(saved)


def _path() -> Path:
    return config_directory() / "saved.json"


def _saved(entry: dict[str, str]) -> Saved:
    address = parse(entry.get("address"))
    if address.kind not in ("tcp", "ssh"):
        raise AddressError(f"`{address}` is no host")
    key = key_from_text(entry["key"]) if entry.get("key") else address.key
    return Saved(dataclasses.replace(address, key=key), **{field: entry.get(field) for field in HOW})


def _write(saved: dict[str, Saved]) -> None:
    import msgspec

    entries = {}
    for name, one in saved.items():
        entry = {
            "address": str(dataclasses.replace(one.address, key=None)),
            "key": key_to_text(one.address.key) if one.address.key else None,
            **{field: getattr(one, field) for field in HOW},
        }
        entries[name] = {key: value for key, value in entry.items() if value}
    write_private(_path(), msgspec.json.format(msgspec.json.encode(entries), indent=1))


def find_ssh(text: str | Saved | None, **how: str | None) -> Saved | None:
    """What that address means, if it goes through ssh: as written, or saved under that name.

    A session of that name on this machine comes first, as everywhere.

    Args:
        text: the address; or what it was found to mean.
        how: how a session is started there, as in `Saved`, in place of what is saved.
    """
    if isinstance(text, Saved):
        return text
    address = parse(text)
    if address.kind == "ssh":
        return Saved(address, **how)
    if address.kind != "word":
        return None
    from ._records import record_here

    if record_here(address.word) is not None:
        return None
    saved = read_saved().get(address.word)
    if saved is None or saved.address.kind != "ssh":
        return None
    return Saved(saved.address, **{field: how.get(field) or getattr(saved, field) for field in HOW})
