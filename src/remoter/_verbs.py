"""The prompt's own calls in Python, and Python on this side; on the client's machine, in the prompt's process.

What a `Language` has to have is in `_language`.

Everything typed runs in the session, except these calls, and those only where they stand as
statements of their own at top level. They are found by parsing, never by how a line starts,
so a function that is defined over several lines may well contain a line `exit()`.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import fnmatch
import re
import sys
import textwrap
import traceback
import types
import warnings
from codeop import compile_command
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._errors import RemoterError
from ._language import (
    CARRYING,
    FILE_OPTIONS,
    LEAVING,
    Cargo,
    Language,
    Marked,
    Piece,
    already_here,
    attempt,
    bind,
    stands_alone,
)
from ._paper import label
from ._run import AskPerson

if TYPE_CHECKING:
    from ._client import Session

VERBS = (*CARRYING, "lsc", "rmc", "evalc", "is_secure", "showlog", "helpc", "shutdown", *LEAVING)
"""The calls that the prompt does itself."""

NAME = "Python"
INDENT = 4
CLOSERS = ""
SHORTCUTS: dict[tuple[str, ...], str] = {}
ENDS_BLOCKS = True
WORD = r"\w*"
FORGET = "del {}"
TRUTH = ("False", "True")

MOST_TYPED = 200  # lines; more at once are a program's
_CLAUSE = re.compile(r"(else|elif|except|finally)\b")

HELP = """\
typed lines run on {host}; these calls are done here:
  s2c(x)  s2c(x, "y")  s2c(df.head(), "top")   bring an object here
  c2s(x)  c2s(x, "y")  c2s(a + b, "total")     send an object there
  recvfile("there.csv", "here.csv")            bring a file or folder here
  sendfile("here.csv", "there.csv")            send a file or folder there
  lsc()  rmc(x, y)                             list, remove objects here
  evalc(x * 2)  evalc("statements")            evaluate here
  is_secure()                                  is the link encrypted
  showlog()                                    what the session put out
  exit()  quit()  Ctrl-D                       leave; the session goes on
  shutdown()  exit(client_only=False)          end the session
overwrite=True replaces files; overwrite=False keeps objects
keys:
  Enter runs what is complete                  Alt-Enter runs in any case
  Tab completes                                Ctrl-O adds a line
  Up matches what is typed                     Ctrl-R searches
  Ctrl-C clears the line, interrupts the running command, stops a transfer"""


def lexer() -> Any:
    """What colours Python code."""
    from pygments.lexers.python import PythonLexer

    return PythonLexer


def trim(code: str) -> str:
    """Code that was typed with an indent, without it."""
    return textwrap.dedent(code) if code[:1].isspace() else code


def shadows(piece: Piece, variable: dict[str, Any]) -> bool:
    """Whether that variable of the call's name is the user's own: not what IPython calls `exit`."""
    return variable.get("type") not in ("Quitter", "ExitAutocall", "ZMQExitAutocall")


def check_name(name: str) -> str:
    """The name as `push` takes it. Raises TransferError: none can have it."""
    from ._objects import check_name

    return check_name(name)


def pieces(code: str) -> list[Piece]:
    """What was typed, in order, in stretches that run in one place each.

    What does not parse as Python (a magic, a shell line, a mistake) is for the session as a whole.
    """
    if not any(verb in code for verb in VERBS):
        return [Piece(code)]
    text = code.replace("\r\n", "\n").replace("\r", "\n")
    tree = parse(text)
    if tree is None or not any(map(_call, tree.body)):
        return [Piece(code)]
    # Columns of the tree count bytes, so bytes are what is cut.
    data = text.encode()
    line_starts = [0]
    for line in data.split(b"\n"):
        line_starts.append(line_starts[-1] + len(line) + 1)
    found: list[Piece] = []
    remote_since: int | None = None
    for statement in tree.body:
        start = line_starts[statement.lineno - 1] + statement.col_offset
        if local := _call(statement):
            if remote_since is not None:
                found.append(Piece(_without_separator(data[remote_since:start])))
                remote_since = None
            found.append(local)
        elif remote_since is None:
            remote_since = _start_with_decorators(statement, line_starts, start)
    if remote_since is not None:
        found.append(Piece(data[remote_since:].decode().rstrip()))
    return found


def _start_with_decorators(statement: ast.stmt, line_starts: list[int], start: int) -> int:
    decorators = getattr(statement, "decorator_list", None)
    return line_starts[decorators[0].lineno - 1] if decorators else start


def _without_separator(data: bytes) -> str:
    """`x; ` as it stood before one of our calls, without the semicolon (which would hide a value)."""
    text = data.decode().rstrip()
    return text[:-1].rstrip() if text.endswith(";") else text


def _call(statement: ast.stmt) -> Piece | None:
    """The statement as one of our calls, if it is one."""
    if not isinstance(statement, ast.Expr):
        return None
    value = statement.value
    if isinstance(value, ast.Name) and value.id in LEAVING:
        return Piece(value.id, value.id)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in VERBS:
        return Piece(ast.unparse(value), value.func.id, tuple(value.args), tuple(value.keywords))
    return None


def parse(code: str) -> ast.Module | None:
    """The code parsed, or None where it is no Python; without the compiler's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def judge(code: str) -> tuple[str, str]:
    """Whether Python code is complete, incomplete or invalid, and the indent of the next line.

    As at Python's own prompt: a block of several lines ends with a blank line.
    """
    *_, last = code.split("\n")
    tree = parse(code)
    if tree is not None:
        in_block = "\n" in code and bool(last.strip()) and last[0].isspace()
        return ("incomplete", _next_indent(code)) if in_block else ("complete", "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            unfinished = compile_command(code, symbol="exec") is None
        except (SyntaxError, ValueError, OverflowError):
            return "invalid", ""
    return ("incomplete", _next_indent(code)) if unfinished else ("complete", "")


def _next_indent(code: str) -> str:
    line = code.rsplit("\n", 1)[-1]
    indent = line[: len(line) - len(line.lstrip())]
    words = line.split()
    if line.split("#")[0].rstrip().endswith(":"):
        return indent + "    "
    if words and words[0] in ("return", "pass", "break", "continue", "raise"):
        return indent[:-4]
    return indent


def split(text: str) -> list[str]:
    """Lines, cut where a prompt would have run what was entered so far; together they are the text."""
    lines = [f"{line}\n" for line in text.removesuffix("\n").split("\n")]
    if len(lines) > MOST_TYPED:
        return [text]
    pieces, current = [], ""
    for index, line in enumerate(lines):
        current += line
        rest = lines[index + 1 :]
        after = next((each for each in rest if each.split("#")[0].strip()), None)
        if after is None:
            break
        is_block = "\n" in current[:-1]  # its blank lines stay with it
        if _is_whole(current, after) and not (is_block and not rest[0].strip()):
            pieces.append(current)
            current = ""
    return [*pieces, text[sum(map(len, pieces)) :]]


def _is_whole(code: str, after: str) -> bool:
    """Whether code ends before the line `after`."""
    code = code.rstrip("\n")
    if not code.strip():
        return True
    if code.startswith("%%") or code.endswith("\\") or _CLAUSE.match(after):
        return False
    if "\n" not in code and judge(code)[0] == "complete":
        return True
    return not after[:1].isspace() and judge(code + "\n")[0] != "incomplete"


def ends_session(piece: Piece) -> bool:
    """Whether this leaving call means to end the session too: `shutdown()`, `exit(client_only=False)`.

    Raises:
        RemoterError: it cannot be understood; to leave would be a guess, and so would be to end.
    """
    if piece.verb == "shutdown":
        if piece.arguments or piece.keywords:
            raise RemoterError("`shutdown` takes no arguments", id="arguments")
        return True
    values = [*piece.arguments, *(k.value for k in piece.keywords if k.arg == "client_only")]
    is_known = len(values) == len(piece.arguments) + len(piece.keywords) <= 1
    if not is_known or not all(isinstance(value, ast.Constant) for value in values):
        raise RemoterError(
            f"`{piece.verb}` takes `client_only=True` or `client_only=False`",
            hints=f"`{piece.verb}()` leaves and the session goes on; `shutdown()` ends it",
            id="arguments",
        )
    if piece.keywords and not isinstance(values[0].value, bool):
        raise RemoterError("`client_only` is True or False", id="arguments")
    return any(isinstance(value, ast.Constant) and value.value is False for value in values)


def hint_about(error: dict[str, Any]) -> str | None:
    """A NameError about one of our calls: it was meant for the prompt and stood inside something."""
    found = re.search(r"name '(\w+)' is not defined", str(error.get("value") or ""))
    if error.get("name") != "NameError" or not found or found[1] not in VERBS:
        return None
    return stands_alone(found[1])


# --- what a call is to carry -------------------------------------------------------------------


def cargo(piece: Piece) -> Cargo:
    """What `s2c(...)` or `c2s(...)` means: `s2c(x)`, `s2c("x")`, `s2c(x, "y")`, `s2c(df.head(), "top")`.

    Raises:
        RemoterError: it cannot be understood.
    """
    verb = piece.verb or ""
    given = _bound(piece, ("object", "newname"), ("overwrite",))
    if "object" not in given:
        raise RemoterError(
            f"`{verb}` takes an object", hints=f'`{verb}(x)`, or `{verb}(x, "y")`', id="arguments"
        )
    source = given["object"]
    if verb == "s2c" and isinstance(source, ast.Constant) and isinstance(source.value, str):
        source = _expression(source.value)
    if "newname" in given:
        name = _text(verb, "newname", given["newname"], f'{verb}({ast.unparse(source)}, "y")')
    elif isinstance(source, ast.Name):
        name = source.id
    else:
        shown = ast.unparse(source)
        raise RemoterError(
            f"`{label(shown)}` is no name, and what it gives needs one",
            hints=f'`{verb}({label(shown)}, "NAME")`',
            id="arguments",
        )
    overwrite = _flag(verb, "overwrite", given.get("overwrite"), True)
    return Cargo(source, name, overwrite, ast.unparse(source), isinstance(source, ast.Name))


def paths(piece: Piece) -> tuple[str, str | None, dict[str, Any]]:
    """What `sendfile(...)` or `recvfile(...)` means: from where, to where, and the options.

    Raises:
        RemoterError: it cannot be understood.
    """
    verb = piece.verb or ""
    given = _bound(piece, ("path", "to"), tuple(FILE_OPTIONS))
    usage = f'{verb}("from", "to")'
    if "path" not in given:
        raise RemoterError(f"`{verb}` takes the path of a file or folder", hints=f"`{usage}`", id="arguments")
    path, to = _text(verb, "path", given.pop("path"), usage), given.pop("to", None)
    options: dict[str, Any] = {
        name: _text(verb, name, node, f'{verb}("from", "to", {name}="skip")')
        if FILE_OPTIONS[name] is str
        else _flag(verb, name, node, False)
        for name, node in given.items()
    }
    return path, None if to is None else _text(verb, "to", to, usage), options


def listing(piece: Piece) -> tuple[str | None, bool]:
    """What `lsc(pattern, all_names)` is to list."""
    given = _bound(piece, ("pattern", "all_names"), ())
    values = {name: _literal(node, "lsc") for name, node in given.items()}
    pattern = values.get("pattern")
    return str(pattern) if pattern else None, bool(values.get("all_names"))


def matches(pattern: str, name: str) -> bool:
    """Whether the name is one of the pattern, as of files."""
    return fnmatch.fnmatch(name, pattern)


def removal(piece: Piece) -> list[str]:
    """What `rmc(x, "y", list=["z"])` is to remove."""
    names = []
    for argument in [*piece.arguments, *(k.value for k in piece.keywords if k.arg == "list")]:
        if isinstance(argument, ast.Name):
            names.append(argument.id)
            continue
        value = _literal(argument, "rmc")
        names += [value] if isinstance(value, str) else [str(name) for name in value]
    return names


def evaluation(piece: Piece) -> str:
    """The code of `evalc(expression)`, `evalc("statements")`, `evalc(name=expression)`."""
    parts = [
        textwrap.dedent(argument.value)
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        else f"({ast.unparse(argument)})"
        for argument in piece.arguments
    ]
    for keyword in piece.keywords:
        if keyword.arg is None:
            raise RemoterError("`evalc` takes an expression, statements as text, or name=expression")
        parts.append(f"{keyword.arg} = {ast.unparse(keyword.value)}")
    return "\n".join(parts)


def _bound(piece: Piece, by_place: tuple[str, ...], by_name: tuple[str, ...]) -> dict[str, ast.expr]:
    """The arguments of a call by their names, as Python would bind them."""
    verb = piece.verb
    if any(isinstance(node, ast.Starred) for node in piece.arguments) or None in (
        k.arg for k in piece.keywords
    ):
        raise RemoterError(f"`{verb}` takes no `*` and no `**`", id="arguments")
    keywords = [(str(keyword.arg), keyword.value) for keyword in piece.keywords]
    return bind(str(verb), piece.arguments, keywords, by_place, by_name)


def _expression(text: str) -> ast.expr:
    """The expression in a text, `"x"` or `"df.head()"`."""
    tree = parse(text.strip())
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        raise RemoterError(f"`{label(text)}` is no name and no expression", id="arguments")
    return tree.body[0].value


def _text(verb: str, name: str, node: ast.expr, usage: str) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise RemoterError(
        f"`{name}` of `{verb}` is a text between quotes, not `{label(ast.unparse(node))}`",
        hints=f"`{usage}`",
        id="arguments",
    )


def _flag(verb: str, name: str, node: ast.expr | None, default: bool) -> bool:
    if node is None:
        return default
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return node.value
    raise RemoterError(f"`{name}` of `{verb}` is True or False", id="arguments")


# --- this side ---------------------------------------------------------------------------------


class LocalSide:
    """The names on this side of the prompt, and what may be done with them there: Python, in this process.

    Args:
        namespace: the names; None: new ones.
        write: puts out marked text.
        spelling: how the calls are spelled; None: as in Python.
    """

    NAME = "Python"

    def __init__(
        self,
        namespace: dict[str, Any] | None,
        write: Callable[[str], None],
        spelling: Language | None = None,
    ) -> None:
        if namespace is None:
            namespace = {"__name__": "__main__"}
        self.namespace = namespace
        self.namespace.setdefault("__builtins__", builtins)
        self._write = write
        self._spelling: Any = spelling or sys.modules[__name__]

    def do(self, piece: Piece) -> bool:
        """Do `lsc`, `rmc` or `evalc`. A failure is shown and stays here; says whether it went well."""
        match piece.verb:
            case "lsc":
                return self.attempt(lambda stream: self._list(stream, piece))
            case "rmc":
                return self.attempt(lambda stream: self._remove(piece))
            case _:
                return self.attempt(lambda stream: self._evaluate(stream, piece))

    def attempt(self, action: Callable[[Marked], None]) -> bool:
        """Do something here that may fail. A failure is shown and stays here; says whether it went well."""
        return attempt(self._write, action, _local_traceback)

    def expect(self, cargo: Cargo) -> Cargo:
        """What is to be brought here, under a name that it may have. Raises RemoterError: it has none."""
        from ._values import describe

        name = check_name(cargo.name)
        if name in self.namespace and not cargo.overwrite:
            raise already_here(name, describe(self.namespace[name]))
        return dataclasses.replace(cargo, name=name)

    def bring(self, session: Session, cargo: Cargo, transfer: str, ask: AskPerson, stream: Marked) -> None:
        """Get it from the session. Who sits here is asked whether a pickle may be opened."""
        from ._values import describe, size_in_words

        value, size = session._crossing.pull_asking(transfer, cargo.text, ask, is_name=cargo.is_name)
        name, names = cargo.name, self.namespace
        replaced = f"; replaced {describe(names[name])}" if name in names else ""
        names[name] = value  # only now: what is cut off on the way changes nothing here
        # What has no bytes beside its description is too small to tell.
        sized = f", {size_in_words(size)}" if size else ""
        stream.write(f"{name}: {describe(value)}{sized}{replaced}\n")

    def send(self, session: Session, cargo: Cargo, stream: Marked) -> None:
        """Give its value to the session."""
        source = cargo.source if isinstance(cargo.source, ast.expr) else _expression(cargo.text)
        value = self.value(source, stream)
        stream.write(f"{session.push(cargo.name, value, overwrite=cargo.overwrite)}\n")

    def close(self) -> None:
        """The names are the caller's."""

    def _list(self, stream: Marked, piece: Piece) -> None:
        pattern, is_all = self._spelling.listing(piece)
        names = [
            name
            for name, value in sorted(self.namespace.items())
            if (is_all or not name.startswith("_"))
            and (not pattern or self._spelling.matches(pattern, name))
            and (is_all or not isinstance(value, types.ModuleType))
        ]
        stream.write(textwrap.fill("  ".join(names), 72) if names else "no objects here")

    def _remove(self, piece: Piece) -> None:
        names = self._spelling.removal(piece)
        for name in names:
            self._check_is_here(name)
        for name in names:
            self.namespace.pop(name, None)

    def _check_is_here(self, name: str) -> None:
        if name not in self.namespace:
            raise RemoterError(f"no object `{name}` here", hints="`lsc()` lists what is here", id="name")

    def _evaluate(self, stream: Marked, piece: Piece) -> None:
        body = _parsed(self._spelling.evaluation(piece)).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            module = ast.Module(body, [])
            exec(compile(module, "<here>", "exec"), self.namespace)  # noqa: S102 - the user typed it, for here
            if isinstance(last, ast.Expr) and (value := self._value(last.value)) is not None:
                stream.write(repr(value) + "\n")

    def value(self, node: ast.expr, stream: Marked) -> Any:
        """The value of a typed expression on this side; what it prints is marked."""
        if isinstance(node, ast.Name):
            self._check_is_here(node.id)
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            return self._value(node)

    def _value(self, node: ast.expr) -> Any:
        expression = ast.fix_missing_locations(ast.Expression(node))
        return eval(compile(expression, "<here>", "eval"), self.namespace)  # noqa: S307 - the user typed it, for here


def _parsed(code: str) -> ast.Module:
    """Statements; or an expression that is one only between parentheses, as it stood in the call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(code, "<here>")
        except SyntaxError:
            with contextlib.suppress(SyntaxError):
                return ast.parse(f"({code})", "<here>")
            raise


def _local_traceback(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "KeyboardInterrupt"
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename != "<here>":
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip("\n")


def _literal(node: ast.expr, verb: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise RemoterError(f"`{verb}` takes names, not `{ast.unparse(node)}`") from None


def caller_namespace() -> dict[str, Any]:
    """The names of the program that called us."""
    return sys.modules["__main__"].__dict__
