"""The Python worker: runs the user's code; in the user's interpreter, on the server's machine.

It never touches the network: one unix socket and some FIFOs in the run directory tie it to the
server. Started as a program (`python_worker.py RUNDIR WORKERID RUNNER`) it is a session of its
own; imported, `serve_live` lends a living process to the server and gives it back.

This is one long file because it travels: it runs in any Python from 3.8 on with nothing but the
standard library, also where remoter is not installed. From top to bottom: frames and
connections, interrupts, streams, the two runners (plain, IPython), the side thread, the worker,
and what a living process gets back.
"""

from __future__ import annotations
import __future__

import ast
import base64
import builtins
import collections
import errno
import faulthandler
import fcntl
import io
import json
import linecache
import os
import re
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
import types

HERE = sys._getframe().f_code.co_filename  # as tracebacks name it
HIGH_FD = 200  # our own file descriptors live above those that user code is likely to number by hand
HIGHEST_FD = 900
next_high_fd = HIGH_FD
ORDER_TIME = 2.0  # seconds that a line on stderr waits for the server to read; none, if there is no server
SETTLE_TIME = 1.0  # seconds that a command waits for the server to take a value or a picture
NAP = 2.0  # seconds that the side thread sleeps when nothing happens
SOON = 0.005  # seconds until a server that is just starting, in the first second, is looked for again
TICK = 0.05  # seconds between flushes while a command runs
LONGEST_TEXT = 10_000_000  # characters that a result shows
LONGEST_FORM = 32_000_000  # characters or bytes of one of its other forms: all must fit into a message
PIPE_SIZE = 1 << 20
F_SETPIPE_SZ = 1031  # in `fcntl` only from Python 3.10 on; Linux
CO_COROUTINE = 0x80
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
SCALARS = {int, float, complex, bool, str, bytes, type(None)}
CONTAINERS = {list, tuple, set, frozenset, dict}
BUILTIN = SCALARS | CONTAINERS
FUTURES = 0
for _feature in __future__.all_feature_names:
    FUTURES |= getattr(__future__, _feature).compiler_flag
ANSI = re.compile(r"\x1b\[[0-9;]*m")
LENGTHS = struct.Struct("!II")
# User code may replace what is in `time`; we go on with what was there.
clock, stopwatch, pause = time.monotonic, time.perf_counter, time.sleep
to_json = json.JSONEncoder(separators=(",", ":")).encode


class Stopping(BaseException):
    """Raised in user code when the worker is told to end (SIGTERM)."""


def high(fd):
    """The same open file under a high, non-inherited number that was not ours a moment ago.

    User code may close all it can count to. Whoever still holds a closed number of ours must
    then get an error, and not by chance what another part of us has opened since.
    """
    global next_high_fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, next_high_fd)
    try:
        os.close(fd)
    except OSError:  # closed by user code in this very moment
        pass
    next_high_fd = moved + 1 if moved < HIGHEST_FD else HIGH_FD
    return moved


class Waker:
    """A pipe that ends a `poll` elsewhere; made again if user code closes it."""

    def __init__(self):
        self.open()

    def open(self):
        self.reader, self.sender = (high(fd) for fd in os.pipe())
        os.set_blocking(self.reader, False)
        os.set_blocking(self.sender, False)

    def fileno(self):
        return self.reader

    def wake(self):
        try:
            os.write(self.sender, b"x")
        except OSError:
            pass

    def clear(self):
        try:
            os.read(self.reader, 4096)
        except BlockingIOError:
            pass
        except OSError:
            self.open()

    def close(self):
        os.close(self.reader)
        os.close(self.sender)


def clean(text):
    """Text that any UTF-8 encoder takes: lone surrogates become escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


# --- frames and connections --------------------------------------------------------------------


def encode(header, buffers=()):
    """One frame: the lengths, the header as JSON, the named buffers."""
    if buffers:
        header["buffers"] = [[key, len(data)] for key, data in buffers]
    head = to_json(header).encode()
    body = b"".join(data for _, data in buffers)
    return LENGTHS.pack(len(head), len(body)) + head + body


class Connection:
    """One socket to the server: whole frames out, whole frames in."""

    def __init__(self, path, hello):
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            plain.settimeout(2.0)
            plain.connect(path)
            self.socket = socket.socket(fileno=high(plain.detach()))
        except BaseException:
            plain.close()
            raise
        self.socket.settimeout(None)
        self.buffer = bytearray()
        self.frames = collections.deque()
        self.socket.sendall(encode(hello))

    def fileno(self):
        return self.socket.fileno()

    def read(self):
        """Take in what has arrived. Raises EOFError when the server is gone."""
        try:
            data = self.socket.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise EOFError
        self.buffer += data
        while len(self.buffer) >= 8:
            head, body = LENGTHS.unpack_from(self.buffer)
            if len(self.buffer) < 8 + head + body:
                break
            self.frames.append(json.loads(self.buffer[8 : 8 + head].decode()))
            del self.buffer[: 8 + head + body]

    def expect(self, kind, deadline):
        """The first frame, which must be of that kind. Raises OSError."""
        while not self.frames:
            left = deadline - clock()
            poll = select.poll()
            poll.register(self.fileno(), select.POLLIN)
            if not poll.poll(max(0, left) * 1000):
                raise OSError(errno.ETIMEDOUT, "the server does not answer")
            try:
                self.read()
            except EOFError:
                raise OSError(errno.ECONNRESET, "the server is gone") from None
        frame = self.frames.popleft()
        if frame.get("type") != kind:
            raise OSError(errno.EPROTO, "the server says something else")
        return frame

    def is_dead(self):
        """Whether the other end has closed, without taking anything in."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self):
        try:
            self.socket.close()
        except OSError:
            pass


class Control:
    """The numbered frames to the server, kept until it has journaled them.

    A frame is first kept and then written, all under one lock and with interrupts held off, so
    that neither an exception nor a second thread can tear or reorder it. Without a connection
    frames are only kept; the side thread connects again and the rest is sent then.
    """

    def __init__(self, worker, path):
        self.worker = worker
        self.path = path
        self.lock = threading.RLock()
        self.connection = None
        self.kept = collections.deque()
        self.number = 0
        self.written = 0
        self.draining = False

    def connect(self):
        with self.lock:
            hello = {"type": "hello", "role": "control", "worker": self.worker.id, "pid": self.worker.pid}
            connection = Connection(self.path, dict(hello, last=self.worker.last, sent=self.number))
            try:
                received = connection.expect("welcome", clock() + 2)["received"]
            except BaseException:
                connection.close()
                raise
            self.acknowledge(received)
            self.written = received
            self.connection = connection
            self.drain()

    def lose(self, connection):
        """That connection has ended."""
        with self.lock:
            if self.connection is connection and connection is not None:
                self.connection = None
                connection.close()
                self.worker.side.waker.wake()

    def acknowledge(self, received):
        with self.lock:
            while self.kept and self.kept[0][0] <= received:
                self.kept.popleft()

    def post(self, header, buffers=(), hold=False):
        """Send a frame; `hold` lets it wait for the next one (or the next tick)."""
        if os.getpid() != self.worker.pid:
            return
        with self.worker.interrupts, self.lock:
            self.number += 1
            header["frame"] = self.number
            self.kept.append((self.number, encode(header, buffers)))
            if not hold:
                self.drain()

    def drain(self):
        """Write all kept frames that are not written yet."""
        with self.lock:
            # A signal handler of the user may come here while we are inside `sendall`: its frame
            # is kept by now, and the outer call writes it.
            if self.draining or self.written >= self.number:
                return
            self.draining = True
            try:
                while self.connection is not None and self.written < self.number:
                    newest = self.number
                    data = b"".join(
                        data for number, data in list(self.kept) if self.written < number <= newest
                    )
                    self.connection.socket.sendall(data)
                    self.written = newest
            except OSError:
                self.lose(self.connection)
            finally:
                self.draining = False


# --- interrupts --------------------------------------------------------------------------------


class Interrupts:
    """Decides what a SIGINT means. `with interrupts:` holds KeyboardInterrupt off for a moment.

    The server writes the number of the run it means to the FIFO `interrupt` and then signals, so
    that a signal which comes late never hits the next run. Signals merge and numbers do not: when
    one signal brought several numbers, the signals that may still follow without a number are
    ignored for a second. Any other signal without a number is somebody's Ctrl-C on this side.

    A signal that lands just before the main thread enters a system call does not end that call.
    So the side thread looks whether numbers stay unread, and then signals once more.
    """

    def __init__(self, worker, path):
        self.worker = worker
        self.path = path
        self.open()
        self.main = threading.get_ident()
        self.target = None  # the run that may be interrupted now
        self.started = 0  # the newest run that has begun
        self.early = set()  # runs that were interrupted before they began
        self.depth = 0
        self.pending = False
        self.overhang = 0
        self.overhang_until = 0.0
        self.unread_since = None
        self.saved = signal.getsignal(signal.SIGINT)

    def open(self):
        self.fifo = high(os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))

    def install(self):
        if signal.getsignal(signal.SIGINT) != self.handle:
            signal.signal(signal.SIGINT, self.handle)

    def begin(self, number):
        """From now on this run may be interrupted: KeyboardInterrupt comes, perhaps at once."""
        self.pending = False
        self.target = number
        self.started = number
        if number in self.early:
            self.early.discard(number)
            raise KeyboardInterrupt

    def read_numbers(self):
        try:
            data = os.read(self.fifo, 1 << 16)
        except BlockingIOError:
            return []
        except OSError:  # user code has closed it
            self.open()
            return self.read_numbers()
        return [number for (number,) in struct.iter_unpack("!Q", data[: len(data) // 8 * 8])]

    def nudge(self):
        """Wake the main thread when it has not read its numbers. Called by the side thread."""
        poll = select.poll()
        poll.register(self.fifo, select.POLLIN)
        if not any(event & select.POLLIN for _, event in poll.poll(0)):
            self.unread_since = None
        elif self.unread_since is None:
            self.unread_since = clock()
        elif clock() - self.unread_since >= TICK:
            self.unread_since = clock()
            # The number may be read in this very moment: then ours is a signal too many.
            self.overhang, self.overhang_until = self.overhang + 1, clock() + 1.0
            signal.pthread_kill(self.main, signal.SIGINT)
            if signal.getsignal(signal.SIGINT) != self.handle:  # the user's own, which knows of no numbers
                self.read_numbers()

    def handle(self, signum, frame):
        if os.getpid() != self.worker.pid:
            raise KeyboardInterrupt
        numbers = self.read_numbers()
        if clock() > self.overhang_until:
            self.overhang = 0
        if numbers:
            self.overhang += len(numbers) - 1
            self.overhang_until = clock() + 1.0
            self.early.update(number for number in numbers if number > self.started)
            if self.target is not None and self.target in numbers:
                self.strike()
        elif self.overhang:
            self.overhang -= 1
        elif self.target is not None:
            self.strike()
        elif self.worker.live and self.worker.run is None:
            self.worker.stop("stopped locally")

    def strike(self):
        if self.depth:
            self.pending = True
        else:
            raise KeyboardInterrupt

    def __enter__(self):
        if threading.get_ident() == self.main:
            self.depth += 1

    def __exit__(self, *exception):
        if threading.get_ident() == self.main:
            self.depth -= 1
            if not self.depth and self.target is not None:
                if self.worker.stopping == "terminated":
                    raise Stopping
                if self.pending:
                    self.pending = False
                    raise KeyboardInterrupt

    def close(self):
        os.close(self.fifo)


# --- streams -----------------------------------------------------------------------------------


class AskedInput(io.RawIOBase):
    """The bytes that the client types, line by line."""

    def __init__(self, worker):
        self.worker = worker
        self.rest = b""

    def readable(self):
        return True

    def fileno(self):
        return 0

    def readinto(self, target):
        if not self.rest:
            line = self.worker.ask("", False)
            self.rest = b"" if line is None else (line + "\n").encode("utf-8", "surrogateescape")
        count = min(len(target), len(self.rest))
        target[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count


class StandardInput(io.TextIOBase):
    """`sys.stdin`: asks the client. File descriptor 0 itself is a FIFO, for child processes."""

    encoding = "utf-8"
    errors = "surrogateescape"
    name = "<stdin>"
    mode = "r"

    def __init__(self, worker):
        self.worker = worker
        self.buffer = io.BufferedReader(AskedInput(worker), 1)

    def readable(self):
        return True

    def fileno(self):
        return 0

    def readline(self, size=-1):
        line = self.worker.ask("", False)
        return "" if line is None else line + "\n"

    def read(self, size=-1):
        if size is not None and size >= 0:
            return self.readline()
        return "".join(iter(self.readline, ""))


class ErrorFile(io.FileIO):
    """File descriptor 2 as Python writes to it: in order with what is printed to 1.

    Two pipes have no common order. So before a line goes out here, the server has read what was
    printed before it, and before the next can be printed there it has read this one. The price is
    a tenth of a millisecond for a line on stderr, and nothing for one on stdout.
    """

    def __init__(self, streams):
        super().__init__(2, "w", closefd=False)
        self.streams = streams

    def write(self, data):
        self.streams.wait_until_read(1)
        written = super().write(data)
        self.streams.wait_until_read(2)
        return written


def writer(raw, name):
    """A text stream over a file descriptor that it does not own."""
    is_error = name == "<stderr>"
    stream = io.TextIOWrapper(
        io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True, write_through=is_error
    )
    stream.mode = "w"
    raw.name = name
    return stream


def is_closed(stream):
    try:
        return stream is None or bool(getattr(stream, "closed", False))
    except ValueError:  # detached
        return True


class Streams:
    """File descriptors 0, 1, 2 on the FIFOs `in`, `out`, `err`, and Python's streams over them.

    The FIFOs are opened for reading and writing: neither a dead server nor a missing reader
    gives SIGPIPE or end of file.
    """

    def __init__(self, worker, rundir):
        self.worker = worker
        self.paths = [os.path.join(rundir, name) for name in ("in", "out", "err")]
        self.fifos = [self.open(path) for path in self.paths]
        self.saved_fds = None
        self.ticking = threading.Lock()
        self.impatient_until = 0.0
        self.libc = None
        self.c_stdout = None
        self.ours = {}

    def open(self, path):
        fd = high(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        try:
            fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:  # not Linux, or more than this user may have
            pass
        return fd

    def take(self):
        if self.worker.live:
            self.saved_fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH_FD) for fd in range(3)]
        self.renew_fds()
        self.ours = {name: self.make(name) for name in ("stdin", "stdout", "stderr")}
        for name, stream in self.ours.items():
            setattr(sys, name, stream)
            setattr(sys, "__%s__" % name, stream)

    def make(self, name):
        if name == "stdin":
            return StandardInput(self.worker)
        if name == "stdout":
            return writer(io.FileIO(1, "w", closefd=False), "<stdout>")
        return writer(ErrorFile(self), "<stderr>")

    def wait_until_read(self, fd):
        """Until the server has read what was printed to 1 or 2; not long, and not if nobody reads."""
        now = clock()
        deadline = now + ORDER_TIME if self.worker.control.connection is not None else now
        while now >= self.impatient_until:
            try:
                waiting = fcntl.ioctl(self.fifos[fd], termios.FIONREAD, b"\0\0\0\0")
            except OSError:
                return
            if waiting == b"\0\0\0\0":
                return
            if now > deadline:
                self.impatient_until = now + 1.0
                return
            pause(0.00005)
            now = clock()

    def renew_fds(self):
        for fd in range(3):
            try:
                os.dup2(self.fifos[fd], fd)
            except OSError:  # user code has closed even ours
                self.fifos[fd] = self.open(self.paths[fd])
                os.dup2(self.fifos[fd], fd)

    def renew(self):
        """Undo what user code may have closed. A stream put elsewhere on purpose stays."""
        self.renew_fds()
        for name, stream in self.ours.items():
            if is_closed(stream):
                stream = self.ours[name] = self.make(name)
                setattr(sys, "__%s__" % name, stream)
            if is_closed(getattr(sys, name, None)):
                setattr(sys, name, stream)

    def flush(self):
        """All that Python and C hold back goes out."""
        theirs = [getattr(sys, name, None) for name in ("stdout", "stderr")]  # user code may delete them
        for stream in (*theirs, self.ours["stdout"], self.ours["stderr"]):
            try:
                stream.flush()
            except Exception:
                pass
        self.flush_c()

    def flush_c(self):
        if self.c_stdout is None and "ctypes" in sys.modules:
            self.find_c_stdout()
        if self.c_stdout:
            self.libc.fflush(self.c_stdout)

    def find_c_stdout(self):
        """C's `stdout`, which buffers whole blocks: what extensions print is flushed by us."""
        self.c_stdout = False
        try:
            import ctypes

            self.libc = ctypes.CDLL(None)
            self.libc.fflush.argtypes = [ctypes.c_void_p]
            name = "__stdoutp" if sys.platform == "darwin" else "stdout"
            self.c_stdout = ctypes.c_void_p.in_dll(self.libc, name)
        except Exception:
            pass

    def tick(self):
        """Flush while a command runs, from the side thread; never where that would block."""
        poll = select.poll()
        poll.register(self.fifos[1], select.POLLOUT)
        poll.register(self.fifos[2], select.POLLOUT)
        if len(poll.poll(0)) == 2:
            with self.ticking:
                self.flush()

    def give_back(self):
        self.flush()
        if self.saved_fds is not None:
            for fd, saved in enumerate(self.saved_fds):
                os.dup2(saved, fd)
                os.close(saved)
        for fd in self.fifos:
            os.close(fd)


# --- running code ------------------------------------------------------------------------------


class Leave:
    """`exit` and `quit`: they end the command; the session goes on."""

    def __init__(self, worker):
        self.worker = worker

    def __call__(self, code=None):
        self.worker.notice("the session goes on; `exit` at the prompt leaves it", "exit")
        raise SystemExit(code)

    def __repr__(self):
        return "exit() leaves; the session goes on"


def units(body, shown="last_expr"):
    """Statements in the pieces in which they are compiled: (tree, mode), "single" shows its value."""
    body = list(body)
    if (
        shown == "last_expr_or_assign"
        and body
        and isinstance(body[-1], (ast.Assign, ast.AnnAssign, ast.AugAssign))
    ):
        last = body[-1]
        target = last.targets[0] if isinstance(last, ast.Assign) else last.target
        if isinstance(target, ast.Name):
            value = ast.copy_location(ast.Expr(ast.Name(target.id, ast.Load())), last)
            body.append(ast.fix_missing_locations(value))
    if shown == "all":
        return [(ast.Interactive([node]), "single") for node in body]
    show = bool(body) and shown != "none" and (shown == "last" or isinstance(body[-1], ast.Expr))
    quiet = body[:-1] if show else body
    pieces = [(ast.Module(quiet, []), "exec")] if quiet else []
    return pieces + ([(ast.Interactive([body[-1]]), "single")] if show else [])


def remember_source(name, source):
    """Let tracebacks show the lines."""
    linecache.cache[name] = (len(source), None, [line + "\n" for line in source.splitlines()], name)


def statement_source(node, lines):
    """The lines of a top-level statement, its decorators included."""
    first = min([node.lineno] + [d.lineno for d in getattr(node, "decorator_list", ())])
    return "\n".join(lines[first - 1 : node.end_lineno])


FORMS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_latex_": "text/latex",
}


class PlainRunner:
    """Runs code as the interactive interpreter does, with the standard library alone."""

    name = "plain"

    def __init__(self, worker, namespace):
        self.worker = worker
        self.namespace = namespace
        self.flags = 0
        self.count = 0
        self.source_name = ""
        self.loop = None
        sys.displayhook = self.display_value
        builtins.exit = builtins.quit = Leave(worker)
        sys.ps1, sys.ps2 = ">>> ", "... "
        if not worker.live:
            worker.set_environment("MPLBACKEND", "agg", weak=True)  # there is no screen to draw on

    # The two ways to run

    def run(self, run):
        self.count += 1
        try:
            if run["mode"] == "script":
                self.run_script(run)
            else:
                self.run_prompt(run["code"])
        finally:
            self.show_figures()

    def run_prompt(self, code):
        self.source_name = "<input %d>" % self.count
        tree = self.parsed(code, self.source_name)
        if tree is not None:
            self.run_units(units(tree.body))

    def run_units(self, pieces):
        for piece in pieces:
            self.worker.holding = piece is pieces[-1]
            if not self.attempt(*piece):
                return False
        return True

    def run_script(self, run):
        self.source_name = run.get("filename") or "<script %d>" % self.count
        tree = self.parsed(run["code"], self.source_name, whole=True)
        if tree is None:
            return
        lines = linecache.cache[self.source_name][2]
        lines = [line.rstrip("\n") for line in lines]
        for place, node in enumerate(tree.body):
            source = statement_source(node, lines)
            is_file = run.get("filename") != "<string>"  # what stands on a command line has no docstring
            is_docstring = is_file and not place and ast.get_docstring(tree, False) is not None
            shown = isinstance(node, ast.Expr) and not is_docstring
            piece = (ast.Interactive([node]), "single") if shown else (ast.Module([node], []), "exec")
            with Timer(source, run.get("timer")):
                went_well = self.attempt(*piece, source=source)
            stopped = self.worker.exit is not None or self.worker.status == "interrupted"
            if not went_well and (stopped or not run.get("keep_going")):
                return

    def run_value(self, run):
        """Evaluate an expression; its value is kept for the transfer that it is meant for, and not shown."""
        self.source_name = "<expression>"
        try:
            code = run["code"].strip()
            remember_source(self.source_name, code)
            tree = about_user_code(compile, code, self.source_name, "eval", ast.PyCF_ONLY_AST, True)
            compiled = about_user_code(self.compile, tree, "eval")
            value = eval(compiled, self.namespace)  # noqa: S307 - the user typed it, for here
            if compiled.co_flags & CO_COROUTINE:
                value = self.run_coroutine(value)
            self.worker.load_objects().keep(run["keep"], value)
        except Stopping:
            raise
        except BaseException as problem:
            self.worker.failed(problem)

    def attempt(self, tree, mode, source=None):
        """Compile and run one piece; what it raises is reported. Returns whether it went well."""
        try:
            code = about_user_code(self.compile, tree, mode)
            if code.co_flags & CO_COROUTINE:
                self.run_coroutine(eval(code, self.namespace))  # noqa: S307
            else:
                exec(code, self.namespace)
        except Stopping:
            raise
        except BaseException as problem:
            self.worker.failed(problem)
            return False
        return True

    def parsed(self, code, name, whole=False):
        """The tree, or None when that was reported as an error; `whole`: compile all of it, too."""
        try:
            source, tree = about_user_code(self.parse, code, name)
            remember_source(name, source)
            if whole:
                compile(source, name, "exec", self.flags | TOP_LEVEL_AWAIT, True)
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError) as problem:
            self.worker.failed(problem)
            return None
        return tree

    def parse(self, code, name):
        remember_source(name, code)
        return code, compile(code, name, "exec", self.flags | ast.PyCF_ONLY_AST, True)

    def compile(self, tree, mode):
        code = compile(tree, self.source_name, mode, self.flags | TOP_LEVEL_AWAIT, True)
        self.flags |= code.co_flags & FUTURES
        return code

    def run_coroutine(self, coroutine):
        """Top-level `await`. An interrupt cancels the task, so that none is left half-way."""
        loop = self.event_loop()
        task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        except KeyboardInterrupt:
            import asyncio

            if not task.done():
                task.cancel()
                try:
                    loop.run_until_complete(task)
                except asyncio.CancelledError:
                    pass
            raise

    def event_loop(self):
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        return self.loop

    # What is shown

    def display_value(self, value):
        """`sys.displayhook`: the value goes to the client and becomes `_`."""
        if value is None:
            return
        builtins._ = None
        self.worker.result(repr(value), self.other_forms(value))
        builtins._ = value

    def other_forms(self, value):
        forms = {}
        kind = type(value)
        if kind.__module__ == "builtins":
            return forms
        for method, mime in FORMS.items():
            try:
                form = getattr(value, method)() if callable(getattr(kind, method, None)) else None
            except Exception:
                form = None
            form = form[0] if isinstance(form, tuple) else form
            if form is not None:
                forms[mime] = form
        return forms

    def show_figures(self):
        """Open matplotlib figures that have no window are shown and closed at the end of a command."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if not hasattr(pyplot, "get_fignums") or pyplot.get_backend().lower() != "agg":
            return
        for number in pyplot.get_fignums():
            picture = io.BytesIO()
            try:
                figure = pyplot.figure(number)
                figure.savefig(picture, format="png", bbox_inches="tight")
                self.worker.display({"text/plain": repr(figure), "image/png": picture.getvalue()})
            except Exception as problem:
                self.worker.failed(problem)
            pyplot.close(number)

    def user_frames(self, problem):
        """Its traceback from the user's code on, without our frames; None when none of it is his."""
        entry = problem.__traceback__
        while entry is not None and entry.tb_frame.f_code.co_filename != self.source_name:
            entry = entry.tb_next
        if entry is not None:
            problem.__traceback__ = entry
        seen = set()
        while problem is not None and id(problem) not in seen:
            seen.add(id(problem))
            problem.__traceback__ = without_ours(problem.__traceback__)
            problem = problem.__cause__ or problem.__context__
        return entry

    def format_error(self, problem, color):
        import traceback

        self.user_frames(problem)
        frames = problem.__traceback__
        sys.last_type, sys.last_value, sys.last_traceback = type(problem), problem, frames
        sys.last_exc = problem
        told = (
            traceback.TracebackException(type(problem), problem, frames, compact=True)
            if sys.version_info >= (3, 10)
            else traceback.TracebackException(type(problem), problem, frames)
        )
        if color and sys.version_info >= (3, 13):
            return "".join(told.format(colorize=True)).rstrip("\n")
        return "".join(told.format()).rstrip("\n")

    def set_terminal(self, width, color):
        pass

    # Questions, answered in the side thread

    def complete(self, code, cursor):
        import rlcompleter

        before = code[:cursor]
        word = re.search(r"[^\W\d][\w.]*$|$", before).group()
        completer = rlcompleter.Completer(self.namespace)
        matches = completer.attr_matches(word) if "." in word else completer.global_matches(word)
        matches = list(dict.fromkeys(match.rstrip(" :") for match in matches))
        kinds = ["function" if match.endswith(("(", ")")) else "" for match in matches]
        matches = [match.rstrip("()") for match in matches]
        return {"matches": matches, "types": kinds, "start": cursor - len(word), "end": cursor}

    def is_complete(self, code):
        import codeop
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                body = ast.parse(code).body
            except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
                try:
                    invalid = codeop.compile_command(code, "<input>", "exec") is not None
                except (SyntaxError, ValueError, OverflowError):
                    invalid = True
                status = "invalid" if invalid else "incomplete"
            else:
                last = code.splitlines()[-1] if code.strip() else ""
                in_block = bool(body) and hasattr(body[-1], "body") and not code.endswith("\n")
                in_block = in_block and (last[:1].isspace() or len(code.splitlines()) == 1)
                status = "incomplete" if in_block else "complete"
        return {"status": status, "indent": next_indent(code) if status == "incomplete" else ""}

    def hidden_names(self):
        return {}

    def find_magic(self, name):
        return None

    def close(self):
        if self.loop is not None and not self.loop.is_closed():
            self.loop.close()


def without_ours(entry):
    """The traceback without the frames of this file."""
    while entry is not None and entry.tb_frame.f_code.co_filename == HERE:
        entry = entry.tb_next
    first = entry
    while entry is not None and entry.tb_next is not None:
        if entry.tb_next.tb_frame.f_code.co_filename == HERE:
            entry.tb_next = entry.tb_next.tb_next
        else:
            entry = entry.tb_next
    return first


def about_user_code(function, *arguments):
    """Call it; what it raises is about the user's code and not about how we came there."""
    try:
        return function(*arguments)
    except Exception as problem:
        raise problem.with_traceback(None)


def next_indent(code):
    """How far the next line of an open block is indented."""
    lines = [line for line in code.splitlines() if line.strip()]
    if not lines:
        return ""
    last = lines[-1]
    indent = last[: len(last) - len(last.lstrip())]
    word = re.match(r"\s*(\w*)", last).group(1)
    if last.split("#")[0].rstrip().endswith(":"):
        return indent + "    "
    return indent[:-4] if word in ("return", "pass", "break", "continue", "raise") else indent


class Timer:
    """Echoes a statement and then tells how long it took, as R does."""

    def __init__(self, source, on):
        self.source = source
        self.on = on

    def now(self):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime, usage.ru_stime, stopwatch()

    def __enter__(self):
        if self.on:
            print("\n".join("## " + line for line in self.source.split("\n")))
            self.before = self.now()

    def __exit__(self, *exception):
        if self.on:
            spent = [after - before for after, before in zip(self.now(), self.before)]
            print("   user  system elapsed\n%7.3f %7.3f %7.3f" % tuple(spent))


# --- IPython -----------------------------------------------------------------------------------


def shell_class(worker):
    """Our InteractiveShell: what it shows goes to the worker; it writes no history."""
    from IPython.core.autocall import ExitAutocall
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets import default

    class Exit(ExitAutocall):
        def __call__(self, code=None):
            Leave(worker)(code)

    class Hook(DisplayHook):
        source = ""  # of the statement whose value is shown
        printers = None

        def quiet(self):
            return re.sub(r"\s*#[^\"'\n]*$", "", self.source.rstrip()).endswith(";")

        def compute_format_data(self, result):
            """Built-in values have no other forms, unless somebody registered some: not asking saves time."""
            display = self.shell.display_formatter
            if self.printers is None:
                others = [f for mime, f in display.formatters.items() if mime != "text/plain"]
                others += [display.mimebundle_formatter, display.ipython_display_formatter]
                self.printers = [formatter.type_printers for formatter in others]
            kind = type(result)
            if kind not in BUILTIN or any(kind in printers for printers in self.printers):
                return super().compute_format_data(result)
            return {"text/plain": display.formatters["text/plain"](result)}, {}

        def write_output_prompt(self):
            pass

        def write_format_data(self, format_dict, md_dict=None):
            forms = dict(format_dict)
            worker.result(forms.pop("text/plain", ""), forms)

        def log_output(self, format_dict):
            text = format_dict.get("text/plain", "")
            if len(text) < 10_000:
                self.shell.history_manager.output_hist_reprs[self.prompt_count] = text

        def finish_displayhook(self):
            self._is_active = False

    class Publisher(DisplayPublisher):
        def publish(self, data, metadata=None, source=None, *, transient=None, update=False, **kwargs):
            for mime, show in (getattr(self.shell, "mime_renderers", None) or {}).items():
                if mime in data:
                    show(data[mime], (metadata or {}).get(mime))
                    return
            worker.display(data, (transient or {}).get("display_id"), update)

        def clear_output(self, wait=False):
            if worker.run and worker.run.get("color"):
                print("\r\033[2K", end="", flush=True)

    class Shell(InteractiveShell):
        displayhook_class = Hook
        display_pub_class = Publisher

        @default("exiter")
        def _exiter_default(self):
            return Exit(self)

        def init_virtualenv(self):
            pass  # the interpreter was chosen; nobody else's packages belong on its path

        def system(self, cmd):
            """`!cmd`: its output is ours, live; an interrupt ends the command that called it."""
            import subprocess

            cmd = self.var_expand(cmd, depth=1)
            code = subprocess.call(cmd, shell=True, executable=os.environ.get("SHELL"))  # noqa: S602
            self.user_ns["_exit_code"] = 128 - code if code > 128 else code
            if code and getattr(self, "system_raise_on_error", False):
                raise subprocess.CalledProcessError(code, cmd)

        def enable_gui(self, gui=None):
            if gui not in (None, "inline", "agg"):
                worker.notice("event loops of windows are not run here: figures are shown inline", "gui")

        def ask_exit(self):
            worker.notice("the session goes on; `exit` at the prompt leaves it", "exit")

        def _showtraceback(self, etype, evalue, stb):
            worker.error(self.InteractiveTB.stb2text(stb), etype.__name__, evalue)

    return Shell


class IPythonRunner(PlainRunner):
    """Runs code as IPython does: magics, `!cmd`, rich display, its tracebacks; without its history file.

    The path from code to result is `InteractiveShell.run_cell` with everything left out that a
    command does not need (streams teed, sqlite, a coroutine around code that awaits nothing):
    about a third of the time, the same events, `In`, `Out` and `_`.
    """

    name = "ipython"

    def __init__(self, worker, namespace):
        self.worker = worker
        self.namespace = namespace
        self.count = 0
        self.source_name = ""
        self.loop = None
        import IPython

        if IPython.version_info[0] < 8:
            raise ImportError("IPython 8 or newer is needed")
        from IPython.core import async_helpers, interactiveshell, page
        from traitlets.config import Config

        config = Config()
        config.HistoryManager.enabled = False
        kind = shell_class(worker)
        chain = [c for c in kind.mro() if issubclass(c, interactiveshell.InteractiveShell)]
        self.saved_instances = [(c, c.__dict__.get("_instance")) for c in chain]
        names = ("exit", "quit", "open", "get_ipython", "In", "Out")
        own_name = re.compile(r"_+$|_i+$|_i?\d+$|_[iod]h$|__builtin__$")
        self.saved_names = {k: v for k, v in namespace.items() if k in names or own_name.match(k)}
        module = sys.modules["__main__"]
        self.shell = shell = kind(config=config, user_module=module, user_ns=namespace)
        for c in chain:
            c._instance = shell
        shell.builtin_trap.__enter__()
        shell.display_trap.__enter__()
        shell.set_hook("show_in_pager", page.as_hook(page.display_page))
        self.ipython_loop = async_helpers.get_asyncio_loop
        self.default_loop_runner = interactiveshell._asyncio_runner
        self.Info = interactiveshell.ExecutionInfo
        self.Result = interactiveshell.ExecutionResult
        code = self.Info.__init__.__code__
        self.info_fields = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        self.questions = None
        self.adopt_figures()

    def adopt_figures(self):
        """When matplotlib already draws inline for another shell, it now does for this one."""
        backend = sys.modules.get("matplotlib_inline.backend_inline")
        self.saved_inline = None
        self.drew_before = "matplotlib" in sys.modules
        if not self.drew_before and can_import("matplotlib_inline"):
            self.worker.set_environment("MPLBACKEND", "module://matplotlib_inline.backend_inline", weak=True)
        if backend is not None:
            from IPython.core.pylabtools import select_figure_formats

            inline = backend.InlineBackend.instance()
            self.saved_inline = (inline, inline.shell)
            inline.shell = self.shell
            select_figure_formats(self.shell, inline.figure_formats, **inline.print_figure_kwargs)
            self.shell.events.register("post_execute", backend.flush_figures)

    def run(self, run):
        raw = run["code"]
        if not raw.strip():
            return
        shell = self.shell
        sys.displayhook = shell.displayhook
        values = {"raw_cell": raw, "store_history": True, "silent": False, "shell_futures": True}
        info = self.Info(**{name: values.get(name) for name in self.info_fields})
        result = shell.displayhook.exec_result = self.Result(info)
        self.count = result.execution_count = shell.execution_count
        shell.execution_count += 1
        shell.displayhook.source = raw
        shell.events.trigger("pre_execute")
        shell.events.trigger("pre_run_cell", info)
        try:
            if run["mode"] == "script":
                self.run_script(run)
            else:
                self.run_prompt(raw)
        finally:
            shell.displayhook.exec_result = None
            result.error_in_exec = self.worker.problem
            shell.last_execution_succeeded = self.worker.problem is None
            shell.last_execution_result = result
            shell.events.trigger("post_execute")
            shell.events.trigger("post_run_cell", result)

    def run_prompt(self, code):
        tree = self.parsed(code, None)
        if tree is not None:
            tree = self.shell.transform_ast(tree)
            self.run_units(units(tree.body, self.shell.ast_node_interactivity))

    def attempt(self, tree, mode, source=None):
        if source is not None:
            self.shell.displayhook.source = source
        return super().attempt(tree, mode)

    def parsed(self, code, name, whole=False):
        try:
            return about_user_code(self.parse_cell, code, name, whole)
        except Stopping:
            raise
        except BaseException as problem:
            self.worker.failed(problem)
            return None

    def parse_cell(self, code, name, whole):
        cell = self.shell.transform_cell(code) if name is None else self.script_source(code, name)
        self.store_input(cell, code)
        if name is None:
            self.source_name = self.shell.compile.cache(cell, self.count)
        else:
            remember_source(name, cell)
        tree = self.shell.compile.ast_parse(cell, filename=self.source_name)
        if whole:
            compile(cell, name, "exec", self.shell.compile.flags | TOP_LEVEL_AWAIT, True)
        return tree

    def script_source(self, code, name):
        """A script is taken as Python if it is; if it is not, its magics are translated."""
        try:
            compile(code, name, "exec", ast.PyCF_ONLY_AST, True)
            return code
        except SyntaxError:
            first = len(code) - len(code.lstrip("\n"))
            return "\n" * first + self.shell.input_transformer_manager.transform_cell(code.lstrip("\n"))

    def store_input(self, cell, raw):
        history = self.shell.history_manager
        history.store_inputs(self.count, cell, raw)
        del history.db_input_cache[:]
        self.shell.logger.log(cell, raw)

    def compile(self, tree, mode):
        compiler = self.shell.compile
        with compiler.extra_flags(TOP_LEVEL_AWAIT if self.shell.autoawait else 0):
            return compiler(tree, self.source_name, mode)

    def run_coroutine(self, coroutine):
        if self.shell.loop_runner is self.default_loop_runner:
            return super().run_coroutine(coroutine)
        return self.shell.loop_runner(coroutine)

    def event_loop(self):
        self.loop = self.ipython_loop()
        return self.loop

    def format_error(self, problem, color):
        from IPython.core.error import UsageError

        shell = self.shell
        if isinstance(problem, UsageError):
            return "UsageError: %s" % problem
        if self.user_frames(problem) is None and isinstance(problem, KeyboardInterrupt):
            return "KeyboardInterrupt"
        frames = problem.__traceback__
        told = type(problem), problem, frames
        shell._get_exc_info(told)
        if isinstance(problem, SyntaxError):
            import traceback

            listed = traceback.extract_tb(frames) if frames is not None else []
            return shell.SyntaxTB.stb2text(shell.SyntaxTB.structured_traceback(*told[:2], listed))
        if hasattr(problem, "_render_traceback_"):
            return "\n".join(problem._render_traceback_())
        if has_group(problem):
            return super().format_error(problem, color)
        lines = shell.InteractiveTB.structured_traceback(*told, tb_offset=0)
        return shell.InteractiveTB.stb2text(lines)

    def set_terminal(self, width, color):
        self.shell.run_line_magic("colors", "Neutral" if color else "NoColor")
        self.shell.display_formatter.formatters["text/plain"].max_width = width or 79

    def complete(self, code, cursor):
        from IPython.core.completer import provisionalcompleter, rectify_completions

        with provisionalcompleter():
            found = list(rectify_completions(code, self.shell.Completer.completions(code, cursor)))
        if not found:
            return {"matches": [], "types": [], "start": cursor, "end": cursor}
        matches, kinds = [c.text for c in found], [c.type or "" for c in found]
        return {"matches": matches, "types": kinds, "start": found[0].start, "end": found[0].end}

    def is_complete(self, code):
        if self.questions is None:
            from IPython.core.inputtransformer2 import TransformerManager

            self.questions = TransformerManager()  # one of its own: the main thread uses the shell's
        status, indent = self.questions.check_complete(code)
        return {"status": status, "indent": " " * (indent or 0)}

    def hidden_names(self):
        return self.shell.user_ns_hidden

    def find_magic(self, name):
        kind = "cell" if name.startswith("%%") else "line"
        return self.shell.find_magic(name.lstrip("%"), kind)

    def close(self):
        """Leave nothing of the shell behind in a process that goes on."""
        import atexit

        atexit.unregister(self.shell.atexit_operations)
        for trap in (self.shell.builtin_trap, self.shell.display_trap):
            while trap._nested_level > 0:
                trap.__exit__(None, None, None)
        for kind, instance in self.saved_instances:
            kind._instance = instance
        for name, value in list(self.shell.user_ns_hidden.items()):
            if self.namespace.get(name) is value:
                del self.namespace[name]
        for name, value in self.saved_names.items():
            self.namespace.setdefault(name, value)
        if self.saved_inline is not None:
            inline, shell = self.saved_inline
            inline.shell = shell
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None and not self.drew_before:
            # The next figure looks for a backend anew: this time for one of the host.
            try:
                pyplot.rcParams["backend"] = pyplot.rcsetup._auto_backend_sentinel
                pyplot._backend_mod = None
            except Exception:
                pass


def has_group(problem):
    group = getattr(builtins, "BaseExceptionGroup", ())
    while problem is not None:
        if isinstance(problem, group):
            return True
        problem = problem.__context__
    return False


# --- questions about the session ---------------------------------------------------------------

ARRAYS = {"numpy", "pandas", "torch", "polars", "xarray", "scipy", "jax", "jaxlib", "cupy", "pyarrow"}


def short(value, room=60, depth=2):
    """A short text that calls no code of the user: contents only of the plain built-in types."""
    kind = type(value)
    if kind is int and value.bit_length() > 256:
        return "<int of %d bits>" % value.bit_length()
    if kind in (str, bytes):
        return repr(value if len(value) <= room else value[: room - 1])[: room + 2] + (
            "…" if len(value) > room else ""
        )
    if kind in SCALARS:
        return repr(value)
    if kind in CONTAINERS and depth:
        return short_container(value, kind, room, depth)
    if home(kind).split(".")[0] == "numpy" and is_genuine(kind) and not getattr(value, "shape", (0,)):
        return str(value)[:room]
    if issubclass(kind, type):
        return "<class %s>" % type.__dict__["__qualname__"].__get__(value)
    if kind is types.FunctionType:
        return "<function %s>" % value.__qualname__
    return "<%s>" % type.__dict__["__name__"].__get__(kind)


def short_container(value, kind, room, depth):
    parts, used = [], 0
    for item in list(value.items() if kind is dict else value)[:8]:
        text = (
            ": ".join(short(part, 20, depth - 1) for part in item)
            if kind is dict
            else short(item, 20, depth - 1)
        )
        used += len(text)
        if used > room:
            break
        parts.append(text)
    left, right = {list: "[]", tuple: "()"}.get(kind, "{}")
    return left + ", ".join(parts) + (", …" if len(parts) < len(value) else "") + right


def home(kind):
    """The name of the module of a class, asked past its metaclass: no code of the user runs."""
    try:
        name = type.__dict__["__module__"].__get__(kind)
    except Exception:
        return ""
    return name if type(name) is str else ""


def is_genuine(kind):
    """Whether that module has this class under its name: what only says so may do anything when it is asked."""
    try:
        return vars(sys.modules.get(home(kind))).get(type.__dict__["__name__"].__get__(kind)) is kind
    except Exception:
        return False


def measure(value):
    """(shape or None, bytes or None) of a value, from what its type keeps anyway."""
    kind = type(value)
    if home(kind).split(".")[0] in ARRAYS:
        if not is_genuine(kind):
            return None, None
        shape = getattr(value, "shape", None)
        size = getattr(value, "nbytes", None)
        try:
            shape = [int(n) for n in shape] if shape is not None else None
            size = int(size) if size is not None and not callable(size) else None
        except Exception:
            shape = size = None
        return shape, size
    shape = [len(value)] if kind in CONTAINERS | {str, bytes, bytearray} else None
    return shape, sys.getsizeof(value) if home(kind) == "builtins" else None


def list_variables(namespace, hidden):
    listed = []
    for name, value in list(namespace.items()):
        kind = type(value)  # `isinstance` would ask the value's own `__class__`
        if (
            type(name) is not str
            or name.startswith("_")
            or issubclass(kind, types.ModuleType)
            or (name in hidden and hidden[name] is value)
        ):
            continue
        is_class = issubclass(kind, type)
        is_function = kind in (types.FunctionType, types.BuiltinFunctionType)
        if (is_class and home(value) != "__main__") or (is_function and value.__module__ != "__main__"):
            continue
        try:
            shape, size = measure(value)
            text = short(value)
        except Exception:
            shape, size, text = None, None, "<object>"
        type_name = type.__dict__["__name__"].__get__(kind)
        listed.append({"name": name, "type": type_name, "shape": shape, "size": size, "text": clean(text)})
    return {"variables": listed}


def name_at(code, cursor):
    """The dotted name that is meant: the whole, the one at the cursor, or the function being called."""
    whole = code.strip().strip("?").strip()
    if re.match(r"%*[^\W\d][\w.]*$", whole):
        return whole
    for found in re.finditer(r"[^\W\d][\w.]*", code):
        if found.start() <= cursor <= found.end():
            return found.group()
    depth = 0
    for place in range(min(cursor, len(code)) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(code[place], 0)
        if depth < 0:
            return re.search(r"[\w.]*$", code[:place].rstrip()).group()
    return ""


def find_object(namespace, name):
    """The object of a dotted name; a property stands for itself. Raises LookupError, AttributeError."""
    import inspect

    first, *rest = name.split(".")
    value = namespace[first] if first in namespace else vars(builtins)[first]
    for part in rest:
        static = inspect.getattr_static(type(value), part, None)
        value = static if isinstance(static, property) else getattr(value, part)
    return value


def describe(value):
    """Signature, type, a short text, file and docstring, as a person reads them."""
    import inspect

    lines = []
    if callable(value):
        try:
            lines.append("Signature: %s%s" % (getattr(value, "__name__", ""), inspect.signature(value)))
        except (TypeError, ValueError):
            pass
    lines.append("Type: %s" % type(value).__name__)
    if not callable(value) and not isinstance(value, types.ModuleType):
        lines.append("Value: %s" % short(value, 200))
        shape, _ = measure(value)
        if shape is not None:
            lines.append("Shape: %s" % (tuple(shape),))
    try:
        lines.append("File: %s" % inspect.getfile(value))
    except (TypeError, OSError):
        pass
    text = inspect.getdoc(value)
    if text:
        lines += ["Docstring:", text]
    return "\n".join(lines)


OBJECT_QUESTIONS = {"pack", "send", "copy", "receive", "bind", "drop", "find", "remove"}


class Side(threading.Thread):
    """The thread beside the user's code: answers questions, flushes, connects again.

    It sleeps long when nothing has run for a while; the main thread wakes it when a command begins.
    """

    def __init__(self, worker, path):
        super().__init__(name="remoter-side", daemon=True)
        self.worker = worker
        self.path = path
        self.connection = None
        self.asleep = False
        self.quick_until = 0.0
        self.delay = SOON
        self.soon_until = clock() + 1.0
        self.warmups = collections.deque()
        self.warm_at = 0.0
        self.objects = None
        self.replies = collections.deque()  # what other threads have found out
        self.waker = Waker()

    def connect(self):
        worker = self.worker
        hello = {"type": "hello", "role": "side", "worker": worker.id, "pid": worker.pid, "lang": "python"}
        hello.update(
            version="%d.%d.%d" % sys.version_info[:3], python=sys.executable, runner=worker.runner_name
        )
        hello.update(cwd=current_directory(), busy=worker.run["number"] if worker.run else None)
        self.connection = Connection(self.path, hello)

    def run(self):
        # Signals are the main thread's: one that lands here would not end its system call.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        while not self.worker.closed:
            try:
                self.turn()
            except BaseException:  # objects of the user may raise anything where they are looked at
                pause(TICK)

    def turn(self):
        worker = self.worker
        whole = self.keep_connected()
        poll = select.poll()
        poll.register(self.waker, select.POLLIN)
        if self.connection is not None:
            poll.register(self.connection.fileno(), select.POLLIN)
        now = clock()
        if worker.run is not None:
            self.quick_until = now + 2
        timeout = TICK if now < self.quick_until else self.delay if not whole else None
        if timeout is None and self.warmups:
            timeout = max(TICK, self.warm_at - now)
        self.asleep = timeout is None
        if self.asleep and worker.run is not None:
            return
        # Never for ever: user code that closes all descriptors closes what would wake us, too.
        ready = dict(poll.poll((NAP if timeout is None else timeout) * 1000))
        self.asleep = False
        if self.waker.fileno() in ready:
            self.waker.clear()
        if self.connection is not None and self.connection.fileno() in ready:
            self.answer_all()
        while self.replies and self.connection is not None:
            self.reply(self.replies.popleft())
        if clock() < self.quick_until:
            worker.streams.tick()
        if worker.run is not None:
            worker.interrupts.nudge()
            worker.control.drain()
        elif not ready and self.warmups and clock() > self.warm_at:
            self.warmups.popleft()()

    def keep_connected(self):
        """Both connections, if the server is there. Returns whether they are up."""
        control = self.worker.control
        try:
            if self.connection is None:
                self.connect()
                if control.connection is not None and control.connection.is_dead():
                    control.lose(control.connection)
            if control.connection is None:
                control.connect()
                self.worker.waker.wake()
            self.delay = TICK
            return True
        except OSError:
            if clock() > self.soon_until:
                self.delay = min(1.0, self.delay * 1.5)
            if not self.worker.is_wanted():
                self.worker.stop("the server is gone")
            return False

    def answer_all(self):
        try:
            self.connection.read()
        except EOFError:
            self.connection.close()
            self.connection = None
            return
        while self.connection.frames:
            frame = self.connection.frames.popleft()
            if frame.get("type") == "received":
                self.worker.control.acknowledge(frame["received"])
            elif frame.get("type") == "query":
                reply = {"type": "reply", "id": frame["id"]}
                try:
                    if frame["what"] in OBJECT_QUESTIONS:
                        self.ask_objects(frame, reply)
                        continue
                    reply["data"] = self.answer(frame)
                except BaseException as problem:
                    reply["error"] = clean("%s: %s" % (type(problem).__name__, problem))
                self.reply(reply)
                if self.connection is None:
                    return

    def reply(self, reply):
        try:
            self.connection.socket.sendall(encode(reply))
        except OSError:
            self.connection.close()
            self.connection = None

    def ask_objects(self, query, reply):
        """Objects come and go in threads of their own; the answer comes back to this one."""

        def answered(data):
            reply["data"] = data
            self.replies.append(reply)
            self.waker.wake()

        if query["what"] == "drop" and self.worker.objects is None:
            answered({})  # nothing has ever crossed
        else:
            self.worker.load_objects().answer_in_thread(query, answered)

    def answer(self, query):
        what, code, worker = query["what"], query.get("code", ""), self.worker
        if what == "info":
            return {"cwd": current_directory(), "pid": worker.pid, "runner": worker.runner_name}
        if not worker.ready.wait(30):
            raise RuntimeError("the session is still starting")
        runner = worker.runner
        if what == "complete":
            try:
                return runner.complete(code, query["cursor"])
            except RuntimeError:  # the namespace changed while it was read
                return runner.complete(code, query["cursor"])
        if what == "is_complete":
            return runner.is_complete(code)
        if what == "variables":
            return list_variables(runner.namespace, runner.hidden_names())
        if what == "inspect":
            return self.inspect(name_at(code, query.get("cursor", len(code))))
        raise ValueError("unknown question `%s`" % what)

    def inspect(self, name):
        try:
            if name.startswith("%"):
                value = self.worker.runner.find_magic(name)
            else:
                value = find_object(self.worker.runner.namespace, name)
        except Exception:
            return {"found": False, "text": ""}
        if name.startswith("%") and value is None:
            return {"found": False, "text": ""}
        return {"found": True, "text": clean(ANSI.sub("", describe(value)))}

    def warm_up(self, steps):
        self.warmups.extend(steps)
        self.warm_at = clock() + 1.0
        self.waker.wake()

    def close(self):
        self.waker.wake()
        self.join(2)
        if self.connection is not None:
            self.connection.close()
        self.waker.close()


def current_directory():
    try:
        return os.getcwd()
    except OSError:
        return ""


# --- the worker --------------------------------------------------------------------------------

PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf")


def split_forms(forms):
    """A mime bundle as ({mime: str}, [(mime, bytes)]), and what is too long for a message and left out."""
    texts, buffers, left_out = {}, [], []
    for mime, form in forms.items():
        if isinstance(form, (str, bytes, bytearray)) and len(form) > LONGEST_FORM:
            left_out.append("%s (%d MB)" % (mime, len(form) // 1_000_000))
            continue
        if mime in PICTURES and isinstance(form, str):
            form = base64.b64decode(form)
        if isinstance(form, (bytes, bytearray, memoryview)):
            buffers.append((mime, bytes(form)))
        elif isinstance(form, str):
            texts[mime] = clean(form)
        else:
            try:
                texts[mime] = json.dumps(form)
            except (TypeError, ValueError):
                continue
    return texts, buffers, left_out


class Worker:
    """Takes runs from the server one after the other and tells what became of them."""

    def __init__(self, rundir, worker_id, runner, live):
        self.rundir = rundir
        self.id = worker_id
        self.live = live
        self.pid = os.getpid()
        self.run = None
        self.last = 0
        self.queue = collections.deque()
        self.answers = {}
        self.asks = 0
        self.stopping = None
        self.closed = False
        self.ready = threading.Event()
        self.objects = None
        self.loading = threading.Lock()
        self.runner = None
        self.runner_name = runner if runner != "auto" else ("ipython" if can_import("IPython") else "plain")
        self.forking = False
        self.environment = {}
        self.terminal = None
        self.status, self.exit, self.problem, self.holding = "ok", None, None, False
        self.streams = Streams(self, rundir)
        self.interrupts = Interrupts(self, os.path.join(rundir, "interrupt"))
        path = os.path.join(rundir, "worker.sock")
        self.control = Control(self, path)
        self.side = Side(self, path)
        self.waker = Waker()
        os.register_at_fork(
            before=self.before_fork, after_in_parent=self.after_fork, after_in_child=self.in_child
        )

    # Life

    def start(self, namespace):
        """Take the streams, greet the server, and only then load what takes time."""
        self.streams.take()
        self.interrupts.install()
        self.patch_input()
        for name, value in (("PAGER", "cat"), ("GIT_PAGER", "cat")):
            self.set_environment(name, value, weak=True)
        self.side.keep_connected()
        self.side.start()
        self.make_runner(namespace)
        self.ready.set()
        steps = [self.streams.find_c_stdout, lambda: self.runner.complete("str.joi", 7)]
        if self.runner.name == "ipython":
            steps += [lambda: __import__("stack_data"), lambda: __import__("pygments.formatters.terminal256")]
        self.side.warm_up(steps)

    def make_runner(self, namespace):
        if self.runner_name == "ipython":
            try:
                self.runner = IPythonRunner(self, namespace)
                return
            except Exception as problem:
                self.runner_name = "plain"
                self.notice("IPython does not work here (%s): plain Python is used" % problem, "runner")
        self.runner = PlainRunner(self, namespace)

    def serve(self):
        """Run what comes until told to stop."""
        while not self.stopping:
            self.read_control()
            if self.queue:
                self.execute(self.queue.popleft())
            elif not self.stopping:
                self.wait()
        if self.stopping == "stopped locally":
            self.control.post({"type": "end", "reason": self.stopping})
        return self.stopping

    def stop(self, reason):
        """End when idle; from any thread or signal handler."""
        self.stopping = self.stopping or reason
        self.waker.wake()

    def is_wanted(self):
        """Whether a keeper may still bring a server back: it holds the lock for all its life."""
        if not os.path.isdir(self.rundir):
            return False
        try:
            fd = os.open(os.path.join(self.rundir, "lock"), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except OSError:
            return True
        finally:
            os.close(fd)

    def close(self):
        self.closed = True
        self.side.close()
        self.control.lose(self.control.connection)
        self.interrupts.close()
        self.waker.close()

    def before_fork(self):
        """No stream may be locked by the side thread: a child would find it locked for ever."""
        self.forking = not self.closed and self.streams.ticking.acquire(timeout=1)

    def after_fork(self):
        if self.forking:
            self.streams.ticking.release()

    def in_child(self):
        """In a forked child: nothing of the session's connections may be touched."""
        self.after_fork()
        if self.closed:
            return
        for connection in (self.control.connection, self.side.connection):
            if connection is not None:
                connection.close()
        if not self.live and threading.current_thread() is threading.main_thread():
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            except ValueError:
                pass

    def set_environment(self, name, value, weak=False):
        """Set or (None) remove a variable; `weak` leaves one alone that is there."""
        if weak and name in os.environ:
            return
        self.environment.setdefault(name, os.environ.get(name))
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

    encode = staticmethod(encode)

    def load_objects(self):
        """What packs and binds objects; its file is read when the first one crosses."""
        with self.loading:
            if self.objects is None:
                import importlib.util

                path = os.path.join(os.path.dirname(os.path.abspath(HERE)), "python_objects.py")
                spec = importlib.util.spec_from_file_location("_remoter_objects", path)
                module = sys.modules["_remoter_objects"] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                if not self.ready.wait(30):
                    raise RuntimeError("the session is still starting")
                self.objects = module.Objects(self, HERE)
            return self.objects

    # Control frames

    def wait(self, seconds=None):
        """Until the server has something to say, or somebody wakes us, or the time is over."""
        poll = select.poll()
        poll.register(self.waker, select.POLLIN)
        connection = self.control.connection
        if connection is not None:
            fd = connection.fileno()
            if fd < 0:  # just closed by the side thread
                return
            poll.register(fd, select.POLLIN)
        poll.poll(None if seconds is None else max(0, int(seconds * 1000)))

    def read_control(self):
        self.waker.clear()
        connection = self.control.connection
        if connection is None:
            return
        try:
            connection.read()
        except EOFError:
            self.control.lose(connection)
        while connection.frames:
            self.take(connection.frames.popleft())

    def take(self, frame):
        kind = frame.get("type")
        if kind == "run":
            self.control.acknowledge(frame.get("received", 0))
            if frame["number"] > self.last:
                self.last = frame["number"]
                self.queue.append(frame)
        elif kind == "received":
            self.control.acknowledge(frame["received"])
        elif kind == "answer":
            self.answers[frame["ask"]] = frame.get("text")
        elif kind == "stop":
            self.stop("stopped")

    # One run

    def execute(self, run):
        number = run["number"]
        self.prepare(run)
        started = stopwatch()
        try:
            try:
                self.interrupts.begin(number)
                if run.get("keep"):
                    self.runner.run_value(run)
                else:
                    self.runner.run(run)
            finally:
                self.interrupts.target = None
        except KeyboardInterrupt:
            self.interrupts.target = None
            self.status = "interrupted"
            self.error("KeyboardInterrupt", "KeyboardInterrupt", "")
        except Stopping:
            self.status = "interrupted"
        except BaseException as problem:  # our own mistake must not end the session
            self.failed(problem)
        elapsed = stopwatch() - started
        if os.getpid() != self.pid:
            self.end_child()
        self.holding = False
        self.interrupts.install()
        self.streams.flush()
        done = {
            "type": "done",
            "number": number,
            "status": self.status,
            "elapsed": elapsed,
            "exit": self.exit,
        }
        self.run = None
        self.control.post(done)
        self.problem = None

    def prepare(self, run):
        self.status, self.exit, self.problem, self.holding = "ok", None, None, False
        self.answers.clear()
        self.streams.renew()
        self.interrupts.install()
        terminal = run.get("width") or 0, bool(run.get("color"))
        if terminal != self.terminal:
            self.set_terminal(*terminal)
        self.run = run
        if self.side.asleep:
            self.side.waker.wake()

    def set_terminal(self, width, color):
        """Programs learn the submitter's terminal from the environment, as they would there."""
        self.terminal = width, color
        self.set_environment("COLUMNS", str(width) if width else self.environment.get("COLUMNS"))
        if "NO_COLOR" not in os.environ:
            for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
                if color:
                    self.set_environment(name, "1", weak=True)
                elif name in self.environment:
                    self.set_environment(name, self.environment[name])
        self.runner.set_terminal(width, color)

    def end_child(self):
        """A forked child ran on to the end of the command; the session is its parent's."""
        self.streams.flush()
        os._exit(self.exit if self.exit is not None else int(self.status != "ok"))

    # What a run says

    def say(self, header, buffers=(), hold=False):
        """Send a frame of the running command, after what it printed and before what it prints next.

        What is printed later goes another way, and could be read sooner. So in the middle of a
        command the main thread goes on only when the server has the frame, or does not answer.
        """
        self.streams.flush()
        header["number"] = self.run["number"] if self.run else None
        waits = not hold and header["type"] != "ask" and self.is_in_the_middle(header["type"])
        if waits:
            header["wait"] = True
        self.control.post(header, buffers, hold)
        if waits:
            self.settle(header["frame"])

    def is_in_the_middle(self, kind):
        if self.run is None or os.getpid() != self.pid or self.control.connection is None:
            return False
        if kind == "error" and self.run.get("mode") != "script":
            return False
        return threading.get_ident() == self.interrupts.main

    def settle(self, number):
        deadline = clock() + SETTLE_TIME
        while self.control.kept and self.control.kept[0][0] <= number and self.control.connection is not None:
            remains = deadline - clock()
            if remains <= 0:
                return
            self.wait(remains)
            with self.interrupts:
                self.read_control()

    def result(self, text, forms):
        if len(text) > LONGEST_TEXT:
            size = len(text)
            text = text[:LONGEST_TEXT]
            self.notice(
                "the text of this value has %d characters; the first %d are shown" % (size, LONGEST_TEXT),
                "cut",
            )
        if os.getpid() != self.pid:
            print(text)
            return
        texts, buffers, left_out = split_forms(forms)
        if left_out:
            self.notice("too long to be shown, left out: " + ", ".join(left_out), "cut")
        header = {"type": "result", "text": clean(text)}
        if texts:
            header["data"] = texts
        self.say(header, buffers, hold=self.holding)

    def display(self, forms, display_id=None, update=False):
        text = forms.get("text/plain", "")
        text = text if isinstance(text, str) else str(text)
        if os.getpid() != self.pid:
            print(text)
            return
        if not (self.run and self.run.get("color")):
            text = ANSI.sub("", text)
        texts, buffers, left_out = split_forms({m: form for m, form in forms.items() if m != "text/plain"})
        if left_out:
            self.notice("too long to be shown, left out: " + ", ".join(left_out), "cut")
        header = {"type": "display", "text": clean(text[:LONGEST_TEXT]), "data": texts}
        if display_id is not None:
            header.update(display=str(display_id), update=bool(update))
        self.say(header, buffers)

    def notice(self, text, about):
        self.say({"type": "notice", "text": text, "about": about})

    def error(self, text, name, value):
        """An error frame; the run has failed."""
        if self.status == "ok":
            self.status = "error"
        if not (self.run and self.run.get("color")):
            text = ANSI.sub("", text)
        try:
            value = str(value)[:10_000]
        except Exception:
            value = ""
        if os.getpid() != self.pid:
            print(text, file=sys.stderr)
            return
        text = clean(text.rstrip("\n")[:LONGEST_TEXT])
        self.say({"type": "error", "text": text, "name": name, "value": clean(value)})

    def failed(self, problem):
        """User code raised `problem`."""
        self.holding = False
        if isinstance(problem, SystemExit):
            self.exited(problem.code)
            return
        self.problem = problem
        if type(problem).__name__ == "BdbQuit":
            self.error("BdbQuit: the debugger ended the command", "BdbQuit", problem)
            return
        if isinstance(problem, KeyboardInterrupt):
            self.status = "interrupted"
        try:
            text = self.runner.format_error(problem, bool(self.run and self.run.get("color")))
        except Exception:
            import traceback

            try:
                text = "".join(traceback.format_exception(type(problem), problem, problem.__traceback__))
            except Exception:  # even the standard library cannot show it
                text = "".join(traceback.format_tb(problem.__traceback__)) + type(problem).__name__
        self.error(text, type(problem).__name__, problem)

    def exited(self, code):
        """`sys.exit(code)` ends the command and gives the script's exit code, never the session's."""
        if code is None or isinstance(code, int):
            self.exit = int(code or 0)
            text = "SystemExit: %d" % self.exit
        else:
            self.exit = 1
            try:
                text = str(code)
            except Exception:
                text = "SystemExit: %s" % type(code).__name__
        if self.exit and (os.getpid() == self.pid or not isinstance(code, int)):
            self.error(text, "SystemExit", code)

    # Asking the client

    def patch_input(self):
        import getpass

        def input(prompt="", /):
            """Read a line from the client; at its end of file raise EOFError."""
            sys.audit("builtins.input", prompt)
            line = self.ask(str(prompt), False)
            if line is None:
                raise EOFError("EOF when reading a line")
            return line

        def ask_password(prompt="Password: ", stream=None, **others):
            """Read a line from the client that is not shown there."""
            line = self.ask(str(prompt), True)
            if line is None:
                raise EOFError
            return line

        builtins.input = input
        getpass.getpass = ask_password

    def ask(self, prompt, hidden):
        """The line that the client types, None at its end of file; KeyboardInterrupt comes through."""
        in_main = threading.get_ident() == self.interrupts.main and os.getpid() == self.pid
        if not in_main or self.run is None:
            raise EOFError("only the running command itself can ask")
        if self.run.get("detached"):
            raise EOFError("nobody is there to answer: the command runs detached")
        self.asks += 1
        mine = self.asks
        self.say({"type": "ask", "ask": mine, "prompt": clean(prompt), "hidden": hidden})
        while mine not in self.answers:
            self.wait()
            with self.interrupts:
                self.read_control()
            if self.stopping and mine not in self.answers:
                raise Stopping
        return self.answers.pop(mine)


def can_import(name):
    from importlib.util import find_spec

    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


# --- as a program ------------------------------------------------------------------------------


def end_at_last():
    """Threads that never end must not keep the worker alive."""
    import atexit

    pause(5)
    atexit._run_exitfuncs()
    os._exit(0)


def main(arguments):
    """A session of its own: code runs in a fresh `__main__`, the working directory comes last on the path."""
    rundir, worker_id, runner = arguments
    # This program's own module stays alive under another name, and its folder is not searched.
    sys.modules["_remoter_worker"] = sys.modules["__main__"]
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if place and os.path.abspath(place) != here] + [""]
    sys.argv = [""]
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    worker = Worker(os.path.abspath(rundir), worker_id, runner, live=False)

    def terminate(signum, frame):
        if os.getpid() != worker.pid:  # a child that was forked just now, and still has our handler
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        worker.stop("terminated")
        if worker.interrupts.target is not None and not worker.interrupts.depth:
            raise Stopping

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGHUP, lambda *_: None)  # not ignored: programs that it starts would inherit that
    faulthandler.enable(2)  # last words of a crash
    worker.start(module.__dict__)
    worker.serve()
    worker.streams.flush()
    worker.control.lose(worker.control.connection)
    threading.Thread(target=end_at_last, daemon=True).start()


# --- in a living process -----------------------------------------------------------------------

BORROWED = [(sys, name) for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")]
BORROWED += [(sys, name) for name in ("displayhook", "excepthook", "ps1", "ps2", "ps3")]
BORROWED += [
    (builtins, name) for name in ("input", "exit", "quit", "_", "display", "get_ipython", "__IPYTHON__")
]
ABSENT = object()


class RunningLoop:
    """Hides an event loop that runs around us (Jupyter), so that the session's own can run."""

    def __enter__(self):
        self.loop = None
        if "asyncio" in sys.modules:
            events = sys.modules["asyncio"].events
            self.loop = events._get_running_loop()
            events._set_running_loop(None)

    def __exit__(self, *exception):
        if self.loop is not None:
            sys.modules["asyncio"].events._set_running_loop(self.loop)


def serve_live(rundir, worker_id, runner="auto"):
    """Lend this process to the server until it is stopped; returns why it was.

    Blocks in the main thread. Code runs in this process's `__main__`. Afterwards streams, hooks,
    prompts and signal handlers are as before; what the code did to variables stays.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("only the main thread can be served")
    import getpass

    places = [*BORROWED, (getpass, "getpass")]
    saved = [(owner, name, getattr(owner, name, ABSENT)) for owner, name in places]
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    worker = Worker(os.path.abspath(rundir), worker_id, runner, live=True)
    try:
        with RunningLoop():
            worker.start(sys.modules["__main__"].__dict__)
            return worker.serve()
    finally:
        give_back(worker, saved)


def give_back(worker, saved):
    """Undo, last things first. A second Ctrl-C must not stop this half-way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if worker.runner is not None:
        worker.runner.close()
    worker.close()
    worker.streams.give_back()
    for owner, name, value in saved:
        if value is not ABSENT:
            setattr(owner, name, value)
        elif hasattr(owner, name):
            delattr(owner, name)
    for name, value in worker.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    signal.signal(signal.SIGINT, worker.interrupts.saved or signal.SIG_DFL)


if __name__ == "__main__":
    main(sys.argv[1:])
