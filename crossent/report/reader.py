"""Read a report from its JSON file, which may be damaged or hostile.

The reader does not run, import or open anything that the file names. Some values of a report, such as counts, follow
from its cases and findings. So the reader computes these values again, and refuses a file with other values.
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
        ValueError: the file is not a report, or the report is damaged. The message is one line.
        OSError: the file cannot be read.
    """
    return read_as(path, {SCHEMA: report_of})


def read_as(path: str | os.PathLike[str], makers: Mapping[int | str, Callable[[dict[str, Any]], T]]) -> T:
    """Return the object that a JSON file describes, such as a report.

    Args:
        path: the file.
        makers: for each allowed schema, the function that makes the object from the JSON document.

    Raises:
        ValueError: the file describes no such object, or is damaged. The message is one line.
        OSError: the file cannot be read.
    """
    document = read_json(path, tuple(makers))
    try:
        return makers[document["schema"]](document)
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = f"the key {cut(str(error))} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{cut(str(path))}: damaged, or from another version of crossent: {one_line(reason)}; write a new report"
        ) from None


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
        raise ValueError(f"the value of {cut(place)} contradicts the cases and findings")
    return made


def _shard(entry: Any) -> Shard:
    data = typed(dict, entry, "shard")
    number, count, planned = (typed(int, data[name], f"shard: {name}") for name in ("number", "count", "planned"))
    places = each(int, data["places"], "shard: places")
    if not 1 <= number <= count or any(not 0 <= place < planned for place in places.values()):
        raise ValueError(
            f"shard: got number {number}, count {count} and planned {planned}; "
            f"allowed are 1 to count for number, and 0 to planned - 1 for each of places"
        )
    known = [
        (reason, state)
        for reason, state in (strings(one, "shard: known") for one in typed_list(data["known"], "known"))
    ]
    if wrong := [state for _, state in known if state not in (HAPPENED, ABSENT, NOT_RUN)]:
        raise ValueError(
            f"shard: known has the state {quoted(wrong[0])}; allowed are {HAPPENED!r}, {ABSENT!r} and {NOT_RUN!r}"
        )
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
    """Return the value if it is a list of names of features.

    A page shows the names in a command that users may copy into a shell, so no other text is allowed.

    Raises:
        TypeError, ValueError: the value is anything else. The message calls the value `what`.
    """
    names = strings(value, what)
    if unknown := [name for name in names if name not in FEATURE_NAMES]:
        raise ValueError(f"{cut(what)}: got {quoted(unknown[0])}; allowed are the names of `crossent list features`")
    return names


def _outcome(entry: Any, case: str, failed: set[str]) -> Outcome:
    """Return the outcome that `entry` describes, of the case with the id `case`. `failed` has its failed checks."""
    data = typed(dict, entry, case)
    dtype = typed(str, data["dtype"], f"{case}: dtype")
    if dtype not in DTYPES:
        raise ValueError(f"{cut(case)}: dtype is {quoted(dtype)}; allowed are {', '.join(DTYPES)}")
    numbers = {check: one for check, one in data.items() if check not in OF_A_CASE}
    checks = {check: _measured(one, f"{case}: {check}", check in failed) for check, one in numbers.items()}
    for check in strings(data["held"], f"{case}: held"):
        if check in checks or check in failed:
            raise ValueError(f"{cut(case)}: {cut(check)} is listed as passed, and also has numbers or a finding")
        checks[check] = Measured()
    checks |= {check: Measured(failed=True) for check in failed - checks.keys()}
    if str(data["grade"]) not in ("", "A", "B", "F"):
        raise ValueError(f"{cut(case)}: grade is {quoted(data['grade'])}; allowed are '', A, B and F")
    return Outcome(
        dtype,
        _checksum(data["inputs"], f"{case}: inputs"),
        _checksum(data["digest"], f"{case}: digest", or_none=True),
        data["grade"],
        checks,
        each(str, data["not_run"], f"{case}: not_run"),
        {name: _summary(one, case) for name, one in typed(dict, data["results"], f"{case}: results").items()},
        typed(str, data["raised"], f"{case}: raised"),
    )


def _measured(entry: Any, what: str, failed: bool) -> Measured:
    """Return the result that `entry` describes. `failed` says if the check failed. Messages call the entry `what`."""
    data = typed(dict, entry, what)
    elements = typed(int, data["elements"], f"{what}: elements")
    vacuous = typed(bool, data.get("vacuous", False), f"{what}: vacuous")
    not_judged = each(int, data.get("not_judged", {}), f"{what}: not_judged")
    ulp, ratio = (real(data[name], f"{what}: {name}") for name in ("ulp", "ratio"))
    numbers = {"elements": elements, "ulp": ulp, "ratio": ratio}
    numbers |= {f"not_judged: {reason}": count for reason, count in not_judged.items()}
    if wrong := [name for name, number in numbers.items() if number < 0]:
        raise ValueError(f"{cut(f'{what}: {wrong[0]}')} is {numbers[wrong[0]]}; allowed is 0 or more")
    return Measured(failed, ulp, ratio, vacuous, not_judged, elements)


def _summary(entry: Any, case: str) -> ResultSummary:
    data = typed(dict, entry, f"{case}: a result")
    shape = tuple(typed(int, size, f"{case}: a size") for size in typed_list(data["shape"], f"{case}: shape"))
    value = None if data["value"] is None else real(data["value"], f"{case}: value")
    special = each(int, data["special"], f"{case}: special")
    return ResultSummary(_checksum(data["digest"], case), typed(str, data["dtype"], case), shape, value, special)


def _seed(value: Any) -> int:
    """Return the seed of a run. Raise TypeError or ValueError if the value is not an integer of 0 or more."""
    if typed(int, value, "seed") < 0:
        raise ValueError(f"seed is {quoted(value)}; it must be 0 or more")
    return int(value)


def _checksum(value: Any, what: str, *, or_none: bool = False) -> str:
    """Return the value if it is a checksum: eight hexadecimal digits. If `or_none` is true, also allow "".

    Raises:
        TypeError, ValueError: the value is not a checksum. The message calls the value `what`.
    """
    text = typed(str, value, what)
    if not (or_none and text == "") and not (len(text) == 8 and set(text) <= set("0123456789abcdef")):
        raise ValueError(f"{cut(what)} is {quoted(text)}; it must be eight hexadecimal digits")
    return text


def unlike(data: Any, made: Any, where: str = "") -> Iterator[str]:
    """Yield the path of each value in which the JSON documents `data` and `made` differ, such as "subjects[0].name".

    If both documents have the value, the value in `data` follows the path. In the recursion, `data` and `made` are
    parts of the documents, and `where` is their path.
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


LARGEST = 2**29  # the most bytes of a report; a report on five subjects at level thorough has a tenth of this size


def read_json(path: str | os.PathLike[str], schemas: Sequence[int | str] = (SCHEMA,)) -> dict[str, Any]:
    """Return the JSON document of a report file.

    Check the size, the JSON syntax, the device, that a version of torch is named, and that the schema is one of
    `schemas`. Check nothing else.

    Raises:
        ValueError: the file is not a report, has another schema, or names an unknown device. The message is one line.
        OSError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)  # a limit, because a device such as /dev/zero has no end
        if len(content) > LARGEST:
            raise ValueError(f"the file has more than {LARGEST:,} bytes, the largest size of a report")
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        reason = f"not a report of crossent: {one_line(str(error))}"
        raise ValueError(f"{cut(str(path))}: {reason}; give a file that `crossent check --json` wrote") from None
    found = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(document, dict) or isinstance(found, bool) or found not in schemas:
        raise ValueError(
            f"{cut(str(path))}: got schema {quoted(found)}; "
            f"allowed is a report of crossent with schema {' or '.join(map(str, schemas))}"
        )
    environment = document.get("environment")
    named = environment if isinstance(environment, dict) else {}
    device = named.get("device")
    if missing := [key for key in ("device", "torch") if named.get(key) is None]:
        reason = f"not a report of crossent: environment.{missing[0]} is missing"
        raise ValueError(f"{cut(str(path))}: {reason}; give a file that `crossent check --json` wrote")
    if not isinstance(device, str) or not re.fullmatch(r"cpu|(cuda|xpu)(:\d{1,4})?|mps", device):
        found = f"got environment.device {quoted(device)}; allowed are {DEVICES}"
        raise ValueError(f"{cut(str(path))}: damaged: {found}")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raise ValueError if a key occurs twice, since programs disagree on its value."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {quoted(max(keys, key=keys.count))} occurs twice in one object")
    return made


def _no_number(token: str) -> float:
    raise ValueError(f"{token} is not JSON")


def find(document: dict[str, Any], id: str) -> tuple[Finding, str | None]:
    """Return the finding with the id `id` in the JSON document of a report, and the checksum of its case's inputs.

    Raises:
        ValueError: the report has no finding with this id, or the report is damaged.
    """
    try:
        for subject in document["subjects"]:
            for entry in subject["findings"]:
                if entry["id"] == id:
                    finding = finding_of(_string(subject, "name"), entry)
                    if finding.id != id:
                        raise ValueError(f"the entry with the id {cut(id)} describes the finding {cut(finding.id)}")
                    return finding, _checksum(subject["cases"][finding.case]["inputs"], "inputs")
        ids = [_string(entry, "id") for subject in document["subjects"] for entry in subject["findings"]]
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        reason = f"the key {cut(str(error))} is missing" if isinstance(error, KeyError) else one_line(str(error))
        raise ValueError(
            f"report: damaged, or from another version of crossent: {reason}; write a new report"
        ) from None
    known = (
        f"its findings are {', '.join(map(cut, ids[:3]))}{', …' if len(ids) > 3 else ''}"
        if ids
        else "it has no findings"
    )
    raise ValueError(f"finding: got {quoted(id)}, which the report does not have; {known}")


def finding_of(subject: str, entry: dict[str, Any]) -> Finding:
    """Return the finding that `entry` of the JSON document describes. `subject` is the name of the subject.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: the entry is not a finding.
    """
    numbers = None
    if entry["index"] is not None:
        reals = [_number(entry, name) for name in ("got", "exact", "radius", "bound", "ulp", "ratio")]
        got, exact, radius, bound, ulp, ratio = reals
        if not all(type(place) is int and place >= 0 for place in entry["index"]):
            raise TypeError(f"index is {quoted(entry['index'])}; it must be a list of integers that are 0 or more")
        bits, versus = _string(entry, "bits"), _string(entry, "versus")
        numbers = Numbers(tuple(entry["index"]), got, bits, exact, radius, bound, ulp, ratio, versus)
    check, case, kind, message, call, torch = (
        _string(entry, name) for name in ("check", "case", "kind", "message", "call", "torch")
    )
    expected = None if entry["expected"] is None else _string(entry, "expected")
    return Finding(subject, check, case, kind, message, call, numbers, torch, expected, _string(entry, "of"))


def _string(entry: dict[str, Any], name: str) -> str:
    if not isinstance(value := entry[name], str):
        raise TypeError(f"{name} is {quoted(value)}; it must be a string")
    return value


def _number(entry: dict[str, Any], name: str) -> float:
    value = entry[name]
    if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
        raise TypeError(f"{name} is {quoted(value)}; it must be a number")
    return float(value)
