"""Processes of a test: found by what /proc says of them, ended by pid; Linux only."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from .waiting import is_alive, wait_for


def all_processes() -> Iterator[int]:
    yield from (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def read_of(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def words_of(pid: int) -> list[str]:
    """The process's argv; empty when it has ended."""
    return os.fsdecode(read_of(pid, "cmdline")).rstrip("\0").split("\0")


def describe(pid: int) -> str:
    return f"{pid} {' '.join(words_of(pid))}"


def carries(pid: int, root: Path, *places: str) -> bool:
    """Whether a path of that directory stands in the process's `environ` or `cmdline`."""
    pattern = re.escape(os.fsencode(root)) + rb"(?![\w.-])"
    return any(re.search(pattern, read_of(pid, place)) for place in places)


def processes_of(root: Path, *places: str) -> list[int]:
    return [
        pid for pid in all_processes() if pid != os.getpid() and carries(pid, root, *places) and is_alive(pid)
    ]


def descendants(pid: int) -> list[int]:
    """Children and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def end(pids: list[int], *, patience: float = 5.0, kind: int = signal.SIGTERM) -> list[int]:
    """End these processes; those that had to be killed are returned."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kind)
    stubborn = survivors(pids, patience)
    for pid in stubborn:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    survivors(stubborn, 5.0)
    return stubborn


def survivors(pids: list[int], patience: float) -> list[int]:
    """Those that still run after that time."""
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not any(map(is_alive, pids)), patience)
    return [pid for pid in pids if is_alive(pid)]
