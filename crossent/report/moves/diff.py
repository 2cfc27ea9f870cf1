"""Baseline: a run that was kept, and what has moved since: another torch, another machine, or another day.

Measurements are kept and rules are written (:mod:`crossent.report.moves.rules`), so that nobody is tempted to make
a baseline anew until it is green: what broke stays broken, whatever is kept.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from rich.console import RenderableType

from crossent.cases.edges import POLICY_NAMES
from crossent.report.document import jsonable, write_whole
from crossent.report.findings import Finding, Outcome, SubjectReport
from crossent.report.moves import conditions
from crossent.report.moves.html import page
from crossent.report.moves.rules import Kind, Move, Side, kind_of
from crossent.report.moves.text import rendered
from crossent.report.reader import read_report
from crossent.report.report import Report
from crossent.report.text import plain_text
from crossent.words import word

DIFF_SCHEMA = 1
# The results of the first call that these checks look at, each of which has a check of its own too.
ABOUT = {"sign": ("loss",), "row_sums": ("gradient",), "ignored_rows": ("loss", "gradient")}


def diff(
    old: Report | str | os.PathLike[str],
    new: Report | str | os.PathLike[str],
    *,
    force: bool = False,
    files: tuple[str, str] | None = None,
) -> Diff:
    """What moved from one run to another: of each subject, case and check that both have, on the same bits.

    Args:
        old: a report, or a file that :meth:`Report.write_json` wrote. Nothing is run.
        new: another.
        force: whether runs are compared that say little about each other, as those of two devices.
        files: their names, where they have been read already: what repeats a move names them.

    Raises:
        ValueError: a file is no report, or the two cannot be compared; in one line.
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
        raise ValueError(f"these runs cannot be compared: {'; '.join(made.hindrances)}")
    return made


@dataclass(eq=False)
class Diff:
    """Two runs, and what moved from one to the other.

    `str(diff)` is the readable table; `diff.ok` is True where nothing broke, is newly refused, or promises otherwise.
    """

    old: Report
    new: Report
    old_file: str = ""
    new_file: str = ""

    @cached_property
    def hindrances(self) -> list[str]:
        """Why the two say little about each other."""
        found = conditions.hindrances(self.old, self.new)
        if not self.pairs:
            return [*found, "they have no subject in common"]
        return found if self.compared else [*found, "they have no case in common that has the same bits"]

    @cached_property
    def others(self) -> list[tuple[str, str, str]]:
        """What else is another one about the runs: its name, what it was, and what it is."""
        return conditions.others(self.old, self.new)

    @cached_property
    def notes(self) -> list[str]:
        """What only one run has, a line each: nothing is said about it."""
        of_calls = {(move.subject, move.case) for move in self.moves if move.check in ("call", "result")}
        return list(conditions.notes(self.old, self.new, self.pairs, of_calls))

    @cached_property
    def pairs(self) -> list[tuple[SubjectReport, SubjectReport]]:
        """The parts of the subjects that both runs have."""
        old = {part.name: part for part in self.old.subjects}
        return [(old[part.name], part) for part in self.new.subjects if part.name in old]

    @cached_property
    def compared(self) -> list[Move]:
        """Every check of every case that both runs have, the same bits among them."""
        return [move for old, new in self.pairs for move in _moves(old, new)]

    @cached_property
    def moves(self) -> list[Move]:
        """Those of them that are not the same, the gravest first."""
        order = list(Kind)
        moved = [move for move in self.compared if move.kind is not Kind.SAME]
        return sorted(moved, key=lambda move: (order.index(move.kind), not move.policy, -move.growth))

    @property
    def table(self) -> Counter[tuple[Kind, str, str]]:
        """How many checks of cases became what, by check and dtype; of the same bits, of all checks together."""
        return Counter(
            (move.kind, "every check" if move.kind is Kind.SAME else move.check, move.dtype) for move in self.compared
        )

    @cached_property
    def cases_of(self) -> dict[str, Counter[Kind]]:
        """How many cases of each subject became what, by the gravest that became of one of their checks."""
        order = list(Kind)
        gravest: dict[str, dict[str, Kind]] = {part.name: {} for _, part in self.pairs}
        for move in self.compared:
            of = gravest[move.subject]
            of[move.case] = min(of.get(move.case, Kind.SAME), move.kind, key=order.index)
        return {subject: Counter(of.values()) for subject, of in gravest.items()}

    @property
    def cases(self) -> Counter[Kind]:
        """The same of all subjects together."""
        return sum(self.cases_of.values(), Counter())

    @property
    def figures(self) -> list[tuple[Kind, int]]:
        """The same, without what there is none of, the gravest first."""
        return [(kind, self.cases[kind]) for kind in Kind if self.cases[kind]]

    @property
    def ok(self) -> bool:
        """Whether nothing broke, is newly refused, or changed its contract."""
        return not any(move.kind.fails for move in self.compared)

    @property
    def strictly_ok(self) -> bool:
        """Whether nothing became worse either."""
        return self.ok and not any(move.kind is Kind.WORSE for move in self.compared)

    @property
    def summary(self) -> str:
        """It all in one line."""
        each = ", ".join(f"{count} {kind}" for kind, count in self.figures)
        return f"{self.cases.total()} cases in both runs: {each}"

    @property
    def sorts(self) -> list[list[Move]]:
        """The moves, those together that are of one sort: a reader wants one of each. A policy is one by itself."""
        sorts: dict[tuple[str, ...], list[Move]] = {}
        for move in self.moves:
            numeric = move.new.measured.ulp is not None and not move.kind.fails
            told = move.policy or ("" if numeric else move.says if move.new.measured.ulp is None else "numbers")
            sorts.setdefault((move.kind, move.subject, move.check, told), []).append(move)
        return list(sorts.values())

    def found(self, move: Move) -> Finding | None:
        """What is wrong now: of a call that was refused, the first that its result has."""
        if not move.also:
            return move.new.finding
        part = next(part for part in self.new.subjects if part.name == move.subject)
        return next(one for one in part.findings if one.case == move.case and one.check in move.also)

    def known(self, move: Move) -> list[str]:
        """What is known of it: why it was wrong, where it is not now or in another way, and why it is."""
        now, before = self.found(move), move.old.finding
        told = [f"known: {now.expected}"] if now is not None and now.expected is not None else []
        if before is not None and before.expected is not None and f"known: {before.expected}" not in told:
            told.insert(0, f"was known: {before.expected}")
        return told

    def command(self, move: Move) -> str:
        """What repeats a move, to be pasted into a shell: in the run that found it, or in either where both held."""
        now = self.found(move)
        finding, file = now or move.old.finding, self.new_file if now else self.old_file
        if finding is None:
            # Of a check without a number, what it looks at has one.
            check = move.check if move.new.measured.ulp is not None or move.check == "errors" else "loss"
            check = "gradient" if check == "loss" and move.check in ABOUT else check
            return f"crossent repro --held {word(f'{move.subject}:{check}:{move.case}')}"
        return replace(finding, named=True).command + (f" {word(file)}" if file else "")

    def render(self, most: int = 6) -> list[RenderableType]:
        """What is another one about the runs, a table, and the moves; of each sort this many."""
        return list(rendered(self, most))

    def __str__(self) -> str:
        return plain_text(self.render())

    def to_json(self) -> dict[str, Any]:
        """All of it, every move with both of its sides: numbers are JSON's, and "nan", "inf" and "-inf" are strings."""
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
        """Write it to a file as one page for a browser: all of it or, where that fails, nothing."""
        write_whole(path, page(self))

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file: all of it or, where that fails, nothing."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _moves(old: SubjectReport, new: SubjectReport) -> Iterator[Move]:
    """What became of each check of each case that both have, on the same bits."""
    findings = [{(finding.case, finding.check): finding for finding in part.findings} for part in (old, new)]
    for case, now in new.outcomes.items():
        before = old.outcomes.get(case)
        if before is None or before.inputs != now.inputs:
            continue
        both = before.checks.keys() & now.checks.keys()
        alike = before.results == now.results or repr(before.results) == repr(now.results)  # NaN is NaN
        for check in [check for check in now.checks if check in both]:
            was = _side(check, before, findings[0].get((case, check)), both, alike)
            now_is = _side(check, now, findings[1].get((case, check)), both, alike)
            policy = POLICY_NAMES.get(case, "")
            kind = kind_of(check, was, now_is, bool(policy))
            found = ((name, findings[1].get((case, name))) for name in now.checks if name not in both)
            # A call that is refused in another way, as under a transform, is no wrong result.
            also = tuple(name for name, finding in found if finding is not None and finding.kind != "refused")
            if kind is Kind.ACCEPTED and check == "call" and also:
                kind = Kind.BROKEN
            else:
                also = ()
            yield Move(kind, new.name, check, case, now.dtype, was, now_is, policy, also)


def _side(check: str, outcome: Outcome, finding: Finding | None, checked: Collection[str], alike: bool) -> Side:
    """What a check says in one run; these are in both, and the results are alike in both or not."""
    whose = {name: shown for name, shown in outcome.results.items() if name == check}
    digest = "-".join(outcome.results[name].digest for name in ABOUT.get(check, ()) if name in outcome.results)
    if check == "call":  # a result of which no check speaks, as of a loss of the wrong shape
        whose = {name: shown for name, shown in outcome.results.items() if name not in checked}
    return Side(
        outcome.checks[check],
        finding,
        whose,
        outcome.raised if check in ("call", "errors") else "",
        outcome.digest if check == "call" and alike else digest,
        outcome.grade if check == "result" else "",
    )
