"""Read a report from its JSON file, which may be damaged or hostile.

The reader does not run, import or open anything that the file names. `report_of` refuses a document whose counts do not
fit its cases and findings.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from crossent.cases.axes import DTYPES
from crossent.choices import FEATURE_NAMES
from crossent.files import strict_json
from crossent.machine import DEVICES
from crossent.report.document import ABSENT, HAPPENED, NOT_RUN, SCHEMA, Shard, each, real, strings, typed, typed_list
from crossent.report.findings import Finding, Measured, Numbers, Outcome, ResultSummary, SubjectReport
from crossent.report.report import Report
from crossent.words import cut, one_line, quoted

T = TypeVar("T")
# The keys of a case that are not names of checks.
OF_A_CASE = ("outcome", "dtype", "inputs", "digest", "grade", "results", "raised", "held", "not_run")


def read_report(path: str | os.PathLike[str]) -> Report:
    """Return the report that :meth:`Report.write_json` wrote to a file.

    Raises:
        ValueError: the file is not a report, or the report is damaged.
    """
    return read_as(path, {SCHEMA: report_of})


def read_as(path: str | os.PathLike[str], makers: Mapping[int | str, Callable[[dict[str, Any]], T]]) -> T:
    """Return the object that a JSON file describes, such as a report.

    `makers` has, for each allowed schema (version of the format), the function that makes the object.

    Raises:
        ValueError: the file describes no such object, or is damaged.
    """
    document = read_json(path, tuple(makers))
    try:
        return makers[document["schema"]](document)
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = f"the key {cut(str(error))} is missing" if isinstance(error, KeyError) else str(error)
        raise _damaged(path, reason) from None


def report_of(document: dict[str, Any]) -> Report:
    """Return the report that a JSON document describes.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: a key is missing, or a value is impossible.
    """
    made = Report(
        each(str, document["environment"], "environment"),
        [_subject(part) for part in typed_list(document["subjects"], "subjects")],
        level=typed(str, document["level"], "level"),
        seed=_seed(document["seed"]),
        fixed=strings(document["mended"], "mended"),
        triples=typed(int, typed(dict, document["coverage"], "coverage")["triples"], "triples"),
        left_out=strings(document["left_out"], "left_out"),
        planned=None if document["planned"] is None else typed(int, document["planned"], "planned"),
        stopped=typed(bool, document.get("stopped", False), "stopped"),
        without=strings(document.get("without", []), "without"),
        grade=typed(str, document.get("grade", ""), "grade"),
        only={what: strings(names, what) for what, names in typed(dict, document.get("only", {}), "only").items()},
        shard=_shard(document["shard"]) if "shard" in document else None,
    )
    names = [part.name for part in made.subjects]
    if len(set(names)) < len(names):
        raise ValueError(f"two subjects have the name {quoted(max(names, key=names.count))}; each name may occur once")
    for place in unlike(document, made.to_json()):
        reason = "its value is wrong, or the key is unknown or missing"
        raise ValueError(f"{cut(place)} does not fit the cases and findings: {reason}")
    return made


def _shard(entry: Any) -> Shard:
    data = typed(dict, entry, "shard")
    number, count, planned = (typed(int, data[name], f"shard: {name}") for name in ("number", "count", "planned"))
    places = each(int, data["places"], "shard: places")
    if not 1 <= number <= count:
        raise ValueError(f"shard: number is {number}; it must be from 1 to the count, which is {count}")
    for case, place in places.items():
        if not 0 <= place < planned:
            must = f"a place must be at least 0, and less than the number of planned cases, {planned}"
            raise ValueError(f"shard: places: {cut(case)} has the place {place}; {must}")
    known: list[tuple[str, str]] = []
    for one in typed_list(data["known"], "shard: known"):
        if len(pair := strings(one, "shard: known")) != 2:
            raise ValueError(f"shard: known: got {quoted(one)}; each entry must be an array of a text and a state")
        if pair[1] not in (HAPPENED, ABSENT, NOT_RUN):
            allowed = f"allowed are {HAPPENED!r}, {ABSENT!r} and {NOT_RUN!r}"
            raise ValueError(f"shard: known: got the state {quoted(pair[1])}; {allowed}")
        known.append((pair[0], pair[1]))
    run, sources = (each(str, data[name], f"shard: {name}") for name in ("run", "sources"))
    return Shard(number, count, run, planned, places, sources, known)


def _subject(entry: Any) -> SubjectReport:
    part = typed(dict, entry, "a subject")
    name = typed(str, part["name"], "name")
    findings = [finding_of(name, typed(dict, one, "a finding")) for one in typed_list(part["findings"], "findings")]
    failed: dict[str, set[str]] = {}
    for finding in findings:
        failed.setdefault(finding.case, set()).add(finding.check)
    if sum(map(len, failed.values())) < len(findings):
        ids = [f"{name}:{finding.check}:{finding.case}" for finding in findings]
        raise ValueError(f"two findings have the id {quoted(max(ids, key=ids.count))}; each id may occur once")
    cases = typed(dict, part["cases"], "cases")
    if unknown := failed.keys() - cases.keys():
        raise ValueError(f"a finding is on the case {quoted(min(unknown))}, which did not run")
    outcomes = {case: _outcome(one, case, failed.get(case, set())) for case, one in cases.items()}
    not_applicable = Counter(each(int, part["not_applicable"], "not_applicable"))
    checks, contract = tuple(typed(dict, part["checks"], "checks")), typed(str, part.get("contract", ""), "contract")
    declared = strings(part.get("declared", []), "declared")
    needs = {
        check: _features(of, f"needs: {check}") for check, of in typed(dict, part.get("needs", {}), "needs").items()
    }
    return SubjectReport(name, outcomes, findings, not_applicable, checks, needs, contract, declared)


def _features(value: Any, what: str) -> list[str]:
    """Return the value if it is a list of names of features; otherwise raise TypeError or ValueError.

    Messages of errors call the value `what`.
    """
    names = strings(value, what)  # the report shows the names in a command, which users may copy into a shell
    if unknown := [name for name in names if name not in FEATURE_NAMES]:
        raise ValueError(f"{cut(what)}: got {quoted(unknown[0])}; allowed are the names of `crossent list features`")
    return names


def _outcome(entry: Any, case: str, failed: set[str]) -> Outcome:
    """Return the outcome of one case from `entry`. `failed` has the failed checks of the case."""
    data = typed(dict, entry, case)
    dtype = typed(str, data["dtype"], f"{case}: dtype")
    if dtype not in DTYPES:
        raise ValueError(f"{cut(case)}: dtype is {quoted(dtype)}; allowed are {', '.join(DTYPES)}")
    numbers = {check: one for check, one in data.items() if check not in OF_A_CASE}
    checks = {check: _measured(one, f"{case}: {check}", check in failed) for check, one in numbers.items()}
    results = typed(dict, data["results"], f"{case}: results")
    for check in strings(data["held"], f"{case}: held"):
        if check in checks or check in failed:
            also = "is listed as passed, and also has numbers or a finding, or is listed twice"
            raise ValueError(f"{cut(case)}: {cut(check)} {also}")
        checks[check] = Measured()
    checks |= {check: Measured(failed=True) for check in failed - checks.keys()}
    if str(data["grade"]) not in ("", "A", "B", "F"):
        raise ValueError(f"{cut(case)}: grade is {quoted(data['grade'])}; allowed are '', A, B and F")
    return Outcome(
        dtype,
        _checksum(data["inputs"], f"{case}: inputs"),
        _checksum(data["digest"], f"{case}: digest", or_empty=True),
        data["grade"],
        checks,
        each(str, data["not_run"], f"{case}: not_run"),
        {name: _summary(one, f"{case}: {name}") for name, one in results.items()},
        typed(str, data["raised"], f"{case}: raised"),
    )


def _measured(entry: Any, what: str, failed: bool) -> Measured:
    """Return the result of a check from `entry`. Messages of errors call the entry `what`."""
    data = typed(dict, entry, what)
    elements = typed(int, data["elements"], f"{what}: elements")
    vacuous = typed(bool, data.get("vacuous", False), f"{what}: vacuous")
    not_judged = each(int, data.get("not_judged", {}), f"{what}: not_judged")
    ulp, ratio = (real(data[name], f"{what}: {name}") for name in ("ulp", "ratio"))
    numbers = {"elements": elements, "ulp": ulp, "ratio": ratio}
    numbers |= {f"not_judged: {reason}": count for reason, count in not_judged.items()}
    if wrong := [name for name, number in numbers.items() if number < 0]:
        raise ValueError(f"{cut(f'{what}: {wrong[0]}')} is {numbers[wrong[0]]}; allowed is 0 or more")
    if not failed and not ratio <= 1:  # NaN counts as a failure
        raise ValueError(f"{cut(f'{what}: ratio')} is {ratio}, and the check has no finding; allowed is 0 to 1")
    return Measured(failed, ulp, ratio, vacuous, not_judged, elements)


def _summary(entry: Any, what: str) -> ResultSummary:
    data = typed(dict, entry, what)
    digest, dtype = _checksum(data["digest"], f"{what}: digest"), typed(str, data["dtype"], f"{what}: dtype")
    shape = tuple(typed(int, size, f"{what}: a size") for size in typed_list(data["shape"], f"{what}: shape"))
    value = None if data["value"] is None else real(data["value"], f"{what}: value")
    return ResultSummary(digest, dtype, shape, value, each(int, data["special"], f"{what}: special"))


def _seed(value: Any) -> int:
    if typed(int, value, "seed") < 0:
        raise ValueError(f"seed is {quoted(value)}; it must be 0 or more")
    return int(value)


def _checksum(value: Any, what: str, *, or_empty: bool = False) -> str:
    """Return the value if it is a checksum, eight hexadecimal digits in lower case; otherwise raise an error.

    `or_empty` also allows "". Messages of errors call the value `what`.
    """
    text = typed(str, value, what)
    if not (or_empty and text == "") and not (len(text) == 8 and set(text) <= set("0123456789abcdef")):
        empty = "empty or " if or_empty else ""
        raise ValueError(f"{cut(what)} is {quoted(text)}; it must be {empty}eight hexadecimal digits in lower case")
    return text


def unlike(data: Any, made: Any, where: str = "") -> Iterator[str]:
    """Yield the path of each value in which two JSON documents differ, such as "subjects[0].name".

    If both documents have the value, the path is followed by the value in `data`. `where` is the path of `data` and
    `made` in the documents.
    """
    if isinstance(data, dict) and isinstance(made, dict):
        for key in {**data, **made}:
            place = f"{where}.{key}" if where else key
            if (key in data) != (key in made):
                yield place
            else:
                yield from unlike(data[key], made[key], place)
    elif isinstance(data, list) and isinstance(made, list) and len(data) == len(made):
        for at, (one, other) in enumerate(zip(data, made, strict=True)):
            yield from unlike(one, other, f"{where}[{at}]")
    # 1 and 1.0 count as equal, since other programs may write either. True and 1 do not.
    elif data != made or isinstance(data, bool) != isinstance(made, bool):
        yield f"{where}, {json.dumps(data)[:80]},"


def read_json(path: str | os.PathLike[str], schemas: Sequence[int | str] = (SCHEMA,)) -> dict[str, Any]:
    """Return the JSON document of a report file. Check only the schema, the device, and that a torch version exists.

    Raises:
        ValueError: the file is not a report, is damaged, or has a schema that is not in `schemas`.
    """
    try:
        document = strict_json(path)
    except (ValueError, RecursionError) as error:
        raise _no_report(path, one_line(str(error))) from None
    found = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(document, dict) or found is None:
        raise _no_report(path, "schema is missing")
    if isinstance(found, bool) or found not in schemas:
        known = "`crossent check` writes schema 1, and `crossent soak` writes schema soak-1"
        allowed = f"allowed is schema {' or '.join(map(str, schemas))} ({known})"
        raise ValueError(f"{cut(str(path))}: got a report with schema {quoted(found)}; {allowed}")
    environment = document.get("environment")
    named = environment if isinstance(environment, dict) else {}
    device = named.get("device")
    if missing := [key for key in ("device", "torch") if named.get(key) is None]:
        raise _no_report(path, f"environment.{missing[0]} is missing")
    if not isinstance(device, str) or not re.fullmatch(r"cpu|(cuda|xpu)(:\d{1,4})?|mps", device):
        raise _damaged(path, f"environment.device is {quoted(device)}; allowed are {DEVICES}")
    return document


def _no_report(path: str | os.PathLike[str], reason: str) -> ValueError:
    advice = "give a report that crossent wrote with --json"
    return ValueError(f"{cut(str(path))}: not a report of crossent: {reason}; {advice}")


def _damaged(path: str | os.PathLike[str], reason: str) -> ValueError:
    advice = "write a new report"
    return ValueError(f"{cut(str(path))}: damaged, or from another version of crossent: {one_line(reason)}; {advice}")


def find(document: dict[str, Any], id: str) -> tuple[Finding, str]:
    """Return the finding with the id `id` in the JSON document of a report, and the checksum of its case's inputs.

    Raises:
        ValueError: the report lacks the finding, or is damaged.
    """
    try:
        for subject in typed_list(document["subjects"], "subjects"):  # damage after the finding does no harm
            for entry in typed_list(typed(dict, subject, "a subject")["findings"], "findings"):
                if typed(dict, entry, "a finding")["id"] == id:
                    finding = finding_of(typed(str, subject["name"], "a subject: name"), entry)
                    if finding.id != id:
                        raise ValueError(f"the entry with the id {cut(id)} describes the finding {cut(finding.id)}")
                    return finding, _checksum(subject["cases"][finding.case]["inputs"], "inputs")
        entries = (entry for subject in document["subjects"] for entry in subject["findings"])
        ids = [typed(str, entry["id"], "a finding: id") for entry in entries]
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        reason = f"the key {cut(str(error))} is missing" if isinstance(error, KeyError) else one_line(str(error))
        raise ValueError(
            f"REPORT: damaged, or from another version of crossent: {reason}; write a new report"
        ) from None
    if not ids:
        raise ValueError(
            f"finding: got {quoted(id)}, but the report has no findings; give a report that has the finding"
        )
    known = f"choose from {', '.join(map(cut, ids[:3]))}{', …' if len(ids) > 3 else ''}"
    raise ValueError(f"finding: got {quoted(id)}, which the report does not have; {known}")


def finding_of(subject: str, entry: dict[str, Any]) -> Finding:
    """Return the finding that `entry` of the JSON document describes.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: the entry is not a finding.
    """
    texts = ("check", "case", "kind", "message", "call", "torch", "of")
    check, case, kind, message, call, torch, of = (typed(str, entry[name], f"a finding: {name}") for name in texts)
    expected = None if entry["expected"] is None else typed(str, entry["expected"], "a finding: expected")
    numbers = None
    if (index := entry["index"]) is not None:
        if type(index) is not list or not all(type(place) is int and place >= 0 for place in index):
            must = "it must be an array of integers that are 0 or more"
            raise TypeError(f"a finding: index is {quoted(index)}; {must}")
        reals = ("got", "exact", "radius", "bound", "ulp", "ratio")
        got, exact, radius, bound, ulp, ratio = (real(entry[name], f"a finding: {name}") for name in reals)
        bits, versus = (typed(str, entry[name], f"a finding: {name}") for name in ("bits", "versus"))
        numbers = Numbers(tuple(index), got, bits, exact, radius, bound, ulp, ratio, versus)
    return Finding(subject, check, case, kind, message, call, numbers, torch, expected, of)
