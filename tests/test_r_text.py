"""R's own examples and demonstrations print in a session what they print by `Rscript`."""

import difflib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from remoter import _r

pytestmark = pytest.mark.timeout(240)  # each reads or draws some hundred pages, twice

DEMOS = {
    "base": ["error.catching", "is.things", "recursion", "scoping"],
    "stats": ["glm.vr", "lm.glm", "nlm", "smooth"],
    "graphics": ["Hershey", "Japanese", "graphics", "image", "persp", "plotmath"],
}

AS_SCRIPT = "interactive <- function() FALSE\n"  # `is.things` does more where it is TRUE

# Pages whose examples are run neither here nor there, by a word in them. Of a session is true what is
# true of R at a terminal: it is interactive, and has a pager, a browser and a device of its own.
WORDS = {
    r"interactive\(\)": "do more in a session than in a script",
    r"file\.show\(": "a script has another pager",
    r"\(options\(\)|\.Options": "list options",
    r"Sys\.time\(|Sys\.Date\(|\bdate\(\)|(proc|system)\.time\(|Sys\.sleep\(": "show the time, or take it",
    r"https?://|\burl\(": "need a network",
}
NAMES = {
    "Cstack_info": "how deep evaluation is",
    "Random": "random numbers from the clock",
    "Sys.getenv": "environment variables",
    "Sys.getpid": "number of the process",
    "capabilities": "X11 is looked for only in interactive use",
    "commandArgs": "how R was started",
    "formatDL": "environment variables",
    "gc": "memory in use",
    "getLoadedDLLs": "what is loaded to draw plots",
    "list.files": "what is beside the working directory",
    "memory.profile": "memory in use",
    "sys.parent": "shows at which line of the script a call is",
    "tempfile": "names of temporary files",
    "timezones": "asks the machine",
}

# Every session and script begins with this: so a script goes on after an error, as the session is told to.
PROFILE = """options(keep.source = TRUE)
if (!interactive()) options(
    device = function(...) grDevices::pdf(tempfile("plots", Sys.getenv("PLOTS"), ".pdf")),
    error = expression(NULL),
    showErrorCalls = FALSE
)
"""
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "LANGUAGE": "en", "TZ": "UTC", "COLUMNS": "80"}
BEGIN = """local({
    directory <- file.path(tempdir(), "here")
    dir.create(directory)
    setwd(directory)
    options(first = options(), searched = search(), directory = directory)
})
"""
CLEAN = """local({
    while (sink.number()) sink()
    sink(type = "message")
    for (number in setdiff(getAllConnections(), 0:2)) close(getConnection(number))
    graphics.off()
    for (name in setdiff(search(), getOption("searched"))) detach(name, character.only = TRUE)
    setwd(getOption("directory"))
    new <- setdiff(names(options()), c(names(getOption("first")), "first", "searched", "directory"))
    options(structure(vector("list", length(new)), names = new))
    options(getOption("first"))
    rm(list = ls(globalenv(), all.names = TRUE), envir = globalenv())
    set.seed(1)
})
"""
MARK = 'cat("\\001{0}\\n"); cat("\\001{0}\\n", file = stderr())\n'

EXTRACT = """pages <- tools::Rd_db("base")
for (page in names(pages)) tools::Rd2ex(pages[[page]], sub("[.]Rd$", ".R", page))
"""

# What differs from one R to the next: addresses, and names of temporary files.
SAME = [
    (r"0x[0-9a-f]{6,}", "0x"),
    (r"(?<=/Rtmp)\w{6}\b", ""),
    (r"(?<=/Rtmp/)([a-z ]+?)[0-9a-f]{9,}", r"\1"),
]


@pytest.fixture
def both(r_program, serve, home, monkeypatch):
    """A function that runs a script in a session and by `Rscript`, compares what they print; the numbers of plots."""
    (home / "home" / ".Rprofile").write_text(PROFILE)
    for name, value in {**ENVIRONMENT, "PLOTS": str(home)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("R_PROFILE_USER", raising=False)
    served = serve(lang="r", r=r_program)
    script = home / "script.R"

    def run(parts):
        body = "".join(CLEAN + MARK.format(title) + code + "\n" for title, code in parts.items())
        script.write_text(BEGIN + body)
        rscript = Path(_r.find(r_program).home, "bin", "Rscript")
        ours = [sys.executable, "-m", "remoter", "batch", "--keep-going", served.name, script]
        texts = printed(ours, home), printed([rscript, script], home)
        for text in texts:
            assert text.keys() == parts.keys(), f"it ended after\n{list(text.values())[-1]}"
        plots = without_plots(texts[0])
        compare(*texts)
        return plots, sum(path.read_bytes().count(b"/Type /Page ") for path in home.glob("plots*.pdf"))

    return run


def printed(command, directory):
    """What a program prints under each title, to both streams."""
    ended = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, timeout=100)
    texts = {}
    for name, data in [("stdout", ended.stdout), ("stderr", ended.stderr)]:
        text = data.decode("utf-8", "backslashreplace")
        for pattern, replacement in SAME:
            text = re.sub(pattern, replacement, text)
        for part in text.split("\1")[1:]:
            title, _, rest = part.partition("\n")
            texts.setdefault(title, {})[name] = rest
    return texts


def without_plots(texts):
    """The same without the lines that say where a plot is; and how many there are under each title."""
    plots = Counter()
    for title, streams in texts.items():
        streams["stderr"], plots[title] = re.subn(r"(?m)^plot \d+: .*\n", "", streams["stderr"])
    return plots


def compare(ours, theirs):
    """Fail with a text for people, in which each difference has its title."""
    found = []
    for title, streams in theirs.items():
        for name, text in streams.items():
            names = f"{title}, {name}, Rscript", "session"
            lines = difflib.unified_diff(
                text.splitlines(), ours[title][name].splitlines(), *names, lineterm=""
            )
            found.append("\n".join(list(lines)[:30]))
    if any(found):
        pytest.fail("\n\n".join(filter(None, found)), pytrace=False)


def examples(r_program, directory):
    """The code of the examples of all help pages of R's base package that print the same each time."""
    directory.mkdir()
    subprocess.run(
        [r_program, "--no-echo", "--vanilla", "-e", EXTRACT],
        cwd=directory,
        check=True,
        capture_output=True,
        timeout=60,
    )
    codes = {path.stem: path.read_text() for path in sorted(directory.glob("*.R"))}
    return {
        name: code
        for name, code in codes.items()
        if name not in NAMES and not any(re.search(word, code) for word in WORDS)
    }


def test_the_examples_of_base_print_the_same(both, r_program, home):
    codes = examples(r_program, home / "examples")
    assert len(codes) >= 300
    both(codes)


def test_the_demonstrations_print_the_same(both):
    codes = {
        f"{package} {name}": f'{AS_SCRIPT}demo("{name}", package = "{package}", ask = FALSE)'
        for package, names in DEMOS.items()
        for name in names
    }
    plots, pages = both(codes)
    assert plots.total() == pages > 0
