"""Documents: a report as JSON of schema 1, written whole and read strictly."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossent.findings import Finding, Measured, Numbers, SubjectReport, one_line

SCHEMA = 1
LARGEST = 2**29  # bytes of a report that is read; a thorough one of five subjects has a tenth of it


def subject_json(subject: SubjectReport) -> dict[str, Any]:
    """One subject's part of the document."""
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
    return {
        "name": subject.name,
        "counts": subject.counts,
        "grades": subject.grades,
        "not_applicable": dict(subject.not_applicable),
        "not_run": {check: dict(reasons) for check, reasons in subject.not_run.items()},
        "checks": checks,
        "findings": [_finding_json(finding) for finding in subject.findings],
        "cases": cases,
    }


def _measured_json(measured: Measured) -> dict[str, Any]:
    """What was measured; whether it failed is said by its finding."""
    numbers = {"ulp": measured.ulp, "ratio": measured.ratio, "elements": measured.elements}
    gaps = {"vacuous": measured.vacuous, "not_judged": dict(measured.not_judged)}
    return numbers | {name: gap for name, gap in gaps.items() if gap}


def _finding_json(finding: Finding) -> dict[str, Any]:
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


def plain(value: Any) -> Any:
    """With a string for each number that JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


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
        reals = [_real(entry, name) for name in ("got", "exact", "radius", "bound", "ulp", "ratio")]
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


def _real(entry: dict[str, Any], name: str) -> float:
    value = entry[name]
    if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
        raise TypeError(f"{name} is {value!r}")
    return float(value)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Put a text into a file in one step: whoever reads it sees the old one or all of the new one.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    content = text.encode("utf-8", "backslashreplace")  # half a surrogate pair, as JSON writes it
    if is_stream(path):
        with open(path, "ab") as stream:  # /dev/stdout may be a file that holds something already
            stream.write(content)
        return
    target = Path(path).resolve()  # a link stays one
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            mode = target.stat().st_mode & 0o777
        else:  # mkstemp's own is for nobody else to read
            mask = os.umask(0)
            os.umask(mask)
            mode = 0o666 & ~mask
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether it is a device, a pipe, or another name of an open file, as /dev/stdout is: no place in a folder."""
    exists = os.path.exists(path) and not os.path.isdir(path)
    return exists and (not os.path.isfile(path) or os.path.abspath(path).startswith(("/dev/", "/proc/")))
