"""Run the command, for `crossent` and `python -m crossent`. Ctrl-C ends it with one line, even during an import."""

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
        # After a KeyboardInterrupt within an exec(), for example in the import of a named tuple, `python -m` loses the
        # exit status. Another exec() prevents the loss.
        exec("")


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a KeyboardInterrupt is the cause. While a class is made, Python 3.11 turns any exception into another."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__))


if __name__ == "__main__":
    sys.exit(main())
