"""Checks of several calls or backward passes, whose results must agree or change in a known way.

changes    functions that change the inputs, and functions that undo the effect of this change on a result
two_calls  memory layouts, shifted logits, reversed rows and classes, parts of a batch, dtypes
chunks     several chunk sizes, for a function with an argument that sets the chunk size
backward   several backward passes through one graph, and two losses of the same logits
"""
