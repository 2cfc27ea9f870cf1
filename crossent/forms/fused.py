r"""Cross-entropy in one Triton kernel, for CUDA: two reads of the logits and one write of the gradient.

    loss = -log p_y,   gradient of x = g (p - e_y),   p = softmax(x)

Here `x` are the logits of a row with the true class `y`, without class weights and label smoothing. `g` is the upstream
gradient of the row's loss, and `e_y` is the one-hot vector of `y`. The kernel is in :mod:`crossent.forms.kernel`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any, Literal

import torch
from torch import Tensor

from crossent.forms.blocks import _is_plain, blocked
from crossent.forms.rows import arrange
from crossent.forms.textbook import formula


def fused(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Compute the cross-entropy as `-log softmax(x)_y` in one Triton kernel, with the gradient written by hand.

    The loss, the arguments and the errors are the same as in :func:`crossent.formula`. The forward pass of a reduced
    loss also computes the gradient for an upstream gradient of 1. For any other upstream gradient, for an unreduced
    loss, and in a second backward pass, the kernel computes the gradient from the logits. Multiplying a stored gradient
    in half precision would round twice. The host never waits for the device.

    The kernel needs the package `triton` and tensors on a CUDA device. Otherwise, the function calls
    :func:`crossent.blocked`. With the environment variable `TRITON_INTERPRET=1`, the kernel runs in Triton's
    interpreter, also on a CPU. The interpreter is slow, and truncates numbers to bfloat16 where a GPU rounds. Where
    :func:`crossent.blocked` calls :func:`crossent.formula`, `fused` calls :func:`crossent.formula` too.

    Example:
        >>> import torch, crossent
        >>> loss = crossent.fused(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.1291
    """
    options = ignore_index, reduction, label_smoothing
    if not isinstance(input, Tensor) or path_of(input.device.type) == "blocked":
        return blocked(input, target, weight, *options)
    others = [target] if weight is None else [target, weight]
    if not _is_plain(input, *others) or input.numel() == 0:
        return formula(input, target, weight, *options)
    recorded = torch.is_grad_enabled()
    if recorded and any(tensor.requires_grad for tensor in others):
        return formula(input, target, weight, *options)
    from crossent.forms import kernel

    # Under no_grad, `ctx.needs_input_grad` is True for an input that requires a gradient, so pass the condition.
    wanted = recorded and input.requires_grad
    loss: Tensor = _Fused.apply(kernel, input, target, weight, options, wanted)  # type: ignore[no-untyped-call]
    return loss


class _Fused(torch.autograd.Function):
    """The loss as an autograd function, whose backward pass returns a gradient for the logits only."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.kernel, *tensors, ctx.options, wanted = arguments
        ctx.save_for_backward(*tensors)
        rows = arrange(*tensors, *ctx.options)
        losses = torch.empty(rows.logits.shape[:-1], dtype=rows.compute, device=rows.logits.device)
        early = wanted and rows.reduction != "none"
        ctx.gradient = torch.empty_like(ctx.kernel.flat(rows.logits)) if early else None
        ctx.kernel.launch(rows, losses, ctx.gradient, None, False)
        return rows.reduce(losses)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Tensor | None, ...]:
        (upstream,), (logits, *others) = upstreams, ctx.saved_tensors
        made, ctx.gradient = ctx.gradient, None  # return this tensor once: the caller may write into a gradient
        if torch.is_grad_enabled() or not _is_plain(upstream, logits):
            with torch.enable_grad():  # the gradient itself is differentiated, or the upstream gradient is a batch
                loss = formula(logits, *others, *ctx.options)
            (result,) = torch.autograd.grad(loss, logits, upstream, create_graph=torch.is_grad_enabled())
            return None, result, None, None, None, None
        rows = arrange(logits, *others, *ctx.options)
        gradient = torch.empty_like(ctx.kernel.flat(rows.logits)) if made is None else made
        ctx.kernel.launch(rows, None, gradient, upstream, made is not None)
        result = gradient.view(rows.logits.shape)
        return None, result.movedim(-1, 1) if result.dim() > 2 else result, None, None, None, None


@functools.cache
def path_of(device_type: str) -> Literal["kernel", "interpreter", "blocked"]:
    """Return what `fused` runs on a type of device: the kernel, Triton's interpreter, or :func:`crossent.blocked`.

    After the first call for a type of device, a change of `TRITON_INTERPRET` has no effect.
    """
    if device_type not in ("cpu", "cuda") or importlib.util.find_spec("triton") is None:
        return "blocked"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    return "kernel" if device_type == "cuda" else "blocked"
