"""Transforms: each check catches code that only a transform makes wrong, and correct code passes."""

import logging
import sys
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.checks import COMPILED_CODE, SINGLE, TRANSFORMS
from support.reference import REFERENCE
from support.running import run, trial_of
from support.subjects import TENSOR_FORMS

import crossent
from crossent import machine
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.checks import transforms
from crossent.checks.compiled_code import (
    _why_no_error,
    contract_of_compiled_code,
    refused_when_compiled,
    wrong_classes,
)
from crossent.checks.transforms import _casts_to_float16, _why_no_export
from crossent.numerics.bounds.contracts import contract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.rounding import ANY_ORDER
from crossent.report.expected_findings import torch_list
from crossent.state import restore, snapshot
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.subjects.compiler import INDUCTOR, TRACER, _why_compile_fails, quiet, why_cannot_compile
from crossent.subjects.loader import load
from crossent.subjects.subject import Subject
from crossent.trials.act import Raised
from crossent.trials.trial import NotRunError, Problem, Question, RefusedError

CHECKS = {check.name: check for check in (*TRANSFORMS, *COMPILED_CODE)}
CHECK_OF = {check.name: check for check in SINGLE}
# The case of most tests: kept and ignored rows, each with its own upstream gradient.
CASE = Case("float32", (7, 5), reduction="none", ignored="ignored_default", upstream="rows")
ALL = [*grid(array="transformed")]
INSTANT = ("func_grad", "vmap", "autocast", "meta")
RIGHT = [*TENSOR_FORMS, TORCH, REFERENCE]


@pytest.fixture(autouse=True)
def ambient():
    with machine.ambient():
        yield


@pytest.fixture(autouse=True, scope="module")
def scalar_code():
    """Let torch generate code without vector instructions, whose detection takes longer than all tests here."""
    if why_cannot_compile(TRACER, "cpu"):
        yield
        return
    import torch._inductor.config

    with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):
        yield


def skip_unless_check_runs(name):
    """Skip the test if a check cannot run on this machine."""
    backend = {"trace": TRACER, "compile": INDUCTOR}.get(name.partition("_")[0].removesuffix("d"))
    reason = why_cannot_compile(backend, "cpu") if backend else ""
    if name == "export":
        reason = _why_no_export()
    if name == "compiled_error":
        reason = reason or _why_no_error()
    if reason:
        pytest.skip(reason)


def findings_of(name, loss, case=CASE):
    """Return the findings of a check for a loss that passes all checks of a plain call."""
    skip_unless_check_runs(name)
    subject = loss if isinstance(loss, Subject) else Subject("mine", loss, promise="eager")
    trial = trial_of(Question(case), subject)
    for check in SINGLE:
        found = list(check.run(trial)) if check.applies(case) else []
        assert not [one for one in found if isinstance(one, Problem) or one.ratio > 1], check.name
    assert CHECKS[name].applies(case)
    try:
        found = list(CHECKS[name].run(trial))
    except RefusedError as refusal:
        return [Problem("refused", str(refusal))]
    assert found or name in ("meta", "compiled_error")
    return [one for one in found if isinstance(one, Problem) or one.ratio > 1]


def assert_only(found, kind, said):
    (problem,) = found
    assert problem.kind == kind
    assert said in problem.message, problem.message
    assert "\n" not in problem.message


# --- Code that is wrong under one transform --------------------------------------------------------------------------


class OfAnEarlierTorch(torch.autograd.Function):
    """A function as extensions wrote it before torch.func: forward takes the context."""

    @staticmethod
    def forward(ctx, logits, target, options):
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = crossent.formula(leaf, target, **options)
        ctx.pair = leaf, loss
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        leaf, loss = ctx.pair
        return torch.autograd.grad(loss, leaf, upstream, retain_graph=True)[0], None, None


class MappedOverTheFirstAxis(torch.autograd.Function):
    """A log-softmax whose rule for vmap assumes that vmap maps over the first axis."""

    generate_vmap_rule = False

    @staticmethod
    def forward(logits, axis):
        return F.log_softmax(logits, axis)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.axis = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, upstream):
        (output,) = ctx.saved_tensors
        return upstream - output.exp() * upstream.sum(ctx.axis, keepdim=True), None

    @staticmethod
    def vmap(info, in_dims, logits, axis):
        return MappedOverTheFirstAxis.apply(logits, axis + 1), in_dims[0]


def under_vmap(target):
    """Return whether vmap runs. Only vmap wraps the target, because class indices have no gradient."""
    return torch._C._functorch.is_batchedtensor(target)


def counts_an_ignored_row(input, target, ignore_index=-100, **options):
    """Return the loss with class 0 in place of an ignored target, so that the row is not ignored."""
    return crossent.formula(input, torch.where(target == ignore_index, 0, target), **options)


def test_a_function_that_torch_func_does_not_take_is_refused():
    def loss(input, target, **options):
        return OfAnEarlierTorch.apply(input, target, options)

    assert_only(findings_of("func_grad", loss), "refused", "setup_context")


def test_a_gradient_that_is_wrong_under_torch_func_is_found():
    def loss(input, target, **options):
        value = crossent.formula(input, target, **options)
        return value * 1.0 if not torch._C._functorch.is_gradtrackingtensor(input) else value.detach() + 0 * value

    assert {found.of for found in findings_of("func_grad", loss)} == {"gradient"}


def test_a_pair_instead_of_a_loss_is_found():
    def loss(input, target, **options):
        value = crossent.formula(input, target, **options)
        return value if not torch._C._functorch.is_gradtrackingtensor(input) else (value, value)

    assert_only(
        findings_of("func_grad", loss), "wrong", "loss: got tuple; expected a dense tensor of class torch.Tensor"
    )


def test_an_ignored_class_that_vmap_gathers_is_found():
    # pytorch#90916 reports this mistake in torch's own rule.
    def loss(input, target, **options):
        return (counts_an_ignored_row if under_vmap(target) else crossent.formula)(input, target, **options)

    found = findings_of("vmap", loss)
    ignored = (CASE.build().target == -100).nonzero().squeeze(1).tolist()
    assert {one.index for one in found if one.of == "loss"} == {(row,) for row in ignored}
    assert {one.index[0] for one in found if one.of == "gradient"} == set(ignored)


@pytest.mark.parametrize(("target", "expected"), [("int64", 2), ("probabilities", 3)])
def test_a_missing_gradient_of_vmap_names_the_number_of_tensors(target, expected, monkeypatch):
    """An isolated process may send any number of tensors."""
    monkeypatch.setattr(
        transforms, "gradients_by_vmap", lambda loss, inputs: (transforms.losses_by_vmap(loss, inputs),)
    )
    trial = trial_of(Question(Case("float32", target=target)), FORM_SUBJECTS["formula"])
    with pytest.raises(ValueError, match=f"^got 1 tensors for a loss and its gradients; expected {expected}$"):
        list(CHECKS["vmap"].run(trial))


def test_a_python_branch_on_a_row_is_refused_by_vmap():
    def loss(input, target, ignore_index=-100, **options):
        if bool((target == ignore_index).all()):
            return crossent.formula(input, target, ignore_index=ignore_index, **options)
        return crossent.one_hot(input, target, ignore_index=ignore_index, **options)

    assert_only(findings_of("vmap", loss), "refused", "vmap")


def test_a_rule_of_vmap_that_takes_the_first_axis_is_found_where_it_is_the_last():
    def loss(input, target, reduction="none", **options):
        log_probs = MappedOverTheFirstAxis.apply(input, min(1, input.dim() - 1))
        return F.nll_loss(log_probs, target, reduction=reduction)

    assert not findings_of("vmap", loss, Case("float32", (7, 5), reduction="none"))
    assert {found.of for found in findings_of("vmap", loss, Case("float32", (3, 5, 4), reduction="none"))} == {
        "loss",
        "gradient",
    }


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("sizes", [(7, 5), (3, 5, 4), (2, 3, 2, 2, 3)])
def test_under_vmap_every_reduction_of_a_sample_is_that_of_a_call_with_it_alone(sizes, reduction):
    case = Case("float64", sizes, reduction=reduction, ignored="ignored", weight="weighted")
    made = judged([FORM_SUBJECTS["formula"], TORCH], [case], [CHECKS["vmap"]])
    assert not made.findings, made
    assert not made.subjects[0].findings


def with_matrices(input, target, reduction="none", **options):
    """Select the true class by a matrix product, which autocast computes in bfloat16."""
    log_probs = F.log_softmax(input, -1)
    return -(log_probs.unsqueeze(-2) @ F.one_hot(target, 5).to(log_probs.dtype).unsqueeze(-1)).reshape(target.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_of_matrices_is_found_under_autocast(dtype):
    assert_only(
        findings_of("autocast", with_matrices, Case("float32", reduction="none")),
        "wrong",
        "loss: got bfloat16 with shape (7,)",
    )


def test_a_precision_that_autocast_takes_is_found_though_the_dtype_is_right():
    def loss(input, target, **options):
        return with_matrices(input, target, **options).to(input.dtype)

    # The gradient of the product is zeros and ones, which bfloat16 represents exactly.
    assert [found.of for found in findings_of("autocast", loss, Case("float32", reduction="none"))] == ["loss"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_loss_that_stays_in_half_precision_under_autocast_is_found(dtype):
    def loss(input, target, **options):
        return crossent.formula(input.float(), target, **options).to(input.dtype)

    case = Case(dtype, reduction="none")
    assert_only(
        findings_of("autocast", loss, case),
        "wrong",
        f"loss: got {dtype} with shape (7,); expected float32 with shape (7,)",
    )


def test_a_half_precision_that_is_float32_in_name_alone_is_found_under_autocast():
    def loss(input, target, **options):
        value = crossent.formula(input.float(), target, **options)
        one = torch.ones(1, 1)
        return value.to(input.dtype).float() if (one @ one).dtype == torch.bfloat16 else value.to(input.dtype)

    assert {found.of for found in findings_of("autocast", loss, Case("bfloat16", reduction="none"))} == {"loss"}


def test_a_loss_that_looks_at_its_target_is_refused_without_data():
    def loss(input, target, **options):
        assert target.max().item() < 5
        return crossent.formula(input, target, **options)

    (problem,) = findings_of("meta", loss)
    assert problem.kind == "refused"
    assert "meta" in problem.message.lower()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda value: torch.zeros(value.shape, requires_grad=True), "on meta"),
        (lambda value: value.double(), "got float64 with shape (7,) on meta; expected float32 with shape (7,) on meta"),
        (lambda value: value.sum(), "loss: got float32 with shape () on meta"),
    ],
    ids=["device", "dtype", "shape"],
)
def test_a_wrong_shape_dtype_or_device_without_data_is_found(made, said):
    def loss(input, target, **options):
        value = crossent.formula(input, target, **options)
        return made(value) if input.is_meta else value

    # Without a gradient, since a loss on another device has none.
    assert_only(findings_of("meta", Subject("mine", loss, promise="eager", differentiable=False)), "wrong", said)


def when_compiled(function):
    """Return a loss that calls `function` while a graph is traced, and is right in a plain call."""

    def loss(input, target, **options):
        return (function if torch.compiler.is_compiling() else crossent.formula)(input, target, **options)

    return loss


@pytest.mark.parametrize("name", ["export", "trace", "trace_dynamic", "compile"])
def test_an_ignored_class_that_is_not_masked_in_a_graph_is_found(name):
    # pytorch#95794 reports this mistake in torch's own decomposition.
    found = findings_of(name, when_compiled(counts_an_ignored_row))
    assert {one.of.split(" ")[0] for one in found} == ({"loss"} if name == "export" else {"loss", "gradient"})


@pytest.mark.parametrize(("name", "said"), [("export", "data-dependent"), ("trace", "Data-dependent branching")])
def test_a_python_branch_on_a_tensor_is_refused_in_a_graph(name, said):
    def loss(input, target, ignore_index=-100, **options):
        if (target == ignore_index).any():
            return crossent.formula(input, target, ignore_index=ignore_index, **options)
        return crossent.one_hot(input, target, ignore_index=ignore_index, **options)

    assert_only(findings_of(name, loss), "refused", said)


def test_elements_that_compiled_code_never_writes_are_found():
    # In Liger-Kernel#1338, the kernel returns early for ignored rows, so their losses are old numbers in memory.
    @when_compiled
    def loss(input, target, ignore_index=-100, **options):
        losses = crossent.formula(input, target, ignore_index=ignore_index, **options)
        return torch.where(target == ignore_index, torch.empty_like(losses), losses)

    # The allocator mostly returns the memory that was filled with NaN, but not always.
    found = [one for _ in range(8) for one in findings_of("trace", loss)]
    assert {one.of.partition(" ")[0] for one in found} == {"loss"}


def constant_for(rows):
    @when_compiled
    def loss(input, target, reduction="mean", **options):
        return crossent.formula(input, target, reduction="sum", **options) / rows

    return loss


@pytest.mark.parametrize("backend", ["trace", "compile"])
def test_a_size_that_is_no_variable_is_found_at_the_next_size(backend):
    case = Case("float32", (7, 5))
    assert not findings_of(backend, constant_for(7), case)
    found = findings_of(f"{backend}_dynamic", constant_for(7), case)
    assert {one.of for one in found} == {f"{of} on float32-11x5-normal-int64-mean-seed1" for of in ("loss", "gradient")}


def test_the_next_size_gets_no_input_that_needs_a_missing_feature():
    def finite(input, target, **options):
        return crossent.formula(input.nan_to_num(), target, **options)

    case = Case("float32", (3, 5), values="positive_inf")
    assert case.build().input.isfinite().all()
    (subject,) = load(finite, without={"nonfinite"})
    part = run(subject, case.id, [CHECKS["trace_dynamic"]]).subjects[0]
    assert [str(finding) for finding in part.findings] == []
    assert part.not_run == {"trace_dynamic": {"is declared without nonfinite": 1}}


def test_a_refusal_at_the_next_size_names_the_case():
    @when_compiled
    def loss(input, target, **options):
        assert input.shape[0] == 7, "seven rows"
        return crossent.formula(input, target, **options)

    assert_only(findings_of("trace_dynamic", loss), "refused", "on float32-11x5-normal")


def test_a_class_out_of_range_that_compiled_code_takes_for_another_is_found():
    @when_compiled
    def loss(input, target, ignore_index=-100, **options):
        index = torch.where(target == ignore_index, target, target.clamp(max=4))
        return crossent.formula(input, index, ignore_index=ignore_index, **options)

    assert_only(findings_of("compiled_error", loss), "accepted", "the call with class 5, outside of 0 to 4, returned [")


def test_a_range_check_that_a_compiler_drops_is_found():
    # The gathered value is not used, and a comparison accepts any class.
    def loss(input, target, ignore_index=-100, **options):
        index = torch.where(target == ignore_index, 0, target)
        input.new_ones(5).gather(0, index)
        hot = index.unsqueeze(-1) == torch.arange(5)
        losses = -torch.where(hot, F.log_softmax(input, -1), 0.0).sum(-1)
        return torch.where(target == ignore_index, 0.0, losses)

    found = findings_of("compiled_error", loss)
    assert {one.kind for one in found} == {"accepted"}
    calls = {one.message.partition(", outside of 0 to ")[0] for one in found}
    assert calls == {"the call with class 5", "the call with class -1"}


# --- Correct code passes ---------------------------------------------------------------------------------------------


def judged(subjects, chosen, checks):
    """Return the report of the checks of a single call and of these checks, with known failures of torch marked."""
    return run(subjects, chosen, (*SINGLE, *checks), known=torch_list())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forms_and_torch_are_right_under_the_transforms_that_cost_little(dtype):
    cases = [case for case in ALL if case.dtype == dtype][::2]
    made = judged(RIGHT, cases, [CHECKS[name] for name in INSTANT])
    assert not made.findings, made
    for part in made.subjects[:3]:
        assert {check for check, _ in part.tallies} >= set(INSTANT)


@pytest.mark.parametrize(("name", "every"), [("export", 11), ("trace", 22), ("trace_dynamic", 44)])
def test_the_forms_and_torch_are_right_where_a_graph_is_made(name, every):
    skip_unless_check_runs(name)
    made = judged([FORM_SUBJECTS["formula"], FORM_SUBJECTS["one_hot"], TORCH], ALL[26 % every :: every], [CHECKS[name]])
    assert not made.findings, made
    assert all(part.tallies[name, "float32"].ran for part in made.subjects)


def test_compiled_code_of_the_forms_is_right():
    skip_unless_check_runs("compile")
    raising = [] if _why_no_error() else ["compiled_error"]
    made = judged(
        [FORM_SUBJECTS["formula"]], [CASE], [CHECKS[name] for name in ("compile", "compile_dynamic", *raising)]
    )
    assert not made.findings, made
    assert not made.subjects[0].not_run


def test_uint8_targets_are_refused_by_torch_where_a_graph_is_made_and_that_is_expected():
    skip_unless_check_runs("trace")
    checks = [CHECKS[name] for name in ("vmap", "meta", "export", "trace")]
    made = judged([TORCH], [Case("float32", (7, 5), target="uint8")], checks)
    found = {finding.check: finding for finding in made.subjects[0].findings}
    assert set(found) == {check.name for check in checks}
    assert all(finding.expected for finding in found.values())
    # The message of Dynamo says only that there was an error; the finding also names the first error.
    assert "gather" in found["trace"].message
    assert "uint8" in found["trace"].message


def test_a_subject_that_is_not_transformed_says_why():
    made = judged([FORM_SUBJECTS["scalar"]], [Case("float32", (5,))], CHECKS.values())
    reasons = {check: dict(why) for check, why in made.subjects[0].not_run.items()}
    assert {reason for check in CHECKS.keys() - {"vmap"} for reason in reasons[check]} == {
        "computes with Python numbers, not with tensors"
    }


# --- Checks that cannot run here -------------------------------------------------------------------------------------


def not_run(name, subject=FORM_SUBJECTS["formula"], case=CASE):
    with pytest.raises(NotRunError) as caught:
        list(CHECKS[name].run(trial_of(Question(case), subject)))
    return str(caught.value)


def test_no_compiler_is_no_finding(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for name in ("compile", "compile_dynamic", "compiled_error"):
        reason = "needs the C++ compiler no-such-compiler, which is not found; install it, or set CXX to another"
        assert not_run(name) == reason


def test_a_torch_that_does_not_compile_says_why(monkeypatch):
    def old(*arguments, **options):
        raise RuntimeError("Python 3.11+ not yet supported for torch.compile")

    monkeypatch.setattr(torch, "compile", old)
    _why_compile_fails.cache_clear()
    try:
        assert "Python 3.11+ not yet supported for torch.compile" in not_run("trace")
    finally:
        _why_compile_fails.cache_clear()


def test_with_a_disabled_compiler_the_checks_are_skipped(monkeypatch):
    # A disabled torch.compile returns its argument, so every check would pass.
    import torch._dynamo

    reason = "needs torch.compile, which TORCHDYNAMO_DISABLE=1 or torch._dynamo.config.disable turns off"
    with torch._dynamo.config.patch(disable=True):
        assert not_run("trace") == reason
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert not_run("trace") == reason


def test_compiled_code_that_refuses_a_right_call_is_a_refusal():
    skip_unless_check_runs("compile")
    uint8 = Case("float32", (7, 5), target="uint8")
    (finding,) = run(TORCH, uint8, [CHECKS["compiled_error"]]).subjects[0].findings
    assert finding.kind == "refused"


def test_a_uint8_target_that_can_hold_no_class_out_of_range_is_not_judged():
    for classes, ignored in ((256, "kept"), (255, "ignored")):
        case = Case("float32", (3, classes), target="uint8", ignored=ignored)
        assert wrong_classes(case.build()) == []
        report = run(crossent.formula, case, [CHECKS["compiled_error"]])
        reason = "gets a uint8 target, which cannot hold a class out of range"
        assert report.subjects[0].not_run == {"compiled_error": {reason: 1}}


def test_an_error_in_the_second_call_of_compiled_code_names_the_call():
    raised = Raised.of(IndexError("index 5"))
    assert str(refused_when_compiled(raised, "in a second call")) == "IndexError: index 5, in a second call"
    assert str(refused_when_compiled(raised, "")) == "IndexError: index 5"


# --- State after a check ---------------------------------------------------------------------------------------------


def test_a_check_restores_the_global_state():
    for name in ("export", "trace", "compile"):
        skip_unless_check_runs(name)
    loggers = {name: one.disabled for name, one in logging.root.manager.loggerDict.items() if hasattr(one, "disabled")}
    before = sys.getrecursionlimit(), list(warnings.filters)
    states = snapshot()
    for name in ("func_grad", "vmap", "autocast", "meta", "export", "trace", "compile"):
        list(CHECKS[name].run(trial_of(Question(CASE), FORM_SUBJECTS["formula"])))
    assert (sys.getrecursionlimit(), list(warnings.filters)) == before
    assert restore(states) == []
    assert {name: logging.getLogger(name).disabled for name in loggers} == loggers


def test_torch_does_not_time_the_guards_of_a_graph_and_does_again_afterwards(monkeypatch):
    skip_unless_check_runs("trace")
    import torch._dynamo.guards

    timed = []
    if not hasattr(torch._dynamo.guards, "profile_guard_manager"):
        pytest.skip("needs a torch that times guards")
    monkeypatch.setattr(torch._dynamo.guards, "profile_guard_manager", lambda *guards: timed.append(guards) or 0.0)
    assert not judged([FORM_SUBJECTS["formula"]], [CASE], [CHECKS["trace"]]).findings
    assert timed == []
    torch._dynamo.reset()
    torch.compile(torch.sin, backend=TRACER)(torch.ones(3))
    assert timed


def test_messages_of_torch_are_silenced_and_other_messages_are_not():
    loggers = [logging.getLogger("torch.fx"), logging.getLogger("torchvision"), logging.getLogger("crossent")]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn_explicit("of torch", UserWarning, "file", 1, module="torch._dynamo.variables")
            warnings.warn_explicit("of another", UserWarning, "file", 1, module="torchvision")
            assert [logger.disabled for logger in loggers] == [True, False, False]
    assert [str(one.message) for one in shown] == ["of another"]
    assert not any(logger.disabled for logger in loggers)


def test_subnormal_numbers_that_a_subject_flushes_are_a_finding():
    def loss(*arguments, **options):
        torch.set_flush_denormal(True)
        return crossent.formula(*arguments, **options)

    if not torch.set_flush_denormal(False):
        pytest.skip("needs a processor that flushes")
    made = judged([Subject("mine", loss)], [CASE], [])
    assert [finding.message for finding in made.findings] == ["the call changed the flush of subnormal numbers"]
    assert torch.tensor(2.0**-149) * 1 > 0


# --- The contract of compiled code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("promise", ["eager", "torch", "kernel"])
@pytest.mark.parametrize("grade", ["A", "B"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_contract_of_code_for_cuda_adds_what_triton_does(promise, grade, dtype):
    own = contract(promise, grade, dtype, device="cuda")
    triton = contract_of_compiled_code(own, INDUCTOR, "cuda")
    assert contract_of_compiled_code(own, TRACER, "cuda") == own
    for case in ALL[::9]:
        terms = Question(Case.of(case.id)).exact.terms
        wide, narrow = Bounds(terms, triton), Bounds(terms, own)
        for of in ("loss", "gradient"):
            assert (getattr(wide, of) >= getattr(narrow, of)).all(), (case.id, of)


@pytest.mark.parametrize("promise", ["eager", "torch", "kernel"])
@pytest.mark.parametrize("grade", ["A", "B"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_contract_of_code_for_a_cpu_allows_any_order_of_float32_and_float64_rows(promise, grade, dtype):
    own = contract(promise, grade, dtype, rows=1000)
    assert contract_of_compiled_code(own, TRACER, "cpu") == own
    expected = own if own.stored else replace(own, row_order=ANY_ORDER)
    assert contract_of_compiled_code(own, INDUCTOR, "cpu") == expected
    assert (own == expected) == (promise != "torch" or dtype in ("float16", "bfloat16"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [2, 15, 16, 600, 2**13, 2**17])
def test_an_order_of_half_precision_rows_covers_every_order_in_float32(dtype, rows):
    """The error of a sum over rows in float32 is at most `rows · 2^-24` of the sum."""
    exact = Question(Case(dtype, (rows, 2), reduction="sum")).exact
    own = contract("torch", "B", dtype, rows=rows)
    assert own.row_order != ANY_ORDER
    assert exact.bounds(own.when_compiled).loss >= rows * 2**-24 * exact.loss.hi


def sequential(input, target, reduction="mean", **options):
    """Return torch's loss with the rows added up in the order of Inductor's code: one after another, in 16 lanes."""
    losses = F.cross_entropy(input, target, reduction="none", **options).view(-1, 16)
    total = losses[0]
    for lanes in losses[1:]:
        total = total + lanes
    return total.sum() / (losses.numel() if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_compiled_loss_of_torch_may_add_up_rows_in_any_order(reduction):
    """Equal losses, whose rounding errors all have one sign, are the hardest for a sum in this order."""
    case = Case("float32", (2**16, 7), "flat", reduction=reduction)
    checks = [CHECK_OF["call"], CHECK_OF["loss"]]
    compiled, not_compiled = (
        run(replace(TORCH, name="sequential", loss=sequential, compiled=compiled), [case], checks)
        for compiled in (True, False)
    )
    assert [str(finding) for finding in compiled.findings] == []
    assert {finding.check for finding in not_compiled.findings} == {"loss"}


def test_a_device_whose_autocast_raises_for_float16_has_no_float16(monkeypatch):
    """The check uses autocast to bfloat16 if autocast to float16 raises an error, as on a CPU with torch 2.0."""

    def autocast(kind, dtype):
        raise RuntimeError("Currently, AutocastCPU only support Bfloat16")

    monkeypatch.setattr(torch, "autocast", autocast)
    assert _casts_to_float16.__wrapped__(torch.device("cpu")) is False
