"""What ssh asks reaches a person, and the answer ssh, and nobody else; with the real OpenSSH programs."""

import os
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from remoter._askpass import Askpass, is_hidden
from remoter._errors import RemoterError

from .conftest import is_alive, wait_for

PASSPHRASE = "otter lamp 'nine' é $(id)"


@pytest.fixture
def directory(home):
    path = home / "a"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def key(home):
    """A private key that only its passphrase opens."""
    path = home / "key"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", PASSPHRASE, "-f", str(path)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return path


class Person:
    """Answers in order; None for what comes after. Keeps what was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.told = []
        self.cancelled = threading.Event()
        self.thinking = threading.Event()

    def __call__(self, prompt, hidden):
        self.asked.append((prompt, hidden))
        answer = self.answers.pop(0) if self.answers else None
        if answer == "think":
            self.thinking.set()
            assert self.cancelled.wait(60)
            return None
        return answer

    def cancel(self):
        self.cancelled.set()

    def tell(self, text):
        self.told.append(text)


def open_key(askpass, key, **more):
    """A program of OpenSSH that asks for the passphrase and prints the public key."""
    environment = {**os.environ, **askpass.environment(), **more}
    return subprocess.Popen(
        ["ssh-keygen", "-y", "-f", str(key)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ask(askpass, prompt, kind=""):
    """What the program says to ssh for that question: its exit code, and its output."""
    environment = {**os.environ, **askpass.environment(), "SSH_ASKPASS_PROMPT": kind}
    done = subprocess.run(
        [environment["SSH_ASKPASS"], prompt], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_passphrase_is_asked_unseen_and_opens_the_key(directory, key):
    person = Person(PASSPHRASE)
    with Askpass(directory, person) as askpass:
        opened, said = open_key(askpass, key).communicate(timeout=60)
    assert opened.split()[:2] == Path(f"{key}.pub").read_text().split()[:2], said
    [(prompt, hidden)] = person.asked
    assert hidden
    assert "passphrase" in prompt


def test_nobody_else_can_ask_and_nothing_is_left_behind(directory, key):
    before = threading.enumerate()  # of another test's a question may just be ending
    with Askpass(directory, Person("x")) as askpass:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
        assert sorted(modes.values()) == [0o600, 0o700]
        assert "nine" not in "".join(askpass.environment().values())
    assert not list(directory.iterdir())
    threads = [each for each in threading.enumerate() if "askpass" in each.name and each not in before]
    wait_for(lambda: not any(each.is_alive() for each in threads), what="its threads to end")


def test_no_answer_is_a_refusal_and_the_rest_is_not_asked(directory, key):
    person = Person(None, "never used")
    with Askpass(directory, person) as askpass:
        _, said = open_key(askpass, key).communicate(timeout=60)
        assert "incorrect passphrase" in said
        assert askpass.is_declined
        assert ask(askpass, "password: ") == (1, "")
    assert len(person.asked) == 1


def test_an_ask_that_raises_is_a_refusal_and_the_reason_is_kept(directory):
    def fail(prompt, hidden):
        raise KeyError("no such vault")

    with Askpass(directory, fail) as askpass:
        assert ask(askpass, "password: ") == (1, "")
        assert isinstance(askpass.failure, KeyError)


@pytest.mark.parametrize(
    ("answer", "printed"),
    [
        ("secret", "secret\n"),
        ("", "\n"),
        ("two\nlines", "two\n"),
        ("é漢 '\"$(id)`id`\\n", "é漢 '\"$(id)`id`\\n\n"),
    ],
)
def test_an_answer_comes_as_it_was_typed(directory, answer, printed):
    with Askpass(directory, Person(answer)) as askpass:
        assert ask(askpass, "password: ") == (0, printed)


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("Y", 0), ("no", 1), ("", 1), (None, 1)])
def test_only_a_yes_confirms(directory, answer, code):
    person = Person(answer)
    with Askpass(directory, person) as askpass:
        assert ask(askpass, "Allow use of key?", "confirm")[0] == code
    assert person.asked == [("Allow use of key?", False)]


@pytest.mark.parametrize(
    ("prompt", "hidden"),
    [
        ("ana@big's password: ", True),
        ("(ana@big) Verification code: ", True),
        ("Enter passphrase for key '/home/yes/no': ", True),
        ("Are you sure you want to continue connecting (yes/no/[fingerprint])? ", False),
        ("Please type 'yes', 'no' or the fingerprint: ", False),
        ("Please type 'yes' or 'no': ", False),
        ("Trust this device (Y/n)? ", False),
    ],
)
def test_all_is_typed_unseen_but_a_yes_or_no(prompt, hidden):
    assert is_hidden(prompt) == hidden


def test_what_is_only_to_be_read_is_told_until_ssh_is_done(directory):
    person = Person()
    with Askpass(directory, person) as askpass:
        environment = {**os.environ, **askpass.environment(), "SSH_ASKPASS_PROMPT": "none"}
        words = [environment["SSH_ASKPASS"], "Confirm user presence for key ED25519-SK"]
        program = subprocess.Popen(words, env=environment)
        wait_for(lambda: person.told == words[1:], 30, "the text to be told")
        program.terminate()  # as ssh does when the key was touched
        program.wait(30)
    assert person.asked == []


def test_a_question_cannot_rule_the_terminal(directory):
    person = Person("x")
    with Askpass(directory, person) as askpass:
        ask(askpass, "line one\r\n\x1b]0;title\x07pass\x9bword: ")
    assert person.asked == [("line one\n ]0;title pass word: ", True)]


def test_closing_cancels_what_is_asked(directory, key):
    person = Person("think")
    askpass = Askpass(directory, person)
    program = open_key(askpass, key)
    assert person.thinking.wait(30)
    askpass.close()
    assert person.cancelled.wait(30)
    assert program.wait(30) != 0
    program.communicate()


def test_the_end_of_ssh_cancels_what_is_asked(directory, key):
    person = Person("think")
    with Askpass(directory, person) as askpass:
        program = open_key(askpass, key)
        assert person.thinking.wait(30)
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        program.kill()
        program.communicate()
        assert person.cancelled.wait(30), "nobody wants the answer any more"
        wait_for(lambda: not any(is_alive(pid) for pid in children), 30, "the program to end with ssh")


def test_two_that_ask_at_once_are_asked_one_after_the_other(directory):
    both = threading.Barrier(2)
    inside = []

    def answer(prompt, hidden):
        inside.append(prompt)
        assert len(inside) == 1
        inside.remove(prompt)
        return prompt.upper()

    said = {}
    with Askpass(directory, answer) as askpass:

        def one(word):
            both.wait(30)
            said[word] = ask(askpass, word)

        threads = [threading.Thread(target=one, args=(word,)) for word in ("jump", "host")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert said == {"jump": (0, "JUMP\n"), "host": (0, "HOST\n")}


def test_what_is_no_question_is_not_asked(directory):
    person = Person("secret")
    with Askpass(directory, person) as askpass:
        for data in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n\n",
            b"[1]\n",
            b'{"a": 1, "b": 2, "c": 3}\n',
            b"x" * 200_000,
        ):
            with socket.socket(socket.AF_UNIX) as connection:
                [path] = [path for path in directory.iterdir() if path.is_socket()]
                connection.connect(str(path))
                try:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    assert connection.recv(100) == b""
                except (BrokenPipeError, ConnectionResetError):
                    pass
        assert person.asked == []
        assert ask(askpass, "password: ") == (0, "secret\n")


def test_a_directory_that_runs_no_programs_is_said(directory, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RemoterError, match="programs cannot be run from"):
        Askpass(directory, Person())
    assert not list(directory.iterdir())


def test_a_directory_with_quotes_and_spaces_is_no_hindrance(home):
    directory = home / "it's $(id) a"
    directory.mkdir(mode=0o700)
    with Askpass(directory, Person("secret")) as askpass:
        assert ask(askpass, "it's `id` $HOME: ") == (0, "secret\n")
