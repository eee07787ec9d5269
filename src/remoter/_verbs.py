"""The prompt's own calls: recognising them and doing the local ones; on the client's machine, in the prompt's process.

Everything typed runs in the session, except these calls, and those only where they stand as
statements of their own at top level. They are found by parsing, never by how a line starts,
so a function that is defined over several lines may well contain a line `exit()`.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import fnmatch
import io
import re
import sys
import textwrap
import traceback
import types
import warnings
from codeop import compile_command
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._errors import RemoterError

LEAVING = ("exit", "quit")
VERBS = ("lsc", "rmc", "evalc", "is_secure", "showlog", "helpc", "shutdown", *LEAVING)
"""The calls that the prompt does itself."""

MARK = "here| "
"""Stands before each line that this machine put out, so that nobody takes it for the session's."""

HELP = """\
typed lines run on {host}; these calls are done by the prompt:
  lsc()                 the objects here          rmc(x, y)    remove objects here
  evalc(x * 2)          evaluate here             evalc("statements")
  is_secure()           is the link encrypted     showlog()    what the session put out so far
  exit()  quit()  Ctrl-D    leave; the session goes on, also when it is busy
  shutdown()  exit(client_only=False)    end the session
keys:
  Enter runs what is complete      Alt-Enter runs in any case     Ctrl-O adds a line
  Tab completes                    Up matches what is typed       Ctrl-R searches
  Ctrl-C clears the line, or interrupts the running command"""


@dataclass(frozen=True)
class Piece:
    """A stretch of what was typed: code for the session, or one of our calls."""

    code: str
    verb: str | None = None
    arguments: tuple[ast.expr, ...] = ()
    keywords: tuple[ast.keyword, ...] = ()


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
    if piece.keywords and not isinstance(values[0].value, bool):  # type: ignore[attr-defined]
        raise RemoterError("`client_only` is True or False", id="arguments")
    return any(isinstance(value, ast.Constant) and value.value is False for value in values)


def hint_about(error: dict[str, Any]) -> str | None:
    """A NameError about one of our calls: it was meant for the prompt and stood inside something."""
    found = re.search(r"name '(\w+)' is not defined", str(error.get("value") or ""))
    if error.get("name") != "NameError" or not found or found[1] not in VERBS:
        return None
    return (
        f"hint: `{found[1]}()` is a call of this prompt; it works only as a statement of its own, "
        "not inside other code"
    )


class Marked(io.TextIOBase):
    """A stream that passes text on with the mark before each line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self._write("".join(f"{MARK}{line}\n" for line in lines))
        return len(text)

    def finish(self) -> None:
        """Ends a line that is not ended."""
        if self._line:
            self.write("\n")


class LocalSide:
    """The names on this side of the prompt, and what may be done with them there."""

    def __init__(self, namespace: dict[str, Any] | None, write: Callable[[str], None]) -> None:
        if namespace is None:
            namespace = {"__name__": "__main__"}
        self.namespace = namespace
        self.namespace.setdefault("__builtins__", builtins)
        self._write = write

    def do(self, piece: Piece) -> bool:
        """Do `lsc`, `rmc` or `evalc`. A failure is shown and stays here; says whether it went well."""
        stream = Marked(self._write)
        try:
            match piece.verb:
                case "lsc":
                    self._list(stream, piece)
                case "rmc":
                    self._remove(piece)
                case "evalc":
                    self._evaluate(stream, piece)
        except RemoterError as error:
            stream.write(f"error: {error}\n")
            return False
        except KeyboardInterrupt:
            stream.finish()
            stream.write("KeyboardInterrupt\n")
            return False
        except BaseException as error:  # also SystemExit: what runs here never ends the prompt
            stream.finish()
            stream.write(_local_traceback(error))
            return False
        finally:
            stream.finish()
        return True

    def _list(self, stream: Marked, piece: Piece) -> None:
        options = _literals(piece, "pattern", "all_names")
        pattern = options.get("pattern")
        names = [
            name
            for name, value in sorted(self.namespace.items())
            if (options.get("all_names") or not name.startswith("_"))
            and (not pattern or fnmatch.fnmatch(name, str(pattern)))
            and (options.get("all_names") or not isinstance(value, types.ModuleType))
        ]
        stream.write(textwrap.fill("  ".join(names), 72) if names else "no objects here")

    def _remove(self, piece: Piece) -> None:
        names = []
        for argument in [*piece.arguments, *(k.value for k in piece.keywords if k.arg == "list")]:
            if isinstance(argument, ast.Name):
                names.append(argument.id)
                continue
            value = _literal(argument, "rmc")
            names += [value] if isinstance(value, str) else [str(name) for name in value]
        if missing := [name for name in names if name not in self.namespace]:
            raise RemoterError(
                f"no object `{missing[0]}` here", hints="`lsc()` lists what is here", id="name"
            )
        for name in names:
            self.namespace.pop(name, None)

    def _evaluate(self, stream: Marked, piece: Piece) -> None:
        """`evalc(expression)`, `evalc("statements")`, `evalc(name=expression)`."""
        body: list[ast.stmt] = []
        for argument in piece.arguments:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                body += ast.parse(textwrap.dedent(argument.value)).body
            else:
                body.append(ast.copy_location(ast.Expr(argument), argument))
        for keyword in piece.keywords:
            if keyword.arg is None:
                raise RemoterError("`evalc` takes an expression, statements as text, or name=expression")
            target = ast.Name(keyword.arg, ast.Store())
            body.append(ast.Assign([target], keyword.value))
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            module = ast.fix_missing_locations(ast.Module(body, []))
            exec(compile(module, "<here>", "exec"), self.namespace)  # noqa: S102 - the user typed it, for here
            if isinstance(last, ast.Expr):
                expression = ast.fix_missing_locations(ast.Expression(last.value))
                value = eval(compile(expression, "<here>", "eval"), self.namespace)  # noqa: S307 - likewise
                if value is not None:
                    stream.write(repr(value) + "\n")


def _local_traceback(error: BaseException) -> str:
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename != "<here>":
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _literal(node: ast.expr, verb: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise RemoterError(f"`{verb}` takes names, not `{ast.unparse(node)}`") from None


def _literals(piece: Piece, *names: str) -> dict[str, Any]:
    found = dict(zip(names, (_literal(node, str(piece.verb)) for node in piece.arguments), strict=False))
    for keyword in piece.keywords:
        if keyword.arg not in names:
            raise RemoterError(f"`{piece.verb}` has no argument `{keyword.arg}`")
        found[keyword.arg] = _literal(keyword.value, str(piece.verb))
    return found


def caller_namespace() -> dict[str, Any]:
    """The names of the program that called us."""
    return sys.modules["__main__"].__dict__
