"""What `ls` and `log` show, as rows and lines; on either machine, in the shell's process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

from ._address import Address, parse
from ._config import host_name, journal_directory
from ._errors import AddressError, RemoterError
from ._journal import Archive, archives
from ._records import Record, is_private, records, restore_records
from ._saved import Saved, find_ssh, read_saved

if TYPE_CHECKING:
    from ._client import Session
    from ._messages import Event

PATIENCE = 10.0
"""Seconds in which a session says how it is."""

MOST_AT_ONCE = 16

# --- sessions --------------------------------------------------------------------------------


class Row(msgspec.Struct, kw_only=True):
    """One session in a list; what is not known is None.

    `state` is idle, busy, died, no answer, or elsewhere, where nobody was asked; it has been so
    for `seconds`, by the clock of its own machine. `here`: it is on the machine that made the
    list. `reach` is what to type after `remoter client`; `memory` is that of the interpreter, in bytes.
    """

    name: str
    host: str
    here: bool = True
    lang: str = "python"
    language: str = ""
    state: str = "no answer"
    busy: bool | None = None
    since: float | None = None
    seconds: float | None = None
    clients: int | None = None
    memory: int | None = None
    started: float = 0.0
    address: str = ""
    reach: str = ""
    pid: int | None = None


def sessions() -> list[Row]:
    """This user's live sessions, those on this machine first; all that can be are asked how they are."""
    restore_records()
    found = sorted(records(), key=lambda record: (not record.is_here, record.host, record.name))
    if not found:
        return []
    with ThreadPoolExecutor(min(MOST_AT_ONCE, len(found))) as pool:
        return list(pool.map(_look_at, found))


def sessions_at(text: str, prelude: str | None = None) -> list[Row]:
    """The sessions that an address means: those of a machine that ssh reaches, or the one of that name here.

    Args:
        prelude: what runs there first, in place of what is saved.

    Raises:
        AddressError: it is something else.
        RemoterError: the machine was not reached, or did not answer as it should.
    """
    if (there := find_ssh(text, prelude=prelude)) is not None:
        return _sessions_there(there)
    address = parse(text)
    if address.kind == "word":
        rows = sessions()
        meant = [row for row in rows if row.here and row.name == address.word]
        meant = meant or [row for row in rows if not row.here and row.host == address.word]
        if meant:
            return meant
        saved = read_saved().get(address.word)
        if saved is None:
            raise AddressError(
                f"`{address.word}` is no session here, and nothing that ssh reaches is saved as that",
                hints=[f"`remoter ls ssh://{address.word}` lists the sessions on that machine"],
            )
        address = saved.address
    host = address.host or "HOST"
    raise AddressError(
        f"`{text}` leads to one session, and only ssh can list those of a machine",
        hints=[f"`remoter ls ssh://{host}`", f"`remoter doctor {text}` tells of that one"],
    )


def _sessions_there(there: Saved) -> list[Row]:
    """The sessions on that machine; those of one name, if the address has one."""
    from ._ssh_errors import escape
    from ._there import read_there

    address = there.address
    rows = read_there(there, ["ls", "--json"], list[Row])
    for row in rows:
        row.reach = _reach(address, row)
        for field in ("name", "host", "lang", "language", "state", "address"):
            setattr(row, field, escape(getattr(row, field)))
        row.here = False
    return [row for row in rows if address.name in ("", row.name)]


def _reach(address: Address, row: Row) -> str:
    """What leads from here to a session in the list of that address; nothing where the list has no true names.

    Never what the list itself says: people type it again.
    """
    if not row.here:  # on another machine of that home
        address = Address("ssh", host=row.host, user=address.user)
    with contextlib.suppress(AddressError):
        reached = parse(str(dataclasses.replace(address, name=row.name)))
        if (reached.host, reached.name) == (address.host, row.name):
            return str(reached)
    return ""


def table(rows: list[Row]) -> list[str]:
    """The sessions as lines for a person."""
    cells = [("SESSION", "HOST", "LANGUAGE", "STATE", "CLIENTS", "MEMORY", "STARTED", "LISTENS ON")]
    for row in rows:
        clients = "-" if row.clients is None else str(row.clients)
        memory = "-" if row.memory is None else size(row.memory)
        started = _when(row.started)
        cells.append((row.name, row.host, row.language, _state(row), clients, memory, started, row.address))
    columns = list(zip(*cells, strict=True))
    if all(row.host == host_name() for row in rows):
        del columns[1]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    ]


def plain(rows: list[Row]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [msgspec.to_builtins(row) for row in rows]


def _look_at(record: Record) -> Row:
    """What there is to say of one session; asked of the session itself where it can be reached from here."""
    row = Row(
        name=record.name,
        host=record.host,
        here=record.is_here,
        lang=record.lang,
        language=record.lang.capitalize(),
        started=record.started,
        address=f"{record.listen}:{record.port}",
        pid=record.pid,
    )
    row.reach = record.name
    if not record.is_here:
        row.reach = f"{record.host}:{record.port}"
        if _is_loopback(record.listen):
            row.reach, row.state = f"ssh://{record.host}/{record.name}", "elsewhere"
            return row
    try:
        from ._client import open_session

        with open_session(row.reach, timeout=PATIENCE, secure=record.secure, quiet=True) as session:
            info = session.info
    except (RemoterError, TimeoutError):
        return row
    if info.get("since") is not None and info.get("now") is not None:
        row.since, row.seconds = info["since"], max(0.0, round(info["now"] - info["since"], 1))
    row.clients = max(0, len(info.clients) - 1)  # without ourselves
    if info.version is None:
        row.state = "died"
        return row
    row.busy = info.busy
    row.state = "busy" if info.busy else "idle"
    row.language = f"{str(info.lang).capitalize()} {info.version}"
    row.memory = info.get("memory")
    row.pid = info.pid
    return row


def _is_loopback(listen: str) -> bool:
    return listen.startswith("127.") or listen.strip("[]") in ("localhost", "::1")


def _state(row: Row) -> str:
    if row.state == "elsewhere":
        return f"on {row.host}"
    if row.seconds is None or row.state not in ("idle", "busy", "died"):
        return row.state
    return f"{row.state} {_long(row.seconds)}" + (" ago" if row.state == "died" else "")


def _long(seconds: float) -> str:
    """A time in one unit, whole: what a list has room for."""
    for limit, unit, name in [(60, 1, "s"), (3600, 60, "min"), (172_800, 3600, "h")]:
        if seconds < limit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds // 86_400)} days"


def size(count: float) -> str:
    """Bytes for a person: three digits and a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 9.95 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _when(started: float) -> str:
    try:
        then = time.localtime(started)
    except (ValueError, OverflowError, OSError):
        return "-"
    today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", then)


# --- the log ---------------------------------------------------------------------------------


def archive(address: str | None) -> Archive | None:
    """The journal on this machine's disk of the last session of that name, if it has ended.

    A live one is asked itself: with a full disk it knows more than its disk.
    """
    if any(record.is_here and address in (None, record.name) for record in records()):
        return None
    ended = [archive for archive in archives(journal_directory()) if _is_meant(archive.name, address)]
    return ended[-1] if ended else None


def _is_meant(name: str, address: str | None) -> bool:
    return not is_private(name) if address is None else name == address


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
