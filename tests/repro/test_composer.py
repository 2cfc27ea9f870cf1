"""The functions that scripts of findings contain: a script has all that they use, and they agree with the package."""

import ast
import builtins
import os
import random
import symtable
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from support.waits import skip_unless_readable
from torch.utils import _python_dispatch

import crossent.repro.scripts
from crossent.cases.case import Case
from crossent.checks.circumstances import THREADS, UNRECORDED
from crossent.checks.leaves import gradients_by_call
from crossent.repro.composer import Code
from crossent.repro.recipes import RECIPES, REFUSALS
from crossent.repro.scripts import case as example
from crossent.repro.scripts import circumstances, single
from crossent.repro.scripts.functions import evaluate, evaluate_loss
from crossent.repro.scripts.single import call_once, judge_number, state
from crossent.repro.subject_code import DEFINED
from crossent.state import STATES, restore, snapshot
from crossent.trials import call

FILES = sorted(Path(crossent.repro.scripts.__file__).parent.glob("*.py"))
FUNCTIONS = {
    function
    for recipe in (*RECIPES.values(), *REFUSALS.values())
    for function in (recipe.step, recipe.number, recipe.whole)
    if function
} | {*DEFINED.values()}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_functions_of_scripts_import_torch_and_the_standard_library(file):
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
    others = {
        name
        for name in found
        if name.partition(".")[0] not in {"torch", *sys.stdlib_module_names}
        and not name.startswith("crossent.repro.scripts.")
    }
    # The script reads numpy's state if numpy is installed. `scalar` is a form, not a function of torch.
    assert others == {"single": {"numpy"}, "subjects": {"crossent"}}.get(file.stem, set())


def names_of(table):
    """Return the global names that a piece of code uses. `table` is the symbol table of the code."""
    for symbol in table.get_symbols():
        if symbol.is_global() or (table.get_type() == "module" and symbol.is_referenced()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from names_of(child)


@pytest.mark.parametrize("function", sorted(FUNCTIONS, key=lambda one: one.__name__), ids=lambda one: one.__name__)
@pytest.mark.parametrize("instead", [{}, {"evaluate": evaluate_loss}], ids=["gradients", "loss"])
def test_a_script_has_all_that_a_function_uses_and_no_more(function, instead):
    code = Code(instead)
    code.add(function)
    used = set(names_of(symtable.symtable("\n".join(code.functions.values()), "script", "exec")))
    there = {*code.functions, *code.imports, *code.values, "torch"}
    assert used - there - set(dir(builtins)) == set()
    assert there - used <= {function.__name__, "torch"}
    assert code.values <= set(vars(example))
    before = []
    for name, text in code.functions.items():
        later = set(code.functions) - {*before, name}
        assert not later & set(names_of(symtable.symtable(text, "script", "exec"))), name
        before.append(name)


def test_a_function_may_have_another_name_in_a_script():
    code = Code({"evaluate": evaluate_loss})
    code.add(call_once)
    assert list(code.functions) == ["require_dense", "evaluate", "call_once"]
    assert code.functions["evaluate"].startswith("def evaluate(logits, ")
    assert "grad" not in code.functions["evaluate"].split('"""')[2]


def test_the_functions_run_on_the_values_that_are_their_examples():
    with pytest.raises(SystemExit) as end:
        judge_number(call_once())
    assert end.value.code is False


@pytest.mark.parametrize(
    "name", ["float32-7x5-normal-int64-none-rows", "bfloat16-7x5-normal-probabilities-mean-smooth0.1"]
)
def test_a_script_calls_a_subject_as_the_package_does(name):
    given = Case.of(name).build()
    got = evaluate(given.input, given.target, given.options, given.upstream)
    known = call.evaluate(torch.nn.functional.cross_entropy, given).parts
    assert got.keys() == known.keys()
    for part, tensor in got.items():
        assert torch.equal(tensor, known[part]), part


# The lists that scripts and package share.


def test_scripts_read_every_global_state_that_the_package_reads():
    assert list(state()) == list(STATES)


class DispatchMode(_python_dispatch.TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


CHANGES = {
    "the default dtype": lambda: torch.set_default_dtype(torch.float64),
    "the default device": lambda: torch.set_default_device("meta"),
    "the gradient mode": lambda: torch._C._set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16).__enter__(),
    "the deterministic mode": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "the number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "the multithreading mode of autograd": lambda: torch._C._set_multithreading_enabled(False),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "the hooks of saved tensors": lambda: torch._C._autograd._push_saved_tensors_default_hooks(abs, abs),
    "the modes of torch": lambda: _python_dispatch._push_mode(DispatchMode()),
    "the float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "the settings of mkldnn and cuDNN": lambda: torch._C._set_mkldnn_enabled(False),
    "the flush of subnormal numbers": lambda: torch.set_flush_denormal(True),
    "the random generator": lambda: torch.rand(1),
    "Python's random generator": random.random,
    "numpy's random generator": lambda: np.random.rand(),
    "numpy's handling of floating-point errors": lambda: np.seterr(all="ignore"),
    "the filters of warnings": lambda: warnings.simplefilter("ignore"),
    "the environment variables": lambda: os.environ.update(OMP_WAIT_POLICY="a policy that a call sets"),
}


@pytest.mark.parametrize("name", [name for name in STATES if name != "the random generators of CUDA"])
def test_scripts_see_a_change_of_state_that_the_package_sees(name):
    skip_unless_readable(name)
    before, saved = snapshot(), state()
    try:
        CHANGES[name]()
        seen = state()
    finally:
        restored = restore(before)
    if not restored:
        pytest.skip(f"this machine does not change {name}")
    assert restored == [name]
    assert [one for one in saved if saved[one] not in (seen[one], [])] == [name]


def test_a_script_says_what_the_measurement_of_memory_needs(monkeypatch, capsys):
    def refuse(*arguments):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(single, "options", {"linear_weight": torch.ones(3, 3)})
    monkeypatch.setattr(single, "open", refuse, raising=False)
    with pytest.raises(SystemExit) as end:
        single.check_memory()
    assert end.value.code == 2
    assert "the measurement needs CUDA, or Linux with a writable /proc/self/clear_refs: " in capsys.readouterr().out


def test_scripts_make_the_calls_of_the_checks(monkeypatch):
    given = Case.of("float32-7x5-normal-probabilities-mean").build()
    values = {"logits": given.input, "target": given.target, "options": given.options}
    monkeypatch.setattr(circumstances, "given", (*values.values(), given.upstream))
    for name, value in values.items():
        monkeypatch.setattr(circumstances, name, value)
    monkeypatch.setattr(circumstances, "other", circumstances.given)
    assert list(circumstances.call_without_gradients()) == list(UNRECORDED)
    wanted = {"of the logits alone": {"gradient": "input"}, "of the target alone": {"target_gradient": "target"}}
    monkeypatch.setattr(circumstances, "wanted_of", tuple(wanted.items()))
    assert list(circumstances.call_for_some_gradients()) == list(gradients_by_call(given)) == list(wanted)
    assert {tuple(results) for results in circumstances.call_in_threads()} == {THREADS}
