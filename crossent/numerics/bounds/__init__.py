"""The error bounds: the largest error that rounding can cause, for an implementation that keeps a contract.

This room imports numpy, `crossent.numerics.formats` and `crossent.numerics.linear_call`. The room imports neither torch
nor `crossent.numerics.oracle`.

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

To allow one more rounding, change the formula in `intermediates`, `call`, `loss`, `derivatives` or `linear`. To allow
another order of operations, compute both orders in the function that bounds the number. Then return
`intermediates.wider(a, b)`, which has the larger of the two errors. To allow other orders of a sum, pass another
`rounding.Order` to `Computed.sum`. The order of the sum over the rows is `Contract.row_order`. To allow a step for some
implementations only, add a field to `Contract`. To add an operation, add a method to `Computed`. After each change, run
`nox -s mutants figures`, which shows whether the checks then miss a bug.
"""
