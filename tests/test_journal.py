"""The journal: numbers without a hole or an honest gap, whatever happens to the server and the disk."""

import itertools
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remoter._errors import RemoterError
from remoter._journal import Archive, Journal, archives, sweep
from remoter._messages import Event, decode_event


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "main-1"


def write(journal: Journal, count: int, size: int = 10) -> None:
    for _ in range(count):
        journal.append("stdout", text="x" * size)
    journal.flush()


def everything(journal: Journal, after: int = 0, limit: int = 1000, accept=None) -> list[Event]:
    events = []
    while after < journal.last:
        found, cursor = journal.read(after, limit, accept)
        assert cursor > after
        events += [decode_event(item) for item in found]
        after = cursor
    return events


def numbers(events: list[Event]) -> list[int]:
    return [event.seq for event in events if event.kind != "gap"]


def assert_contiguous(events: list[Event], after: int, last: int) -> None:
    """Every number from `after` + 1 to `last` is there once, or within one gap."""
    expected = after + 1
    for event in events:
        if event.kind == "gap":
            assert event.data is not None
            assert event.data["first"] == expected
            assert event.data["last"] == event.seq >= expected
        else:
            assert event.seq == expected
        expected = event.seq + 1
    assert expected == last + 1


def test_events_are_numbered_and_come_back_in_order(directory):
    journal = Journal(directory)
    assert (journal.first, journal.last) == (1, 0)
    event = journal.append("result", run=("c", 1), client="c", text="2", data={"image/png": b"\x89"})
    journal.append("done", run=("c", 1), data={"status": "ok"}, frame=7)
    journal.flush()
    assert (journal.first, journal.last) == (1, 2)
    found, cursor = journal.read(0, 10**6)
    assert [decode_event(item).kind for item in found] == ["result", "done"]
    assert decode_event(found[0]) == event
    assert decode_event(found[1]).frame == 7
    assert cursor == 2
    assert journal.read(2, 10**6) == ([], 2)
    journal.close()


def test_what_is_not_flushed_cannot_be_read(directory):
    journal = Journal(directory)
    write(journal, 3)
    journal.append("stdout", text="not yet")
    assert journal.last == 3
    assert numbers(everything(journal)) == [1, 2, 3]
    journal.flush()
    assert numbers(everything(journal)) == [1, 2, 3, 4]
    journal.close()


@pytest.mark.parametrize("memory", [0, 4000, 10**6], ids=["disk", "both", "memory"])
def test_a_read_stops_at_its_limit_and_goes_on_from_the_cursor(directory, memory):
    journal = Journal(directory, memory=memory, segment_size=3000)
    write(journal, 200, size=50)
    found, cursor = journal.read(0, 1)
    assert (len(found), cursor) == (1, 1)
    found, cursor = journal.read(10, 500)
    assert sum(map(len, found)) >= 500 > sum(map(len, found[:-1]))
    assert cursor == 10 + len(found)
    assert_contiguous(everything(journal, 7, limit=300), 7, 200)
    journal.close()


@pytest.mark.parametrize("memory", [0, 4000, 10**6], ids=["disk", "both", "memory"])
def test_a_filter_sees_who_and_what_and_the_cursor_passes_what_it_refuses(directory, memory):
    journal = Journal(directory, memory=memory, segment_size=2000)
    for number in range(100):
        journal.append("stdout", run=("ab"[number % 2], 1), client="me", text=str(number))
    journal.flush()
    events = everything(journal, accept=lambda event: event.run == ("b", 1) and event.client == "me")
    assert [event.text for event in events] == [str(n) for n in range(1, 100, 2)]
    found, cursor = journal.read(0, 10**6, lambda event: event.kind == "done")
    assert (found, cursor) == ([], 100)
    journal.close()


def test_readers_that_alternate_do_not_disturb_each_other(directory):
    journal = Journal(directory, memory=0, segment_size=2000)
    write(journal, 300)
    cursors = [0, 50, 100]
    seen: list[list[int]] = [[], [], []]
    while min(cursors) < 300:
        for reader in range(3):
            found, cursors[reader] = journal.read(cursors[reader], 100 + 50 * reader)
            seen[reader] += [decode_event(item).seq for item in found]
    assert seen == [list(range(1, 301)), list(range(51, 301)), list(range(101, 301))]
    journal.close()


def test_old_segments_are_dropped_whole_and_the_reader_is_told_by_a_gap(directory):
    journal = Journal(directory, limit=20_000, segment_size=4000, memory=0)
    for _ in range(50):
        write(journal, 20, size=100)
    assert sum(path.stat().st_size for path in directory.glob("*.segment")) <= 20_000 + 4000
    assert journal.first > 1
    events = everything(journal, 3)
    assert events[0].kind == "gap"
    assert events[0].data == {"first": 4, "last": journal.first - 1}
    assert_contiguous(events, 3, 1000)
    journal.close()


def test_a_restarted_server_goes_on_with_the_numbers(directory):
    journal = Journal(directory, name="main")
    write(journal, 5)
    journal.close()
    again = Journal(directory)
    assert again.id == journal.id
    assert (again.first, again.last) == (1, 5)
    write(again, 5)
    assert_contiguous(everything(again), 0, 10)
    assert [event.seq for event in again.replay()] == list(range(1, 11))
    again.close()


def test_a_restarted_server_gets_the_last_state_and_what_came_after_it(directory):
    state = itertools.count()
    journal = Journal(
        directory, limit=5000, segment_size=1000, memory=0, snapshot=lambda: b"state %d" % next(state)
    )
    for _ in range(100):
        write(journal, 3)
    last = journal.last
    journal.close()
    again = Journal(directory, limit=5000, segment_size=1000, memory=0)
    snapshot, *events = again.replay()
    assert snapshot == b"state %d" % (next(state) - 1)
    assert [event.seq for event in events] == list(range(events[0].seq, last + 1))
    assert events[0].seq == int(max(path.stem for path in directory.glob("*.segment")))
    again.close()


def test_a_state_larger_than_a_segment_is_not_written_at_every_flush(directory):
    calls = []
    journal = Journal(directory, segment_size=1000, snapshot=lambda: calls.append(1) or b"s" * 10_000)
    for _ in range(100):
        write(journal, 3)
    assert len(calls) <= 3
    journal.close()


def test_two_servers_cannot_write_the_same_journal(directory):
    journal = Journal(directory)
    with pytest.raises(RemoterError, match="in use"):
        Journal(directory)
    journal.close()
    Journal(directory).close()


def test_a_torn_tail_is_cut_off_and_its_number_given_again(directory):
    journal = Journal(directory)
    write(journal, 5)
    journal.close()
    segment = next(directory.glob("*.segment"))
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 3)
    again = Journal(directory)
    assert again.last == 4
    write(again, 2)
    assert_contiguous(everything(again), 0, 6)
    again.close()


def test_a_damaged_record_is_a_gap_and_the_rest_is_readable(directory):
    journal = Journal(directory, segment_size=1000, memory=0)
    write(journal, 10)
    for _ in range(20):
        write(journal, 10)
    damaged = sorted(directory.glob("*.segment"))[1]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    events = everything(journal)
    assert_contiguous(events, 0, 210)
    assert [event.kind for event in events].count("gap") == 1
    assert len(numbers(events)) > 150
    journal.close()


def test_segments_that_somebody_removed_are_a_gap(directory):
    journal = Journal(directory, segment_size=1000, memory=0)
    for _ in range(20):
        write(journal, 10)
    for path in sorted(directory.glob("*.segment"))[:3]:
        path.unlink()
    assert_contiguous(everything(journal), 0, 200)
    journal.close()


def test_lone_surrogates_are_made_printable(directory):
    journal = Journal(directory)
    event = journal.append("display", text="a\udc80b", data={"text/html": ["\ud800"], "n\udc00": 1})
    journal.flush()
    assert event.text == "a?b"
    assert decode_event(journal.read(0, 100)[0][0]).data == {"text/html": ["?"], "n?": 1}
    journal.close()


def test_memory_is_bounded_and_a_reader_far_behind_gets_everything_from_disk(directory):
    journal = Journal(directory, memory=100_000)
    for _ in range(100):
        write(journal, 10, size=2000)
    assert journal._ring_size <= 100_000
    assert_contiguous(everything(journal, limit=100_000), 0, 1000)
    journal.close()


def test_the_journal_is_private(directory):
    journal = Journal(directory)
    write(journal, 1)
    journal.close()
    assert directory.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())


# --- random histories ------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 30), st.integers(0, 200)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("read"), st.integers(1, 3000)),
        st.tuples(st.just("reopen")),
        st.tuples(st.just("kill")),
        st.tuples(st.just("tear"), st.integers(1, 60)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, limit=st.sampled_from([2000, 10**6]), memory=st.sampled_from([0, 3000, 10**6]))
def test_whatever_happens_a_reader_gets_every_number_once_or_a_gap(steps, limit, memory):
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root) / "j"

        def start() -> Journal:
            return Journal(
                directory, limit=limit, segment_size=600, memory=memory, snapshot=lambda: b"%d" % made
            )

        made = 0
        journal = start()
        texts: dict[int, str] = {}
        flushed = cursor = 0
        seen: list[Event] = []
        for step in steps:
            match step:
                case ("append", count, size):
                    for _ in range(count):
                        made += 1
                        event = journal.append("stdout", text=f"{made} " + "x" * size)
                        texts[event.seq] = event.text or ""
                case ("flush",):
                    journal.flush()
                    flushed = journal.last
                case ("read", size):
                    found, cursor = journal.read(cursor, size)
                    seen += [decode_event(item) for item in found]
                case ("reopen",):
                    journal.close()
                    journal = start()
                    flushed = journal.last
                case ("kill",) | ("tear", _):
                    kill(journal)
                    if step[0] == "tear":  # what was being written when the server was killed
                        with max(directory.glob("*.segment"), default=directory / "none").open("ab") as file:
                            file.write((b"\0\0\0\x40" + b"torn" * 20)[: step[1]])
                    journal = start()
                    assert journal.last == flushed
                    texts = {seq: text for seq, text in texts.items() if seq <= flushed}
        journal.close()
        while cursor < journal.last:
            found, cursor = journal.read(cursor, 500)
            seen += [decode_event(item) for item in found]
        assert_contiguous(seen, 0, journal.last)
        assert all(event.text == texts[event.seq] for event in seen if event.kind != "gap")
        assert_contiguous(list(Archive(directory).events()), 0, journal.last)
        check_replay(journal, made, texts)


def kill(journal: Journal) -> None:
    """Let go of the files as a killed process does."""
    for descriptor in (journal._file, journal._highest, journal._lock):
        if descriptor is not None:
            os.close(descriptor)


def check_replay(journal: Journal, made: int, texts: dict[int, str]) -> None:
    """The state and the events after it tell of every event once."""
    known = 0
    for item in journal.replay():
        if isinstance(item, bytes):
            known = int(item)
        else:
            assert item.text == texts[item.seq]
            count = int((item.text or "").split()[0])
            assert count > known
            known = count
    assert known <= made


# --- a full disk -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path):
    """A directory on a file system of 1 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() or sys.platform != "linux":
        pytest.skip("only root can mount")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_full_disk_is_told_and_nothing_is_lost_while_memory_lasts(small_disk):
    journal = Journal(small_disk / "j", retry=0, memory=0)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 900_000)
    for _ in range(100):
        write(journal, 10, size=2000)
    events = everything(journal)
    assert_contiguous(events, 0, journal.last)
    assert not [event for event in events if event.kind == "gap"]
    notices = [event for event in events if event.kind == "notice"]
    assert [event.data["about"] for event in notices] == ["disk-full"]
    assert "No space left on device" in notices[0].text

    filler.unlink()
    for path in (small_disk / "j").glob("*.segment"):
        assert path.stat().st_size < 200_000
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    write(journal, 1)
    last = journal.last
    journal.close()
    events = list(Archive(small_disk / "j").events())
    assert_contiguous(events, 0, last)
    about = [event.data["about"] for event in events if event.kind == "notice"]
    assert about == ["disk-full", "disk-back"]
    assert not [event for event in events if event.kind == "gap"]


def test_beyond_the_reserve_of_memory_the_reader_gets_a_gap(small_disk):
    journal = Journal(small_disk / "j", retry=0, memory=0, reserve=500_000)
    for _ in range(200):
        write(journal, 10, size=1500)
        assert journal._ring_size <= 500_000
    assert_contiguous(everything(journal), 0, journal.last)
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    write(journal, 10)
    events = everything(journal)
    assert_contiguous(events, 0, journal.last)
    assert [event.kind for event in events].count("gap") == 1
    journal.close()
    assert_contiguous(list(Archive(small_disk / "j").events()), 0, journal.last)
    again = Journal(small_disk / "j")
    assert again.last == journal.last
    again.close()


def test_numbers_that_only_memory_knew_are_not_given_again(small_disk):
    journal = Journal(small_disk / "j", retry=0, memory=0)
    for _ in range(200):
        write(journal, 10, size=1500)
    last = journal.last
    kill(journal)  # killed while the disk is full
    again = Journal(small_disk / "j", retry=0, memory=0)
    assert again.last == last
    assert again.id == journal.id
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    write(again, 3)
    events = everything(again)
    assert_contiguous(events, 0, last + 3)
    assert [event.kind for event in events].count("gap") == 1
    again.close()
    assert_contiguous(list(Archive(small_disk / "j").events()), 0, last + 3)


def test_a_file_size_limit_is_borne_like_a_full_disk(directory):
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from remoter._journal import Journal
        from remoter._messages import decode_event
        journal = Journal(Path(sys.argv[1]), memory=0, retry=0, reserve=10**6)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        for _ in range(100):
            journal.append("stdout", text="x" * 1000)
            journal.flush()
        found, cursor = journal.read(0, 10**7)
        while cursor < journal.last:
            more, cursor = journal.read(cursor, 10**7)
            found += more
        kinds = [decode_event(item).kind for item in found]
        assert [decode_event(item).seq for item in found] == list(range(1, 102)), kinds
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.append("stdout", text="last")
        journal.close()
        """
    )
    subprocess.run([sys.executable, "-c", program, str(directory)], check=True, timeout=80)
    events = list(Archive(directory).events())
    assert_contiguous(events, 0, 103)
    about = [event.data["about"] for event in events if event.kind == "notice"]
    assert about == ["disk-full", "disk-back"]


def test_a_full_disk_is_tried_again_at_most_once_per_retry_time(directory, monkeypatch):
    journal = Journal(directory, retry=3600)
    write(journal, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        write(journal, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write(journal, 1)  # the disk has room again, but it is not yet time to see that
    assert [event.kind for event in everything(journal)] == ["stdout", "stdout", "notice", "stdout"]
    assert list(Archive(directory).events())[-1].seq == 1
    journal.close()
    assert_contiguous(list(Archive(directory).events()), 0, journal.last)


# --- after the end ---------------------------------------------------------------------------


def test_an_archive_tells_whose_journal_it_is_and_reads_on_from_any_number(directory):
    journal = Journal(directory, name="main", clock=lambda: 12.0)
    write(journal, 5)
    alive = Archive(directory)
    assert (alive.name, alive.started, alive.ended) == ("main", 12.0, None)
    assert (alive.first, alive.last) == (1, 5)
    journal.finish()
    journal.close()
    archive = Archive(directory)
    assert (archive.id, archive.ended) == (journal.id, 12.0)
    assert [event.seq for event in archive.events(since=3)] == [4, 5]
    assert list(archive.events(since=9)) == []
    assert [found.id for found in archives(directory.parent)] == [journal.id]


def test_journals_in_a_directory_that_others_could_write_are_not_read(directory):
    journal = Journal(directory)
    journal.finish()
    journal.close()
    directory.parent.chmod(0o777)
    with pytest.raises(RemoterError, match="open to others"):
        archives(directory.parent)
    assert archives(directory.parent / "none") == []


def test_journals_that_ended_a_week_ago_are_swept_and_live_ones_stay(tmp_path):
    ended, lost, alive, recent = (Journal(tmp_path / name) for name in ("ended", "lost", "alive", "recent"))
    ended.finish()
    recent.finish()
    for journal in (ended, lost, recent):
        journal.close()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    meta = tmp_path / "recent" / "meta.json"
    meta.write_text(meta.read_text().replace('"ended": ', '"ended": 9'))
    sweep(tmp_path, now=time.time() + 8 * 86400)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "foreign", "recent"]
    sweep(tmp_path / "nowhere")
    alive.remove()
    assert not (tmp_path / "alive").exists()
