"""The prompt in an R session as a person meets it: on a terminal, with a real session behind it, and R on this side."""

import os
import re
import signal
import subprocess
import sys

import pytest

from remoter._records import records

from .conftest import is_alive, wait_for
from .terminal import Terminal
from .test_prompt import enter

REMOTER = [sys.executable, "-m", "remoter"]


@pytest.fixture
def prompt(r_served, tmp_path, monkeypatch):
    """Opens prompts on the one R session, in a directory of their own; closes their terminals."""
    terminals = []

    def start(*arguments, environment=None, **options):
        env = {**os.environ, **(environment or {})}
        options = {"cwd": str(tmp_path), "size": (40, 120), **options}
        terminal = Terminal([*REMOTER, "client", r_served.name, *arguments], env=env, **options)
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
    return [line.removeprefix("here| ").strip() for line in lines if line.startswith("here|")]


def ask(terminal, code, question):
    """Enter a line that asks something."""
    terminal.type(code + "\r")
    terminal.expect_line(question)


def sessions_here(served):
    """The run directories of sessions that belong to a prompt."""
    return [path for path in served.directory.parent.iterdir() if path.name.startswith("private-")]


# --- there ------------------------------------------------------------------------------------


def test_lines_run_in_r_and_look_as_they_do_there(prompt):
    terminal = prompt()
    assert re.search(r": R \d\S+, pid \d+\ntyped lines run on \S+; helpc\(\) for here\n", terminal.screen())
    assert enter(terminal, "x <- c(a = 1, b = 2); x; invisible(3)").endswith("\na b\n1 2\nremoter>")
    assert enter(terminal, "stop('oh')").endswith("\nError: oh\nremoter>")
    assert enter(terminal, "x y").endswith('Error: unexpected symbol in "x y"\nremoter>')
    assert enter(terminal, "as.integer('a')").count("[1] NA") == 1
    terminal.expect("NAs introduced by coercion")


def test_what_is_not_whole_goes_on_with_rs_indent_and_a_brace_ends_it(prompt):
    terminal = prompt()
    for typed, shown in [
        ("f <- function(x) {", "f <- function(x) {"),
        ("if (x) {", "  if (x) {"),
        ("'yes'", "    'yes'"),
    ]:
        terminal.type(typed + "\r")
        terminal.expect(f"{shown}\n       +")
    terminal.type("} else 'no'\r")
    terminal.expect("\n       +   } else 'no'\n       +")
    terminal.type("}")
    terminal.expect(re.compile(r"^       \+ }$", re.MULTILINE))
    terminal.type("\r")
    terminal.expect_line("remoter>")
    assert enter(terminal, "f(TRUE)").endswith('\n[1] "yes"\nremoter>')
    terminal.type('r"(a\r')
    terminal.expect_line("       +")
    terminal.type('b)"\r')
    terminal.expect('[1] "a\\nb"\nremoter>')


def test_a_brace_is_closed_below_the_line_on_which_its_function_begins(prompt):
    terminal = prompt()
    terminal.type("f <- function(x,\r")
    terminal.expect_line("       +")
    terminal.type("            y) {")
    terminal.expect_line("       + " + " " * 14 + "y) {")
    terminal.type("\r")
    terminal.expect("y) {\n       +")
    terminal.type("x + y\r")
    terminal.expect("\n       +   x + y\n       +")
    terminal.type("}\r")
    terminal.expect("\n       +   x + y\n       + }\nremoter>")


def test_pasted_code_is_one_command_and_a_function_keeps_what_looks_like_our_calls(prompt):
    terminal = prompt()
    terminal.type(
        '\x1b[200~f <- function(x) {\n  if (FALSE) {\n    q("no")\n    s2c(x)\n  }\n  x * 2\n}\nf(21)\x1b[201~\r'
    )
    terminal.expect("\n[1] 42\nremoter>")
    assert 'q("no")' in enter(terminal, "f")


def test_questions_and_the_browser_are_answered_here_whatever_the_answer_is(prompt):
    terminal = prompt()
    ask(terminal, "readline('who? ')", "who?")
    terminal.type("q()\r")
    terminal.expect('[1] "q()"\nremoter>')
    ask(terminal, "f <- function(n) { browser(); n + 1 }; f(41)", "Browse[1]>")
    terminal.type("n * 100\r")
    terminal.expect("\n[1] 4100\nBrowse[1]>")
    terminal.type("c\r")
    terminal.expect("\n[1] 42\nremoter>")
    ask(terminal, "f(1)", "Browse[1]>")
    terminal.type("Q\r")
    terminal.expect("Browse[1]> Q\nremoter>")
    ask(terminal, "f(1)", "Browse[1]>")
    terminal.type("\x03")
    terminal.expect_line("remoter>")
    terminal.expect("interrupted")


def test_ctrl_c_interrupts_there(prompt):
    terminal = prompt()
    terminal.type("cat('on', 'it\\n'); Sys.sleep(60)\r")
    terminal.expect("\non it\n")
    terminal.type("\x03")
    terminal.expect("interrupted\nremoter>")


def test_names_are_completed_and_the_history_is_rs_own(prompt, home):
    terminal = prompt()
    enter(terminal, "my.long.name <- 1")
    terminal.type("my.lo\t")
    terminal.expect_line("remoter> my.long.name")
    terminal.type("\r")
    terminal.expect("\n[1] 1\nremoter>")
    terminal.type("is.sec\t")
    terminal.expect_line("remoter> is.secure(")
    terminal.type("\x03x\x1b-1")
    terminal.expect_line("remoter> x <- 1")
    assert "my.long.name" in (home / "state" / "history-r").read_text()


def test_help_is_shown_and_a_plot_is_said(prompt):
    terminal = prompt()
    enter(terminal, "?mean")
    assert "Arithmetic Mean" in terminal.text()
    enter(terminal, "plot(1:3)")
    terminal.expect(re.compile(r"plot 1: \S+\.png"))


# --- our own calls ----------------------------------------------------------------------------


def test_r_is_on_this_side_and_started_when_it_is_first_needed(prompt, r_served):
    terminal = prompt()
    assert not sessions_here(r_served)
    enter(terminal, "x <- 'there'")
    assert said(terminal, "lsc()") == ["character(0)"]
    assert said(terminal, "evalc(x <- 20)") == []
    assert said(terminal, "evalc(mean(c(x, 22)))") == ["[1] 21"]
    assert said(terminal, 'evalc("y <- 1; .z <- 2; y")') == ["[1] 1"]
    assert said(terminal, "lsc()") == ['[1] "x" "y"']
    assert said(terminal, 'lsc(pattern = "^[xz.]", all.names = TRUE)') == ['[1] ".z" "x"']
    assert said(terminal, "rmc(x); lsc()") == ['[1] "y"']
    assert said(terminal, "evalc(stop('oh'))") == ["Error: oh"]
    assert said(terminal, "is.secure()") == ["[1] TRUE"]
    assert enter(terminal, "x").endswith('[1] "there"\nremoter>')
    assert len(sessions_here(r_served)) == 1
    assert [record.name for record in records()] == [r_served.name]
    listed = subprocess.run([*REMOTER, "ls"], capture_output=True, text=True, check=True).stdout
    assert "private" not in listed
    terminal.type("q('no')\r")
    assert terminal.expect_end() == 0
    wait_for(lambda: not sessions_here(r_served), 30, "the end of R here")


def test_code_here_asks_is_interrupted_and_may_even_end_r(prompt):
    terminal = prompt()
    ask(terminal, "evalc(paste('hello', readline('who? ')))", "here| who?")
    terminal.type("Ana\r")
    terminal.expect('here| [1] "hello Ana"\nremoter>')
    terminal.type("evalc({cat('on', 'it\\n'); Sys.sleep(60)})\r")
    terminal.expect("\nhere| on it\n")
    terminal.type("\x03")
    terminal.expect("here| interrupted\nremoter>")
    assert said(terminal, "evalc(x <- 1); x; evalc(x)")[-1:] != ["[1] 1"]  # stopped at the failure there
    assert said(terminal, "evalc(tools::pskill(Sys.getpid(), 9))") == [
        "R here has died, and its objects are gone"
    ]
    assert said(terminal, "lsc()") == ["character(0)"]


def test_a_slow_start_of_r_here_is_said_and_what_its_profile_prints_is_shown(prompt, tmp_path):
    profile = tmp_path / "profile.R"
    profile.write_text("cat('hello from', 'the profile\\n'); Sys.sleep(1); stop('oh')\n")
    terminal = prompt(environment={"R_PROFILE_USER": str(profile)})
    lines = said(terminal, "evalc(6 * 7)")
    assert "-- starting R here for `evalc`\n" in terminal.screen()
    assert lines[0] == "hello from the profile"
    assert lines[-1] == "[1] 42"
    assert any("oh" in line for line in lines[1:-1])


def test_an_r_that_does_not_start_here_is_an_error_here_and_the_session_goes_on(prompt, tmp_path):
    profile = tmp_path / "profile.R"
    profile.write_text("quit()\n")
    terminal = prompt(environment={"R_PROFILE_USER": str(profile)})
    assert said(terminal, "evalc(1)")[0].startswith("error: cannot start R")
    assert enter(terminal, "6 * 7").endswith("[1] 42\nremoter>")


def test_r_here_ends_with_a_prompt_that_is_killed(prompt, r_served):
    terminal = prompt()
    [line] = said(terminal, "evalc(Sys.getpid())")
    pid = int(line.split()[1])
    assert is_alive(pid)
    terminal.signal(signal.SIGKILL)
    terminal.expect_end()
    wait_for(lambda: not is_alive(pid), 30, "the end of R here")
    wait_for(lambda: not sessions_here(r_served), 30, "its directory to go")


def test_objects_cross_between_two_rs_unchanged(prompt):
    terminal = prompt()
    enter(
        terminal,
        "d <- data.frame(n = c(1L, NA), f = factor(c('b', 'a')), t = as.POSIXct('2024-05-01', tz = 'UTC'))",
    )
    enter(terminal, "attr(d, 'note') <- list(NULL, 1i, as.raw(1)); row.names(d) <- c('x', 'y')")
    [line] = said(terminal, "s2c(d)")
    assert line.startswith("d: data.frame 2 x 3")
    [line] = said(terminal, 'c2s(d, "back")')
    assert line.startswith("back: data.frame 2 x 3")
    assert enter(terminal, "identical(d, back)").endswith("[1] TRUE\nremoter>")
    assert said(terminal, 's2c(head(d$n, 1), "first"); evalc(first + 1L)')[-1] == "[1] 2"
    [line] = said(terminal, 'c2s({cat("making\\n"); first * 2L}, "twice")')[1:]
    assert line.startswith("twice: ")
    assert enter(terminal, "twice").endswith("[1] 2\nremoter>")
    enter(terminal, "`odd name` <- 1:3")
    assert said(terminal, "s2c(`odd name`)")[0].startswith("odd name: ")
    assert said(terminal, 'evalc(`odd name`); c2s(`odd name`, "even")')[0] == "[1] 1 2 3"
    assert said(terminal, "s2c(d, overwrite = FALSE)")[0] == "error: `d` is here already   [exists]"
    assert said(terminal, "c2s(d, overwrite = FALSE)")[0].startswith("error: ")
    assert said(terminal, "c2s(nothing)")[0] == "error: no object `nothing` here   [name]"
    assert said(terminal, "s2c(nothing)")[0].startswith("error: ")
    assert enter(terminal, 's2c(stop("oh"), "x")').endswith(": oh\nremoter>")


def test_code_of_the_session_comes_here_only_if_who_sits_here_says_so(prompt):
    terminal = prompt()
    enter(terminal, "f <- function(x) x + 1")
    terminal.type("s2c(f)\r")
    terminal.expect(re.compile(r"Load this object by running code chosen by .*\[no/once/always\]"))
    terminal.type("no\r")
    terminal.expect("has code in it")
    terminal.expect_line("remoter>")
    assert said(terminal, "lsc()") == ["character(0)"]
    terminal.type("s2c(f)\r")
    terminal.expect(re.compile(r"running code chosen by .*\[no/once/always\]$"))
    terminal.type("once\r")
    terminal.expect(re.compile(r"^here\| f: function", re.MULTILINE))
    terminal.expect_line("remoter>")
    assert said(terminal, "evalc(f(41))") == ["[1] 42"]
    [line] = said(terminal, 'c2s(f, "g")')  # our own code needs no leave
    assert line.startswith("g: function")


def test_files_cross(prompt, tmp_path):
    terminal = prompt()
    (tmp_path / "here.txt").write_text("hello\n")
    said(terminal, f'sendfile("here.txt", "{tmp_path}/there.txt")')
    assert (tmp_path / "there.txt").read_text() == "hello\n"
    assert said(terminal, f'recvfile("{tmp_path}/no.txt")')[0].startswith("error: ")


def test_a_call_inside_other_code_gets_a_hint_and_a_function_of_the_session_shadows_ours(prompt):
    terminal = prompt()
    terminal.type("y <- s2c(x)\r")
    terminal.expect("`s2c()` is a call of this prompt")
    terminal.expect_line("remoter>")
    enter(terminal, "lsc <- 5")
    assert said(terminal, "lsc()") == ["character(0)"]
    enter(terminal, "lsc <- function() 'mine'")
    terminal.type("lsc()\r")
    terminal.expect("`rm(lsc)` gives this prompt's back")
    terminal.expect('[1] "mine"\nremoter>')


@pytest.mark.parametrize("keys", ["\x04", "q()\r", 'quit("no", status = 3)\r', "exit\r", "exit()\r"])
def test_leaving_keeps_the_session(prompt, r_served, keys):
    terminal = prompt()
    terminal.type(keys)
    terminal.expect("Back: remoter client")
    assert terminal.expect_end() == 0
    assert is_alive(r_served.worker_pid)


def test_the_session_is_ended_on_request(prompt, r_served):
    terminal = prompt()
    terminal.type("exit(client.only = FALSE)\r")
    terminal.expect(f"ended `{r_served.name}`")
    assert terminal.expect_end() == 0
    wait_for(lambda: not any(map(is_alive, r_served.processes)), 30)


# --- without R here ---------------------------------------------------------------------------


def test_without_r_on_this_machine_python_is_on_this_side(prompt):
    terminal = prompt(environment={"REMOTER_R": "/nonexistent/R"})
    assert "helpc() for here, in Python: no R on this machine\n" in terminal.screen()
    enter(terminal, "x <- c(1.5, 2)")
    assert said(terminal, "evalc(a := 20 + 1)") == ["21"]
    assert said(terminal, 's2c(x); evalc("[float(each) for each in x]")')[-1] == "[1.5, 2.0]"
    assert said(terminal, 'lsc(pattern = "^[ax]$")') == ["a  x"]
    assert said(terminal, "c2s(a); rmc(a, x); lsc()")[-1] == "no objects here"
    assert enter(terminal, "a").endswith("[1] 21\nremoter>")


def test_the_local_side_of_a_call_from_python_is_the_caller(r_served, tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(
        f"import remoter\ncutoff = 12.5\nremoter.client({r_served.name!r})\nprint('new', new)\n"
    )
    with Terminal([sys.executable, str(script)], env=dict(os.environ)) as terminal:
        terminal.expect("helpc() for here, in Python\nremoter>")
        terminal.type("evalc(new := cutoff * 2)\r")
        terminal.expect("here| 25.0\nremoter>")
        terminal.type("\x04")
        assert terminal.expect_end() == 0
        assert "\nnew 25.0" in terminal.screen()


def test_a_dumb_terminal_gets_the_same_with_plain_input(prompt):
    terminal = prompt(term="dumb")
    terminal.type("6 * 7\n")
    terminal.expect("\n[1] 42\nremoter>")
    terminal.type("f <- function(x) {\n")
    terminal.expect_line("       +")
    terminal.type("x + 1 }; f(1)\n")
    terminal.expect("\n[1] 2\nremoter>")
    terminal.type("evalc(readline('who? '))\n")
    terminal.expect("here| who?")
    terminal.type("Ana\n")
    terminal.expect('here| [1] "Ana"\nremoter>')
    terminal.type("q()\n")
    assert terminal.expect_end() == 0
