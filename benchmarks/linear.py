"""Measure the forms of linear cross-entropy: time and memory of a call, beside torch's function and the limits.

    python -m benchmarks linear

A call computes the loss, and the gradients of input and weight. All calls of a round get the same new inputs and take
turns, as in :mod:`benchmarks.paired`. The time of `linear_blocked` is divided by the time of each other call.

Three of the calls are torch's. "composition" is F.linear and F.cross_entropy. "torch" is F.linear_cross_entropy
without options, and "torch, chunked" is the same function with a default LinearCrossEntropyOptions. The limits are
calls that a form of grade A cannot do without. "products" computes the three products of matrices, in the dtype of the
computation. "function" computes them in an autograd function, which a gradient written by hand needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory, paired
from benchmarks.limits import Clock
from crossent.forms import LINEAR_FORMS
from crossent.forms.linear import rows_of_block

# Rows N, hidden size H and classes C. In this order: few numbers, which show the overhead of a call; a small head; a
# language model with a small, and with a large vocabulary.
SHAPES = ((32, 16, 10), (512, 128, 1000), (2048, 512, 8192), (1024, 256, 32000))
DTYPES = ("float32", "bfloat16")
FORM = "linear_blocked"
LIMITS = ("products", "function")
# The targets of `linear_blocked`: time / time of each other call, and extra memory / (gradients and one block).
TIME, MEMORY = 1.0, 1.1
# The target of memory applies if H / C is at most this: then a block is large beside the hidden states of its rows.
MOST_HIDDEN = 1 / 16
ROUNDS = 7

Call = Callable[[], object]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def composition(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Return the loss that F.linear and F.cross_entropy compute, with all logits in memory."""
    return F.cross_entropy(F.linear(input, weight), target)


def losses() -> dict[str, Loss]:
    """Return the functions that are compared, by name. torch has its own function since torch 2.13."""
    found: dict[str, Loss] = {**LINEAR_FORMS, "composition": composition}
    if hasattr(F, "linear_cross_entropy"):
        found["torch"] = F.linear_cross_entropy
        chunks = torch.nn.LinearCrossEntropyOptions()
        found["torch, chunked"] = lambda x, w, y: F.linear_cross_entropy(x, w, y, options=chunks)
    return found


def compute(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which the forms compute."""
    return torch.promote_types(dtype, torch.float32)


def products(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the three products of matrices, and return two tensors with the shapes of the gradients."""
    h, w = input.detach().to(compute(input.dtype)), weight.detach().to(compute(input.dtype))
    z = h @ w.T
    return z @ w, z.T @ h


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.found = products(input, weight)
        return ctx.found[0].sum()

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Tensor, ...]:
        return tuple(ctx.found)


def makers() -> dict[str, Callable[[Tensor, Tensor, Tensor], Call]]:
    """Return for each name a function that takes input, weight and target, and returns a call."""

    def gradients(loss: Loss) -> Callable[[Tensor, Tensor, Tensor], Call]:
        return lambda x, w, y: lambda: torch.autograd.grad(loss(x, w, y), (x, w))

    limits: dict[str, Callable[[Tensor, Tensor, Tensor], Call]] = {
        "products": lambda x, w, y: lambda: products(x, w),
        "function": gradients(lambda x, w, y: _Products.apply(x.to(compute(x.dtype)), w.to(compute(w.dtype)))),  # type: ignore[no-untyped-call]
    }
    return {**{name: gradients(loss) for name, loss in losses().items()}, **limits}


def drawn(shape: tuple[int, int, int], dtype: str) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Return a function that makes new inputs fast: the same rows, in another order."""
    (rows, features, classes), random = shape, torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, features, generator=random).to(getattr(torch, dtype))
    weight = (3 * torch.randn(classes, features, generator=random) / features**0.5).to(getattr(torch, dtype))
    target = torch.randint(classes, (rows,), generator=random)

    def fresh() -> tuple[Tensor, Tensor, Tensor]:
        order = torch.randperm(rows, generator=random)
        return hidden[order].requires_grad_(), weight.detach().requires_grad_(), target[order]

    return fresh


def measure(
    shapes: tuple[tuple[int, int, int], ...] = SHAPES, dtypes: tuple[str, ...] = DTYPES, *, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield a dict for each shape and dtype, in the format of the result file. Each dict takes about `seconds`."""
    for shape in shapes:
        for dtype in dtypes:
            yield _cell(shape, dtype, seconds)


def _cell(shape: tuple[int, int, int], dtype: str, seconds: float) -> dict[str, Any]:
    draw, made = drawn(shape, dtype), makers()

    def fresh() -> dict[str, Call]:
        numbers = draw()
        return {name: make(*numbers) for name, make in made.items()}

    clock = Clock.now()
    rounds = paired.measure(fresh, seconds=seconds, least=ROUNDS)
    others = clock.others()
    found: dict[str, dict[str, Any]] = {
        name: {"seconds": asdict(rounds.seconds(name)), "blocked_over_this": asdict(rounds.ratio(FORM, name))}
        for name in made
    }
    for name, call in fresh().items():
        if name not in LIMITS:
            call()
            found[name]["extra_memory"] = memory.peak(call)
    rows, features, classes = shape
    of_input = getattr(torch, dtype)
    size, own = (torch.finfo(one).bits // 8 for one in (compute(of_input), of_input))  # torch 2.0 has no itemsize
    return {
        "shape": list(shape),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "share_of_others": others,  # the share of the machine that other processes used during the measurement
        "gradients": size * (rows + classes) * features,  # bytes, in the dtype of the computation
        "block": size * rows_of_block(rows, classes) * classes,
        "logits": own * rows * classes,
        "found": found,
    }


def share_of_memory(cell: dict[str, Any]) -> float:
    """Return the extra memory of `linear_blocked`, divided by the memory of the gradients and one block."""
    extra: int = cell["found"][FORM]["extra_memory"]
    return extra / (cell["gradients"] + cell["block"])


def verdicts(cells: list[dict[str, Any]]) -> Iterator[tuple[str, float, float]]:
    """Yield for each target its name, the measured figure and the target."""
    for cell in cells:
        name = f"{FORM} {'x'.join(map(str, cell['shape']))} {cell['dtype']}"
        for other, one in cell["found"].items():
            if other not in (FORM, *LIMITS):
                yield f"{name}: time / {other}", one["blocked_over_this"]["median"], TIME
        if cell["shape"][1] <= MOST_HIDDEN * cell["shape"][2]:
            yield f"{name}: extra memory", share_of_memory(cell), MEMORY
