"""Confinement: limits on a process that runs the user's loss function, so that this code cannot reach other processes.

On Linux, such a process cannot read or write the memory of the process that judges the results. With a PID
namespace, or from Linux 6.12 on, the process cannot signal a process that it has not started. When the process ends,
its children are killed. On an older Linux without a namespace, some children may survive.

On other systems, the only limit is that the processes of its process group are killed. SECURITY.md has a table of the
limits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import select
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Constants of linux/prctl.h, linux/sched.h, linux/capability.h, linux/landlock.h and linux/audit.h.
_SET_PDEATHSIG, _GET_DUMPABLE, _SET_DUMPABLE, _CAPBSET_DROP = 1, 3, 4, 24
_SET_CHILD_SUBREAPER, _SET_NO_NEW_PRIVS = 36, 38
_NEW_USER, _NEW_PID = 0x10000000, 0x20000000
_CAPABILITY_VERSION, _LAST_CAPABILITY = 0x20080522, 63
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446  # system calls, with these numbers on every processor
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2
_SET_SECCOMP, _SECCOMP_FILTER = 22, 2
_PRLIMIT = {"x86_64": (0xC000003E, 302), "aarch64": (0xC00000B7, 261)}  # the processor, and the number of `prlimit64`
# Root keeps these two capabilities, because the file of a subject may belong to another user.
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2
_SECONDS_TO_END = 5.0  # a killed process ends in milliseconds, but may take longer inside a system call of a driver


@contextmanager
def unreadable() -> Iterator[None]:
    """Keep other processes of this user from reading and writing this process's memory, until the `with` block ends.

    Processes that this process forks inside the block are protected too.
    """
    before = _prctl(_GET_DUMPABLE)
    _prctl(_SET_DUMPABLE, 0)
    try:
        yield
    finally:
        if before == 1:
            _prctl(_SET_DUMPABLE, 1)


def drop_privileges() -> None:
    """Give up the right to gain privileges later, and every capability except two, which let root open any file."""
    _prctl(_SET_NO_NEW_PRIVS, 1)  # as Landlock and seccomp require
    kept = {_DAC_OVERRIDE, _DAC_READ_SEARCH}
    for capability in set(range(_LAST_CAPABILITY + 1)) - kept:
        _prctl(_CAPBSET_DROP, capability)
    libc = _libc()
    if libc is None:
        return
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)  # two sets of 32-bit masks: effective, permitted, inheritable capabilities
    if libc.capget(header, data) == 0:
        now = struct.unpack("6I", data.raw)
        mask = sum(1 << capability for capability in kept)
        libc.capset(header, struct.pack("6I", now[0] & mask, now[1] & mask, 0, 0, 0, 0))


def scope_signals() -> bool:
    """Keep this process from sending signals to processes that it has not started; return whether this works.

    Call :func:`drop_privileges` first, as Landlock requires. The limit exists since Linux 6.12.
    """
    libc = _libc()
    if libc is None:
        return False
    rules = struct.pack("3Q", 0, 0, _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS)  # files, network, scopes
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, rules, len(rules), 0)
    if ruleset < 0:
        return False
    try:
        return bool(libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def keep_to_own_limits() -> bool:
    """Keep this process from reading and setting the resource limits of other processes; return whether this works.

    Call :func:`drop_privileges` first, as seccomp requires.
    """
    libc, known = _libc(), _PRLIMIT.get(platform.machine())
    if libc is None or known is None:
        return False
    processor, number = known
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    # Allow `prlimit64` for this process alone, and no call of another ABI, such as a 32-bit call. Each line has an
    # instruction, the numbers of lines to skip if a comparison is true and if it is false, and the operand.
    program = (
        (load, 0, 0, 4),  # the processor of the call
        (equal, 0, 6, processor),
        (load, 0, 0, 0),  # the number of the call
        (at_least, 4, 0, 0x40000000),  # calls of the x32 ABI have numbers from here on
        (equal, 0, 2, number),
        (load, 0, 0, 16),  # the first argument: the id of the process whose limits are meant, 0 for this process
        (equal, 0, 1, 0),
        (end, 0, 0, 0x7FFF0000),  # allow the call
        (end, 0, 0, 0x00050000 | errno.EPERM),  # refuse the call
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    program_struct = struct.pack("H6xP", len(program), ctypes.addressof(code))
    return bool(libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, program_struct, 0, 0) == 0)


def be_killed_first() -> None:
    """Make this process and its children the first that the system kills when memory runs out."""
    with suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def end_with_parent(by: int = signal.SIGKILL) -> None:
    """Have the system send the signal `by` to this process when its parent ends."""
    _prctl(_SET_PDEATHSIG, by)


class Confined:
    """A new process that runs a function, in a new PID namespace if the system allows one.

    The process ends when the function returns, when :meth:`end` is called, or when the calling process ends.

    Args:
        run: the function.
        kept: the file descriptors that stay open in the process, besides 0, 1 and 2.
    """

    def __init__(self, run: Callable[[], Any], kept: Collection[int] = ()) -> None:
        theirs, self._end = os.pipe()
        self._supervisor = os.fork()
        if self._supervisor == 0:
            with _exit_after():
                os.close(self._end)
                _supervise(run, kept, theirs)
        os.close(theirs)

    def end(self) -> None:
        """End the process and, as far as the system allows, all processes that it has started."""
        with suppress(OSError):
            os.write(self._end, b"x")
        os.close(self._end)
        until = time.monotonic() + _SECONDS_TO_END
        while not os.waitpid(self._supervisor, os.WNOHANG)[0]:
            if time.monotonic() > until:  # the supervisor itself was stopped
                os.kill(self._supervisor, signal.SIGKILL)
                os.waitpid(self._supervisor, 0)
                return
            time.sleep(0.001)


def _supervise(run: Callable[[], Any], kept: Collection[int], end: int) -> None:
    """Call `run` in a child process. Kill the child and its children when the pipe `end` has input or closes.

    If the child ends first, kill its children. The child keeps only the file descriptors 0 to 2 and `kept`.
    """
    os.setpgid(0, 0)  # so that Ctrl-C reaches the command alone
    _prctl(_SET_CHILD_SUBREAPER, 1)
    _prctl(_SET_PDEATHSIG, signal.SIGCONT)  # when the parent ends, continue even if a subject stopped this process
    with tempfile.TemporaryDirectory(prefix="crossent-", ignore_cleanup_errors=True) as folder:
        _new_namespaces()
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            with _exit_after():
                os.setpgid(0, 0)
                end_with_parent()
                os.close(told)
                os.read(ready, 1)  # wait until the supervisor is ready
                read_nothing()
                close_all_but({0, 1, 2, *kept})
                os.environ["TMPDIR"] = tempfile.tempdir = folder
                run()
        close_all_but({0, 1, 2, end, told})
        os.close(told)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while not select.select([end], [], [], 1.0)[0]:
            if os.waitpid(child, os.WNOHANG)[0]:
                break
        kill_group(child)
        _kill_descendants()


def read_nothing() -> None:
    """Give this process an empty stdin, so that a subject cannot read the input of the command."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)


def kill_group(process: int) -> None:
    """Kill the process with this id, and its process group."""
    if process < 2:  # the id of init, or of many processes
        return
    for kill in (os.killpg, os.kill):  # also the process alone, which may not have made its group yet
        with suppress(ProcessLookupError, PermissionError):
            kill(process, signal.SIGKILL)


def close_all_but(kept: Collection[int]) -> None:
    """Close every file descriptor of this process that is not in `kept`."""
    start = 0
    for descriptor in sorted(kept):
        if start < descriptor:  # os.closerange(0, 0) closes every descriptor
            os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _kill_descendants() -> None:
    """Kill the children of this process until none is left, for `_SECONDS_TO_END` at most."""
    until = time.monotonic() + _SECONDS_TO_END
    while time.monotonic() < until:
        children: list[str] = []
        with suppress(OSError):  # not Linux
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            kill_group(int(child))  # this process is a subreaper: the child's children become its own
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.001)
        except ChildProcessError:
            return


def _new_namespaces() -> bool:
    """Put the next child of this process into a new PID namespace, and return whether the system allows this."""
    libc = _libc()
    if libc is None:
        return False
    if os.geteuid() == 0 and libc.unshare(_NEW_PID) == 0:
        return True
    # Users other than root need a user namespace, in which the ids of user and group stay the same.
    user, group = os.geteuid(), os.getegid()
    before = _prctl(_GET_DUMPABLE)
    _prctl(_SET_DUMPABLE, 1)  # otherwise root owns the files below; no foreign code runs yet
    try:
        if libc.unshare(_NEW_USER | _NEW_PID) != 0:
            return False
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with suppress(OSError):
                Path(f"/proc/self/{name}").write_text(line)
        return True
    finally:
        if before == 0:
            _prctl(_SET_DUMPABLE, 0)


@contextmanager
def _exit_after() -> Iterator[None]:
    """End this process with status 0 when the `with` block ends, even if the block raises."""
    try:
        yield
    finally:
        os._exit(0)


def drop_semaphores() -> None:
    """Unmap the semaphores that this process shares with its parent, so that a subject cannot change them."""
    libc = _libc()
    if libc is None:
        return
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, rest = line.partition(" ")
        if "/dev/shm/sem." in rest:
            start, end = (int(address, 16) for address in span.split("-"))
            libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start))


def _prctl(option: int, value: int = 0) -> int:
    libc = _libc()
    return -1 if libc is None else int(libc.prctl(option, value, 0, 0, 0))


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
