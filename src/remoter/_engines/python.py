"""The Python engine: how a Python worker is started; in the server's process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from .base import Engine

WORKER = Path(__file__).parent.parent / "_workers" / "python_worker.py"


class PythonEngine(Engine):
    """A Python worker: any CPython from 3.8 on, with IPython when that interpreter has it."""

    lang = "python"

    def command(self, worker_id: str) -> dict[str, Any]:
        """What the keeper starts: `argv`, `env`, `cwd`."""
        return worker_command(self.configuration, self.directory, worker_id)


def worker_command(configuration: dict[str, Any], directory: Path, worker_id: str) -> dict[str, Any]:
    """The command line of a Python worker, its environment and its working directory."""
    python = configuration.get("python") or sys.executable
    runner = configuration.get("runner") or "auto"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("REMOTER_")}
    return {
        "argv": [python, str(WORKER), str(directory), worker_id, runner],
        "env": environment,
        "cwd": configuration.get("cwd") or str(Path.home()),
    }
