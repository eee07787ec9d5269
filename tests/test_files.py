"""One file as a source and as a sink: what arrives, what stays of what does not, and what nobody can make it do."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from remoter import _files, _folders
from remoter._errors import TransferError
from remoter._files import FileSink, FileSource, digest_of_prefix, find_part, is_wanted, part_name
from remoter._folders import Folder

from .carrying import move

MIB = 1024 * 1024
NOON = 1_700_000_000_123_456_789


def make_sink(directory, name="x.bin", **how):
    how = {"size": 3, "mtime_ns": NOON, "mode": 0o644, **how}
    return FileSink(Folder.open(os.fspath(directory)), name, **how)


def copy_file(source, directory, name="x.bin", *, cut=None, hook=None, chunk=MIB, **how):
    """Copy a file as the two ends do; returns what the receiver says."""
    with contextlib.closing(FileSource.open(os.path.realpath(source))) as opened:
        sink = make_sink(
            directory,
            name,
            size=opened.size,
            mtime_ns=opened.mtime_ns,
            mode=opened.mode,
            is_sparse=opened.is_sparse,
            **how,
        )
        with contextlib.closing(sink):
            return move(opened, sink, cut=cut, hook=hook, chunk=chunk)


def make_file(path, content=b"abc", *, mode=0o644, mtime_ns=NOON):
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


@pytest.fixture
def tmp_path(home):
    path = home / "work"
    path.mkdir()
    return path


@pytest.fixture
def there(tmp_path):
    path = tmp_path / "there"
    path.mkdir()
    return path


# --- what arrives ----------------------------------------------------------------------------


def test_a_file_arrives_with_its_contents_permissions_and_time(tmp_path, there):
    source = make_file(tmp_path / "a", os.urandom(3 * MIB + 17), mode=0o751)
    assert copy_file(source, there) == {"path": os.fsencode(there / "x.bin")}
    status = (there / "x.bin").stat()
    assert (there / "x.bin").read_bytes() == source.read_bytes()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o751, NOON)
    assert os.listdir(there) == ["x.bin"]


def test_an_empty_file_arrives(tmp_path, there):
    copy_file(make_file(tmp_path / "a", b""), there)
    assert (there / "x.bin").read_bytes() == b""
    assert os.listdir(there) == ["x.bin"]


def test_no_special_permissions_cross(there):
    sink = make_sink(there, mode=0o6755 | stat.S_ISVTX)
    sink.write(memoryview(b"abc"))
    sink.finish()
    assert stat.S_IMODE((there / "x.bin").stat().st_mode) == 0o755


def test_until_all_is_there_it_is_hidden_and_for_its_owner_only(there):
    sink = make_sink(there)
    sink.write(memoryview(b"ab"))
    assert sorted(os.listdir(there)) == [".x.bin.part", ".x.bin.part.json"]
    assert {stat.S_IMODE((there / name).stat().st_mode) for name in os.listdir(there)} == {0o600}
    with pytest.raises(TransferError) as caught:
        sink.finish()
    assert caught.value.id == "corrupt"
    assert not (there / "x.bin").exists()
    sink.close()


@settings(max_examples=30, deadline=None)
@given(
    content=st.binary(max_size=500), chunk=st.integers(1, 200), cuts=st.lists(st.integers(0, 300), max_size=4)
)
def test_wherever_it_is_cut_the_file_comes_whole_in_the_end(content, chunk, cuts):
    directory = Path(tempfile.mkdtemp())
    source = make_file(directory / "a", content)
    there = directory / "there"
    there.mkdir()
    for cut in [*cuts, None]:
        with contextlib.suppress(Exception):
            copy_file(source, there, cut=cut, chunk=chunk, overwrite=True)
    assert (there / "x.bin").read_bytes() == content
    assert os.listdir(there) == ["x.bin"]


def test_holes_stay_holes(tmp_path, there):
    source = tmp_path / "a"
    with source.open("wb") as file:
        file.write(b"begin")
        file.seek(60 * MIB)
        file.write(b"middle")
        file.truncate(100 * MIB)
    copy_file(source, there)
    with (there / "x.bin").open("rb") as file:
        assert (file.read(6), file.seek(60 * MIB), file.read(7)) == (b"begin\0", 60 * MIB, b"middle\0")
    status = (there / "x.bin").stat()
    assert status.st_size == 100 * MIB
    assert status.st_blocks * 512 < 10 * MIB


def test_holes_are_empty_also_when_more_was_there_before(tmp_path, there):
    with (tmp_path / "a").open("wb") as file:
        file.write(b"x" * MIB)
        file.truncate(8 * MIB)
    sink = make_sink(there, size=8 * MIB, is_sparse=True)
    sink.write(memoryview(b"x" * 4 * MIB))
    sink.restart(MIB)
    sink.write(memoryview(bytes(7 * MIB)))
    sink.finish()
    assert (there / "x.bin").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_file_that_is_not_sparse_has_its_room_before_it_comes(there):
    sink = make_sink(there, size=16 * MIB)
    sink.write(memoryview(b"abc"))
    part = there / ".x.bin.part"
    if part.stat().st_blocks * 512 < 16 * MIB:
        pytest.skip("this file system reserves nothing")
    assert part.stat().st_size == 3
    sink.close()
    assert part.stat().st_blocks * 512 < MIB, "what was reserved is given back"


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["n" * 255, "é" * 127, "日" * 85, "n" * 244, "n" * 246, ".hidden", "a b\n\t'\""]
)
def test_names_as_long_and_odd_as_they_may_be(there, name):
    sink = make_sink(there, name)
    sink.write(memoryview(b"ab"))
    sink.close()
    assert make_sink_and_position(there, name) == 2
    sink = make_sink(there, name)
    sink.write(memoryview(b"c"))
    sink.finish()
    assert os.listdir(there) == [name]


def make_sink_and_position(there, name):
    with contextlib.closing(make_sink(there, name)) as sink:
        return sink.position


def test_names_that_are_no_text_survive(there):
    name = os.fsdecode(b"caf\xe9.csv")
    sink = make_sink(there, name)
    sink.write(memoryview(b"abc"))
    assert sink.finish()["path"] == os.fsencode(there) + b"/caf\xe9.csv"
    assert os.listdir(os.fsencode(there)) == [b"caf\xe9.csv"]
    assert (there / name).read_bytes() == b"abc"


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
def test_the_part_of_every_name_that_fits_fits_too(name):
    part = part_name(name)
    assert part.startswith(".")
    assert len(os.fsencode(part + ".json")) <= 255


def test_two_long_names_that_begin_alike_have_different_parts():
    assert part_name("n" * 254 + "a") != part_name("n" * 254 + "b")


# --- going on --------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [1, 50, 99])
def test_what_was_cut_goes_on_where_it_was(tmp_path, there, percent):
    source = make_file(tmp_path / "a", os.urandom(4 * MIB))
    cut = 4 * MIB * percent // 100
    with pytest.raises(Exception, match="the connection is gone"):
        copy_file(source, there, cut=cut)
    assert not (there / "x.bin").exists()
    with Folder.open(os.fspath(there)) as folder:
        had, digest = find_part(folder, "x.bin", 4 * MIB, NOON)
    assert (had, digest) == (cut, xxhash.xxh3_128_digest(source.read_bytes()[:cut]))
    positions = []
    copy_file(source, there, hook=positions.append)
    assert positions[0] > cut
    assert (there / "x.bin").read_bytes() == source.read_bytes()
    assert os.listdir(there) == ["x.bin"]


@pytest.mark.parametrize("other", [{"size": 4}, {"mtime_ns": NOON + 1}])
def test_a_part_of_another_file_does_not_help(there, other):
    sink = make_sink(there)
    sink.write(memoryview(b"ab"))
    sink.close()
    with contextlib.closing(make_sink(there, **other)) as sink:
        assert (sink.position, sink.starts_over) == (0, True)
    assert os.listdir(there) == []


def test_a_note_that_is_damaged_does_not_help(there):
    sink = make_sink(there)
    sink.write(memoryview(b"ab"))
    sink.close()
    (there / ".x.bin.part.json").write_bytes(b'{"size": 3')
    assert make_sink_and_position(there, "x.bin") == 0


def test_without_resuming_nothing_is_left(there):
    with contextlib.closing(make_sink(there, resume=False)) as sink:
        sink.write(memoryview(b"ab"))
        assert sink.way_on() == ()
    assert os.listdir(there) == []


def test_what_has_not_begun_leaves_nothing(there):
    make_sink(there).close()
    assert os.listdir(there) == []


def test_what_is_discarded_leaves_nothing(there):
    sink = make_sink(there)
    sink.write(memoryview(b"ab"))
    sink.discard()
    sink.close()
    assert os.listdir(there) == []


def test_the_digest_of_what_is_there_is_that_of_the_beginning(tmp_path, there):
    content = os.urandom(2 * MIB + 5)
    source = make_file(tmp_path / "a", content)
    with contextlib.closing(FileSource.open(os.path.realpath(source))) as opened:
        assert opened.digest(MIB + 1) == xxhash.xxh3_128_digest(content[: MIB + 1])
        with pytest.raises(TransferError) as caught:
            opened.digest(3 * MIB)
        assert caught.value.id == "changed"
        with contextlib.closing(make_sink(there, size=opened.size)) as sink:
            sink.write(memoryview(content[: MIB + 1]))
            assert sink.digest() == opened.digest(MIB + 1)


def test_a_long_digest_can_be_cancelled(tmp_path):
    make_file(tmp_path / "a", bytes(2 * MIB))
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)

    def check():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digest_of_prefix(descriptor, 2 * MIB, check)
    os.close(descriptor)


# --- what is in the way ----------------------------------------------------------------------


def wanted(there, **how):
    how = {"overwrite": False, "skip_same": False, **how}
    with Folder.open(os.fspath(there)) as folder:
        return is_wanted(folder, "x.bin", 3, NOON, **how)


def test_what_exists_is_replaced_only_if_asked(there):
    assert wanted(there)
    make_file(there / "x.bin", b"old")
    with pytest.raises(TransferError, match=r"`.*/x.bin` exists") as caught:
        wanted(there)
    assert caught.value.id == "exists"
    assert any("`overwrite=True`" in hint for hint in caught.value.hints)
    assert wanted(there, overwrite=True)
    assert not wanted(there, skip_same=True)
    os.utime(there / "x.bin", ns=(NOON + 5000, NOON + 5000))
    assert wanted(there, skip_same=True, overwrite=True)


@pytest.mark.parametrize(
    ("time_there", "is_same"),
    [
        (NOON, True),
        (NOON - 89, True),  # NTFS knows 100 ns
        (NOON - 456_789, False),
        (NOON // 10**9 * 10**9, True),  # whole seconds
        ((NOON // 10**9 + 1) * 10**9, True),  # FAT rounds up to two
        ((NOON // 10**9 + 3) * 10**9, False),
    ],
)
def test_times_are_the_same_as_far_as_the_file_system_can_tell(time_there, is_same):
    assert _folders.is_same_time(time_there, NOON) is is_same


def test_who_comes_first_keeps_the_name(there):
    sink = make_sink(there)
    sink.write(memoryview(b"abc"))
    (there / "x.bin").write_bytes(b"somebody else's")
    with pytest.raises(TransferError) as caught:
        sink.finish()
    sink.close()
    assert caught.value.id == "exists"
    assert (there / "x.bin").read_bytes() == b"somebody else's"
    sink = make_sink(there, overwrite=True)
    assert sink.position == 3, "nothing has to be sent again"
    sink.finish()
    assert (there / "x.bin").read_bytes() == b"abc"


def test_where_there_are_no_hard_links_nothing_is_lost_either(there, monkeypatch):
    def no_links(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for expected in (contextlib.nullcontext(), pytest.raises(TransferError, match="exists")):
        with expected, contextlib.closing(make_sink(there)) as sink:
            sink.write(memoryview(b"abc"))
            sink.finish()


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
def test_only_files_are_replaced(tmp_path, there, kind):
    path = there / "x.bin"
    with contextlib.ExitStack() as stack:
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(os.fspath(path))
        elif os.geteuid() == 0:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        else:
            pytest.skip("only root makes devices")
        with pytest.raises(TransferError, match=kind) as caught:
            wanted(there, overwrite=True)
        assert caught.value.id == "exists"


def test_a_link_in_the_place_is_replaced_and_not_followed(tmp_path, there):
    victim = make_file(tmp_path / "victim", b"precious")
    (there / "x.bin").symlink_to(victim)
    with pytest.raises(TransferError):
        wanted(there)
    sink = make_sink(there, overwrite=True)
    sink.write(memoryview(b"abc"))
    sink.finish()
    assert victim.read_bytes() == b"precious"
    assert not (there / "x.bin").is_symlink()
    assert (there / "x.bin").read_bytes() == b"abc"


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "socket", "somebody's"])
@pytest.mark.parametrize("which", [".x.bin.part", ".x.bin.part.json"])
def test_what_somebody_put_where_the_part_belongs_is_not_used(tmp_path, there, kind, which):
    victim = make_file(tmp_path / "victim", b"precious")
    path = there / which
    with contextlib.ExitStack() as stack:
        if kind == "link":
            path.symlink_to(victim)
        elif kind == "dangling link":
            path.symlink_to(tmp_path / "nowhere")
        elif kind == "hard link":
            os.link(victim, path)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(os.fspath(path))
        elif os.geteuid() == 0:
            path.write_bytes(b"pre")
            os.chown(path, 12345, 12345)
        else:
            pytest.skip("only root gives files away")
        sink = make_sink(there)
        assert sink.position == 0
        sink.write(memoryview(b"abc"))
        sink.finish()
    assert (there / "x.bin").read_bytes() == b"abc"
    assert (there / "x.bin").stat().st_uid == os.geteuid()
    assert os.listdir(there) == ["x.bin"]
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_where_the_part_belongs_is_an_error(there):
    (there / ".x.bin.part").mkdir()
    with pytest.raises(TransferError, match="is a directory") as caught:
        make_sink(there)
    assert caught.value.id == "unwritable"


def test_where_nothing_can_be_written_it_says_so():
    with pytest.raises(TransferError, match="cannot write `/proc/x") as caught:
        make_sink("/proc")
    assert caught.value.id in ("unwritable", "path")


def test_a_folder_that_was_removed_meanwhile_is_an_error(there):
    sink = make_sink(there)
    sink.write(memoryview(b"abc"))
    for name in os.listdir(there):
        (there / name).unlink()
    there.rmdir()
    with pytest.raises(TransferError, match="no such file"):
        sink.finish()
    sink.close()


# --- two at once -----------------------------------------------------------------------------

HOLDER = """
    import sys
    from remoter._files import FileSink
    from remoter._folders import Folder
    sink = FileSink(Folder.open(sys.argv[1]), "x.bin", size=3, mtime_ns=1, mode=0o600)
    sink.write(memoryview(b"a"))
    print("has it", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_another_process_writes_is_left_to_it(there):
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), there], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"has it\n"
        with pytest.raises(TransferError, match="is being written by another copy") as caught:
            make_sink(there, mtime_ns=1)
        assert caught.value.id == "unwritable"
        holder.send_signal(signal.SIGKILL)
    with contextlib.closing(make_sink(there, mtime_ns=1)) as sink:
        assert sink.position == 1, "what the killed one left is gone on with"


def test_what_nobody_writes_to_any_more_gives_way(there, monkeypatch):
    old = make_sink(there)
    old.write(memoryview(b"a"))
    monkeypatch.setattr(_files, "IDLE", 0.05)
    new = make_sink(there)
    assert new.position == 1
    with pytest.raises(TransferError, match="another copy goes on") as caught:
        old.write(memoryview(b"b"))
    assert caught.value.id == "cancelled"
    old.close()
    new.write(memoryview(b"bc"))
    new.finish()
    assert (there / "x.bin").read_bytes() == b"abc"


# --- no room ---------------------------------------------------------------------------------


def run_where(setup, script, *arguments):
    """Run Python in a process of its own, after some shell; skip where that is not permitted."""
    command = ["unshare", "-m", "sh", "-c", f'{setup} && exec "$0" "$@"', sys.executable, "-c"]
    done = subprocess.run(
        [*command, textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file system of our own: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL = """
    import os, sys
    from remoter._errors import TransferError
    from remoter._files import FileSink
    from remoter._folders import Folder
    there = sys.argv[1]
    def sink(size, **how):
        return FileSink(Folder.open(there), "x", size=size, mtime_ns=1, mode=0o600, **how)
    def expect(work):
        try:
            work()
        except TransferError as error:
            print(error.id, "|", error.message, "|", error.cause, "|", *error.hints)
        else:
            print("no error")
    expect(lambda: sink(2 << 20))
    print(os.listdir(there))
    part = sink(600 << 10)
    part.write(memoryview(bytes(400 << 10)))
    part.close()
    with open(f"{there}/other", "wb") as file:
        file.write(bytes(500 << 10))
    expect(lambda: sink(600 << 10))
    print(sorted(os.listdir(there)))
    os.unlink(f"{there}/other")
    again = sink(600 << 10)
    print(again.position)
    again.close()
    holes = sink(3 << 20, is_sparse=True)
    expect(lambda: holes.write(memoryview(b"x" * (2 << 20))))
    print(holes.position > 0)
    holes.close()
    print(os.path.getsize(f"{there}/.x.part") == holes.position)
"""


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(there):
    out = run_where(f"mount -t tmpfs -o size=1m none '{there}'", FULL, there).splitlines()
    assert out[0].startswith("no-space | there is no room for `x` in ")
    assert "| 2.1 MB are needed, 1.0 MB are free |" in out[0]
    assert out[1] == "[]"
    assert out[2].startswith("no-space | there is no room")
    assert out[3] == "['.x.part', '.x.part.json', 'other']", "what was there is kept"
    assert out[4] == str(400 << 10)
    assert out[5].startswith("no-space | cannot write `")
    assert "copy it again, and it goes on after the " in out[5]
    assert out[6:] == ["True", "True"]


LIMITED = """
    import resource, sys
    from remoter._errors import TransferError
    from remoter._files import FileSink
    from remoter._folders import Folder
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    sink = FileSink(Folder.open(sys.argv[1]), "x", size=3000, mtime_ns=1, mode=0o600)
    try:
        sink.write(memoryview(bytes(3000)))
    except TransferError as error:
        print(error.id, error.cause, sink.position, error.hints)
    sink.close()
"""


def test_a_limit_on_the_length_of_files_is_told(there):
    script = [sys.executable, "-c", textwrap.dedent(LIMITED), there]
    done = subprocess.run(script, capture_output=True, text=True, timeout=15, check=False)
    assert "no-space file too large 1000 ('copy it again," in done.stdout, done.stderr
    assert (there / ".x.part").stat().st_size == 1000


def test_where_nothing_can_be_reserved_the_free_room_counts(there, monkeypatch):
    monkeypatch.setattr(_files, "reserve", lambda *args: None)
    with pytest.raises(TransferError, match="there is no room for `x") as caught:
        make_sink(there, size=1 << 60)
    assert caught.value.id == "no-space"
    assert os.listdir(there) == []
    make_sink(there).close()


@pytest.mark.parametrize("size", [1 << 40, 1 << 60, (1 << 62)])
def test_a_size_that_is_a_lie_takes_no_room(there, size):
    with pytest.raises(TransferError) as caught:
        make_sink(there, size=size)
    assert caught.value.id == "no-space"
    assert os.listdir(there) == []


# --- sources ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words"),
    [("pipe", "a named pipe"), ("folder", "a folder"), ("device", "a device"), ("socket", "no such device")],
)
def test_only_plain_files_are_read_and_nothing_waits_for_a_pipe(tmp_path, kind, words):
    path = tmp_path / "x"
    with contextlib.ExitStack() as stack:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "device":
            path = "/dev/null"
        else:
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(os.fspath(path))
        with pytest.raises(TransferError, match=words) as caught:
            FileSource.open(os.path.realpath(path))
        assert caught.value.id in ("kind", "path")


def test_a_link_that_was_put_in_its_place_is_not_followed(tmp_path):
    make_file(tmp_path / "secret", b"secret")
    (tmp_path / "x").symlink_to(tmp_path / "secret")
    with pytest.raises(TransferError) as caught:
        FileSource.open(os.fspath(tmp_path / "x"))
    assert caught.value.id == "path"


def test_below_a_root_no_folder_is_a_link(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    make_file(tmp_path / "outside" / "x", b"secret")
    (tmp_path / "root" / "swapped").symlink_to(tmp_path / "outside")
    root = os.fspath(tmp_path / "root")
    for path in (f"{root}/swapped/x", f"{root}/../outside/x", os.fspath(tmp_path / "outside" / "x")):
        with pytest.raises(TransferError) as caught:
            FileSource.open(path, root)
        assert caught.value.id == "path"
    assert FileSource.open(f"{root}/swapped/x").size == 6, "without a root the link may lead anywhere"


@pytest.mark.parametrize("change", ["shorter", "longer", "written over", "touched"])
def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, there, change):
    source = make_file(tmp_path / "a", os.urandom(4 * MIB))

    def change_it(position):
        if position == 2 * MIB:
            if change == "shorter":
                os.truncate(source, 3 * MIB)
            elif change == "longer":
                with source.open("ab") as file:
                    file.write(b"more")
            elif change == "written over":
                with source.open("r+b") as file:
                    file.write(b"less")
            else:
                os.utime(source)

    with pytest.raises(TransferError, match="changed while it was copied") as caught:
        copy_file(source, there, hook=change_it)
    assert caught.value.id == "changed"
    assert not (there / "x.bin").exists()


def test_a_file_that_is_replaced_while_it_is_read_comes_as_it_was(tmp_path, there):
    source = make_file(tmp_path / "a", b"old" * MIB)

    def replace(position):
        make_file(tmp_path / "b", b"new").replace(source)

    def replace_once(position):
        if position == MIB:
            replace(position)

    copy_file(source, there, hook=replace_once)
    assert (there / "x.bin").read_bytes() == b"old" * MIB
    assert source.read_bytes() == b"new"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), max_size=10))
def test_any_stretch_can_be_read(stretches):
    content = bytes(range(250)) * 4
    path = make_file(Path(tempfile.mkdtemp()) / "a", content)
    with contextlib.closing(FileSource.open(os.path.realpath(path))) as source:
        for one, other in stretches:
            start, end = min(one, other), max(one, other)
            buffer = memoryview(bytearray(end - start))
            source.read(start, buffer)
            assert buffer == content[start:end]


def test_where_there_is_no_preadv_it_is_read_too(tmp_path, there, monkeypatch):
    def read_at(descriptor, into, offset):
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, min(len(into), 1000))
        into[: len(data)] = data
        return len(data)

    monkeypatch.setattr(_files, "read_at", read_at)
    source = make_file(tmp_path / "a", os.urandom(100_000))
    copy_file(source, there)
    assert (there / "x.bin").read_bytes() == source.read_bytes()


# --- folders ---------------------------------------------------------------------------------


def test_a_trail_follows_no_link_and_closes_all_it_opens(tmp_path):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b")
    before = set(os.listdir("/proc/self/fd"))
    trail = _folders.Trail(Folder.open(os.fspath(tmp_path)), make=True)
    for path in (b"a/b/c", b"a", b"", b"a/b", b"new/deep/er", b"a/b/c"):
        folder = trail.go(path)
        assert os.path.samestat(folder.status("."), (tmp_path / os.fsdecode(path)).stat())
        assert folder.path == os.path.join(tmp_path, os.fsdecode(path)).rstrip("/")
    for path in (b"a/link", b"a/link/c"):
        with pytest.raises(OSError) as caught:
            trail.go(path)
        assert _folders.is_in_the_way(caught.value)
    assert os.path.samestat(trail.go(b"a/b").status("c"), (tmp_path / "a/b/c").stat()), (
        "and it goes on after that"
    )
    with pytest.raises(OSError, match="more than 100 folders"):
        trail.go(b"/".join([b"d"] * 101))
    trail.close()
    assert set(os.listdir("/proc/self/fd")) <= before  # fewer: what an earlier test has left was collected


def test_a_folder_that_may_be_passed_but_not_listed_is_passed(tmp_path, there):
    if os.geteuid() == 0:
        pytest.skip("root may list everything")
    (tmp_path / "closed" / "open").mkdir(parents=True)
    source = make_file(tmp_path / "closed" / "open" / "x")
    (tmp_path / "closed").chmod(0o311)
    copy_file(source, there)
    (tmp_path / "closed").chmod(0o755)
