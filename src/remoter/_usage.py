"""The shape of the command line: sections, aliases, which session is meant, errors, exit codes; in the shell's process.

Nothing but click is imported at the top: this is what `remoter --help` waits for.
"""

from __future__ import annotations

import os
import sys
from functools import cached_property, wraps

import click

TYPE_CHECKING = False  # what `typing` has, without the import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ._client import Session
    from ._saved import Saved
    from ._ssh import Ssh

SECTIONS = {
    "Everyday": ("server", "client", "batch", "cp"),
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
  remoter client ssh://big              a prompt on another machine; Ctrl-D leaves,
                                        the session there goes on
  remoter batch ssh://big analysis.py   run a file there, live output, its exit code
  remoter server                        a session here; then, in another terminal:
  remoter client                        a prompt on it
  remoter server --lang r               the same with R
"""

LONGEST_CAUSE = 300  # characters
AS_TYPED = {  # what errors name as Python spells it, and how the command line does
    "`secure=False` (`--insecure`)": "`--insecure`",
    "`secure=False`": "`--insecure`",
    "`password=...`, or REMOTER_PASSWORD for the commands": "`--password-file FILE`, or the variable REMOTER_PASSWORD",
    "`remoter.connect(start=True)`": "`--start`",
    "`install=True`": "`--install`",
    "`start=False`": "`--no-start`",
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


class AddressOrCommand(click.Group):
    """A group that may be given an address in place of a command; it is found in `ctx.meta`."""

    ADDRESS = "remoter.address"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Of what options are given, nothing is an address.
        _, rest, _ = self.make_parser(ctx).parse_args(list(args))
        if rest and "://" in rest[0]:
            ctx.meta[self.ADDRESS] = rest[0]
            args = [*args[: len(args) - len(rest)], *rest[1:]]
        return super().parse_args(ctx, args)


class WithKey(click.Command):
    """A command that takes a key, which may begin with `-`, as one in 64 does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for place, word in enumerate(args):
            if word[:1] == "-" and len(word) in (40, 43):  # as Z85, and as in an address
                args = [*args[:place], "--", *args[place:]]
                break
        return super().parse_args(ctx, args)


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


# --- which session is meant ------------------------------------------------------------------


class Target:
    """The session that a command line means, and how to come in.

    Args:
        start: whether one is started if none runs; None: only through ssh.
        existing: the command is for a session that runs, and never starts one.
        lang: the language of the session, whether it is started or runs; None: any.
        prelude, python, r, r_engine, install: for a session that is started; what is None, a saved name
            may say. The prelude also for whatever else runs there.
    """

    ask_ssh: Callable[[str, bool], str | None] | None = None  # at a terminal, ssh itself asks

    def __init__(
        self,
        address: str | None,
        insecure: bool = False,
        password_file: str | None = None,
        *,
        existing: bool = True,
        start: bool | None = None,
        prelude: str | None = None,
        lang: str | None = None,
        python: str | None = None,
        r: str | None = None,
        r_engine: str | None = None,
        install: bool = False,
    ) -> None:
        self.address = address
        self.secure = not insecure
        self.password_file = password_file
        self.existing = existing
        self.start = False if existing else start
        self.prelude, self.python, self.install = prelude, python, install
        self.r, self.r_engine = r, r_engine
        self.lang, self.lang_from = lang, f"`--lang {lang}`" if lang else ""
        # Not only saved: then it is news where it is not used.
        self.is_typed = any((prelude, python, r, r_engine))
        self._ssh: Ssh | None = None

    @cached_property
    def there(self) -> Saved | None:
        """The ssh address that is meant, if it is one, with what was typed in place of what is saved."""
        if self.address is None:
            return None
        from ._saved import find_ssh

        return find_ssh(self.address, **self._how)

    @property
    def _how(self) -> dict[str, Any]:
        """How a session is started there, as it may be saved."""
        return {name: getattr(self, name) for name in ("prelude", "lang", "python", "r", "r_engine")}

    def __enter__(self) -> Target:
        """Start to log in through ssh: what else takes long may be done meanwhile."""
        self.check()
        if self.there is not None and self._ssh is None and self.password_file is None:
            from ._ssh import begin

            if self.lang is None and self.there.lang is not None:
                self.lang_from = f"what is saved as `{self.address}`"
            for name in self._how:
                setattr(self, name, getattr(self.there, name))
            self._ssh = begin(self.there.address, self)
        return self

    def __exit__(self, *exception: object) -> None:
        """Log out again, if nobody has connected."""
        ssh, self._ssh = self._ssh, None
        if ssh is not None:
            ssh.close()

    def connect(self, timeout: float = 10.0, *, quiet: bool = False) -> Session:
        """A connection to it; `quiet`: without a warning that it is not secure."""
        with self:  # before the modules are imported that take as long as ssh itself
            from ._client import open_session

            # Through ssh nobody is asked for a password: the variable is for other addresses.
            may_ask = self.password_file is not None or self.there is None
            session = open_session(
                self.address,
                password=read_password(self.password_file) if may_ask else None,
                start=self.start,
                **self._how,
                lang_from=self.lang_from,
                install=self.install,
                secure=self.secure,
                timeout=timeout,
                existing=self.existing,
                quiet=quiet,
                ssh=self._ssh,
            )
            self._ssh = None  # it is the session's now
            return session

    def check_free(self, name: str) -> None:
        """Refuse, before anything is done, a name under which nothing would be found."""
        from ._records import record_here
        from ._saved import check_name

        check_name(name)
        if self.address is None:
            raise Usage("only an address can have a name", f"`remoter client ssh://HOST --save {name}`")
        if record_here(name) is not None:
            raise Usage(
                f"`{name}` is a session on this machine, and the name would mean that first",
                "save the address under another name",
            )

    def save(self, name: str, session: Session) -> None:
        """Give a name to where the connection led, now that it has: with the key that was proved there."""
        from dataclasses import replace

        from ._saved import Saved, read_saved, save_name

        saved, address = self.there, session._address
        if saved is None:
            if address.kind == "tcp" and address.key is None and session.is_secure:
                address = replace(address, key=session._target.locate().server_public)
            saved = read_saved().get(address.word) or Saved(address)
        how = {field: text or getattr(saved, field) for field, text in self._how.items()}
        before = save_name(name, saved.address, **how)
        instead = f" in place of {before}" if before else ""
        tell(f"-- saved as `{name}`{instead}: remoter client {name}")

    def look_at(self, file: str) -> None:
        """What a script is called tells in which language it is, unless that was typed."""
        from ._config import SUFFIXES

        lang = SUFFIXES.get(os.path.splitext(file)[1])  # noqa: PTH122 - pathlib takes time
        if self.lang is None and lang is not None:
            self.lang, self.lang_from = lang, f"the name of `{os.path.basename(file)}`"  # noqa: PTH119

    def check(self) -> None:
        """Refuse what is for ssh where none is meant, and for R where R is not."""
        for option, value in [("--r", self.r), ("--r-engine", self.r_engine)]:
            if value and (self.there.lang if self.there else self.lang) != "r":
                raise Usage(f"`{option}` is for R sessions", "add `--lang r`")
        for option, is_given in [("--prelude", bool(self.prelude)), ("--install", self.install)]:
            if is_given and self.there is None:
                raise only_through_ssh(option, self.address)


def only_through_ssh(option: str, address: str | None) -> Usage:
    """The option was given with an address that is here, or a port."""
    host = (address or "HOST").partition(":")[0]
    return Usage(
        f"`{option}` is for a session on another machine that ssh reaches",
        f"give its address as `ssh://{host}`",
    )


def reaching(
    *, address: bool = True, start: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options that say which session is meant; it gets them as a Target.

    Args:
        address: the command takes one.
        start: it starts a session where none runs.
    """
    options = [password_option, insecure_option, prelude_option, *(STARTING if start else ())]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def with_target(
            insecure: bool,
            password_file: str | None,
            prelude: str | None,
            address: str | None = None,
            **more: Any,
        ) -> Any:
            how = _how_to_start(more) if start else {}
            target = Target(address, insecure, password_file, existing=not start, prelude=prelude, **how)
            if not start:  # what starts one may be given its address later
                target.check()
            return function(target, **more)

        decorated: Callable[..., Any] = with_target
        for option in options:
            decorated = option(decorated)
        return click.argument("address", required=False)(decorated) if address else decorated

    return decorate


def _how_to_start(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of the options what says how a session is started."""
    how = {name: options.pop(name) for name in ("lang", "python", "r", "r_engine", "install")}
    start, no_start = options.pop("start"), options.pop("no_start")
    if start and no_start:
        raise Usage("`--start` and `--no-start` exclude each other", "leave one of them out")
    return {**how, "start": True if start else False if no_start else None}


password_option = click.option(
    "--password-file",
    type=click.Path(dir_okay=False),
    help="A file with the password, 0600. Or the variable REMOTER_PASSWORD.",
)
insecure_option = click.option(
    "--insecure", is_flag=True, help="No encryption, anyone is admitted; both sides must say so."
)
prelude_option = click.option(
    "--prelude", metavar="TEXT", help="Shell text to run there first: `module load python`."
)
r_engine_option = click.option(
    "--r-engine",
    type=click.Choice(["auto", "embed", "pipe"]),
    help="How R is run: inside of a Python, or as a program at the end of pipes.",
)
STARTING = (
    click.option("--install", is_flag=True, help="Put remoter there, through ssh, if it is missing."),
    r_engine_option,
    click.option("--r", metavar="PATH", help="The R of a session that is started: that on PATH there."),
    click.option("--python", metavar="PATH", help="The interpreter of a session that is started."),
    click.option(
        "--lang", type=click.Choice(["python", "r"]), help="The session's language: any, or Python."
    ),
    click.option("--no-start", is_flag=True, help="Start none, also not through ssh."),
    click.option("--start", is_flag=True, help="Start a session if none runs: also here."),
)


def read_password(file: str | None) -> str | None:
    """The password from the file or from the variable; never from the command line."""
    if file is None:
        return os.environ.get("REMOTER_PASSWORD") or None
    from ._config import read_password

    return read_password(file)


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
        # With a cause in one line: where a client asked for it over ssh, that is what he sees.
        where = traceback.extract_tb(error.__traceback__)[-1:]
        at = "".join(f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in where)  # noqa: PTH119
        said = next(iter(str(error).splitlines()), "")[:LONGEST_CAUSE]
        tell("error: remoter itself failed; a traceback is for its authors   [bug]")
        tell(f"cause: {type(error).__name__}: {said}{at}")
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
