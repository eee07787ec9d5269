"""The server's side of each kind of worker; in the server's process, one file a kind."""

from .base import Engine, Listener, WorkerEnd, measure_memory
from .python import PythonEngine

ENGINES: dict[str, type[Engine]] = {"python": PythonEngine}

__all__ = ["ENGINES", "Engine", "Listener", "PythonEngine", "WorkerEnd", "measure_memory"]
