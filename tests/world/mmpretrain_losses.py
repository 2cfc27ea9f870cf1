"""mmpretrain: cross-entropy with class indices, with class probabilities, and with label smoothing.

The package imports mmcv, so this file loads only the functions.
"""

import torch
from packages import INDICES, LAST, ROWS, TORCHS_ERRORS, lacks, of_file
from torch.nn import functional

NAMES = {"torch": torch, "F": functional}
NAMES["weight_reduce_loss"] = of_file(
    "mmpretrain", "models/losses/utils.py", "weight_reduce_loss", "reduce_loss", **NAMES
)
FILE = "models/losses/cross_entropy_loss.py"
cross_entropy = of_file("mmpretrain", FILE, "cross_entropy", **NAMES)
soft_cross_entropy = of_file("mmpretrain", FILE, "soft_cross_entropy", **NAMES)


@lacks(probability_target=INDICES, errors=TORCHS_ERRORS)  # a weight would not be part of the mean's denominator
def mmpretrain_hard(logits, target, reduction="mean"):
    return cross_entropy(logits, target, reduction=reduction)


@lacks(index_target="takes class probabilities", unbatched=ROWS, spatial=LAST, errors=TORCHS_ERRORS)
def mmpretrain_soft(logits, target, weight=None, reduction="mean"):
    return soft_cross_entropy(logits, target, reduction=reduction, class_weight=weight)
