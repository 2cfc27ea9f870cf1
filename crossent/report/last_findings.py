"""Keep the findings of the last runs in the folder `.crossent_cache`, for `--last-failed` and `crossent repro`.

Each combination of arguments SUBJECT and `--operation` has one file. The next run with this combination replaces the
file.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from crossent.cases.ids import BAD_INPUT_OF, case_or_none
from crossent.files import write_whole
from crossent.report.findings import SubjectReport
from crossent.report.reader import find, read_json, read_report
from crossent.report.report import Report

FOLDER = ".crossent_cache"
_README = "The findings of the last runs of `crossent check`. You can delete this folder.\n"


def path_of(subjects: Sequence[str], operation: str | None = None) -> Path:
    """Return the path of the file for a run of `crossent check` with these arguments SUBJECT and this `--operation`."""
    names = [*sorted(set(subjects)), *([operation] if operation else [])]
    readable = re.sub(r"\W+", "-", names[0] if names else "all").strip("-")[-40:]
    return Path(FOLDER, f"{readable}-{zlib.crc32(repr(names).encode('utf-8', 'backslashreplace')):08x}.json")


def keep(report: Report, subjects: Sequence[str], operation: str | None = None) -> None:
    """Write a report into the folder, with only the cases that have findings. If writing fails, do nothing.

    `subjects` are the arguments SUBJECT of the run, and `operation` is the value of `--operation`.
    """
    path = path_of(subjects, operation)
    # Writing all cases could take seconds.
    small = replace(report, subjects=[_with_findings(part) for part in report.subjects])
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        for name, text in ((".gitignore", "*\n"), ("README", _README)):
            if not (path.parent / name).exists():
                write_whole(path.parent / name, text)
        write_whole(path, json.dumps(small.to_json(), allow_nan=False, ensure_ascii=False))


def find_file(id: str, torch: str) -> str | None:
    """Return the path of the newest file with the finding `id` from a run with the version `torch`, or None."""
    runs: list[tuple[float, Path]] = []
    for path in Path(FOLDER).glob("*.json"):
        with suppress(OSError, ValueError):
            document = read_json(path)
            find(document, id)
            if document["environment"].get("torch") == torch:
                runs.append((path.stat().st_mtime, path))
    return str(max(runs)[1]) if runs else None


def _with_findings(part: SubjectReport) -> SubjectReport:
    """Return a copy of a subject's report, with only the outcomes of cases that have findings."""
    cases = {finding.case for finding in part.findings}
    return replace(part, outcomes={case: outcome for case, outcome in part.outcomes.items() if case in cases})


def read_failed_checks(subjects: Sequence[str], operation: str | None = None) -> dict[str, list[str]]:
    """Return the names of the checks that failed in the last run with these arguments, by the id of the case.

    `subjects` are the arguments SUBJECT of the run, and `operation` is the value of `--operation`. Known failures and
    unknown cases are left out. If the file cannot be read, return an empty dict.
    """
    try:
        report = read_report(path_of(subjects, operation))
    except (OSError, ValueError):
        return {}
    failed: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.case in BAD_INPUT_OF or case_or_none(finding.case) is not None:
            failed.setdefault(finding.case, []).append(finding.check)
    return failed
