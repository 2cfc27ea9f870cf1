"""The defects that the checks must catch. A defect is a correct cross-entropy with one imprecise step.

Easy inputs do not show a defect. Inputs that show defects have a large gap between logits, or a true class with a
probability near 1. Others have an odd number of classes, many rows, or label smoothing. An error that rounding can
cause is not a defect. Examples are another order of summation, `log(1 + s)` instead of `log1p(s)`, and a shift that
does not overflow.
"""

import torch
from support.stepwise_cross_entropy import HALVES, WIDE, CrossEntropy, bfloat, cut, half, running, single, where_true

RIGHT = CrossEntropy("right", "Nothing is wrong.")

DEFECTS = (
    # The sum of the exponentials, and its logarithm.
    CrossEntropy(
        "least_likely_class_dropped",
        "The class with the smallest logit is missing from the sum.",
        step="total",
        wrong=lambda s, right: right - s.exps.amin(-1, keepdim=True) if s.exps.shape[-1] > 1 else right,
    ),
    CrossEntropy(
        "remainder_of_tiles_dropped",
        "With more than 64 classes, the sum has only the full tiles of 64 classes.",
        step="total",
        wrong=lambda s, right: s.exps[..., : max(64, right.shape[-1] // 64 * 64)].sum(-1, keepdim=True),
    ),
    CrossEntropy(
        "1e-4_inside_the_logarithm",
        "1e-4 is added to the sum before its logarithm.",
        step="log_sum",
        wrong=lambda s, right: (s.total + 1e-4).log(),
    ),
    CrossEntropy(
        "1e-7_inside_the_logarithm",
        "1e-7 is added to the sum before its logarithm.",
        step="log_sum",
        wrong=lambda s, right: (s.total + 1e-7).log(),
    ),
    CrossEntropy(
        "bfloat16_accumulator",
        "The exponentials are added up in bfloat16.",
        step="total",
        wrong=lambda s, right: running(torch.bfloat16, s.exps),
    ),
    CrossEntropy(
        "float32_accumulator",
        "The exponentials are added up in float32.",
        ("float64",),
        step="total",
        wrong=lambda s, right: running(torch.float32, s.exps),
    ),
    CrossEntropy(
        "float32_logarithm",
        "The logarithm is rounded to float32.",
        ("float64",),
        step="log_sum",
        wrong=lambda s, right: single(right),
    ),
    CrossEntropy(
        "sum_stored",
        "The sum of the exponentials is rounded to the logits' dtype.",
        HALVES,
        step="total",
        wrong=lambda s, right: s.stored(right),
    ),
    CrossEntropy(
        "logarithm_stored",
        "The logarithm of the sum is rounded to the logits' dtype.",
        HALVES,
        step="log_sum",
        wrong=lambda s, right: s.stored(right),
    ),
    # The shift and the exponentials.
    CrossEntropy(
        "maximum_of_the_first_tile",
        "The maximum is taken over the first 64 classes only.",
        step="largest",
        wrong=lambda s, right: s.logits[..., :64].amax(-1, keepdim=True),
    ),
    CrossEntropy(
        "one_maximum_for_the_batch",
        "All rows are shifted by the maximum of the whole batch.",
        step="largest",
        wrong=lambda s, right: right.amax().expand(right.shape),
    ),
    CrossEntropy(
        "log2_e_of_five_digits",
        "The exponential is computed in base 2, with 1.4427 for log2 e.",
        step="exps",
        wrong=lambda s, right: torch.exp2(s.shifted * 1.4427),
    ),
    CrossEntropy(
        "log2_e_of_float32",
        "The exponential is computed in base 2, with log2 e rounded to float32.",
        ("float64",),
        step="exps",
        wrong=lambda s, right: torch.exp2(s.shifted * 1.4426950216293335),
    ),
    CrossEntropy(
        "exponential_of_20_bits",
        "Exponentials are too large by a factor of 1 + 2^-20, except exp(0) = 1.",
        WIDE,
        step="exps",
        wrong=lambda s, right: torch.where(right == 1, 1.0, right * (1 + 2.0**-20)),
    ),
    CrossEntropy(
        "exponents_clamped",
        "Logits further than 16 below the maximum count as 16 below.",
        step="exps",
        wrong=lambda s, right: s.shifted.clamp(min=-16).exp(),
    ),
    CrossEntropy(
        "tf32_logits",
        "The logits lose all but the ten bits of TF32.",
        WIDE,
        step="logits",
        wrong=lambda s, right: cut(right, 13),
    ),
    CrossEntropy(
        "exponentials_stored",
        "The exponentials are rounded to the logits' dtype.",
        HALVES,
        step="exps",
        wrong=lambda s, right: s.stored(right),
    ),
    # The log-probabilities.
    CrossEntropy(
        "log_probs_stop_at_100",
        "Log-probabilities stop at -100, as in F.binary_cross_entropy.",
        step="log_probs",
        wrong=lambda s, right: right.clamp(min=-100),
    ),
    CrossEntropy(
        "probabilities_stop_at_1e-12",
        "Probabilities below 1e-12 are replaced by 1e-12 before the logarithm.",
        step="log_probs",
        wrong=lambda s, right: right.clamp(min=-27.631021),
    ),
    CrossEntropy(
        "probabilities_stored_and_logged",
        "The softmax is rounded to the logits' dtype before its logarithm.",
        HALVES,
        step="log_probs",
        wrong=lambda s, right: s.stored(s.exps / s.total).log(),
    ),
    CrossEntropy(
        "log_probs_stored",
        "The log-probabilities are rounded to the logits' dtype.",
        HALVES,
        step="log_probs",
        wrong=lambda s, right: s.stored(right),
    ),
    # The target: smoothing, weights, the denominator of the mean.
    CrossEntropy(
        "smoothing_of_float32",
        "The label smoothing ε is rounded to float32.",
        ("float64",),
        step="smoothing",
        wrong=lambda s, right: torch.tensor(right, dtype=torch.float32).item(),
    ),
    CrossEntropy(
        "uniform_share_of_float16",
        "ε/C is rounded to float16.",
        step="uniform",
        wrong=lambda s, right: half(right),
    ),
    CrossEntropy(
        "uniform_share_among_the_others",
        "The uniform share of every class is ε/(C-1).",
        step="uniform",
        wrong=lambda s, right: right * s.logits.shape[-1] / max(s.logits.shape[-1] - 1, 1),
    ),
    CrossEntropy(
        "weight_of_bfloat16",
        "Class weights are rounded to bfloat16.",
        ("float16", *WIDE),
        step="weight",
        wrong=lambda s, right: bfloat(right),
    ),
    CrossEntropy(
        "epsilon_in_the_mean",
        "The mean divides by the sum of the weights plus 1e-8.",
        WIDE,
        step="denominator",
        wrong=lambda s, right: right + 1e-8 if s.rows.reduction == "mean" else right,
    ),
    CrossEntropy(
        "count_of_float16",
        "The mean's denominator is rounded to float16: 2051 rows are 2052.",
        step="denominator",
        wrong=lambda s, right: half(right),
    ),
    # The loss.
    CrossEntropy(
        "loss_too_large_by_2^-10",
        "The loss is multiplied by 1 + 2^-10.",
        step="loss",
        wrong=lambda s, right: right * (1 + 2.0**-10),
    ),
    CrossEntropy(
        "two_last_places_too_large",
        "The loss is two units in its last place too large.",
        step="loss",
        wrong=lambda s, right: right * (1 + 2 * torch.finfo(s.rows.dtype).eps),
    ),
    CrossEntropy(
        "small_losses_are_zero",
        "A row's loss below 1e-6 counts as 0.",
        step="losses",
        wrong=lambda s, right: torch.where(right.abs() < 1e-6, 0.0, right),
    ),
    CrossEntropy(
        "z_loss_left_in",
        "The loss includes a z-loss of 1e-6 (log Σ exp x)².",
        step="losses",
        wrong=lambda s, right: right + 1e-6 * (s.largest + s.log_sum).squeeze(-1) ** 2,
    ),
    CrossEntropy(
        "losses_through_float16",
        "The losses of the rows are rounded to float16.",
        ("bfloat16", *WIDE),
        step="losses",
        wrong=lambda s, right: half(right),
    ),
    CrossEntropy(
        "losses_stored_before_their_sum",
        "The losses of the rows are rounded to the logits' dtype before their sum.",
        HALVES,
        step="losses",
        wrong=lambda s, right: s.stored(right),
    ),
    CrossEntropy(
        "sum_stored_before_its_mean",
        "The sum of the losses is rounded to the logits' dtype before the division.",
        HALVES,
        step="summed",
        wrong=lambda s, right: s.stored(right),
    ),
    CrossEntropy(
        "loss_cut_off",
        "The loss is rounded towards zero, not to nearest.",
        HALVES,
        step="loss",
        wrong=lambda s, right: cut(right, 13 if s.rows.dtype == torch.float16 else 16),
    ),
    # The gradient.
    CrossEntropy(
        "gradient_from_stored_log_probs",
        "The softmax in the gradient is the exponential of log-probabilities rounded to the logits' dtype.",
        HALVES,
        step="probs",
        wrong=lambda s, right: s.stored(s.log_probs).exp(),
    ),
    CrossEntropy(
        "gradient_from_logsumexp",
        "The softmax in the gradient is exp(x - logsumexp x), without subtracting the maximum first.",
        step="probs",
        wrong=lambda s, right: (s.logits - (s.largest + s.log_sum)).exp(),
    ),
    CrossEntropy(
        "true_class_rounded_before_the_subtraction",
        "The softmax of the true class is rounded to the logits' dtype before the target is subtracted.",
        HALVES,
        step="softmax",
        wrong=lambda s, right: where_true(s.rows, s.stored(right), right),
    ),
    CrossEntropy(
        "softmax_normalised_with_epsilon",
        "The softmax in the gradient is divided by its sum plus 1e-5.",
        step="probs",
        wrong=lambda s, right: right / (right.sum(-1, keepdim=True) + 1e-5),
    ),
    CrossEntropy(
        "small_probabilities_without_gradient",
        "Probabilities below 2^-12 count as 0 in the gradient, as in kernels that skip small probabilities.",
        step="probs",
        wrong=lambda s, right: torch.where(right < 2.0**-12, 0.0, right),
    ),
    CrossEntropy(
        "uniform_share_not_in_the_true_class",
        "The gradient of the true class lacks the term ε/C.",
        step="unscaled",
        wrong=lambda s, right: where_true(s.rows, right + (s.weight * s.uniform * (s.wq != 0)), right),
    ),
    CrossEntropy(
        "targets_taken_to_sum_to_one",
        "The gradient is right only for target probabilities that add up to one.",
        step="softmax",
        wrong=lambda s, right: s.probs if s.rows.index is None and s.rows.weight is None else right,
    ),
    CrossEntropy(
        "gradient_stored_before_it_is_scaled",
        "The gradient is rounded to the logits' dtype before it is multiplied by the scale of upstream and mean.",
        HALVES,
        step="unscaled",
        wrong=lambda s, right: s.stored(right),
    ),
    CrossEntropy(
        "scale_stored",
        "The upstream gradient divided by the denominator is rounded to the logits' dtype.",
        HALVES,
        step="scale",
        wrong=lambda s, right: s.stored(right),
    ),
    CrossEntropy(
        "subnormal_gradients_flushed",
        "Gradients below the smallest normal number are 0.",
        ("float16",),
        step="gradient",
        wrong=lambda s, right: torch.where(right.abs() < 2.0**-14, 0.0, right),
    ),
    CrossEntropy(
        "gradient_divided_by_the_count",
        "The gradient of the mean is divided by the number of kept rows, not by their weight.",
        step="scale",
        wrong=lambda s, right: right * s.denominator / s.count if s.rows.reduction == "mean" else right,
    ),
    CrossEntropy(
        "upstream_of_float16",
        "The upstream gradient, divided by the denominator, is rounded to float16.",
        WIDE,
        step="scale",
        wrong=lambda s, right: half(right),
    ),
)
