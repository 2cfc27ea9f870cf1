"""Repro: a finding as a script that needs torch and nothing else, with the very bits of its case."""

from __future__ import annotations

import base64
import math
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs, bits
from crossent.checks import CHECKS, single
from crossent.machine import ambient, require_device
from crossent.report.findings import Finding, Numbers, SubjectReport
from crossent.repro import snippets, steps
from crossent.repro.equations import Shapes
from crossent.repro.recipes import RECIPES, REFUSALS, Focus, Recipe
from crossent.run.fresh_process import SECONDS
from crossent.run.judge import as_finding
from crossent.run.parallel import judge_each
from crossent.subjects.builtin import BY_NAME, FORMS
from crossent.subjects.subject import Subject
from crossent.trials.act import Here
from crossent.trials.check import Check
from crossent.trials.difference import Difference
from crossent.trials.trial import NotRunError, Question, RefusedError, Trial
from crossent.words import printable

SCRIPT = '''\
"""{story}
"""

{imports}

import torch

torch.set_num_threads(1)  # as when it was found
device = {device}


{functions}


{values}

{steps}
'''
ENDS = ("crashed", "hung")  # of what may be done in any check: the process that did it
# Somebody's, of which no more is known than its name.
ANOTHER = Subject("another", torch.nn.functional.cross_entropy)


def repeated(id: str, device: str = "cpu") -> Finding:
    """The finding with this id, as it happens here and now: its check runs, after those that must hold before it.

    Raises:
        ValueError: no such subject or case, or it does not happen.
        RuntimeError: no such device.
    """
    subject, check, case = _parts(id)
    if subject not in BY_NAME:
        raise ValueError(f"finding: got subject {subject!r}; without its report, allowed are {', '.join(BY_NAME)}")
    made = _case(case)
    require_device(device)
    entry, host = SubjectReport(subject), Here(BY_NAME[subject].loss)
    with ambient():
        for verdict in judge_each(made, _checks(check, made), [BY_NAME[subject]], [host], device):
            entry.enter(verdict)
    found = next((finding for finding in entry.findings if finding.check == check), None)
    if found is None:
        here = f"torch {torch.__version__} on {device}"
        reasons = [*entry.not_applicable, *entry.not_run.get(check, ())]
        why = f", where {subject} {reasons[0]}" if reasons else ""
        raise ValueError(f"finding: {id} does not happen with {here}{why}; a report that has it can be given")
    return found


def nearest_to_bound(id: str, device: str = "cpu") -> Finding:
    """What holds here, as if it were a finding: the number that is nearest to its bound, or how a bad call is refused.

    Raises:
        ValueError: no such subject or case, the check does not run on it, or it measures no number.
        RuntimeError: no such device.
    """
    subject, name, case = _parts(id)
    if subject not in BY_NAME:
        raise ValueError(f"finding: got subject {subject!r}; with --held, allowed are {', '.join(BY_NAME)}")
    made = _case(case)
    require_device(device)
    if isinstance(made, BadInput):
        return Finding(subject, "errors", case, "wrong", "It is shown how it is refused.")
    if name not in CHECKS:
        raise ValueError(f"finding: got check {name!r}; allowed are {', '.join(CHECKS)}")
    named = BY_NAME[subject]
    check, trial = CHECKS[name], Trial(Question(made, device), named, Here(named.loss))
    found: list[Difference] = []
    with ambient(), suppress(RefusedError, NotRunError):
        found = [one for one in check.run(trial) if isinstance(one, Difference)]
    if not found:
        raise ValueError(f"finding: {id} does not run here, or has no number to be shown")
    finding = as_finding(trial, check, max(found, key=lambda one: one.ratio))
    return replace(finding, message=f"The number that is nearest to its bound:\n{finding.message}")


def _checks(name: str, case: Case | BadInput) -> tuple[Check, ...]:
    """The check of this name, after those that must hold before any other; of tiles, it alone."""
    before = () if isinstance(case, Case) and case.tiled > 1 else (single.call, single.result)
    return tuple(dict.fromkeys((*before, *([CHECKS[name]] if name in CHECKS else []))))


def script(finding: Finding, device: str = "cpu", digest: str | None = None, *, held: bool = False) -> str:
    """A script that repeats a finding and exits with 1 where it happens, 0 where not, 2 where that cannot be asked.

    Args:
        finding: what a run found.
        device: where it was found.
        digest: of the inputs that it was found on, to be sure that these are the same.
        held: whether the number is no finding, and not wrong where it comes again.

    Raises:
        ValueError: its case cannot be built, or not with the same bits; or it is of no kind that is known.
        RuntimeError: no such device.
    """
    case = _case(finding.case)
    recipe = _recipe(finding, case, device)
    inputs = case.build()
    if digest is not None and inputs.digest != digest:
        raise ValueError(f"finding: {finding.case} has other bits here: inputs {inputs.digest}, in the report {digest}")
    functions, done = [snippets.TENSOR, snippets.VERDICT, *recipe.functions], [*recipe.steps]
    last = [_subject(finding.subject)]
    values: dict[str, Any]
    if isinstance(case, BadInput):
        values = {"raises": case.allowed(device)}
    else:
        subject = BY_NAME.get(finding.subject, ANOTHER)
        asked = _asked(finding, recipe, Focus(case, inputs, subject))
        values = {"own_dtype": subject.dtype, **recipe.values(asked)}
        if asked.of:
            values["part"] = asked.part
        if asked.index is not None and finding.numbers is not None:
            values |= _numbers(finding.numbers, CHECKS[finding.check].versus) | ({"found": None} if held else {})
            functions.append(snippets.JUDGED)
            done.append(recipe.number)
        elif asked.of:
            done.append(recipe.whole)
        if not subject.differentiable:
            functions = [snippets.LOSS_ALONE if one == snippets.EVALUATE else one for one in functions]
    if finding.kind in ENDS or (isinstance(case, BadInput) and case.asserts(device)):
        last.append(f"seconds = {SECONDS:g}\n{steps.ISOLATED.lstrip()}")
        done.insert(0, steps.STARTED)
    if not done[-1].rstrip().rpartition("\n")[2].startswith("verdict("):
        done.append('verdict(False, "as it should be")')
    code = "\n".join([*functions, *last, *done])
    modules = ["base64", *(name for name in ("math", "subprocess", "sys", "threading") if f"{name}." in code), "zlib"]
    title = printable(f"{finding.subject}: {finding.check} {finding.kind} on {finding.case}")
    text = SCRIPT.format(
        story=_inert("\n".join([title, "", *str(finding).splitlines()[1:-1]])),
        imports="\n".join(f"import {module}" for module in modules),
        device=ascii(device),
        functions="\n\n\n".join(one.strip() for one in [*functions, *last]),
        values="\n".join(_values(inputs, values, code)),
        steps="\n".join(one.strip() for one in done),
    )
    assert text.isascii()  # it may be piped to Python through a terminal that knows no Unicode
    return text


def _recipe(finding: Finding, case: Case | BadInput, device: str) -> Recipe:
    """How such a finding is repeated."""
    recipes = REFUSALS if isinstance(case, BadInput) else RECIPES
    recipe = recipes.get(finding.check)
    if recipe is None:
        raise ValueError(f"finding: got check {finding.check!r} of {finding.case}; allowed are {', '.join(recipes)}")
    if finding.kind not in (*recipe.kinds, *ENDS):
        allowed = ", ".join(dict.fromkeys((*recipe.kinds, *ENDS)))
        raise ValueError(f"finding: got kind {finding.kind!r} of {finding.check}; allowed are {allowed}")
    there = torch.device(device).type
    if isinstance(case, Case):
        check, subject = CHECKS[finding.check], BY_NAME.get(finding.subject, ANOTHER)
        if (
            not check.applies(case)
            or check.not_run(subject, case.build())
            or (check.name == "stream" and there != "cuda")
        ):
            raise ValueError(f"finding: {finding.subject} has no {finding.check} on {finding.case} and {device}")
    return recipe


def _asked(finding: Finding, recipe: Recipe, asked: Focus) -> Focus:
    """With the result that the finding is about, and with the index of the number in it, where there is one."""
    n = finding.numbers
    shapes: Shapes = {"": ()}
    if finding.kind != "wrong":
        n = None
    elif n is not None:
        shapes = recipe.numbers(asked)
    elif finding.of or recipe.numbered:
        shapes = recipe.wholes(asked)
    shape = shapes.get(finding.of)
    if shape is None:
        known = ", ".join(map(repr, shapes)) or "none without numbers"
        raise ValueError(f"finding: it is of {finding.of!r}; allowed are {known}")
    if n is None:
        return replace(asked, of=finding.of)
    if len(n.index) != len(shape) or not all(map(int.__lt__, n.index, shape)):
        raise ValueError(f"finding: got index {n.index}; allowed is one within {shape}")
    return replace(asked, of=finding.of, index=n.index)


def _numbers(n: Numbers, versus: str) -> dict[str, Any]:
    """A finding's numbers as the script has them."""
    if versus == "exact":
        return {"index": n.index, "found": n.got, "exact": n.exact, "allowed": n.bound, "versus": versus}
    # The other result is another one there: what was found is not wrong by itself. And where it was infinite or NaN,
    # no more was allowed than it had for itself: what happens is that one of the two is, and the other not.
    allowed = n.bound if math.isfinite(n.exact) else sys.float_info.max
    return {"index": n.index, "found": None, "allowed": allowed, "versus": versus}


def _values(inputs: Inputs, values: Mapping[str, Any], code: str) -> Iterator[str]:
    """What the script is about, a line each: the case, and what else its code names."""
    tensors = {"logits": inputs.logits, "target": inputs.target, "upstream": inputs.upstream}
    tensors |= {name: value for name, value in inputs.options.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        yield f"{name} = {_tensor(tensor)}"
    options = [f"{name}={name if name in tensors else _literal(value)}" for name, value in inputs.options.items()]
    yield f"options = dict({', '.join(options)})"
    yield "given = logits, target, options, upstream"
    for name, value in values.items():
        if re.search(rf"\b{name}\b", code):
            yield f"{name} = {_literal(value, inputs)}"


def _inert(text: str) -> str:
    """A text as the inside of a docstring, in ASCII: nothing in it ends that."""
    lines = "\n".join(map(printable, text.replace("±", "+-").split("\n")))
    escaped = lines.replace("\\", "\\\\").replace('"', '\\"')
    return escaped.encode("ascii", "backslashreplace").decode()


def _parts(id: str) -> tuple[str, str, str]:
    # A subject may have colons in its name, as in file.py:attr; checks and cases have none.
    try:
        subject, check, case = id.rsplit(":", 2)
    except ValueError:
        raise ValueError(f"finding: got {id!r}; allowed is SUBJECT:CHECK:CASE, as a report has it") from None
    return subject, check, case


def _case(id: str) -> Case | BadInput:
    return next((bad_input for bad_input in BAD_INPUTS if bad_input.id == id), None) or Case.of(id)


def _subject(name: str) -> str:
    if name in snippets.SUBJECTS:
        return snippets.SUBJECTS[name]
    if name in FORMS:
        return f"from crossent import {name} as subject  # all but torch that this needs"
    missing = ascii(f"import {printable(name)} here as subject, and take these two lines out")
    return f"print({missing})\nraise SystemExit(2)"


def _tensor(tensor: Tensor) -> str:
    """Its memory, with the view that it is of it."""
    storage = tensor.detach().untyped_storage()
    flat = torch.empty(0, dtype=tensor.dtype).set_(storage)
    packed = base64.b85encode(zlib.compress(bits(flat).tobytes(), 9)).decode()
    view = f"{tuple(tensor.shape)}, {tensor.stride()}, {tensor.storage_offset()}"
    return f"tensor({packed!r}, {tensor.dtype}, {view})"


def _literal(value: Any, given: Inputs | None = None) -> str:
    """A value as Python writes it; arguments as a tuple, those of the case by their name."""
    if value is given is not None:
        return "given"
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Inputs):
        return _literal((value.logits, value.target, value.options, value.upstream))
    if isinstance(value, dict):
        return f"dict({', '.join(f'{name}={_literal(one)}' for name, one in value.items())})"
    if isinstance(value, tuple | list):
        items = ", ".join(_literal(one, given) for one in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, type):
        return value.__name__
    special = isinstance(value, float) and not math.isfinite(value)
    return f"float('{value}')" if special else repr(value)
