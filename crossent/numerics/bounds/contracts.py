"""Contracts: the promises of an implementation about its arithmetic.

:mod:`crossent.numerics.bounds.loss` and :mod:`crossent.numerics.bounds.derivatives` turn a contract into error bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Literal

import numpy as np

from crossent.numerics.bounds.rounding import ANY_ORDER, Computed, Order
from crossent.numerics.formats import FLOAT32, FLOAT64, FORMATS, Format, flushing

# The grade that a subject promises, or that a run finds. At grade A, a subject computes in float32, or in float64 for
# float64 logits. At grade B, the subject may also round intermediates to the precision of the logits' dtype. At grade
# F, the results exceed the bounds of both other grades.
Grade = Literal["A", "B", "F"]


@dataclass(frozen=True)
class Functions:
    """The largest errors of exp, log and division in one format. An ulp is a unit in the last place.

    Attributes:
        exp_ulps, log_ulps: The largest distances of exp and log from the exact result, in ulps.
        source: The documentation that states the errors.
        exp_per_unit: For an exp that first multiplies its argument by the rounded constant `log2 e`: the relative error
            of this product, in units of the unit roundoff. Otherwise 0.
        log_absolute: The largest absolute error of log for arguments below two; 0 if `log_ulps` bounds this error too.
        division_ulps: The largest error of a division in ulps; one half if divisions are correctly rounded.
    """

    exp_ulps: float
    log_ulps: float
    source: str
    exp_per_unit: float = 0.0
    log_absolute: float = 0.0
    division_ulps: float = 0.5


_CPU = Functions(1.0, 1.0, "SLEEF's u10 functions, in which torch's CPU kernels compute, and oneMKL's VML HA: 1 ulp")
# NVIDIA states the distance from the correctly rounded result, which itself errs by half an ulp.
_CUDA_DOUBLE = Functions(1.5, 1.5, "CUDA C++ Programming Guide, Mathematical Functions: exp 1 and log 1 ulp, + 1/2")
# The assumed errors on a device, by the format of the computation. "fast" stands for the approximate functions of a
# CUDA device. tests/numerics/test_assumptions.py measures the errors.
FUNCTIONS = {
    ("cpu", "float32"): _CPU,
    ("cpu", "float64"): _CPU,
    ("cuda", "float32"): Functions(
        2.5, 1.5, "CUDA C++ Programming Guide, Mathematical Functions: expf 2 and logf 1 ulp, + 1/2"
    ),
    ("cuda", "float64"): _CUDA_DOUBLE,
    # __expf, and Triton's tl.exp, are ex2.approx of fl(x · fl(log2 e)). The error of the constant is 0.224 u, and the
    # rounding error of the product is u: 1.2241 u together. Triton's `/` is div.full.
    ("fast", "float32"): Functions(
        2.5,
        3.5,
        "PTX ISA: ex2.approx.f32 and div.full.f32 2 ulp, + 1/2. CUDA C++ Programming Guide, Intrinsic Functions: "
        "__logf 2^-21.41 from 0.5 to 2, and 3 ulp elsewhere, + 1/2, as much as logf and lg2.approx.f32 times ln 2",
        exp_per_unit=1.2241,
        log_absolute=2.0**-21.41,
        division_ulps=2.5,
    ),
    ("fast", "float64"): _CUDA_DOUBLE,  # float64 has no approximate instructions
}


@dataclass(frozen=True)
class Contract:
    """The promises of an implementation about its arithmetic.

    Attributes:
        storage: The format of the results, to which the implementation rounds once.
        compute: The format in which the implementation computes.
        functions: The largest errors of exp, log and division in `compute`.
        stored: The format to which the implementation may also round intermediates, or None. The format has the
            precision of float16 or bfloat16, but the largest number of float32. So counts and sums overflow later
            than in float16.
        row_order: The orders in which the implementation may sum over the rows, for the loss and for the denominator.
        fused: Whether the implementation is a kernel. A kernel may sum in blocks, each with its own maximum. A kernel
            may subtract the log-sum-exp of a row, `max + log Σ`, from the logits. The error may then grow with the
            spread of the row (its largest minus its smallest logit). A kernel may multiply the factors of the gradient
            in any order, and by a reciprocal where torch divides.
        offset: Whether the error of a kernel may also grow with a common offset of all logits of a row.
        keeps_logsumexp: Whether the implementation may also round the log-sum-exp of a row to `stored`.
        keeps_probs: Whether the implementation may, for the gradient, also round the probabilities `p`, and `p` minus
            the target, to `stored`.
        of_probability: Whether the implementation may take the logarithm of a computed probability.
        in_target_format: Whether the implementation may smooth float32 class probabilities in float32, even with
            float64 logits.
        recomputes: For a linear cross-entropy: whether the implementation may compute a logit a second time, with
            another order of additions.
    """

    grade: Grade
    storage: Format
    compute: Format
    functions: Functions
    stored: Format | None = None
    row_order: Order = ANY_ORDER
    fused: bool = False
    offset: bool = False
    keeps_logsumexp: bool = False
    keeps_probs: bool = False
    of_probability: bool = False
    in_target_format: bool = False
    recomputes: bool = False

    def __hash__(self) -> int:
        return self._hash  # contracts are keys of many dictionaries

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @cache  # noqa: B019  # there are few contracts
    def storing(self, format: Format) -> Contract:
        """Return a copy of this contract for results of another format."""
        return replace(self, storage=flushing(format) if self.compute.flushes else format)

    @cached_property
    def in_any_order(self) -> Contract:
        """A copy of this contract that allows every order of the sum over the rows."""
        return self if self.row_order == ANY_ORDER else replace(self, row_order=ANY_ORDER)

    @property
    def when_compiled(self) -> Contract:
        """The contract of the code that torch.compile generates for a CPU from an implementation with this contract.

        Such code adds up the rows in any order, in float32 or, for float64 logits, in float64. If `stored` is a format,
        this contract already covers every order. Over at most 2^17 rows, the error of a sum of numbers `t` in float32
        is at most `2^17 · 2^-24 Σ|t| = 2^-7 Σ|t|`. If this contract limits the additions of each number to `d`, its
        error bound is at least `d · 2^-11 Σ|t|`, as in half precision. Here `d` is at least 16 for 16 rows or more (see
        `_cascade_depth`). For fewer than 16 rows, `d = 1` is enough.
        """
        return self.in_any_order if self.stored is None else self

    @property
    def unlimited(self) -> Contract:
        """A copy of this contract whose formats have no largest number, so that nothing overflows in them."""
        storage, compute = replace(self.storage, largest=np.inf), replace(self.compute, largest=np.inf)
        stored = None if self.stored is None else replace(self.stored, largest=np.inf)
        return replace(self, storage=storage, compute=compute, stored=stored)

    def keep(self, numbers: Computed) -> Computed:
        """Return `numbers` rounded to the format `stored`; unchanged if `stored` is None."""
        return numbers if self.stored is None else numbers.rounded(self.stored)


# The kinds of implementations, each with its promises. The name of a kind, such as "kernel", is also called a promise.
#   eager        a form made of torch's operations, with the errors of the device where the form runs
#   blocked      as eager, and the form may take the logarithm of a computed probability
#   torch        nn.CrossEntropyLoss: as eager, but on a CPU the sum over float32 or float64 rows has torch's order, and
#                float32 probabilities are smoothed in float32
#   stepwise     as eager, and each step of the gradient, `(p - target) * scale`, is rounded: torch's loss_parallel
#   kernel       a kernel: sums in any order and in blocks, multiplies in any order; exp and log as accurate as CUDA's
#   fast_kernel  as kernel, with the hardware's approximate exp, log and division, as in Triton
#   logsumexp    as kernel, and the full error of `max + log Σ - x_c` is allowed, however far the logits are from zero
Promise = Literal["eager", "blocked", "torch", "stepwise", "kernel", "fast_kernel", "logsumexp"]


@cache
def contract(
    promise: Promise, grade: Grade, dtype: str, *, device: str = "cpu", rows: int = 0, flushes: bool = False
) -> Contract:
    """Return the contract of a kind of implementation, such as "kernel", for one dtype of logits, at grade A or B.

    Grade A: the implementation computes in float32, or in float64 for float64 logits. The implementation sums over
    classes in any order, and rounds once to the dtype of the result. A wider computation keeps this contract too.

    Grade B: the implementation may also round intermediates to the precision of the logits' dtype.

    Ranks. An all-reduce over ranks is a sum in blocks, in some order. "kernel", "fast_kernel" and "logsumexp" allow
    such sums.

    Order of the sum over rows. On a CPU, torch adds blocks of `2^p` rows, with `p = max(4, ⌈log2 rows⌉ // 8)`, then
    blocks of these sums, in eight levels (aten/src/ATen/native/cpu/LossNLL.cpp). With smoothing and with class
    probabilities, torch sums in four levels (aten/src/ATen/native/cpu/SumKernel.cpp). For float32 and float64 logits on
    a CPU, "torch" limits the additions of each term to the larger number of these two orders. In half precision at
    grade B on a CPU, "eager", "blocked", "torch" and "stepwise" have the limit of the eight levels. An ignored row at
    the end of a block makes the block longer. The check of the loss may then fail, although torch made no mistake. All
    other contracts allow any order: on CUDA, for example, torch adds blocks of rows in the order in which the blocks
    end.

    Offset. Most kernels subtract the log-sum-exp of a row, `max + log Σ`, from the logits. The sum has a rounding error
    of about `u |max|`, for the unit roundoff `u`. If all logits of a row have a large common offset, this error can
    exceed the loss. At grade A, `|max|` counts only up to the spread of the row (its largest minus its smallest logit).
    At grade B, and for "logsumexp" at both grades, the contract allows the full error: rounding the logits once has an
    error of the same size. For "logsumexp" at grade B, the sum may also be rounded to the precision of the logits, as
    `torch.logsumexp` does.

    Steps. A backward pass may compute `(exp(log p) - hot) * scale`, with the one-hot target `hot`, as separate torch
    operations. Each operation rounds to the dtype of the logits. "stepwise" allows these roundings at grade B.

    With `flushes`, the implementation may flush subnormal numbers to 0.
    """
    storage = flushing(FORMATS[dtype]) if flushes else FORMATS[dtype]
    fused = promise in ("kernel", "fast_kernel", "logsumexp")
    # Other devices count as CUDA, since nobody has measured their exp and log.
    kind = "cpu" if device == "cpu" and not fused else "cuda"
    kind = "fast" if promise == "fast_kernel" else kind
    wide_enough = FLOAT64 if dtype == FLOAT64.name else FLOAT32
    compute = flushing(wide_enough) if flushes else wide_enough
    functions = FUNCTIONS[kind, compute.name]
    wide = Contract("A", storage, compute, functions, fused=fused, offset=promise == "logsumexp")
    wide = replace(wide, of_probability=promise == "blocked", in_target_format=promise == "torch")
    if promise == "torch" and kind == "cpu" and storage is compute:
        wide = replace(wide, row_order=Order(max(_cascade_depth(rows), _sum_depth(rows))))
    if grade == "A":
        return wide
    wide = replace(wide, grade="B", offset=fused)
    wide = replace(wide, keeps_logsumexp=promise == "logsumexp", keeps_probs=promise == "stepwise")
    if storage.precision >= FLOAT32.precision:
        return wide  # the format of the computation is not wider than the format of the logits
    stored = replace(storage, name=f"{dtype} precision", largest=FLOAT32.largest)
    order = Order(_cascade_depth(rows)) if kind == "cpu" else ANY_ORDER
    return replace(wide, stored=stored, row_order=order)


def _cascade_depth(rows: int) -> int:
    """Return the most additions that a row's loss goes through in torch's nll_loss on a CPU, without ignored rows."""
    levels, block = 8, 2 ** max(4, rows.bit_length() // 8)
    depth = used = 0
    while rows > 1 and used < levels:
        depth += min(block, rows)
        rows = -(-rows // block)
        used += 1
    return depth + rows + used  # the sums that are left at the top level, and the sum over the levels


def _sum_depth(rows: int) -> int:
    """Return the largest number of additions that a term goes through in torch's sum on a CPU.

    torch adds in four levels. Level one adds blocks of `2^p` terms, with `p = max(4, ⌈log2 rows⌉ // 4)`. Levels two and
    three add blocks of `2^p` sums of the level before. Level four adds the remaining sums. Then torch adds the sums of
    the four levels. torch computes four such totals side by side, adds the last terms (fewer than four) to one total,
    and adds the totals. Last, torch adds the lanes of a vector (16 at most), and the terms that fill no vector.
    """
    block = 1 << max(4, max(rows - 1, 1).bit_length() // 4)
    return 3 * block + -(-rows // block**3) + 3 + (3 + 3) + (16 + 16)
