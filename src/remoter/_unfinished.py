"""What a client has sent and the server has not settled, to be sent again; in the client's process, loop thread.

A run is kept until it is in the journal, a question until it is answered, an answer until the run
is done. What arrives twice because of that is told apart by its number on the other side.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ._errors import LinkLostError, RemoterError
from ._messages import Attached, Event, RunId, Submit

# What is asked once more after a connection broke. The others are not harmless to repeat: "the
# current run" may be another by then.
REPEATABLE = {"info", "complete", "is_complete", "inspect", "variables", "log", "interrupt", "step"}


@dataclass
class Question:
    """A query or an interrupt, and who waits for its answer."""

    data: bytes
    future: Future[dict[str, Any]]
    what: str
    sent: bool = False

    def fail(self, error: RemoterError) -> None:
        """There is no answer, unless nobody waits any more."""
        if not self.future.cancelled():
            self.future.set_exception(error)


class Unfinished:
    """The submissions, questions and answers of one client."""

    def __init__(self, client: str, where: str) -> None:
        self.client, self.where = client, where
        self.submits: dict[int, tuple[Submit, bytes]] = {}
        self.questions: dict[int, Question] = {}
        self.answers: dict[tuple[RunId, int], bytes] = {}

    def note(self, event: Event) -> None:
        """What an event settles."""
        if event.run is not None and event.run[0] == self.client:
            self.submits.pop(event.run[1], None)
        if event.kind == "done" and self.answers:
            self.answers = {key: data for key, data in self.answers.items() if key[0] != event.run}

    def resend(
        self, attached: Attached, send: Callable[[bytes], None], refuse: Callable[[int, RemoterError], None]
    ) -> None:
        """Send over a new connection what the server has not taken over, as far as that is right."""
        for n, (submit, data) in sorted(self.submits.items()):
            if n <= attached.n:
                del self.submits[n]
            elif submit.session == attached.session:
                send(data)
            else:
                del self.submits[n]
                refuse(n, _interpreter_gone())
        for number, question in list(self.questions.items()):
            if question.future.cancelled():
                del self.questions[number]
            elif question.sent and question.what not in REPEATABLE:
                del self.questions[number]
                question.fail(self._unanswered())
            else:
                question.sent = True
                send(question.data)
        for event in attached.asks:
            key = (event.run or ("", 0), int((event.data or {}).get("id", 0)))
            if key in self.answers:
                send(self.answers[key])

    def fail(self, error: RemoterError) -> None:
        """Nothing of it will be settled; the runs' owner is told otherwise."""
        questions, self.questions = self.questions, {}
        for question in questions.values():
            question.fail(error)
        self.submits.clear()
        self.answers.clear()

    def _unanswered(self) -> RemoterError:
        return LinkLostError(
            f"the connection to {self.where} was lost before the answer came",
            cause="it may or may not have been done; it was not asked for twice",
        )


def _interpreter_gone() -> RemoterError:
    return LinkLostError(
        "the interpreter that this was meant for is gone",
        cause="the session was restarted while the connection was lost; nothing was run",
        hints="send it again if it is meant for the new one",
    )
