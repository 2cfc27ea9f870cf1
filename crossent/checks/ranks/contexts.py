"""Checks of the context manager in which a subject on several ranks computes its loss and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crossent.cases.inputs import Inputs
from crossent.trials.check import Cost, check
from crossent.trials.trial import NotRunError, Problem, Trial


def use_context(loss: Any, inputs: Inputs, scenario: str) -> tuple[bool, list[str]]:
    """Act: use the context of the loss on all ranks.

    In the scenario "twice", each rank enters a second context inside the first. In the scenario "exception", each rank
    calls the loss before and after an exception that ends the context.

    Returns:
        Whether the loss has a context, and the problems as sentences.
    """
    found: list[str] | None = loss.use_context(inputs.input, inputs.target, inputs.options, scenario)
    return found is not None, found or []


def _problems(trial: Trial, scenario: str, kind: str) -> Iterator[Problem]:
    has_context, found = trial.perform(use_context, trial.question.fresh(), scenario)
    if not has_context:
        raise NotRunError("has no context")
    yield from (Problem(kind, text) for text in found)


@check(cost=Cost.CALLS, applies=lambda case: case.rows > 0)
def context(trial: Trial) -> Iterator[Problem]:
    """After an exception ends the context of the loss, a call outside of the context does the same as before."""
    yield from _problems(trial, "exception", "changed_state")


@check(cost=Cost.CALLS, applies=lambda case: case.rows > 0)
def nested_context(trial: Trial) -> Iterator[Problem]:
    """A second context of the loss can be entered inside the first."""
    yield from _problems(trial, "twice", "refused")
