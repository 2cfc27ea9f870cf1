"""Test comparisons with exact values: the message of a difference, the grade of a result, and missing evidence."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.running import check_on, compare, run
from support.subjects import TENSOR_FORMS

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.cases.inputs import Inputs
from crossent.numerics.oracle.arithmetic import Ball
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.subjects.subject import Subject
from crossent.trials.call import Result, evaluate
from crossent.trials.difference import Difference, _constants
from crossent.trials.exact import solve


def inputs(logits, target, dtype=torch.float32, **options):
    options = {"reduction": "none", "label_smoothing": 0.0, **options}
    logits, target = torch.tensor(logits, dtype=dtype), torch.tensor(target)
    upstream = torch.ones(target.shape if options["reduction"] == "none" else (), dtype=dtype)
    return Inputs(logits, target, options, upstream)


def differences(loss, case, grade="A", promise="eager"):
    return compare(evaluate(loss, case), solve(case), grade, promise)


def sample(dtype, every=23):
    """Return one case in `every` cases of a dtype. Leave out uint8 targets, because torch refuses some such targets."""
    return [case for case in grid([dtype]) if case.target != "uint8"][::every]


def stored_in_half(input, target, **options):
    """Return a loss computed from log-probabilities that are rounded to the dtype of the logits."""
    return crossent.formula(F.log_softmax(input, min(1, input.dim() - 1)), target, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forms_reach_grade_a(dtype):
    for form in TENSOR_FORMS:
        report = run(form, sample(dtype))
        assert report.ok, report
        assert report.subjects[0].grades == {dtype: "A"}


@pytest.mark.parametrize(("dtype", "grade"), [("bfloat16", "B"), ("float32", "A"), ("float64", "A")])
def test_torch_reaches_its_promised_grade(dtype, grade):
    report = run(TORCH, sample(dtype))
    assert report.ok, report
    assert report.subjects[0].grades == {dtype: grade}


def test_log_probabilities_stored_in_bfloat16_are_grade_b_and_a_finding_if_the_subject_promises_a():
    report = run(stored_in_half, sample("bfloat16"))
    assert report.subjects[0].grades == {"bfloat16": "B"}
    assert report.findings
    declared = Subject("mine", stored_in_half, grades={"bfloat16": "B"})
    assert run(declared, sample("bfloat16")).ok


def test_a_wrong_loss_reaches_no_grade():
    report = run(lambda *args, **options: crossent.formula(*args, **options) * 1.1, sample("bfloat16"))
    assert report.subjects[0].grades == {"bfloat16": "F"}


def test_a_difference_has_its_index_and_its_size():
    case = inputs([[1.0, 2.0], [3.0, 5.0]], [0, 1])

    def off_in_the_second_row(*args, **options):
        return crossent.formula(*args, **options) + torch.tensor([0.0, 2.0**-10])

    loss, gradient = differences(off_in_the_second_row, case)
    assert loss.index == (1,)
    assert (loss.elements, loss.mismatched) == (2, 1)
    assert 0.99 * 2.0**-10 < loss.error < 1.01 * 2.0**-10
    assert loss.ratio == loss.error / loss.bound > 1000
    assert loss.ulp == loss.error / 2.0**-26  # the loss 0.1269 is between 2^-3 and 2^-2, so an ulp is 2^-26
    assert gradient.ratio <= 1
    for said in ("1 / 2 (50.0%)", "at index (1,)", f"{loss.error:.6g}", f"{loss.bound:.3g}"):
        assert said in str(loss)


@pytest.mark.parametrize("sizes", [(5,), (7, 5), (3, 5, 4), (2, 3, 2, 2, 3)])
def test_the_index_of_a_difference_is_an_index_into_the_result(sizes):
    case = Case("float64", sizes, reduction="none").build()
    good = evaluate(crossent.formula, case)
    for check in ("loss", "gradient"):
        bad = {name: getattr(good, name).clone() for name in ("loss", "gradient")}
        at = tuple(size - 1 for size in bad[check].shape)
        bad[check][at] += 1
        found = {d.of: d for d in compare(Result(**bad), solve(case))}
        assert found[check].index == at
        assert bad[check][at].item() == found[check].got


@pytest.mark.parametrize("got", [float("nan"), float("inf"), 0.0])
def test_nan_infinity_and_zero_are_wrong_if_the_exact_value_is_another_number(got):
    case = inputs([[1.0, 2.0]], [0])
    (loss,) = compare(Result(torch.tensor([got]), None), solve(case))
    assert loss.ratio > 1


@pytest.mark.parametrize("got", [0.0, 1.0, float("inf"), -float("inf")])
def test_a_number_is_wrong_if_the_exact_value_is_nan(got):
    case = inputs([[1.0, float("nan")]], [0])
    (loss,) = compare(Result(torch.tensor([got]), None), solve(case))
    assert loss.ratio == np.inf


def test_an_infinite_exact_value_needs_the_same_infinity():
    case = inputs([[1.0, -float("inf")]], [1])
    for got, ratio in ((float("inf"), 0.0), (-float("inf"), np.inf), (3e38, np.inf), (float("nan"), np.inf)):
        (loss,) = compare(Result(torch.tensor([got]), None), solve(case))
        assert loss.ratio == ratio


def test_a_result_that_may_overflow_is_counted_and_not_compared():
    case = inputs([[0.0, 60000.0]] * 2, [0, 0], torch.float16, reduction="sum")
    for difference in differences(crossent.formula, case):
        assert difference.ratio <= 1
    loss, _ = differences(crossent.formula, case)
    assert loss.not_judged == {"an intermediate may overflow": 1}
    assert loss.elements == 1


@pytest.mark.parametrize(
    ("logits", "target", "vacuous"),
    [
        ([[0.3, 1.0], [2.0, -1.0]], [0, 1], (False, False)),
        ([[0.3, 1.0], [0.3, 1.0]], [0, 0], (True, False)),  # both losses are equal
        ([[0.0, 1e4], [1e4, 0.0]], [0, 1], (True, False)),  # both losses are 1e4
        ([[0.0, 1e4], [2e4, 0.0]], [1, 0], (True, True)),  # p = 1 at the true classes: loss and gradient are zero
        ([[0.3], [0.4]], [0, 0], (True, True)),  # one class: zeros
        ([[0.3, 1.0], [2.0, -1.0]], [-100, -100], (True, True)),
    ],
)
def test_a_comparison_that_zeros_or_a_constant_would_pass_is_no_evidence(logits, target, vacuous):
    assert tuple(d.vacuous for d in differences(crossent.formula, inputs(logits, target))) == vacuous


def test_a_comparison_that_only_the_middle_of_the_bounds_would_pass_is_no_evidence():
    """A loss of 0.75 in each row passes here, but neither zeros nor the median of the exact values pass."""
    exact = Ball(np.array([0.0, 0.0, 10.0]), np.zeros(3), np.zeros(3))
    for last, passing in ((9.5, [0.75]), (8.0, [])):
        allowed = np.array([1.0, 1.0, last])
        constants = [float(one[0]) for one in _constants(exact, allowed, np.zeros(3, bool))]
        assert [one for one in constants if (exact.distance(np.full(3, one)) <= allowed).all()] == passing


def test_a_run_without_evidence_is_not_ok():
    nothing = [
        case for case in grid() if case.classes == 1 and case.reduction == "sum" and case.values in ("normal", "flat")
    ]
    report = run(FORM_SUBJECTS["formula"], nothing)
    assert not report.findings
    assert not report.ok
    assert "NO EVIDENCE" in str(report)


def test_every_dtype_has_evidence_for_loss_and_gradient():
    for dtype in DTYPES:
        tallies = run(FORM_SUBJECTS["formula"], sample(dtype)).subjects[0].tallies
        for check in ("loss", "gradient"):
            assert tallies[check, dtype].vacuous < tallies[check, dtype].ran


DECLARED = "\nIf this is intended, declare it: --without arguments, in Python without=['arguments']"


def test_a_subject_that_writes_into_its_arguments_is_found_and_does_not_affect_other_subjects():
    def zeroes(name):
        def loss(input, target, **options):
            result = crossent.formula(input, target.clone(), **{k: _copied(v) for k, v in options.items()})
            written = {"input": input, "target": target, "weight": options.get("weight", target)}[name]
            with torch.no_grad():
                written.zero_()
            return result

        return Subject(name, loss)

    subjects = [*map(zeroes, ("input", "target", "weight")), FORM_SUBJECTS["formula"]]
    case = next(c for c in sample("float32", 1) if c.weight == "weighted" and c.sizes == (7, 5) and c.target == "int64")
    *wrote, right = run(subjects, case).subjects
    for entry in wrote:
        kinds = {finding.kind: finding.message for finding in entry.findings}
        assert kinds["changed_input"] == f"the call wrote into {entry.name} in the forward pass{DECLARED}"
    assert not right.findings


def scales_upstream(input, target, **options):
    """Return the right loss, whose backward pass writes into the upstream gradient, as some kernels do."""
    loss = crossent.formula(input, target, **options)
    loss.register_hook(lambda upstream: upstream.mul_(3).clone().div_(3))
    return loss


def sets_grad(input, target, **options):
    """Return the right loss, and set `input.grad` in the forward pass."""
    loss = crossent.formula(input, target, **options)
    if input.requires_grad:
        (input.grad,) = torch.autograd.grad(loss.sum(), input, retain_graph=True)
    return loss


def goes_backward(input, target, **options):
    loss = crossent.formula(input, target, **options)
    if input.requires_grad:
        loss.sum().backward(retain_graph=True, inputs=[input])
    return loss


def sets_requires_grad_of_weight(input, target, weight=None, **options):
    if weight is not None:
        weight.requires_grad_()
    return crossent.formula(input, target, weight, **options)


ROWS, WEIGHTED = "float32-7x5-normal-int64-none-rows", "float32-7x5-normal-int64-mean-weighted"


@pytest.mark.parametrize(
    ("loss", "case", "said"),
    [
        (scales_upstream, ROWS, "the call wrote into the upstream gradient in the backward pass"),
        (
            scales_upstream,
            "float64-3x5x4-normal-int64-sum-scalar",
            "the call wrote into the upstream gradient in the backward pass",
        ),
        (sets_grad, ROWS, "the call set the .grad of input"),
        (goes_backward, WEIGHTED, "the call set the .grad of input"),
        (sets_requires_grad_of_weight, WEIGHTED, "the call changed the requires_grad of weight"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_a_change_of_an_argument_is_found(loss, case, said):
    found = {finding.check: finding.message for finding in run(loss, [Case.of(case)]).findings}
    assert found == {"arguments": f"{said}{DECLARED}"}
    assert run(crossent.formula, [Case.of(case)]).subjects[0].findings == []


def _copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


class SparseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream.to_sparse()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda *args, **options: 0.5, "loss: got float; expected a dense tensor of class torch.Tensor"),
        (lambda *args, **options: None, "loss: got NoneType; expected a dense"),
        (lambda *args, **options: crossent.formula(*args, **options).detach(), "detached from the logits"),
        (lambda *args, **options: sys.exit(0), "SystemExit: 0"),
        (lambda *args, **options: crossent.formula(*args, **options).to_sparse(), "dense"),
        (
            lambda logits, *args, **options: crossent.formula(SparseGradient.apply(logits), *args, **options),
            "gradient of the logits: got Tensor with layout torch.sparse_coo; expected a dense tensor",
        ),
        (lambda logits, target: logits, "unexpected keyword"),
    ],
)
def test_a_subject_without_a_valid_loss_is_a_finding_in_one_line(loss, said):
    (finding,) = run(loss, [next(c for c in sample("float32", 1) if c.reduction == "none")]).findings
    assert said in finding.message
    assert "\n" not in finding.message


@pytest.mark.parametrize(
    "state",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_a_run_does_not_depend_on_the_state_of_torch(state):
    check = check_on(list(grid(["bfloat16"]))[::97])
    threads = torch.get_num_threads()
    with state():
        report = check("formula", dtypes="bfloat16")
    assert not report.findings, report
    assert torch.get_num_threads() == threads


def test_a_subject_or_dtype_that_is_given_twice_runs_once():
    check = check_on(list(grid(["float64"]))[::97])
    once = check("formula", dtypes=["float64"])
    assert check("formula", "formula", dtypes=iter(["float64", "float64"])).ran == once.ran > 0


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"dtypes": ["float8"]}, ValueError, "float8"),
        ({"device": "cuda:99"}, RuntimeError, "cuda:99"),
        ({"device": "meta"}, RuntimeError, "meta"),
        ({"device": "toaster"}, RuntimeError, "toaster"),
    ],
)
def test_check_refuses_bad_arguments_in_one_line(arguments, error, named):
    with pytest.raises(error, match=named) as caught:
        crossent.check("formula", **arguments)
    assert "\n" not in str(caught.value)
    for subject, wrong in (("formulae", ValueError), (3, TypeError)):
        with pytest.raises(wrong, match="subject: got"):
            crossent.check(subject)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_partial_sums_in_half_precision_are_found_in_torch(dtype):
    """If rows 0, 16, 32, … are ignored, torch sums long blocks of rows in half precision, and loses half of the sum."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(10, (5000,), generator=random)
    target[::16] = -100
    logits = torch.randn(5000, 10, generator=random)
    case = inputs(logits.tolist(), target.tolist(), dtype, reduction="mean")
    assert all(d.ratio <= 1 for d in differences(crossent.formula, case))
    if _has_half_on_cpu(dtype):
        loss, _ = differences(TORCH.loss, case, "B", "torch")
        assert loss.ratio > 1


def test_a_count_beyond_float16_is_found_in_torch():
    """With 70,000 rows, the denominator overflows float16, and loss and gradient are zero without an error."""
    case = inputs([[0.0, 0.0]] * 70000, [0] * 70000, torch.float16, reduction="mean")
    assert all(d.ratio <= 1 for d in differences(crossent.formula, case))
    if _has_half_on_cpu(torch.float16):
        loss, _ = differences(TORCH.loss, case, "B", "torch")
        assert loss.got == 0.0
        assert loss.ratio > 1


def _has_half_on_cpu(dtype):
    """Return whether torch computes a softmax in this dtype on a CPU. torch 2.0 has no float16 softmax there."""
    try:
        F.log_softmax(torch.zeros(1, 2, dtype=dtype), 1)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_may_be_scaled_before_or_after_the_subtraction(dtype):
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, target, after):
            log_probs = F.log_softmax(logits, -1)
            ctx.save_for_backward(log_probs.exp(), F.one_hot(target, logits.shape[-1]))
            ctx.after = after
            return F.nll_loss(log_probs, target, reduction="none")

        @staticmethod
        def backward(ctx, upstream):
            probs, hot = ctx.saved_tensors
            scale = upstream.unsqueeze(-1)
            return ((probs - hot) * scale if ctx.after else probs * scale - hot * scale), None, None

    case = Case(dtype, (200, 10), reduction="none", upstream="rows").build()
    for after in (False, True):
        _, gradient = differences(lambda x, y, after=after, **options: Scaled.apply(x, y, after), case)
        assert gradient.ratio <= 1, (after, str(gradient))


def test_a_huge_share_of_the_bound_is_infinite():
    case = inputs([[0.0, 3.0]], [0], torch.float64)
    loss, _ = differences(lambda x, y, **options: F.cross_entropy(x, y, **options) * 1e300, case)
    assert loss.ratio == np.inf


@pytest.mark.parametrize("values", ["nan_ignored", "inf_ignored"])
@pytest.mark.parametrize(("given", "right"), [(float("nan"), True), (0.0, True), (1.0, False)])
def test_the_gradient_of_an_ignored_row_without_a_softmax_is_zero_or_nan(values, given, right):
    # torch returns NaN, but its documentation says that the row does not contribute. Liger-Kernel returns 0.
    case = Case.of(f"float32-7x5-{values}-int64-sum-ignored_default").build()
    ignored = case.target == -100
    result = evaluate(crossent.formula, case)
    gradient = result.gradient.where(~ignored[:, None], given)
    _, difference = compare(Result(result.loss, gradient), solve(case))
    assert (difference.ratio <= 1) == right, str(difference)


def test_the_gradient_of_a_kept_row_without_a_softmax_is_not_zero():
    case = Case.of("float32-7x5-nan-int64-sum").build()
    result = evaluate(crossent.formula, case)
    _, difference = compare(Result(result.loss, result.gradient.nan_to_num(0.0)), solve(case))
    assert difference.ratio == np.inf


@pytest.mark.parametrize(
    ("error", "bound", "said"),
    [
        (1.5, 1.00555, "1.5 (up to 1.01 allowed)"),
        (1.00567, 1.00555, "1.00567 (up to 1.00555 allowed)"),
        (1.0000001, 1.0, "1.0000001 (up to 1.0 allowed)"),
    ],
)
def test_the_message_shows_a_bound_below_the_error(error, bound, said):
    found = Difference("loss", "float32", (), error, 0.0, 0.0, bound, error, error / bound, 1.0, 1, 1, {}, False)
    assert f"Worst difference: {said}\n" in str(found)
