"""The checks of arguments that require a gradient: each finds its own kind of wrong linear cross-entropy."""

import pytest
import torch
from support.linear_subjects import by_hand, composed, gradients, right_cases, right_in, subject_of
from support.running import run, run_isolated

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.linear.case import LinearCase
from crossent.checks import circumstances, determinism, leaves, single, transforms
from crossent.checks.leaves import gradients_by_call
from crossent.run.plan import plan
from crossent.trials.call import in_words

FIRST = (single.call, single.result)
CHECKS = (
    *(leaves.alone, leaves.non_leaf, circumstances.circumstances, circumstances.no_grad),
    *(transforms.func_grad, determinism.deterministic),
)
# The checks that a function with a backward pass in Python passes. torch.func does not support it.
BY_HAND = tuple(check for check in CHECKS if check is not transforms.func_grad)
CASE = LinearCase("float32", reduction="none", upstream="rows", bias="bias")
MEAN = LinearCase("float32", (17, 3), ignored="ignored")


def changed(change):
    """Return a loss with a wrong backward pass: `change` gets the right gradients, and returns wrong gradients.

    The last argument of `change` says which gradients are needed.
    """
    return by_hand(lambda slope, h, w, needs: change(*gradients(slope, h, w, needs), needs))


def as_liger(of_input, of_weight, of_bias, needs):
    """Return no gradients if the hidden states require none, as Liger-Kernel 0.8.5 does."""
    return (of_input, of_weight, of_bias) if needs[0] else (None, None, None)


def bias_needs_weight(of_input, of_weight, of_bias, needs):
    return of_input, of_weight, of_bias if needs[1] else None


def bias_in_place_of_the_weight(of_input, of_weight, of_bias, needs):
    """Return the gradient of the weight with reversed classes if the hidden states require none."""
    if needs[0] or of_weight is None or of_bias is None:
        return of_input, of_weight, of_bias
    return None, of_weight.flip(0), of_bias


def half_where_alone(of_input, of_weight, of_bias, needs):
    return of_input, of_weight if of_weight is None or needs[0] else of_weight / 2, of_bias


def adds_to_frozen(input, target, *, linear_weight, **options):
    """Set the .grad of the weight although the weight requires no gradient."""
    if not linear_weight.requires_grad:
        linear_weight.grad = torch.ones_like(linear_weight)
    return composed(input, target, linear_weight=linear_weight, **options)


def detaches_the_bias(input, target, *, linear_bias=None, **options):
    if linear_bias is not None and not input.requires_grad:
        linear_bias = linear_bias.detach()
    return composed(input, target, linear_bias=linear_bias, **options)


@pytest.mark.parametrize(
    ("loss", "case", "message"),
    [
        (
            changed(as_liger),
            CASE,
            "gradient of linear_weight: got None; expected a tensor, "
            "since requires_grad is True only for linear_weight",
        ),
        (
            changed(as_liger),
            MEAN,
            "gradient of linear_weight: got None; expected a tensor, "
            "since requires_grad is True only for linear_weight",
        ),
        (
            changed(bias_needs_weight),
            CASE,
            "gradient of linear_bias: got None; expected a tensor, since requires_grad is True only for linear_bias",
        ),
        (
            changed(bias_in_place_of_the_weight),
            CASE,
            "gradient of linear_weight, with requires_grad only for linear_weight and linear_bias:\nMismatched",
        ),
        (
            changed(half_where_alone),
            MEAN,
            "gradient of linear_weight, with requires_grad only for linear_weight:\nMismatched",
        ),
        (
            adds_to_frozen,
            CASE,
            "gradient of linear_weight: got a tensor; expected None, since requires_grad is True only for input",
        ),
        (
            detaches_the_bias,
            CASE,
            "loss: got requires_grad=False; expected requires_grad=True, since requires_grad is True for linear_bias",
        ),
    ],
    ids=["as Liger", "as Liger, mean", "bias needs weight", "wrong places", "half", "frozen", "detached"],
)
def test_a_gradient_that_is_wrong_where_others_are_frozen_is_found_and_named(loss, case, message):
    """Only `alone` finds the wrong gradient: all gradients are right if all three arguments require one."""
    report = run(subject_of(by_hand()), case, (*FIRST, *BY_HAND))
    assert report.findings == []
    wanted = (*FIRST, single.loss, single.gradient, single.weight_gradient, single.bias_gradient, leaves.alone)
    findings = run(subject_of(loss), case, wanted).findings
    assert [finding.check for finding in findings] == ["alone"]
    assert findings[0].message.startswith(message)


def test_every_choice_of_some_leaves_has_a_call():
    assert list(gradients_by_call(CASE.build())) == [
        "of input alone",
        "of linear_weight alone",
        "of linear_bias alone",
        "of input and linear_weight alone",
        "of input and linear_bias alone",
        "of linear_weight and linear_bias alone",
    ]
    assert list(gradients_by_call(MEAN.build())) == ["of input alone", "of linear_weight alone"]
    assert gradients_by_call(Case("float32").build()) == {}


def test_the_words_of_a_call_name_the_argument():
    assert (
        in_words("gradient of input alone", CASE.operation)
        == "gradient of the input, with requires_grad only for input"
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_level_quick_has_cases_with_frozen_arguments_with_and_without_options(dtype):
    planned = plan("quick", [dtype], 0, LinearCase.operation).items()
    chosen = {case for case, checks in planned if leaves.alone in checks}
    assert LinearCase(dtype) in chosen
    assert any(case.bias != "no_bias" for case in chosen)


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_code_passes_with_frozen_arguments_and_with_outputs_of_operations(dtype):
    cases = right_cases(dtype)
    report = run(right_in(dtype), cases, (*FIRST, *CHECKS))
    assert [str(finding) for finding in report.findings] == []
    ran = {name for part in report.subjects for outcome in part.outcomes.values() for name in outcome.checks}
    assert ran == {check.name for check in (*FIRST, *CHECKS)}


def writes(name):
    """Return a loss that writes into an argument that is no leaf."""

    def loss(input, target, *, linear_weight, **options):
        result = composed(input, target, linear_weight=linear_weight, **options)
        one = {"input": input, "linear_weight": linear_weight, **options}[name]
        if not one.is_leaf:
            one.data.zero_()
        return result

    return loss


@pytest.mark.parametrize("name", ["input", "linear_weight", "linear_bias"])
def test_an_output_of_an_operation_that_is_changed_is_found_and_named(name):
    findings = run(subject_of(writes(name)), CASE, (*FIRST, leaves.non_leaf)).findings
    said = f"the call changed `{name}` in place; `{name}` is not a leaf in this call"
    assert [(finding.kind, finding.message) for finding in findings] == [("changed_input", said)]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (lambda weight: isinstance(weight, torch.nn.Parameter), "with a Parameter as input"),
        (lambda weight: weight.is_neg(), "with a lazily negated view as input"),
        (lambda weight: torch.get_default_dtype() == torch.float64, "with another default dtype"),
    ],
    ids=["Parameter", "negated", "default dtype"],
)
def test_a_wrong_result_in_other_circumstances_is_found(condition, said):
    def loss(input, target, *, linear_weight, **options):
        return composed(input, target, linear_weight=linear_weight, **options) * (
            1.01 if condition(linear_weight) else 1
        )

    (finding,) = run(subject_of(loss), CASE, (*FIRST, circumstances.circumstances)).findings
    assert finding.message.startswith(f"loss, {said}:")


def test_a_gradient_that_is_wrong_under_a_transform_is_found():
    def loss(input, target, *, linear_weight, **options):
        if torch._C._functorch.is_gradtrackingtensor(linear_weight):
            linear_weight = linear_weight.detach()
        return composed(input, target, linear_weight=linear_weight, **options)

    (finding,) = run(subject_of(loss), CASE, (*FIRST, transforms.func_grad)).findings
    assert finding.message.startswith("gradient of linear_weight:\n")


def test_the_checks_run_in_an_isolated_process():
    """The process sends the gradients of an act to the main process, also missing gradients."""
    checks = (*FIRST, *BY_HAND)
    for loss, failed in ((by_hand(), []), (changed(as_liger), ["alone"])):
        part = run_isolated(subject_of(loss), cases=[CASE], checks=checks).subjects[0]
        assert [finding.check for finding in part.findings] == failed
        assert list(part.outcomes[CASE.id].checks) == [check.name for check in checks]


@pytest.mark.parametrize(("worker", "can"), [(False, False), (True, False), (True, True)])
def test_a_forked_process_calls_with_more_threads_only_if_it_cannot_block(monkeypatch, worker, can):
    """An operation in several threads blocks in a forked process if its parent has computed in several threads."""
    called = []

    def loss(input, target, *, linear_weight, **options):
        called.append(torch.get_num_threads())
        return composed(input, target, linear_weight=linear_weight, **options)

    before = torch.get_num_threads()
    monkeypatch.setattr(circumstances.multiprocessing, "parent_process", lambda: object() if worker else None)
    monkeypatch.setattr(circumstances, "forks_with_threads", lambda: can)
    assert run(subject_of(loss), CASE, (*FIRST, circumstances.circumstances)).findings == []
    assert (set(called) == {before}) == (worker and not can)


def test_a_loss_of_a_wrong_dtype_for_a_parameter_is_found_and_named():
    def loss(input, target, *, linear_weight, **options):
        made = composed(input, target, linear_weight=linear_weight, **options)
        return made.double() if isinstance(linear_weight, torch.nn.Parameter) else made

    (finding,) = run(subject_of(loss), CASE, (*FIRST, circumstances.circumstances)).findings
    assert finding.message.startswith("loss, with a Parameter as input: got float64 with shape ")
