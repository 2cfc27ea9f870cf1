"""Each form and `nn.CrossEntropyLoss` in float64 against the exact answer: loss and gradient, over the whole grid."""

import itertools
from dataclasses import replace

import pytest

from crossent.cases import Case
from crossent.grid import AXES, grid
from crossent.report import Report, SubjectReport
from crossent.runner import run_case
from crossent.subjects import FORMS, REFERENCE


def pytest_generate_tests(metafunc):
    # In a hook, not in a decorator: the seed is an option of the run.
    if "case" in metafunc.fixturenames:
        seed = metafunc.config.getoption("--crossent-seed")
        metafunc.parametrize("case", [pytest.param(case, id=case.id) for case in grid(seed=seed)])


def test_every_form_and_torch_have_the_exact_loss_and_gradient(case, device):
    subjects = [*FORMS.values(), REFERENCE]
    report = Report({}, [SubjectReport(subject.name) for subject in subjects])
    run_case(case, subjects, report, device)
    assert report.ran  # one case may be no evidence; what a whole run's evidence is, test_checks.py asks
    assert not report.findings, "\n".join(f"{form.name}: {f}" for form in report.subjects for f in form.findings)


def test_every_triple_of_options_meets_in_the_grid():
    names = ("sizes", "values", "target", "reduction", "weight", "ignored", "label_smoothing", "upstream")
    met = [{name: getattr(case, name) for name in names} for case in grid(["float32"])]
    axes = {name: sorted({row[name] for row in met}, key=str) for name in names}
    # Two choices are one axis of the grid where not all of their pairs are asked for.
    asked = [dict(zip(("sizes", "values"), pair, strict=True)) for pair in AXES["sizes and values"]]

    def possible(picked):
        """Whether the three can stand together in some case."""
        if not any(all(pair[n] == picked.get(n, pair[n]) for n in pair) for pair in asked):
            return False
        rest = [{"reduction": "none", "upstream": "rows"}, {"reduction": "sum", "upstream": "scalar"}]
        sizes = [pair for pair in asked if all(pair[n] == picked.get(n, pair[n]) for n in pair)]
        tries = [Case("float32", **{**pair, **options, **picked}) for pair in sizes for options in rest]
        return any(not case.invalid and (case.reduction == "none") != (case.upstream == "scalar") for case in tries)

    triples = 0
    for three in itertools.combinations(names, 3):
        together = {tuple(row[name] for name in three) for row in met}
        for values in itertools.product(*(axes[name] for name in three)):
            if possible(dict(zip(three, values, strict=True))):
                triples += 1
                assert values in together, f"never together: {values}"
    assert triples > 1000
    print(f"{triples} triples of options, all covered")


def test_a_case_is_rebuilt_bit_for_bit():
    case = next(grid(["bfloat16"], seed=3))
    once, again = case.build(), replace(case).build()
    assert once.logits.equal(again.logits)
    assert once.target.equal(again.target)
    assert once.upstream.equal(again.upstream)


def test_another_seed_makes_other_numbers():
    case = next(grid(["float32"]))
    assert not case.build().logits.equal(replace(case, seed=1).build().logits)


def test_case_ids_are_unique():
    ids = [case.id for case in grid()]
    assert len(ids) == len(set(ids))
