"""The prompt as a person meets it: on a terminal, with a real session behind it."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remoter._pictures import kitty
from remoter._questions import Inbox
from remoter._records import records
from remoter._verbs import LocalSide, judge, pieces, split

from .conftest import is_alive, wait_for
from .terminal import Terminal

REMOTER = [sys.executable, "-m", "remoter"]

UNTIL = """\
import os, time
def until():
    while not os.path.exists({path!r}):
        time.sleep(0.01)
"""


@pytest.fixture
def prompt(served):
    """Opens prompts on the one session; closes their terminals."""
    terminals = []

    def start(*arguments, ready=True, environment=None, **options):
        env = {**os.environ, **(environment or {})}
        terminal = Terminal([*REMOTER, "client", served.name, *arguments], env=env, **options)
        terminals.append(terminal)
        if ready:
            terminal.expect_line("remoter>")
        return terminal

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def go(served, home):
    """A file that is not there yet: `until()` in the session waits for it."""
    path = home / "go"
    with served.connect() as other:
        other.run(UNTIL.format(path=str(path)), quiet=True)
    return path


def enter(terminal, code):
    """Type a line and wait until the prompt is back."""
    before = terminal.prompts()
    terminal.type(code + "\r")
    terminal.wait_for(lambda screen: terminal.prompts() > before, 30, f"the prompt after {code!r}")
    return terminal.screen()


# --- reading ----------------------------------------------------------------------------------


def test_a_line_runs_there_and_its_value_is_shown(prompt, served):
    terminal = prompt()
    assert "typed lines run on" in terminal.screen()
    terminal.type("import os; os.getpid()\r")
    terminal.expect(f"\n{served.worker_pid}\nremoter>")


def test_a_block_ends_with_a_blank_line_and_indents_itself(prompt):
    terminal = prompt()
    terminal.type("for i in range(2):\r")
    terminal.expect_line("       +")
    terminal.type("print('line', i)\r")
    terminal.expect("+     print('line', i)\n       +")
    terminal.type("\r")
    terminal.expect("line 0\nline 1\nremoter>")


def test_alt_enter_runs_what_is_not_complete_and_ctrl_o_adds_a_line(prompt):
    terminal = prompt()
    terminal.type("x = (1 +")
    terminal.expect("x = (1 +")
    terminal.type("\x1b\r")
    terminal.expect("SyntaxError")
    terminal.expect_line("remoter>")
    terminal.type("6 * 7")
    terminal.type("\x0f")
    terminal.expect_line("       +")
    terminal.type("6 * 8\r")
    terminal.expect("\n48\nremoter>")


SENT_BY_AN_EDITOR = """\
def total(numbers):
    result = 0

    for number in numbers:
        if number:

            result += number

    return result
print("sum", total([1, 2, 3]))
"""


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
def test_code_that_an_editor_sends_unmarked_runs_as_it_was_meant(prompt, line_end):
    terminal = prompt()
    terminal.type(SENT_BY_AN_EDITOR.replace("\n", line_end))
    terminal.expect("\nsum 6\nremoter>")


def test_code_that_an_editor_sends_line_by_line_is_not_indented_twice(prompt):
    terminal = prompt()
    for line, shown in [
        ("if True:", "if True:"),
        ("    for i in 'ab':", "+     for i in 'ab':"),
        ("        print('letter', i)", "+         print('letter', i)"),
        ("    print('end')", "+     print('end')"),
    ]:
        terminal.type(line + "\r")
        terminal.expect(shown + "\n")
    terminal.type("\r")
    terminal.expect("letter a\nletter b\nend\nremoter>")


def test_code_sent_while_a_command_runs_is_run_afterwards(prompt, go):
    terminal = prompt()
    terminal.type("print('go' + 'ing'); until()\r")
    terminal.expect("\ngoing\n")
    terminal.type(SENT_BY_AN_EDITOR)
    terminal.expect_bytes(b"total([1, 2, 3]))")  # the terminal itself shows what it was sent
    go.touch()
    terminal.expect("\nsum 6\nremoter>")


def test_lines_typed_before_the_first_prompt_run_one_by_one(served, home):
    go = home / "go"
    # The prompt is started when all of it is in the terminal.
    waiting = ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.01; done; exec "$@"', str(go)]
    with Terminal([*waiting, *REMOTER, "client", served.name]) as terminal:
        terminal.type("1+1\r2+1\rfor i in 'ab':\r    print('letter', i)\r\r'th' + 'e end'\r3 +")
        terminal.expect("\n3 +")
        go.touch()
        terminal.expect("\n'the end'\nremoter> 3 +")
        assert "remoter> 1+1\n2\nremoter> 2+1\n3\nremoter> for i" in terminal.text()
        assert "\nletter a\nletter b\nremoter> 'th'" in terminal.text()


def test_lines_typed_while_a_command_runs_go_on_after_a_mistake_and_answer_questions(prompt, go):
    terminal = prompt()
    terminal.type("print('go' + 'ing'); until()\r")
    terminal.expect("\ngoing\n")
    terminal.type("1/0\rname = input('who? ')\rAna\rname[::-1]\r")
    terminal.expect("\nname[::-1]\n")
    go.touch()
    terminal.expect("\n'anA'\nremoter>")
    assert "ZeroDivisionError" in terminal.text()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1 + 1\n2 + 1\n", 2),
        ("\n1\n\n2\n\n", 4),
        ("def f():\n    s = '''\nx\n'''\n\n    return s\n\nf()\n", 2),
        ("if a:\n    b\n# c\nelse:\n    d\ne\n", 2),
        ("@d\ndef g(): pass\nx = [1,\n2]\ny = 1 + \\\n2\n3\n", 4),
        ("1 +\n%time x\n!ls\n1\n", 4),
        ("%%time\nx\ny\n", 1),
        ("for i in x:\n    a", 1),
        ("1\n" * 1000, 1),
    ],
)
def test_what_was_typed_ahead_is_cut_into_what_a_prompt_would_have_run(text, count):
    pieces = split(text)
    assert len(pieces) == count
    assert "".join(pieces) == text


def test_a_marked_paste_waits_for_enter_whatever_its_length(prompt):
    terminal = prompt(size=(60, 80))
    names = ", ".join(f"'name{i:04}é漢'" for i in range(300))
    assert len(names) > 4000
    terminal.type(f"\x1b[200~names = [{names}]\nlen(names)\x1b[201~")
    terminal.expect("+ len(names)")
    terminal.type("\r")
    terminal.expect("\n300\nremoter>")


def test_the_history_is_private_and_up_matches_what_is_typed(prompt, home):
    terminal = prompt()
    enter(terminal, "first = 1")
    enter(terminal, "second = 2")
    terminal.type("import getpass; word = getpass.getpass('word: ')\r")
    terminal.expect_line("word:")
    terminal.type("otter-lamp\r")
    terminal.expect("word:\nremoter>")
    assert "otter" not in terminal.text()
    terminal.type("fi")
    terminal.expect_line("remoter> fi")
    terminal.type("\x1b[A")
    terminal.expect_line("remoter> first = 1")
    terminal.type("\x03")
    terminal.expect_line("remoter>")
    terminal.type("\x12sec")
    terminal.expect("I-search backward: sec")
    terminal.type("\r")
    terminal.expect_line("remoter> second = 2")
    file = home / "state" / "history-python"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "+first = 1\n" in file.read_text()
    assert "otter" not in file.read_text()
    terminal.type("\x03\x04")
    terminal.expect_end()
    another = prompt()
    another.type("first")
    another.expect_line("remoter> first")
    another.type("\x1b[A")
    another.expect_line("remoter> first = 1")


def test_tab_completes_names_of_the_session(prompt):
    terminal = prompt()
    enter(terminal, "otter_population = 12")
    terminal.type("otter_p\t")
    terminal.expect_line("remoter> otter_population")
    terminal.type("\r")
    terminal.expect("\n12\nremoter>")


def test_names_complete_while_another_client_keeps_the_session_busy(prompt, served):
    with served.connect() as other:
        other.run("import threading; gate = threading.Event(); otter_population = 12")
        run = other.submit("gate.wait()")
        wait_for(lambda: run.status == "running")
        terminal = prompt()
        assert "another client's command" in terminal.screen()
        terminal.type("otter_p\t")
        terminal.expect_line("remoter> otter_population")
        run.interrupt()
        run.wait(30)


# --- Ctrl-C -----------------------------------------------------------------------------------


def test_ctrl_c_clears_the_line_and_says_the_second_time_how_to_leave(prompt):
    terminal = prompt()
    terminal.type("half a thought")
    terminal.expect_line("remoter> half a thought")
    terminal.type("\x03")
    terminal.expect_line("remoter>")
    terminal.type("\x03")
    terminal.type("\x03")
    terminal.expect("-- nothing runs; Ctrl-D leaves")
    terminal.expect_line("remoter>")


def test_ctrl_c_interrupts_there_and_the_prompt_stays(prompt):
    terminal = prompt()
    terminal.type("import time; print('be' + 'gun'); time.sleep(60)\r")
    terminal.expect("\nbegun\n")
    terminal.type("\x03")
    terminal.expect(re.compile(r"^KeyboardInterrupt:?\s*\nremoter>", re.MULTILINE))
    terminal.type("'still ' + 'here'\r")
    terminal.expect("'still here'\nremoter>")


DEAF = """\
import signal, time
def deaf():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print('it ' + 'runs')
    time.sleep(60)
"""


def test_ctrl_c_right_after_enter_interrupts_what_was_entered(prompt):
    terminal = prompt()
    terminal.type("import time; time.sleep(60)\r\x03")
    terminal.expect("KeyboardInterrupt")
    terminal.expect_line("remoter>")


def test_a_deaf_command_is_interrupted_again_then_can_be_left_running(prompt, served):
    with served.connect() as other:
        other.run(DEAF)
        terminal = prompt()
        terminal.type("deaf()\r")
        terminal.expect("\nit runs\n")
        terminal.type("\x03")
        terminal.expect("^C\n")
        terminal.type("\x03")
        terminal.expect("interrupt sent again; waiting for `deaf()`")
        terminal.type("\x03")
        terminal.expect(re.compile(r"^leave `deaf\(\)` running on \S+\? \[y/N\]$", re.MULTILINE))
        terminal.type("n\r")
        terminal.expect("[y/N] n\n")
        terminal.type("\x03")
        terminal.wait_for(lambda screen: screen.count("[y/N]") == 2, 30, "the offer to come again")
        terminal.type("y\r")
        assert terminal.expect_end() == 0
        assert f"left `{served.name}` running" in terminal.screen()
        assert "(busy: deaf())" in terminal.screen()
        assert other.info.busy
        other._query("variables")


# --- leaving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["\x04", "exit\r", "exit()\r", "quit()\r", "quit\r", "x = 5; exit()\r"])
def test_leaving_keeps_the_session_and_says_the_way_back(prompt, served, keys):
    terminal = prompt()
    terminal.type(keys)
    assert terminal.expect_end() == 0
    assert f"left `{served.name}` running on this machine." in terminal.screen()
    assert f"Back: remoter client {served.name}    End it: remoter stop {served.name}" in terminal.screen()
    assert is_alive(served.worker_pid)
    if "x" in keys[:1]:
        with served.connect() as other:
            assert other.run("x", quiet=True).text == "5"


@pytest.mark.parametrize("keys", ["\x04", "exit()\r"])
def test_leaving_while_a_command_runs_lets_it_run(prompt, served, go, keys):
    terminal = prompt()
    terminal.type("print('be' + 'gun'); until(); done = 'yes'\r")
    terminal.expect("\nbegun\n")
    terminal.type(keys)
    assert terminal.expect_end() == 0
    assert "(busy: print('be' + 'gun');" in terminal.screen()
    go.touch()
    with served.connect() as other:
        assert other.run("done", quiet=True).text == "'yes'"


def test_coming_back_tells_what_happened_and_joins_the_running_command(prompt, served):
    terminal = prompt()
    enter(terminal, "import threading; gate = threading.Event()")
    terminal.type("\x04")
    terminal.expect_end()
    with served.connect() as other:
        other.run("for i in range(30): print('line', i)", quiet=True)
        run = other.submit("gate.wait(); print('the ' + 'end')")
        wait_for(lambda: run.status == "running")
    terminal = prompt(ready=False)
    terminal.expect("has been running")
    assert "while you were away" in terminal.text()
    assert "2 commands, 30 lines; the last 20" in terminal.text()
    assert "\nline 29\n" in terminal.text()
    assert "\nline 5\n" not in terminal.text()
    with served.connect() as other:
        terminal.type("\x03")
        terminal.expect_line("remoter>")
        assert not other.info.busy


def test_nothing_is_told_when_nothing_happened(prompt):
    terminal = prompt()
    enter(terminal, "1 + 1")
    terminal.type("\x04")
    terminal.expect_end()
    again = prompt()
    assert "while you were away" not in again.text()


def test_ending_the_session_asks_first_when_somebody_would_miss_it(prompt, served):
    with served.connect():
        terminal = prompt()
        terminal.type("exit(client_only=False)\r")
        terminal.expect(f"end `{served.name}`? 1 other client is there [y/N]")
        terminal.type("n\r")
        terminal.expect_line("remoter>")
        assert is_alive(served.server_pid)
        terminal.type("shutdown()\r")
        terminal.expect(re.compile(r"\[y/N\]$"))
        terminal.type("y\r")
        assert terminal.expect_end() == 0
    assert f"ended `{served.name}`" in terminal.screen()
    wait_for(lambda: not is_alive(served.worker_pid))


@pytest.mark.parametrize("code", ["exit(client_only=Fals)", "exit(nothing=True)", "shutdown(1)"])
def test_a_mistake_in_leaving_neither_leaves_nor_ends_anything(prompt, code):
    terminal = prompt()
    enter(terminal, code)
    assert "error: `" in terminal.screen()
    terminal.type("'still ' + 'here'\r")
    terminal.expect("'still here'\nremoter>")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("until(); x = 5", r"\n-- `until\(\); x = 5` finished after \d"),
        ("until(); print('\\r20 %\\r30 %', end='')", r"\n30 %\n-- `until\(\);"),
        ("until(); 1/0", r"` failed after \d"),
    ],
)
def test_a_command_that_ended_meanwhile_is_told_of(prompt, served, go, code, told):
    terminal = prompt()
    terminal.type(f"{code}\r")
    with served.connect() as other:
        wait_for(lambda: other.info.busy)
        terminal.type("\x04")
        terminal.expect_end()
        go.touch()
        wait_for(lambda: not other.info.busy)
    again = prompt()
    assert "while you were away" in again.text()
    assert "the command that ran has ended" in again.text()
    assert re.search(told, again.text())


def test_a_second_prompt_does_not_tell_what_the_first_shows(prompt, served):
    first = prompt()
    enter(first, "print('seen')")
    second = prompt()
    assert "while you were away" not in second.text()
    assert "before you came" not in second.text()
    second.type("\x04")
    second.expect_end()
    first.type("\x04")
    first.expect_end()
    with served.connect() as other:
        other.run("print('not seen')", quiet=True)
    assert "\nnot seen\n" in prompt().text()


def test_long_code_is_told_on_one_line(prompt, served):
    with served.connect() as other:
        other.run(f"x = '{'long ' * 40}'", quiet=True)
        other.run("y = 1\ny", quiet=True)
    terminal = prompt()
    assert re.search(
        r"^> x = 'long .{50,70} \.\.\.\n> y = 1 \.\.\.\n1\nremoter>", terminal.text(), re.MULTILINE
    )


def test_a_session_without_interpreter_says_so_and_how_to_get_one(prompt, served):
    with served.connect() as other:
        other.run("import os; os._exit(3)", check=False, quiet=True)
    terminal = prompt()
    assert "None" not in terminal.text()
    assert "it has no interpreter" in terminal.text()
    assert f"remoter restart {served.name}" in terminal.text()


def test_a_session_that_is_ended_elsewhere_is_said_once(prompt, served):
    terminal = prompt()
    terminal.type("import time; print('be' + 'gun'); time.sleep(60)\r")
    terminal.expect("\nbegun\n")
    with served.connect() as other:
        other.shutdown()
    assert terminal.expect_end() == 255
    assert "the interpreter died" not in terminal.text()
    assert "remoter restart" not in terminal.text()
    assert terminal.text().count("ended") == 1


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_what_we_say_stands_on_lines_of_its_own_after_a_key(prompt, served, term):
    with served.connect() as other:
        other.run("import threading; gate = threading.Event()")
        run = other.submit("gate.wait()")
        wait_for(lambda: run.status == "running")
        terminal = prompt(term=term)
        terminal.type("1\n")
        terminal.expect("-- waits for")
        terminal.type("\x03")
        terminal.expect(re.compile(r"^-- taken back", re.MULTILINE))
        terminal.expect_line("remoter>")
        terminal.type("\x03")
        if term == "dumb":  # two signals at once are one
            terminal.wait_for(lambda screen: screen.count("^C") == 2, 30, "the second ^C")
            terminal.expect_line("remoter>")
        terminal.type("\x03")
        terminal.expect(re.compile(r"^-- nothing runs", re.MULTILINE))
        terminal.expect_line("remoter>")
        run.interrupt()
        run.wait(30)
    terminal.type("\x04")
    terminal.expect_end()
    assert re.search("^left `", terminal.text(), re.MULTILINE)


def test_the_way_out_stands_on_a_line_of_its_own_while_a_command_runs(prompt, served):
    terminal = prompt()
    terminal.type("import time; print('be' + 'gun'); time.sleep(60)\r")
    terminal.expect("\nbegun\n")
    terminal.type("\x04")
    terminal.expect_end()
    assert re.search("^left `", terminal.text(), re.MULTILINE)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs a shell with job control")
def test_ctrl_z_suspends_while_a_line_is_typed(served):
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with Terminal(shell, env={**os.environ, "PS1": "shell: "}) as terminal:
        terminal.expect("shell:")
        terminal.type(f"{sys.executable} -m remoter client {served.name}\r")
        terminal.expect_line("remoter>")
        terminal.type("6 * ")
        terminal.expect_line("remoter> 6 *")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect_line("shell:")
        terminal.type("echo 'at the ' shell\r")
        terminal.expect("\nat the  shell\n")
        terminal.type("fg\r")
        terminal.expect_line("remoter> 6 *")
        terminal.type("7\r")
        terminal.expect("\n42\nremoter>")
        terminal.type("\x04")
        terminal.expect("\nleft `")
        terminal.type("exit\r")
        terminal.expect_end()


# --- what comes -------------------------------------------------------------------------------


def test_output_comes_live_and_a_progress_bar_stays_one_line(prompt):
    terminal = prompt()
    enter(terminal, "import sys, time")
    terminal.type("for i in range(4): print(f'\\r{i * 10} %', end='', flush=True); time.sleep(0.1)\r")
    terminal.expect("\n30 %\nremoter>")
    assert "20 %" not in terminal.screen()
    terminal.type("print('to ' + 'stderr', file=sys.stderr); print('to ' + 'stdout')\r")
    terminal.expect("\nto stderr\nto stdout\nremoter>")


LATER = """\
import threading, time, os
def later(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    print('from behind 1'); print('from behind 2'); print('45 %', end='', flush=True)
"""


def test_output_from_behind_comes_above_the_half_typed_line(prompt, served, tmp_path):
    with served.connect() as other:
        other.run(LATER)
    terminal = prompt()
    enter(terminal, f"threading.Thread(target=later, args=['{tmp_path}/go'], daemon=True).start()")
    terminal.type("half typed")
    terminal.expect_line("remoter> half typed")
    (tmp_path / "go").touch()
    terminal.expect("\nfrom behind 1\nfrom behind 2\n45 %\nremoter> half typed")
    terminal.type("\x03")
    terminal.expect_line("remoter>")
    terminal.type("'on ' + 'goes it'\r")
    terminal.expect("45 %\nremoter> 'on ' + 'goes it'\n'on goes it'\nremoter>")


def test_questions_come_here_and_answers_go_there(prompt):
    terminal = prompt()
    terminal.type("name = input('who? '); age = input('your age\\nin years: ')\r")
    terminal.expect_line("who?")
    terminal.type("Ana\r")
    terminal.expect("your age\nin years:")
    terminal.type("42\r")
    terminal.expect_line("remoter>")
    terminal.type("name, age\r")
    terminal.expect("('Ana', '42')\nremoter>")
    terminal.type("input('again? ')\r")
    terminal.expect_line("again?")
    terminal.type("\x04")
    terminal.expect("EOFError")
    terminal.expect_line("remoter>")
    terminal.type("input('again? ')\r")
    terminal.expect(re.compile(r"again\?$"))
    terminal.type("\x03")
    terminal.expect("KeyboardInterrupt")
    terminal.expect_line("remoter>")


def test_a_question_of_a_prompt_that_was_killed_is_asked_again(prompt):
    terminal = prompt()
    terminal.type("name = input('who? ')\r")
    terminal.expect_line("who?")
    terminal.signal(signal.SIGKILL)
    terminal.expect_end()
    again = prompt(ready=False)
    again.expect(re.compile(r"who\?$"))
    again.type("Ana\r")
    again.expect_line("remoter>")
    again.type("name\r")
    again.expect("\n'Ana'\nremoter>")


def test_a_question_answered_elsewhere_goes_away(prompt, served):
    terminal = prompt()
    terminal.type("word = input('word? ')\r")
    terminal.expect_line("word?")
    terminal.type("half")
    terminal.expect_line("word? half")
    with served.connect() as other:
        other.interrupt()
    terminal.expect("KeyboardInterrupt")
    terminal.expect_line("remoter>")


def test_a_flood_is_shown_in_seconds(prompt, served):
    terminal = prompt()
    terminal.type("for i in range(100000): print('line', i)\r")
    terminal.expect_bytes(b"line 99999\r\n", 60)
    # Of the processor's seconds: those of the clock are other programs' too.
    assert sum(map(worked, [terminal.process.pid, served.server_pid, served.worker_pid])) < 15


def worked(pid):
    """For how many seconds the process has had a processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_time_of_each_command_is_shown_on_request(prompt):
    terminal = prompt("--timer")
    began = time.monotonic()
    terminal.type("import time; time.sleep(0.2)\r")
    shown = re.compile(r"^-- (\d\.\d\d|\d\d) s\nremoter>", re.MULTILINE)
    screen = terminal.expect(shown, 30)
    assert 0.2 <= float(shown.search(screen)[1]) <= time.monotonic() - began + 0.5


def test_the_width_of_the_terminal_is_told_with_each_command(prompt):
    terminal = prompt(environment={"COLUMNS": "33"})  # from before the window was made larger
    code = "import shutil; shutil.get_terminal_size().columns"
    terminal.type(code + "\r")
    terminal.expect("\n80\nremoter>")
    terminal.resize(24, 100)
    terminal.type(code + "\r")
    terminal.expect("\n100\nremoter>")


PLOT = """\
import base64
class Plot:
    def _repr_mimebundle_(self, **more):
        return {"image/png": PNG, "text/plain": "a plot"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
from IPython.display import display
"""


def test_a_plot_is_saved_once_and_its_path_is_said(prompt, served, tmp_path):
    with served.connect() as other:
        other.run(PLOT, quiet=True)
    terminal = prompt(environment={"TMPDIR": str(tmp_path)})
    terminal.type("p = Plot(); display(p); display(p)\r")
    terminal.expect(re.compile(r"^plot 1: (\S+)", re.MULTILINE))
    terminal.expect_line("remoter>")
    [path] = tmp_path.glob("remoter-plots-*/plot-1.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "plot 2" not in terminal.screen()


@pytest.mark.parametrize(
    ("environment", "escape"),
    [
        ({"KITTY_WINDOW_ID": "1"}, b"\x1b_Ga=T,f=100,q=2,m=0;iVBORw0KGgo"),
        ({"TERM_PROGRAM": "iTerm.app"}, b"\x1b]1337;File=inline=1;size=70;"),
        ({"TERM_PROGRAM": "WezTerm"}, b"\x1b]1337;File=inline=1;size=70;"),
    ],
)
def test_a_plot_is_drawn_where_the_terminal_can(prompt, served, environment, escape):
    with served.connect() as other:
        other.run(PLOT, quiet=True)
    terminal = prompt(environment=environment)
    terminal.type("display(Plot())\r")
    terminal.expect_bytes(escape)


def test_no_color_is_honoured(prompt):
    terminal = prompt(environment={"NO_COLOR": "1"})
    terminal.type("def f(): return 'text'\r")
    terminal.expect_line("remoter>")
    terminal.type("1/0\r")
    terminal.expect("ZeroDivisionError: division by zero")
    colours = re.findall(rb"\x1b\[[0-9;]*m", bytes(terminal.raw))
    assert all(set(re.findall(rb"\d+", sequence)) <= {b"0"} for sequence in colours), set(colours)


def test_the_end_of_the_interpreter_is_said(prompt, served):
    terminal = prompt()
    terminal.type("import os; os._exit(3)\r")
    terminal.expect("the interpreter died")
    terminal.expect("remoter restart")
    terminal.expect_line("remoter>")


# --- the connection ---------------------------------------------------------------------------


def test_a_silent_server_is_said_typing_goes_on_and_so_does_the_command(prompt, served, go):
    terminal = prompt()
    terminal.type("print('be' + 'gun'); until(); 'res' + 'ult'\r")
    terminal.expect("\nbegun\n")
    os.kill(served.server_pid, signal.SIGSTOP)
    try:
        terminal.expect(re.compile(r"^-- no answer from \S+ for \d+ s\. It goes on there", re.MULTILINE), 30)
        go.touch()
    finally:
        os.kill(served.server_pid, signal.SIGCONT)
    terminal.expect(re.compile(r"^-- back after", re.MULTILINE))
    terminal.expect("'result'")
    terminal.expect_line("remoter>")


def test_a_frozen_link_is_not_taken_for_another_client(prompt, served):
    terminal = prompt()
    os.kill(served.server_pid, signal.SIGSTOP)
    try:
        terminal.type("6 * 7\r")
        terminal.expect(re.compile(r"^-- no answer from", re.MULTILINE), 30)
    finally:
        os.kill(served.server_pid, signal.SIGCONT)
    terminal.expect("\n42\nremoter>")
    assert "waits for" not in terminal.text()


def test_a_lost_link_is_seen_under_the_line_that_is_typed(prompt, served):
    terminal = prompt()
    os.kill(served.server_pid, signal.SIGSTOP)
    try:
        terminal.type("half typ")
        terminal.expect(re.compile("^-- no answer from .*\n?.*trying to come back", re.MULTILINE), 30)
        terminal.type("ed")
        terminal.expect("remoter> half typed")
    finally:
        os.kill(served.server_pid, signal.SIGCONT)
    terminal.expect("-- back after")
    terminal.expect_line("remoter> half typed")


# --- our own calls ----------------------------------------------------------------------------


def test_local_calls_are_done_here_and_marked(prompt, served):
    terminal = prompt()
    terminal.type("evalc('x = 20\\ny = 22')\r")
    enter(terminal, "x = 'there'")
    terminal.type("evalc(x + y)\r")
    terminal.expect("\nhere| 42\nremoter>")
    terminal.type("lsc()\r")
    terminal.expect("\nhere| x  y\nremoter>")
    terminal.type("rmc(x)\r")
    terminal.type("evalc(x)\r")
    terminal.expect("here| NameError: name 'x' is not defined")
    terminal.type("x\r")
    terminal.expect("\n'there'\nremoter>")
    terminal.type("is_secure()\r")
    terminal.expect("\nhere| True\nremoter>")
    terminal.type("evalc(__import__('os').getpid())\r")
    terminal.expect(f"\nhere| {terminal.process.pid}\n")


def test_mixed_input_runs_in_order_each_at_its_place(prompt):
    terminal = prompt()
    terminal.type("\x1b[200~x = 1\nevalc(y := 5)\nx += 1; lsc(); x\x1b[201~\r")
    terminal.expect("here| 5\nhere| y\n2\nremoter>")
    terminal.type("\x1b[200~1/0\nevalc(z := 5)\x1b[201~\r")
    terminal.expect("ZeroDivisionError: division by zero")
    terminal.expect("stopped here")
    terminal.type("lsc()\r")
    terminal.expect("\nhere| y\nremoter>")


def test_a_local_call_inside_other_code_gets_a_hint(prompt):
    terminal = prompt()
    terminal.type("d = lsc()\r")
    terminal.expect("`lsc()` is a call of this prompt")
    terminal.expect_line("remoter>")


def test_a_name_of_the_session_shadows_ours_and_that_is_said_once(prompt):
    terminal = prompt()
    enter(terminal, "def lsc(): return 'the ' + 'other'")
    terminal.type("lsc()\r")
    terminal.expect("-- `lsc` is a name of your session")
    terminal.expect("'the other'\nremoter>")
    enter(terminal, "lsc()")
    assert terminal.screen().count("is a name of your session") == 1


def test_the_log_shows_what_the_session_put_out(prompt):
    terminal = prompt()
    enter(terminal, "print('one'); print('two')")
    terminal.type("showlog()\r")
    terminal.expect("remoter> showlog()\n> print('one'); print('two')\none\ntwo\nremoter>")


# --- without a terminal -----------------------------------------------------------------------


def test_a_dumb_terminal_gets_the_same_with_plain_input(prompt):
    terminal = prompt(term="dumb")
    terminal.type("6 * 7\n")
    terminal.expect("\n42\nremoter>")
    terminal.type("for i in 'ab':\n")
    terminal.expect_line("       +")
    terminal.type("    print('letter', i)\n")
    terminal.expect("+     print('letter', i)\n       +")
    terminal.type("\n")
    terminal.expect("letter a\nletter b\nremoter>")
    terminal.type("name = input('who? '); name[::-1]\n")
    terminal.expect_line("who?")
    terminal.type("Ana\n")
    terminal.expect("'anA'\nremoter>")
    terminal.type("import time; print('be' + 'gun'); time.sleep(30)\n")
    terminal.expect("\nbegun\n")
    terminal.type("\x03")
    terminal.expect("KeyboardInterrupt")
    terminal.expect_line("remoter>")
    terminal.type("lsc()\n")
    terminal.expect("here| no objects here")
    terminal.type("exit()\n")
    assert terminal.expect_end() == 0
    assert f"left `{served_name(terminal)}`" in terminal.screen()


def test_what_comes_at_a_dumb_terminal_stands_on_lines_of_its_own(prompt, served, tmp_path):
    with served.connect() as other:
        other.run(LATER)
    terminal = prompt(term="dumb")
    terminal.type(f"threading.Thread(target=later, args=['{tmp_path}/go'], daemon=True).start()\n")
    terminal.expect(re.compile(r"start\(\)\nremoter>$"))
    (tmp_path / "go").touch()
    terminal.expect(
        re.compile(r"^remoter>\nfrom behind 1\n(remoter>\n)?from behind 2\nremoter>$", re.MULTILINE)
    )
    terminal.type("6 * 7\n")
    # The unfinished line may come now only; then it is among what the command puts out.
    terminal.expect(re.compile(r"^remoter> 6 \* 7\n(45 %\n)?42\nremoter>$", re.MULTILINE))


def test_sshs_word_on_a_wrong_password_is_left_to_the_question_that_follows():
    inbox = Inbox(lambda: None, lambda: False)
    inbox.tell("Permission denied, please try again.\r\nthe host is full\n")
    assert inbox.take_told() == ["the host is full"]


def served_name(terminal):
    """The session's name as the greeting gave it."""
    return re.search(r"`(\S+)`", terminal.text())[1]


def test_piped_input_runs_as_a_script(served):
    done = subprocess.run(
        [*REMOTER, "client", served.name], input="x = 6\nx * 7\n", capture_output=True, text=True, timeout=15
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "42\n"
    failed = subprocess.run(
        [*REMOTER, "client", served.name], input="1/0\n", capture_output=True, text=True, timeout=15
    )
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr + failed.stdout


def test_the_local_side_of_a_call_from_python_is_the_caller(served, tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(
        f"import remoter\ncutoff = 12.5\nremoter.client({served.name!r}, prompt='big')\nprint('new', new)\n"
    )
    with Terminal([sys.executable, str(script)], env=dict(os.environ)) as terminal:
        terminal.expect_line("big>")
        terminal.type("evalc(new := cutoff * 2)\r")
        terminal.expect("here| 25.0\nbig>")
        terminal.type("\x04")
        assert terminal.expect_end() == 0
        assert "\nnew 25.0" in terminal.screen()


def test_where_no_session_runs_one_is_offered(tmp_path):
    script = tmp_path / "caller.py"
    script.write_text("import remoter\nremoter.client()\n")
    with Terminal([sys.executable, str(script)], env=dict(os.environ)) as terminal:
        terminal.expect_line("no session runs on this machine. Start one? [Y/n]")
        terminal.type("y\r")
        terminal.expect_line("remoter>", 30)
        terminal.type("shutdown()\r")
        terminal.expect("ended `main`")
        terminal.expect_end()
    assert wait_for(lambda: not list(records()), 10)


def test_a_closed_terminal_leaves_the_command_running_and_remembers_the_visit(prompt, served, home):
    terminal = prompt()
    enter(terminal, "import threading; gate = threading.Event()")
    terminal.type("print('be' + 'gun'); gate.wait()\r")
    terminal.expect("\nbegun\n")
    terminal.signal(signal.SIGHUP)  # what the end of a terminal is to the program in it
    terminal.expect_end()
    terminal.close()
    assert list((home / "state" / "visits").glob("*.json"))
    with served.connect() as other:
        assert other.info.busy
        other.interrupt()


def test_the_terminal_is_as_it_was_after_the_prompt(served):
    with Terminal(
        ["sh", "-c", f"stty -g; {sys.executable} -m remoter client {served.name}; stty -g"]
    ) as terminal:
        terminal.expect_line("remoter>")
        terminal.type("1 + 1\r")
        terminal.expect("\n2\nremoter>")
        terminal.type("\x04")
        assert terminal.expect_end() == 0
        settings = re.findall(r"^[0-9a-f:]{20,}[0-9a-f:\n]*", terminal.text(), re.MULTILINE)
        assert len(settings) == 2
        assert settings[0].strip() == settings[1].strip()


# --- without a session ------------------------------------------------------------------------


def stretches(code):
    """Where each stretch of the code would run."""
    return [(piece.verb or "there", piece.code) for piece in pieces(code)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("lsc()", [("lsc", "lsc()")]),
        ("d = lsc()", [("there", "d = lsc()")]),
        ("exit", [("exit", "exit")]),
        ("exit_code = 3", [("there", "exit_code = 3")]),
        ("print(lsc())", [("there", "print(lsc())")]),
        ("if x: exit()", [("there", "if x: exit()")]),
        ("def f():\n    exit()\n", [("there", "def f():\n    exit()\n")]),
        ("s = '''\nexit()\n'''", [("there", "s = '''\nexit()\n'''")]),
        ("obj.exit()", [("there", "obj.exit()")]),
        ("%time lsc()", [("there", "%time lsc()")]),
        ("x = 1; lsc(); x", [("there", "x = 1"), ("lsc", "lsc()"), ("there", "x")]),
        ("é = 1; lsc(); é;", [("there", "é = 1"), ("lsc", "lsc()"), ("there", "é;")]),
        (
            "@decorate\ndef f():\n    pass\nevalc(a + 1)\n@decorate\ndef g():\n    pass\n",
            [
                ("there", "@decorate\ndef f():\n    pass"),
                ("evalc", "evalc(a + 1)"),
                ("there", "@decorate\ndef g():\n    pass"),
            ],
        ),
    ],
)
def test_only_statements_of_their_own_are_calls_of_the_prompt(code, expected):
    assert stretches(code) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 + 1", ("complete", "")),
        ("for i in x:", ("incomplete", "    ")),
        ("for i in x:\n    print(i)", ("incomplete", "    ")),
        ("for i in x:\n    print(i)\n", ("complete", "")),
        ("for i in x: print(i)", ("complete", "")),
        ("def f():\n    return 1", ("incomplete", "")),
        ("x = (1,", ("incomplete", "")),
        ("x = )", ("invalid", "")),
    ],
)
def test_completeness_is_judged_here_when_the_session_is_slow(code, expected):
    assert judge(code) == expected


def test_a_failure_on_this_side_stays_here_and_assignments_last():
    written = []
    side = LocalSide(None, written.append)
    [assign] = pieces("evalc(total=40 + 2)")
    [show] = pieces("evalc(total)")
    [leave] = pieces("evalc('import sys; sys.exit(3)')")
    [unknown] = pieces("rmc(nothing)")
    assert side.do(assign)
    assert side.do(show)
    assert not side.do(leave)
    assert not side.do(unknown)
    assert written[0] == "here| 42\n"
    assert all(line.startswith("here| ") for line in "".join(written).splitlines())
    assert "SystemExit: 3" in "".join(written)


def test_a_kitty_picture_is_sent_in_pieces_of_4096():
    text = kitty(bytes(10_000))
    assert [len(part) for part in re.findall(r";([A-Za-z0-9+/=]+)\x1b", text)] == [4096, 4096, 4096, 1048]
    assert text.count("m=1") == 3
    assert text.endswith("\x1b\\")
