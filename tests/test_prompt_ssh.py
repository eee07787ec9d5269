"""The prompt on another machine, reached by ssh: greeting, a network that goes away, and what ssh asks to come back."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import wait_for
from .terminal import Terminal

REMOTER = [sys.executable, "-m", "remoter"]
PASSPHRASE = "otter"
QUESTION = "Enter passphrase for key"


@pytest.fixture
def prompt(ssh_host):
    """Opens prompts; closes their terminals."""
    terminals = []

    def start(address, *arguments, passphrase=None, **options):
        terminal = Terminal([*REMOTER, "client", address, *arguments], env=dict(os.environ), **options)
        terminals.append(terminal)
        if passphrase:
            terminal.expect(QUESTION)
            terminal.type(passphrase + "\r")
        terminal.expect(re.compile(r"^remoter@\S+>$", re.MULTILINE))
        return terminal

    yield start
    for terminal in terminals:
        terminal.close()


def line(text):
    """A pattern for a line that begins so."""
    return re.compile("^" + text, re.MULTILINE)


def expect_question(terminal, count):
    """Wait until ssh has asked so often; the first time was when the prompt began."""
    terminal.wait_for(lambda screen: screen.count(QUESTION) == count, 30, f"question {count}")


def is_shown(passphrase, terminal):
    """Whether it stands on the terminal; the name of the key holds it too."""
    return passphrase in terminal.text().replace(f"mine-{passphrase}", "")


def lose(there):
    """End the ssh process that carries the session, as a network would."""
    assert there.kill_masters()


# --- coming and going -------------------------------------------------------------------------


def test_the_greeting_says_where_and_leaving_says_the_way_back(prompt, ssh_host):
    there = ssh_host()
    terminal = prompt(there.address)
    [record] = there.records()
    host = record["host"]
    assert f"session `main` on {host}, started now: Python 3." in terminal.screen()
    assert f"typed lines run on {host}" in terminal.screen()
    terminal.type("\x04")
    assert terminal.expect_end() == 0
    assert f"left `main` running on {host}." in terminal.screen()
    assert (
        "Back: remoter client ssh://there/main    End it: remoter stop ssh://there/main" in terminal.screen()
    )
    again = prompt(f"{there.address}/main")
    assert f"session `main` on {host}: Python 3." in again.screen()


def ssh_directories():
    return list(Path(os.environ["REMOTER_RUNTIME_DIR"]).glob(".ssh-*"))


def test_sigterm_leaves_nothing_behind_and_the_session_goes_on(prompt, ssh_host):
    there = ssh_host()
    terminal = prompt(there.address)
    assert ssh_directories()
    terminal.signal(signal.SIGTERM)
    assert terminal.expect_end() == 143
    assert not ssh_directories()
    words = [*REMOTER, "batch", f"{there.address}/main", "-c", "import time; print('begun'); time.sleep(20)"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as batch:
        assert batch.stdout.readline() == "begun\n"
        assert ssh_directories()
        batch.send_signal(signal.SIGTERM)
        assert batch.wait(30) == 143
    assert not ssh_directories()
    wait_for(lambda: not there.clients(), what="ssh to end")
    assert there.records()


# --- the network goes away --------------------------------------------------------------------


def test_an_outage_is_told_with_its_reason_and_typing_goes_on(prompt, ssh_host):
    there = ssh_host()
    terminal = prompt(there.address)
    terminal.type("half typ")
    terminal.expect("> half typ")
    there.cut(refuse=True)
    terminal.type("ed")
    terminal.expect("> half typed")
    terminal.expect(line(r"-- no answer from \S+ for \d+ s\. It goes on there; trying to come back"))
    terminal.expect(line(r"-- .*`there`"))
    ready = "remoter@{host}>".format(**there.records()[0])
    terminal.expect_line(f"{ready} half typed")
    terminal.type("\x03")  # clears the line
    terminal.expect_gone("half typed")
    terminal.type("\x03")
    terminal.expect(line(r"leave `main` running on \S+\? \[y/N\]"))
    terminal.type("n\r")
    terminal.expect_line(ready)
    terminal.type("print('en' + 'tered')\r")
    terminal.expect(line(r"-- it goes to \S+ when that answers again"))
    terminal.type("\x03")
    terminal.expect(
        line(r"leave\? `print\('en' \+ 'tered'\)` has not reached \S+ yet and may never run \[y/N\]")
    )
    there.mend()
    terminal.expect(line("-- back after"))
    terminal.expect(line("entered"))
    terminal.expect_line(ready)


def test_ctrl_c_leaves_while_the_network_is_away(prompt, ssh_host):
    there = ssh_host()
    terminal = prompt(there.address)
    there.cut(refuse=True)
    terminal.expect(re.compile("no answer from .*; trying to come back"))
    terminal.type("\x03")
    terminal.expect(line(r"leave `main` running on \S+\? \[y/N\]"))
    terminal.type("y\r")
    assert terminal.expect_end() == 0
    assert "Back: remoter client ssh://there/main" in terminal.screen()


# --- ssh asks, to come back -------------------------------------------------------------------


def test_ssh_asks_at_an_empty_line_and_what_was_typed_stays(prompt, ssh_host):
    there = ssh_host(passphrase=PASSPHRASE)
    terminal = prompt(there.address, passphrase=PASSPHRASE)
    terminal.type("1 + 2")
    terminal.expect("> 1 + 2")
    lose(there)
    terminal.expect(line("-- ssh asks something, to come back to"))
    terminal.expect(re.compile("> 1 \\+ 2\n+ssh asks something: Enter on an empty line"))
    terminal.type("\x15\r")
    expect_question(terminal, 2)
    terminal.type("\x03")
    terminal.expect(line("-- not answered: Enter on an empty line asks again"))
    terminal.type("\r")
    expect_question(terminal, 3)
    terminal.type("wrong\r")
    expect_question(terminal, 4)
    assert "-- that was not accepted; ssh asks again" in terminal.screen()
    terminal.type(PASSPHRASE + "\r")
    terminal.expect(line(r"-- back after \d"))
    terminal.expect(line(r"remoter@\S+>$"))
    terminal.type("6 * 7\r")
    terminal.expect(line("42$"))
    assert not is_shown(PASSPHRASE, terminal)


def test_ssh_asks_at_once_while_a_run_is_followed(prompt, ssh_host, home):
    there = ssh_host(passphrase=PASSPHRASE)
    terminal = prompt(there.address, passphrase=PASSPHRASE)
    until = f"any(time.sleep(0.01) for _ in iter(lambda: os.path.exists('{home}/go'), True))"
    terminal.type(f"import os, time; print('be' + 'gun'); {until}; 'res' + 'ult'\r")
    terminal.expect(line("begun"))
    terminal.type("print('typed ' + 'ahead')\r")
    lose(there)
    terminal.expect(line("-- ssh asks, to come back to"))
    expect_question(terminal, 2)
    terminal.type("\x03")
    terminal.expect(line(r"leave `.*` running on"))
    terminal.type("n\r")
    expect_question(terminal, 3)
    (home / "go").touch()
    terminal.type(PASSPHRASE + "\r")
    terminal.expect(line("'result'"))
    terminal.expect(line("typed ahead$"))
    assert not is_shown(PASSPHRASE, terminal)


def test_leaving_instead_of_an_answer_ends_all_that_asked(prompt, ssh_host):
    there = ssh_host(passphrase=PASSPHRASE)
    terminal = prompt(there.address, passphrase=PASSPHRASE)
    lose(there)
    terminal.expect(line("-- ssh asks something"))
    terminal.type("\r")
    expect_question(terminal, 2)
    terminal.type("\x04")
    assert terminal.expect_end() == 0
    assert "Back: remoter client ssh://there/main" in terminal.screen()
    wait_for(lambda: not there.clients(), what="ssh to end")


def test_a_dumb_terminal_is_asked_too(prompt, ssh_host):
    there = ssh_host(passphrase=PASSPHRASE)
    terminal = prompt(there.address, passphrase=PASSPHRASE, term="dumb")
    lose(there)
    terminal.expect("-- ssh asks something")
    terminal.type("\n")
    expect_question(terminal, 2)
    terminal.type(PASSPHRASE + "\n")
    terminal.expect(re.compile(r"^-- back after .*\nremoter@\S+>$", re.MULTILINE))
    terminal.type("6 * 7\n")
    terminal.expect(line("42$"))
    terminal.type("\x04")
    assert terminal.expect_end() == 0
    assert not is_shown(PASSPHRASE, terminal)


def test_a_run_that_asks_too_is_answered_first(prompt, ssh_host):
    there = ssh_host(passphrase=PASSPHRASE)
    terminal = prompt(there.address, passphrase=PASSPHRASE)
    terminal.type("print(input('who? ')[::-1])\r")
    terminal.expect(line(r"who\?"))
    lose(there)
    terminal.expect(line("-- ssh asks something, to come back to .*: after this answer"))
    terminal.type("Ana\r")
    expect_question(terminal, 2)
    terminal.type(PASSPHRASE + "\r")
    terminal.expect(line("anA$"))
    assert not is_shown(PASSPHRASE, terminal)


ASKED_BY_A_SCRIPT = """\
import remoter, sys
def answer(prompt, hidden):
    print(hidden, prompt)
    return answers.pop(0) if answers else None
answers = sys.argv[2:]
with remoter.connect(sys.argv[1], ask=answer) as session:
    print(session.run("6 * 7").text)
"""


@pytest.mark.parametrize(
    ("answers", "asked", "words"), [(["wrong", PASSPHRASE], 2, "42"), ([], 1, "AuthError: ")]
)
def test_a_script_is_asked_what_ssh_asks(ssh_host, answers, asked, words):
    there = ssh_host(passphrase=PASSPHRASE)
    done = subprocess.run(
        [sys.executable, "-c", ASKED_BY_A_SCRIPT, there.address, *answers],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=False,
    )
    assert done.stdout.count(f"True {QUESTION}") == asked, done.stderr
    assert words in done.stdout + done.stderr
