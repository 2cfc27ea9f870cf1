"""The claims of the article from which this project grew, one test for each.

The article takes the logits (3, 1, -3) of an image of class 0, and explains softmax and cross-entropy with these
numbers. The article then compares a formula in a loop with `nn.CrossEntropyLoss` on one random row.
"""

import math

import pytest
import torch
from support.running import compare
from support.subjects import TENSOR_FORMS
from torch import nn
from torch.nn import functional as F

import crossent
from crossent.cases.inputs import Inputs
from crossent.trials.call import Result, evaluate
from crossent.trials.exact import solve

LOGITS = (3.0, 1.0, -3.0)
TARGET = 0
FORMS = [form.loss for form in TENSOR_FORMS]


def row(dtype=torch.float64):
    return torch.tensor([LOGITS], dtype=dtype), torch.tensor([TARGET])


def assert_equal_to_torch(loss, logits, target):
    """Assert that loss and gradient are within their error bounds, for the function `loss` and nn.CrossEntropyLoss."""
    options = {"reduction": "mean", "label_smoothing": 0.0}
    inputs = Inputs(logits, target, options, torch.tensor(1.0))
    exact = solve(inputs)
    for function in (loss, lambda x, y, **options: nn.CrossEntropyLoss(**options)(x, y)):
        for difference in compare(evaluate(function, inputs), exact):
            assert difference.ratio <= 1, difference


def test_softmax_of_the_example_as_the_text_rounds_it():
    p = row()[0].softmax(1)[0]
    assert [f"{value:.3f}" for value in p.tolist()] == ["0.879", "0.119", "0.002"]
    assert [f"{value:.2f}" for value in p.tolist()] == ["0.88", "0.12", "0.00"]


def test_loss_of_the_example_and_why_the_text_prints_012():
    losses = [form(*row()).item() for form in FORMS] + [crossent.scalar(LOGITS, TARGET)]
    assert [f"{loss:.4f}" for loss in losses] == ["0.1291"] * 5
    # The article takes the logarithm of the rounded probability, and truncates the result.
    assert f"{-math.log(0.88):.4f}" == "0.1278"
    assert math.floor(-math.log(0.88) * 100) / 100 == 0.12


def test_a_one_hot_target_needs_one_term_only():
    p = row()[0].softmax(1)[0]
    y = F.one_hot(torch.tensor(TARGET), 3)
    assert -(y * p.log()).sum() == -p[TARGET].log()


def test_cross_entropy_loss_applies_the_softmax_itself():
    x, y = row()
    right = nn.CrossEntropyLoss()(x, y)
    second_softmax = nn.CrossEntropyLoss()(x.softmax(1), y)
    assert f"{right:.4f}" == "0.1291"
    assert f"{second_softmax:.4f}" == "0.6333"
    for form in FORMS:
        assert f"{form(x.softmax(1), y):.4f}" == "0.6333"


@pytest.mark.parametrize("seed", range(20))
def test_log_softmax_and_nll_loss_equal_cross_entropy_loss(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 5, generator=generator)
    y = torch.randint(5, (6,), generator=generator)
    assert_equal_to_torch(lambda x, y, **_: F.nll_loss(F.log_softmax(x, 1), y), x, y)
    assert_equal_to_torch(crossent.log_softmax_nll, x, y)


@pytest.mark.parametrize("seed", range(20))
def test_softmax_is_a_distribution_that_keeps_the_predicted_class(seed):
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = x.softmax(1)
    assert ((p > 0) & (p < 1)).all()
    assert p.argmax(1).equal(x.argmax(1))
    # Each of the five quotients has one rounding from the division, five from the sum, and two from the exponential.
    roundings = 5 * (1 + 5 + 2)
    assert ((p.sum(1) - 1).abs() <= roundings * 2.0**-53).all()


@pytest.mark.parametrize("seed", range(100))
def test_the_listing_equals_torch_on_a_random_row(seed):
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(1, 5, generator=generator)
    label = torch.randint(5, (1,), generator=generator)
    inputs = Inputs(output.double(), label, {"reduction": "mean", "label_smoothing": 0.0}, torch.tensor(1.0))

    # The listing of the article, unchanged.
    first = -output[0, label.item()].item()
    second = 0.0
    for i in range(5):
        second += math.exp(output[0, i])
    listing = first + math.log(second)

    for loss in (listing, crossent.scalar(output[0].tolist(), label.item())):
        got = Result(torch.tensor(loss, dtype=torch.float64), None)
        (difference,) = compare(got, solve(inputs))
        assert difference.ratio <= 1, difference
    for form in (*FORMS, F.cross_entropy):
        assert_equal_to_torch(form, output, label)


def test_the_scalar_form_does_not_overflow_where_the_listing_does():
    with pytest.raises(OverflowError):
        math.exp(1000.0)
    assert crossent.scalar([1000.0, 0.0], 0) == 0.0
    assert crossent.scalar([1000.0, 1000.0], 0) == math.log(2)
    assert crossent.scalar([-1000.0, 0.0], 0) == 1000.0
