"""The checks of bad calls: calls for which a cross-entropy must raise an error (`crossent.cases.bad_inputs`).

The subject must raise the right error, and change neither its arguments nor global state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crossent.cases.bad_inputs import BadInput
from crossent.cases.ids import BAD_INPUT_OF
from crossent.cases.inputs import Inputs
from crossent.machine import synchronize
from crossent.subjects.subject import Loss
from crossent.trials.act import Host, NotRun, Raised
from crossent.trials.memory import describe_change
from crossent.trials.trial import NotRunError, Problem

ERRORS = "A call with a bad input raises an error of a class that torch raises for this mistake."


@dataclass(frozen=True)
class Reaction:
    """The reaction of a subject to a bad call.

    Attributes:
        raised: the exception, or None.
        returned: a space and the returned numbers, such as " 0.5", if these are fewer than ten; otherwise "".
        wrote: a phrase about a changed argument, such as "wrote into input", or "". None if the device can no longer
            be read.
        changed_state: the parts of the global state that the call changed.
        ended: "crashed" or "hung", or "" if the call returned or raised.
        how: a description of the crash or of the exceeded time limit, or "".
    """

    raised: Raised | None = None
    returned: str = ""
    wrote: str | None = ""
    changed_state: tuple[str, ...] = ()
    ended: str = ""
    how: str = ""


def react(host: Host, bad: BadInput, device: str) -> Reaction:
    """Make a bad call in the process of the subject, and return the reaction.

    Raises:
        NotRunError: the host of the subject cannot make the call.
    """
    performed = host.perform(call_badly, bad.id, device)
    if isinstance(performed.value, NotRun):
        raise NotRunError(performed.value.reason)
    if performed.ended:
        return Reaction(ended=performed.ended, how=performed.how)
    if performed.value is None:
        return Reaction(
            performed.raised or Raised("nothing and returned nothing"), changed_state=performed.changed_state
        )
    return replace(performed.value, changed_state=performed.changed_state)


def call_badly(loss: Loss, name: str, device: str) -> Reaction:
    """Act: make the bad call with the id `name`, and return the reaction of the subject."""
    bad = BAD_INPUT_OF[name]
    given, before = bad.build(device), bad.build(device)
    raised, returned = None, ""
    try:
        got = loss(given.input, given.target, **given.options)
        synchronize(given.input.device)  # a failed device-side assert raises an error here
        returned = _value(got)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any exception of a subject is part of the reaction, even SystemExit
        raised = Raised.of(_restore_index_error(error))
    return Reaction(raised, returned, _find_written(given, before))


def _restore_index_error(error: BaseException) -> BaseException:
    """Return the error. For a UnicodeDecodeError that hides an IndexError of torch, return the IndexError."""
    # `F.nll_loss` writes an out-of-range uint8 class as a raw byte into its message.
    if isinstance(error, UnicodeDecodeError) and b" is out of bounds" in error.object:
        return IndexError(error.object.decode(errors="backslashreplace"))
    return error


def judge_reaction(reaction: Reaction, allowed: tuple[type[Exception], ...]) -> dict[str, Problem | None]:
    """Return a dict from each check, `errors`, `arguments` or `state`, to its problem, or to None if the check passes.

    A check that cannot judge the reaction has no entry. `allowed` has the correct exception classes.
    """
    names = " or ".join(error.__name__ for error in allowed)
    if reaction.ended:
        return {"errors": Problem(reaction.ended, f"{reaction.how}; should have raised {names}")}
    found: dict[str, Problem | None] = dict.fromkeys(("errors", "arguments", "state"))
    if reaction.wrote is None:
        del found["arguments"]
    if reaction.raised is None:
        found["errors"] = Problem("accepted", f"the call returned{reaction.returned}; should have raised {names}")
    elif not reaction.raised.is_a(*allowed):
        found["errors"] = Problem("wrong", f"the call raised {reaction.raised.message}; should have raised {names}")
    if reaction.wrote:
        found["arguments"] = Problem("changed_input", f"the call {reaction.wrote}")
    if reaction.changed_state:
        found["state"] = Problem("changed_state", f"the call changed {', '.join(reaction.changed_state)}")
    return found


def _find_written(given: Inputs, before: Inputs) -> str | None:
    try:
        return describe_change(given, before)
    except RuntimeError:
        if given.input.device.type != "cpu":
            return None
        raise


def _value(got: object) -> str:
    plain = type(got) is Tensor and got.layout == torch.strided and not got.is_meta
    return f" {got.tolist()}" if isinstance(got, Tensor) and plain and got.numel() < 10 else ""
