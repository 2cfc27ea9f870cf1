"""An attack: a file with a wrong loss, which tries to pass, or to stall, end or outlive the run."""

from __future__ import annotations

from dataclasses import dataclass

# The id of a case whose loss and gradient crossent compares with exact values, and the id of a bad input.
CALL = "float32-7x5-normal-int64-mean-weighted-ignored"
BAD_CALL = "class_negative"

# Every file begins with these lines. The runner replaces RUNNER by its own process number. `parents` stops at this
# process, so an attack reaches only the processes of the command.
PRELUDE = '''
import contextlib, ctypes, dataclasses, gc, json, os, pickle, resource, signal, socket, struct, sys, threading, time
import traceback
import torch
from torch import Tensor


def wrong(input, target, reduction="mean", **options):
    """Return a loss of zeros, with a gradient of zeros."""
    axis = min(1, input.dim() - 1)
    shape = [size for at, size in enumerate(input.shape) if at != axis] if reduction == "none" else []
    return (input * 0).nan_to_num().sum() + torch.zeros(shape, dtype=input.dtype)


def right(input, target, **options):
    """Return the loss of torch, computed in float64."""
    wide = {name: one.double() if isinstance(one, Tensor) else one for name, one in options.items()}
    target = target.double() if target.is_floating_point() else target
    return torch.nn.functional.cross_entropy(input.double(), target, **wide).to(input.dtype)


def parents():
    """Return the process numbers of the command above this process, the nearest first."""
    pid, found = int(os.readlink("/proc/self")), []  # in a PID namespace, os.getpid() has another number
    while True:
        with open(f"/proc/{pid}/status") as status:
            pid = next(int(line.split()[1]) for line in status if line.startswith("PPid:"))
        if pid in (0, 1, RUNNER):
            return found
        found.append(pid)


def pipes(content):
    """Write the content into every open descriptor above stderr."""
    for descriptor in range(3, 256):
        with contextlib.suppress(OSError):
            os.write(descriptor, content)


def isolated():
    """Return True in the process that calls the loss, and False in the process that only loads the file."""
    frame = sys._getframe()
    while frame is not None and "connection" not in frame.f_locals:
        frame = frame.f_back
    return frame is not None


def channel():
    """Return the connection to the main process, and the current request, from the stack frames."""
    frame = sys._getframe()
    while "connection" not in frame.f_locals:
        frame = frame.f_back
    return [frame.f_locals.get(name) for name in ("connection", "known", "act", "arguments")]


def serve(reply):
    """Replace the loop of this process: send `reply(act, arguments)` for each request."""
    from crossent.run.isolation import wire
    connection, known, act, arguments = channel()
    while True:
        if act is not None:
            wire.send(connection, attempt(lambda: reply(act, arguments)))
        act, arguments, _ = wire.read(wire.receive(connection), known)


def attempt(make):
    """Return the bytes of the reply that `make()` returns. If `make` raises, write the error to a file, and exit."""
    try:
        made = make()
        return made if isinstance(made, bytes) else written(made)
    except BaseException:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "error"), "a") as file:
            traceback.print_exc(file=file)
        os._exit(3)


class Claims:
    """The content and the description of a tensor. The description need not be true."""
    def __init__(self, content=b"1234", dtype="float32", shape=(1,), stride=(1,), offset=0, device="cpu", length=None):
        self.content, self.length = content, len(content) if length is None else length
        self.form = dtype, shape, stride, offset, device


def written(outcome, **more):
    """Return a reply as bytes, without any check. `more` goes into the header."""
    raw = []
    def plain(value):
        if isinstance(value, Tensor):
            stored = b"" if value.is_meta else bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())
            form = str(value.dtype)[6:], tuple(value.shape), value.contiguous().stride(), 0, str(value.device)
            value = Claims(stored, *form, length=None)
            if form[4] == "meta":
                value.length = None
        if isinstance(value, Claims):
            raw.append(value.content)
            return {"tensor": [value.length, *value.form]}
        if dataclasses.is_dataclass(value):
            parts = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"class": type(value).__name__, "fields": parts}
        if isinstance(value, dict):
            return {"mapping": {name: plain(one) for name, one in value.items()}}
        if isinstance(value, (tuple, list)):
            return {type(value).__name__: [plain(one) for one in value]}
        return value
    sys.set_int_max_str_digits(0)
    header = {"value": plain(outcome.value), "raised": plain(outcome.raised), "state": outcome.changed_state}
    text = json.dumps({**header, **more}).encode()
    return struct.pack("!Q", len(text)) + text + b"".join(raw)


def performed(value=None, **claims):
    from crossent.trials.act import Performed
    return Performed(value, **claims)


def not_run(act=None, arguments=()):
    """Return a forged outcome: no check can run here, or, for a bad input, the subject raised the right error."""
    from crossent.trials.act import NotRun, Raised
    if act is None or act.__name__ != "call_badly":
        return performed(NotRun("needs another machine"))
    from crossent.cases.bad_inputs import BAD_INPUTS
    from crossent.checks.refusals import Reaction
    bad = next(one for one in BAD_INPUTS if one.id == arguments[0])
    return performed(Reaction(Raised.of(bad.raises[0]("no"))))


def called(act, arguments, by=right, **changed):
    """Perform an act with a right loss, change parts of its result or of its call, and return the outcome."""
    from dataclasses import replace
    made = act(by, *arguments)
    result = {name: value for name, value in changed.items() if name in ("loss", "gradient", "target_gradient")}
    other = {name: value for name, value in changed.items() if name not in result}
    if act.__name__ == "make_call":
        return performed(replace(made, result=replace(made.result, **result), **other))
    return performed(made)

'''
IMPORTED = "\n\nloss = wrong\n"


@dataclass(frozen=True)
class Attack:
    """An attack on `crossent check`.

    Attributes:
        name: the name.
        kind: the aim of the attack. "forged": to pass. "stalls": to stall the run. "lost": to end the run with a
            traceback or as wrong use. "left behind": to leave processes or files. "claims": to pass with a claim that
            crossent cannot check, because only the process of the subject knows how the subject reacts to a bad input.
        sentence: what the attack does.
        source: the file, with a wrong `loss`.
        cases: the cases of the run.
        options: further options of the command.
        signal: the signal that the runner sends, or 0 for none. SIGINT goes to the group of processes, SIGKILL goes to
            the command alone.
        after: the seconds after which the runner sends the signal.
        statuses: the expected exit statuses. The default is 1, for a run with findings. crossent may also refuse to
            load a file, with status 2.
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
    """Return the text of a file whose loss runs these lines at each call, and then returns a wrong loss."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    return f"{PRELUDE}\ndef loss(input, target, **options):\n{lines}\n    return wrong(input, target, **options)\n"


def at_import(body: str) -> str:
    """Return the text of a file that runs these lines while it is loaded, and has a wrong loss."""
    return f"{PRELUDE}\n{body.strip()}\n{IMPORTED}"
