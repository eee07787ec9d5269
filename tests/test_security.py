"""Keys, who may come in, pins, passwords, and the hello's frames, without a door."""

import asyncio
import contextlib
import json
import stat
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from remoter import RemoterError
from remoter._config import config_directory
from remoter._hello import GREETING, Hello, NotAFrameError, body_length
from remoter._password import ClientProof, PasswordVerifier, ServerProof, WrongPasswordError, stretch
from remoter._security import (
    INSECURE_KEYS,
    ZAP_ADDRESS,
    Keyring,
    Pins,
    answer_zap,
    authorize_client,
    authorized_clients_path,
    client_keys,
    fingerprint,
    is_key,
    load_or_make_keys,
    new_keys,
    secure_client_socket,
    secure_server_socket,
    server_keys,
)
from remoter._turns import Turns
from remoter._words import WORDS, make_password

CHEAP = (1, 64, 1)
VECTOR = "0669e205dacfe5077d845d336e2323b5f696c264943b494cbaa8a3ac52da33e6"
HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


@pytest.fixture
def cheap(monkeypatch):
    """Passwords that are stretched in no time."""
    monkeypatch.setattr("remoter._password.STRETCHING", {"argon2id-3-65536-1": CHEAP})


# --- keys and files --------------------------------------------------------------------------


def test_keys_are_made_once_and_are_private(home):
    keys = server_keys()
    assert server_keys() == keys != client_keys()
    path = config_directory() / "server_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert keys.secret in path.read_text()
    assert keys.secret not in repr(keys)
    assert sorted(p.name for p in path.parent.iterdir()) == ["client_key", "server_key"]


def test_threads_that_make_keys_together_get_the_same(home):
    path = config_directory() / "server_key"
    start = threading.Barrier(8)

    def make():
        start.wait()
        return load_or_make_keys(path)

    with ThreadPoolExecutor(8) as pool:
        made = {future.result() for future in [pool.submit(make) for _ in range(8)]}
    assert len(made) == 1
    assert [p.name for p in path.parent.iterdir()] == ["server_key"]


def test_processes_that_make_keys_together_get_the_same(home):
    code = "from remoter._security import server_keys; print(server_keys().secret)"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_file_that_others_can_read_is_refused(home, mode):
    client_keys()
    (config_directory() / "client_key").chmod(mode)
    with pytest.raises(RemoterError, match="open to others") as caught:
        client_keys()
    assert "chmod 600" in str(caught.value)


def test_a_key_directory_that_others_can_enter_is_refused(home):
    config_directory().mkdir(parents=True, mode=0o755)
    config_directory().chmod(0o755)
    with pytest.raises(RemoterError, match="open to others"):
        server_keys()


def test_a_link_in_the_place_of_a_key_file_is_refused(home):
    client_keys()
    path = config_directory() / "server_key"
    path.symlink_to(config_directory() / "client_key")
    with pytest.raises(RemoterError):
        server_keys()


def test_a_damaged_key_file_is_said_to_be_damaged(home):
    keys = server_keys()
    path = config_directory() / "server_key"
    path.write_text(f"public {new_keys().public}\nsecret {keys.secret}\n")
    with pytest.raises(RemoterError, match="holds no key pair"):
        server_keys()


def test_the_published_keys_are_a_pair():
    assert zmq.curve_public(INSECURE_KEYS.secret.encode()).decode() == INSECURE_KEYS.public


@settings(deadline=None)
@given(st.text(max_size=60))
def test_only_keys_are_keys(text):
    assert not is_key(text) or len(text) == 40


# --- who may come in -------------------------------------------------------------------------


def test_a_keyring_admits_its_keys_and_the_users_own_and_no_others(home):
    record = new_keys().public
    keyring = Keyring([record])
    assert keyring.admits(record)
    assert keyring.admits(client_keys().public)
    assert not keyring.admits(new_keys().public)
    assert Keyring(admit_all=True).admits("anyone")


def test_added_clients_are_still_admitted_after_a_restart(home):
    file = home / "run" / "clients"
    one = new_keys().public
    Keyring(clients_file=file).add(one, "login from 10.0.0.1\nnext line")
    again = Keyring(clients_file=file)
    assert again.admits(one)
    assert again.label_of(one) == "login from 10.0.0.1 next line"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_authorized_clients_can_be_added_and_revoked_while_it_runs(home):
    one, other = new_keys().public, new_keys().public
    keyring = Keyring()
    authorize_client(one, "laptop")
    assert keyring.admits(one)
    path = authorized_clients_path()
    path.write_text(f"# a comment\n#{one} laptop\n   {other} desk top")  # no newline at the end
    assert not keyring.admits(one)
    assert keyring.admits(other)
    authorize_client(one)
    assert keyring.admits(one)
    assert keyring.admits(other)


def test_authorized_clients_that_others_could_write_admit_nobody(home, caplog):
    one = new_keys().public
    authorize_client(one, "laptop")
    keyring = Keyring()
    assert keyring.admits(one)
    authorized_clients_path().chmod(0o666)
    assert not keyring.admits(one)
    assert "open to others" in caplog.text
    with pytest.raises(RemoterError, match="open to others"):
        Keyring()


def test_a_key_that_is_none_is_refused(home):
    with pytest.raises(RemoterError, match="not a public key"):
        Keyring().add("x" * 39, "")


@contextlib.contextmanager
def sockets(*made):
    """The sockets, closed at the end; then their context ends."""
    try:
        yield
    finally:
        for one in made:
            one.disable_monitor()
            one.close(0)


def talk(keyring, client, server, expected):
    """Whether a client with these keys gets an answer from a ROUTER with that keyring."""
    with zmq.Context() as context:
        zap = context.socket(zmq.ROUTER)
        zap.bind(ZAP_ADDRESS)
        router = secure_server_socket(context, server)
        router.bind("tcp://127.0.0.1:*")
        dealer = secure_client_socket(context, client, expected)
        monitor = dealer.get_monitor_socket(HANDSHAKE)
        dealer.connect(router.last_endpoint.decode())
        poller = zmq.Poller()
        for one in [zap, router, monitor]:
            poller.register(one, zmq.POLLIN)
        user = None
        with sockets(zap, router, dealer, monitor):
            for _ in range(10):
                ready = dict(poller.poll(5000))
                if zap in ready:
                    answer_zap(zap, keyring)
                if monitor in ready:
                    event = int.from_bytes(monitor.recv_multipart()[0][:2], sys.byteorder)
                    if event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                        break
                    dealer.send(b"hello")
                if router in ready:
                    frame = router.recv_multipart(copy=False)[1]
                    user = frame.get("User-Id")
                    break
        return user


def test_curve_admits_a_key_of_the_keyring_and_says_whose_message_it_is(home):
    client, server = client_keys(), server_keys()
    assert talk(Keyring(), client, server, server.public) == client.public


def test_curve_refuses_a_key_that_is_not_in_the_keyring(home):
    server = server_keys()
    assert talk(Keyring(), new_keys(), server, server.public) is None


def test_curve_refuses_a_server_with_another_key(home):
    assert talk(Keyring(), client_keys(), server_keys(), new_keys().public) is None


def test_without_anyone_who_admits_nobody_is_admitted(home):
    server = server_keys()
    with zmq.Context() as context:
        router = secure_server_socket(context, server)
        router.bind("tcp://127.0.0.1:*")
        dealer = secure_client_socket(context, client_keys(), server.public)
        monitor = dealer.get_monitor_socket(HANDSHAKE)
        dealer.connect(router.last_endpoint.decode())
        with sockets(router, dealer, monitor):
            assert monitor.poll(30_000)
            event = int.from_bytes(monitor.recv_multipart()[0][:2], sys.byteorder)
            assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=9))
def test_odd_questions_about_keys_are_answered_no_or_not_at_all(frames):
    keyring = Keyring.__new__(Keyring)
    keyring.admit_all = True
    with zmq.Context() as context:
        zap, asker = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        zap.bind("inproc://odd")
        asker.connect("inproc://odd")
        with sockets(zap, asker):
            asker.send_multipart([b"", *frames])
            assert zap.poll(30_000)
            answer_zap(zap, keyring)
            if asker.poll(0):
                assert asker.recv_multipart()[3] == b"400"


# --- fingerprints and pins -------------------------------------------------------------------


def test_a_fingerprint_is_words_and_digits_and_never_changes():
    assert fingerprint(INSECURE_KEYS.public) == fingerprint(INSECURE_KEYS.public)
    words, digits = fingerprint(new_keys().public).split(" ")
    assert len(digits) == 16
    assert all(word in WORDS for word in words.split("-"))
    assert len({fingerprint(new_keys().public) for _ in range(50)}) == 50


def test_the_word_list_has_1024_short_words_and_passwords_are_three_of_them():
    assert len(set(WORDS)) == len(WORDS) == 1024
    assert all(word.isalpha() and word.islower() and len(word) < 7 for word in WORDS)
    assert all(word in WORDS for word in make_password().split("-"))
    assert len({make_password() for _ in range(100)}) == 100


def test_pins_are_kept_by_key_and_label(home):
    pins, one, other = Pins(), new_keys().public, new_keys().public
    assert list(pins) == []
    pins.trust(one, "the big one")
    pins.trust(other, "small")
    assert pins.is_trusted(one)
    assert pins.label_of(one) == "the big one"
    assert pins.label_of(other) == "small"
    assert not pins.is_trusted(new_keys().public)
    assert pins.forget(other)
    assert not pins.forget(other)
    assert [pin.label for pin in Pins()] == ["the big one"]


def test_a_label_trusts_one_key_only(home):
    pins, old, new = Pins(), new_keys().public, new_keys().public
    pins.trust(old, "big")
    pins.trust(new, "big")
    assert not pins.is_trusted(old)
    assert pins.label_of(new) == "big"


def test_the_published_key_can_never_be_trusted(home):
    with pytest.raises(RemoterError, match="published"):
        Pins().trust(INSECURE_KEYS.public, "big")
    assert not Pins().is_trusted(INSECURE_KEYS.public)


# --- the password's cryptography -------------------------------------------------------------


def exchange(client_password, server_password, *, hint=b"hint", client=None, seen=None):
    """A login without a wire. Returns who raised."""
    verifier = PasswordVerifier(server_password)
    mine = client or new_keys().public
    theirs = new_keys().public
    prover = ClientProof(stretch(client_password, verifier.salt))
    server = verifier.begin(prover.message)
    proof = prover.answer(server.message, GREETING, mine)
    try:
        server.check(proof, GREETING, mine)
    except WrongPasswordError:
        return "server"
    answer = server.answer(hint, theirs)
    try:
        prover.check(answer, seen or hint, theirs)
    except WrongPasswordError:
        return "client"
    return "nobody"


def test_the_right_password_convinces_both(cheap):
    assert exchange("otter-lamp-nine", "otter-lamp-nine") == "nobody"


@pytest.mark.parametrize("password", ["", "otter-lamp-ninf", "x" * 100_000, "otter-lamp-nine\0"])
def test_a_wrong_password_convinces_nobody(cheap, password):
    assert exchange(password, "otter-lamp-nine") == "server"


def test_a_hint_that_was_changed_on_the_way_is_noticed(cheap):
    assert exchange("a", "a", hint=b"curve", seen=b"none") == "client"


def test_a_very_long_password_works(cheap):
    assert exchange("ü" * 100_000, "ü" * 100_000) == "nobody"


def test_the_same_letters_typed_otherwise_are_the_same_password(cheap):
    assert exchange("Zoe\u0308", "Zoë") == "nobody"
    assert exchange("\udc80", "\udc80") == "nobody"


def test_stretching_gives_what_it_always_gave():
    assert stretch("otter-lamp-nine", b"0123456789abcdef").hex() == VECTOR


def test_passwords_can_be_stretched_side_by_side():
    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(stretch, "p", b"0123456789abcdef") for _ in range(3)]
        assert len({one.result(timeout=60) for one in made}) == 1


def test_an_empty_password_is_refused():
    with pytest.raises(RemoterError, match="empty"):
        PasswordVerifier("")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=40))
def test_a_malformed_guess_is_a_wrong_one(message):
    for said in [message, b"A" + message.ljust(32, b"\0")[:32]]:
        with contextlib.suppress(WrongPasswordError):
            proof = ServerProof(bytes(32), said)  # one in 16 of the second kind is a point
            with pytest.raises(WrongPasswordError):
                proof.check(bytes(32), GREETING, INSECURE_KEYS.public)


def test_the_server_does_not_take_its_own_message_for_a_guess():
    message = ServerProof(bytes(32), ClientProof(bytes(32)).message).message
    for said in [message, b"A" + message[1:], b"A" + bytes(32), b"A\1" + bytes(31)]:
        with contextlib.suppress(WrongPasswordError), pytest.raises(WrongPasswordError):
            ServerProof(bytes(32), said).check(bytes(32), GREETING, INSECURE_KEYS.public)


# --- the dialogue, without sockets -----------------------------------------------------------


class FakeLine:
    """What a client says, all at once; and what it was told."""

    def __init__(self, said):
        self.said = said
        self.told = b""

    async def readexactly(self, n):
        if len(self.said) < n:
            raise EOFError
        data, self.said = self.said[:n], self.said[n:]
        return data

    async def write(self, data):
        self.told += data


@pytest.fixture(scope="module")
def hello(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REMOTER_CONFIG_DIR", str(tmp_path_factory.mktemp("config") / "remoter"))
        keyring = Keyring()
    made = Hello(new_keys().public, keyring, "geheim", turns=Turns(rate=1e9, burst=1e9))
    yield made
    made.close()


def told(hello, said):
    line = FakeLine(said)
    asyncio.run(asyncio.wait_for(hello.answer(line, "192.0.2.1"), 30))
    return line.told


def test_a_client_is_told_what_the_server_is(hello):
    answer = told(hello, GREETING)
    assert answer.startswith(GREETING)
    (length,) = struct.unpack("!H", answer[len(GREETING) :][:2])
    hint = json.loads(answer[len(GREETING) + 2 :])
    assert len(answer) == len(GREETING) + 2 + length
    assert hint["security"] == "curve"
    assert is_key(hint["public"])
    assert "name" not in hint


@pytest.mark.parametrize("said", [b"", b"REMOTER/1", b"REMOTER/x\n", b"REMOTER/11111111111111111111\n"])
def test_without_a_greeting_nothing_is_told(hello, said):
    assert told(hello, said) == b""


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_after_the_greeting_end_the_dialogue(hello, said):
    answer = told(hello, GREETING + said)
    assert answer.count(b'"type"') == 1


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    )
)
def test_random_json_after_the_greeting_ends_the_dialogue(hello, value):
    body = json.dumps(value).encode()[:4096]
    assert told(hello, GREETING + struct.pack("!H", len(body)) + body).count(b'"type"') == 1


def test_deeply_nested_json_ends_the_dialogue(hello):
    body = b'{"type":"guess","a":' + b"[" * 4000
    assert told(hello, GREETING + struct.pack("!H", len(body)) + body).count(b'"type"') == 1


@settings(deadline=None)
@given(st.integers(0, 65535))
def test_only_short_frames_are_taken(length):
    if 0 < length <= 4096:
        assert body_length(struct.pack("!H", length)) == length
    else:
        with pytest.raises(NotAFrameError):
            body_length(struct.pack("!H", length))


# --- turns to guess --------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


async def nothing(seconds):
    pass


def test_each_failure_doubles_the_pause_of_that_address_only():
    async def play():
        clock = Clock()
        turns = Turns(clock=clock)
        pauses = []
        for _ in range(7):
            await turns.take("192.0.2.1", nothing)
            pauses.append(turns.seconds_until("192.0.2.1"))
            clock.now += pauses[-1]
        assert turns.seconds_until("192.0.2.2") == 0
        turns.succeeded("192.0.2.1")
        await turns.take("192.0.2.1", nothing)
        return pauses, turns.seconds_until("192.0.2.1")

    pauses, after = asyncio.run(play())
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert after == 1


def test_quiet_minutes_forgive():
    async def play():
        clock = Clock()
        turns = Turns(clock=clock)
        for _ in range(3):
            await turns.take("192.0.2.1", nothing)
            clock.now += 30
        clock.now += 3 * turns.FORGIVEN
        await turns.take("192.0.2.1", nothing)
        return turns.seconds_until("192.0.2.1")

    assert asyncio.run(play()) == 1


def test_who_waits_is_told_for_how_long_and_then_has_its_turn():
    async def play():
        clock, said = Clock(), []
        turns = Turns(clock=clock)

        async def tell(seconds):
            said.append(seconds)
            clock.now += seconds

        await turns.take("192.0.2.1", tell)
        assert said == []
        await asyncio.wait_for(turns.take("192.0.2.1", tell), 30)
        return said

    assert asyncio.run(play()) == [1.0]


def test_a_crowd_behind_one_address_does_not_delay_another():
    async def play():
        turns = Turns(rate=100.0, burst=1.0)
        crowd = [asyncio.ensure_future(turns.take("192.0.2.1", nothing)) for _ in range(200)]
        await asyncio.sleep(0)
        await asyncio.wait_for(turns.take("192.0.2.2", nothing), 30)
        done = sum(task.done() for task in crowd)
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return done, len(turns._queue)

    done, left = asyncio.run(play())
    assert done <= 2
    assert left == 0


def test_one_network_of_ipv6_is_one_guesser():
    async def play():
        turns = Turns(clock=Clock())
        await turns.take("2001:db8::1", nothing)
        return (
            turns.seconds_until("2001:db8::ffff"),
            turns.seconds_until("2001:db8:0:1::1"),
            turns.seconds_until("fe80::1%eth0"),
        )

    same, other, link = asyncio.run(play())
    assert same == 1
    assert other == link == 0


def test_the_memory_of_guessers_is_bounded():
    async def play():
        turns = Turns(rate=1e9, burst=1e9)
        for number in range(turns.ADDRESSES + 500):
            await turns.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", nothing)
        return len(turns._guessers)

    assert asyncio.run(play()) <= Turns.ADDRESSES
