"""Run one attack as a user would: run the command in its own folder, and look for processes and files left behind."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from support.attacks.attack import Attack

TIMEOUT, START = 5.0, 12.0  # seconds for a case, and for the start and the end of the command on a slow machine
LONGEST = 60.0  # seconds after which the runner ends the command
MOST_PRINTED = 10**5  # the most characters that a report on a few cases may have
LEAST_FREE = 3 * 2**20  # kB of the machine's memory, below which the runner ends the command
SETTLED = 3.0  # seconds after the end of the command, within which its processes must end
SUMMARY = re.compile(r"(STOPPED EARLY|INTERRUPTED) after |(PASSED|FAILED|NOT PROVEN|NOTHING RAN): ")
WHOLE = ("--level", "quick", "--dtype", "float32", "--jobs", "1", "--no-cache")


@dataclass
class Ran:
    """The result of running an attack.

    Attributes:
        attack: the attack.
        status: the exit status of the command; None if the command did not end.
        seconds: the duration.
        complete: whether the output ends with the summary of a report.
        traceback: whether the output has a traceback.
        last: the last line of the output.
        printed: the number of characters of the output.
        error: the error of an attack that failed to make its reply; otherwise "".
        processes: the names of the processes that are left.
        files: the names of the files that are left in the temporary folder.
    """

    attack: Attack
    status: int | None
    seconds: float
    complete: bool
    traceback: bool
    last: str
    printed: int
    error: str = ""
    processes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def limit(self) -> float:
        """The seconds that the run may take.

        Their number is the sum of START, the delay of the signal, and two time limits for each case and for loading.
        """
        given = [float(value) for name, value in itertools.pairwise(self.attack.options) if name == "--timeout"]
        return START + self.attack.after + 2 * (len(self.attack.cases) + 1) * (given or [TIMEOUT])[0]

    @property
    def problems(self) -> list[str]:
        """The effects of a successful attack, in words; empty if the attack fails."""
        found = [f"no attack: {self.error}"] if self.error else []
        if self.status is None:
            found.append("STALLS")
        elif self.status not in self.attack.statuses:
            found.append(f"status {self.status}")
        elif self.seconds > self.limit:
            found.append(f"slow: more than {self.limit:g} s")
        if self.traceback:
            found.append("traceback")
        if self.status in (0, 1, 3) and not self.complete:
            found.append("no report")
        if self.printed > MOST_PRINTED:
            found.append(f"prints {self.printed / 1e6:.1f} MB")
        if self.processes:
            found.append(f"leaves {len(self.processes)} processes")
        if self.files:
            found.append(f"leaves {', '.join(self.files)[:60]}")
        return found


def run(attack: Attack, longest: float = LONGEST, user: int | None = None, *, namespaces: bool = True) -> Ran:
    """Run an attack, and return the result.

    Args:
        attack: the attack.
        longest: the seconds after which the runner ends the command.
        user: the number of a user without privileges who runs the command; by default, the current user.
        namespaces: whether the command may create namespaces. Most containers forbid namespaces. Only root can pass
            False.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell ignore SIGINT
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: an orphan becomes a child of this process
    others = set(_children())  # processes that earlier tests have started
    folder = Path(tempfile.mkdtemp(prefix="attack"))
    temporary = folder / "tmp"
    temporary.mkdir()
    (folder / "mine.py").write_text(attack.source.replace("RUNNER", str(os.getpid())), encoding="utf-8")
    cases = [word for case in attack.cases for word in ("--case", case)]
    options = ("--timeout", f"{TIMEOUT:g}", *attack.options)
    command = [sys.executable, "-m", "crossent", "check", "mine.py:loss", *WHOLE, *cases, *options]
    if user is not None:
        for path in (folder, temporary, folder / "mine.py"):
            os.chown(path, user, user)
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--", *command]
    ready, release = os.pipe()
    if not namespaces:
        # Only the root of the new user namespace may set the limit. The first bash is root after its user is mapped,
        # and then starts the second bash.
        limit = "echo 0 > /proc/sys/user/max_user_namespaces || exit 9"
        forbid = f'{limit}; exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin -- "$@"'
        enter = f"read _ <&{ready}; exec bash -c '{forbid}' bash \"$@\""
        command = ["unshare", "--user", "bash", "-c", enter, "bash", *command]
    package = Path(__file__).parents[3]  # the attack runs in a folder of its own
    environment = {**os.environ, "TMPDIR": str(temporary), "HOME": str(folder), "PYTHONPATH": str(package)}
    started = time.monotonic()
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            pass_fds=[] if namespaces else [ready],
        )
    if not namespaces:
        while Path(f"/proc/{process.pid}/ns/user").readlink() == Path("/proc/self/ns/user").readlink():
            time.sleep(0.01)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536")
    os.write(release, b"\n")
    for descriptor in (ready, release):
        os.close(descriptor)
    status: int | None = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        if attack.signal:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(attack.after)
            with contextlib.suppress(ProcessLookupError):
                to = process.pid if attack.signal == signal.SIGKILL else -process.pid
                os.kill(to, attack.signal)
        status = _waited(process, started + longest)
    seconds = time.monotonic() - started
    left = [] if status is None else _left(others)
    _end_all(others)
    process.wait()
    text, errors = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
    lines = [line for line in text.splitlines() if line.strip()]
    if (status is not None and not lines) or status == 2:
        lines += errors.splitlines()[-1:]
    last = lines[-1].strip() if lines else ""
    files = sorted(path.name for path in temporary.iterdir())
    error = (folder / "error").read_text().splitlines()[-1:] if (folder / "error").exists() else [""]
    shutil.rmtree(folder, ignore_errors=True)
    header = "Traceback (most recent call last)"
    return Ran(
        attack,
        status,
        seconds,
        bool(SUMMARY.match(last)),
        header in errors or header in text,
        last[:150],
        len(text) + len(errors),
        error[0],
        left,
        files,
    )


def _waited(process: subprocess.Popen[bytes], until: float) -> int:
    """Wait for the command, and return its exit status.

    Raises:
        subprocess.TimeoutExpired: the time is over, or the machine has little memory left.
    """
    while True:
        try:
            return process.wait(0.2)
        except subprocess.TimeoutExpired:
            free = next(
                int(line.split()[1])
                for line in Path("/proc/meminfo").read_text().splitlines()
                if line.startswith("MemAvailable")
            )
            if time.monotonic() > until or free < LEAST_FREE:
                raise


def _children() -> dict[int, str]:
    """Return the running descendants of this process: their names by their process numbers."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text().rpartition(") ")
                state, parent = rest.split()[:2]
                if state != "Z":
                    parents[int(entry.name)], names[int(entry.name)] = int(parent), name.partition("(")[2]
    below: set[int] = set()
    more = {os.getpid()}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more} - below
        below |= more
    return {pid: names[pid] for pid in below}


def _left(others: Set[int]) -> list[str]:
    """Wait some seconds for the end of all descendants but `others`, and return the names of the running processes."""
    end = time.monotonic() + SETTLED
    while (left := {pid: name for pid, name in _children().items() if pid not in others}) and time.monotonic() < end:
        time.sleep(0.1)
    return sorted(left.values())


def _end_all(others: Set[int]) -> None:
    """Kill all descendants of this process but `others`, and wait for their end."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        left = _children().keys() - others
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.05)
