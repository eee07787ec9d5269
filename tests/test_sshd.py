"""The ssh hosts that other tests use, themselves."""

import os
import signal
import subprocess
import sys

import pytest

from . import sshd
from .processes import read_of
from .waiting import is_alive, wait_for


def test_a_command_runs_in_the_other_sides_home_and_directories(ssh_host, home):
    there = ssh_host(environment={"COLOUR": "a 'deep' blue"})
    done = there.ssh('pwd; echo "$HOME $REMOTER_STATE_DIR $COLOUR"; command -v remoter; exit 7')
    assert done.returncode == 7
    assert done.stdout.splitlines() == [
        str(there.home),
        f"{there.home} {there.state} a 'deep' blue",
        os.path.join(os.path.dirname(sys.executable), "remoter"),
    ]
    assert done.stderr == ""
    assert there.ssh("bash -lc 'command -v remoter'").returncode == 0


def test_a_host_without_remoter_has_another_python(ssh_host):
    there = ssh_host(remoter=False)
    for login in ("", "-l"):
        done = there.ssh(
            f"bash {login} -c 'command -v remoter; python3 -m remoter; python3 -c \"print(6 * 7)\"'"
        )
        assert done.stdout == "42\n"
        assert "No module named remoter" in done.stderr


def test_a_session_there_is_ended_after_the_test(ssh_host):
    there = ssh_host()
    done = there.ssh("remoter server --background --json --port 0")
    assert done.returncode == 0, done
    assert [record["pid"] for record in there.records()]
    assert there.records()[0]["pid"] in there.processes()
    assert there.clients() == []


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh", "tcsh", "fish"])
def test_the_login_shell_is_the_one_asked_for(ssh_host, shell):
    there = ssh_host(shell=shell)
    assert os.path.basename(there.ssh("echo $SHELL").stdout.strip()) == shell
    pid = "$fish_pid" if shell == "fish" else "$$"
    assert shell in there.ssh(f"readlink /proc/{pid}/exe; true").stdout or shell == "sh"


def test_a_script_plays_the_login_shell(ssh_host):
    there = ssh_host(shell='echo welcome; read line; echo "ate $line"; exec /bin/sh "$@"')
    assert there.ssh("cat", input="first\nsecond\n").stdout == "welcome\nate first\nsecond\n"
    stuck = ssh_host("stuck", shell="while :; do sleep 1000; done")
    with running(stuck, "true") as process:
        wait_for(stuck.players, what="the script runs")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()


def test_one_host_is_reached_through_another(ssh_host):
    door = ssh_host("door")
    there = ssh_host(jump=door)
    with running(there, "cat") as process:
        wait_for(lambda: door.masters() and there.masters())
        assert process.pid in there.masters()
        assert process.pid not in door.masters()


def running(there, *words):
    return Running(["ssh", there.name, *words])


class Running(subprocess.Popen):
    """A program that is ended by the end of its input."""

    def __init__(self, words):
        super().__init__(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def line(self):
        return self.stdout.readline().decode()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"accept_key": "unknown"}, "Host key verification failed"),
        ({"accept_key": "changed"}, "REMOTE HOST IDENTIFICATION HAS CHANGED"),
        ({"auth": "none"}, r"Permission denied (publickey)"),
        ({"auth": "password"}, r"Permission denied (password)"),
        ({"passphrase": "secret"}, r"Permission denied (publickey)"),
    ],
)
def test_a_host_can_refuse(ssh_host, options, says):
    done = ssh_host(**options).ssh("true")
    assert done.returncode == 255
    assert says in done.stderr


def test_ssh_asks_for_a_passphrase(ssh_host, home, monkeypatch):
    ssh_host(passphrase="secret")
    (home / "ask").write_text("#!/bin/sh\necho secret\n")
    (home / "ask").chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(home / "ask"))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    assert subprocess.run(["ssh", "there", "echo", "in"], capture_output=True, text=True).stdout == "in\n"


def test_a_host_can_forbid_forwarding_and_more_sessions(ssh_host, home):
    there = ssh_host(forwarding=False, max_sessions=1)
    with running(there, "-M", "-S", f"{home}/cm", "echo up; cat") as master:
        assert master.line() == "up\n"
        assert there.masters() == [master.pid]
        words = ["-S", f"{home}/cm", "-O", "forward", "-L", f"{home}/s:{home}/none"]
        assert subprocess.run(["ssh", *words, "there"], capture_output=True).returncode == 0  # not told here
        with Running(["ssh", "-W", "127.0.0.1:1", "there"]) as other:
            assert b"administratively prohibited" in other.stderr.read()
        words = ["ssh", "-S", f"{home}/cm", "there", "true"]
        assert b"refused" in subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL).stderr


def test_the_network_between_is_cut_and_frozen(ssh_host):
    there = ssh_host()
    with running(there, "echo up; cat") as process:
        assert process.line() == "up\n"
        assert there.connections
        there.freeze()
        process.stdin.write(b"late\n")
        process.stdin.flush()
        there.thaw()
        assert process.line() == "late\n"
        there.cut(refuse=True)
        assert process.wait(30) == 255
    assert there.ssh("true").returncode == 255
    there.mend()
    assert there.ssh("true").returncode == 0
    there.stop()
    assert there.connections == []
    assert there.ssh("true").returncode == 255
    there.start()
    assert there.ssh("true").returncode == 0


def test_masters_are_found_and_killed(ssh_host):
    there = ssh_host()
    with running(there, "echo up; cat") as process:
        assert process.line() == "up\n"
        assert there.kill_masters() == [process.pid]
        assert process.wait(30) == -signal.SIGKILL


def test_what_a_test_leaves_behind_is_told_and_ended(ssh_host, home):
    there = ssh_host()
    with running(there, "-n", "echo up; sleep 1000") as client:
        assert client.line() == "up\n"
        done = there.ssh("setsid sleep 1001 >/dev/null 2>&1 </dev/null & echo $!")
        asleep = int(done.stdout)
        complaints = ssh_host.close(patience=0.2)
        ssh_host.hosts.clear()
        assert any("ssh client that nobody ended" in line for line in complaints)
        assert any(f"left at there: {asleep}" in line for line in complaints)
    with subprocess.Popen(["sleep", "1002"]) as near:
        wait_for(lambda: bytes(home) in read_of(near.pid, "environ"), what="its environment can be seen")
        with pytest.raises(AssertionError, match=f"still runs: {near.pid}"):
            sshd.check_nothing_left(home, patience=0.2)
        assert near.wait(30) == -signal.SIGTERM
    assert not is_alive(asleep)
