"""Run the command `crossent` or `python -m crossent`. After Ctrl-C it prints one line, even during an import."""

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
        # After a KeyboardInterrupt inside exec() or eval(), which for example namedtuple() calls, `python -m` loses the
        # exit status. Another exec() prevents the loss.
        exec("")


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is a KeyboardInterrupt, or whether a KeyboardInterrupt caused the exception.

    While a class is created, Python 3.11 can replace an exception by a RuntimeError, whose cause is the exception.
    """
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__))


if __name__ == "__main__":
    sys.exit(main())
