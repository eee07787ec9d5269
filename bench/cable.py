"""Two machines and a slow cable between them: network namespaces, a veth pair, `tbf` at either end. Linux, root.

Run as a program it is the client's machine: it times `1+1` alone, and while data come and go, and
prints what it found as JSON. The same is done with nothing but TCP: what any program would see.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

THERE = "10.213.8.2"
QUEUE = "50ms"
"""How long a byte may wait in the cable's own queue: what a modem has, kindly set."""


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


class Cable:
    """Two namespaces, `here` and `there`; nothing is left of them after `close`."""

    def __init__(self, rate):
        self.here, self.there = (f"rmb-{os.getpid()}-{end}" for end in "ab")
        self.stack = ExitStack()
        try:
            self._build(rate)
        except BaseException:
            self.stack.close()
            raise

    def _build(self, rate):
        for name in (self.here, self.there):
            ip("netns", "add", name)
            self.stack.callback(ip, "netns", "del", name, check=False)
        pair = f"link add rmba netns {self.here} type veth peer name rmbb netns {self.there}"
        ip(*pair.split())
        for name, end, address in ((self.here, "rmba", "10.213.8.1"), (self.there, "rmbb", THERE)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
            limit = ["tbf", "rate", rate, "burst", "32kb", "latency", QUEUE]
            subprocess.run(["tc", "-n", name, "qdisc", "add", "dev", end, "root", *limit], check=True)
            # Fills the queue of a slow cable, as the usual one (cubic) does, which cannot be had in
            # every namespace; the kernel's own may be one that keeps it short.
            setting = "/proc/sys/net/ipv4/tcp_congestion_control"
            ip("netns", "exec", name, "sh", "-c", f"echo reno > {setting}")
        self.root = Path(tempfile.mkdtemp(prefix="rmb-", dir="/tmp"))
        self.stack.callback(shutil.rmtree, self.root, ignore_errors=True)

    def on(self, name, *words):
        """The command that runs Python with these words on that machine, and its environment."""
        home = self.root / name
        variables = {
            f"REMOTER_{each}_DIR": str(home / each.lower())
            for each in ("CONFIG", "STATE", "RUNTIME", "JOURNAL")
        }
        home.mkdir(exist_ok=True)
        argv = ["ip", "netns", "exec", name, sys.executable, *words]
        return {"args": argv, "env": {**os.environ, **variables}, "text": True}

    def measure(self, count):
        """What the program below prints, for objects of that many bytes."""
        with ExitStack() as stack:
            words = f"-m remoter server --background --json --runner plain --listen {THERE}"
            start = self.on(self.there, *words.split())
            ready = json.loads(subprocess.run(**start, check=True, stdout=subprocess.PIPE).stdout)
            stack.callback(
                subprocess.run, **self.on(self.there, "-m", "remoter", "stop"), stdout=subprocess.DEVNULL
            )
            plain = stack.enter_context(subprocess.Popen(**self.on(self.there, __file__, "serve")))
            stack.callback(plain.terminate)
            words = (str(ready["port"]), ready["password"], str(count))
            found = subprocess.run(
                **self.on(self.here, __file__, "measure", *words), check=True, stdout=subprocess.PIPE
            )
            return json.loads(found.stdout)

    def close(self):
        self.stack.close()


# --- nothing but TCP ---------------------------------------------------------------------------

PLAIN_PORT = 50999


def serve():
    """Each connection names with its first byte what it is for: `e` an echo, `f` data from us, `t` data to us."""
    with socket.create_server((THERE, PLAIN_PORT)) as listener:
        while True:
            threading.Thread(target=serve_one, args=listener.accept()[:1], daemon=True).start()


def serve_one(connection):
    block = os.urandom(1 << 20)
    with connection:
        try:
            what = connection.recv(1)
            if what == b"e":
                while data := connection.recv(64):
                    connection.sendall(data)
            elif what == b"t":
                while connection.recv(1 << 20):
                    pass
            else:
                while True:
                    connection.sendall(block)
        except OSError:
            pass


def plain_connection(what):
    connection = socket.create_connection((THERE, PLAIN_PORT), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(what)
    return connection


def plain_load(what, seconds):
    """A thread that moves data that way for a time; it mostly waits in the kernel."""

    def move():
        block = os.urandom(1 << 20)
        until = time.monotonic() + seconds
        with plain_connection(what) as connection:
            while time.monotonic() < until:
                if what == b"t":
                    connection.sendall(block)
                else:
                    connection.recv(1 << 20)

    thread = threading.Thread(target=move)
    thread.start()
    return thread


# --- the client's machine ----------------------------------------------------------------------


def pings(ping, goes_on):
    """Seconds of each round trip while that goes on."""
    times = []
    while goes_on() or not times:
        began = time.perf_counter()
        ping()
        times.append(time.perf_counter() - began)
    return times


def idle(ping, count=200):
    left = iter(range(count))
    return pings(ping, lambda: next(left, None) is not None)


def figures(times):
    return {"median": statistics.median(times), "most": max(times), "count": len(times)}


def while_moving(session, value):
    """The times of `1+1`: idle, while `x` is pulled, while that value is pushed."""

    def ping():
        session.run("1+1", quiet=True)

    found = {"idle": idle(ping)}
    for name, start in (
        ("pull", lambda: session.pull("x", background=True, progress=False)),
        ("push", lambda: session.push("y", value, background=True, progress=False)),
    ):
        began = time.perf_counter()
        transfer = start()
        found[name] = pings(ping, lambda transfer=transfer: transfer.status == "running")
        transfer.wait(600)
        found[f"{name} took"] = time.perf_counter() - began
    return found


def measure(port, password, count):
    import remoter

    with remoter.connect(THERE, int(port), password) as session:
        session.run(f"import os; x = os.urandom({int(count)})")
        ours = while_moving(session, os.urandom(int(count)))
    found = {name: times if "took" in name else figures(times) for name, times in ours.items()}
    echo = plain_connection(b"e")

    def ping():
        echo.sendall(b"1+1".ljust(64))
        echo.recv(64, socket.MSG_WAITALL)

    found["plain idle"] = figures(idle(ping))
    for name, what in (("plain pull", b"f"), ("plain push", b"t")):
        load = plain_load(what, 4)
        time.sleep(0.5)  # until it has found its speed
        found[name] = figures(pings(ping, load.is_alive))
        load.join()
    echo.close()
    print(json.dumps(found))


if __name__ == "__main__":
    {"serve": serve, "measure": measure}[sys.argv[1]](*sys.argv[2:])
