"""The worked example of cross-entropy: one loss, computed step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from crossent.forms import FORMS, scalar

# The logits and the true class of the default example.
DEFAULT_LOGITS = (3.0, 1.0, -3.0)
DEFAULT_TARGET = 0
# To fit a screen, a table of more classes shows only this number of classes and the true class.
MOST_CLASSES = 12
# Rounded numbers get more digits if their sum, or their logarithm, would be wrong by more than this share of the loss.
_VISIBLE = 0.01
# The formulas in the table of the forms.
_FORMULAS = {
    "formula": "-x_y + log Σ exp(x_i)",
    "log_softmax_nll": "-log_softmax(x)_y",
    "one_hot": "-Σ y'_i log softmax(x)_i",
    "blocked": "-log_softmax(x)_y in blocks",
    "scalar": "-x_y + log Σ exp(x_i)",
    "linear_formula": "-x_y + log Σ exp(x_i)",
    "linear_blocked": "-log_softmax(x)_y in blocks",
}


def random_row(classes: int, seed: int) -> tuple[tuple[float, ...], int]:
    """Return random logits of one row, from the normal distribution, and a random true class."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, generator=generator).tolist()
    target = int(torch.randint(classes, (), generator=generator))
    return tuple(logits), target


def explain(logits: Sequence[float] = DEFAULT_LOGITS, target: int = DEFAULT_TARGET) -> RenderableType:
    """Return the steps from one row of logits to the loss and its gradient, as text for a rich console.

    The last step compares the forms with torch.

    Raises:
        ValueError: There are no logits, a logit is not finite, or a difference of two logits overflows.
        IndexError: The target is not a class.
    """
    _require_row(logits, target)
    x = torch.tensor(logits, dtype=torch.float64)
    return Group(
        Text("Cross-entropy, step by step", "bold"),
        _paragraph(
            f"A classifier of {_count(len(logits), 'class', 'classes')} returns one number for each class, the logit. "
            f"Here the logits are {_vector(x)}, and the true class is {target}. {_MEANING}"
        ),
        *_numbered(*_steps_of_loss(x, target), _step_of_forms(_forms_table(logits, target))),
    )


# A step: its title, its formula, and the paragraphs and tables below.
_Step = tuple[str, str, list[RenderableType]]
_MEANING = (
    "A larger logit means more confidence in the class. The loss is one number that says how wrong the classifier is."
)


def _require_row(logits: Sequence[float], target: int, name: str = "logits") -> None:
    """Raise ValueError if there are no logits, or if a logit or a difference of two logits is not finite.

    Raise IndexError for a target that is not a class. The messages call the logits `name`.
    """
    if not logits:
        raise ValueError(f"{name}: got length 0; allowed is a length of 1 or more, one number for each class")
    for c, logit in enumerate(logits):
        if not math.isfinite(logit):
            raise ValueError(f"{name}: got {logit} for class {c}; allowed is one finite number for each class")
    if not 0 <= target < len(logits):
        raise IndexError(f"target: got {target}; allowed are the classes 0 to {len(logits) - 1}")
    if not math.isfinite(max(logits) - min(logits)):
        got = f"{max(logits)} and {min(logits)}, whose difference overflows"
        raise ValueError(f"{name}: got {got}; allowed are logits with finite differences")


def _numbered(*steps: _Step) -> list[RenderableType]:
    """Return the parts of all steps in order, with numbered titles."""
    made: list[RenderableType] = []
    for number, (title, mathematics, parts) in enumerate(steps, 1):
        made += [_heading(str(number), title, mathematics), *parts]
    return made


def _steps_of_loss(x: Tensor, target: int) -> list[_Step]:
    """Return the steps from the logits `x` of a row to the loss and its gradient."""
    p, y = x.softmax(0), torch.tensor(target)
    loss = torch.nn.CrossEntropyLoss()(x, y).item()
    twice = torch.nn.CrossEntropyLoss()(p, y).item()
    return [
        (
            "Softmax turns the logits into probabilities",
            "p_i = exp(x_i) / Σ_j exp(x_j)",
            [
                _paragraph(
                    "The largest logit is subtracted first. The subtraction cancels in the fraction, so no probability "
                    "changes. And exp cannot overflow: exp(1000) is too large for a float, exp(1000 - 1000) is 1."
                ),
                Padding(_softmax_table(x, p, target), (0, 2)),
                _paragraph(
                    f"Every probability lies between 0 and 1, and they sum to {p.sum().item():.6g}. "
                    f"{_prediction(x, target)}"
                ),
            ],
        ),
        (
            "The loss is minus the log of a probability",
            "H = -Σ_i y'_i log p_i = -log p_y",
            [
                _paragraph(
                    f"The target as a vector, y', is 1 at class {target} and 0 at all other classes. One term of the "
                    f"sum is left: -log p_{target} = {_log_of(p[target].item(), loss)} = {_number(loss)}. The loss is "
                    "0 where the true class has probability 1, and grows without limit as that probability goes to 0."
                    + _rounded_by_hand(p[target].item(), loss)
                )
            ],
        ),
        (
            "The same loss without the division",
            "H = -x_y + log Σ_j exp(x_j)",
            [
                _paragraph(
                    f"The logarithm of a fraction is a difference{_difference(x[target].item(), loss)}. Software "
                    "computes the loss in this way."
                )
            ],
        ),
        (
            "nn.CrossEntropyLoss applies the softmax itself",
            "its input is the logits",
            [
                _paragraph(
                    "Pass logits to nn.CrossEntropyLoss, not probabilities. If you pass probabilities, softmax is "
                    f"applied twice{_twice(twice, loss)}"
                )
            ],
        ),
        (
            "The gradient says what to change",
            "∂H/∂x_i = p_i - y'_i",
            [
                _paragraph(
                    f"For these logits the gradient is {_vector(_gradient(x, target))}. A step against the gradient "
                    "raises the logit of the true class, and lowers each other logit in proportion to its probability."
                )
            ],
        ),
    ]


def _gradient(x: Tensor, target: int) -> Tensor:
    """Return the gradient of the loss with respect to the logits `x`."""
    return x.softmax(0) - torch.nn.functional.one_hot(torch.tensor(target), len(x))


def _step_of_forms(table: Table) -> _Step:
    return "The forms of the loss, compared with torch", "", [Padding(table, (0, 0, 0, 2))]


def _heading(number: str, title: str, mathematics: str) -> Text:
    return Text.assemble("\n", (f"{number}. {title}", "bold"), (f"   {mathematics}" if mathematics else "", "cyan"))


def _paragraph(text: str) -> Padding:
    return Padding(Text(text), (0, 3))


def _shown(count: int, target: int) -> list[int]:
    """Return which of `count` classes a table shows: the first `MOST_CLASSES` classes and the true class."""
    return sorted({*range(min(count, MOST_CLASSES)), target})


def _table(*headings: str) -> Table:
    """Return an empty table with a column for each heading, and a last column for remarks."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    return table


def _softmax_table(x: Tensor, p: Tensor, target: int) -> Table:
    table = _table("class", "logit x", "x - max", "exp(x - max)", "p")
    shifted = x - x.max()
    shown = _shown(len(x), target)
    for c in shown:
        numbers = (x[c].item(), shifted[c].item(), shifted[c].exp().item(), p[c].item())
        table.add_row(str(c), *map(_number, numbers), "← the true class" if c == target else "")
    if len(x) > len(shown):
        table.add_row("…", "", "", "", "", f"and {len(x) - len(shown)} more")
    table.add_row("sum", "", "", _number(shifted.exp().sum().item()), _number(p.sum().item()), "")
    return table


def _forms_table(logits: Sequence[float], target: int) -> Table:
    row, label = torch.tensor([logits], dtype=torch.float64), torch.tensor([target])
    losses = {
        name: form(list(logits), target) if form is scalar else form(row, label).item() for name, form in FORMS.items()
    }
    return _losses_table("nn.CrossEntropyLoss", torch.nn.CrossEntropyLoss()(row, label).item(), losses)


def _losses_table(reference: str, loss_of_torch: float, losses: Mapping[str, float]) -> Table:
    """Return a table that compares the loss of each form with the loss of torch.

    `reference` is the name of torch's function in the table.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("form", no_wrap=True)
    table.add_column("formula")  # wraps in a narrow terminal, so that no number is cut
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("minus torch", justify="right", no_wrap=True)
    table.add_row(reference, "", f"{loss_of_torch:.10g}", "")
    for name, loss in losses.items():
        table.add_row(name, _FORMULAS.get(name, ""), f"{loss:.10g}", f"{loss - loss_of_torch:.1g}")
    return table


def _prediction(x: Tensor, target: int) -> str:
    """Return a sentence that says whether the class with the largest logit is the true class.

    If several classes share the largest logit, the sentence says only this.
    """
    predicted = int(x.argmax())
    verdict = "which is right" if predicted == target else f"but the true class is {target}"
    if (x == x.max()).sum() > 1:
        return "Several classes share the largest logit and the largest probability, so no single class is predicted."
    return (
        f"The largest logit has the largest probability, so softmax does not change the prediction: class {predicted}, "
        f"{verdict}."
    )


def _rounded_by_hand(probability: float, loss: float) -> str:
    """Return a warning that shows the loss for the probability rounded to two decimals.

    Return "" if the rounded probability is 0 or 1, or gives the same loss.
    """
    rounded = round(probability, 2)
    if not 0 < rounded < 1 or _number(-math.log(rounded)) == _number(loss):
        return ""
    return f" Round last: with the rounded probability {rounded:.2f}, the loss would be {_number(-math.log(rounded))}."


def _log_of(probability: float, loss: float) -> str:
    """Return "-log P", where P is `probability` with so many digits that -log P is within 1% of `loss`.

    For a probability of 0, return a phrase without digits.
    """
    for digits in range(4, 17):
        shown = _number(probability, digits)
        if float(shown) and abs(-math.log(float(shown)) - loss) <= _VISIBLE * loss:
            return f"-log {shown}"
    return f"-log {probability}" if probability else "minus the logarithm of a number too small for a float"


def _difference(logit: float, loss: float) -> str:
    """Return ": A + B = LOSS", where A is `-logit` and B is the log-sum-exp of the row.

    A and B have so many digits that the sum is within 1% of the loss. If 15 digits are too few, return "".
    """
    for digits in range(4, 16):
        one, other = _number(0.0 - logit, digits), _number(loss + logit, digits)
        if abs(float(one) + float(other) - loss) <= _VISIBLE * loss:
            return f": {one} + {other} = {_number(loss)}"
    return ""


def _twice(twice: float, loss: float) -> str:
    """Return the end of a sentence that begins with "If you pass probabilities, softmax is applied twice".

    `twice` is the loss after two softmaxes.
    """
    if _number(twice) == _number(loss):
        return f". Here the loss is {_number(loss)} either way, as for equal logits."
    return f", and the loss is {_number(twice)} instead of {_number(loss)}: a wrong loss, and also a wrong gradient."


def _vector(values: Tensor) -> str:
    shown = [_number(v) for v in values[:MOST_CLASSES].tolist()]
    return f"({', '.join(shown)}{', …' if len(values) > MOST_CLASSES else ''})"


def _number(value: float, digits: int = 4) -> str:
    plain = digits > 4 or value == 0 or 1e-4 <= abs(value) < 1e6
    return f"{value:.{digits}g}" if plain else f"{value:.3e}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
