"""The command line: parses, calls, prints; on either machine, in the process that the shell starts.

Only click is imported at the top, so that `remoter --help` is quick: each command imports
what it needs. Errors of all commands end in `main()`, the one place that prints them. It is long
because the commands are to be seen side by side, with their options and help.
"""

from __future__ import annotations

import os
import sys
import warnings

import click

from ._usage import (
    AddressOrCommand,
    Group,
    Target,
    Usage,
    WithKey,
    as_typed,
    insecure_option,
    only_through_ssh,
    password_option,
    prelude_option,
    r_engine_option,
    reaching,
    read_password,
    report,
    show_warning,
    tell,
)

TYPE_CHECKING = False  # what `typing` has, without the import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ._client import Session
    from ._saved import Saved

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
    """Control a remote Python or R session from your local one."""
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


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


# --- everyday --------------------------------------------------------------------------------


@command()
@click.option(
    "--lang",
    type=click.Choice(["python", "r"]),
    default="python",
    envvar="REMOTER_LANG",
    help="The language of the session: python.",
)
@click.option(
    "--python",
    metavar="PATH",
    help="Its interpreter: any Python >= 3.8, remoter need not be in it. With R: what R is loaded into.",
)
@click.option("--r", metavar="PATH", help="Its R; REMOTER_R, or that on PATH, if left out.")
@r_engine_option
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
@click.option(
    "--files-root", metavar="DIR", type=click.Path(file_okay=False), help="Files cross to and from here only."
)
@json_option
def server(
    port: int | None,
    listen: tuple[str, ...],
    password_file: str | None,
    background: bool,
    insecure: bool,
    as_json: bool,
    lang: str,
    **options: Any,
) -> None:
    """Start a session on this machine.

    It goes on until it is stopped: clients come, leave, and come back.

    \b
    Examples:
      remoter server
      remoter server --background --name train --python ./env/bin/python
      remoter server --listen 0.0.0.0 --port 0
      remoter server --lang r
    """
    from . import _launcher

    _check_language(lang, **options)
    password = read_password(password_file)
    os.environ.pop("REMOTER_PASSWORD", None)  # the session's own code must not find it
    ready, configuration = _launcher.start_session(
        port=port,
        password=password,
        listen=list(listen) or ["127.0.0.1"],
        secure=not insecure,
        lang=lang,
        attach_log=not background and (options["verbose"] or options["showmsg"]),
        **options,
    )

    def show_banner() -> None:
        if as_json:
            _print_json(_launcher.described(ready, configuration))
        else:
            click.echo(_launcher.banner(ready, configuration))
            click.echo(
                f"end it with `remoter stop {ready['record']['name']}`"
                if background
                else "Ctrl-C interrupts what runs, twice ends the session; --background keeps it after you log out"
            )
        sys.stdout.flush()

    if background:
        show_banner()
    else:
        _launcher.wait_foreground(ready, tell, show_banner)


def _check_language(lang: str, *, r: str | None, r_engine: str | None, runner: str, **_: Any) -> None:
    """Refuse options of the other language."""
    if lang == "r" and runner != "auto":
        raise Usage("`--runner` is for Python sessions", "leave it out, or `--lang r`")
    for option, value in [("--r", r), ("--r-engine", r_engine)]:
        if lang != "r" and value:
            raise Usage(f"`{option}` is for R sessions", "add `--lang r`")


@command()
@reaching(start=True)
@click.option("--save", metavar="NAME", help="Give the address a name: `remoter client NAME`.")
@click.option("--prompt", help="The text of the prompt: `remoter`.")
@click.option("--timer", is_flag=True, help="Show how long each command took.")
def client(target: Target, save: str | None, prompt: str | None, timer: bool) -> int:
    """A prompt on a session.

    What you type runs there. Ctrl-C interrupts it, Ctrl-D leaves and the session goes on.

    \b
    ADDRESS is
      ssh://[USER@]HOST[:PORT][/NAME]
                                on a machine that ssh reaches; started if needed
      NAME, or nothing          on this machine; or what was saved as NAME
      HOST:PORT                 what a server printed, where others may reach it

    \b
    Examples:
      remoter client ssh://ana@big --save big
      remoter client big
      remoter client --start
    """
    if save is not None:
        target.check_free(save)

    def connect(start: bool) -> Session:
        target.start = target.start or start or None
        return target.connect()

    may_offer = target.start is None
    with target:
        from . import _prompt

        session = _prompt.connect_or_offer(connect) if may_offer else target.connect()
    with session:
        if save is not None:
            target.save(save, session)
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
      remoter batch --start job.R
      remoter batch ssh://big -c "import os; os.cpu_count()"
    """
    if len(codes) > 1:
        raise Usage("`-c` is given twice", "one text with several lines, or a file: `remoter batch FILE`")
    code = codes[0] if codes else None
    if len(places) > (2 if code is None else 1):
        raise Usage(f"`{places[-1]}` is one word too many", "`remoter batch [ADDRESS] FILE`")
    target.address = places[0] if len(places) == 2 or (places and code is not None) else None
    file = places[-1] if places and code is None else "-"
    if code is None and file == "-" and sys.stdin.isatty():
        raise Usage("there is nothing to run", "`remoter batch FILE`, or `remoter batch -c CODE`")
    target.look_at(file)
    if file != "-" and not os.access(file, os.R_OK):
        from ._batch import read_file

        read_file(file, is_alone=len(places) == 1)  # says what is wrong, before anything is started
    with target:
        from . import _batch

        answers = sys.stdin  # what the script asks with input()
        name = "<string>"
        if code is None and file == "-":
            code, name, answers = _batch.read_script(None), "<stdin>", None
        elif code is None:
            code, name = _batch.read_file(file, is_alone=len(places) == 1), file
        session = target.connect()
    with session:
        return _batch.run_script(session, code, filename=name, answers=answers, **how)


@command()
@click.argument("words", nargs=-1, metavar="SRC... DST")
@password_option
@insecure_option
@prelude_option
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.option("--update", is_flag=True, help="Replace those that differ in size or time; skip the others.")
@click.option("--no-resume", is_flag=True, help="Begin anew, where part of a file is there from last time.")
@click.option(
    "--symlinks", type=click.Choice(["skip", "keep"]), default="skip", help="Links in folders: skip."
)
@click.option("--compress/--no-compress", default=None, help="By default only where the network is slow.")
@click.option("--quiet", is_flag=True, help="No bar, and no word when all is well.")
@click.option("-r", "-R", "--recursive", is_flag=True, hidden=True, expose_value=False)
@json_option
def cp(
    words: tuple[str, ...],
    password_file: str | None,
    insecure: bool,
    prelude: str | None,
    no_resume: bool,
    quiet: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Copy files and folders, to or from a session.

    `NAME:PATH` is a path in a session, or on what was saved as NAME; `NAME:` is its working
    directory. Folders need no option; `-` is standard input or output. What was cut off goes on
    where it was. Standard input is read to its end, into a temporary file, before it crosses.

    \b
    Exit code: 0; 1 something did not cross; 2 usage; 130 interrupted;
    255 no connection, or it was lost.

    \b
    Examples:
      remoter cp data.csv big:
      remoter cp 'big:results/*.csv' results
      remoter cp ssh://ana@big/main:model.pt .
      remoter cp big:notes.txt - | less
    """
    from . import _cp
    from ._copy import Options

    order = _cp.find_order(words, is_stdout_free=not as_json)

    def reach(address: str) -> Target:
        target = Target(address or None, insecure, password_file, prelude=prelude)
        target.check()
        return target

    code, done = _cp.copy(order, reach, Options(resume=not no_resume, **how), quiet=quiet)
    if as_json:
        _print_json(done)
    return code


# --- sessions --------------------------------------------------------------------------------


@command()
@click.argument("address", required=False)
@prelude_option
@json_option
def ls(address: str | None = None, prelude: str | None = None, as_json: bool = False) -> None:
    """List the sessions, here or on another machine.

    In a home that several machines share, also those of the others.

    \b
    Examples:
      remoter ls
      remoter ls ssh://ana@big
    """
    from . import _listing

    if prelude:
        _ssh_only(address, "--prelude")
    rows = _listing.sessions() if address is None else _listing.sessions_at(address, prelude)
    if as_json:
        _print_json(_listing.plain(rows))
    elif rows:
        click.echo("\n".join(_listing.table(rows)))
        for row in rows:
            if row.state == "elsewhere" and row.reach:
                tell(f"hint: `remoter client {row.reach}` reaches `{row.name}` on {row.host}")
    elif address is None:
        click.echo("no session runs here")
        tell("hint: `remoter client ssh://HOST` starts one on that machine, `remoter server` one here")
    else:
        click.echo(f"no session runs at `{address}`")
        tell(f"hint: `remoter client {address}` starts one")


@command()
@reaching()
@click.option("--all", "every", is_flag=True, help="All sessions on the machine.")
def stop(target: Target, every: bool) -> int:
    """End a session, also while it is busy.

    \b
    Examples:
      remoter stop
      remoter stop ssh://big/main
      remoter stop ssh://big --all
    """
    from . import _ending

    if not every:
        _ending.end(target)
        return 0
    if target.address is not None:
        if target.there is None or target.there.address.name:
            raise Usage("the name of a session and `--all` exclude each other", "`remoter stop --all`")
        from ._there import print_there

        print_there(target.there, ["stop", "--all"], click.echo)
        return 0
    return _ending.end_all()


@command()
@reaching()
def restart(target: Target) -> None:
    """Give a session a new interpreter.

    Its variables are gone, its log stays.

    \b
    Examples:
      remoter restart
      remoter restart ssh://big/main
    """
    with target.connect() as session:
        session.restart()
        info = session.info
        click.echo(f"restarted `{info.name}`: {info.lang.capitalize()} {info.version}, pid {info.pid}")


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
@click.option("--ended", is_flag=True, hidden=True, help="Only of a session that has ended here.")
@json_option
def log(target: Target, follow: bool, since: int, ended: bool, as_json: bool) -> None:
    """Show what a session printed, for all clients.

    Also of a session that ended, for 7 days.

    \b
    Examples:
      remoter log | tail
      remoter log -f main
    """
    from . import _listing

    archive = None if target.there else _listing.archive(target.address)
    if archive is not None:
        for event in archive.events(since):
            if as_json or not event.printed:  # its text is in the log already
                click.echo(_listing.line(event, as_json))
        return
    from ._errors import ConnectError, LinkLostError

    if ended:
        named = f"session `{target.address}`" if target.address else "session"
        raise ConnectError(f"no {named} ended here within the last 7 days", id="no-session")

    try:
        with target.connect() as session:
            for event in _listing.events(session, since, follow):
                if as_json or not event.printed:
                    click.echo(_listing.line(event, as_json))
    except LinkLostError as error:
        if error.id != "ended":
            raise
        sys.stdout.flush()
        tell(error.message)  # that is what one follows it for
    except ConnectError as error:
        if target.there is None or error.id != "no-session":
            raise
        from ._there import log_there

        click.echo(log_there(target.there, since, as_json), nl=False)


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


@command(hidden=True)
@click.argument("name")
def bridge(name: str) -> int:
    """Join standard input and output to a session's socket, for programs.

    \b
    Where sshd forbids forwarding, `remoter client ssh://big/main` comes in by
      ssh big remoter bridge main
    """
    if sys.stdin.isatty():
        raise Usage(
            "`remoter bridge` is for programs: its standard input is to be a pipe",
            f"`remoter client {name}` is for people",
        )
    from . import _bridge
    from ._records import record_here

    record = record_here(name)
    if record is None:
        from ._errors import ConnectError

        raise ConnectError(
            f"no session `{name}` runs on this machine",
            hints="`remoter ls` lists the sessions",
            id="no-session",
        )
    return _bridge.run(str(record.door_socket))


@cli.group(
    cls=AddressOrCommand,
    invoke_without_command=True,
    options_metavar="",
    subcommand_metavar="[COMMAND ... | ssh://HOST]",
)
@prelude_option
@json_option
@debug_option
@click.pass_context
def keys(ctx: click.Context, as_json: bool, prelude: str | None) -> None:
    """Show keys and saved names; authorize clients, trust servers.

    \b
    Examples:
      remoter keys                              my own, and those I know
      remoter keys ssh://big                    mine on that machine
      remoter keys authorize KEY ana@laptop     admit that client to my servers
      remoter keys trust KEY big                connect to that server
      remoter keys trust ssh://big              the same, its key read over ssh
      remoter keys forget big                   a key, or a saved name
    """
    address = ctx.meta.get(AddressOrCommand.ADDRESS)
    if ctx.invoked_subcommand is not None:
        if address is not None:
            raise Usage(f"`{address}` stands before `{ctx.invoked_subcommand}`", "`remoter keys --help`")
        if ctx.get_parameter_source("prelude") is click.core.ParameterSource.COMMANDLINE:
            raise Usage(f"`--prelude` stands before `{ctx.invoked_subcommand}`", "`remoter keys --help`")
        return
    from . import _known

    if address is None:
        if prelude:
            raise only_through_ssh("--prelude", None)
        found = _known.keys()
    else:
        found = _known.keys_there(_ssh_only(address, prelude=prelude))
    if as_json:
        _print_json(found)
    else:
        click.echo("\n".join(_known.key_lines(found)))


def _ssh_only(text: str | None, option: str = "", *, prelude: str | None = None) -> Saved:
    """What the address leads to, which has to be through ssh; for the option, if it is that which asks for it."""
    from ._saved import find_ssh

    there = find_ssh(text, prelude=prelude)
    if there is None:
        if option:
            raise only_through_ssh(option, text)
        raise Usage(f"`{text}` is nothing that ssh reaches", "write `ssh://HOST`")
    return there


@keys.command(cls=WithKey)
@click.argument("key")
@click.argument("name")
@debug_option
def authorize(key: str, name: str) -> None:
    """Admit the client with that key to this user's servers."""
    from ._known import authorize

    authorize(key, name)
    click.echo(f"`{name}` is admitted from now on; `remoter keys forget {name}` takes it back")


@keys.command(cls=WithKey)
@click.argument("key", metavar="KEY|ssh://HOST")
@click.argument("name", required=False)
@prelude_option
@debug_option
def trust(key: str, name: str | None, prelude: str | None) -> None:
    """Trust the server with that key, under that name.

    Of an ssh address the key is read there; the name is the host's if you give none.
    """
    from . import _known

    if "://" in key:
        there = _ssh_only(key, prelude=prelude)
        key, name = _known.server_key_there(there), name or there.address.host
    elif prelude:
        raise only_through_ssh("--prelude", None)
    elif name is None:
        raise Usage("there is no name for that server", "`remoter keys trust KEY NAME`")
    _known.trust(key, name)
    click.echo(f"`{name}` is trusted from now on; `remoter keys forget {name}` takes it back")


@keys.command(cls=WithKey)
@click.argument("name")
@debug_option
def forget(name: str) -> None:
    """Forget a key, by it or its name, or a saved name."""
    from ._known import forget

    forget(name)
    click.echo(f"`{name}` is forgotten")


@command()
@reaching()
@json_option
def doctor(target: Target, as_json: bool) -> int:
    """Find out why a session cannot be reached.

    Step by step from here to there: what was seen, what to do. Through ssh from the ssh program
    to the rate; otherwise name, port, door, key, version, login, round trip.

    \b
    Examples:
      remoter doctor ssh://ana@big
      remoter doctor big:55555
    """
    from . import _doctor

    meant = (target.there if target.prelude else None) or target.address
    password = read_password(target.password_file)
    # It looks for the address with `find_ssh`, which takes what was found, too.
    steps = _doctor.examine(meant, password, secure=target.secure)
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


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2, default=str))


# --- the one place where errors are printed ---------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. The one place where errors are printed.

    0 fine; a script's own code; 1 it raised, or another error of ours; 2 usage;
    124 timed out; 130 interrupted; 143 ended by SIGTERM; 255 could not connect, or lost the link.
    """
    words = sys.argv[1:] if arguments is None else arguments
    state = {"debug": bool(os.environ.get("REMOTER_DEBUG"))}
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        if next((word for word in words if not word.startswith("-")), "") not in ENDED_OTHERWISE:
            _end_in_order()
        return _run(arguments, state)


ENDED_OTHERWISE = ("server", "bridge")
"""The commands that have their own way with SIGTERM, or keep nothing that must be given back."""


def _end_in_order() -> None:
    """Let SIGTERM end us like an exception, so that what is to be done at the end is done; a second one at once."""
    import signal
    import threading

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)


def _run(arguments: Sequence[str] | None, state: dict[str, bool]) -> int:
    try:
        code = cli.main(args=arguments, prog_name="remoter", standalone_mode=False, obj=state)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except (KeyboardInterrupt, click.Abort):
        tell("")
        return 130
    except BrokenPipeError:
        # Nobody reads our output any more (`| head`): end as quietly as other programs.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # in the middle of an import, for one
            tell("")
            return 130
        return report(error, debug=state["debug"])
    return code if isinstance(code, int) else 0
