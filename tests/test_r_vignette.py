"""What the guide and the help pages of the R package `remoter` do, typed line by line, does the same here.

A transcript stands in each test as the guide would print it; `...` is what differs from one time to the next.
Differences that are meant are in the spelling of what is typed to the shell (`remoter::server()` is `remoter
server --lang r`), and in that what comes from this side is marked by `here|`.
"""

import contextlib
import doctest
import os
import re
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from remoter._config import host_name
from remoter._records import records

from .conftest import DIRECTORIES, is_alive, wait_for
from .terminal import Terminal

SHELL = "shell> "
TAKES_LONG = re.compile(r"(?m)^(-- starting R here .*|[\w.]+: .* in [\d.]+ m?s \(.*/s\))\n")
"""What is said only of what takes longer than half a second."""
PROMPTS = re.compile(r"(?m)^(shell> |remoter> |there> | {7}\+ ) *(.*)$")


@pytest.fixture
def terminal(r_program, home):
    """Opens terminals in which a shell waits; afterwards they are closed, and the sessions ended that they began."""
    terminals = []

    def start(**environment):
        env = {**os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "en", "REMOTER_R": r_program, **environment}
        env.update(PS1=SHELL, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        terminals.append(Terminal(["/bin/sh"], env=env, cwd=str(home), size=(60, 120)))
        terminals[-1].expect_line(SHELL)
        return terminals[-1]

    yield start
    begun = [record.pid for record in records()]
    for opened in terminals:
        opened.close()
    for pid in begun:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not any(map(is_alive, begun)), 30, "the end of the sessions")


def play(terminal, transcript, after=SHELL):
    """Type what a transcript has after its prompts, each when the one before is done, and compare all that is shown."""
    transcript = textwrap.dedent(transcript).strip("\n")
    typed = PROMPTS.findall(transcript)
    start = len(terminal.text().rstrip()) - len(typed[0][0].rstrip())
    for (_, line), prompt in zip(typed, [prompt for prompt, _ in typed[1:]] + [after], strict=True):
        before = terminal.prompts(prompt)
        terminal.type(line + "\r")
        terminal.wait_for(
            lambda screen, p=prompt, n=before: terminal.prompts(p) > n, 30, f"the end of {line!r}"
        )
    shown = TAKES_LONG.sub("", terminal.text()[start:]).rstrip() + "\n"
    expected = f"{transcript}\n{after.rstrip()}\n"
    if not doctest.OutputChecker().check_output(expected, shown, doctest.ELLIPSIS):
        pytest.fail(f"what is shown differs from the transcript:\n{shown}", pytrace=False)


def serve(terminal, *options):
    """`remoter::server(...)`."""
    terminal.type(" ".join(["remoter server --lang r --port 0", *options]) + "\r")
    terminal.expect("Ctrl-C interrupts what runs")
    [record] = records()
    return record


def test_the_guide_typed_line_by_line_does_what_it_says(terminal, home):
    (home / "myscript.r").write_text("x <- 1\ny <- 2\nx + y\n")
    server, client = terminal(), terminal()
    record = serve(server, "--showmsg")
    play(
        client,
        """
        shell> remoter client
        session `main` on this machine: R ..., pid ...
        typed lines run on ...; helpc() for here
        remoter> x
        Error: object 'x' not found
        remoter> x <- "some data"
        remoter> x
        [1] "some data"
        remoter> s2c(x, "y")
        here| y: character 1
        remoter> lsc()
        here| [1] "y"
        remoter> evalc(y)
        here| [1] "some data"
        remoter> evalc(y <- toupper(y))
        remoter> c2s(y)
        here| y: character 1
        remoter> y
        [1] "SOME DATA"
        remoter> c2s(y, "z")
        here| z: character 1
        remoter> ls()
        [1] "x" "y" "z"
        remoter> rmc(y)
        remoter> lsc()
        here| character(0)
        remoter> is.secure()
        here| [1] TRUE
        remoter> sendfile("myscript.r", "there.r")
        here| ...
        remoter> readLines("there.r")
        [1] "x <- 1" "y <- 2" "x + y"
        remoter> recvfile("there.r", "here.r")
        here| ...
        remoter> evalc(readLines("here.r")[3])
        here| [1] "x + y"
        remoter> showlog()
        > x
        Error: object 'x' not found
        ...
        [1] "x" "y" "z"
        ...
        remoter> leave <- function() {
               +   q("no")
               + }
        remoter> leave
        function() {
          q("no")
        }
        remoter> plot(1:5)
        plot 1: ....png
        remoter> dev.off()
        null device
                  1
        remoter> ?`+`
        ...Arithmetic Operators
        ...
             x + 1
        ...
        remoter> exit()
        left `main` running on this machine. Back: remoter client main    End it: remoter stop main
        shell> remoter batch -c "1+1"
        [1] 2
        shell> remoter batch myscript.r
        [1] 3
        shell> remoter client --prompt there
        session `main` on this machine: R ..., pid ...
        typed lines run on ...; helpc() for here
        -- while you were away (...): 2 commands, 2 lines:
        > 1+1
        [1] 2
        > x <- 1 ...
        [1] 3
        there> x + y
        [1] 3
        there> exit(client.only=FALSE)
        -- ended `main`
        """,
    )
    server.expect_line(SHELL)
    for message in ['x <- "some data"', "1+1", "x + y"]:
        assert re.search(rf"RMSG \S+ pid \d+: {re.escape(message)}$", server.text(), re.MULTILINE), message
    wait_for(lambda: not is_alive(record.pid), 30)


def test_clients_share_what_is_there_and_one_that_is_killed_leaves_it(terminal):
    serve(terminal())
    one, other = terminal(), terminal()
    for client in one, other:
        client.type("remoter client\r")
        client.expect_line("remoter>")
    play(one, "remoter> x <- 41", after="remoter> ")
    play(other, "remoter> x + 1\n[1] 42", after="remoter> ")
    one.close()
    play(other, "remoter> x\n[1] 41", after="remoter> ")


def test_a_stranger_is_asked_for_the_password_which_is_not_shown(terminal, home):
    record = serve(terminal(REMOTER_PASSWORD="right horse"))
    elsewhere = {f"REMOTER_{name}_DIR": str(home / "elsewhere" / name) for name in DIRECTORIES}
    stranger = terminal(HOME=str(home / "tmp"), **elsewhere)
    stranger.type(f"remoter client 127.0.0.1:{record.port}\r")
    stranger.expect_line(f"password of `127.0.0.1:{record.port}`:")
    stranger.type("wrong horse\r")
    stranger.expect(re.compile(r"^wrong password for .*\npassword of .*:$", re.MULTILINE))
    stranger.type("right horse\r")
    stranger.expect_line(f"remoter@{host_name()}>")
    assert "horse" not in stranger.text()
