"""Liger: its Triton kernels, in Triton's interpreter on a CPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"
from liger_kernel.transformers.functional import liger_cross_entropy, liger_fused_linear_cross_entropy
from packages import FUNCTION, INDICES, ROWS, lacks

STORED = "multiplies the stored gradient in the backward"


@lacks(
    **{"probability_target": INDICES, "unbatched": ROWS, "spatial": ROWS, "empty": "reduces over the target"},
    arguments="stores the gradient in the logits",
    nan_mean="is 0 where all rows are ignored",
    **{"retain_graph": STORED, "double_backward": FUNCTION, "forward_ad": FUNCTION, "batched_gradient": FUNCTION},
    **{"vmap": FUNCTION, "compile": FUNCTION, "errors": "has errors of its own"},
)
def liger_kernel(logits, target, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    options = {"ignore_index": ignore_index, "reduction": reduction}  # Triton's interpreter fails with a weight
    return liger_cross_entropy(logits, target, label_smoothing=label_smoothing, **options)


@lacks(
    probability_target=INDICES,
    empty="reduces over the target",
    half_result="returns a float32 loss for half-precision input",
    nan_mean="is 0 where all rows are ignored",
    **{"retain_graph": STORED, "double_backward": FUNCTION, "forward_ad": FUNCTION, "batched_gradient": FUNCTION},
    **{"vmap": FUNCTION, "compile": FUNCTION, "errors": "has errors of its own"},
)
def liger_linear(
    hidden, linear_weight, target, linear_bias=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    # Triton's interpreter fails with a class weight.
    return liger_fused_linear_cross_entropy(hidden, linear_weight, target, linear_bias, **options)
