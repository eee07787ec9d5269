"""`remoter cp`: what a word means; files and folders to and from real sessions, through real processes."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remoter import _cli
from remoter._address import parse
from remoter._cp import Place, find_order, find_place
from remoter._errors import AddressError
from remoter._saved import save_name
from remoter._usage import Usage

from .conftest import wait_for
from .terminal import Terminal
from .test_prompt_transfers import slow_network

__all__ = ["slow_network"]

REMOTER = [sys.executable, "-m", "remoter"]

# --- what a word means ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "address", "path"),
    [
        ("big:data.csv", "big", "data.csv"),
        ("big:", "big", ""),
        ("big:/tmp/x", "big", "/tmp/x"),
        ("big:~/x", "big", "~/x"),
        ("big:runs/*.csv", "big", "runs/*.csv"),
        (":data.csv", "", "data.csv"),
        ("big:55555:data.csv", "big:55555", "data.csv"),
        ("big:55555:", "big:55555", ""),
        ("big:55555", "big", "55555"),
        ("big:a:b", "big", "a:b"),
        ("big:logs/12:30:55.txt", "big", "logs/12:30:55.txt"),
        ("big:./2024:x", "big", "./2024:x"),
        ("big::x", "big", ":x"),
        ("[fe80::1]:55555:data.csv", "[fe80::1]:55555", "data.csv"),
        ("[fe80::1]:data.csv", "[fe80::1]", "data.csv"),
        ("tcp://big:55555:x", "tcp://big:55555", "x"),
        ("tcp://big:x", "tcp://big", "x"),
        ("ssh://big:x", "ssh://big", "x"),
        ("ssh://big:", "ssh://big", ""),
        ("ssh://ana@big:2222/main:/tmp/x", "ssh://ana@big:2222/main", "/tmp/x"),
        ("ssh://big:2222:x", "ssh://big:2222", "x"),
        ("ssh://[::1]:2222/main:a:b", "ssh://[::1]:2222/main", "a:b"),
        ("SSH://big:x", "SSH://big", "x"),
        (f"remoter://big:55555/#{'k' * 43}:x", f"remoter://big:55555/#{'k' * 43}", "x"),
        ("data.csv", None, "data.csv"),
        ("./a:b", None, "./a:b"),
        ("/tmp/a:b", None, "/tmp/a:b"),
        ("../big:x", None, "../big:x"),
        ("~/a:b", None, "~/a:b"),
        ("my file:x", None, "my file:x"),
        (".hidden:x", None, ".hidden:x"),
        ("-", None, "-"),
    ],
)
def test_the_address_is_what_stands_before_the_last_colon_before_which_one_can_stand(word, address, path):
    assert find_place(word, is_windows=False) == Place(path, address)


def test_what_exists_here_is_meant_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_place("big:data").is_there
    (tmp_path / "big:data").touch()
    assert find_place("big:data") == Place("big:data")
    (tmp_path / "lost:link").symlink_to("nowhere")
    assert not find_place("lost:link").is_there


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("C:\\data.csv", Place("C:\\data.csv")),
        ("c:/data.csv", Place("c:/data.csv")),
        ("c:data.csv", Place("c:data.csv")),
        ("big:C:\\data.csv", Place("C:\\data.csv", "big")),
    ],
)
def test_one_letter_before_a_colon_is_a_drive_on_windows_and_a_session_elsewhere(word, place):
    assert find_place(word, is_windows=True) == place
    if not place.is_there:
        assert find_place(word, is_windows=False) == Place(word[2:], word[0])


@settings(deadline=None)
@given(
    st.sampled_from(
        ["", "big", "a.b-c_d", "big:55555", "[::1]:1024", "ssh://u@h:22/main", "tcp://h", "ssh://h"]
    ),
    st.text(st.characters(exclude_characters=":\0", exclude_categories=["Cs"]), max_size=30),
)
def test_any_address_with_any_path_without_a_colon_comes_apart_as_it_was_put_together(address, path):
    assert find_place(f"{address}:{path}", is_windows=False) == Place(path, address)


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
def test_any_word_has_a_meaning_or_an_error_with_a_hint_and_an_address_that_is_one(word):
    try:
        place = find_place(word, is_windows=False)
    except (AddressError, Usage) as error:
        assert getattr(error, "hints", None) or error.hint
    else:
        if place.address is None:
            assert place.path == word
        else:
            parse(place.address)
            assert f"{place.address}:{place.path}" == word


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["x"], "`cp` takes what is to be copied, and where to", "remoter cp big:data.csv ."),
        ([], "`cp` takes what is to be copied, and where to", "remoter cp big:data.csv ."),
        (["a", "b"], "`a` and `b` are both on this machine", "NAME:PATH"),
        (["big:a", "b", "c"], "`b` and `c` are both on this machine", "NAME:PATH"),
        (
            ["big:d/a", "other:b"],
            "are both in a session",
            "`remoter cp big:d/a .`, then `remoter cp a other:b`",
        ),
        (["big:a", ""], "a path is empty", "working directory"),
        (["ssh://big", "."], "`ssh://big` is an address, and no path", "`ssh://big:`"),
        (["ssh://big/main", "."], "`ssh://big/main` is an address, and no path", "`ssh://big/main:PATH`"),
        (["ssh://big/tmp/data.csv", "."], "no name of a session", "`ssh://big:data.csv`"),
        (["http://big/x", "."], "a protocol that remoter does not speak", "behind a colon"),
        (["ana@big:x", "."], "which only ssh knows", "`ssh://ana@big:x`"),
        (["-", "a", "big:"], "`-` is one file", "command of its own"),
        (["-", "big:"], "needs a name there", "`remoter cp - big:NAME`"),
        (["-", "big:runs/"], "needs a name there", "`remoter cp - big:runs/NAME`"),
        (["big:a", "big:b", "-"], "standard output takes one file", "one after the other"),
        (["--json", "big:a", "-"], "both go to standard output", "leave one of them out"),
        (["--symlinks", "follow", "a", "big:"], "`follow` is not one of", "--help"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage_with_a_hint_and_nobody_is_asked(capsys, words, message, hint):
    code = _cli.main(["cp", *words])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert re.match(r"error: .+ \[(usage|address)\]\n", printed.err)
    assert message in printed.err
    assert hint in printed.err


def test_several_sources_may_be_in_several_sessions():
    order = find_order(("big:a", "other:b", "here"))
    assert [source.address for source in order.sources] == ["big", "other"]
    assert not order.to.is_there


# --- there and back ---------------------------------------------------------------------------


def cp(*words, cwd, stdin=b"", timeout=15, **variables):
    """The command in a process of its own, in that directory."""
    return subprocess.run(
        [*REMOTER, "cp", *words],
        cwd=cwd,
        capture_output=True,
        input=stdin,
        env={**os.environ, **variables},
        timeout=timeout,
    )


def errors(done):
    """What a command said on standard error."""
    return done.stderr.decode()


@pytest.fixture
def here(home):
    """The directory that commands are given in."""
    here = home / "here"
    here.mkdir()
    return here


@pytest.fixture
def there(served, home):
    """The directory that the session works in."""
    there = home / "there"
    there.mkdir()
    with served.connect() as session:
        session.run(f"import os; os.chdir({str(there)!r})", quiet=True)
    return there


def test_a_file_crosses_and_comes_back_as_it_was(served, here, there):
    content = os.urandom(3_000_000)
    (here / "data.bin").write_bytes(content)
    os.chmod(here / "data.bin", 0o750)
    os.utime(here / "data.bin", ns=(10**18, 10**18 + 1000))
    done = cp("data.bin", "main:", cwd=here)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (there / "data.bin").read_bytes() == content
    done = cp(":data.bin", "again.bin", cwd=here)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    again = here / "again.bin"
    assert again.read_bytes() == content
    assert again.stat().st_mode & 0o777 == 0o750
    assert again.stat().st_mtime_ns == 10**18 + 1000


def test_folders_patterns_and_several_sources_need_no_option(served, here, there):
    for name in ("runs/a.csv", "runs/b.csv", "runs/c.log", "runs/deep/d.csv"):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (here / "notes.txt").write_text("notes")
    assert cp("runs", "notes.txt", "main:input", cwd=here).returncode == 0
    assert (there / "input" / "runs" / "deep" / "d.csv").read_text() == "runs/deep/d.csv"
    assert (there / "input" / "notes.txt").read_text() == "notes"
    assert cp("main:input/runs/*.csv", "tables", cwd=here).returncode == 0
    assert sorted(path.name for path in (here / "tables").iterdir()) == ["a.csv", "b.csv"]
    assert cp("main:input/runs/c.log", "main:input/notes.txt", "both", cwd=here).returncode == 0
    assert sorted(path.name for path in (here / "both").iterdir()) == ["c.log", "notes.txt"]
    assert cp("main:", "all", cwd=here).returncode == 0
    assert (here / "all" / "input" / "runs" / "a.csv").exists()


def test_nothing_is_overwritten_unless_asked(served, here, there):
    (here / "a").write_text("new")
    (there / "a").write_text("older")
    done = cp("a", "main:", cwd=here)
    assert done.returncode == 1
    assert re.match(r"error: .+\[exists\]\n", errors(done))
    assert "`--overwrite` replaces it" in errors(done)
    assert "=True" not in errors(done)
    assert (there / "a").read_text() == "older"
    assert cp("a", "main:", cwd=here, REMOTER_CP_OVERWRITE="1").returncode == 0
    assert (there / "a").read_text() == "new"
    done = cp("--update", "--json", "a", "main:", cwd=here)
    assert done.returncode == 0
    assert [one["skipped"] for one in json.loads(done.stdout)] == [1]


def test_what_crosses_crosses_and_the_rest_is_told_line_by_line(served, here, there):
    for name in ("first", "last"):
        (here / name).write_text(name)
    done = cp("--json", "first", "missing", "last", "main:input", cwd=here)
    assert done.returncode == 1
    assert sorted(path.name for path in (there / "input").iterdir()) == ["first", "last"]
    assert re.match(r"error: there is no .*missing`.*\[path\]\n", errors(done))
    first, missing, last = json.loads(done.stdout)
    assert first == {
        "source": "first",
        "path": f"{there}/input/first",
        "files": 1,
        "bytes": 5,
        "skipped": 0,
        "problems": [],
        "elapsed": first["elapsed"],
        "links": 0,
    }
    assert missing["path"] is None
    assert "missing" in missing["problems"][0]
    assert last["files"] == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything can be read here")
def test_a_file_of_a_folder_that_cannot_be_read_is_one_line(served, here, there):
    (here / "runs").mkdir()
    (here / "runs" / "open").write_text("x")
    (here / "runs" / "closed").write_text("x")
    os.chmod(here / "runs" / "closed", 0)
    done = cp("runs", "main:", cwd=here)
    assert done.returncode == 1
    assert len(errors(done).splitlines()) == 1
    assert "closed" in errors(done)
    assert (there / "runs" / "open").exists()


def test_a_problem_with_one_file_of_a_folder_is_one_line_and_the_others_cross(served, here, there):
    for folder in (here, there):
        (folder / "runs").mkdir()
        (folder / "runs" / "b").write_text(f"in {folder.name}")
    (here / "runs" / "a").write_text("a")
    done = cp("runs", "main:", cwd=here)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*b`: .*`--overwrite` or `--update` replaces it\n", errors(done))
    assert (there / "runs" / "a").read_text() == "a"
    assert (there / "runs" / "b").read_text() == "in there"


def test_symbolic_links_are_skipped_or_kept(served, here, there):
    (here / "runs").mkdir()
    (here / "runs" / "real").write_text("x")
    (here / "runs" / "link").symlink_to("real")
    assert cp("runs", "main:without", cwd=here).returncode == 0
    assert [path.name for path in (there / "without").iterdir()] == ["real"]
    assert cp("--symlinks", "keep", "runs", "main:with", cwd=here).returncode == 0
    assert os.readlink(there / "with" / "link") == "real"


def test_links_that_are_left_out_are_told_and_nothing_but_links_is_an_error(served, here, there):
    (there / "links").mkdir()
    for name in ("a", "b"):
        (there / "links" / name).symlink_to("/etc/passwd")
    done = cp("main:links/*", "got/", cwd=here)
    assert done.returncode == 1
    assert "nothing of `links/*` crosses" in errors(done)
    assert "cause: 2 symbolic links were left out" in errors(done)
    assert "`--symlinks keep`" in errors(done)
    assert list(here.iterdir()) == []
    (there / "links" / "c").touch()
    done = cp("main:links/*", "got/", cwd=here)
    assert (done.returncode, errors(done)) == (0, "2 symbolic links left out\n")
    assert cp("--quiet", "main:links/*", "again/", cwd=here).stderr == b""


@pytest.mark.parametrize("flag", ["-r", "-R", "--recursive"])
def test_who_is_used_to_cp_may_say_that_folders_are_meant(served, here, there, flag):
    (here / "runs").mkdir()
    (here / "runs" / "a").touch()
    assert errors(cp(flag, "runs", "main:", cwd=here)) == ""
    assert (there / "runs" / "a").exists()


def test_the_help_says_what_the_flags_of_cp_do_not_need_and_what_standard_input_costs():
    done = subprocess.run([*REMOTER, "cp", "--help"], capture_output=True, text=True, timeout=15)
    assert "Folders need no option" in done.stdout
    assert "-r" not in re.findall(r"^ +(-\w)\b", done.stdout, re.MULTILINE)
    assert "temporary file" in done.stdout


# --- standard input and output ----------------------------------------------------------------


def test_standard_input_and_output_are_one_file_each(served, here, there):
    content = os.urandom(2_500_000)
    assert cp("-", "main:piped.bin", cwd=here, stdin=content).returncode == 0
    assert (there / "piped.bin").read_bytes() == content
    (there / "new").touch()
    assert (there / "piped.bin").stat().st_mode == (there / "new").stat().st_mode, "as `>` would make it"
    done = cp("main:piped.bin", "-", cwd=here)
    assert (done.returncode, done.stdout, done.stderr) == (0, content, b"")
    (there / "runs").mkdir()
    (there / "runs" / "a").touch()
    done = cp("main:runs", "-", cwd=here)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "`runs` is not one file" in errors(done)
    assert list(here.iterdir()) == []


def test_who_reads_only_the_beginning_gets_it_without_a_complaint(served, here, there):
    (there / "big.bin").write_bytes(os.urandom(3_000_000))
    command = f'{sys.executable} -m remoter cp main:big.bin -; echo "$?" >&2'
    reader = f"{sys.executable} -c 'import sys; sys.stdin.buffer.read(10)'"
    done = subprocess.run(
        ["sh", "-c", f"({command}) | {reader}"], cwd=here, capture_output=True, text=True, timeout=15
    )
    assert done.stderr == "141\n"


# --- ends that are not the end ----------------------------------------------------------------


def test_ctrl_c_is_130_and_the_same_command_goes_on(served, here, there, slow_network):
    content = os.urandom(20_000_000)
    (there / "big.bin").write_bytes(content)
    source = f"127.0.0.1:{slow_network.port}:big.bin"
    process = subprocess.Popen([*REMOTER, "cp", source, "."], cwd=here, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(path.stat().st_size for path in here.glob(".big.bin.part")))
    process.send_signal(signal.SIGINT)
    assert "interrupted; the same command goes on where it was" in process.communicate(timeout=10)[1]
    assert process.returncode == 130
    assert not (here / "big.bin").exists()
    slow_network.pause = 0
    done = cp("--json", source, ".", cwd=here)
    assert done.returncode == 0, errors(done)
    assert 0 < json.loads(done.stdout)[0]["bytes"] < len(content)
    assert (here / "big.bin").read_bytes() == content
    assert [path.name for path in here.iterdir()] == ["big.bin"]


def test_a_folder_under_a_new_name_goes_on_there_when_the_command_is_repeated(
    served, here, there, slow_network
):
    for folder in (here, there):
        (folder / "big").mkdir()
        for name in ("f1", "f2"):
            (folder / "big" / name).write_bytes(os.urandom(15_000_000))
    far = f"127.0.0.1:{slow_network.port}:"
    for words, target in (([f"{far}big", "d3"], here / "d3"), (["big", f"{far}n1"], there / "n1")):
        slow_network.pause = 0.02
        process = subprocess.Popen([*REMOTER, "cp", *words], cwd=here, stderr=subprocess.PIPE, text=True)
        wait_for(lambda target=target: any(path.stat().st_size for path in target.glob(".f1.part")))
        process.send_signal(signal.SIGINT)
        assert "the same command goes on where it was" in process.communicate(timeout=10)[1]
        slow_network.pause = 0
        done = cp("--json", *words, cwd=here)
        assert done.returncode == 0, errors(done)
        (copied,) = json.loads(done.stdout)
        assert copied["path"] == os.fspath(target)
        assert 0 < copied["bytes"] < 30_000_000
        assert sorted(path.name for path in target.iterdir()) == ["f1", "f2"]


def read_from_a_pipe(served, here):
    """The command with a standard input that nobody writes to yet, connected."""
    words = [*REMOTER, "cp", "-", "main:x"]
    process = subprocess.Popen(words, cwd=here, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    with served.connect() as session:
        wait_for(lambda: len(session.info.clients) == 2, what="the command is connected")
    return process


def test_interrupted_while_standard_input_is_read_it_ends_all_the_same(served, here, there):
    process = read_from_a_pipe(served, here)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130  # its input is still open
    # A Ctrl-C while it still connects ends it without a word, as it ends every command.
    assert process.communicate()[1].decode().strip() in ("interrupted", "")
    assert list(there.iterdir()) == []


def test_a_session_that_ends_meanwhile_is_255(served, here, there):
    process = read_from_a_pipe(served, here)
    with served.connect() as session:
        session.shutdown()
    said = process.communicate(b"x" * 100_000, timeout=15)[1].decode()
    assert process.returncode == 255
    assert "[ended]" in said


def test_no_session_is_255_with_a_hint(here):
    (here / "a").touch()
    done = cp("a", "nothing-here:", cwd=here)
    assert done.returncode == 255
    assert "error: `nothing-here` is no session here" in errors(done)
    assert "hint: " in errors(done)


# --- who may, and from where ------------------------------------------------------------------


def test_a_port_and_a_saved_name_are_addresses_too(served, here, there):
    (here / "a").write_text("by port")
    assert cp("a", f"127.0.0.1:{served.port}:by-port", cwd=here).returncode == 0
    assert (there / "by-port").read_text() == "by port"
    save_name("far", parse(f"127.0.0.1:{served.port}"))
    done = cp("far:by-port", "b", cwd=here)
    assert done.returncode == 0, errors(done)
    assert (here / "b").read_text() == "by port"


def test_a_wrong_password_is_255_and_the_right_one_is_taken_from_a_file(served, here, there):
    (here / "a").write_text("x")
    for text, code in [("otter-lamp-nine", 255), (served.password, 0)]:
        (here / "password").write_text(text)
        os.chmod(here / "password", 0o600)
        done = cp("--password-file", "password", "a", "main:b", cwd=here)
        assert done.returncode == code, errors(done)


def test_through_ssh_with_one_login(ssh_host, here):
    big = ssh_host("big")
    (here / "a").write_bytes(b"x" * 200_000)
    assert cp("a", "ssh://big:", cwd=here).returncode == 255
    started = subprocess.run([*REMOTER, "batch", "ssh://big", "-c", "1"], capture_output=True, timeout=15)
    assert started.returncode == 0
    done = cp("a", "ssh://big/main:b", cwd=here)
    assert (done.returncode, errors(done)) == (0, "")
    assert (big.home / "b").read_bytes() == b"x" * 200_000
    done = cp("ssh://big:~/b", "c", cwd=here)
    assert (done.returncode, errors(done)) == (0, "")
    assert (here / "c").read_bytes() == b"x" * 200_000


# --- at a terminal ----------------------------------------------------------------------------


def test_at_a_terminal_a_bar_shows_how_far_it_is_until_ctrl_c(served, here, there, slow_network):
    (here / "big.bin").write_bytes(os.urandom(20_000_000))
    words = [*REMOTER, "cp", "big.bin", f"127.0.0.1:{slow_network.port}:there.bin"]
    with Terminal(words, cwd=str(here), env=dict(os.environ)) as terminal:
        terminal.expect(re.compile(r"^big\.bin .*\d/20\.0 MB", re.MULTILINE))
        terminal.type("\x03")
        assert terminal.expect_end() == 130
        assert terminal.screen().endswith("\ninterrupted; the same command goes on where it was\n")


def test_at_a_terminal_one_line_says_what_was_copied(served, here, there):
    for name in ("a", "b", "c"):
        (here / name).write_bytes(bytes(400_000))
    with Terminal([*REMOTER, "cp", "a", "b", "c", "main:"], cwd=str(here), env=dict(os.environ)) as terminal:
        assert terminal.expect_end() == 0
        assert re.fullmatch(r"3 files, 1\.2 MB in \d+\.\d s( \(.*/s\))?\n?", terminal.screen().strip())
    with Terminal([*REMOTER, "cp", "--quiet", "a", "main:d"], cwd=str(here), env=dict(os.environ)) as quiet:
        assert quiet.expect_end() == 0
        assert quiet.screen().strip() == ""
