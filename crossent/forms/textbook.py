r"""Cross-entropy written out by hand, in the forms people know.

One row of logits `x` over `C` classes, with the true class `y`, has the loss

    -log softmax(x)_y  =  -x_y + log Σ_i exp(x_i)

The functions below are ways to write that down. All have the signature of `torch.nn.functional.cross_entropy`
and its contract: rows from `(C)`, `(N, C)` or `(N, C, d1, …, dK)`, class indices or class probabilities,
`weight`, `ignore_index`, `label_smoothing` and `reduction`. With class weights `w` and the smoothed target
`q = (1 - ε)·target + ε/C`, the loss of a row is

    -Σ_c w_c q_c log softmax(x)_c

Source: the page of `torch.nn.CrossEntropyLoss` in torch's documentation; the shift by the maximum is
Blanchard, Higham & Higham, "Accurately computing the log-sum-exp and softmax functions", IMA J. Numer. Anal.
41(4), 2021, algorithm 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.forms.rows import lay_out
from crossent.forms.validation import REDUCTIONS, as_float, as_int


def formula(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy as `-x_y + log Σ_i exp(x_i)`.

    The row's maximum is taken off `x` first, before the logarithm meets `x_y`: nothing overflows, and where
    every logit is 1e8 the loss still is `log C` (pytorch#38839).

    Args:
        input: logits, `(C)`, `(N, C)` or `(N, C, d1, …, dK)`; float16, bfloat16, float32 or float64. Half
            precision is computed in float32 and rounded once.
        target: class indices, int64 or uint8, of the logits' shape without `C`; or class probabilities, of the
            logits' shape and any of the four dtypes.
        weight: `(C)`, a factor for each class; the logits' dtype where targets are indices.
        ignore_index: rows with this target have loss 0 and are not counted by `mean`; need not be a class. With
            probabilities it must be negative and is not used.
        reduction: "none", "mean" (over the weight of the kept rows; over the rows where targets are
            probabilities) or "sum".
        label_smoothing: `ε` from 0 to 1, the share of the target that is spread evenly over all classes.

    Returns:
        A scalar, or the rows' losses in the target's shape under "none". It has the dtype of the logits; that of
        their promotion with target and weight where targets are probabilities; float32 for half precision under
        autocast.

    Raises:
        TypeError: an argument of the wrong Python type.
        ValueError: an unknown reduction, or a wrong batch size.
        RuntimeError: any other wrong shape, a wrong dtype of target or weight, two devices, `label_smoothing`
            outside 0 to 1, or `ignore_index >= 0` with probabilities.
        NotImplementedError: logits that are not one of the four dtypes, or not dense.
        IndexError: a target outside `[0, C)` that is not `ignore_index`. Compiled code raises RuntimeError, and
            on CUDA it is a device-side assert, both as in torch: no form makes the host wait for the device.

    Example:
        >>> import torch, crossent
        >>> loss = crossent.formula(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.1291
    """
    rows = lay_out(input, target, weight, ignore_index, reduction, label_smoothing)
    x = rows.logits - rows.logits.detach().amax(-1, keepdim=True)
    log_sum = x.exp().sum(-1, keepdim=True).log()
    if rows.dense:
        return rows.reduce(rows.expect(-x + log_sum))
    return rows.reduce(rows.weigh(-rows.pick(x) + log_sum.squeeze(-1)))


def log_softmax_nll(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy as the negative log-likelihood of the log-softmax: `-log softmax(x)_y`.

    `F.log_softmax`, then `F.nll_loss`: what `nn.CrossEntropyLoss` says it is. Probability targets and label
    smoothing, which `F.nll_loss` does not have, are the sum over classes by hand. Arguments, result and errors
    are those of :func:`formula`.

    Example:
        >>> import torch, crossent
        >>> loss = crossent.log_softmax_nll(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.1291
    """
    rows = lay_out(input, target, weight, ignore_index, reduction, label_smoothing)
    log_probs = F.log_softmax(rows.logits, -1)
    if rows.dense:
        return rows.reduce(-rows.expect(log_probs))
    assert rows.index is not None  # or every class would count
    # Reduced by rows.reduce: F.nll_loss's own sums skip a flush where every 16th row is ignored, and its
    # backward refuses some views of four dimensions (pytorch#175084), so it gets rows, one loss for each.
    losses = F.nll_loss(
        log_probs.reshape(-1, log_probs.shape[-1]), rows.index.reshape(-1), rows.weight, reduction="none"
    )
    return rows.reduce(losses.reshape(rows.index.shape))


def one_hot(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy as `-Σ_i y'_i log softmax(x)_i` over a dense target `y'`.

    An index becomes its one-hot vector. Its zeros are no terms at all, so `-inf` logits of other classes do not
    make NaN of the sum (optax#896); a zero among class probabilities is a term, and `0·-inf` is NaN, as in torch.
    Arguments, result and errors are those of :func:`formula`.

    Example:
        >>> import torch, crossent
        >>> loss = crossent.one_hot(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.1291
    """
    rows = lay_out(input, target, weight, ignore_index, reduction, label_smoothing)
    y = rows.one_hot()
    terms = rows.weighted(y * torch.log_softmax(rows.logits, -1))
    if rows.index is not None:
        terms = torch.where(y == 0, 0.0, terms)
    return rows.reduce(-terms.sum(-1))


def scalar(
    input: Sequence[float],
    target: int | Sequence[float],
    weight: Sequence[float] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> float:
    r"""Cross-entropy of one row with Python's `math` alone: `-x_y + log Σ_i exp(x_i)`, one term after another.

    The listing that this project grew from, with the maximum taken off first, so that a logit of 1000 does not
    overflow. No torch, no gradient: for reading, and for checking by hand.

    Args:
        input: the logits of one row, a sequence of `C` numbers.
        target: the true class, 0 to C - 1, or `C` class probabilities.
        weight: a factor for each class.
        ignore_index: as a target, it makes the loss 0, and the mean 0/0, NaN.
        reduction: "none" and "sum" give the row's loss, "mean" divides it by the true class's weight (by one
            where the target is probabilities).
        label_smoothing: `ε` from 0 to 1.

    Returns:
        The loss, a Python float (binary64).

    Raises:
        TypeError, ValueError: an argument of the wrong type or length, or an option out of its range.
        IndexError: a target outside `[0, C)` that is not `ignore_index`.

    Example:
        >>> import crossent
        >>> round(crossent.scalar([3, 1, -3], 0), 4)
        0.1291
        >>> crossent.scalar([1000, 1000], 0) == crossent.scalar([0, 0], 0)
        True
    """
    x = _numbers("input", input)
    w = [1.0] * len(x) if weight is None else _numbers("weight", weight, len(x))
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}; allowed are 'none', 'mean' and 'sum'")
    label_smoothing = as_float("label_smoothing", label_smoothing)
    ignore_index = as_int("ignore_index", ignore_index)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: got {label_smoothing}; allowed is 0 to 1")
    smooth = label_smoothing / len(x)

    if isinstance(target, Sequence):
        if ignore_index >= 0:
            raise ValueError(f"ignore_index: got {ignore_index} with class probabilities; allowed is a negative one")
        q = {c: (1 - label_smoothing) * t + smooth for c, t in enumerate(_numbers("target", target, len(x)))}
        denominator = 1.0
    elif (target := as_int("target", target)) == ignore_index:
        return math.nan if reduction == "mean" else 0.0
    elif 0 <= target < len(x):
        # A one-hot target without smoothing needs one term only; the others are no terms at all.
        q = {c: (1 - label_smoothing) * (c == target) + smooth for c in range(len(x))} if smooth else {target: 1.0}
        denominator = w[target]
    else:
        raise IndexError(f"target: got {target}; allowed are the classes 0 to {len(x) - 1} and ignore_index")

    largest = max(x)
    second = math.log(math.fsum(math.exp(x_i - largest) for x_i in x)) if largest > -math.inf else math.nan
    loss = sum(w[c] * q_c * (-(x[c] - largest) + second) for c, q_c in q.items())
    if reduction != "mean":
        return loss
    return loss / denominator if denominator else math.nan


def _numbers(name: str, values: Sequence[float], length: int | None = None) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"{name}: got {type(values).__name__}; allowed is a sequence of numbers")
    numbers = [as_float(name, value) for value in values]
    if not numbers or len(numbers) != (length or len(numbers)):
        raise ValueError(f"{name}: got {len(numbers)} numbers; allowed is {length or 'at least 1'}, one for each class")
    return numbers
