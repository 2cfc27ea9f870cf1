"""The cases of `F.linear_cross_entropy`: hidden states, a weight and perhaps a bias, which determine the logits.

values      the kinds of hidden states and weights: each kind triggers one kind of numerical error
case        LinearCase: its id, and the tensors that it builds
grid        size ranges; cases from covering arrays, pairwise and 3-way (pairs.txt, triples.txt)
edges       cases that show the bugs of chunked functions, and cases at limits
bad_inputs  calls for which a linear cross-entropy must raise an error
"""
