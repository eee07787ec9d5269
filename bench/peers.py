"""What remoter is measured against, and remoter itself: one small class each, with the same face."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import zmq
from jupyter_client.manager import start_new_kernel

import remoter
import remoter._client
import remoter._launcher


class Remoter:
    """A session in processes of its own; `way` is socket, tcp or relay."""

    def __init__(self, runner="ipython", way="socket"):
        began = time.perf_counter()
        self.stack = ExitStack()
        self.ready, _ = remoter._launcher.start_session(
            port=0, runner=runner, name=f"bench-{os.urandom(3).hex()}"
        )
        record = self.ready["record"]
        address = record["name"] if way == "socket" else f"127.0.0.1:{record['port']}"
        if way == "relay":
            address = self._relay(record)
        self.session = remoter.connect(address)
        self.run("1+1")
        self.started = time.perf_counter() - began

    def _relay(self, record):
        port = free_port()
        self.relay = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "remoter",
                "relay",
                f"127.0.0.1:{record['port']}",
                "--recvport",
                str(port),
            ],
            stderr=subprocess.DEVNULL,
        )
        self.stack.callback(self.relay.wait)
        self.stack.callback(self.relay.terminate)
        wait_for_port(port)
        from remoter import _config, _records

        # The same session under the relay's port, so that its keys are found.
        copy = dict(record, port=port, name=record["name"] + "-relay")
        path = _records.record_path(record["host"], copy["name"])
        import msgspec

        _config.write_private(path, msgspec.json.encode(copy))
        self.stack.callback(path.unlink, missing_ok=True)
        return f"127.0.0.1:{port}"

    @property
    def pids(self):
        return [self.ready["keeper_pid"], self.ready["server_pid"], self.ready["worker"]["pid"]]

    def run(self, code):
        return self.session.run(code, quiet=True)

    def first_line(self, code):
        """Seconds from the moment that the code says it prints until the line is here."""
        delays = []
        run = self.session.submit(code)
        for event in run.events():
            if event.kind == "stdout":
                now = time.time()
                delays += [now - float(line) for line in event.text.split()]
        return delays

    def interrupt(self, code):
        """Seconds from the interrupt to the end of the run, once it has printed."""
        run = self.session.submit(code)
        events = run.events()
        for event in events:
            if event.kind in ("stdout", "ask"):
                break
        time.sleep(0.05)
        began = time.perf_counter()
        run.interrupt()
        for _ in events:
            pass
        elapsed = time.perf_counter() - began
        assert run.status == "interrupted", run.status
        return elapsed

    def close(self):
        self.session.close()
        os.kill(self.ready["keeper_pid"], signal.SIGTERM)
        from remoter._keeper import wait_for_end

        wait_for_end(self.ready["run_directory"])
        self.stack.close()


class Ipykernel:
    """jupyter_client and ipykernel, as a notebook uses them."""

    def __init__(self):
        began = time.perf_counter()
        self.manager, self.client = start_new_kernel(kernel_name="python3")
        self.run("1+1")
        self.started = time.perf_counter() - began

    def _messages(self, code):
        wanted = self.client.execute(code, allow_stdin=True)
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") == wanted:
                yield message["msg_type"], message["content"]
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    break
        while True:
            reply = self.client.get_shell_msg(timeout=120)
            if reply["parent_header"].get("msg_id") == wanted:
                return

    def run(self, code):
        for _ in self._messages(code):
            pass

    def first_line(self, code):
        delays = []
        for kind, content in self._messages(code):
            if kind == "stream":
                now = time.time()
                delays += [now - float(line) for line in content["text"].split()]
        return delays

    def interrupt(self, code):
        began = None
        for kind, _ in self._messages(code):
            if kind == "stream" and began is None:
                time.sleep(0.05)
                began = time.perf_counter()
                self.manager.interrupt_kernel()
        return time.perf_counter() - began

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


class Rpyc:
    """rpyc classic, which neither encrypts nor authenticates."""

    def __init__(self):
        import rpyc

        began = time.perf_counter()
        port = free_port()
        code = f"from rpyc.utils.server import ThreadedServer; from rpyc import SlaveService; ThreadedServer(SlaveService, hostname='127.0.0.1', port={port}).start()"
        self.process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        wait_for_port(port)
        self.connection = rpyc.classic.connect("127.0.0.1", port)
        self.run("1+1")
        self.started = time.perf_counter() - began

    def run(self, code):
        return self.connection.eval(code)

    def close(self):
        self.connection.close()
        self.process.terminate()
        self.process.wait()


class CurvePing:
    """What the network alone costs: a DEALER and an echoing ROUTER in another process, CURVE, loopback TCP."""

    SERVER = """
import sys, zmq
context = zmq.Context()
socket = context.socket(zmq.ROUTER)
public, secret = sys.argv[2].encode(), sys.argv[3].encode()
socket.curve_server, socket.curve_publickey, socket.curve_secretkey = True, public, secret
socket.bind(f"tcp://127.0.0.1:{sys.argv[1]}")
while True:
    socket.send_multipart(socket.recv_multipart())
"""

    def __init__(self):
        began = time.perf_counter()
        port = free_port()
        public, secret = zmq.curve_keypair()
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SERVER, str(port), public.decode(), secret.decode()]
        )
        wait_for_port(port)
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.curve_serverkey = public
        self.socket.curve_publickey, self.socket.curve_secretkey = zmq.curve_keypair()
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self.run("1+1")
        self.started = time.perf_counter() - began

    def run(self, code):
        self.socket.send(code.encode().ljust(64))
        return self.socket.recv()

    def close(self):
        self.socket.close(0)
        self.context.term()
        self.process.terminate()
        self.process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise TimeoutError(f"nothing listens on {port}")


def cpu_seconds(pid):
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_peak(pid):
    """The largest resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


class Flood(threading.Thread):
    """Another client that has a session print `megabytes` while something else is measured."""

    def __init__(self, session, megabytes=100):
        super().__init__()
        self.session, self.megabytes = session, megabytes

    def run(self):
        self.session.run(f"for _ in range({self.megabytes * 100}): print('x' * 9999)", quiet=True)
