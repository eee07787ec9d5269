"""R sessions against IRkernel, R itself, rdata and rpy2: the figures `r.*` of run.py.

Everybody takes turns in each round, on the same machine; times are medians. `quoted` figures are not
of this run: R's own package remoter was measured once, on a machine of the same kind.
"""

import mmap
import statistics
import subprocess
from collections import defaultdict

import numpy

import memory
from data import opened, scaled, settings, size, speed, workplace
from r_peers import BareR, Codec, IRkernel, RemoterR, RemoterRByPort, Rscript
from table import milliseconds, row, timed

PATIENCE = 15.0
"""Seconds that a slow peer may take in all; after that the rounds go on without it."""

LIMIT = 30.0
"""Seconds for one run of a peer that may never end."""

SOCKET, PORT, KERNEL, BARE = "unix socket", "TCP port", "IRkernel", "R on pipes"

QUOTED = "R's remoter, quoted:"


def take_turns(peers, measure, rounds=None):
    """The median over the rounds of the seconds that `measure(peer)` says, by name."""
    found = defaultdict(list)
    for _ in range(rounds or settings.rounds):
        for name, peer in peers.items():
            found[name].append(measure(peer))
    return {name: statistics.median(times) for name, times in found.items()}


def ratio(mine, theirs, digits=2):
    return f"{mine / theirs:.{digits}f} x"


# --- runs --------------------------------------------------------------------------------------


def trip():
    makers = {
        KERNEL: lambda _: IRkernel(),
        BARE: lambda _: BareR(),
        SOCKET: lambda _: RemoterR(),
        PORT: lambda made: RemoterRByPort(made[SOCKET]),
    }
    with opened(**makers) as peers:
        found = take_turns(peers, lambda peer: timed(lambda: peer.run("1+1"), scaled(100)))
    for name, wanted in ((SOCKET, "0.1, aim 0.03; 0.5 ms"), (PORT, "0.1, aim 0.03; 0.5 ms")):
        mine, title = milliseconds(found[name]), f"`1+1` in R, {name}"
        row(
            title,
            mine,
            f"IRkernel {milliseconds(found[KERNEL])}",
            ratio(found[name], found[KERNEL], 3),
            wanted,
        )
        row(title, mine, f"{BARE} {milliseconds(found[BARE])}", ratio(found[name], found[BARE], 1))
    row(title, mine, f"{QUOTED} 0.39 ms encrypted, 0.19 ms plain")


SLOW = r'for (i in 1:200) {cat(sprintf("%.6f\n", unclass(Sys.time()))); Sys.sleep(0.01)}'


def line():
    with opened(theirs=lambda _: IRkernel(), ours=lambda _: RemoterR()) as peers:
        found = take_turns(peers, lambda peer: statistics.median(peer.first_line(SLOW)), rounds=2)
    row(
        "a line printed in an R loop, until it is here",
        milliseconds(found["ours"]),
        f"IRkernel {found['theirs']:.3g} s",
        ratio(found["ours"], found["theirs"], 4),
        "5 ms, aim 2 ms",
    )


def lines():
    """All of them have to arrive, in each round."""
    count = scaled(100_000)
    code = f'for (i in seq_len({count})) cat(i, "\\n")'
    flood(f"{count:,} lines by `cat`", code, count, "3 s, aim 1 s", f"{QUOTED} 35.6 s for 100,000")
    count = scaled(1_000_000)
    code = f"options(max.print = 1e8); print(matrix(seq_len({count})))"
    quoted = f"{QUOTED} none of 1,000,000 lines after 150 s"
    flood(f"a print of {count:,} lines", code, count + 1, "", quoted)


def flood(title, code, count, wanted, quoted):
    with opened(kernel=lambda _: IRkernel(), bare=lambda _: BareR(), ours=lambda _: RemoterR()) as peers:
        found = defaultdict(list)
        for _ in range(min(3, settings.rounds)):
            for name, peer in peers.items():
                if None not in found[name] and sum(found[name]) < PATIENCE:
                    found[name].append(peer.lines(code, count, LIMIT))

    def rate(seconds):
        return f"{seconds:.3g} s ({count / seconds:,.0f} lines/s)"

    mine, bare = statistics.median(found["ours"]), statistics.median(found["bare"])
    if None in found["kernel"]:
        row(title, rate(mine), f"IRkernel: not all in {LIMIT:.0f} s", "", wanted)
    else:
        theirs = statistics.median(found["kernel"])
        row(title, rate(mine), f"IRkernel {rate(theirs)}", ratio(mine, theirs, 3), wanted)
    row(title, rate(mine), f"{BARE} {rate(bare)}", ratio(mine, bare))
    row(title, rate(mine), quoted)


STUCK = {
    "Sys.sleep": r'cat("here\n"); Sys.sleep(60)',
    "tight loop": r'cat("here\n"); repeat {}',
    "system": r'cat("here\n"); system("sleep 60")',
    "readline()": 'readline("? ")',
}


def interrupt():
    """Not only the call has to end, but the run: a variable counts those that went on."""
    wanted, rounds = "100 ms, aim 30 ms", 7
    with opened(theirs=lambda _: IRkernel(), ours=lambda _: RemoterR()) as peers:
        session = peers["ours"].session
        session._ask = None
        for name, code in STUCK.items():
            session.run("went_on <- 0", quiet=True)
            both = peers if name != "readline()" else {"ours": peers["ours"]}
            code += "; went_on <- went_on + 1"
            found = take_turns(both, lambda peer, code=code: peer.interrupt(code), rounds)
            mine, theirs = found["ours"], found.get("theirs")
            went_on = int(session.run("cat(went_on)", quiet=True).stdout)
            row(
                f"Ctrl-C to `done` in R: {name}",
                milliseconds(mine) + (f", but {went_on} of {rounds} went on" if went_on else ""),
                f"IRkernel {milliseconds(theirs)}" if theirs else "",
                ratio(mine, theirs) if theirs else "",
                wanted,
            )


def start():
    found = defaultdict(list)
    for _ in range(settings.rounds):
        for name, make in (("kernel", IRkernel), ("ours", RemoterR), ("rscript", Rscript)):
            peer = make()
            found[name].append(peer.started)
            peer.close()
    mine, theirs, bare = (statistics.median(found[name]) for name in ("ours", "kernel", "rscript"))
    title = "start of R to first `1+1`"
    row(title, milliseconds(mine), f"IRkernel {theirs:.3g} s", ratio(mine, theirs))
    row(title, milliseconds(mine), f"`Rscript -e 1+1` {milliseconds(bare)}", ratio(mine, bare, 1))


# --- values ------------------------------------------------------------------------------------


COPY, SHARED = "numpy copy", "numpy copy into new shared memory"


def array():
    count = scaled(100_000_000)
    with opened(ours=lambda _: RemoterR(), port=lambda made: RemoterRByPort(made["ours"])) as made:
        ours = made["ours"].session
        ours.run(f"x <- runif({count})", quiet=True)
        value = pull(ours).copy()
        last = float(ours.run('cat(sprintf("%.17g", x[length(x)]))', quiet=True).stdout)
        assert value.shape == (count,) and value[-1] == last
        ways = {
            COPY: value.copy,
            SOCKET: lambda: pull(ours),
            SHARED: lambda: copy_shared(value),
            PORT: lambda: pull(made["port"].session),
        }
        whole, read = take_array_turns(ways, value)
    title = f"pull of {count:,} doubles of R, {size(8 * count)}"
    and_read = ", and read once"
    for way, other, what, found, wanted in (
        (SOCKET, COPY, "", whole, "3, aim 2"),
        (SOCKET, COPY, and_read, read, "3, aim 2"),
        (SOCKET, SHARED, "", whole, ""),
        (SOCKET, SHARED, and_read, read, ""),
        (PORT, COPY, "", whole, ""),
    ):
        mine, theirs = found[way], found[other]
        row(
            f"{title}: {way}{what}",
            speed(8 * count, mine),
            f"{other}{what} {speed(8 * count, theirs)}",
            ratio(mine, theirs),
            wanted,
        )


def copy_shared(value):
    """Memory as two processes share it: its pages are small, where numpy's own are large."""
    copy = numpy.frombuffer(mmap.mmap(-1, value.nbytes), value.dtype)
    copy[:] = value
    return copy


def pull(session):
    return session.pull("x", progress=False)


def take_array_turns(ways, value):
    """Median seconds of each way, and with a sum over what came: memory that is only mapped has to be there then.

    What came is looked at in a round that does not count: it is the first to touch much of the
    machine's memory, and on a virtual machine each page then costs its host something. So it may
    later too, and there are twice as many rounds as elsewhere.
    """
    whole, read = defaultdict(list), defaultdict(list)
    for counts in [False] + [True] * 2 * settings.rounds:
        for name, way in ways.items():
            memory.trim()
            got = []
            took = timed(lambda way=way, got=got: got.append(way()), 1)
            summed = timed(got[0].sum, 1)
            if counts:
                whole[name].append(took)
                read[name].append(took + summed)
            else:
                assert (got[0] == value).all()
    return tuple({name: statistics.median(each) for name, each in found.items()} for found in (whole, read))


FRAME = """
set.seed(7)
n <- {rows}
x <- data.frame(
    float0 = runif(n), float1 = runif(n), float2 = runif(n), float3 = runif(n),
    count = sample.int(1000L, n, TRUE), id = seq_len(n) + 0L, flag = runif(n) < 0.5,
    time = as.POSIXct("2020-01-01", tz = "UTC") + seq_len(n),
    city = factor(sample(c("Aachen", "Bern", "Cork", "Delft", "Espoo"), n, TRUE)),
    name = sprintf("customer %06d", seq_len(n))
)
"""
"""Ten columns as those of the pandas rows; nothing of it in a compact form, nothing missing."""


class Ours:
    """An R session, with the face of a `Codec`."""

    name, missing = "ours", None

    def __init__(self, code):
        self.peer = RemoterR()
        self.session = self.peer.session
        self.session.run(code, quiet=True)

    def take(self, direction):
        memory.trim()
        return timed(getattr(self, direction), 1)

    def pull(self):
        self.value = pull(self.session)

    def push(self):
        self.session.push("y", self.value, progress=False)

    def is_unharmed(self):
        """Whether R holds what came back for what left."""
        return self.session.run("cat(isTRUE(all.equal(x, y)))", quiet=True).stdout == "TRUE"

    def close(self):
        self.peer.close()


def frame():
    rows = scaled(1_000_000)
    code = FRAME.format(rows=rows)
    with workplace() as root:
        path = root / "x.rds"
        saving = f"{code}saveRDS(x, {str(path)!r}, compress = FALSE)"
        subprocess.run(["Rscript", "-e", saving], check=True)
        makers = {
            "ours": lambda _: Ours(code),
            "rdata": lambda _: Codec("rdata", str(path)),
            "rpy2": lambda _: Codec("rpy2", code),
        }
        with opened(**makers) as movers:
            found = take_frame_turns(movers)
            ours = movers.pop("ours")
            assert ours.value.shape == (rows, 10)
            remark = "" if ours.is_unharmed() else " (all.equal says no to what came back)"
    for direction, words, wanted in (
        ("pull", "to pandas", {"rdata": "0.1, aim 0.033"}),
        ("push", "from pandas", {}),
    ):
        mine = statistics.median(found["ours", direction])
        title = f"{direction} of an R frame {words}, {rows:,} x 10{remark if direction == 'push' else ''}"
        for name, mover in movers.items():
            took = found[name, direction]
            if took:
                theirs = statistics.median(took)
                against = f"{mover.name} {theirs:.3g} s (of {len(took)})"
                row(title, f"{mine:.3g} s", against, ratio(mine, theirs, 3), wanted.get(name, ""))
            else:
                row(title, f"{mine:.3g} s", f"{mover.name} cannot: {mover.missing}", "", wanted.get(name, ""))


def take_frame_turns(movers):
    """The seconds that each took, by name and direction; slow ones have fewer rounds."""
    found = defaultdict(list)
    for _ in range(settings.rounds):
        for direction in ("pull", "push"):
            for name, mover in movers.items():
                took = found[name, direction]
                if mover.missing or sum(took) > PATIENCE:
                    continue
                if (seconds := mover.take(direction)) is not None:
                    took.append(seconds)
    return found
