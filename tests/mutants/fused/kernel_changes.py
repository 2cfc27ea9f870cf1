"""Wrong kernels of `fused`: each is the text of crossent/forms/kernel.py with one change.

tests/checks/test_kernel_mutants.py runs these kernels in Triton's interpreter.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """A change of the kernel.

    Attributes:
        name: the name of the mutant.
        old, new: a part of the text, and its replacement.
        checks: the checks that find the mutant on the case, separated by spaces. The check `call` finds an access
            outside of the arguments of the kernel.
        case: the id of a case, or the name of a call of tests/checks/test_kernel_mutants.py.
        at: the number of the occurrence of `old` that changes, from 0; None if `old` occurs once.
    """

    name: str
    old: str
    new: str
    checks: str
    case: str
    at: int | None = None

    def __str__(self) -> str:
        return self.name


PLAIN = "float32-7x5-normal-int64-mean"
WIDE = "float32-3x5000-normal-int64-mean"  # a row has more classes than a program holds at a time
MANY = "float32-300x10-normal-int64-mean-weighted"  # a program has several rows, but not all
SMOOTH = "float64-7x5-normal-int64-mean-smooth0.1"
DENSE = "float32-7x5-normal-probabilities-sum-weighted-smooth0.1"
IGNORED = "float32-7x5-normal-int64-none-weighted-ignored_default-rows"

CHANGES = (
    # The softmax.
    Change("sum_not_rescaled", "s = s * tl.exp(m - shift) + ", "s = s + ", "loss gradient", WIDE),
    Change("maximum_of_the_last_block", "m = larger", "m = tl.max(x, 1)", "loss gradient", WIDE),
    Change("padded_with_zero", 'mask, float("-inf")).to(F)', "mask, 0).to(F)", "loss gradient", PLAIN),
    Change(
        "shifted_by_infinity",
        'tl.where(larger == float("-inf"), 0, larger)',
        "larger",
        "loss gradient",
        "float32-2x8200-inf_tiles-int64-none",
    ),
    Change(
        "softmax_kept_in_half",
        "tl.exp(x) / s[:, None]",
        "(tl.exp(x) / s[:, None]).to(tl.float16).to(F)",
        "gradient",
        PLAIN,
    ),
    # The target and its coefficients.
    Change("logit_of_the_true_class_left_out", "(tl.sum(x_y, 1) - m)", "0", "loss", PLAIN),
    Change("target_only_in_the_first_block", "c == y", "c - start == y", "gradient", WIDE),
    Change("true_class_not_in_the_sum", "v_sum += v_y", "v_sum += 0", "gradient", PLAIN),
    Change("quotient_in_float32", "tl.full([], SMOOTHING, F) / C", "SMOOTHING / C", "loss gradient", SMOOTH),
    Change("smoothed_over_padded_columns", "return tl.where(mask, q, 0)", "return q", "gradient", SMOOTH),
    Change("probabilities_not_scaled_down", "q += hit * tl.load(", "q += tl.load(", "loss gradient", DENSE),
    Change(
        "zero_times_infinity", "if SMOOTHING < 1:", "if True:", "loss", "float32-7x5-inf_on_target-int64-mean-smooth1"
    ),
    Change(
        "weight_of_another_row",
        "tl.load(target_weight + row,",
        "tl.load(target_weight + row // ROWS * ROWS,",
        "loss gradient",
        MANY,
    ),
    Change(
        "weight_of_the_first_class", "tl.load(weight + c, c < C, 0)", "tl.load(weight + 0 * c)", "loss gradient", DENSE
    ),
    # Ignored rows.
    Change("ignored_row_with_a_gradient", "tl.where(counts[:, None], slope, 0)", "slope", "gradient", IGNORED),
    Change(
        "ignored_rows_read",
        "exists if kept is None else tl.load(kept + row, exists, 0) != 0",
        "exists",
        "",
        "nan_ignored",
    ),
    # The upstream gradient and the divisor.
    Change("upstream_applied_twice", "slope = g[:, None] *", "slope = g[:, None] * g[:, None] *", "gradient", PLAIN),
    Change("not_divided", "g /= tl.load(divisor)", "g /= 1", "gradient", PLAIN),
    Change("divided_twice", "g /= tl.load(divisor)", "g /= tl.load(divisor) * tl.load(divisor)", "gradient", PLAIN),
    Change("upstream_of_one_ends_every_launch", "if DONE and ", "if ", "two_backwards", PLAIN),
    # Addresses.
    Change("end_of_the_row_not_masked", "& (c < C)", "& (c < BLOCK)", "call", PLAIN, 0),
    Change(
        "stride_of_the_rows",
        "n * x_steps[0] + d * x_steps[1]",
        "row * C",
        "call",
        "float32-7x5-normal-int64-none-rows-transposed",
    ),
    Change(
        "probabilities_with_the_stride_of_the_logits",
        "n * t_steps[0] + d * t_steps[1]",
        "n * x_steps[0] + d * x_steps[1]",
        "loss gradient",
        "float32-7x5-normal-probabilities-none-rows-transposed",
    ),
    Change(
        "gradient_with_the_stride_of_the_logits",
        "n * g_steps[0] + d * g_steps[1]",
        "n * x_steps[0] + d * x_steps[1]",
        "call",
        "float32-7x5-normal-int64-none-rows-window",
    ),
    Change(
        "inner_dimensions_left_out",
        "n, d = row // D, row % D",
        "n, d = row, row * 0",
        "call",
        "float32-2x5x3x2-normal-int64-mean-class_last",
    ),
    Change("a_row_too_many", "exists = row < N", "exists = row <= N", "call", PLAIN),
    Change("gradient_beyond_the_last_row", "slope, 0), exists[:, None] & (c < C)", "slope, 0), c < C", "call", PLAIN),
    Change("last_rows_left_out", "triton.cdiv(n * d, together)", "max(1, n * d // together)", "loss gradient", MANY),
    Change("weight_taken_for_contiguous", "rows.weight.contiguous()", "rows.weight", "", "strided_weight"),
    Change("row_in_32_bits", "tl.program_id(0).to(tl.int64)", "tl.program_id(0)", "", "far_rows"),
    Change("class_in_32_bits", "[None, :].to(tl.int64)", "[None, :]", "", "far_classes", 0),
)
