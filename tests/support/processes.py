"""Start a command in a test, wait for it, and find the processes that it leaves behind."""

import os
import subprocess
import sys
import time

# If a shell starts the tests in the background, the tests and their processes ignore SIGINT. So set the handler again.
INTERRUPTIBLE = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = [sys.executable, "-c", f"{INTERRUPTIBLE}from crossent.cli import main; sys.exit(main())"]


def in_session(session):
    """Return the command lines of the processes in a session, by process number, without zombies.

    All process groups of a command are in one session.
    """
    found = subprocess.run(["ps", "-eo", "pid=,sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = (line.split(None, 3) for line in found.splitlines())
    return {int(pid): command for pid, of, state, command in lines if of == str(session) and not state.startswith("Z")}


def wait_until(condition, seconds=120):
    """Wait until `condition()` is true, and return its value. Fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition is still false"
        time.sleep(0.2)
    return value


def start(command, folder, **variables):
    """Start a command in a folder, as a new session, with the subfolder `tmp` for temporary files."""
    (folder / "tmp").mkdir(exist_ok=True)
    # With this variable, the command would use the compile cache of the tests, and make no folder of its own.
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"TMPDIR": str(folder / "tmp"), **variables}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams)
