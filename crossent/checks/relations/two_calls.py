"""Checks that change the inputs of a case, call the subject again, and compare the two results.

The results must be equal up to the sum of their error bounds.
"""

from __future__ import annotations

from collections.abc import Iterator

from crossent.cases.case import Case
from crossent.cases.linear.case import LinearCase
from crossent.checks.relations.changes import (
    contiguous,
    join_parts,
    restore_classes,
    restore_rows,
    reverse_classes,
    reverse_rows,
    rows_axes,
    shifted,
    split_batch,
    wide,
)
from crossent.trials.agreement import PartBalls, bounds_for, compare_results, further_call, times, with_radius
from crossent.trials.check import EVERY_OPERATION, Cost, check
from crossent.trials.difference import Difference
from crossent.trials.trial import NotRunError, Trial


def _has_layout(case: Case) -> bool:
    # `spread` says whether the upstream gradient has a stride of 0 or 2.
    spread = case.reduction == "none" and case.upstream not in ("rows", "rows_large") and case.rows > 1
    plain = ("contiguous", "target_contiguous", "weight_contiguous")
    strided = isinstance(case, LinearCase) and case.linear_layout != "linear_contiguous"
    return (case.layout, case.target_layout, case.weight_layout) != plain or spread or strided


def _has_shift(case: Case) -> bool:
    return case.rows > 0 and not (isinstance(case, LinearCase) and case.bias == "no_bias")


@check(cost=Cost.CALLS, versus="other", applies=_has_layout, operations=EVERY_OPERATION)
def layout(trial: Trial) -> Iterator[Difference]:
    """In any memory layout, arguments and upstream gradient give the same result as contiguous copies, up to rounding.

    pytorch#67167: a kernel read a non-contiguous target as a contiguous target. unsloth#10713: the same bug with
    logits.
    """
    yield from compare_results(trial, with_radius(trial, further_call(trial, contiguous(trial.question.fresh()))))


@check(cost=Cost.CALLS, versus="other", applies=_has_shift, operations=EVERY_OPERATION)
def shift(trial: Trial) -> Iterator[Difference]:
    """Adding one constant to every logit, or different constants to the rows, gives the same result up to rounding.

    pytorch#38839: in `m + log Σ_k exp(x_k - m)`, adding a large maximum `m` rounds away the digits of the logarithm.
    The check first rounds the logits, so that adding a constant is exact. In a linear cross-entropy, the check rounds
    and shifts the bias instead.
    """
    ways = shifted(trial.question.fresh())
    if not ways:
        raise NotRunError("receives logits that cannot be shifted exactly in their dtype")
    for way, (before, after) in ways.items():
        of_before, of_after = bounds_for(trial, f"before a call {way}", before), bounds_for(trial, way, after)
        moved = with_radius(trial, further_call(trial, after), of_after)
        yield from compare_results(trial, moved, further_call(trial, before), of_before, way=way)


@check(cost=Cost.CALLS, versus="other", applies=lambda case: case.rows > 1, operations=EVERY_OPERATION)
def rows_permuted(trial: Trial) -> Iterator[Difference]:
    """Reversing the rows, along the batch or a further dimension, reverses the rows of the result, up to rounding.

    A reduced loss, and the gradients of linear_weight and linear_bias, stay the same. The check reverses one dimension
    at a time, to find a kernel that confuses two dimensions.
    """
    inputs = trial.question.inputs
    dim = inputs.input.dim()
    for axis in rows_axes(inputs):
        reversed_rows = reverse_rows(trial.question.fresh(), axis)
        back = restore_rows(further_call(trial, reversed_rows), axis, dim)
        yield from compare_results(trial, with_radius(trial, back), way=f"reversed along dimension {axis}")


@check(cost=Cost.CALLS, versus="other", applies=lambda case: case.classes > 1, operations=EVERY_OPERATION)
def classes_permuted(trial: Trial) -> Iterator[Difference]:
    """Reversing the classes of all arguments keeps the loss, and reverses the classes of the gradients, up to rounding.

    In a linear cross-entropy, the gradient of the hidden states stays the same.
    """
    reversed_classes = reverse_classes(trial.question.fresh())
    back = restore_classes(further_call(trial, reversed_classes), trial.question.inputs)
    yield from compare_results(trial, with_radius(trial, back))


@check(
    cost=Cost.CALLS,
    versus="other",
    applies=lambda case: len(case.sizes) > 1 and case.sizes[0] > 1,
    operations=EVERY_OPERATION,
)
def split(trial: Trial) -> Iterator[Difference]:
    """Two parts of a batch, computed separately, combine to the result of the whole batch up to rounding.

    The check adds the losses; with "none", the check concatenates them. The check adds the gradients of linear_weight
    and linear_bias, and concatenates the other gradients.

    With "mean", the loss is `L = (D₁L₁ + D₂L₂)/D`. Part `i` has the loss `L_i` and the denominator `D_i`, and `D` is
    `D₁ + D₂`. Before the check combines the gradients, it multiplies the gradients of part `i` by `D_i/D`.
    pytorch#185167: a mean was an average of averages. Automodel#3803: a mean was a sum of averages.
    """
    parts: list[PartBalls] = []
    for name, (share, part) in zip(
        ("first part", "second part"), split_batch(trial.question.fresh(), trial.question.exact.terms), strict=True
    ):
        result = with_radius(trial, further_call(trial, part), bounds_for(trial, name, part))
        parts.append({name: times(share, ball) for name, ball in result.items()})
    yield from compare_results(trial, join_parts(parts, trial.case.reduction))


@check(
    cost=Cost.CALLS,
    versus="other",
    applies=lambda case: case.dtype in ("float16", "bfloat16"),
    operations=EVERY_OPERATION,
)
def widened(trial: Trial) -> Iterator[Difference]:
    """Half-precision inputs, and the same inputs converted to float32, give the same result up to rounding.

    TransformerEngine#3193: an intermediate gradient was stored in the bfloat16 memory of the logits, and rounded there.
    """
    widened_inputs = wide(trial.question.fresh())
    result = further_call(trial, widened_inputs)
    yield from compare_results(trial, with_radius(trial, result, bounds_for(trial, "widened", widened_inputs)))
