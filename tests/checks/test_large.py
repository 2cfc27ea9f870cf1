"""The check `large`, which finds an index overflow on the tiles of a case. The cases here are small."""

import dataclasses

import pytest
import torch
from support.checks import LARGE
from support.running import run
from support.waits import computes

from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.cases.edges import MANY_ROWS, large_cases
from crossent.checks import large as large_check
from crossent.checks.large import GIB, TILE_BLOCK, needed_bytes, tiled
from crossent.forms.textbook import formula
from crossent.machine import available
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.subjects.subject import Subject

# 61·7·160 is a little more than 2^16 logits.
SMALL = Case("float32", (61, 7), reduction="none", upstream="rows", tiled=160)
IMAGE = Case("float16", (61, 7, 1, 1), reduction="sum", upstream="scalar", tiled=160)
CASES = (
    SMALL,
    IMAGE,
    dataclasses.replace(SMALL, dtype="bfloat16", ignored="ignored_default"),
    dataclasses.replace(SMALL, dtype="float64", weight="weighted", label_smoothing=0.1),
    dataclasses.replace(SMALL, sizes=(13, 7, 5), layout="class_last", upstream="stride0"),
    dataclasses.replace(SMALL, sizes=(61, 2), upstream="one", tiled=600),
    dataclasses.replace(SMALL, values="inf_on_target"),
    dataclasses.replace(SMALL, values="nan"),
    dataclasses.replace(SMALL, reduction="mean", upstream="one", tiled=10),
    dataclasses.replace(SMALL, reduction="sum", upstream="one", ignored="ignored_16th", tiled=10),
)


def judged(case, loss):
    """Return the findings of a loss on a case, and the outcome of the case."""
    report = run(loss, case, LARGE)
    (outcome,) = report.subjects[0].outcomes.values()
    return report.findings, outcome


class Wrapped(torch.autograd.Function):
    """Losses of rows by a kernel that counts elements in 16 bits, in the forward or the backward pass."""

    @staticmethod
    def forward(ctx, x, target, forward, backward):
        flat = x.reshape(-1)
        at = torch.arange(len(target)) * x.shape[1] + target
        p = x.softmax(1)
        ctx.save_for_backward(p, at)
        ctx.backward = backward
        return x.logsumexp(1) - flat[at % 2**16 if forward else at]

    @staticmethod
    def backward(ctx, upstream):
        p, at = ctx.saved_tensors
        gradient = (p * upstream.unsqueeze(1)).reshape(-1)
        where = at % 2**16 if ctx.backward else at
        return gradient.index_put((where,), -upstream, accumulate=True).reshape(p.shape), None, None, None


def wrapped(*, forward=False, backward=False):
    def loss(input, target, reduction="none", **options):
        rows = Wrapped.apply(input.float().flatten(1), target.flatten(), forward, backward)
        return (rows.sum() if reduction == "sum" else rows.reshape(target.shape)).to(input.dtype)

    return loss


@pytest.fixture(params=[TILE_BLOCK, 1000, 1], ids=lambda block: f"block{block}")
def block(request, monkeypatch):
    """Let the check compare in one block, in many blocks, and one tile at a time."""
    monkeypatch.setattr(large_check, "TILE_BLOCK", request.param)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_tiles_are_the_case_over_and_over_in_its_layout(case, block):
    one, all_tiles = case.build(), tiled(case)
    pairs = [(one.input, all_tiles.input), (one.target, all_tiles.target)]
    pairs += [(one.upstream, all_tiles.upstream)] if case.reduction == "none" else []
    for tile, whole in pairs:
        assert whole.shape == (case.tiled * len(tile), *tile.shape[1:])
        assert whole.stride() == tile.stride()
        for part in whole.split(len(tile)):
            assert part.equal(tile) or part.isnan().equal(tile.isnan())
    assert all_tiles.options.keys() == one.options.keys()


def test_a_case_without_its_tiles_has_the_same_bits():
    assert SMALL.build().digest == dataclasses.replace(SMALL, tiled=1).build().digest


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_right_code_passes(case):
    for subject in (*FORM_SUBJECTS.values(), TORCH, Subject("kernel", formula)):
        if subject is TORCH and not computes(case.dtype):
            continue
        if subject.not_applicable(case.build()) is None:
            findings, outcome = judged(case, subject)
            assert findings == [], findings[0]
            measured = outcome.checks["large"]
            assert 0 < measured.ratio <= 1 or case.values == "nan"
            assert not measured.vacuous
            assert measured.not_judged == {}


def test_every_element_of_every_tile_is_judged():
    assert judged(SMALL, formula)[1].checks["large"].elements == 61 * 160 * (7 + 1)


@pytest.mark.parametrize("case", [SMALL, dataclasses.replace(SMALL, sizes=(61, 7, 1, 1))], ids=lambda case: case.id)
def test_an_index_that_wraps_forward_is_found_in_the_loss(case, block):
    (finding,), _ = judged(case, wrapped(forward=True))
    assert (finding.check, finding.kind) == ("large", "wrong")
    assert finding.message.startswith("loss:")
    assert finding.numbers.index[0] * 7 + 6 >= 2**16
    assert len(finding.numbers.index) == len(case.sizes) - 1
    assert not judged(dataclasses.replace(case, tiled=153), wrapped(forward=True))[0]  # 61·7·153 < 2^16


@pytest.mark.parametrize("case", [SMALL, IMAGE], ids=lambda case: case.id)
def test_an_index_that_wraps_in_the_gradient_only_is_found_there(case, block):
    (finding,), _ = judged(case, wrapped(backward=True))
    assert finding.message.startswith("gradient of the logits:")
    assert len(finding.numbers.index) == len(case.sizes)
    assert not judged(dataclasses.replace(case, tiled=153), wrapped(backward=True))[0]


def test_the_worst_element_is_where_the_finding_says():
    def one_wrong(input, target, **options):
        losses = formula(input, target, **options)
        return losses.index_put((torch.tensor([61 * 77 + 5]),), torch.tensor([123.0]))

    (finding,), _ = judged(SMALL, one_wrong)
    assert finding.numbers.index == (61 * 77 + 5,)
    assert finding.numbers.got == 123.0
    assert "Mismatched elements: 1 / 9760" in finding.message


def test_the_wrong_kernels_are_right_with_64_bits():
    for case in (SMALL, IMAGE):
        assert judged(case, wrapped())[0] == []


def test_a_result_of_another_shape_or_dtype_and_a_refusal_are_findings():
    def one_number(input, target, **options):
        return formula(input, target, **options).sum()

    def double(input, target, **options):
        return formula(input, target, **options).double()

    def refuses(input, target, **options):
        raise ValueError("too large")

    assert (
        "loss: got float32 with shape (); expected float32 with shape (9760,)"
        in judged(SMALL, one_number)[0][0].message
    )
    assert "float64 with shape (9760,)" in judged(SMALL, double)[0][0].message
    assert judged(SMALL, refuses)[0][0].kind == "refused"


def test_a_result_of_nan_is_a_finding():
    def nothing(input, target, **options):
        return formula(input, target, **options) * torch.nan

    assert judged(SMALL, nothing)[0]
    assert judged(dataclasses.replace(SMALL, reduction="mean", upstream="one"), nothing)[0]


def test_a_gradient_of_zero_is_right_in_an_ignored_row_of_nan():
    case = dataclasses.replace(SMALL, values="nan_ignored", ignored="ignored_first")
    for loss in (TORCH, FORM_SUBJECTS["formula"], FORM_SUBJECTS["blocked"]):
        findings, outcome = judged(case, loss)
        assert findings == []
        assert outcome.checks.keys() == {"large"}


def test_a_bfloat16_mean_in_which_torch_loses_most_rows_is_found():
    (case,) = (case for case in MANY_ROWS if case.dtype == "bfloat16")
    (finding,), _ = judged(case, TORCH)
    assert finding.numbers.got < finding.numbers.exact / 10


def test_a_mean_of_more_rows_than_the_format_can_count_is_not_judged():
    case = dataclasses.replace(SMALL, reduction="mean", upstream="one", sizes=(61, 1), tiled=150_000)
    measured = judged(case, formula)[1].checks["large"]
    assert measured.not_judged == {"a sum has too many terms for the precision of its format": 1}
    assert measured.vacuous


def test_a_sum_that_float16_cannot_hold_is_not_judged_and_its_gradient_is():
    case = dataclasses.replace(IMAGE, values="wide", tiled=160)
    measured = judged(case, formula)[1].checks["large"]
    assert measured.not_judged == {"an intermediate may overflow": 1}
    assert measured.ratio > 0


def test_without_enough_memory_the_check_is_skipped_with_the_reason(monkeypatch):
    case = next(large_cases(["float16"]))
    monkeypatch.setattr(large_check, "available", lambda device: 5 * GIB)
    findings, outcome = judged(case, TORCH)
    assert findings == []
    assert outcome.checks == {}
    need = f"{needed_bytes(case, TORCH) / GIB:.1f} GiB"
    assert outcome.not_run["large"] == f"needs {need} of free memory on cpu, which has 5.0 GiB"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 MB)"),
    ],
    ids=["Python", "CPU", "MPS"],
)
def test_memory_that_runs_out_is_no_finding(error):
    def too_much(input, target, **options):
        raise error

    findings, outcome = judged(SMALL, too_much)
    assert (findings, outcome.not_run) == ([], {"large": "ran out of memory on cpu"})


def test_the_memory_that_a_case_needs_follows_from_its_sizes():
    assert 2**20 < available("cpu") < 2**50
    case = dataclasses.replace(SMALL, dtype="bfloat16", sizes=(61, 1000), tiled=1000)
    logits = 61_000_000
    rows = 61_000
    compared = GIB
    assert needed_bytes(case, TORCH) == logits * 2 * 4 + rows * (8 + 2 + 2 + 16) + compared
    assert needed_bytes(case, FORM_SUBJECTS["formula"]) == logits * (2 + 5 * 4) + rows * (8 + 2 + 2 + 32) + compared
    assert needed_bytes(dataclasses.replace(case, sizes=(61, 1000, 1), layout="class_last"), TORCH) > needed_bytes(
        case, TORCH
    )


def test_a_large_case_is_beyond_31_or_32_bits_and_its_tiles_hide_no_power_of_two():
    cases = list(large_cases())
    assert {case.dtype for case in cases} == {"float16", "bfloat16", "float32"}
    elements = {case: case.rows * case.classes * case.tiled for case in cases}
    for bug in bugs():
        if bug.id.startswith("F"):
            assert bug.checks == ("large",)
            for case in bug.cases:
                assert elements[case] > 2**31
                assert case.sizes[0] in (7, 61)  # a prime that divides no power of two
    assert sum(count > 2**32 for count in elements.values()) >= 3
    sides = {(case.reduction, len(case.sizes)) for case, count in elements.items() if count > 2**31}
    assert sides >= {("none", 2), ("none", 4), ("sum", 4), ("none", 3)}
    assert [case.seeded(4) for case in cases] == list(large_cases(seed=4))


@pytest.mark.parametrize("case", list(large_cases()), ids=lambda case: case.id)
def test_a_large_case_is_right_with_three_tiles(case):
    findings, outcome = judged(dataclasses.replace(case, tiled=3), FORM_SUBJECTS["formula"])
    assert findings == []
    assert outcome.checks["large"].ratio > 0
