r"""Cross-entropy on blocks of rows, with a gradient written by hand: less memory and less time.

    loss = -log p_y,   ∂loss/∂x = g (p - e_y),   p = softmax(x)

Here `g` is the upstream gradient and `e_y` the one-hot vector of the true class. For loss and gradient, torch allocates
three buffers of the logits' size and passes over memory six times. Two reads and one write are the least possible.

This form keeps a block of rows in the cache while computing on the block, in float32 for float16 and bfloat16 logits.
The form allocates one buffer of the logits' size, for the gradient. The idea is from Hsu et al., "Liger Kernel",
arXiv:2410.10989. That kernel writes the gradient into the logits; this form writes into no argument.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crossent.forms.rows import Rows, arrange, compiling
from crossent.forms.textbook import formula
from crossent.forms.validation import as_int

Block = tuple[int | slice, ...]  # an index of rows


def blocked(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    block_size: int | None = None,
) -> Tensor:
    r"""Compute the cross-entropy as `-log softmax(x)_y` on blocks of rows, with the gradient written by hand.

    The loss is that of :func:`crossent.formula`. The gradient of a row without class weights and smoothing is
    `g (softmax(x) - e_y)`, where `g` is the upstream gradient and `e_y` the one-hot vector of the true class.

    On a CPU, the forward pass of a reduced loss also writes the gradient for an upstream gradient of one. This is the
    upstream gradient of `loss.backward()`, and the backward pass then returns the gradient that is already there. For
    any other upstream gradient, and for a second backward pass, the gradient is computed from the logits. On CUDA,
    the backward pass always computes the gradient, because reading the upstream gradient would wait for the device.

    The function calls :func:`crossent.formula` instead in three cases: `target` or `weight` requires a gradient;
    torch transforms, traces or compiles the call; or the gradient itself is differentiated, or computed for a batch of
    upstream gradients.

    Args:
        input: Logits, as for :func:`crossent.formula`.
        target: Class indices or class probabilities, as for :func:`crossent.formula`.
        weight: A factor for each class, as for :func:`crossent.formula`.
        ignore_index: The target of ignored rows, as for :func:`crossent.formula`.
        reduction: `"none"`, `"mean"` or `"sum"`, as for :func:`crossent.formula`.
        label_smoothing: `ε`, from 0 to 1, as for :func:`crossent.formula`.
        block_size: The number of logits in a block, 1 or more. A block has at least one row. The default is the
            number that fits the second-level cache of the device.

    Returns:
        The loss, with the shape and dtype of :func:`crossent.formula`'s.

    Raises:
        TypeError: `block_size` is no int. All other errors are those of :func:`crossent.formula`.
        ValueError: `block_size` is below 1.

    Example:
        >>> import torch, crossent
        >>> loss = crossent.blocked(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.1291
    """
    if block_size is not None and (block_size := as_int("block_size", block_size)) < 1:
        raise ValueError(f"block_size: got {block_size}; allowed is 1 or more")
    options = ignore_index, reduction, label_smoothing
    if not _plain(input, target, *([] if weight is None else [weight])) or input.numel() == 0:
        return formula(input, target, weight, *options)
    recorded = torch.is_grad_enabled()
    if recorded and (target.requires_grad or (weight is not None and weight.requires_grad)):
        return formula(input, target, weight, *options)
    if recorded and input.requires_grad:
        loss: Tensor = _Blocked.apply(input, target, weight, options, block_size)  # type: ignore[no-untyped-call]
        return loss
    with torch.no_grad():
        rows = arrange(input, target, weight, *options)
        return _reduced(rows, _losses(rows, block_size))


class _Blocked(torch.autograd.Function):
    """The loss as an autograd function, with a gradient of the logits."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, options, block_size = arguments
        rows = arrange(*tensors, *options)
        ctx.save_for_backward(*tensors)
        ctx.options, ctx.block_size, ctx.gradient = options, block_size, None
        if rows.reduction == "none" or rows.logits.device.type != "cpu":
            return _reduced(rows, _losses(rows, block_size))
        ctx.gradient = torch.empty_like(tensors[0])
        losses = _differentiate(rows, None, ctx.gradient, block_size)
        if not rows.dense:
            # The logarithm of a probability that is 0 or near the smallest normal number has lost digits.
            lost = losses > -math.log(torch.finfo(rows.compute).tiny) - 10
            if lost.any():
                losses = torch.where(lost, _losses(rows, block_size), losses)
        return _reduced(rows, losses)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Tensor | None, ...]:
        (upstream,) = upstreams
        gradient, ctx.gradient = ctx.gradient, None  # handed out once: the caller may write into the gradient
        constant = not torch.is_grad_enabled() and _plain(upstream)
        if not (constant and gradient is not None and upstream == 1):
            logits, *others = ctx.saved_tensors
            if constant and _plain(logits):
                gradient = torch.empty_like(logits) if gradient is None else gradient
                _differentiate(arrange(logits, *others, *ctx.options), upstream, gradient, ctx.block_size)
            else:  # the gradient itself is differentiated, or the upstream gradient is a batch
                with torch.enable_grad():
                    loss = formula(logits, *others, *ctx.options)
                (gradient,) = torch.autograd.grad(loss, logits, upstream, create_graph=torch.is_grad_enabled())
        return gradient, None, None, None, None


def _reduced(rows: Rows, losses: Tensor) -> Tensor:
    return rows.reduce(losses if rows.dense else rows.weigh(losses))


def _losses(rows: Rows, block_size: int | None) -> Tensor:
    """Return the loss of each row, (...). Where only the true class has a term, its weight is left out."""
    losses = torch.empty(rows.logits.shape[:-1], dtype=rows.compute, device=rows.logits.device)
    work = _Work(rows)
    for at in _blocks(rows, block_size):
        log_probs, part = work.softmax(at, log=True), rows.part(at)
        losses[at] = part.widened().expect(log_probs) if part.dense else part.pick(log_probs)
    return -losses


def _differentiate(rows: Rows, upstream: Tensor | None, gradient: Tensor, block_size: int | None) -> Tensor:
    """Write `g/D (p Σ_c v_c - v)` into `gradient`, where `v_c = w_c q_c`; return the losses as :func:`_losses` does.

    `g` is the upstream gradient, where None stands for one, and `D` is the divisor of the reduction.
    """
    scale = torch.ones((), dtype=rows.compute, device=gradient.device) if upstream is None else upstream
    if rows.reduction == "mean":
        scale = scale.to(rows.compute) / rows.divisor
    gradient = gradient.movedim(1, -1) if gradient.dim() > 1 else gradient
    scale = scale.expand(gradient.shape[:-1])
    ignored = None
    if rows.kept is not None and (gradient.device.type != "cpu" or not rows.kept.all()):
        ignored = ~rows.kept.unsqueeze(-1)  # the logits of an ignored row may be NaN
    if rows.dense:
        return _differentiate_dense(rows, scale.unsqueeze(-1), ignored, gradient, block_size)
    assert rows.index is not None
    scale, index = rows.weigh(scale).unsqueeze(-1), rows.index.unsqueeze(-1)
    picked = torch.empty_like(scale)
    work = _Work(rows)
    for at in _blocks(rows, block_size):
        out, y, factor = gradient[at], index[at], scale[at]
        p = work.softmax(at, out)
        torch.gather(p, -1, y, out=picked[at])
        # The scaling comes before the subtraction: the true class then has one rounding less.
        p.mul_(factor).scatter_add_(-1, y, -factor)
        _hand_over(p, out, None if ignored is None else ignored[at])
    return -picked.log_().squeeze(-1)


def _differentiate_dense(
    rows: Rows, scale: Tensor, ignored: Tensor | None, gradient: Tensor, block_size: int | None
) -> Tensor:
    """Do the work of :func:`_differentiate` where every class has a term."""
    losses = torch.empty(rows.logits.shape[:-1], dtype=rows.compute, device=gradient.device)
    work = _Work(rows)
    for at in _blocks(rows, block_size):
        log_probs, part = work.softmax(at, log=True), rows.part(at).widened()
        losses[at] = part.expect(log_probs)
        v = part.weighted(part.one_hot())
        slope = log_probs.exp_().mul_(v.sum(-1, keepdim=True)).sub_(v).mul_(scale[at])
        _hand_over(slope, gradient[at], None if ignored is None else ignored[at])
    return -losses


def _hand_over(made: Tensor, out: Tensor, ignored: Tensor | None) -> None:
    """Write the gradient of a block into `out`, with 0 on ignored rows."""
    if ignored is not None:
        made.masked_fill_(ignored, 0)
    if made is not out:
        out.copy_(made)


class _Work:
    """The softmax of each block, in one buffer that all blocks reuse, in the dtype of the computation."""

    def __init__(self, rows: Rows) -> None:
        self._logits, self._compute = rows.logits, rows.compute
        self._buffer: Tensor | None = None

    def softmax(self, at: Block, out: Tensor | None = None, *, log: bool = False) -> Tensor:
        """Return the softmax of a block, or the log-softmax; in `out` if `out` has the dtype of the computation."""
        x = self._logits[at]
        if out is None or out.dtype != self._compute:
            if self._buffer is None:
                self._buffer = torch.empty_like(x, dtype=self._compute)
            out = self._buffer[: len(x)] if x.dim() > 1 else self._buffer  # the last block may have fewer rows
        if x.dtype != self._compute:
            x = out.copy_(x)  # softmax then works in place: it writes each number after the last read of it
        axis = _axis(x)
        (torch.log_softmax if log else torch.softmax)(x.movedim(-1, axis), axis, out=out.movedim(-1, axis))
        return out


def _axis(x: Tensor) -> int:
    """Return the place of the class axis, the last axis of x, in memory order. torch's softmax is fast there."""
    return sum(step > x.stride(-1) for step in x.stride()[:-1])


def _blocks(rows: Rows, block_size: int | None) -> Iterator[Block]:
    """Yield the indices of blocks of rows; a block has about `block_size` logits, and at least one row."""
    *shape, classes = rows.logits.shape
    if block_size is None:
        block_size = _fitting(rows.logits.device, rows.compute, torch.get_num_threads())
    most = max(1, block_size // classes)
    axis, inner = len(shape), 1
    while axis > 0 and inner * shape[axis - 1] <= most:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield ()
        return
    step = most // inner
    for outer in itertools.product(*map(range, shape[: axis - 1])):
        for start in range(0, shape[axis - 1], step):
            yield (*outer, slice(start, start + step))


@functools.cache
def _fitting(device: torch.device, dtype: torch.dtype, threads: int) -> int:
    """Return the number of logits, in the dtype of the computation, that fit the working cores' second-level caches."""
    if device.type == "cuda":
        cache = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 2**23
    else:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")  # Linux has "1024K"; other systems get 1 MiB
        cache = threads * (int(size.read_text().strip().rstrip("K")) * 1024 if size.exists() else 2**20)
    return cache * 8 // torch.finfo(dtype).bits


def _plain(*tensors: Tensor) -> bool:
    """Return whether the call is in eager mode on ordinary tensors.

    The result is False where torch transforms, traces or compiles the call. It is also False where a tensor has a
    forward-mode tangent, or stands for a batch of upstream gradients.
    """
    if compiling() or _transforming() or _modes():
        return False
    ordinary = all(type(tensor) in (Tensor, torch.nn.Parameter) and not _is_batched(tensor) for tensor in tensors)
    return ordinary and (forward_ad._current_level < 0 or all(_tangent(tensor) is None for tensor in tensors))


def _tangent(tensor: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-untyped-call]
    return tangent


# These private functions report torch.func's transforms, the modes that trace or fake tensors, and the tensors that
# stand for a batch under torch.autograd.grad(is_grads_batched=True). torch has no public function for them.
_transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_is_batched = getattr(
    torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: "Batched" in str(torch._C._dispatch_keys(tensor))
)
