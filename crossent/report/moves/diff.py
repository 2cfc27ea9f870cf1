"""diff() and Diff: compare two runs, for example with two versions of torch, and name the changes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from rich.console import RenderableType

from crossent.cases.axes import DTYPES
from crossent.choices import BUILTIN_NAMES
from crossent.files import write_whole
from crossent.report.document import jsonable
from crossent.report.findings import Finding, SubjectReport
from crossent.report.moves import conditions
from crossent.report.moves.comparisons import ABOUT, comparisons
from crossent.report.moves.html import page
from crossent.report.moves.rules import Kind, Move
from crossent.report.moves.text import rendered
from crossent.report.reader import read_report
from crossent.report.report import Report
from crossent.report.text import plain_text
from crossent.words import counted, shell_word

DIFF_SCHEMA = 1


def diff(
    old: Report | str | os.PathLike[str],
    new: Report | str | os.PathLike[str],
    *,
    force: bool = False,
    files: tuple[str, str] | None = None,
) -> Diff:
    """Compare two runs, and return the changes between them.

    A check on a case is compared if both runs have the check, and the inputs of the case have the same bits.

    Args:
        old: the report of the old run, or the path of a file that :meth:`Report.write_json` wrote.
        new: the report of the new run, or the path of such a file.
        force: whether to compare the runs despite the reasons in `Diff.hindrances`, such as different devices or seeds.
        files: the two file names for the commands that repeat a finding. By default, the paths `old` and `new`.

    Raises:
        ValueError: a file is not a report; or, without `force`, the two runs cannot be compared.
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
        hint = "; --force, in Python force=True, compares the two runs anyway" if made.compared else ""
        raise ValueError(f"these runs cannot be compared: {'; '.join(made.hindrances)}{hint}")
    return made


@dataclass(eq=False)
class Diff:
    """Two runs, and the changes between them. `str(diff)` is the comparison as text.

    Attributes:
        old, new: the reports of the two runs.
        old_file, new_file: the files of the reports, for the commands that repeat a finding; "" for a report in memory.
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
            return [*found, "the runs have no subject in common; check the same subject in both runs"]
        unlike = "the runs have no case in common whose inputs have the same bits"
        advice = "repeat the new run with the options of the old run"
        return found if self.compared else [*found, f"{unlike}; {advice}"]

    @cached_property
    def others(self) -> list[tuple[str, str, str]]:
        """The differences in machine, versions, options and coverage: for each, its name, old value and new value."""
        return conditions.differences(self.old, self.new)

    @cached_property
    def notes(self) -> list[str]:
        """Lines about what is not compared, for example a subject, case or check that only one run has."""
        of_calls = {(move.subject, move.case) for move in self.moves if move.check in ("call", "result")}
        return list(conditions.notes(self.old, self.new, self.pairs, of_calls))

    @cached_property
    def pairs(self) -> list[tuple[SubjectReport, SubjectReport]]:
        """The old and the new report of each subject that both runs have."""
        old = {part.name: part for part in self.old.subjects}
        return [(old[part.name], part) for part in self.new.subjects if part.name in old]

    @cached_property
    def compared(self) -> list[Move]:
        """The comparisons of all checks on all cases that both runs have with the same input bits.

        A comparison without a change has the kind "same bits".
        """
        return [move for old, new in self.pairs for move in comparisons(old, new)]

    @cached_property
    def moves(self) -> list[Move]:
        """The comparisons with a change, the most serious kind first.

        In each kind, changes on cases that show a decision of torch (`Move.policy`) come first, then the largest
        changes of the error.
        """
        order = list(Kind)
        moved = [move for move in self.compared if move.kind is not Kind.SAME]
        return sorted(moved, key=lambda move: (order.index(move.kind), not move.policy, -move.change_in_ulp))

    @property
    def table(self) -> Counter[tuple[Kind, str, str]]:
        """The number of comparisons for each kind, check and dtype.

        The kind "same bits" counts all checks together, under the name "every check".
        """
        return Counter(
            (move.kind, "every check" if move.kind is Kind.SAME else move.check, move.dtype) for move in self.compared
        )

    def rows(
        self, name: Callable[[Kind, str], str] = lambda kind, check: check
    ) -> tuple[list[str], dict[Kind, list[tuple[str, list[int]]]]]:
        """Return the dtypes, and for each kind the rows of a table.

        A row has a name, and the number of comparisons in each dtype. `name` returns the name of a row for a kind and
        a check. By default, each check has a row.
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
        """The number of cases of each kind. A case counts once for each subject."""
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
        how = " (counted for each subject)" if len(self.pairs) > 1 else ""
        return f"{counted(self.cases.total(), 'case')} in both runs{how}: {each}"

    @property
    def sorts(self) -> dict[Kind, list[list[Move]]]:
        """For each kind, groups of similar changes of one subject and check, in the order of `moves`.

        Changes on cases that show the same decision of torch (`Move.policy`) are similar. All other changes in which
        the new run has an error in ulp are similar. The rest are similar if their texts (`Move.says`) are equal.
        """
        groups: dict[tuple[Kind, str, str, str], list[Move]] = {}
        for move in self.moves:
            words = move.policy or ("" if move.new.measured.ulp is not None else move.says)
            groups.setdefault((move.kind, move.subject, move.check, words), []).append(move)
        sorts: dict[Kind, list[list[Move]]] = {}
        for (kind, *_), group in groups.items():
            sorts.setdefault(kind, []).append(group)
        return sorts

    def found(self, move: Move) -> Finding | None:
        """Return the finding of the new run that belongs to a change, or None if the check passed in the new run.

        If the call returns only in the new run, and the result is wrong, return the first finding about the result.
        """
        if not move.also:
            return move.new.finding
        part = next(part for part in self.new.subjects if part.name == move.subject)
        return next(finding for finding in part.findings if finding.case == move.case and finding.check in move.also)

    def known(self, move: Move) -> list[str]:
        """Return a line for the known failure of each run, the old run first. Equal reasons give one line."""
        now, before = self.found(move), move.old.finding
        lines = [f"known failure: {now.expected}"] if now is not None and now.expected is not None else []
        if before is not None and before.expected is not None and f"known failure: {before.expected}" not in lines:
            lines.insert(0, f"known failure before: {before.expected}")
        return lines

    def command(self, move: Move) -> str:
        """Return the shell command that repeats the finding of the new run, or else of the old run.

        If neither run has a finding, the command shows a number of a form or of torch. If the subject is a user's
        function, return "" instead.
        """
        now = self.found(move)
        finding, file = now or move.old.finding, self.new_file if now else self.old_file
        if finding is None:
            if move.subject.removesuffix("+compile") not in BUILTIN_NAMES:
                return ""
            # A check without numbers has no number to show, so show the number of a result that the check uses.
            has_number = move.new.measured.ulp is not None or move.check == "errors"
            check = move.check if has_number else ABOUT.get(move.check, ("loss",))[0]
            return f"crossent repro --passed {shell_word(f'{move.subject}:{check}:{move.case}')}"
        return replace(finding, repeat="").command + (f" {shell_word(file)}" if file else "")

    def render(self, most: int = 6) -> list[RenderableType]:
        """Return the comparison as renderables of rich.

        For each kind of change, show every group about a decision of torch, and at most `most` other groups. For a kind
        that needs no action, such as "better", show one group.
        """
        return list(rendered(self, most))

    def __str__(self) -> str:
        return plain_text(self.render())

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON document. Numbers that JSON lacks are strings: "nan", "inf", "-inf"."""
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
        """Write the comparison to an HTML file, a single page.

        If writing fails, raise OSError; a regular file is then unchanged.
        """
        write_whole(path, page(self))

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison to a JSON file. If writing fails, raise OSError; a regular file is then unchanged."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
