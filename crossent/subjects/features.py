"""The features that a subject may lack. A subject that lacks a feature skips the inputs and checks that need it.

A feature here says which inputs need it; a check declares the features that it needs itself. A subject lacks a feature
because its signature has no such keyword, or because the user declares so. Every skip is counted with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor

from crossent.cases.axes import DTYPES
from crossent.cases.inputs import Inputs
from crossent.words import quoted

Needs = Callable[[Inputs], bool]


def _never(inputs: Inputs) -> bool:
    return False


@dataclass(frozen=True)
class Feature:
    """One thing that a loss function may not support.

    Attributes:
        name: as in `--without NAME`.
        sentence: a description, as `crossent list features` prints it.
        needs: whether a call with these inputs needs the feature.
    """

    name: str
    sentence: str
    needs: Needs = _never


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
    return [inputs.logits, inputs.target, *options]


def is_dense(inputs: Inputs) -> bool:
    """Whether the target is a tensor of floats: a probability for each class."""
    return inputs.target.is_floating_point() or inputs.target.is_complex()


def _ignores(inputs: Inputs) -> bool:
    """Whether ignore_index is given, or a row has its default, -100."""
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
            lambda inputs: inputs.logits.dim() < 2,
        ),
        Feature("spatial", "Logits of shape (N, C, d1, …).", lambda inputs: inputs.logits.dim() > 2),
        Feature("empty", "An empty batch.", lambda inputs: inputs.logits.numel() == 0),
        Feature(
            "strided",
            "Tensors that are not contiguous; also an expanded upstream gradient.",
            lambda inputs: not all(tensor.is_contiguous() for tensor in (*_tensors(inputs), inputs.upstream)),
        ),
        Feature("gradient", "A gradient. A loss without this feature only computes the forward pass."),
        Feature("target_gradient", "A gradient of the target probabilities."),
        Feature("double_backward", "The gradient of the gradient."),
        Feature(
            "batched_gradient",
            "Gradients for several upstream gradients at once, as gradcheck(check_batched_grad=True) requires.",
        ),
        Feature("forward_ad", "Forward-mode derivatives, by dual numbers."),
        Feature("vmap", "torch.func: vmap, grad, jacrev, jacfwd and hessian."),
        Feature("compile", "torch.compile, torch.export, and meta tensors."),
        Feature("autocast", "torch.autocast."),
        Feature("errors", "An error for bad input."),
        Feature("repeatable", "The same bits in every call."),
        Feature("large", "Tensors of more than 2^31 elements."),
    )
}
# The features that a keyword of `F.cross_entropy` provides. Every subject has the default reduction.
KEYWORDS = {
    "weight": ("weight",),
    "ignore_index": ("ignore_index",),
    "reduction": ("reduction", "reduction_none", "reduction_sum"),
    "label_smoothing": ("label_smoothing",),
}


def require_features(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once, in the order of the table.

    A loss that lacks the reductions "none" and "sum" may ignore the option, so that it lacks `reduction` as well.

    Raises:
        ValueError: a name that no feature has.

    >>> require_features({"vmap", "gradient"})
    ('gradient', 'vmap')
    """
    given = {names} if isinstance(names, str) else set(names)
    if unknown := sorted(map(str, given - FEATURES.keys())):
        near = get_close_matches(unknown[0], FEATURES, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"without: got {quoted(unknown[0])}{meant}; allowed are {', '.join(FEATURES)}")
    if given >= {"reduction_none", "reduction_sum"}:
        given.add("reduction")
    return tuple(name for name in FEATURES if name in given)
