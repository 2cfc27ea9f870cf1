"""The check `options`: leave out an option, and pass an option with a value that has no effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.numerics.bounds.rounding import safe
from crossent.subjects.subject import Loss
from crossent.trials.agreement import RESULT_PARTS, bounds_for, compare_results, further_call, with_radius
from crossent.trials.call import Gradients, Result, evaluate, in_words
from crossent.trials.check import EVERY_OPERATION, Cost, check
from crossent.trials.difference import Difference
from crossent.trials.exact import Exact, solve
from crossent.trials.trial import Problem, Trial

_DIFFER = "expected different values, since the exact values differ"


@check(cost=Cost.CALLS, versus="other", operations=EVERY_OPERATION)
def options(trial: Trial) -> Iterator[Difference | Problem]:
    """Leaving out an option of the case changes the result, and passing an option with its neutral value does not.

    The check leaves out one option at a time. The loss or a gradient must change if its exact values with and without
    the option differ by more than their error bounds together.

    Liger-Kernel#243: label_smoothing was silently ignored. OLMo-core#702: a term was added although its option was off.
    """
    for way, without in without_each_option(trial.question.fresh()).items():
        other = further_call(trial, without)
        same = [name for name in RESULT_PARTS if _same(getattr(trial.got, name), getattr(other, name))]
        if same:
            exact, option = solve(without), way.removeprefix("without ")
            yield from (
                Problem(
                    "wrong",
                    f"{in_words(name, trial.case.operation)}: got the same values with and without {option}; {_DIFFER}",
                    f"{name} {way}",
                )
                for name in same
                if _must_differ(trial, name, other, exact)
            )
    yield from _with_neutral_options(trial)


def without_each_option(given: Inputs) -> dict[str, Inputs]:
    """Return, for each option in use, the inputs without this option. The keys are names such as "without weight"."""
    found = {}
    for name in ("weight", "linear_bias"):
        if name in given.options:
            others = {k: v for k, v in given.options.items() if k != name}
            found[f"without {name}"] = replace(given, options=others)
    if smoothing := given.options["label_smoothing"]:
        unsmoothed = {**given.options, "label_smoothing": 0.0}
        found[f"without label_smoothing={smoothing}"] = replace(given, options=unsmoothed)
    if not given.target.is_floating_point():
        index, ignore_index = given.target.long(), given.options.get("ignore_index", -100)
        ignored = index == ignore_index
        if ignored.any():
            # Without an ignore_index, each target must be a class.
            a_class = 0 <= ignore_index < given.classes
            target = given.target if a_class else given.target.masked_fill(ignored, 0)
            kept = {k: v for k, v in given.options.items() if k != "ignore_index"}
            found[f"without ignore_index={ignore_index}"] = replace(given, target=target, options=kept)
    return found


def _must_differ(trial: Trial, name: str, other: Result, exact: Exact) -> bool:
    """Return whether the exact values with and without an option differ by more than the sum of both error bounds.

    `other` and `exact` are the result and the exact values without the option.
    """
    with_option, without = getattr(trial.question.exact, name), getattr(exact, name)
    room = np.abs(without.lo) + with_option.radius + without.radius
    for got, expected in ((trial.got, trial.question.exact), (other, exact)):
        bound = trial.bounds(got, expected)[name]
        finite = np.isfinite(getattr(expected, name).hi)
        room = room + np.where(finite, np.where(np.isnan(bound), np.inf, bound), 0.0)
    numbers = with_radius(trial, trial.got)[name].hi
    return bool((np.isfinite(numbers) & (with_option.distance(without.hi) > safe(room))).any())


def _with_neutral_options(trial: Trial) -> Iterator[Difference]:
    """Yield the differences of the first result from the result of a call with neutral options."""
    if (made := with_neutral_options(trial.question.fresh(), trial.case.ignored)) is None:
        return
    (other, passed), way = made, "with neutral options"
    got = further_call(trial, other, evaluate_with_options, passed)
    yield from compare_results(trial, with_radius(trial, got, bounds_for(trial, way, other)), way=way)


def evaluate_with_options(loss: Loss, inputs: Inputs, gradients: Gradients, passed: Sequence[str]) -> Result:
    """Act: call the subject with only the options named in `passed`, and return the result."""

    def with_passed_options(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        return loss(input, target, **{name: options[name] for name in passed})

    return evaluate(with_passed_options, inputs, gradients)


def with_neutral_options(given: Inputs, ignored: str) -> tuple[Inputs, list[str]] | None:
    """Return the inputs with further options that change nothing, and the names of the options to pass.

    For example, a new weight has only ones. `ignored` is the attribute `ignored` of the case. Return None if the
    call would pass the options of `given` and no others.
    """
    classes = given.classes
    off: dict[str, Any] = {}
    if "weight" not in given.options:
        off["weight"] = given.input.new_ones(classes)
    # F.linear_cross_entropy takes no ignore_index with target probabilities.
    if ignored == "kept" and not (given.operation is LINEAR_CROSS_ENTROPY and given.target.is_floating_point()):
        off["ignore_index"] = -1
        if not given.target.is_floating_point():  # the smallest class that no row has, or else the number of classes
            off["ignore_index"] = min(set(range(classes + 1)) - set(given.target.reshape(-1).tolist()))
    options = {**given.options, **off}
    defaults = {"label_smoothing": 0.0, "reduction": "mean"}
    passed = [name for name, value in options.items() if name not in defaults or value != defaults[name]]
    return None if passed == list(given.options) else (replace(given, options=options), passed)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
