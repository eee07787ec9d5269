"""How much memory a transfer took: peaks of resident memory as the kernel keeps them. Linux only.

The kernel remembers the largest resident size of each process (VmHWM), so nothing that lasts a
millisecond is missed, and nothing has to be sampled while a long-lived process is measured. Of
programs that start and end meanwhile (scp, and what sshd starts for it) only samples can be had;
since a peak never sinks, the last sample of each is what counts.
"""

import ctypes
import gc
import os
import threading
from contextlib import suppress
from pathlib import Path

MEGABYTE = 1e6


def status_of(pid, field):
    """A size from the process's status in MB; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / MEGABYTE
    return 0.0


def trim():
    """Give what is free back to the system, so that the next measurement does not find it here."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


TRIM = """
import ctypes, gc
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
"""
"""The same as code, for interpreters elsewhere."""


class Growth:
    """By how many MB long-lived processes grew at most, by name: `with Growth({"client": [1]}) as growth`."""

    def __init__(self, processes):
        self.processes = processes

    def __enter__(self):
        pids = [pid for group in self.processes.values() for pid in group]
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew, at what it is now
        self.before = {pid: status_of(pid, "VmRSS") for pid in pids}
        return self

    def __exit__(self, *error):
        grown = {pid: max(0.0, status_of(pid, "VmHWM") - before) for pid, before in self.before.items()}
        self.peak = {name: sum(grown[pid] for pid in pids) for name, pids in self.processes.items()}


class Visitors(threading.Thread):
    """The peaks in MB of the programs that start meanwhile: `far` below that process, `near` elsewhere below us."""

    def __init__(self, far):
        super().__init__(daemon=True)
        self.root = far
        self.old = set(descendants(os.getpid()))
        self.peaks = {}
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(0.05):
            far = set(descendants(self.root))
            for pid in {*far, *descendants(os.getpid())} - self.old:
                self.peaks[pid, pid in far] = max(
                    self.peaks.get((pid, pid in far), 0.0), status_of(pid, "VmHWM")
                )

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.join()
        self.near = sum(peak for (_, is_far), peak in self.peaks.items() if not is_far)
        self.far = sum(peak for (_, is_far), peak in self.peaks.items() if is_far)


def descendants(pid):
    """Children and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def available():
    """Memory in MB that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024 / MEGABYTE
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MEGABYTE
