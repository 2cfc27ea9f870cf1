"""torchtune: the cross-entropy of tokens, in chunks: one function takes logits, another takes hidden states."""

from packages import FLOAT32, INDICES, LAST, TORCHS_ERRORS, lacks, without_init
from torch.nn.functional import linear

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


@lacks(probability_target=INDICES, half_result=FLOAT32, float64="computes in float32", errors=TORCHS_ERRORS)
def torchtune_linear(hidden, linear_weight, target, linear_bias=None, ignore_index=-100):
    loss = CEWithChunkedOutputLoss(num_output_chunks=3, ignore_index=ignore_index)
    chunks = [linear(chunk, linear_weight, linear_bias) for chunk in hidden.unsqueeze(0).chunk(3, dim=1)]
    return loss(chunks, target.unsqueeze(0))
