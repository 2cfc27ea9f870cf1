"""Checks: the properties that a subject must have on a case.

Here are those of a single call, which run on every case; `RELATIONS`, `DERIVATIVES` and `TRANSFORMS` have modules of
their own, and cost more calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent.cases.axes import DENSE_TARGETS
from crossent.cases.case import Case
from crossent.numerics.bounds.rounding import safe
from crossent.numerics.formats import FORMATS
from crossent.numerics.oracle.arithmetic import UNIT_ROUNDOFF, Ball, compensated_sum
from crossent.trials.call import Result, repeat_call
from crossent.trials.check import check
from crossent.trials.difference import Difference, difference
from crossent.trials.exact import name_of, rows_of
from crossent.trials.memory import written
from crossent.trials.trial import Problem, Trial, misshapen


@check()
def call(trial: Trial) -> Iterator[Problem]:
    """The subject takes the arguments, and gives tensors that have bits, as a meta device has none."""
    if not _digest(trial.got):
        yield Problem("refused", "it gives a loss without bits, as one on a meta device is")


@check()
def result(trial: Trial) -> Iterator[Problem]:
    """Shape, dtype and device of the loss are those of the contract."""
    if problem := misshapen(trial, trial.got.loss, trial.question.exact):
        yield problem


@check()
def arguments(trial: Trial) -> Iterator[Problem]:
    """Not a bit of what is given has changed, nor of memory that it is a view of, nor its .grad; no result is there."""
    first = trial.first_call
    if name := written(first.given, trial.question.inputs):
        yield Problem("changed_input", f"it wrote into {name}")
    elif first.marked:
        yield Problem("changed_input", first.marked)
    elif first.shared:
        yield Problem("aliased", first.shared)


@check()
def state(trial: Trial) -> Iterator[Problem]:
    """The call leaves what is global of torch, numpy and Python as it was."""
    _ = trial.got
    if trial.changed_state:
        yield Problem("changed_state", f"it changed {', '.join(dict.fromkeys(trial.changed_state))}")


@check()
def loss(trial: Trial) -> Iterator[Difference]:
    """The loss is the exact one within what rounding allows."""
    yield trial.differences["loss"]


@check("gradient")
def gradient(trial: Trial) -> Iterator[Difference]:
    """The gradient of the logits, under the upstream gradient, is the exact one within what rounding allows."""
    if "gradient" in trial.differences:
        yield trial.differences["gradient"]


@check("gradient", "target_gradient", applies=lambda case: case.target in DENSE_TARGETS)
def target_gradient(trial: Trial) -> Iterator[Difference]:
    """The gradient of target probabilities is the exact one within what rounding allows."""
    if "target_gradient" in trial.differences:
        yield trial.differences["target_gradient"]


@check("repeatable")
def repeat(trial: Trial) -> Iterator[Problem]:
    """A second call gives the same bits, though other data came between and memory is full of NaN; the first keeps its.

    The inputs are the same bits in other memory.
    """
    question = trial.question
    kept, first, second = trial.perform(repeat_call, question.fresh(), question.others.copy(), trial.gradients)
    if {_digest(kept), _digest(second)} != {trial.got.digest}:
        yield Problem("not_repeated", "a second call with the same arguments gives other bits")
    elif first.digest != kept.digest:
        yield Problem("not_repeated", "a second call writes into what the first gave")


def _digest(got: Result) -> str:
    """That of its bits, or "" where it has none."""
    try:
        return got.digest
    except RuntimeError:
        return ""


@check(applies=lambda case: case.weight != "weight_negative" and case.target != "unnormalised")
def sign(trial: Trial) -> Iterator[Difference]:
    """No loss is below zero, by more than its bound, where no `w_c q_c` is: it is a sum of `-log p_c`.

    apple/ml-cross-entropy#52: losses far too low, and negative, of which no test said anything.
    """
    losses = trial.got.loss.reshape(-1, 1).double().cpu().numpy()
    zeros = np.zeros_like(losses)
    # How far it is from the nearest number that it may be.
    allowed = Ball(np.where(losses < 0, 0.0, losses), zeros, zeros)
    yield from trial.compare(Result(trial.got.loss), replace(trial.question.exact, loss=allowed))


@check("gradient", applies=lambda case: case.rows > 0)
def row_sums(trial: Trial) -> Iterator[Difference]:
    """The gradient of a row, `g/D (p_c Σ_k w_k q_k - w_c q_c)`, sums to 0 over the classes.

    Its numbers may be off by the sum of their bounds, and what is made of them here by what :func:`compensated_sum`
    loses. A row with a number that has no bound says nothing, nor does one that has no softmax, or whose sum is beyond
    float64. One that holds NaN or an infinity has no sum, which is not 0.
    """
    of_logits = trial.got.gradient
    assert of_logits is not None
    numbers, dtype = rows_of(of_logits), name_of(of_logits)
    with np.errstate(all="ignore"):  # a result may be infinite
        bound = trial.bounds(trial.got, trial.question.exact)["gradient"].sum(1)
        total, size = compensated_sum(numbers), np.abs(numbers).sum(1)
        lost = UNIT_ROUNDOFF * np.abs(total) + 2.0**-17 * UNIT_ROUNDOFF * size
        plain = numbers.sum(1)
    finite = np.isfinite(numbers).all(1)
    asked = np.isfinite(bound) & _has_softmax(trial) & (np.isfinite(lost) | ~finite)
    total = np.where(asked, np.where(finite, total, plain), 0.0)
    allowed = np.where(asked, safe(bound + np.where(finite, lost, 0.0)), np.inf)
    zeros = np.zeros((len(total), 1))
    found = difference("gradient", dtype, total[:, None], Ball(zeros, zeros, zeros), allowed[:, None])
    row = found.index[0]
    yield replace(
        found,
        index=tuple(map(int, np.unravel_index(row, _row_sizes(trial.case)))),
        ulp=found.error / FORMATS[dtype].last_place(float(np.abs(numbers[row]).max())),
        not_judged={"a number of the row has no bound": int((~asked).sum())} if not asked.all() else {},
    )


@check(applies=lambda case: case.ignored != "kept")
def ignored_rows(trial: Trial) -> Iterator[Problem]:
    """An ignored row has a loss of exactly 0, and a gradient of exactly 0.

    pytorch#20406 and Liger-Kernel#1338: what is skipped is left as it was in memory. Of a row without a softmax the
    gradient is NaN, in torch and by contract.
    """
    index = trial.question.inputs.target.long()  # as uint8, -100 would be 156
    ignored = index == trial.question.inputs.options.get("ignore_index", -100)
    if trial.case.reduction == "none":
        yield from _not_zero("loss", trial.got.loss, ignored)
    if trial.got.gradient is not None:
        with_softmax = torch.from_numpy(_has_softmax(trial)).to(ignored.device).reshape(ignored.shape)
        axis = min(1, trial.got.gradient.dim() - 1)
        yield from _not_zero("gradient", trial.got.gradient.movedim(axis, -1), ignored & with_softmax)


def _not_zero(name: str, got: Tensor, rows: Tensor) -> Iterator[Problem]:
    """What is wrong with a result, (N, d1, …) or (N, d1, …, C), that should be 0 in some rows."""
    wrong = rows & (got != 0 if got.dim() == rows.dim() else (got != 0).any(-1))
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        yield Problem(
            "wrong",
            f"the {name} of {int(wrong.sum())} of {int(rows.sum())} ignored rows is not 0, "
            f"the first at index {first}: {got[first].tolist()}",
        )


def _has_softmax(trial: Trial) -> NDArray[np.bool_]:
    """(R,): False for a row that holds NaN or +inf, or nothing but -inf."""
    return np.asarray(np.isfinite(trial.question.exact.terms.logits.max(1)))


def _row_sizes(case: Case) -> tuple[int, ...]:
    return (case.sizes[0], *case.sizes[2:]) if len(case.sizes) > 1 else ()
