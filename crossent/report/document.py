"""Convert the parts of a report to JSON, and check the types of the values in a JSON document.

`SCHEMA` is the version of the document's format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from crossent.report.findings import Finding, Measured, SubjectReport
from crossent.words import cut, quoted

T = TypeVar("T")

SCHEMA = 1
# The states of a known failure: see `Shard.known`.
HAPPENED, ABSENT, NOT_RUN = "happened", "absent", "not run"


@dataclass(frozen=True)
class ShardNumber:
    """The position of a shard, the part of a run that one command runs. `number` is from 1 to `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class Shard(ShardNumber):
    """The description of a shard, which `crossent merge` reads.

    Attributes:
        run: properties of the whole run, such as the dtypes; equal for all shards.
        planned: the number of cases of the whole run.
        places: the index of each case of the shard in the plan of the whole run, by the id of the case.
        sources: the source of each subject, such as "kernels/mine.py:loss", by the name of the subject.
        known: a pair for each known failure: its text, and its state "happened", "absent" or "not run". The state
            "absent" means that a check ran, and that no finding matches.
    """

    run: Mapping[str, str]
    planned: int
    places: Mapping[str, int]
    sources: Mapping[str, str]
    known: Sequence[tuple[str, str]] = field(default_factory=list)


def shard_json(shard: Shard) -> dict[str, Any]:
    """Return the description of a shard as a JSON object."""
    return asdict(shard)


def subject_json(subject: SubjectReport) -> dict[str, Any]:
    """Return the report of a subject as a JSON object."""
    checks: dict[str, dict[str, Any]] = {}
    for (check, dtype), tally in subject.tallies.items():
        worst = None if tally.ratio is None else {"ratio": tally.ratio, "ulp": tally.ulp, "case": tally.case}
        checks.setdefault(check, {})[dtype] = {
            "ran": tally.ran,
            "failed": tally.failed,
            "expected": tally.expected,
            "vacuous": tally.vacuous,
            "not_judged": dict(tally.not_judged),
            "elements": tally.elements,
            "worst": worst,
        }
    failed = {finding.case: finding.expected is not None for finding in subject.findings}
    failed |= {finding.case: False for finding in subject.findings if finding.expected is None}
    cases: dict[str, Any] = {}
    for case, outcome in subject.outcomes.items():
        cases[case] = {
            "outcome": "held" if case not in failed else "expected" if failed[case] else "failed",
            "dtype": outcome.dtype,
            "inputs": outcome.inputs,
            "digest": outcome.digest,
            "grade": outcome.grade,
            "results": {name: asdict(shown) for name, shown in outcome.results.items()},
            "raised": outcome.raised,
            "held": [check for check, one in outcome.checks.items() if one.ratio is None and not one.failed],
            "not_run": outcome.not_run,
            **{check: _measured_json(one) for check, one in outcome.checks.items() if one.ratio is not None},
        }
    needs = {check: names for check, names in subject.needs.items() if names}
    return {
        "name": subject.name,
        **({"contract": subject.contract} if subject.contract else {}),
        **({"declared": list(subject.declared)} if subject.declared else {}),
        **({"needs": {check: list(names) for check, names in needs.items()}} if needs else {}),
        "counts": subject.counts,
        "grades": subject.grades,
        "not_applicable": dict(subject.not_applicable),
        "not_run": {check: dict(reasons) for check, reasons in subject.not_run.items()},
        "checks": checks,
        "findings": [finding_json(finding) for finding in subject.findings],
        "cases": cases,
    }


def _measured_json(measured: Measured) -> dict[str, Any]:
    """Return the result of a check as a JSON object, without `failed`, which follows from the findings."""
    numbers = {"ulp": measured.ulp, "ratio": measured.ratio, "elements": measured.elements}
    gaps = {"vacuous": measured.vacuous, "not_judged": dict(measured.not_judged)}
    return numbers | {name: gap for name, gap in gaps.items() if gap}


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return a finding as a JSON object."""
    n = finding.numbers
    names = ("index", "got", "bits", "exact", "radius", "bound", "ulp", "ratio", "versus")
    return {
        "id": finding.id,
        "check": finding.check,
        "case": finding.case,
        "kind": finding.kind,
        "of": finding.of,
        "message": finding.message,
        "call": finding.call,
        **{name: None if n is None else getattr(n, name) for name in names},
        "torch": finding.torch,
        "expected": finding.expected,
    }


def jsonable(value: Any) -> Any:
    """Return a copy of a value, such as a dict, in which NaN and infinities are strings, and tuples are lists."""
    if isinstance(value, dict):
        return {key: jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


# What JSON calls the values of a type, for messages.
_IN_JSON = {int: "an integer", str: "a string", bool: "true or false", list: "an array", dict: "an object"}


def typed(kind: type[T], value: Any, what: str) -> T:
    """Return the value if its type is exactly `kind`; otherwise raise TypeError. True is not an int.

    In each function of this module, the argument `what` names the value in the message of the error.
    """
    if type(value) is not kind:
        raise TypeError(f"{cut(what)} is {quoted(value)}; it must be {_IN_JSON[kind]}")
    return value


def typed_list(value: Any, what: str) -> list[Any]:
    """Return the value if it is a JSON array; otherwise raise TypeError."""
    made: list[Any] = typed(list, value, what)
    return made


def strings(value: Any, what: str) -> list[str]:
    """Return the value if it is a JSON array of strings; otherwise raise TypeError."""
    return [typed(str, entry, what) for entry in typed_list(value, what)]


def each(kind: type[T], value: Any, what: str) -> dict[str, T]:
    """Return the value if it is a JSON object with values of the type `kind`; otherwise raise TypeError."""
    return {key: typed(kind, entry, f"{what}: {key}") for key, entry in typed(dict, value, what).items()}


def real(value: Any, what: str) -> float:
    """Return a number of a JSON document, or "nan", "inf" or "-inf", as a float.

    Raises:
        TypeError: the value is anything else.
        ValueError: the integer is too large for a float.
    """
    if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
        raise TypeError(f"{cut(what)} is {quoted(value)}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{cut(what)} is {quoted(value)}; a float cannot be so large") from None
