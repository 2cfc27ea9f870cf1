"""The command, also by `python -m crossent`: Ctrl-C ends it with one line, even while it imports what it needs."""

import signal
import sys


def main() -> int:
    """Run the command and return its exit status."""
    try:
        from crossent.cli import main as run

        return run()
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        sys.stderr.write("crossent: interrupted\n")
        return 128 + signal.SIGINT
    finally:
        # `python -m` forgets the exit status if a KeyboardInterrupt has left an exec() of a text, as in the import of
        # a named tuple. The next exec() makes it forget the exception instead.
        exec("")


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a KeyboardInterrupt is the cause. While a class is made, Python 3.11 turns any exception into another."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__))


if __name__ == "__main__":
    sys.exit(main())
