"""SpeechBrain: the loss of log-probabilities. Its file imports much of the package, so only functions are loaded."""

import functools

import torch
from packages import BATCH, INDICES, TORCHS_ERRORS, lacks, of_file

NAMES = ("nll_loss", "truncate", "compute_masked_loss", "compute_length_mask", "reduce_loss")
nll_loss = of_file("speechbrain", "nnet/losses.py", *NAMES, torch=torch, functools=functools)


@lacks(
    reduction_none="returns a sum or a mean",
    probability_target=INDICES,
    unbatched=BATCH,
    spatial="takes (N, time, C)",
    errors=TORCHS_ERRORS,
)
def speechbrain_nll(logits, target, weight=None, reduction="mean", label_smoothing=0.0):
    options = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
    return nll_loss(torch.log_softmax(logits, -1), target, **options)
