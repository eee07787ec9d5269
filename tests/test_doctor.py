"""`remoter doctor ssh://host`, through real sshds: where it breaks, and what it says to do."""

import json
import os
import time

import pytest

from remoter import _cli, _doctor, _doctor_ssh, _saved, _ssh
from remoter._address import parse

from .sshd import processes_of
from .test_ssh import hurry_after, ssh_directories
from .waiting import wait_for

STEPS = [
    "ssh",
    "configuration",
    "connection",
    "host key",
    "authentication",
    "login shell",
    "python",
    "remoter",
    "R",
    "session",
    "forwarding",
    "key",
    "round trip",
    "rate",
    "terminal",
]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """A machine that has much to do is no slow network."""
    for name, value in [("SLOW", 1), ("SLOW_ECHO", 60.0), ("PATIENCE", 30.0)]:
        monkeypatch.setattr(_doctor_ssh, name, value)


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def examine(address):
    """The steps by name."""
    steps = list(_doctor.examine(address))
    assert [step["step"] for step in steps] == STEPS
    for step in steps:
        assert _doctor.shown(step).replace("\n", "").isprintable()
    return {step["step"]: step for step in steps}


def marks(steps):
    return {name: step["mark"] for name, step in steps.items()}


def assert_breaks_at(steps, name):
    """That step is bad, all before it are fine, and nothing after it was tried but the terminal."""
    at = STEPS.index(name)
    assert steps[name]["mark"] == "bad", steps
    assert {steps[step]["mark"] for step in STEPS[:at]} <= {"ok", "note"}
    assert {steps[step]["mark"] for step in STEPS[at + 1 : -1]} <= {"skip"}
    assert steps[name]["do"]
    return steps[name]["seen"], "\n".join(steps[name]["do"])


def start_session(there, *options):
    done = there.ssh("remoter", "server", "--background", "--json", "--port", "0", *options)
    assert done.returncode == 0, done.stderr


def test_all_is_well(ssh_host, capsys):
    there = ssh_host()
    start_session(there)
    code = _cli.main(["doctor", there.address, "--json"])
    said = capsys.readouterr().out
    steps = {step["step"]: step for step in json.loads(said)}
    assert code == 0, said
    assert list(steps) == STEPS
    assert {steps[step]["mark"] for step in STEPS[:-1]} == {"ok"}, steps
    assert "OpenSSH_" in steps["ssh"]["seen"]
    assert f"port {there.proxy.port}" in steps["configuration"]["seen"]
    assert "`main`, Python" in steps["session"]["seen"]
    assert "ssh and the network alone" in steps["round trip"]["seen"]
    assert "B/s" in steps["rate"]["seen"]
    wait_for(lambda: not there.clients(), 10, what="no ssh runs")


def test_without_a_session_it_says_how_to_start_one_and_starts_none(ssh_host):
    there = ssh_host()
    steps = examine(f"{there.address}/work")
    assert steps["session"]["mark"] == "note"
    assert "no session `work` runs on" in steps["session"]["seen"]
    assert steps["session"]["do"] == ["`remoter client ssh://there/work` starts one"]
    assert {steps[step]["mark"] for step in ("forwarding", "key", "round trip")} == {"skip"}
    assert steps["rate"]["mark"] == "ok"
    assert there.records() == []


def test_where_forwarding_is_forbidden_the_bridge_is_tried(ssh_host):
    there = ssh_host(forwarding=False)
    start_session(there)
    steps = examine(there.address)
    assert steps["forwarding"]["mark"] == "note"
    assert "the bridge leads to the session" in steps["forwarding"]["seen"]
    assert "AllowStreamLocalForwarding" in steps["forwarding"]["do"][0]
    assert marks(steps)["round trip"] in ("ok", "note")


def test_a_saved_name_that_leads_through_ssh_is_followed(ssh_host):
    there = ssh_host()
    _saved.save_name("big", parse(there.address))
    assert marks(examine("big"))["authentication"] == "ok"


@pytest.mark.parametrize(
    ("accept_key", "said", "do"),
    [
        ("unknown", "is not known here", "`ssh there` once in a terminal"),
        ("changed", "is not the one", "type no password"),
    ],
)
def test_a_host_key_that_ssh_does_not_know(ssh_host, accept_key, said, do):
    seen, hints = assert_breaks_at(examine(ssh_host(accept_key=accept_key).address), "host key")
    assert said in seen
    assert do in hints


def test_nobody_listens_there(ssh_host):
    there = ssh_host()
    there.cut(refuse=True)
    there.config("Port 1")
    seen, hints = assert_breaks_at(examine(there.address), "connection")
    assert "no ssh server listens on" in seen
    assert "ssh://HOST:PORT" in hints


def test_no_such_host(ssh_host):
    ssh_host().config("HostName no-such-machine.invalid")
    seen, hints = assert_breaks_at(examine("ssh://there"), "connection")
    assert "no machine is called `no-such-machine.invalid`" in seen
    assert "`ssh -G there`" in hints


def test_a_broken_configuration(ssh_host):
    there = ssh_host()
    there.config("Frobnicate yes")
    seen, _ = assert_breaks_at(examine(there.address), "configuration")
    assert "frobnicate" in seen


def test_a_jump_host_that_does_not_answer_is_named(ssh_host):
    gate = ssh_host("gate")
    there = ssh_host(jump=gate)
    gate.config("Port 1")
    steps = examine(there.address)
    assert "through `gate`" in steps["configuration"]["seen"]
    seen, _ = assert_breaks_at(steps, "connection")
    assert "the jump host before `there`" in seen


def test_who_is_not_let_in(ssh_host):
    seen, hints = assert_breaks_at(examine(ssh_host(auth="none").address), "authentication")
    assert "(publickey)" in seen
    assert "ssh-add" in hints


def test_a_shell_that_prints_is_noted_with_its_last_words(ssh_host):
    there = ssh_host(shell='echo "Welcome to there"; echo "Mind the gap"; exec /bin/sh "$@"\n')
    steps = examine(there.address)
    assert steps["login shell"]["mark"] == "note"
    assert "prints 29 bytes" in steps["login shell"]["seen"]
    assert "last: Mind the gap" in steps["login shell"]["seen"]
    assert steps["rate"]["mark"] == "ok"


def test_a_shell_that_ends(ssh_host):
    seen, hints = assert_breaks_at(
        examine(ssh_host(shell="echo no shell for you\nexit 3\n").address), "login shell"
    )
    assert "ended before" in seen
    assert "no shell for you" in seen
    assert "`ssh there true`" in hints


def test_a_shell_that_hangs(ssh_host, monkeypatch):
    hurry_after(b"Pick a project:", monkeypatch)
    there = ssh_host(shell="echo Pick a project:\nexec cat >/dev/null\n")
    seen, hints = assert_breaks_at(examine(there.address), "login shell")
    assert "does not run what it is given" in seen
    assert "Pick a project:" in seen
    assert ".bashrc" in hints


def test_what_a_shell_prints_commands_no_terminal(ssh_host, home, monkeypatch, capfd):
    wait = f"while [ ! -e '{home}/said' ]; do sleep 0.1; done"
    there = ssh_host(shell=f"printf '\\033]0;pwn\\007 hello\\n' >&2; {wait}; exec /bin/sh \"$@\"\n")

    def say(text):
        _ssh.say_to_person(text)
        (home / "said").touch()

    monkeypatch.setattr(_doctor_ssh, "say_to_person", say)
    monkeypatch.setattr(_ssh, "can_ask_on_terminal", lambda: True)
    assert examine(there.address)["login shell"]["mark"] in ("ok", "note")
    said = capfd.readouterr().err
    assert r"-- \x1b]0;pwn\x07 hello" in said
    assert "\x1b" not in said


def test_on_a_slow_network_the_figure_is_told_with_fewer_echoes(home):
    count = home / "count"
    text = f"while read -r line; do sleep 0.5; printf '%s\\n' \"$line\"; echo >>'{count}'; done"
    began = time.monotonic()
    seconds = _doctor_ssh._echo([program(home / "slow", text)])
    elapsed = time.monotonic() - began
    echoes = len(count.read_text())
    assert seconds > 0.5
    assert seconds * (echoes - 1) / 2 <= elapsed, "it is the time of one"
    assert echoes <= _doctor_ssh.ECHOES / 2
    assert _doctor_ssh._echo(["/bin/true"]) is None


@pytest.mark.parametrize("last", ["connection", "session", "key", "round trip"])
def test_a_network_that_freezes_ends_each_step_in_time_and_says_that_it_waits(
    ssh_host, monkeypatch, capfd, last
):
    there = ssh_host()
    start_session(there)

    def freeze():  # only from now on there is little patience: before, all shall go well
        for name, seconds in [("LOGIN", 2.0), ("PATIENCE", 1.0), ("WAITING", 0.5)]:
            monkeypatch.setattr(_doctor_ssh, name, seconds)
        there.freeze()
        return time.monotonic()

    found = {}
    began = freeze() if last == "connection" else None
    for step in _doctor.examine(there.address):
        found[step["step"]] = step
        if step["step"] == last:
            began = began or freeze()
    assert time.monotonic() - began < 25
    assert found["round trip"]["mark"] != "ok" or last == "round trip"
    assert "no answer yet" in capfd.readouterr().err
    wait_for(lambda: not there.clients(), 10, what="no ssh runs")


def test_without_remoter_the_ways_to_get_it_are_shown(ssh_host):
    steps = examine(ssh_host(remoter=False).address)
    _, hints = assert_breaks_at(steps, "remoter")
    assert "python3" in steps["python"]["seen"]
    assert "--install" in hints


def test_without_an_ssh_program_nothing_is_tried(monkeypatch):
    monkeypatch.setenv("REMOTER_SSH", "no-such-ssh -F x")
    seen, hints = assert_breaks_at(examine("ssh://there"), "ssh")
    assert "`no-such-ssh`" in seen
    assert "REMOTER_SSH" in hints


def test_breaking_it_off_leaves_nothing_behind(ssh_host, home):
    there = ssh_host()
    start_session(there)
    for last in ("connection", "round trip"):
        steps = _doctor.examine(there.address)
        for step in steps:
            if step["step"] == last:
                with pytest.raises(KeyboardInterrupt):
                    steps.throw(KeyboardInterrupt)
        wait_for(lambda: not there.clients(), 10, what="no ssh runs")
        wait_for(lambda: not ssh_directories(home), 10, what="no directory is left")
    assert os.getpid() not in processes_of(there.root, "environ")
