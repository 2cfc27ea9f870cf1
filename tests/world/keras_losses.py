"""keras on torch: its losses for class indices and for probabilities."""

import os

os.environ["KERAS_BACKEND"] = "torch"
import keras
from packages import INDICES, TORCHS_ERRORS, lacks

EMPTY = "returns the losses of an empty batch without a reduction"
REDUCTIONS = {"none": None, "mean": "sum_over_batch_size", "sum": "sum"}


def options(logits, reduction):
    dtype = str(logits.dtype).removeprefix("torch.")
    return {"from_logits": True, "axis": min(1, logits.dim() - 1), "reduction": REDUCTIONS[reduction], "dtype": dtype}


@lacks(probability_target=INDICES, empty=EMPTY, errors=TORCHS_ERRORS)
def keras_sparse(logits, target, ignore_index=-100, reduction="mean"):
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=ignore_index, **options(logits, reduction))
    return loss(target, logits)


@lacks(index_target="takes class probabilities", empty=EMPTY, errors=TORCHS_ERRORS)
def keras_categorical(logits, target, reduction="mean", label_smoothing=0.0):
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing, **options(logits, reduction))
    return loss(target, logits)


@lacks(probability_target=INDICES, float64="keras.ops.mean computes in float32", errors=TORCHS_ERRORS)
def keras_ops(logits, target):
    axis = min(1, logits.dim() - 1)
    return keras.ops.mean(keras.ops.sparse_categorical_crossentropy(target, logits, from_logits=True, axis=axis))
