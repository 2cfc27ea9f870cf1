"""segmentation_models_pytorch: label smoothing; and its focal loss with gamma = 0, which is cross-entropy."""

from packages import GATHER, INDICES, TORCHS_ERRORS, lacks, without_init

without_init("segmentation_models_pytorch")
from segmentation_models_pytorch.losses import SoftCrossEntropyLoss  # noqa: E402
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits  # noqa: E402


@lacks(
    probability_target=INDICES,
    uint8_target=GATHER,
    unbatched="takes a batch",
    errors=TORCHS_ERRORS,
)
def smp_soft(logits, target, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return SoftCrossEntropyLoss(reduction, label_smoothing, ignore_index)(logits, target)


@lacks(
    probability_target=INDICES,
    ignore_index="has no ignore_index",
    unbatched="takes a batch",
    errors=TORCHS_ERRORS,
)
def smp_focal(logits, target, reduction="mean"):
    return softmax_focal_loss_with_logits(logits, target, gamma=0.0, reduction=reduction)
