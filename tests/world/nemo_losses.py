"""NeMo: the loss of log-probabilities with label smoothing, which gives the true class no part of the smoothing.

The package imports lightning, so this file loads only the class.
"""

import typing

import torch
from packages import GATHER, INDICES, LAST, TORCHS_ERRORS, lacks, of_file

NAMES = {**vars(typing), "torch": torch, "Loss": torch.nn.Module, "typecheck": lambda: lambda method: method}
FILE = "collections/common/losses/smoothed_cross_entropy.py"
SmoothedCrossEntropyLoss = of_file("nemo", FILE, "SmoothedCrossEntropyLoss", **NAMES)


@lacks(
    probability_target=INDICES,
    uint8_target=GATHER,
    unbatched=LAST,
    spatial=LAST,
    one_class="divides by the number of other classes",
    errors=TORCHS_ERRORS,
)
def nemo_smoothed(logits, target, label_smoothing=0.0):
    classes = logits.size(1)
    loss = SmoothedCrossEntropyLoss(pad_id=-100, label_smoothing=label_smoothing * (classes - 1) / classes)
    return loss(torch.log_softmax(logits, 1)[None], target[None])
