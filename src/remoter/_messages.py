"""Every message between a client and a server, typed and documented; on both machines.

Each message is one ZeroMQ frame: a msgpack map with its `type`. `docs/protocol.md` is made
from the docstrings here (`scripts/protocol`), and a test fails where one is missing.

How the protocol grows: fields are only added, with defaults; names are never reused; a
message of an unknown type is skipped with a line in the log. What both ends can do is
settled in `attach` and `attached`: the protocol versions first, then features by name.
"""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal

import msgspec

from . import __version__, _errors
from ._errors import RemoterError, VersionError, printable

PROTOCOL = (1, 1)
"""The oldest and the newest protocol version that this program speaks."""

FEATURES: tuple[str, ...] = ("transfer",)
"""What this program can do beyond protocol version 1, by name."""

LONGEST_MESSAGE = 64 * 1024 * 1024
"""The largest message in bytes (MAXMSGSIZE): bounds what a stranger can make us allocate."""

LONGEST_CHUNK = 1024 * 1024
"""The most bytes of a stream that one message of a data connection holds."""

DATA_ROUTING_ID = 47
"""Bytes of the routing id of a data connection, and of no other: the door knows it by that."""

LONGEST_CODE = 32 * 1024 * 1024
"""The largest piece of code in bytes that a client sends."""

Kind = Literal[
    "queued", "busy", "stdout", "stderr", "result", "display", "error", "ask", "done", "died", "gap", "notice"
]
Status = Literal["queued", "running", "ok", "error", "interrupted", "died", "cancelled"]
RunId = tuple[str, int]
ClientId = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[!-~]+\Z")]
Label = Annotated[str, msgspec.Meta(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*\Z")]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One numbered thing that a session put out: an entry of its journal.

    What `text` and `data` hold, by `kind`:

    - `queued`: text = the code; data = the run's options (`Submit`), its `number` in the session, its client's `label`
    - `busy`: the run has started
    - `stdout`, `stderr`: text = what was printed
    - `result`: text = what a prompt shows of the value; data = its other forms by mime type
    - `display`: text = the plain form; data = all forms by mime type (pictures as bytes)
    - `error`: text = the traceback; data = `name`, `value`, and in R the `traceback`, its calls
    - `ask`: text = the prompt; data = `id`, `hidden`
    - `done`: data = `status`, `elapsed` in seconds, and `exit`, the code given to `sys.exit()`
    - `died`: text = how the interpreter ended; data = `signal` or `code`, and whether it is `replaced` by a new one
    - `gap`: data = `first`, `last`: numbers that are no longer kept
    - `notice`: text = what a person should know; data = `about`, a word, and what belongs to it

    `printed`: the text of this `result` or `error` came already, as `stdout` or `stderr`; it is not
    shown again. An R session prints its values so.

    `frame` is the number of the worker's frame that the event was made from: by it a restarted
    server knows what it has already written down.
    """

    seq: int
    kind: Kind
    time: float
    run: RunId | None = None
    client: str | None = None
    text: str | None = None
    data: dict[str, Any] | None = None
    printed: bool = False
    frame: int = 0


class Message(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="type"):
    """The common shape: a msgpack map whose `type` names the message."""


# --- client to server ------------------------------------------------------------------------


class Attach(Message, tag="attach"):
    """The first message of every connection: who comes, from where he reads on, what he sees.

    `client` is random and the same over all connections of one client; a second attach with
    it supersedes the first. `since` is the highest event number already processed: events
    after it follow; none means only what is yet to come. `journal` says of which journal
    that number is: if it is not the server's, everything kept follows. `all`: every client's events;
    otherwise those of its own runs, of no run, and of runs whose client is away. `reader`: a
    second connection of that client, which reads only and submits nothing. `label` names it to people.
    Ids have 1 to 64 printable ASCII characters, a label at most 300 and no control characters.
    """

    client: ClientId
    protocol: tuple[int, int]
    features: tuple[str, ...] = ()
    version: str = ""
    since: int | None = None
    journal: str | None = None
    all: bool = False
    reader: ClientId | None = None
    label: Label = ""


class Submit(Message, tag="submit"):
    """Run `code`. `n` counts this client's runs from 1; an `n` not above the last one is a
    repetition and is answered from the record, never run again. `session` names the
    interpreter that is meant: in another one the code is refused.

    `mode` is `prompt` (the value of the last expression is the result) or `script` (one
    top-level statement after the other, each value shown, stopping at the first error unless
    `keep_going`). `filename` is shown in tracebacks of a script. `width` is that of the
    submitter's terminal in columns, 0 where there is none; `color` allows ANSI sequences.
    `timer`: in a script, each statement is echoed with the time it took.
    `detached`: nobody waits for it, so it asks nobody. `keep`: the code is an expression, whose
    value is not shown but kept for the transfer of that id.
    """

    n: int
    session: str
    code: str
    mode: Literal["prompt", "script"] = "prompt"
    filename: str | None = None
    keep_going: bool = False
    timer: bool = False
    width: int = 0
    color: bool = False
    detached: bool = False
    keep: str = ""


class Acknowledge(Message, tag="acknowledge"):
    """All events up to `seq` were processed; more may be sent."""

    seq: int


class Interrupt(Message, tag="interrupt"):
    """Interrupt `run`; without one the current run, whoever started it. A queued run is cancelled."""

    id: int
    run: RunId | None = None


class Answer(Message, tag="answer"):
    """The answer to the ask `ask` of `run`; no text means end of file. The first one wins. It is not journaled.

    With no ask pending (`ask` 0) the text goes to the standard input of what the run started.
    """

    run: RunId
    ask: int
    text: str | None


class Query(Message, tag="query"):
    """A question that may be repeated; answered by `reply` with the same `id`, also while a command runs.

    - `info`: name, language, state (`busy`, and `since` when by the server's clock `now`), clients, `memory` of the interpreter in bytes, ...
    - `complete` (`code`, `cursor`): matches, with `start` and `end` in code points
    - `is_complete` (`code`): `status` complete, incomplete or invalid, and the `indent` to go on with
    - `inspect` (`code`): what the expression is
    - `variables`: name, type, shape, size and a short text of the session's own variables
    - `log`: the last 64 KiB of the server's own log
    - `restart`: a new interpreter; answers when it is there
    - `shutdown`: ends the session; answered before it does
    """

    id: int
    what: Literal["info", "complete", "is_complete", "inspect", "variables", "log", "restart", "shutdown"]
    code: str = ""
    cursor: int = 0


class Step(Message, tag="step"):
    """A step of the transfer `transfer`; may be repeated; answered by `reply` or `refused` with the same `id`.

    What crosses is settled here; its bytes, if they are more than 64 KiB, then go over a data
    connection that joins the transfer. `data`, and what the answer holds:

    - `find` (`name`): whether it is `found`, its `text`, and the `versions` of what the interpreter has
    - `remove` (`name`): nothing; the name is gone
    - `pull` (`name`, or none for the value that a run has kept; `pickle` allowed): the object's `tree`,
      the `sizes` of its buffers, `type`, `text`, `is_pickle`, `versions`, and the buffers as `inline` if they
      are few
    - `push` (`name`, `tree`, `sizes`, `overwrite`, `inline`): `ready`; or, as in `done` at the end of the
      stream, the `name`, a `text` and what was `replaced`
    - `read`, `write`, `select`: files and folders, as `_steps.py` has it
    - `release`: the transfer is over, or given up
    """

    id: int
    transfer: ClientId
    what: str
    data: dict[str, Any] = {}


class Ping(Message, tag="ping"):
    """Are you there? `id` comes back in the `pong`."""

    id: int


class Detach(Message, tag="detach"):
    """Goodbye; the session goes on, and others may answer what it asks."""


# --- server to client ------------------------------------------------------------------------


class Attached(Message, tag="attached"):
    """Admitted. `session` names the interpreter, `journal` the numbering of events (`first` to `last` are kept).

    `n` is the number of this client's last accepted run, `runs` what became of its recent
    ones, `asks` the events that still wait for an answer of this client.
    """

    protocol: int
    features: tuple[str, ...]
    version: str
    session: str
    journal: str
    first: int
    last: int
    n: int
    runs: dict[int, Status]
    info: dict[str, Any]
    asks: list[Event] = []


class Refused(Message, tag="refused"):
    """Something that was asked for is not done: which error it is, and its words.

    `error` is the name of a public error class. `n` or `id` name the submission or the query
    that is refused; neither means the connection.
    """

    error: str
    message: str
    cause: str | None = None
    hints: tuple[str, ...] = ()
    n: int | None = None
    id: int | None = None
    kind: str = ""


class Accepted(Message, tag="accepted"):
    """The run is in the journal: it will be run once, whatever happens to the client.

    Its `queued` event says the same; where that is sent first, this message is left out.
    """

    n: int
    status: Status


class Events(Message, tag="events"):
    """Events in order, each as it stands in the journal.

    A client that asked for less than all is told by `cursor` how far it is, past what was skipped.
    """

    events: list[msgspec.Raw] = []
    cursor: int = 0


class Reply(Message, tag="reply"):
    """The answer to the query `id`."""

    id: int
    data: dict[str, Any]


class Pong(Message, tag="pong"):
    """Here. `run` is the current one, `since` the server's time when it started; `clients` are attached.

    `session` names the interpreter; empty when it died.
    """

    id: int
    session: str
    clients: int
    run: RunId | None = None
    since: float | None = None
    now: float = 0.0


class Goodbye(Message, tag="goodbye"):
    """The server ends this connection: `superseded` by a newer one of the same client, or `shutdown`."""

    reason: str
    message: str = ""


# --- on a data connection, both ways ---------------------------------------------------------


class Join(Message, tag="join"):
    """The first message of a data connection, by the client: it carries that transfer, from now on.

    What is carried was settled before, on the control connection (`step`). A later connection of
    the same transfer takes the place of an earlier one.
    """

    transfer: ClientId
    protocol: tuple[int, int]


class Joined(Message, tag="joined"):
    """The server knows that transfer. Its stream has `size` bytes; `position` of them are there if it receives."""

    size: int
    position: int = 0


class Read(Message, tag="read"):
    """The receiver asks for a stretch of the stream; `compress`: the connection is slow enough for that."""

    offset: Annotated[int, msgspec.Meta(ge=0)]
    size: Annotated[int, msgspec.Meta(gt=0)]
    compress: bool = False


class Chunk(Message, tag="chunk"):
    """A piece of what was asked for, `size` bytes from `offset` on; they follow in a frame of their own.

    `digest` is the XXH3-128 of these bytes (big-endian), before they were `packed` by zstd.
    """

    offset: Annotated[int, msgspec.Meta(ge=0)]
    size: Annotated[int, msgspec.Meta(gt=0)]
    digest: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    packed: bool = False


class Done(Message, tag="done"):
    """The receiver has all and has put it in its place; `data` is what the sender should know of that."""

    data: dict[str, Any] = {}


FromClient = Attach | Submit | Acknowledge | Interrupt | Answer | Query | Step | Ping | Detach
FromServer = Attached | Refused | Accepted | Events | Reply | Pong | Goodbye
OnData = Join | Joined | Read | Chunk | Done | Refused

_encoder = msgspec.msgpack.Encoder()
_from_client = msgspec.msgpack.Decoder(FromClient)
_from_server = msgspec.msgpack.Decoder(FromServer)
_on_data = msgspec.msgpack.Decoder(OnData)
_event = msgspec.msgpack.Decoder(Event)


class MessageError(ValueError):
    """Bytes that are no message we know."""


def encode(message: msgspec.Struct) -> bytes:
    """The message or event as bytes."""
    return _encoder.encode(message)


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes | memoryview) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        # The words may repeat what was sent: one short line of it is enough for a log.
        raise MessageError(str(error)[:200].encode("unicode_escape").decode()) from None


def decode_from_client(data: bytes | memoryview) -> FromClient:
    """The client's message. Raises MessageError."""
    return typing.cast(FromClient, _decode(_from_client, data))


def decode_from_server(data: bytes | memoryview) -> FromServer:
    """The server's message. Raises MessageError."""
    return typing.cast(FromServer, _decode(_from_server, data))


def decode_on_data(data: bytes | memoryview) -> OnData:
    """A message of a data connection. Raises MessageError."""
    return typing.cast(OnData, _decode(_on_data, data))


def decode_event(data: bytes | memoryview) -> Event:
    """An event as it stands in the journal. Raises MessageError."""
    return typing.cast(Event, _decode(_event, data))


def common_protocol(theirs: tuple[int, int]) -> int | None:
    """The newest version that both ends speak."""
    newest = min(PROTOCOL[1], theirs[1])
    return newest if newest >= max(PROTOCOL[0], theirs[0]) else None


def members(union: types.UnionType) -> tuple[type[Message], ...]:
    """The messages of one direction, for the documentation."""
    return typing.get_args(union)


def error_of(refused: Refused) -> RemoterError:
    """The error that the server names, as ours; what a terminal would obey in its words is written out."""
    kind = getattr(_errors, refused.error, None)
    if not (isinstance(kind, type) and issubclass(kind, RemoterError)):
        kind = RemoterError
    return kind(
        printable(refused.message),
        cause=None if refused.cause is None else printable(refused.cause),
        hints=[printable(hint) for hint in refused.hints],
        id=printable(refused.kind) or None,
    )


def refused_of(error: RemoterError, **more: Any) -> Refused:
    """The error as it is told to the other end."""
    own = error.id if error.id != type(error).id else ""
    return Refused(
        error=type(error).__name__,
        message=error.message,
        cause=error.cause,
        hints=error.hints,
        kind=own,
        **more,
    )


def no_common_protocol(where: str, attached: Attached) -> RemoterError:
    """The error of a client that speaks no version that the server spoke."""
    return VersionError(
        f"no common protocol: here {PROTOCOL[0]} to {PROTOCOL[1]} (remoter {__version__}), "
        f"at {where} {attached.protocol} (remoter {attached.version})",
        hints="install the same version of remoter at both ends",
    )
