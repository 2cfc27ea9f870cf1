"""Subtle defects: the checks catch each defect in every dtype that the defect names, and correct code passes.

A table of benchmarks/README.md says how many defects `torch.testing.assert_close` finds. This command writes it:

    pytest tests/checks/test_defects.py --crossent-write-figures
"""

import functools
import json
import platform
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.defects import DEFECTS, RIGHT
from support.readme import RESULTS, part
from support.running import compare
from support.subjects import TENSOR_FORMS

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.cases.inputs import Inputs
from crossent.numerics.formats import FORMATS
from crossent.trials.call import Result, evaluate
from crossent.trials.exact import solve

FIGURES = RESULTS / "defects.json"


def rows(name, sizes, values, **options):
    return Case("float64", sizes, values, reduction="none", upstream="rows", name=name, **options)


def reduced(name, sizes, values, **options):
    return Case("float64", sizes, values, **{"reduction": "mean", "upstream": "scalar", **options}, name=name)


# The name of each case says what the case tests.
ADVERSARIAL = (
    rows("plain", (64, 5), "normal"),
    rows("one-class", (9, 1), "normal"),  # every loss is 0
    rows("far-apart", (31, 7), "wide"),
    rows("farther-apart", (16, 100), "large"),
    rows("sure-and-right", (200, 3), "confident"),
    rows("sure-and-wrong", (64, 5), "wrong"),
    rows("common-offset", (64, 10), "offset"),
    rows("offset-of-each-row", (16, 10), "row_offsets"),
    rows("many-classes", (16, 100), "normal"),
    rows("maximum-anywhere", (16, 100), "outlier"),
    rows("many-small-terms", (4, 1000), "outlier"),
    rows("masked", (64, 5), "inf_off_target"),
    rows("probabilities", (64, 5), "normal", target="probabilities"),
    rows("no-probabilities", (64, 5), "normal", target="unnormalised"),
    rows("weighted", (64, 5), "normal", weight="weighted"),
    rows("smoothed", (64, 5), "normal", weight="weighted", label_smoothing=0.1),
    reduced("batch", (32, 10), "normal"),
    reduced("weighted-mean", (64, 5), "normal", weight="weighted", ignored="ignored"),
    reduced("weight-of-2^-9", (1, 50), "normal", weight="weight_decades", seed=43),
    reduced("more-rows-than-float16-counts", (2051, 3), "normal"),
    reduced("losses-with-a-rounding-each", (3, 3), "normal"),
    reduced("sum-with-a-rounding", (63, 10), "normal"),
    reduced("equal-losses", (3, 3), "flat", reduction="sum"),
)
# Some cases of the grid, which combine options. Cases that torch refuses and cases without a kept row are left out.
OF_THE_GRID = [
    c for c in grid(["float64"]) if c.target not in ("uint8", "other_float") and c.ignored != "ignored_all" and c.rows
][::30]


@functools.cache
def cases_of(dtype):
    """Return the cases of one dtype, with their inputs and exact values."""
    chosen = [replace(case, dtype=dtype) for case in (*ADVERSARIAL, *OF_THE_GRID)]
    return [(case, inputs, solve(inputs)) for case in chosen for inputs in [case.build()]]


def first_difference(loss, dtype, promise):
    """Return the first result of a loss beyond the bounds of grade A, in words, or None if there is none."""
    for case, inputs, expected in cases_of(dtype):
        got = evaluate(loss, inputs, ("gradient",))
        assert (tuple(got.loss.shape), got.loss.dtype) == (expected.shape, expected.dtype), case.id
        for difference in compare(got, expected, "A", promise):
            if difference.ratio > 1:
                return f"{difference.of} on {case.id}: {difference}"
    return None


def computed_in_float64(input, target, **options):
    """Return torch's loss computed in float64, and rounded once to the dtype of the logits."""
    wide = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in options.items()}
    target = target.double() if target.is_floating_point() else target
    return F.cross_entropy(input.double(), target, **wide).to(input.dtype)


# These defects are within the bounds of the promise "kernel". A kernel may add the maximum back to the logarithm, and
# its loss may then be off by a unit in the last place of the logits.
LEGAL_IN_KERNELS = ("small_losses_are_zero", "gradient_from_logsumexp")
LISTED = [(d, t, p) for d in DEFECTS for t in d.dtypes for p in ("eager", "kernel")]


@pytest.mark.parametrize(
    ("defect", "dtype", "promise"),
    [one for one in LISTED if one[2] == "eager" or one[0].name not in LEGAL_IN_KERNELS],
    ids=str,
)
def test_a_subtle_defect_is_found(defect, dtype, promise):
    assert first_difference(defect, dtype, promise) is not None, f"{defect.sentence} No case shows this in {dtype}."


@pytest.mark.parametrize("promise", ["eager", "kernel"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_correct_code_has_no_finding(dtype, promise):
    right = [RIGHT, *(form.loss for form in TENSOR_FORMS if form.promise == "eager"), computed_in_float64]
    if dtype in ("float32", "float64"):
        right.append(F.cross_entropy)
    for loss in right:
        assert first_difference(loss, dtype, promise) is None, loss


def test_no_two_defects_have_a_name_or_a_sentence_in_common():
    for words in ([d.name for d in DEFECTS], [d.sentence for d in DEFECTS]):
        assert len(set(words)) == len(DEFECTS)


# For comparison, the defects that `torch.testing.assert_close` finds, with default tolerances and `equal_nan=True`.


def rounded_exact_values(expected, got):
    """Return the exact values rounded to the dtype of the result: the best expected values that a test can have."""
    gradient = got.gradient.movedim(1, -1) if got.gradient.dim() > 1 else got.gradient
    gradient = _nearest(expected.gradient.hi, gradient)
    return Result(_nearest(expected.loss.hi, got.loss), gradient.movedim(-1, 1) if got.gradient.dim() > 1 else gradient)


def _nearest(values, like):
    values = FORMATS[str(like.dtype).removeprefix("torch.")].nearest(values)
    return torch.from_numpy(values).to(like.dtype).reshape(like.shape)


def close(got, wanted):
    try:
        for name in ("loss", "gradient"):
            torch.testing.assert_close(getattr(got, name), getattr(wanted, name), equal_nan=True)
    except AssertionError:
        return False
    return True


def randn(dtype):
    """Return the usual inputs of a test: one batch of normal logits."""
    torch.manual_seed(0)
    logits, target = torch.randn(32, 10).to(DTYPES[dtype]), torch.randint(10, (32,))
    options = {"reduction": "mean", "label_smoothing": 0.0}
    return Inputs(logits, target, options, torch.ones((), dtype=DTYPES[dtype]))


def verdicts(loss, dtype):
    """Return, for each use of `assert_close`, a list that says for each case whether a loss passes."""
    cases = [(inputs, expected, evaluate(loss, inputs, ("gradient",))) for _, inputs, expected in cases_of(dtype)]
    plain = randn(dtype)
    return {
        "exact": [close(got, rounded_exact_values(expected, got)) for _, expected, got in cases],
        "torch": [close(got, evaluate(F.cross_entropy, inputs, ("gradient",))) for inputs, _, got in cases],
        "randn": [close(evaluate(loss, plain), evaluate(F.cross_entropy, plain))],
    }


def count(dtype):
    """Return the defects of a dtype, and the defects that crossent and each use of `assert_close` miss.

    A case on which correct code fails too is no evidence against a defect, and is not counted.
    """
    right = verdicts(RIGHT, dtype)
    listed = [defect for defect in DEFECTS if dtype in defect.dtypes]
    found = {defect.name: verdicts(defect, dtype) for defect in listed}
    missed = {
        way: [
            name
            for name, passes in found.items()
            if not any(ok and not passed for ok, passed in zip(right[way], passes[way], strict=True))
        ]
        for way in right
    }
    missed["crossent"] = [d.name for d in listed if first_difference(d, dtype, "eager") is None]
    return {
        "defects": [defect.name for defect in listed],
        "cases": len(cases_of(dtype)),
        "missed": missed,
        "false_alarms": {way: passes.count(False) for way, passes in right.items()},
    }


@pytest.fixture(scope="module")
def figures(pytestconfig):
    if pytestconfig.getoption("--crossent-write-figures"):
        counted = {dtype: count(dtype) for dtype in DTYPES}
        written = {"torch": torch.__version__, "python": platform.python_version(), "dtypes": counted}
        FIGURES.write_text(json.dumps(written, indent=1) + "\n")
        part("defects", table(written))
    return json.loads(FIGURES.read_text())


def table(figures):
    """Return the figures as a Markdown table."""
    dtypes = figures["dtypes"]
    defects = {name for counted in dtypes.values() for name in counted["defects"]}
    (cases,) = {counted["cases"] for counted in dtypes.values()}
    head = (
        "dtype",
        "defects",
        "found by crossent",
        "`assert_close`, exact value",
        "`assert_close`, torch's result",
        "the same, one `randn(32, 10)`",
        "right code fails",
    )
    lines = [head, ["---"] * len(head)]
    for dtype, counted in dtypes.items():
        listed, alarms = len(counted["defects"]), counted["false_alarms"]
        found = (listed - len(counted["missed"][way]) for way in ("crossent", "exact", "torch", "randn"))
        lines.append([dtype, listed, *found, f"{alarms['torch']} of {cases} cases"])
    rows = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    return f"{len(defects)} defects, {cases} cases in each dtype, torch {figures['torch']}:\n\n{rows}"


def test_the_figures_are_about_these_defects(figures):
    for dtype, counted in figures["dtypes"].items():
        assert counted["defects"] == [defect.name for defect in DEFECTS if dtype in defect.dtypes]
        assert counted["cases"] == len(cases_of(dtype))
        assert counted["missed"]["crossent"] == []
        # The table of the docs says so: with exact values, and on `randn`, `assert_close` passes correct code.
        assert (counted["false_alarms"]["exact"], counted["false_alarms"]["randn"]) == (0, 0)


def test_the_readme_has_the_table_of_the_figures(figures):
    assert part("defects") == table(figures)
