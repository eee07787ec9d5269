"""What R sessions are measured against, and R sessions themselves: one small class each, faces as in `peers.py`."""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from jupyter_client.manager import start_new_kernel

import remoter
import remoter._launcher
from peers import Ipykernel, Remoter

KERNEL = "remoter-bench-ir"

BARE = ["--no-echo", "--no-save", "--no-restore"]
"""R as `Rscript` starts it."""

codec_python = sys.executable
"""The Python that has rdata and rpy2; the command line changes it."""


class RemoterR(Remoter):
    """An R session in processes of its own, over the unix socket."""

    def __init__(self):
        began = time.perf_counter()
        self.stack = ExitStack()
        self.ready, _ = remoter._launcher.start_session(port=0, lang="r", name=f"bench-{os.urandom(3).hex()}")
        self.session = remoter.connect(self.ready["record"]["name"])
        self.run("1+1")
        self.started = time.perf_counter() - began

    def lines(self, code, count, limit):
        """Seconds until all of that many lines are here."""
        began = time.perf_counter()
        result = self.session.run(code, quiet=True)
        seconds = time.perf_counter() - began
        assert result.stdout.count("\n") == count, f"{result.stdout.count(chr(10))} lines of {count}"
        return seconds


class RemoterRByPort(RemoterR):
    """Another client of the same session, through its TCP port."""

    def __init__(self, other):
        self.session = remoter.connect(f"127.0.0.1:{other.ready['record']['port']}")

    def close(self):
        self.session.close()


class IRkernel(Ipykernel):
    """jupyter_client and IRkernel, as a notebook uses them."""

    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="rmb-", dir="/tmp")
        folder = Path(self.root, "kernels", KERNEL)
        folder.mkdir(parents=True)
        words = [shutil.which("R"), "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"]
        description = {"argv": words, "display_name": "R", "language": "R"}
        (folder / "kernel.json").write_text(json.dumps(description))
        os.environ["JUPYTER_PATH"] = self.root
        began = time.perf_counter()
        self.manager, self.client = start_new_kernel(kernel_name=KERNEL, stderr=subprocess.DEVNULL)
        self.run("1+1")
        self.started = time.perf_counter() - began

    def lines(self, code, count, limit):
        """Seconds until all of that many lines are here; None: not within `limit` seconds, and it is ended."""
        began = time.perf_counter()
        wanted = self.client.execute(code)
        seen = 0
        while (left := began + limit - time.perf_counter()) > 0:
            try:
                message = self.client.get_iopub_msg(timeout=left)
            except queue.Empty:
                break
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != wanted:
                continue
            if kind == "stream":
                seen += content["text"].count("\n")
            if kind == "status" and content["execution_state"] == "idle":
                seconds = time.perf_counter() - began
                self.client.get_shell_msg(timeout=10)
                assert seen == count, f"{seen} lines of {count}"
                return seconds
        self.manager.shutdown_kernel(now=True)  # while it goes on, nothing else can be measured
        return None

    def interrupt(self, code):
        """As its parent, but nothing that it prints is here before the run's end: it has half a second to begin."""
        began = None
        for kind, _ in self._messages(code):
            if kind == "execute_input":
                time.sleep(0.5)
                began = time.perf_counter()
                self.manager.interrupt_kernel()
        return time.perf_counter() - began

    def close(self):
        super().close()
        shutil.rmtree(self.root, ignore_errors=True)


class BareR:
    """R itself on pipes: no session, no server, nothing kept."""

    def __init__(self):
        began = time.perf_counter()
        self.process = subprocess.Popen(
            ["R", *BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.run("1+1")
        self.started = time.perf_counter() - began

    def run(self, code, count=1):
        """That many lines have to be printed."""
        self.process.stdin.write(code.encode() + b"\n")
        while count > 0:
            count -= os.read(self.process.stdout.fileno(), 1 << 20).count(b"\n")

    def lines(self, code, count, limit):
        began = time.perf_counter()
        self.run(code, count)
        return time.perf_counter() - began

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Rscript:
    """A new R for each piece of code."""

    def __init__(self):
        began = time.perf_counter()
        self.run("1+1")
        self.started = time.perf_counter() - began

    def run(self, code):
        subprocess.run(["Rscript", "-e", code], check=True, stdout=subprocess.DEVNULL)

    def close(self):
        pass


class Codec:
    """rdata or rpy2 in a process of its own, which says what each took; `missing` is why it is not to be had."""

    def __init__(self, kind, argument):
        program = Path(__file__).with_name("r_codecs.py")
        self.process = subprocess.Popen(
            [codec_python, "-W", "ignore", program, kind, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        first = self._answer()
        self.missing = first.get("error")
        self.name = f"{kind} {first['version']}" if "version" in first else kind

    def _answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"it ended with {self.process.wait()}"}

    def take(self, direction):
        """Seconds that a pull or a push took; None: it failed, and `missing` says why."""
        print(direction, file=self.process.stdin, flush=True)
        answer = self._answer()
        self.missing = answer.get("error")
        return answer.get("seconds")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
