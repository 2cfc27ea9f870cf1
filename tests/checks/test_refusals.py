"""Bad inputs: a subject must raise an allowed error, leave its arguments unchanged, and not end its process."""

import itertools

import pytest
import torch
from support import refusers
from support.running import run

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.checks.refusals import judge_reaction, react
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH, TORCH_NLL
from crossent.subjects.loader import load
from crossent.trials.act import Here

BY_ID = {bad_input.id: bad_input for bad_input in BAD_INPUTS}
BEYOND, SHORT_WEIGHT = BY_ID["class_beyond_the_last"], BY_ID["weight_too_short"]


def problems(loss, bad_input=BEYOND):
    found = judge_reaction(react(Here(loss), bad_input, "cpu"), bad_input.allowed("cpu"))
    return {p.kind: p.message for p in found.values() if p}


def refusing(before):
    """Return a subject that first changes its arguments, and then raises the right error."""

    def loss(input, target, **options):
        kept = input.clone(), target.clone(), {**options}
        before(input, target, **options)
        return crossent.formula(*kept[:2], **kept[2])

    return loss


@pytest.mark.parametrize("bad_input", BAD_INPUTS, ids=lambda bad_input: bad_input.id)
def test_the_forms_and_torch_refuse_every_bad_input_before_they_write(bad_input, device):
    if bad_input.asserts(device) and bad_input is not BEYOND:
        pytest.skip("needs `crossent check --device`: six processes, each of which initialises the device")
    subjects = [*FORM_SUBJECTS.values(), TORCH, TORCH_NLL]
    report = run(subjects, bad_input, device=device)
    found = [(finding.subject, finding.kind) for finding in report.findings]
    known = bad_input.id.startswith(("label_smoothing_negative", "label_smoothing_nan"))
    assert found == ([("torch", "accepted")] if known else []), report
    assert report.ran >= 4


def test_every_bad_input_has_new_tensors_at_each_build():
    for bad_input in BAD_INPUTS:
        once, again = bad_input.build(), bad_input.build()
        assert once.digest == again.digest, bad_input.id
        for one, two in ((once.input, again.input), (once.target, again.target)):
            assert one is not two
            assert one.numel() == 0 or one.data_ptr() != two.data_ptr(), bad_input.id


def test_bad_inputs_have_unique_names_and_their_own_dtype():
    assert len(BY_ID) == len(BAD_INPUTS)
    torch.set_default_dtype(torch.float64)
    try:
        for bad in BAD_INPUTS:
            assert bad.id.startswith("logits_") or bad.build().input.dtype == DTYPES[bad.dtype]
    finally:
        torch.set_default_dtype(torch.float32)


def clamps_where_there_is_a_weight(input, target, weight=None, **options):
    if weight is not None:
        target = target.clamp(0, 3) if target.dtype == torch.int64 else target
    return crossent.formula(input, target, weight, **options)


def widens_first(input, target, weight=None, **options):
    if input.dtype in (torch.float16, torch.bfloat16):
        return crossent.formula(input.float(), target, weight, **options).to(input.dtype)
    return crossent.formula(input, target, weight, **options)


def takes_int32_where_it_widens(input, target, *arguments, **options):
    half = input.dtype in (torch.float16, torch.bfloat16)
    return crossent.formula(input, target.long() if half and target.dim() < input.dim() else target, **options)


def forgives_a_little(input, target, label_smoothing=0.0, **options):
    tiny = -1e-6 < label_smoothing < 0
    return crossent.formula(input, target, label_smoothing=0.0 if tiny else label_smoothing, **options)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (
            clamps_where_there_is_a_weight,
            {"class_weighted", "class_negative_weighted", "class_weighted_unreduced", "class_weighted_smoothed"},
        ),
        (widens_first, {"weight_of_float32_of_float16", "weight_of_float32_of_bfloat16"}),
        (takes_int32_where_it_widens, {"target_int32_of_float16", "target_int32_of_bfloat16"}),
        (forgives_a_little, {"label_smoothing_negative_by_little"}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_subject_that_accepts_some_bad_calls_has_findings_for_these_alone(wrong, found):
    accepted = {bad.id for bad in BAD_INPUTS if "accepted" in problems(wrong, bad)}
    assert accepted == found


def test_a_bad_call_without_an_error_is_a_finding():
    assert problems(refusers.accepts) == {"accepted": "the call returned 0.0; should have raised IndexError"}
    assert problems(lambda *arguments, **options: None) == {
        "accepted": "the call returned; should have raised IndexError"
    }


@pytest.mark.parametrize("error", [KeyError("no"), RuntimeError("no"), SystemExit(3)], ids=repr)
def test_an_error_of_another_class_is_wrong(error):
    def raises(*arguments, **options):
        raise error

    (message,) = [message for kind, message in problems(raises).items() if kind == "wrong"]
    assert message.startswith(f"the call raised {type(error).__name__}: ")
    assert message.endswith("; should have raised IndexError")


def test_an_error_of_a_derived_class_is_right():
    class OutOfRangeError(IndexError):
        pass

    def raises(*arguments, **options):
        raise OutOfRangeError

    assert not problems(raises)


def test_an_index_error_of_torch_whose_message_python_cannot_decode_is_right():
    """torch's message has a class of uint8 as one byte, which is not UTF-8, so Python raises UnicodeDecodeError."""

    def averages(input, target, **options):
        return torch.nn.functional.cross_entropy(input, target, reduction="none").mean()

    bad = next(bad for bad in BAD_INPUTS if bad.id == "class_of_uint8_that_equals_ignore_index")
    assert not problems(averages, bad)

    def undecodable(*arguments, **options):
        b"\x9c".decode()

    assert "wrong" in problems(undecodable, bad)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda x, y, **options: x[0, 0].fill_(1), "wrote into input"),
        (lambda x, y, **options: x.neg_(), "wrote into input"),  # -0.0 == 0.0
        (lambda x, y, **options: x.unsqueeze_(0), "changed the shape, strides or offset of input"),
        (lambda x, y, **options: y.clamp_(max=1), "wrote into target"),
        (lambda x, y, **options: options["weight"].mul_(2), "wrote into weight"),
    ],
    ids=["one element", "a sign of zero", "its shape", "target", "weight"],
)
def test_a_bad_call_that_changes_an_argument_is_a_finding(write, said):
    found = problems(refusing(write), SHORT_WEIGHT)
    assert found == {"changed_input": f"the call {said}"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: torch.set_default_dtype(torch.float64), "the default dtype"),
        (lambda: torch._C._set_grad_enabled(False), "the gradient mode"),
        (lambda: torch.rand(1), "the random generator"),
    ],
    ids=["default dtype", "gradient mode", "generator"],
)
def test_a_bad_call_that_changes_global_state_is_a_finding_and_is_undone(change, name):
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.random.get_rng_state()
    found = problems(refusing(lambda *arguments, **options: change()))
    assert found == {"changed_state": f"the call changed {name}"}
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before[:2]
    assert torch.random.get_rng_state().equal(before[2])


def test_each_error_of_a_call_is_a_separate_finding():
    def everything(input, target, **options):
        input.add_(1)
        torch.rand(1)

    report = run(everything, BEYOND)
    assert sorted((finding.check, finding.kind) for finding in report.findings) == [
        ("arguments", "changed_input"),
        ("errors", "accepted"),
        ("state", "changed_state"),
    ]
    assert all(measured.failed for measured in report.subjects[0].outcomes[BEYOND.id].checks.values())


DEFAULTS = {"weight": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0}
SIGNATURES = [names for count in range(5) for names in itertools.combinations(DEFAULTS, count)]


def with_parameters(loss, names):
    """Return the loss as a function that has only these options in its signature."""
    space = {"loss": loss}
    parameters = ", ".join(f"{name}={DEFAULTS[name]!r}" for name in names)
    passed = ", ".join(f"{name}={name}" for name in names)
    exec(f"def mine(x, y, {parameters}): return loss(x, y, {passed})", space)
    return space["mine"]


def forgives(input, target, **options):
    """Return zeros for each call that the formula refuses."""
    try:
        return crossent.formula(input, target, **options)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return input.new_zeros(())


def given_options(bad):
    """Return the names of the options that do not have their default, wrong values included."""
    options = bad.build().options
    return {name for name, value in options.items() if isinstance(value, torch.Tensor) or value != DEFAULTS[name]}


@pytest.mark.parametrize("names", SIGNATURES, ids="-".join)
def test_a_bad_value_of_an_option_that_the_signature_lacks_is_not_applicable(names):
    right = run(load(with_parameters(crossent.formula, names)), BAD_INPUTS)
    assert [str(finding) for finding in right.findings] == []
    applicable = {bad.id for bad in BAD_INPUTS if given_options(bad) <= set(names)}
    assert set(right.subjects[0].outcomes) == applicable
    wrong = run(load(with_parameters(forgives, names)), BAD_INPUTS)
    assert {finding.case for finding in wrong.findings if finding.kind == "accepted"} == applicable


@pytest.mark.parametrize("keyword", DEFAULTS)
def test_a_bad_value_of_an_option_in_the_signature_is_found(keyword):
    """The wrong function accepts every value of its one option, and each bad value is a finding.

    For a wrong class, the function still raises an error.
    """

    def takes_every_value(x, y, **options):
        try:
            return crossent.formula(x, y, **options)
        except (RuntimeError, ValueError, TypeError):
            return crossent.formula(x, y)

    found = run(load(with_parameters(takes_every_value, (keyword,))), BAD_INPUTS).findings
    of_keyword = {bad.id for bad in BAD_INPUTS if given_options(bad) == {keyword}}
    assert {finding.case for finding in found} == {name for name in of_keyword if not name.startswith("class_")}
