"""Global state: a check notices every kind of global state that a subject changes, names it, and restores it."""

import os
import random
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from support.checks import SINGLE
from support.running import run
from support.waits import skip_unless_readable
from torch import overrides
from torch.utils import _python_dispatch

import crossent
from crossent.cases.case import Case
from crossent.state import _GET, _SET, STATES, restore, snapshot
from crossent.subjects.builtin import FORM_SUBJECTS

CASE = Case("float32")


def doubled(tensor):
    return tensor


def leave(context):
    """Enter a context, and never exit from the context."""
    context.__enter__()


class FunctionMode(overrides.TorchFunctionMode):
    """A mode that changes nothing."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


class DispatchMode(_python_dispatch.TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


CHANGES = {
    "the default dtype": lambda: torch.set_default_dtype(torch.float64),
    "the default device": lambda: torch.set_default_device("meta"),
    "the gradient mode": lambda: leave(torch.no_grad()),
    "autocast": lambda: leave(torch.autocast("cpu", dtype=torch.bfloat16)),
    "the deterministic mode": lambda: torch.use_deterministic_algorithms(False, warn_only=True),
    "the number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "the multithreading mode of autograd": lambda: torch._C._set_multithreading_enabled(False),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "the hooks of saved tensors": lambda: leave(torch.autograd.graph.saved_tensors_hooks(doubled, doubled)),
    "the modes of torch": lambda: leave(FunctionMode()),
    "the float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "the settings of mkldnn and cuDNN": lambda: torch._C._set_mkldnn_enabled(False),
    "the random generator": lambda: torch.rand(1),
    "Python's random generator": random.random,
    "numpy's random generator": np.random.random_sample,
    "numpy's handling of floating-point errors": lambda: np.seterr(under="raise"),
    "the filters of warnings": lambda: warnings.simplefilter("ignore"),
    "the environment variables": lambda: os.environ.update(OMP_WAIT_POLICY="a policy that a call sets"),
}
TESTED_ELSEWHERE = {
    "the flush of subnormal numbers",
    "the random generators of CUDA",
}  # the names of states that other tests cover


def test_every_state_has_a_test():
    assert CHANGES.keys() | TESTED_ELSEWHERE == STATES.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_that_a_subject_changes_is_a_finding_and_is_set_back(name):
    skip_unless_readable(name)

    def loss(input, target, **options):
        result = crossent.formula(input, target, **options)
        CHANGES[name]()
        return result

    before = snapshot()
    try:
        report = run(loss, CASE, SINGLE)
    finally:
        left = restore(before)
    assert left == []
    assert [f.message for f in report.findings if f.check == "state"] == [f"the call changed {name}"]


@pytest.mark.parametrize(
    ("kind", "pop"), [(FunctionMode, overrides._pop_mode), (DispatchMode, _python_dispatch._pop_mode)]
)
def test_modes_that_a_call_enters_or_leaves_are_restored(kind, pop):
    with kind():
        before = snapshot()
        leave(kind())
        assert restore(before) == ["the modes of torch"]
        pop()
        assert restore(before) == ["the modes of torch"]
        assert restore(before) == []


def test_hooks_that_a_subject_removes_are_restored():
    skip_unless_readable("the hooks of saved tensors")
    with torch.autograd.graph.saved_tensors_hooks(doubled, doubled):
        before = snapshot()
        torch._C._autograd._pop_saved_tensors_default_hooks()
        assert restore(before) == ["the hooks of saved tensors"]
        assert restore(before) == []


@pytest.mark.skipif(not hasattr(torch._C, "_set_fp32_precision_setter"), reason="needs torch 2.9 or newer")
def test_a_matmul_precision_of_one_backend_is_read_and_restored():
    """torch.get_float32_matmul_precision() raises an error if the backends have different precisions."""
    first, matmul = torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul
    before = snapshot()
    try:
        matmul.fp32_precision = "bf16"
        mixed = snapshot()
        assert restore(mixed) == []
        assert restore(before) == ["the float32 matmul precision"]
        assert torch.get_float32_matmul_precision() == first
        assert restore(mixed) == ["the float32 matmul precision"]
        assert matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(first)


def test_a_default_device_that_the_caller_chose_is_restored():
    torch.set_default_device("meta")
    try:
        before = snapshot()
        torch.set_default_device("cpu")
        assert restore(before) == ["the default device"]
        assert torch.empty(0).is_meta
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("the default device", lambda: torch.set_default_device(torch.empty(0).device)),
        ("autocast", lambda: torch.set_autocast_cache_enabled(not torch.is_autocast_cache_enabled())),
        *(
            ("the settings of mkldnn and cuDNN", lambda at=at: _SET[at](not _GET[at]()))
            for at in range(len(_GET))  # in version 2.0.1 of torch, one less
        ),
    ],
)
def test_each_setting_of_a_state_is_read_and_restored(name, change):
    before = snapshot()
    change()
    assert restore(before) == [name]
    assert restore(before) == []


def test_variables_that_a_call_adds_changes_and_removes_are_restored(monkeypatch):
    for name in ("CROSSENT_ADDED", "TORCHINDUCTOR_ADDED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("CROSSENT_CHANGED", "old")
    monkeypatch.setenv("CROSSENT_REMOVED", "old")
    variables, before = dict(os.environ), snapshot()
    os.environ.update(CROSSENT_ADDED="new", CROSSENT_CHANGED="new", TORCHINDUCTOR_ADDED="a folder that torch chose")
    del os.environ["CROSSENT_REMOVED"]
    assert restore(before) == ["the environment variables"]
    assert dict(os.environ) == {**variables, "TORCHINDUCTOR_ADDED": "a folder that torch chose"}
    assert restore(before) == []


def test_a_variable_that_a_library_sets_at_its_import_is_no_change_of_state(monkeypatch):
    """For example, sklearn sets KMP_INIT_AT_FORK."""
    monkeypatch.setenv("CROSSENT_ADDED", "")
    monkeypatch.delenv("CROSSENT_ADDED")
    before = snapshot()
    os.environ["CROSSENT_ADDED"] = "new"
    monkeypatch.setitem(sys.modules, "a_library_that_a_call_imports", types.ModuleType("a_library"))
    assert restore(before) == []
    monkeypatch.setenv("CROSSENT_ADDED", "old")
    before = snapshot()
    os.environ["CROSSENT_ADDED"] = "new"
    monkeypatch.setitem(sys.modules, "another_library_that_a_call_imports", types.ModuleType("a_library"))
    assert restore(before) == ["the environment variables"]
    assert os.environ["CROSSENT_ADDED"] == "old"


def test_right_code_changes_nothing():
    assert not run(FORM_SUBJECTS.values(), Case("float32", (5,)), SINGLE).findings


def test_a_filter_for_the_warnings_of_a_library_is_no_change_of_state():
    """For example, torch imports sympy during the first call that needs it, and sympy adds a filter."""

    class Deprecated(UserWarning):
        pass

    with warnings.catch_warnings():
        before = snapshot()
        warnings.simplefilter("once", Deprecated)
        assert restore(before) == []
        warnings.simplefilter("ignore", DeprecationWarning)
        assert restore(before) == ["the filters of warnings"]
        assert any(one[2] is Deprecated for one in warnings.filters)
        assert restore(before) == []


def test_a_stored_second_normal_number_is_part_of_the_state_of_numpys_generator():
    """numpy draws two normal numbers at once, and keeps the second. The next draw only returns the kept number."""
    rng = np.random.RandomState(0)  # a generator like the global one, whose state the test may use
    before = np.random.get_state(legacy=False)
    try:
        rng.standard_normal()
        np.random.set_state(rng.get_state(legacy=False))
        for _ in range(2):  # the second time, the memory of the generator is equal to a memory that was read before
            saved = snapshot()
            np.random.standard_normal()
            assert restore(saved) == ["numpy's random generator"]
            assert np.random.get_state(legacy=False)["has_gauss"] == 1
    finally:
        np.random.set_state(before)
