"""What the server does for an R worker: interrupts that R does not get, questions that it does not answer."""

import os

import pytest

import remoter

from .waiting import wait_for


def begun(session, code):
    """A run that has printed its first line."""
    run = session.submit(code)
    for event in run.events():
        if event.kind == "stdout":
            return run
    raise AssertionError("it has ended")


def test_a_program_that_ignores_interrupts_is_ended_by_the_third(r_session):
    code = """system("trap '' INT; echo deaf; while :; do sleep 0.1; done"); cat("went on\\n")"""
    run = begun(r_session, code)
    for _ in range(3):
        run.interrupt()
    result = run.wait(40)
    assert result.status == "interrupted"
    assert "went on" not in result.stdout


def test_an_interrupt_that_r_has_noted_before_it_waits_for_a_program_reaches_that(r_session):
    code = """cat("on\\n"); { crossprod(matrix(0.5, 1000, 1000)); system("sleep 60") }"""
    run = begun(r_session, code)
    run.interrupt()
    assert run.wait(40).status == "interrupted"


def test_an_interrupt_of_a_run_that_an_earlier_server_began(r_served):
    with r_served.connect() as session:
        run = begun(session, 'cat("on\\n"); repeat {}')
        os.kill(session.info.server_pid, 9)
        wait_for(lambda: session.info.link == "ok" and session.info.server_pid != r_served.server_pid, 60)
        run.interrupt()
        assert run.wait(40).status == "interrupted"


def test_a_restart_is_no_death_of_its_own(r_served):
    with r_served.connect() as session:
        run = begun(session, 'cat("on\\n"); Sys.sleep(60)')
        waiting = session.submit("2")
        session.restart()
        assert run.wait(40).status == "interrupted"
        with pytest.raises(remoter.SessionDiedError) as caught:
            waiting._raise_if_failed(waiting.wait(40))
        assert "was restarted" in str(caught.value.cause)
        assert session.run("1", quiet=True).text == "[1] 1"


def test_a_language_that_this_machine_has_not_is_no_reason_for_wrong_letters(r_program, serve, monkeypatch):
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    with serve(lang="r", r=r_program).connect() as session:
        assert session.run('cat("\u00e4\u4e16")', quiet=True).stdout == "\u00e4\u4e16"
