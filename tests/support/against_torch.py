"""Evaluate a loss, and bound the rounding error of its evaluation.

These are helpers of tests/forms/test_against_torch.py and tests/forms/test_linear_against_torch.py.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.machine import lacks_float64
from crossent.numerics.bounds.contracts import contract
from crossent.numerics.bounds.linear_contracts import linear_contract_of
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.rounding import safe
from crossent.subjects.builtin import FORM_SUBJECTS, LINEAR_FORM_SUBJECTS, REFERENCES, TORCH, subjects_of
from crossent.trials.exact import LinearResultBounds, name_of, rows_of, solve, terms_of

from .waits import computes

COUNTS_IN_FLOAT16 = pytest.mark.xfail(
    torch.__version__ >= "2.4", reason="pytorch#85791: torch counts the rows in float16, where 70,000 is infinity"
)


@dataclass
class Evaluated:
    """The loss and the gradient of the logits of one call, with an error bound for each number.

    Attributes:
        loss: the loss, in the dtype of the logits.
        gradient: the gradient, in the same dtype; None for `scalar`, which computes no gradient.
        bounds: the largest errors that rounding can cause, in the attributes `loss` and `gradient`.
    """

    loss: Tensor
    gradient: Tensor
    bounds: Bounds


def evaluate(function, logits, target, **options):
    """Call a form or `torch_loss`; return the loss, the gradient of its sum, and the error bounds of both.

    Skip the test if this version of torch does not compute the loss in this dtype on this device.
    """
    if function.__name__ == "torch_loss" and not torch_computes(logits):
        pytest.skip(f"this torch does not compute the loss of {name_of(logits)} logits on {logits.device}")
    leaf = logits.detach().requires_grad_()
    loss = function(leaf, target, **options)
    assert loss.dtype == logits.dtype
    gradient = torch.autograd.grad(loss.sum(), leaf)[0] if function is not scalar else None
    return Evaluated(loss.detach(), gradient, error_bounds(function, logits, target, loss, options))


def torch_computes(logits):
    """Return whether this version of torch computes the loss of logits of this dtype on this device."""
    return computes(name_of(logits), str(logits.device))


def error_bounds(function, logits, target, loss, options):
    """Return the error bounds of a form or of torch for the numbers of a call.

    The bounds depend on the format of the function's intermediates, on its order of summation, and on the accuracy of
    exp and log.
    """
    (of_fused,) = subjects_of("fused", str(logits.device))
    subject = {**FORM_SUBJECTS, "fused": of_fused, "torch_loss": TORCH}[function.__name__]
    options = {"reduction": "mean", "label_smoothing": 0.0, **options}
    terms = terms_of(Inputs(logits, target, options, torch.ones_like(loss)))
    dtype, device, rows = name_of(logits), str(logits.device), len(terms.logits)
    return Bounds(terms, contract(subject.promise, subject.grade(dtype), dtype, device=device, rows=rows))


@dataclass
class LinearEvaluated:
    """The loss and the gradients of one call of a linear cross-entropy, with an error bound for each number.

    Attributes:
        loss: the loss.
        gradient: the gradient of the input.
        weight_gradient: the gradient of `linear_weight`.
        bias_gradient: the gradient of `linear_bias`; None without a bias.
        bounds: the largest errors that rounding can cause, in attributes with these names.
    """

    loss: Tensor
    gradient: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor | None
    bounds: LinearResultBounds


def evaluate_linear(function, call):
    """Call a form or a function of torch; return the loss, the gradients of its sum, and the error bounds of all."""
    leaves = {"input": call["input"], "linear_weight": call["linear_weight"], "linear_bias": call.get("linear_bias")}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items() if leaf is not None}
    given = {**call, **leaves}
    loss = function(given.pop("input"), given.pop("linear_weight"), given.pop("target"), **given)
    assert loss.dtype == call["input"].dtype
    gradients = [*torch.autograd.grad(loss.sum(), list(leaves.values())), None][:3]
    subject = LINEAR_FORM_SUBJECTS.get(function.__name__, REFERENCES[LINEAR_CROSS_ENTROPY])
    options = {"reduction": "mean", "label_smoothing": 0.0, **call}
    inputs = Inputs(options.pop("input"), options.pop("target"), options, torch.ones_like(loss.detach()))
    dtype = name_of(inputs.input)
    promised = linear_contract_of(subject.promise, subject.grade(dtype), dtype, rows=len(inputs.input))
    return LinearEvaluated(loss.detach(), *gradients, solve(inputs).bounds(promised))


def scalar(input, target, **options):
    """Convert tensors to Python numbers, call `crossent.scalar` with them, and return the loss as a tensor."""
    return FORM_SUBJECTS["scalar"].loss(input, target, **options)


def in_float64(logits, target, **options):
    """Return the arguments of the call in float64, on the CPU if the device has no float64. The conversion is exact."""
    arguments = {"logits": logits, "target": target, **options}
    if lacks_float64(logits.device.type):
        arguments = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in arguments.items()}
    floats = {n: v for n, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return {**arguments, **{name: value.double() for name, value in floats.items()}}


def assert_within_bounds(result, expected, names=("loss", "gradient")):
    """Assert that each number of two results differs by no more than the sum of its two error bounds.

    `names` are the compared attributes of :class:`Evaluated`.
    """
    for name in names:
        got, wanted = getattr(result, name), getattr(expected, name)
        assert got.shape == wanted.shape, name
        assert got.device == wanted.device or lacks_float64(got.device.type), name
        limits = safe(getattr(result.bounds, name) + getattr(expected.bounds, name))
        got, wanted = (_numbers(tensor, limits.shape, name) for tensor in (got, wanted))
        assert np.isfinite([got, wanted, limits]).all(), f"{name}: a number or its bound is infinite or NaN"
        excess = abs(got - wanted) - limits
        worst = np.unravel_index(excess.argmax(), excess.shape)
        assert excess[worst] <= 0, (
            f"{name}: got {got[worst]!r}, and {wanted[worst]!r} from torch; "
            f"they differ by {abs(got - wanted)[worst]:.3g}, where rounding explains {limits[worst]:.3g}"
        )


def _numbers(tensor, shape, name):
    """Return the loss or the gradient as an array with the shape of its bounds: (R, C) for a gradient."""
    return rows_of(tensor) if name == "gradient" else tensor.cpu().double().numpy().reshape(shape)


def readable(value):
    """Return a parameter of a test as a word of the test id, such as `formula`, `32x10`, `float32` or `mean`."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(getattr(value, "__name__", value)).removeprefix("torch.")
