"""`%remoter`, `%push` and `%pull`: in an IPython of this process, in one in a terminal, and in real notebooks."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from traitlets.config import Config

import remoter
from remoter import _magics, _trust

from .conftest import wait_for
from .terminal import Terminal

EXTENSION = "remoter"
OPENED_BY_PICKLE = "class Forest:\n    trees = 7\nmodel = Forest()"


class Shell:
    """An IPython in this process; what a cell printed and how it failed can be looked at."""

    def __init__(self, capsys):
        self._capsys = capsys
        self.ipython = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
        self.names = self.ipython.user_ns
        self.error = None
        self.run(f"%load_ext {EXTENSION}")

    def run(self, cell):
        """What the cell prints, tracebacks too."""
        self._capsys.readouterr()
        self.error = self.ipython.run_cell(cell).error_in_exec
        return "".join(self._capsys.readouterr())

    def close(self):
        self.run(f"%unload_ext {EXTENSION}")
        self.ipython.restore_sys_module_state()
        InteractiveShell.clear_instance()


@pytest.fixture
def shell(capsys):
    opened = Shell(capsys)
    yield opened
    opened.close()


@pytest.fixture
def person(monkeypatch):
    """Somebody who sits here and answers; the questions are kept."""
    answers, questions = [], []

    def answer(question, hidden):
        questions.append(question)
        return answers.pop(0)

    monkeypatch.setattr(_magics, "is_person_here", lambda: True)
    monkeypatch.setattr(_magics, "ask_at_terminal", answer)
    return SimpleNamespace(answers=answers, questions=questions)


# --- connecting ------------------------------------------------------------------------------


def test_connecting_says_where_it_is_and_asking_again_says_it_again(served, shell):
    version = ".".join(map(str, sys.version_info[:3]))
    greeting = f"session `main` on this machine: Python {version}, pid {served.worker_pid}\n"
    assert shell.run("%remoter main") == greeting
    assert shell.run("%remoter main") == greeting
    assert shell.run("%remoter") == greeting
    assert shell.run("%remoter --close") == "left session `main`; it goes on\n"
    assert shell.run("%%remoter\n6 * 7") == f"{greeting}42\n"  # the only one here
    assert shell.error is None


def test_the_session_that_was_named_last_is_the_current_one(serve, shell):
    for name in ("one", "two"):
        serve(name=name, runner="plain")
        shell.run(f"%%remoter {name}\nme = {name!r}")
    assert shell.run("%%remoter\nme") == "'two'\n"
    assert shell.run("%%remoter one\nme") == "'one'\n"
    assert shell.run("%%remoter\nme") == "'one'\n"
    assert "`two`" in shell.run("%remoter two")
    assert shell.run("%%remoter\nme") == "'two'\n"
    assert shell.run("%remoter --close one") == "left session `one`; it goes on\n"
    assert shell.run("%%remoter\nme") == "'two'\n"


def test_a_session_that_has_ended_is_not_replaced_in_silence(serve, shell):
    served = serve(runner="plain")
    shell.run("%%remoter main\nx = 1")
    with served.connect() as other:
        other.shutdown()
    served.stop()
    wait_for(lambda: "has ended" in shell.run("%%remoter\nx"), what="the end is known")
    serve(runner="plain")
    shown = shell.run("%%remoter main\nx = 2")
    assert re.match(r"error: session `main` has ended +\[\w+\]\n", shown)
    assert " hint: `%remoter main` connects to what runs there now" in shown
    assert isinstance(shell.error, remoter.LinkLostError)
    assert shell.run("%remoter main").startswith("session `main` on this machine: ")
    assert "NameError" in shell.run("%%remoter\nx")


def test_a_password_file_is_used(served, shell, home):
    file = home / "home" / "password"
    for password, shown in [("wrong", "error: "), (served.password, "host 127.0.0.1")]:
        file.write_text(f"{password}\n")
        file.chmod(0o600)
        assert shell.run(f"%remoter 127.0.0.1:{served.port} --password-file ~/password").startswith(shown)


def test_an_insecure_connection_is_told(serve, shell):
    serve(secure=False, runner="plain")
    assert "NOT secure" in shell.run("%remoter main --insecure")


def test_unloading_closes_the_connections_and_takes_the_magics_back(served, shell):
    shell.run("%remoter main")
    with served.connect() as session:
        assert len(session.info.clients) == 2
        shell.run(f"%unload_ext {EXTENSION}")
        wait_for(lambda: len(session.info.clients) == 1, what="it has left")
    for magic in ("%remoter", "%%remoter\nx", "%push x", "%pull x"):
        assert "not found" in shell.run(magic)
    shell.run(f"%load_ext {EXTENSION}")
    assert shell.run("%%remoter\n6 * 7").endswith("42\n")


def test_the_extension_costs_nothing_until_it_is_loaded():
    code = "import sys, remoter; print('IPython' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- errors of ours --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (
            "%remoter",
            r"error: no session runs on this machine   \[no-session\]\n hint: .*\n hint: .*`--start`\n",
        ),
        ("%remoter a b", r"error: unrecognized arguments: b   \[usage\]\n hint: `%remoter\?` shows .*\n"),
        ("%%remoter --frob x\n1", r"error: unrecognized arguments: --frob   \[usage\]\n hint: .*\n"),
        ('%remoter "a', r"error: `\"a` cannot be read: no closing quotation   \[usage\]\n hint: .*\n"),
        ("%remoter --close", r"error: no session is connected   \[closed\]\n hint: .*\n"),
        ("%remoter --close big", r"error: `big` is not connected   \[closed\]\n hint: .*\n"),
        ("%remoter http://big", r"(?s)error: .*"),
        ("%push", r"error: `%push` takes names   \[usage\]\n hint: .*\n"),
        ("%pull --as y", r"error: `%pull` takes names   \[usage\]\n hint: .*\n"),
        ("%pull x --as", r"error: `%pull` takes names   \[usage\]\n hint: .*\n"),
        ("%pull x y --as z", r"error: one name for 2 objects   \[usage\]\n hint: .*\n"),
        ("%pull x[0]", r"error: `x\[0\]` is no name, .*   \[usage\]\n hint: `%pull x\[0\] --as NAME`\n"),
        ("%pull x --as 2x", r"(?s)error: `2x` .*\[name\]\n.*"),
    ],
)
def test_an_error_of_ours_is_said_without_a_traceback_and_the_cell_has_failed(shell, cell, shown):
    printed = shell.run(cell)
    assert re.fullmatch(shown, printed), printed
    assert isinstance(shell.error, remoter.RemoterError)


def test_a_program_in_the_notebook_can_catch_our_errors(shell):
    cell = "import remoter\ntry:\n    %remoter\nexcept remoter.ConnectError as error:\n    print(error.id)"
    assert shell.run(cell) == "no-session\n"


def test_help_says_what_can_be_written(shell, capsys):
    doc = shell.ipython.find_line_magic("remoter").__doc__
    options = set(re.findall(r"--[a-z-]+", doc))
    assert options == {f"--{name.replace('_', '-')}" for name in vars(_magics._parse(""))} - {"--address"}


# --- cells -----------------------------------------------------------------------------------


def test_a_cell_runs_there_and_is_shown_here(served, shell):
    shell.run("%remoter main")
    shown = shell.run("%%remoter\nimport os, sys\nprint('out')\nprint('err', file=sys.stderr)\nos.getpid()")
    assert sorted(shown.splitlines()) == sorted(["out", "err", str(served.worker_pid)])
    assert "os" not in shell.names


def test_what_is_printed_is_shown_before_the_cell_is_over_and_its_question_is_asked_here(
    shell, served, person, capsys
):
    shell.run("%remoter main")
    before = []
    person.answers.append("Ana")
    answer = _magics.ask_at_terminal
    _magics.ask_at_terminal = lambda *about: (before.append(capsys.readouterr().out), answer(*about))[1]
    assert shell.run("%%remoter\nprint('first', flush=True)\ninput('who? ')") == "'Ana'\n"
    assert (before, person.questions) == (["first\n"], ["who? "])


def test_a_question_that_nobody_can_answer_is_the_end_of_the_file(shell, served):
    shell.run("%remoter main")
    assert "EOFError" in shell.run("%%remoter\ninput()")


def test_a_failure_there_is_shown_as_there_and_fails_the_cell_here(shell, served):
    shell.run("%remoter main")
    shown = shell.run("%%remoter\nprint('before')\ndef f():\n    return 1 / 0\nf()")
    assert shown.startswith("before\n")
    assert shown.endswith("ZeroDivisionError: division by zero\n")
    assert "return 1 / 0" in shown
    assert "_magics" not in shown
    assert "RunError" not in shown
    assert isinstance(shell.error, remoter.RunError)
    assert str(shell.error) == "ZeroDivisionError: division by zero"
    assert shell.error.result.stdout == "before\n"
    assert shell.run("%%remoter\n6 * 7") == "42\n"


def test_a_cell_whose_interpreter_dies_says_so(shell, served):
    shell.run("%remoter main")
    shown = shell.run("%%remoter\nimport os\nos._exit(3)")
    assert "error: the interpreter on session `main` died   [died]" in shown
    assert "`remoter restart main`" in shell.run("%remoter")


def test_leaving_in_a_cell_leaves_nothing(shell, served):
    shell.run("%remoter main")
    assert "exit with 3; the session goes on" in shell.run("%%remoter\nimport sys\nsys.exit(3)")
    assert shell.run("%%remoter\n6 * 7") == "42\n"


def test_a_cell_that_has_to_wait_says_for_what(shell, served):
    with served.connect() as other:
        run = other.submit("input()")
        wait_for(lambda: run._asks, what="it asks")
        shell.run("%remoter main")
        heard = threading.Event()
        say, _magics._say = _magics._say, lambda text: (say(text), heard.set())
        try:
            waiter = threading.Thread(target=lambda: (heard.wait(30), run.answer("go on")))
            waiter.start()
            shown = shell.run("%%remoter\n6 * 7")
            waiter.join()
        finally:
            _magics._say = say
    assert shown == "-- waits for the running command of another client; interrupt takes it back\n42\n"


def test_outside_of_notebooks_a_picture_is_a_file(shell, served):
    shell.run("%remoter main")
    figure = "from matplotlib import pyplot\npyplot.plot([1, 2])\npyplot.show()"
    shown = shell.run(f"%%remoter\n{figure}")
    (path,) = re.findall(r"^plot 1: (.*\.png)$", shown, re.MULTILINE)
    with open(path, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("mime", "form", "published"),
    [
        ("image/png", b"\x89PNG", "iVBORw=="),
        ("image/svg+xml", "<svg/>", "<svg/>"),
        ("application/vnd.vegalite.v5+json", '{"mark": "bar"}', {"mark": "bar"}),
        ("application/json", "{", "{"),
        ("text/html", "<b>1</b>", "<b>1</b>"),
    ],
)
def test_forms_are_published_as_jupyter_wants_them(mime, form, published):
    assert _magics._as_published(mime, form) == published


# --- objects ---------------------------------------------------------------------------------


def test_objects_go_there_and_come_back(shell, served):
    shell.run("%remoter main")
    shell.names.update(a=[1, 2], b={"k": "v"})
    assert re.fullmatch(r"a: list of 2, \d+ bytes\nb: dict of 1, \d+ bytes\n", shell.run("%push a b"))
    shell.run("%%remoter\na.append(3)")
    shown = shell.run("%pull a b")
    assert shown == "a: list of 3; replaced list of 2\nb: dict of 1; replaced dict of 1\n"
    assert (shell.names["a"], shell.names["b"]) == ([1, 2, 3], {"k": "v"})


def test_objects_can_have_another_name_and_be_expressions(shell, served):
    shell.run("%remoter main")
    shell.run("n = 3\nwords = ['x y', '--as']")
    shell.run("%push n * 2 --as double")
    assert shell.run("%%remoter\ndouble") == "6\n"
    assert "replaced" in shell.run("%push n --as double")
    shown = shell.run('%pull [double, "a  b", {1: 2}] --as got')
    assert shown.startswith("got: list")
    assert "replaced" not in shown
    assert shell.names["got"] == [3, "a  b", {1: 2}]
    shell.run("%pull double --as=thrice")
    assert shell.names["thrice"] == 3


def test_what_is_missing_is_said_and_nothing_is_bound(shell, served):
    shell.run("%remoter main")
    shown = shell.run("%push nosuch")
    assert re.match(r"error: no object `nosuch` here   \[name\]\n hint: ", shown)
    shell.names["x"] = "mine"
    shown = shell.run("%pull x")
    assert shown.startswith("error: ")
    assert isinstance(shell.error, remoter.NameNotFoundError)
    assert shell.names["x"] == "mine"
    shown = shell.run("%pull 1 / 0 --as x")
    assert shown.endswith("ZeroDivisionError: division by zero\n")
    assert shell.names["x"] == "mine"


@pytest.mark.parametrize(
    ("answer", "opened", "kept"), [("no", False, False), ("once", True, False), ("always", True, True)]
)
def test_a_pickle_is_opened_only_if_the_person_says_so(shell, served, person, answer, opened, kept):
    shell.run("%remoter main")
    shell.run(f"%%remoter\n{OPENED_BY_PICKLE}")
    person.answers.append(answer)
    shown = shell.run("%pull model")
    assert ("model" in shell.names) is opened
    assert "running code chosen by" in person.questions[0]
    if opened:
        assert shell.names["model"].trees == 7
    else:
        assert "[unsafe]" in shown
        assert shown.count(" hint: ") == 2
    assert [pin.public for pin in _trust.trusted()] == ([served.record["server_public"]] if kept else [])
    del person.answers[:]
    if kept:
        shell.run("%pull model --as again")  # not asked
        assert shell.names["again"].trees == 7


def test_an_expression_is_evaluated_once_whatever_is_answered(shell, served, person):
    shell.run("%remoter main")
    shell.run(f"%%remoter\n{OPENED_BY_PICKLE}\nseen = []")
    person.answers.append("once")
    assert shell.run('%pull [seen.append(1), print("looked"), model][2] --as mine').startswith(
        "looked\nmine: "
    )
    assert shell.names["mine"].trees == 7
    assert shell.run("%%remoter\nseen") == "[1]\n"


def test_where_nobody_can_be_asked_a_pickle_stays_there(shell, served):
    shell.run("%remoter main")
    shell.run(f"%%remoter\n{OPENED_BY_PICKLE}")
    shown = shell.run("%pull model")
    assert "[unsafe]" in shown
    assert shown.count(" hint: ") == 2
    assert "model" not in shell.names
    shell.run("%remoter main --trust")
    shell.run("%pull model")
    assert shell.names["model"].trees == 7


# --- IPython in a terminal -------------------------------------------------------------------


def test_in_a_terminal_ctrl_c_ends_the_cell_there_and_only_that(served):
    with Terminal([sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner"]) as terminal:
        terminal.expect_line("In [1]:")
        terminal.type(f"%load_ext {EXTENSION}\r")
        terminal.expect_line("In [2]:")
        terminal.type("%remoter main\r")
        terminal.expect("session `main`")
        terminal.expect_line("In [3]:")
        # In one expression: between two there is no code of the user's that a traceback could show.
        code = "[print('begun', flush=True), __import__('time').sleep(60)]"
        terminal.type(f'get_ipython().run_cell_magic("remoter", "", "{code}")\r')
        terminal.expect(re.compile("^begun$", re.MULTILINE))
        terminal.type("\x03")
        terminal.expect("KeyboardInterrupt")
        terminal.expect_line("In [4]:")
        terminal.type('get_ipython().run_cell_magic("remoter", "", "6 * 7")\r')
        terminal.expect(re.compile("^42$", re.MULTILINE))
        assert terminal.text().count("Traceback") == 1  # that of there
        assert "run_cell_magic(magic_name" not in terminal.text()
        terminal.type("exit\r")
        terminal.expect_end()


# --- in a notebook ---------------------------------------------------------------------------


class Notebook:
    """A notebook that a program runs, in a kernel of its own."""

    def __init__(self):
        self._client = NotebookClient(new_notebook(), kernel_name="python3", timeout=60, allow_errors=True)
        self._context = contextlib.ExitStack()
        self._context.enter_context(self._client.setup_kernel())
        self.run(f"%load_ext {EXTENSION}")

    def add(self, source):
        self._client.nb.cells.append(new_code_cell(source))
        return self._client.nb.cells[-1]

    def run(self, source):
        """The cell's outputs, as they would stand in the notebook's file."""
        cell = self.add(source)
        self.execute(cell)
        return cell.outputs

    def execute(self, cell):
        self._client.execute_cell(cell, self._client.nb.cells.index(cell))

    def interrupt(self):
        """What the stop button does."""
        os.killpg(os.getpgid(self._client.km.provisioner.pid), signal.SIGINT)

    def close(self):
        nbformat.validate(self._client.nb)
        self._context.close()


@pytest.fixture
def notebook(home):
    with contextlib.closing(Notebook()) as opened:
        yield opened


def texts(outputs):
    """What was printed and shown, as text."""
    return "".join(output.text if "text" in output else output.data["text/plain"] for output in outputs)


def test_a_notebook_with_pictures_tables_errors_and_objects(served, notebook):
    assert texts(notebook.run("%remoter main")).startswith("session `main` on this machine: Python ")

    # By itself: where that takes long, matplotlib says so among the outputs.
    notebook.run("%%remoter\nimport pandas\nfrom matplotlib import pyplot")
    outputs = notebook.run(
        "%%remoter\n"
        "print('before')\npyplot.plot([1, 2])\npyplot.show()\nprint('between')\n"
        "frame = pandas.DataFrame({'k': [1, 2, 3]})\nframe"
    )
    assert [output.output_type for output in outputs] == ["stream", "display_data", "stream", "display_data"]
    assert [outputs[0].text, outputs[2].text] == ["before\n", "between\n"]
    assert outputs[1].data["image/png"].startswith("iVBORw0KGgo")
    assert "<table" in outputs[3].data["text/html"]
    assert "k" in outputs[3].data["text/plain"]

    (failed,) = notebook.run("%%remoter\ndef f():\n    return 1 / 0\nf()")
    assert (failed.output_type, failed.evalue) == ("error", "ZeroDivisionError: division by zero")
    shown = "\n".join(failed.traceback)
    assert "return 1 / 0" in shown
    assert "_magics" not in shown
    assert "\x1b" not in shown

    (failed,) = notebook.run("%remoter nosuch:1")
    assert failed.output_type == "error"
    assert failed.traceback[0].startswith("error: ")

    assert "replaced" not in texts(notebook.run("%pull frame"))
    assert texts(notebook.run("int(frame.k.sum())")) == "6"
    assert "; replaced DataFrame" in texts(notebook.run("frame['l'] = 7\n%push frame"))
    assert texts(notebook.run("%%remoter\nlist(frame.columns)")) == "['k', 'l']"


def test_stopping_a_cell_stops_it_there_and_the_session_goes_on(served, notebook):
    notebook.run("%%remoter main\nimport time\nx = 5")
    cell = notebook.add("%%remoter\nprint('begun', flush=True)\nwhile True: time.sleep(0.05)")

    def stop():
        wait_for(lambda: texts(cell.outputs) == "begun\n", what="its first line, while it runs")
        notebook.interrupt()

    stopper = threading.Thread(target=stop)
    stopper.start()
    notebook.execute(cell)
    stopper.join()
    _, failed = cell.outputs
    assert failed.evalue == "KeyboardInterrupt"
    assert "_magics" not in "\n".join(failed.traceback)
    with served.connect() as session:
        assert not session.info.busy
    assert texts(notebook.run("%%remoter\nx")) == "5"


def test_a_cell_that_does_not_end_when_it_is_stopped_can_be_left(served, notebook):
    notebook.run("%%remoter main\nimport time")
    cell = notebook.add(
        "%%remoter\nis_over = False\nwhile not is_over:\n    try:\n        print('begun', flush=True)\n"
        "        while not is_over: time.sleep(0.05)\n    except KeyboardInterrupt: pass"
    )

    def stop():
        for word in ("begun\n", "interrupt again to leave it running\n"):
            wait_for(lambda word=word: word in texts(cell.outputs), what=word)
            notebook.interrupt()

    stopper = threading.Thread(target=stop)
    stopper.start()
    notebook.execute(cell)
    stopper.join()
    assert cell.outputs[-1].traceback == [
        "KeyboardInterrupt: left running; `remoter interrupt main` interrupts it again"
    ]
    with served.connect() as session:
        assert session.info.busy
        session.restart()
        assert session.run("6 * 7", quiet=True).text == "42"


def test_a_notebook_asks_in_its_own_input_line(served):
    manager, client = start_new_kernel(kernel_name="python3")
    questions = []

    def answer(message):
        questions.append((message["content"]["prompt"], message["content"]["password"]))
        client.input("Ana")

    def run(code):
        lines = []
        done = client.execute_interactive(
            code,
            stdin_hook=answer,
            timeout=60,
            output_hook=lambda message: lines.append(message["content"].get("data", {}).get("text/plain")),
        )
        assert done["content"]["status"] == "ok"
        return [line for line in lines if line]

    try:
        run(f"%load_ext {EXTENSION}")
        run("%remoter main")
        code = "%%remoter\nimport getpass\n[input('who? '), getpass.getpass('password: ')]"
        assert run(code) == ["['Ana', 'Ana']"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    assert questions == [("who? ", False), ("password: ", True)]


def test_a_transfer_that_takes_long_has_one_line_in_the_notebook(served, notebook):
    notebook.run("%remoter main")
    notebook.run("import remoter._progress\nremoter._progress.PATIENCE = 0.0")
    outputs = notebook.run("x = bytes(100_000_000)\n%push x")
    shown = [output.data["text/plain"] for output in outputs if output.output_type == "display_data"]
    assert len(shown) == 1
    assert re.fullmatch(r"x: 100 MB in \d[\d.]* m?s \([\d.]+ [MG]B/s\)", shown[0])
    assert texts(outputs[1:]).startswith("x: bytes")
