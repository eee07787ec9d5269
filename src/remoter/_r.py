"""Which R is on this machine, and whether it can be loaded as a library; where a session is started, and in its server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ._errors import RemoterError

VARIABLE = "REMOTER_R"
PATIENCE = 10.0
"""Seconds for R to say which it is: a script that starts in a moment, or is on a slow disk."""

NO_R = "no R on this machine"
OLDEST = (3, 5)
"""The first R that reads and writes objects as they cross."""

LONGEST_WORDS = 200  # characters of what a program said that is no R

INSTALLERS = {
    "apt-get": "apt install r-base-core",
    "dnf": "dnf install R-core",
    "yum": "yum install R-core",
    "zypper": "zypper install R-base",
    "pacman": "pacman -S r",
    "apk": "apk add R",
    "brew": "brew install r",
}
"""By the program that installs packages: how it installs R."""


_LIBRARY = "libR.dylib" if sys.platform == "darwin" else "libR.so"
NO_LIBRARY = f"it was built without `--enable-R-shlib`: there is no {_LIBRARY} in its home"


@dataclass(frozen=True)
class R:
    """One R.

    Attributes:
        program: the path of the command `R`.
        home: its R_HOME.
        version: as `4.4.1`, or `devel` of one that has no number yet.
        library: the path of the library that R is when it is embedded; None if it was built without.
    """

    program: str
    home: str
    version: str
    library: str | None

    def __str__(self) -> str:
        """For a person."""
        name = Path(self.library).name if self.library else f"no {_LIBRARY}: sessions use the piped engine"
        return f"{self.program}, {self.version}, home {self.home}, {name}"


def find(program: str | None = None) -> R:
    """The R on this machine: the one that is named, or REMOTER_R, or that on PATH, or that in R_HOME.

    Args:
        program: a path, that of R or of the directory it is in, or a name on PATH.

    Raises:
        RemoterError: there is none, or what is named is no R.
    """
    named = program or os.environ.get(VARIABLE)
    if named:
        return _ask(_named(named, "--r" if program else VARIABLE))
    home = os.environ.get("R_HOME")
    found = shutil.which("R") or (shutil.which(str(Path(home, "bin", "R"))) if home else None)
    if found is None:
        seen = f"R_HOME, `{home}`, has no `bin/R`" if home else "R_HOME is not set"
        raise RemoterError(
            NO_R,
            cause=f"`R` is not on PATH and {seen}",
            hints=f"{how_to_install()}, or name it with `--r /opt/R/4.4/bin/R`",
            id="r-missing",
        )
    return _ask(found)


def how_to_install() -> str:
    """What installs R here, as far as can be told."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/bin", "/bin", "/sbin", "/opt/homebrew/bin"])
    known = next((command for name, command in INSTALLERS.items() if shutil.which(name, path=places)), None)
    return f"`{known}`" if known else "install R, by your system's packages or from its own pages"


def seen_of(found: R | None, place: str, install: str = "") -> tuple[str, ...]:
    """What `remoter doctor` has to say of an R, here or there: a mark, what was seen, what to do."""
    if found is None:
        return (
            "skip",
            f"none {place}, which only R sessions need",
            *([f"for them: {install}"] if install else ()),
        )
    if found.library is None:
        return (
            "ok",
            str(found),
            f"{NO_LIBRARY}; an R that has it answers while it computes, and runs as usual",
        )
    return "ok", str(found)


def _named(name: str, where: str) -> str:
    """The path of the program that is named so in an option or a variable."""
    if os.sep not in name and not name.startswith("~"):
        found = shutil.which(name)
        if found is not None:
            return found
        cause = f"`{where}` names it, and no directory on PATH has it"
        raise RemoterError(f"there is no program `{name}`", cause=cause, hints=_OTHER, id="r-missing")
    path = Path(name).expanduser().absolute()
    if path.is_dir():  # its home, or where it was installed
        path = next((path / inside for inside in ("bin/R", "R") if (path / inside).is_file()), path / "bin/R")
    if not path.exists():
        raise RemoterError(f"there is no `{path}`", cause=f"`{where}` names it", hints=_OTHER, id="r-missing")
    if not path.is_file() or not os.access(path, os.X_OK):
        raise RemoterError(
            f"`{path}` is no program", cause=f"`{where}` names it", hints=_OTHER, id="r-missing"
        )
    return str(path)


_OTHER = (
    "`--r` takes the path of the command that starts R, as `/usr/bin/R`; without it the R on PATH is taken"
)


def _ask(program: str) -> R:
    """What the program says of itself."""
    said = _words_of(program, "--version")
    version = re.search(r"^R (?:version (\d[^\s]*)|Under development)", said, re.MULTILINE)
    if version is None:
        raise _no_r(program, said)
    lines = _words_of(program, "RHOME").split("\n")
    home = next((line for line in reversed(lines) if line.startswith(os.sep)), "")
    if not Path(home).is_dir() or not home:
        raise _no_r(program, "\n".join(lines))
    number = tuple(int(part) for part in re.findall(r"\d+", version[1] or "")[:2])
    if version[1] and number < OLDEST:
        raise RemoterError(
            f"`{program}` is R {version[1]}, which is too old",
            cause=f"{OLDEST[0]}.{OLDEST[1]} or newer is needed",
            hints=_OTHER,
            id="r-missing",
        )
    library = Path(home, "lib", _LIBRARY)
    return R(program, home, version[1] or "devel", str(library) if library.is_file() else None)


def _words_of(program: str, argument: str) -> str:
    """What it prints for that argument.

    Raises:
        RemoterError: it cannot be started, or does not end.
    """
    environment = {name: value for name, value in os.environ.items() if name != "R_HOME"}  # it would complain
    try:
        process = subprocess.Popen(
            [program, argument],
            env=environment | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise RemoterError(
            f"`{program}` cannot be started", cause=error.strerror, hints=_OTHER, id="r-missing"
        ) from None
    with process:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started, which holds the pipe
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise RemoterError(
                f"`{program}` is no R, or hangs",
                cause=f"`{program} {argument}` has not ended within {PATIENCE:g} s",
                hints=_OTHER,
                id="r-missing",
            ) from None
    return output.decode(errors="replace").strip()


def _no_r(program: str, said: str) -> RemoterError:
    """The error of a program that is something else, with what it said."""
    first = next(iter(said.splitlines()), "").strip()
    words = "".join(letter for letter in first if letter.isprintable())[:LONGEST_WORDS]
    beside = Path(program).with_name("R")
    is_script = Path(program).name.startswith("Rscript") and beside.exists()
    return RemoterError(
        f"`{program}` is no R",
        cause=f"asked for its version, it says: {words}" if words else "it does not say which version it is",
        hints=f"`{beside}` is" if is_script else _OTHER,
        id="r-missing",
    )
