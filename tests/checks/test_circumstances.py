"""Checks of a call in other circumstances, such as under no_grad or in a thread.

Each check catches its own kind of wrong cross-entropy and no other kind, and correct code passes.
"""

import threading

import pytest
import torch
from support.checks import (
    CIRCUMSTANCES,
    DERIVATIVES,
    DETERMINISM,
    INVARIANTS,
    OPTIONS,
    RELATIONS,
    SINGLE,
    TWO_BACKWARDS,
)
from support.repro.wrong_subjects import LOOKS_AT_ITS_LOSS, function_of
from support.running import run

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.cases.operation import GRADIENTS
from crossent.checks import circumstances
from crossent.checks.circumstances import evaluate_in_threads
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH, TORCH_NLL
from crossent.subjects.loader import load
from crossent.subjects.subject import Subject

BEFORE = (*SINGLE, *INVARIANTS, *RELATIONS, *OPTIONS, *TWO_BACKWARDS, *DERIVATIVES, *DETERMINISM)
INDEX, ROWS = "float32-7x5-normal-int64-mean", "float32-7x5-normal-int64-none-weighted-rows"
DENSE = "float32-7x5-normal-probabilities-none-weighted-rows"
IGNORED_ROWS = "float32-7x5-normal-int64-none-ignored_default-rows"


def found(loss, case, checks):
    """Return the kind and the message of each finding of a loss, by check. The formula must pass these checks."""
    report, right = (run(of, case, checks) for of in (loss, crossent.formula))
    assert not right.findings, right.findings
    return {finding.check: (finding.kind, finding.message) for finding in report.findings}


def where(condition, change):
    """Return a right cross-entropy, except that `change` changes the result or input if `condition` is true."""

    def loss(input, target, **options):
        result = crossent.formula(input, target, **options)
        return change(result, input) if condition(input, target) else result

    return loss


def without_grad_mode(input, target):
    return not torch.is_grad_enabled()


def requires_no_gradient(input, target):
    return torch.is_grad_enabled() and not (input.requires_grad or target.requires_grad)


def only_target_requires(input, target):
    return not input.requires_grad


def has_a_gradient(input, target):
    return input.is_leaf and input.grad is not None


def in_inference_mode(input, target):
    return torch.is_inference_mode_enabled()


def is_non_leaf(input, target):
    return not input.is_leaf


def off_by_1_percent(loss, input):
    return loss * 1.01


def with_required_gradient(loss, input):
    return loss.clone().requires_grad_()


def with_a_further_dimension(loss, input):
    return loss[None]


def sets_requires_grad(loss, input):
    input.requires_grad_()
    return loss


def writes(loss, input):
    input.data[...] = 0
    return loss


def into_one_buffer():
    """Return a change that returns the same memory for all losses of a shape, as a CUDA graph does."""
    buffers = {}

    def change(loss, input):
        return buffers.setdefault(loss.shape, torch.empty_like(loss.detach())).copy_(loss.detach())

    return change


def detaches(input, target, **options):
    """Return the right loss, but detach the target if the logits require no gradient."""
    return crossent.formula(input, target if input.requires_grad else target.detach(), **options)


class Both(torch.autograd.Function):
    """A function whose backward pass assumes that logits and target both require a gradient."""

    @staticmethod
    def forward(ctx, input, target, options):
        with torch.enable_grad():
            ctx.leaves = input.detach().requires_grad_(), target.detach().requires_grad_(target.is_floating_point())
            ctx.loss = crossent.formula(*ctx.leaves, **options)
        return ctx.loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        wanted = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        gradients = torch.autograd.grad(ctx.loss, wanted, upstream, retain_graph=True)
        if len(wanted) == 2 and not all(ctx.needs_input_grad[:2]):
            gradients = gradients[::-1]
        return *gradients, *[None] * (3 - len(gradients))


def takes_both(input, target, **options):
    return Both.apply(input, target, options)


def adds_to_the_target(input, target, **options):
    """Set the .grad of the target even if the target requires no gradient."""
    loss = crossent.formula(input, target, **options)
    if target.is_floating_point() and not target.requires_grad:
        target.grad = torch.ones_like(target)
    return loss


class SharesMemory(torch.autograd.Function):
    """A function that keeps the data for its backward pass in one global variable for all calls."""

    pair = None

    @staticmethod
    def forward(ctx, input, target, options):
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            loss = crossent.formula(leaf, target, **options)
        SharesMemory.pair = leaf, loss
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        leaf, loss = SharesMemory.pair
        return torch.autograd.grad(loss, leaf, upstream, retain_graph=True)[0], None, None


def shares_memory(input, target, **options):
    return SharesMemory.apply(input, target, options)


def in_another_thread(input, target):
    return threading.current_thread() is not threading.main_thread()


def without_a_thread(input, target, **options):
    if in_another_thread(input, target):
        raise AttributeError("'_thread._local' object has no attribute 'buffer'")
    return crossent.formula(input, target, **options)


def replaces_nan(input, target, **options):
    logits = input.clone()
    if logits.requires_grad:
        logits.register_hook(lambda gradient: gradient.nan_to_num())
    return crossent.formula(logits, target, **options)


class Clamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream.clamp(-1e30, 1e30)


def clamps_infinity(input, target, **options):
    """Return the right loss, whose gradient has an infinite upstream gradient replaced by a large number."""
    return Clamped.apply(crossent.formula(input, target, **options))


class SavesItsLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        result = loss.clone()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, upstream):
        return torch.where(ctx.saved_tensors[0] < 0, 0, upstream)


class IsAView(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, upstream):
        return upstream


def multiplies_ignored_rows_by_zero(input, target, **options):
    """Return the right losses. The gradient of an ignored row is 0 times the upstream gradient."""
    losses = crossent.formula(input, target.clamp(min=0), **options)
    kept = target != -100
    return torch.where(kept, losses, 0).detach() + (losses - losses.detach()) * kept


WRONG = [
    ("no_grad", where(without_grad_mode, off_by_1_percent), ROWS, "wrong", "loss, under no_grad:"),
    ("no_grad", where(without_grad_mode, off_by_1_percent), INDEX, "wrong", "loss, under no_grad:"),
    (
        "no_grad",
        where(in_inference_mode, off_by_1_percent),
        DENSE,
        "wrong",
        "loss, under inference_mode:",
    ),
    ("no_grad", where(requires_no_gradient, off_by_1_percent), ROWS, "wrong", "loss, without requires_grad:"),
    (
        "no_grad",
        where(without_grad_mode, with_required_gradient),
        INDEX,
        "wrong",
        "loss, under no_grad: got requires_grad=True; expected requires_grad=False",
    ),
    ("no_grad", where(without_grad_mode, with_a_further_dimension), INDEX, "wrong", "loss, under no_grad: got "),
    (
        "no_grad",
        where(only_target_requires, sets_requires_grad),
        INDEX,
        "changed_input",
        "under inference_mode: the call changed the requires_grad of input",
    ),
    ("no_grad", where(without_grad_mode, writes), ROWS, "changed_input", "under no_grad: the call wrote into input"),
    *(
        (
            "no_grad",
            where(condition, into_one_buffer()),
            case,
            "not_repeated",
            f"loss, {way}: a later call writes into the result of the first call",
        )
        for condition, case, way in (
            (without_grad_mode, ROWS, "under no_grad"),
            (in_inference_mode, INDEX, "under inference_mode"),
            (requires_no_gradient, DENSE, "without requires_grad"),
        )
    ),
    ("non_leaf", where(is_non_leaf, off_by_1_percent), INDEX, "wrong", "loss:"),
    (
        "non_leaf",
        where(is_non_leaf, writes),
        ROWS,
        "changed_input",
        "the call changed `input` in place; `input` is not a leaf in this call",
    ),
    ("alone", takes_both, DENSE, "wrong", "gradient of the logits, with requires_grad only for the logits:"),
    (
        "alone",
        detaches,
        DENSE,
        "wrong",
        "loss: got requires_grad=False; expected requires_grad=True, since requires_grad is True for the target",
    ),
    (
        "alone",
        adds_to_the_target,
        DENSE,
        "wrong",
        "gradient of the target: got a tensor; expected None, since requires_grad is True only for the logits",
    ),
    (
        "circumstances",
        replaces_nan,
        INDEX,
        "wrong",
        "gradient of the logits, with an upstream gradient of NaN: got 35 elements without NaN, of 35; expected NaN in "
        "each element that is not 0 with the upstream gradient of the case",
    ),
    (
        "circumstances",
        clamps_infinity,
        INDEX,
        "wrong",
        "gradient of the logits, with an upstream gradient of inf: got 35 finite elements, of 35; expected inf or NaN "
        "in each element that is not 0 with the upstream gradient of the case",
    ),
    (
        "circumstances",
        function_of(LOOKS_AT_ITS_LOSS),
        INDEX,
        "wrong",
        "gradient of the logits, with the loss negated in place",
    ),
    (
        "circumstances",
        multiplies_ignored_rows_by_zero,
        IGNORED_ROWS,
        "wrong",
        "gradient of the logits, with an upstream gradient of NaN in ignored rows",
    ),
    (
        "circumstances",
        where(has_a_gradient, off_by_1_percent),
        INDEX,
        "wrong",
        "loss, with logits that have a .grad",
    ),
    ("threads", shares_memory, ROWS, "wrong", "thread"),
    ("threads", where(in_another_thread, off_by_1_percent), INDEX, "wrong", "loss, in a thread:"),
    ("threads", without_a_thread, INDEX, "refused", "no attribute 'buffer'"),
]


each_wrong_cross_entropy = pytest.mark.parametrize(
    ("check", "wrong", "case", "kind", "text"), WRONG, ids=lambda one: getattr(one, "__name__", str(one)[:40])
)


@each_wrong_cross_entropy
def test_a_wrong_cross_entropy_is_caught_by_its_check(check, wrong, case, kind, text):
    of, message = found(wrong, case, (*SINGLE[:2], *(one for one in CIRCUMSTANCES if one.name == check)))[check]
    assert of == kind
    assert text in message


def test_a_function_declared_not_repeatable_may_overwrite_its_loss():
    loss = where(without_grad_mode, into_one_buffer())
    checks = [one for one in CIRCUMSTANCES if one.name == "no_grad"]
    for lacks, expected in (((), ["not_repeated"]), (("repeatable",), [])):
        subject = Subject("mine", loss, lacks=dict.fromkeys(lacks, "returns one buffer"))
        assert [finding.kind for finding in run(subject, INDEX, (*SINGLE[:2], *checks)).findings] == expected


def test_a_wrong_shape_in_the_call_with_an_upstream_gradient_of_nan_is_a_finding(monkeypatch):
    calls = []

    def check_not_finite(trial):
        calls.append("with NaN")
        yield from real(trial)

    def loss(input, target, **options):  # the forward pass cannot know the upstream gradient
        value = crossent.formula(input, target, **options)
        return value.reshape(1) if calls else value

    real = circumstances._check_not_finite
    monkeypatch.setattr(circumstances, "_check_not_finite", check_not_finite)
    checks = [one for one in CIRCUMSTANCES if one.name == "circumstances"]
    (finding,) = run(loss, INDEX, (*SINGLE[:2], *checks)).findings
    assert finding.message.startswith("loss, with an upstream gradient of NaN: got float32 with shape (1,); expected")


@each_wrong_cross_entropy
def test_no_check_of_plain_calls_finds_these_wrong_cross_entropies(check, wrong, case, kind, text):
    """Among the checks of plain calls, only `two_backwards` and checks of second derivatives or tangents may fail.

    `two_backwards` finds losses that share data. Custom functions may lack second derivatives and tangents.
    """
    failed = set(found(wrong, case, (*BEFORE, *CIRCUMSTANCES)))
    assert check in failed
    assert not failed & {other.name for other in BEFORE} - {"two_backwards", "double_backward", "forward_ad"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_code_passes(dtype, seed):
    few = [case for case in grid([dtype], seed, "pairs") if case.target != "uint8"][::9]
    subjects = [*FORM_SUBJECTS.values(), *([TORCH, TORCH_NLL] if dtype != "float16" else [])]
    report = run(subjects, few, (*SINGLE[:2], *CIRCUMSTANCES))
    assert [f.id for f in report.findings if f.subject != "torch_nll" or f.check != "call"] == []  # pytorch#175084
    ran = {check for entry in report.subjects for outcome in entry.outcomes.values() for check in outcome.checks}
    assert ran >= {check.name for check in CIRCUMSTANCES}


@pytest.mark.parametrize("function", [SavesItsLoss, IsAView], ids=lambda function: function.__name__)
def test_a_loss_that_torch_lets_nobody_change_in_place_passes(function):
    def loss(input, target, **options):
        return function.apply(crossent.formula(input, target, **options))

    given, _ = Case("float32").build().requiring(("gradient",))
    value = loss(given.input, given.target)
    with pytest.raises(RuntimeError, match=r"inplace|in-place"):
        value.neg_().backward()
    checks = [one for one in CIRCUMSTANCES if one.name == "circumstances"]
    assert not run(loss, [INDEX, IGNORED_ROWS], (*SINGLE[:2], *checks)).findings


def test_an_exception_in_one_thread_is_raised_and_ends_the_other_thread():
    def loss(input, target, **options):
        if input.shape == (7, 5):
            raise KeyError("no")
        return crossent.formula(input, target, **options)

    inputs = [Case("float32", sizes).build() for sizes in ((3, 5), (7, 5), (4, 5))]
    with pytest.raises(KeyError, match="no"):
        evaluate_in_threads(loss, inputs, tuple(GRADIENTS))


def test_each_thread_returns_its_own_result():
    inputs = [Case("float32", seed=seed).build() for seed in range(4)]
    together = evaluate_in_threads(crossent.formula, inputs, tuple(GRADIENTS))
    assert [one.digest for one in together] == [
        evaluate_in_threads(crossent.formula, [one], tuple(GRADIENTS))[0].digest for one in inputs
    ]


def test_the_second_of_two_threads_gets_no_input_that_needs_a_missing_feature():
    def finite(input, target, **options):
        assert input.isfinite().all()
        return crossent.formula(input, target, **options)

    case = Case("float32", (3, 5), values="positive_inf")
    assert case.build().input.isfinite().all()
    assert not case.seeded(1).build().input.isfinite().all()
    (subject,) = load(finite, without={"nonfinite"})
    part = run(subject, case.id, CIRCUMSTANCES).subjects[0]
    assert [str(finding) for finding in part.findings] == []
    assert part.not_run["threads"] == {"is declared without nonfinite": 1}
