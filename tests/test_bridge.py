"""The bridge there and the tunnel here: bytes, ends of either side, what goes wrong, and nothing left behind."""

import ast
import contextlib
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

import remoter
from remoter import _bridge, _cli, _records, _tunnel
from remoter._errors import RemoterError
from remoter._tunnel import Tunnel

from .conftest import is_alive, wait_for

BRIDGE = Path(_bridge.__file__)
START = [sys.executable, "-I", "-S", str(BRIDGE)]
NONCE = "c0ffee"
RAW = f"echo remoter:{NONCE} raw; "


# --- servers on a unix socket ----------------------------------------------------------------


@pytest.fixture
def listen(home):
    """Listens on a unix socket; a thread for each connection does what is given."""
    opened = []

    def start(serve):
        path = home / f"server{len(opened)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        opened.append(listener)

        def one(connection):
            with connection, contextlib.suppress(OSError):
                serve(connection)

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return path

    yield start
    for listener in opened:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def echo(connection):
    while piece := connection.recv(1 << 16):
        connection.sendall(piece)


def answer_at_the_end(connection):
    """Says how much came, once no more comes."""
    size = 0
    while piece := connection.recv(1 << 16):
        size += len(piece)
    connection.sendall(b"%d bytes" % size)


def read_all(connection):
    said = b""
    while piece := connection.recv(1 << 16):
        said += piece
    return said


def read_exactly(source, size):
    said = b""
    while len(said) < size and (piece := source.recv(1 << 16)):
        said += piece
    return said


# --- the bridge ------------------------------------------------------------------------------


@pytest.fixture
def bridge():
    """Starts the bridge, as sshd would: with pipes."""
    started = []

    def start(path, *, command=START, **options):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        started.append(subprocess.Popen([*command, str(path)], bufsize=0, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in filter(None, [process.stdin, process.stdout, process.stderr]):
            pipe.close()


def processor_time(pid):
    """Seconds that the process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_bytes_cross_the_bridge_unchanged_both_ways(listen, bridge):
    process = bridge(listen(echo))
    sent = os.urandom(5_000_003)
    threading.Thread(target=lambda: (process.stdin.write(sent), process.stdin.close())).start()
    assert process.stdout.read() == sent
    assert process.wait(30) == 0
    assert process.stderr.read() == b""


def test_one_byte_is_not_held_back(listen, bridge):
    process = bridge(listen(echo))
    for byte in (b"\n", b"\x00", b"\xff"):
        process.stdin.write(byte)
        assert process.stdout.read(1) == byte


def test_the_end_of_the_input_is_passed_on_and_the_answer_to_it_still_comes(listen, bridge):
    process = bridge(listen(answer_at_the_end))
    process.stdin.write(b"x" * 300_000)
    process.stdin.close()
    assert process.stdout.read() == b"300000 bytes"
    assert process.wait(30) == 0


@pytest.mark.parametrize("stdio", ["pipes", "one socket", "two sockets"])
def test_a_server_that_says_no_more_still_hears_what_is_said(listen, bridge, stdio):
    heard = []

    def end_first(connection):
        connection.sendall(b"goodbye")
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))

    path = listen(end_first)
    if stdio == "pipes":
        process = bridge(path)
        assert process.stdout.read() == b"goodbye"
        process.stdin.write(b"one more thing")
        process.stdin.close()
    else:
        into, theirs = socket.socketpair()
        out, its = (into, theirs) if stdio == "one socket" else socket.socketpair()
        process = bridge(path, stdin=theirs.fileno(), stdout=its.fileno())
        for each in {theirs, its}:
            each.close()
        assert read_all(out) == b"goodbye"
        into.sendall(b"one more thing")
        into.shutdown(socket.SHUT_WR)
    assert process.wait(30) == 0
    wait_for(lambda: heard == [b"one more thing"])
    if stdio != "pipes":
        into.close()
        out.close()


def test_it_ends_when_the_server_is_gone_though_its_input_stays_open(listen, bridge):
    process = bridge(listen(lambda connection: connection.sendall(b"last words")))
    assert process.wait(30) == 0
    assert process.stdout.read() == b"last words"


def test_it_ends_when_nobody_is_at_its_pipes_though_the_server_says_nothing(listen, bridge):
    over = threading.Event()
    process = bridge(listen(lambda connection: over.wait(60)))
    process.stdin.close()
    process.stdout.close()
    assert process.wait(30) == 0
    over.set()


def test_it_ends_when_nobody_reads_what_the_server_says(listen, bridge):
    process = bridge(listen(lambda connection: [connection.sendall(b"x" * 1000) for _ in iter(int, 1)]))
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""


def test_a_reader_that_is_slow_holds_the_server_back_and_gets_everything(listen, bridge):
    sent = []

    def pour(connection):
        for _ in range(64):
            connection.sendall(b"x" * (1 << 18))
            sent.append(1)

    process = bridge(listen(pour))
    assert process.stdout.read(1) == b"x"
    before = -1
    while before != len(sent):  # until nothing moves any more
        before = len(sent)
        time.sleep(0.05)
    assert len(sent) < 16
    assert len(process.stdout.read()) == 64 * (1 << 18) - 1


def test_it_does_not_compute_while_it_waits_for_either_end(listen, bridge):
    waiting, over = [], threading.Event()

    def wait(connection):
        waiting.append(1)
        over.wait(60)

    def wait_after_the_end(connection):
        assert connection.recv(1) == b""
        wait(connection)

    def say_no_more(connection):
        connection.shutdown(socket.SHUT_WR)
        wait(connection)

    processes = [bridge(listen(serve)) for serve in (wait_after_the_end, wait, say_no_more)]
    processes[0].stdin.close()
    assert processes[2].stdout.read() == b""
    wait_for(lambda: len(waiting) == 3, what="all have started, and have nothing to do")
    before = [processor_time(process.pid) for process in processes]
    time.sleep(0.3)
    after = [processor_time(process.pid) for process in processes]
    assert all(late - early < 0.05 for early, late in zip(before, after, strict=True))
    over.set()


def test_where_nobody_listens_it_says_so_in_one_line_on_stderr(listen, bridge, home):
    (home / "file").write_text("")
    for path, reason in [
        (home / "missing", "No such file"),
        (home / "file", "Connection refused"),
        (home / ("x" * 200), "too long"),
    ]:
        process = bridge(path)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err.count(b"\n")) == (1, b"", 1)
        assert reason in err.decode()


def test_at_a_terminal_or_with_no_socket_it_says_what_it_takes(listen, bridge):
    ours, theirs = pty.openpty()
    process = bridge("/nowhere", stdin=theirs)
    assert b"not a terminal" in process.communicate(timeout=30)[1]
    assert process.returncode == 2
    os.close(ours)
    os.close(theirs)
    done = subprocess.run(START, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)


def test_the_bridge_is_python_3_8_with_few_of_its_modules_so_that_it_starts_quickly():
    ast.parse(BRIDGE.read_text(), feature_version=(3, 8))
    words = [sys.executable, "-I", "-S", "-X", "importtime", str(BRIDGE)]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"_socket", "os"} <= loaded
    assert not loaded & {"socket", "threading", "enum", "re", "contextlib", "remoter"}


# --- the command -----------------------------------------------------------------------------


def test_without_a_session_of_that_name_the_command_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert _cli.main(["bridge", "nobody"]) == 255
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no session `nobody` runs on this machine" in printed.err


def test_at_a_terminal_the_command_says_what_it_is_for(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert _cli.main(["bridge", "main"]) == 2
    assert "for programs" in capsys.readouterr().err


def test_the_command_is_not_in_the_help(capsys):
    assert _cli.main(["--help"]) == 0
    assert "bridge" not in capsys.readouterr().out


# --- the tunnel ------------------------------------------------------------------------------


@pytest.fixture
def tunnel(home):
    """Makes tunnels whose ssh is a shell here; at the end nothing of theirs is left."""
    before = what_is_open()
    made = []

    def start(script, *, words=("/bin/sh",), nonce=NONCE):
        def command():
            return list(words), script.encode() if isinstance(script, str) else script, nonce

        made.append(Tunnel(home / f"t{len(made)}", command if not callable(script) else script))
        return made[-1]

    yield start
    for each in made:
        each.close()
        assert not each.path.exists()
    await_return_to(before)


def what_is_open():
    """How many descriptors and threads of tunnels this process has, and its children."""
    threads = [thread for thread in threading.enumerate() if "tunnel" in thread.name]
    return len(os.listdir("/proc/self/fd")), len(threads), children()


def await_return_to(before):
    """Wait until no more is open than was before: that may hold what somebody else was just closing."""

    def is_so():
        now = what_is_open()
        return all(less <= more for less, more in zip(now, before, strict=True))

    wait_for(is_so, 10, what=f"{what_is_open()} is {before} again")


def children():
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found.update(map(int, (task / "children").read_text().split()))
    return found


@contextlib.contextmanager
def dial(tunnel, timeout=30.0):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(tunnel.path))
        yield connection


def over(path):
    """A script that becomes the bridge to that socket."""
    return f"{{ {RAW} exec {shlex.join([*START, str(path)])}; }}\n"


def test_the_tunnel_s_socket_is_only_for_its_user(tunnel):
    assert tunnel("").path.stat().st_mode & 0o777 == 0o600


def test_bytes_cross_the_tunnel_unchanged_after_what_the_login_printed(tunnel, listen):
    noise = "echo Welcome; printf 'remoter:other raw\\n no newline'; echo careful >&2; "
    far = tunnel(f"{{ {noise} {over(listen(echo))} }}\n")
    sent = os.urandom(3_000_001)
    with dial(far) as connection:
        connection.sendall(b"at once")  # long before there is a bridge
        threading.Thread(
            target=lambda: (connection.sendall(sent), connection.shutdown(socket.SHUT_WR))
        ).start()
        assert read_all(connection) == b"at once" + sent
    assert far.detail == ""


def test_a_long_script_is_sent_whole_before_anything_of_the_client(tunnel, listen):
    far = tunnel("\n" * 50 + "# " + "x" * 400_000 + "\n" + over(listen(echo)))
    with dial(far) as connection:
        connection.sendall(b"remoter")
        assert read_exactly(connection, 7) == b"remoter"


def test_what_comes_together_with_the_mark_is_not_lost(tunnel):
    far = tunnel(f"{{ printf 'remoter:{NONCE} raw\\nfirst words'; exec cat; }}\n")
    with dial(far) as connection:
        connection.sendall(b", and more")
        assert read_exactly(connection, 21) == b"first words, and more"


def test_the_end_of_either_side_is_passed_on_through_the_tunnel(tunnel, listen):
    far = tunnel(over(listen(answer_at_the_end)))
    with dial(far) as connection:
        connection.sendall(b"x" * 100_000)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"100000 bytes"
    assert far.detail == ""


def test_clients_that_come_and_go_leave_no_descriptor_no_thread_and_no_process(tunnel, listen):
    far = tunnel(over(listen(echo)))
    before = what_is_open()
    for _ in range(4):
        with contextlib.ExitStack() as stack:
            for connection in [stack.enter_context(dial(far)) for _ in range(4)]:
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"
    await_return_to(before)
    assert far.detail == ""


def test_a_client_that_leaves_before_the_bridge_is_there_takes_its_ssh_with_it(tunnel):
    far = tunnel("echo waiting; exec sleep 100\n")
    before = what_is_open()
    with dial(far):
        wait_for(lambda: children() - before[2])
    await_return_to(before)


def test_a_client_that_leaves_ends_an_ssh_that_does_not_notice(tunnel):
    far = tunnel(f"{{ {RAW} exec sleep 100; }}\n")
    before = what_is_open()
    with dial(far) as connection:
        wait_for(lambda: children() - before[2])
        connection.sendall(b"x")
    await_return_to(before)


def test_an_ssh_that_is_killed_closes_the_connection_and_says_so(tunnel, listen):
    far = tunnel(over(listen(echo)))
    before = children()
    with dial(far) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        assert connection.recv(1) == b""
    wait_for(lambda: far.detail == "ssh was ended by signal 9")
    with dial(far) as connection:
        connection.sendall(b"y")
        assert connection.recv(1) == b"y"
        assert far.detail == "", "a connection that stands has no fault"


def fail_to_command():
    raise RemoterError("the connection was closed")


FAILURES = {
    "ssh's last line": (
        "echo one >&2; echo 'Permission denied (publickey).' >&2; exit 255",
        "Permission denied",
    ),
    "nothing but a status": ("exit 255", "ssh ended with status 255"),
    "a login that is refused": (
        "echo This account is not available.; exit 1",
        "This account is not available.",
    ),
    "a step of the script": (
        f"echo 'remoter:{NONCE} failed python 127'; echo 'remoter:{NONCE} said no python3 here';"
        f"echo 'remoter:{NONCE} end'; sleep 0.1",
        "the step `python` failed there: no python3 here",
    ),
    "another nonce": ("echo remoter:0bad raw; exit 3", "remoter:0bad raw"),
    "a login that prints for ever": ("exec yes", "prints more than 64 KiB"),
    "controls of terminals, and length": (
        "printf '\\033[31mred\\007 %0999d\\r\\n\\n' 0 >&2; exit 1",
        "[31mred " + "0" * 200,
    ),
    "a command that cannot be had": (fail_to_command, "the connection was closed"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_comes_to_nothing_is_closed_and_says_why(tunnel, case):
    script, detail = FAILURES[case]
    far = tunnel(script if callable(script) else f"{{ {script}; }}\n")
    with dial(far) as connection:
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
        assert detail in far.detail
        assert far.detail.isprintable()
        assert len(far.detail) <= 300


def test_without_an_ssh_program_the_connection_is_closed_and_says_so(tunnel):
    far = tunnel("", words=["/nowhere/ssh"])
    with dial(far) as connection:
        assert connection.recv(1) == b""
    assert far.detail == "cannot start `/nowhere/ssh`: No such file or directory"


@pytest.mark.parametrize("script", ["exec sleep 30", "while :; do echo word; sleep 0.01; done"])
def test_an_ssh_that_does_not_come_to_the_point_is_given_up(tunnel, monkeypatch, script):
    monkeypatch.setattr(_tunnel, "PATIENCE", 0.3)
    far = tunnel(f"{{ {script}; }}\n")
    with dial(far) as connection:
        assert connection.recv(1) == b""
    assert far.detail == "no answer within 0.3 s"


def test_an_ssh_that_never_reads_the_script_is_given_up(tunnel, monkeypatch):
    monkeypatch.setattr(_tunnel, "PATIENCE", 0.3)
    far = tunnel("#" * 3_000_000, words=["sleep", "30"])
    with dial(far) as connection:
        assert connection.recv(1) == b""


def test_the_terminal_s_ctrl_c_does_not_reach_ssh(tunnel, listen):
    far = tunnel(over(listen(echo)))
    before = children()
    with dial(far) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        (pid,) = children() - before
        assert os.getsid(pid) == pid


@pytest.mark.parametrize(
    "script",
    [
        "trap '' TERM; while :; do sleep 30; done",
        f"trap '' TERM; {RAW} while :; do sleep 30; done",
        f"{RAW} exec yes",
        f"{RAW} exec cat >/dev/null",
    ],
)
def test_closing_a_tunnel_ends_what_it_started_however_it_resists(tunnel, script):
    far = tunnel(f"{{ {script}; }}\n")
    before = children()
    with dial(far) as connection, dial(far):
        wait_for(lambda: len(children() - before) == 2)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection.send(b"x" * 65536)  # and everybody is stuck
        pids = children() - before
        began = time.monotonic()
        far.close()
        assert time.monotonic() - began < 8
        wait_for(lambda: not any(map(is_alive, pids)), 8, what="all have ended")
        assert not far.path.exists()
        with contextlib.suppress(ConnectionError):
            connection.settimeout(5)
            while connection.recv(1 << 16):
                pass
    far.close()


def test_a_socket_that_cannot_be_made_is_an_error_of_ours(home):
    with pytest.raises(RemoterError, match="cannot listen on the socket") as caught:
        Tunnel(home / ("x" * 200), lambda: ([], b"", ""))
    assert "too long" in caught.value.cause


def test_a_socket_that_somebody_left_is_replaced(tunnel, listen, home):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(home / "t0"))
    left.close()
    with dial(tunnel(over(listen(echo)))) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


# --- a session through both ------------------------------------------------------------------


@pytest.fixture
def elsewhere(served, home, monkeypatch):
    """Makes that the session's connection file leads to another socket."""

    def lead(path):
        directory = home / "led"
        directory.mkdir(mode=0o700)
        (directory / "zmq.sock").symlink_to(path)
        (directory / "lock").symlink_to(served.directory / "lock")
        record = _records.read_record(_records.record_path(served.record["host"], served.name))
        monkeypatch.setenv("REMOTER_STATE_DIR", str(home / "led-state"))
        _records.write_record(msgspec.structs.replace(record, directory=str(directory), port=1))
        return remoter.connect(served.name)

    return lead


def hold_a_session(session):
    assert session.run("1 + 1", quiet=True).text == "2"
    assert len(session.run("print('x' * 3_000_000)", quiet=True).stdout) == 3_000_001


def test_a_session_is_used_through_the_command_bridge(session, tunnel, elsewhere):
    command = f"{{ {RAW} exec {sys.executable} -m remoter bridge main; }}\n"
    state, runtime = (os.environ[f"REMOTER_{name}_DIR"] for name in ("STATE", "RUNTIME"))
    far = tunnel(f"export REMOTER_STATE_DIR={state} REMOTER_RUNTIME_DIR={runtime}\n{command}")
    with elsewhere(far.path) as through:
        hold_a_session(through)
    assert far.detail == ""


def test_a_session_is_used_through_an_sshd_that_forbids_forwarding(
    session, served, tunnel, elsewhere, ssh_host
):
    there = ssh_host(forwarding=False)
    far = tunnel(over(served.directory / "door.sock"), words=["ssh", "-T", there.name, "exec /bin/sh"])
    with elsewhere(far.path) as through:
        hold_a_session(through)
        for pid in there.clients():
            os.kill(pid, signal.SIGKILL)
        assert through.run("40 + 2", quiet=True).text == "42", "it came back by itself"
