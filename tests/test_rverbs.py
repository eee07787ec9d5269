"""R code as the prompt reads it: tokens, statements, the prompt's own calls. R's own parser is the judge."""

import os
import re
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from remoter._errors import RemoterError
from remoter._rtokens import read, split, tokens
from remoter._rverbs import (
    HELP,
    cargo,
    ends_session,
    evaluation,
    hint_about,
    judge,
    listing,
    matches,
    paths,
    pieces,
    quoted,
    removal,
    shadows,
    value_of,
)

NASTY = [
    "x <- 1; y <- 2",
    "x <- '; q()' # ; q()\nq()",
    'r"(a "b" \n)"; s',
    'R"---[a]--" b]---"',
    "r'{x}' ; r",
    "`a b` <- 1; `a\\`b`",
    "f <- function(x) {\n  q()\n  s2c(x)\n}\ng",
    "f <- function(x)\n\n  x\ny",
    "function\n(x)\n\nx\ny",
    "\\(x) x + 1; \\ (y) y",
    "if (a) b else c; d",
    "{ if (a) b\n\n # c\n else d }",
    "if (a) {\n  b\n} else {\n  c\n}",
    "f(if (a) b\n else c)",
    "x <- if (a) if (b) c else d else e",
    "repeat {break}; while (TRUE) next",
    "for (i in 1:3) print(i); i",
    "for (i\nin\nx)\n{\n}\n\n",
    "x |>\n  f() |>\n  g()\ny",
    "a %in%\n b; a %% b; a %;% b",
    "x[[1]][2]; x[[1] ]; x[ ,1]; x[[]]; x[y[[1]]]",
    "f(,); f(a=); f(a=,b); f('NULL' = 1, NULL = 2)",
    "-1 -> x; x <<- 5; 5 ->> y; a := b",
    "y ~ x; ~x; ?help; ??help; a ? b; !x",
    "base::ls(); base:::ls; x$y@z$'a'; 'a'::b",
    "1e5L; 0x1.8p3; 1i; .5; 1.; 0xFFL; 1e-3; 1E+3; 100000000000L",
    "...; ..1; ...elt(1); .a; a.b; ._x; .x_1",
    "été <- 1; été; 名前 <- 2",
    "x\f+y; x\t+y; x\u3000+1",
    "(x\n+y); x\n+y",
    "'a\nb'; c",
    "x = y = 2; T<-F; x<-1; x< -1; x->y",
    "function(x) -x^2; function(x) x\n(2)",
    "(function(x) x)(2); f(x)(y)[[1]][2]",
    "{}; {a};b; {;}; {a\n\nb; c\n}",
    "a\n\n\n;b",
    "#only a comment",
    "",
    "\n\n",
    "x # comment ; lsc()\ny # another",
    'x <- "\\"; q()"; y',
    "x <- '\\\\'; y",
    # what is not whole
    "f(",
    "f(a, b",
    "x[[1]",
    "{ a",
    "x +",
    "x <-",
    "x |>",
    "x %in%",
    "function(x)",
    "function(x) {",
    "if (x)",
    "if (x) y else",
    "for (i in x)",
    "while (x)",
    "repeat",
    "'abc",
    '"abc\\"',
    'r"(abc)',
    'r"-(abc)"',
    "`abc",
    "x <- 1; y +",
    "-",
    "!",
    "~",
    "x$",
    "if",
    "function",
    "(",
    "x[",
    "{ if (a) b",
    "# c\nf(",
    # what is no R
    "x y",
    "x <- )",
    "f(a b)",
    "if (a) b\nelse c",
    "else",
    "1x",
    "x$(a)",
    "()",
    "(a, b)",
    "{a, b}",
    "f(;)",
    ";",
    "x;;y",
    "a % b",
    "_x",
    "x\x01",
    "x <- r'abc'",
    "a[b](c){d}",
    "5 5",
    "x @",
    "a b\n'",
    "in",
    "%in%",
    "@x",
    "for i in x",
    "x\ny z",
    "x\u00a0+ 1",
    "f(a))",
    "{a]",
    "0x",
    "1..2",
    "base::\nls",
    "if (a) {b}; else c",
]

STRINGS = [
    r'"plain"',
    r"'single \' \" quotes'",
    r'"a\tb\nc\\d\"e\`f\"\a\b\f\v\r"',
    r'"\x41\x4\101\60"',
    r'"\u00e9\u{e9}\U1F600\U{1F600}"',
    "'über\nlines'",
    'r"(C:\\new\\)"',
    "R'--[a]-b]--'",
    'r"---{}---"',
    '"a\\\nb"',
    "''",
]

JUDGE = r"""
input <- file("{input}", "rb"); output <- file("{output}", "w")
judged <- function(code) tryCatch({{
    parsed <- parse(text = code, keep.source = TRUE)
    places <- vapply(attr(parsed, "srcref"), function(each) paste(as.integer(each)[1:4], collapse = " "), "")
    paste(c("complete", places), collapse = ";")
}}, error = function(error) {{
    message <- conditionMessage(error)
    lines <- length(strsplit(code, "\n", fixed = TRUE)[[1]]) + 1L
    at_end <- startsWith(message, sprintf("<text>:%d:0: unexpected end of input", lines))
    if (at_end || grepl("INCOMPLETE_STRING", message, fixed = TRUE)) "incomplete" else "invalid"
}})
while (length(size <- readBin(input, "integer", 1L))) {{
    code <- rawToChar(readBin(input, "raw", size)); Encoding(code) <- "UTF-8"
    writeLines(judged(code), output)
}}
functions <- 0L
for (package in c("base", "stats", "utils")) for (name in ls(asNamespace(package), all.names = TRUE)) {{
    if (functions >= 600L || !is.function(value <- get(name, asNamespace(package))) || is.primitive(value)) next
    functions <- functions + 1L
    code <- paste(deparse(value), collapse = "\n")
    writeLines(c("code", encodeString(code), judged(code)), output)
}}
for (path in list.files(Sys.glob(file.path(R.home("library"), "*", "demo")), "[.]R$", full.names = TRUE)) {{
    code <- paste(readLines(path, warn = FALSE, encoding = "UTF-8"), collapse = "\n")
    if (validUTF8(code) && nchar(code) < 20000L) writeLines(c("code", encodeString(code), judged(code)), output)
}}
for (code in c({strings})) {{
    value <- eval(parse(text = code))
    writeLines(c("string", encodeString(code), paste(utf8ToInt(enc2utf8(value)), collapse = " ")), output)
}}
close(output)
"""


@pytest.fixture(scope="module")
def judged(r_program, tmp_path_factory):
    """What R says of all of it: pairs of code and judgement, and pairs of a string and its characters."""
    folder = tmp_path_factory.mktemp("judge")
    with (folder / "input").open("wb") as file:
        for code in NASTY:
            file.write(struct.pack("<i", len(code.encode())) + code.encode())
    script = JUDGE.format(
        input=folder / "input", output=folder / "output", strings=", ".join(map(quoted, STRINGS))
    )
    (folder / "judge.R").write_text(script)
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [r_program, "--vanilla", "--no-echo", "-f", str(folder / "judge.R")], env=environment, check=True
    )
    lines = (folder / "output").read_text().split("\n")[:-1]
    codes = list(zip(NASTY, lines, strict=False))
    rest = iter(lines[len(NASTY) :])
    strings = []
    for kind in rest:
        text = shown(next(rest))
        (codes if kind == "code" else strings).append((text, next(rest)))
    return codes, strings


def shown(text):
    """What `encodeString` was given."""
    code = f'"{text.replace(chr(34), chr(92) + chr(34))}"'
    [token] = tokens(code)
    return value_of(token)


def places(code):
    """Line and byte of the first and the last character of each statement."""
    found = []
    for statement in read(code).statements:
        for position in (statement[0].start, statement[-1].end - 1):
            before = code[: position + 1] if position != statement[0].start else code[:position] + "x"
            found.append(f"{before.count(chr(10)) + 1} {len(before.rpartition(chr(10))[2].encode())}")
    return [f"{first} {last}" for first, last in zip(found[::2], found[1::2], strict=True)]


def test_statements_end_where_rs_own_parser_says(judged):
    codes, _ = judged
    assert len(codes) > len(NASTY) + 300
    wrong = []
    for code, verdict in codes:
        reading = read(code)
        ours = ";".join([reading.status, *(places(code) if reading.status == "complete" else [])])
        if ours != verdict:
            wrong.append((code, verdict, ours))
    assert not wrong


def test_a_string_says_what_r_reads_in_it(judged):
    _, strings = judged
    assert len(strings) == len(STRINGS)
    for code, characters in strings:
        [token] = tokens(code)
        assert " ".join(str(ord(letter)) for letter in value_of(token)) == characters, code


PIECES = ["q()", "s2c(x)", "x", "f(", ")", "{", "}", "[[", "]", "'", '"', "`", "r\"(", ")\"", "\\", "#", "\n",
          ";", ",", " ", "if (a) ", "else ", "function(x) ", "<-", "%in%", "%", "1e5", "0x", ".", "..", "é", "_"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(some.one_of(some.text(), some.lists(some.sampled_from(PIECES)).map("".join)))
def test_any_text_is_read_and_nothing_of_it_is_lost(code):
    found = list(tokens(code))
    assert "".join(token.text for token in found) == code
    assert [token.start for token in found] == [
        sum(len(t.text) for t in found[:i]) for i in range(len(found))
    ]
    reading = read(code)
    assert reading.status in ("complete", "incomplete", "invalid")
    assert "".join(split(code)) == code
    assert judge(code)[0] == reading.status
    parts = pieces(code)
    assert parts
    assert all(
        part.code in code.replace("\r\n", "\n").replace("\r", "\n") or part.code == code for part in parts
    )


def test_long_code_is_read_in_time_that_grows_with_it():
    code = "f(" * 20_000 + ")" * 20_000 + "\n" + "x <- '" + "y" * 100_000 + "'\n" + "1 + " * 20_000 + "1"
    assert read(code).status == "complete"
    assert read("(" * 50_000).status == "incomplete"


# --- the prompt's calls -------------------------------------------------------------------------


def stretches(code):
    """Where each stretch of the code would run."""
    return [(piece.verb or "there", piece.code) for piece in pieces(code)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("lsc()", [("lsc", "lsc()")]),
        ("is.secure()", [("is_secure", "is.secure()")]),
        ("is_secure()", [("is_secure", "is_secure()")]),
        ('q("no")', [("quit", 'q("no")')]),
        ("quit ( )", [("quit", "quit ( )")]),
        ("exit", [("exit", "exit")]),
        ("q", [("there", "q")]),
        ("quit", [("there", "quit")]),
        ("exit.code <- 3", [("there", "exit.code <- 3")]),
        ("x <- s2c(y)", [("there", "x <- s2c(y)")]),
        ("s2c(x) -> y", [("there", "s2c(x) -> y")]),
        ("s2c(x)$a", [("there", "s2c(x)$a")]),
        ("q()()", [("there", "q()()")]),
        ("(q())", [("there", "(q())")]),
        ("print(lsc())", [("there", "print(lsc())")]),
        ("pkg::q()", [("there", "pkg::q()")]),
        ("x$q()", [("there", "x$q()")]),
        ("if (done) q()", [("there", "if (done) q()")]),
        ("f <- function() q()", [("there", "f <- function() q()")]),
        ("f <- function() {\nq()\n}", [("there", "f <- function() {\nq()\n}")]),
        ("{\n  s2c(x)\n}", [("there", "{\n  s2c(x)\n}")]),
        ("s <- '\nq()\n'", [("there", "s <- '\nq()\n'")]),
        ('s <- r"(\nq()\n)"', [("there", 's <- r"(\nq()\n)"')]),
        ("# q()\nx", [("there", "# q()\nx")]),
        ("x y; q()", [("there", "x y; q()")]),
        ("q() q()", [("there", "q() q()")]),
        ("q(", [("there", "q(")]),
        ("x <- 1; lsc(); x", [("there", "x <- 1"), ("lsc", "lsc()"), ("there", "x")]),
        ("é <- 1; lsc() ; é;", [("there", "é <- 1"), ("lsc", "lsc()"), ("there", "é")]),
        (
            "a <- 1 # one\nb <- 2\n# more\n  s2c(a,\n    'b') # there\nc",
            [("there", "a <- 1 # one\nb <- 2"), ("s2c", "s2c(a,\n    'b')"), ("there", "c")],
        ),
        ("a\r\nlsc()\r\nb", [("there", "a"), ("lsc", "lsc()"), ("there", "b")]),
        ("s2c(x)\ns2c(y)", [("s2c", "s2c(x)"), ("s2c", "s2c(y)")]),
        ("", [("there", "")]),
    ],
)
def test_only_statements_of_their_own_are_calls_of_the_prompt(code, expected):
    assert stretches(code) == expected


def meant(ask, code):
    """What a typed call means."""
    [piece] = pieces(code)
    return ask(piece)


@pytest.mark.parametrize(
    ("code", "text", "name", "is_name", "overwrite"),
    [
        ("s2c(x)", "x", "x", True, True),
        ("s2c(my.df)", "my.df", "my.df", True, True),
        ("s2c(`my df`)", "my df", "my df", True, True),
        ('s2c("x")', "x", "x", True, True),
        ('s2c("my df", "d")', "my df", "d", True, True),
        ('s2c(x, "y")', "x", "y", True, True),
        ("s2c(x, newname = 'y', overwrite = FALSE)", "x", "y", True, False),
        ("s2c(newname = 'y', x)", "x", "y", True, True),
        ("s2c(x, new = 'y', over = F)", "x", "y", True, False),
        ('s2c(object = x, r"(y z)")', "x", "y z", True, True),
        ('s2c(head(df), "top")', "head(df)", "top", False, True),
        ('s2c("head(df, 2)", "top")', "head(df, 2)", "top", False, True),
        ('c2s(a + b, "total")', "a + b", "total", False, True),
        ('c2s("text", "greeting")', '"text"', "greeting", False, True),
        ('c2s(a # first\n  + b, "total")', "a  + b", "total", False, True),
        ('c2s({\n a # x\n b\n}, "y")', "{\n a # x\n b\n}", "y", False, True),
        ('c2s(x[[1]][a, b], newname = "y")', "x[[1]][a, b]", "y", False, True),
    ],
)
def test_an_object_is_a_name_or_an_expression_with_a_name(code, text, name, is_name, overwrite):
    found = meant(cargo, code)
    assert re.sub(" +", " ", found.text) == re.sub(" +", " ", text)
    assert (found.name, found.is_name, found.overwrite) == (name, is_name, overwrite)


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("s2c()", "takes an object", "`s2c(x)`"),
        ("s2c(head(df))", "`head(df)` is no name, and what it gives needs one", '`s2c(head(df), "NAME")`'),
        ("c2s('x')", "`'x'` is no name", "NAME"),
        ("s2c(x, y)", "`newname` of `s2c` is a text between quotes, not `y`", 's2c(x, "y")'),
        ("s2c(x, 'y', 'z')", "takes 2 arguments, not 3", "`overwrite=`"),
        ("s2c(x, name = 'y')", "has no argument `name`", "`newname`"),
        ("s2c(x, newname = 'y', new = 'z')", "is given `newname` twice", ""),
        ("s2c(x, overwrite = 1)", "`overwrite` of `s2c` is TRUE or FALSE", ""),
        ("s2c(x, )", "an argument of `s2c` is empty", ""),
        (r"s2c(x, '\d')", r"`\d` means nothing in a string", ""),
        ("s2c('1 +')", "no name and no expression", ""),
    ],
)
def test_an_object_that_cannot_be_meant_is_an_error_that_says_how(code, message, hint):
    with pytest.raises(RemoterError, match=re.escape(message)) as caught:
        meant(cargo, code)
    assert hint in " ".join(caught.value.hints)
    assert caught.value.id == "arguments"


@pytest.mark.parametrize(
    ("ask", "code", "expected"),
    [
        (paths, 'sendfile("a", "b")', ("a", "b", {})),
        (paths, 'sendfile(r"(C:\\a)")', ("C:\\a", None, {})),
        (paths, "recvfile('a', to = 'b', overwrite = TRUE)", ("a", "b", {"overwrite": True})),
        (paths, "sendfile(to='b', 'a', symlinks='keep')", ("a", "b", {"symlinks": "keep"})),
        (listing, "lsc()", (None, False)),
        (listing, 'lsc("^d")', ("^d", False)),
        (listing, 'lsc(all.names = TRUE, pattern = "^d")', ("^d", True)),
        (listing, "lsc(all = T)", (None, True)),
        (removal, "rmc(x, y)", ["x", "y"]),
        (removal, 'rmc(`a b`, "z")', ["a b", "z"]),
        (removal, 'rmc(list = c("a", "b"))', ["a", "b"]),
        (removal, 'rmc(x, list = "a")', ["a", "x"]),
        (removal, "rmc()", []),
        (evaluation, "evalc(mean(x))", "mean(x)"),
        (evaluation, "evalc(x <- 1)", "x <- 1"),
        (evaluation, "evalc(x = 1)", "`x` <- 1"),
        (evaluation, "evalc('x <- 1; y')", "x <- 1; y"),
        (evaluation, "evalc({x\ny})", "{x\ny}"),
        (evaluation, "evalc(\n  x # no\n  + 1\n)", "x    + 1"),
        (ends_session, "exit()", False),
        (ends_session, "exit", False),
        (ends_session, "exit(client.only = FALSE)", True),
        (ends_session, "exit(client_only = FALSE)", True),
        (ends_session, "exit(F)", True),
        (ends_session, "exit(FALSE, TRUE)", True),
        (ends_session, "exit(q.server = FALSE)", False),
        (ends_session, "q('no', 3, FALSE)", False),
        (ends_session, "quit(save = x)", False),
        (ends_session, "shutdown()", True),
    ],
)
def test_a_call_asks_for_what_it_says(ask, code, expected):
    assert meant(ask, code) == expected


@pytest.mark.parametrize(
    ("ask", "code", "message"),
    [
        (paths, "sendfile()", "takes the path of a file or folder"),
        (paths, "sendfile(x, 'b')", "`path` of `sendfile` is a text between quotes, not `x`"),
        (paths, "recvfile('a', 'b', 'c')", "takes 2 arguments"),
        (paths, "recvfile('a', speed = 1)", "has no argument `speed`"),
        (listing, "lsc(pattern = x)", "is a text between quotes"),
        (removal, "rmc(x + 1)", "`rmc` takes names, not `x + 1`"),
        (removal, "rmc(list = names)", "is names between quotes"),
        (removal, "rmc(pattern = 'a')", "`rmc` has no argument `pattern`"),
        (evaluation, "evalc()", "takes an expression"),
        (evaluation, "evalc(x, y)", "takes one expression, not 2"),
        (ends_session, "exit(maybe)", "is TRUE or FALSE"),
        (ends_session, "exit(now = TRUE)", "has no argument `now`"),
        (ends_session, "shutdown(now)", "takes 0 arguments, not 1"),
    ],
)
def test_a_call_that_cannot_be_meant_is_an_error(ask, code, message):
    with pytest.raises(RemoterError, match=re.escape(message)):
        meant(ask, code)


def test_names_are_matched_by_regular_expressions():
    assert matches("^d", "df")
    assert not matches("^d", "my.df")
    with pytest.raises(RemoterError, match="no pattern"):
        matches("(", "x")


@pytest.mark.parametrize(
    ("code", "variable", "expected"),
    [
        ("q()", {"type": "function"}, True),
        ("q()", {"type": "numeric"}, False),
        ("exit", {"type": "numeric"}, True),
    ],
)
def test_where_r_looks_for_a_function_only_a_function_shadows_a_call(code, variable, expected):
    [piece] = pieces(code)
    assert shadows(piece, variable) is expected


def test_a_call_that_is_not_needed_here_gets_a_hint():
    assert "`?plot`" in hint_about({"name": "Error", "value": 'could not find function "rhelp"'})
    assert "is shown" in hint_about({"name": "Error", "value": 'could not find function "rpng.off"'})


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ('could not find function "s2c"', "s2c"),
        ("konnte Funktion “is.secure” nicht finden", "is.secure"),
        ("impossible de trouver la fonction « lsc »", "lsc"),
        ('could not find function "mean2"', None),
        ("object 'q' not found", None),
        ("", None),
        (None, None),
    ],
)
def test_a_call_that_the_session_did_not_know_gets_a_hint(value, word):
    hint = hint_about({"name": "Error", "value": value})
    assert (hint is None) if word is None else (f"`{word}()` is a call of this prompt" in hint)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 + 1", ("complete", "")),
        ("x <- ", ("incomplete", "  ")),
        ("f <- function(x) {", ("incomplete", "  ")),
        ("f <- function(x) {\n  y <- 1", ("incomplete", "  ")),
        ("f <- function(x) {\n  if (y)", ("incomplete", "    ")),
        ("f <- function(x) {\n  if (y) {\n    z\n  }", ("incomplete", "  ")),
        ("f <- function(x)", ("incomplete", "  ")),
        ("x |>", ("incomplete", "  ")),
        ("x |>\n  f() |>", ("incomplete", "  ")),
        ("{\n  x |>\n    f()", ("incomplete", "  ")),
        ("f(a,", ("incomplete", "  ")),
        ("f(a,\n      b,", ("incomplete", "      ")),
        ("lapply(x, function(y) {", ("incomplete", "  ")),
        ("f <- function(x,\n              y) {", ("incomplete", "  ")),
        ("{\n  if (a &&\n      b) {", ("incomplete", "    ")),
        ("{\n  if (a) {\n    1\n  } else if (b ||\n             c) {", ("incomplete", "    ")),
        ("x |>\n  f(function(y,\n             z) {", ("incomplete", "    ")),
        ("f <- function(x,\n              y)\n{", ("incomplete", "  ")),
        ("f(x,\n  {", ("incomplete", "    ")),
        ("x <- 'abc", ("incomplete", "")),
        ("f(x))", ("invalid", "")),
        ("f <- function(x) {\n  x\n}", ("complete", "")),
    ],
)
def test_completeness_and_the_next_indent_are_judged_here(code, expected):
    assert judge(code) == expected


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a\nb\nc", 3),
        ("f <- function(x) {\n  x\n}\nf(1)\n", 2),
        ("x <-\n  1\ny", 2),
        ("a b\nc\n", 2),
        ("x <- '\n\n'\n\ny\n", 3),
        ("", 0),
    ],
)
def test_what_was_typed_ahead_is_cut_into_what_a_prompt_would_have_run(text, count):
    assert len(split(text)) == count
    assert "".join(split(text)) == text


def test_the_help_fits_one_screen():
    lines = [f"here| {line}" for line in HELP.format(host="a-machine-of-a-cluster-17").splitlines()]
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80
