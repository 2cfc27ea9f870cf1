"""The values that a script is about. These are examples: a printed script has those of its finding in their place.

Each file of this folder imports its values from here, so that Python, ruff and mypy can read the file as it stands.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The case: how the subject is called.
device: str = "cpu"
logits: Tensor = torch.tensor([[3.0, 1.0, -3.0], [0.0, 2.0, 1.0]])
target: Tensor = torch.tensor([0, 2])
options: dict[str, Any] = {"reduction": "mean"}
upstream: Tensor = torch.tensor(1.0)
given = logits, target, options, upstream
subject: Any = torch.nn.functional.cross_entropy
own_dtype: torch.dtype | None = None  # of the subject's results, where it is not the dtype of the logits
raises: tuple[type[Exception], ...] = (RuntimeError,)  # the errors that a bad call may raise
seconds: float = 60.0  # how long a call may take that runs in a process of its own

# The number that the finding is about.
part: str = "loss"  # or "gradient", "target_gradient", "second", …
index: tuple[int, ...] = ()
found: float | None = None  # the number in the finding, where this number is wrong by itself
exact: float = 1.3  # the exact value
allowed: float = 1.0  # the error bound
versus: str = "exact"  # or "other": the number is compared with another result of the subject

# What one check needs.
other: Any = given  # the arguments of another call
equations: Any = ((given, given),)  # for each equation: the arguments of the result, and those that it follows from
terms: tuple[tuple[int, float, tuple[int, ...]], ...] = ((1, 1.0, ()),)  # which result, times what, at which index
calls: tuple[str, ...] = ("in a thread", "beside another thread", "in the other thread")
which_call: Any = "in a thread"  # the name or the position of the call that gave the number
direction: Tensor = torch.ones_like(logits)  # along which derivatives are taken
shape: tuple[int, ...] = ()  # of a derivative
backend: str = "aot_eager_decomp_partition"  # of torch.compile
dynamic: bool = False  # whether one graph is compiled for all sizes
classes: tuple[int, ...] = (3, -1)  # outside the range of the classes
times: int = 2  # how often the logits are repeated along the batch
each_row: bool = False  # whether each row has an upstream gradient of its own
gib: float = 0.1  # how much memory a call on the repeated logits needs
