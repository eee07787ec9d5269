"""Two machines and a cable between them: network namespaces, joined by a link that can be taken down."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from .conftest import wait_for

OUTAGE = 30.0
"""Seconds for which the cable is out: longer than every heartbeat."""

CLIENT = """
import sys, time, remoter
host, port, password = sys.argv[1:]
with remoter.connect(host, int(port), password, timeout=30) as session:
    session.run("lines = 0")
    run = session.submit("import time\\nfor i in range(400):\\n    print(i); time.sleep(0.1)")
    print("running", flush=True)
    assert sys.stdin.readline() == "down\\n"
    states = set()
    while session.info.link == "ok":
        time.sleep(0.1)
    print("lost", flush=True)
    typed = [session.submit(f"lines += {n}") for n in range(5)]
    assert [int(line) for line in run.wait(90).stdout.split()] == list(range(400))
    for each in typed:
        assert each.wait(30).status == "ok"
    assert session.run("lines").text == "10"
    assert session.info.link == "ok"
print("good", flush=True)
"""


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


@pytest.fixture
def machines():
    """Two namespaces, `(here, there)`, with the addresses 10.213.7.1 and 10.213.7.2."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip`: install iproute2")
    here, there = (f"rmt-{os.getpid()}-{end}" for end in "ab")
    if ip("netns", "add", here, check=False).returncode:
        pytest.skip("cannot make network namespaces here")
    try:
        ip("netns", "add", there)
        ip("link", "add", "rmta", "netns", here, "type", "veth", "peer", "name", "rmtb", "netns", there)
        for namespace, end, address in ((here, "rmta", "10.213.7.1"), (there, "rmtb", "10.213.7.2")):
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", namespace, "link", "set", end, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        yield here, there
    finally:
        ip("netns", "del", here, check=False)
        ip("netns", "del", there, check=False)


def environment(home, name):
    """Each machine has a home of its own."""
    variables = {
        f"REMOTER_{each}_DIR": str(home / name / each.lower())
        for each in ["CONFIG", "STATE", "RUNTIME", "JOURNAL"]
    }
    (home / name).mkdir(exist_ok=True)
    return {**os.environ, **variables}


@pytest.mark.timeout(150)
def test_a_cable_pulled_for_thirty_seconds_loses_nothing(machines, home):
    here, there = machines
    on = lambda namespace, *argv: ["ip", "netns", "exec", namespace, sys.executable, *argv]  # noqa: E731
    with ExitStack() as stack:
        started = subprocess.run(
            on(
                there,
                "-m",
                "remoter",
                "server",
                "--background",
                "--json",
                "--listen",
                "10.213.7.2",
                "--runner",
                "plain",
            ),
            env=environment(home, "there"),
            capture_output=True,
            text=True,
            check=True,
        )
        stack.callback(
            subprocess.run,
            on(there, "-m", "remoter", "stop"),
            env=environment(home, "there"),
            capture_output=True,
            check=True,
        )
        ready = json.loads(started.stdout)
        client = stack.enter_context(
            subprocess.Popen(
                on(here, "-c", CLIENT, "10.213.7.2", str(ready["port"]), ready["password"]),
                env=environment(home, "here"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(client.kill)
        assert client.stdout.readline() == "running\n"
        ip("-n", here, "link", "set", "rmta", "down")
        down = time.monotonic()
        client.stdin.write("down\n")
        client.stdin.flush()
        assert client.stdout.readline() == "lost\n"
        assert time.monotonic() - down < 20  # 6 to 8 s of silence are enough
        time.sleep(OUTAGE - (time.monotonic() - down))  # the outage itself
        ip("-n", here, "link", "set", "rmta", "up")
        assert client.stdout.readline() == "good\n"
        wait_for(lambda: client.poll() is not None, what="the client ended")
        assert client.returncode == 0
