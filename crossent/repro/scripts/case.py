"""Example values for the functions of this folder. A printed script has the values of its finding instead."""

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
own_dtype: torch.dtype | None = None  # the dtype of the subject's results, if it differs from the dtype of the logits
raises: tuple[type[Exception], ...] = (RuntimeError,)  # the errors that a call with bad input may raise
seconds: float = 60.0  # the time limit of a call in a separate process

# The number that the finding is about.
part: str = "loss"  # or "gradient", "target_gradient", "second", …
index: tuple[int, ...] = ()
found: float | None = None  # the wrong number of the run, which is wrong here too; None to judge by the bound alone
exact: float = 1.3  # the exact value
allowed: float = 1.0  # the error bound
versus: str = "exact"  # or "other", if the number is compared with another result of the subject

# The values of some checks.
other: Any = given  # the arguments of another call
# For each equation: the arguments of a first call, then of the calls whose results determine the first result.
equations: Any = ((given, given),)
# For each term of a sum: the position of a result in the equation, a factor, and an index in the result.
terms: tuple[tuple[int, float, tuple[int, ...]], ...] = ((1, 1.0, ()),)
# The names of several calls.
calls: tuple[str, ...] = ("in a thread", "in the first of two threads", "in the second of two threads")
# Calls in which only some arguments require a gradient: the name of the call, and these arguments by their gradients.
wanted_of: tuple[tuple[str, dict[str, str]], ...] = (("of the logits alone", {"gradient": "input"}),)
chunk_sizes: tuple[tuple[str, str, int], ...] = ()  # for each call: its name, and keyword and size of the chunks
which_call: Any = "in a thread"  # the name or the position of the call that gave the number
direction: Tensor = torch.ones_like(logits)  # the direction of the derivatives
shape: tuple[int, ...] = ()  # the shape of a derivative
backend: str = "aot_eager_decomp_partition"  # the backend of torch.compile
dynamic: bool = False  # whether one graph is compiled for all sizes
classes: tuple[int, ...] = (3, -1)  # class indices out of range
many: tuple[int, int] = (8192, 4096)  # the rows and the classes of a call whose memory is measured
times: int = 2  # how often the logits are repeated along the batch
each_row: bool = False  # whether each row has a separate upstream gradient
gib: float = 0.1  # the memory that a call on the repeated logits needs
