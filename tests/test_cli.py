"""The command line: what it takes, what it prints, its exit codes; through real processes and real sessions."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import pexpect
import pytest

from remoter import _cli, _config, _listing, _records, _usage
from remoter._address import key_to_text
from remoter._errors import RemoterError
from remoter._security import new_keys
from tests.conftest import is_alive, wait_for
from tests.test_keeper import quiet_port

REMOTER = [sys.executable, "-m", "remoter"]


def remoter(*words, stdin=None, timeout=60, **variables):
    """The command in a process of its own."""
    return subprocess.run(
        [*REMOTER, *words],
        capture_output=True,
        text=True,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env={**os.environ, **variables},
        timeout=timeout,
    )


def end_all_sessions():
    """End the sessions of this test from outside, so that nothing stays even where `stop` is broken."""
    left = list(_records.records())
    for record in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
    for record in left:
        wait_for(lambda record=record: not record.is_alive, what=f"{record.name} has ended")


@pytest.fixture
def stop_all():
    """Ends whatever sessions the test started through the command line."""
    yield
    end_all_sessions()


# --- parsing, in this process ------------------------------------------------------------------


def call(capsys, *words):
    """The command in this process: its exit code and what it printed."""
    code = _cli.main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_help_has_the_sections_and_ends_with_examples(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    places = [out.index(f"{title}:") for title in [*_usage.SECTIONS, "Examples"]]
    assert places == sorted(places)
    for name in [name for names in _usage.SECTIONS.values() for name in names]:
        assert re.search(rf"^  {name} ", out, re.MULTILINE)
    for alias in _usage.ALIASES:
        assert not re.search(rf"^  {alias} ", out, re.MULTILINE)
    assert "..." not in out.replace("COMMAND ...", ""), "a line is cut off"


def test_every_command_is_in_a_section_and_has_help_with_no_line_too_long(capsys):
    listed = [name for name, command in _cli.cli.commands.items() if not command.hidden]
    assert sorted(listed) == sorted(name for names in _usage.SECTIONS.values() for name in names)
    for name in listed:
        code, out, _ = call(capsys, name, "--help")
        assert code == 0
        assert f"remoter {name}" in out
        assert max(len(line) for line in out.splitlines()) <= 80


@pytest.mark.parametrize(("alias", "name"), sorted(_usage.ALIASES.items()))
def test_an_alias_is_its_command(capsys, alias, name):
    _, out, _ = call(capsys, alias, "--help")
    assert out.startswith(f"Usage: remoter {name}")


@pytest.mark.parametrize(
    ("typed", "near"), [("clinet", "client"), ("sever", "server"), ("batc", "batch"), ("lss", "ls")]
)
def test_an_unknown_command_names_the_near_one(capsys, typed, near):
    code, _, err = call(capsys, typed)
    assert code == 2
    assert f"no command `{typed}`" in err
    assert f"`remoter {near}`" in err


def test_an_unknown_option_names_the_near_one(capsys):
    code, _, err = call(capsys, "server", "--prot", "0")
    assert code == 2
    assert "no option `--prot`" in err
    assert "`--port`" in err


@pytest.mark.parametrize("typed", [["--password", "secret"], ["--password=secret"]])
@pytest.mark.parametrize("command", ["server", "client", "batch", "log", "doctor"])
def test_a_password_is_never_taken_from_the_command_line(capsys, command, typed):
    code, _, err = call(capsys, command, *typed)
    assert code == 2
    assert "--password-file" in err
    assert "REMOTER_PASSWORD" in err
    assert "secret" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["server", "--port", "x"],
        ["server", "--lang", "cobol"],
        ["log", "--since", "x"],
        ["stop", "a", "--all"],
        ["client", "a", "b"],
        ["relay"],
        ["keys", "authorize", "x"],
        ["server", "--port", "80"],
        ["server", "--port", "70000"],
        ["client", "http://big"],
        ["client", "big:1:2"],
        ["batch", "-c", "1", "-c", "2"],
        ["server", "--insecure", "--listen", "0.0.0.0"],
        ["server", "--logfile", "/nonexistent/x.log"],
    ],
)
def test_wrong_usage_is_2_and_one_error_with_a_hint(capsys, words):
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert re.match(r"error: .+ \[\S+\]\n", err)
    assert "hint: " in err or "cause: " in err
    assert "Traceback" not in err
    assert "Errno" not in err


def test_options_come_from_variables_too(capsys, monkeypatch):
    monkeypatch.setenv("REMOTER_SERVER_PORT", "80")
    code, _, err = call(capsys, "serve")
    assert code == 2
    assert "port `80`" in err


def test_version(capsys):
    from remoter import __version__

    assert call(capsys, "--version")[1] == f"remoter {__version__}\n"


@pytest.mark.parametrize(
    ("mode", "content", "said"),
    [(0o644, "secret\n", "open to others"), (0o600, "\n", "is empty"), (None, "", "cannot read")],
)
def test_a_bad_password_file_is_refused(capsys, tmp_path, mode, content, said):
    path = tmp_path / "password"
    if mode is not None:
        path.write_text(content)
        path.chmod(mode)
    code, _, err = call(capsys, "server", "--password-file", str(path))
    assert code == 2
    assert said in err
    assert "secret" not in err


def test_a_mistake_of_ours_is_shown_whole_and_as_such(capsys, monkeypatch):
    def fail():
        raise ValueError("odd")

    monkeypatch.setattr(_listing, "sessions", fail)
    code, _, err = call(capsys, "ls")
    assert code == 1
    assert "Traceback (most recent call last):" in err
    assert "\nerror: remoter itself failed; a traceback is for its authors   [bug]\n" in err
    # What a client sees who asks for it over ssh, of which he gets the causes and hints.
    assert re.search(r"^cause: ValueError: odd \(test_cli.py, line \d+\)$", err, re.MULTILINE)


def test_a_mistake_of_ours_on_another_machine_is_told_here(capsys, monkeypatch):
    from remoter import _there

    def fail():
        raise ValueError("odd\nand long")

    monkeypatch.setattr(_listing, "sessions", fail)
    said = call(capsys, "ls")[2]
    monkeypatch.setattr(
        _there, "run_there", lambda _, words, **__: subprocess.CompletedProcess(words, 1, "", said)
    )
    code, _, err = call(capsys, "ls", "ssh://big")
    assert code == 1
    assert "error: on big: remoter itself failed" in err
    assert "cause: ValueError: odd (test_cli.py, line " in err


def test_our_tracebacks_are_shown_only_with_debug(capsys):
    assert "Traceback" not in call(capsys, "client", "http://big")[2]
    assert "Traceback" in call(capsys, "client", "--debug", "http://big")[2]
    shown = call(capsys, "--debug", "client", "http://big")[2]
    assert "Traceback" in shown
    assert (shown.count("error: "), shown.count("hint: ")) == (1, 1)


def test_colour_is_for_terminals_and_honours_no_color(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert _usage.coloured("error: x") == "error: x"  # not a terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in _usage.coloured("error: x\n hint: y")
    monkeypatch.setenv("NO_COLOR", "1")
    assert _usage.coloured("error: x") == "error: x"


def test_help_imports_little():
    code = "import sys, remoter._cli as c; c.main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = done.stderr
    for heavy in ["asyncio", "zmq", "msgspec", "IPython", "prompt_toolkit", "pathlib", "subprocess"]:
        assert f"'{heavy}'" not in loaded, f"{heavy} is imported for --help"


# --- nobody there ------------------------------------------------------------------------------


def test_without_sessions_the_bare_command_says_how_to_start_one():
    done = remoter()
    assert done.returncode == 0
    assert "no session runs here" in done.stdout
    assert "remoter server" in done.stderr
    assert json.loads(remoter("ls", "--json").stdout) == []


@pytest.mark.parametrize("command", ["client", "stop", "restart", "interrupt", "log"])
def test_without_sessions_others_are_255_with_a_hint(command):
    done = remoter(command)
    assert done.returncode == 255
    assert "remoter server" in done.stderr


def test_an_unreachable_port_is_255():
    done = remoter("interrupt", "127.0.0.1:1024")
    assert done.returncode == 255
    assert "nothing listens" in done.stderr


@pytest.mark.parametrize("command", ["stop", "restart"])
def test_a_session_that_is_to_be_ended_is_not_offered_to_be_started(command):
    for words in [[command], [command, "nosuch"]]:
        err = remoter(*words).stderr
        assert "--name nosuch" not in err
        assert "start=True" not in err
        assert "--start" not in err


def test_a_word_that_is_no_file_may_have_been_meant_as_a_session(home):
    done = remoter("batch", "work", stdin="1")
    assert done.returncode == 2
    assert "`remoter batch work -`" in done.stderr


def test_errors_of_commands_name_options_not_arguments(capsys, monkeypatch):
    def fail():
        raise RemoterError("odd", hints="leave `secure=False` (`--insecure`) out")

    monkeypatch.setattr(_listing, "sessions", fail)
    assert "hint: leave `--insecure` out" in call(capsys, "ls")[2]


def test_options_that_click_refuses_are_quoted_as_all_else(capsys):
    err = call(capsys, "server", "--port", "x")[2]
    assert "`x`" in err
    assert "'" not in err


# --- what cannot be started -----------------------------------------------------------------------


def test_a_session_that_could_not_start_leaves_nothing_behind(home):
    done = remoter("server", "--background", "--name", "li", "--listen", "192.0.2.1", "--port", "0")
    assert done.returncode == 1
    assert "cannot listen on `192.0.2.1`" in done.stderr
    assert list((home / "runtime").iterdir()) == []


def test_a_failure_to_start_speaks_in_words(home):
    done = remoter("server", "--background", REMOTER_JOURNAL_DIR="/proc/nope")
    assert done.returncode != 0
    assert "cannot make the directory `/proc/nope`" in done.stderr
    done = remoter("server", "--background", "--port", "0", "--python", "/nonexistent")
    assert "/nonexistent" in done.stderr
    assert "No such file" in done.stderr
    assert "Errno" not in done.stderr


def test_an_interpreter_that_is_none_is_told_in_a_few_words(home):
    done = remoter("server", "--background", "--port", "0", "--python", "/bin/sh")
    assert done.returncode == 1
    assert "error: cannot start an interpreter with `/bin/sh`   [python]\ncause: " in done.stderr
    assert "exit code" in done.stderr
    assert "yntax error" in done.stderr
    assert len(done.stderr) < 600
    assert len(done.stderr.splitlines()) == 3


def test_a_start_that_fails_on_the_way_says_why_once(home):
    (home / "runtime").mkdir(mode=0o755)
    done = remoter("batch", "--start", "-c", "1")
    assert done.returncode == 255
    assert done.stderr.count("error:") == 1
    assert done.stderr.count("cause:") == 1
    assert "open to others" in done.stderr
    assert "chmod 700" in done.stderr


def test_an_insecure_session_off_loopback_has_to_be_forced(stop_all):
    refused = remoter("server", "--background", "--port", "0", "--insecure", "--listen", "0.0.0.0")
    assert "--force-insecure" in refused.stderr
    words = ["server", "--background", "--port", "0", "--insecure", "--listen", "0.0.0.0"]
    assert remoter(*words, "--force-insecure").returncode == 0
    # One plain line warns who connects; who only lists or ends it is not told.
    warned = remoter("batch", "--insecure", "-c", "1").stderr
    assert re.fullmatch(r"warning: the connection to session `main` is not secure: .+\n", warned)
    assert remoter("ls").stderr == ""
    assert remoter("stop", "--all").stderr == ""


# --- sessions ----------------------------------------------------------------------------------


def wait_for_row(pattern):
    """Wait until `remoter ls` prints such a line; a session that is slow to answer is listed without its state."""
    wait_for(lambda: re.search(pattern, remoter("ls").stdout, re.MULTILINE), what=f"a line {pattern}")


def test_start_list_restart_interrupt_log_stop(stop_all):
    started = remoter("server", "--background", "--name", "work", "--port", "0")
    assert started.returncode == 0, started.stderr
    assert "session `work`: Python 3" in started.stdout
    assert "password: " in started.stdout

    assert remoter("batch", "work", "-c", "x = 41\nprint('printed')").returncode == 0
    wait_for_row(r"^work +Python 3\S+ +idle \d+ s +0 ")  # once it knows that the batch has left
    (row,) = json.loads(remoter("ls", "--json").stdout)
    assert (row["name"], row["busy"], row["clients"]) == ("work", False, 0)

    assert "nothing runs in `work`" in remoter("interrupt").stdout
    assert remoter("batch", "--detach", "-c", "import time; time.sleep(60)").returncode == 0
    wait_for_row(r"^work .* busy \d+ s ")
    assert "interrupted `work`" in remoter("interrupt", "work").stdout

    assert "restarted `work`" in remoter("restart").stdout
    assert "NameError" in remoter("batch", "-c", "x").stderr

    assert "printed" in remoter("log").stdout
    assert remoter("stop", "work").stdout == "ended `work`\n"
    assert "no session runs here" in remoter("ls").stdout
    events = [json.loads(line) for line in remoter("log", "work", "--json").stdout.splitlines()]
    assert "printed\n" in [event.get("text") for event in events]
    last = events[-1]["seq"]
    assert remoter("log", "work", "--since", str(last)).stdout == ""


def test_log_names_the_client_of_each_event(served):
    for _ in range(2):
        remoter("batch", "-c", "print('x')")
    lines = remoter("log", served.name).stdout.splitlines()
    clients = {line.split()[2] for line in lines if " stdout " in line}
    assert len(clients) == 2


def test_log_f_goes_on_with_what_comes(served):
    process = subprocess.Popen([*REMOTER, "log", "-f"], stdout=subprocess.PIPE, text=True)
    try:
        remoter("batch", "-c", "print('live one')")
        assert any("live one" in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()


def test_log_f_ends_well_with_the_session(served):
    process = subprocess.Popen(
        [*REMOTER, "log", "-f", served.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        remoter("batch", "-c", "print('live one')")
        assert any("live one" in line for line in iter(process.stdout.readline, ""))
        assert remoter("stop").returncode == 0
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert f"session `{served.name}` has ended" in err
    finally:
        process.kill()
        process.communicate()


def test_a_damaged_connection_file_stands_in_the_way_of_its_own_session_only(served, home):
    directory = home / "state" / "servers"
    (directory / f"{_config.host_name()}-net.json").write_text("{")
    (directory / f"{_config.host_name()}-net.json").chmod(0o600)
    (directory / f"{_config.host_name()}-open.json").write_text("{}")
    (directory / f"{_config.host_name()}-open.json").chmod(0o644)
    for words in [["ls"], ["batch", served.name, "-c", "1"], ["interrupt", f"localhost:{served.port}"]]:
        done = remoter(*words)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert remoter("ls").stderr.count("warning: left out: ") == 2
    refused = remoter("batch", "net", "-c", "1")
    assert refused.returncode == 255
    assert "error: cannot read the connection file" in refused.stderr
    assert remoter("stop", "--all").returncode == 0


def test_what_is_no_connection_file_is_left_out_and_named(served, home):
    directory = home / "state" / "servers"
    (directory / "x.json").mkdir()
    (directory / "dead.json").symlink_to("/nonexistent/x")
    os.mkfifo(directory / "pipe.json", 0o600)
    (directory / "deep.json").write_text("[" * 100_000)
    (directory / "deep.json").chmod(0o600)
    for words in [["batch", served.name, "-c", "1"], ["log", "--json"], ["ls"], ["stop", "--all"]]:
        done = remoter(*words)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        if words[0] in ("batch", "log"):  # they look no further than to what they mean
            continue
        for name in ("x", "dead", "pipe", "deep"):
            assert f"{directory / name}.json`" in done.stderr
        assert f"it is no connection file: remove it, `rm -r {directory}/x.json`" in done.stderr
    assert (directory / "x.json").is_dir()


def test_a_connection_file_that_was_removed_is_written_again_when_it_is_missed(served):
    path = _records.record_path(served.record["host"], served.name)
    before = path.read_bytes()
    path.unlink()
    assert remoter("batch", served.name, "-c", "print('here')").stdout == "here\n"
    assert json.loads(path.read_bytes()) == json.loads(before)
    assert path.stat().st_mode & 0o777 == 0o600
    for words in [["ls"], ["stop", served.name]]:
        path.unlink()
        assert served.name in remoter(*words).stdout
    wait_for(lambda: not path.exists(), what="the connection file is removed with the session")


def test_json_of_a_start_has_the_whole_address(stop_all):
    started = json.loads(remoter("server", "--background", "--port", "0", "--json").stdout)
    key = key_to_text(started["server_public"])
    assert started["address"] == f"remoter://127.0.0.1:{started['port']}/#{key}"
    assert remoter("batch", started["address"], "-c", "print('in')").stdout == "in\n"


def test_start_starts_a_session_if_none_runs_and_uses_it_the_next_time(stop_all):
    assert remoter("batch", "--start", "-c", "x = 5").returncode == 0
    assert remoter("batch", "--start", "-c", "print(x)").stdout == "5\n"
    assert len(json.loads(remoter("ls", "--json").stdout)) == 1


def test_stop_all_ends_all(stop_all):
    for name in ["one", "two"]:
        assert remoter("server", "--background", "--port", "0", "--name", name).returncode == 0
    done = remoter("stop", "--all")
    assert sorted(done.stdout.split()) == ["`one`", "`two`", "ended", "ended"]


def test_several_sessions_and_no_name_is_an_error_that_lists_them(serve):
    serve(name="one")
    serve(name="two")
    done = remoter("batch", "-c", "1")
    assert done.returncode in (2, 255)
    assert "`one`" in done.stderr
    assert "`two`" in done.stderr


def test_a_script_on_standard_input_of_client_is_run(served):
    done = remoter("client", stdin="x = 2\nprint(x + 1)\n")
    assert (done.returncode, done.stdout) == (0, "3\n")


def test_the_password_variable_and_file_are_verified_and_hidden_from_the_session(tmp_path, stop_all):
    path = tmp_path / "password"
    path.write_text("right horse\n")
    path.chmod(0o600)
    started = remoter("server", "--background", "--port", "0", "--json", "--password-file", str(path))
    port = json.loads(started.stdout)["port"]
    address = f"127.0.0.1:{port}"
    assert remoter("batch", address, "-c", "print('in')", REMOTER_PASSWORD="right horse").stdout == "in\n"
    wrong = remoter("batch", address, "-c", "1", REMOTER_PASSWORD="wrong")
    assert wrong.returncode == 255
    assert "password" in wrong.stderr


def test_the_session_does_not_inherit_the_password_variable(stop_all):
    assert remoter("server", "--background", "--port", "0", REMOTER_PASSWORD="abc-def").returncode == 0
    done = remoter("batch", "-c", "import os; print(os.environ.get('REMOTER_PASSWORD'))")
    assert done.stdout == "None\n"


# --- the server in the foreground ---------------------------------------------------------------


@pytest.fixture
def foreground():
    """`remoter server` on a terminal, until the test ends."""
    children = []

    def start(*words):
        child = pexpect.spawn(
            REMOTER[0], [*REMOTER[1:], "server", "--port", "0", *words], encoding="utf-8", timeout=30
        )
        children.append(child)
        child.expect(r"session `(\S+)`: Python \S+ \(\S+\), pid (\d+)")
        child.worker = int(child.match[2])
        child.expect("Ctrl-C")
        return child

    yield start
    end_all_sessions()
    for child in children:
        child.close(force=True)


def is_busy():
    """None, if it was slow to answer."""
    (row,) = json.loads(remoter("ls", "--json").stdout)
    return row["busy"]


def test_ctrl_c_on_the_servers_terminal_interrupts_and_twice_ends_it(foreground):
    child = foreground()
    assert remoter("batch", "--detach", "-c", "import time; time.sleep(60)").returncode == 0
    wait_for(is_busy, what="it runs")
    child.sendintr()
    child.expect("again")
    wait_for(lambda: is_busy() is False, what="the run is interrupted")
    # Each is shown before the next is pressed: two signals at once are one. Two within 2 s end it.
    child.sendintr()
    while child.expect(["ending the session", "again"]):
        child.sendintr()
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    wait_for(lambda: not is_alive(child.worker), what="the worker has ended")


def test_sigterm_ends_it_cleanly(foreground):
    child = foreground()
    os.kill(child.pid, signal.SIGTERM)
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    wait_for(lambda: not is_alive(child.worker), what="the worker has ended")
    assert "no session runs here" in remoter("ls").stdout


def test_a_closed_terminal_leaves_the_session_running(foreground):
    child = foreground()
    child.close()  # the terminal goes away: SIGHUP
    assert is_alive(child.worker)
    assert remoter("batch", "-c", "print('alive')").stdout == "alive\n"


# --- keys and doctor ----------------------------------------------------------------------------


def test_keys_are_shown_authorized_trusted_and_forgotten(capsys):
    client, server = new_keys().public, new_keys().public
    assert call(capsys, "keys", "authorize", key_to_text(client), "ana@laptop")[0] == 0
    assert call(capsys, "keys", "trust", server, "big")[0] == 0
    found = json.loads(call(capsys, "keys", "--json")[1])
    assert [(entry["name"], entry["key"]) for entry in found["authorized"]] == [
        ("ana@laptop", key_to_text(client))
    ]
    assert [(entry["name"], entry["key"]) for entry in found["known"]] == [("big", key_to_text(server))]
    assert len(found["own"]) == 2
    shown = call(capsys, "keys")[1]
    assert "ana@laptop" in shown
    assert "big" in shown
    assert call(capsys, "keys", "forget", "big")[0] == 0
    assert call(capsys, "keys", "forget", key_to_text(client))[0] == 0
    code, _, err = call(capsys, "keys", "forget", "big")
    assert code == 1
    assert "`big`" in err
    found = json.loads(call(capsys, "keys", "--json")[1])
    assert (found["authorized"], found["known"]) == ([], [])


def test_a_key_may_begin_as_an_option_does(capsys):
    key = "-" + "h" * 41 + "A"
    assert call(capsys, "keys", "authorize", key, "ana@laptop")[0] == 0
    assert call(capsys, "keys", "trust", key, "big")[0] == 0
    assert json.loads(call(capsys, "keys", "--json")[1])["known"][0]["key"] == key
    assert call(capsys, "keys", "forget", key)[0] == 0
    assert json.loads(call(capsys, "keys", "--json")[1])["known"] == []


def test_a_server_that_was_trusted_without_a_name_is_forgotten_by_host_and_port(capsys):
    from remoter._security import Pins

    Pins().trust(new_keys().public, "localhost:50123 otter")
    assert call(capsys, "keys", "forget", "localhost:50123")[0] == 0
    assert list(Pins()) == []
    Pins().trust(new_keys().public, "a" * 43)
    assert call(capsys, "keys", "forget", "a" * 43)[0] == 0
    assert list(Pins()) == []


def test_a_key_that_is_none_is_refused(capsys):
    code, _, err = call(capsys, "keys", "authorize", "nonsense", "x")
    assert code == 2
    assert "`nonsense` is not a client's public key" in err
    assert "`remoter keys`" in err


def test_doctor_finds_all_well(served):
    done = remoter("doctor", served.name, "--json")
    steps = {step["step"]: step for step in json.loads(done.stdout)}
    assert done.returncode == 0
    assert [step for step in steps if steps[step]["mark"] == "bad"] == []
    assert list(steps)[:7] == ["name", "port", "door", "key", "version", "login", "round trip"]
    through_tcp = remoter("doctor", f"127.0.0.1:{served.port}")
    assert through_tcp.returncode == 0
    assert "round trip" in through_tcp.stdout


def test_doctor_says_where_it_breaks_and_what_to_do():
    done = remoter("doctor", "127.0.0.1:1024")
    assert done.returncode == 255
    assert re.search(r"^BAD +port ", done.stdout, re.MULTILINE)
    assert "hint:" in done.stdout
    assert re.search(r"^- +login ", done.stdout, re.MULTILINE)


def test_doctor_on_something_else_than_remoter():
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for _ in range(3):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        done = remoter("doctor", f"127.0.0.1:{listener.getsockname()[1]}", "--json")
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    steps = {step["step"]: step["mark"] for step in json.loads(done.stdout)}
    assert (steps["port"], steps["door"]) == ("ok", "bad")


# --- relay --------------------------------------------------------------------------------------


def test_a_relay_says_that_nothing_answers_where_it_leads_and_who_leaves(served):
    import socket

    def start(*words):
        command = [*REMOTER, "relay", *words, "--recvport", "0"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    relays = [start("127.0.0.1:1024"), start(f"127.0.0.1:{served.port}", "--verbose")]
    try:
        dead, lively = relays
        assert dead.stderr.readline().startswith("relay from ")
        assert dead.stderr.readline().startswith("nothing answers on 127.0.0.1:1024 now (Connection refused)")
        port = int(re.search(r"from 127.0.0.1:(\d+) ", lively.stderr.readline())[1])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"REMOTER/1\n")
            assert "connected to" in lively.stderr.readline()
        assert "disconnected" in lively.stderr.readline()
    finally:
        for process in relays:
            process.terminate()
            process.communicate()


def test_a_session_is_reached_through_a_relay(served):
    port = quiet_port("127.0.0.1")
    relay = pexpect.spawn(
        REMOTER[0],
        [*REMOTER[1:], "relay", f"127.0.0.1:{served.port}", "--recvport", str(port)],
        encoding="utf-8",
        timeout=30,
    )
    try:
        relay.expect(str(port))
        done = remoter(
            "batch", f"localhost:{port}", "-c", "print('through')", REMOTER_PASSWORD=served.password
        )
        assert done.stdout == "through\n", done.stderr
        relay.sendintr()
        relay.expect(pexpect.EOF)
    finally:
        relay.close(force=True)
