"""Another machine to reach by ssh: a private sshd on the loopback, with a home, directories and a network of its own.

    def test_something(ssh_host):
        there = ssh_host()  # `ssh there` works now, for whatever finds `ssh` on PATH
        assert there.ssh("echo", "$HOME").stdout == f"{there.home}\\n"
        remoter.connect(there.address)

Here: one client configuration for all hosts of a test, and a program `ssh`, first on PATH, that
uses it. There: `Host.root/...`, which every process of the other side has in its environment, so
that what survives a test is found. All that was started is ended by pid, and nothing of the
machine's own configuration is read or written.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from .processes import (
    carries,
    descendants,
    describe,
    end,
    processes_of,
    read_of,
    survivors,
    words_of,
)
from .proxy import Proxy
from .waiting import is_alive, wait_for

LOOPBACK = "127.0.0.1"
SYSTEM_PATH = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
TO_CHECK: set[Path] = set()  # roots of tests below which no process may be left

SSHD_CONFIG = """
ListenAddress {address}
HostKey {root}/host_key
AuthorizedKeysFile {root}/authorized_keys
PidFile none
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
PermitRootLogin yes
PubkeyAuthentication {by_key}
PasswordAuthentication {by_password}
KbdInteractiveAuthentication no
AllowTcpForwarding {forwarding}
AllowStreamLocalForwarding {forwarding}
AllowAgentForwarding no
X11Forwarding no
KexAlgorithms curve25519-sha256
SetEnv HOME={root}/nobody
ForceCommand exec /bin/sh {root}/login
"""

# What sshd starts in place of the login shell, which only the system's user database could name.
# sshd itself starts it by the user's real shell, whose home is empty: rc files there are read once.
LOGIN = """
{variables}
unset SHLVL OLDPWD
cd "$HOME" || exit
if [ -z "${{SSH_ORIGINAL_COMMAND+set}}" ]; then exec {shell} -l; fi
exec {shell} -c "$SSH_ORIGINAL_COMMAND"
"""

CLIENT_CONFIG = """
Host {name}
HostName {address}
Port {port}
User {user}
IdentityFile {identity}
IdentitiesOnly yes
IdentityAgent none
UserKnownHostsFile {known_hosts}
GlobalKnownHostsFile /dev/null
UpdateHostKeys no
ProxyJump {jump}
"""

# For every host. Newer clients warn of the key exchange that is used here for its speed.
COMMON_CONFIG = """
Host *
IgnoreUnknown WarnWeakCrypto
WarnWeakCrypto no
"""


# --- programs and keys -----------------------------------------------------------------------


def find_program(name: str, package: str) -> str:
    """The program's path; the test is skipped where it is missing."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *SYSTEM_PATH]))
    if not found:
        pytest.skip(f"no `{name}` on this machine: install {package}")
    return found


@contextlib.contextmanager
def sshd_directory() -> Iterator[None]:
    """The empty directory that root's sshd wants, while tests of any process need it.

    It is removed by the last of those who share its lock. Its mode says that tests made it.
    """
    directory, ours = Path("/run/sshd"), 0o700
    if os.geteuid() != 0:
        yield
        return
    while True:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(ours)
        try:
            lock = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if directory.stat().st_ino == os.fstat(lock).st_ino:
                break
        os.close(lock)  # removed between our steps
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_mode & 0o777 == ours:
                directory.rmdir()
        os.close(lock)


@pytest.fixture(scope="session")
def ssh_keys() -> Iterator[Path]:
    """A directory with key pairs: `host`, `other_host`, `mine`; and `mine-PASSPHRASE` as they are asked for."""
    skip_unless_possible()
    directory = Path(tempfile.mkdtemp(prefix="rmt-keys-", dir="/tmp"))
    try:
        for name in ("host", "other_host", "mine"):
            make_key(directory / name)
        with sshd_directory():
            yield directory
    finally:
        shutil.rmtree(directory)


def make_key(path: Path, *, from_key: Path | None = None, passphrase: str = "") -> Path:
    """A new key pair, or another's encrypted with the passphrase, which tests may show to the whole machine."""
    if not path.exists():
        if from_key:
            shutil.copy(from_key, path)
            words = ["-p", "-P", "", "-N", passphrase, "-a", "1"]
        else:
            words = ["-t", "ed25519", "-N", passphrase, "-C", path.name]
        subprocess.run(["ssh-keygen", "-q", *words, "-f", path], check=True, stdout=subprocess.DEVNULL)
    return path


# --- one host --------------------------------------------------------------------------------


class Wire(Proxy):
    """A network that delays no packets and no acknowledgements: else ssh waits 40 ms at each step."""

    def _accept(self) -> None:
        super()._accept()
        with self.lock:
            for each in self.pairs:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _pass_on(self, end: socket.socket) -> None:
        super()._pass_on(end)
        if hasattr(socket, "TCP_QUICKACK"):  # holds for what was just read only
            with contextlib.suppress(OSError):  # it has ended
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What kind of host.

    Args:
        shell: the login shell there, by name or path (skips where it is missing); or, if there is
            white space in it, a script for sh that plays one and is given `-c COMMAND`.
        remoter: whether `remoter` is on PATH there; if not, python3 there does not have it either.
        forwarding: whether sshd forwards ports and sockets.
        jump: the host through which alone the client goes to this one.
        environment: more variables there.
        accept_key: what the client's known hosts say of the host's key.
        auth: key; none: every key is refused; password: ssh asks for one, and all are wrong.
        passphrase: encrypts the client's key: ssh asks for it.
        max_startups, max_sessions: as in sshd_config.
        extra: lines for sshd_config, which win over ours.
    """

    shell: str | Path | None = None
    remoter: bool = True
    forwarding: bool = True
    jump: Host | None = None
    environment: dict[str, str] | None = None
    accept_key: Literal["known", "unknown", "changed"] = "known"
    auth: Literal["key", "none", "password"] = "key"
    passphrase: str = ""
    max_startups: str | int = "10:30:100"
    max_sessions: int = 10
    extra: str = ""


class Host:
    """One machine that ssh reaches."""

    def __init__(self, network: Network, name: str, options: Options) -> None:
        self.network, self.name, self.address = network, name, f"ssh://{name}"
        self.root = network.root / name
        self.home, self.tmp = self.root / "home", self.root / "tmp"
        self.configuration, self.state = self.root / "config", self.root / "state"
        self.runtime, self.journal = self.root / "run", self.root / "journal"
        self.log_file = self.root / "sshd.log"
        for directory in (self.home, self.tmp, self.root / "nobody", self.root / "bin"):
            directory.mkdir(parents=True)
        self._write_login(options)
        self._write_sshd_config(options)
        identity, known_key = self._choose_keys(options)
        self.port = 0
        self.start()
        self.proxy = Wire((LOOPBACK, self.port))
        self._write_client_config(options, identity, known_key)

    # What is there.

    def _write_login(self, options: Options) -> None:
        shell = options.shell
        if isinstance(shell, str) and re.search(r"\s", shell):
            script = self.root / "shell"
            script.write_text(shell)
            program, words = "/bin/sh", f"/bin/sh {script}"
        else:
            name = str(shell or ("bash" if shutil.which("bash") else "sh"))
            words = program = find_program(name, name)
        directories = [str(self.root / "bin"), *SYSTEM_PATH]
        if options.remoter:
            directories.insert(1, str(Path(sys.executable).parent))
        else:
            make_other_python(self.root / "python")
            (self.root / "bin" / "python3").symlink_to(self.root / "python" / "bin" / "python3")
            directories = [each for each in directories if not (Path(each) / "remoter").exists()]
        variables = {
            "HOME": self.home,
            "SHELL": program,
            "TMPDIR": self.tmp,
            "PATH": os.pathsep.join(directories),
            "REMOTER_CONFIG_DIR": self.configuration,
            "REMOTER_STATE_DIR": self.state,
            "REMOTER_RUNTIME_DIR": self.runtime,
            "REMOTER_JOURNAL_DIR": self.journal,
            **(options.environment or {}),
        }
        lines = [f"{key}={shlex.quote(str(value))}; export {key}" for key, value in variables.items()]
        (self.root / "login").write_text(LOGIN.format(variables="\n".join(lines), shell=words))
        # /etc/profile sets PATH anew in login shells.
        for profile in (".profile", ".zprofile"):
            (self.home / profile).write_text(f"PATH={shlex.quote(str(variables['PATH']))}; export PATH\n")

    def _write_sshd_config(self, options: Options) -> None:
        config = SSHD_CONFIG.format(
            root=self.root,
            address=LOOPBACK,
            by_key="no" if options.auth == "password" else "yes",
            by_password="yes" if options.auth == "password" else "no",
            forwarding="yes" if options.forwarding else "no",
        )
        limits = f"MaxStartups {options.max_startups}\nMaxSessions {options.max_sessions}\n"
        # Of each kind the first line counts.
        (self.root / "sshd_config").write_text(f"{options.extra}\n{limits}{config}")

    # The sshd.

    def start(self) -> None:
        """Start sshd, again after `stop` on the same port."""
        program = find_program("sshd", "openssh-server")
        wanted = self.port
        for _ in range(10):
            self.port = wanted or free_port()
            words = ["-D", "-e", "-f", str(self.root / "sshd_config"), "-p", str(self.port)]
            with self.log_file.open("wb") as log:
                self.process = subprocess.Popen(
                    [program, *words, "-o", "LogLevel=VERBOSE"],
                    env={"PATH": os.pathsep.join(SYSTEM_PATH)},
                    cwd=self.root,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            wait_for(
                lambda: "listening on" in self.log or self.process.poll() is not None, what="sshd listens"
            )
            if self.process.poll() is None:
                return
            if "Address already in use" not in self.log:
                break
        raise AssertionError(f"sshd does not start: {self.log}")

    def stop(self) -> None:
        """End sshd and all its connections: as if the machine's sshd had been stopped."""
        children = self.connections
        self.process.terminate()
        self.process.wait(30)
        end(children)

    @property
    def log(self) -> str:
        """What sshd said."""
        return self.log_file.read_text(errors="replace")

    @property
    def connections(self) -> list[int]:
        """sshd's own processes, without the one that listens."""
        return [
            pid
            for pid in descendants(self.process.pid)
            if read_of(pid, "comm").startswith(b"sshd") and is_alive(pid)
        ]

    def processes(self) -> list[int]:
        """What runs on the other side, sshd left out."""
        return processes_of(self.root, "environ")

    def players(self) -> list[int]:
        """Scripts that still play the login shell, and what they started: that these hang is a test's wish."""
        players = [pid for pid in self.processes() if carries(pid, self.root / "shell", "cmdline")]
        return [*players, *(child for pid in players for child in descendants(pid))]

    def records(self) -> list[dict]:
        """The connection files of the sessions there."""
        found = []
        for path in sorted((self.state / "servers").glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
        return found

    def end_sessions(self) -> list[int]:
        """End the sessions there; the processes that did not end by themselves are returned."""
        keepers = [record["pid"] for record in self.records()]
        keepers = [pid for pid in keepers if carries(pid, self.root, "environ")]
        return end(keepers, patience=30.0)

    # The network between.

    def cut(self, refuse: bool = False) -> None:
        """Break all connections; `refuse`: new ones too, until `mend`."""
        self.proxy.cut(refuse)

    def mend(self) -> None:
        self.proxy.mend()

    def freeze(self) -> None:
        """A black hole, until `thaw`."""
        self.proxy.freeze()

    def thaw(self) -> None:
        self.proxy.thaw()

    # What is here.

    def _choose_keys(self, options: Options) -> tuple[Path, str]:
        """The client's key, and what it believes the host's to be."""
        keys = self.network.keys
        shutil.copy(keys / "host", self.root / "host_key")
        admitted = "" if options.auth == "none" else (keys / "mine.pub").read_text()
        (self.root / "authorized_keys").write_text(admitted)
        mine = keys / "mine"
        if options.passphrase:
            mine = make_key(keys / f"mine-{options.passphrase}", from_key=mine, passphrase=options.passphrase)
        known = {"known": "host.pub", "changed": "other_host.pub", "unknown": None}[options.accept_key]
        return mine, (keys / known).read_text() if known else ""

    def _write_client_config(self, options: Options, identity: Path, known_key: str) -> None:
        known_hosts = self.network.directory / f"known-{self.name}"
        if known_key:
            known_hosts.write_text(f"[{LOOPBACK}]:{self.proxy.port} {known_key}")
        self.config(
            CLIENT_CONFIG.format(
                name=self.name,
                address=LOOPBACK,
                port=self.proxy.port,
                user=getpass.getuser(),
                identity=identity,
                known_hosts=known_hosts,
                jump=options.jump.name if options.jump else "none",
            )
        )

    def config(self, text: str) -> None:
        """Put this before all that the client configuration says of this host, so that it wins."""
        path = self.network.config_path
        path.write_text(f"Host {self.name}\n{text}\n{path.read_text()}")

    def ssh(self, *words: str, **options) -> subprocess.CompletedProcess:
        """`ssh HOST WORDS`, which nobody answers."""
        options = {"capture_output": True, "text": True, "timeout": 60, **options}
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(["ssh", "-o", "BatchMode=yes", self.name, *words], **options)

    def clients(self) -> list[int]:
        """All ssh programs here that were started for this host."""
        return [pid for pid in self.network.clients() if self.name in map(host_of, words_of(pid))]

    def masters(self) -> list[int]:
        """Those of them that hold a connection of their own, and not another's."""
        return [pid for pid in self.clients() if not borrows(words_of(pid))]

    def kill_masters(self, kind: int = signal.SIGKILL) -> list[int]:
        masters = self.masters()
        end(masters, kind=kind)
        return masters

    kill_clients = kill_masters


def host_of(word: str) -> str:
    """`there` of `ana@there` and `ssh://ana@there`."""
    return word.removeprefix("ssh://").rpartition("@")[2]


def borrows(words: list[str]) -> bool:
    """Whether this ssh goes through the connection of another."""
    text = " ".join(words).lower().replace("=", " ")
    is_master = "-M" in words or re.search(r"controlmaster (yes|auto)", text)
    return "-O" in words or (not is_master and ("-S" in words or "controlpath" in text))


def make_other_python(directory: Path) -> None:
    """An environment of our Python in which nothing is installed."""
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python3").symlink_to(base)
    (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return listener.getsockname()[1]


# --- all hosts of a test ---------------------------------------------------------------------


class Network:
    """Makes hosts, and ends them all."""

    def __init__(self, root: Path, keys: Path) -> None:
        self.root, self.keys = root, keys
        self.directory = root / "ssh"
        self.config_path = self.directory / "config"
        self.hosts: list[Host] = []
        (self.directory / "bin").mkdir(parents=True)
        self.config_path.write_text(COMMON_CONFIG)
        self.program = self.directory / "bin" / "ssh"
        real = find_program("ssh", "openssh-client")
        self.program.write_text(f'#!/bin/sh\nexec {real} -F {self.config_path} "$@"\n')
        self.program.chmod(0o755)

    def __call__(self, name: str = "there", **options: Any) -> Host:
        """A new host with this alias; see `Options`."""
        self.hosts.append(Host(self, name, Options(**options)))
        return self.hosts[-1]

    def clients(self) -> list[int]:
        """All ssh programs here that use our configuration."""
        return [
            pid for pid in processes_of(self.config_path, "cmdline") if read_of(pid, "comm").strip() == b"ssh"
        ]

    def close(self, patience: float = 20.0) -> list[str]:
        """End all; what should have ended by itself is returned in words."""
        for host in self.hosts:
            host.mend()
            host.thaw()
        clients = survivors(self.clients(), patience)
        complaints = [f"ssh client that nobody ended: {describe(pid)}" for pid in clients]
        end(clients)
        for host in reversed(self.hosts):
            end(host.players())
            complaints += [f"keeper at {host.name} that did not end: {pid}" for pid in host.end_sessions()]
            left = survivors(host.processes(), patience)
            complaints += [f"left at {host.name}: {describe(pid)}" for pid in left]
            end(left)
            host.stop()
            host.proxy.close()
        return complaints


def skip_unless_possible() -> None:
    """Whether an sshd of our own can let us in on this machine."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("no /proc on this machine, where the tests look for what an ssh host left behind")
    for program, package in [("ssh", "openssh-client"), ("sshd", "openssh-server")]:
        find_program(program, package)
    if os.geteuid() == 0 and re.search(r"^root:!", Path("/etc/shadow").read_text(), re.MULTILINE):
        pytest.skip("root is locked on this machine: sshd lets nobody in")


@pytest.fixture
def ssh_host(home, ssh_keys, monkeypatch) -> Iterator[Callable[..., Host]]:
    """Makes hosts for `ssh`; see `Options`."""
    skip_unless_possible()
    network = Network(home, ssh_keys)
    monkeypatch.setenv("PATH", f"{network.program.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("SSH_AUTH_SOCK", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "DISPLAY", "REMOTER_SSH"):
        monkeypatch.delenv(name, raising=False)
    TO_CHECK.add(home)
    yield network
    complaints = network.close()
    assert not complaints, "\n".join(complaints)


def sockets_below(root: Path) -> list[str]:
    """The unix sockets whose path is in that directory."""
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    return [path for path in {line.split()[-1] for line in lines} if path.startswith(f"{root}/")]


def check_nothing_left(root: Path, patience: float = 20.0) -> None:
    """At the very end of a test that had hosts: nothing that it started runs, and no socket is listened on."""
    if root not in TO_CHECK:
        return
    TO_CHECK.remove(root)
    left = survivors(processes_of(root, "environ", "cmdline"), patience)
    complaints = [f"still runs: {describe(pid)}" for pid in left]
    end(left)
    try:
        wait_for(lambda: not sockets_below(root), patience, "the sockets are closed")
    except AssertionError:
        complaints += [f"still listened on: {path}" for path in sockets_below(root)]
    assert not complaints, "\n".join(complaints)
