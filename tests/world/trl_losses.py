"""TRL: the log-probability of each token, which is the negative loss of a row.

The file of this function imports datasets, pandas and accelerate, so only the function is loaded.
"""

import torch
from packages import GATHER, INDICES, LAST, TORCHS_ERRORS, lacks, of_file
from torch.nn import functional

NAMES = {"torch": torch, "F": functional, "is_triton_available": lambda: False}
selective_log_softmax = of_file("trl", "trainer/utils.py", "selective_log_softmax", **NAMES)


@lacks(
    probability_target=INDICES,
    uint8_target=GATHER,
    unbatched=LAST,
    spatial=LAST,
    empty="stacks the rows, of which there must be one",
    errors=TORCHS_ERRORS,
)
def trl_selective(logits, target, reduction="mean"):
    losses = -selective_log_softmax(logits, target)
    return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()
