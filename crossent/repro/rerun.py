"""Return the script of a finding. The finding comes from a report, from the last runs or from a new run of its case."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.ids import case_of
from crossent.checks import CHECKS, single
from crossent.machine import ambient, can_fork, require_device
from crossent.report.findings import Finding, SubjectReport
from crossent.report.last_findings import find_file
from crossent.report.reader import find, read_json
from crossent.repro.equations import part_shapes
from crossent.repro.recipes import REFUSALS
from crossent.repro.script import require_runs, script
from crossent.repro.subject_code import ANOTHER, subject_of
from crossent.run.judge import as_finding
from crossent.run.parallel import judge_each
from crossent.run.runner import check as run_check
from crossent.subjects.builtin import BY_NAME
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.subjects.features import FEATURES
from crossent.subjects.loader import load
from crossent.subjects.ranks.subject import RANK_SUBJECTS
from crossent.subjects.remote import load_remote
from crossent.subjects.subject import Subject
from crossent.trials.act import Here
from crossent.trials.check import Check
from crossent.trials.difference import Difference
from crossent.trials.trial import NotRunError, Question, RefusedError, Trial
from crossent.words import cut, one_line, quoted, shell_word

SECONDS_TO_LOAD = 300.0  # the time limit for loading the user's function: the default of `crossent check --timeout`


def script_of(
    id: str,
    report: str | None = None,
    *,
    device: str | None = None,
    passed: bool = False,
    source: str = "",
    **promises: Any,
) -> str:
    """Return the script that repeats a finding.

    Without `report`, the finding comes from the last runs with this version of torch. If these runs do not have the
    finding, or with `device` or `passed`, the case runs again.

    Args:
        id: the id of the finding, SUBJECT:CHECK:CASE.
        report: the file of a report that has the finding.
        device: the device of a new run; by default the CPU.
        passed: whether to show a check that passes. The script then judges the number nearest to its error bound.
        source: the user's function, such as "kernels/mine.py:loss"; "" for a form or torch.
        promises: the options `without`, `contract` and `grade` of `crossent check`, for a new run.

    Raises:
        ValueError: there is no such finding, the report is damaged, or `source` cannot be loaded.
        OSError: the report cannot be read.
        RuntimeError: this machine does not have the device.
    """
    if report is None and device is None and not passed:
        report = find_file(id, str(torch.__version__))
    if report is None:
        if _parts(id)[0] in RANK_SUBJECTS and not source:
            raise ValueError(_no_script(id, "2"))
        loaded = _load(source, id) if source else None
        here = device or "cpu"
        found = nearest_to_bound(id, here) if passed else repeated(id, here, source, **promises)
        without = () if passed else promises.get("without") or ()
        lacks = (without,) if isinstance(without, str) else without
        return script(found, here, passed=passed, lacks=lacks, loaded=loaded)
    try:
        document = read_json(report)
    except ValueError as error:
        raise ValueError(f"REPORT: {error}") from None
    found, digest = find(document, id)
    if ranks := document["environment"].get("ranks"):
        raise ValueError(_no_script(id, str(ranks), source))
    loaded = _load(source, id) if source else None
    device = document["environment"]["device"]
    lacks = declared_differences(document, found) | _missing_features(document, found)
    return script(found, device, digest, lacks=lacks, loaded=loaded)


def _no_script(id: str, ranks: str, source: str = "") -> str:
    """Return the error message for a finding that needs several ranks, with a command to run instead."""
    subject, check, case = _parts(id)
    given = source or (subject if subject in RANK_SUBJECTS else "SUBJECT")
    words = ("crossent", "check", given, "--ranks", ranks, "--check", check, "--case", case)
    command = one_line(" ".join(map(shell_word, words)))
    return f"finding: {cut(id)} needs several ranks, but a script has one process; run `{command}` instead"


def _load(source: str, id: str) -> Subject:
    """Return the user's function as a subject, loaded in a separate process if this system can fork."""
    if source.removesuffix(COMPILE_SUFFIX) in BY_NAME:
        raise ValueError(f"subject: got {quoted(source)}; for a form or torch, leave out --subject")
    operation = case_of(_parts(id)[2]).operation
    remote = can_fork()
    found = load_remote(source, SECONDS_TO_LOAD, operation=operation) if remote else load(source, operation=operation)
    return found[0]


def repeated(id: str, device: str = "cpu", source: str = "", **promises: Any) -> Finding:
    """Run the check of a finding again on its case, and return the new finding.

    `id` is SUBJECT:CHECK:CASE. `source` is the user's function, such as "kernels/mine.py:loss", or "" for a form or
    torch. `promises` are the options `without`, `contract` and `grade` of `crossent check`.

    Raises:
        ValueError: there is no such subject, check or case, or the finding does not happen on this machine.
        RuntimeError: this machine does not have the device.
    """
    subject, check, case = _parts(id)
    named = ANOTHER if source else _own_subject(subject, device, "give a REPORT or --subject, or choose from")
    made = case_of(case) if source else _case_for(named, case)
    if check not in (known := dict.fromkeys((*CHECKS, *REFUSALS))):
        raise ValueError(f"finding: got check {quoted(check)}; allowed are {', '.join(known)}")
    entry = None
    if source or any(promises.values()):
        given = {name: value for name, value in promises.items() if value}
        given |= {"operation": made.operation.name, "jobs": 1 if source else None}
        run = run_check(source or subject, device=device, cases={case: [check]}, **given)
        entry = next((part for part in run.subjects if source or part.name == subject), None)
    if entry is None:  # no promises; or "fused" on a device without its kernel, where a run has "fused_as_blocked"
        require_device(device)
        entry, host = SubjectReport(subject), Here(named.loss)
        with ambient():
            for verdict in judge_each(made, _checks(check, made), [named], [host], device):
                entry.enter(verdict)
    found = next((finding for finding in entry.findings if finding.check == check), None)
    if found is None:
        here = f"torch {torch.__version__} on {device}"
        reasons = [*entry.not_applicable, *entry.not_run.get(check, ())]
        why = f", where {cut(subject)} {reasons[0]}" if reasons else ""
        raise ValueError(f"finding: {cut(id)} does not happen with {here}{why}; give a REPORT that has the finding")
    return found


def nearest_to_bound(id: str, device: str = "cpu") -> Finding:
    """Run a check on a case, and return a `Finding` about the number nearest to its error bound.

    `id` is SUBJECT:CHECK:CASE. The check may pass. For a bad input, the `Finding` has no number.

    Raises:
        ValueError: there is no such subject, check or case, or the check compares no number.
        RuntimeError: this machine does not have the device.
    """
    subject, name, case = _parts(id)
    named = _own_subject(subject, device, "with --passed, choose from")
    made = _case_for(named, case)
    require_device(device)
    if isinstance(made, BadInput):
        if name != "errors":
            raise ValueError(f"finding: got check {quoted(name)}; with --passed, a bad input needs the check 'errors'")
        return Finding(subject, "errors", case, "wrong", "The script shows the error that the bad call raises.")
    if name not in CHECKS:
        raise ValueError(f"finding: got check {quoted(name)}; allowed are {', '.join(CHECKS)}")
    check, trial = CHECKS[name], Trial(Question(made, device), named, Here(named.loss))
    require_runs(check, named, made, device)
    found: list[Difference] = []
    with ambient(), suppress(RefusedError, NotRunError):
        found = [one for one in check.run(trial) if isinstance(one, Difference) and one.elements]
    if not found:
        why = "the check does not run, the subject raises, or no number is compared"
        compared = f"got {cut(id)}, which compares no number with an error bound on {device}"
        raise ValueError(f"finding: {compared}: {why}; choose another check or case")
    finding = as_finding(trial, check, max(found, key=lambda one: one.ratio))
    return replace(finding, message=f"The number nearest to its error bound:\n{finding.message}")


def _checks(name: str, case: Case | BadInput) -> tuple[Check, ...]:
    """Return the checks to run: `call` and `result`, which most checks need, and the check `name`.

    On a case with a repeated batch, only the check `name` runs.
    """
    before = () if isinstance(case, Case) and case.tiled > 1 else (single.call, single.result)
    return tuple(dict.fromkeys((*before, *([CHECKS[name]] if name in CHECKS else []))))


def declared_differences(document: dict[str, Any], finding: Finding) -> set[str]:
    """Return the missing features for which a report lists a declared difference of the subject of `finding`."""
    # A report is checked only up to the finding; later parts may be damaged.
    parts = [part for part in document["subjects"] if isinstance(part, dict) and part.get("name") == finding.subject]
    declared = [part["declared"] for part in parts if isinstance(part.get("declared"), list)]
    return {name for name, one in FEATURES.items() if one.instead and any(one.instead in each for each in declared)}


def _missing_features(document: dict[str, Any], finding: Finding) -> set[str]:
    """Return the features that the subject of a finding lacks in the run of a report.

    For a form or torch, return an empty set.
    """
    if finding.subject.removesuffix(COMPILE_SUFFIX) in BY_NAME:
        return set()  # the script itself knows what a form or torch lacks
    names, declared = ("gradient", "target_gradient"), document.get("without", [])
    missing = {name for name in FEATURES if isinstance(declared, list) and name in declared}
    made = case_of(finding.case)
    part = next(part for part in document["subjects"] if part["name"] == finding.subject)
    results = part["cases"][finding.case].get("results")
    if isinstance(made, Case) and isinstance(results, dict) and isinstance(loss := results.get("loss"), dict):
        expected = part_shapes(made.build())
        if loss.get("shape") == list(expected["loss"]):  # a call computes no gradient of a loss of another shape
            missing |= {name for name in names if name in expected and name not in results}
    return missing


def _own_subject(name: str, device: str, advice: str) -> Subject:
    """Return the form or the subject of torch with this name, which may end in "+compile".

    `advice` is part of the message for an unknown name.
    """
    base = name.removesuffix(COMPILE_SUFFIX)
    if base not in BY_NAME or (base != name and BY_NAME[base].not_transformed):
        except_for = ", ".join(name for name, one in BY_NAME.items() if one.not_transformed)
        allowed = f"{', '.join(BY_NAME)}; {COMPILE_SUFFIX} may follow each name except {except_for}"
        raise ValueError(f"finding: got subject {quoted(name)}; {advice} {allowed}")
    return subject_of(name, device)


def _case_for(subject: Subject, id: str) -> Case | BadInput:
    """Return the case or bad input with this id, which must have the operation of `subject`."""
    made = case_of(id)
    if made.operation is not subject.operation:
        raise ValueError(
            f"finding: got {cut(id)}, a case of {made.operation.name}, but {subject.name} computes "
            f"{subject.operation.name}; choose another case"
        )
    return made


def _parts(id: str) -> tuple[str, str, str]:
    # A subject may have colons in its name, as in file.py:attr; checks and cases have none.
    try:
        subject, check, case = id.rsplit(":", 2)
    except ValueError:
        raise ValueError(f"finding: got {quoted(id)}; allowed is SUBJECT:CHECK:CASE, as in a report") from None
    return subject, check, case
