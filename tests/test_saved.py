"""Names that addresses were given, and the options that say how a session is reached and started."""

import json
import re
import subprocess
import sys

import pytest

from remoter import _cli, _saved, _ssh, _there
from remoter._address import key_to_text, parse
from remoter._errors import AddressError, NameNotFoundError, RemoterError
from remoter._saved import forget_name, read_saved, save_name, saved_names
from remoter._security import Pins, new_keys

REMOTER = [sys.executable, "-m", "remoter"]


def remoter(*words, stdin="", timeout=60):
    """The command in a process of its own."""
    return subprocess.run([*REMOTER, *words], capture_output=True, text=True, input=stdin, timeout=timeout)


def call(capsys, *words):
    """The command in this process: its exit code and what it printed."""
    code = _cli.main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


# --- the file --------------------------------------------------------------------------------


def test_names_keep_the_key_of_a_port_and_how_a_session_is_started_through_ssh(home):
    key = new_keys().public
    port, ssh = parse(f"remoter://big:5000/#{key_to_text(key)}"), parse("ssh://ana@big:22/work")
    assert save_name("port", port) is None
    assert save_name("ssh", ssh, prelude="module load\n\"x\" 'y'", python="/opt/py") is None
    assert saved_names() == {"port": port, "ssh": ssh}
    assert saved_names()["port"].key == key
    assert read_saved()["ssh"] == _saved.Saved(ssh, prelude="module load\n\"x\" 'y'", python="/opt/py")
    path = home / "config" / "saved.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["port"] == {"address": "big:5000", "key": key_to_text(key)}


def test_a_name_that_is_given_again_says_what_had_it():
    first, second = parse("ssh://big"), parse("ssh://huge")
    assert save_name("x", first) is None
    assert save_name("x", first, prelude="p") is None
    assert save_name("x", second) == first
    assert read_saved() == {"x": _saved.Saved(second)}


def test_a_name_is_forgotten_once():
    save_name("x", parse("ssh://big"))
    forget_name("x")
    assert saved_names() == {}
    with pytest.raises(NameNotFoundError, match="`x`"):
        forget_name("x")


@pytest.mark.parametrize("name", ["", "a b", "ssh://x", "a/b", "big:1", "-x", "x\n", "$(x)"])
def test_what_is_no_word_is_no_name(name):
    with pytest.raises(AddressError, match="cannot be a name"):
        save_name(name, parse("ssh://big"))


@pytest.mark.parametrize("address", [None, "main"])
def test_a_session_here_needs_no_name(address):
    with pytest.raises(AddressError, match="needs no name"):
        save_name("x", parse(address))


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"x": {"address": "a b"}}', '{"x": {}}', '{"x": {"address": "b:1", "key": "k"}}']
)
def test_a_damaged_file_is_named_with_what_to_do(home, capsys, content):
    (home / "config").mkdir(mode=0o700)
    path = home / "config" / "saved.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(RemoterError, match=re.escape(f"cannot read the saved names in `{path}`")):
        saved_names()
    code, _, err = call(capsys, "ls", "x")
    assert code == 255
    assert f"rm {path}" in err
    assert "Traceback" not in err


# --- keys ------------------------------------------------------------------------------------


def test_keys_shows_saved_names_and_forgets_them(capsys):
    key = new_keys().public
    save_name("port", parse(f"remoter://big:5000/#{key_to_text(key)}"))
    save_name("far", parse("ssh://ana@big"))
    found = json.loads(call(capsys, "keys", "--json")[1])["saved"]
    assert found == [
        {"name": "port", "address": "big:5000", "key": key_to_text(key)},
        {"name": "far", "address": "ssh://ana@big"},
    ]
    shown = call(capsys, "keys")[1].partition("saved names:\n")[2]
    assert shown.split() == [
        "port", "address", "big:5000", "key", key_to_text(key), "far", "address", "ssh://ana@big"
    ]  # fmt: skip
    Pins().trust(key, "port")
    assert call(capsys, "keys", "forget", "port")[:2] == (0, "`port` is forgotten\n")
    assert call(capsys, "keys", "forget", "far")[0] == 0
    assert (saved_names(), list(Pins())) == ({}, [])
    assert call(capsys, "keys", "forget", "far")[0] == 1


@pytest.fixture
def there(monkeypatch):
    """Plays another machine: what `remoter keys --json` prints there."""
    key = new_keys().public
    answer = {
        "own": [
            {"name": "as a client", "key": key_to_text(new_keys().public)},
            {"name": "as a server", "key": key_to_text(key), "fingerprint": "otter\x1b[2J"},
        ],
        "odd": [],
    }

    def run_there(there, arguments, **_):
        assert (str(there.address), arguments) == ("ssh://ana@big", ["keys", "--json"])
        return subprocess.CompletedProcess(arguments, 0, json.dumps(answer), "")

    monkeypatch.setattr(_there, "run_there", run_there)
    return key, answer


def test_keys_of_another_machine_are_shown_and_its_server_is_trusted(capsys, there):
    key, _ = there
    code, out, _ = call(capsys, "keys", "ssh://ana@big")
    assert code == 0
    assert f"key          {key_to_text(key)}" in out
    assert "otter\\x1b[2J" in out
    assert "servers that I trust: none" in out
    assert json.loads(call(capsys, "keys", "--json", "ssh://ana@big")[1])["own"][1]["name"] == "as a server"

    assert call(capsys, "keys", "trust", "ssh://ana@big")[0] == 0
    assert [(pin.public, pin.label) for pin in Pins()] == [(key, "big")]
    assert call(capsys, "keys", "trust", "ssh://ana@big", "huge")[0] == 0
    assert [(pin.public, pin.label) for pin in Pins()] == [(key, "huge")]


@pytest.mark.parametrize("key", [None, "nonsense", "x" * 42, "\x1b" * 43])
def test_a_key_of_another_machine_that_is_none_is_not_trusted(capsys, there, key):
    _, answer = there
    answer["own"] = [] if key is None else [{"name": "as a server", "key": key}]
    code, _, err = call(capsys, "keys", "trust", "ssh://ana@big")
    assert code == 2
    assert "is not a server's public key" in err
    assert "\x1b" not in err
    assert list(Pins()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["keys", "http://big"], "protocol"),
        (["keys", "tcp://big:5000"], "nothing that ssh reaches"),
        (["keys", "ssh://big", "trust", "x", "y"], "stands before `trust`"),
        (["keys", "trust", "x"], "no name for that server"),
        (["keys", "trust", "tcp://big:5000"], "nothing that ssh reaches"),
        (["keys", "nosuch"], "nosuch"),
    ],
)
def test_wrong_words_after_keys_are_usage_errors(capsys, words, said):
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err


# --- options that say how a session is started -----------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["client", "--start", "--no-start"], "`--start` and `--no-start` exclude each other"),
        (["batch", "--start", "--no-start", "-c", "1"], "exclude each other"),
        (["client", "--prelude", "module load R"], "`--prelude` is for a session on another machine"),
        (["batch", "big:55555", "--prelude", "x", "-c", "1"], "`--prelude` is for"),
        (["batch", "--install", "-c", "1"], "`--install` is for"),
        (["client", "nosuch", "--install"], "give its address as `ssh://nosuch`"),
        (["ls", "--prelude", "x"], "`--prelude` is for"),
        (["ls", "big:55555", "--prelude", "x"], "give its address as `ssh://big`"),
        (["log", "--prelude", "x"], "`--prelude` is for"),
        (["stop", "--all", "--prelude", "x"], "`--prelude` is for"),
        (["restart", "big:55555", "--prelude", "x"], "`--prelude` is for"),
        (["interrupt", "--prelude", "x"], "`--prelude` is for"),
        (["doctor", "--prelude", "x"], "`--prelude` is for"),
        (["keys", "--prelude", "ssh://x"], "`--prelude` is for"),
        (["keys", "--prelude", "x", "forget", "y"], "`--prelude` stands before `forget`"),
        (["keys", "trust", "KEY", "big", "--prelude", "x"], "`--prelude` is for"),
        (["client", "ssh://big", "--save", "main"], "`main` cannot be the name of an address"),
        (["client", "--save", "x"], "only an address can have a name"),
        (["client", "ssh://big", "--save", "a b"], "`a b` cannot be a name"),
        (["client", "ssh://big", "--lang", "cobol"], "cobol"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_anything_is_done(capsys, words, said):
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "hint: " in err


def test_the_options_have_variables(capsys, monkeypatch):
    monkeypatch.setenv("REMOTER_BATCH_PRELUDE", "module load R")
    assert "`--prelude` is for" in call(capsys, "batch", "-c", "1")[2]
    monkeypatch.delenv("REMOTER_BATCH_PRELUDE")
    monkeypatch.setenv("REMOTER_BATCH_INSTALL", "1")
    assert "`--install` is for" in call(capsys, "batch", "-c", "1")[2]


def test_only_what_was_typed_is_news_when_it_is_not_used(monkeypatch):
    wishes = []

    def begin(_, wish):
        wishes.append((wish.is_typed, wish.prelude, wish.python))
        raise RemoterError("enough")

    monkeypatch.setattr(_ssh, "begin", begin)
    save_name("big", parse("ssh://big"), prelude="saved", python="/saved")
    for words in [[], ["--prelude", "typed"], ["--python", "/typed"]]:
        assert _cli.main(["batch", "big", "-c", "1", *words]) == 1
    assert wishes == [(False, "saved", "/saved"), (True, "typed", "/saved"), (True, "saved", "/typed")]


def test_no_start_never_offers_to_start_one(capsys, monkeypatch):
    from remoter import _run

    monkeypatch.setattr(_run, "is_person_here", lambda: True)
    monkeypatch.setattr(_run, "ask_at_terminal", lambda *_: pytest.fail("asked"))
    code, _, err = call(capsys, "client", "--no-start")
    assert code == 255
    assert "no session runs on this machine" in err


# --- saving ----------------------------------------------------------------------------------


def test_a_host_and_port_is_saved_with_the_key_that_was_proved(served):
    place = f"127.0.0.1:{served.port}"
    done = remoter("client", place, "--save", "big", stdin="print('in')")
    assert (done.returncode, done.stdout) == (0, "in\n"), done.stderr
    assert done.stderr.count("-- saved as `big`: remoter client big\n") == 1
    (saved,) = saved_names().values()
    assert (str(saved).split("/#")[0], saved.key) == (f"remoter://{place}", served.record["server_public"])
    assert remoter("client", "big", stdin="print('again')").stdout == "again\n"

    # Another server there would be noticed; a name can be given a name.
    assert "-- saved as `huge`: " in remoter("client", "big", "--save", "huge").stderr
    assert saved_names()["huge"] == saved
    save_name("big", parse(f"remoter://{place}/#{key_to_text(new_keys().public)}"))
    refused = remoter("batch", "big", "-c", "1")
    assert refused.returncode == 255
    again = remoter("client", place, "--save", "big").stderr
    assert f"-- saved as `big` in place of remoter://{place}/#" in again


def test_a_name_that_a_session_here_has_is_refused_before_connecting(capsys, serve):
    served = serve(name="work")
    code, _, err = call(capsys, "client", "ssh://nosuch", "--save", served.name)
    assert code == 2
    assert f"`{served.name}` is a session on this machine" in err
    assert saved_names() == {}


def test_a_session_here_is_not_saved(served):
    done = remoter("client", served.name, "--save", "x")
    assert done.returncode == 2
    assert f"`{served.name}` needs no name" in done.stderr
    assert saved_names() == {}


def test_nothing_is_saved_where_nobody_was_reached(capsys):
    assert call(capsys, "client", "127.0.0.1:1024", "--save", "x")[0] == 255
    assert saved_names() == {}


def test_an_ssh_address_is_saved_with_its_prelude_and_starts_the_session_the_same_way_again(ssh_host):
    ssh_host()
    words = ["client", "ssh://there", "--prelude", "export GREETING='hello there'", "--save", "big"]
    code = "import os; print(os.environ['GREETING'])"
    done = remoter(*words, stdin=code)
    assert (done.returncode, done.stdout) == (0, "hello there\n"), done.stderr
    assert "-- saved as `big`: remoter client big\n" in done.stderr
    saved = read_saved()["big"]
    assert (str(saved.address), saved.prelude) == ("ssh://there", "export GREETING='hello there'")

    assert remoter("stop", "big").stdout == "ended `main` on there\n"
    gone = remoter("client", "big", "--no-start")
    assert gone.returncode == 255
    assert "no session runs on there" in gone.stderr
    assert remoter("batch", "big", "-c", code).stdout == "hello there\n"
    assert len(remoter("ls", "big").stdout.splitlines()) == 2
    trusted = remoter("keys", "trust", "big")
    assert trusted.returncode == 2  # a word there is a key
    assert remoter("keys", "trust", "ssh://there").returncode == 0
    assert [pin.label for pin in Pins()] == ["there"]
