"""Whose pickles are opened: kept by key, asked in words that say what it means, forgotten with the server."""

import json
import stat

import pytest

from remoter import _cli, _trust
from remoter._address import key_to_text
from remoter._errors import RemoterError
from remoter._security import INSECURE_KEYS, Pins, new_keys


@pytest.fixture
def public():
    return new_keys().public


def call(capsys, *words):
    code = _cli.main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_nobody_is_trusted_before_it_was_said(public):
    assert not _trust.is_trusted(public)
    assert _trust.trusted() == []


def test_trust_is_kept_by_key_in_a_private_file(home, public):
    _trust.trust(public, "big")
    assert _trust.is_trusted(public)
    assert not _trust.is_trusted(new_keys().public)
    path = home / "config" / "trusted_pickles"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(pin.public, pin.label) for pin in _trust.trusted()] == [(public, "big")]


def test_it_is_another_list_than_that_of_known_servers(public):
    Pins().trust(public, "big")
    assert not _trust.is_trusted(public)
    other = new_keys().public
    _trust.trust(other, "small")
    assert not Pins().is_trusted(other)


def test_a_server_with_a_new_key_has_to_be_trusted_anew(public):
    new = new_keys().public
    _trust.trust(public, "big")
    assert not _trust.is_trusted(new)
    _trust.trust(new, "big")
    assert _trust.is_trusted(new)
    assert not _trust.is_trusted(public)


def test_trust_ends_when_it_is_taken_back(public):
    _trust.trust(public, "big")
    assert _trust.forget(public)
    assert not _trust.is_trusted(public)
    assert not _trust.forget(public)


def test_the_published_key_can_never_be_trusted(home):
    with pytest.raises(RemoterError, match="cannot be trusted"):
        _trust.trust(INSECURE_KEYS.public, "big")
    path = home / "config" / "trusted_pickles"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(f"{INSECURE_KEYS.public} big 2020-01-01\n")
    path.chmod(0o600)
    assert not _trust.is_trusted(INSECURE_KEYS.public)


def test_a_file_that_others_can_write_trusts_nobody(home, public):
    _trust.trust(public, "big")
    (home / "config" / "trusted_pickles").chmod(0o622)
    with pytest.raises(RemoterError, match="open to others"):
        _trust.is_trusted(public)


def test_a_label_cannot_write_on_the_terminal_or_begin_a_line(public):
    other = new_keys().public
    _trust.trust(public, f"big\x1b[2J\n{other} small")
    assert [pin.public for pin in _trust.trusted()] == [public]
    assert "\x1b" not in _trust.trusted()[0].label


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        ("once", "once"),
        (" Always ", "always"),
        ("no", "no"),
        ("", "no"),
        (None, "no"),
        ("y", "no"),
        ("yes", "no"),
        ("a", "no"),
        ("once or always", "no"),
    ],
)
def test_only_a_clear_answer_opens(answer, meaning):
    assert _trust.ask_to_open(lambda question, hidden: answer, "Forest", "big") == meaning


def test_the_question_says_that_code_is_run_and_whose():
    asked = []

    def ask(question, hidden):
        asked.append((question, hidden))

    _trust.ask_to_open(ask, "Fo\x1b[2Jrest", "b\rig")
    ((question, hidden),) = asked
    assert "Load this object by running code chosen by b\\rig? [no/once/always]" in question
    assert "Fo\\x1b[2Jrest" in question
    assert question.isprintable()
    assert not hidden


def test_there_are_three_ways_to_open_what_was_refused():
    once, connection, always = _trust.three_ways("model", "big")
    assert 'pull("model", allow_pickle=True)' in once
    assert "big" in once
    assert "trust=True" in connection
    assert "always" in always


# --- remoter keys ----------------------------------------------------------------------------


def test_keys_shows_whose_pickles_are_opened(capsys, public):
    Pins().trust(public, "big")
    other = new_keys().public
    Pins().trust(other, "small")
    _trust.trust(public, "big")
    known = json.loads(call(capsys, "keys", "--json")[1])["known"]
    assert [(entry["name"], entry.get("pickles")) for entry in known] == [("big", "always"), ("small", None)]
    shown = call(capsys, "keys")[1]
    assert shown.count("pickles      always") == 1


def test_keys_shows_a_trusted_server_that_is_known_by_other_means_too(capsys, public):
    _trust.trust(public, "big")  # reached through ssh: its key was never pinned
    (entry,) = json.loads(call(capsys, "keys", "--json")[1])["known"]
    assert (entry["name"], entry["key"], entry["pickles"]) == ("big", key_to_text(public), "always")


@pytest.mark.parametrize("is_pinned", [True, False])
@pytest.mark.parametrize("by", ["name", "key"])
def test_forgetting_a_server_ends_its_trust(capsys, public, is_pinned, by):
    if is_pinned:
        Pins().trust(public, "big")
    _trust.trust(public, "big" if by == "name" else "another name")
    assert call(capsys, "keys", "forget", "big" if by == "name" else key_to_text(public))[0] == 0
    assert not _trust.is_trusted(public)
    assert json.loads(call(capsys, "keys", "--json")[1])["known"] == []


def test_a_server_that_is_forgotten_by_its_name_is_not_trusted_under_another(capsys, public):
    Pins().trust(public, "big")
    _trust.trust(public, "big.example.org")
    assert call(capsys, "keys", "forget", "big")[0] == 0
    assert not _trust.is_trusted(public)


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("session `main`", "main"),
        ("session `main` on big.example.org", "main on big.example.org"),
        ("`big:55555`", "big:55555"),
    ],
)
def test_keys_shows_what_a_session_was_trusted_as_so_that_it_can_be_forgotten_by_that(
    capsys, public, where, shown
):
    for typed in (shown, where):
        _trust.trust(public, where)
        (entry,) = json.loads(call(capsys, "keys", "--json")[1])["known"]
        assert entry["name"] == shown
        assert call(capsys, "keys", "forget", typed)[0] == 0
        assert not _trust.is_trusted(public)
