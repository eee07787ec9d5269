"""The programs that run inside users' interpreters, and how each is started; nothing else of ours is imported here."""

from __future__ import annotations

import locale
import os
import sys
from typing import Any

SECRETS = ("REMOTER_PASSWORD",)


def worker_command(configuration: dict[str, Any], directory: str, worker_id: str) -> dict[str, Any]:
    """The command line, environment and working directory of a session's worker.

    Args:
        configuration: what the session was started with: its `lang`, `cwd`, and which interpreter.
        directory: the run directory.
        worker_id: the interpreter's random id.
    """
    is_r = configuration.get("lang") == "r"
    arguments = (_r_arguments if is_r else _python_arguments)(configuration, directory, worker_id)
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    if is_r:
        environment.update(_utf8(environment))
        environment.pop("R_HOME", None)  # R knows its own, and complains of another
    return {"argv": arguments, "env": environment, "cwd": configuration["cwd"]}


def _program(name: str) -> str:
    return os.path.join(os.path.dirname(__file__), name)


def _python_arguments(configuration: dict[str, Any], directory: str, worker_id: str) -> list[str]:
    python, runner = configuration.get("python"), configuration.get("runner")
    return [python or sys.executable, _program("python_worker.py"), directory, worker_id, runner or "auto"]


def _r_arguments(configuration: dict[str, Any], directory: str, worker_id: str) -> list[str]:
    """`R CMD` gives the program the environment of that R: its home, where its libraries are."""
    r, python, engine = (configuration.get(key) for key in ("r", "python", "r_engine"))
    program = [python or sys.executable, _program("r_worker.py")]
    return [r or "R", "CMD", *program, directory, worker_id, engine or "auto"]


def _utf8(environment: dict[str, str]) -> dict[str, str]:
    """What makes the character set UTF-8 where it is not: all that R prints is read as that.

    A language that this machine does not have, as ssh brings it along, is none either.
    """
    name = next((n for n in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(n)), "LC_CTYPE")
    wanted = environment.get(name, "")
    if wanted.upper().replace("-", "").endswith("UTF8") and _is_installed(wanted):
        return {}
    return {"LC_ALL" if name == "LC_ALL" else "LC_CTYPE": "C.UTF-8"}


def _is_installed(wanted: str) -> bool:
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, wanted)
        locale.setlocale(locale.LC_CTYPE, before)
    except locale.Error:
        return False
    return True
