"""Run the command, for `crossent` and `python -m crossent`. Ctrl-C ends it with one line, even during an import."""

import signal
import sys


def main() -> int:
    """Run the command and return its exit status."""
    try:
        from crossent.cli import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("crossent: interrupted\n")
        return 128 + signal.SIGINT
    finally:
        # After a KeyboardInterrupt within an exec(), for example in the import of a named tuple, `python -m` loses the
        # exit status. Another exec() prevents the loss.
        exec("")


if __name__ == "__main__":
    sys.exit(main())
