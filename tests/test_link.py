"""The client's link against a server made here: what is sent again, what is told apart, what is bounded."""

import contextlib
import dataclasses
import queue
import select
import socket
import threading
import time

import msgspec
import pytest
import zmq

from remoter._connection import Pace, Place
from remoter._errors import (
    AuthError,
    ConnectError,
    KeyChangedError,
    LinkLostError,
    RemoterError,
    VersionError,
)
from remoter._link import Link
from remoter._messages import (
    Acknowledge,
    Answer,
    Attach,
    Attached,
    Event,
    Events,
    Goodbye,
    Interrupt,
    Ping,
    Pong,
    Query,
    Refused,
    Reply,
    Submit,
    decode_from_client,
    encode,
)
from remoter._run import Inbox, Run
from remoter._security import new_keys, secure_server_socket

from .conftest import wait_for
from .test_keeper import quiet_port

QUICK = Pace(ping=0.05, lost=60.0, attempt=15.0, first_wait=0.02, longest_wait=0.1, acknowledge=0.02)
IMPATIENT = dataclasses.replace(QUICK, lost=0.3, give_up=3.0, attempt=1.0)
"""Takes a server for lost that stands still for a moment: only for what is about just that."""


class FakeServer:
    """Speaks the protocol on a loopback port, as the test says."""

    def __init__(self, keys=None, port=0, admits=True):
        self.keys = keys or new_keys()
        self.session, self.journal, self.protocol = "interpreter-1", "journal-1", 1
        self.events, self.done_runs, self.asks, self.n = [], {}, [], 0
        self.seen = queue.Queue()
        self.orders = queue.SimpleQueue()
        self.silent = threading.Event()
        self.peer = None
        self.context = zmq.Context()
        self.zap = self.context.socket(zmq.ROUTER)
        self.zap.bind("inproc://zeromq.zap.01")
        self.admits = admits
        self.socket = secure_server_socket(self.context, self.keys)
        self.socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.port = int(self.socket.last_endpoint.rpartition(b":")[2])
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.zap, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(5))
            if self.zap in ready:
                self._admit()
            if self.socket in ready:
                identity, data = self.socket.recv_multipart()
                message = decode_from_client(data)
                if not isinstance(message, Ping):
                    self.seen.put(message)
                if not self.silent.is_set():
                    self._react(identity, message)
            with contextlib.suppress(queue.Empty):
                order = self.orders.get_nowait()
                if order is None:
                    break
                with contextlib.suppress(zmq.ZMQError):
                    self.socket.send_multipart([self.peer, encode(order)])
        self.socket.close(0)
        self.zap.close(0)
        self.context.term()

    def _admit(self):
        peer, _, version, request, *_ = self.zap.recv_multipart()
        verdict = [b"200", b"OK", b"someone"] if self.admits else [b"400", b"no", b""]
        self.zap.send_multipart([peer, b"", version, request, *verdict, b""])

    def _react(self, identity, message):
        reply = None
        if isinstance(message, Attach):
            self.peer = identity
            last = self.events[-1].seq if self.events else 0
            reply = Attached(
                protocol=self.protocol, features=(), version="9", session=self.session, journal=self.journal,
                first=1, last=last, n=self.n, runs=self.done_runs, info={"name": "main"}, asks=self.asks,
            )  # fmt: skip
        elif isinstance(message, Ping):
            reply = Pong(id=message.id, session=self.session, clients=1)
        if reply is not None:
            with contextlib.suppress(zmq.ZMQError):  # the connection was cut meanwhile
                self.socket.send_multipart([identity, encode(reply)])

    def say(self, message):
        self.orders.put(message)

    def emit(self, kind, n=None, **more):
        """Journal an event and send it; returns its number."""
        run = more.pop("run", ("me", n) if n else None)
        event = Event(seq=len(self.events) + 1, kind=kind, time=0.0, run=run, **more)
        self.events.append(event)
        self.say(events(event))
        return event.seq

    def expect(self, kind, timeout=15.0):
        """The next message of that kind."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.seen.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(message, kind):
                return message

    def stop(self):
        self.orders.put(None)
        self.thread.join()


def events(*found, cursor=0):
    return Events(events=[msgspec.Raw(encode(event)) for event in found], cursor=cursor)


class Proxy:
    """A TCP relay whose connections can be cut, or held so that nothing passes."""

    def __init__(self, port):
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.pairs, self.held, self.open = {}, set(), True
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while self.open:
            live = [end for end in self.pairs if end not in self.held]
            ready, _, _ = select.select([self.listener, *live], [], [], 0.005)
            for end in ready:
                if end is self.listener:
                    self._accept()
                elif end in self.pairs:
                    self._pass(end)
        self.cut()
        self.listener.close()

    def _accept(self):
        inner, _ = self.listener.accept()
        try:
            outer = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            inner.close()
            return
        self.pairs[inner], self.pairs[outer] = outer, inner

    def _pass(self, end):
        try:
            data = end.recv(65536)
            if data:
                self.pairs[end].sendall(data)
                return
        except OSError:
            pass
        other = self.pairs.pop(end)
        self.pairs.pop(other, None)
        end.close()
        other.close()

    def cut(self):
        """Break all connections."""
        for end in list(self.pairs):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            if not self.open:
                end.close()

    def hold(self):
        """Let nothing of the present connections pass any more; new ones work."""
        self.held |= set(self.pairs)

    def release(self):
        self.held.clear()

    def stop(self):
        self.open = False
        self.thread.join()


@pytest.fixture
def make():
    """Makes things that are stopped after the test, the last one first."""
    with contextlib.ExitStack() as stack:

        def start(kind, *arguments, **options):
            thing = kind(*arguments, **options)
            stack.callback(getattr(thing, "stop", None) or thing.close)
            return thing

        yield start


@pytest.fixture
def server(make):
    return make(FakeServer)


class Client:
    """A link with its inbox, as a Session has them."""

    def __init__(self, server, port=None, locate=None, pace=QUICK, **options):
        self.keys = new_keys()
        self.states = queue.Queue()
        self.inbox = Inbox("me", None)
        self.seen = queue.Queue()
        self.inbox.watchers.append((self.seen.put, self.states.put))
        place = Place(self.keys, server.keys.public, None, "127.0.0.1", port or server.port)
        self.link = Link(
            locate or (lambda: place), self.inbox, client="me", where="`there`", pace=pace, **options
        )
        self.inbox.link = self.link
        self.link.start()

    def open(self, timeout=15.0):
        self.link.wait_open(timeout)
        return self

    def run(self, n, code="1"):
        run = Run(("me", n), self.link, self.inbox)
        self.inbox.runs[n] = run
        self.link.submit(Submit(n=n, session=self.link.session, code=code))
        return run

    def expect_state(self, state, timeout=15.0):
        deadline = time.monotonic() + timeout
        while True:
            found = self.states.get(timeout=max(0.0, deadline - time.monotonic()))
            if found.state == state:
                return found

    def close(self):
        self.link.close()


def finish(server, n, *, text="2"):
    server.emit("busy", n)
    server.emit("result", n, text=text)
    server.emit("done", n, data={"status": "ok", "elapsed": 0.1})


def test_attach_is_the_first_message_and_a_run_comes_back(make, server):
    client = make(Client, server).open()
    assert server.seen.get(timeout=15).client == "me"
    run = client.run(1, "1+1")
    assert server.expect(Submit).code == "1+1"
    server.emit("queued", 1, text="1+1")
    finish(server, 1)
    result = run.wait(15)
    assert (result.status, result.text, result.elapsed) == ("ok", "2", 0.1)
    assert not client.link.unfinished.submits


def test_a_run_that_was_not_accepted_is_sent_again_after_a_cut_with_the_same_number(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port).open()
    client.run(1)
    server.expect(Submit)
    proxy.cut()
    client.expect_state("lost")
    client.expect_state("ok")
    again = server.expect(Submit)
    assert (again.n, again.session) == (1, "interpreter-1")


def test_a_run_that_the_server_knows_is_not_sent_again(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port).open()
    run = client.run(1)
    server.expect(Submit)
    server.n, server.done_runs = 1, {1: "running"}
    proxy.cut()
    client.expect_state("lost")
    client.expect_state("ok")
    client.run(2)
    assert server.expect(Submit).n == 2
    finish(server, 1)
    assert run.wait(15).text == "2"


def test_reattaching_says_what_was_processed_and_repetitions_are_dropped(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port, since=0).open()
    for text in "abc":
        server.emit("stdout", text=text)
    for text in "abc":
        assert client.seen.get(timeout=15).text == text
    server.expect(Attach)
    proxy.cut()
    attach = server.expect(Attach)
    assert (attach.since, attach.journal) == (3, "journal-1")
    client.expect_state("lost")
    client.expect_state("ok")
    server.say(events(*server.events))
    server.emit("stdout", text="d")
    assert client.seen.get(timeout=15).text == "d"


def test_a_run_for_an_interpreter_that_was_replaced_meanwhile_is_never_run(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port).open()
    run = client.run(1)
    server.expect(Submit)
    server.session = "interpreter-2"
    proxy.cut()
    with pytest.raises(LinkLostError, match="interpreter that this was meant for is gone"):
        run.wait(15)
    client.run(2)
    assert server.expect(Submit).session == "interpreter-2"


def test_a_new_journal_starts_the_numbering_anew_and_unknown_runs_are_given_up(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port, since=0).open()
    run = client.run(1)
    server.emit("queued", 1, text="1")
    server.emit("stdout", text="old")
    while client.seen.get(timeout=15).kind != "stdout":
        pass
    server.journal, server.session, server.events = "journal-2", "interpreter-9", []
    proxy.cut()
    with pytest.raises(LinkLostError, match="not known"):
        run.wait(15)
    client.expect_state("lost")
    client.expect_state("ok")
    assert server.emit("stdout", text="new") == 1
    assert client.seen.get(timeout=15).text == "new"


def test_a_run_whose_last_events_are_no_longer_kept_ends_as_the_record_says(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port).open()
    run = client.run(1)
    server.emit("queued", 1, text="1")
    client.seen.get(timeout=15)
    server.n, server.done_runs = 1, {1: "ok"}
    server.events = [*server.events, Event(seq=9, kind="stdout", time=0.0)]
    proxy.cut()
    client.expect_state("lost")
    client.expect_state("ok")
    gap = Event(seq=8, kind="gap", time=0.0, data={"first": 2, "last": 8})
    server.say(events(gap, cursor=9))
    assert run.wait(15).status == "ok"


def test_events_are_acknowledged_after_a_moment_of_quiet(make, server):
    make(Client, server).open()
    server.emit("stdout", text="a")
    server.say(events(cursor=7))
    deadline = time.monotonic() + 15
    while server.expect(Acknowledge).seq != 7:
        assert time.monotonic() < deadline


def test_events_are_acknowledged_every_128_kilobytes_without_waiting(make, server):
    make(Client, server, pace=Pace(acknowledge=60.0)).open()
    for _ in range(3):
        server.emit("stdout", text="x" * 50_000)
    assert server.expect(Acknowledge).seq == 3


def test_what_nobody_consumes_is_not_acknowledged_until_it_is(make, server):
    client = make(Client, server, window=100_000)
    client.inbox.on_event = lambda event, size: client.seen.put((event, size))
    client.open()
    server.emit("stdout", text="x" * 60_000)
    sizes = [client.seen.get(timeout=15)[1]]
    assert server.expect(Acknowledge).seq == 1
    for _ in range(2):
        server.emit("stdout", text="x" * 60_000)
        sizes.append(client.seen.get(timeout=15)[1])
    with pytest.raises(queue.Empty):
        server.expect(Acknowledge, timeout=0.2)
    client.link.consumed(sum(sizes))
    assert server.expect(Acknowledge).seq == 3


def test_a_silent_server_is_lost_soon_and_a_new_connection_takes_over(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port, pace=IMPATIENT).open()
    client.expect_state("ok")
    proxy.hold()
    lost = client.expect_state("lost")
    assert "no answer" in lost.detail
    client.expect_state("ok")
    client.run(1)
    assert server.expect(Submit).n == 1


def test_a_server_that_answers_again_on_the_old_connection_is_taken_back(make, server):
    client = make(Client, server, pace=IMPATIENT).open()
    client.expect_state("ok")
    server.silent.set()
    client.expect_state("lost")
    server.silent.clear()
    client.expect_state("ok")
    client.run(1)
    assert server.expect(Submit).n == 1


def test_a_server_that_never_attaches_is_a_connect_error_in_time(make, server):
    server.silent.set()
    client = make(Client, server)
    began = time.monotonic()
    with pytest.raises(ConnectError, match=r"within 0\.5 s"):
        client.open(0.5)
    assert time.monotonic() - began < 10  # a server that is reached may take 15 s to answer


def test_a_port_where_nobody_listens_is_a_connect_error_that_says_so(make, server):
    with socket.socket() as deaf:  # has the port, so that nobody else has it, and does not listen
        deaf.bind(("127.0.0.1", 0))
        client = make(Client, server, deaf.getsockname()[1])
        wait_for(lambda: client.link.state.detail, what="the first attempt to fail")
        with pytest.raises(ConnectError) as caught:
            client.open(0.1)
    assert "nobody accepts" in str(caught.value)


def test_a_key_that_is_not_admitted_is_an_auth_error(make):
    server = make(FakeServer, admits=False)
    with pytest.raises(AuthError, match="does not admit"):
        make(Client, server).open()


def test_a_server_with_another_key_is_a_key_error(make, server):
    wrong = Place(new_keys(), new_keys().public, None, "127.0.0.1", server.port)
    with pytest.raises(KeyChangedError, match="not the expected one"):
        make(Client, server, locate=lambda: wrong).open()


def test_a_port_that_speaks_something_else_is_a_connect_error(make, server):
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as caller, contextlib.suppress(OSError):
                    caller.sendall(b"HTTP/1.1 400 Bad\r\n\r\n" * 20)
                    caller.recv(1000)

    with listener:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectError):
            make(Client, server, listener.getsockname()[1]).open(0.5)
        listener.shutdown(socket.SHUT_RDWR)  # whether anybody came in that time or not
        thread.join()


def test_another_protocol_version_is_a_version_error(make, server):
    server.protocol = 7
    with pytest.raises(VersionError, match="no common protocol"):
        make(Client, server).open()


def test_a_refused_connection_raises_the_error_that_the_server_names(make, server):
    server.silent.set()
    client = make(Client, server)
    server.peer = None
    server.expect(Attach)
    # The silent server still knows nobody: it answers whoever attached last.
    server.silent.clear()
    client.link.thread.loop.call_soon_threadsafe(
        client.link.receive, None, Refused(error="VersionError", message="too old", hints=("upgrade",))
    )
    with pytest.raises(VersionError, match="too old"):
        client.open()


def test_a_refused_run_fails_with_that_error_and_others_go_on(make, server):
    client = make(Client, server).open()
    run = client.run(1)
    server.expect(Submit)
    server.say(Refused(error="NoSuchError", message="too much is waiting", n=1))
    with pytest.raises(RemoterError, match="too much"):
        run.wait(15)
    assert client.link.state.state == "ok"


def test_a_superseded_connection_comes_back(make, server):
    client = make(Client, server).open()
    server.expect(Attach)
    server.say(Goodbye(reason="superseded"))
    server.expect(Attach)
    client.run(1)
    assert server.expect(Submit).n == 1


def test_the_end_of_the_session_ends_the_link_and_what_waits_for_it(make, server):
    client = make(Client, server).open()
    run, future = client.run(1), client.link.query("info")
    server.expect(Query)
    server.say(Goodbye(reason="shutdown", message="stopped by ann"))
    for wait in (run.wait, future.result):
        with pytest.raises(LinkLostError, match="has ended"):
            wait(15)
    assert client.link.state.state == "closed"
    with pytest.raises(LinkLostError, match="has ended"):
        client.run(2)


def test_questions_are_asked_again_after_a_cut_but_a_restart_is_not(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port).open()
    info, restart = client.link.query("info"), client.link.query("restart")
    server.expect(Query)
    server.expect(Query)
    proxy.cut()
    with pytest.raises(LinkLostError, match="may or may not"):
        restart.result(15)
    again = server.expect(Query)
    assert again.what == "info"
    server.say(Reply(id=again.id, data={"name": "main"}))
    assert info.result(15) == {"name": "main"}


def test_only_the_interrupt_of_a_certain_run_is_repeated(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port).open()
    certain, current = client.link.interrupt(("me", 1)), client.link.interrupt(None)
    server.expect(Interrupt)
    server.expect(Interrupt)
    proxy.cut()
    with pytest.raises(LinkLostError):
        current.result(15)
    again = server.expect(Interrupt)
    assert again.run == ("me", 1)
    server.say(Reply(id=again.id, data={}))
    assert certain.result(15) == {}


def test_an_answer_that_was_lost_is_given_again_while_the_ask_waits(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port).open()
    run = client.run(1)
    server.emit("ask", 1, text="name? ", data={"id": 5, "hidden": False})
    client.seen.get(timeout=15)
    run.answer("ann")
    assert server.expect(Answer).text == "ann"
    server.asks = [server.events[-1]]
    proxy.cut()
    again = server.expect(Answer)
    assert (again.run, again.ask, again.text) == (("me", 1), 5, "ann")


def test_an_ask_is_answered_in_the_waiting_thread_and_end_of_file_without_anyone(make, server):
    client = make(Client, server).open()
    run = client.run(1)
    server.emit("ask", 1, text="who? ", data={"id": 1, "hidden": True})
    finish_later = threading.Thread(target=lambda: (server.expect(Answer), finish(server, 1)))
    finish_later.start()
    seen = []
    client.inbox.ask = lambda prompt, hidden: seen.append((prompt, hidden, threading.current_thread()))
    run.wait(15)
    finish_later.join()
    assert seen == [("who? ", True, threading.main_thread())]


def test_a_session_that_is_gone_when_we_come_back_closes_the_link(make, server):
    gone = threading.Event()
    place = Place(new_keys(), server.keys.public, None, "127.0.0.1", server.port)

    def locate():
        if gone.is_set():
            raise LinkLostError("session `main` has ended")
        return place

    client = make(Client, server, locate=locate).open()
    run = client.run(1)
    server.expect(Submit)
    gone.set()
    server.say(Goodbye(reason="superseded"))
    with pytest.raises(LinkLostError, match="has ended"):
        run.wait(15)
    assert client.expect_state("closed").detail == "session `main` has ended"


def test_the_server_that_comes_back_with_the_same_keys_is_found_again(make):
    port = quiet_port("127.0.0.1")
    first = FakeServer(port=port)
    keys = first.keys
    client = make(Client, first).open()
    first.stop()
    client.expect_state("lost")
    second = make(FakeServer, keys, port)
    client.expect_state("ok")
    client.run(1)
    assert second.expect(Submit).n == 1


def test_who_waits_is_told_of_the_silence_and_of_its_end(make, server, monkeypatch, capsys):
    monkeypatch.setattr("remoter._run.SILENCE", 0.4)
    client = make(Client, server, pace=IMPATIENT).open()
    run = client.run(1)
    server.expect(Submit)
    server.silent.set()
    told = ""

    def read_until(words):
        nonlocal told
        deadline = time.monotonic() + 15
        while words not in told:
            assert time.monotonic() < deadline
            told += capsys.readouterr().err
            time.sleep(0.005)

    waiting = threading.Thread(target=lambda: list(run._follow(30, tell=True)))
    waiting.start()
    read_until("-- no answer from `there` for 0 s; it goes on there; trying to come back\n")
    client.link.pace = QUICK  # what stands still from now on, is not told as another silence
    server.silent.clear()
    read_until("-- `there` answers again\n")
    finish(server, 1)
    waiting.join()
    assert len(told.splitlines()) == 2


def test_a_question_that_nobody_waits_for_any_more_is_not_asked_again(make, server):
    proxy = make(Proxy, server.port)
    client = make(Client, server, proxy.port).open()
    old, new = client.link.query("info"), client.link.query("variables")
    server.expect(Query)
    server.expect(Query)
    old.cancel()
    proxy.cut()
    assert server.expect(Query).what == "variables"
    client.close()
    with pytest.raises(LinkLostError):
        new.result(15)


def test_a_watcher_that_fails_does_not_stop_the_reading(make, server, caplog):
    client = make(Client, server, since=0).open()
    client.inbox.watchers.insert(0, (lambda event: 1 / 0, lambda state: None))
    server.emit("stdout", text="a")
    wait_for(lambda: "ZeroDivisionError" in caplog.text, what="the mistake to be logged")
    del client.inbox.watchers[0]
    server.emit("stdout", text="b")
    assert client.seen.get(timeout=15).text == "b"


def test_closing_says_goodbye_and_the_link_is_of_no_use_afterwards(make, server):
    from remoter._messages import Detach

    client = make(Client, server).open()
    client.close()
    server.expect(Detach)
    with pytest.raises(LinkLostError, match="was closed"):
        client.run(1)
