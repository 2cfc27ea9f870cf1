"""Apple's cut cross-entropy: its composition of torch's functions. Its Triton kernels need a GPU.

The package compiles the composition, which takes seconds for each shape, so this file runs the same code uncompiled.
"""

import torch
from cut_cross_entropy import linear_cross_entropy
from packages import FLOAT32, INDICES, TORCHS_ERRORS, lacks

torch.compiler.set_stance("force_eager")


@lacks(probability_target=INDICES, half_result=FLOAT32, float64="computes in float32", errors=TORCHS_ERRORS)
def apple_linear(hidden, linear_weight, target, ignore_index=-100, reduction="mean"):
    options = {"ignore_index": ignore_index, "reduction": reduction, "impl": "torch_compile"}
    return linear_cross_entropy(hidden, linear_weight, target, **options)
