"""Unsloth: the losses of rows, with a gradient written by hand, with label smoothing, and of hidden states."""

import torch
from packages import FLOAT32, FUNCTION, GATHER, INDICES, ROWS, TORCHS_ERRORS, lacks, without_init

without_init("unsloth_zoo", "unsloth_zoo.cpu", "unsloth_zoo.fused_losses", "unsloth_zoo.temporary_patches")
from unsloth_zoo.cpu.ops import chunked_linear_cross_entropy  # noqa: E402
from unsloth_zoo.fused_losses.fused_linear import fused_linear_cross_entropy  # noqa: E402
from unsloth_zoo.fused_losses.stable_softmax import cross_entropy_rows, smoothed_nll  # noqa: E402


@lacks(
    probability_target=INDICES,
    uint8_target=GATHER,
    unbatched=ROWS,
    spatial=ROWS,
    forward_ad=FUNCTION,
    batched_gradient=FUNCTION,
    vmap=FUNCTION,
    half_result=FLOAT32,
    errors=TORCHS_ERRORS,
)
def unsloth_rows(logits, target, ignore_index=-100, reduction="mean"):
    losses = cross_entropy_rows(logits, target, ignore_index)
    kept = (target != ignore_index).sum()
    return {"none": lambda: losses, "mean": lambda: losses.sum() / kept, "sum": lambda: losses.sum()}[reduction]()


@lacks(probability_target=INDICES, unbatched=ROWS, spatial=ROWS, half_result=FLOAT32, errors=TORCHS_ERRORS)
def unsloth_smoothed(logits, target, reduction="mean", label_smoothing=0.0):
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = smoothed_nll(wide, target, label_smoothing)
    return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()


@lacks(
    probability_target=INDICES,
    reduction_none="returns a sum or a mean",
    half_result=FLOAT32,
    float64="computes in float32",
    nan_mean="a divisor of 0 counts as 1",
    double_backward=FUNCTION,
    forward_ad=FUNCTION,
    batched_gradient=FUNCTION,
    vmap=FUNCTION,
    errors="has errors of its own",
)
def unsloth_linear(
    hidden, linear_weight, target, linear_bias=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    divisor = (target != ignore_index).sum() if reduction == "mean" else 1
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "rows_per_chunk": 3}
    return fused_linear_cross_entropy(hidden, linear_weight, linear_bias, target, divisor=divisor, **options)


@lacks(
    probability_target=INDICES,
    reduction_none="returns a sum or a mean",
    half_result=FLOAT32,
    float64="computes in float32",
    double_backward=FUNCTION,
    forward_ad=FUNCTION,
    batched_gradient=FUNCTION,
    vmap=FUNCTION,
    errors=TORCHS_ERRORS,
)
def unsloth_linear_cpu(hidden, linear_weight, target, ignore_index=-100, reduction="mean"):
    options = {"num_items_in_batch": 1 if reduction == "sum" else None, "ignore_index": ignore_index, "chunk_rows": 3}
    return chunked_linear_cross_entropy(hidden, linear_weight, None, shift_labels=target, **options)
