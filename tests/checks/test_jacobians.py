"""Derivatives for a batch: correct code passes, and each check catches code that is wrong only for a batch."""

from types import SimpleNamespace

import pytest
import torch
from support.checks import JACOBIANS, SINGLE
from support.running import judged, run, trial_of
from support.subjects import TENSOR_FORMS
from support.waits import older_than

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.checks import jacobians
from crossent.report.expected_findings import torch_list
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH, TORCH_NLL
from crossent.subjects.subject import Subject
from crossent.trials.act import Performed
from crossent.trials.along import MOST_LOGITS, second_order
from crossent.trials.difference import Difference
from crossent.trials.trial import Question, RefusedError

CHECKS = {check.name: check for check in JACOBIANS}
ROWS = Case("float32", (7, 5), reduction="none", ignored="ignored_default", upstream="rows")
MEAN = Case("float32", (7, 5))
DENSE = Case("float64", (3, 5, 4), target="probabilities", reduction="none", weight="weighted", upstream="rows")


def findings_of(name, loss, case=ROWS):
    """Return the findings of a check for a loss that passes all checks of a plain call."""
    trial = trial_of(Question(case), Subject("mine", loss))
    for check in SINGLE:
        found = list(check.run(trial)) if check.applies(case) else []
        assert all(isinstance(one, Difference) and one.ratio <= 1 for one in found), check.name
    try:
        found = list(CHECKS[name].run(trial))
    except RefusedError as refusal:
        return [f"refused: {refusal}"]
    assert found
    return [one for one in found if not isinstance(one, Difference) or one.ratio > 1]


def test_the_module_declares_five_checks():
    assert list(CHECKS) == ["batched_gradient", "jacrev", "jacfwd", "batched_second", "hessian"]


# --- Right code passes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forms_and_torch_are_right_for_a_batch(dtype, seed):
    cases = [*grid([dtype], seed, "transformed")][seed % 2 :: 2]
    made = run([*TENSOR_FORMS, TORCH, TORCH_NLL], cases, (*SINGLE[:2], *JACOBIANS), known=torch_list())
    assert [str(one) for one in made.findings if one.expected is None] == []
    for part in made.subjects[: len(TENSOR_FORMS)]:
        assert {name for name, _ in part.tallies} >= set(CHECKS)
        assert not part.not_run


@pytest.mark.parametrize("case", [ROWS, MEAN, DENSE], ids=lambda case: case.id)
@pytest.mark.parametrize("subject", [*TENSOR_FORMS, TORCH], ids=lambda subject: subject.name)
def test_each_act_computes_what_the_function_of_torch_computes(subject, case):
    """The acts give the derivatives of torch.func. For all unit vectors, these are the whole Jacobian or Hessian."""
    if subject is TORCH and case is ROWS and older_than("2.1"):
        pytest.skip("needs torch 2.1 or newer: torch 2.0 refuses the batch, pytorch#90916")
    inputs = case.build()
    x, loss = inputs.input, subject.loss

    def of_logits(logits):
        return loss(logits, inputs.target, **inputs.options)

    def reduced(logits):
        return (of_logits(logits) * inputs.upstream).sum()

    def units(like):
        return torch.eye(like.numel(), dtype=like.dtype).reshape(-1, *like.shape)

    _, rows = jacobians.gradients_by_jacrev(loss, inputs, units(inputs.upstream), ("gradient",))
    assert rows.reshape(*inputs.upstream.shape, *x.shape).equal(torch.func.jacrev(of_logits)(x))
    _, batch = jacobians.gradients_of_batch(loss, inputs, units(inputs.upstream), ("gradient",))
    torch.testing.assert_close(batch, rows)
    columns = jacobians.tangents_by_jacfwd(loss, inputs, units(x))
    expected = torch.func.jacfwd(of_logits)(x).reshape(*inputs.upstream.shape, -1).movedim(-1, 0)
    assert columns.equal(expected)
    second = jacobians.second_by_hessian(loss, inputs, units(x)).reshape(*x.shape, *x.shape)
    torch.testing.assert_close(second, torch.func.hessian(reduced)(x))
    again, _ = second_order(loss, inputs, units(x), True)
    torch.testing.assert_close(
        again.reshape(second.shape), torch.autograd.functional.hessian(reduced, x, vectorize=True)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exact_values_of_the_second_element_are_those_of_the_first_times_minus_two(dtype):
    case = Case(dtype, (7, 5), reduction="none", upstream="rows", label_smoothing=0.1)
    question = Question(case)
    second, along = jacobians._of_second_upstream(case), jacobians._along_second(case)
    pairs = (
        (question.exact.gradient, second.gradient),
        (question.exact_along.tangent, along.tangent),
        (question.exact_along.second, along.second),
    )
    for of_first, of_second in pairs:
        distance = abs((of_second.hi + 2 * of_first.hi) + (of_second.lo + 2 * of_first.lo))
        assert (distance <= of_second.radius + 2 * of_first.radius).all()
        assert (abs(of_first.hi) > 0).any()


# --- Wrong code is caught -----------------------------------------------------------------------------------------


def hooked(change):
    """Return a loss that replaces its upstream gradient by `change(upstream)`."""

    def loss(input, target, **options):
        value = crossent.formula(input, target, **options)
        if value.requires_grad:
            value.register_hook(change)
        return value

    return loss


class _Changed(torch.autograd.Function):
    """A function that copies a tensor. `tangent` changes the tangent of the copy, and `gradient` the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, tangent, gradient):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.tangent, ctx.gradient = inputs[1:]

    @staticmethod
    def backward(ctx, gradient):
        return ctx.gradient(gradient), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return ctx.tangent(tangent)


def same(tensor):
    """Return a copy."""
    return tensor * 1


def changed(*, tangent=same, gradient=same):
    """Return a loss that changes the tangent or the gradient of the logits."""

    def loss(input, target, **options):
        return crossent.formula(_Changed.apply(input, tangent, gradient), target, **options)

    return loss


# Each number of a direction is between -2 and 2, and each upstream gradient is 1 unless the case names another.
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("batched_gradient", hooked(lambda upstream: upstream.clamp(min=-1))),
        ("jacrev", hooked(lambda upstream: upstream.clamp(min=-1))),
        ("jacfwd", changed(tangent=lambda tangent: tangent.clamp(-2, 2))),
        ("hessian", changed(tangent=lambda tangent: tangent.clamp(-2, 2))),
        # The gradient is copied. The backward pass of the copy changes the direction.
        ("batched_second", changed(gradient=lambda one: _Changed.apply(one, same, lambda u: u.clamp(-2, 2)))),
    ],
)
def test_a_wrong_second_element_is_found_at_its_index(name, loss):
    found = findings_of(name, loss, MEAN)
    assert found
    assert {one.index[0] for one in found} == {1}


@pytest.mark.parametrize("name", CHECKS)
def test_a_result_of_the_first_element_for_the_whole_batch_is_found(name):
    """The second element is a finding if a subject returns the result of the first element for each element."""

    def first(batch):
        return batch[:1].expand(batch.shape)

    of_batch = {"batched_gradient": "gradients_of_batch", "jacrev": "gradients_by_jacrev"}
    of_batch |= {"jacfwd": "tangents_by_jacfwd", "batched_second": "second_order"}
    act = getattr(jacobians, of_batch.get(name, "second_by_hessian"))

    host = SimpleNamespace(isolated=False, not_run="")
    host.perform = lambda given, inputs, batch, *wanted: Performed(act(crossent.formula, inputs, first(batch), *wanted))
    found = list(CHECKS[name].run(trial_of(Question(MEAN), FORM_SUBJECTS["formula"], host)))
    assert {one.index[0] for one in found if one.ratio > 1} == {1}


@pytest.mark.parametrize("name", ["batched_gradient", "jacrev"])
def test_a_wrong_gradient_of_probabilities_is_found(name):
    def loss(input, target, **options):
        value = crossent.formula(input, target, **options)
        if target.requires_grad:
            target.register_hook(lambda gradient: gradient * 1.01 if batched(gradient) else gradient)
        return value

    def batched(tensor):
        return "Batched" in str(torch._C._dispatch_keys(tensor)) or torch._C._functorch.is_batchedtensor(tensor)

    assert {one.of for one in findings_of(name, loss, DENSE)} == {"target_gradient"}


@pytest.mark.parametrize("name", ["jacfwd", "hessian"])
def test_a_derivative_that_forward_mode_alone_lacks_is_found(name):
    def cut_off(input, target, **options):
        plain = not input.requires_grad or name == "hessian"
        return crossent.formula(_Changed.apply(input, torch.zeros_like, same) if plain else input, target, **options)

    found = findings_of(name, cut_off)
    assert {one.index[0] for one in found} == {0, 1}
    assert {one.got for one in found} == {0.0}


def test_a_missing_second_derivative_is_reported_once():
    found = findings_of("batched_second", changed(gradient=torch.detach))
    missing = [f"derivative of the gradient with respect to the {name}" for name in ("logits", "upstream gradient")]
    assert [one.message for one in found] == [
        f"{of}: got None; expected a tensor, since the exact value is not 0" for of in missing
    ]


@pytest.mark.parametrize("name", ["jacfwd", "hessian"])
def test_logits_that_are_expanded_are_differentiated(name):
    expanded = Case("float64", (7, 5), reduction="none", layout="expanded", upstream="rows")
    assert 0 in expanded.build().input.stride()
    assert findings_of(name, crossent.formula, expanded) == []


@pytest.mark.parametrize("name", CHECKS)
def test_a_loss_that_takes_no_batch_is_refused(name):
    class Reads(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, gradient):
            return Reads.apply(gradient * 1 if gradient.sum() != 0.5 else gradient)

        @staticmethod
        def jvp(ctx, tangent):
            return tangent * 1 if tangent.sum() != 0.5 else tangent

    def loss(input, target, **options):
        return crossent.formula(Reads.apply(input), target, **options)

    (refusal,) = findings_of(name, loss)
    assert refusal.startswith("refused: RuntimeError: ")


# --- Checks that do not run -----------------------------------------------------------------------------------------


def test_the_checks_skip_large_cases_and_losses_without_a_gradient():
    for name in ("jacfwd", "batched_second", "hessian"):
        assert CHECKS[name].applies(Case("float32", (1, MOST_LOGITS)))
        assert not CHECKS[name].applies(Case("float32", (1, MOST_LOGITS + 1)))
    for check in JACOBIANS:
        reason = check.why_not_run(FORM_SUBJECTS["scalar"], MEAN.build())
        assert reason == "computes with Python numbers, not with tensors"


@pytest.mark.parametrize("name", ["batched_gradient", "jacrev"])
def test_without_a_gradient_of_probabilities_the_gradient_of_the_logits_is_checked(name):
    def loss(input, target, **options):
        assert not target.requires_grad
        return crossent.formula(input, target, **options)

    report = judged(loss, DENSE, "call", "result", name, without={"target_gradient"})
    assert not report.findings, report
    assert report.subjects[0].tallies[name, "float64"].elements == 2 * 3 * 5 * 4
