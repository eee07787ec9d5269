"""A passage: one connection for data, from connect to close; in the client's process, in a transfer's own thread."""

from __future__ import annotations

import logging
import os
import socket
import time

import zmq
from zmq.utils.monitor import parse_monitor_message

from ._connection import Place
from ._messages import DATA_ROUTING_ID, Message, MessageError, OnData, decode_on_data, encode
from ._pieces import LONGEST_DATA_MESSAGE
from ._security import is_readable, secure_client_socket

log = logging.getLogger("remoter.transfer")

HEARTBEAT = 2_500
HEARTBEAT_TIMEOUT = 7_500
"""Milliseconds. libzmq asks and answers these itself, so a server that waits for a busy interpreter keeps its connection."""

WAITING_MESSAGES = 64
WAITING_CHUNKS = 8
"""Messages that libzmq holds for us, and chunks that it holds for the server."""


class BrokenError(Exception):
    """A passage came to nothing, or broke. `was_rejected`: the server refused our key."""

    def __init__(self, message: str, *, was_rejected: bool = False) -> None:
        super().__init__(message)
        self.was_rejected = was_rejected


_FAILURES: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it was closed in the handshake",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "what answers there does not speak CURVE",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the server does not admit this key",
    zmq.EVENT_DISCONNECTED: "it broke",
    zmq.EVENT_CLOSED: "nobody accepts connections there",
}


class Passage:
    """One connection for data, from connect to close, with a context of its own: nothing outlives it.

    A context is one more thread of libzmq's, so two transfers are decrypted on two cores. All is
    called in the transfer's thread.
    """

    def __init__(self, place: Place) -> None:
        self.is_open = False
        self.heard = time.monotonic()
        self._context = zmq.Context()
        try:
            self._open(place)
        except zmq.ZMQError as error:  # no descriptors left
            self._context.destroy(0)
            raise BrokenError(str(error)) from None

    def _open(self, place: Place) -> None:
        self._socket = secure_client_socket(
            self._context,
            place.keys,
            place.server_public,
            high_water=WAITING_MESSAGES,
            longest=LONGEST_DATA_MESSAGE,
            routing_id=b"d" + os.urandom(DATA_ROUTING_ID - 1),
        )
        self._socket.setsockopt(zmq.SNDHWM, WAITING_CHUNKS)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT)
        events = sum(_FAILURES) | zmq.EVENT_HANDSHAKE_SUCCEEDED
        self._monitor = self._socket.get_monitor_socket(events)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def connect(self, endpoint: str) -> None:
        """Begin to. Raises BrokenError."""
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise BrokenError(str(error)) from None

    def hear(self, timeout: int) -> tuple[OnData | None, zmq.Frame | None]:
        """The next message and the frame after it, within so many milliseconds. Raises BrokenError."""
        if not is_readable(self._socket):
            ready = dict(self._poller.poll(timeout))
            if not is_readable(self._socket):  # if it is, that came before the connection's end
                if self._monitor in ready:
                    self._observe()
                return None, None
        frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        try:
            return decode_on_data(frames[0].buffer), frames[1] if len(frames) > 1 else None
        except MessageError as error:
            log.info("skipped a message of the server: %s", error)
            return None, None

    def send(self, message: Message, payload: bytes | memoryview | None = None) -> bool:
        """Send it, if there is room. The payload is copied."""
        try:
            if payload is None:
                self._socket.send(encode(message), zmq.NOBLOCK)
            else:
                self._socket.send_multipart([encode(message), payload], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def wait_for_room(self, timeout: int) -> None:
        """Wait until something can be sent. Raises BrokenError."""
        self._poller.modify(self._socket, zmq.POLLOUT)
        self.heard = time.monotonic()  # it is we who are slow now
        ready = dict(self._poller.poll(timeout))
        self._poller.modify(self._socket, zmq.POLLIN)
        if self._monitor in ready:
            self._observe()

    def close(self, linger: int = 0) -> None:
        """Give everything back; waits until what was sent has left, at most so many milliseconds."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger)
        self._context.term()

    def _observe(self) -> None:
        """What libzmq says of the connection. Raises BrokenError."""
        report = parse_monitor_message(self._monitor.recv_multipart())
        event = report["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.is_open = True
        elif event in _FAILURES:
            rejected = event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            raise BrokenError(_FAILURES[event], was_rejected=rejected)


def endpoints_of(place: Place) -> list[str]:
    """The server's addresses, as libzmq writes them. Raises OSError."""
    if place.socket is not None:
        return [f"ipc://{place.socket}"]
    found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [f"tcp://[{a}]:{place.port}" if ":" in a else f"tcp://{a}:{place.port}" for a in addresses]
