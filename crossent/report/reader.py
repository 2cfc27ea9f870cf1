"""Recorded: a run read back from its file, which may be damaged, or made by somebody who means no good.

Nothing in it is run, imported or looked up. What a report says twice must agree: from the cases and findings that were
read the whole document is made anew, and has to be the one that was read.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

from crossent.cases.axes import DTYPES
from crossent.report.document import SCHEMA
from crossent.report.findings import Finding, Measured, Numbers, Outcome, ResultSummary, SubjectReport
from crossent.report.report import Report
from crossent.words import one_line

T = TypeVar("T")
# The keys of a case that name no check.
OF_A_CASE = ("outcome", "dtype", "inputs", "digest", "grade", "results", "raised", "held", "not_run")


def read_report(path: str | os.PathLike[str]) -> Report:
    """The run that :meth:`Report.write_json` wrote to a file.

    Raises:
        ValueError: the file is no such report, or damaged, in one line.
        OSError: it cannot be read.
    """
    document = read_json(path)
    try:
        return report_of(document)
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: damaged, or of another version of crossent: {one_line(said)}") from None


def report_of(document: dict[str, Any]) -> Report:
    """The run that a document tells.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: it lacks something, or says what no report does.
    """
    made = Report(
        _each(str, document["environment"], "environment"),
        [_subject(part) for part in _list(document["subjects"], "subjects")],
        level=_a(str, document["level"], "level"),
        seed=_a(int, document["seed"], "seed"),
        mended=_strings(document["mended"], "mended"),
        triples=_a(int, _a(dict, document["coverage"], "coverage")["triples"], "triples"),
        left_out=_strings(document["left_out"], "left_out"),
        planned=None if document["planned"] is None else _a(int, document["planned"], "planned"),
    )
    names = [part.name for part in made.subjects]
    if len(set(names)) < len(names):
        raise ValueError(f"two subjects are called {max(names, key=names.count)!r}")
    for where in _unlike(document, made.to_json()):
        raise ValueError(f"what it says of {where} does not agree with its cases")
    return made


def _subject(entry: Any) -> SubjectReport:
    part = _a(dict, entry, "a subject")
    name = _a(str, part["name"], "name")
    findings = [finding_of(name, _a(dict, one, "a finding")) for one in _list(part["findings"], "findings")]
    failed: dict[str, set[str]] = {}
    for finding in findings:
        failed.setdefault(finding.case, set()).add(finding.check)
    if sum(map(len, failed.values())) < len(findings):
        raise ValueError("there are two findings of one check on one case")
    cases = _a(dict, part["cases"], "cases")
    if unknown := failed.keys() - cases.keys():
        raise ValueError(f"there is a finding on {min(unknown)!r}, which did not run")
    outcomes = {case: _outcome(one, case, failed.get(case, set())) for case, one in cases.items()}
    not_applicable = Counter(_each(int, part["not_applicable"], "not_applicable"))
    return SubjectReport(name, outcomes, findings, not_applicable, tuple(_a(dict, part["checks"], "checks")))


def _outcome(entry: Any, case: str, failed: set[str]) -> Outcome:
    """One case's; these checks have failed on it."""
    told = _a(dict, entry, case)
    dtype = _a(str, told["dtype"], f"{case}: dtype")
    if dtype not in DTYPES:
        raise ValueError(f"{case}: dtype is {dtype!r}")
    checks = {check: _measured(one, case, check in failed) for check, one in told.items() if check not in OF_A_CASE}
    for check in _strings(told["held"], f"{case}: held"):
        if check in checks or check in failed:
            raise ValueError(f"{case}: {check} is said to have held, and otherwise")
        checks[check] = Measured()
    checks |= {check: Measured(failed=True) for check in failed - checks.keys()}
    if str(told["grade"]) not in ("", "A", "B", "F"):
        raise ValueError(f"{case}: grade is {told['grade']!r}")
    return Outcome(
        dtype,
        _checksum(told["inputs"], f"{case}: inputs"),
        _checksum(told["digest"], f"{case}: digest", or_none=True),
        told["grade"],
        checks,
        _each(str, told["not_run"], f"{case}: not_run"),
        {name: _shown(one, case) for name, one in _a(dict, told["results"], f"{case}: results").items()},
        _a(str, told["raised"], f"{case}: raised"),
    )


def _measured(entry: Any, case: str, failed: bool) -> Measured:
    told = _a(dict, entry, case)
    elements, vacuous = _a(int, told["elements"], case), _a(bool, told.get("vacuous", False), case)
    not_judged = _each(int, told.get("not_judged", {}), case)
    ulp, ratio = _real(told["ulp"], case), _real(told["ratio"], case)
    if elements < 0 or ulp < 0 or ratio < 0 or min(not_judged.values(), default=0) < 0:
        raise ValueError(f"{case}: a number is negative")
    return Measured(failed, ulp, ratio, vacuous, not_judged, elements)


def _shown(entry: Any, case: str) -> ResultSummary:
    told = _a(dict, entry, f"{case}: a result")
    shape = tuple(_a(int, size, f"{case}: a size") for size in _list(told["shape"], f"{case}: shape"))
    value = None if told["value"] is None else _real(told["value"], f"{case}: value")
    special = _each(int, told["special"], f"{case}: special")
    return ResultSummary(_checksum(told["digest"], case), _a(str, told["dtype"], case), shape, value, special)


def _a(kind: type[T], value: Any, what: str) -> T:
    """A value, if it is of this very kind: True is no number here."""
    if type(value) is not kind:
        raise TypeError(f"{what} is {value!r}; wanted is {'an' if kind is int else 'a'} {kind.__name__}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    made: list[Any] = _a(list, value, what)
    return made


def _strings(value: Any, what: str) -> list[str]:
    return [_a(str, one, what) for one in _list(value, what)]


def _each(kind: type[T], value: Any, what: str) -> dict[str, T]:
    """An object whose values are all of one kind."""
    return {key: _a(kind, one, f"{what}: {key}") for key, one in _a(dict, value, what).items()}


def _real(value: Any, what: str) -> float:
    if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
        raise TypeError(f"{what} is {value!r}; wanted is a number")
    return float(value)


def _checksum(value: Any, what: str, *, or_none: bool = False) -> str:
    """Eight hexadecimal digits, as a file has them."""
    text = _a(str, value, what)
    if not (or_none and text == "") and not (len(text) == 8 and set(text) <= set("0123456789abcdef")):
        raise ValueError(f"{what} is {text!r}; wanted are eight hexadecimal digits")
    return text


def _unlike(told: Any, made: Any, where: str = "") -> Iterator[str]:
    """The places at which two documents are not the same."""
    if isinstance(told, dict) and isinstance(made, dict):
        for key in {**told, **made}:
            place = f"{where}.{key}" if where else key
            if (key in told) != (key in made):
                yield place
            else:
                yield from _unlike(told[key], made[key], place)
    elif isinstance(told, list) and isinstance(made, list) and len(told) == len(made):
        for at, (one, other) in enumerate(zip(told, made, strict=True)):
            yield from _unlike(one, other, f"{where}[{at}]")
    # 1 and 1.0 are one number, as other programs write them; True is none.
    elif told != made or isinstance(told, bool) != isinstance(made, bool):
        yield f"{where}, {json.dumps(told)[:80]},"


LARGEST = 2**29  # bytes of a report that is read; a thorough one of five subjects has a tenth of it


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The document of a report that :meth:`Report.write_json` wrote, as far as its outline goes.

    Raises:
        ValueError: the file is no such report, in one line.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)  # a device may have no end
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}: no report: {one_line(str(error))}") from None
    found = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(document, dict) or isinstance(found, bool) or found != SCHEMA:
        raise ValueError(f"{path}: got schema {one_line(repr(found))}; allowed is a report of schema {SCHEMA}")
    environment = document.get("environment")
    if not isinstance(environment, dict) or not isinstance(environment.get("device"), str):
        raise ValueError(f"{path}: damaged: its environment names no device")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which no key stands twice: of two values, one would be read and the other shown."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {max(keys, key=keys.count)!r} stands twice in one object")
    return made


def _no_number(token: str) -> float:
    raise ValueError(f"{token} is not JSON")


def find(document: dict[str, Any], id: str) -> tuple[Finding, str | None]:
    """A finding of a report by its id, and the digest of its inputs.

    Raises:
        ValueError: the report has no such finding, or not what one is made of.
    """
    try:
        for subject in document["subjects"]:
            for entry in subject["findings"]:
                if entry["id"] == id:
                    finding = finding_of(_string(subject, "name"), entry)
                    if finding.id != id:
                        raise ValueError(f"it is {finding.id}")
                    return finding, _string(subject["cases"][finding.case], "inputs")
        ids = [_string(entry, "id") for subject in document["subjects"] for entry in subject["findings"]]
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"report: damaged: {type(error).__name__}: {one_line(str(error))}") from None
    known = f"its findings are {', '.join(ids[:3])}{', …' if len(ids) > 3 else ''}" if ids else "it has no findings"
    raise ValueError(f"finding: got {id!r}, which the report does not have; {known}")


def finding_of(subject: str, entry: dict[str, Any]) -> Finding:
    """The finding of a subject that an entry of the document tells.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: it is none.
    """
    numbers = None
    if entry["index"] is not None:
        reals = [_number(entry, name) for name in ("got", "exact", "radius", "bound", "ulp", "ratio")]
        got, exact, radius, bound, ulp, ratio = reals
        if not all(type(place) is int and place >= 0 for place in entry["index"]):
            raise TypeError(f"index is {entry['index']!r}")
        bits, versus = _string(entry, "bits"), _string(entry, "versus")
        numbers = Numbers(tuple(entry["index"]), got, bits, exact, radius, bound, ulp, ratio, versus)
    check, case, kind, message, call, torch = (
        _string(entry, name) for name in ("check", "case", "kind", "message", "call", "torch")
    )
    expected = None if entry["expected"] is None else _string(entry, "expected")
    return Finding(subject, check, case, kind, message, call, numbers, torch, expected, _string(entry, "of"))


def _string(entry: dict[str, Any], name: str) -> str:
    if not isinstance(value := entry[name], str):
        raise TypeError(f"{name} is {value!r}")
    return value


def _number(entry: dict[str, Any], name: str) -> float:
    value = entry[name]
    if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
        raise TypeError(f"{name} is {value!r}")
    return float(value)
