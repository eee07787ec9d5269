"""connect() and the Session against real servers: running, asking, leaving, coming in."""

import contextlib
import gc
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

import remoter
from remoter._address import key_to_text, parse
from remoter._client import open_session
from remoter._saved import save_name, saved_names

from .conftest import is_alive, wait_for

ENDLESS = "import time\nwhile True: time.sleep(0.05)"


def interrupt_here_when(condition):
    """Press Ctrl-C in this process once the condition holds."""

    def press():
        wait_for(condition)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def is_waited_for(run):
    """Whether it runs, and the thread that runs it here has come to where it waits for the end."""
    return run.status == "running" and bool(run._waiting)


# --- running ---------------------------------------------------------------------------------


def test_a_run_gives_value_output_and_status(session, capsys):
    result = session.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    assert (result.status, result.text, result.stdout, result.stderr) == ("ok", "42", "out\n", "err\n")
    assert result.elapsed >= 0
    assert result.error is None
    assert result.id[1] == 1
    assert capsys.readouterr() == ("out\n", "err\n")
    assert session.run("x = 1").text == ""


def test_a_quiet_run_prints_nothing_here(session, capsys):
    assert session.run("print('hush')", quiet=True).stdout == "hush\n"
    assert capsys.readouterr() == ("", "")


def test_code_that_raises_is_a_run_error_with_the_traceback_and_the_result(session, capsys):
    with pytest.raises(remoter.RunError, match="ZeroDivisionError") as caught:
        session.run("print('before')\n1/0")
    assert caught.value.result.stdout == "before\n"
    assert caught.value.result.status == "error"
    assert "\x1b" not in str(caught.value)
    assert "Traceback" not in capsys.readouterr().err
    result = session.run("1/0", check=False)
    assert "division by zero" in result.error


def test_output_arrives_while_the_run_goes_on(session):
    run = session.submit("print('first', flush=True)\ninput()")
    for event in run.events():
        if event.kind == "stdout":
            assert event.text == "first\n"
            break
    assert run.status == "running"
    wait_for(lambda: session._pending_asks)  # or the answer would be typed into what it started
    run.answer("x")
    assert run.wait(15).status == "ok"


def test_runs_queue_in_order_and_can_be_waited_for_by_several_threads(session):
    session.run("seen = []", quiet=True)
    runs = [session.submit(f"seen.append({i}); len(seen)") for i in range(5)]
    texts = {}
    threads = [
        threading.Thread(target=lambda i=i, run=run: texts.update({i: run.wait(15).text}))
        for i, run in enumerate([*runs, *runs])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {i: str(i % 5 + 1) for i in range(10)}
    assert [event.kind for event in runs[0].events()][-1] == "done"


def test_one_session_serves_several_threads_at_once(session):
    results = {}

    def work(i):
        results[i] = session.run(f"{i} * 2", quiet=True).text

    threads = [threading.Thread(target=work, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: str(2 * i) for i in range(8)}


def test_a_timeout_ends_the_waiting_and_not_the_run(session, home):
    code = f"import os, time\nwhile not os.path.exists({str(home / 'go')!r}): time.sleep(0.01)\n'late'"
    with pytest.raises(remoter.RunTimeoutError) as caught:
        session.run(code, timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    (home / "go").touch()
    assert caught.value.run.wait(15).text == "'late'"


def test_half_characters_and_other_things_that_are_no_code_are_refused_here(session):
    with pytest.raises(remoter.RemoterError, match="half a character"):
        session.run("x = '\ud800'")
    with pytest.raises(TypeError, match="not bytes"):
        session.run(b"1")
    with pytest.raises(remoter.RemoterError, match="longer than"):
        session.run("#" * (33 * 2**20))
    assert session.run("1").text == "1"


def test_sys_exit_gives_its_code_and_the_session_goes_on(session):
    result = session.run("import sys; sys.exit(3)", check=False)
    assert result.exit == 3
    assert session.run("1").text == "1"


# --- interrupting ----------------------------------------------------------------------------


def test_interrupt_ends_the_current_run_of_any_client(served, session):
    run = session.submit(ENDLESS)
    wait_for(lambda: run.status == "running")
    with served.connect() as other:
        assert other.interrupt() is True
    assert run.wait(15).status == "interrupted"
    assert session.interrupt() is False


def test_a_queued_run_is_cancelled_and_never_runs(session):
    first, second = session.submit(ENDLESS), session.submit("y = 1")
    wait_for(lambda: first.status == "running")
    second.interrupt()
    assert second.wait(15).status == "cancelled"
    first.interrupt()
    assert first.wait(15).status == "interrupted"
    assert session.run("'y' in globals()").text == "False"


def test_ctrl_c_interrupts_there_and_raises_here(session):
    thread = interrupt_here_when(
        lambda: any(is_waited_for(run) for run in list(session._inbox.runs.values()))
    )
    with pytest.raises(KeyboardInterrupt):
        session.run(ENDLESS)
    thread.join()
    assert session.run("1").text == "1"


def test_ctrl_c_gives_up_after_two_seconds_if_the_run_does_not_end(session, home):
    go = home / "go"
    stubborn = f"""
import os, time
while not os.path.exists({str(go)!r}):
    try:
        print("inside", flush=True)
        while not os.path.exists({str(go)!r}): time.sleep(0.05)
    except KeyboardInterrupt: pass
"""
    runs, pressed = session._inbox.runs, []

    def is_inside():
        if 1 in runs and is_waited_for(runs[1]) and any(e.kind == "stdout" for e in runs[1]._events):
            pressed.append(time.monotonic())
        return pressed

    thread = interrupt_here_when(is_inside)
    with pytest.raises(KeyboardInterrupt):
        session.run(stubborn)
    assert time.monotonic() - pressed[0] > 1.9
    assert runs[1].status == "running"
    go.touch()
    thread.join()


def test_an_interrupted_run_raises_its_own_error(session):
    run_error = []

    def run():
        with pytest.raises(remoter.RunInterruptedError) as caught:
            session.run(ENDLESS)
        run_error.append(caught.value)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: session.info.busy)
    session.interrupt()
    thread.join()
    assert isinstance(run_error[0], remoter.RunError)
    assert run_error[0].result.status == "interrupted"


# --- asks ------------------------------------------------------------------------------------


def test_an_ask_is_answered_by_the_callable(served):
    asked = []

    def answer(prompt, hidden):
        asked.append((prompt, hidden))
        return "ann"

    with served.connect(ask=answer) as session:
        assert session.run("import getpass\ninput('name? ') + getpass.getpass('word? ')").text == "'annann'"
    assert asked == [("name? ", False), ("word? ", True)]


def test_without_anyone_to_ask_the_code_gets_end_of_file(session, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(remoter.RunError, match="EOFError"):
        session.run("input('name? ')")


def test_an_ask_can_be_answered_from_elsewhere(session):
    run = session.submit("input('name? ')")
    [event] = wait_for(lambda: session._pending_asks)
    assert (event.text, event.run) == ("name? ", run.id)
    run.answer("bob")
    assert run.wait(15).text == "'bob'"
    assert not session._pending_asks


# --- questions -------------------------------------------------------------------------------


def test_questions_are_answered_also_while_a_command_runs(session):
    session.run("table = [1, 2, 3]", quiet=True)
    run = session.submit(ENDLESS)
    wait_for(lambda: run.status == "running")
    assert session.is_complete("for i in x:").status == "incomplete"
    assert session.is_complete("1 +* 2").status == "invalid"
    assert session.is_complete("1").status == "complete"
    assert "table" in session.complete("tab").matches
    assert session.inspect("table").found
    assert [v.name for v in session.variables() if v.name == "table"] == ["table"]
    assert session.info.busy
    run.interrupt()
    run.wait(15)


def test_info_tells_what_and_where(served, session):
    info = session.info
    assert (info.name, info.lang, info.pid, info.secure, info.link) == (
        "main",
        "python",
        served.worker_pid,
        True,
        "ok",
    )
    assert info["server_pid"] == served.server_pid
    assert [client["client"] for client in info.clients] == [session._client]
    assert session.is_secure
    with pytest.raises(AttributeError):
        _ = info.nothing


# --- two clients, events ---------------------------------------------------------------------


def test_each_client_sees_its_own_output_and_both_share_the_variables(served, session, capsys):
    with served.connect() as other:
        other.run("print('from the other'); shared = 5")
        capsys.readouterr()
        assert session.run("shared").text == "5"
        assert capsys.readouterr().out == ""


def test_events_replay_what_is_kept_and_go_on_live(served, session):
    session.run("print('one')", quiet=True)
    with session.events(since=0) as stream:
        kinds = []
        for event in stream:
            kinds.append(event.kind)
            if event.kind == "done":
                break
        assert {"queued", "busy", "stdout", "done"} <= set(kinds)
        session.run("print('two')", quiet=True)
        assert next(event for event in stream if event.kind == "stdout").text == "two\n"
    assert list(stream) == []


def test_events_of_all_clients_are_seen_only_when_asked_for(served, session):
    with served.connect() as other, session.events(all=True) as everyone, session.events() as mine:
        other.run("print('other')", quiet=True)
        session.run("print('mine')", quiet=True)
        seen = [next(e for e in stream if e.kind == "stdout").text for stream in (everyone, mine)]
    assert seen == ["other\n", "mine\n"]


def test_events_that_nobody_takes_do_not_stop_the_session(served, session):
    with session.events(all=True) as stream:
        session.run("for i in range(40): print('x' * 100_000)", quiet=True)
        assert session.run("1").text == "1"
        total = 0
        while total < 4_000_000:
            event = next(stream)
            total += len(event.text or "") if event.kind == "stdout" else 0


def test_a_stream_that_is_closed_elsewhere_ends(session):
    stream = session.events()
    closer = threading.Timer(0.1, stream.close)
    closer.start()
    assert list(stream) == []
    closer.join()


# --- the interpreter's end -------------------------------------------------------------------


def test_a_dead_interpreter_is_said_and_a_restart_gives_a_new_one(session):
    with pytest.raises(remoter.SessionDiedError) as caught:
        session.run("import os, signal\nprint('last words')\nos.kill(os.getpid(), signal.SIGKILL)")
    assert "SIGKILL" in caught.value.cause
    assert caught.value.result.stdout == "last words\n"
    session.restart()
    assert session.run("1 + 1").text == "2"


def test_restart_forgets_the_variables(session):
    before = session.info.pid
    session.run("x = 1", quiet=True)
    session.restart()
    assert session.info.pid != before
    assert session.run("'x' in globals()").text == "False"


def test_shutdown_ends_the_session_and_whoever_waits_in_it(served, session):
    with served.connect() as other:
        run = other.submit(ENDLESS)
        wait_for(lambda: run.status == "running")
        session.shutdown()
        with contextlib.suppress(remoter.LinkLostError):
            assert run.wait(15).status in ("interrupted", "died")
    wait_for(lambda: not is_alive(served.worker_pid))
    with pytest.raises(remoter.RemoterError):
        session.run("1")


# --- lost connections ------------------------------------------------------------------------


def test_a_killed_server_comes_back_and_the_run_is_finished_here(served, session):
    run = session.submit("import time\nfor i in range(5): print(i); time.sleep(0.2)\n'done'")
    wait_for(lambda: run.status == "running")
    os.kill(served.server_pid, signal.SIGKILL)
    result = run.wait(15)
    assert (result.status, result.text, result.stdout) == ("ok", "'done'", "0\n1\n2\n3\n4\n")
    assert session.run("1 + 1").text == "2"


def test_a_submission_while_the_server_is_down_runs_once(served, session):
    session.run("count = 0", quiet=True)
    os.kill(served.keeper_pid, signal.SIGSTOP)  # or the server may be back before we look
    try:
        os.kill(served.server_pid, signal.SIGKILL)
        wait_for(lambda: session._link.state.state == "lost")
        run = session.submit("count += 1\ncount")
    finally:
        os.kill(served.keeper_pid, signal.SIGCONT)
    assert run.wait(15).text == "1"
    assert session.run("count").text == "1"


# --- closing, forks, garbage -----------------------------------------------------------------


def test_closing_leaves_the_session_and_its_run_alive(served):
    with served.connect() as first:
        first.run("x = 5", quiet=True)
        first.submit("import time; time.sleep(0.5); x = 6")
    with pytest.raises(remoter.LinkLostError, match="was closed"):
        first.run("x")
    with served.connect() as second:
        assert second.run("x").text == "6"


def test_a_session_does_not_survive_a_fork(session):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            session.run("1")
        except remoter.RemoterError as error:
            os.write(writer, error.id.encode())
        finally:
            session.close()
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"forked"
    os.close(reader)
    assert session.run("1").text == "1"


def test_a_forked_child_can_connect_anew(served, session):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(BaseException), served.connect() as own:
                os.write(writer, own.run("20 + 1", quiet=True).text.encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"21"
    os.close(reader)


def test_a_forgotten_session_is_closed(served, session):
    other = served.connect()
    wait_for(lambda: len(session.info.clients) == 2)
    del other
    gc.collect()
    wait_for(lambda: len(session.info.clients) == 1)


def test_a_program_that_just_ends_leaves_no_warning_and_no_client(served, session):
    code = f"import remoter; s = remoter.connect({served.name!r}); e = s.events(); s.submit('1'); s.run('2')"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    wait_for(lambda: len(session.info.clients) == 1)


# --- where to ---------------------------------------------------------------------------------


def test_without_a_session_the_error_says_how_to_start_one():
    with pytest.raises(remoter.ConnectError, match="no session runs") as caught:
        remoter.connect()
    assert "`remoter server`" in caught.value.hints[0]


def test_a_session_is_started_on_demand_and_ended():
    with remoter.connect(start=True, timeout=30) as session:
        assert session.run("1 + 1").text == "2"
        assert session._greeting == "session `main` on this machine"
        session.shutdown()
    wait_for(lambda: not is_alive(session._inbox.info["server_pid"]))


def test_the_only_session_needs_no_name_and_several_are_listed(serve):
    serve(name="one")
    with remoter.connect() as session:
        assert session.info.name == "one"
    serve(name="two")
    with pytest.raises(remoter.ConnectError, match="`one`, `two`"):
        remoter.connect()


def test_a_word_that_means_nothing_says_so():
    with pytest.raises(remoter.ConnectError, match="no session here, no saved name, and no host"):
        remoter.connect("no-such-thing-anywhere.invalid", timeout=5)


def test_host_and_port_of_my_own_session_need_no_password(served):
    with remoter.connect("localhost", served.port) as session:
        assert session.run("1").text == "1"
        assert str(session._address) == f"localhost:{served.port}"


def test_a_given_password_is_verified_even_where_a_key_would_do(served):
    with remoter.connect(served.name, password=served.password) as session:
        assert session.run("1").text == "1"
    with pytest.raises(remoter.AuthError, match="wrong password"):
        remoter.connect(served.name, password="not it")
    with pytest.raises(remoter.AuthError, match="wrong password"):
        remoter.connect(f"127.0.0.1:{served.port}", password="not it")


@pytest.fixture
def stranger(served, home, monkeypatch):
    """Another user's home, in which nothing is known of the session."""
    for kind in ["CONFIG", "STATE"]:
        monkeypatch.setenv(f"REMOTER_{kind}_DIR", str(home / f"stranger-{kind.lower()}"))
    return f"127.0.0.1:{served.port}"


def test_a_stranger_comes_in_by_password_and_then_by_key(served, stranger):
    with remoter.connect(stranger, password=served.password) as session:
        assert session.run("1").text == "1"
    with remoter.connect(stranger) as session:
        assert session.run("2").text == "2"


def test_a_stranger_without_password_and_terminal_is_refused_with_the_fingerprint(served, stranger):
    with pytest.raises(remoter.AuthError, match="is not known here") as caught:
        open_session(stranger, ask_person=lambda prompt, hidden: None)
    assert served.ready["fingerprint"] in str(caught.value)


def test_a_person_is_asked_for_the_password_until_it_is_right(served, stranger):
    answers = iter(["wrong", served.password])
    asked = []

    def person(prompt, hidden):
        asked.append((prompt, hidden))
        return next(answers)

    with open_session(stranger, ask_person=person, timeout=30) as session:
        assert session.run("1").text == "1"
    first, second = asked
    assert first == (f"password of `{stranger}`: ", True)
    assert second[0].startswith(f"wrong password for `{stranger}` (refused by the server; next try in 1 s)\n")


def test_a_server_that_does_not_know_the_password_is_not_given_a_second_guess(served, stranger, monkeypatch):
    from remoter import _target

    def log_in(*arguments, **more):
        raise remoter.AuthError("it does not know the password", id="impostor")

    monkeypatch.setattr(_target, "login", log_in)
    asked = []
    with pytest.raises(remoter.AuthError, match="does not know"):
        open_session(stranger, ask_person=lambda prompt, hidden: asked.append(prompt) or "secret")
    assert len(asked) == 1


def test_a_login_that_waits_for_its_turn_says_so(served, stranger, capsys):
    for _ in range(3):  # the next has its turn in 4 s
        with pytest.raises(remoter.AuthError, match="wrong password"):
            remoter.connect(stranger, password="wrong")
    remoter.connect(stranger, password=served.password).close()
    assert re.search(r"the login waits \d+ s for its turn", capsys.readouterr().err)


def test_another_key_at_an_address_that_was_known_is_told(served, stranger, capsys):
    from remoter._security import Pins, fingerprint, new_keys

    old = new_keys().public
    Pins().trust(old, f"{stranger} otter")
    remoter.connect(stranger, password=served.password).close()
    told = capsys.readouterr().err
    assert f"the key of `{stranger}` is not the one that was there on 20" in told
    assert fingerprint(old) in told
    remoter.connect(stranger, password=served.password).close()
    assert capsys.readouterr().err == ""


def test_another_loopback_address_than_that_of_my_session_is_refused_at_once(served):
    began = time.monotonic()
    with pytest.raises(remoter.ConnectError, match=r"\[::1\]"):
        remoter.connect(f"[::1]:{served.port}")
    assert time.monotonic() - began < 9  # not the 10 s that it may wait for an answer
    with remoter.connect(f"localhost:{served.port}") as session:
        assert session.is_secure


def test_a_timeout_that_is_no_number_is_said_so():
    with pytest.raises(TypeError, match="number of seconds, not str"):
        remoter.connect(timeout="a")


def test_a_trusted_server_that_does_not_know_us_asks_for_the_password(served, stranger):
    key = key_to_text(served.record["server_public"])
    address = f"remoter://{stranger}/#{key}"
    with pytest.raises(remoter.AuthError, match="does not admit"):
        open_session(address, ask_person=lambda prompt, hidden: None)
    with open_session(address, ask_person=lambda prompt, hidden: served.password) as session:
        assert session.run("1").text == "1"


def test_another_key_than_the_pinned_one_is_refused_loudly(served, stranger):
    from remoter._security import new_keys

    with pytest.raises(remoter.KeyChangedError, match="type no password"):
        remoter.connect(f"remoter://{stranger}/#{key_to_text(new_keys().public)}", password=served.password)


def test_saved_names_keep_the_key(served, stranger):
    address = parse(f"remoter://{stranger}/#{key_to_text(served.record['server_public'])}")
    save_name("big", address)
    assert saved_names() == {"big": address}
    with remoter.connect("big", password=served.password) as session:
        assert session.run("1").text == "1"
        assert str(session._address) == "big"


def test_security_is_never_given_up_by_one_side_alone(serve, home, monkeypatch):
    served = serve(secure=False)
    for address in (served.name, f"127.0.0.1:{served.port}"):
        with pytest.raises(remoter.AuthError, match=r"secure|encrypt"):
            remoter.connect(address)
        with pytest.warns(UserWarning, match="not secure"), remoter.connect(address, secure=False) as session:
            assert not session.is_secure
            assert session.run("1").text == "1"
    monkeypatch.setenv("REMOTER_STATE_DIR", str(home / "elsewhere"))
    with pytest.warns(UserWarning, match="not secure"):
        remoter.connect(address, secure=False).close()
    with pytest.raises(remoter.AuthError, match="encrypt"):
        remoter.connect(address)


def test_a_secure_session_refuses_an_insecure_client(served):
    with pytest.raises(remoter.AuthError, match="is secure"):
        remoter.connect(served.name, secure=False)


def test_a_session_that_is_just_ending_is_started_anew(served):
    with served.connect() as session:
        session.shutdown()
    with remoter.connect(served.name, start=True, timeout=40) as session:
        assert session.run("6 * 7").text == "42"
        session.shutdown()
