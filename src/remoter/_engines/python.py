"""The Python engine: any CPython from 3.8 on, with IPython when that interpreter has it; in the server's process."""

from __future__ import annotations

from .base import Engine


class PythonEngine(Engine):
    """A Python worker: its threads answer questions and move objects while code runs."""

    lang = "python"
