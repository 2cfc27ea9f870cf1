r"""The product of a matrix of balls and an exact float64 matrix, with radii far below the rounding error of float64.

The method is the error-free split of K. Ozaki, T. Ogita, S. Oishi and S. M. Rump, "Error-free transformations of matrix
multiplication by using fast routines of matrix multiplication", Numerical Algorithms 59, 2012. A is the sum `hi + lo`
of the matrix of balls, and B is the exact matrix. The code splits `hi` into A₁, A₂ and a rest, and adds `lo` to the
rest to get A'. The code splits B into B₁, B₂ and a rest B'. The numbers of A₁, A₂, B₁ and B₂ have so few bits that
float64 computes the products of these matrices without a rounding error:

    A B = (A₁ + A₂ + A') (B₁ + B₂ + B') = A₁B₁ + A₁B₂ + A₂B₁ + A₂B₂ + (A₁ + A₂) B' + A' B

Proof. Let `u = 2^-53` and `γ_n = n u/(1 - n u)`. A dot product has k terms.

* The split. Let `|v| < 2^E` for all numbers v of a row of `hi`, or of a column of B. Let `β` be the number of bits of
  A₁, and `σ = 1.5·2^(E+52-β)`. For `β ≤ 50`, the sum `v + σ` lies between `2^(E+52-β)` and twice this number, where
  float64 numbers are multiples of `2^(E-β)`. So `t = (v + σ) - σ` is v rounded to a multiple of `2^(E-β)`. The
  subtraction of σ is exact, and `|t| ≤ 2^E`. The rest `v - t` is exact too: v and t are multiples of the last place of
  v, or of `2^(E-β)` if this is smaller, and `|v - t| ≤ |v|`.
* The products without an error. Let `2^F` be the limit for a column of B. The terms of a dot product are multiples of
  `g = 2^(E-β) 2^(F-β)`, and at most `2^(2β) g`. If `2β + log₂ k ≤ 53`, every partial sum is a multiple of g and at most
  `2^53 g`. So every partial sum is a float64 number, in any order of the additions, with or without fused
  multiply-adds. The code takes the largest such β.
* The radii of A. If a matrix differs from A by at most R, element by element, its product with B differs from `A B` by
  at most `R |B|`.
* The other products. In float64, `A' B` and `(A₁ + A₂) B'` have errors of at most `γ_k |A'| |B|` and
  `γ_k |A₁ + A₂| |B'|` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2). A' and `A₁ + A₂`
  are rounded once, so the code uses `γ_{k+1}`.
* The sum. `two_sum` adds the four exact products, and returns three exact errors. Float64 adds these errors and the
  other two products. These 4 additions have an error of at most `γ_4` times the sum of the 5 magnitudes. A last
  `two_sum` returns the result as a pair `hi + lo`, without an error.
* Underflow adds at most 2^-1074 for each term of each product. 2^-1000 covers all underflows.

The factor `1 + 2^-20` covers the rounding errors of the radius itself for up to 2^30 terms. ∎
"""

from __future__ import annotations

import numpy as np

from crossent.numerics.formats import Array
from crossent.numerics.oracle.arithmetic import Ball, gamma, two_sum

_MARGIN, _TINY = 1 + 2.0**-20, 2.0**-1000  # for the rounding errors of the radii, and for underflow: see the proof
# The largest radius of an element, divided by the sum of the magnitudes of its terms. One rounding is 2^-53.
_LARGEST_RADIUS = 2.0**-80


def ball_product(a: Ball, b: Array) -> Ball | None:
    """Return the product of the matrix of balls `a`, (m, k), and the exact matrix `b`, (k, n).

    Return None if the radius of an element exceeds about 2^-80 times the sum of the magnitudes of its terms.
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
        relative = gamma(terms + 1)
        radius = (a.radius + relative * np.abs(small)) @ size_b + relative * (np.abs(top) @ np.abs(low))
        radius = (radius + gamma(4) * sum(map(np.abs, lost), np.zeros(hi.shape))) * _MARGIN + _TINY
        if not (radius <= _LARGEST_RADIUS * (np.abs(a.hi) @ size_b) + 2 * _TINY).all():
            return None
        hi, lo = two_sum(hi, sum(lost, np.zeros(hi.shape)))
    return Ball(hi, lo, radius)


def _split(values: Array, bits: int, axis: int) -> tuple[Array, Array]:
    """Return the values, rounded to multiples of `2^(E-β)`, and the exact rest. `bits` is the β of the proof above."""
    exponent = np.frexp(np.abs(values).max(axis, keepdims=True, initial=0.0))[1]
    shift = 1.5 * np.ldexp(1.0, exponent + 52 - bits)
    part = (values + shift) - shift
    return part, values - part
