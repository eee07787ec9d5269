"""Wheels for another machine: packed from what is installed here, or fetched for its Python; on the client's machine.

Three sources, for a machine that may reach nothing itself:

    remoter's own      always packed from what runs here: what is installed there is what speaks here
    fetched            by pip or uv, from the index that is configured here, for the Python there
    packed             every distribution installed here, if the Python there is of the same kind
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.parser import Parser
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath

import msgspec

from . import __version__
from ._requirements import follow, normalize
from ._ssh_errors import escape

FETCHING = 120.0
"""Seconds in which one program has to fetch all wheels."""

ROUNDS = 6
_UV_GLIBCS = (17, 28, *range(31, 41))
_NETWORK = re.compile(
    r"connection refused|network is unreachable|no route to host|name or service not known"
    r"|(temporary )?failure in name resolution|dns error|timed out|certificate verify failed",
    re.IGNORECASE,
)
_INSTALLED_BY = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json", "uv_build.json"}


class NoWheelsError(Exception):
    """These wheels cannot be had here; the text says why."""


class Far(msgspec.Struct, kw_only=True):
    """The Python there, as it describes itself."""

    environment: dict[str, str]  # what the markers of requirements are about
    system: str
    machine: str
    libc: str = ""  # "glibc", "musl", or nothing
    release: str = ""  # of the libc, or of macOS

    def __post_init__(self) -> None:
        """It comes from elsewhere, and becomes arguments of programs here."""
        words = {
            "python": (self.environment.get("python_version", ""), r"3\.[0-9]{1,3}"),
            "system": (self.system, r"[\w.-]{0,40}"),
            "machine": (self.machine, r"\w{1,40}"),
            "libc": (self.libc, r"\w{0,10}"),
            "release": (self.release, r"[0-9.]{0,40}"),
        }
        for name, (value, pattern) in words.items():
            if not re.fullmatch(pattern, value, re.ASCII):
                raise ValueError(f"{value[:40]!r} is no {name}")

    @property
    def python(self) -> str:
        return self.environment["python_version"]

    def __str__(self) -> str:
        return f"{self.system} {self.machine}, Python {self.python}"


def gather(own: Path, far: Far, into: Path, until: float) -> str:
    """Put wheels of all that remoter needs there into a directory; says where they are from.

    Raises:
        NoWheelsError: neither the index nor what is installed here has them.
    """
    reasons: list[str] = []
    ways: dict[str, Callable[[], None]] = {
        f"fetched by {name}": fetch for name, fetch in _fetchers(own, far, into, until)
    }
    ways["packed from what is installed here"] = lambda: pack_dependencies(own, far, into)
    for how, way in ways.items():
        try:
            way()
        except NoWheelsError as error:
            reasons.append(str(error))
            for wheel in into.glob("*.whl"):
                wheel.unlink()
        else:
            return how
    raise NoWheelsError("; ".join(dict.fromkeys(reasons)))


# --- packing ---------------------------------------------------------------------------------


def pack_own(into: Path) -> Path:
    """The wheel of the remoter that runs here, also where it runs from its source.

    Raises:
        NoWheelsError: it runs here without having been installed.
    """
    source = Path(__file__).parent
    try:
        distribution = importlib.metadata.distribution("remoter")
    except importlib.metadata.PackageNotFoundError:
        raise NoWheelsError(f"remoter runs from {source} here and is not installed") from None
    files = {
        f"remoter/{path.relative_to(source).as_posix()}": path.read_bytes()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    place = f"remoter-{__version__}.dist-info"
    metadata = distribution.read_text("METADATA") or str(distribution.metadata)
    # Beside a source tree it may tell of an older version.
    files[f"{place}/METADATA"] = re.sub(
        r"(?m)^Version: .*", f"Version: {__version__}", metadata, count=1
    ).encode()
    for name in distribution.metadata.get_all("License-File") or []:
        files[f"{place}/licenses/{name}"] = (distribution.read_text(f"licenses/{name}") or "").encode()
    files[f"{place}/entry_points.txt"] = (distribution.read_text("entry_points.txt") or "").encode()
    files[f"{place}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: remoter\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    return write_wheel(into / f"remoter-{__version__}-py3-none-any.whl", files, place)


def pack(distribution: Distribution, into: Path) -> Path:
    """The wheel that this installed distribution once came from, near enough.

    Raises:
        NoWheelsError: nothing says which files are its own.
    """
    name = distribution.metadata["Name"]
    wheel = distribution.read_text("WHEEL")
    if (
        not distribution.files
        or not wheel
        or '"editable": true' in (distribution.read_text("direct_url.json") or "")
    ):
        raise NoWheelsError(f"{name}, as it is installed here, cannot be packed")
    files: dict[str, bytes] = {}
    place = ""
    for file in distribution.files:
        path = PurePosixPath(file)
        in_dist_info = path.parts[0].endswith(".dist-info")
        if path.is_absolute() or ".." in path.parts or path.suffix == ".pyc":
            continue  # programs and manual pages beside the packages: the first are made anew there
        place = path.parts[0] if in_dist_info else place
        found = Path(str(distribution.locate_file(file)))
        if found.is_file() and not (in_dist_info and path.name in _INSTALLED_BY):
            files[str(path)] = found.read_bytes()
    stem = f"{re.sub('[-_.]+', '_', name)}-{distribution.version.replace('-', '_')}"
    return write_wheel(into / f"{stem}-{'-'.join(_joined(tags_of(wheel)))}.whl", files, place)


def pack_dependencies(own: Path, far: Far, into: Path) -> None:
    """Wheels of all that our own wheel needs, from what is installed here.

    Raises:
        NoWheelsError: something is not installed here, or would not run there.
    """
    installed = {normalize(found.metadata["Name"]): found for found in reversed(list(_installed()))}

    def requires(name: str) -> list[str] | None:
        if name == "remoter":
            return _requires_of_wheel({name: own}, name)
        return installed[name].requires or [] if name in installed else None

    needed, missing = follow(["remoter"], requires, far.environment)
    if missing:
        raise NoWheelsError(f"{missing[0]} is not installed here")
    for name in needed:
        if name != "remoter":
            if not _fits(installed[name], far):
                raise NoWheelsError(f"the {name} that is installed here does not run on {far}")
            pack(installed[name], into)


def tags_of(wheel: str) -> list[list[str]]:
    """The tags that a WHEEL file names, each as its three parts."""
    tags = re.findall(r"(?m)^Tag: *([\w.]+)-([\w.]+)-([\w.]+)", wheel)
    return [list(tag) for tag in tags] or [["py3", "none", "any"]]


def _joined(tags: list[list[str]]) -> Iterator[str]:
    for parts in zip(*tags, strict=True):
        yield ".".join(dict.fromkeys(parts))


def _installed() -> Iterable[Distribution]:
    return (found for found in importlib.metadata.distributions() if found.metadata["Name"])


def _fits(distribution: Distribution, far: Far) -> bool:
    """Whether it runs there: it is Python only, or both Pythons are of one kind, and the libc there is new enough."""
    tags = tags_of(distribution.read_text("WHEEL") or "")
    here = (".".join(platform.python_version_tuple()[:2]), platform.system(), platform.machine())
    if here != (far.python, far.system, far.machine):
        return any(tag[1:] == ["none", "any"] for tag in tags)
    known = {"any", *platforms(far)}
    return far.system != "Linux" or any(known & set(tag[2].split(".")) for tag in tags)


def write_wheel(path: Path, files: dict[str, bytes], place: str) -> Path:
    """Always the same bytes for the same files."""
    record = ""
    for name, data in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        record += f"{_quoted(name)},sha256={digest},{len(data)}\n"
    record += f"{_quoted(f'{place}/RECORD')},,\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in [*sorted(files.items()), (f"{place}/RECORD", record.encode())]:
            entry = zipfile.ZipInfo(name)  # of 1980, which is as good as any
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return path


def _quoted(name: str) -> str:
    return f'"{name}"' if "," in name or '"' in name else name


# --- fetching --------------------------------------------------------------------------------


def _fetchers(own: Path, far: Far, into: Path, until: float) -> Iterator[tuple[str, Callable[[], None]]]:
    """The programs here that fetch wheels."""
    bundled = _bundled_pip()
    if importlib.util.find_spec("pip"):
        yield "pip", lambda: fetch_with_pip(["-P", "-m", "pip"], own, far, into, until)
    if uv := shutil.which("uv"):
        yield "uv", lambda: fetch_with_uv(uv, own, far, into, until)
    elif bundled and not importlib.util.find_spec("pip"):
        yield "pip", lambda: fetch_with_pip(["-I", f"{bundled}/pip"], own, far, into, until)


def fetch_with_pip(pip: list[str], own: Path, far: Far, into: Path, until: float) -> None:
    """Download by pip, which evaluates markers for the Python here: what that leaves out is asked for by name.

    Raises:
        NoWheelsError: it could not.
    """
    command = [sys.executable, *pip, "download", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar=off", "--only-binary=:all:", "--implementation=cp"]
    command += [f"--python-version={far.python}", f"--dest={into}"]
    command += [f"--platform={name}" for name in platforms(far)]
    wanted = [str(own)]
    for _ in range(ROUNDS):
        _run([*command, *wanted], into, until)
        wheels = {normalize(path.name.split("-")[0]): path for path in into.glob("*.whl")}
        _, missing = follow(["remoter"], lambda name: _requires_of_wheel(wheels, name), far.environment)  # noqa: B023
        if not missing:
            return
        wanted += missing
    raise NoWheelsError(f"pip does not find {missing[0]}")


def fetch_with_uv(uv: str, own: Path, far: Far, into: Path, until: float) -> None:
    """Let uv install for the Python there into a directory here, and pack what it put there.

    Raises:
        NoWheelsError: it could not.
    """
    target_platform = f"{far.machine}-apple-darwin".replace("arm64", "aarch64")
    if far.libc == "glibc":
        minor = max((known for known in _UV_GLIBCS if known <= _minor(far)), default=17)
        target_platform = f"{far.machine}-manylinux_2_{minor}"
    elif far.system == "Linux":
        target_platform = f"{far.machine}-unknown-linux-musl"
    with tempfile.TemporaryDirectory(prefix="remoter-") as target:
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--only-binary=:all:"]
        command += ["--target", target, "--python-version", far.python, "--python-platform", target_platform]
        _run([*command, str(own)], Path(target), until)
        for found in importlib.metadata.distributions(path=[target]):
            pack(found, into)


def platforms(far: Far) -> list[str]:
    """The platform tags of wheels that run there, the best first."""
    if far.system == "Darwin":  # pip adds the older ones
        major, minor, *_ = [*far.release.split("."), "0"]
        return [f"macosx_{major}_{minor if major == '10' else 0}_{far.machine}"]
    if far.libc == "musl":
        names = [f"musllinux_1_{minor}" for minor in (2, 1, 0)]
    else:
        names = [f"manylinux_2_{minor}" for minor in range(_minor(far), 4, -1)]
        old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        names += [name for minor, name in old.items() if minor <= _minor(far)]
    return [f"{name}_{far.machine}" for name in [*names, "linux"]]


def _minor(far: Far) -> int:
    digits = re.match(r"2\.(\d{1,3})", far.release)
    return int(digits[1]) if digits else 17


def _run(command: list[str], directory: Path, until: float) -> None:
    environment = {"PIP_DEFAULT_TIMEOUT": "10", "PIP_RETRIES": "1", "UV_HTTP_TIMEOUT": "10", **os.environ}
    name = "uv" if "uv" in Path(command[0]).name else "pip"
    patience = max(1.0, min(FETCHING, until - time.monotonic()))
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=patience,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoWheelsError(f"{name} fetched nothing within {patience:.0f} s") from None
    except OSError as error:
        raise NoWheelsError(f"{name} does not run: {error.strerror}") from None
    if done.returncode:
        raise NoWheelsError(f"{name}: {last_words(done.stdout.decode(errors='replace').splitlines())}")


def last_words(lines: list[str]) -> str:
    """The line of a program's output that says best why it failed, and how the network was, if that was it.

    Harmless on any terminal, whoever printed it.
    """
    lines = [re.sub(r"^with \w+: ", "", line).strip(" \t\r│╰─▶\u00d7") for line in lines]
    errors = [line for line in lines if re.match(r"(ERROR|error|Error|OSError)\b", line)]
    words = [line for line in lines if line and not line.startswith(("hint", "[notice]", "WARNING"))]
    line = re.sub(
        r"^(ERROR|error): *", "", re.sub(r"//[^/@\s]*@", "//", (errors or words or lines or [""])[-1])
    )
    network = _NETWORK.search(" ".join(lines))
    if network and network[0].lower() not in line.lower():
        line = f"{line} ({network[0].lower()})"
    return escape(line) or "it said nothing"


def _bundled_pip() -> Path | None:
    """The wheel of pip that comes with Python, unless its distributor took it out."""
    spec = importlib.util.find_spec("ensurepip")
    bundled = Path((spec and spec.origin) or "/").parent / "_bundled"
    places = [bundled, Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or bundled)]
    return next((wheel for place in places for wheel in place.glob("pip-*.whl")), None)


def _requires_of_wheel(wheels: Mapping[str, Path], name: str) -> list[str] | None:
    if name not in wheels:
        return None
    with zipfile.ZipFile(wheels[name]) as archive:
        names = [file for file in archive.namelist() if file.endswith(".dist-info/METADATA")]
        text = archive.read(names[0]).decode(errors="replace") if names else ""
    return Parser().parsestr(text, headersonly=True).get_all("Requires-Dist") or []
