"""Compare the Jacobian of each form and of torch, by `jacobian(vectorize=True)`, with exact gradients."""

from dataclasses import replace

import pytest
import torch
from support.running import compare
from support.subjects import TENSOR_FORMS
from torch.autograd.functional import jacobian

import crossent
from crossent.cases.case import Case
from crossent.subjects.builtin import TORCH
from crossent.trials.call import Result
from crossent.trials.exact import solve

SUBJECTS = [*TENSOR_FORMS, TORCH]
CASES = [
    Case("float64", sizes, "normal", target, reduction, **options)
    for sizes in ((7, 5), (3, 5, 4), (5,))
    for target in ("int64", "probabilities")
    for reduction in ("none", "mean", "sum")
    for options in ({}, {"weight": "weighted", "label_smoothing": 0.1})
]
CASES += [Case("float32", (7, 5), reduction=reduction, ignored="ignored") for reduction in ("none", "mean")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_jacobians_of_every_form_and_of_torch_are_within_the_error_bounds(case):
    """A row of the Jacobian is the gradient for an upstream gradient that is 1 in one element and 0 elsewhere."""
    inputs = case.build()
    units = torch.eye(inputs.upstream.numel(), dtype=inputs.upstream.dtype).reshape(-1, *inputs.upstream.shape)
    exact = [solve(replace(inputs, upstream=unit)) for unit in units]
    for subject in SUBJECTS:
        given = inputs.copy()

        def loss(logits, subject=subject, given=given):
            return subject.loss(logits, given.target, **given.options)

        value = loss(given.input.detach())
        rows = jacobian(loss, given.input.detach(), vectorize=True).reshape(-1, *given.input.shape)
        for row, expected in zip(rows, exact, strict=True):
            for found in compare(Result(value, row), expected, "A", subject.promise):
                assert found.ratio <= 1, (subject.name, found)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": True}], ids=str)
def test_gradcheck_takes_batches_of_upstream_gradients_of_blocked(reduction, options):
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    options = {**options, **({"weight": torch.arange(1.0, 6.0).double()} if "weight" in options else {})}
    target = torch.tensor([0, 1, -100, 4])

    def loss(logits):
        return crossent.blocked(logits, target, reduction=reduction, **options)

    assert torch.autograd.gradcheck(loss, logits, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(loss, logits, check_batched_grad=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_batch_of_upstream_gradients_leaves_the_graph_for_the_next(dtype, reduction):
    """Compute gradients for one upstream gradient, for a batch of two, and for one again, from the same graph."""
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    loss = crossent.blocked(logits, torch.tensor([0, 1, 2, 4]), reduction=reduction)
    alone = torch.autograd.grad(loss, logits, torch.ones_like(loss), retain_graph=True)[0].clone()
    pair = torch.stack([torch.ones_like(loss), torch.full_like(loss, 2.0)])
    (batch,) = torch.autograd.grad(loss, logits, pair, retain_graph=True, is_grads_batched=True)
    assert batch.shape == (2, 4, 5)
    assert torch.equal(batch[1], 2 * batch[0])  # each operation is linear in the upstream gradient
    assert torch.equal(torch.autograd.grad(loss, logits, torch.ones_like(loss))[0], alone)
