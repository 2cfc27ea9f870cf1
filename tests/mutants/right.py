"""A right cross-entropy as a sequence of steps, and the decorator that declares a mutant.

A mutant is a wrong cross-entropy: a function with the signature of `F.cross_entropy`, one line away from a right loss.
The other files of this folder import this file by its bare name, as scripts do. So
`crossent check tests/mutants/targets.py:NAME` works as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.forms.rows import Rows, lay_out

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Mutant:
    """A wrong cross-entropy.

    Attributes:
        loss: the function.
        checks: the names of the checks that find the mutant on the case; its own check comes first.
        case: the id of a case or of a bad input that shows the mutant.
        issues: the issues that report the bug, such as `pytorch#73205`, or ids of the corpus.
        own: the reason why the mistake is likely, if no issue is known.
    """

    loss: Loss
    checks: tuple[str, ...]
    case: str
    issues: tuple[str, ...]
    own: str

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.loss.__name__

    def __str__(self) -> str:
        return self.name


def mutant(checks: str, case: str, *issues: str, own: str = "") -> Callable[[Loss], Loss]:
    """Return a decorator that sets the attribute `mutant` of a function. `checks` has names separated by spaces."""

    def declare(loss: Any) -> Loss:
        loss.mutant = Mutant(loss, tuple(checks.split()), case, issues, own)
        return loss

    return declare


def form(body: Callable[[Rows], Tensor]) -> Loss:
    """Return a cross-entropy from a function that computes the result from the rows of a call."""

    def loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        return body(lay_out(input, target, weight, ignore_index, reduction, label_smoothing))

    functools.update_wrapper(loss, body)
    del loss.__wrapped__  # so that inspect reads the signature of `loss`
    return loss


# The steps. Rows have shape (..., C) and losses (...). The denominator is the divisor of a mean.


def log_probs(logits: Tensor) -> Tensor:
    """Return `log softmax(x)`, (..., C)."""
    return F.log_softmax(logits, -1)


def shifted(logits: Tensor) -> Tensor:
    """Return `x - max x`, (..., C)."""
    return logits - logits.detach().amax(-1, keepdim=True)


def row_losses(rows: Rows, values: Tensor | None = None) -> Tensor:
    """Return `-Σ_c w_c q_c log p_c`, (...), with any value in ignored rows. `values` replaces `log p`."""
    values = log_probs(rows.logits) if values is None else values
    return -rows.expect(values) if rows.dense else -rows.weigh(rows.pick(values))


def denominator(rows: Rows) -> Tensor | float:
    """Return `Σ w[y]` over the kept rows, or the number of rows if targets are probabilities."""
    return rows.logits[..., 0].numel() if rows.target_weight is None else rows.target_weight.sum()


def masked(rows: Rows, losses: Tensor) -> Tensor:
    """Return the losses with 0 in ignored rows."""
    return losses if rows.kept is None else torch.where(rows.kept, losses, 0.0)


def reduced(rows: Rows, losses: Tensor, by: Tensor | float) -> Tensor:
    """Return the result from masked losses. A mean is the sum divided by `by`."""
    if rows.reduction != "none":
        losses = losses.sum() / (by if rows.reduction == "mean" else 1)
    return losses.to(rows.dtype)


@form
def right(rows: Rows) -> Tensor:
    """Compute the loss by the right steps."""
    return reduced(rows, masked(rows, row_losses(rows)), denominator(rows))


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return values.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.change(upstream), None


def with_upstream(values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the values with `change(upstream)` as their gradient."""
    return _Backward.apply(values, change)  # type: ignore[no-any-return]


def with_value(tensor: Tensor, value: Tensor) -> Tensor:
    """Return the value with the gradient of the tensor."""
    return torch.where(tensor.detach() == value, tensor, tensor + (value - tensor).detach())


class LogSoftmax(torch.autograd.Function):
    """`log softmax(x)` with `change(p, upstream)` as the gradient."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.save_for_backward(x.softmax(-1))
        ctx.change = change
        return log_probs(x)

    @staticmethod
    def backward(ctx, upstream):
        return ctx.change(*ctx.saved_tensors, upstream), None
