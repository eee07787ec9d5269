"""The command `remoter`, also as `python -m remoter`; on either machine, in the process that the shell starts."""

import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    from ._cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
