"""Each clause of the bounds of derivatives is needed: without the clause, correct code exceeds its bound.

A clause is code in `crossent/numerics/bounds/derivatives.py` that allows one rounding or one order of operations. In
the docstrings, `p` is the softmax, `v` are the coefficients (class weight times smoothed target), and `u` is the
direction.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.calls import inputs
from support.waits import float16

from crossent.cases.case import Case
from crossent.numerics.bounds import derivatives
from crossent.numerics.bounds.contracts import contract
from crossent.numerics.bounds.derivatives import DerivativeBounds
from crossent.numerics.formats import FORMATS
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.trials.along import second_order
from crossent.trials.difference import worst
from crossent.trials.exact import name_of, rows_of, solve_along


def difference(of, got, given, direction, promise="eager", grade="A"):
    """Return the difference of the derivative `got` from its exact value, under the contract of a promise.

    `of` is the name of the derivative, "second" or "tangent".
    """
    exact = solve_along(given, direction)
    promised = contract(promise, grade, name_of(given.input), rows=len(rows_of(given.input)))
    bounds = exact.bounds(replace(promised, storage=FORMATS[name_of(got)]))
    return worst(of, got, exact.second if of == "second" else exact.tangent, bounds)


def without(clause):
    """Remove a clause, given by its name, from the bounds. Return the monkeypatch: `undo` restores the clause."""
    patch = pytest.MonkeyPatch()
    leave_out = {
        "p is stored": ("_kept_probs", property(lambda self: self._probs)),
        "an underflow is multiplied": ("_product", lambda self, product, last: self.contract.keep(product)),
        "mean and direction are summed separately": (
            "_two_sums",
            lambda self: self._weighted_sums(mean_less_direction(self)),
        ),
    }
    if clause == "terms are scaled before they are summed":
        patch.setattr(derivatives, "wider", lambda a, b: a)
    else:
        patch.setattr(DerivativeBounds, *leave_out[clause])
    return patch


def mean_less_direction(bounds):
    c = bounds.contract
    return c.keep(derivatives.column(bounds._mean).minus(bounds._along, c.compute))


def assert_needed(clause, *compared, **promised):
    """Assert that a correct derivative is within its bound, and exceeds the bound that the other clauses give.

    `compared` and `promised` are the arguments of `difference`.
    """
    assert difference(*compared, **promised).ratio <= 1
    patch = without(clause)
    try:
        assert difference(*compared, **promised).ratio > 1, f"{clause}: the derivative passes without it"
    finally:
        patch.undo()


IN_TORCH = {"promise": "torch", "grade": "B"}


def of_torch(id):
    """Return torch's second derivative for a case, the inputs of the case, and its direction."""
    case = Case.of(id)
    given, direction = case.build(), case.direction()
    return second_order(TORCH.loss, given, direction, False)[0], given, direction


@float16
def test_autograd_may_store_p():
    """float16 rounds p, 6.8e-7, to a multiple of 6e-8. Upstream gradient, weight and direction multiply this error."""
    given = inputs([[0.0, -14.2]], [0], "float16", weight=[8.0, 8.0])
    given = replace(given, upstream=torch.tensor([8.0], dtype=torch.float16))
    direction = torch.tensor([[4.0, -4.0]], dtype=torch.float16)
    p = given.input.float().softmax(1)
    stored, along = p.half().float(), direction.float()
    assert abs(stored - p)[0, 1] > 2.0**-26  # more than a quarter of the spacing
    second = (64 * stored * (along - (stored * along).sum(1, keepdim=True))).half()
    assert_needed("p is stored", "second", second, given, direction, **IN_TORCH)


@float16
def test_terms_that_cancel_may_be_scaled_before_they_are_summed():
    """Σ v is nearly 0. If torch scales the coefficients v before the sum, the sum is mostly rounding errors."""
    case = "float16-1x7x16-offset-unnormalised-sum-scalar-seed1010624409"
    assert_needed("terms are scaled before they are summed", "second", *of_torch(case), **IN_TORCH)


def test_an_underflow_is_multiplied_by_the_remaining_factors():
    """p times the upstream gradient is 1e-42, where float32 has three digits. The weight 1e30 multiplies the error."""
    given = inputs([[0.0, -75.0, -1.0]], [0], weight=[1e30, 1.0, 1.0])
    given = replace(given, upstream=torch.tensor([3e-10]))
    direction = torch.tensor([[1.0, -2.0, 2.0]])
    p = given.input.softmax(1)
    scaled = p * given.upstream
    assert 0 < scaled[0, 1] < 2.0**-130
    second = (scaled * 1e30) * (direction - (p * direction).sum())
    assert_needed("an underflow is multiplied", "second", second, given, direction)


def test_a_product_may_overflow_before_its_last_factor():
    """The direction times g times w is 1e50, which float32 cannot represent, although p, 1e-22, is a factor too."""
    given = inputs([[0.0, -50.0]], [0], weight=[1e15, 1.0])
    given = replace(given, upstream=torch.tensor([1e15]))
    direction = torch.tensor([[1.0, -1e20]])
    p = given.input.softmax(1)
    second = ((direction - (p * direction).sum()) * 1e15 * 1e15) * p
    assert second.isinf().any()
    assert np.isfinite(solve_along(given, direction).second.hi).all()
    found = difference("second", second, given, direction, "kernel")
    assert found.not_judged == {"an intermediate may overflow": 2}


def test_a_product_may_underflow_to_zero_in_float64():
    """g·w/D is 1e-325, which rounds to 0. So the computed derivative is 0, although the exact one is 5e-321."""
    given = inputs([[0.0, 0.0]] * 2, [0, 1], "float64", weight=[1e250, 1e-75], reduction="mean")
    given = replace(given, upstream=torch.tensor(1.0, dtype=torch.float64))
    direction = torch.tensor([[1.0, -1.0], [1e5, -1e5]], dtype=torch.float64)
    scale = torch.tensor([[1.0], [1e-75 / 1e250]], dtype=torch.float64)
    assert scale[1] == 0
    p = given.input.softmax(1)
    second = p * scale * (direction - (p * direction).sum(1, keepdim=True))
    assert (np.abs(solve_along(given, direction).second.hi[1]) > 4e-321).all()
    assert difference("second", second, given, direction).ratio <= 1


def test_the_two_parts_of_a_smoothed_loss_may_have_separate_backward_passes():
    """With the weights 1 and about -3, the uniform part and the part of the true class nearly cancel."""

    def in_two_parts(input, target, **options):
        hard, smooth = (
            FORM_SUBJECTS["formula"].loss(input, target, **{**options, "label_smoothing": s}) for s in (0.0, 1.0)
        )
        return 0.5 * hard + 0.5 * smooth

    random = np.random.RandomState(0)
    given = inputs(random.randn(1000, 2).tolist(), [0] * 1000, weight=[1.0, -3.000001], label_smoothing=0.5)
    direction = torch.from_numpy(random.randint(-2, 3, (1000, 2))).float()
    second, _ = second_order(in_two_parts, given, direction, False)
    assert second.abs().max() > 0.0
    assert difference("second", second, given, direction).ratio <= 1


def running(terms):
    return functools.reduce(torch.add, terms.unbind(-1))


def test_mean_and_direction_may_be_summed_separately():
    """The direction is 2 everywhere, so the exact tangent is 0. `2·Σ v - Σ v u` has the rounding errors of two sums."""
    random = np.random.RandomState(1)
    target = torch.from_numpy(random.random_sample((1, 3000))).float()
    logits = torch.zeros(1, 3000)
    logits[0, 0] = 200.0
    given = inputs(logits.tolist(), target.tolist())
    direction = torch.full((1, 3000), 2.0)
    tangent = 2 * running(given.target) - (given.target * direction).flip(-1).sum(-1)
    assert_needed("mean and direction are summed separately", "tangent", tangent, given, direction)
