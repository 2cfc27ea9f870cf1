r"""Cross-entropy on blocks of rows, with a gradient written by hand: less memory and less time.

    loss = -log p_y,   gradient of x = g (p - e_y),   p = softmax(x)

Here `x` are the logits of a row with the true class `y`, without class weights and label smoothing. `g` is the upstream
gradient of the row's loss, and `e_y` is the one-hot vector of `y`.

For loss and gradient, torch allocates three buffers of the logits' size, and reads or writes such a buffer six times.
One read of the logits and one write of the gradient are enough: `blocked` keeps a block of rows in the cache, and
allocates only the gradient. The idea to compute the gradient together with the loss is from Hsu et al., "Liger Kernel",
arXiv:2410.10989.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crossent.forms.rows import Rows, arrange, compiling
from crossent.forms.textbook import formula
from crossent.forms.validation import as_int


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

    The loss is defined as in :func:`crossent.formula`. For a class index `y` without class weights or smoothing, the
    gradient of a row is `g (softmax(x) - e_y)`. Here `g` is the upstream gradient of the row's loss, and `e_y` is the
    one-hot vector of `y`.

    On a CPU, the forward pass of a reduced loss also computes the gradient for the upstream gradient 1 of
    `loss.backward()`. Otherwise, and in a second backward pass, the backward pass computes the gradient from the
    logits.

    The function calls :func:`crossent.formula` instead if

    - there are no logits,
    - `target` or `weight` requires a gradient,
    - torch transforms, traces or compiles the call, or the call is inside a `TorchDispatchMode`,
    - an argument is a lazily negated view, has a forward-mode tangent, or is of a subclass of `Tensor` other than
      `nn.Parameter`, or
    - the caller differentiates the gradient, or passes a batch of upstream gradients.

    Args:
        input: Logits. All arguments except `block_size` are as for :func:`crossent.formula`.
        target: Class indices or class probabilities.
        weight: A factor for each class.
        ignore_index: The target of ignored rows.
        reduction: `"none"`, `"mean"` or `"sum"`.
        label_smoothing: `ε`, from 0 to 1.
        block_size: The largest number of logits in a block, 1 or more. A block has at least one row. The default fills
            the second-level cache of the device (on a CPU, one cache for each thread), but is at least 2^19.

    Returns:
        The loss, with the same shape and dtype as the loss of :func:`crossent.formula`.

    Raises:
        TypeError: `block_size` is not an int.
        ValueError: `block_size` is below 1. All other errors are as in :func:`crossent.formula`.

    Example:
        >>> import torch, crossent
        >>> loss = crossent.blocked(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.1291
    """
    if block_size is not None and (block_size := as_int("block_size", block_size)) < 1:
        raise ValueError(f"block_size: got {block_size}; allowed is 1 or more")
    options = ignore_index, reduction, label_smoothing
    if not _is_plain(input, target, *([] if weight is None else [weight])) or input.numel() == 0:
        return formula(input, target, weight, *options)
    recorded = torch.is_grad_enabled()
    if recorded and (target.requires_grad or (weight is not None and weight.requires_grad)):
        return formula(input, target, weight, *options)
    if recorded and input.requires_grad:
        loss: Tensor = _Blocked.apply(input, target, weight, options, block_size)  # type: ignore[no-untyped-call]
        return loss
    with torch.no_grad():
        rows = arrange(input, target, weight, *options, eager=input.device.type == "cpu")
        return _weigh_and_reduce(rows, _losses(rows, block_size))


class _Blocked(torch.autograd.Function):
    """The loss as an autograd function, whose backward pass returns a gradient for the logits only."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, options, block_size = arguments
        on_cpu = tensors[0].device.type == "cpu"
        rows = arrange(*tensors, *options, eager=on_cpu)
        ctx.save_for_backward(*tensors)
        ctx.options, ctx.block_size, ctx.gradient = options, block_size, None
        if rows.reduction == "none" or not on_cpu:  # on a device, `backward` would wait for `upstream.item()`
            return _weigh_and_reduce(rows, _losses(rows, block_size))
        ctx.gradient = torch.empty_like(tensors[0])
        losses = _differentiate(rows, 1.0, ctx.gradient, block_size)
        if not rows.dense:
            # A subnormal probability has lost digits, so its logarithm is inaccurate. For a loss up to `most`, the
            # probability is at least e^10 times the smallest normal number.
            most = -math.log(torch.finfo(rows.compute).tiny) - 10
            if not losses.amax().item() <= most:  # the maximum is NaN if a loss is NaN
                losses = torch.where(losses > most, _losses(rows, block_size), losses)
        return _weigh_and_reduce(rows, losses)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Tensor | None, ...]:
        (upstream,) = upstreams
        gradient, ctx.gradient = ctx.gradient, None  # return this tensor once: the caller may write into a gradient
        constant = not torch.is_grad_enabled() and _is_plain(upstream)
        if not (constant and gradient is not None and upstream.item() == 1):
            logits, *others = ctx.saved_tensors
            if constant and _is_plain(logits):
                gradient = torch.empty_like(logits) if gradient is None else gradient
                rows = arrange(logits, *others, *ctx.options, eager=logits.device.type == "cpu")
                _differentiate(rows, upstream, gradient, ctx.block_size)
            else:  # the gradient itself is differentiated, or the upstream gradient is a batch
                with torch.enable_grad():
                    loss = formula(logits, *others, *ctx.options)
                (gradient,) = torch.autograd.grad(loss, logits, upstream, create_graph=torch.is_grad_enabled())
        return gradient, None, None, None, None


def _weigh_and_reduce(rows: Rows, losses: Tensor) -> Tensor:
    """Return the loss of a call from the losses of its rows: apply class weights, then the reduction.

    If `rows.dense` is True, `losses` already include the class weights.
    """
    return rows.reduce(losses if rows.dense else rows.weigh(losses))


def _losses(rows: Rows, block_size: int | None) -> Tensor:
    """Return the loss of each row. The loss includes the class weights only if `rows.dense` is True."""
    losses = torch.empty(rows.logits.shape[:-1], dtype=rows.compute, device=rows.logits.device)
    work = _Work(rows.compute)
    for block, log_p in rows.blocks(_most_rows(rows, block_size), losses):
        log_probs = work.softmax(block.logits, log=True)
        log_p.copy_(block.widened().expect(log_probs) if block.dense else block.pick(log_probs))
    return losses.neg_()


def _differentiate(rows: Rows, upstream: Tensor | float, gradient: Tensor, block_size: int | None) -> Tensor:
    """Write the gradient of the logits into `gradient`, and return the loss of each row.

    The gradient of a row is `g/D (p Σ_c v_c - v)`, with `p = softmax(x)` and `v_c = w_c q_c` for the class weights `w`
    and the smoothed target `q`. `g` is `upstream`. `D` is the divisor of the mean, and 1 for the other reductions.

    If `rows.dense` is False, the losses do not include the class weights. Large losses are then inaccurate, and
    `_Blocked.forward` computes them again.
    """
    if gradient.dim() > 2:
        gradient = gradient.movedim(1, -1)
    losses = torch.empty(gradient.shape[:-1], dtype=rows.compute, device=gradient.device)
    ignored = rows.kept is not None and (gradient.device.type != "cpu" or not rows.kept.all())
    scale, work = _scale(rows, upstream), _Work(rows.compute)
    for block, out, log_p, factor in rows.blocks(_most_rows(rows, block_size), gradient, losses, scale):
        if block.dense:
            log_probs, wide = work.softmax(block.logits, log=True), block.widened()
            log_p.copy_(wide.expect(log_probs))
            v = wide.weighted(wide.smoothed_target())
            slope = log_probs.exp_().mul_(v.sum(-1, keepdim=True)).sub_(v).mul_(factor)
        else:
            p, y = work.softmax(block.logits, out), block.index.unsqueeze(-1)
            p_y = p.gather(-1, y)
            torch.log(p_y.squeeze(-1), out=log_p)
            # Multiply first: for a small p_y, the rounding of the product p_y g/D is tiny. Only the subtraction then
            # rounds at the size of g/D.
            slope = p.mul_(factor).scatter_(-1, y, p_y.mul_(factor).sub_(factor))
        if ignored:
            slope.masked_fill_(~block.kept.unsqueeze(-1), 0)  # the logits of an ignored row may be NaN
        if slope is not out:
            out.copy_(slope)
    return losses.neg_()


def _scale(rows: Rows, upstream: Tensor | float) -> Tensor | float:
    """Return the factor of the gradient: the upstream gradient; for "mean", divided by `rows.divisor`.

    If `rows.dense` is False, the factor includes the weight of the true class. The factor is a single number for all
    rows, or a tensor of shape (..., 1).
    """
    scale = upstream
    if isinstance(upstream, Tensor):  # on a CPU, a float needs fewer calls of torch than a tensor of one number
        scale = upstream.item() if upstream.dim() == 0 and upstream.device.type == "cpu" else upstream.to(rows.compute)
    if rows.reduction == "mean":
        scale = scale / (rows.divisor if isinstance(scale, Tensor) else float(rows.divisor))
    if not rows.dense and rows.target_weight is not None:
        scale = rows.target_weight * scale
    return scale.unsqueeze(-1) if isinstance(scale, Tensor) and scale.dim() > 0 else scale


def _most_rows(rows: Rows, block_size: int | None) -> int:
    """Return how many rows fit into a block of `block_size` logits, but at least 1.

    By default, a block fills the cache.
    """
    if block_size is None:
        block_size = _count_in_cache(rows.logits.device, rows.compute, torch.get_num_threads())
    return max(1, block_size // rows.logits.shape[-1])


class _Work:
    """The softmax of each block, in the dtype `compute`, with one buffer for all blocks."""

    def __init__(self, compute: torch.dtype) -> None:
        self._compute = compute
        self._memory: Tensor | None = None

    def softmax(self, x: Tensor, out: Tensor | None = None, *, log: bool = False) -> Tensor:
        """Return the softmax, or with `log` the log-softmax, of the logits `x` of a block.

        The result is in `out` if possible. Otherwise, the result is in the shared buffer, which the next call
        overwrites.
        """
        # torch's softmax is fast if the axes are in memory order, so move the class axis of x to its memory position.
        axis = sum(step > x.stride(-1) for step in x.stride()[:-1])
        moved = axis < x.dim() - 1
        x = x.movedim(-1, axis) if moved else x
        result = out.movedim(-1, axis) if moved and out is not None else out
        if result is None or result.dtype != self._compute or not result.is_contiguous():
            if self._memory is None:  # the first block is the largest
                self._memory = torch.empty(x.numel(), dtype=self._compute, device=x.device)
            result = self._memory[: x.numel()].view(x.shape)
            out = result.movedim(axis, -1) if moved else result
        if x.dtype != self._compute or not x.is_contiguous():
            x = result.copy_(x)  # in place is right, because softmax writes over a number only after its last read
        (torch.log_softmax if log else torch.softmax)(x, axis, out=result)
        assert out is not None
        return out


# The least number of logits in a block of the default size. With smaller blocks, the overhead of the calls costs more
# time than a block that exceeds the second-level cache.
_LEAST = 2**19


@functools.cache
def _count_in_cache(device: torch.device, dtype: torch.dtype, threads: int) -> int:
    """Return how many numbers of a dtype fit into the second-level cache of a device, but at least `_LEAST`.

    On a CPU, each of the `threads` has such a cache.
    """
    if device.type == "cuda":
        cache = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 2**23
    else:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")  # Linux has "1024K"; other systems get 1 MiB
        cache = threads * (int(size.read_text().strip().rstrip("K")) * 1024 if size.exists() else 2**20)
    return max(_LEAST, cache * 8 // torch.finfo(dtype).bits)


def _is_plain(*tensors: Tensor) -> bool:
    """Return whether torch runs this call eagerly on ordinary tensors. A form may then use its own backward pass."""
    if compiling() or _transforming() or _modes():
        return False
    kinds = (Tensor, torch.nn.Parameter)
    # In torch 2.13, `copy_` of a lazily negated float16 view into float32 does not negate.
    ordinary = all(type(one) in kinds and not (_is_batched(one) or one.is_neg()) for one in tensors)
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
