"""What the prompt asks the session about typed text, and its own calls; on the client's machine, in the main thread.

`Calls.names` alone is called in a thread of its own.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._errors import RemoterError, TransferError, printable, render
from ._language import MARK, Cargo, Marked, Piece
from ._paper import columns, label
from ._visits import HISTORY_LIMIT, read_until

if TYPE_CHECKING:
    from ._prompt import Prompt

DECISION = 0.12  # seconds in which the session may say whether input is complete
NAMES_DEADLINE = 15.0  # seconds for completion, in the background
SHADOW_DEADLINE = 15.0  # seconds for asking whether the session has a name of its own
LOG_LINES = 1000


class Leave(Exception):
    """The user leaves the prompt."""


class Calls:
    """The questions and calls of one prompt."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._said: set[str] = set()

    def decide(self, code: str, deadline: float = DECISION) -> tuple[str, str]:
        """Whether typed code is complete, and the indent to go on with; the session's word counts.

        One line of plain code needs no question: it is complete in any version.
        """
        language = self._prompt.language
        here = language.judge(code)
        if here[0] == "complete" and "\n" not in code.strip():
            return here
        if self._prompt.silence.since is not None:
            return here
        try:
            reply = self._prompt.session._query("is_complete", code=code, timeout=deadline)
        except (RemoterError, TimeoutError):
            return here
        status = str(reply.get("status") or here[0])
        is_ended = language.ENDS_BLOCKS and not code.rsplit("\n", 1)[-1].strip()
        if status == "incomplete" and here[0] == "complete" and is_ended:
            return here
        return status, here[1] if here[0] == "incomplete" else str(reply.get("indent") or "")

    def names(self, code: str, cursor: int) -> list[tuple[int, str, str]]:
        language = self._prompt.language
        found: list[tuple[int, str, str]] = []
        start_of_word = cursor - len((re.findall(f"{language.WORD}$", code[:cursor]) or [""])[0])
        word, before = code[start_of_word:cursor], code[:start_of_word]
        if word and not before.rpartition("\n")[2].strip():
            found = [(start_of_word, f"{verb}(", "here") for verb in language.VERBS if verb.startswith(word)]
        if self._prompt.silence.since is not None:
            return found
        reply = self._prompt.session._query("complete", code=code, cursor=cursor, timeout=NAMES_DEADLINE)
        matches = list(reply.get("matches") or ())
        kinds = list(reply.get("types") or ()) + [""] * len(matches)
        start = int(reply.get("start", cursor))
        mine = {text for _, text, _ in found}
        return found + [
            (start, str(match), str(kind or ""))
            for match, kind in zip(matches, kinds, strict=False)
            if match and match not in mine
        ]

    def is_shadowed(self, piece: Piece) -> bool:
        """Whether the user's session has such a name of its own: then that one runs. Said once."""
        if self._prompt.silence.since is not None:
            return False
        try:
            variables = (
                self._prompt.session._query("variables", timeout=SHADOW_DEADLINE).get("variables") or ()
            )
        except (RemoterError, TimeoutError):
            return False
        language, word = self._prompt.language, piece.name
        if not any(each.get("name") == word and language.shadows(piece, each) for each in variables):
            return False
        if word not in self._said:
            self._said.add(word)
            self._prompt.say(
                f"`{word}` is a name of your session, so it runs there; "
                f"`{language.FORGET.format(word)}` gives this prompt's back"
            )
        return True

    def do(self, piece: Piece) -> bool:
        match piece.verb:
            case "exit" | "quit" | "shutdown":
                return self._leave(piece)
            case "is_secure":
                self._say_here(self._prompt.language.TRUTH[bool(self._prompt.session.is_secure)])
            case "helpc":
                self._say_here(self._prompt.language.HELP.format(host=self._prompt.host))
            case "showlog":
                return self._show_log()
            case "s2c" | "c2s" | "sendfile" | "recvfile":
                return not self._is_lost() and self._carry(piece)
            case _:
                return self._do_here(lambda: self._prompt.local.do(piece))
        return True

    def _leave(self, piece: Piece) -> bool:
        try:
            ends_session = self._prompt.language.ends_session(piece)
        except RemoterError as error:
            self._prompt.write_line(render(error))
            return False
        if ends_session and not self._end_session():
            return False
        raise Leave

    def _say_here(self, text: str) -> None:
        self._prompt.write_local("".join(f"{MARK}{line}\n" for line in text.splitlines()))

    def _do_here(self, action: Callable[[], bool]) -> bool:
        """Code of the user on this side: the terminal and Ctrl-C are as usual for its time."""
        self._prompt.raising = True
        try:
            if self._prompt.keyboard() is None:
                return action()
            from ._keys import lines_again

            with lines_again(sys.stdin):
                return action()
        except KeyboardInterrupt:
            return False
        finally:
            self._prompt.raising = False

    # --- what crosses ------------------------------------------------------------------------

    def _carry(self, piece: Piece) -> bool:
        """An object or files from one side to the other; what came of it is said in one line."""
        match piece.verb:
            case "s2c":
                return self._bring_object(piece)
            case "c2s":
                return self._cross(lambda stream: self._send_object(piece, stream))
            case _:
                return self._copy(piece)

    def _cross(self, action: Callable[[Marked], None], hint: str = "") -> bool:
        """What may fail here, or take long and be cancelled."""

        def cancellable(stream: Marked) -> None:
            try:
                action(stream)
            except KeyboardInterrupt:
                raise TransferError("cancelled", hints=hint or (), id="cancelled") from None

        return self._do_here(lambda: self._prompt.local.attempt(cancellable))

    def _bring_object(self, piece: Piece) -> bool:
        """`s2c`. An expression is evaluated as if it had been typed: it prints, asks and is interrupted."""
        try:
            cargo = self._check_cargo(piece)
        except RemoterError as error:
            self._say_here(render(error))
            return False
        transfer = os.urandom(8).hex()
        if not cargo.is_name and not self._evaluate_there(cargo.text, transfer):
            return False
        session, local = self._prompt.session, self._prompt.local
        return self._cross(lambda stream: local.bring(session, cargo, transfer, self._ask, stream))

    def _check_cargo(self, piece: Piece) -> Cargo:
        """What `s2c` is to bring, under a name that it may have here. Raises RemoterError."""
        return self._prompt.local.expect(self._prompt.language.cargo(piece))

    def _evaluate_there(self, source: str, transfer: str) -> bool:
        """Have an expression's value kept for a transfer; be with that run like with any other."""
        prompt = self._prompt
        try:
            run = prompt.session._submit(source, width=columns(), color=prompt.color, keep=transfer)
        except RemoterError as error:
            prompt.write_line(render(error))
            return False
        prompt.label = label(source)
        return prompt._follow(run.id, run)

    def _ask(self, question: str, hidden: bool) -> str | None:
        """Whoever sits here. To have no answer, Ctrl-D and Ctrl-C, is to say no."""
        try:
            with self._prompt.face.keys_aside():  # a line that was typed ahead is no answer
                return self._prompt.read_answer(question, hidden=hidden)
        except (EOFError, KeyboardInterrupt):
            return None

    def _send_object(self, piece: Piece, stream: Marked) -> None:
        language = self._prompt.language
        cargo = language.cargo(piece)
        named = dataclasses.replace(cargo, name=language.check_name(cargo.name))
        self._prompt.local.send(self._prompt.session, named, stream)

    def _copy(self, piece: Piece) -> bool:
        """`sendfile`, `recvfile`."""
        try:
            path, to, options = self._prompt.language.paths(piece)
        except RemoterError as error:
            self._say_here(render(error))
            return False
        session = self._prompt.session
        copy = session.upload if piece.verb == "sendfile" else session.download
        hint = "" if "resume" in options else "the same call goes on where it was"
        return self._cross(lambda stream: _copy_files(lambda: copy(path, to, **options), stream), hint)

    # --- the end -----------------------------------------------------------------------------

    def _end_session(self) -> bool:
        """End the session; asks first when somebody would miss it. Says whether it is ended."""
        if self._is_lost():
            return False
        try:
            info = self._prompt.session._query("info")
        except RemoterError as error:
            self._prompt.write_line(render(error))
            return False
        name, others = info.get("name"), len(info.get("clients") or ()) - 1
        reasons = []
        if info.get("busy"):
            reasons.append(f"it is busy: {label(str(info.get('running') or ''))}")
        if others > 0:
            reasons.append(f"{others} other client{'s are' if others > 1 else ' is'} there")
        if reasons and not self._prompt.confirm(f"end `{name}`? {' and '.join(reasons)} [y/N] "):
            return False
        try:
            self._prompt.session.shutdown()
        except RemoterError as error:
            self._prompt.write_line(render(error))
            return False
        self._prompt.ended = "by us"
        self._prompt.say(f"ended `{name}`")
        self._prompt.paper.write()
        return True

    def _is_lost(self) -> bool:
        """Whether the session cannot be asked now; then that is said."""
        if self._prompt.silence.since is None:
            return False
        self._prompt.say(f"not now: {self._prompt.host} does not answer; Ctrl-D leaves")
        return True

    # --- asking ------------------------------------------------------------------------------

    def _show_log(self) -> bool:
        """What the session put out so far, in the session's own words: not marked as ours."""
        if self._is_lost():
            return False
        last = int((self._prompt.fresh_info().get("journal") or {}).get("last") or 0)
        try:
            log = read_until(self._prompt.session, max(0, last - HISTORY_LIMIT), last, LOG_LINES)
        except RemoterError as error:
            self._prompt.write_line(render(error))
            return False
        self._prompt.write("".join(f"{line}\n" for line in log.last_lines()))
        return True


def _copy_files(copy: Callable[[], Any], stream: Marked) -> None:
    """Copy, and say what came of it."""
    copied = copy()
    for problem in copied.problems:
        stream.write(f"error: {printable(problem)}\n")
    stream.write(f"{copied}\n")
    if copied.problems:
        raise TransferError("not all of it has crossed", id="problems")
