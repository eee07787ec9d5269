"""The keeper: names, ports, a server that is started again, workers, and an end that leaves nothing."""

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import pytest

from remoter import _config, _keeper, _records
from remoter._errors import RemoterError
from remoter._keeper import claim, launch, open_listeners, wait_for_end

SERVER = textwrap.dedent(
    """
    import json, os, select, signal, socket, sys
    keeper, *listeners = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    said = b""
    while b"\\n" not in said:
        piece = keeper.recv(65536)
        if not piece:
            sys.exit("the keeper ended first")
        said += piece
    first, _, said = said.partition(b"\\n")
    configuration = json.loads(first)
    def say(message):
        keeper.sendall(json.dumps(message).encode() + b"\\n")
    def end(*_):
        say({"stop": True})
        os._exit(0)
    interrupts = []
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
    if configuration.get("fail") == "error":
        say({"error": {"message": "no", "cause": "because", "hints": ["try"], "id": "python"}})
        say({"error": {"message": "again", "cause": "because", "hints": [], "id": "python"}})
    if configuration.get("fail"):
        print("last words", file=sys.stderr)
        sys.exit(3)
    say({"ready": {"server_pid": os.getpid(), "port": configuration["port"]}})
    heard, readers = [], [keeper, *listeners]
    while True:
        for ready in select.select(readers, [], [])[0]:
            if ready is keeper:
                piece = keeper.recv(65536)
                said += piece
                if not piece:
                    heard.append("eof")
                    readers.remove(keeper)
                continue
            *lines, said = said.split(b"\\n")
            heard += map(json.loads, lines)
            client = ready.accept()[0]
            word = json.loads(client.makefile().readline())
            if word is not None:
                say(word)
            told = {"pid": os.getpid(), "configuration": configuration, "heard": heard, "interrupts": len(interrupts)}
            client.sendall(json.dumps(told).encode())
            client.close()
    """
)


class Started:
    """A session with a server that does nothing but tell."""

    def __init__(self, directory, **options):
        script = directory / "server.py"
        script.write_text(SERVER)
        self.wish = {
            "name": None,
            "port": 0,
            "listen": ["127.0.0.1"],
            "password": "otter-lamp-nine",
            "server_argv": [sys.executable, "-I", str(script)],
            **options,
        }
        self.ready = launch(self.wish, attach_log=False)
        self.keeper = self.ready["keeper_pid"]
        self.directory = Path(self.ready["run_directory"])
        self.port = self.ready["port"]
        self.pids = {self.keeper, self.ready["server_pid"]}

    def ask(self, word=None):
        """What the server of now knows; a word that is a dictionary it says to the keeper first."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=15) as client:
            client.sendall(json.dumps(word).encode() + b"\n")
            told = json.loads(b"".join(iter(lambda: client.recv(65536), b"")))
        self.pids.add(told["pid"])
        return told

    def spawn(self, code, **wish):
        """Have the keeper start a worker; returns its pid."""
        wish = {"argv": [sys.executable, "-I", "-c", code], "env": {}, "cwd": "/", **wish}
        before = len(self.ask()["heard"])
        self.ask({"spawn": wish})
        answer = wait_for(lambda: self.ask()["heard"][before:])[0]
        if "spawned" in answer:
            self.pids.add(answer["spawned"])
        return answer.get("spawned") or answer["failed"]

    def kill(self):
        """End all of it. The keeper is stopped first: it would start a killed server again, which we do not know."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.keeper, signal.SIGSTOP)
            wait_for(lambda: state_of(self.keeper) in "TZX")
        self.pids |= children_of(self.keeper)
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(is_alive, self.pids)))


def wait_for(condition, timeout=30.0):
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
    return value


def state_of(pid):
    """The letter that ps shows; X if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def is_alive(pid):
    return state_of(pid) not in "ZX"


def children_of(pid):
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


@pytest.fixture
def start(home):
    started = []

    def begin(**options):
        started.append(Started(home, **options))
        return started[-1]

    yield begin
    for session in started:
        session.kill()


def quiet_port(*addresses):
    """A port that is free on all of them, and that nobody is given who asks for any."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                stack.enter_context(socket.create_server((address, port), family=family))
            return port


# --- the server ------------------------------------------------------------------------------


def test_the_server_gets_the_configuration_with_the_port_and_every_path(start, home):
    session = start(listen=["127.0.0.1", "127.0.0.2"])
    told = session.ask()["configuration"]
    assert told["password"] == "otter-lamp-nine"
    assert (told["name"], told["port"]) == ("main", session.port)
    assert told["addresses"] == ["127.0.0.1", "127.0.0.2"]
    assert Path(told["run_directory"]) == session.directory == home / "runtime" / "main"
    assert Path(told["record_path"]).parent == home / "state" / "servers"
    assert Path(told["journal_directory"]).parent == home / "journal"
    assert told["keeper_pid"] == session.keeper
    with open(f"/proc/{session.keeper}/cmdline") as arguments, open(f"/proc/{session.keeper}/environ") as env:
        assert "otter-lamp-nine" not in arguments.read() + env.read()


def test_a_killed_server_is_started_again_on_the_same_sockets(start):
    session = start()
    pids = [session.ask()["pid"]]
    for _ in range(3):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(session.ask()["pid"])  # the connection waits in the backlog
    assert len(set(pids)) == 4
    assert (session.directory / "server.log").read_text().count("was killed by SIGKILL") == 3


def test_a_worker_outlives_its_server_and_its_end_is_told_to_the_next_one(start):
    session = start()
    worker = session.spawn("import signal; signal.pause()")
    server = session.ask()["pid"]
    os.kill(server, signal.SIGSTOP)  # it hears nothing any more
    os.kill(worker, signal.SIGTERM)
    wait_for(lambda: not is_alive(worker))
    os.kill(server, signal.SIGKILL)
    heard = wait_for(lambda: session.ask()["heard"])
    assert heard == [{"exited": worker, "status": signal.SIGTERM}]
    other = session.spawn("import signal; signal.pause()")
    os.kill(session.ask()["pid"], signal.SIGKILL)
    assert session.ask()["configuration"]["workers"] == [other]


def test_an_interrupt_that_the_launcher_relays_reaches_the_server(start):
    session = start()
    os.kill(session.keeper, signal.SIGINT)
    wait_for(lambda: session.ask()["interrupts"] == 1)


def test_the_keeper_ignores_a_hang_up_and_survives_what_it_does_not_understand(start):
    session = start()
    server = session.ask()["pid"]
    os.kill(session.keeper, signal.SIGHUP)
    session.ask({"spawn": 5})
    session.ask({"what": "is this"})
    wait_for(lambda: "not understood" in (session.directory / "server.log").read_text())
    assert session.ask()["pid"] == server
    assert is_alive(session.keeper)


def test_the_session_outlives_its_keeper_and_its_name_stays_taken(start):
    session = start()
    worker = session.spawn("import signal; signal.pause()")
    os.kill(session.keeper, signal.SIGKILL)
    wait_for(lambda: "eof" in session.ask()["heard"])
    assert is_alive(worker)
    with pytest.raises(RemoterError, match="already running"):
        claim(_config.runtime_directory(), "main")


def test_the_keeper_is_small_and_nobody_s_child(start):
    session = start()
    status = Path(f"/proc/{session.keeper}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(fields["VmRSS"].split()[0]) < 14_000
    assert int(fields["PPid"]) != os.getpid()
    assert os.getsid(session.keeper) != os.getsid(0)


# --- workers ---------------------------------------------------------------------------------


def test_a_worker_has_the_pipes_its_directory_and_a_group_of_its_own(start, tmp_path):
    session = start()
    out = os.open(session.directory / "out", os.O_RDWR | os.O_NONBLOCK)
    err = os.open(session.directory / "err", os.O_RDWR | os.O_NONBLOCK)
    typed = os.open(session.directory / "in", os.O_RDWR | os.O_NONBLOCK)
    code = """
import os, signal, sys
print(os.getcwd(), os.environ["WORD"], os.getpgid(0) == os.getsid(0) == os.getpid(), input(), flush=True)
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1], file=sys.stderr, flush=True)
print(signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, signal.getsignal(signal.SIGXFSZ), flush=True)
"""
    worker = session.spawn(code, env={"WORD": "there"}, cwd=str(tmp_path))
    os.write(typed, b"typed\n")
    wait_for(lambda: {"exited": worker, "status": 0} in session.ask()["heard"])
    said = os.read(out, 4096).decode().splitlines()
    assert said[0] == f"{tmp_path} there True typed"
    assert said[1].startswith("True")
    assert os.read(err, 4096) == b"[0, 1, 2]\n"
    for descriptor in (out, err, typed):
        os.close(descriptor)


def test_a_program_that_cannot_be_executed_is_told(start):
    session = start()
    assert "No such file" in session.spawn("", argv=["/no/such/python"])
    assert "No such file" in session.spawn("", cwd="/no/such/directory")
    assert session.spawn("pass") > 0


# --- the end ---------------------------------------------------------------------------------


def is_clean(session, home):
    return not session.directory.exists() and not any(map(is_alive, session.pids))


def test_stop_ends_the_keeper_and_removes_what_the_session_had(start, home):
    session = start()
    record = Path(session.ask()["configuration"]["record_path"])
    _config.private_directory(home / "state")
    _config.write_private(record, b"{}")
    (session.directory / "zmq.sock").touch()
    os.kill(session.ask()["pid"], signal.SIGTERM)  # it says {"stop"} and ends
    wait_for_end(session.directory)
    wait_for(lambda: is_clean(session, home))
    assert not record.exists()


def test_sigterm_ends_server_and_worker_cleanly(start, home):
    session = start()
    session.spawn("pass")
    os.kill(session.keeper, signal.SIGTERM)
    wait_for(lambda: is_clean(session, home))


def test_a_worker_that_does_not_end_is_killed_with_its_group(start, home, monkeypatch):
    session = start()
    code = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(child, flush=True)
signal.pause()
"""
    out = os.open(session.directory / "out", os.O_RDWR | os.O_NONBLOCK)
    session.spawn(code)
    child = int(wait_for(lambda: read_nowait(out)))
    os.close(out)
    session.pids.add(child)
    server = session.ask()["pid"]
    began = time.monotonic()
    os.kill(server, signal.SIGTERM)
    wait_for(lambda: is_clean(session, home))
    assert time.monotonic() - began > 2  # it had its time


def read_nowait(descriptor):
    with contextlib.suppress(BlockingIOError):
        return os.read(descriptor, 4096)


def test_sigterm_while_the_server_is_down_ends_the_worker(start, home):
    session = start()
    session.spawn("import signal; signal.pause()")
    script = Path(session.wish["server_argv"][-1])
    script.write_text("import sys; sys.exit(1)")
    os.kill(session.ready["server_pid"], signal.SIGKILL)
    log = session.directory / "server.log"
    wait_for(lambda: log.read_text().count("starting it again in") >= 3)  # so there is time between
    os.kill(session.keeper, signal.SIGTERM)
    wait_for(lambda: is_clean(session, home))


def test_a_server_that_fails_again_and_again_is_tried_later_and_later(start, home):
    session = start()
    script = Path(session.wish["server_argv"][-1])
    fails_thrice = textwrap.dedent(
        f"""
        import os, sys
        tries = os.open({str(home / "tries")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(tries, b"x")
        if os.fstat(tries).st_size <= 3:
            sys.exit(1)
        os.close(tries)
        """
    )
    script.write_text(fails_thrice + script.read_text())
    os.kill(session.ready["server_pid"], signal.SIGKILL)
    log = session.directory / "server.log"
    session.ask()
    delays = [line.partition(" in ")[2] for line in log.read_text().splitlines() if "again" in line]
    assert delays == ["", "0.1 s", "0.5 s", "1.0 s"]


# --- starting --------------------------------------------------------------------------------


def test_what_keeps_the_server_from_starting_is_raised_by_the_launcher(start, home):
    with pytest.raises(RemoterError) as caught:
        start(fail="error")
    error = caught.value
    assert (error.message, error.cause, error.hints, error.id) == ("no", "because", ("try",), "python")
    wait_for(lambda: not (home / "runtime" / "main").exists())


def test_a_server_that_dies_before_it_is_ready_is_not_started_again(start, home):
    with pytest.raises(RemoterError, match="before it was ready") as caught:
        start(fail="silent")
    assert "status 3" in caught.value.cause
    assert "last words" in caught.value.cause
    wait_for(lambda: not (home / "runtime" / "main").exists())


def test_a_server_that_is_never_ready_is_an_error_that_says_so(start, home, monkeypatch):
    monkeypatch.setattr(_keeper, "START_TIMEOUT", 3.0)  # the keeper itself has to begin in that time
    silent = [sys.executable, "-I", "-c", "import signal; signal.pause()"]
    with pytest.raises(RemoterError, match="did not start within") as caught:
        start(server_argv=silent)
    assert "has not said that it is ready" in caught.value.cause
    wait_for(lambda: not (home / "runtime" / "main").exists())


def test_the_log_can_go_to_the_launcher_s_own_stderr(home):
    program = textwrap.dedent(
        """
        import sys
        from remoter._keeper import launch
        wish = {"listen": "127.0.0.1", "port": None, "password": "x", "name": "seen", "server_argv":
            [sys.executable, "-c", "import sys; print('seen here', file=sys.stderr); sys.exit(2)"]}
        try:
            launch(wish, attach_log=True)
        except Exception as error:
            print(error.message)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40)
    assert done.stdout == "the server ended before it was ready\n"
    assert "seen here" in done.stderr


# --- names -----------------------------------------------------------------------------------


@pytest.fixture
def runtime(home):
    return home / "runtime"


def test_sessions_without_a_name_are_numbered(start):
    assert [start().directory.name for _ in range(3)] == ["main", "main-2", "main-3"]


def test_a_name_that_a_live_session_has_is_refused_with_the_way_to_it(start):
    start(name="train")
    with pytest.raises(RemoterError, match="`train` is already running") as caught:
        start(name="train")
    assert "it was started on 20" in caught.value.cause
    assert "remoter client train" in caught.value.hints[0]


def test_what_a_killed_session_left_is_emptied_and_taken_over(runtime):
    directory, lock = claim(runtime, "old")
    (directory / "clients").write_text("key")
    os.mkfifo(directory / "out")
    (directory / "folder").mkdir()
    os.close(lock)  # the lock goes with the process that held it
    again, lock = claim(runtime, "old")
    assert again == directory
    assert [path.name for path in again.iterdir()] == ["lock"]
    os.close(lock)


def test_two_starters_at_once_never_get_the_same_name(runtime):
    claimed = []
    barrier = threading.Barrier(8)

    def take():
        barrier.wait()
        claimed.extend(claim(runtime, None) for _ in range(5))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(directory.name for directory, _ in claimed)
    assert len(set(names)) == 40
    for _, lock in claimed:
        os.close(lock)


def test_one_who_only_looks_whether_a_session_lives_does_not_take_its_name(runtime, monkeypatch):
    directory, lock = claim(runtime, "seen")
    os.close(lock)
    looking = os.open(directory / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            os.close(looking)

    monkeypatch.setattr(_keeper, "time", types.SimpleNamespace(**{**vars(time), "sleep": pause}))
    _, lock = claim(runtime, "seen")
    assert len(pauses) == 3
    os.close(lock)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "..", "ä", "a" * 41])
def test_what_cannot_name_a_session_is_refused(runtime, name):
    with pytest.raises(RemoterError, match="cannot name a session"):
        claim(runtime, name)


@pytest.mark.parametrize("name", ["a", "_x", "Main-2.b", "9", "a" * 40])
def test_names_of_letters_digits_and_a_few_signs_are_taken(runtime, name):
    directory, lock = claim(runtime, name)
    os.close(lock)
    assert directory == runtime / name


def test_a_run_directory_too_long_for_a_socket_is_refused_with_the_variable_to_set(home):
    with pytest.raises(RemoterError, match="too long for a socket") as caught:
        claim(home / ("x" * 80), None)
    assert "REMOTER_RUNTIME_DIR" in caught.value.hints[0]


# --- ports -----------------------------------------------------------------------------------


@pytest.fixture
def listeners():
    opened = []

    def open_(addresses, port):
        opened.extend(found := open_listeners(addresses, port))
        return [listener.getsockname()[:2] for listener in found]

    yield open_
    for listener in opened:
        listener.close()


def test_a_taken_port_that_was_asked_for_is_an_error(start):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RemoterError, match=f"port `{port}` is taken") as caught:
            start(port=port)
    assert caught.value.id == "port-taken"


def test_a_port_taken_by_one_of_our_sessions_names_it(start):
    session = start(name="first")
    record = _records.Record(
        name="first", host=_config.host_name(), listen="127.0.0.1", port=session.port,
        directory=str(session.directory), server_public="", client_public="", client_secret="",
        pid=session.keeper, journal="", started=0.0,
    )  # fmt: skip
    _records.write_record(record)
    with pytest.raises(RemoterError, match="is taken") as caught:
        start(port=session.port)
    assert caught.value.cause == "it is the port of session `first`"
    assert "remoter client first" in caught.value.hints[0]


def test_port_0_is_a_free_one_from_the_private_range(listeners):
    (_, port), *_ = listeners(["127.0.0.1"], 0)
    assert 49152 <= port <= 65535


def test_without_a_port_55555_is_taken_or_a_free_one(listeners, monkeypatch):
    monkeypatch.setattr(_keeper, "USUAL_PORT", quiet_port("127.0.0.1"))
    assert listeners(["127.0.0.1"], None) == [("127.0.0.1", _keeper.USUAL_PORT)]
    (_, port), *_ = listeners(["127.0.0.1"], None)
    assert 49152 <= port <= 65535


def test_all_addresses_get_the_same_port(listeners):
    found = listeners(["127.0.0.1", "127.0.0.3", "::1"] if has_ipv6() else ["127.0.0.1", "127.0.0.3"], 0)
    assert len({port for _, port in found}) == 1
    assert [address for address, _ in found][:2] == ["127.0.0.1", "127.0.0.3"]


def test_a_port_that_one_address_has_not_is_not_half_taken(listeners):
    port = quiet_port("127.0.0.1", "127.0.0.3")
    with socket.create_server(("127.0.0.3", port)):
        with pytest.raises(_keeper.Refusal, match="is taken"):
            listeners(["127.0.0.1", "127.0.0.3"], port)
        assert listeners(["127.0.0.1"], port) == [("127.0.0.1", port)]


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_an_ipv6_address_may_be_written_in_brackets(listeners):
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    port = quiet_port("127.0.0.1", "::1")
    assert listeners(["[::1]"], port) == [("::1", port)]
    assert listeners(["127.0.0.1"], port) == [("127.0.0.1", port)]


def test_an_address_that_this_machine_has_not_is_named(listeners):
    with pytest.raises(_keeper.Refusal, match=r"cannot listen on `192\.0\.2\.1`") as caught:
        listeners(["192.0.2.1"], 0)
    assert "no such address" in caught.value.words["cause"]
