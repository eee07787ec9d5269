"""Several clients of one session: who waits, who sees what, who is asked, who gives way."""

import pytest

import remoter

from .conftest import wait_for


@pytest.fixture
def two(serve):
    served = serve(runner="plain")
    with served.connect() as ana, served.connect() as ben:
        yield ana, ben


def kinds(events, until="done"):
    seen = []
    for event in events:
        seen.append((event.kind, event.text))
        if event.kind == until:
            return seen
    return seen


def test_clients_share_the_variables(two):
    ana, ben = two
    ana.run("x = 1")
    assert ben.run("x").text == "1"


def submit_waiting(session, path):
    """A run that goes on until there is that file; it runs when this returns."""
    run = session.submit(
        f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.01)\n'first'"
    )
    wait_for(lambda: run.status == "running", 40, "the first runs")
    return run


def test_runs_of_all_clients_queue_in_the_order_of_their_coming(two, tmp_path):
    ana, ben = two
    ana.run("order = []")
    runs = [submit_waiting(ana, tmp_path / "go")]
    for n in range(6):
        runs.append((ana, ben)[n % 2].submit(f"order.append({n})"))
        wait_for(lambda wanted=n + 1: ana.info.waiting == wanted, 40, "it is queued")
    (tmp_path / "go").touch()
    for run in runs:
        run.wait(40)
    assert ana.run("order").text == "[0, 1, 2, 3, 4, 5]"


def test_a_client_sees_its_own_runs_and_not_those_of_others(two):
    ana, ben = two
    with ana.events() as mine, ana.events(all=True) as everything:
        ben.run("print('of ben')", quiet=True)
        ana.run("print('of ana')", quiet=True)
        assert ("stdout", "of ana\n") in kinds(mine)
        seen = kinds(everything)
        assert ("stdout", "of ben\n") in seen
        assert ("queued", "print('of ben')") in seen


def test_every_event_of_a_run_names_its_client(two):
    ana, ben = two
    with ana.events(all=True) as everything:
        ben.run("print(1)", quiet=True)
        for event in everything:
            assert event.client == ben._client
            assert event.run == (ben._client, 1)
            if event.kind == "done":
                break


def test_runs_of_a_client_that_left_belong_to_everyone(serve):
    served = serve(runner="plain")
    with served.connect() as ana:
        with served.connect() as ben:
            ben.run("import threading, time; go = threading.Event()")
            run = ben.submit("_ = go.wait(60); print('finished')")
            wait_for(lambda: run.status == "running", 40, "it runs")
        with ana.events() as seen:
            wait_for(lambda: len(ana.info.clients) == 1, 40, "ben has left")
            ana.interrupt()
            assert any(event.kind == "done" and event.client == ben._client for event in seen)


def test_anyone_may_interrupt(two):
    ana, ben = two
    run = ana.submit("import time; print('on'); time.sleep(60)")
    next(event for event in run.events() if event.kind == "stdout")
    assert ben.interrupt()
    assert run.wait(40).status == "interrupted"
    assert not ben.interrupt()


def test_a_question_goes_to_who_submitted_the_run(serve):
    served = serve(runner="plain")
    asked = []
    with (
        served.connect(ask=lambda prompt, hidden: "from ana") as ana,
        served.connect(ask=lambda prompt, hidden: asked.append(prompt)) as ben,
    ):
        assert ana.run("input('who? ')").text == "'from ana'"
        assert ben.run("1").text == "1"
    assert asked == []


def test_when_the_submitter_is_away_everyone_is_asked_and_the_first_answer_wins(serve):
    served = serve(runner="plain")
    with served.connect() as ana, served.connect() as ben:
        ana.run("answer = None")
        run = ben.submit("answer = input('anyone? ')")
        wait_for(lambda: run.status == "running", timeout=40, what="it runs")
        with ana.events() as seen:
            ben.close()
            ask = next(event for event in seen if event.kind == "ask")
            assert ask.text == "anyone? "
            ana._answer(ask.run, ask.data["id"], "ana")
            ana._answer(ask.run, ask.data["id"], "too late")
            assert any(event.kind == "done" for event in seen)
        assert ana.run("answer").text == "'ana'"


def test_a_pending_question_is_asked_again_of_who_comes_later(serve):
    served = serve(runner="plain")
    with served.connect() as ben:
        run = ben.submit("answer = input('anyone? ')")
        wait_for(lambda: run.status == "running", timeout=40, what="it runs")
        wait_for(lambda: ben._pending_asks, timeout=40, what="it asks")
    with served.connect() as ana:
        asks = wait_for(lambda: ana._pending_asks, timeout=40, what="the question is there")
        ana._answer(asks[0].run, asks[0].data["id"], "late")
        assert ana.run("answer").text == "'late'"


def test_too_many_waiting_runs_are_refused_and_the_others_still_run(serve):
    served = serve(runner="plain")
    with served.connect() as session:
        session.run("total = 0")
        first = session.submit("import time; time.sleep(60)")
        runs = [session.submit("total += 1") for _ in range(1010)]
        refused = 0
        wait_for(lambda: session.info.waiting >= 999, 40, "the queue is full")
        first.interrupt()
        for run in runs:
            try:
                run.wait(40)
            except remoter.RemoterError as error:
                assert "too much is waiting" in str(error)
                refused += 1
        assert refused >= 10
        assert session.run("total").text == str(1010 - refused)


def test_a_second_attachment_of_the_same_client_supersedes_the_first(serve):
    served = serve(runner="plain")
    with served.connect() as session:
        session.run("x = 1")
        assert len(session.info.clients) == 1
        session._link.thread.loop.call_soon_threadsafe(session._link._try)
        assert session.run("x + 1").text == "2"
        wait_for(lambda: len(session.info.clients) == 1, timeout=40, what="one connection of it is left")


def test_cancelling_a_queued_run_leaves_the_running_one_alone(two, tmp_path):
    ana, _ = two
    first = submit_waiting(ana, tmp_path / "go")
    second = ana.submit("'second'")
    second.interrupt()
    assert second.wait(40).status == "cancelled"
    (tmp_path / "go").touch()
    assert first.wait(40).text == "'first'"
