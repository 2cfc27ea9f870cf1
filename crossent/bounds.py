"""The difference that rounding allows between a form and the exact loss. Derived, never typed in.

For one row with `a = x - max x`, Blanchard, Higham & Higham (IMA J. Numer. Anal. 41(4), 2021) bound the shifted
log-sum-exp by `(C + range) u` (theorem 4.2) and the shifted softmax, relatively, by `(C + 2 + 2·range) u` (theorem
4.3), with `C` terms summed in any order, `range` the spread of the row's finite logits and exp and log within `u`.
Vendor libraries promise one ulp, `2u`, so both stand here twice. Everything after that is the standard model of
rounding, `fl(a ∘ b) = (a ∘ b)(1 + δ)`, `|δ| ≤ u`, counted operation by operation; n roundings in a row are bounded
by `γ(n) = n u / (1 - n u)` (Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: its unit roundoff and its smallest numbers."""

    unit_roundoff: float
    smallest_normal: float
    smallest_subnormal: float

    def gamma(self, roundings: int) -> float:
        """`n u / (1 - n u)`, what n roundings add up to at most."""
        return roundings * self.unit_roundoff / (1 - roundings * self.unit_roundoff)

    def rounding(self, values: Array | float) -> Array:
        """The error of rounding `values` to this format once, gradual underflow included."""
        return np.asarray(self.unit_roundoff * np.abs(values) + self.smallest_subnormal / 2)


# Precision, smallest normal and smallest subnormal number: IEEE 754-2019, table 3.5; bfloat16 has float32's exponents.
FORMATS = {
    "float16": Format(2.0**-11, 2.0**-14, 2.0**-24),
    "bfloat16": Format(2.0**-8, 2.0**-126, 2.0**-133),
    "float32": Format(2.0**-24, 2.0**-126, 2.0**-149),
    "float64": Format(2.0**-53, 2.0**-1022, 2.0**-1074),
}


@dataclass(frozen=True)
class RowTerms:
    """What a bound needs of the exact computation, in float64: R rows of C classes.

    Attributes:
        log_probs: (R, C).
        spread: (R,), the range of the row's finite logits.
        coefficients: (R, C), `w_c q_c`, 0 on ignored rows.
        losses: (R,), 0 on ignored rows.
        denominator: what the sum of losses is divided by; 1 unless the reduction is a mean.
        upstream: (R,), the upstream gradient of each row's loss, before the division.
    """

    log_probs: Array
    spread: Array
    coefficients: Array
    losses: Array
    denominator: float
    upstream: Array

    def _log_prob_error(self, compute: Format) -> Array:
        """Of each log-probability, (R, C): the log-sum-exp, the shift and the last subtraction."""
        classes = self.log_probs.shape[1]
        shared = 2 * compute.gamma(classes + 2) + 2 * compute.unit_roundoff * 2 * self.spread
        return shared[:, None] + compute.unit_roundoff * np.abs(_finite(self.log_probs))

    def loss_bounds(self, compute: Format, storage: Format) -> Array:
        """Of each row's loss, (R,): each class's product, their sum in any order, and the rounding to storage."""
        classes = self.log_probs.shape[1]
        terms = np.abs(self.coefficients) * self._log_prob_error(compute)
        terms += compute.gamma(classes + 5) * np.abs(self.coefficients * _finite(self.log_probs))
        return np.asarray(terms.sum(1) + storage.rounding(_finite(self.losses)))

    def reduced_bound(self, result: float, compute: Format, storage: Format) -> float:
        """Of the sum or the mean: rows and weights are each summed in any order, then divided and rounded."""
        rows = len(self.losses)
        total = self.loss_bounds(compute, compute).sum() + compute.gamma(rows) * np.abs(_finite(self.losses)).sum()
        if self.denominator:
            total = total / abs(self.denominator) + compute.gamma(rows + 2) * abs(np.nan_to_num(result))
        return float(total + storage.rounding(np.nan_to_num(result)))

    def gradient_bounds(self, gradient: Array, compute: Format, storage: Format) -> Array:
        """Of each element of the gradient, (R, C), for `g/D · (p_c Σ v - v_c)`.

        The two terms are rounded apart: eight products and sums at most in each, the softmax, the sum of the
        coefficients, the denominator's sum, and what is lost where the exponential underflows.
        """
        rows, classes = self.log_probs.shape
        scale = np.abs(self.upstream / self.denominator if self.denominator else self.upstream)[:, None]
        total = np.abs(self.coefficients).sum(1, keepdims=True)
        probs = np.exp(self.log_probs)
        relative = 2 * compute.gamma(classes + 2) + 2 * compute.unit_roundoff * 2 * self.spread[:, None]
        relative = np.expm1(relative + self._log_prob_error(compute)) + compute.gamma(rows + classes + 8)
        softmax = scale * total * (probs * relative + 2 * compute.smallest_normal)
        target = scale * np.abs(self.coefficients) * compute.gamma(rows + 8)
        return np.asarray(softmax + target + storage.rounding(_finite(gradient)))


def _finite(values: Array) -> Array:
    """Zeros where an exact value is infinite or NaN: there the comparison is by equality, not by a bound."""
    return np.where(np.isfinite(values), values, 0.0)
