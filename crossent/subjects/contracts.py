"""The contracts that a user can choose with `--contract`: what a subject promises about its arithmetic.

The error bounds follow from the contract. A callable cannot choose its contract, because the code under test could
then widen its own error bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from crossent.choices import GRADE_NAMES
from crossent.numerics.bounds.contracts import Grade, Promise
from crossent.subjects.subject import Subject
from crossent.words import quoted


@dataclass(frozen=True)
class NamedContract:
    """A contract that a user can choose.

    Attributes:
        promise: the promise about the arithmetic, which :mod:`crossent.numerics.bounds.contracts` explains.
        grade: the default grade in float16 and bfloat16.
        sentence: the promise in words.
        only_grade: whether the user can choose no other grade.
    """

    promise: Promise
    grade: Grade
    sentence: str
    only_grade: bool = False


# The contract of torch. Under this contract, the known failures of torch are also known failures of the subject.
TORCH_CONTRACT = "torch"
# The contract of a function of the user, unless the user chooses another contract.
DEFAULT_CONTRACT = "kernel"
CONTRACTS = {
    "kernel": NamedContract(
        "kernel", "A", "Computes in float32 or wider, sums in any order and in blocks, and rounds once."
    ),
    "fast": NamedContract(
        "fast_kernel", "A", "Like kernel, but with the hardware's approximate exp, log and division, as in Triton."
    ),
    "logsumexp": NamedContract(
        "logsumexp",
        "A",
        "Like kernel, and may subtract a logit from the log-sum-exp of its row (torch.logsumexp), which loses digits "
        "if all logits are large.",
    ),
    "eager": NamedContract(
        "eager",
        "A",
        "Consists of torch's operations in float32 or wider, and never computes the log-sum-exp of the logits "
        "(torch.logsumexp).",
    ),
    TORCH_CONTRACT: NamedContract(
        "torch",
        "B",
        "Like nn.CrossEntropyLoss: torch's order of sums, grade B in float16 and bfloat16, and torch's known failures.",
        only_grade=True,
    ),
}


def require_contract(contract: str | None, grade: str | None) -> None:
    """Check that the names of a contract and a grade are known, and fit together. None stands for the default.

    Raises:
        ValueError: a name is unknown, or the grade contradicts the contract.
    """
    if contract is not None and contract not in tuple(CONTRACTS):  # a tuple also takes a list, which has no hash
        raise ValueError(f"contract: got {quoted(contract)}; allowed are {', '.join(CONTRACTS)}")
    if grade is not None and grade not in GRADE_NAMES:
        raise ValueError(f"grade: got {quoted(grade)}; allowed are {', '.join(GRADE_NAMES)}")
    if contract is None or grade is None:
        return
    named = CONTRACTS[contract]
    if named.only_grade and grade != named.grade:
        raise ValueError(
            f"grade: got {quoted(grade)}, but the contract {quoted(contract)} has grade {named.grade} in float16 "
            f"and bfloat16; leave out one of the two"
        )


def under_contract(subject: Subject, contract: str | None, grade: str | None) -> Subject:
    """Return the subject with the promise of a contract, and with a grade.

    The default is the contract "kernel", and the grade of the contract.

    Raises:
        ValueError: a name is unknown, or the grade contradicts the contract.
    """
    require_contract(contract, grade)
    name = contract or DEFAULT_CONTRACT
    named = CONTRACTS[name]
    # An approximate exp, log and division stay approximate under every contract.
    promise: Promise = "fast_kernel" if subject.promise == "fast_kernel" else named.promise
    return replace(subject, contract=name, promise=promise, grades=grades_by_dtype(grade or named.grade))


def grades_by_dtype(grade: str) -> Mapping[str, Grade]:
    """Return a dict from each dtype with grade "B" to "B". `grade` is a value of the option `--grade`.

    >>> grades_by_dtype("float16=B")
    {'float16': 'B'}
    """
    dtypes = {"A": (), "B": ("float16", "bfloat16")}.get(grade, (grade.removesuffix("=B"),))
    return dict.fromkeys(dtypes, "B")
