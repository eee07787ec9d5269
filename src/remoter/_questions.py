"""What ssh asks while a prompt is open: from its threads to the main thread, and to the person; on the client's machine.

ssh asks when the link was lost and a new login needs a password or a code. The person may be in
the midst of a line then, so he is told, and asked when he presses Enter on an empty one. While a
run is followed nothing is typed, and he is asked at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._ssh_errors import ASKS_AGAIN, escape

if TYPE_CHECKING:
    from ._prompt import Prompt
    from ._ssh import Ssh

AFTER_ANSWER = 10.0  # seconds in which ssh may ask on, or be back, before anything else is typed
TOO_LATE = 100.0  # seconds after which servers, as a rule, have given up on who logs in


@dataclass(eq=False)
class Question:
    """One question, until it is answered or nobody wants the answer any more."""

    text: str
    hidden: bool
    is_announced: bool = False
    since: float = field(default_factory=time.monotonic)
    answer: str | None = None
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        return self.over.is_set()


class Inbox:
    """Called by ssh's threads to ask (see `Askpass`); looked at by the main thread, which answers.

    Args:
        wake: wakes the main thread.
        is_well: whether the link is well again, so that nothing needs to be asked.
    """

    def __init__(self, wake: Callable[[], None], is_well: Callable[[], bool]) -> None:
        self._wake = wake
        self._is_well = is_well
        self._lock = threading.Lock()
        self._open: deque[Question] = deque()
        self._told: deque[str] = deque(maxlen=100)
        self._is_closed = False

    # --- in threads of ssh's -----------------------------------------------------------------

    def __call__(self, text: str, hidden: bool) -> str | None:
        """The person's answer, however long it takes; None: there will be none."""
        question = Question(text.rstrip("\n"), hidden)
        with self._lock:
            if self._is_closed or self._is_well():
                return None
            self._open.append(question)
        self._wake()
        question.over.wait()
        return question.answer

    def cancel(self) -> None:
        """Nobody wants the answers any more."""
        with self._lock:
            questions = list(self._open)
            self._open.clear()
        for question in questions:
            question.over.set()
        self._wake()

    def tell(self, text: str) -> None:
        """What ssh says beside its questions; that an answer was wrong we say ourselves when it asks again."""
        lines = [line.strip() for line in text.splitlines()]
        self._told.extend(escape(line) for line in lines if line and line != ASKS_AGAIN)
        self._wake()

    # --- in the main thread ------------------------------------------------------------------

    def first(self) -> Question | None:
        """The question that is next."""
        with self._lock:
            return self._open[0] if self._open else None

    def settle(self, question: Question, answer: str) -> None:
        """Answer it."""
        with self._lock:
            if question not in self._open:
                return  # too late
            self._open.remove(question)
        question.answer = answer
        question.over.set()

    def take_told(self) -> list[str]:
        """What ssh has said since the last time."""
        lines = []
        while self._told:
            lines.append(self._told.popleft())
        return lines

    def close(self) -> None:
        """There are no answers any more."""
        with self._lock:
            self._is_closed = True
        self.cancel()


class SshQuestions:
    """Puts ssh's questions to the person at one prompt; all in the main thread.

    Args:
        prompt: where he sits.
        ssh: who asks; None: nobody.
    """

    def __init__(self, prompt: Prompt, ssh: Ssh | None) -> None:
        self._prompt = prompt
        self._ssh = ssh
        self.inbox = Inbox(prompt.news.wake, lambda: prompt.session._link.state.state == "ok")
        self._is_busy = False
        if ssh is not None:
            ssh.asker, ssh.say = self.inbox, self.inbox.tell

    @property
    def are_open(self) -> bool:
        """Whether ssh waits for an answer."""
        return self.inbox.first() is not None

    def hint(self) -> str:
        """What stands under the typed line meanwhile."""
        return (
            "ssh asks something: Enter on an empty line to answer, Ctrl-D to leave" if self.are_open else ""
        )

    def announce(self) -> None:
        """Say that ssh asks something, if the person is in the midst of something else."""
        prompt, question = self._prompt, self.inbox.first()
        for line in self.inbox.take_told():
            prompt.say(f"ssh: {line}")
        if question is None or question.is_announced or self._is_busy or prompt.is_void is not None:
            return
        if prompt.following is None:
            prompt.say(f"ssh asks something, to come back to {prompt.host}: press Enter on an empty line")
        elif prompt.face.is_reading:
            prompt.say(f"ssh asks something, to come back to {prompt.host}: after this answer")
        else:
            return
        question.is_announced = True
        prompt.silence.note_known()

    def put(self) -> None:
        """Put the questions to the person, one after the other.

        While a run is followed he can do nothing else: he answers, or leaves.
        """
        prompt, answered = self._prompt, ("", False)
        self._is_busy = True
        try:
            while (question := self.inbox.first()) is not None:
                if question.text == answered[0]:
                    why = "that came too late" if answered[1] else "that was not accepted"
                    prompt.write_line(f"-- {why}; ssh asks again")
                answer = self._ask(question)
                if answer:
                    self.inbox.settle(question, answer)
                    answered = question.text, time.monotonic() - question.since > TOO_LATE
                    self._wait()
                elif prompt.following is None and not question.is_over:
                    prompt.say("not answered: Enter on an empty line asks again, Ctrl-D leaves")
                    return
                if prompt.hung_up or prompt.ended:
                    return
        finally:
            self._is_busy = False

    def _ask(self, question: Question) -> str | None:
        prompt = self._prompt
        prompt.paper.end_line()
        aside: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if prompt.following is not None:
            aside = prompt.face.keys_aside()
            if not question.is_announced:
                prompt.write_line(f"-- ssh asks, to come back to {prompt.host}; Ctrl-C offers to leave")
        question.is_announced = True
        prompt.silence.note_known()
        try:
            with aside:
                text = question.text.rstrip() + " "
                return prompt.read_answer(text, hidden=question.hidden, is_void=question.over.is_set)
        except EOFError:
            prompt.leave_it_running()
        except KeyboardInterrupt:
            if prompt.following is not None:
                prompt.offer_to_leave()
            return None

    def _wait(self) -> None:
        """After an answer: until we are back, or ssh asks on."""
        prompt, deadline = self._prompt, time.monotonic() + AFTER_ANSWER
        while time.monotonic() < deadline and prompt.silence.since is not None and not self.are_open:
            if prompt.pressed or prompt.hung_up or prompt.ended:
                break
            prompt.news.wait(0.2)
            prompt.take_and_write()

    def close(self) -> None:
        """The prompt is left: there are no answers any more."""
        if self._ssh is not None:
            self._ssh.asker, self._ssh.say = None, _say_nothing
        self.inbox.close()


def _say_nothing(text: str) -> None:
    """Nobody looks any more."""
