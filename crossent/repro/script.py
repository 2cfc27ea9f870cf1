"""Write the script that repeats a finding, with the inputs of its case bit for bit."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from crossent.cases.axes import HALF_DTYPES
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.ids import case_of
from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY, Operation
from crossent.checks import CHECKS
from crossent.report.findings import DEPENDS, Finding, Numbers
from crossent.repro.composer import Code, ScriptFunction
from crossent.repro.equations import Shapes
from crossent.repro.literals import assignments, docstring
from crossent.repro.recipes import RECIPES, REFUSALS, Focus, Recipe, of_other_numbers
from crossent.repro.scripts import circumstances
from crossent.repro.scripts.functions import (
    call_others,
    cannot_run,
    end_right,
    end_unknown,
    evaluate_linear,
    evaluate_logits,
    evaluate_loss,
    tensor,
    verdict,
    verdict_of_attempt,
)
from crossent.repro.scripts.refusals import isolate
from crossent.repro.scripts.transforms import call_linear_under_vjp
from crossent.repro.subject_code import subject_lines, subject_of
from crossent.run.isolation.fresh_process import SECONDS
from crossent.subjects.subject import Subject
from crossent.trials.check import Check
from crossent.trials.exact import loss_dtype
from crossent.words import cut, printable, quoted

SCRIPT = '''\
"""{story}
"""

{imports}

import torch

torch.set_num_threads(1)  # as in the run that has this finding
device = {device}


{functions}


{values}

{steps}
'''
ATTEMPTS = 20  # the attempts of a script whose finding may depend on earlier calls
_CHUNKS = re.compile(r"\bwith ([A-Za-z_]\w*)=\d+")  # how the check `chunks` names a call, as in "with chunk_size=8"
ENDS = ("crashed", "hung")  # kinds of findings of every check: a call ended its process, or did not return
# For each operation: the functions that replace other functions in a script.
INSTEAD: dict[Operation, dict[str, ScriptFunction]] = {
    CROSS_ENTROPY: {},
    LINEAR_CROSS_ENTROPY: {"evaluate": evaluate_linear, "call_under_vjp": call_linear_under_vjp},
}
# The functions that replace other functions if the subject is declared without the feature "arguments".
CHANGING = dict.fromkeys(("require_untouched", "require_clones_untouched"), circumstances.allow_changes)
# The functions that replace other functions if the subject is declared without the feature "repeatable".
OVERWRITING = {"require_kept": circumstances.allow_overwriting}


def script(
    finding: Finding,
    device: str = "cpu",
    digest: str | None = None,
    *,
    passed: bool = False,
    lacks: Collection[str] = (),
    loaded: Subject | None = None,
) -> str:
    """Return a script that repeats a finding.

    Args:
        finding: the finding of a run.
        device: the device of that run.
        digest: the checksum of the inputs in that run; None for no comparison.
        passed: whether `finding` is about a check that passes. The script then judges the number by its bound alone.
        lacks: features that the user declared missing in that run, such as "gradient".
        loaded: the user's function; None for a form, for torch, or if the source is unknown.

    Raises:
        ValueError: the inputs do not have the checksum `digest`, or the check cannot have this finding on the case.
    """
    case, subject = case_of(finding.case), loaded or subject_of(finding.subject, device)
    if not subject.chunks and (keyword := _CHUNKS.search(f"{finding.of} {finding.message}")):
        subject = replace(subject, chunks=(keyword[1],))
    recipe = _recipe(finding, case, subject, device)
    inputs = case.build()
    if digest is not None and inputs.digest != digest:
        raise ValueError(
            f"finding: the inputs of {cut(finding.case)} have other bits here: digest {inputs.digest}, "
            f"in the report {digest}; use the versions of crossent and numpy that made the report"
        )
    ending, values, needs_calls = None, dict[str, Any](), False
    if isinstance(case, BadInput):
        values = {"raises": case.allowed(device)}
    else:
        lacking = replace(subject, lacks={**dict.fromkeys(lacks, ""), **subject.lacks})
        focus = _focus_on(finding, recipe, Focus(case, inputs, lacking))
        half = "half_result" in lacks and loss_dtype(inputs) in HALF_DTYPES
        values = {"own_dtype": torch.float32 if half else subject.dtype, **recipe.values(focus)}
        if focus.of:
            values["part"], ending = focus.part, recipe.whole
        if focus.index is not None and finding.numbers is not None:
            ending = recipe.number
            values |= _numbers(finding.numbers, CHECKS[finding.check]) | ({"found": None} if passed else {})
        needs_calls = not passed and _needs_earlier_calls(finding)
        if needs_calls:
            values = {**of_other_numbers(case), **values}
    missing, instead = {*lacks, *subject.lacks}, dict(INSTEAD[case.operation])
    if not subject.differentiable or "gradient" in missing:
        instead = {"evaluate": evaluate_loss}
    elif "target_gradient" in missing and case.operation is CROSS_ENTROPY:
        instead["evaluate"] = evaluate_logits
    if "arguments" in missing:
        instead |= CHANGING
    if "repeatable" in missing:
        instead |= OVERWRITING
    if needs_calls:
        instead["verdict"] = verdict_of_attempt
    code = Code(instead)
    code.add(tensor)
    isolated = finding.kind in ENDS or (isinstance(case, BadInput) and case.asserts(device))
    main = _main(code, recipe.step, ending, refusable=isinstance(case, Case) and finding.kind != "refused")
    if needs_calls:
        main = _attempts(code, main, end_unknown if DEPENDS in finding.message else end_right)
    elif ending is None or ending is not recipe.number:
        code.add(verdict)
        main.append('verdict(False, "the finding does not happen")')
    before = [*subject_lines(code, finding.subject, loaded.source if loaded else "", case.operation)]
    if isolated:
        code.add(isolate)
        before.append(f"seconds = {SECONDS:g}\nisolate()")
        main.insert(0, 'print("started", flush=True)')
    title = printable(f"{finding.subject}: {finding.check} {'passed' if passed else finding.kind} on {finding.case}")
    text = SCRIPT.format(
        story=docstring("\n".join([title, "", *str(finding).splitlines()[1:-1]])),
        imports="\n".join(f"import {module}" for module in sorted(code.imports)),
        device=ascii(device),
        functions=_named("\n\n\n".join([*code.functions.values(), *before]), case.operation),
        values="\n".join(assignments(inputs, {name: value for name, value in values.items() if name in code.values})),
        steps=_named("\n".join(main), case.operation),
    )
    assert text.isascii()  # so that a terminal without Unicode can print the script
    return text


def _named(text: str, operation: Operation) -> str:
    """Return the code of a script; for a linear cross-entropy, the word "input" replaces "logits"."""
    return re.sub(rf"\b{CROSS_ENTROPY.word('input')}\b", operation.word("input"), text)


def _main(code: Code, step: ScriptFunction, ending: ScriptFunction | None, *, refusable: bool) -> list[str]:
    """Return the lines that call `step`, and then `ending` with the result. Copy both functions into `code`.

    If `refusable` is true, an exception ends the script with status 2.
    """
    code.add(step)
    lines = [f"{step.__name__}()"]
    if ending is not None:
        code.add(ending)
        (result,) = inspect.signature(ending).parameters
        lines = [f"{result} = {step.__name__}()", f"{ending.__name__}({result})"]
    if refusable:  # otherwise, the exception is the finding: Python exits with status 1
        code.add(cannot_run)
        told = '    cannot_run(f"{type(error).__name__}: {error}")'
        lines = ["try:", *(f"    {line}" for line in lines), "except Exception as error:", told]
    return lines


def _needs_earlier_calls(finding: Finding) -> bool:
    return finding.kind in ("not_repeated", "disturbed") or (finding.kind == "wrong" and DEPENDS in finding.message)


def _attempts(code: Code, lines: Sequence[str], end: ScriptFunction) -> list[str]:
    """Return the lines of a loop of attempts, and a call of `end` after the last attempt.

    Each attempt runs `lines`, then other calls of the subject.
    """
    code.add(call_others)
    code.add(end)
    repeated = [*(f"    {line}" for line in lines), "    call_others(attempt)"]
    return [f"for attempt in range({ATTEMPTS}):", *repeated, f"{end.__name__}()"]


def _recipe(finding: Finding, case: Case | BadInput, subject: Subject, device: str) -> Recipe:
    """Return the recipe for a finding. Raise ValueError if the check cannot have this finding on the case."""
    recipes = REFUSALS if isinstance(case, BadInput) else RECIPES
    recipe = recipes.get(finding.check)
    if recipe is None:
        raise ValueError(
            f"finding: got check {quoted(finding.check)} of {cut(finding.case)}; allowed are {', '.join(recipes)}"
        )
    if finding.kind not in (*recipe.kinds, *ENDS):
        allowed = ", ".join(dict.fromkeys((*recipe.kinds, *ENDS)))
        got = f"got kind {quoted(finding.kind)}; allowed for the check {finding.check}"
        raise ValueError(f"finding: {got} are {allowed}")
    if isinstance(case, Case):
        require_runs(CHECKS[finding.check], subject, case, device)
    return recipe


def require_runs(check: Check, subject: Subject, case: Case, device: str) -> None:
    """Raise ValueError, with the reason, if a check does not run on a subject, a case or a device."""
    where = f"finding: the check {check.name} does not run on"
    if not check.applies(case):
        raise ValueError(f"{where} {cut(case.id)}; choose another case")
    if reason := check.why_not_run(subject, case.build()):
        name = cut(subject.name)
        raise ValueError(f"{where} {name} and {cut(case.id)}, since {name} {reason}; choose another check or case")
    if check.name == "stream" and torch.device(device).type != "cuda":
        raise ValueError(f"{where} {device}; the check needs a CUDA device, as in --device cuda")


def _focus_on(finding: Finding, recipe: Recipe, focus: Focus) -> Focus:
    """Return a copy of `focus` with the part and the index of the number that the finding is about."""
    n = finding.numbers
    shapes: Shapes = {"": ()}
    if finding.kind != "wrong":
        n = None
    elif n is not None:
        shapes = recipe.numbers(focus)
    elif finding.of or recipe.numbered:
        shapes = recipe.wholes(focus)
    shape = shapes.get(finding.of)
    if shape is None:
        numbered = recipe.numbers(focus) if n is None and finding.kind == "wrong" else {}
        raise ValueError(f"finding: {_impossible_result(finding, shapes, numbered)}")
    if n is None:
        return replace(focus, of=finding.of)
    if len(n.index) != len(shape) or not all(map(int.__lt__, n.index, shape)):
        raise ValueError(f"finding: got index {quoted(n.index)}; allowed is an index within the shape {shape}")
    return replace(focus, of=finding.of, index=n.index)


def _impossible_result(finding: Finding, shapes: Shapes, numbered: Shapes) -> str:
    """Return the error message for a finding whose result is not in `shapes`, the allowed results.

    A result in `numbered` is allowed only in a finding with numbers.
    """
    got, check = f"got result {quoted(finding.of)}", f"the check {finding.check}"
    if finding.of in numbered:
        return f"{got} without numbers; {check} reports this result with numbers, so give the numbers"
    if any(shapes):
        return f"{got}; choose from {', '.join(map(repr, shapes))}"
    if numbered:
        return f"{got} without numbers; give numbers, and choose from {', '.join(map(repr, numbered))}"
    if finding.kind == "wrong" and finding.numbers is not None:
        return f"got numbers; {check} has no finding about a number, so leave out the numbers"
    return f"{got}; {check} has no finding of kind {quoted(finding.kind)} about a result, so leave the result empty"


def _numbers(n: Numbers, check: Check) -> dict[str, Any]:
    """Return the index, the numbers and the error bound of a finding as values of a script, by name."""
    if check.versus == "exact":
        return {"index": n.index, "found": n.got, "exact": n.exact, "allowed": n.bound, "versus": "exact"}
    # The other result may differ on this machine, so the same number may be right here. If the other result was
    # infinite or NaN, the finding is not about an error bound. Then any finite error passes.
    allowed = n.bound if math.isfinite(n.exact) else sys.float_info.max
    return {"index": n.index, "found": None, "allowed": allowed, "versus": check.versus}
