"""Where things are kept: in the same place for every process, for as long as a session lives."""

import contextlib
import fcntl
import os
import signal
from pathlib import Path

import pytest

from remoter import _config, _records
from remoter._errors import RemoterError

from .conftest import is_alive, wait_for


def is_cleaned(directory):
    """Whether systemd-tmpfiles would remove old files in there: it takes this lock, or leaves them."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def open_files():
    """Where the descriptors of this process lead."""
    for entry in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            yield os.readlink(f"/dev/fd/{entry}")


def test_the_runtime_directory_is_the_same_with_and_without_a_login(monkeypatch, home):
    monkeypatch.delenv("REMOTER_RUNTIME_DIR")
    without = _config.runtime_directory()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    assert _config.runtime_directory() == without == Path(f"/tmp/remoter-{os.getuid()}")


def test_the_directories_of_a_live_session_are_held_against_cleaning(served):
    assert not is_cleaned(served.directory)
    assert not is_cleaned(served.journal)
    os.kill(served.server_pid, signal.SIGKILL)
    with served.connect() as session:  # a new server
        assert session.run("1", quiet=True).text == "1"
    os.kill(served.keeper_pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(served.keeper_pid))
    assert not is_cleaned(served.directory), "the server holds them too"
    assert not is_cleaned(served.journal)
    with served.connect() as session:
        session.shutdown()
    wait_for(lambda: not served.directory.exists())
    wait_for(lambda: is_cleaned(served.journal), what="the journal is an old file like others")


def test_a_session_starts_while_its_directory_is_being_cleaned(serve, home):
    directory = _config.private_directory(home / "runtime") / "main"
    directory.mkdir(mode=0o700)
    cleaner = os.open(directory, os.O_RDONLY)
    fcntl.flock(cleaner, fcntl.LOCK_EX)
    try:
        assert serve().name == "main"
    finally:
        os.close(cleaner)


@pytest.mark.parametrize("variable", ["REMOTER_RUNTIME_DIR", "REMOTER_JOURNAL_DIR"])
def test_where_somebody_was_first_the_error_names_the_variable_for_another_place(monkeypatch, home, variable):
    target = home / "theirs"
    target.mkdir()
    place = home / "place"
    place.symlink_to(target)
    monkeypatch.setenv(variable, str(place))
    with pytest.raises(RemoterError, match="is not a directory") as caught:
        _config.private_directory(place)
    assert variable in caught.value.hints[0]


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory to somebody else")
@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
def test_what_is_no_plain_file_is_refused_at_once(home, kind):
    path = home / "odd"
    if kind == "directory":
        path.mkdir(mode=0o700)
    elif kind == "pipe":
        os.mkfifo(path, 0o600)  # opened for reading, it waits for who writes
    else:
        path.symlink_to("/etc/passwd")
    with pytest.raises(RemoterError) as refused:
        _config.read_private(path)
    assert refused.value.id == "private-file"
    assert f"`{path}`" in refused.value.message
    assert not {str(path), "/etc/passwd"} & set(open_files())
    assert not _config.is_locked(home / "a\0b")


def test_locks_in_a_directory_of_somebody_else_are_not_looked_at(monkeypatch, home):
    place = home / "theirs"
    (place / "main").mkdir(parents=True)
    (place / "main" / "lock").write_text("1\n")
    os.chown(place, 12345, 12345)
    monkeypatch.setenv("REMOTER_RUNTIME_DIR", str(place))
    assert not _records.restore_records(0)
    with pytest.raises(RemoterError, match="belongs to somebody else") as caught:
        _config.private_directory(place)
    assert "REMOTER_RUNTIME_DIR" in caught.value.hints[0]


def test_a_start_in_too_long_a_directory_says_what_to_set_and_leaves_nothing(serve, home, monkeypatch):
    monkeypatch.setenv("REMOTER_RUNTIME_DIR", str(home / ("long" * 25)))
    with pytest.raises(RemoterError, match="too long for a socket") as caught:
        serve()
    assert "103 are possible" in caught.value.cause
    assert "REMOTER_RUNTIME_DIR" in caught.value.hints[0]
    with contextlib.suppress(FileNotFoundError):
        assert not os.listdir(home / ("long" * 25))


def test_the_session_of_a_name_is_found_here_also_when_its_connection_file_is_gone(served):
    _records.record_path(served.record["host"], served.name).unlink()
    assert _records.record_here(served.name).socket == served.directory / "zmq.sock"
    assert _records.record_here("nobody") is None
