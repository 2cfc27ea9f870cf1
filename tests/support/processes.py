"""Processes that a test starts, and what they leave behind."""

import os
import subprocess
import sys
import time

# If a shell starts the tests in the background, they ignore SIGINT, and so would the processes that they start.
INTERRUPTIBLE = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = [sys.executable, "-c", f"{INTERRUPTIBLE}from crossent.cli import main; sys.exit(main())"]


def in_session(session):
    """Return the processes of a session, by their number, without zombies. A session has all groups of a command."""
    found = subprocess.run(["ps", "-eo", "pid=,sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = (line.split(None, 3) for line in found.splitlines())
    return {int(pid): command for pid, of, state, command in lines if of == str(session) and not state.startswith("Z")}


def wait_until(condition, seconds=120):
    """Wait until the condition is true, and return its value; fail if that takes too long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition is still false"
        time.sleep(0.2)
    return value


def start(command, folder, **variables):
    """Start a command in a new session, in a folder, with a folder `tmp` in it for temporary files."""
    (folder / "tmp").mkdir(exist_ok=True)
    # A compile cache of the tests would be used instead of the folder that the command makes.
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"TMPDIR": str(folder / "tmp"), **variables}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams)
