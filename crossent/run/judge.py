"""The judge: one case, each subject, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs, bits
from crossent.checks.refusals import judge_reaction
from crossent.checks.single import CALL, RESULT, SINGLE
from crossent.numerics.bounds.contracts import Grade
from crossent.report.findings import Finding, Measured, Numbers, Outcome, ResultSummary, SubjectReport
from crossent.report.report import Report
from crossent.run.fresh_process import answered
from crossent.subjects.builtin import TORCH
from crossent.subjects.subject import Subject
from crossent.trials.act import Host
from crossent.trials.call import checksum, evaluate
from crossent.trials.difference import Difference, reached
from crossent.trials.trial import Check, EndedError, NotRunError, Problem, Question, RefusedError, Trial
from crossent.words import said


def run_case(
    case: Case | BadInput,
    subjects: Sequence[Subject],
    report: Report,
    device: str = "cpu",
    checks: Sequence[Check] = SINGLE,
    hosts: Sequence[Host | None] = (),
) -> None:
    """Judge one case on each subject, which lives at a host of `hosts`, and enter the outcome into the report."""
    if isinstance(case, BadInput):
        inputs = case.build(device)
    else:
        question = Question(case, device)
        inputs = question.inputs
    for subject, entry, host in zip(subjects, report.subjects, hosts or [None] * len(subjects), strict=True):
        reason = subject.not_applicable(inputs) or _not_asked(subject, case, inputs, checks)
        reason = reason or (host.not_run if host else "")
        refused: dict[str, Problem | None] = {}
        raised = ""
        if isinstance(case, BadInput) and not reason:
            try:
                answer = answered(case, subject, device, host=host)
                refused = judge_reaction(answer, case.allowed(device))
                raised = answer.message if answer.raised else ""
            except NotRunError as missing:
                reason = str(missing)
        if reason:
            entry.not_applicable[reason] += 1
            continue
        outcome = entry.outcomes[case.id] = Outcome(case.dtype, inputs.digest, raised=raised)
        if not isinstance(case, BadInput):
            entry.findings += _judgement(Trial(question, subject, host), checks, outcome)
        for check, problem in refused.items():
            outcome.checks[check] = Measured(failed=problem is not None)
            if problem:
                call = describe(inputs)
                entry.findings.append(Finding(subject.name, check, case.id, problem.kind, problem.message, call))


def _not_asked(subject: Subject, case: Case | BadInput, inputs: Inputs, checks: Sequence[Check]) -> str:
    """Why nothing at all is asked of a subject on a case, or ""."""
    names = ["errors"] if isinstance(case, BadInput) else [check.name for check in checks if check.applies(case)]
    reasons = [subject.not_run(name, inputs) for name in names]
    return reasons[0] if reasons and all(reasons) else ""


def end_case(case: Case | BadInput, entry: SubjectReport, kind: str, message: str) -> None:
    """Enter that a subject came to no result on a case, since it ended its process or kept it."""
    inputs = case.build()
    check = "errors" if isinstance(case, BadInput) else CALL.name
    entry.outcomes[case.id] = Outcome(case.dtype, inputs.digest, checks={check: Measured(failed=True)})
    entry.findings.append(Finding(entry.name, check, case.id, kind, message, describe(inputs)))


def _judgement(trial: Trial, checks: Sequence[Check], outcome: Outcome) -> Iterator[Finding]:
    """What is wrong with a subject on a case."""
    for at, check in enumerate(checks):
        if not check.applies(trial.case):
            continue
        if reason := trial.subject.not_run(check.name, trial.question.inputs) or check.not_run(trial.subject):
            outcome.not_run[check.name] = reason
            continue
        found: list[Difference | Problem]
        try:
            found = list(check.run(trial))
        except NotRunError as missing:
            outcome.not_run[check.name] = str(missing)
            continue
        except RefusedError as refusal:
            found = [Problem("refused", str(refusal))]
        except EndedError as end:
            found = [Problem(end.kind, str(end))]
        except (AttributeError, TypeError, ValueError) as error:
            if trial.host is None:
                raise
            found = [Problem("crashed", f"its process gives back what is no answer: {said(error)}")]
        problems = [one for one in found if isinstance(one, Problem) or not one.ratio <= 1]  # NaN is no evidence
        outcome.checks[check.name] = _measured(found, bool(problems))
        for problem in problems[:1]:  # one finding of a check on a case: what its worst is
            yield as_finding(trial, check, problem)
        if problems and check in (CALL, RESULT):
            for other in checks[at + 1 :]:
                if other.applies(trial.case):
                    outcome.not_run[other.name] = f"waits for a right {check.name}"
            return
        if check is CALL:
            outcome.digest, outcome.results = (
                trial.got.digest,
                {name: _summary(part) for name, part in trial.got.parts.items()},
            )
        if check is RESULT:
            outcome.grade = _grade(trial)


def _measured(found: Sequence[Difference | Problem], failed: bool) -> Measured:
    differences = [one for one in found if isinstance(one, Difference)]
    if not differences:
        return Measured(failed)
    worst = max(differences, key=lambda difference: difference.ratio)
    return Measured(
        failed,
        worst.ulp,
        worst.ratio,
        all(difference.vacuous for difference in differences),
        sum((Counter(difference.not_judged) for difference in differences), Counter()),
        sum(difference.elements for difference in differences),
    )


def _grade(trial: Trial) -> Grade:
    held = all(difference.ratio <= 1 for difference in trial.differences.values())
    if held and trial.wanted == "A":
        return "A"
    return reached(trial.got, trial.question.exact, trial.subject.promise, trial.subject.dtype_name)


def as_finding(trial: Trial, check: Check, problem: Difference | Problem) -> Finding:
    """What a check says is wrong, with the call and what torch itself gives there."""
    inputs = trial.question.inputs

    def finding(kind: str, message: str, numbers: Numbers | None = None, of_torch: str = "") -> Finding:
        call = describe(inputs)
        of = problem.of
        return Finding(trial.subject.name, check.name, trial.case.id, kind, message, call, numbers, of_torch, of=of)

    if isinstance(problem, Problem):
        return finding(problem.kind, problem.message)
    if problem.of != check.name:
        return finding("wrong", f"{problem.of}:\n{problem}", _numbers(problem, check.versus))
    own_value = "" if trial.subject is TORCH else _of_torch(trial.case, problem, inputs)
    return finding("wrong", str(problem), _numbers(problem), own_value)


def _numbers(d: Difference, versus: str = "exact") -> Numbers:
    return Numbers(d.index, d.got, _bits(d.got, d.dtype), d.exact, d.radius, d.bound, d.ulp, d.ratio, versus)


def _bits(value: float, dtype: str) -> str:
    tensor = torch.tensor(value, dtype=DTYPES[dtype])
    return f"0x{int(bits(tensor)):0{2 * tensor.element_size()}x}"


def _of_torch(case: Case, difference: Difference, inputs: Inputs) -> str:
    """What torch itself gives at the worst element of somebody else's result."""
    try:
        result = evaluate(TORCH.loss, case.build(str(inputs.logits.device)))
    except Exception as error:
        return f"refuses it: {said(error)}"
    tensor: Tensor = getattr(result, difference.of)
    value = tensor[difference.index].item()
    off = abs(value - difference.exact) if value != difference.exact else 0.0
    name = str(tensor.dtype).removeprefix("torch.")
    share = f", {off / difference.bound:.3g} of what is allowed" if difference.bound else ""
    return f"{value!r}  ({_bits(value, name)}), off by {off:.3g}{share}"


def describe(inputs: Inputs) -> str:
    """The arguments of a call in words."""

    def of(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

    options = [f"{k}={of(v) if isinstance(v, Tensor) else repr(v)}" for k, v in inputs.options.items()]
    return ", ".join([f"logits {of(inputs.logits)}", f"target {of(inputs.target)}", *options])


def _summary(tensor: Tensor) -> ResultSummary:
    where = {"nan": tensor.isnan(), "inf": tensor.isposinf(), "-inf": tensor.isneginf()}
    special = {name: count for name, at in where.items() if (count := int(at.sum()))}
    value = float(tensor.item()) if tensor.numel() == 1 else None
    dtype = str(tensor.dtype).removeprefix("torch.")
    return ResultSummary(f"{checksum(tensor):08x}", dtype, tuple(tensor.shape), value, special)
