"""Test the cases and the bad inputs of a linear cross-entropy."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.storages import in_one_storage
from support.waits import computes

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.ids import BAD_INPUT_OF, case_of
from crossent.cases.inputs import Inputs
from crossent.cases.linear.bad_inputs import LINEAR_BAD_INPUTS
from crossent.cases.linear.case import LinearCase
from crossent.cases.linear.edges import linear_edges
from crossent.cases.linear.values import LINEAR_VALUES
from crossent.cases.operation import LINEAR_CROSS_ENTROPY

EDGES = tuple(linear_edges())
# torch.nn.functional.cross_entropy accepts these values, although its documentation forbids them.
ACCEPTED_BY_TORCH = {f"linear_label_smoothing_{what}" for what in ("negative", "negative_by_little", "nan")}
ACCEPTED_BY_TORCH.add("linear_label_smoothing_negative_with_probabilities")


def composed(inputs: Inputs) -> torch.Tensor:
    options = dict(inputs.options)
    logits = F.linear(inputs.input, options.pop("linear_weight"), options.pop("linear_bias", None))
    return F.cross_entropy(logits, inputs.target, **options)


def logits_of(inputs: Inputs) -> torch.Tensor:
    weight, bias = (inputs.options.get(name) for name in ("linear_weight", "linear_bias"))
    return F.linear(inputs.input.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("case", EDGES, ids=lambda case: case.id)
def test_an_edge_is_rebuilt_from_its_id_with_the_same_bits_and_the_right_shapes(case):
    assert case.invalid is None
    assert case_of(case.id) == case
    one, two = case.build(), case_of(case.id).build()
    assert one.digest == two.digest == one.copy().digest
    rows, classes = case.sizes
    assert one.operation is LINEAR_CROSS_ENTROPY
    assert one.input.shape == (rows, case.hidden)
    assert one.options["linear_weight"].shape == (classes, case.hidden)
    assert one.classes == classes
    assert ("linear_bias" in one.options) == (case.bias != "no_bias")
    if computes(case.dtype):
        assert composed(one).shape == one.upstream.shape
    assert all(part.dtype == DTYPES[case.dtype] for part in one.leaves.values())


def test_no_two_edges_have_the_same_inputs():
    digests = [case.build().digest for case in EDGES]
    assert len(set(digests)) == len(digests)


def test_each_choice_builds_and_no_word_is_on_two_axes():
    words = [word for axis in LinearCase.axes.values() for word in axis]
    assert len(set(words)) == len(words)
    assert not any(word.startswith(("linear-", "hidden", "seed", "smooth")) for word in words)
    base = LinearCase("float32", (160, 5), reduction="none", ignored="ignored", upstream="rows", weight="weighted")
    for axis, axis_words in LinearCase.axes.items():
        built = set()
        for word in axis_words:
            changes = {axis: word, **({"upstream": "one"} if axis == "reduction" else {})}
            changes |= {"reduction": "sum"} if word == "scalar" else {}
            changes |= {"ignored": "kept"} if word in ("probabilities", "hard") else {}
            changes |= {"weight_layout": "weight_contiguous"} if word == "unweighted" else {}
            case = replace(base, **changes)
            assert case.invalid is None, case.id
            assert LinearCase.of(case.id) == case
            inputs = case.build()
            tensors = (
                inputs.input,
                inputs.target,
                inputs.upstream,
                *map(inputs.options.get, ("weight", "linear_weight")),
            )
            offsets = tuple(tensor.storage_offset() for tensor in tensors if tensor is not None)
            built.add((inputs.digest, offsets))
        assert len(built) == len(axis_words) - (axis == "weight_layout"), axis  # window and offset start at 1


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("linear-float32-7-normal-int64-mean-hidden16", "sizes must be the numbers of rows and classes, such as 7x5"),
        ("linear-float32-7x5-normal-int64-mean-hidden0", "hidden must be 1 or more"),
        (
            "linear-float32-8191x8193-normal-int64-mean-hidden4097",
            "input and linear_weight together must have at most 67,108,864 numbers",
        ),
    ],
)
def test_an_id_with_impossible_sizes_is_refused_with_the_reason(id, reason):
    with pytest.raises(ValueError, match=f"'{id}', which is not the id of a case: {reason}"):
        LinearCase.of(id)


def test_each_dtype_has_the_same_numbers():
    for values in LINEAR_VALUES:
        cases = (LinearCase(dtype, (17, 5), values, bias="bias") for dtype in ("float64", "bfloat16"))
        wide, narrow = (case.build() for case in cases)
        for name, tensor in wide.leaves.items():
            assert tensor.bfloat16().equal(narrow.leaves[name]), values


def test_another_seed_gives_other_numbers():
    one, two = (LinearCase("float32", seed=seed, bias="bias").build() for seed in (0, 1))
    assert all(not tensor.equal(two.leaves[name]) for name, tensor in one.leaves.items())


def test_a_tied_weight_and_the_hidden_states_share_a_storage():
    inputs = LinearCase("float32", linear_layout="linear_tied").build()
    assert in_one_storage(inputs), "the case has two storages"
    plain = LinearCase("float32").build()
    assert plain.input.equal(inputs.input)
    assert plain.options["linear_weight"].equal(inputs.options["linear_weight"])


def test_a_copy_of_a_tied_weight_and_hidden_states_shares_a_storage_too():
    inputs = LinearCase("float32", linear_layout="linear_tied").build()
    copy = inputs.copy()
    assert in_one_storage(copy), "the copy has two storages"
    assert copy.digest == inputs.digest
    copy.input.zero_()
    assert copy.digest != inputs.digest, "the copy has the memory of the inputs"


def test_tensors_without_memory_do_not_share_a_storage():
    inputs = LinearCase("float32", (0, 3), linear_layout="linear_window").build()
    assert inputs.copy().digest == inputs.digest


def test_the_first_chunk_is_ignored_and_other_rows_are_kept():
    target = LinearCase("float32", (257, 5), ignored="ignored_first_chunk").build().target
    assert (target[:128] == -100).all()
    assert (target[128:] >= 0).all()


def test_the_kinds_of_values_are_what_their_names_say():
    def built(values, **more):
        return LinearCase("float64", (64, 50), values, hidden=32, **more).build()

    assert built("flat").options["linear_weight"].unique(dim=0).shape[0] == 1
    confident = built("confident")
    assert (logits_of(confident).argmax(1) == confident.target).float().mean() > 0.9
    assert logits_of(built("tiny")).abs().max() < 0.01
    assert logits_of(built("common_offset")).min() > 50
    assert min(part.min() for part in built("positive").leaves.values()) >= 0
    cancelling = built("cancelling")
    terms = cancelling.input.abs() @ cancelling.options["linear_weight"].abs().T
    assert (terms / logits_of(cancelling).abs()).median() > 50
    integers = LinearCase("bfloat16", (64, 50), "integers").build()
    assert F.linear(integers.input, integers.options["linear_weight"]).double().equal(logits_of(integers))
    assert logits_of(built("normal", bias="bias_cancelling"))[0].abs().max() <= 1 / 32
    assert logits_of(built("large")).std() > 30


@pytest.mark.parametrize(
    "id",
    [
        "linear-float32-7x5-normal-int64-mean",  # no hidden size
        "linear-float32-7x5-normal-int64-mean-hidden0",
        "linear-float32-7x5x3-normal-int64-mean-hidden16",
        "linear-float32-7x5-near_ties-int64-mean-hidden16",
        "linear-float32-7x5-normal-uint8-mean-hidden16",
        "linear-float32-7x5-normal-int64-mean-hidden16-tiled2",
        "linear-float32-7x5-normal-int64-mean-hidden99999999",
        "linear-float32-99999x99999-normal-int64-mean-hidden16",
        "float32-7x5-normal-int64-mean-hidden16",
    ],
)
def test_other_ids_are_refused_in_one_line(id):
    with pytest.raises(ValueError, match="which is not the id of a case") as error:
        case_of(id)
    assert "\n" not in str(error.value)


def test_a_linear_case_is_not_the_case_of_its_logits():
    assert LinearCase("float32") != Case("float32")
    assert len({LinearCase("float32"), Case("float32")}) == 2


def test_the_composition_refuses_the_bad_inputs_and_accepts_the_right_arguments():
    accepted = set()
    for bad in LINEAR_BAD_INPUTS:
        assert bad.operation is LINEAR_CROSS_ENTROPY
        assert BAD_INPUT_OF[bad.id] is bad
        assert composed(Inputs(**_split(bad.right()))).dim() == 0
        try:
            composed(bad.build())
        except bad.raises:
            continue
        accepted.add(bad.id)
    assert accepted <= ACCEPTED_BY_TORCH
    assert len({bad.id for bad in LINEAR_BAD_INPUTS}) == len(LINEAR_BAD_INPUTS) > 60


def _split(right):
    return {"input": right.pop("input"), "target": right.pop("target"), "options": right, "upstream": torch.ones(())}


def test_the_random_numbers_do_not_depend_on_the_order_of_sums_in_numpy():
    """The bias, which cancels the logits of the first row, is a multiple of 1/16, whatever the order of additions."""
    for rows, hidden in itertools.product((1, 7), (1, 31, 257)):
        bias = LinearCase("float64", (rows, 5), bias="bias_cancelling", hidden=hidden).build().options["linear_bias"]
        assert np.array_equal(np.rint(16 * bias.numpy()), 16 * bias.numpy())
