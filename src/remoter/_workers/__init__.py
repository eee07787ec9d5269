"""The programs that run inside users' interpreters, and how each is started; nothing else of ours is imported here."""

from __future__ import annotations

import os
import sys

SECRETS = ("REMOTER_PASSWORD",)


def python_command(
    python: str | None, runner: str | None, directory: str, worker_id: str, cwd: str
) -> dict[str, object]:
    """The Python worker's command line, environment and working directory.

    Args:
        python: the interpreter; this one when left out.
        runner: what runs code there: auto, ipython or plain.
        directory: the run directory.
        worker_id: the interpreter's random id.
        cwd: where it starts.
    """
    program = os.path.join(os.path.dirname(__file__), "python_worker.py")
    return {
        "argv": [python or sys.executable, program, directory, worker_id, runner or "auto"],
        "env": {name: value for name, value in os.environ.items() if name not in SECRETS},
        "cwd": cwd,
    }
