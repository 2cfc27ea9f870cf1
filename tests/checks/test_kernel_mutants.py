"""Mutants of the kernel of `fused`, in Triton's interpreter: the checks that a mutant names find the mutant.

Every access of a kernel is watched. A mutant that reads or writes outside of its arguments raises an error. So the
mutant cannot end the process, or read a number that happens to be right. `nox -s fused` runs these tests.
"""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from kernel_changes import CHANGES
from support.kernel_memory import watched
from support.running import run

import crossent
import crossent.forms
from crossent.checks import CHECKS, single
from crossent.forms.fused import path_of
from crossent.subjects.builtin import BY_NAME

pytestmark = pytest.mark.skipif(
    path_of("cpu") != "interpreter", reason="needs the package triton and TRITON_INTERPRET=1: nox -s fused"
)
KERNEL = Path(crossent.forms.__file__).with_name("kernel.py")
ALWAYS = {single.call.name, single.result.name}


def changed(change, folder):
    """Write the kernel to a file in the folder, with a change or, for None, as it is. Return the imported module."""
    text = KERNEL.read_text(encoding="utf-8")
    if change is not None:
        parts, at = text.split(change.old), 1 + (change.at or 0)
        assert len(parts) == 2 or (change.at is not None and len(parts) > 1 + at), f"{change.old!r} must be there once"
        text = change.old.join(parts[:at]) + change.new + change.old.join(parts[at:])
    path = folder / f"changed_{change}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def using(tmp_path, monkeypatch):
    """Return a function that gives `fused` the kernel with a change, and watches the memory of the kernel."""
    with pytest.MonkeyPatch.context() as patch:
        contexts = []

        def use(change):
            module = changed(change, tmp_path)
            patch.setattr(crossent.forms, "kernel", module, raising=False)
            contexts.append(watched(module, "_cross_entropy", monkeypatch))
            contexts[-1].__enter__()

        yield use
        for context in contexts:
            context.__exit__(None, None, None)


def found(case, checks):
    """Run these checks, `call` and `result` on a case; return the names of the checks with a finding."""
    chosen = [check for name, check in CHECKS.items() if name in {*ALWAYS, *checks}]
    report = run(BY_NAME["fused_interpreter"], case, chosen)
    assert report.ran == 1
    return {finding.check for finding in report.findings}


def far(strides):
    """Return whether logits with these huge strides have the same loss as contiguous logits."""
    close = torch.randn(3, 3, dtype=torch.float16, generator=torch.Generator().manual_seed(0))
    logits = torch.empty(2**31 + 100, dtype=torch.float16).as_strided((3, 3), strides)
    logits.copy_(close)
    target = torch.tensor([0, 1, 2])
    return torch.equal(crossent.fused(logits, target), crossent.fused(close, target))


def ignores_nan():
    """Return whether an ignored row has a gradient of 0 if its logits are NaN."""
    logits = torch.tensor([[1.0, 2.0], [math.nan, math.nan]], requires_grad=True)
    loss = crossent.fused(logits, torch.tensor([1, -100]), reduction="sum")
    return bool((torch.autograd.grad(loss, logits)[0][1] == 0).all())


def takes_strided_weight():
    """Return whether a strided class weight has the same losses as a contiguous class weight."""
    logits, target, weight = torch.randn(6, 5), torch.arange(6) % 5, torch.rand(10)[::2]
    losses = [crossent.fused(logits, target, one, label_smoothing=0.1) for one in (weight, weight.contiguous())]
    return torch.equal(*losses)


# Calls that are no cases of crossent. Tensors of this size run only at level thorough, torch returns NaN for an ignored
# row of NaN, and no layout changes the weight.
CALLS = {
    "far_rows": lambda: far((2**30, 1)),
    "far_classes": lambda: far((1, 2**30)),
    "nan_ignored": ignores_nan,
    "strided_weight": takes_strided_weight,
}
OF_CASES = [change for change in CHANGES if change.case not in CALLS]
OF_CALLS = [change for change in CHANGES if change.case in CALLS]


@pytest.mark.parametrize("change", OF_CASES, ids=str)
def test_a_wrong_kernel_is_found_by_the_checks_that_it_names(change, using):
    using(change)
    assert found(change.case, change.checks.split()) == set(change.checks.split())


@pytest.mark.parametrize("case", sorted({change.case for change in OF_CASES}))
def test_the_kernel_passes_on_the_cases_of_its_mutants(case, using):
    using(None)
    assert found(case, {check for change in CHANGES if change.case == case for check in change.checks.split()}) == set()


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy, in which the interpreter computes, warns of a NaN row
@pytest.mark.parametrize("change", OF_CALLS, ids=str)
def test_a_wrong_kernel_is_found_by_a_call(change, using):
    using(change)
    if change.case == "nan_ignored":  # the result is wrong, but every access is inside of an argument
        assert not CALLS[change.case]()
    else:
        with pytest.raises(Exception, match="outside of the arguments"):
            CALLS[change.case]()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_kernel_passes_the_calls(call, using):
    using(None)
    assert call()


def test_there_are_31_mutants_of_the_kernel_with_unique_names():
    assert len({change.name for change in CHANGES}) == len(CHANGES) == 31
