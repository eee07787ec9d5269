"""What `ls` shows: of sessions here, of other machines of a shared home, and of what ssh reaches."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from remoter import _cli, _config, _listing, _records, _there, _usage
from remoter._address import parse
from remoter._errors import ConnectError
from remoter._saved import save_name
from tests.conftest import wait_for

REMOTER = [sys.executable, "-m", "remoter"]
BUSY = "import time; time.sleep(60)"


def remoter(*words, timeout=60):
    """The command in a process of its own."""
    return subprocess.run(
        [*REMOTER, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout
    )


def call(capsys, *words):
    """The command in this process: its exit code and what it printed."""
    code = _cli.main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A session that is slow to answer is no session that does not answer."""
    monkeypatch.setattr(_listing, "PATIENCE", 30.0)


def other_machine(served, host, **changes):
    """A connection file as another machine of this home would have written it."""
    record = _records.read_record(_records.record_path(served.record["host"], served.name))
    fields = {field: getattr(record, field) for field in record.__struct_fields__}
    _records.write_record(_records.Record(**{**fields, "host": host, **changes}))


def resident(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- what a session says of itself -----------------------------------------------------------


def test_a_session_tells_since_when_its_state_holds_and_how_much_memory_it_has(session, served):
    session.run("1")
    info = session.info
    assert not info.busy
    assert 0 <= info.now - info.since < 60
    assert info.memory == pytest.approx(resident(served.worker_pid), rel=0.2)

    run = session.submit(BUSY)
    wait_for(lambda: session.info.busy, what="the run began")
    began = session.info.since
    assert began >= info.since
    run.interrupt()
    wait_for(lambda: not session.info.busy, what="the run ended")
    assert session.info.since >= began

    session.submit("import os; os._exit(3)")
    wait_for(lambda: session.info.version is None, what="it died")
    died = session.info
    assert died.memory is None
    assert died.since >= began


def test_memory_that_is_taken_shows(session):
    before = session.info.memory
    session.run("x = bytes(b'x') * 200_000_000")
    assert session.info.memory - before > 190_000_000


# --- the table -------------------------------------------------------------------------------


def test_ls_shows_language_state_clients_and_memory(capsys, serve):
    free, busy, dead = (serve(name=name) for name in ("free", "busy", "dead"))
    with free.connect(), busy.connect() as at_busy, dead.connect() as at_dead:
        at_busy.submit(BUSY)
        at_dead.submit("import os; os._exit(3)")
        wait_for(lambda: at_busy.info.busy and at_dead.info.version is None, what="busy and dead")
        code, out, err = call(capsys, "ls")
        rows = {row["name"]: row for row in json.loads(call(capsys, "ls", "--json")[1])}
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split("  ")[0] == "SESSION"
    assert re.findall(r"[A-Z]+(?: [A-Z]+)*", head) == [
        "SESSION", "LANGUAGE", "STATE", "CLIENTS", "MEMORY", "STARTED", "LISTENS ON"
    ]  # fmt: skip
    version = re.escape(".".join(map(str, sys.version_info[:3])))
    at = r"\d\d:\d\d +127\.0\.0\.1:\d+"
    assert re.fullmatch(rf"busy +Python {version} +busy \d+ s +1 +\d+ MB +{at}", lines[0])
    assert re.fullmatch(rf"dead +Python +died \d+ s ago +1 +- +{at}", lines[1])
    assert re.fullmatch(rf"free +Python {version} +idle \d+ s +1 +\d+ MB +{at}", lines[2])
    assert {name: row["state"] for name, row in rows.items()} == {
        "free": "idle",
        "busy": "busy",
        "dead": "died",
    }
    row = rows["busy"]
    assert (row["here"], row["host"], row["reach"]) == (True, _config.host_name(), "busy")
    assert row["memory"] > 10_000_000
    assert 0 <= row["seconds"] < 60
    assert row["pid"] == busy.worker_pid


def test_ls_of_a_name_shows_that_session(capsys, serve):
    for name in ("one", "two"):
        serve(name=name)
    (row,) = json.loads(call(capsys, "ls", "two", "--json")[1])
    assert row["name"] == "two"


def test_a_session_that_does_not_answer_is_listed_as_such(capsys, served, monkeypatch):
    import signal

    monkeypatch.setattr(_listing, "PATIENCE", 0.3)
    os.kill(served.server_pid, signal.SIGSTOP)
    try:
        assert re.search(r"^main +Python +no answer +- +- ", call(capsys, "ls")[1], re.MULTILINE)
    finally:
        os.kill(served.server_pid, signal.SIGCONT)


def test_sessions_on_other_machines_of_a_shared_home_are_marked_and_asked_where_that_is_possible(
    capsys, serve
):
    served = serve(listen=["0.0.0.0"])
    other_machine(served, "node17", listen="127.0.0.1")
    other_machine(served, "localhost")  # its host's name leads here: so it answers
    code, out, err = call(capsys, "ls")
    assert code == 0
    head, first, *others = out.splitlines()
    assert head.split()[:2] == ["SESSION", "HOST"]
    assert first.split()[:2] == ["main", _config.host_name()]
    assert [line.split()[1] for line in others] == ["localhost", "node17"]
    assert re.search(r" idle \d+ s .* \d+ MB ", others[0])
    assert re.search(r" on node17 +- +- ", others[1])
    assert err == "hint: `remoter client ssh://node17/main` reaches `main` on node17\n"
    rows = json.loads(call(capsys, "ls", "--json")[1])
    assert [row["reach"] for row in rows] == ["main", f"localhost:{served.port}", "ssh://node17/main"]
    assert [row["here"] for row in rows] == [True, False, False]
    (row,) = json.loads(call(capsys, "ls", "node17", "--json")[1])
    assert row["state"] == "elsewhere"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (172_800, "2 days")],
)
def test_a_time_is_shown_in_one_unit(seconds, shown):
    assert _listing._long(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (184_300_000, "184 MB"), (999_600_000, "1.0 GB"),
     (23_400_000_000, "23 GB"), (1.5e12, "1.5 TB"), (9e15, "9000.0 TB")],
)  # fmt: skip
def test_memory_is_shown_in_one_unit(count, shown):
    assert _listing.size(count) == shown


# --- addresses that cannot be listed ---------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("big:55555", "`remoter ls ssh://big`"),
        ("nosuch", "`remoter ls ssh://nosuch`"),
        ("saved", "`remoter ls ssh://192.0.2.1`"),
        ("http://big", "`big`"),
        ("ssh://", "`"),
    ],
)
def test_ls_of_what_ssh_does_not_reach_is_refused_with_a_hint(capsys, address, hint):
    save_name("saved", parse("192.0.2.1:55555"))
    code, out, err = call(capsys, "ls", address)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert hint in err.partition("hint: ")[2]


# --- what comes from another machine ---------------------------------------------------------


@pytest.fixture
def answer(monkeypatch):
    """Plays another machine: what `remoter` prints there, and how it ends."""

    class Asked(list):
        preludes = []  # noqa: RUF012

    asked = Asked()
    asked.preludes = []

    def play(stdout="", stderr="", code=0):
        def run_there(there, arguments, **_):
            asked.append((str(there.address), *arguments))
            asked.preludes.append(there.prelude)
            return subprocess.CompletedProcess(arguments, code, stdout, stderr)

        monkeypatch.setattr(_there, "run_there", run_there)
        return asked

    return play


def test_a_list_from_another_machine_is_shown_in_the_same_table_and_commands_no_terminal(capsys, answer):
    asked = answer(
        json.dumps(
            [
                {"name": "ma\x1b]0;evil\x07in", "host": "big\n\u202e", "state": "idle", "seconds": 200.0,
                 "language": "Python \x9b2J3.12.4", "clients": 2, "memory": 184_000_000, "started": 1e300,
                 "address": "127.0.0.1:55555\r", "more": {"unknown": [1]}},
                {"name": "main", "host": "big", "state": "busy", "seconds": 12, "started": 0},
            ]
        )
    )  # fmt: skip
    code, out, err = call(capsys, "ls", "ssh://ana@big")
    assert (code, err) == (0, "")
    assert asked == [("ssh://ana@big", "ls", "--json")]
    assert out.replace("\n", "").isprintable()
    assert len(out.splitlines()) == 3
    assert "idle 3 min  2        184 MB" in out
    assert "busy 12 s" in out
    first, second = json.loads(call(capsys, "ls", "ssh://ana@big", "--json")[1])
    assert first["reach"] == ""
    assert second["reach"] == "ssh://ana@big/main"
    assert len(call(capsys, "ls", "ssh://ana@big/main")[1].splitlines()) == 2


@pytest.mark.parametrize(
    "stdout", ["", "[1, 2]", '{"name": 1}', '[{"name": 5, "host": "x"}]', "[" * 9000, "\udcff"]
)
def test_a_list_that_is_none_is_an_error_that_says_so(capsys, answer, stdout):
    answer(stdout)
    code, out, err = call(capsys, "ls", "ssh://big")
    assert (code, out) == (255, "")
    assert "error: what `remoter ls --json` prints on big is not understood here   [there]" in err
    assert "Traceback" not in err


def test_an_error_there_is_told_with_the_name_of_the_machine(capsys, answer):
    answer(stderr="motd \x1b[1m\nerror: odd thing   [x]\ncause: \x1b[31mred\n hint: `remoter ls`\n", code=1)
    code, out, err = call(capsys, "ls", "ssh://big")
    assert (code, out) == (1, "")
    assert err == "error: on big: odd thing   [there]\ncause: \\x1b[31mred\n hint: on big: `remoter ls`\n"
    answer(stderr="bash: remoter: command not found\n", code=127)
    assert "cause: bash: remoter: command not found" in call(capsys, "ls", "ssh://big")[2]
    answer(code=3)
    assert "cause: exit code 3" in call(capsys, "ls", "ssh://big")[2]


def test_where_no_session_runs_there_it_says_so_and_how_one_is_started(capsys, answer):
    answer("[]")
    code, out, err = call(capsys, "ls", "ssh://big")
    assert (code, out) == (0, "no session runs at `ssh://big`\n")
    assert err == "hint: `remoter client ssh://big` starts one\n"
    assert json.loads(call(capsys, "ls", "ssh://big", "--json")[1]) == []


def test_a_name_that_is_saved_for_an_ssh_address_lists_that_machine(capsys, answer, serve):
    asked = answer("[]")
    save_name("big", parse("ssh://ana@big:2222"))
    assert call(capsys, "ls", "big")[0] == 0
    assert asked == [("ssh://ana@big:2222", "ls", "--json")]
    serve(name="big")  # a session here is meant first
    assert len(call(capsys, "ls", "big")[1].splitlines()) == 2
    assert len(asked) == 1


def test_what_to_type_is_made_here_and_not_taken_from_a_list(capsys, answer):
    row = {"host": "node17", "here": False, "state": "elsewhere", "reach": "x; rm -rf ~"}
    answer(
        json.dumps(
            [
                {**row, "name": "good"},
                {**row, "name": "-oProxyCommand"},
                {**row, "name": "n", "host": "h/x;"},
                {**row, "name": "odd", "host": "a@b"},
                {**row, "name": "main", "here": True, "state": "idle"},
            ]
        )
    )
    code, _, err = call(capsys, "ls", "ssh://ana@big:2222")
    assert (code, err) == (0, "hint: `remoter client ssh://ana@node17/good` reaches `good` on node17\n")
    rows = json.loads(call(capsys, "ls", "ssh://ana@big:2222", "--json")[1])
    assert [row["reach"] for row in rows] == [
        "ssh://ana@node17/good",
        "",
        "",
        "",
        "ssh://ana@big:2222/main",
    ]


def test_a_prelude_runs_there_before_whatever_is_asked(capsys, answer, monkeypatch):
    def connect(target, **_):
        assert (target.there.prelude, target.python) == (preludes[0], None)
        raise error

    error = ConnectError("it does not answer", id="connect")
    monkeypatch.setattr(_usage.Target, "connect", connect)
    save_name("big", parse("ssh://ana@big"), prelude="module load saved")
    typed = ["--prelude", "module load typed # ssh://x"]
    for more, preludes in ([], ["module load saved"]), (typed, [typed[1]]):
        asked = answer("[]")
        call(capsys, "ls", "big", *more)
        call(capsys, "stop", "big", *more)
        call(capsys, "stop", "big", "--all", *more)
        error.id = "no-session"
        call(capsys, "log", "big", *more)
        error.id = "connect"
        assert [words[1] for words in asked] == ["ls", "stop", "stop", "log"]
        assert asked.preludes == preludes * 4
        asked.clear()
        asked.preludes.clear()
    asked = answer("{}")
    call(capsys, "keys", *typed, "ssh://big")
    call(capsys, "keys", "ssh://big", *typed)
    call(capsys, "keys", "trust", "ssh://big", *typed)
    assert asked == [("ssh://big", "keys", "--json")] * 3
    assert asked.preludes == [typed[1]] * 3


def test_stop_all_on_another_machine(capsys, answer):
    asked = answer("ended `one`\nended `\x1btwo`\n", "error: no answer   [x]\n", 255)
    code, out, err = call(capsys, "stop", "ssh://big", "--all")
    assert asked == [("ssh://big", "stop", "--all")]
    assert (code, out) == (255, "on big: ended `one`\non big: ended `\\x1btwo`\n")
    assert "error: on big: no answer" in err
    code, _, err = call(capsys, "stop", "ssh://big/main", "--all")
    assert (code, len(asked)) == (2, 1)
    assert "exclude each other" in err


def test_a_session_there_that_does_not_answer_is_ended_on_its_own_machine(capsys, answer, monkeypatch):
    asked = answer("ended `main`\n")
    error = ConnectError("session `main` on big does not answer", id="connect")

    def connect(*_, **__):
        raise error

    monkeypatch.setattr(_usage.Target, "connect", connect)
    assert call(capsys, "stop", "ssh://big/main")[:2] == (0, "on big: ended `main`\n")
    assert asked == [("ssh://big/main", "stop", "main")]
    for id in ("ssh-refused", "no-session", "several", "ended"):  # there is nobody to ask, or nothing to end
        error.id = id
        assert call(capsys, "stop", "ssh://big/main")[0] == 255
    assert len(asked) == 1


# --- through ssh -----------------------------------------------------------------------------


def test_sessions_there_are_started_listed_logged_and_stopped(ssh_host):
    ssh_host()
    assert "no session runs at `ssh://there`" in remoter("ls", "ssh://there").stdout
    missing = remoter("stop", "ssh://there/nosuch")
    assert missing.returncode == 255
    assert "no session `nosuch` runs on there" in missing.stderr

    done = remoter("batch", "ssh://there/work", "-c", "print('printed there')")
    assert (done.returncode, done.stdout) == (0, "printed there\n"), done.stderr
    assert re.search(
        r"^work +Python 3\S+ +idle \d+ s +0 +\d+ MB ", remoter("ls", "ssh://there").stdout, re.MULTILINE
    )
    (row,) = json.loads(remoter("ls", "ssh://there/work", "--json").stdout)
    assert (row["name"], row["state"], row["reach"]) == ("work", "idle", "ssh://there/work")
    assert json.loads(remoter("ls", "--json").stdout) == []  # it is not here

    assert "printed there" in remoter("log", "ssh://there/work").stdout
    assert remoter("stop", "ssh://there/work").stdout == "ended `work` on there\n"
    logged = remoter("log", "ssh://there/work")
    assert logged.returncode == 0, logged.stderr
    assert "printed there" in logged.stdout
    missing = remoter("log", "ssh://there/nosuch").stderr
    assert missing.startswith("error: on there: no session `nosuch` ended here within the last 7 days")
    assert remoter("stop", "ssh://there", "--all").stdout == "on there: no session runs here\n"


def test_where_only_a_prelude_has_remoter_every_command_takes_it(ssh_host):
    ssh_host(remoter=False)
    prelude = ["--prelude", f"PATH={Path(sys.executable).parent}:$PATH"]
    done = remoter("batch", "ssh://there", *prelude, "-c", "print('printed there')")
    assert done.stdout == "printed there\n", done.stderr
    assert "no remoter" in remoter("ls", "ssh://there").stderr
    assert re.search(
        r"^main +Python 3\S+ +idle ", remoter("ls", "ssh://there", *prelude).stdout, re.MULTILINE
    )
    assert "as a server" in remoter("keys", *prelude, "ssh://there").stdout
    assert remoter("restart", "ssh://there", *prelude).returncode == 0
    assert remoter("interrupt", "ssh://there", *prelude).returncode == 0
    looked = remoter("doctor", "ssh://there", *prelude)
    assert looked.returncode == 0, looked.stdout
    assert str(Path(sys.executable).parent / "remoter") in looked.stdout
    assert remoter("stop", "ssh://there", *prelude).stdout == "ended `main` on there\n"
    assert "printed there" in remoter("log", "ssh://there/main", *prelude).stdout
    assert remoter("stop", "ssh://there", "--all", *prelude).stdout == "on there: no session runs here\n"
