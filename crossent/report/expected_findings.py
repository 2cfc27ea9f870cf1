"""Lists of known failures, with their reasons. A run shows a known failure, but does not fail because of it.

The comments of `torch_findings.toml` document the format. An entry may also name one finding by its `id`, instead of
subject, checks, results and cases. An entry is *fixed* if its checks ran on its cases without the failure.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from glob import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY, Operation
from crossent.report.document import ABSENT, HAPPENED, NOT_RUN
from crossent.report.findings import NUMBERS, Finding, SubjectReport
from crossent.report.report import Report
from crossent.words import cut, one_line, quoted

# The kinds of findings, which :class:`crossent.report.findings.Finding` explains.
KINDS = (
    *("wrong", "refused", "accepted", "changed_input", "aliased", "changed_state", "not_repeated", "disturbed"),
    *("crashed", "hung"),
)
# The lists of the known failures of torch, by operation.
_LISTS_OF_TORCH = {
    CROSS_ENTROPY: ("torch_findings.toml", "torch_ranks_findings.toml"),
    LINEAR_CROSS_ENTROPY: ("torch_linear_findings.toml",),
}


@dataclass(frozen=True)
class ExpectedFinding:
    """A known failure: one entry of a list.

    Attributes:
        subject, device: patterns for names, with the wildcards of a shell.
        kind: one of `KINDS`, or "" for any kind.
        checks, results: names of checks, and names of results such as "loss". The entry matches these checks, and
            every check that compares one of these results with the exact value.
        cases: patterns for the ids of cases.
        torch: versions of torch, such as `>=2.1,<2.4`; "" for all versions.
        got: the possible values of the worst element, as Python prints them; empty for any value.
        sometimes: whether the failure may be absent from a run.
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
    results: tuple[str, ...] = ()

    def covers(self, subject: str, case: str) -> bool:
        """Return whether the entry is about the subject with this name and the case with this id."""
        return fnmatchcase(subject, self.subject) and any(fnmatchcase(case, pattern) for pattern in self.cases)

    def ran(self, subject: SubjectReport) -> bool:
        """Return whether a check of this entry ran on `subject` and a case of this entry.

        A result counts as the check with the same name.
        """
        return any(
            self.covers(subject.name, case) and not outcome.checks.keys().isdisjoint((*self.checks, *self.results))
            for case, outcome in subject.outcomes.items()
        )

    def applies(self, torch: str, device: str) -> bool:
        """Return whether the entry is about this version of torch and this device."""
        try:
            release = Version(torch).base_version  # a nightly build counts as its release
        except InvalidVersion:  # a build with a custom name, which no version specifier matches
            return not self.torch and fnmatchcase(device, self.device)
        return SpecifierSet(self.torch).contains(release) and fnmatchcase(device, self.device)

    def matches(self, finding: Finding, subject: str) -> bool:
        """Return whether the finding is this known failure. The version of torch and the device are not compared.

        `subject` is the name of the subject in the list, which may differ from the name in the report.
        """
        numbers, result = finding.numbers, finding.of.partition(" ")[0]
        again = result in self.results and numbers is not None and numbers.versus == "exact"
        described = (finding.check in self.checks or again) and self.kind in ("", finding.kind)
        if self.got:
            described = described and numbers is not None and str(numbers.got) in self.got
        return described and self.covers(subject, finding.case)

    def __str__(self) -> str:
        return f"{self.reason} ({self.issue})" if self.issue else self.reason


def read_list(path: str | Path) -> list[ExpectedFinding]:
    """Return the known failures that a TOML file lists.

    Raises:
        ValueError: the file is not a list of known failures.
    """
    return list(_parse(Path(path).read_bytes(), str(path)))


def torch_list(operation: Operation = CROSS_ENTROPY) -> list[ExpectedFinding]:
    """Return the known failures of torch's functions for an operation."""
    names = _LISTS_OF_TORCH[operation]
    return [entry for name in names for entry in _parse((files("crossent.report") / name).read_bytes(), name)]


def check_entries(
    entries: Iterable[ExpectedFinding],
    subjects: Collection[str] | None,
    checks: Collection[str],
    cases: Callable[[], list[str]] | None,
    operation: Operation = CROSS_ENTROPY,
) -> None:
    """Raise ValueError if an entry names a subject, check, result or case that does not exist.

    The allowed names are in `subjects`, in `checks` and in the result of `cases`. If `subjects` or `cases` is None,
    any subject or case is allowed. The error message names `operation`.
    """
    known: list[str] = []
    for entry in entries:
        if subjects is not None and not any(fnmatchcase(name, entry.subject) for name in subjects):
            raise ValueError(
                f"entry with the reason {quoted(entry.reason)}: no subject matches {quoted(entry.subject)}; "
                f"this run has {cut(', '.join(subjects))}"
            )
        if unknown := [check for check in entry.checks if check not in checks]:
            raise ValueError(
                f"entry with the reason {quoted(entry.reason)}: got check {quoted(unknown[0])}; "
                f"allowed are {', '.join(checks)}"
            )
        if unknown := [result for result in entry.results if result not in NUMBERS]:
            raise ValueError(
                f"entry with the reason {quoted(entry.reason)}: got result {quoted(unknown[0])}; "
                f"allowed are {', '.join(NUMBERS)}"
            )
        if cases is None:
            continue
        known = known or cases()
        if unknown := [pattern for pattern in entry.cases if not any(fnmatchcase(case, pattern) for case in known)]:
            raise ValueError(
                f"entry with the reason {quoted(entry.reason)}: no case matches {quoted(unknown[0])}; "
                f"see `crossent list cases --level thorough --operation {operation.name}`"
            )


def mark(
    report: Report, entries: Iterable[ExpectedFinding], names: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """Set `expected` of the findings that are known failures, and add the fixed entries to `report.fixed`.

    `names` maps the name of a subject in the report to the name in `entries`. By default, the two names are equal.
    Return the text and the state of each entry that applies to the run. The state is "happened", "absent" (tested
    without the failure) or "not run".
    """
    torch, device = report.environment["torch"], report.environment["device"]
    known = [entry for entry in entries if entry.applies(torch, device)]
    names = {subject.name: subject.name for subject in report.subjects} if names is None else names
    subjects = [subject for subject in report.subjects if subject.name in names]
    met: set[ExpectedFinding] = set()
    for subject in subjects:
        for at, finding in enumerate(subject.findings):
            matching = [entry for entry in known if entry.matches(finding, names[subject.name])]
            met.update(matching)
            if matching:
                subject.findings[at] = replace(finding, expected=str(matching[0]))
    by_own_name = [subject for subject in subjects if subject.name == names[subject.name]]
    states = []
    for entry in known:
        absent = entry not in met and not entry.sometimes and any(entry.ran(subject) for subject in by_own_name)
        states.append((str(entry), HAPPENED if entry in met else ABSENT if absent else NOT_RUN))
    report.fixed += fixed([states])
    return states


def fixed(shards: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """Return the texts of the known failures with the state "absent" in a shard, and "happened" in no shard.

    `shards` has, for each shard, the texts and states that :func:`mark` returned.
    """
    made = []
    for states in zip(*shards, strict=True):
        found = {state for _, state in states}
        made += [states[0][0]] if ABSENT in found and HAPPENED not in found else []
    return made


# The keys of an entry whose value is a list of strings, and the keys whose value is true or false.
_LISTS = ("checks", "results", "cases", "got")
_FLAGS = ("sometimes",)


def _parse(content: bytes, name: str) -> Iterator[ExpectedFinding]:
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
        raise ValueError(f"{cut(name)}: not TOML: {one_line(str(error))}") from None
    entries = document.pop("finding", [])
    if document or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        got = f"the key {quoted(next(iter(document)))}" if document else f"finding = {quoted(entries)}"
        raise ValueError(f"{cut(name)}: got {got}; allowed are [[finding]] tables, one for each known failure")
    for number, entry in enumerate(entries, 1):
        try:
            yield _entry(entry)
        except ValueError as error:
            raise ValueError(f"{cut(name)}: finding {number}: {error}") from None


def _entry(entry: dict[str, Any]) -> ExpectedFinding:
    known = [*(field.name for field in fields(ExpectedFinding)), "id"]
    if unknown := [key for key in entry if key not in known]:
        raise ValueError(f"got the key {quoted(unknown[0])}; allowed are {', '.join(known)}")
    for key, value in entry.items():
        if key in _LISTS:
            right, allowed = _strings(value), "a list of strings"
        elif key in _FLAGS:
            right, allowed = isinstance(value, bool), "true or false"
        else:
            right, allowed = isinstance(value, str), "SUBJECT:CHECK:CASE" if key == "id" else "a string"
        if not right:
            raise ValueError(f"{key}: got {quoted(value)}; allowed is {allowed}")
    if "id" in entry:
        entry = _of_id(entry)
    elif missing := [key for key in ("subject", "kind", "cases") if not entry.get(key)]:
        raise ValueError(f"{missing[0]} is missing or empty; add it to the entry")
    elif not (entry.get("checks") or entry.get("results")):
        raise ValueError("checks and results are missing or empty; add one of them to the entry")
    if not entry.get("reason"):
        raise ValueError("reason is missing or empty; add it to the entry")
    if entry.get("kind") and entry["kind"] not in KINDS:
        raise ValueError(f"kind: got {quoted(entry['kind'])}; allowed are {', '.join(KINDS)}")
    try:
        SpecifierSet(entry.get("torch", ""))
    except InvalidSpecifier:
        allowed = "version specifiers, such as '>=2.1,<2.4' or '==2.1.*'"
        raise ValueError(f"torch: got {quoted(entry['torch'])}; allowed are {allowed}") from None
    arguments: dict[str, Any] = {"checks": ()} | {
        key: tuple(value) if key in _LISTS else value for key, value in entry.items()
    }
    return ExpectedFinding(**arguments)


def _of_id(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an entry with subject, checks and cases in place of the key `id`."""
    if other := [key for key in ("subject", "checks", "results", "cases") if key in entry]:
        raise ValueError(f"got both id and {other[0]}; remove one of them")
    given: str = entry["id"]
    *_, subject, check, case = ["", "", *given.rsplit(":", 2)]
    if not (subject and check and case):
        raise ValueError(f"id: got {quoted(given)}; allowed is SUBJECT:CHECK:CASE")
    rest = {key: value for key, value in entry.items() if key != "id"}
    return {"kind": "", "subject": escape(subject), "checks": [check], "cases": [escape(case)], **rest}


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
