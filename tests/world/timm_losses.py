"""timm: label smoothing, and soft targets."""

from packages import lacks, without_init

without_init("timm")
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy  # noqa: E402

ROWS = "takes logits of shape (N, C)"


@lacks(
    probability_target="takes class indices",
    uint8_target="calls gather, which refuses uint8",
    unbatched=ROWS,
    spatial=ROWS,
    errors="leaves errors to torch",
)
def timm_label_smoothing(logits, target, label_smoothing=0.0):
    return LabelSmoothingCrossEntropy(label_smoothing)(logits, target)


@lacks(index_target="takes class probabilities", unbatched=ROWS, spatial=ROWS, errors="leaves errors to torch")
def timm_soft_target(logits, target):
    return SoftTargetCrossEntropy()(logits, target)
