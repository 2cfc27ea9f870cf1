"""segmentation_models_pytorch: label smoothing; and its focal loss with gamma = 0, which is cross-entropy."""

from packages import lacks, without_init

without_init("segmentation_models_pytorch")
from segmentation_models_pytorch.losses import SoftCrossEntropyLoss  # noqa: E402
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits  # noqa: E402


@lacks(
    probability_target="takes class indices",
    uint8_target="calls gather, which refuses uint8",
    unbatched="takes a batch",
    errors="leaves errors to torch",
)
def smp_soft(logits, target, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return SoftCrossEntropyLoss(reduction, label_smoothing, ignore_index)(logits, target)


@lacks(
    probability_target="takes class indices",
    ignore_index="has no ignore_index",
    unbatched="takes a batch",
    errors="leaves errors to torch",
)
def smp_focal(logits, target, reduction="mean"):
    return softmax_focal_loss_with_logits(logits, target, gamma=0.0, reduction=reduction)
