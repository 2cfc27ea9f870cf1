"""Policies: what a cross-entropy answers where its formula says nothing, or says 0/0; each is a case of its own.

Torch has changed some of them: a mean over no rows was 0 before it was NaN (pytorch#64572). So they stand here by name,
and a run that is compared with another says in a line which of them is another one now.
"""

from __future__ import annotations

from crossent.cases import Case


def _case(values: str = "normal", target: str = "int64", reduction: str = "mean", **more: object) -> Case:
    sizes = {"sizes": (6, 4), **more}
    return Case("float32", values=values, target=target, reduction=reduction, name="policy", **sizes)  # type: ignore[arg-type]


# The questions, in the words in which a change of their answers is told.
POLICIES = {
    "mean over no rows": _case(sizes=(0, 4)),
    "sum over no rows": _case(sizes=(0, 4), reduction="sum"),
    "mean over probabilities of no rows": _case(sizes=(0, 4), target="probabilities"),
    "mean over rows that are all ignored": _case(ignored="ignored_all"),
    "weighted mean over rows that are all ignored": _case(ignored="ignored_all", weight="weighted"),
    "sum over rows that are all ignored": _case(ignored="ignored_all", reduction="sum"),
    "rows that are all ignored, unreduced": _case(ignored="ignored_all", reduction="none", upstream="rows"),
    "NaN in an ignored row": _case("nan_ignored", ignored="ignored_first"),
    "-inf in an ignored row": _case("inf_ignored", ignored="ignored_first"),
    "a NaN logit": _case("nan", reduction="sum"),
    "a logit of +inf": _case("positive_inf", reduction="sum"),
    "a row of -inf alone": _case("inf_rows", reduction="sum"),
    "-inf on a class that is not the true one": _case("inf_off_target", reduction="sum"),
    "-inf on the true class": _case("inf_on_target", reduction="sum"),
    "-inf with label_smoothing": _case("inf_off_target", reduction="sum", label_smoothing=0.1),
    "-inf on the true class with label_smoothing 1": _case("inf_on_target", reduction="sum", label_smoothing=1.0),
    "-inf where a soft target is 0": _case("inf_off_target", target="hard", reduction="sum"),
    "uint8 class indices": _case(target="uint8"),
    "uint8 class indices with further dimensions": _case(sizes=(3, 4, 5), target="uint8"),
    "uint8 class indices with weight and label_smoothing": _case(
        target="uint8", weight="weighted", label_smoothing=0.1
    ),
    "probabilities that add up to anything": _case(target="unnormalised"),
    "probabilities of another dtype": _case(target="other_float"),
    "an ignore_index that is a class": _case(ignored="ignored_class"),
    "an ignore_index beyond 32 bits": _case(ignored="ignored_huge"),
}
NAMES = {case.id: name for name, case in POLICIES.items()}
