"""`remoter.server()` in a process that already runs: `__main__` is shared, and afterwards all is as it was."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pexpect
import pytest

import remoter

from .conftest import wait_for

PYTHON_313 = Path(__file__).parent.parent / ".venv-3.13" / "bin" / "python"
BANNER = "session `main`: Python"


def spawn(python, *arguments):
    child = pexpect.spawn(
        str(python),
        list(arguments),
        env={**os.environ, "TERM": "xterm", "PYTHON_COLORS": "0", "PYTHONSTARTUP": ""},
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 120),
    )
    child.delaybeforesend = None
    return child


PYTHONS = [
    pytest.param(sys.executable, id="this"),
    pytest.param(
        PYTHON_313,
        id="3.13",
        marks=pytest.mark.skipif(
            not PYTHON_313.exists(), reason="no .venv-3.13: no Python 3.13 on this machine"
        ),
    ),
]


@pytest.mark.parametrize("python", PYTHONS)
def test_a_plain_prompt_is_served_and_given_back(python):
    with spawn(python, "-q") as child:
        child.expect(">>> ")
        child.sendline("import remoter, sys; x = 41; before = (sys.ps1, sys.stdout, sys.displayhook)")
        child.expect(">>> ")
        child.sendline("remoter.server(port=0)")
        child.expect_exact(BANNER)
        with wait_for(connected, 60) as session:
            assert session.run("x + 1").text == "42"
            assert session.run("print('there')", quiet=True).stdout == "there\n"
            session.run("y = x * 2")
            assert session.info.pid == child.pid
            session.shutdown()
        child.expect("this process is yours again")
        child.expect(">>> ")
        child.sendline("y, before == (sys.ps1, sys.stdout, sys.displayhook)")
        child.expect_exact("(82, True)")
        child.sendline("print('streams', 'work')")
        child.expect("streams work")
        child.sendline("exit()")
        child.expect(pexpect.EOF)
    wait_for(
        lambda: not list((Path(os.environ["REMOTER_RUNTIME_DIR"])).glob("*/lock")),
        timeout=60,
        what="the session's files are gone",
    )


@pytest.mark.parametrize("python", PYTHONS)
def test_ctrl_c_interrupts_what_runs_and_when_idle_gives_the_prompt_back(python):
    with spawn(python, "-q") as child:
        child.expect(">>> ")
        child.sendline("import remoter; remoter.server(port=0)")
        child.expect_exact(BANNER)
        with wait_for(connected, 60) as session:
            # Python itself may miss a Ctrl-C that comes just before a sleep begins, until that ends.
            run = session.submit("import time; print('on')\nwhile True: time.sleep(0.05)")
            next(event for event in run.events() if event.kind == "stdout")
            child.sendintr()
            assert run.wait(40).status == "interrupted"
            assert session.run("'alive'").text == "'alive'"
            child.sendintr()
            child.expect("this process is yours again")
            child.expect(">>> ")
            with pytest.raises(remoter.LinkLostError):
                session.run("1")
        child.sendline("1 + 1")
        child.expect_exact("2")
        child.sendline("exit()")
        child.expect(pexpect.EOF)


def test_an_ipython_prompt_is_served_and_given_back():
    with spawn(
        sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"
    ) as child:
        child.expect(r"In \[1\]: ")
        child.sendline("import remoter; x = 41; remoter.server(port=0)")
        child.expect_exact(BANNER)
        with wait_for(connected, 60) as session:
            assert session.run("x + 1").text == "42"
            assert session.run("import asyncio; await asyncio.sleep(0, 'awaited')").text == "'awaited'"
            session.run("y = 5")
            session.shutdown()
        child.expect("this process is yours again")
        child.expect(r"In \[2\]: ")
        child.sendline("y, get_ipython().__class__.__name__")
        child.expect_exact("(5, 'TerminalInteractiveShell')")
        child.sendline("exit()")
        child.expect(pexpect.EOF)


def test_a_script_is_served_and_goes_on_afterwards(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import remoter
        data = list(range(10))
        if __name__ == "__main__":
            remoter.server(port=0)
            print("after", total, flush=True)
        """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        with wait_for(connected, 60) as session:
            session.run("total = sum(data)")
            session.shutdown()
        out, _ = process.communicate(timeout=60)
    assert "after 45" in out
    assert process.returncode == 0


def test_the_end_of_a_live_process_ends_its_session(tmp_path):
    code = "import remoter; remoter.server(port=0)"
    with (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process,
        wait_for(connected, 60) as session,
    ):
        process.kill()
        with pytest.raises(remoter.RemoterError):
            session.run("1", timeout=10)
    wait_for(
        lambda: not list(Path(os.environ["REMOTER_RUNTIME_DIR"]).glob("*/lock")),
        timeout=60,
        what="the session's files are gone",
    )


def test_a_jupyter_cell_is_served_and_given_back(home):
    from jupyter_client.manager import KernelManager

    # Not over TCP: its ports are only looked for beforehand, and anybody may have them by then.
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(home / "kernel"))
    manager.start_kernel()
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute("x = 41")
        cell = client.execute("import remoter; remoter.server(port=0)")
        with wait_for(connected, 60) as session:
            assert session.run("x + 1").text == "42"
            assert session.run("await __import__('asyncio').sleep(0, 'awaited')").text == "'awaited'"
            session.run("y = 7")
            session.shutdown()
        while client.get_shell_msg(timeout=60)["parent_header"].get("msg_id") != cell:
            pass
        reply = client.execute_interactive(
            "assert y == 7; get_ipython().__class__.__name__", timeout=60, output_hook=lambda _: None
        )
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_server_in_another_thread_is_refused():
    code = "import remoter, threading; t = threading.Thread(target=remoter.server); t.start(); t.join()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "must be called in the main thread" in done.stderr


def connected():
    """A client of the one session there is, once there is one."""
    try:
        return remoter.connect(timeout=5)
    except remoter.RemoterError:
        return None
