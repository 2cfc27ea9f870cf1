"""Composer: cross-entropy with class indices or probabilities. This file loads only the two functions."""

import typing
import warnings

import torch
from packages import BATCH, TORCHS_ERRORS, lacks, of_file

NAMES = {**vars(typing), "torch": torch, "Tensor": torch.Tensor, "F": torch.nn.functional, "warnings": warnings}
NAMES["infer_target_type"] = of_file("composer", "loss/utils.py", "infer_target_type", **NAMES)
soft_cross_entropy = of_file("composer", "loss/loss.py", "soft_cross_entropy", **NAMES)


@lacks(unbatched=BATCH, errors=TORCHS_ERRORS)
def composer_soft(logits, target, weight=None, ignore_index=-100, reduction="mean"):
    return soft_cross_entropy(logits, target, weight, ignore_index, reduction)
