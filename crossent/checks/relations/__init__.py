"""Checks of relations between calls: a known change of the inputs causes a known change of the result.

:mod:`crossent.trials.agreement` compares the results: they must be equal up to the sum of their error bounds. Only
`two_backwards` compares bits.

changes    the changed inputs, and the results changed back
two_calls  memory layouts, shifted logits, reversed rows and classes, parts of a batch, dtypes
chunks     every size of a chunk, for a function with an argument that sets this size
backward   several backward passes through one graph, and two losses of the same logits
"""
