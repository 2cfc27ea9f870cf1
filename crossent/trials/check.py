"""Check: one property of a subject on a case, the cost of the check, and the features that it needs."""

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
    """The cost of a check in calls, time or memory. :mod:`crossent.run.plan` chooses checks by their cost."""

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
        body: the function that runs the check. The function yields all differences, also those within their bounds.
        needs: for each feature, a function that returns whether the check needs the feature for the given inputs.
        applies: a function that returns whether a case has what the check needs, such as two rows.
        transforms: whether the check transforms the subject, for example by torch.compile or vmap.
        versus: "exact" if the check compares results with exact values; "other" if it compares two results.
        sample: a function that selects cases. At level normal, a check of cost `CODE` runs on one of these cases.
        sentence: the property, as one sentence.
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
        """Return the sentence of the check in the words of an operation, such as "input" for "logits"."""
        if CROSS_ENTROPY not in self.operations:
            return self.sentence
        return self.sentence.replace(CROSS_ENTROPY.word("input"), operation.word("input"))

    def run(self, trial: Trial) -> Found:
        """Run the check, and yield each problem and each difference.

        This method may raise the errors of :meth:`crossent.trials.trial.Trial.perform`.
        """
        failed = False
        try:
            for found in self.body(trial):
                failed = failed or isinstance(found, Problem) or not found.ratio <= 1  # a ratio of NaN fails too
                yield found
        except MisshapenError as error:
            yield Problem("wrong", str(error))
        except NotRunError:
            if not failed:  # otherwise, the check has failed
                raise

    def why_not_run(self, subject: Subject, inputs: Inputs) -> str:
        """Return the reason why a subject does not support the check on these inputs, or "".

        In messages, the reason follows the name of the subject, such as "is not differentiable".
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

    The check needs the features `needs`, and for target probabilities also the features `dense_needs`. `other_needs`
    has further features, each with a function that returns whether given inputs need the feature. The default of
    `sentence` is the first line of the function's docstring. The other arguments are attributes of :class:`Check`.
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
