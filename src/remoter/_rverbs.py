"""The prompt's own calls in R: recognising them, and what they ask for; on the client's machine, in the prompt's process.

What a `Language` has to have is in `_language`; R on this side is in `_rside`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import _rtokens
from ._errors import RemoterError
from ._language import CARRYING, FILE_OPTIONS, LEAVING, Cargo, Piece, bind, stands_alone
from ._paper import label
from ._rtokens import Token, read

VERBS = (
    *CARRYING,
    "lsc",
    "rmc",
    "evalc",
    "is.secure",
    "is_secure",
    "showlog",
    "helpc",
    "shutdown",
    *LEAVING,
    "q",
)
"""The calls that the prompt does itself."""

NAME = "R"
INDENT = _rtokens.INDENT
CLOSERS = ")]}"
SHORTCUTS: dict[tuple[str, ...], str] = {("escape", "-"): " <- "}
ENDS_BLOCKS = False
WORD = r"[\w.]*"
FORGET = "rm({})"
TRUTH = ("[1] FALSE", "[1] TRUE")

HELP = """\
typed lines run on {host}; these calls are done here:
  s2c(x)  s2c(x, "y")  s2c(head(df), "top")    bring an object here
  c2s(x)  c2s(x, "y")  c2s(a + b, "total")     send an object there
  recvfile("there.csv", "here.csv")            bring a file or folder here
  sendfile("here.csv", "there.csv")            send a file or folder there
  lsc()  rmc(x, y)  rmc(list = c("x", "y"))    list, remove objects here
  evalc(mean(x))  evalc("statements")          evaluate here
  is.secure()                                  is the link encrypted
  showlog()                                    what the session put out
  exit()  q()  Ctrl-D                          leave; the session goes on
  shutdown()  exit(client.only = FALSE)        end the session
overwrite = TRUE replaces files; overwrite = FALSE keeps objects
keys:
  Enter runs what is complete                  Alt-Enter runs in any case
  Tab completes                                Ctrl-O adds a line
  Up matches what is typed                     Ctrl-R searches
  Alt-minus writes <-
  Ctrl-C clears the line, interrupts the running command, stops a transfer"""

_CANONICAL = {"is.secure": "is_secure", "q": "quit"}
_QUOTE = r"""["'\u2018-\u201f\u00ab\u00bb\u2039\u203a]"""
_QUOTED = re.compile(rf"{_QUOTE}\s?([\w.]+)\s?{_QUOTE}")
_INSTEAD = {
    "rhelp": "`?plot` shows the help on `plot`",
    **dict.fromkeys(
        ("rpng", "rpng.off", "dev.curc"), "a plot is shown when it is drawn, without another call"
    ),
}
"""What other prompts to a remote R have calls for."""
_BOOLEANS = {"TRUE": True, "T": True, "FALSE": False, "F": False}


@dataclass(frozen=True)
class Argument:
    """One argument of a call.

    Attributes:
        tokens: its value, without the blanks around it.
        name: its name, if it has one.
    """

    tokens: tuple[Token, ...]
    name: str | None = None

    @property
    def text(self) -> str:
        """The value as it stands, in one statement wherever that is put: ends of lines that mean nothing are blanks."""
        depth, parts = 0, []
        for token in self.tokens:
            if token.kind == "bracket":
                depth += len(token.text) * (1 if token.text in ("(", "[", "[[", "{") else -1)
            if token.kind == "comment" and not depth:
                continue
            parts.append(" " if token.kind == "newline" and not depth else token.text)
        return "".join(parts)


def lexer() -> Any:
    """What colours R code."""
    from pygments.lexers.r import SLexer

    return SLexer


def trim(code: str) -> str:
    """R does not mind what stands before its code, and a string over several lines does."""
    return code


def shadows(piece: Piece, variable: dict[str, Any]) -> bool:
    """Whether that variable of the call's name is meant: R looks only for functions where one is called."""
    return not piece.code.endswith(")") or variable.get("type") == "function"


def check_name(name: str) -> str:
    """The name as `push` takes it: any can stand between backticks. Raises TransferError: none can have it."""
    from ._robjects import check_name

    marked = f"`{name}`"
    check_name(marked)
    return marked


def judge(code: str) -> tuple[str, str]:
    """Whether R code is complete, incomplete or invalid, and the indent of the next line."""
    reading = read(code)
    return reading.status, " " * reading.indent


split = _rtokens.split


# --- what was typed ----------------------------------------------------------------------------


def pieces(code: str) -> list[Piece]:
    """What was typed, in order, in stretches that run in one place each.

    What is no R code is for the session as a whole, which then says so.
    """
    if not any(verb in code for verb in VERBS):
        return [Piece(code)]
    text = code.replace("\r\n", "\n").replace("\r", "\n")
    reading = read(text)
    calls = [_call(statement) for statement in reading.statements]
    if reading.status != "complete" or not any(calls):
        return [Piece(code)]
    found: list[Piece] = []
    is_open = False  # the last one found is for the session, and its next statement belongs to it
    start = 0
    for statement, call in zip(reading.statements, calls, strict=True):
        if call is not None:
            found.append(call)
            is_open = False
            continue
        if is_open:
            found.pop()
        else:
            start, is_open = statement[0].start, True
        found.append(Piece(text[start : statement[-1].end]))
    return found


def _call(statement: list[Token]) -> Piece | None:
    """The statement as one of our calls, if it is one."""
    code = "".join(token.text for token in statement)
    said = [token for token in statement if not token.is_blank]
    word = said[0].text
    if word not in VERBS:
        return None
    verb = _CANONICAL.get(word, word)
    if len(said) == 1:
        return Piece(code, verb, word=word) if word == "exit" else None
    if said[1].text != "(" or not _is_one_call(said[1:]):
        return None
    first = statement.index(said[1])
    arguments = [_argument(part) for part in _parted(statement[first + 1 : -1])]
    return Piece(
        code,
        verb,
        tuple(each for each in arguments if each.name is None),
        tuple(each for each in arguments if each.name is not None),
        word,
    )


def _is_one_call(said: list[Token]) -> bool:
    """Whether the first bracket is closed by the last token: `q()`, but not `q()$x` or `q() + (1)`."""
    depth = 0
    for index, token in enumerate(said):
        if token.kind == "bracket":
            depth += len(token.text) * (1 if token.text in ("(", "[", "[[", "{") else -1)
        if not depth:
            return index == len(said) - 1
    return False


def _parted(inner: list[Token]) -> list[list[Token]]:
    """What stands between the parentheses of a call, cut at its commas."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in inner:
        if token.kind == "bracket":
            depth += len(token.text) * (1 if token.text in ("(", "[", "[[", "{") else -1)
        if token.text == "," and not depth:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts if len(parts) > 1 or any(not token.is_blank for token in parts[0]) else []


def _argument(part: list[Token]) -> Argument:
    said = [index for index, token in enumerate(part) if not token.is_blank]
    name = None
    if len(said) > 1 and part[said[1]].text == "=" and part[said[0]].kind in ("name", "string"):
        first = part[said[0]]
        name = value_of(first) if first.kind == "string" else name_of(first)
        said = said[2:]
    return Argument(tuple(part[said[0] : said[-1] + 1]) if said else (), name)


# --- what an argument says ---------------------------------------------------------------------

_ESCAPE = re.compile(
    r"\\(?:x(?P<byte>[0-9a-fA-F]{1,2})|u\{?(?P<unicode>[0-9a-fA-F]{1,4})\}?|U\{?(?P<wide>[0-9a-fA-F]{1,8})\}?"
    r"|(?P<octal>[0-7]{1,3})|(?P<letter>.))",
    re.DOTALL,
)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}
_THEMSELVES = "\\\"'` \n"


def value_of(token: Token) -> str:
    """The text that a string of R is.

    Raises:
        RemoterError: R would not understand it.
    """
    text = token.text
    if text[0] in "rR":
        body = text[2:-1]
        dashes = len(body) - len(body.lstrip("-"))
        return body[dashes + 1 : len(body) - dashes - 1]
    return _ESCAPE.sub(_unescaped, text[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    digits = found["byte"] or found["unicode"] or found["wide"]
    code = int(digits, 16) if digits else int(found["octal"], 8) if found["octal"] else None
    letter = found["letter"]
    if code is not None and 0 < code < 0x110000:
        return chr(code)
    if letter and (letter in _LETTERS or letter in _THEMSELVES):
        return _LETTERS.get(letter, letter)
    raise RemoterError(f"`{found[0]}` means nothing in a string", id="arguments")


def name_of(token: Token) -> str:
    """The name that is written so, also between backticks."""
    return _ESCAPE.sub(_unescaped, token.text[1:-1]) if token.text.startswith("`") else token.text


def _text(verb: str, name: str, argument: Argument, usage: str) -> str:
    if len(argument.tokens) == 1 and argument.tokens[0].kind == "string":
        return value_of(argument.tokens[0])
    raise RemoterError(
        f"`{name}` of `{verb}` is a text between quotes, not `{label(argument.text)}`",
        hints=f"`{usage}`",
        id="arguments",
    )


def _flag(verb: str, name: str, argument: Argument | None, default: bool) -> bool:
    if argument is None:
        return default
    if argument.text in _BOOLEANS:
        return _BOOLEANS[argument.text]
    raise RemoterError(f"`{name}` of `{verb}` is TRUE or FALSE", id="arguments")


def _bound(piece: Piece, by_place: tuple[str, ...], by_name: tuple[str, ...] = ()) -> dict[str, Argument]:
    """The arguments of a call by their names, as R matches them: whole names, beginnings, places."""
    verb, known = piece.name, (*by_place, *by_name)
    if any(not argument.tokens for argument in (*piece.arguments, *piece.keywords)):
        raise RemoterError(f"an argument of `{verb}` is empty", id="arguments")
    keywords = [(_whole_name(str(argument.name), known), argument) for argument in piece.keywords]
    taken = {name for name, _ in keywords}
    free = tuple(name for name in by_place if name not in taken)
    others = tuple(name for name in known if name not in free)
    return bind(verb, piece.arguments, keywords, free, others)


def _whole_name(name: str, known: Iterable[str]) -> str:
    name = name.replace("_", ".")  # `client_only`, as in Python
    meant = [each for each in known if each.startswith(name)]
    return name if name in meant or len(meant) != 1 else meant[0]


# --- what a call asks for ----------------------------------------------------------------------


def ends_session(piece: Piece) -> bool:
    """Whether this leaving call means to end the session too: `shutdown()`, `exit(client.only = FALSE)`.

    `q("no")` is what R users type to be gone: whatever it is given, it leaves.

    Raises:
        RemoterError: it cannot be understood; to leave would be a guess, and so would be to end.
    """
    if piece.verb == "quit":
        return False
    given = _bound(piece, ("client.only", "q.server") if piece.verb == "exit" else ())
    if piece.verb == "shutdown":
        return True
    try:
        _flag("exit", "q.server", given.get("q.server"), True)
        return not _flag("exit", "client.only", given.get("client.only"), True)
    except RemoterError as error:
        error.hints = ("`exit()` leaves and the session goes on; `shutdown()` ends it",)
        raise


def hint_about(error: dict[str, Any]) -> str | None:
    """R knows no function of that name: it was meant for the prompt and stood inside something."""
    words: list[str] = _QUOTED.findall(str(error.get("value") or ""))
    own = [word for word in words if word in VERBS and word not in ("q", "quit")]
    if len(words) != 1:
        return None
    return stands_alone(own[0]) if own else _INSTEAD.get(words[0])


def cargo(piece: Piece) -> Cargo:
    """What `s2c(...)` or `c2s(...)` means: `s2c(x)`, `s2c("x")`, `s2c(x, "y")`, `s2c(head(df), "top")`.

    Raises:
        RemoterError: it cannot be understood.
    """
    verb = piece.name
    given = _bound(piece, ("object", "newname"), ("overwrite",))
    if "object" not in given:
        raise RemoterError(
            f"`{verb}` takes an object", hints=f'`{verb}(x)`, or `{verb}(x, "y")`', id="arguments"
        )
    source = given["object"]
    if verb == "s2c" and len(source.tokens) == 1 and source.tokens[0].kind == "string":
        source = _expression(value_of(source.tokens[0]))
    is_name = len(source.tokens) == 1 and source.tokens[0].kind == "name"
    text = name_of(source.tokens[0]) if is_name else source.text
    if "newname" in given:
        name = _text(verb, "newname", given["newname"], f'{verb}({source.text}, "y")')
    elif is_name:
        name = text
    else:
        shown = label(text)
        raise RemoterError(
            f"`{shown}` is no name, and what it gives needs one",
            hints=f'`{verb}({shown}, "NAME")`',
            id="arguments",
        )
    return Cargo(source, name, _flag(verb, "overwrite", given.get("overwrite"), True), text, is_name)


def _expression(text: str) -> Argument:
    """The expression in a text, `"x"` or `"head(df)"`; what is none is taken for a name."""
    reading = read(text)
    if reading.status == "complete" and len(reading.statements) == 1:
        return Argument(tuple(reading.statements[0]))
    if reading.status == "invalid" and "`" not in text and "\\" not in text:
        return Argument((Token("name", f"`{text}`", 0),))
    raise RemoterError(f"`{label(text)}` is no name and no expression", id="arguments")


def paths(piece: Piece) -> tuple[str, str | None, dict[str, Any]]:
    """What `sendfile(...)` or `recvfile(...)` means: from where, to where, and the options.

    Raises:
        RemoterError: it cannot be understood.
    """
    verb = piece.name
    given = _bound(piece, ("path", "to"), tuple(FILE_OPTIONS))
    usage = f'{verb}("from", "to")'
    if "path" not in given:
        raise RemoterError(f"`{verb}` takes the path of a file or folder", hints=f"`{usage}`", id="arguments")
    path, to = _text(verb, "path", given.pop("path"), usage), given.pop("to", None)
    options: dict[str, Any] = {
        name: _text(verb, name, argument, f'{verb}("from", "to", {name} = "skip")')
        if FILE_OPTIONS[name] is str
        else _flag(verb, name, argument, False)
        for name, argument in given.items()
    }
    return path, None if to is None else _text(verb, "to", to, usage), options


def listing(piece: Piece) -> tuple[str | None, bool]:
    """What `lsc(pattern = "^d", all.names = TRUE)` is to list."""
    given = _bound(piece, ("pattern", "all.names"))
    pattern = given.get("pattern")
    text = _text("lsc", "pattern", pattern, 'lsc(pattern = "^d")') if pattern else None
    return text or None, _flag("lsc", "all.names", given.get("all.names"), False)


def matches(pattern: str, name: str) -> bool:
    """Whether the name is one of the pattern, a regular expression. Raises RemoterError: it is none."""
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise RemoterError(f"`{pattern}` is no pattern", cause=str(error), id="arguments") from None


def removal(piece: Piece) -> list[str]:
    """What `rmc(x, "y", list = c("z"))` is to remove."""
    names = []
    for argument in piece.keywords:
        if argument.name != "list":
            raise RemoterError(
                f"`rmc` has no argument `{argument.name}`", hints="it has `list`", id="arguments"
            )
        names += _texts(argument)
    for argument in piece.arguments:
        if len(argument.tokens) == 1 and argument.tokens[0].kind in ("name", "string"):
            token = argument.tokens[0]
            names.append(value_of(token) if token.kind == "string" else name_of(token))
        else:
            raise RemoterError(
                f"`rmc` takes names, not `{label(argument.text)}`",
                hints='`rmc(x, y)`, or `rmc(list = c("x", "y"))`',
                id="arguments",
            )
    return names


def _texts(argument: Argument) -> list[str]:
    """`"x"` or `c("x", "y")`."""
    said = [token for token in argument.tokens if not token.is_blank]
    if len(said) == 1 and said[0].kind == "string":
        return [value_of(said[0])]
    if len(said) > 2 and said[0].text == "c" and said[1].text == "(" and _is_one_call(said[1:]):
        parts = _parted(said[2:-1])
        if all(len(part) == 1 and part[0].kind == "string" for part in parts):
            return [value_of(part[0]) for part in parts]
    raise RemoterError(
        f"`list` of `rmc` is names between quotes, not `{label(argument.text)}`",
        hints='`rmc(list = c("x", "y"))`',
        id="arguments",
    )


def evaluation(piece: Piece) -> str:
    """The code of `evalc(expression)`, `evalc("statements")`, `evalc(name = expression)`."""
    given = (*piece.arguments, *piece.keywords)
    if len(given) != 1 or not given[0].tokens:
        raise RemoterError(
            f"`evalc` takes one expression, not {len(given)}" if given else "`evalc` takes an expression",
            hints="`evalc(mean(x))`, or several in braces: `evalc({x <- 1; y <- 2})`",
            id="arguments",
        )
    argument: Argument = given[0]
    if argument.name is not None:
        name = argument.name.replace("\\", "\\\\").replace("`", "\\`")
        return f"`{name}` <- {argument.text}"
    if len(argument.tokens) == 1 and argument.tokens[0].kind == "string":
        return value_of(argument.tokens[0])
    return argument.text


def quoted(text: str) -> str:
    """A text as R reads it between quotes."""
    return '"' + "".join(_ESCAPES.get(letter, letter) for letter in text) + '"'


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": ""}
