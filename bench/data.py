"""Objects, files and folders that cross, against what else moves them: the figures `data.*` of run.py.

Everybody takes turns in each round, on the same machine; times are medians. Memory is what a
process grew by at most (`memory.py`), less the object itself where that has to be; of several
rounds the worst, since later ones find memory that earlier ones left.
"""

import filecmp
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cable
import memory
import remoter
import samples
from data_peers import (
    Dask,
    Ipyparallel,
    Ours,
    OursByPort,
    OursCopying,
    OursInto,
    RpycObtain,
    command,
    rsync,
    scp,
    tar,
)
from machine import Machine
from peers import Remoter, free_port
from raw import Raw, RawInto
from table import milliseconds, row, timed

MEGABYTE = memory.MEGABYTE

SOCKET, PORT, SSH, COMMAND = "unix socket", "TCP port", "ssh://", "`remoter cp`, ssh://"


@dataclass
class Settings:
    """All sizes times `scale`; how many rounds. The command line changes them."""

    scale: float = 1.0
    rounds: int = 5


settings = Settings()


def scaled(number):
    return max(1, int(number * settings.scale))


def size(count):
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / MEGABYTE:.3g} MB"


def speed(count, seconds):
    return f"{seconds:.3g} s ({count / seconds / MEGABYTE:,.0f} MB/s)"


def megabytes(by_name):
    return ", ".join(f"{name} {extra:.0f}" for name, extra in by_name.items()) + " MB"


@contextmanager
def opened(**makers):
    """What was made, by name; each maker is given those before it. All are closed at the end, the last one first."""
    with ExitStack() as stack:
        made = {}
        for name, make in makers.items():
            made[name] = make(made)
            stack.callback(made[name].close)
        yield made


# --- objects -----------------------------------------------------------------------------------


class Cost:
    """What one mover needed in one direction, so far."""

    def __init__(self):
        self.times = []
        self.extra = {}

    @property
    def seconds(self):
        return statistics.median(self.times)

    def add(self, seconds, growth, expected):
        self.times.append(seconds)
        for name, grown in growth.items():
            extra = max(0.0, grown - expected.get(name, 0.0))
            self.extra[name] = max(self.extra.get(name, 0.0), extra)


def move(mover, direction, value, cost, look):
    """One transfer; `look`: see whether it arrived as it left."""
    mover.trim()
    memory.trim()
    with memory.Growth({"client": [os.getpid()], **mover.processes}) as growth:
        began = time.perf_counter()
        got = mover.pull() if direction == "pull" else mover.push(value)
        samples.read_once(got)
        seconds = time.perf_counter() - began
    if look and direction == "pull":
        assert samples.is_same(got, value), type(mover).__name__
    del got
    mover.forget()
    receiver = "client" if direction == "pull" else mover.receiver
    is_new = not getattr(mover, "has_memory", False)
    cost.add(seconds, growth.peak, {receiver: samples.size_of(value) / MEGABYTE} if is_new else {})


def race(what, expression, movers, against):
    """Rows of an object that crosses both ways; `against` maps each of ours to those that it is compared with."""
    value = eval(expression, vars(samples))
    count = samples.size_of(value)
    for mover in movers.values():
        mover.make(expression)
    for direction in ("pull", "push"):
        costs = {
            name: Cost()
            for name, mover in movers.items()
            if direction in getattr(mover, "directions", (direction,))
        }
        for number in range(settings.rounds):
            for name, cost in costs.items():
                move(movers[name], direction, value, cost, look=number == 0)
        title = f"{direction} {what}, {size(count)}"
        for ours, others in against.items():
            for other in others if ours in costs else ():
                mine, theirs = costs[ours].seconds, costs[other].seconds
                row(
                    f"{title}: {ours}",
                    speed(count, mine),
                    f"{other} {speed(count, theirs)}",
                    f"{mine / theirs:.2f} x",
                )
        for name, cost in costs.items():
            row(f"{title}: memory beside the object, {name}", megabytes(cost.extra))


OTHERS = {"dask": lambda _: Dask(), "ipyparallel": lambda _: Ipyparallel()}


def numpy():
    count = scaled(100_000_000)
    path = tempfile.mktemp(prefix="rmb-raw-", dir="/tmp")
    near, far, held = "raw CURVE, unix socket", "raw CURVE, TCP", "raw CURVE, unix socket, memory held"
    filled = "unix socket, into="
    makers = {
        SOCKET: lambda _: Ours(),
        near: lambda _: Raw(f"ipc://{path}", count),
        held: lambda _: RawInto(f"ipc://{path}-held", count),
        PORT: lambda made: OursByPort(made[SOCKET]),
        far: lambda _: Raw(f"tcp://127.0.0.1:{free_port()}", count),
        **OTHERS,
    }
    try:
        with opened(**makers) as movers:
            movers[filled] = into = OursInto(movers[SOCKET], movers[held].into)
            try:
                race(
                    "numpy float64",
                    f"floats({count})",
                    movers,
                    {SOCKET: [near], filled: [held], PORT: [far, "dask", "ipyparallel"]},
                )
            finally:
                into.close()
    finally:
        for each in (path, f"{path}-held"):
            Path(each).unlink(missing_ok=True)


def pandas():
    makers = {SOCKET: lambda _: Ours(), PORT: lambda made: OursByPort(made[SOCKET]), **OTHERS}
    with opened(**makers) as movers:
        race(
            "pandas, ten mixed columns",
            f"frame({scaled(1_000_000)})",
            movers,
            {SOCKET: ["dask", "ipyparallel"], PORT: ["dask", "ipyparallel"]},
        )


def rpyc():
    """Smaller: with 200 MB it does not come to an end."""
    with opened(**{SOCKET: lambda _: Ours(), "rpyc obtain": lambda _: RpycObtain()}) as movers:
        race("numpy float64", f"floats({scaled(2_000_000)})", movers, {SOCKET: ["rpyc obtain"]})


def large():
    """Objects beyond what 31 and 32 bits count: they cross, and how much memory that takes."""
    with opened(ours=lambda _: Ours()) as movers:
        for gibibytes in (2, 4):
            expression = f"floats({scaled(gibibytes * 2**27) + 1})"
            value = eval(expression, vars(samples))
            movers["ours"].make(expression)
            for direction in ("pull", "push"):
                cost = Cost()
                move(movers["ours"], direction, value, cost, look=True)
                row(
                    f"{direction} numpy float64, {value.nbytes:,} bytes",
                    speed(value.nbytes, cost.seconds),
                    "memory beside the object",
                    megabytes(cost.extra),
                )


# --- files -------------------------------------------------------------------------------------


def is_copy(one, other):
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    contents = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (one, other)
    ]
    return contents[0] == contents[1]


def copy(copier, direction, source, target, far):
    """Seconds, and the memory here and there in MB, of one copy; `far` is the process below which programs appear."""
    os.sync()
    processes = {"client": [os.getpid()], **copier.processes}
    with memory.Growth(processes) as growth, memory.Visitors(far) as visitors:
        began = time.perf_counter()
        getattr(copier, direction)(source, target)
        seconds = time.perf_counter() - began
    here = growth.peak.pop("client")
    return seconds, here + visitors.near, sum(growth.peak.values()) + visitors.far


def copying(what, source, amount, against, root):
    """Rows of a file or folder that crosses both ways; `amount` says what some seconds mean."""
    with ExitStack() as stack:
        machine = Machine()
        stack.callback(machine.close)
        local = Remoter("plain")
        stack.callback(local.close)
        port = stack.enter_context(remoter.connect(f"127.0.0.1:{local.ready['record']['port']}"))
        there = stack.enter_context(remoter.connect(machine.address))
        copiers = {
            PORT: OursCopying(port, pids_of(port)),
            SSH: OursCopying(there, pids_of(there)),
            COMMAND: command(machine.address, pids_of(there)),
            **{name: make(machine) for name, make in against.items()},
        }
        login = timed(lambda: subprocess.run(["ssh", "big", "true"], check=True), 3)
        row("a login by ssh, which each program makes", milliseconds(login))
        for direction in ("send", "fetch"):
            found = defaultdict(list)
            for number in range(settings.rounds):
                for name, copier in copiers.items():
                    target = root / "target"
                    found[name].append(copy(copier, direction, source, target, machine.pid))
                    if number == 0:
                        assert is_copy(source, target), f"{name} did not {direction} what there was"
                    shutil.rmtree(target) if target.is_dir() else target.unlink()
            copied_rows(f"{direction} {what}", amount, found, list(against))


def copied_rows(title, amount, found, others):
    seconds = {name: statistics.median(took for took, _, _ in each) for name, each in found.items()}
    for ours in (PORT, SSH, COMMAND):
        for other in others:
            row(
                f"{title}: {ours}",
                amount(seconds[ours]),
                f"{other} {amount(seconds[other])}",
                f"{seconds[ours] / seconds[other]:.2f} x",
            )
    for name, each in found.items():
        here, there = (max(column) for column in list(zip(*each, strict=True))[1:])
        row(f"{title}: memory, {name}", f"here {here:.0f}, there {there:.0f} MB")


def pids_of(session):
    return {"server": [session.info.server_pid], "worker": [session.info.pid]}


@contextmanager
def workplace():
    root = Path(tempfile.mkdtemp(prefix="rmb-", dir="/tmp"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def programs(*names):
    makers = {
        "scp": lambda machine: scp(f"{machine.root}/ssh_config"),
        "rsync": lambda _: rsync,
        "tar over ssh": lambda _: tar,
    }
    return {name: makers[name] for name in names if shutil.which(name.partition(" ")[0])}


def file():
    count = scaled(2_000_000_000)
    with workplace() as root:
        source = root / "source"
        with source.open("wb") as writing:
            for start in range(0, count, 1 << 24):
                writing.write(os.urandom(min(1 << 24, count - start)))
        copying(f"a file of {size(count)}", source, lambda s: speed(count, s), programs("scp", "rsync"), root)


def files():
    count = scaled(10_000)
    with workplace() as root:
        source = root / "source"
        for number in range(count):
            path = source / f"{number // 100:03d}" / f"{number:05d}.dat"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(4096))
        copying(
            f"{count:,} files of 4 KB",
            source,
            lambda seconds: f"{seconds:.3g} s ({count / seconds:,.0f} files/s)",
            programs("scp", "rsync", "tar over ssh"),
            root,
        )


# --- `1+1` meanwhile ---------------------------------------------------------------------------


def meanwhile_row(what, idle, busy, against=""):
    row(
        f"`1+1` {what}",
        f"{milliseconds(busy['median'])} (most {milliseconds(busy['most'])}, {busy['count']} of them)",
        against or f"idle {milliseconds(idle['median'])}",
        f"{(busy['median'] - idle['median']) * 1e3:+.2f} ms",
    )


def trip():
    count = scaled(800_000_000)
    times = defaultdict(list)
    with opened(here=lambda _: Ours(), port=lambda made: OursByPort(made["here"])) as made:
        session = made["port"].session
        session.run(f"import os; x = os.urandom({count})", quiet=True)
        value = samples.floats(count // 8)
        for _ in range(settings.rounds):
            for name, found in cable.while_moving(session, value).items():
                if "took" not in name:
                    times[name] += found
    found = {name: cable.figures(each) for name, each in times.items()}
    for name in ("pull", "push"):
        meanwhile_row(f"during a {name} of {size(count)}, loopback", found["idle"], found[name])


def slow():
    """A cable of 50 Mbit/s: everything that fills it makes the rest wait in its queue, TCP itself included."""
    count = scaled(50_000_000)
    line = cable.Cable("50mbit")
    try:
        found = line.measure(count)
    finally:
        line.close()
    for name in ("pull", "push"):
        plain = (found[f"plain {name}"]["median"] - found["plain idle"]["median"]) * 1e3
        title = f"during a {name} of {size(count)} in {found[f'{name} took']:.3g} s, 50 Mbit/s"
        against = f"idle {milliseconds(found['idle']['median'])}; an echo beside plain TCP {plain:+.2f} ms"
        meanwhile_row(title, found["idle"], found[name], against)
