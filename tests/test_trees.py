"""Folders: what is listed, what is wanted, what arrives; and that no path leads anywhere else."""

import contextlib
import dataclasses
import errno
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import msgspec
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from remoter import _manifest, _paths, _plans, _trees
from remoter._errors import TransferError
from remoter._folders import Folder
from remoter._manifest import Entry, Manifest, Problems, check_asked, decode_manifest, encode_manifest, find
from remoter._paths import check_relative, objection, stays_inside
from remoter._plans import EXISTS, IN_THE_WAY, Selection, confirm, make_plan, open_target
from remoter._steps import Offset
from remoter._trees import TreeSink, TreeSource

from .carrying import move
from .test_files import run_where

MIB = 1024 * 1024
NOON = 1_700_000_000_123_456_789


@pytest.fixture
def tmp_path(home):
    path = home / "work"
    path.mkdir()
    return path


@pytest.fixture
def small_is_large(monkeypatch):
    """Files above 10 bytes are resumed."""
    monkeypatch.setattr(_plans, "LARGE", 10)
    monkeypatch.setattr(_trees, "LARGE", 10)


def make_tree(root, tree):
    """Make files (bytes), folders (dict) and links (str)."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = os.path.join(root, os.fsdecode(name))
        if isinstance(content, dict):
            make_tree(Path(path), content)
        elif isinstance(content, str):
            os.symlink(content, path)
        else:
            Path(path).write_bytes(content)
            os.utime(path, ns=(NOON, NOON))
    os.utime(root, ns=(NOON - 10**9, NOON - 10**9))
    return root


def read_tree(root):
    """As `make_tree` takes it, without parts."""
    tree = {}
    for name in os.listdir(os.fsencode(root)):
        if name.endswith((b".part", b".part.json")):
            continue
        path = os.path.join(os.fsencode(root), name)
        if os.path.islink(path):
            tree[name] = os.fsdecode(os.readlink(path))
        elif os.path.isdir(path):
            tree[name] = read_tree(path)
        else:
            tree[name] = Path(os.fsdecode(path)).read_bytes()
    return tree


def names(tree):
    """With names as bytes."""
    return {
        name if isinstance(name, bytes) else os.fsencode(name): names(content)
        if isinstance(content, dict)
        else content
        for name, content in tree.items()
    }


@dataclasses.dataclass
class Outcome:
    files: int
    skipped: int
    problems: list
    moved: int


def copy_tree(source, target, *, symlinks="skip", cut=None, hook=None, chunk=MIB, change=None, **how):
    """Copy a folder as the two ends do."""
    how = {"overwrite": False, "skip_same": True, "resume": True, **how}
    tree = find([os.fspath(source)], "/", symlinks=symlinks)
    manifest = decode_manifest(encode_manifest(tree.manifest))
    folder, name = os.path.split(os.path.realpath(target))
    there = open_target(folder, name, make=False)
    with there or contextlib.nullcontext():
        plan = make_plan(there, os.fspath(target), manifest, **how)
    offsets = confirm(tree, plan.offsets)
    if change is not None:
        change()
    source_end = TreeSource(tree, Selection(tree.manifest, plan.wanted, offsets))
    sink = TreeSink(
        open_target(folder, name, make=True),
        Selection(manifest, plan.wanted, offsets),
        overwrite=how["overwrite"],
        resume=how["resume"],
        keeps_links=symlinks == "keep",
    )
    with contextlib.closing(source_end), contextlib.closing(sink):
        done = move(source_end, sink, cut=cut, hook=hook, chunk=chunk)
    problems = Problems()
    for lines in (manifest.problems, plan.problems, done["problems"]):
        problems.extend(lines)
    return Outcome(done["files"], plan.skipped, problems.lines(), sink.size)


TREE = {
    "empty": b"",
    "small": b"small",
    "folder": {"inner": {"deep": b"deep" * 1000}, "nothing": {}, "x.csv": b"1,2\n"},
    "hollow": {},
    b"caf\xe9": {b"\xff\xfe": b"latin"},
    "odd \n name": b"\0\1",
}


# --- what arrives ----------------------------------------------------------------------------


def test_a_folder_arrives_as_it_is(tmp_path):
    source = make_tree(tmp_path / "a", TREE)
    (source / "small").chmod(0o750)
    (source / "folder" / "nothing").chmod(0o500)
    outcome = copy_tree(source, tmp_path / "b")
    assert (outcome.files, outcome.skipped, outcome.problems) == (6, 0, [])
    assert read_tree(tmp_path / "b") == names(TREE)
    for path in [source, *source.rglob("*")]:
        one, other = path.stat(), (tmp_path / "b" / path.relative_to(source)).stat()
        assert (one.st_mode, one.st_mtime_ns) == (other.st_mode, other.st_mtime_ns), path


def test_an_empty_folder_arrives(tmp_path):
    copy_tree(make_tree(tmp_path / "a", {}), tmp_path / "b")
    assert read_tree(tmp_path / "b") == {}


def test_no_special_permissions_cross(tmp_path):
    source = make_tree(tmp_path / "a", {"x": b"x", "folder": {}})
    (source / "x").chmod(0o6755)
    (source / "folder").chmod(0o3777)
    copy_tree(source, tmp_path / "b")
    assert stat.S_IMODE((tmp_path / "b" / "x").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "b" / "folder").stat().st_mode) == 0o777


file_names = st.binary(min_size=1, max_size=4).filter(
    lambda name: b"/" not in name and b"\0" not in name and name.strip(b".")
)
trees = st.recursive(
    st.dictionaries(file_names, st.binary(max_size=40), max_size=4),
    lambda inner: st.dictionaries(file_names, st.one_of(st.binary(max_size=40), inner), max_size=4),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(tree=trees, chunk=st.integers(1, 50), cuts=st.lists(st.integers(0, 150), max_size=3))
def test_wherever_it_is_cut_the_folder_comes_whole_in_the_end(tree, chunk, cuts):
    directory = Path(tempfile.mkdtemp())
    source = make_tree(directory / "a", tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plans, "LARGE", 10)
        patch.setattr(_trees, "LARGE", 10)
        for cut in [*cuts, None]:
            with contextlib.suppress(Exception):
                outcome = copy_tree(source, directory / "b", cut=cut, chunk=chunk)
    assert outcome.problems == []
    assert read_tree(directory / "b") == tree
    shutil.rmtree(directory)


@pytest.mark.parametrize("percent", [1, 50, 99])
def test_what_was_cut_goes_on_with_what_is_missing(tmp_path, percent):
    tree = {f"f{n}": os.urandom(1000) for n in range(50)} | {"z": os.urandom(12 * MIB)}
    source = make_tree(tmp_path / "a", tree)
    whole = sum(map(len, tree.values()))
    with pytest.raises(Exception, match="the connection is gone"):
        copy_tree(source, tmp_path / "b", cut=whole * percent // 100)
    assert "z" not in os.listdir(tmp_path / "b")
    outcome = copy_tree(source, tmp_path / "b")
    assert read_tree(tmp_path / "b") == names(tree)
    assert outcome.moved <= whole * (100 - percent) // 100 + 2000
    assert outcome.files + outcome.skipped == 51


def test_what_is_the_same_is_skipped_and_what_differs_is_told(tmp_path):
    source = make_tree(tmp_path / "a", {"same": b"same", "size": b"longer", "time": b"time", "new": b"new"})
    make_tree(tmp_path / "b", {"same": b"same", "size": b"long", "time": b"time", "own": b"own"})
    os.utime(tmp_path / "b" / "time")
    outcome = copy_tree(source, tmp_path / "b")
    assert (outcome.files, outcome.skipped) == (1, 1)
    assert outcome.problems == [f"`size`: {EXISTS}", f"`time`: {EXISTS}"]
    outcome = copy_tree(source, tmp_path / "b", overwrite=True)
    assert (outcome.files, outcome.skipped, outcome.problems) == (2, 2, [])
    assert read_tree(tmp_path / "b") == {**read_tree(source), b"own": b"own"}
    outcome = copy_tree(source, tmp_path / "b", overwrite=True, skip_same=False)
    assert (outcome.files, outcome.skipped) == (4, 0)


def test_a_part_that_is_not_the_beginning_of_its_file_starts_over(tmp_path, small_is_large):
    source = make_tree(tmp_path / "a", {"x": b"0123456789abcdef"})
    with pytest.raises(Exception, match="gone"):
        copy_tree(source, tmp_path / "b", cut=5)
    part = tmp_path / "b" / ".x.part"
    assert part.read_bytes() == b"01234"
    part.write_bytes(b"01z34")
    assert copy_tree(source, tmp_path / "b").moved == 17
    assert read_tree(tmp_path / "b") == {b"x": b"0123456789abcdef"}


def test_large_files_come_with_their_holes(tmp_path):
    source = make_tree(tmp_path / "a", {"x": b"begin"})
    os.truncate(source / "x", 40 * MIB)
    copy_tree(source, tmp_path / "b")
    status = (tmp_path / "b" / "x").stat()
    assert status.st_size == 40 * MIB
    assert status.st_blocks * 512 < 5 * MIB


# --- what does not ---------------------------------------------------------------------------


def test_links_are_counted_or_kept_if_they_stay_inside(tmp_path):
    tree = {
        "file": b"x",
        "ok": "file",
        "folder": {
            "up": "../file",
            "dot": "./../file",
            "far": "../../work/a/file",
            "self": "..",
            "odd": "x/../../file",
        },
        "out": "../secret",
        "absolute": "/etc/passwd",
        "dangling": "nowhere/yet/",
    }
    source = make_tree(tmp_path / "a", tree)
    assert find([os.fspath(source)], "/").manifest.links == 9
    outcome = copy_tree(source, tmp_path / "b")
    assert outcome.problems == []
    assert read_tree(tmp_path / "b") == {b"file": b"x", b"folder": {}}
    outcome = copy_tree(source, tmp_path / "c", symlinks="keep")
    kept = {"file": b"x", "ok": "file", "folder": {"up": "../file", "self": ".."}, "dangling": "nowhere/yet/"}
    assert read_tree(tmp_path / "c") == names(kept)
    assert len(outcome.problems) == 5
    assert "`absolute`: the link leads out of the folder, to `/etc/passwd`" in outcome.problems
    assert copy_tree(source, tmp_path / "c", symlinks="keep").problems == outcome.problems, (
        "a second time too"
    )


def test_special_files_are_told(tmp_path):
    source = make_tree(tmp_path / "a", {"x": b"x"})
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(source / "socket"))
        outcome = copy_tree(source, tmp_path / "b")
    assert outcome.files == 1
    assert outcome.problems == [
        "`pipe`: it is a named pipe, and only files and folders cross",
        "`socket`: it is a socket, and only files and folders cross",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("vanishes", "it vanished before it was copied"),
        ("grows", "it changed while it was copied"),
        ("shrinks", "it changed while it was copied"),
        ("is touched", "it changed while it was copied"),
        ("is a link now", "it cannot be read"),
        ("is a pipe now", "it cannot be read"),
        ("is in a folder that is a link now", "it cannot be read"),
    ],
)
@pytest.mark.parametrize("size", [8, 20])
def test_a_file_that_is_not_what_it_was_does_not_arrive_and_ends_nothing(
    tmp_path, small_is_large, change, words, size
):
    content = bytes(range(65, 65 + size))
    source = make_tree(tmp_path / "a", {"a": b"first", "m": {"x": content}, "z": {"z": b"last"}})
    path = source / "m" / "x"

    def change_it():
        if change == "grows":
            path.write_bytes(content + b"more")
        elif change == "shrinks":
            path.write_bytes(content[:-1])
        elif change == "is touched":
            os.utime(path)
        elif change == "is in a folder that is a link now":
            (source / "m").rename(tmp_path / "m")
            (source / "m").symlink_to(tmp_path / "m")
        else:
            path.rename(tmp_path / "elsewhere")
            if change == "is a link now":
                path.symlink_to(tmp_path / "elsewhere")
            elif change == "is a pipe now":
                os.mkfifo(path)

    outcome = copy_tree(source, tmp_path / "b", change=change_it, chunk=7)
    assert outcome.problems == [f"`m/x`: {words}"]
    assert read_tree(tmp_path / "b") == {b"a": b"first", b"m": {}, b"z": {b"z": b"last"}}


def test_a_file_that_changes_while_it_crosses_does_not_arrive(tmp_path):
    source = make_tree(tmp_path / "a", {"a": b"first", "m": os.urandom(12 * MIB), "z": b"last"})

    def change(position):
        if position == 5 * MIB:
            with (source / "m").open("r+b") as file:
                file.write(b"other")

    outcome = copy_tree(source, tmp_path / "b", hook=change)
    assert outcome.problems == ["`m`: it changed while it was copied"]
    assert read_tree(tmp_path / "b") == {b"a": b"first", b"z": b"last"}


def test_of_a_file_that_has_changed_nothing_more_is_read(tmp_path, monkeypatch):
    source = make_tree(tmp_path / "a", {"m": os.urandom(12 * MIB), "z": b"last"})
    read_at, seen = _trees.read_at, []
    monkeypatch.setattr(
        _trees, "read_at", lambda *arguments: seen.append(arguments[2]) or read_at(*arguments)
    )

    def change(position):
        if position == 5 * MIB:
            os.utime(source / "m")

    outcome = copy_tree(source, tmp_path / "b", hook=change)
    assert outcome.problems == ["`m`: it changed while it was copied"]
    assert max(seen) == 5 * MIB
    assert read_tree(tmp_path / "b") == {b"z": b"last"}


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    source = make_tree(tmp_path / "a", {"closed": {"x": b"x"}, "open": {"y": b"y"}})
    contents = Folder.contents

    def fail(folder):
        if folder.path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return contents(folder)

    monkeypatch.setattr(Folder, "contents", fail)
    outcome = copy_tree(source, tmp_path / "b")
    assert outcome.problems == ["`closed`: permission denied"]
    assert read_tree(tmp_path / "b") == {b"closed": {}, b"open": {b"y": b"y"}}


def test_any_stretch_of_the_stream_can_be_read_again(tmp_path):
    source = make_tree(tmp_path / "a", {f"f{n}": bytes([n]) * (n * 7) for n in range(30)})
    tree = find([os.fspath(source)], "/")
    count = len(tree.manifest.entries)
    selection = Selection(tree.manifest, b"\xff" * ((count + 7) // 8), {})
    with contextlib.closing(TreeSource(tree, selection)) as stream:
        whole = bytearray(stream.size)
        stream.read(0, memoryview(whole))
        for start, end in [
            (5, 9),
            (0, 1),
            (500, 1500),
            (3, 4),
            (stream.size - 1, stream.size),
            (100, stream.size),
        ]:
            part = bytearray(end - start)
            stream.read(start, memoryview(part))
            assert part == whole[start:end]


# --- what is in the way ----------------------------------------------------------------------


def test_what_is_in_the_way_is_told_and_ends_nothing(tmp_path, small_is_large):
    source = make_tree(
        tmp_path / "a",
        {
            "file": b"x",
            "folder": {"x": b"1", "large": b"0123456789ab", "inner": {"y": b"2"}},
            "linked": {"z": b"3"},
            "z": b"last",
        },
    )
    target = make_tree(tmp_path / "b", {"folder": b"a file", "file": {}})
    (tmp_path / "elsewhere").mkdir()
    (target / "linked").symlink_to(tmp_path / "elsewhere")
    outcome = copy_tree(source, target, overwrite=True)
    assert outcome.files == 1
    assert set(outcome.problems) == {
        "`file`: something that is no file is in the way",
        f"`folder`: {IN_THE_WAY}",
        f"`folder/inner`: {IN_THE_WAY}",
        f"`linked`: {IN_THE_WAY}",
    }
    assert (target / "z").read_bytes() == b"last"
    assert os.listdir(tmp_path / "elsewhere") == []
    assert (target / "folder").read_bytes() == b"a file"


def test_a_root_that_is_no_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(TransferError, match="exists, and is no folder") as caught:
            open_target(os.fspath(tmp_path), name, make=True)
        assert caught.value.id == "exists"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("size", [8, 20])
def test_a_file_that_appears_meanwhile_is_kept_unless_it_may_be_replaced(
    tmp_path, small_is_large, overwrite, size
):
    source = make_tree(tmp_path / "a", {"x": b"n" * size})

    def appear():
        make_tree(tmp_path / "b", {"x": b"somebody's"})

    outcome = copy_tree(source, tmp_path / "b", overwrite=overwrite, change=appear)
    assert (outcome.problems == []) is overwrite
    assert read_tree(tmp_path / "b") == {b"x": b"n" * size if overwrite else b"somebody's"}


@pytest.mark.parametrize("size", [8, 20])
@pytest.mark.parametrize("when", ["before", "under way"])
def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(tmp_path, small_is_large, size, when):
    source = make_tree(
        tmp_path / "a", {"f": {f"x{n}": bytes(size) for n in range(6)}, "g": {"y": bytes(size)}}
    )
    target, outside = make_tree(tmp_path / "b", {"f": {}, "g": {}}), make_tree(tmp_path / "outside", {})
    swapped = []

    def swap(position=0):
        if not swapped and (when == "before" or position > 3 * size):
            swapped.append(True)
            (target / "g").rename(tmp_path / "g")
            (target / "g").symlink_to(outside)
            (target / "f").rename(tmp_path / "f")
            (target / "f").symlink_to(outside)

    outcome = copy_tree(
        source, target, chunk=size, **({"change": swap} if when == "before" else {"hook": swap})
    )
    assert swapped
    assert os.listdir(outside) == []
    assert any(IN_THE_WAY in problem for problem in outcome.problems)


def test_a_link_that_is_planted_in_the_place_of_a_file_is_not_followed(tmp_path):
    source = make_tree(tmp_path / "a", {"x": b"new"})
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    make_tree(tmp_path / "b", {"x": os.fspath(victim)})
    assert copy_tree(source, tmp_path / "b").problems == [f"`x`: {EXISTS}"]
    assert copy_tree(source, tmp_path / "b", overwrite=True).problems == []
    assert read_tree(tmp_path / "b") == {b"x": b"new"}
    assert victim.read_bytes() == b"precious"


FULL = """
    import os, sys
    sys.path.insert(0, sys.argv[3])
    from remoter._errors import TransferError
    from tests.test_trees import Path, copy_tree, make_tree
    source, there = Path(sys.argv[1]), Path(sys.argv[2], "b")
    def attempt():
        try:
            print(copy_tree(source, there).files)
        except TransferError as error:
            print(error.id, "|", error.message, "|", error.cause, "|", *error.hints)
    attempt()
    print(os.listdir(sys.argv[2]) , os.listdir(there))
    import remoter._trees
    remoter._trees.check_room = lambda *args: None
    attempt()
    print(0 < len(os.listdir(there)) < 300, any(name.startswith(".") for name in os.listdir(there)))
"""


def test_a_disk_that_is_too_small_ends_it_at_once(tmp_path):
    source = make_tree(tmp_path / "a", {f"f{n}": bytes(8000) for n in range(300)})
    there = make_tree(tmp_path / "there", {})
    here = os.fspath(Path(__file__).parents[1])
    out = run_where(f"mount -t tmpfs -o size=1m none '{there}'", FULL, source, there, here).splitlines()
    assert out[0].startswith("no-space | there is no room for `b` in `")
    assert "2.4 MB are needed, 1.0 MB are free" in out[0]
    assert out[1] == "['b'] []"
    assert out[2].startswith("no-space | cannot write `f")
    assert "no space left on device | copy it again, and it goes on with what is missing" in out[2]
    assert out[3] == "True False"


def test_names_that_differ_only_in_case_are_told_where_they_are_the_same(tmp_path, monkeypatch):
    tree = {"README": b"1", "readme": b"2", "Src": {"x": b"3"}, "src": {"X": b"4", "y": b"5"}}
    source = make_tree(tmp_path / "a", tree)
    assert copy_tree(source, tmp_path / "b").problems == []
    assert read_tree(tmp_path / "b") == names(tree)
    monkeypatch.setattr(_plans, "is_case_insensitive", lambda path: True)
    outcome = copy_tree(source, tmp_path / "c")
    assert outcome.files == 3
    assert outcome.problems == [
        "`readme`: its name differs from `README` only in case",
        "`src/X`: its name differs from `Src/x` only in case",
    ]


def test_whether_case_counts_is_found_out_without_writing(tmp_path, monkeypatch):
    assert not _paths.is_case_insensitive(os.fspath(tmp_path))
    assert not _paths.is_case_insensitive(os.fspath(tmp_path / "not" / "there"))
    (tmp_path / "twin").mkdir()
    (tmp_path / "TWIN").symlink_to("twin")
    assert _paths.is_case_insensitive(os.fspath(tmp_path / "twin"))
    assert _paths.is_case_insensitive(os.fspath(tmp_path / "twin" / "123" / "456"))
    assert not _paths.is_case_insensitive("/")


# --- many ------------------------------------------------------------------------------------


def test_a_hundred_thousand_files_are_listed_and_planned(tmp_path):
    entries = [Entry(b"d%d/f%d" % (n // 1000, n), "file", 0o644, NOON, 10) for n in range(100_000)]
    data = encode_manifest(Manifest(entries))
    assert len(data) < 6_000_000
    manifest = decode_manifest(data)
    assert (manifest.files, manifest.size) == (100_000, 1_000_000)
    make_tree(tmp_path / "b", {"d7": {"f7001": b"0123456789"}, "d8": b"in the way"})
    with Folder.open(os.fspath(tmp_path / "b")) as there:
        plan = make_plan(
            there, os.fspath(tmp_path / "b"), manifest, overwrite=False, skip_same=True, resume=True
        )
    assert (plan.files, plan.skipped, plan.problems) == (98_999, 1, [f"`d8`: {IN_THE_WAY}"])
    assert Selection(manifest, plan.wanted, {}).size == 98_999 * 11


def test_problems_are_told_once_and_not_without_end():
    problems = Problems()
    for _ in range(2):
        for n in range(1500):
            problems.add(b"f%d" % n, "no")
    lines = problems.lines()
    assert len(lines) == 1001
    assert (lines[0], lines[999]) == ("`f0`: no", "`f999`: no")
    assert lines[-1] == "and 1,000 more"


def test_folders_too_deep_to_be_opened_are_told(tmp_path):
    deep = tmp_path / "a"
    for _ in range(110):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "x").write_bytes(b"")
    manifest = find([os.fspath(tmp_path / "a")], "/").manifest
    assert len(manifest.entries) == 101
    assert manifest.problems[0].endswith("more than 100 folders within each other")


# --- paths from the other end ----------------------------------------------------------------

ESCAPES = [
    b"",
    b"/",
    b"/etc/passwd",
    b"..",
    b"../x",
    b"a/../../x",
    b"a/..",
    b"a/../b",
    b".",
    b"./a",
    b"a/./b",
    b"a//b",
    b"//a",
    b"a/",
    b"a\0b",
    b"\0",
    b"a/b\0/c",
]


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_path_that_may_lead_out_ends_it(path, kind):
    with pytest.raises(TransferError, match="is not a path within a folder") as caught:
        decode_manifest(msgspec.msgpack.encode(Manifest([Entry(path, kind, 0o644, NOON)])))
    assert caught.value.id == "path"
    with pytest.raises(TransferError):
        check_relative(path)


parts = st.sampled_from(
    [b"", b".", b"..", b"...", b"a", b"b c", b"\xff", b"..a", b"a..", b"\0", b"~", b"C:", b"\\..\\", b"-"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(parts, max_size=6).map(b"/".join) | st.binary(max_size=12))
def test_what_is_let_through_stays_inside(path):
    try:
        decode_manifest(msgspec.msgpack.encode(Manifest([Entry(path, "file", 0o644, NOON)])))
    except TransferError:
        return
    assert os.path.normpath(b"/root/" + path) == b"/root/" + path
    assert b"\0" not in path


def test_an_escape_behind_thousands_of_good_paths_ends_it_too():
    entries = [Entry(b"a/f%d" % n, "file", 0o644, NOON) for n in range(5000)]
    for bad in (b"a/..", b"a/../x", b"/a/x"):
        with pytest.raises(TransferError):
            decode_manifest(encode_manifest(Manifest([*entries, Entry(bad, "file", 0o644, NOON)])))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_garbage_for_a_manifest_is_an_error(data):
    with contextlib.suppress(TransferError):
        decode_manifest(data)


@pytest.mark.parametrize(
    "entry",
    [[b"x", "file", 0, 0, -1], [b"x", "file", 0, 0, 1 << 63], [b"x", "device", 0, 0], ["x"], 5, [b"x"]],
)
def test_entries_that_make_no_sense_are_an_error(entry):
    with pytest.raises(TransferError) as caught:
        decode_manifest(msgspec.msgpack.encode([[entry]]))
    assert caught.value.id == "corrupt"


def test_sizes_that_add_up_to_nonsense_are_an_error():
    entries = [Entry(b"%d" % n, "file", 0, 0, 1 << 62) for n in range(4)]
    with pytest.raises(TransferError) as caught:
        decode_manifest(encode_manifest(Manifest(entries)))
    assert caught.value.id == "corrupt"


def test_a_manifest_that_is_too_long_is_refused_before_there_is_memory_for_it():
    with pytest.raises(TransferError, match="too many files") as caught:
        _manifest.check_length(1 << 40)
    assert caught.value.id == "memory"


LINK_PARTS = st.lists(st.sampled_from(["..", "..", "a", "b", "up", ".", "", "link"]), max_size=6).map(
    "/".join
)


@settings(max_examples=200, deadline=None)
@given(
    targets=st.dictionaries(st.sampled_from(["link", "a/link", "a/b/up", "a/b/link"]), LINK_PARTS, min_size=1)
)
def test_links_that_are_let_through_stay_inside_even_one_through_the_other(targets):
    root = Path(tempfile.mkdtemp()) / "root"
    (root / "a" / "b").mkdir(parents=True)
    for link, target in targets.items():
        if stays_inside(os.fsencode(link), os.fsencode(target)):
            (root / link).symlink_to(target)
    for link in root.rglob("*"):
        try:
            link.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                continue
        assert link.resolve().is_relative_to(root.resolve())
    shutil.rmtree(root.parent)


@pytest.mark.parametrize("target", [b"/etc", b"", b"a\0b", b"..", b"../..", b"a/../b", b"a//b"])
def test_links_at_the_top_that_are_refused(target):
    assert not stays_inside(b"link", target)


def test_a_sender_that_lies_makes_no_link_that_leads_out(tmp_path):
    manifest = Manifest(
        [Entry(b"link", "link", 0, NOON, target=b"../../etc"), Entry(b"ok", "link", 0, NOON, target=b"x")]
    )
    sink = TreeSink(
        open_target(os.fspath(tmp_path), "b", make=True), Selection(manifest, b"\0", {}), keeps_links=True
    )
    with contextlib.closing(sink):
        assert sink.finish()["problems"] == ["`link`: the link leads out of the folder"]
    assert read_tree(tmp_path / "b") == {b"ok": "x"}


def test_a_link_and_a_file_below_it_do_not_go_together(tmp_path):
    (tmp_path / "outside").mkdir()
    entries = [Entry(b"a", "link", 0, NOON, target=b"outside"), Entry(b"a/x", "file", 0o644, NOON, 3)]
    selection = Selection(Manifest(entries), b"\3", {})
    with contextlib.closing(TreeSink(Folder.open(os.fspath(tmp_path)), selection, keeps_links=True)) as sink:
        sink.write(memoryview(b"abc\1"))
        assert len(sink.finish()["problems"]) == 1
    assert os.listdir(tmp_path / "outside") == []
    assert (tmp_path / "a" / "x").read_bytes() == b"abc"


@pytest.mark.parametrize(
    "name",
    [
        "con",
        "CON.txt",
        "aux",
        "com1",
        "LPT9.log",
        "nul .x",
        "a:b",
        "C:",
        "a\\b",
        "a?",
        "x ",
        "x.",
        "a\tb",
        b"\xff",
    ],
)
def test_names_that_windows_cannot_have_are_told(name):
    assert objection(os.fsencode("folder/") + (name if isinstance(name, bytes) else os.fsencode(name)))


@pytest.mark.parametrize(
    "name", ["console", "x.con", "com", "lpt10", "nul-x", "a b", "café", ".git", "a.b.c"]
)
def test_names_that_windows_can_have_are_not(name):
    assert objection(os.fsencode("folder/" + name)) == ""


def test_on_windows_such_names_are_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(_plans, "WINDOWS", True)
    manifest = Manifest([Entry(b"aux", "file", 0, 0), Entry(b"x", "file", 0, 0)])
    plan = make_plan(None, os.fspath(tmp_path), manifest, overwrite=False, skip_same=False, resume=False)
    assert plan.problems == ["`aux`: its name is that of a device in Windows"]
    assert plan.wanted == b"\2"


# --- two ends that do not agree --------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "offsets"), [(b"", {}), (b"\1\0", {}), (b"\1", {0: 11}), (b"\1", {0: -1})]
)
def test_a_selection_that_does_not_fit_is_an_error(wanted, offsets):
    with pytest.raises(TransferError, match="do not mean the same files"):
        Selection(Manifest([Entry(b"x", "file", 0, 0, 10)]), wanted, offsets)


def test_only_true_beginnings_are_confirmed(tmp_path):
    source = make_tree(tmp_path / "a", {"x": b"0123456789", "y": b"0123456789"})
    tree = find([os.fspath(source)], "/")
    digest = xxhash.xxh3_128_digest
    good, longer = Offset(0, 4, digest(b"0123")), Offset(0, 11, digest(b"0123456789"))
    assert confirm(tree, [good]) == {0: 4}
    assert confirm(tree, [longer]) == {}
    assert confirm(tree, [Offset(1, 4, digest(b"wrong"))]) == {}
    (source / "x").write_bytes(b"0123!")
    assert confirm(tree, [good]) == {}, "it has changed since it was listed"
    with pytest.raises(TransferError):
        confirm(tree, [Offset(2, 1, b"")])


# --- patterns --------------------------------------------------------------------------------

FILES = {
    "a.csv": b"1",
    "b.txt": b"2",
    ".hidden.csv": b"3",
    "runs": {
        "1": {"out.csv": b"4", "log": b"5"},
        "2": {"out.csv": b"6"},
        ".git": {"x.csv": b"7"},
        "c.csv": b"8",
    },
    "x.csv": {"inside": b"9", ".inside": b"10"},
}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.csv", "a.csv x.csv x.csv/.inside x.csv/inside"),
        ("runs/*/out.csv", "1 1/out.csv 2 2/out.csv"),
        ("r*/*/out.csv", "runs runs/1 runs/1/out.csv runs/2 runs/2/out.csv"),
        (
            "**/*.csv",
            "a.csv x.csv x.csv/inside x.csv/.inside runs runs/c.csv runs/1 runs/1/out.csv runs/2 runs/2/out.csv",
        ),
        ("runs/**/out.csv", "1 1/out.csv 2 2/out.csv"),
        ("runs/**", "1 1/out.csv 1/log 2 2/out.csv c.csv"),
        (".h*", ".hidden.csv"),
        ("runs/.g*/*", ".git .git/x.csv"),
        ("[ab].*", "a.csv b.txt"),
        ("?.csv", "a.csv x.csv x.csv/.inside x.csv/inside"),
        ("./*.txt", "b.txt"),
        ("runs/[!1]/*", "2 2/out.csv"),
    ],
)
def test_patterns_find_what_they_do_in_a_shell(tmp_path, pattern, found):
    make_tree(tmp_path / "a", FILES)
    tree = find([pattern], os.fspath(tmp_path / "a"))
    assert sorted(os.fsdecode(entry.path) for entry in tree.manifest.entries) == sorted(found.split())
    assert tree.name == ""
    folders = {b""}
    for entry in tree.manifest.entries:
        assert entry.path.rpartition(b"/")[0] in folders, "a folder comes before what is in it"
        folders |= {entry.path} if entry.kind == "folder" else set()
    check_asked(tree.manifest, [pattern])
    others = [b"other/x", b"y", b"runs/.git/hooks/x"] if pattern != "runs/**" else []
    for path in (b".bashrc", b".ssh/x", *others):
        with pytest.raises(TransferError, match="nobody asked for") as caught:
            check_asked(Manifest([*tree.manifest.entries, Entry(path, "file", 0o755, 0)]), [pattern])
        assert caught.value.id == "path"


def test_patterns_do_not_run_in_circles(tmp_path):
    make_tree(tmp_path / "a", {"loop": ".", "x": {"up": "..", "y.csv": b"1"}})
    tree = find(["**/*.csv"], os.fspath(tmp_path / "a"))
    assert [entry.path for entry in tree.manifest.entries] == [b"x", b"x/y.csv"]


def test_a_file_whose_name_looks_like_a_pattern_is_meant_itself(tmp_path):
    make_tree(tmp_path / "a", {"x[1].csv": b"1", "x1.csv": b"2"})
    with contextlib.closing(find(["x[1].csv"], os.fspath(tmp_path / "a"))) as source:
        assert source.name == "x[1].csv"


def test_several_things_go_together_each_under_the_name_that_it_was_asked_for_by(tmp_path):
    make_tree(
        tmp_path / "a",
        {"x.csv": b"1", "deep": {"d": {"in": b"2"}}, "latest": "deep/d", "l.csv": "x.csv", "m": FILES},
    )
    paths = ["x.csv", "latest", "deep/d", "l.csv", "m/runs/*/out.csv"]
    tree = find(paths, os.fspath(tmp_path / "a"))
    check_asked(tree.manifest, paths)
    count = len(tree.manifest.entries)
    selection = Selection(tree.manifest, b"\xff" * ((count + 7) // 8), {})
    with (
        contextlib.closing(TreeSource(tree, selection)) as source,
        contextlib.closing(TreeSink(open_target(os.fspath(tmp_path), "b", make=True), selection)) as sink,
    ):
        assert move(source, sink)["problems"] == []
    assert read_tree(tmp_path / "b") == names(
        {
            "x.csv": b"1",
            "latest": {"in": b"2"},
            "d": {"in": b"2"},
            "l.csv": b"1",
            "1": {"out.csv": b"4"},
            "2": {"out.csv": b"6"},
        }
    )


def test_two_things_of_one_name_do_not_go_together(tmp_path):
    make_tree(tmp_path / "a", {"x": b"1", "f": {"x": b"2"}})
    with pytest.raises(TransferError, match="two of the things to be copied are called `x`"):
        find(["x", "f/x"], os.fspath(tmp_path / "a"))
    assert len(find(["x", "./x", "f"], os.fspath(tmp_path / "a")).manifest.entries) == 3
