"""timm: label smoothing, and soft targets."""

from packages import GATHER, INDICES, ROWS, TORCHS_ERRORS, lacks, without_init

without_init("timm")
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy  # noqa: E402


@lacks(
    probability_target=INDICES,
    uint8_target=GATHER,
    unbatched=ROWS,
    spatial=ROWS,
    errors=TORCHS_ERRORS,
)
def timm_label_smoothing(logits, target, label_smoothing=0.0):
    return LabelSmoothingCrossEntropy(label_smoothing)(logits, target)


@lacks(index_target="takes class probabilities", unbatched=ROWS, spatial=ROWS, errors=TORCHS_ERRORS)
def timm_soft_target(logits, target):
    return SoftTargetCrossEntropy()(logits, target)
