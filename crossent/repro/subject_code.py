"""The code of a script that defines, imports, loads or compiles its subject."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from crossent.cases.operation import LINEAR_CROSS_ENTROPY, Operation
from crossent.forms import fused
from crossent.repro.composer import Code, ScriptFunction
from crossent.repro.scripts import subjects
from crossent.repro.scripts.compiled_code import compiled
from crossent.repro.scripts.functions import cannot_run
from crossent.subjects.builtin import BY_NAME, FORM_SUBJECTS
from crossent.subjects.compiler import COMPILE_SUFFIX, as_compiled
from crossent.subjects.subject import Subject
from crossent.words import printable

LOADER = "from crossent.subjects.loader import load"
# Stands for the subject of a report whose code is unknown here.
ANOTHER = Subject("another", torch.nn.functional.cross_entropy)
# The subjects that a script defines itself.
DEFINED: dict[str, ScriptFunction] = {
    "torch": subjects.torch_loss,
    "torch_nll": subjects.torch_nll,
    "scalar": subjects.scalar_on_tensors,
    "linear_formula": subjects.linear_formula_of_crossent,
    "linear_blocked": subjects.linear_blocked_of_crossent,
    "torch_linear": subjects.torch_linear,
    "torch_linear_chunked": subjects.torch_linear_chunked,
    "torch_linear_chunk1": subjects.torch_linear_chunk1,
    "torch_linear_accurate": subjects.torch_linear_accurate,
    "torch_linear_balanced": subjects.torch_linear_balanced,
    "torch_linear_compact": subjects.torch_linear_compact,
}


def subject_of(name: str, device: str) -> Subject:
    """Return the form or the subject of torch with this name. For any other name, return `ANOTHER`.

    For "NAME+compile", return the subject NAME, compiled for `device`.
    """
    base = name.removesuffix(COMPILE_SUFFIX)
    subject = BY_NAME.get(base, ANOTHER)
    return subject if base == name else as_compiled(subject, device)


def subject_lines(code: Code, name: str, source: str, operation: Operation) -> Iterator[str]:
    """Yield the lines that import, load or compile the subject, or add the subject's function to `code`.

    `source` is the text from which a user's function is loaded, such as "file.py:NAME". If `source` is "" and the name
    is unknown, the lines end the script with status 2.
    """
    linear = operation is LINEAR_CROSS_ENTROPY
    if source:
        given = f"{source!a}, operation=LINEAR_CROSS_ENTROPY" if linear else f"{source!a}"
        lines = ["from crossent.cases.operation import LINEAR_CROSS_ENTROPY"] * linear
        yield _attempt(code, *lines, LOADER, "", f"(subject,) = (found.loss for found in load({given}))")
        return
    base = name.removesuffix(COMPILE_SUFFIX)
    if base != name:
        code.add(compiled)
    if base in DEFINED:
        code.add(DEFINED[base], "subject")
    elif BY_NAME.get(base, ANOTHER).loss is fused:
        if base == "fused_interpreter":
            yield 'import os\nos.environ["TRITON_INTERPRET"] = "1"  # before the import of Triton'
        yield _attempt(code, "from crossent import fused as subject  # the rest of this script needs only torch")
    elif base in FORM_SUBJECTS:
        yield _attempt(code, f"from crossent import {base} as subject  # the rest of this script needs only torch")
    else:
        called = ", called as subject(input, target, linear_weight=..., **options)" if linear else ""
        own = printable(base)
        missing = f"this script lacks the code of {own}; replace this print and the next line with an import of {own}"
        yield f"print({missing + ' as subject' + called!a})\nraise SystemExit(2)"
    if base != name:
        yield "subject = compiled(subject)"


def _attempt(code: Code, *lines: str) -> str:
    """Return code that runs `lines`, and ends the script with status 2 after an error."""
    code.add(cannot_run)  # Python's own status after an error, 1, would mean a finding
    body = "\n".join(f"    {line}" if line else "" for line in lines)
    return f'try:\n{body}\nexcept Exception as error:\n    cannot_run(f"{{type(error).__name__}}: {{error}}")'
