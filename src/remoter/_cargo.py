"""What a session gives and takes: objects of its interpreter, files of its machine; in the server's process.

Each step of a transfer comes from the control connection to the control loop, and is answered there. What
takes long happens elsewhere: the interpreter packs objects in a thread of its own, paths are
looked at in a thread here, and bytes are moved by the dock's threads, from and to

    an object    a unix socket whose other end is a thread in the interpreter's process; for R, which
                 has no threads, and for a client on this machine, a file that it writes or reads (`_parcel`)
    a file       the file itself: no interpreter is needed for it, so it may be busy

Every step may come twice, since a client asks again when its connection broke before the answer: what was
answered is remembered for as long as the transfer lives.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import importlib.util
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from . import _parcel
from ._dock import Dock
from ._engines import Engine
from ._errors import RemoterError, TransferError
from ._messages import Refused, Step, error_of
from ._parcel import LEAD, Parcel, ParcelSink
from ._pieces import error_from
from ._steps import FileHere, as_step

if TYPE_CHECKING:
    from ._freight import Freight
    from ._pieces import Sink

log = logging.getLogger("remoter.cargo")

Answered = Callable[["dict[str, Any] | RemoterError"], None]

MOST_TRANSFERS = 1000
"""Transfers that may be under way; more are refused."""

INLINE = 64 * 1024
"""Bytes of an object that travel with the answer itself."""

FORGET = 60.0
"""Seconds after which a transfer is forgotten that has no stream at the dock (any more)."""

OF_INTERPRETER = ("find", "remove", "pull", "push")
"""The steps that need an interpreter; files need none."""

NAP = 0.5
"""Seconds between looks whether anybody still wants what a thread here waits for."""

_GONE = "the session's interpreter is gone"


class Transfer:
    """What is known of one transfer: what was answered, and what of it is open."""

    def __init__(self) -> None:
        self.answers: dict[bytes, dict[str, Any]] = {}
        self.under_way: dict[bytes, list[Answered]] = {}
        self.streams: set[str] = set()
        self.touched = time.monotonic()
        self.is_kept = False  # a run's value waits for it
        self.line: Line | None = None
        self.parcel: Parcel | None = None
        self.freight: Freight | None = None
        self.is_over = False


class Cargo:
    """The steps of all transfers of one session. All but what threads call belongs to the control loop.

    Args:
        engine: gives the present engine.
        dock: moves the bytes.
        files_root: no path outside of it is read or written; None: any that the user may.
        directory: says where the interpreter works, which relative paths are relative to.
        give_up: ends the run that makes a value for that transfer, if there is one.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        dock: Dock,
        files_root: Path | None,
        directory: Callable[[], str],
        give_up: Callable[[str], None],
    ) -> None:
        self.engine = engine
        self.dock = dock
        self.files_root = files_root
        self.directory = directory
        self.give_up = give_up
        self.loop = asyncio.get_running_loop()
        self.transfers: dict[str, Transfer] = {}
        self.threads = ThreadPoolExecutor(4, thread_name_prefix="remoter-paths")
        _parcel.sweep(engine().directory)

    def step(self, step: Step, answered: Answered) -> None:
        """Do one step; `answered` gets the answer or the error, sooner or later, on this loop."""
        if step.what == "release":
            self._release(step.transfer)
            answered({})
            return
        transfer = self.transfers.get(step.transfer)
        if transfer is None:
            if len(self.transfers) >= MOST_TRANSFERS:
                answered(TransferError("too many transfers are under way in this session", id="busy"))
                return
            transfer = self.transfers[step.transfer] = Transfer()
        transfer.touched = time.monotonic()
        if not all(map(self.dock.known, transfer.streams)):
            transfer.answers.clear()  # nobody came for too long: it begins anew
            transfer.streams.clear()
        same = msgspec.msgpack.encode((step.what, step.data))
        if same in transfer.answers:
            answered(transfer.answers[same])
        elif same in transfer.under_way:
            transfer.under_way[same].append(answered)
        else:
            transfer.under_way[same] = [answered]
            settle = functools.partial(self._settle, step.transfer, transfer, same)
            try:
                self._begin(step, transfer, settle)
            except RemoterError as error:
                settle(error)
            except Exception as error:  # what makes no sense must not leave its sender waiting
                log.info("a step that is not understood: %r", error)
                settle(TransferError(f"the step `{ascii(step.what)[1:-1]}` is not understood", id="step"))

    def expect(self, id: str) -> None:
        """A run has kept a value for that transfer: if nobody comes for it, it is let go."""
        if id not in self.transfers:
            self.transfers[id] = Transfer()
        self.transfers[id].touched = time.monotonic()
        self.transfers[id].is_kept = True

    def tidy(self) -> None:
        """Now and then: let go of what nobody comes for any more. The dock knows who still may."""
        before = time.monotonic() - FORGET
        for id, transfer in list(self.transfers.items()):
            is_open = any(map(self.dock.known, transfer.streams)) or transfer.under_way
            if not is_open and transfer.touched < before:
                self._release(id)

    def _settle(
        self, id: str, transfer: Transfer, same: bytes, answer: dict[str, Any] | RemoterError
    ) -> None:
        if isinstance(answer, dict):
            transfer.answers[same] = answer
        for answered in transfer.under_way.pop(same, []):
            answered(answer)
        is_open = transfer.streams or transfer.under_way or transfer.freight or transfer.is_kept
        if not is_open and self.transfers.get(id) is transfer:
            del self.transfers[id]  # that was all of it

    def _begin(self, step: Step, transfer: Transfer, settle: Answered) -> None:
        match step.what:
            case "find" | "remove":
                self._ask(step.what, step, lambda answer: settle(answer))
            case "pull" if self.engine().gives_files:
                self._pull_parcel(step, transfer, settle)
            case "push" if self.engine().gives_files:
                self._push_parcel(step, transfer, settle)
            case "pull":
                self._pull(step, transfer, settle)
            case "push":
                self._push(step, transfer, settle)
            case "read" | "write" | "select":
                self._look_at_paths(step, transfer, settle)
            case _:
                raise ValueError(step.what)

    def _release(self, id: str) -> None:
        """It is over, or given up. What the interpreter holds for it, or works on for it, goes too."""
        transfer = self.transfers.pop(id, None)
        self.give_up(id)
        if transfer is not None:
            transfer.is_over = True
            self._end_streams(id, transfer)
        if transfer is None or transfer.freight is None:
            self._drop(id)

    def _drop(self, id: str) -> None:
        """The interpreter need not hold its object any longer."""
        self.engine().query({"what": "drop", "transfer": id}, lambda frame: None)

    def _end_streams(self, id: str, transfer: Transfer) -> None:
        if transfer.line is not None:
            transfer.line.stop()
        if transfer.parcel is not None:
            transfer.parcel.close()
        for suffix in ("", "-m"):
            self.dock.drop(id + suffix)

    def close(self) -> None:
        """The session is over."""
        for id in list(self.transfers):
            self._release(id)
        _parcel.sweep(self.engine().directory)
        self.threads.shutdown(wait=False, cancel_futures=True)

    # --- objects -----------------------------------------------------------------------------

    def _ask(self, what: str, step: Step, answered: Answered, **more: Any) -> None:
        question = {
            **step.data,
            "what": what,
            "transfer": step.transfer,
            "cloudpickle": _cloudpickle(),
            **more,
        }
        self.engine().query(question, lambda frame: answered(_answer_of(frame)))

    def _pull(self, step: Step, transfer: Transfer, settle: Answered) -> None:
        def packed(answer: dict[str, Any] | RemoterError) -> None:
            if isinstance(answer, dict):
                if "inline" in answer:
                    answer["inline"] = base64.b64decode(answer["inline"])
                elif transfer.is_over:
                    self._drop(step.transfer)
                else:
                    transfer.line = Line(self, step.transfer)
                    transfer.streams.add(step.transfer)
                    self.dock.offer(step.transfer, ObjectSource(transfer.line, sum(answer["sizes"])))
                    if step.data.get("here"):
                        self._copy_beside(step, transfer, answer, settle)
                        return
            settle(answer)

        log.info("PULL %s", ascii(step.data.get("name") or "a value"))
        self._ask("pack", step, packed)

    def _copy_beside(self, step: Step, transfer: Transfer, offer: dict[str, Any], settle: Answered) -> None:
        """For a client on this machine: have the interpreter copy the object to memory that the client can map."""
        places = _parcel.directories(None, sum(offer["sizes"]))
        if not places:
            settle(offer)
            return
        try:
            parcel = transfer.parcel = Parcel(places, _parcel.label(self.engine().directory))
        except TransferError:
            settle(offer)
            return

        def copied(answer: dict[str, Any] | RemoterError) -> None:
            if isinstance(answer, RemoterError) or transfer.is_over:
                parcel.close()  # it goes through the dock, if at all
            else:
                parcel.seal()
                offer["file"] = msgspec.to_builtins(parcel.where())
            settle(offer)

        self._ask("copy", step, copied, path=str(parcel.path))

    def _push(self, step: Step, transfer: Transfer, settle: Answered) -> None:
        log.info("PUSH %s", ascii(step.data.get("name")))
        data = step.data
        if "inline" in data:
            inline = base64.b64encode(data["inline"]).decode()
            self._ask("receive", step, settle, inline=inline)
            return
        if "file" in data:
            as_step(data["file"], FileHere)
            self._ask("receive", step, settle)
            return
        line = transfer.line = Line(self, step.transfer)
        sink = ObjectSink(line, sum(data["sizes"]))
        question = {**data, "what": "receive", "transfer": step.transfer, "cloudpickle": _cloudpickle()}

        def ready(answer: dict[str, Any] | RemoterError) -> None:
            if isinstance(answer, dict) and not transfer.is_over:
                transfer.streams.add(step.transfer)
                self.dock.accept(step.transfer, sink, lambda done, error: None)
            settle(answer)

        line.connect(question, ready)

    # --- objects of an interpreter that writes and reads files -----------------------------------

    def _pull_parcel(self, step: Step, transfer: Transfer, settle: Answered) -> None:
        log.info("PULL %s", ascii(step.data.get("name") or "a value"))
        directory = self.engine().directory
        places = _parcel.directories(directory)

        def fill() -> None:
            parcel = Parcel(places, _parcel.label(directory), LEAD)

            def packed(answer: dict[str, Any] | RemoterError) -> None:
                if isinstance(answer, RemoterError) and len(places) > 1 and not _parcel.has_room():
                    parcel.close()
                    del places[0]  # it was too large for shared memory
                    fill()
                elif isinstance(answer, RemoterError):
                    parcel.close()
                    settle(answer)
                else:
                    settle(self._offer_parcel(step, transfer, parcel, answer))

            self._ask("pack", step, packed, path=str(parcel.path))

        fill()

    def _offer_parcel(
        self, step: Step, transfer: Transfer, parcel: Parcel, answer: dict[str, Any]
    ) -> dict[str, Any]:
        parcel.seal()
        offer: dict[str, Any] = {"tree": "", "sizes": [parcel.size], "format": "r"}
        offer["type"] = str(answer.get("type") or "")
        if transfer.is_kept or transfer.is_over:
            self._drop(step.transfer)
        if parcel.size <= INLINE or transfer.is_over:
            data = memoryview(bytearray(min(parcel.size, INLINE)))
            parcel.read(0, data)
            parcel.close()
            return {**offer, "inline": bytes(data)}
        if step.data.get("here"):
            offer["file"] = msgspec.to_builtins(parcel.where())
        transfer.streams.add(step.transfer)
        self.dock.offer(step.transfer, parcel)
        return offer

    def _push_parcel(self, step: Step, transfer: Transfer, settle: Answered) -> None:
        data = step.data
        log.info("PUSH %s", ascii(data.get("name")))
        if data.get("format") != "r":
            raise TransferError("an R session takes only what R has serialized", id="kind")
        sizes, directory = data["sizes"], self.engine().directory
        parcel = Parcel(_parcel.directories(directory, sum(sizes)), _parcel.label(directory))
        question: dict[str, Any] = {"what": "bind", "transfer": step.transfer, "path": str(parcel.path)}
        question.update(name=data.get("name"), overwrite=data.get("overwrite", True))

        def bind(answered: Answered) -> None:
            self.engine().query(question, lambda frame: answered(_answer_of(frame)))

        def bound(answer: dict[str, Any] | RemoterError) -> None:
            parcel.close()
            settle(answer)

        if "inline" in data:
            try:
                parcel.write(memoryview(data["inline"]))
            except (OSError, TypeError) as error:
                bound(error_from(error, "write"))
            else:
                bind(bound)
            return
        line = transfer.line = Line(self, step.transfer)
        transfer.streams.add(step.transfer)
        sink = ParcelSink(parcel, sum(sizes), lambda: line.wait_for(bind))
        self.dock.accept(step.transfer, sink, lambda done, error: None)
        settle({"ready": True})

    # --- files -------------------------------------------------------------------------------

    def _look_at_paths(self, step: Step, transfer: Transfer, settle: Answered) -> None:
        log.info("FILES %s %s", step.what, ascii(step.data.get("path")))
        directory = Path(self.directory())

        def check() -> None:
            if transfer.is_over:
                raise TransferError("the transfer was given up", id="cancelled")

        def look() -> Freight:
            from . import _freight

            if step.what == "read":
                return _freight.offer_path(step.data, directory, self.files_root, check)
            if step.what == "write":
                return _freight.accept_path(step.data, directory, self.files_root)
            if transfer.freight is None:
                raise TransferError("there is nothing to select from", id="unknown")
            return _freight.select(transfer.freight, step.data)

        def looked(work: asyncio.Future[Freight]) -> None:
            try:
                freight = work.result()
            except RemoterError as error:
                settle(error)
            except OSError as error:
                settle(TransferError(f"`{error.filename}` cannot be used", cause=error.strerror, id="path"))
            except asyncio.CancelledError:
                settle(TransferError("the session ends", id="cancelled"))
            except Exception as error:  # our own mistake must not leave the client waiting
                log.exception("a path was not understood")
                settle(TransferError("the server failed", cause=str(error)))
            else:
                self._load(step.transfer, transfer, freight)
                settle(freight.reply)

        work = asyncio.ensure_future(self.loop.run_in_executor(self.threads, look))
        work.add_done_callback(looked)

    def _load(self, id: str, transfer: Transfer, freight: Freight) -> None:
        transfer.freight = freight
        transfer.streams.update(id + suffix for suffix in freight.streams)
        for suffix, stream in freight.streams.items():
            if transfer.is_over:
                stream.close()
            elif hasattr(stream, "write"):
                self.dock.accept(id + suffix, cast("Sink", stream), lambda done, error: None)
            else:
                self.dock.offer(id + suffix, stream)


def _answer_of(frame: dict[str, Any]) -> dict[str, Any] | RemoterError:
    """The interpreter's answer, or the error that it is."""
    if "error" in frame:
        return TransferError(str(frame["error"]))
    data: dict[str, Any] = frame.get("data") or {}
    if "refused" in data:
        return error_of(msgspec.convert(data["refused"], Refused))
    return data


@functools.cache
def _cloudpickle() -> str | None:
    """Where this environment has cloudpickle, for interpreters that have none of their own."""
    found = importlib.util.find_spec("cloudpickle")
    places = found.submodule_search_locations if found is not None else None
    return next(iter(places), None) if places else None


# --- the interpreter's end of a stream -------------------------------------------------------


class Line:
    """The unix socket to the interpreter for one object; made on the loop, used in one of the dock's threads."""

    def __init__(self, cargo: Cargo, transfer: str) -> None:
        self.cargo = cargo
        self.transfer = transfer
        self.lock = threading.Lock()
        self.socket: socket.socket | None = None
        self.is_stopped = False

    def connect(self, question: dict[str, Any], answered: Answered) -> None:
        """On the loop: have the interpreter connect; answered when it has, or has refused.

        Both come by themselves: its answer to the question, and its connection.
        """
        question["stream"] = stream = os.urandom(8).hex()
        engine, arrived = self.cargo.engine(), {}

        def look(**news: Any) -> None:
            arrived.update(news)
            if isinstance(arrived.get("answer"), RemoterError):
                engine.awaited_streams.pop(stream, None)
                answered(arrived["answer"])
            elif "answer" in arrived and "socket" in arrived:
                taken = self._take(arrived["socket"])
                answered(arrived["answer"] if taken else TransferError(_GONE, id="gone"))

        engine.awaited_streams[stream] = lambda sock: look(socket=sock)
        engine.query(question, lambda frame: look(answer=_answer_of(frame)))

    def _take(self, sock: socket.socket | None) -> bool:
        with self.lock:
            if sock is None or self.is_stopped:
                if sock is not None:
                    sock.close()
                return False
            old, self.socket = self.socket, sock
        if old is not None:
            old.close()
        return True

    def wait_for(self, begin: Callable[[Answered], None]) -> dict[str, Any]:
        """In a thread: have something begun on the loop and wait for its answer. Raises RemoterError."""
        answer: Future[dict[str, Any] | RemoterError] = Future()
        try:
            self.cargo.loop.call_soon_threadsafe(begin, answer.set_result)
        except RuntimeError:
            raise TransferError("the session ends", id="cancelled") from None
        while True:
            with contextlib.suppress(TimeoutError):
                found = answer.result(NAP)
                break
            if self.is_stopped:
                raise TransferError("the transfer was given up", id="cancelled")
        if isinstance(found, RemoterError):
            raise found
        return found

    def stop(self) -> None:
        """From anywhere: whoever waits for it goes on, with an error."""
        with self.lock:
            self.is_stopped = True
            if self.socket is not None:
                with contextlib.suppress(OSError):
                    self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """In the thread: the last that is done with it."""
        self.stop()
        with self.lock:
            if self.socket is not None:
                self.socket.close()
                self.socket = None


class ObjectSource:
    """An object of the interpreter, as a source."""

    def __init__(self, line: Line, size: int) -> None:
        self.size = size
        self._line = line
        self._position = -1

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the stream from `offset` on. Another place than the last one ended at means a new line."""
        if offset != self._position:
            question = {"what": "send", "transfer": self._line.transfer, "offset": offset}
            self._line.wait_for(lambda answered: self._line.connect(question, answered))
            self._position = offset
        while into.nbytes:
            size = _receive(self._line.socket, into)
            self._position += size
            into = into[size:]

    def close(self) -> None:
        self._line.close()


class ObjectSink:
    """An object of the interpreter that is yet to be, as a sink."""

    def __init__(self, line: Line, size: int) -> None:
        self.size = size
        self.position = 0
        self._line = line

    def write(self, data: memoryview) -> None:
        """Pass the next bytes on."""
        if self._line.socket is None:
            raise TransferError(_GONE, id="gone")
        try:
            self._line.socket.sendall(data)
        except OSError:
            self._explain()
        self.position += data.nbytes

    def _explain(self) -> None:
        """The interpreter has closed the line before the end: its answer to `bind` tells why."""
        self._bind()
        raise TransferError(_GONE, id="gone")

    def finish(self) -> dict[str, Any]:
        """All is there: it gets its name."""
        return self._bind()

    def _bind(self) -> dict[str, Any]:
        question = {"what": "bind", "transfer": self._line.transfer}
        engine = self._line.cargo.engine
        return self._line.wait_for(
            lambda answered: engine().query(question, lambda frame: answered(_answer_of(frame)))
        )

    def close(self) -> None:
        self._line.close()


def _receive(sock: socket.socket | None, into: memoryview) -> int:
    try:
        # In one system call: the interpreter's thread fills what it can, and nobody is woken for each part.
        size = sock.recv_into(into, into.nbytes, socket.MSG_WAITALL) if sock is not None else 0
    except OSError:
        size = 0
    if not size:
        raise TransferError(_GONE, cause="it has ended, or was restarted", id="gone")
    return size
