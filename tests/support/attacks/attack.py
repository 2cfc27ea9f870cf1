"""An attack: the file of a user with a wrong loss, which tries to pass, or to stall, end or outlive the run."""

from __future__ import annotations

from dataclasses import dataclass

# One call, whose loss and gradient the judge compares with exact values, and one bad input.
CALL = "float32-7x5-normal-int64-mean-weighted-ignored"
BAD_CALL = "class_negative"

# Every file begins with these lines. The runner puts its own process number in the place of RUNNER, where a search for
# parents ends, so that an attack reaches the processes of the command and no others.
PRELUDE = '''
import contextlib, ctypes, gc, json, os, pickle, resource, signal, socket, struct, sys, threading, time
import torch
from torch import Tensor


def wrong(input, target, reduction="mean", **options):
    """A loss of zeros, with a gradient of zeros."""
    axis = min(1, input.dim() - 1)
    shape = [size for at, size in enumerate(input.shape) if at != axis] if reduction == "none" else []
    return (input * 0).nan_to_num().sum() + torch.zeros(shape, dtype=input.dtype)


def right(input, target, **options):
    """The loss of torch, computed in float64."""
    wide = {name: one.double() if isinstance(one, Tensor) else one for name, one in options.items()}
    target = target.double() if target.is_floating_point() else target
    return torch.nn.functional.cross_entropy(input.double(), target, **wide).to(input.dtype)


def parents():
    """The processes of the command above this one, the nearest first."""
    pid, found = os.getpid(), []
    while True:
        with open(f"/proc/{pid}/status") as status:
            pid = next(int(line.split()[1]) for line in status if line.startswith("PPid:"))
        if pid in (0, 1, RUNNER):
            return found
        found.append(pid)


def pipes(content):
    """Write into every open descriptor above stderr."""
    for descriptor in range(3, 256):
        with contextlib.suppress(OSError):
            os.write(descriptor, content)


def isolated():
    """Whether this process is the one that calls the loss, and not the one that only loads the file."""
    frame = sys._getframe()
    while frame is not None and "connection" not in frame.f_locals:
        frame = frame.f_back
    return frame is not None


def channel():
    """The connection to the judge and what it asks for, from the frames that lead here."""
    frame = sys._getframe()
    while "connection" not in frame.f_locals:
        frame = frame.f_back
    return [frame.f_locals.get(name) for name in ("connection", "known", "nonce", "act", "arguments")]


def serve(reply):
    """Take the place of the process's loop: `reply` makes what is sent for an act, and the arguments stay unread."""
    from crossent.run import wire
    connection, known, nonce, act, arguments = channel()
    while True:
        if nonce is not None:
            connection.send_bytes(wire.write((nonce, reply(act, arguments))))
        nonce, act, arguments = wire.read(connection.recv_bytes(), known)


def performed(value=None, **claims):
    from crossent.trials.act import Performed
    return Performed(value, **claims)


def not_run(act=None, arguments=()):
    """Say that the check cannot run here. A bad input is said to raise the right error."""
    from crossent.trials.act import NotRun, Raised
    if act is None or act.__name__ != "call_badly":
        return performed(NotRun("needs another machine"))
    from crossent.cases.bad_inputs import BAD_INPUTS
    from crossent.checks.refusals import Reaction
    bad = next(one for one in BAD_INPUTS if one.id == arguments[0])
    return performed(Reaction(Raised.of(bad.raises[0]("no"))))


def called(act, arguments, loss=right, **changed):
    """Perform an act with a right loss, and change parts of the result, or of the call."""
    from dataclasses import replace
    made = act(loss, *arguments)
    result = {name: value for name, value in changed.items() if name in ("loss", "gradient", "target_gradient")}
    other = {name: value for name, value in changed.items() if name not in result}
    if act.__name__ == "make_call":
        return performed(replace(made, result=replace(made.result, **result), **other))
    return performed(made)

'''
IMPORTED = "\n\nloss = wrong\n"


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        name: the name.
        kind: "forged", "stalls", "lost" or "left behind": what the attack wants.
        sentence: what the attack does.
        source: the file of the user, with a wrong `loss`.
        cases: the cases of the run.
        options: further options of the command.
        signal: a signal that the runner sends, or 0: SIGINT to the group of processes, SIGKILL to the command alone.
        after: the seconds after which the runner sends the signal.
        statuses: the exit statuses that are right: 1, and 2 for a file that is not loaded.
    """

    name: str
    kind: str
    sentence: str
    source: str
    cases: tuple[str, ...] = (CALL, BAD_CALL)
    options: tuple[str, ...] = ()
    signal: int = 0
    after: float = 0.0
    statuses: tuple[int, ...] = (1,)


def at_call(body: str) -> str:
    """Return a file whose loss runs these lines at each call, and then returns a wrong loss."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    return f"{PRELUDE}\ndef loss(input, target, **options):\n{lines}\n    return wrong(input, target, **options)\n"


def at_import(body: str) -> str:
    """Return a file that runs these lines when it is loaded, and has a wrong loss."""
    return f"{PRELUDE}\n{body.strip()}\n{IMPORTED}"
