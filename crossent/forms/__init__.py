"""The forms: cross-entropy written out by hand, six times, and linear cross-entropy, twice.

A form is a reference implementation. The modules import torch, and no other room of the package.

textbook        formula, log_softmax_nll, one_hot and scalar: the body of each form is its formula
linear          linear_formula and linear_blocked: the loss of `input @ linear_weight.T + linear_bias`
blocks          blocked: cross-entropy, computed some rows at a time, with a gradient written by hand
fused           fused: cross-entropy in one kernel for CUDA
kernel          the kernel of fused, in Triton
rows            Rows: the arguments of one call, laid out as rows of logits
validation      the validation of the arguments, and the error messages
explain         the worked example: one loss, step by step
explain_linear  the worked example of linear cross-entropy, from a hidden state to the gradients of the last layer

`crossent` also exports the forms. `FORMS`, `KERNEL_FORMS` and `LINEAR_FORMS` list the forms by name.
"""

from collections.abc import Callable
from typing import Any

from crossent.forms.blocks import blocked
from crossent.forms.fused import fused
from crossent.forms.linear import linear_blocked, linear_formula
from crossent.forms.textbook import formula, log_softmax_nll, one_hot, scalar

__all__ = [
    "FORMS",
    "KERNEL_FORMS",
    "LINEAR_FORMS",
    "blocked",
    "formula",
    "fused",
    "linear_blocked",
    "linear_formula",
    "log_softmax_nll",
    "one_hot",
    "scalar",
]

FORMS: dict[str, Callable[..., Any]] = {
    "formula": formula,
    "log_softmax_nll": log_softmax_nll,
    "one_hot": one_hot,
    "blocked": blocked,
    "scalar": scalar,
}
KERNEL_FORMS: dict[str, Callable[..., Any]] = {"fused": fused}
LINEAR_FORMS: dict[str, Callable[..., Any]] = {"linear_formula": linear_formula, "linear_blocked": linear_blocked}
