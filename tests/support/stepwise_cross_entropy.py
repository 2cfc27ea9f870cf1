"""A cross-entropy that computes loss and gradient in named steps. A defect replaces one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from crossent.forms.rows import lay_out

HALVES = ("float16", "bfloat16")
WIDE = ("float32", "float64")
EVERY = (*HALVES, *WIDE)


@dataclass(frozen=True)
class CrossEntropy:
    """A cross-entropy with the signature of `F.cross_entropy`: correct, or with one wrong step.

    Attributes:
        name: the name of the defect.
        sentence: a description of the mistake, in a sentence.
        dtypes: the dtypes of the logits for which the step is wrong. For example, rounding float16 numbers to float16
            is not wrong.
        step: the name of the wrong step in :class:`_InSteps`.
        wrong: a function that returns the wrong value of the step. Its arguments are an object with the values of all
            steps so far, and the right value.
    """

    name: str
    sentence: str
    dtypes: tuple[str, ...] = EVERY
    step: str = ""
    wrong: Callable[[Any, Any], Any] = lambda steps, right: right

    def __call__(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        rows = lay_out(input, target, weight, ignore_index, reduction, 0.0)  # a later step smooths the target
        steps = SimpleNamespace(rows=rows, label_smoothing=label_smoothing, stored=lambda v: through(rows.dtype, v))
        return _InSteps.apply(rows.logits, steps, self)

    def __str__(self) -> str:
        return self.name


class _InSteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, steps: Any, defect: CrossEntropy) -> Tensor:
        def step(name: str, right: Any) -> Any:
            setattr(steps, name, defect.wrong(steps, right) if name == defect.step else right)
            return getattr(steps, name)

        rows = steps.rows
        x = step("logits", logits)
        largest = step("largest", x.amax(-1, keepdim=True))
        shifted = step("shifted", x - largest)
        exps = step("exps", shifted.exp())
        total = step("total", exps.sum(-1, keepdim=True))
        log_sum = step("log_sum", total.log())
        log_probs = step("log_probs", shifted - log_sum)

        smoothing = step("smoothing", steps.label_smoothing)
        uniform = step("uniform", torch.tensor(smoothing / x.shape[-1], dtype=x.dtype))
        q = step("target", (1 - smoothing) * rows.smoothed_target() + uniform)
        weight = step("weight", torch.ones_like(x[..., :1]) if rows.weight is None else rows.weight)
        wq = weight * q if rows.kept is None else torch.where(rows.kept.unsqueeze(-1), weight * q, 0.0)
        wq = step("wq", wq)

        losses = step("losses", -torch.where(wq == 0, 0.0, wq * log_probs).sum(-1))  # 0 · -inf must not become NaN
        kept = torch.ones_like(losses) if rows.kept is None else rows.kept.to(x.dtype)
        counted = kept if rows.index is None else torch.where(rows.kept, rows.pick(weight.expand(x.shape)), 0.0)
        count = step("count", kept.sum())
        denominator = step("denominator", counted.sum() if rows.reduction == "mean" else torch.ones_like(count))
        summed = step("summed", losses if rows.reduction == "none" else losses.sum())
        ctx.step, ctx.steps = step, steps
        return step("loss", summed / denominator).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        s, step = ctx.steps, ctx.step
        scale = step("scale", upstream.to(s.total.dtype).unsqueeze(-1) / s.denominator)
        probs = step("probs", s.exps / s.total)
        softmax = step("softmax", probs * s.wq.sum(-1, keepdim=True))
        unscaled = step("unscaled", softmax - s.wq)
        return step("gradient", unscaled * scale), None, None


def through(dtype: torch.dtype, values: Tensor) -> Tensor:
    """Return the values rounded to `dtype` and converted back to their own dtype."""
    return values.to(dtype).to(values.dtype)


def half(values: Tensor) -> Tensor:
    return through(torch.float16, values)


def bfloat(values: Tensor) -> Tensor:
    return through(torch.bfloat16, values)


def single(values: Tensor) -> Tensor:
    return through(torch.float32, values)


def running(dtype: torch.dtype, terms: Tensor) -> Tensor:
    """Return the sum over the last axis, (..., 1), added term by term in `dtype`."""
    total = torch.zeros_like(terms[..., :1], dtype=dtype)
    for term in terms.split(1, -1):
        total = total + term.to(dtype)
    return total.to(terms.dtype)


def cut(values: Tensor, bits: int) -> Tensor:
    """Return the values with the last `bits` bits of their float32 representation set to 0."""
    return (values.float().view(torch.int32) & -(1 << bits)).view(torch.float32).to(values.dtype)


def where_true(rows: Any, values: Tensor, others: Tensor) -> Tensor:
    """Return `values` at the true class of each row, and `others` at the other classes."""
    hot = torch.arange(others.shape[-1]) == rows.index.unsqueeze(-1) if rows.index is not None else torch.tensor(False)
    return torch.where(hot, values, others)
