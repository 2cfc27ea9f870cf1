"""Make the inputs of a call from lists of numbers."""

import torch

from crossent.cases.inputs import Inputs


def inputs(logits, target, dtype="float32", weight=None, **options):
    """Return the inputs of a call with an upstream gradient of ones. The default reduction is "none"."""
    options = {"reduction": "none", "label_smoothing": 0.0, **options}
    of_dtype = getattr(torch, dtype)
    logits, target = torch.tensor(logits, dtype=of_dtype), torch.tensor(target)
    if weight is not None:
        options["weight"] = torch.tensor(weight, dtype=of_dtype)
    if target.is_floating_point():
        target = target.to(of_dtype)
    upstream = torch.ones(len(logits) if options["reduction"] == "none" else (), dtype=of_dtype)
    return Inputs(logits, target, options, upstream)
