"""Read the report of a soak from its JSON file, which may be damaged or hostile.

The reader does not run, import or open anything that the file names. The reader draws the case of each finding and each
worst case again, and compares the ids. So a report with a changed shard number is refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from crossent.cases.axes import DTYPES
from crossent.cases.operation import OPERATIONS
from crossent.checks import checks_of
from crossent.report.document import SCHEMA, ShardNumber, each, real, strings, typed, typed_list
from crossent.report.expected_findings import KINDS
from crossent.report.reader import finding_of, read_as, report_of, unlike
from crossent.report.report import Report
from crossent.run.soak.draws import MOST_CASES, draw
from crossent.run.soak.report import SHOWN_VERSIONS, SOAK_SCHEMA, SoakReport
from crossent.run.soak.sums import FINDINGS_KEPT, Failures, SoakTally, SubjectSums
from crossent.subjects.contracts import require_contract
from crossent.subjects.features import FEATURES
from crossent.words import counted, cut, quoted


def read_either(path: str | os.PathLike[str]) -> Report | SoakReport:
    """Return the report of `crossent check --json` or `crossent soak --json` from its file.

    Raises:
        ValueError: the file is not a report, or the report is damaged.
        OSError: the file cannot be read.
    """
    makers: dict[int | str, Callable[[dict[str, Any]], Report | SoakReport]]
    makers = {SCHEMA: report_of, SOAK_SCHEMA: soak_of}
    return read_as(path, makers)


def soak_of(document: dict[str, Any]) -> SoakReport:
    """Return the report of a soak from its JSON document.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: the document is damaged.
    """
    shard = [] if document["shard"] is None else typed_list(document["shard"], "shard")
    if document["shard"] is not None and len(shard) != 2:
        raise ValueError(f"shard: got {quoted(shard)}; allowed are null, and an array such as [2, 8], for shard 2 of 8")
    promises = typed(dict, document["promises"], "promises")
    environment = each(str, document["environment"], "environment")
    if missing := [name for name in SHOWN_VERSIONS if name not in environment]:
        raise KeyError(missing[0])
    operation = typed(str, document["operation"], "operation")
    if operation not in OPERATIONS:
        raise ValueError(f"operation: got {quoted(operation)}; allowed are {', '.join(OPERATIONS)}")
    made = SoakReport(
        environment,
        [_sums(entry) for entry in typed_list(document["subjects"], "subjects")],
        cases=typed(int, document["cases"], "cases"),
        seed=typed(int, document["seed"], "seed"),
        dtypes=strings(document["dtypes"], "dtypes"),
        operation=OPERATIONS[operation],
        promises={name: promises[name] for name in ("without", "contract", "grade")},
        known_failures_checksum=typed(str, document["expected_findings"], "expected_findings"),
        shard=ShardNumber(*shard) if shard else None,
        complete=typed(bool, document["complete"], "complete"),
    )
    require_contract(made.promises["contract"], made.promises["grade"])
    if unknown := [name for name in strings(promises["without"], "without") if name not in FEATURES]:
        allowed = "allowed are the names of `crossent list features`"
        raise ValueError(f"without: got the feature {quoted(unknown[0])}; {allowed}")
    for reason in _impossible(made):
        raise ValueError(reason)
    for place in unlike(document, made.to_json()):
        raise ValueError(f"{cut(place)} is not as a soak would have written it")
    return made


def _sums(entry: Any) -> SubjectSums:
    part = typed(dict, entry, "a subject")
    name, contract, source, code = (typed(str, part[key], key) for key in ("name", "contract", "source", "code"))
    declared, checks = strings(part["declared"], "declared"), typed(dict, part["checks"], "checks")
    sums = SubjectSums(name, contract, declared, source, code)
    sums.not_applicable = Counter(each(int, part["not_applicable"], "not_applicable"))
    sums.known = Counter(each(int, part["known"], "known"))
    for check, of in checks.items():
        for dtype, one in typed(dict, of, f"checks: {check}").items():
            sums.tallies[check, dtype] = _tally(one, check)
    for one in typed_list(part["failures"], "failures"):
        check, dtype, kind = (typed(str, one[key], key) for key in ("check", "dtype", "kind"))
        first = [(typed(int, each["number"], "number"), finding_of(name, each)) for each in one["first"]]
        sums.failures[check, dtype, kind] = Failures(typed(int, one["count"], "count"), first)
    return sums


def _tally(entry: Any, check: str) -> SoakTally:
    data = typed(dict, entry, check)
    tally = SoakTally()
    for name in ("ran", "failed", "expected", "skipped", "vacuous", "elements"):
        setattr(tally, name, typed(int, data[name], f"{check}: {name}"))
    tally.not_judged = Counter(each(int, data["not_judged"], f"{check}: not_judged"))
    if data["worst"] is not None:
        worst = typed(dict, data["worst"], f"{check}: worst")
        tally.ratio, tally.ulp = (real(worst[name], f"{check}: worst: {name}") for name in ("ratio", "ulp"))
        tally.number = typed(int, worst["number"], f"{check}: worst: number")
        tally.case = typed(str, worst["case"], f"{check}: worst: case")
    return tally


def _impossible(made: SoakReport) -> Iterator[str]:
    """Yield the reasons why no soak can have made this report."""
    number, count = (1, 1) if made.shard is None else (made.shard.number, made.shard.count)
    names = [subject.name for subject in made.subjects]
    if type(number) is not int or type(count) is not int or not 1 <= number <= count:
        yield f"shard: got {quoted(number)}/{quoted(count)}; allowed are 1/N to N/N"
    elif not 1 <= made.cases <= MOST_CASES:
        yield f"cases: got {quoted(made.cases)}; allowed are whole numbers from 1 to {MOST_CASES:,}"
    elif not 0 <= made.seed < 2**32:
        yield f"seed: got {quoted(made.seed)}; allowed are whole numbers from 0 to {2**32 - 1:,}"
    elif list(made.dtypes) != [dtype for dtype in DTYPES if dtype in made.dtypes]:
        yield f"dtypes: got {quoted(list(made.dtypes))}; allowed are {', '.join(DTYPES)}, in this order"
    elif len(set(names)) < len(names):
        yield f"two subjects have the name {quoted(max(names, key=names.count))}; each name may occur once"
    else:
        for subject in made.subjects:
            for reason in _impossible_sums(made, subject):
                yield f"{cut(subject.name)}: {reason}"


def _impossible_sums(made: SoakReport, subject: SubjectSums) -> Iterator[str]:
    calls = {dtype: subject.calls(dtype) for dtype in made.dtypes}
    done = sum(calls.values()) + subject.not_applicable.total()
    if done != made.planned if made.complete else done > made.planned:
        yield f"the sums have {counted(done, 'case')}, but the settings of the report give {made.planned}"
    found: Counter[tuple[str, str]] = Counter()
    for (check, dtype, kind), failures in subject.failures.items():
        found[check, dtype] += failures.count
        numbers = [number for number, _ in failures.first]
        if kind not in KINDS:
            yield f"{cut(check)}: got findings of kind {quoted(kind)}; allowed are {', '.join(KINDS)}"
        elif sorted(set(numbers)) != numbers or len(numbers) != min(failures.count, FINDINGS_KEPT):
            got = f"got {counted(failures.count, 'finding')} of kind {quoted(kind)}, and a list of {len(numbers)}"
            listed = f"a report lists the first {FINDINGS_KEPT} findings of a kind, by ascending case number"
            yield f"{cut(check)}: {got}; {listed}"
        for number, finding in failures.first:
            yield from _other_case(made, number, dtype, finding.case)
            if (finding.check, finding.kind) != (check, kind):
                got = f"{cut(finding.id)} of kind {quoted(finding.kind)}"
                yield f"{got} is among the findings of the check {cut(check)} and the kind {quoted(kind)}"
            elif finding.expected is not None:
                yield f"{cut(finding.id)}: a known failure is listed, but a report lists only the other findings"
    for (check, dtype), tally in subject.tallies.items():
        if check not in checks_of(made.operation) or dtype not in calls:
            yield f"got sums of the check {quoted(check)} in {quoted(dtype)}, which this soak does not run"
            continue
        counts = (
            tally.failed,
            tally.expected,
            tally.skipped,
            tally.vacuous,
            tally.elements,
            *tally.not_judged.values(),
        )
        possible = tally.failed + tally.expected <= tally.ran <= calls[dtype] - tally.skipped
        if min(counts) < 0 or not possible or tally.vacuous > tally.ran or found.pop((check, dtype), 0) != tally.failed:
            yield f"the counts of {check} in {dtype} do not fit together"
        if tally.ratio is not None:
            worst = f"the error in the worst case of {check} in {dtype} is {tally.ratio} times its bound"
            if not (tally.ratio >= 0 and (tally.ulp or 0.0) >= 0):
                yield f"{worst} and {tally.ulp} ulp; allowed are 0 or more"
            elif tally.ratio > 1 and not tally.failed:
                yield f"{worst}, but the report has no finding of this check in this dtype"
            yield from _other_case(made, tally.number, dtype, tally.case)
    if +found or subject.known.total() != sum(tally.expected for tally in subject.tallies.values()):
        yield "the counts in `failures` and `known` do not fit the counts in `checks`"
    if min((*subject.known.values(), *subject.not_applicable.values()), default=1) < 1:
        yield "a count in `known` or `not_applicable` is below 1"


def _other_case(made: SoakReport, number: int, dtype: str, case: str) -> Iterator[str]:
    """Yield a reason to refuse a report with the id `case` if the soak draws another case for the number and dtype."""
    if dtype not in made.dtypes or number not in made.numbers:
        yield f"the case {cut(case)}, number {number} in {cut(dtype)}, does not belong to this soak or shard"
    elif draw(number, dtype, made.seed, made.operation).id != case:
        yield f"the case number {number} is {quoted(case)}, but the seed gives another case"
