"""Run the command, also by `python -m crossent`. Ctrl-C ends the command with one line, even during an import."""

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
        # If a KeyboardInterrupt has left an exec() of a text, as in the import of a named tuple, `python -m` loses the
        # exit status. Another exec() prevents this.
        exec("")


if __name__ == "__main__":
    sys.exit(main())
