"""mmsegmentation: cross-entropy with ignored pixels. The package imports mmcv, so this file loads only the function."""

import torch
from packages import INDICES, TORCHS_ERRORS, lacks, of_file
from torch.nn import functional

NAMES = {"torch": torch, "F": functional}
NAMES["weight_reduce_loss"] = of_file("mmseg", "models/losses/utils.py", "weight_reduce_loss", "reduce_loss", **NAMES)
cross_entropy = of_file("mmseg", "models/losses/cross_entropy_loss.py", "cross_entropy", **NAMES)


@lacks(probability_target=INDICES, vmap="reads the number of kept rows", errors=TORCHS_ERRORS)
def mmsegmentation_pixels(logits, target, weight=None, ignore_index=-100, reduction="mean"):
    options = {"class_weight": weight, "reduction": reduction, "ignore_index": ignore_index}
    return cross_entropy(logits, target, avg_non_ignore=True, **options)
