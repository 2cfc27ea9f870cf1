"""The Triton kernel of :func:`crossent.fused`, and its launch. The page docs/fused.md explains both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from crossent.forms.rows import Rows

# How many logits a program holds at a time (`launch` uses more for long rows), and a thread of the program.
_TILE, _IN_A_THREAD = 4096, 16
_LOCK = threading.Lock()


@triton.jit
def _coefficients(t_at, t_step, weight, c, C, mask, hit, uniform, F: tl.constexpr):
    """Return the class weight times the smoothed target, `w_c q_c`, for each class in `c`; 0 where `mask` is False.

    For class probabilities `t`, `q_c` is `hit t_c + uniform`, with `hit = 1 - ε` and `uniform = ε/C`. `t_at` points to
    the first probability of each row, and `t_step` is the stride of the classes.
    For class indices, `t_at` is None and `q_c` is `uniform`. The caller then adds `w_y hit` at the true class y.
    """
    q = tl.zeros([1, 1], F) + uniform
    if t_at is not None:
        q += hit * tl.load(t_at + c * t_step, mask, 0).to(F)
    if weight is not None:
        q *= tl.load(weight + c, c < C, 0)
    return tl.where(mask, q, 0)


# fmt: off
@triton.jit
def _cross_entropy(logits, x_steps, probabilities, t_steps, gradient, g_steps, index, kept, target_weight, weight,
                   divisor, upstream, u_step, losses, N, D, C, SMOOTHING: tl.constexpr, DENSE: tl.constexpr,
                   DONE: tl.constexpr, F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # fmt: on
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # 64 bits, because an offset can exceed 2^31
    exists = row < N
    # False on ignored rows, and after the last row
    counts = exists if kept is None else tl.load(kept + row, exists, 0) != 0
    g = tl.full([ROWS], 1, F)
    if upstream is not None:
        g = tl.load(upstream + row * u_step, exists, 1).to(F)
        if DONE and tl.sum((g != 1).to(tl.int32)) == 0:  # the forward pass has written this gradient
            return
    if divisor is not None:
        g /= tl.load(divisor)
    n, d = row // D, row % D
    x_at = (logits + n * x_steps[0] + d * x_steps[1])[:, None]
    t_at = None if probabilities is None else (probabilities + n * t_steps[0] + d * t_steps[1])[:, None]
    # Divide in the dtype F, because the quotient of a Python number and an integer is float32.
    uniform, hit = tl.full([], SMOOTHING, F) / C, tl.full([], 1 - SMOOTHING, F)

    m, s, v_sum = tl.full([ROWS], float("-inf"), F), tl.zeros([ROWS], F), tl.zeros([ROWS], F)
    for start in range(0, C, BLOCK):
        c = start + tl.arange(0, BLOCK)[None, :].to(tl.int64)
        mask = counts[:, None] & (c < C)
        x = tl.load(x_at + c * x_steps[2], mask, float("-inf")).to(F)
        larger = tl.maximum(m, tl.max(x, 1))
        shift = tl.where(larger == float("-inf"), 0, larger)  # -inf - -inf would be NaN
        s = s * tl.exp(m - shift) + tl.sum(tl.exp(x - shift[:, None]), 1)
        m = larger
        if DENSE:
            v_sum += tl.sum(_coefficients(t_at, t_steps[2], weight, c, C, mask, hit, uniform, F), 1)

    log_s, loss = tl.log(s), tl.zeros([ROWS], F)
    if index is not None:
        y = tl.load(index + row, counts, 0)[:, None]
        v_y = hit * tl.load(target_weight + row, counts, 0)
        v_sum += v_y
        if SMOOTHING < 1:  # otherwise the term is 0, or 0 · inf
            x_y = tl.load(x_at + y * x_steps[2], counts[:, None], 0).to(F)
            loss += v_y * (log_s - (tl.sum(x_y, 1) - m))
    if DENSE or gradient is not None:
        for start in range(0, C, BLOCK):
            c = start + tl.arange(0, BLOCK)[None, :].to(tl.int64)
            mask = counts[:, None] & (c < C)
            x = tl.load(x_at + c * x_steps[2], mask, 0).to(F) - m[:, None]
            v = tl.zeros([ROWS, BLOCK], F)
            if DENSE:
                v += _coefficients(t_at, t_steps[2], weight, c, C, mask, hit, uniform, F)
                loss += tl.sum(tl.where(mask, v * (log_s[:, None] - x), 0), 1)
            if gradient is not None:
                if index is not None:
                    v += tl.where(c == y, v_y[:, None], 0)
                slope = g[:, None] * (tl.exp(x) / s[:, None] * v_sum[:, None] - v)
                g_at = (gradient + n * g_steps[0] + d * g_steps[1])[:, None] + c * g_steps[2]
                tl.store(g_at, tl.where(counts[:, None], slope, 0), exists[:, None] & (c < C))
    if losses is not None:
        tl.store(losses + row, loss, exists)  # also for an ignored row, whose loss Rows.reduce replaces by 0


def flat(tensor: Tensor) -> Tensor:
    """Return a tensor (N, d1, …, dK, C) as (N, D, C), the shape for the kernel. A tensor (C) becomes (1, 1, C)."""
    return tensor.reshape(tensor.shape[0] if tensor.dim() > 1 else 1, -1, tensor.shape[-1])


def launch(rows: Rows, losses: Tensor | None, gradient: Tensor | None, upstream: Tensor | None, done: bool) -> None:
    """Launch the kernel, which writes the loss of each row, the gradient of the logits, or both.

    Args:
        rows: The result of :func:`crossent.forms.rows.arrange` without `eager`.
        losses: Memory for the losses, or None.
        gradient: Memory for the gradient, in the shape (N, D, C) of :func:`flat`, or None.
        upstream: The upstream gradient of the call's result; None means 1.
        done: Whether `gradient` already has the values for an upstream gradient of 1.
    """
    x = flat(rows.logits)
    t = None if rows.probabilities is None else flat(rows.probabilities)
    n, d, classes = x.shape
    # For long rows, use larger programs: the GPU then works on fewer rows at a time, and the cache keeps more of each.
    tile = _TILE if classes <= 4 * _TILE else 4 * _TILE
    spread = d > 1 and x.stride(1) < x.stride(2)  # neighbours in memory are in different rows
    block = min(triton.next_power_of_2(classes), 64 if spread else tile)
    together = min(triton.next_power_of_2(n * d), tile // block)
    divisor = rows.divisor if rows.reduction == "mean" else None
    if isinstance(divisor, int):  # the device fills in the number, because a copy from the host would wait
        divisor = torch.full((), divisor, dtype=rows.compute, device=x.device)
    if upstream is not None:
        upstream = upstream.expand(rows.logits.shape[:-1]).reshape(-1)
    of_row = [None if one is None else one.reshape(-1) for one in (rows.index, rows.kept, rows.target_weight)]
    weight = None if rows.weight is None else rows.weight.contiguous()
    tensors = [x, _steps(x), t, _steps(t), gradient, _steps(gradient), *of_row, weight, divisor]
    options = {"SMOOTHING": rows.label_smoothing, "DENSE": rows.dense, "DONE": done, "ROWS": together, "BLOCK": block}
    options["F"] = tl.float64 if rows.compute == torch.float64 else tl.float32
    # A fused multiply-add has one rounding less than the error bounds assume, so the bounds still hold.
    options |= {"num_warps": tile // (32 * _IN_A_THREAD), "enable_fp_fusion": True}
    with torch.cuda.device(x.device) if x.device.type == "cuda" else _interpreting():
        u_step = 0 if upstream is None else upstream.stride(0)
        grid = (triton.cdiv(n * d, together),)
        _cross_entropy[grid](*tensors, upstream, u_step, losses, n * d, d, classes, **options)


@contextmanager
def _interpreting() -> Iterator[None]:
    # Only one thread at a time, because Triton's interpreter replaces functions of Triton during a run. The interpreter
    # computes with numpy, which would warn of 1/0.
    with _LOCK, np.errstate(all="ignore"):
        yield


def _steps(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if tensor is None else tensor.stride()
