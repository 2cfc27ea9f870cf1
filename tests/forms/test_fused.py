"""Test `fused`: its kernel in Triton's interpreter, and the code that runs where the kernel cannot run.

`nox -s fused` runs these tests twice with Triton: without the interpreter and with it. No test here needs a GPU.
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.against_torch import assert_within_bounds, evaluate, in_float64
from support.kernel_memory import elements, watched
from support.running import run

import crossent
from crossent.cases.operation import CROSS_ENTROPY
from crossent.forms.fused import path_of
from crossent.forms.rows import arrange
from crossent.repro.rerun import script_of
from crossent.run.runner import check
from crossent.subjects.builtin import BY_NAME, default_names, subjects_of

NAMES = {"kernel": "fused", "interpreter": "fused_interpreter", "blocked": "fused_as_blocked"}
interpreted = pytest.mark.skipif(
    path_of("cpu") != "interpreter", reason="needs the package triton and TRITON_INTERPRET=1: nox -s fused"
)
compiled = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None
    or importlib.util.find_spec("triton.backends") is None
    or path_of("cpu") == "interpreter",
    reason="needs the package triton, 3.0 or newer, without TRITON_INTERPRET=1: nox -s fused",
)


def batch(shape, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(shape, generator=random)).to(dtype)
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=random)


def gradient_of(loss, logits, upstream=None):
    return torch.autograd.grad(loss, logits, upstream, retain_graph=True)[0]


# What runs where


def test_the_subject_has_the_name_of_the_code_that_runs():
    (subject,) = subjects_of("fused", "cpu")
    assert subject.name == NAMES[path_of("cpu")]
    assert subjects_of("fused", "meta")[0].name == "fused_as_blocked"


def test_a_subject_of_another_path_runs_no_case():
    """A report must not say that the kernel passed where other code ran."""
    for path, name in NAMES.items():
        report = run(BY_NAME[name], "float32-7x5-normal-int64-mean")
        assert report.ran == (path == path_of("cpu"))
        assert report.ok == (path == path_of("cpu"))


def test_fused_is_checked_by_default_only_where_its_kernel_runs():
    assert ("fused" in default_names(CROSS_ENTROPY, "cpu")) == (path_of("cpu") != "blocked")
    assert "fused" not in default_names(CROSS_ENTROPY, "meta")


def test_a_report_names_the_code_that_ran():
    report = check("fused", level="quick", cases=["float32-7x5-normal-int64-mean"])
    assert [part.name for part in report.subjects] == [NAMES[path_of("cpu")]]
    assert NAMES[path_of("cpu")] in str(report)
    assert report.ok


@pytest.mark.parametrize("recorded", [True, False])
def test_the_forward_pass_computes_a_gradient_only_if_a_backward_pass_may_follow(recorded, monkeypatch):
    launches = []

    class Kernel:
        """The kernel, without Triton."""

        @staticmethod
        def flat(tensor):
            return tensor

        @staticmethod
        def launch(rows, losses, gradient, upstream, done):
            launches.append(gradient is not None)

    monkeypatch.setattr(sys.modules[path_of.__module__], "path_of", lambda device_type: "kernel")
    monkeypatch.setattr(crossent.forms, "kernel", Kernel, raising=False)
    logits, target = batch((6, 5))
    with torch.set_grad_enabled(recorded):
        crossent.fused(logits.requires_grad_(), target)
    assert launches == [recorded]


@pytest.mark.skipif(path_of("cpu") != "blocked", reason="TRITON_INTERPRET=1 lets the kernel run on a CPU")
def test_without_cuda_and_the_interpreter_fused_has_the_bits_of_blocked():
    logits, target = batch((6, 5))
    logits.requires_grad_()
    for options in ({}, {"reduction": "none", "label_smoothing": 0.1}):
        losses = [form(logits, target, **options) for form in (crossent.fused, crossent.blocked)]
        assert torch.equal(*losses)
        assert torch.equal(*(gradient_of(loss.sum(), logits) for loss in losses))


def test_a_script_repeats_a_call_with_the_code_that_ran(tmp_path):
    name, path = NAMES[path_of("cpu")], tmp_path / "again.py"
    path.write_text(script_of(f"{name}:loss:float32-7x5-normal-int64-mean", None, passed=True), encoding="utf-8")
    assert ("TRITON_INTERPRET" in path.read_text(encoding="utf-8")) == (name == "fused_interpreter")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(crossent.__file__).parents[1])
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


# The kernel in the interpreter


def launched(logits, target, monkeypatch, *, upstream=None, **options):
    """Return which memory the kernel reads and writes, once for the forward pass and once for the backward pass."""
    from crossent.forms import kernel

    with watched(kernel, "_cross_entropy", monkeypatch) as forward:
        loss = crossent.fused(logits, target, **options)
    with watched(kernel, "_cross_entropy", monkeypatch) as backward:
        upstream = torch.ones_like(loss) if upstream is None else torch.full_like(loss, upstream)
        gradient_of(loss, logits, upstream)
    return forward, backward


SHAPES = [(5,), (7, 5), (3, 5000), (2, 4097, 3), (300, 10), (4, 10, 3, 2)]


@interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_reads_the_logits_twice_and_writes_the_gradient_once(shape, monkeypatch):
    logits = torch.randn(shape).requires_grad_()
    target = torch.zeros((shape[0], *shape[2:]) if len(shape) > 1 else (), dtype=torch.int64)
    forward, backward = launched(logits, target, monkeypatch)
    rows = max(1, target.numel())
    assert forward.count(forward.reads, "logits") == 2 * logits.numel() + rows  # a row reads its true class again
    assert forward.count(forward.writes, "gradient") == logits.numel()
    # The upstream gradient is 1: the kernel has nothing to do.
    assert "logits" not in backward.reads
    assert not backward.writes
    _, backward = launched(logits, target, monkeypatch, upstream=0.5)
    assert backward.count(backward.reads, "logits") == 2 * logits.numel() + rows
    assert backward.count(backward.writes, "gradient") == logits.numel()


@interpreted
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_element_of_the_results_is_written_once_and_by_one_program(shape, reduction, monkeypatch):
    """No other program reads or writes the element, so the order of the programs cannot change a result."""
    logits = torch.randn(shape).requires_grad_()
    target = torch.zeros((shape[0], *shape[2:]) if len(shape) > 1 else (), dtype=torch.int64)
    for memory in launched(logits, target, monkeypatch, reduction=reduction, upstream=0.5):
        for name in ("losses", "gradient"):
            if name in memory.tensors:
                written = np.concatenate([addresses for _, addresses in memory.writes[name]])
                assert sorted(written) == sorted(elements(memory.tensors[name]))
                assert not memory.reads[name]
        assert set(memory.writes) <= {"losses", "gradient"}


@interpreted
def test_the_kernel_reads_no_logit_of_an_ignored_row(monkeypatch):
    logits, target = batch((7, 5))
    target[1::2] = -100
    forward, _ = launched(logits.requires_grad_(), target, monkeypatch)
    assert forward.count(forward.reads, "logits") == 4 * (2 * 5 + 1)


@interpreted
def test_a_forward_pass_without_a_gradient_reads_the_logits_once(monkeypatch):
    from crossent.forms import kernel

    logits, target = batch((7, 5000))
    with watched(kernel, "_cross_entropy", monkeypatch) as forward:
        crossent.fused(logits, target)
        with torch.no_grad():
            crossent.fused(logits.requires_grad_(), target)
    assert forward.count(forward.reads, "logits") == 2 * (logits.numel() + 7)
    assert set(forward.writes) == {"losses"}


def guarded(tensor):
    """Return a copy of a tensor between two zones of NaN, and the memory that holds the copy and the zones."""
    zone = 5000
    memory = torch.full((tensor.numel() + 2 * zone,), math.nan, dtype=tensor.dtype)
    copy = memory[zone : zone + tensor.numel()].view(tensor.shape)
    copy.copy_(tensor)
    return copy, memory


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (3, 4099), (2, 67, 5)], ids=str)
def test_the_zones_around_each_buffer_stay_nan_and_no_result_has_a_nan(shape, dtype):
    from crossent.forms.kernel import flat, launch

    logits, target = batch(shape, dtype)
    weight = torch.rand(shape[1], dtype=dtype)
    zones = [guarded(one) for one in (logits, weight, torch.zeros(target.shape, dtype=dtype))]
    (logits, _), (weight, _), (upstream, _) = zones
    upstream.fill_(0.5)
    before = [whole.clone() for _, whole in zones]
    rows = arrange(logits, target, weight, -100, "mean", 0.1)
    results = [guarded(torch.zeros(target.shape, dtype=rows.compute)), guarded(torch.empty_like(flat(rows.logits)))]
    (losses, _), (gradient, _) = results
    launch(rows, losses, gradient, upstream, False)
    for (_, whole), old in zip(zones, before, strict=True):
        assert torch.equal(whole.nan_to_num(12345.0), old.nan_to_num(12345.0))
    for result, whole in results:
        assert not result.isnan().any()
        assert whole.isnan().sum() == 2 * 5000


@interpreted
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_no_argument_changes(reduction):
    logits, target = batch((6, 5, 3))
    weight, upstream = torch.rand(5), torch.tensor(0.3).expand((6, 3) if reduction == "none" else ())
    arguments = [logits, target, weight, upstream]
    before = [one.clone() for one in arguments]
    loss = crossent.fused(logits.requires_grad_(), target, weight, reduction=reduction, label_smoothing=0.1)
    for _ in range(2):
        gradient_of(loss, logits, upstream)
    assert all(torch.equal(one.detach(), old) for one, old in zip(arguments, before, strict=True))


@interpreted
def test_a_class_weight_and_a_target_need_not_be_contiguous():
    logits, target = batch((6, 5))
    weight, apart = torch.rand(10)[::2], torch.stack([target, target], 1)[:, 1]
    for options in ({}, {"label_smoothing": 0.1}):
        loss = crossent.fused(logits, apart, weight, **options)
        assert torch.equal(loss, crossent.fused(logits, target, weight.contiguous(), **options))


@interpreted
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_have_64_bits(dim, monkeypatch):
    """The last logit is more than 2^31 elements behind the first. The memory in between is reserved, but never used."""
    step = 2**30 + 3
    logits = torch.empty(2 * step + 100, dtype=torch.float16)
    strides = [7, 1, 2]
    strides[dim] = step
    logits = logits.as_strided((3, 3, 3), strides)
    logits.copy_(torch.randn(3, 3, 3))
    target = torch.randint(3, (3, 3))
    close = logits.clone(memory_format=torch.contiguous_format)
    from crossent.forms import kernel

    with watched(kernel, "_cross_entropy", monkeypatch):  # raises an error where an offset overflows
        assert torch.equal(crossent.fused(logits, target), crossent.fused(close, target))


@interpreted
@pytest.mark.parametrize(("rows", "classes"), [(2, 262_144), (1, 100_003), (70_000, 2)])
def test_many_classes_and_many_rows(rows, classes):
    logits, target = batch((rows, classes))
    result = evaluate(crossent.fused, logits, target)
    assert_within_bounds(result, evaluate(crossent.formula, **in_float64(logits, target)))


@interpreted
def test_a_row_may_begin_with_more_infinite_logits_than_a_program_holds():
    """The maximum of the first block is -inf, and -inf - -inf would be NaN."""
    logits, target = batch((2, 5000))
    logits[:, :4900] = -math.inf
    target[:] = 4990
    result = evaluate(crossent.fused, logits, target)
    assert_within_bounds(result, evaluate(crossent.formula, **in_float64(logits, target)))


@interpreted
def test_an_upstream_that_is_not_one_is_rounded_into_the_gradient_once():
    logits, target = batch((512, 40), torch.float16)
    logits.requires_grad_()
    scaled = gradient_of(crossent.fused(logits, target), logits, torch.tensor(2.0**10, dtype=torch.float16))
    wide = logits.detach().double().requires_grad_()
    exact = 2.0**10 * gradient_of(crossent.formula(wide, target), wide)
    # Rounding to float16 has a relative error of at most 2^-11; the computation in float32 has a smaller error.
    assert ((scaled.double() - exact).abs() <= 2.0**-11 * exact.abs() + 2.0**-25).all()
    plain = gradient_of(crossent.fused(logits, target), logits)
    assert ((2.0**10 * plain.double() - exact).abs() > 2.0**-11 * exact.abs() + 2.0**-25).any()


@interpreted
def test_a_second_backward_gives_the_same_bits_after_a_write_into_the_first_gradient():
    logits, target = batch((6, 5))
    loss = crossent.fused(logits.requires_grad_(), target)
    first = gradient_of(loss, logits)
    kept = first.clone()
    first.zero_()
    second = gradient_of(loss, logits)
    assert kept.any()
    assert torch.equal(second, kept)
    assert second.data_ptr() != first.data_ptr()


@interpreted
def test_the_host_reads_no_number_of_a_tensor():
    """On CUDA, reading a number would make the host wait for the device."""
    logits, target = batch((6, 5))
    logits.requires_grad_()
    crossent.fused(logits, target).backward()
    with torch.profiler.profile() as profile:
        crossent.fused(logits, target, torch.rand(5), label_smoothing=0.1).backward(torch.tensor(0.5))
        crossent.fused(logits, target.float().unsqueeze(1).expand(6, 5)).backward()
    names = {event.name for event in profile.events()}
    assert "aten::sum" in names
    assert names.isdisjoint({"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"})


# The compiled kernel


@compiled
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
@pytest.mark.parametrize("target", ["index", "smoothed", "probabilities"])
@pytest.mark.parametrize("upstream", ["one", "given", "done"])
def test_the_kernel_compiles_for_an_h100(dtype, target, upstream):
    """The test compiles for the compute capability 9.0. Compiling needs no GPU."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_

    from crossent.forms.kernel import _cross_entropy

    wide = "fp64" if dtype == "fp64" else "fp32"
    steps, some, computed = ("i64", "i64", "constexpr"), f"*{dtype}", f"*{wide}"
    probable, backward = target == "probabilities", upstream != "one"
    signature = {
        **{"logits": some, "x_steps": steps, "g_steps": steps, "gradient": some, "divisor": computed},
        **{"probabilities": some, "t_steps": steps, "weight": computed, "index": "*i64", "kept": "*i1"},
        **{"target_weight": computed, "upstream": some, "u_step": "i32", "losses": computed},
        **{"N": "i32", "D": "i32", "C": "i32"},
    }
    constants = {
        **{"SMOOTHING": 0.1 * (target == "smoothed"), "DENSE": target != "index", "DONE": upstream == "done"},
        **{"F": getattr(tl, f"float{wide[2:]}"), "ROWS": 1, "BLOCK": 4096},
        **dict.fromkeys(("index", "kept", "target_weight") if probable else ("probabilities",)),
        **dict.fromkeys(("losses",) if backward else ("upstream",)),
    }
    names = _cross_entropy.arg_names
    values = {(names.index(name),): value for name, value in constants.items()}
    values |= {(names.index(name), 2): 1 for name in ("x_steps", "t_steps", "g_steps")}
    signature = {name: "constexpr" if name in constants else signature[name] for name in names}
    source = ASTSource(fn=_cross_entropy, signature=signature, constexprs=values)
    options = {"num_warps": 8, "enable_fp_fusion": True}
    made = compile_(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.asm["cubin"]
    assert ("ex2.approx" in made.asm["ptx"]) == (wide == "fp32")  # an approximate exp: contract fast_kernel
