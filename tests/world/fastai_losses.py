"""fastai: cross-entropy of flattened logits, and label smoothing.

The file with the losses imports pandas, matplotlib and others, so this file loads only the two classes.
"""

import functools
import typing

import torch
from fastcore.basics import store_attr
from fastcore.meta import delegates, use_kwargs_dict
from packages import AUTOCAST, BATCH, INDICES, TORCHS_ERRORS, lacks, of_file
from torch import nn


class Module(nn.Module):
    """fastai's Module, whose subclasses do not call `super().__init__()`."""

    def __new__(cls, *arguments, **options):
        made = super().__new__(cls)
        nn.Module.__init__(made)
        return made


NAMES = {"torch": torch, "nn": nn, "F": nn.functional, "functools": functools, "typing": typing, "Module": Module}
NAMES |= {"Tensor": torch.Tensor, "TensorBase": torch.as_tensor, "MutableSequence": typing.MutableSequence}
NAMES |= {"noops": None, "store_attr": store_attr, "delegates": delegates, "use_kwargs_dict": use_kwargs_dict}
CrossEntropyLossFlat = of_file("fastai", "losses.py", "CrossEntropyLossFlat", "BaseLoss", **NAMES)
LabelSmoothingCrossEntropy = of_file("fastai", "losses.py", "LabelSmoothingCrossEntropy", **NAMES)


@lacks(
    reduction_none="flattens the losses",
    probability_target=INDICES,
    unbatched=BATCH,
    empty="flattens the logits, whose size is then ambiguous",
    errors=TORCHS_ERRORS,
)
def fastai_flat(logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    options = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction}
    axis = 1 if logits.dim() > 2 else -1
    return CrossEntropyLossFlat(axis=axis, label_smoothing=label_smoothing, **options)(logits, target)


@lacks(probability_target=INDICES, unbatched=BATCH, autocast=AUTOCAST, errors=TORCHS_ERRORS)
def fastai_smoothed(logits, target, weight=None, reduction="mean", label_smoothing=0.0):
    return LabelSmoothingCrossEntropy(label_smoothing, weight, reduction)(logits, target)
