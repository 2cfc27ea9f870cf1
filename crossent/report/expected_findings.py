"""Lists of known failures, with their reasons. A run shows a known failure, but the failure does not make the run fail.

The comments of `torch_findings.toml`, one of the built-in lists, document the format. An entry may have the id of one
finding instead of subject, checks, results and cases. Then the entry needs no kind. An entry for a subject, check,
result or case that does not exist is an error. An entry is fixed if the run has tested the entry (see
`ExpectedFinding.ran`), but no finding of the run matches the entry. A complete run reports the fixed entries, except
entries marked `sometimes`.
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
    """One entry of a list: a known failure.

    Attributes:
        subject, device: patterns for the name of the subject and of the device, with the wildcards of a shell.
        checks: the names of the checks; may be empty if `results` is not empty.
        kind: the kind of the findings, from `KINDS`; "" stands for any kind.
        results: names of results, such as "loss". The entry also matches a finding of a check that is not in `checks`,
            if the check compares such a result with the exact value. An example is the loss of a call under no_grad.
        cases: patterns for the ids of the cases.
        torch: the versions of torch with this failure, for example `>=2.1,<2.4`; "" stands for all versions.
        got: the values that the worst element may have, as Python prints them; an empty tuple allows any value.
        sometimes: whether the failure may be absent from a run, for example because the order of additions is random.
        reason: an explanation for the reader of a report.
        issue: the address or number of an issue, or "".
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
        """Return whether the run of `subject` has tested this entry.

        The entry is tested if one of its checks ran on one of its cases. A check that is named in `results`, such as
        "loss", counts too.
        """
        return any(
            self.covers(subject.name, case) and not outcome.checks.keys().isdisjoint((*self.checks, *self.results))
            for case, outcome in subject.outcomes.items()
        )

    def applies(self, torch: str, device: str) -> bool:
        """Return whether the entry is about the version `torch` of torch on the device `device`.

        A nightly build, or a build with a local label, counts as its release: 2.14.0a0+git1 counts as 2.14.0. For a
        version that is not in the form of PEP 440, only entries that name no versions apply.
        """
        try:
            release = Version(torch).base_version
        except InvalidVersion:  # a build with a custom name, which no version specifier matches
            return not self.torch and fnmatchcase(device, self.device)
        return SpecifierSet(self.torch).contains(release) and fnmatchcase(device, self.device)

    def matches(self, finding: Finding, subject: str) -> bool:
        """Return whether the finding is this known failure. :meth:`applies` checks the device and version of torch.

        `subject` is the name that the list uses for the subject of the finding: see `names` of :func:`mark`.
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
        ValueError: the file is not a list of known failures. The message is one line that says where the error is.
        OSError: the file cannot be read.
    """
    return list(_parse(Path(path).read_bytes(), str(path)))


def torch_list(operation: Operation = CROSS_ENTROPY) -> list[ExpectedFinding]:
    """Return the known failures of torch's functions for an operation, from the built-in lists."""
    names = _LISTS_OF_TORCH[operation]
    return [entry for name in names for entry in _parse((files("crossent.report") / name).read_bytes(), name)]


def check_entries(
    entries: Iterable[ExpectedFinding],
    subjects: Collection[str] | None,
    checks: Collection[str],
    cases: Callable[[], list[str]] | None,
    operation: Operation = CROSS_ENTROPY,
) -> None:
    """Check that the subject, checks, results and cases of each entry exist.

    Args:
        entries: the entries of a list.
        subjects: the names of the subjects of a run. None allows any subject.
        checks: the names of all checks.
        cases: a function that returns the ids of all cases. None allows any case.
        operation: the operation of the run, for the message about an unknown case.

    Raises:
        ValueError: an entry has a subject, check, result or case that does not exist. The message is one line.
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
    """Set `expected` of the findings that are known failures, and add the texts of fixed entries to `report.fixed`.

    Args:
        report: the report.
        entries: a list of known failures.
        names: the name of each subject in the list, by its name in the report. Subjects that are not keys have no
            known failures. By default, the list is about all subjects, by their names in the report. Only a subject
            with the same name in the report and in the list can show that an entry is fixed.

    Returns:
        For each entry about the report's version of torch and device, the text of the entry and its state. See `known`
        of :class:`crossent.report.document.Shard`.
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
    """Return the texts of the known failures that are "absent" in at least one shard, and "happened" in no shard.

    Args:
        shards: the result of :func:`mark` for each shard of a run, or only for the whole run. All results have the same
            known failures in the same order.
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
    """Return a copy of an entry with subject, checks and cases in place of the key `id`. The default of kind is ""."""
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
