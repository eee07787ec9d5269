"""The R worker, embedded: driven as the server drives it, and through sessions."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .test_worker import Outcome, Server
from .waiting import is_alive, wait_for

WORKER = Path(__file__).parent.parent / "src" / "remoter" / "_workers" / "r_worker.py"


class RServer(Server):
    """Plays the server and the keeper for one R worker."""

    def spawn(self, program: str = "R", engine: str = "embed", **environment: str) -> RServer:
        self.process = subprocess.Popen(
            [program, "CMD", sys.executable, str(WORKER), self.folder, "w1", engine],
            stdin=self.fifos["in"],
            stdout=self.fifos["out"],
            stderr=self.fifos["err"],
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": self.folder, **environment},
            cwd=self.folder,
        )
        self.group = True
        self.meet()
        return self

    def pump(self, timeout: float) -> None:
        """As the server does, acknowledge what R waits for."""
        before = self.received
        super().pump(timeout)
        if self.control is not None and any(
            frame.get("wait") and frame["frame"] > before for frame in self.seen
        ):
            self.control.send(type="received", received=self.received)

    def run_asking(self, code: str, *answers: str | None, **options: Any) -> tuple[Outcome, list[str]]:
        """Run code that asks; what came of it, and the prompts."""
        number = self.submit(code, **options)
        prompts = [self.answer(text)["prompt"] for text in answers]
        return self.finish(number), prompts

    def interrupt_when(self, condition: Any) -> Outcome:
        self.until(condition)
        self.interrupt()
        return self.finish()

    def has_package(self, name: str) -> None:
        if self.run(f'cat(requireNamespace("{name}", quietly = TRUE))').stdout != "TRUE":
            pytest.skip(f"needs R's package {name} (apt install r-cran-{name})")


@pytest.fixture
def own(r_program):
    """A server for a worker that the test starts, and may end."""
    server = RServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def shared(r_program):
    """A worker for all tests that leave it as it was."""
    server = RServer()
    yield server.spawn(r_program)
    server.close()


@pytest.fixture
def r(shared):
    """The shared worker, without what a test before has left."""
    assert shared.run("rm(list = ls())").status == "ok"
    return shared


def notices(outcome: Outcome) -> list[str]:
    return [frame["about"] for frame in outcome.of("notice")]


# --- running code ------------------------------------------------------------------------------


def test_every_value_is_printed_and_told_with_its_text(r):
    outcome = r.run('1 + 1\nx <- 5\nx; "a"\ninvisible(3)\nNULL')
    assert outcome.status == "ok"
    assert outcome.stdout == '[1] 2\n[1] 5\n[1] "a"\nNULL\n'
    assert outcome.texts == ["[1] 2", "[1] 5", '[1] "a"', "NULL"]
    assert all(frame["printed"] for frame in outcome.of("result"))
    assert r.run("").status == r.run("# nothing").status == "ok"


def test_only_what_r_prints_for_a_value_is_its_text(r):
    assert r.run('{cat("by hand "); 5}').texts == ["[1] 5"]
    assert r.run('print(1); cat("2\\n"); for (i in 1:3) print(i)').texts == []
    frame = r.run("d <- data.frame(a = 1:2)\nd\nd\nprint(d); f <- function(x) x\nf")
    assert frame.texts == ["  a\n1 1\n2 2"] * 2 + ["function(x) x"]
    methods = """
setClass("P", representation(x = "numeric")); setMethod("show", "P", function(object) cat("a P\\n"))
print.quiet <- function(x, ...) cat("shh\\n"); new("P", x = 1); structure(1, class = "quiet")
"""
    assert r.run(methods).texts == ["a P", "shh"]
    long = r.run("1:100000")
    assert (len(long.text), long.stdout.count("\n")) == (65536, 10000)


def test_code_runs_at_the_top_level_and_the_last_value_is_kept(r):
    assert r.run("c(sys.nframe(), length(sys.calls()))\nenvironment()").texts == [
        "[1] 0 0",
        "<environment: R_GlobalEnv>",
    ]
    assert r.run("6 * 7").text == r.run(".Last.value").text == "[1] 42"
    assert r.run("ls()").text == "character(0)"
    assert r.run(
        "addTaskCallback(function(expr, value, ok, visible) {print(c(ok, visible)); FALSE})[0]\n7"
    ).stdout.endswith("[1] TRUE TRUE\n[1] 7\n")


def test_a_value_that_is_changed_is_not_copied(r):
    assert (
        r.run("x <- numeric(1e5)\n1\n2\ntracemem(x) -> y\nx[1] <- 1\nuntracemem(x)").stdout
        == "[1] 1\n[1] 2\n"
    )


def test_lines_arrive_live_and_text_without_an_end_too(r):
    number = r.submit('cat("first\\n"); Sys.sleep(60)')
    r.until_printed("first\n")
    assert r.interrupt_when(lambda: True).status == "interrupted"
    number = r.submit('cat("half"); system("echo asleep >&2; exec sleep 60")')
    r.until_printed("half")
    r.until_printed("asleep", "err")
    r.interrupt(number | 1 << 63)
    assert r.finish(number).status == "interrupted"


def test_stdout_stderr_programs_and_c_come_in_order(r):
    outcome = r.run('cat("1\\n"); message("a"); system("echo 2"); write("b", stderr()); cat("3\\n")')
    assert (outcome.stdout, outcome.stderr) == ("1\n2\n3\n", "a\nb\n")
    assert r.run('message("")').stderr == "\n"


def test_warnings_stand_where_r_puts_them(r):
    outcome = r.run('as.integer("a")\nf <- function() {warning("w"); 2}\nf()')
    assert outcome.texts == ["[1] NA", "[1] 2"]
    assert outcome.stderr == "Warning message:\nNAs introduced by coercion \nWarning message:\nIn f() : w\n"
    assert "w (converted" not in r.run("op <- options(warn = 2)").stderr
    error = r.run('f <- function() warning("w"); f()')
    assert error.error == "Error in f() : (converted from warning) w"
    assert r.run("options(op)").status == "ok"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("cat('no')\nx y", ['Error: unexpected symbol in "x y"']),
        ("x y", ['Error: unexpected symbol in "x y"']),
        ("1\nc(1,\n  2\n}", ["Error: unexpected '}' in:\n\"  2\n}\""]),
        ("f(", ["unexpected end of input"]),
        ('"abc', ["unexpected"]),
        ("'\\xzz'", ["'\\x' used without hex digits"]),
        ("a\0b", ["nul character"]),
    ],
)
def test_code_that_does_not_parse_runs_not_at_all(r, code, words):
    outcome = r.run(code)
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("error", "", "")
    assert all(word in outcome.error for word in words)


def test_what_does_not_parse_in_a_script_has_its_file_and_line(r):
    outcome = r.run("1\nx y", mode="script", filename="mine.R")
    assert outcome.error == "Error: mine.R:2:3: unexpected symbol\n1: 1\n2: x y\n     ^"
    assert r.run("f(", mode="script", filename="mine.R").error.startswith("Error: mine.R:2:0: ")


def test_a_value_that_is_kept_is_computed_as_at_the_prompt(r):
    assert r.run("7").text == "[1] 7"
    assert r.run("stop('oh')", keep="t1").error == "Error: oh"
    kept = r.run("warning('hm'); cat(sys.nframe())", keep="t1")
    assert (kept.stdout, kept.stderr) == ("0", "Warning message:\nhm \n")
    assert r.run("x y", keep="t1").error == 'Error: unexpected symbol in "x y"'
    assert r.run(".Last.value").text == "[1] 7"


def test_long_lines_and_long_expressions_are_read_whole(r):
    assert r.run('nchar("' + "é" * 20_000 + '")').text == "[1] 20000"
    assert r.run('"é€😀 日本"').text == '[1] "é€😀 日本"'
    assert r.run("sum(c(" + ",\n".join(map(str, range(5000))) + "))").text == "[1] 12497500"


@pytest.mark.parametrize(
    "code",
    [
        'detach("Autoloads")',
        "rm(list = ls(.AutoloadEnv, all = TRUE), envir = .AutoloadEnv); invisible(gc())",
        "assign('.remoter', 5, globalenv())",
    ],
)
def test_no_tidying_up_makes_a_session_useless(r, code):
    for _ in range(2):
        assert r.run(code + "\ngc()[0]\nmine <- 6").texts[-1:] == ["numeric(0)"]
        assert r.run("mine").text == "[1] 6"
        assert "mine" in [row["name"] for row in r.ask_side("variables")["variables"]]
        assert r.run("stop('oh')").error == "Error: oh"
        assert r.run("7", keep="t1").status == "ok"
        assert r.run("q()", mode="script").done["exit"] == 0
        assert len(r.run("plot(1); invisible(dev.off())").of("display")) == 1
        assert r.run("rm(list = ls(all = TRUE))").status == "ok"


# --- errors ------------------------------------------------------------------------------------


def test_an_error_is_its_text_message_and_calls_and_ends_the_run(r):
    outcome = r.run('f <- function(x) {\n  stop("deep ", x)\n}\nf(1)\ncat("never")')
    [error] = outcome.of("error")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("error", "", "")
    assert (error["text"], error["value"]) == ("Error in f(1) : deep 1", "deep 1")
    assert error["traceback"] == ['stop("deep ", x) at #2', "f(1)"]
    assert "printed" not in error
    assert r.run("traceback()").stdout == '2: stop("deep ", x) at #2\n1: f(1)\n'
    assert r.run("geterrmessage()").text == '[1] "Error in f(1) : deep 1\\n"'


def test_an_error_comes_with_its_warnings_and_before_what_cleans_up(r):
    outcome = r.run('f <- function() {on.exit(cat("bye\\n")); warning("w"); stop("e")}; f()')
    assert outcome.error == "Error in f() : e\nIn addition: Warning message:\nIn f() : w"
    kinds = [frame["type"] for frame in outcome.frames]
    assert kinds == ["error", "done"]
    assert outcome.of("error")[0]["wait"]
    assert outcome.stdout == "bye\n"


def test_what_try_catches_is_text_on_stderr(r):
    outcome = r.run('try(stop("a")); cat("b\\n"); try(log("x"))\ntryCatch(stop("c"), error = function(e) 7)')
    assert (outcome.status, outcome.texts) == ("ok", ["[1] 7"])
    assert outcome.stderr.startswith('Error in try(stop("a")) : a\nError in log("x") :')
    number = r.submit('try(stop("seen")); Sys.sleep(60)')
    r.until_printed("seen", "err")
    r.interrupt()
    assert r.finish(number).status == "interrupted"


def test_an_error_that_is_not_to_be_shown_is_one_all_the_same(r):
    outcome = r.run('options(show.error.messages = FALSE)\nstop("hidden")')
    assert r.run("options(show.error.messages = TRUE)").status == "ok"
    assert (outcome.status, outcome.stderr) == ("error", "")
    assert (outcome.of("error")[0]["value"], outcome.of("error")[0]["printed"]) == ("hidden", True)


def test_an_error_is_one_also_if_its_handler_fails_or_leaves(r):
    again = r.run('options(error = quote(stop("again")))\nstop("first")\ncat("never")', mode="script")
    assert (again.status, again.stdout) == ("error", "")
    left = r.run('options(error = function() q("no", 1)); stop("important")', mode="script")
    assert (left.status, left.done["exit"], left.stderr) == ("error", 1, "Error: important\n")
    assert r.run("options(error = NULL)").status == "ok"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('reg.finalizer(new.env(), function(e) stop("at the end"))\ninvisible(gc())', "at the end"),
        ('invisible(addTaskCallback(function(...) stop("called back")))\nNULL -> x', "called back"),
        ('reg.finalizer(e <- new.env(), function(e) stop("as it prints")); print.last <- function(x, ...) {'
         'rm(e, envir = globalenv()); gc(); cat("shown\\n")}\nstructure(1, class = "last")', "as it prints"),
    ],
)  # fmt: skip
def test_what_fails_beside_the_code_does_not_end_it(r, code, words):
    outcome = r.run(code + '\ncat("went on\\n")\n7', mode="script")
    assert (outcome.status, outcome.texts[-1], outcome.of("error")) == ("ok", "[1] 7", [])
    assert outcome.stdout.endswith("went on\n[1] 7\n")
    assert words in outcome.stderr
    assert r.run("stop('a real one')").error == "Error: a real one"


def test_what_does_not_parse_is_said_in_the_users_language(own):
    own.spawn(LANGUAGE="de")
    prefix = own.run('cat(gettext("Error: ", domain = "R", trim = FALSE))').stdout
    for code in ("x y", "f("):
        [error] = own.run(code).of("error")
        assert (error["text"], error["name"]) == (prefix + error["value"], "Error")
        assert "rror: " not in error["value"]


def test_who_leaves_a_command_by_himself_hears_nothing_of_it(r):
    left = [
        r.run('message("hm"); invokeRestart("abort")'),
        r.run_asking("f <- function() browser(); f()", "Q")[0],
        r.run_asking("f()", "stop('in here')", "Q")[0],
    ]
    for outcome in left:
        [error] = outcome.of("error")
        assert (outcome.status, error["name"], error["text"]) == ("interrupted", "abort", "")
        assert error["printed"]
    assert r.run_asking("f()", "n")[0].status == "ok"
    assert r.run_asking("f()", None)[0].error == "interrupted"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("f <- function(n) f(n + 1); f(1)", "too close to the limit"),
        ("numeric(1e13)", "cannot allocate"),
        ("print.bad <- function(x, ...) stop('bad print'); structure(1, class = 'bad')", "bad print"),
        ("nope", "Error: object 'nope' not found"),
        (".Call('nope')", "nope"),
    ],
)
def test_r_survives(r, code, words):
    outcome = r.run(code)
    assert outcome.status == "error"
    assert words in outcome.error or "nested too deeply" in outcome.error
    assert r.run("1").text == "[1] 1"


def test_errors_of_rlang_have_their_message(r):
    r.has_package("rlang")
    [error] = r.run('g <- function() rlang::abort("no such luck"); g()').of("error")
    assert (error["value"], error["printed"]) == ("no such luck", True)


# --- asking ------------------------------------------------------------------------------------


def test_questions_of_r_are_asked_with_their_prompt(r):
    outcome, prompts = r.run_asking('x <- readline("two\\nlines? "); x', "Bób")
    assert (outcome.stdout, outcome.text, prompts) == ('two\n[1] "Bób"\n', '[1] "Bób"', ["lines? "])
    outcome, prompts = r.run_asking('menu(c("a", "b"), title = "Which?")', "9", "2")
    assert (outcome.text, prompts) == ("[1] 2", ["Selection: "] * 2)
    outcome, prompts = r.run_asking("scan()", "1 2", "3", "")
    assert (outcome.text, prompts) == ("[1] 1 2 3", ["1: ", "3: ", "4: "])
    assert r.run_asking("nchar(readline())", "x" * 8000)[0].text == "[1] 8000"


def test_the_end_of_the_file_answers_everything(r):
    code = 'readline("p"); menu(c("a", "b")); scan(quiet = TRUE); f <- function() {browser(); 1}; f()'
    expected = ['[1] ""', "[1] 0", "numeric(0)"]
    outcome, _ = r.run_asking(code, None, None, None, None)
    assert (outcome.status, outcome.texts) == ("interrupted", expected)
    detached = r.run(code, detached=True)
    assert (detached.status, detached.texts, detached.of("ask")) == ("interrupted", expected, [])


def test_a_browser_shows_the_stopped_function(r):
    code = "f <- function(y) {\n  browser()\n  z <- y + 1\n  z\n}\nf(41)"
    outcome, prompts = r.run_asking(code, "y", "stop('in here')", "nope", "n", "n", "z <- 7", "c")
    assert set(prompts) == {"Browse[1]> ", "Browse[2]> "}
    assert (outcome.status, outcome.texts) == ("ok", ["[1] 7"])
    assert "[1] 41" in outcome.stdout
    assert "in here" in outcome.stderr
    assert r.run_asking("f(1)", "Q")[0].status == "interrupted"
    outcome, _ = r.run_asking("debug(f); f(1)", "Q")
    assert "debugging in: f(1)" in outcome.stdout


def test_recover_looks_into_the_frames_of_an_error(r):
    code = 'options(error = recover); h <- function() {zz <- 5; stop("r")}; h()'
    outcome, prompts = r.run_asking(code, "1", "zz", "c", "0")
    assert r.run("options(error = NULL)").status == "ok"
    assert prompts == ["Selection: ", "Browse[1]> ", "Browse[1]> ", "Selection: "]
    assert "[1] 5" in outcome.stdout
    assert (outcome.status, outcome.stderr) == ("error", "Error in h() : r\n")
    assert outcome.of("error")[0]["printed"]


def test_questions_of_the_server_are_answered_in_a_browser(r):
    number = r.submit("f <- function() {inside <- 1; browser()}; f()")
    r.until(lambda: r.find("ask"))
    assert [row["name"] for row in r.ask_side("variables")["variables"]] == ["f"]
    r.answer("c")
    assert r.finish(number).status == "ok"


def ignores_interrupts(pid: int) -> bool:
    """Whether a Ctrl-C passes it by, as it does while R waits for a program."""
    mask = Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0]
    return bool(int(mask, 16) & 2)


def is_waiting(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


# --- interrupts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "Sys.sleep(60)",
        "while (TRUE) {}",
        'system("echo asleep; exec sleep 60")',
        "f <- function() repeat f; f()",
    ],
)
def test_an_interrupt_ends_what_runs_and_nothing_after_it_begins(r, code):
    number = r.submit(f'cat("on\\n"); {code}\ncat("never\\n")')
    r.until_printed("asleep" if "system" in code else "on")
    is_swallowed = ignores_interrupts(r.pid)
    assert is_swallowed == ("system" in code)
    r.interrupt(number | is_swallowed << 63)
    outcome = r.finish(number)
    assert (outcome.status, outcome.stderr) == ("interrupted", "")
    assert "never" not in outcome.stdout
    assert [error["name"] for error in outcome.of("error")] == ["interrupt"]
    assert outcome.done["elapsed"] < 30
    assert r.run("1").text == "[1] 1"


def test_an_interrupt_can_be_caught_and_cleans_up(r):
    r.submit(
        'tryCatch({cat("on\\n"); Sys.sleep(60)}, interrupt = function(e) "mine", finally = cat("end\\n"))'
    )
    outcome = r.interrupt_when(lambda: b"on" in r.output["out"])
    assert (outcome.status, outcome.text) == ("ok", '[1] "mine"')
    assert "end\n" in outcome.stdout


@pytest.mark.parametrize("code", ['readline("p")', 'menu("a")', "scan()", "(function() browser())()"])
def test_an_interrupt_ends_a_question_without_a_word(r, code):
    r.submit(f'{code}; cat("never")')
    if code == "scan()":
        r.answer("1 2")
    outcome = r.interrupt_when(lambda: r.find("ask"))
    assert (outcome.status, outcome.stderr, outcome.error) == ("interrupted", "", "interrupted")
    assert "never" not in outcome.stdout


def test_who_catches_the_interrupt_of_a_question_is_heard(r):
    r.submit('tryCatch(scan(), interrupt = function(e) message("mine"))')
    r.answer("1 2")
    outcome = r.interrupt_when(lambda: r.find("ask"))
    assert (outcome.status, outcome.stderr) == ("ok", "mine\n")


def test_what_reads_lines_warns_as_ever(r):
    outcome = r.run('cat("1 2", file = "read"); scan("read", what = list("", ""), sep = ",", quiet = TRUE)')
    assert 'In scan("read", what = list("", "")' in outcome.stderr


def test_an_interrupt_for_another_run_hits_nothing(r):
    r.run("1")
    r.interrupt()
    assert r.run("Sys.sleep(0.1); 2").text == "[1] 2"
    r.announce_interrupt(r.number + 1)
    before = r.run("cat('never')")
    assert (before.status, before.stdout) == ("interrupted", "")
    assert r.run("3").text == "[1] 3"


# --- beside and between runs -------------------------------------------------------------------


@pytest.mark.parametrize("code", ["Sys.sleep(60)", "while (TRUE) {}"])
def test_questions_are_answered_while_r_computes(r, code):
    number = r.submit(f'mine <- 5; cat("on"); {code}')
    r.until_printed("on")
    [row] = r.ask_side("variables")["variables"]
    assert (row["name"], row["text"]) == ("mine", "5")
    assert "mine" in r.ask_side("complete", "mi")["matches"]
    assert r.ask_side("is_complete", "f(")["status"] == "incomplete"
    r.interrupt()
    outcome = r.finish(number)
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("interrupted", "on", "")


def test_a_question_changes_nothing_that_the_user_sees(r):
    assert r.run("stop('mine')").status == "error"
    r.ask_side("inspect", "nothing_of_that_name")
    r.ask_side("complete", "mtcars$")
    assert r.run("traceback()").stdout == '1: stop("mine")\n'
    assert r.run("geterrmessage()").text == '[1] "Error: mine\\n"'
    assert r.run("invisible(6)").stdout == ""


def test_later_runs_its_callbacks_while_nothing_else_runs(own, r_program):
    r = own.spawn(
        r_program
    )  # not the shared one: an interrupt while `later` has a callback due ends R, also in a terminal
    r.has_package("later")
    r.run('later::later(function() cat("later\\n"), 0.05); later::later(function() stop("oh"), 0.06)')
    r.until_printed("later\n")
    r.until_printed("oh", "err")
    assert r.run("1").text == "[1] 1"


def test_forked_children_print_and_give_their_values(r):
    outcome = r.run('x <- parallel::mclapply(1:2, function(i) {cat("child\\n"); i ^ 2})\nunlist(x)')
    assert (outcome.text, outcome.stdout.count("child")) == ("[1] 1 4", 2)
    outcome = r.run('parallel::mclapply(1:2, function(i) stop("there"))[[1]]')
    assert (outcome.status, outcome.of("error")) == ("ok", [])
    assert "there" in outcome.text


def test_python_inside_r_is_the_workers_own(r):
    r.has_package("reticulate")
    assert r.run('reticulate::py_eval("6 * 7")').text == "[1] 42"
    assert r.run('reticulate::py_run_string("print(1)")').stdout == "1\n"


def test_the_width_follows_the_client(r):
    assert r.run("1:30", width=40).stdout.count("\n") == 3
    assert r.run("getOption('width')", width=0).text == "[1] 40"
    assert r.run("getOption('width')", width=80).text == "[1] 80"


def test_a_sink_that_is_left_open_is_said_once(r):
    opened = r.run('sink(tempfile()); print("away")')
    assert (notices(opened), opened.stdout) == (["sink"], "")
    assert notices(r.run("1")) == []
    assert notices(r.run("sink()")) == []
    assert r.run("1").text == "[1] 1"


def test_odd_prompts_are_nobodys_business(r):
    assert r.run('options(prompt = "Browse[1]> ", continue = "> ")\n1\n{\n2\n}').texts == ["[1] 1", "[1] 2"]
    assert r.run('options(prompt = "> ", continue = "+ ")').status == "ok"


def test_each_page_is_shown_once_by_a_run_and_again_by_one_that_goes_on_with_it(r):
    r.run("plot(0)\ngraphics.off()")  # the first takes longer
    outcome = r.run('plot(1); cat("drawn\\n")\nlines(1:2)\nplot(2)')
    displays = outcome.of("display")
    if outcome.done["elapsed"] > 1.0:  # what goes on for so long shows a page before it is finished, too
        displays = list({frame["display"]: frame for frame in displays}.values())
        assert len(displays) == 2
    else:
        assert [frame["update"] for frame in displays] == [False, False]
    displays += r.run("lines(1:2)").of("display")
    assert displays[2]["update"]
    assert displays[0]["display"] != displays[1]["display"] == displays[2]["display"]
    assert all(frame["data"]["image/png"].startswith(b"\x89PNG") for frame in displays)
    assert r.run("graphics.off()").of("display") == []
    assert len(r.run("plot(7)\ninvisible(dev.off())").of("display")) == 1


def test_a_plot_is_shown_before_a_question_about_it_and_never_twice_alike(r):
    outcome, _ = r.run_asking("plot(3); readline('keep? '); abline(h = 3)", "y")
    assert [frame["type"] for frame in outcome.frames] == ["display", "result", "display", "done"]
    assert [frame["update"] for frame in outcome.of("display")] == [False, True]
    assert r.run("invisible(locator(1)); points(99, 99)").of("display") == []
    outcome, _ = r.run_asking("plot(4); (function() browser())()", "abline(h = 4)", "c")
    assert [frame["update"] for frame in outcome.of("display")] == [False, True]
    outcome, _ = r.run_asking("par(ask = TRUE); plot(5); plot(6); par(ask = FALSE)", "", "")
    assert [frame["update"] for frame in outcome.of("display")] == [False, False]
    assert r.run("graphics.off()").status == "ok"


# --- scripts, and their end --------------------------------------------------------------------


def test_a_script_goes_on_if_it_may_and_tells_its_times(r):
    code = '1\nstop("a")\n2'
    assert r.run(code, mode="script").texts == ["[1] 1"]
    going = r.run(code, mode="script", keep_going=True)
    assert (going.status, going.texts) == ("error", ["[1] 1", "[1] 2"])
    timed = r.run("x <-\n  1\nx", mode="script", timer=True).stdout.split("\n")
    assert timed[:3] == ["## x <-", "##   1", "   user  system elapsed"]
    assert timed[4:6] == ["## x", "[1] 1"]


@pytest.mark.parametrize(
    ("code", "mode", "status", "exit_code", "about"),
    [
        ("q(status = 3); cat('never')", "script", "error", 3, []),
        ("f <- function() quit('no', 0); f(); cat('never')", "prompt", "ok", 0, ["exit"]),
        ("tryCatch(q(), error = function(e) 1, finally = cat(''))", "prompt", "ok", 0, ["exit"]),
    ],
)
def test_quitting_ends_the_run_and_not_r(r, code, mode, status, exit_code, about):
    outcome = r.run(code, mode=mode)
    assert (outcome.status, outcome.done["exit"], outcome.stdout) == (status, exit_code, "")
    assert notices(outcome) == about
    assert r.run("1").done["exit"] is None


def test_a_segfault_has_its_last_words_and_its_signal(own):
    own.spawn()
    own.submit("tools::pskill(Sys.getpid(), 11L); Sys.sleep(60)")
    own.until(lambda: own.process.poll() is not None)
    own.pump(0)
    assert own.process.returncode == -signal.SIGSEGV
    assert b"caught segfault" in own.output["err"]


@pytest.mark.parametrize("code", ["", "while (TRUE) {}", "Sys.sleep(60)", 'readline("p")'])
def test_r_ends_cleanly_whatever_it_does(own, code):
    own.spawn()
    temporary = own.hellos["side"]["tempdir"]
    assert os.path.isdir(temporary)
    if code:
        own.submit(f'cat("on"); {code}')
        own.until_printed("on")
        if "sleep" in code:  # a signal that comes just before would not end it
            wait_for(lambda: is_waiting(own.pid), 60)
        os.kill(own.pid, signal.SIGTERM)
        assert own.process.wait(60) == 0
    else:
        assert own.stop() == 0
    assert not os.path.exists(temporary)


def test_r_ends_when_its_keeper_is_gone_for_good(own):
    own.spawn()
    own.submit("while (TRUE) {}")
    Path(own.folder, "lock").touch()
    own.vanish()
    assert own.process.wait(60) == 0


# --- profiles ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "out", "err"),
    [
        ('cat("hello\\n")', b"hello\n", b""),
        ('stop("bad profile")', b"", b"Error: bad profile\n"),
        ('x <- readline("who? ")', b"", b""),
        ("options(warn = 2, prompt = 'p'); c <- list <- function(...) stop('mine')", b"", b""),
    ],
)
def test_a_profile_may_do_what_it_likes(own, profile, out, err):
    Path(own.folder, ".Rprofile").write_text(profile + "\n")
    own.spawn()
    own.pump(0)
    assert own.output == {"out": out, "err": err}
    assert own.run("1 + 1").text == "[1] 2"


def test_a_profile_that_quits_ends_the_worker(own, tmp_path):
    Path(own.folder, ".Rprofile").write_text("quit(status = 3)\n")
    own.listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        own.listener.accept()
    process = subprocess.Popen(
        ["R", "CMD", sys.executable, str(WORKER), own.folder, "w1", "embed"],
        cwd=own.folder,
        stdin=subprocess.DEVNULL,
    )
    assert process.wait(60) == 3


# --- the server goes and comes -----------------------------------------------------------------


@pytest.mark.parametrize("wait", ["Sys.sleep(0.05)", "t <- Sys.time(); while (Sys.time() - t < 0.05) {}"])
def test_a_new_server_finds_r_at_work_and_gets_all(own, wait):
    own.spawn()
    number = own.submit('for (i in 1:20) {cat(i, "\\n"); ' + wait + '}\n"end"')
    own.until_printed("3 \n")
    own.vanish()
    own.listen()
    own.meet()
    outcome = own.finish(number)
    assert outcome.stdout.split()[:-2] == [str(i) for i in range(1, 21)]
    assert outcome.text == '[1] "end"'
    own.vanish()
    own.listen()
    own.meet()
    assert own.run("2").text == "[1] 2"


def test_a_flood_waits_for_a_server_and_can_be_interrupted(own):
    own.spawn()
    number = own.submit('for (i in 1:200000) cat("line", i, "\\n")')
    own.vanish()
    wait_for(lambda: not select.select([], [own.fifos["out"]], [], 0)[1], 60, "a full pipe")
    wait_for(lambda: is_waiting(own.pid), 60)
    own.listen()
    own.meet()
    assert own.finish(number).stdout.count("\n") == 200_000
    own.submit('repeat cat("line\\n")')
    own.until_printed("line")
    own.interrupt()
    assert own.finish().status == "interrupted"


def test_a_killed_server_costs_nothing(r_served):
    with r_served.connect() as session:
        run = session.submit('for (i in 1:40) {cat(i, ""); Sys.sleep(0.02)}; x <- 7; x')
        next(event for event in run.events() if event.kind == "stdout")
        os.kill(r_served.server_pid, signal.SIGKILL)
        result = run.wait(60)
        assert result.stdout.split()[:40] == [str(i) for i in range(1, 41)]
        assert result.text == "[1] 7"
        assert session.run("x", quiet=True).text == "[1] 7"
    assert is_alive(r_served.worker_pid)


# --- where R cannot be embedded ----------------------------------------------------------------


def test_without_the_library_embedding_fails_with_one_line(own, tmp_path):
    words = ["R", "CMD", sys.executable, str(WORKER), own.folder, "w1", "embed"]
    environment = {**os.environ, "REMOTER_R_LIBRARY": str(tmp_path / "none.so")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "none.so" in done.stderr
