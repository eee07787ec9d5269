"""The command line: parses, calls, prints; on either machine, in the process that the shell starts.

Only click is imported at the top, so that `remoter --help` is quick: each command imports
what it needs. Errors of all commands end in `main()`, the one place that prints them.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import wraps

import click

from ._usage import Group, Usage, as_typed, report, show_warning, tell

TYPE_CHECKING = False  # what `typing` has, without the import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ._client import Session

# --- shape of the command line ---------------------------------------------------------------


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj["debug"] = True


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug, hidden=True, help="Show our tracebacks."
)


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "REMOTER"},
    options_metavar="",
    subcommand_metavar="COMMAND ...",
)
@click.option("--version", is_flag=True, allow_from_autoenv=False, help="Show the version and exit.")
@debug_option
@click.pass_context
def cli(ctx: click.Context, version: bool) -> None:
    """Control a remote Python session from your local one."""
    if version:
        from . import __version__

        click.echo(f"remoter {__version__}")
    elif ctx.invoked_subcommand is None:
        ctx.invoke(ls)
        tell("hint: `remoter --help` lists the commands")


def command(**settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of the group; its help ends with what an address is, if it takes one."""

    def make(function: Callable[..., Any]) -> click.Command:
        return cli.command(**settings)(debug_option(function))

    return make


class Target:
    """The session that a command line means, and how to come in."""

    def __init__(
        self,
        address: str | None,
        insecure: bool,
        password_file: str | None,
        start: bool = False,
        *,
        existing: bool = True,
    ) -> None:
        self.address = address
        self.secure = not insecure
        self.password_file = password_file
        self.start = start
        self.existing = existing  # the command cannot start one

    def connect(self, timeout: float = 10.0, *, quiet: bool = False) -> Session:
        """A connection to it; `quiet`: without a warning that it is not secure."""
        from ._client import open_session

        return open_session(
            self.address,
            password=_password(self.password_file),
            start=self.start,
            secure=self.secure,
            timeout=timeout,
            existing=self.existing,
            quiet=quiet,
        )


def reaching(
    *, address: bool = True, start: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options that say which session is meant; it gets them as a Target."""
    can_start = start

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def with_target(
            insecure: bool,
            password_file: str | None,
            address: str | None = None,
            start: bool = False,
            **options: Any,
        ) -> Any:
            target = Target(address, insecure, password_file, start, existing=not can_start)
            return function(target, **options)

        decorated = password_option(insecure_option(with_target))
        if can_start:
            decorated = start_option(decorated)
        return click.argument("address", required=False)(decorated) if address else decorated

    return decorate


password_option = click.option(
    "--password-file",
    type=click.Path(dir_okay=False),
    help="A file with the password, 0600. Or the variable REMOTER_PASSWORD.",
)
insecure_option = click.option(
    "--insecure", is_flag=True, help="No encryption, anyone is admitted; both sides must say so."
)
start_option = click.option("--start", is_flag=True, help="Start a session here if none runs.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


# --- everyday --------------------------------------------------------------------------------


@command()
@click.option("--lang", type=click.Choice(["python"]), default="python", help="The language of the session.")
@click.option(
    "--python", metavar="PATH", help="Its interpreter: any Python >= 3.8, remoter need not be in it."
)
@click.option("--name", help="The session's name: `main` if left out, then `main-2`.")
@click.option("--listen", multiple=True, metavar="ADDRESS", help="Where to listen, repeatable: 127.0.0.1.")
@click.option("--port", type=int, help="55555 if left out; 0 takes a free one.")
@password_option
@click.option("--background", is_flag=True, help="Leave it running and return.")
@insecure_option
@click.option("--force-insecure", is_flag=True, help="That, also where other machines can reach it.")
@click.option(
    "--runner", type=click.Choice(["auto", "ipython", "plain"]), default="auto", help="What runs code."
)
@click.option("--maxretry", type=click.IntRange(1), default=5, help="Password guesses per connection: 5.")
@click.option("--showmsg", is_flag=True, help="Log each command.")
@click.option("--logfile", type=click.Path(dir_okay=False), help="Where to log.")
@click.option("--verbose", is_flag=True, help="Log connections and logins.")
@json_option
def server(
    port: int | None,
    listen: tuple[str, ...],
    password_file: str | None,
    background: bool,
    insecure: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Start a session on this machine.

    It goes on until it is stopped: clients come, leave, and come back.

    \b
    Examples:
      remoter server
      remoter server --background --name train --python ./env/bin/python
      remoter server --listen 0.0.0.0 --port 0
    """
    from . import _launcher

    password = _password(password_file)
    os.environ.pop("REMOTER_PASSWORD", None)  # the session's own code must not find it
    ready, configuration = _launcher.start_session(
        port=port,
        password=password,
        listen=list(listen) or ["127.0.0.1"],
        secure=not insecure,
        attach_log=not background and (options["verbose"] or options["showmsg"]),
        **options,
    )
    if as_json:
        _print_json(_described(ready, configuration))
    else:
        click.echo(_launcher.banner(ready, configuration))
        if background:
            click.echo(f"end it with `remoter stop {ready['record']['name']}`")
        else:
            click.echo(
                "Ctrl-C interrupts what runs, twice ends the session; --background keeps it after you log out"
            )
    sys.stdout.flush()
    if not background:
        _launcher.wait_foreground(ready, tell)


@command()
@reaching(start=True)
@click.option("--prompt", help="The text of the prompt: `remoter`.")
@click.option("--timer", is_flag=True, help="Show how long each command took.")
def client(target: Target, prompt: str | None, timer: bool) -> int:
    """A prompt on a session.

    What you type runs there. Ctrl-C interrupts it, Ctrl-D leaves and the session goes on.

    \b
    Examples:
      remoter client --start
      remoter client big:55555
    """
    from . import _prompt

    def connect(start: bool) -> Session:
        target.start = target.start or start
        return target.connect()

    with _prompt.connect_or_offer(connect) as session:
        return _prompt.run(session, prompt=prompt or "remoter", timer=timer)


@command()
@click.argument("places", nargs=-1, metavar="[ADDRESS] FILE")
@click.option("-c", "codes", metavar="CODE", multiple=True, help="Run this text instead of a file.")
@reaching(address=False, start=True)
@click.option("--timer", is_flag=True, help="Echo each statement with the time it took.")
@click.option("--keep-going", is_flag=True, help="Go on after a statement that raised.")
@click.option("--detach", is_flag=True, help="Print the run's id and leave it running.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait no longer; it goes on.")
def batch(target: Target, places: tuple[str, ...], codes: tuple[str, ...], **how: Any) -> int:
    """Run a file, or standard input, in a session.

    Statement by statement; each value is shown, output comes as it is printed, and the first
    error ends it. One word without -c is the FILE; `-` is standard input.

    \b
    Exit code: 0; what the script gave to sys.exit(); 1 it raised; 2 usage;
    124 timed out; 130 interrupted; 255 no connection, or it was lost.

    \b
    Examples:
      remoter batch analysis.py
      remoter batch big:55555 -c "import os; os.cpu_count()"
    """
    from . import _batch

    if len(codes) > 1:
        raise Usage("`-c` is given twice", "one text with several lines, or a file: `remoter batch FILE`")
    code = codes[0] if codes else None
    if len(places) > (2 if code is None else 1):
        raise Usage(f"`{places[-1]}` is one word too many", "`remoter batch [ADDRESS] FILE`")
    target.address = places[0] if len(places) == 2 or (places and code is not None) else None
    file = places[-1] if places and code is None else "-"
    if code is None and file == "-" and sys.stdin.isatty():
        raise Usage("there is nothing to run", "`remoter batch FILE`, or `remoter batch -c CODE`")
    answers = sys.stdin  # what the script asks with input()
    name = "<string>"
    if code is None and file == "-":
        code, name, answers = _batch.read_script(None), "<stdin>", None
    elif code is None:
        code, name = _batch.read_file(file, is_alone=len(places) == 1), file
    with target.connect() as session:
        return _batch.run_script(session, code, filename=name, answers=answers, **how)


# --- sessions --------------------------------------------------------------------------------


@command()
@json_option
def ls(as_json: bool = False) -> None:
    """List the sessions."""
    from . import _listing

    rows = _listing.sessions()
    if as_json:
        _print_json(rows)
    elif rows:
        click.echo("\n".join(_listing.table(rows)))
    else:
        click.echo("no session runs here")
        tell("hint: `remoter server` starts one, `remoter client --start` with a prompt on it")


@command()
@reaching()
@click.option("--all", "every", is_flag=True, help="All sessions on this machine.")
def stop(target: Target, every: bool) -> int:
    """End a session, also while it is busy."""
    if not every:
        _stop(target)
        return 0
    if target.address is not None:
        raise Usage("an address and `--all` exclude each other", "`remoter stop --all`")
    from ._config import records, restore_records
    from ._errors import RemoterError

    restore_records()
    here = [record for record in records() if record.is_here]
    if not here:
        click.echo("no session runs here")
    worst = 0
    for record in here:
        try:
            _stop(Target(record.name, not record.secure, None))
        except RemoterError as error:
            worst = max(worst, report(error, debug=False))
    return worst


def _stop(target: Target) -> None:
    from ._errors import ConnectError

    try:
        with target.connect(timeout=5.0, quiet=True) as session:
            name = session.info.name
            session.shutdown()
    except ConnectError:
        # A server that does not answer must not live for ever: its keeper can end it.
        ended = _end_by_keeper(target.address)
        if ended is None:
            raise
        name = ended
    click.echo(f"ended `{name}`")


def _end_by_keeper(address: str | None) -> str | None:
    """Have the keeper of that session on this machine end it; its name, or None if it has none."""
    import signal
    import time

    from ._config import is_keeper, records

    here = [record for record in records() if record.is_here and address in (None, record.name)]
    if len(here) != 1:
        return None
    record = here[0]
    if not is_keeper(record.pid, record.name):
        return None
    tell(f"`{record.name}` does not answer; ending it from outside, within 20 s")
    os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + 25
    while record.is_alive and time.monotonic() < deadline:
        time.sleep(0.05)
    return None if record.is_alive else record.name


@command()
@reaching()
def restart(target: Target) -> None:
    """Give a session a new interpreter.

    Its variables are gone, its log stays.
    """
    with target.connect() as session:
        session.restart()
        info = session.info
        click.echo(f"restarted `{info.name}`: Python {info.version}, pid {info.pid}")


@command()
@reaching()
def interrupt(target: Target) -> None:
    """Interrupt what runs in a session, whoever started it."""
    with target.connect() as session:
        info = session.info
        if info.busy:
            session.interrupt()
        click.echo(f"interrupted `{info.name}`" if info.busy else f"nothing runs in `{info.name}`")


@command()
@reaching()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("--since", type=int, default=0, metavar="N", help="Only what follows event number N.")
@json_option
def log(target: Target, follow: bool, since: int, as_json: bool) -> None:
    """Show what a session printed, for all clients.

    Also of a session that ended, for 7 days.

    \b
    Examples:
      remoter log | tail
      remoter log -f main
    """
    from . import _listing

    archive = _listing.archive(target.address)
    if archive is not None:
        for event in archive.events(since):
            click.echo(_listing.line(event, as_json))
        return
    from ._errors import LinkLostError

    with target.connect() as session:
        try:
            for event in _listing.events(session, since, follow):
                click.echo(_listing.line(event, as_json))
        except LinkLostError as error:
            if error.id != "ended":
                raise
            sys.stdout.flush()
            tell(error.message)  # that is what one follows it for


# --- setting up ------------------------------------------------------------------------------


@command()
@click.argument("address")
@click.option("--recvport", type=int, default=55556, help="Where clients connect: 55556.")
@click.option("--sendport", type=int, default=55555, help="The server's port if ADDRESS has none: 55555.")
@click.option("--listen", default="127.0.0.1", metavar="ADDRESS", help="Where to listen: 127.0.0.1.")
@click.option("--verbose", is_flag=True, help="Tell of each connection.")
def relay(address: str, **options: Any) -> None:
    """Pass connections on, unread, to a server.

    \b
    Example, on a machine that sees both sides:
      remoter relay node17:55555 --listen 0.0.0.0
    """
    from ._door import relay

    relay(address, **options)


@cli.group(invoke_without_command=True, options_metavar="", subcommand_metavar="[COMMAND ...]")
@json_option
@debug_option
@click.pass_context
def keys(ctx: click.Context, as_json: bool) -> None:
    """Show keys; authorize clients, trust servers.

    \b
    Examples:
      remoter keys                              my own, and those I know
      remoter keys authorize KEY ana@laptop     admit that client to my servers
      remoter keys trust KEY big                connect to that server
      remoter keys forget big
    """
    if ctx.invoked_subcommand is None:
        from . import _listing

        found = _listing.keys()
        if as_json:
            _print_json(found)
        else:
            click.echo("\n".join(_listing.key_lines(found)))


@keys.command()
@click.argument("key")
@click.argument("name")
@debug_option
def authorize(key: str, name: str) -> None:
    """Admit the client with that key to this user's servers."""
    from ._listing import authorize

    authorize(key, name)
    click.echo(f"`{name}` is admitted from now on; `remoter keys forget {name}` takes it back")


@keys.command()
@click.argument("key")
@click.argument("name")
@debug_option
def trust(key: str, name: str) -> None:
    """Trust the server with that key, under that name."""
    from ._listing import trust

    trust(key, name)
    click.echo(f"`{name}` is trusted from now on; `remoter keys forget {name}` takes it back")


@keys.command()
@click.argument("name")
@debug_option
def forget(name: str) -> None:
    """Forget a server or a client, by name or by key."""
    from ._listing import forget

    forget(name)
    click.echo(f"`{name}` is forgotten")


@command()
@reaching()
@json_option
def doctor(target: Target, as_json: bool) -> int:
    """Find out why a session cannot be reached.

    Name, port, door, key, version, login, round trip, terminal: what was seen, what to do.
    """
    from . import _doctor

    steps = _doctor.examine(target.address, _password(target.password_file), secure=target.secure)
    if as_json:
        found = list(steps)
        _print_json(found)
    else:
        found = []
        for step in steps:
            found.append(step)
            click.echo(as_typed(_doctor.shown(step)))
    return 255 if any(step["mark"] == "bad" for step in found) else 0


# --- what the commands share -----------------------------------------------------------------


def _password(file: str | None) -> str | None:
    """The password from the file or from the variable; never from the command line."""
    if file is None:
        return os.environ.get("REMOTER_PASSWORD") or None
    from ._config import read_password

    return read_password(file)


def _described(ready: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """A session that has just been started, for programs; no secret but a made-up password."""
    from ._launcher import whole_address

    record, worker = ready["record"], ready["worker"]
    return {
        "address": whole_address(record, configuration),
        **{key: record[key] for key in ("name", "host", "port", "journal", "server_public")},
        "listen": configuration["listen"],
        "password": configuration["password"] if configuration["made_up"] else None,
        "fingerprint": ready.get("fingerprint"),
        "pid": worker.get("pid"),
        "python": worker.get("python"),
        "version": worker.get("version"),
    }


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2, default=str))


# --- the one place where errors are printed ---------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. The one place where errors are printed.

    0 fine; a script's own code; 1 it raised, or another error of ours; 2 usage;
    124 timed out; 130 interrupted; 255 could not connect, or lost the link.
    """
    state = {"debug": bool(os.environ.get("REMOTER_DEBUG"))}
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        return _run(arguments, state)


def _run(arguments: Sequence[str] | None, state: dict[str, bool]) -> int:
    try:
        code = cli.main(args=arguments, prog_name="remoter", standalone_mode=False, obj=state)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (KeyboardInterrupt, click.Abort):
        tell("")
        return 130
    except BrokenPipeError:
        # Nobody reads our output any more (`| head`): end as quietly as other programs.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        return report(error, debug=state["debug"])
    return code if isinstance(code, int) else 0
