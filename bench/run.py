"""Measures remoter against its peers in one run and prints a markdown table of ratios.

    python bench/run.py                            all of it, many minutes
    python bench/run.py trip help                  only those
    python bench/run.py data                       objects, files and folders that cross (`data.py`)
    python bench/run.py data.numpy --scale 0.05    one of those, with a twentieth of the size
    python bench/run.py r                          R sessions (`r.py`), where R and IRkernel are

Every figure is a median over interleaved rounds: peer, remoter, peer, remoter. On a shared
machine only the ratios mean something.
"""

import argparse
import compileall
import importlib
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import msgspec

import remoter
from machine import Machine
from peers import CurvePing, Ipykernel, Remoter, Rpyc, cpu_seconds, resident_peak
from remoter._records import write_record
from table import milliseconds, row, timed


def interleaved(peers, count=100, rounds=5):
    """The median over the rounds of each peer's median time of `1+1`."""
    medians = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            medians[name].append(timed(lambda peer=peer: peer.run("1+1"), count))
    return {name: statistics.median(values) for name, values in medians.items()}


def trip():
    peers = {
        "curve": CurvePing(),
        "ipykernel": Ipykernel(),
        "rpyc": Rpyc(),
        "ipython": Remoter("ipython"),
        "plain": Remoter("plain"),
        "tcp": Remoter("plain", "tcp"),
        "relay": Remoter("plain", "relay"),
    }
    try:
        found = interleaved(peers)
    finally:
        for peer in peers.values():
            peer.close()
    kernel, ping = found["ipykernel"], found["curve"]
    row(
        "`1+1`, IPython worker",
        milliseconds(found["ipython"]),
        f"ipykernel {milliseconds(kernel)}",
        f"{found['ipython'] / kernel:.2f} x",
        "0.35, aim 0.15",
    )
    row(
        "`1+1`, plain worker, unix socket",
        milliseconds(found["plain"]),
        f"CURVE ping {milliseconds(ping)}",
        f"{found['plain'] / ping:.1f} x",
        "aim 8",
    )
    row(
        "`1+1`, plain worker, TCP port",
        milliseconds(found["tcp"]),
        f"CURVE ping {milliseconds(ping)}",
        f"{found['tcp'] / ping:.1f} x",
        "",
    )
    row(
        "`1+1`, plain worker, through a relay",
        milliseconds(found["relay"]),
        f"TCP port {milliseconds(found['tcp'])}",
        f"{found['relay'] / found['tcp']:.2f} x",
        "",
    )
    row(
        "`1+1`, rpyc (no encryption, no journal)",
        milliseconds(found["rpyc"]),
        f"CURVE ping {milliseconds(ping)}",
        f"{found['rpyc'] / ping:.1f} x",
        "",
    )


def flood():
    peer = Remoter("plain")
    try:
        quiet = timed(lambda: peer.session.complete("pri", 3), 100)
        run = peer.session.submit("for _ in range(10000): print('x' * 9999)")
        times = []
        while run.status in ("queued", "running"):
            began = time.perf_counter()
            peer.session.is_complete("1+1")
            times.append(time.perf_counter() - began)
        run.wait(60)
    finally:
        peer.close()
    row(
        "a question while 100 MB are printed",
        milliseconds(statistics.median(times)),
        f"idle {milliseconds(quiet)}",
        f"{statistics.median(times) / quiet:.1f} x",
        "",
    )


LINES = "for i in range(300_000): print(i)"


def stream():
    kernel, ours = Ipykernel(), Remoter("ipython")
    try:
        rates = {"kernel": [], "ours": []}
        for _ in range(3):
            for name, peer in (("kernel", kernel), ("ours", ours)):
                began = time.perf_counter()
                result = peer.run(LINES)
                rates[name].append(300_000 / (time.perf_counter() - began))
                if name == "ours":
                    assert result.stdout.count("\n") == 300_000
        memory = resident_peak(ours.ready["server_pid"])
    finally:
        kernel.close()
        ours.close()
    theirs, mine = statistics.median(rates["kernel"]), statistics.median(rates["ours"])
    row(
        "300,000 printed lines",
        f"{mine:,.0f} lines/s",
        f"ipykernel {theirs:,.0f}",
        f"{mine / theirs:.2f} x",
        "1.3, aim 3",
    )
    row("server's peak memory after that", f"{memory:.0f} MB", "", "", "below 60 MB")


SLOW = "import time\nfor _ in range(40): time.sleep(0.03); print(time.time())"


def line():
    kernel, ours = Ipykernel(), Remoter("ipython")
    try:
        theirs, mine = [], []
        for _ in range(2):
            theirs += kernel.first_line(SLOW)
            mine += ours.first_line(SLOW)
    finally:
        kernel.close()
        ours.close()
    row(
        "one print in a slow loop, until it is here",
        milliseconds(statistics.median(mine)),
        f"ipykernel {milliseconds(statistics.median(theirs))}",
        f"{statistics.median(mine) / statistics.median(theirs):.3f} x",
        "3 ms, aim 1 ms",
    )


STUCK = {
    "sleep": "import time; print(1, flush=True); time.sleep(60)",
    "tight loop": "print(1, flush=True)\nwhile True: pass",
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); print(1, flush=True); lock.acquire()",
    "C sleep": "import ctypes; print(1, flush=True); ctypes.CDLL(None).sleep(60)",
}


def interrupt():
    kernel, ours = Ipykernel(), Remoter("ipython")
    ours.session._ask = None
    try:
        for name, code in STUCK.items():
            theirs, mine = [], []
            for _ in range(7):
                theirs.append(kernel.interrupt(code))
                mine.append(ours.interrupt(code))
            row(
                f"Ctrl-C to `done`: {name}",
                milliseconds(statistics.median(mine)),
                f"ipykernel {milliseconds(statistics.median(theirs))}",
                f"{statistics.median(mine) / statistics.median(theirs):.2f} x",
                "50 ms, aim 20 ms",
            )
        mine = [ours.interrupt("input('? ')") for _ in range(7)]
        row("Ctrl-C to `done`: input()", milliseconds(statistics.median(mine)), "", "", "50 ms, aim 20 ms")
    finally:
        kernel.close()
        ours.close()


def start():
    theirs, mine, plain = [], [], []
    for _ in range(5):
        for found, make in ((theirs, Ipykernel), (mine, Remoter), (plain, lambda: Remoter("plain"))):
            peer = make()
            found.append(peer.started)
            peer.close()
    kernel = statistics.median(theirs)
    row(
        "start to first `1+1`, IPython worker",
        milliseconds(statistics.median(mine)),
        f"ipykernel {milliseconds(kernel)}",
        f"{statistics.median(mine) / kernel:.2f} x",
        "0.6, aim 0.4",
    )
    row(
        "start to first `1+1`, plain worker",
        milliseconds(statistics.median(plain)),
        f"ipykernel {milliseconds(kernel)}",
        f"{statistics.median(plain) / kernel:.2f} x",
        "",
    )


def attach():
    peer = Remoter("plain")
    try:
        before = peer.session.info.journal["last"] if hasattr(peer.session.info, "journal") else 0
        peer.run("for i in range(100_000): print(f'{i:99d}')")
        times = []
        for _ in range(5):
            began = time.perf_counter()
            size = 0
            for event in peer.session.events(since=before):
                if event.kind == "stdout":
                    size += len(event.text)
                    if size >= 10_000_000:
                        break
            times.append(time.perf_counter() - began)
            assert size == 10_000_000
    finally:
        peer.close()
    row("re-attach with 10 MB missed", milliseconds(statistics.median(times)), "", "", "1 s, aim 0.3 s")


def idle():
    peer = Remoter("ipython")
    try:
        time.sleep(3)
        before, began = sum(map(cpu_seconds, peer.pids)), time.monotonic()
        time.sleep(20)
        share = (sum(map(cpu_seconds, peer.pids)) - before) / (time.monotonic() - began)
    finally:
        peer.close()
    row(
        "idle keeper + server + worker, one client attached",
        f"{share:.2%} of a core",
        "",
        "",
        "0.5 %, aim 0.1 %",
    )


def help():
    def run(*arguments):
        return lambda: subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)

    remoter = shutil.which("remoter", path=str(Path(sys.executable).parent)) or "remoter"
    bare, ours = [], []
    for _ in range(5):
        bare.append(timed(run(sys.executable, "-c", "pass"), 5))
        ours.append(timed(run(remoter, "--help"), 5))
    row(
        "`remoter --help`",
        milliseconds(statistics.median(ours)),
        f"`python -c pass` {milliseconds(statistics.median(bare))}",
        f"{statistics.median(ours) / statistics.median(bare):.1f} x",
        "6, aim 5",
    )


def ssh():
    machine = Machine()
    try:
        commands(machine)
        over_ssh(machine)
    finally:
        machine.close()


def commands(machine):
    """One command from nothing: with a session that has to be started, and with one that runs."""
    program = str(Path(sys.executable).with_name("remoter"))

    def took(*words):
        began = time.perf_counter()
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    bare, cold, warm = [], [], []
    for _ in range(9):
        bare.append(took("ssh", "big", "python3 -c 1+1"))
        cold.append(took(program, "batch", machine.address, "-c", "1+1"))
        warm.append(took(program, "batch", machine.address, "-c", "1+1"))
        took(program, "stop", machine.address)
    base = statistics.median(bare)
    for what, found, wanted in (
        ("`remoter batch ssh://big -c 1+1`, session started", cold, "3, aim 2"),
        ("`remoter batch ssh://big -c 1+1`, session running", warm, "1.6, aim 1.2"),
    ):
        row(
            what,
            milliseconds(statistics.median(found)),
            f"`ssh big python3 -c 1+1` {milliseconds(base)}",
            f"{statistics.median(found) / base:.2f} x",
            wanted,
        )


def over_ssh(machine):
    """A connection over ssh: the same session through `ssh://` and through a plain `ssh -L`; and when ssh is killed."""
    with remoter.connect(machine.address) as session:
        record = session._target.ssh.record
        tunnel = machine.forward(record.port)
        write_record(msgspec.structs.replace(record, name="tunnel", port=tunnel))  # so its keys are found
        with remoter.connect(f"127.0.0.1:{tunnel}") as plain:
            peers = {"ours": session, "plain": plain}
            found = {name: [] for name in peers}
            for _ in range(9):
                for name, peer in peers.items():
                    found[name].append(timed(lambda peer=peer: peer.run("1+1", quiet=True), 60))
        ours, theirs = (statistics.median(found[name]) for name in ("ours", "plain"))
        row(
            "`1+1` through `ssh://`",
            milliseconds(ours),
            f"`ssh -L` {milliseconds(theirs)}",
            f"{(ours - theirs) * 1e6:+.0f} us",
            "+60 us",
        )
        back = []
        for _ in range(7):
            machine.kill_master()
            began = time.perf_counter()
            session.run("1+1", quiet=True)
            back.append(time.perf_counter() - began)
        row("ssh killed, until it answers again", milliseconds(statistics.median(back)), "", "", "1 s")


FIGURES = {f.__name__: f for f in (trip, flood, stream, line, interrupt, start, attach, idle, help, ssh)}

DATA = ["data.numpy", "data.pandas", "data.rpyc", "data.file", "data.files", "data.trip", "data.slow"]
R = ["r.trip", "r.line", "r.lines", "r.interrupt", "r.start", "r.array", "r.frame"]
BY_NAME_ONLY = ["data.large", "r", *R]  # 9 GB of memory; what not everybody has

GROUPS = {"data": DATA, "r": R}


def measure(name):
    module, dot, function = name.partition(".")
    if not dot:
        FIGURES[name]()
        return
    getattr(importlib.import_module(module), function)()  # here: it loads numpy and pandas


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*FIGURES, "data", *DATA, *BY_NAME_ONLY]
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"one of: {' '.join(names)}")
    parser.add_argument("--scale", type=float, default=1.0, help="of `data` and `r`: all sizes times this")
    parser.add_argument("--rounds", type=int, default=5, help="of `data` and `r`: how often each is measured")
    parser.add_argument(
        "--codecs",
        metavar="PYTHON",
        default=sys.executable,
        help="of `r.frame`: the Python that has rdata and rpy2",
    )
    given = parser.parse_args()
    if unknown := set(given.figures) - set(names):
        parser.error(f"no such figure: {' '.join(sorted(unknown))}; there are {' '.join(names)}")
    wanted = given.figures or [*FIGURES, "data"]
    given.figures = [each for name in wanted for each in GROUPS.get(name, [name])]
    return given


def main():
    given = arguments()
    if any("." in name for name in given.figures):
        import data

        data.settings.scale, data.settings.rounds = given.scale, given.rounds
    if any(name in R for name in given.figures):
        import r_peers

        r_peers.codec_python = given.codecs
    # As an installer would: the peers are compiled, so this checkout is too.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(Path(remoter.__file__).parent, quiet=1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then too
    root = tempfile.mkdtemp(prefix="rmb-", dir="/tmp")
    for name in ("CONFIG", "STATE", "RUNTIME", "JOURNAL"):
        os.environ[f"REMOTER_{name}_DIR"] = f"{root}/{name.lower()}"
    os.environ["IPYTHONDIR"] = f"{root}/ipython"
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | remoter | against | ratio | wanted |\n|---|---|---|---|---|", flush=True)
    try:
        for name in given.figures:
            measure(name)
    except BaseException:  # what was just being started is not known to anybody
        stop = [sys.executable, "-m", "remoter", "stop", "--all"]
        subprocess.run(stop, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        raise
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
