"""The check of several backward passes: two passes through one graph, and passes of two losses of the same logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.checks.relations.changes import with_reversed_targets
from crossent.subjects.subject import Loss
from crossent.trials.agreement import further_call
from crossent.trials.call import Result
from crossent.trials.check import EVERY_OPERATION, Cost, check
from crossent.trials.trial import Problem, Trial


@check(
    *("gradient", "repeatable", "retain_graph"),
    other_needs={"target_gradient": lambda inputs: "target_gradient" in inputs.leaves},
    cost=Cost.CALLS,
    versus="other",
    operations=EVERY_OPERATION,
)
def two_backwards(trial: Trial) -> Iterator[Problem]:
    """A repeated backward pass gives the same bits, and two losses of the same logits do not affect each other.

    Between the passes, the check fills each gradient with NaN, since a caller may change a gradient in place.
    Liger-Kernel#272 and #343: a loss stored its gradient in the logits, and scaled the gradient there in the backward
    pass.
    """
    other = with_reversed_targets(trial.question.fresh())
    alone = further_call(trial, other)
    first, second, again = trial.perform(run_backward_passes, trial.question.fresh(), other.copy())
    if again.digest != first.digest:
        passes = "after another backward pass through the same graph, and NaN written into the gradients in place,"
        yield Problem("not_repeated", f"{passes} the same upstream gradient gives a different result")
    elif (first.digest, second.digest) != (trial.got.digest, alone.digest):
        of = f"two losses of the same {trial.case.operation.word('input')}"
        yield Problem("disturbed", f"{of}, or their gradients, have different bits than each loss computed alone")


def run_backward_passes(loss: Loss, inputs: Inputs, other: Inputs) -> tuple[Result, Result, Result]:
    """Act: run backward for two losses of the same logits, then twice more for the first loss.

    `other` has the target and the options of the second loss. Return the results of the first, the second and the last
    backward pass. The first and the last pass have the same upstream gradient.
    """
    dense = "target_gradient" in inputs.leaves
    _, shared = inputs.requiring([name for name in inputs.leaves if name != "target_gradient"])
    targets = [given.target.detach().requires_grad_(dense) for given in (inputs, other)]
    first, second = (
        loss(given.input, target, **given.options)
        for target, given in zip(targets, (inputs.with_leaves(shared), other.with_leaves(shared)), strict=True)
    )

    def backward(value: Tensor, target: Tensor, upstream: Tensor) -> Result:
        leaves = {**shared, "target_gradient": target} if dense else shared
        upstream = upstream.to(value.dtype)
        gradients = torch.autograd.grad(value, list(leaves.values()), upstream, retain_graph=True)
        result = Result(value.detach(), **dict(zip(leaves, gradients, strict=True))).copy()
        for gradient in gradients:
            # torch refuses to write into an expanded tensor; and a gradient may be the upstream gradient itself
            if 0 not in gradient.stride() and not _same_storage(gradient, upstream):
                gradient.detach().fill_(torch.nan)
        return result

    results = backward(first, targets[0], inputs.upstream), backward(second, targets[1], inputs.upstream)
    # The factor -2 finds a loss that scales a stored gradient in place. An upstream gradient of 1 would hide this bug.
    backward(first, targets[0], -2 * inputs.upstream)
    return *results, backward(first, targets[0], inputs.upstream)


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
