"""Upload and download: whole copies from end to end, without a network between the ends."""

import collections
import contextlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import threading

import pytest

from remoter import _files, _folders, _manifest, _paths, _plans, _trees
from remoter._copy import Copied, Options, download, download_stream, label_of, prepare, upload, upload_stream
from remoter._errors import LinkLostError, TransferError
from remoter._transfer import Forgotten

from .carrying import FakeCarrier
from .test_trees import TREE, make_tree, names, read_tree

MIB = 1024 * 1024
NOON = 1_700_000_000_123_456_789


@pytest.fixture
def tmp_path(home):
    path = home / "work"
    path.mkdir()
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    path = tmp_path / "here"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def there(tmp_path):
    path = tmp_path / "there"
    path.mkdir()
    return path


@pytest.fixture
def carrier(there):
    with contextlib.closing(Carriers(there)) as carriers:
        yield carriers


def open_paths():
    """The files and folders that this process has open, and how often; its sockets may be an earlier test's."""
    paths = collections.Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself is closed by now
            paths[os.readlink(f"/proc/self/fd/{name}")] += 1
    return collections.Counter({path: count for path, count in paths.items() if path.startswith("/")})


class Carriers:
    """Makes carriers to one place, and sees that all streams are closed in the end."""

    def __init__(self, there):
        self.there, self.made = there, []
        self.open = open_paths()

    def __call__(self, **how):
        self.made.append(FakeCarrier(self.there, **how))
        return self.made[-1]

    @property
    def last(self):
        return self.made[-1]

    def close(self):
        for carrier in self.made:
            carrier.end()
        assert not open_paths() - self.open, "a file was left open"


BOTH = pytest.mark.parametrize("way", ["up", "down"])


@pytest.fixture
def ends(here, there, carrier):
    """For a way: the sender's place, the receiver's, and a function that copies."""

    def choose(way):
        work = upload if way == "up" else download

        def copy(path, to=None, *, cut=None, hook=None, tamper=None, chunk=MIB, root=None, **options):
            made = carrier(cut=cut, hook=hook, tamper=tamper, chunk=chunk, root=root)
            return work(made, path, to, Options(**options))

        return (here, there, copy) if way == "up" else (there, here, copy)

    return choose


def make_file(path, content, mtime_ns=NOON):
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


# --- one file --------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 5])
def test_a_file_crosses(ends, way, size):
    source, target, copy = ends(way)
    content = os.urandom(size)
    make_file(source / "x.bin", content).chmod(0o640)
    copied = copy("x.bin")
    assert (copied.path, copied.files, copied.bytes) == (os.fspath(target / "x.bin"), 1, size)
    assert (copied.skipped, copied.problems, copied.elapsed > 0) == (0, [], True)
    status = (target / "x.bin").stat()
    assert (target / "x.bin").read_bytes() == content
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, NOON)
    assert os.listdir(target) == ["x.bin"]


@BOTH
@pytest.mark.parametrize(
    ("to", "where"), [("y.bin", "y.bin"), ("folder", "folder/x.bin"), ("new/", "new/x.bin"), (".", "x.bin")]
)
def test_a_file_goes_where_it_is_wanted(ends, way, to, where):
    source, target, copy = ends(way)
    (target / "folder").mkdir()
    make_file(source / "x.bin", b"abc")
    assert copy("x.bin", to).path == os.fspath(target / where)
    assert (target / where).read_bytes() == b"abc"


@BOTH
def test_names_that_are_no_text_cross(ends, way):
    source, target, copy = ends(way)
    name = os.fsdecode(b"caf\xe9 \xff\n")
    make_file(source / name, b"abc")
    copied = copy(name)
    with open(copied.path, "rb") as file:
        assert file.read() == b"abc"
    assert os.listdir(target) == [name]
    assert str(copied).endswith("caf\\udce9 \\udcff\\n: 1 file, 3 bytes")
    assert label_of(name) == "caf\\udce9 \\udcff\\n"


@BOTH
@pytest.mark.parametrize("percent", [1, 50, 99])
def test_a_file_that_was_cut_goes_on_where_it_was(ends, carrier, way, percent):
    source, target, copy = ends(way)
    make_file(source / "x.bin", os.urandom(4 * MIB))
    cut = 4 * MIB * percent // 100
    with pytest.raises(LinkLostError) as caught:
        copy("x.bin", cut=cut)
    assert "copy it again, and it goes on" in str(caught.value)
    carrier.last.end()
    copied = copy("x.bin")
    assert copied.bytes == 4 * MIB - cut
    assert carrier.last.notes == ["resuming", "", ""]
    assert (target / "x.bin").read_bytes() == (source / "x.bin").read_bytes()
    assert os.listdir(target) == ["x.bin"]


@BOTH
def test_a_file_of_which_all_is_there_but_the_name_is_finished(ends, carrier, way):
    source, target, copy = ends(way)
    make_file(source / "x.bin", b"abc")
    make_file(target / "y", b"taken")
    (target / "y").rename(target / "z")

    def take_the_name(position):
        make_file(target / "x.bin", b"taken")

    with pytest.raises(TransferError) as caught:
        copy("x.bin", hook=take_the_name)
    assert caught.value.id == "exists"
    carrier.last.end()
    assert copy("x.bin", overwrite=True).bytes == 0
    assert (target / "x.bin").read_bytes() == b"abc"


@BOTH
def test_a_file_that_changed_after_the_cut_starts_over_and_that_is_said(ends, carrier, way):
    source, target, copy = ends(way)
    make_file(source / "x.bin", b"old" * MIB)
    with pytest.raises(LinkLostError):
        copy("x.bin", cut=MIB)
    carrier.last.end()
    make_file(source / "x.bin", b"new" * MIB, NOON + 10**9)
    assert copy("x.bin").bytes == 3 * MIB
    assert "starting over: the source changed" in carrier.last.notes
    assert carrier.last.notes[-1] == "", "it is over"
    assert (target / "x.bin").read_bytes() == b"new" * MIB


@BOTH
def test_a_file_that_changed_unseen_after_the_cut_starts_over(ends, carrier, way):
    source, target, copy = ends(way)
    make_file(source / "x.bin", b"old" * MIB)
    with pytest.raises(LinkLostError):
        copy("x.bin", cut=MIB)
    carrier.last.end()
    make_file(source / "x.bin", b"new" * MIB)
    assert copy("x.bin").bytes == 3 * MIB
    assert carrier.last.notes == ["resuming", "starting over: the source changed", ""]
    assert (target / "x.bin").read_bytes() == b"new" * MIB


@BOTH
def test_without_resuming_nothing_is_left_of_what_was_cut(ends, carrier, way):
    source, target, copy = ends(way)
    make_file(source / "x.bin", b"abc" * MIB)
    with pytest.raises(LinkLostError) as caught:
        copy("x.bin", cut=MIB, resume=False)
    carrier.last.end()
    assert os.listdir(target) == []
    assert caught.value.hints == ()


@BOTH
def test_a_file_that_is_there_is_kept_replaced_or_skipped_as_asked(ends, carrier, way):
    source, target, copy = ends(way)
    make_file(source / "x.bin", b"new")
    make_file(target / "x.bin", b"old", NOON - 1)
    with pytest.raises(TransferError, match="exists") as caught:
        copy("x.bin")
    assert caught.value.id == "exists"
    carrier.last.end()
    make_file(target / "x.bin", b"own", NOON)
    copied = copy("x.bin", update=True)
    assert (copied.files, copied.skipped, copied.path) == (0, 1, os.fspath(target / "x.bin"))
    assert (target / "x.bin").read_bytes() == b"own", "the same size and time"
    carrier.last.end()
    assert copy("x.bin", overwrite=True).files == 1
    assert (target / "x.bin").read_bytes() == b"new"
    make_file(source / "x.bin", b"newer")
    assert copy("x.bin", update=True).files == 1
    assert (target / "x.bin").read_bytes() == b"newer"


@BOTH
def test_a_file_that_changes_while_it_crosses_does_not_arrive(ends, carrier, way):
    source, target, copy = ends(way)
    make_file(source / "x.bin", bytes(3 * MIB))

    def change(position):
        if position == MIB:
            os.utime(source / "x.bin")

    with pytest.raises(TransferError) as caught:
        copy("x.bin", hook=change)
    assert caught.value.id == "changed"
    assert "x.bin" not in os.listdir(target)


@BOTH
def test_a_change_is_noticed_at_once_and_nobody_is_promised_that_it_goes_on(ends, carrier, way):
    source, _, copy = ends(way)
    make_file(source / "x.bin", bytes(30 * MIB))
    seen = []

    def change(position):
        seen.append(position)
        if position == 5 * MIB:
            os.utime(source / "x.bin")

    with pytest.raises(TransferError) as caught:
        copy("x.bin", hook=change)
    assert caught.value.id == "changed"
    assert seen[-1] == 5 * MIB
    assert caught.value.hints == ("copy it again when nothing writes to it; it begins anew then",)
    carrier.last.end()
    assert copy("x.bin").bytes == 30 * MIB


@BOTH
def test_a_sparse_file_arrives_sparse(ends, way):
    source, target, copy = ends(way)
    make_file(source / "x.bin", b"begin")
    os.truncate(source / "x.bin", 64 * MIB)
    copy("x.bin")
    status = (target / "x.bin").stat()
    assert (status.st_size, status.st_blocks * 512 < 4 * MIB) == (64 * MIB, True)


@BOTH
def test_what_does_not_exist_is_told(ends, way):
    _, _, copy = ends(way)
    with pytest.raises(TransferError, match="there is no file or folder") as caught:
        copy("nothing")
    assert caught.value.id == "path"


def test_when_the_server_was_started_again_it_goes_on_by_itself(ends, carrier, there, here):
    make_file(here / "x.bin", os.urandom(4 * MIB))
    make_file(there / "y.bin", os.urandom(4 * MIB))
    for work, path in ((upload, "x.bin"), (download, "y.bin")):
        made = carrier(hook=lambda position: forget(position))

        def forget(position, made=made):
            if position == MIB:
                made.hook = None
                made.end()
                raise Forgotten("unknown")

        copied = work(made, path, None, Options())
        assert copied.bytes == 3 * MIB
        assert "going on: the server was started again" in made.notes
    assert (there / "x.bin").read_bytes() == (here / "x.bin").read_bytes()
    assert (there / "y.bin").read_bytes() == (here / "y.bin").read_bytes()


def test_when_it_was_started_again_just_after_the_end_that_was_not_in_vain(carrier, here, there):
    make_file(here / "x.bin", b"abc")
    made = carrier()
    send = made.send

    def forget(source, **how):
        send(source, **how)
        raise Forgotten("unknown")

    made.send = forget
    assert upload(made, "x.bin", None, Options()).skipped == 1
    assert (there / "x.bin").read_bytes() == b"abc"


def test_a_path_may_be_a_pathlib_path(carrier, here, there):
    make_file(here / "x.bin", b"abc")
    upload(carrier(), here / "x.bin", "y", Options())
    download(carrier(), there / "y", here / "z", Options())
    assert (here / "z").read_bytes() == b"abc"


@pytest.mark.parametrize("what", ["upload", "download"])
@pytest.mark.parametrize("wrong", ["", "a\0b", None, b"x", 5, ["x", ""], [b"x"], [None], {"x": 1}.items()])
def test_what_is_no_path_is_refused_before_anything_is_asked(what, wrong):
    for path, to in [(wrong, None), *([("x", wrong)] if wrong is not None else [])]:
        is_text = isinstance(wrong, str) or wrong == ["x", ""]
        is_list = isinstance(to, list)
        with pytest.raises(TransferError if is_text and not is_list else TypeError) as caught:
            prepare(what, path, to, {})
        if is_text and not is_list:
            assert caught.value.id == "path"
        else:
            assert re.match(r"a path is a str or a pathlib\.Path, not \w+$", str(caught.value))


def test_an_option_that_there_is_not_is_named():
    with pytest.raises(TypeError, match=r"upload\(\) has no option `foo`; it has `overwrite`, .*`progress`$"):
        prepare("upload", "x", None, {"foo": 1, "overwrite": True})
    with pytest.raises(ValueError, match='"skip" or "keep"'):
        prepare("download", "x", None, {"symlinks": "follow"})


def test_what_is_prepared_is_done_when_it_is_carried(carrier, here, there):
    make_file(here / "x", b"abc")
    make_file(here / "y", b"abc")
    label, work = prepare("upload", (each for each in ["x", here / "y"]), None, {"overwrite": True})
    assert (label, work(carrier()).files) == ("2 things", 2)
    label, work = prepare("download", there / "x", "z", {})
    assert (label, work(carrier()).files) == (os.fspath(there / "x"), 1)
    assert (here / "z").read_bytes() == b"abc"


# --- folders ---------------------------------------------------------------------------------


@BOTH
def test_a_folder_crosses(ends, carrier, way):
    source, target, copy = ends(way)
    make_tree(source / "data", TREE)
    copied = copy("data")
    assert read_tree(target / "data") == names(TREE)
    assert (copied.path, copied.files, copied.skipped, copied.problems) == (
        os.fspath(target / "data"),
        6,
        0,
        [],
    )
    assert copied.bytes == sum(map(len, [b"small", b"deep" * 1000, b"1,2\n", b"latin", b"\0\1"]))
    assert carrier.last.totals == [(copied.bytes + 6, 6)]
    assert carrier.last.files_done == 6
    copied = copy("data")
    assert (copied.files, copied.skipped) == (0, 6)


@BOTH
@pytest.mark.parametrize(
    ("to", "where"), [("new", "new"), ("folder", "folder/data"), ("new/", "new/data"), (".", "data")]
)
def test_a_folder_goes_where_it_is_wanted(ends, way, to, where):
    source, target, copy = ends(way)
    (target / "folder").mkdir()
    make_tree(source / "data", {"x": b"1"})
    assert copy("data", to).path == os.fspath(target / where)
    assert read_tree(target / where) == {b"x": b"1"}


@BOTH
@pytest.mark.parametrize("percent", [1, 50, 99])
def test_a_folder_that_was_cut_goes_on_with_what_is_missing(ends, carrier, way, percent, monkeypatch):
    monkeypatch.setattr(_plans, "LARGE", 100_000)
    monkeypatch.setattr(_trees, "LARGE", 100_000)
    source, target, copy = ends(way)
    tree = {f"f{n}": os.urandom(1000) for n in range(100)} | {"z": os.urandom(300_000)}
    make_tree(source / "data", tree)
    with pytest.raises(LinkLostError) as caught:
        copy("data", cut=400_000 * percent // 100, chunk=10_000)
    assert "copy it again, and it goes on" in str(caught.value)
    carrier.last.end()
    copied = copy("data", chunk=10_000)
    assert copied.files + copied.skipped == 101
    assert copied.bytes <= 400_000 * (100 - percent) // 100 + 1000
    assert read_tree(target / "data") == names(tree)
    assert not [name for name in os.listdir(target / "data") if name.startswith(".")]


@BOTH
def test_problems_of_both_ends_are_told_and_end_nothing(ends, way):
    source, target, copy = ends(way)
    make_tree(source / "data", {"x": b"new", "y": b"1", "out": "/etc/passwd", "link": "y"})
    os.mkfifo(source / "data" / "pipe")
    make_tree(target / "data", {"x": b"own!"})
    copied = copy("data", symlinks="keep")
    assert [problem.partition(":")[0] for problem in copied.problems] == ["`out`", "`pipe`", "`x`"]
    assert read_tree(target / "data") == {b"x": b"own!", b"y": b"1", b"link": "y"}
    assert str(copied).endswith("data: 1 file, 1 byte; 3 problems")
    copied = copy("data", "other")
    assert copied.links == 2
    assert "2 symbolic links left out" in str(copied)


@BOTH
def test_what_matches_a_pattern_crosses_without_a_folder_of_its_own(ends, way):
    source, target, copy = ends(way)
    make_tree(source / "data", {"a.csv": b"1", "b.csv": b"2", "c.txt": b"3", "sub": {"d.csv": b"4"}})
    copied = copy("data/*.csv")
    assert (copied.files, copied.path) == (2, os.fspath(target))
    assert read_tree(target) == {b"a.csv": b"1", b"b.csv": b"2"}
    assert copy("data/**/*.csv", "all").files == 3
    assert read_tree(target / "all") == {b"a.csv": b"1", b"b.csv": b"2", b"sub": {b"d.csv": b"4"}}
    assert (target / "all").stat().st_mode & 0o700 == 0o700


@BOTH
def test_a_pattern_of_which_nothing_crosses_is_an_error_and_makes_no_folder(ends, way):
    source, target, copy = ends(way)
    make_tree(source, {"data": {"a.csv": "/etc/passwd", "b.csv": "c", "c": b"1", "in": {"d.csv": "/"}}})
    with pytest.raises(TransferError, match=r"nothing of `data/\*.csv` crosses") as caught:
        copy("data/*.csv", "tables/")
    assert caught.value.id == "path"
    assert caught.value.cause == "2 symbolic links were left out"
    assert 'symlinks="keep"' in caught.value.hints[0]
    with pytest.raises(TransferError) as caught:
        copy("data/a*", "tables/", symlinks="keep")
    assert caught.value.cause == "`a.csv`: the link leads out of the folder, to `/etc/passwd`"
    with pytest.raises(TransferError, match="1 symbolic link was left out"):
        copy("data/*/*.csv", "tables/")
    if way == "down":
        with pytest.raises(TransferError, match="2 symbolic links"):
            copy("data/*.csv", "tables/", root=source)
    assert os.listdir(target) == []
    assert copy(["data/*.csv", "data/c"], "tables/").links == 2


@BOTH
def test_several_things_cross_together(ends, way):
    source, target, copy = ends(way)
    make_tree(source, {"x": b"1", "data": {"y": b"2"}, "z.csv": b"3"})
    (target / "into").mkdir()
    copied = copy(["x", "data", "*.csv"], "into")
    assert copied.files == 3
    assert read_tree(target / "into") == {b"x": b"1", b"data": {b"y": b"2"}, b"z.csv": b"3"}
    assert label_of(["x", "data"]) == "2 things"
    with pytest.raises(ValueError, match="nothing to copy"):
        copy([])


@BOTH
def test_a_folder_where_a_file_is_in_the_way_is_told(ends, way):
    source, target, copy = ends(way)
    make_tree(source / "data", {"x": b"1"})
    make_file(target / "data", b"a file")
    with pytest.raises(TransferError, match="exists, and is no folder"):
        copy("data", overwrite=True)


# --- a folder under a new name that is not complete yet --------------------------------------

MARK = ".remoter-unfinished"
BIG = {f"f{n}": bytes([n]) * 1000 for n in range(20)}


def cut_off(ends, carrier, way, to="d3", **how):
    """A copy of `big` to a new name, of which only the beginning has come."""
    source, target, copy = ends(way)
    make_tree(source / "x" / "big", BIG)
    with pytest.raises(LinkLostError):
        copy("x/big", to, cut=10_000, chunk=1000, **how)
    carrier.last.end()
    return source, target, copy


@BOTH
def test_a_folder_that_was_cut_under_a_new_name_goes_on_there(ends, carrier, way):
    source, target, copy = cut_off(ends, carrier, way)
    assert stat.S_IMODE((target / "d3" / MARK).stat().st_mode) == 0o600
    copied = copy("x/big", "d3")
    assert (copied.path, copied.files + copied.skipped) == (os.fspath(target / "d3"), 20)
    assert copied.skipped > 0
    assert read_tree(target / "d3") == names(BIG)
    assert (target / "d3").stat().st_mtime_ns == (source / "x" / "big").stat().st_mtime_ns
    assert copy("x/big", "d3").path == os.fspath(target / "d3" / "big"), "now it is a folder like any other"
    assert read_tree(target) == {b"d3": names(BIG) | {b"big": names(BIG)}}


@BOTH
def test_a_part_of_a_large_file_goes_on_under_a_new_name(ends, carrier, way, monkeypatch):
    monkeypatch.setattr(_plans, "LARGE", 100)
    monkeypatch.setattr(_trees, "LARGE", 100)
    _, target, copy = cut_off(ends, carrier, way)
    assert copy("x/big", "d3").bytes <= 10_000 + 20
    assert sorted(os.listdir(target / "d3")) == sorted(BIG)


@BOTH
def test_when_the_server_was_started_again_a_new_name_still_means_what_it_did(ends, carrier, way):
    for resume in (True, False):
        source, target, copy = ends(way)
        make_tree(source / "big", BIG)

        def forget(position):
            if position == 10_000 and not any("started again" in note for note in carrier.last.notes):
                carrier.last.end()
                raise Forgotten("unknown")

        assert copy("big", f"new-{resume}", hook=forget, chunk=1000, resume=resume).problems == []
        assert read_tree(target / f"new-{resume}") == names(BIG)
        carrier.last.end()
        for name in os.listdir(source / "big"):
            (source / "big" / name).unlink()
        (source / "big").rmdir()


@BOTH
def test_with_a_slash_the_new_name_is_a_folder_like_any_other(ends, carrier, way):
    _, target, copy = cut_off(ends, carrier, way)
    assert copy("x/big", "d3/").path == os.fspath(target / "d3" / "big")
    assert MARK in os.listdir(target / "d3"), "what is unfinished still is"
    assert read_tree(target / "d3" / "big") == names(BIG)


@BOTH
@pytest.mark.parametrize("other", ["y/big", "x/small", "x/new big"])
def test_a_folder_from_elsewhere_does_not_go_where_another_is_unfinished(ends, carrier, way, other):
    source, target, copy = cut_off(ends, carrier, way)
    if other == "x/new big":  # another folder has the name and the place now
        (source / "x" / "big").rename(source / "x" / "old")
        other = "x/big"
    make_tree(source / other, {"f0": b"another"})
    copied = copy(other, "d3")
    assert copied.path == os.fspath(target / "d3" / os.path.basename(other))
    assert MARK in os.listdir(target / "d3")


@BOTH
@pytest.mark.parametrize("how", ["a link", "a hard link", "nonsense", "a folder", "too long"])
def test_a_mark_that_is_none_is_not_believed(ends, carrier, way, how):
    _, target, copy = cut_off(ends, carrier, way)
    mark, aside = target / "d3" / MARK, target / "aside"
    mark.rename(aside)
    if how == "a link":
        mark.symlink_to(aside)
    elif how == "a hard link":
        os.link(aside, mark)
    elif how == "a folder":
        mark.mkdir()
    else:
        mark.write_bytes(b"{" if how == "nonsense" else b" " * 100_000 + aside.read_bytes())
    assert copy("x/big", "d3").path == os.fspath(target / "d3" / "big")


@BOTH
def test_the_mark_itself_is_never_copied(ends, carrier, way):
    _, there, _ = cut_off(ends, carrier, way)
    back = "down" if way == "up" else "up"
    make_tree(there / "d3" / "inner", {MARK: b"a mark", "y": b"1"})
    make_tree(there / "d3", {".hidden": b"2"})
    source, target, copy = ends(back)
    assert source == there
    copy("d3", "copied", symlinks="keep")
    copy(["d3/*", "d3/.*"], "matched")
    for name in ("copied", "matched"):
        assert (target / name / "inner" / "y").exists()
        assert (target / name / ".hidden").exists()
        assert list((target / name).rglob(MARK)) == []


@BOTH
def test_a_sender_plants_no_mark(ends, way, monkeypatch):
    source, target, copy = ends(way)
    make_tree(source / "data", {"x": b"1", "inner": {MARK: b"planted", "y": b"2"}})
    monkeypatch.setattr(_manifest, "MARK", b"none")
    copied = copy("data")
    assert copied.problems == [f"`inner/{MARK}`: {_plans.A_MARK}"]
    assert read_tree(target / "data") == {b"x": b"1", b"inner": {b"y": b"2"}}


def test_a_session_that_lies_about_what_it_sends_gets_no_other_folder(ends, carrier, there, here):
    cut_off(ends, carrier, "down")
    origin = json.loads((here / "d3" / MARK).read_bytes())["origin"]
    make_tree(there / "evil", {"f99": b"evil"})
    copied = download(carrier(tamper=lying("read", origin=origin, name=b"big")), "evil", "d3", Options())
    assert copied.path == os.fspath(here / "d3" / "evil")
    with pytest.raises(TransferError) as caught:
        download(carrier(tamper=lying("read", origin="x" * 1000)), "evil", "new", Options())
    assert caught.value.id == "corrupt"


@BOTH
def test_an_end_that_has_no_word_for_its_folder_is_served_without_a_mark(ends, carrier, way, monkeypatch):
    monkeypatch.setattr(_manifest, "origin_of", lambda *arguments: "")
    _, target, copy = cut_off(ends, carrier, way)
    assert MARK not in os.listdir(target / "d3")
    assert copy("x/big", "d3").path == os.fspath(target / "d3" / "big")


# --- where folders cannot be opened ----------------------------------------------------------


@pytest.fixture
def by_paths(monkeypatch):
    """As on Windows, which has no functions that take a folder's descriptor."""
    for module in (_files, _folders, _manifest, _paths, _plans, _trees):
        if hasattr(module, "WINDOWS"):
            monkeypatch.setattr(module, "WINDOWS", True)


@BOTH
def test_files_and_folders_cross_by_paths_too(ends, carrier, by_paths, way, monkeypatch):
    monkeypatch.setattr(_plans, "LARGE", 1000)
    monkeypatch.setattr(_trees, "LARGE", 1000)
    source, target, copy = ends(way)
    make_file(source / "x.bin", os.urandom(3 * MIB))
    with pytest.raises(LinkLostError):
        copy("x.bin", cut=MIB)
    carrier.last.end()
    assert copy("x.bin").bytes == 2 * MIB
    assert (target / "x.bin").read_bytes() == (source / "x.bin").read_bytes()
    assert (target / "x.bin").stat().st_mtime_ns == NOON
    tree = {"x": b"1", "large": bytes(5000), "folder": {"y": b"2", "nothing": {}}, "link": "folder/y"}
    make_tree(source / "data", tree)
    with pytest.raises(LinkLostError):
        copy("data", cut=3000, chunk=100)
    carrier.last.end()
    assert copy("data", symlinks="keep").problems == []
    assert read_tree(target / "data") == names(tree)
    assert (target / "data" / "folder").stat().st_mtime_ns == (source / "data" / "folder").stat().st_mtime_ns
    (target / "data" / "folder" / "y").unlink()
    (target / "data" / "folder").rename(target / "moved")
    (target / "data" / "folder").symlink_to(target / "moved")
    assert set(copy("data").problems) == {
        f"`{name}`: {_plans.IN_THE_WAY}" for name in ("folder", "folder/nothing")
    }
    assert sorted(os.listdir(target / "moved")) == ["nothing"]
    with pytest.raises(TransferError, match="exists"):
        copy("x.bin")
    assert not [name for name in os.listdir(target) if name.startswith(".")]


# --- streams ---------------------------------------------------------------------------------


def test_a_pipe_is_uploaded(carrier, there, here):
    reading, writing = os.pipe()
    content = os.urandom(2 * MIB)

    def fill():
        with os.fdopen(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=fill)
    thread.start()
    with os.fdopen(reading, "rb") as file:
        copied = upload_stream(carrier(), file, "x.bin", Options())
    thread.join()
    assert (copied.files, copied.bytes) == (1, 2 * MIB)
    assert (there / "x.bin").read_bytes() == content


def test_an_open_file_is_uploaded_from_where_it_is(carrier, there, here):
    make_file(here / "x", b"0123456789")
    for start in (0, 4):
        with (here / "x").open("rb") as file:
            file.seek(start)
            upload_stream(carrier(), file, "y", Options(overwrite=True))
        assert (there / "y").read_bytes() == b"0123456789"[start:]
    upload_stream(carrier(), io.BytesIO(b"memory"), "z", Options())
    assert (there / "z").read_bytes() == b"memory"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_comes_from_a_stream_has_the_mode_of_a_new_file(carrier, there, here, mask):
    make_file(here / "x", b"1").chmod(0o700)
    old = os.umask(mask)
    try:
        upload_stream(carrier(), io.BytesIO(b"memory"), "memory", Options())
        with (here / "x").open("rb") as file:
            upload_stream(carrier(), file, "file", Options())
    finally:
        os.umask(old)
    for name in ("memory", "file"):
        assert stat.S_IMODE((there / name).stat().st_mode) == 0o666 & ~mask
    assert sorted(os.listdir(there)) == ["file", "memory"]


def test_while_a_stream_is_read_that_is_said(carrier, there, here):
    upload_stream(made := carrier(), io.BytesIO(b"memory"), "x", Options())
    assert made.notes[:2] == ["reading standard input", ""]


def test_a_file_is_downloaded_to_a_stream(carrier, there, here):
    content = os.urandom(2 * MIB)
    make_file(there / "x", content)
    stream = io.BytesIO()
    copied = download_stream(carrier(), "x", stream, Options())
    assert stream.getvalue() == content
    assert copied.bytes == 2 * MIB
    (there / "folder").mkdir()
    with pytest.raises(TransferError, match="is not one file") as caught:
        download_stream(carrier(), "folder", stream, Options())
    assert caught.value.id == "kind"


def test_a_stream_goes_on_when_the_server_was_started_again_unless_the_file_changed(carrier, there, here):
    content = os.urandom(3 * MIB)
    for changes in (False, True):
        make_file(there / "x", content)
        made = carrier()

        def forget(position, made=made, changes=changes):
            made.hook = None
            if changes:
                os.utime(there / "x")
            raise Forgotten("unknown")

        made.hook = forget
        stream = io.BytesIO()
        with pytest.raises(TransferError, match="changed") if changes else contextlib.nullcontext():
            download_stream(made, "x", stream, Options())
        assert stream.getvalue() == (content[:MIB] if changes else content)


# --- a session that lies ---------------------------------------------------------------------


def lying(what, **lies):
    """A session that says something else in its answers to that step."""
    return lambda step, reply: {**reply, **lies} if step == what else reply


@pytest.mark.parametrize(
    "lies",
    [
        {"size": -1},
        {"size": 1 << 63},
        {"size": "big"},
        {"mtime_ns": None},
        {"kind": "device"},
        {"name": 5},
        {"name": "eA=="},
    ],
)
def test_an_offer_that_makes_no_sense_is_an_error(carrier, there, here, lies):
    make_file(there / "x", b"abc")
    with pytest.raises(TransferError) as caught:
        download(carrier(tamper=lying("read", **lies)), "x", None, Options())
    assert caught.value.id == "corrupt"
    assert os.listdir(here) == []


@pytest.mark.parametrize("name", [b".bashrc", b"../x", b"/etc/x", b"y"])
def test_a_file_is_called_as_it_was_asked_for_whatever_the_session_says(carrier, there, here, name):
    make_file(there / "x", b"abc")
    copied = download(carrier(tamper=lying("read", name=name)), "x", None, Options())
    assert copied.path == os.fspath(here / "x")
    assert os.listdir(here) == ["x"]


@pytest.mark.parametrize("name", [b"../x", b"a/b", b"..", b".ssh", b"a\0b"])
def test_where_the_session_has_to_name_it_it_names_no_path_and_nothing_hidden(carrier, there, here, name):
    make_file(there / "x", b"abc")
    for to in (None, "."):
        with pytest.raises(TransferError) as caught:
            download(carrier(tamper=lying("read", name=name)), ".", to, Options())
        assert caught.value.id == "path"
        carrier.last.end()
    assert os.listdir(here) == []
    if name == b".ssh":
        download(carrier(tamper=lying("read", name=name)), ".", "named", Options())
        assert os.listdir(here) == ["named"]


def test_several_things_instead_of_one_are_refused(carrier, there, here):
    make_tree(there / "data", {".bashrc": b"evil"})
    with pytest.raises(TransferError, match="something else than was asked for"):
        download(carrier(tamper=lying("read", name=b"")), "data", None, Options())
    with pytest.raises(TransferError, match="something else than was asked for"):
        download(carrier(tamper=lying("read", name=b"data")), ["data", "data/.bashrc"], None, Options())
    assert os.listdir(here) == []


def test_what_nobody_asked_for_is_not_written(there, here, tmp_path):
    """The session answers a pattern with files of its own choice."""
    make_tree(there / "evil", {".bashrc": b"evil", "x.csv": b"good"})

    class Evil(FakeCarrier):
        def step(self, what, data, **how):
            if what == "read":
                data = {**data, "path": [b"evil/.b*", b"evil/*.csv"]}
            return super().step(what, data, **how)

    with pytest.raises(TransferError, match=r"the session sends `.bashrc`, which nobody asked for"):
        download(Evil(there), "evil/*.csv", None, Options())
    assert os.listdir(here) == []


def test_what_the_session_says_of_problems_cannot_command_the_terminal(carrier, there, here, monkeypatch):
    make_tree(there / "data", {"x": b"1"})
    manifest_of = _manifest.Survey.manifest

    def lie(survey, root=None):
        manifest = manifest_of(survey, root)
        manifest.problems = ["\x1b]0;owned\x07" + "x" * 100_000]
        return manifest

    monkeypatch.setattr(_manifest.Survey, "manifest", lie)
    (problem,) = download(carrier(), "data", None, Options()).problems
    assert problem.isprintable()
    assert len(problem) < 1100


def test_a_manifest_that_would_fill_the_memory_is_refused(carrier, there, here):
    make_tree(there / "data", {"x": b"1"})
    with pytest.raises(TransferError, match="too many files"):
        download(carrier(tamper=lying("read", manifest=1 << 45)), "data", None, Options())


def test_a_digest_that_is_a_lie_only_costs_time(carrier, there, here):
    make_file(there / "x", b"abc" * MIB)
    with pytest.raises(LinkLostError):
        download(carrier(cut=MIB), "x", None, Options())
    carrier.last.end()
    download(carrier(tamper=lying("select", digest=b"wrong")), "x", None, Options())
    assert (here / "x").read_bytes() == b"abc" * MIB


# --- what is returned ------------------------------------------------------------------------


def test_what_was_copied_can_be_read_by_people():
    assert str(Copied("/x/y.csv", files=1, bytes=1)) == "/x/y.csv: 1 file, 1 byte"
    many = Copied("/x", files=1234, bytes=12_400_000, skipped=2, problems=["one"], links=1)
    assert str(many) == "/x: 1,234 files, 12.4 MB; 2 skipped; 1 symbolic link left out; 1 problem"


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match='"skip" or "keep"'):
        Options(symlinks="follow")


def test_a_copy_needs_no_numpy_and_no_server():
    script = "import sys, remoter._copy; print([n for n in ('numpy', 'remoter._server', 'remoter._freight') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=15, check=True
    )
    assert done.stdout == "[]\n"
