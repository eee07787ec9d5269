"""A unix socket here whose connections come out at a session there, each through an `ssh` of its own; in the client's process.

For hosts whose sshd forbids forwarding. Each connection has a few blocking threads and one ssh process:

    client ── our socket ── copying threads ── `ssh HOST` ── sshd ── sh, the script ── _bridge.py ── door.sock

The script goes first. The shell that reads it takes its input in blocks, so what the client writes has to
wait until the script has said, with a line that nobody else can know, that the bridge takes over; all that
was printed before (banners, what login files say) is dropped.

ssh gets sockets instead of pipes: `shutdown` wakes whatever waits on them, also when somebody who was
forked, or a master that hangs, holds a copy of the other end.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ._errors import RemoterError

PATIENCE = 10.0
"""Seconds for ssh and the script, up to the line that says that the bridge takes over."""

GRACE = 1.0
"""Seconds for ssh to end by itself, when nobody is there any more; and again, after SIGTERM."""

LONGEST_NOISE = 64 * 1024
"""Bytes that login files may print."""

LONGEST_DETAIL = 300
KEPT = 4096  # bytes of what ssh said last
BLOCK = 256 * 1024

Command = Callable[[], "tuple[list[str], bytes, str]"]
"""Gives the words that start ssh, the script for its input, and the script's nonce."""


class Tunnel:
    """Listens on a unix socket, which only this user can reach; each connection leads to the session.

    Args:
        path: where the socket is to be, in a private directory.
        command: called for each connection, on its thread.

    Raises:
        RemoterError: the socket cannot be made.
    """

    def __init__(self, path: Path, command: Command) -> None:
        self.path = path
        self.detail = ""
        """Why the last connection came to nothing, or broke; empty if it stands."""
        self._command = command
        self._lock = threading.Lock()
        self._passages: set[_Passage] = set()
        self._closed = threading.Event()
        self._listener = _listen(path)
        self._wakeup, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._accept_all, name="remoter-tunnel", daemon=True)
        self._thread.start()

    def _accept_all(self) -> None:
        poll = select.poll()
        for ready in (self._listener, self._wakeup):
            poll.register(ready, select.POLLIN)
        while not self._closed.is_set():
            poll.poll()
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:  # no descriptor is left: it stays in the queue
                self.detail = f"cannot accept a connection: {error.strerror}"
                self._closed.wait(0.1)
                continue
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        passage = _Passage(self, connection)
        with self._lock:
            if self._closed.is_set():
                connection.close()
                return
            self._passages.add(passage)
        try:
            passage.thread.start()
        except RuntimeError as error:  # no thread can be had
            self.detail = str(error)
            connection.close()
            self.forget(passage)

    def call(self) -> tuple[list[str], bytes, str]:
        """The command for one connection. Raises _FailedError."""
        try:
            return self._command()
        except RemoterError as error:
            raise _FailedError(error.message) from None

    def forget(self, passage: _Passage) -> None:
        """That connection has ended and left nothing behind."""
        with self._lock:
            self._passages.discard(passage)

    def close(self, grace: float = 0.0) -> None:
        """End all connections and their ssh processes, and remove the socket.

        Takes 2 s at most, and `grace`: so long, connections that their client has left may end by themselves.
        """
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            passages = list(self._passages)
        self._waker.close()
        self._thread.join()
        for each in (self._listener, self._wakeup):
            each.close()
        self.path.unlink(missing_ok=True)
        deadline = time.monotonic() + grace
        for passage in passages:
            passage.thread.join(max(0.0, deadline - time.monotonic()))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for passage in passages:
                passage.stop(number)
            deadline = time.monotonic() + GRACE
            for passage in passages:
                passage.thread.join(max(0.0, deadline - time.monotonic()))
            passages = [passage for passage in passages if passage.thread.is_alive()]


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(64)  # before this nobody gets in
    except OSError as error:
        listener.close()
        raise RemoterError(
            f"cannot listen on the socket `{path}`", cause=error.strerror or str(error), id="socket-path"
        ) from None
    listener.setblocking(False)
    return listener


# --- one connection --------------------------------------------------------------------------


class _FailedError(Exception):
    """Why a connection comes to nothing, in words for `Tunnel.detail`; without words, the client has gone."""


class _Passage:
    """One connection: a client of ours, an ssh process, and the threads between them.

    `run`, on the passage's own thread, starts ssh, carries what the session says to the client, and
    cleans up at the end. Another thread carries what the client says, and a third reads what ssh complains of.
    """

    def __init__(self, tunnel: Tunnel, connection: socket.socket) -> None:
        self.tunnel = tunnel
        self.connection = connection
        self.thread = threading.Thread(target=self.run, name="remoter-tunnel-out", daemon=True)
        self.others: list[threading.Thread] = []
        self.lock = threading.Lock()
        self.is_stopped = False
        self.has_left = False  # the client has ended its side
        self.process: subprocess.Popen[bytes] | None = None
        self.sockets: list[socket.socket] = []
        self.complaints = bytearray()

    def run(self) -> None:
        heard = bytearray()
        nonce = ""
        try:
            words, script, nonce = self.tunnel.call()
            process, into, out = self._start(words)
            rest = self._await_mark(into, out, script, nonce, heard)
            self.tunnel.detail = ""
            self.complaints.clear()  # what a login says is no reason for a later end
            self._begin(self._carry_in, "remoter-tunnel-in", into)
            is_cut_off = self._carry_out(out, rest)
            code = process.wait()
            if code and is_cut_off:
                raise _FailedError(self._why(b"", nonce, code))
        except EOFError:
            self._end_input()
            self._tell(self._why(bytes(heard), nonce, self._end_process()))
        except _FailedError as error:
            self._tell(str(error))
        except (OSError, RuntimeError) as error:  # no descriptor, no thread
            self._tell(str(error))
        finally:
            self._clean_up()

    def _tell(self, detail: str) -> None:
        if detail and not self.is_stopped:
            self.tunnel.detail = detail

    # --- ssh ---

    def _start(self, words: list[str]) -> tuple[subprocess.Popen[bytes], socket.socket, socket.socket]:
        """The process, and our ends of its input and its output."""
        pairs = [socket.socketpair() for _ in range(3)]
        self.sockets = [ours for ours, _ in pairs]
        try:
            with self.lock:
                if self.is_stopped:
                    raise _FailedError
                self.process = subprocess.Popen(
                    words,
                    stdin=pairs[0][1].fileno(),
                    stdout=pairs[1][1].fileno(),
                    stderr=pairs[2][1].fileno(),
                    start_new_session=True,  # Ctrl-C is not for it, and it cannot ask on our terminal
                )
        except OSError as error:
            raise _FailedError(f"cannot start `{words[0]}`: {error.strerror}") from None
        finally:
            for _, theirs in pairs:
                theirs.close()
        for ours in self.sockets:
            ours.setblocking(True)
        self._begin(self._read_complaints, "remoter-tunnel-errors", self.sockets[2])
        return self.process, self.sockets[0], self.sockets[1]

    def _begin(self, work: Callable[[socket.socket], None], name: str, argument: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(argument,), name=name, daemon=True)
        thread.start()
        self.others.append(thread)

    def _read_complaints(self, source: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(KEPT):
                self.complaints += piece
                del self.complaints[:-KEPT]

    def _await_mark(
        self, into: socket.socket, out: socket.socket, script: bytes, nonce: str, heard: bytearray
    ) -> bytes:
        """Send the script and read up to its line `raw`. Returns what came after the line.

        Raises:
            EOFError: it has ended, or says that it failed.
            _FailedError: it takes too long, it prints too much, the client is gone.
        """
        mark, end = f"remoter:{nonce} raw\n".encode(), f"remoter:{nonce} end\n".encode()
        deadline = time.monotonic() + PATIENCE
        poll = select.poll()
        poll.register(self.connection, 0)  # its end is told unasked
        poll.register(out, select.POLLIN)
        poll.register(into, select.POLLOUT)
        into.setblocking(False)
        unsent = memoryview(script)
        while unsent or mark not in heard:
            left = deadline - time.monotonic()
            ready = [descriptor for descriptor, _ in poll.poll(1000 * left)] if left > 0 else []
            if not ready:
                last = self._last_complaint()
                raise _FailedError(f"no answer within {PATIENCE:g} s" + (f": {last}" if last else ""))
            if self.connection.fileno() in ready:
                raise _FailedError
            if into.fileno() in ready:
                unsent = _send_some(into, unsent)
                if not unsent:
                    poll.unregister(into)
            if out.fileno() in ready:
                piece = out.recv(LONGEST_NOISE)
                heard += piece
                if not piece or end in heard:
                    raise EOFError
                if len(heard) > LONGEST_NOISE + len(mark) and mark not in heard:
                    raise _FailedError(f"the login there prints more than {LONGEST_NOISE // 1024} KiB")
        into.setblocking(True)
        return bytes(heard[heard.find(mark) + len(mark) :])

    def _why(self, heard: bytes, nonce: str, code: int) -> str:
        """What went wrong: by the script, by ssh, by what the login printed, or by the exit status."""
        if self.others:
            self.others[0].join(GRACE)  # ssh's last words
        failed = re.findall(rf"remoter:{nonce} failed (\S+)".encode(), heard)
        said = re.findall(rf"remoter:{nonce} said ([^\n]*\S[^\n]*)".encode(), heard)
        if failed:
            last = _last_line(said[-1]) if said else self._last_complaint()
            return f"the step `{_last_line(failed[-1])}` failed there" + (f": {last}" if last else "")
        by_itself = f"ssh ended with status {code}" if code >= 0 else f"ssh was ended by signal {-code}"
        return self._last_complaint() or _last_line(heard) or by_itself

    def _last_complaint(self) -> str:
        return _last_line(bytes(self.complaints))

    # --- the bytes ---

    def _carry_out(self, out: socket.socket, rest: bytes) -> bool:
        """From the session to the client, until one of them ends it. Returns whether the client had not."""
        try:
            self.connection.sendall(rest)
            _copy(out, self.connection)
            is_cut_off = not self.has_left
            self.connection.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone
            self._end_process()
            return False
        return is_cut_off

    def _carry_in(self, into: socket.socket) -> None:
        """From the client to the session, until one of them ends it."""
        try:
            _copy(self.connection, into)
        except OSError:
            return  # ssh has ended: `run` sees that
        self.has_left = True
        self._end_input()
        poll = select.poll()
        poll.register(self.connection, 0)
        poll.poll()  # it may still want to hear; this returns when it is wholly gone
        self._end_process()

    # --- the end ---

    def _end_input(self) -> None:
        with contextlib.suppress(OSError):
            self.sockets[0].shutdown(socket.SHUT_WR)

    def _end_process(self) -> int:
        """Let ssh end by itself for a moment, then end it. Returns its exit code."""
        assert self.process is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(GRACE)
            self._signal(number)
        return self.process.wait()

    def _signal(self, number: int) -> None:
        """To all of its group: what is called `ssh` may be a script that runs it."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def stop(self, number: int) -> None:
        """End it from outside: `run` cleans up."""
        with self.lock:
            self.is_stopped = True
            self._signal(number)
            self._wake()

    def _wake(self) -> None:
        """Have everybody who waits on a socket go on."""
        for each in [self.connection, *self.sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _clean_up(self) -> None:
        self._wake()
        self._signal(signal.SIGTERM)  # if it still runs, the client has gone or was sent away
        if self.process is not None:
            self._end_process()
        for thread in self.others:
            thread.join()
        with self.lock:
            for each in [self.connection, *self.sockets]:
                each.close()
        self.tunnel.forget(self)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    """All bytes up to the end. Raises OSError: the sink takes no more."""
    block = memoryview(bytearray(BLOCK))
    while size := _read(source, block):
        sink.sendall(block[:size])


def _read(source: socket.socket, block: memoryview) -> int:
    """How many bytes came; a broken connection is an end like others."""
    try:
        return source.recv_into(block)
    except OSError:
        return 0


def _send_some(sink: socket.socket, unsent: memoryview) -> memoryview:
    """Send what the sink takes now. Returns the rest; none if nobody reads any more, which the output tells."""
    try:
        return unsent[sink.send(unsent) :]
    except OSError as error:
        return unsent if isinstance(error, BlockingIOError) else unsent[:0]


def _last_line(said: bytes) -> str:
    """The last line that says something, fit to be shown."""
    lines = said.decode(errors="replace").split("\n")
    shown = ("".join(letter for letter in line if letter.isprintable()).strip() for line in reversed(lines))
    return next(filter(None, shown), "")[:LONGEST_DETAIL]
