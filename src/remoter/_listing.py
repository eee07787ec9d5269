"""What `ls`, `log` and `keys` show, as rows and lines; on either machine, in the shell's process."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

from ._address import key_from_text, key_to_text
from ._config import Record, journal_directory, read_private, records, restore_records, write_private
from ._errors import AddressError, NameNotFoundError, RemoterError
from ._journal import Archive, archives

if TYPE_CHECKING:
    from ._client import Session
    from ._messages import Event


# --- sessions --------------------------------------------------------------------------------


def sessions() -> list[dict[str, Any]]:
    """This user's live sessions; those on this machine are asked how they are."""
    restore_records()
    found = list(records())
    if not found:
        return []
    with ThreadPoolExecutor(min(8, len(found))) as pool:
        return list(pool.map(_look_at, found))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The sessions as lines for a person."""
    cells = [("SESSION", "ENGINE", "STATE", "CLIENTS", "STARTED", "LISTENS ON")]
    for row in rows:
        clients = "-" if row["clients"] is None else str(row["clients"])
        started = _when(row["started"])
        cells.append((row["name"], row["engine"], row["state"], clients, started, row["address"]))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _look_at(record: Record) -> dict[str, Any]:
    """What a line of `ls` says of one session; asked of the session itself where it is here."""
    row: dict[str, Any] = {
        "name": record.name,
        "host": record.host,
        "engine": record.lang.capitalize(),
        "state": "on " + record.host,
        "busy": None,
        "clients": None,
        "started": record.started,
        "address": f"{record.listen}:{record.port}",
        "pid": record.pid,
    }
    if not record.is_here:
        return row
    try:
        from ._client import open_session

        with open_session(record.name, timeout=3.0, secure=record.secure, quiet=True) as session:
            info = session.info
    except (RemoterError, TimeoutError):
        row["state"] = "no answer"
        return row
    if info.version is None:
        row["state"] = "died"
        return row
    row["busy"] = info.busy
    row["state"] = "busy" if info.busy else "idle"
    row["clients"] = max(0, len(info.clients) - 1)  # without ourselves
    row["engine"] = f"{str(info.lang).capitalize()} {info.version}"
    row["pid"] = info.pid
    return row


def _when(started: float) -> str:
    then = time.localtime(started)
    today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", then)


# --- the log ---------------------------------------------------------------------------------


def archive(address: str | None) -> Archive | None:
    """The journal on this machine's disk of the last session of that name, if it has ended.

    A live one is asked itself: with a full disk it knows more than its disk.
    """
    if any(record.is_here and address in (None, record.name) for record in records()):
        return None
    ended = [archive for archive in archives(journal_directory()) if address in (None, archive.name)]
    return ended[-1] if ended else None


def events(session: Session, since: int, follow: bool) -> Iterator[Event]:
    """The events after that number; without `follow` up to the newest one there is now."""
    last = session._last_event
    if not follow and since >= last:
        return
    for event in session.events(since=since, all=True):
        yield event
        if not follow and event.seq >= last:
            return


def line(event: Event, as_json: bool = False) -> str:
    """An event as JSON, or as lines of: number, time, whose run it is, kind, text."""
    if as_json:
        return json.dumps(msgspec.to_builtins(event), ensure_ascii=False)
    text = event.text or ""
    data = event.data or {}
    match event.kind:
        case "done":
            elapsed = data.get("elapsed")
            text = str(data.get("status", "")) + ("" if elapsed is None else f" after {_duration(elapsed)}")
        case "gap":
            text = f"events {data.get('first')} to {data.get('last')} are no longer kept"
        case "notice" if not text and data.get("about") == "started":
            text = (
                f"started: {str(data.get('lang')).capitalize()} {data.get('version')}, pid {data.get('pid')}"
            )
        case "notice" if not text:
            text = str(data.get("about", ""))
    client, number = event.run or (event.client or "-", None)
    whose = client[:6] if number is None else f"{client[:6]}-{number}"
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    head = f"{event.seq:>6} {clock} {whose:<9} {event.kind:<7}"
    return "\n".join(f"{head} {part}".rstrip() for part in text.rstrip("\n").split("\n"))


def _duration(seconds: float) -> str:
    if seconds < 0.001:
        return "less than 1 ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


# --- keys ------------------------------------------------------------------------------------


def keys() -> dict[str, list[dict[str, str]]]:
    """This user's own keys, the clients he admits, the servers he trusts."""
    from . import _security

    def entry(public: str, label: str) -> dict[str, str]:
        return {"name": label, "key": key_to_text(public), "fingerprint": _security.fingerprint(public)}

    return {
        "own": [
            entry(_security.client_keys().public, "as a client"),
            entry(_security.server_keys().public, "as a server"),
        ],
        "authorized": [entry(public, name) for public, name in _authorized()],
        "known": [entry(pin.public, pin.label) for pin in _security.Pins()],
    }


def key_lines(found: dict[str, list[dict[str, str]]]) -> Iterator[str]:
    """The keys as lines for a person."""
    titles = {"own": "my own", "authorized": "clients that may come in", "known": "servers that I trust"}
    for group, entries in found.items():
        yield f"{titles[group]}:" + ("" if entries else " none")
        for entry in entries:
            yield f"  {entry['name']}"
            yield f"    key          {entry['key']}"
            yield f"    fingerprint  {entry['fingerprint']}"


def authorize(key: str, name: str) -> None:
    """Admit that client."""
    from ._security import authorize_client

    authorize_client(_public(key, "client"), name)


def trust(key: str, name: str) -> None:
    """Trust that server."""
    from ._security import Pins

    Pins().trust(_public(key, "server"), name)


def forget(name: str) -> None:
    """Forget the server or the client of that name or key.

    Raises:
        NameNotFoundError: there is none.
    """
    from ._security import Pins, authorized_clients_path

    public = name
    with contextlib.suppress(AddressError):
        public = _public(name, "server")
    pins = Pins()
    # A server that was trusted without a name is called by its host, port and a word of its fingerprint.
    servers = {
        pin.public
        for pin in pins
        if name in (pin.label, pin.label.rpartition(" ")[0] if ":" in name else "") or public == pin.public
    }
    for server in servers:
        pins.forget(server)
    clients = {key for key, label in _authorized() if name == label or public == key}
    if clients:
        path = authorized_clients_path()
        lines = read_private(path).decode(errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.split(" ", 1)[0].strip() not in clients]
        write_private(path, "".join(kept).encode())
    if not servers and not clients:
        hint = "`remoter keys` lists them"
        raise NameNotFoundError(f"no server and no client is known as `{name}`", hints=hint)


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
