"""Features: what a cross-entropy may do without, and what is then not asked of it.

A feature is a row of one table: it takes away the inputs that need it, and checks. What a subject lacks, since its
signature has no such keyword or since somebody declares it, is counted with the reason and never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor

from crossent.cases.axes import DTYPES
from crossent.cases.inputs import Inputs

Needs = Callable[[Inputs], bool]


def _never(inputs: Inputs) -> bool:
    return False


@dataclass(frozen=True)
class Feature:
    """One thing that a cross-entropy may or may not do.

    Attributes:
        name: as in `--without NAME`.
        sentence: what it is.
        needs: whether inputs cannot be had without it.
    """

    name: str
    sentence: str
    needs: Needs = _never


def _dtype(name: str) -> Feature:
    def needs(inputs: Inputs) -> bool:
        return any(tensor.dtype == DTYPES[name] for tensor in _tensors(inputs))

    return Feature(name, f"Logits, and whatever else of a call is a tensor of floats, in {name}.", needs)


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
    """Whether the option is given, or a row has what it is by default."""
    given = inputs.options.get("ignore_index", -100)
    return given != -100 or (not is_dense(inputs) and bool((inputs.target.long() == -100).any()))


FEATURES = {
    feature.name: feature
    for feature in (
        *map(_dtype, DTYPES),
        *map(_reduction, ("none", "mean", "sum")),
        Feature("weight", "A weight for each class.", lambda inputs: inputs.options.get("weight") is not None),
        Feature("ignore_index", "Rows that are ignored, with the default of -100 too.", _ignores),
        Feature(
            "label_smoothing",
            "A label_smoothing that is not 0.",
            lambda inputs: inputs.options.get("label_smoothing", 0) != 0,
        ),
        Feature("index_target", "Targets that are the index of a class.", lambda inputs: not is_dense(inputs)),
        Feature("uint8_target", "Such targets in uint8.", lambda inputs: str(inputs.target.dtype) == "torch.uint8"),
        Feature("probability_target", "Targets that are a probability for each class.", is_dense),
        Feature(
            "unbatched",
            "Logits of (C), without a batch.",
            lambda inputs: inputs.logits.dim() < 2,
        ),
        Feature("spatial", "Logits of (N, C, d1, …).", lambda inputs: inputs.logits.dim() > 2),
        Feature("empty", "A batch of no rows.", lambda inputs: inputs.logits.numel() == 0),
        Feature(
            "strided",
            "Tensors that are not contiguous, an expanded upstream gradient among them.",
            lambda inputs: not all(tensor.is_contiguous() for tensor in (*_tensors(inputs), inputs.upstream)),
        ),
        Feature("gradient", "A gradient at all: without it, a kernel that only goes forward."),
        Feature("target_gradient", "A gradient of target probabilities."),
        Feature("double_backward", "The gradient's own gradient."),
        Feature("forward_ad", "Dual numbers: derivatives forward."),
        Feature("vmap", "torch.func: vmap, and the gradients that grad and jacrev are made of."),
        Feature("compile", "torch.compile, torch.export, and tensors without data."),
        Feature("autocast", "torch.autocast."),
        Feature("errors", "An error for a bad call."),
        Feature("repeatable", "The same bits from call to call."),
        Feature("large", "More elements than 31 or 32 bits count."),
    )
}
# The features that are a keyword of `F.cross_entropy`; `reduction` is those reductions that are not the default.
KEYWORDS = {
    "weight": ("weight",),
    "ignore_index": ("ignore_index",),
    "reduction": ("reduction_none", "reduction_sum"),
    "label_smoothing": ("label_smoothing",),
}


def require_features(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, in the order of the table.

    Raises:
        ValueError: a name that is no feature's.

    >>> require_features({"vmap", "gradient"})
    ('gradient', 'vmap')
    """
    given = {names} if isinstance(names, str) else set(names)
    if unknown := sorted(map(str, given - FEATURES.keys())):
        near = get_close_matches(unknown[0], FEATURES, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"without: got {unknown[0]!r}{meant}; allowed are {', '.join(FEATURES)}")
    return tuple(name for name in FEATURES if name in given)
