"""Catalyst: cross-entropy with class probabilities."""

from packages import TORCHS_ERRORS, lacks, without_init

without_init("catalyst", "catalyst.contrib", "catalyst.contrib.losses")
from catalyst.contrib.losses.ce import NaiveCrossEntropyLoss  # noqa: E402


@lacks(
    index_target="takes class probabilities",
    reduction_none="returns a sum or a mean",
    reduction_mean="divides by the size of the first axis alone",
    unbatched="takes a batch",
    errors=TORCHS_ERRORS,
)
def catalyst_naive(logits, target, reduction="sum"):
    return NaiveCrossEntropyLoss(size_average=False)(logits, target)
