"""A network that can be cut: a TCP proxy whose connections can be frozen, broken, or changed."""

import selectors
import socket
import threading


class Proxy:
    """Listens on a free port and passes bytes on to `target` until told otherwise."""

    def __init__(self, target, source="127.0.0.1"):
        self.target = target
        self.source = source
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.frozen = False
        self.refusing = False
        self.pairs = {}
        self.lock = threading.Lock()
        self.wake_out, self.wake_in = socket.socketpair()
        self.stopping = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.stopping:
            with selectors.DefaultSelector() as selector:
                selector.register(self.wake_in, selectors.EVENT_READ)
                selector.register(self.listener, selectors.EVENT_READ)
                with self.lock:
                    if not self.frozen:
                        for end in self.pairs:
                            selector.register(end, selectors.EVENT_READ)
                for key, _ in selector.select(5):
                    if key.fileobj is self.wake_in:
                        self.wake_in.recv(100)
                    elif key.fileobj is self.listener:
                        self._accept()
                    else:
                        self._pass_on(key.fileobj)

    def _accept(self):
        near, _ = self.listener.accept()
        if self.refusing:
            near.close()
            return
        try:
            far = socket.create_connection(self.target, 5, (self.source, 0))
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self.lock:
            if not self.refusing:
                self.pairs[near], self.pairs[far] = far, near
                return
        near.close()
        far.close()

    def _pass_on(self, end):
        other = self.pairs.get(end)
        if other is None or self.frozen:
            return
        try:
            data = end.recv(65536)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        self._close(end)

    def _close(self, end):
        with self.lock:
            other = self.pairs.pop(end, None)
            self.pairs.pop(other, None)
        for each in (end, other):
            if each is not None:
                each.close()

    def freeze(self):
        """A black hole: connections stay, nothing passes, new ones are accepted and hang."""
        self.frozen = True
        self.wake_out.send(b"x")

    def thaw(self):
        """Everything that waited passes."""
        self.frozen = False
        self.wake_out.send(b"x")

    def cut(self, refuse=False):
        """Break all connections; `refuse`: new ones too, until `mend`."""
        with self.lock:
            self.refusing = refuse
        for end in list(self.pairs):
            self._close(end)
        self.wake_out.send(b"x")

    def mend(self):
        """Accept again."""
        self.refusing = False

    def close(self):
        self.stopping = True
        self.wake_out.send(b"x")
        self.thread.join(5)
        for end in list(self.pairs):
            self._close(end)
        for end in (self.listener, self.wake_in, self.wake_out):
            end.close()
