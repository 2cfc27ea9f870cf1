"""The features that a loss function may lack, such as `weight`.

A run skips and counts the inputs and checks that need a missing feature. For a few features, such as `nan_mean`, the
checks run, and expect another result (`Feature.instead`).

A subject lacks a feature if its signature has no keyword for the feature. Compiled subjects and subjects on several
ranks lack some further features. The user can also declare a feature missing, with `--without` or in the attribute
`lacks` of the callable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUT_KINDS
from crossent.cases.inputs import Inputs
from crossent.cases.operation import LINEAR_CROSS_ENTROPY, OPERATIONS, Operation
from crossent.words import quoted

Needs = Callable[[Inputs], bool]


def _never(inputs: Inputs) -> bool:
    return False


@dataclass(frozen=True)
class Feature:
    """A capability that a loss function may lack, such as class weights or a second derivative.

    Attributes:
        sentence: a description, as `crossent list features` prints it.
        needs: a function that takes the inputs of a call, and returns whether the call needs the feature. Always False
            if only checks or bad inputs need the feature.
        instead: what the checks expect of a loss without the feature, as the end of "A loss without this feature …".
            "" if a run skips what needs the feature.
    """

    name: str
    sentence: str
    needs: Needs = _never
    instead: str = ""
    operations: tuple[Operation, ...] = tuple(OPERATIONS.values())

    def __str__(self) -> str:
        return f"{self.sentence} A loss without this feature {self.instead}." if self.instead else self.sentence


def _dtype(name: str) -> Feature:
    def needs(inputs: Inputs) -> bool:
        return any(tensor.dtype == DTYPES[name] for tensor in _tensors(inputs))

    return Feature(name, f"Logits, weights and target probabilities in {name}.", needs)


def _reduction(name: str) -> Feature:
    return Feature(
        f"reduction_{name}", f"reduction={name!r}.", lambda inputs: inputs.options.get("reduction", "mean") == name
    )


def _tensors(inputs: Inputs) -> list[Tensor]:
    options = [value for value in inputs.options.values() if isinstance(value, Tensor)]
    return [inputs.input, inputs.target, *options]


def _unnormalised(inputs: Inputs) -> bool:
    """Return whether the class probabilities of some row have a sum that differs from 1 by more than rounding causes.

    Rounding to the target's dtype causes at most half of its `eps`. A float64 sum over C classes has an error of at
    most C/2 times the `eps` of float64. Two sums have this error: the sum in this function, and the sum by which the
    caller may have divided the probabilities.
    """
    if not inputs.target.is_floating_point():
        return False
    probabilities = inputs.target.cpu().double()
    sums = probabilities.sum(min(1, probabilities.dim() - 1))
    classes = probabilities.numel() // max(1, sums.numel())
    bound = torch.finfo(inputs.target.dtype).eps + classes * torch.finfo(torch.float64).eps
    return bool(((sums - 1).abs() > bound).any())


def is_dense(inputs: Inputs) -> bool:
    """Return whether the target has a floating-point or complex dtype, which class indices cannot have."""
    return inputs.target.is_floating_point() or inputs.target.is_complex()


def _ignores(inputs: Inputs) -> bool:
    """Return whether ignore_index differs from its default, -100, or a class index is -100."""
    given = inputs.options.get("ignore_index", -100)
    return given != -100 or (not is_dense(inputs) and bool((inputs.target.long() == -100).any()))


FEATURES = {
    feature.name: feature
    for feature in (
        *map(_dtype, DTYPES),
        *map(_reduction, ("none", "mean", "sum")),
        Feature(
            "reduction",
            "The option reduction. A loss without this feature returns the mean, whatever the value of the option.",
            lambda inputs: inputs.options.get("reduction", "mean") != "mean",
        ),
        Feature("weight", "A weight for each class.", lambda inputs: inputs.options.get("weight") is not None),
        Feature(
            "linear_bias",
            "A bias of the linear layer.",
            lambda inputs: inputs.options.get("linear_bias") is not None,
            operations=(LINEAR_CROSS_ENTROPY,),
        ),
        Feature("ignore_index", "Ignored rows, also with the default ignore_index of -100.", _ignores),
        Feature(
            "label_smoothing",
            "A label_smoothing other than 0.",
            lambda inputs: inputs.options.get("label_smoothing", 0) != 0,
        ),
        Feature("index_target", "Targets that are class indices.", lambda inputs: not is_dense(inputs)),
        Feature("uint8_target", "Class indices in uint8.", lambda inputs: str(inputs.target.dtype) == "torch.uint8"),
        Feature("probability_target", "Targets that are class probabilities.", is_dense),
        Feature(
            "unbatched",
            "Logits of shape (C), without a batch.",
            lambda inputs: inputs.input.dim() < 2,
        ),
        Feature("spatial", "Logits of shape (N, C, d1, …).", lambda inputs: inputs.input.dim() > 2),
        Feature("empty", "An empty batch, or other logits without elements.", lambda inputs: inputs.input.numel() == 0),
        Feature(
            "one_class",
            "Logits with fewer than two classes.",
            lambda inputs: inputs.input.dim() > 0 and inputs.classes < 2,
        ),
        Feature(
            "nonfinite", "Logits that are infinite or NaN.", lambda inputs: not bool(inputs.input.isfinite().all())
        ),
        Feature("unnormalised", "Target probabilities whose sum over the classes is not 1.", _unnormalised),
        Feature(
            "strided",
            "Tensors that are not contiguous; also an expanded upstream gradient.",
            lambda inputs: not all(tensor.is_contiguous() for tensor in (*_tensors(inputs), inputs.upstream)),
        ),
        Feature("gradient", "A gradient. A loss without this feature only computes the forward pass."),
        Feature("target_gradient", "A gradient of the target probabilities."),
        Feature("retain_graph", "A second backward pass through the same graph, with retain_graph=True."),
        Feature("double_backward", "The gradient of the gradient."),
        Feature(
            "batched_gradient",
            "Gradients for several upstream gradients at once, as gradcheck(check_batched_grad=True) requires.",
        ),
        Feature("forward_ad", "Forward-mode derivatives, by dual numbers."),
        Feature("vmap", "torch.func: vmap, grad, jacrev, jacfwd and hessian."),
        Feature("compile", "torch.compile, torch.export, and meta tensors."),
        Feature("autocast", "torch.autocast."),
        Feature(
            "half_result",
            "A loss in float16 or bfloat16 for logits of that dtype.",
            instead="returns float32 for half precision",
        ),
        Feature("nan_mean", "NaN as the mean over no rows.", instead="returns 0 as the mean over no rows"),
        Feature(
            "subnormal",
            "Subnormal numbers.",
            instead="may compute with 0 in place of a subnormal number",
        ),
        Feature("arguments", "Arguments that a call leaves unchanged.", instead="may write into its arguments"),
        Feature("errors", "An error for bad input of any kind."),
        *(Feature(name, sentence) for name, sentence in BAD_INPUT_KINDS.items()),
        Feature("error_classes", "The class of error that torch raises.", instead="may raise any error for bad input"),
        Feature("repeatable", "The same bits in every call."),
        Feature(
            "memory",
            "A call that takes less memory than all logits.",
            operations=(LINEAR_CROSS_ENTROPY,),
        ),
        Feature("large", "Tensors of more than 2^31 elements."),
    )
}


def declared(lacks: Iterable[str]) -> list[str]:
    """Return the declared differences from torch: the texts `Feature.instead` of the features in `lacks`.

    >>> declared(["vmap", "nan_mean"])
    ['returns 0 as the mean over no rows']
    """
    lacking = set(lacks)
    return [feature.instead for name, feature in FEATURES.items() if feature.instead and name in lacking]


# For each keyword of `F.cross_entropy` or `F.linear_cross_entropy`: the features that a subject without this keyword
# lacks. A subject without `reduction` does not lack `reduction_mean`, because it returns the mean, the default.
KEYWORDS = {
    "weight": ("weight",),
    "ignore_index": ("ignore_index",),
    "reduction": ("reduction", "reduction_none", "reduction_sum"),
    "label_smoothing": ("label_smoothing",),
    "linear_bias": ("linear_bias",),
}


def keywords_of(operation: Operation) -> tuple[str, ...]:
    """Return the keywords of an operation that a subject may lack, such as "weight"."""
    return tuple(keyword for keyword in KEYWORDS if keyword in operation.options)


def require_features(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name of a feature once, in the order of `FEATURES`. A string counts as one name.

    If the names contain "reduction_none" and "reduction_sum", also return "reduction".

    Raises:
        ValueError: a name is not the name of a feature.
    """
    given = {names} if isinstance(names, str) else set(names)
    if unknown := sorted(given - FEATURES.keys(), key=str):
        near = get_close_matches(str(unknown[0]), FEATURES, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"without: got {quoted(unknown[0])}{meant}; allowed are {', '.join(FEATURES)}")
    if given >= {"reduction_none", "reduction_sum"}:
        given.add("reduction")  # a loss that can only return the mean may ignore the option
    return tuple(name for name in FEATURES if name in given)
