"""The declaration of a check: one property of a subject on a case, its cost, and the features that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.cases.operation import CROSS_ENTROPY, OPERATIONS, Operation
from crossent.subjects.features import is_dense
from crossent.subjects.subject import Subject
from crossent.trials.difference import Difference
from crossent.trials.trial import MisshapenError, NotRunError, Problem, Trial

EVERY_OPERATION = tuple(OPERATIONS.values())
# A check yields a difference for each result that it compares, and a problem for any other failure.
Found = Iterator[Difference | Problem]
Body = Callable[[Trial], Iterable[Difference | Problem]]


class Cost(Enum):
    """The cost of a check, as the calls, the time or the memory that the check needs.

    :mod:`crossent.run.plan` and :mod:`crossent.run.selection` choose the checks of a case by their cost.
    """

    CALL = "the first call of a case"
    AGAIN = "the same call again, after a call with other numbers"
    CALLS = "a few more calls; the values of the logits matter"
    STRUCTURE = "many calls, or a traced graph; options and memory layout matter, the values of the logits hardly do"
    CODE = "seconds of compilation"
    TILES = "gigabytes of memory, for more than 2^31 elements"


def _always(inputs: Inputs) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Check:
    """One property of a subject on a case.

    Attributes:
        name: the name of the check in a report.
        body: the function that runs the check. The function yields every problem, and every difference, even a
            difference within its bound. The function may raise the errors of :mod:`crossent.trials.trial`.
        cost: the cost of the check.
        needs: for each feature that the check may need, a function that returns whether the check needs the feature
            for the given inputs.
        applies: a function that returns whether the check applies to a case.
        transforms: whether the check transforms the subject, for example by torch.compile or vmap.
        versus: "exact" if the check compares results with exact values; "other" if it compares two results.
        sample: a function that returns whether a case may be the sample. Level normal runs a check of cost `CODE` on
            one case only, the sample. Level quick does not run such a check.
        sentence: the property, as one sentence.
        operations: the operations for which the check exists.
    """

    name: str
    body: Body
    cost: Cost = Cost.CALL
    needs: Mapping[str, Callable[[Inputs], bool]] = field(default_factory=dict)
    applies: Callable[[Case], bool] = lambda case: True
    transforms: bool = False
    versus: str = "exact"
    sample: Callable[[Case], bool] = lambda case: True
    sentence: str = ""
    operations: tuple[Operation, ...] = (CROSS_ENTROPY,)

    def said_of(self, operation: Operation) -> str:
        """Return the sentence of the check for an operation.

        If the check exists for `cross_entropy`, its sentence speaks of logits. For `linear_cross_entropy`, the returned
        sentence then says "input" in place of "logits".
        """
        if CROSS_ENTROPY not in self.operations:
            return self.sentence
        return self.sentence.replace(CROSS_ENTROPY.word("input"), operation.word("input"))

    def run(self, trial: Trial) -> Found:
        """Run the check, and yield each problem and each difference.

        If a call by the check returns a loss of a wrong shape or dtype, yield a problem about this loss, and end the
        check. If the check cannot make a call after a failure, end the check, so that the failure counts. This method
        may raise the other errors of :mod:`crossent.trials.trial`, and NotRunError if there was no failure.
        """
        failed = False
        try:
            for found in self.body(trial):
                failed = failed or isinstance(found, Problem) or not found.ratio <= 1  # a ratio of NaN fails too
                yield found
        except MisshapenError as error:
            yield Problem("wrong", str(error))
        except NotRunError:
            if not failed:
                raise

    def why_not_run(self, subject: Subject, inputs: Inputs) -> str:
        """Return the reason why a subject does not support the check on these inputs; "" if there is no reason.

        The reason is a phrase that follows the name of the subject, such as "is not differentiable".
        """
        for feature, reason in subject.lacks.items():
            if feature in self.needs and self.needs[feature](inputs):
                return reason
        if self.transforms and subject.not_transformed:
            return subject.not_transformed
        if "gradient" in self.needs and not subject.differentiable:
            return "is not differentiable"
        return ""


def check(
    *needs: str,
    cost: Cost = Cost.CALL,
    name: str = "",
    dense_needs: Iterable[str] = (),
    other_needs: Mapping[str, Callable[[Inputs], bool]] | None = None,
    applies: Callable[[Case], bool] = lambda case: True,
    transforms: bool = False,
    versus: str = "exact",
    sample: Callable[[Case], bool] = lambda case: True,
    sentence: str = "",
    operations: tuple[Operation, ...] = (CROSS_ENTROPY,),
) -> Callable[[Body], Check]:
    """Return a decorator that turns a function into a check.

    The first line of the function's docstring becomes the sentence of the check.

    Args:
        needs: the features that the check always needs.
        dense_needs: the features that the check needs if the target holds probabilities.
        other_needs: further features, each with a function, as in `needs` of :class:`Check`.
        cost: see :class:`Check`.
        name: the name of the check, if it differs from the function's name.
        applies: see :class:`Check`. The check does not apply to a case of an operation outside `operations`.
        transforms: see :class:`Check`.
        versus: see :class:`Check`.
        sample: see :class:`Check`.
        sentence: the sentence of the check, if it differs from the first line of the docstring.
        operations: see :class:`Check`.
    """

    def applies_to(case: Case) -> bool:
        return case.operation in operations and applies(case)

    required = {**dict.fromkeys(needs, _always), **dict.fromkeys(dense_needs, is_dense), **(other_needs or {})}

    def decorate(body: Body) -> Check:
        first_line = (body.__doc__ or "").strip().partition("\n")[0]
        own_name = name or body.__name__
        said = sentence or first_line
        return Check(own_name, body, cost, required, applies_to, transforms, versus, sample, said, operations)

    return decorate
