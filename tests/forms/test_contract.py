"""The contract of a cross-entropy, one sentence in each test: what the forms compute, reject and leave unchanged.

Most expected values are exact, because the logits are *saturated*: the largest logit of a row is 0, and every other
logit is -1024 or less, where exp underflows to 0 even in float64. The softmax of such a row is exactly one-hot, and
log_softmax returns exactly the row. Weights, smoothing and upstream gradients are powers of two. So every product and
sum is exact too, and :func:`assert_equal` compares loss and gradient by `==`. If numbers must be rounded,
:func:`assert_within_bounds` compares within the error bounds.
"""

import functools
import itertools
import math
import os
import shutil
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.running import compare
from support.subjects import TENSOR_FORMS

from crossent import blocked, scalar
from crossent.cases.inputs import Inputs
from crossent.cases.operation import GRADIENTS
from crossent.trials.call import evaluate
from crossent.trials.exact import solve

INF, NAN = math.inf, math.nan
FORMS = tuple(form.loss for form in TENSOR_FORMS)
REDUCTIONS = ("none", "mean", "sum")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)

# Three saturated rows of four classes. The possible denominators of a mean differ: the weights of the true classes add
# up to 8, and the number of rows is 3.
LOG_PROBS = ((0.0, -1024.0, -2048.0, -4096.0), (-2048.0, 0.0, -4096.0, -1024.0), (-1024.0, -4096.0, 0.0, -2048.0))
TARGET = (1, 2, 3)
WEIGHT = (0.5, 2.0, 4.0, 2.0)
PROBABILITIES = ((0.5, 0.25, 0.25, 0.0), (0.0, 0.25, 0.25, 0.5), (0.125, 0.5, 0.125, 0.25))
UPSTREAM = (2.0, -1.0, 0.5)


def name_of(value):
    return value.__name__ if callable(value) else None


each_form = pytest.mark.parametrize("form", FORMS, ids=name_of)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_smoothing = pytest.mark.parametrize("label_smoothing", [0.0, 0.5, 1.0])


def assert_equal(got, expected):
    """Assert that two tensors are equal, without a tolerance. Two NaN are equal, and so are 0 and -0."""
    if not isinstance(expected, torch.Tensor):
        expected = torch.tensor(expected, dtype=got.dtype)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert ((got == expected) | (got.isnan() & expected.isnan())).all(), f"got {got}, expected {expected}"


def assert_within_bounds(loss, inputs, gradient=True):
    """Assert that the loss, and its gradients if `gradient` is True, are within their error bounds."""
    expected = solve(inputs)
    got = evaluate(loss, inputs, tuple(GRADIENTS) if gradient else ())
    assert tuple(got.loss.shape) == expected.shape
    differences = compare(got, expected)
    dense = inputs.target.is_floating_point()  # class probabilities have a gradient too
    assert len(differences) == 1 + gradient * (1 + dense)
    for difference in differences:
        assert difference.ratio <= 1, f"{difference.of}: {difference}"


def inputs_of(logits, target, upstream=None, **options):
    """Return the inputs of a call with the given options.

    The default upstream gradient differs from row to row for reduction "none", and otherwise is 0.75.
    """
    options = {"reduction": "mean", "label_smoothing": 0.0, **options}
    if upstream is None:
        rows = logits.select(min(1, logits.dim() - 1), 0)
        # Some bugs need upstream gradients that are not 1, not uniform, or of both signs (Liger-Kernel#678,
        # pytorch#94226).
        upstream = torch.arange(rows.numel()).reshape(rows.shape).sub(1.5) if options["reduction"] == "none" else 0.75
        upstream = torch.as_tensor(upstream, dtype=logits.dtype)
    return Inputs(logits, target, options, upstream)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_index(*shape, classes, seed=1):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def data(dtype=torch.float64):
    """Return the saturated rows, (3, 4), their true classes, (3,), and the class weights, (4,)."""
    return torch.tensor(LOG_PROBS, dtype=dtype), torch.tensor(TARGET), torch.tensor(WEIGHT, dtype=dtype)


def smoothed(rows, label_smoothing):
    """Return `q = (1 - ε)·target + ε/C` as lists. Each of `rows` is a class, or the probabilities of four classes."""
    dense = [row if isinstance(row, tuple) else [float(c == row) for c in range(4)] for row in rows]
    return [[(1 - label_smoothing) * t + label_smoothing / 4 for t in row] for row in dense]


def row_losses(target, label_smoothing=0.0, weight=WEIGHT):
    """Return the exact losses of the saturated rows: `-Σ_c w_c q_c lp_c`, where `lp` are the log-probabilities."""
    q = smoothed(target, label_smoothing)
    return [-sum(map(math.prod, zip(weight, q[i], LOG_PROBS[i], strict=True))) for i in range(3)]


def row_gradients(target, label_smoothing=0.0, weight=WEIGHT):
    """Return the exact gradients of the saturated rows: `p·Σ_c w_c q_c - w·q`, where `p` is the softmax."""
    rows = []
    for log_probs, q in zip(LOG_PROBS, smoothed(target, label_smoothing), strict=True):
        v = [w * q_c for w, q_c in zip(weight, q, strict=True)]
        rows.append([(lp == 0) * sum(v) - v_c for lp, v_c in zip(log_probs, v, strict=True)])
    return rows


def gradient_of(form, logits, target, upstream=None, **options):
    """Return the loss, and its gradient with respect to the logits. The default upstream gradient is 1."""
    logits = logits.clone().requires_grad_()
    loss = form(logits, target, **options)
    if upstream is None:
        upstream = torch.ones_like(loss)
    return loss, torch.autograd.grad(loss, logits, upstream)[0]


def test_the_saturated_rows_are_their_own_log_softmax():
    logits = data()[0]
    assert_equal(logits.log_softmax(1), logits)
    assert_equal(data(torch.float16)[0].double(), logits)
    assert_equal(data(torch.bfloat16)[0].double(), logits)


# --- The loss of a row, and the denominator of the mean -----------------------------------------------------------


@each_dtype
@each_form
def test_the_loss_of_a_row_is_minus_the_log_probability_of_its_class(form, dtype):
    logits, target, _ = data(dtype)
    assert_equal(form(logits, target, reduction="none"), [1024.0, 4096.0, 2048.0])


@each_dtype
@each_form
def test_weight_multiplies_the_loss_of_the_rows_of_its_class(form, dtype):
    logits, target, weight = data(dtype)
    assert_equal(form(logits, target, weight, reduction="none"), [2 * 1024.0, 4 * 4096.0, 2 * 2048.0])


@each_dtype
@each_form
def test_smoothing_gives_its_share_to_every_class_the_true_one_included(form, dtype):
    # With ε = 1/2 and four classes, each class gets 1/8, so the true class has 5/8. ε/(C - 1) or (1 - ε)/C is wrong.
    logits, target, _ = data(dtype)
    expected = [(5 * 1024 + 2048 + 4096) / 8, (2048 + 5 * 4096 + 1024) / 8, (1024 + 4096 + 5 * 2048) / 8]
    assert_equal(form(logits, target, reduction="none", label_smoothing=0.5), expected)


@each_form
def test_under_smoothing_weight_applies_to_each_class_and_not_to_the_row(form):
    logits, target, weight = data()
    expected = [
        (2 * 5 * 1024 + 4 * 2048 + 2 * 4096) / 8,
        (0.5 * 2048 + 4 * 5 * 4096 + 2 * 1024) / 8,
        (0.5 * 1024 + 2 * 4096 + 2 * 5 * 2048) / 8,
    ]
    assert_equal(form(logits, target, weight, reduction="none", label_smoothing=0.5), expected)


@each_form
def test_with_smoothing_one_the_loss_does_not_depend_on_the_target(form):
    logits, target, weight = data()
    losses = form(logits, target, weight, reduction="none", label_smoothing=1.0)
    assert_equal(losses, form(logits, (target + 1) % 4, weight, reduction="none", label_smoothing=1.0))
    assert_equal(losses, row_losses(TARGET, 1.0))


@each_dtype
@each_form
def test_the_loss_of_probabilities_is_their_sum_over_classes(form, dtype):
    logits, _, _ = data(dtype)
    expected = [(1024 + 2048) / 4, 4096 / 4 + 1024 / 2, 1024 / 8 + 4096 / 2 + 2048 / 4]
    assert_equal(form(logits, torch.tensor(PROBABILITIES, dtype=dtype), reduction="none"), expected)


@each_smoothing
@each_form
def test_weight_and_smoothing_apply_to_probabilities_class_by_class(form, label_smoothing):
    logits, _, weight = data()
    target = torch.tensor(PROBABILITIES, dtype=logits.dtype)
    losses = form(logits, target, weight, reduction="none", label_smoothing=label_smoothing)
    assert_equal(losses, row_losses(PROBABILITIES, label_smoothing))


@each_smoothing
@each_form
def test_mean_divides_by_the_weight_of_kept_rows(form, label_smoothing):
    logits, target, weight = data()
    total = sum(row_losses(TARGET, label_smoothing))
    assert_equal(form(logits, target, weight, label_smoothing=label_smoothing), total / 8)
    # Without row 1, the weights add up to 4. Dividing by the kept rows, 2, or all rows, 3, is wrong (pytorch/xla#896).
    target[1] = -100
    total -= row_losses(TARGET, label_smoothing)[1]
    assert_equal(form(logits, target, weight, label_smoothing=label_smoothing), total / 4)


@each_form
def test_mean_without_weight_divides_by_the_number_of_kept_rows(form):
    logits, target, _ = data()
    assert_equal(form(logits, target), (1024 + 4096 + 2048) / 3)
    target[2] = -100
    assert_equal(form(logits, target), (1024 + 4096) / 2)


@each_smoothing
@each_form
def test_mean_of_probabilities_divides_by_the_number_of_rows_and_not_by_weights(form, label_smoothing):
    logits, _, weight = data()
    target = torch.tensor(PROBABILITIES, dtype=logits.dtype)
    total = sum(row_losses(PROBABILITIES, label_smoothing))
    assert_equal(form(logits, target, weight, label_smoothing=label_smoothing), total / 3)
    assert_equal(form(logits, target, torch.zeros_like(weight), label_smoothing=label_smoothing), 0.0)


@each_form
def test_mean_of_probabilities_counts_the_rows_of_every_dimension(form):
    logits = torch.tensor(LOG_PROBS).t().expand(2, 4, 3)  # (N, C, d1): six rows
    target = torch.tensor(PROBABILITIES).t().expand(2, 4, 3)
    assert_equal(form(logits, target), sum(row_losses(PROBABILITIES, weight=(1.0,) * 4)) / 3)
    assert_equal(form(logits[0, :, 0], target[0, :, 0]), (1024 + 2048) / 4)  # unbatched: one row


@each_smoothing
@each_form
def test_sum_has_no_divisor(form, label_smoothing):
    logits, target, weight = data()
    probabilities = torch.tensor(PROBABILITIES, dtype=logits.dtype)
    options = {"weight": weight, "reduction": "sum", "label_smoothing": label_smoothing}
    assert_equal(form(logits, target, **options), sum(row_losses(TARGET, label_smoothing)))
    assert_equal(form(logits, probabilities, **options), sum(row_losses(PROBABILITIES, label_smoothing)))


@each_smoothing
@each_form
def test_index_and_one_hot_targets_agree_except_in_a_weighted_mean(form, label_smoothing):
    # By design, a mean divides by the weight 8 for class indices, but by 3 rows for probabilities (pytorch#61309).
    logits, target, weight = data()
    hot = F.one_hot(target, 4).to(logits.dtype)
    for reduction in ("none", "sum"):
        options = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
        assert_equal(form(logits, target, **options), form(logits, hot, **options))
    assert_equal(
        form(logits, target, label_smoothing=label_smoothing), form(logits, hot, label_smoothing=label_smoothing)
    )
    total = sum(row_losses(TARGET, label_smoothing))
    assert_equal(form(logits, target, weight, label_smoothing=label_smoothing), total / 8)
    assert_equal(form(logits, hot, weight, label_smoothing=label_smoothing), total / 3)


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 255, 2**32, 2**63 - 1, -(2**63)])
@each_smoothing
@each_form
def test_ignored_rows_have_loss_0_and_do_not_count(form, label_smoothing, ignore_index):
    # The smoothing term is 0 on ignored rows too (pytorch#73205). A row is ignored only if its target equals
    # ignore_index, and not because the target is negative (pytorch#15508). The first row is ignored (Liger-Kernel#678).
    logits, target, weight = data()
    target[0] = ignore_index
    losses = [0.0, *row_losses(TARGET, label_smoothing)[1:]]
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    assert_equal(form(logits, target, **options, reduction="none"), losses)
    assert_equal(form(logits, target, **options, reduction="sum"), sum(losses))
    assert_equal(form(logits, target, **options), sum(losses) / 6)


@each_form
def test_an_ignored_class_stays_in_the_softmax_of_other_rows(form):
    # Class 1 is ignored and has all the probability of row 0. Without class 1 in the softmax, the loss would be 0.
    logits = torch.tensor([[-1024.0, 0.0, -4096.0], [0.0, -1024.0, -2048.0]])
    target = torch.tensor([0, 1])
    losses, gradient = gradient_of(form, logits, target, ignore_index=1, reduction="none")
    assert_equal(losses, [1024.0, 0.0])
    assert_equal(gradient, [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    smooth = form(logits, target, ignore_index=1, reduction="none", label_smoothing=0.75)
    assert_equal(smooth, [(0.25 + 0.25) * 1024.0 + 0.25 * 4096.0, 0.0])


@each_reduction
@each_form
def test_a_negative_ignore_index_is_not_used_with_probabilities(form, reduction):
    logits, _, weight = data()
    target = torch.tensor(PROBABILITIES, dtype=logits.dtype)
    expected = form(logits, target, weight, reduction=reduction)
    assert_equal(form(logits, target, weight, ignore_index=-1, reduction=reduction), expected)


@pytest.mark.parametrize("probabilities", [False, True], ids=["index", "probabilities"])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (3, 3), (2, 3, 4), (2, 3, 4, 2), (2, 3, 2, 1, 2), (4, 1)], ids=str)
@each_form
def test_rows_are_the_batch_and_every_further_dimension(form, shape, probabilities):
    # Each row is a rotation of 0, -1024, -2048, … A reshape without moving the class axis would mix the rows. The shape
    # (3, 3) has as many rows as classes: a vector of class indices must not be read as a row of probabilities.
    axis = min(1, len(shape) - 1)
    classes = shape[axis]
    rows = shape[:axis] + shape[axis + 1 :]
    logits, hot = torch.empty((*rows, classes)), torch.zeros((*rows, classes))
    target, expected = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    for i, row in enumerate(itertools.product(*map(range, rows))):
        y = i // 2 % classes
        logits[row] = torch.tensor([-1024.0 * ((c + i) % classes) for c in range(classes)])
        target[row] = y
        hot[row][y] = 1
        expected[row] = 1024.0 * ((y + i) % classes)
    logits = logits.movedim(-1, axis).contiguous()
    target = hot.movedim(-1, axis).contiguous() if probabilities else target
    assert_equal(form(logits, target, reduction="none"), expected)
    assert_equal(form(logits, target, reduction="sum"), expected.sum())
    assert_equal(form(logits, target), expected.sum() / expected.numel())


@pytest.mark.parametrize("target", [2, -100])
@each_reduction
@each_form
def test_an_unbatched_target_may_have_one_dimension_of_size_one(form, reduction, target):
    # Newer versions of F.cross_entropy allow this shape. For both shapes of the target, the result has no dimension.
    logits = torch.tensor(LOG_PROBS[0])
    expected = form(logits, torch.tensor(target), reduction=reduction)
    assert expected.shape == ()
    assert_equal(form(logits, torch.tensor([target]), reduction=reduction), expected)


@pytest.mark.parametrize("target", ["index", "ignored", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@each_reduction
@each_form
def test_weight_smoothing_and_ignored_rows_equal_torch_together(form, reduction, label_smoothing, weighted, target):
    # Most real bugs need two or three of these options together. No two weights or upstream gradients are equal.
    logits = random(4, 5, 3)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    if weighted:
        options["weight"] = random(5, seed=2).exp()
    y = random(4, 5, 3, seed=3).softmax(1) if target == "probabilities" else random_index(4, 3, classes=5)
    if target == "ignored":
        y[0, 0] = 3
        options["ignore_index"] = 3
    assert_within_bounds(form, inputs_of(logits, y, **options))


# --- scalar: the same contract for one row of floats --------------------------------------------------------------


@each_smoothing
@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("target", [TARGET, PROBABILITIES], ids=["index", "probabilities"])
def test_scalar_row_loss_weights_and_smooths_each_class(target, row, label_smoothing):
    expected = row_losses(target, label_smoothing)[row]
    for reduction in ("none", "sum"):
        got = scalar(LOG_PROBS[row], target[row], WEIGHT, reduction=reduction, label_smoothing=label_smoothing)
        assert got == expected
    unweighted = row_losses(target, label_smoothing, (1.0,) * 4)[row]
    assert scalar(LOG_PROBS[row], target[row], label_smoothing=label_smoothing) == unweighted


def test_scalar_mean_divides_an_index_by_its_weight_and_probabilities_by_one():
    assert scalar(LOG_PROBS[0], 2, WEIGHT, label_smoothing=0.5) == row_losses((2, 0, 0), 0.5)[0] / 4
    assert scalar(LOG_PROBS[0], (0.0, 0.0, 1.0, 0.0), WEIGHT) == 4 * 2048


@pytest.mark.parametrize("ignore_index", [-100, -1, 1, 255, 2**32])
@each_smoothing
def test_scalar_ignores_by_equality(ignore_index, label_smoothing):
    options = {"weight": WEIGHT, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    assert scalar(LOG_PROBS[0], ignore_index, **options, reduction="none") == 0
    assert scalar(LOG_PROBS[0], ignore_index, **options, reduction="sum") == 0
    assert math.isnan(scalar(LOG_PROBS[0], ignore_index, **options))
    # If ignore_index is a class, the class stays in the softmax of a row with another target.
    assert scalar((-1024.0, 0.0), 0, ignore_index=1) == 1024


def test_scalar_does_not_use_a_negative_ignore_index_with_probabilities():
    assert scalar(LOG_PROBS[0], PROBABILITIES[0], ignore_index=-1) == scalar(LOG_PROBS[0], PROBABILITIES[0])


# --- Gradients ----------------------------------------------------------------------------------------------------


@each_smoothing
@pytest.mark.parametrize("target", [TARGET, PROBABILITIES], ids=["index", "probabilities"])
@each_form
def test_the_gradient_of_a_row_is_its_upstream_times_softmax_minus_target(form, target, label_smoothing):
    # The gradient is g · (p·Σ w q - w·q), with another g for each row (Liger-Kernel#678, DirectML#739).
    logits, index, weight = data()
    y = index if target is TARGET else torch.tensor(target, dtype=logits.dtype)
    upstream = torch.tensor(UPSTREAM, dtype=logits.dtype)
    options = {"weight": weight, "reduction": "none", "label_smoothing": label_smoothing}
    _, gradient = gradient_of(form, logits, y, upstream, **options)
    expected = torch.tensor(row_gradients(target, label_smoothing), dtype=logits.dtype)
    assert_equal(gradient, upstream[:, None] * expected)


@each_smoothing
@each_form
def test_the_gradient_of_a_mean_is_divided_by_the_same_denominator(form, label_smoothing):
    logits, target, weight = data()
    options = {"weight": weight, "label_smoothing": label_smoothing}
    upstream = torch.tensor(-2.0, dtype=logits.dtype)
    _, gradient = gradient_of(form, logits, target, upstream, **options)
    expected = torch.tensor(row_gradients(TARGET, label_smoothing), dtype=logits.dtype)
    assert_equal(gradient, -2 * expected / 8)
    # With probabilities, the denominator is the number of rows. With four rows, the division is exact.
    logits, probabilities = torch.cat([logits, logits[:1]]), torch.tensor(PROBABILITIES, dtype=logits.dtype)
    probabilities = torch.cat([probabilities, probabilities[:1]])
    _, gradient = gradient_of(form, logits, probabilities, upstream, **options)
    expected = torch.tensor(row_gradients(PROBABILITIES, label_smoothing), dtype=logits.dtype)
    assert_equal(gradient, -2 * torch.cat([expected, expected[:1]]) / 4)


@each_smoothing
@each_form
def test_the_gradient_of_a_sum_has_no_divisor(form, label_smoothing):
    logits, target, weight = data()
    upstream = torch.tensor(-2.0, dtype=logits.dtype)
    options = {"weight": weight, "reduction": "sum", "label_smoothing": label_smoothing}
    _, gradient = gradient_of(form, logits, target, upstream, **options)
    assert_equal(gradient, -2 * torch.tensor(row_gradients(TARGET, label_smoothing), dtype=logits.dtype))


@each_reduction
@each_smoothing
@each_form
def test_the_gradient_of_ignored_rows_is_exactly_zero(form, label_smoothing, reduction):
    logits, target, weight = data()
    target[0] = -100
    options = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
    _, gradient = gradient_of(form, logits, target, **options)
    kept = torch.tensor(row_gradients(TARGET, label_smoothing)[1:], dtype=logits.dtype)
    assert_equal(gradient[0], torch.zeros_like(gradient[0]))
    if reduction != "mean":
        assert_equal(gradient[1:], kept)
        return
    # The total weight is 4 + 2 = 6, and a division by 6 is rounded.
    assert_within_bounds(form, inputs_of(logits, target, **options))


@each_smoothing
@each_form
def test_a_probability_target_has_a_gradient_too(form, label_smoothing):
    # The gradient is -g·(1 - ε)·w_c·lp_c, and for a mean also divided by the number of rows.
    logits, _, weight = data()
    target = torch.tensor(PROBABILITIES, dtype=logits.dtype, requires_grad=True)
    upstream = torch.tensor(UPSTREAM, dtype=logits.dtype)
    expected = -(1 - label_smoothing) * weight * logits
    options = {"weight": weight, "label_smoothing": label_smoothing}
    losses = form(logits, target, **options, reduction="none")
    assert_equal(torch.autograd.grad(losses, target, upstream)[0], upstream[:, None] * expected)
    total = form(logits, target, **options, reduction="sum")
    assert_equal(torch.autograd.grad(total, target)[0], expected)
    four_logits, four = torch.cat([logits, logits[:1]]), torch.cat([target, target[:1]]).detach().requires_grad_()
    mean = form(four_logits, four, **options)
    assert_equal(torch.autograd.grad(mean, four)[0], torch.cat([expected, expected[:1]]) / 4)


@each_form
def test_a_stride_0_upstream_gradient_equals_a_dense_one(form):
    logits, target, weight = random(3, 4), torch.tensor(TARGET), torch.tensor(WEIGHT, dtype=torch.float64)
    one = torch.tensor(0.75, dtype=logits.dtype)
    options = {"weight": weight, "reduction": "none", "label_smoothing": 0.1}
    _, dense = gradient_of(form, logits, target, torch.full((3,), 0.75, dtype=logits.dtype), **options)
    _, expanded = gradient_of(form, logits, target, one.expand(3), **options)
    assert_equal(expanded, dense)
    assert_within_bounds(form, inputs_of(logits, target, one.expand(3), **options))


@each_reduction
@each_form
def test_a_second_backward_through_the_same_loss_gives_the_same_bits(form, reduction):
    # The first backward pass must not overwrite saved tensors (Liger-Kernel#343).
    logits = random(6, 4, dtype=torch.float32).requires_grad_()
    loss = form(logits, random_index(6, classes=4), reduction=reduction, label_smoothing=0.1)
    upstream = torch.ones_like(loss)
    (first,) = torch.autograd.grad(loss, logits, upstream, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, logits, upstream)
    assert same_bits(second, kept)
    assert same_bits(first, kept)


# --- Edges --------------------------------------------------------------------------------------------------------

# Logits, target and options of calls without kept rows.
KEEP_NO_ROW = {
    "all ignored": lambda: (torch.ones(2, 4), torch.full((2,), -100), {}),
    "all ignored, weighted": lambda: (torch.ones(2, 4), torch.full((2,), -100), {"weight": torch.ones(4)}),
    "all ignored, smoothed": lambda: (torch.ones(2, 4), torch.full((2,), -100), {"label_smoothing": 0.5}),
    "all ignored, a class": lambda: (torch.ones(2, 4), torch.full((2,), 3), {"ignore_index": 3}),
    "unbatched": lambda: (torch.ones(4), torch.tensor(-100), {}),
    "spatial": lambda: (torch.ones(2, 4, 3), torch.full((2, 3), -100), {}),
    "empty batch": lambda: (torch.ones(0, 4), torch.empty(0, dtype=torch.int64), {}),
    "empty batch, weighted": lambda: (
        torch.ones(0, 4),
        torch.empty(0, dtype=torch.int64),
        {"weight": torch.ones(4), "label_smoothing": 0.5},
    ),
    "empty batch, uint8": lambda: (torch.ones(0, 4), torch.empty(0, dtype=torch.uint8), {}),
    "empty dimension": lambda: (torch.ones(2, 4, 0), torch.empty(2, 0, dtype=torch.int64), {}),
    "empty batch, probabilities": lambda: (torch.ones(0, 4), torch.ones(0, 4), {"label_smoothing": 0.5}),
    "empty dimension, probabilities": lambda: (torch.ones(2, 4, 0), torch.ones(2, 4, 0), {"weight": torch.ones(4)}),
}


@pytest.mark.parametrize("call", KEEP_NO_ROW)
@each_reduction
@each_form
def test_over_no_rows_the_mean_is_nan_the_sum_0_and_the_gradient_0(form, reduction, call):
    # Before 1.11, torch returned the mean 0 here; pytorch#64572 changed this.
    logits, target, options = KEEP_NO_ROW[call]()
    loss, gradient = gradient_of(form, logits, target, reduction=reduction, **options)
    if reduction == "none":
        assert_equal(loss, torch.zeros(logits.select(min(1, logits.dim() - 1), 0).shape))
    else:
        assert_equal(loss, NAN if reduction == "mean" else 0.0)
    assert_equal(gradient, torch.zeros_like(logits))


@each_form
def test_a_mean_whose_every_kept_weight_is_zero_is_nan_with_a_nan_gradient(form):
    logits, target, _ = data()
    target[0] = -100
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=logits.dtype)
    loss, gradient = gradient_of(form, logits, target, weight=weight)
    assert_equal(loss, NAN)
    assert_equal(gradient, [[0.0] * 4, [NAN] * 4, [NAN] * 4])
    loss, gradient = gradient_of(form, logits, target, weight=weight, reduction="sum")
    assert_equal(loss, 0.0)
    assert_equal(gradient, torch.zeros_like(logits))


@each_reduction
@each_form
def test_minus_infinity_on_another_class_leaves_the_loss_finite(form, reduction):
    # A product with a one-hot target would compute 0·-inf, which is NaN (optax#896).
    logits = torch.tensor([[0.0, -1024.0, -INF, -INF]])
    loss, gradient = gradient_of(form, logits, torch.tensor([1]), reduction=reduction)
    assert_equal(loss, [1024.0] if reduction == "none" else 1024.0)
    assert_equal(gradient, [[1.0, -1.0, 0.0, 0.0]])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("label_smoothing", [0.1, 1.0])
def test_a_mean_over_a_total_weight_of_0_is_nan_with_smoothing_too(form, label_smoothing):
    x = torch.tensor([[1.0, 2.0], [0.5, 0.25]], requires_grad=True)
    options = {"weight": torch.tensor([0.0, 3.0]), "label_smoothing": label_smoothing}
    for loss in (form, F.cross_entropy):
        result = loss(x, torch.tensor([0, -100]), **options)
        (gradient,) = torch.autograd.grad(result, x)
        assert result.isnan()
        assert gradient[0].isnan().all()
        assert (gradient[1] == 0).all()
    assert math.isnan(scalar([1.0, 2.0], 0, [0.0, 3.0], label_smoothing=label_smoothing))


@pytest.mark.parametrize("classes", [8, 33, 1025])
@each_form
def test_minus_infinity_on_every_class_except_the_true_class_is_a_loss_of_zero(form, classes):
    # A kernel that subtracts the maximum of each tile gets NaN from a tile of -inf (flash-attention#1930).
    logits = torch.full((1, classes), -INF)
    logits[0, -1] = 3.0
    loss, gradient = gradient_of(form, logits, torch.tensor([classes - 1]))
    assert_equal(loss, 0.0)
    assert_equal(gradient, torch.zeros_like(logits))


@each_reduction
@each_form
def test_minus_infinity_on_the_target_is_an_infinite_loss_with_a_finite_gradient(form, reduction):
    logits = torch.tensor([[0.0, -1024.0, -INF, -4096.0]])
    loss, gradient = gradient_of(form, logits, torch.tensor([2]), reduction=reduction)
    assert_equal(loss, [INF] if reduction == "none" else INF)
    assert_equal(gradient, [[1.0, 0.0, -1.0, 0.0]])


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("label_smoothing", [0.5, 1.0])
@each_form
def test_minus_infinity_anywhere_is_an_infinite_loss_under_smoothing(form, label_smoothing, target):
    logits = torch.tensor([[0.0, -1024.0, -INF, -4096.0]])
    loss, gradient = gradient_of(form, logits, torch.tensor([target]), label_smoothing=label_smoothing)
    assert_equal(loss, INF)
    (q,) = smoothed([target], label_smoothing)
    assert_equal(gradient, [[1 - q[0], -q[1], -q[2], -q[3]]])
    hot = F.one_hot(torch.tensor([target]), 4).float()
    loss, dense_gradient = gradient_of(form, logits, hot, label_smoothing=label_smoothing)
    assert_equal(loss, INF)
    assert_equal(dense_gradient, gradient)


@each_reduction
@each_form
def test_minus_infinity_where_a_probability_is_zero_is_nan_with_a_finite_gradient(form, reduction):
    logits = torch.tensor([[0.0, -1024.0, -INF, -4096.0]])
    target = torch.tensor([[0.5, 0.25, 0.0, 0.25]])
    loss, gradient = gradient_of(form, logits, target, reduction=reduction)
    assert_equal(loss, [NAN] if reduction == "none" else NAN)
    assert_equal(gradient, [[0.5, -0.25, 0.0, -0.25]])


@pytest.mark.parametrize("bad", [INF, NAN])
@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize("label_smoothing", [0.0, 0.5])
@each_form
def test_infinity_or_nan_in_a_kept_row_is_nan_in_that_row(form, label_smoothing, where, bad):
    # The bad logit is on another class, on the true class, or last in the row. The other row must not change.
    logits = torch.tensor([[0.0, -1024.0, -2048.0], [0.0, -1024.0, -2048.0]])
    logits[0, where] = bad
    target = torch.tensor([1, 1])
    options = {"reduction": "none", "label_smoothing": label_smoothing}
    for y in (target, F.one_hot(target, 3).float()):
        losses, gradient = gradient_of(form, logits, y, **options)
        assert_equal(losses[0], NAN)
        assert_equal(gradient[0], [NAN] * 3)
        clean, clean_gradient = gradient_of(form, logits[1:], y[1:], **options)
        assert clean.isfinite().all()
        assert_equal(losses[1:], clean)
        assert_equal(gradient[1:], clean_gradient)
        assert_equal(form(logits, y, label_smoothing=label_smoothing), NAN)
        assert_equal(form(logits, y, label_smoothing=label_smoothing, reduction="sum"), NAN)


@pytest.mark.parametrize("bad", [(NAN, 0.0, 0.0, 0.0), (-INF,) * 4, (0.0, 0.0, 0.0, INF)], ids=str)
@each_reduction
@each_smoothing
@each_form
def test_an_ignored_row_of_nan_leaves_the_loss_alone(form, label_smoothing, reduction, bad):
    # A product with 0 would make the loss NaN (pytorch#11551). With autograd, the gradient of the ignored row is NaN,
    # as in torch. In `blocked` the gradient is 0: torch's documentation says that the row does not contribute.
    logits, target, weight = data()
    target[0] = -100
    options = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
    expected, expected_gradient = gradient_of(form, logits, target, **options)
    assert expected.isfinite().all()
    logits[0] = torch.tensor(bad)
    loss, gradient = gradient_of(form, logits, target, **options)
    assert_equal(loss, expected)
    assert_equal(gradient[0], [0.0 if form is blocked else NAN] * 4)
    assert_equal(gradient[1:], expected_gradient[1:])


@pytest.mark.parametrize("target", ["index", "probabilities"])
@each_reduction
@each_smoothing
@each_form
def test_one_class_has_loss_0_and_gradient_0(form, label_smoothing, reduction, target):
    logits = torch.tensor([[7.0], [-3.0]])
    y = torch.tensor([0, 0]) if target == "index" else torch.ones(2, 1)
    options = {"weight": torch.tensor([3.0]), "reduction": reduction, "label_smoothing": label_smoothing}
    loss, gradient = gradient_of(form, logits, y, **options)
    assert_equal(loss, [0.0, 0.0] if reduction == "none" else 0.0)
    assert_equal(gradient, [[0.0], [0.0]])


@pytest.mark.parametrize("reduction", ["none", "sum"])
@each_form
def test_no_classes_are_an_empty_sum(form, reduction):
    expected = [0.0, 0.0] if reduction == "none" else 0.0
    assert_equal(form(torch.empty(2, 0), torch.empty(2, 0), reduction=reduction), expected)
    assert_equal(form(torch.empty(2, 0), torch.tensor([-100, -100]), reduction=reduction), expected)
    # The result follows from the shape. A meta tensor has no data, and on CUDA reading data would wait for the device.
    index = torch.empty(2, dtype=torch.int64, device="meta")
    assert form(torch.empty(2, 0, device="meta"), index, reduction=reduction).shape == torch.tensor(expected).shape


@pytest.mark.parametrize(
    ("logits", "target", "label_smoothing", "expected"),
    [
        ((0.0, -1024.0, -INF), 1, 0.0, 1024.0),
        ((0.0, -1024.0, -INF), 2, 0.0, INF),
        ((0.0, -1024.0, -INF), 0, 0.5, INF),
        ((0.0, -1024.0, -INF), (0.5, 0.5, 0.0), 0.0, NAN),
        ((0.0, -1024.0, -INF), (0.5, 0.5, 0.0), 0.5, INF),
        ((0.0, INF, -1024.0), 1, 0.0, NAN),
        ((0.0, INF, -1024.0), 0, 0.0, NAN),
        ((NAN, 0.0, -1024.0), 1, 0.0, NAN),
        ((0.0, -1024.0, NAN), 0, 0.5, NAN),
        ((NAN, 0.0), -100, 0.5, 0.0),
        ((-INF, -INF), -100, 0.0, 0.0),
        ((7.0,), 0, 0.5, 0.0),
        ((7.0,), (1.0,), 0.5, 0.0),
    ],
    ids=str,
)
def test_scalar_has_the_same_loss_for_infinity_nan_ignored_rows_and_one_class(
    logits, target, label_smoothing, expected
):
    got = scalar(logits, target, reduction="sum", label_smoothing=label_smoothing)
    assert got == expected or (math.isnan(got) and math.isnan(expected)), got


def test_scalar_mean_is_nan_where_its_weight_is_zero():
    assert math.isnan(scalar((0.0, -1024.0), 1, weight=(1.0, 0.0)))


# --- Types --------------------------------------------------------------------------------------------------------


def same_bits(a, b):
    """Return whether two tensors have the same bits. 0 and -0 differ, and so do NaN with different bits."""
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return a.detach().contiguous().reshape(-1).view(torch.uint8).equal(b.contiguous().reshape(-1).view(torch.uint8))


@each_reduction
@each_form
def test_uint8_targets_equal_int64_targets(form, reduction):
    logits, target, weight = random(6, 5), random_index(6, classes=5), random(5, seed=2).exp()
    target[2] = 255
    options = {"weight": weight, "ignore_index": 255, "reduction": reduction, "label_smoothing": 0.1}
    expected, expected_gradient = gradient_of(form, logits, target, **options)
    loss, gradient = gradient_of(form, logits, target.to(torch.uint8), **options)
    assert_equal(loss, expected)
    assert_equal(gradient, expected_gradient)


@each_form
def test_uint8_156_is_a_class_and_not_minus_100(form):
    # `uint8_tensor != -100` compares with 156, so the mask must be computed in int64.
    logits = torch.full((2, 200), -1024.0)
    logits[:, 0] = 0
    target = torch.tensor([156, 0], dtype=torch.uint8)
    assert_equal(form(logits, target, reduction="none"), [1024.0, 0.0])


@each_reduction
@each_dtype
@each_form
def test_the_result_has_the_dtype_of_the_logits_and_the_shape_of_the_rows(form, dtype, reduction):
    logits, target = random(2, 5, 3, 4, dtype=dtype), random_index(2, 3, 4, classes=5)
    for options in ({}, {"weight": torch.ones(5, dtype=dtype), "label_smoothing": 0.1}):
        loss, gradient = gradient_of(form, logits, target, reduction=reduction, **options)
        assert loss.dtype == dtype
        assert loss.shape == ((2, 3, 4) if reduction == "none" else ())
        assert (gradient.dtype, gradient.shape) == (dtype, logits.shape)


@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
@each_dtype
@each_form
def test_probabilities_and_weight_of_another_float_type_promote_the_result(form, dtype, target_dtype):
    logits, target = data(dtype)[0], torch.tensor(PROBABILITIES, dtype=target_dtype)
    promoted = torch.promote_types(dtype, target_dtype)
    loss, gradient = gradient_of(form, logits, target, reduction="none")
    assert loss.dtype == promoted
    assert_equal(loss, row_losses(PROBABILITIES, weight=(1.0,) * 4))
    assert gradient.dtype == dtype
    weight = torch.tensor(WEIGHT, dtype=target_dtype)
    assert form(logits, target.to(dtype), weight).dtype == promoted


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@each_reduction
@each_form
def test_half_precision_is_computed_in_float32_and_rounded_once(form, reduction, label_smoothing, dtype):
    # torch 2.0.1 cannot compute a float16 cross-entropy on a CPU, but the forms can.
    logits, target, weight = random(9, 7, dtype=dtype), random_index(9, classes=7), random(7, seed=2).exp().to(dtype)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    loss, gradient = gradient_of(form, logits, target, weight=weight, **options)
    wide, wide_gradient = gradient_of(form, logits.float(), target, weight=weight.float(), **options)
    assert same_bits(loss, wide.detach().to(dtype))
    assert same_bits(gradient, wide_gradient.to(dtype))


@each_dtype
@each_form
def test_autocast_computes_in_float32_and_leaves_float64(form, dtype):
    logits, target, weight = random(6, 5, dtype=dtype), random_index(6, classes=5), random(5, seed=2).exp().to(dtype)
    result = torch.float64 if dtype == torch.float64 else torch.float32
    expected, _ = gradient_of(form, logits.to(result), target, weight=weight.to(result))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = gradient_of(form, logits, target, weight=weight)
        dense = form(logits, random(6, 5, seed=3).softmax(1).to(dtype), weight)
        torch_dtype = F.cross_entropy(logits, target, weight).dtype
    assert loss.dtype == dense.dtype == torch_dtype == result
    assert_equal(loss, expected)
    assert gradient.dtype == dtype


@each_form
def test_autocast_accepts_a_weight_of_another_half_type(form):
    logits, target, weight = data(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(form(logits, target, weight.bfloat16()), torch.tensor(22528 / 8))


@each_form
def test_under_autocast_a_refused_weight_is_compared_with_the_dtype_of_the_input(form):
    logits, target, weight = data(torch.float32)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(RuntimeError, match="weight: got float64; allowed is float16, the dtype of input"),
    ):
        form(logits.half(), target, weight.double())


@each_form
@pytest.mark.parametrize("value", [10**400, Fraction(10**400)], ids=["int", "fraction"])
def test_a_number_beyond_the_range_of_a_float_is_refused(form, value):
    with pytest.raises(TypeError, match="label_smoothing: got a number beyond the range of a float; allowed is one in"):
        form(X, Y, label_smoothing=value)


@each_reduction
@each_dtype
@each_form
def test_tensors_without_data_give_the_shape_and_the_dtype(form, dtype, reduction):
    logits = torch.empty(2, 5, 3, device="meta", dtype=dtype, requires_grad=True)
    weight = torch.empty(5, device="meta", dtype=dtype)
    index, probabilities = torch.empty(2, 3, device="meta", dtype=torch.int64), torch.empty_like(logits)
    for target in (index, probabilities):
        loss = form(logits, target, weight, reduction=reduction, label_smoothing=0.1)
        assert (loss.device.type, loss.dtype) == ("meta", dtype)
        assert loss.shape == ((2, 3) if reduction == "none" else ())
        (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
        assert (gradient.shape, gradient.dtype) == (logits.shape, dtype)


@pytest.mark.parametrize("target_kind", ["index", "uint8", "probabilities"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@each_reduction
@each_form
def test_inputs_target_and_weight_are_left_unchanged(form, reduction, dtype, target_kind):
    # A kernel that writes the gradient over the logits breaks other code that has saved the logits (Liger-Kernel#343,
    # unsloth#5002).
    logits = random(6, 5, 2, dtype=dtype)
    logits[0, 0, 0] = NAN
    weight, upstream = (
        random(5, seed=2).exp().to(dtype),
        torch.ones((6, 2) if reduction == "none" else (), dtype=dtype),
    )
    if target_kind == "probabilities":
        target = random(6, 5, 2, seed=3, dtype=dtype).softmax(1)
    else:
        target = random_index(6, 2, classes=5).to(getattr(torch, "int64" if target_kind == "index" else "uint8"))
        target[1] = 100
    options = {} if target_kind == "probabilities" else {"ignore_index": 100}
    tensors = (logits, target, weight, upstream)
    before, versions = [tensor.clone() for tensor in tensors], [tensor._version for tensor in tensors]
    leaf = logits.detach().requires_grad_()  # the same memory
    loss = form(leaf, target, weight, reduction=reduction, label_smoothing=0.1, **options)
    loss.backward(upstream)
    for name, tensor, old, version in zip(
        ("input", "target", "weight", "upstream"), tensors, before, versions, strict=True
    ):
        assert same_bits(tensor, old), name
        assert tensor._version == version, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # torch always warns once
@each_reduction
@each_form
def test_no_form_makes_the_host_wait_for_the_device(form, reduction):
    logits, target, weight = (tensor.cuda() for tensor in data(torch.float32))
    target[0] = -100
    probabilities = torch.tensor(PROBABILITIES).cuda()
    upstream = torch.ones(3 if reduction == "none" else (), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for y in (target, probabilities):
            gradient_of(form, logits, y, upstream, weight=weight, reduction=reduction, label_smoothing=0.5)
            gradient_of(form, logits, y, upstream, reduction=reduction)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- Errors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """A call that must raise.

    Attributes:
        error: the class of the exception, in the forms and in F.cross_entropy.
        got: the start of the message: the argument and its value.
        allowed: the part of the message about allowed values.
        call: input and target.
        options: the other arguments.
        formerly: the class of the exception in F.cross_entropy of older torch versions.
        accepted: the reason why F.cross_entropy wrongly accepts this call. A test fails as soon as torch raises.
    """

    error: type[Exception]
    got: str
    allowed: str
    call: tuple[Any, Any]
    options: dict[str, Any] = field(default_factory=dict)
    formerly: type[Exception] | None = None
    accepted: str | None = None


def wrong_shape(error, logits, target, dtype=torch.int64, formerly=None):
    rows = logits[:1] + logits[2:] if len(logits) > 1 else ()
    one = "" if rows else " and (1,)"
    allowed = f"with logits of shape {logits}; allowed are {rows}{one} for class indices and {logits} for class prob"
    call = (torch.zeros(logits), torch.zeros(target, dtype=dtype))
    return Bad(error, f"target: got shape {target}", allowed, call, formerly=formerly)


def option(error, name, value, got, allowed, target=None, **more):
    """Return a :class:`Bad` call, in which the option `name` has a bad value. By default, the target is Y."""
    return Bad(error, f"{name}: got {got}", allowed, (X, Y if target is None else target), {name: value}, **more)


def short(dtype):
    return str(dtype).removeprefix("torch.")


X, Y, P = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), torch.full((4, 3), 0.25)
OTHER_DTYPES = (torch.int8, torch.int16, torch.int32, torch.bool, *DTYPES, torch.complex64)
INT32_MAP = torch.zeros(2, 4, 5, dtype=torch.int32)
REDUCTION = "allowed are 'none', 'mean' and 'sum'"
TENSOR = "allowed is a torch.Tensor"
OUTSIDE = "target: got class {}, which is out of bounds"
CLASSES = "allowed are the classes 0 to 2 and ignore_index, -100"
NO_CLASSES = "target: got a class, but input has no classes"
UNCHECKED = "torch only compares label_smoothing with `> 1` and `> 0`, so torch reads this value as no smoothing"
COMPLEX = "torch returns a complex loss, which cannot be minimised"

BAD = [
    # A wrong batch size is a ValueError, any other wrong size a RuntimeError.
    wrong_shape(ValueError, (4, 3), (2,)),
    wrong_shape(ValueError, (4, 3), ()),
    wrong_shape(ValueError, (4, 3), (1, 4)),
    wrong_shape(RuntimeError, (4, 3), (4, 1)),
    wrong_shape(RuntimeError, (4, 3), (4, 4)),
    wrong_shape(ValueError, (2, 3, 4, 5), (3, 4, 5)),
    wrong_shape(ValueError, (2, 3, 4, 5), ()),
    wrong_shape(RuntimeError, (2, 3, 4, 5), (2, 5, 4)),
    wrong_shape(RuntimeError, (2, 3, 4, 5), (2, 4)),
    wrong_shape(RuntimeError, (2, 3, 4), (2, 5)),
    wrong_shape(RuntimeError, (2, 3, 4, 2, 2), (2, 4, 2, 3)),
    wrong_shape(ValueError, (3,), (2,), formerly=RuntimeError),
    wrong_shape(RuntimeError, (3,), (1, 1)),
    wrong_shape(RuntimeError, (4, 3), (4, 2), torch.float32),
    wrong_shape(ValueError, (4, 3), (3, 3), torch.float32),
    wrong_shape(ValueError, (4, 3), (3,), torch.float32),
    *(
        Bad(error, "input: got shape ()", "allowed are (C), (N, C) and (N, C, d1, …, dK)", (X[0, 0], y))
        for error, y in [(RuntimeError, Y[0]), (IndexError, Y[:1]), (IndexError, P[0, 0]), (IndexError, P[0, :1])]
    ),
    *(
        option(
            RuntimeError, "weight", torch.ones(shape), f"shape {shape}", "allowed is (3,), a weight for each", target
        )
        for shape, target in itertools.product([(2,), (4,), (), (1,), (1, 3)], [Y, P])
    ),
    # Options
    *(option(ValueError, "reduction", value, repr(value), REDUCTION) for value in ("average", "Mean", None, [])),
    *(
        option(RuntimeError, "label_smoothing", value, value, "allowed is 0 to 1", target, accepted=accepted)
        for value, accepted in [(1.5, None), (INF, None), (-0.1, UNCHECKED), (-INF, UNCHECKED), (NAN, UNCHECKED)]
        for target in (Y, P)
    ),
    *(
        option(TypeError, "label_smoothing", value, type(value).__name__, "allowed is a real number")
        for value in ("0.1", None, 1j, torch.zeros(2))
    ),
    *(
        option(TypeError, "ignore_index", value, type(value).__name__, "allowed is an int")
        for value in (1.0, "1", None, True)
    ),
    *(
        option(ValueError, "ignore_index", value, value, "allowed are 64-bit integers", formerly=RuntimeError)
        for value in (2**63, -(2**63) - 1)
    ),
    *(
        option(RuntimeError, "ignore_index", value, f"{value} with class probabilities", "is a negative int, which", P)
        for value in (0, 2, 255)
    ),
    # Python types
    Bad(TypeError, "input: got list", TENSOR, ([[0.0, 1.0]], Y[:1])),
    Bad(TypeError, "input: got NoneType", TENSOR, (None, Y)),
    Bad(TypeError, "target: got list", TENSOR, (X, [0, 1, 2, 0])),
    Bad(TypeError, "target: got int", TENSOR, (X[0], 1)),
    option(TypeError, "weight", [1.0, 1.0, 1.0], "list", TENSOR),
    # Dtypes, layouts, devices
    *(
        Bad(RuntimeError, f"target: got {short(y.dtype)}", "allowed for class indices are int64 and uint8", (x, y))
        for x, y in [(torch.zeros(2, 3, 4, 5), INT32_MAP), *((X, Y.to(dtype)) for dtype in OTHER_DTYPES)]
    ),
    *(
        Bad(
            RuntimeError,
            f"target: got {short(dtype)}",
            "allowed for class probabilities are float16, bfloat16, float32 and float64",
            (X, P.to(dtype)),
        )
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64)
    ),
    *(
        Bad(NotImplementedError, f"input: got {got}", f"allowed {allowed}", (x, Y), formerly=RuntimeError)
        for got, allowed, x in [
            *(
                (short(dtype), "are float16, bfloat16, float32 and float64", X.to(dtype))
                for dtype in (Y.dtype, torch.bool)
            ),
            ("complex64", "are float16, bfloat16, float32 and float64", X.to(torch.complex64)),
            ("layout torch.sparse_coo", "is a dense tensor", X.to_sparse()),
        ]
    ),
    *(
        option(RuntimeError, "weight", torch.ones(3).to(dtype), short(dtype), "allowed is float32, the dtype of input")
        for dtype in (torch.float64, torch.float16, torch.int64)
    ),
    Bad(
        RuntimeError,
        "weight: got complex64",
        "allowed are float16, bfloat16, float32 and float64",
        (X, P),
        {"weight": torch.ones(3, dtype=torch.complex64)},
        accepted=COMPLEX,
    ),
    Bad(RuntimeError, "target: got a tensor on meta", "allowed is cpu, the device of input", (X, Y.to("meta"))),
    Bad(RuntimeError, "target: got a tensor on cpu", "allowed is meta, the device of input", (X.to("meta"), Y)),
    option(RuntimeError, "weight", torch.ones(3).to("meta"), "a tensor on meta", "allowed is cpu, the device of input"),
    # Targets that are neither a class nor ignored, in every path through the options
    *(
        Bad(IndexError, OUTSIDE.format(value), CLASSES, (X, torch.tensor([-100, 1, 2, value])))
        for value in (3, -1, -99, 2**32, 2**62)
    ),
    *(
        Bad(IndexError, OUTSIDE.format(value), CLASSES, (X, torch.tensor([0, 1, 2, value], dtype=torch.uint8)))
        for value in (3, 156, 255)
    ),
    *(
        Bad(IndexError, OUTSIDE.format(3), CLASSES, (X, torch.tensor([-100, 1, 2, 3])), options)
        for options in [
            {"reduction": "none"},
            {"reduction": "sum"},
            {"label_smoothing": 0.1},
            {"label_smoothing": 1.0},
            {"weight": torch.ones(3)},
            {"weight": torch.ones(3), "label_smoothing": 0.1},
        ]
    ),
    Bad(
        IndexError,
        OUTSIDE.format(-100),
        "allowed are the classes 0 to 2 and ignore_index, -1",
        (X, torch.tensor([0, -1, 2, -100])),
        {"ignore_index": -1},
    ),
    Bad(IndexError, OUTSIDE.format(3), CLASSES, (X[0], torch.tensor(3))),
    Bad(IndexError, OUTSIDE.format(3), CLASSES, (torch.zeros(2, 3, 4, 5), torch.full((2, 4, 5), 3))),
    Bad(IndexError, NO_CLASSES, "allowed is only ignore_index, -100", (torch.zeros(2, 0), torch.tensor([3, -100]))),
    # The target 0 is neither a class nor ignored. A comparison in uint8 would take ignore_index 2**32 for 0.
    Bad(
        IndexError,
        NO_CLASSES,
        "allowed is only ignore_index, 4294967296",
        (torch.zeros(2, 0), torch.tensor([0, 0], dtype=torch.uint8)),
        {"ignore_index": 2**32},
    ),
]
each_bad_call = pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.got)


@each_bad_call
@each_form
def test_the_error_of_a_bad_call_names_the_argument_its_value_and_the_allowed_values(form, bad):
    with pytest.raises(bad.error) as raised:
        form(*bad.call, **bad.options)
    assert raised.type is bad.error
    message = str(raised.value)
    assert message.startswith(bad.got), message
    assert bad.allowed in message, message


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="float8 exists since torch 2.1")
@each_form
def test_float8_class_probabilities_and_class_weights_are_refused_by_name(form):
    with pytest.raises(
        RuntimeError, match=r"^target: got float8_e4m3fn with the shape \(4, 3\) of class probabilities"
    ):
        form(X, P.to(torch.float8_e4m3fn))
    with pytest.raises(RuntimeError, match=r"^weight: got float8_e4m3fn; allowed are float16, bfloat16, float32 and"):
        form(X, P, weight=torch.ones(3).to(torch.float8_e4m3fn))


@each_bad_call
def test_torch_refuses_the_same_call_with_the_same_class_of_error(bad):
    if bad.accepted is not None:
        F.cross_entropy(*bad.call, **bad.options)  # if this raises, delete `accepted` of this call
        return
    classes = (bad.error, bad.formerly) if bad.formerly else (bad.error,)
    with pytest.raises(classes) as raised:
        F.cross_entropy(*bad.call, **bad.options)
    assert raised.type in classes


ROW = (1.0, 2.0)
BAD_SCALAR = [
    (TypeError, "input: got float", "allowed is a sequence of numbers", (1.0, 0), {}),
    (TypeError, "input: got str", "allowed is a sequence of numbers", ("123", 0), {}),
    (ValueError, "input: got length 0", "allowed is a length of 1 or more", ((), 0), {}),
    (TypeError, "target: got str", "allowed is an int or a sequence of class probabilities", (ROW, "0"), {}),
    (TypeError, "target: got bytes", "allowed is an int or", (ROW, b"01"), {"ignore_index": 1}),
    (TypeError, "target: got NoneType", "allowed", (ROW, None), {}),
    (TypeError, "target: got float", "allowed", (ROW, 1.0), {}),
    (TypeError, "target: got Tensor", "allowed is an int or a sequence of class prob", (ROW, torch.zeros(2)), {}),
    (ValueError, "target: got length 3", "allowed is length 2", (ROW, (0.5, 0.25, 0.25)), {}),
    (IndexError, "target: got 2", "allowed are the classes 0 to 1 and ignore_index, -100", (ROW, 2), {}),
    (IndexError, "target: got -1", "allowed are the classes 0 to 1 and ignore_index, -100", (ROW, -1), {}),
    (IndexError, "target: got -100", "allowed are the classes", (ROW, -100), {"ignore_index": -1}),
    (
        ValueError,
        "weight: got length 3",
        "allowed is length 2, one number for each class",
        (ROW, 0),
        {"weight": (1.0,) * 3},
    ),
    (TypeError, "weight: got float", "allowed is a sequence of numbers", (ROW, 0), {"weight": 1.0}),
    (ValueError, "reduction: got 'average'", REDUCTION, (ROW, 0), {"reduction": "average"}),
    (ValueError, "label_smoothing: got 1.5", "allowed is 0 to 1", (ROW, 0), {"label_smoothing": 1.5}),
    (ValueError, "label_smoothing: got -0.1", "allowed is 0 to 1", (ROW, 0), {"label_smoothing": -0.1}),
    (ValueError, "label_smoothing: got nan", "allowed is 0 to 1", (ROW, 0), {"label_smoothing": NAN}),
    (TypeError, "label_smoothing: got str", "allowed", (ROW, 0), {"label_smoothing": "0.1"}),
    (ValueError, "ignore_index: got 0", "allowed is a negative int", (ROW, (0.5, 0.5)), {"ignore_index": 0}),
]


@pytest.mark.parametrize(("error", "got", "allowed", "call", "options"), BAD_SCALAR, ids=[row[1] for row in BAD_SCALAR])
def test_the_error_of_a_bad_call_of_scalar_names_the_argument_and_the_allowed_values(
    error, got, allowed, call, options
):
    with pytest.raises(error) as raised:
        scalar(*call, **options)
    assert raised.type is error
    message = str(raised.value)
    assert message.startswith(got), message
    assert allowed in message, message


# --- Defects of torch itself, which the forms must not share ------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False], ids=["zeros", "randn"])
@each_form
def test_float16_mean_over_70000_rows_is_right(form, flat):
    # float16 cannot count these rows: torch's denominator is inf, and its loss 0 or NaN (pytorch#61523, pytorch#85791).
    logits = torch.zeros(70_000, 2, dtype=torch.float16) if flat else random(70_000, 3, dtype=torch.float16)
    inputs = inputs_of(logits, random_index(70_000, classes=2), torch.tensor(1.0))
    assert_within_bounds(form, inputs)


@each_form
def test_float16_mean_over_50000_rows_does_not_overflow(form):
    logits = random(50_000, 10, dtype=torch.float16)
    assert_within_bounds(form, inputs_of(logits, random_index(50_000, classes=10), torch.tensor(1.0)))


@pytest.mark.parametrize("rows", [1000, 5000])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@each_form
def test_half_precision_mean_with_every_16th_row_ignored_is_right(form, dtype, rows):
    # torch sums blocks of rows in half precision. A block does not end at an ignored row, so its sum grows too large to
    # add small numbers: the error is up to 98 %.
    target = random_index(rows, classes=10)
    target[::16] = -100
    assert_within_bounds(form, inputs_of(random(rows, 10, dtype=dtype), target))


@pytest.mark.parametrize("classes", [65_519, 65_520])
@each_form
def test_float16_loss_over_more_classes_than_float16_can_count_is_finite(form, classes):
    # The sum of exponentials of a flat row is C. float16 ends at 65504, so torch's loss is inf from 65520 classes on.
    logits, target = torch.zeros(2, classes, dtype=torch.float16), torch.tensor([0, classes - 1])
    losses = form(logits, target, reduction="none")
    assert_equal(losses, torch.tensor([math.log(classes)] * 2).to(torch.float16))
    assert_within_bounds(form, inputs_of(logits, target))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@each_form
def test_half_precision_keeps_the_loss_of_a_confident_row(form, dtype):
    # With p = 0.999 and log-probabilities rounded to half precision, log p is 0, and so are loss and gradient.
    logits = torch.tensor([[math.log(999), 0.0]], dtype=dtype)
    inputs = inputs_of(logits, torch.tensor([0]), torch.tensor(1.0))
    assert_within_bounds(form, inputs)
    got = evaluate(form, inputs)
    assert got.loss > 0
    assert got.gradient[0, 0] < 0


@each_reduction
@each_form
def test_backward_through_a_movedim_view_of_four_dimensions_gives_a_gradient(form, reduction):
    # F.nll_loss raises "grad_input must be contiguous" (pytorch#175084).
    logits = random(2, 3, 4, 5).movedim(-1, 1)
    target = random_index(2, 3, 4, classes=5)
    assert_within_bounds(form, inputs_of(logits, target, reduction=reduction))


@pytest.mark.parametrize("offset", [1e4, -1e4, 1e8, -1e8])
@each_form
def test_a_common_offset_does_not_cancel_the_loss(form, offset):
    # The difference log Σ exp(x) - x_y of two large numbers is 0 instead of log 2 (pytorch#38839).
    logits = torch.full((1, 2), offset, dtype=torch.float32)
    assert_equal(form(logits, torch.tensor([0])), torch.tensor(2.0).log())
    assert scalar((offset, offset), 0) == math.log(2)


# --- Transforms: derivatives, vmap, compile -----------------------------------------------------------------------


# Reduction "sum" is left out, because it differs from "mean" only by a factor.
each_derivative = pytest.mark.parametrize(
    ("target", "reduction", "label_smoothing"),
    [
        ("index", "none", 0.0),
        ("index", "mean", 0.0),
        ("index", "mean", 0.1),
        ("probabilities", "none", 0.1),
        ("probabilities", "mean", 0.0),
    ],
)


def differentiable_call(form, target, **options):
    """Return a function that calls the form in float64, and the differentiable arguments that the function takes."""
    logits = random(3, 3).requires_grad_()
    # A negative weight tests the sign of the second derivative (pytorch#64256).
    weight = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    if target == "probabilities":
        probabilities = random(3, 3, seed=1).softmax(1).requires_grad_()
        return (lambda x, t: form(x, t, weight, **options)), (logits, probabilities)
    index = torch.tensor([-100, 1, 2])
    return (lambda x: form(x, index, weight, **options)), (logits,)


@each_derivative
@each_form
def test_first_derivatives_are_right_in_reverse_and_in_forward_mode(form, target, reduction, label_smoothing):
    function, arguments = differentiable_call(form, target, reduction=reduction, label_smoothing=label_smoothing)
    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)


@each_derivative
@each_form
def test_second_derivatives_are_right(form, target, reduction, label_smoothing):
    function, arguments = differentiable_call(form, target, reduction=reduction, label_smoothing=label_smoothing)
    assert torch.autograd.gradgradcheck(function, arguments, check_fwd_over_rev=True)


@each_form
def test_the_tangent_of_a_row_with_minus_infinity_is_finite(form):
    # Forward mode multiplies tangents by log-probabilities; a formula written by hand may compute 0·-inf (optax#1762).
    logits, target = torch.tensor([[0.0, -1024.0, -INF], [0.0, -INF, -1024.0]]), torch.tensor([1, -100])
    tangent = torch.tensor([[1.0, 4.0, 3.0], [1.0, 2.0, 3.0]])
    function = functools.partial(form, target=target, reduction="none")
    losses, tangents = torch.func.jvp(function, (logits,), (tangent,))
    assert_equal(losses, [1024.0, 0.0])
    assert_equal(tangents, [1.0 - 4.0, 0.0])


@pytest.mark.parametrize("target", [[0, 0], [-100, -100]], ids=["weights of 0", "no kept rows"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.5])
@each_form
def test_the_tangent_of_a_mean_that_is_nan_is_nan_as_in_torch(form, label_smoothing, target):
    logits, weight = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([0.0, 1.0])
    for loss in (form, F.cross_entropy):
        function = functools.partial(loss, target=torch.tensor(target), weight=weight, label_smoothing=label_smoothing)
        value, tangent = torch.func.jvp(function, (logits,), (torch.tensor([[1.0, -1.0], [0.0, 2.0]]),))
        assert value.isnan()
        assert tangent.isnan()


@each_reduction
@each_form
def test_vmap_over_rows_equals_a_loop_over_rows(form, reduction):
    # One row is ignored: the target -100 must be masked before a look-up by index (pytorch#90916).
    logits, target, weight = data()
    target[0] = -100
    for options in ({}, {"weight": weight}, {"weight": weight, "label_smoothing": 0.5}):
        function = functools.partial(form, reduction=reduction, **options)
        mapped = torch.func.vmap(function)(logits, target)
        assert_equal(mapped, torch.stack([function(x, y) for x, y in zip(logits, target, strict=True)]))
        hot = F.one_hot(target.clamp(min=0), 4).to(logits.dtype)
        mapped = torch.func.vmap(function)(logits, hot)
        assert_equal(mapped, torch.stack([function(x, y) for x, y in zip(logits, hot, strict=True)]))


@each_form
def test_vmap_over_a_last_dimension_and_over_weights_equals_a_loop(form):
    logits, target, weight = data()
    logits, target = torch.stack([logits, logits.flip(0)], -1), torch.stack([target, torch.tensor([0, -100, 2])], -1)
    weight = torch.stack([weight, weight.flip(0)])
    mapped = torch.func.vmap(form, in_dims=(-1, -1, 0))(logits, target, weight)
    assert_equal(mapped, torch.stack([form(logits[..., i], target[..., i], weight[i]) for i in range(2)]))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@each_form
def test_per_sample_gradients_equal_the_gradient_of_each_row_and_0_for_ignored_rows(form, reduction):
    logits, target, weight = data()
    target[0] = -100
    per_sample = torch.func.vmap(torch.func.grad(functools.partial(form, weight=weight, reduction=reduction)))
    expected = torch.tensor(row_gradients(TARGET), dtype=logits.dtype)
    expected[0] = 0
    if reduction == "mean":  # each sample is a mean over one row, and divides by the weight of this row: 4 and 2
        expected[1:] /= weight[target[1:]][:, None]
    assert_equal(per_sample(logits, target), expected)


@each_form
def test_a_bad_class_is_an_index_error_under_vmap_too(form):
    with pytest.raises(IndexError, match=r"^target: .*out of bounds"):
        torch.func.vmap(form)(X, torch.tensor([0, 1, 2, 3]))


@pytest.fixture(scope="module")
def compiles():
    """Skip a test if torch.compile cannot work: no C++ compiler, or a Python that this torch does not support."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs a C++ compiler")
    try:
        torch.compile(torch.sin, backend="eager")
    except RuntimeError as error:  # torch 2.0.1: "Python 3.11+ not yet supported for torch.compile"
        if "supported" not in str(error):
            raise
        pytest.skip(f"needs a torch that compiles on this Python: {error}")


@functools.cache
def in_cpp(form):
    """Return the form compiled to C++. One compilation is enough: the calls differ only in the values of the target."""
    # Turn off vector instructions: detecting them takes longer than all tests here.
    return torch.compile(form, fullgraph=True, dynamic=False, options={"cpp.vec_isa_ok": False})


def call_in_cpp(target):
    weight = random(5, seed=2, dtype=torch.float32).exp()
    return inputs_of(random(6, 5, dtype=torch.float32), torch.tensor(target), weight=weight, ignore_index=255)


@each_form
def test_compiled_code_equals_torch_with_an_ignored_class_out_of_range(form, compiles):
    # A decomposition of torch used ignored targets as indices before it masked them (pytorch#95794).
    inputs = call_in_cpp([0, 255, 1, 2, 3, 4])
    assert_within_bounds(in_cpp(form), inputs, gradient=False)
    assert_within_bounds(in_cpp(form), call_in_cpp([255, 4, 255, 2, 0, 255]), gradient=False)


@pytest.mark.parametrize("bad", [5, 2**40, -1, -5, -100])
@each_form
def test_compiled_code_refuses_a_class_out_of_range(form, bad, compiles):
    # -1 must not mean the last class (pytorch#135546). Compiled code raises RuntimeError.
    inputs = call_in_cpp([0, 255, 1, 2, 3, bad])
    with pytest.raises(RuntimeError, match="out of bounds"):
        in_cpp(form)(inputs.input, inputs.target, **inputs.options)


@each_form
def test_compiled_code_refuses_a_class_out_of_range_if_the_loss_does_not_depend_on_it(form, compiles):
    # With smoothing 1 and no weight, the loss does not depend on the class, so a compiler may drop the range check.
    inputs = call_in_cpp([0, 255, 1, 2, 3, 5])
    with pytest.raises(RuntimeError, match="out of bounds"):
        in_cpp(form)(inputs.input, inputs.target, ignore_index=255, reduction="none", label_smoothing=1.0)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_one_dynamic_graph_serves_every_size_and_smoothing(form, compiles):
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(form, fullgraph=True, dynamic=True, backend=count)
    generator = torch.Generator().manual_seed(0)
    for rows, classes, smoothing in ((4, 5, 0.1), (7, 3, 0.2), (9, 6, 0.3)):
        x = torch.randn(rows, classes, generator=generator)
        y = torch.randint(classes, (rows,), generator=generator)
        assert torch.equal(compiled(x, y, label_smoothing=smoothing), form(x, y, label_smoothing=smoothing))
    assert len(graphs) < 3


@pytest.mark.parametrize(
    ("target", "shape", "label_smoothing"),
    [("int64", (3, 5, 2), 0.0), ("uint8", (5,), 0.1), ("probabilities", (3, 5, 2), 0.1)],
    ids=["int64", "uint8", "probabilities"],
)
@each_form
def test_one_graph_has_the_loss_and_its_gradient(form, target, shape, label_smoothing, compiles):
    # This backend runs torch's decompositions of forward and backward without a C++ compiler. torch.compile refuses
    # uint8 targets and unbatched rows for F.cross_entropy (pytorch#59765, pytorch#155247).
    graph = torch.compile(form, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    if target == "probabilities":
        y = random(*shape, seed=3, dtype=torch.float32).softmax(1)
    else:
        y = random_index(*shape[:1], *shape[2:], classes=5) if len(shape) > 1 else torch.tensor(3)
        y = y.to(getattr(torch, target))
    weight = random(5, seed=2, dtype=torch.float32).exp()
    logits = random(*shape, dtype=torch.float32)
    assert_within_bounds(graph, inputs_of(logits, y, reduction="none", label_smoothing=label_smoothing, weight=weight))


# --- Layouts ------------------------------------------------------------------------------------------------------


class WithLayout(torch.autograd.Function):
    """An autograd function that copies values into another layout. Its gradient is the upstream gradient."""

    @staticmethod
    def forward(ctx, values, layout):
        return layout(values.detach().clone())

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": lambda x: F.pad(x, (1, 2))[..., 1:-2],
    "strided": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape),
    # Other values follow in memory, so that reading the tensor as contiguous gives wrong numbers and does not crash.
    "expanded": lambda x: torch.cat([x[:1], x + 1])[:1].expand_as(x),
    "movedim": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
}
FOUR_DIMENSIONS = ("movedim", "channels_last")


@pytest.mark.parametrize("target", ["index", "probabilities"])
@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (layout, shape)
        for layout in LAYOUTS
        for shape in [(7, 5), (2, 5, 3, 4)]
        if len(shape) == 4 or layout not in FOUR_DIMENSIONS
    ],
    ids=str,
)
@each_form
def test_logits_target_and_weight_of_any_layout_equal_contiguous_ones(form, layout, shape, target):
    # Some kernels assume the strides of logits or targets (pytorch#67167, unsloth#10713).
    layout_of = LAYOUTS[layout]
    logits, weight = random(*shape), random(5, seed=2).exp()
    y = random_index(shape[0], *shape[2:], classes=5) if target == "index" else random(*shape, seed=3).softmax(1)
    if layout == "expanded":  # all entries of the batch are equal
        logits, y = logits[:1].expand_as(logits).clone(), y[:1].expand_as(y).clone()

    def loss(logits, target, *, weight, **options):
        laid = WithLayout.apply(logits, layout_of)
        assert laid.equal(logits)
        assert not laid.is_contiguous() or laid.storage_offset() == 1
        dense = target.is_floating_point()  # class probabilities have a gradient too
        target = WithLayout.apply(target, layout_of) if dense else LAYOUTS["strided"](target)
        return form(laid, target, weight=LAYOUTS["strided"](weight), **options)

    assert_within_bounds(loss, inputs_of(logits, y, weight=weight, reduction="none"))
    assert_within_bounds(loss, inputs_of(logits, y, weight=weight, label_smoothing=0.1))


@pytest.mark.parametrize("layout", ["transposed", "strided", "offset", "expanded"])
@each_form
def test_index_targets_of_any_layout_equal_contiguous_ones(form, layout):
    logits, target = random(4, 5, 3, 2), random_index(4, 3, 2, classes=5)
    target[1:, 0] = -100
    if layout == "expanded":
        target = target[:1].expand_as(target).clone()
    laid = LAYOUTS[layout](target)
    assert laid.equal(target)
    assert laid.stride() != target.stride() or laid.storage_offset() == 1
    assert_equal(form(logits, laid, reduction="none"), form(logits, target, reduction="none"))
    assert_within_bounds(form, inputs_of(logits, laid))
