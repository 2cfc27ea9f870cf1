"""Checks that need no exact value: each catches its own kind of wrong cross-entropy, and correct code passes."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.checks import CALL, INVARIANTS, OPTIONS, RESULT, SINGLE, TWO_BACKWARDS
from support.checks import RELATIONS as OF_RELATIONS
from support.finding import by_hand, found, part_of, reduced
from support.running import run, trial_of
from support.subjects import TENSOR_FORMS
from support.waits import computes, float16

import crossent
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.checks.relations.changes import shiftable
from crossent.numerics.formats import FORMATS
from crossent.numerics.oracle.arithmetic import Ball
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.subjects.subject import Subject
from crossent.trials import agreement
from crossent.trials.agreement import compare_results, plus
from crossent.trials.trial import Question

RELATIONS = (*OF_RELATIONS, *OPTIONS, *TWO_BACKWARDS)
CHECKS = {check.name: check for check in (*INVARIANTS, *RELATIONS)}


def ran(subjects, chosen):
    """Return the names of the checks that ran on each subject. All must have passed."""
    report = run(subjects, chosen, (CALL, RESULT, *CHECKS.values()))
    assert not report.findings, report.findings[0]
    of = {entry.name: [set(outcome.checks) for outcome in entry.outcomes.values()] for entry in report.subjects}
    return {name: set().union(*checks) & set(CHECKS) for name, checks in of.items()}


@pytest.mark.parametrize("dtype", FORMATS)
def test_right_code_passes_every_check(dtype, seed):
    """All checks run and pass on every ninth case of the pairwise array."""
    pairs = grid([dtype], seed, "pairs")
    # torch refuses uint8 targets in some calls, and its float16 overflows.
    few = [case for case in pairs if case.target != "uint8" and (case.dtype, case.values) != ("float16", "large")][::9]
    every = set(CHECKS) - (set() if dtype in ("float16", "bfloat16") else {"widened"})
    subjects = [*TENSOR_FORMS, TORCH] if computes(dtype) else TENSOR_FORMS
    assert ran(subjects, few) == {subject.name: every for subject in subjects}


def test_a_subject_without_a_gradient_is_compared_by_its_loss(seed):
    one_row = [case for case in grid(array="pairs", seed=seed) if case.sizes == (5,)]
    of_rows_and_gradients = {"rows_permuted", "split", "row_sums", "two_backwards"}
    assert ran([FORM_SUBJECTS["scalar"]], one_row) == {"scalar": set(CHECKS) - of_rows_and_gradients}


def contiguously(tensor):
    """Return the numbers of a tensor that a kernel reads if it assumes contiguous memory."""
    strides = torch.empty(tensor.shape, device="meta").stride()
    return tensor.as_strided(tensor.shape, strides)


def first_of(upstream):
    """Return a contiguous upstream gradient, and zeros in place of any other, as a kernel with a wrong stride reads."""
    return upstream if upstream.is_contiguous() else torch.zeros_like(upstream)


@pytest.mark.parametrize(
    ("loss", "case"),
    [
        (lambda x, y, **o: crossent.formula(contiguously(x), y, **o), "float32-7x5-normal-int64-none-rows-transposed"),
        (lambda x, y, **o: crossent.formula(contiguously(x), y, **o), "float64-3x5x4-normal-int64-mean-window"),
        (
            lambda x, y, **o: crossent.formula(x, contiguously(y).clamp(0, 4), **o),  # pytorch#67167
            "float32-7x5-normal-int64-sum-target_strided",
        ),
        (
            by_hand(lambda probs, hot, upstream: (probs - hot) * first_of(upstream)[:, None]),
            "float32-7x5-normal-int64-none-stride0",
        ),
    ],
    ids=["transposed", "window", "target", "upstream"],
)
def test_a_tensor_that_is_read_as_if_it_were_contiguous_is_caught(loss, case):
    assert found("layout", loss, case)


def cancelling(logits, target, reduction, **options):
    """Compute `m + log Σ exp(x - m) - x_y`, in which a large m absorbs `log Σ`: pytorch#38839."""
    return reduced(torch.logsumexp(logits, 1) - logits.gather(1, target[:, None])[:, 0], reduction)


def shifted_by_the_largest_of_all(logits, target, reduction, **options):
    x = logits - logits.detach().max()
    return reduced(x.exp().sum(1).log() - x.gather(1, target[:, None])[:, 0], reduction)


@pytest.mark.parametrize("loss", [cancelling, shifted_by_the_largest_of_all])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loss_that_depends_on_a_common_offset_is_caught(loss, dtype):
    assert found("shift", loss, f"{dtype}-7x5-normal-int64-none-rows")


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("dtype", FORMATS)
def test_logits_are_shifted_exactly_and_keep_half_of_their_digits(dtype, common):
    storage = FORMATS[dtype]
    kinds = ("flat", "normal", "wide", "large", "decades", "subnormal", "inf_tiles", "nan", "extreme", "scales")
    shifted = set()
    for kind in kinds:
        logits = Case(dtype, (17, 3), kind).build().input.double().numpy()
        rounded, by = shiftable(logits, dtype, common=common)
        finite = np.isfinite(logits)
        assert bits_equal(rounded[~finite], logits[~finite])
        for row, column in np.argwhere(finite & (by != 0)[:, None]):
            exact = Fraction(rounded[row, column]) + Fraction(by[row])
            assert abs(exact) <= storage.largest
            assert Fraction(float(storage.nearest(np.array(float(exact))))) == exact
        size = np.abs(np.where(finite, logits, 0.0)).max(1, initial=1.0, keepdims=True)
        size = size.max() if common else size
        most = np.broadcast_to(2 * size * 2.0 ** (storage.precision // 2 - storage.precision), logits.shape)
        assert (np.abs(rounded[finite] - logits[finite]) <= most[finite]).all()
        shifted |= {kind} if by.all() else set()
    assert shifted >= set(kinds) - {"extreme", "large", "scales"}


def bits_equal(one, other):
    return one.tobytes() == other.tobytes()


def test_shift_is_not_run_on_logits_that_cannot_be_shifted_exactly():
    large = (Case("float16", (1, 5), "large", reduction="sum", seed=seed) for seed in range(100))
    case = next(case for case in large if case.build().input.abs().max() > 2**14)
    entry = part_of(FORM_SUBJECTS["formula"], case, "shift")
    assert entry.not_run == {"shift": {"receives logits that cannot be shifted exactly in their dtype": 1}}


def of_the_first_row(probs, hot, upstream):
    """Return a gradient with the upstream gradient of the first row in every row, as in Liger-Kernel#678."""
    return (probs - hot) * upstream[0]


def with_dimensions_mixed_up(logits, target, **options):
    return crossent.formula(logits, target.transpose(1, 2), **options)


@pytest.mark.parametrize(
    ("loss", "case"),
    [
        (by_hand(of_the_first_row), "float32-7x5-normal-int64-none-rows"),
        (with_dimensions_mixed_up, "float64-2x5x3x3-normal-int64-sum"),
        # The maximum is taken over all rows so far.
        (
            lambda x, y, reduction, **o: reduced(
                (x - x.detach().amax(1, keepdim=True).cummax(0)[0]).exp().sum(1).log()
                - (x - x.detach().amax(1, keepdim=True).cummax(0)[0]).gather(1, y[:, None])[:, 0],
                reduction,
            ),
            "float32-7x5-wide-int64-none-rows",
        ),
    ],
    ids=["upstream", "dimensions", "maximum"],
)
def test_a_loss_that_depends_on_the_order_of_rows_is_caught(loss, case):
    assert found("rows_permuted", loss, case)


def test_a_finding_about_reversed_rows_names_the_dimension_in_words():
    case = Case.of("float32-7x5-normal-int64-none-rows")
    finding, *_ = part_of(Subject("mine", by_hand(of_the_first_row)), case, "rows_permuted").findings
    assert finding.of == "gradient reversed along dimension 0"
    assert finding.message.startswith("gradient of the logits, with rows reversed along dimension 0:")


@pytest.mark.parametrize("case", ["float32-7x5-normal-int64-sum", "float32-7x5-normal-probabilities-sum"])
def test_a_loss_that_depends_on_the_order_of_classes_is_caught(case):
    def without_its_tail(logits, target, **options):
        """Leave the last classes out of the sum, if the number of classes is no multiple of 4."""
        lost = torch.logsumexp(logits, 1) - torch.logsumexp(logits[:, : logits.shape[1] // 4 * 4], 1)
        return crossent.formula(logits, target, **options) - lost.sum()

    assert found("classes_permuted", without_its_tail, case)


def test_an_ignored_class_is_reversed_with_the_others():
    for ignored in ("ignored_class", "ignored", "ignored_huge", "ignored_default"):
        case = Case("float64", (7, 5), ignored=ignored, weight="weighted")
        assert not part_of(FORM_SUBJECTS["formula"], case, "classes_permuted").findings


def in_chunks(logits, target, reduction="mean", ignore_index=-100, **options):
    """Return the average of the means of chunks, as in Automodel#3803."""
    parts = zip(logits.split(2), target.split(2), strict=True)
    parts = [crossent.formula(x, y, ignore_index=ignore_index, reduction=reduction, **options) for x, y in parts]
    return torch.stack(parts).mean() if reduction == "mean" else torch.stack(parts).sum()


def divided_by_all_rows(logits, target, reduction="mean", **options):
    losses = crossent.formula(logits, target, reduction="none", **options)
    return reduced(losses, reduction)


@pytest.mark.parametrize(
    ("loss", "case"),
    [
        (in_chunks, "float32-7x5-normal-int64-mean"),
        (divided_by_all_rows, "float32-7x5-normal-int64-mean-ignored_default"),
        (divided_by_all_rows, "float32-7x5-normal-int64-mean-weighted"),
    ],
)
def test_a_mean_that_is_not_made_of_the_means_of_its_parts_is_caught(loss, case):
    assert found("split", loss, case)


def test_a_sum_and_rows_that_depend_on_the_batch_are_caught():
    def by_the_batch(logits, target, **options):
        return crossent.formula(logits, target, **options) * (1 + 1e-4 * len(logits))

    for reduction in ("sum", "none"):
        assert found("split", by_the_batch, f"float32-7x5-normal-int64-{reduction}")


def test_parts_are_chosen_so_that_no_part_divides_by_0():
    case = Case.of("float32-7x5-normal-int64-mean-ignored_all")
    entry = part_of(FORM_SUBJECTS["formula"], case, "split")
    assert entry.not_run == {"split": {"would divide by 0, wherever the batch is split": 1}}
    # Weights of both signs, so that the share of a part is negative or above 1.
    for seed in range(5):
        case = Case("float64", (7, 5), weight="weight_negative", ignored="ignored", upstream="scalar", seed=seed)
        assert not part_of(FORM_SUBJECTS["formula"], case, "split").findings


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=float16), "bfloat16"])
def test_a_loss_computed_in_half_precision_is_caught(dtype):
    """`widened` finds a loss whose steps are computed in half precision, as in TransformerEngine#3193."""

    def step_by_step(logits, target, reduction, **options):
        x = logits - logits.detach().amax(1, keepdim=True)
        return reduced(x.exp().sum(1).log() - x.gather(1, target[:, None])[:, 0], reduction)

    for case in (f"{dtype}-7x5-normal-int64-none-rows", f"{dtype}-2x257-normal-int64-sum"):
        assert found("widened", step_by_step, case)


def without(*dropped):
    return lambda x, y, **options: crossent.formula(x, y, **{k: v for k, v in options.items() if k not in dropped})


@pytest.mark.parametrize(
    ("loss", "case", "option"),
    [
        (without("label_smoothing"), "float32-7x5-normal-int64-mean-smooth0.1", "label_smoothing=0.1"),
        (without("weight"), "float32-7x5-normal-int64-mean-weighted", "weight"),
        (without("weight"), "float32-7x5-normal-probabilities-mean-weighted", "weight"),
        (without("ignore_index"), "float32-7x5-normal-int64-mean-ignored_class", "ignore_index=1"),
        (
            lambda x, y, **o: crossent.formula(x, y.clamp(0), **o),  # ignored rows become rows of class 0
            "float32-7x5-normal-int64-mean-ignored_first",
            "ignore_index=-100",
        ),
    ],
)
def test_an_option_that_changes_nothing_is_caught(loss, case, option):
    ((kind, message),) = found("options", loss, case)
    assert kind == "wrong"
    expected = "expected different values, since the exact values differ"
    assert message == f"loss: got the same values with and without {option}; {expected}"


def test_an_option_without_effect_passes_if_the_exact_loss_does_not_depend_on_it():
    for case in ("float32-7x1-normal-int64-mean-weighted", "float32-7x5-flat-int64-mean-smooth0.1"):
        assert not found("options", crossent.formula, case)


def smoothed_by_default(input, target, label_smoothing=0.1, **options):
    return crossent.formula(input, target, label_smoothing=label_smoothing, **options)


def divided_by_weights(input, target, weight=None, **options):
    loss = crossent.formula(input, target, weight, **options)
    return loss if weight is None else loss / weight.sum()


def without_the_ignored_class(input, target, ignore_index=-100, **options):
    logits = input
    if 0 <= ignore_index < input.shape[1]:
        logits = input.index_fill(1, torch.tensor([ignore_index]), -torch.inf)
    return crossent.formula(logits, target, ignore_index=ignore_index, **options)


@pytest.mark.parametrize("loss", [smoothed_by_default, divided_by_weights, without_the_ignored_class])
def test_an_option_that_is_off_and_changes_the_loss_is_caught(loss):
    assert found("options", loss, "float32-2x257-normal-int64-sum")


def scaled_in_place(reuse=None, scaled=None):
    """Return a loss that stores the gradient and scales it in place, as in Liger-Kernel#272 and #343.

    With the dict `reuse`, all calls store the gradient in the same memory, and do not scale it in place. `scaled` is
    another function of the stored gradient and the upstream gradient.
    """

    class InPlace(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, target):
            gradient = torch.softmax(logits, 1) - F.one_hot(target, logits.shape[1])
            if reuse is not None:
                gradient = reuse.setdefault("memory", torch.empty_like(gradient)).copy_(gradient)
            ctx.gradient = gradient
            return -torch.log_softmax(logits, 1).gather(1, target[:, None]).sum()

        @staticmethod
        def backward(ctx, upstream):
            if scaled is not None:
                return scaled(ctx.gradient, upstream), None
            return (ctx.gradient.mul_(upstream) if reuse is None else ctx.gradient * upstream), None

    return lambda logits, target, **options: InPlace.apply(logits, target)


def test_a_gradient_that_a_second_backward_changes_is_caught():
    for upstream in ("", "-scalar"):
        ((kind, _),) = found("two_backwards", scaled_in_place(), f"float32-7x5-normal-int64-sum{upstream}")
        assert kind == "not_repeated"


def test_a_stored_gradient_that_belongs_to_the_caller_is_caught():
    # With an upstream gradient of 1, the caller gets the stored gradient itself, and may change it in place.
    loss = scaled_in_place(scaled=lambda stored, upstream: stored if upstream == 1 else stored * upstream)
    ((kind, message),) = found("two_backwards", loss, "float32-7x5-normal-int64-sum")
    assert kind == "not_repeated"
    assert "in place" in message


def test_a_gradient_with_the_stride_0_is_no_finding():
    def loss(logits, target, **options):
        return logits.sum() * 0

    assert not found("two_backwards", loss, "float32-7x5-normal-int64-sum")


def test_two_losses_that_share_memory_are_caught():
    ((kind, _),) = found("two_backwards", scaled_in_place(reuse={}), "float32-7x5-normal-int64-sum")
    assert kind == "disturbed"


@pytest.mark.parametrize("name", [name for name in CHECKS if name in {check.name for check in RELATIONS}])
def test_a_further_call_that_raises_or_gives_the_wrong_shape_is_a_finding(name):
    def only_once(then):
        calls = []

        def loss(*args, **options):
            calls.append(args)
            return crossent.formula(*args, **options) if len(calls) == 1 else then(*args, **options)

        return Subject("mine", loss)

    def refuses(*args, **options):
        raise ValueError("only once")

    case = Case.of("bfloat16-7x5-normal-int64-none-rows-transposed")
    (refused,) = part_of(only_once(refuses), case, name).findings
    assert (refused.check, refused.kind, refused.message) == (name, "refused", "ValueError: only once")
    (wrong,) = part_of(only_once(lambda *args, **options: crossent.formula(*args, **options)[:0]), case, name).findings
    assert (wrong.check, wrong.kind) == (name, "wrong")
    assert wrong.message.startswith("loss of another call: got ")


def test_a_further_call_that_does_not_apply_to_the_subject_is_counted():
    picky = Subject(
        "mine",
        crossent.formula,
        not_applicable=lambda inputs: "has no weight" if "weight" in inputs.options else None,
    )
    assert part_of(picky, Case.of("float32-7x5-normal-int64-mean"), "options").not_run == {
        "options": {"has no weight": 1}
    }


def test_a_check_does_not_run_on_cases_to_which_it_does_not_apply():
    silent = {
        "sign": "float32-7x5-normal-int64-mean-weight_negative",
        "row_sums": "float32-0x5-normal-int64-mean",
        "ignored_rows": "float32-7x5-normal-int64-mean",
        "layout": "float32-7x5-normal-int64-none-rows",
        "shift": "float32-0x5-normal-int64-mean",
        "rows_permuted": "float32-5-normal-int64-mean",
        "classes_permuted": "float32-4x1-normal-int64-mean",
        "split": "float32-1x5-normal-int64-mean",
        "widened": "float32-7x5-normal-int64-mean",
    }
    for name, case in silent.items():
        assert name not in part_of(FORM_SUBJECTS["formula"], Case.of(case), name).outcomes[case].checks
    assert set(CHECKS) - set(silent) == {"options", "two_backwards"}


def test_two_results_may_differ_by_both_of_their_bounds_and_no_more():
    case = Case.of("float32-7x5-normal-int64-sum")
    question = Question(case)
    trial = trial_of(question, FORM_SUBJECTS["formula"])
    ball = agreement.with_radius(trial, trial.got)["loss"]
    assert ball.radius > 0
    for times, agrees in ((1.99, True), (2.01, False)):
        shifted_ball = Ball(ball.hi + times * ball.radius, ball.lo, ball.radius)
        (difference,) = [d for d in compare_results(trial, {"loss": shifted_ball}) if d.of == "loss"]
        assert (difference.ratio <= 1) == agrees


def test_a_number_in_place_of_nan_is_found_even_without_a_bound():
    def replaces_nan_for_strided_logits(logits, target, **options):
        right = crossent.formula(logits, target, **options)
        return right if logits.is_contiguous() else right.nan_to_num(1.0)

    case = Case.of("float32-7x5-nan-int64-none-transposed")
    assert case.build().input.isnan().any()
    assert found("layout", replaces_nan_for_strided_logits, case.id)


def test_a_difference_that_cannot_be_judged_is_counted():
    case = Case.of("float16-7x5-large-int64-sum-transposed")
    measured = part_of(FORM_SUBJECTS["formula"], case, "layout").outcomes[case.id].checks["layout"]
    assert measured.not_judged == {"the other result has no error bound": 1}


@pytest.mark.parametrize("seed", range(4))
def test_multiples_and_sums_of_balls_contain_the_exact_values(seed):
    random = np.random.RandomState(seed)

    def ball():
        hi = np.ldexp(random.random_sample(50) - 0.5, random.randint(-1070, 900, size=50))
        return Ball(hi, np.zeros(50), np.zeros(50))

    share = Fraction(random.randint(1, 1000), random.randint(1, 1000)) * random.choice([-1, 1])
    one, other = ball(), ball()
    for made, exact in (
        (agreement.times(share, one), [share * Fraction(x) for x in one.hi]),
        (plus(one, other), [Fraction(x) + Fraction(y) for x, y in zip(one.hi, other.hi, strict=True)]),
    ):
        for hi, lo, radius, value in zip(made.hi, made.lo, made.radius, exact, strict=True):
            assert abs(Fraction(hi) + Fraction(lo) - value) <= Fraction(radius)
            assert radius <= 2.0**-50 * abs(hi) + 2.0**-1070


def test_sums_of_infinite_balls_contain_all_possible_sums():
    inf = np.inf

    def ball(hi, radius=0.0):
        return Ball(np.array([hi]), np.zeros(1), np.array([radius]))

    for one, other, hi, radius in (
        (ball(inf), ball(1.0), inf, 0.0),
        (ball(inf), ball(-inf), np.nan, 0.0),
        (ball(inf, inf), ball(1.0), inf, inf),
        (ball(1.5e308), ball(1.5e308), inf, inf),  # beyond float64: nothing is known
    ):
        made = plus(one, other)
        np.testing.assert_array_equal([made.hi[0], made.lo[0], made.radius[0]], [hi, 0.0, radius])


def test_a_subject_that_changes_its_arguments_does_not_change_the_arguments_of_the_next_subject():
    def writes_into_arguments(input, target, weight=None, **options):
        loss = crossent.formula(input, target, weight, **options)
        input.data.zero_()
        if weight is not None:
            weight.requires_grad_()
        return loss

    def right(input, target, **options):
        return crossent.formula(input, target, **options)

    cases = [case for case in grid(["bfloat16"], array="pairs") if case.weight != "unweighted" and case.rows]
    for case in cases[::4]:
        report = run([Subject("writes", writes_into_arguments), Subject("right", right)], case, (*SINGLE, *RELATIONS))
        assert report.subjects[0].findings
        assert not report.subjects[1].findings, report
