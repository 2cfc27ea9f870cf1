"""Reports: everything that one run found, and everything that it did not run."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

SCHEMA = 1
LONGEST_LINE = 500  # of what others say: an exception may hold a whole tensor


@dataclass(frozen=True)
class Finding:
    """A failed check, with its numbers.

    Attributes:
        subject, check, case: whose result, which property of it, on which input.
        kind: "wrong", "refused" where the subject raised, "accepted" where it should have, or "changed_input".
        message: what is wrong, in one line or a few.
        call: the arguments in words.
        numbers: of the worst element; None where the finding is not about a number.
        torch: what torch itself gives there, and how far that is off; "" where torch is the subject.
        expected: why it is known and no surprise, or None.
    """

    subject: str
    check: str
    case: str
    kind: str
    message: str
    call: str = ""
    numbers: Numbers | None = None
    torch: str = ""
    expected: str | None = None

    @property
    def id(self) -> str:
        """Enough for `crossent repro` to repeat it."""
        return f"{self.subject}:{self.check}:{self.case}"

    def __str__(self) -> str:
        lines = [f"{self.subject}: {self.check} {self.kind} on {self.case}"]
        lines += [f"  {line}" for line in self.message.splitlines()]
        if self.numbers:
            lines.append(f"  got     {self.numbers.got!r}  ({self.numbers.bits})")
            lines.append(f"  exact   {self.numbers.exact!r} ± {self.numbers.radius:.1g}")
        lines += [f"  torch   {self.torch}"] if self.torch else []
        lines += [f"  call    {self.call}"] if self.call else []
        return "\n".join([*lines, f"  repeat  crossent repro {shlex.quote(self.id)}"])


@dataclass(frozen=True)
class Numbers:
    """The worst element of a result: where, what came, what is right, and what was allowed."""

    index: tuple[int, ...]
    got: float
    bits: str
    exact: float
    radius: float
    bound: float
    ulp: float
    ratio: float


@dataclass(frozen=True)
class Measured:
    """One check on one case.

    Attributes:
        ulp, ratio: of the worst element; None where the check is not about numbers.
        vacuous: whether zeros or a constant would pass too.
        not_judged: elements whose bound is infinite, by reason.
        elements: how many there are.
    """

    failed: bool = False
    ulp: float | None = None
    ratio: float | None = None
    vacuous: bool = False
    not_judged: Mapping[str, int] = field(default_factory=dict)
    elements: int = 0


@dataclass
class Outcome:
    """One case on one subject.

    Attributes:
        dtype: of the logits.
        inputs, digest: checksums of the inputs' and of the results' bits; the latter is "" where nothing came.
        grade: what it reached; "" where that was not asked.
        checks: what was measured.
    """

    dtype: str
    inputs: str
    digest: str = ""
    grade: str = ""
    checks: dict[str, Measured] = field(default_factory=dict)


@dataclass
class Tally:
    """One check on one dtype: what ran, and where it came nearest to its bound."""

    ran: int = 0
    failed: int = 0
    expected: int = 0
    vacuous: int = 0
    elements: int = 0
    not_judged: Counter[str] = field(default_factory=Counter)
    ulp: float | None = None
    ratio: float | None = None
    case: str = ""

    def add(self, case: str, measured: Measured, known: bool) -> None:
        """Enter one case; where it is known to fail, not as the worst."""
        self.ran += 1
        self.failed += measured.failed and not known
        self.expected += measured.failed and known
        self.vacuous += measured.vacuous
        self.elements += measured.elements
        self.not_judged.update(measured.not_judged)
        if measured.failed and known:
            return
        if measured.ratio is not None and (self.ratio is None or measured.ratio > self.ratio):
            self.ulp, self.ratio, self.case = measured.ulp, measured.ratio, case


@dataclass
class SubjectReport:
    """One subject's part: what came of each case, what was found, and why the rest did not run."""

    name: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    not_applicable: Counter[str] = field(default_factory=Counter)

    @property
    def tallies(self) -> dict[tuple[str, str], Tally]:
        """For each check and dtype, check by check."""
        known = {(finding.check, finding.case) for finding in self.findings if finding.expected is not None}
        tallies: dict[tuple[str, str], Tally] = {}
        for case, outcome in self.outcomes.items():
            for check, measured in outcome.checks.items():
                tallies.setdefault((check, outcome.dtype), Tally()).add(case, measured, (check, case) in known)
        order = list(dict.fromkeys(check for check, _ in tallies))
        return dict(sorted(tallies.items(), key=lambda entry: order.index(entry[0][0])))

    @property
    def grades(self) -> dict[str, str]:
        """For each dtype the lowest that a case reached, known findings aside: A comes before B and F."""
        known = {finding.case for finding in self.findings if finding.expected is not None}
        grades: dict[str, str] = {}
        for case, outcome in self.outcomes.items():
            if outcome.grade and case not in known:
                grades[outcome.dtype] = max(grades.get(outcome.dtype, ""), outcome.grade)
        return grades

    @property
    def counts(self) -> dict[str, int]:
        """How many cases ran, failed, failed as expected, and did not apply."""
        failed = {finding.case for finding in self.findings if finding.expected is None}
        known = {finding.case for finding in self.findings if finding.expected is not None}
        return {
            "ran": len(self.outcomes),
            "failed": len(failed),
            "expected": len(known - failed),
            "not_applicable": sum(self.not_applicable.values()),
        }

    @property
    def without_evidence(self) -> list[str]:
        """The checks and dtypes of which every case would let a constant pass.

        Not where most cases of a dtype are refused, as is known: float16 by torch 2.0 on a CPU, but for empty ones.
        """
        tallies = self.tallies
        refused = {dtype: tally.expected for (check, dtype), tally in tallies.items() if check == "call"}
        return [
            f"{check} in {dtype}"
            for (check, dtype), tally in tallies.items()
            if tally.vacuous == tally.ran > refused.get(dtype, 0)
        ]


@dataclass
class Report:
    """One run: its environment and a part for each subject.

    `str(report)` is the readable table; `report.ok` is True where something ran and nothing unexpected was found.

    Attributes:
        environment: what a reader must know to repeat the run.
        level, seed: of the cases.
        mended: expected findings whose cases ran and did not fail: each a line for the list that can go.
    """

    environment: dict[str, str]
    subjects: list[SubjectReport] = field(default_factory=list)
    level: str = "normal"
    seed: int = 0
    mended: list[str] = field(default_factory=list)

    @property
    def ran(self) -> int:
        """How many calls were judged: cases, times the subjects that they apply to."""
        return sum(len(subject.outcomes) for subject in self.subjects)

    @property
    def findings(self) -> list[Finding]:
        """Those of every subject that nobody expected."""
        return [finding for subject in self.subjects for finding in subject.findings if finding.expected is None]

    @property
    def ok(self) -> bool:
        """Whether something ran, nothing unexpected was found, and none of it was without evidence."""
        return self.ran > 0 and not self.findings and not any(subject.without_evidence for subject in self.subjects)

    @property
    def summary(self) -> str:
        """The run in one line."""
        if not self.ran:
            return "nothing ran"
        if self.findings:
            return f"{len(self.findings)} findings in {self.ran} checked calls"
        if not self.ok:
            return f"{self.ran} calls checked and nothing found, but not everything has evidence"
        known = sum(subject.counts["expected"] for subject in self.subjects)
        but = f", but for {known} known findings" if known else ""
        return f"{self.ran} calls checked, each equal to the exact answer within what rounding allows{but}"

    def render(self, most_findings: int = 4) -> list[RenderableType]:
        """A table for each subject, the findings, and what did not run and why."""
        parts: list[RenderableType] = [Text("  ".join(f"{k} {v}" for k, v in self.environment.items()))]
        for subject in self.subjects:
            parts += _rendered(subject, most_findings)
        parts += [Text(), *(Text(line) for line in self._fine_print()), Text(self.summary)]
        return parts

    def _fine_print(self) -> Iterator[str]:
        """What the run says nothing about."""
        tallies = [tally for subject in self.subjects for tally in subject.tallies.values() if tally.ratio is not None]
        ran, vacuous = sum(tally.ran for tally in tallies), sum(tally.vacuous for tally in tallies)
        if vacuous:
            yield f"no evidence, since zeros or a constant would pass: {vacuous} of {ran} comparisons"
        elements = sum(tally.elements for tally in tallies)
        for reason, count in sorted(sum((tally.not_judged for tally in tallies), Counter()).items()):
            yield f"not judged, since {reason}: {count} of {elements} numbers"
        for subject in self.subjects:
            for nothing in subject.without_evidence:
                yield f"NO EVIDENCE: every comparison of {subject.name}'s {nothing} would let zeros or a constant pass"
        for line in self.mended:
            yield f"no longer happens: {line}"

    def __str__(self) -> str:
        text = io.StringIO()
        console = Console(file=text, width=100)
        for part in self.render():
            console.print(part, soft_wrap=isinstance(part, Text))
        return text.getvalue().rstrip()

    def to_json(self) -> dict[str, Any]:
        """The report in schema 1: numbers are JSON's, and "nan", "inf" and "-inf" are strings."""
        document = {
            "schema": SCHEMA,
            "crossent": self.environment.get("crossent", ""),
            "level": self.level,
            "seed": self.seed,
            "environment": self.environment,
            "subjects": [_subject_json(subject) for subject in self.subjects],
            "mended": self.mended,
        }
        plain: dict[str, Any] = _plain(document)
        return plain

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file: all of it or, where that fails, nothing."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def printable(text: str) -> str:
    """A text that does nothing to a terminal: its control characters are written out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def one_line(text: str) -> str:
    """What somebody else says, in one line that is not too long."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The document of a report that :meth:`Report.write_json` wrote, as far as its outline goes.

    Raises:
        ValueError: the file is no such report, in one line.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}: no report: {one_line(str(error))}") from None
    found = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(document, dict) or isinstance(found, bool) or found != SCHEMA:
        raise ValueError(f"{path}: got schema {one_line(repr(found))}; allowed is a report of schema {SCHEMA}")
    environment = document.get("environment")
    if not isinstance(environment, dict) or not isinstance(environment.get("device"), str):
        raise ValueError(f"{path}: damaged: its environment names no device")
    return document


def find(document: dict[str, Any], id: str) -> tuple[Finding, str | None]:
    """A finding of a report by its id, and the digest of its inputs.

    Raises:
        ValueError: the report has no such finding, or not what one is made of.
    """
    try:
        for subject in document["subjects"]:
            for entry in subject["findings"]:
                if entry["id"] == id:
                    finding = _finding(_string(subject, "name"), entry)
                    if finding.id != id:
                        raise ValueError(f"it is {finding.id}")
                    return finding, _string(subject["cases"][finding.case], "inputs")
        ids = [_string(entry, "id") for subject in document["subjects"] for entry in subject["findings"]]
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"report: damaged: {type(error).__name__}: {one_line(str(error))}") from None
    known = f"its findings are {', '.join(ids[:3])}{', …' if len(ids) > 3 else ''}" if ids else "it has no findings"
    raise ValueError(f"finding: got {id!r}, which the report does not have; {known}")


def _finding(subject: str, entry: dict[str, Any]) -> Finding:
    numbers = None
    if entry["index"] is not None:
        reals = [_real(entry, name) for name in ("got", "exact", "radius", "bound", "ulp", "ratio")]
        got, exact, radius, bound, ulp, ratio = reals
        if not all(type(place) is int and place >= 0 for place in entry["index"]):
            raise TypeError(f"index is {entry['index']!r}")
        numbers = Numbers(tuple(entry["index"]), got, _string(entry, "bits"), exact, radius, bound, ulp, ratio)
    check, case, kind, message, call, torch = (
        _string(entry, name) for name in ("check", "case", "kind", "message", "call", "torch")
    )
    expected = None if entry["expected"] is None else _string(entry, "expected")
    return Finding(subject, check, case, kind, message, call, numbers, torch, expected)


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


def _rendered(subject: SubjectReport, most_findings: int) -> Iterator[RenderableType]:
    counts = subject.counts
    title = Text(f"{subject.name}: ", "bold")
    title.append(f"{counts['ran']} ran, ")
    title.append(f"{counts['failed']} failed", "bold red" if counts["failed"] else "green")
    title.append(f", {counts['expected']} expected, {counts['not_applicable']} not applicable")
    yield Text()
    yield title
    if subject.outcomes:
        yield Padding(_table(subject), (0, 0, 0, 2))
    surprising = [finding for finding in subject.findings if finding.expected is None]
    # One of each sort before another of the same.
    sorts = {(f.check, f.kind, "" if f.numbers else f.message): f for f in reversed(surprising)}
    shown = list(reversed(sorts.values()))[:most_findings]
    for finding in shown:
        yield Text(f"\n{finding}\n")
    if len(surprising) > len(shown):
        kinds = Counter(f"{finding.check} {finding.kind}" for finding in surprising)
        yield Text(f"  … of {len(surprising)} findings: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    for reason, count in Counter(finding.expected for finding in subject.findings if finding.expected).items():
        yield Text(f"  expected, {count} findings: {reason}")
    for reason, count in sorted(subject.not_applicable.items()):
        yield Text(f"  not applicable, {count} cases: {subject.name} {reason}")


def _table(subject: SubjectReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("check", no_wrap=True)
    for heading in ("ran", "no ev-\nidence", "worst\nulp", "of\nbound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("grade", justify="center", no_wrap=True)
    table.add_column("on", overflow="fold")
    grades = subject.grades
    quiet: Counter[str] = Counter()
    for (check, dtype), tally in subject.tallies.items():
        if tally.ratio is not None and tally.ulp is not None:
            worst = [str(tally.vacuous), _short(tally.ulp), _share(tally.ratio), grades.get(dtype, "–"), tally.case]
        elif tally.failed or tally.expected:
            failed = [f"{tally.failed} failed"] if tally.failed else []
            failed += [f"{tally.expected} failed as expected"] if tally.expected else []
            worst = ["", "", "", "", f"{dtype}: {', '.join(failed)}"]
        else:
            quiet[check] += tally.ran
            continue
        # Texts: a string's brackets would be taken for markup.
        table.add_row(*map(Text, (check, str(tally.ran), *worst)), style="red" if tally.failed else "")
    for check, ran in quiet.items():
        table.add_row(check, str(ran), "", "", "", "", "held on all of them")
    return table


def _share(ratio: float) -> str:
    """A ratio of error to bound as a percentage; beyond ten times the bound the number says no more."""
    return f"{100 * ratio:.0f} %" if ratio < 10 else "> 10 ×"


def _short(ulp: float) -> str:
    return f"{ulp:.1f}" if ulp < 1000 else f"{ulp:.0e}"


def _subject_json(subject: SubjectReport) -> dict[str, Any]:
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
            "inputs": outcome.inputs,
            "digest": outcome.digest,
            "grade": outcome.grade,
            **{
                check: {"ulp": measured.ulp, "ratio": measured.ratio}
                for check, measured in outcome.checks.items()
                if measured.ratio is not None
            },
        }
    return {
        "name": subject.name,
        "counts": subject.counts,
        "grades": subject.grades,
        "not_applicable": dict(subject.not_applicable),
        "checks": checks,
        "findings": [_finding_json(finding) for finding in subject.findings],
        "cases": cases,
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    n = finding.numbers
    names = ("index", "got", "bits", "exact", "radius", "bound", "ulp", "ratio")
    return {
        "id": finding.id,
        "check": finding.check,
        "case": finding.case,
        "kind": finding.kind,
        "message": finding.message,
        "call": finding.call,
        **{name: None if n is None else getattr(n, name) for name in names},
        "torch": finding.torch,
        "expected": finding.expected,
    }


def _plain(value: Any) -> Any:
    """With a string for each number that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
