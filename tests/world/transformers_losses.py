"""transformers: the losses of its language models. They divide a sum by `num_items_in_batch`."""

from packages import FLOAT32, INDICES, lacks
from transformers.loss.loss_utils import ForCausalLMLoss, fixed_cross_entropy


def items(reduction):
    """Return the `num_items_in_batch` for a reduction."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: got {reduction!r}; choose from mean and sum")
    return 1 if reduction == "sum" else None


@lacks(reduction_none="returns a sum or a mean")
def transformers_fixed(logits, target, ignore_index=-100, reduction="mean"):
    return fixed_cross_entropy(logits, target, items(reduction), ignore_index)


@lacks(
    reduction_none="returns a sum or a mean",
    probability_target=INDICES,
    unbatched="takes logits with the classes last",
    spatial="takes logits with the classes last",
    half_result=FLOAT32,
    float64="computes in float32",
    errors="converts any dtype and shape",
)
def transformers_causal(logits, target, ignore_index=-100, reduction="mean"):
    return ForCausalLMLoss(logits, None, logits.size(-1), items(reduction), ignore_index, shift_labels=target)
