"""scikit-learn: the loss of LogisticRegression on raw predictions, with its gradient."""

import numpy as np
from packages import INDICES, ROWS, named
from sklearn._loss import HalfMultinomialLoss

from crossent.adapters import from_numpy

HALVES = "takes float32 and float64"


def rows(logits, target, reduction="mean"):
    losses = HalfMultinomialLoss(n_classes=logits.shape[1]).loss(target.astype(logits.dtype), logits)
    return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()


def gradient(upstream, logits, target, reduction="mean"):
    loss = HalfMultinomialLoss(n_classes=logits.shape[1])
    scale = np.broadcast_to(upstream / (len(target) if reduction == "mean" else 1), target.shape).copy()
    return loss.gradient(target.astype(logits.dtype), logits, sample_weight=scale)


sklearn_multinomial = named(
    "sklearn_multinomial",
    from_numpy(rows, gradient=gradient),
    **{"float16": HALVES, "bfloat16": HALVES, "probability_target": INDICES, "unbatched": ROWS, "spatial": ROWS},
    one_class="takes at least two classes",
    index_dtype_errors="converts the target",
    dtype_errors="converts the target",
    size_errors="leaves errors to Cython",
    error_classes="leaves errors to Cython",
)
