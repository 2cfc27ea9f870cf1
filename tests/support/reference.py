"""A subject to compare with: nn.CrossEntropyLoss, computed in float64 from the same numbers."""

import torch
from torch import Tensor

from crossent.subjects.subject import Subject


def _torch_in_float64(input, target, **options):
    # uint8 targets become int64, because torch refuses uint8 in some calls.
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    target = target.double() if target.is_floating_point() else target.long()
    return torch.nn.CrossEntropyLoss(**wide)(input.double(), target)


REFERENCE = Subject("torch in float64", _torch_in_float64, dtype=torch.float64, promise="eager")
