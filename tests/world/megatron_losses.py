"""Megatron-LM: the loss of logits whose classes are split over processes. Here one process has all classes."""

import torch
from packages import FLOAT32, FUNCTION, INDICES, LAST, lacks, without_init

without_init("megatron.core", "megatron.core.tensor_parallel")
from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy  # noqa: E402

if not torch.distributed.is_initialized():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()


@lacks(
    probability_target=INDICES,
    uint8_target="indexes with the target, and uint8 is a mask",
    unbatched=LAST,
    spatial=LAST,
    half_result=FLOAT32,
    float64="computes in float32",
    forward_ad=FUNCTION,
    batched_gradient=FUNCTION,
    vmap=FUNCTION,
    errors="takes a class out of range for a class of another process",
)
def megatron_vocab_parallel(logits, target, reduction="mean", label_smoothing=0.0):
    classes = logits.size(-1)
    smoothing = label_smoothing * (classes - 1) / classes  # Megatron-LM smooths over the other classes only
    # The loss overwrites float32 logits, to save memory.
    losses = vocab_parallel_cross_entropy(logits.clone(), target, smoothing)
    return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()
