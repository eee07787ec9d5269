"""Bad input and bad luck with sessions through ssh: what a person reads, what is mended by itself, and that nothing is left."""

import collections
import contextlib
import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import remoter
from remoter import _answer, _bootstrap, _channel, _ssh
from remoter._address import parse
from remoter._saved import Saved
from remoter._there import run_there

from .processes import read_of, words_of
from .sshd import LOOPBACK, SYSTEM_PATH
from .terminal import Terminal
from .test_ssh import COUNT, hurry_after, numbers, run, ssh_directories
from .waiting import is_alive, wait_for

AT_ONCE = 8.0
"""Seconds that a busy machine may take for what waits for nothing; all that could be waited for is longer."""

REMOTER = [sys.executable, "-m", "remoter"]


class Failed:
    """What a command printed when it failed: checked to be an error, perhaps a cause, and hints; nothing else."""

    def __init__(self, done, code=255):
        assert done.returncode == code, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if not line.startswith("-- ")]
        match = re.fullmatch(r"error: (.*)   \[([\w-]+)\]", lines[0])
        assert match, done.stderr
        self.text = done.stderr
        self.message, self.id = match[1], match[2]
        assert re.match(r"[a-z`\d]", self.message), self.message
        self.causes = [line.removeprefix("cause: ") for line in lines[1:] if line.startswith("cause: ")]
        self.hints = [line.removeprefix(" hint: ") for line in lines[1:] if line.startswith(" hint: ")]
        assert 1 + len(self.causes) + len(self.hints) == len(lines), done.stderr
        self.cause = "\n".join(self.causes)
        self.hint = "\n".join(self.hints)


def fail(address, *words, code=255, **options):
    return Failed(run("batch", address, "-c", "1 + 1", *words, **options), code)


def check_answers(address, *words):
    """A session there runs code."""
    done = run("batch", address, "-c", "6 * 7", *words)
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
    return done


# --- the way there ---------------------------------------------------------------------------


def test_without_an_ssh_program_it_is_said_which_to_install(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    failed = fail("ssh://there")
    assert (failed.id, failed.message) == ("ssh-missing", "there is no program `ssh` on this machine")
    assert "openssh-client" in failed.hint
    monkeypatch.setenv("REMOTER_SSH", "my-ssh -v")
    failed = fail("ssh://there")
    assert "`my-ssh`" in failed.message
    assert "REMOTER_SSH" in failed.hint


@pytest.mark.parametrize(
    ("how", "id", "message", "hint"),
    [
        ("wrong host", "ssh-host", "no machine is called `no-such-machine.invalid`", "~/.ssh/config"),
        ("refused", "ssh-refused", "no ssh server listens on `127.0.0.1`", "ssh://HOST:PORT"),
        (
            "not ssh",
            "ssh",
            "`127.0.0.1` closed the connection before the login",
            "no ssh server is on that port",
        ),
    ],
)
def test_a_machine_that_is_not_reached_is_named(ssh_host, request, how, id, message, hint):
    there = ssh_host()
    if how == "wrong host":
        address = "ssh://no-such-machine.invalid"
    elif how == "refused":
        held = socket.socket()  # a port that is nobody else's meanwhile, and on which nobody listens
        request.addfinalizer(held.close)
        held.bind((LOOPBACK, 0))
        address = f"ssh://{LOOPBACK}:{held.getsockname()[1]}"
    else:
        there.cut(refuse=True)
        address = f"ssh://{LOOPBACK}:{there.proxy.port}"
    failed = fail(address)
    if how == "wrong host" and "no machine called" in failed.message:
        return  # no network here
    assert failed.id == id
    assert message in failed.message
    assert hint in failed.hint


@pytest.mark.parametrize(
    ("options", "id", "message", "hint"),
    [
        ({"accept_key": "unknown"}, "ssh-key-unknown", "is not known here", "`ssh there` once in a terminal"),
        (
            {"accept_key": "changed"},
            "key-changed",
            "is not the one that was there before",
            "type no password",
        ),
        ({"auth": "none"}, "ssh-login", "the ssh server does not let in", "ssh-add"),
        ({"auth": "password"}, "ssh-login", "the ssh server does not let in", "in a terminal"),
        ({"passphrase": "otter"}, "ssh-login", "the ssh server does not let in", "ssh-add"),
    ],
)
def test_who_is_not_let_in_reads_why(ssh_host, options, id, message, hint):
    there = ssh_host(**options)
    failed = fail(there.address)
    assert failed.id == id
    assert message in failed.message
    assert hint in failed.hint
    for words in [["ls"], ["stop"], ["client"]] if options == {"auth": "none"} else []:
        assert Failed(run(*words, there.address)).id == id


def test_a_host_that_says_nothing_is_given_up_in_time(ssh_host):
    there = ssh_host()
    there.freeze()
    began = time.monotonic()
    with pytest.raises(remoter.ConnectError, match="no answer from `there`") as caught:
        remoter.connect(there.address, timeout=1)
    assert time.monotonic() - began < AT_ONCE
    assert caught.value.id == "ssh-timeout"
    check_left(there)


def test_a_caller_in_a_hurry_is_in_a_hurry_at_each_step():
    answer = _answer.Answer(None, parse("ssh://there"), False, 1.0)
    assert (answer.step, answer._seconds_after("hello"), answer._seconds_after("login")) == (1.0, 1.0, 2.0)


# --- the login shell -------------------------------------------------------------------------

BANNER = "yes 'Welcome to the cluster. Quotas are enforced.' | head -c 10240"


@pytest.mark.parametrize(
    "shell",
    [
        f'{BANNER}\n{BANNER} >&2\nexec /bin/bash "$@"\n',
        'read -r line; read -r line; echo "you said: $line"\nexec /bin/sh "$@"\n',
        "csh",
        "fish",
    ],
    ids=["banner", "reads", "csh", "fish"],
)
def test_odd_login_shells_are_no_obstacle(ssh_host, shell):
    there = ssh_host(shell=shell)
    check_answers(there.address)
    assert "idle" in run("ls", there.address).stdout


def test_a_login_shell_that_ends_at_once_is_named(ssh_host):
    there = ssh_host(shell="echo 'This account is for transfers only.'\nexit 3\n")
    failed = fail(there.address)
    assert failed.id == "ssh-shell"
    assert failed.message == "the login shell on `there` ended before it ran what it was given"
    assert "exit code 3" in failed.cause
    assert "This account is for transfers only." in failed.cause
    assert "`ssh there true`" in failed.hint


def test_a_login_shell_that_hangs_is_given_up_in_time_and_named(ssh_host, monkeypatch):
    there = ssh_host(shell="echo 'Choose a project:'\nsleep 60; :\n")
    hurry_after(b"Choose a project:", monkeypatch)
    with pytest.raises(remoter.ConnectError, match="login shell on `there` does not run") as caught:
        remoter.connect(there.address)
    assert "Choose a project:" in caught.value.cause
    check_left(there)


def test_login_files_that_hang_are_given_up_in_time_and_ended(ssh_host, monkeypatch):
    there = ssh_host(shell="bash")
    (there.home / ".profile").write_text("echo 'Loading modules'; sleep 61; :\n")
    hurry_after(b"Loading modules", monkeypatch)
    with pytest.raises(remoter.ConnectError, match="login shell on `there` does not run"):
        remoter.connect(there.address)
    wait_for(lambda: not there.processes(), what="nothing hangs there any more")


def test_a_prelude_that_hangs_is_given_up_and_named(ssh_host, monkeypatch):
    there = ssh_host()
    monkeypatch.setattr(_answer, "STARTING", 1.0)
    with pytest.raises(remoter.ConnectError, match="the prelude on there takes longer than 1 s"):
        remoter.connect(there.address, prelude="sleep 62; :")
    wait_for(lambda: not there.processes(), what="nothing hangs there any more")


def test_a_prelude_that_fails_is_told_with_what_it_said(ssh_host):
    there = ssh_host()
    failed = fail(there.address, "--prelude", "echo 'module: R/4.9 not found' >&2; exit 3")
    assert (failed.id, failed.message) == ("prelude", "the prelude failed on there")
    assert failed.cause == "module: R/4.9 not found"
    assert not there.records()


# --- what is installed there -----------------------------------------------------------------


def test_without_remoter_there_are_three_ways_to_go_on(ssh_host):
    there = ssh_host(remoter=False)
    failed = fail(there.address)
    assert (failed.id, failed.message) == ("no-remoter", "no remoter on there")
    assert len(failed.hints) == 3
    assert f"`remoter client {there.address} --install`" in failed.hint
    assert str(there.root / "bin" / "python3") in failed.cause


def place_python(there, version):
    """Another python3 there: of that version, or none."""
    python = there.root / "bin" / "python3"
    python.unlink()
    if version:
        python.write_text(f'#!/bin/sh\n[ "$1" = -V ] && echo "Python {version}" && exit\nexit 2\n')
        python.chmod(0o755)
    else:
        python.write_text("")
        paths = os.pathsep.join([str(there.root / "bin"), str(there.root / "tools")])
        (there.root / "tools").mkdir()
        for name in (
            "sh",
            "bash",
            "cat",
            "rm",
            "sleep",
            "uname",
            "tail",
            "sed",
            "ps",
            "flock",
            "mkdir",
            "env",
        ):
            if found := shutil.which(name, path=os.pathsep.join(SYSTEM_PATH)):
                (there.root / "tools" / name).symlink_to(found)
        login = there.root / "login"
        login.write_text(re.sub(r"(?m)^PATH=.*$", f"PATH={paths}; export PATH", login.read_text()))
        (there.home / ".profile").write_text(f"PATH={paths}; export PATH\n")


@pytest.mark.parametrize(("version", "says"), [("", "nor is there a `python3`"), ("3.7.17", "3.7.17")])
def test_an_old_python_or_none_is_named(ssh_host, version, says):
    there = ssh_host(remoter=False)
    place_python(there, version)
    failed = fail(there.address)
    assert failed.id == "no-remoter"
    assert says in failed.cause


def place_other_protocol(there):
    """A copy of the package there, which speaks another protocol, first on PATH."""
    package = Path(remoter.__file__).parent
    copy = there.root / "other" / "remoter"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    messages = copy / "_messages.py"
    changed = messages.read_text().replace("PROTOCOL = (1, 1)", "PROTOCOL = (7, 7)")
    messages.write_text(changed)
    program = there.root / "bin" / "remoter"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={copy.parent} exec {sys.executable} -m remoter "$@"\n')
    program.chmod(0o755)
    return program


def test_another_protocol_there_is_named_with_the_command_that_mends_it(ssh_host):
    there = ssh_host()
    program = place_other_protocol(there)
    failed = fail(there.address)
    assert failed.id == "version"
    [record] = there.records()
    host, version = record["host"], remoter.__version__
    assert failed.message == f"session `main` on {host} and this client have no protocol in common"
    assert failed.cause == f"remoter {version} started it, here is {version}"
    assert f"`remoter client {there.address} --install` puts remoter {version} there" in failed.hint
    assert f"`remoter stop {there.address}/main`" in failed.hint
    ended = run("stop", f"{there.address}/main")
    assert ended.returncode == 0, ended.stderr
    wait_for(lambda: not there.processes(), what="it has ended")
    program.unlink()
    check_answers(there.address)


# --- names and preludes ----------------------------------------------------------------------

NASTY = 'x\'; touch pwned; "$(touch pwned)" `touch pwned`\ntouch pwned #'


@pytest.mark.parametrize(
    "name", ["a b", "a'b", "$(touch pwned)", "a;touch pwned", "a\nb", "../x", "-c", "%2e%2e"]
)
def test_no_name_is_run(ssh_host, name):
    there = ssh_host()
    done = run("batch", f"{there.address}/{name}", "-c", "1")
    failed = Failed(done, done.returncode)
    assert done.returncode in (2, 255)
    assert not list(there.root.rglob("pwned")) and not Path("pwned").exists(), failed.text


def test_a_prelude_may_have_quotes_and_lines_and_only_it_is_run(ssh_host):
    there = ssh_host()
    prelude = "export ODD='it'\"'\"'s $HOME'\n# $(touch pwned)\nexport LINES2=\"a\nb\""
    done = run(
        "batch",
        there.address,
        "--prelude",
        prelude,
        "-c",
        "import os; os.environ['ODD'], os.environ['LINES2']",
    )
    assert done.stdout == "(\"it's $HOME\", 'a\\nb')\n", done.stderr
    assert not list(there.root.rglob("pwned"))


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=touch${IFS}pwned", "a`touch pwned`", "$(touch pwned)", "a b"]
)
def test_no_host_is_an_option_or_a_command(ssh_host, host, home, monkeypatch):
    ssh_host()
    (home / "empty").mkdir()
    monkeypatch.chdir(home / "empty")
    failed = Failed(run("batch", f"ssh://{host}", "-c", "1"), 2)
    assert failed.id == "address"
    assert not list((home / "empty").iterdir())


# --- places there ----------------------------------------------------------------------------


def test_a_socket_path_that_is_too_long_here_makes_way_for_a_short_one(ssh_host, home, monkeypatch):
    there = ssh_host()
    monkeypatch.setenv("REMOTER_RUNTIME_DIR", str(home / ("long-" * 20)))
    check_answers(there.address)


def test_a_socket_path_that_is_too_long_there_is_told_as_it_is_there(ssh_host, home):
    there = ssh_host(environment={"REMOTER_RUNTIME_DIR": str(home / ("long-" * 20))})
    failed = fail(there.address)
    assert (failed.id, failed.message) == ("start", "no session could be started on there")
    assert "too long" in failed.cause
    assert "REMOTER_RUNTIME_DIR" in failed.hint
    wait_for(lambda: not there.processes(), what="nothing is left there")


def test_two_commands_that_start_in_the_same_moment_share_one_session(ssh_host):
    there = ssh_host()
    words = [*REMOTER, "batch", f"{there.address}/main", "-c", "import os; os.getpid()"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [each.communicate(timeout=40)[0] for each in both]
    assert said[0] == said[1] != ""
    assert len(there.records()) == 1


def test_a_stale_connection_file_is_no_session_also_when_its_pid_is_used_again(ssh_host):
    there = ssh_host()
    check_answers(there.address)
    [path] = (there.state / "servers").glob("*.json")
    stale = path.read_text()
    pid = there.records()[0]["pid"]
    there.end_sessions()
    path.write_text(stale.replace(f'"pid":{pid}', f'"pid":{os.getpid()}'))
    path.chmod(0o600)
    done = run("batch", there.address, "--no-start", "-c", "1")
    assert Failed(done).id == "no-session"
    check_answers(there.address)
    assert there.records()[0]["pid"] not in (pid, os.getpid())


def play_host(there, name):
    """From now on that machine says that it is another one."""
    program = there.root / "bin" / "uname"
    program.write_text(
        f'#!/bin/sh\n[ "$*" = "-s -n -m" ] && echo Linux {name} x86_64 && exit\nexec /usr/bin/uname "$@"\n'
    )
    program.chmod(0o755)


def test_in_a_home_of_several_machines_each_has_its_own_session_of_a_name(ssh_host):
    there = ssh_host()
    check_answers(there.address)
    [path] = (there.state / "servers").glob("*.json")
    here = there.records()[0]["host"]
    elsewhere = path.with_name("node17-main.json")
    elsewhere.write_text(path.read_text().replace(f'"host":"{here}"', '"host":"node17"'))
    elsewhere.chmod(0o600)
    there.end_sessions()
    done = check_answers(there.address)
    assert f"-- started `main` on {here}; `main` runs on node17; there leads to {here}" in done.stderr
    listed = run("ls", there.address).stdout
    assert re.search(rf"^main +{here} +Python .* idle", listed, re.MULTILINE), listed
    assert re.search(r"^main +node17 +Python +on node17", listed, re.MULTILINE), listed
    failed = Failed(run("batch", f"{there.address}/other", "--no-start", "-c", "1"))
    assert failed.id == "no-session"
    elsewhere.unlink()


def test_another_login_node_of_the_same_home_is_not_taken_for_the_session_s(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as session:
        host = session.info.host
        play_host(there, "login2")
        there.kill_masters()
        reason = f"ssh to there leads to login2 now; the session is on {host}"
        wait_for(lambda: reason in session._link.state.detail, what="it is said where ssh leads")
        (there.root / "bin" / "uname").unlink()
        assert session.run("6 * 7", timeout=30).text == "42"


@pytest.mark.parametrize("what", ["state", "journal", "run"])
def test_a_full_disk_there_is_told(ssh_host, what):
    there = ssh_host()
    directory = getattr(there, {"run": "runtime"}.get(what, what))
    directory.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2,mode=0700", "remoter-test", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with contextlib.suppress(OSError):
            (directory / "full").write_bytes(b"x" * 8192)
        done = run("batch", there.address, "-c", "1 + 1")
        if done.returncode:  # what a session can do without its journal, it does
            failed = Failed(done)
            assert failed.id == "start"
            assert re.search("No space left|full", failed.text), failed.text
            assert str(directory) in failed.text, failed.text
        there.end_sessions()
        wait_for(lambda: not there.processes(), what="nothing is left there")
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_limit_of_file_sizes_there_is_told(ssh_host):
    there = ssh_host()
    failed = fail(there.address, "--prelude", "ulimit -f 0")
    assert failed.id == "start"
    assert "File too large" in failed.text, failed.text
    wait_for(lambda: not there.processes(), what="nothing is left there")


# --- ways that are closed, and ways of the user's own ----------------------------------------


@pytest.mark.parametrize("most", [10, 1])
def test_where_forwarding_is_forbidden_there_is_a_bridge_also_with_one_channel_only(ssh_host, most):
    there = ssh_host(forwarding=False, max_sessions=most)
    with remoter.connect(there.address) as session:
        assert session.run("6 * 7").text == "42"
        there.kill_masters()
        assert session.run("6 * 8", timeout=30).text == "48"
    check_left(there)


def test_with_one_channel_only_a_killed_server_is_come_back_to(ssh_host):
    there = ssh_host(max_sessions=1)
    with remoter.connect(there.address) as session:
        session.run("x = 42")
        os.kill(session.info.server_pid, signal.SIGKILL)
        assert session.run("x", timeout=30).text == "42"
        assert session._target.ssh.tunnel is None, "it still forwards"


def test_a_jump_host_that_dies_and_comes_back(ssh_host):
    gate = ssh_host("gate")
    node = ssh_host("node", jump=gate)
    with remoter.connect(node.address) as session:
        run_ = session.submit(COUNT.format(n=60, pause=0.02))
        gate.stop()
        wait_for(lambda: session.info.link == "lost", what="the loss is seen")
        wait_for(lambda: "ProxyJump" in session._link.state.detail, what="it is said where it fails")
        gate.start()
        assert numbers(run_.wait(30).stdout) == list(range(60))
    gate.stop()
    failed = fail(node.address)
    assert "ProxyJump" in failed.text
    assert failed.id.startswith("ssh")
    gate.start()


@pytest.fixture
def own_master(home):
    """Starts a master of the user's own for a host; ends it."""
    hosts = []

    def check(there):
        words = ["ssh", "-O", "check", there.name]
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stderr

    def start(there):
        hosts.append(there)
        there.config(f"ControlMaster auto\nControlPath {home}/cm-%n\nControlPersist 60")
        assert there.ssh("true").returncode == 0
        return int(re.search(r"pid=(\d+)", check(there))[1])

    yield start
    for there in hosts:
        subprocess.run(["ssh", "-O", "exit", there.name], capture_output=True, timeout=20)


def sockets_of(pid):
    """What that process has open, beside what comes and goes."""
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed just now
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sorted(link.partition(":")[0] for link in links)


def test_a_master_of_the_user_s_own_is_used_and_left_as_it_was(ssh_host, own_master, home, monkeypatch):
    there = ssh_host()
    monkeypatch.setattr(_ssh, "CHECKED", 15.0)
    pid = own_master(there)
    before = sockets_of(pid)
    with remoter.connect(there.address) as session:
        assert session.run("6 * 7").text == "42"
        assert there.log.count("Accepted publickey") == 1, "nobody is asked twice"
    check_answers(there.address)
    assert "main" in run("ls", there.address).stdout
    assert there.log.count("Accepted publickey") == 1
    assert is_alive(pid)
    # `before` may hold what ssh was just closing: less is as good as the same.
    wait_for(
        lambda: not collections.Counter(sockets_of(pid)) - collections.Counter(before),
        what="nothing of ours is left in it",
    )
    assert (home / "cm-there").is_socket()


def test_the_death_of_the_user_s_own_master_is_survived(ssh_host, own_master):
    there = ssh_host()
    pid = own_master(there)
    with remoter.connect(there.address) as session:
        run_ = session.submit(COUNT.format(n=50, pause=0.02))
        os.kill(pid, signal.SIGKILL)
        assert numbers(run_.wait(30).stdout) == list(range(50))
        # More than one, if a channel logs in by itself before it is seen that the master is gone.
        assert there.log.count("Accepted publickey") >= 2
        wait_for(lambda: len(there.masters()) == 1, what="one master, of our own")
    check_left(there)


@pytest.mark.parametrize("what", ["master", "connection"])
def test_a_master_of_the_user_s_own_that_hangs_is_left_alone(ssh_host, own_master, what, monkeypatch):
    there = ssh_host()
    monkeypatch.setattr(_ssh, "CHECKED", 0.5)
    pid = own_master(there)
    stopped = [pid] if what == "master" else there.connections
    for each in stopped:
        os.kill(each, signal.SIGSTOP)
    try:
        with remoter.connect(there.address, timeout=5) as session:
            assert session.run("6 * 7").text == "42"
    finally:
        for each in stopped:
            os.kill(each, signal.SIGCONT)
    assert is_alive(pid)


def test_no_master_of_the_user_s_own_is_begun(ssh_host, home):
    there = ssh_host()
    there.config(f"ControlMaster auto\nControlPath {home}/cm-%n\nControlPersist 60")
    check_answers(there.address)
    assert "main" in run("ls", there.address).stdout
    assert not (home / "cm-there").exists()
    check_left(there)


# --- leaving at each step --------------------------------------------------------------------


def check_left(there):
    """No ssh, and no directory of one."""
    wait_for(
        lambda: not there.network.clients(), 10, what="no ssh runs"
    )  # sooner than one gives up by itself
    wait_for(lambda: not ssh_directories(there.network.root), 10, what="no directory is left")


STEPS = {
    "login": {},
    "shell": {"shell": "sleep 60; :\n"},
    "login files": {"shell": "bash"},
    "prelude": {},
    "start": {},
    "run": {},
}


@contextlib.contextmanager
def ended(process):
    """Killed at the end, however that comes."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def begin_step(there, step):
    """A command that stays in that step; returns when it is there."""
    words = [*REMOTER, "batch", there.address, "-c", "print('in', flush=True); import time; time.sleep(60)"]
    note = there.root / "note"
    if step == "login":
        there.freeze()
    elif step == "login files":
        (there.home / ".profile").write_text(f"touch {note}; sleep 60; :\n")
    elif step == "prelude":
        words += ["--prelude", f"touch {note}; sleep 60; :"]
    elif step == "start":
        program = there.root / "bin" / "remoter"
        program.write_text(f"#!/bin/sh\ntouch {note}\nexec sleep 60\n")
        program.chmod(0o755)
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    process = subprocess.Popen(words, **options)
    if step == "run":
        assert process.stdout.readline() == "in\n"
    elif step == "shell":
        wait_for(lambda: any(b"sleep" in read_of(pid, "cmdline") for pid in there.players()), what=step)
    elif step == "login":
        wait_for(lambda: there.clients() and there.proxy.pairs, what=step)
    else:
        wait_for(note.exists, what=step)
    return process


def test_ctrl_c_ends_a_list_at_once(ssh_host):
    there = ssh_host()
    there.freeze()
    words = [*REMOTER, "ls", there.address]
    with ended(subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)) as process:
        wait_for(lambda: there.clients() and there.proxy.pairs, what="it logs in")
        process.send_signal(signal.SIGINT)
        assert process.wait(AT_ONCE) == 130
    check_left(there)


def end_step(there, step):
    """What was made to hang there is no matter of the client's."""
    there.thaw()

    def is_over():
        for pid in there.processes() if step == "start" else []:
            if words_of(pid)[:1] == ["sleep"]:  # it leaves its note before it becomes that
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return step == "run" or set(there.processes()) <= set(there.players())

    wait_for(is_over, what="nothing runs there")


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_ends_at_once_at_each_step(ssh_host, step):
    there = ssh_host(**STEPS[step])
    process = begin_step(there, step)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert time.monotonic() - began < AT_ONCE
    assert ("error" not in said and "Traceback" not in said) or step == "run", said
    check_left(there)
    end_step(there, step)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_client_leaves_no_ssh_behind_at_each_step(ssh_host, step):
    there = ssh_host(**STEPS[step])
    process = begin_step(there, step)
    process.kill()
    process.communicate(timeout=20)
    if step == "start":  # what starts there is waited for there
        end_step(there, step)
    wait_for(lambda: not there.network.clients(), what="no ssh runs")
    end_step(there, step)


def test_a_killed_client_s_ssh_to_a_jump_host_ends_too(ssh_host):
    gate = ssh_host("gate")
    node = ssh_host("node", jump=gate)
    gate.freeze()
    process = subprocess.Popen([*REMOTER, "batch", node.address, "-c", "1"], stdin=subprocess.DEVNULL)
    wait_for(lambda: gate.clients() and gate.proxy.pairs, what="it logs in")
    process.kill()
    process.wait(20)
    wait_for(lambda: not node.network.clients(), what="no ssh runs")


def in_terminal(*words):
    return Terminal([*REMOTER, *words], env=dict(os.environ))


@pytest.mark.parametrize("how", ["ctrl-c", "killed", "hung up"])
def test_nothing_is_left_when_the_person_does_not_answer_ssh(ssh_host, how):
    there = ssh_host(passphrase="otter")
    # A shell, as people have one: it goes on when the command has ended.
    script = f"{' '.join(REMOTER)} client {there.address}; echo code $?; stty -a | grep -o -- '-*echo '; read -r line"
    with Terminal(["/bin/bash", "-i", "-c", script], env={**os.environ, "PS1": ""}) as terminal:
        terminal.expect("Enter passphrase for key")
        [client] = there.network.clients()
        parent = int(re.search(r"PPid:\s+(\d+)", read_of(client, "status").decode())[1])
        if how == "ctrl-c":
            terminal.type("\x03")
            terminal.expect("code 130")
            terminal.expect(re.compile(r"^echo$", re.MULTILINE))
        elif how == "killed":
            os.kill(parent, signal.SIGKILL)
            terminal.expect("code 137")
        else:
            terminal.close()
        wait_for(lambda: not there.clients() and not is_alive(parent), what="neither ssh nor the client runs")


def test_a_passphrase_is_asked_for_on_the_terminal_and_opens_the_way(ssh_host):
    there = ssh_host(passphrase="otter")
    with in_terminal("batch", there.address, "-c", "6 * 7") as terminal:
        terminal.expect("Enter passphrase for key")
        terminal.type("otter\r")
        assert terminal.expect_end() == 0
        assert terminal.screen().rstrip().endswith("42")
    check_left(there)


# --- one client over a long time -------------------------------------------------------------


def test_an_ssh_that_is_killed_again_and_again_is_replaced_each_time_without_leaks(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as session:
        counts = []
        for number in range(20):
            if number:
                there.kill_masters()
            assert session.run(f"6 * {number}", timeout=30).text == str(6 * number)
            session._link.wait = session._link.pace.first_wait  # who is killed once a minute waits no longer
            wait_for(lambda: len(there.masters()) == 1, what="one master")
            if number in (5, 6, 7):
                counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
        descriptors, threads = map(max, zip(*counts, strict=True))
        # The last of an old ssh may still be closing; a leak stays.
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, what=f"descriptors as in {counts}")
        wait_for(lambda: threading.active_count() <= threads, what=f"threads as in {counts}")
    check_left(there)


def test_an_ssh_that_is_killed_five_times_in_a_row_is_replaced(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as session:
        run_ = session.submit(COUNT.format(n=40, pause=0.02))
        for _ in range(5):
            wait_for(there.kill_masters, what="an ssh to kill")
        assert numbers(run_.wait(30).stdout) == list(range(40))


def test_closing_takes_milliseconds_and_those_there_hear_of_it(ssh_host, monkeypatch):
    monkeypatch.setattr(_ssh, "GRACE", 20.0)  # ssh is not hurried: it ends by itself
    for there in [ssh_host(), ssh_host("strict", forwarding=False)]:
        closed, heard = [], []
        with remoter.connect(there.address) as witness:
            # Once is enough: each may come upon a moment in which the machine stands still.
            while len(closed) < 2 or ((min(closed) >= 0.4 or min(heard) >= 3) and len(closed) < 8):
                session = remoter.connect(there.address)
                assert session.run("1").text == "1"
                assert len(witness.info.clients) == 2
                began = time.monotonic()
                session.close()
                closed.append(time.monotonic() - began)
                wait_for(lambda witness=witness: len(witness.info.clients) == 1, what="it was heard")
                heard.append(time.monotonic() - began)
        assert max(closed) < AT_ONCE, closed
        assert min(closed) < 0.4, closed
        assert min(heard) < 3, heard  # by a goodbye: without one it takes 4 s
        check_left(there)


def test_closing_is_quick_where_nobody_answers_any_more(ssh_host):
    there = ssh_host()
    session = remoter.connect(there.address)
    there.freeze()
    began = time.monotonic()
    session.close()
    assert time.monotonic() - began < AT_ONCE
    check_left(there)


@pytest.mark.parametrize("how", ["frozen", "refused"])
def test_closing_does_not_wait_for_a_reconnect_that_is_under_way(ssh_host, how):
    there = ssh_host()
    session = remoter.connect(there.address)
    if how == "frozen":
        there.freeze()
        there.kill_masters()
    else:
        there.cut(refuse=True)

    def tries():  # an ssh that is refused has ended before it would be found
        return there.clients() if how == "frozen" else session._target.ssh.lock.locked()

    wait_for(lambda: session.info.link == "lost" and tries(), what="it tries to come back")
    began = time.monotonic()
    session.close()
    assert time.monotonic() - began < AT_ONCE
    check_left(there)
    wait_for(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("remoter-ssh")], what="no thread"
    )


def test_a_session_that_nobody_closes_leaves_nothing_when_it_is_forgotten(ssh_host):
    there = ssh_host()
    session = remoter.connect(there.address)
    assert session.run("1").text == "1"
    assert there.masters()
    del session
    gc.collect()
    check_left(there)


def test_a_program_that_closes_nothing_leaves_nothing(ssh_host):
    there = ssh_host()
    code = f"import remoter; kept = remoter.connect({there.address!r}); print(kept.run('6 * 7').text)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40)
    assert (done.stdout, done.stderr) == ("42\n", "")
    check_left(there)
    # The server may read the goodbye after the question of the list.
    wait_for(lambda: '"clients": 0' in run("ls", there.address, "--json").stdout, what="it was heard there")


FORKS = """
import os, remoter, sys
def say(text):
    os.write(1, (text + "\\n").encode())  # a line in one piece, whoever else writes
session = remoter.connect(sys.argv[1])
read_end, write_end = os.pipe()
child = os.fork()
if child == 0:
    os.close(write_end)
    try:
        session.run("1")
    except remoter.RemoterError as error:
        say(error.id)
    session.close()
    if not os.read(read_end, 1):  # its parent was killed; it lives on until it is told
        sys.stdin.readline()
        sys.exit()
    with remoter.connect(sys.argv[1]) as own:
        say(own.run("6 * 7").text)
    sys.exit()
os.close(read_end)
say(session.run("2 + 2").text)
sys.stdin.readline()
say(session.run("2 + 3").text)
if sys.argv[2] == "closes":
    session.close()
    say("closed")
    sys.stdin.readline()
os.write(write_end, b"x")
os.waitpid(child, 0)
"""


def test_a_process_that_forks_keeps_its_connection_and_the_child_needs_its_own(ssh_host):
    there = ssh_host()
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with ended(
        subprocess.Popen([sys.executable, "-c", FORKS, there.address, "closes"], **options)
    ) as process:
        assert sorted([process.stdout.readline(), process.stdout.readline()]) == ["4\n", "forked\n"]
        process.stdin.write("\n")
        process.stdin.flush()
        assert [process.stdout.readline(), process.stdout.readline()] == ["5\n", "closed\n"]
        wait_for(lambda: not there.masters(), what="the child holds no ssh")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "42\n"
        assert process.wait(20) == 0
    check_left(there)


def test_the_child_of_a_client_that_was_killed_holds_no_ssh(ssh_host):
    there = ssh_host()
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with ended(subprocess.Popen([sys.executable, "-c", FORKS, there.address, "stays"], **options)) as process:
        assert sorted([process.stdout.readline(), process.stdout.readline()]) == ["4\n", "forked\n"]
        process.kill()
        wait_for(lambda: not there.masters(), what="ssh ends with the client")


def test_many_threads_use_sessions_and_their_events_over_losses(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as first, remoter.connect(there.address) as second:
        assert first.info.pid == second.info.pid
        heard = [[], [], []]
        streams = [session.events(all=True) for session in (first, first, second)]

        def listen(stream, texts):
            for event in stream:
                if event.kind == "stdout":
                    texts.append(event.text)
                    if "".join(texts).count("\n") == 12:
                        return

        def work(session, number):
            for part in range(3):
                session.run(f"print('{number}.{part}')", quiet=True, timeout=30)

        threads = [threading.Thread(target=listen, args=pair) for pair in zip(streams, heard, strict=True)]
        threads += [threading.Thread(target=work, args=((first, second)[n % 2], n)) for n in range(4)]
        for thread in threads:
            thread.start()
        there.kill_masters()
        for thread in threads:
            thread.join(40)
            assert not thread.is_alive()
        lines = ["".join(texts).split() for texts in heard]
        assert lines[0] == lines[1] == lines[2]
        assert sorted(lines[0]) == sorted(f"{n}.{part}" for n in range(4) for part in range(3))
        for stream in streams:
            stream.close()
    check_left(there)


# --- passwords, and sessions that are not secure ---------------------------------------------


def test_a_password_is_refused_where_none_is_needed(ssh_host, home):
    there = ssh_host()
    with pytest.raises(remoter.AddressError, match="no password is needed") as caught:
        remoter.connect(there.address, password="secret")
    assert "leave the password out" in str(caught.value)
    assert "secret" not in str(caught.value)
    (home / "password").write_text("secret\n")
    (home / "password").chmod(0o600)
    failed = fail(there.address, "--password-file", str(home / "password"), code=2)
    assert "no password is needed" in failed.message
    assert not there.records()


def test_a_password_in_the_environment_is_for_other_servers(ssh_host, monkeypatch):
    there = ssh_host()
    monkeypatch.setenv("REMOTER_PASSWORD", "secret")
    check_answers(there.address)
    assert run("ls", there.address).returncode == 0
    stopped = run("stop", f"{there.address}/main")
    assert stopped.returncode == 0, stopped.stderr


def test_a_session_that_is_not_secure_says_so_also_through_ssh(ssh_host):
    there = ssh_host()
    started = there.ssh("remoter", "server", "--background", "--insecure", "--port", "0")
    assert started.returncode == 0, started.stderr
    failed = fail(there.address)
    assert failed.id == "insecure"
    assert "`--insecure`" in failed.hint
    done = run("batch", there.address, "-c", "6 * 7", "--insecure")
    assert done.stdout == "42\n", done.stderr
    assert "main" in run("ls", there.address).stdout
    check_left(there)


# --- a far side that means no good -------------------------------------------------------------


ANSWERS = """
while IFS= read -r line; do case $line in text=*nonce=*) mark=${{line#*nonce=}}; break ;; esac; done
say() {{ printf "remoter:$mark %b\\n" "$1"; }}
{lines}
sleep 20
"""


def answering(*lines):
    """A login shell that knows our mark, and says what it likes."""
    return ANSWERS.format(lines="\n".join(lines))


def test_control_characters_of_the_other_side_never_reach_the_terminal(ssh_host):
    pwn = "\\033]0;pwn\\007"
    there = ssh_host(
        shell=answering(
            f'say "hello L x ho{pwn}st"',
            f'say "failed start 1"; say "said error: no {pwn} way"; say "said hint: {pwn}"; say end',
        )
    )
    for words in (["batch", there.address, "-c", "1"], ["ls", there.address], ["stop", there.address]):
        done = run(*words)
        assert done.returncode == 255, done
        assert "pwn" in done.stderr
        assert "\x1b" not in done.stderr + done.stdout


def test_an_endless_line_is_not_kept():
    reader = _bootstrap.Reader("abc")
    for _ in range(64):
        assert reader.feed(b"remoter:abc record " + b"x" * 1_000_000) == []
    assert len(reader._pending) <= 2 * _bootstrap.LONGEST_LINE
    assert len(reader.noise) <= _bootstrap.NOISE


def test_who_says_the_same_again_and_again_is_given_up(ssh_host):
    there = ssh_host(shell=answering("while :; do say 'hello L x host'; sleep 0.1; done"))
    began = time.monotonic()
    with pytest.raises(remoter.ConnectError):
        remoter.connect(there.address, timeout=1)
    assert time.monotonic() - began < 8


def test_a_connection_file_that_cannot_be_read_harms_no_other(ssh_host):
    there = ssh_host()
    assert run("batch", there.address, "-c", "x = 1").returncode == 0
    [record] = (there.state / "servers").glob("*.json")
    bad = record.with_name(record.name.replace("main", "bad"))
    bad.write_text(record.read_text().replace('"main"', '"bad"')[:-40])
    bad.chmod(0o600)
    assert run("batch", there.address, "-c", "x").stdout == "1\n"
    failed = fail(f"{there.address}/bad", "--no-start")
    assert failed.message == "cannot read a connection file on there"
    assert "`remoter ls`" in failed.hint


def test_a_hanging_login_shell_is_named_by_commands_that_run_there_too(ssh_host, monkeypatch):
    monkeypatch.setattr(_answer, "ASKED", 1.0)
    there = ssh_host(shell="sleep 20; exit")
    with pytest.raises(remoter.ConnectError, match="login shell"):
        run_there(Saved(parse(there.address)), ["ls"])


def test_a_person_who_waits_for_a_login_is_told_and_it_ends(ssh_host, monkeypatch, capfd):
    monkeypatch.setattr(_ssh, "can_ask_on_terminal", lambda: True)
    monkeypatch.setattr(_answer, "WAITING", 0.2)
    monkeypatch.setattr(_channel, "CONNECTING", "4")
    there = ssh_host()
    there.freeze()
    with pytest.raises(remoter.ConnectError, match=r"no answer|timed out"):
        remoter.connect(there.address)
    assert (
        "-- ssh has not logged in to there yet; if it asks nothing, Ctrl-C gives up" in capfd.readouterr().err
    )


def test_a_login_in_which_somebody_may_be_asked_ends_some_time_too(ssh_host, monkeypatch):
    monkeypatch.setattr(_ssh, "can_ask_on_terminal", lambda: True)
    monkeypatch.setattr(_answer, "ANSWERING", 0.5)
    there = ssh_host()
    there.freeze()
    with pytest.raises(remoter.ConnectError, match="no answer from `there`"):
        remoter.connect(there.address)


def test_a_program_that_is_no_command_is_told(monkeypatch):
    monkeypatch.setenv("REMOTER_SSH", "ssh 'x")
    failed = fail("ssh://there")
    assert failed.message == "the variable REMOTER_SSH is no command"
