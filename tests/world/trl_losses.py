"""TRL: the log-probability of each token, which is the negative loss of a row, of logits and of hidden states.

A file of TRL imports datasets, pandas and accelerate, so only one function of the file is loaded.
"""

import sys
from contextlib import nullcontext
from types import ModuleType

import torch
from packages import FLOAT32, FUNCTION, GATHER, INDICES, LAST, TORCHS_ERRORS, lacks, of_file, without_init
from torch.nn import functional

NAMES = {"torch": torch, "F": functional, "is_triton_available": lambda: False}
selective_log_softmax = of_file("trl", "trainer/utils.py", "selective_log_softmax", **NAMES)
without_init("trl", "trl.trainer")
UTILS = sys.modules["trl.trainer.utils"] = ModuleType("utils")  # the kernel takes this function from that file
UTILS.maybe_gather_lm_head_ctx = lambda *parameters: nullcontext()
from trl.kernels.chunked_logprob import ChunkedLogProbFunction  # noqa: E402


@lacks(
    probability_target=INDICES,
    uint8_target=GATHER,
    unbatched=LAST,
    spatial=LAST,
    empty="stacks the rows, of which there must be one",
    errors=TORCHS_ERRORS,
)
def trl_selective(logits, target, reduction="mean"):
    losses = -selective_log_softmax(logits, target)
    return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()


@lacks(
    probability_target=INDICES,
    half_result=FLOAT32,
    float64="computes in float32",
    double_backward=FUNCTION,
    forward_ad=FUNCTION,
    batched_gradient=FUNCTION,
    vmap=FUNCTION,
    errors=TORCHS_ERRORS,
)
def trl_linear(hidden, linear_weight, target, linear_bias=None, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    log_probs = ChunkedLogProbFunction.apply(hidden, linear_weight, linear_bias, target.where(kept, 0), 1.0, 16)[0]
    losses = -log_probs.masked_fill(~kept, 0)
    return {"none": lambda: losses, "mean": lambda: losses.sum() / kept.sum(), "sum": losses.sum}[reduction]()
