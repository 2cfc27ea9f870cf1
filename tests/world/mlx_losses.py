"""MLX on the CPU: its cross-entropy, with its gradient."""

import mlx.core as mx
import numpy as np
from mlx.nn.losses import cross_entropy
from packages import named

from crossent.adapters import from_numpy

DTYPES = "takes any dtype, and has errors of its own"

mx.set_default_device(mx.cpu)


def loss(logits, target, reduction="mean", label_smoothing=0.0):
    axis = min(1, logits.ndim - 1)
    return cross_entropy(mx.array(logits), mx.array(target), None, axis, label_smoothing, reduction)


def gradient(upstream, logits, target, **options):
    _, gradients = mx.vjp(lambda x: loss(x, target, **options), [mx.array(logits)], [mx.array(upstream)])
    return np.array(gradients[0])


mlx_cpu = named(
    "mlx_cpu",
    from_numpy(loss, gradient=gradient),
    **{"float64": "has no float64", "bfloat16": "takes no bfloat16 from numpy"},
    unnormalised="takes probabilities that sum to 1",
    empty="takes at least one row",
    **{"index_dtype_errors": DTYPES, "dtype_errors": DTYPES, "option_errors": DTYPES, "error_classes": DTYPES},
)
