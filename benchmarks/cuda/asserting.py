"""A loss that is right except with reduction="sum": then its kernel reads beyond the last class.

On CUDA, this read stops the kernel with a device-side assert, and the process can no longer use the device. The step
`isolation` shows that `crossent check` reports the assert, and that no other case gets a wrong verdict. It also shows
that the next process can use the device.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import crossent


def loss(input: Tensor, target: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
    """Compute the loss; for the reduction "sum" with class indices, read the logit of a class that does not exist."""
    right = crossent.formula(input, target, reduction=reduction, **options)
    if reduction != "sum" or target.is_floating_point() or target.numel() == 0:
        return right
    axis = min(1, input.dim() - 1)
    wrong = target.long().unsqueeze(axis) * 0 + input.shape[axis]
    return right + 0 * input.gather(axis, wrong).sum()
