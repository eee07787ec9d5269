"""A home and a runtime directory of its own for every test; sessions that end with it; nothing is left behind."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from . import sshd
from .sshd import ssh_host, ssh_keys
from .waiting import is_alive, wait_for

__all__ = ["home", "is_alive", "serve", "served", "session", "ssh_host", "ssh_keys", "wait_for"]

DIRECTORIES = ["CONFIG", "STATE", "RUNTIME", "JOURNAL"]

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
        deadline = time.monotonic() + 8
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
