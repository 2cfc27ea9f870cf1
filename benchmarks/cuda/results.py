"""Read the facts of a step, such as counts and findings, from its reports and its output, for the JSON file.

Each function takes the parts of a step, and the folder with their output. If the time ran out, the output of a part may
be missing. The facts then name this part.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cuda.devices import ROOT
from benchmarks.cuda.processes import Part

MOST = 100  # findings, or failing tests, that a result file shows
_SECONDS = 60.0  # the time limit of the process that looks up the known failures of torch
# A line of tests/numerics/test_assumptions.py, such as
# torch.exp: 0.5123 ulp at 0.25, of 1000 float32 numbers; assumed 2.5
_ERROR = re.compile(
    r"^\.*(?P<path>.+): (?P<ulp>\S+) ulp at (?P<at>\S+), "
    r"of (?P<count>\d+) (?P<dtype>\w+) numbers; assumed (?P<assumed>\S+)$"
)


def of_checks(parts: Sequence[Part], folder: Path) -> dict[str, Any]:
    """Return the counts and the findings of the reports of `crossent check`, and the parts without a report."""
    reports = {part.name: report for part in parts if (report := _read(folder / f"{part.name}.json"))}
    findings = [
        {"subject": subject["name"], **{name: one[name] for name in ("id", "kind", "message", "expected", "ratio")}}
        for report in reports.values()
        for subject in report["subjects"]
        for one in subject["findings"]
    ]
    new = [one for one in findings if one["expected"] is None]
    if any(one["subject"].startswith("torch") for one in new):
        on_cpu = _known_on_cpu([folder / f"{name}.json" for name in reports])
        new = [one | {"known_on_cpu": on_cpu[one["id"]]} if one["id"] in on_cpu else one for one in new]
    return {
        "subjects": _counts(reports),
        "worst": _worst(reports),
        "findings": [{k: v for k, v in one.items() if k != "expected"} for one in new[:MOST]],
        "findings_in_all": len(new),
        "known_failures": dict(Counter(one["expected"] for one in findings if one["expected"] is not None)),
        "not_run": _not_run(reports),
        "unfinished": {name: report["planned"] for name, report in reports.items() if report.get("planned")},
        "without_report": [part.name for part in parts if part.name not in reports],
    }


def _counts(reports: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for report in reports.values():
        for subject in report["subjects"]:
            found.setdefault(subject["name"], Counter()).update(subject["counts"])
    return {name: dict(counts) for name, counts in found.items()}


def _worst(reports: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, for each check that compares numbers, the largest share of an error bound and its case."""
    found: dict[str, dict[str, Any]] = {}
    for report in reports.values():
        for subject in report["subjects"]:
            for check, by_dtype in subject["checks"].items():
                for one in (each["worst"] for each in by_dtype.values() if each["worst"]):
                    share = float(one["ratio"])
                    if check not in found or share > found[check]["share"]:
                        found[check] = {"share": share, "subject": subject["name"], "case": one["case"]}
    return found


def _not_run(reports: Mapping[str, Any]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for report in reports.values():
        for subject in report["subjects"]:
            for check, reasons in subject["not_run"].items():
                found.update({f"{check}: {reason}": count for reason, count in reasons.items()})
    return dict(found)


def _known_on_cpu(reports: Sequence[Path]) -> dict[str, str]:
    """Return the reasons of the findings that are known failures of torch on a CPU, by the id of the finding."""
    command = [sys.executable, "-m", "benchmarks.cuda.known", *map(str, reports)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except subprocess.SubprocessError:
        return {}
    found: dict[str, str] = json.loads(done.stdout)
    return found


def of_isolation(parts: Sequence[Part], folder: Path) -> dict[str, Any]:
    """Return the facts of a check of the asserting loss, and the spoiled cases.

    A case is spoiled if it has a finding, although its reduction is not "sum". The step fails if a case is spoiled, or
    if no case has a finding.
    """
    facts = of_checks(parts, folder)
    cases = sorted({one["id"].rpartition(":")[2] for one in facts["findings"]})
    spoiled = [case for case in cases if "-sum" not in case]
    return {**facts, "spoiled": spoiled, "failed": bool(spoiled) or not cases}


def of_tests(parts: Sequence[Part], folder: Path) -> dict[str, Any]:
    """Return the counts of the tests, the failing tests, and the reasons of the skipped tests."""
    counts, reasons, failing = Counter[str](), Counter[str](), []
    lacking = []
    for part in parts:
        path = folder / f"{part.name}.xml"
        if not path.exists():
            lacking.append(part.name)
            continue
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            skipped = case.find("skipped")
            wrong = next((one for tag in ("failure", "error") if (one := case.find(tag)) is not None), None)
            counts["skipped" if skipped is not None else "failed" if wrong is not None else "passed"] += 1
            if skipped is not None:
                reasons[str(skipped.get("message"))] += 1
            if wrong is not None:
                failing.append({"test": case.get("name"), "message": str(wrong.get("message")).splitlines()[0][:300]})
    return {"tests": dict(counts), "failing": failing[:MOST], "skipped": dict(reasons), "without_result": lacking}


def of_assumptions(parts: Sequence[Part], folder: Path) -> dict[str, Any]:
    """Return the facts of the tests, and the largest error in ulps of each function that computes exp or log."""
    errors = [
        found.groupdict()
        for part in parts
        if (log := folder / f"{part.name}.log").exists()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if (found := _ERROR.match(line))
    ]
    numbers = {"ulp": float, "at": float, "count": int, "assumed": float}
    measured = [{name: numbers.get(name, str)(value) for name, value in one.items()} for one in errors]
    return {**of_tests(parts, folder), "errors": measured}


def of_both(parts: Sequence[Part], folder: Path) -> dict[str, Any]:
    """Return the facts of a step that has a part `tests` and a part `checks`."""
    tests, checks = (tuple(part for part in parts if part.name == name) for name in ("tests", "checks"))
    return {**of_tests(tests, folder), **of_checks(checks, folder)}


def of_comparison(parts: Sequence[Part], folder: Path) -> dict[str, Any]:
    """Return for each part the largest shares of the bounds, on the CPU and on the device, and the changed cases."""
    facts: dict[str, Any] = {}
    for part in parts:
        on_device, on_cpu, diff = (_read(folder / f"{part.name}{suffix}.json") for suffix in ("", "-cpu", "-diff"))
        facts[part.name] = {
            "cpu": _worst({part.name: on_cpu}) if on_cpu else None,
            "device": _worst({part.name: on_device}) if on_device else None,
            "cases": {name: {kind: n for kind, n in of.items() if n} for name, of in diff["cases"].items()}
            if diff
            else None,
            "regressions": [move["id"] for move in diff["moves"] if move["kind"] == "regression"][:MOST]
            if diff
            else None,
        }
    return facts


def of_times(parts: Sequence[Part], folder: Path) -> dict[str, Any]:
    """Return the JSON document that the benchmark wrote, with the machine and the times."""
    written = sorted(folder.glob("hot_path*.json"))
    return (_read(written[0]) or {}) if written else {"without_result": [part.name for part in parts]}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
