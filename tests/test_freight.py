"""What a session's machine gives and takes: what a path means there, and what it is confined to."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from remoter import _freight, _manifest
from remoter._errors import TransferError
from remoter._manifest import decode_manifest

from .carrying import through_the_wire
from .test_trees import make_tree

NOON = 1_700_000_000_123_456_789


@pytest.fixture
def tmp_path(home):
    path = home / "work"
    path.mkdir()
    return path


@pytest.fixture
def root(tmp_path):
    """A root with something in it, and something beside it that nobody may see."""
    for name in ("root/inner", "outside/folder"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root" / "x.csv").write_bytes(b"inside")
    (tmp_path / "root" / "inner" / "y.csv").write_bytes(b"inside")
    (tmp_path / "outside" / "secret.csv").write_bytes(b"secret")
    (tmp_path / "outside" / "folder" / "z.csv").write_bytes(b"secret")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "out.csv").symlink_to(tmp_path / "outside" / "secret.csv")
    (tmp_path / "root" / "in.csv").symlink_to(tmp_path / "root" / "x.csv")
    return tmp_path / "root"


def read(path, cwd, root=None, **more):
    """The step `read`; its answer, with what there is of streams read to the end."""
    path = [os.fsencode(each) for each in path] if isinstance(path, list) else os.fsencode(path)
    freight = _freight.offer_path(through_the_wire({"path": path, **more}), cwd, root)
    reply, contents = through_the_wire(freight.reply), {}
    for name, stream in freight.streams.items():
        with contextlib.closing(stream):
            contents[name] = bytearray(stream.size)
            stream.read(0, memoryview(contents[name]))
    return reply, contents


def write(path, cwd, root=None, *, name=b"x.csv", content=b"new", **more):
    """The step `write` of a file, and its contents."""
    data = {"kind": "file", "path": None if path is None else os.fsencode(path), "name": name}
    data |= {"size": len(content), "mtime_ns": NOON, "mode": 0o644, **more}
    freight = _freight.accept_path(through_the_wire(data), cwd, root)
    if "" in freight.streams:
        with contextlib.closing(freight.streams[""]) as sink:
            sink.write(memoryview(content)[sink.position :])
            sink.finish()
    return through_the_wire(freight.reply)


# --- what a path means -----------------------------------------------------------------------


def test_a_file_is_offered_with_what_is_to_be_known_of_it(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"1,2\n")
    path.chmod(0o640)
    os.utime(path, ns=(NOON, NOON))
    reply, contents = read("x.csv", tmp_path)
    assert reply == {
        "kind": "file",
        "path": os.fsencode(path),
        "name": b"x.csv",
        "size": 4,
        "mtime_ns": NOON,
        "mode": 0o640,
        "is_sparse": False,
    }
    assert contents == {"": b"1,2\n"}


def test_an_empty_file_has_no_stream_that_somebody_would_have_to_close(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    assert read("x", tmp_path)[1] == {}


def test_a_folder_is_offered_with_the_length_of_its_manifest(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(b"abc")
    reply, contents = read("folder/", tmp_path)
    manifest = contents["-m"]
    assert reply == {
        "kind": "tree",
        "path": os.fsencode(tmp_path / "folder"),
        "name": b"folder",
        "files": 1,
        "size": 3,
        "manifest": len(manifest),
        "origin": reply["origin"],
    }
    assert len(reply["origin"]) == 32
    assert [entry.path for entry in decode_manifest(manifest).entries] == [b"x"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("x", b"x"),
        ("./x", b"x"),
        ("link", b"link"),
        (".", b"work"),
        ("f/..", b"work"),
        ("", b"work"),
        ("f/../x", b"x"),
    ],
)
def test_things_are_called_as_they_were_asked_for(tmp_path, path, name):
    (tmp_path / "f").mkdir()
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to("x")
    assert read(path, tmp_path)[0]["name"] == name


def test_a_path_may_begin_at_home(tmp_path, home):
    (home / "home" / "x").write_bytes(b"at home")
    assert read("~/x", tmp_path)[1] == {"": b"at home"}
    assert read("~/*", tmp_path)[0]["files"] == 1
    assert read("~", tmp_path)[0]["name"] == b"home"
    write("~/new", tmp_path)
    assert (home / "home" / "new").read_bytes() == b"new"


def test_names_that_are_no_text_are_found(tmp_path):
    name = b"caf\xe9.csv"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"abc")
    reply, contents = read(os.fsdecode(name), tmp_path)
    assert (reply["name"], contents) == (name, {"": b"abc"})
    assert read(os.fsdecode(b"*\xe9*"), tmp_path)[0]["files"] == 1


def test_what_does_not_exist_is_told_with_what_was_perhaps_meant(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "results.csv").write_bytes(b"")
    with pytest.raises(TransferError, match=r"there is no file or folder `.*/data/result.csv`") as caught:
        read("data/result.csv", tmp_path)
    assert caught.value.id == "path"
    assert caught.value.cause == f"`{tmp_path}/data` has no `result.csv`"
    assert caught.value.hints == ("there is `results.csv`",)
    with pytest.raises(TransferError) as caught:
        read("dta/x/y", tmp_path)
    assert caught.value.cause == f"`{tmp_path}` has no `dta`"
    assert caught.value.hints == ("there is `data`",)
    with pytest.raises(TransferError) as caught:
        read("data/results.csv/x", tmp_path)
    assert caught.value.cause == f"`{tmp_path}/data/results.csv` is no folder"


def test_a_pattern_that_matches_nothing_is_told(tmp_path):
    with pytest.raises(TransferError, match=r"nothing matches `\*.csv`") as caught:
        read("*.csv", tmp_path)
    assert caught.value.id == "path"
    with pytest.raises(TransferError, match="there is no folder"):
        read("nowhere/*.csv", tmp_path)


def test_what_is_no_file_does_not_cross_and_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TransferError, match=r"`.*/pipe` is a named pipe") as caught:
        read("pipe", tmp_path)
    assert caught.value.id == "kind"
    with pytest.raises(TransferError, match="is a device"):
        read("/dev/zero", tmp_path)


@pytest.mark.parametrize("path", [b"a\0b", 5, None, [b"a\0b"], {}])
def test_what_is_no_path_is_an_error(tmp_path, path):
    with pytest.raises(TransferError) as caught:
        _freight.offer_path({"path": path}, tmp_path, None)
    assert caught.value.id in ("path", "corrupt")


# --- where something goes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "where"),
    [
        (None, "x.csv"),
        ("", "x.csv"),
        (".", "x.csv"),
        ("y.csv", "y.csv"),
        ("there", "there/x.csv"),
        ("there/", "there/x.csv"),
        ("there/y.csv", "there/y.csv"),
        ("there/..", "x.csv"),
        ("new/", "new/x.csv"),
        ("linked", "there/x.csv"),
        ("linked/y.csv", "there/y.csv"),
    ],
)
def test_a_file_goes_where_it_would_with_cp(tmp_path, to, where):
    (tmp_path / "there").mkdir()
    (tmp_path / "linked").symlink_to("there")
    reply = write(to, tmp_path)
    assert os.fsdecode(reply["path"]) == os.fspath(tmp_path / where)
    assert (tmp_path / where).read_bytes() == b"new"


def test_an_absolute_path_is_one(tmp_path):
    write(os.fspath(tmp_path / "y"), "/")
    assert (tmp_path / "y").read_bytes() == b"new"


def test_a_folder_that_is_missing_is_told(tmp_path):
    for path in ("nowhere/x.csv", "no/where/"):
        with pytest.raises(TransferError, match="there is no folder") as caught:
            write(path, tmp_path)
        assert caught.value.id == "path"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransferError, match="there is no folder"):
        write("file/x", tmp_path)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/x", b"a\0b"])
def test_a_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(TransferError) as caught:
        write(None, tmp_path, name=name)
    assert caught.value.id == "path"
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_kept_replaced_or_skipped_as_asked(tmp_path):
    write(None, tmp_path)
    with pytest.raises(TransferError) as caught:
        write(None, tmp_path)
    assert caught.value.id == "exists"
    assert write(None, tmp_path, skip_same=True)["skip"]
    assert not write(None, tmp_path, content=b"newer", skip_same=True, overwrite=True)["skip"]
    assert (tmp_path / "x.csv").read_bytes() == b"newer"


def test_what_is_there_in_part_is_told_with_its_digest_and_can_be_thrown_away(tmp_path):
    data = {"kind": "file", "path": None, "name": b"x", "size": 6, "mtime_ns": NOON, "mode": 0o644}
    freight = _freight.accept_path(data, tmp_path, None)
    freight.streams[""].write(memoryview(b"abc"))
    freight.streams[""].close()
    freight = _freight.accept_path(data, tmp_path, None)
    digest = xxhash.xxh3_128_digest(b"abc")
    expected = {
        "path": os.fsencode(tmp_path / "x"),
        "position": 3,
        "digest": digest,
        "starts_over": False,
        "skip": False,
    }
    assert freight.reply == expected
    sink = freight.streams[""]
    chosen = _freight.select(freight, {"anew": True})
    assert (chosen.reply["size"], chosen.streams, sink.position) == (6, {}, 0)
    sink.close()
    assert os.listdir(tmp_path) == []


def test_steps_that_do_not_follow_each_other_are_an_error(tmp_path):
    with pytest.raises(TransferError):
        _freight.select(_freight.Freight({}), {})
    tree = {"kind": "tree", "path": None, "name": b"x", "manifest": 5}
    freight = _freight.accept_path(tree, tmp_path, None)
    with pytest.raises(TransferError, match="has not come yet"):
        _freight.select(freight, {"confirmed": []})
    with pytest.raises(TransferError):
        _freight.accept_path({**tree, "manifest": 1 << 40}, tmp_path, None)
    with pytest.raises(TransferError):
        _freight.accept_path({**tree, "kind": "device"}, tmp_path, None)


# --- confined to a root ----------------------------------------------------------------------

OUTSIDE = [
    "../outside/secret.csv",
    "../outside/nothing",
    "../nowhere",
    "..",
    "inner/../../outside/secret.csv",
    "/etc/passwd",
    "/nowhere",
    "/",
    "~",
    "~/x",
    "out",
    "out/secret.csv",
    "out/nothing",
    "out/folder/z.csv",
    "out.csv",
    "out/*.csv",
    "../outside/*",
    "/etc/*",
    "out/nothing/*",
    "inner/../out/secret.csv",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_outside_of_the_root_nothing_is_read_and_nobody_learns_what_is_there(root, path):
    with pytest.raises(TransferError) as caught:
        read(path, root, root)
    error = caught.value
    assert error.message == f"`{path}` is outside of `{root}`"
    assert error.cause == "the session's files are confined to that folder"
    assert (error.id, error.hints) == ("path", ())


@pytest.mark.parametrize(
    "path", [*[each for each in OUTSIDE if "*" not in each], "../x", "out/new/", "out.csv/"]
)
def test_outside_of_the_root_nothing_is_written(root, path, tmp_path):
    before = sorted(os.walk(tmp_path / "outside"))
    with pytest.raises(TransferError, match="is outside of") as caught:
        write(path, root, root, overwrite=True)
    assert caught.value.id == "path"
    tree = {"kind": "tree", "path": os.fsencode(path), "name": b"x", "manifest": 5}
    with pytest.raises(TransferError, match="is outside of"):
        _freight.accept_path(tree, root, root)
    with pytest.raises(TransferError, match="is outside of"):
        _freight.accept_path({**tree, "name": b""}, root, root)
    assert sorted(os.walk(tmp_path / "outside")) == before


def test_within_the_root_all_is_as_usual(root, tmp_path):
    assert read("x.csv", root, root)[1] == {"": b"inside"}
    assert read("in.csv", root, root)[1] == {"": b"inside"}, "a link within the root may be followed"
    assert read(os.fspath(root / "inner" / "y.csv"), root, root)[1] == {"": b"inside"}
    assert read("inner/../x.csv", root, root)[1] == {"": b"inside"}
    reply, contents = read(".", root, root)
    assert (reply["files"], decode_manifest(contents["-m"]).links) == (2, 3)
    assert read("*", root, root)[0]["files"] == 2
    assert read([".", "inner"], root, root)[0]["files"] == 3
    write("inner/z.csv", root, root)
    assert (root / "inner" / "z.csv").read_bytes() == b"new"


def test_relative_paths_are_relative_to_the_root_where_the_session_works_elsewhere(root, tmp_path):
    assert read("x.csv", tmp_path / "outside", root)[1] == {"": b"inside"}
    write("inner/", tmp_path / "outside", root)
    assert (root / "inner" / "x.csv").read_bytes() == b"new"


def test_a_folder_that_is_swapped_for_a_link_under_way_leads_nowhere(root, tmp_path, monkeypatch):
    """Between the look at a path and its opening; at either end."""
    resolve = _manifest.resolve

    def resolve_and_swap(path, base, top=None):
        resolved = resolve(path, base, top)
        (root / "inner").rename(tmp_path / "moved")
        (root / "inner").symlink_to(tmp_path / "outside")
        return resolved

    monkeypatch.setattr(_manifest, "resolve", resolve_and_swap)
    (tmp_path / "outside" / "y.csv").write_bytes(b"secret")
    with pytest.raises(TransferError, match="cannot read"):
        read("inner/y.csv", root, root)
    (root / "inner").unlink()
    (tmp_path / "moved").rename(root / "inner")
    find_target = _freight.find_target

    def find_and_swap(*args):
        found = find_target(*args)
        (root / "inner").rename(tmp_path / "moved")
        (root / "inner").symlink_to(tmp_path / "outside")
        return found

    monkeypatch.setattr(_freight, "find_target", find_and_swap)
    with pytest.raises(TransferError, match="cannot write"):
        write("inner/new.csv", root, root)
    assert not (tmp_path / "outside" / "new.csv").exists()


PARTS = st.sampled_from(
    ["..", ".", "", "inner", "x.csv", "out", "out.csv", "*", "~", "secret.csv", "y.csv", "**", "/"]
)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(PARTS, max_size=5))
def test_however_it_is_spelled_nothing_from_outside_is_given(parts):
    here = Path(tempfile.mkdtemp())
    make_tree(here / "outside", {"secret.csv": b"secret"})
    inner = {"y.csv": b"inside"}
    root = make_tree(
        here / "root",
        {
            "x.csv": b"inside",
            "inner": inner,
            "out": "../outside",
            "out.csv": os.fspath(here / "outside/secret.csv"),
        },
    )
    try:
        reply, contents = read("/".join(parts), root, root, symlinks="keep")
    except TransferError:
        return
    if reply["kind"] == "file":
        assert contents[""] == b"inside"
    else:
        paths = {entry.path.rpartition(b"/")[2] for entry in decode_manifest(contents["-m"]).entries}
        assert paths <= {b"x.csv", b"inner", b"y.csv"}
