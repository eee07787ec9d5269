"""The shape of the command line: sections, aliases, errors, exit codes; on either machine, in the shell's process.

Nothing but click is imported at the top: this is what `remoter --help` waits for.
"""

from __future__ import annotations

import os
import sys

import click

TYPE_CHECKING = False  # what `typing` has, without the import
if TYPE_CHECKING:
    from collections.abc import Iterator

SECTIONS = {
    "Everyday": ("server", "client", "batch"),
    "Sessions": ("ls", "stop", "restart", "interrupt", "log"),
    "Setting up": ("relay", "keys", "doctor"),
}
ALIASES = {
    "connect": "client",
    "attach": "client",
    "serve": "server",
    "run": "batch",
    "logs": "log",
    "ps": "ls",
    "kill": "stop",
}
EXAMPLES = """
  remoter server                        a session here; then, in another terminal:
  remoter client                        a prompt on it; Ctrl-D leaves, it goes on
  remoter batch --start analysis.py     run a file, live output, its exit code
  remoter client big:55555              a prompt on another machine
"""


AS_TYPED = {  # what errors name as Python spells it, and how the command line does
    "`secure=False` (`--insecure`)": "`--insecure`",
    "`secure=False`": "`--insecure`",
    "`password=...`, or REMOTER_PASSWORD for the commands": "`--password-file FILE`, or the variable REMOTER_PASSWORD",
    "`remoter.connect(start=True)`": "`--start`",
    "`restart()`": "`remoter restart`",
}


class Group(click.Group):
    """Commands in sections, aliases that `--help` does not show, near names for unknown ones."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            near = get_close_matches(args[0], [*self.commands, *ALIASES], n=1, cutoff=0.6)
            hint = f"`remoter {near[0]}`" if near else "`remoter --help` lists the commands"
            raise Usage(f"there is no command `{args[0]}`", hint)
        name, command, rest = super().resolve_command(ctx, args)
        return (command.name if command else name), command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(60)) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\nExamples:{EXAMPLES}")
        formatter.write(
            "\nEvery option has a variable too: REMOTER_SERVER_PORT=0 is `remoter server --port 0`.\n"
        )


class Usage(click.UsageError):
    """A wrong command line, with what to type instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def tell(text: str) -> None:
    """A word to the person, beside the output."""
    click.echo(coloured(text), err=True)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """A warning as one plain line; for `warnings.showwarning`."""
    tell(f"warning: {message}")


# --- errors and exit codes -------------------------------------------------------------------


def report(error: Exception, *, debug: bool) -> int:
    """Print the error; returns the exit code that it means."""
    from ._errors import RemoterError, RunError, RunTimeoutError, SessionDiedError, render

    if isinstance(error, click.ClickException):
        for line in _usage_lines(error):
            tell(line)
        return 2
    if debug or not isinstance(error, RemoterError | RunTimeoutError):
        import traceback

        if isinstance(error, RemoterError):  # what it says follows below
            tell("Traceback (most recent call last):")
            traceback.print_tb(error.__traceback__)
        else:
            traceback.print_exception(error)
    if isinstance(error, RunTimeoutError):
        tell(f"error: {error}   [timeout]")
        return 124
    if not isinstance(error, RemoterError):
        tell("error: remoter itself failed; the lines above are for its authors   [bug]")
        return 1
    is_traceback = isinstance(error, RunError) and not isinstance(error, SessionDiedError)
    tell(render(error) if is_traceback else as_typed(render(error)))
    return _exit_code(error)


def as_typed(text: str) -> str:
    """The text of an error, with options where it names the arguments of functions."""
    for words, typed in AS_TYPED.items():
        text = text.replace(words, typed)
    return text


def _exit_code(error: Exception) -> int:
    from . import _errors

    if isinstance(error, _errors.RunInterruptedError):
        return 130
    if isinstance(error, _errors.AddressError) or getattr(error, "id", "") in ("file", "password-file"):
        return 2
    if getattr(error, "id", "") == "private-file":  # the keys of a connection are in there
        return 255
    lost = (
        _errors.ConnectError,
        _errors.AuthError,
        _errors.KeyChangedError,
        _errors.VersionError,
        _errors.LinkLostError,
        _errors.SessionDiedError,
    )
    return 255 if isinstance(error, lost) else 1


def _usage_lines(error: click.ClickException) -> Iterator[str]:
    """A wrong command line in the shape of our other errors."""
    hint = getattr(error, "hint", "")
    message = error.format_message().replace("'", "`")
    if isinstance(error, click.NoSuchOption):
        message = f"there is no option `{error.option_name}`"
        if error.option_name in ("--password", "--pass", "-p"):
            message += ": what stands on a command line can be read by everyone on this machine"
            hint = "`--password-file FILE`, or the variable REMOTER_PASSWORD; at a terminal you are asked"
        elif error.possibilities:
            hint = f"`{sorted(error.possibilities)[0]}`"
    ctx = getattr(error, "ctx", None)
    if not hint and ctx is not None:
        hint = f"`{ctx.command_path} --help`"
    yield f"error: {message[:1].lower()}{message[1:].rstrip('.')}   [usage]"
    if hint:
        yield f" hint: {hint}"


def coloured(text: str) -> str:
    """The words `error:`, `cause:` and `hint:` in colour, where that is wanted."""
    force, no = os.environ.get("FORCE_COLOR"), os.environ.get("NO_COLOR")
    if no or os.environ.get("TERM") == "dumb" or not (force or sys.stderr.isatty()):
        return text
    colours = {"error:": "31;1", "warning:": "33", "cause:": "33", "hint:": "36"}
    lines = []
    for line in text.split("\n"):
        word = line.strip().split(" ", 1)[0]
        if word in colours:
            line = line.replace(word, f"\x1b[{colours[word]}m{word}\x1b[0m", 1)
        lines.append(line)
    return "\n".join(lines)
