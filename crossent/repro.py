"""Repro: a finding as a script that needs torch and nothing else, with the very bits of its case."""

from __future__ import annotations

import base64
import math
import textwrap
import zlib
from typing import Any

import torch
from torch import Tensor

from crossent import judge, runner
from crossent.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases import Case, Inputs, bits
from crossent.findings import Finding, SubjectReport, printable
from crossent.report import Report
from crossent.subjects import BY_NAME, FORMS

SCRIPT = '''\
"""{story}
"""

import base64
import zlib

import torch

torch.set_num_threads(1)  # as when it was found


def tensor(bits, dtype, sizes, strides, offset):
    raw = bytearray(zlib.decompress(base64.b85decode(bits)))
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.to({device}).as_strided(sizes, strides, offset)


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
    "scalar": """
        def subject(*arguments, **options):  # all but torch that this needs
            from crossent import scalar

            given = [tensor.tolist() for tensor in arguments]
            options = {k: v.tolist() if torch.is_tensor(v) else v for k, v in options.items()}
            return torch.tensor(scalar(*given, **options), dtype=torch.float64)
    """,
}

# What is done with the subject, by check and kind; it leaves `wrong`, or raises where that is the finding.
LOSS = """
    wanted = [given.requires_grad_() for given in (logits, target) if given.is_floating_point()]
    loss = subject(logits, target, **options)
"""
GRADIENTS = """
    gradients = ()
    if loss.shape == upstream.shape:
        gradients = torch.autograd.grad(loss, wanted, upstream.to(loss.dtype))
"""
JUDGE = """
    got, exact, allowed = result[{index}].item(), {exact}, {bound}
    same = got == exact or (got != got and exact != exact)
    off = 0.0 if same else abs(got - exact)
    print(f"torch {{torch.__version__}}: got {{got!r}}, exact {{exact!r}}, off by {{off:.6g}}, allowed {{allowed:.6g}}")
    wrong = not same and (got == {got} or not off <= allowed)
"""
ACTIONS = {
    ("loss", "wrong"): (LOSS, "result = loss", JUDGE),
    ("gradient", "wrong"): (LOSS, GRADIENTS, "result = gradients[0]", JUDGE),
    ("target_gradient", "wrong"): (LOSS, GRADIENTS, "result = gradients[1]", JUDGE),
    ("call", "refused"): (
        LOSS,
        "assert torch.is_tensor(loss) and loss.layout == torch.strided, type(loss)",
        GRADIENTS,
        """
        print(f"torch {{torch.__version__}}: loss {{loss}}")
        wrong = False
        """,
    ),
    ("result", "wrong"): (
        LOSS,
        """
        print(f"torch {{torch.__version__}}: got {{loss.dtype}} {{tuple(loss.shape)}}; expected {dtype} {shape}")
        wrong = loss.dtype != {dtype} or tuple(loss.shape) != {shape}
        """,
    ),
    ("arguments", "changed_input"): (
        """
        tensors = dict(logits=logits, target=target, weight=options.get("weight", target))
        before = {{name: tensor.clone() for name, tensor in tensors.items()}}
        """,
        LOSS,
        GRADIENTS,
        """
        wrong = False
        for name, old in before.items():
            new = tensors[name].detach()
            if old.shape != new.shape or not ((old == new) | ((old != old) & (new != new))).all():
                print(f"torch {{torch.__version__}}: it wrote into {{name}}")
                wrong = True
        """,
    ),
}
ERRORS = """
    try:
        loss = subject(logits, target, **options)
        if logits.is_cuda:
            torch.cuda.synchronize()  # an assert is raised where the host waits for the device
    except ({raises}) as error:
        print(f"torch {{torch.__version__}}: refused, as it should: {{error!r}}")
        wrong = False
    except Exception as error:
        print(f"torch {{torch.__version__}}: raised {{error!r}}; allowed is {raises}")
        wrong = True
    else:
        print(f"torch {{torch.__version__}}: accepted, and gave {{loss}}; should have raised {raises}")
        wrong = True
"""
ACTIONS |= {("errors", "accepted"): (ERRORS,), ("errors", "wrong"): (ERRORS,)}
VERDICT = """
    print("wrong" if wrong else "right")
    raise SystemExit(wrong)
"""


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
        judge.run_case(_case(case), [BY_NAME[subject]], report, device)
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
        RuntimeError: no such device.
    """
    if (finding.check, finding.kind) not in ACTIONS:
        known = ", ".join(" ".join(action) for action in ACTIONS)
        raise ValueError(f"finding: got check and kind {finding.check} {finding.kind!r}; allowed are {known}")
    case = _case(finding.case)
    inputs = case.build()
    subject = BY_NAME.get(finding.subject)
    if (
        isinstance(case, BadInput) != (finding.check == "errors")
        or (finding.check == "target_gradient" and not inputs.target.is_floating_point())
        or (finding.check.endswith("gradient") and subject is not None and not subject.differentiable)
    ):
        raise ValueError(f"finding: {finding.subject} has no {finding.check} on {finding.case}")
    if digest is not None and inputs.digest != digest:
        raise ValueError(f"finding: {finding.case} has other bits here: inputs {inputs.digest}, in the report {digest}")
    torch.device(device)
    given: dict[str, Tensor] = {"logits": inputs.logits, "target": inputs.target, "upstream": inputs.upstream}
    given |= {name: value for name, value in inputs.options.items() if isinstance(value, Tensor)}
    options = [f"{k}={k if isinstance(v, Tensor) else _literal(v)}" for k, v in inputs.options.items()]
    title = printable(f"{finding.subject}: {finding.check} {finding.kind} on {finding.case}")
    text = SCRIPT.format(
        story=_inert("\n".join([title, "", *str(finding).splitlines()[1:-1]])),
        device=ascii(device),
        subject=_subject(finding.subject),
        tensors="\n".join(f"{name} = {_tensor(value)}" for name, value in given.items()),
        options=", ".join(options),
        body=_body(finding, case, inputs, device),
    )
    assert text.isascii()  # it may be piped to Python through a terminal that knows no Unicode
    return text


def _body(finding: Finding, case: Case | BadInput, inputs: Inputs, device: str) -> str:
    """What the script does with the subject, and how it judges what comes."""
    subject = BY_NAME.get(finding.subject)
    dtype = inputs.logits.dtype
    if inputs.target.is_floating_point():
        dtype = torch.promote_types(dtype, inputs.target.dtype)
    values = {
        "raises": ", ".join(error.__name__ for error in case.allowed(device)) if isinstance(case, BadInput) else "",
        "dtype": (subject and subject.dtype) or dtype,
        "shape": tuple(inputs.upstream.shape),
    }
    parts = ACTIONS[finding.check, finding.kind]
    if JUDGE in parts:
        values |= _worst(finding, inputs)
    if subject is not None and not subject.differentiable:
        parts = tuple(part for part in parts if part != GRADIENTS)
    parts = tuple(textwrap.dedent(part).strip() for part in (*parts, VERDICT))
    return "\n".join(part.format(**values) for part in parts)


def _worst(finding: Finding, inputs: Inputs) -> dict[str, str]:
    """The worst element's place and numbers, as Python writes them."""
    sizes = {"loss": inputs.upstream, "gradient": inputs.logits, "target_gradient": inputs.target}[finding.check].shape
    n = finding.numbers
    if n is None or len(n.index) != len(sizes) or not all(map(int.__lt__, n.index, sizes)):
        raise ValueError(f"finding: got index {n and n.index}; allowed is one within {tuple(sizes)}")
    numbers = {name: _literal(getattr(n, name)) for name in ("got", "exact", "bound")}
    return {"index": ", ".join(map(str, n.index)) or "()", **numbers}


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
    if name in SUBJECTS:
        return textwrap.dedent(SUBJECTS[name]).strip()
    if name in FORMS and FORMS[name].differentiable:
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


def _literal(value: Any) -> str:
    special = isinstance(value, float) and not math.isfinite(value)
    return f"float('{value}')" if special else repr(value)
