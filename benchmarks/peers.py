"""The timed functions: torch, the forms, and the cross-entropies of other libraries, which are called peers.

A maker is a function of three arguments: logits, target, and whether a gradient is needed. The maker returns a call, a
function without parameters. The call does not wait for a CUDA device. For a missing peer, a text with the reason stands
in place of a maker.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.limits import summed
from crossent.forms import FORMS

Call = Callable[[], object]
Maker = Callable[[Tensor, Tensor, bool], Call]
Loss = Callable[[Tensor, Tensor], Tensor]

# The largest size in bytes of a C × C identity matrix, the weight with which F.linear_cross_entropy takes logits. With
# 32,000 classes, the matrix would have 4 GB.
IDENTITY = 2**28

# The forms that take tensors.
NAMES = tuple(name for name in FORMS if name != "scalar")
LOSSES: dict[str, Loss] = {"torch": torch.nn.CrossEntropyLoss(), **{name: FORMS[name] for name in NAMES}}


def of_torch(loss: Loss, copied: bool = False) -> Maker:
    """Return the maker of a loss on tensors. With `copied`, copy the logits first, since the loss writes into them."""

    def make(logits: Tensor, target: Tensor, backward: bool) -> Call:
        # For the forward pass alone, the logits require no gradient: otherwise the pass would keep a graph.
        x = (logits.clone() if copied else logits.detach()).requires_grad_(backward)

        def call() -> None:
            result = loss(x, target)
            if backward:
                torch.autograd.grad(result, x)  # not backward(), which would add to .grad in the next call

        return call

    return make


def forms() -> dict[str, Maker]:
    """Return the makers of torch and of the forms."""
    return {name: of_torch(loss) for name, loss in LOSSES.items()}


def limits(backward: bool) -> dict[str, Maker]:
    """Return makers of calls that only move the memory that every implementation must move.

    "sum" reads all logits. "copy" and "clone" write as many numbers as a gradient has: "copy" into allocated memory,
    "clone" into new memory.

    The forward pass reads the logits once: one sweep can compute the maximum and the sum of exponentials (Milakov &
    Gimelshein, arXiv:1805.02867). The backward pass reads the logits again, since they do not fit a cache, and writes a
    gradient of their size. Targets and losses do not count: they have one number for a whole row.
    """

    def read(logits: Tensor, target: Tensor, backward: bool) -> Call:
        return lambda: summed(logits)

    def copy(logits: Tensor, target: Tensor, backward: bool) -> Call:
        out = torch.empty_like(logits).copy_(logits)
        return lambda: out.copy_(logits)

    def clone(logits: Tensor, target: Tensor, backward: bool) -> Call:
        return lambda: logits.clone()

    return {"sum": read, "copy": copy, "clone": clone} if backward else {"sum": read}


def peers(shape: tuple[int, ...], device: str) -> dict[str, Maker | str]:
    """Return the maker of each peer, by name, or the reason why the peer does not run on logits of this shape."""
    return {
        "torch.compile": _compiled(),
        "linear_cross_entropy": _linear(shape, device),
        "liger": _liger(shape, device),
        "quack": _quack(shape, device),
        "optax": _optax(device),
    }


def tried(maker: Maker, logits: Tensor, target: Tensor, backward: bool) -> str:
    """Make the call of a maker once, and return the reason why it fails, or ""."""
    try:
        maker(logits, target, backward)()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"raises {type(error).__name__}: {lines[0][:200]}"
    return ""


def host_waits(call: Call) -> str:
    """Return torch's message when a call makes the host wait for a CUDA device, or ""."""
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.synchronize()
    return ""


def _compiled() -> Maker | str:
    import torch._dynamo  # torch 2.0 does not import this module by itself

    torch._dynamo.reset()  # do not time code that was compiled for other shapes
    try:
        return of_torch(torch.compile(F.cross_entropy, dynamic=False))
    except RuntimeError as error:  # torch 2.0 on Python 3.11
        return f"needs a torch.compile that works: {error}"


def _linear(shape: tuple[int, ...], device: str) -> Maker | str:
    if not hasattr(F, "linear_cross_entropy"):
        return "needs torch 2.13 or newer"
    if len(shape) != 2:
        return "takes (N, C) only"
    if (size := 4 * shape[1] ** 2) > IDENTITY:
        return f"would need an identity matrix of {size / 1e9:.1f} GB"

    def make(logits: Tensor, target: Tensor, backward: bool) -> Call:
        identity = torch.eye(shape[1], device=logits.device, dtype=logits.dtype)
        return of_torch(lambda x, y: F.linear_cross_entropy(x, identity, y))(logits, target, backward)

    return make


def _liger(shape: tuple[int, ...], device: str) -> Maker | str:
    if not device.startswith("cuda"):
        return "needs a CUDA device"
    if importlib.util.find_spec("liger_kernel") is None:
        return "needs pip install liger-kernel"
    if len(shape) != 2:
        return "takes (N, C) only"
    kernel = importlib.import_module("liger_kernel.ops.cross_entropy").LigerCrossEntropyFunction
    return of_torch(lambda x, y: kernel.apply(x, y, None, -100, 0.0, 0.0, "mean")[0], copied=True)


def _quack(shape: tuple[int, ...], device: str) -> Maker | str:
    if not device.startswith("cuda"):
        return "needs a CUDA device"
    if importlib.util.find_spec("quack") is None:
        return "needs pip install quack-kernels"
    if len(shape) != 2:
        return "takes (N, C) only"
    try:
        loss = importlib.import_module("quack.cross_entropy").cross_entropy
    except Exception as error:  # its compiler checks the driver when it is imported
        return f"cannot be imported: {type(error).__name__}: {error}"
    return of_torch(lambda x, y: loss(x, y, reduction="mean"))


def _optax(device: str) -> Maker | str:
    if any(importlib.util.find_spec(name) is None for name in ("jax", "optax")):
        return "needs pip install jax optax"
    jax = importlib.import_module("jax")
    optax = importlib.import_module("optax")
    if device.startswith("cuda") and jax.default_backend() != "gpu":
        return "needs a JAX that sees the CUDA device"

    def mean(logits: Any, labels: Any) -> Any:
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels, axis=1).mean()

    both, alone = jax.jit(jax.grad(mean)), jax.jit(mean)

    def make(logits: Tensor, target: Tensor, backward: bool) -> Call:
        # JAX shares the memory of torch's tensors. By default, JAX has no int64.
        x, y = jax.dlpack.from_dlpack(logits.detach().contiguous()), jax.dlpack.from_dlpack(target.int())
        function = both if backward else alone
        return lambda: function(x, y).block_until_ready()

    return make
