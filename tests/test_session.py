"""One session, through the public face: code goes there, what it does comes back. Both runners."""

import io
import os
import signal
import sys
import threading
import time

import pytest

import remoter

from .conftest import wait_for

RUNNERS = ["plain", "ipython"]


@pytest.fixture(params=RUNNERS)
def session(request, serve):
    with serve(runner=request.param).connect() as connected:
        yield connected


def test_a_value_comes_back_as_a_prompt_would_show_it(session):
    result = session.run("1+1")
    assert (result.status, result.text, result.error) == ("ok", "2", None)


def test_names_live_on_from_run_to_run(session):
    session.run("x = 41")
    assert session.run("x + 1").text == "42"


def test_output_is_printed_by_the_calling_thread_as_it_comes(session, capsys):
    result = session.run("import sys; print('to out'); print('to err', file=sys.stderr)")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("to out\n", "to err\n")
    assert (result.stdout, result.stderr) == ("to out\n", "to err\n")


def test_quiet_prints_nothing_and_still_collects(session, capsys):
    assert session.run("print('x')", quiet=True).stdout == "x\n"
    assert capsys.readouterr().out == ""


UNTIL_SEEN = "while not os.path.exists({path!r}): time.sleep(0.01)"
"""Waits until a test has made that file; needs `os` and `time`."""


def test_each_line_arrives_while_the_command_still_runs(session, tmp_path):
    wait = UNTIL_SEEN.format(path=f"{tmp_path}/seen").replace("seen'", "seen' + str(i)")
    run = session.submit(f"import os, time\nfor i in range(3):\n    print(i)\n    {wait}")
    arrivals = []
    for event in run.events():
        if event.kind == "stdout":
            (tmp_path / f"seen{len(arrivals)}").touch()
            arrivals.append(event.text)
    assert arrivals == ["0\n", "1\n", "2\n"]
    assert run.wait(40).stdout == "0\n1\n2\n"


def test_text_without_a_newline_arrives_before_the_command_ends(session):
    run = session.submit("print('half', end=''); import time; time.sleep(60)")
    for event in run.events():
        if event.kind == "stdout":
            assert event.text == "half"
            break
    run.interrupt()
    assert run.wait(40).status == "interrupted"


def test_an_error_carries_its_traceback(session):
    with pytest.raises(remoter.RunError, match="ZeroDivisionError: division by zero") as caught:
        session.run("def f():\n    1/0\nf()")
    assert "1/0" in str(caught.value)
    assert "python_worker" not in str(caught.value)
    result = caught.value.result
    assert result.status == "error"
    assert session.run("1/0", check=False).status == "error"


def test_a_syntax_error_is_an_error_and_nothing_more(session):
    with pytest.raises(remoter.RunError, match="SyntaxError"):
        session.run("x = = 1")
    assert session.run("2").text == "2"


def test_top_level_await_works(session):
    assert session.run("import asyncio\nawait asyncio.sleep(0.01, 'slept')").text == "'slept'"


def test_output_of_c_and_of_subprocesses_keeps_its_order(session):
    code = """
import os, subprocess, sys
print(1)
os.write(1, b"2\\n")
subprocess.run(["echo", "3"])
print(4)
os.system("echo 5")
print(6)
"""
    assert session.run(code, quiet=True).stdout == "1\n2\n3\n4\n5\n6\n"


def be_patient(session):
    """Have the worker wait for a server that reads late: it would not for long, and then their order is not kept."""
    session.run("import sys; w = sys.modules['_remoter_worker']; w.ORDER_TIME = w.SETTLE_TIME = 60.0")


def test_values_pictures_and_lines_of_a_script_keep_their_order(session):
    be_patient(session)
    for _ in range(10):
        run = session._submit("print('a')\n'b'\nprint('c')\n'd'\nprint('e')", mode="script")
        shown = [event.text.strip() for event in run.events() if event.kind in ("stdout", "result")]
        assert shown == ["a", "'b'", "c", "'d'", "e"]


def test_lines_on_stdout_and_stderr_keep_their_order(session):
    be_patient(session)
    code = "import sys\nfor i in range(50): print('out', i); print('err', i, file=sys.stderr)"
    run = session.submit(code)
    lines = "".join(event.text for event in run.events() if event.kind in ("stdout", "stderr")).splitlines()
    assert lines == [f"{stream} {i}" for i in range(50) for stream in ("out", "err")]


def test_what_c_prints_arrives_by_the_end_of_the_command(session):
    code = "import ctypes; _ = ctypes.CDLL(None).printf(b'from C %d\\n', 7)"
    assert session.run(code, quiet=True).stdout == "from C 7\n"


def test_a_flood_from_c_that_holds_the_interpreter_does_not_hang(session):
    code = "import ctypes; _ = ctypes.PyDLL(None).printf(b'1' * 3_000_000)"
    assert len(session.run(code, quiet=True).stdout) == 3_000_000


def test_a_late_line_of_a_thread_belongs_to_no_run(session, tmp_path):
    events = session.events()
    session.run(
        f"import os, threading, time\ndef late():\n    {UNTIL_SEEN.format(path=str(tmp_path / 'go'))}\n"
        "    print('late')\nthreading.Thread(target=late).start()"
    )
    (tmp_path / "go").touch()
    late = next(event for event in events if event.kind == "stdout")
    assert (late.text, late.run) == ("late\n", None)
    events.close()


def test_a_hundred_printing_threads_lose_nothing(session):
    code = """
import threading
def work(n):
    for i in range(50):
        print(f"{n}:{i}\\n", end="")
threads = [threading.Thread(target=work, args=(n,)) for n in range(100)]
[t.start() for t in threads]; [t.join() for t in threads]; None
"""
    lines = session.run(code, quiet=True).stdout.split()
    assert sorted(lines) == sorted(f"{n}:{i}" for n in range(100) for i in range(50))


@pytest.mark.parametrize(
    "text",
    [
        "héllo wörld",
        "日本語テキスト",
        "🎉" * 20_000,
        "x" * 20_000,
        "a\0b",
        "tab\tbell\a",
        "\x1b[31mred\x1b[0m",
    ],
    ids=["latin", "wide", "emoji", "long", "nul", "control", "ansi"],
)
def test_text_of_every_kind_comes_back_as_it_was(session, text):
    assert session.run(f"print({text!r})", quiet=True).stdout == text + "\n"


def test_lone_surrogates_and_bytes_that_are_no_text_do_no_harm(session):
    session.run("import os; _ = os.write(1, b'\\xff\\xfe\\n')", quiet=True)
    session.run("print('\\ud800')", quiet=True, check=False)
    assert session.run("'\\ud800'").text == "'\\ud800'"
    with pytest.raises((remoter.RemoterError, ValueError)):
        session.run("x = '\ud800'")
    assert session.run("1").text == "1"


def test_ten_megabytes_of_code_run(session):
    result = session.run("x = '" + "y" * 10_000_000 + "'\nlen(x)")
    assert result.text == "10000000"


def test_a_nul_byte_in_code_is_an_ordinary_error(session):
    with pytest.raises(remoter.RunError):
        session.run("x = 1\0")
    assert session.run("3").text == "3"


def test_sys_exit_ends_the_run_and_not_the_session(session):
    assert session.run("import sys; sys.exit()").status == "ok"
    result = session.run("sys.exit(3)", check=False)
    assert (result.status, result.exit) == ("error", 3)
    assert session.run("'here'").text == "'here'"


def test_a_fork_that_falls_through_answers_nobody(session):
    result = session.run(
        "import os\npid = os.fork()\nif pid: _ = os.waitpid(pid, 0)\nprint(bool(pid))", quiet=True
    )
    assert sorted(result.stdout.split()) == ["False", "True"]
    assert session.run("os.getpid()").text == str(session.info.pid)


def test_closing_fd_1_is_undone_for_the_next_command(session):
    session.run("import os; os.close(1)", check=False)
    assert session.run("print('back')", quiet=True).stdout == "back\n"


def test_waiting_for_any_child_finds_none_of_ours(session):
    with pytest.raises(remoter.RunError, match="ChildProcessError"):
        session.run("import os; os.wait()")


def test_a_replaced_stdout_is_the_users_business_and_can_be_undone(session):
    session.run("import sys, io; sys.stdout = io.StringIO(); print('hidden')")
    assert (
        session.run("text = sys.stdout.getvalue(); sys.stdout = sys.__stdout__; text").text == "'hidden\\n'"
    )
    assert session.run("print('seen')", quiet=True).stdout == "seen\n"


INTERRUPTED = {
    "sleep": "import time; print('go', flush=True); time.sleep(60)",
    "loop": "print('go', flush=True)\nwhile True: pass",
    "lock": "import threading; l = threading.Lock(); l.acquire(); print('go', flush=True); l.acquire()",
    "recv": "import socket; a, b = socket.socketpair(); print('go', flush=True); a.recv(1)",
    "C sleep": "import ctypes; print('go', flush=True); ctypes.CDLL(None).sleep(60)",
    "await": "import asyncio; print('go', flush=True); await asyncio.sleep(60)",
    "subprocess": "import subprocess; print('go', flush=True); subprocess.run(['sleep', '60'])",
    "regular expression": "import re; print('go', flush=True); re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "print": "while True: print('go', flush=True)",
    "own handler": "import signal, time; signal.signal(2, signal.SIG_IGN); signal.signal(2, signal.default_int_handler); print('go', flush=True); time.sleep(60)",
}


@pytest.mark.parametrize("what", INTERRUPTED)
def test_an_interrupt_reaches(session, what):
    run = session.submit(INTERRUPTED[what])
    next(event for event in run.events() if event.kind == "stdout")
    run.interrupt()
    assert run.wait(40).status == "interrupted"
    assert session.run("1").text == "1"


def test_an_interrupt_that_comes_late_hits_no_other_run(session):
    for _ in range(20):
        run = session.submit("1")
        run.interrupt()
        assert run.wait(40).status in ("ok", "interrupted", "cancelled")
        assert session.run("import time; time.sleep(0.01); 'fine'").text == "'fine'"


def test_a_signal_handler_of_the_users_does_not_outlive_his_command(session):
    session.run("import signal; _ = signal.signal(signal.SIGINT, signal.SIG_IGN)")
    run = session.submit("print('go', flush=True)\nwhile True: pass")
    next(event for event in run.events() if event.kind == "stdout")
    run.interrupt()
    assert run.wait(40).status == "interrupted"


def test_input_is_answered_by_the_client(serve):
    asked = []

    def ask(prompt, hidden):
        asked.append((prompt, hidden))
        return "Ana"

    with serve().connect(ask=ask) as session:
        assert session.run("input('name? ')").text == "'Ana'"
        assert session.run("import getpass; getpass.getpass('secret? ')").text == "'Ana'"
        assert session.run("import sys; sys.stdin.readline()").text == "'Ana\\n'"
    assert asked == [("name? ", False), ("secret? ", True), ("", False)]


def test_without_anybody_to_ask_input_is_at_its_end(session, monkeypatch):
    with pytest.raises(remoter.RunError, match="EOFError"):
        session.run("input('anybody? ')")


def test_the_debugger_can_be_used(serve):
    answers = iter(["p x", "c"])
    with serve().connect(ask=lambda prompt, hidden: next(answers)) as session:
        result = session.run("def f():\n    x = 1234\n    breakpoint()\n    return x\nf()", quiet=True)
    assert result.text == "1234"
    assert result.stdout.count("1234") == 1


def test_answers_are_in_no_journal(serve):
    served = serve()
    with served.connect(ask=lambda prompt, hidden: "tops3cret") as session:
        session.run("import getpass; len(getpass.getpass('secret? '))")
    kept = b"".join(path.read_bytes() for path in served.journal.rglob("*") if path.is_file())
    assert b"secret? " in kept
    assert b"tops3cret" not in kept


def test_a_segfault_ends_the_interpreter_and_not_the_session(served):
    with served.connect() as session:
        with pytest.raises(remoter.SessionDiedError, match="SIGSEGV"):
            session.run(
                "print('last words'); import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", quiet=True
            )
        with pytest.raises(remoter.SessionDiedError, match="remoter restart"):
            session.run("1")
        session.restart()
        assert session.run("1+1").text == "2"


def test_the_last_line_before_a_crash_is_delivered(served):
    with served.connect() as session:
        run = session.submit("print('last words'); import ctypes; ctypes.string_at(0)")
        texts = [event.text for event in run.events() if event.kind == "stdout"]
        assert texts == ["last words\n"]


def test_os_exit_is_a_death_with_an_exit_code(served):
    with served.connect() as session, pytest.raises(remoter.SessionDiedError, match="exit code 7"):
        session.run("import os; os._exit(7)")


def test_restart_gives_a_new_interpreter_and_keeps_the_record(served):
    with served.connect() as session:
        session.run("x = 1; print('before')", quiet=True)
        old = session.info.pid
        session.restart()
        assert session.info.pid != old
        with pytest.raises(remoter.RunError, match="NameError"):
            session.run("x")
        with session.events(since=0) as events:
            assert next(event.text for event in events if event.kind == "stdout") == "before\n"


def test_a_timeout_ends_the_waiting_and_not_the_run(session, tmp_path):
    wait = UNTIL_SEEN.format(path=str(tmp_path / "go"))
    with pytest.raises(remoter.RunTimeoutError) as caught:
        session.run(f"import os, time\n{wait}\n'done'", timeout=0.05)
    (tmp_path / "go").touch()
    assert caught.value.run.wait(40).text == "'done'"


class PressesCtrlC(io.StringIO):
    """A standard output: what is printed there is the sign to press Ctrl-C a moment later, once."""

    def write(self, text):
        if not self.getvalue():
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return super().write(text)


def test_ctrl_c_during_run_interrupts_there_and_raises_here(session, monkeypatch):
    monkeypatch.setattr(sys, "stdout", PressesCtrlC())
    with pytest.raises(KeyboardInterrupt):
        session.run("import time; print('on'); time.sleep(60)")
    wait_for(lambda: not session.info.busy, 40, "the session is free")


def test_completion_and_inspection_work_while_a_command_runs(session):
    session.run("alphabet = 'abc'")
    run = session.submit("import time; time.sleep(60)")
    assert "alphabet" in session.complete("alphab", 6)["matches"]
    assert any(match.endswith("upper") for match in session.complete("alphabet.upp", 12)["matches"])
    assert session.is_complete("for x in y:")["status"] == "incomplete"
    assert session.is_complete("x = 1")["status"] == "complete"
    assert "abc" in session.inspect("alphabet")["text"]
    assert [v["name"] for v in session.variables() if v["name"] == "alphabet"] == ["alphabet"]
    run.interrupt()


def test_info_tells_what_there_is_to_know(session):
    info = session.info
    assert info.lang == "python"
    assert info.version == ".".join(map(str, sys.version_info[:3]))
    assert info.link == "ok" and info.secure and not info.busy
    assert info.rtt is None or info.rtt < 5
    assert session.is_secure


def test_figures_come_as_pictures(serve):
    pytest.importorskip("matplotlib")
    with serve(runner="ipython").connect() as session:
        result = session.run("import matplotlib.pyplot as plt; _ = plt.plot([1, 2])", timeout=60)
        pictures = [display["image/png"] for display in result.displays if "image/png" in display]
    assert len(pictures) == 1
    assert pictures[0].startswith(b"\x89PNG")


def test_rich_results_come_in_all_their_forms(serve):
    with serve(runner="ipython").connect() as session:
        result = session.run("class T:\n    def _repr_html_(self): return '<b>x</b>'\nT()")
    assert result.displays[0]["text/html"] == "<b>x</b>"


def test_magics_and_shell_commands_work(serve):
    with serve(runner="ipython").connect() as session:
        assert session.run("!echo from the shell", quiet=True).stdout == "from the shell\n"
        assert "function" in session.run("%pinfo len", quiet=True).displays[0]["text/plain"]
        assert session.run("%timeit -n1 -r1 pass", quiet=True).stdout


def test_the_working_directory_shadows_nothing(serve, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "mine.py").write_text("value = 5")
    monkeypatch.chdir(tmp_path)
    with serve(runner="plain").connect() as session:
        assert session.run("import random, mine; mine.value").text == "5"


def test_an_interpreter_without_remoter_serves(serve, old_python):
    with serve(python=old_python).connect() as session:
        assert session.run("import sys; sys.version_info[:2]").text.startswith("(3, ")
        assert session.info.python == old_python


@pytest.fixture
def old_python():
    from pathlib import Path

    for pattern in ["3.8.*", "3.9.*", "3.1?.*"]:
        for path in Path("~/.pyenv/versions").expanduser().glob(f"{pattern}/bin/python"):
            if os.access(path, os.X_OK):
                return str(path)
    if os.access("/usr/bin/python3", os.X_OK):
        return "/usr/bin/python3"
    pytest.skip("no second Python on this machine")


def test_time_of_events_is_told(session):
    before = time.time()
    run = session.submit("print(1)")
    times = [event.time for event in run.events()]
    assert before - 1 < times[0] <= times[-1] < time.time() + 1
