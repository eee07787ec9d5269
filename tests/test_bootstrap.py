"""What ssh runs on the other machine: through every shell it may meet, with all that login files and people do."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from remoter import _config, _records
from remoter._bootstrap import COMMAND, LONGEST, NOISE, Reader, Task, render
from remoter._errors import RemoterError
from tests.processes import words_of
from tests.test_cli import end_all_sessions
from tests.waiting import is_alive, wait_for

NONCE = "5ca1ab1e"
SHELLS = ["dash", "bash", "zsh", "ksh", "tcsh", "csh", "fish", "busybox sh"]
LOGIN_SHELLS = ["dash", "bash", "zsh", "ksh"]
TOOLS = ["uname", "flock", "ps", "cat", "rm", "sed", "sleep", "tail", "tr", "env", "sh", "bash"]

BANNER = "Welcome to the cluster! $(touch pwned) `touch pwned` remoter:other end\n" * 140  # 10 kB


# --- the other machine: shells of this one, as sshd starts them ----------------------------------


@dataclasses.dataclass
class Said:
    """What the script answered."""

    code: int
    lines: list
    noise: bytes
    rest: bytes
    errors: str

    def of(self, word):
        return [rest for its_word, rest in self.lines if its_word == word]

    @property
    def words(self):
        return [word for word, _ in self.lines]

    @property
    def records(self):
        return [json.loads(rest) for rest in self.of("record")]


def path_of(shell):
    found = shutil.which(shell.split()[0])
    if not found:
        pytest.skip(f"no `{shell}` on this machine")
    return found


def command_of(shell):
    return [path_of(shell), *shell.split()[1:], "-c", COMMAND]


def environment(**more):
    """As sshd makes it: little."""
    kept = {
        name: os.environ[name]
        for name in os.environ
        if name in ("HOME", "TMPDIR") or (name.startswith("REMOTER_") and name.endswith("_DIR"))
    }
    return {"PATH": os.environ["PATH"], "SHELL": path_of("dash"), **kept, **more}


def begin(task, shell="dash", extra=b"", **variables):
    """The script at work, with its standard input still open. It leads a process group, as with sshd."""
    process = subprocess.Popen(
        command_of(shell),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**variables),
        cwd="/",
        start_new_session=True,
    )
    process.stdin.write(render(task, NONCE, extra))
    process.stdin.flush()
    return process


def read_up_to(process, word):
    """The lines that the script says, up to one with that word."""
    reader, lines = Reader(NONCE), []
    while word not in [its_word for its_word, _ in lines]:
        data = os.read(process.stdout.fileno(), 65536)
        assert data, f"it ended before `{word}`: {lines} {process.stderr.read()}"
        lines += reader.feed(data)
    return lines


def end(process):
    """Whatever is left of it, and its pipes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


def do(task, shell="dash", extra=b"", timeout=60, **variables):
    """The script from beginning to end: nobody holds its output when it is over."""
    process = begin(task, shell, extra, **variables)
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        end(process)
    reader = Reader(NONCE)
    lines = reader.feed(out)
    assert not list(Path(os.environ["TMPDIR"]).iterdir()), "a file is left behind"
    return Said(process.returncode, lines, reader.noise, bytes(reader.rest), errors.decode(errors="replace"))


def members(group):
    """The processes of that group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


# --- what is there -------------------------------------------------------------------------------


def install(text, place=".local/share/remoter/bin/remoter"):
    """A program in the home there."""
    path = Path(os.environ["HOME"]) / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def program():
    """The real program, in the home there; ends its sessions."""
    yield install(f'#!/bin/sh\nexec "{sys.executable}" -P -m remoter "$@"\n')
    end_all_sessions()


@pytest.fixture
def stand_in():
    """A program that writes down how it was called, and fails."""
    install(
        "#!/bin/sh\n"
        'for word; do printf "%s\\0" "$word"; done >"$HOME/argv"\n'
        'printf "%s" "$GOT" >"$HOME/got"\n'
        'pwd >"$HOME/where"\n'
        "env\n"
        "exit 3\n"
    )


def argv():
    return (
        (Path(os.environ["HOME"]) / "argv").read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
    )


def got():
    return (Path(os.environ["HOME"]) / "got").read_bytes().decode("utf-8", "surrogateescape")


def login_files(text, *, fish="", csh=""):
    """The same in the login files of every shell, and in those that they read for a command."""
    home = Path(os.environ["HOME"])
    for name in [".profile", ".bashrc", ".bash_profile", ".zshenv", ".zprofile"]:
        (home / name).write_text(text)
    for name in [".cshrc", ".tcshrc"]:
        (home / name).write_text(csh)
    (home / ".config/fish").mkdir(parents=True, exist_ok=True)
    (home / ".config/fish/config.fish").write_text(fish)


def only_tools(*left_out):
    """A directory for PATH with neither remoter nor Python."""
    directory = Path(os.environ["HOME"]).parent / "tools"
    directory.mkdir()
    for name in TOOLS:
        if name not in left_out and shutil.which(name):
            (directory / name).symlink_to(shutil.which(name))
    login_files(f"PATH={directory}")
    return str(directory)


@pytest.fixture
def fake():
    """Makes connection records, of sessions that live if their lock is held."""
    locks = []

    def make(name="main", *, alive=True, host=None, directory=None, pid=None):
        directory = directory or _config.runtime_directory() / name
        directory.mkdir(parents=True, exist_ok=True)
        locks.append(os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600))
        if alive:
            fcntl.flock(locks[-1], fcntl.LOCK_EX)
        record = _records.Record(
            name=name,
            host=host or _config.host_name(),
            listen="127.0.0.1",
            port=55555,
            directory=str(directory),
            server_public="x" * 40,
            client_public="y" * 40,
            client_secret='pid":1,"name":"z',
            pid=os.getpid() if pid is None else pid,
            journal="/var/tmp/j",
            started=1.5,
        )
        _records.write_record(record)
        return record

    yield make
    for lock in locks:
        os.close(lock)


# --- finding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_starts_the_script_and_chatter_before_does_not_disturb(shell, fake):
    fake()
    Path(os.environ["HOME"], "banner").write_text(BANNER)
    login_files(
        "cat ~/banner; read -r answer; read -r answer; echo got $answer; printf 'no end'",
        fish="cat ~/banner; read answer; read answer; printf 'no end'",
        csh="cat ~/banner\nset answer = $<\nset answer = $<\nprintf 'no end'\n",
    )
    said = do(Task("find"), shell, SSH_CLIENT="127.0.0.1 1 22")  # without that, bash reads nothing
    assert said.words == ["hello", "record", "end"]
    assert said.of("hello")[0].split() == [os.uname().sysname, os.uname().machine, _config.host_name()]
    assert said.code == 0
    if shell in ("bash", "zsh", "tcsh", "csh", "fish"):
        assert len(said.noise) > 9000
        assert b"Welcome" in said.noise
        assert b"no end\n" in said.noise


def test_a_shell_that_runs_as_sh_in_place_of_dash_understands_the_script(fake, stand_in):
    fake()
    for shell in ["bash", "busybox sh", "ksh"]:
        if shutil.which(shell.split()[0]):
            for task in [Task("find"), Task("run", prelude="GOT='1 2'; export GOT", arguments=("a  b",))]:
                done = subprocess.run(
                    shell.split(),
                    input=render(task, NONCE),
                    env=environment(),
                    capture_output=True,
                    start_new_session=True,
                )
                words = [word for word, _ in Reader(NONCE).feed(done.stdout)]
                assert words in (["hello", "record", "end"], ["hello", "login", "prelude", "raw"]), done
            assert (argv(), got()) == (["a  b"], "1 2")


def test_all_sessions_are_found_or_the_one_that_is_named(fake):
    assert do(Task("find")).words == ["hello", "end"]
    fake("main")
    fake("train-2")
    assert [record["name"] for record in do(Task("find")).records] == ["main", "train-2"]
    assert [record["name"] for record in do(Task("find", name="train-2")).records] == ["train-2"]
    assert do(Task("find", name="train")).words == ["hello", "end"]


def test_a_record_comes_over_as_it_was_written(fake):
    record = fake()
    (text,) = do(Task("find")).of("record")
    assert text.encode() == _records.record_path(record.host, record.name).read_bytes()


@pytest.mark.parametrize("tools", ["flock", "ps", "neither"])
def test_the_record_of_a_dead_session_is_left_out_also_when_its_pid_is_used_again(fake, tools):
    fake("reused", alive=False)
    fake("ended", alive=False, pid=2**22 - 3)
    missing = {"flock": ["ps"], "ps": ["flock"], "neither": ["flock", "ps"]}[tools]
    said = do(Task("find"), PATH=only_tools(*missing))
    expected = ["reused"] if tools == "neither" else []  # nobody can tell
    assert [record["name"] for record in said.records] == expected


def test_a_session_whose_files_are_gone_is_dead(fake):
    shutil.rmtree(fake().directory)
    assert do(Task("find")).words == ["hello", "end"]


def test_sessions_on_other_machines_of_the_same_home_are_named(fake):
    root = _config.runtime_directory()
    fake("main", host="big-2", directory=root / "1")
    fake("other", host="node7")
    fake("main")
    said = do(Task("find"))
    assert sorted(said.of("other")) == ["big-2 main", "node7 other"]
    assert len(said.records) == 1
    assert do(Task("find", name="other")).of("other") == ["node7 other"]


@pytest.mark.parametrize(
    "name", ['a b"c', "d\\e\\", "f $(touch pwned) `g` 'h'", 'i,"pid":1,\'', "ü\u4e81", "-n"]
)
def test_a_directory_may_have_any_name(fake, name):
    root = Path(os.environ["HOME"]).parent / name
    fake("alive", directory=root / "1")
    fake("dead", directory=root / "2", alive=False)
    assert [record["name"] for record in do(Task("find")).records] == ["alive"]


def test_a_record_that_the_keeper_wrote_again_has_spaces_and_escapes(fake):
    for name in ["a b", '"c\\', "ü"]:
        record = fake(f"s{ord(name[0])}", directory=Path(os.environ["HOME"]).parent / name)
        path = _records.record_path(record.host, record.name)
        path.write_text(json.dumps(json.loads(path.read_text())))
    assert [record["name"] for record in do(Task("find")).records] == ["s34", "s97"]  # by their locks
    keeper = subprocess.Popen([sys.executable, "-S", "-c", "input()", "_keeper"], stdin=subprocess.PIPE)
    try:  # `\u00fc` is too much for sed: then by the pid
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": keeper.pid}))
        assert [record["name"] for record in do(Task("find")).records] == ["s252", "s34", "s97"]
    finally:
        keeper.communicate(b"\n")


def test_files_that_are_no_records_are_passed_over(fake):
    fake()
    servers = _config.state_directory() / "servers"
    (servers / "a.json").write_text("")
    (servers / "b.json").write_bytes(b"\xff\x00\n{}")
    (servers / "c.json").mkdir()
    (servers / "d.json").symlink_to("nowhere")
    (servers / "e.json").write_text('{"host":"' + _config.host_name())
    said = do(Task("find"))
    assert said.words == ["hello", "record", "end"]


def test_finding_takes_few_milliseconds(fake):
    fake()

    def is_quick():
        began = time.monotonic()
        do(Task("find"))
        return time.monotonic() - began < 0.05  # about 5 ms on an idle machine

    wait_for(is_quick, what="a moment in which nobody else needs the processors")


def test_with_stay_the_script_waits_for_the_end_of_its_input_and_throws_away_what_comes(fake):
    fake()
    process = begin(Task("find", stay=True))
    try:
        read_up_to(process, "end")
        process.stdin.write(b"touch pwned\n" * 1000)
        process.stdin.flush()
        assert process.poll() is None
        assert len(members(process.pid)) == 1
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        end(process)


# --- the prelude and the login shell -------------------------------------------------------------


@pytest.mark.parametrize("shell", LOGIN_SHELLS)
def test_the_login_shell_runs_the_prelude_once_with_its_functions_and_the_program_gets_the_rest(
    shell, stand_in
):
    Path(os.environ["HOME"], "banner").write_text(BANNER)
    login_files(
        'cat ~/banner; read -r answer; module() { export GOT="$GOT<$*>"; echo loaded; }\n'
        "alias cat=false rm=false; set -C; printf 'no end'",
    )
    prelude = "module load 'R 4'\ncd /usr; sh -c \"echo $$ >>~/once\"\n# done"
    task = Task("run", prelude=prelude, arguments=("ls", ""))
    said = do(task, SHELL=path_of(shell))
    assert said.words == ["hello", "login", "prelude", "raw"]
    assert said.of("login") == [path_of(shell)]
    assert (argv(), got(), said.code) == (["ls", ""], "<load R 4>", 3)
    assert len(Path(os.environ["HOME"], "once").read_text().splitlines()) == 1
    assert Path(os.environ["HOME"], "where").read_text() == "/usr\n"
    assert b"loaded" not in said.rest
    assert b"Welcome" not in said.rest
    assert b"REMOTER_BOOTSTRAP" not in said.rest


@pytest.mark.parametrize("shell", LOGIN_SHELLS)
@pytest.mark.parametrize(
    ("prelude", "codes"),
    [
        ("echo 'no such module' >&2; false", [1]),
        ("echo 'no such module'; exit 3", [3]),
        ("echo 'no such module'; exit 0", [0]),
        ("set -e; echo 'no such module'; false; true", [1]),
        ("echo 'no such module'; exec sh", [0]),
        ("echo 'no such module'; trap 'exit 0' EXIT; exit 4", [0, 4]),
        ("echo 'no such module'; kill -9 $$", [137, 265]),
        ("echo 'no such module'; (((", [1, 2, 3]),
        ("echo 'no such module'; set -x; nosuchprogram", [127]),
    ],
)
def test_a_prelude_that_fails_is_told_with_what_it_printed(shell, prelude, codes, stand_in):
    said = do(Task("start", prelude=prelude), SHELL=path_of(shell))
    assert said.words[:4] == ["hello", "login", "prelude", "failed"]
    assert said.words[-1] == "end"
    assert said.of("failed") in [[f"prelude {code}"] for code in codes]
    if "(((" not in prelude:
        assert "no such module" in said.of("said")
    assert said.of("said")
    assert said.code == 1
    assert not Path(os.environ["HOME"], "argv").exists()


def test_of_much_output_of_a_prelude_the_last_forty_lines_are_told_as_they_are(stand_in):
    prelude = "i=0; while [ $i -lt 99 ]; do i=$((i+1)); printf '%s\\n' \"  $i \\\\t %s\"; done; printf 'the end'; false"
    said = do(Task("look", prelude=prelude)).of("said")
    assert len(said) == 40
    assert said[-2:] == ["  99 \\t %s", "the end"]


def test_what_a_prelude_leaves_running_or_reads_holds_nothing_up(stand_in):
    prelude = 'sleep 60 & echo $! >"$HOME/pid"; read -r x; cat; exec >/dev/null'
    try:
        said = do(Task("run", prelude=prelude, arguments=("x",)))
        assert (said.words[-1], said.code) == ("raw", 3)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended with the group of the script
            os.kill(int(Path(os.environ["HOME"], "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("text", ["exit 5", "exec true", "exec sleep 0; echo never", "kill -9 $$"])
def test_a_login_shell_that_ends_by_itself_is_a_failed_login(text, stand_in):
    login_files("echo 'no such luck'; " + text)
    said = do(Task("start"), SHELL=path_of("dash"))
    assert said.words == ["hello", "login", "failed", "end"]
    assert said.of("failed")[0].startswith("login ")
    assert b"no such luck" in said.noise


@pytest.mark.parametrize("other", ["zsh -l", "ksh", "fish -l", "bash"])
def test_login_files_may_start_another_shell(other, stand_in):
    Path(os.environ["HOME"], ".profile").write_text(f"exec {path_of(other)} {' '.join(other.split()[1:])}")
    for prelude in [None, "GOT=1; export GOT"]:
        said = do(Task("run", prelude=prelude, arguments=("x", "y z")))
        if prelude and other.startswith("fish"):
            assert said.of("failed") or got() == "1"
        else:
            assert (argv(), got(), said.words[-1]) == (["x", "y z"], "1" if prelude else "", "raw")


def test_when_nobody_waits_any_more_a_login_that_hangs_is_ended():
    process = begin(Task("start", prelude="trap '' HUP; sleep 1000", stay=True))
    try:
        read_up_to(process, "prelude")
        wait_for(lambda: ["sleep", "1000"] in map(words_of, members(process.pid)), what="it hangs")
        process.stdin.close()
        wait_for(lambda: not members(process.pid), what="all of it has ended")
        assert not list(Path(os.environ["TMPDIR"]).iterdir())
    finally:
        end(process)


def test_the_users_own_shell_is_the_login_shell_if_it_can_run_a_prelude():
    for shell, expected in [("zsh", "zsh"), ("fish", "bash"), ("tcsh", "bash")]:
        if shutil.which(shell):
            said = do(Task("look"), SHELL=path_of(shell))
            assert (said.of("shell"), said.of("login")) == ([path_of(shell)], [path_of(expected)])
    assert do(Task("look"), SHELL="/no/such/bash").of("login") == ["/bin/sh"]


# --- the program ---------------------------------------------------------------------------------


def test_a_program_that_was_put_there_comes_before_others_and_one_on_the_path_before_the_rest(fake):
    tools = only_tools()
    path = Path(os.environ["HOME"]).parent / "path"
    with open(Path(os.environ["HOME"]) / ".profile", "a") as file:
        file.write(f":{path}")
    places = [".local/bin/remoter", "../path/remoter", ".local/share/remoter/bin/remoter"]
    for version, place in enumerate(places):
        path = install(f"#!/bin/sh\necho remoter 1.{version}\n", place)
        said = do(Task("look"), PATH=tools)
        (found,) = said.of("program")
        where, _, its_version = found.rpartition(" ")
        assert (Path(where).resolve(), its_version) == (path.resolve(), f"1.{version}")


def test_without_remoter_it_is_told_which_python_there_is():
    tools = only_tools()
    said = do(Task("start"), PATH=tools)
    assert said.words == ["hello", "login", "failed", "end"]
    assert said.of("failed") == ["remoter 127"]
    python = Path(tools) / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = -V ] || exit 2\necho Python 3.7.1\n')
    python.chmod(0o755)
    (Path(os.environ["HOME"]) / "remoter").mkdir()  # no module of that name
    for verb in ("start", "run"):
        said = do(Task(verb), PATH=tools)
        assert said.of("failed") == ["remoter 127"]
        assert said.of("said") == [f"python {python} 3.7.1"]
    said = do(Task("look"), PATH=tools)
    assert said.words == ["hello", "login", "shell", "python", "end"]


def test_a_module_of_python_is_a_program_too():
    tools = only_tools()
    python = Path(tools) / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    said = do(Task("run", arguments=("--version",)), PATH=tools)
    assert said.rest.startswith(b"remoter ")
    assert do(Task("look"), PATH=tools).of("program")[0].startswith(f"{python} -m remoter ")


def test_run_gives_the_program_its_input_and_its_exit_code():
    install('#!/bin/sh\ncat; echo "out $*"; echo err >&2; exit 42\n')
    process = begin(Task("run", arguments=("a", "b"), prelude="true"))
    try:
        lines = read_up_to(process, "raw")  # nothing may be sent before
        out, errors = process.communicate(b"$(some) input\n", timeout=30)
    finally:
        end(process)
    assert [word for word, _ in lines] == ["hello", "login", "prelude", "raw"]
    assert (out, errors, process.returncode) == (b"$(some) input\nout a b\n", b"err\n", 42)


def test_install_does_what_the_extra_script_says_with_the_input_that_follows():
    tools = only_tools()
    python = install("#!/bin/sh\necho Python 3.11.4\n", "../tools/python3")
    assert do(Task("install"), PATH=tools).words == ["hello", "login", "python", "end"]
    extra = b"""# it's a comment
        mark send "$version"
        while read -r line; do mark said "$line '\\"x"; done
        [ "$line" ] || fail install 7 "two
lines"
    """
    process = begin(Task("install"), extra=extra, PATH=tools)
    try:
        lines = read_up_to(process, "send")
        out, _ = process.communicate(b"first\nsecond\n", timeout=30)
    finally:
        end(process)
    assert lines[-2:] == [("python", f"{Path(tools) / 'python3'} 3.11.4"), ("send", "3.11.4")]
    assert python.exists()
    assert Reader(NONCE).feed(out) == [
        ("said", "first '\"x"),
        ("said", "second '\"x"),
        ("failed", "install 7"),
        ("said", "two"),
        ("said", "lines"),
        ("end", ""),
    ]


# --- starting ------------------------------------------------------------------------------------


def test_a_session_is_started_once_and_outlives_all_that_started_it(program):
    process = begin(Task("start", prelude="export GOT='a  b'; cd /usr", stay=True))
    try:
        lines = read_up_to(process, "end")
        os.killpg(process.pid, signal.SIGHUP)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not process.stdout.read()  # nobody else has it open
    finally:
        end(process)
    assert [word for word, _ in lines] == ["hello", "login", "prelude", "starting", "record", "end"]
    record = json.loads(lines[-2][1])
    assert record["name"] == "main"
    assert is_alive(record["pid"])
    assert lines[3] == ("starting", "main")
    again = do(Task("start"))
    assert (again.words, again.records) == (["hello", "record", "end"], [record])
    assert do(Task("find"), PATH=only_tools("flock")).records == [record]
    there = do(Task("run", arguments=("batch", "-c", "import os; (os.environ['GOT'], os.getcwd())")))
    assert (there.rest, there.code) == (b"('a  b', '/usr')\n", 0)


def test_two_who_start_the_same_session_at_the_same_moment_share_one(program):
    processes = [begin(Task("start", name="shared")) for _ in range(2)]
    try:
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            end(process)
    answers = [Reader(NONCE).feed(output) for output in outputs]
    records = {dict(lines).get("record") for lines in answers}
    assert len(records) == 1
    assert None not in records, answers
    assert len(list(_records.records())) == 1
    (record,) = do(Task("start", name="shared")).records  # a connection file that is lost is made again
    _records.record_path(record["host"], "shared").unlink()
    said = do(Task("start", name="shared"))
    assert said.records == [record]


def test_a_connection_is_bridged_to_the_session(program):
    do(Task("start"))
    for task in [Task("bridge"), Task("bridge", name="main")]:
        process = begin(task)
        try:
            reader = Reader(NONCE)
            while not reader.rest:
                data = os.read(process.stdout.fileno(), 65536)
                assert data, process.stderr.read()
                reader.feed(data)
                if reader.is_raw and not reader.rest:
                    process.stdin.write(b"\xff" + bytes(7) + b"\x01\x7f")  # how ZeroMQ says hello
                    process.stdin.flush()
            assert reader.rest[:1] == b"\xff"
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            end(process)
    said = do(Task("bridge", name="other"))
    assert (said.of("failed"), said.words[-1]) == (["session 0"], "end")


def test_where_the_keeper_tells_nothing_the_program_itself_is_the_bridge(fake, stand_in):
    fake("lonely")
    said = do(Task("bridge"))
    assert (argv(), said.words[-1]) == (["bridge", "lonely"], "raw")


def test_a_start_that_fails_is_told_with_what_the_program_printed(fake):
    fake("other", host="node7")
    install(
        "#!/bin/sh\necho 'error: disk quota `exceeded`   [start]' >&2\nkill -HUP $$; echo survived\nexit 9\n"
    )
    said = do(Task("start", name="train"))
    assert said.words == ["hello", "login", "starting", "failed", "said", "said", "end"]
    assert said.of("failed") == ["start 9"]
    assert said.of("said") == ["error: disk quota `exceeded`   [start]", "survived"]
    assert said.code == 1


def test_a_start_whose_record_never_comes_ends_without_the_password():
    install('#!/bin/sh\n[ "$1" = ls ] || echo \'{"password": "secret"}\'\n')
    shown = do(Task("start", name="train"))
    assert shown.of("failed") == ["start 1"]
    assert "session `train` runs" in shown.of("said")[0]
    assert "secret" not in str(shown)


def test_any_live_session_will_do_where_none_is_named(fake, stand_in):
    fake("a")
    assert do(Task("start")).words == ["hello", "record", "end"]
    fake("b")
    assert do(Task("start")).words == ["hello", "record", "record", "end"]
    do(Task("start", name="c"))
    assert argv() == ["server", "--background", "--json", "--name=c"]


def test_variables_that_only_the_login_shell_has_lead_to_the_session(fake):
    fake()
    state = os.environ["REMOTER_STATE_DIR"]
    login_files(f"export REMOTER_STATE_DIR='{state}'")
    said = do(Task("start"), REMOTER_STATE_DIR="/nowhere")
    assert said.words == ["hello", "login", "record", "end"]


# --- nothing is evaluated ------------------------------------------------------------------------

NASTY = [
    "$(touch pwned)",
    "`touch pwned`",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "\n} ; touch pwned\n{\n",
    "!! !$ \\ \\\\ %s %n",
    "-n",
    "--help",
    "~",
    "*",
    "a\r\nb\n",
    "\x01\x7f\u0081\u4e88",
    "\udc81\udc88\udc82\udcff",
    "#",
    "EOF",
    " ",
    "",
]
texts = some.text(some.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
anything = some.sampled_from(NASTY) | texts


def assert_nothing_was_evaluated():
    home = Path(os.environ["HOME"])
    assert not [path for place in (home, home.parent, Path("/")) for path in place.glob("pwned*")]


@pytest.mark.parametrize("shell", LOGIN_SHELLS)
def test_nasty_texts_arrive_unharmed_through_every_login_shell(shell, stand_in):
    shell = path_of(shell)
    do(Task("run", arguments=tuple(NASTY), prelude=f"GOT={quoted(''.join(NASTY))}; export GOT"), SHELL=shell)
    assert argv() == NASTY
    assert got() == "".join(NASTY)
    assert_nothing_was_evaluated()


@settings(max_examples=60, deadline=None)
@given(some.lists(anything, max_size=4), anything)
def test_any_arguments_and_any_prelude_arrive_unharmed(arguments, text):
    install(
        '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >"$HOME/argv"\nprintf %s "$GOT" >"$HOME/got"\n'
    )
    said = do(Task("run", arguments=tuple(arguments), prelude=f"export GOT={quoted(text)}"))
    assert said.words == ["hello", "login", "prelude", "raw"]
    assert (argv(), got()) == (arguments, text)
    assert_nothing_was_evaluated()


@settings(max_examples=40, deadline=None)
@given(some.from_regex(r"\A[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z") | anything, anything, anything)
@example("main", "./a b/python", "r")
def test_any_name_and_any_python_arrive_unharmed(name, python, lang):
    install('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >"$HOME/argv"\nexit 3\n')
    do(Task("start", name=name, python=python, lang=lang))
    expected = ["server", "--background", "--json", f"--name={name or 'main'}"]
    expected += [f"--lang={lang}"] if lang != "python" else []
    expected += [f"--python={python}"] if python else []
    assert argv() == expected
    assert_nothing_was_evaluated()


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_no_shell_can_be_given_is_refused(text):
    for key in ["name", "python", "prelude", "lang"]:
        with pytest.raises(RemoterError, match="cannot be sent"):
            render(Task("start", **{key: text}), NONCE)


def test_a_prelude_that_is_too_long_is_refused_and_a_long_one_is_not(stand_in):
    with pytest.raises(RemoterError, match="too long"):
        render(Task("start", prelude="x" * LONGEST), NONCE)
    do(Task("run", prelude="GOT=" + "x" * (LONGEST - 20_000) + "\nexport GOT"))
    assert len(got()) == LONGEST - 20_000


# --- the reader ----------------------------------------------------------------------------------

MARK = f"remoter:{NONCE} ".encode()
pieces = some.sampled_from(
    [
        b"hello\n",
        MARK + b"hello a b c\n",
        b"no end" + MARK + b'record {"a": 1}\n',
        MARK[:-3],
        MARK + b"end\n",
        b"\xff\r\n",
        b"x" * 70_000,
    ]
)


@given(
    some.lists(pieces, max_size=8).map(b"".join),
    some.none() | some.binary(max_size=30),
    some.lists(some.integers(1, 80_000), max_size=8),
)
def test_what_comes_in_pieces_reads_the_same(said, raw, sizes):
    if raw is not None:
        said += b"\n" + MARK + b"raw\n" + raw
    whole, other = Reader(NONCE), Reader(NONCE)
    expected, lines, start = whole.feed(said), [], 0
    for size in [*sizes, len(said)]:
        lines += other.feed(said[start : start + size])
        start += size
    assert lines == expected
    assert (other.noise, other.rest, other.is_raw) == (whole.noise, whole.rest, whole.is_raw)
    if raw is not None:
        assert whole.rest == raw


def test_chatter_without_end_takes_no_more_memory_than_its_last_64_kib():
    reader = Reader(NONCE)
    for _ in range(100):
        assert reader.feed(b"." * 10_000) == []
    assert reader.feed(b"the end") == []
    assert len(reader.noise) == NOISE
    assert reader.noise.endswith(b".the end")
    assert reader.feed(MARK + b"end\n") == [("end", "")]


def test_lines_with_another_nonce_are_chatter():
    assert Reader(NONCE).feed(b"remoter:00000000 end\nremoter: end\n") == []
