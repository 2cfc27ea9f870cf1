"""Test the product of two matrices that is far more accurate than float64: the errors are within the radius."""

from fractions import Fraction

import numpy as np
import pytest

from crossent.numerics.oracle import products
from crossent.numerics.oracle.arithmetic import Ball
from crossent.numerics.oracle.products import ball_product


def ball(values, low=None, radius=0.0):
    low = np.zeros(values.shape) if low is None else low
    return Ball(values, low, np.full(values.shape, radius))


def fractions(values):
    return [[Fraction(float(number)) for number in row] for row in values]


def exact(a, b):
    """Return the exact product as fractions."""
    high, low, factor = fractions(a.hi), fractions(a.lo), fractions(b)
    rows = [[one + two for one, two in zip(*pair, strict=True)] for pair in zip(high, low, strict=True)]
    return [
        [sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*factor, strict=True)] for row in rows
    ]


def shares(a, b):
    """Yield the share of the radius, error ÷ radius, of each element of the product."""
    product = ball_product(a, b)
    assert product is not None
    for row, expected in enumerate(exact(a, b)):
        for column, value in enumerate(expected):
            found = Fraction(float(product.hi[row, column])) + Fraction(float(product.lo[row, column]))
            yield float(abs(found - value) / Fraction(float(product.radius[row, column])))


def drawn(random, m, k, n, *, largest_exponent=0):
    """Return two random factors: a ball with a low part, (m, k), and an array, (k, n).

    Random powers of two, from `2^-largest_exponent` to `2^largest_exponent`, scale the numbers.
    """
    a, b = random.standard_normal((m, k)), random.standard_normal((k, n))
    a, b = (np.ldexp(x, random.randint(-largest_exponent, largest_exponent + 1, x.shape)) for x in (a, b))
    return ball(a, a * random.uniform(-1, 1, a.shape) * 2.0**-54), b


@pytest.mark.parametrize("sizes", [(3, 1, 4), (3, 2, 4), (4, 63, 3), (2, 64, 5), (2, 65, 2), (1, 1000, 1)])
@pytest.mark.parametrize("largest_exponent", [0, 3])
def test_the_radius_holds(sizes, largest_exponent):
    random = np.random.RandomState(0)
    worst = [max(shares(*drawn(random, *sizes, largest_exponent=largest_exponent))) for _ in range(10)]
    assert max(worst) <= 1


def test_the_radius_is_far_below_a_rounding_of_float64():
    a, b = drawn(np.random.RandomState(0), 5, 40, 6)
    assert (ball_product(a, b).radius <= 2.0**-90 * (np.abs(a.hi) @ np.abs(b))).all()


def test_numbers_that_cancel_keep_what_is_left():
    a = ball(np.array([[1.0, 2.0**-60, -1.0]]), np.array([[2.0**-70, 0.0, 0.0]]))
    product = ball_product(a, np.array([[1.0 + 2.0**-50], [1.0], [1.0]]))
    expected = 2.0**-50 + 2.0**-60 + 2.0**-70 * (1 + 2.0**-50)
    assert product.hi[0, 0] + product.lo[0, 0] == expected
    assert product.radius[0, 0] < 2.0**-100


def test_with_more_bits_in_a_part_the_products_of_parts_are_rounded(monkeypatch):
    """The test adds three bits, because sums of a few random numbers need fewer bits than the largest possible sum."""
    random, split = np.random.RandomState(0), products._split
    a, b = ball(random.uniform(1, 2, (20, 64))), random.uniform(1, 2, (64, 20))
    assert max(shares(a, b)) <= 1
    monkeypatch.setattr(products, "_split", lambda values, bits, axis: split(values, bits + 3, axis))
    assert max(shares(a, b)) > 1


def test_a_part_and_the_rest_are_exact_and_the_part_has_few_bits():
    values = np.ldexp(
        np.random.RandomState(0).standard_normal((6, 50)), np.random.RandomState(1).randint(-30, 1, (6, 50))
    )
    part, rest = products._split(values, 20, 1)
    for whole, one, other in zip(fractions(values), fractions(part), fractions(rest), strict=True):
        assert [x + y for x, y in zip(one, other, strict=True)] == whole
        largest = max(abs(x) for x in whole)
        exponent = int(np.frexp(float(largest))[1])
        unit = Fraction(2) ** (exponent - 20)
        assert all(x % unit == 0 for x in one)
        assert all(abs(x) <= unit / 2 for x in other)


def test_a_product_that_is_too_inexact_is_none():
    a = ball(np.array([[1.0, 2.0**-60, 2.0**-120 / 3]]))
    assert ball_product(a, np.array([[0.0], [0.0], [1 / 3]])) is None  # zeros hide the large numbers of the row
    assert ball_product(ball(np.array([[1e300]])), np.array([[1e300]])) is None
    assert ball_product(ball(np.array([[1.0]]), radius=2.0**-60), np.array([[1.0]])) is None


def test_a_radius_of_a_factor_reaches_the_product():
    product = ball_product(ball(np.array([[1.0, 2.0]]), radius=2.0**-90), np.array([[3.0], [-5.0]]))
    assert product.radius[0, 0] >= 8 * 2.0**-90


def test_a_product_without_terms_or_rows_is_empty_or_zero():
    assert ball_product(ball(np.zeros((2, 0))), np.zeros((0, 3))).hi.tolist() == [[0.0] * 3] * 2
    assert ball_product(ball(np.zeros((0, 2))), np.zeros((2, 3))).hi.shape == (0, 3)
