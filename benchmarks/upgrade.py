"""What an upgrade of torch moves: an environment for each version, a report from each, what moved, and the hot path.

    nox -s upgrade -- 2.8.0 2.15.0              # or: python -m benchmarks.upgrade 2.8.0 2.15.0
    nox -s upgrade -- 2.8.0 2.13.0 2.15.0       # each beside the one before it
    nox -s upgrade -- 2.13.0 ./torch-2.16.0.whl --level normal --reuse
    PIP_PRE=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/nightly/cpu nox -s upgrade -- 2.13.0 torch

A version is what pip takes, `2.8.0`, a requirement, or the path of a wheel; or it is the folder of an environment that
has torch and crossent. Reports are kept in `.nox/upgrade/reports`, environments beside them: `--reuse` takes both as
they are. Exit status: that of `crossent diff`, the gravest of them, and 2 where a version could not be had.

The hot path is timed in both versions at a time: two processes wait, and take turns in blocks of old, new, new, old. A
block's ratio is new over old; shown is the median over the blocks with its quartiles. Times of two jobs are no ratio.

This needs Python alone; it must start where no torch is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.turns import ALONE, BLOCKS, EndedError, Side, hot, ratios

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "benchmarks" / "figures" / "upgrades.json"
README = ROOT / "README.md"
PLACE = ROOT / ".nox" / "upgrade"
NEEDED = ("python-flint>=0.7", "click>=8.1", "rich>=13.4", "pebble>=5", "jinja2>=3.1", "packaging>=22", "setuptools")
# Shapes as in the benchmarks, small enough to take turns.
HOT = hot(("torch", "formula"))


class CannotError(Exception):
    """An environment that cannot be made, or a run that cannot; in one line."""


@dataclass(frozen=True)
class Environment:
    """One torch, and at what level it is asked."""

    spec: str
    python: Path
    level: str

    @property
    def report(self) -> Path:
        """Where its report is kept."""
        return PLACE / "reports" / f"{slug(self.spec)}-{self.level}.json"

    def command(self, *arguments: str) -> list[str]:
        """What runs crossent of this repository in it."""
        return [str(self.python), "-m", "crossent", *arguments]

    @property
    def side(self) -> Side:
        """What takes its turns."""
        return Side(self.spec, str(self.python), str(ROOT))

    @property
    def variables(self) -> dict[str, str]:
        """Of its processes."""
        return {**os.environ, **ALONE, "PYTHONPATH": str(ROOT)}


def slug(spec: str) -> str:
    """A folder's name for a version.

    >>> slug("torch>=2.14,<3")
    'torch_2.14_3'
    """
    return re.sub(r"[^\w.+-]+", "_", spec.rstrip("/").rpartition("/")[2])


def requirements(spec: str) -> list[str]:
    """What pip is asked for: before torch 2.3 its tensors are no arrays of numpy 2.

    >>> requirements("2.0.1")
    ['torch==2.0.1', 'numpy<2']
    >>> requirements("torch>=2.14")
    ['torch>=2.14', 'numpy>=1.24']
    """
    if not re.fullmatch(r"\d+(\.\w+)*(\+\w+)?", spec):
        return [spec, "numpy>=1.24"]
    major, minor = (*map(int, re.findall(r"\d+", spec)[:2]), 0)[:2]
    return [f"torch=={spec}", "numpy<2" if (major, minor) < (2, 3) else "numpy>=1.24"]


def environment(spec: str, level: str, reuse: bool) -> Environment:
    """The environment of a version, made where it is not there."""
    if (found := Path(spec) / "bin" / "python").exists():
        return Environment(spec, found.absolute(), level)
    place = PLACE / slug(spec)
    made = Environment(spec, place / "bin" / "python", level)
    if not (reuse and made.python.exists()):
        say(f"{spec}: making an environment in {place}")
        venv.create(place, clear=True, with_pip=True)
        pip = [str(made.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, *requirements(spec), *NEEDED], f"{spec}: no environment")
        run([*pip, "--no-deps", "-e", str(ROOT)], f"{spec}: no environment")
    return made


def run(command: list[str], what: str, allowed: tuple[int, ...] = (0,), env: dict[str, str] | None = None) -> str:
    """What a command prints.

    Raises:
        CannotError: it ended otherwise than is allowed; with what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode not in allowed:
        lines = [line.strip() for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("ERROR: ")][:1] or lines[-1:]  # pip goes on with advice
        raise CannotError(f"{what}: {told[0] if told else f'exit status {done.returncode}'}")
    return done.stdout


def checked(of: Environment, subjects: list[str], reuse: bool) -> None:
    """Make its report, unless one is there that is to be used again."""
    if reuse and of.report.exists():
        say(f"{of.spec}: {of.report} is there")
        return
    of.report.parent.mkdir(parents=True, exist_ok=True)
    say(f"{of.spec}: crossent check {' '.join(subjects)} --level {of.level}")
    arguments = ["check", *subjects, "--level", of.level, "--json", str(of.report)]
    run(of.command(*arguments), f"{of.spec}: no report", (0, 1), of.variables)


def timed(old: Environment, new: Environment) -> dict[str, list[float]]:
    """For each call of the hot path the ratio of its times, new to old: lower quartile, median, upper quartile."""
    try:
        return {
            str(call): [round(number, 3) for number in (ratio.lower, ratio.median, ratio.upper)]
            for call, ratio in ratios(old.side, new.side, HOT, BLOCKS)
        }
    except EndedError as error:
        raise CannotError(str(error)) from None


def compared(old: Environment, new: Environment, force: bool) -> tuple[int, dict[str, Any]]:
    """Show what moved; the exit status of `crossent diff`, and all of it."""
    files = {kind: PLACE / "reports" / f"{slug(old.spec)}..{slug(new.spec)}.{kind}" for kind in ("json", "html")}
    arguments = ["diff", str(old.report), str(new.report), *(["--force"] if force else [])]
    for kind, file in files.items():
        arguments += [f"--{kind}", str(file)]
    done = subprocess.run(new.command(*arguments), env=new.variables, check=False)
    if done.returncode not in (0, 1):
        raise CannotError(f"{old.spec} and {new.spec} cannot be compared")
    say(f"kept: {', '.join(map(str, (old.report, new.report, *files.values())))}")
    return done.returncode, json.loads(files["json"].read_text(encoding="utf-8"))


TOLD = ("crossent", "torch", "numpy", "python", "device", "cpu_capability")  # of an environment


def figures(moved: dict[str, Any], ratios: dict[str, list[float]]) -> dict[str, Any]:
    """What is kept in the repository of two versions: what became of the cases, and what fails, by its first case."""
    moves, environments = moved["moves"], {which: moved[which] for which in ("old", "new")}
    told: dict[str, dict[str, Any]] = {}
    for move in moves:
        if move["kind"] in ("broken", "newly refused", "contract changed", "mended", "newly accepted"):
            key = f"{move['kind']} {move['subject']} {move['check']} {move['says']}"
            told.setdefault(key, {name: move[name] for name in ("kind", "id", "policy", "says")} | {"cases": 0})
            told[key]["cases"] += 1
    versions = {which: {name: run.get(name, "") for name in TOLD} for which, run in environments.items()}
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
    names = [*COLUMNS, "time, of torch"]
    lines = ["| torch | cases | " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) + 1)]
    for pair in kept["pairs"]:
        versions = " → ".join(pair[which]["torch"].partition("+")[0] for which in ("old", "new"))
        counts = [sum(pair["cases"][kind] for kind in kinds) for kinds in COLUMNS.values()]
        medians = [ratio[1] for name, ratio in pair["hot"].items() if name.startswith("torch ")]
        time = f"{min(medians):.2f} to {max(medians):.2f}" if medians else ""
        cells = [versions, *(f"{count:,}" for count in (sum(pair["cases"].values()), *counts)), time]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_table(kept: dict[str, Any]) -> None:
    """Put it into the README."""
    begin, end = "<!-- upgrades:begin -->\n", "<!-- upgrades:end -->\n"
    before, rest = README.read_text(encoding="utf-8").split(begin)
    README.write_text(before + begin + table(kept) + end + rest.split(end)[1], encoding="utf-8")


def say(line: str) -> None:
    """Show how far it is."""
    print(f"upgrade: {line}", flush=True)


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
    parser.add_argument("--subject", action="append", dest="subjects", help="torch, and the forms, unless given")
    parser.add_argument("--reuse", action="store_true", help="take environments and reports as they are")
    parser.add_argument("--force", action="store_true", help="as for crossent diff")
    parser.add_argument("--no-times", action="store_true", help="leave the hot path out")
    parser.add_argument("--write-figures", action="store_true", help="into benchmarks/figures and the README")
    chosen = parser.parse_args(arguments)
    subjects = chosen.subjects or ["torch", "formula", "log_softmax_nll", "one_hot"]
    ready: list[Environment] = []
    failed = False
    for version in chosen.versions:
        try:
            one = environment(version, chosen.level, chosen.reuse)
            checked(one, subjects, chosen.reuse)
            ready.append(one)
        except (CannotError, OSError) as error:
            print(f"upgrade: {error}", file=sys.stderr)
            failed = True
    status, all_figures = 0, []
    for old, new in itertools.pairwise(ready):
        try:
            worst, moved = compared(old, new, chosen.force)
            ratios = {} if chosen.no_times else timed(old, new)
        except (CannotError, OSError) as error:
            print(f"upgrade: {error}", file=sys.stderr)
            failed = True
            continue
        status = max(status, worst)
        for name, (lower, median, upper) in ratios.items():
            say(f"{name}: {median:.2f} of the time ({lower:.2f} to {upper:.2f}), forward and backward")
        all_figures.append(figures(moved, ratios))
    if chosen.write_figures and not failed:
        kept = {"level": chosen.level, "subjects": subjects, "pairs": all_figures}
        FIGURES.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_table(kept)
    return 2 if failed else status


if __name__ == "__main__":
    sys.exit(main())
