"""AllenNLP: the loss of a sequence. The module imports much of the package, so this file loads only its functions."""

import typing

import numpy
import torch
from packages import INDICES, LAST, TORCHS_ERRORS, lacks, of_file

NAMES = ("tiny_value_of_dtype", "min_value_of_dtype", "info_value_of_dtype")
TINY = of_file("allennlp", "nn/util.py", *NAMES, torch=torch)
USED = {**vars(typing), "torch": torch, "numpy": numpy, "tiny_value_of_dtype": TINY}
sequence_cross_entropy_with_logits = of_file("allennlp", "nn/util.py", "sequence_cross_entropy_with_logits", **USED)


@lacks(
    probability_target=INDICES,
    unbatched=LAST,
    spatial=LAST,
    bfloat16="has no smallest number for bfloat16",
    nan_mean="adds a small number to the denominator",
    strided="calls view, which requires contiguous logits",
    errors=TORCHS_ERRORS,
)
def allennlp_sequence(logits, target, label_smoothing=0.0):
    kept = torch.ones_like(target, dtype=torch.bool)
    options = {"average": "token", "label_smoothing": label_smoothing}
    return sequence_cross_entropy_with_logits(logits[None], target[None], kept[None], **options)
