"""Test `Case`: an id rebuilds every bit of its case, and the inputs have the properties that the id names."""

import dataclasses
import itertools
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.corpus import corpus

from crossent.cases import axes
from crossent.cases.axes import DENSE_TARGETS, DTYPES, IGNORED
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.edges import edges
from crossent.cases.grid import grid
from crossent.cases.inputs import Inputs, bits
from crossent.cases.values import VALUES
from crossent.numerics.formats import FORMATS

AXES = {
    **axes.AXES,
    "sizes": ((1,), (5,), (7, 5), (0, 5), (3, 5, 4), (2, 3, 2, 2, 3), (4, 300)),
    "label_smoothing": (0.0, 0.1, 1.0, 1e-5, 1 / 3, 5e-324),
    "seed": (0, 7, 2**32 - 1, 2**70),
    "name": ("", "pytorch-38839", "half_partial_sums"),
    "grade": ("", "A", "B"),
    "tiled": (1, 3, 17_700_000),
}


def sampled(count):
    """Return `count` random valid cases. Every choice on every axis occurs."""
    drawn = random.Random(0)
    found = []
    while len(found) < count:
        case = Case(**{axis: drawn.choice(choices) for axis, choices in AXES.items()})
        if not case.invalid:
            found.append(case)
    for axis, choices in AXES.items():
        assert {getattr(case, axis) for case in found} == set(choices)
    return found


def built(values, dtype="float64", sizes=(200, 5), **options):
    """Return the inputs of a case, and its logits as a float64 array, (R, C)."""
    inputs = Case(dtype, sizes, values, **options).build()
    logits = inputs.input.double().numpy()
    return inputs, logits if logits.ndim == 2 else np.moveaxis(logits, 1, -1).reshape(-1, sizes[1])


def is_hot(inputs):
    return np.arange(inputs.input.shape[1]) == inputs.target.numpy()[:, None]


def test_every_case_is_read_back_from_its_id():
    for case in [*sampled(4000), *grid(), *edges(seed=3), *corpus(seed=3)]:
        again = Case.of(case.id)
        assert again == case, case.id
        assert again.name == case.name
        assert again.id == case.id


def test_no_two_cases_share_an_id():
    ids = [case.id for case in (*grid(), *edges())]
    assert len(ids) == len(set(ids))
    chosen = set(sampled(4000))
    assert len({case.id.rpartition("/")[2] for case in chosen}) == len(chosen)


@pytest.mark.parametrize(
    "id",
    [
        "",
        "/",
        "-",
        "float32",
        "float32-7x5",
        "float8-7x5-normal-int64-mean",
        "float32-7x5-usual-int64-mean",
        "float32-7x5-normal-int32-mean",
        "float32-7x5-normal-int64-average",
        "float32-7x5-normal-int64-mean-",
        "float32-7x5-normal-int64-mean-whatever",
        "float32-7x5-normal-int64-mean-one",  # an id leaves default choices out
        "float32-7x5-normal-int64-mean-kept",
        "float32-7x5-normal-int64-mean-smooth0",
        "float32-7x5-normal-int64-mean-seed0",
        "float32-7x5-normal-int64-mean-grade",
        "float32-7x5-normal-int64-mean-gradeC",
        "float32-7x5-normal-int64-mean-smooth1.5",
        "float32-7x5-normal-int64-mean-smooth1e-05",
        "float32-7x5-normal-int64-mean-smooth-0.1",
        "float32-7x5-normal-int64-mean-smoothnan",
        "float32-7x5-normal-int64-mean-smoothinf",
        "float32-7x5-normal-int64-mean-smooth0.10",
        "float32-7x5-normal-int64-mean-tiled1",
        "float32-7x5-normal-int64-mean-tiled0",
        "float32-7x5-normal-int64-mean-tiled" + "9" * 400,
        "float32-0x5-normal-int64-sum-tiled3",
        "float32-2x5x0-normal-int64-sum-tiled3",
        "float32-" + "1x" * 25 + "1-normal-int64-mean",
        "float32-7x5-normal-int64-mean-seed1-tiled3",
        "float32-7x5-normal-int64-mean-weighted-tiled3",
        "float32-7x5-normal-int64-sum-smooth0.1-tiled3",
        "float32-7x5-normal-int64-mean-window-tiled3",
        "float32-7x5-normal-hard-none-tiled3",
        "float32-5-normal-int64-none-tiled3",
        "float32-7x5-normal-int64-mean-seed-1",
        "float32-7x5-normal-int64-mean-seed1.5",
        "float32-7x5-normal-int64-mean-seed01",
        "float32-7x5-normal-int64-mean-seed" + "9" * 5000,
        "float32-7x5-normal-int64-mean-seed1-weighted",  # the words are not in the order of the axes
        "float32-7x5-normal-int64-mean-weighted-weight_zeros",
        "float32-x-normal-int64-mean",
        "float32--7x5-normal-int64-mean",
        "float32-07x5-normal-int64-mean",
        "float32-+7x5-normal-int64-mean",
        "float32-7_0x5-normal-int64-mean",
        "float32-٧x5-normal-int64-mean",
        "float32-7x0-normal-int64-mean",
        "float32-0-normal-int64-mean",
        "float32-7x5-normal-probabilities-mean-ignored",
        "float32-7x300-normal-uint8-mean",
        "float32-7x5-normal-uint8-mean-ignored_huge",
        "float32-7x300-normal-int64-mean-ignored",
        "float32-7x5-normal-int64-mean-rows",
        "float32-7x5-nan_ignored-int64-mean",
        "float16-7x5-large_offset-int64-mean",
        " float32-7x5-normal-int64-mean",
        "float32-7x5-normal-int64-mean\n",
        "a name/float32-7x5-normal-int64-mean",
        '"""/float32-7x5-normal-int64-mean',
        "a:b/float32-7x5-normal-int64-mean",
        "a\nb/float32-7x5-normal-int64-mean",
        "../float32-7x5-normal-int64-mean",
    ],
)
def test_a_text_that_is_not_an_id_is_refused_in_one_line(id):
    with pytest.raises(ValueError, match="not the id of a case") as caught:
        Case.of(id)
    assert "\n" not in str(caught.value)


def test_a_refusal_says_which_choices_are_impossible_together():
    for refused, reason in (
        ("float32-7x5-normal-probabilities-mean-ignored", "a target of class probabilities cannot have ignored rows"),
        ("float16-7x5-large_offset-int64-mean", "the values overflow the dtype"),
        ("float32-7x0-normal-int64-mean", "the number of classes must be 1 or more"),
        ("float32-7x300-normal-uint8-mean", "a uint8 target needs 256 classes or fewer"),
        ("float32-7x5-normal-uint8-mean-ignored_huge", "a uint8 target cannot hold this ignore_index"),
        ("float32-7x5-normal-int64-mean-target_strided-tiled2", "tiles need .*, and target_contiguous"),
        ("float32-0x5-normal-int64-sum-tiled2", "tiles need a batch with 1 row or more"),
        ("float32-7x5-normal-int64-mean-tiled0", "tiled must be from 1 to 1,000,000,000"),
        ("float32-7x5" + "x1" * 24 + "-normal-int64-mean", "the logits must have at most 25 dimensions"),
        # No logits, but a weight of 8 TiB, or a shape that torch cannot have.
        (
            "float32-0x1099511627776-normal-int64-mean-weighted",
            "product of the sizes other than 0 must be at most 67,1",
        ),
        (
            "float32-0x5" + "x67108864" * 3 + "-normal-int64-sum",
            "product of the sizes other than 0 must be at most 67,1",
        ),
        ("float32-7x5-normal-int64-mean-seed01", "did you mean 'float32-7x5-normal-int64-mean-seed1'"),
        ("foo", "which is not the id of a case; `crossent list cases` prints ids"),
    ):
        with pytest.raises(ValueError, match=reason):
            Case.of(refused)


def test_a_rebuilt_case_has_the_same_bits():
    for case in sampled(300):
        once, again = case.build(), Case.of(case.id).build()
        assert once.digest == again.digest, case.id
        assert repr(once.options) == repr(again.options)
        for one, two in ((once.input, again.input), (once.target, again.target), (once.upstream, again.upstream)):
            assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
            assert np.array_equal(bits(one), bits(two)), case.id


def test_a_case_is_built_on_the_given_device():
    """The meta device stands for a CUDA device. All tensors are on the device, with the same layout as on a CPU."""
    for case in sampled(300):
        here, there = case.build(), case.build("meta")
        for name in ("input", "target", "upstream"):
            one, two = getattr(here, name), getattr(there, name)
            assert two.device.type == "meta", case.id
            assert (one.shape, one.stride(), one.dtype) == (two.shape, two.stride(), two.dtype), case.id
        assert there.options.get("weight", there.input).device.type == "meta"
    for bad_input in BAD_INPUTS:
        bad = bad_input.build("meta")
        given = [bad.input, bad.target, bad.upstream, *(v for v in bad.options.values() if torch.is_tensor(v))]
        assert {tensor.device.type for tensor in given} == {"meta"}, bad_input.id


# Digests of a few cases. Never change the bits of a case: comparisons with older reports, and scripts that repeat older
# findings, need the same bits.
FROZEN = {
    "float32-7x5-normal-int64-mean": "24ba40aa",
    "float16-3x5x4-wide-uint8-none-weighted-ignored-rows-smooth0.1": "f7fc3bf0",
    "bfloat16-7x5-near_ties-probabilities-sum-weight_decades-scalar-seed3": "16eccf33",
    "float64-2x3x2x2x3-decades-int64-none-ignored_huge-stride0": "2e7c9a0d",
    "bfloat16-40x5-nan-int64-mean": "1faec929",
    "float16-9x6-subnormal-unnormalised-mean-weight_negative": "688d9f33",
    "float64-5-outlier-hard-mean-smooth0.3333333333333333": "26e27436",
    "half_partial_sums/bfloat16-1000x10-normal-int64-mean-ignored_16th": "09c77374",
    "float32-20x16-inf_tiles-int64-none-ignored_16th-rows": "88515585",
    "float32-0x5-normal-int64-mean": "85639ab4",
    "float32-3x5x4-normal-int64-mean-class_last-target_strided": "053de501",
}


@pytest.mark.parametrize("id", FROZEN)
def test_the_bits_of_a_case_do_not_change_between_versions(id):
    assert Case.of(id).build().digest == FROZEN[id]


def test_a_case_has_the_same_bits_on_an_older_processor():
    """Code with vector instructions converts NaN to another bfloat16 NaN than scalar code: 0xffff instead of 0x7fc0."""
    ids = [
        "bfloat16-40x5-nan-int64-mean",
        "bfloat16-40x5-nan_ignored-int64-mean-ignored",
        "float16-7x5-wide-int64-mean",
    ]
    code = f"from crossent.cases.case import Case\nprint(*(Case.of(one).build().digest for one in {ids!r}))"
    plain = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    said = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True).stdout
    assert said.split() == [Case.of(one).build().digest for one in ids]


def _tensors(inputs):
    named = {"input": inputs.input, "target": inputs.target, "upstream": inputs.upstream}
    return {**named, "weight": inputs.options["weight"]}


def _with(inputs, name, tensor):
    if name == "weight":
        return dataclasses.replace(inputs, options={**inputs.options, "weight": tensor})
    return dataclasses.replace(inputs, **{name: tensor})


@pytest.mark.parametrize(
    "id", ["float64-2x3-normal-int64-none-weighted-rows", "bfloat16-2x3-normal-probabilities-sum-weighted-scalar"]
)
def test_the_digest_changes_with_any_bit_of_any_tensor(id):
    inputs = Case.of(id).build()
    digests = {inputs.digest}
    flips = 0
    for name, tensor in _tensors(inputs).items():
        wide = {2: torch.int16, 8: torch.int64}[tensor.element_size()]
        width = 8 * tensor.element_size()
        for at, bit in itertools.product(range(tensor.numel()), range(width)):
            other = tensor.clone(memory_format=torch.contiguous_format)
            other.view(-1).view(wide)[at] ^= torch.tensor(1 << bit if bit < width - 1 else -(1 << bit)).to(wide)
            digests.add(_with(inputs, name, other).digest)
            flips += 1
    assert len(digests) == flips + 1  # CRC-32 differs for inputs that differ in one bit


def test_the_digest_changes_with_every_option_shape_and_dtype():
    inputs = Case.of("float32-4x4-normal-int64-mean-weighted-ignored-smooth0.1").build()
    others = [
        dataclasses.replace(inputs, options={**inputs.options, key: value})
        for key, value in (
            ("reduction", "sum"),
            ("label_smoothing", 0.10000000000000002),
            ("ignore_index", 254),
            ("ignore_index", True),
        )
    ]
    others += [
        dataclasses.replace(inputs, options={k: v for k, v in inputs.options.items() if k != name})
        for name in inputs.options
    ]
    others += [
        _with(inputs, "input", inputs.input.view(2, 8)),
        _with(inputs, "input", inputs.input.view(torch.int32)),
        _with(inputs, "target", inputs.target.view(2, 2)),
        _with(inputs, "upstream", inputs.upstream.view(1)),
        _with(inputs, "weight", inputs.options["weight"].view(2, 2)),
    ]
    digests = [inputs.digest, *(other.digest for other in others)]
    assert len(set(digests)) == len(digests)


def test_the_numbers_do_not_depend_on_the_dtype():
    """Each dtype has the same float64 numbers, rounded once, except values that depend on the range of the dtype."""
    for case in sampled(400):
        if case.values in ("subnormal", "extreme"):
            continue
        wide, narrow = dataclasses.replace(case, dtype="float64").build(), case.build()
        pairs = [(wide.input, narrow.input), (wide.upstream, narrow.upstream)]
        pairs += [(wide.target, narrow.target)] if case.target != "other_float" else []
        pairs += [(wide.options["weight"], narrow.options["weight"])] if "weight" in wide.options else []
        for one, two in pairs:
            if one.is_floating_point():
                rounded = torch.from_numpy(np.array(FORMATS[case.dtype].nearest(one.numpy()))).to(two.dtype)
                assert np.array_equal(rounded.double(), two.double(), equal_nan=True), case.id
            else:
                assert one.equal(two)


def test_the_numbers_do_not_depend_on_the_upstream_gradient():
    one = Case.of("float32-7x5-normal-probabilities-none-weighted-rows").build()
    two = Case.of("float32-7x5-normal-probabilities-none-weighted-zero").build()
    assert one.input.equal(two.input)
    assert one.target.equal(two.target)
    assert one.options["weight"].equal(two.options["weight"])


def test_an_integer_choice_makes_the_same_case_as_a_float():
    assert Case("float32", label_smoothing=1).build().digest == Case("float32", label_smoothing=1.0).build().digest
    assert Case("float32", (np.int64(7), 5)).build().digest == Case("float32", (7, 5)).build().digest


@pytest.mark.parametrize("values", VALUES)
def test_logits_are_below_the_declared_magnitude(values):
    for dtype, seed in itertools.product(DTYPES, range(3)):
        ignored = "ignored" if VALUES[values].ignored_only else "kept"
        case = Case(dtype, (50, 9), values, ignored=ignored, seed=seed)
        if not case.invalid:
            logits = case.build().input.double().numpy()
            assert np.abs(logits[np.isfinite(logits)]).max(initial=0) < (VALUES[values].largest or np.inf)


def test_a_ramp_of_more_classes_than_float16_has_numbers_does_not_overflow():
    """The rows have different steps. The step 1 would reach -inf at class 65,520."""
    narrow, wide = (Case(dtype, (40, 66000), "ramp").build().input for dtype in ("float16", "float32"))
    assert narrow.isfinite().all()
    assert wide.amin() == -65999  # one of the 40 rows has the step 1, and float32 holds its last logit
    assert (narrow.amin() + 33000).abs() <= 16  # half a unit in the last place


def test_flat_logits_are_zero_equal_logits_are_equal_and_integers_are_integers():
    assert (built("flat")[1] == 0).all()
    _, equal = built("equal")
    assert (equal == equal[:, :1]).all()
    assert len(np.unique(equal)) == 19
    assert set(np.unique(built("integers")[1])) == set(range(-3, 4))


def test_normal_logits_have_a_deviation_of_three_and_tiny_wide_and_large_logits_have_their_own():
    for values, scale in (("normal", 3), ("tiny", 1e-3), ("wide", 60), ("large", 1e4)):
        _, logits = built(values, sizes=(20000, 5))
        # Allow five standard errors for 1e5 numbers. The mean has 1/√n, the deviation has less than 1/√2n.
        assert abs(logits.mean()) < 5 * scale / np.sqrt(logits.size)
        assert abs(logits.std() - scale) < 5 * scale / np.sqrt(2 * logits.size)
        assert np.abs(logits).max() <= 2 * np.sqrt(3) * scale  # the sum of four numbers of at most 0.5, times √3


def test_wide_makes_most_other_exponentials_underflow_in_float32():
    _, logits = built("wide", "float32")
    gaps = logits.max(1, keepdims=True) - logits
    assert (np.exp(-gaps.astype(np.float32))[gaps > 0] < np.finfo(np.float32).tiny).mean() > 0.3


def test_offsets_shift_whole_rows():
    for values, low, high in (("offset", 1e4, 1e4), ("negative_offset", -1e4, -1e4), ("large_offset", 1e8, 1e8)):
        _, logits = built(values)
        assert (logits > low - 11).all()
        assert (logits < high + 11).all()
    _, logits = built("row_offsets")
    nearest = 128 * np.round(logits / 128)
    assert (nearest == nearest[:, :1]).all()
    assert len(np.unique(nearest)) > 50


def test_decades_spread_over_orders_of_magnitude_and_both_signs():
    _, logits = built("decades")
    assert (logits != 0).all()
    exponents = np.frexp(logits)[1]
    assert exponents.max() - exponents.min() == 21
    assert 0.4 < (logits < 0).mean() < 0.6


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_logits_are_subnormal_in_their_own_dtype(dtype):
    _, logits = built("subnormal", dtype)
    assert (np.abs(logits) < FORMATS[dtype].smallest_normal).all()
    assert (logits != 0).mean() > 0.9
    assert np.array_equal(
        logits / FORMATS[dtype].smallest_subnormal, np.round(logits / FORMATS[dtype].smallest_subnormal)
    )


@pytest.mark.parametrize(
    ("dtype", "narrower"), [("float64", "float32"), ("float32", "float16"), ("float16", "bfloat16")]
)
def test_near_ties_become_ties_in_narrower_dtypes(dtype, narrower):
    def rows_with_all_equal(dtype):
        logits = built("near_ties", dtype)[1]
        return (logits == logits[:, :1]).all(1)

    wide, narrow = rows_with_all_equal(dtype), rows_with_all_equal(narrower)
    assert not (wide & ~narrow).any()
    assert narrow.sum() > wide.sum() + 20  # in a quarter of 200 rows, rounding removes all differences


def test_sure_is_a_probability_of_0999_in_every_dtype():
    for dtype in DTYPES:
        inputs, logits = built("sure", dtype, (9, 2))
        p = 1 / (1 + np.exp(-6.90625))
        assert f"{p:.3f}" == "0.999"
        assert (logits == np.where(is_hot(inputs), 6.90625, 0.0)).all()


def test_confident_rows_raise_only_the_logit_of_the_true_class():
    inputs, logits = built("confident")
    assert (logits[~is_hot(inputs)] == 0).all()
    hot = logits[is_hot(inputs)]
    # The logit is k·log 2, so p = 1 / (1 + 4·2^-k) for five classes. k is at least the 3 bits of the number 4.
    k = np.round(hot / np.log(2))
    assert set(k) == set(range(3, 24))


def test_wrong_rows_have_the_true_class_far_below():
    inputs, logits = built("wrong")
    hot = logits[is_hot(inputs)]
    assert (hot < np.where(is_hot(inputs), np.inf, logits).min(1) - 10).all()


def test_outlier_rows_have_one_class_far_above():
    _, logits = built("outlier")
    ordered = np.sort(logits, 1)
    assert (ordered[:, -1] - ordered[:, -2] > 15).all()
    assert len(np.unique(logits.argmax(1))) == 5


def test_inf_off_target_is_never_on_the_true_class():
    inputs, logits = built("inf_off_target")
    assert np.isfinite(logits[is_hot(inputs)]).all()
    assert 0.3 < np.isneginf(logits[~is_hot(inputs)]).mean() < 0.5
    assert not np.isnan(logits).any()
    assert not np.isposinf(logits).any()


def test_inf_on_target_is_on_the_target_of_some_rows_only():
    inputs, logits = built("inf_on_target")
    assert np.isfinite(logits[~is_hot(inputs)]).all()
    assert 0.3 < np.isneginf(logits[is_hot(inputs)]).mean() < 0.5


def test_inf_tiles_fill_the_leading_seven_eighths_except_the_true_class():
    inputs, logits = built("inf_tiles", sizes=(50, 64))
    leading = (np.arange(64) < 56) & ~is_hot(inputs)
    assert np.array_equal(np.isneginf(logits), leading)


@pytest.mark.parametrize(("values", "kind"), [("positive_inf", np.isposinf), ("nan", np.isnan)])
def test_one_class_of_some_rows_is_special(values, kind):
    _, logits = built(values)
    assert set(kind(logits).sum(1)) == {0, 1}
    assert np.isfinite(logits[~kind(logits)]).all()
    assert 0.3 < kind(logits).any(1).mean() < 0.5
    assert len(np.unique(np.nonzero(kind(logits))[1])) == 5


def test_some_rows_have_only_minus_infinity():
    _, logits = built("inf_rows")
    nothing = np.isneginf(logits)
    assert set(nothing.sum(1)) == {0, 5}
    assert 0.3 < nothing.all(1).mean() < 0.5
    assert np.isfinite(logits[~nothing]).all()


@pytest.mark.parametrize(("values", "kind"), [("nan_ignored", np.isnan), ("inf_ignored", np.isneginf)])
@pytest.mark.parametrize("ignored", ["ignored", "ignored_default", "ignored_huge", "ignored_first", "ignored_16th"])
def test_special_ignored_rows_are_ignored_and_no_others(values, kind, ignored):
    inputs, logits = built(values, ignored=ignored)
    rows = inputs.target.numpy() == IGNORED[ignored]
    assert rows.any()
    assert kind(logits[rows]).all()
    assert np.isfinite(logits[~rows]).all()


def test_each_choice_of_ignored_rows_ignores_its_rows():
    at = np.arange(200)
    for ignored, rows in (
        ("kept", at < 0),
        ("ignored_first", at == 0),
        ("ignored_16th", at % 16 == 0),
        ("ignored_all", at >= 0),
    ):
        inputs, _ = built("normal", ignored=ignored)
        index = inputs.options.get("ignore_index", -100)
        assert np.array_equal(inputs.target.numpy() == index, rows)
    for ignored, index in (("ignored_huge", 2**32), ("ignored_minus_one", -1)):
        inputs, _ = built("normal", ignored=ignored)
        assert inputs.options["ignore_index"] == index
        assert 0.3 < (inputs.target == index).double().mean() < 0.5


def test_each_choice_of_weight_has_its_property():
    weight = {
        kind: Case("float64", (1, 400), weight=kind).build().options["weight"] for kind in axes.AXES["weight"][1:]
    }
    assert (weight["weighted"] > 0).all()
    assert 1e5 < weight["weight_decades"].max() / weight["weight_decades"].min() < 2**21
    assert 0.3 < (weight["weight_zeros"] == 0).double().mean() < 0.5
    assert not weight["weight_all_zeros"].any()
    assert 0.3 < (weight["weight_negative"] < 0).double().mean() < 0.5
    assert "weight" not in Case("float64").build().options


def test_each_choice_of_dense_target_has_its_property():
    p = Case("float64", (50, 5), target="probabilities").build().target
    assert ((p >= 0) & (p <= 1)).all()
    assert ((p.sum(1) - 1).abs() <= 5 * 2.0**-53).all()  # five quotients below 1, each rounded once
    hard = Case("float64", (50, 5), target="hard").build().target
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert (hard.sum(1) == 1).all()
    loose = Case("float64", (50, 5), target="unnormalised").build().target
    assert (loose < 0).any()
    assert (loose.sum(1) > 2).any()
    padded = Case("float64", (50, 5), target="padded").build().target
    sums = padded.sum(1)
    assert 0.3 < (sums == 0).double().mean() < 0.5
    assert ((sums == 0) | ((sums - 1).abs() <= 5 * 2.0**-53)).all()


def test_each_choice_of_upstream_gradient_has_its_property():
    def upstream(name, reduction="none"):
        return Case("float64", (3, 5, 4), reduction=reduction, upstream=name).build().upstream

    assert upstream("one", "mean").item() == 1
    assert upstream("zero", "mean").item() == 0
    assert upstream("scalar", "mean").item() not in (0, 1)
    assert upstream("rows").stride() == (4, 1)
    assert len(upstream("rows").unique()) == 12
    for name in ("one", "scalar", "stride0", "zero"):
        assert upstream(name).shape == (3, 4)
        assert upstream(name).stride() == (0, 0)
    assert len(upstream("stride0").unique()) == 1
    assert upstream("rows_expanded").stride() == (4, 0)
    assert len(upstream("rows_expanded").unique()) == 3


def test_the_inputs_have_the_shapes_that_torch_needs():
    for case in sampled(400):
        inputs = case.build()
        assert isinstance(inputs, Inputs)
        assert inputs.input.shape == case.sizes
        assert inputs.input.is_contiguous() or case.layout != "contiguous"
        rows = torch.Size([*case.sizes[:1], *case.sizes[2:]] if len(case.sizes) > 1 else [])
        assert inputs.target.shape == (case.sizes if case.target in DENSE_TARGETS else rows)
        assert inputs.upstream.shape == (rows if case.reduction == "none" else ())


def having(**choices):
    """Return a valid case with these choices."""
    others = {
        "sizes": ((7, 5), (3, 5, 4)),
        "reduction": ("mean", "none"),
        "weight": ("unweighted", "weighted"),
        "ignored": ("kept", "ignored"),
        "target": ("int64", "probabilities"),
    }
    for words in itertools.product(*others.values()):
        case = dataclasses.replace(Case("float32"), **{**dict(zip(others, words, strict=True)), **choices})
        if case.invalid is None:
            return case
    raise AssertionError(f"no case has {choices}")


@pytest.mark.parametrize(("axis", "word"), [(axis, word) for axis, words in axes.AXES.items() for word in words])
def test_every_word_of_an_axis_has_code_that_builds_it(axis, word):
    having(**{axis: word}).build()


@pytest.mark.parametrize("axis", ["values", "target", "weight", "ignored", "upstream", "layout", "target_layout"])
def test_a_word_without_code_is_an_error_and_not_another_input(axis):
    with pytest.raises((KeyError, ValueError), match="unheard_of"):
        dataclasses.replace(having(), **{axis: "unheard_of"}).build()


SOME_IGNORED = [word for word in axes.AXES["ignored"] if word not in ("kept", "ignored_all", "ignored_first")]


@pytest.mark.parametrize("ignored", SOME_IGNORED)
def test_of_a_few_rows_some_are_ignored_and_some_are_not(ignored):
    for seed in range(100):
        rows = (2, 3, 20)[seed % 3] if ignored != "ignored_16th" else 20
        target = Case("float32", (rows, 5), target="int64", ignored=ignored, seed=seed).build().target
        assert 0 < int((target == IGNORED[ignored]).sum()) < rows


def test_some_of_a_few_class_weights_are_zero_or_negative_and_some_are_not():
    for seed in range(100):
        for classes in (2, 3, 5):
            zeros, mixed = (
                Case("float32", (4, classes), weight=weight, seed=seed).build().options["weight"]
                for weight in ("weight_zeros", "weight_negative")
            )
            assert 0 < int((zeros == 0).sum()) < classes
            assert 0 < int((mixed < 0).sum()) < classes
