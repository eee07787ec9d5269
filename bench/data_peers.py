"""What moves objects and files, and is measured moving them: one small class each, with the same face.

Movers of objects have `make(expression)` (an object there, of what `samples` has), `pull()`,
`push(value)`, `forget()` (what was pushed is dropped there), `trim()`, `close()`; `processes` are
lists of all that take part but this one, by name, and `receiver` is the one that holds objects there.
`has_memory`: the memory of the receiver is there before; `directions`: those that it has, if not both.

Copiers have `send(here, there)` and `fetch(there, here)`, for a file or for a folder.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import memory
import remoter
from peers import Remoter, Rpyc, free_port, wait_for_port

IMPORTS = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import samples"
"""Typed at every far end."""


def made(expression):
    """The expression for an interpreter that has no names of its own."""
    return f"eval({expression!r}, vars(__import__('samples')))"


@contextmanager
def closed_if_it_fails(peer):
    """What cannot be opened wholly, or is interrupted at that, is closed again."""
    try:
        yield
    except BaseException:
        peer.close()
        raise


class Ours(Remoter):
    """remoter, over the unix socket."""

    receiver = "worker"

    def __init__(self):
        super().__init__("plain")
        self.run(IMPORTS)
        _, server, worker = self.pids
        self.processes = {"server": [server], "worker": [worker]}

    def make(self, expression):
        self.run(f"x = {made(expression)}")

    def pull(self):
        return self.session.pull("x", progress=False)

    def push(self, value):
        self.session.push("y", value, progress=False)

    def forget(self):
        self.run("globals().pop('y', None)")

    def trim(self):
        self.run(memory.TRIM)


class OursByPort(Ours):
    """Another client of the same session, through its TCP port."""

    def __init__(self, other):
        self.other, self.processes = other, other.processes
        self.session = remoter.connect(f"127.0.0.1:{other.ready['record']['port']}")

    def close(self):
        self.session.close()


class OursInto:
    """The same by the unix socket, into an array that is there already."""

    receiver = "worker"
    directions = ("pull",)
    has_memory = True

    def __init__(self, other, into):
        self.other, self.into, self.processes = other, into, other.processes
        self.make, self.forget, self.trim = other.make, other.forget, other.trim

    def pull(self):
        return self.other.session.pull("x", into=self.into, progress=False)

    def close(self):
        """Nothing is its own."""


class Dask:
    """dask.distributed: a scheduler and one worker, plain TCP; the bytes go straight from and to the worker."""

    receiver = "worker"

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="rmb-dask-", dir="/tmp")
        self.started, self.client = [], None
        with closed_if_it_fails(self):
            self._open()

    def _open(self):
        from distributed import Client

        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        port = free_port()
        address = f"tcp://127.0.0.1:{port}"
        self._start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-show")
        wait_for_port(port)
        self._start("worker", address, "--no-nanny", "--nthreads", "1", "--memory-limit", "0")
        self.client = Client(address, direct_to_workers=True, timeout=20)
        self.client.wait_for_workers(1, timeout=20)
        self.client.run(exec, IMPORTS)
        self.processes = {"scheduler": [self.started[0].pid], "worker": [self.started[1].pid]}

    def _start(self, what, *words):
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *words],
            cwd=self.directory,
            env={**os.environ, "DASK_TEMPORARY_DIRECTORY": self.directory},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.started.append(process)

    def make(self, expression):
        from distributed import wait

        self.there = self.client.submit(eval, made(expression), pure=False)
        wait(self.there)

    def pull(self):
        return self.client.gather(self.there, direct=True)

    def push(self, value):
        self.pushed = self.client.scatter(value, direct=True, hash=False)

    def forget(self):
        """The worker drops it some time after we do."""
        self.pushed = None
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and sum(map(len, self.client.has_what().values())) > 1:
            time.sleep(0.02)

    def trim(self):
        self.client.run(exec, memory.TRIM)

    def close(self):
        self.there = self.pushed = None
        if self.client is not None:
            self.client.close()
        for process in reversed(self.started):
            process.terminate()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class Ipyparallel:
    """ipyparallel: controller, its schedulers and one engine; messages are signed, not encrypted."""

    receiver = "engine"

    def __init__(self):
        import ipyparallel

        self.cluster = ipyparallel.Cluster(n=1, log_level=50)
        self.client, self.all = None, []
        with closed_if_it_fails(self):
            self._open()

    def _open(self):
        self.client = self.cluster.start_and_connect_sync(activate=False)
        self.engine = self.client[0]
        self.engine.execute(IMPORTS, block=True)
        controller = self.cluster.controller.pid
        engine, nanny = self.engine.apply_sync(os.getpid), self.engine.apply_sync(os.getppid)
        self.processes = {"engine": [engine], "controller": [controller, *memory.descendants(controller)]}
        self.all = [nanny, engine, *self.processes["controller"]]

    def make(self, expression):
        self.engine.execute(f"x = {made(expression)}", block=True)

    def pull(self):
        return self.engine.pull("x", block=True)

    def push(self, value):
        self.engine.push({"y": value}, block=True)

    def forget(self):
        self.engine.execute("globals().pop('y', None)", block=True)

    def trim(self):
        """Results are kept here, and at the hub, until they are purged."""
        self.engine.execute(memory.TRIM, block=True)
        self.client.purge_everything()

    def close(self):
        """They end some time after they were told to."""
        if self.client is not None:
            self.client.close()
        self.cluster.stop_cluster_sync()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(memory.status_of(pid, "VmRSS") for pid in self.all):
            time.sleep(0.02)


class RpycObtain(Rpyc):
    """rpyc classic: `obtain` and `deliver` pickle, and ask for each piece of that."""

    receiver = "server"

    def __init__(self):
        super().__init__()
        self.connection.execute(IMPORTS)
        self.connection._config["sync_request_timeout"] = 120
        self.processes = {"server": [self.process.pid]}

    def make(self, expression):
        self.connection.execute(f"x = {made(expression)}")

    def pull(self):
        from rpyc.utils.classic import obtain

        return obtain(self.connection.namespace["x"])

    def push(self, value):
        from rpyc.utils.classic import deliver

        self.connection.namespace["y"] = deliver(self.connection, value)

    def forget(self):
        self.connection.execute("globals().pop('y', None)")

    def trim(self):
        self.connection.execute(memory.TRIM)


class OursCopying:
    """remoter's upload and download, over a connection that is open."""

    def __init__(self, session, pids):
        self.session, self.processes = session, pids

    def send(self, here, there):
        self.session.upload(here, there, progress=False)

    def fetch(self, there, here):
        self.session.download(there, here, progress=False)


class Program:
    """A program that copies through ssh, with a login each time; `processes` take part beside those that it starts."""

    def __init__(self, arguments, processes=None):
        self.arguments, self.processes = arguments, processes or {}

    def send(self, here, there):
        subprocess.run(self.arguments(str(here), str(there), True), check=True, stdin=subprocess.DEVNULL)

    def fetch(self, there, here):
        subprocess.run(self.arguments(str(there), str(here), False), check=True, stdin=subprocess.DEVNULL)


def command(address, processes):
    """Ours from the shell: it starts, logs in and ends, as the others do. The session runs."""
    program = str(Path(sys.executable).with_name("remoter"))

    def arguments(source, target, outward):
        words = [source, f"{address}:{target}"] if outward else [f"{address}:{source}", target]
        return [program, "cp", "--quiet", *words]

    return Program(arguments, processes)


def scp(configuration):
    """`-p` keeps times, as all the others do."""

    def arguments(source, target, outward):
        words = [source, f"big:{target}"] if outward else [f"big:{source}", target]
        return ["scp", "-q", "-r", "-p", "-F", configuration, *words]

    return Program(arguments)


def rsync_words(source, target, outward):
    slash = "/" if Path(source).is_dir() else ""
    words = [source + slash, f"big:{target}"] if outward else [f"big:{source}{slash}", target]
    return ["rsync", "-a", "-W", *words]


rsync = Program(rsync_words)


def tar_words(source, target, outward):
    pack, unpack = f"tar -C {source} -cf - .", f"mkdir {target} && tar -C {target} -xf -"
    line = f"{pack} | ssh big '{unpack}'" if outward else f"ssh big '{pack}' | ({unpack})"
    return ["sh", "-c", line]


tar = Program(tar_words)
