"""Subjects that compute a linear cross-entropy: the user's functions, and torch with each of its options."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F

import crossent
from crossent.cases.linear.bad_inputs import LINEAR_BAD_INPUTS
from crossent.cases.linear.case import LinearCase
from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY
from crossent.forms import LINEAR_FORMS
from crossent.run.settings import Settings, operation_of
from crossent.subjects.builtin import LINEAR_ALIAS, REFERENCES, builtin_subjects
from crossent.subjects.callables import as_subject
from crossent.subjects.loader import load
from crossent.subjects.remote import load_remote
from crossent.trials.call import evaluate

linear_subject = functools.partial(as_subject, operation=LINEAR_CROSS_ENTROPY)
NEEDS_213 = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs torch 2.13")
PLAIN = LinearCase("float32", bias="bias")


def called_as_documented(hidden, weight, target, *, linear_bias=None, ignore_index=-100, reduction="mean", **options):
    assert hidden.shape[1] == weight.shape[1]
    logits = F.linear(hidden, weight, linear_bias)
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction, **options)


def test_the_weight_is_the_second_argument_whatever_its_name():
    subject = linear_subject(called_as_documented)
    assert subject.operation is LINEAR_CROSS_ENTROPY
    assert subject.lacks == {"memory": "does not say that it works in chunks"}
    got = evaluate(subject.loss, PLAIN.build())
    assert list(got.parts) == ["loss", "gradient", "weight_gradient", "bias_gradient"]
    expected = evaluate(REFERENCES[LINEAR_CROSS_ENTROPY].loss, PLAIN.build())
    assert got.digest == expected.digest


def test_a_second_parameter_named_weight_is_no_class_weight():
    def loss(hidden, weight, labels):
        return F.cross_entropy(hidden @ weight.T, labels)

    subject = linear_subject(loss)
    assert {"weight", "linear_bias", "ignore_index", "label_smoothing", "reduction_sum"} <= subject.lacks.keys()
    assert subject.lacks["linear_bias"] == "has no linear_bias"
    assert subject.not_applicable(PLAIN.build()) == "has no linear_bias"
    assert subject.not_applicable(LinearCase("float32").build()) is None
    assert evaluate(subject.loss, LinearCase("float32").build()).loss.dim() == 0


class _Head(torch.nn.Module):
    def __init__(self, reduction="mean"):
        super().__init__()

    def forward(self, hidden, target):
        return hidden.sum()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (_Head, "the class _Head, which has its own weight"),
        (_Head(), "an instance of _Head, which has its own weight; allowed is a callable with the signature"),
        (lambda hidden, target: hidden.sum(), "which does not take input, linear_weight and target"),
        (lambda hidden, weight, target, chunks: hidden.sum(), "which requires the argument 'chunks'"),
        (lambda a, b, c, target: a.sum(), "which requires the argument 'target'; allowed is a callable"),
        (lambda a, b, *, target: a.sum(), "takes target only as a keyword, but gets input, linear_weight and target"),
        (
            lambda weight=None, ignore_index=-100, reduction="mean": None,
            "takes the option weight first, in place of in",
        ),
        (7, "an object of type int, which is not callable"),
    ],
)
def test_other_objects_are_refused_in_one_line(given, reason):
    with pytest.raises(TypeError) as error:
        linear_subject(given)
    assert reason in str(error.value)
    assert "allowed is a callable with the signature of F.linear_cross_entropy" in str(error.value)


def test_a_linear_cross_entropy_without_its_operation_gets_a_hint():
    with pytest.raises(
        TypeError, match=r"requires the argument 'target' \(a linear cross-entropy needs --operation linear"
    ):
        as_subject(called_as_documented)


NAMES = [
    "torch_linear",
    *(f"torch_linear_{options}" for options in ("chunked", "chunk1", "accurate", "balanced", "compact")),
]


def test_the_name_of_torchs_function_stands_for_its_options():
    subjects = load(LINEAR_ALIAS)
    assert [one.name for one in subjects] == NAMES
    assert {one.contract for one in subjects} == {"torch"}
    assert {one.operation for one in subjects} == {LINEAR_CROSS_ENTROPY}
    assert [one.name for one in load(f"{LINEAR_ALIAS}+compile")] == ["torch_linear+compile"]
    for one in subjects:
        assert [again.name for again in load(one.source)] == [one.name]


@NEEDS_213
def test_torchs_options_agree_where_rounding_is_small():
    applicable = [one for one in load(LINEAR_ALIAS) if one.not_applicable(PLAIN.build()) is None]
    losses = [evaluate(one.loss, PLAIN.build()).loss for one in applicable]
    torch.testing.assert_close(losses[1:], losses[:1] * (len(losses) - 1))


@NEEDS_213
def test_each_option_of_torch_that_changes_numbers_has_a_subject():
    """In float16, no two subjects have the same gradients, since each rounds and adds up at other steps."""
    inputs = LinearCase("float16", (64, 257), "confident", bias="bias").build()
    applicable = [one for one in load(LINEAR_ALIAS) if one.not_applicable(inputs) is None]
    assert len({evaluate(one.loss, inputs).digest for one in applicable}) == len(applicable) >= 5


@NEEDS_213
def test_every_field_of_torchs_options_is_in_a_subject():
    given = {name for one in load(LINEAR_ALIAS)[1:] for name in one.loss.args[0]}
    assert given == {field.name for field in dataclasses.fields(torch.nn.LinearCrossEntropyOptions)}


@NEEDS_213
def test_torch_does_not_add_up_float64_in_float32():
    reasons = {one.name: one.not_applicable(LinearCase("float64").build()) for one in load(LINEAR_ALIAS)}
    assert [name for name, reason in reasons.items() if reason] == ["torch_linear_balanced", "torch_linear_compact"]


def test_torch_before_2_13_is_not_applicable(monkeypatch):
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    for one in load(LINEAR_ALIAS):
        assert one.not_applicable(PLAIN.build()) == "needs torch 2.13 or newer"
    report = crossent.check(LINEAR_ALIAS, dtypes="float32", level="quick", cases=PLAIN.id)
    assert report.ran == 0
    assert report.subjects[0].not_applicable == {"needs torch 2.13 or newer": 1}


@NEEDS_213
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label_smoothing": 0.1}, "has no label_smoothing"),
        ({"reduction": "sum"}, None),
    ],
)
def test_chunks_do_not_apply_where_torch_ignores_the_options(changes, reason):
    inputs = LinearCase("float32", **changes).build()
    chunked = [one for one in load(LINEAR_ALIAS)[1:] if "balanced" not in one.name]
    assert load(LINEAR_ALIAS)[0].not_applicable(inputs) is None
    assert {one.not_applicable(inputs) for one in chunked} == {reason}


@NEEDS_213
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("linear_reduction_unknown", "takes only the reductions none, mean and sum"),
        (
            "linear_reduction_unknown_with_probabilities",
            "takes class probabilities only with the reductions mean and sum",
        ),
    ],
)
def test_chunks_do_not_apply_to_an_unknown_reduction(bad, reason):
    (inputs,) = (one.build() for one in LINEAR_BAD_INPUTS if one.id == bad)
    reasons = {one.not_applicable(inputs) for one in load(LINEAR_ALIAS)[1:] if "balanced" not in one.name}
    assert reasons in ({reason}, {"takes class probabilities only since torch 2.14"})  # the second in torch 2.13


@NEEDS_213
def test_a_policy_that_torch_removed_is_named(monkeypatch):
    def without_balanced(acc_policy="auto", **options):
        if acc_policy == "balanced":
            raise ValueError("acc_policy must be one of auto, accurate, compact")

    monkeypatch.setattr(torch.nn, "LinearCrossEntropyOptions", without_balanced)
    reasons = {one.name: one.not_applicable(PLAIN.build()) for one in load(LINEAR_ALIAS)}
    assert reasons.pop("torch_linear_balanced") == "needs torch 2.13, which has acc_policy='balanced'"
    assert set(reasons.values()) == {None}


def test_a_run_has_the_operation_of_its_built_in_subjects():
    assert operation_of([], None) == operation_of(["formula", "mine.py:loss"], None) == "cross_entropy"
    assert operation_of([LINEAR_ALIAS, called_as_documented], None) == "linear_cross_entropy"
    assert operation_of(["torch_linear+compile"], None) == "linear_cross_entropy"
    assert operation_of(["mine.py:loss"], "linear_cross_entropy") == "linear_cross_entropy"
    assert operation_of(list(LINEAR_FORMS), None) == "linear_cross_entropy"
    for other in ("torch_linear", "linear_formula"):
        with pytest.raises(ValueError, match=f"formula computes cross_entropy, but {other} computes linear_cross_entr"):
            operation_of(["formula", other], None)
    with pytest.raises(ValueError, match="got 'linear_cross_entropy', but formula computes cross_entropy"):
        operation_of(["formula"], "linear_cross_entropy")
    with pytest.raises(ValueError, match="operation: got 'softmax'; allowed are cross_entropy, linear_cross_entropy"):
        Settings(operation="softmax")


def test_each_operation_has_its_subjects():
    assert list(builtin_subjects(LINEAR_CROSS_ENTROPY)) == [*LINEAR_FORMS, LINEAR_ALIAS]
    assert "formula" in builtin_subjects(CROSS_ENTROPY)
    assert [one.name for one in Settings(operation="linear_cross_entropy").load()] == [
        *LINEAR_FORMS,
        *(one.name for one in load(LINEAR_ALIAS)),
    ]


def test_another_process_loads_a_linear_cross_entropy(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch.nn.functional as F\n"
        "def loss(hidden, weight, target, *, linear_bias=None):\n"
        "    return F.cross_entropy(F.linear(hidden, weight, linear_bias), target)\n"
    )
    (subject,) = load_remote(f"{tmp_path}/mine.py:loss", 60, operation=LINEAR_CROSS_ENTROPY)
    assert subject.operation is LINEAR_CROSS_ENTROPY
    assert "linear_bias" not in subject.lacks
    expected = evaluate(REFERENCES[LINEAR_CROSS_ENTROPY].loss, PLAIN.build())
    assert evaluate(subject.loss, PLAIN.build()).digest == expected.digest
    with pytest.raises(ValueError, match="needs --operation linear_cross_entropy"):
        load_remote(f"{tmp_path}/mine.py:loss", 60)
