"""The checks of a single call, one at a time: their messages, and the cases to which they do not apply."""

import pytest
import torch
from support.checks import SINGLE
from support.linear_subjects import composed
from support.running import run, trial_of

import crossent
from crossent.cases.case import Case
from crossent.cases.linear.case import LinearCase
from crossent.checks import single
from crossent.report.findings import DEPENDS
from crossent.subjects.builtin import FORM_SUBJECTS
from crossent.subjects.subject import Subject
from crossent.trials.trial import Problem, Question, misshapen

NONE = Case("float32", (7, 5), reduction="none")


def found_by(check, loss, **promised):
    """Return all that one check, run alone, yields for a loss."""
    (chosen,) = (one for one in SINGLE if one.name == check)
    return list(chosen.run(trial_of(Question(NONE), Subject("mine", loss, **promised))))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (torch.Tensor.double, "float64 with shape (7,)"),
        (lambda loss: loss[None], "float32 with shape (1, 7)"),
        (torch.Tensor.sum, "float32 with shape ()"),
    ],
    ids=["dtype", "shape", "scalar"],
)
def test_a_wrong_dtype_or_shape_is_reported_with_the_expected_one(change, got):
    problems = found_by("result", lambda *args, **options: change(crossent.formula(*args, **options)))
    assert problems == [Problem("wrong", f"loss: got {got}; expected float32 with shape (7,)")]


def test_a_subject_with_its_own_dtype_must_return_this_dtype():
    doubled = lambda *args, **options: crossent.formula(*args, **options).double()  # noqa: E731
    assert found_by("result", doubled, dtype=torch.float64) == []
    problems = found_by("result", crossent.formula, dtype=torch.float64)
    assert problems == [Problem("wrong", "loss: got float32 with shape (7,); expected float64 with shape (7,)")]


def test_a_wrong_device_is_reported_with_the_expected_one():
    trial, meta = trial_of(Question(NONE), FORM_SUBJECTS["formula"]), torch.device("meta")
    expected, there, here = trial.question.exact, torch.empty(7, device=meta), torch.empty(7)
    found = misshapen(trial, there, expected)
    words = "loss: got float32 with shape (7,) on {}; expected float32 with shape (7,) on {}"
    assert found == Problem("wrong", words.format("meta", "cpu"))
    found = misshapen(trial, here, expected, meta)
    assert found == Problem("wrong", words.format("cpu", "meta"))
    assert misshapen(trial, there, expected, meta) is misshapen(trial, here, expected) is None


@pytest.mark.parametrize(
    ("loss", "kind"), [(0.5, "float"), (torch.zeros(7).to_sparse(), "Tensor with layout torch.sparse_coo")]
)
def test_a_result_that_is_no_dense_tensor_is_reported_by_its_class_and_layout(loss, kind):
    trial = trial_of(Question(NONE), FORM_SUBJECTS["formula"])
    found = misshapen(trial, loss, trial.question.exact)
    assert found == Problem("wrong", f"loss: got {kind}; expected a dense tensor of class torch.Tensor")


@pytest.mark.parametrize(("first", "declared"), [("float16", False), ("float32", False), ("float32", True)])
def test_only_a_float32_loss_where_a_narrower_dtype_is_due_may_be_declared(first, declared):
    """The further call returns float32 if the first does not, and float16 if float32 is declared."""
    loss = lambda *args, **options: crossent.formula(*args, **options).to(getattr(torch, first))  # noqa: E731
    subject = Subject("mine", loss).lacking({"half_result": "is declared without half_result"} if declared else {})
    trial = trial_of(Question(Case("float16", (7, 5), reduction="none")), subject)
    further = torch.zeros(7, dtype=torch.float16 if declared else torch.float32)
    found = misshapen(trial, further, trial.question.exact, way="under no_grad")
    assert ("If float32 is intended" in found.message) == (first == "float32" and not declared)


def on_meta(loss):
    return loss.detach().to("meta")


def test_a_loss_without_data_is_a_finding_and_no_other_check_runs():
    """A loss without data has no numbers to compare, even if its shape is right."""
    subject = Subject("mine", lambda *args, **options: on_meta(crossent.formula(*args, **options)), False)
    (finding,) = run(subject, NONE).findings
    assert (finding.check, finding.kind) == ("call", "refused")
    assert finding.message == "loss: got a tensor without data, as on the meta device; expected a tensor with data"


@pytest.mark.parametrize("last_right", [1, 3])
def test_a_later_loss_without_data_is_not_repeated(last_right):
    """`repeat` has a finding, whether its second call or its last call returns a loss without data."""
    calls = []

    def some_times(*args, **options):
        calls.append(1)
        loss = crossent.formula(*args, **options).detach()
        return loss if len(calls) <= last_right else on_meta(loss)

    trial = trial_of(Question(NONE), Subject("mine", some_times, differentiable=False))
    assert trial.got.digest
    problems = list(SINGLE[-1].run(trial))
    assert problems == [Problem("not_repeated", "a second call with the same arguments gives different bits")]


def writes(input, target, **options):
    loss = crossent.formula(input, target, **options)
    with torch.no_grad():
        input.zero_()
    return loss


def writes_backward(input, target, **options):
    loss = crossent.formula(input, target, **options)
    if input.requires_grad:
        input.register_hook(lambda gradient: (input.data.zero_(), gradient)[1])
    return loss


def sets_grad(input, target, **options):
    input.grad = torch.ones_like(input)
    return crossent.formula(input, target, **options)


def reshapes_target(input, target, **options):
    loss = crossent.formula(input, target, **options)
    target.unsqueeze_(0)
    return loss


def first_logit(input, target, **options):
    return input.flatten()[:7]


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (writes, Problem("changed_input", "the call wrote into input in the forward pass")),
        (writes_backward, Problem("changed_input", "the call wrote into input in the backward pass")),
        (sets_grad, Problem("changed_input", "the call set the .grad of input")),
        (reshapes_target, Problem("changed_input", "the call changed the shape, strides or offset of target")),
        (first_logit, Problem("aliased", "the loss shares memory with input")),
    ],
)
def test_a_change_of_an_argument_is_reported(loss, problem):
    assert found_by("arguments", loss) == [problem]
    assert found_by("arguments", crossent.formula) == []


def test_a_changed_shape_is_not_called_a_write():
    def reshapes(input, target, weight, **options):
        loss = crossent.formula(input, target, weight, **options)
        weight.unsqueeze_(0)
        return loss

    trial = trial_of(Question(Case("float32", weight="weighted")), Subject("mine", reshapes))
    said = "the call changed the shape, strides or offset of weight in the forward pass"
    assert list(single.arguments.run(trial)) == [Problem("changed_input", said)]


def test_changed_state_is_named_once_even_if_two_calls_change_it():
    def sets_two(*args, **options):
        torch.manual_seed(torch.initial_seed() + 1)
        torch.set_num_threads(torch.get_num_threads() + 1)
        return crossent.formula(*args, **options)

    trial = trial_of(Question(NONE), Subject("mine", sets_two))
    (chosen,) = (one for one in SINGLE if one.name == "state")
    once = [Problem("changed_state", "the call changed the number of threads, the random generator")]
    assert list(chosen.run(trial)) == once
    assert found_by("state", crossent.formula) == []
    trial.evaluate(trial.question.fresh())
    assert list(chosen.run(trial)) == once


def test_numbers_that_a_subject_does_not_have_are_not_measured():
    assert found_by("gradient", crossent.formula)[0].of == "gradient"
    assert found_by("gradient", crossent.formula, differentiable=False) == []


def test_repeat_says_whether_a_second_call_differs_or_writes_into_the_first_result():
    calls = []

    def grows(*args, **options):
        calls.append(1)
        return crossent.formula(*args, **options) + len(calls)

    buffer = torch.empty(7)

    def one_buffer(*args, **options):
        return buffer.copy_(crossent.formula(*args, **options))

    first = []

    def right_once(*args, **options):
        first.append(1)
        return crossent.formula(*args, **options) + min(len(first) - 1, 1)

    assert found_by("repeat", crossent.formula) == []
    problems = found_by("repeat", grows)
    assert problems == [Problem("not_repeated", "a second call with the same arguments gives different bits")]
    problems = found_by("repeat", right_once, differentiable=False)
    earlier = "a second call with the same arguments gives different bits: the result depends on earlier calls"
    assert problems == [Problem("not_repeated", earlier)]
    problems = found_by("repeat", one_buffer, differentiable=False)
    assert problems == [Problem("not_repeated", "a later call writes into the result of the first call")]


def known_by(key, name):
    """Return a right loss that keeps copies of one argument, such as "weight", by a function of this argument."""
    kept = {}

    def loss(input, target, **options):
        given = {"input": input, "target": target, **options}
        tensor = given[name]
        _, copy = kept.setdefault(key(tensor), (tensor, tensor.detach().clone()))  # no later tensor has its address
        given[name] = copy + (tensor - tensor.detach()) if tensor.requires_grad else copy
        return composed(**given) if "linear_weight" in options else crossent.formula(**given)

    return loss


@pytest.mark.parametrize(
    ("case", "name", "key"),
    [
        (Case("float32", weight="weighted"), "weight", id),
        (Case("float32", weight="weighted", weight_layout="weight_window"), "weight", id),
        (Case("float32"), "target", torch.Tensor.data_ptr),
        (Case("float32", layout="strided"), "input", torch.Tensor.data_ptr),
        (Case("float32", target_layout="target_expanded"), "target", torch.Tensor.data_ptr),
        (LinearCase("float32"), "linear_weight", id),
        (LinearCase("float32", linear_layout="linear_tied"), "linear_weight", id),
    ],
    ids=lambda value: getattr(value, "id", str(value)),
)
def test_repeat_finds_a_copy_that_is_stale_after_its_argument_changed_in_place(case, name, key):
    def problems(key):
        return list(SINGLE[-1].run(trial_of(Question(case), Subject("mine", known_by(key, name)))))

    assert problems(key) == [Problem("not_repeated", "a second call with the same arguments gives different bits")]
    assert problems(lambda tensor: (key(tensor), tensor._version)) == []


def test_checks_of_gradients_are_skipped_with_the_reason_for_a_subject_without_them():
    chosen = {
        check.name: check.why_not_run(Subject("mine", crossent.formula, differentiable=False), NONE.build())
        for check in SINGLE
    }
    of_gradients = {name for name, reason in chosen.items() if reason == "is not differentiable"}
    assert of_gradients == {"gradient", "target_gradient"}
    assert {chosen[name] for name in chosen.keys() - of_gradients} == {""}
    assert {check.why_not_run(FORM_SUBJECTS["formula"], NONE.build()) for check in SINGLE} == {""}


def test_other_findings_of_a_case_say_that_the_result_depends_on_earlier_calls():
    calls = []

    def wrong_at_first(*args, **options):
        calls.append(1)
        return crossent.formula(*args, **options) * (1.01 if len(calls) == 1 else 1)

    messages = {finding.check: finding.message for finding in run(Subject("mine", wrong_at_first), NONE).findings}
    assert {"loss", "gradient", "repeat"} <= set(messages)
    for message in messages.values():
        assert message.count(DEPENDS) == 1
    always = run(Subject("mine", lambda *args, **options: crossent.formula(*args, **options) * 1.01), NONE).findings
    assert always
    assert not any(DEPENDS in finding.message for finding in always)


@pytest.mark.parametrize(
    ("case", "applies"),
    [
        (LinearCase("float32", bias="bias"), True),
        (LinearCase("float32", bias="bias_cancelling"), True),
        (LinearCase("float32"), False),
        (NONE, False),
    ],
    ids=lambda value: getattr(value, "id", str(value)),
)
def test_the_gradient_of_the_bias_is_checked_where_there_is_a_bias(case, applies):
    assert single.bias_gradient.applies(case) == applies


@pytest.mark.parametrize("got", [[1.0, 0.0, 2.0, 3.0], [[1.0, 2.0], [0.0, 0.0], [0.0, 3.0], [4.0, 4.0]]])
def test_the_ignored_rows_that_are_not_zero_are_counted(got):
    """The last row is not ignored."""
    (problem,) = single._not_zero("result", torch.tensor(got), torch.tensor([True, True, True, False]))
    assert problem.message.startswith("result: not 0 in 2 of 3 ignored rows; got 1.0 at index (0,")
