"""Starting a session: from the shell, or out of a process that becomes one or wants one for itself; in that process.

The session itself lives on in its keeper, its server and its worker (see `_keeper`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ._address import Address, check_port
from ._config import WINDOWS, host_name
from ._errors import AddressError, RemoterError
from ._keeper import launch, wait_for_end
from ._r import NO_LIBRARY
from ._r import find as find_r
from ._records import private_name
from ._words import make_password
from ._workers import worker_command

TWICE = 2.0
"""Seconds within which a second Ctrl-C on the server's terminal ends the session."""

R_ENGINES = ("auto", "embed", "pipe")
"""How R is run: as a library if that can be; as one; as a program at the end of pipes."""

MOST_WORDS = 2  # lines of an interpreter that did not start
LONGEST_WORDS = 300


def server(
    port: int | None = None,
    password: str | None = None,
    *,
    listen: str | Sequence[str] = "127.0.0.1",
    name: str | None = None,
    secure: bool = True,
    maxretry: int = 5,
    showmsg: bool = False,
    logfile: str | os.PathLike[str] | None = None,
    verbose: bool = False,
) -> None:
    """Serve this process and its `__main__`; blocks until it is stopped, then gives the process back.

    Args:
        port: 1024 to 65535; none: 55555, or a free one when that is taken; 0: a free one.
        password: what clients without a key must know; none: one is made up and printed.
        listen: the addresses to listen on; off loopback only what is named here.
        name: the session's name; none: `main`, or `main-2` and so on.
        secure: False admits anyone, unauthenticated; clients must ask for that too. Off loopback
            only with the environment variable REMOTER_FORCE_INSECURE=1.
        maxretry: wrong passwords that one connection may give.
        showmsg: log every command.
        logfile: append the log to this file as well.
        verbose: log who comes and goes, and all output, on this terminal.

    Raises:
        RemoterError: the session could not be started.
    """
    if WINDOWS:
        raise RemoterError("sessions cannot be served on Windows", hints="connect from it to one elsewhere")
    if threading.current_thread() is not threading.main_thread():
        raise RemoterError(
            "`remoter.server()` must be called in the main thread",
            cause="signals, and so interrupts, reach no other",
        )
    worker_id = os.urandom(8).hex()
    configuration = configure(
        port=port,
        password=password,
        listen=[listen] if isinstance(listen, str) else list(listen),
        name=name,
        secure=secure,
        maxretry=maxretry,
        showmsg=showmsg,
        logfile=logfile,
        verbose=verbose,
        live=os.getpid(),
        worker={"id": worker_id, "pid": os.getpid()},
    )
    ready = launch(configuration, attach_log=verbose or showmsg)
    ready["worker"] = {
        "version": sys.version.split()[0],
        "python": sys.executable,
        "pid": os.getpid(),
        "live": True,
    }
    print(banner(ready, configuration), flush=True)  # noqa: T201 - this is where the user looks

    from ._workers.python_worker import serve_live

    reason = serve_live(ready["run_directory"], worker_id)
    print(f"the session ended ({reason}); this process is yours again", flush=True)  # noqa: T201


def start_session(
    *,
    port: int | None = None,
    password: str | None = None,
    listen: Sequence[str] = ("127.0.0.1",),
    attach_log: bool = False,
    only_while: int | None = None,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Start a session of its own and wait until its interpreter answers.

    Args:
        port, password, listen: as in `server`.
        attach_log: write the log to our stderr.
        only_while: the pid of a process to which the session belongs: it ends with that, its name
            is one that is made up, and no list shows it.
        options: as in `configure`.

    Returns:
        What the server says of it (`record`, `worker`, `fingerprint`, `keeper_pid`), and its configuration.

    Raises:
        RemoterError: it could not be started.
    """
    if only_while is not None:
        options |= {"name": private_name(), "only_while": only_while}
    configuration = configure(port=port, password=password, listen=list(listen), **options)

    def first_worker(directory: str) -> dict[str, Any]:
        worker_id = os.urandom(8).hex()
        return {"id": worker_id, "command": worker_command(configuration, directory, worker_id)}

    try:
        return launch(configuration, attach_log=attach_log, first_worker=first_worker), configuration
    except RemoterError as error:
        if error.id in ("python", "r") and error.cause:
            error.cause = _end_of(error.cause)
        raise


def _end_of(cause: str) -> str:
    """How the interpreter ended, and the end of what it said: a program that is no Python complains of each line."""
    how, colon, said = cause.partition(": ")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if len(lines) <= MOST_WORDS:
        return cause
    return f"{how}{colon}... " + "; ".join(lines[-MOST_WORDS:])[-LONGEST_WORDS:]


def configure(
    *,
    port: int | None,
    password: str | None,
    listen: list[str],
    name: str | None = None,
    lang: str = "python",
    python: str | None = None,
    r: str | None = None,
    r_engine: str | None = None,
    logfile: str | os.PathLike[str] | None = None,
    files_root: str | os.PathLike[str] | None = None,
    secure: bool = True,
    force_insecure: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """All that the keeper and the server need to know, with every path resolved.

    Raises:
        RemoterError: something of it cannot be: no such R, a port that is none, ...
    """
    forced = force_insecure or os.environ.get("REMOTER_FORCE_INSECURE") == "1"
    if not secure and not forced:
        _check_near(listen)
    if port is not None and port != 0:
        port = check_port(port)
    if password is not None and not password:
        raise RemoterError("the password is empty", hints="leave it out: one is made up", id="password")
    return {
        "name": name,
        "port": port,
        "password": password or make_password(),
        "made_up": password is None,
        "listen": listen,
        "lang": lang,
        "python": python,
        **(_configure_r(r, r_engine) if lang == "r" else {}),
        "secure": secure,
        "files_root": _checked_root(files_root) if files_root else None,
        "logfile": _checked_log(logfile) if logfile else None,
        "cwd": str(Path.cwd()),
        "started": time.time(),
        **options,
    }


def _configure_r(r: str | None, r_engine: str | None) -> dict[str, str]:
    """Which R, and how it is run; found out here, so that whoever starts a session hears at once that there is none."""
    engine = r_engine or os.environ.get("REMOTER_R_ENGINE") or "auto"
    if engine not in R_ENGINES:
        raise RemoterError(
            f"there is no way to run R that is called `{engine}`",
            cause="the variable REMOTER_R_ENGINE says so" if not r_engine else None,
            hints=f"there are {', '.join(f'`{name}`' for name in R_ENGINES)}",
            id="usage",
        )
    found = find_r(r)
    if engine == "embed" and found.library is None:
        raise RemoterError(
            f"`{found.program}` cannot be embedded",
            cause=NO_LIBRARY,
            hints="`--r-engine pipe` runs it as a program; another R can be named with `--r`",
            id="r",
        )
    return {"r": found.program, "r_engine": engine}


def _check_near(listen: Sequence[str]) -> None:
    """Raises AddressError: a session that admits anyone would be open to other machines."""
    for address in listen:
        if not is_loopback(address):
            raise AddressError(
                f"a session that is not secure cannot listen on `{address}`",
                cause="whoever reaches that port could run anything here",
                hints=[
                    "leave `secure=False` out: keys and the password then protect it",
                    "or force it: `--force-insecure`, or the variable REMOTER_FORCE_INSECURE=1",
                ],
                id="insecure",
            )


def _checked_root(files_root: str | os.PathLike[str]) -> str:
    """The folder that clients' files are confined to. Raises RemoterError: it is none."""
    path = Path(files_root).expanduser().resolve()
    if not path.is_dir():
        raise RemoterError(
            f"`{files_root}` is no folder", hints="`--files-root` takes one that exists", id="path"
        )
    return str(path)


def _checked_log(logfile: str | os.PathLike[str]) -> str:
    """The path of the log, which can be written."""
    path = Path(logfile).expanduser().resolve()
    try:
        with path.open("ab"):
            return str(path)
    except OSError as error:
        raise RemoterError(f"cannot write the log `{path}`", cause=error.strerror, id="file") from None


def whole_address(record: dict[str, Any], configuration: dict[str, Any]) -> str:
    """What a client can type, with the server's key as a pin: `remoter://HOST:PORT/#KEY`."""
    host = configuration["listen"][0].strip("[]")
    if host in ("", "*", "::", "0.0.0.0"):  # noqa: S104 - compared, not bound
        host = host_name()
    key = record["server_public"] if configuration.get("secure", True) else None
    return str(Address("tcp", host=host, port=record["port"], key=key))


def banner(ready: dict[str, Any], configuration: dict[str, Any]) -> str:
    """What a person should know of a session that has just been started."""
    record, worker = ready["record"], ready["worker"]
    name, port = record["name"], record["port"]
    language = str(configuration.get("lang") or "python").capitalize()
    program = f"{language} {worker.get('version')} ({configuration.get('r') or worker.get('python')})"
    lines = [f"session `{name}`: {program}, pid {worker.get('pid')}"]
    if worker.get("runner") == "pipe" and configuration.get("r_engine") == "auto":
        lines.append("R is run as a program here, not as a library: `remoter doctor` says more")
    addresses = ", ".join(f"[{a}]:{port}" if ":" in a else f"{a}:{port}" for a in configuration["listen"])
    asked = configuration.get("port")
    note = " (55555 is taken)" if asked is None and port != 55555 else ""
    is_near = all(is_loopback(address) for address in configuration["listen"])
    if is_near:
        lines.append(f"listening on {addresses}{note}, this machine only; here: remoter client {name}")
        there = f"remoter client ssh://{host_name()}/{name}"
    else:
        lines.append(f"listening on {addresses}{note}; here: remoter client {name}")
        there = f"remoter client {host_name()}:{port}"
    lines.append(f"from another machine: {there}")
    if configuration.get("secure", True) and not is_near:
        lines.append(f"with its key as a pin: {whole_address(record, configuration)}")
    if configuration.get("secure", True):
        secret = configuration["password"] if configuration["made_up"] else "the one you gave"
        lines.append(f"password: {secret}   fingerprint: {ready['fingerprint']}")
    else:
        lines.append("WARNING: not secure: whoever reaches the port can run anything here")
    if worker.get("live"):
        lines.append("Ctrl-C while nothing runs ends it and gives this process back")
    return "\n".join(lines)


def described(ready: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """A session that has just been started, for programs; no secret but a made-up password."""
    record, worker = ready["record"], ready["worker"]
    return {
        "address": whole_address(record, configuration),
        **{key: record[key] for key in ("name", "host", "port", "journal", "server_public")},
        "listen": configuration["listen"],
        "password": configuration["password"] if configuration["made_up"] else None,
        "fingerprint": ready.get("fingerprint"),
        "pid": worker.get("pid"),
        "lang": configuration.get("lang") or "python",
        "python": configuration.get("r") or worker.get("python"),
        "version": worker.get("version"),
    }


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def wait_foreground(
    ready: dict[str, Any], say: Callable[[str], None], show_banner: Callable[[], None]
) -> None:
    """Wait in the terminal until the session ends; relay what the terminal says.

    Ctrl-C interrupts what runs, twice within 2 s it ends the session; SIGTERM ends it; a
    terminal that is closed (SIGHUP) leaves it running. All that holds once the banner is shown.
    """
    keeper_pid, last = ready["keeper_pid"], 0.0
    begin = "\n" if sys.stderr.isatty() else ""  # the terminal has shown `^C`

    def relay(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper_pid, number)

    def interrupt(*_: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < TWICE:
            say(f"{begin}ending the session")
            relay(signal.SIGTERM)
        else:
            say(f"{begin}Ctrl-C again within 2 s ends the session")
            relay(signal.SIGINT)
        last = now

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, lambda *_: relay(signal.SIGTERM))
    signal.signal(signal.SIGHUP, lambda *_: os._exit(0))
    show_banner()
    wait_for_end(ready["run_directory"])
