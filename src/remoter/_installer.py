"""The far end of `--install`: makes remoter's directory; runs on the other machine, in a process of its own, sent as text.

Standard library only, Python 3.11, one file because it is sent as one text. Arguments: the nonce, the
version to install, and uv's path or nothing. What it says goes to standard output, each line as
`remoter:NONCE WORD REST`; what it asks for comes over standard input as a line with a size and a tar
of so many bytes, never before it asks. When that input ends, or a signal comes, it takes back what it
did and ends.

    ~/.local/share/remoter/env-VERSION/   a venv; `complete` is the file in it that says so
                           bin/remoter    a link to that venv's program; switched when it answers
                           python/        a Python that uv fetched, where there was none
"""

import contextlib
import fcntl
import io
import json
import os
import platform
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

TIME = 290.0  # seconds for all of it; the other end waits a little longer
FETCHING = 100.0  # for one program to fetch everything from an index
CHECK = "import IPython, remoter._client, remoter._editor, remoter._server"
HARMFUL = {
    "VIRTUAL_ENV",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_PYTHON",
    "PIP_REQUIREMENT",
}


class Failed(Exception):
    """It cannot go on; the arguments are the lines that say why."""


class Ended(Exception):
    """The other end has gone, or a signal came."""


class Line:
    """What goes between the two ends, and whether it goes on."""

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.until = time.monotonic() + TIME
        self.ended = threading.Event()
        self.sent: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        self.place = Path("/")  # where to put what comes
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.ended.set())
        threading.Thread(target=self._read, daemon=True).start()

    def tell(self, word: str, rest: object = "") -> None:
        text = " ".join(str(rest).split("\n"))
        with contextlib.suppress(OSError):  # nobody listens: the input ends as well
            os.write(1, f"remoter:{self.nonce} {word} {text}".rstrip().encode(errors="replace") + b"\n")

    def ask(self, word: str, question: dict[str, Any], place: Path) -> Path:
        """The wheels that the other end sends, in a directory."""
        self.place = place
        self.tell(word, json.dumps(question))
        while True:
            self.check()
            with contextlib.suppress(queue.Empty):
                if error := self.sent.get(timeout=0.05):
                    raise error
                return place

    def check(self) -> None:
        if self.ended.is_set():
            raise Ended
        if time.monotonic() > self.until:
            raise Failed(f"it was not ready within {TIME:.0f} s")

    def _read(self) -> None:
        source = io.FileIO(0, closefd=False)
        with contextlib.suppress(OSError, ValueError, EOFError):
            while header := source.readline():
                if header.strip():
                    self.sent.put(self._take(source, int(header)))
        self.ended.set()

    def _take(self, source: io.FileIO, size: int) -> OSError | None:
        """Put the wheels that come into their place; what was in the way."""
        data = bytearray()
        while len(data) < size:
            piece = source.read(min(size - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    name, content = Path(member.name).name, tar.extractfile(member)
                    if content is not None and name.endswith(".whl"):
                        (self.place / name).write_bytes(content.read())
        except (OSError, tarfile.TarError) as error:
            return OSError(*error.args)
        return None


class Installation:
    """One attempt; `undo` takes back what it made."""

    def __init__(self, line: Line, version: str, uv: str) -> None:
        self.line, self.version, self.uv = line, version, uv
        self.home = Path.home()
        self.root = self.home / ".local/share/remoter"
        self.link = self.root / "bin/remoter"
        self.made = [path for path in (self.root, *self.root.parents) if not path.exists()]
        self.scratch: Path | None = None
        self.env = self.root / f"env-{version}"
        self.has_env = False
        self.number = 1
        self.is_complete = False

    def install(self) -> None:
        if self.is_there():
            return
        try:
            with self.locked():
                if self.is_there():  # somebody was quicker
                    return
                try:
                    self.make()
                finally:
                    self.undo()
        finally:
            for path in [self.root / "bin", *self.made]:
                with contextlib.suppress(OSError):
                    path.rmdir()  # what is empty now, and was not there before
        self.line.tell("installed", self.link)

    def is_there(self) -> bool:
        """Whether the first remoter that would be found is the right one, or a newer one, which stays."""
        for program in (self.link, shutil.which("remoter"), self.home / ".local/bin/remoter"):
            if program and os.path.lexists(program):
                found = self.version_of(program)
                if found is None or (found != self.version and rank(found) <= rank(self.version)):
                    return False
                self.line.tell(
                    *(("have", program) if found == self.version else ("newer", f"{found} {program}"))
                )
                return True
        return False

    def make(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix=".install-", dir=self.root))
        self.line.tell("step", f"creating an environment with Python {platform.python_version()}")
        while os.path.lexists(self.env):
            self.number += 1
            self.env = self.root / f"env-{self.version}-{self.number}"
        self.has_env = True
        self.create_environment()
        own = next(self.line.ask("ask-own", {}, self.scratch).glob("remoter-*.whl"))
        if not self.fetch(own):
            self.line.tell("step", "no index gives it there")
            self.line.ask("ask-all", describe(), self.scratch)
            self.line.tell("step", "unpacking the wheels")
            shutil.rmtree(self.env)  # it may be half full
            self.create_environment()
            self.unpack_all()
        self.check_program()
        (self.env / "complete").touch()
        self.switch()

    def create_environment(self) -> None:
        try:
            self.run([sys.executable, "-I", "-m", "venv", "--without-pip", str(self.env)], 60)
        except Failed:
            if not self.uv:
                raise
            self.run([self.uv, "venv", "--quiet", "--python", sys.executable, str(self.env)], 60)

    def fetch(self, own: Path) -> bool:
        """Install from the index that is configured there, if there is one that answers."""
        for name, install in self.installers():
            self.line.tell("step", f"fetching what it needs with {name}, in {FETCHING:.0f} s at most")
            try:
                self.run([*install, str(own)], FETCHING)
                return True
            except Failed as failed:
                for text in failed.args[-15:]:
                    self.line.tell("said", f"with {name}: {text}")
        return False

    def installers(self) -> Iterator[tuple[str, list[str]]]:
        python = str(self.env / "bin/python")
        if self.uv:
            yield "uv", [self.uv, "pip", "install", "--python", python]
        if pip := self.find_pip(python):
            quiet = [
                "--no-input",
                "--disable-pip-version-check",
                "--progress-bar=off",
                "--no-warn-script-location",
            ]
            yield "pip", [*pip, "install", *quiet, "--no-cache-dir", "--no-compile", "--prefer-binary"]

    def find_pip(self, python: str) -> list[str] | None:
        """The pip there as a command for the environment: the wheel that comes with Python runs as it is."""
        spec = find_spec("ensurepip")
        bundled = Path((spec and spec.origin) or "/").parent / "_bundled"
        for place in (bundled, Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or bundled)):
            for wheel in place.glob("pip-*.whl"):
                return [python, "-I", f"{wheel}/pip"]
        with contextlib.suppress(Failed):
            if find_spec("pip"):
                text = self.run([sys.executable, "-I", "-m", "pip", "--version"], 30)[0]
                if tuple(map(int, re.findall(r"\d+", text)[:2])) >= (22, 3):
                    return [sys.executable, "-I", "-m", "pip", "--python", python]
        return None

    def unpack_all(self) -> None:
        """What an installer does with wheels that need no more than being unpacked."""
        assert self.scratch is not None
        python = self.env / "bin/python"
        packages = Path(
            self.run([str(python), "-I", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"], 30)[
                0
            ]
        )
        for wheel in self.scratch.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    self.line.check()
                    parts = Path(name).parts
                    if parts[0].endswith(".data"):  # programs and manual pages are not needed, packages are
                        parts = parts[2:] if parts[1] in ("purelib", "platlib") else ()
                    if parts and not name.endswith("/") and ".." not in parts and parts[0] != "/":
                        target = packages.joinpath(*parts)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(archive.read(name))
        program = self.env / "bin/remoter"
        program.write_text(PROGRAM.format(python=shlex.quote(str(python))))
        program.chmod(0o755)

    def check_program(self) -> None:
        self.line.tell("step", "looking whether it runs")
        self.run([str(self.env / "bin/python"), "-I", "-c", CHECK], 60)
        said = self.run([str(self.env / "bin/remoter"), "--version"], 30)[-1]
        if said != f"remoter {self.version}":
            raise Failed(f"what was installed is not remoter {self.version} but `{said}`")

    def version_of(self, program: str | Path) -> str | None:
        """What it says of itself; None if it does not run."""
        if not Path(program).exists():
            return None
        with contextlib.suppress(Failed):
            said = self.run([str(program), "--version"], 30)[-1]
            return said.removeprefix("remoter ")
        return None

    def switch(self) -> None:
        """In one step; the venv that was used before stays, and each that a session still runs from."""
        assert self.scratch is not None
        before = Path(os.path.realpath(self.link)).parent.parent.name
        self.link.parent.mkdir(exist_ok=True)
        new = self.scratch / "link"
        new.symlink_to(Path("..", self.env.name, "bin", "remoter"))
        self.line.check()
        new.replace(self.link)
        self.is_complete = True
        running, elsewhere = self.commands(), self.versions_elsewhere()
        for path in self.root.glob("env-*"):
            is_used = running is None or f"{path}/" in running or f"{path.resolve()}/" in running
            is_used = is_used or re.sub(r"^env-|-\d+$", "", path.name) in elsewhere
            if path.name not in (self.env.name, before) and not is_used:
                shutil.rmtree(path, ignore_errors=True)

    def commands(self) -> str | None:
        """The commands of all processes here, one text; None if they cannot be seen."""
        commands = ""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                commands += path.read_bytes().decode(errors="replace") + "\n"
        with contextlib.suppress(Failed, OSError):
            return commands or "\n".join(self.run(["ps", "-ww", "-e", "-o", "args"], 10))
        return None

    def versions_elsewhere(self) -> set[str]:
        """Those of sessions on other machines that have the same home: their processes are not seen here."""
        versions = set()
        state = Path(os.environ.get("REMOTER_STATE_DIR") or self.home / ".local/state/remoter")
        host = platform.node().partition(".")[0]
        for path in state.glob("servers/*.json"):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                record = json.loads(path.read_text())
                if record.get("host") != host:
                    versions.add(str(record.get("version")))
        return versions

    def undo(self) -> None:
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
        if self.has_env and not self.is_complete:
            shutil.rmtree(self.env, ignore_errors=True)
            if not any(self.root.glob("env-*")):  # then nobody uses what uv fetched
                shutil.rmtree(self.root / "python", ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One installation at a time; what an earlier one left that was killed is taken away."""
        path = self.root / "lock"
        while True:
            self.root.mkdir(0o700, parents=True, exist_ok=True)
            with path.open("w") as file:
                has_locks = self.lock(file)
                if not is_at(path, file):
                    continue  # whoever held it has taken it away
                if has_locks:
                    for rubbish in [*self.root.glob(".install-*"), *self.root.glob("env-*")]:
                        if not (rubbish / "complete").exists():
                            shutil.rmtree(rubbish, ignore_errors=True)
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return

    def lock(self, file: TextIO) -> bool:
        """Whether it is ours now: not on a file system that has no locks."""
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                self.line.check()
                self.line.ended.wait(0.1)
            except OSError:
                return False

    def run(self, command: list[str], patience: float) -> list[str]:
        """The lines that it prints. Raises Failed with them."""
        self.line.check()
        until = min(time.monotonic() + patience, self.line.until)
        with tempfile.TemporaryFile(dir=self.scratch) as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.scratch or "/",
                env=environment(),
                start_new_session=True,
            )
            try:
                while process.poll() is None and time.monotonic() < until:
                    if self.line.ended.wait(0.02):
                        raise Ended
            finally:
                is_late = process.poll() is None
                if is_late:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines() or [""]
        if process.returncode < 0 and self.line.ended.wait(0.5):
            raise Ended  # what ended us came before it had a process group of its own
        if is_late:
            raise Failed(*lines, f"it was not ready within {patience:.0f} s")
        if process.returncode:
            raise Failed(*lines, *([] if any(lines) else [f"{command[0]} ended with {process.returncode}"]))
        return lines


# A shell starts it, since its path may have blanks or be longer than the system allows; to Python that is a text.
PROGRAM = """#!/bin/sh
'''exec' {python} "$0" "$@"
' '''
import sys

from remoter.__main__ import main

sys.exit(main())
"""


def rank(version: str) -> tuple[tuple[int, ...], int, list[int]]:
    """To tell which version is newer: its numbers, how final it is, and the numbers after that."""
    match = re.match(r"(\d{1,9}(?:\.\d{1,9})*)[-._]?([a-z]*)([^+]*)", version)
    if match is None:
        return (), 0, []
    numbers = [int(number) for number in match[1].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    stages = {"dev": 0, "a": 1, "b": 2, "c": 3, "rc": 3}
    return tuple(numbers), stages.get(match[2], 4), [int(text) for text in re.findall(r"\d{1,9}", match[3])]


def is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def environment() -> dict[str, str]:
    """For programs: without what a prelude or the user has set for other Pythons."""
    kept = {name: value for name, value in os.environ.items() if name not in HARMFUL and name[:6] != "PYTHON"}
    patience = {
        "PIP_DEFAULT_TIMEOUT": "10",
        "PIP_RETRIES": "1",
        "UV_HTTP_TIMEOUT": "10",
        "UV_HTTP_RETRIES": "1",
    }
    return {**patience, **kept, "PIP_USER": "0"}


def describe() -> dict[str, Any]:
    """This Python, for those who look for wheels: the words of markers, and the libc."""
    version = platform.python_version()
    libc, release = "", platform.mac_ver()[0]
    if sys.platform == "linux":
        with contextlib.suppress(ValueError, OSError):
            libc, _, release = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        if "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE")):
            libc = "musl"
    machine = platform.machine()
    if sys.platform == "linux":  # a 32-bit Python on a 64-bit kernel knows better
        machine = sysconfig.get_platform().partition("-")[2] or machine
    return {
        "environment": {
            "implementation_name": sys.implementation.name,
            "implementation_version": version,
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": version,
            "python_version": ".".join(version.split(".")[:2]),
            "sys_platform": sys.platform,
        },
        "system": platform.system(),
        "machine": machine,
        "libc": libc,
        "release": release,
    }


def main(nonce: str, version: str, uv: str) -> int:
    line = Line(nonce)
    installation = Installation(line, version, uv)
    try:
        installation.install()
    except Ended:
        return 1
    except Failed as failed:
        said = list(failed.args)
    except OSError as error:
        said = [str(error)]
    except Exception:
        said = traceback.format_exc().splitlines()
    else:
        line.tell("end")
        return 0
    line.tell("failed", "install 1")
    for text in said[-40:]:
        line.tell("said", text)
    line.tell("end")
    return 1


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))
