"""MONAI: the cross-entropy in its Dice loss; and its focal loss with gamma = 0, which is cross-entropy."""

from monai.losses import DiceCELoss, FocalLoss
from packages import INDICES, lacks

BATCH = "takes a batch with a channel for the target"


@lacks(reduction_none="returns a sum or a mean", unbatched=BATCH, errors="converts any target to int64")
def monai_dice_ce(logits, target, weight=None, reduction="mean", label_smoothing=0.0):
    loss = DiceCELoss(softmax=True, weight=weight, reduction=reduction, label_smoothing=label_smoothing)
    return loss.ce(logits, target if target.is_floating_point() else target.unsqueeze(1))


@lacks(
    reduction_mean="divides by the number of classes too",
    probability_target=INDICES,
    unbatched=BATCH,
    float64="computes in float32",
    errors="has errors of its own",
)
def monai_focal(logits, target, weight=None, reduction="mean"):
    loss = FocalLoss(gamma=0.0, use_softmax=True, to_onehot_y=True, weight=weight, reduction="none")
    losses = loss(logits, target.unsqueeze(1)).sum(1).to(logits.dtype)
    return losses.sum() if reduction == "sum" else losses
