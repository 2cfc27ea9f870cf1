"""What a command prints: tables and lists on stdout, and a progress bar on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.progress import track
from rich.text import Text

from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.checks import CHECKS
from crossent.checks.refusals import ERRORS
from crossent.choices import DTYPE_NAMES
from crossent.run.plan import plan
from crossent.subjects.builtin import NAMED
from crossent.subjects.contracts import CONTRACTS
from crossent.subjects.features import FEATURES


class Output(Console):
    """A console that fits tables to the terminal, and never wraps other lines: they can be searched and copied."""

    NARROWEST = 80  # a table loses digits before it loses a column

    def show(self, parts: Iterable[RenderableType]) -> None:
        """Print the parts."""
        self.width = max(self.width, self.NARROWEST)
        for part in parts:
            self.print(part, soft_wrap=isinstance(part, Text))
        self.file.flush()

    def on_broken_pipe(self) -> None:
        """Raise, so that the command decides the exit status."""
        raise BrokenPipeError


def progress(cases: Sequence[Case | BadInput]) -> Iterator[Case | BadInput]:
    """Show a progress bar on stderr, if stderr is a terminal."""
    console = Console(stderr=True)
    yield from track(cases, description="checking", console=console, transient=True, disable=not console.is_interactive)


def listed(what: str, level: str) -> list[str]:
    """Return the lines of `crossent list`."""
    sentences = {
        "checks": {name: check.sentence for name, check in CHECKS.items()} | {"errors": ERRORS},
        "features": {name: feature.sentence for name, feature in FEATURES.items()},
        "contracts": {name: contract.sentence for name, contract in CONTRACTS.items()},
    }
    if what in sentences:
        width = max(map(len, sentences[what]))
        return [f"{name:<{width}}  {sentence}" for name, sentence in sentences[what].items()]
    if what == "subjects":
        return list(NAMED)
    if what == "cases":
        return [case.id for case in plan(level, DTYPE_NAMES, 0)]
    return list(map(str, bugs()))
