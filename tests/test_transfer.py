"""Streams through a real door to a real dock, over connections that are cut, frozen, refused and lied on."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import xxhash
import zmq

from remoter import AuthError, ConnectError, LinkLostError, RemoterError, TransferError
from remoter._connection import Place
from remoter._dock import Dock
from remoter._door import Door
from remoter._messages import Chunk, Done, Join, Joined, Read, decode_on_data, encode
from remoter._pieces import MIB, MemorySink, MemorySource
from remoter._security import (
    ZAP_ADDRESS,
    Keyring,
    answer_zap,
    client_keys,
    new_keys,
    secure_server_socket,
    server_keys,
)
from remoter._transfer import Forgotten, Progress, StillRunningError, Transfer

from .conftest import wait_for
from .proxy import Proxy

LOOPBACK = "127.0.0.1"
DATA = os.urandom(12 * MIB + 3)


class House:
    """A dock and a door in front of it, in this process."""

    def __init__(self, directory):
        self.keys = server_keys()
        self.keyring = Keyring()
        self.path = directory / "data.sock"
        self.dock = Dock(directory, self.keys, self.keyring)
        self.dock.start()
        listener = socket.create_server((LOOPBACK, 0))
        self.port = listener.getsockname()[1]
        self.door = Door([listener], directory / "zmq.sock", None, data=self.path)
        self.door.start()

    def at_socket(self):
        return Place(client_keys(), self.keys.public, str(self.path))

    def at_port(self, port=None, keys=None):
        return Place(keys or client_keys(), self.keys.public, None, LOOPBACK, port or self.port)

    def stop(self):
        self.door.stop()
        self.dock.stop()


class Control:
    """The control connection: `answer(transfer, what, data)` says what the session says; nothing if it is silent."""

    def __init__(self, answer=lambda *step: {}):
        self.answer = answer
        self.steps = []

    def __call__(self, transfer, what, data):
        self.steps.append((transfer, what))
        future = Future()
        try:
            answer = self.answer(transfer, what, data)
        except RemoterError as error:
            future.set_exception(error)
        else:
            if answer is not None:
                future.set_result(answer)
        return future


@pytest.fixture
def house(home):
    directory = home / "run"
    directory.mkdir(mode=0o700)
    house = House(directory)
    yield house
    house.stop()


@pytest.fixture
def proxy(house):
    proxy = Proxy((LOOPBACK, house.port))
    yield proxy
    proxy.close()


@pytest.fixture
def begin():
    """Starts transfers; none of them is left behind, nor any of their threads."""
    begun = []

    def begin(work, place, ask=None, id="t"):
        begun.append(
            Transfer(id, "x", work, ask=ask or Control(), place=place if callable(place) else lambda: place)
        )
        begun[-1].start()
        return begun[-1]

    yield begin
    for transfer in begun:
        transfer.cancel()
    wait_for(lambda: not threads_of("remoter-transfer"), what="the end of the transfers' threads")


def threads_of(*names):
    return [thread for thread in threading.enumerate() if thread.name in names]


def descriptors():
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def patient_end(monkeypatch):
    """The last word of a connection is waited for, however long libzmq's thread gets no turn; nothing repeats it here."""
    monkeypatch.setattr("remoter._transfer.LINGER", 10_000)


class Gated:
    """A stream that stops at `at` bytes until it is opened."""

    def __init__(self, stream, at):
        self.stream, self.at = stream, at
        self.size = stream.size
        self.reached, self.opened = threading.Event(), threading.Event()
        self.stopped_at = 0
        self.closed = 0

    @property
    def position(self):
        return self.stream.position

    def _pass(self, position):
        if position >= self.at:
            self.reached.set()
            self.opened.wait(15)

    def read(self, offset, into):
        self.stopped_at = offset
        self._pass(offset + len(into))
        self.stream.read(offset, into)

    def write(self, data):
        self._pass(self.position + len(data))
        self.stream.write(data)

    def finish(self):
        return {"path": "/x"}

    def close(self):
        self.closed += 1


def pull(sink, name="t", **options):
    return lambda carrier: carrier.receive(sink, transfer=name, **options)


def push(source, name="t", **options):
    return lambda carrier: carrier.send(source, transfer=name, **options)


# --- as it should be -------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["socket", "port"])
@pytest.mark.parametrize("size", [0, 1, 5 * MIB + 1])
def test_a_stream_comes_and_goes(house, begin, way, size):
    place = house.at_socket() if way == "socket" else house.at_port()
    here, there = bytearray(size), bytearray(size)
    house.dock.offer("a", MemorySource([DATA[:size]]))
    begin(pull(MemorySink([here]), "a"), place).wait(10)
    assert here == DATA[:size]
    stream = Gated(MemorySink([there]), size + 1)
    house.dock.accept("b", stream, lambda data, error: None)
    assert begin(push(MemorySource([DATA[:size]]), "b"), place).wait(10) == {"path": "/x"}
    assert there == DATA[:size]
    assert stream.closed == 1


@pytest.mark.parametrize("compress", [True, False])
def test_a_stream_may_be_compressed_both_ways(house, begin, compress):
    text = b"all work and no play makes jack a dull boy. " * 40_000
    here, there = bytearray(len(text)), bytearray(len(text))
    house.dock.offer("a", MemorySource([text]))
    begin(pull(MemorySink([here]), "a", compress=compress), house.at_port()).wait(10)
    house.dock.accept("b", MemorySink([there]), lambda data, error: None)
    begin(push(MemorySource([text]), "b", compress=compress), house.at_port()).wait(10)
    assert here == there == text


def test_two_at_once_do_not_disturb_each_other(house, begin):
    here, there = bytearray(len(DATA)), bytearray(len(DATA))
    house.dock.offer("a", MemorySource([DATA]))
    house.dock.accept("b", MemorySink([there]), lambda data, error: None)
    one = begin(pull(MemorySink([here]), "a"), house.at_port())
    two = begin(push(MemorySource([DATA[::-1]]), "b"), house.at_port())
    for transfer in (one, two):
        transfer.wait(15)
    assert here == DATA
    assert there == DATA[::-1]


def test_the_session_is_told_when_a_transfer_is_over(house, begin, patient_end):
    control = Control()

    def work(carrier):
        assert carrier.step("pull", {"name": "x"}) == {}
        return carrier.receive(MemorySink([bytearray(5)]), transfer=carrier.id)

    house.dock.offer("t", MemorySource([b"hello"]))
    begin(work, house.at_socket(), control).wait(10)
    assert control.steps == [("t", "pull"), ("t", "release")]
    wait_for(lambda: not house.dock.known("t"), what="its end at the dock")


def test_a_step_alone_needs_no_connection_and_no_release(begin):
    control = Control()
    transfer = begin(lambda carrier: carrier.step("find", {}, transfer="u"), None, control)
    assert transfer.wait(5) == {}
    assert control.steps == [("u", "find")]


def test_progress_counts_streams_and_files(house, begin):
    house.dock.offer("a", MemorySource([DATA[:1000]]))
    house.dock.offer("b", MemorySource([DATA]))
    seen = []

    def work(carrier):
        carrier.receive(MemorySink([bytearray(1000)]), transfer="a")
        carrier.total(len(DATA) + 500, files=3)
        sink = MemorySink([bytearray(len(DATA))])
        sink.position = 2 * MIB
        carrier.file_done()
        carrier.receive(sink, transfer="b")
        carrier.file_done()

    begin(work, house.at_socket()).wait(10, show=seen.append)
    last = seen[-1]
    assert (last.what, last.done, last.total) == ("x", len(DATA), len(DATA) + 500)
    assert (last.files_done, last.files_total, last.note) == (2, 3, "")
    assert last.rate > 0
    assert last.left > 0


# --- cuts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["pull", "push"])
@pytest.mark.parametrize("percent", [1, 50, 99])
def test_a_cut_connection_is_replaced_and_the_stream_goes_on(house, proxy, begin, direction, percent):
    arrived, at = bytearray(len(DATA)), len(DATA) * percent // 100
    place = house.at_port(proxy.port)
    if direction == "pull":
        gate = Gated(MemorySource([DATA]), at)
        house.dock.offer("t", gate)
        transfer = begin(pull(MemorySink([arrived])), place)
    else:
        gate = Gated(MemorySink([arrived]), at)
        house.dock.accept("t", gate, lambda data, error: None)
        transfer = begin(push(MemorySource([DATA])), place)
    assert gate.reached.wait(10)
    proxy.cut(refuse=True)
    wait_for(lambda: transfer.progress.note == "connection lost", what="the loss to be noticed")
    gate.opened.set()
    proxy.mend()
    assert transfer.wait(15) == ({} if direction == "pull" else {"path": "/x"})
    assert arrived == DATA
    assert transfer.progress.note == ""


def test_a_connection_that_is_cut_all_the_time_still_gets_there(house, proxy, begin):
    here = bytearray(len(DATA))
    house.dock.offer("t", MemorySource([DATA]))

    class Cutting(MemorySink):
        cuts = 0

        def write(self, data):
            super().write(data)
            if self.position > self.cuts * MIB:
                self.cuts += 1
                proxy.cut()

    sink = Cutting([here])
    begin(pull(sink), house.at_port(proxy.port)).wait(18)
    assert here == DATA
    assert sink.cuts > 10


def test_a_silent_connection_is_given_up_by_its_heartbeats(house, proxy, begin, monkeypatch):
    monkeypatch.setattr("remoter._passage.HEARTBEAT", 50)
    monkeypatch.setattr("remoter._passage.HEARTBEAT_TIMEOUT", 200)
    here = bytearray(len(DATA))
    source = Gated(MemorySource([DATA]), 5 * MIB)
    house.dock.offer("t", source)
    transfer = begin(pull(MemorySink([here])), house.at_port(proxy.port))
    assert source.reached.wait(10)
    proxy.freeze()
    source.opened.set()
    wait_for(lambda: transfer.progress.note == "connection lost", what="the silence to be noticed")
    proxy.cut()
    proxy.thaw()
    transfer.wait(15)
    assert here == DATA


class CountingProxy(Proxy):
    """A network that counts how often something came back from the server."""

    answers = 0

    def _pass_on(self, end):
        with contextlib.suppress(OSError):
            self.answers += end.getpeername() == self.target
        super()._pass_on(end)


def test_a_source_that_waits_is_told_from_a_connection_that_is_lost(house, begin, monkeypatch):
    # Only the intervals are short: a timeout as short would pass while any of the threads gets no turn.
    monkeypatch.setattr("remoter._passage.HEARTBEAT", 20)
    monkeypatch.setattr("remoter._transfer.STREAM_PATIENCE", 0.1)
    source = Gated(MemorySource([DATA]), 5 * MIB)
    house.dock.offer("t", source)
    with contextlib.closing(CountingProxy((LOOPBACK, house.port))) as proxy:
        transfer = begin(pull(MemorySink([bytearray(len(DATA))])), house.at_port(proxy.port))
        assert source.reached.wait(10)
        wait_for(lambda: transfer.progress.done == source.stopped_at, what="all before the gate to be here")
        wait_for(lambda: transfer.progress.note == "waiting for the session", what="the wait to be told")
        connections, before = list(proxy.pairs), proxy.answers
        wait_for(lambda: proxy.answers >= before + 10, what="heartbeats that are answered")
        assert transfer.progress.note == "waiting for the session"
        assert list(proxy.pairs) == connections
        source.opened.set()
        transfer.wait(15)


def test_the_last_word_of_the_session_is_heard_after_a_cut_too(house, proxy, begin):
    class Slow(MemorySink):
        def finish(self):
            proxy.cut()
            return {"name": "x"}

    house.dock.accept("t", Slow([bytearray(10)]), lambda data, error: None)
    assert begin(push(MemorySource([DATA[:10]])), house.at_port(proxy.port)).wait(10) == {"name": "x"}


def test_every_attempt_asks_where_the_server_is_now(house, begin):
    nobody = socket.socket()  # it has the port, so nobody else gets it, and does not listen
    nobody.bind((LOOPBACK, 0))
    port = nobody.getsockname()[1]
    places = iter([ConnectError("not now"), OSError("not now"), house.at_port(port), house.at_socket()])
    asked = []

    def place():
        asked.append(next(places))
        if isinstance(asked[-1], Exception):
            raise asked[-1]
        return asked[-1]

    house.dock.offer("t", MemorySource([DATA[:10]]))
    with nobody:
        begin(pull(MemorySink([bytearray(10)])), place).wait(10)
    assert len(asked) == 4


def test_a_process_without_descriptors_tries_again(house, begin, monkeypatch):
    from remoter import _passage

    attempts = []

    def open_socket(*arguments, **options):
        attempts.append(arguments)
        if len(attempts) < 3:
            raise zmq.ZMQError(errno.EMFILE)
        return open_really(*arguments, **options)

    open_really = _passage.secure_client_socket
    monkeypatch.setattr(_passage, "secure_client_socket", open_socket)
    house.dock.offer("t", MemorySource([DATA[:10]]))
    begin(pull(MemorySink([bytearray(10)])), house.at_socket()).wait(10)
    assert len(attempts) == 3
    assert all(context.closed for context, *_ in attempts)


def test_a_session_that_is_gone_ends_the_transfer(house, proxy, begin):
    gone = threading.Event()

    def place():
        if gone.is_set():
            raise LinkLostError("the session has ended", id="ended")
        return house.at_port(proxy.port)

    source = Gated(MemorySource([DATA]), 5 * MIB)
    house.dock.offer("t", source)
    sink = Gated(MemorySink([bytearray(len(DATA))]), 1 << 60)
    transfer = begin(pull(sink), place)
    assert source.reached.wait(10)
    gone.set()
    proxy.cut(refuse=True)
    with pytest.raises(LinkLostError, match="has ended"):
        transfer.wait(10)
    assert transfer.status == "failed"
    assert sink.closed == 1
    source.opened.set()


# --- who is not let in -----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["socket", "port"])
def test_another_key_gets_nowhere(house, begin, way):
    house.dock.offer("t", MemorySource([DATA]))
    keys = new_keys()
    place = house.at_port(keys=keys) if way == "port" else Place(keys, house.keys.public, str(house.path))
    with pytest.raises(AuthError, match="no longer admits"):
        begin(pull(MemorySink([bytearray(len(DATA))])), place).wait(10)


def test_a_server_with_another_key_gets_nothing(house, begin):
    taken = []
    house.dock.accept("t", Gated(MemorySink([bytearray(10)]), 0), lambda *end: taken.append(end))
    place = Place(client_keys(), new_keys().public, str(house.path))
    transfer = begin(push(MemorySource([DATA[:10]])), place)
    wait_for(lambda: transfer.progress.note == "connection lost", what="the refusal")
    transfer.cancel()
    assert not taken


# --- the server forgets, or refuses ----------------------------------------------------------


def test_a_server_that_was_started_again_is_told_of_the_transfer_again(house, begin):
    here = bytearray(len(DATA))
    rounds = []

    def answer(transfer, what, data):
        if what == "pull":
            rounds.append(1)
            house.dock.offer(
                transfer, Gated(MemorySource([DATA]), len(DATA) // 2 if len(rounds) == 1 else 1 << 60)
            )
            if len(rounds) == 1:
                threading.Thread(target=lose).start()
        return {}

    def lose():
        source = house.dock._berths["t"].source
        source.reached.wait(10)
        house.dock.stop(timeout=0.2)  # its thread still reads
        house.dock._thread.join(10)  # or it would take the next one's socket away with its own
        source.opened.set()
        house.dock = Dock(house.path.parent, house.keys, house.keyring)
        house.dock.start()

    def work(carrier):
        while True:
            carrier.step("pull", {})
            with contextlib.suppress(Forgotten):
                return carrier.receive(MemorySink([here]), transfer=carrier.id)

    begin(work, house.at_port(), Control(answer)).wait(15)
    assert here == DATA
    assert len(rounds) == 2


def test_a_server_that_never_knows_is_believed_at_last(house, begin):
    control = Control()

    def work(carrier):
        while True:
            carrier.step("pull", {})
            with contextlib.suppress(Forgotten):
                carrier.receive(MemorySink([bytearray(10)]), transfer=carrier.id)

    transfer = begin(work, house.at_socket(), control)
    with pytest.raises(TransferError, match="does not know"):
        transfer.wait(15)
    assert len(control.steps) < 10


def test_who_does_not_take_the_step_again_gets_an_error(house, begin):
    with pytest.raises(TransferError, match="does not know") as caught:
        begin(pull(MemorySink([bytearray(10)])), house.at_socket()).wait(10)
    assert caught.value.id == "unknown"


@pytest.mark.parametrize("direction", ["pull", "push"])
def test_what_fails_there_is_raised_here(house, begin, direction):
    class Full(MemorySink):
        def write(self, data):
            raise OSError(28, "No space left on device")

    class Changed(MemorySource):
        def read(self, offset, into):
            raise TransferError("`x` changed while it was read", id="changed")

    if direction == "pull":
        house.dock.offer("t", Changed([DATA]))
        transfer, kind = begin(pull(MemorySink([bytearray(len(DATA))])), house.at_port()), "changed"
    else:
        house.dock.accept("t", Full([bytearray(len(DATA))]), lambda data, error: None)
        transfer, kind = begin(push(MemorySource([DATA])), house.at_port()), "no-space"
    with pytest.raises(TransferError) as caught:
        transfer.wait(10)
    assert caught.value.id == kind
    assert transfer.status == "failed"


@pytest.mark.parametrize("direction", ["pull", "push"])
def test_what_fails_here_is_told_there_and_closed(house, begin, patient_end, direction):
    heard = []

    class Failing(MemorySink):
        def write(self, data):
            raise OSError(28, "No space left on device")

        def read(self, offset, into):
            raise TransferError("`x` changed while it was read", id="changed")

        def close(self):
            heard.append("closed")

    stream = Failing([bytearray(len(DATA))])
    control = Control()
    if direction == "pull":
        source = Gated(MemorySource([DATA]), 1 << 60)
        house.dock.offer("t", source)
        transfer, kind = begin(pull(stream), house.at_port(), control), "no-space"
    else:
        house.dock.accept("t", MemorySink([bytearray(len(DATA))]), lambda data, error: heard.append(error.id))
        transfer, kind = begin(push(stream), house.at_port(), control), "changed"
    with pytest.raises(TransferError) as caught:
        transfer.wait(10)
    assert caught.value.id == kind
    if direction == "pull":
        wait_for(lambda: source.closed, what="the source to be closed")
        assert heard == ["closed"]
    else:
        wait_for(lambda: len(heard) == 2, what="the server to hear of it")
        assert set(heard) == {"closed", "changed"}


def test_a_step_that_is_refused_is_raised_as_it_is(begin):
    def answer(transfer, what, data):
        if what == "pull":
            raise TransferError("no", id="versions")
        return {}

    control = Control(answer)
    transfer = begin(lambda carrier: carrier.step("pull", {}), None, control)
    for _ in range(2):
        with pytest.raises(TransferError) as caught:
            transfer.wait(5)
        assert caught.value.id == "versions"
    assert control.steps == [("t", "pull"), ("t", "release")]


def test_our_own_mistakes_are_raised_as_they_are(begin):
    transfer = begin(lambda carrier: 1 / 0, None)
    with pytest.raises(ZeroDivisionError):
        transfer.wait(5)
    assert transfer.status == "failed"


def test_an_error_that_is_kept_holds_nothing_of_what_was_on_its_way(house, begin):
    import gc
    import weakref

    class Sink(MemorySink):
        def write(self, data):
            raise TransferError("no")

    house.dock.offer("t", MemorySource([DATA]))
    sink = Sink([bytearray(len(DATA))])
    held = weakref.ref(sink)
    transfer = begin(pull(sink), house.at_socket())
    with pytest.raises(TransferError) as caught:
        transfer.wait(10)
    wait_for(lambda: not threads_of("remoter-transfer"), what="its thread, which has the work, to end")
    del sink
    gc.collect()
    assert held() is None
    assert caught.value.message == "no"


# --- a server that cannot be trusted ---------------------------------------------------------


class Impostor:
    """A server that admits us and then says what it likes: `speak(join)` gives the frames to be sent."""

    def __init__(self, directory, keys, speak):
        self.path = directory / "impostor.sock"
        self.context = zmq.Context()
        self.zap = self.context.socket(zmq.ROUTER)
        self.zap.bind(ZAP_ADDRESS)
        self.router = secure_server_socket(self.context, keys, high_water=0)
        self.router.bind(f"ipc://{self.path}")
        self.keyring, self.speak = Keyring(), speak
        self.joins = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        poller = zmq.Poller()
        poller.register(self.zap, zmq.POLLIN)
        poller.register(self.router, zmq.POLLIN)
        while not self.stopping.is_set():
            ready = dict(poller.poll(20))
            if self.zap in ready:
                answer_zap(self.zap, self.keyring)
            if self.router in ready:
                identity, header, *_ = self.router.recv_multipart()
                message = decode_on_data(header)
                self.joins += isinstance(message, Join)
                for frames in self.speak(message):
                    with contextlib.suppress(zmq.ZMQError):
                        self.router.send_multipart([identity, *frames], zmq.NOBLOCK)

    def stop(self):
        self.stopping.set()
        self.thread.join()
        self.zap.close(0)
        self.router.close(0)
        self.context.term()


@pytest.fixture
def impostor(home):
    made = []

    def start(speak):
        keys = server_keys()
        made.append(Impostor(home, keys, speak))
        return made[-1], Place(client_keys(), keys.public, str(made[-1].path))

    yield start
    for one in made:
        one.stop()


def answering(**lie):
    """Answers each Read with one chunk that is right but for the lie."""

    def speak(message):
        if isinstance(message, Join):
            yield [encode(Joined(size=MIB))]
        elif isinstance(message, Read):
            payload = lie.get("payload", bytes(message.size))
            fields = {
                "offset": message.offset,
                "size": message.size,
                "digest": xxhash.xxh3_128_digest(payload),
            }
            yield [encode(Chunk(**{**fields, **{key: lie[key] for key in lie if key != "payload"}})), payload]

    return speak


@pytest.mark.parametrize(
    "lie",
    [
        {"digest": bytes(16)},
        {"size": 5},
        {"size": 3 * MIB, "payload": bytes(3 * MIB)},
        {"size": 1 << 62},
        {"offset": 1 << 62},
        {"offset": MIB - 1},
        {"packed": True},
    ],
    ids=str,
)
def test_what_a_server_lies_about_is_an_error_and_not_taken(impostor, begin, lie):
    _, place = impostor(answering(**lie))
    here = bytearray(b"\x01" * MIB)
    with pytest.raises(TransferError) as caught:
        begin(pull(MemorySink([here])), place).wait(10)
    assert caught.value.id == "corrupt"
    assert set(here) == {1}


def test_a_server_that_breaks_every_connection_is_given_up(impostor, begin, monkeypatch):
    monkeypatch.setattr("remoter._transfer.LONGEST_PAUSE", 0.02)
    monkeypatch.setattr("remoter._transfer.QUICKLY", 60)  # how long one lasts is not ours to say
    server, place = impostor(answering(payload=bytes(9 * MIB)))  # libzmq itself refuses that
    with pytest.raises(TransferError, match="every connection breaks"):
        begin(pull(MemorySink([bytearray(MIB)])), place).wait(15)
    assert server.joins == 10


def test_a_stream_of_another_size_than_announced_is_an_error(impostor, begin):
    _, place = impostor(lambda message: [[encode(Joined(size=7))]])
    for work in (pull(MemorySink([bytearray(10)])), push(MemorySource([DATA[:10]]))):
        with pytest.raises(TransferError) as caught:
            begin(work, place).wait(10)
        assert caught.value.id == "changed"


@pytest.mark.parametrize("read", [Read(offset=0, size=1 << 60), Read(offset=1 << 60, size=1)])
def test_a_server_that_asks_for_what_is_not_there_gets_nothing(impostor, begin, read):
    _, place = impostor(lambda message: [[encode(Joined(size=10))], [encode(read)]])
    with pytest.raises(TransferError) as caught:
        begin(push(MemorySource([DATA[:10]])), place).wait(10)
    assert caught.value.id == "corrupt"


def test_what_makes_no_sense_is_skipped(impostor, begin):
    def speak(message):
        if isinstance(message, Join):
            yield [encode(Joined(size=3))]
            yield [b""]
            yield [b"\xff" * 50, b"x"]
            yield [encode(Done())]
            yield [encode(Join(transfer="t", protocol=(1, 1)))]
            yield [encode(Chunk(offset=0, size=3, digest=bytes(16)))]
        else:
            yield from answering(payload=b"abc")(message)

    _, place = impostor(speak)
    here = bytearray(3)
    begin(pull(MemorySink([here])), place).wait(10)
    assert here == b"abc"


def test_a_server_that_does_not_answer_is_tried_again(impostor, begin, monkeypatch):
    monkeypatch.setattr("remoter._transfer.ATTEMPT", 0.7)  # in which a connection has to be made, too
    monkeypatch.setattr("remoter._transfer.LONGEST_PAUSE", 0.05)
    server, place = impostor(lambda message: [])
    transfer = begin(pull(MemorySink([bytearray(3)])), place)
    wait_for(lambda: server.joins > 1, 15, what="another attempt")
    assert transfer.status == "running"


# --- waiting, cancelling, ending -------------------------------------------------------------


def stuck_in_place(entered, left):
    def place():
        entered.set()
        left.wait(15)
        raise LinkLostError("too late")

    return place


@pytest.mark.parametrize("state", ["step", "pull", "push", "connecting", "place", "before"])
def test_a_cancelled_transfer_ends_at_once_and_leaves_nothing(house, begin, state):
    entered, left = threading.Event(), threading.Event()
    control = Control(lambda transfer, what, data: entered.set() or (None if what == "pull" else {}))
    place = house.at_port()
    work = pull(MemorySink([bytearray(len(DATA))]))
    before = descriptors()
    source = Gated(MemorySource([DATA]), 5 * MIB)
    if state == "step":
        work = lambda carrier: carrier.step("pull", {})  # noqa: E731
    elif state == "push":
        house.dock.accept("t", Gated(MemorySink([bytearray(len(DATA))]), 5 * MIB), lambda data, error: None)
        work = push(MemorySource([DATA]))
    elif state == "connecting":
        place = Place(client_keys(), house.keys.public, None, LOOPBACK, 9)
    elif state == "place":
        place = stuck_in_place(entered, left)
    else:
        house.dock.offer("t", source)
    transfer = begin(work, place, control)
    if state in ("step", "place"):
        assert entered.wait(10)
    elif state in ("pull", "push"):
        wait_for(lambda: transfer.progress.done > 4 * MIB, what="it to be under way")
    transfer.cancel()
    with pytest.raises(TransferError) as caught:
        transfer.wait()  # it comes back although what it is stuck in goes on only now
    assert caught.value.id == "cancelled"
    assert transfer.status == "cancelled"
    left.set()
    source.opened.set()
    if state == "push":
        house.dock._berths["t"].sink.opened.set()
    wait_for(lambda: not threads_of("remoter-transfer"), what="the end of the thread")
    house.dock.drop("t")
    # Others may be fewer by now: what an earlier test has left is closed when it is collected.
    wait_for(lambda: descriptors() <= before and not threads_of("remoter-berth"), what="all to be closed")
    if state == "step":
        assert control.steps == [("t", "pull"), ("t", "release")]


def test_hundred_transfers_leave_nothing_however_they_end(house, proxy, begin):
    def once(number):
        name = str(number)
        house.dock.offer(name, MemorySource([DATA[:MIB]]))
        transfer = begin(pull(MemorySink([bytearray(MIB)]), name), house.at_port(proxy.port), id=name)
        if number % 3 == 1:
            transfer.cancel()
        if number % 3 == 2:
            proxy.cut()
        with contextlib.suppress(TransferError):
            transfer.wait(10)
        house.dock.drop(name)

    def is_quiet():
        return not threads_of("remoter-transfer", "remoter-berth") and house.door.counts == (0, 0)

    once(0)
    wait_for(is_quiet, what="all to be closed")
    before = descriptors()
    for number in range(60):
        once(number)
    wait_for(lambda: is_quiet() and len(descriptors()) <= len(before), what="all to be closed")


def test_waiting_may_end_before_the_transfer(house, begin):
    source = Gated(MemorySource([DATA]), 5 * MIB)
    house.dock.offer("t", source)
    transfer = begin(pull(MemorySink([bytearray(len(DATA))])), house.at_socket())
    with pytest.raises(StillRunningError, match="still on its way") as caught:
        transfer.wait(0.05)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, RemoterError)
    assert transfer.status == "running"
    source.opened.set()
    transfer.wait(10)
    transfer.wait(0)
    assert transfer.status == "done"
    assert "done" in repr(transfer)


def test_who_waits_is_shown_the_progress_also_while_nothing_moves(house, begin, monkeypatch):
    monkeypatch.setattr("remoter._transfer.STEP_PATIENCE", 0.05)
    answer = Future()
    seen = []

    def work(carrier):
        carrier.note("looking for it")
        carrier.step("pull", {})
        return 5

    def show(progress):
        seen.append((time.monotonic(), progress, threading.current_thread()))
        if len(seen) > 5 and progress.note == "waiting for the session" and not answer.done():
            answer.set_result({})

    assert begin(work, None, lambda *step: answer).wait(10, show=show) == 5
    notes = [progress.note for _, progress, _ in seen]
    assert "waiting for the session" in notes
    assert notes[-1] == "looking for it"
    assert {thread for _, _, thread in seen} == {threading.current_thread()}
    times = [at for at, _, _ in seen]
    assert times[4] - times[0] > 0.35  # ten times a second at most
    assert isinstance(seen[0][1], Progress)


def test_ctrl_c_while_waiting_cancels_and_is_raised(house, begin):
    source = Gated(MemorySource([DATA]), 5 * MIB)
    house.dock.offer("t", source)
    control = Control()

    def work(carrier):
        carrier.step("pull", {})
        return carrier.receive(MemorySink([bytearray(len(DATA))]), transfer=carrier.id)

    transfer = begin(work, house.at_socket(), control)
    assert source.reached.wait(10)
    waits = threading.Event()

    def press():
        if waits.wait(15):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        transfer.wait(show=lambda progress: waits.set())
    thread.join()
    assert transfer.status == "cancelled"
    wait_for(lambda: control.steps[-1] == ("t", "release"), what="the session to be told")
    source.opened.set()


def test_whoever_watches_and_fails_ends_the_transfer(house, begin):
    source = Gated(MemorySource([DATA]), 5 * MIB)
    house.dock.offer("t", source)
    transfer = begin(pull(MemorySink([bytearray(len(DATA))])), house.at_socket())

    def show(progress):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transfer.wait(show=show)
    assert transfer.status == "cancelled"
    source.opened.set()


def test_a_fork_cannot_use_it(begin):
    answer = Future()
    transfer = begin(lambda carrier: carrier.step("pull", {}), None, lambda *step: answer)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                transfer.wait(1)
            except RemoterError as error:
                code = 0 if error.id == "forked" else 2
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    answer.set_result({})
    transfer.wait(5)


PROGRAM = """
import sys, threading
from concurrent.futures import Future
from remoter import _transfer
from remoter._connection import Place
from remoter._pieces import MemorySink
from remoter._security import client_keys
from remoter._transfer import Transfer

_transfer.GRACE = 10  # how soon its thread gets a turn is not what is looked at

steps = []
def ask(transfer, what, data):
    steps.append(what)
    print(what, flush=True)
    future = Future()
    if what == "pull":
        future.set_result({})
    return future

def work(carrier):
    carrier.step("pull", {})
    return carrier.receive(MemorySink([bytearray(1 << 24)]), transfer=carrier.id)

place = Place(client_keys(), sys.argv[1], sys.argv[2])
transfer = Transfer("t", "x", work, ask=ask, place=lambda: place)
transfer.start()
while not transfer.progress.done:
    threading.Event().wait(0.01)
"""


def test_a_process_that_ends_gives_up_its_transfers_and_does_not_wait(house):
    source = Gated(MemorySource([bytes(1 << 24)]), 5 * MIB)
    house.dock.offer("t", source)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, house.keys.public, str(house.path)],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["pull", "release"]
    source.opened.set()


# --- two processes ---------------------------------------------------------------------------


SERVER = """
import json, os, socket, sys
from pathlib import Path
from remoter._dock import Dock
from remoter._door import Door
from remoter._pieces import MemorySource
from remoter._security import Keyring, server_keys

directory = Path(sys.argv[1])
keys = server_keys()
dock = Dock(directory, keys, Keyring())
dock.start()
listener = socket.create_server(("127.0.0.1", int(sys.argv[2])))
door = Door([listener], directory / "zmq.sock", None, data=directory / "data.sock")
door.start()
print(json.dumps(keys.public), flush=True)
for line in sys.stdin:
    name, size = json.loads(line)
    dock.offer(name, MemorySource([bytes(range(256)) * (size // 256)]))
    print(json.dumps(name), flush=True)
door.stop()
dock.stop()
"""


class Server:
    """A dock and a door in a process of their own, which can be killed and started again."""

    def __init__(self, directory):
        self.directory = directory
        self.holder = socket.socket()  # the port is ours while no server has it
        self.holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.holder.bind((LOOPBACK, 0))
        self.port = self.holder.getsockname()[1]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.directory), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.public = json.loads(self.process.stdout.readline())

    def offer(self, name, size):
        print(json.dumps([name, size]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def kill(self):
        self.process.kill()
        with self.process:
            self.process.stdin.close()

    def stop(self):
        with self.holder, self.process:
            self.process.stdin.close()
            assert self.process.wait(10) == 0


def test_a_transfer_survives_that_the_server_is_killed(home, begin):
    directory = home / "run"
    directory.mkdir(mode=0o700)
    server = Server(directory)
    size = 64 * MIB
    rounds = []
    here = bytearray(size)

    class Killing(MemorySink):
        def write(self, data):
            super().write(data)
            if len(rounds) == 1 and self.position > size // 2:
                rounds.append("killed")
                server.kill()
                server.start()

    def answer(transfer, what, data):
        rounds.append(what)
        return {"name": server.offer(transfer, size)} if what == "pull" else {}

    def work(carrier):
        while True:
            carrier.step("pull", {})
            with contextlib.suppress(Forgotten):
                return carrier.receive(Killing([here]), transfer=carrier.id)

    place = Place(client_keys(), server.public, None, "localhost", server.port)
    begin(work, place, Control(answer)).wait(18)
    assert rounds == ["pull", "killed", "pull", "release"]
    assert here == bytes(range(256)) * (size // 256)
    server.stop()


def test_memory_of_the_receiver_grows_by_little_more_than_the_window(home, begin):
    directory = home / "run"
    directory.mkdir(mode=0o700)
    server = Server(directory)
    size = 256 * MIB

    class Void:
        position = 0

        def __init__(self):
            self.size = size

        def write(self, data):
            self.position += len(data)

        def finish(self):
            return {}

        def close(self):
            pass

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    server.offer("t", size)
    before, most = resident(), []
    place = Place(client_keys(), server.public, None, LOOPBACK, server.port)
    begin(pull(Void()), place).wait(18, show=lambda progress: most.append(resident()))
    assert max(most) - before < 80 * MIB
    server.stop()
