"""Expected findings: what is known to be wrong and why, so that a run shows it and does not fail for it.

A list cleans itself: an entry whose checks ran on its cases without a finding is reported, unless it happens only
sometimes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from crossent.findings import Finding, SubjectReport, one_line
from crossent.report import Report


@dataclass(frozen=True)
class ExpectedFinding:
    """One entry of a list.

    Attributes:
        subject, device: patterns, as in a shell.
        checks, kind: of the finding.
        cases: patterns of the ids of its cases.
        torch: the versions that have it, as in `>=2.1,<2.4`.
        got: the numbers that come, as Python prints them.
        sometimes: it may not happen in a run and be there still, as where the order of additions is left to chance.
        reason, issue: what a reader is told.
    """

    subject: str
    checks: tuple[str, ...]
    kind: str
    cases: tuple[str, ...]
    reason: str
    torch: str = ""
    device: str = "*"
    issue: str = ""
    got: tuple[str, ...] = ()
    sometimes: bool = False

    def covers(self, subject: str, case: str) -> bool:
        """Whether it says something about a subject's case."""
        return fnmatchcase(subject, self.subject) and any(fnmatchcase(case, pattern) for pattern in self.cases)

    def ran(self, subject: SubjectReport) -> bool:
        """Whether one of its checks ran on a subject's case that it says something about."""
        return any(
            self.covers(subject.name, case) and not outcome.checks.keys().isdisjoint(self.checks)
            for case, outcome in subject.outcomes.items()
        )

    def applies(self, torch: str, device: str) -> bool:
        """Whether it says something about this torch on this device.

        A nightly or a build with a local label counts as the release that it is of: 2.14.0a0+git1 as 2.14.0.
        """
        try:
            release = Version(torch).base_version
        except InvalidVersion:  # somebody's own name for a build: no specifier says anything about it
            return not self.torch and fnmatchcase(device, self.device)
        return SpecifierSet(self.torch).contains(release) and fnmatchcase(device, self.device)

    def matches(self, finding: Finding) -> bool:
        """Whether this is the finding that is expected."""
        described = finding.check in self.checks and finding.kind == self.kind
        if self.got:
            described = described and finding.numbers is not None and str(finding.numbers.got) in self.got
        return described and self.covers(finding.subject, finding.case)

    def __str__(self) -> str:
        return f"{self.reason} ({self.issue})" if self.issue else self.reason


def load(path: str | Path) -> list[ExpectedFinding]:
    """The entries of a file.

    Raises:
        ValueError: the file is none, in one line that says where it is wrong.
        OSError: it cannot be read.
    """
    return list(_parsed(Path(path).read_bytes(), str(path)))


def shipped() -> list[ExpectedFinding]:
    """What is known of torch itself."""
    name = "torch_findings.toml"
    return list(_parsed((files("crossent") / name).read_bytes(), name))


def expect(report: Report, entries: Iterable[ExpectedFinding]) -> None:
    """Mark the findings of a report that are expected, and enter what no longer happens."""
    torch, device = report.environment["torch"], report.environment["device"]
    known = [entry for entry in entries if entry.applies(torch, device)]
    met: set[ExpectedFinding] = set()
    for subject in report.subjects:
        for at, finding in enumerate(subject.findings):
            matching = [entry for entry in known if entry.matches(finding)]
            met.update(matching)
            if matching:
                subject.findings[at] = replace(finding, expected=str(matching[0]))
    for entry in known:
        if entry not in met and not entry.sometimes and any(entry.ran(subject) for subject in report.subjects):
            report.mended.append(str(entry))


_LISTS = ("checks", "cases", "got")
_FLAGS = ("sometimes",)


def _parsed(content: bytes, name: str) -> Iterator[ExpectedFinding]:
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
        raise ValueError(f"{name}: {one_line(str(error))}") from None
    entries = document.pop("finding", [])
    if document or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{name}: got {', '.join(map(repr, document)) or 'something else'}; allowed are [[finding]] tables"
        )
    for number, entry in enumerate(entries, 1):
        try:
            yield _entry(entry)
        except ValueError as error:
            raise ValueError(f"{name}: finding {number}: {error}") from None


def _entry(entry: dict[str, Any]) -> ExpectedFinding:
    known = {field.name: field for field in fields(ExpectedFinding)}
    if unknown := [key for key in entry if key not in known]:
        raise ValueError(f"got {unknown[0]!r}; allowed are {', '.join(known)}")
    if missing := [key for key in ("subject", "checks", "kind", "cases", "reason") if not entry.get(key)]:
        raise ValueError(f"{missing[0]} is missing")
    for key, value in entry.items():
        if key in _LISTS:
            right, allowed = _strings(value), "a list of strings"
        elif key in _FLAGS:
            right, allowed = isinstance(value, bool), "true or false"
        else:
            right, allowed = isinstance(value, str), "a string"
        if not right:
            raise ValueError(f"{key}: got {value!r}; allowed is {allowed}")
    try:
        SpecifierSet(entry.get("torch", ""))
    except InvalidSpecifier:
        raise ValueError(f"torch: got {entry['torch']!r}; allowed are versions, as in '>=2.1,<2.4'") from None
    arguments: dict[str, Any] = {key: tuple(value) if key in _LISTS else value for key, value in entry.items()}
    return ExpectedFinding(**arguments)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
