"""DeepSpeed: the loss of logits whose classes are split over processes. Here one process has all classes."""

import deepspeed  # noqa: F401  # the module below cannot be imported first
from deepspeed.sequence.cross_entropy import vocab_parallel_cross_entropy
from packages import FLOAT32, FUNCTION, INDICES, LAST, lacks


@lacks(
    probability_target=INDICES,
    spatial=LAST,
    half_result=FLOAT32,
    float64="computes in float32",
    forward_ad=FUNCTION,
    batched_gradient=FUNCTION,
    vmap=FUNCTION,
    compile="reads a number of the target, for its own error",
    errors="raises ValueError where torch raises other errors",
)
def deepspeed_vocab_parallel(logits, target, ignore_index=-100, reduction="mean"):
    return vocab_parallel_cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)
