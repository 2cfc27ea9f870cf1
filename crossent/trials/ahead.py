"""Compute the error bounds of many cases together, ahead of the calls.

An error bound takes hundreds of numpy operations, and most cases have a few dozen numbers. So a hundred cases in one
stack of arrays take little more time than one case. All cases of a stack have the same structure, such as the number
of classes (:attr:`crossent.numerics.bounds.terms.Terms.structure`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.formats import FORMATS
from crossent.subjects.subject import Subject
from crossent.trials.act import Here
from crossent.trials.exact import name_of
from crossent.trials.trial import Question, Trial

# The most logits of a stack of calls. Larger arrays do not fit the cache of a core, so it is faster to compute larger
# calls one by one.
_MOST = 2**14


def prepare(
    questions: Sequence[Question], subjects: Sequence[Subject], differentiated: Sequence[Question] = ()
) -> None:
    """Compute the exact values and the error bounds of many questions together, and store them in the questions.

    Bounds that are not stored, as for a linear cross-entropy, are computed later, when a comparison reads them. For
    the questions in `differentiated`, also compute the bounds of the derivatives along the direction.
    """
    together: dict[object, dict[int, Bounds]] = defaultdict(dict)
    for question in questions:
        if question.case.operation is LINEAR_CROSS_ENTROPY:  # its bounds are matrix products: a stack saves no time
            continue
        terms = question.exact.terms
        for subject in subjects:
            if terms.logits.size <= _MOST and not subject.not_applicable(question.inputs):
                for contract, names in _contracts(question, subject, question in differentiated):
                    along = "second" in names or "tangent" in names
                    bounds = (question.exact_along if along else question.exact).bounds(contract)
                    together[bounds.contract, terms.structure, names][id(bounds)] = bounds
    for (_, _, names), group in together.items():  # type: ignore[misc]
        for calls in _stacks(list(group.values())):
            type(calls[0]).of_calls(calls, names)


def _contracts(question: Question, subject: Subject, along: bool) -> Iterator[tuple[Contract, tuple[str, ...]]]:
    """Yield each contract of a subject for a question, with the names of the results that have this contract.

    If `along` is True, also yield the contract of the derivatives along a direction.
    """
    exact, trial = question.exact, Trial(question, subject, Here(subject.loss))
    of_loss = str(subject.result_dtype(exact.dtype)).removeprefix("torch.")
    formats = {"loss": of_loss} | {name: name_of(leaf) for name, leaf in question.inputs_on_cpu.leaves.items()}
    grades = sorted({"A", trial.wanted})  # a report says whether the subject reaches grade A
    needed = [(formats, grade) for grade in grades]
    if along:
        needed.append(({"tangent": of_loss, "second": exact.logits_dtype}, trial.wanted))
    for of, grade in needed:
        contract = trial.contract(exact.logits_dtype, len(exact.terms.logits), grade)
        for storage in dict.fromkeys(of.values()):
            yield contract.storing(FORMATS[storage]), tuple(name for name, own in of.items() if own == storage)


def _stacks(calls: Sequence[Bounds]) -> Iterator[list[Bounds]]:
    """Group calls into stacks with at most `_MOST` logits."""
    stack: list[Bounds] = []
    size = 0
    for call in calls:
        size += call.terms.logits.size
        if stack and size > _MOST:
            yield stack
            stack, size = [], call.terms.logits.size
        stack.append(call)
    if stack:
        yield stack
