r"""The product of two matrices of float64 numbers, far more accurate than float64, with a proven error radius.

The method is the error-free split of K. Ozaki, T. Ogita, S. Oishi and S. M. Rump, "Error-free transformations of matrix
multiplication by using fast routines of matrix multiplication", Numerical Algorithms 59, 2012. A matrix is split into
parts with few bits. The product of two parts has no rounding error, so the fast matrix product of float64 is exact.

    A B = (A₁ + A₂ + A') (B₁ + B₂ + B') = A₁B₁ + A₁B₂ + A₂B₁ + A₂B₂ + (A₁ + A₂) B' + A' B

Proof. Write `u = 2^-53`, `γ_n = n u/(1 - n u)`, and k for the number of terms of a dot product.

* A part. Let `|v| < 2^E` for all numbers v of a row, `β` the bits of a part, and `σ = 1.5·2^(E+52-β)`. For `β ≤ 50`,
  the sum `v + σ` lies between `2^(E+52-β)` and twice this number, where float64 numbers are multiples of `2^(E-β)`. So
  `t = (v + σ) - σ` is v rounded to a multiple of `2^(E-β)`, the second step is exact, and `|t| ≤ 2^E`. The rest `v - t`
  is exact too: both are multiples of the last place of v or of `2^(E-β)`, and `|v - t| ≤ |v|`.
* The product of two parts. The terms of a dot product are multiples of `g = 2^(E-β) 2^(F-β)`, and at most `2^(2β) g`.
  If `2β + log k ≤ 53`, every sum of some of the terms is a multiple of g and at most `2^53 g`, so it is a float64
  number. Every order of the additions is exact, with or without fused multiply-adds.
* The other two products are computed in float64, with an error of at most `γ_k |A'| |B|` and `γ_k |A₁ + A₂| |B'|`
  (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2). A' and `A₁ + A₂` are rounded once.
* The four exact products are added by `two_sum`, whose errors are exact. These three errors and the two other products
  are added in float64: 4 additions of 5 numbers, with an error of at most `γ_4` times the sum of their magnitudes.
* An underflow adds at most 2^-1074 for each term of each product. 2^-1000 covers all underflows.

The radius is computed in float64. The factor `1 + 2^-20` covers its roundings for up to 2^30 terms. ∎
"""

from __future__ import annotations

import numpy as np

from crossent.numerics.formats import Array
from crossent.numerics.oracle.arithmetic import UNIT_ROUNDOFF, Ball, two_sum

_MARGIN, _TINY = 1 + 2.0**-20, 2.0**-1000
# The largest radius of a result, as a share of the sum of the magnitudes of its terms: far below one rounding, 2^-53.
_LARGEST_RADIUS = 2.0**-80


def ball_product(a: Ball, b: Array) -> Ball | None:
    """Return the product of a matrix with radii, (m, k), and an exact matrix, (k, n); None if the radii are too large.

    A radius is too large above 2^-80 of the sum of the magnitudes of the terms. This happens if a row of `a`, or a
    column of `b`, has a number far above the numbers that determine the result, or if a number overflows.

    Example:
        >>> a = Ball(np.array([[1.0, 1.0, -1.0]]), np.array([[0.0, 2.0**-60, 0.0]]), np.zeros((1, 3)))
        >>> product = ball_product(a, np.array([[2.0**-70], [1.0], [1.0]]))
        >>> float(product.hi[0, 0]) == 2.0**-60 + 2.0**-70
        True
    """
    terms = a.hi.shape[1]
    bits = (53 - max(terms - 1, 0).bit_length()) // 2
    with np.errstate(all="ignore"):
        a1, rest = _split(a.hi, bits, 1)
        a2, rest = _split(rest, bits, 1)
        b1, low = _split(b, bits, 0)
        b2, low = _split(low, bits, 0)
        top, small, size_b = a1 + a2, rest + a.lo, np.abs(b)
        hi, lost = a1 @ b1, []
        for product in (a1 @ b2, a2 @ b1, a2 @ b2):
            hi, error = two_sum(hi, product)
            lost.append(error)
        lost += [top @ low, small @ b]
        gamma = _gamma(terms + 1)
        radius = (a.radius + gamma * np.abs(small)) @ size_b + gamma * (np.abs(top) @ np.abs(low))
        radius = (radius + _gamma(4) * sum(map(np.abs, lost), np.zeros(hi.shape))) * _MARGIN + _TINY
        if not (radius <= _LARGEST_RADIUS * (np.abs(a.hi) @ size_b) + 2 * _TINY).all():
            return None
        hi, lo = two_sum(hi, sum(lost, np.zeros(hi.shape)))
    return Ball(hi, lo, radius)


def _split(values: Array, bits: int, axis: int) -> tuple[Array, Array]:
    """Return the leading parts of the values, with `bits` bits relative to the largest along an axis; and the rest."""
    exponent = np.frexp(np.abs(values).max(axis, keepdims=True, initial=0.0))[1]
    shift = 1.5 * np.ldexp(1.0, exponent + 52 - bits)
    part = (values + shift) - shift
    return part, values - part


def _gamma(n: int) -> float:
    """Return `γ_n = n u/(1 - n u)`, the relative error of n roundings."""
    return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF)
