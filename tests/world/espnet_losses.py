"""ESPnet: the Kullback-Leibler divergence with smoothed labels; without smoothing, this is cross-entropy."""

from packages import INDICES, LAST, TORCHS_ERRORS, lacks, without_init

without_init("espnet", "espnet.nets", "espnet.nets.pytorch_backend", "espnet.nets.pytorch_backend.transformer")
from espnet.nets.pytorch_backend.transformer.label_smoothing_loss import LabelSmoothingLoss  # noqa: E402


@lacks(
    reduction_none="returns a mean",
    probability_target=INDICES,
    unbatched=LAST,
    spatial=LAST,
    one_class="divides by the number of other classes",
    uint8_target="calls scatter, which refuses uint8",
    errors=TORCHS_ERRORS,
)
def espnet_smoothing(logits, target, ignore_index=-100):
    loss = LabelSmoothingLoss(logits.size(1), ignore_index, 0.0, normalize_length=True)
    return loss(logits[None], target[None])
