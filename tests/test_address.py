"""Addresses as text: what each form means, and that every refusal says what to write."""

import pytest
from hypothesis import given
from hypothesis import strategies as some
from zmq.utils import z85

from remoter import AddressError
from remoter._address import DEFAULT_PORT, Address, check_port, key_from_text, key_to_text, parse

words = some.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9_])?", fullmatch=True)
ports = some.integers(1024, 65535)
v6 = some.ip_addresses(v=6).map(lambda address: f"[{address}]")
hosts = words | some.ip_addresses(v=4).map(str) | v6
keys = some.binary(min_size=32, max_size=32).map(lambda raw: z85.encode(raw).decode())
users = some.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True)


@pytest.mark.parametrize("text", [None, "", "  "])
def test_no_address_is_my_one_session_here(text):
    assert parse(text).kind == "none"
    assert str(parse(text)) == ""


@pytest.mark.parametrize("text", ["main", "main-2", "big.example.org", "10.0.0.1", "a", "_x", "X_1"])
def test_a_bare_word_stays_a_word(text):
    assert parse(text) == Address("word", word=text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("big:5555", "big", 5555),
        ("10.0.0.1:5555", "10.0.0.1", 5555),
        ("[fe80::1]:5555", "fe80::1", 5555),
        ("[fe80::1%eth0]:5555", "fe80::1%eth0", 5555),
        ("[::1]", "::1", DEFAULT_PORT),
        ("tcp://big:5555", "big", 5555),
        ("TCP://big:5555/", "big", 5555),
        ("tcp://big", "big", DEFAULT_PORT),
        ("remoter://big:5555", "big", 5555),
        ("remoter://[::1]/", "::1", DEFAULT_PORT),
        (" big:5555 ", "big", 5555),
    ],
)
def test_a_host_and_its_port(text, host, port):
    assert parse(text) == Address("tcp", host=host, port=port)


def test_a_port_beside_the_address_makes_it_a_host():
    assert parse("big", 5555) == parse("big:5555") == parse("big:5555", 5555) == parse("big", "5555")
    assert parse(None, 5555) == Address("tcp", host="localhost", port=5555)


def test_a_port_given_twice_and_differently_is_refused():
    with pytest.raises(AddressError, match="port 5555, but port 6666"):
        parse("big:5555", 6666)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ssh://big", {"host": "big"}),
        ("ssh://ann@big", {"host": "big", "user": "ann"}),
        ("ssh://ann@big:22/main", {"host": "big", "user": "ann", "port": 22, "name": "main"}),
        ("ssh://[fe80::1]:2222/main-2", {"host": "fe80::1", "port": 2222, "name": "main-2"}),
        ("ssh://big/", {"host": "big"}),
    ],
)
def test_an_ssh_address_has_user_host_port_and_session(text, parts):
    assert parse(text) == Address("ssh", **parts)


def test_a_key_in_the_address_is_a_pin_and_stands_there_url_safe():
    public = "zq+CT6Mjs&290m)Ik0AnRbo=m8T]^xtTz2)jkb76"
    address = parse(f"remoter://big:5555/#{key_to_text(public)}")
    assert (address.host, address.port, address.key) == ("big", 5555, public)
    assert parse(f"remoter://big:5555#{key_to_text(public)}").key == public


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("http://big:55555", "write `big:55555`"),
        ("https://ann:secret@big:8000/lab?x#y", "write `big:8000`"),
        ("ann@big", "`ssh://ann@big`"),
        ("ssh://big:99999", "leave it out for ssh's own"),
        ("ssh://big:0", "leave it out for ssh's own"),
        ("ssh://", "`ssh://big`"),
        ("ssh://big/" + 41 * "x", "`ssh://big/main`"),
        ("::1", "write `[::1]:55555`"),
        ("fe80::1:5555x", "write `big:55555` or"),
        ("[::1", "write `[fe80::1]:55555`"),
        ("[big]:5555", "write `[fe80::1]:55555`"),
        (":5555", "write `localhost:5555`"),
        ("big machine", "write the name of a session"),
        ("/tmp/socket", "write the name of a session"),
        ("big:5555/main", "write the name of a session"),
        ("-rf", "write the name of a session"),
        ("bäg", "write the name of a session"),
        ("tcp://big:5555/x", "write `big:5555`"),
        ("remoter://big:5555/#short", "copy the whole address"),
        ("ssh://ann:secret@big", "never write a password"),
        ("ssh://big/../x", "write `ssh://big/main`"),
        ("ssh://-oProxyCommand=x", "write"),
        ("big:0", "write the port that the server printed"),
        ("big:", "leave it out"),
        ("big:x", "leave it out"),
        ("big:80", "write the port that the server printed"),
        ("big:70000", "leave it out"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_write(text, hint):
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert any(hint in line for line in caught.value.hints), str(caught.value)


def test_a_port_beside_an_ssh_address_is_refused():
    with pytest.raises(AddressError, match="finds the session's port itself"):
        parse("ssh://big", 5555)


@pytest.mark.parametrize(
    "value", ["a", "", "5.5", 5.5, -1, "-1", True, False, None, 70000, "٣٣٣٣", [5555], "1" * 30]
)
def test_what_is_no_port_is_refused(value):
    with pytest.raises(AddressError) as caught:
        check_port(value)
    assert caught.value.id == "port"


@pytest.mark.parametrize("value", [1, 80, "443", 1023])
def test_ports_that_need_root_are_refused_with_that_word(value):
    with pytest.raises(AddressError, match="needs root; use 1024 or more"):
        check_port(value)


@pytest.mark.parametrize(("value", "port"), [(1024, 1024), ("65535", 65535), (0, 0), (" 5555 ", 5555)])
def test_ports_are_taken_as_number_or_text(value, port):
    assert check_port(value) == port


@given(keys)
def test_keys_survive_their_way_through_an_address(public):
    assert len(key_to_text(public)) == 43
    assert key_from_text(key_to_text(public)) == public


@given(
    words
    | some.builds("{}:{}".format, hosts, ports)
    | some.builds("tcp://{}:{}".format, hosts, ports)
    | some.builds("tcp://{}".format, hosts)
    | some.builds(lambda h, p, k: f"remoter://{h}:{p}/#{key_to_text(k)}", hosts, ports, keys)
    | some.builds("ssh://{}@{}:{}/{}".format, users, hosts, some.integers(1, 65535), words)
    | some.builds("ssh://{}".format, hosts)
)
def test_what_an_address_says_of_itself_means_the_same(text):
    address = parse(text)
    assert parse(str(address)) == address


@given(some.text(max_size=60), some.none() | some.integers(-5, 70000) | some.text(max_size=6))
def test_any_text_is_an_address_or_an_address_error(text, port):
    try:
        address = parse(text, port)
    except AddressError as error:
        assert error.message
        assert "\n" not in error.message or "\n" in text + str(port)
    else:
        assert parse(str(address)) == address
