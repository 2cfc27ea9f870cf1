"""Compare versions of torch: make an environment and a report for each, show the changes, and time the hot path.

    nox -s upgrade -- 2.8.0 2.15.0              # or: python -m benchmarks.upgrade 2.8.0 2.15.0
    nox -s upgrade -- 2.8.0 2.13.0 2.15.0       # each version is compared with the one before it
    nox -s upgrade -- 2.13.0 ./torch-2.16.0.whl --level normal --reuse
    PIP_PRE=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/nightly/cpu nox -s upgrade -- 2.13.0 torch

A version is anything that pip accepts: `2.8.0`, a requirement, or the path of a wheel. It may also be the folder of an
environment that has torch and crossent's dependencies. A version that is named twice runs twice. Each environment takes
some GB in `.nox/upgrade`, and the reports are in `.nox/upgrade/reports`. `--reuse` keeps environments, and reports that
are younger than crossent's code. Unfinished environments and reports are deleted.

Exit status: the largest status of the `crossent diff` runs; 2 if a version cannot be installed or compared; 130 if
interrupted. This module imports only the standard library, since torch may be missing where it runs.
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
from benchmarks.environments import SUBJECTS, CannotError, Environment, checked, environment, say
from benchmarks.readme import RESULTS, ROOT, part
from benchmarks.turns import BLOCKS, EndedError, Side, hot, ratios

FIGURES = RESULTS / "upgrades.json"
HOT = hot(("torch", "formula"))


def timed(old: Environment, new: Environment) -> dict[str, list[float]]:
    """Return the lower quartile, median and upper quartile of the ratio of times, new / old, for each call of `HOT`."""
    found: dict[str, list[float]] = {}
    sides = (Side(side.spec, str(side.python), str(ROOT)) for side in (old, new))
    try:
        for call, ratio in ratios(*sides, HOT, BLOCKS):
            lower, median, upper = found[str(call)] = [round(of, 3) for of in (ratio.lower, ratio.median, ratio.upper)]
            say(f"{call}, forward and backward: new / old {median:.2f} ({lower:.2f} to {upper:.2f})")
    except EndedError as error:
        raise CannotError(str(error)) from None
    return found


def compared(old: Environment, new: Environment, force: bool) -> tuple[int, dict[str, Any]]:
    """Run `crossent diff` on the reports of two environments, and return its exit status and its JSON."""
    name = f"{old.name}..{new.name}-{new.options}"
    files = {kind: environments.PLACE / environments.REPORTS / f"{name}.{kind}" for kind in ("json", "html")}
    was, now = (json.loads(side.report.read_bytes())["environment"].get("cpu_capability") for side in (old, new))
    if was != now:  # the machine is the same, so torch has chosen other instructions
        say(f"{old.spec} uses {was} and {new.spec} uses {now}, so bits differ; ATEN_CPU_CAPABILITY sets one for both")
    arguments = ["diff", str(old.report), str(new.report), *(["--force"] if force or was != now else [])]
    for kind, file in files.items():
        arguments += [f"--{kind}", str(file)]
    done = subprocess.run(new.command(*arguments), env=new.variables, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CannotError(f"{old.spec} and {new.spec}: {said[-1].removeprefix('crossent: ')}")
    say(f"written: {', '.join(map(str, (old.report, new.report, *files.values())))}")
    return done.returncode, json.loads(files["json"].read_text(encoding="utf-8"))


def total(cases: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the number of cases of each kind of change, summed over the subjects."""
    each = list(cases)
    return {kind: sum(of[kind] for of in each) for kind in each[0]}


def figures(moved: dict[str, Any], ratios: dict[str, list[float]]) -> dict[str, Any]:
    """Return the part of `upgrades.json` about two versions.

    `moved` is the JSON of `crossent diff`. Of similar changes, keep only the first, with the number of cases. Leave out
    changes within the error bounds.
    """
    first: dict[str, dict[str, Any]] = {}
    for move in moved["moves"]:
        if move["kind"] in ("regression", "newly refused", "changed behaviour", "fixed", "newly accepted"):
            key = f"{move['kind']} {move['subject']} {move['check']} {move['says']}"
            first.setdefault(key, {name: move[name] for name in ("kind", "id", "policy", "says")} | {"cases": 0})
            first[key]["cases"] += 1
    names = ("crossent", "torch", "numpy", "python", "device", "cpu_capability")
    versions = {which: {name: moved[which].get(name, "") for name in names} for which in ("old", "new")}
    return {**versions, "cases": moved["cases"], "moves": [*first.values()], "hot": ratios}


COLUMNS = {
    "same bits": ("same bits", "same bits, judged again"),
    "within bounds": ("changed within bounds", "better", "worse within bounds"),
    "fixed or accepted": ("fixed", "newly accepted"),
    "changed behaviour": ("changed behaviour",),
    "regression or refused": ("regression", "newly refused"),
    "others": ("other error message", "still wrong"),
}


def table(kept: dict[str, Any]) -> str:
    """Return a table in Markdown: the number of cases by kind of change, and the ratios of times of the hot path."""
    names = [*COLUMNS, "time"]
    lines = ["| torch | subjects | cases | " + " | ".join(names) + " |", "| --- | --- |" + " ---: |" * (len(names) + 1)]
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


def complain(error: CannotError | OSError) -> None:
    """Print an error as one line."""
    print(f"upgrade: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Make environments and reports, compare the reports, time the hot path, and return the exit status."""
    parser = argparse.ArgumentParser(description="Compare each version of torch with the version before it.")
    version_help = "a version such as 2.8.0, a requirement, a wheel or an environment; a single version is only checked"
    parser.add_argument("versions", nargs="+", metavar="VERSION", help=version_help)
    parser.add_argument("--level", default="quick", choices=("quick", "normal", "thorough"))
    parser.add_argument(
        "--subject", action="append", dest="subjects", default=[], help=f"default: {', '.join(SUBJECTS)}"
    )
    parser.add_argument("--reuse", action="store_true", help="keep environments and up-to-date reports of earlier runs")
    parser.add_argument("--force", action="store_true", help="as for crossent diff")
    parser.add_argument("--no-times", action="store_true", help="do not time the hot path")
    parser.add_argument("--write-figures", action="store_true", help="write upgrades.json and the table of it")
    chosen = parser.parse_args(arguments)
    with contextlib.suppress(ValueError):  # only the main thread receives signals
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return upgraded(chosen)
    except KeyboardInterrupt:
        print("upgrade: interrupted", file=sys.stderr)
        return 130


def upgraded(chosen: argparse.Namespace) -> int:
    """Compare the versions that the command line names, and return the exit status."""
    ready: list[Environment] = []
    failed = False
    seen: Counter[str] = Counter()
    for version in chosen.versions:
        seen[version] += 1
        try:
            made = environment(version, chosen.level, chosen.reuse, tuple(chosen.subjects), seen[version])
            checked(made, chosen.reuse)
            ready.append(made)
        except (CannotError, OSError) as error:
            complain(error)
            failed = True
    status, all_figures = 0, []
    for old, new in itertools.pairwise(ready):
        try:
            worst, moved = compared(old, new, chosen.force)
            status = max(status, worst)
            all_figures.append(figures(moved, {} if chosen.no_times else timed(old, new)))
            counts = [f"{count} {kind}" for kind, count in total(moved["cases"].values()).items() if count]
            verdict = "look before you upgrade" if worst else "no regression"
            say(f"{old.spec} → {new.spec}: {verdict}: {', '.join(counts)}")
        except (CannotError, OSError) as error:
            complain(error)
            failed = True
    if chosen.write_figures and not failed:
        kept = {"level": chosen.level, "subjects": chosen.subjects or SUBJECTS, "pairs": all_figures}
        FIGURES.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part("upgrades", table(kept))
    return 2 if failed else status


if __name__ == "__main__":
    sys.exit(main())
