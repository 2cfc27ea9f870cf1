"""The mathematics: the exact value of a loss, and the largest error that rounding can cause.

This room imports numpy and flint (numbers of any precision with an error radius), but not torch. `oracle` and `bounds`
do not import each other, so that a mistake in the oracle cannot hide a mistake in the bounds.

formats      the floating-point formats float16, bfloat16, float32 and float64
linear_call  LinearCall: the arguments of one call of a linear cross-entropy
oracle       the exact loss, gradients and derivatives along a direction, with a proven error radius
bounds       the error bounds of loss, gradients and derivatives along a direction, by rounding-error analysis
"""
