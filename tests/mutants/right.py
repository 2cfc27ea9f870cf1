"""A right cross-entropy in steps, of which a mutant has one wrong, and the words in which it says what kills it.

A mutant is a function with the signature of `F.cross_entropy`, one line away from a right one. The files beside this
one import it by its bare name, as scripts do, so that `crossent check tests/mutants/targets.py:NAME` finds it as well.
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
        loss: itself.
        checks: each of which finds it on the case, the one that it belongs to first.
        case: the id of a case, or of a bad input, that shows it.
        issues: where somebody reported it, as in `pytorch#73205`; the corpus's id of it, where it was met elsewhere.
        own: why somebody could write it, where nobody is known to have done so.
    """

    loss: Loss
    checks: tuple[str, ...]
    case: str
    issues: tuple[str, ...]
    own: str

    @property
    def name(self) -> str:
        """That of the function."""
        return self.loss.__name__

    def __str__(self) -> str:
        return self.name


def mutant(checks: str, case: str, *issues: str, own: str = "") -> Callable[[Loss], Loss]:
    """Declare a function a mutant, as its attribute `mutant`; `checks` are names with spaces between."""

    def declare(loss: Any) -> Loss:
        loss.mutant = Mutant(loss, tuple(checks.split()), case, issues, own)
        return loss

    return declare


def form(body: Callable[[Rows], Tensor]) -> Loss:
    """A cross-entropy from what it does with the rows of a call."""

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
    del loss.__wrapped__  # whose signature is another
    return loss


# The steps: of rows (..., C), losses (...), and what a mean divides by.


def log_probs(logits: Tensor) -> Tensor:
    """`log softmax(x)`, (..., C)."""
    return F.log_softmax(logits, -1)


def shifted(logits: Tensor) -> Tensor:
    """`x - max x`, (..., C)."""
    return logits - logits.detach().amax(-1, keepdim=True)


def row_losses(rows: Rows, values: Tensor | None = None) -> Tensor:
    """`-Σ_c w_c q_c log p_c`, (...), whatever it is on ignored rows; of other log-probabilities than these if given."""
    values = log_probs(rows.logits) if values is None else values
    return -rows.expect(values) if rows.dense else -rows.weigh(rows.pick(values))


def denominator(rows: Rows) -> Tensor | float:
    """`Σ w[y]` over the kept rows; the number of rows where targets are probabilities."""
    return rows.logits[..., 0].numel() if rows.target_weight is None else rows.target_weight.sum()


def masked(rows: Rows, losses: Tensor) -> Tensor:
    """0 on ignored rows."""
    return losses if rows.kept is None else torch.where(rows.kept, losses, 0.0)


def reduced(rows: Rows, losses: Tensor, by: Tensor | float) -> Tensor:
    """The result from losses that are masked, where a mean divides by a number."""
    if rows.reduction != "none":
        losses = losses.sum() / (by if rows.reduction == "mean" else 1)
    return losses.to(rows.dtype)


@form
def right(rows: Rows) -> Tensor:
    """All of them, as they should be."""
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
    """The values; their gradient is made of the upstream one as `change` makes it."""
    return _Backward.apply(values, change)  # type: ignore[no-any-return]


def with_value(tensor: Tensor, value: Tensor) -> Tensor:
    """The value, with the gradient of the tensor."""
    return torch.where(tensor.detach() == value, tensor, tensor + (value - tensor).detach())


class LogSoftmax(torch.autograd.Function):
    """`log softmax(x)`, with `change(p, upstream)` as its gradient."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.save_for_backward(x.softmax(-1))
        ctx.change = change
        return log_probs(x)

    @staticmethod
    def backward(ctx, upstream):
        return ctx.change(*ctx.saved_tensors, upstream), None
