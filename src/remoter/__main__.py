"""The command `remoter`, also as `python -m remoter`; on either machine, in the process that the shell starts."""

import atexit
import contextlib
import os
import sys
import threading


def main() -> None:
    """Run the command line and end the process with its exit code."""
    from ._cli import main as run

    code = run()
    # To take the interpreter apart, module by module, would take longer than a command does over
    # a good network. All that wants to be done at the end is done; the rest goes with the process.
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
