"""R's values that cross: pull and push, names, and the short way on one machine; in the client's process.

R serializes a value itself, and reads one so; what is in those bytes is the matter of `_rvalues`. Nothing
in them is ever evaluated here. The work of each transfer runs in the transfer's own thread.
"""

from __future__ import annotations

import re
from typing import Any

from ._errors import TransferError, printable
from ._objects import INLINE, Pushed, as_error, map_file, pushed
from ._pieces import MemorySink, MemorySource
from ._rvalues import LEAD, read, write
from ._steps import ObjectOffer, as_step
from ._transfer import Carrier, Forgotten
from ._values import ValuesError, allocate, clean

RESERVED = {"if", "else", "repeat", "while", "function", "for", "in", "next", "break"}
RESERVED |= {
    "TRUE",
    "FALSE",
    "NULL",
    "Inf",
    "NaN",
    "NA",
    "...",
    *(f"NA_{kind}_" for kind in ("integer", "real")),
}
RESERVED |= {"NA_character_", "NA_complex_"}
NAME = re.compile(r"(?:[^\W\d_]|\.(?![0-9]))[\w.]*")


def plain_name(name: str) -> str | None:
    """The name as R understands it, if it is one, also between backticks; None: an expression, or nothing."""
    name = name.strip()
    if len(name) > 2 and name[0] == name[-1] == "`" and not {"`", "\\"} & set(name[1:-1]):
        return name[1:-1]
    return name if NAME.fullmatch(name) and name not in RESERVED else None


def check_name(name: str) -> str:
    """The name as it will be in the session. Raises TransferError: R would not read it as one."""
    plain = plain_name(name) if isinstance(name, str) else None
    if plain is None or "\0" in plain:
        shown = clean(str(name), 80)
        raise TransferError(
            f"`{shown}` is no name in R",
            hints=(
                "letters, digits, `.` and `_`, beginning with a letter",
                f'or between backticks: "`{shown}`"',
            ),
            id="name",
        )
    return plain


def pull(carrier: Carrier, name: str | None, *, format: str | None, into: Any, is_near: bool) -> Any:
    """Get a value of the R session.

    Args:
        carrier: the transfer.
        name: what it is called there; None: the value that a run has kept for this transfer.
        format: what it is to become here: pandas, polars, arrow, numpy, or raw, as R has serialized it.
        into: an array that it is to fill.
        is_near: whether the server's open files can be read here.

    Raises:
        NameNotFoundError, TransferError: it did not cross.
    """
    while True:
        offer: ObjectOffer = as_step(carrier.step("pull", {"name": name, "here": is_near}), ObjectOffer)
        if offer.format != "r" or len(offer.sizes) != 1:
            raise TransferError("the session did not send a value of R", id="corrupt")
        size = offer.sizes[0]
        carrier.total(size)
        try:
            data = map_file(offer.file, size) if offer.file is not None else None
            if data is not None:
                carrier.found(size)
            else:
                data = _received(carrier, offer, size)
        except Forgotten:
            carrier.note("starting over: the server was started again")
            continue
        try:
            value = read(data, format)
        except ValuesError as error:
            raise as_error(error) from None
        return value if into is None else _filled(into, value)


def _received(carrier: Carrier, offer: ObjectOffer, size: int) -> memoryview:
    try:
        view = allocate(LEAD + size)[LEAD:]
    except ValuesError as error:
        raise as_error(error) from None
    if offer.inline is None:
        carrier.receive(MemorySink([view]), transfer=carrier.id)
    elif len(offer.inline) == size:
        view[:] = offer.inline
    else:
        raise TransferError("the session sent less or more than it announced", id="corrupt")
    return view


def _filled(into: Any, value: Any) -> Any:
    """The caller's array, filled."""
    import numpy as np

    if not isinstance(into, np.ndarray) or not isinstance(value, np.ndarray):
        raise TransferError(
            "`into` is filled with an array", cause=f"what came is `{type(value).__name__}`", id="kind"
        )
    if into.dtype != value.dtype or into.shape != value.shape or not into.flags.writeable:
        shape = "x".join(map(str, value.shape))
        raise TransferError(
            f"`into` has to be writable, `{value.dtype}` and `{shape}`, as what came", id="kind"
        )
    into[...] = value
    return into


def push(carrier: Carrier, name: str, value: Any, *, overwrite: bool) -> Pushed:
    """Give the R session a value.

    Args:
        carrier: the transfer.
        name: what it is to be called there.
        value: what R has a counterpart of.
        overwrite: whether something of that name may be replaced.

    Raises:
        TransferError: it did not cross.
    """
    try:
        buffers, warnings = write(value)
    except ValuesError as error:
        raise as_error(error) from None
    sizes = [memoryview(buffer).nbytes for buffer in buffers]
    question = {"name": name, "tree": "", "sizes": sizes, "format": "r", "overwrite": overwrite}
    carrier.total(sum(sizes))
    if sum(sizes) <= INLINE:
        inline = b"".join(buffers)
        return _pushed(carrier.step("push", {**question, "inline": inline}), warnings)
    while True:
        carrier.step("push", question)
        try:
            answer = carrier.send(MemorySource(buffers), transfer=carrier.id)
        except Forgotten:
            carrier.note("starting over: the server was started again")
        else:
            return _pushed(answer, warnings)


def _pushed(answer: dict[str, Any], warnings: list[str]) -> Pushed:
    return pushed(answer, printable(str(answer.get("text") or "")), warnings)
