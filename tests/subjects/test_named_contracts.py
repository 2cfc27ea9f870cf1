"""The contracts that a user chooses by name: each has its promise and grade, for forms, torch and functions."""

import pytest
import torch.nn.functional as F

from crossent.run.settings import Settings
from crossent.subjects.builtin import BY_NAME, NAMED, chosen_contract
from crossent.subjects.compiler import as_compiled
from crossent.subjects.contracts import CONTRACTS, under_contract
from crossent.subjects.loader import load, source_of
from crossent.subjects.subject import Subject

PROMISES = {"kernel": "kernel", "fast": "fast_kernel", "logsumexp": "logsumexp", "eager": "eager", "torch": "torch"}
HALVES = {"float16": "B", "bfloat16": "B"}


def test_every_contract_gives_its_promise_and_its_grade():
    assert set(CONTRACTS) == set(PROMISES)
    for name, promise in PROMISES.items():
        for subject in (F.cross_entropy, "formula", "torch"):
            for one in load(subject, contract=name):
                assert (one.contract, one.promise) == (name, promise)
                assert one.grades == (HALVES if name == "torch" else {})


@pytest.mark.parametrize("name", [name for name in PROMISES if name != "torch"])
def test_every_contract_but_torchs_accepts_a_grade(name):
    for subject in (F.cross_entropy, "formula", "torch"):
        assert load(subject, contract=name, grade="B")[0].grades == HALVES
        assert load(subject, contract=name, grade="A")[0].grades == {}


def test_without_a_contract_the_forms_and_torch_keep_their_own():
    for name in NAMED:
        for grade in (None, "A", "B"):
            for one in load(name, grade=grade):
                own = BY_NAME[one.name]
                assert (one.contract, one.promise, one.grades) == (own.contract, own.promise, own.grades)
    (mine,) = load(F.cross_entropy)
    assert (mine.contract, mine.promise, mine.grades) == ("kernel", "kernel", {})


def test_a_contract_is_named_where_it_is_not_the_default():
    def named(subject, contract=None):
        return chosen_contract(load(subject, contract=contract)[0])

    assert [named(one) for one in (F.cross_entropy, "formula", "blocked", "torch", "torch+compile")] == [""] * 5
    assert [named(F.cross_entropy, name) for name in PROMISES] == ["", "fast", "logsumexp", "eager", "torch"]
    assert [named("formula", name) for name in PROMISES] == ["kernel", "fast", "logsumexp", "", "torch"]
    assert [named("torch", name) for name in PROMISES] == ["kernel", "fast", "logsumexp", "eager", ""]
    assert [named("torch+compile", name) for name in PROMISES] == ["kernel", "fast", "logsumexp", "eager", ""]


def test_code_that_is_compiled_for_cuda_keeps_its_approximate_functions():
    compiled = as_compiled(Subject("mine", F.cross_entropy), "cuda")
    made = under_contract(compiled, "torch", None)
    assert (made.contract, made.promise, made.grades) == ("torch", "fast_kernel", HALVES)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"contract": "jax"}, "contract: got 'jax'; allowed are kernel, fast, logsumexp, eager, torch"),
        ({"contract": ["fast"]}, "contract: got ['fast']; allowed are kernel, fast, logsumexp, eager, torch"),
        ({"contract": ""}, "contract: got ''; allowed are kernel, fast, logsumexp, eager, torch"),
        ({"grade": "C"}, "grade: got 'C'; allowed are A, B, float16=B, bfloat16=B"),
        (
            {"contract": "torch", "grade": "A"},
            "grade: got 'A', but the contract 'torch' has grade B in float16 and bfloat16; leave out one of the two",
        ),
    ],
)
def test_a_wrong_contract_or_grade_is_an_error_of_one_line(given, said):
    for make in (Settings, lambda **given: load("formula", **given)):
        with pytest.raises(ValueError, match=r"^(contract|grade): ") as raised:
            make(**given)
        assert str(raised.value) == said


def test_a_source_is_known_without_loading_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source_of("mine.py:Losses.loss") == f"{tmp_path / 'mine.py'}:Losses.loss"
    assert source_of("mine.py:loss+compile") == f"{tmp_path / 'mine.py'}:loss+compile"
    assert source_of("package.module:loss+compile") == "package.module:loss+compile"
    assert source_of("torch") == "torch"
