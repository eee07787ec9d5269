"""Sessions through the user's own ssh: found or started there, left, lost, come back to, ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

import remoter
from remoter import _answer, _channel

from .waiting import is_alive, wait_for

OUTAGE = 30.0
COUNT = "import time\nfor i in range({n}): print(i); time.sleep({pause})"


def run(*words, **options):
    """A `remoter` command, as the shell runs it, without a terminal."""
    options = {"capture_output": True, "text": True, "timeout": 40, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run([sys.executable, "-m", "remoter", *words], **options)


def numbers(text):
    return [int(word) for word in text.split()]


@pytest.fixture
def move_house(monkeypatch, home):
    """Come from another home: nothing is known there but the ssh configuration."""

    def move():
        for name in ("CONFIG", "STATE", "RUNTIME", "JOURNAL"):
            monkeypatch.setenv(f"REMOTER_{name}_DIR", str(home / f"other-{name.lower()}"))
        monkeypatch.setenv("HOME", str(home / "other"))
        (home / "other").mkdir()

    return move


def ssh_directories(home):
    return list((home / "runtime").glob(".ssh-*"))


def hurry_after(words, monkeypatch):
    """Once the other side has printed these words, time flies for whoever waits for the script's answer.

    So a test of a shell that hangs gives the login all the time it may need, and ends soon after.
    """
    since = []

    def monotonic():
        now = time.monotonic()
        if not since and any(words in channel.reader.noise for channel in list(_channel._living)):
            since.append(now)
        return now + 20 * (now - since[0]) if since else now

    monkeypatch.setattr(_answer, "time", types.SimpleNamespace(monotonic=monotonic))


# --- the whole way ---------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_start_run_lose_the_network_come_back_leave_list_come_back_from_another_home_stop(
    ssh_host, move_house, home
):
    gate = ssh_host("gate")
    ways = [ssh_host("there"), ssh_host("node", jump=gate), ssh_host("strict", forwarding=False)]
    for way in ways:
        started = run("batch", way.address, "-c", "years = list(range(2000, 2003))\nlen(years)")
        assert (started.stdout, started.returncode) == ("3\n", 0), started.stderr
    sessions = [remoter.connect(way.address) for way in ways]
    runs = [session.submit(COUNT.format(n=330, pause=0.1)) for session in sessions]
    for one in runs:
        next(event for event in one.events() if event.kind == "stdout")
    for way in [ways[0], gate, ways[2]]:
        way.freeze()
    time.sleep(OUTAGE)
    assert [session.info.link for session in sessions] == ["lost"] * 3
    for way in [ways[0], gate, ways[2]]:
        way.thaw()
    for session, one in zip(sessions, runs, strict=True):
        assert numbers(one.wait(40).stdout) == list(range(330))
        wait_for(lambda session=session: session.info.link == "ok", what="the link is well again")
        session.close()
    move_house()
    for way in ways:
        listed = run("ls", way.address)
        assert "main" in listed.stdout and "idle" in listed.stdout, listed
        again = run("batch", way.address, "-c", "sum(years)")
        assert (again.stdout, again.returncode) == ("6003\n", 0), again.stderr
        ended = run("stop", f"{way.address}/main")
        assert (ended.stdout, ended.returncode) == (f"ended `main` on {way.name}\n", 0), ended.stderr
        wait_for(lambda way=way: not way.processes(), what="nothing runs there any more")
    assert not ssh_directories(home)


# --- coming back -----------------------------------------------------------------------------


def test_a_killed_ssh_is_replaced_and_nothing_is_lost(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as session:
        run_ = session.submit(COUNT.format(n=100, pause=0.02))
        for _ in range(3):
            next(event for event in run_.events() if event.kind == "stdout")
            wait_for(there.kill_masters, what="an ssh to kill")
        assert numbers(run_.wait(30).stdout) == list(range(100))
        assert session.run("'still ' 'here'").text == "'still here'"
        wait_for(lambda: len(there.masters()) == 1, what="one ssh is left")


def test_a_cut_network_is_come_back_through_with_a_new_ssh(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as session:
        run_ = session.submit(COUNT.format(n=50, pause=0.02))
        next(event for event in run_.events() if event.kind == "stdout")
        there.cut(refuse=True)
        wait_for(lambda: session.info.link == "lost", what="the loss is seen")
        typed = session.submit("'typed meanwhile'")
        there.mend()
        assert numbers(run_.wait(30).stdout) == list(range(50))
        assert typed.wait(30).text == "'typed meanwhile'"


def test_a_session_that_ended_while_we_were_away_is_said_to_have_ended(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as session:
        there.cut(refuse=True)
        there.end_sessions()
        there.mend()
        with pytest.raises(remoter.LinkLostError, match="has ended"):
            session.run("1")


def test_a_restarted_server_there_is_reached_over_the_same_ssh(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as session:
        session.run("x = 42")
        masters = there.masters()
        os.kill(session.info.server_pid, signal.SIGKILL)
        assert session.run("x", timeout=30).text == "42"
        assert there.masters() == masters


# --- nothing is left -------------------------------------------------------------------------


def test_leaving_ends_ssh_and_the_session_goes_on(ssh_host, home):
    there = ssh_host()
    with remoter.connect(there.address) as session:
        assert session.is_secure
        assert session.info.host
        assert len(there.masters()) == 1
        assert len(ssh_directories(home)) == 1
        pid = session.info.pid
    wait_for(lambda: not there.masters(), what="ssh has ended")
    assert not ssh_directories(home)
    assert is_alive(pid)


def test_a_killed_client_leaves_no_ssh_behind(ssh_host, home):
    there = ssh_host()
    code = f"import remoter, time; s = remoter.connect({there.address!r}); print('in', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "in\n"
        assert there.masters()
        client.kill()
    wait_for(lambda: not there.masters(), what="ssh has ended")
    left = ssh_directories(home)[0]
    os.utime(left, (1, 1))
    with remoter.connect(there.address):
        assert left not in ssh_directories(home), "the next one sweeps"


def test_two_clients_that_start_in_the_same_moment_share_one_session(ssh_host):
    there = ssh_host()
    found = []

    def connect():
        with remoter.connect(f"{there.address}/main", timeout=40) as session:
            found.append(session.info.pid)

    threads = [threading.Thread(target=connect) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert len(found) == 2
    assert len(set(found)) == 1
    assert len(there.records()) == 1


def test_events_and_a_second_client_have_ways_of_their_own(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as session, remoter.connect(there.address) as other:
        events = other.events(all=True)
        session.run("print('to all')")
        assert any(event.text == "to all\n" for event in events)
        events.close()
        with contextlib.suppress(AttributeError):
            other.close()


def test_a_long_runtime_directory_makes_way_for_a_short_one(ssh_host, home, monkeypatch):
    there = ssh_host()
    monkeypatch.setenv("REMOTER_RUNTIME_DIR", str(home / ("long-" * 20)))
    with remoter.connect(there.address) as session:
        assert session.run("1 + 1").text == "2"
        directory = session._target.ssh.directory
        assert directory.parent == Path("/tmp")
        assert directory.stat().st_mode & 0o777 == 0o700
    assert not directory.exists()
