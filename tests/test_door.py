"""The port as strangers, clients and relays meet it: a real door before a real CURVE socket, over loopback."""

import contextlib
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq

import remoter
from remoter import AddressError, AuthError, ConnectError, KeyChangedError, RemoterError, VersionError
from remoter._door import Door, Limits, carries_data, kind_of
from remoter._hello import Hello, Refused, encode_frame
from remoter._login import ask_server, login
from remoter._messages import DATA_ROUTING_ID
from remoter._security import (
    INSECURE_KEYS,
    ZAP_ADDRESS,
    Keyring,
    answer_zap,
    client_keys,
    new_keys,
    secure_client_socket,
    secure_server_socket,
    server_keys,
)
from remoter._turns import Turns

from .conftest import wait_for

PASSWORD = "otter-lamp-nine"
LOOPBACK = "127.0.0.1"
HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


class House:
    """A CURVE ROUTER that echoes, its ZAP, and a door in front of them, in this process."""

    def __init__(
        self, directory, *, secure=True, password=PASSWORD, host=LOOPBACK, limits=None, maxretry=5, turns=None
    ):
        self.keys = server_keys() if secure else INSECURE_KEYS
        self.keyring = Keyring(admit_all=not secure)
        self.context = zmq.Context()
        self.zap = self.context.socket(zmq.ROUTER)
        self.zap.bind(ZAP_ADDRESS)
        self.router = secure_server_socket(self.context, self.keys)
        self.router.linger = 0
        self.path = directory / "zmq.sock"
        self.router.bind(f"ipc://{self.path}")
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._echo)
        self.thread.start()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.host = host
        listener = socket.create_server((host, 0), family=family, backlog=512)
        self.port = listener.getsockname()[1]
        self.hello = Hello(
            self.keys.public, self.keyring, password, secure=secure, maxretry=maxretry, turns=turns
        )
        self.door = Door([listener], self.path, self.hello, limits=limits, data=directory / "data.sock")
        self.door.start()

    def _echo(self):
        """`flood N` gets N frames of 1 MB; all else comes back."""
        poller = zmq.Poller()
        poller.register(self.zap, zmq.POLLIN)
        poller.register(self.router, zmq.POLLIN)
        while not self.stopping.is_set():
            ready = dict(poller.poll(20))
            if self.zap in ready:
                answer_zap(self.zap, self.keyring)
            if self.router in ready:
                who, what = self.router.recv_multipart()
                answers = [what]
                if what.startswith(b"flood"):
                    answers = [bytes(1 << 20)] * int(what.split()[1])
                for answer in answers:
                    try:
                        self.router.send_multipart([who, answer], zmq.NOBLOCK)
                    except zmq.ZMQError:
                        break

    def stop(self):
        self.door.stop()
        self.stopping.set()
        self.thread.join()
        self.zap.close(0)
        self.router.close(0)
        self.context.term()


@pytest.fixture
def build(home):
    houses = []

    def start(**options):
        directory = home / f"r{len(houses)}"
        directory.mkdir(mode=0o700)
        houses.append(House(directory, **options))
        return houses[-1]

    yield start
    for house in houses:
        house.stop()
    wait_for(
        lambda: not [thread for thread in threading.enumerate() if thread.name == "remoter-door"],
        what="the doors' threads to end",
    )


@pytest.fixture
def house(build):
    return build()


class Client:
    """A DEALER with a monitor."""

    def __init__(self, host, port, keys, public):
        self.context = zmq.Context()
        self.socket = secure_client_socket(self.context, keys, public)
        self.monitor = self.socket.get_monitor_socket(HANDSHAKE)
        where = f"[{host}]" if ":" in host else host
        self.socket.connect(f"tcp://{where}:{port}")

    def shakes_hands(self, timeout=15.0):
        """Whether it was admitted."""
        assert self.monitor.poll(timeout * 1000), "no answer to the handshake"
        event = int.from_bytes(self.monitor.recv_multipart()[0][:2], sys.byteorder)
        return event == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def ask(self, what=b"hello", timeout=15.0):
        self.socket.send(what)
        assert self.socket.poll(timeout * 1000), "no answer"
        return self.socket.recv()

    def close(self):
        if self.context.closed:
            return
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)
        self.context.term()


@pytest.fixture
def client():
    made = []

    def connect(house, keys=None, public=None, port=None):
        made.append(
            Client(house.host, port or house.port, keys or client_keys(), public or house.keys.public)
        )
        return made[-1]

    yield connect
    for one in made:
        one.close()


def knock(house, said=b"", timeout=15.0):
    """A plain connection that has said something."""
    connection = socket.create_connection((house.host, house.port), timeout=timeout)
    if said:
        connection.sendall(said)
    return connection


def all_of(connection):
    """What comes until the other end closes."""
    heard = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            heard += data
    return heard


def resident():
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def virtual():
    """KiB of address space of this process: now, and at most so far."""
    status = Path("/proc/self/status").read_text()
    return [int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmSize", "VmPeak")]


# --- the data path ---------------------------------------------------------------------------


def test_a_client_with_an_admitted_key_talks_through_the_door(house, client):
    one = client(house)
    assert one.shakes_hands()
    assert one.ask(b"x" * 3_000_000) == b"x" * 3_000_000
    assert house.door.counts == (1, 0)
    one.close()
    wait_for(lambda: house.door.counts == (0, 0), what="the connection's end")


def test_a_client_with_another_key_is_refused(house, client):
    assert not client(house, new_keys()).shakes_hands()
    wait_for(lambda: house.door.counts == (0, 0), what="the connection's end")


def test_ipv6_works_all_the_way(build, client):
    house = build(host="::1")
    keys = new_keys()
    assert ask_server("::1", house.port).public == house.keys.public
    assert login("::1", house.port, PASSWORD, keys) == house.keys.public
    one = client(house, keys)
    assert one.shakes_hands()
    assert one.ask() == b"hello"


def test_an_insecure_server_admits_anyone_with_the_published_key(build, client):
    house = build(secure=False, password=None)
    hello = ask_server(LOOPBACK, house.port, secure=False)
    assert not hello.secure
    one = client(house, new_keys(), INSECURE_KEYS.public)
    assert one.shakes_hands()
    assert one.ask() == b"hello"


def test_a_client_that_does_not_read_holds_up_nobody_and_little_memory(house, client):
    slow, quick = client(house), client(house)
    slow.socket.setsockopt(zmq.RCVHWM, 1)
    assert slow.shakes_hands()
    before = resident()
    slow.socket.send(b"flood 60")
    assert quick.shakes_hands()
    for _ in range(20):
        assert quick.ask() == b"hello"
    assert resident() - before < 150 << 20
    for _ in range(60):
        assert slow.socket.poll(15_000)
        assert len(slow.socket.recv()) == 1 << 20


# --- logging in ------------------------------------------------------------------------------


def test_the_right_password_admits_the_client(house, client):
    keys = new_keys()
    assert login(LOOPBACK, house.port, PASSWORD, keys) == house.keys.public
    one = client(house, keys)
    assert one.shakes_hands()
    assert one.ask() == b"hello"


@pytest.mark.parametrize("password", ["otter-lamp-ninf", "", "x" * 100_000])
def test_a_wrong_password_is_refused_and_the_server_lives(house, client, password):
    keys = new_keys()
    with pytest.raises(AuthError, match="wrong password") as caught:
        login(LOOPBACK, house.port, password, keys)
    assert caught.value.id == "password"
    assert "next try in 1 s" in caught.value.cause
    assert not client(house, keys).shakes_hands()
    assert login(LOOPBACK, house.port, PASSWORD, keys) == house.keys.public


def test_of_several_passwords_the_right_one_is_found_in_one_connection(house):
    waits = []
    keys = new_keys()
    public = login(LOOPBACK, house.port, ["wrong", PASSWORD], keys, on_wait=waits.append)
    assert public == house.keys.public
    assert len(waits) == 1
    assert house.keyring.admits(keys.public)


class Halting(Turns):
    """Turns whose clock stands still from the third failure on, until `go_on`: so long everybody waits for 4 s."""

    def __init__(self):
        self.failures, self.stands_at, self.behind = 0, None, 0.0
        super().__init__(clock=self.time)

    def time(self):
        return time.monotonic() - self.behind if self.stands_at is None else self.stands_at

    def failed(self, address):
        self.failures += 1
        if self.failures == 3:
            self.stands_at = self.time()
        super().failed(address)

    def go_on(self):
        self.behind, self.stands_at = time.monotonic() - self.stands_at, None


def test_guesses_are_delayed_and_never_refused(build):
    house, waits = build(turns=(turns := Halting())), []
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(AuthError, match="wrong password"):
            login(LOOPBACK, house.port, "wrong", new_keys(), on_wait=waits.append)
    assert time.monotonic() - began > 2.9
    assert all(0 < seconds <= 2 for seconds in waits)
    with pytest.raises(AuthError, match="no turn") as caught:
        login(LOOPBACK, house.port, PASSWORD, new_keys(), patience=1)
    assert "next try in 4 s" in caught.value.cause
    turns.go_on()
    assert login(LOOPBACK, house.port, PASSWORD, new_keys(), timeout=3) == house.keys.public


def test_guesses_for_one_connection_are_counted(build):
    house = build(maxretry=2)
    with pytest.raises(AuthError, match="wrong password"):
        login(LOOPBACK, house.port, ["wrong"] * 2 + [PASSWORD], new_keys())
    assert house.door.counts[1] <= 1


def test_many_log_in_at_once(house):
    results = []

    def go():
        results.append(login(LOOPBACK, house.port, PASSWORD, new_keys()))

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [house.keys.public] * 4


def test_a_server_without_a_password_says_so(build):
    house = build(password=None)
    assert ask_server(LOOPBACK, house.port).auth == ("key",)
    with pytest.raises(AuthError, match="takes no password"):
        login(LOOPBACK, house.port, "x", new_keys())


def test_a_server_with_another_key_than_the_pin_gets_no_guess(house):
    with pytest.raises(KeyChangedError, match="the key of") as caught:
        login(LOOPBACK, house.port, PASSWORD, new_keys(), expected=new_keys().public)
    assert "type no password" in str(caught.value)


# --- somebody in between ---------------------------------------------------------------------


class Meddler:
    """A relay that changes what the server says."""

    def __init__(self, port, change):
        self.target, self.change = port, change
        self.listener = socket.create_server((LOOPBACK, 0))
        self.port = self.listener.getsockname()[1]
        self.host = LOOPBACK
        self.threads = [threading.Thread(target=self._serve)]
        self.threads[0].start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                outer, _ = self.listener.accept()
                inner = socket.create_connection((LOOPBACK, self.target))
                for pair in [(outer, inner, lambda data: data), (inner, outer, self.change)]:
                    self.threads.append(threading.Thread(target=self._copy, args=pair))
                    self.threads[-1].start()

    def _copy(self, source, sink, change):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(change(data))
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_RDWR)
        source.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def meddler():
    made = []

    def start(port, change):
        made.append(Meddler(port, change))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_relay_that_swaps_the_key_in_the_hello_is_found_out_by_the_password(house, meddler):
    own = new_keys()
    evil = meddler(house.port, lambda data: data.replace(house.keys.public.encode(), own.public.encode()))
    with pytest.raises(AuthError, match="does not know the password") as caught:
        login(LOOPBACK, evil.port, PASSWORD, new_keys())
    assert caught.value.id == "impostor"


def test_a_relay_that_swaps_the_key_in_the_hello_is_found_out_by_the_pin(house, meddler):
    own = new_keys()
    evil = meddler(house.port, lambda data: data.replace(house.keys.public.encode(), own.public.encode()))
    with pytest.raises(KeyChangedError):
        login(LOOPBACK, evil.port, PASSWORD, new_keys(), expected=house.keys.public)


def test_a_relay_that_says_less_than_the_server_is_found_out(house, meddler):
    evil = meddler(house.port, lambda data: data.replace(b'"version":"0', b'"version":"9'))
    with pytest.raises(AuthError, match="does not know the password"):
        login(LOOPBACK, evil.port, PASSWORD, new_keys())


def test_a_server_that_does_not_know_the_password_learns_nothing_and_is_reported(build, meddler):
    real = build()
    fake = build(password="something else")
    with pytest.raises(AuthError, match="wrong password"):
        login(LOOPBACK, fake.port, PASSWORD, new_keys())
    assert login(LOOPBACK, real.port, PASSWORD, new_keys()) == real.keys.public


def test_nobody_can_talk_a_secure_client_into_no_security(house, meddler, build):
    evil = meddler(house.port, lambda data: data.replace(b'"curve"', b'"none" '))
    for call in [
        lambda: ask_server(LOOPBACK, evil.port),
        lambda: login(LOOPBACK, evil.port, PASSWORD, new_keys()),
    ]:
        with pytest.raises(AuthError, match="does not encrypt") as caught:
            call()
        assert caught.value.id == "insecure"
    published = meddler(
        house.port, lambda data: data.replace(house.keys.public.encode(), INSECURE_KEYS.public.encode())
    )
    with pytest.raises(AuthError, match="does not encrypt"):
        ask_server(LOOPBACK, published.port)
    with pytest.raises(AuthError, match="leave `secure=False` out"):
        ask_server(LOOPBACK, house.port, secure=False)


def test_the_other_ends_version_is_named(house, meddler):
    newer = meddler(house.port, lambda data: data.replace(b"[1,1]", b"[7,9]"))
    with pytest.raises(VersionError, match=r"here 1 .*7 to 9"):
        ask_server(LOOPBACK, newer.port)
    other = meddler(house.port, lambda data: data.replace(b"REMOTER/1", b"REMOTER/2"))
    with pytest.raises(VersionError, match="say hello"):
        ask_server(LOOPBACK, other.port)
    costly = meddler(house.port, lambda data: data.replace(b"argon2id-3-65536-1", b"argon2id-9-99999-9"))
    with pytest.raises(VersionError, match="stretched"):
        login(LOOPBACK, costly.port, PASSWORD, new_keys())


# --- what else may listen there --------------------------------------------------------------


@pytest.fixture
def stranger():
    """A listener that says something to whoever comes, then closes; or keeps silent."""
    ends = []

    def start(said, *, stays=False):
        listener = socket.create_server((LOOPBACK, 0))

        def serve():
            kept = []
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.sendall(said)
                    if stays:
                        kept.append(connection)
                    else:
                        connection.recv(100)
                        connection.close()
            for connection in kept:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        ends.append((listener, thread))
        return listener.getsockname()[1]

    yield start
    for listener, thread in ends:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "ssh answers"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "web server"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS"),
        (b"220 mail.example ESMTP\r\n", "220 mail"),
        (b"REMOTER/1\n\xff\xff", "65535 bytes"),
        (b"REMOTER/1\n\0\x02{}", "cannot be read"),
        (b"REMOTER/1\n\0\x27" + b'{"type":"hint","security":"none","publi', "cannot be read"),
    ],
)
def test_who_answers_instead_of_a_server_is_named(stranger, said, cause):
    with pytest.raises(ConnectError) as caught:
        ask_server(LOOPBACK, stranger(said))
    assert caught.value.id == "not-remoter"
    assert cause in caught.value.cause


def test_a_zeromq_socket_without_a_door_is_named():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port(f"tcp://{LOOPBACK}")
        with pytest.raises(ConnectError, match="no remoter server") as caught:
            ask_server(LOOPBACK, port)
        assert "NULL" in caught.value.cause


def test_nobody_is_told_apart_from_no_answer_and_no_machine(stranger):
    with (
        socket.socket() as deaf,  # has the port, so that nobody else has it, and does not listen
        pytest.raises(ConnectError, match="nothing listens") as caught,
    ):
        deaf.bind((LOOPBACK, 0))
        ask_server(LOOPBACK, deaf.getsockname()[1])
    assert caught.value.id == "refused"
    with pytest.raises(ConnectError, match="no machine named") as caught:
        ask_server("no-such-machine.invalid", 55555)
    assert caught.value.id == "no-host"
    with pytest.raises(ConnectError, match="says nothing") as caught:
        ask_server(LOOPBACK, stranger(b"", stays=True), 0.2)
    assert caught.value.id == "no-answer"
    with pytest.raises(ConnectError, match="without a word") as caught:
        ask_server(LOOPBACK, stranger(b""))
    assert caught.value.id == "closed"


def test_a_full_backlog_is_no_answer():
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind((LOOPBACK, 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with pytest.raises(ConnectError) as caught:
            ask_server(LOOPBACK, listener.getsockname()[1], 0.3)
        assert caught.value.id == "no-answer"


# --- strangers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\x00" * 100,
        os.urandom(2000).replace(b"\xff", b"\0").replace(b"G", b"x").replace(b"R", b"x"),
        b"SSH-2.0-client\r\n",
        b"REMOTES/1\n",
        b"GOT / HTTP/1.1\r\n",
    ],
)
def test_whoever_speaks_something_else_is_closed_without_a_word(house, said):
    with knock(house, said) as connection:
        assert all_of(connection) == b""


@pytest.mark.parametrize(
    "verb", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /x HTTP/1.0\r\n\r\n" + b"x" * 5000]
)
def test_a_browser_is_told_what_this_is(house, verb):
    with knock(house, verb) as connection:
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"remoter client" in answer


def test_the_kind_of_a_visitor_is_found_byte_by_byte():
    for said, kind in [
        (b"REMOTER/1\n", "hello"),
        (b"GET / HTTP", "web"),
        (b"\xff\0", "zmtp"),
        (b"PUX", "other"),
    ]:
        kinds = [kind_of(said[:size]) for size in range(1, len(said) + 1)]
        assert kinds[-1] == kind
        assert set(kinds) <= {"", kind}


def test_a_greeting_that_comes_in_pieces_is_understood(house):
    with knock(house) as connection:
        for byte in b"REMOTER/1\n":
            connection.sendall(bytes([byte]))
        assert connection.recv(100).startswith(b"REMOTER/1\n")


def test_whoever_says_nothing_is_closed_in_time(home, build, monkeypatch):
    monkeypatch.setattr("remoter._door.SILENCE", 0.2)
    monkeypatch.setattr("remoter._hello.STEP", 0.2)
    house = build()
    for said in [b"", b"\xff\0\0", b"REM", b"REMOTER/1\n", b"\xff" + bytes(7) + b"\x01\x7f\x03"]:
        with knock(house, said) as connection:
            began = time.monotonic()
            all_of(connection)
            assert time.monotonic() - began < 9  # not the 10 s of the others
    wait_for(lambda: house.door.counts == (0, 0), what="all to be closed")


def test_half_a_hello_and_a_hello_of_rubbish_end(house):
    for said in [
        b"REMOTER/1\n\xff\xff",
        b"REMOTER/1\n" + encode_frame(Refused(error="x")),
        b"REMOTER/1\n\0\1x",
    ]:
        with knock(house, said) as connection:
            connection.shutdown(socket.SHUT_WR)
            assert all_of(connection).count(b'"type"') == 1


GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01CURVE" + bytes(15) + b"\0" + bytes(31)
HUGE_FRAME = b"\x02" + struct.pack("!Q", 10 << 30)


def test_a_frame_that_claims_ten_gigabytes_costs_no_memory(build):
    house = build(password=None)  # stretching one takes 64 MiB for a moment
    before, (size, highest) = resident(), virtual()
    with knock(house, GREETING + HUGE_FRAME) as connection, contextlib.suppress(OSError):
        connection.settimeout(0.3)
        for _ in range(200):
            connection.sendall(bytes(1 << 16))
    with knock(house, b"\xff" * 9 + bytes(1 << 16)) as connection, contextlib.suppress(OSError):
        connection.settimeout(0.2)
        connection.sendall(bytes(50 << 20))
    assert resident() - before < 30 << 20
    assert virtual()[1] <= max(highest, size + (9 << 20))  # KiB: 9 GB


def test_no_more_than_a_kibibyte_passes_before_admission(build, home):
    heard = bytearray()
    path = home / "inner.sock"
    with socket.socket(socket.AF_UNIX) as inner_listener, socket.create_server((LOOPBACK, 0)) as listener:
        inner_listener.bind(str(path))
        inner_listener.listen()
        door = Door([listener], path, None)
        door.start()
        with socket.create_connection(listener.getsockname(), timeout=15) as outer:
            outer.sendall(b"\xff" + bytes(5000))
            inner, _ = inner_listener.accept()
            with inner:
                inner.settimeout(15)
                while len(heard) < 1024:
                    heard += inner.recv(65536)
                inner.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    inner.recv(1)
                inner.sendall(bytes(260))
                with pytest.raises(TimeoutError):
                    inner.recv(1)
                inner.sendall(b"!")  # more than a refusal: admitted
                inner.settimeout(15)
                while len(heard) < 5001:
                    heard += inner.recv(65536)
                outer.shutdown(socket.SHUT_WR)
                assert inner.recv(1) == b""
                inner.sendall(b"last words")
                inner.shutdown(socket.SHUT_WR)
                assert all_of(outer) == bytes(260) + b"!last words"
        door.stop()


def test_two_thousand_silent_connections_keep_no_client_out(house, client, monkeypatch):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8000:
        pytest.skip("too few descriptors")
    limit = Limits.of_this_process()
    monkeypatch.setattr("remoter._door.SILENCE", 600.0)  # none of them goes because its time is over
    with contextlib.ExitStack() as stack:
        crowd = []
        for number in range(2000):
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex((LOOPBACK, house.port))
            crowd.append(connection)
            if number % 100 == 99:
                for one in crowd[::7]:
                    with contextlib.suppress(OSError):
                        one.send(b"\xff")
                wait_for(lambda: house.door.counts[1] <= limit.loopback, what="the cap")
        one = client(house)
        assert one.shakes_hands()
        assert one.ask() == b"hello"
        keys = new_keys()
        assert login(LOOPBACK, house.port, PASSWORD, keys) == house.keys.public
        wait_for(lambda: house.door.counts[0] <= limit.loopback + 2, what="who was sent away to be gone")


def test_a_stranger_too_many_sends_the_oldest_away_not_the_client(build, client):
    house = build(limits=Limits(total=6, strangers=4, one_address=4, loopback=4))
    one = client(house)
    assert one.shakes_hands()
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(knock(house)) for _ in range(12)]
        for connection in crowd[:8]:
            assert all_of(connection) == b""
        assert one.ask() == b"hello"
        two = client(house)
        assert two.shakes_hands()
        assert one.ask() == b"hello"


@pytest.mark.parametrize("said", [b"REMOTER/1\n", b"\xff"])
def test_a_crowd_keeps_out_neither_clients_nor_logins(build, client, said):
    house = build(limits=Limits(total=40, strangers=6, one_address=6, loopback=6))
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(knock(house, said))
        keys = new_keys()
        assert login(LOOPBACK, house.port, PASSWORD, keys) == house.keys.public
        assert client(house, keys).shakes_hands()


def test_a_door_that_was_never_opened_can_be_closed(home):
    listener = socket.create_server((LOOPBACK, 0))
    Door([listener], home / "x.sock", None).stop()
    assert listener.fileno() == -1


def test_connections_beyond_the_total_are_closed_and_clients_stay(build, client):
    house = build(limits=Limits(total=2, strangers=2, one_address=2, loopback=2))
    ones = [client(house), client(house)]
    for one in ones:
        assert one.shakes_hands()
    with knock(house) as connection:
        assert all_of(connection) == b""
    for one in ones:
        assert one.ask() == b"hello"


SPARSE = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
from pathlib import Path
from remoter._door import Door, Limits
listener = socket.create_server(("127.0.0.1", 0), backlog=512)
door = Door([listener], Path("/nowhere"), None, limits=Limits(1000, 1000, 1000, 1000))
door.start()
print(listener.getsockname()[1], flush=True)
sys.stdin.read(1)
print(time.process_time(), flush=True)
sys.stdin.read(1)
print(time.process_time(), flush=True)
door.stop()
"""


def test_without_descriptors_it_does_not_spin_and_comes_back():
    with subprocess.Popen(
        [sys.executable, "-c", SPARSE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        port = int(process.stdout.readline())
        with contextlib.ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(socket.create_connection((LOOPBACK, port)))
            process.stdin.write(b"x")
            before = float(process.stdout.readline())
            time.sleep(1)
            process.stdin.write(b"x")
            assert float(process.stdout.readline()) - before < 0.5
        process.stdin.close()
        assert process.wait(10) == 0


# --- connections for data --------------------------------------------------------------------


def signature(length):
    """How a ZeroMQ connection begins whose routing id has that many bytes."""
    return b"\xff" + (length + 1).to_bytes(8, "big") + b"\x7f"


class Inner:
    """The two sockets of a server, as far as the door sees them, and the door; over TCP and over a unix socket."""

    def __init__(self, home):
        self.stack = contextlib.ExitStack()
        self.listeners = {}
        for name in ("zmq", "data"):
            listener = self.stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(home / f"{name}.sock"))
            listener.listen()
            listener.settimeout(15)
            self.listeners[name] = listener
        outer = socket.create_server((LOOPBACK, 0))
        tunnel = socket.socket(socket.AF_UNIX)
        tunnel.bind(str(home / "door.sock"))
        tunnel.listen()
        self.addresses = [outer.getsockname(), tunnel.getsockname()]
        self.door = Door([outer, tunnel], home / "zmq.sock", None, data=home / "data.sock")
        self.door.start()

    def knock(self, said, address=None):
        address = address or self.addresses[0]
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        connection = self.stack.enter_context(socket.socket(family))
        connection.settimeout(15)
        connection.connect(address)
        connection.sendall(said)
        return connection

    def arrives_at(self, name, said):
        """Whether just these bytes come to that socket."""
        connection, _ = self.listeners[name].accept()
        with connection:
            connection.settimeout(15)
            heard = b""
            while len(heard) < len(said):
                heard += connection.recv(len(said) - len(heard))
            return heard == said

    def close(self):
        self.door.stop()
        self.stack.close()


@pytest.fixture
def inner(home):
    inner = Inner(home)
    yield inner
    inner.close()


@pytest.mark.parametrize("way", [0, 1], ids=["port", "tunnel"])
@pytest.mark.parametrize(
    ("length", "target"),
    [
        (0, "zmq"),
        (5, "zmq"),
        (46, "zmq"),
        (DATA_ROUTING_ID, "data"),
        (48, "zmq"),
        (255, "zmq"),
        ((47 << 8) - 1, "zmq"),
    ],
)
def test_a_connection_for_data_is_led_to_its_own_socket_and_no_other(inner, way, length, target):
    said = signature(length) + bytes(54)
    inner.knock(said, inner.addresses[way])
    assert inner.arrives_at(target, said)


def test_a_greeting_in_single_bytes_is_led_to_the_right_socket(inner):
    said = signature(DATA_ROUTING_ID)
    connection = inner.knock(b"")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in said:
        connection.sendall(bytes([byte]))
    assert inner.arrives_at("data", said)


def test_half_a_greeting_is_a_stranger_who_is_closed_in_time(inner, monkeypatch):
    halves = (b"\xff", signature(DATA_ROUTING_ID)[:-1])
    monkeypatch.setattr("remoter._door.SILENCE", 600.0)
    for count, said in enumerate(halves, 1):
        inner.knock(said)
        wait_for(lambda count=count: inner.door.counts == (count, count), what="the stranger to be counted")
    monkeypatch.setattr("remoter._door.SILENCE", 0.3)
    for said in halves:
        assert all_of(inner.knock(said)) == b""
    wait_for(lambda: inner.door.counts == (2, 2), what="those whose time is over to be closed")


def test_what_libzmq_says_of_the_length_of_a_routing_id_is_what_the_door_reads():
    with socket.create_server((LOOPBACK, 0)) as listener, zmq.Context() as context:
        listener.settimeout(15)
        for routing_id in (b"d" * DATA_ROUTING_ID, b"d" * 46, None):
            with context.socket(zmq.DEALER) as dealer:
                dealer.linger = 0
                if routing_id:
                    dealer.setsockopt(zmq.ROUTING_ID, routing_id)
                dealer.connect(f"tcp://{LOOPBACK}:{listener.getsockname()[1]}")
                connection, _ = listener.accept()
                with connection:
                    said = connection.recv(10, socket.MSG_WAITALL)
            assert said[:1] + said[9:] == b"\xff\x7f"
            assert carries_data(said) == (routing_id is not None and len(routing_id) == DATA_ROUTING_ID)


def test_a_login_works_through_the_unix_socket_too(home):
    keys = server_keys()
    keyring = Keyring()
    path = home / "door.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    door = Door([listener], home / "zmq.sock", Hello(keys.public, keyring, PASSWORD), data=home / "data.sock")
    door.start()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(15)
        connection.connect(str(path))
        connection.sendall(b"REMOTER/1\n")
        assert connection.recv(100).startswith(b"REMOTER/1\n")
    door.stop()


def test_a_relay_passes_connections_for_data_on_as_it_does_all_others(inner, relay):
    port = relay(LOOPBACK, sendport=inner.addresses[0][1]).port
    for length, target in ((DATA_ROUTING_ID, "data"), (5, "zmq")):
        said = signature(length) + bytes(54)
        inner.knock(said, (LOOPBACK, port))
        assert inner.arrives_at(target, said)


# --- relays ----------------------------------------------------------------------------------


@pytest.fixture
def relay():
    """Starts `remoter.relay` in a process of its own; the port it listens on."""
    processes = []

    def start(target, *, sendport=55555, recvport=0):
        code = f"import remoter; remoter.relay({target!r}, {recvport}, {sendport}, verbose=True)"
        processes.append(
            subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, bufsize=1)
        )
        line = processes[-1].stderr.readline()
        assert "relay from" in line, line + processes[-1].stderr.read()
        processes[-1].port = int(re.search(r"127\.0\.0\.1:(\d+) to", line)[1])
        return processes[-1]

    yield start
    for process in processes:
        process.send_signal(signal.SIGINT)
        with process:
            process.stderr.read()
            assert process.wait(15) == 0


@pytest.mark.parametrize("length", [1, 2])
def test_everything_works_through_a_relay_and_through_a_chain(house, client, relay, length):
    port = house.port
    for _ in range(length):
        port = relay(LOOPBACK, sendport=port).port
    keys = new_keys()
    assert ask_server(LOOPBACK, port).public == house.keys.public
    assert login(LOOPBACK, port, PASSWORD, keys, expected=house.keys.public) == house.keys.public
    one = client(house, keys, port=port)
    assert one.shakes_hands()
    assert one.ask(b"x" * 3_000_000) == b"x" * 3_000_000
    assert not client(house, new_keys(), port=port).shakes_hands()


def test_a_relay_whose_server_is_down_closes_and_works_when_it_is_up(home, build, client, relay):
    with socket.socket() as deaf:  # has the port, so that nobody else has it, and does not listen
        deaf.bind((LOOPBACK, 0))
        process = relay(f"{LOOPBACK}:{deaf.getsockname()[1]}")
        with socket.create_connection((LOOPBACK, process.port), timeout=15) as connection:
            connection.sendall(GREETING)
            assert all_of(connection) == b""
        assert any("nothing listens" in line for line in iter(process.stderr.readline, ""))
        with pytest.raises(ConnectError, match="without a word"):
            ask_server(LOOPBACK, process.port)


def test_a_relay_ends_on_sigterm(house, relay):
    process = relay(f"remoter://{LOOPBACK}:{house.port}/")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("localhost", 55555), "send to itself"),
        (("127.0.0.1:4321", 4321), "send to itself"),
        (("ssh://big", 55556), "cannot go to"),
        (("http://big", 55556), "does not speak"),
        (("big", 80), "needs root"),
        (("big:4000", 55556, 4001), "given too"),
        (("big", 70000), "not between"),
    ],
)
def test_a_relay_that_cannot_be_meant_is_refused(arguments, says):
    with pytest.raises(AddressError, match=says):
        remoter.relay(*arguments)


@pytest.mark.parametrize("listen", ["localhost", "::1", "::"])
def test_a_relay_listens_where_it_is_told(listen):
    from remoter._door import _listen

    listeners = _listen(listen, 0)
    try:
        port = listeners[0].getsockname()[1]
        for host in ["127.0.0.1", "::1"] if listen == "::" else [listen]:
            socket.create_connection((host, port), timeout=5).close()
    finally:
        for listener in listeners:
            listener.close()


def test_a_relay_on_an_address_that_is_not_ours_is_refused():
    with pytest.raises(AddressError, match="cannot listen"):
        remoter.relay("big", 0, listen="192.0.2.1")


def test_a_relay_on_a_taken_port_is_refused(house):
    with pytest.raises(RemoterError, match="is taken") as caught:
        remoter.relay("big", house.port)
    assert caught.value.id == "port-taken"
