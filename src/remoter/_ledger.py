"""What a session's journal adds up to: its runs, asks and interpreter; in the server's process.

The ledger is a fold over the journal: every change of it is made by applying an event that is
in the journal, when it happens and again when a restarted server reads the journal. So the two
can never disagree, and nothing needs to be saved beside the journal but a snapshot of the ledger
at the head of each segment, for the time when older segments are gone.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ._messages import Event, RunId, Status, Submit

KEPT_CLIENTS = 1000
KEPT_RUNS = 200


class RunRecord(msgspec.Struct):
    """A run that has not ended: waiting, or (the first one) perhaps running."""

    id: RunId
    number: int
    submit: Submit
    status: Status = "queued"
    started: float | None = None


class Ledger(msgspec.Struct):
    """The state of one session.

    `number` counts runs over all clients, `frame` the frames of the present worker;
    `last` and `recent` say, by client, which runs were accepted and what became of them;
    `settled` is when the present state began, if nothing runs.
    """

    session: str = ""
    worker: dict[str, Any] = {}
    number: int = 0
    frame: int = 0
    live: list[RunRecord] = []
    last: dict[str, int] = {}
    recent: dict[str, dict[int, Status]] = {}
    asks: dict[int, Event] = {}
    settled: float = 0.0

    @property
    def current(self) -> RunRecord | None:
        """The run that the worker has."""
        return self.live[0] if self.live and self.live[0].status == "running" else None

    @property
    def waiting(self) -> RunRecord | None:
        """The run whose turn it is, when no other runs."""
        return self.live[0] if self.live and self.live[0].status == "queued" else None

    def find(self, run: RunId) -> RunRecord | None:
        """The live run of that id."""
        return next((record for record in self.live if record.id == run), None)

    def apply(self, event: Event) -> None:
        """Take one journaled event into account."""
        data = event.data or {}
        if event.frame:
            self.frame = event.frame
        if event.kind in ("done", "died") or data.get("about") == "started":
            self.settled = event.time
        match event.kind:
            case "queued":
                self._queue(event, data)
            case "busy" if event.run is not None and (record := self.find(event.run)):
                record.status, record.started = "running", event.time
                self._remember(event.run, "running")
            case "done" if event.run is not None:
                self.live = [record for record in self.live if record.id != event.run]
                self.asks = {ask: asked for ask, asked in self.asks.items() if asked.run != event.run}
                self._remember(event.run, data["status"])
            case "ask":
                self.asks[data["id"]] = event
            case "died":
                self.session, self.worker, self.frame, self.asks = "", {}, 0, {}
            case "notice" if data.get("about") == "started":
                self.session, self.worker, self.frame = data["session"], data, 0
            case "notice" if data.get("about") == "answered":
                self.asks.pop(data["id"], None)

    def _queue(self, event: Event, data: dict[str, Any]) -> None:
        assert event.run is not None
        client, n = event.run
        options = {key: value for key, value in data.items() if key not in ("number", "label")}
        submit = Submit(n=n, session=self.session, code=event.text or "", **options)
        self.number = data["number"]
        self.live.append(RunRecord(id=(client, n), number=self.number, submit=submit))
        # Moved to the end: the dictionaries are in the order of last use, and the oldest goes.
        self.last.pop(client, None)
        self.last[client] = n
        self.recent[client] = self.recent.pop(client, {})
        while len(self.last) > KEPT_CLIENTS:
            oldest = next(iter(self.last))
            del self.last[oldest]
            self.recent.pop(oldest, None)
        self._remember((client, n), "queued")

    def _remember(self, run: RunId, status: Status) -> None:
        runs = self.recent.setdefault(run[0], {})
        runs[run[1]] = status
        while len(runs) > KEPT_RUNS:
            del runs[next(iter(runs))]


def queued_data(number: int, submit: Submit) -> dict[str, Any]:
    """What the `queued` event of a submission holds beside its code."""
    options = msgspec.to_builtins(submit)
    for key in ("type", "n", "session", "code"):
        options.pop(key, None)
    return {"number": number, **options}


def encode_snapshot(ledger: Ledger) -> bytes:
    """The ledger, for the head of a segment."""
    return msgspec.msgpack.encode(ledger)


def decode_snapshot(data: bytes) -> Ledger:
    """The ledger as it was at the head of a segment."""
    return msgspec.msgpack.decode(data, type=Ledger)
