"""Wrong cross-entropies, each one line away from a right one: the grid must find every one of them."""

import pytest
import torch
import torch.nn.functional as F

import crossent
from crossent.findings import SubjectReport
from crossent.grid import grid
from crossent.judge import run_case
from crossent.report import Report
from crossent.rows import lay_out
from crossent.subjects import Subject


def form(body):
    """A form from its body, which takes the laid-out rows."""

    def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        return body(lay_out(input, target, weight, ignore_index, reduction, label_smoothing))

    loss.__name__ = body.__name__
    return loss


def log_probs(x):
    return F.log_softmax(x, -1)


def _reduced(rows, losses, denominator):
    if rows.kept is not None:
        losses = torch.where(rows.kept, losses, 0.0)
    if rows.reduction == "none":
        return losses.to(rows.dtype)
    total = losses.sum()
    return (total / denominator if rows.reduction == "mean" else total).to(rows.dtype)


def _row_losses(rows):
    x = log_probs(rows.logits)
    return -rows.expect(x) if rows.dense else -rows.weigh(rows.pick(x))


@form
def mean_over_all_rows(rows):  # forgets the ignored rows in the denominator
    losses = _row_losses(rows)
    return _reduced(rows, losses, losses.numel())


@form
def mean_over_kept_rows(rows):  # forgets their weights in the denominator
    losses = _row_losses(rows)
    return _reduced(rows, losses, losses.numel() if rows.kept is None else rows.kept.sum())


@form
def mean_of_zero_rows_is_zero(rows):
    losses = _row_losses(rows)
    return _reduced(rows, losses, losses.numel() if rows.kept is None else rows.target_weight.sum().clamp(min=1e-9))


@form
def ignored_rows_keep_their_smoothing(rows):  # pytorch#73205
    x = log_probs(rows.logits)
    if rows.index is None:
        return rows.reduce(-rows.expect(x))
    uniform = rows.weighted(x).mean(-1) * rows.label_smoothing
    hard = (1 - rows.label_smoothing) * rows.target_weight * rows.pick(x)
    losses = -(hard + uniform)
    if rows.reduction == "none":
        return losses.to(rows.dtype)
    return (losses.sum() / (rows.target_weight.sum() if rows.reduction == "mean" else 1)).to(rows.dtype)


@form
def smoothing_spares_the_true_class(rows):  # ε/(C-1) on the others
    x = log_probs(rows.logits)
    if rows.index is None or rows.label_smoothing == 0:
        return rows.reduce(-rows.expect(x))
    others = (rows.weighted(x).sum(-1) - rows.target_weight * rows.pick(x)) / max(x.shape[-1] - 1, 1)
    hard = rows.target_weight * rows.pick(x)
    return rows.reduce(-(1 - rows.label_smoothing) * hard - rows.label_smoothing * others)


@form
def smoothing_is_dropped(rows):
    x = log_probs(rows.logits)
    return rows.reduce(-rows.expect(x) if rows.index is None else -rows.target_weight * rows.pick(x))


@form
def weight_is_dropped(rows):
    x = log_probs(rows.logits)
    return rows.reduce(-(rows.one_hot() * x).sum(-1))


@form
def reduction_is_always_mean(rows):
    losses = _row_losses(rows)
    return _reduced(rows, losses, losses.numel()) if rows.reduction == "none" else losses.mean().to(rows.dtype)


@form
def gradient_without_its_softmax(rows):
    x = rows.logits
    constant = x.detach().logsumexp(-1, keepdim=True)
    return rows.reduce(-rows.expect(x - constant))


@form
def upstream_of_the_first_row_for_all(rows):
    losses = _row_losses(rows)

    class First(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, upstream):
            return (
                upstream.reshape(-1)[:1].expand(upstream.numel()).reshape(upstream.shape)
                if upstream.numel()
                else upstream
            )

    return rows.reduce(First.apply(losses))


@form
def one_class_dropped_from_the_sum(rows):
    x = rows.logits
    short = x[..., :-1] if x.shape[-1] > 1 else x
    return rows.reduce(-rows.expect(x - short.logsumexp(-1, keepdim=True)))


@form
def a_little_inside_the_logarithm(rows):
    x = rows.logits - rows.logits.detach().amax(-1, keepdim=True)
    return rows.reduce(-rows.expect(x - (x.exp().sum(-1, keepdim=True) + 1e-4).log()))


@form
def no_maximum(rows):
    return rows.reduce(-rows.expect(rows.logits - rows.logits.exp().sum(-1, keepdim=True).log()))


@form
def logsumexp_then_subtract(rows):  # loses the loss under a large common offset; pytorch#38839
    return rows.reduce(-rows.expect(rows.logits - rows.logits.logsumexp(-1, keepdim=True)))


@form
def probabilities_clipped(rows):  # tf-keras#242: the loss stops at 16
    return rows.reduce(-rows.expect((rows.logits.softmax(-1) + 1e-7).log()))


def class_axis_last(input, target, **options):
    """Flattens without moving the class axis, as classic user code does."""
    if input.dim() < 3:
        return crossent.formula(input, target, **options)
    classes = input.shape[1]
    dense = target.is_floating_point()
    losses = crossent.formula(
        input.reshape(-1, classes), target.reshape(-1, classes) if dense else target.reshape(-1), **options
    )
    return losses.reshape(target[:, 0].shape if dense else target.shape) if options["reduction"] == "none" else losses


def half_precision_throughout(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Rounds every log-probability to the storage dtype: what a kernel does that accumulates in bfloat16."""
    stored = F.log_softmax(input, min(1, input.dim() - 1))
    if input.dtype == torch.float64:
        stored = stored.float().double()
    return crossent.formula(stored, target, weight, ignore_index, reduction, label_smoothing)


def returns_zeros(input, target, reduction="mean", **options):
    return crossent.formula(input, target, reduction=reduction, **options) * 0


WRONG = (
    mean_over_all_rows,
    mean_over_kept_rows,
    mean_of_zero_rows_is_zero,
    ignored_rows_keep_their_smoothing,
    smoothing_spares_the_true_class,
    smoothing_is_dropped,
    weight_is_dropped,
    reduction_is_always_mean,
    gradient_without_its_softmax,
    upstream_of_the_first_row_for_all,
    one_class_dropped_from_the_sum,
    a_little_inside_the_logarithm,
    no_maximum,
    logsumexp_then_subtract,
    probabilities_clipped,
    class_axis_last,
    half_precision_throughout,
    returns_zeros,
)


def first_finding(loss, dtype="float64"):
    subject = Subject(loss.__name__, loss)
    report = Report({}, [SubjectReport(subject.name)])
    for case in grid([dtype]):
        run_case(case, [subject], report, "cpu")
        if report.findings:
            return report.findings[0]
    return None


@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_the_grid_finds(wrong):
    finding = first_finding(wrong)
    assert finding is not None, f"{wrong.__name__} passed every case"
    assert finding.kind == "wrong", f"broken, not wrong: {finding}"


def test_the_scaffold_of_the_wrong_forms_is_right():
    @form
    def right(rows):
        losses = _row_losses(rows)
        return _reduced(rows, losses, losses.numel() if rows.kept is None else rows.target_weight.sum())

    assert first_finding(right) is None


def test_a_loss_that_raises_is_a_finding_on_its_case():
    def refuses(input, target, **options):
        raise ValueError("not today")

    finding = first_finding(refuses)
    assert finding.kind == "refused"
    assert "ValueError: not today" in finding.message


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_result_of_another_shape_or_dtype_is_a_finding(dtype):
    def always_double(*args, **options):
        return crossent.formula(*args, **options).double()

    def one_row_too_many_dimensions(*args, **options):
        return crossent.formula(*args, **options)[None]

    for wrong in (always_double, one_row_too_many_dimensions):
        assert first_finding(wrong, dtype).check == "result"
