"""Counts of the mutants that are found: by the checks at each level, and by `torch.testing.assert_close`."""

import json
import os
import platform

import torch
from rich.console import Console
from rich.table import Table
from support.readme import RESULTS, part
from support.running import run

import crossent
from crossent.cases.axes import DTYPES
from crossent.run.order import ordered
from crossent.run.plan import plan
from crossent.state import restore, snapshot
from crossent.subjects.callables import as_subject

AGAIN = "`nox -s mutants` writes the figures again"
LEVELS = ("quick", "normal")


class Figures:
    """The figures of an operation's mutants, in a file of benchmarks/results and in a table of benchmarks/README.md.

    Attributes:
        name: the name of the file and of the table.
        mutants: the mutants.
        files: the modules of the mutants, one for each mechanism.
        checks: the names of the checks, in the order of a report.
        calls: a function that returns the plain calls, each a tuple of the arguments of `is_close` after the loss.
        is_close: a function of a loss and of a call that returns whether loss and gradients pass `assert_close`.
        found: a function of a level and of mutants that returns the checks that find each mutant, by its name.
    """

    def __init__(self, name, mutants, files, checks, calls, is_close, found):
        self.name, self.mutants, self.files, self.checks = name, mutants, files, [*checks, "errors"]
        self.calls, self.is_close, self.found = calls, is_close, found
        self.path = RESULTS / f"{name}.json"

    def read(self):
        """Return the stored figures."""
        return json.loads(self.path.read_text(encoding="utf-8"))

    def write(self):
        """Count again, write the figures and the table, and print which check finds which mutant."""
        counted = self._count()
        self.path.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")
        part(self.name, self.table(counted))
        self._show(counted)

    def _count(self):
        """Return the lowest level and the checks that find each mutant, and whether plain calls find the mutant."""
        killed = {mutant.name: ("", []) for mutant in self.mutants}
        for level in LEVELS:
            left = [mutant for mutant in self.mutants if not killed[mutant.name][0]]
            for name, checks in (self.found(level, left) if left else {}).items():
                if checks:
                    killed[name] = level, sorted(checks, key=self.checks.index)
        counted = {}
        for mutant in self.mutants:
            close = [self.is_close(mutant.loss, *call) for call in self.calls()]
            level, checks = killed[mutant.name]
            plain = {"one batch": not close[0], "each option": not all(close)}
            counted[mutant.name] = {"issues": mutant.issues, "level": level, "checks": checks, **plain}
        return {"torch": torch.__version__, "python": platform.python_version(), "mutants": counted}

    def _show(self, counted):
        """Print a table of the checks that find each mutant. The checks that the mutant names are bold."""
        matrix = Table("mutant", "issue", "level", "killed by", "one batch", "each option")
        for mutant in self.mutants:
            found = counted["mutants"][mutant.name]
            own = [f"[bold]{check}[/]" if check in mutant.checks else check for check in found["checks"]]
            plain = ["killed" if found[way] else "" for way in ("one batch", "each option")]
            matrix.add_row(mutant.name, " ".join(mutant.issues), found["level"] or "survives", " ".join(own), *plain)
        Console(width=200).print(matrix)

    def table(self, counted):
        """Return the totals as a Markdown table, with a line for each file."""
        head = ("mechanism", "mutants", "killed at level quick", "at level normal", "by one batch", "with each option")
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        rows = {one.__name__: [m.name for m in self.mutants if m.loss.__module__ == one.__name__] for one in self.files}
        for file, listed in {**rows, "all": [mutant.name for mutant in self.mutants]}.items():
            found = [counted["mutants"][name] for name in listed]
            levels = [sum(one["level"] in some for one in found) for some in (LEVELS[:1], LEVELS)]
            plain = [sum(one[way] for one in found) for way in ("one batch", "each option")]
            lines.append([f"`{file}`" if file != "all" else "all", len(listed), *levels, *plain])
        issues = len({issue for mutant in self.mutants for issue in mutant.issues if "#" in issue})
        text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
        return f"{len(self.mutants)} mutants, of {issues} issues, torch {counted['torch']}:\n\n{text}"


def found_on_all_cases(level, mutants):
    """Return the checks that find each mutant of a cross-entropy on all cases of a level."""
    losses = [mutant.loss for mutant in mutants]
    report = crossent.check(*losses, level=level, jobs=os.cpu_count())
    return {entry.name: {finding.check for finding in entry.findings} for entry in report.subjects}


def found_on_the_first_case(operation, level, mutants):
    """Return the checks that find each mutant of an operation, on the first case of a level that finds the mutant."""
    planned = plan(level, tuple(DTYPES), 0, operation)
    cases, found = list(planned), {mutant.name: set() for mutant in mutants}
    for case in (cases[at] for group in ordered(planned) for at in group):
        left = [as_subject(mutant.loss, operation=operation) for mutant in mutants if not found[mutant.name]]
        report = run(left, case, planned[case]) if left else None
        found |= {part.name: {one.check for one in part.findings} for part in report.subjects} if left else {}
    return found


def passes_assert_close(compute, wanted):
    """Return whether the results of `compute()` pass `assert_close`; False if it raises. Global state is restored."""
    before = snapshot()
    try:
        torch.testing.assert_close(compute(), wanted)
    except Exception:  # a test fails if the loss raises
        return False
    finally:
        restore(before)
    return True
