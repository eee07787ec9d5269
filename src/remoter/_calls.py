"""What the prompt asks the session about typed text, and its own calls; on the client's machine, in the main thread.

`Calls.names` alone is called in a thread of its own.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from . import _verbs
from ._errors import RemoterError, render
from ._paper import label
from ._verbs import Piece
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
                self._prompt.write_local(f"{_verbs.MARK}{bool(self._prompt.session.is_secure)}\n")
            case "helpc":
                text = _verbs.HELP.format(host=self._prompt.host)
                self._prompt.write_local("".join(f"{_verbs.MARK}{line}\n" for line in text.splitlines()))
            case "showlog":
                return self._show_log()
            case _:
                return self._do_here(piece)
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

    def _do_here(self, piece: Piece) -> bool:
        """Code of the user on this side: the terminal and Ctrl-C are as usual for its time."""
        self._prompt.raising = True
        try:
            if self._prompt.keyboard() is None:
                return self._prompt.local.do(piece)
            from ._keys import lines_again

            with lines_again(sys.stdin):
                return self._prompt.local.do(piece)
        except KeyboardInterrupt:
            return False
        finally:
            self._prompt.raising = False

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
