"""Random small calls of a linear cross-entropy, each rebuilt from its number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from crossent.numerics.formats import FORMATS
from crossent.numerics.linear_call import LinearCall

# The values of input and weight. Each kind makes another step of the computation lose digits.
VALUES = ("normal", "large", "confident", "offset", "decades", "tiny", "flat", "cancelling", "positive")
LARGEST = (40, 48, 64)  # the largest N, H and V


@dataclass(frozen=True)
class LinearCase:
    """A call and the dtype in which it is made.

    Attributes:
        id: A short description, for messages.
        dtype: The name of the dtype.
        call: The arguments. Every number is a number of the dtype.
    """

    id: str
    dtype: str
    call: LinearCall

    def tensors(self) -> dict[str, Any]:
        """Return the arguments of `F.linear_cross_entropy`, as tensors of the dtype."""
        call, dtype = self.call, getattr(torch, self.dtype)
        given = {"input": call.input, "linear_weight": call.linear_weight, "linear_bias": call.linear_bias}
        made = {name: None if a is None else torch.tensor(a).to(dtype) for name, a in given.items()}
        made["weight"] = None if call.weight is None else torch.tensor(call.weight).to(dtype)
        if call.index is None:
            return made | {"target": torch.tensor(call.probabilities).to(dtype)} | self.options()
        return made | {"target": torch.tensor(call.index), "ignore_index": call.ignore_index} | self.options()

    def options(self) -> dict[str, Any]:
        return {"reduction": self.call.reduction, "label_smoothing": self.call.label_smoothing}

    def run(self, loss: Any) -> dict[str, np.ndarray]:
        """Call a loss, and return loss and gradients by name as float64 arrays."""
        given = self.tensors()
        leaves = {name: given[name] for name in ("input", "linear_weight", "linear_bias") if given[name] is not None}
        for leaf in leaves.values():
            leaf.requires_grad_()
        result = loss(given.pop("input"), given.pop("linear_weight"), given.pop("target"), **given)
        result.backward(torch.tensor(self.call.upstream, dtype=torch.float64).to(result.dtype))
        names = {"input": "grad_input", "linear_weight": "grad_weight", "linear_bias": "grad_bias"}
        results = {"loss": result.detach()} | {names[name]: leaf.grad for name, leaf in leaves.items()}
        return {name: tensor.double().numpy() for name, tensor in results.items()}


def linear_case(number: int, dtype: str, *, seed: int = 0, zeros: bool = False, **fixed: Any) -> LinearCase:
    """Return a random case.

    Args:
        number: The number of the case.
        dtype: The name of the dtype.
        seed: Another seed gives other cases.
        zeros: Whether half of the numbers of input and weight are 0, and the class weights have both signs. The weights
            of a mean may then add up to nearly 0, where the mean has no error bound.
        fixed: Values in place of random choices: "sizes", "values", "reduction", "smooth", "weighted" and others.
    """
    random = np.random.RandomState([seed, number])

    def chosen(name: str, *choices: Any) -> Any:
        drawn = choices[random.randint(len(choices))]
        return fixed.get(name, drawn)

    def rounded(values: Any) -> Any:
        values = FORMATS[dtype].nearest(np.array(values, np.float64))
        return values if dtype == "float64" else values.astype(np.float32)

    drawn = tuple(max(1, round(2 ** (random.random_sample() * np.log2(most)))) for most in LARGEST)
    n, h, v = fixed.get("sizes", drawn)
    values = chosen("values", *VALUES)
    index = random.randint(0, v, n)
    x, w = _values(values, random, n, h, v, index)
    bias = random.standard_normal(v) if chosen("bias", True, False) else None
    weight = 2.0 ** random.uniform(-2, 2, v) if chosen("weighted", True, False, False) else None
    reduction = chosen("reduction", "mean", "mean", "sum", "none")
    smoothing = chosen("smooth", 0.0, 0.0, 0.0, 0.1, 0.5, 0.01)
    ignore_index, share = chosen("ignore_index", -100, 0, 255), chosen("ignored", 0.0, 0.0, 0.4, 0.9)
    ignored = random.random_sample(n) < share
    shape = n if reduction == "none" else ()
    upstream = chosen("upstream", np.ones(shape), random.uniform(-2, 2, shape) * 2.0 ** random.randint(-4, 5))
    probabilities = None
    if chosen("dense", *[False] * 5, True):
        probabilities, ignore_index = random.dirichlet(np.full(v, 0.5), n), -100
    if zeros:
        x, w, values = x * random.randint(0, 2, x.shape), w * random.randint(0, 2, w.shape), f"{values} with zeros"
        weight = None if weight is None else weight * random.choice([-1, 1], v)
    call = LinearCall(
        rounded(x),
        rounded(w),
        None if bias is None else rounded(bias),
        index=np.where(ignored, ignore_index, index) if probabilities is None else None,
        probabilities=None if probabilities is None else rounded(probabilities),
        weight=None if weight is None else rounded(weight),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=smoothing,
        upstream=rounded(upstream) if reduction == "none" else float(rounded(upstream)),
    )
    parts = [number, dtype, f"{n}x{h}x{v}", values, reduction, *(["dense"] if probabilities is not None else [])]
    parts += [name for name, given in {"bias": bias, "weight": weight}.items() if given is not None]
    return LinearCase("-".join(map(str, [*parts, *([f"smooth{smoothing}"] if smoothing else [])])), dtype, call)


def _values(kind: str, random: np.random.RandomState, n: int, h: int, v: int, index: Any) -> tuple[Any, Any]:
    """Return input, (N, H), and weight, (V, H)."""
    x, w = random.standard_normal((n, h)), random.standard_normal((v, h)) / np.sqrt(h)
    if kind == "large":
        x *= 2.0 ** random.randint(1, 6)
    elif kind == "confident":
        towards = w[index] / np.maximum(1e-9, np.linalg.norm(w[index], axis=1, keepdims=True))
        x = 0.3 * x + np.sqrt(h) * random.choice([2, 6, 12]) * towards
    elif kind == "offset":
        x[:, 0], w[:, 0] = 4 + np.abs(x[:, 0]), random.choice([-1, 1]) * 2.0 ** random.randint(0, 6)
    elif kind == "decades":
        x, w = np.ldexp(x, random.randint(-8, 5, x.shape)), np.ldexp(w, random.randint(-8, 5, w.shape))
    elif kind == "tiny":
        x, w = x * 2.0**-10, w * 2.0**-6
    elif kind == "flat":
        w[:] = w[:1]
    elif kind == "cancelling":
        half = h // 2
        x[:, half : 2 * half] = x[:, :half]
        w[:, half : 2 * half] = -w[:, :half] * (1 + 2.0**-6 * random.standard_normal((v, half)))
    elif kind == "positive":
        x, w = np.abs(x), np.abs(w)
    return x, w
