"""Values of an R session that cross: here and back, between two R sessions, between R and Python."""

import contextlib
import os
import sys

import pytest

import remoter
from remoter import NameNotFoundError, RemoterError, TransferError, _parcel

from .waiting import wait_for

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")

MIXED = """
df <- data.frame(
    number = c(1.5, NA, NaN, Inf), whole = c(1L, NA, 3L, -4L), truth = c(TRUE, NA, FALSE, TRUE),
    level = factor(c("b", NA, "a", "b"), levels = c("b", "a", "unused")),
    grade = factor(c("low", "high", NA, "low"), levels = c("low", "high"), ordered = TRUE),
    text = c("a", NA, "\\u00e9\\u4e16", ""), day = as.Date(c("2026-01-31", NA, "1969-12-31", "2000-02-29")),
    moment = as.POSIXct(c("2026-06-01 12:00:00", NA, "2026-01-01 00:00:01", "1970-01-01 00:00:00"), tz = "Europe/Berlin"),
    lasted = as.difftime(c(1, NA, 90, 0.5), units = "mins"), stringsAsFactors = FALSE)
"""

KINDS = {
    "nothing": "NULL",
    "logical": "c(TRUE, NA, FALSE)",
    "one logical": "TRUE",
    "one NA": "NA",
    "integer": "c(1L, NA, -3L)",
    "one integer": "42L",
    "double": "c(1.5, NA, NaN, -Inf)",
    "one NA_real_": "NA_real_",
    "complex": "c(1+2i, NA)",
    "character": 'c("a", NA, "\\u00e9")',
    "one NA_character_": "NA_character_",
    "raw": "as.raw(0:255)",
    "empty": "list(integer(), character(), list(), logical(), NULL)",
    "named": "c(a = 1, b = 2)",
    "range": "1:10",
    "factor": 'factor(c("x", "y", NA))',
    "ordered": 'factor(c("lo", "hi"), levels = c("lo", "hi"), ordered = TRUE)',
    "date": 'as.Date(c("2026-11-22", NA))',
    "moment": 'as.POSIXct("2026-11-22 10:00:00", tz = "America/New_York") + 0:2',
    "parts of a moment": 'as.POSIXlt("2026-11-22 10:00:00", tz = "UTC")',
    "difference": 'as.difftime(c(1, 2), units = "hours")',
    "matrix": "matrix(1:6, 2, dimnames = list(c('r1', 'r2'), NULL))",
    "array": "array(as.numeric(1:24), c(2, 3, 4))",
    "array with a range as its shape": "array(1:24, 2:4)",
    "matrix with a range as its names": "structure(1:6, dim = 2:3, dimnames = list(1:2, NULL))",
    "list": 'list(1, "a", list(2L, NULL))',
    "named list": "list(a = 1, b = list(c = 'x', 2))",
    "names twice": "list(a = 1, a = 2)",
    "frame": "head(mtcars)",
    "empty frame": "mtcars[0, ]",
    "frame of lists": "{d <- data.frame(n = 1:2); d$l <- list(1:3, 'x'); d}",
    "columns twice": "data.frame(a = 1:2, a = 3:4, check.names = FALSE)",
    "latin1": "`Encoding<-`('\\xe9', 'latin1')",
    "bytes": "`Encoding<-`('\\xff\\xfe', 'bytes')",
    "function": "function(x, y = 2) x + y",
    "formula": "y ~ x + log(z)",
    "language": "quote(f(x, y = 2))",
    "model": "lm(mpg ~ wt, mtcars, model = FALSE)",
    "own class": "structure(list(a = 1), class = 'mine', note = 'kept')",
    "S4": "{setClass('P', representation(x = 'numeric')); new('P', x = 1)}",
}


def in_shared_memory(served):
    """What lies there of that session; others have files there too, those of other tests among them."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(_parcel.label(served.directory))}


@contextlib.contextmanager
def held(session, gate):
    """R is inside one call that asks nobody until it is let go: it reads a file to which we write nothing."""
    os.mkfifo(gate)
    run = session.submit(f'held <- readLines("{gate}")')

    def open_it():
        with contextlib.suppress(OSError):  # R does not read it yet
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        return None

    writer = wait_for(open_it, 15, "R to be inside of the call")
    try:
        yield run
    finally:
        os.close(writer)


def identical(session, one, other):
    """Whether R finds the two the same; environments of formulas and functions apart, which are the global one."""
    return (
        session.run(f"identical({one}, {other}, ignore.environment = FALSE)", quiet=True).text == "[1] TRUE"
    )


def test_what_is_pulled_and_pushed_back_is_identical(r_session):
    other = {}
    for kind, code in KINDS.items():
        r_session.run(f"x <- {code}", quiet=True)
        r_session.push("y", r_session.pull("x"))
        if not identical(r_session, "x", "y"):
            other[kind] = r_session.run("all.equal(x, y); str(y)", quiet=True).stdout
    assert not other


def test_a_frame_is_a_frame_here_with_types_levels_zones_and_missing_values(r_session):
    r_session.run(MIXED)
    frame = r_session.pull("df")
    assert list(frame.columns) == [
        "number",
        "whole",
        "truth",
        "level",
        "grade",
        "text",
        "day",
        "moment",
        "lasted",
    ]
    assert str(frame.dtypes["number"]) == "float64"
    assert str(frame.dtypes["whole"]) == "Int32"
    assert str(frame.dtypes["truth"]) == "boolean"
    assert list(frame["level"].cat.categories) == ["b", "a", "unused"]
    assert frame["grade"].cat.ordered
    assert frame["text"][2] == "é世"
    assert str(frame["moment"].dt.tz) == "Europe/Berlin"
    assert frame["moment"][0] == pd.Timestamp("2026-06-01 12:00", tz="Europe/Berlin")
    assert frame["lasted"][2] == pd.Timedelta(minutes=90)
    assert [int(frame[name].isna().sum()) for name in frame] == [2, 1, 1, 1, 1, 1, 1, 1, 1]
    r_session.push("back", frame)
    assert identical(r_session, "df", "back")


def test_a_data_set_of_r_is_pulled_by_its_name(r_session):
    cars = r_session.pull("mtcars")
    assert cars.shape == (32, 11)
    assert cars.loc["Mazda RX4", "mpg"] == 21.0


@pytest.mark.parametrize("format", ["pandas", "polars", "arrow"])
def test_a_frame_comes_in_the_format_that_is_asked_for(r_session, format):
    library = pytest.importorskip({"arrow": "pyarrow"}.get(format, format))
    frame = r_session.pull("head(iris)", format=format)
    kind = {"pandas": "DataFrame", "polars": "DataFrame", "arrow": "Table"}[format]
    assert isinstance(frame, getattr(library, kind))
    assert frame.shape == (6, 5)
    r_session.push("back", frame)
    assert (
        r_session.run("all.equal(back, head(iris), check.attributes = FALSE)", quiet=True).text == "[1] TRUE"
    )


def test_names_of_r_that_are_none_in_python(r_session):
    r_session.push("my.df", [1, 2])
    assert "my.df" in r_session
    assert list(r_session["my.df"]) == [1, 2]
    r_session.push("`two words`", 5)
    assert r_session.pull("`two words`") == 5
    assert r_session.run("`two words`", quiet=True).text == "[1] 5"
    del r_session["my.df"]
    assert "my.df" not in r_session
    for name in ("_x", "1a", "if", "a b", ""):
        with pytest.raises(TransferError) as caught:
            r_session.push(name, 1)
        assert caught.value.id == "name"
    with pytest.raises(NameNotFoundError) as missing:
        r_session.pull("nothing.here")
    assert "nothing.here" in str(missing.value)
    with pytest.raises(NameNotFoundError):
        del r_session["nothing.here"]


def test_an_expression_is_pulled_and_prints_what_it_prints(r_session, capsys):
    assert r_session.pull('{cat("hello\\n"); 6 * 7}') == 42
    assert capsys.readouterr().out == "hello\n"
    with pytest.raises(remoter.RunError, match="boom"):
        r_session.pull('stop("boom")')


def test_what_r_cannot_hold_is_said(r_session):
    with pytest.warns(UserWarning, match="2\\^53"):
        r_session.push("big", np.array([1, 2**53 + 1]))
    assert r_session.run("typeof(big)", quiet=True).text == '[1] "double"'
    for value in ("a\0b", object(), lambda: 1):
        with pytest.raises(TransferError) as caught:
            r_session.push("x", value)
        assert type(value).__name__ in str(caught.value) or "NUL" in str(caught.value)
    assert not r_session.run('exists("x")', quiet=True).text.endswith("TRUE")


def test_what_was_replaced_is_said_and_can_be_forbidden(r_session):
    assert r_session.push("x", 1.5).replaced is None
    assert r_session.push("x", "two").replaced
    with pytest.raises(TransferError) as caught:
        r_session.push("x", 3, overwrite=False)
    assert caught.value.id == "exists"
    assert r_session["x"] == "two"


def test_values_of_one_size_have_memory_of_their_own_also_over_the_port(r_session, r_shared):
    r_session.run("one <- rep(1, 2e4); two <- rep(2, 2e4)", quiet=True)
    with r_shared.served.connect_tcp() as far:
        one, two = far.pull("one"), far.pull("two")
        again = far.pull("one")
    assert (set(one), set(two), set(again)) == ({1.0}, {2.0}, {1.0})
    again[:] = 3
    assert set(one) == {1.0}


def test_large_vectors_cross_both_ways_also_over_the_port(r_session, r_shared):
    numbers = np.arange(3_000_000, dtype=float)
    r_session.push("x", numbers)
    assert r_session.run("sum(x)", quiet=True).text == f"[1] {numbers.sum():.6e}"
    r_session.run("x <- x + 1; i <- seq_len(1e6)")
    near = r_session.pull("x")
    assert near.flags.writeable and near.flags.aligned
    np.testing.assert_array_equal(near, numbers + 1)
    near[0] = 7  # it is ours: the session's stays
    with r_shared.served.connect_tcp() as far:
        np.testing.assert_array_equal(far.pull("x"), numbers + 1)
        assert far.pull("i").dtype == np.int32
    target = np.empty(3_000_000)
    assert r_session.pull("x", into=target) is target
    assert target[1] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")
def test_nothing_is_left_in_shared_memory(r_session, r_shared):
    r_session.run("x <- numeric(1e6)")
    value = r_session.pull("x")
    r_session.push("y", value)
    with pytest.raises(TransferError):
        r_session.push("x", 1, overwrite=False)
    with pytest.raises(NameNotFoundError):
        r_session.pull("nothing")
    wait_for(lambda: not in_shared_memory(r_shared.served), what="the files are gone")


def variables(session):
    """A list of them from R itself, which may be late: it has a second to answer."""

    def ask():
        with contextlib.suppress(RemoterError):
            listed = session.variables()
            return None if any("age" in each for each in listed) else listed
        return None

    return wait_for(ask, 15, "R to list its variables")


def test_values_are_looked_up_beside_a_running_command(r_session):
    r_session.run("x <- c(1, 2, 3)")
    run = r_session.submit("repeat {x <- x; for (i in 1:1000) i}")
    wait_for(lambda: run.status == "running", what="it runs")
    assert list(r_session.pull("x")) == [1, 2, 3]
    r_session.push("y", 5)
    assert {"x", "y"} <= {each["name"] for each in variables(r_session)}
    run.interrupt()
    assert run.wait(10).status == "interrupted"
    run = r_session.submit("Sys.sleep(60)")
    wait_for(lambda: run.status == "running", what="it sleeps")
    assert r_session.pull("y") == 5
    run.interrupt()
    assert run.wait(10).status == "interrupted"


def test_a_list_of_variables_that_cannot_be_fresh_is_given_with_its_age(r_session, home):
    r_session.run("m <- matrix(runif(1200^2), 1200); y <- 1")
    fresh = variables(r_session)
    assert {"m", "y"} <= {each["name"] for each in fresh}
    shape = next(each["shape"] for each in fresh if each["name"] == "m")
    assert shape == [1200, 1200]
    with held(r_session, home / "gate") as run:
        old = r_session.variables()
    assert {"m", "y"} <= {each["name"] for each in old}
    assert all(each["age"] > 0 for each in old)
    assert run.wait(10).status == "ok"


def test_r_to_r_is_identical_and_code_goes_unharmed(r_session, r_served):
    with r_served.connect() as other:
        for kind in ("frame", "model", "function", "S4", "latin1", "named list", "array", "formula"):
            r_session.run(f"x <- {KINDS[kind]}; saved <- tempfile(); saveRDS(x, saved)", quiet=True)
            saved = r_session.pull("saved")
            other.push("x", r_session.pull("x"))
            assert identical(other, "x", f'readRDS("{saved}")'), kind


def test_frames_go_from_r_to_python_and_back(r_session, served):
    r_session.run(MIXED)
    with served.connect() as python:
        python.push("df", r_session.pull("df"))
        seen = python.run(
            "str(df.dtypes['level']), str(df.moment.dt.tz), int(df.whole.isna().sum())", quiet=True
        )
        assert seen.text == "('category', 'Europe/Berlin', 1)"
        r_session.push("back", python.pull("df"))
    r_session.run("units(back$lasted) <- units(df$lasted)")
    assert r_session.run("all.equal(df, back, check.attributes = FALSE)", quiet=True).text == "[1] TRUE"
    assert r_session.run(
        "levels(back$level); is.ordered(back$grade); attr(back$moment, 'tzone')", quiet=True
    ).stdout == ('[1] "b"      "a"      "unused"\n[1] TRUE\n[1] "Europe/Berlin"\n')


def test_a_pull_goes_on_after_the_server_was_killed(r_served):
    with r_served.connect() as session:
        session.run("x <- numeric(2e6) + 1")
        os.kill(session.info.server_pid, 9)
        assert session.pull("x").sum() == 2e6


def test_a_python_session_gets_plain_values_and_no_classes_of_ours(r_session, served):
    r_session.run(
        "x <- structure(list(a = list(1, 'b'), m = matrix(1:4, 2, dimnames = list(c('r', 's'), NULL)),"
        " day = as.Date('2026-11-22'), span = as.difftime(2, units = 'hours'), v = structure(1:3, note = 'n')),"
        " class = 'mine')"
    )
    with served.connect() as python:
        python.push("x", r_session.pull("x"))
        seen = python.run(
            "[type(v).__module__ + '.' + type(v).__name__ for v in (x, *x.values())]", quiet=True
        )
        assert "remoter" not in seen.text
        assert python.run("x['m'].tolist(), str(x['day']), str(x['span'])", quiet=True).text == (
            "([[1, 3], [2, 4]], '2026-11-22', '2:00:00')"
        )
        with pytest.raises(TransferError, match="nothing in Python"):
            python.push("f", r_session.pull("mean"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")
def test_a_server_that_is_killed_while_r_has_not_answered_leaves_nothing_in_shared_memory(r_served, home):
    with r_served.connect() as session:
        session.run("x <- numeric(1e6)")
        with held(session, home / "gate") as run:
            transfer = session.pull("x", background=True)
            wait_for(lambda: in_shared_memory(r_served), what="the file is there for R to fill")
            os.kill(r_served.server_pid, 9)
            wait_for(lambda: session.info.server_pid != r_served.server_pid, 15, "the next server")
        assert len(transfer.wait(30)) == 1e6
        run.wait(30)
    r_served.stop()
    assert not in_shared_memory(r_served)
