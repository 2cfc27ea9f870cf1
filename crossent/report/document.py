"""A report as a JSON document of schema 1, and files that are written completely or not at all."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossent.report.findings import Finding, Measured, SubjectReport

SCHEMA = 1


def subject_json(subject: SubjectReport) -> dict[str, Any]:
    """Return the part of the document for one subject."""
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
        **({"contract": subject.contract} if subject.contract else {}),
        "counts": subject.counts,
        "grades": subject.grades,
        "not_applicable": dict(subject.not_applicable),
        "not_run": {check: dict(reasons) for check, reasons in subject.not_run.items()},
        "checks": checks,
        "findings": [_finding_json(finding) for finding in subject.findings],
        "cases": cases,
    }


def _measured_json(measured: Measured) -> dict[str, Any]:
    """Return the numbers of a check. The findings say whether the check failed."""
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


def jsonable(value: Any) -> Any:
    """Return a copy of the value in which NaN and infinities are strings."""
    if isinstance(value, dict):
        return {key: jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text to a file in one step: a reader sees the old content or the complete new content.

    Raises:
        OSError: the file cannot be written. It still has its old content.
    """
    content = text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes an escape, as in JSON
    if is_stream(path):
        with open(path, "ab") as stream:  # append, because /dev/stdout may be a file with content
            stream.write(content)
        return
    target = Path(path).resolve()  # write to the target of a symbolic link, so that the link is kept
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            mode = target.stat().st_mode & 0o777
        else:  # mkstemp makes a file that only its owner can read
            mask = os.umask(0)
            os.umask(mask)
            mode = 0o666 & ~mask
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a device, a pipe, or a name of an open file such as /dev/stdout: not a file in a folder."""
    exists = os.path.exists(path) and not os.path.isdir(path)
    return exists and (not os.path.isfile(path) or os.path.abspath(path).startswith(("/dev/", "/proc/")))
