"""`remoter cp`: files and folders to and from sessions; on the client's machine, in the shell's process.

A word of its command line is a path here, or `ADDRESS:PATH`, a path in a session. Both an address
and a path may hold colons, so the rule is: the address is what stands before the last `:` before
which an address stands. `big:data.csv`, `big:55555:data.csv`, `[fe80::1]:55555:data.csv`,
`ssh://big/main:data.csv`; and `big:a:b` is the path `a:b`, since no address is `big:a`. What exists
here under the whole word is meant by it, and what has a `/` before its first colon never is an address.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _progress
from ._address import parse
from ._copy import Copied, Options, download, download_stream, upload, upload_stream
from ._errors import AddressError, TransferError, render
from ._progress import Watch
from ._ssh_errors import escape
from ._usage import Target, Usage, as_typed, tell
from ._values import size_in_words

if TYPE_CHECKING:
    from ._client import Session

STREAM = "-"
"""Standard input as a source, standard output as a destination."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DRIVE = re.compile(r"[A-Za-z]:")

TYPED = {
    "`overwrite=True`": "`--overwrite`",
    "`update=True`": "`--update`",
    "`resume=False`": "`--no-resume`",
    '`symlinks="keep"`': "`--symlinks keep`",
}
"""What errors name as Python spells it, and how this command does."""


@dataclass(frozen=True)
class Place:
    """What a word means: a path here, or in the session that `address` means (empty: my one session here)."""

    path: str
    address: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether it is in a session."""
        return self.address is not None

    @property
    def is_stream(self) -> bool:
        """Whether it is standard input or output."""
        return self.path == STREAM and not self.is_there


def find_place(word: str, *, is_windows: bool = os.name == "nt") -> Place:
    """What a word of the command line means.

    Raises:
        AddressError: it begins with an address that cannot be meant.
        Usage: it is an address, and no path.
    """
    scheme = _SCHEME.match(word)
    if scheme is None and (os.path.lexists(word) or (is_windows and _DRIVE.match(word))):
        return Place(word)
    colons = [
        colon.start() for colon in re.finditer(":", word) if scheme is None or colon.start() >= scheme.end()
    ]
    for colon in reversed(colons):
        with contextlib.suppress(AddressError):
            parse(word[:colon])
            return Place(word[colon + 1 :], word[:colon])
    if scheme is not None:
        raise _no_path(word)
    head = word.partition(":")[0]
    if colons and "@" in head and "/" not in head:
        raise AddressError(
            f"`{word}` names a user, which only ssh knows",
            hints=[f"write `ssh://{word}`", f"or `./{word}` for a file here"],
        )
    return Place(word)


def _no_path(word: str) -> Exception:
    """What is wrong with a word that begins as an address does, and has no path after one."""
    try:
        parse(word)
    except AddressError as error:
        hints = [
            *error.hints,
            "a path stands behind a colon: `ssh://big:data.csv`, `ssh://big/main:/tmp/data.csv`",
        ]
        return AddressError(error.message, cause=error.cause, hints=hints)
    return Usage(
        f"`{word}` is an address, and no path follows it",
        f"`{word}:PATH`, or `{word}:` for its working directory",
    )


@dataclass(frozen=True)
class Order:
    """What is to be copied where; checked."""

    sources: list[Place]
    to: Place


def find_order(words: tuple[str, ...], *, is_stdout_free: bool = True) -> Order:
    """What the words of the command line mean.

    Raises:
        Usage: they cannot be meant together.
        AddressError: one of them cannot be meant.
    """
    example = "`remoter cp big:data.csv .`, `remoter cp data.csv big:`"
    if len(words) < 2:
        raise Usage("`cp` takes what is to be copied, and where to", example)
    if "" in words:
        raise Usage(
            "a path is empty", "`.` is this directory, `big:` the working directory of the session `big`"
        )
    *sources, to = map(find_place, words)
    order = Order(sources, to)
    _check_directions(order, words, example)
    _check_streams(order, is_stdout_free)
    return order


def _check_directions(order: Order, words: tuple[str, ...], example: str) -> None:
    """One end here, the other in a session."""
    if order.to.is_there:
        for source, word in zip(order.sources, words, strict=False):
            if source.is_there:
                here = "FILE" if not source.path else Path(source.path).name or "FILE"
                raise Usage(
                    f"`{word}` and `{words[-1]}` are both in a session",
                    f"by way of this machine: `remoter cp {word} .`, then `remoter cp {here} {words[-1]}`",
                )
        return
    for source, word in zip(order.sources, words, strict=False):
        if not source.is_there:
            raise Usage(
                f"`{word}` and `{words[-1]}` are both on this machine",
                f"`cp` copies here; a path in a session is `NAME:PATH`: {example}",
            )


def _check_streams(order: Order, is_stdout_free: bool) -> None:
    """`-` is one file, and has to be called something there."""
    if any(source.is_stream for source in order.sources):
        if len(order.sources) > 1:
            raise Usage("`-` is one file, and there are others beside it", "copy it in a command of its own")
        if order.to.path in ("", ".", "..", "~") or order.to.path.endswith("/"):
            raise Usage(
                "what comes from standard input needs a name there",
                f"`remoter cp - {order.to.address}:{order.to.path}NAME`",
            )
    if order.to.is_stream:
        if len(order.sources) > 1:
            raise Usage("standard output takes one file", "copy one after the other")
        if not is_stdout_free:
            raise Usage(
                "`--json` and the file itself would both go to standard output", "leave one of them out"
            )


# --- doing it ----------------------------------------------------------------------------------


@dataclass
class Tally:
    """What has crossed so far, and what has not."""

    done: list[dict[str, Any]] = field(default_factory=list)

    @property
    def has_failures(self) -> bool:
        """Whether something did not cross."""
        return any(one["problems"] for one in self.done)

    def note(self, source: str, copied: Copied, *, is_alone: bool) -> None:
        """A source is through, perhaps not with all that is in it: that is said."""
        problems = [as_command(escape(problem)) for problem in copied.problems]
        self.done.append({"source": source, **dataclasses.asdict(copied), "problems": problems})
        for problem in problems:
            tell(f"error: {problem}" if is_alone else f"error: in `{source}`: {problem}")

    def note_failure(self, source: str, error: TransferError) -> None:
        """A source did not cross: the others may."""
        nothing = dataclasses.asdict(Copied(path=""))
        self.done.append({"source": source, **nothing, "path": None, "problems": [as_command(error.line)]})
        tell(as_command(render(error)))

    def sentence(self) -> str:
        """`3 files, 12.4 MB in 1.2 s (10.3 MB/s), 2 skipped`."""
        files, size, skipped, elapsed = (
            sum(one[name] for one in self.done) for name in ("files", "bytes", "skipped", "elapsed")
        )
        text = f"{files:,} file{'s' if files != 1 else ''}, {size_in_words(size)} in {elapsed:.1f} s"
        if elapsed >= 0.05 and size:
            text += f" ({size_in_words(size / elapsed)}/s)"
        if skipped:
            text += f", {skipped:,} skipped"
        return ", ".join([text, *filter(None, [self.left_out()])])

    def left_out(self) -> str:
        """`2 symbolic links left out`; empty: none."""
        links = sum(one["links"] for one in self.done)
        return f"{links:,} symbolic link{'s' if links != 1 else ''} left out" if links else ""


def copy(
    order: Order, reach: Callable[[str], Target], options: Options, *, quiet: bool = False
) -> tuple[int, list[dict[str, Any]]]:
    """Copy; say on standard error what did not cross. Returns the exit code, and for each source what came of it.

    Args:
        order: from where to where.
        reach: what an address means.
        options: how.
        quiet: no bar, and no word when all is well.

    Raises:
        RemoterError: a session was not reached, or was lost for good.
    """
    tally = Tally()
    sessions: dict[str, Session] = {}
    with contextlib.ExitStack() as stack:
        for source in order.sources:
            address = order.to.address if order.to.address is not None else source.address or ""
            if address not in sessions:
                sessions[address] = stack.enter_context(reach(address).connect())
            try:
                with contextlib.nullcontext(False) if quiet else Bar(_label(source)) as bar:
                    copied = _carry(sessions[address], source, order, options, bar)
            except TransferError as error:
                tally.note_failure(source.path, error)
            except KeyboardInterrupt:
                is_kept = options.resume and not (source.is_stream or order.to.is_stream)
                tell("\ninterrupted" + ("; the same command goes on where it was" if is_kept else ""))
                return 130, tally.done
            else:
                tally.note(source.path, copied, is_alone=len(order.sources) == 1)
    said = tally.sentence() if sys.stderr.isatty() else tally.left_out()
    if said and not quiet:
        tell(said)
    return (1 if tally.has_failures else 0), tally.done


class Bar(_progress.Bar):
    """The bar, without the line that it would leave: one line is said of all that was copied."""

    def __exit__(self, *exception: object) -> None:
        self._end("", went_well=False)


def _label(source: Place) -> str:
    if source.is_stream:
        return "standard input"
    return source.path.rstrip("/").rpartition("/")[2] or source.path or "files"


def _carry(session: Session, source: Place, order: Order, options: Options, bar: Watch | bool) -> Copied:
    """One source to its destination."""
    path, to = source.path or ".", order.to.path
    if len(order.sources) > 1 and to and not to.endswith("/"):
        to += "/"  # a folder, or several would be put in one place
    output: StandardOutput | None = None
    if source.is_stream:
        work = partial(upload_stream, file=standard_input(), to=to, options=options)
    elif order.to.is_stream:
        output = StandardOutput()
        work = partial(download_stream, path=path, file=output, options=options)
    elif order.to.is_there:
        work = partial(upload, path=path, to=to or None, options=options)
    else:
        work = partial(download, path=path, to=to, options=options)
    try:
        copied: Copied = session._crossing.carry(os.urandom(8).hex(), _label(source), work, False, bar, None)
    except TransferError:
        if output is not None and output.is_unread:
            raise BrokenPipeError from None  # `| head` has what it wants
        raise
    return copied


# Both are without a buffer: the transfer's thread may be blocked in them when Ctrl-C ends the
# process, and what has a buffer has a lock that the interpreter's own end would wait for.


def standard_input() -> io.FileIO:
    """Standard input, to be read to its end."""
    return io.FileIO(0, "rb", closefd=False)


class StandardOutput(io.FileIO):
    """Standard output; knows when nobody reads it any more."""

    def __init__(self) -> None:
        super().__init__(1, "wb", closefd=False)
        self.is_unread = False

    def write(self, data: Any) -> int:
        """All of it, however little the other end takes at a time."""
        rest = memoryview(data)
        try:
            while rest.nbytes:
                rest = rest[super().write(rest) :]
        except BrokenPipeError:
            self.is_unread = True
            raise
        return len(data)


def as_command(text: str) -> str:
    """The text of an error, with options where it names the arguments of functions."""
    text = as_typed(text)
    for words, typed in TYPED.items():
        text = text.replace(words, typed)
    return text
