"""Known failures of torch: `crossent check torch` finds each with its built-in cases, and marks it as known.

Each test is about one measured defect, and about the findings that show the defect.
"""

import math

import pytest
import torch
from packaging.version import Version
from support.running import check_on
from support.waits import computes, float16

from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.edges import EDGES, edges

RELEASE = Version(torch.__version__).release
# Cases of the grid that show a defect; the whole grid takes a quarter of a minute.
OF_THE_GRID = (
    "float32-2x5x3x2-normal-int64-none-rows",
    "float32-7x5-wide-int64-none-rows",
    "float32-3x5x4-normal-uint8-none-rows",
    "float32-7x5-normal-uint8-mean-weighted-scalar-smooth0.1",
    "float16-7x5-wide-int64-none-rows",
)


@pytest.fixture(scope="module")
def report():
    """Return the report of `crossent check torch` on some cases of its grid."""
    chosen = [Case.of(one) for one in OF_THE_GRID]
    return check_on(chosen, more=list(edges()))("torch")


@pytest.fixture
def found(report):
    """Return a function that returns the finding with an id, which must be a known failure."""
    findings = {finding.id: finding for part in report.subjects for finding in part.findings}

    def get(id):
        assert id in findings, f"{id} is no finding; the findings are {list(findings)}"
        assert findings[id].expected, findings[id]
        return findings[id]

    return get


@float16
@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_a_mean_over_70000_rows_of_two_equal_float16_logits_is_0_and_so_is_its_gradient(found, subject):
    loss = found(f"{subject}:loss:pytorch-85791/float16-70000x2-flat-int64-mean").numbers
    assert (loss.got, f"{loss.exact:.3f}") == (0.0, "0.693")
    gradient = found(f"{subject}:gradient:pytorch-85791/float16-70000x2-flat-int64-mean")
    assert gradient.numbers.got == 0.0
    assert "Mismatched elements: 140000 / 140000" in gradient.message


@float16
@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_a_mean_over_70000_rows_of_three_random_float16_logits_is_nan_and_its_gradient_0(found, subject):
    loss = found(f"{subject}:loss:pytorch-85791/float16-70000x3-normal-int64-mean").numbers
    assert math.isnan(loss.got)
    assert 1 < loss.exact < 5
    assert found(f"{subject}:gradient:pytorch-85791/float16-70000x3-normal-int64-mean").numbers.got == 0.0


@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
@pytest.mark.parametrize("rows", [1000, 5000, 50000])
def test_a_bfloat16_mean_with_every_16th_row_ignored_is_far_off(found, subject, rows):
    loss = found(f"{subject}:loss:half_partial_sums/bfloat16-{rows}x10-normal-int64-mean-ignored_16th").numbers
    assert loss.got / loss.exact < {1000: 0.8, 5000: 0.3, 50000: 0.05}[rows]


@float16
@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_a_float16_mean_with_every_16th_row_ignored_is_off(found, subject):
    loss = found(f"{subject}:loss:half_partial_sums/float16-5000x10-normal-int64-mean-ignored_16th").numbers
    assert loss.got / loss.exact < 0.9


@float16
@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_a_float16_mean_over_50000_rows_is_infinite(found, subject):
    loss = found(f"{subject}:loss:half_partial_sums/float16-50000x10-normal-int64-mean").numbers
    assert loss.got == math.inf
    assert loss.exact < 10


@float16
@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_the_loss_of_65520_equal_float16_logits_is_infinite_and_of_one_less_it_is_right(found, report, subject):
    loss = found(f"{subject}:loss:float16_row_sum/float16-2x65520-flat-int64-mean").numbers
    assert (loss.got, f"{loss.exact:.2f}") == (math.inf, "11.09")
    found(f"{subject}:gradient:float16_row_sum/float16-2x65520-flat-int64-mean")
    (part,) = (part for part in report.subjects if part.name == subject)
    checks = part.outcomes["float16_row_sum/float16-2x65519-flat-int64-mean"].checks
    assert not any(measured.failed for measured in checks.values())


@pytest.mark.skipif(RELEASE < (2, 4), reason="needs torch 2.4 or newer: the first with nll_loss of float16 on a CPU")
@pytest.mark.parametrize(
    "case",
    [
        "half_smoothing/float16-8x1000-normal-int64-mean-smooth0.1",
        "half_smoothing/float16-4000x10-normal-int64-mean-smooth0.1",
        "half_smoothing/float16-1x8000-flat-int64-none-rows-smooth0.1",
        "half_smoothing/float16-2x1000x8-normal-int64-mean-ignored_class-smooth0.001",
        "half_smoothing/float16-257x65-normal-int64-sum-weighted-ignored_default-smooth0.1",
    ],
)
def test_a_float16_loss_with_label_smoothing_is_infinite_and_its_gradient_is_right(found, report, case):
    loss = found(f"torch:loss:{case}").numbers
    assert loss.got == math.inf
    assert loss.exact < 10_000
    (torch_part,) = (part for part in report.subjects if part.name == "torch")
    assert not torch_part.outcomes[case].checks["gradient"].failed


@float16
def test_float16_probabilities_with_label_smoothing_have_the_right_loss(report):
    """For probabilities, torch multiplies by ε/C before it sums, so that the sum does not overflow."""
    (torch_part,) = (part for part in report.subjects if part.name == "torch")
    checks = torch_part.outcomes["half_smoothing/float16-8x1000-normal-probabilities-mean-smooth0.1"].checks
    assert not any(measured.failed for measured in checks.values())


@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=float16)])
def test_a_weighted_mean_with_every_16th_row_ignored_has_a_gradient_that_is_too_large(found, subject, dtype):
    case = f"half_weight_sum/{dtype}-5000x10-normal-int64-mean-weighted-ignored_16th"
    gradient = found(f"{subject}:gradient:{case}").numbers
    assert gradient.got / gradient.exact > {"float16": 1.05, "bfloat16": 2}[dtype]


@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_a_float32_weighted_mean_with_every_16th_row_ignored_is_off(found, subject):
    found(f"{subject}:loss:partial_weight_sum/float32-131072x3-normal-int64-mean-weighted-ignored_16th")
    found(f"{subject}:gradient:partial_weight_sum/float32-131072x3-normal-int64-mean-weighted-ignored_16th")


@pytest.mark.skipif(RELEASE < (2, 4), reason="needs torch 2.4 or newer: the first with nll_loss of float16 on a CPU")
@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_a_float16_mean_whose_weights_sum_to_more_than_65504_has_a_gradient_of_0(found, subject):
    case = "weight_overflow/float16-1000x10-normal-int64-mean-weight_decades"
    assert found(f"{subject}:gradient:{case}").numbers.got == 0.0
    assert not math.isfinite(found(f"{subject}:loss:{case}").numbers.got)


@pytest.mark.skipif(RELEASE < (2, 4), reason="needs torch 2.4 or newer: the first with nll_loss of float16 on a CPU")
@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_a_float16_upstream_gradient_times_a_weight_overflows(found, subject):
    case = "upstream/float16-64x50-flat-int64-none-weight_decades-rows_large"
    gradient = found(f"{subject}:gradient:{case}").numbers
    assert not math.isfinite(gradient.got)
    assert abs(gradient.exact) < 65504


@float16
def test_a_float16_mean_over_probabilities_of_2000_rows_is_infinite(found):
    loss = found("torch:loss:half_partial_sums/float16-2000x5-wide-probabilities-mean").numbers
    assert loss.got == math.inf
    assert loss.exact < 100


@pytest.mark.parametrize("bad", ["label_smoothing_negative", "label_smoothing_nan"])
def test_a_negative_or_nan_label_smoothing_is_accepted_and_smooths_nothing(found, bad):
    finding = found(f"torch:errors:{bad}")
    assert finding.kind == "accepted"
    assert finding.message.startswith("the call returned 1.386")  # log 4, of four equal logits


def test_nll_loss_of_a_movedim_view_of_four_dimensions_has_no_backward(found):
    finding = found("torch_nll:call:float32-2x5x3x2-normal-int64-none-rows")
    assert finding.kind == "refused"
    assert "grad_input must be contiguous" in finding.message


@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_a_bfloat16_probability_of_0999_has_a_loss_and_a_gradient_of_0(found, subject):
    loss = found(f"{subject}:loss:half_sure/bfloat16-4x2-sure-int64-mean-gradeA").numbers
    assert (loss.got, f"{loss.exact:.4f}") == (0.0, "0.0010")
    assert found(f"{subject}:gradient:half_sure/bfloat16-4x2-sure-int64-mean-gradeA").numbers.got == 0.0


@float16
@pytest.mark.parametrize("subject", ["torch", "torch_nll"])
def test_a_float16_probability_of_0999_has_a_loss_that_is_off_by_percents(found, subject):
    loss = found(f"{subject}:loss:half_sure/float16-4x2-sure-int64-mean-gradeA").numbers
    assert 0.01 < abs(loss.got / loss.exact - 1) < 0.05
    found(f"{subject}:gradient:half_sure/float16-4x2-sure-int64-mean-gradeA")


@pytest.mark.skipif(RELEASE >= (2, 8), reason="needs a torch before 2.8")
def test_a_bfloat16_loss_of_67_positions_is_infinite_by_the_maximum_of_another(found):
    loss = found("torch:loss:positions/bfloat16-2x3x67-row_offsets-int64-none-rows").numbers
    assert loss.got in (math.inf, -math.inf)
    assert abs(loss.exact) < 100
    found("torch:gradient:positions/bfloat16-2x3x67-row_offsets-int64-none-rows")


@pytest.mark.skipif(computes("float16"), reason="needs a torch without float16 on a CPU, as 2.1")
def test_float16_is_not_implemented_on_a_cpu(found):
    assert "not implemented" in found("torch:call:float16-7x5-wide-int64-none-rows").message


@pytest.mark.parametrize(
    "id",
    [
        "torch:call:float32-3x5x4-normal-uint8-none-rows",
        "torch_nll:call:float32-3x5x4-normal-uint8-none-rows",
        "torch:call:float32-7x5-normal-uint8-mean-weighted-scalar-smooth0.1",
    ],
)
def test_uint8_targets_are_refused_in_some_calls(found, id):
    assert found(id).kind == "refused"


def test_torch_is_right_wherever_no_defect_is_known(report):
    assert not report.findings, report
    assert report.fixed == []
    outcomes = {part.name: part.outcomes for part in report.subjects}
    ids = {*OF_THE_GRID, *(case.id for case in EDGES), *(bad.id for bad in BAD_INPUTS)}
    assert set(outcomes["torch"]) == ids
    assert not any(m.failed for m in outcomes["torch"]["float32-7x5-wide-int64-none-rows"].checks.values())
