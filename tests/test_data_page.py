"""What `docs/data.md` shows is true: its Python runs, in order, in one namespace, and prints what stands beside it."""

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest

import remoter
from tests.test_cli import end_all_sessions

PAGE = Path(__file__).resolve().parent.parent / "docs" / "data.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout")


def blocks():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def expected_of(block):
    return re.findall(r"print\(.*\)  # (.*)", block)


def test_the_python_of_the_page_prints_what_stands_beside_it(home, request, monkeypatch):
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    request.addfinalizer(end_all_sessions)
    for place in ("there", "here"):
        (home / place).mkdir()
    monkeypatch.chdir(home / "there")
    remoter.connect("work", start=True).close()  # so that it works elsewhere than we do
    monkeypatch.chdir(home / "here")
    names = {"__name__": "__main__"}
    try:
        for block in blocks():
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(block, "data.md", "exec"), names)
            assert printed.getvalue().splitlines() == expected_of(block), block
    finally:
        if "session" in names:
            names["session"].close()


NOT_FOR_EVERYBODY = {"unknown", "problems"}
"""Ids that are said between the two ends, or at the prompt, only."""


def kinds_raised():
    """The ids that our code gives to errors of transfers."""
    found = {}
    for path in sorted((PAGE.parent.parent / "src" / "remoter").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = {keyword.arg: keyword.value for keyword in node.keywords}.get("id")
                if node.func.id == "ValuesError" and node.args:
                    given = node.args[0]
                elif node.func.id != "TransferError":
                    continue
                if isinstance(given, ast.Constant):
                    found[given.value] = path.name
    return found


def test_the_page_has_a_line_for_every_kind_of_error_and_no_other():
    shown = re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    raised = kinds_raised()
    assert len(raised) > 8
    assert set(shown) == set(raised) - NOT_FOR_EVERYBODY, raised
