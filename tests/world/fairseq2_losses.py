"""fairseq2: cross-entropy in float32. The package imports compiled code, so this file loads only the function."""

import typing

import torch
from packages import INDICES, LAST, TORCHS_ERRORS, lacks, of_file
from torch.nn.functional import log_softmax, nll_loss

NAMES = {**vars(typing), "torch": torch, "Tensor": torch.Tensor, "log_softmax": log_softmax, "nll_loss": nll_loss}
cross_entropy = of_file("fairseq2", "nn/functional/cross_entropy.py", "cross_entropy", **NAMES)


@lacks(
    probability_target=INDICES,
    unbatched=LAST,
    spatial=LAST,
    float64="computes in float32",
    half_result="computes in float32",
    errors=TORCHS_ERRORS,
)
def fairseq2_plain(logits, target, ignore_index=-100, reduction="mean"):
    return cross_entropy(logits, target, ignore_index, reduction=reduction)
