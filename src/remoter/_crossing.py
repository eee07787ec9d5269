"""What crosses between a `Session` and its session: which transfer a call makes, and who waits; in the client's process.

What moves data is loaded when some is moved: a client that only runs code starts faster without it.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from ._connection import Place
from ._errors import LinkLostError, RemoterError, TransferError, VersionError, printable
from ._link import Link
from ._run import AskPerson, Inbox, Run
from ._target import Target

if TYPE_CHECKING:
    from ._transfer import Carrier, Progress, Transfer

QUERY_TIMEOUT = 30.0
"""Seconds for an answer of the server."""

Format = Literal["pandas", "polars", "arrow", "numpy", "raw"]
ShowProgress = Callable[["Progress"], None] | bool | None
Source = str | os.PathLike[str]


class CopyOptions(TypedDict, total=False):
    """How files are copied; see `Session.upload`."""

    overwrite: bool
    update: bool
    resume: bool
    symlinks: Literal["skip", "keep"]
    compress: bool | None
    background: bool
    progress: ShowProgress


class Evaluate(Protocol):
    """Has the value of an expression kept for a transfer; unless `quiet`, waits and prints."""

    def __call__(
        self, expression: str, transfer: str, *, quiet: bool, timeout: float | None = None
    ) -> Run: ...


def outcome(future: Future[dict[str, Any]], timeout: float, where: str) -> dict[str, Any]:
    """What the server answers. Raises LinkLostError: it does not."""
    try:
        return future.result(timeout)
    except TimeoutError:
        future.cancel()  # or it would be asked again over the next connection
        raise LinkLostError(f"{where} did not answer within {timeout:g} s", id="timeout") from None


def _given_up(name: str, timeout: float | None) -> TransferError:
    from ._transfer import StillRunningError

    return StillRunningError(f"`{name}` did not come within {timeout:g} s: it was given up")


class Crossing:
    """The data side of one `Session`.

    Args:
        session: gives it, if it still lives; what is under way in the background keeps it alive.
        target, link, inbox: the session's.
        trust: whether pickles are opened without asking.
    """

    def __init__(
        self, session: Callable[[], Any], target: Target, link: Link, inbox: Inbox, trust: bool
    ) -> None:
        self._session = session
        self._target, self._link, self._inbox, self.trust = target, link, inbox, trust
        self._under_way: weakref.WeakSet[Transfer] = weakref.WeakSet()

    def pull(
        self,
        name: str,
        evaluate: Evaluate,
        *,
        format: Format | None,
        into: Any,
        allow_pickle: bool | None,
        timeout: float | None,
        background: bool,
        progress: ShowProgress,
    ) -> Any:
        """See `Session.pull`. What is no name is evaluated first, by `evaluate`."""
        from ._objects import await_run
        from ._trust import three_ways

        allowed = self.trusts_pickles() if allow_pickle is None else allow_pickle
        plain = self.plain_name(name)
        id = os.urandom(8).hex()
        deadline = None if timeout is None else time.monotonic() + timeout
        run: Run | None = None

        def work(carrier: Carrier) -> Any:
            if run is not None:
                await_run(carrier, run)
            return self._get(carrier, plain, format, into, allowed)

        try:
            if plain is None:
                run = self._evaluate(id, lambda: evaluate(name, id, quiet=background, timeout=timeout))
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            return self.carry(id, name, work, background, progress, left)
        except TimeoutError:
            raise _given_up(name, timeout) from None
        except TransferError as error:
            if error.id == "unsafe" and not allowed:
                error.hints = three_ways(name, self._target.where)
            raise

    def _get(
        self, carrier: Carrier, name: str | None, format: Format | None, into: Any, allowed: bool
    ) -> Any:
        """In the transfer's thread: the value, by the codec of the session's language."""
        near = self._target.is_near()
        if self._is_r:
            from . import _robjects

            return _robjects.pull(carrier, name, format=format, into=into, is_near=near)
        from . import _objects

        return _objects.pull(carrier, name, format=format, into=into, allow_pickle=allowed, is_near=near)

    @property
    def _is_r(self) -> bool:
        return self._inbox.info.get("lang") == "r"

    def plain_name(self, name: str) -> str | None:
        """The name as the session's language understands it; None: an expression."""
        plain: str | None = self._language().plain_name(name)
        return plain

    def check_name(self, name: str) -> str:
        """The name as it will be in the session. Raises TransferError."""
        checked: str = self._language().check_name(name)
        return checked

    def _language(self) -> Any:
        """What knows the names and values of the session's language."""
        if self._is_r:
            from . import _robjects

            return _robjects
        from . import _objects

        return _objects

    def _evaluate(self, transfer: str, evaluate: Callable[[], Run]) -> Run:
        """Have a value made for a transfer; if nobody waits for it any more, it is not to be made, nor kept."""
        try:
            return evaluate()
        except BaseException:
            self.release(transfer)
            raise

    def release(self, transfer: str) -> None:
        """Tell the session that nobody comes for that transfer any more."""
        with contextlib.suppress(RemoterError):
            self._link.step(transfer, "release", {})

    def pull_asking(self, transfer: str, source: str, ask: AskPerson, *, is_name: bool) -> tuple[Any, int]:
        """An object, and its bytes; who sits here is asked whether a pickle may be opened.

        Args:
            transfer: its id, under which the value of an expression is kept there.
            source: a name, or that expression as it was typed.
            ask: asks the person.
            is_name: which of the two.

        Raises:
            NameNotFoundError, TransferError: it did not cross.
        """
        from ._trust import ask_to_open, trust

        where = self._target.where
        value, size, refusal = self._try(transfer, source, is_name, self.trusts_pickles())
        if refusal is None:
            return value, size
        answer = ask_to_open(ask, f"`{source}`", where)
        if answer == "no":
            self.release(transfer)
            raise refusal
        if answer == "always":
            trust(self._target.locate().server_public, where)
        return self._try(transfer, source, is_name, True)[:2]

    def _try(
        self, transfer: str, source: str, is_name: bool, allow_pickle: bool
    ) -> tuple[Any, int, TransferError | None]:
        """The object and its bytes; or why it is refused, while its value is still kept there."""
        size, refusal = 0, None

        def work(carrier: Carrier) -> Any:
            nonlocal size, refusal
            name = source if is_name else None
            try:
                value = self._get(carrier, name, None, None, allow_pickle)
            except TransferError as error:
                if error.id != "unsafe" or allow_pickle:
                    raise
                refusal = error
                return None
            size = carrier.progress.total
            return value

        value = self.carry(transfer, source, work, False, None)
        return value, size, refusal

    def push(
        self, name: str, value: Any, *, overwrite: bool, background: bool, progress: ShowProgress
    ) -> Any:
        """See `Session.push`."""
        name = self.check_name(name)

        def work(carrier: Carrier) -> Any:
            if self._is_r:
                from . import _robjects

                return _robjects.push(carrier, name, value, overwrite=overwrite)
            from . import _objects

            python = str(self._inbox.info.get("version") or "")
            near = self._target.is_near()
            return _objects.push(carrier, name, value, overwrite=overwrite, python=python, is_near=near)

        pushed = self.carry(os.urandom(8).hex(), name, work, background, progress)
        if not background:
            for sentence in pushed.warnings:
                warnings.warn(sentence, stacklevel=3)
        return pushed

    def has(self, name: str) -> bool:
        """Whether the session has an object of that name."""
        plain = self.plain_name(name)
        return plain is not None and bool(self._step("find", plain).get("found"))

    def remove(self, name: str) -> None:
        """Take the name away from its object there."""
        self._step("remove", self.check_name(name))

    def copy(
        self,
        what: Literal["upload", "download"],
        path: Source,
        to: str | None,
        options: CopyOptions,
    ) -> Any:
        """See `Session.upload` and `Session.download`."""
        from . import _copy

        how: dict[str, Any] = dict(options)
        background, progress = bool(how.pop("background", False)), how.pop("progress", None)
        label, work = _copy.prepare(what, path, to, how)
        return self.carry(os.urandom(8).hex(), label, work, background, progress)

    def carry(
        self,
        id: str,
        label: str,
        work: Callable[[Carrier], Any],
        background: bool,
        progress: ShowProgress,
        timeout: float | None = None,
    ) -> Any:
        """Have a transfer's work done, and wait for it unless it is to go on in the background."""
        from . import _progress, _transfer

        self._check()
        label = printable(label)
        locate = self._target.data_locator()

        def place() -> Place:
            self._link.check()  # what has ended has no place, also where nobody else would say so
            return locate()

        transfer = _transfer.Transfer(id, label, work, ask=self._link.step, place=place)
        self._under_way.add(transfer)
        transfer.start()
        if background:
            transfer.session = self._session()
            return transfer
        try:
            with _progress.chosen(progress, label) as show:
                return transfer.wait(timeout, show=show)
        except TimeoutError:
            transfer.cancel()
            raise

    def close(self) -> None:
        """The connection ends, and with it what is under way."""
        for transfer in list(self._under_way):
            if transfer.status == "running":
                transfer.cancel()

    def _step(self, what: str, name: str) -> dict[str, Any]:
        """One step that needs no transfer."""
        self._check()
        step = self._link.step(os.urandom(8).hex(), what, {"name": name})
        return outcome(step, QUERY_TIMEOUT, self._target.where)

    def _check(self) -> None:
        self._link.check()
        if "transfer" not in self._inbox.features:
            raise VersionError(
                f"the remoter that serves {self._target.where} is too old to send and receive data",
                hints="update it there, and start the session again",
            )

    def trusts_pickles(self) -> bool:
        """Whether this user opens the session's pickles without being asked."""
        from ._trust import is_trusted

        return self.trust or (self._target.is_secure and is_trusted(self._target.locate().server_public))
