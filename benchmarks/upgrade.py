"""What an upgrade of torch moves: an environment for each version, a report from each, what moved, and the hot path.

    nox -s upgrade -- 2.8.0 2.15.0              # or: python -m benchmarks.upgrade 2.8.0 2.15.0
    nox -s upgrade -- 2.8.0 2.13.0 2.15.0       # each beside the one before it
    nox -s upgrade -- 2.13.0 ./torch-2.16.0.whl --level normal --reuse
    PIP_PRE=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/nightly/cpu nox -s upgrade -- 2.13.0 torch

A version is what pip takes, `2.8.0`, a requirement, or the path of a wheel; or it is the folder of an environment that
has torch and what crossent needs. One that is named twice is run twice. Reports are kept in `.nox/upgrade/reports`,
environments of some GB each beside them: `--reuse` takes environments as they are, and reports that are younger than
crossent's own code. Exit status: that of `crossent diff`, the gravest of them; 2 where a version could not be had or
compared, and 130 where it was interrupted. What is not whole, an environment or a report, is not kept.

This needs Python alone; it must start where no torch is.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks import environments
from benchmarks.environments import ROOT, SUBJECTS, CannotError, Environment, checked, environment, say
from benchmarks.turns import BLOCKS, EndedError, Side, hot, ratios

FIGURES = ROOT / "benchmarks" / "figures" / "upgrades.json"
README = ROOT / "README.md"
HOT = hot(("torch", "formula"))


def timed(old: Environment, new: Environment) -> dict[str, list[float]]:
    """For each call of the hot path the ratio of its times, new to old: lower quartile, median, upper quartile."""
    told: dict[str, list[float]] = {}
    sides = (Side(one.spec, str(one.python), str(ROOT)) for one in (old, new))
    try:
        for call, ratio in ratios(*sides, HOT, BLOCKS):
            lower, median, upper = told[str(call)] = [round(of, 3) for of in (ratio.lower, ratio.median, ratio.upper)]
            say(f"{call}: {median:.2f} of the time ({lower:.2f} to {upper:.2f}), forward and backward")
    except EndedError as error:
        raise CannotError(str(error)) from None
    return told


def compared(old: Environment, new: Environment, force: bool) -> tuple[int, dict[str, Any]]:
    """Show what moved; the exit status of `crossent diff`, and all of it."""
    name = f"{old.name}..{new.name}-{new.asked}"
    files = {kind: environments.PLACE / environments.REPORTS / f"{name}.{kind}" for kind in ("json", "html")}
    was, now = (json.loads(one.report.read_bytes())["environment"].get("cpu_capability") for one in (old, new))
    if was != now:  # of one machine it is torch that chooses otherwise
        say(f"{old.spec} takes {was} and {new.spec} {now}, which moves bits: ATEN_CPU_CAPABILITY chooses for both")
    arguments = ["diff", str(old.report), str(new.report), *(["--force"] if force or was != now else [])]
    for kind, file in files.items():
        arguments += [f"--{kind}", str(file)]
    done = subprocess.run(new.command(*arguments), env=new.variables, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CannotError(f"{old.spec} and {new.spec}: {said[-1].removeprefix('crossent: ')}")
    say(f"kept: {', '.join(map(str, (old.report, new.report, *files.values())))}")
    return done.returncode, json.loads(files["json"].read_text(encoding="utf-8"))


def total(cases: Iterable[dict[str, int]]) -> dict[str, int]:
    """How many cases of several subjects became what."""
    each = list(cases)
    return {kind: sum(of[kind] for of in each) for kind in each[0]}


TOLD = ("crossent", "torch", "numpy", "python", "device", "cpu_capability")  # of an environment


def figures(moved: dict[str, Any], ratios: dict[str, list[float]]) -> dict[str, Any]:
    """What is kept in the repository of two versions: what became of the cases, and what fails, by its first case."""
    told: dict[str, dict[str, Any]] = {}
    for move in moved["moves"]:
        if move["kind"] in ("broken", "newly refused", "contract changed", "mended", "newly accepted"):
            key = f"{move['kind']} {move['subject']} {move['check']} {move['says']}"
            told.setdefault(key, {name: move[name] for name in ("kind", "id", "policy", "says")} | {"cases": 0})
            told[key]["cases"] += 1
    versions = {which: {name: moved[which].get(name, "") for name in TOLD} for which in ("old", "new")}
    return {**versions, "cases": moved["cases"], "moves": [*told.values()], "hot": ratios}


COLUMNS = {
    "same bits": ("same bits", "same bits, judged anew"),
    "within bounds": ("moved within bounds", "better", "worse within bounds"),
    "mended or taken": ("mended", "newly accepted"),
    "contract changed": ("contract changed",),
    "broken or refused": ("broken", "newly refused"),
    "others": ("other words", "still wrong"),
}


def table(kept: dict[str, Any]) -> str:
    """The README's: what became of the cases, and what the hot path costs."""
    names = [*COLUMNS, "time"]
    lines = ["| torch | of | cases | " + " | ".join(names) + " |", "| --- | --- |" + " ---: |" * (len(names) + 1)]
    for pair, of in itertools.product(kept["pairs"], ("torch", "the forms")):
        subjects = [cases for name, cases in pair["cases"].items() if name.startswith("torch") == (of == "torch")]
        if not subjects:
            continue
        versions = " → ".join(pair[which]["torch"].partition("+")[0] for which in ("old", "new"))
        cases = total(subjects)
        counts = [sum(cases[kind] for kind in kinds) for kinds in COLUMNS.values()]
        medians = [ratio[1] for name, ratio in pair["hot"].items() if name.startswith("torch ") == (of == "torch")]
        time = f"{min(medians):.2f} to {max(medians):.2f}" if medians else ""
        cells = [versions, of, *(f"{count:,}" for count in (sum(cases.values()), *counts)), time]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_table(kept: dict[str, Any]) -> None:
    """Put it into the README."""
    begin, end = "<!-- upgrades:begin -->\n", "<!-- upgrades:end -->\n"
    before, rest = README.read_text(encoding="utf-8").split(begin)
    README.write_text(before + begin + table(kept) + end + rest.split(end)[1], encoding="utf-8")


def complain(error: CannotError | OSError) -> None:
    """Say in one line what cannot be."""
    print(f"upgrade: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Make the environments, run, compare, time; the exit status."""
    parser = argparse.ArgumentParser(description="What moves between versions of torch, each beside the one before it.")
    parser.add_argument(
        "versions",
        nargs="+",
        metavar="VERSION",
        help="2.8.0, a requirement, a wheel, an environment; of one alone the report is made",
    )
    parser.add_argument("--level", default="quick", choices=("quick", "normal", "thorough"))
    parser.add_argument(
        "--subject", action="append", dest="subjects", default=[], help=f"{', '.join(SUBJECTS)}, unless given"
    )
    parser.add_argument("--reuse", action="store_true", help="take the environments and reports that are there")
    parser.add_argument("--force", action="store_true", help="as for crossent diff")
    parser.add_argument("--no-times", action="store_true", help="leave the hot path out")
    parser.add_argument("--write-figures", action="store_true", help="into benchmarks/figures and the README")
    chosen = parser.parse_args(arguments)
    with contextlib.suppress(ValueError):  # not in the main thread, where nobody's signal comes
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return upgraded(chosen)
    except KeyboardInterrupt:
        print("upgrade: interrupted", file=sys.stderr)
        return 130


def upgraded(chosen: argparse.Namespace) -> int:
    """Do what was chosen; the exit status."""
    ready: list[Environment] = []
    failed = False
    seen: Counter[str] = Counter()
    for version in chosen.versions:
        seen[version] += 1
        try:
            one = environment(version, chosen.level, chosen.reuse, tuple(chosen.subjects), seen[version])
            checked(one, chosen.reuse)
            ready.append(one)
        except (CannotError, OSError) as error:
            complain(error)
            failed = True
    status, all_figures = 0, []
    for old, new in itertools.pairwise(ready):
        try:
            worst, moved = compared(old, new, chosen.force)
            status = max(status, worst)
            all_figures.append(figures(moved, {} if chosen.no_times else timed(old, new)))
            told = [f"{count} {kind}" for kind, count in total(moved["cases"].values()).items() if count]
            verdict = "look before you upgrade" if worst else "nothing broke"
            say(f"{old.spec} → {new.spec}: {verdict}: {', '.join(told)}")
        except (CannotError, OSError) as error:
            complain(error)
            failed = True
    if chosen.write_figures and not failed:
        kept = {"level": chosen.level, "subjects": chosen.subjects or SUBJECTS, "pairs": all_figures}
        FIGURES.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_table(kept)
    return 2 if failed else status


if __name__ == "__main__":
    sys.exit(main())
