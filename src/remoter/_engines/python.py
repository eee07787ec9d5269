"""The Python engine: any CPython from 3.8 on, with IPython when that interpreter has it; in the server's process."""

from __future__ import annotations

from .._workers import python_command
from .base import Engine


class PythonEngine(Engine):
    """A Python worker."""

    lang = "python"

    def command(self, worker_id: str) -> dict[str, object]:
        """What the keeper starts: `argv`, `env`, `cwd`."""
        wanted = self.configuration
        command: dict[str, object] = python_command(
            wanted.get("python"), wanted.get("runner"), str(self.directory), worker_id, wanted["cwd"]
        )
        return command
