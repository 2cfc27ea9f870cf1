"""The error bounds: the largest error that rounding can cause, for an implementation that keeps a contract.

This room imports numpy and `crossent.numerics.formats`. It imports neither torch nor `crossent.numerics.oracle`.

rounding       Held: a computed number with its error bound, and the rules of rounding-error analysis
contracts      Contract: what an implementation promises about its arithmetic
terms          Terms: the arguments of a call, or of several calls of the same structure, as rows of numbers
intermediates  softmax, coefficients of the target, and denominator, with their error bounds
call           CallBounds: the common part of all bounds of a call, and the bounds of several calls together
loss           Bounds: the error bounds of the loss and of the gradients
derivatives    DerivativeBounds: the error bounds of the derivatives along a direction
unbounded      the reasons for infinite bounds

To allow one more rounding, change the formula in `intermediates` or `loss`. To allow another order of operations,
compute both orders in the function that bounds the number, and return `intermediates.wider(one, other)`. The orders of
a sum are a `rounding.Order`; `Contract.row_order` is the order of the sum over the batch. A permission for some
implementations only is a field of `Contract`. A new operation is a method of `Held`. Afterwards
`nox -s mutants figures` shows whether a bug escapes.
"""
