"""A session's unix socket, on a pipe: standard input goes to it, what it says to standard output.

On the session's machine, in a process of its own that sshd starts (srun or `docker exec` could as well):
the way in where sshd forbids forwarding. Run as `python -I -S _bridge.py SOCKET` or `remoter bridge NAME`.
The bytes are CURVE's; nobody can read them here, and whoever is not admitted to the session gets nowhere.

Each direction has a blocking thread, and its end is passed on for itself. The bridge ends when one side is
wholly gone, the server or whoever holds our pipes. It says nothing on standard output, and one line on
standard error if it cannot do its work.

Exit codes: 0 one side ended; 1 nobody listens on the socket; 2 the command line; 130 interrupted.

Standard library only, Python 3.8 and later, and quick: a client waits for it.
"""

# Not `socket`, `threading` and `contextlib`: they would double the time that our start takes.
# ruff: noqa: SIM105

import _socket
import _thread
import os
import select
import stat
import sys

BLOCK = 256 * 1024
IN, OUT = 0, 1


def run(path: str) -> int:
    """Join standard input and output to the socket until one side is gone. Returns the exit code."""
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        server.connect(path)
    except OSError as error:
        return _complain(f"cannot connect to `{path}`: {error.strerror or error}", 1)
    for descriptor in (IN, OUT):
        os.set_blocking(descriptor, True)  # it may be shared with somebody who had it otherwise
    _thread.start_new_thread(_carry_in, (server,))
    _carry_out(server)
    return 0


def _carry_in(server: _socket.socket) -> None:
    """Standard input to the server. When whoever listens to us is gone, the other direction ends too."""
    block = memoryview(bytearray(BLOCK))
    try:
        while True:
            size = os.readv(IN, [block])
            if not size:
                break
            server.sendall(block[:size])
        server.shutdown(_socket.SHUT_WR)
        _wait_until_gone(OUT)
        server.shutdown(_socket.SHUT_RDWR)
    except OSError:
        return  # the server is gone: `_carry_out` sees that too, after its last words


def _carry_out(server: _socket.socket) -> None:
    """What the server says to standard output, until it is gone or nobody listens any more."""
    block = memoryview(bytearray(BLOCK))
    while True:
        try:
            size = server.recv_into(block)
        except OSError:
            size = 0
        if not size:
            break
        try:
            done = os.write(OUT, block[:size])
            while done < size:
                done += os.write(OUT, block[done:size])
        except OSError:
            return
    _end_output()
    _wait_until_gone(server.fileno())


def _end_output() -> None:
    """Let whoever reads our standard output see its end, while we may still read."""
    if stat.S_ISSOCK(os.fstat(OUT).st_mode):
        output = _socket.socket(fileno=os.dup(OUT))
        try:
            output.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # it is gone
        output.close()
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, OUT)
    os.close(nowhere)


def _wait_until_gone(descriptor: int) -> None:
    """Wait until nobody is at the other end: neither writes to us nor reads what we write."""
    poll = select.poll()
    poll.register(descriptor, 0)  # that is told unasked
    poll.poll()


def _complain(text: str, code: int) -> int:
    os.write(2, f"remoter bridge: {text}\n".encode(errors="replace"))
    return code


def main() -> int:
    """The program. Returns the exit code."""
    if len(sys.argv) != 2:
        return _complain("it takes one argument, the path of a session's socket", 2)
    if os.isatty(IN):
        return _complain("its standard input is to be a program, not a terminal", 2)
    try:
        return run(sys.argv[1])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
