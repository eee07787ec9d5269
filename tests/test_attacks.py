"""All that can be thrown at a real server's port: by strangers, by whoever sits in between, by a client that is admitted."""

import contextlib
import http.client
import os
import pickle
import socket
import ssl
import struct
import subprocess
import sys
import time

import msgspec
import pytest
import zmq

import remoter
from remoter import _records
from remoter._address import key_to_text
from remoter._door import Limits, raise_descriptor_limit
from remoter._login import login
from remoter._messages import (
    LONGEST_CODE,
    Acknowledge,
    Answer,
    Attach,
    Interrupt,
    Ping,
    Query,
    Submit,
    decode_event,
    decode_from_server,
    encode,
)
from remoter._security import KeyPair, new_keys, secure_client_socket

from .conftest import is_alive, wait_for
from .proxy import Proxy
from .test_door import GREETING, HUGE_FRAME, Meddler
from .test_keeper import quiet_port
from .test_recovery import memory

LOOPBACK = "127.0.0.1"


@pytest.fixture
def served(serve):
    return serve(runner="plain")


@pytest.fixture
def elsewhere(home, monkeypatch):
    """From now on this is another user's home, in which no session and no key is known."""

    def move(name="elsewhere"):
        for kind in ["CONFIG", "STATE"]:
            monkeypatch.setenv(f"REMOTER_{kind}_DIR", str(home / f"{name}-{kind.lower()}"))

    return move


def log_of(served):
    return (served.directory / "server.log").read_text()


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_unharmed(served):
    """The first server still runs, and serves a client that comes through the port."""
    assert is_alive(served.server_pid)
    with served.connect_tcp() as session:
        assert session.run("6 * 7", timeout=30).text == "42"
        assert session.info.server_pid == served.server_pid
    assert "Traceback" not in log_of(served)
    return True


# --- strangers -------------------------------------------------------------------------------

TLS_HELLO = bytes.fromhex(
    "16030100a1010000 9d0303".replace(" ", "") + "5a" * 32 + "00" + "0004" + "13011302" + "0100"
) + bytes(100)

WORDS = {
    "random bytes": os.urandom(4096),
    "random bytes after ZeroMQ's first": b"\xff" + os.urandom(4096),
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP with a body without end": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"ff\r\n" * 9999,
    "TLS": TLS_HELLO,
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "redis": b"*1\r\n$8\r\nFLUSHALL\r\n",
    "a line without end": b"a" * 1_000_000,
    "half a greeting of ZeroMQ": GREETING[:7],
    "a greeting of ZeroMQ and nothing else": GREETING,
    "a greeting of ZeroMQ for no security": GREETING.replace(b"CURVE", b"NULL\0"),
    "ten gigabytes announced": GREETING + HUGE_FRAME + bytes(2_000_000),
    "ten gigabytes announced by a command": GREETING + b"\x06" + struct.pack("!Q", 10 << 30) + bytes(2_000_000),
    "a negative length": GREETING + b"\x02" + b"\xff" * 8 + bytes(5000),
    "a CURVE hello of zeros": GREETING + b"\x04\xc8\x05HELLO\x01\x00" + bytes(198),
    "half a greeting of ours": b"REMOT",
    "a greeting without end": b"REMOTER/" + b"1" * 100_000,
    "the greeting of tomorrow": b"REMOTER/999\n",
    "only the greeting": b"REMOTER/1\n",
    "half a frame": b"REMOTER/1\n\x01\x00{",
    "a frame of 64 kB": b"REMOTER/1\n\xff\xff" + b"x" * 65535,
    "an empty frame": b"REMOTER/1\n\0\0",
    "a pickle": b"REMOTER/1\n\0\x20" + pickle.dumps(os.getcwd).ljust(32, b"."),
    "deep JSON": b"REMOTER/1\n\x0f\xa0" + b"[" * 4000,
    "a guess of zeros": b"REMOTER/1\n\0\x1e" + b'{"type":"guess","a":"AAAAAAAA"}'[:30],
}  # fmt: skip


def test_whatever_strangers_say_costs_the_server_nothing(served):
    assert is_unharmed(served)
    before = memory(served.server_pid)
    with contextlib.ExitStack() as stack:
        for said in WORDS.values():
            connection = stack.enter_context(socket.create_connection((LOOPBACK, served.port), 30))
            connection.settimeout(0.1)
            with contextlib.suppress(OSError):
                connection.sendall(said)
        assert is_unharmed(served)  # while they all are still there
    assert is_unharmed(served)
    wait_for(lambda: memory(served.server_pid) - before < 15, what="what they said to be forgotten")


def test_strangers_cannot_write_lines_of_their_own_into_the_log(served):
    line = "2031-01-01 00:00:00,000 remoter.hello INFO admitted a client"
    for body in [b'{"type":"%s"}', b'{"type":"guess","%s":1}', b'"%s"']:
        frame = body.replace(b"%s", b"x\\n" + line.encode())
        with socket.create_connection((LOOPBACK, served.port), 30) as connection:
            connection.sendall(b"REMOTER/1\n" + struct.pack("!H", len(frame)) + frame)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert is_unharmed(served)
    assert not [each for each in log_of(served).splitlines() if each.startswith("2031")]


def test_programs_that_speak_something_else_are_turned_away(served):
    browser = http.client.HTTPConnection(LOOPBACK, served.port, timeout=30)
    browser.request("GET", "/")
    answer = browser.getresponse()
    assert (answer.status, b"remoter client" in answer.read()) == (400, True)
    browser.close()
    context = ssl.create_default_context()
    with (
        socket.create_connection((LOOPBACK, served.port), 30) as plain,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")
    with zmq.Context() as zeromq, zeromq.socket(zmq.REQ) as asker:
        asker.linger = 0
        asker.connect(f"tcp://{LOOPBACK}:{served.port}")
        asker.send(b"hello garbage")
        assert not asker.poll(300)
    assert is_unharmed(served)


def test_two_thousand_silent_connections_keep_nobody_out(served, elsewhere):
    if raise_descriptor_limit() < 4000:
        pytest.skip("too few descriptors for 2,000 connections")
    assert is_unharmed(served)
    before = descriptors(served.server_pid)
    half = [b"", b"\xff", GREETING, b"REMOTER/1\n"]
    with contextlib.ExitStack() as stack:
        for number in range(2000):
            connection = stack.enter_context(socket.create_connection((LOOPBACK, served.port), 30))
            with contextlib.suppress(OSError):
                connection.sendall(half[number % 4])
        assert is_unharmed(served)
        elsewhere()
        with remoter.connect(LOOPBACK, served.port, served.password) as session:
            assert session.run("1").text == "1"
        most = before + 3 * (Limits.of_this_process().loopback + 4)
        wait_for(lambda: descriptors(served.server_pid) <= most, what="who was sent away to be gone")
    wait_for(lambda: descriptors(served.server_pid) <= before + 2, what="descriptors are given back")


# --- passwords and keys ----------------------------------------------------------------------


def test_whoever_has_no_password_or_a_wrong_one_is_refused_and_nothing_else_happens(served, elsewhere):
    elsewhere()
    began = time.monotonic()
    for password in ["not it", "x" * 1_000_000]:
        with pytest.raises(remoter.AuthError, match="wrong password"):
            remoter.connect(LOOPBACK, served.port, password)
    with pytest.raises(remoter.AuthError, match="no password was given"):
        remoter.connect(LOOPBACK, served.port)
    assert time.monotonic() - began < 30  # nobody is made to wait longer and longer
    with remoter.connect(LOOPBACK, served.port, served.password) as session:
        assert session.run("1").text == "1"


def test_five_wrong_passwords_end_nothing_and_shut_nobody_out(served, elsewhere):
    elsewhere()
    proxies = [Proxy((LOOPBACK, served.port), source=f"127.0.0.{last}") for last in range(2, 7)]
    try:
        for proxy in proxies:  # from an address each, or every guess would wait twice as long as the last
            with pytest.raises(remoter.AuthError, match="wrong password"):
                login(LOOPBACK, proxy.port, "guess", new_keys())
    finally:
        for proxy in proxies:
            proxy.close()
    with remoter.connect(LOOPBACK, served.port, served.password) as session:
        assert session.run("1").text == "1"
    assert log_of(served).count("wrong password from") == 5
    assert is_alive(served.server_pid)


def test_a_stolen_connection_file_opens_the_session_until_it_ends_and_nothing_else(serve, elsewhere, home):
    served = serve(runner="plain", port=quiet_port(LOOPBACK))  # which another session can have later
    other = serve(runner="plain", name="other")
    stolen = _records.record_path(served.record["host"], served.name).read_bytes()
    record = msgspec.json.decode(stolen, type=_records.Record)
    # What a thief would try: the keys of the one against the other, and being the server.
    with zmq.Context() as context:
        keys = KeyPair(record.client_public, record.client_secret)
        with secure_client_socket(context, keys, other.record["server_public"]) as thief:
            thief.linger = 0
            thief.connect(f"tcp://{LOOPBACK}:{other.port}")
            thief.send(encode(Attach(client="thief", protocol=(1, 1))))
            assert not thief.poll(300)
    assert b"server_secret" not in stolen and record.client_secret not in log_of(served)
    elsewhere("thief")
    _records.write_record(record)
    with remoter.connect(served.name) as session:
        assert session.run("1").text == "1"
        session.shutdown()
    wait_for(lambda: not is_alive(served.keeper_pid), what="the session ended")
    _records.write_record(record)  # stale now
    with pytest.raises(remoter.ConnectError):
        remoter.connect(served.name, timeout=3)
    again = serve(runner="plain", name=served.name, port=served.port)
    _records.write_record(record)
    with pytest.raises(remoter.RemoterError):
        remoter.connect(LOOPBACK, again.port, timeout=3)
    assert is_alive(again.server_pid)


def test_a_damaged_connection_file_is_said_to_be_damaged(served):
    path = _records.record_path(served.record["host"], served.name)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(remoter.RemoterError, match="cannot read the connection file") as caught:
        served.connect()
    assert f"rm {path}" in caught.value.hints[0]
    path.write_bytes(whole)
    assert is_unharmed(served)


# --- somebody in between ---------------------------------------------------------------------


def test_a_relay_that_answers_the_hello_with_its_own_key_is_found_out(served, elsewhere):
    own, real = new_keys().public, served.record["server_public"]
    evil = Meddler(served.port, lambda data: data.replace(real.encode(), own.encode()))
    try:
        for keys_of_the_session_are_here in (True, False):
            if not keys_of_the_session_are_here:
                elsewhere()
            with pytest.raises(remoter.AuthError, match="not known here"):
                remoter.connect(LOOPBACK, evil.port)
            with pytest.raises(remoter.AuthError, match="does not know the password"):
                remoter.connect(LOOPBACK, evil.port, served.password)
            with pytest.raises(remoter.KeyChangedError, match="type no password"):
                remoter.connect(
                    f"remoter://{LOOPBACK}:{evil.port}/#{key_to_text(real)}", None, served.password
                )
        assert own not in (served.directory / "clients").read_text()
    finally:
        evil.close()


def test_a_server_that_is_swapped_for_another_gets_neither_commands_nor_passwords(serve, elsewhere):
    first = serve(runner="plain")
    elsewhere("mallory")
    second = serve(runner="plain", name="second")
    assert first.record["server_public"] != second.record["server_public"]
    elsewhere("ana")
    proxy = Proxy((LOOPBACK, first.port))
    try:
        address = f"remoter://{LOOPBACK}:{proxy.port}/#{key_to_text(first.record['server_public'])}"
        with remoter.connect(address, None, first.password) as session:
            assert session.run("1").text == "1"
            proxy.target = (LOOPBACK, second.port)
            proxy.cut()
            with pytest.raises(remoter.KeyChangedError) as caught:
                session.run("leaked = 1", timeout=30)
            assert "key" in str(caught.value)
        with pytest.raises(remoter.KeyChangedError):
            remoter.connect(address, None, first.password)
    finally:
        proxy.close()
    log = log_of(second)
    assert "ATTACH" not in log
    assert "wrong password" not in log


# --- a client that is admitted ---------------------------------------------------------------


class Rude:
    """A client with a right key that says what it likes."""

    def __init__(self, served):
        record = served.record
        self.context = zmq.Context()
        keys = KeyPair(record["client_public"], record["client_secret"])
        self.socket = secure_client_socket(self.context, keys, record["server_public"])
        self.socket.connect(f"tcp://{LOOPBACK}:{record['port']}")

    def say(self, *frames):
        self.socket.send_multipart(list(frames))

    def hear(self, kind, timeout=30.0):
        """The next message of that kind; events are acknowledged."""
        deadline = time.monotonic() + timeout
        while self.socket.poll(max(0, deadline - time.monotonic()) * 1000):
            message = decode_from_server(self.socket.recv())
            heard = type(message).__name__.lower()
            if heard == "events":
                self.say(encode(Acknowledge(seq=message.cursor)))
            if heard == kind:
                return message
        raise AssertionError(f"no {kind}")

    def is_answered(self):
        self.say(encode(Ping(id=77)))
        return self.hear("pong").id == 77

    def attach(self, **fields):
        self.say(encode(Attach(**{"client": "rude", "protocol": (1, 1), **fields})))
        return self.hear("attached").session

    def close(self):
        self.socket.close(0)
        self.context.term()


@pytest.fixture
def rude(served):
    made = []

    def connect():
        made.append(Rude(served))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def pack(**fields):
    return msgspec.msgpack.encode(fields)


BEYOND = 2**63 - 1
PING = b"\x83\xa4type\xa4ping\xa2id\x01"  # and one more field, which is to follow

NONSENSE = {
    "nothing": b"",
    "text": b"hello garbage",
    "random bytes": b"\xc1" + os.urandom(4096),
    "a pickle": pickle.dumps(os.getcwd),
    "JSON": b'{"type":"ping","id":1}',
    "a number": b"\x05",
    "a list": msgspec.msgpack.encode([1, 2, 3]),
    "no type": pack(id=1),
    "an unknown type": pack(type="format-disk", id=1),
    "a type that forges the log": pack(type="x\n2031-01-01 INFO y", id=1),
    "a type of five megabytes": pack(type="x" * 5_000_000, id=1),
    "what only servers say": pack(type="goodbye", reason="x"),
    "a list as type": pack(type=[1], id=1),
    "text for a number": pack(type="ping", id="one"),
    "too few fields": pack(type="submit"),
    "a number as client": pack(type="attach", client=5, protocol=[1, 1]),
    "half a protocol": pack(type="attach", client="x", protocol=[1]),
    "no client": pack(type="attach", client="", protocol=[1, 1]),
    "a client of five megabytes": pack(type="attach", client="x" * 5_000_000, protocol=[1, 1]),
    "a label that forges the log": pack(type="attach", client="x", protocol=[1, 1], label="x\n2031-01-01 INFO y"),
    "a number that is none": pack(type="acknowledge", seq=float("nan")),
    "a million numbers for one": pack(type="ping", id=[0] * 1_000_000),
    "a hundred thousand lists": b"\x91" * 100_000,
    "a hundred thousand lists in a field": PING + b"\xa1x" + b"\x91" * 100_000 + b"\x01",
    "a hundred thousand maps": b"\x81\xa1x" * 100_000,
    "a list of four billion": b"\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "a text of four gigabytes": PING + b"\xa1x\xdb\xff\xff\xff\xff",
    "bytes of four gigabytes": PING + b"\xa1x\xc6\xff\xff\xff\xff",
    "an extension for a number": b"\x82\xa4type\xa4ping\xa2id\xc7\x0c\xff" + bytes(12),
    "half a character as type": b"\x82\xa4type\xa2\xed\xa0\xa2id\x01",
    "no end": pack(type="ping", id=1)[:-1],
    "more after the end": pack(type="ping", id=1) + b"\x01",
}  # fmt: skip


def test_messages_that_are_none_are_skipped_and_logged(served, rude):
    one, never_attached = rude(), rude()
    one.attach()
    before = memory(served.server_pid)
    for name, message in NONSENSE.items():
        logged = log_of(served).count("skipped a message")
        one.say(message)
        assert one.is_answered(), name
        assert log_of(served).count("skipped a message") == logged + 1, name
    for message in NONSENSE.values():
        never_attached.say(message)
    one.say(b"x", b"y", b"z")
    one.say(*[b""] * 10_000)
    assert one.is_answered()
    assert {line[:2] for line in log_of(served).splitlines()} == {"20"}
    assert {line[:4] for line in log_of(served).splitlines()} == {time.strftime("%Y")}
    assert len(log_of(served)) < 100_000
    assert is_unharmed(served)
    wait_for(lambda: memory(served.server_pid) - before < 60, what="what was said to be forgotten")


def test_messages_with_absurd_contents_harm_nobody(served, rude):
    for since in (-1, BEYOND, -BEYOND):
        one = rude()
        one.attach(client="reader", since=since)
        assert one.is_answered()
    session = one.attach(client="absurd")
    run, text = ("absurd", 1), "x" * 1_000_000
    for message in [
        Submit(n=0, session=session, code="ran = True"),
        Submit(n=-BEYOND, session=session, code="ran = True"),
        Submit(n=1, session="another", code="ran = True"),
        Acknowledge(seq=BEYOND),
        Acknowledge(seq=-BEYOND),
        Interrupt(id=BEYOND, run=("x" * 1000, -1)),
        Answer(run=run, ask=BEYOND, text=text),
        Answer(run=run, ask=-1, text=None),
        Query(id=-BEYOND, what="complete", code="x." * 100_000, cursor=BEYOND),
        Query(id=1, what="complete", code="imp", cursor=-BEYOND),
        Query(id=2, what="is_complete", code="(" * 100_000),
        Query(id=3, what="is_complete", code="-" * 200_000 + "1"),
        Query(id=4, what="inspect", code="\0"),
        Query(id=5, what="inspect", code="a." * 50_000),
    ]:
        one.say(encode(message))
        assert one.is_answered(), message
    codes = [
        ("1", {"width": -5}),
        ("print('x'); list(range(200))", {"width": BEYOND}),
        ("1/0", {"mode": "script", "filename": "a\0b"}),
        ("1/0", {"mode": "script", "filename": "x" * 100_000}),
        ("", {}),
        ("(" * 100_000, {}),
        ("-" * 200_000 + "1", {}),
        ("9" * 1_000_000, {}),
    ]
    for n, (code, options) in enumerate(codes, 1):
        one.say(encode(Submit(n=n, session=session, code=code, **options)))
        while not any(decode_event(raw).kind == "done" for raw in one.hear("events").events):
            pass
    one.say(encode(Submit(n=BEYOND, session=session, code="last = 1")))
    while not any(decode_event(raw).kind == "done" for raw in one.hear("events").events):
        pass
    with served.connect() as friend:
        with pytest.raises(remoter.RunError, match="NameError"):
            friend.run("ran")
        assert friend.run("last").text == "1"
        assert friend.info.pid == served.worker_pid
    assert is_unharmed(served)


def test_code_beyond_the_limit_is_refused_and_never_run(served, rude):
    one = rude()
    session = one.attach()
    one.say(encode(Submit(n=1, session=session, code="ran = True #" + "é" * (LONGEST_CODE // 2))))
    assert "too long" in one.hear("refused").message
    with served.connect() as friend, pytest.raises(remoter.RunError, match="NameError"):
        friend.run("ran")


def test_a_message_beyond_the_limit_ends_that_connection_only(served, rude):
    with served.connect() as friend:
        one = rude()
        one.attach()
        one.say(bytes(65 << 20))
        one.say(encode(Ping(id=1)))
        with pytest.raises(AssertionError, match="no pong"):
            one.hear("pong", 1)
        assert friend.run("1").text == "1"
    assert is_unharmed(served)


FLOOD = """
import sys, zmq
from remoter._messages import Attach, Ping, Query, encode
from remoter._security import KeyPair, secure_client_socket
public, secret, server, port = sys.argv[1:]
with zmq.Context() as context, secure_client_socket(context, KeyPair(public, secret), server) as socket:
    socket.linger = 0
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send(encode(Attach(client="flood", protocol=(1, 1))))
    socket.recv()
    print("attached", flush=True)
    messages = [encode(Ping(id=1)), encode(Query(id=2, what="info"))]
    while True:
        for message in messages:
            socket.send(message)
"""


def test_a_flood_of_messages_from_one_client_does_not_stop_the_others(served):
    record = served.record
    words = [record["client_public"], record["client_secret"], record["server_public"], str(record["port"])]
    with subprocess.Popen([sys.executable, "-c", FLOOD, *words], stdout=subprocess.PIPE, text=True) as flood:
        try:
            assert flood.stdout.readline() == "attached\n"
            with served.connect() as friend:
                for _ in range(5):
                    assert friend.run("6 * 7", timeout=15).text == "42"
            assert memory(served.server_pid) < 150
        finally:
            flood.kill()
    assert is_unharmed(served)
