"""Adapters: functions of numpy, JAX and ONNX as callables with the signature of `F.cross_entropy`.

Each takes tensors, hands arrays of the same bits to what it adapts, and makes tensors of what comes back. numpy sees
the tensors' own memory, as they lie in it, so that what is written there is found; JAX and ONNX see copies. The options
that a function has are those of its signature. What lies beyond its library, as torch's transforms do, is lacking, with
the reason: :func:`crossent.subjects.callables.as_subject` reads it off the attribute `lacks`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Array = NDArray[Any]
Function = Callable[..., Any]
# Of the logits and, where the target is of floats and it is wanted, of the target.
Pull = Callable[[Tensor], tuple[Tensor | None, Tensor | None]]
# Of logits, target, options, and whether a gradient is wanted: the loss, and how to pull an upstream gradient back.
Forward = Callable[[Tensor, Tensor, dict[str, Any], bool], tuple[Any, Pull | None]]
# What torch does with its own operations, and cannot with another library's.
_TRANSFORMS = ("double_backward", "forward_ad", "vmap", "compile", "autocast")
_NO_BFLOAT16 = "waits for the package ml_dtypes, since numpy has no bfloat16"


def from_numpy(function: Function, *, gradient: Function | None = None) -> Callable[..., Tensor]:
    """A function of numpy arrays: `function(logits, target, **options) -> array`.

    Args:
        function: gets (C), (N, C) or (N, C, d1, …) logits, a target of class indices or probabilities, and the options
            that its signature has; a `weight` is an array too.
        gradient: `gradient(upstream, logits, target, **options) -> array`, of the logits' shape: how the loss, times
            the upstream gradient, changes with the logits. None of what only goes forward.

    Returns:
        The callable. Its result has the dtype that the function's has. bfloat16 is that of the package ml_dtypes.

    Raises:
        TypeError: from a call, where the function gives no array of real numbers.

    Example:
        >>> import numpy as np
        >>> def nll(logits, target, reduction="mean"):
        ...     shifted = logits - logits.max(1, keepdims=True)
        ...     log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        ...     losses = -np.take_along_axis(log_probs, target[:, None], 1)[:, 0]
        ...     return {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[reduction]
        >>> loss = from_numpy(nll)
        >>> print(loss(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0])))
        tensor(0.1291)
    """
    reason = "is a function of numpy"
    lacks = {"target_gradient": f"{reason}, without a gradient of target probabilities"}
    if gradient is None:
        lacks["gradient"] = f"{reason} that only goes forward"
    return _adapted(function, _through_numpy(function, gradient), reason, lacks)


def from_jax(function: Function) -> Callable[..., Tensor]:
    """A function of JAX arrays: `function(logits, target, **options) -> array`, with gradients by `jax.vjp`.

    Args:
        function: gets the arguments as :func:`from_numpy` hands them out, as arrays of JAX. A jitted one needs
            `reduction` among its `static_argnames`.

    Returns:
        The callable. Gradients are those of the logits, and of target probabilities. JAX computes in 64 bits in the
        calls that need it, with float64 or with integers that 32 bits do not hold, in others as it is set; a call
        leaves the setting as it was.

    Raises:
        ModuleNotFoundError: there is no JAX: `pip install 'crossent[jax]'`.
        TypeError: from a call, where the function gives no array of real numbers.

    Example:
        >>> def mean(logits, target):
        ...     return -jax.numpy.take_along_axis(jax.nn.log_softmax(logits, 1), target[:, None], 1).mean()
        >>> loss = from_jax(mean)  # doctest: +SKIP
        >>> print(loss(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0])))  # doctest: +SKIP
        tensor(0.1291)
    """
    import jax

    def run(logits: Tensor, target: Tensor, options: dict[str, Any], wanted: bool) -> tuple[Any, Pull | None]:
        dense = target.is_floating_point()
        wide = any(map(_is_wide, (logits, target, *options.values())))

        def bits() -> AbstractContextManager[Any]:
            # Of this thread alone; it stood in another place before JAX 0.8.
            enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
            made: AbstractContextManager[Any] = enable(wide or jax.config.jax_enable_x64)
            return made

        def jaxs(tensor: Tensor) -> Any:
            return jax.numpy.array(_array(tensor))  # a copy: JAX takes numpy's memory for its own

        with bits():
            given = {name: jaxs(one) if isinstance(one, Tensor) else one for name, one in options.items()}
            arrays = (jaxs(logits), jaxs(target))
            if not wanted:
                return np.asarray(function(*arrays, **given)), None
            if dense:
                made, pulled = jax.vjp(lambda x, t: function(x, t, **given), *arrays)
            else:
                made, pulled = jax.vjp(lambda x: function(x, arrays[1], **given), arrays[0])

        def pull(upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
            with bits():
                gradients = [_tensor(np.asarray(one), logits.device) for one in pulled(jaxs(upstream))]
            return gradients[0], gradients[1] if dense else None

        return np.asarray(made), pull

    return _adapted(function, run, "is a function of JAX", {})


def from_onnx(model: Any = None) -> Callable[..., Tensor]:
    """ONNX's operator SoftmaxCrossEntropyLoss, or a model, in its reference evaluator, which only goes forward.

    Args:
        model: what `onnx.reference.ReferenceEvaluator` takes: a `ModelProto`, or the name of its file. Its inputs are
            the logits and the target, and its first output is the loss; its options are fixed. Without one, the
            operator, which has `weight`, `ignore_index` and `reduction`.

    Returns:
        The callable.

    Raises:
        ModuleNotFoundError: there is no ONNX: `pip install 'crossent[onnx]'`.
        TypeError: from a call, where there comes no array of real numbers.

    Example:
        >>> loss = from_onnx()  # doctest: +SKIP
        >>> print(loss(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0])))  # doctest: +SKIP
        tensor(0.1291)
    """
    from onnx.helper import make_node
    from onnx.reference import ReferenceEvaluator

    whole = None if model is None else ReferenceEvaluator(model)

    def of_model(logits: _Array, target: _Array) -> Any:
        assert whole is not None
        return whole.run(None, dict(zip(whole.input_names, (logits.copy(), target.copy()), strict=True)))[0]

    def operator(
        logits: _Array, target: _Array, weight: _Array | None = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> Any:
        inputs = {"scores": logits.copy(), "labels": target.copy()}
        inputs |= {} if weight is None else {"weights": weight.copy()}
        options = {"ignore_index": ignore_index, "reduction": reduction}
        node = make_node("SoftmaxCrossEntropyLoss", list(inputs), ["loss"], **options)
        return ReferenceEvaluator(node).run(None, inputs)[0]

    function = operator if model is None else of_model
    function.__name__ = "onnx"
    reason = "is ONNX's reference"
    lacks = dict.fromkeys(("gradient", "target_gradient"), f"{reason}, which only goes forward")
    if model is None:
        lacks["probability_target"] = f"{reason} of SoftmaxCrossEntropyLoss, whose targets are class indices"
    return _adapted(function, _through_numpy(function, None), reason, lacks)


def _through_numpy(function: Function, gradient: Function | None) -> Forward:
    def run(logits: Tensor, target: Tensor, options: dict[str, Any], wanted: bool) -> tuple[Any, Pull | None]:
        arrays = _array(logits), _array(target)
        given = {name: _array(one) if isinstance(one, Tensor) else one for name, one in options.items()}

        def pull(upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
            assert gradient is not None
            return _tensor(gradient(_array(upstream), *arrays, **given), logits.device), None

        return function(*arrays, **given), pull if wanted else None

    return run


def _adapted(function: Function, run: Forward, reason: str, lacks: dict[str, str]) -> Callable[..., Tensor]:
    """The callable, of `run`: with the signature of a function, and what it lacks."""
    without = {} if find_spec("ml_dtypes") else {"bfloat16": _NO_BFLOAT16}

    @functools.wraps(function)
    def loss(input: Tensor, target: Tensor, *positional: Any, **options: Any) -> Tensor:
        given = {**dict(zip(_options(function), positional, strict=False)), **options}
        made: Tensor = _Foreign.apply(input, target, run, given, "gradient" not in lacks)  # type: ignore[no-untyped-call]
        return made

    foreign = f"{reason}, which torch does not see into"
    loss.lacks = {**dict.fromkeys(_TRANSFORMS, foreign), **without, **lacks}  # type: ignore[attr-defined]
    return loss


class _Foreign(torch.autograd.Function):
    """A call of something that torch does not see into."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, run: Callable[..., Any], options: dict[str, Any], differentiable: bool
    ) -> Tensor:
        wanted = differentiable and any(ctx.needs_input_grad)
        made, ctx.pull = run(input.detach(), target.detach(), options, wanted)
        loss = _tensor(made, input.device)
        if not differentiable:
            ctx.mark_non_differentiable(loss)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return (*ctx.pull(upstream), None, None, None)


def _options(function: Function) -> list[str]:
    """The names of what comes after logits and target by position."""
    return list(inspect.signature(function).parameters)[2:]


def _is_wide(value: Any) -> bool:
    """Whether 32 bits do not hold it."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or not value.numel():
            return value.dtype == torch.float64
        return value.dtype == torch.int64 and bool((value != value.int()).any())
    return isinstance(value, int) and not -(2**31) <= value < 2**31


def _array(tensor: Tensor) -> _Array:
    """A tensor's own memory, where it is the CPU's, as an array; bfloat16 as ml_dtypes has it."""
    here = tensor.detach().cpu()
    if here.dtype != torch.bfloat16:
        return here.numpy()
    import ml_dtypes

    made: _Array = here.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return made


def _tensor(value: Any, device: torch.device) -> Tensor:
    """An array, or a number of numpy's, as a tensor of the same dtype; in the same memory, where that is possible."""
    array = np.asarray(value)
    if array.dtype.kind in "OUSMmVc" and array.dtype.name != "bfloat16":
        raise TypeError(f"the function gave {array.dtype}; wanted is an array of real numbers")
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)
