"""The Python worker's objects that come and go: packing, sending, receiving, binding; in the user's interpreter.

Loaded by the worker when an object first crosses, from the file beside it; standard library only,
Python 3.8 and later, like the worker itself. What an object looks like on the way is the matter
of `_values.py`, which is loaded likewise.

Each question that may take long has a thread of its own, so the side thread stays free, and the
main thread with the user's code is never waited for. A name is looked up and bound beside
whatever runs. The bytes of an object do not go through the side connection: for each stream a
thread opens a connection of its own to the server and writes, or reads, from beginning to end.
That is one long system call, during which others may run Python; how fast it gets on is
decided at the other end, by reading. For a client on this machine they are copied to a file instead.
"""

from __future__ import annotations

import base64
import collections
import difflib
import importlib.util
import os
import socket
import sys
import threading
import time

INLINE = 64 * 1024  # bytes of an object that travel with the answer itself
PIECE = 8 << 20  # bytes that are handed to the system at once
KEPT = 64  # results of bindings that are remembered: the question may come again
LIFE = 1800.0  # seconds after which what nobody has asked for is let go
PATIENCE = 30.0  # seconds for the server to answer a new connection


class Refusal(Exception):
    """Something that is not done: which error that is for the client, and its words."""

    def __init__(self, error, message, cause=None, hints=(), kind=""):
        super().__init__(message)
        self.answer = {
            "refused": {
                "error": error,
                "message": message,
                "cause": cause,
                "hints": list(hints),
                "kind": kind,
            }
        }


def load(name, path, **how):
    """The module of that file, once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path, **how)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def words_of(error):
    """An error in one line; its own `__str__` may be anybody's."""
    try:
        return "%s: %s" % (type(error).__name__, error)
    except BaseException:
        return "an error that cannot be shown"


class Offer:
    """An object that is on its way out: its buffers are held, not copied, until it has arrived."""

    def __init__(self, packed, versions):
        self.views = packed.buffers
        self.size = sum(view.nbytes for view in self.views)
        self.is_inline = self.size <= INLINE
        self.asked = time.monotonic()
        self.answer = {
            "tree": packed.tree,
            "sizes": [view.nbytes for view in self.views],
            "type": packed.type,
            "text": packed.text,
            "is_pickle": packed.is_pickle,
            "versions": versions,
        }
        if self.is_inline:
            self.answer["inline"] = base64.b64encode(b"".join(self.views)).decode()

    def pieces(self, offset):
        """The stream from there on."""
        for view in self.views:
            if offset >= view.nbytes:
                offset -= view.nbytes
                continue
            for start in range(offset, view.nbytes, PIECE):
                yield view[start : start + PIECE]
            offset = 0


class Arrival:
    """An object that is on its way in: its name, and the memory that it comes into."""

    def __init__(self, layout, question):
        self.name = question["name"]
        self.overwrite = question.get("overwrite", True)
        self.layout = layout
        self.buffers = layout.allocate() if "file" not in question else []
        self.is_whole = False
        self.ended = threading.Event()

    def take(self, connection):
        """Read the whole stream from the connection."""
        for buffer in self.buffers:
            fill(connection, buffer)

    def take_inline(self, data):
        place = 0
        for buffer in self.buffers:
            buffer[:] = data[place : place + buffer.nbytes]
            place += buffer.nbytes

    def take_file(self, file, open_memory):
        """Map the open file of a client on this machine; ours are the pages that we write to."""
        place = [file[key] for key in ("pid", "descriptor", "device", "inode")]
        try:
            memory = open_memory(*place, self.layout.end)
        except (OSError, ValueError, OverflowError) as error:
            raise Refusal(
                "TransferError", "the file cannot be seen from here", str(error), kind="far"
            ) from None
        self.layout.adopt(memory)


def fill(connection, view):
    while view.nbytes:
        got = connection.recv_into(view, min(view.nbytes, PIECE), socket.MSG_WAITALL)
        if not got:
            raise EOFError("the stream ended too early")
        view = view[got:]


class Objects:
    """Answers the questions about objects that cross. `names` gives the user's namespace."""

    def __init__(self, worker, here):
        self.worker = worker
        folder = os.path.dirname(os.path.dirname(os.path.abspath(here)))
        self.values = load("_remoter_values", os.path.join(folder, "_values.py"))
        self.lock = threading.Lock()
        self.their_cloudpickle = None
        self.kept = {}
        self.offers = {}
        self.arrivals = {}
        self.bound = collections.OrderedDict()

    @property
    def names(self):
        return self.worker.runner.namespace

    def answer_in_thread(self, question, answered):
        """Answer when it is done; the caller does not wait."""
        threading.Thread(
            target=lambda: answered(self.answer(question)), name="remoter-object", daemon=True
        ).start()

    def answer(self, question):
        """The answer to one question; every failure is an answer too."""
        self.forget_old()
        try:
            return getattr(self, question["what"])(question)
        except Refusal as refusal:
            return refusal.answer
        except self.values.ValuesError as error:
            return Refusal("TransferError", error.message, error.cause, error.hints, error.kind).answer
        except MemoryError:
            return Refusal("TransferError", "not enough memory in the session", kind="memory").answer
        except RecursionError:
            return Refusal("TransferError", "the object is nested too deeply", kind="kind").answer
        except (
            BaseException
        ) as error:  # also SystemExit, by code of the object: whoever asked waits for an answer
            return Refusal("TransferError", "the session cannot do that", words_of(error)).answer

    def keep(self, transfer, value):
        """The value of an expression that was evaluated for that transfer."""
        with self.lock:
            self.kept[transfer] = (time.monotonic(), value)

    def forget_old(self):
        """Let go of what was meant for somebody who never came."""
        before = time.monotonic() - LIFE
        with self.lock:
            for transfer in [key for key, offer in self.offers.items() if offer.asked < before]:
                del self.offers[transfer]
            for transfer in [key for key, (since, _) in self.kept.items() if since < before]:
                del self.kept[transfer]

    # What goes out

    def pack(self, question):
        transfer = question["transfer"]
        with self.lock:
            offer = self.offers.get(transfer)
        if offer is None:
            value = self.value(transfer, question.get("name"))
            self.their_cloudpickle = question.get("cloudpickle")
            packed = self.values.pack(value, pickle=self.pickle if question.get("pickle") else None)
            offer = Offer(packed, self.values.versions())
            with self.lock:
                if not offer.is_inline:
                    self.offers[transfer] = offer
                self.kept.pop(transfer, None)
        return offer.answer

    def value(self, transfer, name):
        with self.lock:
            if transfer in self.kept:
                return self.kept[transfer][1]
        if not name:
            raise Refusal("TransferError", "the value is no longer kept", hints=["ask for it again"])
        name = self.values.check_name(name)
        try:
            return self.names[name]
        except KeyError:
            raise self.no_such_name(name) from None

    def no_such_name(self, name):
        near = difflib.get_close_matches(name, [key for key in list(self.names) if not key.startswith("_")])
        hints = ["there is " + " and ".join("`%s`" % other for other in near)] if near else []
        return Refusal("NameNotFoundError", "the session has no object `%s`" % name, hints=hints)

    def pickle(self, value, **how):
        return self.cloudpickle().dumps(value, **how)

    def cloudpickle(self):
        """cloudpickle of this interpreter, or the server's: it is plain Python of any version."""
        folder = self.their_cloudpickle
        try:
            import cloudpickle
        except ImportError:
            if not folder:
                raise
            start = os.path.join(folder, "__init__.py")
            cloudpickle = load("cloudpickle", start, submodule_search_locations=[folder])
        return cloudpickle

    def offer_of(self, question):
        with self.lock:
            offer = self.offers.get(question["transfer"])
        if offer is None:
            raise Refusal("TransferError", "the object is no longer held in the session", kind="unknown")
        offer.asked = time.monotonic()
        return offer

    def copy(self, question):
        """Write the object to a file that whoever asked for it maps: each buffer at its place there."""
        offer = self.offer_of(question)
        starts, end = self.values.places(offer.answer["sizes"])
        self.values.afford(end, "what crosses")
        descriptor = os.open(question["path"], os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, end)
            for start, view in zip(starts, offer.views):
                while view.nbytes:
                    self.offer_of(question)  # it is still wanted
                    written = os.pwrite(descriptor, view[:PIECE], start)
                    start, view = start + written, view[written:]
        finally:
            os.close(descriptor)
        return {}

    def send(self, question):
        offer = self.offer_of(question)

        def write(connection):
            for piece in offer.pieces(question["offset"]):
                connection.sendall(piece)
                offer.asked = time.monotonic()

        self.connect(question["stream"], write)
        return {}

    def connect(self, stream, use):
        """Have `use` called in a thread with a connection of its own to the server. Raises OSError: there is none."""
        worker = self.worker
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(PATIENCE)
            connection.connect(os.path.join(worker.rundir, "worker.sock"))
            hello = {
                "type": "hello",
                "role": "data",
                "worker": worker.id,
                "pid": worker.pid,
                "stream": stream,
            }
            connection.sendall(worker.encode(hello))
            if not connection.recv(1):  # it has found whom it is for
                raise OSError("the server does not want it")
            connection.settimeout(None)

            def run():
                with connection:
                    try:
                        use(connection)
                    except (OSError, EOFError, ValueError):
                        pass  # nobody wants the rest, or nobody sends it; or its memory was let go

            threading.Thread(target=run, name="remoter-stream", daemon=True).start()
        except BaseException:
            connection.close()
            raise

    # What comes in

    def receive(self, question):
        transfer = question["transfer"]
        with self.lock:
            if transfer in self.bound:  # the answer was lost
                return self.bound[transfer]
        question["name"] = self.values.check_name(question["name"])
        self.check_target(question["name"], question.get("overwrite", True))
        self.their_cloudpickle = question.get("cloudpickle")
        arrival = Arrival(self.values.Layout(question["tree"], question["sizes"]), question)
        with self.lock:
            self.arrivals[transfer] = arrival
        if "inline" in question or "file" in question:
            try:
                if "file" in question:
                    arrival.take_file(question["file"], self.values.open_memory)
                else:
                    arrival.take_inline(base64.b64decode(question["inline"]))
            except BaseException:
                self.drop(question)
                raise
            arrival.is_whole = True
            arrival.ended.set()
            return self.bind(question)

        def read(connection):
            try:
                arrival.take(connection)
                arrival.is_whole = True
            finally:
                if not arrival.is_whole:
                    self.drop(question)
                arrival.ended.set()

        try:
            self.connect(question["stream"], read)
        except BaseException:
            self.drop(question)
            raise
        return {"ready": True}

    def check_target(self, name, overwrite):
        if not overwrite and name in self.names:
            raise Refusal(
                "TransferError",
                "the session has an object `%s` already" % name,
                cause="it is `%s`" % self.values.describe(self.names[name]),
                hints=["give another name, or allow it with `overwrite=True`"],
                kind="exists",
            )

    def bind(self, question):
        """Give the object that has arrived its name."""
        transfer = question["transfer"]
        with self.lock:
            if transfer in self.bound:
                return self.bound[transfer]
            arrival = self.arrivals.get(transfer)
        if arrival is not None:
            arrival.ended.wait()
        if arrival is None or not arrival.is_whole:
            raise Refusal("TransferError", "the object did not arrive whole", kind="unknown")
        if arrival.layout.is_pickle:
            self.cloudpickle()
        try:
            value = arrival.layout.build(allow_pickle=True)  # who may push may run code here
        finally:
            self.drop(question)
        self.check_target(arrival.name, arrival.overwrite)
        absent = object()
        old = self.names.get(arrival.name, absent)
        replaced = None if old is absent else self.values.describe(old)
        self.names[arrival.name] = value
        answer = {"name": arrival.name, "replaced": replaced, "text": self.values.describe(value)}
        with self.lock:
            self.bound[transfer] = answer
            while len(self.bound) > KEPT:
                self.bound.popitem(last=False)
        return answer

    # The rest

    def drop(self, question):
        with self.lock:
            for held in (self.offers, self.arrivals, self.kept):
                held.pop(question["transfer"], None)
        return {}

    def find(self, question):
        """Whether there is such a name, and what this interpreter has."""
        name = question.get("name")
        found = bool(name) and name in self.names
        text = self.values.describe(self.names[name]) if found else ""
        return {"found": found, "text": text, "versions": self.values.versions()}

    def remove(self, question):
        name = self.values.check_name(question["name"])
        try:
            del self.names[name]
        except KeyError:
            raise self.no_such_name(name) from None
        return {}
