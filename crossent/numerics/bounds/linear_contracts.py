"""Contracts of a linear cross-entropy: the promises about logits, loss, gradients and dot products."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from crossent.numerics.bounds.contracts import Contract, Grade, Promise, contract
from crossent.numerics.formats import BFLOAT16, Format


@dataclass(frozen=True)
class LinearContract:
    """The promises of an implementation of a linear cross-entropy.

    Attributes:
        loss: The promises about the cross-entropy of the logits. Input, weight and results have the format
            `loss.storage`. Dot products are computed in `loss.compute`.
        logits: The format in which the implementation may keep the logits, or None for `loss.compute`.
        logits_gradient: The format in which the implementation may keep the gradient of the logits, or None for
            `loss.compute`.
        block: The largest number of terms in a block of a dot product, or None for any order. The sums of the blocks
            are added last.
        scales_last: Whether a gradient may be rounded to `loss.storage` before the multiplication by the upstream
            gradient.
        splits: Whether softmax and target may have separate dot products in a gradient.
    """

    loss: Contract
    logits: Format | None = None
    logits_gradient: Format | None = None
    block: int | None = None
    scales_last: bool = False
    splits: bool = False

    @property
    def grade(self) -> Grade:
        """The grade of a subject that keeps this contract."""
        return self.loss.grade

    def storing(self, storage: Format) -> LinearContract:
        """Return this contract for results in the format `storage`."""
        return replace(self, loss=self.loss.storing(storage))

    def roundings(self, terms: int) -> int:
        """Return the largest number of additions that one term of a dot product with `terms` terms goes through."""
        if self.block is None or terms <= self.block:
            return max(terms - 1, 0)
        return self.block - 1 + -(-terms // self.block) - 1

    @property
    def multiplies_exactly(self) -> bool:
        """Whether a product of two numbers of the storage format is exact, except for underflow and overflow."""
        return 2 * self.loss.storage.precision <= self.loss.compute.precision


# The kinds of implementations, each with its promises. The name of a kind, such as "kernel", is also called a promise.
#   eager        made of torch's operations, each in float32 or wider
#   torch        F.linear_cross_entropy: F.linear and then F.cross_entropy, or in chunks with its gradients by hand
#   kernel       a kernel, or a function that works in chunks of rows or classes and computes its gradient by hand
#   fast_kernel  kernel, with the hardware's approximate exp, log and division, as in Triton
LinearPromise = Literal["eager", "torch", "kernel", "fast_kernel"]


@cache
def linear_contract(
    promise: LinearPromise,
    grade: Grade,
    dtype: str,
    *,
    device: str = "cpu",
    rows: int = 0,
    flushes: bool = False,
    block: int | None = None,
    recomputes: bool = False,
) -> LinearContract:
    """Return the contract of a kind of implementation for one dtype of input and weight, at grade A or B.

    Dot products are computed in float32 or wider. In half precision, grade A rounds each result once. Grade B also
    allows rounding the logits and their gradient to the dtype. In float32 and float64, both grades allow the same
    errors.

    torch's order of summation depends on `rows`, the number of rows. `block` is the largest number of terms in a block
    of a dot product, or None for any order. With `flushes`, and for "torch" in bfloat16 on a CPU, subnormal numbers may
    become 0. With `recomputes`, an implementation may compute a logit again, in another order.
    """
    fused = promise in ("kernel", "fast_kernel")
    # torch may use the instruction VDPBF16PS, which treats subnormal numbers as 0 (Intel 64 and IA-32 Architectures
    # Software Developer's Manual, volume 2)
    flushes = flushes or (promise == "torch" and dtype == BFLOAT16.name and device == "cpu")
    wide = contract(promise, "A", dtype, device=device, rows=rows, flushes=flushes)
    # the dot product of a logit has an error as large as `offset` allows
    wide = replace(wide, offset=fused, recomputes=recomputes)
    storage, by_hand = wide.storage, fused or promise == "torch"
    if wide.compute.precision <= storage.precision:
        wide = replace(wide.in_any_order, grade=grade)
        return LinearContract(wide, block=block, scales_last=by_hand, splits=by_hand)
    if grade == "A":
        return LinearContract(wide, block=block, splits=by_hand)
    narrow = contract("torch", "B", dtype, device=device, rows=rows, flushes=flushes) if promise == "torch" else wide
    narrow = replace(narrow, grade="B", recomputes=recomputes)
    # "torch" may not round a gradient and then scale it: small numbers would be lost
    return LinearContract(narrow, storage, storage, block, scales_last=fused, splits=by_hand)


# The promises that a linear cross-entropy lacks, each with the promise that replaces it. "stepwise" needs no entry: a
# linear cross-entropy uses its contract at grade A, which equals the contract of "eager".
_OTHER_NAMES: dict[Promise, LinearPromise] = {"blocked": "eager", "logsumexp": "kernel"}


def linear_contract_of(promise: Promise, grade: Grade, dtype: str, **conditions: Any) -> LinearContract:
    """Return the contract of a linear cross-entropy for any promise, including "blocked", "logsumexp" and "stepwise".

    For "kernel", "fast_kernel" and "logsumexp", a logit may be computed again, in another order. `conditions` are
    keyword arguments of :func:`linear_contract`, such as `device`.
    """
    known = _OTHER_NAMES.get(promise, promise)
    # a kernel need not store the logits
    return linear_contract(known, grade, dtype, recomputes=known in ("kernel", "fast_kernel"), **conditions)
