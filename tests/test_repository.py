"""The repository agrees with itself: names, pages, versions, layout; and the README says what is true today."""

import ast
import contextlib
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import remoter
from remoter import _messages
from remoter._cli import cli
from tests.conftest import wait_for
from tests.terminal import Terminal
from tests.test_cli import end_all_sessions

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "remoter"
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST = 600
PROMPT = r"^(?:\$|remoter(?:@\S+)?>)(?= |$)"
DIRECTORIES = {"STATE": "state", "CONFIG": "configuration", "RUNTIME": "runtime"}

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not in a checkout")


def docstring_of(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def test_the_public_names_are_those_of_all_and_each_can_be_had():
    assert list(remoter.__all__) == sorted(remoter.__all__)
    assert set(remoter._MODULE_OF) | {"__version__"} == set(remoter.__all__)
    for name in remoter.__all__:
        assert getattr(remoter, name) is not None
    assert dir(remoter) == sorted(remoter.__all__)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nosuch"):
        remoter.nosuch  # noqa: B018 - the access is the test


def test_errors_say_that_they_are_at_home_in_remoter():
    errors = importlib.import_module("remoter._errors")
    for name in remoter.__all__:
        if name.endswith("Error"):
            assert getattr(remoter, name).__module__ == "remoter", name
            assert getattr(remoter, name) is getattr(errors, name)


def test_every_message_has_a_docstring_and_the_protocol_page_is_fresh():
    for union in (_messages.FromClient, _messages.FromServer):
        for message in _messages.members(union):
            assert message.__dict__.get("__doc__"), message.__name__
    done = subprocess.run(
        [sys.executable, "scripts/protocol", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_module_imports_what_it_must_not():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "No module named 'importlinter'" in done.stderr:
        pytest.skip("import-linter is not installed")
    assert done.returncode == 0, done.stdout + done.stderr


def test_version_and_changelog_agree():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None
    assert heading[1] == remoter.__version__


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_first_line_says_what_a_module_is_and_its_size_has_a_reason(path):
    text = docstring_of(path)
    first = text.partition("\n")[0]
    assert len(first) > 20, f"{path.name} does not say what it is"
    lines = path.read_text(encoding="utf-8").count("\n")
    if lines > LONGEST:
        assert re.search(r"\b(one|only) (file|module)\b|\blong(er)?\b", text, re.IGNORECASE), (
            f"{path.name}: {lines} lines and no reason why"
        )


def test_the_design_page_has_a_line_for_every_module():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    missing = [path.name for path in MODULES if path.name != "__init__.py" and f"`{path.name}`" not in page]
    assert not missing


def test_links_between_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def readme_transcript():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"```text\n(.*?)```", text, re.DOTALL)[1].splitlines()


def what_stays(line, host):
    """A line of a terminal without what differs from machine to machine and from run to run."""
    for pattern, name in [
        (r"ana@", ""),
        (rf"\b{re.escape(host)}\b", "big"),
        (r"Python \d+\.\d+\.\d+\S*", "Python V"),
        (r"pid \d+", "pid N"),
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r"\d\d:\d\d(-\d\d:\d\d)?", "HH:MM"),
        (r"\d+ MB", "N MB"),
        (r"(busy|for|after) [\d.]+ s\b", r"\1 N s"),
        (r" {2,}", "  "),
    ]:
        line = re.sub(pattern, name, line)
    return line.replace("^D", "").rstrip()


# What the README shows to happen in a certain second, happens when the test is there: these `sleep`
# again until a file is made. The third is before what is printed when the link is back; the sixth, the
# command that still runs when its client has left.
SLEEP_UNTIL = """
import os, time
def sleep(seconds, sleep=time.sleep, calls=[], wanted={3: %r, 6: %r}, exists=os.path.exists):
    calls.append(seconds)
    sleep(seconds)
    while len(calls) in wanted and not exists(wanted[len(calls)]):
        sleep(0.01)
time.sleep = sleep
"""


@pytest.mark.timeout(150)  # most of it is the outage
def test_the_transcript_of_the_readme_is_true(home, ssh_host, monkeypatch):
    """All that stands behind a prompt in it is typed, in a terminal, and that terminal shows the rest."""
    big = ssh_host("big")
    expected = readme_transcript()
    program = Path(sys.executable).with_name("remoter")
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{program.parent}", "PS1": "$ "}

    frozen, listed = home / "frozen", home / "listed"

    @contextlib.contextmanager
    def session_there():
        with monkeypatch.context() as there:
            for variable in ("STATE", "CONFIG", "RUNTIME"):
                there.setenv(f"REMOTER_{variable}_DIR", str(getattr(big, DIRECTORIES[variable])))
            with remoter.connect("main") as session:
                yield session

    def is_busy():
        with session_there() as session:
            return session.info.busy

    with Terminal(["/bin/sh", "-i"], size=(60, 120), env=environment, cwd=str(home)) as terminal:
        prompts = 0
        for line, before in zip(expected, ["", *expected], strict=False):
            if line == "^D":
                wait_for(is_busy, what="the session is busy")
                terminal.type("\x04")
            elif line.startswith("-- no answer"):
                terminal.expect(re.compile(f"^{re.escape(before)}$", re.MULTILINE))
                big.freeze()
                frozen.touch()
                terminal.expect(re.compile("^-- no answer", re.MULTILINE))
                big.thaw()
            elif prompt := re.match(PROMPT, line):
                prompts += 1
                wait_for_prompt(terminal, prompts)
                if line.endswith("from time import sleep"):
                    with session_there() as session:
                        session.run(f"exec({SLEEP_UNTIL % (str(frozen), str(listed))!r}, {{}})", quiet=True)
                if line == "$ remoter client ssh://ana@big" and prompts > 1:
                    listed.touch()
                    wait_for(lambda: not is_busy(), what="the command ends while nobody is there")
                typed = line[prompt.end() :].strip().replace("ana@", "")
                terminal.type("\x04" if typed == "^D" else typed + "\r")
        wait_for_prompt(terminal, prompts + 1)
        text = terminal.text()
    host = re.search(r"`main` on (\S+), started", text)[1]
    wanted = [what_stays(line, "big") for line in expected]
    assert [what_stays(line, host) for line in text.splitlines()][: len(wanted)] == wanted


def wait_for_prompt(terminal, number):
    """Wait until that many prompts were shown and the cursor stands behind the last one."""
    terminal.wait_for(
        lambda _: (
            len(re.findall(PROMPT, terminal.text(), re.MULTILINE)) == number
            and re.fullmatch(PROMPT, terminal.current_line())
        ),
        30,
        f"prompt number {number}",
    )


def test_the_python_of_the_readme_runs_and_prints_what_it_says(home, request):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    expected = re.findall(r"print\(.*\)  # (.*)", code)
    request.addfinalizer(end_all_sessions)
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, timeout=80)
    assert (done.stdout.split(), done.stderr) == (expected, "")


def commands_in(page):
    """Each command of ours that a page shows, in a block or between backquotes, and its words."""
    text = page.read_text(encoding="utf-8")
    blocks = re.compile(r"^```.*?^```|^    [^\n]*$", re.MULTILINE | re.DOTALL)
    shown = re.findall(r"^(?:    |\$ ).*?(\bremoter .*)$", text, re.MULTILINE)
    shown += re.findall(r"`(remoter [^`]+)`", re.sub(blocks, "", text))
    for line in shown:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = ""
        words = list(itertools.takewhile(lambda word: not set(word) <= set("|&;<>()#"), lexer))
        yield line, words[1:]


def parse(words):
    """Parse a command line as `remoter` does, and execute nothing."""
    command, context = cli, click.Context(cli, obj={"debug": False})
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        if command is not cli and command.get_command(context, words[0]) is None:
            return  # an address
        name, command, words = command.resolve_command(context, words)
        if not isinstance(command, click.Group):
            command.make_context(name, words, parent=context)


def test_the_pages_show_only_commands_that_exist():
    wrong, count = [], 0
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for line, words in commands_in(page):
            count += 1
            try:
                parse(words)
            except (click.exceptions.Exit, click.MissingParameter):
                pass  # `--help`; a command that is only named
            except click.ClickException as error:
                wrong.append(f"{page.name}: {line}: {error.format_message()}")
    assert not wrong, "\n".join(wrong)
    assert count > 50
