"""Each form and `nn.CrossEntropyLoss` in float64 against the exact answer: loss and gradient, over the whole grid."""

from dataclasses import replace

import pytest

from crossent import cases
from crossent.report import Report, SubjectReport
from crossent.runner import run_case
from crossent.subjects import FORMS, REFERENCE


def pytest_generate_tests(metafunc):
    # In a hook, not in a decorator: the seed is an option of the run.
    if "case" in metafunc.fixturenames:
        seed = metafunc.config.getoption("--crossent-seed")
        metafunc.parametrize("case", [pytest.param(case, id=case.id) for case in cases.grid(seed=seed)])


def test_every_form_and_torch_have_the_exact_loss_and_gradient(case, device):
    subjects = [*FORMS.values(), REFERENCE]
    report = Report({}, [SubjectReport(subject.name) for subject in subjects])
    run_case(case, subjects, report, device)
    assert report.ran  # one case may be no evidence; what a whole run's evidence is, test_checks.py asks
    assert not report.findings, "\n".join(f"{form.name}: {f}" for form in report.subjects for f in form.findings)


def test_every_triple_of_options_meets_in_the_grid():
    names = ("shape", "target", "reduction", "weight", "ignored", "label_smoothing", "upstream")
    rows = [tuple(getattr(case, name) for name in names) for case in cases.grid(["float32"])]

    def possible(picked):
        """Whether the values can stand together in one case: the two constraints that the grid has."""
        if picked.get("target") == "probabilities" and picked.get("ignored", "no_ignored") != "no_ignored":
            return False
        upstreams = cases.UPSTREAMS.get(picked.get("reduction"), sum(cases.UPSTREAMS.values(), ()))
        return picked.get("upstream", upstreams[0]) in upstreams

    triples = 0
    for i in range(len(names)):
        for j in range(i):
            for k in range(j):
                met = {(row[i], row[j], row[k]) for row in rows}
                for a in {row[i] for row in rows}:
                    for b in {row[j] for row in rows}:
                        for c in {row[k] for row in rows}:
                            if possible({names[i]: a, names[j]: b, names[k]: c}):
                                triples += 1
                                assert (a, b, c) in met, f"never together: {a}, {b}, {c}"
    assert triples > 0
    print(f"{triples} triples of options, all covered")


def test_a_case_is_rebuilt_bit_for_bit():
    case = next(cases.grid(["bfloat16"], seed=3))
    once, again = case.build(), replace(case).build()
    assert once.logits.equal(again.logits)
    assert once.target.equal(again.target)
    assert once.upstream.equal(again.upstream)


def test_another_seed_makes_other_numbers():
    case = next(cases.grid(["float32"]))
    assert not case.build().logits.equal(replace(case, seed=1).build().logits)


def test_case_ids_are_unique():
    ids = [case.id for case in cases.grid()]
    assert len(ids) == len(set(ids))
