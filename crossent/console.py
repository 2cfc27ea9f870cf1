"""The output of the commands: tables and lists on stdout, and a progress bar with the first findings on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn
from rich.table import Column
from rich.text import Text

from crossent.cases.corpus import bugs
from crossent.cases.operation import OPERATIONS
from crossent.checks import checks_of
from crossent.checks.refusals import ERRORS
from crossent.choices import DTYPE_NAMES
from crossent.files import say_error
from crossent.report.text import keeps_lines
from crossent.run.order import Step, Steps
from crossent.run.plan import plan
from crossent.subjects.builtin import EVERY_NAMED, builtin_subjects
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.subjects.contracts import CONTRACTS
from crossent.subjects.features import FEATURES


class Output(Console):
    """A console of at least 80 columns that wraps tables and prose, but not other lines, such as commands."""

    NARROWEST = 80  # columns; in a narrower table, rich would cut digits

    def show(self, parts: Iterable[RenderableType]) -> None:
        """Print the parts, one below the other."""
        self.width = max(self.width, self.NARROWEST)
        for part in parts:
            self.print(part, soft_wrap=keeps_lines(part))
        self.file.flush()

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError instead of rich's SystemExit, so that the command decides the exit status."""
        raise BrokenPipeError


MOST_FINDINGS = 20  # the most findings that are shown during the run


def progress(steps: Steps) -> Iterator[Step]:
    """Yield the steps of a run, and show a progress bar and the first findings if stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_interactive:
        yield from steps
        return
    running = Running(steps, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    columns = ("checking", BarColumn(20), TaskProgressColumn(), Remaining(), running)
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        task, shown = bar.add_task("", total=steps.cost), 0
        for step in steps:
            bar.advance(task, step.cost)
            for finding in step.findings[: MOST_FINDINGS - shown]:
                bar.print(Text(finding.headline, "red"), soft_wrap=True)
            if shown < MOST_FINDINGS <= shown + len(step.findings):
                bar.print(Text(f"no more than {MOST_FINDINGS} findings are shown during the run", "dim"))
            shown = min(MOST_FINDINGS, shown + len(step.findings))
            yield step


class Running(ProgressColumn):
    """The running check and case, as a column of the progress bar."""

    def __init__(self, steps: Steps, table_column: Column) -> None:
        super().__init__(table_column)
        self._steps = steps

    def render(self, task: Task) -> Text:
        """Return the running check and case."""
        return Text(self._steps.running, "dim")


class Remaining(ProgressColumn):
    """The remaining time, as a column of the progress bar, once the fraction `LEAST` of the cost is done."""

    LEAST = 0.05

    def render(self, task: Task) -> Text:
        """Return the remaining time in words, such as "2 min 5 s left", or no text before the fraction `LEAST`."""
        done = task.completed / task.total if task.total else 0.0
        if done < self.LEAST or task.elapsed is None:
            return Text("")
        seconds = round(task.elapsed * (1 - done) / done)
        return Text(f"{seconds // 60} min {seconds % 60} s left" if seconds >= 60 else f"{seconds} s left")


def warn_of_grade(subjects: Sequence[str], contract: str | None, grade: str | None) -> None:
    """Print a warning to stderr if --grade, without --contract, applies to some of the subjects, but not to all."""
    own = [name for name in dict.fromkeys(subjects) if name.removesuffix(COMPILE_SUFFIX) in EVERY_NAMED]
    if grade and contract is None and 0 < len(own) < len(set(subjects)):
        names, reason = ", ".join(own), "without --contract, the forms and torch keep their own grades"
        advice = f"add --contract, or leave out {names}"
        say_error(f"crossent: --grade does not apply to {names}: {reason}; {advice}")


def listed(what: str, level: str, operation: str | None) -> list[str]:
    """Return the lines that `crossent list WHAT --level LEVEL --operation OPERATION` prints.

    Without an operation, list the subjects and features of every operation, and the checks and cases of cross_entropy.
    """
    every = [OPERATIONS[operation]] if operation else [*OPERATIONS.values()]
    of = every[0]
    sentences = {
        "subjects": {name: one.name for one in every for name in builtin_subjects(one)},
        "checks": {name: check.said_of(of) for name, check in checks_of(of).items()} | {"errors": ERRORS},
        "features": {name: str(one) for name, one in FEATURES.items() if {*every}.intersection(one.operations)},
        "contracts": {name: contract.sentence for name, contract in CONTRACTS.items()},
    }
    if what in sentences:
        width = max(map(len, sentences[what]))
        return [f"{name:<{width}}  {sentence}" for name, sentence in sentences[what].items()]
    if what == "cases":
        return [case.id for case in plan(level, DTYPE_NAMES, 0, of)]
    return list(map(str, bugs()))
