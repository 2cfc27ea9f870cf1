"""Cross-entropy written out by hand, and held to `torch.nn.CrossEntropyLoss`."""

from crossent.forms import formula, log_softmax_nll, one_hot, scalar
from crossent.runner import check

__all__ = ["check", "formula", "log_softmax_nll", "one_hot", "scalar"]
