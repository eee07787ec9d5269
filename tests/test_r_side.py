"""The R half by itself: questions to one R process, and what it leaves as it was."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import remoter

SIDE = Path(remoter.__file__).parent / "_workers" / "r_side.R"

READ = f'for (i in 1:2) eval(parse("{SIDE}"))\n'  # twice does no harm

TELL = """
tell <- function(label, answer) cat("\\n@@", label, "\\t", answer, "\\n", sep = "")
"""


def run_r(r_program, code, folder, **environment):
    """What R printed, and the answers that it was made to tell, by label."""
    script = folder / "script.R"
    script.write_text(READ + TELL + code)
    ended = subprocess.run(
        [r_program, "--vanilla", "--no-echo", f"--file={script}"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
    )
    assert ended.returncode == 0, ended.stderr
    answers = {}
    for line in ended.stdout.splitlines():
        if line.startswith("@@"):
            label, _, answer = line[2:].partition("\t")
            answers[label] = json.loads(answer) if answer else None
    return ended, answers


QUESTIONS = r"""
check <- function(label, code) tell(paste("check", label), .remoter$check(code))
check("whole", "f <- function(x) {\n  x # {\n}\n")
check("nothing", "")
check("open brace", "f <- function(x) {")
check("open call", "f(1,")
check("open operator", "1 +\n\n")
check("open string", "'abc")
check("open name", "`abc")
check("open raw string", "r\"(abc")
check("words", "x y z")
check("second line", "a <- 1\nx y z")
check("three lines", "f(1,\n\t2\n}\nx")
tell("check file", .remoter$check("a <- 1\nx y z", "mine.R"))
check("bracket", "a))")
check("escape", "'\\x'")
check("operator", "x %foo")
check("string that says so", "x INCOMPLETE_STRING")
Sys.setenv(LANGUAGE = "de")
check("open call in German", "f(")
check("words in German", "x y")
Sys.unsetenv("LANGUAGE")

frame <- data.frame(alpha = 1:3, alps = letters[1:3])
frame[["my column"]] <- 1:3
my.function <- function(first.argument, second = 2) first.argument
complete <- function(label, code, cursor = nchar(code)) tell(paste("complete", label), .remoter$complete(code, cursor))
complete("column", "frame$al")
complete("own", "my.fu")
complete("package", "utils::hea")
complete("argument", "my.function(fir")
complete("argument over lines", "my.function(\n  1, # it's (\n  ')', sec")
complete("in a body", "lapply(1:3, function(i) {\n  FU")
complete("path", "readLines('/etc/host")
complete("in the middle", "mea(x)", 3L)
complete("after an accent", "\u00e9 <- 1; frame$alph")
complete("nothing", "no.such.thing.anywhere")
complete("odd column", "frame$my")
complete("odd", "dimn")
complete("operator", "1 %i")

read <- 0
makeActiveBinding("active", function() read <<- read + 1, globalenv())
delayedAssign("lazy", read <<- read + 1)
delayedAssign("lazy.number", 5)
delayedAssign("lazy.frame", data.frame(a = 1:3))
delayedAssign("lazy.code", quote(a + b))
invisible(list(lazy.frame, lazy.code))
text <- c("a\"b\\c\n\t\001", NA, "\u00e9\u4e16")
latin <- "\xe9"; Encoding(latin) <- "latin1"
broken <- "\xff\xfe"
language <- quote(a + b)
matrix3 <- matrix(1:6, 2)
level <- factor(c("b", "a"))
day <- as.Date("2026-01-31")
instance <- structure(list(x = 1), class = "mine")
length.mine <- print.mine <- str.mine <- format.mine <- function(x, ...) stop("a method was called")
nothing <- NULL
environment <- new.env()
makeActiveBinding("busy", function() repeat {}, environment)
missing <- quote(expr = )
.hidden <- 1
tell("variables", .remoter$variables())
ten <- as.numeric(1:10)
for (i in 1:10000) assign(paste0("many", i), i)
tell("many", .remoter$variables())
assign("longest_look", 0, envir = .remoter)
tell("late", .remoter$variables())
rm(list = ls(pattern = "^many"))

inspect <- function(label, code, cursor = nchar(code)) tell(paste("inspect", label), .remoter$inspect(code, cursor))
inspect("function", "stats::lm")
inspect("call", "mean(x, ")
inspect("column", "frame$alpha")
inspect("own function", "my.function")
inspect("nothing", "no.such.thing")
inspect("active", "active")
inspect("promise", "lazy$a")
inspect("in an environment", "environment$busy")
inspect("data", "mtcars$cyl")
complete("active", "active$a")
complete("promise", "lazy@a")
complete("part of an environment", "environment$busy$a")
complete("index", "frame[[active]]$al")
complete("argument of what is active", "active(fra")
complete("data", "mtcars$cy")
complete("argument again", "my.function(fir")
inspect("question", "?mean")
inspect("word", "?break")

tell("read", sprintf("%d", read))
tell("find own", .remoter$find("frame"))
tell("find data", .remoter$find("mtcars"))
tell("find function", .remoter$find("mean"))
tell("find nothing", .remoter$find("fram"))
path <- tempfile()
writeBin(as.raw(0), path)
tell("pack", .remoter$pack(path, "frame"))
bytes <- readBin(path, "raw", 1e5)
tell("pack size", sprintf("%d", length(bytes)))
tell("pack nothing", .remoter$pack(tempfile(), "fram"))
tell("pack unwritable", .remoter$pack("/no/such/place", "frame"))
writeBin(bytes[-1], path)
tell("bind refused", .remoter$bind(path, "frame", FALSE))
tell("bind", .remoter$bind(path, "an odd name", FALSE))
tell("bind over", .remoter$bind(path, "ten"))
tell("bound", if (identical(`an odd name`, frame)) "true" else "false")
eval(.remoter$keeping("t1", expression(1:3))[[1]])
other <- tempfile()
tell("pack kept", .remoter$pack(other, NULL, "t1"))
tell("pack dropped", .remoter$pack(other, NULL, "t1"))
tell("remove", .remoter$remove("an odd name"))
tell("remove again", .remoter$remove("an odd name"))
tell("pieces", .remoter$pieces("a; b # c\nf <- function(x) {\n  x\n}"))
"""


@pytest.fixture(scope="module")
def asked(r_program, tmp_path_factory):
    return run_r(r_program, QUESTIONS, tmp_path_factory.mktemp("r"))[1]


@pytest.mark.parametrize(
    ("label", "status"),
    [
        ("whole", "complete"),
        ("nothing", "complete"),
        ("open brace", "incomplete"),
        ("open call", "incomplete"),
        ("open operator", "incomplete"),
        ("open string", "incomplete"),
        ("open name", "incomplete"),
        ("open raw string", "incomplete"),
        ("open call in German", "incomplete"),
        ("words", "invalid"),
        ("second line", "invalid"),
        ("bracket", "invalid"),
        ("escape", "invalid"),
        ("operator", "invalid"),
        ("string that says so", "invalid"),
        ("words in German", "invalid"),
    ],
)
def test_code_is_whole_or_open_or_wrong(asked, label, status):
    assert asked[f"check {label}"]["status"] == status


def test_what_is_wrong_is_said_as_r_says_it(asked):
    assert asked["check words"]["message"] == 'Error: unexpected symbol in "x y"'
    assert asked["check second line"]["message"] == 'Error: unexpected symbol in "x y"'
    assert asked["check three lines"]["message"] == "Error: unexpected '}' in:\n\"        2\n}\""
    assert asked["check file"]["message"].startswith("Error: mine.R:2:3: unexpected symbol\n1: a <- 1")
    assert asked["check second line"]["line"] == 2


@pytest.mark.parametrize(
    ("label", "match", "kind", "start"),
    [
        ("column", "frame$alpha", "", 0),
        ("own", "my.function", "function", 0),
        ("package", "utils::head", "", 0),
        ("argument", "first.argument=", "param", 12),
        ("argument over lines", "second=", "param", 34),
        ("path", "/etc/hosts", "path", 11),
        ("in the middle", "mean", "function", 0),
        ("after an accent", "frame$alpha", "", 8),
    ],
)
def test_completion_finds_what_r_finds(asked, label, match, kind, start):
    found = asked[f"complete {label}"]
    assert match in found["matches"]
    assert found["types"][found["matches"].index(match)] == kind
    assert found["start"] == start


def test_arguments_of_a_call_around_a_body_are_not_offered_in_it(asked):
    assert asked["complete in a body"]["matches"] == []
    assert asked["complete nothing"]["matches"] == []


def test_odd_names_are_completed_between_backticks(asked):
    assert asked["complete odd column"]["matches"] == ["frame$`my column`"]
    assert asked["complete odd"]["matches"] == ["dimnames", "dimnames.data.frame"]
    assert not any("` " in match or match == "`in `" for match in asked["complete operator"]["matches"])


def test_variables_are_told_without_computing_or_calling_anything(asked):
    rows = {row["name"]: row for row in asked["variables"]["variables"]}
    assert ".hidden" not in rows
    assert rows["active"] == {
        "name": "active",
        "type": "active binding",
        "shape": None,
        "size": None,
        "text": "computed when it is read",
    }
    assert rows["lazy"]["type"] == "promise"
    assert rows["lazy.number"]["text"] == "5"
    assert (rows["lazy.frame"]["type"], rows["lazy.frame"]["shape"]) == ("data.frame", [3, 1])
    assert (rows["lazy.code"]["type"], rows["lazy.code"]["text"]) == ("call", "a + b")
    assert (rows["frame"]["type"], rows["frame"]["shape"]) == ("data.frame", [3, 3])
    assert rows["frame"]["text"] == "alpha, alps, my column"
    assert (rows["matrix3"]["type"], rows["matrix3"]["shape"]) == ("matrix", [2, 3])
    assert rows["level"]["text"] == '2 levels: "a" "b"'
    assert rows["day"]["text"] == "2026-01-31"
    assert (rows["instance"]["type"], rows["instance"]["text"]) == ("mine", "x")
    assert rows["language"]["text"] == "a + b"
    assert rows["my.function"] == {
        "name": "my.function",
        "type": "function",
        "shape": None,
        "size": None,
        "text": "function(first.argument, second)",
    }
    assert rows["text"]["text"].startswith('"a\\"b\\\\c\\n\\t\\001" NA "é世"')
    assert rows["latin"]["text"] == '"é"'
    assert rows["nothing"]["shape"] == [0]
    assert all(len(row["text"]) <= 80 for row in rows.values())


def test_very_many_variables_are_told_in_part_and_the_rest_is_counted(asked):
    for label, least, most in (("many", 250, 5000), ("late", 250, 250)):
        names = [row["name"] for row in asked[label]["variables"]]
        assert least <= len(names) <= most
        assert names == sorted(names)
        assert len(names) + asked[label]["more"] > 10_000
    assert asked["variables"]["more"] == 0


def test_inspecting_tells_what_a_person_asks_for(asked):
    assert asked["inspect function"]["text"].startswith("stats::lm(formula, data, subset")
    assert "Fitting Linear Models" in asked["inspect function"]["text"]
    assert "Arithmetic Mean" in asked["inspect call"]["text"]
    assert "Arithmetic Mean" in asked["inspect question"]["text"]
    assert "Control Flow" in asked["inspect word"]["text"]
    assert asked["inspect column"]["text"] == "Class: integer\n int [1:3] 1 2 3"
    assert asked["inspect own function"]["text"] == "my.function(first.argument, second = 2)"
    assert asked["inspect nothing"] == {"found": False, "text": ""}


def test_nothing_of_the_users_is_computed_to_complete_or_to_inspect(asked):
    assert asked["inspect active"]["text"] == "Class: active binding, computed when it is read"
    assert asked["inspect promise"]["text"] == "Class: promise, computed when it is first read"
    assert asked["inspect in an environment"]["text"] == asked["inspect active"]["text"]
    assert "num [1:32]" in asked["inspect data"]["text"]
    for label in ("active", "promise", "part of an environment", "index"):
        assert asked[f"complete {label}"]["matches"] == []
    assert asked["complete argument of what is active"]["matches"] == ["frame"]
    assert asked["complete data"]["matches"] == ["mtcars$cyl"]
    assert asked["complete argument again"]["matches"] == ["first.argument="]
    assert asked["read"] == 0


def test_objects_are_found_packed_and_bound(asked):
    assert asked["find own"] == {"found": True, "text": "data.frame 3 x 3"}
    assert asked["find data"]["found"] is True
    assert asked["find function"]["found"] is False
    assert asked["pack"]["text"] == "data.frame 3 x 3"
    assert asked["pack size"] == asked["pack"]["size"] + 1  # what stood in the file is still there
    assert asked["pack nothing"] == {"missing": True, "near": ["frame"]}
    assert "error" in asked["pack unwritable"]
    assert asked["bind refused"] == {"exists": "data.frame 3 x 3"}
    assert asked["bind"] == {"name": "an odd name", "text": "data.frame 3 x 3", "replaced": None}
    assert asked["bind over"]["replaced"] == "numeric 10"
    assert asked["bound"] is True
    assert asked["pack kept"]["type"] == "integer"
    assert asked["pack dropped"] == {"missing": True, "near": []}
    assert asked["remove"] == {"removed": True}
    assert asked["remove again"]["missing"] is True


def test_the_expressions_of_a_script_are_told_apart(asked):
    assert [(piece["text"], piece["line"]) for piece in asked["pieces"]["pieces"]] == [
        ("a", 1),
        ("b", 1),
        ("f <- function(x) {\n  x\n}", 2),
    ]


UNTOUCHED = r"""
set.seed(1)
before <- list(seed = .Random.seed, search = search(), names = ls(all.names = TRUE))
warning("mine")
invisible(42)
kept <- list(last = .Last.value)
.remoter$complete("read.", 5L); .remoter$inspect("lm", 2L); .remoter$check("f("); .remoter$variables()
options(warn = 2, OutDec = ",", scipen = -9)
x <- c(1.5, 2)
tell("in odd options", .remoter$variables())
options(warn = 0, OutDec = ".", scipen = 0)
same <- identical(before$seed, .Random.seed) && identical(before$search, search())
try(stop("the user's own"), silent = TRUE)
tell("last error", { .remoter$check("x y"); .remoter$inspect("no::thing", 2L); .remoter$quoted(geterrmessage()) })
tell("same", if (same && !any(grepl("remoter", ls(all.names = TRUE)))) "true" else "false")
y <- numeric(1e5)
invisible(tracemem(y))
path <- tempfile()
for (answer in list(.remoter$variables(), .remoter$pack(path, "y"), .remoter$find("y"), .remoter$inspect("y", 1L))) NULL
y[1] <- 1
untracemem(y)
invisible(.remoter$bind(path, "z"))
invisible(tracemem(z))
z[1] <- 1
tell("bound", sprintf("%g", sum(z)))
rm(list = ls(all.names = TRUE))
cat("\n@@survives\t", .remoter$check("1"), "\n", sep = "")
"""


def test_answers_leave_everything_as_it_was(r_program, tmp_path):
    ended, answers = run_r(r_program, UNTOUCHED, tmp_path)
    assert answers["same"] is True
    assert answers["last error"] == "Error in try(stop(\"the user's own\"), silent = TRUE) : the user's own\n"
    assert answers["survives"] == {"status": "complete"}
    assert answers["bound"] == 1
    assert "tracemem[" not in ended.stdout  # no value was copied when it was changed
    rows = {row["name"]: row for row in answers["in odd options"]["variables"]}
    assert (rows["x"]["text"], rows["x"]["size"]) == ("1.5 2", 64)


PLOTS = r"""
shown <- function(label) tell(label, .remoter$plots())
set.seed(1); seed <- .Random.seed
shown("none")
plot(1:3); lines(3:1)
shown("first")
shown("unchanged")
abline(h = 2)
shown("update")
for (i in 1:3) plot(i)
invisible(dev.off())
shown("loop and off")
par(mfrow = c(2, 1))
shown("only parameters")
plot(1); plot(2)
shown("two on a page")
grid::grid.newpage(); grid::grid.rect()
shown("grid")
if (requireNamespace("lattice", quietly = TRUE)) for (i in 1:2) print(lattice::xyplot(i ~ 1))
shown("lattice")
invisible(dev.off())
png("mine.png"); plot(5); invisible(dev.off())
pdf("mine.pdf"); plot(5); invisible(dev.off())
shown("the user's own files")
dev.new(width = 3, height = 2); plot(1, main = "\u00e9", mar = 0)
shown("small")
plot(2)
assign("render", function(...) stop("no paint"), envir = .remoter)
shown("failing")
tell("seed", if (identical(seed, .Random.seed)) "true" else "false")
tell("devices", sprintf("%d", length(dev.list())))
"""


@pytest.fixture(scope="module")
def drawn(r_program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots")
    kept = folder / "tmp"
    kept.mkdir()
    code = PLOTS.replace(
        "tell(label, .remoter$plots())", "{ t <- .remoter$plots(); tell(label, t); keep(t) }"
    )
    code = (
        'keep <- function(t) for (p in regmatches(t, gregexpr("[^\\"]*/plot-[0-9a-f]+", t))[[1]]) '
        f'file.rename(p, file.path("{kept}", basename(p)))\n' + code
    )
    ended, answers = run_r(r_program, code, folder)
    for answer in answers.values():
        for plot in answer["plots"] if isinstance(answer, dict) else ():
            if "path" in plot:
                plot["data"] = (kept / Path(plot["path"]).name).read_bytes()
    return folder, answers, ended


def numbers(answer):
    """The numbers of the plots, negative for an update."""
    return [
        int(plot["id"].rpartition("-")[2]) * (-1 if plot["update"] else 1)
        for plot in (answer or {"plots": []})["plots"]
    ]


def test_a_plot_comes_once_and_again_when_it_has_changed(drawn):
    _, answers, _ = drawn
    assert answers["none"] is None
    assert answers["unchanged"] is None
    (first,) = numbers(answers["first"])
    assert numbers(answers["update"]) == [-first]


def test_all_plots_of_a_loop_come_in_order_also_when_the_device_is_closed(drawn):
    _, answers, _ = drawn
    found = numbers(answers["loop and off"])
    assert found == sorted(found)
    assert len(found) == 3


def test_a_page_comes_when_something_is_on_it(drawn):
    _, answers, _ = drawn
    assert answers["only parameters"] is None
    assert len(numbers(answers["two on a page"])) == 1
    assert len(numbers(answers["grid"])) == 1
    assert len(numbers(answers["lattice"])) in (0, 2)


def test_the_users_own_files_are_his_and_no_others_are_written(drawn):
    folder, answers, _ = drawn
    assert answers["the user's own files"] is None
    assert sorted(path.name for path in folder.iterdir()) == ["mine.pdf", "mine.png", "script.R", "tmp"]


def test_a_plot_is_a_picture_of_the_devices_size(drawn):
    _, answers, _ = drawn
    (plot,) = answers["small"]["plots"]
    assert (plot["width"], plot["height"], plot["mime"]) == (3, 2, "image/png")
    assert plot["data"].startswith(b"\x89PNG")
    assert int.from_bytes(plot["data"][16:20], "big") == 300


def test_a_plot_that_cannot_be_drawn_is_said(drawn):
    _, answers, _ = drawn
    (plot,) = answers["failing"]["plots"]
    assert plot["failed"] == "the plot could not be drawn: no paint"
    assert answers["seed"] is True
    assert answers["devices"] == 1


INSTEAD = r"""
?sum
browseURL("http://example.org")
page(1:3, method = "print")
tell("editor", .remoter$quoted(try(edit(1), silent = TRUE)))
tell("exit before", if (is.null(.remoter$exit)) "true" else "false")
withRestarts(q("no", status = 3, runLast = FALSE), abort = function() NULL)
tell("exit", sprintf("%d", .remoter$exit))
withRestarts(base::quit(), abort = function() NULL)
tell("plain exit", sprintf("%d", .remoter$exit))
tell("line", .remoter$quoted(readline("? ")))
tell("scan", sprintf("%d", length(scan(text = "1 2 3", quiet = TRUE))))
tell("menu", .remoter$quoted(try(menu("a"), silent = TRUE)))
tell("history", .remoter$quoted(try(history(), silent = TRUE)))
f <- tempfile()
writeLines("a", f)
file.show(f, title = "A title", header = "head")
tell("quit's arguments", .remoter$quoted(names(formals(quit))[2]))
tell("quit's text", .remoter$quoted(paste(capture.output(q), collapse = "\n")))
View(data.frame(number = 1:50))
View(letters[1:3], "a title")
.Internal(quit("no", 0L, FALSE))
"""


def test_what_needs_a_terminal_or_a_screen_has_a_stand_in(r_program, tmp_path):
    ended, answers = run_r(r_program, INSTEAD, tmp_path)
    assert "Sum of Vector Elements" in ended.stdout
    assert "\b" not in ended.stdout
    assert "http://example.org\n" in ended.stdout
    assert "[1] 1 2 3" in ended.stdout
    assert "there is no editor here" in answers["editor"]
    assert (answers["exit before"], answers["exit"], answers["plain exit"]) == (True, 3, 0)
    assert answers["line"] == ""
    assert answers["scan"] == 3
    assert "non-interactively" in answers["menu"]
    assert "no history is kept here" in answers["history"]
    assert "\nhead\n\na\n\n" in ended.stdout
    assert "A title" not in ended.stdout
    assert answers["quit's arguments"] == "status"
    signature, _, body = answers["quit's text"].partition(") ")
    assert signature == 'function (save = "default", status = 0, runLast = TRUE'
    assert body.startswith("\nend_command(save, status, runLast)\n<environment: ")
    assert "\n20     20\n(20 of 50 rows)\n" in ended.stdout
    assert '[1] "a" "b" "c"\n' in ended.stdout
