"""A machine to reach by ssh for the benchmarks: a private sshd on the loopback, as Debian's openssh-server is."""

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import free_port, wait_for_port

SSHD = """
HostKey {root}/host
AuthorizedKeysFile {root}/mine.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
ListenAddress 127.0.0.1
SetEnv {environment}
Subsystem sftp internal-sftp
"""

CLIENT = """
Host big
HostName 127.0.0.1
Port {port}
User {user}
IdentityFile {root}/mine
IdentitiesOnly yes
UserKnownHostsFile {root}/known
"""


class Machine:
    """sshd with directories of its own; `ssh` on PATH reaches it as `big`."""

    address = "ssh://big"

    def __init__(self):
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        self.stack = contextlib.ExitStack()
        self.root = Path(tempfile.mkdtemp(prefix="rmb-", dir="/tmp"))
        self.stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        for name in ("host", "mine"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.root / name], check=True
            )
        self.port = free_port()
        there = {
            f"REMOTER_{name}_DIR": f"{self.root}/{name.lower()}"
            for name in ("CONFIG", "STATE", "RUNTIME", "JOURNAL")
        }
        there["HOME"] = self.root / "home"
        there["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        (self.root / "home").mkdir()
        (self.root / "home" / ".profile").write_text(f"PATH={there['PATH']}\n")
        environment = " ".join(f"{key}={value}" for key, value in there.items())
        (self.root / "sshd").write_text(SSHD.format(root=self.root, environment=environment))
        (self.root / "ssh_config").write_text(
            CLIENT.format(root=self.root, port=self.port, user=getpass.getuser())
        )
        (self.root / "known").write_text(f"[127.0.0.1]:{self.port} {(self.root / 'host.pub').read_text()}")
        (self.root / "ssh").write_text(
            f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.root}/ssh_config "$@"\n'
        )
        (self.root / "ssh").chmod(0o755)
        os.environ["PATH"] = f"{self.root}:{os.environ['PATH']}"
        self.stack.callback(os.environ.__setitem__, "PATH", os.environ["PATH"].partition(":")[2])
        if os.geteuid() == 0 and not Path("/run/sshd").exists():  # root's sshd wants it, empty
            Path("/run/sshd").mkdir(mode=0o755)
            self.stack.callback(Path("/run/sshd").rmdir)
        server = subprocess.Popen([sshd, "-D", "-q", "-f", self.root / "sshd", "-p", str(self.port)])
        self.stack.callback(server.wait)
        self.stack.callback(server.terminate)
        self.pid = server.pid
        wait_for_port(self.port)

    def forward(self, port):
        """A plain `ssh -L` to that port there; the port here."""
        here = free_port()
        tunnel = subprocess.Popen(["ssh", "-N", "-L", f"127.0.0.1:{here}:127.0.0.1:{port}", "big"])
        self.stack.callback(tunnel.wait)
        self.stack.callback(tunnel.terminate)
        wait_for_port(here)
        return here

    def kill_master(self):
        """SIGKILL to the ssh that carries the sessions."""
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0") if entry.isdigit() else []
                if str(self.root / "ssh_config").encode() in words and b"-M" in words:
                    os.kill(int(entry), signal.SIGKILL)

    def close(self):
        subprocess.run(
            [sys.executable, "-m", "remoter", "stop", self.address, "--all"], capture_output=True, check=False
        )
        time.sleep(0.5)
        self.stack.close()
