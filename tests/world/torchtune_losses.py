"""torchtune: the cross-entropy of tokens in chunks."""

from packages import FLOAT32, INDICES, LAST, TORCHS_ERRORS, lacks, without_init

without_init("torchtune", "torchtune.modules")
from torchtune.modules.loss import CEWithChunkedOutputLoss  # noqa: E402


@lacks(
    probability_target=INDICES,
    unbatched=LAST,
    spatial=LAST,
    half_result=FLOAT32,
    float64="computes in float32",
    errors=TORCHS_ERRORS,
)
def torchtune_chunked(logits, target, ignore_index=-100):
    loss = CEWithChunkedOutputLoss(num_output_chunks=3, ignore_index=ignore_index)
    return loss(logits.unsqueeze(0).chunk(3, dim=1), target.unsqueeze(0))
