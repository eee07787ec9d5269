"""Pictures at the prompt: in the terminal where it can, else in a file whose path is said; on the client's machine.

kitty and iTerm2 each take a picture as base64 inside an escape sequence; WezTerm, Ghostty and
others speak one of the two. Inside tmux and screen neither passes, so a file it is.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Protocol = Literal["kitty", "iterm", "file"]

KINDS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/svg+xml": ".svg",
    "application/pdf": ".pdf",
}
"""What counts as a picture, the preferred form first."""

_CHUNK = 4096
_KITTY_PROGRAMS = {"ghostty", "kitty"}
_ITERM_PROGRAMS = {"iTerm.app", "WezTerm", "vscode-iterm", "mintty", "rio"}


def protocol(environment: Mapping[str, str]) -> Protocol:
    """How this terminal takes pictures."""
    if environment.get("TMUX") or environment.get("TERM", "").startswith(("screen", "tmux")):
        return "file"
    program = environment.get("TERM_PROGRAM", "")
    if (
        environment.get("KITTY_WINDOW_ID")
        or "kitty" in environment.get("TERM", "")
        or program in _KITTY_PROGRAMS
    ):
        return "kitty"
    if program in _ITERM_PROGRAMS or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return "file"


def picture_in(data: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """The best picture among the forms of a value: its mime type and its bytes."""
    for mime in KINDS:
        content = data.get(mime)
        if isinstance(content, str):
            content = content.encode() if mime == "image/svg+xml" else base64.b64decode(content)
        if content:
            return mime, bytes(content)
    return None


def kitty(png: bytes, columns: int | None = None) -> str:
    """The PNG as kitty wants it: 4096 characters in each sequence, and no answer (`q=2`)."""
    text = base64.b64encode(png).decode()
    parts = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    sequences = []
    for index, part in enumerate(parts):
        more = int(index < len(parts) - 1)
        size = f",c={columns}" if columns else ""
        control = f"a=T,f=100,q=2{size},m={more}" if index == 0 else f"m={more}"
        sequences.append(f"\x1b_G{control};{part}\x1b\\")
    return "".join(sequences)


def iterm(content: bytes, columns: int | None = None) -> str:
    """The picture as iTerm2 wants it: one sequence."""
    size = f";width={columns}" if columns else ""
    text = base64.b64encode(content).decode()
    return f"\x1b]1337;File=inline=1;size={len(content)};preserveAspectRatio=1{size}:{text}\x07"


def _columns_to_fit(mime: str, content: bytes) -> int | None:
    """The terminal's width in columns if the picture is wider than it; otherwise its own size is right."""
    try:
        import fcntl
        import termios

        _, columns, width, _ = struct.unpack("HHHH", fcntl.ioctl(1, termios.TIOCGWINSZ, b"\0" * 8))
    except (ImportError, OSError):
        return None
    if mime != "image/png" or len(content) < 24 or not width:
        return None
    return columns if int.from_bytes(content[16:20], "big") > width else None


class Album:
    """The pictures shown at one prompt: each once, numbered."""

    def __init__(self, how: Protocol | None = None) -> None:
        self.how: Protocol = how or protocol(os.environ)
        self._folder: Path | None = None
        self._count = 0
        self._shown: set[bytes] = set()

    def start_run(self) -> None:
        """What was shown before may be shown again: the user asked anew."""
        self._shown.clear()

    def page(self, mime: str, content: bytes) -> str | None:
        """What to write to the terminal for this picture; None when the run has shown it already."""
        digest = hashlib.sha256(content).digest()
        if digest in self._shown:
            return None
        self._shown.add(digest)
        self._count += 1
        columns = _columns_to_fit(mime, content)
        if self.how == "kitty" and mime == "image/png":
            return kitty(content, columns) + "\n"
        if self.how == "iterm" and mime in ("image/png", "image/jpeg", "image/gif"):
            return iterm(content, columns) + "\n"
        return f"plot {self._count}: {self._save(mime, content)}\n"

    def _save(self, mime: str, content: bytes) -> Path:
        # The folder is private (0700) and stays after the prompt: its paths have been said.
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="remoter-plots-"))
        path = self._folder / f"plot-{self._count}{KINDS[mime]}"
        path.write_bytes(content)
        return path
