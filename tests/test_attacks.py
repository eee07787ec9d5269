"""All that can be thrown at a real server's port: by strangers, by whoever sits in between, by a client that is admitted."""

import contextlib
import json
import os
import pickle
import socket
import struct
import threading
import time
from pathlib import Path

import msgspec
import pytest
import zmq

import remoter
from remoter import _config
from remoter._address import key_to_text
from remoter._messages import Attach, Ping, Submit, decode_from_server, encode
from remoter._security import KeyPair, secure_client_socket

from .conftest import is_alive, wait_for
from .test_recovery import memory

LOOPBACK = "127.0.0.1"


@pytest.fixture
def served(serve):
    return serve(runner="plain")


def log_of(served):
    return (served.directory / "server.log").read_text()


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

    def hear(self, kind, timeout=8.0):
        """The next message of that kind."""
        deadline = time.monotonic() + timeout
        while self.socket.poll(max(0, deadline - time.monotonic()) * 1000):
            message = decode_from_server(self.socket.recv())
            if type(message).__name__.lower() == kind:
                return message
        raise AssertionError(f"no {kind}")

    def attach(self, **fields):
        self.say(encode(Attach(**{"client": "rude", "protocol": (1, 1), **fields})))
        return self.hear("attached")

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

NONSENSE = {
    "nothing": b"",
    "text": b"hello garbage",
    "random": os.urandom(4096),
    "pickle": pickle.dumps({"type": "ping", "id": 1}),
    "json": b'{"type":"ping","id":1}',
    "a number": b"\x05",
    "a list": msgspec.msgpack.encode([1, 2, 3]),
    "no type": pack(id=1),
    "unknown type": pack(type="format-disk", id=1),
    "of the server": pack(type="goodbye", reason="x"),
    "type that is none": pack(type=[1], id=1),
    "wrong types": pack(type="ping", id="one"),
    "missing fields": pack(type="submit"),
    "attach as a number": pack(type="attach", client=5, protocol=[1, 1]),
    "attach with half a protocol": pack(type="attach", client="x", protocol=[1]),
    "beyond 64 bits": b"\x82\xa4type\xa4ping\xa2id\xcf" + b"\xff" * 8,
    "not a number": pack(type="acknowledge", seq=float("nan")),
    "deep": b"\x91" * 100_000,
    "deep inside": b"\x83\xa4type\xa4ping\xa2id\x01\xa1x" + b"\x91" * 100_000 + b"\x01",
    "deep maps": b"\x81\xa1x" * 100_000,
    "four billion elements": b"\xdd\xff\xff\xff\xff",
    "four billion pairs": b"\xdf\xff\xff\xff\xff",
    "four gigabytes of text": b"\x82\xa4type\xa6detach\xa1x\xdb\xff\xff\xff\xff",
    "four gigabytes of bytes": b"\xc6\xff\xff\xff\xff",
    "an extension": b"\x82\xa4type\xa4ping\xa2id\xc7\x0c\xff" + bytes(12),
    "half a character": b"\x83\xa4type\xa4ping\xa2id\x01\xa1x\xa2\xed\xa0",
    "twice the same": b"\x83\xa4type\xa4ping\xa4type\xa6detach\xa2id\x01",
    "no end": pack(type="ping", id=1)[:-1],
    "more after the end": pack(type="ping", id=1) + b"\x01",
    "a million elements": pack(type="ping", id=[0] * 1_000_000),
}


def test_x(served, rude):
    one = rude()
    info = one.attach()
    for name, message in NONSENSE.items():
        before = log_of(served).count("\n")
        one.say(message)
        one.say(encode(Ping(id=77)))
        try:
            one.hear("pong")
        except Exception as e:
            print(name, "!!!!", repr(e)[:100])
        print(name, log_of(served).split("\n")[before:])
    print(is_alive(served.server_pid), memory(served.server_pid))
    odd = [
      Attach(client="x", protocol=(1,1), since=-1),
      Attach(client="x", protocol=(1,1), since=BEYOND),
      Attach(client="x", protocol=(-BEYOND,BEYOND), since=-BEYOND),
      Attach(client="", protocol=(1,1), since=0),
      Attach(client="a\nb"*1000, protocol=(1,1), label="x\n2020-01-01 remoter.server INFO forged"),
      Attach(client="a", protocol=(1,1), label="x"*5_000_000),
      Attach(client="a"*5_000_000, protocol=(1,1)),
      Attach(client="rude", protocol=(2,1), reader="rude"),
      Attach(client="rude", protocol=(1,1), reader=""),
      Attach(client="rude", protocol=(5,9)),
      Attach(client="rude", protocol=(1,1), journal="other"),
    ]
    for o in odd:
        one = rude()
        before = log_of(served).count("\n")
        one.say(encode(o))
        one.say(encode(Ping(id=77)))
        try:
            one.hear("pong", 2)
        except Exception as e:
            print(repr(o)[:100], "!!!!", repr(e)[:100])
        print(repr(o)[:100], [l[:300] for l in log_of(served).split("\n")[before:]])
        one.close
    print(is_alive(served.server_pid), memory(served.server_pid))
    from remoter._messages import Query, Answer, Interrupt, Acknowledge, Detach
    one = rude()
    a = one.attach(client="z")
    S = a.session
    odd = [
      Submit(n=BEYOND-1, session=S, code="1"), Submit(n=-BEYOND, session=S, code="1"), Submit(n=0, session=S, code="1"),
      Submit(n=BEYOND, session=S, code="1", width=BEYOND), 
      Acknowledge(seq=BEYOND), Acknowledge(seq=-BEYOND), Interrupt(id=BEYOND, run=("x"*1000, -1)), Interrupt(id=-1),
      Answer(run=("x",1), ask=BEYOND, text="x"*1000000), Answer(run=("x",1), ask=0, text="x"*1000000), Answer(run=("x",1), ask=-1, text=None),
      Query(id=-BEYOND, what="complete", code="x."*100000, cursor=BEYOND), Query(id=1, what="complete", code="imp", cursor=-BEYOND),
      Query(id=2, what="is_complete", code="("*100000), Query(id=3, what="inspect", code="\0"), Query(id=4, what="inspect", code="a."*50000),
      Query(id=5, what="is_complete", code="\\"), Query(id=5, what="is_complete", code="-"*200000+"1"), Query(id=6, what="variables"), Query(id=7, what="info"),
    ]
    for o in odd:
        before = log_of(served).count("\n")
        t=time.monotonic()
        one.say(encode(o))
        one.say(encode(Ping(id=77)))
        try:
            one.hear("pong", 5)
        except Exception as e:
            print(repr(o)[:100], "!!!!", repr(e)[:100])
        print(repr(o)[:100], round(time.monotonic()-t,3), [l[:300] for l in log_of(served).split("\n")[before:]])
    print(is_alive(served.server_pid), is_alive(served.worker_pid), memory(served.server_pid))
    one = rude()
    a = one.attach(client="w")
    odd= [
      Submit(n=1, session=S, code="1", width=-5), Submit(n=2, session=S, code="print('x'); list(range(200))", width=BEYOND),
      Submit(n=3, session=S, code="1/0", mode="script", filename="a\0b"), 
      Submit(n=4, session=S, code="1/0", mode="script", filename="x"*5_000_000), 
      Submit(n=5, session=S, code=""), Submit(n=6, session=S, code="("*100000),
      Submit(n=7, session=S, code="-"*200000+"1"),Submit(n=8, session=S, code="x=1;"*200000, mode="script"),
      Submit(n=9, session=S, code="1"*60_000_000),
      ]
    for o in odd:
        t=time.monotonic()
        one.say(encode(o))
        got=[]
        try:
            while not any(b'done' in bytes(r) for e in got for r in getattr(e,'events',[])):
                assert one.socket.poll(6000)
                got.append(decode_from_server(one.socket.recv()))
            print(repr(o)[:100], round(time.monotonic()-t,3), "ok")
        except Exception as e:
            print(repr(o)[:100], "!!!!", repr(e)[:100], repr(got)[:500])
    print(is_alive(served.server_pid), is_alive(served.worker_pid), memory(served.server_pid))
    with served.connect() as s:
        print(s.run("1+1"), s.info)
    print(log_of(served)[-5000:])
