"""The least that an array has to cost: pyzmq, CURVE, pieces of 1 MiB, eight of them under way, two processes.

DEALER here, ROUTER there; the receiver asks for each piece and copies it into memory: new memory, as an object
that is new to the receiver needs it, or memory that it has. No digests, no names, no journal, one thread
at each end. This file run as a program is the far end.
"""

import subprocess
import sys

import numpy
import zmq

import samples

CHUNK = 1 << 20
WINDOW = 8


def send_piece(socket, address, data, offset):
    """Answer one request without a copy of ours."""
    socket.send_multipart([*address, b"piece", offset], zmq.SNDMORE)
    start = int.from_bytes(offset, "big")
    socket.send(data[start : start + CHUNK], copy=False)


def receive(socket, address, into):
    """Ask for all pieces, with a window, and put them where they belong."""
    offsets = iter(range(0, len(into), CHUNK))

    def ask():
        for offset in offsets:
            socket.send_multipart([*address, b"read", offset.to_bytes(8, "big")])
            return

    for _ in range(WINDOW):
        ask()
    done = 0
    while done < len(into):
        *_, offset, payload = socket.recv_multipart(copy=False)
        start = int.from_bytes(offset.bytes, "big")
        into[start : start + len(payload.buffer)] = payload.buffer
        done += len(payload.buffer)
        ask()


def new_socket(context, kind, public, secret):
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.linger = 0
    socket.curve_publickey, socket.curve_secretkey = public, secret
    return socket


class Raw:
    """The near end."""

    has_memory = False
    receiver = "server"

    def __init__(self, address, count):
        self.count = count
        self.into = None
        theirs, ours = zmq.curve_keypair(), zmq.curve_keypair()
        self.process = subprocess.Popen(
            [
                sys.executable,
                __file__,
                address,
                str(count),
                str(int(self.has_memory)),
                *(key.decode() for key in theirs),
            ]
        )
        self.context = zmq.Context()
        self.socket = new_socket(self.context, zmq.DEALER, *ours)
        self.socket.curve_serverkey = theirs[0]
        self.processes = {"server": [self.process.pid]}
        try:
            self.socket.connect(address)
            self.socket.send(b"hello")
            self.socket.recv()
        except BaseException:
            self.close()
            raise

    def pull(self):
        into = numpy.empty(self.count) if self.into is None else self.into
        receive(self.socket, [], memoryview(into).cast("B"))
        return into

    def make(self, expression):
        """Nothing: it has it from the start."""

    def push(self, value):
        data = memoryview(value).cast("B")
        self.socket.send(b"push")
        while True:
            what, *rest = self.socket.recv_multipart()
            if what == b"done":
                return
            send_piece(self.socket, [], data, rest[0])

    def forget(self):
        """Nothing: its memory stays."""

    def trim(self):
        """Nothing: it takes none."""

    def close(self):
        self.socket.close()
        self.context.term()
        self.process.terminate()
        self.process.wait()


class RawInto(Raw):
    """The same, into memory that was there and touched before any clock starts."""

    has_memory = True

    def __init__(self, address, count):
        super().__init__(address, count)
        self.into = numpy.full(count, 0.0)  # not `zeros`


def serve(address, count, has_memory, public, secret):
    """The far end, until it is ended."""
    held = memoryview(samples.floats(int(count))).cast("B")  # what is sent, and where it is put
    socket = new_socket(zmq.Context(), zmq.ROUTER, public.encode(), secret.encode())
    socket.curve_server = True
    socket.bind(address)
    while True:
        identity, what, *rest = socket.recv_multipart()
        if what == b"read":
            send_piece(socket, [identity], held, rest[0])
        elif what == b"push":
            into = held if has_memory == "1" else memoryview(numpy.empty(int(count))).cast("B")
            receive(socket, [identity], into)
            del into
            socket.send_multipart([identity, b"done"])
        else:
            socket.send_multipart([identity, what])


if __name__ == "__main__":
    serve(*sys.argv[1:])
