"""A program under a pseudo-terminal, seen as a person sees it: by what stands on the screen.

    with Terminal([sys.executable, "-m", "remoter", "client"]) as terminal:
        terminal.expect("remoter> ")
        terminal.type("1 + 1\r")
        terminal.expect("2")

One thread reads what the program writes, another feeds it to a `pyte` screen (which is slow, and
must not slow the program) and answers what programs ask a terminal: where the cursor is.
Nothing here sleeps: `expect` waits until the screen shows it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import ptyprocess
import pyte


class _Screen(pyte.HistoryScreen):
    """A screen that answers and that keeps what scrolled away."""

    answer: Callable[[str], None]

    def write_process_input(self, data: str) -> None:
        self.answer(data)


class Terminal:
    """A program and its screen.

    Args:
        argv: the program and its arguments.
        size: rows and columns.
        env: its whole environment; None: ours. TERM is set to `term`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        size: tuple[int, int] = (24, 80),
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        term: str = "xterm-256color",
    ) -> None:
        self.screen_size = size
        self._screen = _Screen(size[1], size[0], history=200_000, ratio=0.5)
        self._screen.answer = self._answer
        self._stream = pyte.ByteStream(self._screen)
        self._changed = threading.Condition()
        self._is_closed = False  # the program's side of the terminal
        self._is_left = False  # nobody looks any more
        self._fed = 0  # bytes that are on the screen
        self._is_over = False  # closed, and all of it is on the screen
        self.raw = bytearray()
        """Every byte that the program wrote."""
        environment = {**(os.environ if env is None else env), "TERM": term}
        # What a test does not set itself is not inherited: the size least of all (readline, where
        # pytest's own process loads it, puts COLUMNS into the environment of its workers).
        for name in ("INSIDE_EMACS", "NO_COLOR", "TMUX", "COLUMNS", "LINES"):
            if env is None or env.get(name) == os.environ.get(name):
                environment.pop(name, None)
        self.process = ptyprocess.PtyProcess.spawn(list(argv), cwd=cwd, env=environment, dimensions=size)
        self.process.delayafterclose = 0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._feed)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    # --- the keyboard ---

    def type(self, text: str) -> None:
        """Press keys: `\\r` is Enter, `\\x03` Ctrl-C, `\\x04` Ctrl-D. All arrive at once."""
        data = text.encode()
        while data:
            data = data[os.write(self.process.fd, data[:512]) :]

    def type_slowly(self, text: str, wait_for: Callable[[str], str] = lambda typed: typed) -> None:
        """Press one key after the other, each when the screen shows the one before."""
        for index, key in enumerate(text):
            self.type(key)
            if key.isprintable() and not key.isspace():
                self.expect(wait_for(text[: index + 1]).rsplit("\n", 1)[-1].strip())

    def resize(self, rows: int, columns: int) -> None:
        """The window gets another size."""
        with self._changed:
            self._screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def signal(self, number: int) -> None:
        """Send the program a signal."""
        os.kill(self.process.pid, number)

    # --- the screen ---

    def screen(self) -> str:
        """What the screen shows now, without spaces at the ends of lines, down to the cursor."""
        with self._changed:
            return self._shown()

    def text(self) -> str:
        """What the screen shows and all that scrolled away above it."""
        with self._changed:
            return self._scrolled() + self._shown()

    def _shown(self) -> str:
        lines = [line.rstrip() for line in self._screen.display]
        last = max([self._screen.cursor.y, *(row for row, line in enumerate(lines) if line)])
        return "\n".join(lines[: last + 1])

    def _scrolled(self) -> str:
        columns = range(self._screen.columns)
        return "".join(
            "".join(line[x].data for x in columns).rstrip() + "\n" for line in self._screen.history.top
        )

    def prompts(self, text: str = "remoter> ") -> int:
        """How many prompts were shown so far; inside `wait_for` too."""
        with self._changed:
            return (self._scrolled() + self._shown() + " ").count(text)

    def current_line(self) -> str:
        """The line that the cursor is on."""
        with self._changed:
            return self._screen.display[self._screen.cursor.y].rstrip()

    def expect(self, wanted: str | re.Pattern[str], timeout: float = 30.0) -> str:
        """Wait until the screen shows it (a text, or a pattern with `re.MULTILINE`); returns the screen."""
        return self.wait_for(lambda screen: _holds(screen, wanted), timeout, f"{wanted!r} to be shown")

    def expect_gone(self, unwanted: str | re.Pattern[str], timeout: float = 30.0) -> str:
        """Wait until the screen no longer shows it."""
        return self.wait_for(lambda screen: not _holds(screen, unwanted), timeout, f"{unwanted!r} to go")

    def expect_line(self, wanted: str, timeout: float = 30.0) -> str:
        """Wait until the cursor's line is this (spaces at its end apart); returns the screen."""

        def is_it(screen: str) -> bool:
            return self._screen.display[self._screen.cursor.y].rstrip() == wanted.rstrip()

        return self.wait_for(is_it, timeout, f"the cursor's line to be {wanted!r}")

    def wait_for(self, holds: Callable[[str], bool], timeout: float, what: str) -> str:
        """Wait until `holds(screen)`."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not holds(self._shown()):
                remaining = deadline - time.monotonic()
                if self._is_over or remaining <= 0:
                    reason = "the program has ended" if self._is_over else f"{timeout:g} s are over"
                    raise AssertionError(f"waited for {what}, but {reason}. The screen:\n{self._shown()}")
                self._changed.wait(remaining)
            return self._shown()

    def expect_bytes(self, wanted: bytes, timeout: float = 30.0) -> None:
        """Wait until the program has written this, on the screen already or not."""
        with self._changed:
            if not self._changed.wait_for(lambda: wanted in self.raw or self._is_closed, timeout):
                raise AssertionError(f"waited for {wanted!r} for {timeout:g} s. The screen:\n{self._shown()}")
            if wanted not in self.raw:
                raise AssertionError(f"waited for {wanted!r}, but the program has ended")

    # --- the end ---

    def expect_end(self, timeout: float = 30.0) -> int:
        """Wait until the program has ended; returns its exit status, negative for a signal."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._is_over:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise AssertionError(f"it has not ended in {timeout:g} s. The screen:\n{self._shown()}")
                self._changed.wait(remaining)
        self.process.wait()
        return self.process.exitstatus if self.process.exitstatus is not None else -self.process.signalstatus

    def close(self) -> None:
        """End the program if it still runs, by its process id, and the terminal."""
        if self.process.isalive():
            for number in (signal.SIGHUP, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    self.signal(number)
                if self._wait(3.0):
                    break
        self._is_left = True
        for thread in self._threads:
            thread.join(3.0)
        with contextlib.suppress(OSError, ptyprocess.PtyProcessError):
            self.process.close(force=True)

    def _wait(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._is_closed, timeout)

    # --- the thread that reads ---

    def _read(self) -> None:
        while not self._is_closed:
            try:
                data = os.read(self.process.fd, 65536)
            except OSError:  # the other side is closed
                data = b""
            with self._changed:
                self.raw += data
                self._is_closed = not data
                self._changed.notify_all()

    def _feed(self) -> None:
        while not self._is_over and not self._is_left:
            with self._changed:
                self._changed.wait_for(lambda: len(self.raw) > self._fed or self._is_closed)
                data = bytes(self.raw[self._fed : self._fed + 8192])
                self._fed += len(data)
                self._stream.feed(data)
                self._is_over = self._is_closed and not data
                self._changed.notify_all()

    def _answer(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self.process.fd, text.encode())


def _holds(screen: str, wanted: str | re.Pattern[str]) -> bool:
    return wanted in screen if isinstance(wanted, str) else wanted.search(screen) is not None
