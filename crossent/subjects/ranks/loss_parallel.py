"""The subject `loss_parallel`: `F.cross_entropy` of a sharded DTensor, in torch's context manager of this name."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # the name in torch's documentation
from torch import Tensor

try:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.parallel import loss_parallel
except ImportError:  # the public names exist since torch 2.5
    _HAS_TENSORS = False
else:
    _HAS_TENSORS = True


def require_tensors() -> None:
    """Raise ValueError if torch is older than 2.5, and so has no public DTensor."""
    if not _HAS_TENSORS:
        raise ValueError(f"loss_parallel needs torch 2.5 or newer; this is torch {torch.__version__}")


class LossParallel:
    """torch's own loss on several ranks: `F.cross_entropy` of a DTensor of logits, sharded along the class axis.

    With class indices as the target, no rank collects the logits of other ranks. `lacks` has the features that this
    loss lacks in torch 2.13.0.
    """

    lacks: ClassVar = {
        "label_smoothing": "raises with label_smoothing: got mixed torch.Tensor and DTensor",
        "uint8_target": "raises with targets in uint8, which torch.gather does not take",
        "one_class": "raises on a rank without classes, while the other ranks wait",
        "empty": "raises for an empty batch",
        "errors": "does not check its arguments: a target out of range gives a loss of another class",
    }

    def __init__(self) -> None:
        require_tensors()
        ranks = torch.distributed.get_world_size()
        kind = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        self._mesh = init_device_mesh(kind, (ranks,))

    def context(self) -> AbstractContextManager[Any]:
        """Return torch's context manager `loss_parallel`."""
        made: AbstractContextManager[Any] = loss_parallel()
        return made

    def forward(self, local_logits: Tensor, target: Tensor, shape: torch.Size, axis: int, options: Any) -> Tensor:
        """Return the loss as a replicated DTensor. :mod:`crossent.subjects.ranks.protocol` explains the arguments."""
        stride = torch.empty(shape, device="meta").stride()
        logits = DTensor.from_local(
            local_logits, self._mesh, [Shard(axis)], run_check=False, shape=shape, stride=stride
        )
        if target.is_floating_point():
            target = DTensor.from_local(target, self._mesh, [Replicate()], run_check=False)
        return F.cross_entropy(logits, target, **options)
