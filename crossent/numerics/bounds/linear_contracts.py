"""Contracts of a linear cross-entropy: the promises about its logits, their cross-entropy, and the dot products."""

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
        loss: The promises about the cross-entropy of the logits. `loss.storage` is the format of input, weight and
            results, and `loss.compute` the format in which an implementation computes the dot products.
        logits: The format in which the implementation may keep the logits, or None for `loss.compute`.
        logits_gradient: The format in which the implementation may keep the gradient of the logits, or None for
            `loss.compute`.
        block: None if an implementation may add the terms of a dot product in any order. Otherwise, the implementation
            adds blocks of at most this many terms, and then the sums of the blocks.
        scales_last: Whether an implementation may round a gradient to `loss.storage` before it multiplies by the
            upstream gradient.
        splits: Whether an implementation may compute separate dot products for the two terms of the logits' gradient,
            softmax and target.
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
        """Return a copy of this contract for results in the format `storage`."""
        return replace(self, loss=self.loss.storing(storage))

    def roundings(self, terms: int) -> int:
        """Return the largest number of additions that one term goes through in a dot product of `terms` terms."""
        if self.block is None or terms <= self.block:
            return max(terms - 1, 0)
        return self.block - 1 + -(-terms // self.block) - 1

    @property
    def multiplies_exactly(self) -> bool:
        """Whether the product of two numbers of the storage format is exact, unless it underflows or overflows."""
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

    At both grades, an implementation computes every dot product in float32 or wider, and in float64 for the dtype
    float64. The same holds for every sum of the loss and of a gradient. The implementation may sum in any order (but
    see `block`), with or without fused multiply-adds, and in chunks of rows and of classes. The sums over chunks must
    be in the same formats. In half precision, "torch" at grade B has exceptions: see below. For every promise but
    "eager", the implementation may compute separate dot products for softmax and target.

    Grade A: the implementation keeps the logits and their gradient in the format of the dot products, and rounds each
    result once.

    Grade B: the implementation may also round the logits to the dtype, before and after the addition of the bias. The
    implementation may round the gradient of the logits to the dtype too. A kernel may round a gradient to the dtype
    before the multiplication by the upstream gradient. For the promise "torch", the implementation may also round every
    intermediate of the cross-entropy to the dtype, as torch does on a CPU. Two of these intermediates are sums over
    rows: the total loss, and the denominator. On a CPU, the order of these two sums is then limited: see
    :func:`crossent.numerics.bounds.contracts.contract`.

    In float32 and float64, both grades allow the same errors, since the computation is not wider than the dtype. A sum
    over rows may have any order. For every promise but "eager", the implementation may also multiply a gradient by the
    upstream gradient last, after rounding the gradient.

    Two rules for "torch" hold at both grades. In half precision, "torch" forbids a rounding before the multiplication
    by the upstream gradient. The rounding would lose small numbers that loss scaling saves. In bfloat16 on a CPU,
    "torch" allows a matrix product that treats subnormal numbers as 0. The instruction VDPBF16PS does this (Intel 64
    and IA-32 Architectures Software Developer's Manual, volume 2).

    The promises "kernel" and "fast_kernel" allow the full error of `max + log Σ - z_c`, the log-sum-exp minus a logit.
    This error grows with the distance of the logits from zero. The dot product of a logit, which every implementation
    computes, has an error of the same size.

    Args:
        promise: The kind of implementation.
        grade: "A" or "B".
        dtype: The dtype of input and weight.
        device: The device, such as "cpu" or "cuda:0".
        rows: The number of rows, on which torch's order of summation depends.
        flushes: Whether the implementation may flush subnormal numbers to 0.
        block: The size of the blocks in which the implementation adds a dot product, or None for any order: see
            :class:`LinearContract`.
        recomputes: Whether the implementation may compute a logit again, in another order. Kernels that store no logits
            between loss and gradient do this.
    """
    fused = promise in ("kernel", "fast_kernel")
    flushes = flushes or (promise == "torch" and dtype == BFLOAT16.name and device == "cpu")
    wide = contract(promise, "A", dtype, device=device, rows=rows, flushes=flushes)
    wide = replace(wide, offset=fused, recomputes=recomputes)
    storage, by_hand = wide.storage, fused or promise == "torch"
    if wide.compute.precision <= storage.precision:
        wide = replace(wide.in_any_order, grade=grade)
        return LinearContract(wide, block=block, scales_last=by_hand, splits=by_hand)
    if grade == "A":
        return LinearContract(wide, block=block, splits=by_hand)
    narrow = contract("torch", "B", dtype, device=device, rows=rows, flushes=flushes) if promise == "torch" else wide
    narrow = replace(narrow, grade="B", recomputes=recomputes)
    return LinearContract(narrow, storage, storage, block, scales_last=fused, splits=by_hand)


# The promises that a linear cross-entropy lacks, each with the promise that replaces it. "stepwise" needs no entry: a
# linear cross-entropy uses its contract at grade A, which equals the contract of "eager".
_OTHER_NAMES: dict[Promise, LinearPromise] = {"blocked": "eager", "logsumexp": "kernel"}


def linear_contract_of(promise: Promise, grade: Grade, dtype: str, **conditions: Any) -> LinearContract:
    """Return the contract of a linear cross-entropy for any promise of :mod:`crossent.numerics.bounds.contracts`.

    The promise "blocked" becomes "eager", and "logsumexp" becomes "kernel". "stepwise" gives the same contract as
    "eager". A kernel need not store the logits, so the contract of a kernel allows computing a logit again for the
    gradient.

    Args:
        promise: The kind of implementation.
        grade: "A" or "B".
        dtype: The dtype of input and weight.
        conditions: Other arguments of :func:`linear_contract`, except `recomputes`.
    """
    known = _OTHER_NAMES.get(promise, promise)
    return linear_contract(known, grade, dtype, recomputes=known in ("kernel", "fast_kernel"), **conditions)
