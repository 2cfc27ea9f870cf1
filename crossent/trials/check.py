"""What a check is: one property of a subject on a case, and everything that the rest of the package knows about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.subjects.features import is_dense
from crossent.subjects.subject import Subject
from crossent.trials.difference import Difference
from crossent.trials.trial import MisshapenError, Problem, Trial

Found = Iterator[Difference | Problem]
Body = Callable[[Trial], Iterable[Difference | Problem]]


class Cost(Enum):
    """What a check costs. :mod:`crossent.run.plan` decides by it on which cases of a level the check runs."""

    CALL = "the first call of a case, or a second one"
    CALLS = "a few more calls, whose numbers matter"
    STRUCTURE = "many calls, or a traced graph: the options and the layout of a call matter, its numbers hardly"
    CODE = "seconds of compiling"
    TILES = "gigabytes, since the case has more elements than 31 bits count"


def _always(inputs: Inputs) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Check:
    """One property of a subject on a case.

    Attributes:
        name: the name of the check in a report.
        body: yields each problem, and each number that was measured, right or wrong. It may raise the errors of
            :mod:`crossent.trials.trial`.
        cost: what the check costs.
        needs: for each feature that the check cannot do without, on which inputs it needs the feature.
        applies: whether the check says anything about a case.
        transforms: whether the check transforms the subject, as torch.compile and vmap do.
        versus: what a number is compared with: the "exact" value, or "other", another result of the subject.
        sample: for a check of cost `CODE`, whether a case may be the one that stands for all below level thorough.
        sentence: the property in a sentence.
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

    def run(self, trial: Trial) -> Found:
        """Yield each problem and each number that was measured. A misshapen loss of a further call is a problem."""
        try:
            yield from self.body(trial)
        except MisshapenError as error:
            yield Problem("wrong", str(error))

    def not_run(self, subject: Subject, inputs: Inputs) -> str:
        """Return why the check does not run on a subject, as the sentence goes on after the subject's name, or ""."""
        for feature, reason in subject.lacks.items():
            if feature in self.needs and self.needs[feature](inputs):
                return reason
        if self.transforms and subject.not_transformed:
            return subject.not_transformed
        if "gradient" in self.needs and not subject.differentiable:
            return "has no gradient to compare"
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
) -> Callable[[Body], Check]:
    """Declare a function to be a check. Its name is the check's, and the first line of its docstring the sentence.

    Args:
        needs: features that the check cannot do without.
        dense_needs: features that the check cannot do without where the target is probabilities.
        other_needs: features that the check cannot do without on some inputs.
        cost: as in :class:`Check`, as are the others.
        name: another name than the function's.
        applies: see :class:`Check`.
        transforms: see :class:`Check`.
        versus: see :class:`Check`.
        sample: see :class:`Check`.
        sentence: another sentence than the docstring's first line.
    """
    required = {**dict.fromkeys(needs, _always), **dict.fromkeys(dense_needs, is_dense), **(other_needs or {})}

    def declared(body: Body) -> Check:
        said = sentence or (body.__doc__ or "").strip().partition("\n")[0]
        called = name or body.__name__
        return Check(called, body, cost, required, applies, transforms, versus, sample, said)

    return declared
