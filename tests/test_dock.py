"""The dock as clients meet it, honest ones and others: real CURVE connections, one message at a time."""

import os
import resource
import stat
import threading
import time
from pathlib import Path

import pytest
import xxhash
import zmq

from remoter import TransferError
from remoter._dock import Dock
from remoter._messages import PROTOCOL, Chunk, Done, Join, Joined, Read, Refused, decode_on_data, encode
from remoter._pieces import LARGEST_WINDOW, LONGEST_DATA_MESSAGE, MIB, MemorySink, MemorySource
from remoter._security import Keyring, client_keys, new_keys, secure_client_socket, server_keys

from .conftest import wait_for

DATA = os.urandom(3 * MIB + 5)


class Counted:
    """A source or sink that tells what was done with it."""

    def __init__(self, stream):
        self.stream = stream
        self.size = stream.size
        self.closed = []
        self.finished = 0
        self.result = {"path": "/there"}
        self.gate = threading.Event()
        self.gate.set()
        self.reading = threading.Event()

    @property
    def position(self):
        return self.stream.position

    def read(self, offset, into):
        self.reading.set()
        self.gate.wait(15)
        self.stream.read(offset, into)

    def write(self, data):
        self.reading.set()
        self.gate.wait(15)
        self.stream.write(data)

    def finish(self):
        self.finished += 1
        return self.result

    def close(self):
        self.closed.append(threading.current_thread().name)
        self.stream.close()


def source(data=DATA):
    return Counted(MemorySource([data]))


class Outcome:
    """Hears what became of a sink."""

    def __init__(self):
        self.heard = []

    def __call__(self, data, error):
        self.heard.append((data, error))


class Client:
    """A data connection that says just what it is told to."""

    def __init__(self, path, public, keys=None):
        self.context = zmq.Context()
        self.socket = secure_client_socket(self.context, keys or client_keys(), public)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.monitor = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        self.socket.connect(f"ipc://{path}")

    def is_admitted(self):
        assert self.monitor.poll(15_000)
        event = int.from_bytes(self.monitor.recv_multipart()[0][:2], "little")
        return event == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def say(self, message, *payload):
        self.socket.send_multipart([encode(message), *payload])

    def hear(self, timeout=15.0):
        """The next message, and the payload."""
        assert self.socket.poll(int(timeout * 1000)), "the dock says nothing"
        frames = self.socket.recv_multipart()
        return decode_on_data(frames[0]), frames[1] if len(frames) > 1 else None

    def hears_nothing(self, seconds=0.1):
        return not self.socket.poll(int(seconds * 1000))

    def join(self, transfer, protocol=PROTOCOL):
        self.say(Join(transfer=transfer, protocol=protocol))
        return self.hear()[0]

    def fetch(self, size, offset=0):
        """So many bytes of a source."""
        self.say(Read(offset=offset, size=size))
        got = b""
        while len(got) < size:
            chunk, payload = self.hear()
            assert isinstance(chunk, Chunk), chunk
            assert chunk.offset == offset + len(got)
            assert chunk.digest == xxhash.xxh3_128_digest(payload)
            got += payload
        return got

    def give(self, data, offset, **more):
        """One chunk of `data`."""
        self.say(chunk_of(data, offset, **more), data)

    def fill(self, data):
        """Answer what is asked until it is over; what was said at last."""
        while True:
            message, _ = self.hear()
            if not isinstance(message, Read):
                return message
            for offset in range(message.offset, message.offset + message.size, MIB):
                self.give(data[offset : min(offset + MIB, message.offset + message.size)], offset)

    def close(self):
        if not self.context.closed:
            self.socket.disable_monitor()
            self.monitor.close(0)
            self.socket.close(0)
            self.context.term()


def chunk_of(data, offset, **more):
    fields = {"offset": offset, "size": len(data), "digest": xxhash.xxh3_128_digest(data), **more}
    return Chunk(**fields)


@pytest.fixture
def few(monkeypatch):
    """Two transfers may work at the same time. Named before `dock`."""
    monkeypatch.setattr("remoter._dock.AT_WORK", 2)


@pytest.fixture
def dock(home, monkeypatch):
    monkeypatch.setattr("remoter._dock.LOOK", 0.02)
    directory = home / "run"
    directory.mkdir(mode=0o700)
    keys = server_keys()
    dock = Dock(directory, keys, Keyring())
    dock.path, dock.public = directory / "data.sock", keys.public
    dock.start()
    yield dock
    dock.stop()
    wait_for(lambda: not threads(), what="the end of the dock's threads")


def threads():
    return [each.name for each in threading.enumerate() if each.name in ("remoter-dock", "remoter-berth")]


@pytest.fixture
def connect(dock):
    made = []

    def connect(keys=None):
        made.append(Client(dock.path, dock.public, keys))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def resident():
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- as it should be -------------------------------------------------------------------------


def test_a_client_reads_what_was_offered_in_any_order(dock, connect):
    stream = source()
    dock.offer("t", stream)
    client = connect()
    assert client.join("t") == Joined(size=len(DATA))
    assert client.fetch(len(DATA)) == DATA
    assert client.fetch(100, offset=MIB) == DATA[MIB : MIB + 100]
    assert dock.known("t")
    client.say(Done())
    wait_for(lambda: not dock.known("t"), what="the end of the transfer")
    assert stream.closed == ["remoter-berth"]


def test_a_client_fills_what_was_accepted_and_hears_what_became_of_it(dock, connect):
    buffer, outcome = bytearray(len(DATA)), Outcome()
    stream = Counted(MemorySink([buffer]))
    dock.accept("t", stream, outcome)
    client = connect()
    assert client.join("t") == Joined(size=len(DATA))
    assert client.fill(DATA) == Done(data={"path": "/there"})
    assert buffer == DATA
    assert outcome.heard == [({"path": "/there"}, None)]
    assert (stream.finished, stream.closed) == (1, ["remoter-berth"])


def test_a_client_that_lost_the_last_word_hears_it_again(dock, connect):
    stream = Counted(MemorySink([bytearray(10)]))
    dock.accept("t", stream, Outcome())
    client = connect()
    client.join("t")
    client.fill(DATA[:10])
    client.close()
    again = connect()
    assert again.join("t") == Joined(size=10, position=10)
    assert again.hear()[0] == Done(data={"path": "/there"})
    dock.drop("t")
    assert again.join("t").kind == "unknown"
    assert (stream.finished, len(stream.closed)) == (1, 1)


def test_a_stream_of_nothing_is_finished_as_soon_as_a_client_comes(dock, connect):
    stream = Counted(MemorySink([]))
    dock.accept("t", stream, Outcome())
    client = connect()
    client.join("t")
    assert client.hear()[0] == Done(data={"path": "/there"})
    dock.offer("u", source(b""))
    assert client.join("u") == Joined(size=0)
    client.say(Done())
    wait_for(lambda: not dock.known("u"), what="the end of the transfer")


def test_one_connection_may_carry_one_transfer_after_the_other(dock, connect):
    client = connect()
    for name in ("a", "b"):
        dock.offer(name, source(name.encode()))
    for name in ("a", "b"):
        client.join(name)
        assert client.fetch(1) == name.encode()


def test_a_sink_goes_on_where_it_is_when_the_client_comes_again(dock, connect):
    buffer = bytearray(len(DATA))
    stream = Counted(MemorySink([buffer]))
    dock.accept("t", stream, Outcome())
    first, second = connect(), connect()
    first.join("t")
    first.hear()
    first.give(DATA[:MIB], 0)
    wait_for(lambda: stream.position == MIB, what="the first chunk to be written")
    wait_for(lambda: dock._berths["t"].position == MIB, what="that to be known")
    assert second.join("t") == Joined(size=len(DATA), position=MIB)
    first.give(bytes(MIB), MIB)  # whoever was superseded is not listened to
    assert second.fill(DATA) == Done(data={"path": "/there"})
    assert buffer == DATA


def test_a_source_forgets_what_the_superseded_connection_asked(dock, connect):
    stream = source()
    dock.offer("t", stream)
    stream.gate.clear()
    first, second = connect(), connect()
    first.join("t")
    first.say(Read(offset=0, size=len(DATA)))
    assert stream.reading.wait(10)
    second.join("t")
    stream.gate.set()
    assert second.fetch(10, offset=5) == DATA[5:15]
    assert second.hears_nothing()


def test_a_client_that_is_gone_leaves_a_transfer_that_goes_on(dock, connect):
    dock.offer("t", source())
    client = connect()
    client.join("t")
    client.say(Read(offset=0, size=len(DATA)))
    client.hear()
    client.close()
    assert dock.known("t")
    again = connect()
    again.join("t")
    assert again.fetch(len(DATA)) == DATA


def test_what_is_offered_under_the_same_name_takes_the_place_of_the_older(dock, connect):
    older, newer = source(b"old"), source(b"new")
    dock.offer("t", older)
    client = connect()
    client.join("t")
    dock.offer("t", newer)
    wait_for(lambda: older.closed, what="the older to be closed")
    assert client.hear()[0].kind == "unknown"  # whoever was at the older one begins anew
    client.join("t")
    assert client.fetch(3) == b"new"


# --- who may, and what he may not ------------------------------------------------------------


def test_the_socket_is_for_this_user_and_admitted_keys_only(dock, connect):
    assert stat.S_IMODE(dock.path.stat().st_mode) == 0o600
    assert connect().is_admitted()
    assert not connect(new_keys()).is_admitted()


def test_a_transfer_that_is_not_known_is_refused_as_that(dock, connect):
    refused = connect().join("nothing")
    assert (refused.error, refused.kind) == ("TransferError", "unknown")


def test_a_client_of_another_protocol_is_told_so(dock, connect):
    dock.offer("t", source())
    refused = connect().join("t", protocol=(7, 9))
    assert refused.error == "VersionError"
    assert "7 to 9" in refused.message


def test_whoever_did_not_join_is_not_listened_to(dock, connect):
    dock.offer("t", source())
    client = connect()
    client.say(Read(offset=0, size=1))
    client.say(Done())
    assert client.hears_nothing()
    assert dock.known("t")


@pytest.mark.parametrize("offset", [len(DATA), len(DATA) - 9, 1 << 50])
def test_a_range_outside_of_the_stream_ends_the_transfer(dock, connect, offset):
    stream = source()
    dock.offer("t", stream)
    client = connect()
    client.join("t")
    client.say(Read(offset=offset, size=10))
    assert client.hear()[0].kind == "corrupt"
    assert len(stream.closed) == 1
    again = connect()
    again.join("t")
    assert again.hear()[0].kind == "corrupt"


@pytest.mark.parametrize(
    ("data", "lie"),
    [
        (b"x" * 10, {"size": 11}),
        (b"x" * 10, {"offset": 95}),
        (b"x" * 101, {}),
        (b"x" * 10, {"packed": True}),
        (b"x" * 10, {"digest": bytes(16)}),
    ],
)
def test_a_client_that_lies_about_its_chunks_ends_the_transfer(dock, connect, data, lie):
    outcome = Outcome()
    stream = Counted(MemorySink([bytearray(100)]))
    dock.accept("t", stream, outcome)
    client = connect()
    client.join("t")
    message, _ = client.hear()
    while isinstance(message, Read):  # what is merely damaged is asked for again
        fields = {"offset": message.offset, **lie}
        client.give(data, **fields)
        message, _ = client.hear()
    assert message.kind == "corrupt"
    ((_, error),) = outcome.heard
    assert error.id == "corrupt"
    assert (stream.finished, len(stream.closed)) == (0, 1)


def test_a_client_that_sends_without_being_asked_is_stopped(dock, connect):
    outcome = Outcome()
    stream = Counted(MemorySink([bytearray(200 * MIB)]))
    stream.gate.clear()
    dock.accept("t", stream, outcome)
    client = connect()
    client.join("t")
    client.hear()
    before = resident()
    chunk = bytes(MIB)
    for number in range(200):
        client.give(chunk, number * MIB)
    assert stream.reading.wait(10)
    client.say(Join(transfer="nothing", protocol=PROTOCOL))  # answered when all before was taken in
    while not isinstance(client.hear()[0], Refused):
        pass
    assert (
        resident() - before < 3 * LARGEST_WINDOW + 200 * MIB
    )  # what it holds itself, and what waits at the dock
    stream.gate.set()
    wait_for(lambda: outcome.heard, what="the end of the transfer")
    assert "more was sent" in str(outcome.heard[0][1]) or outcome.heard[0][1].id == "corrupt"


def test_bytes_that_are_no_message_are_skipped(dock, connect):
    dock.offer("t", source())
    client = connect()
    for frames in (
        [b""],
        [b"\xff" * 100],
        [b"x", b"y", b"z"],
        [encode(Read(offset=0, size=1))[:-1]],
        [b"", b"", b""],
    ):
        client.socket.send_multipart(frames)
    client.join("t")
    for _ in range(50):
        client.socket.send_multipart([os.urandom(40), os.urandom(10)])
    assert client.fetch(100) == DATA[:100]


def test_a_client_that_joins_asks_for_all_and_never_reads_holds_up_nobody_and_little_memory(dock, connect):
    size = 400 * MIB

    class Endless:
        def __init__(self):
            self.size = size
            self.offset = 0

        def read(self, offset, into):
            self.offset = offset

        def close(self):
            pass

    endless = Endless()
    dock.offer("big", endless)
    dock.offer("t", source())
    slow, quick = connect(), connect()
    slow.socket.setsockopt(zmq.RCVHWM, 1)
    slow.join("big")
    before = resident()
    slow.say(Read(offset=0, size=size))
    wait_for(lambda: endless.offset > 30 * MIB, what="the window to be full")
    quick.join("t")
    assert quick.fetch(len(DATA)) == DATA
    assert endless.offset < 45 * MIB
    assert resident() - before < 60 * MIB
    dock.drop("big")
    wait_for(lambda: len(threads()) == 2, what="the end of its thread")


# --- what goes wrong there -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TransferError("`x` has changed", id="changed"), "changed"),
        (OSError(28, "No space left"), "no-space"),
        (ValueError("!"), ""),
    ],
)
def test_a_source_that_fails_is_reported_to_its_client(dock, connect, error, kind):
    stream = source()

    def read(offset, into):
        raise error

    stream.read = read
    dock.offer("t", stream)
    client = connect()
    client.join("t")
    client.say(Read(offset=0, size=10))
    refused, _ = client.hear()
    assert (refused.error, refused.kind) == ("TransferError", kind)
    assert len(stream.closed) == 1


@pytest.mark.parametrize("where", ["write", "finish", "close"])
def test_a_sink_that_fails_is_reported_to_its_client_and_closed(dock, connect, where):
    outcome = Outcome()
    stream = Counted(MemorySink([bytearray(10)]))

    def fail(*_):
        stream.closed += [where] if where == "close" else []
        raise OSError(28, "No space left")

    setattr(stream, where, fail)
    dock.accept("t", stream, outcome)
    client = connect()
    client.join("t")
    last = client.fill(DATA[:10])
    if where == "close":  # all was in its place before
        assert last == Done(data={"path": "/there"})
    else:
        assert last.kind == "no-space"
        assert outcome.heard[0][1].id == "no-space"
    assert len(stream.closed) == 1


def test_a_client_that_gives_up_ends_the_transfer_for_that_reason(dock, connect):
    outcome = Outcome()
    stream = Counted(MemorySink([bytearray(10)]))
    dock.accept("t", stream, outcome)
    client = connect()
    client.join("t")
    client.say(Refused(error="TransferError", message="`x` has changed", kind="changed"))
    wait_for(lambda: outcome.heard, what="the end")
    assert outcome.heard[0][1].id == "changed"
    assert (stream.finished, len(stream.closed)) == (0, 1)


def test_whoever_hears_of_the_end_may_fail_and_what_there_is_to_say_may_be_too_long(dock, connect):
    stream = Counted(MemorySink([bytearray(10)]))
    stream.result = {"problems": "x" * LONGEST_DATA_MESSAGE}

    def fail(data, error):
        raise RuntimeError("!")

    dock.accept("t", stream, fail)
    client = connect()
    client.join("t")
    assert "too much to say" in client.fill(DATA[:10]).message


def test_a_source_that_waits_keeps_nobody_else_waiting(dock, connect):
    stuck = source()
    stuck.gate.clear()
    dock.offer("stuck", stuck)
    dock.offer("t", source())
    waiting, quick = connect(), connect()
    assert waiting.join("stuck") == Joined(size=len(DATA))
    waiting.say(Read(offset=0, size=10))
    assert stuck.reading.wait(10)
    assert waiting.join("stuck") == Joined(size=len(DATA))  # the dock itself answers at once
    quick.join("t")
    assert quick.fetch(len(DATA)) == DATA
    stuck.gate.set()
    assert waiting.fetch(10) == DATA[:10]


def test_only_so_many_work_at_the_same_time_and_the_others_have_their_turn(few, dock, connect, monkeypatch):
    monkeypatch.setattr("remoter._dock.LONGEST_TURN", 30)  # nobody is stuck here, however slow he is
    at_work, most, lock, all_have_asked = 0, 0, threading.Lock(), threading.Event()

    class Slow(MemorySource):
        def read(self, offset, into):
            nonlocal at_work, most
            with lock:
                at_work += 1
                most = max(most, at_work)
            all_have_asked.wait(15)
            time.sleep(0.002)
            super().read(offset, into)
            with lock:
                at_work -= 1

    clients = [connect() for _ in range(6)]
    for number, client in enumerate(clients):
        dock.offer(str(number), Slow([DATA]))
        client.join(str(number))
        for _ in range(5):
            client.say(Read(offset=0, size=1000))
    wait_for(lambda: at_work == 2, what="two to be at work")
    all_have_asked.set()
    for client in clients:
        for _ in range(5):
            assert client.hear()[1] == DATA[:1000]
    assert most == 2


def test_those_that_are_stuck_do_not_keep_their_turn_for_ever(few, dock, connect, monkeypatch):
    monkeypatch.setattr("remoter._dock.LONGEST_TURN", 0.05)
    stuck = [source(), source()]
    for number, stream in enumerate(stuck):
        stream.gate.clear()
        dock.offer(str(number), stream)
        client = connect()
        client.join(str(number))
        client.say(Read(offset=0, size=10))
        assert stream.reading.wait(10)
    dock.offer("t", source())
    client = connect()
    client.join("t")
    assert client.fetch(len(DATA)) == DATA
    for stream in stuck:
        stream.gate.set()


# --- the end of a transfer -------------------------------------------------------------------


@pytest.mark.parametrize("has_joined", [True, False])
def test_what_is_dropped_is_closed_once_and_by_its_own_thread(dock, connect, has_joined):
    outcome = Outcome()
    outgoing, incoming = source(), Counted(MemorySink([bytearray(10)]))
    dock.offer("out", outgoing)
    dock.accept("in", incoming, outcome)
    if has_joined:
        for name in ("out", "in"):
            connect().join(name)
    for name in ("out", "in", "in", "nothing"):
        dock.drop(name)
        assert not dock.known(name)
    wait_for(lambda: outgoing.closed and incoming.closed, what="the streams to be closed")
    assert outgoing.closed == incoming.closed == ["remoter-berth"]
    wait_for(lambda: outcome.heard, what="the outcome")
    assert outcome.heard[0][1].id == "cancelled"
    assert connect().join("in").kind == "unknown"


def test_what_nobody_touches_is_forgotten(dock, connect, monkeypatch):
    monkeypatch.setattr("remoter._dock.FORGET", 0.3)
    never, left, done = source(), source(), Counted(MemorySink([]))
    dock.offer("never", never)
    dock.offer("left", left)
    dock.accept("done", done, Outcome())
    client = connect()
    client.join("left")
    client.join("done")
    client.close()
    wait_for(lambda: not any(map(dock.known, ("never", "left", "done"))), what="all to be forgotten")
    wait_for(lambda: never.closed and left.closed, what="the sources to be closed")


def test_a_client_that_is_there_and_waits_is_not_forgotten(dock, connect, monkeypatch):
    stream = source()
    stream.gate.clear()
    dock.offer("t", stream)
    client = connect()
    client.join("t")
    monkeypatch.setattr("remoter._dock.PROBE", 0.1)
    monkeypatch.setattr("remoter._dock.FORGET", 0.6)  # from now on: before it came it had time
    client.say(Read(offset=0, size=10))
    began = time.monotonic()
    while time.monotonic() < began + 1.2:
        assert isinstance(client.hear()[0], Joined)  # it is looked after
    stream.gate.set()
    message, payload = client.hear()
    while isinstance(message, Joined):
        message, payload = client.hear()
    assert payload == DATA[:10]


def test_a_dock_that_stops_closes_everything(home):
    directory = home / "run"
    directory.mkdir(mode=0o700)
    keys = server_keys()
    Dock(directory, keys, Keyring()).stop()  # one that was never opened
    before = set(os.listdir("/proc/self/fd"))
    dock = Dock(directory, keys, Keyring())
    dock.start()
    streams = [source(), Counted(MemorySink([bytearray(10)]))]
    dock.offer("out", streams[0])
    dock.accept("in", streams[1], Outcome())
    client = Client(directory / "data.sock", keys.public)
    client.join("out")
    dock.stop(15)
    dock.stop()
    client.close()
    assert [len(stream.closed) for stream in streams] == [1, 1]
    assert not threads()
    assert set(os.listdir("/proc/self/fd")) <= before  # fewer: what an earlier test has left was collected
    dock = Dock(directory, keys, Keyring())  # a server that was started again finds the old socket file
    dock.start()
    dock.stop()
