"""Contracts: what an implementation promises about its arithmetic.

In which format it computes, how far its exp, log and division may be off, in which orders it may sum and what it stores
in between. :mod:`crossent.numerics.bounds.loss` turns a contract into the bounds of a call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from crossent.numerics.bounds.rounding import ANY_ORDER, Held, Order
from crossent.numerics.formats import FLOAT32, FLOAT64, FORMATS, Format

# What a subject is held to, and what it reaches: A, float32 or better inside; B, the precision of its dtype inside; F,
# neither.
Grade = Literal["A", "B", "F"]


@dataclass(frozen=True)
class Functions:
    """How far exp, log and division may be off in one format, in units in the last place, and whose word that is.

    Attributes:
        exp_ulps, log_ulps: of the exact result, not of the correctly rounded one.
        source: who says so.
        exp_per_unit: exp scales its argument first, by a rounded constant: by how many roundings it is then off.
        log_absolute: how far log may be off where its argument is below two, whatever the result.
        division_ulps: one half where division is correctly rounded.
    """

    exp_ulps: float
    log_ulps: float
    source: str
    exp_per_unit: float = 0.0
    log_absolute: float = 0.0
    division_ulps: float = 0.5


_CPU = Functions(1.0, 1.0, "SLEEF's u10 functions, in which torch's CPU kernels compute, and oneMKL's VML HA: 1 ulp")
# NVIDIA states the distance from the correctly rounded result, which itself is off by half an ulp.
_CUDA_DOUBLE = Functions(1.5, 1.5, "CUDA C++ Programming Guide, Mathematical Functions: exp 1 and log 1 ulp, + 1/2")
# What is assumed on a device, in the format that is computed in; tests/numerics/test_assumptions.py measures it.
FUNCTIONS = {
    ("cpu", "float32"): _CPU,
    ("cpu", "float64"): _CPU,
    ("cuda", "float32"): Functions(
        2.5, 1.5, "CUDA C++ Programming Guide, Mathematical Functions: expf 2 and logf 1 ulp, + 1/2"
    ),
    ("cuda", "float64"): _CUDA_DOUBLE,
    # __expf, and Triton's tl.exp, are ex2.approx of fl(x · fl(log2 e)). The constant is off by 0.224 u and the product
    # by u: 1.2241 u. Triton's `/` is div.full.
    ("fast", "float32"): Functions(
        2.5,
        3.5,
        "PTX ISA: ex2.approx.f32 and div.full.f32 2 ulp, + 1/2. CUDA C++ Programming Guide, Intrinsic Functions: "
        "__logf 2^-21.41 from 0.5 to 2, and 3 ulp elsewhere, + 1/2, as much as logf and lg2.approx.f32 times ln 2",
        exp_per_unit=1.2241,
        log_absolute=2.0**-21.41,
        division_ulps=2.5,
    ),
    ("fast", "float64"): _CUDA_DOUBLE,  # there are no approximate instructions
}


@dataclass(frozen=True)
class Contract:
    """What an implementation promises about its arithmetic.

    Attributes:
        grade: what a subject reaches that keeps it.
        storage: the format of the logits, and of the results, which are rounded to it once.
        compute: the format of every intermediate.
        functions: how far its exp and log may be off.
        stored: the precision to which intermediates are rounded as well, or None where they are not. It has float32's
            range: to overflow in a count or in a sum whose mean is small is no matter of precision.
        row_order: in which orders the rows' losses may be summed.
        fused: whether it may take the sum in blocks, each with its own maximum, and `max + log Σ` off the logits. What
            that costs depends on how far a row spreads, not on how far it is from zero:
        offset: whether it may depend on that too, where it is fused.
        of_probability: whether it may take the logarithm of a probability that is held, which is not near underflow.
        in_target_format: whether target probabilities are smoothed in their own dtype, as torch does it.
    """

    grade: Grade
    storage: Format
    compute: Format
    functions: Functions
    stored: Format | None = None
    row_order: Order = ANY_ORDER
    fused: bool = False
    offset: bool = False
    of_probability: bool = False
    in_target_format: bool = False

    @property
    def unlimited(self) -> Contract:
        """The same in formats in which nothing overflows."""
        storage, compute = replace(self.storage, largest=np.inf), replace(self.compute, largest=np.inf)
        stored = None if self.stored is None else replace(self.stored, largest=np.inf)
        return replace(self, storage=storage, compute=compute, stored=stored)

    def keep(self, held: Held) -> Held:
        """An intermediate, as it is held between two steps."""
        return held if self.stored is None else held.rounded(self.stored)


# Who promises what:
#   eager       a form made of torch's operations, on the device where it runs
#   blocked     the form made of blocks: the same, and it may take the logarithm of the probability that it holds
#   torch       nn.CrossEntropyLoss: on a CPU its own order of summation, on CUDA any, in half precision too
#   kernel      somebody's kernel: float32 inside, any order and blocks, one rounding; exp and log as good as CUDA's
#   fast_kernel the same with the hardware's approximate exp, log and division, as in Triton
Promise = Literal["eager", "blocked", "torch", "kernel", "fast_kernel"]


def contract(promise: Promise, grade: Grade, dtype: str, *, device: str = "cpu", rows: int = 0) -> Contract:
    """What `promise` means for one dtype of logits, at grade A or B.

    Grade A: intermediates in at least float32, any order of summation, one rounding to the result's dtype.

    Grade B: intermediates rounded to the dtype of the logits.

    torch on a CPU adds up blocks of `2^p` rows, `p = max(4, log2(rows)/8)`, then blocks of such sums, in eight levels
    (aten/src/ATen/native/cpu/LossNLL.cpp). That is what it is held to: where a row that should close a block is
    ignored, the block goes on growing, which is a finding. With smoothing and with probabilities it is the sum of
    SumKernel.cpp, in four levels. On CUDA, where blocks of rows are added to the result in storage precision as they
    come, any order.

    Most kernels take `max + log Σ` off the logits, which rounds by `u |max|`: no more than if each logit were known to
    a rounding only, but a common offset drowns the row. At grade A that may cost what it does where a row spans zero,
    and an offset nothing; at grade B it may cost what it does.
    """
    storage = FORMATS[dtype]
    kind = {"kernel": "cuda", "fast_kernel": "fast"}.get(promise, "cuda" if device.startswith("cuda") else "cpu")
    compute = FLOAT64 if storage is FLOAT64 else FLOAT32
    fused = promise in ("kernel", "fast_kernel")
    functions = FUNCTIONS[kind, compute.name]
    wide = Contract("A", storage, compute, functions, fused=fused)
    wide = replace(wide, of_probability=promise == "blocked", in_target_format=promise == "torch")
    if promise == "torch" and kind == "cpu" and storage is compute:
        wide = replace(wide, row_order=Order(max(_cascade_depth(rows), _sum_depth(rows))))
    if grade == "A":
        return wide
    wide = replace(wide, grade="B", offset=fused)
    if storage.precision >= FLOAT32.precision:
        return wide  # nothing is narrower than what it computes in
    stored = replace(storage, name=f"{dtype} precision", largest=FLOAT32.largest)
    order = Order(_cascade_depth(rows)) if kind == "cpu" else ANY_ORDER
    return replace(wide, stored=stored, row_order=order)


def _cascade_depth(rows: int) -> int:
    levels, block = 8, 2 ** max(4, rows.bit_length() // 8)
    depth = used = 0
    while rows > 1 and used < levels:
        depth += min(block, rows)
        rows = -(-rows // block)
        used += 1
    return depth + rows + used  # what is left at the top, and the levels' own sum at the end


def _sum_depth(rows: int) -> int:
    """Of torch's sum on a CPU: blocks of `2^p` terms in three levels, `p = max(4, log2(rows)/4)`, and the rest.

    Then come the four levels, the four accumulators, the lanes of a vector, 16 at most, and what fills none of these.
    """
    block = 1 << max(4, max(rows - 1, 1).bit_length() // 4)
    return 3 * block + -(-rows // block**3) + 3 + (3 + 3) + (16 + 16)
