"""Bounds of derivatives: each test leaves out one clause, and without the clause correct code fails."""

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
    """How far a derivative is off, (R, C), (R,) or a number, under a contract."""
    exact = solve_along(given, direction)
    promised = contract(promise, grade, name_of(given.logits), rows=len(rows_of(given.logits)))
    bounds = exact.bounds(replace(promised, storage=FORMATS[name_of(got)]))
    return worst(of, got, exact.second if of == "second" else exact.tangent, bounds)


def without(clause):
    """Leave a clause of the bound out."""
    patch = pytest.MonkeyPatch()
    leave_out = {
        "p is stored": ("_kept_probs", property(lambda self: self._probs)),
        "an underflow is multiplied": ("_product", lambda self, product, last: self.contract.keep(product)),
        "mean and direction are summed apart": ("_two_sums", lambda self: self._expected(mean_less_direction(self))),
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
    """The result is allowed with the clause, and not without."""
    assert difference(*compared, **promised).ratio <= 1
    patch = without(clause)
    try:
        assert difference(*compared, **promised).ratio > 1, f"{clause}: the clause is not needed"
    finally:
        patch.undo()


IN_TORCH = {"promise": "torch", "grade": "B"}


def of_torch(id):
    """A case, its direction, and torch's second derivative."""
    case = Case.of(id)
    given, direction = case.build(), case.direction()
    return second_order(TORCH.loss, given, direction, False)[0], given, direction


@float16
def test_autograd_stores_p_where_the_kernel_of_the_gradient_does_not():
    """p is 6.8e-7, between two multiples of 6e-8 in float16, and g, the weight and the direction are all large."""
    given = inputs([[0.0, -14.2]], [0], "float16", weight=[8.0, 8.0])
    given = replace(given, upstream=torch.tensor([8.0], dtype=torch.float16))
    direction = torch.tensor([[4.0, -4.0]], dtype=torch.float16)
    p = given.logits.float().softmax(1)
    stored, along = p.half().float(), direction.float()
    assert abs(stored - p)[0, 1] > 2.0**-26  # over a quarter of the spacing
    second = (64 * stored * (along - (stored * along).sum(1, keepdim=True))).half()
    assert_needed("p is stored", "second", second, given, direction, **IN_TORCH)


@float16
def test_terms_that_cancel_may_be_scaled_before_they_are_summed():
    """Σ v is nearly 0: what is left of it after scaling is the rounding of its terms."""
    case = "float16-1x7x16-offset-unnormalised-sum-scalar-seed1010624409"
    assert_needed("terms are scaled before they are summed", "second", *of_torch(case), **IN_TORCH)


def test_an_underflow_is_multiplied_by_the_factors_still_to_come():
    """p·g is 1e-42, of which float32 holds three digits, and the weight 1e30."""
    given = inputs([[0.0, -75.0, -1.0]], [0], weight=[1e30, 1.0, 1.0])
    given = replace(given, upstream=torch.tensor([3e-10]))
    direction = torch.tensor([[1.0, -2.0, 2.0]])
    p = given.logits.softmax(1)
    scaled = p * given.upstream
    assert 0 < scaled[0, 1] < 2.0**-130
    second = (scaled * 1e30) * (direction - (p * direction).sum())
    assert_needed("an underflow is multiplied", "second", second, given, direction)


def test_the_parts_of_a_smoothed_loss_may_go_backward_apart_though_they_cancel():
    """The weights are 1 and about -3: the uniform half nearly takes back what the true class gives."""

    def apart(input, target, **options):
        hard, smooth = (
            FORM_SUBJECTS["formula"].loss(input, target, **{**options, "label_smoothing": s}) for s in (0.0, 1.0)
        )
        return 0.5 * hard + 0.5 * smooth

    random = np.random.RandomState(0)
    given = inputs(random.randn(1000, 2).tolist(), [0] * 1000, weight=[1.0, -3.000001], label_smoothing=0.5)
    direction = torch.from_numpy(random.randint(-2, 3, (1000, 2))).float()
    second, _ = second_order(apart, given, direction, False)
    assert second.abs().max() > 0.0
    assert difference("second", second, given, direction).ratio <= 1


def running(terms):
    return functools.reduce(torch.add, terms.unbind(-1))


def test_mean_and_direction_may_be_summed_apart():
    """Every class has the direction 2 but one that has no probability: `2·Σ v` less `Σ v u` is what two sums round."""
    random = np.random.RandomState(1)
    target = torch.from_numpy(random.random_sample((1, 3000))).float()
    logits = torch.zeros(1, 3000)
    logits[0, 0] = 200.0
    given = inputs(logits.tolist(), target.tolist())
    direction = torch.full((1, 3000), 2.0)
    tangent = 2 * running(given.target) - (given.target * direction).flip(-1).sum(-1)
    assert_needed("mean and direction are summed apart", "tangent", tangent, given, direction)
