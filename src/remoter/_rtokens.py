"""R code in tokens, where its statements end, and whether it is whole; on the client's machine, in the prompt's process.

The session's own parser has the last word on what is whole. This is for the time when it does not
answer, and for telling the prompt's calls from code: both need tokens, for a string, a comment or a
function body may well contain a line `q()`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal[
    "space",
    "newline",
    "comment",
    "string",
    "name",
    "number",
    "operator",
    "bracket",
    "separator",
    "error",
    "open",
]
"""`open` is a string that does not end, `error` what no R code has outside of strings and comments."""

Status = Literal["complete", "incomplete", "invalid"]

INDENT = 2

_BLANK = " \t\f\u1680\u2000-\u2006\u2008-\u200a\u205f\u3000"
_TOKEN = re.compile(
    rf"""
    (?P<space>[{_BLANK}]+)
  | (?P<newline>\n)
  | (?P<comment>\#[^\n]*)
  | (?P<raw>[rR](?P<quote>["'])(?P<dashes>-*)(?P<bracket>[(\[{{]))
  | (?P<malformed>[rR]["'])
  | (?P<string>"(?:[^"\\]|\\.)*+" | '(?:[^'\\]|\\.)*+')
  | (?P<backticks>`(?:[^`\\]|\\.)*+`)
  | (?P<open>["'`])
  | (?P<number>
        0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)(?:[pP][+-]?[0-9]+)?[Li]?
      | (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[Li]?)
  | (?P<name>(?:[^\W\d_]|\.(?![0-9]))[\w.]* | _(?!\w))
  | (?P<operator>%[^%\n]*% | ->>? | <<?- | \|> | \|\|? | &&? | :::? | [:<>=!]= | \*\* | [-+*/^<>=!?~:$@\\])
  | (?P<brackets>\[\[ | [(\[{{)\]}}])
  | (?P<separator>[,;])
    """,
    re.VERBOSE | re.DOTALL,
)
_KINDS: dict[str, Kind] = {
    "name": "name",
    "space": "space",
    "operator": "operator",
    "separator": "separator",
    "brackets": "bracket",
    "newline": "newline",
    "number": "number",
    "comment": "comment",
    "backticks": "name",
    "malformed": "error",
}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_UNARY = ("-", "+", "!", "~", "?")
_PICKING = ("$", "@", "::", ":::")
"""What follows these is a name, and not yet an operand of its own."""
_HEADED = ("if", "while", "for", "function", "\\")
"""What has something in parentheses behind it, and then an expression."""


class Token(NamedTuple):
    """A piece of the text; all pieces together are the text."""

    kind: Kind
    text: str
    start: int

    @property
    def end(self) -> int:
        """Where the next one starts."""
        return self.start + len(self.text)

    @property
    def is_blank(self) -> bool:
        """Whether it is only there for people."""
        return self.kind in ("space", "newline", "comment")


def tokens(code: str) -> Iterator[Token]:
    """The tokens of a text, of any text."""
    position = 0
    while position < len(code):
        token = _token(code, position)
        yield token
        position = token.end


def _token(code: str, start: int) -> Token:
    found = _TOKEN.match(code, start)
    if found is None or found.lastgroup is None:
        return Token("error", code[start], start)
    if found["raw"]:
        close = _CLOSING[found["bracket"]] + found["dashes"] + found["quote"]
        end = code.find(close, found.end())
        return Token("open", code[start:], start) if end < 0 else _string(code, start, end + len(close))
    if found["open"]:
        return Token("open", code[start:], start)
    if found["string"]:
        return _string(code, start, found.end())
    return Token(next(kind for group, kind in _KINDS.items() if found[group]), found[0], start)


def _string(code: str, start: int, end: int) -> Token:
    return Token("string", code[start:end], start)


# --- statements --------------------------------------------------------------------------------


@dataclass
class _Frame:
    """What is open: the whole text, or a bracket.

    Attributes:
        bracket: how it was opened; empty: the whole.
        use: what the bracket is for: a `block`, a `group`, the arguments of a `call`, or the word whose head it is.
        expects: whether an expression is to come.
        is_fresh: nothing has come yet since the beginning or the last separator.
        ifs: how many `if` of this statement may still get an `else`.
        has_ended: a newline has ended a statement in a block, unless an `else` follows.
        head: the word that waits for its parentheses.
        last: the last token.
        opened: where the bracket is.
        owner: where the `function` or `if` is that the block is the body of.
        heading: where the word is whose head came last.
        began: where the statement or argument begins; where the last one began, behind a separator.
    """

    bracket: str = ""
    use: str = "block"
    expects: bool = True
    is_fresh: bool = True
    ifs: int = 0
    has_ended: bool = False
    head: str = ""
    last: str = ""
    opened: int = 0
    owner: int = 0
    heading: int = 0
    began: int | None = None

    def begin(self) -> None:
        """Behind a separator."""
        self.expects = self.is_fresh = True
        self.last = ""

    @property
    def is_whole(self) -> bool:
        """Whether it may be closed, or separated, here."""
        if self.head:
            return False
        if not self.expects:
            return True
        if self.use in ("call", "[", "function"):
            return self.is_fresh or self.last == "="
        return self.use == "block" and self.is_fresh


@dataclass
class Reading:
    """What a text is.

    Attributes:
        statements: the tokens of each statement at top level, from its first to its last.
        status: whether it is whole.
        indent: how many blanks the next line begins with, if it is incomplete.
    """

    statements: list[list[Token]] = field(default_factory=list)
    status: Status = "complete"
    indent: int = 0


class _Invalid(Exception):
    """No R code goes on like this."""


class _Reader:
    """Reads tokens as R's grammar does, as far as statements are concerned."""

    def __init__(self) -> None:
        self.frames = [_Frame()]
        self.statements: list[list[Token]] = []
        self._current: list[Token] = []
        self._after: list[Token] = []  # blanks, which belong to the statement if it goes on

    def take(self, token: Token) -> None:
        """The next token. Raises _Invalid."""
        frame = self.frames[-1]
        if token.kind == "newline":
            self._end_line(frame)
        if token.is_blank:
            self._after.append(token)
            return
        is_end = token.text == ";"
        if is_end:
            self._separate(frame)
        if not is_end or frame.bracket:
            if self._current:
                self._current += self._after
            self._after = []
            self._current.append(token)
        if not is_end:
            self._read(frame, token)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is open and nothing is to come."""
        return len(self.frames) == 1 and self.frames[0].is_whole

    def finish(self) -> None:
        """A statement at top level ends here."""
        if self._current:
            self.statements.append(self._current)
        self._current, self._after = [], []

    def _end_line(self, frame: _Frame) -> None:
        _need(frame.last not in ("::", ":::") and frame.head != "\\")  # these go on in their own line
        if frame.use != "block" or frame.expects or frame.head:
            return
        frame.begin()
        frame.has_ended = True
        if not frame.bracket:
            frame.ifs = 0
            self.finish()

    def _separate(self, frame: _Frame) -> None:
        """At a semicolon."""
        _need(frame.use == "block" and frame.is_whole and (bool(frame.bracket) or not frame.is_fresh))
        frame.begin()
        frame.ifs, frame.has_ended = 0, False
        if not frame.bracket:
            self.finish()

    def _read(self, frame: _Frame, token: Token) -> None:
        text, kind = token.text, token.kind
        _need(kind != "error" and (not frame.head or text == "("))
        _need(frame.last not in _PICKING or kind in ("name", "string"))
        if text in (")", "]", "}"):
            self._close(text)
            return
        if text == ",":
            _need(frame.use in ("call", "[", "function") and frame.is_whole)
            frame.begin()
            frame.ifs = 0
            return
        if frame.has_ended and text != "else":
            frame.ifs = 0
        if frame.is_fresh and text != "else":
            frame.began = token.start
        if kind == "bracket":
            self._open(frame, token)
        elif text == "else":
            _need(frame.ifs > 0 and (not frame.expects or frame.has_ended))
            frame.ifs -= 1
            frame.expects = True
        elif text in _HEADED:
            _need(frame.expects)
            frame.head, frame.heading = text, token.start
            frame.ifs += text == "if"
        elif kind == "operator" or (text == "in" and frame.use == "for"):
            _need(not frame.expects or text in _UNARY)
            frame.expects = True
        else:
            _need(frame.expects and text != "in")
            frame.expects = text == "repeat"
        frame.is_fresh = frame.has_ended = False
        frame.last = text

    def _open(self, frame: _Frame, token: Token) -> None:
        if token.text == "(" and frame.head:
            use = "function" if frame.head == "\\" else frame.head
        elif token.text == "(":
            use = "group" if frame.expects else "call"
        elif token.text == "{":
            _need(frame.expects)
            use = "block"
        else:
            _need(not frame.expects)
            use = "["
        is_body = use == "block" and frame.last == ")"  # of what has just had its head
        owner = frame.heading if is_body else token.start
        # `[[` is closed by two brackets.
        self.frames.extend(
            _Frame(bracket, use=use, opened=token.start, owner=owner) for bracket in token.text
        )

    def _close(self, text: str) -> None:
        frame = self.frames.pop()
        _need(_CLOSING.get(frame.bracket) == text and frame.is_whole)
        outer = self.frames[-1]
        outer.expects = bool(outer.head)
        outer.head, outer.last, outer.is_fresh = "", text, False


def _need(condition: bool) -> None:
    if not condition:
        raise _Invalid


def read(code: str) -> Reading:
    """Read a text: its statements, and whether it is whole."""
    reader = _Reader()
    try:
        for token in tokens(code):
            if token.kind == "open":
                return Reading(reader.statements, "incomplete")
            reader.take(token)
    except _Invalid:
        return Reading(status="invalid")
    if reader.is_whole:
        reader.finish()
        return Reading(reader.statements)
    return Reading(reader.statements, "incomplete", _indent(code, reader.frames[-1]))


def _indent(code: str, frame: _Frame) -> int:
    """Behind what is open: a step further in than the line that opened it; otherwise as the line before."""
    has_operator = frame.expects and not frame.is_fresh
    if frame.head or has_operator:
        return _indent_at(code, frame.began or 0) + INDENT
    if frame.is_fresh and frame.began is not None and "\n" in code[frame.opened : frame.began]:
        return _indent_at(code, frame.began)
    return _indent_at(code, _opening(code, frame)) + INDENT


def _opening(code: str, frame: _Frame) -> int:
    """Where that was opened: a block at its `function` or `if`, unless its brace stands on a line of its own."""
    line = code[code.rfind("\n", 0, frame.opened) + 1 : frame.opened]
    return frame.owner if line.strip() else frame.opened


def _indent_at(code: str, position: int) -> int:
    """How far the line in which that position is stands in."""
    line = code[code.rfind("\n", 0, position) + 1 :]
    return len(line) - len(line.lstrip(" "))


def split(text: str) -> list[str]:
    """Lines of code, cut where a prompt would have run what was entered so far; together they are the text."""
    pieces, start, reader = [], 0, _Reader()
    for token in tokens(text):
        try:
            reader.take(token)
        except _Invalid:
            reader = _Reader()  # R says so at the end of that line, and goes on with the next
        if token.kind == "newline" and reader.is_whole:
            pieces.append(text[start : token.end])
            start = token.end
    return [*pieces, text[start:]] if text[start:] else pieces
