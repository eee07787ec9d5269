"""The Python worker, driven as the server drives it: real processes, FIFOs and sockets."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest

WORKER = Path(__file__).parent.parent / "src" / "remoter" / "_workers" / "python_worker.py"
VERSIONS = Path.home() / ".pyenv" / "versions"
LENGTHS = struct.Struct("!II")
RUNNERS = ["plain", "ipython"]


def find_python(version: str) -> str | None:
    """An interpreter of that version, from pyenv or the path."""
    beside = Path(__file__).parent.parent / f".venv-{version}" / "bin" / "python"
    kept = sorted(VERSIONS.glob(f"{version}.*/bin/python")) or [beside] * beside.exists()
    python = str(kept[-1]) if kept else shutil.which(f"python{version}")
    runs = python and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    return python if runs else None


class Line:
    """One connection of the worker, seen from the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.buffer = b""
        self.frames: list[dict[str, Any]] = []
        self.ended = False

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, **header: Any) -> None:
        head = json.dumps(header).encode()
        self.socket.sendall(LENGTHS.pack(len(head), 0) + head)

    def read(self) -> None:
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionError:
            data = b""
        self.ended = self.ended or not data
        self.buffer += data
        while len(self.buffer) >= 8:
            head, body = LENGTHS.unpack_from(self.buffer)
            if len(self.buffer) < 8 + head + body:
                break
            frame = json.loads(self.buffer[8 : 8 + head])
            rest = self.buffer[8 + head : 8 + head + body]
            self.buffer = self.buffer[8 + head + body :]
            for key, length in frame.pop("buffers", []):
                frame.setdefault("data", {})[key], rest = rest[:length], rest[length:]
            self.frames.append(frame)


class Outcome:
    """What a run put out."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.output: dict[str, bytes] = {}

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind]

    @property
    def done(self) -> dict[str, Any]:
        return self.of("done")[-1]

    @property
    def status(self) -> str:
        return self.done["status"]

    @property
    def texts(self) -> list[str]:
        return [frame["text"] for frame in self.of("result")]

    @property
    def text(self) -> str | None:
        return self.texts[-1] if self.texts else None

    @property
    def error(self) -> str:
        return "".join(frame["text"] for frame in self.of("error"))

    @property
    def stdout(self) -> str:
        return self.output.get("out", b"").decode()

    @property
    def stderr(self) -> str:
        return self.output.get("err", b"").decode()


class Server:
    """Plays the server and the keeper for one worker."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(dir="/tmp", prefix="wk")
        self.fifos: dict[str, int] = {}
        for name in ("in", "out", "err", "interrupt"):
            path = os.path.join(self.folder, name)
            os.mkfifo(path, 0o600)
            self.fifos[name] = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.path = os.path.join(self.folder, "worker.sock")
        self.listener: socket.socket | None = None
        self.control: Line | None = None
        self.side: Line | None = None
        self.hellos: dict[str, dict[str, Any]] = {}
        self.number = 0
        self.query_id = 0
        self.received = 0
        self.seen: list[dict[str, Any]] = []
        self.output: dict[str, bytes] = {"out": b"", "err": b""}
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.group = False
        self.listen()

    # life

    def listen(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()

    def spawn(self, python: str = sys.executable, runner: str = "auto", **environment: str) -> Server:
        env = {
            **os.environ,
            "IPYTHONDIR": self.folder + "/ipython",
            "MPLCONFIGDIR": self.folder,
            **environment,
        }
        env.pop("MPLBACKEND", None)
        self.process = subprocess.Popen(
            [python, str(WORKER), self.folder, "w1", runner],
            stdin=self.fifos["in"],
            stdout=self.fifos["out"],
            stderr=self.fifos["err"],
            start_new_session=True,
            env=env,
            cwd=self.folder,
        )
        self.group = True
        return self.meet()

    def meet(self) -> Server:
        """Both connections of the worker come and say hello."""
        assert self.listener is not None
        self.listener.settimeout(60)
        while self.control is None or self.side is None:
            line = Line(self.listener.accept()[0])
            while not line.frames and not line.ended:
                line.read()
            if not line.frames:  # user code closed it as soon as it was made
                line.socket.close()
                continue
            hello = line.frames.pop(0)
            self.hellos[hello["role"]] = hello
            if (old := getattr(self, hello["role"])) is not None:  # lost before both were there
                old.socket.close()
            if hello["role"] == "control":
                self.control = line if self.welcome(line) else None
            else:
                self.side = line
        self.pid = self.hellos["control"]["pid"]
        return self

    def welcome(self, line: Line) -> bool:
        """Whether the worker is still there: it waits two seconds for that word, and then comes again."""
        try:
            line.send(type="welcome", received=self.received)
        except ConnectionError:
            line.socket.close()
            return False
        return True

    def vanish(self) -> None:
        """The server dies: no connections, no listener."""
        for line in (self.control, self.side, self.listener):
            if line is not None:
                (line.socket if isinstance(line, Line) else line).close()
        self.control = self.side = self.listener = None

    def close(self) -> None:
        self.vanish()
        if self.process is not None:
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)
        for fd in self.fifos.values():
            os.close(fd)
        shutil.rmtree(self.folder)

    # talking

    def submit(self, code: str, mode: str = "prompt", **options: Any) -> int:
        self.number += 1
        frame: dict[str, Any] = {
            "filename": None,
            "keep_going": False,
            "timer": False,
            "width": 0,
            "color": False,
            "detached": False,
            **options,
        }
        assert self.control is not None
        self.control.send(
            type="run", number=self.number, code=code, mode=mode, received=self.received, **frame
        )
        return self.number

    def pump(self, timeout: float) -> None:
        """Read what there is, pipes before frames."""
        places = [self.fifos["out"], self.fifos["err"]]
        lines = [line for line in (self.control, self.side) if line is not None and not line.ended]
        ready = select.select([*places, *lines], [], [], timeout)[0]
        control = self.control
        if control in ready and control is not None:
            control.read()
        for name in ("out", "err"):
            with contextlib.suppress(BlockingIOError):
                for _ in range(2):  # more than the pipe holds, but not for ever
                    self.output[name] += os.read(self.fifos[name], 1 << 20)
        if self.side in ready and self.side is not None:
            self.side.read()
        if control is not None:
            for frame in control.frames:
                if "frame" in frame:
                    assert frame["frame"] == self.received + 1, (frame, self.received)
                    self.received += 1
                self.seen.append(frame)
            control.frames.clear()

    def until(self, condition: Any, timeout: float = 60) -> Any:
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited for nothing: {self.seen} {self.output}"
            self.pump(0.05)
        return found

    def until_printed(self, text: str, where: str = "out") -> None:
        self.until(lambda: text.encode() in self.output[where])

    def find(self, kind: str, number: int | None = None) -> dict[str, Any] | None:
        for frame in self.seen:
            if frame["type"] == kind and (number is None or frame.get("number") == number):
                return frame
        return None

    def finish(self, number: int | None = None, timeout: float = 60) -> Outcome:
        number = number or self.number
        self.until(lambda: self.find("done", number), timeout)
        self.pump(0)
        outcome = Outcome()
        outcome.frames, self.seen = self.seen, []
        outcome.output, self.output = self.output, {"out": b"", "err": b""}
        return outcome

    def run(self, code: str, mode: str = "prompt", **options: Any) -> Outcome:
        return self.finish(self.submit(code, mode, **options))

    def ask_side(self, what: str, code: str = "", cursor: int | None = None) -> Any:
        self.query_id += 1
        assert self.side is not None
        side, mine = self.side, self.query_id
        side.send(type="query", id=mine, what=what, code=code, cursor=len(code) if cursor is None else cursor)
        self.until(lambda: any(frame.get("id") == mine for frame in side.frames))
        reply = next(frame for frame in side.frames if frame.get("id") == mine)
        side.frames.remove(reply)
        assert "error" not in reply, reply
        return reply["data"]

    def answer(self, text: str | None) -> dict[str, Any]:
        """Wait for the ask of the current run and answer it."""
        ask = self.until(lambda: self.find("ask"))
        self.seen.remove(ask)
        assert self.control is not None
        self.control.send(type="answer", ask=ask["ask"], text=text)
        return ask

    def announce_interrupt(self, number: int | None = None) -> None:
        os.write(self.fifos["interrupt"], struct.pack("!Q", number or self.number))

    def signal(self) -> None:
        (os.killpg if self.group else os.kill)(self.pid, signal.SIGINT)

    def interrupt(self, number: int | None = None) -> None:
        self.announce_interrupt(number)
        self.signal()

    def stop(self) -> int:
        assert self.control is not None and self.process is not None
        self.control.send(type="stop")
        return self.process.wait(60)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=RUNNERS)
def session(request, server):
    return server.spawn(runner=request.param)


@pytest.fixture
def plain(server):
    return server.spawn(runner="plain")


@pytest.fixture
def ipython(server):
    return server.spawn(runner="ipython")


# --- what every runner does --------------------------------------------------------------------


def test_a_value_is_shown_and_kept_as_underscore(session):
    outcome = session.run("1 + 1")
    assert (outcome.text, outcome.status, outcome.done["exit"]) == ("2", "ok", None)
    assert session.run("_ * 21").text == "42"
    assert session.run("x = 5").texts == []
    assert session.run("None").texts == []
    assert session.run("y = 1\nx + y").text == "6"
    assert session.run("").status == "ok"


def test_output_comes_in_order_from_print_descriptors_and_children(session):
    code = """
import os, subprocess, sys
print(1); os.write(1, b"2\\n"); subprocess.run(["echo", "3"]); print(4); os.system("echo 5"); sys.stdout.write("6\\n")
print("warned", file=sys.stderr)
"""
    outcome = session.run(code + "None")
    assert outcome.stdout.split() == ["1", "2", "3", "4", "5", "6"]
    assert outcome.stderr == "warned\n"


def test_text_without_newline_shows_while_the_command_runs(session):
    session.run("import time")
    number = session.submit("print('half', end=''); time.sleep(30)")
    session.until_printed("half")
    session.interrupt()
    assert session.finish(number).status == "interrupted"


def test_c_output_arrives_by_the_end_of_the_run(session):
    assert session.run("import ctypes; _n = ctypes.CDLL(None).printf(b'from C'); del _n").stdout == "from C"


def test_an_error_shows_the_users_lines_and_none_of_ours(session):
    outcome = session.run("def f(x):\n    return 1 / x\n\nprint('before'); f(0)")
    assert outcome.status == "error"
    [error] = outcome.of("error")
    assert (error["name"], error["value"]) == ("ZeroDivisionError", "division by zero")
    assert "return 1 / x" in error["text"]
    assert "python_worker" not in error["text"]
    assert "\x1b" not in error["text"]
    assert outcome.stdout == "before\n"
    session.run("class Bad:\n    def __repr__(self): raise ValueError('bad')")
    assert "python_worker" not in session.run("Bad()").error
    chained = session.run("try:\n    f(0)\nexcept Exception as e:\n    raise KeyError('k') from e")
    assert "ZeroDivisionError" in chained.error
    assert "KeyError" in chained.error


def test_tracebacks_are_coloured_only_on_demand(ipython):
    assert "\x1b[" in ipython.run("1/0", color=True).error
    assert "\x1b[" not in ipython.run("1/0", color=False).error


def test_a_syntax_error_runs_nothing(session):
    outcome = session.run("print('no')\nx ==== 1")
    assert outcome.stdout == ""
    assert outcome.of("error")[0]["name"] == "SyntaxError"
    assert "x ==== 1" in outcome.error
    assert session.run("'\\ud800'").status == "ok"
    assert session.run("a\0b").status == "error"


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("import sys; sys.exit()", "ok", 0),
        ("import sys; sys.exit(0)", "ok", 0),
        ("import sys; sys.exit(3)", "error", 3),
        ("import sys; sys.exit('no good')", "error", 1),
        ("raise SystemExit(True)", "error", 1),
        ("exit()", "ok", 0),
        ("quit(4)", "error", 4),
    ],
)
def test_exits_give_a_code_and_leave_the_session(session, code, status, exit_code):
    outcome = session.run(code)
    assert (outcome.status, outcome.done["exit"]) == (status, exit_code)
    assert [e["name"] for e in outcome.of("error")] == (["SystemExit"] if exit_code else [])
    assert "Traceback" not in outcome.error
    assert "To exit" not in outcome.stderr
    assert session.run("1").text == "1"


def test_code_lives_in_a_real_main_module(session):
    code = """
import pickle, dataclasses, sys, typing
@dataclasses.dataclass
class P:
    x: int
assert pickle.loads(pickle.dumps(P(1))) == P(1)
assert sys.modules["__main__"].P is P and __name__ == "__main__" and sys.argv == [""]
assert sys.path[-1] == "" and not any("_workers" in p for p in sys.path)
"""
    outcome = session.run(code)
    assert outcome.status == "ok", outcome.error


def test_the_working_directory_shadows_nothing(server):
    (Path(server.folder) / "json.py").write_text("raise ImportError('shadowed')")
    (Path(server.folder) / "mine.py").write_text("value = 7")
    server.spawn(runner="plain")
    assert server.run("import json, mine; mine.value").text == "7"


def test_top_level_await_works_and_keeps_its_loop(session):
    assert session.run("import asyncio\nawait asyncio.sleep(0, 5)").text == "5"
    assert (
        session.run("loop = asyncio.get_running_loop() if False else None\nasync def f(): return 6").status
        == "ok"
    )
    assert session.run("x = await f()\nx").text == "6"
    assert session.run("asyncio.run(f())").text == "6"


def test_futures_hold_for_later_commands(session):
    session.run("from __future__ import annotations")
    assert session.run("def g(a: no_such_name): pass\ng.__annotations__").text == "{'a': 'no_such_name'}"


def test_a_background_thread_prints_after_its_command(session):
    session.run("import threading; go = threading.Event()")
    session.run("t = threading.Thread(target=lambda: (go.wait(), print('late'))); t.start()")
    early = session.run("go.set(); None").stdout
    if not early:
        session.until_printed("late")


def test_a_thread_cannot_ask(session):
    code = """
import threading
said = []
def f():
    try: input("? ")
    except EOFError as e: said.append("EOFError")
t = threading.Thread(target=f); t.start(); t.join(); said
"""
    assert session.run(code).text == "['EOFError']"


def test_asks_reach_the_client_and_come_back(session):
    number = session.submit("print('hi'); name = input('name? '); name.upper()")
    ask = session.answer("ada")
    assert (ask["prompt"], ask["hidden"], ask["number"]) == ("name? ", False, number)
    assert session.output["out"] == b"hi\n"
    assert session.finish().text == "'ADA'"
    session.submit("import getpass; getpass.getpass()")
    assert session.answer("s3cret")["hidden"] is True
    assert session.finish().text == "'s3cret'"
    session.submit("import sys; [sys.stdin.readline(), next(iter(sys.stdin))]")
    session.answer("one")
    session.answer("two")
    assert session.finish().text == "['one\\n', 'two\\n']"
    session.submit("input()")
    session.answer(None)
    assert session.finish().of("error")[0]["name"] == "EOFError"
    assert session.run("input()", detached=True).of("error")[0]["name"] == "EOFError"


def test_the_debugger_asks(session):
    session.submit("def f():\n    secret = 41\n    breakpoint()\n    return secret\nf()")
    assert "Pdb" in session.answer("p secret + 1")["prompt"] or True
    session.answer("c")
    outcome = session.finish()
    assert "42" in outcome.stdout
    assert outcome.text == "41"
    assert session.run("1").text == "1"


def test_a_child_process_reads_what_is_typed(session):
    number = session.submit("import subprocess; subprocess.run(['head', '-n1'], check=True).returncode")
    os.write(session.fifos["in"], b"typed\n")
    outcome = session.finish(number)
    assert (outcome.stdout, outcome.text) == ("typed\n", "0")


def test_any_text_comes_through(session):
    text = "grüße 👋 日本 \U0001f9d1‍\U0001f680"
    outcome = session.run(f"print({text!r}); {text!r}")
    assert outcome.stdout == text + "\n"
    assert outcome.text == repr(text)
    assert session.run("print('\\udcff')").stdout == "\\udcff\n"
    long = session.run("print('é' * 300_000)")
    assert long.stdout == "é" * 300_000 + "\n"


def test_code_split_at_any_byte_is_one_command(plain):
    assert plain.control is not None
    plain.number = 1
    head = json.dumps(
        {"type": "run", "number": 1, "code": "'é' * 2", "mode": "prompt"}, ensure_ascii=False
    ).encode()
    frame = LENGTHS.pack(len(head), 0) + head
    for i in range(len(frame)):
        plain.control.socket.sendall(frame[i : i + 1])
    assert plain.finish().text == "'éé'"


def test_a_very_long_value_is_cut_with_a_notice(session):
    session.run("class Long:\n    def __repr__(self): return 'x' * 10_000_100")
    outcome = session.run("Long()")
    assert len(outcome.text) == 10_000_000
    assert outcome.of("notice")[0]["about"] == "cut"


# --- scripts -----------------------------------------------------------------------------------

SCRIPT = """'''what it is for'''
import sys
x = 20
x + 1

def f():
    return undefined_name
print("printed")
f()
x + 2
"""


def test_a_script_shows_each_value_and_stops_at_the_first_error(session):
    outcome = session.run(SCRIPT, mode="script", filename="job.py")
    assert outcome.texts == ["21"]
    assert outcome.stdout == "printed\n"
    assert outcome.status == "error"
    assert "job.py" in outcome.error
    assert "undefined_name" in outcome.error
    [error] = outcome.of("error")
    assert error["name"] == "NameError"
    if session.hellos["side"]["runner"] == "plain":
        assert 'File "job.py", line 9, in <module>' in error["text"]


def test_a_script_that_keeps_going_reports_the_first_error(session):
    outcome = session.run(SCRIPT + "1/0\nx + 3", mode="script", keep_going=True)
    assert outcome.texts == ["21", "22", "23"]
    assert [e["name"] for e in outcome.of("error")] == ["NameError", "ZeroDivisionError"]
    assert outcome.status == "error"


def test_a_script_that_exits_stops_with_its_code(session):
    outcome = session.run("1\nimport sys\nsys.exit(7)\n2", mode="script", keep_going=True)
    assert (outcome.texts, outcome.status, outcome.done["exit"]) == (["1"], "error", 7)


def test_a_script_with_a_syntax_error_runs_nothing(session):
    for code in ("print('no')\n1 +* 2", "print('no')\nreturn 5"):
        outcome = session.run(code, mode="script", filename="bad.py")
        assert (outcome.status, outcome.stdout) == ("error", "")
        assert "SyntaxError" in outcome.error


def test_a_timed_script_echoes_and_times_each_statement(session):
    outcome = session.run("x = 1\n@staticmethod\ndef f():\n    pass\nx\n", mode="script", timer=True)
    lines = outcome.stdout.splitlines()
    assert lines[0] == "## x = 1"
    assert lines[1].split() == ["user", "system", "elapsed"]
    assert len(lines[2].split()) == 3
    assert lines[3:6] == ["## @staticmethod", "## def f():", "##     pass"]
    assert outcome.texts == ["1"]


# --- interrupts --------------------------------------------------------------------------------

# What stands first is done before it is said that the run has begun: an interrupt is meant for what stands last.
BLOCKERS = {
    "sleep": ("import time", "time.sleep(60)"),
    "loop": ("pass", "while True: pass"),
    "lock": ("import threading; l = threading.Lock(); l.acquire()", "l.acquire()"),
    "socket": ("import socket; a, b = socket.socketpair()", "a.recv(1)"),
    "queue": ("import queue", "queue.Queue().get()"),
    "thread": (
        "import threading, time; t = threading.Thread(target=time.sleep, args=(60,)); t.start()",
        "t.join()",
    ),
    "await": ("import asyncio", "await asyncio.sleep(60)"),
    "asyncio.run": ("import asyncio", "asyncio.run(asyncio.sleep(60))"),
    "subprocess": ("import subprocess", "subprocess.run(['sleep', '60'])"),
    # Nobody can signal again while C code holds the interpreter. So the one signal waits until that sleeps.
    "C sleep": (
        "import ctypes, signal; c = ctypes.PyDLL(None); nothing = (ctypes.c_ulong * 16)()\n"
        "mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])",
        "try: c.ppoll(None, 0, (ctypes.c_long * 2)(60), nothing)\n"
        "finally: signal.pthread_sigmask(signal.SIG_SETMASK, mask)",
    ),
    "re": ("import re", "re.match('(a+)+$', 'a' * 40 + 'b')"),
    "print": ("pass", "while True: print('x' * 1000)"),
    "print to stderr": ("import sys", "while True: print('x', file=sys.stderr)"),
    "input": ("pass", "input('? ')"),
}


@pytest.mark.parametrize("what", BLOCKERS)
def test_an_interrupt_ends(session, what):
    session.run("pass")
    before, blocker = BLOCKERS[what]
    number = session.submit(f"import os\n{before}\nos.write(2, b'begun')\n{blocker}")
    session.until_printed("begun", "err")
    if what == "input":
        session.until(lambda: session.find("ask"))
    session.interrupt()
    outcome = session.finish(number)
    assert outcome.status == "interrupted"
    assert outcome.of("error")[0]["name"] == "KeyboardInterrupt"
    assert "python_worker" not in outcome.error
    assert session.run("1 + 1").text == "2"


def test_shell_commands_are_interrupted(ipython):
    number = ipython.submit("!echo begun; sleep 60")
    ipython.until_printed("begun")
    ipython.interrupt()
    assert ipython.finish(number).status == "interrupted"


def test_an_interrupt_for_another_run_is_ignored(session):
    session.run("1")
    number = session.submit("import time; print('begun'); time.sleep(0.3); 'whole'")
    session.until_printed("begun")
    session.interrupt(number - 1)
    outcome = session.finish(number)
    assert (outcome.status, outcome.text) == ("ok", "'whole'")


def test_a_run_interrupted_before_it_begins_does_not_begin(session):
    session.run("pass")
    session.interrupt(session.number + 1)
    outcome = session.run("print('no')")
    assert (outcome.status, outcome.stdout) == ("interrupted", "")
    assert session.run("2").text == "2"


def test_merged_signals_hit_one_run_only(session):
    session.run(
        "import time\ndef doze():\n    try: print('begun'); time.sleep(60)\n    except KeyboardInterrupt: return 'hit'"
    )
    # A signal too many is forgiven for a second of the worker's clock: here that is a long one.
    session.run("import sys; sys.modules['_remoter_worker'].clock = lambda: time.monotonic() / 60")
    number = session.submit("doze()")
    session.until_printed("begun")
    os.write(session.fifos["interrupt"], struct.pack("!QQ", number, number))
    session.signal()
    assert session.finish(number).text == "'hit'"
    number = session.submit("print('begun'); time.sleep(0.3); 'whole'")
    session.until_printed("begun")
    session.signal()
    assert session.finish(number).text == "'whole'"


def test_an_interrupt_whose_signal_woke_nobody_is_made_good(session):
    number = session.submit("import time; print('begun'); time.sleep(60)")
    session.until_printed("begun")
    session.announce_interrupt(number)
    assert session.finish(number).status == "interrupted"
    assert session.run("time.sleep(0.3); 1").text == "1"


def test_code_that_catches_the_interrupt_goes_on(session):
    number = session.submit(
        "import time\ntry:\n    print('begun'); time.sleep(60)\nexcept KeyboardInterrupt:\n    x = 9\nx"
    )
    session.until_printed("begun")
    session.interrupt()
    outcome = session.finish(number)
    assert (outcome.status, outcome.text) == ("ok", "9")


def test_a_replaced_signal_handler_is_put_right_for_the_next_run(session):
    session.run("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); None")
    number = session.submit("import time; print('begun'); time.sleep(60)")
    session.until_printed("begun")
    session.interrupt()
    assert session.finish(number).status == "interrupted"


def test_interrupts_never_tear_a_frame(ipython):
    code = "from IPython.display import display\nwhile True: display({'text/plain': 'x' * 5000}, raw=True)"
    for _ in range(5):
        number = ipython.submit(code)
        ipython.until(lambda: ipython.find("display"))
        ipython.interrupt()
        assert ipython.finish(number).status == "interrupted"
    assert ipython.run("3").text == "3"


# --- breakage ----------------------------------------------------------------------------------


def test_a_forked_child_that_falls_through_ends(session):
    outcome = session.run(
        "import os; pid = os.fork(); print('both', flush=True); pid and os.waitpid(pid, 0)[1] or None"
    )
    assert outcome.stdout == "both\nboth\n"
    assert len(outcome.of("done")) == 1
    outcome = session.run("if os.fork() == 0: raise SystemExit(5)\nos.waitstatus_to_exitcode(os.wait()[1])")
    assert outcome.text == "5"


def test_multiprocessing_forks(session):
    code = "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: r = p.map(abs, [-1, 2])\nr"
    assert session.run(code).text == "[1, 2]"


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.close(1)",
        "import os; os.close(0); os.close(1); os.close(2)",
        "import sys; sys.stdout.close()",
        "import sys, io; sys.stdout = io.StringIO(); sys.stdout.close()",
        "import os; n = os.open('/dev/null', os.O_WRONLY); os.dup2(n, 1); os.dup2(n, 2)",
        "import sys; sys.stdout.detach(); None",
        "import sys; sys.stdout = None",
    ],
)
def test_closed_output_is_back_in_the_next_run(session, code):
    session.run(code)
    outcome = session.run("import sys; print('here'); print('there', file=sys.stderr)")
    assert (outcome.stdout, outcome.stderr, outcome.status) == ("here\n", "there\n", "ok")


def test_closed_connections_are_made_again(plain):
    plain.submit("import os; os.closerange(3, 1000)")
    old = [plain.control, plain.side]
    for line in old:
        while not line.ended:
            line.read()
        line.socket.close()
    plain.control = plain.side = None
    plain.meet()
    plain.finish()
    assert plain.run("print('still'); 5").text == "5"


def test_output_redirected_on_purpose_stays(session):
    session.run("import io, sys; kept = sys.stdout; sys.stdout = io.StringIO(); print('away')")
    assert session.run("print('too'); sys.stdout.getvalue()").text == "'away\\ntoo\\n'"
    session.run("sys.stdout = kept")
    assert session.run("print('back')").stdout == "back\n"


def test_a_killed_server_loses_and_doubles_nothing(session):
    session.run("import time, sys, os")
    number = session.submit(
        "print('begun')\nwhile not os.path.exists('go'): time.sleep(0.01)\nfor i in range(300): print(i)\n'value'"
    )
    session.until_printed("begun")
    session.vanish()
    Path(session.folder, "go").touch()
    session.until_printed("299\n")
    session.listen()
    session.meet()
    assert session.hellos["control"]["last"] == number
    session.control.send(type="run", number=number, code="print('twice')", mode="prompt")
    outcome = session.finish(number)
    assert outcome.stdout.split()[1:] == [str(i) for i in range(300)]
    assert (outcome.text, outcome.status) == ("'value'", "ok")
    assert session.run("1 + 1").stdout == ""


def test_frames_that_were_not_journaled_are_sent_again(plain):
    plain.run("1")
    unacknowledged, plain.received = plain.received, plain.received - 1
    plain.vanish()
    plain.listen()
    plain.meet()
    done = plain.until(lambda: plain.find("done"))
    assert (done["number"], done["frame"]) == (1, unacknowledged)
    assert plain.hellos["control"]["sent"] == unacknowledged


def test_an_ask_survives_the_server(session):
    number = session.submit("input('? ')")
    ask = session.until(lambda: session.find("ask"))
    session.vanish()
    session.listen()
    session.meet()
    assert session.hellos["side"]["busy"] == number
    session.control.send(type="answer", ask=ask["ask"], text="kept")
    assert session.finish(number).text == "'kept'"


def test_stop_runs_exit_handlers(session):
    session.run("import atexit; atexit.register(lambda: open('left', 'w').write('yes')); None")
    assert session.stop() == 0
    assert Path(session.folder, "left").read_text() == "yes"


def test_sigterm_ends_a_busy_worker_cleanly(session):
    code = (
        "import atexit, time; atexit.register(print, 'bye')\ntry:\n    print('begun')\n"
        "    while True: time.sleep(0.05)  # a signal that comes just before a sleep does not end it\n"
        "finally: print('tidied')"
    )
    session.submit(code)
    session.until_printed("begun")
    os.kill(session.pid, signal.SIGTERM)
    assert session.process.wait(60) == 0
    session.pump(0)
    assert session.output["out"].decode().split() == ["begun", "tidied", "bye"]


def test_a_worker_whose_session_is_gone_ends(plain):
    plain.vanish()
    shutil.rmtree(plain.folder)
    assert plain.process.wait(60) == 0
    os.mkdir(plain.folder)


# --- questions ---------------------------------------------------------------------------------


def test_questions_are_answered_while_a_command_runs(session):
    session.run("import json, math\nabcdef = [1, 2]\ndef greet(name, n=1):\n    'Greets.'\n    return name")
    session.submit("while True: pass")
    found = session.ask_side("complete", "x = abcd")
    assert "abcdef" in found["matches"]
    assert (found["start"], found["end"]) == (4, 8)
    found = session.ask_side("complete", "é = math.floo")
    assert any(match.endswith("floor") for match in found["matches"])
    assert session.ask_side("info")["pid"] == session.pid
    text = session.ask_side("inspect", "greet")["text"]
    assert "greet(name, n=1)" in text
    assert "Greets." in text
    assert "Greets." in session.ask_side("inspect", "x = greet(abcdef, ", 18)["text"]
    assert session.ask_side("inspect", "nothing.here") == {"found": False, "text": ""}
    listed = {v["name"]: v for v in session.ask_side("variables")["variables"]}
    assert set(listed) == {"abcdef", "greet"}
    assert listed["abcdef"]["text"] == "[1, 2]"
    assert listed["abcdef"]["shape"] == [2]
    session.interrupt()
    assert session.finish().status == "interrupted"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("1 + 1", "complete"),
        ("", "complete"),
        ("f(", "incomplete"),
        ("for i in x:", "incomplete"),
        ("for i in x:\n    pass", "incomplete"),
        ("for i in x:\n    pass\n", "complete"),
        ("'''abc", "incomplete"),
        ("1 +* 2", "invalid"),
        ("x = await f()", "complete"),
        ("a = 1\nb = 2", "complete"),
    ],
)
def test_completeness(session, code, status):
    assert session.ask_side("is_complete", code)["status"] == status


def test_an_open_block_is_indented(session):
    assert session.ask_side("is_complete", "def f():")["indent"] == "    "
    assert session.ask_side("is_complete", "def f():\n    if x:")["indent"] == "        "


def test_hostile_variables_do_no_harm(session):
    session.run(
        "class Bad:\n    def __repr__(self): raise ValueError\n    def __getattr__(self, name): raise ValueError\n"
        "    def __len__(self): 1/0\n    def __sizeof__(self): 1/0\n    def __eq__(self, other): 1/0\n"
        "b = Bad(); c = [b]; d = {1: b}; n = 10 ** 5000"
    )
    listed = {v["name"]: v for v in session.ask_side("variables")["variables"]}
    assert listed["b"]["text"] == "<Bad>"
    assert listed["c"]["text"] == "[<Bad>]"
    assert "bits" in listed["n"]["text"]


def test_arrays_tell_their_shape(ipython):
    ipython.run("import numpy as np; a = np.zeros((3, 4)); s = np.float64(2)")
    listed = {v["name"]: v for v in ipython.ask_side("variables")["variables"]}
    assert (listed["a"]["shape"], listed["a"]["size"], listed["a"]["type"]) == ([3, 4], 96, "ndarray")


# --- IPython -----------------------------------------------------------------------------------


def test_ipython_has_magics_history_and_shell(ipython):
    assert ipython.run("%time x = 3").status == "ok"
    assert ipython.run("x + 1").text == "4"
    assert ipython.run("Out").status == "ok"
    assert "x + 1" in ipython.run("In").text
    assert ipython.run("_i").text == "'In'"
    assert ipython.run("!echo from shell").stdout == "from shell\n"
    assert ipython.run("y = !echo caught\ny").text == "['caught']"
    assert ipython.run("5;").texts == []
    assert "sum(" in ipython.run("sum?").of("display")[0]["text"].replace("Signature: ", "")
    assert ipython.run("%nonsense").status == "error"
    assert ipython.run("%%bash\necho cell").stdout == "cell\n"
    assert not list(Path(ipython.folder).rglob("*.sqlite"))


def test_ipython_events_fire(ipython):
    ipython.run(
        "said = []\nip = get_ipython()\nip.events.register('pre_run_cell', lambda i: said.append(i.raw_cell))"
    )
    ipython.run("ip.events.register('post_run_cell', lambda r: said.append(r.success)); None")
    assert "said.append(r.success)" in ipython.run("said").text
    assert "False" not in ipython.run("1/0").error
    assert "False" in ipython.run("said").text


def test_ipython_scripts_may_hold_magics(ipython):
    outcome = ipython.run("\n\nx = 2\n!echo $x\n%time 3\nx;\nx\nboom", mode="script", filename="m.ipy")
    assert outcome.stdout.startswith("2\n")
    assert outcome.texts == ["3", "2"]
    assert "line 8" in outcome.error or "m.ipy:8" in outcome.error


def test_rich_values_have_other_forms(session):
    session.run(
        "class T:\n    def _repr_html_(self): return '<b>'\n    def _repr_png_(self): return b'\\x89PNG'"
    )
    [result] = session.run("T()").of("result")
    assert result["data"] == {"text/html": "<b>", "image/png": b"\x89PNG"}


def test_figures_are_shown_at_the_end_of_the_command(session):
    code = "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2]); print('drawn')"
    outcome = session.run(code)
    [display] = outcome.of("display")
    assert display["data"]["image/png"].startswith(b"\x89PNG")
    assert outcome.stderr == ""
    assert session.run("_ = plt.plot([1, 2])").of("display")
    assert not session.run("1").of("display")


def test_the_width_is_the_submitters(ipython):
    code = "import shutil; shutil.get_terminal_size().columns, len(repr(list(range(100)))) > 0"
    assert ipython.run(code, width=123).text == "(123, True)"
    narrow = ipython.run("list(range(30))", width=40).text
    wide = ipython.run("list(range(30))", width=200).text
    assert len(narrow.splitlines()) > len(wide.splitlines())
    assert "123" not in ipython.run("shutil.get_terminal_size().columns").text


def test_old_and_new_pythons_without_ipython_serve(server):
    tried = []
    for version in ("3.8", "3.13"):
        python = find_python(version)
        if python is None:
            continue
        other = Server()
        try:
            other.spawn(python, "plain")
            assert other.hellos["side"]["version"].startswith(version)
            assert other.run("1 + 1").text == "2"
            assert other.run("import asyncio; await asyncio.sleep(0, 3)").text == "3"
            assert "1/0" in other.run("1/0").error
            assert other.run(SCRIPT, mode="script").status == "error"
            number = other.submit("import time; print('begun'); time.sleep(60)")
            other.until_printed("begun")
            other.interrupt()
            assert other.finish(number).status == "interrupted"
            assert other.ask_side("complete", "prin")["matches"] == ["print"]
            assert other.ask_side("is_complete", "def f():")["status"] == "incomplete"
            other.submit("input('? ')")
            other.answer("a")
            assert other.finish().text == "'a'"
            assert other.stop() == 0
            tried.append(version)
        finally:
            other.close()
    if not tried:
        pytest.skip("python 3.8 and 3.13 not found")


# --- a living process --------------------------------------------------------------------------

STATE = """
def state():
    names = "stdin stdout stderr displayhook excepthook ps1 ps2".split()
    kept = {name: getattr(sys, name, None) for name in names}
    kept.update({name: vars(builtins).get(name) for name in ("input", "exit", "display", "get_ipython")})
    kept.update({name: globals().get(name) for name in ("In", "Out", "open", "exit", "get_ipython", "quit")})
    return {**kept, "SIGINT": signal.getsignal(2), "path": list(sys.path)}
"""
SERVE = "reason = w.serve_live({folder!r}, 'w1', {runner!r})"


class Host:
    """A program on a terminal whose process is lent to the server."""

    def __init__(self, server: Server, command: str, arguments: list[str], prompt: str) -> None:
        self.server = server
        environment = {
            **os.environ,
            "IPYTHONDIR": server.folder + "/ipython",
            "TERM": "xterm",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(WORKER.parent),
            "PYTHON_HISTORY": server.folder + "/history",
        }
        environment.pop("MPLBACKEND", None)
        self.child = pexpect.spawn(
            command,
            arguments,
            env=environment,
            encoding="utf-8",
            timeout=60,
            dimensions=(30, 200),
            cwd=server.folder,
        )
        self.child.expect_exact(prompt)
        self.count = 0

    def type(self, line: str) -> None:
        self.child.send(line + "\r")

    def see(self, text: str) -> None:
        self.child.expect_exact(text)

    def do(self, code: str, wait: bool = True) -> None:
        """Run code in the host. What is typed is short: an editing prompt redraws it for each key."""
        self.count += 1
        Path(self.server.folder, f"c{self.count}").write_text(f"{code}\nprint('did', {self.count})")
        self.type(f"exec(open('c{self.count}').read())")
        if wait:
            self.see(f"did {self.count}")

    def lend(self, runner: str) -> Server:
        self.do(f"import python_worker as w, sys, builtins, signal\nnear = 40\n{STATE}\nbefore = state()")
        self.do(
            SERVE.format(folder=self.server.folder, runner=runner) + "; print('gave', 'back', reason)",
            wait=False,
        )
        self.server.meet()
        return self.server

    def check_it_is_back(self) -> None:
        self.do(
            "print('remote', far, 'changed', [k for k, v in state().items() if v != before[k]])", wait=False
        )
        self.see("remote 41 changed []")
        self.do("1 / 0", wait=False)
        self.see("ZeroDivisionError")
        self.do("print('input', input('local? '))", wait=False)
        self.see("local? ")
        self.type("typed")
        self.see("input typed")

    def close(self) -> None:
        self.child.close(force=True)


@pytest.fixture
def lend(server):
    hosts = []

    def lend(kind: str) -> Host:
        version = kind.split()[-1]
        if kind.startswith("python"):
            python = find_python(version)
            if python is None:
                pytest.skip(f"python {version} not found")
            hosts.append(Host(server, python, ["-q"], ">>> "))
        else:
            arguments = ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"]
            hosts.append(Host(server, sys.executable, arguments, "In [1]:"))
        return hosts[-1]

    yield lend
    for host in hosts:
        host.close()


HOSTS = ["python 3.11", "python 3.13", "ipython"]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("kind", HOSTS)
def test_a_living_process_serves_and_comes_back(lend, kind, runner):
    if runner == "ipython" and kind == "python 3.13":
        pytest.skip("that python has no IPython")
    host = lend(kind)
    session = host.lend(runner)
    assert session.hellos["side"]["runner"] == runner
    assert session.run("far = near + 1; print('out'); far").text == "41"
    assert session.run("__name__").text == "'__main__'"
    assert session.run("1/0").status == "error"
    session.submit("input('? ')")
    session.answer("x")
    assert session.finish().text == "'x'"
    number = session.submit("import time; print('begun'); time.sleep(60)")
    session.until_printed("begun")
    session.interrupt()
    assert session.finish(number).status == "interrupted"
    session.run("time.sleep(1.1)")  # so long a signal more may have belonged to that interrupt
    # Python itself may miss a Ctrl-C that comes just before a sleep begins, until that ends.
    number = session.submit("print('begun')\nwhile True: time.sleep(0.05)")
    session.until_printed("begun")
    host.child.sendintr()
    assert session.finish(number).status == "interrupted"
    assert session.run("import asyncio; await asyncio.sleep(0, 8)").text == "8"
    session.control.send(type="stop")
    host.see("gave back stopped")
    host.check_it_is_back()


@pytest.mark.parametrize("kind", HOSTS)
def test_ctrl_c_while_idle_gives_the_process_back(lend, kind):
    host = lend(kind)
    session = host.lend("plain")
    assert session.run("far = 41; far").text == "41"
    host.child.sendintr()
    host.see("gave back stopped locally")
    assert session.until(lambda: session.find("end"))["reason"] == "stopped locally"
    host.check_it_is_back()


def test_a_script_may_serve_twice(server):
    code = f"import sys\nimport python_worker as w\nfor _ in range(2): {SERVE.format(folder=server.folder, runner='auto')}\n"
    code += "sys.stdout.write('end %s' % far)"
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["IPYTHONDIR"] = server.folder + "/ipython"
    server.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    for turn in range(2):
        server.meet()
        assert server.run(f"far = {turn}; print('there'); far").stdout == "there\n"
        server.control.send(type="stop")
        server.until(lambda: server.control.ended)
        server.vanish()
        server.received = server.number = 0
        server.listen()
    assert server.process.communicate(timeout=60)[0] == b"end 1"


def test_a_notebook_cell_may_serve(server):
    from jupyter_client.manager import KernelManager

    # Not over TCP: its ports are only looked for beforehand, and anybody may have them by then.
    manager = KernelManager(transport="ipc", ip=server.folder + "/kernel")
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent), "IPYTHONDIR": server.folder + "/ipython"}
    manager.start_kernel(env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute("near = 40")
        client.execute(f"import python_worker as w; {SERVE.format(folder=server.folder, runner='auto')}")
        server.meet()
        assert server.run("far = near + 1; far").text == "41"
        assert server.run("import asyncio; await asyncio.sleep(0, 8)").text == "8"
        assert server.run("import matplotlib.pyplot as plt; plt.plot([1]);").of("display")
        server.control.send(type="stop")
        said = []
        client.execute_interactive(
            "import asyncio; await asyncio.sleep(0); print(reason, far, get_ipython().__class__.__name__)",
            output_hook=lambda m: said.append(m["content"].get("text", "")),
            timeout=60,
        )
        assert "stopped 41 ZMQInteractiveShell" in "".join(said)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
