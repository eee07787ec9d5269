"""A home and a runtime directory of its own for every test; sessions that end with it; nothing is left behind."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from . import sshd
from .sshd import ssh_host, ssh_keys
from .waiting import is_alive, wait_for

__all__ = ["home", "is_alive", "serve", "served", "session", "ssh_host", "ssh_keys", "wait_for"]

DIRECTORIES = ["CONFIG", "STATE", "RUNTIME", "JOURNAL"]
NEEDS_R = "needs R"
"""How the reason begins why a test was skipped that has no R."""

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# A shell starts what runs in the background with Ctrl-C ignored, and so would be all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def base(tmp_path_factory):
    """pytest's own directory, made before a test's TMPDIR could have it made in that."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(autouse=True)
def home(base, monkeypatch):
    """Directories of its own, with paths short enough for sockets."""
    root = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    monkeypatch.setenv("HOME", str(root / "home"))
    for name in ["home", "tmp"]:
        (root / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(root / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
    for name in DIRECTORIES:
        monkeypatch.setenv(f"REMOTER_{name}_DIR", str(root / name.lower()))
    for name in [
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "XDG_STATE_HOME",
        "NO_COLOR",
        "FORCE_COLOR",
        "REMOTER_PASSWORD",
    ]:
        monkeypatch.delenv(name, raising=False)
    yield root
    try:
        sshd.check_nothing_left(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


class Served:
    """A session that runs in processes of its own."""

    def __init__(self, **options):
        from remoter import _launcher

        options.setdefault("port", 0)
        self.ready, self.configuration = _launcher.start_session(**options)
        self.record = self.ready["record"]
        self.name = self.record["name"]
        self.port = self.record["port"]
        self.password = self.configuration["password"]
        self.keeper_pid = self.ready["keeper_pid"]
        self.server_pid = self.ready["server_pid"]
        self.worker_pid = self.ready["worker"]["pid"]
        self.directory = Path(self.record["directory"])
        self.journal = Path(self.record["journal"])

    @property
    def processes(self):
        """Keeper, server, worker, as first started."""
        return [self.keeper_pid, self.server_pid, self.worker_pid]

    def connect(self, **options):
        """A client over the unix socket."""
        import remoter

        return remoter.connect(self.name, **options)

    def connect_tcp(self, **options):
        """A client through the TCP port, with the connection file's keys."""
        import remoter

        return remoter.connect(f"127.0.0.1:{self.port}", **options)

    def stop(self):
        """End it, however it is by now."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.keeper_pid, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and any(is_alive(pid) for pid in self.processes):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.keeper_pid, os.WNOHANG)
            time.sleep(0.01)
        survivors = [pid for pid in self.processes if is_alive(pid)]
        for pid in survivors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.keeper_pid, 0)
        return survivors


@pytest.fixture
def serve():
    """Starts sessions; ends them after the test and checks that they ended."""
    sessions = []

    def start(**options):
        sessions.append(Served(**options))
        return sessions[-1]

    yield start
    survivors = [pid for session in sessions for pid in session.stop()]
    assert not survivors, f"processes {survivors} did not end by themselves"


@pytest.fixture
def served(serve):
    """One session, with the plain runner where that is enough."""
    return serve()


@pytest.fixture
def session(served):
    """A client of one session."""
    with served.connect() as connected:
        yield connected


# --- R ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def r_program():
    """The path of this machine's R; without one the test is skipped, and counted at the end."""
    program = shutil.which(os.environ.get("REMOTER_R") or "R")
    if program is None:
        pytest.skip(f"{NEEDS_R}, which is not on this machine (apt install r-base-core)")
    return program


def pytest_terminal_summary(terminalreporter):
    """Say how many tests were left out because there is no R."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", ())]
    count = sum(NEEDS_R in reason for reason in reasons)
    if count:
        terminalreporter.write_line(f"left out: {count} tests that need R (apt install r-base-core)")


@pytest.fixture
def r_served(r_program, serve):
    """An R session of its own, as `served` is a Python one: for tests that end it, or start it oddly."""
    return serve(lang="r", r=r_program)


@pytest.fixture(scope="module")
def r_shared(request, r_program):
    """One R session for a module; `@pytest.mark.parametrize("r_shared", [{"r_engine": "pipe"}], indirect=True)`."""
    shared = SharedR(r=r_program, **getattr(request, "param", {}))
    yield shared
    shared.close()


@pytest.fixture
def r_session(home, r_shared, monkeypatch):
    """A client of the module's R session, in which nothing is left of the test before: what most tests of R need."""
    with r_shared.connect(monkeypatch) as connected:
        yield connected


CLEAN = """local({
    while (sink.number() > 0L) sink()
    while (sink.number(type = "message") != 2L) sink(type = "message")
    if (length(grDevices::dev.list())) grDevices::graphics.off()
    first <- getOption("remoter.tests")
    if (is.null(first)) options(remoter.tests = list(options = options(), directory = getwd()))
    else {
        setwd(first$directory)
        new <- setdiff(names(options()), c(names(first$options), "remoter.tests"))
        options(structure(vector("list", length(new)), names = new))
        options(first$options)
    }
    rm(list = ls(globalenv(), all.names = TRUE), envir = globalenv())
})"""


class SharedR:
    """One R session, in directories of its own, for several tests; a new one when it did not survive a test."""

    def __init__(self, **options):
        self.options = options
        self.root = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
        (self.root / "home").mkdir()
        self.served = None

    def connect(self, monkeypatch, **options):
        """A client of it, clean; the test's own directories become those of the session."""
        for name in DIRECTORIES:
            monkeypatch.setenv(f"REMOTER_{name}_DIR", str(self.root / name.lower()))
        for is_last in (False, True):
            if self.served is None or not all(map(is_alive, self.served.processes)):
                self._start(monkeypatch)
            try:
                return self._clean(self.served.connect(**options))
            except Exception:  # whatever the last test did to it
                self._stop()
                if is_last:
                    raise
        return None

    def _clean(self, session):
        try:
            if session.info.busy:
                session.interrupt()
            session.run(CLEAN, quiet=True, timeout=30)
        except BaseException:
            session.close()
            raise
        return session

    def _start(self, monkeypatch):
        self._stop()
        with monkeypatch.context() as patch:
            patch.setenv("HOME", str(self.root / "home"))
            patch.setenv("TMPDIR", str(self.root))
            self.served = Served(lang="r", **self.options)

    def _stop(self):
        served, self.served = self.served, None
        return served.stop() if served is not None else []

    def close(self):
        """End it; checks that it ended by itself."""
        try:
            survivors = self._stop()
        finally:
            shutil.rmtree(self.root, ignore_errors=True)
        assert not survivors, f"processes {survivors} did not end by themselves"
