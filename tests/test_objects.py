"""Objects cross between here and a session: what arrives, what is refused, and what goes on meanwhile."""

import contextlib
import datetime
import decimal
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import remoter
from remoter import NameNotFoundError, RunError, TransferError, _values
from remoter._objects import map_file
from remoter._pieces import MemorySource
from remoter._steps import FileHere, as_step
from remoter._transfer import Carrier

from .proxy import Proxy
from .waiting import wait_for

MIXED = {
    "numbers": [1, 2.5, 1 << 90, float("inf"), 3 + 4j, True, None],
    ("a", 1): {"set": {1, 2}, "frozen": frozenset({"x"})},
    "when": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
    "price": decimal.Decimal("1.10"),
    "raw": b"\x00\xff",
    "half": "\ud800",
}
BIG = "import numpy as np; big = np.arange(4_000_000, dtype='f8')"  # 32 MB: more than any window
BIG_HERE = np.arange(4_000_000, dtype="f8")


@pytest.fixture
def fast(serve):
    """A session with the plain runner, which starts sooner."""
    with serve(runner="plain").connect() as session:
        yield session


# --- what arrives ------------------------------------------------------------------------------


def test_plain_values_come_and_go_unchanged(fast):
    fast["mixed"] = MIXED
    assert fast["mixed"] == MIXED
    assert fast.run("mixed['half'], mixed[('a', 1)]['set']").text == "('\\ud800', {1, 2})"


def test_an_array_comes_whole_and_can_be_written_to(fast):
    fast.run(BIG)
    big = fast.pull("big")
    assert big.dtype == np.float64 and np.array_equal(big, BIG_HERE)
    big[0] = 7
    assert fast.run("big[0]").text.endswith("0.0)")


def holds(session, what):
    """Whether such memory is mapped there, and here."""
    there = session.run(f"print({what!r} in open('/proc/self/maps').read())", quiet=True).stdout == "True\n"
    return there, what in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are sent")
def test_on_one_machine_memory_is_mapped_and_belongs_to_who_has_it(fast):
    fast.run(BIG)
    big = fast.pull("big")
    assert holds(fast, "/dev/shm/.remoter-") == (False, True)
    big[0] = 7
    assert fast.run("big[0]").text.endswith("0.0)")
    into = np.empty(4_000_000)
    assert fast.pull("big", into=into) is into and np.array_equal(into, BIG_HERE)
    del big
    assert holds(fast, "/dev/shm/.remoter-") == (False, False)

    fast.push("x", BIG_HERE)
    assert holds(fast, "memfd:remoter") == (True, False)
    assert fast.run("x[0] = 7; float(x.sum())").text == str(BIG_HERE.sum() + 7)
    assert BIG_HERE[0] == 0
    fast.run("del x")
    assert holds(fast, "memfd:remoter") == (False, False)


def test_through_a_port_they_are_sent(serve):
    with serve(runner="plain").connect_tcp() as far:
        far.run(BIG)
        big = far.pull("big")
        far.push("x", big)
        assert np.array_equal(big, BIG_HERE) and far.run("bool((x == big).all())").text == "True"
        assert holds(far, "remoter-") == holds(far, "memfd:remoter") == (False, False)


def test_where_there_is_no_memory_to_map_they_are_sent(fast, monkeypatch):
    def refuse(*_):
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(_values, "open_memory", refuse)
    fast.push("x", BIG_HERE)
    assert np.array_equal(fast.pull("x"), BIG_HERE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are sent")
def test_a_file_that_is_not_the_one_that_was_meant_is_not_mapped(fast, tmp_path):
    size = 1 << 20
    named = tmp_path / "secret"
    named.write_bytes(bytes(size))
    with open(named, "rb") as file:
        status = os.fstat(file.fileno())
        here = {"pid": os.getpid(), "descriptor": file.fileno(), "device": status.st_dev}
        here |= {"inode": status.st_ino, "size": size, "lead": 0}
        assert map_file(FileHere(**here), size) is None  # it has a name
        named.unlink()
        for wrong in ({"inode": 1}, {"device": 1}, {"size": size + 1}, {"pid": 1}, {"descriptor": 9999}):
            assert map_file(FileHere(**{**here, **wrong}), size) is None
        assert map_file(FileHere(**here), size) is not None
        with pytest.raises(TransferError, match="not understood"):
            as_step({**here, "lead": -10}, FileHere)
        with pytest.raises(_values.ValuesError, match="makes no sense"):
            _values.Layout('{"value":{"bytes":0}}', [size + 1]).adopt(map_file(FileHere(**here), size))

        tree = '{"value":{"bytes":0}}'
        for wrong in ({"inode": 1}, {"size": 1, "pid": 1 << 40}, {"descriptor": -1}):
            question = {"name": "x", "tree": tree, "sizes": [size], "file": {**here, **wrong}}
            with pytest.raises(TransferError, match="cannot be seen from here"):
                fast._link.step(os.urandom(8).hex(), "push", question).result(30)
        question = {"name": "x", "tree": tree, "sizes": [size + 1], "file": here}
        with pytest.raises(TransferError, match="cannot be seen from here"):
            fast._link.step(os.urandom(8).hex(), "push", question).result(30)
        with pytest.raises(TransferError, match="not understood"):
            fast._link.step(os.urandom(8).hex(), "push", {**question, "file": "/etc/passwd"}).result(30)
    assert "x" not in fast


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are sent")
def test_small_objects_that_are_kept_keep_no_descriptors(fast):
    fast.run("import numpy as np; small = np.arange(20_000.0)")
    fast.pull("small"), fast.push("x0", BIG_HERE[:20_000])
    count = "import os; len(os.listdir('/proc/self/fd'))"
    before, there = len(os.listdir("/proc/self/fd")), int(fast.run(count).text)
    kept = [fast.pull("small") for _ in range(20)]
    for number in range(20):
        fast.push(f"x{number}", kept[number])
    assert len(os.listdir("/proc/self/fd")) < before + 10
    assert int(fast.run(count).text) < there + 10
    assert all(array[-1] == 19_999 for array in kept)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are sent")
def test_a_pull_that_is_cancelled_while_it_is_copied_keeps_nobody_from_his_answer(serve):
    served = serve(runner="plain")
    with served.connect() as one, served.connect() as two:
        one.run(BIG + "; big = np.tile(big, 4)")
        for delay in (0, 0.002, 0.005, 0.01, 0.02, 0.03):
            transfer = one.pull("big", background=True)
            time.sleep(delay)
            asked = two._link.query("info", "", 0)
            transfer.cancel()
            assert "nothing" not in two and asked.result(10)
    assert "Traceback" not in (served.directory / "server.log").read_text()


def test_a_push_whose_answer_is_lost_is_bound_once(fast, monkeypatch):
    """The step is asked again, as after a loss of the connection."""
    step = Carrier.step

    def twice(carrier, what, data, **how):
        answer = step(carrier, what, data, **how)
        return step(carrier, what, data, **how) if what == "push" else answer

    monkeypatch.setattr(Carrier, "step", twice)
    for value in (1, BIG_HERE):
        fast.run("globals().pop('x', None)")
        assert fast.push("x", value, overwrite=False).replaced is None


def test_an_array_goes_whole_and_says_what_it_replaced(fast):
    pushed = fast.push("x", BIG_HERE)
    assert (pushed.name, pushed.replaced) == ("x", None)
    assert "ndarray (4000000,) float64" in str(pushed)
    assert fast.run("import numpy as np; bool((x == np.arange(4_000_000)).all())").text == "True"
    assert "replaced ndarray (4000000,)" in str(fast.push("x", {"a": 1}))
    assert fast.run("x").text == "{'a': 1}"


def test_a_frame_comes_back_equal(fast):
    frame = pd.DataFrame(
        {
            "day": pd.date_range("2024-01-01", periods=1000, tz="Europe/Vienna"),
            "what": pd.Categorical(["a", "b"] * 500, ordered=True),
            "name": [f"n{i}" for i in range(999)] + [None],
            "value": np.linspace(0, 1, 1000),
        }
    )
    fast["frame"] = frame
    pd.testing.assert_frame_equal(fast["frame"], frame)
    assert fast.run("list(frame.dtypes.astype(str))[:2]").text.startswith("['datetime64[")


@pytest.mark.parametrize(
    "value", [np.float64(2.5), np.array(3), np.zeros((0, 4)), b"", "", [], pd.DataFrame()]
)
def test_what_is_empty_or_a_scalar_keeps_its_type(fast, value):
    fast["x"] = value
    back = fast["x"]
    assert type(back) is type(value)
    assert getattr(back, "shape", None) == getattr(value, "shape", None)


def test_several_objects_are_pushed_by_keyword_and_listed(fast):
    pushed = fast.push(a=1, b=np.zeros((2, 3)), c="text")
    assert [each.name for each in pushed] == ["a", "b", "c"]
    listed = {variable.name: variable for variable in fast.variables()}
    assert (listed["b"].type, listed["b"].shape, listed["b"].size) == ("ndarray", [2, 3], 48)


def test_names_are_looked_for_and_removed(fast):
    fast["x"] = 1
    assert "x" in fast and "y" not in fast and "len" not in fast and "not a name" not in fast
    del fast["x"]
    assert "x" not in fast
    with pytest.raises(NameNotFoundError, match="`x`"):
        del fast["x"]


def test_an_expression_is_a_run_and_a_name_is_not(fast):
    fast.run("frame = list(range(10)); hidden = 0")
    count = fast.submit("0").id[1]
    assert fast.pull("frame") == list(range(10))
    assert fast.submit("0").id[1] == count + 1
    assert fast.pull("frame[2:4] + [len(frame)]") == [2, 3, 10]
    assert fast.submit("0").id[1] == count + 3


def test_what_an_expression_prints_is_shown_and_what_it_raises_is_raised(fast, capsys):
    fast.run("def noisy():\n    print('counting')\n    return 3\n")
    assert fast.pull("noisy()") == 3
    assert capsys.readouterr().out == "counting\n"
    with pytest.raises(RunError, match="ZeroDivisionError"):
        fast.pull("1 / 0")
    with pytest.raises(RunError, match="SyntaxError"):
        fast.pull("x = 1")


def test_waiting_for_an_expression_ends_in_time(fast):
    with pytest.raises(TimeoutError):
        fast.pull("__import__('time').sleep(3600)", timeout=0.2)
    fast.interrupt()


class Holder:
    """An object whose pickle has a large buffer beside its body."""

    def __init__(self, text, array):
        self.text, self.array = text, array


@pytest.mark.parametrize("text", ["short", "x" * 100_000])
def test_which_packages_a_pickle_needs_is_read_from_its_body_and_not_from_its_arrays(text):
    from remoter import _objects

    packed = _objects.pack(Holder(text, np.zeros(2_000_000)))
    assert packed.is_pickle and max(view.nbytes for view in packed.buffers) == 16_000_000
    assert "numpy" in _objects._modules(packed)
    assert len(_values.pickle_body(packed)) < 200_000


def test_what_holds_itself_goes_as_a_pickle(fast):
    ring = [1]
    ring.append(ring)
    fast["ring"] = ring
    assert fast.run("ring[1] is ring").text == "True"


def test_an_expression_may_be_awaited_in_ipython_too(session):
    session.run("import asyncio\nasync def later(): return [1, 2]")
    assert session.pull("await later()") == [1, 2]


def test_memory_here_can_be_filled(fast):
    fast.run(BIG)
    mine = np.empty(4_000_000)
    assert fast.pull("big", into=mine) is mine
    assert np.array_equal(mine, BIG_HERE)
    with pytest.raises(TransferError):
        fast.pull("big", into=np.empty(5))


def test_a_frame_becomes_what_is_asked_for(fast):
    fast["frame"] = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    assert fast.pull("frame", format="polars").to_dict(as_series=False) == {"a": [1, 2], "b": ["x", "y"]}
    assert fast.pull("frame", format="arrow").num_rows == 2
    assert fast.pull("frame[['a']]", format="numpy").tolist() == [[1], [2]]


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["for", "__name__", "a b", "", "1x", "a.b", "x;y"])
def test_what_is_no_name_is_refused_before_anything_is_sent(fast, name):
    with pytest.raises(TransferError) as caught:
        fast.push(name, 1)
    assert caught.value.id == "name"


def test_a_name_is_what_python_makes_of_it(fast):
    assert fast.push("ﬁle", 1).name == "file"
    assert fast.run("file").text == "1"


def test_a_name_that_is_not_there_is_told_with_those_that_are_near(fast):
    fast["temperature"] = 1
    with pytest.raises(NameNotFoundError) as caught:
        fast.pull("temprature")
    assert caught.value.hints == ("there is `temperature`",)


def test_nothing_is_replaced_where_that_is_not_wanted(fast):
    fast["x"] = 1
    with pytest.raises(TransferError) as caught:
        fast.push("x", 2, overwrite=False)
    assert caught.value.id == "exists" and fast["x"] == 1
    with pytest.raises(TransferError):
        fast.push("x", BIG_HERE, overwrite=False)
    assert fast["x"] == 1


# --- what is not safe --------------------------------------------------------------------------

THING = "class Thing:\n    def __init__(self, n): self.n = n\nthing = Thing(3)"
TRAP = """
import os
class Trap:
    def __reduce__(self):
        return os.mkdir, ({path!r},)
trap = Trap()
"""


def test_a_pickle_comes_only_when_it_is_allowed(fast, home):
    path = str(home / "made by a pickle")
    fast.run(TRAP.format(path=path))
    with pytest.raises(TransferError) as caught:
        fast.pull("trap")
    assert caught.value.id == "unsafe" and "`Trap`" in caught.value.message
    assert len(caught.value.hints) == 3 and "allow_pickle=True" in caught.value.hints[0]
    assert not os.path.exists(path)
    fast.pull("trap", allow_pickle=True)
    assert os.path.exists(path)


def test_who_trusts_the_session_gets_pickles_without_a_word(serve):
    served = serve(runner="plain")
    with served.connect(trust=True) as session:
        session.run(THING)
        assert session["thing"].n == 3


def test_who_once_said_always_gets_them_too(serve):
    from remoter import _trust

    served = serve(runner="plain")
    _trust.trust(served.record["server_public"], "here")
    with served.connect() as session:
        session.run(THING)
        assert session["thing"].n == 3
        _trust.forget(served.record["server_public"])
        with pytest.raises(TransferError):
            session.pull("thing")


def test_functions_and_classes_go_to_the_session(fast):
    factor = 3

    class Here:
        kind = "mine"

    fast["triple"] = lambda x: factor * x
    fast["Here"] = Here
    assert fast.run("triple(5), Here().kind").text == "(15, 'mine')"


def test_a_reduction_that_raises_is_told_and_one_that_hangs_hurts_nobody(fast):
    fast.run(
        "import time\n"
        "class Raising:\n    def __reduce__(self): raise ValueError('not me')\n"
        "class Hanging:\n    def __reduce__(self):\n        while not done: time.sleep(0.01)\n        return int, ()\n"
        "done = False; raising = Raising(); hanging = Hanging()"
    )
    with pytest.raises(TransferError, match="not me"):
        fast.pull("raising", allow_pickle=True)
    transfer = fast.pull("hanging", allow_pickle=True, background=True)
    assert fast.run("1 + 1").text == "2"
    assert fast.pull("done") is False
    transfer.cancel()
    with pytest.raises(TransferError) as caught:
        transfer.wait(10)
    assert caught.value.id == "cancelled"
    fast.run("done = True")


def test_an_object_whose_repr_raises_or_hangs_can_be_replaced(fast):
    fast.run(
        "class Odd:\n    def __repr__(self): raise RuntimeError\n    __str__ = __len__ = __repr__\nodd = Odd()"
    )
    assert "odd" in fast
    assert fast.push("odd", 1).replaced == "Odd"


# --- what goes on meanwhile --------------------------------------------------------------------


def test_data_crosses_beside_a_running_command(fast):
    fast.run(BIG)
    run = fast.submit("import time\nwhile 'stop' not in globals(): time.sleep(0.01)")
    wait_for(lambda: fast.info.busy, what="it runs")
    assert np.array_equal(fast["big"], BIG_HERE)
    fast["other"] = BIG_HERE
    assert "other" in fast and run.status == "running"
    fast["stop"] = True
    assert run.wait(10).status == "ok"


HOLDING = "import re; re.match(r'(a+)+$', 'a' * {n} + 'b')"  # one call into C that gives nobody a turn


def test_a_pull_waits_says_so_and_can_be_cancelled_while_user_code_lets_nobody_in(fast):
    fast["x"] = 5
    run = fast.submit(HOLDING.format(n=40))
    wait_for(lambda: fast.info.busy, what="it runs")

    def waiting():
        transfer = fast.pull("x", background=True)
        wait_for(lambda: transfer.status == "done" or "waiting" in transfer.progress.note, 15, "its word")
        return None if transfer.status == "done" else transfer  # done: what runs is not that far yet

    transfer = wait_for(waiting, 15, "it says that it waits")
    transfer.cancel()
    with pytest.raises(TransferError) as caught:
        transfer.wait(10)
    assert caught.value.id == "cancelled"
    fast.interrupt()
    assert run.wait(10).status == "interrupted"
    assert fast["x"] == 5


def test_two_clients_move_objects_while_a_third_interrupts(serve):
    served = serve(runner="plain")
    with served.connect() as ana, served.connect_tcp() as ben, served.connect() as cleo:
        ana.run(BIG)
        run = cleo.submit("while True: pass")
        got = {}

        def pull():
            got["ana"] = ana.pull("big", progress=False)

        def push():
            got["ben"] = ben.push("from_ben", BIG_HERE * 2, progress=False)

        threads = [threading.Thread(target=work) for work in (pull, push)]
        for thread in threads:
            thread.start()
        wait_for(lambda: cleo.info.busy, what="it runs")
        assert cleo.interrupt()
        for thread in threads:
            thread.join(15)
        assert run.wait(10).status == "interrupted"
        assert np.array_equal(got["ana"], BIG_HERE)
        assert cleo.run("float(from_ben[-1])").text == str(float(BIG_HERE[-1] * 2))


def test_an_object_that_changes_meanwhile_arrives_whole_if_torn(fast):
    fast.run(BIG)
    fast.submit("for i in range(200): big += 1.0")
    big = fast.pull("big")
    assert big.shape == (4_000_000,) and np.isfinite(big).all()


def test_a_dictionary_that_changes_meanwhile_hurts_nobody(fast):
    fast.run("import threading, time\nd = {i: str(i) for i in range(50_000)}\ngo = True")
    run = fast.submit("n = 0\nwhile go:\n    d[n % 70_000] = 'x'; d.pop((n * 7) % 70_000, None); n += 1")
    wait_for(lambda: fast.info.busy, what="it runs")
    for _ in range(3):
        with contextlib.suppress(TransferError):
            assert isinstance(fast["d"], dict)
    fast["go"] = False
    assert run.wait(10).status == "ok"


# --- accidents ---------------------------------------------------------------------------------


@pytest.fixture
def cuttable(serve):
    """A session, and a network to it that can be cut."""
    served = serve(runner="plain")
    proxy = Proxy(("127.0.0.1", served.port))
    with remoter.connect(f"127.0.0.1:{proxy.port}", password=served.password) as session:
        yield served, proxy, session
    proxy.close()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_what_was_cut_goes_on_where_it_was(cuttable, share):
    _, proxy, session = cuttable
    session.run(BIG)

    def cut(transfer):
        wait_for(lambda: transfer.progress.done >= share * BIG_HERE.nbytes or transfer.status == "done", 15)
        proxy.cut()

    pulling = session.pull("big", background=True)
    cut(pulling)
    assert np.array_equal(pulling.wait(15), BIG_HERE)
    pushing = session.push("back", BIG_HERE, background=True)
    cut(pushing)
    pushing.wait(15)
    assert session.run("bool((back == big).all())").text == "True"


def test_a_transfer_survives_the_end_of_the_server(serve):
    served = serve(runner="plain")
    with served.connect() as session:
        session.run(BIG)
        pulling = session.pull("big", background=True)
        wait_for(lambda: pulling.progress.done > 0 or pulling.status == "done", what="it has begun")
        os.kill(served.server_pid, 9)
        assert np.array_equal(pulling.wait(40), BIG_HERE)


def test_an_interpreter_that_dies_under_a_transfer_is_told(fast):
    fast.run(BIG)
    pulling = fast.pull("big", background=True)
    fast.submit("import os; os._exit(3)")
    try:
        assert np.array_equal(pulling.wait(15), BIG_HERE)  # it was quicker
    except remoter.RemoterError as error:
        assert "interpreter" in str(error)
    fast.restart()
    assert fast.run("1").text == "1"


def test_a_cancelled_push_binds_nothing(cuttable, monkeypatch):
    _, _, session = cuttable
    may_go_on, read = threading.Event(), MemorySource.read

    def read_half(source, offset, into):
        if offset >= source.size // 2:
            may_go_on.wait(15)  # or it could be through before it is cancelled
        read(source, offset, into)

    monkeypatch.setattr(MemorySource, "read", read_half)
    pushing = session.push("never", np.zeros(12_000_000), background=True)
    wait_for(lambda: pushing.progress.done > 0, what="it has begun")
    pushing.cancel()
    with pytest.raises(TransferError):
        pushing.wait(10)
    assert pushing.status == "cancelled"
    may_go_on.set()
    wait_for(lambda: not pushing._thread.is_alive(), what="the end of its thread")
    assert "never" not in session and session.run("1 + 1").text == "2"


INTERRUPTED = """
import remoter, signal, sys, threading
session = remoter.connect(sys.argv[1])
session.run("class Slow:\\n    def __reduce__(self):\\n        import time; time.sleep(3600)\\nslow = Slow()")
try:
    print("ready", flush=True)
    session.pull("slow", allow_pickle=True)
except KeyboardInterrupt:
    print("interrupted", session.run("6 * 7").text, flush=True)
"""


def test_ctrl_c_cancels_and_the_session_is_as_before(serve):
    served = serve(runner="plain")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, served.name], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # it may be anywhere in it
    process.send_signal(2)
    assert process.communicate(timeout=15)[0] == "interrupted 42\n"


def test_nothing_is_left_here_by_a_hundred_transfers(fast):
    fast.run("import numpy as np; a = np.ones(20_000)")
    for _ in range(5):
        fast.pull("a")
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(50):
        fast["b"] = fast.pull("a")
    wait_for(
        lambda: len(os.listdir("/proc/self/fd")) <= before[0] and threading.active_count() <= before[1],
        what="all is closed",
    )


def test_what_crosses_in_the_background_needs_nobody_to_hold_the_session(served):
    with served.connect() as session:
        session["x"] = BIG_HERE
    assert np.array_equal(served.connect().pull("x", background=True).wait(15), BIG_HERE)


def test_closing_the_session_ends_what_is_under_way(serve):
    session = serve(runner="plain").connect()
    session.run(
        "class Slow:\n    def __reduce__(self):\n        import time; time.sleep(3600)\nslow = Slow()"
    )
    transfer = session.pull("slow", allow_pickle=True, background=True)
    session.close()
    with pytest.raises(remoter.RemoterError):
        transfer.wait(10)


def test_the_value_of_an_expression_that_nobody_waits_for_is_neither_made_nor_kept(fast):
    kept = "len(__import__('sys').modules['_remoter_objects'].__dict__ and _kept())"
    fast.run(
        "import gc, sys\n"
        "def _kept():\n"
        "    module = sys.modules['_remoter_objects']\n"
        "    (objects,) = [each for each in gc.get_objects() if type(each) is module.Objects]\n"
        "    return [*objects.kept, *objects.offers, *objects.arrivals]"
    )
    fast["warm"] = 1
    transfer = fast.pull("__import__('time').sleep(60)", background=True)
    wait_for(lambda: fast.info.busy, what="it is being made")
    transfer.cancel()
    wait_for(lambda: not fast.info.busy, what="it is interrupted")
    fast.run("import numpy as np")
    transfer = fast.pull("np.ones(3_000_000)", background=True)
    wait_for(lambda: fast._link.unfinished.submits == {} and not fast.info.busy, what="it was made")
    transfer.cancel()
    with pytest.raises(TransferError):
        fast.pull("(np.ones(3_000_000), __import__('time').sleep(60))", timeout=0.05)
    wait_for(lambda: fast.run(kept).text == "0", what="nothing is kept")


def test_many_small_steps_of_one_client_do_not_end_the_transfer_of_another(serve):
    served = serve(runner="plain")
    with served.connect() as ana, served.connect() as ben:
        ana.run(BIG)
        pulling = ana.pull("big", background=True)
        for _ in range(1100):
            assert "small" not in ben
        assert np.array_equal(pulling.wait(15), BIG_HERE)


@pytest.mark.parametrize(
    "trap",
    [
        "class Trap:\n    def __reduce__(self): raise SystemExit(3)",
        "class Trap:\n    __class__ = property(lambda self: exit())",
        "class Meta(type):\n    def __getattribute__(cls, name): raise SystemExit(name)\nclass Trap(metaclass=Meta): pass",
        "Trap = type('DataFrame', (), {'__module__': 'pandas', 'shape': property(lambda self: exit())})",
    ],
)
def test_objects_that_are_traps_are_refused_and_everything_else_still_answers(fast, trap):
    fast.run(f"{trap}\ntrap = Trap()\nfine = 1")
    assert "fine" in [variable.name for variable in fast.variables()]
    for allowed in (False, True):
        with contextlib.suppress(TransferError):
            fast.pull("trap", allow_pickle=allowed, timeout=5)
    assert fast["fine"] == 1
    assert fast.push("trap", 2).replaced
    assert fast["trap"] == 2


class Bomb:
    """Opening its pickle raises something that is no Exception."""

    def __reduce__(self):
        return exit, (3,)


def test_a_pickle_that_ends_when_it_is_opened_there_is_an_error_here(fast):
    with pytest.raises(TransferError):
        fast.push("bomb", Bomb())
    assert "bomb" not in fast and fast.run("1").text == "1"


def test_a_session_whose_interpreter_died_says_so_and_how_to_go_on(fast):
    with pytest.raises(remoter.SessionDiedError):
        fast.run("import os; os._exit(1)")
    with pytest.raises(remoter.SessionDiedError, match="restart"):
        fast.pull("x")


def test_an_insecure_session_sends_data_too(serve):
    served = serve(runner="plain", secure=False)
    with pytest.warns(UserWarning, match="not secure"):
        session = remoter.connect(served.name, secure=False)
    with session:
        session["x"] = BIG_HERE
        assert np.array_equal(session["x"], BIG_HERE)


def test_data_crosses_through_ssh(ssh_host):
    there = ssh_host()
    with remoter.connect(there.address) as session:
        session["x"] = BIG_HERE
        assert np.array_equal(session["x"], BIG_HERE)
