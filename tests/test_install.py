"""`--install`: remoter put into another home, through the real script, shell and installer; here instead of over ssh."""

import itertools
import os
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import zipfile
from pathlib import Path

import pytest

from remoter import __version__, _install, _installer, _requirements, _wheels
from remoter._bootstrap import COMMAND
from remoter._errors import ConnectError, RemoterError, render

from .waiting import wait_for

TOOLS = [
    "cat",
    "env",
    "id",
    "ln",
    "ls",
    "mkdir",
    "mv",
    "rm",
    "rmdir",
    "sed",
    "sh",
    "sleep",
    "tail",
    "tr",
    "uname",
]
PYTHON = sys._base_executable

PROGRAM = """
import sys, time
def main():
    {behaviour}
    print("remoter", "{version}")
"""


def program(path, text):
    path.unlink(missing_ok=True)  # never through a link to a real one
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class There:
    """Another home on this machine, with nothing on PATH but a few tools and what a test puts there."""

    def __init__(self, root):
        self.home = root / "their own home"  # a path that needs quotes
        self.programs = root / "programs"
        self.home.mkdir()
        self.programs.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.programs / tool).symlink_to(found)
        (self.home / ".profile").write_text(
            f"printf 'Welcome! No newline here'; read answer; PATH='{self.programs}'; export PATH\n"
        )
        self.place = self.home / ".local/share/remoter"
        self.link = self.place / "bin/remoter"
        self.environment = {}
        self.said = []
        self.processes = []

    def python(self, path=PYTHON):
        """Put a `python3` on PATH: by default this very one, with its pip."""
        return program(self.programs / "python3", f'exec "{path}" "$@"')

    def start(self, script):
        """What ssh would do."""
        process = subprocess.Popen(
            ["/bin/sh", "-c", COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.home,
            start_new_session=True,
            env={
                "HOME": str(self.home),
                "SHELL": "/bin/sh",
                "PATH": "/usr/bin:/bin",
                "TMPDIR": os.environ["TMPDIR"],
                **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))},
                **self.environment,
            },
        )
        self.processes.append(process)
        process.stdin.write(script)
        process.stdin.flush()
        return process

    def install(self, say=None, **options):
        def keep(text):
            self.said.append(text)
            if say:
                say(text)

        options.setdefault("prelude", None)
        return _install.install(self.start, keep, host="big", **options)

    def version(self):
        """What the program behind the link says."""
        return subprocess.run([self.link, "--version"], capture_output=True, text=True).stdout.strip()

    def content(self):
        """What is in the directory, one level deep."""
        return sorted(str(path.relative_to(self.place)) for path in self.place.glob("*")) + sorted(
            str(path.relative_to(self.place)) for path in self.place.glob("bin/*")
        )


@pytest.fixture
def there(home, monkeypatch):
    monkeypatch.setattr(_install, "WAITING", 60.0)  # a slow machine is no news
    monkeypatch.setattr(_install, "PATIENCE", 30.0)
    far = There(home)
    yield far
    assert [process.poll() for process in far.processes].count(None) == 0
    wait_for(lambda: not list(Path(os.environ["TMPDIR"]).iterdir()), what="no file is left")


@pytest.fixture(scope="module")
def bare():
    """A Python without pip and ensurepip."""
    root = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", root / "bare"], check=True)
    packages = next(root.glob("bare/lib/python*/site-packages"))
    (packages / "sitecustomize.py").write_text(
        "import sys, sysconfig\n"
        "sys.modules['ensurepip'] = sys.modules['pip'] = None\n"
        "sysconfig.get_config_vars()['WHEEL_PKG_DIR'] = None\n"
    )
    yield root / "bare/bin/python"
    shutil.rmtree(root)


@pytest.fixture
def no_index(monkeypatch, home):
    """Neither side reaches an index: the port answers nobody."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("UV_OFFLINE", "1")
        monkeypatch.setenv("UV_NO_CACHE", "1")
        yield


@pytest.fixture
def small(monkeypatch, there, bare):
    """A remoter that needs nothing, and a Python without pip: it goes fast. Gives a function that makes a version."""
    there.python(bare)

    def make(version, *, behaviour="pass", says=None, requires="", size=0):
        def pack(into):
            place = f"remoter-{version}.dist-info"
            needs = f"Requires-Dist: {requires}\n" if requires else ""
            files = {
                "IPython.py": b"",
                "remoter/__init__.py": b"",
                "remoter/_client.py": b"",
                "remoter/_editor.py": b"",
                "remoter/_server.py": os.urandom(size).hex().encode()
                and f"# {os.urandom(size).hex()}".encode(),
                "remoter/__main__.py": PROGRAM.format(behaviour=behaviour, version=says or version).encode(),
                f"{place}/METADATA": f"Metadata-Version: 2.1\nName: remoter\nVersion: {version}\n{needs}".encode(),
                f"{place}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
                f"{place}/entry_points.txt": b"[console_scripts]\nremoter = remoter.__main__:main\n",
            }
            return _wheels.write_wheel(into / f"remoter-{version}-py3-none-any.whl", files, place)

        if not requires:
            monkeypatch.setattr(_wheels, "_fetchers", lambda *_: ())
        monkeypatch.setattr(_install, "pack_own", pack)
        monkeypatch.setattr(_install, "__version__", version)

    return make


@pytest.fixture
def quick_index(home):
    """An index that answers within seconds; the test is left out where there is none."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "-d",
        str(home / "probe"),
        "click",
    ]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=5,
            env={**os.environ, "PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "3"},
        )
    except subprocess.TimeoutExpired:
        pytest.skip("no index answers quickly")
    if done.returncode:
        pytest.skip("no index answers")


# --- from nothing to a program that runs -----------------------------------------------------


def test_where_no_side_reaches_an_index_what_is_installed_here_is_sent(there, no_index):
    there.python()
    assert there.install() == __version__
    assert there.version() == f"remoter {__version__}"
    assert there.content() == ["bin", f"env-{__version__}", "bin/remoter"]
    assert there.said[0] == f"putting remoter {__version__} into ~/.local/share/remoter on big"
    assert any("packed from what is installed here" in text for text in there.said)
    last = (
        rf"installed remoter {re.escape(__version__)} on big in \d+(\.\d)? m?s: {re.escape(str(there.link))}"
    )
    assert re.fullmatch(last, there.said[-1])
    assert any(re.search(r"sending \d+ wheels, \d+\.\d MB, for ", text) for text in there.said)
    assert sorted(path.name for path in there.home.iterdir()) == [".local", ".profile"]

    before = os.stat(there.link)
    there.said.clear()
    assert there.install() == __version__
    assert there.said[1:] == [f"remoter {__version__} is on big already: {there.link}"]
    assert os.stat(there.link) == before


def test_what_an_index_there_has_is_fetched_there(there, small, quick_index):
    small("0.0.1", requires="click>=8")
    there.python()
    assert there.install() == "0.0.1"
    assert list(there.place.glob("env-0.0.1/lib/python*/site-packages/click"))
    assert not any("gathering" in text for text in there.said)


def test_what_only_an_index_here_has_is_fetched_here(there, small, quick_index):
    small("0.0.1", requires="click>=8")
    there.python()
    there.environment = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
        "UV_OFFLINE": "1",
    }
    assert there.install() == "0.0.1"
    assert list(there.place.glob("env-0.0.1/lib/python*/site-packages/click"))
    assert any(re.search(r"sending 1 wheel, .* fetched by (pip|uv)", text) for text in there.said)


def test_an_upgrade_keeps_the_environment_before_and_takes_away_what_is_older_or_half(there, small, no_index):
    for version in ["0.0.1", "0.0.2", "0.0.3"]:
        small(version)
        (there.place / "env-0.0.9").mkdir(parents=True)
        (there.place / ".install-killed").mkdir()
        assert there.install() == version
        assert there.version() == f"remoter {version}"
        assert not (there.place / ".install-killed").exists()
    assert there.content() == ["bin", "env-0.0.2", "env-0.0.3", "bin/remoter"]


def test_an_environment_stays_as_long_as_a_session_runs_from_it(there, small, no_index):
    for version in ["0.0.1", "0.0.2", "0.0.3", "0.0.4"]:
        small(version)
        there.install()
        if version == "0.0.1":
            python = there.place / "env-0.0.1/bin/python"
            running = subprocess.Popen([python, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
        if version == "0.0.2":  # a session on another machine that has the same home
            record = there.home / ".local/state/remoter/servers/far-main.json"
            record.parent.mkdir(parents=True)
            record.write_text('{"host": "far", "version": "0.0.2"}')
    assert there.content()[1:-1] == ["env-0.0.1", "env-0.0.2", "env-0.0.3", "env-0.0.4"]
    running.communicate(b"\n", timeout=30)
    record.unlink()
    small("0.0.5")
    there.install()
    assert there.content()[1:-1] == ["env-0.0.4", "env-0.0.5"]


def test_a_newer_one_stays(there, small, no_index):
    before = old_one(there, small)
    small("0.0.1rc2")
    assert there.install() == "0.0.1"
    assert there.said[1:] == [
        f"remoter 0.0.1 is on big, newer than the 0.0.1rc2 here, and stays: {there.link}"
    ]
    assert there.content() == before


def test_versions_are_told_apart_by_age():
    versions = ["1.10", "1.2", "1.0.post1", "1.0", "1.0rc2", "1.0rc1", "1.0.dev3", "0.9"]
    assert sorted(versions, key=_installer.rank, reverse=True) == versions
    assert _installer.rank("1.0rc1") < _installer.rank("1.0rc2") < _installer.rank("1.0")
    assert _installer.rank("1.0+local") == _installer.rank("1")
    assert _installer.rank("what?") < _installer.rank("0.0.1")


def test_one_that_does_not_answer_is_replaced_by_the_same_version(there, small, no_index):
    small("0.0.1")
    there.install()
    shutil.rmtree(next(there.place.glob("env-0.0.1/lib/python*/site-packages/remoter")))
    assert there.install() == "0.0.1"
    assert there.version() == "remoter 0.0.1"
    assert os.readlink(there.link) == "../env-0.0.1-2/bin/remoter"


def test_two_at_once_make_one_environment(there, small, no_index):
    small("0.0.1")
    found = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda: found.put(there.install())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found.get(timeout=1), found.get(timeout=1)] == ["0.0.1", "0.0.1"]
    assert there.content() == ["bin", "env-0.0.1", "bin/remoter"]
    assert sorted(text.split()[0] for text in there.said if str(there.link) in text) == [
        "installed",
        "remoter",
    ]


def test_the_prelude_comes_first_and_may_bring_the_python(there, small, no_index, home, bare):
    small("0.0.1")
    modules = home / 'it\'s a "module"'
    modules.mkdir()
    there.python(bare).rename(modules / "python3")
    program(there.programs / "python3", "echo 3.6.8 /usr/bin/python3")
    path = str(modules).replace('"', '\\"')
    assert there.install(prelude=f'echo loading; PATH="{path}:$PATH"') == "0.0.1"


# --- failures --------------------------------------------------------------------------------


def old_one(there, small):
    """Version 0.0.1 is there."""
    small("0.0.1")
    there.install()
    there.said.clear()
    return there.content()


@pytest.mark.parametrize("moment", ["creating", "unpacking", "looking"])
def test_giving_up_half_way_leaves_the_old_one_and_nothing_else(there, small, no_index, moment):
    before = old_one(there, small)
    small("0.0.2", behaviour="time.sleep(60)")  # it is not done before we have given up

    def give_up(text):
        if moment in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        there.install(give_up)
    assert there.content() == before
    assert there.version() == "remoter 0.0.1"


def test_a_client_that_was_killed_leaves_the_old_one_and_nothing_else(there, small, no_index):
    before = old_one(there, small)
    small("0.0.2", behaviour="time.sleep(60)")  # it is not done before it is cut

    def cut(text):
        if "looking" in text:
            os.killpg(there.processes[-1].pid, signal.SIGHUP)  # as sshd does, or the end of our input

    with pytest.raises(ConnectError) as caught:
        there.install(cut)
    assert caught.value.id == "install"
    wait_for(lambda: there.content() == before, what="all is as before")
    assert there.version() == "remoter 0.0.1"


def test_a_program_that_does_not_run_is_never_linked_and_nothing_is_left(there, small, no_index):
    small("0.0.1", behaviour="raise OSError('libsodium.so is missing')")
    with pytest.raises(RemoterError, match="could not be installed on big") as caught:
        there.install()
    assert caught.value.id == "install"
    assert [path.name for path in there.home.iterdir()] == [".profile"]


def test_a_full_disk_is_named_and_nothing_is_left(there, small, no_index):
    small("0.0.1", size=100_000)
    with pytest.raises(RemoterError, match="could not be installed on big") as caught:
        there.install(prelude="ulimit -f 100")
    assert "File too large" in caught.value.cause
    assert [path.name for path in there.home.iterdir()] == [".profile"]


def test_what_cannot_be_had_anywhere_is_named_with_both_reasons(there, small, no_index):
    there.python()
    small("0.0.1", requires="no-such-thing-anywhere>=7")
    with pytest.raises(RemoterError, match="what remoter needs cannot be had on big") as caught:
        there.install()
    assert "there: " in caught.value.cause
    assert "here: " in caught.value.cause
    assert [path.name for path in there.home.iterdir()] == [".profile"]


def test_no_answer_in_time_names_the_step(there, small, no_index, monkeypatch):
    small("0.0.1", behaviour="time.sleep(60)")
    skipped = [0.0]

    def skip(text):
        if "looking" in text:  # by now there may be a second left; slow machines take their time to come here
            skipped.append(_install.TIME - 1)

    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + sum(skipped))
    monkeypatch.setattr(_install, "time", clock)
    with pytest.raises(RemoterError, match="within 300 s") as caught:
        there.install(skip)
    assert (caught.value.id, caught.value.cause) == ("timeout", "the last step was: looking whether it runs")
    assert [path.name for path in there.home.iterdir()] == [".profile"]


@pytest.mark.parametrize("version", ["3.7.16", "2.7.18", ""])
def test_a_python_too_old_is_named_with_what_to_do(there, version):
    if version:
        program(
            there.programs / "python3",
            f'[ "$1" = -V ] && echo "Python {version}" || echo "{version} /opt/python3"',
        )
    with pytest.raises(RemoterError, match=r"no Python 3\.11 or newer on big") as caught:
        there.install()
    assert caught.value.id == "no-python"
    assert caught.value.cause == (
        f"/opt/python3 is {version}" if version else "there is no `python3` on PATH"
    )
    assert any("module load" in hint for hint in caught.value.hints)
    assert [path.name for path in there.home.iterdir()] == [".profile"]


def test_uv_is_asked_for_a_python_where_there_is_none(there, small, no_index, bare):
    small("0.0.1")
    (there.programs / "python3").unlink()
    program(
        there.programs / "uv",
        'case "$*" in\n'
        "--version) ;;\n"
        '"python install 3.12") mkdir -p "$UV_PYTHON_INSTALL_DIR/cpython" ;;\n'
        f"\"python find --python-preference only-managed 3.12\") echo '{bare}' ;;\n"
        "*) echo no such thing; exit 2 ;;\n"
        "esac",
    )
    assert there.install() == "0.0.1"
    assert there.content() == ["bin", "env-0.0.1", "python", "bin/remoter"]


def test_a_python_that_uv_cannot_fetch_leaves_nothing(there):
    script = (
        '[ "$1" = --version ] && exit\nmkdir -p "$UV_PYTHON_INSTALL_DIR/x"\necho "error: dns error"; exit 2'
    )
    program(there.programs / "uv", script)
    with pytest.raises(RemoterError, match="no Python") as caught:
        there.install()
    assert caught.value.cause == "uv: dns error"
    assert [path.name for path in there.home.iterdir()] == [".profile"]


def test_a_prelude_that_fails_is_told_as_such(there):
    there.python()
    with pytest.raises(ConnectError, match="the prelude failed on big") as caught:
        there.install(prelude="echo no such module; false")
    assert (caught.value.id, caught.value.cause) == ("prelude", "no such module")


def test_an_end_of_ssh_before_the_script_is_explained_by_its_own_words(there):
    def start(script):
        process = subprocess.Popen(
            ["/bin/sh", "-c", "echo Permission denied >&2; exit 255"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        there.processes.append(process)
        return process

    seen = []

    def explain(said, code):
        seen.append((said, code))
        return ConnectError("as explained")

    with pytest.raises(ConnectError, match="as explained"):
        _install.install(start, print, host="big", prelude=None, explain=explain)
    assert seen == [("Permission denied", 255)]


def test_without_install_the_error_names_the_three_ways():
    error = _install.missing("/usr/bin/python3 3.11.2", "big", "ssh://ana@big")
    shown = render(error)
    assert isinstance(error, ConnectError)
    for part in [
        "[no-remoter]",
        "python3 3.11.2",
        "remoter client ssh://ana@big --install",
        "as you did here",
        "--prelude",
    ]:
        assert part in shown
    assert "uv tool install" not in shown  # no index may have it
    assert "nor is there a `python3`" in render(_install.missing(None, "big", "ssh://big"))


# --- a far end that says anything ------------------------------------------------------------

EVIL = "\x1b]0;pwn\x07\x1b[2J"
OWN = "ask-own {}"


def answer(lines, there, monkeypatch):
    """What comes of a dialogue with a far end that says these lines."""
    nonces = []
    monkeypatch.setattr(_install.secrets, "token_hex", lambda count: nonces.append("n") or "n")
    monkeypatch.setattr(
        _install, "pack_own", lambda into: Path(shutil.copy(__file__, into / "remoter-1-py3-none-any.whl"))
    )
    monkeypatch.setattr(_install, "gather", lambda own, far, into, until: "packed")
    text = b"".join(line if isinstance(line, bytes) else f"remoter:n {line}\n".encode() for line in lines)

    said = there.home / "said"
    said.write_bytes(text)

    def start(script):
        process = subprocess.Popen(
            ["/bin/cat", said], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        there.processes.append(process)
        return process

    return _install.install(start, there.said.append, host="big", prelude=None)


@pytest.mark.parametrize(
    "lines",
    [
        [OWN, "ask-all {bad"],
        ["ask-all {}", OWN],
        [OWN, OWN],
        [OWN, "ask-all " + "[" * 60_000],
        [OWN, 'ask-all {"environment": {}, "system": "Linux", "machine": "x86_64"}'],
        [OWN, 'ask-all {"environment": {"python_version": "3.12"}, "system": "", "machine": "-r /etc/x"}'],
        ["step " + "x" * 200_000],
        [b"remoter:n step " + b"x" * 200_000],
        ["raw", b"x" * 200_000],
        [],
    ],
    ids=lambda lines: str(lines)[:40],
)
def test_what_is_not_understood_ends_in_an_error(there, monkeypatch, lines):
    with pytest.raises(ConnectError) as caught:
        answer(["hello Linux x big", *lines], there, monkeypatch)
    assert caught.value.id == "install"
    assert render(caught.value).replace("\n", "").isprintable()
    assert len(render(caught.value)) < 1000


def test_any_line_in_any_order_ends_in_a_word_or_an_error(there, monkeypatch):
    fine = 'ask-all {"environment": {"python_version": "3.12"}, "system": "Linux", "machine": "x86_64"}'
    words = [
        OWN,
        fine,
        "ask-all",
        "ask-own",
        "end",
        "failed",
        "failed python 1",
        "failed prelude",
        "have",
        "old",
    ]
    words += [
        "installed /x",
        "newer",
        f"said {EVIL}",
        f"step {EVIL}",
        f"old {EVIL}",
        f"failed {EVIL}",
        "",
        "?",
    ]
    words += [b"\xff\n", b"remoter:n said \xff\n", f"installed {EVIL}", f"newer {EVIL} {EVIL}", f"{EVIL} x"]
    chance = random.Random(7)
    for _ in range(40):
        there.said.clear()
        try:
            answer(chance.choices(words, k=chance.randrange(1, 7)), there, monkeypatch)
        except RemoterError as error:
            there.said.append(render(error).replace("\n", ""))
        assert all(text.isprintable() for text in there.said), there.said


def test_who_waits_long_is_told_how_it_goes(there, small, no_index, home, monkeypatch):
    told = home / "told"
    small("0.0.1", behaviour=f"while not __import__('os').path.exists({str(told)!r}): time.sleep(0.05)")
    monkeypatch.setattr(_install, "WAITING", 0.2)

    def hear(text):
        if re.search(r"looking whether it runs, for \d+(\.\d)? m?s now", text):
            told.touch()

    there.install(hear)
    assert told.exists()


# --- wheels and requirements -----------------------------------------------------------------


def test_our_own_wheel_is_always_the_same_and_says_what_is_in_it(home):
    wheels = []
    for name in ["one", "two"]:
        (home / name).mkdir()
        wheels.append(_wheels.pack_own(home / name))
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    assert wheels[0].name == f"remoter-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheels[0]) as archive:
        names = archive.namelist()
        record = archive.read(f"remoter-{__version__}.dist-info/RECORD").decode().splitlines()
        metadata = archive.read(f"remoter-{__version__}.dist-info/METADATA").decode()
    assert sorted(line.split(",")[0] for line in record) == sorted(names)
    assert {"remoter/__main__.py", "remoter/install.sh", "remoter/_workers/python_worker.py"} <= set(names)
    assert not [name for name in names if name.endswith(".pyc")]
    assert f"\nVersion: {__version__}\n" in metadata
    assert "Requires-Dist: pyzmq" in metadata


FAR = {
    "implementation_name": "cpython", "implementation_version": "3.12.1", "os_name": "posix",
    "platform_machine": "x86_64", "platform_python_implementation": "CPython", "platform_release": "6.1",
    "platform_system": "Linux", "platform_version": "1", "python_full_version": "3.12.1",
    "python_version": "3.12", "sys_platform": "linux",
}  # fmt: skip


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ('python_version < "3.12"', False),
        ('python_version >= "3.9"', True),
        ("python_full_version < '3.11.0a6'", False),
        ('"linux" in sys_platform and not_a_word == "x"', True),  # not understood: rather one too many
        ('sys_platform == "win32" or (extra == "test" and os_name != "nt")', True),
        ('extra == "docs"', False),
        ('sys_platform not in "win32 cygwin"', True),
        ('python_version ~= "3.11"', True),
    ],
)
def test_markers_are_those_of_the_other_side(marker, expected):
    assert _requirements.evaluate(marker, {**FAR, "extra": "test"}) is expected


def test_markers_mean_what_they_mean_to_others(home):
    markers = pytest.importorskip("packaging.markers")
    from importlib.metadata import distributions

    texts = {need.partition(";")[2].strip() for found in distributions() for need in found.requires or []} - {
        ""
    }
    assert texts
    for text, extra, version in itertools.product(texts, ["", "test"], ["3.11.2", "3.13.0"]):
        environment = {**FAR, "extra": extra, "python_version": version[:-2], "python_full_version": version}
        assert _requirements.evaluate(text, environment) == markers.Marker(text).evaluate(environment), text


def test_what_is_needed_is_followed_through_extras_and_what_is_missing_is_named():
    known = {
        "a": ["b[fast] >=2", 'c; python_version < "3"'],
        "b": ['D_x>1; extra == "fast"', 'e; extra == "slow"'],
    }
    assert _requirements.follow(["a"], known.get, FAR) == (["a", "b"], ["D_x>1"])


@pytest.mark.parametrize(
    ("system", "machine", "libc", "release", "has", "has_not"),
    [
        ("Linux", "x86_64", "glibc", "2.17", "manylinux2014_x86_64", "manylinux_2_18_x86_64"),
        ("Linux", "aarch64", "glibc", "2.36", "manylinux_2_36_aarch64", "manylinux_2_37_aarch64"),
        ("Linux", "x86_64", "musl", "", "musllinux_1_2_x86_64", "manylinux_2_17_x86_64"),
        ("Darwin", "arm64", "", "14.4.1", "macosx_14_0_arm64", "linux_arm64"),
    ],
)
def test_platforms_are_those_that_run_there(system, machine, libc, release, has, has_not):
    far = _wheels.Far(environment=FAR, system=system, machine=machine, libc=libc, release=release)
    found = _wheels.platforms(far)
    assert has in found
    assert has_not not in found


def test_words_of_failed_programs_hold_no_password():
    said = [
        "Looking in indexes: https://ana:secret@host/simple",
        "ERROR: cannot fetch https://ana:secret@host/x",
    ]
    assert _wheels.last_words(said) == "cannot fetch https://host/x"
