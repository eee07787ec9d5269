"""The repository agrees with itself: names, pages, versions, layout; and the README says what is true today."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import remoter
from remoter import _messages
from tests.test_cli import end_all_sessions

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "remoter"
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST = 600

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
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def readme_transcript():
    """The first transcript of the README: each command, and what it prints."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(.*?)```", text, re.DOTALL)[1]
    steps = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, printed.splitlines()) for command, _, printed in (s.partition("\n") for s in steps)]


def test_the_transcript_of_the_readme_is_true(home, request):
    """Every command of it is run; what differs from run to run is written as `...`."""
    served = []

    request.addfinalizer(end_all_sessions)
    for command, expected in readme_transcript():
        words = shlex.split(command, comments=True)
        assert words[0] == "remoter", command
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=home, capture_output=True, text=True, timeout=20
        )
        served.append(command)
        printed = [line.rstrip() for line in (done.stdout + done.stderr).rstrip().splitlines()]
        shown = [line.rstrip() for line in expected if line.strip()]
        pattern = "\n".join(
            ".*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") for line in shown
        )
        assert re.fullmatch(pattern, "\n".join(line for line in printed if line), re.DOTALL), (
            f"{command} printed:\n{done.stdout}{done.stderr}"
        )
    assert len(served) >= 4


def test_the_python_of_the_readme_runs_and_prints_what_it_says(home, request):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    expected = re.findall(r"print\(.*\)  # (.*)", code)
    request.addfinalizer(end_all_sessions)
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, timeout=20)
    assert (done.stdout.split(), done.stderr) == (expected, "")
