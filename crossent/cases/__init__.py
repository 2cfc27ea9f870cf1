"""The cases: inputs of a cross-entropy, each rebuilt bit for bit from its id.

A case has one choice on each of several axes, such as its dtype, its reduction and the layout of its logits.

axes        the axes whose choices are words; size ranges, such as 257 to 1024 classes; impossible combinations
values      the kinds of logits: ordinary numbers, and numbers that trigger one kind of numerical error
operation   Operation: a function of torch that subjects compute; its arguments and gradients
ids         finds the case or the bad input with an id
case        Case: its id, and the tensors that it builds
inputs      Inputs: the tensors and options of one call, and their memory layouts
grid        the choices of sizes and label_smoothing; cases from covering arrays, pairwise and 3-way. Three arrays
            combine options (pairs.txt, triples.txt, transformed.txt). Two arrays combine options with size ranges
            (sizes.txt, size_triples.txt)
cover       computes the covering arrays again, for `nox -s cover`
edges       cases at the limits of sizes and number formats; cases for special code paths in torch; cases in which
            torch, not the formula, decides the result, such as the mean over no rows
corpus      cases that trigger bugs that other projects shipped (corpus.toml)
bad_inputs  calls for which a cross-entropy must raise an error
linear/     the cases of `F.linear_cross_entropy`
"""
