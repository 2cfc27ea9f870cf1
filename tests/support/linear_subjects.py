"""Linear cross-entropies for tests: right losses, and a loss written by hand, in which a test can change a step."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from support.waits import computes

from crossent.cases.linear.edges import linear_edges
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.forms.linear import linear_blocked, linear_formula
from crossent.subjects.contracts import TORCH_CONTRACT, under_contract
from crossent.subjects.subject import Subject


def composed(input, target, *, linear_weight, linear_bias=None, **options):
    """Compose torch's two functions, in the dtype of the input."""
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def formula(input, target, *, linear_weight, **options):
    """Call `linear_formula` with the weight as a keyword, as crossent calls every loss."""
    return linear_formula(input, linear_weight, target, **options)


def blocked(input, target, *, linear_weight, block_size=12, **options):
    """Call the form with blocks of few rows."""
    return linear_blocked(input, linear_weight, target, block_size=block_size, **options)


def subject_of(loss, **fields):
    """Return a subject that computes a linear cross-entropy under the default contract."""
    return replace(Subject(loss.__name__, loss, operation=LINEAR_CROSS_ENTROPY), **fields)


# Right functions. The last needs a torch that computes in the dtype: see :func:`right_in`.
RIGHT = (
    subject_of(formula),
    subject_of(blocked),
    under_contract(subject_of(composed), TORCH_CONTRACT, None),
)


def right_in(dtype):
    """Return the functions of `RIGHT` that this version of torch computes in a dtype on a CPU."""
    return RIGHT if computes(dtype) else RIGHT[:-1]


def right_cases(dtype):
    """Return the small cases of a dtype on which each function of `RIGHT` is right.

    torch adds class weights in the dtype of the logits, and huge weights overflow float16.
    """
    small = [case for case in linear_edges([dtype]) if case.rows * case.classes <= 2**12]
    return [case for case in small if (case.dtype, case.weight) != ("float16", "weight_huge")]


class ByHand(torch.autograd.Function):
    """The logits of a linear layer, with a backward pass that a test chooses.

    The backward pass is `change(slope, hidden, weight, needs)`, which returns the gradients of hidden states, weight
    and bias. `slope` is the gradient of the logits, (N, V), and `needs` says which gradients are needed.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, change):
        ctx.save_for_backward(hidden, weight)
        ctx.change = change
        return F.linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx, slope):
        return *ctx.change(slope, *ctx.saved_tensors, ctx.needs_input_grad), None


def gradients(slope, hidden, weight, needs):
    """Return the gradients that are needed, as every right backward pass does."""
    made = slope @ weight, slope.mT @ hidden, slope.sum(0)
    return tuple(one if need else None for one, need in zip(made, needs, strict=False))


def by_hand(change=gradients):
    """Return a linear cross-entropy with the given backward pass of the linear layer."""

    def loss(input, target, *, linear_weight, linear_bias=None, **options):
        logits = ByHand.apply(input, linear_weight, linear_bias, change)
        return F.cross_entropy(logits, target, **options)

    return loss
