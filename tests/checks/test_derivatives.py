"""Double backward and forward mode: correct code passes, and the right check catches each wrong cross-entropy.

The wrong cross-entropies have the right loss and gradient, which are computed in float64. One line of a second
derivative or of a tangent is wrong.
"""

import functools
from dataclasses import dataclass, replace

import pytest
import torch
from support.checks import DERIVATIVES, SINGLE
from support.reference import REFERENCE
from support.running import trial_of
from support.subjects import TENSOR_FORMS
from support.waits import computes, older_than
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.forms.rows import lay_out
from crossent.run.soak.draws import draws
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.subjects.subject import Subject
from crossent.trials.along import MOST_LOGITS
from crossent.trials.difference import Difference
from crossent.trials.trial import Question, RefusedError

FORWARD_AND_BACKWARD = [check for check in SINGLE if check.name in ("call", "result", "loss", "gradient")]
CHECKS = {check.name: check for check in (*FORWARD_AND_BACKWARD, *DERIVATIVES)}
PART = 250  # cases of the soak that one test runs


def pytest_generate_tests(metafunc):
    if "part" in metafunc.fixturenames:
        # A case takes as long as in test_soak.py and tests less, so only a quarter as many cases run.
        count = metafunc.config.getoption("--crossent-soak") // 4
        parts = [(dtype, at, min(PART, count - at)) for dtype in DTYPES for at in range(0, count, PART)]
        metafunc.parametrize("part", parts, ids=lambda part: f"{part[0]}-{part[1]}")


@functools.cache
def question(case):
    """Return the question of a case. Its exact values are cached, since they take longer than a call."""
    return Question(Case.of(case) if isinstance(case, str) else case)


def run_check(check, subject, case):
    """Return all that a check yields for a subject on a case."""
    return list(CHECKS[check].run(trial_of(question(case), subject)))


def differences(subject, case):
    """Return the differences that both checks yield for a subject on a case, by the name of the derivative."""
    found = [one for check in ("double_backward", "forward_ad") for one in run_check(check, subject, case)]
    assert all(isinstance(one, Difference) for one in found), (case, found)
    return {one.of: one for one in found}


def findings_by_check(subject, cases):
    """Return the findings of a subject on some cases: texts by check."""
    found = {}
    for case in cases:
        for name in CHECKS:
            try:
                for one in run_check(name, subject, case):
                    if not isinstance(one, Difference):
                        found.setdefault(name, []).append(f"{one.kind}: {one.message}")
                    elif one.ratio > 1:
                        found.setdefault(name, []).append(f"{one.of}: {one}")
            except RefusedError as refusal:
                found.setdefault(name, []).append(f"refused: {refusal}")
    return found


# --- Right code passes --------------------------------------------------------------------------------------------


def takes(subject, case):
    """Return whether a subject takes a case: torch refuses some uint8 targets, and before 2.2 float16 on a CPU."""
    if subject is TORCH and not computes(case.dtype):
        return False
    return case.target != "uint8" or subject not in (TORCH, REFERENCE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forms_and_torch_have_the_exact_derivatives(dtype, seed):
    exceeded, worst, evidence = [], {}, set()
    for case in list(grid([dtype], seed, "pairs"))[seed % 2 :: 2]:
        for subject in (*TENSOR_FORMS, TORCH, REFERENCE):
            if not takes(subject, case):
                continue
            for of, one in differences(subject, case).items():
                worst[of] = max(worst.get(of, 0.0), one.ratio)
                evidence |= set() if one.vacuous else {of}
                if one.ratio > 1:
                    exceeded.append(f"{subject.name}: {of} of {case.id}\n{one}")
    print({of: round(ratio, 3) for of, ratio in worst.items()})
    assert not exceeded, "\n".join(exceeded)
    assert evidence == {"second", "upstream_gradient", "tangent"}


def test_correct_derivatives_have_no_finding(part, seed):
    dtype, first, count = part
    # In half precision torch overflows and skips terms: test_soak.py explains its known failures.
    subjects = TENSOR_FORMS if dtype in ("float16", "bfloat16") else [*TENSOR_FORMS, TORCH]
    exceeded = []
    for case in draws(count, [dtype], seed, first=first):
        question.cache_clear()
        if not DERIVATIVES[0].applies(case):
            continue
        if older_than("2.1") and len(case.sizes) == 1:
            continue  # torch 2.0 returns the tangent of a mean of one row in float64
        for subject in subjects:
            if takes(subject, case):
                for of, one in differences(subject, case).items():
                    assert "the bound is not a number" not in one.not_judged, case.id
                    exceeded += [f"{subject.name}: {of} of {case.id}\n{one}"] if one.ratio > 1 else []
    assert not exceeded, "\n".join(exceeded)


# Cases of a soak on which a correct form comes near the bound: of the second derivative, then of the tangent.
SHARP = {
    "float16": (
        "float16-3x3x1x50-confident-unnormalised-sum-scalar-smooth0.865-seed734587503",
        "float16-1x9x3x85-near_ties-int64-none-weight_zeros-stride0-class_last-target_offset-smooth0.0001-seed1839912714",
    ),
    "bfloat16": (
        "bfloat16-4x21x3x1-inf_on_target-unnormalised-mean-weight_negative-scalar-offset-smooth0.5-seed681772065",
        "bfloat16-128x4-inf_tiles-int64-none-ignored_huge-seed1509581959",
    ),
    "float32": (
        "float32-13-scales-uint8-sum-target_strided-seed1420012149",
        "float32-4x2x2x1-row_offsets-uint8-none-zero-expanded-seed1925907708",
    ),
    "float64": (
        "float64-2x255-wide-uint8-none-weight_decades-rows-target_strided-seed337717591",
        "float64-49x8-wide-int64-none-weight_decades-rows_large-offset-seed1232736420",
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bound_is_no_wider_than_three_times_what_a_correct_form_needs(dtype):
    for of, case in zip(("second", "tangent"), SHARP[dtype], strict=True):
        ratio = max(differences(subject, case)[of].ratio for subject in TENSOR_FORMS)
        assert 1 / 3 < ratio <= 1, (case, ratio)


# --- Wrong code is caught -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """The arguments of a call, and numbers of its formula in float64.

    `p` (the softmax), `v` (weight times target probability) and `u` (the direction) have shape (…, C). `kept` and
    `upstream` have shape (…). `denominator` is a number.
    """

    input: Tensor
    target: Tensor
    options: dict

    def rows(self, **options):
        given = {"weight": None, "ignore_index": -100, **self.options, **options}
        weight, target = given["weight"], self.target
        return lay_out(
            self.input.detach().double(),
            target.double() if target.is_floating_point() else target,
            None if weight is None else weight.double(),
            given["ignore_index"],
            given["reduction"],
            given["label_smoothing"],
        )

    @property
    def p(self):
        return self.rows().logits.softmax(-1)

    def v(self, *, masked=True, **options):
        rows = self.rows(**options)
        v = rows.weighted(rows.smoothed_target())
        return v * self.kept.unsqueeze(-1) if masked else v

    @property
    def kept(self):
        kept = self.rows().kept
        return torch.ones(self.p.shape[:-1], dtype=torch.bool) if kept is None else kept

    @property
    def denominator(self):
        rows = self.rows()
        if rows.reduction != "mean":
            return torch.tensor(1.0, dtype=torch.float64)
        count = torch.tensor(float(self.kept.sum()), dtype=torch.float64)
        return count if rows.target_weight is None else rows.target_weight.sum()

    def with_classes_last(self, tensor):
        """Return a tensor of shape (N, C, …) as (…, C), in float64."""
        return tensor.double().movedim(1, -1) if tensor.dim() > 1 else tensor.double()

    def like_logits(self, values):
        """Return values of shape (…, C) as (N, C, …), in the dtype of the logits."""
        values = values.movedim(-1, 1) if values.dim() > 1 else values
        return values.to(self.input.dtype).contiguous()

    def reduced(self, values):
        """Reduce values of shape (…) as the call does. Ignored rows count as 0."""
        values = torch.where(self.kept, values, 0.0)
        return values if self.options["reduction"] == "none" else values.sum() / self.denominator


def second(call, g, u, *, v=None, scale=None, mean=None):
    """Return `g/D Σ v·p (u - Σ p u)`, the second derivative, for upstream gradient g and denominator D.

    The arguments `v`, `scale` and `mean` replace `v`, `g/D` and `Σ p u`.
    """
    p = call.p
    v = call.v() if v is None else v
    scale = g / call.denominator if scale is None else scale
    mean = (p * u).sum(-1, keepdim=True) if mean is None else mean
    return torch.broadcast_to(scale, p.shape[:-1]).unsqueeze(-1) * v.sum(-1, keepdim=True) * p * (u - mean)


def tangent(call, u, *, v=None):
    """Return the tangent `Σ v (Σ p u - u)` of each row. The argument `v` replaces the weighted targets of the call."""
    v = call.v() if v is None else v
    return (v * ((call.p * u).sum(-1, keepdim=True) - u)).sum(-1)


def right(name, *, second=second, tangent=tangent, reduced=Call.reduced, upstream=tangent):
    """Return a subject that is correct, unless an argument replaces one of its functions."""

    class Gradient(Function):
        @staticmethod
        def forward(ctx, x, g, call):
            ctx.save_for_backward(x, g)
            ctx.call = call
            with torch.enable_grad():
                x = x.detach().double().requires_grad_()
                return torch.autograd.grad(in_float64(x, call), x, g.double())[0].to(call.input.dtype)

        @staticmethod
        def backward(ctx, u):
            _, g = ctx.saved_tensors
            call, u = ctx.call, ctx.call.with_classes_last(u)
            return call.like_logits(second(call, g.double(), u)), call.reduced(upstream(call, u)).to(g.dtype), None

    class Loss(Function):
        @staticmethod
        def forward(ctx, x, call):
            ctx.save_for_backward(x)
            ctx.call = call
            return in_float64(x.double(), call).to(crossent.formula(x, call.target, **call.options).dtype)

        @staticmethod
        def backward(ctx, g):
            return Gradient.apply(*ctx.saved_tensors, g, ctx.call), None

        @staticmethod
        def jvp(ctx, u, _):
            dtype = crossent.formula(ctx.call.input, ctx.call.target, **ctx.call.options).dtype
            return reduced(ctx.call, tangent(ctx.call, ctx.call.with_classes_last(u))).to(dtype)

    return subject(name, Loss)


def in_float64(x, call):
    target, weight = call.target, call.options.get("weight")
    options = {**call.options, **({} if weight is None else {"weight": weight.double()})}
    return crossent.formula(x, target.double() if target.is_floating_point() else target, **options)


def subject(name, function):
    def loss(input, target, **options):
        return function.apply(input, Call(input, target, options))

    return Subject(name, loss)


def without_a_graph(name, gradient):
    """Return a subject with the right gradient, which autograd does not record as a function of the logits."""

    class Loss(Function):
        @staticmethod
        def forward(ctx, x, call):
            ctx.save_for_backward(x)
            ctx.call = call
            return in_float64(x.double(), call).to(x.dtype)

        @staticmethod
        def backward(ctx, g):
            return gradient(*ctx.saved_tensors, g, ctx.call), None

        @staticmethod
        def jvp(ctx, u, _):
            return ctx.call.reduced(tangent(ctx.call, ctx.call.with_classes_last(u))).to(u.dtype)

    return subject(name, Loss)


def saved(x, g, call):
    """Return the gradient with the softmax as a constant of the forward pass, as many kernels compute it."""
    scale = torch.broadcast_to(g.double() / call.denominator, call.kept.shape).unsqueeze(-1)
    return call.like_logits((call.p * call.v().sum(-1, keepdim=True) - call.v()) * scale)


def not_recorded(x, g, call):
    with torch.no_grad():
        return saved(x, g, call)


class Once(Function):
    """A loss that cannot be differentiated twice, because of `once_differentiable`."""

    @staticmethod
    def forward(ctx, x, call):
        ctx.save_for_backward(x)
        ctx.call = call
        return in_float64(x.double(), call).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return saved(*ctx.saved_tensors, g, ctx.call), None


def of_absolute_weights(call, g, u):
    weight = call.options.get("weight")
    return second(call, g, u, v=call.v() if weight is None else call.v(weight=weight.abs()))


def without_weight(call, u):
    return tangent(call, u, v=call.v(weight=None))


def with_zero_times_infinity(call, u):
    """Return the tangent plus 0 times the log-probabilities, which may be infinite: optax#1762."""
    return tangent(call, u) + (0.0 * call.rows().logits.log_softmax(-1)).sum(-1)


def not_divided(call, values):
    values = torch.where(call.kept, values, 0.0)
    return values if call.options["reduction"] == "none" else values.sum()


# First a case with weights of both signs, ignored rows, smoothing, an upstream gradient and a mean; then cases with
# each of these alone.
CASES = [
    Case("float64", (7, 5), weight="weight_negative", ignored="ignored", label_smoothing=0.1, upstream="scalar"),
    Case("float32", (7, 5), "inf_off_target", weight="weighted", reduction="none", upstream="rows"),
    Case("float32", (3, 5, 4), weight="weighted", label_smoothing=0.1),
    Case("float32", (5,), reduction="sum"),
    Case("float64", (5, 5), weight="weight_negative", reduction="sum", ignored="ignored_default"),
]
WRONG = {
    "double_backward": [
        without_a_graph("a constant p", saved),
        without_a_graph("no graph", not_recorded),
        subject("once differentiable", Once),
        right("no mean", second=functools.partial(second, mean=0.0)),
        right("the mean of u", second=lambda call, g, u: second(call, g, u, mean=u.mean(-1, keepdim=True))),
        right("no sign of the weight", second=of_absolute_weights),
        right("no upstream", second=lambda call, g, u: second(call, g, u, scale=1 / call.denominator)),
        right("no denominator", second=lambda call, g, u: second(call, g, u, scale=g)),
        right("ignored rows", second=lambda call, g, u: second(call, g, u, v=call.v(masked=False))),
        right("no smoothing", second=lambda call, g, u: second(call, g, u, v=call.v(label_smoothing=0.0))),
        right("zeros", second=lambda call, g, u: 0.0 * second(call, g, u)),
        right("a wrong derivative by upstream", upstream=without_weight),
    ],
    "forward_ad": [
        right("0 times -inf", tangent=with_zero_times_infinity),
        right("no smoothing", tangent=lambda call, u: tangent(call, u, v=call.v(label_smoothing=0.0))),
        right("no weight", tangent=without_weight),
        right("a constant p", tangent=lambda call, u: -(call.v() * u).sum(-1)),
        right("no denominator", reduced=not_divided),
        right("zeros", tangent=lambda call, u: 0.0 * tangent(call, u)),
        subject("no jvp", Once),
    ],
}


def test_the_cross_entropy_without_a_replaced_function_is_right():
    assert findings_by_check(right("all"), CASES) == {}


@pytest.mark.parametrize(
    ("check", "wrong"),
    [pytest.param(check, wrong, id=f"{check}-{wrong.name}") for check, of in WRONG.items() for wrong in of],
)
def test_a_wrong_derivative_is_caught_by_its_check_where_loss_and_gradient_are_right(check, wrong):
    expected = {check} if wrong.name not in ("no jvp", "once differentiable") else set(WRONG)
    found = findings_by_check(wrong, CASES)
    assert set(found) == expected, found


def test_the_message_about_a_gradient_that_does_not_depend_on_the_logits():
    for wrong in (*(without_a_graph("mine", gradient) for gradient in (saved, not_recorded)), subject("mine", Once)):
        (first, *_) = findings_by_check(wrong, CASES)["double_backward"]
        name = "derivative of the gradient with respect to the logits"
        assert first == f"wrong: {name}: got None; expected a tensor, since the exact value is not 0"
    (first, *_) = findings_by_check(subject("mine", Once), CASES)["forward_ad"]
    assert first.startswith("refused: ")


def test_a_gradient_that_should_be_a_constant_may_be_one():
    """A constant gradient passes for a single class, where the gradient is 0 for any logits."""
    only = Case("float32", (4, 1), reduction="sum")
    assert findings_by_check(without_a_graph("mine", saved), [only]) == {}


def test_a_tangent_that_is_lost_is_found():
    def detached(input, target, **options):
        # Without requires_grad, the logits become plain numbers, so their tangent is lost.
        plain = input if input.requires_grad else torch.tensor(input.tolist(), dtype=input.dtype)
        return crossent.formula(plain, target, **options)

    found = findings_by_check(Subject("mine", detached), CASES[:1])
    assert found == {
        "forward_ad": ["wrong: tangent of the loss: got None; expected a tensor, since the exact value is not 0"]
    }


# --- Single cases -------------------------------------------------------------------------------------------------


def test_a_negative_weight_has_its_sign_in_the_second_derivative_of_one_row():
    """Right code passes for one row with a negative weight, about which pytorch#64256 reports a wrong derivative."""
    case = Case.of("float64-1x2-normal-int64-sum-weight_negative-seed17")
    inputs = question(case).inputs
    assert inputs.options["weight"][inputs.target] < 0
    assert len(case.direction().unique()) > 1
    for checked in (case, replace(case, reduction="mean"), replace(case, reduction="none")):
        for correct in (*TENSOR_FORMS, TORCH):
            assert findings_by_check(correct, [checked]) == {}
    wrong = right("no sign of the weight", second=of_absolute_weights)
    assert set(findings_by_check(wrong, [case])) == {"double_backward"}


@pytest.mark.parametrize("values", ["inf_off_target", "inf_on_target", "inf_tiles"])
@pytest.mark.parametrize("target", ["int64", "probabilities"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_derivatives_are_finite_and_right_where_a_logit_is_minus_infinity(values, target, label_smoothing):
    case = Case("float32", (7, 5), values, target, "none", label_smoothing=label_smoothing)
    for correct in (*TENSOR_FORMS, TORCH):
        for one in differences(correct, case).values():
            assert one.ratio <= 1, one
            assert not one.not_judged
    for exact in (question(case).exact_along.second, question(case).exact_along.tangent):
        assert torch.from_numpy(exact.hi).isfinite().all()


@pytest.mark.parametrize("values", ["nan", "positive_inf", "nan_ignored", "inf_ignored"])
def test_derivatives_of_nonfinite_rows_match_torch(values):
    """A derivative is NaN where the gradient is NaN. The tangent of an ignored row is 0."""
    case = Case("float32", (7, 5), values, reduction="none", ignored="ignored")
    for correct in (*TENSOR_FORMS, TORCH):
        assert findings_by_check(correct, [case]) == {}
    assert torch.from_numpy(question(case).exact_along.second.hi).isnan().any()


@pytest.mark.parametrize("layout", ["expanded", "transposed", "strided", "window", "offset"])
def test_every_layout_has_its_derivatives(layout):
    """Right code passes in each layout. torch makes no dual number of an expanded tensor, so the check copies it."""
    case = Case("float32", (7, 5), reduction="none", upstream="stride0", layout=layout)
    for correct in (*TENSOR_FORMS, TORCH):
        assert findings_by_check(correct, [case]) == {}


def test_half_precision_that_is_computed_in_half_precision_is_not_grade_a():
    """Log-probabilities that are rounded to bfloat16 are a finding under grade A, and no finding under grade B."""

    def stored(input, target, **options):
        return crossent.formula(torch.log_softmax(input, 1), target, **options)

    case = Case("bfloat16", (7, 5), reduction="none", upstream="rows")
    assert set(findings_by_check(Subject("mine", stored), [case])) >= {"double_backward"}
    declared = Subject("mine", stored, grades={"bfloat16": "B"})
    assert findings_by_check(declared, [case]) == {}


def test_a_change_of_the_state_of_torch_is_noticed_and_undone():
    def loss(input, target, **options):
        torch.set_default_dtype(torch.float64)
        return crossent.formula(input, target, **options)

    for check in DERIVATIVES:
        trial = trial_of(question(CASES[1]), Subject("mine", loss))
        list(check.run(trial))
        assert set(trial.changed_state) == {"the default dtype"}
        assert torch.get_default_dtype() == torch.float32


def test_a_subject_that_writes_into_its_arguments_does_not_change_the_question():
    def loss(input, target, **options):
        result = crossent.formula(input, target.clone(), **options)
        target.zero_()
        return result

    before = question(CASES[1]).inputs.target.clone()
    for check in DERIVATIVES:
        list(check.run(trial_of(question(CASES[1]), Subject("mine", loss))))
    assert question(CASES[1]).inputs.target.equal(before)


def test_both_checks_skip_large_cases_and_subjects_without_a_gradient():
    for check in DERIVATIVES:
        assert check.applies(Case("float32", (1, MOST_LOGITS)))
        assert not check.applies(Case("float32", (1, MOST_LOGITS + 1)))
        assert check.why_not_run(FORM_SUBJECTS["scalar"], CASES[0].build()) == "is not differentiable"
        assert check.why_not_run(FORM_SUBJECTS["formula"], CASES[0].build()) == ""


def test_zeros_and_a_constant_p_are_no_evidence_where_they_would_pass():
    """With an upstream gradient of 0 every second derivative is 0, and with one class every derivative is 0.

    A subject that returns zeros would pass these cases, so their results are marked as vacuous.
    """
    no_upstream = differences(FORM_SUBJECTS["formula"], Case("float32", upstream="zero"))
    assert no_upstream["second"].vacuous
    assert not no_upstream["tangent"].vacuous
    assert not differences(FORM_SUBJECTS["formula"], Case("float32"))["second"].vacuous
    assert all(one.vacuous for one in differences(FORM_SUBJECTS["formula"], Case("float32", (4, 1))).values())


def test_a_direction_fills_its_format_and_depends_on_sizes_and_seed_only():
    case = Case("float32", (3, 5, 4))
    direction = case.direction()
    assert direction.shape == case.build().input.shape
    assert 1.5 < direction.abs().max() <= 2
    for dtype, fewer in (("float64", torch.float32), ("float32", torch.bfloat16), ("float16", torch.bfloat16)):
        full = replace(case, dtype=dtype).direction()
        assert (full.to(fewer).to(full.dtype) != full).double().mean() > 0.8
    other = Case("float32", (3, 5, 4), "wide", "probabilities", "sum", label_smoothing=0.1).direction()
    assert direction.equal(other)
    assert direction.equal(replace(case, dtype="float64").direction().float())
    assert not direction.equal(case.seeded(1).direction())


def rounded(loss):
    """Return a loss that rounds the direction to bfloat16, in the second backward pass and in forward mode.

    Kernels do this when they convert the direction to the dtype of a matrix product.
    """

    class RoundsDirection(torch.autograd.Function):
        """A copy of the gradient. Its backward pass rounds the direction."""

        @staticmethod
        def forward(ctx, gradient):
            return gradient.clone()

        @staticmethod
        def backward(ctx, direction):
            return direction.bfloat16().to(direction.dtype)

    class RoundsTangent(torch.autograd.Function):
        """A copy of the logits. Forward mode rounds the tangent; the backward pass does not round the gradient."""

        @staticmethod
        def forward(ctx, logits):
            return logits.clone()

        @staticmethod
        def backward(ctx, gradient):
            return RoundsDirection.apply(gradient)

        @staticmethod
        def jvp(ctx, tangent):
            return tangent.bfloat16().to(tangent.dtype)

    return lambda logits, target, **options: loss(RoundsTangent.apply(logits), target, **options)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("case", ["7x5-normal-int64-none-rows", "7x5-normal-probabilities-mean-weighted"])
def test_a_direction_that_is_rounded_to_fewer_bits_is_found(dtype, case):
    wrong = Subject("mine", rounded(crossent.formula), promise="eager")
    found = findings_by_check(wrong, [f"{dtype}-{case}"])
    assert set(found) == {"double_backward", "forward_ad"}


def test_a_direction_of_small_integers_would_not_show_the_rounding(monkeypatch):
    """A loss that rounds the direction passes if the direction has small integers, which every format represents."""
    direction = Case.direction
    monkeypatch.setattr(Case, "direction", lambda case, device="cpu": direction(case, device).mul(2).round())
    question.cache_clear()
    case = "float32-7x5-normal-int64-none-rows"
    assert findings_by_check(Subject("mine", rounded(crossent.formula), promise="eager"), [case]) == {}
    question.cache_clear()
