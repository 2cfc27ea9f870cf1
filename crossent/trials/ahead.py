"""The error bounds of many cases ahead of their comparison, computed together.

An error bound takes hundreds of numpy operations, and most cases have a few dozen numbers: the operations of a hundred
cases of one structure cost little more than those of one case (:mod:`crossent.numerics.bounds.terms`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.formats import FORMATS
from crossent.subjects.subject import Subject
from crossent.trials.act import Here
from crossent.trials.exact import name_of
from crossent.trials.trial import Question, Trial

# Arrays of more numbers leave the cache of a core, and a stack is then slower than its calls.
_MOST = 2**14


def prepare(questions: Sequence[Question], subjects: Sequence[Subject]) -> None:
    """Compute the exact values of questions, and the error bounds with which the results of subjects are compared."""
    together: dict[object, dict[int, Bounds]] = defaultdict(dict)
    for question in questions:
        terms = question.exact.terms
        for subject in subjects:
            if terms.logits.size <= _MOST and not subject.not_applicable(question.inputs):
                for contract, names in _asked(question, subject):
                    bounds = question.exact.bounds(contract)
                    together[bounds.contract, terms.structure, names][id(bounds)] = bounds
    for (_, _, names), group in together.items():  # type: ignore[misc]
        for calls in _stacks(list(group.values())):
            Bounds.of_calls(calls, names)


def _asked(question: Question, subject: Subject) -> Iterator[tuple[Contract, tuple[str, ...]]]:
    """Yield each contract under which a subject is compared, with the names of the results in its format."""
    exact, trial = question.exact, Trial(question, subject, Here(subject.loss))
    formats = {"loss": subject.dtype_name or str(exact.dtype).removeprefix("torch."), "gradient": exact.logits_dtype}
    if exact.target_gradient is not None:
        formats["target_gradient"] = name_of(question.inputs.target)
    for grade in sorted({"A", trial.wanted}):
        contract = trial.contract(exact.logits_dtype, len(exact.terms.logits), grade)
        for storage in dict.fromkeys(formats.values()):
            names = tuple(name for name, own in formats.items() if own == storage)
            yield contract.storing(FORMATS[storage]), names


def _stacks(calls: Sequence[Bounds]) -> Iterator[list[Bounds]]:
    """Yield the calls in groups of few enough numbers."""
    group: list[Bounds] = []
    size = 0
    for call in calls:
        size += call.terms.logits.size
        if group and size > _MOST:
            yield group
            group, size = [], call.terms.logits.size
        group.append(call)
    if group:
        yield group
