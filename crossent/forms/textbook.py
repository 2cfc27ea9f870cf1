r"""Cross-entropy written out by hand, in four well-known forms.

A row of logits `x` over `C` classes, with true class `y`, has the loss

    -log softmax(x)_y  =  -x_y + log Σ_i exp(x_i)

With class weights `w`, label smoothing `ε` and the smoothed target `q = (1 - ε)·target + ε/C`, the loss of a row is

    -Σ_c w_c q_c log softmax(x)_c

Here `target` is the one-hot vector of `y`, or the class probabilities. Source: the documentation of
`torch.nn.CrossEntropyLoss`.

`scalar` computes one row with Python floats. The other three forms compute the loss of
`torch.nn.functional.cross_entropy`. Their gradients may have another memory layout than torch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.forms.rows import lay_out
from crossent.forms.validation import check_row


def formula(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Compute the cross-entropy between logits and targets as `-x_y + log Σ_i exp(x_i)`.

    The arguments and the loss are those of :func:`torch.nn.functional.cross_entropy`, without the deprecated
    `size_average` and `reduce`. For a row of logits `x` over `C` classes, with class weights `w` and
    `ε = label_smoothing`, the loss is::

        loss = -Σ_c w_c q_c log p_c,    log p_c = x_c - log Σ_i exp(x_i),    q = (1 - ε)·target + ε/C

    in nats. A class index `y` stands for its one-hot vector. Without smoothing, the loss is then
    `w_y (-x_y + log Σ_i exp(x_i))`.

    The maximum of the row is first subtracted from the logits, so `exp` never overflows. A row whose logits are all
    1e8 still has the loss `log C` (pytorch#38839). Source: algorithm 4.1 of Blanchard, Higham & Higham,
    "Accurately computing the log-sum-exp and softmax functions", IMA J. Numer. Anal. 41(4), 2021.

    Args:
        input: Logits, in float16, bfloat16, float32 or float64. For a result in float16 or bfloat16, all computation
            is in float32, and the result is rounded once.
        target: Class indices from 0 to C - 1, in int64 or uint8; or class probabilities, in any of the four
            floating-point dtypes. A target with the shape of `input` holds probabilities.
        weight: A factor for each class. With class indices, the dtype must be the dtype of `input`.
        ignore_index: Rows with this target have the loss 0 and do not count in the mean. The number need not be a
            class. With class probabilities, the number must be negative and has no effect.
        reduction: `"none"` returns the loss of each row, and `"sum"` the sum of these losses. `"mean"` divides the sum
            by the total weight of the true classes of the rows that are not ignored. With class probabilities, `"mean"`
            divides by the number of rows. A mean over no rows, or over a total weight of 0, is NaN.
        label_smoothing: `ε`, from 0 to 1: the fraction of the target that is spread evenly over all classes.

    Shape:
        - input: `(C)`, `(N, C)` or `(N, C, d1, …, dK)`.
        - target: with class indices `()` or `(1)`, `(N)` or `(N, d1, …, dK)`; with class probabilities the shape of
            `input`.
        - weight: `(C)`.
        - result: `()`; with `reduction="none"`, `()`, `(N)` or `(N, d1, …, dK)`.

    Returns:
        The loss, in the dtype of `input`. With class probabilities, the dtype is promoted with the dtypes of `target`
        and `weight`. Under autocast, float16 and bfloat16 inputs give float32.

    Raises:
        TypeError: An argument has the wrong Python type.
        ValueError: `reduction` is unknown, `ignore_index` exceeds 64 bits, or the batch sizes differ.
        RuntimeError: A size other than the batch size, a device, or the dtype of `target` or `weight` does not match.
            The error also occurs if `label_smoothing` is outside 0 to 1, or if `ignore_index >= 0` comes with class
            probabilities. It also occurs if `input` has no dimensions and `target` is one class index.
        NotImplementedError: `input` has none of the four dtypes, or a tensor is not dense.
        IndexError: A target is outside 0 to C - 1 and is not `ignore_index`. For such a target, compiled code raises
            RuntimeError, and CUDA stops with a device-side assert, as in torch. No form makes the host wait for the
            device to check the targets. The error also occurs if `input` has no dimensions and `target` is not one
            class index.

    Example:
        >>> import torch, crossent
        >>> loss = crossent.formula(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.1291
    """
    rows = lay_out(input, target, weight, ignore_index, reduction, label_smoothing)
    x = rows.logits - rows.logits.detach().amax(-1, keepdim=True)  # the shift cancels, so it needs no gradient
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
    r"""Compute the cross-entropy as the negative log-likelihood of the log-softmax, `-log softmax(x)_y`.

    The form calls `F.log_softmax` and then `F.nll_loss`, as torch's documentation describes `nn.CrossEntropyLoss`.
    `F.nll_loss` has no class probabilities and no label smoothing. For these, the form computes
    `-Σ_c w_c q_c log softmax(x)_c`, with the class weights `w` and the smoothed target `q`.

    Arguments, result and errors are the same as in :func:`crossent.formula`.

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
    assert rows.index is not None  # because rows.dense is False
    # The sums of F.nll_loss lose accuracy if every 16th row is ignored, so reduce its losses here. Its backward pass
    # refuses some four-dimensional views (pytorch#175084), so pass flat rows.
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
    r"""Compute the cross-entropy as `-Σ_i w_i y'_i log softmax(x)_i` over a dense target `y'`.

    Here `w` are the class weights, and `y' = (1 - ε)·target + ε/C`. A class index becomes its one-hot vector. The sum
    skips the zeros of a one-hot vector, so a logit of `-inf` on a wrong class does not make the loss NaN (optax#896).
    With a class probability of 0, a logit of `-inf` gives `0 · -inf`, NaN, as in torch.

    Arguments, result and errors are the same as in :func:`crossent.formula`.

    Example:
        >>> import torch, crossent
        >>> loss = crossent.one_hot(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.1291
    """
    rows = lay_out(input, target, weight, ignore_index, reduction, label_smoothing)
    y = rows.smoothed_target()
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
    r"""Compute the cross-entropy of one row with Python floats, as `-x_y + log Σ_i exp(x_i)`.

    This form is for reading and for checking by hand: no tensors, no gradient. The maximum is subtracted first, so a
    logit of 1000 does not overflow. The result is in nats.

    Args:
        input: The logits of one row, a sequence of `C` numbers.
        target: The true class, from 0 to C - 1; or a sequence of `C` class probabilities.
        weight: A sequence of `C` numbers, a factor for each class.
        ignore_index: If the target is this number, the loss is 0 and the mean is 0/0, NaN. With class probabilities
            the number must be negative and has no effect.
        reduction: `"none"` and `"sum"` return the loss of the row. `"mean"` divides the loss by the weight of the
            true class, and is NaN for a weight of 0. With class probabilities, `"mean"` returns the loss of the row.
        label_smoothing: `ε`, from 0 to 1: the fraction of the target that is spread evenly over all classes.

    Returns:
        The loss, a Python float (binary64).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A sequence has the wrong length, `reduction` is unknown, `label_smoothing` is outside 0 to 1, or
            `ignore_index >= 0` comes with class probabilities.
        IndexError: The target is outside 0 to C - 1 and is not `ignore_index`.

    Example:
        >>> import crossent
        >>> round(crossent.scalar([3, 1, -3], 0), 4)
        0.1291
        >>> crossent.scalar([1000, 1000], 0) == crossent.scalar([0, 0], 0)
        True
    """
    x, y, w, smoothing = check_row(input, target, weight, ignore_index, reduction, label_smoothing)
    if y is None:  # the row is ignored
        return math.nan if reduction == "mean" else 0.0
    t = y if isinstance(y, list) else [float(c == y) for c in range(len(x))]
    smooth = smoothing / len(x)
    # A class index without smoothing has one term. Other terms would be 0·inf, NaN, at logits of -inf.
    terms = [y] if isinstance(y, int) and not smooth else range(len(x))
    largest = max(x)
    log_sum = math.log(math.fsum(math.exp(x_i - largest) for x_i in x)) if largest > -math.inf else math.nan
    loss = sum(w[c] * ((1 - smoothing) * t[c] + smooth) * (-(x[c] - largest) + log_sum) for c in terms)
    if reduction != "mean":
        return loss
    denominator = w[y] if isinstance(y, int) else 1.0
    return loss / denominator if denominator else math.nan
