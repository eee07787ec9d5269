"""One script through a real session: what is printed where, and the exit codes."""

import io
import os
import signal
import subprocess
import sys
import threading

import pytest

import remoter
from remoter._batch import read_script, run_script

from .waiting import wait_for


def batch(served, *words, stdin=None, timeout=60):
    """`remoter batch` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "remoter", "batch", *words],
        capture_output=True,
        text=True,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        timeout=timeout,
    )


@pytest.fixture
def start_batch():
    """Starts `remoter batch` and leaves nothing of it behind."""
    processes = []

    def start(*words, **options):
        process = subprocess.Popen(
            [sys.executable, "-m", "remoter", "batch", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            **options,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_output_values_and_errors_go_where_a_local_script_would_put_them(served):
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7\n"
    done = batch(served, "-c", code)
    assert (done.returncode, done.stderr) == (0, "err\n")
    assert sorted(done.stdout.split()) == ["42", "out"]


def test_a_file_runs_under_its_name_and_the_first_error_ends_it(served, home):
    path = home / "script.py"
    path.write_text("print('before')\n1 / 0\nprint('after')\n")
    done = batch(served, str(path))
    assert done.returncode == 1
    assert done.stdout == "before\n"
    assert "ZeroDivisionError" in done.stderr
    assert "script.py" in done.stderr


def test_keep_going_goes_on_after_an_error_and_still_says_that_one_was(served):
    done = batch(served, "--keep-going", "-c", "1 / 0\nprint('after')")
    assert (done.returncode, done.stdout) == (1, "after\n")


def test_standard_input_is_a_script_too(served):
    assert batch(served, stdin="print(sum(range(5)))").stdout == "10\n"
    assert batch(served, served.name, "-", stdin="print('named')").stdout == "named\n"


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [("0", 0, ""), ("3", 3, ""), ("None", 0, ""), ("'no luck'", 1, "no luck\n")],
)
def test_the_scripts_own_exit_code_comes_back_and_the_session_goes_on(served, ending, code, said):
    done = batch(served, "-c", f"import sys; sys.exit({ending})")
    assert (done.returncode, done.stderr) == (code, said)
    assert batch(served, "-c", "print('still here')").stdout == "still here\n"


def test_questions_are_answered_from_standard_input_and_then_get_end_of_file(served):
    code = "print(input('one? '), input('two? '))"
    assert batch(served, "-c", code, stdin="a\nb\n").stdout.endswith("a b\n")
    short = batch(served, "-c", code, stdin="a\n")
    assert short.returncode == 1
    assert "EOFError" in short.stderr


def test_a_script_from_standard_input_gets_end_of_file_when_it_asks(served):
    done = batch(served, stdin="input()")
    assert done.returncode == 1
    assert "EOFError" in done.stderr


def test_a_line_comes_while_the_script_still_runs(served, start_batch):
    process = start_batch("-c", "print('first', flush=True)\nimport time\ntime.sleep(60)")
    assert process.stdout.readline() == "first\n"
    assert process.poll() is None


def test_ctrl_c_interrupts_there_and_the_exit_code_is_130(served, start_batch):
    process = start_batch("-c", "print('go')\nimport time\ntime.sleep(60)")
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "KeyboardInterrupt" in process.stderr.read()
    with served.connect() as session:
        assert not session.info.busy


def test_a_second_ctrl_c_leaves_a_script_that_does_not_heed_the_first(served, start_batch):
    code = (
        "import time\nwhile True:\n try:\n  print('go')\n  time.sleep(60)\n except KeyboardInterrupt: pass\n"
    )
    process = start_batch("-c", code)
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "it goes on there" in process.stderr.read()
    with served.connect() as session:
        assert session.info.busy


def test_a_timeout_ends_the_waiting_and_not_the_run(served):
    done = batch(served, "--timeout", "0.3", "-c", "import time\ntime.sleep(60)")
    assert done.returncode == 124
    assert "it goes on there" in done.stderr
    with served.connect() as session:
        wait_for(lambda: session.info.busy)


def test_detach_prints_the_id_and_leaves_it_running(served):
    done = batch(served, "--detach", "-c", "import time\ntime.sleep(60)")
    assert done.returncode == 0
    client, _, number = done.stdout.strip().rpartition("-")
    assert client
    assert number == "1"
    with served.connect() as session:
        wait_for(lambda: session.info.busy)


def test_a_reader_that_goes_away_ends_it_quietly_as_it_would_a_local_script(served, start_batch):
    process = start_batch("-c", "while True: print('y' * 1000)")
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == ""


def test_a_dead_interpreter_is_255_and_says_how_it_ended(served):
    done = batch(served, "-c", "import os\nos._exit(7)")
    assert done.returncode == 255
    assert "exit code 7" in done.stderr
    again = batch(served, "-c", "1")
    assert again.returncode == 255
    assert "remoter restart" in again.stderr


def test_a_script_that_still_waited_when_the_interpreter_died_is_255_and_was_never_run(served, start_batch):
    with served.connect() as session:
        session.submit("import sys; print('go', flush=True); input(); import os; os._exit(7)")
        running = next(event.run for event in session.events(since=0) if event.kind == "ask")
        process = start_batch("-c", "print('never')")
        watched = session.events(since=0, all=True)
        assert any(event.kind == "queued" and event.run[0] != running[0] for event in watched)
        session._answer(running, 1, "")
        assert process.wait(30) == 255
    assert "cancelled, never run" in process.stderr.read()
    assert process.stdout.read() == ""


def test_a_script_whose_session_is_ended_says_so(served, start_batch):
    process = start_batch("-c", "print('go')\nimport time\ntime.sleep(60)")
    assert process.stdout.readline() == "go\n"
    os.kill(served.keeper_pid, signal.SIGTERM)
    assert process.wait(30) in (130, 255)  # interrupted there, or gone before it could say so
    assert process.stderr.read()


def test_nobody_there_is_255_and_says_what_to_type(home):
    done = batch(None, "-c", "1")
    assert done.returncode == 255
    assert "remoter server" in done.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["a", "b", "c"], "remoter batch [ADDRESS] FILE"),
        (["-c", "1", "a", "b"], "remoter batch [ADDRESS] FILE"),
        (["nosuchfile.py"], "No such file"),
    ],
)
def test_wrong_usage_is_2(home, words, hint):
    done = batch(None, *words)
    assert done.returncode == 2
    assert hint in done.stderr


def test_timer_echoes_each_statement_with_its_time(served):
    done = batch(served, "--timer", "-c", "x = 1\nprint(x + 1)")
    assert done.returncode == 0
    assert "x = 1" in done.stdout + done.stderr
    assert "print(x + 1)" in done.stdout + done.stderr


def test_a_picture_is_saved_and_its_path_is_said(served):
    png = "b'\\x89PNG\\r\\n\\x1a\\n' + bytes(50)"
    code = f"from IPython.display import display, Image\ndisplay(Image(data={png}))"
    done = batch(served, "-c", code)
    assert done.returncode == 0, done.stderr
    path = done.stderr.strip().rpartition(": ")[2]
    assert path.endswith(".png")
    with open(path, "rb") as file:
        assert file.read().startswith(b"\x89PNG")


def test_characters_that_the_terminal_lacks_do_not_end_it(served, start_batch):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = start_batch("-c", "print('caf\\u00e9')", env=environment)
    assert process.stdout.readline() == "caf\\xe9\n"
    assert process.wait(30) == 0


# --- from Python -------------------------------------------------------------------------------


def test_batch_returns_the_result_and_prints_what_the_script_prints(served, capsys):
    result = remoter.batch(script="print('out')\nimport sys\nsys.exit(0)")
    assert capsys.readouterr().out == "out\n"
    assert (result.status, result.stdout, result.exit) == ("ok", "out\n", 0)


def test_batch_raises_what_the_script_raised(served, home, capsys):
    path = home / "script.py"
    path.write_text("print('before')\n{}['key']\n")
    with pytest.raises(remoter.RunError, match="KeyError") as caught:
        remoter.batch(file=path)
    assert caught.value.result.stdout == "before\n"
    assert "KeyError" in capsys.readouterr().err


def test_batch_takes_exactly_one_of_file_and_script():
    with pytest.raises(remoter.AddressError, match="exactly one"):
        remoter.batch()
    with pytest.raises(remoter.AddressError, match="exactly one"):
        remoter.batch(file="a", script="b")


def test_batch_works_outside_the_main_thread_and_leaves_signals_alone(served, capsys):
    before = signal.getsignal(signal.SIGINT)
    results = []
    thread = threading.Thread(target=lambda: results.append(remoter.batch(script="print('thread')")))
    thread.start()
    thread.join(60)
    assert results[0].status == "ok"
    remoter.batch(script="1")
    assert signal.getsignal(signal.SIGINT) is before


def test_run_script_answers_from_the_given_stream(session, capsys):
    code = run_script(
        session, "name = input('who? ')\nprint(name)", filename="<t>", answers=io.StringIO("ana\n")
    )
    assert code == 0
    assert capsys.readouterr().out == "who? ana\n"


# --- reading scripts ---------------------------------------------------------------------------


def test_a_script_is_decoded_as_python_would(tmp_path):
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    assert "é" in read_script(tmp_path / "latin.py")
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbfx = 1\r\ny = 2\r\n")
    assert read_script(tmp_path / "bom.py") == "x = 1\ny = 2\n"


@pytest.mark.parametrize("content", [b"# coding: nosuch\n", b"x = '\xff'\n"])
def test_a_script_that_is_no_text_is_a_clear_error(tmp_path, content):
    (tmp_path / "bad.py").write_bytes(content)
    with pytest.raises(remoter.RemoterError, match="cannot read"):
        read_script(tmp_path / "bad.py")
