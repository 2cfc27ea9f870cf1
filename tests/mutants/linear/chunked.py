"""A right linear cross-entropy on chunks of rows as a sequence of steps, and decorators that replace a step.

A mutant is a wrong linear cross-entropy: a function with the signature of `F.linear_cross_entropy`, one step away from
a right function. The files of this folder and of its parent import each other by their bare names. So this command
works:

    PYTHONPATH=tests/mutants crossent check tests/mutants/linear/linear_chunks.py:NAME --operation linear_cross_entropy
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from right import Loss
from torch import Tensor
from torch.autograd.function import once_differentiable

from crossent.forms import linear_formula
from crossent.forms.linear import _arranged
from crossent.forms.rows import Rows

ROWS = 4  # the least number of rows in a chunk
# A loss lacks these features if its gradient is written by hand.
LACKS = dict.fromkeys(
    ("vmap", "forward_ad", "double_backward", "batched_gradient", "compile"), "has a gradient by hand"
)


class Chunked:
    """A right linear cross-entropy of hidden states, (N, H). Each method is a step, which a mutant can replace.

    A chunk is a slice of r rows. All steps compute in float32, or in float64 for float64.

    Attributes:
        rows: the target and the options. The index of an ignored row is 0.
        dtype: the dtype of the hidden states.
        h, w, b: hidden states, (N, H), with 0 in ignored rows; weight, (V, H); bias, (V,) or 0.
        upstream: the upstream gradient of each row, (N,).
        grad_h, grad_w, grad_b: the gradients of h, w and b.
    """

    def __init__(self, rows: Rows, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
        self.rows, self.dtype, self.leaves = rows, input.dtype, (input, linear_weight, linear_bias)
        self.h, self.w = (self.operand(leaf.detach()) for leaf in (input, linear_weight))
        self.b = 0.0 if linear_bias is None else linear_bias.detach().to(rows.compute)
        if rows.kept is not None:
            self.h = torch.where(rows.kept[:, None], self.h, 0.0)

    def operand(self, factor: Tensor) -> Tensor:
        """Return hidden states or the weight in the dtype of the computation."""
        return factor.to(self.rows.compute)

    def narrow(self, values: Tensor) -> Tensor:
        """Return values that are rounded to the dtype of the hidden states."""
        return values.to(self.dtype).to(values.dtype)

    def chunks(self) -> list[slice]:
        """Return the chunks, at most 80. All have the same length, `ROWS` or more, but the last may be shorter."""
        length = max(ROWS, len(self.h) // 64)
        return [slice(start, min(start + length, len(self.h))) for start in range(0, len(self.h), length)]

    def masked(self, values: Tensor, chunk: slice) -> Tensor:
        """Return the values, (r,), with 0 in ignored rows."""
        return values if self.rows.kept is None else torch.where(self.rows.kept[chunk], values, 0.0)

    # The loss.

    def logits(self, chunk: slice) -> Tensor:
        """Return `z = h Wᵀ + b`, (r, V)."""
        return self.h[chunk] @ self.w.mT + self.b

    def log_probs(self, z: Tensor) -> Tensor:
        """Return `log softmax(z)`, (r, V)."""
        x = z - z.amax(1, keepdim=True)
        return x - x.exp().sum(1, keepdim=True).log()

    def index(self, chunk: slice) -> Tensor:
        """Return the true class of each row, (r,)."""
        assert self.rows.index is not None
        return self.rows.index[chunk]

    def hot(self, chunk: slice) -> Tensor:
        """Return the target without smoothing, (r, V)."""
        if self.rows.probabilities is not None:
            return self.rows.probabilities[chunk].to(self.rows.compute)
        return F.one_hot(self.index(chunk), len(self.w)).to(self.rows.compute)

    def coefficients(self, chunk: slice) -> Tensor:
        """Return `v_c = w_c q_c` for the class weights w and the smoothed target q, (r, V)."""
        smoothing = self.rows.label_smoothing
        return self.rows.weighted((1 - smoothing) * self.hot(chunk) + smoothing / len(self.w))

    def row_losses(self, chunk: slice) -> Tensor:
        """Return `-Σ_c v_c log p_c`, (r,), and 0 in ignored rows."""
        terms = self.coefficients(chunk) * self.log_probs(self.logits(chunk))
        return self.masked(-terms.sum(1), chunk)

    def divisor(self) -> Tensor | int:
        """Return the number by which a mean divides: the total weight of the true classes of the kept rows."""
        return self.rows.divisor if self.rows.reduction == "mean" else 1

    def losses(self) -> Tensor:
        """Return the loss of each row, (N,)."""
        losses = self.h.new_zeros(len(self.h))
        for chunk in self.chunks():
            losses[chunk] = self.row_losses(chunk)
        return losses

    def reduced(self, losses: Tensor) -> Tensor:
        """Return the result from the losses of the rows."""
        return losses if self.rows.reduction == "none" else losses.sum() / self.divisor()

    # The gradients.

    def each_upstream(self, upstream: Tensor) -> Tensor:
        """Return the upstream gradient of each row, (N,)."""
        return upstream.to(self.rows.compute).expand(len(self.h))

    def scale(self, chunk: slice) -> Tensor:
        """Return the factor of the gradient of each row's logits, (r, 1)."""
        return self.masked(self.upstream[chunk] / self.divisor(), chunk)[:, None]

    def slope(self, chunk: slice) -> Tensor:
        """Return `d = scale (p Σ_c v_c - v)`, the gradient of the logits, (r, V)."""
        p, v = self.log_probs(self.logits(chunk)).exp(), self.coefficients(chunk)
        return self.scale(chunk) * (p * v.sum(1, keepdim=True) - v)

    def input_gradient(self, d: Tensor, chunk: slice) -> Tensor:
        """Return the gradient of a chunk of hidden states, `d W`, (r, H)."""
        return d @ self.w

    def add(self, d: Tensor, chunk: slice) -> None:
        """Add the parts of a chunk to the gradients of weight and bias: `dᵀ h` and the sum of the rows of d."""
        self.grad_w += d.mT @ self.h[chunk]
        self.grad_b += d.sum(0)

    def differentiate(self, upstream: Tensor) -> list[Tensor]:
        """Return the gradients of h, w and b, in the dtype of the computation."""
        self.upstream = self.each_upstream(upstream)
        self.grad_h, self.grad_w = torch.zeros_like(self.h), torch.zeros_like(self.w)
        self.grad_b = self.w.new_zeros(len(self.w))
        for chunk in self.chunks():
            d = self.slope(chunk)
            self.grad_h[chunk] = self.input_gradient(d, chunk)
            self.add(d, chunk)
        return [self.grad_h, self.grad_w, self.grad_b]

    def gradients(self, upstream: Tensor, wanted: tuple[bool, ...]) -> list[Tensor | None]:
        """Return the wanted gradients in the dtype of the hidden states."""
        found = zip(self.differentiate(upstream), wanted, strict=True)
        return [one.to(self.dtype) if want else None for one, want in found]


CHUNKED_STEPS = {name for name in vars(Chunked) if not name.startswith("_")}


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: Chunked, *leaves: Tensor | None) -> Tensor:
        ctx.steps = steps
        return steps.reduced(steps.losses()).to(steps.rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(upstream.device.type, enabled=False):
            return None, *ctx.steps.gradients(upstream, ctx.needs_input_grad[1:])


Body = Callable[..., Tensor]


def linear(body: Body) -> Loss:
    """Return a linear cross-entropy that checks its arguments and calls `body`.

    The first argument of `body` is an object with the target and the options of one or more rows. Some calls go to
    :func:`linear_formula`: batches without rows, inputs of other shapes than (N, H), and calls that need a gradient of
    the target or of the class weight.
    """

    def loss(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        named = {"reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
        rows = _arranged((input, linear_weight, linear_bias, target, weight), named)
        needed = any(one is not None and one.requires_grad for one in (target, weight))
        if input.dim() != 2 or linear_weight.dim() != 2 or len(input) == 0 or needed:
            return linear_formula(input, linear_weight, target, linear_bias=linear_bias, weight=weight, **named)
        options = {"linear_bias": linear_bias, "weight": weight, **named}
        return body(rows, input, linear_weight, target, **options)

    functools.update_wrapper(loss, body)
    del loss.__wrapped__  # so that inspect reads the signature of `loss`
    return by_hand(loss)


def by_hand(loss: Any) -> Loss:
    """Declare the features that a loss lacks if its gradient is written by hand, and return the loss."""
    loss.lacks = LACKS
    return loss  # type: ignore[no-any-return]


def by_steps(steps: type[Chunked], rows: Rows, *leaves: Tensor | None) -> Tensor:
    """Compute the loss by the steps of a class. `leaves` are the input, the weight and the bias."""
    with torch.autocast(rows.logits.device.type, enabled=False):
        result: Tensor = _ByHand.apply(steps(rows, *leaves), *leaves)  # type: ignore[arg-type,no-untyped-call]
    return result


@linear
def right_on_chunks(rows: Rows, input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Compute the loss by the right steps."""
    return by_steps(Chunked, rows, input, linear_weight, options["linear_bias"])


def step(name: str) -> Callable[[Callable[..., Any]], Loss]:
    """Return a decorator that turns a function into the linear cross-entropy with this function as one step."""
    assert name in CHUNKED_STEPS, name

    def replace(body: Callable[..., Any]) -> Loss:
        steps = type(body.__name__, (Chunked,), {name: body})

        def loss(rows: Rows, input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any) -> Tensor:
            return by_steps(steps, rows, input, linear_weight, options["linear_bias"])

        functools.update_wrapper(loss, body)
        made = linear(loss)
        made.step = name  # type: ignore[attr-defined]
        return made

    return replace


def pieces(input: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the chunks of input and target, for a mutant that calls a whole loss on each chunk."""
    return zip(input.split(ROWS), target.split(ROWS), strict=True)


def tiles(length: int, least: int) -> list[slice]:
    """Return the slices of `length` classes or hidden units: about 64 slices, or fewer of `least` elements each."""
    size = max(least, length // 64)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
