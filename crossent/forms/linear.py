r"""Linear cross-entropy written out by hand: the loss of `input @ linear_weight.T + linear_bias`, in two forms.

    z = h Wᵀ + b,   loss = -log p_y,   p = softmax(z)
    gradients:   for z: d = g (p - e_y),   for h: d W,   for W: dᵀ h,   for b: Σ_n d_n

Here `h` is the input, and `W` and `b` are the weight and the bias of the linear layer. `g` is the upstream gradient,
`e_y` is the one-hot vector of the true class `y`, and `d_n` is row n of `d`.

In a language model, the logits `z`, of shape (N, C), are the largest tensor. :func:`linear_blocked` computes some rows
at a time, and stores only the logits of these rows. The idea is from Hsu et al., "Liger Kernel", arXiv:2410.10989.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossent.forms.blocks import _is_plain, _scale, _weigh_and_reduce
from crossent.forms.rows import Rows, arrange
from crossent.forms.validation import _without_autocast, as_int, check_linear

# By default, a block has at most `_LOGITS` logits, or `_ROWS` rows if these have more logits. Small blocks would take
# long, because each block reads the whole weight.
_LOGITS, _ROWS = 2**22, 64
# A slice of `_parts` has about this fraction of the numbers of a block.
_SHARE = 1 / 16


def linear_formula(
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
    r"""Compute the cross-entropy of the logits `input @ linear_weight.T + linear_bias`.

    The loss of the logits is defined as in :func:`crossent.formula`. For a result in float16 or bfloat16, all
    computation is in float32, and loss and gradients are rounded once. A row with the target `ignore_index` adds
    nothing to any gradient. If `linear_weight` is `(C, H)`, a NaN in the input of such a row reaches no gradient.

    Args:
        input: The hidden states, in float16, bfloat16, float32 or float64.
        linear_weight: The weight of the linear layer, in the dtype of `input`.
        target: Class indices or class probabilities, as for :func:`crossent.formula`.
        linear_bias: The bias of the linear layer, in the dtype of `input`.
        weight: A factor for each class, as for :func:`crossent.formula`.
        reduction: `"none"`, `"mean"` or `"sum"`, as for :func:`crossent.formula`.
        ignore_index: The target of ignored rows, as for :func:`crossent.formula`. None means -100. With class
            probabilities, only None is allowed.
        label_smoothing: `ε`, from 0 to 1, as for :func:`crossent.formula`.

    Shape:
        - input: `(H)` or `(N, H)`.
        - linear_weight: `(C, H)`, or `(C, d1, …, dK, H)` with a batch of inputs.
        - linear_bias: the shape of `linear_weight` without its last dimension.
        - weight: `(C)`.
        - target: with class indices `()` or `(1)`, `(N)` or `(N, d1, …, dK)`; with class probabilities the shape of
          the logits, `(C)`, `(N, C)` or `(N, C, d1, …, dK)`.
        - result: `()`; with `reduction="none"`, `()`, `(N)` or `(N, d1, …, dK)`.

    Returns:
        The loss, in the dtype of `input`, promoted as in :func:`crossent.formula`.

    Raises:
        RuntimeError: `input`, `linear_weight` or `linear_bias` has another shape than above, or a size `C`, `d1`, …,
            `dK` is 0. The error also occurs if these tensors differ in dtype or device, or if class probabilities come
            with an `ignore_index`. All other errors are as in :func:`crossent.formula`.

    Example:
        >>> import torch, crossent
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> loss = crossent.linear_formula(torch.tensor([[1.0, 2.0]]), weight, torch.tensor([1]))
        >>> round(loss.item(), 4)
        0.3182
    """
    options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    rows = _arranged((input, linear_weight, linear_bias, target, weight), options)
    with _without_autocast(input.device):
        h, w = input.to(rows.compute), linear_weight.to(rows.compute)
        if rows.kept is not None and rows.kept.dim() == input.dim() - 1:
            h = torch.where(rows.kept.unsqueeze(-1), h, 0.0)  # the gradient of the weight would have 0 · NaN
        logits = h @ w.flatten(0, -2).mT
        if linear_bias is not None:
            logits = logits + linear_bias.to(rows.compute).flatten()
        logits = logits.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
        rows = replace(rows, logits=logits.movedim(input.dim() - 1, -1)).widened()
        x = rows.logits - rows.logits.detach().amax(-1, keepdim=True)  # the shift cancels, so it needs no gradient
        log_sum = x.exp().sum(-1, keepdim=True).log()
        if rows.dense:
            return rows.reduce(rows.expect(-x + log_sum))
        return rows.reduce(rows.weigh(-rows.pick(x) + log_sum.squeeze(-1)))


def linear_blocked(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    block_size: int | None = None,
) -> Tensor:
    r"""Compute the loss of :func:`crossent.linear_formula` on blocks of rows, with the gradients written by hand.

    The forward pass of a reduced loss also computes the gradients for an upstream gradient of 1. The backward pass
    multiplies these gradients by the upstream gradient. With an infinite upstream gradient, a gradient of 0 becomes
    NaN, except in ignored rows. For the reduction "none", the backward pass computes the logits again. Loss and
    gradients are summed in float32, or in float64 if the loss is float64. Each number is then rounded once to the dtype
    of its tensor.

    The function calls :func:`crossent.linear_formula` instead if `input` is not `(N, H)` or `linear_weight` is not
    `(C, H)`. It also does so where :func:`crossent.blocked` calls :func:`crossent.formula`.

    Args:
        input: The hidden states. All arguments except `block_size` are as for :func:`crossent.linear_formula`.
        linear_weight: The weight of the linear layer.
        target: Class indices or class probabilities.
        linear_bias: The bias of the linear layer.
        weight: A factor for each class.
        reduction: `"none"`, `"mean"` or `"sum"`.
        ignore_index: The target of ignored rows.
        label_smoothing: `ε`, from 0 to 1.
        block_size: The largest number of logits in a block, 1 or more. A block has at least one row. The default is the
            larger of 2^22 and `64 C`.

    Returns:
        The loss, with the same shape and dtype as the loss of :func:`crossent.linear_formula`.

    Raises:
        TypeError: `block_size` is not an int.
        ValueError: `block_size` is below 1. All other errors are as in :func:`crossent.linear_formula`.

    Example:
        >>> import torch, crossent
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> loss = crossent.linear_blocked(torch.tensor([[1.0, 2.0]]), weight, torch.tensor([1]))
        >>> round(loss.item(), 4)
        0.3182
    """
    if block_size is not None and (block_size := as_int("block_size", block_size)) < 1:
        raise ValueError(f"block_size: got {block_size}; allowed is 1 or more")
    leaves, others = (input, linear_weight, linear_bias), (target, weight)
    options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    given = [tensor for tensor in (*leaves, *others) if tensor is not None]
    recorded = torch.is_grad_enabled()
    if (
        not _is_plain(*given)
        or input.dim() != 2
        or linear_weight.dim() != 2
        or len(input) == 0
        or (recorded and any(tensor is not None and tensor.requires_grad for tensor in others))
    ):
        return linear_formula(input, linear_weight, target, linear_bias=linear_bias, weight=weight, **options)
    if recorded and any(tensor is not None and tensor.requires_grad for tensor in leaves):
        loss: Tensor = _LinearBlocked.apply(*leaves, *others, options, block_size)  # type: ignore[no-untyped-call]
        return loss
    with torch.no_grad(), _without_autocast(input.device):
        rows = _arranged((input, linear_weight, linear_bias, target, weight), options)
        return _weigh_and_reduce(rows, _differentiate(rows, leaves, (False, False, False), 1.0, block_size)[0])


class _LinearBlocked(torch.autograd.Function):
    """The loss as an autograd function, with gradients for input, weight and bias of the linear layer."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, options, block_size = arguments
        rows = _arranged(tensors, options)
        ctx.save_for_backward(*tensors)
        ctx.options, ctx.block_size, ctx.gradients, ctx.kept = options, block_size, None, rows.kept
        with _without_autocast(tensors[0].device):
            wanted = ctx.needs_input_grad[:3] if rows.reduction != "none" else (False, False, False)
            losses, gradients = _differentiate(rows, tensors[:3], wanted, 1.0, block_size)
            if rows.reduction != "none":
                ctx.gradients = gradients
            return _weigh_and_reduce(rows, losses)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Tensor | None, ...]:
        (upstream,), tensors = upstreams, ctx.saved_tensors
        wanted, gradients = ctx.needs_input_grad[:3], ctx.gradients
        if torch.is_grad_enabled() or not _is_plain(upstream, *(tensor for tensor in tensors if tensor is not None)):
            return (*_through_formula(tensors, ctx.options, wanted, upstream), None, None, None, None)
        with _without_autocast(upstream.device):
            if gradients is None:  # the reduction is "none", or the gradients were returned before
                rows = _arranged(tensors, ctx.options)
                gradients = _differentiate(rows, tensors[:3], wanted, upstream, ctx.block_size)[1]
            elif upstream.device.type == "cpu" and upstream.item() == 1:
                ctx.gradients = None  # return these tensors once: the caller may write into a gradient
            else:
                scales = _upstreams(upstream, ctx.kept)
                pairs = zip(gradients, scales, strict=True)
                gradients = [None if one is None else one * scale.to(one.dtype) for one, scale in pairs]
            pairs = zip(gradients, tensors[:3], strict=True)
            return (*(one if one is None else one.to(leaf.dtype) for one, leaf in pairs), None, None, None, None)


def _upstreams(upstream: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of the gradients of input, weight and bias: `upstream`, or 0 if only ignored rows add to them.

    The product of 0 and an upstream gradient of inf or NaN would be NaN.
    """
    if kept is None:
        return upstream, upstream, upstream
    of_sums = torch.where(kept.any(), upstream, 0.0)
    return torch.where(kept.unsqueeze(-1), upstream, 0.0), of_sums, of_sums


def _through_formula(
    tensors: tuple[Any, ...], options: dict[str, Any], wanted: tuple[bool, ...], upstream: Tensor
) -> list[Tensor | None]:
    """Return the gradients of :func:`crossent.linear_formula`, which a caller may differentiate again.

    `wanted` says which of input, weight and bias of the linear layer get a gradient. The others get None.
    """
    hidden, linear_weight, linear_bias, target, weight = tensors
    with torch.enable_grad():
        loss = linear_formula(hidden, linear_weight, target, linear_bias=linear_bias, weight=weight, **options)
    leaves = [leaf for leaf, want in zip(tensors, wanted, strict=False) if want]
    found = iter(torch.autograd.grad(loss, leaves, upstream, create_graph=torch.is_grad_enabled()))
    return [next(found) if want else None for want in wanted]


def _differentiate(
    rows: Rows, leaves: Any, wanted: tuple[bool, ...], upstream: Tensor | float, block_size: int | None
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss of each row, and the gradients of `leaves`: input, weight and bias of the linear layer.

    The losses include the class weights only if `rows.dense` is True. If `wanted` is False for a leaf, the gradient
    of this leaf is None.
    """
    compute, (h, w, b) = rows.compute, leaves
    losses = torch.empty(h.shape[0], dtype=compute, device=h.device)
    # Each block writes its rows of grad_h. The first block writes grad_w and grad_b, and the others add to them.
    pairs = zip(leaves, wanted, strict=True)
    gradients = [torch.empty_like(leaf, dtype=compute) if want else None for leaf, want in pairs]
    grad_h, grad_w, grad_b = gradients
    most = rows_of_block(h.shape[0], w.shape[0], block_size)
    work = torch.empty(most, w.shape[0], dtype=compute, device=h.device)
    parts = _parts(w, work)
    blocks = rows.blocks(most, h, losses if grad_h is None else grad_h, losses, _scale(rows, upstream))
    for at, (block, some, out, loss, factor) in enumerate(blocks):
        some = some.to(compute)
        if block.kept is not None:
            some = torch.where(block.kept.unsqueeze(-1), some, 0.0)  # 0 · NaN would be NaN
        z = _write_logits(some, w, b, work[: some.shape[0]], parts)
        _write_slope(block, z, factor, loss)
        if grad_h is not None:
            _write_product(z, w, out, parts)
        if grad_w is not None:
            grad_w.addmm_(z.mT, some, beta=min(at, 1))
        if grad_b is not None:
            grad_b.copy_(grad_b + z.sum(0) if at else z.sum(0))
    return losses, gradients


def rows_of_block(rows: int, classes: int, block_size: int | None = None) -> int:
    """Return the largest number of rows in a block of :func:`crossent.linear_blocked`, for a call with `rows` rows."""
    return min(rows, max(1, (block_size or max(_LOGITS, _ROWS * classes)) // classes))


def _write_logits(h: Tensor, w: Tensor, b: Tensor | None, out: Tensor, parts: Sequence[slice]) -> Tensor:
    """Write the logits `h @ w.T + b` to `out`, and return `out`. `parts` are slices of the classes."""
    for classes in parts:
        torch.mm(h, w[classes].to(out.dtype).mT, out=out[:, classes])
    return out if b is None else out.add_(b)


def _write_product(d: Tensor, w: Tensor, out: Tensor, parts: Sequence[slice]) -> None:
    """Write `d @ w`, the gradient of the hidden states, to `out`. `parts` are slices of the classes."""
    first, *others = parts
    torch.mm(d[:, first], w[first].to(out.dtype), out=out)
    for classes in others:
        out.addmm_(d[:, classes], w[classes].to(out.dtype))


def _parts(w: Tensor, work: Tensor) -> list[slice]:
    """Return slices of the classes. The caller converts one slice of `w` at a time to the dtype of `work`."""
    classes, features = w.shape
    step = classes if w.dtype == work.dtype else max(1, int(_SHARE * work.numel()) // max(1, features))
    return [slice(start, start + step) for start in range(0, classes, step)]


def _write_slope(rows: Rows, z: Tensor, factor: Tensor | float, loss: Tensor) -> None:
    """Replace `z`, the logits of the block `rows`, by their gradient, and write the loss of each row to `loss`.

    The gradient of a row is `factor (p - e_y)`. If `rows.dense` is True, the gradient is `factor (p Σ_c v_c - v)`.
    Here `v` are the class weights times the smoothed target.
    """
    z -= z.amax(-1, keepdim=True)
    if rows.dense:
        z -= z.exp().sum(-1, keepdim=True).log_()
        wide = replace(rows, logits=z).widened()
        torch.neg(wide.expect(z), out=loss)
        v = wide.weighted(wide.smoothed_target())
        z.exp_().mul_(v.sum(-1, keepdim=True)).sub_(v).mul_(factor)
    else:
        assert rows.index is not None
        y = rows.index.unsqueeze(-1)
        x_y = z.gather(-1, y)
        total = z.exp_().sum(-1, keepdim=True)
        torch.sub(total.log().squeeze(-1), x_y.squeeze(-1), out=loss)
        z.mul_(factor / total)
        z.scatter_(-1, y, z.gather(-1, y) - factor)
    if rows.kept is not None:
        z.masked_fill_(~rows.kept.unsqueeze(-1), 0)


def _arranged(tensors: Sequence[Any], options: dict[str, Any]) -> Rows:
    """Check the arguments, and return them as rows. In place of the logits, the rows have zeros without memory.

    `tensors` are `input`, `linear_weight`, `linear_bias`, `target` and `weight`.
    """
    hidden, linear_weight, linear_bias, target, weight = tensors
    check_linear(hidden, linear_weight, linear_bias)
    logits = hidden.new_zeros(()).expand(*hidden.shape[:-1], *linear_weight.shape[:-1])
    if options["ignore_index"] is None:
        options = options | {"ignore_index": -100}
    elif isinstance(target, Tensor) and target.shape == logits.shape:
        raise RuntimeError(f"ignore_index: got {options['ignore_index']!r} with class probabilities; allowed is None")
    plain = hidden.device.type == "cpu" and _is_plain(hidden, target) and len(target.shape) > 0 and target.numel() > 0
    return arrange(logits, target, weight, **options, eager=plain)
