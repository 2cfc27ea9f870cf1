r"""Cross-entropy block by block of rows: the formula once more, for the memory and the time it takes.

    loss = -log p_y,   ∂loss/∂x = g (p - e_y),   p = softmax(x)

torch allocates three buffers as large as the logits and passes over memory six times; two reads and one write are the
least. Here a block of rows stays in the cache while it is worked on, in float32 where the logits are narrower, and one
buffer is allocated, for the gradient (after Hsu et al., "Liger Kernel", arXiv:2410.10989, which writes it into the
logits; no input is written here). The signature is that of `F.cross_entropy`, and one argument more.
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
    r"""Cross-entropy as `-log softmax(x)_y`, some rows at a time, with the gradient `g (p - e_y)` by hand.

    Arguments, result and errors are those of :func:`crossent.formula`. `block_size` is how many logits are worked on
    at a time, and at least one row: a positive integer; what fits the second-level cache, unless given.

    On a CPU the gradient of a reduced loss is written during the forward, for an upstream gradient of one, which
    `loss.backward()` has, and the backward hands it out. Any other upstream, and a second backward, compute it from
    the logits; so does CUDA, where to look at the upstream is to wait for the device. Where target or weight want a
    gradient, where torch transforms, traces or compiles the call, and where something differentiates the gradient,
    it is :func:`crossent.formula` that computes.

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
    """The loss with a gradient of the logits."""

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
            # Of a probability that is hardly above the smallest, or 0, the logarithm has lost digits.
            lost = losses > -math.log(torch.finfo(rows.compute).tiny) - 10
            if lost.any():
                losses = torch.where(lost, _losses(rows, block_size), losses)
        return _reduced(rows, losses)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Tensor | None, ...]:
        (upstream,) = upstreams
        gradient, ctx.gradient = ctx.gradient, None  # whoever gets it may write into it
        constant = not torch.is_grad_enabled() and _plain(upstream)
        if not (constant and gradient is not None and upstream == 1):
            logits, *others = ctx.saved_tensors
            if constant and _plain(logits):
                gradient = torch.empty_like(logits) if gradient is None else gradient
                _differentiate(arrange(logits, *others, *ctx.options), upstream, gradient, ctx.block_size)
            else:  # something differentiates the gradient
                with torch.enable_grad():
                    loss = formula(logits, *others, *ctx.options)
                (gradient,) = torch.autograd.grad(loss, logits, upstream, create_graph=torch.is_grad_enabled())
        return gradient, None, None, None, None


def _reduced(rows: Rows, losses: Tensor) -> Tensor:
    return rows.reduce(losses if rows.dense else rows.weigh(losses))


def _losses(rows: Rows, block_size: int | None) -> Tensor:
    """The loss of each row, (...); without the weight of its true class, where no other counts."""
    losses = torch.empty(rows.logits.shape[:-1], dtype=rows.compute, device=rows.logits.device)
    work = _Work(rows)
    for at in _blocks(rows, block_size):
        log_probs, part = work.softmax(at, log=True), rows.part(at)
        losses[at] = part.widened().expect(log_probs) if part.dense else part.pick(log_probs)
    return -losses


def _differentiate(rows: Rows, upstream: Tensor | None, gradient: Tensor, block_size: int | None) -> Tensor:
    """Write `g/D (p Σ_c v_c - v)` into `gradient`, with `v_c = w_c q_c`; the losses of :func:`_losses`.

    `upstream`: None is one.
    """
    scale = torch.ones((), dtype=rows.compute, device=gradient.device) if upstream is None else upstream
    if rows.reduction == "mean":
        scale = scale.to(rows.compute) / rows.divisor
    gradient = gradient.movedim(1, -1) if gradient.dim() > 1 else gradient
    scale = scale.expand(gradient.shape[:-1])
    ignored = None
    if rows.kept is not None and (gradient.device.type != "cpu" or not rows.kept.all()):
        ignored = ~rows.kept.unsqueeze(-1)  # whose logits may be NaN
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
        # Scaled before the subtraction: that rounds the true class once less than after it.
        p.mul_(factor).scatter_add_(-1, y, -factor)
        _hand_over(p, out, None if ignored is None else ignored[at])
    return -picked.log_().squeeze(-1)


def _differentiate_dense(
    rows: Rows, scale: Tensor, ignored: Tensor | None, gradient: Tensor, block_size: int | None
) -> Tensor:
    """The same where every class counts."""
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
    if ignored is not None:
        made.masked_fill_(ignored, 0)
    if made is not out:
        out.copy_(made)


class _Work:
    """One buffer of a block, in the dtype that is computed in, which comes again in each block."""

    def __init__(self, rows: Rows) -> None:
        self._logits, self._compute = rows.logits, rows.compute
        self._buffer: Tensor | None = None

    def softmax(self, at: Block, out: Tensor | None = None, *, log: bool = False) -> Tensor:
        """The softmax of a block, or its logarithm; in `out`, where that has the dtype that is computed in."""
        x = self._logits[at]
        if out is None or out.dtype != self._compute:
            if self._buffer is None:
                self._buffer = torch.empty_like(x, dtype=self._compute)
            out = self._buffer[: len(x)] if x.dim() > 1 else self._buffer  # the last block may have fewer rows
        if x.dtype != self._compute:
            x = out.copy_(x)  # and then in place: each number is written after it was read for the last time
        axis = _axis(x)
        (torch.log_softmax if log else torch.softmax)(x.movedim(-1, axis), axis, out=out.movedim(-1, axis))
        return out


def _axis(x: Tensor) -> int:
    """Where the class axis, the last one of x, stands in memory: torch's softmax wants it there."""
    return sum(step > x.stride(-1) for step in x.stride()[:-1])


def _blocks(rows: Rows, block_size: int | None) -> Iterator[Block]:
    """Indices of blocks of rows, each of about `block_size` logits and at least one row."""
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
    """How many logits fit the second-level caches of the cores that work, in the dtype that is computed in."""
    if device.type == "cuda":
        cache = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 2**23
    else:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")  # of Linux, "1024K"; a common size elsewhere
        cache = threads * (int(size.read_text().strip().rstrip("K")) * 1024 if size.exists() else 2**20)
    return cache * 8 // torch.finfo(dtype).bits


def _plain(*tensors: Tensor) -> bool:
    """Whether this is torch in eager mode on ordinary tensors: nothing transforms, traces, compiles or dualizes."""
    if compiling() or _transforming() or _modes():
        return False
    ordinary = all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
    return ordinary and (forward_ad._current_level < 0 or all(_tangent(tensor) is None for tensor in tensors))


def _tangent(tensor: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-untyped-call]
    return tangent


# torch.func's transforms, and the modes that trace or fake tensors; of both torch says no more in public.
_transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
