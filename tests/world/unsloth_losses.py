"""Unsloth: the losses of rows, with a gradient written by hand, and the losses of rows with label smoothing."""

import torch
from packages import FLOAT32, FUNCTION, GATHER, INDICES, ROWS, TORCHS_ERRORS, lacks, without_init

without_init("unsloth_zoo", "unsloth_zoo.fused_losses", "unsloth_zoo.temporary_patches")
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
