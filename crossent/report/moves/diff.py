"""diff() and Diff: compare two runs, for example with two versions of torch, and name the changes.

The rules in :mod:`crossent.report.moves.rules` give each change a name, such as "regression". A failed check is also a
finding in the report of its run. So if you keep the new run as the next baseline, you lose no failure.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from rich.console import RenderableType

from crossent.cases.axes import DTYPES
from crossent.cases.edges import POLICY_NAMES
from crossent.files import write_whole
from crossent.report.document import jsonable
from crossent.report.findings import Finding, Outcome, SubjectReport
from crossent.report.moves import conditions
from crossent.report.moves.html import page
from crossent.report.moves.rules import Kind, Move, Side, kind_of
from crossent.report.moves.text import rendered
from crossent.report.reader import read_report
from crossent.report.report import Report
from crossent.report.text import plain_text
from crossent.words import counted, shell_word

DIFF_SCHEMA = 1
# For each check that needs only the first call, but has no result of its own name: the results that the check uses.
ABOUT = {"sign": ("loss",), "row_sums": ("gradient",), "ignored_rows": ("loss", "gradient")}


def diff(
    old: Report | str | os.PathLike[str],
    new: Report | str | os.PathLike[str],
    *,
    force: bool = False,
    files: tuple[str, str] | None = None,
) -> Diff:
    """Compare two runs, and return the changes between them.

    A check on a case is compared if both runs have the subject, the case and the check. The inputs of the case must
    have the same bits in both runs.

    Args:
        old: a report, or a file that :meth:`Report.write_json` wrote.
        new: another report or file.
        force: whether to compare runs with different devices, machines or seeds too.
        files: the names of the files of `old` and `new`, if these are reports, for the commands that repeat a change.

    Raises:
        ValueError: a file is not a report, or the two runs cannot be compared. The message is one line.
        OSError: a file cannot be read.

    Example:
        >>> import crossent
        >>> report = crossent.check("scalar", dtypes=["float32"], level="quick")
        >>> crossent.diff(report, report).moves
        []
    """
    runs = [run if isinstance(run, Report) else read_report(run) for run in (old, new)]
    names = files or ["" if isinstance(run, Report) else os.fspath(run) for run in (old, new)]
    made = Diff(runs[0], runs[1], names[0], names[1])
    if made.hindrances and not force:
        hint = "; `crossent diff --force`, in Python force=True, compares them anyway" if made.compared else ""
        raise ValueError(f"these runs cannot be compared: {'; '.join(made.hindrances)}{hint}")
    return made


@dataclass(eq=False)
class Diff:
    """Two runs, and the changes between them.

    `str(diff)` is the comparison as text. `diff.ok` is False if nothing was compared, or if any change is a regression,
    a new refusal or changed behaviour; otherwise `diff.ok` is True.

    Attributes:
        old, new: the reports of the two runs.
        old_file, new_file: the files of the reports, for the commands that repeat a change; "" for a report in memory.
    """

    old: Report
    new: Report
    old_file: str = ""
    new_file: str = ""

    @cached_property
    def hindrances(self) -> list[str]:
        """The reasons why the two runs cannot be compared."""
        found = conditions.hindrances(self.old, self.new)
        if not self.pairs:
            return [*found, "they have no subject in common: compare two runs of the same subject"]
        unlike = "they have no case in common whose inputs have the same bits: repeat with the same level and seed"
        return found if self.compared else [*found, unlike]

    @cached_property
    def others(self) -> list[tuple[str, str, str]]:
        """The differences in versions, options and coverage: for each, a name, the old value and the new value."""
        return conditions.differences(self.old, self.new)

    @cached_property
    def notes(self) -> list[str]:
        """Lines about everything that is not compared, such as a subject, case or check that only one run has."""
        of_calls = {(move.subject, move.case) for move in self.moves if move.check in ("call", "result")}
        return list(conditions.notes(self.old, self.new, self.pairs, of_calls))

    @cached_property
    def pairs(self) -> list[tuple[SubjectReport, SubjectReport]]:
        """The old and the new report of each subject that both runs have."""
        old = {part.name: part for part in self.old.subjects}
        return [(old[part.name], part) for part in self.new.subjects if part.name in old]

    @cached_property
    def compared(self) -> list[Move]:
        """The comparisons of each check on each case that both runs have with the same input bits, changed or not."""
        return [move for old, new in self.pairs for move in _moves(old, new)]

    @cached_property
    def moves(self) -> list[Move]:
        """The comparisons with a change, the most serious change first."""
        order = list(Kind)
        moved = [move for move in self.compared if move.kind is not Kind.SAME]
        return sorted(moved, key=lambda move: (order.index(move.kind), not move.policy, -move.growth))

    @property
    def table(self) -> Counter[tuple[Kind, str, str]]:
        """The number of comparisons for each kind, check and dtype. The kind "same bits" counts all checks together."""
        return Counter(
            (move.kind, "every check" if move.kind is Kind.SAME else move.check, move.dtype) for move in self.compared
        )

    def rows(
        self, name: Callable[[Kind, str], str] = lambda kind, check: check
    ) -> tuple[list[str], dict[Kind, list[tuple[str, list[int]]]]]:
        """Return the dtypes of `table`, and its rows by kind. A row has a name, and a count for each dtype.

        `name` is a function that returns the name of the row for a kind and a check. Checks with the same name share a
        row.
        """
        counts: Counter[tuple[Kind, str, str]] = Counter()
        for (kind, check, dtype), count in self.table.items():
            counts[kind, name(kind, check), dtype] += count
        dtypes = [dtype for dtype in DTYPES if any(dtype == used for _, _, used in counts)]
        rows: dict[Kind, list[tuple[str, list[int]]]] = {}
        names = dict.fromkeys((kind, row) for kind, row, _ in counts)  # in the order of the checks
        for kind, row in sorted(names, key=lambda kind_and_row: list(Kind).index(kind_and_row[0])):
            rows.setdefault(kind, []).append((row, [counts[kind, row, dtype] for dtype in dtypes]))
        return dtypes, rows

    @cached_property
    def cases_of(self) -> dict[str, Counter[Kind]]:
        """For each subject, the number of cases of each kind. A case has the most serious kind of its checks."""
        order = list(Kind)
        worst: dict[str, dict[str, Kind]] = {part.name: {} for _, part in self.pairs}
        for move in self.compared:
            of = worst[move.subject]
            of[move.case] = min(of.get(move.case, Kind.SAME), move.kind, key=order.index)
        return {subject: Counter(of.values()) for subject, of in worst.items()}

    @property
    def cases(self) -> Counter[Kind]:
        """The number of cases of each kind, over all subjects."""
        return sum(self.cases_of.values(), Counter())

    @property
    def figures(self) -> list[tuple[Kind, int]]:
        """The kinds that occur, with their numbers of cases, the most serious kind first."""
        return [(kind, self.cases[kind]) for kind in Kind if self.cases[kind]]

    @property
    def ok(self) -> bool:
        """Whether something was compared, and no change is a regression, a new refusal or changed behaviour."""
        return bool(self.compared) and not any(move.kind.fails for move in self.compared)

    @property
    def strictly_ok(self) -> bool:
        """Whether `ok` is true, and no change is of the kind "worse within bounds"."""
        return self.ok and not any(move.kind is Kind.WORSE for move in self.compared)

    @property
    def summary(self) -> str:
        """The comparison in one line, such as "40 cases in both runs: 2 regressions, 38 same bits"."""
        if not self.compared:
            return "nothing was compared"
        each = ", ".join(kind.counted(count) for kind, count in self.figures)
        return f"{counted(self.cases.total(), 'case')} in both runs: {each}"

    @property
    def sorts(self) -> dict[Kind, list[list[Move]]]:
        """The changes of each kind, in groups of similar changes of one subject and check, the largest change first.

        Changes on cases that show the same decision of torch (`POLICIES` of :mod:`crossent.cases.edges`) are similar.
        Other changes with numbers are similar to each other. Other changes without numbers are similar if their texts
        (`Move.says`) are equal.
        """
        groups: dict[tuple[Kind, str, str, str], list[Move]] = {}
        for move in self.moves:
            numeric = move.new.measured.ulp is not None and not move.kind.fails
            words = move.policy or ("" if numeric else move.says if move.new.measured.ulp is None else "numbers")
            groups.setdefault((move.kind, move.subject, move.check, words), []).append(move)
        sorts: dict[Kind, list[list[Move]]] = {}
        for (kind, *_), group in groups.items():
            sorts.setdefault(kind, []).append(group)
        return sorts

    def found(self, move: Move) -> Finding | None:
        """Return the finding of a change in the new run, or None if the check passed in the new run.

        If the call raised in the old run, and returns a wrong result in the new run, return the first finding about
        this result.
        """
        if not move.also:
            return move.new.finding
        part = next(part for part in self.new.subjects if part.name == move.subject)
        return next(finding for finding in part.findings if finding.case == move.case and finding.check in move.also)

    def known(self, move: Move) -> list[str]:
        """Return the lines about the known failures of a change: the line of the old run, then the line of the new run.

        A run without a known failure has no line. If both runs have the same known failure, return only one line.
        """
        now, before = self.found(move), move.old.finding
        lines = [f"known failure: {now.expected}"] if now is not None and now.expected is not None else []
        if before is not None and before.expected is not None and f"known failure: {before.expected}" not in lines:
            lines.insert(0, f"known failure before: {before.expected}")
        return lines

    def command(self, move: Move) -> str:
        """Return the shell command that repeats the finding of a change, of the new run or otherwise of the old run.

        If the check passed in both runs, the command shows the number nearest to its error bound.
        """
        now = self.found(move)
        finding, file = now or move.old.finding, self.new_file if now else self.old_file
        if finding is None:
            # A check without numbers has no number to show, so show the number of a result that the check uses.
            check = move.check if move.new.measured.ulp is not None or move.check == "errors" else "loss"
            check = "gradient" if check == "loss" and move.check in ABOUT else check
            return f"crossent repro --passed {shell_word(f'{move.subject}:{check}:{move.case}')}"
        return replace(finding, repeat="").command + (f" {shell_word(file)}" if file else "")

    def render(self, most: int = 6) -> list[RenderableType]:
        """Return the comparison as parts that rich prints.

        For each kind of change, show every group about a decision of torch (`POLICIES` of :mod:`crossent.cases.edges`),
        and at most `most` other groups of similar changes. For a kind that needs no action, show one group.
        """
        return list(rendered(self, most))

    def __str__(self) -> str:
        return plain_text(self.render())

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON document. Numbers that JSON lacks are strings: "nan", "inf", "-inf".

        The kinds of changes have the same names as in the text.
        """
        document = {
            "schema": DIFF_SCHEMA,
            "old": self.old.environment,
            "new": self.new.environment,
            "others": [{"what": what, "old": old, "new": new} for what, old, new in self.others],
            "hindrances": self.hindrances,
            "notes": self.notes,
            "ok": self.ok,
            "cases": {name: {str(kind): of[kind] for kind in Kind} for name, of in self.cases_of.items()},
            "moves": [
                {
                    "kind": str(move.kind),
                    "id": move.id,
                    "subject": move.subject,
                    "check": move.check,
                    "case": move.case,
                    "dtype": move.dtype,
                    "policy": move.policy,
                    "says": move.says,
                    "old": asdict(move.old),
                    "new": asdict(move.new),
                    "repro": self.command(move),
                }
                for move in self.moves
            ],
        }
        made: dict[str, Any] = jsonable(document)
        return made

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison to an HTML file, a single page. If writing fails, the file is not changed."""
        write_whole(path, page(self))

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison to a JSON file. If writing fails, the file is not changed."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _moves(old: SubjectReport, new: SubjectReport) -> Iterator[Move]:
    """Yield the comparison of each check on each case that both runs have, if the inputs have the same bits."""
    findings = [{(finding.case, finding.check): finding for finding in part.findings} for part in (old, new)]
    for case, now in new.outcomes.items():
        before = old.outcomes.get(case)
        if before is None or before.inputs != now.inputs:
            continue
        both = before.checks.keys() & now.checks.keys()
        # NaN is not equal to NaN, but both have the same repr.
        alike = before.results == now.results or repr(before.results) == repr(now.results)
        for check in [check for check in now.checks if check in both]:
            was = _side(check, before, findings[0].get((case, check)), both, alike)
            now_is = _side(check, now, findings[1].get((case, check)), both, alike)
            policy = POLICY_NAMES.get(case, "")
            kind = kind_of(check, was, now_is, bool(policy))
            if (old.contract, [*old.declared]) != (new.contract, [*new.declared]) and kind is not Kind.SAME:
                kind = Kind.BEHAVIOUR  # the two runs have different bounds, so no other kind can be determined
            found = ((name, findings[1].get((case, name))) for name in now.checks if name not in both)
            # A refusal by a further check, such as a transform, does not make the result of the call wrong.
            also = tuple(name for name, finding in found if finding is not None and finding.kind != "refused")
            if kind is Kind.ACCEPTED and check == "call" and also:
                kind = Kind.BROKEN
            else:
                also = ()
            yield Move(kind, new.name, check, case, now.dtype, was, now_is, policy, also)


def _side(check: str, outcome: Outcome, finding: Finding | None, checked: Collection[str], alike: bool) -> Side:
    """Return one check on one case in one run, as a side of a comparison.

    Args:
        check: the name of the check.
        outcome: the outcome of the case in this run.
        finding: the finding of the check, or None if the check passed.
        checked: the names of the checks that both runs have on the case.
        alike: whether the first call has equal results in both runs.
    """
    whose = {name: shown for name, shown in outcome.results.items() if name == check}
    digest = "-".join(outcome.results[name].digest for name in ABOUT.get(check, ()) if name in outcome.results)
    if check == "call":  # show the results that no check compared, for example a loss of the wrong shape
        whose = {name: shown for name, shown in outcome.results.items() if name not in checked}
    return Side(
        outcome.checks[check],
        finding,
        whose,
        outcome.raised if check in ("call", "errors") else "",
        outcome.digest if check == "call" and alike else digest,
        outcome.grade if check == "result" else "",
    )
