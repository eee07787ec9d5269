"""Copies within one process: a carrier that joins the two ends of a transfer, and can cut it anywhere."""

import contextlib
import os
from pathlib import Path

import msgspec

from remoter import _freight
from remoter._errors import LinkLostError, TransferError
from remoter._messages import LONGEST_CHUNK


def through_the_wire(data):
    """What arrives of what is sent in a message."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(data))


def move(source, sink, *, chunk=LONGEST_CHUNK, cut=None, hook=None):
    """Move a stream, as `_pieces` does: in order, in chunks; `cut`: after so many bytes the connection is gone for good."""
    assert source.size == sink.size
    buffer = memoryview(bytearray(chunk))
    moved = 0
    while sink.position < sink.size:
        part = buffer[: min(chunk, sink.size - sink.position)]
        source.read(sink.position, part)
        if cut is not None and moved + len(part) > cut:
            sink.write(part[: cut - moved]) if cut > moved else None
            raise LinkLostError("the connection is gone")
        before = sink.position
        sink.write(part)
        assert sink.position == before + len(part)
        moved += len(part)
        if hook is not None:
            hook(sink.position)
    return sink.finish()


class FakeCarrier:
    """Does what a transfer's carrier does, with a server's freight in the same process.

    Args:
        cwd: the session's working directory.
        root: what its files are confined to.
        cut: after so many bytes of the contents, the connection is gone for good.
        hook: called after each chunk of the contents, with the position.
        tamper: gets each answer of the server, and returns what arrives.
    """

    def __init__(self, cwd, root=None, *, cut=None, chunk=LONGEST_CHUNK, hook=None, tamper=None):
        self.id = os.urandom(8).hex()
        self.cwd, self.root = Path(cwd), root
        self.cut, self.chunk, self.hook, self.tamper = cut, chunk, hook, tamper
        self.streams, self.freight = {}, None
        self.notes, self.steps, self.totals, self.files_done = [], [], [], 0

    def step(self, what, data, *, transfer=None):
        data = through_the_wire(data)
        self.steps.append(what)
        if what == "release":
            self.end()
            return {}
        work = {"read": _freight.offer_path, "write": _freight.accept_path}
        if what == "select":
            self.freight = _freight.select(self.freight, data)
        else:
            self.freight = work[what](data, self.cwd, self.root)
        for suffix, stream in self.freight.streams.items():
            self.streams[self.id + suffix] = stream
        reply = through_the_wire(self.freight.reply)
        return reply if self.tamper is None else self.tamper(what, reply)

    def _move(self, source, sink, transfer):
        is_content = transfer == self.id
        return through_the_wire(
            move(
                source,
                sink,
                chunk=self.chunk,
                cut=self.cut if is_content else None,
                hook=self.hook if is_content else None,
            )
        )

    def receive(self, sink, *, transfer, compress=None):
        with contextlib.closing(sink):
            if sink.position == sink.size:
                return sink.finish()
            with contextlib.closing(self.streams.pop(transfer)) as source:
                return self._move(source, sink, transfer)

    def send(self, source, *, transfer, compress=None):
        with contextlib.closing(source), contextlib.closing(self.streams.pop(transfer)) as sink:
            return self._move(source, sink, transfer)

    def note(self, text):
        self.notes.append(text)

    def total(self, bytes, files=0):
        self.totals.append((bytes, files))

    def file_done(self):
        self.files_done += 1

    def check(self):
        pass

    def end(self):
        """The transfer is over."""
        for stream in self.streams.values():
            stream.close()
        self.streams.clear()


__all__ = ["FakeCarrier", "TransferError", "move", "through_the_wire"]
