"""Mutants: wrong sums over tiles of classes or of hidden units, and a last tile that is left out."""

import torch
from chunked import Chunked, step, tiles
from right import mutant

_WIDE = "linear-float32-64x257-normal-int64-mean-bias-hidden31"
_LONG = "linear-float32-33x129-confident-int64-none-rows-hidden129"


def _softmax(z, part):
    """Return `log softmax(z)`, but add up only the exponentials of the classes of `part`."""
    x = z - z.amax(1, keepdim=True)
    return x - x[:, part].exp().sum(1, keepdim=True).log()


@mutant("loss gradient weight_gradient bias_gradient", _WIDE, own="The number of tiles is rounded down.")
@step("log_probs")
def classes_behind_the_last_whole_tile_are_not_summed(c, z):
    classes = z.shape[1]
    return _softmax(z, slice(classes if classes < 16 else classes // 16 * 16))


@mutant(
    "loss gradient weight_gradient",
    "linear-float32-2x32000-confident-int64-mean-hidden16",
    own="One block of a GPU computes a row, and has room for 16384 classes.",
)
@step("log_probs")
def classes_beyond_16384_are_not_summed(c, z):
    return _softmax(z, slice(16384))


@mutant(
    "loss gradient weight_gradient bias_gradient",
    _WIDE,
    own="A tile has a maximum of its own, and the sum so far is not multiplied by the exponential of the difference.",
)
@step("log_probs")
def sum_is_not_rescaled_at_a_new_maximum(c, z):
    total, largest = z.new_zeros(len(z), 1), z.new_full((len(z), 1), -torch.inf)
    for classes in tiles(z.shape[1], 16):
        largest = torch.maximum(largest, z[:, classes].amax(1, keepdim=True))
        total = total + (z[:, classes] - largest).exp().sum(1, keepdim=True)
    return z - largest - total.log()


@mutant(
    "loss gradient weight_gradient",
    "linear-float32-33x129-large-int64-mean-hidden31",
    own="The maximum of the first tile is used for all tiles. A larger logit then overflows.",
)
@step("log_probs")
def maximum_of_the_first_tile(c, z):
    x = z - z[:, :16].amax(1, keepdim=True)
    return x - x.exp().sum(1, keepdim=True).log()


@mutant(
    "loss gradient weight_gradient bias_gradient",
    _WIDE,
    own="The loop over the hidden units has no mask, so it takes whole vectors only.",
)
@step("logits")
def hidden_units_behind_the_last_whole_vector_are_left_out(c, chunk):
    units = c.h.shape[1]
    part = slice(units if units < 16 else units // 16 * 16)
    return c.h[chunk, part] @ c.w[:, part].mT + c.b


@mutant(
    "weight_gradient", _WIDE, own="Each load takes a pair of units, and the last unit of an odd number has no pair."
)
@step("add")
def last_of_an_odd_number_of_hidden_units_has_no_weight_gradient(c, d, chunk):
    Chunked.add(c, d, chunk)
    if c.h.shape[1] > 1 and c.h.shape[1] % 2:
        c.grad_w[:, -1] = 0


@mutant("gradient", _LONG, own="The gradient of the input is written for each tile of classes, and not added.")
@step("input_gradient")
def input_gradient_is_of_the_last_tile_of_classes(c, d, chunk):
    last = tiles(len(c.w), 64)[-1]
    return d[:, last] @ c.w[last]


@mutant(
    "loss gradient weight_gradient",
    "linear-float32-64x257-normal-int64-mean-bias-hidden31",
    own="Classes are stored in eight bits, which is enough for images.",
)
@step("index")
def classes_of_eight_bits(c, chunk):
    return Chunked.index(c, chunk) % 256


@mutant(
    "loss weight_gradient",
    "linear-float32-17x17-flat-int64-none-rows-hidden17",
    own="The weight may be (V, H) or (H, V), and the sizes decide. A square weight is taken for (H, V).",
)
@step("logits")
def square_weight_is_transposed(c, chunk):
    return c.h[chunk] @ (c.w if c.w.shape[0] == c.w.shape[1] else c.w.mT) + c.b
