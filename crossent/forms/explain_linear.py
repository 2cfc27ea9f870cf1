"""The worked example of a linear cross-entropy: from a hidden state to the loss, and back to the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from crossent.forms import LINEAR_FORMS
from crossent.forms.explain import (
    _MEANING,
    DEFAULT_TARGET,
    _gradient,
    _losses_table,
    _number,
    _numbered,
    _paragraph,
    _require_row,
    _shown,
    _Step,
    _step_of_forms,
    _steps_of_loss,
    _table,
    _vector,
)

# The default example: a hidden state, and a weight and a bias of the last layer. Their logits are DEFAULT_LOGITS.
DEFAULT_HIDDEN = (2.0, 1.0)
DEFAULT_WEIGHT = ((1.0, 1.0), (1.0, -1.0), (-2.0, 0.0))
DEFAULT_BIAS = (0.0, 0.0, 1.0)


def random_layer(classes: int, seed: int) -> tuple[list[float], list[list[float]], list[float], int]:
    """Return a random hidden state of two numbers, a random weight and bias, and a random true class."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2,), (classes, 2), (classes,)))
    target = int(torch.randint(classes, (), generator=generator))
    return hidden.tolist(), weight.tolist(), bias.tolist(), target


def explain_linear(
    hidden: Sequence[float] = DEFAULT_HIDDEN,
    weight: Sequence[Sequence[float]] = DEFAULT_WEIGHT,
    bias: Sequence[float] = DEFAULT_BIAS,
    target: int = DEFAULT_TARGET,
) -> RenderableType:
    """Return the steps from a hidden state to the loss and back to the gradients, as text for a rich console.

    Args:
        hidden: The hidden state, H numbers.
        weight: The weight of the linear layer: for each of the C classes, H numbers.
        bias: The bias of the linear layer: for each class, one number.
        target: The true class, from 0 to C - 1.

    Raises:
        ValueError: A length is wrong, a logit is not finite, or a difference of two logits overflows.
        IndexError: The target is not a class.
    """
    if not weight:
        raise ValueError("weight: got no rows; allowed is one row or more, one for each class")
    if len(bias) != len(weight):
        raise ValueError(f"bias: got length {len(bias)}; allowed is {len(weight)}, one number for each row of weight")
    for c, row in enumerate(weight):
        if len(row) != len(hidden):
            got = f"length {len(row)} for class {c}"
            raise ValueError(f"weight: got {got}; allowed is {len(hidden)}, the length of hidden")
    h, w, b = (torch.tensor(numbers, dtype=torch.float64) for numbers in (hidden, weight, bias))
    x = w @ h + b
    _require_row(x.tolist(), target, "logits of hidden, weight and bias")
    return Group(
        Text("Linear cross-entropy, step by step", "bold"),
        _paragraph(
            f"The last layer of a classifier turns a hidden state into one number for each class, the logit. Here the "
            f"hidden state is {_vector(h)}, and the true class is {target}. {_MEANING} The layer and the loss together "
            "are F.linear_cross_entropy."
        ),
        *_numbered(
            _step_of_layer(h, w, b, x, target),
            *_steps_of_loss(x, target),
            _step_of_gradients(h, w, x, target),
            _step_of_forms(_linear_forms_table(h, w, b, target)),
        ),
    )


def _step_of_layer(h: Tensor, w: Tensor, b: Tensor, x: Tensor, target: int) -> _Step:
    """Return the step from the hidden state `h` to the logits `x`."""
    rows = [
        (_vector(w[c]), _number(float(w[c] @ h)), _number(float(b[c])), _number(float(x[c])))
        for c in _shown(len(x), target)
    ]
    return (
        "The last layer computes the logits",
        "x = h Wᵀ + b",
        [
            _paragraph(
                "Each class has a row of the weight, W_c, and an element of the bias, b_c. The logit of the class is "
                "the dot product of the hidden state h and W_c, plus b_c."
            ),
            Padding(_class_table(("W_c", "h · W_c", "b_c", "logit x_c"), rows, len(x), target), (0, 2)),
            _paragraph(
                "The logits of N rows and C classes are N × C numbers, the largest tensor of a language model. "
                "crossent.linear_blocked computes some rows at a time, and holds only their logits in memory."
            ),
        ],
    )


def _step_of_gradients(h: Tensor, w: Tensor, x: Tensor, target: int) -> _Step:
    """Return the step from the gradient of the logits to the gradients of `h`, `w` and the bias."""
    d = _gradient(x, target)
    rows = [(_number(float(d[c])), _vector(d[c] * h), _number(float(d[c]))) for c in _shown(len(x), target)]
    return (
        "The gradients of the layer",
        "∂H/∂h = d W, ∂H/∂W = dᵀ h, ∂H/∂b = Σ d",
        [
            _paragraph(
                "Let d be the gradient of the logits, from the previous step. The gradient of the hidden state is the "
                f"sum of the rows of W, each times its d_c: {_vector(d @ w)}. The gradient of the row W_c is d_c times "
                "h, and the gradient of b_c is d_c:"
            ),
            Padding(_class_table(("d_c", "∂H/∂W_c = d_c h", "∂H/∂b_c"), rows, len(x), target), (0, 2)),
            _paragraph(
                "In a batch, each row has its own gradient of the hidden state. The gradients of weight and bias are "
                "sums over the rows. For half precision, the forms compute these sums in float32. An ignored row has "
                "d = 0, and adds nothing."
            ),
        ],
    )


def _class_table(headings: Sequence[str], rows: Sequence[tuple[str, ...]], classes: int, target: int) -> Table:
    """Return a table with `rows`, and a mark at the true class.

    `rows` has one row for each shown class: the first `MOST_CLASSES` classes and the true class.
    """
    table, shown = _table("class", *headings), _shown(classes, target)
    for c, row in zip(shown, rows, strict=True):
        table.add_row(str(c), *row, "← the true class" if c == target else "")
    if classes > len(shown):
        table.add_row("…", *("" for _ in headings), f"and {classes - len(shown)} more")
    return table


def _linear_forms_table(h: Tensor, w: Tensor, b: Tensor, target: int) -> Table:
    label = torch.tensor([target])
    losses = {name: form(h[None], w, label, linear_bias=b).item() for name, form in LINEAR_FORMS.items()}
    composed = torch.nn.functional.cross_entropy(torch.nn.functional.linear(h[None], w, b), label)
    return _losses_table("F.linear, F.cross_entropy", composed.item(), losses)
