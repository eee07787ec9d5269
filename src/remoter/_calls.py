"""What the prompt asks the session about typed text, and its own calls; on the client's machine, in the main thread.

`Calls.names` alone is called in a thread of its own.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import _verbs
from ._errors import RemoterError, TransferError, render
from ._paper import columns, label
from ._verbs import Cargo, Marked, Piece
from ._visits import HISTORY_LIMIT, read_until

if TYPE_CHECKING:
    from ._prompt import Prompt

DECISION = 0.12  # seconds in which the session may say whether input is complete
NAMES_DEADLINE = 4.0  # seconds for completion, in the background
SHADOW_DEADLINE = 2.0  # seconds for asking whether the session has a name of its own
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

        What one line of plain Python says needs no question: it is complete in any version.
        """
        here = _verbs.judge(code) if self._prompt.language == "python" else ("complete", "")
        if self._prompt.language == "python" and here[0] == "complete" and "\n" not in code.strip():
            return here
        if self._prompt.silence.since is not None:
            return here
        try:
            reply = self._prompt.session._query("is_complete", code=code, timeout=deadline)
        except (RemoterError, TimeoutError):
            return here
        status = str(reply.get("status") or here[0])
        if status == "incomplete" and here[0] == "complete" and not code.rsplit("\n", 1)[-1].strip():
            return here  # a blank line ends a block here, whatever the session thinks
        return status, here[1] if here[0] == "incomplete" else str(reply.get("indent") or "")

    def names(self, code: str, cursor: int) -> list[tuple[int, str, str]]:
        found: list[tuple[int, str, str]] = []
        start_of_word = cursor - len((re.findall(r"\w*$", code[:cursor]) or [""])[0])
        word, before = code[start_of_word:cursor], code[:start_of_word]
        if word and not before.rpartition("\n")[2].strip() and self._prompt.language == "python":
            found = [(start_of_word, f"{verb}(", "here") for verb in _verbs.VERBS if verb.startswith(word)]
        if self._prompt.silence.since is not None:
            return found
        reply = self._prompt.session._query("complete", code=code, cursor=cursor, timeout=NAMES_DEADLINE)
        matches = list(reply.get("matches") or ())
        kinds = list(reply.get("types") or ()) + [""] * len(matches)
        start = int(reply.get("start", cursor))
        return found + [
            (start, str(match), str(kind or "")) for match, kind in zip(matches, kinds, strict=False)
        ]

    def is_shadowed(self, verb: str) -> bool:
        """Whether the user's session has such a name of its own: then that one runs. Said once."""
        if self._prompt.silence.since is not None:
            return False
        try:
            variables = (
                self._prompt.session._query("variables", timeout=SHADOW_DEADLINE).get("variables") or ()
            )
        except (RemoterError, TimeoutError):
            return False
        leavers = ("Quitter", "ExitAutocall", "ZMQExitAutocall")
        if not any(each.get("name") == verb and each.get("type") not in leavers for each in variables):
            return False
        if verb not in self._said:
            self._said.add(verb)
            self._prompt.say(
                f"`{verb}` is a name of your session, so it runs there; `del {verb}` gives this prompt's back"
            )
        return True

    def do(self, piece: Piece) -> bool:
        match piece.verb:
            case "exit" | "quit" | "shutdown":
                return self._leave(piece)
            case "is_secure":
                self._say_here(str(bool(self._prompt.session.is_secure)))
            case "helpc":
                self._say_here(_verbs.HELP.format(host=self._prompt.host))
            case "showlog":
                return self._show_log()
            case "s2c" | "c2s" | "sendfile" | "recvfile":
                return not self._is_lost() and self._carry(piece)
            case _:
                return self._do_here(lambda: self._prompt.local.do(piece))
        return True

    def _leave(self, piece: Piece) -> bool:
        try:
            ends_session = _verbs.ends_session(piece)
        except RemoterError as error:
            self._prompt.write_line(render(error))
            return False
        if ends_session and not self._end_session():
            return False
        raise Leave

    def _say_here(self, text: str) -> None:
        self._prompt.write_local("".join(f"{_verbs.MARK}{line}\n" for line in text.splitlines()))

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
                begins_anew = any(keyword.arg == "resume" for keyword in piece.keywords)
                hint = "" if begins_anew else "the same call goes on where it was"
                return self._cross(lambda stream: self._copy_files(piece, stream), hint)

    def _cross(self, action: Callable[[Marked], None], hint: str = "") -> bool:
        """What may fail here, or take long and be cancelled."""

        def cancellable(stream: Marked) -> None:
            try:
                action(stream)
            except KeyboardInterrupt:
                if sys.stdin is not None and sys.stdin.isatty():
                    self._prompt.write("\n")  # after the `^C` that the terminal shows
                raise TransferError("cancelled", hints=hint or (), id="cancelled") from None

        return self._do_here(lambda: self._prompt.local.attempt(cancellable))

    def _bring_object(self, piece: Piece) -> bool:
        """`s2c`. An expression is evaluated as if it had been typed: it prints, asks and is interrupted."""
        try:
            cargo = self._check_cargo(piece)
        except RemoterError as error:
            self._say_here(render(error))
            return False
        transfer, source = os.urandom(8).hex(), ast.unparse(cargo.source)
        is_name = isinstance(cargo.source, ast.Name)
        if not is_name and not self._evaluate_there(source, transfer):
            return False
        return self._cross(lambda stream: self._bind(cargo.name, transfer, source, is_name, stream))

    def _check_cargo(self, piece: Piece) -> Cargo:
        """What `s2c` is to bring, under a name that it may have here. Raises RemoterError."""
        from ._objects import check_name
        from ._values import describe

        cargo, names = _verbs.cargo(piece), self._prompt.local.namespace
        name = check_name(cargo.name)
        if name in names and not cargo.overwrite:
            raise TransferError(
                f"`{name}` is here already",
                cause=f"it is `{describe(names[name])}`",
                hints="leave `overwrite=False` out, or give another name",
                id="exists",
            )
        return dataclasses.replace(cargo, name=name)

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

    def _bind(self, name: str, transfer: str, source: str, is_name: bool, stream: Marked) -> None:
        from ._values import describe, size_in_words

        value, size = self._prompt.session._crossing.pull_asking(transfer, source, self._ask, is_name=is_name)
        names = self._prompt.local.namespace
        replaced = f"; replaced {describe(names[name])}" if name in names else ""
        names[name] = value  # only now: what is cut off on the way changes nothing here
        # What has no bytes beside its description is too small to tell.
        sized = f", {size_in_words(size)}" if size else ""
        stream.write(f"{name}: {describe(value)}{sized}{replaced}\n")

    def _ask(self, question: str, hidden: bool) -> str | None:
        """Whoever sits here. To have no answer, Ctrl-D and Ctrl-C, is to say no."""
        try:
            with self._prompt.face.keys_aside():  # a line that was typed ahead is no answer
                return self._prompt.read_answer(question, hidden=hidden)
        except (EOFError, KeyboardInterrupt):
            return None

    def _send_object(self, piece: Piece, stream: Marked) -> None:
        from ._objects import check_name

        cargo = _verbs.cargo(piece)
        name = check_name(cargo.name)
        value = self._prompt.local.value(cargo.source, stream)
        stream.write(f"{self._prompt.session.push(name, value, overwrite=cargo.overwrite)}\n")

    def _copy_files(self, piece: Piece, stream: Marked) -> None:
        from ._errors import printable

        path, to, options = _verbs.paths(piece)
        session = self._prompt.session
        copied = (session.upload if piece.verb == "sendfile" else session.download)(path, to, **options)
        for problem in copied.problems:
            stream.write(f"error: {printable(problem)}\n")
        stream.write(f"{copied}\n")
        if copied.problems:
            raise TransferError("not all of it has crossed", id="problems")

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
