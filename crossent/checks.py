"""Checks: one property of a subject on a case.

Here, that its loss and its gradient equal those of `torch.nn.CrossEntropyLoss` in float64 on the same inputs,
within the bound that rounding allows. The reference is taken in float64 because torch is not the truth in half
precision: bfloat16 logits with p = 0.999 give it a loss of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossent.bounds import FORMATS, Array, RowTerms
from crossent.cases import Inputs

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Result:
    """What a cross-entropy gave for one case."""

    loss: Tensor
    gradient: Tensor | None


@dataclass(frozen=True)
class Expected:
    """What a case should give: the reference's result, and the terms that its bounds are made of."""

    result: Result
    terms: RowTerms


@dataclass(frozen=True)
class Difference:
    """How far one result is from the reference: the worst element, its index, and the bound there."""

    check: str
    index: tuple[int, ...]
    got: float
    expected: float
    bound: float

    @property
    def error(self) -> float:
        """The distance, 0 for equal infinities and for two NaN, infinite for NaN against a number."""
        if np.array_equal(self.got, self.expected, equal_nan=True):
            return 0.0
        error = abs(self.got - self.expected)
        return error if np.isfinite(error) else np.inf

    def __str__(self) -> str:
        where = f" at index {self.index}" if self.index else ""
        return (
            f"got {self.got!r}, nn.CrossEntropyLoss in float64 gives {self.expected!r}{where}: "
            f"difference {self.error:.3g}, allowed {self.bound:.3g}"
        )

    @property
    def ratio(self) -> float:
        """Error ÷ bound: 1 is the limit."""
        if self.error == 0:
            return 0.0
        return self.error / self.bound if self.bound > 0 else np.inf


def evaluate(loss: Loss, inputs: Inputs, *, gradient: bool = True) -> Result:
    """The loss and, where wanted, the gradient of the logits under the case's upstream gradient."""
    logits = inputs.logits.detach().clone(memory_format=torch.preserve_format).requires_grad_(gradient)
    value = loss(logits, inputs.target, **inputs.options)
    if not gradient:
        return Result(value, None)
    # Of the result's own shape: a wrong shape is :func:`misshapen`, and not an error of autograd's.
    upstream = inputs.upstream.to(value.dtype)
    if upstream.shape != value.shape:
        upstream = torch.ones_like(value)
    (of_logits,) = torch.autograd.grad(value, logits, upstream)
    return Result(value.detach(), of_logits)


def reference(inputs: Inputs) -> Expected:
    """`nn.CrossEntropyLoss` in float64, on the same values: widening is exact."""

    def widened(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        loss: Tensor = torch.nn.CrossEntropyLoss(**options)(logits, target)
        return loss

    options = {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.options.items()}
    # uint8 is widened too: torch accepts it, except with weight and label_smoothing together.
    target = inputs.target.double() if inputs.target.is_floating_point() else inputs.target.long()
    wide = Inputs(inputs.logits.double(), target, options, inputs.upstream.double())
    return Expected(evaluate(widened, wide), row_terms(inputs))


def misshapen(got: Result, inputs: Inputs, expected: Expected) -> str | None:
    """What is wrong with the shape or the dtype of the loss, or None: looked at before its numbers."""
    dtype = inputs.logits.dtype
    if inputs.target.is_floating_point():
        dtype = torch.promote_types(dtype, inputs.target.dtype)
    if got.loss.shape == expected.result.loss.shape and got.loss.dtype == dtype:
        return None
    return f"got {got.loss.dtype} {tuple(got.loss.shape)}; expected {dtype} {tuple(expected.result.loss.shape)}"


def compare(got: Result, inputs: Inputs, wanted: Expected) -> list[Difference]:
    """The worst difference of the loss and, where there is one, of the gradient.

    The result must have passed :func:`misshapen`.
    """
    terms, expected = wanted.terms, wanted.result
    storage = FORMATS[str(got.loss.dtype).removeprefix("torch.")]
    compute = storage if got.loss.dtype == torch.float64 else FORMATS["float32"]
    exact = FORMATS["float64"]  # the reference rounds too
    values = expected.loss.reshape(-1, 1).cpu().numpy()
    if inputs.options["reduction"] == "none":
        bounds = (terms.loss_bounds(compute, storage) + terms.loss_bounds(exact, exact))[:, None]
    else:
        value = expected.loss.item()
        bounds = np.array([[terms.reduced_bound(value, compute, storage) + terms.reduced_bound(value, exact, exact)]])
    differences = [_worst("loss", got.loss.reshape(-1, 1).double().cpu().numpy(), values, bounds)]
    if got.gradient is not None and expected.gradient is not None:
        values = _rows(expected.gradient)
        bounds = terms.gradient_bounds(values, compute, storage) + terms.gradient_bounds(values, exact, exact)
        differences.append(_worst("gradient", _rows(got.gradient), values, bounds))
    return differences


def row_terms(inputs: Inputs) -> RowTerms:
    """The exact computation of a case in float64, by numpy: what the bounds are made from."""
    logits = _rows(inputs.logits)
    rows, classes = logits.shape
    options = inputs.options
    weight = options["weight"].double().cpu().numpy() if "weight" in options else np.ones(classes)
    kept = np.ones(rows, bool)
    if inputs.target.is_floating_point():
        q = _rows(inputs.target)
        denominator = float(rows)
    else:
        index = inputs.target.long().cpu().numpy().reshape(-1)
        kept = index != options.get("ignore_index", -100)
        index = np.where(kept, index, 0)
        q = np.zeros((rows, classes))
        q[np.arange(rows), index] = 1.0
        denominator = float((weight[index] * kept).sum())
    smoothing = options["label_smoothing"]
    coefficients = weight * ((1 - smoothing) * q + smoothing / classes) * kept[:, None]
    shifted = logits - logits.max(1, keepdims=True, initial=-np.inf)
    log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    spread = np.where(np.isfinite(shifted), -shifted, 0.0).max(1, initial=0.0)
    losses = np.where(coefficients != 0, -coefficients * log_probs, 0.0).sum(1)
    upstream = np.broadcast_to(inputs.upstream.double().cpu().numpy().reshape(-1), (rows,))
    if options["reduction"] != "mean":
        denominator = 1.0
    return RowTerms(log_probs, spread, coefficients, losses, denominator, upstream)


def _rows(tensor: Tensor) -> Array:
    """(…, C, …) to (R, C), in float64."""
    classes = tensor.shape[min(1, tensor.dim() - 1)]
    last = tensor.movedim(1, -1) if tensor.dim() > 1 else tensor
    rows: Array = last.reshape(-1, classes).detach().double().cpu().numpy()
    return rows


def _worst(check: str, got: Array, expected: Array, bound: Array) -> Difference:
    if got.size == 0:
        return Difference(check, (), 0.0, 0.0, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        same = (got == expected) | (np.isnan(got) & np.isnan(expected))
        ratio = np.where(same, 0.0, np.abs(got - expected) / bound)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)  # NaN against a number
    at = np.unravel_index(int(ratio.argmax()), ratio.shape)
    return Difference(check, tuple(map(int, at)), float(got[at]), float(expected[at]), float(bound[at]))
