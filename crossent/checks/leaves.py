"""Checks of arguments that require a gradient: gradients of some arguments alone, and tensors that are not leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

from torch import Tensor

from crossent.cases.axes import DENSE_TARGETS
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs, bits
from crossent.cases.operation import CROSS_ENTROPY, GRADIENTS, LINEAR_CROSS_ENTROPY, Operation
from crossent.subjects.subject import Loss
from crossent.trials.call import Gradients, Result, as_loss, evaluate
from crossent.trials.check import EVERY_OPERATION, Cost, Found, check
from crossent.trials.trial import Problem, Trial, misshapen

# The words for arguments in messages, by the names of their gradients. Messages name any other argument by its name.
_WORDS = {"gradient": "the logits", "target_gradient": "the target"}


def has_target_gradient(inputs: Inputs) -> bool:
    """Return whether the target has class probabilities, which can have a gradient."""
    return "target_gradient" in inputs.leaves


@check("gradient", cost=Cost.CALLS, operations=EVERY_OPERATION)
def non_leaf(trial: Trial) -> Found:
    """Logits that are the output of an operation stay unchanged and give the exact loss and gradients.

    In a linear cross-entropy, weight and bias are outputs of operations too.
    """
    got, clones = trial.perform(evaluate_on_clones, trial.question.fresh(), trial.gradients)
    if problem := misshapen(trial, got.loss, trial.question.exact):
        yield problem
        return
    if "arguments" not in trial.subject.lacks:
        yield from _changed(trial.question.inputs, clones)
    yield from trial.compare(got, trial.question.exact)


def _changed(inputs: Inputs, clones: dict[str, Tensor]) -> Iterator[Problem]:
    for name, before in {"input": inputs.input, **inputs.options}.items():
        if name in clones and (bits(clones[name]) != bits(before)).any():
            yield Problem("changed_input", f"the call changed `{name}` in place; `{name}` is not a leaf in this call")
            return


def evaluate_on_clones(loss: Loss, inputs: Inputs, gradients: Gradients) -> tuple[Result, dict[str, Tensor]]:
    """Act: call the subject with clones, which are not leaves, of the logits and of options that require a gradient.

    Returns:
        The result, with the gradients of the originals, and the clones after the backward pass, by name.
    """
    kept: dict[str, Tensor] = {}

    def on_clones(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        leaves = [name for name, one in options.items() if isinstance(one, Tensor) and one.requires_grad]
        clones = {"input": input.clone(), **{name: options[name].clone() for name in leaves}}
        kept.update((name, one.detach()) for name, one in clones.items())
        return loss(clones.pop("input"), target, **{**options, **clones})

    return evaluate(on_clones, inputs, gradients), kept


def _has_several_leaves(case: Case) -> bool:
    return case.operation is LINEAR_CROSS_ENTROPY or case.target in DENSE_TARGETS


@check(
    "gradient",
    other_needs={"target_gradient": has_target_gradient},
    cost=Cost.CALLS,
    applies=_has_several_leaves,
    operations=EVERY_OPERATION,
)
def alone(trial: Trial) -> Found:
    """If only some arguments require a gradient, their gradients are exact, and the other arguments get no gradient.

    Liger-Kernel 0.8.5: the weight got no gradient if the hidden states required no gradient, as in a frozen network.
    """
    operation = trial.case.operation
    for way, names in gradients_by_call(trial.question.inputs, trial.gradients).items():
        loss, requires_grad, gradients = trial.perform(backward_of_some, trial.question.fresh(), names)
        if problem := misshapen(trial, loss, trial.question.exact):
            yield problem
            return
        required = words_of(names, operation)
        if not requires_grad:
            said = "loss: got requires_grad=False; expected requires_grad=True"
            yield Problem("wrong", f"{said}, since requires_grad is True for {required}")
            return
        for name in trial.question.inputs.leaves:
            if (gradients.get(name) is None) == (name in names):
                got = "got None; expected a tensor" if name in names else "got a tensor; expected None"
                of = words_of([name], operation)
                yield Problem("wrong", f"gradient of {of}: {got}, since requires_grad is True only for {required}")
                return
        got_here = Result(loss, **{name: gradients[name] for name in names})
        found = trial.compare(got_here, trial.question.exact)
        yield from (replace(difference, of=f"{difference.of} {way}") for difference in found)


def gradients_by_call(inputs: Inputs, gradients: Gradients = tuple(GRADIENTS)) -> dict[str, Gradients]:
    """Return each combination of some but not all `gradients`, by the name of its call.

    >>> gradients_by_call(Case("float32", target="probabilities").build())
    {'of the logits alone': ('gradient',), 'of the target alone': ('target_gradient',)}
    """
    leaves = [name for name in inputs.leaves if name in gradients]
    chosen = chain.from_iterable(combinations(leaves, count) for count in range(1, len(leaves)))
    return {f"of {words_of(names, inputs.operation)} alone": names for names in chosen}


def words_of(names: Sequence[str], operation: Operation) -> str:
    """Return words for the arguments of the gradients `names`, such as "the logits and the target"."""
    words = _WORDS if operation is CROSS_ENTROPY else {}
    return " and ".join(words.get(name, GRADIENTS[name]) for name in names)


def backward_of_some(loss: Loss, inputs: Inputs, names: Gradients) -> tuple[Tensor, bool, dict[str, Tensor | None]]:
    """Act: call the subject and run backward. Only the arguments of the gradients `names` require a gradient.

    Returns:
        The loss, its requires_grad, and each gradient by name. A missing gradient is None.
    """
    given, _ = inputs.requiring(names)
    value = as_loss(loss(given.input, given.target, **given.options))
    if value.requires_grad and value.shape == inputs.upstream.shape:
        value.backward(inputs.upstream.to(value.dtype))  # type: ignore[no-untyped-call]  # torch has no type for it
    return value.detach(), value.requires_grad, {name: leaf.grad for name, leaf in given.leaves.items()}
