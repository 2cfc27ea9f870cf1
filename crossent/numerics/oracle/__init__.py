"""The oracle: the exact value of every loss and every gradient element, with a proven error radius.

This folder imports numpy, flint, and of crossent only `numerics.formats` and `numerics.linear_call`. It imports neither
torch nor `numerics.bounds`, so that exact values do not depend on error bounds.

arguments       Arguments: one call as numpy arrays; Denominator: the exact denominator of a mean
arithmetic      Ball: numbers with an error radius; float64 and ball arithmetic behind one interface
products        the product of two matrices of float64 numbers, far more accurate than float64
formula         the formula on finite rows, with the proof of its error in float64
special_values  the rules for values that are infinite, NaN or exactly 0
answer          answer(): the exact loss and gradients of a call; the reduction
linear          linear_answer(): the exact loss and gradients of a linear cross-entropy
"""
