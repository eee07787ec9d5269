"""What every engine does: the server's side of one worker; in the server's process, on its control loop.

An engine and its worker meet by name in the run directory: `worker.sock`, to which the worker
connects twice, and three FIFOs for the worker's file descriptors 0, 1 and 2. Nothing is
inherited, so a restarted server finds the worker that outlived the last one.

    control   runs and answers go out; results, displays, errors, asks and `done` come back,
              numbered, and kept by the worker until the server has them in its journal
    side      questions (completion, variables, objects that come and go, ...) that a thread of the
              worker answers while its main thread runs user code
    data      one for each object that is under way: its bytes and nothing else, read or written by
              a thread of its own here (`_cargo`)
    out, err  bytes as they are printed, by whatever part of the process prints them

Order. The worker flushes what it printed before it sends a frame, and here both FIFOs are
read empty before a frame is handled: so no result overtakes an earlier line. After a frame in
the middle of a run (`wait`) the worker prints nothing until it hears that we have it: so no later
line overtakes a result. Between stdout and stderr Python's own writes keep their order, since the
worker waits for a line on stderr to be read; what C and other programs write to both has
only the order in which it is read, as with any two pipes.

Floods. Reading each printed line by itself would cost an event a line. A FIFO that was read
less than 2 ms ago is therefore left alone for 3 ms, in which a fast printer fills it, while a
slow one is still read at once. (Figures: a flood of 300,000 lines takes 0.6 of the time, one
line in a slow loop still arrives after 0.1 ms.)
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import logging
import os
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from .._messages import Submit
from .._workers import worker_command
from .processes import is_gone

log = logging.getLogger("remoter.engine")

HEADER = struct.Struct("!II")
READ_SIZE = 128 * 1024
"""Bytes read at a time, into a place that is kept: new memory of that size costs more than a short line."""

RECENT = 0.002
PAUSE = 0.003
LARGE = 4096
LONGEST_FRAME = 256 * 1024 * 1024
SEND_BUFFER = 64 * 1024 * 1024
DEATH_GRACE = 3.0
COMES_BACK = 5.0


class WorkerEnd(msgspec.Struct, frozen=True):
    """How a worker ended: by a signal, with an exit code, or unknown (it was not our keeper's child)."""

    signal: int | None = None
    code: int | None = None

    def __str__(self) -> str:
        """For a person."""
        if self.signal is not None:
            with contextlib.suppress(ValueError):
                name = signal.Signals(self.signal).name
                return f"the interpreter was ended by {name} (signal {self.signal})"
            return f"the interpreter was ended by signal {self.signal}"
        if self.code is not None:
            return f"the interpreter ended with exit code {self.code}"
        return "the interpreter ended"


class Listener(Protocol):
    """The session, as its engine sees it."""

    def worker_ready(self, info: dict[str, Any]) -> None:
        """The worker has said hello; `info` is that greeting."""

    def worker_free(self, last: int) -> None:
        """The worker can take a run; `last` is the number of the last one that it accepted."""

    def worker_printed(self, stream: str, text: str) -> None:
        """Text came out of `stdout` or `stderr`."""

    def worker_said(self, frame: dict[str, Any], buffers: dict[str, bytes]) -> None:
        """A numbered frame of the worker, handed over once and in order."""

    def worker_paused(self) -> None:
        """All that had come by now was handed over."""

    def worker_ended(self, end: WorkerEnd) -> None:
        """The worker is gone and all that it had printed was handed over."""


class Stream:
    """The reading end of one FIFO on which a worker prints."""

    def __init__(self, path: Path, name: str, printed: Callable[[str, str], None]) -> None:
        self.name = name
        self.printed = printed
        self.loop = asyncio.get_running_loop()
        # Opened for writing too: the FIFO never reports an end of file, whoever opens and closes it.
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.space = bytearray(READ_SIZE)
        self.last_read = 0.0
        self.last_size = 0
        self.other: Stream | None = None
        self.resume: asyncio.TimerHandle | None = None
        self.loop.add_reader(self.descriptor, self.readable)

    def readable(self) -> None:
        """Hand over what is there, or wait a moment for more where much is coming."""
        now = time.monotonic()
        is_flood = self.name == "stdout" or self.last_size >= LARGE
        if is_flood and now - self.last_read < RECENT:
            self.loop.remove_reader(self.descriptor)
            self.resume = self.loop.call_later(PAUSE, self._resume)
        else:
            self._read(READ_SIZE)

    def _resume(self) -> None:
        self.resume = None
        self._read(READ_SIZE)
        self.loop.add_reader(self.descriptor, self.readable)

    def _read(self, size: int) -> int:
        try:
            size = os.readv(self.descriptor, [memoryview(self.space)[:size]])
        except BlockingIOError:
            return 0
        self.last_read = time.monotonic()
        self.last_size = size
        if self.other is not None:
            self.other.last_read = 0.0
        text = self.decoder.decode(bytes(memoryview(self.space)[:size]))
        if text:
            self.printed(self.name, text)
        return size

    def drain(self) -> None:
        """Hand over exactly what was printed up to now; later bytes are left for later."""
        waiting = struct.unpack("i", fcntl.ioctl(self.descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
        while waiting > 0 and (size := self._read(min(waiting, READ_SIZE))):
            waiting -= size

    def finish(self) -> None:
        """Hand over a character that was begun and never ended."""
        if text := self.decoder.decode(b"", final=True):
            self.printed(self.name, text)
        self.decoder.reset()

    def close(self) -> None:
        if self.resume is not None:
            self.resume.cancel()
        self.loop.remove_reader(self.descriptor)
        os.close(self.descriptor)


class Connection:
    """One connection of the worker: frames in, frames out, never waiting."""

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[Connection, dict[str, Any], dict[str, bytes]], None],
        closed: Callable[[Connection], None],
        paused: Callable[[], None],
    ) -> None:
        self.sock = sock
        self.received = received
        self.paused = paused
        self.closed = closed
        self.role: str | None = None
        self.loop = asyncio.get_running_loop()
        self.space = bytearray(2 * READ_SIZE)
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.open = True
        sock.setblocking(False)
        self.loop.add_reader(sock, self._readable)

    def send(self, header: dict[str, Any]) -> None:
        """Send a frame; what the worker does not read yet is kept."""
        if not self.open:
            return
        encoded = msgspec.json.encode(header)
        data = HEADER.pack(len(encoded), 0) + encoded
        if not self.outgoing:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
            data = data[sent:]
            self.loop.add_writer(self.sock, self._writable)
        self.outgoing += data
        if len(self.outgoing) > SEND_BUFFER:
            self.close()  # a worker that reads nothing; it will say hello again

    def _writable(self) -> None:
        try:
            sent = self.sock.send(self.outgoing)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self.outgoing[:sent]
        if not self.outgoing:
            self.loop.remove_writer(self.sock)

    def _readable(self) -> None:
        try:
            size = self.sock.recv_into(self.space)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self.close()
            return
        self.incoming += memoryview(self.space)[:size]
        while self.open and (frame := self._take()) is not None:
            self.received(self, *frame)
        self.paused()

    def _take(self) -> tuple[dict[str, Any], dict[str, bytes]] | None:
        if len(self.incoming) < HEADER.size:
            return None
        header_size, body_size = HEADER.unpack_from(self.incoming)
        end = HEADER.size + header_size + body_size
        if end > LONGEST_FRAME:
            self.close()
            return None
        if len(self.incoming) < end:
            return None
        body_start = HEADER.size + header_size
        try:
            header = msgspec.json.decode(self.incoming[HEADER.size : body_start])
            buffers: dict[str, bytes] = {}
            position = body_start
            for key, length in header.pop("buffers", ()):
                buffers[str(key)] = bytes(self.incoming[position : position + length])
                position += length
        except (ValueError, TypeError, AttributeError, RecursionError):  # msgspec's errors are ValueErrors
            self.close()  # user code wrote to our socket: start afresh
            return None
        del self.incoming[:end]
        return header, buffers

    def detach(self) -> socket.socket:
        """The socket, for somebody else; blocking, and told that it has found him."""
        self.open = False
        self.loop.remove_reader(self.sock)
        self.loop.remove_writer(self.sock)
        self.sock.setblocking(True)
        with contextlib.suppress(OSError):
            self.sock.send(b"!")
        return self.sock

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self.loop.remove_reader(self.sock)
        self.loop.remove_writer(self.sock)
        self.sock.close()
        self.closed(self)


class Engine:
    """One worker of one session.

    Args:
        directory: the run directory.
        listener: the session.
        configuration: what the session was started with.
        signal_group: whether the worker leads a process group of its own, which is then
            interrupted as a whole, as a terminal would.
    """

    lang = ""
    gives_files = False
    """Whether its worker writes an object that crosses to a file, and reads it from one (else: to a connection)."""

    def __init__(
        self, directory: Path, listener: Listener, configuration: dict[str, Any], *, signal_group: bool
    ) -> None:
        self.directory = directory
        self.listener = listener
        self.configuration = configuration
        self.signal_group = signal_group
        self.worker_id = ""
        self.pid: int | None = None
        self.frame = 0
        self.unacknowledged = 0
        self.is_awaited = False
        self.is_drained = False
        self.control: Connection | None = None
        self.side: Connection | None = None
        self.questions: dict[int, Callable[[dict[str, Any]], None]] = {}
        self.question = 0
        self.early: list[dict[str, Any]] = []
        self.strangers: set[Connection] = set()
        self.awaited_streams: dict[str, Callable[[socket.socket | None], None]] = {}
        self.ended = False
        self.loop = asyncio.get_running_loop()
        self.streams = [
            Stream(directory / file, name, listener.worker_printed)
            for file, name in (("out", "stdout"), ("err", "stderr"))
        ]
        self.streams[0].other, self.streams[1].other = self.streams[1], self.streams[0]
        self.interrupts = os.open(directory / "interrupt", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.input = os.open(directory / "in", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.door = self._listen()

    def command(self, worker_id: str) -> dict[str, Any]:
        """What the keeper starts: `argv`, `env`, `cwd`."""
        command: dict[str, Any] = worker_command(self.configuration, str(self.directory), worker_id)
        return command

    # --- the worker's connections ------------------------------------------------------------

    def _listen(self) -> socket.socket:
        path = self.directory / "worker.sock"
        path.unlink(missing_ok=True)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.bind(str(path))
        door.listen(16)
        door.setblocking(False)
        self.loop.add_reader(door, self._accept)
        return door

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self.door.accept()
            self.strangers.add(Connection(sock, self._first, self.strangers.discard, self._paused))

    def _first(self, connection: Connection, frame: dict[str, Any], _: dict[str, bytes]) -> None:
        """The worker's hello; from one that was replaced, nothing is taken."""
        if frame.get("type") != "hello" or frame.get("worker") != self.worker_id or self.ended:
            connection.close()
            return
        if frame.get("role") == "data":
            self._hand_over(connection, str(frame.get("stream")))
            return
        self.strangers.discard(connection)
        connection.role = str(frame.get("role"))
        connection.closed = self._lost
        self.pid = int(frame["pid"])
        if connection.role == "side":
            old, self.side = self.side, connection
            connection.received = self._reply
            if old is not None:
                old.close()
            early, self.early = self.early, []
            for question in early:
                connection.send(question)
            self.listener.worker_ready(frame)
        else:
            old, self.control = self.control, connection
            connection.received = self._said
            if old is not None:
                old.close()
            connection.send({"type": "welcome", "received": self.frame})
            self.listener.worker_free(int(frame["last"]))

    def _hand_over(self, connection: Connection, stream: str) -> None:
        """A connection for the bytes of one object: for whoever waits for it, and no more ours."""
        self.strangers.discard(connection)
        connected = self.awaited_streams.pop(stream, None)
        if connected is None:
            connection.close()
        else:
            connected(connection.detach())

    def _said(self, _: Connection, frame: dict[str, Any], buffers: dict[str, bytes]) -> None:
        number = frame.get("frame")
        if not isinstance(number, int) or number <= self.frame:
            return
        if not self.is_drained:  # once for all frames that came in one piece
            self.is_drained = True
            for stream in self.streams:
                stream.drain()
        if frame.get("type") == "done":
            for stream in self.streams:
                stream.finish()
        self.frame = number
        self.is_awaited = self.is_awaited or bool(frame.get("wait"))
        self.unacknowledged += 1 + sum(map(len, buffers.values())) // 65536
        self.listener.worker_said(frame, buffers)

    def _paused(self) -> None:
        """All frames that had come were handed over."""
        self.is_drained = False
        self.listener.worker_paused()

    def journaled(self) -> None:
        """All that was handed over is in the journal: tell a worker that waits for that, or that keeps much."""
        if self.is_awaited and self.control is not None:
            self.control.send({"type": "received", "received": self.frame})
            self.is_awaited = False
            self.unacknowledged = 0
        if self.unacknowledged > 64 and self.side is not None:
            self.side.send({"type": "received", "received": self.frame})
            self.unacknowledged = 0

    def _reply(self, _: Connection | None, frame: dict[str, Any], __: dict[str, bytes]) -> None:
        answered = self.questions.pop(frame.get("id", 0), None)
        if answered is not None:
            _tell(answered, frame)

    def _lost(self, connection: Connection) -> None:
        if connection is self.control:
            self.control = None
        if connection is self.side:
            self.side = None
            questions, self.questions = self.questions, {}
            for answered in questions.values():
                _tell(answered, {"error": "the interpreter is gone"})
            streams, self.awaited_streams = self.awaited_streams, {}
            for connected in streams.values():
                connected(None)

    # --- what the session asks for -----------------------------------------------------------

    @property
    def is_free(self) -> bool:
        """Whether a run can be handed over now."""
        return self.control is not None

    def run(self, number: int, submit: Submit) -> None:
        """Hand a run to the worker. The worker ignores a number that it has had."""
        assert self.control is not None
        self.control.send(
            {
                "type": "run",
                "number": number,
                "code": submit.code,
                "mode": submit.mode,
                "filename": submit.filename,
                "keep_going": submit.keep_going,
                "timer": submit.timer,
                "width": submit.width,
                "color": submit.color,
                "detached": submit.detached,
                "keep": submit.keep,
                "received": self.frame,
            }
        )
        self.unacknowledged = 0

    def answer(self, ask: int, text: str | None) -> None:
        """Pass on the answer to an ask; none is end of file."""
        if self.control is not None:
            self.control.send({"type": "answer", "ask": ask, "text": text})

    def type(self, text: str) -> None:
        """Type into the worker's standard input, for programs that it started."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.input, text.encode())

    def query(self, question: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        """Ask the worker's side thread; `answered` gets its reply, or an `error`."""
        self.question += 1
        self.questions[self.question] = answered
        frame = {**question, "type": "query", "id": self.question}
        if self.side is not None:
            self.side.send(frame)
        else:  # it was just started again, or we were: then it comes back in a moment
            self.early.append(frame)
            self.loop.call_later(0 if self.ended else COMES_BACK, self._give_up, frame)

    def _give_up(self, frame: dict[str, Any]) -> None:
        if frame not in self.early:
            return
        if self.pid is not None and not self.ended and not is_gone(self.pid):
            self.loop.call_later(COMES_BACK, self._give_up, frame)  # it is inside one long call of C code
        else:
            self.early.remove(frame)
            self._reply(self.side, {"id": frame["id"], "error": "the interpreter does not answer"}, {})

    def interrupt(self, number: int) -> None:
        """Interrupt the run `number`, if it is still the one that runs.

        Only a signal from outside interrupts everything: a lock, a sleep in C, a match that
        holds the interpreter. The number is written first, so that a signal that comes late
        hits no other run.
        """
        if self.pid is None:
            return
        with contextlib.suppress(BlockingIOError):
            os.write(self.interrupts, struct.pack("!Q", number))
        self.signal(2)

    def signal(self, number: int) -> None:
        """Send a signal to the worker, or to its whole process group."""
        if self.pid is None or self.ended:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.signal_group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def stop(self) -> None:
        """Ask the worker to end."""
        if self.control is not None:
            self.control.send({"type": "stop"})
        if self.signal_group:
            self.signal(15)

    # --- its end -----------------------------------------------------------------------------

    def has_ended(self, end: WorkerEnd) -> None:
        """The process is gone: hand over its last words, then say so, once."""
        if self.ended:
            return
        self.ended = True
        for connection in [self.control, self.side]:
            if connection is not None:
                if connection.open:
                    connection._readable()
                connection.close()
        for stream in self.streams:
            stream.drain()
            stream.finish()
        for frame in self.early.copy():
            self._give_up(frame)
        self.listener.worker_ended(end)

    def check(self) -> None:
        """Notice the end of a worker whose keeper cannot tell."""
        if self.pid is None or self.ended or self.side is not None:
            return
        if is_gone(self.pid):  # the keeper, if there is one, is about to say how
            self.loop.call_later(DEATH_GRACE, self.has_ended, WorkerEnd())

    def close(self) -> None:
        """Let go of everything; the worker, if it lives, waits for the next server."""
        self.loop.remove_reader(self.door)
        self.door.close()
        for connection in [self.control, self.side, *self.strangers]:
            if connection is not None:
                connection.closed = lambda _: None
                connection.close()
        for stream in self.streams:
            stream.close()
        os.close(self.interrupts)
        os.close(self.input)


def _tell(answered: Callable[[dict[str, Any]], None], frame: dict[str, Any]) -> None:
    """Pass an answer on; a mistake of ours must not keep others from theirs."""
    try:
        answered(frame)
    except Exception:
        log.exception("an answer was not taken")
