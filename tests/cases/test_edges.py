"""Test the edge cases: their numbers of classes and rows, and the wrong losses that they find."""

import pytest
import torch
from support.checks import ALWAYS, CIRCUMSTANCES, DERIVATIVES, OPTIONS, RELATIONS, TWO_BACKWARDS
from support.defects import DEFECTS
from support.running import run
from tiles import padded_with_zeros, padding_counts_as_one_each

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.edges import _ALONE, EDGES, NORMAL, QUICK, THOROUGH, edges
from crossent.subjects.builtin import FORM_SUBJECTS
from crossent.subjects.subject import Subject

DEFECT = {defect.name: defect for defect in DEFECTS}
WIDTHS = {2**k + by for k in range(17) for by in (-1, 0, 1)} - {0}
WIDTHS |= {513, 781, 1025, 32000, 50257, 65519, 65520, 65537, 128256, 129920, 151936}


def named(name, cases, dtype=None):
    return [case for case in cases if case.name == name and dtype in (None, case.dtype)]


def caught(loss, cases):
    return {finding.check for finding in run(Subject("wrong", loss), cases).findings}


def test_a_level_has_all_cases_of_the_level_below_and_no_case_twice():
    quick, normal, thorough = (list(edges(level=level)) for level in ("quick", "normal", "thorough"))
    assert set(quick) < set(normal) < set(thorough)
    assert normal == list(edges())
    for chosen in (quick, normal, thorough):
        assert len({case.id for case in chosen}) == len(chosen)
    assert {case.id for case in EDGES} == {case.id for case in normal}


def test_an_edge_is_valid_has_a_name_and_is_read_back_from_its_id():
    for case in edges(seed=3, level="thorough"):
        assert case.invalid is None
        assert case.name
        assert case.seed == 3
        assert Case.of(case.id) == case


@pytest.mark.parametrize(("level", "cases"), [("normal", (*QUICK, *NORMAL)), ("thorough", THOROUGH)])
def test_every_width_has_a_case(level, cases):
    widths = {dtype: {case.classes for case in named("width", edges([dtype], level=level))} for dtype in DTYPES}
    everywhere = set.intersection(*widths.values())
    small = {width for width in WIDTHS if width < 2**13 - 1}
    assert everywhere >= small
    assert set().union(*widths.values()) >= WIDTHS - ({32000, 128256} if level == "normal" else set())
    if level == "thorough":
        assert everywhere >= {32000, 50257, 65519, 65520, 65537, 128256, 129920, 151936}


def test_every_number_of_rows_has_a_case():
    rows = {(case.rows, case.dtype) for case in EDGES}
    assert {rows for rows, _ in rows} >= {0, 1, 65504, 65520, 70000}
    assert {(65504, "float16"), (65520, "float16"), (70000, "float16")} <= rows
    assert any(case.rows == case.classes > 1 for case in EDGES)
    assert any(case.rows > case.classes == 1 for case in EDGES)
    assert max(case.rows for case in THOROUGH) == 10_000_000


def test_a_level_has_few_enough_cases_and_logits():
    """Few cases with few logits take little time: about 5 milliseconds a case, and a microsecond a logit."""
    logits = {name: sum(c.rows * c.classes for c in cases) for name, cases in (("quick", QUICK), ("normal", EDGES))}
    assert len(QUICK) < 170
    assert logits["quick"] < 300_000
    assert len(EDGES) < 300
    assert logits["normal"] < 7_000_000


def test_four_assorted_rows_are_normal_peaked_flat_and_far_below_zero():
    normal, peaked, flat, below = Case("float32", (4, 300), "assorted").build().input
    assert 2 < normal.std() < 4
    assert peaked.max() - peaked.sort().values[-2] > 10
    assert (flat == 0).all()
    assert (below < -9e3).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("wrong", [padded_with_zeros, padding_counts_as_one_each], ids=lambda f: f.__name__)
def test_columns_beyond_the_last_class_are_found(wrong, dtype):
    assert caught(wrong, named("width", QUICK, dtype)[-3:-1]) == {
        "loss",
        "gradient",
    }  # the cases with 1024 and 1025 classes


@pytest.mark.parametrize(
    ("defect", "dtype", "width"),
    [
        ("bfloat16_accumulator", "bfloat16", 513),
        ("sum_stored", "bfloat16", 257),
        ("sum_stored", "float16", 4097),
        ("remainder_of_tiles_dropped", "float32", 129),
    ],
)
def test_a_defect_of_wide_rows_is_found(defect, dtype, width):
    (case,) = (case for case in named("width", EDGES, dtype) if case.classes == width)
    assert caught(DEFECT[defect], [case])


def test_a_float16_count_is_found_from_65520_rows_on_and_not_below():
    flat = {case.rows: case for case in EDGES if case.dtype == "float16" and case.values == "flat"}

    def count_of_float16(input, target, **options):
        losses = torch.nn.functional.cross_entropy(input.float(), target, reduction="none")
        return (losses.sum() / torch.tensor(float(target.numel())).half()).half()

    assert caught(count_of_float16, [flat[65504]]) == set()
    assert caught(count_of_float16, [flat[65520]]) == {"loss", "gradient"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_maximum_of_another_position_is_found(dtype):
    """The wrong loss subtracts the maxima of other positions, as torch up to 2.7 does in half precision."""

    def shifted_by_another(input, target, **options):
        logits = input if input.dtype == torch.float64 else input.float()
        maxima = logits.detach().amax(1, keepdim=True)
        shifted = logits - torch.cat([maxima[..., :8], maxima[..., :8], maxima[..., 16:]], -1)
        return (shifted.exp().sum(1).log() - shifted.gather(1, target[:, None])[:, 0]).to(input.dtype)

    assert caught(shifted_by_another, named("positions", QUICK, dtype)) >= {"loss", "gradient"}


def zero_is_no_ignore_index(input, target, ignore_index=-100, **options):
    return crossent.formula(input, target, ignore_index=ignore_index or -100, **options)


def little_smoothing_is_none(input, target, label_smoothing=0.0, **options):
    return crossent.formula(input, target, label_smoothing=label_smoothing * (label_smoothing > 0.01), **options)


def smoothing_ends_halfway(input, target, label_smoothing=0.0, **options):
    smoothing = 0.5 if 0.5 < label_smoothing < 1 else label_smoothing
    return crossent.formula(input, target, label_smoothing=smoothing, **options)


def contiguous_strides(tensor):
    return torch.empty(tensor.shape, device="meta").stride()


class Pass(torch.autograd.Function):
    """A function that returns the losses unchanged, but whose backward pass returns `make(upstream)`."""

    @staticmethod
    def forward(ctx, losses, make):
        ctx.make = make
        return losses.clone()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.make(upstream), None


def upstream_read_as_contiguous(input, target, **options):
    def make(upstream):
        return (
            upstream.as_strided(upstream.shape, contiguous_strides(upstream))
            if 0 not in upstream.stride()
            else upstream
        )

    return Pass.apply(crossent.formula(input, target, **options), make)


def upstream_clipped(input, target, **options):
    return Pass.apply(crossent.formula(input, target, **options), lambda upstream: upstream.clamp(-8, 8))


def weight_read_as_contiguous(input, target, weight=None, **options):
    if weight is not None:
        weight = weight.as_strided(weight.shape, (1,))
    return crossent.formula(input, target, weight, **options)


def weight_read_from_the_start(input, target, weight=None, **options):
    if weight is not None:
        weight = weight.as_strided(weight.shape, weight.stride(), 0)
    return crossent.formula(input, target, weight, **options)


def squeezed(input, target, **options):
    return crossent.formula(input, target, **options).squeeze()


def of_five_axes(input, target, **options):
    if input.dim() > 5:
        raise NotImplementedError("at most three further axes")
    return crossent.formula(input, target, **options)


def divided_in(dtype):
    """Return a wrong loss, which rounds the denominator of a mean to `dtype` for float32 and float64 logits."""

    def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        options = {"weight": weight, "label_smoothing": label_smoothing, "ignore_index": ignore_index}
        if reduction != "mean" or target.is_floating_point() or input.element_size() < 4:
            return crossent.formula(input, target, reduction=reduction, **options)
        kept = target.long() != ignore_index
        index = torch.where(kept, target.long(), 0)
        weights = (torch.ones_like(index, dtype=input.dtype) if weight is None else weight[index]) * kept
        return crossent.formula(input, target, reduction="sum", **options) / weights.sum().to(dtype).to(input.dtype)

    loss.__name__ = f"divided_in_{dtype}".replace("torch.", "")
    return loss


@pytest.mark.parametrize(
    ("wrong", "ids"),
    [
        (zero_is_no_ignore_index, {"ignored_zero/float32-7x5-normal-int64-mean-weighted-ignored_zero-smooth0.1"}),
        (little_smoothing_is_none, {"smoothing/float64-3x5x4-normal-probabilities-sum-smooth0.001"}),
        (smoothing_ends_halfway, {"smoothing/float64-7x5-normal-int64-none-ignored-rows-smooth0.9"}),
        (upstream_read_as_contiguous, {"upstream/float32-7x5-normal-int64-none-weighted-rows_strided"}),
        (upstream_clipped, {"upstream/bfloat16-7x5-normal-int64-none-rows_large"}),
        (weight_read_as_contiguous, {"weight_layout/float32-7x5-normal-int64-mean-weighted-weight_strided"}),
        (
            weight_read_from_the_start,
            {
                "weight_layout/float64-3x5x4-normal-int64-mean-weighted-weight_window",
                "weight_layout/bfloat16-7x5-normal-int64-sum-weighted-weight_offset",
            },
        ),
        (squeezed, {"axes/float32-2x5x1-normal-int64-none-rows", "axes/float32-1x5x4-normal-int64-none-rows"}),
        (of_five_axes, {"axes/float32-2x3x2x1x2x3-normal-int64-none-weighted-rows"}),
        (
            divided_in(torch.bfloat16),
            {"denominator/float32-1001x3-normal-int64-mean", "denominator/float32-1001x3-normal-int64-mean-weighted"},
        ),
        (
            divided_in(torch.float16),
            {"denominator/float32-4001x2-normal-int64-mean", "denominator/float32-1001x3-normal-int64-mean-weighted"},
        ),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_choice_that_the_grid_lacks_finds_its_wrong_loss(wrong, ids):
    cases = [case for case in _ALONE if case.id in ids]
    assert {case.id for case in cases} == ids
    for case in cases:
        assert caught(wrong, [case])
        assert not caught(crossent.formula, [case])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_form_passes_all_checks_on_the_choices_that_the_grid_lacks(dtype):
    checks = (*ALWAYS, *RELATIONS, *OPTIONS, *TWO_BACKWARDS, *CIRCUMSTANCES, *DERIVATIVES)
    report = run(FORM_SUBJECTS["formula"], [case for case in _ALONE if case.dtype == dtype], checks)
    assert not report.findings, report.findings
