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
from crossent.trials.memory import Received, describe_attribute_change, poison, record_arguments, shared, written
from crossent.words import as_options

Gradients = tuple[str, ...]  # names of gradients, such as "target_gradient"
S = TypeVar("S")


@dataclass(frozen=True)
class Result:
    """The loss that a call of the subject returned, and the gradients from the backward pass of this loss.

    Attributes:
        loss: the loss, detached from the graph.
        gradient: the gradient of `input` (the logits of a cross-entropy), or None if it was not computed.
        target_gradient: the gradient of the class probabilities, or None if it was not computed.
        weight_gradient: the gradient of `linear_weight`, or None if it was not computed.
        bias_gradient: the gradient of `linear_bias`, or None if it was not computed.
    """

    loss: Tensor
    gradient: Tensor | None = None
    target_gradient: Tensor | None = None
    weight_gradient: Tensor | None = None
    bias_gradient: Tensor | None = None

    def copy(self) -> Result:
        """Return a copy of the result, in new memory."""
        return Result(**{name: part.clone() for name, part in self.parts.items()})

    @property
    def digest(self) -> str:
        """A checksum of the dtypes, shapes and bits of the result. All NaN count as equal, whatever their bits."""
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
    """Return the checksum of a result, or "" if the result has no data, as on the meta device."""
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
    "of a lazily negated view": "with a lazily negated view as logits",
}


def in_words(of: str, operation: Operation = CROSS_ENTROPY) -> str:
    """Return the words for a result in a message, such as "gradient of the logits" for "gradient".

    `of` is the name of the result. If a check makes several calls, a space and the short name of the call follow. If
    `operation` is `linear_cross_entropy`, the words contain "input" in place of "logits".

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
    """Return a dtype and a shape in words for a message, such as "float32 with shape (3, 5)"."""
    return f"{str(dtype).removeprefix('torch.')} with shape {tuple(shape)}"


def checksum(tensor: Tensor, before: int = 0) -> int:
    """Return the CRC-32 of the dtype, shape and bits of a tensor. All NaN count as equal.

    Pass the checksum of previous tensors as `before` to get the checksum of all tensors together.
    """
    so_far = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), before)
    nan = tensor.isnan()
    return zlib.crc32(bits(tensor.where(~nan, torch.nan) if nan.any() else tensor).tobytes(), so_far)


def evaluate(loss: Loss, inputs: Inputs, gradients: Gradients = tuple(GRADIENTS)) -> Result:
    """Call a subject, run the backward pass with the upstream gradient, and return the loss and the gradients.

    Args:
        loss: the function of the subject.
        inputs: the arguments of the call, and the upstream gradient.
        gradients: the names of the gradients to compute. `evaluate` ignores the name of a gradient that the inputs
            cannot have: for example, "target_gradient" if the target holds class indices. If "gradient" is not among
            the names, or if the loss has a wrong shape, `evaluate` computes no gradients.

    Raises:
        TypeError: the loss or a gradient is no dense tensor, or the loss is complex or detached from a tensor whose
            gradient is requested.
        Exception: the subject may raise any exception.
    """
    # Each leaf shares the memory of an input, so `make_call` can detect a write into the leaf.
    given, leaves = inputs.requiring(gradients if "gradient" in gradients else ())
    value = as_loss(loss(given.input, given.target, **given.options))
    word = inputs.operation.word
    if leaves and not value.requires_grad:
        raise _detached_error(word("input"), "gradient")
    if not leaves or value.shape != inputs.upstream.shape:  # `misshapen` reports a wrong shape
        return Result(value.detach().resolve_neg())
    made = torch.autograd.grad(value, list(leaves.values()), inputs.upstream.to(value.dtype), allow_unused=True)
    computed = {}
    for name, gradient in zip(leaves, made, strict=True):
        if gradient is None:
            raise _detached_error(word(GRADIENTS[name]), name)
        if gradient.layout != torch.strided:
            raise TypeError(f"{in_words(name, inputs.operation)}: got {class_and_layout(gradient)}; expected {DENSE}")
        computed[name] = gradient.resolve_neg()
    return Result(value.detach().resolve_neg(), **computed)


def _detached_error(argument: str, name: str) -> TypeError:
    """Return the error about a loss that is detached from an argument. `name` is the name of the missing gradient."""
    declare = f"; if this is intended, declare it: {as_options(without=[name])}" if name in FEATURE_NAMES else ""
    return TypeError(f"the loss is detached from the {argument}, so there is no gradient{declare}")


def as_loss(value: object) -> Tensor:
    """Check that a value is a dense tensor of real numbers, and return the value.

    Raises:
        TypeError: the value is not of the class torch.Tensor, is not strided (for example sparse), or is complex. A
            subclass of Tensor is refused too, because the methods of a subclass could return anything.
    """
    if type(value) is not Tensor or value.layout != torch.strided:
        raise TypeError(f"loss: got {class_and_layout(value)}; expected {DENSE}")
    if value.is_complex():
        raise TypeError(f"loss: got {str(value.dtype).removeprefix('torch.')}; expected a dtype of real numbers")
    return value


@dataclass(frozen=True)
class Call:
    """The results of a call, and the effects of the call on its arguments.

    Attributes:
        result: the loss and the gradients.
        given: the inputs after the call.
        written_forward: the name of the first tensor that the forward pass changed (:func:`written`), an argument or
            the upstream gradient; "" if the forward pass changed none.
        attribute_change: a sentence about an argument whose attributes, such as .grad, the call changed
            (:func:`describe_attribute_change`); "" if there is none.
        shared: a sentence about a result that shares memory with an argument (:func:`shared`); "" if there is none.
    """

    result: Result
    given: Inputs
    written_forward: str
    attribute_change: str
    shared: str


def make_call(loss: Loss, inputs: Inputs, gradients: Gradients) -> Call:
    """Make the first call of a case, and return the results of the call and its effects on the arguments.

    `loss` is the function of the subject. `gradients` names the gradients to compute, as in :func:`evaluate`.

    This is an act: a function that runs in the process of the subject.
    """
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
    """Call the subject twice with the same inputs, and once in between with other inputs.

    This is an act: a function that runs in the process of the subject.

    The call in between is only there to change memory, so `repeat_call` ignores an exception of this call. After this
    call, :func:`poison` fills freed memory with NaN.

    Args:
        loss: the function of the subject.
        inputs: the inputs of the two calls.
        others: the inputs of the call in between.
        gradients: the names of the gradients to compute, as in :func:`evaluate`.

    Returns:
        The first result, copied immediately; the first result, copied after the call in between; and the second result.
        All three should be equal. If the two copies differ, the call in between wrote into the first result.
    """
    first = evaluate(loss, inputs.copy(), gradients)
    kept = first.copy()
    with suppress(Exception):
        evaluate(loss, others, gradients)
    poison(inputs)
    return kept, first.copy(), evaluate(loss, inputs, gradients)


def require_gradients(value: object, arguments: tuple[object, ...], gradients: Gradients) -> None:
    """Check that each result of an act has the gradients that :func:`evaluate` computes, in the right shape and dtype.

    An isolated process could leave out a gradient, and crossent compares only the gradients that a result has.

    Args:
        value: the value that the act returned, which may contain several results or none.
        arguments: the arguments of the act, some of which may be :class:`Inputs`. Each result must fit at least one of
            these inputs. Without such inputs, nothing is checked.
        gradients: the names of the gradients that the subject can compute. The function ignores the name of a gradient
            that the inputs cannot have.

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
    """Return all objects of the class `kind` in a value: the value itself, or objects in nested tuples and lists.

    A :class:`Call` counts as its `result`.
    """
    if isinstance(value, kind):
        return [value]
    if isinstance(value, Call):
        return _each(kind, value.result)
    return [one for part in value for one in _each(kind, part)] if isinstance(value, (tuple, list)) else []


def _wrong_gradient(result: Result, inputs: Inputs, gradients: Gradients) -> str:
    """Return the name of the first gradient that is missing or has a wrong shape or dtype; "" if there is none.

    A gradient must have the shape and dtype of its argument.

    If :func:`evaluate` computes no gradients, because the loss has a wrong shape or "gradient" is not in `gradients`,
    return "". `trial.misshapen` reports the wrong shape.
    """
    if result.loss.shape != inputs.upstream.shape or "gradient" not in gradients:
        return ""
    for name, leaf in inputs.leaves.items():
        part = result.parts.get(name)
        if name in gradients and (part is None or (part.shape, part.dtype) != (leaf.shape, leaf.dtype)):
            return name
    return ""
