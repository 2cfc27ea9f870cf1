"""The tables that the pages include and that the code has: contracts, features, the corpus, and a finding.

The site's build writes them into `docs/_generated`, so that no page repeats by hand what the code says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import crossent
from crossent.cases.corpus import bugs
from crossent.report.moves.rules import Kind
from crossent.subjects.contracts import CONTRACTS, DEFAULT_CONTRACT
from crossent.subjects.features import FEATURES

KINDS_OF_BUGS = {
    "A": "Denominator and reduction",
    "B": "Label smoothing",
    "C": "Gradient",
    "D": "Rounding and overflow",
    "E": "Tiles and widths",
    "F": "More elements than a 32-bit index counts",
    "G": "Targets",
    "H": "Memory layout",
    "I": "Interface and determinism",
}


def write(folder: Path) -> None:
    """Write every table into the folder."""
    folder.mkdir(exist_ok=True)
    texts = {"contracts.md": contracts(), "features.md": features(), "kinds.md": kinds(), "corpus.md": corpus()}
    for name, text in {**texts, "finding.txt": finding()}.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:  # an unchanged table rebuilds no page
            file.write_text(text, encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def contracts() -> str:
    """Return the contracts, with the grade of each in half precision."""
    rows = []
    for name, contract in CONTRACTS.items():
        default = ", the default" if name == DEFAULT_CONTRACT else ""
        grade = f"{contract.grade}, always" if contract.only_grade else f"{contract.grade}, or `--grade`"
        rows.append((f"`{name}`{default}", contract.sentence, grade))
    return table(("contract", "what the function promises", "grade in float16 and bfloat16"), rows)


def features() -> str:
    """Return the features that a function may lack."""
    return table(("feature", "meaning"), [(f"`{name}`", str(feature)) for name, feature in FEATURES.items()])


def kinds() -> str:
    """Return the kinds of changes that `crossent diff` names, the most serious first."""
    rows = [(kind.label, kind.meaning, "fails" if kind.fails else "") for kind in Kind]
    return table(("change", "meaning", "exit status 1"), rows)


def corpus() -> str:
    """Return the published bugs, by kind."""
    parts = []
    for letter, kind in KINDS_OF_BUGS.items():
        rows = []
        for bug in bugs():
            if bug.id.startswith(letter):
                issues = ", ".join(f"[{issue}]({address(issue)})" for issue in bug.issues)
                rows.append((bug.breaks, issues or "a user's code", f"no case: {bug.why_not}" if bug.why_not else ""))
        parts.append(f"### {kind}\n\n" + table(("bug", "reported in", "note"), rows))
    return "\n".join(parts)


def address(issue: str) -> str:
    """Return the address of an issue such as `pytorch/pytorch#73205`.

    >>> address("pytorch/pytorch#73205")
    'https://github.com/pytorch/pytorch/issues/73205'
    """
    repository, _, number = issue.partition("#")
    return f"https://github.com/{repository}/issues/{number}"


def finding() -> str:
    """Return a finding about the function that the page "Check your kernel" shows, as the report has it."""
    page = (Path(__file__).parent / "check-your-kernel.md").read_text(encoding="utf-8")
    source = page.partition("```python\n# kernels/mine.py\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(source, "kernels/mine.py", "exec"), names)
    case = "torch-mlir-3585/float32-7x5-normal-int64-mean-ignored_default"
    report = crossent.check(names["loss"], cases=case, checks="loss")
    return f"{report.findings[0]}\n"
