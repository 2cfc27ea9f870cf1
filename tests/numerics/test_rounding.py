"""Compare the rules of `Computed` with rounded arithmetic: no error exceeds its bound, and no bound is too wide."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from crossent.numerics.bounds.rounding import ANY_ORDER, Computed, Order, safe
from crossent.numerics.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, FORMATS, flushing

NUMPY = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
HALF_AND_SINGLE = (FLOAT16, BFLOAT16, FLOAT32)


def numbers(seed, shape, spread=4):
    """Return random float64 numbers of both signs, with magnitudes from about 10^-spread to 10^spread."""
    random = np.random.RandomState(seed)
    return random.standard_normal(shape) * 10.0 ** random.uniform(-spread, spread, shape)


def random_computed(format, seed, shape, spread=2):
    return Computed.exactly(format.nearest(numbers(seed, shape, spread)), format)


def exact_error(got, exact):
    """Return the error of each computed number in `got`. `exact` has the exact results as fractions."""
    return np.array([abs(float(Fraction(float(g)) - e)) for g, e in zip(got, exact, strict=True)])


def fractions(values):
    return [Fraction(float(value)) for value in values]


@pytest.mark.parametrize("name", NUMPY)
def test_nearest_rounds_like_numpy(name):
    values = np.concatenate(
        [numbers(1, 20000, 12), [0.0, -0.0, np.inf, -np.inf, np.nan, 65519.0, 65520.0, 2.0**-25, 3 * 2.0**-25]]
    )
    with np.errstate(over="ignore"):
        assert np.array_equal(
            FORMATS[name].nearest(values), values.astype(NUMPY[name]).astype(np.float64), equal_nan=True
        )


def test_nearest_in_bfloat16_keeps_the_top_half_of_a_float32():
    values = np.float32(numbers(2, 20000, 12)).astype(np.float64)
    bits = values.astype(np.float32).view(np.uint32)
    even = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    assert np.array_equal(BFLOAT16.nearest(values), even.astype(np.float64))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("format", [FLOAT16, flushing(FLOAT16)], ids=["keeps", "flushes"])
@pytest.mark.parametrize("operation", ["rounded", "plus", "minus", "times", "over"])
def test_no_error_near_underflow_exceeds_its_bound(operation, format, known):
    """The operands have large errors, so that only some of the possible results are below the smallest normal number.

    Both operands are near the square root of the smallest normal number for `times`. The second operand is near 1, and
    often a power of two, for `over`. Each operand is at an end of its range, or inside.
    """
    random, count, small = np.random.RandomState(8), 40_000, format.smallest_normal
    scale = {"times": (small**0.5, small**0.5), "over": (small, 1.0)}.get(operation, (small, small))
    operands, actual = [], []
    for size in scale:
        value = random.uniform(0.5, 4.0, count) * random.choice([-1.0, 1.0], count) * size
        value = np.where(random.rand(count) < 0.3, np.copysign(2.0 ** np.round(np.log2(np.abs(value))), value), value)
        error = np.where(random.rand(count) < 0.4, 0.0, random.uniform(0.0, 0.9, count) * np.abs(value))
        value, error = format.nearest(value), np.float64(np.float32(error))
        inside = value + error * random.choice([-1.0, 1.0, *random.uniform(-1.0, 1.0, 3)], count)
        if operation != "rounded":  # the operand is a number of the format
            inside = format.nearest(inside)
            error = np.where(error > 0, np.maximum(error, np.abs(inside - value)), 0.0)
            inside = np.where(error > 0, inside, value)
        operands.append(Computed(value, error, FLOAT64 if operation == "rounded" else format))
        actual.append(inside)
    (one, other), (a, b) = operands, actual
    bounds = {
        "rounded": lambda: one.rounded(format),
        "plus": lambda: one.plus(other, format),
        "minus": lambda: one.minus(other, format),
        "times": lambda: one.times(other, format, known=known),
        "over": lambda: one.over(other, format, known=known),
    }[operation]()
    result = {"rounded": a, "plus": a + b, "minus": a - b, "times": a * b, "over": a / b}[operation]
    got = format.nearest(result)
    got = np.where(format.flushes & (np.abs(got) < small), 0.0, got)
    assert (np.abs(got - bounds.value) <= safe(bounds.error)).all()


@pytest.mark.parametrize("format", HALF_AND_SINGLE, ids=lambda f: f.name)
@pytest.mark.parametrize("operation", ["plus", "minus", "times", "over"])
def test_the_error_of_one_operation_on_known_numbers_is_known_exactly(format, operation):
    a, b = random_computed(format, 3, 5000), random_computed(format, 4, 5000)
    exact = {
        "plus": Fraction.__add__,
        "minus": Fraction.__sub__,
        "times": Fraction.__mul__,
        "over": Fraction.__truediv__,
    }
    computed = getattr(a, operation)(b, format)
    true = [exact[operation](x, y) for x, y in zip(fractions(a.value), fractions(b.value), strict=True)]
    with np.errstate(over="ignore"):
        got = format.nearest(
            np.array([float(value) for value in true])
        )  # rounding to float64 first does not change the result
    finite = np.isfinite(got) & np.isfinite(computed.error)
    assert finite.mean() > 0.9
    error = exact_error(got[finite], [value for value, ok in zip(true, finite, strict=True) if ok])
    assert (error <= safe(computed.error[finite]) + 2.0**-52 * np.abs(computed.value[finite])).all()
    # The operands are known, so the bound equals the error.
    assert (computed.error[finite] <= error + 2.0**-50 * np.abs(computed.value[finite])).all()


@pytest.mark.parametrize("operation", ["plus", "minus", "times", "over"])
def test_float64_operations_stay_within_their_bound(operation):
    a, b = Computed.exactly(numbers(5, 5000), FLOAT64), Computed.exactly(numbers(6, 5000), FLOAT64)
    exact = {
        "plus": Fraction.__add__,
        "minus": Fraction.__sub__,
        "times": Fraction.__mul__,
        "over": Fraction.__truediv__,
    }
    numpys = {"plus": np.add, "minus": np.subtract, "times": np.multiply, "over": np.divide}
    true = [exact[operation](x, y) for x, y in zip(fractions(a.value), fractions(b.value), strict=True)]
    error = exact_error(numpys[operation](a.value, b.value), true)
    assert (error <= safe(getattr(a, operation)(b, FLOAT64).error)).all()


@pytest.mark.parametrize("operation", ["plus", "minus", "times", "over"])
def test_errors_of_the_operands_are_carried_through(operation):
    random = np.random.RandomState(7)
    a, b = random_computed(FLOAT32, 8, 5000), random_computed(FLOAT32, 9, 5000)
    wrong = [Computed(x.value, np.abs(x.value) * 10.0 ** random.uniform(-6, -1, 5000), None) for x in (a, b)]
    perturbed = [x.value + x.error * random.choice([-1, 1], 5000) for x in wrong]
    numpys = {"plus": np.add, "minus": np.subtract, "times": np.multiply, "over": np.divide}
    computed = getattr(wrong[0], operation)(wrong[1], FLOAT32)
    error = np.abs(FLOAT32.nearest(numpys[operation](*perturbed)) - computed.value)
    assert (error <= safe(computed.error)).all()
    assert (error / computed.error).max() > 0.9


def test_exp_and_log_carry_the_error_of_their_argument():
    random = np.random.RandomState(10)
    x = Computed(random.uniform(-80, 0, 5000), 10.0 ** random.uniform(-7, -1, 5000), None)
    computed = x.exp(FLOAT32, ulps=1.0)
    for sign in (-1, 1):
        error = np.abs(FLOAT32.nearest(np.exp(x.value + sign * x.error)) - np.exp(x.value))
        assert (error <= safe(computed.error)).all()
    s = Computed(1 + 10.0 ** random.uniform(-6, 3, 5000), 10.0 ** random.uniform(-7, -2, 5000), None)
    logarithm = s.log(FLOAT32, ulps=1.0, value=np.log(s.value))
    for sign in (-1, 1):
        argument = np.maximum(s.value + sign * s.error, 1.0)
        error = np.abs(FLOAT32.nearest(np.log(argument)) - np.log(s.value))
        assert (error <= safe(logarithm.error)).all()


def test_exact_results_have_error_0():
    one, zero, lowest = (Computed.exactly([value], FLOAT32) for value in (1.0, 0.0, -np.inf))
    third = Computed.exactly([FLOAT32.nearest(np.array(1 / 3))], FLOAT32)
    assert zero.exp(FLOAT32, 1.0).error == 0
    assert lowest.exp(FLOAT32, 1.0).error == 0
    assert one.log(FLOAT32, 1.0, np.zeros(1)).error == 0
    assert third.times(Computed.exactly([0.25], FLOAT32), FLOAT32).error == 0
    assert third.over(Computed.exactly([8.0], FLOAT32), FLOAT32).error == 0
    assert third.times(zero, FLOAT32).error == 0
    assert third.minus(third, FLOAT32).error == 0
    assert third.rounded(FLOAT64).error == 0


def test_the_error_is_infinite_if_a_result_may_overflow_or_a_divisor_may_be_zero():
    big = Computed.exactly([60000.0], FLOAT16)
    assert big.plus(big, FLOAT16).error == np.inf
    assert big.times(big, FLOAT16).error == np.inf
    assert Computed.exactly([[60000.0, 60000.0]], FLOAT16).sum(FLOAT16).error == np.inf
    assert Computed.exactly([12.0], FLOAT32).exp(FLOAT16, 1.0).error == np.inf
    assert big.over(Computed(np.array([1.0]), np.array([1.0]), None), FLOAT32).error == np.inf
    assert Computed.exactly([0.0], FLOAT32).times(Computed.exactly([np.inf], FLOAT32), FLOAT32).error == np.inf
    assert big.plus(big, FLOAT32).error == 0


def test_a_sum_whose_terms_cancel_may_overflow_on_the_way():
    terms = Computed.exactly([[60000.0, 60000.0, -60000.0, -60000.0]], FLOAT16)
    assert terms.sum(FLOAT16).error == np.inf
    assert terms.sum(FLOAT32).error == 0


def test_an_overflow_of_float64_is_not_an_exact_infinity():
    big, two = Computed.exactly([1.5e308], FLOAT64), Computed.exactly([2.0], FLOAT64)
    for computed in (big.plus(big, FLOAT64), big.minus(-big, FLOAT64), big.times(two, FLOAT64)):
        assert computed.error == np.inf
        assert computed.times(two, FLOAT64).error == np.inf
        assert computed.minus(two, FLOAT64).error == np.inf
    assert big.over(Computed.exactly([0.25], FLOAT64), FLOAT64).error == np.inf
    assert Computed.exactly([[1.5e308, 1.5e308]], FLOAT64).sum(FLOAT64).error == np.inf


def test_the_sizes_of_the_terms_widen_the_error_of_a_sum():
    terms = Computed.exactly(np.full(100, FLOAT32.nearest(np.array(1 / 3))), FLOAT32)
    wide = terms.sum(FLOAT32, sizes=np.full(100, 1000 / 3))
    assert wide.value == terms.value.sum()
    assert 999 < wide.error / terms.sum(FLOAT32).error < 1001


def test_an_infinite_value_is_compared_and_not_bounded():
    infinite = Computed.exactly([np.inf], FLOAT32)
    assert infinite.plus(Computed(np.array([1.0]), np.array([0.5]), FLOAT32), FLOAT32).error == 0
    assert infinite.rounded(FLOAT16).error == 0


def _depths(n):
    """Yield the depths of the leaves, from left to right, for every binary tree with n leaves."""
    if n == 1:
        yield (0,)
        return
    for left in range(1, n):
        for a, b in itertools.product(_depths(left), _depths(n - left)):
            yield tuple(depth + 1 for depth in a + b)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_the_caterpillar_with_its_largest_terms_deepest_is_the_worst_tree(n):
    """Test the claim about sums in any order in the docstring of `Computed.sum`, with every tree of n terms."""
    random = np.random.RandomState(n)
    trees = {
        tuple(sorted(depths, reverse=True)) for depths in _depths(n)
    }  # the worst order has the largest term at the deepest leaf
    for _ in range(50):
        terms = np.sort(random.exponential(size=n) * 10.0 ** random.uniform(0, 6, n))[::-1]
        omega = sum(terms[: j + 1].sum() for j in range(1, n))
        worst = max(float(np.dot(terms, depths)) for depths in trees)
        assert abs(worst - omega) <= 2.0**-50 * omega


def _random_tree_sum(format, terms, random):
    """Return the sum in a random order and association, rounded at each addition."""
    terms = list(terms)
    while len(terms) > 1:
        i, j = random.choice(len(terms), 2, replace=False)
        merged = float(format.nearest(np.asarray(terms[i] + terms[j])))
        terms = [term for at, term in enumerate(terms) if at not in (i, j)] + [merged]
    return terms[0]


@pytest.mark.parametrize("format", [FLOAT16, BFLOAT16, FLOAT32], ids=lambda f: f.name)
def test_sums_in_any_order_stay_within_their_bound(format):
    random = np.random.RandomState(11)
    worst = 0.0
    for trial in range(300):
        n = int(random.choice([2, 3, 5, 17, 60]))
        spread = random.choice([0, 1, 3])
        terms = format.nearest(np.abs(numbers(trial, n, spread))) if trial % 2 else np.full(n, 1 / 3)
        terms = format.nearest(terms)
        computed = Computed.exactly(terms, format).sum(format)
        orders = [_random_tree_sum(format, terms, random) for _ in range(5)]
        running = 0.0
        for term in np.sort(terms)[::-1]:
            running = float(format.nearest(np.asarray(running + term)))
        for got in [*orders, running]:
            error = abs(float(Fraction(got) - sum(fractions(terms))))
            assert error <= safe(computed.error) + 2.0**-52 * computed.value
            worst = max(worst, error / computed.error if computed.error else 0.0)
    assert worst > 0.2, f"the largest share of the bound is {worst}, so the bound is wider than it must be"


def test_a_running_sum_of_equal_terms_comes_near_half_of_its_bound():
    """The error is a fifth of the bound, and over ten times an estimate for independent rounding errors.

    The estimate grows with the root of n.
    """
    n, term = 20000, np.float32(1 / 3)
    got = np.cumsum(np.full(n, term, np.float32))[-1]
    computed = Computed.exactly(np.full(n, float(term)), FLOAT32).sum(FLOAT32)
    error = abs(float(got) - n * float(term))
    assert 10 * np.sqrt(n) * FLOAT32.unit_roundoff * n * float(term) < error <= computed.error


def test_sums_that_need_no_rounding_have_no_error_in_any_order():
    assert Computed.exactly(np.ones(2**11), FLOAT16).sum(FLOAT16).error == 0
    assert Computed.exactly(np.ones(2**11 + 1), FLOAT16).sum(FLOAT16).error > 0
    assert Computed.exactly(np.array([0.5, 0.25, 8.0, 0.0]), BFLOAT16).sum(BFLOAT16).error == 0


def test_with_one_large_term_the_error_does_not_grow_with_the_number_of_small_terms():
    """Test the rule for big and small terms: the error depends on the sum of the small terms, not on their number."""
    peaked = np.concatenate([[1.0], np.full(100_000, 1e-12)])
    computed = Computed(peaked, np.zeros_like(peaked), None).sum(FLOAT32)
    assert computed.error <= 4 * (100_000 * 1e-12 + FLOAT32.unit_roundoff)


def test_a_bounded_depth_is_never_wider_than_any_order():
    terms = np.abs(numbers(13, (50, 64), 1))
    computed = Computed(terms, np.zeros_like(terms), None)
    shallow, any_order = computed.sum(FLOAT32, Order(6)), computed.sum(FLOAT32, ANY_ORDER)
    assert (shallow.error <= any_order.error).all()
    assert (shallow.error < 0.5 * any_order.error).any()
