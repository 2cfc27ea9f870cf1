"""The oracle: the exact value of every loss and every gradient element, with a proven error radius.

A ball is a number with an error radius, and stands for every number within the radius. The library flint computes in
ball arithmetic: each result is a ball that contains the exact result.

The folder imports neither torch nor `numerics.bounds`, so that exact values depend neither on the code under test nor
on the error bounds.

arguments       Arguments: one call as numpy arrays; Denominator: the exact denominator of a mean
arithmetic      Ball: an array of balls; Float64Arithmetic and BallArithmetic: the same operations in two arithmetics
products        the product of a matrix of balls and an exact matrix, with radii far below the rounding error of float64
formula         the formula on rows whose largest logit is finite, with the proof of its error in float64
special_values  the rules for values that are infinite, NaN or exactly 0
answer          answer(): the exact loss and gradients of a call; the sum or mean over the rows
linear          linear_answer(): the exact loss and gradients of a linear cross-entropy
"""
