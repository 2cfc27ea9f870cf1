"""The operations that crossent checks, each with a name, arguments and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The names of the gradients of all operations, each with the name of the argument.
GRADIENTS = {
    "gradient": "input",
    "target_gradient": "target",
    "weight_gradient": "linear_weight",
    "bias_gradient": "linear_bias",
}


@dataclass(frozen=True)
class Operation:
    """A function of torch, such as `F.cross_entropy`, that the subjects (functions under test) compute.

    Inside crossent, every loss is called as `loss(input, target, **options)`. In this call, other tensors, such as
    `linear_weight`, are options too.

    Attributes:
        arguments: the arguments that a user's function takes by position, in this order.
        options: a dict from the name of each other argument to a default that means the same as torch's.
        gradients: the names of the gradients, which are keys of `GRADIENTS`.
        words: the words for arguments in messages, by the names of the arguments.
    """

    name: str
    arguments: tuple[str, ...]
    options: Mapping[str, Any]
    gradients: tuple[str, ...]
    words: Mapping[str, str]

    def __hash__(self) -> int:
        return hash(self.name)

    def word(self, argument: str) -> str:
        """Return the word for an argument in messages."""
        return self.words.get(argument, argument)


_OPTIONS = {"weight": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0}
CROSS_ENTROPY = Operation(
    "cross_entropy",
    ("input", "target"),
    _OPTIONS,
    ("gradient", "target_gradient"),
    {"input": "logits", "target": "target probabilities"},
)
# The logits are `input @ linear_weight.T + linear_bias`, and the loss is their cross-entropy.
LINEAR_CROSS_ENTROPY = Operation(
    "linear_cross_entropy",
    ("input", "linear_weight", "target"),
    {"linear_bias": None, **_OPTIONS},
    ("gradient", "weight_gradient", "bias_gradient"),
    {},
)
OPERATIONS = {operation.name: operation for operation in (CROSS_ENTROPY, LINEAR_CROSS_ENTROPY)}
