"""The error bounds: the largest error that rounding can cause, for an implementation that keeps a contract.

This room imports neither torch nor `crossent.numerics.oracle`. CONTRIBUTING.md says how to allow one more rounding, or
another order of operations.

rounding          Computed: a computed number with its error bound, and the rules of rounding-error analysis
contracts         Contract: the promises of an implementation about its arithmetic
terms             Terms: the arguments of a call, or of several calls of the same structure, as rows of numbers
inexact_logits    the softmax and its error bound, for logits that an implementation computes itself
intermediates     softmax, coefficients (class weight times smoothed target) and denominator, with their error bounds
call              CallBounds: the intermediates that all bounds share, and the computation of several calls together
loss              Bounds: the error bounds of the loss and of the gradients
derivatives       DerivativeBounds: the error bounds of the derivatives along a direction
linear_contracts  LinearContract: the promises of a linear cross-entropy
linear            LinearBounds: the error bounds of a linear cross-entropy, and of its gradients
unbounded         the reasons for infinite bounds
"""
