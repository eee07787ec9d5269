"""Waiting for what other processes do."""

import time
from pathlib import Path


def wait_for(condition, timeout=30.0, what="condition"):
    """Poll until the condition holds; fails after the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        now = time.monotonic()  # before the look: afterwards we may stand still
        value = condition()
        if value:
            return value
        if now > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.005)


def is_alive(pid):
    """Whether the process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
