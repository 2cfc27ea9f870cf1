"""kornia: the focal loss with gamma = 0, which is cross-entropy. Without a reduction its result has a class axis."""

from packages import INDICES, lacks, without_init

without_init("kornia", "kornia.core", "kornia.losses")
from kornia.losses.focal import focal_loss  # noqa: E402


@lacks(
    reduction_mean="divides by the number of classes and ignored rows too",
    probability_target=INDICES,
    uint8_target="requires int64",
    unbatched="takes a batch",
    errors="has errors of its own",
)
def kornia_focal(logits, target, weight=None, ignore_index=-100, reduction="mean"):
    loss = focal_loss(logits, target, None, 0.0, reduction, weight, ignore_index)
    return loss.sum(1) if reduction == "none" else loss
