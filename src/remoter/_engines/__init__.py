"""The server's side of each kind of worker; in the server's process, one file a kind."""

from .base import Engine, Listener, WorkerEnd
from .processes import is_gone, measure_memory
from .python import PythonEngine
from .r import REngine

ENGINES: dict[str, type[Engine]] = {"python": PythonEngine, "r": REngine}

__all__ = [
    "ENGINES",
    "Engine",
    "Listener",
    "PythonEngine",
    "REngine",
    "WorkerEnd",
    "is_gone",
    "measure_memory",
]
