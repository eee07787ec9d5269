"""Everyday bad luck: wrong addresses, ways that break, clients that die, and user code that breaks its own process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import remoter
from remoter._address import key_to_text

from .conftest import is_alive, wait_for
from .proxy import Proxy
from .test_keeper import quiet_port
from .test_recovery import COUNT, kill_server, memory, numbers

LOOPBACK = "127.0.0.1"


@pytest.fixture
def elsewhere(home, monkeypatch):
    """From now on this is another user's home, in which no session and no key is known."""

    def move():
        for kind in ["CONFIG", "STATE"]:
            monkeypatch.setenv(f"REMOTER_{kind}_DIR", str(home / f"elsewhere-{kind.lower()}"))

    return move


@contextlib.contextmanager
def ended(process):
    """Kills the process at the end, however that comes."""
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


# --- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "error", "says"),
    [
        ("http://localhost:55555", None, remoter.AddressError, "does not speak|protocol"),
        ("localhost:4000", 4001, remoter.AddressError, "given too"),
        ("localhost:4000:4001", None, remoter.AddressError, "4000:4001"),
        ("::1:4000", 4000, remoter.AddressError, r"\["),
        ("localhost:80", None, remoter.AddressError, "1024 and above"),
        ("localhost", 80, remoter.AddressError, "1024 and above"),
        ("localhost", 70000, remoter.AddressError, "not between"),
        ("localhost:70000", None, remoter.AddressError, "not between"),
        ("localhost", "many", remoter.AddressError, "many"),
        ("", None, remoter.ConnectError, "no session runs"),
        ("two words", None, remoter.AddressError, "two words"),
        ("no-such-machine.invalid", 55555, remoter.ConnectError, "no machine named"),
    ],
)
def test_an_address_that_leads_nowhere_is_a_clear_error(address, port, error, says):
    began = time.monotonic()
    with pytest.raises(error, match=says):
        remoter.connect(address, port, timeout=5)
    assert time.monotonic() - began < 10


def test_a_port_where_nobody_answers_is_told_in_time():
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())  # has the port, so that nobody else has it
        deaf.bind((LOOPBACK, 0))
        with pytest.raises(remoter.ConnectError, match="nothing listens"):
            remoter.connect(LOOPBACK, deaf.getsockname()[1])
        silent = stack.enter_context(socket.create_server((LOOPBACK, 0)))  # takes it and says nothing
        with pytest.raises(remoter.ConnectError, match="says nothing"):
            remoter.connect(LOOPBACK, silent.getsockname()[1], timeout=0.5)
        full = stack.enter_context(socket.socket())  # does not even take it
        full.bind((LOOPBACK, 0))
        full.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        with pytest.raises(remoter.ConnectError, match="no answer"):
            remoter.connect(LOOPBACK, full.getsockname()[1], timeout=0.5)


def test_a_server_on_a_port_that_cannot_be_had_is_a_named_error(serve):
    served = serve(runner="plain", name="first")
    with pytest.raises(remoter.RemoterError, match="is taken") as caught:
        serve(runner="plain", port=served.port)
    assert "`first`" in caught.value.cause
    with (
        socket.create_server((LOOPBACK, 0)) as other,
        pytest.raises(remoter.RemoterError, match="is taken") as caught,
    ):
        serve(runner="plain", port=other.getsockname()[1])
    assert "`first`" not in str(caught.value)
    with pytest.raises(remoter.RemoterError, match="cannot listen on"):
        serve(runner="plain", listen=["192.0.2.7"])
    for port in (80, 70000, -1):
        with pytest.raises(remoter.AddressError, match=str(port)):
            serve(runner="plain", port=port)
    with served.connect_tcp() as session:
        assert session.run("1").text == "1"


def test_ipv6_from_end_to_end(serve, elsewhere):
    if not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    served = serve(runner="plain", listen=["::1"])
    with remoter.connect(f"[::1]:{served.port}") as session:
        assert session.run("1").text == "1"
    elsewhere()
    with pytest.raises(remoter.ConnectError, match="nothing listens"):
        remoter.connect(LOOPBACK, served.port)
    with remoter.connect("[::1]", served.port, served.password) as session:
        assert session.run("6 * 7").text == "42"
    key = key_to_text(served.record["server_public"])
    with remoter.connect(f"remoter://[::1]:{served.port}/#{key}") as session:
        assert str(session._address).startswith("remoter://[::1]:")
        assert session.run("print('six')", quiet=True).stdout == "six\n"


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# --- every way to a session ------------------------------------------------------------------


class Process:
    """A program that passes bytes on and can be killed and started again."""

    def __init__(self, command, port):
        self.command, self.port = command, port
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for(
            lambda: self.process.poll() is not None or listens(self.port),
            what=f"{self.command[0]} listens",
        )
        assert self.process.poll() is None, self.process.stderr.read().decode()

    def cut(self):
        self.stop()
        self.start()

    def stop(self):
        with ended(self.process):
            pass


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 1):
        return True
    return False


def relay(port):
    here = quiet_port(LOOPBACK)
    words = ["relay", f"{LOOPBACK}:{port}", "--recvport", str(here)]
    return Process([sys.executable, "-m", "remoter", *words], here)


class Ways:
    """Ways to a session: `address`, and `cut`, which breaks the way once."""

    def __init__(self, served, request, stack):
        self.served, self.request, self.stack = served, request, stack

    def kill_server(self):
        with self.served.connect() as watcher:
            kill_server(self.served, watcher)

    def socket(self):
        return self.served.name, self.kill_server

    def tcp(self):
        return f"{LOOPBACK}:{self.served.port}", self.kill_server

    def relay(self):
        only = relay(self.served.port)
        self.stack.callback(only.stop)
        return f"{LOOPBACK}:{only.port}", only.cut

    def chain(self):
        inner = relay(self.served.port)
        self.stack.callback(inner.stop)
        outer = relay(inner.port)
        self.stack.callback(outer.stop)
        return f"{LOOPBACK}:{outer.port}", inner.cut

    def tunnel(self):
        proxy = Proxy((LOOPBACK, self.served.port))
        self.stack.callback(proxy.close)
        return f"{LOOPBACK}:{proxy.port}", proxy.cut

    def ssh(self):
        """The user's own `ssh -L`."""
        ssh_host = self.request.getfixturevalue("ssh_host")
        here = quiet_port(LOOPBACK)
        words = f"-N -T -o ExitOnForwardFailure=yes -L {LOOPBACK}:{here}:{LOOPBACK}:{self.served.port}"
        process = Process(["ssh", *words.split(), ssh_host().name], here)
        self.stack.callback(process.stop)
        return f"localhost:{here}", process.cut


@pytest.mark.parametrize("way", ["socket", "tcp", "relay", "chain", "tunnel", "ssh"])
def test_the_same_works_on_every_way_to_a_session(serve, elsewhere, request, way):
    served = serve(runner="plain")
    with contextlib.ExitStack() as stack:
        address, cut = getattr(Ways(served, request, stack), way)()
        password = None
        if way not in ("socket", "tcp"):
            elsewhere()
            password = served.password
        with remoter.connect(address, None, password, ask=lambda prompt, hidden: "Ana") as session:
            assert session.run("6 * 7").text == "42"
            assert session.run("input('who? ')").text == "'Ana'"
            assert len(session.run("print('x' * 3_000_000)", quiet=True).stdout) == 3_000_001
            run = session.submit(COUNT.format(n=1000, pause=0.05))
            assert next(event.text for event in run.events() if event.kind == "stdout").startswith("0\n")
            assert run.status == "running"
            run.interrupt()
            assert run.wait(15).status == "interrupted"
            run = session.submit(COUNT.format(n=60, pause=0.02))
            next(event for event in run.events() if event.kind == "stdout")
            cut()
            typed = session.submit("'typed when the way had been cut'")
            assert numbers(run.wait(20).stdout) == list(range(60))
            assert typed.wait(15).text == "'typed when the way had been cut'"
            wait_for(lambda: session.info.link == "ok", what="the link is well")


def test_two_strangers_with_keys_of_their_own_work_side_by_side(serve, elsewhere, home, monkeypatch):
    served = serve(runner="plain")
    with served.connect_tcp() as owner:
        elsewhere()
        with remoter.connect(LOOPBACK, served.port, served.password) as ana:
            monkeypatch.setenv("REMOTER_CONFIG_DIR", str(home / "third"))
            with remoter.connect(LOOPBACK, served.port, served.password) as ben:
                for n in range(5):
                    for client in (owner, ana, ben):
                        assert client.run(f"x = {n}; x").text == str(n)
                assert len((served.directory / "clients").read_text().splitlines()) == 2


# --- clients that die ------------------------------------------------------------------------

DYING = """
import os, signal, sys
import remoter
from remoter import _connection, _link, _login

host, port, password = sys.argv[1:]
left = 0

def step(owner, name):
    "Count each call of that function as a step; at the last one the process is killed."
    function = getattr(owner, name)
    def counted(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments, **options)
    setattr(owner, name, counted)

for owner, name in [
    (_login, "_connect"), (_login._Caller, "_send"), (_login._Caller, "_frame"),
    (_connection.Connection, "__init__"), (_connection.Connection, "_observe"), (_connection.Connection, "send"),
    (_link.Link, "_attached"), (_link.Link, "_events"),
]:
    step(owner, name)

def die_at(steps, password):
    global left
    child = os.fork()
    if child == 0:
        left = steps
        with remoter.connect(host, int(port), password, timeout=30) as session:
            session.run("1 + 1")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
    return status

for steps in range(8):  # the last of these dies when the password has just admitted it
    die_at(steps, password)
steps = 0
while die_at(steps, None):
    steps += 1
"""


def test_a_client_killed_at_any_step_of_its_login_harms_nobody(serve):
    served = serve(runner="plain")
    dying = [sys.executable, "-c", DYING, LOOPBACK, str(served.port), served.password]
    with served.connect() as friend:
        done = subprocess.run(dying, capture_output=True, text=True, check=True, timeout=50)
        *killed, survived = done.stdout.split()
        assert (set(killed), survived) == ({"-9"}, "0")
        # It is made, attach is sent, attached, the code is sent, events: how many more depends on what comes together.
        assert len(killed) >= 8 + 5
        assert friend.run("6 * 7").text == "42"
        wait_for(lambda: len(friend.info.clients) == 1, 30, "the killed ones are known to be gone")
        assert friend.info.server_pid == served.server_pid


ASKED = """
import sys, remoter
session = remoter.connect(sys.argv[1], ask=lambda prompt, hidden: print(prompt, flush=True) or sys.stdin.readline())
session.run("import getpass; answer = getpass.getpass('secret? ')")
"""


def test_what_a_killed_client_was_asked_can_be_answered_by_another(serve):
    served = serve(runner="plain")
    asking = subprocess.Popen(
        [sys.executable, "-c", ASKED, served.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with ended(asking), served.connect() as friend:
        assert asking.stdout.readline() == "secret? \n"
        assert not friend._pending_asks
        asking.kill()
        ask = wait_for(lambda: friend._pending_asks, 30, "the question goes to the others")[0]
        friend._answer(ask.run, ask.data["id"], "theirs")
        assert friend.run("answer").text == "'theirs'"


STOPPED_FOR = 20.0
"""Seconds: longer than a client waits before it makes a new connection, and a server before it calls a client away."""

COUNTING = """
import sys, remoter
with remoter.connect(sys.argv[1]) as session:
    run = session.submit(sys.argv[2])
    for event in run.events():
        if event.kind == "stdout":
            print("on", flush=True)
            break
    print(run.wait().stdout.split() == [str(i) for i in range(300)], session.run("'after'").text, flush=True)
"""


@pytest.mark.timeout(120)
def test_who_is_stopped_for_twenty_seconds_goes_on_where_he_was(serve):
    sessions = {who: serve(runner="plain") for who in ("server", "worker", "client")}
    with contextlib.ExitStack() as stack:
        clients = {}
        for who, served in sessions.items():
            code = COUNT.format(n=300, pause=0.01)
            command = [sys.executable, "-c", COUNTING, served.name, code]
            clients[who] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.enter_context(ended(clients[who]))
        for client in clients.values():
            assert client.stdout.readline() == "on\n"
        stopped = [sessions["server"].server_pid, sessions["worker"].worker_pid, clients["client"].pid]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        with sessions["client"].connect() as friend:
            time.sleep(STOPPED_FOR)  # how long they are stopped
            assert friend.run("i").text == "299"
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        for who, client in clients.items():
            assert client.stdout.readline() == "True 'after'\n", who
            assert client.wait(15) == 0
        for served in sessions.values():
            assert all(map(is_alive, served.processes))


# --- user code that breaks its own process ---------------------------------------------------

HARMLESS = {
    "print to nowhere": "import sys; sys.stdout = None; print('x')",
    "a stream that raises": "class S:\n    def write(self, x): 1/0\n    def flush(self): 1/0\nsys.stdout = S(); print(1)",
    "a full disk": "sys.stdout = open('/dev/full', 'w', buffering=1); print('x')",
    "no stream": "del sys.stdout, sys.stderr, sys.stdin",
    "everything closed": "os.closerange(0, 3)",
    "stdout to stderr": "os.dup2(2, 1)",
    "descriptors elsewhere": "n = os.open('/dev/null', os.O_RDWR); [os.dup2(n, i) for i in (0, 1, 2)]",
    "a redirection left open": "import io, contextlib; c = contextlib.redirect_stdout(io.StringIO()); c.__enter__()",
    "other hooks": "kept = sys.displayhook; sys.displayhook = sys.excepthook = sys.unraisablehook = None",
    "a hook that raises": "sys.displayhook = lambda value: 1/0",
    "no print": "import builtins; builtins.print = None",
    "a trace function": "sys.settrace(lambda *a: 1/0)",
    "a profile function": "sys.setprofile(lambda *a: None)",
    "no path": "sys.path.clear()",
    "no environment": "os.environ.clear()",
    "a directory that is gone": "import tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "its own name": "__name__ = 5; __doc__ = open",
    "no clock": "import time; time.time = time.monotonic = time.perf_counter = lambda: 0.0",
    "no sleep": "import time; time.sleep = lambda seconds: 1/0",
    "shallow recursion": "sys.setrecursionlimit(60)",
    "no garbage collection": "import gc; gc.disable()",
    "a handler of its own": "import signal; signal.signal(signal.SIGINT, lambda *a: 1/0)",
    "no interrupts": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})",
    "a fork that falls through": "if os.fork() == 0: print('child')",
    "a fork that exits": "if os.fork() == 0: sys.exit(7)",
    "a fork that raises": "if os.fork() == 0: 1/0",
    "a fork that asks": "if os.fork() == 0: input('child? ')",
    "nobody to wait for": "try: os.wait()\nexcept ChildProcessError: pass",
    "a thread that raises": "import threading; t = threading.Thread(target=lambda: 1/0); t.start(); t.join()",
    "a thread that exits": "import threading; t = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()",
    "a finalizer that exits": "class F:\n    def __del__(self): sys.exit(4)\nF(); None",
    "exit in a function": "def f(): exit()\nf()",
    "exit in a loop in a function": "def f():\n    for i in range(3):\n        quit(i)\nf()",
    "exit in exec": "exec('import sys; sys.exit(3)')",
    "exit in a comprehension": "[sys.exit(i) for i in range(3)]",
    "exit in a class": "class C:\n    raise SystemExit(2)",
    "exit on the way out": "try: 1/0\nfinally: exit(3)",
    "exit with an object": "sys.exit(object)",
    "exit without words": "class E:\n    def __str__(self): 1/0\nsys.exit(E())",
    "an interrupt of its own": "raise KeyboardInterrupt",
    "the end of generators": "raise GeneratorExit",
    "a base exception": "raise BaseException('base')",
    "no exception at all": "raise 5",
    "a group": "raise ExceptionGroup('many', [ValueError(1), TypeError(2)])" if sys.version_info >= (3, 11) else "1/0",
    "an error without words": "raise type('E', (Exception,), {'__str__': lambda self: 1/0, '__repr__': lambda self: 1/0})()",
    "an odd syntax error": "raise SyntaxError('x', (5, 'two', None, b'four'))",
    "an error in a circle": "a = ValueError(1); b = ValueError(2); a.__cause__ = b; b.__cause__ = a; raise a",
    "a thousand causes": "e = None\nfor i in range(1000):\n    n = ValueError(i); n.__cause__ = e; e = n\nraise e",
    "deep recursion": "def f(): f()\nf()",
    "a value that raises": "class R:\n    def __repr__(self): raise ValueError('no repr')\nR()",
    "a value that exits": "class R:\n    def __repr__(self): sys.exit(9)\nR()",
    "a value that is no text": "class R:\n    def __repr__(self): return 5\nR()",
    "a value that recurses": "class R:\n    def __repr__(self): return repr(self)\nR()",
    "a value that prints": "class R:\n    def __repr__(self): print('from repr'); return 'R'\nR()",
    "a value that raises at everything": "class A:\n    def __getattr__(self, n): raise OSError(n)\n    __repr__ = __getattr__\nA()",
    "rich forms that raise": "class H:\n    def _repr_html_(self): 1/0\n    def _ipython_display_(self): 1/0\nH()",
    "rich forms of the wrong kind": "class H:\n    def _repr_mimebundle_(self, **k): return {5: [object()]}\nH()",
    "a picture that is none": "class P:\n    def _repr_mimebundle_(self, **k): return {'text/plain': 'P', 'image/png': 'é!'}\nP()",
    "a picture of text": "class P:\n    def _repr_png_(self): return 'no picture'\nP()",
    "a form without a bottom": "x = []\nfor _ in range(99999): x = [x]\nclass J:\n    def _repr_mimebundle_(self, **k): return {'application/json': x}\nJ()",
    "forms under odd names": "class M:\n    def _repr_mimebundle_(self, **k): return {None: 'x', (1, 2): 'y', 'z\\0': b'z'}\nM()",
    "half characters in forms": "class H:\n    def _repr_html_(self): return '\\ud800'\n    __repr__ = _repr_html_\nH()",
    "a NUL in a name": "exec(compile('1/0', 'a' + chr(0) + 'b', 'exec'))",
    "two megabytes without a newline": "print('x' * 2_000_000, end='')",
}  # fmt: skip

UNDONE = {
    "a stream that raises": "import sys; sys.stdout = sys.__stdout__",
    "a full disk": "import sys; sys.stdout = sys.__stdout__",
    "a redirection left open": "c.__exit__(None, None, None)",
    "other hooks": "import sys; sys.displayhook = kept; sys.excepthook = sys.__excepthook__",
    "a hook that raises": "import sys; sys.displayhook = kept",
}


@pytest.mark.parametrize("runner", ["plain", "ipython"])
def test_after_every_accident_of_user_code_the_next_command_works(serve, runner):
    served = serve(runner=runner)
    failures = {}
    with served.connect(ask=lambda prompt, hidden: "x") as session:
        for name, code in HARMLESS.items():
            try:
                session.run(f"import os, sys\n{code}", check=False, quiet=True, timeout=15)
                if name in UNDONE:  # what the user changed on purpose stays until he takes it back
                    session.run(UNDONE[name], check=False, quiet=True, timeout=15)
                after = session.run(
                    "import sys\n_ = sys.stdout.write('out\\n'); _ = sys.stderr.write('err\\n')\n6 * 7",
                    quiet=True,
                    check=False,
                    timeout=15,
                )
                printed = "out\n" in after.stdout and "err\n" in after.stderr
                if (after.status, after.text, printed) != ("ok", "42", True):
                    failures[name] = after
            except remoter.RemoterError as error:
                failures[name] = error
                break
        pid = session.info.pid
    assert not failures
    assert pid == served.worker_pid


DEADLY = {
    "import os; os.abort()": "SIGABRT",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "SIGKILL",
    "import signal, time; signal.alarm(1); time.sleep(60)": "SIGALRM",
    "import ctypes; ctypes.string_at(0)": "SIGSEGV",
    "import os; os._exit(3)": "exit code 3",
}


def test_every_death_of_the_interpreter_is_named_and_survived(serve):
    with serve(runner="plain").connect() as session:
        for code, named in DEADLY.items():
            with pytest.raises(remoter.SessionDiedError, match=named):
                session.run(f"print('before')\n{code}", quiet=True, timeout=20)
            session.restart()
            assert session.run("6 * 7").text == "42"


@pytest.mark.parametrize("runner", ["plain", "ipython"])
def test_a_value_that_hangs_when_it_is_shown_can_be_interrupted(serve, runner):
    code = "import time\nclass R:\n    def __repr__(self):\n        print('showing'); time.sleep(60)\nR()"
    with serve(runner=runner).connect() as session:
        run = session.submit(code)
        next(event for event in run.events() if event.kind == "stdout")
        run.interrupt()
        assert run.wait(15).status in ("interrupted", "error")
        assert session.run("6 * 7").text == "42"


def test_a_handler_of_the_users_gets_the_interrupt_and_the_next_command_ours(serve):
    code = """
import signal, time
caught = []
signal.signal(signal.SIGINT, lambda *_: caught.append(1))
print('go')
while not caught: time.sleep(0.01)
'went on'
"""
    with serve(runner="plain").connect() as session:
        run = session.submit(code)
        next(event for event in run.events() if event.kind == "stdout")
        run.interrupt()
        assert run.wait(15).text == "'went on'"
        run = session.submit("print('go')\nwhile True: pass")
        next(event for event in run.events() if event.kind == "stdout")
        run.interrupt()
        assert run.wait(15).status == "interrupted"


READERS = {
    "import sys; sys.stdin.readline()": (["one"], "'one\\n'"),
    "sys.stdin.read()": (["one", "two", None], "'one\\ntwo\\n'"),
    "[line for line in sys.stdin]": (["one", None], "['one\\n']"),
    "sys.stdin.buffer.readline()": (["one"], "b'one\\n'"),
    "(input('a'), input('b'))": (["", "ß 🎉"], "('', 'ß 🎉')"),
    "import fileinput; [line for line in fileinput.input('-')]": (["x", None], "['x\\n']"),
    "int(input('number? '))": (["12"], "12"),
}


@pytest.mark.parametrize("runner", ["plain", "ipython"])
def test_everything_that_reads_gets_what_the_client_answers(serve, runner):
    answers = iter(())
    with serve(runner=runner).connect(ask=lambda prompt, hidden: next(answers)) as session:
        for code, (given, text) in READERS.items():
            answers = iter(given)
            assert session.run(code, timeout=15).text == text, code


def test_a_hundred_threads_that_go_on_printing_lose_nothing_and_hinder_nobody(serve):
    code = """
import threading, time
go, lines = threading.Event(), 30
def work(n):
    go.wait()
    for i in range(lines):
        print(f"{n}:{i}\\n", end=""); time.sleep(0.01)
threads = [threading.Thread(target=work, args=(n,)) for n in range(100)]
[t.start() for t in threads]; go.set()
"""
    with serve(runner="plain").connect() as session, session.events() as events:
        session.run(code, quiet=True)
        for n in range(10):
            assert session.run(f"{n} * {n}", quiet=True, timeout=15).text == str(n * n)
        session.run("[t.join() for t in threads]; print('end')", quiet=True)
        text = ""
        while not text.endswith("end\n"):
            text += next(event.text for event in events if event.kind == "stdout")
    assert sorted(text.split()[:-1]) == sorted(f"{n}:{i}" for n in range(100) for i in range(30))


def test_a_million_lines_arrive_and_the_server_stays_small(serve):
    served = serve(runner="plain")
    with served.connect() as session:
        text = session.run("for i in range(1_000_000): print(i)", quiet=True, timeout=50).stdout
        assert len(text) == 6_888_890
        assert text.endswith("\n999999\n")
        assert session.run("1").text == "1"
    assert memory(served.server_pid) < 100


@pytest.mark.parametrize("megabytes", [80, 270])
def test_a_picture_too_large_for_any_message_is_left_out_and_said(serve, megabytes):
    code = f"""
class Picture:
    def _repr_mimebundle_(self, **options):
        return {{"text/plain": "a picture", "image/png": b"x" * {megabytes}_000_000}}
Picture()
"""
    served = serve(runner="ipython")
    with served.connect() as session:
        result = session.run(code, quiet=True, timeout=45)
        assert "a picture" in result.text + str(result.displays)
        assert session.run("1").text == "1"
    with served.connect() as session, session.events(since=0) as events:
        assert any("left out" in (event.text or "") for event in events)


def test_a_question_too_long_for_any_message_is_cut(serve):
    served = serve(runner="plain")
    with served.connect(ask=lambda prompt, hidden: str(len(prompt) > 0)) as session:
        assert session.run("input('x' * 80_000_000)", timeout=45).text == "'True'"
