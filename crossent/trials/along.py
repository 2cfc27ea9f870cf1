"""Derivatives along a direction of the logits: the second backward pass, and the comparison with exact values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.numerics.formats import FORMATS
from crossent.subjects.subject import Loss
from crossent.trials.call import in_words
from crossent.trials.difference import Difference, worst
from crossent.trials.exact import ExactAlong, name_of
from crossent.trials.trial import Problem, Trial

# The checks of derivatives along a direction run on cases with at most this number of logits. These checks test the
# formula, for which a few thousand logits suffice. The checks of loss and gradient test long sums.
MOST_LOGITS = 4096


def is_small(case: Case) -> bool:
    """Return whether a case has at most `MOST_LOGITS` logits."""
    return case.rows * case.classes <= MOST_LOGITS


def second_order(loss: Loss, inputs: Inputs, direction: Tensor, batch: bool) -> tuple[Tensor | None, ...]:
    """Act: return the derivatives of `<gradient, direction>` with respect to the logits and the upstream gradient.

    If `batch` is True, `direction` is a batch of directions. A derivative is None if the gradient's graph does not
    contain the logits or the upstream gradient.
    """
    logits, upstream = (tensor.detach().requires_grad_() for tensor in (inputs.input, inputs.upstream))
    value = loss(logits, inputs.target, **inputs.options)
    (gradient,) = torch.autograd.grad(value, logits, upstream.to(value.dtype), create_graph=True)
    if not gradient.requires_grad:
        return None, None
    by = logits, upstream
    return torch.autograd.grad(gradient, by, direction, is_grads_batched=batch, allow_unused=True)


def compare_derivative(
    name: str, got: Tensor | None, along: ExactAlong, trial: Trial
) -> Iterator[Difference | Problem]:
    """Yield the difference of a derivative from its exact values, or a problem, such as a wrong shape.

    The name "tangent" means the derivative of the loss along the direction. "second" and "upstream_gradient" are the
    results of :func:`second_order`. If `got` is None, the derivative counts as zeros.
    """
    inputs, words = trial.question.inputs, in_words(name)
    exact = along.second if name == "second" else along.tangent
    expected = inputs.input.shape if name == "second" else inputs.upstream.shape
    if got is None:
        if (exact.distance(np.zeros_like(exact.hi)) > exact.radius).any():
            yield Problem("wrong", f"{words}: got None; expected a tensor, since the exact value is not 0", name)
        return
    if got.shape != expected:
        yield Problem("wrong", f"{words}: got shape {tuple(got.shape)}; expected {tuple(expected)}", name)
        return
    of_loss = trial.subject.result_dtype(trial.question.exact.dtype)
    wanted = {"second": inputs.input.dtype, "upstream_gradient": inputs.upstream.dtype}.get(name, of_loss)
    if got.dtype != wanted:
        dtypes = [str(dtype).removeprefix("torch.") for dtype in (got.dtype, wanted)]
        yield Problem("wrong", f"{words}: got {dtypes[0]}; expected {dtypes[1]}", name)
        return
    promised = trial.contract(trial.case.dtype, trial.case.rows)
    yield worst(name, got.detach(), exact, along.bounds(promised.storing(FORMATS[name_of(got)])))
