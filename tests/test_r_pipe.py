"""R at the end of pipes, through the public face: what it does is what the embedded R does."""

import contextlib
import os
import signal

import pytest

import remoter

from .conftest import is_alive, wait_for

PIPE = {"r_engine": "pipe"}

pytestmark = pytest.mark.parametrize("r_shared", [PIPE], indirect=True)


@pytest.fixture
def session(r_session):
    assert r_session.info.runner == "pipe"
    return r_session


@pytest.fixture
def own(r_shared, r_program, serve):
    """A session of the test's own, which it may end."""
    return serve(lang="r", r=r_program, **PIPE)


def ask_of(run):
    """The prompt of the first question that the run asks."""
    return next(event for event in run.events() if event.kind == "ask").text


def printed(events, text):
    """Go on to where that has been printed on stdout; gives all of it up to there."""
    seen = ""
    for event in events:
        if event.kind == "stdout":
            seen += event.text
        if text in seen:
            return seen
    raise AssertionError(f"{text!r} was not printed: {seen!r}")


def r_pid(session):
    """The process of R itself."""
    return int(session.run("cat(Sys.getpid())", quiet=True).stdout)


def test_each_value_is_printed_where_it_arises_and_nothing_of_our_own(session):
    result = session.run("x <- 5; x\ninvisible(6)\ncat('half')\nNULL", quiet=True)
    assert (result.status, result.text, result.stdout) == ("ok", "NULL", "[1] 5\nhalfNULL\n")
    events = [e for e in session.submit("print(1); 2\n3").events() if e.kind == "result"]
    assert [event.text for event in events] == ["[1] 2", "[1] 3"]


def test_code_runs_at_top_level(session):
    result = session.run("sys.nframe(); environment(); .Last.value", quiet=True)
    assert result.stdout == "[1] 0\n<environment: R_GlobalEnv>\n<environment: R_GlobalEnv>\n"
    assert session.run("ls(all.names = TRUE); showConnections(all = FALSE)", quiet=True).text.startswith("  ")


def test_a_long_line_of_any_characters_is_one_line(session):
    code = f"text <- '{'é世' * 10_000}'; nchar(text); '\\t\"'"
    assert session.run(code, quiet=True).stdout == '[1] 20000\n[1] "\\t\\""\n'


def test_warnings_come_after_their_expression_and_stay_out_of_stdout(session):
    result = session.run("f <- function() { warning('hm'); 3 }\nf()", quiet=True)
    assert (result.text, result.stdout, result.stderr) == (
        "[1] 3",
        "[1] 3\n",
        "Warning message:\nIn f() : hm\n",
    )


def test_lines_on_stdout_and_stderr_keep_their_order(session, tmp_path):
    run = session.submit(
        "for (i in 1:5) { cat('out', i, '\\n'); message('err ', i);"
        f" while (!file.exists(paste0('{tmp_path}/seen', i))) Sys.sleep(0.005) }}"
    )
    told = ""
    for event in run.events():
        told += event.text if event.kind in ("stdout", "stderr") else ""
        for number in range(1, 6):
            if f"out {number}" in told and f"err {number}\n" in told:
                (tmp_path / f"seen{number}").touch()
    lines = told.splitlines()
    assert [line.strip() for line in lines] == [f"{w} {i}" for i in range(1, 6) for w in ("out", "err")]


def test_an_error_is_its_message_and_leaves_a_traceback(session):
    with pytest.raises(remoter.RunError, match=r"Error in f\(\) : oops") as caught:
        session.run("f <- function() { warning('first'); stop('oops') }; cat('before'); f(); cat('never')")
    result = caught.value.result
    assert "In addition: Warning message:" in str(caught.value)
    assert (result.stdout, result.stderr) == ("before", "")
    assert session.run("traceback()", quiet=True).stdout.startswith('2: stop("oops")')
    assert session.run("try(stop('c')); 5", quiet=True).stderr == 'Error in try(stop("c")) : c\n'
    assert (
        session.run(
            "print.bad <- function(x, ...) stop('no'); structure(1, class = 'bad')", check=False
        ).status
        == "error"
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x y", 'Error: unexpected symbol in "x y"'),
        ("cat('no')\nx y", 'Error: unexpected symbol in "x y"'),
        ("c(1,\n}", "Error: unexpected '}' in:\n\"c(1,\n}\""),
        ("f(", "Error: unexpected end of input"),
    ],
)
def test_code_that_does_not_parse_runs_not_at_all(session, code, message):
    with pytest.raises(remoter.RunError) as caught:
        session.run(code)
    assert message in str(caught.value)
    assert caught.value.result.stdout == ""


def test_a_prompt_of_the_users_own_confuses_nobody(session):
    assert session.run("options(prompt = 'R> ', continue = '  ')\n1", quiet=True).stdout == "[1] 1\n"
    assert session.run("cat(getOption('prompt')); 2", quiet=True).text.endswith("[1] 2")
    assert session.run("getOption('continue')", quiet=True).text == '[1] "  "'


@pytest.mark.parametrize(
    "code", ["cat('a'); {options(prompt = 'Z> '); stop('x')}", "{options(prompt = '\\nZ> '); stop('x')}"]
)
def test_a_prompt_that_is_set_before_an_error_is_no_question(session, code):
    run = session.submit(code)
    told = [
        (event.kind, event.text.strip()) for event in run.events() if event.kind in ("ask", "stdout", "error")
    ]
    assert [entry for entry in told if entry[1]] == [("stdout", "a")] * ("cat" in code) + [
        ("error", "Error: x")
    ]
    assert session.run("1", quiet=True).stdout == "[1] 1\n"


def test_a_prompt_that_is_set_in_a_browser_or_before_an_interrupt_is_no_question(session):
    run = session.submit("f <- function() { browser(); 1 }\nf()")
    prompts, answers = [], iter(["options(prompt = 'R> ')", "Q"])
    for event in run.events():
        if event.kind == "ask":
            prompts.append(event.text)
            run.answer(next(answers))
    assert (prompts, run.status) == (["Browse[1]> "] * 2, "interrupted")
    run = session.submit("{options(prompt = 'Z> '); cat('go\\n'); Sys.sleep(60)}")
    printed(run.events(), "go\n")
    run.interrupt()
    assert run.wait(40).status == "interrupted"
    assert session.run("1").text == "[1] 1"


def test_who_asks_on_and_on_where_nobody_answers_is_interrupted(session):
    result = session._submit(
        "menu(c('a', 'b')); for (i in 1:9) stopifnot(readline('? ') == '')", detached=True
    )
    assert (result.wait(40).status, result.wait(40).text) == ("ok", "[1] 0")
    assert session._submit("repeat readline('? ')", detached=True).wait(60).status == "interrupted"
    assert session.run("1").text == "[1] 1"


def test_a_line_that_goes_on_in_a_browser_is_asked_for_as_r_does(session):
    run = session.submit("f <- function(x) { browser(); x }; f(2)")
    prompts, answers = [], iter(["x <- 'abc", "d'", "c"])
    for event in run.events():
        if event.kind == "ask":
            prompts.append(event.text)
            run.answer(next(answers))
    assert prompts == ["Browse[1]> ", "+ ", "Browse[1]> "]
    assert run.wait(40).text == '[1] "abc\\nd"'


def test_code_that_does_not_parse_is_told_in_the_language_of_r(r_shared, r_program, serve, monkeypatch):
    monkeypatch.setenv("LANGUAGE", "de")
    with serve(lang="r", r=r_program, **PIPE).connect() as session:
        word = session.run("cat(gettext('Error: ', domain = 'R', trim = FALSE))", quiet=True).stdout
        result = session.run("f(", quiet=True, check=False)
    assert str(result.error).startswith(word)
    assert "Error" not in str(result.error) or word == "Error: "


def test_quitting_ends_the_run_with_its_status_and_not_the_session(session):
    result = session.run("cat('a\\n'); q(status = 3); cat('b\\n')", quiet=True, check=False)
    assert (result.status, result.stdout, str(result.error)) == ("error", "a\n", "q(status = 3)")
    assert session.run("quit('no')").status == "ok"
    assert session.run("1").text == "[1] 1"


def test_questions_are_asked_and_their_answers_are_not_echoed(session):
    run = session.submit("name <- readline('Name? '); cat('hello', name)")
    assert ask_of(run) == "Name? "
    run.answer("ada\tl. é")
    assert run.wait(40).stdout == "hello ada\tl. é"
    run = session.submit("menu(c('tea', 'milk'), title = 'Which?')")
    assert ask_of(run) == "Selection: "
    run.answer("2")
    assert run.wait(40).text == "[1] 2"


def test_numbers_are_scanned_until_an_empty_line(session):
    run = session.submit("scan(quiet = TRUE)")
    prompts = []
    for event in run.events():
        if event.kind == "ask":
            prompts.append(event.text)
            run.answer({1: "1 2", 2: "3", 3: ""}[len(prompts)])
    assert prompts == ["1: ", "3: ", "4: "]
    assert run.wait(40).stdout == "[1] 1 2 3\n"


def test_a_browser_stops_inside_a_function(session):
    run = session.submit("f <- function(a) { browser(); a + 1 }\nf(41)")
    prompts, answers = [], iter(["a * 2", "c"])
    for event in run.events():
        if event.kind == "ask":
            prompts.append(event.text)
            run.answer(next(answers))
    assert prompts == ["Browse[1]> "] * 2
    assert run.wait(40).stdout.splitlines()[-2:] == ["[1] 82", "[1] 42"]


def test_nobody_to_answer_is_the_end_of_the_file(session):
    run = session.submit("readline('Name? ')")
    assert ask_of(run) == "Name? "
    run.answer(None)
    assert run.wait(40).text == '[1] ""'


@pytest.mark.parametrize(
    "code",
    [
        "Sys.sleep(60)",
        "repeat {}",
        "system('echo asleep; exec sleep 60'); Sys.sleep(60)",
        "readline('? ')",
        "f <- function() { browser(); 1 }; f()",
    ],
)
def test_an_interrupt_ends(session, code):
    run = session.submit(f"cat('go\\n'); {code}; cat('never')")
    printed(run.events(), "asleep\n" if "asleep" in code else "go\n")
    run.interrupt()
    result = run.wait(40)
    assert (result.status, result.stderr) == ("interrupted", "")
    assert "never" not in result.stdout
    assert session.run("1").text == "[1] 1"


def inspected(session, name):
    """What there is to know of it; empty when R does not answer in time."""
    with contextlib.suppress(remoter.RemoterError):
        return session.inspect(name).text
    return ""


def test_an_empty_line_on_stderr_after_an_interrupt_is_one(session):
    run = session.submit("cat('go\\n'); Sys.sleep(60)")
    printed(run.events(), "go\n")
    run.interrupt()
    assert run.wait(60).stderr == ""
    session.run("Sys.sleep(0.6)")
    result = session.run("message(''); cat('on\\n')", quiet=True)
    assert (result.stdout, result.stderr) == ("on\n", "\n")


def test_questions_about_the_session_are_answered_also_while_it_is_busy(session):
    session.run("numbers <- 1:3; frame <- data.frame(column = 1)", quiet=True)
    # An R that takes long over the first of its kind is not waited for: who wants to know asks again.
    wait_for(lambda: [v["name"] for v in session.variables()] == ["frame", "numbers"], 60)
    wait_for(lambda: session.complete("frame$c", 7).matches == ["frame$column"], 60)
    wait_for(lambda: session.is_complete("f(").status == "incomplete", 60)
    wait_for(lambda: "Arithmetic Mean" in inspected(session, "mean"), 60)
    run = session.submit("cat('go\\n'); Sys.sleep(60)")
    printed(run.events(), "go\n")
    assert [v["name"] for v in session.variables()] == ["frame", "numbers"]
    run.interrupt()
    run.wait(40)


def test_a_question_for_which_r_would_compute_for_ever_is_given_up(session):
    session.run(
        "str.endless <- function(object, ...) repeat {}; x <- structure(1, class = 'endless')", quiet=True
    )
    with contextlib.suppress(remoter.RemoterError):
        session.inspect("x")
    assert session.run("1", quiet=True).stdout == "[1] 1\n"


def test_who_leaves_a_command_by_himself_hears_nothing_of_it(session):
    run = session.submit("message('hm'); invokeRestart('abort')")
    [error] = [event for event in run.events() if event.kind == "error"]
    assert (run.status, error.text, error.data["name"], error.printed) == ("interrupted", "", "abort", True)
    run = session.submit("f <- function() browser(); f()")
    assert ask_of(run) == "Browse[1]> "
    run.answer("Q")
    [error] = [event for event in run.events() if event.kind == "error"]
    assert (run.status, error.data["name"]) == ("interrupted", "abort")


def test_a_plot_is_shown_before_a_question_about_it(session):
    run = session.submit("plot(3); readline('keep? '); (function() {browser(); 1})(); abline(v = 1)")
    kinds, answers = [], iter(["y", "abline(h = 3)", "c"])
    for event in run.events():
        kinds += [event.kind] if event.kind in ("display", "ask") else []
        if event.kind == "ask":
            run.answer(next(answers))
    assert kinds == ["display", "ask", "ask", "display", "ask", "display"]
    assert run.wait(40).stdout.endswith("[1] 1\n")
    assert session.run("invisible(identify(1, 1))").displays == []
    assert len(session.run("plot(7)\ngraphics.off()").displays) == 1


def test_plots_come_in_order_and_again_when_they_change(session):
    result = session.run("plot(1)\nlines(2)\nfor (i in 1:2) plot(i)", quiet=True)
    assert [display["text/plain"] for display in result.displays] == [
        f"<plot {n}>" for n in range(first_number(result), first_number(result) + 3)
    ]
    assert all(display["image/png"].startswith(b"\x89PNG") for display in result.displays)
    changed = session.run("abline(h = 2)", quiet=True)
    assert len(changed.displays) == 1
    assert changed.displays[0]["text/plain"] == result.displays[-1]["text/plain"]
    assert session.run("file.exists('Rplots.pdf')").text == "[1] FALSE"


def first_number(result):
    """The number of its first plot."""
    return int(result.displays[0]["text/plain"].split()[1].rstrip(">"))


def test_objects_come_and_go(session):
    session.push("pushed", [1.5, 2.5])
    assert session.run("sum(unlist(pushed))").text == "[1] 4"
    assert session.pull("c(1, 2) * 2").tolist() == [2.0, 4.0]
    with pytest.raises(remoter.RemoterError, match=r"^Error: oh"):
        session.pull("stop('oh')")
    assert "pushed" in session
    with pytest.raises(remoter.NameNotFoundError, match="pusher"):
        session.pull("pusher")


def test_a_sink_that_is_left_open_is_told_of(session):
    run = session.submit("sink(tempfile()); 5")
    notices = [event.text for event in run.events() if event.kind == "notice"]
    assert notices == ["output goes to a sink; `sink()` brings it back"]
    assert session.run("sink(); 6").text == "[1] 6"


def test_a_timed_script_echoes_goes_on_after_errors_and_ends_with_the_first(session):
    run = session._submit(
        "1\nstop('a')\nf <- function() {\n  2\n}\nf()", mode="script", timer=True, keep_going=True
    )
    result = run.wait(40)
    lines = [line for line in result.stdout.splitlines() if not line[:1].isspace()]
    assert lines == [
        "## 1",
        "[1] 1",
        "## stop('a')",
        "## f <- function() {",
        "##   2",
        "## }",
        "## f()",
        "[1] 2",
    ]
    assert result.status == "error"


def test_a_profile_may_print_ask_and_fail(r_shared, r_program, serve, tmp_path, monkeypatch):
    profile = tmp_path / "profile.R"
    profile.write_text(
        "cat('hello\\n'); options(prompt = 'R> '); asked <- readline('What? ')\n"
        ".First <- function() cat('first\\n')\nstop('no more')\n"
    )
    monkeypatch.setenv("R_PROFILE_USER", str(profile))
    with serve(lang="r", r=r_program, **PIPE).connect() as session:
        assert session.run("asked", quiet=True).text == '[1] ""'
        told = []
        for event in session.events(since=0, all=True):
            told += [event.text] if event.kind in ("stdout", "stderr") else []
            if event.kind == "queued":
                break
    assert "Error: no more" in "".join(told)
    assert "".join(text for text in told if "Error" not in text).replace("What? ", "") == "hello\nfirst\n"


def test_the_width_is_that_of_whoever_looks(session):
    wide = session._submit("getOption('width')", width=123).wait(40).text
    assert (wide, session.run("Sys.getenv('INPUTRC')", quiet=True).text) == ("[1] 123", '[1] ""')


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (11, "SIGSEGV")])
def test_the_end_of_r_is_that_of_the_session_in_the_same_way(own, number, name):
    with own.connect() as session:
        with pytest.raises(remoter.SessionDiedError, match=name) as caught:
            session.run(f"tools::pskill(Sys.getpid(), {number})", quiet=True)
        if name == "SIGSEGV":
            assert "caught segfault" in caught.value.result.stderr


def test_ending_the_session_ends_r_and_what_it_has_made(own):
    with own.connect() as session:
        pid = r_pid(session)
        folder = session.run("cat(tempdir())", quiet=True).stdout
        session.shutdown()
    wait_for(lambda: not is_alive(pid), 60, "the end of R")
    wait_for(lambda: not os.path.exists(folder), 60, "the end of its temporary folder")


def test_a_killed_server_finds_its_r_again(own):
    with own.connect() as session:
        session.run("x <- 7", quiet=True)
        os.kill(own.server_pid, signal.SIGKILL)
        assert session.run("x", quiet=True).text == "[1] 7"
