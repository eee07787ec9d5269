"""What the options of a server do, and how it starts or says why not; real processes."""

import re
import subprocess
import sys

import pytest

import remoter

from .conftest import wait_for


def test_showmsg_logs_every_command_whole_and_names_its_client(serve):
    served = serve(runner="plain", showmsg=True)
    with served.connect() as session:
        session.run("x = 1\ny = 2")
        log = session._query("log")["text"]
    assert re.search(r"RMSG \S*@\S* pid \d+: x = 1\\ny = 2", log)


def test_without_showmsg_no_command_is_in_the_log(serve):
    served = serve(runner="plain")
    with served.connect() as session:
        session.run("x = 'not to be logged'")
        log = session._query("log")["text"]
    assert "INIT" in log and "ATTACH" in log
    assert "not to be logged" not in log


def test_a_logfile_is_appended_to(serve, home):
    path = home / "server.txt"
    path.write_text("what was there\n")
    served = serve(runner="plain", logfile=str(path), showmsg=True)
    with served.connect() as session:
        session.run("1 + 1")
        assert "1 + 1" in session._query("log")["text"]
    written = path.read_text()
    assert written.startswith("what was there\n")
    assert "RMSG" in written


def test_verbose_shows_on_the_servers_terminal_who_comes_and_what_is_printed(home):
    argv = [sys.executable, "-m", "remoter", "server", "--verbose", "--runner", "plain", "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("Ctrl-C"):
                break
        with remoter.connect() as session:
            session.run("print('seen on the server')", quiet=True)
            session.shutdown()
        errors = process.stderr.read()
    assert "ATTACH" in errors
    assert "SOUT seen on the server" in errors


def test_the_password_is_in_no_log_and_no_command_line(serve):
    served = serve(runner="plain", password="correct-horse-staple", showmsg=True, verbose=True)
    with served.connect_tcp(password="correct-horse-staple") as session:
        assert session.run("1").text == "1"
        log = session._query("log")["text"]
    assert "correct-horse-staple" not in log
    for pid in served.processes:
        for part in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{part}", "rb") as file:
                assert b"correct-horse-staple" not in file.read()


@pytest.mark.parametrize(
    ("python", "cause"),
    [
        ("/no/such/python", "No such file"),
        ("/bin/false", "exit code 1 before it was ready"),
        ("/etc/passwd", "Permission denied"),
    ],
)
def test_an_interpreter_that_cannot_be_started_is_an_error_with_its_last_words(serve, python, cause):
    with pytest.raises(remoter.RemoterError, match=re.escape(cause)) as caught:
        serve(python=python)
    assert f"`{python}`" in str(caught.value)
    assert "--python" in str(caught.value)


def test_an_interpreter_too_old_says_so(serve, home):
    program = home / "python2"
    program.write_text("#!/bin/sh\necho 'SyntaxError: invalid syntax in this old thing' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(remoter.RemoterError, match="SyntaxError: invalid syntax in this old thing"):
        serve(python=str(program))


def test_nothing_is_left_of_a_session_that_could_not_start(serve, home):
    with pytest.raises(remoter.RemoterError):
        serve(python="/no/such/python")
    wait_for(lambda: not list((home / "runtime").glob("*")), timeout=40, what="the run directory is gone")
    assert not list((home / "state" / "servers").glob("*"))


def test_a_password_where_a_key_would_do_is_verified(serve):
    served = serve(runner="plain", password="right-one")
    with pytest.raises(remoter.AuthError):
        served.connect_tcp(password="wrong-one")
    with served.connect_tcp(password="right-one") as session:
        assert session.run("1").text == "1"


def test_insecure_must_be_said_on_both_sides(serve):
    served = serve(runner="plain", secure=False)
    with pytest.raises(remoter.RemoterError, match="secure"):
        remoter.connect(f"127.0.0.1:{served.port}", timeout=5)
    with (
        pytest.warns(UserWarning, match="secure"),
        remoter.connect(f"127.0.0.1:{served.port}", secure=False) as s,
    ):
        assert not s.is_secure
        assert s.run("1").text == "1"


def test_an_insecure_client_is_refused_by_a_secure_server(serve):
    served = serve(runner="plain")
    with pytest.raises(remoter.RemoterError):
        remoter.connect(f"127.0.0.1:{served.port}", secure=False, timeout=5)
