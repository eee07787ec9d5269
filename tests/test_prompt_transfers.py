"""Objects and files that cross at the prompt, as a person sees it: on a terminal, with a real session behind it."""

import ast
import os
import re
import socket
import stat
import subprocess
import sys
import time

import pytest

from remoter._errors import RemoterError
from remoter._verbs import HELP, LocalSide, cargo, paths, pieces

from .conftest import wait_for
from .proxy import Proxy
from .terminal import Terminal
from .test_prompt import enter, go

__all__ = ["go"]

REMOTER = [sys.executable, "-m", "remoter"]


@pytest.fixture
def prompt(served, here):
    """Opens prompts on the one session, in a directory of their own; closes their terminals."""
    terminals = []

    def start(*arguments, environment=None, **options):
        env = {**os.environ, **(environment or {})}
        options = {"cwd": str(here), "size": (40, 160), **options}
        terminal = Terminal([*REMOTER, "client", served.name, *arguments], env=env, **options)
        terminals.append(terminal)
        terminal.expect_line("remoter>")
        return terminal

    yield start
    for terminal in terminals:
        terminal.close()


def said(terminal, code):
    """What was written on this side for a line."""
    before = len(terminal.text().splitlines())
    enter(terminal, code)
    lines = terminal.text().splitlines()[before - 1 :]
    return [line.removeprefix("here| ") for line in lines if line.startswith("here| ")]


# --- what was typed ---------------------------------------------------------------------------


def meant(read, code):
    """What a typed call means."""
    [piece] = pieces(code)
    return read(piece)


@pytest.mark.parametrize(
    ("code", "source", "name", "overwrite"),
    [
        ("s2c(x)", "x", "x", True),
        ("s2c('x')", "x", "x", True),
        ("s2c(x, 'y')", "x", "y", True),
        ("s2c(x, newname='y', overwrite=False)", "x", "y", False),
        ("s2c(object=x)", "x", "x", True),
        ("s2c(df.head(), 'top')", "df.head()", "top", True),
        ("s2c('df.head(2)', 'top')", "df.head(2)", "top", True),
        ("c2s(x)", "x", "x", True),
        ("c2s(a + b, 'total')", "a + b", "total", True),
        ("c2s('text', 'greeting')", "'text'", "greeting", True),
        ("c2s([f(i) for i in 'ab'], newname='y')", "[f(i) for i in 'ab']", "y", True),
    ],
)
def test_an_object_is_a_name_or_an_expression_with_a_name(code, source, name, overwrite):
    found = meant(cargo, code)
    assert (ast.unparse(found.source), found.name, found.overwrite) == (source, name, overwrite)


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("s2c()", "takes an object", "`s2c(x)`"),
        ("s2c(df.head())", "`df.head()` is no name, and what it gives needs one", '`s2c(df.head(), "NAME")`'),
        ("s2c('df.head()')", "`df.head()` is no name", "NAME"),
        ("s2c('x = 1')", "no name and no expression", ""),
        ("s2c('1 +')", "no name and no expression", ""),
        ("c2s('x')", "`'x'` is no name", "NAME"),
        ("s2c(x, y)", "`newname` of `s2c` is a text between quotes, not `y`", 's2c(x, "y")'),
        ("s2c(x, 'y', 'z')", "takes 2 arguments, not 3", "`overwrite=`"),
        ("s2c(x, name='y')", "has no argument `name`", "`newname`"),
        ("s2c(x, 'y', newname='z')", "is given `newname` twice", ""),
        ("s2c(x, overwrite=1)", "`overwrite` of `s2c` is True or False", ""),
        ("s2c(*x)", "takes no `*`", ""),
        ("c2s(**x)", "takes no `*`", ""),
    ],
)
def test_an_object_that_cannot_be_meant_is_an_error_that_says_how(code, message, hint):
    with pytest.raises(RemoterError, match=re.escape(message)) as caught:
        meant(cargo, code)
    assert hint in " ".join(caught.value.hints)
    assert caught.value.id == "arguments"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sendfile('a', 'b')", ("a", "b", {})),
        ("sendfile('a')", ("a", None, {})),
        ("recvfile('runs/' '*.csv', to='b')", ("runs/*.csv", "b", {})),
        ("recvfile(path='a', to='b', overwrite=True)", ("a", "b", {"overwrite": True})),
        (
            "sendfile('a', 'b', update=True, resume=False, symlinks='keep', compress=False)",
            ("a", "b", {"update": True, "resume": False, "symlinks": "keep", "compress": False}),
        ),
    ],
)
def test_paths_are_texts_between_quotes(code, expected):
    assert meant(paths, code) == expected


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sendfile()", "takes the path of a file or folder"),
        ("sendfile(x, 'b')", "`path` of `sendfile` is a text between quotes, not `x`"),
        ("sendfile('a', f'{x}')", "`to` of `sendfile` is a text between quotes"),
        ("recvfile(Path('a'), 'b')", "`path` of `recvfile` is a text between quotes"),
        ("recvfile('a', 'b', 'c')", "takes 2 arguments"),
        ("recvfile('a', verbose=True)", "has no argument `verbose`"),
        ("recvfile('a', overwrite='yes')", "`overwrite` of `recvfile` is True or False"),
        ("recvfile('a', symlinks=True)", "`symlinks` of `recvfile` is a text"),
    ],
)
def test_paths_that_cannot_be_meant_are_errors(code, message):
    with pytest.raises(RemoterError, match=re.escape(message)):
        meant(paths, code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("s2c(x); y", ["s2c", None]),
        ("x = s2c(y)", [None]),
        ("for i in r:\n    c2s(i)\n", [None]),
        ("print(recvfile('a', 'b'))", [None]),
        ("a = 1\nsendfile('a', 'b')\nc2s(a)\nb = 2", [None, "sendfile", "c2s", None]),
    ],
)
def test_only_statements_of_their_own_carry(code, expected):
    assert [piece.verb for piece in pieces(code)] == expected


def test_the_help_fits_one_screen():
    lines = [f"here| {line}" for line in HELP.format(host="a-machine-of-a-cluster-17").splitlines()]
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80
    for verb in ("s2c(", "c2s(", "sendfile(", "recvfile("):
        assert any(verb in line for line in lines)


def test_an_expression_is_evaluated_with_the_names_of_this_side_and_what_it_prints_is_marked():
    written = []
    side = LocalSide({"a": 20}, written.append)
    [piece] = pieces("c2s([a + 1, print('hi')][0], 'y')")
    values = []
    assert side.attempt(lambda stream: values.append(side.value(cargo(piece).source, stream)))
    assert values == [21]
    assert written == ["here| hi\n"]
    [unknown] = pieces("c2s(nothing)")
    assert not side.attempt(lambda stream: side.value(cargo(unknown).source, stream))
    assert written[1].startswith("here| error: no object `nothing` here")
    [wrong] = pieces("c2s(1 / 0, 'y')")
    assert not side.attempt(lambda stream: side.value(cargo(wrong).source, stream))
    assert "ZeroDivisionError" in "".join(written)
    assert all(line.startswith("here| ") for line in "".join(written).splitlines())


# --- objects ----------------------------------------------------------------------------------


def test_an_object_comes_here_and_what_it_replaced_is_said(prompt, served):
    terminal = prompt()
    enter(terminal, "x = {'one': 1, 'two': (2, 2.0)}; y = [1, 2]")
    assert said(terminal, "s2c(x)") == ["x: dict of 2"]
    assert said(terminal, "evalc(x['two'])") == ["(2, 2.0)"]
    assert said(terminal, 's2c(y, "x")') == ["x: list of 2; replaced dict of 2"]
    assert said(terminal, "evalc(x)") == ["[1, 2]"]
    assert said(terminal, "s2c('y')") == ["y: list of 2"]
    lines = said(terminal, "s2c(y, overwrite=False)")
    assert lines[:2] == ["error: `y` is here already   [exists]", "cause: it is `list of 2`"]


def test_an_object_goes_there_and_expressions_are_evaluated_on_the_side_that_has_them(prompt):
    terminal = prompt()
    enter(terminal, "evalc('x = 1')")
    [line] = said(terminal, "c2s(x)")
    assert line.startswith("x: int")
    [line] = said(terminal, 'c2s([x + 1, "é"], "y")')
    assert re.fullmatch(r"y: list of 2, \d+ bytes", line)
    terminal.type("x, y\r")
    terminal.expect("(1, [2, 'é'])\nremoter>")
    [line] = said(terminal, 'c2s("text", newname="y")')
    assert line.endswith("; replaced list of 2")
    assert said(terminal, 'c2s(x, "y", overwrite=False)')[0].endswith("[exists]")
    assert said(terminal, "c2s(nothing)")[0] == "error: no object `nothing` here   [name]"
    assert said(terminal, "c2s(1 / 0, 'z')")[-1] == "ZeroDivisionError: division by zero"
    assert said(terminal, "c2s(x, 'class')")[0] == "error: `class` cannot be the name of a variable   [name]"
    enter(terminal, "evalc('def double(n): return 2 * n')")
    enter(terminal, "c2s(double)")
    terminal.type("double(21)\r")
    terminal.expect("\n42\nremoter>")


def test_an_array_keeps_its_type_and_its_bytes_are_told(prompt):
    pytest.importorskip("numpy")
    terminal = prompt()
    enter(terminal, "import numpy; big = numpy.arange(1_000_000.0).reshape(1000, 1000)")
    [line] = said(terminal, "s2c(big)")
    assert line == "big: ndarray (1000, 1000) float64, 8.0 MB"
    assert said(terminal, "evalc(big[999, 999], type(big).__name__)") == ["'ndarray'"]
    assert said(terminal, 's2c(big[0, :3], "few")') == ["few: ndarray (3,) float64, 24 bytes"]
    [line] = said(terminal, 'c2s(big * 2, "twice")')
    assert line == "twice: ndarray (1000, 1000) float64, 8.0 MB"
    terminal.type("twice[999, 999] == 2 * big[999, 999]\r")
    terminal.expect(re.compile(r"^(np\.)?True_?\nremoter>", re.MULTILINE))


def test_an_expression_prints_asks_and_is_interrupted_like_any_command(prompt):
    terminal = prompt()
    terminal.type('s2c([print("from there"), input("who? ")][1], "who")\r')
    terminal.expect("\nfrom there\nwho?")
    terminal.type("Ana\r")
    terminal.expect("here| who: str\nremoter>")
    assert said(terminal, "evalc(who)") == ["'Ana'"]
    terminal.type('s2c([print("be" + "gun"), __import__("time").sleep(60)], "never")\r')
    terminal.expect("\nbegun\n")
    terminal.type("\x03")
    terminal.expect("KeyboardInterrupt")
    terminal.expect_line("remoter>")
    terminal.type('s2c(1 / 0, "never")\r')
    terminal.expect("ZeroDivisionError: division by zero\nremoter>")
    assert said(terminal, "lsc()") == ["who"]


def test_a_failure_stays_here_and_the_rest_of_a_paste_is_not_run(prompt):
    terminal = prompt()
    terminal.type("\x1b[200~s2c(nothing)\nx = 'not run'\x1b[201~\r")
    terminal.expect("-- stopped here: what was typed after it is not run\nremoter>")
    assert "here| error: the session has no object `nothing`   [name]" in terminal.screen()
    terminal.type("x\r")
    terminal.expect("NameError")
    terminal.expect_line("remoter>")
    terminal.type("\x1b[200~y = 6\ns2c(y)\nevalc(y * 7)\nc2s(y + 1, 'y')\ny\x1b[201~\r")
    # What takes longer than half a second leaves a line about that, too.
    shown = r"^here\| 42\n(y: .* in .*\n)?here\| y: int; replaced int\n7\nremoter>"
    terminal.expect(re.compile(shown, re.MULTILINE))
    assert said(terminal, "s2c(y + 1)")[0].startswith("error: `y + 1` is no name")


def test_a_call_inside_other_code_gets_the_hint(prompt):
    terminal = prompt()
    for code, verb in [("x = s2c(y)", "s2c"), ("print(sendfile('a', 'b'))", "sendfile")]:
        enter(terminal, code)
        assert f"-- hint: `{verb}()` is a call of this prompt; it works only as a" in terminal.screen()


def test_the_local_side_of_a_call_from_python_gets_and_gives_the_objects(served, home):
    script = home / "caller.py"
    script.write_text(
        f"import remoter\ncutoff = 12.5\nremoter.client({served.name!r}, prompt='big')\nprint('new', new)\n"
    )
    with Terminal([sys.executable, str(script)], env=dict(os.environ)) as terminal:
        terminal.expect_line("big>")
        terminal.type("c2s(cutoff)\rs2c(cutoff * 2, 'new')\r")
        terminal.expect("here| new: float\nbig>")
        terminal.type("\x04")
        assert terminal.expect_end() == 0
        assert "\nnew 25.0" in terminal.screen()


def test_a_name_comes_while_another_clients_command_runs(prompt, served):
    with served.connect() as other:
        other.run("import threading; gate = threading.Event(); y = [1, 2]", quiet=True)
        run = other.submit("gate.wait()")
        wait_for(lambda: run.status == "running")
        terminal = prompt()
        assert said(terminal, "s2c(y)") == ["y: list of 2"]
        assert said(terminal, "c2s(y, 'z')")[0].startswith("z: list of 2")
        assert run.status == "running"
        run.interrupt()
        run.wait(30)


# --- pickles ----------------------------------------------------------------------------------

MODEL = "class Model: value = 42\nmodel = Model(); count = []"
QUESTION = "Load this object by running code chosen by"


@pytest.fixture
def modelled(served):
    """The session has an object that only a pickle can carry."""
    with served.connect() as other:
        other.run(MODEL, quiet=True)
    return served


def refusals(terminal):
    """How often the answer was taken as no."""
    return terminal.text().count("crosses only as a pickle")


def test_an_object_that_only_a_pickle_can_carry_is_asked_about(prompt, modelled):
    terminal = prompt()
    for answer in ("no", "", "perhaps", "\x03", "\x04"):
        before = refusals(terminal)
        terminal.type("s2c(model)\r")
        terminal.wait_for(lambda _, n=before: terminal.text().count(QUESTION) > n, 30, "the question")
        terminal.expect("[no/once/always]")
        terminal.type(answer if answer in ("\x03", "\x04") else answer + "\r")
        terminal.wait_for(lambda _, n=before: refusals(terminal) > n, 30, "the refusal")
        terminal.expect_line("remoter>")
    assert said(terminal, "lsc()") == ["no objects here"]
    terminal.type("s2c(model)\r")
    terminal.expect(re.compile(r"\[no/once/always\]$"))
    terminal.type("once\r")
    terminal.expect("here| model: Model")
    terminal.expect_line("remoter>")
    assert said(terminal, "evalc(model.value)") == ["42"]


def test_an_expression_is_evaluated_once_whatever_is_answered(prompt, modelled):
    terminal = prompt()
    terminal.type('s2c([count.append(1), model], "pair")\r')
    terminal.expect("[no/once/always]")
    terminal.type("once\r")
    terminal.expect("here| pair: list of 2")
    terminal.expect_line("remoter>")
    terminal.type("len(count)\r")
    terminal.expect("\n1\nremoter>")


def test_always_is_kept_for_the_servers_key(prompt, modelled, home):
    terminal = prompt()
    terminal.type("s2c(model)\r")
    terminal.expect("[no/once/always]")
    terminal.type("always\r")
    terminal.expect("here| model: Model")
    terminal.expect_line("remoter>")
    terminal.type("\x04")
    terminal.expect_end()
    again = prompt()
    enter(again, "s2c(model)")
    assert "here| model: Model" in again.screen()
    assert QUESTION not in again.screen()
    file = home / "config" / "trusted_pickles"
    assert len(file.read_text().splitlines()) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_line_that_was_typed_ahead_is_no_answer(prompt, modelled, go):
    terminal = prompt()
    terminal.type("print('go' + 'ing'); until()\r")
    terminal.expect("\ngoing\n")
    terminal.type("s2c(model)\ronce = 1\r")
    terminal.expect("\nonce = 1\n")  # the terminal itself shows what is typed
    go.touch()
    terminal.expect(re.compile(r"\[no/once/always\]$"))
    terminal.type("no\r")
    terminal.expect("crosses only as a pickle, and opening a pickle runs code")
    terminal.expect("remoter> once = 1\nremoter>")
    terminal.type("once\r")
    terminal.expect("\n1\nremoter>")


def test_a_script_is_never_asked_and_its_calls_are_the_sessions(modelled):
    for words in (["client", modelled.name], ["batch", modelled.name, "-"]):
        done = subprocess.run(
            [*REMOTER, *words], input="s2c(model)\n", capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert "NameError" in done.stdout + done.stderr
        assert QUESTION not in done.stdout + done.stderr


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def there(served, home):
    """The directory that the session works in."""
    there = home / "there"
    there.mkdir()
    with served.connect() as other:
        other.run(f"import os; os.chdir({str(there)!r})", quiet=True)
    return there


@pytest.fixture
def here(home):
    """The directory that the prompt is started in."""
    here = home / "here"
    here.mkdir(exist_ok=True)
    return here


def test_files_and_folders_go_there_and_come_here(prompt, there, here):
    (here / "data.csv").write_bytes(b"x,y\n" * 1000)
    (here / "runs" / "empty").mkdir(parents=True)
    for name in ("a", "b"):
        (here / "runs" / f"{name}.log").write_text(name)
    terminal = prompt()
    [line] = said(terminal, 'sendfile("data.csv", "input.csv")')
    assert line == f"{there}/input.csv: 1 file, 4.0 kB"
    assert (there / "input.csv").read_bytes() == b"x,y\n" * 1000
    [line] = said(terminal, 'sendfile("runs")')
    assert line == f"{there}/runs: 2 files, 2 bytes"
    assert (there / "runs" / "b.log").read_text() == "b"
    [line] = said(terminal, 'recvfile("input.csv")')
    assert line.endswith("/here/input.csv: 1 file, 4.0 kB")
    [line] = said(terminal, 'recvfile("runs/*.log", "logs")')
    assert "2 files, 2 bytes" in line
    assert sorted(path.name for path in (here / "logs").iterdir()) == ["a.log", "b.log"]


def test_what_is_there_is_not_overwritten_unless_asked_and_failures_stay_here(prompt, there, here):
    (here / "a").write_text("new")
    (there / "a").write_text("old")
    terminal = prompt()
    lines = said(terminal, "sendfile('a')")
    assert lines[0].startswith("error: ")
    assert lines[0].endswith("[exists]")
    assert "overwrite=True" in " ".join(lines)
    assert (there / "a").read_text() == "old"
    assert said(terminal, "sendfile('a', overwrite=True)") == [f"{there}/a: 1 file, 3 bytes"]
    assert (there / "a").read_text() == "new"
    assert "1 skipped" in said(terminal, "sendfile('a', update=True)")[0]
    for code in ("sendfile('nothing')", "recvfile('nothing')"):
        assert said(terminal, code)[0].startswith("error: ")
    assert "is a text between quotes" in said(terminal, "recvfile(a, 'b')")[0]
    terminal.type("\x1b[200~recvfile('nothing')\nx = 1\x1b[201~\r")
    terminal.expect("-- stopped here: what was typed after it is not run\nremoter>")


# --- while it takes long ----------------------------------------------------------------------

SLOW = """\
import time
class Slow:
    def __reduce__(self):
        time.sleep(20)
        return int, ()
slow = Slow()
"""


def test_ctrl_c_stops_a_transfer_and_stays_at_the_prompt(prompt):
    terminal = prompt()
    terminal.type(f"evalc({SLOW!r})\r")
    terminal.expect_line("remoter>")
    terminal.type("\x1b[200~c2s(slow)\nx = 'not run'\x1b[201~\r")
    terminal.expect("preparing")
    terminal.type("\x03")
    terminal.expect("here| error: cancelled   [cancelled]\n-- stopped here")
    terminal.expect_line("remoter>")
    assert "preparing" not in terminal.screen()
    terminal.type("slow\r")
    terminal.expect("NameError: name 'slow' is not defined")
    terminal.type("\x04")
    assert terminal.expect_end() == 0


class SlowProxy(Proxy):
    """A network on which a megabyte takes a while, until it is told to hurry."""

    pause = 0.05

    def _pass_on(self, end):
        time.sleep(self.pause)
        super()._pass_on(end)


@pytest.fixture
def slow_network(served):
    network = SlowProxy(("127.0.0.1", served.port))
    yield network
    network.close()


def test_a_file_that_was_stopped_goes_on_where_it_was(served, there, here, slow_network):
    content = os.urandom(20_000_000)
    (there / "big.bin").write_bytes(content)
    words = [*REMOTER, "client", f"127.0.0.1:{slow_network.port}"]
    with Terminal(words, env=dict(os.environ), cwd=str(here), size=(40, 160)) as terminal:
        prompt = f"remoter@{socket.gethostname().partition('.')[0]}>"
        terminal.expect_line(prompt)
        terminal.type("recvfile('big.bin')\r")
        terminal.expect(re.compile(r"^big\.bin .*\b[1-9][\d.]*/20\.0 MB", re.MULTILINE))
        terminal.type("\x03")
        terminal.expect("here|  hint: the same call goes on where it was")
        assert not (here / "big.bin").exists()
        [part] = [path for path in here.iterdir() if path.name.endswith(".part")]
        assert 0 < part.stat().st_size < len(content)
        slow_network.pause = 0
        terminal.type("recvfile('big.bin')\r")
        terminal.expect(re.compile(r"^here\| .*/here/big.bin: 1 file, .* MB\n", re.MULTILINE))
        terminal.expect_line(prompt)
        assert (here / "big.bin").read_bytes() == content
        terminal.type("6 * 7\r")
        terminal.expect("\n42\n")
