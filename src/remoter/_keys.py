"""Keys as they come from the terminal: what a program typed told from what a person did; on the client's machine."""

from __future__ import annotations

import contextlib
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any

from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import get_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

QUIET = 0.02  # seconds without a key that end a burst of keys
QUIET_IN_BLOCK = 0.06  # the same when it stops inside an indented block


class Burst(str):
    """Text whose keys all came at once: typed by a program, not by a person."""


def merge_bursts(keys: list[KeyPress], split: Callable[[str], list[str]] | None = None) -> list[KeyPress]:
    """Lines that came at once become one paste, as if the sender had marked it as such.

    Editors that send code to a terminal often do not mark it (bracketed paste). Taken as single
    keys, each line would be indented by us once more and a blank line in a function would end it.

    Args:
        keys: as they came.
        split: the pieces that are pastes of their own; they make up the whole. A piece of one line stays keys.
    """
    merged: list[KeyPress] = []
    stretch: list[KeyPress] = []

    def close() -> None:
        text = "".join("\n" if _is_newline(key) else key.data for key in stretch)
        typed = sum(not isinstance(key.key, Keys) for key in stretch)
        if "\n" not in text or typed < 3:
            merged.extend(stretch)
        else:
            # What follows the last line end is the beginning of another line, unless it is indented.
            end = text.rindex("\n") + 1
            end = len(text) if text[end : end + 1].isspace() else end
            start = 0
            for piece in split(text[:end]) if split else [text[:end]]:
                if split and piece.count("\n") == 1 and piece.endswith("\n") and "\t" not in piece:
                    merged.extend(stretch[start : start + len(piece)])
                else:
                    merged.append(KeyPress(Keys.BracketedPaste, Burst(piece)))
                start += len(piece)
            merged.extend(stretch[end:])
        stretch.clear()

    for key in keys:
        if not isinstance(key.key, Keys) or _is_newline(key) or key.key == Keys.ControlI:
            # What sends \r\n means one line end.
            if not (key.key == Keys.ControlJ and stretch and stretch[-1].key == Keys.ControlM):
                stretch.append(key)
        elif key.key == Keys.CPRResponse:
            merged.append(key)  # the terminal's own word, in the midst of what is sent
        else:
            close()
            merged.append(key)
    close()
    return merged


def typed_ahead(source: Input) -> list[KeyPress]:
    """The keys that wait, before anything is read: all of them, if somebody is just sending."""
    keys = get_typeahead(source)
    if sys.platform == "win32":  # there they are read one by one in any case
        return keys
    keys += source.read_keys()
    while _wait_for_more(source, keys):
        keys += source.read_keys()
    return keys


def _wait_for_more(source: Input, keys: list[KeyPress]) -> bool:
    """Whether more of the lines that came at once is there, or comes very soon."""
    if source.closed or len(keys) < 2 or not any(map(_is_newline, keys)):
        return False
    return bool(select.select([source.fileno()], [], [], _patience(keys))[0])


def _is_newline(key: KeyPress) -> bool:
    return key.key in (Keys.ControlM, Keys.ControlJ)


def terminal_input() -> Input:
    """The terminal's keys, with bursts merged where the platform does not do that itself."""
    if sys.platform == "win32":  # prompt_toolkit recognises pastes there by itself
        return create_input()
    from prompt_toolkit.input.vt100 import Vt100Input

    class BurstInput(Vt100Input):
        merging = False

        def read_keys(self) -> list[KeyPress]:
            keys = super().read_keys()
            if not self.merging:
                return keys
            while _wait_for_more(self, keys):
                keys += super().read_keys()
            return merge_bursts(keys)

        def cooked_mode(self) -> contextlib.AbstractContextManager[None]:
            # prompt_toolkit goes back to the cooked mode for each output above the line. A key
            # typed at that moment would be echoed into it, so the mode is left as it is.
            return contextlib.nullcontext()

        def shell_mode(self) -> contextlib.AbstractContextManager[None]:
            """The usual mode, for the time that the shell has the terminal."""
            return super().cooked_mode()

    return BurstInput(sys.stdin)


def _patience(keys: list[KeyPress]) -> float:
    """How long to wait for more: longer while the last line is an indented one."""
    last = (
        "".join("\n" if _is_newline(key) else key.data for key in keys[-500:])
        .rstrip("\n")
        .rsplit("\n", 1)[-1]
    )
    return QUIET_IN_BLOCK if last[:1] in (" ", "\t") else QUIET


@contextlib.contextmanager
def typing_ahead(stream: Any) -> Iterator[None]:
    """Keys arrive one by one also while no line is read, so that Ctrl-D is seen while a command runs.

    Signals and echo stay on: what is typed ahead is seen, as at any prompt.
    """
    try:
        import termios
    except ImportError:
        yield
        return
    descriptor = stream.fileno()
    before = termios.tcgetattr(descriptor)
    now = termios.tcgetattr(descriptor)
    now[3] &= ~termios.ICANON
    # NOFLSH: a terminal throws away what is being written to it just after it has signalled
    # Ctrl-C, and with it our answer to that Ctrl-C if we are quick.
    now[3] |= termios.ECHO | termios.ISIG | termios.NOFLSH
    now[6][termios.VMIN] = 1
    now[6][termios.VTIME] = 0
    termios.tcsetattr(descriptor, termios.TCSANOW, now)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def lines_again(stream: Any) -> Iterator[None]:
    """The usual mode of a terminal, for code of the user that runs here."""
    try:
        import termios
    except ImportError:
        yield
        return
    descriptor = stream.fileno()
    before = termios.tcgetattr(descriptor)
    now = termios.tcgetattr(descriptor)
    now[3] |= termios.ICANON | termios.ECHO | termios.ISIG
    termios.tcsetattr(descriptor, termios.TCSANOW, now)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
