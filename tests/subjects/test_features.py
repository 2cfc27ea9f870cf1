"""Features: if a subject lacks a feature, the checks that need the feature are skipped and counted. All others run."""

from dataclasses import replace

import pytest
import torch
from support.checks import COMPILED_CODE, LARGE, TRANSFORMS
from support.running import run
from torch import Tensor

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUT_KINDS, BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.edges import MANY_ROWS
from crossent.cases.operation import CROSS_ENTROPY
from crossent.checks import checks_of
from crossent.subjects.features import FEATURES, keywords_of, require_features
from crossent.subjects.loader import load

CHECKS = checks_of(CROSS_ENTROPY)

CASES = [
    *(Case(dtype) for dtype in DTYPES),
    *(Case("float32", reduction=reduction) for reduction in ("sum", "none")),
    Case("float32", (3, 4, 2), weight="weighted"),
    Case("float32", label_smoothing=0.1),
    Case("float32", ignored="ignored_default"),
    Case("float32", ignored="ignored_class"),
    Case("float32", target="uint8"),
    Case("float32", target="probabilities"),
    Case("float32", (4,)),
    Case("float32", (0, 4), reduction="sum"),
    Case("float32", (7, 1)),
    Case("float32", (7, 5), values="inf_off_target"),
    Case("float32", (7, 5), target="unnormalised"),
    Case("float32", layout="transposed"),
    Case("float32", (3, 4, 2), target_layout="target_transposed"),
]
# The checks of graphs and of compiled code take seconds, so `PLAIN_CHECKS` leaves them out.
GRAPHS = [
    *COMPILED_CODE,
    *LARGE,
    *(check for check in TRANSFORMS if check.name in ("export", "trace", "trace_dynamic")),
]
PLAIN_CHECKS = tuple(check for check in CHECKS.values() if check not in GRAPHS)


BAD = BAD_INPUTS[::5]


def judged(loss, without=(), cases=(*CASES, *BAD), checks=PLAIN_CHECKS):
    return run(load(loss, without=without), cases, checks).subjects[0]


def refusing(needs):
    """Return a loss without a feature. The loss raises an error for each call that needs the feature.

    `needs` is a function of input, target and options, which returns whether a call needs the feature.
    """

    def loss(input, target, **options):
        if needs(input, target, options):
            raise NotImplementedError("not in this kernel")
        return crossent.formula(input, target, **options)

    return loss


def any_of(dtype):
    return lambda x, y, options: dtype in (
        x.dtype, y.dtype, *(one.dtype for one in options.values() if isinstance(one, Tensor))
    )  # fmt: skip


def ignores(input, target, options):
    if "ignore_index" in options:
        return True
    return not (target.is_floating_point() or target.is_complex()) and bool((target.long() == -100).any())


def not_contiguous(input, target, options):
    tensors = (input, target, *(one for one in options.values() if isinstance(one, Tensor)))
    return not all(tensor.is_contiguous() for tensor in tensors)


def sums_to_one(probabilities):
    """Return whether the probabilities of each row sum to 1, up to 0.01. In unnormalised cases, some do not."""
    sums = probabilities.double().sum(min(1, probabilities.dim() - 1))
    return bool(((sums - 1).abs() < 0.01).all())


NEEDS = {
    **{name: any_of(dtype) for name, dtype in DTYPES.items()},
    **{
        f"reduction_{name}": lambda x, y, options, name=name: options.get("reduction", "mean") == name
        for name in ("none", "mean", "sum")
    },
    "reduction": lambda x, y, options: options.get("reduction", "mean") != "mean",
    "weight": lambda x, y, options: options.get("weight") is not None,
    "ignore_index": ignores,
    "label_smoothing": lambda x, y, options: options.get("label_smoothing", 0) != 0,
    "index_target": lambda x, y, options: not (y.is_floating_point() or y.is_complex()),
    "uint8_target": lambda x, y, options: y.dtype == torch.uint8,
    "probability_target": lambda x, y, options: y.is_floating_point(),
    "unbatched": lambda x, y, options: x.dim() < 2,
    "spatial": lambda x, y, options: x.dim() > 2,
    "empty": lambda x, y, options: x.numel() == 0,
    "one_class": lambda x, y, options: x.dim() > 0 and x.shape[min(1, x.dim() - 1)] < 2,
    "nonfinite": lambda x, y, options: not bool(x.isfinite().all()),
    "unnormalised": lambda x, y, options: y.is_floating_point() and not sums_to_one(y),
    "strided": not_contiguous,
}


@pytest.mark.parametrize("feature", NEEDS)
def test_a_kernel_without_a_feature_passes_if_the_feature_is_declared_missing_and_fails_otherwise(feature):
    lacking = refusing(NEEDS[feature])
    undeclared = judged(lacking, cases=CASES, checks=PLAIN_CHECKS[:1])
    assert any(finding.check == "call" for finding in undeclared.findings)
    # Under vmap, a loss cannot read the values and the strides of a sample.
    looks_at_data = feature in ("strided", "ignore_index", "nonfinite", "unnormalised")
    by_data = ("vmap", "meta", "func_grad", "hessian", "jacrev", "jacfwd") if looks_at_data else ()
    part = judged(lacking, {feature}, checks=tuple(check for check in PLAIN_CHECKS if check.name not in by_data))
    assert [str(finding) for finding in part.findings] == []
    assert part.not_applicable[f"is declared without {feature}"] > 0
    assert len(part.outcomes) + part.not_applicable.total() == len(CASES) + len(BAD)


def forgiving(needs):
    """Return a loss without a feature. The loss is 0 for each call that needs the feature, even for a bad input.

    `needs` is a function of input, target and options, which returns whether a call needs the feature.
    """

    def loss(input, target, **options):
        if needs(input, target, options):
            return input.new_zeros(())
        return crossent.formula(input, target, **options)

    return loss


@pytest.mark.parametrize("feature", NEEDS)
def test_a_bad_input_that_needs_a_feature_declared_missing_is_not_applicable(feature):
    part = judged(forgiving(NEEDS[feature]), {feature}, cases=BAD_INPUTS, checks=())
    assert [str(finding) for finding in part.findings] == []


def test_a_loss_without_two_reductions_may_ignore_the_option():
    """The loss returns the mean for any value of the option, as a function with `**options` may do."""

    def loss(input, target, reduction="mean", **options):
        return crossent.formula(input, target, **options)

    lacks = {"reduction_none", "reduction_sum"}
    assert judged(loss, lacks, cases=BAD_INPUTS, checks=()).findings == []
    loss.lacks = dict.fromkeys(lacks, "is a mean")
    part = judged(loss, cases=BAD_INPUTS, checks=())
    assert part.findings == []
    taken = [bad for bad in BAD_INPUTS if bad.build().options["reduction"] != "mean"]
    assert part.not_applicable == {"is a mean": len(taken)}
    for feature in lacks:  # a loss that lacks only one of the two reads the option, and must refuse unknown words
        del loss.lacks
        found = judged(loss, {feature}, cases=BAD_INPUTS, checks=()).findings
        assert {finding.kind for finding in found} == {"accepted"}
        loss.lacks = {}


class Once(torch.autograd.Function):
    """A cross-entropy that can be differentiated once, and only with respect to the logits."""

    @staticmethod
    def forward(ctx, input, target, options):
        with torch.enable_grad():
            logits = input.detach().requires_grad_()
            whole = crossent.formula(logits, target.detach(), **options)
        ctx.pair = whole, logits
        return whole.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        whole, logits = ctx.pair
        return *torch.autograd.grad(whole, logits, upstream, retain_graph=True), None, None


def forward_only(input, target, **options):
    with torch.no_grad():
        return crossent.formula(input, target, **options)


def once(input, target, **options):
    return Once.apply(input, target, options)


def by_chance(input, target, **options):
    if input.dtype != torch.float32:
        return crossent.formula(input, target, **options)
    off = 2.0**-25 * torch.randint(3, (), generator=RANDOM).to(input.dtype)  # sometimes wrong in the last place
    loss = crossent.formula(input, target, **options)
    return loss - (off * loss).detach()


RANDOM = torch.Generator()


def in_autocast(input, target, **options):
    if (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16:
        raise NotImplementedError("not in this kernel")
    return crossent.formula(input, target, **options)


def careless(input, target, **options):
    """Return the right loss, or 0 for each call for which `crossent.formula` raises an error."""
    try:
        return crossent.formula(input, target, **options)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return input.new_zeros(())


@pytest.mark.parametrize(
    ("loss", "without"),
    [
        (forward_only, {"gradient"}),
        (once, {"target_gradient", "double_backward", "forward_ad", "vmap", "compile"}),
        (by_chance, {"repeatable", "vmap"}),
        (in_autocast, {"autocast"}),
        (careless, {"errors"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_kernel_without_a_feature_of_checks_passes_if_that_is_declared(loss, without):
    undeclared = judged(loss)
    assert undeclared.findings
    part = judged(loss, without)
    assert [str(finding) for finding in part.findings] == []
    reasons = {reason for reasons in part.not_run.values() for reason in reasons} | set(part.not_applicable)
    assert {f"is declared without {name}" for name in without} <= reasons


def test_a_failure_counts_if_a_later_call_of_the_check_needs_a_missing_feature():
    def unsmoothed(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        return crossent.formula(input, target, weight, ignore_index, reduction)

    case = Case("float32", label_smoothing=0.1)  # `options` passes a weight of ones in its last call
    part = judged(unsmoothed, {"weight"}, [case], [CHECKS["call"], CHECKS["options"]])
    assert [finding.check for finding in part.findings] == ["options"]
    part = judged(crossent.formula, {"weight"}, [case], [CHECKS["call"], CHECKS["options"]])
    assert part.not_run == {"options": {"is declared without weight": 1}}


@pytest.mark.parametrize("feature", [name for name in FEATURES if CROSS_ENTROPY in FEATURES[name].operations])
def test_without_each_feature_some_case_or_check_does_not_run(feature):
    (subject,) = load(crossent.formula, without={feature})
    cases = [*CASES, MANY_ROWS[1]]
    taken = [case for case in cases if subject.not_applicable(case.build())]
    checks = [check for check in CHECKS.values() for case in cases[-3:] if check.why_not_run(subject, case.build())]
    of_errors = feature in ("errors", *BAD_INPUT_KINDS)  # these features remove bad inputs
    assert taken or checks or of_errors or FEATURES[feature].instead


def test_a_check_needs_only_features_that_exist():
    assert {name for check in CHECKS.values() for name in check.needs} <= FEATURES.keys()


def test_a_case_without_a_check_is_not_applicable():
    part = judged(crossent.formula, {"large"}, [MANY_ROWS[1]], LARGE)
    assert part.outcomes == {}
    assert part.not_applicable == {"is declared without large": 1}


def test_without_applies_to_the_forms_and_torch_too():
    report = crossent.check(
        "formula", "torch", level="quick", dtypes=["float64"], without={"weight", "spatial", "errors"}
    )
    for part in report.subjects:
        assert part.not_applicable["is declared without weight"] > 0
        assert part.not_applicable["is declared without spatial"] > 0
    assert report.ok


@pytest.mark.parametrize("keyword", keywords_of(CROSS_ENTROPY))
def test_a_keyword_that_the_signature_lacks_is_a_feature_that_the_subject_lacks(keyword):
    known = {
        "weight": "weight=None",
        "ignore_index": "ignore_index=-100",
        "reduction": "reduction='mean'",
        "label_smoothing": "label_smoothing=0.0",
    }
    parameters = ", ".join(default for name, default in known.items() if name != keyword)
    passed = ", ".join(f"{name}={name}" for name in known if name != keyword)
    space = {"formula": crossent.formula}
    exec(f"def loss(x, y, {parameters}): return formula(x, y, {passed})", space)
    part = judged(space["loss"], ["probability_target", "errors"])
    assert [str(finding) for finding in part.findings] == []
    assert part.not_applicable[f"has no {keyword}"] > 0


def test_the_error_of_an_unknown_feature_names_the_features():
    with pytest.raises(
        ValueError, match=r"without: got 'wieght' \(did you mean weight\?\); allowed are float16, .*, large$"
    ):
        require_features(["wieght", "vmap"])
    with pytest.raises(ValueError, match=r"without: got 3; allowed are float16"):
        require_features([3])
    assert require_features("vmap") == ("vmap",)


def test_each_feature_removes_the_checks_that_need_it():
    """Each entry of `expected` has the checks that need a feature: first for class indices, then for probabilities.

    If a check did not declare a feature that it needs, correct code without the feature would fail this check.
    """
    compiled = {"meta", "export", "trace", "trace_dynamic", "compile", "compile_dynamic", "compiled_error"}
    of_gradient = {"gradient", "target_gradient", "row_sums", "two_backwards", "non_leaf", "alone", "func_grad"}
    of_gradient |= {"batched_gradient", "jacrev", "circumstances"}
    of_second = {"double_backward", "batched_second", "hessian"}
    of_forward = {"forward_ad", "jacfwd", "hessian"}
    of_both = {"two_backwards", "alone", "circumstances", "func_grad", "vmap"}
    expected = {
        "gradient": [of_gradient | of_second | of_forward] * 2,
        "target_gradient": [{"target_gradient"}, {"target_gradient"} | of_both],
        "unbatched": [{"vmap"}] * 2,
        "vmap": [{"vmap", "func_grad", "jacrev", "jacfwd", "hessian"}] * 2,
        "retain_graph": [{"two_backwards"}] * 2,
        "arguments": [{"arguments"}] * 2,
        "double_backward": [of_second] * 2,
        "batched_gradient": [{"batched_gradient", "jacrev", "batched_second"}] * 2,
        "forward_ad": [of_forward] * 2,
        "compile": [compiled] * 2,
        "repeatable": [{"repeat", "two_backwards", "deterministic"}] * 2,
        **{name: [{name}] * 2 for name in ("autocast", "large")},
    }
    calls = [Case("float32", target=target).build() for target in ("int64", "probabilities")]
    for name in FEATURES:
        taken = [
            {check.name for check in CHECKS.values() if name in check.needs and check.needs[name](call)}
            for call in calls
        ]
        assert taken == expected.get(name, [set(), set()]), name


def test_the_rounding_of_float64_sums_makes_no_probabilities_unnormalised():
    """Each row was divided by its sum, so the sum of a row is 1 up to rounding."""
    probabilities = torch.rand(2000, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = probabilities / probabilities.sum(1, keepdim=True)
    given = Case("float64", target="probabilities").build()
    needs = FEATURES["unnormalised"].needs
    assert not needs(replace(given, target=target))
    assert needs(replace(given, target=target * (1 + 2**-40)))
