"""The soak: correct cross-entropies always pass, and come near their bounds, so that no bound is too wide.

Known failures of torch happen in the soak too. A rule, which follows from the cause of a failure, excuses the failure.
Another computation proves that torch is wrong.
"""

import json
import math
from collections import Counter
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from packaging.version import Version
from support.running import compare
from support.subjects import TENSOR_FORMS
from support.waits import computes, float16

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.numerics.bounds.contracts import contract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.rounding import Order
from crossent.numerics.formats import FORMATS
from crossent.run.soak.draws import draws
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.trials import difference as differences
from crossent.trials.call import evaluate
from crossent.trials.exact import solve

SUBJECTS = [*TENSOR_FORMS, TORCH]
PART = 250  # cases of one test, so that several processes share the soak
HALVES = ("float16", "bfloat16")
RELEASE = Version(torch.__version__).release


def pytest_generate_tests(metafunc):
    if "part" in metafunc.fixturenames:
        count = metafunc.config.getoption("--crossent-soak")
        starts = range(0, count, PART)
        parts = [(dtype, start, min(PART, count - start)) for dtype in DTYPES for start in starts]
        metafunc.parametrize("part", parts, ids=lambda part: f"{part[0]}-{part[1]}")


def test_correct_cross_entropies_pass_and_come_near_their_bounds(part, seed, record_property):
    dtype, first, count = part
    figures = {"dtype": dtype, "cases": count, "known": Counter()}
    for check in ("loss", "gradient", "target_gradient"):
        figures[check] = {
            "numbers": 0,
            "comparisons": 0,
            "worst": (0.0, "", ""),
            "not_judged": Counter(),
            "partly_judged": Counter(),
        }
    alarms = []
    for case in draws(count, [dtype], seed, first=first):
        inputs = case.build()
        expected = solve(inputs)
        for subject in SUBJECTS:
            if subject is TORCH and refused_by_torch(case):
                figures["known"]["it refuses uint8 targets"] += 1
                continue
            if subject is TORCH and not computes(dtype):
                figures["known"]["it does not compute in float16"] += 1
                continue
            got = evaluate(subject.loss, inputs)
            assert (tuple(got.loss.shape), got.loss.dtype) == (expected.shape, expected.dtype), case.id
            for difference in compare(got, expected, subject.grade(dtype), subject.promise):
                if difference.ratio > 1:
                    known = subject is TORCH and defect_of_torch(case, difference, got, expected)
                    figures["known"][known or "none"] += 1
                    if not known:
                        alarms.append(f"{subject.name}, {difference.of} of {case.id}: {difference}")
                    continue
                enter(figures[difference.of], difference, subject, case)
    record_property("soak", json.dumps(figures))  # as text, which pytest-xdist can send and JUnit's XML can contain
    assert not alarms, "\n".join(alarms)


def enter(figures, difference, subject, case):
    figures["comparisons"] += 1
    figures["numbers"] += difference.elements
    figures["worst"] = max(figures["worst"], (difference.ratio, subject.name, case.id))
    assert "the bound is not a number" not in difference.not_judged, case.id
    figures["not_judged"].update(difference.not_judged)
    figures["partly_judged"].update(difference.not_judged.keys())


def refused_by_torch(case):
    """Return whether torch refuses the uint8 targets: with further dimensions, or for a weighted smoothed mean."""
    gathers = case.weight != "unweighted" and case.label_smoothing > 0 and case.reduction == "mean"
    return case.target == "uint8" and (len(case.sizes) > 2 or gathers)


def defect_of_torch(case, difference, got, expected):
    """Return the known defect of torch that explains a difference, or None."""
    infinite = difference.of == "loss" and math.isinf(difference.exact) and math.isnan(difference.got)
    if infinite and loses_a_coefficient(case, expected.terms):
        return "it multiplies an infinite loss by zero"
    if case.dtype in HALVES and takes_another_maximum(case, expected.terms.logits):
        return "its log_softmax subtracts the maximum of another row"
    grade = TORCH.grade(case.dtype)
    promised = contract("torch", grade, case.dtype, rows=case.rows)
    skips = replace(promised, row_order=Order(depth_of_skipped_flushes(expected.terms.kept)))
    causes = {"its sum over rows skips a flush": skips}
    if case.dtype in HALVES:
        overflows = replace(promised, stored=FORMATS[case.dtype])
        if infinite and np.isinf(Bounds(of_finite_logits(expected.terms), overflows).loss).any():
            return "a term of its sum overflows float16, beside an infinite loss"
        causes["a term of its sum overflows float16"] = overflows
        causes["a term of its sum overflows float16, and skips a flush"] = replace(overflows, row_order=skips.row_order)
    for reason, cause in causes.items():
        under = {d.of: d for d in differences.compare(cause, got, expected)}
        if under[difference.of].ratio <= 1:
            return reason
    return None


def loses_a_coefficient(case, terms):
    """Return whether torch multiplies an infinite log-probability by 0.

    This happens for class indices with ε = 1: the factor 1 - ε of the true class is 0, although ε/C remains. It also
    happens for probabilities if ε/C underflows.
    """
    infinite = np.isneginf(terms.logits) & terms.kept[:, None]
    if terms.index is not None:
        return case.label_smoothing == 1 and infinite[np.arange(len(infinite)), terms.index].any()
    return 0 < case.label_smoothing / case.classes <= FORMATS[case.dtype].smallest_subnormal / 2 and infinite.any()


def takes_another_maximum(case, logits):
    """Return whether log_softmax subtracts the maximum of another row, and so overflows or underflows in float32.

    With further dimensions, torch reads half precision in vectors of 2V positions, and widens each to two vectors of
    V = 8 or 16 floats. It shifts the second vector by the maxima of the first. If the maxima of two such positions
    are far apart, the sum of `exp(x - m')` overflows, or falls below the smallest normal number of float32.
    """
    if RELEASE >= (2, 8) or len(case.sizes) < 3:
        return False
    maxima = logits.max(1).reshape(case.sizes[0], -1)
    positions = np.arange(maxima.shape[1])
    for width in (8, 16):
        whole = len(positions) - len(positions) % (2 * width)
        second = positions[(positions < whole) & (positions % (2 * width) >= width)]
        with np.errstate(invalid="ignore"):
            distance = maxima[:, second] - maxima[:, second - width]
        if (~(np.abs(distance) < -math.log(FORMATS["float32"].smallest_normal))).any():
            return True
    return False


def of_finite_logits(terms):
    """Return the terms with 0 in place of infinite logits, which would hide numbers that overflow."""
    logits = np.where(np.isfinite(terms.logits), terms.logits, 0.0)
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))
    return replace(terms, logits=logits, log_sum=log_sum)


def depth_of_skipped_flushes(kept):
    """Return the largest number of additions that the loss of a row goes through in torch's LossNLL.cpp.

    LossNLL.cpp sums blocks of rows. A block does not end at an ignored row, so it may have more rows than intended.
    """
    levels, power = 8, max(4, len(kept).bit_length() // 8)
    depth = [0] * levels
    for row in range(len(kept)):
        if kept[row]:
            depth[0] += 1
            for level in range(levels - 1):
                if row & (((1 << power) - 1) << (level * power)):
                    break
                depth[level + 1] = max(depth[level + 1], depth[level]) + 1
                depth[level] = 0
    return max(depth) + levels


# Cases of a soak on which a form is near the bound: first of the loss, then of the gradient.
SHARP = {
    "float16": (
        "float16-1x4x339-large-unnormalised-none-weighted-scalar-seed1420064431",
        "float16-129x2049-ramp-int64-sum-weighted-ignored_16th-seed1071442910",
    ),
    "bfloat16": (
        "bfloat16-59x9-wide-int64-none-ignored_default-rows-seed970630536",
        "bfloat16-30x3-inf_on_target-int64-none-weight_zeros-ignored_huge-stride0-seed237695822",
    ),
    "float32": (
        "float32-257x2-decades-uint8-none-weight_zeros-scalar-seed320382573",
        "float32-511x5-ascending-int64-mean-seed1202604455",
    ),
    "float64": (
        "float64-257x2-decades-uint8-none-weight_zeros-scalar-seed320382573",
        "float64-59x9-wide-int64-none-ignored_default-rows-seed970630536",
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bound_is_no_wider_than_twice_what_a_correct_form_needs(dtype):
    for check, case in zip(("loss", "gradient"), map(Case.of, SHARP[dtype]), strict=True):
        inputs = case.build()
        expected = solve(inputs)
        ratios = [
            difference.ratio
            for form in TENSOR_FORMS
            if form.promise == "eager"
            for difference in compare(evaluate(form.loss, inputs), expected)
            if difference.of == check
        ]
        assert 0.5 <= max(ratios) <= 1, case.id


# A case for each defect of torch that the soak excuses. The loss of torch is far from the exact loss.
DEFECTS = {
    "the unscaled sum over the classes overflows float16": (
        "float16-3-normal-int64-mean-weight_decades-smooth0.1-seed354610315"
    ),
    "w·loss overflows float16, where their quotient is the mean": (
        "float16-1x4-large-int64-mean-weight_decades-seed1074845908"
    ),
    "the unscaled sum over the rows overflows float16": (
        "float16-513x82-ascending-int64-sum-ignored_default-smooth0.216-seed1509094589"
    ),
    "a flush of the sum over the rows is skipped": (
        "bfloat16-2049x12-near_ties-int64-mean-ignored_16th-scalar-smooth0.1-seed23082565"
    ),
    "1 - ε is zero, times an infinite loss of the true class": (
        "float32-8x7-inf_on_target-int64-mean-ignored_default-smooth1-seed837374855"
    ),
    "ε/C underflows, times an infinite loss": "float16-6635-inf_tiles-hard-none-rows-smooth0.0001-seed296935309",
}


EXCUSED = [
    pytest.param(case, marks=float16 if case.startswith("float16") else (), id=defect)
    for defect, case in DEFECTS.items()
]


@pytest.mark.parametrize("id", EXCUSED)
def test_another_computation_shows_each_defect_that_the_soak_excuses(id):
    case = Case.of(id)
    inputs, exact = case.build(), exact_loss(Case.of(id))
    by_form = evaluate(FORM_SUBJECTS["formula"].loss, inputs).loss.item()
    by_torch = evaluate(TORCH.loss, inputs).loss.item()
    assert by_form == exact or abs(by_form - exact) <= FORMATS[case.dtype].unit_roundoff * 1.01 * abs(exact)
    assert not abs(by_torch - exact) <= abs(exact) / 10


@pytest.mark.parametrize("id", ["float32-3x5x4-normal-uint8-none", "float32-7x5-normal-uint8-mean-weighted-smooth0.1"])
def test_torch_refuses_the_uint8_targets_that_the_soak_leaves_out(id):
    case = Case.of(id)
    assert refused_by_torch(case)
    with pytest.raises(RuntimeError):
        TORCH.loss(case.build().input, case.build().target, **case.build().options)
    assert not refused_by_torch(Case.of(id.replace("uint8", "int64")))


def exact_loss(case):
    """Return the loss by mpmath, from the formula of the documentation. A mean needs class indices."""
    inputs = case.build()
    classes, options = case.classes, inputs.options

    def rows_of(tensor):
        return tensor.movedim(min(1, tensor.dim() - 1), -1).reshape(-1, classes).tolist()

    weight = options["weight"].tolist() if "weight" in options else [1.0] * classes
    targets = rows_of(inputs.target) if inputs.target.is_floating_point() else inputs.target.reshape(-1).tolist()
    total = denominator = mpmath.mpf(0)
    with mpmath.workdps(60):
        smoothing = mpmath.mpf(options["label_smoothing"])
        for x, target in zip(rows_of(inputs.input), targets, strict=True):
            if target == options.get("ignore_index", -100):
                continue
            t = target if isinstance(target, list) else [float(c == target) for c in range(classes)]
            log_sum = max(x) + mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(x_c) - max(x)) for x_c in x))
            q = [smoothing / classes + (1 - smoothing) * t_c for t_c in t]
            total += mpmath.fsum(w * q_c * (log_sum - x_c) for w, q_c, x_c in zip(weight, q, x, strict=True) if q_c)
            denominator += mpmath.mpf(weight[target]) if case.reduction == "mean" else 0
        return total / denominator if case.reduction == "mean" else total
