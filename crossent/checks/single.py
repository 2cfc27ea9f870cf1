"""Checks of a single call: its loss and gradients, and its effects on arguments and global state.

All checks of a case share the first call; only `repeat` makes further calls. The body of a longer check is a plain
function, because mutation testing (`nox -s mutate`) changes no decorated function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossent.cases.axes import DENSE_TARGETS, SIGNED_WEIGHTS
from crossent.cases.case import Case
from crossent.cases.linear.case import LinearCase
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.numerics.bounds.rounding import safe
from crossent.numerics.formats import FORMATS
from crossent.numerics.oracle.arithmetic import UNIT_ROUNDOFF, Ball, compensated_sum
from crossent.report.findings import DEPENDS
from crossent.trials.call import Result, digest_of, in_words, repeat_call
from crossent.trials.check import EVERY_OPERATION, Cost, check
from crossent.trials.difference import Difference, difference
from crossent.trials.exact import name_of, rows_of
from crossent.trials.memory import describe_change
from crossent.trials.trial import Problem, Trial, misshapen
from crossent.words import counted


def _has_bias(case: Case) -> bool:
    return isinstance(case, LinearCase) and case.bias != "no_bias"


@check(operations=EVERY_OPERATION)
def call(trial: Trial) -> Iterator[Problem]:
    """The call raises no error, and returns a loss and gradients that hold data."""
    yield from _call(trial)


def _call(trial: Trial) -> Iterator[Problem]:
    if not trial.digest:
        yield Problem("refused", "loss: got a tensor without data, as on the meta device; expected a tensor with data")


@check(operations=EVERY_OPERATION)
def result(trial: Trial) -> Iterator[Problem]:
    """The loss is a dense tensor of the right shape, dtype and device."""
    if problem := misshapen(trial, trial.got.loss, trial.question.exact):
        yield problem


@check("arguments", operations=EVERY_OPERATION)
def arguments(trial: Trial) -> Iterator[Problem]:
    """The call leaves its arguments, their .grad and all their memory unchanged; no result shares memory with them.

    The memory of a view includes the elements outside of the view. The call must also leave requires_grad and the
    upstream gradient unchanged. A result may share memory with the upstream gradient.
    """
    yield from _arguments(trial)


def _arguments(trial: Trial) -> Iterator[Problem]:
    first = trial.first_call
    if change := describe_change(first.given, trial.question.inputs):
        # `describe_change` compares with the copy of the inputs in this process. The process of the subject cannot be
        # trusted, so its reply only decides which pass the message names.
        which = "forward" if first.written_forward else "backward"
        yield Problem("changed_input", f"the call {change} in the {which} pass")
    elif first.attribute_change:
        yield Problem("changed_input", first.attribute_change)
    elif first.shared:
        yield Problem("aliased", first.shared)


@check(operations=EVERY_OPERATION)
def state(trial: Trial) -> Iterator[Problem]:
    """The call leaves the global state of torch, numpy and Python unchanged."""
    _ = trial.got
    if trial.changed_state:
        yield Problem("changed_state", f"the call changed {', '.join(dict.fromkeys(trial.changed_state))}")


@check(operations=EVERY_OPERATION)
def loss(trial: Trial) -> Iterator[Difference]:
    """The loss equals the exact value within the error bound."""
    yield trial.differences["loss"]


@check("gradient", operations=EVERY_OPERATION)
def gradient(trial: Trial) -> Iterator[Difference]:
    """The gradient of the logits, for the case's upstream gradient, equals the exact value within the error bound."""
    if "gradient" in trial.differences:
        yield trial.differences["gradient"]


@check("gradient", "target_gradient", applies=lambda case: case.target in DENSE_TARGETS)
def target_gradient(trial: Trial) -> Iterator[Difference]:
    """The gradient of the target probabilities equals the exact value within the error bound."""
    if "target_gradient" in trial.differences:
        yield trial.differences["target_gradient"]


@check("gradient", operations=(LINEAR_CROSS_ENTROPY,))
def weight_gradient(trial: Trial) -> Iterator[Difference]:
    """The gradient of linear_weight equals the exact value within the error bound."""
    if "weight_gradient" in trial.differences:
        yield trial.differences["weight_gradient"]


@check("gradient", operations=(LINEAR_CROSS_ENTROPY,), applies=_has_bias)
def bias_gradient(trial: Trial) -> Iterator[Difference]:
    """The gradient of linear_bias equals the exact value within the error bound."""
    if "bias_gradient" in trial.differences:
        yield trial.differences["bias_gradient"]


@check("repeatable", cost=Cost.AGAIN, operations=EVERY_OPERATION)
def repeat(trial: Trial) -> Iterator[Problem]:
    """Calling twice gives identical bits, even after a call with other data and with freed memory filled with NaN.

    The last call gets the tensors of the call with other data, into which the check copied the data of the case in
    place. Later calls must not overwrite the result of the first call.
    """
    yield from _repeat(trial)


def _repeat(trial: Trial) -> Iterator[Problem]:
    question, got = trial.question, trial.digest
    kept, first, second = trial.perform(repeat_call, question.fresh(), question.others.copy(), trial.gradients)
    if {digest_of(kept), digest_of(second)} != {got}:
        alike = digest_of(kept) == digest_of(second) == digest_of(first) != ""
        why = f": {DEPENDS}" if alike else ""  # only the first call of the case gave other bits
        yield Problem("not_repeated", f"a second call with the same arguments gives different bits{why}")
    elif first.digest != kept.digest:
        yield Problem("not_repeated", "a later call writes into the result of the first call")


@check(
    applies=lambda case: case.weight not in SIGNED_WEIGHTS and case.target != "unnormalised",
    operations=EVERY_OPERATION,
)
def sign(trial: Trial) -> Iterator[Difference]:
    """If no weight and no target probability is negative, no loss is below 0 by more than its error bound.

    The loss of a row is a sum of terms `-w_c q_c log p_c`, and no `-log p_c` is negative. apple/ml-cross-entropy#52:
    losses were far too low and negative, and no test noticed.
    """
    yield from _sign(trial)


def _sign(trial: Trial) -> Iterator[Difference]:
    losses = trial.got.loss.reshape(-1, 1).cpu().double().numpy()
    zeros = np.zeros_like(losses)
    # In place of the exact value: the loss itself, or 0 for a negative loss.
    allowed = Ball(np.maximum(losses, 0.0), zeros, zeros)
    if (losses < 0).any():
        yield from trial.compare(Result(trial.got.loss), replace(trial.question.exact, loss=allowed))
    else:
        yield difference("loss", name_of(trial.got.loss), losses, allowed, zeros)


@check("gradient", applies=lambda case: case.rows > 0)
def row_sums(trial: Trial) -> Iterator[Difference]:
    """The gradient of each row, `g/D (p_c Σ_k w_k q_k - w_c q_c)`, sums to 0 over the classes, up to rounding.

    The exact sum is 0, since `Σ_c p_c` is 1. The check computes the sum with :func:`compensated_sum`. This sum may
    differ from 0 by the error bounds of all added numbers, plus the error bound of `compensated_sum`. The check leaves
    out rows without a softmax or without error bounds.
    """
    yield from _row_sums(trial)


def _row_sums(trial: Trial) -> Iterator[Difference]:
    of_logits = trial.got.gradient
    assert of_logits is not None
    numbers, dtype = rows_of(of_logits), name_of(of_logits)
    with np.errstate(all="ignore"):  # the gradient of the subject may be infinite
        bound = trial.bounds(trial.got, trial.question.exact)["gradient"].sum(1)
        total, size = compensated_sum(numbers), np.abs(numbers).sum(1)
        lost = UNIT_ROUNDOFF * np.abs(total) + 2.0**-17 * UNIT_ROUNDOFF * size  # the bound of `compensated_sum`
        plain = numbers.sum(1)
    finite = np.isfinite(numbers).all(1)
    judged = np.isfinite(bound) & _has_softmax(trial) & (np.isfinite(lost) | ~finite)
    total = np.where(judged, np.where(finite, total, plain), 0.0)
    allowed = np.where(judged, safe(bound + np.where(finite, lost, 0.0)), np.inf)
    zeros = np.zeros((len(total), 1))
    found = difference("gradient", dtype, total[:, None], Ball(zeros, zeros, zeros), allowed[:, None])
    row = found.index[0]
    yield replace(
        found,
        index=tuple(map(int, np.unravel_index(row, _row_sizes(trial.case)))),
        ulp=found.error / FORMATS[dtype].last_place(float(np.abs(numbers[row]).max())),
        not_judged={"the sum of the row has no error bound": int((~judged).sum())} if not judged.all() else {},
    )


@check(applies=lambda case: case.ignored != "kept", operations=EVERY_OPERATION)
def ignored_rows(trial: Trial) -> Iterator[Problem]:
    """The loss and the gradient of an ignored row are exactly 0.

    With "mean" and "sum", the check tests only the gradient. The check leaves out the gradient of an ignored row whose
    logits have no softmax, where torch returns NaN.
    pytorch#20406 and Liger-Kernel#1338: kernels wrote nothing for ignored rows, and returned old content of the memory.
    """
    yield from _ignored_rows(trial)


def _ignored_rows(trial: Trial) -> Iterator[Problem]:
    index = trial.question.inputs_on_cpu.target.long()  # as uint8, -100 would be 156
    ignored = index == trial.question.inputs_on_cpu.options.get("ignore_index", -100)
    if trial.case.reduction == "none":
        yield from _not_zero("loss", trial.got.loss.cpu(), ignored)
    if trial.got.gradient is not None:
        with_softmax = ignored.new_tensor(_has_softmax(trial)).reshape(ignored.shape)
        name = in_words("gradient", trial.case.operation)
        yield from _not_zero(name, trial.got.gradient.cpu(), ignored & with_softmax)


def _not_zero(name: str, got: Tensor, rows: Tensor) -> Iterator[Problem]:
    """Yield a problem if the loss or gradient `got` is not 0 in a row where `rows`, (N, d1, …), is True."""
    axis = min(1, got.dim() - 1)
    is_loss = got.dim() == rows.dim()
    wrong = (got != 0) & (rows if is_loss else rows.unsqueeze(axis))
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        wrong_rows = wrong if is_loss else wrong.any(axis)
        yield Problem(
            "wrong",
            f"{name}: not 0 in {int(wrong_rows.sum())} of {counted(int(rows.sum()), 'ignored row')}; "
            f"got {got[first].item()} at index {first}; expected 0",
        )


def _has_softmax(trial: Trial) -> NDArray[np.bool_]:
    """Return, for each row, whether its logits have a softmax: no NaN, no +inf, and not all -inf."""
    return np.asarray(np.isfinite(trial.question.exact.terms.logits.max(1)))


def _row_sizes(case: Case) -> tuple[int, ...]:
    return (case.sizes[0], *case.sizes[2:]) if len(case.sizes) > 1 else ()
