"""The reference of some tests: nn.CrossEntropyLoss in float64, on the same values as a subject."""

import torch
from torch import Tensor

from crossent.subjects.subject import Subject


def _torch_in_float64(input, target, **options):
    # uint8 is widened too: torch takes it in some calls and refuses it in others.
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    target = target.double() if target.is_floating_point() else target.long()
    return torch.nn.CrossEntropyLoss(**wide)(input.double(), target)


REFERENCE = Subject("torch in float64", _torch_in_float64, dtype=torch.float64, promise="eager")
