"""R at the end of pipes: runs the user's code in an R program of its own; a process between the server and R.

For an R that cannot be embedded (`r_worker.py`), or is not to be: `r_pipe.py RUNDIR WORKERID ENGINE
[REASON]`, standard library only, Python 3.8 and later. To the server it is a worker as any other.

R is started as `R --interactive` with pipes for its console. Two lines are typed into it, and no
others: one has the R side (`r_side.R`, `turn`) do what a file says, the other names a promise in which
the user's expression is evaluated. So all is as at a console, whatever the length of the code. Beside
the console are two FIFOs: on `tell` R answers, and says when a value is about to be printed;
it then waits for `go`, so that we know where in its output the value begins.

What R prints at its console is not marked. A prompt is known by a secret in it, and by R waiting
for a line, which the system tells where it can (`/proc`); an unfinished line at which R waits
is a question for the client, unless R's stack is as deep as at its top level: then the user's code
has set a prompt and left by an error. Where the system does not tell, the R side
says that it is about to read a line. Text on stderr is held for a moment: if R is back at its prompt
by then, it is the error that ended the expression.

One file, longer than others, since it travels, and since all of it is one conversation with R.
From top to bottom: the program, its console, the server's questions, the worker.
"""

from __future__ import annotations

import array
import collections
import fcntl
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios

import python_worker
import r_worker
from python_worker import Control, clean, clock, encode, high, pause, stopwatch

HERE = os.path.dirname(os.path.abspath(__file__))
LONGEST_RESULT = 65536  # bytes of a value's text in a `result` frame; all of it is on stdout
LONGEST_LINE = 4000  # bytes that R's console reads as one line
HOLD = 0.01  # seconds that an unfinished line waits to become a prompt
HOLD_ERROR = 1.0  # seconds that what looks like an error waits for R's prompt
PROMPT_TIME = 0.005  # seconds after which a prompt is one, where nothing tells whether R waits
FIRST_TIME = 0.15  # the same while nothing is known of R's prompt
KNOWN_PATIENCE = 0.3  # seconds that a question waits for R, before what was last known is the answer
SIGNAL_TIME = 5.0  # seconds within which the signal comes that has been announced
HEED_TIME = 0.5  # seconds within which R, which waits for a line, has heeded it
MOST_QUESTIONS = 50  # that a profile may ask
MOST_REFUSALS = 300  # questions of one expression that find no answer, until it is interrupted
MOST_INTERRUPTS = 25  # that it may mind as little, until R is ended
ENDING = 5.0  # seconds that R has to end
WAITS_IN_SELECT = {23, 270, 72, 142}  # select and pselect6 of x86 and ARM
WAITS_IN_READ = {0, 63, 3}
IGNORED_INTERRUPT = 1 << (signal.SIGINT - 1)
REDRAWN = re.compile(rb"\r(?: *\r|\x1b\[K)")


TELL_MENU_PROMPT = """local({
  exactly <- if ("trim" %in% names(formals(gettext))) list(trim = FALSE)
  prompt <- do.call(gettext, c(list("Selection: ", domain = "utils"), exactly))
  .remoter$tell_worker(.remoter$object(kind = .remoter$quoted("menu"), prompt = .remoter$quoted(prompt)))
})"""

# What the R side answers to `%s`, with what there is to know of an error; that call makes the next expression ready.
WITH_ERROR = """local({
  calls <- tryCatch(vapply(.traceback(), function(lines) {
    at <- attr(lines, "srcref")
    text <- paste(lines, collapse = "\\n")
    if (is.null(at)) text else paste0(text, " at ", basename(attr(at, "srcfile")$filename), "#", at[1L])
  }, ""), error = function(problem) character())
  is_handled <- truth(!is.null(getOption("error")))
  answer <- %s
  paste0(substring(answer, 1L, nchar(answer) - 1L), ",\\"handled\\":", is_handled, ",\\"calls\\":", listed(quoted(calls)), "}")
})"""


class Ended(Exception):
    """R is gone."""


def literal(value):
    """A value as R reads it."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return "%dL" % value
    text = str(value).replace("\0", "").replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r")
    return '"%s"' % text


def waiting_bytes(descriptor):
    """How many bytes stand in that pipe."""
    size = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, size)
    return size[0]


class Program:
    """The R program: its console, and the two FIFOs beside it."""

    def __init__(self, folder):
        self.folder = folder
        self.nonce = ".r" + os.urandom(8).hex()
        for name in ("tell", "go"):
            os.mkfifo(os.path.join(folder, name), 0o600)
        self.tell, self.go = (
            high(os.open(os.path.join(folder, name), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            for name in ("tell", "go")
        )
        home = os.environ.get("R_HOME")
        self.path = os.path.join(home, "bin", "R") if home else shutil.which("R") or "R"
        # The console must not wrap what is typed, nor decorate it; the user sees his own values again.
        console = {"COLUMNS": "1000000", "TERM": "dumb", "INPUTRC": os.devnull}
        self.hidden = {name: os.environ.get(name) for name in console}
        environment = {"PAGER": "cat", "GIT_PAGER": "cat", **os.environ, **console}
        profile = "--vanilla" if environment.get("REMOTER_R_VANILLA") == "1" else "--no-save"
        self.process = subprocess.Popen(
            [self.path, "--interactive", "--no-readline", profile, "--no-restore", "--quiet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        self.pid = self.process.pid
        self.stdin, self.stdout, self.stderr = (
            stream.fileno() for stream in (self.process.stdin, self.process.stdout, self.process.stderr)
        )
        self.messages = b""
        self.typed = 0.0
        self.depth = None  # where its stack ended when it was last seen to wait
        self.top = None  # the same at its top level

    def type(self, line):
        self.typed = clock()
        try:
            os.write(self.stdin, line + b"\n")
        except OSError:
            raise Ended from None

    def request(self, text):
        """What the next turn is to do."""
        self.write("request", text)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)

    def take_messages(self):
        try:
            self.messages += os.read(self.tell, 1 << 20)
        except BlockingIOError:
            return []
        *lines, self.messages = self.messages.split(b"\n")
        return [json.loads(line.decode("utf-8", "replace")) for line in lines]

    def proceed(self):
        os.write(self.go, b"g")

    def waits(self):
        """Whether R waits for a line; None: this system does not tell."""
        if waiting_bytes(self.stdin):
            return False
        try:
            with open("/proc/%d/syscall" % self.pid) as file:
                words = file.read().split()
        except OSError:
            return None
        if not words or not words[0].isdigit():
            return False
        number, arguments = int(words[0]), [int(word, 16) for word in words[1:7]]
        self.depth = words[7] if len(words) > 7 else None
        without_end = number in WAITS_IN_SELECT and arguments[0] > 0 and not arguments[4]
        return without_end or (number in WAITS_IN_READ and not arguments[0])

    def waits_at_top(self):
        """Whether R waits at its top level, whatever its prompt is; False also if the system does not tell."""
        return bool(self.waits()) and self.is_at_top()

    def is_at_top(self):
        return self.top is not None and self.depth == self.top

    def ignores_interrupts(self):
        try:
            with open("/proc/%d/status" % self.pid) as file:
                mask = file.read().partition("SigIgn:")[2].split(None, 1)[0]
        except OSError:
            return False
        return bool(int(mask, 16) & IGNORED_INTERRUPT)

    def interrupt(self):
        try:
            os.kill(self.pid, signal.SIGINT)
        except ProcessLookupError:
            pass

    def directory(self):
        try:
            return os.readlink("/proc/%d/cwd" % self.pid)
        except OSError:
            return None


class Console:
    """What R prints: prompts and echoes are taken out of it, errors held, and the rest passed on in order."""

    def __init__(self, worker, rundir, nonce):
        self.worker = worker
        self.prompt = nonce.encode() + b"> "
        self.lines = {name: nonce.encode() + end for name, end in (("turn", b"t()"), ("value", b"v"))}
        self.echo = re.compile(
            rb"(?:%s)*%s(?:t\(\)|v)\n" % (re.escape(self.prompt), re.escape(nonce.encode()))
        )
        self.outlets = {
            stream: high(os.open(os.path.join(rundir, name), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            for stream, name in ((1, "out"), (2, "err"))
        }
        self.expected = None  # the first line that was typed, until it has come back
        self.echoes = False  # whether what is typed comes back at all
        self.skipping = 0  # an answer's echo is to come: 2 before its end of line, 1 just after
        self.tail = b""  # what may become a prompt
        self.held = b""  # what may become an error
        self.error_words = (b"Error",)
        self.changed = 0.0
        self.written = b""  # the end of what went to stderr
        self.captured = None
        self.again = None  # what R writes when it is to show its prompt again
        self.passed = 0  # bytes that went to the server
        self.is_browsing = False  # the last question was a browser's
        self.has_left_browser = False  # by `Q`
        self.is_blind = False  # nothing tells whether R waits
        self.is_reading = False  # the R side has said that it will ask for a line
        self.has_started = False  # until then any unfinished line may be a prompt

    # What comes from R

    def take_out(self, data):
        if self.skipping:
            data = self.skip(data)
        if not data:
            return
        self.changed = clock()
        if self.again is not None:
            self.again += data
            return
        self.tail = self.echo.sub(b"", self.tail + data)
        if self.expected is not None and self.expected in self.tail:
            before, _, after = self.tail.partition(self.expected)
            self.expected, self.echoes, self.skipping = None, True, 1
            self.tail = before + self.skip(after)
        end = self.tail.rfind(b"\n") + 1
        if end:
            text, self.tail = self.tail[:end], self.tail[end:]
            self.put_out(text)

    def expect_echo(self, line):
        self.expected = line + b"\n"

    def skip(self, data):
        """Drop the echo of an answer, and what the console draws after it."""
        if self.skipping == 2:
            _, newline, data = data.partition(b"\n")
            self.skipping = 1 if newline else 2
        if self.skipping == 1 and data:
            self.skipping = 0
            data = REDRAWN.sub(b"", data, 1) if REDRAWN.match(data) else data
        return data

    def take_error(self, data):
        self.changed = clock()
        self.held += data

    def at_prompt(self):
        return self.tail.endswith(self.prompt)

    def take_prompt(self):
        """R is at its top level: what stands before the prompt is output."""
        while self.tail.endswith(self.prompt):
            self.tail = self.tail[: -len(self.prompt)]
        if self.tail:
            self.put_out(self.tail)
            self.tail = b""

    def take_prompt_of_user(self):
        """R is there, too, with a prompt that it has shown again: `again` ends with it."""
        prompt, self.again = self.again.rpartition(b"\n")[2], None
        prompt = REDRAWN.sub(b"", prompt)
        if prompt and self.tail.endswith(prompt):
            self.tail = self.tail[: -len(prompt)]

    def take_question(self):
        """R waits for a line elsewhere: what it has written of a line is its prompt."""
        self.flush_held()
        question, self.tail = self.tail, b""
        self.is_browsing = question.startswith(b"Browse[") or (self.is_browsing and question == b"+ ")
        return question.decode("utf-8", "replace")

    def release(self):
        """Pass on what has waited long enough."""
        waited = clock() - self.changed
        if self.held and waited > (HOLD_ERROR if self.seems_error() else 2 * HOLD):
            self.flush_held()
        if self.tail and waited > HOLD and self.has_started and not self.may_be_prompt_or_question():
            text, self.tail = self.tail, b""
            self.put_out(text)

    def seems_error(self):
        lines = (b"\n" + self.held).split(b"\n")
        return any(line.startswith(self.error_words) for line in lines) or not self.held.strip(b"\n")

    def may_end_interrupt(self):
        """Whether this may be the line that R ends on stderr when it is interrupted: not output, whatever else comes from
        the other pipe meanwhile."""
        worker = self.worker
        interrupted = max(worker.signalled, worker.announced)
        longest = ENDING if interrupted >= worker.begun else HEED_TIME  # it was the run before
        return not self.held.strip(b"\n") and clock() - interrupted < longest

    def may_be_prompt_or_question(self):
        return self.may_be_prompt() or self.may_be_question() or self.may_be_top()

    def may_be_top(self):
        """Whether this may be a prompt that the user's code has set, as far as it can be seen from here."""
        is_back = self.has_left_browser or (bool(self.held) and self.seems_error())
        return self.is_blind and is_back and bool(self.tail)

    def may_be_question(self):
        """Whether R will wait for a line after this one, as far as it can be seen from here."""
        has_crashed = b"Possible actions:" in (self.written + self.held)[-400:]
        is_first = bool(self.tail) and not self.has_started
        is_browser = self.tail.startswith(b"Browse[") or (self.is_browsing and self.tail == b"+ ")
        is_marked = self.is_reading or is_browser or has_crashed or is_first
        return is_marked and not self.skipping and not self.at_prompt()

    def may_be_prompt(self):
        if clock() - self.changed > 10 * HOLD:
            return self.at_prompt()
        start = self.tail.rfind(self.prompt[:3])
        return start >= 0 and self.prompt.startswith(self.tail[start:])

    def flush(self):
        """Everything goes out that cannot be a prompt."""
        self.flush_held()
        if self.tail and not self.at_prompt():
            text, self.tail = self.tail, b""
            self.put_out(text)

    def flush_held(self):
        if self.may_end_interrupt():
            return
        text, self.held = self.held, b""
        if text:
            self.written = (self.written + text)[-LONGEST_RESULT:]
            self.put(2, text)

    def capture(self):
        """From now on R prints the value."""
        self.flush()
        self.captured = b""

    def take_captured(self):
        text, self.captured = self.captured, None
        return text

    # What goes to the server

    def put_out(self, text):
        self.flush_held()
        text = text.replace(self.prompt, b"> ")  # somebody printed the option
        if self.captured is not None:
            self.captured = (self.captured + text)[:LONGEST_RESULT]
        self.put(1, text)

    def put(self, stream, text):
        """Write to the server's FIFO; if it reads nothing now, go on with all else meanwhile."""
        self.passed += len(text)
        self.wait_until_read(3 - stream)
        while text:
            try:
                text = text[os.write(self.outlets[stream], text) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.outlets[stream], select.POLLOUT)
                poll.poll(50)
                self.worker.read_frames()

    def wait_until_read(self, stream):
        """Until the server has read what went to the other stream: two pipes have no common order."""
        is_read = self.worker.control.connection is not None
        deadline = clock() + (python_worker.ORDER_TIME if is_read else 0)
        while waiting_bytes(self.outlets[stream]) and clock() < deadline:
            pause(0.00005)


class Side(r_worker.Side):
    """The connection for questions: R answers them between two expressions."""

    def __init__(self, worker, path):
        super().__init__(worker, path)
        self.known = {}

    def connect(self):
        worker = self.worker
        hello = {"type": "hello", "role": "side", "worker": worker.id, "pid": worker.pid, "lang": "r"}
        hello.update(
            version=worker.version, python=worker.program.path, runner="pipe", tempdir=worker.tempdir
        )
        hello.update(cwd=worker.directory(), busy=worker.run["number"] if worker.run else None)
        self.connection = python_worker.Connection(self.path, hello)

    def read(self):
        before = len(self.questions)
        super().read()
        for connection, query in list(self.questions)[before:]:
            query["came"] = clock()

    def answer(self, query):
        if query["what"] == "info":
            return {"cwd": self.worker.directory(), "pid": self.worker.pid, "runner": "pipe"}
        data = super().answer(query)
        if query["what"] == "variables":
            self.known = {"variables": data["variables"], "at": clock()}
        return data

    def answer_known(self):
        """While R is busy: what was last known, for who has waited long enough for R itself."""
        now, later = clock(), collections.deque()
        while self.questions:
            connection, query = self.questions.popleft()
            data = self.from_memory(query) if now - query["came"] > KNOWN_PATIENCE else None
            if data is None:
                later.append((connection, query))
            elif connection is self.connection:
                self.reply(query, data=data)
        self.questions = later

    def answer_all(self):
        while self.questions:
            connection, query = self.questions.popleft()
            if connection is not self.connection:  # who asked is gone
                continue
            try:
                self.reply(query, data=self.answer(query))
            except (RuntimeError, ValueError) as problem:
                self.reply(query, error=clean("%s: %s" % (type(problem).__name__, problem)))

    def reply(self, query, **reply):
        try:
            self.connection.socket.sendall(encode({"type": "reply", "id": query["id"], **reply}))
        except OSError:
            self.lose()

    def from_memory(self, query):
        what, cursor = query["what"], query.get("cursor", 0)
        if what == "info":
            return self.answer(query)
        if what == "variables":
            age = round(clock() - self.known["at"], 3) if self.known else None
            return {"variables": self.known.get("variables", []), "age": age}
        if what == "complete":
            return {"matches": [], "types": [], "start": cursor, "end": cursor}
        if what == "is_complete":
            return {"status": ""}
        if what == "inspect":
            return {"found": False, "text": ""}
        return None  # objects wait for R


class Worker:
    """Takes runs from the server one after the other, has R run them, and tells what became of them."""

    def __init__(self, rundir, worker_id, reason):
        self.rundir = rundir
        self.id = worker_id
        self.reason = reason
        self.pid = os.getpid()
        self.folder = tempfile.mkdtemp(prefix="pipes-", dir=rundir)
        self.version = self.tempdir = ""
        self.is_up = False  # before R's first prompt and after its last nothing is taken on
        self.run = None
        self.last = 0
        self.terminal = 0, False
        self.queue = collections.deque()
        self.answers = {}
        self.asks = 0
        self.stopping = None
        self.answer = None  # of the R side, to the turn that is under way
        self.turn_until = None  # when it must have come
        self.is_value = False
        self.is_evaluating = False
        self.strike_at = None  # when R, which has missed an interrupt, gets it once more
        self.is_trying = False  # a line is typed that R takes at its top level
        self.was_deaf = False  # R had a program run in its place a moment ago, which gets the interrupts
        self.was_interrupted = False  # in the expression that was evaluated last
        self.signalled = self.announced = 0.0  # when an interrupt's signal came last, and its number
        self.begun = 0.0  # when the run began
        self.menu_prompt = "Selection: "  # in R's language
        self.refusals = 0  # questions in a row to which there was no answer
        self.has_given_up = False  # of a browser that there was none for
        self.status, self.exit = "ok", None
        self.interrupts = r_worker.Interrupts(os.path.join(rundir, "interrupt"))
        path = os.path.join(rundir, "worker.sock")
        self.control = Control(self, path)
        self.side = Side(self, path)
        self.waker = self.side.waker
        self.program = Program(self.folder)
        self.console = Console(self, rundir, self.program.nonce)
        self.pictures = r_worker.Pictures(self)
        self.is_drawing = False  # a device of ours has been opened

    # Life

    def start(self):
        """Wait for R's first prompt, which may be preceded by whatever profiles do, and read the R side."""
        lines = [
            'eval(parse(%s, keep.source = FALSE, encoding = "UTF-8"))'
            % literal(os.path.join(HERE, "r_side.R")),
            ".remoter$open_pipes(%s, %s, %s, list(%s))"
            % (
                literal(self.folder),
                literal(self.program.nonce),
                literal(self.program.waits() is None),
                ", ".join(
                    "%s = %s" % (name, "NA" if value is None else literal(value))
                    for name, value in self.program.hidden.items()
                ),
            ),
            TELL_MENU_PROMPT,
            ".remoter$last_value()",
        ]
        self.program.write("boot", "\n".join(lines) + "\n")
        line = ("eval(parse(%s))" % literal(os.path.join(self.folder, "boot"))).encode()
        self.wait_for_top()
        console = self.console
        prompt, console.tail = console.tail, b""
        console.expect_echo(line)
        self.program.type(line)
        self.wait_for_line()
        self.look(0)
        if self.answer is None:
            raise RuntimeError("R does not do as it is told: %r" % (prompt + console.tail + console.held))
        known = self.answer["prompt"].encode()
        before = prompt[: -len(known)] if known and prompt.endswith(known) else prompt
        if before:
            console.put_out(before)
        self.version, self.tempdir = self.answer["version"], self.answer["tempdir"]
        console.error_words = tuple(word.encode() for word in self.answer["errors"])
        console.has_started = True
        if self.program.waits() and console.at_prompt():
            self.program.top = self.program.depth
        console.is_blind = self.program.waits() is None
        console.take_prompt()
        console.flush()
        self.is_up = True
        self.side.keep_connected()
        if self.reason:
            self.notice("R runs as a piped program here: %s" % self.reason, "engine")

    def wait_for_top(self):
        """Until R is at its first prompt. A profile may ask, too; R alone answers an empty line by its prompt again."""
        console = self.console
        for _ in range(MOST_QUESTIONS):
            self.wait_for_line()
            before, passed = console.tail, console.passed
            console.expect_echo(b"")
            self.program.type(b"")
            self.wait_for_line()
            if console.passed == passed and console.tail == before * 2:
                console.tail = before
                return

    def serve(self):
        """Run what comes until told to stop."""
        while not self.stopping:
            if self.queue:
                self.execute(self.queue.popleft())
            elif self.side.questions:
                self.side.answer_all()
            else:
                self.look(2.0)
                self.console.take_prompt()
                self.swallow_newline()
                self.console.release()

    def stop(self, reason):
        """End when idle; what runs is interrupted. From any signal handler, too."""
        self.stopping = self.stopping or reason
        if self.is_evaluating:
            self.program.interrupt()
        self.waker.wake()

    def end(self):
        """Let R end by the end of its input, and go as it went."""
        program = self.program
        self.is_up = False
        program.process.stdin.close()
        deadline = clock() + ENDING
        try:
            while clock() < deadline:
                self.look(0.05)
        except Ended:
            pass
        if program.process.poll() is None:
            program.process.kill()
        return program.process.wait()

    is_wanted = python_worker.Worker.is_wanted
    read_control = python_worker.Worker.read_control
    take = python_worker.Worker.take

    def watch(self):
        """Nothing else watches our connections."""

    def directory(self):
        return self.program.directory() or python_worker.current_directory()

    # Whatever comes

    def look(self, longest):
        """Wait for the server or R, at most that long, and take in what has come. Raises Ended."""
        program = self.program
        poll = select.poll()
        connections = [c for c in (self.control.connection, self.side.connection) if c is not None]
        places = [self.waker, self.interrupts, *connections]
        for place in places:
            poll.register(place.fileno(), select.POLLIN)
        for descriptor in (program.stdout, program.stderr, program.tell):
            poll.register(descriptor, select.POLLIN)
        if len(connections) < 2 and self.is_up:
            longest = min(longest, max(0.001, self.side.next_try - clock()))
        if self.console.tail or self.console.held:
            longest = min(longest, HOLD / 4)
        ready = {descriptor for descriptor, _ in poll.poll(longest * 1000)}
        if self.is_evaluating and not self.was_deaf:
            self.was_deaf = program.ignores_interrupts()  # before anybody can answer to what it has printed
        if self.waker.fileno() in ready:
            self.waker.clear()
        self.read_frames()
        self.read_program(ready)
        self.see_interrupt()

    def read_frames(self):
        if not self.is_up:
            return
        self.side.keep_connected()
        self.side.read()
        self.read_control()
        if self.run is not None and self.side.questions:
            self.side.answer_known()

    def read_program(self, ready):
        program, console = self.program, self.console
        if program.stderr in ready and program.stdout in ready:
            self.read_stream(program.stdout, console.take_out)
        if program.stderr in ready:
            self.read_stream(program.stderr, console.take_error)
        if program.stdout in ready and not self.read_stream(program.stdout, console.take_out):
            self.read_to_the_end()
            raise Ended
        if program.tell in ready:
            for message in program.take_messages():
                self.hear(message)

    def read_stream(self, descriptor, take):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(0):
            return True
        data = os.read(descriptor, 1 << 16)
        take(data)
        return bool(data)

    def read_to_the_end(self):
        while self.read_stream(self.program.stderr, self.console.take_error):
            if not waiting_bytes(self.program.stderr):
                break
        self.console.flush()

    def hear(self, message):
        """A message of the R side."""
        if message["kind"] == "reading":
            self.console.is_reading = message["now"]
        elif message["kind"] == "value":
            self.is_value = True
            if message["visible"]:
                self.read_what_waits()
                self.console.capture()
                self.program.proceed()
        elif message["kind"] == "menu":
            self.menu_prompt = message["prompt"]
        elif message["kind"] == "drawing":
            self.is_drawing = True
        elif message["kind"] == "plots":  # before a question; R waits
            self.read_what_waits()
            if self.run is not None:
                self.pictures.show(message["data"].get("plots") or [])
            self.program.proceed()
        else:
            self.answer = message.get("data", message)

    def read_what_waits(self):
        """What R has printed before it told us something."""
        program, console = self.program, self.console
        for descriptor, take in ((program.stderr, console.take_error), (program.stdout, console.take_out)):
            while waiting_bytes(descriptor):
                self.read_stream(descriptor, take)

    def see_interrupt(self):
        """R gets the signal itself, with us. It misses it while it only begins, or while a program runs in its place."""
        self.interrupts.read()
        if not self.is_evaluating or not self.is_interrupted():
            self.strike_at = None
            return
        now = clock()
        if self.strike_at is None:
            self.announced = now
            is_missed = now - self.program.typed < 0.1 or self.was_deaf or self.program.ignores_interrupts()
            self.strike_at = now + 0.1 if is_missed else float("inf")
        elif now > self.strike_at and not (self.console.at_prompt() or self.program.ignores_interrupts()):
            self.strike_at = float("inf")
            self.program.interrupt()

    def is_interrupted(self):
        number = self.run["number"] if self.run else None
        numbers = self.interrupts.numbers
        return number is not None and (number in numbers or number | r_worker.SWALLOWED in numbers)

    def swallow_newline(self):
        if self.console.may_end_interrupt():
            self.console.held = b""

    # R's console

    def wait_for_line(self):
        """Until R wants a line: True at its top level, False elsewhere. Raises Ended."""
        console, program = self.console, self.program
        patience = PROMPT_TIME if console.has_started else FIRST_TIME
        while True:
            waits = self.waits_quickly()
            is_read = not waiting_bytes(program.stdout) and not waiting_bytes(program.stderr)
            if waits and is_read and console.skipping != 2:
                return console.at_prompt() or program.is_at_top()
            quiet = clock() - max(console.changed, program.typed)
            if console.at_prompt() and quiet > (PROMPT_TIME if waits is None else 10 * HOLD):
                return True
            if waits is None and console.may_be_question() and quiet > patience:
                return False
            self.was_deaf = self.is_evaluating and program.ignores_interrupts()
            if waits is None and self.is_evaluating:
                self.try_top()
            self.look(0.05)
            self.end_long_turn()
            console.release()

    def try_top(self):
        """Nothing tells whether R waits, and an unfinished line stands after what seems an error, or `Q` in a browser: it may be a prompt
        that the user's code has set. Then R takes our line now, and otherwise as soon as it is back."""
        console = self.console
        if self.is_trying or not console.may_be_top() or console.at_prompt() or console.may_be_question():
            return
        if clock() - console.changed > HOLD_ERROR / 2:
            self.is_trying, self.answer = True, None
            self.program.request("'{}'")
            self.program.type(console.lines["turn"])

    def end_trying(self):
        deadline = clock() + ENDING
        while self.is_trying and self.answer is None and clock() < deadline:
            self.look(0.05)
        if self.is_trying:
            self.is_trying = False
            self.wait_for_line()

    def waits_quickly(self):
        """As `waits`. R has written its prompt some microseconds before it waits."""
        waits = self.program.waits()
        for _ in range(20 if self.console.at_prompt() else 0):
            if waits is not False:
                break
            pause(0.00005)
            waits = self.program.waits()
        return waits

    def turn(self, text):
        """The R side's answer to that. Raises Ended, and RuntimeError when it does not answer."""
        for _ in range(5):
            self.answer = None
            self.program.request(text)
            self.program.type(self.console.lines["turn"])
            while not self.wait_for_line():  # a package asks something before it is loaded
                self.console.take_question()
                self.send_line("")
            self.look(0)
            self.swallow_newline()
            self.leave_prompt()
            if self.answer is not None:
                return self.answer
        raise RuntimeError("R did not answer")

    def leave_prompt(self):
        """R is at its top level: what stands before its prompt is output. An empty line shows a prompt of the user's again."""
        console = self.console
        if self.program.is_at_top() and not console.at_prompt():
            console.again = b""
            self.program.type(b"")
            self.wait_for_line()
            self.look(0)
            console.take_prompt_of_user()
        console.take_prompt()

    def ask_r(self, name, *arguments, limit=None):
        """Raises RuntimeError, also when R has not answered within `limit` seconds."""
        call = "%s(%s)" % (name, ", ".join(map(literal, arguments)))
        if limit is None:
            return self.turn(call)
        self.turn_until = clock() + limit
        answer = self.turn("allowInterrupts(%s)" % call)
        if answer.get("interrupted") and self.turn_until is None:
            raise RuntimeError("it takes too long")
        self.turn_until = None
        return answer

    def end_long_turn(self):
        """Nobody waits any longer for what R is being asked."""
        if self.turn_until is not None and clock() > self.turn_until:
            self.turn_until = None
            self.signalled = clock()
            self.program.interrupt()

    def send_line(self, text):
        """Type an answer; R's console takes some characters for commands unless they are quoted."""
        line = text.replace("\0", "").encode("utf-8", "replace")[:LONGEST_LINE]
        if self.console.echoes:
            line = re.sub(rb"([\x00-\x1f\x7f])", b"\x16\\1", line)
            self.console.skipping = 2
        self.program.type(line)

    # One run

    def execute(self, run):
        number = run["number"]
        self.status, self.exit = "ok", None
        self.answers.clear()
        self.interrupts.forget(number - 1)
        self.interrupts.read()
        self.run = run
        started, self.begun = stopwatch(), clock()
        try:
            if self.is_interrupted():
                self.interrupted()
            else:
                self.run_code(run)
        except RuntimeError as problem:
            self.error("Error: %s" % problem, "Error", str(problem))
        self.swallow_newline()
        self.console.flush()
        done = {"type": "done", "number": number, "status": self.status, "exit": self.exit}
        done["elapsed"] = stopwatch() - started
        self.run = None
        self.control.post(done)

    def run_code(self, run):
        is_script = run.get("mode") == "script"
        timed = is_script and bool(run.get("timer"))
        self.program.write("code", run["code"].replace("\r\n", "\n"))
        terminal = int(run.get("width") or 0), bool(run.get("color"))
        if terminal != self.terminal:
            self.ask_r("set_terminal", *terminal)
            self.terminal = terminal
        name, keep = run.get("filename") or "", run.get("keep") or None
        begun = self.ask_r("begin", name, r_worker.file_of(run), keep, timed)
        if "count" not in begun:
            self.refuse(begun)
            return
        before, count, ended = begun["state"], begun["count"], {}
        for place in range(1, count + 1):
            if self.is_interrupted():
                self.interrupted()
                break
            if timed:
                self.echo_source(begun["texts"][place - 1])
            held = self.evaluate()
            call = "step(%dL)" % (place + 1) if place < count else "finish()"
            ended = self.turn(WITH_ERROR % call if held or not self.is_value else call)
            after = ended["state"]
            after.update(traceback=ended.get("calls", []), handled=ended.get("handled", False))
            went_well = self.conclude(held, before, after)
            if timed:
                self.tell_time(before["time"], after["time"])
            before = after
            stopped = self.stopping or self.status == "interrupted" or self.exit is not None
            if stopped or not (went_well or (is_script and run.get("keep_going"))):
                break
        if "plots" not in ended:
            ended = self.ask_r("finish")
        if ended["plots"]:
            self.pictures.show(self.ask_r("plots").get("plots") or [])
        if ended["state"]["sinks"] > begun["state"]["sinks"]:
            self.notice("output goes to a sink; `sink()` brings it back", "sink")

    def refuse(self, judged):
        """The code is not whole, or not R: nothing of it runs."""
        message = judged.get("message") or judged.get("error") or "the code could not be read"
        word = self.console.error_words[0].decode()  # "Error: " in R's language
        value = message[len(word) :] if message.startswith(word) else message
        self.error(word + value, "Error", value)

    def evaluate(self):
        """Have R evaluate and print the expression that is ready. Gives what is left on stderr."""
        console = self.console
        self.is_value, self.is_evaluating, self.refusals, self.has_given_up = False, True, 0, False
        console.is_reading = console.is_browsing = console.has_left_browser = False
        console.written = b""
        self.strike_at = None
        self.program.type(console.lines["value"])
        while not self.wait_for_line():
            self.pass_on_question()
        self.end_trying()
        self.look(0)
        self.is_evaluating = False
        self.was_interrupted = self.is_interrupted()
        if self.strike_at == float("inf"):  # R has had it, and may have gone on
            number = self.run["number"]
            self.interrupts.numbers -= {number, number | r_worker.SWALLOWED}
        held, console.held = console.held, b""
        self.leave_prompt()
        return held

    def conclude(self, held, before, after):
        """How that expression ended. Returns whether it went well."""
        console = self.console
        captured = console.take_captured()
        self.exit = after["exit"]
        has_failed = after["jumped"] or not self.is_value or self.exit is not None
        message = (after["message"] or "").encode()
        is_error = after["jumped"] and self.exit is None and self.has_message(held, message, before)
        if has_failed and not after["jumped"] and self.exit is None:  # `options(error =)` has left by itself
            is_error = after["handled"] and not self.was_interrupted and self.is_written(message)
            after["traceback"] = []
        if is_error:
            held = self.report(held, message, after)
        # The traceback changes when R is interrupted, and not when the code leaves by itself.
        is_wish = has_failed and not (after["jumped"] or self.was_interrupted or self.has_given_up)
        if has_failed and held.endswith(b"\n") and self.exit is None and not (is_error or is_wish):
            held = held[:-1] if held.strip(b"\n") else b""  # R ends a line there whenever it is interrupted
        console.held = held
        console.flush()
        if self.exit is not None:
            self.exited()
        elif has_failed and not is_error:
            self.interrupted(is_wish)
        elif captured:
            text = captured.decode("utf-8", "replace")
            text = text[:-1] if text.endswith("\n") else text
            self.say({"type": "result", "text": clean(text), "printed": True}, hold=True)
        return not has_failed

    def has_message(self, held, message, before):
        """Whether R jumped for an error: it wrote the message, or keeps one that it had not before."""
        if message and message in held:
            return True
        if self.was_interrupted:  # an error that was caught before leaves its message too
            return False
        is_new = bool(message) and message.decode() != before["message"]
        return is_new or (clock() - self.signalled > 5.0 and held != b"\n")

    def is_written(self, message):
        return bool(message) and message in self.console.written

    def report(self, held, message, after):
        """The error frame; gives what stood on stderr before the message."""
        self.status = "error"
        is_printed = message not in held  # or is not to be shown
        start = held.rfind(message) if message in held else len(held)
        text = (held[start:] or message or b"Error").decode("utf-8", "replace").rstrip("\n")
        shown = message.decode("utf-8", "replace").rstrip("\n") or text
        mark = re.match(r"[^:\n]* in .*? : *\n? *((?:.|\n)*)", shown) or re.match(
            r"[^:\n]*: ((?:.|\n)*)", shown
        )
        header = {"type": "error", "text": clean(text), "name": "Error"}
        header.update(
            value=clean(mark.group(1) if mark else shown), traceback=list(map(clean, after["traceback"]))
        )
        if is_printed:
            header["printed"] = True
        self.console.held = held[:start]
        self.say(header, waits=self.run.get("mode") == "script")
        return b""

    def error(self, text, name, value):
        self.status = "error" if self.status == "ok" else self.status
        header = {"type": "error", "text": clean(text), "name": name, "value": clean(value), "traceback": []}
        self.say(header, hold=True)

    def interrupted(self, is_wish=False):
        self.status = "interrupted"
        self.say(r_worker.interruption(is_wish), hold=True)

    def exited(self):
        """`q()`: the run is over, with that status; the session goes on."""
        if self.exit:
            self.error("q(status = %d)" % self.exit, "quit", str(self.exit))
        if self.run.get("mode") != "script":
            self.notice("the session goes on; `q()` at the prompt leaves it", "exit")

    def echo_source(self, source):
        text = "\n".join("## " + line for line in source.split("\n"))
        self.console.put_out(text.encode("utf-8", "replace") + b"\n")

    def tell_time(self, before, after):
        spent = tuple(end - start for start, end in zip(before, after))
        self.console.put_out(b"   user  system elapsed\n%7.3f %7.3f %7.3f\n" % spent)

    # R asks

    def pass_on_question(self):
        """R waits for a line, and not at its top level."""
        question = self.console.take_question()
        is_browser = question.startswith("Browse[")
        if not is_browser and b"Possible actions:" in self.console.written[-400:]:
            self.send_line("1")  # it has crashed; end now, with the signal
            return
        text = None
        if not self.is_interrupted() and not self.run.get("detached"):
            if is_browser and self.is_drawing:
                self.show_plots_in_browser()
            text = self.ask_client(question)
        if text is None and self.is_interrupted():
            self.wait_for_signal()
            if self.console.tail:  # its prompt, or another question
                return
        if self.console.at_prompt() or self.program.waits_at_top():  # it was interrupted and asks no more
            return
        if self.stopping:
            self.program.interrupt()
        if text is not None:
            self.refusals = 0
            self.console.has_left_browser = is_browser and text.strip() == "Q"
            self.send_line(text)
        else:
            self.has_given_up = self.has_given_up or is_browser
            self.console.has_left_browser = is_browser
            self.decline("Q" if is_browser else "0" if question == self.menu_prompt else "")

    def wait_for_signal(self):
        """The interrupt has been announced; R may get it a moment later, and a line would be an answer, or code at its top level.

        We get the signal when R does.
        """
        while True:
            has_come = self.signalled >= self.announced - HEED_TIME
            since, longest = (self.signalled, HEED_TIME) if has_come else (self.announced, SIGNAL_TIME)
            if clock() - since > longest:
                return
            if self.console.tail or self.program.waits_at_top():
                return
            self.look(0.05)

    def decline(self, line):
        """Nobody answers: that line says so. Who asks on for ever is interrupted; if R minds that no more, it is ended."""
        self.refusals += 1
        if self.refusals > MOST_REFUSALS + MOST_INTERRUPTS:
            self.program.process.kill()
            while True:  # until the end of R is seen
                self.look(0.25)
        if self.refusals > MOST_REFUSALS:
            self.program.interrupt()
            self.look(0.2)
            if self.console.at_prompt() or self.program.waits_at_top():
                return
        self.send_line(line)

    def show_plots_in_browser(self):
        """Elsewhere R shows them itself before it asks; a browser has no place for that, but takes our line."""
        self.answer = None
        self.program.request("plots(TRUE)")
        self.program.type(self.console.lines["turn"])
        self.wait_for_line()
        self.look(0)
        if not self.console.at_prompt():
            self.console.take_question()
        if self.answer is not None:
            self.pictures.show(self.answer.get("plots") or [])

    def ask_client(self, prompt):
        """The line that the client types; None: there is none."""
        self.asks += 1
        self.say({"type": "ask", "ask": self.asks, "prompt": clean(prompt), "hidden": False})
        while self.asks not in self.answers:
            self.look(0.25)
            if self.stopping or self.is_interrupted():
                return None
            if self.console.at_prompt() or self.program.waits_at_top():
                return None
        return self.answers.pop(self.asks)

    # What a run says

    def say(self, header, buffers=(), hold=False, waits=False):
        """A frame of the run, after what R printed before; with `waits`, R prints on only when the server has it."""
        self.console.flush()
        header["number"] = self.run["number"] if self.run else None
        waits = waits and self.control.connection is not None
        if waits:
            header["wait"] = True
        self.control.post(header, buffers, hold and not waits)
        deadline = clock() + python_worker.SETTLE_TIME
        while waits and self.control.kept and self.control.kept[0][0] <= header["frame"]:
            if clock() > deadline or self.control.connection is None:
                break
            poll = select.poll()
            poll.register(self.control.connection.fileno(), select.POLLIN)
            poll.poll(50)
            self.read_frames()

    def notice(self, text, about):
        self.say({"type": "notice", "text": text, "about": about}, hold=True)


# --- as a program ------------------------------------------------------------------------------


def main(arguments):
    rundir, worker_id = os.path.abspath(arguments[0]), arguments[1]
    is_wanted = arguments[2] == "pipe"  # then nobody need be told why
    worker = Worker(rundir, worker_id, "" if is_wanted else " ".join(arguments[3:]))

    def note_interrupt(signum, frame):
        worker.signalled = clock()
        worker.waker.wake()

    signal.signal(signal.SIGINT, note_interrupt)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop("terminated"))
    signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        worker.start()
        worker.serve()
        worker.console.flush()
        worker.control.lose(worker.control.connection)
        worker.end()
        code = 0
    except Ended:
        code = worker.program.process.wait()
    finally:
        shutil.rmtree(worker.folder, ignore_errors=True)
    end_like(code, worker.stopping)


def end_like(code, stopping):
    """Go as R went."""
    if code >= 0 or stopping:
        os._exit(max(0, code))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # R has left its own already
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
    os._exit(128 - code)


if __name__ == "__main__":
    main(sys.argv[1:])
