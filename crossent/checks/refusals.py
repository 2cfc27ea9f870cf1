"""What a subject does with a bad input: it must refuse it with the right class of error, and write nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases.inputs import Inputs
from crossent.state import restore, snapshot
from crossent.subjects.subject import Loss
from crossent.trials.memory import written
from crossent.trials.trial import Problem
from crossent.words import name_of_class, said

ERRORS = "A bad call is refused, with an error of the class that torch documents, before anything is written."


@dataclass(frozen=True)
class Reaction:
    """What became of one bad call.

    Attributes:
        raised: the names of the error's class and of its bases, with their modules; empty where nothing was raised.
        message: the error's first line, or the value that was returned.
        wrote: the argument that it wrote into, or ""; None where nothing can be read from the device any more.
        changed_state: what of the global state it left changed.
        ended: how its process ended, or "" where it is alive.
        hung: whether it was ended for taking too long.
        unsent: why it could not be sent to another process, or "".
    """

    raised: tuple[str, ...] = ()
    message: str = ""
    wrote: str | None = ""
    changed_state: tuple[str, ...] = ()
    ended: str = ""
    hung: bool = False
    unsent: str = ""


def judge_reaction(answer: Reaction, allowed: tuple[type[Exception], ...]) -> dict[str, Problem | None]:
    """What is wrong with an answer, where these errors are allowed."""
    wanted = " or ".join(error.__name__ for error in allowed)
    if answer.ended:
        kind = "hung" if answer.hung else "crashed"
        return {"errors": Problem(kind, f"{answer.ended}; should have raised {wanted}")}
    found: dict[str, Problem | None] = dict.fromkeys(("errors", "arguments", "state"))
    if answer.wrote is None:
        del found["arguments"]
    if not answer.raised:
        found["errors"] = Problem("accepted", f"returned{answer.message}; should have raised {wanted}")
    elif not set(map(name_of_class, allowed)) & set(answer.raised):
        found["errors"] = Problem("wrong", f"raised {answer.message}; allowed is {wanted}")
    if answer.wrote:
        found["arguments"] = Problem("changed_input", f"it wrote into {answer.wrote}")
    if answer.changed_state:
        found["state"] = Problem("changed_state", f"it changed {', '.join(answer.changed_state)}")
    return found


def react(loss: Loss, bad_input: BadInput, device: str = "cpu") -> Reaction:
    """The answer to a bad call in this process."""
    given, before = bad_input.build(device), bad_input.build(device)
    state = snapshot()
    try:
        got = loss(given.logits, given.target, **given.options)
        if given.logits.is_cuda:
            torch.cuda.synchronize(given.logits.device)  # an assert is raised where the host waits for the device
        answer = Reaction(message=_value(got))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a subject raises is looked at, and the run goes on
        answer = Reaction(tuple(map(name_of_class, type(error).__mro__)), said(error))
    finally:
        disturbed = restore(state)
    return replace(answer, wrote=_wrote(given, before), changed_state=tuple(disturbed))


def react_by_name(loss: Loss, name: str, device: str) -> Reaction:
    """The act of the bad call with this id."""
    return react(loss, next(one for one in BAD_INPUTS if one.id == name), device)


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
