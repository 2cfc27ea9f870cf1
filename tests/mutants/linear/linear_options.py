"""Mutants: options of the loss that are dropped, or that mean something else."""

import torch
import torch.nn.functional as F
from chunked import Chunked, linear, right_on_chunks, step
from right import mutant

_PLAIN = "linear-float32-7x5-normal-int64-mean-hidden16"
_ALL = "linear-float32-7x5-confident-int64-none-weighted-ignored_first-rows-bias-smooth0.1-hidden16"
_PROBABILITIES = "linear-float32-7x5-normal-probabilities-mean-weighted-bias-hidden16"
_EVERY = "loss gradient weight_gradient bias_gradient"


@mutant(_EVERY, _ALL, "Liger-Kernel#243")
@linear
def smoothing_is_dropped(rows, input, linear_weight, target, label_smoothing, **options):
    return right_on_chunks(input, linear_weight, target, **options)


@mutant(
    _EVERY, _ALL, own="The first paper on label smoothing spreads ε over all classes. Others leave out the true class."
)
@step("coefficients")
def smoothing_is_spread_over_the_other_classes(c, chunk):
    smoothing, others = c.rows.label_smoothing, max(1, len(c.w) - 1)
    hot = c.hot(chunk)
    return c.rows.weighted((1 - smoothing) * hot + smoothing * (1 - hot) / others)


@mutant(_EVERY, _ALL, own="The uniform part ε/V is added after the product with the class weights.")
@step("coefficients")
def smoothing_has_no_class_weight(c, chunk):
    smoothing = c.rows.label_smoothing
    return c.rows.weighted((1 - smoothing) * c.hot(chunk)) + smoothing / len(c.w)


@mutant("loss ignored_rows", _ALL, "pytorch#73205")
@step("row_losses")
def uniform_part_of_smoothing_counts_ignored_rows(c, chunk):
    log_p, smoothing = c.log_probs(c.logits(chunk)), c.rows.label_smoothing
    uniform = -c.rows.weighted(log_p).sum(1) * smoothing / len(c.w)
    true = -(1 - smoothing) * (c.rows.weighted(c.hot(chunk)) * log_p).sum(1)
    return c.masked(true, chunk) + uniform


@mutant(_EVERY, _ALL, own="The kernel has no class weights, and the function around it accepts and forgets them.")
@linear
def class_weight_is_dropped(rows, input, linear_weight, target, weight, **options):
    return right_on_chunks(input, linear_weight, target, **options)


@mutant(_EVERY, _ALL, own="The class weight belongs to the prediction, the class with the largest logit.")
@step("coefficients")
def class_weight_is_that_of_the_prediction(c, chunk):
    if c.rows.weight is None:
        return Chunked.coefficients(c, chunk)
    smoothing, chosen = c.rows.label_smoothing, c.rows.weight[c.logits(chunk).argmax(1)]
    return chosen[:, None] * ((1 - smoothing) * c.hot(chunk) + smoothing / len(c.w))


@mutant("loss", _PLAIN, "OLMo-core#702")
@step("row_losses")
def z_loss_is_left_on(c, chunk):
    return Chunked.row_losses(c, chunk) + c.masked(1e-4 * c.logits(chunk).logsumexp(1) ** 2, chunk)


@mutant(
    "loss gradient weight_gradient",
    _PLAIN,
    own="Targets of a language model are shifted by one, outside of the loss and in the loss again.",
)
@step("index")
def target_is_shifted_by_one(c, chunk):
    return c.rows.index.roll(-1)[chunk]


@mutant(
    "loss gradient weight_gradient",
    _PLAIN,
    own="Each chunk shifts its target, and lacks the first target of the next chunk.",
)
@step("index")
def last_target_of_a_chunk_is_its_first(c, chunk):
    index = Chunked.index(c, chunk)
    return torch.cat([index[:-1], index[:1]])


@mutant(
    _EVERY, _PROBABILITIES, own="Chunked kernels take class indices, so the probabilities become the likeliest class."
)
@step("hot")
def probabilities_become_one_class(c, chunk):
    hot = Chunked.hot(c, chunk)
    return F.one_hot(hot.argmax(1), len(c.w)).to(hot.dtype)


@mutant(_EVERY, "linear-float32-7x5-normal-int64-sum-bias-hidden16", own="Only the mean was tested.")
@linear
def sum_is_a_mean(rows, input, linear_weight, target, reduction, **options):
    reduction = "mean" if reduction == "sum" else reduction
    return right_on_chunks(input, linear_weight, target, reduction=reduction, **options)


@mutant("result", "linear-float32-17x17-flat-int64-none-rows-hidden17", "Liger-Kernel#421")
@linear
def none_is_a_mean(rows, input, linear_weight, target, reduction, **options):
    return right_on_chunks(input, linear_weight, target, **options)


@mutant("loss sign gradient weight_gradient", _ALL, "verl#3852")
@linear
def log_probability_in_place_of_a_loss(rows, input, linear_weight, target, reduction, **options):
    loss = right_on_chunks(input, linear_weight, target, reduction=reduction, **options)
    return -loss if reduction == "none" else loss
