"""Objects that cross: pull and push, what is trusted, and what is refused before it is sent; in the client's process.

What an object looks like on the way is the matter of `_values`, how bytes get here that of `_transfer`.
The work of each transfer is a function that runs in the transfer's own thread.
"""

from __future__ import annotations

import contextlib
import keyword
import os
import pickletools
import sys
import unicodedata
from dataclasses import dataclass
from typing import Any

from . import _values
from ._errors import RunTimeoutError, TransferError, printable
from ._pieces import MemorySink, MemorySource
from ._run import Run
from ._steps import Bound, FileHere, Found, ObjectOffer, as_data, as_step
from ._transfer import Carrier, Forgotten
from ._values import Layout, Packed, ValuesError

PIECE = 8 << 20
"""Bytes that are written to a file at once; between two pieces a transfer can be cancelled."""

INLINE = 64 * 1024
"""Bytes of an object that travel with the message itself."""

NAP = 0.2
"""Seconds between looks whether a transfer that waits for a run was cancelled."""

LONGEST_SEARCHED = 8 * 1024 * 1024
"""Bytes of a pickle in which we look for what it needs."""


@dataclass(frozen=True)
class Pushed:
    """An object that has arrived in the session.

    Attributes:
        name: its name there.
        text: what it is, as `ndarray (3, 2) float64, 48 bytes`.
        replaced: what had the name before; None if it was free.
        warnings: what of it the session's language could not hold.
    """

    name: str
    text: str
    replaced: str | None = None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        replaced = f"; replaced {self.replaced}" if self.replaced else ""
        return "\n".join([f"{self.name}: {self.text}{replaced}", *self.warnings])

    __repr__ = __str__


def plain_name(name: str) -> str | None:
    """The name as Python understands it, if it is one; None: an expression, or nothing."""
    name = unicodedata.normalize("NFKC", name.strip())
    return name if name.isidentifier() and not keyword.iskeyword(name) else None


def as_error(error: ValuesError) -> TransferError:
    """What the codec says, as an error of ours."""
    return TransferError(error.message, cause=error.cause, hints=tuple(error.hints), id=error.kind)


def await_run(carrier: Carrier, run: Run) -> None:
    """Wait for the run whose value is to cross. Raises what it raised."""
    carrier.begun()
    carrier.note("waiting for its turn")
    while True:
        carrier.check()
        with contextlib.suppress(RunTimeoutError):
            run.wait(NAP)
            carrier.note("")
            return


# --- from the session ------------------------------------------------------------------------


class ValueSink:
    """The stream of an object: its buffers, straight into their final memory."""

    def __init__(self, offer: ObjectOffer, into: Any, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        try:
            self._layout = _layout_of(offer, allow_pickle)
            self._memory = MemorySink(self._layout.allocate(into))
        except ValuesError as error:
            raise as_error(error) from None
        self.size = self._memory.size

    @property
    def position(self) -> int:
        """Bytes that are there."""
        return self._memory.position

    def write(self, data: memoryview) -> None:
        """The next bytes of the stream."""
        self._memory.write(data)

    def finish(self) -> dict[str, Any]:
        """All is there."""
        return {}

    def value(self) -> Any:
        """The object. Raises TransferError."""
        self._memory.close()
        try:
            return self._layout.build(allow_pickle=self._allow_pickle)
        except ValuesError as error:
            raise as_error(error) from None

    def close(self) -> None:
        self._memory.close()


def _layout_of(offer: ObjectOffer, allow_pickle: bool) -> Layout:
    """What will come. Raises ValuesError, and TransferError: it is a pickle."""
    layout = Layout(offer.tree, offer.sizes)
    if layout.is_pickle and not allow_pickle:
        raise unsafe(layout.type)
    return layout


def unsafe(kind: str) -> TransferError:
    """The error of an object that comes only as a pickle."""
    return TransferError(
        f"`{kind}` crosses only as a pickle, and opening a pickle runs code that the session chose",
        id="unsafe",
    )


def pull(
    carrier: Carrier, name: str | None, *, format: str | None, into: Any, allow_pickle: bool, is_near: bool
) -> Any:
    """Get an object of the session.

    Args:
        carrier: the transfer.
        name: what it is called there; None: the value that a run has kept for this transfer.
        format: what it is to become here.
        into: memory that it is to fill.
        allow_pickle: whether it may be a pickle, and is opened then.
        is_near: whether the server's open files can be read here.

    Raises:
        NameNotFoundError, TransferError: it did not cross.
    """
    # Who gives memory for something large wants no second copy of it, not even for a moment.
    is_mapped = is_near and _bytes_in(into) < _values.MAPPED
    question = {"name": name, "pickle": allow_pickle, "here": is_mapped}
    while True:
        offer: ObjectOffer = as_step(carrier.step("pull", question), ObjectOffer)
        mapped = map_file(offer.file, _values.places(offer.sizes)[1]) if offer.file is not None else None
        if mapped is not None:
            value = _adopted(offer, mapped, into, allow_pickle)
            carrier.found(sum(offer.sizes))
            return _converted(value, format) if format is not None else value
        sink = ValueSink(offer, into, allow_pickle)
        carrier.total(sink.size)
        try:
            if offer.inline is not None:
                _fill(sink, offer.inline)
            else:
                carrier.receive(sink, transfer=carrier.id)
        except Forgotten:
            carrier.note("starting over: the server was started again")
            continue
        value = sink.value()
        return _converted(value, format) if format is not None else value


def _bytes_in(into: Any) -> int:
    """Bytes of the memory that is to be filled; whether it is any is looked at later."""
    try:
        return memoryview(into).nbytes
    except (TypeError, ValueError, BufferError):  # numpy's dates, for one, show no memory
        size = getattr(into, "nbytes", 0)
        return size if isinstance(size, int) else 0


def map_file(file: FileHere, size: int) -> memoryview | None:
    """The bytes where the server has them, in memory of ours as soon as we write to it; None: they cannot be read.

    See `_values.open_memory`.
    """
    with contextlib.suppress(OSError, ValueError, OverflowError):
        if file.lead + size == file.size:
            memory = _values.open_memory(file.pid, file.descriptor, file.device, file.inode, file.size)
            return memory[file.lead :]
    return None


def _adopted(offer: ObjectOffer, memory: memoryview, into: Any, allow_pickle: bool) -> Any:
    """The object whose buffers stand in that memory."""
    try:
        layout = _layout_of(offer, allow_pickle)
        layout.adopt(memory, into)
        return layout.build(allow_pickle=allow_pickle)
    except ValuesError as error:
        raise as_error(error) from None


def _fill(sink: ValueSink, data: bytes) -> None:
    if len(data) != sink.size:
        raise TransferError("the session sent less or more than it announced", id="corrupt")
    sink.write(memoryview(data))


def _converted(value: Any, format: str) -> Any:
    from ._frames import convert

    try:
        return convert(value, format)
    except ValuesError as error:
        raise as_error(error) from None


# --- to the session --------------------------------------------------------------------------


def pack(value: Any) -> Packed:
    """The value as it crosses to a session: what is not safe the other way may be a pickle this way.

    Raises:
        TransferError: it cannot cross.
    """
    import cloudpickle

    kinds = sys.modules.get(f"{__package__}._rvalues")  # or nothing has ever come from R here
    try:
        return _values.pack(kinds.plain(value) if kinds else value, pickle=cloudpickle.dumps)
    except ValuesError as error:
        raise as_error(error) from None


def push(carrier: Carrier, name: str, value: Any, *, overwrite: bool, python: str, is_near: bool) -> Pushed:
    """Give the session an object.

    Args:
        carrier: the transfer.
        name: what it is to be called there.
        value: the object.
        overwrite: whether something of that name may be replaced.
        python: the version of the session's Python.
        is_near: whether the session can read our open files.

    Raises:
        TransferError: it did not cross.
    """
    packed = pack(value)
    if packed.is_pickle:
        _check_versions(packed, carrier, python)
    sizes = [view.nbytes for view in packed.buffers]
    question = {"name": name, "tree": packed.tree, "sizes": sizes, "overwrite": overwrite}
    carrier.total(sum(sizes))
    if sum(sizes) <= INLINE:
        return pushed(carrier.step("push", {**question, "inline": b"".join(packed.buffers)}), packed.text)
    answer = _push_file(carrier, question, packed.buffers) if is_near else None
    if answer is not None:
        return pushed(answer, packed.text)
    while True:
        carrier.step("push", question)
        try:
            return pushed(carrier.send(MemorySource(packed.buffers), transfer=carrier.id), packed.text)
        except Forgotten:
            carrier.note("starting over: the server was started again")


def _push_file(
    carrier: Carrier, question: dict[str, Any], buffers: list[memoryview]
) -> dict[str, Any] | None:
    """Have the session map the object from memory of ours; None: it cannot, or there is no such memory."""
    if not hasattr(os, "memfd_create"):
        return None
    import fcntl

    starts, end = _values.places(question["sizes"])
    try:
        _values.afford(end, "what crosses")
        descriptor = os.memfd_create("remoter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except ValuesError as error:
        raise as_error(error) from None
    except OSError:
        return None
    try:
        os.ftruncate(descriptor, end)
        for start, view in zip(starts, buffers, strict=True):
            for offset in range(0, view.nbytes, PIECE):
                carrier.check()
                _write_all(descriptor, view[offset : offset + PIECE], start + offset)
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        )
        status = os.fstat(descriptor)
        file = FileHere(
            pid=os.getpid(),
            descriptor=descriptor,
            device=status.st_dev,
            inode=status.st_ino,
            size=end,
            lead=0,
        )
        answer = carrier.step("push", {**question, "file": as_data(file)})
    except OSError:
        return None
    except TransferError as error:
        if error.id == "far":
            return None
        raise
    finally:
        os.close(descriptor)
    carrier.found(end)
    return answer


def _write_all(descriptor: int, view: memoryview, offset: int) -> None:
    while view.nbytes:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def pushed(answer: dict[str, Any], text: str, warnings: list[str] = []) -> Pushed:  # noqa: B006 - it is only read
    """What the session has made of it."""
    bound: Bound = as_step(answer, Bound)
    replaced = printable(bound.replaced) if bound.replaced is not None else None
    return Pushed(printable(bound.name), text, replaced, tuple(warnings))


def _check_versions(packed: Packed, carrier: Carrier, python: str) -> None:
    """Refuse a pickle that could not be opened there. Raises TransferError."""
    modules = _modules(packed)
    here = _values.versions()
    found: Found = as_step(carrier.step("find", {"name": None}), Found)
    theirs = found.versions
    their_python = theirs.get("python") or python
    if "cloudpickle" in modules and _series(here["python"], 2) != _series(their_python, 2):
        raise TransferError(
            f"`{packed.type}` holds code, which only the same version of Python understands",
            cause=f"here is Python {here['python']}, in the session {their_python}",
            hints="define it in the session: send its source as text and run that",
            id="versions",
        )
    for module in ("numpy", "pandas"):
        if module not in modules or module not in here:
            continue
        if module not in theirs:
            raise TransferError(
                f"`{packed.type}` needs `{module}`, which the session's interpreter has not", id="versions"
            )
        if _series(here[module], 1) > _series(theirs[module], 1):
            raise TransferError(
                f"`{packed.type}` was pickled with a newer `{module}` than the session can read",
                cause=f"here is {module} {here[module]}, in the session {theirs[module]}",
                hints="send its parts: arrays and frames of their own cross between any versions",
                id="versions",
            )


def _series(version: str, parts: int) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")[:parts]]


def _modules(packed: Packed) -> set[str]:
    """The packages that the pickle imports. Nothing of it is opened."""
    body = _values.pickle_body(packed)
    found: set[str] = set()
    if body.nbytes > LONGEST_SEARCHED:
        return found
    try:
        for code, argument, _ in pickletools.genops(bytes(body)):
            if code.name in ("GLOBAL", "SHORT_BINUNICODE", "BINUNICODE") and isinstance(argument, str):
                found.add(argument.split(" ")[0].split(".")[0])
    except (ValueError, IndexError):
        pass
    return found


def check_name(name: str) -> str:
    """The name as it will be in the session. Raises TransferError."""
    try:
        return _values.check_name(name)
    except ValuesError as error:
        raise as_error(error) from None
