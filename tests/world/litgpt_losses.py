"""LitGPT: cross-entropy in chunks of rows. The file imports lightning, so this file loads only the function."""

import torch
from packages import INDICES, LAST, TORCHS_ERRORS, lacks, of_file

chunked_cross_entropy = of_file("litgpt", "utils.py", "chunked_cross_entropy", torch=torch)


@lacks(
    probability_target=INDICES,
    unbatched=LAST,
    spatial=LAST,
    nan_mean="divides by at least 1",
    errors=TORCHS_ERRORS,
)
def litgpt_chunked(logits, target, ignore_index=-100):
    return chunked_cross_entropy(logits, target, chunk_size=3, ignore_index=ignore_index)
