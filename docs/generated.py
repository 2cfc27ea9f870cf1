"""Write the parts of the pages that come from the code: contracts, features, kinds of changes, the corpus, a finding.

The build of the site writes them into `docs/_generated`, so that no page repeats the code by hand.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Sequence
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import crossent
from crossent.cases.corpus import bugs
from crossent.choices import GRADE_NAMES
from crossent.report.moves.rules import Kind
from crossent.report.text import failures, plain_text
from crossent.subjects.contracts import CONTRACTS, DEFAULT_CONTRACT
from crossent.subjects.features import FEATURES

# For each contract, the code that should choose it. For each grade, the promise and the code that should choose it.
FOR = {
    "kernel": "code written by hand, fused kernels",
    "fast": "Triton kernels, `__expf`",
    "logsumexp": "`logsumexp(x) - x[y]`",
    "eager": "code of torch's operations that subtracts the maximum first; the forms",
    "torch": "wrappers of `F.cross_entropy`",
}
GRADES = {
    "A": ("Computes in float32 or wider, and rounds once.", "code that casts to float32 first"),
    "B": ("May round each step to the dtype of the logits.", "code that computes in the dtype, as torch does on a CPU"),
    "float16=B": ("Grade B in float16, and grade A in bfloat16.", "code that casts bfloat16 alone"),
    "bfloat16=B": ("Grade B in bfloat16, and grade A in float16.", "code that casts float16 alone"),
}
ROOT = Path(__file__).parents[1]
WORLD = ROOT / "tests" / "world"
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
    texts |= {"world.md": world(), "faults.py": faults()}
    for name, text in {**texts, "finding.txt": finding()}.items():
        file = folder / name
        if (
            not file.exists() or file.read_text(encoding="utf-8") != text
        ):  # Sphinx need not rebuild the pages with an unchanged table
            file.write_text(text, encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def contracts() -> str:
    """Return the tables of the contracts and of the grades, with the code that each is for."""
    rows = []
    for name, contract in CONTRACTS.items():
        default = ", the default" if name == DEFAULT_CONTRACT else ""
        rows.append((f"`--contract {name}`{default}", contract.sentence, FOR[name]))
    for name in GRADE_NAMES:
        default = ", the default" if name == CONTRACTS[DEFAULT_CONTRACT].grade else ""
        rows.append((f"`--grade {name}`{default}", *GRADES[name]))
    return table(("option", "what the function promises", "for"), rows)


def features() -> str:
    """Return the table of the features that a function may lack."""
    return table(("feature", "meaning"), [(f"`{name}`", str(feature)) for name, feature in FEATURES.items()])


def kinds() -> str:
    """Return the table of the kinds of changes that `crossent diff` names, the most serious first."""
    rows = [(kind, kind.meaning, "fails" if kind.fails else "") for kind in Kind]
    return table(("change", "meaning", "exit status 1"), rows)


def corpus() -> str:
    """Return the tables of the published bugs, one for each kind."""
    rows: dict[str, list[tuple[str, str, str]]] = {kind: [] for kind in KINDS_OF_BUGS.values()}
    for bug in bugs():
        issues = ", ".join(f"[{issue}]({address(issue)})" for issue in bug.issues)
        note = f"no case: {bug.why_not}" if bug.why_not else ""
        rows[KINDS_OF_BUGS[bug.id[0]]].append((bug.breaks, issues or "a user's code", note))
    return "\n".join(f"### {kind}\n\n" + table(("bug", "reported in", "note"), of) for kind, of in rows.items())


def world() -> str:
    """Return what `nox -s world` found in the losses of other packages."""
    losses = tomllib.loads((WORLD / "losses.toml").read_text(encoding="utf-8"))
    findings = tomllib.loads((WORLD / "findings.toml").read_text(encoding="utf-8"))["finding"]
    versions = dict(re.findall(r'"([\w-]+)(?:\[\w+\])?==([\w.]+)"', (ROOT / "noxfile.py").read_text(encoding="utf-8")))
    rows = []
    for name, settings in losses.items():
        package = settings["package"]
        of = [finding for finding in findings if finding["subject"] == name]
        judged = [finding["reason"].partition(": ") for finding in of] or [("", "", "")]
        loss = f"`{name.partition('_')[2]}` of {package} {versions[package]}"
        for at, (kind, _, reason) in enumerate(judged):
            shown = (loss, ", ".join(f"`{feature}`" for feature in lacking(name))) if at == 0 else ("", "")
            rows.append((shown[0], reason or "nothing", kind, shown[1]))
    return table(("loss", "found", "judged as", "declared as missing"), rows)


def lacking(name: str) -> list[str]:
    """Return the features that tests/world declares as missing in a loss of another package."""
    tree = ast.parse((WORLD / f"{name.partition('_')[0]}_losses.py").read_text(encoding="utf-8"))
    functions = {node.name: node.decorator_list for node in tree.body if isinstance(node, ast.FunctionDef)}
    made = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name]
    found = []
    for call in functions.get(name, made):
        for keyword in call.keywords if isinstance(call, ast.Call) else ():
            names = keyword.value.keys if isinstance(keyword.value, ast.Dict) else [ast.Constant(keyword.arg)]
            found += [ast.literal_eval(one) for one in names]
    return found


def faults() -> str:
    """Return the scripts that show the bugs of other packages."""
    return (WORLD / "faults.py").read_text(encoding="utf-8")


def address(issue: str) -> str:
    """Return the address of an issue such as `pytorch/pytorch#73205`."""
    repository, _, number = issue.partition("#")
    return f"https://github.com/{repository}/issues/{number}"


def finding() -> str:
    """Return the part of a report about the function that the page "Check your kernel" shows: a cause and a finding."""
    page = (Path(__file__).parent / "check-your-kernel.md").read_text(encoding="utf-8")
    source = page.partition("```python\n# kernels/mine.py\n")[2].partition("```")[0]
    with TemporaryDirectory() as folder, chdir(folder):
        Path("kernels").mkdir()
        Path("kernels/mine.py").write_text(source, encoding="utf-8")
        case = "torch-mlir-3585/float32-7x5-normal-int64-mean-ignored_default"
        report = crossent.check("kernels/mine.py:loss", cases=case, checks="loss")
    return plain_text(failures(report.subjects[0], 1)).lstrip() + "\n"
