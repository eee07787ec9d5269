"""R sessions at their start: which R, none, a wrong one, one that cannot be embedded; and which language is meant."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import remoter
from remoter import _doctor, _launcher, _listing, _r, _records, _saved
from remoter._address import parse
from remoter._cli import main
from remoter._usage import Target
from tests.conftest import Served

from .waiting import is_alive, wait_for

SYSTEM = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
BINARIES = str(Path(sys.executable).parent)


def run(*words, **options):
    """A `remoter` command, as the shell runs it, without a terminal."""
    options = {"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run([sys.executable, "-m", "remoter", *words], **options)


def complaint(*words):
    """What a command that fails says and its exit code, in this process."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(words)
    return said.getvalue(), code


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="session")
def path_without_r(tmp_path_factory):
    """A PATH on which is all that the system has but R."""
    directory = tmp_path_factory.mktemp("tools")
    found = {
        entry.name: entry.path for place in SYSTEM if Path(place).is_dir() for entry in os.scandir(place)
    }
    for name in found.keys() - {"R", "Rscript"}:
        (directory / name).symlink_to(found[name])
    return str(directory)


@pytest.fixture
def no_r(path_without_r, monkeypatch):
    """A machine without R."""
    for name in ("R_HOME", _r.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", path_without_r)


@pytest.fixture
def other_r(r_program, home):
    """An R that was built without a library: the real one, in a home of links, without `libR.so`."""
    real = _r.find(r_program)
    fake = home / "R"
    for place in ["", "bin", "lib"]:
        (fake / place).mkdir()
        for found in Path(real.home, place).iterdir():
            if found.name not in ("bin", "lib", "R") and not found.name.startswith("libR."):
                (fake / place / found.name).symlink_to(found)
    script, count = re.subn(
        "(?m)^R_HOME_DIR=.*$", f"R_HOME_DIR={fake}", Path(real.home, "bin", "R").read_text(), count=1
    )
    if not count or real.library is None:
        pytest.skip("this R is put together in another way")
    (fake / "bin" / "R").write_text(script)
    (fake / "bin" / "R").chmod(0o755)
    return str(fake / "bin" / "R")


# --- which R ---------------------------------------------------------------------------------


def test_the_r_on_the_path_is_found_and_asked(r_program):
    found = _r.find(r_program)
    assert re.fullmatch(r"\d+\.\d+\.\d+|devel", found.version)
    assert Path(found.home, "library", "base").is_dir()
    assert found.library is None or Path(found.library).is_file()
    assert found.program == r_program


def test_an_r_can_be_named_by_path_directory_name_or_variable(r_program, monkeypatch):
    home = _r.find(r_program).home
    assert _r.find(home).program == f"{home}/bin/R"
    assert _r.find("R").home == home
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{Path(r_program).parent}")
    monkeypatch.setenv(_r.VARIABLE, f"{home}/bin/R")
    assert _r.find().program == f"{home}/bin/R"
    assert _r.find(r_program).program == r_program  # what is typed comes first


def test_without_a_path_r_home_tells(r_program, no_r, monkeypatch):
    home = _r.find(r_program).home
    monkeypatch.setenv("R_HOME", home)
    assert _r.find().program == f"{home}/bin/R"
    monkeypatch.setenv("R_HOME", "/nowhere")
    with pytest.raises(remoter.RemoterError, match="no R on this machine") as caught:
        _r.find()
    assert caught.value.cause == "`R` is not on PATH and R_HOME, `/nowhere`, has no `bin/R`"


def test_without_r_the_start_of_a_session_says_so_at_once(no_r, home, monkeypatch):
    program(home / "apt-get", "")  # a Debian
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    expected = (
        "error: no R on this machine   [r-missing]\n"
        "cause: `R` is not on PATH and R_HOME is not set\n"
        " hint: `apt install r-base-core`, or name it with `--r /opt/R/4.4/bin/R`\n"
    )
    assert complaint("server", "--lang", "r") == (expected, 1)
    assert complaint("batch", "--start", "--lang", "r", "-c", "1") == (expected, 255)
    with pytest.raises(remoter.ConnectError) as caught:
        remoter.connect(start=True, lang="r")
    assert caught.value.id == "r-missing"
    assert not list((home / "runtime").glob("*"))


@pytest.mark.parametrize(
    ("text", "message", "cause"),
    [
        (None, "there is no", "`--r` names it"),
        ("", "is no R", "it does not say which version it is"),
        ("echo GNU tar 1.34", "is no R", "asked for its version, it says: GNU tar 1.34"),
        (
            "echo 'R version 4.9.9 (2030-01-01)'; exit 0",
            "is no R",
            "asked for its version, it says: R version",
        ),
        (
            "case $1 in RHOME) echo /;; *) echo 'R version 3.4.4';; esac",
            "is R 3.4.4",
            "3.5 or newer is needed",
        ),
        ("sleep 1000 & sleep 1000", "is no R, or hangs", "--version` has not ended within 0.5 s"),
    ],
)
def test_what_is_named_and_is_no_r_is_refused(text, message, cause, tmp_path, monkeypatch):
    if cause.endswith("0.5 s"):
        monkeypatch.setattr(_r, "PATIENCE", 0.5)
    path = tmp_path / "R"
    if text is not None:
        program(path, text)
    with pytest.raises(remoter.RemoterError, match=message) as caught:
        _r.find(str(path))
    assert f"`{path}`" in caught.value.message
    assert cause in caught.value.cause
    assert caught.value.id == "r-missing"
    assert "`--r` takes the path of the command" in caught.value.hints[0]


def test_the_hint_for_rscript_is_the_r_beside_it(tmp_path):
    program(tmp_path / "R", "")
    with pytest.raises(remoter.RemoterError, match="is no R") as caught:
        _r.find(program(tmp_path / "Rscript", "echo 'Rscript (R) version 4.2.2'"))
    assert caught.value.hints == (f"`{tmp_path}/R` is",)


def test_a_wrong_r_is_told_by_the_command_with_where_it_was_named(tmp_path, monkeypatch):
    text, code = complaint("server", "--lang", "r", "--r", str(tmp_path / "none"))
    assert code == 1
    assert text.startswith(f"error: there is no `{tmp_path}/none`   [r-missing]\ncause: `--r` names it\n")
    monkeypatch.setenv(_r.VARIABLE, str(tmp_path))
    text, code = complaint("server", "--lang", "r")
    assert f"there is no `{tmp_path}/bin/R`" in text
    assert "cause: `REMOTER_R` names it" in text


def test_options_of_the_other_language_are_refused(monkeypatch):
    for words in [("server",), ("client", "--start"), ("batch", "-c", "1")]:
        for option in [("--r", "/usr/bin/R"), ("--r-engine", "pipe")]:
            text, code = complaint(*words, *option)
            assert (text, code) == (
                f"error: `{option[0]}` is for R sessions   [usage]\n hint: add `--lang r`\n",
                2,
            )
    text, code = complaint("server", "--lang", "r", "--runner", "plain")
    assert (text.splitlines()[0], code) == ("error: `--runner` is for Python sessions   [usage]", 2)
    with pytest.raises(remoter.AddressError, match="are for R sessions"):
        remoter.connect(start=True, r="/usr/bin/R")
    monkeypatch.setenv("REMOTER_R_ENGINE", "rocket")
    text, code = complaint("server", "--lang", "r")
    assert "no way to run R that is called `rocket`" in text
    assert "`auto`, `embed`, `pipe`" in text


def test_an_r_without_its_library_cannot_be_embedded_and_says_why(other_r):
    assert _r.find(other_r).library is None
    text, code = complaint("server", "--lang", "r", "--r", other_r, "--r-engine", "embed")
    assert code == 1
    assert f"error: `{other_r}` cannot be embedded" in text
    assert "`--enable-R-shlib`" in text
    assert "--r-engine pipe" in text


# --- doctor ----------------------------------------------------------------------------------


def r_step():
    return next(step for step in _doctor.examine(None) if step["step"] == "R")


def test_doctor_says_which_r_is_here(r_program, other_r, monkeypatch):
    found = _r.find(r_program)
    monkeypatch.setenv(_r.VARIABLE, r_program)
    step = r_step()
    assert (step["mark"], step["do"]) == ("ok", [])
    assert step["seen"] == f"{r_program}, {found.version}, home {found.home}, libR.so"
    monkeypatch.setenv(_r.VARIABLE, other_r)
    step = r_step()
    assert step["mark"] == "ok"
    assert step["seen"].endswith("no libR.so: sessions use the piped engine")
    assert "--enable-R-shlib" in step["do"][0]


def test_doctor_minds_no_machine_without_r(no_r, monkeypatch):
    step = r_step()
    assert step["mark"] == "skip"
    assert step["seen"] == "none here, which only R sessions need"
    assert step["do"][0].startswith("for them: ")
    monkeypatch.setenv(_r.VARIABLE, "/nowhere/R")
    step = r_step()
    assert (step["mark"], step["seen"]) == ("note", "there is no `/nowhere/R` (`REMOTER_R` names it)")


def test_doctor_says_which_r_is_there(r_program, ssh_host, path_without_r):
    found = _r.find(r_program)
    with_r = ssh_host("with")
    steps = {step["step"]: step for step in _doctor.examine(with_r.address)}
    assert steps["R"]["mark"] == "ok"
    assert steps["R"]["seen"].endswith(f", {found.version}, home {found.home}, libR.so")
    without = ssh_host("without", environment={"PATH": f"{path_without_r}:{BINARIES}"})
    steps = {step["step"]: step for step in _doctor.examine(without.address)}
    assert (steps["R"]["mark"], steps["R"]["seen"]) == ("skip", "none there, which only R sessions need")
    assert steps["session"]["mark"] == "note"  # it goes on


# --- which language is meant -----------------------------------------------------------------


def test_a_session_of_another_language_than_asked_for_is_refused(served, home):
    script = home / "job.R"
    script.write_text("cat(1)\n")
    refused = "error: session `main` is a Python session   [lang]\n"
    for words in [("batch", "--lang", "r", "-c", "1"), ("batch", "main", "--lang", "r", "-c", "1")]:
        text, code = complaint(*words)
        assert (text, code) == (
            f"{refused}cause: `--lang r` asks for an R session\n"
            " hint: `remoter server --lang r` starts an R session beside it\n"
            " hint: leave `--lang r` out to use this one\n",
            255,
        )
    text, code = complaint("batch", str(script))
    assert (text, code) == (
        f"{refused}cause: the name of `job.R` asks for an R session\n"
        " hint: `remoter server --lang r` starts an R session beside it\n"
        " hint: `--lang python` uses this one all the same\n",
        255,
    )
    with pytest.raises(remoter.ConnectError) as caught:
        remoter.connect(f"127.0.0.1:{served.port}", lang="r")
    assert (caught.value.id, caught.value.cause) == ("lang", '`lang="r"` asks for an R session')
    with remoter.connect(lang="python") as session:
        assert session.run("1", quiet=True).text == "1"


def test_a_python_script_and_one_that_has_another_end_run_where_they_are_sent(served, home, capsys):
    for name in ["job.py", "job.txt", "job"]:
        (home / name).write_text("print('yes')\n")
        assert main(["batch", str(home / name)]) == 0
    (home / "job.R").write_text("print('yes')\n")
    assert main(["batch", "--lang", "python", str(home / "job.R")]) == 0
    assert capsys.readouterr().out == "yes\n" * 4


def test_a_saved_name_keeps_how_a_session_is_started_there(home):
    how = {"prelude": "module load R", "lang": "r", "python": "/p", "r": "/opt/R/bin/R", "r_engine": "pipe"}
    _saved.save_name("big", parse("ssh://big"), **how)
    assert _saved.read_saved()["big"] == _saved.Saved(parse("ssh://big"), **how)
    found = _saved.find_ssh("big", python="/q", r=None)
    assert found == _saved.Saved(parse("ssh://big"), **{**how, "python": "/q"})
    target = Target("big", existing=False, r_engine="embed")
    target.check()
    assert target.there == _saved.Saved(parse("ssh://big"), **{**how, "r_engine": "embed"})


# --- sessions of one process -----------------------------------------------------------------


def test_a_session_of_a_process_is_shown_to_nobody_and_ends_with_it(serve, home):
    owner = subprocess.Popen(["sleep", "1000"])
    try:
        private = serve(only_while=owner.pid)
        assert _records.is_private(private.name)
        assert list(_records.records()) == []
        assert _listing.sessions() == []
        assert run("ls", "--json").stdout.split() == ["[]"]
        with pytest.raises(remoter.ConnectError, match="no session runs on this machine"):
            remoter.connect()
        with private.connect() as session:  # by its name
            assert session.run("1", quiet=True).text == "1"
        main_session = serve()
        assert main_session.name == "main"
        with remoter.connect() as session:
            assert session.info.name == "main"
    finally:
        owner.kill()
        owner.wait()
    wait_for(lambda: not any(map(is_alive, private.processes)), what="the session ends with its owner")
    main_session.stop()
    assert _listing.archive(None).name == "main"
    assert _listing.archive(private.name) is None, "nobody else ever saw it"


# --- with R ----------------------------------------------------------------------------------


def stop_all():
    for record in _records.records():
        with contextlib.suppress(remoter.RemoterError), remoter.connect(record.name) as session:
            session.shutdown()


def test_a_script_of_r_starts_an_r_session_and_goes_to_the_right_one_of_two(r_program, home, request):
    request.addfinalizer(stop_all)
    (home / "job.R").write_text('x <- 6\nx * 7\ncat("language:", R.version$language, "\\n")\n')
    (home / "job.py").write_text("import sys\n6 * 7\n")
    done = run("batch", "--start", str(home / "job.R"))
    assert (done.stdout, done.returncode) == ("[1] 42\nlanguage: R \n", 0), done.stderr
    refused = run("batch", str(home / "job.py"))
    assert "error: session `main` is an R session   [lang]" in refused.stderr
    assert run("batch", "--start", str(home / "job.py")).stdout == "42\n"  # another one
    assert {(record.name, record.lang) for record in _records.records()} == {
        ("main", "r"),
        ("main-2", "python"),
    }
    assert run("batch", str(home / "job.R")).stdout.startswith("[1] 42")  # found by its language
    assert run("batch", str(home / "job.py")).stdout == "42\n"
    assert "2 sessions run on this machine" in run("batch", "-c", "1").stderr
    with remoter.connect(lang="r") as session:
        assert session.info.lang == "r"
    lines = run("ls").stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["R", "Python"]


def test_the_banner_and_the_json_of_a_start_say_r(r_served, r_program):
    lines = _launcher.banner(r_served.ready, r_served.configuration).splitlines()
    version = _r.find(r_program).version
    assert lines[0].startswith(f"session `main`: R {version} ({r_program}), pid ")
    described = _launcher.described(r_served.ready, r_served.configuration)
    assert (described["lang"], described["version"]) == ("r", version)


def test_an_r_without_its_library_is_run_at_the_end_of_pipes_and_that_is_said(other_r, serve):
    served = serve(lang="r", r=other_r)
    assert "as a program here, not as a library" in _launcher.banner(served.ready, served.configuration)
    with served.connect() as session:
        assert session.info.runner == "pipe"
        assert session.run("6 * 7", quiet=True).stdout == "[1] 42\n"
        first = [event for event in _until_started(session) if event.kind == "notice"]
    assert any("R runs as a piped program here" in (event.text or "") for event in first)


def _until_started(session):
    for event in session.events(since=0, all=True):
        yield event
        if event.kind == "done":
            return


def test_an_r_that_dies_at_its_start_is_told_with_its_last_words(r_program, home):
    fake = program(
        home / "R",
        f'case "$1" in --version | RHOME) exec {r_program} "$@" ;; esac\necho libblas is not there >&2; exit 7',
    )
    with pytest.raises(remoter.RemoterError) as caught:
        Served(lang="r", r=fake)
    assert f"`{fake}`" in caught.value.message
    assert "libblas is not there" in caught.value.cause


def test_the_python_of_the_page_about_r_prints_what_it_says(r_program, home, request):
    request.addfinalizer(stop_all)
    page = (Path(__file__).parent.parent / "docs" / "r.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import remoter.*?)```", page, re.DOTALL)[1]
    expected = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, timeout=60)
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")


def test_the_python_that_hosts_r_can_be_named(r_program, serve):
    with serve(lang="r", python=sys.executable).connect() as session:
        assert session.run("cat(1)", quiet=True).stdout == "1"


# --- through ssh -----------------------------------------------------------------------------


def test_through_ssh_the_language_that_is_asked_for_is_found_or_started(r_program, ssh_host, home):
    there = ssh_host("there")
    assert run("batch", there.address, "-c", "6 * 7").stdout == "42\n"
    done = run("batch", there.address, "--lang", "r", "--r", r_program, "-c", "6 * 7")
    assert (done.stdout, done.returncode) == ("[1] 42\n", 0), done.stderr
    assert {(record["name"], record.get("lang", "python")) for record in there.records()} == {
        ("main", "python"),
        ("main-2", "r"),
    }
    (home / "job.R").write_text("6 * 7\n")
    assert run("batch", there.address, str(home / "job.R")).stdout == "[1] 42\n"  # the one that runs
    assert len(there.records()) == 2
    refused = run("batch", f"{there.address}/main", str(home / "job.R"))
    assert "error: session `main` on" in refused.stderr
    assert "is a Python session   [lang]" in refused.stderr
    assert f"hint: `remoter client {there.address} --lang r` starts an R session beside it" in refused.stderr


def test_through_ssh_a_machine_without_r_is_named(ssh_host, path_without_r):
    there = ssh_host("there", environment={"PATH": f"{path_without_r}:{BINARIES}"})
    done = run("batch", there.address, "--lang", "r", "-c", "1")
    assert done.returncode == 255
    assert "error: no session could be started on there   [start]" in done.stderr
    assert "cause: no R on there: `R` is not on PATH and R_HOME is not set" in done.stderr
    refused = run("batch", there.address, "--lang", "r", "--no-start", "-c", "1")
    assert "no R session runs on there" in refused.stderr
    assert f"`remoter client {there.address} --lang r` would start one" in refused.stderr
