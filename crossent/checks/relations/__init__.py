"""Checks of several calls or backward passes of a subject, whose results must agree or change in a known way.

The checks of `two_calls` use :mod:`crossent.trials.agreement`: two results must be equal up to the sum of their error
bounds. The check `chunks` compares with exact values, and `two_backwards` compares bits.

changes    functions that change the inputs, and functions that undo the effect of this change on a result
two_calls  memory layouts, shifted logits, reversed rows and classes, parts of a batch, dtypes
chunks     several chunk sizes, for a function with an argument that sets the chunk size
backward   several backward passes through one graph, and two losses of the same logits
"""
