"""Repro: a finding as a script that needs torch and nothing else, with the very bits of its case."""

from __future__ import annotations

import base64
import textwrap
import zlib
from typing import Any

import torch
from torch import Tensor

from crossent import runner
from crossent.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases import Case, bits
from crossent.report import Finding, Report, SubjectReport
from crossent.subjects import BY_NAME, FORMS

SCRIPT = '''\
"""{title}

{story}
"""

import base64
import zlib

import torch


def tensor(bits, dtype, sizes, strides, offset):
    raw = bytearray(zlib.decompress(base64.b85decode(bits)))
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.to({device!r}).as_strided(sizes, strides, offset)


{subject}


{tensors}
options = dict({options})

{body}
'''

SUBJECTS = {
    "torch": """
        def subject(input, target, **options):
            return torch.nn.CrossEntropyLoss(**options)(input, target)
    """,
    "torch_nll": """
        def subject(input, target, weight=None, label_smoothing=0.0, **options):
            axis = min(1, input.dim() - 1)
            log_probs = torch.log_softmax(input.movedim(axis, -1), -1).movedim(-1, axis)
            return torch.nn.functional.nll_loss(log_probs, target, weight, **options)
    """,
}

RUN = {
    "loss": "result = subject(logits, target, **options)",
    "gradient": (
        "logits.requires_grad_()\n(result,) = torch.autograd.grad(subject(logits, target, **options), logits, upstream)"
    ),
    "target_gradient": (
        "target.requires_grad_()\n(result,) = torch.autograd.grad(subject(logits, target, **options), target, upstream)"
    ),
}

JUDGE = """
    got, exact, allowed = result[{index}].item(), float({exact!r}), {bound!r}
    same = got == exact or (got != got and exact != exact)
    off = 0.0 if same else abs(got - exact)
    print(f"torch {{torch.__version__}}: got {{got!r}}, exact {{exact!r}}, off by {{off:.6g}}, allowed {{allowed:.6g}}")
    wrong = not same and not off <= allowed
    print("wrong" if wrong else "right")
    raise SystemExit(wrong)
"""

# What to do where the finding is not about a number, by its kind.
CALLS = {
    "accepted": """
        result = subject(logits, target, **options)
        raise SystemExit(f"torch {torch.__version__}: accepted, and gave {result}")
    """,
    "refused": """
        logits.requires_grad_()
        result = subject(logits, target, **options)
        print(f"torch {torch.__version__}: {torch.autograd.grad(result, logits, upstream)}")
    """,
    "changed_input": """
        given = [logits, target, options.get("weight", target)]
        before = [tensor.clone() for tensor in given]
        subject(logits.requires_grad_(), target, **options)
        changed = [not old.equal(new.detach()) for old, new in zip(before, given)]
        print(f"torch {torch.__version__}: changed are logits, target, weight: {changed}")
        raise SystemExit(any(changed))
    """,
    "wrong": """
        result = subject(logits, target, **options)
        print(f"torch {torch.__version__}: {result.dtype} {tuple(result.shape)}")
    """,
}


def repeated(id: str, device: str = "cpu") -> Finding:
    """The finding with this id, as it happens here and now.

    Raises:
        ValueError: no such subject or case, or it does not happen.
    """
    subject, check, case = _parts(id)
    if subject not in BY_NAME:
        raise ValueError(f"finding: got subject {subject!r}; without its report, allowed are {', '.join(BY_NAME)}")
    report = Report({}, [SubjectReport(subject)])
    with runner.ambient():
        runner.run_case(_case(case), [BY_NAME[subject]], report, device)
    found = next((finding for finding in report.subjects[0].findings if finding.check == check), None)
    if found is None:
        here = f"torch {torch.__version__} on {device}"
        raise ValueError(f"finding: {id} does not happen with {here}; a report that has it can be given")
    return found


def script(finding: Finding, device: str = "cpu", digest: str | None = None) -> str:
    """A script that repeats a finding.

    Args:
        finding: what a run found.
        device: where it was found.
        digest: of the inputs that it was found on, to be sure that these are the same.

    Raises:
        ValueError: its case cannot be built, or not with the same bits; or it is of no kind that is known.
    """
    if finding.kind not in CALLS:
        raise ValueError(f"finding: got kind {finding.kind!r}; allowed are {', '.join(CALLS)}")
    inputs = _case(finding.case).build()
    if digest is not None and inputs.digest != digest:
        raise ValueError(f"finding: {finding.case} has other bits here: inputs {inputs.digest}, in the report {digest}")
    given: dict[str, Tensor] = {"logits": inputs.logits, "target": inputs.target, "upstream": inputs.upstream}
    given |= {name: value for name, value in inputs.options.items() if isinstance(value, Tensor)}
    options = [f"{k}={k if isinstance(v, Tensor) else _literal(v)}" for k, v in inputs.options.items()]
    if finding.numbers and finding.check in RUN:
        index = ", ".join(map(str, finding.numbers.index)) or "()"
        judge = JUDGE.format(index=index, exact=str(finding.numbers.exact), bound=finding.numbers.bound)
        body = RUN[finding.check] + "\n" + textwrap.dedent(judge).strip()
    else:
        body = textwrap.dedent(CALLS[finding.kind]).strip()
    return SCRIPT.format(
        title=f"{finding.subject}: {finding.check} {finding.kind} on {finding.case}",
        story="\n".join(str(finding).splitlines()[1:-1]).replace("\\", "\\\\"),
        device=device,
        subject=_subject(finding.subject),
        tensors="\n".join(f"{name} = {_tensor(value)}" for name, value in given.items()),
        options=", ".join(options),
        body=body,
    )


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
    if name in SUBJECTS:
        return textwrap.dedent(SUBJECTS[name]).strip()
    if name in FORMS and FORMS[name].differentiable:
        return f"from crossent import {name} as subject  # all but torch that this needs"
    return f"raise SystemExit('import {name} here as subject, and take this line out')"


def _tensor(tensor: Tensor) -> str:
    """Its memory, with the view that it is of it."""
    storage = tensor.detach().untyped_storage()
    flat = torch.empty(0, dtype=tensor.dtype).set_(storage)
    packed = base64.b85encode(zlib.compress(bits(flat).tobytes(), 9)).decode()
    view = f"{tuple(tensor.shape)}, {tensor.stride()}, {tensor.storage_offset()}"
    return f"tensor({packed!r}, {tensor.dtype}, {view})"


def _literal(value: Any) -> str:
    return f"float('{value}')" if isinstance(value, float) else repr(value)
