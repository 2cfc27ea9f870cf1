"""Compare the error bounds of small calls with bounds worked out by hand, one rounding after another.

Most calls have two equal logits. The differences, the exponentials and the sum of the exponentials are exact: 0, 1 and
2. So the error comes from the logarithm, one ulp for torch on a CPU, and from the steps after the logarithm. `U` is the
unit roundoff of float32.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.calls import inputs

from crossent.numerics.bounds.contracts import FUNCTIONS, contract
from crossent.numerics.bounds.derivatives import DerivativeBounds
from crossent.numerics.bounds.intermediates import coefficients
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.rounding import ANY_ORDER, Computed, Order, safe
from crossent.numerics.bounds.unbounded import unbounded
from crossent.numerics.formats import FLOAT32
from crossent.trials.exact import terms_of

U = 2.0**-24
INF = math.inf


def rounded(value, error):
    """Return the error of a value after one more rounding to float32."""
    return error + U * (value + error)


def times(a, a_error, b, b_error):
    """Return the error of the rounded product of two numbers with errors."""
    return rounded(abs(a * b), abs(a) * b_error + abs(b) * a_error + a_error * b_error)


def added(*terms, sizes=None):
    """Return the error of a sum of terms (value, error) in the worst order, which adds the largest terms first.

    `sizes` replaces the largest magnitudes of the terms, if given.
    """
    sizes = sorted(sizes or [abs(value) + error for value, error in terms], reverse=True)
    depth = len(terms) - 1
    passed = sum(sum(sizes[: j + 1]) for j in range(1, len(terms)))
    return sum(error for _, error in terms) + passed * U / (1 - depth * U)


LOG2 = math.log(2)
# The errors of these numbers for two equal logits:
LOG = rounded(LOG2, 2 * U * LOG2)  # log p: one ulp of log 2, and the rounding of 0 - log 2
P = 0.5 * math.expm1(LOG) + 2 * U * 0.5 * math.exp(LOG)  # p = exp(log p): the error of log p, and one ulp of exp
HARD, UNIFORM = 2 * U * 0.5, 2 * U * 0.25  # errors of 1 - ε and ε/C, for ε = 1/2: two roundings each
TRUE, OTHER = rounded(0.75, rounded(0.5, HARD) + UNIFORM), rounded(0.25, UNIFORM)  # q of the true and the other class


def bounds_of(given, promise="eager", grade="A", **changes):
    dtype = str(given.input.dtype).removeprefix("torch.")
    return Bounds(terms_of(given), replace(contract(promise, grade, dtype), **changes))


def assert_worked_out(bound, by_hand):
    """Assert that a bound is the number worked out by hand, or larger by at most twice the margin of `safe`."""
    by_hand = np.broadcast_to(by_hand, bound.shape)
    assert ((by_hand <= bound) & (bound <= by_hand * (1 + 2.0**-29))).all(), (bound, by_hand)


def equal_logits(rows, target, upstream=1.0, **options):
    """Return the inputs of a call whose rows have two equal logits."""
    given = inputs([[0.0, 0.0]] * rows, target, **options)
    return replace(given, upstream=torch.full_like(given.upstream, upstream))


def test_the_loss_of_a_class_has_the_errors_of_its_logarithm_and_of_its_weight():
    assert_worked_out(bounds_of(equal_logits(1, [0])).loss, LOG)
    assert_worked_out(bounds_of(equal_logits(1, [0], weight=[3.0, 1.0])).loss, times(3, 0, LOG2, LOG))


def test_a_weight_that_is_a_power_of_two_adds_no_rounding():
    assert_worked_out(bounds_of(equal_logits(1, [0], weight=[4.0, 1.0])).loss, 4 * LOG)


def test_an_ignored_row_has_no_error():
    given = equal_logits(2, [0, -100])
    assert_worked_out(bounds_of(given).loss, [LOG, 0.0])
    assert (bounds_of(given).gradient[1] == 0).all()
    assert_worked_out(bounds_of(equal_logits(2, [0, -100], reduction="sum")).loss, LOG)


def test_a_sum_adds_the_errors_of_its_rows_and_its_own_rounding_error():
    given = equal_logits(2, [0, 1], reduction="sum")
    assert_worked_out(bounds_of(given).loss, added((LOG2, LOG), (LOG2, LOG)))
    three = bounds_of(equal_logits(3, [0, 1, 1], reduction="sum")).loss
    assert_worked_out(three, added((LOG2, LOG), (LOG2, LOG), (LOG2, LOG)))


def test_a_mean_over_a_power_of_two_adds_no_rounding():
    assert_worked_out(bounds_of(equal_logits(2, [0, 1], reduction="mean")).loss, added((LOG2, LOG), (LOG2, LOG)) / 2)


def divided(value, error, by, ulps=0.5):
    """Return the error of a number divided by the known number `by`, and rounded.

    The number has the given value and error. The bound adds a rounding of float64.
    """
    return error / by + (2 * ulps * U + 2.0**-52) * (abs(value) + error) / by


def inverted(value, error, by, ulps=0.5):
    """Return the error of a number multiplied by the rounded inverse of the known number `by`, and rounded."""
    return times(value, error, 1 / by, (2 * ulps * U + 2.0**-52) / by)


def mean_errors(rows, by, ulps=0.5, sizes=None, divide=divided):
    """Return two errors of a mean of rows (value, error): with a division after the sum, and with divisions before it.

    `sizes` are the magnitudes of the rows, as in `added`. `divide` is `divided` or `inverted`.
    """
    after = divide(sum(value for value, _ in rows), added(*rows, sizes=sizes), by, ulps)
    each = [(value / by, divide(value, error, by, ulps)) for value, error in rows]
    before = added(*each, sizes=sizes and [size / by for size in sizes])
    return after, before


def test_a_mean_may_be_divided_before_or_after_its_sum():
    """If the rows cancel, dividing before the sum has the larger error."""
    given = equal_logits(2, [0, 1], weight=[3.0, 3.0], reduction="mean")
    assert_worked_out(bounds_of(given).loss, max(mean_errors([(3 * LOG2, times(3, 0, LOG2, LOG))] * 2, 6)))
    given = equal_logits(4, [0, 0, 0, 1], weight=[3.0, -4.0], reduction="mean")
    after, before = mean_errors([(3 * LOG2, times(3, 0, LOG2, LOG))] * 3 + [(-4 * LOG2, 4 * LOG)], 5)
    assert after < before
    assert_worked_out(bounds_of(given).loss, before)


def test_the_division_of_a_fast_kernel_has_an_error_of_two_and_a_half_ulps():
    """The error of log at 2 is 2^-21.41, and two roundings follow. A product with 1/5 has one rounding more."""
    log = rounded(LOG2, rounded(LOG2, 2.0**-21.41))
    given = equal_logits(4, [0, 0, 0, 1], weight=[3.0, -4.0], reduction="mean")
    rows = [(3 * LOG2, times(3, 0, LOG2, log))] * 3 + [(-4 * LOG2, 4 * log)]
    assert max(mean_errors(rows, 5, 2.5)) < max(mean_errors(rows, 5, 2.5, divide=inverted))
    after, before = mean_errors(rows, 5, 2.5, divide=inverted)
    assert after < before
    assert_worked_out(bounds_of(given, "fast_kernel").loss, before)
    # At grade B, the sum is stored before the division. The error of the mean, log 2, is two ulps larger than with an
    # accurate division.
    given = equal_logits(3, [0, 1, 1], dtype="bfloat16", reduction="mean")
    accurate = replace(FUNCTIONS["fast", "float32"], division_ulps=0.5)
    losses = [bounds_of(given, "fast_kernel", "B", **changes).loss for changes in ({}, {"functions": accurate})]
    assert 4 * U * LOG2 <= losses[0] - losses[1] <= 5 * U * LOG2


def smoothed_terms(true=1.0, other=1.0):
    """Return (value, error) of the two terms of a smoothed loss. The arguments are the weights of the classes."""
    shares = ((0.75, TRUE, true), (0.25, OTHER, other))
    # A product with a power of two is exact.
    weighted = [(q * w, times(q, e, w, 0) if math.frexp(abs(w))[0] != 0.5 else e * abs(w)) for q, e, w in shares]
    return [(value * LOG2, times(value, error, LOG2, LOG)) for value, error in weighted]


def smoothed_loss(true=1.0, other=1.0):
    """Return the value and the error of a smoothed loss, and its size, the sum of the magnitudes of its terms."""
    terms = smoothed_terms(true, other)
    return sum(value for value, _ in terms), added(*terms), sum(abs(value) + error for value, error in terms)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_smoothed_loss_has_the_errors_of_its_shares_and_of_their_sum(weight):
    options = {} if weight == 1 else {"weight": [weight, weight]}
    _, by_hand, _ = smoothed_loss(weight, weight)
    assert_worked_out(bounds_of(equal_logits(1, [0], label_smoothing=0.5, **options)).loss, by_hand)
    # An ignored row adds nothing to a sum.
    given = equal_logits(2, [0, -100], label_smoothing=0.5, reduction="sum", **options)
    assert_worked_out(bounds_of(given).loss, by_hand)


def test_the_parts_of_smoothed_rows_may_be_summed_separately():
    """With the weights 1 and -3, the loss of each row is 0, but the two terms of the loss are not 0."""
    value, row, size = smoothed_loss(1, -3)
    assert value == 0
    given = equal_logits(2, [0, 0], weight=[1.0, -3.0], label_smoothing=0.5, reduction="sum")
    assert_worked_out(bounds_of(given).loss, added((value, row), (value, row), sizes=[size, size]))


def test_the_parts_of_a_smoothed_mean_may_be_divided_and_summed_separately():
    """With the weights 3 and -4, one of four losses has another sign than the others, and the denominator is 5."""
    value, row, size = smoothed_loss(3, -4)
    last_value, last_row, last_size = smoothed_loss(-4, 3)
    rows, sizes = [(value, row)] * 3 + [(last_value, last_row)], [size] * 3 + [last_size]
    after, before = mean_errors(rows, 5, sizes=sizes)
    assert after < before
    given = equal_logits(4, [0, 0, 0, 1], weight=[3.0, -4.0], label_smoothing=0.5, reduction="mean")
    assert_worked_out(bounds_of(given).loss, before)


def test_the_loss_of_probabilities_has_the_errors_of_its_products_and_of_their_sum():
    given = inputs([[0.0, 0.0]], [[0.75, 0.375]])
    by_hand = added(*[(t * LOG2, times(t, 0, LOG2, LOG)) for t in (0.75, 0.375)])
    assert_worked_out(bounds_of(given).loss, by_hand)


def gradient_error(p, scale, coefficient):
    """Return the error of the gradient `s (v p - v)` of the true class, where the softmax 1/2 has the error `p`.

    An implementation may multiply by the scale `s` before the difference or after it. `s`, the coefficient `v` and
    their product are known numbers, which have no error.
    """
    scaled = times(0.5, p, scale * coefficient, 0)
    before = rounded(scale * coefficient / 2, scaled)
    weighted = p * coefficient if coefficient == 1 else times(0.5, p, coefficient, 0)
    subtracted = rounded(coefficient / 2, weighted)
    after = times(coefficient / 2, subtracted, scale, 0)
    both = rounded(scale * coefficient / 2, times(0.5 * coefficient, weighted, scale, 0))
    return max(before, after, both)


@pytest.mark.parametrize("scale", [3.0, 5.0])
def test_a_gradient_has_the_errors_of_p_of_its_scale_and_of_the_subtraction(scale):
    bound = bounds_of(equal_logits(1, [0], upstream=scale)).gradient
    assert_worked_out(bound, gradient_error(P, scale, 1))


def test_a_gradient_with_a_weight_has_one_rounding_more():
    bound = bounds_of(equal_logits(1, [0], upstream=3.0, weight=[5.0, 1.0])).gradient
    assert_worked_out(bound, gradient_error(P, 3, 5))


def test_a_scale_that_is_a_power_of_two_adds_no_rounding():
    """The denominator is the number of rows, 2, so the scale is 3/2."""
    given = equal_logits(2, [0, 1], upstream=3.0, reduction="mean")
    of_true, of_other = bounds_of(given).gradient[0]
    assert_worked_out(np.array([of_true, of_other]), gradient_error(P, 1.5, 1))


def p_error_of_sixteen():
    """Return the error of p in a kernel, for the softmax of sixteen equal logits."""
    log16 = 4 * LOG2
    log = rounded(log16, rounded(log16, 3 * U * log16))  # 1.5 ulps of CUDA's log, and two roundings
    return (math.expm1(log) + 5 * U * math.exp(log)) / 16  # 2.5 ulps of exp


def test_a_kernel_may_subtract_one_from_p_before_it_multiplies_by_any_factor():
    """For sixteen equal logits and s = g w, `s (p - 1)` has a larger error at the true class than `s p - s`."""
    p = p_error_of_sixteen()
    upstream, weight = 1 + 2.0**-12, 1 + 2.0**-13
    rounding = abs(float(np.float32(upstream * weight)) - upstream * weight)  # the known rounding error of the product
    given = inputs([[0.0] * 16], [0], weight=[weight] + [1.0] * 15)
    given = replace(given, upstream=torch.tensor([upstream]))
    in_turn = times(weight / 16, times(1 / 16, p, weight, 0), upstream, 0)  # p w first, then times g
    at_once = times(1 / 16, p, upstream * weight, rounding)
    before = rounded(15 / 16 * upstream * weight, max(in_turn, at_once) + rounding)
    after = times(15 / 16, rounded(15 / 16, p), upstream * weight, rounding)
    assert after > before + U / 2
    other = rounded(
        upstream * weight / 16, max(in_turn, at_once)
    )  # the bound counts the subtraction of 0 as a rounding
    assert_worked_out(bounds_of(given, "kernel").gradient[0], [after] + [other] * 15)


def test_a_smoothing_kernel_may_subtract_one_from_p_in_the_part_of_the_target():
    """The gradient of the true class is `3 (1 - ε) (p - 1) + ε/C (p Σ w - 3)`. The other fifteen weights are -4."""
    p, hard = p_error_of_sixteen(), rounded(0.5, HARD + U / 2)  # a kernel also rounds ε, and (1 - ε) · upstream
    scaled = times(3, 0, 0.5, hard)
    softmax = max(times(3 / 16, times(1 / 16, p, 3, 0), 0.5, hard), times(1 / 16, p, 1.5, scaled))
    before = rounded(15 / 16 * 1.5, softmax + scaled)
    of_target = times(15 / 16, rounded(15 / 16, p), 1.5, scaled)
    subtracted_late = times(15 / 16 * 3, rounded(15 / 16 * 3, times(1 / 16, p, 3, 0)), 0.5, hard)
    assert of_target > max(before, subtracted_late)

    share, total = rounded(1 / 32, 2 * U / 32), 3 - 15 * 4
    three, four = times(3, 0, 1 / 32, share), 4 * share
    sum_of_scaled = added((3 / 32, three), *[(-4 / 32, four)] * 15)
    softmax = times(1 / 16, p, total, 0)
    scaled_softmax = max(times(total / 16, softmax, 1 / 32, share), times(1 / 16, p, total / 32, sum_of_scaled))
    difference = abs(total / 16 - 3)
    before = rounded(difference / 32, scaled_softmax + three)
    uniform = max(before, times(difference, rounded(difference, softmax), 1 / 32, share))

    given = inputs([[0.0] * 16], [0], weight=[3.0] + [-4.0] * 15, label_smoothing=0.5)
    by_hand = rounded(15 / 16 * 1.5 + difference / 32, of_target + uniform)
    assert_worked_out(bounds_of(given, "kernel").gradient[0, 0], by_hand)


@pytest.mark.parametrize("promise", ["eager", "kernel"])
def test_a_gradient_of_the_only_class_has_no_error(promise):
    """p is exactly 1, and the upstream gradient times the weight is 15, so no step has a rounding error."""
    given = inputs([[7.0]], [0], weight=[5.0])
    given = replace(given, upstream=torch.tensor([3.0]))
    assert bounds_of(given, promise).gradient == 0


@pytest.mark.parametrize(("promise", "error"), [("eager", 0.0), ("kernel", 15 * U)])
def test_a_tangent_of_known_numbers_rounds_only_in_a_kernel(promise, error):
    """The softmax is exactly (1, 0). The tangent is 5·(3 - 0), but a kernel may multiply 5 by another factor first."""
    terms = terms_of(inputs([[0.0, -INF]], [1], weight=[1.0, 5.0]))
    along = DerivativeBounds(terms, contract(promise, "A", "float32"), np.array([[3.0, 0.0]]))
    assert_worked_out(along.tangent, error)


@pytest.mark.parametrize(("promise", "ulps"), [("eager", 0.5), ("fast_kernel", 2.5)])
def test_a_scale_has_the_error_of_its_division(promise, ulps):
    """The scale is 1/3. The bound does not use the known rounding error of 1/3: other factors may come first."""
    bounds = bounds_of(equal_logits(3, [0, 1, 1], reduction="mean"), promise)
    scale = (2 * ulps * U + 2.0**-52) / 3
    assert_worked_out(safe(bounds._scale().error), scale)
    if promise == "eager":
        product, subtracted = times(0.5, P, 1 / 3, scale), rounded(0.5, P)
        after = times(0.5, subtracted, 1 / 3, scale)
        of_true, of_other = rounded(1 / 6, product + scale), rounded(1 / 6, product)
        assert_worked_out(bounds.gradient[0], [max(of_true, after), max(of_other, after)])


def test_a_smoothed_gradient_adds_three_parts_in_any_order():
    total = added((0.75, TRUE), (0.25, OTHER))
    softmax = times(0.5, P, 1, total)
    of_true = rounded(0.25, softmax + TRUE) + U * (0.5 + softmax + 0.75 + TRUE)
    of_other = rounded(0.25, softmax + OTHER) + U * (0.5 + softmax + 0.25 + OTHER)
    assert_worked_out(bounds_of(equal_logits(1, [0], label_smoothing=0.5)).gradient, [[of_true, of_other]])


def test_the_gradient_of_a_target_has_the_errors_of_each_of_its_factors():
    given = inputs([[0.0, 0.0]], [[0.5, 0.5]], weight=[3.0, 3.0], label_smoothing=0.5)
    given = replace(given, upstream=torch.tensor([3.0]))
    scaled = times(3, 0, LOG2, LOG)
    weighted = times(3 * LOG2, scaled, 3, 0)
    assert_worked_out(bounds_of(given).target_gradient, times(9 * LOG2, weighted, 0.5, HARD))
    given = inputs([[0.0, 0.0]], [[0.5, 0.5]])
    assert_worked_out(bounds_of(replace(given, upstream=torch.tensor([3.0]))).target_gradient, scaled)


def test_a_kernel_may_subtract_the_sum_of_maximum_and_logarithm_from_the_logits():
    """The error is 1.5 ulps of CUDA's log, one rounding of the sum with the maximum, and one of the difference."""
    log = rounded(LOG2, 3 * U * LOG2)
    assert_worked_out(bounds_of(equal_logits(1, [0]), promise="kernel").loss, rounded(LOG2, log))


def test_a_kernel_subtracts_the_logsumexp_before_it_multiplies_by_the_weight():
    """`8 + log Σ` has a rounding error of 8u, and Σ an error of u. The weight 3 makes the whole error 27u."""
    given = inputs([[8.0, 0.0]], [0], weight=[3.0, 1.0])
    (bound,) = bounds_of(given, "kernel").loss
    assert 27 * U < bound < 28 * U


def test_a_common_offset_adds_no_error_in_a_kernel_that_smooths_with_unshifted_logits():
    """At grade A, the bound is the same as for the row shifted until it contains zero. Each row has its own shift."""
    given = inputs(
        [[3.0, 0.0, 1.0], [1003.0, 1000.0, 1001.0], [10003.0, 10000.0, 10001.0]], [0] * 3, label_smoothing=0.1
    )
    bound = bounds_of(given, "kernel").loss
    assert bound[0] == bound[1] == bound[2] < 100 * U
    # At grade B, an offset may add an error. But the coefficients are not rounded to bfloat16.
    given = inputs([[4096.0, 4096.0]], [0], "bfloat16", label_smoothing=0.1)
    assert 4096 * U < bounds_of(given, "kernel", "B").loss[0] < 4096 * 2.0**-9


def test_a_kernel_may_smooth_with_unshifted_logits():
    """The loss is `Σ q · (max + log Σ) - Σ q x`. The second sum is 0 here, but the difference counts as a rounding."""
    log = rounded(LOG2, 3 * U * LOG2)
    true = rounded(0.75, rounded(0.5, HARD + U / 2) + UNIFORM)  # a kernel also rounds ε
    shares = (0.75, true), (0.25, OTHER)
    of_rows = added(*[(q * LOG2, times(q, error, LOG2, rounded(LOG2, log))) for q, error in shares])
    of_logits = rounded(LOG2, times(1, added(*shares), LOG2, log))
    bound = bounds_of(equal_logits(1, [0], label_smoothing=0.5), promise="kernel").loss
    assert_worked_out(bound, max(of_rows, of_logits))


# --- Underflows that are multiplied -------------------------------------------------------------------------------

ETA = 2.0**-149  # the smallest subnormal number of float32; the smallest normal number is 2^-126


def underflow_error(product, *factors, of=None, **options):
    """Return, for each number in `product`, the error that underflows add if its factors come in any order.

    `of` are the bounds of a call, whose contract says which format underflows; by default, float32.
    """
    computed = Computed(np.array([product]), np.zeros((1, len(product))), FLOAT32)
    of = of or bounds_of(equal_logits(1, [0]))
    result = of._multiplied_in_any_order(computed, [np.reshape(factor, (1, -1)) for factor in factors], **options)
    assert result.format is FLOAT32
    return result.error[0].tolist()


def test_of_three_factors_the_largest_multiplies_the_underflow_of_the_other_two():
    """A product above 2^10 times twice the smallest normal number had no underflow before the factor 2^10."""
    product = [2.0**-120, 2.0**-115, 2.0**-115 * (1 - 2.0**-24), 1.0]
    by_hand = [ETA / 2 * 2.0**10, 0.0, ETA / 2 * 2.0**10, 0.0]
    assert underflow_error(product, 2.0**-3, 2.0**10, 2.0**4) == by_hand


def test_of_four_factors_one_or_two_may_remain_after_an_underflow():
    product = [2.0**-120, 2.0**-113, 2.0**-111]
    both, two = ETA / 2 * (2.0**10 + 2.0**14), ETA / 2 * 2.0**14
    assert underflow_error(product, 1.0, 2.0**4, 2.0**-3, 2.0**10) == [both, two, 0.0]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_call_without_rows_has_bounds(reduction):
    upstream = torch.ones(0 if reduction == "none" else ())
    given = inputs([[0.0, 0.0]], [[0.5, 0.5]], reduction=reduction, weight=[1.0, 1.0], label_smoothing=0.5)
    given = replace(given, input=given.input[:0], target=given.target[:0], upstream=upstream)
    bounds = bounds_of(given)
    assert bounds.gradient.shape == bounds.target_gradient.shape == (0, 2)


def test_a_product_of_two_factors_and_a_product_of_zero_have_no_error_of_underflow():
    assert underflow_error([2.0**-140], 2.0**10, 2.0**4) == [0.0]
    assert underflow_error([0.0, 2.0**-120], 2.0**-3, 2.0**10, 2.0**4) == [0.0, ETA / 2 * 2.0**10]
    assert underflow_error([0.0, 2.0**-120], 2.0**-3, 2.0**10, 2.0**4, products=2) == [0.0, ETA * 2.0**10]


def test_each_number_has_its_own_largest_factor():
    factors = 2.0**-3, [2.0**10, 2.0**2, 2.0**20], [2.0**4, 2.0**8, 2.0**6]
    assert underflow_error([2.0**-123] * 3, *factors) == [ETA / 2 * 2.0**10, ETA / 2 * 2.0**8, ETA / 2 * 2.0**20]


def test_both_products_of_a_large_sum_may_underflow():
    assert underflow_error([1.0], 2.0**-3, 2.0**10, 2.0**4, products=2) == [2 * ETA / 2 * 2.0**10]


def test_a_product_that_is_stored_in_a_narrow_format_underflows_earlier():
    """The smallest positive number of bfloat16 is 2^-133."""
    of = bounds_of(equal_logits(1, [0], dtype="bfloat16"), grade="B")
    assert underflow_error([2.0**-120], 2.0**-3, 2.0**10, 2.0**4, of=of) == [2.0**-134 * 2.0**10]


def test_smoothing_makes_two_products_of_which_either_may_underflow():
    """ε/C·g and (1 - ε)·t·g are subnormal in float32, and the large weight comes last."""
    given = equal_logits(1, [0], upstream=2.0**-130, weight=[2.0**20, 2.0**20], label_smoothing=0.5)
    bounds = bounds_of(given)
    scaled = bounds._scaled(bounds._coefficients, Computed.exactly([[2.0**-130]], FLOAT32)).error[0]
    assert_worked_out(scaled, np.array([TRUE, OTHER]) * 2.0**-110 + 2 * ETA / 2 * 2.0**20)


def test_a_scale_has_the_upstream_gradient_and_the_inverse_of_the_denominator_for_factors():
    given = equal_logits(2, [0, 1], upstream=-3.0, weight=[3.0, 5.0], reduction="mean")
    upstream, inverse = bounds_of(given)._scale_factors()
    assert (upstream.tolist(), inverse.tolist()) == ([[3.0], [3.0]], [[0.125], [0.125]])
    # The sum of these weights may be rounded down, so the inverse of the denominator may be larger.
    given = equal_logits(2, [0, 1], weight=[1.0, 1.5 * U], reduction="mean")
    _, inverse = bounds_of(given)._scale_factors()
    assert (inverse > 1 / (1 + 1.5 * U)).all()


# --- Overflows of intermediates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upstream", "weight", "overflows"),
    [
        (2.0, 0.05, True),  # 2e38·2 overflows, if the weight comes last
        (0.05, 2.0, True),  # 2e38·2 overflows, if the upstream gradient comes last
        (0.5, 1.5, False),
        (1.0, 1.0, False),
    ],
)
def test_a_small_factor_of_a_product_may_come_last(upstream, weight, overflows):
    given = inputs([[2e38, 0.0]], [[0.0, 1.0]], weight=[1.0, weight])
    given = replace(given, upstream=torch.tensor([upstream]))
    assert np.isinf(bounds_of(given).target_gradient).tolist() == [[False, overflows]]


def has_infinite_bound(*arguments, **options):
    """Return whether the bound of each row's loss, or of the reduced loss, is infinite."""
    return np.isinf(bounds_of(inputs(*arguments, **options)).loss).tolist()


FAR = [0.0, -2e38]  # a row with a log-probability of -2e38: the sum of two such numbers overflows
SHARE = 2.0**-100  # a tiny label_smoothing


def test_all_classes_may_be_summed_before_the_product_with_the_smoothing():
    assert has_infinite_bound([[0.0, -2e38, -2e38]], [0], label_smoothing=SHARE) == [True]
    assert has_infinite_bound([FAR, FAR], [0, 0], label_smoothing=SHARE) == [False, False]
    # With probabilities of 0.5, the sum does not overflow.
    assert has_infinite_bound([[0.0, -2e38, -2e38]], [[0.0, 0.5, 0.5]]) == [False]


def test_a_large_weight_may_come_before_a_small_probability():
    assert has_infinite_bound([FAR], [[0.0, 0.1]], weight=[1.0, 3.0]) == [True]
    assert has_infinite_bound([FAR], [[0.0, 0.1]], weight=[1.0, 0.5]) == [False]


def test_all_rows_may_be_summed_before_the_product_with_the_smoothing():
    small = {"label_smoothing": SHARE, "reduction": "sum"}
    assert has_infinite_bound([FAR, FAR], [0, 0], **small) is True
    assert has_infinite_bound([FAR, FAR], [0, -100], **small) is False
    # With probabilities, only the product of one class in one row may overflow.
    assert has_infinite_bound([FAR, FAR], [[0.0, 0.001]] * 2, reduction="sum") is False


def test_a_mean_may_be_divided_before_its_product_with_the_smoothing():
    """A division by the weight 2^-24 overflows. The sum of the rows, 4e38, overflows before the division by 2."""
    small = {"label_smoothing": SHARE, "reduction": "mean"}
    assert has_infinite_bound([[0.0, -1e35]], [0], weight=[U, 1.0], **small) is True
    assert has_infinite_bound([[0.0, -1e35]], [0], weight=[1.0, 1.0], **small) is False
    assert has_infinite_bound([FAR, FAR], [0, 0], **small) is True


def test_a_mean_may_be_divided_by_the_least_possible_denominator():
    """The denominator 1 - 1 + 2^-20 has an error of 2^-22. So a sum of 2^108 may become larger than 2^128."""
    weight = [1.0, -1.0, 2.0**-20 + 2.0**-40]
    logits = [[0.0, 0.0, -(2.0**108) / 3]] * 3
    assert has_infinite_bound(logits, [0, 1, 2], weight=weight, label_smoothing=SHARE, reduction="mean") is True
    logits = [[0.0, 0.0, -(2.0**107) / 3]] * 3
    assert has_infinite_bound(logits, [0, 1, 2], weight=weight, label_smoothing=SHARE, reduction="mean") is False


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_smoothed_probability_may_be_flushed(dtype):
    """With ε = 2^-120, the product of 1 - ε and the smallest normal float32 number is subnormal, and may become 0."""
    given = inputs([[0.0, 0.0]], [[2.0**-126] * 2], dtype, label_smoothing=2.0**-120)
    given = replace(given, target=given.target.float())
    flushes, keeps = (
        coefficients(terms_of(given), contract("torch", "A", dtype, flushes=flushes)).error for flushes in (True, False)
    )
    assert (flushes >= 2.0**-126).all()
    assert (keeps < 2.0**-140).all()


# --- Infinite bounds ----------------------------------------------------------------------------------------------

ZERO_TIMES_INFINITY, OVERFLOW = "a step may multiply zero by infinity", "an intermediate may overflow"
TOO_MANY, ZERO_DENOMINATOR = "a sum has too many terms for the precision of its format", "the denominator may be zero"


def reasons(check, given, promise="eager", grade="A", **changes):
    found = unbounded(bounds_of(given, promise, grade, **changes), check)
    return {reason: where.tolist() for reason, where in found.items()}


def test_each_row_has_its_own_reason():
    """The rows have 0·inf, a difference beyond float64, an infinite loss (which is exact), and a finite bound."""
    logits = [[0.0, -INF], [1e308, -1e308], [0.0, -INF], [0.0, 1.0]]
    given = inputs(logits, [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0]], "float64")
    found = reasons("loss", given)
    assert found == {OVERFLOW: [False, True, False, False], ZERO_TIMES_INFINITY: [True, False, False, False]}


def test_each_element_has_its_own_reason():
    """The gradient of the target is the weight times the logarithm, which is 0·inf for one element."""
    given = inputs([[0.0, -INF, 0.0], [0.0, 1.0, 2.0]], [[1.0, 0.0, 0.0]] * 2, weight=[1.0, 0.0, 1.0])
    found = reasons("target_gradient", given)
    assert found == {ZERO_TIMES_INFINITY: [[False, True, False], [False, False, False]]}


def test_an_infinity_in_an_ignored_row_is_no_reason():
    given = inputs([[1e308, -1e308], [0.0, -INF]], [1, -100], "float64", reduction="sum")
    assert reasons("loss", given) == {OVERFLOW: True}


@pytest.mark.parametrize("order", [ANY_ORDER, Order(1000)])
def test_a_bound_is_infinite_if_a_sum_has_too_many_terms_for_its_format(order):
    """In a format with eight bits, a running sum of 129 terms may lose most terms. A sum of 128 terms cannot."""
    stored = {"promise": "torch", "grade": "B", "row_order": order}
    given = inputs([[0.0, 1.0]] * 129, [[1.0, 0.0]] * 129, "bfloat16", reduction="sum")
    assert reasons("loss", given, **stored) == {TOO_MANY: True}
    logits, target = [[0.0, 1.0]] * 127 + [[0.0, -INF]], [[1.0, 0.0]] * 128
    given = inputs(logits, target, "bfloat16", reduction="sum")
    assert reasons("loss", given, **stored) == {ZERO_TIMES_INFINITY: True}
    # The reason needs a sum over rows, and an order in which a term goes through many additions.
    given = inputs([[0.0, 1.0], *logits], [[1.0, 0.0], *target], "bfloat16")
    assert reasons("loss", given, **stored).keys() == {ZERO_TIMES_INFINITY}
    given = inputs([[0.0, 1.0], *logits], [[1.0, 0.0], *target], "bfloat16", reduction="sum")
    assert reasons("loss", given, **{**stored, "row_order": Order(20)}) == {ZERO_TIMES_INFINITY: True}


def test_a_bound_is_infinite_if_a_row_has_too_many_classes_for_the_format():
    """In a format with eight bits, a running sum of 129 exponentials may lose most of them. A sum of 128 cannot."""
    given = inputs([[0.0, -1.0] * 64 + [0.0]], [0])
    assert reasons("loss", given, compute=replace(FLOAT32, precision=8)) == {TOO_MANY: [True]}
    given = inputs([[0.0, -1.0] * 63 + [0.0, -INF]], [[1.0] + [0.0] * 127])
    assert reasons("loss", given, compute=replace(FLOAT32, precision=8)) == {ZERO_TIMES_INFINITY: [True]}


def test_a_denominator_of_exactly_zero_may_be_zero():
    given = inputs([[0.0, 1.0]] * 2, [0, 1], weight=[1.0, -1.0], reduction="mean")
    assert reasons("loss", given) == {ZERO_DENOMINATOR: True}


# --- Wrong results that no bound should allow ---------------------------------------------------------------------


def test_the_gradient_without_its_softmax_is_minus_the_scaled_coefficients():
    given = equal_logits(3, [0, 1, -100], upstream=6.0, weight=[5.0, 7.0], reduction="mean")
    bounds = bounds_of(given)
    (part,) = bounds.vacuous_results("gradient")
    assert part.tolist() == [[-6 / 12 * 5, 0.0], [0.0, -6 / 12 * 7], [0.0, 0.0]]
    (part,) = bounds_of(equal_logits(1, [0], upstream=6.0, weight=[5.0, 7.0])).vacuous_results("gradient")
    assert part.tolist() == [[-30.0, 0.0]]
    assert bounds.vacuous_results("loss") == bounds.vacuous_results("target_gradient") == []


def test_the_gradient_without_its_softmax_gives_no_warning_for_a_denominator_of_zero():
    (part,) = bounds_of(equal_logits(2, [0, 1], weight=[1.0, -1.0], reduction="mean")).vacuous_results("gradient")
    assert not np.isfinite(part).all()


@pytest.mark.parametrize(
    ("logits", "weight", "smoothing", "overflows"),
    [
        ([[2.0**127, 0.0, 0.0], [1.0, 0.0, 0.0]], None, 0.5, [True, False]),  # 3 · 2^127 overflows, 3 does not
        ([[2.0**127, 0.0, 0.0], [1.0, 0.0, 0.0]], None, 0.0, [False, False]),  # without smoothing there is no such sum
        ([[2.0**127, 0.0, 0.0], [1.0, 0.0, 0.0]], [0.25, 0.25, 0.25], 0.5, [False, False]),  # 0.75 · 2^127
        ([[-(2.0**127), 0.0, 0.0], [1.0, 0.0, 0.0]], [0.5, 0.5, 1.0], 0.5, [True, False]),  # 2 · 2^127, of either sign
        ([[0.0, 0.0, 0.0], [0.0, -3.0, -3.0]], [2.0**127] * 3, 0.5, [True, True]),  # 1.5 · 2^128, times log 3 or 3.1
        ([[0.0, 0.0, 0.0], [0.0, -3.0, -3.0]], [2.0**125] * 3, 0.5, [False, True]),  # 0.375 · 2^128, times log 3 or 3.1
    ],
)
def test_a_kernel_that_multiplies_by_the_smoothing_factor_last_overflows_in_the_unscaled_sum(
    logits, weight, smoothing, overflows
):
    """The unscaled sums are `Σ w_c · logsumexp` and `Σ w_c x_c` of a row, before the factor ε/C."""
    given = inputs(logits, [1, 1], weight=weight, label_smoothing=smoothing)
    fused = bounds_of(given, "kernel")
    with np.errstate(all="ignore"):
        of_logits = fused._unshifted()
    assert np.isinf(of_logits.error).tolist() == overflows


def test_stacked_calls_overflow_no_earlier_than_single_calls():
    """The sums before the factor ε/C are 2^127 and 1.5·2^127 in one call. Sums over both calls would overflow."""
    given = inputs([[-(2.0**127), 0.0, 0.0]], [1], weight=[0.5] * 3, label_smoothing=0.5, reduction="sum")
    alone, *together = (bounds_of(given, "kernel") for _ in range(3))
    Bounds.of_calls(together, ["loss"])
    assert np.isfinite(alone.loss)
    assert together[0].loss == together[1].loss == alone.loss
