"""How far a transfer is, as a person sees it: in terminals wide and narrow, in a notebook, and not at all elsewhere."""

import io
import json
import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from remoter import _progress
from remoter._progress import Bar, chosen
from remoter._transfer import Progress

from .terminal import Terminal

MB = 10**6

# It is as a transfer would: the bar is told ten times a second how far it is, until something new
# is read from the pipe: another state, "hush" (nothing is drawn until the next), or how it ends.
PROGRAM = """
import json, os, select, sys
from remoter._progress import Bar
from remoter._transfer import Progress

pipe = os.open(sys.argv[1], os.O_RDONLY)
received = b""

def next_word():
    global received
    while b"\\n" not in received:
        received += os.read(pipe, 4096)
    word, _, received = received.partition(b"\\n")
    return json.loads(word)

print("before")
try:
    word = next_word()
    with Bar(sys.argv[2]) as bar:
        while word not in ("end", "fail", "interrupt"):
            if word == "hush":
                print("\\033]2;hush\\033\\\\", end="", file=sys.stderr, flush=True)
                word = next_word()
                continue
            bar(Progress(**word))
            if b"\\n" in received or select.select([pipe], [], [], 0.1)[0]:
                word = next_word()
        if word == "fail":
            raise OSError("it failed")
        if word == "interrupt":
            raise KeyboardInterrupt
except (OSError, KeyboardInterrupt) as error:
    print("raised", type(error).__name__)
print("after")
"""


def progress(done=0, total=0, **more):
    rest = {"rate": 0.0, "left": None, "files_done": 0, "files_total": 0, "note": ""}
    return {"what": "x", "done": done, "total": total, **rest, **more}


class Shown(Terminal):
    """A terminal with a bar in it."""

    def __init__(self, home, label="x", **options):
        path = home / "pipe"
        os.mkfifo(path)
        super().__init__([sys.executable, "-c", PROGRAM, str(path), label], **options)
        self._pipe = os.open(path, os.O_WRONLY)

    def tell(self, *words):
        os.write(self._pipe, b"".join(json.dumps(word).encode() + b"\n" for word in words))

    def hush(self):
        """Nothing is drawn until it is told again; all that was is on the screen."""
        self.tell("hush")
        self.wait_for(lambda screen: self._screen.title == "hush", 30, "the title that says so")

    def close(self):
        super().close()
        os.close(self._pipe)

    def end(self, word="end"):
        """The transfer ends; returns what then stands on the terminal."""
        self.tell(word)
        assert self.expect_end() == 0
        return self.text()


# --- in a terminal ---------------------------------------------------------------------------


def test_a_bar_shows_how_far_it_is_and_leaves_one_line(home):
    with Shown(home) as terminal:
        terminal.tell(progress(312 * MB, 800 * MB, rate=667e6, left=0.73))
        terminal.expect(re.compile(r"\Abefore\nx  ━+[╸╺]?━*  312/800 MB  667 MB/s  1 s left\Z"))
        terminal.tell(progress(800 * MB, 800 * MB, rate=667e6, left=0.0))
        terminal.expect("800/800 MB")
        assert re.fullmatch(
            r"before\nx: 800 MB in \d[\d.]* m?s \([\d.]+ [MG]B/s\)\nafter\n?", terminal.end()
        ), terminal.text()


def test_what_takes_less_than_half_a_second_is_never_shown(home):
    with Shown(home) as terminal:
        terminal.tell(progress(1, 2), "end")
        assert terminal.expect_end() == 0
        assert terminal.text().strip() == "before\nafter"
        assert b"\x1b" not in terminal.raw


def test_a_folder_is_counted_in_files_too(home):
    with Shown(home, "runs", size=(24, 100)) as terminal:
        terminal.tell(progress(1200 * MB, 3000 * MB, files_done=12, files_total=1340, rate=1e8, left=18.0))
        screen = terminal.expect("1.2/3.0 GB  12/1,340 files  100 MB/s  18 s left")
        assert screen.splitlines()[1].startswith("runs  ━")
        assert "runs: 1,340 files, 3.0 GB in " in terminal.end()


def test_why_it_waits_is_said_in_place_of_the_rate(home):
    with Shown(home) as terminal:
        terminal.tell(progress(312 * MB, 800 * MB, rate=1e6, left=5.0, note="connection lost, trying again"))
        terminal.expect(re.compile(r"connection lost, trying again  312/800 MB$", re.MULTILINE))
        terminal.tell(progress(400 * MB, 800 * MB, rate=1e6, left=400.0))
        terminal.expect("400/800 MB  1.0 MB/s  6 min 40 s left")
        assert "lost" not in terminal.screen()


def test_where_the_size_is_not_known_yet_something_turns(home):
    with Shown(home) as terminal:
        terminal.tell(progress())
        for letter in ["|", "/", "-", "\\"] * 2:
            terminal.expect_line(f"{letter} x  preparing")
        terminal.tell(progress(3 * MB, note="waiting for the session"))
        terminal.expect(re.compile(r"^. x  waiting for the session  3\.0 MB$", re.MULTILINE))


@pytest.mark.parametrize("word", ["fail", "interrupt"])
def test_a_transfer_that_fails_leaves_nothing(home, word):
    with Shown(home) as terminal:
        terminal.tell(progress(1 * MB, 2 * MB))
        terminal.expect("1.0/2.0 MB")
        assert re.fullmatch(r"before\nraised \w+\nafter\n?", terminal.end(word)), terminal.text()


def test_a_name_cannot_write_on_the_terminal(home):
    with Shown(home, "[red]a\x1b[2J\r\n:smile: b", size=(24, 120)) as terminal:
        terminal.tell(progress(1 * MB, 2 * MB))
        screen = terminal.expect("1.0/2.0 MB")
        assert screen.splitlines()[-1].startswith(r"[red]a\x1b[2J :smile: b  ━") or (
            screen.splitlines()[-1].startswith(r"[red]a\x1b[2J\r\n:smile: b  ━")
        )
        assert b"\x1b[2J" not in terminal.raw
        terminal.end()


@pytest.mark.parametrize("columns", [20, 30, 50])
def test_it_stays_on_one_line_of_a_narrow_terminal(home, columns):
    with Shown(home, "a_long_name_of_an_object", size=(10, columns)) as terminal:
        for done in (312, 313, 314):
            terminal.tell(progress(done * MB, 800 * MB, rate=667e6, left=0.7, files_done=1, files_total=2))
            before, line = terminal.expect(f"{done}/800 MB").splitlines()
            assert before == "before"
            assert line.startswith("a_l")
            assert "..." in line
        assert terminal.end().startswith("before\na_long")


def test_a_reason_is_cut_where_it_does_not_fit(home):
    with Shown(home, size=(10, 20)) as terminal:
        terminal.tell(progress(note="waiting for the session"))
        terminal.expect(re.compile(r"^. x  waiting for...$", re.MULTILINE))


def test_a_terminal_that_gets_another_size_gets_a_line_of_that_size(home):
    with Shown(home, env={**os.environ, "COLUMNS": "80"}) as terminal:
        terminal.tell(progress(311 * MB, 800 * MB, rate=667e6, left=0.7))
        terminal.expect("311/800 MB  667 MB/s  1 s left")
        terminal.hush()  # else a line of the old size may come to the terminal of the new one
        terminal.resize(24, 30)
        terminal.tell(progress(312 * MB, 800 * MB, rate=667e6, left=0.7))
        screen = terminal.expect("312/800 MB  667 MB/s")
        assert screen.splitlines() == ["before", "x  312/800 MB  667 MB/s"]
        terminal.resize(24, 120)
        terminal.tell(progress(313 * MB, 800 * MB, rate=667e6, left=0.7))
        assert len(terminal.expect("313/800 MB  667 MB/s  1 s left").splitlines()) == 2


def test_wide_letters_count_as_two(home):
    with Shown(home, "数据" * 20, size=(10, 40)) as terminal:
        for done in (312, 313):
            terminal.tell(progress(done * MB, 800 * MB))
            assert len(terminal.expect(f"{done}/800 MB").splitlines()) == 2


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_means_no_colour(home, no_color):
    with Shown(home, env={**os.environ, "NO_COLOR": no_color}) as terminal:
        terminal.tell(progress(312 * MB, 800 * MB))
        terminal.expect("312/800 MB")
        terminal.end()
        assert bool(re.search(rb"\x1b\[[\d;]*3\d", terminal.raw)) is not bool(no_color)


def test_a_terminal_that_cannot_draw_is_told_what_lasts(home):
    with Shown(home, term="dumb") as terminal:
        terminal.tell(progress(312 * MB, 800 * MB, note="waiting for the session"))
        terminal.expect("x: waiting for the session")
        terminal.tell(progress(313 * MB, 800 * MB, note="waiting for the session"))
        lines = terminal.end().splitlines()
        assert lines[:2] == ["before", "x: waiting for the session"]
        assert re.fullmatch(r"x: 800 MB in \d[\d.]* s \([\d.]+ MB/s\)", lines[2])
        assert lines[3:] in (["after"], ["after", ""])
        assert b"\x1b" not in terminal.raw


# --- elsewhere -------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    """Everything is shown at once."""
    monkeypatch.setattr(_progress, "PATIENCE", 0.0)
    monkeypatch.setattr(_progress, "LONG", 0.0)


def test_where_nobody_looks_nothing_is_written(capsys, impatient):
    with Bar("x") as bar:
        for done in range(3):
            bar(Progress(**progress(done, 3, note="waiting for the session")))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stream", [None, SimpleNamespace()])
def test_a_process_without_standard_error_can_transfer(monkeypatch, impatient, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar("x") as bar:
        bar(Progress(**progress(1, 3)))


class ClosingTerminal(io.StringIO):
    """A terminal that is closed after its first line."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def write(self, text):
        if self.tell():
            raise OSError("closed")
        return super().write(text)


def test_what_goes_wrong_with_drawing_ends_only_the_drawing(monkeypatch, impatient):
    monkeypatch.setattr(sys, "stderr", ClosingTerminal())
    monkeypatch.setattr(_progress.Terminal, "pause", 0.0)
    with Bar("x") as bar:
        for done in range(5):
            bar(Progress(**progress(done, 5)))


def test_rich_is_not_imported_before_something_is_shown():
    code = """
        import sys
        from types import SimpleNamespace
        from remoter import _progress
        sys.stderr.isatty = lambda: True
        _progress.PATIENCE = 60.0
        with _progress.chosen(None, "x") as show:
            show(SimpleNamespace(done=1, total=2))
        print([name for name in sys.modules if name.startswith("rich")])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# --- who is told -----------------------------------------------------------------------------


def test_the_caller_may_want_a_bar_or_none_or_be_told_himself():
    told = []
    with chosen(told.append, "x") as show:
        show(Progress(**progress(1, 2)))
    assert [at.done for at in told] == [1]
    with chosen(False, "x") as show:
        show(Progress(**progress(1, 2)))
    for wish in (None, True):
        with chosen(wish, "x") as show:
            assert isinstance(show, Bar)
    with pytest.raises(TypeError, match="a function, not str"):
        chosen("yes", "x")


def test_what_the_callers_own_function_raises_reaches_him():
    def fail(at):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), chosen(fail, "x") as show:
        show(Progress(**progress(1, 2)))


# --- in words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (0, 0, "preparing"),
        (1500, 0, "1.5 kB"),
        (0, 999, "0/999 bytes"),
        (0, 1000, "0.0/1.0 kB"),
        (312 * MB, 800 * MB, "312/800 MB"),
        (999_600_000, 999_600_000, "1.0/1.0 GB"),
        (1, 10**15, "0/1000 TB"),
    ],
)
def test_an_amount_has_one_unit(done, total, shown):
    assert _progress._amount(Progress(**progress(done, total))) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "200 ms"), (1, "1 s"), (1.25, "1.2 s"), (59, "59 s"), (60, "1 min 0 s"), (3900, "1 h 5 min")],
)
def test_a_time_is_short(seconds, shown):
    assert _progress._time(seconds) == shown


amounts = st.integers(0, 10**16)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first one imports rich
@example(label="x" * 50, width=19, done=1, total=2, rate=1.0, left=None, files=0, note="")
@given(
    label=st.text(),
    width=st.integers(0, 120),
    done=amounts,
    total=amounts,
    rate=st.floats(0, 1e12),
    left=st.none() | st.floats(0, 1e9),
    files=st.integers(0, 10**7),
    note=st.sampled_from(["", "connection lost, trying again"]),
)
def test_the_line_is_never_longer_than_the_terminal(label, width, done, total, rate, left, files, note):
    from rich.cells import cell_len

    at = Progress("x", done, total, rate, left, files, files, note)
    parts = _progress._lay_out(_progress.escape(label), at, width)
    assert sum(cell_len(part) if isinstance(part, str) else part.width for part in parts) <= width
