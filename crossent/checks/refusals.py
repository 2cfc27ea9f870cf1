"""Bad calls: a subject must refuse each with the right class of error, and write into no argument."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases.inputs import Inputs
from crossent.subjects.subject import Loss
from crossent.trials.act import Host, NotRun, Raised
from crossent.trials.memory import written
from crossent.trials.trial import NotRunError, Problem

ERRORS = "A bad call is refused, with an error of the class that torch documents, before anything is written."


@dataclass(frozen=True)
class Reaction:
    """What a subject did with a bad call.

    Attributes:
        raised: the exception, or None where the call returned.
        returned: the value that was returned, in words; "" where it is too long.
        wrote: the argument that the call wrote into, or ""; None where the device can no longer be read.
        changed_state: the global state that the call left changed.
        ended, how: "crashed" or "hung", and how, where the call ended its process; "" otherwise.
    """

    raised: Raised | None = None
    returned: str = ""
    wrote: str | None = ""
    changed_state: tuple[str, ...] = ()
    ended: str = ""
    how: str = ""


def react(host: Host, bad: BadInput, device: str) -> Reaction:
    """Make a bad call where the subject lives.

    Raises:
        NotRunError: the host cannot make the call.
    """
    performed = host.perform(call_badly, bad.id, device)
    if isinstance(performed.value, NotRun):
        raise NotRunError(performed.value.reason)
    if performed.ended:
        return Reaction(ended=performed.ended, how=performed.how)
    if performed.value is None:
        return Reaction(performed.raised or Raised("gave no answer"), changed_state=performed.changed_state)
    return replace(performed.value, changed_state=performed.changed_state)


def call_badly(loss: Loss, name: str, device: str) -> Reaction:
    """The act: make the bad call of this id, and see what came of it and of its arguments."""
    bad = next(one for one in BAD_INPUTS if one.id == name)
    given, before = bad.build(device), bad.build(device)
    raised, returned = None, ""
    try:
        got = loss(given.logits, given.target, **given.options)
        if given.logits.is_cuda:
            torch.cuda.synchronize(given.logits.device)  # an assert is raised where the host waits for the device
        returned = _value(got)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a subject raises is looked at, and the run goes on
        raised = Raised.of(error)
    return Reaction(raised, returned, _wrote(given, before))


def judge_reaction(reaction: Reaction, allowed: tuple[type[Exception], ...]) -> dict[str, Problem | None]:
    """Return the problem with a reaction for each check that looks at one, or None; these errors are allowed."""
    wanted = " or ".join(error.__name__ for error in allowed)
    if reaction.ended:
        return {"errors": Problem(reaction.ended, f"{reaction.how}; should have raised {wanted}")}
    found: dict[str, Problem | None] = dict.fromkeys(("errors", "arguments", "state"))
    if reaction.wrote is None:
        del found["arguments"]
    if reaction.raised is None:
        found["errors"] = Problem("accepted", f"returned{reaction.returned}; should have raised {wanted}")
    elif not reaction.raised.is_a(*allowed):
        found["errors"] = Problem("wrong", f"raised {reaction.raised.message}; allowed is {wanted}")
    if reaction.wrote:
        found["arguments"] = Problem("changed_input", f"it wrote into {reaction.wrote}")
    if reaction.changed_state:
        found["state"] = Problem("changed_state", f"it changed {', '.join(reaction.changed_state)}")
    return found


def _wrote(given: Inputs, before: Inputs) -> str | None:
    try:
        return written(given, before)
    except RuntimeError:
        if given.logits.is_cuda:
            return None
        raise


def _value(got: object) -> str:
    plain = type(got) is Tensor and got.layout == torch.strided and not got.is_meta
    return f" {got.tolist()}" if isinstance(got, Tensor) and plain and got.numel() < 10 else ""
