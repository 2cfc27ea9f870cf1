"""One call of a subject: its loss and gradients, and the effects of the call on its arguments."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from crossent.cases.inputs import DENSE, Inputs, bits, class_and_layout
from crossent.cases.operation import CROSS_ENTROPY, GRADIENTS, Operation
from crossent.choices import FEATURE_NAMES
from crossent.subjects.subject import Loss
from crossent.trials.memory import (
    Received,
    describe_attribute_change,
    overwrite,
    poison,
    record_arguments,
    shared,
    written,
)
from crossent.words import as_options

Gradients = tuple[str, ...]  # names of gradients, such as "target_gradient"
S = TypeVar("S")


@dataclass(frozen=True)
class Result:
    """The loss of a call, and its gradients. A gradient that was not computed is None.

    Attributes:
        loss: the loss, detached from the graph.
        gradient: the gradient of `input`, such as the logits of a cross-entropy.
        target_gradient: the gradient of the class probabilities.
        weight_gradient, bias_gradient: the gradients of `linear_weight` and `linear_bias`.
    """

    loss: Tensor
    gradient: Tensor | None = None
    target_gradient: Tensor | None = None
    weight_gradient: Tensor | None = None
    bias_gradient: Tensor | None = None

    def copy(self) -> Result:
        """Return a copy in new memory."""
        return Result(**{name: part.clone() for name, part in self.parts.items()})

    @property
    def digest(self) -> str:
        """A checksum of the dtypes, shapes and bits of the loss and the gradients. All NaN count as equal."""
        bits = 0
        for tensor in self.parts.values():
            bits = checksum(tensor, bits)
        return f"{bits:08x}"

    @property
    def parts(self) -> dict[str, Tensor]:
        """The loss and the computed gradients, by name."""
        named = {name: getattr(self, name) for name in ("loss", *GRADIENTS)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def digest_of(got: Result) -> str:
    """Return the checksum of a result, or "" for a result without data, as on the meta device."""
    try:
        return got.digest
    except RuntimeError:
        return ""


# The words for results in messages.
RESULT_NAMES = {
    "gradient": "gradient of the logits",
    "target_gradient": "gradient of the target probabilities",
    "weight_gradient": "gradient of linear_weight",
    "bias_gradient": "gradient of linear_bias",
    "second": "derivative of the gradient with respect to the logits",
    "upstream_gradient": "derivative of the gradient with respect to the upstream gradient",
    "tangent": "tangent of the loss",
}
# The short names of some calls, and the words for these calls in messages.
_CALLS = {
    "reversed along": "with rows reversed along",
    "of a Parameter": "with a Parameter as logits",
    "with a .grad": "with logits that have a .grad",
    "of a lazily negated view": "with a lazily negated view as logits",
}


def in_words(of: str, operation: Operation = CROSS_ENTROPY) -> str:
    """Return the words with which a message names a result.

    `of` is the name of the result. The name of a call may follow.

    >>> in_words("gradient reversed along dimension 2")
    'gradient of the logits, with rows reversed along dimension 2'
    """
    name, _, way = of.partition(" ")
    words = RESULT_NAMES.get(name, name)
    for short, full in _CALLS.items():
        way = way.replace(short, full)
    way = re.sub("^of (.+) alone$", r"with requires_grad only for \1", way)
    return (f"{words}, {way}" if way else words).replace(CROSS_ENTROPY.word("input"), operation.word("input"))


def dtype_and_shape(dtype: torch.dtype, shape: Sequence[int]) -> str:
    """Return a phrase such as "float32 with shape (3, 5)"."""
    return f"{str(dtype).removeprefix('torch.')} with shape {tuple(shape)}"


def checksum(tensor: Tensor, before: int = 0) -> int:
    """Return the CRC-32 of the dtype, shape and bits of a tensor. All NaN count as equal.

    `before` is the checksum of previous tensors. With `before`, the result is the checksum of all these tensors.
    """
    so_far = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), before)
    nan = tensor.isnan()
    return zlib.crc32(bits(tensor.where(~nan, torch.nan) if nan.any() else tensor).tobytes(), so_far)


def evaluate(loss: Loss, inputs: Inputs, gradients: Gradients = tuple(GRADIENTS)) -> Result:
    """Return the loss of a subject, and its gradients from a backward pass with the upstream gradient.

    `gradients` has the names of the gradients to compute. Without "gradient", or if the loss has the wrong
    shape, no gradient is computed.

    Raises:
        TypeError: the loss or a gradient is not dense, the loss is complex, or a gradient is missing.
    """
    # Each leaf shares the memory of an input, so `make_call` can detect a write into the leaf.
    return _evaluate(loss, *_requiring(inputs, gradients))


def _requiring(inputs: Inputs, gradients: Gradients) -> tuple[Inputs, dict[str, Tensor]]:
    return inputs.requiring(gradients if "gradient" in gradients else ())


def _evaluate(loss: Loss, given: Inputs, leaves: dict[str, Tensor]) -> Result:
    value = as_loss(loss(given.input, given.target, **given.options))
    word = given.operation.word
    if leaves and not value.requires_grad:
        raise _detached_error(word("input"), "gradient")
    if not leaves or value.shape != given.upstream.shape:  # `misshapen` reports a wrong shape
        return Result(value.detach().resolve_neg())
    made = torch.autograd.grad(value, list(leaves.values()), given.upstream.to(value.dtype), allow_unused=True)
    computed = {}
    for name, gradient in zip(leaves, made, strict=True):
        if gradient is None:
            raise _detached_error(word(GRADIENTS[name]), name)
        if gradient.layout != torch.strided:
            raise TypeError(f"{in_words(name, given.operation)}: got {class_and_layout(gradient)}; expected {DENSE}")
        computed[name] = gradient.resolve_neg()
    return Result(value.detach().resolve_neg(), **computed)


def _detached_error(argument: str, name: str) -> TypeError:
    """Return the error about the missing gradient `name` of an argument."""
    declare = f"; if this is intended, declare it: {as_options(without=[name])}" if name in FEATURE_NAMES else ""
    return TypeError(f"the loss is detached from the {argument}, so there is no gradient{declare}")


def as_loss(value: object) -> Tensor:
    """Return the value if it is a dense tensor of real numbers.

    Raises:
        TypeError: the value is anything else.
    """
    # a subclass of Tensor could return anything from its methods
    if type(value) is not Tensor or value.layout != torch.strided:
        raise TypeError(f"loss: got {class_and_layout(value)}; expected {DENSE}")
    if value.is_complex():
        raise TypeError(f"loss: got {str(value.dtype).removeprefix('torch.')}; expected a dtype of real numbers")
    return value


@dataclass(frozen=True)
class Call:
    """The results of a call, and the effects of the call on its arguments.

    The string of an effect that did not occur is "".

    Attributes:
        given: the inputs after the call.
        written_forward: the name of the first tensor that the forward pass changed.
        attribute_change: a sentence about an argument whose attributes, such as .grad, the call changed.
        shared: a sentence about a result that shares memory with an argument.
    """

    result: Result
    given: Inputs
    written_forward: str
    attribute_change: str
    shared: str


def make_call(loss: Loss, inputs: Inputs, gradients: Gradients) -> Call:
    """Act: make the first call of a case, and return its results and its effects on the arguments."""
    tensors: dict[str, Received] = {}
    before, written_forward = inputs.copy(), ""

    def watched(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        nonlocal written_forward
        tensors.update(record_arguments({"input": input, "target": target, **options}))
        value = loss(input, target, **options)
        written_forward = written(inputs, before)  # here, `evaluate` has not yet run the backward pass
        return value

    result = evaluate(watched, inputs, gradients)
    parts = {in_words(name, inputs.operation): tensor for name, tensor in result.parts.items()}
    return Call(result, inputs, written_forward, describe_attribute_change(tensors), shared(parts, inputs))


def repeat_call(loss: Loss, inputs: Inputs, others: Inputs, gradients: Gradients) -> tuple[Result, Result, Result]:
    """Act: call the subject twice with the same inputs, and once in between with `others`.

    Return the first result, copied before and after the call with `others`, and the second result. All three should be
    equal. If the two copies differ, the call with `others` wrote into the first result.

    The last call gets the same tensor objects as the call with `others`, whose data changed in place in between. If a
    subject cached something by the object or the address of a tensor, the last result is stale.
    """
    first = evaluate(loss, inputs.copy(), gradients)
    kept = first.copy()
    given, leaves = _requiring(others, gradients)
    with suppress(Exception):  # this call only has to change memory
        _evaluate(loss, given, leaves)
    if not overwrite(given, inputs):
        given, leaves = _requiring(inputs, gradients)
    poison(inputs)
    return kept, first.copy(), _evaluate(loss, given, leaves)


def require_gradients(value: object, arguments: tuple[object, ...], gradients: Gradients) -> None:
    """Raise ValueError if a gradient in the value of an act is missing, or has a wrong shape or dtype.

    An isolated process could leave out a wrong gradient. `gradients` has the names of the required gradients.
    Each :class:`Result` in `value` must fit one of the :class:`Inputs` in `arguments`, the arguments of the act.

    Raises:
        ValueError: a gradient is missing, or has another shape or dtype than its argument.
    """
    given = _each(Inputs, arguments)
    for result in _each(Result, value):
        wrong = [_wrong_gradient(result, inputs, gradients) for inputs in given]
        if wrong and all(wrong):
            part, leaf = result.parts.get(wrong[0]), given[0].leaves[wrong[0]]
            made = "None" if part is None else dtype_and_shape(part.dtype, part.shape)
            expected = dtype_and_shape(leaf.dtype, leaf.shape)
            raise ValueError(f"{in_words(wrong[0], given[0].operation)}: got {made}; expected {expected}")


def _each(kind: type[S], value: object) -> list[S]:
    """Return the objects of a class in a value, in nested tuples and lists, and in the result of a :class:`Call`."""
    if isinstance(value, kind):
        return [value]
    if isinstance(value, Call):
        return _each(kind, value.result)
    return [one for part in value for one in _each(kind, part)] if isinstance(value, (tuple, list)) else []


def _wrong_gradient(result: Result, inputs: Inputs, gradients: Gradients) -> str:
    """Return the name of the first gradient that is missing or has a wrong shape or dtype, or ""."""
    # here, `evaluate` computes no gradients; `misshapen` reports a wrong shape
    if result.loss.shape != inputs.upstream.shape or "gradient" not in gradients:
        return ""
    for name, leaf in inputs.leaves.items():
        part = result.parts.get(name)
        if name in gradients and (part is None or (part.shape, part.dtype) != (leaf.shape, leaf.dtype)):
            return name
    return ""
