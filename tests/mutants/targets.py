"""Mutants: wrong targets, wrong ignored rows, and errors that are not raised."""

import torch
import torch.nn.functional as F
from right import denominator, form, masked, mutant, reduced, row_losses

from crossent import formula


def _classes(input):
    return input.shape[min(1, input.dim() - 1)]


@mutant("loss gradient", "float32-7x5-normal-int64-mean-ignored_default", "pytorch#108148", "FlagGems#73")
def negative_ignore_index_is_none(input, target, ignore_index=-100, **options):
    if ignore_index < 0 and not target.is_floating_point():
        return formula(input, target.clamp(min=0), ignore_index=2**40, **options)
    return formula(input, target, ignore_index=ignore_index, **options)


@mutant(
    "loss gradient",
    "float32-7x5-normal-int64-mean-ignored_class",
    own="An ignore_index that is a class is thought impossible.",
)
def class_is_never_ignored(input, target, ignore_index=-100, **options):
    own = ignore_index if ignore_index < 0 or ignore_index >= _classes(input) else -100
    return formula(input, target, ignore_index=own, **options)


@mutant(
    "loss gradient",
    "float32-7x5-normal-int64-mean-ignored_class",
    own="An ignored class is left out of the softmax too; only its rows should be left out of the loss.",
)
def ignored_class_is_masked(input, target, ignore_index=-100, **options):
    at = (torch.arange(_classes(input)) == ignore_index).view([-1] + [1] * max(0, input.dim() - 2))
    return formula(input.masked_fill(at, -torch.inf), target, ignore_index=ignore_index, **options)


@mutant("errors", "class_beyond_the_last", "pytorch#108148")
def no_class_has_a_loss_of_zero(input, target, ignore_index=-100, **options):
    outside = ((target < 0) | (target >= _classes(input))) & (not target.is_floating_point())
    return formula(input, target.where(~outside, ignore_index), ignore_index=ignore_index, **options)


@mutant("call", "float32-7x5-normal-int64-mean-ignored_default", "pytorch#95794")
def read_before_it_is_masked(input, target, **options):
    if not target.is_floating_point():
        axis = min(1, input.dim() - 1)
        F.log_softmax(input, axis).gather(axis, target.long().unsqueeze(axis))
    return formula(input, target, **options)


@mutant("call", "float32-7x5-normal-int64-none-ignored-rows", "pytorch#15508")
def range_checked_before_it_is_ignored(input, target, reduction="mean", **options):
    if reduction == "none" and not target.is_floating_point() and (target >= _classes(input)).any():
        raise IndexError("Target out of bounds")
    return formula(input, target, reduction=reduction, **options)


@mutant("call", "float32-7x5-normal-int64-mean-ignored", "FlagGems#73")
def range_always_checked_before_it_is_ignored(input, target, **options):
    if not target.is_floating_point() and (target >= _classes(input)).any():
        raise IndexError("Target out of bounds")
    return formula(input, target, **options)


@mutant("errors", "class_negative", "pytorch#15508")
def negative_is_ignored(input, target, ignore_index=-100, **options):
    negative = (target < 0) & (not target.is_floating_point())
    return formula(input, target.where(~negative, ignore_index), ignore_index=ignore_index, **options)


@mutant("errors", "class_negative", "pytorch#135546")
def negative_counts_from_the_end(input, target, ignore_index=-100, **options):
    if target.is_floating_point() or not _classes(input):
        return formula(input, target, ignore_index=ignore_index, **options)
    wrapped = target.where((target >= 0) | (target == ignore_index), target % _classes(input))
    return formula(input, wrapped, ignore_index=ignore_index, **options)


@mutant("loss", "float32-600x157-normal-uint8-none-rows", "pytorch#59765")
def minus_100_in_uint8(input, target, ignore_index=-100, **options):
    if target.is_floating_point():
        return formula(input, target, ignore_index=ignore_index, **options)
    if target.dtype == torch.uint8:
        ignore_index %= 256
    return formula(input, target.long(), ignore_index=ignore_index, **options)


@mutant("call", "float32-7x5-normal-uint8-none-rows", "pytorch#59765")
def refuses_uint8(input, target, **options):
    if target.dtype == torch.uint8:
        raise RuntimeError("expected Long")
    return formula(input, target, **options)


@mutant("errors", "target_int32", "pytorch#59765")
def any_integer_is_an_index(input, target, **options):
    return formula(input, target if target.is_floating_point() else target.long(), **options)


@mutant("call", "float32-0x5-normal-int64-mean-weighted", "pytorch#73165")
def divides_by_the_batch(input, target, **options):
    1 / len(input)
    return formula(input, target, **options)


@mutant("result", "float32-0x5x4-normal-int64-none", "pytorch#73165")
def empty_is_a_number(input, target, **options):
    if input.numel():
        return formula(input, target, **options)
    return input.sum() + (target.sum() if target.is_floating_point() else 0.0)


@mutant("call", "float32-5-normal-int64-mean", "pytorch#155247")
def refuses_one_row(input, target, **options):
    if input.dim() == 1:
        raise IndexError("Dimension out of range")
    return formula(input, target, **options)


@mutant("errors", "target_of_another_size", "pytorch#722", "pytorch#155247", "eshkol#552")
def any_shape_of_the_target(input, target, **options):
    if target.is_floating_point() or input.dim() == 1:
        return formula(input, target, **options)
    rows = torch.Size((input.shape[0], *input.shape[2:]))
    return formula(input, target.reshape(-1)[: rows.numel()].reshape(rows), **options)


@mutant("loss", "float32-7x5-nan_ignored-int64-mean-ignored_default", "pytorch#11551")
@form
def ignored_rows_times_zero(rows):
    losses = row_losses(rows) * (1 if rows.kept is None else rows.kept)
    return reduced(rows, losses, denominator(rows))


@mutant("ignored_rows", "float32-7x5-normal-int64-none-ignored_default-rows", "pytorch#11551")
@form
def ignored_rows_have_a_loss(rows):
    losses = masked(rows, row_losses(rows))
    if rows.kept is None or rows.reduction != "none":
        return rows.reduce(losses)
    return torch.where(rows.kept, losses, rows.logits.detach().logsumexp(-1)).to(rows.dtype)


@mutant("loss gradient", "float32-5x5-normal-int64-none-rows", "eshkol#552")
def indices_read_as_a_dense_row(input, target, ignore_index=-100, **options):
    if input.dim() == 2 and target.shape == (input.shape[1],) and target.shape == (input.shape[0],):
        target = F.normalize(target.clamp(min=0).to(input.dtype), p=1, dim=0).expand(input.shape)
        ignore_index = -100
    return formula(input, target, ignore_index=ignore_index, **options)


@mutant(
    "loss gradient",
    "float32-7x5-normal-unnormalised-none-stride0",
    own="Probabilities are normalised to a sum of 1; torch takes any numbers.",
)
def probabilities_are_normalised(input, target, **options):
    if target.is_floating_point() and target.numel():
        target = target / target.sum(min(1, target.dim() - 1), keepdim=True)
    return formula(input, target, **options)


@mutant(
    "loss gradient",
    "float32-5-normal-probabilities-sum",
    own="Probabilities are replaced by the most probable class, as for an accuracy.",
)
def probabilities_become_a_class(input, target, **options):
    if target.is_floating_point() and target.numel():
        axis = min(1, input.dim() - 1)
        classes = torch.arange(_classes(input)).view([-1] + [1] * max(0, input.dim() - 2))
        hard = (classes == target.detach().argmax(axis, keepdim=True)).to(target.dtype)
        target = hard + (target - target.detach())
    return formula(input, target, **options)


@mutant(
    "loss gradient",
    "ignored_minus_two/float32-7x5-normal-int64-mean-ignored_minus_two",
    own="-1 and -100 are the values that people ignore; another negative index is counted from the end.",
)
def other_negative_indices_count_from_the_end(input, target, ignore_index=-100, **options):
    if not target.is_floating_point() and ignore_index not in (-1, -100) and -_classes(input) <= ignore_index < 0:
        target, ignore_index = torch.where(target == ignore_index, target + _classes(input), target), -100
    return formula(input, target, ignore_index=ignore_index, **options)


@mutant(
    "loss gradient",
    "target/float32-7x5-normal-int64-mean-target_expanded",
    own="A batch in which all targets are equal is taken for padding.",
)
def batch_of_one_class_is_padding(input, target, ignore_index=-100, **options):
    alike = not target.is_floating_point() and target.numel() > 1 and bool((target == target.flatten()[0]).all())
    loss = formula(input, target, ignore_index=ignore_index, **options)
    return loss * 0 if alike and int(target.flatten()[0]) != ignore_index else loss


@mutant(
    "alone no_grad",
    "float32-7x5-normal-hard-mean-weighted",
    own="A one-hot target that needs no gradient takes the faster path for indices, whose mean divides by the weights.",
)
def one_hot_becomes_an_index(input, target, **options):
    axis = min(1, input.dim() - 1)
    plain = target.is_floating_point() and not target.requires_grad and target.numel() > 0
    if plain and ((target == 0) | (target == 1)).all() and (target.sum(axis) == 1).all():
        target = target.argmax(axis)
    return formula(input, target, **options)
