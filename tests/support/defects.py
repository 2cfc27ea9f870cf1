"""Subtle defects: a cross-entropy in steps, with its gradient by hand, and what can be wrong with one step of it.

Each defect is one line away from the right computation, and hides on friendly inputs: it needs a large gap, a sure row,
an odd width, many rows, smoothing, or rounding that is taken seriously. What rounding allows is no defect: another
order of summation, `log(1 + s)` for `log1p(s)`, `p` as a quotient or an exponential, any shift that does not overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from crossent.forms.rows import lay_out

HALVES = ("float16", "bfloat16")
WIDE = ("float32", "float64")
EVERY = (*HALVES, *WIDE)


@dataclass(frozen=True)
class CrossEntropy:
    """A cross-entropy with the signature of `F.cross_entropy`: the right one, or one with a wrong step.

    Attributes:
        name: of the defect.
        sentence: what is wrong.
        dtypes: of the logits, in which it is wrong: to round to float16 is no defect in what is float16 anyway.
        step: the step that is wrong, as :class:`_InSteps` names it.
        wrong: from all steps so far and the right value to the wrong one.
    """

    name: str
    sentence: str
    dtypes: tuple[str, ...] = EVERY
    step: str = ""
    wrong: Callable[[Any, Any], Any] = lambda steps, right: right

    def __call__(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        rows = lay_out(input, target, weight, ignore_index, reduction, 0.0)  # smoothed below, step by step
        steps = SimpleNamespace(rows=rows, label_smoothing=label_smoothing, stored=lambda v: through(rows.dtype, v))
        return _InSteps.apply(rows.logits, steps, self)

    def __str__(self) -> str:
        return self.name


class _InSteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, steps: Any, defect: CrossEntropy) -> Tensor:
        def step(name: str, right: Any) -> Any:
            setattr(steps, name, defect.wrong(steps, right) if name == defect.step else right)
            return getattr(steps, name)

        rows = steps.rows
        x = step("logits", logits)
        largest = step("largest", x.amax(-1, keepdim=True))
        shifted = step("shifted", x - largest)
        exps = step("exps", shifted.exp())
        total = step("total", exps.sum(-1, keepdim=True))
        log_sum = step("log_sum", total.log())
        log_probs = step("log_probs", shifted - log_sum)

        smoothing = step("smoothing", steps.label_smoothing)
        uniform = step("uniform", torch.tensor(smoothing / x.shape[-1], dtype=x.dtype))
        q = step("target", (1 - smoothing) * rows.one_hot() + uniform)
        weight = step("weight", torch.ones_like(x[..., :1]) if rows.weight is None else rows.weight)
        wq = weight * q if rows.kept is None else torch.where(rows.kept.unsqueeze(-1), weight * q, 0.0)
        wq = step("wq", wq)

        losses = step("losses", -torch.where(wq == 0, 0.0, wq * log_probs).sum(-1))  # 0 · -inf is no term
        kept = torch.ones_like(losses) if rows.kept is None else rows.kept.to(x.dtype)
        counted = kept if rows.index is None else torch.where(rows.kept, rows.pick(weight.expand(x.shape)), 0.0)
        count = step("count", kept.sum())
        denominator = step("denominator", counted.sum() if rows.reduction == "mean" else torch.ones_like(count))
        summed = step("summed", losses if rows.reduction == "none" else losses.sum())
        ctx.step, ctx.steps = step, steps
        return step("loss", summed / denominator).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        s, step = ctx.steps, ctx.step
        scale = step("scale", upstream.to(s.total.dtype).unsqueeze(-1) / s.denominator)
        probs = step("probs", s.exps / s.total)
        softmax = step("softmax", probs * s.wq.sum(-1, keepdim=True))
        unscaled = step("unscaled", softmax - s.wq)
        return step("gradient", unscaled * scale), None, None


def through(dtype: torch.dtype, values: Tensor) -> Tensor:
    """The values rounded to a dtype, and held in their own."""
    return values.to(dtype).to(values.dtype)


def half(values: Tensor) -> Tensor:
    return through(torch.float16, values)


def bfloat(values: Tensor) -> Tensor:
    return through(torch.bfloat16, values)


def single(values: Tensor) -> Tensor:
    return through(torch.float32, values)


def running(dtype: torch.dtype, terms: Tensor) -> Tensor:
    """The sum over the last axis, term after term, in a dtype."""
    total = torch.zeros_like(terms[..., :1], dtype=dtype)
    for term in terms.split(1, -1):
        total = total + term.to(dtype)
    return total.to(terms.dtype)


def cut(values: Tensor, bits: int) -> Tensor:
    """float32 values without their last bits."""
    return (values.float().view(torch.int32) & -(1 << bits)).view(torch.float32).to(values.dtype)


def where_true(rows: Any, values: Tensor, others: Tensor) -> Tensor:
    """`values` at the true class of each row, and `others` elsewhere."""
    hot = torch.arange(others.shape[-1]) == rows.index.unsqueeze(-1) if rows.index is not None else torch.tensor(False)
    return torch.where(hot, values, others)


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
        "Beyond 64 classes the sum goes over full tiles of 64 only.",
        step="total",
        wrong=lambda s, right: s.exps[..., : max(64, right.shape[-1] // 64 * 64)].sum(-1, keepdim=True),
    ),
    CrossEntropy(
        "1e-4_inside_the_logarithm",
        "The logarithm is that of the sum and 1e-4.",
        step="log_sum",
        wrong=lambda s, right: (s.total + 1e-4).log(),
    ),
    CrossEntropy(
        "1e-7_inside_the_logarithm",
        "The logarithm is that of the sum and 1e-7.",
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
        "The logarithm is float32's.",
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
        "The exponential is that of base 2, with 1.4427 for log2 e.",
        step="exps",
        wrong=lambda s, right: torch.exp2(s.shifted * 1.4427),
    ),
    CrossEntropy(
        "log2_e_of_float32",
        "The exponential is that of base 2, with float32's log2 e.",
        ("float64",),
        step="exps",
        wrong=lambda s, right: torch.exp2(s.shifted * 1.4426950216293335),
    ),
    CrossEntropy(
        "exponential_of_20_bits",
        "Exponentials are too large by a factor 1 + 2^-20; exp(0) is 1.",
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
        "The logits keep TF32's ten bits.",
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
        "The logarithm is that of a probability of at least 1e-12.",
        step="log_probs",
        wrong=lambda s, right: right.clamp(min=-27.631021),
    ),
    CrossEntropy(
        "probabilities_stored_and_logged",
        "The softmax is rounded to the logits' dtype, and its logarithm taken afterwards.",
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
    # The target: smoothing, weights, the mean's denominator.
    CrossEntropy(
        "smoothing_of_float32",
        "The smoothing ε is handed on as a float32.",
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
        "The mean divides by the weights' sum and 1e-8.",
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
        "A z-loss of 1e-6 (log Σ exp x)² is left in.",
        step="losses",
        wrong=lambda s, right: right + 1e-6 * (s.largest + s.log_sum).squeeze(-1) ** 2,
    ),
    CrossEntropy(
        "losses_through_float16",
        "The rows' losses pass through float16.",
        ("bfloat16", *WIDE),
        step="losses",
        wrong=lambda s, right: half(right),
    ),
    CrossEntropy(
        "losses_stored_before_their_sum",
        "The rows' losses are rounded to the logits' dtype before they are added.",
        HALVES,
        step="losses",
        wrong=lambda s, right: s.stored(right),
    ),
    CrossEntropy(
        "sum_stored_before_its_mean",
        "The sum of the rows' losses is rounded to the logits' dtype before it is divided.",
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
        "The gradient's softmax is the exponential of log-probabilities in the logits' dtype.",
        HALVES,
        step="probs",
        wrong=lambda s, right: s.stored(s.log_probs).exp(),
    ),
    CrossEntropy(
        "gradient_from_logsumexp",
        "The gradient's softmax is exp(x - logsumexp x), without a shift.",
        step="probs",
        wrong=lambda s, right: (s.logits - (s.largest + s.log_sum)).exp(),
    ),
    CrossEntropy(
        "true_class_rounded_before_the_subtraction",
        "The softmax of the true class is rounded to the logits' dtype before the target is taken off.",
        HALVES,
        step="softmax",
        wrong=lambda s, right: where_true(s.rows, s.stored(right), right),
    ),
    CrossEntropy(
        "softmax_normalised_with_epsilon",
        "The gradient's softmax is divided by its sum and 1e-5.",
        step="probs",
        wrong=lambda s, right: right / (right.sum(-1, keepdim=True) + 1e-5),
    ),
    CrossEntropy(
        "small_probabilities_without_gradient",
        "Probabilities below 2^-12 have no gradient, as where a kernel skips them.",
        step="probs",
        wrong=lambda s, right: torch.where(right < 2.0**-12, 0.0, right),
    ),
    CrossEntropy(
        "uniform_share_not_in_the_true_class",
        "The gradient of the true class forgets the ε/C.",
        step="unscaled",
        wrong=lambda s, right: where_true(s.rows, right + (s.weight * s.uniform * (s.wq != 0)), right),
    ),
    CrossEntropy(
        "targets_taken_to_sum_to_one",
        "The gradient takes target probabilities to add up to one.",
        step="softmax",
        wrong=lambda s, right: s.probs if s.rows.index is None and s.rows.weight is None else right,
    ),
    CrossEntropy(
        "gradient_stored_before_it_is_scaled",
        "The gradient is rounded to the logits' dtype before the upstream gradient and the mean scale it.",
        HALVES,
        step="unscaled",
        wrong=lambda s, right: s.stored(right),
    ),
    CrossEntropy(
        "scale_stored",
        "The upstream gradient divided by the mean's denominator is rounded to the logits' dtype.",
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
