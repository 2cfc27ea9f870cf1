"""Attacks that leave processes or files behind, and interrupted commands, which must leave nothing behind."""

import signal

from support.attacks.attack import CALL, Attack, at_call, at_import

DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {before}
        time.sleep(90)
    os._exit(0)
"""
PLAIN = at_import("")
HANGS = at_call("time.sleep(1000)")
SECONDS = (0.2, 1.0, 2.0, 3.0)


def _left(name: str, sentence: str, source: str, **more: object) -> Attack:
    return Attack(name, "left behind", sentence, source, **more)  # type: ignore[arg-type]


LEFT = [
    _left("daemon", "Fork twice and call setsid: a child outlives the run.", at_call(DAEMON.format(before="pass"))),
    _left(
        "daemon_of_another_program",
        "Leave a daemon that is another program with an empty environment.",
        at_call(DAEMON.format(before="os.execve('/bin/sleep', ['sleep', '90'], {})")),
    ),
    _left(
        "daemon_at_import",
        "Leave a daemon while the file is loaded, and close the pipe.",
        at_import(DAEMON.format(before="os.closerange(0, 256)")),
        statuses=(1, 2),
    ),
    _left(
        "sibling",
        "Start a process as a child of the parent, with clone and CLONE_PARENT.",
        at_call(
            """if ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0:
    os.setsid()
    time.sleep(90)
    os._exit(0)"""
        ),
    ),
    _left(
        "forks_for_ever",
        "A child forks its successor and ends, again and again, so that its process number changes all the time.",
        at_call(
            """if os.fork() == 0:
    os.setsid()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if os.fork():
            os._exit(0)
        time.sleep(0.05)
    os._exit(0)"""
        ),
    ),
    _left(
        "another_group",
        "Join the process group of the worker, start a child in this group, and hang.",
        at_call(
            """with contextlib.suppress(OSError):
    os.setpgid(0, os.getpgid(parents()[1]))
if os.fork() == 0:
    time.sleep(90)
    os._exit(0)
time.sleep(1000)"""
        ),
    ),
    _left(
        "killed",
        "Kill the command by SIGKILL while a loss hangs.",
        HANGS,
        options=("--timeout", "60"),  # the run must not wait for the call
        signal=signal.SIGKILL,
        after=7.0,
        statuses=(-9,),
    ),
    _left(
        "killed_with_a_daemon",
        "Kill the command by SIGKILL while a loss hangs, after the loss has left a daemon.",
        at_call(DAEMON.format(before="pass") + "time.sleep(1000)"),
        signal=signal.SIGKILL,
        after=7.0,
        statuses=(-9,),
    ),
    _left(
        "killed_while_loading",
        "Kill the command by SIGKILL while it loads a file that hangs.",
        at_import("time.sleep(1000)"),
        signal=signal.SIGKILL,
        after=4.0,
        options=("--timeout", "60"),
        statuses=(-9,),
    ),
    *(
        _left(
            f"interrupted_after_{seconds:g}_s",
            f"Interrupt the command after {seconds:g} seconds, as Ctrl-C does.",
            PLAIN,
            signal=signal.SIGINT,
            after=seconds,
            statuses=(130, 1),  # 1 if the run has ended by then
        )
        for seconds in SECONDS
    ),
    _left(
        "interrupted_while_loading",
        "Interrupt the command while it loads a file that hangs.",
        at_import("time.sleep(1000)"),
        signal=signal.SIGINT,
        after=4.0,
        options=("--timeout", "60"),
        statuses=(130,),
    ),
    _left(
        "interrupted_while_it_hangs",
        "Interrupt the command while a loss hangs.",
        HANGS,
        signal=signal.SIGINT,
        after=8.0,
        options=("--timeout", "60"),
        statuses=(130,),
    ),
    _left(
        "fills_the_temporary_folder",
        "Write a folder of files into the temporary folder, and a file that grows without end.",
        at_call(
            """import tempfile
folder = tempfile.mkdtemp()
for name in map(str, range(100)):
    with open(os.path.join(folder, name), "w") as file:
        file.write(name)
os.chmod(folder, 0o500)
with tempfile.NamedTemporaryFile(delete=False) as file:
    while True:
        file.write(b"x" * 2**20)"""
        ),
        cases=(CALL,),
    ),
    _left(
        "compiles",
        "Compile, so that torch makes a folder for its code.",
        PLAIN
        + """
assert callable(loss)
compiled = torch.compile(wrong)
def loss(input, target, **options):
    return compiled(input, target, **options)
""",
        cases=(CALL,),
        options=("--timeout", "60"),
    ),
]
