"""Run the command `crossent` or `python -m crossent`. Ctrl-C prints one line, even during an import."""

import signal
import sys


def main() -> int:
    """Run the command and return its exit status. After Ctrl-C, print one line and return 130."""
    try:
        from crossent.cli import main as run

        return run()
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        sys.stderr.write("crossent: interrupted\n")
        return 128 + signal.SIGINT
    finally:
        # After a KeyboardInterrupt inside exec() or eval(), for example during namedtuple(), `python -m` drops the exit
        # status. Another exec() avoids this bug.
        exec("")


def script() -> int:
    """Run the command and return its exit status. From the end of the command on, ignore Ctrl-C.

    After the command, Python needs half a second to shut down torch. If Python did not ignore Ctrl-C during this time,
    Ctrl-C would print a traceback, or end Python without the exit status.
    """
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception, its cause, or a cause further back is a KeyboardInterrupt. False for None.

    If an exception is raised while a class is created, Python 3.11 can raise a RuntimeError instead. The exception is
    then the cause of the RuntimeError.
    """
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__))


if __name__ == "__main__":
    sys.exit(script())
