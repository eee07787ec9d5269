"""What the system says of a worker's process: whether it is there, and its memory; in the server's process."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path


def is_gone(pid: int) -> bool:
    """Whether the process has ended, also if nobody has reaped it yet."""
    try:
        os.kill(pid, 0)
    except OSError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # macOS has no /proc
        asked = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        state = asked.stdout.strip()[:1] or "Z"
    return state in ("Z", "X")


def measure_memory(pid: int, measured: Callable[[int | None], None]) -> None:
    """Give the bytes of memory that the process has, without its children, to `measured`; None if it has ended.

    Linux tells in some microseconds; elsewhere a thread asks `ps`, so that nobody waits for that.
    """
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(None, _memory_by_ps, pid)
        asked.add_done_callback(lambda answer: measured(answer.result()))
    else:
        measured(pages * os.sysconf("SC_PAGE_SIZE") or None)


def _memory_by_ps(pid: int) -> int | None:
    try:
        asked = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return int(asked.stdout) * 1024
    except (OSError, ValueError):  # no such program, or no such process
        return None
