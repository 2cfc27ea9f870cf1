"""Run the command `crossent` or `python -m crossent`. Ctrl-C prints one line, even during an import."""

import signal
import sys
from contextlib import suppress


def main() -> int:
    """Run the command and return its exit status, which is 130 after Ctrl-C."""
    try:
        from crossent.cli import main as run

        return run()
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        with suppress(AttributeError, OSError):  # stderr may be closed, or on a full disk
            sys.stderr.write("crossent: interrupted\n")
        return 128 + signal.SIGINT
    finally:
        # After a KeyboardInterrupt inside exec() or eval(), for example during namedtuple(), `python -m` drops the exit
        # status. Another exec() avoids this bug.
        exec("")


def script() -> int:
    """Run the command and return its exit status. Ignore Ctrl-C while Python shuts down."""
    status = main()
    # Python takes half a second to shut down torch. Ctrl-C would then print a traceback or lose the exit status.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception or one of its causes is a KeyboardInterrupt."""
    # Python 3.11 can turn a Ctrl-C during the creation of a class into the cause of a RuntimeError.
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__))


if __name__ == "__main__":
    sys.exit(script())
