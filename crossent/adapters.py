"""Adapters: make losses of numpy, JAX and ONNX, and losses on several ranks, callable with tensors.

A numpy function gets arrays that share the memory and the strides of CPU tensors. So a check can find a function that
writes into its arguments. JAX and ONNX get copies.

Each callable has an attribute `lacks`: a dict from each missing feature, such as "vmap", to the reason.
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

from crossent.words import quoted

_Array = NDArray[Any]
Function = Callable[..., Any]
# Takes the upstream gradient, and returns the gradients of the logits and of the target: None for a missing gradient.
Pull = Callable[[Tensor], tuple[Tensor | None, Tensor | None]]
# Takes logits, target, options, and whether a gradient is needed. Returns the loss, and the Pull or None.
Forward = Callable[[Tensor, Tensor, dict[str, Any], bool], tuple[Any, Pull | None]]
# The features that need torch to see the operations of the loss.
_TRANSFORMS = ("double_backward", "forward_ad", "batched_gradient", "vmap", "compile", "autocast")
_NO_BFLOAT16 = "needs the package ml_dtypes, since numpy has no bfloat16"


def from_numpy(function: Function, *, gradient: Function | None = None) -> Callable[..., Tensor]:
    """Adapt a numpy loss function, so that you can call and check it like `torch.nn.functional.cross_entropy`.

    Args:
        function: The loss, `function(logits, target, **options) -> array`. `logits` is an array of shape (C), (N, C) or
            (N, C, d1, …, dK). `target` is an array of class indices, or of class probabilities in the shape of
            `logits`. The signature may have the options `weight` (an array of shape (C)), `ignore_index`, `reduction`
            and `label_smoothing`, as in :func:`crossent.formula`.
        gradient: The gradient of the logits, `gradient(upstream, logits, target, **options) -> array`, in the shape of
            `logits`. `upstream` is the upstream gradient, in the shape of the loss. None for a loss without a gradient.

    Returns:
        A callable on tensors, `loss(input, target, **options)`. Its result is a tensor with the dtype and shape of the
        function's result. bfloat16 tensors need the package ml_dtypes, and become arrays of `ml_dtypes.bfloat16`.

    Raises:
        TypeError: In the forward or backward pass, if `function` or `gradient` returns no array of real numbers.

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
    reason = "is a numpy function"
    lacks = {"target_gradient": f"{reason}, without a gradient of target probabilities"}
    if gradient is None:
        lacks["gradient"] = f"{reason} that computes no gradient"
    return _adapt(function, _through_numpy(function, gradient), reason, lacks)


def from_jax(function: Function) -> Callable[..., Tensor]:
    """Adapt a JAX loss function, so that you can call and check it like `torch.nn.functional.cross_entropy`.

    The adapter compiles the function with `jax.jit`, as training code does: once for each dtype, shape and choice of
    the options. Calls with and without gradients are compiled separately. The Python code of the function runs only
    during a compilation. If the function reads the value of an array, `jax.jit` cannot trace the function. The adapter
    then calls the function uncompiled, which is slow.

    Args:
        function: The loss, `function(logits, target, **options) -> array`. The arguments are as in :func:`from_numpy`,
            but the arrays are JAX arrays. If you compile the function with `jax.jit` yourself, name `reduction` in
            `static_argnames`.

    Returns:
        A callable on tensors, `loss(input, target, **options)`. `jax.vjp` computes the gradients of the logits and of
        class probabilities. A call with float64, or with integers beyond 32 bits, runs in JAX's 64-bit mode. Any other
        call runs in the mode that you have set, 32-bit or 64-bit. In the 32-bit mode, JAX converts int64 to int32.

    Raises:
        ModuleNotFoundError: JAX is not installed. Run `pip install 'crossent[jax]'`.
        TypeError: On a call, if the result of the function is not an array of real numbers.

    Example:
        >>> def mean(logits, target):
        ...     return -jax.numpy.take_along_axis(jax.nn.log_softmax(logits, 1), target[:, None], 1).mean()
        >>> loss = from_jax(mean)  # doctest: +SKIP
        >>> print(loss(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0])))  # doctest: +SKIP
        tensor(0.1291)
    """
    import jax

    reads_values = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)
    apply = jax.jit(lambda pulled, upstream: pulled(upstream))
    compiled: dict[Any, Function] = {}

    def jitted(compute: Function, key: Any) -> Function:
        """Return `compute`, compiled by `jax.jit`. Functions with equal keys share one compiled function."""

        def call(*arrays: Any, **given: Any) -> Any:
            try:
                return compiled.setdefault(key, jax.jit(compute))(*arrays, **given)
            except reads_values:  # JAX cannot trace `compute`
                compiled[key] = compute
                return compute(*arrays, **given)

        return call

    def run(logits: Tensor, target: Tensor, options: dict[str, Any], wanted: bool) -> tuple[Any, Pull | None]:
        dense = target.is_floating_point()
        wide = any(map(_is_wide, (logits, target, *options.values())))

        def bits() -> AbstractContextManager[Any]:
            # enable_x64 changes one thread only. Before JAX 0.8, the function is in jax.experimental.
            enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
            made: AbstractContextManager[Any] = enable(wide or jax.config.jax_enable_x64)
            return made

        def jaxs(tensor: Tensor) -> Any:
            # Copy, because a JAX array may share numpy's memory. jax.numpy.array would compile its copy for each shape.
            return jax.numpy.asarray(_array(tensor).copy())

        words = {name: value for name, value in options.items() if not isinstance(value, Tensor)}

        def forward(*arrays: Any, **given: Any) -> Any:
            return function(*arrays, **given, **words)

        def with_pull(logits: Any, target: Any, **given: Any) -> Any:
            if dense:
                return jax.vjp(lambda x, t: forward(x, t, **given), logits, target)
            return jax.vjp(lambda x: forward(x, target, **given), logits)

        with bits():
            given = {name: jaxs(value) for name, value in options.items() if isinstance(value, Tensor)}
            arrays = jaxs(logits), jaxs(target)
            made = jitted(with_pull if wanted else forward, (wanted, dense, *words.items()))(*arrays, **given)
            if not wanted:
                return np.asarray(made), None
            made, pulled = made

        def pull(upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
            with bits():
                gradients = [
                    _tensor(np.asarray(one), logits.device, "gradient") for one in apply(pulled, jaxs(upstream))
                ]
            return gradients[0], gradients[1] if dense else None

        return np.asarray(made), pull

    return _adapt(function, run, "is a JAX function", {})


def from_onnx(model: Any = None) -> Callable[..., Tensor]:
    """Return an ONNX model, or the ONNX operator SoftmaxCrossEntropyLoss, as a callable on tensors.

    ONNX's reference evaluator, `onnx.reference.ReferenceEvaluator`, runs the model or the operator. The evaluator
    computes no gradients.

    Args:
        model: A `ModelProto`, or the name of a file with a `ModelProto`. The two inputs of the model are the logits and
            the target, and the first output is the loss. The callable of a model takes no options.
            With None, the callable runs the operator and takes `weight`, `ignore_index` and `reduction`.

    Returns:
        A callable on tensors, `loss(input, target, **options)`.

    Raises:
        ModuleNotFoundError: ONNX is not installed. Run `pip install 'crossent[onnx]'`.
        TypeError: On a call, if the result is not an array of real numbers.

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
    reason = "runs in ONNX's reference evaluator"
    lacks = dict.fromkeys(("gradient", "target_gradient"), f"{reason}, which computes no gradient")
    if model is None:
        lacks["probability_target"] = "is ONNX's SoftmaxCrossEntropyLoss, whose targets are class indices"
    return _adapt(function, _through_numpy(function, None), reason, lacks)


def from_ranks(
    given: str | Function, *, ranks: int, timeout: float = 300.0, backend: str | None = None
) -> Callable[..., Tensor]:
    """Adapt a loss on several ranks, so that you can call and check it like `torch.nn.functional.cross_entropy`.

    Each rank is a process of one torch.distributed group. The ranks start at the first call. They end when the callable
    is closed or deleted. The page "On several ranks" of the docs shows how to write such a loss, as a class or
    a function.

    Args:
        given: "loss_parallel" for torch's loss of a sharded DTensor; "package.module:NAME" or "path/to/file.py:NAME";
            or a class or function that the ranks can import from its module.
        ranks: The number of ranks.
        timeout: Ten times the time limit of a forward or backward pass, in seconds. The limit of a pass is at least
            1 second. A longer pass raises an error.
        backend: The backend of torch.distributed. By default "gloo", or "nccl" if each rank has a CUDA device.

    Returns:
        A callable on tensors, `loss(input, target, **options)`. Its method `close` ends the ranks.

    Raises:
        ValueError: `ranks` is not from 1 to 64, or ranks cannot start on this machine. With a text as `given`,
            the loss cannot be loaded, or lacks what the page "On several ranks" requires.
        TypeError: `given` is a class or function that lacks what the page requires.

    Example:
        >>> loss = from_ranks("loss_parallel", ranks=2)  # doctest: +SKIP
        >>> print(loss(torch.tensor([[3.0, 1.0, -3.0]]), torch.tensor([0])))  # doctest: +SKIP
        tensor(0.1291)
    """
    from crossent.cases.operation import CROSS_ENTROPY
    from crossent.subjects.ranks.subject import load_on_ranks

    return load_on_ranks(given, ranks, timeout, CROSS_ENTROPY, backend).loss


def _through_numpy(function: Function, gradient: Function | None) -> Forward:
    def run(logits: Tensor, target: Tensor, options: dict[str, Any], wanted: bool) -> tuple[Any, Pull | None]:
        arrays = _array(logits), _array(target)
        given = {name: _array(one) if isinstance(one, Tensor) else one for name, one in options.items()}

        def pull(upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
            assert gradient is not None
            return _tensor(gradient(_array(upstream), *arrays, **given), logits.device, "gradient"), None

        return function(*arrays, **given), pull if wanted else None

    return run


def _adapt(function: Function, run: Forward, reason: str, lacks: dict[str, str]) -> Callable[..., Tensor]:
    """Return a callable on tensors that computes the loss with `run` and has the signature of `function`.

    `reason`, such as "is a JAX function", says why torch cannot see the operations of the loss. `lacks` has the reasons
    for further missing features.
    """
    without = {} if find_spec("ml_dtypes") else {"bfloat16": _NO_BFLOAT16}

    @functools.wraps(function)
    def loss(input: Tensor, target: Tensor, *positional: Any, **options: Any) -> Tensor:
        signature = inspect.signature(function)
        signature.bind(input, target, *positional, **options)  # raises TypeError if the arguments do not fit
        given = {**dict(zip(list(signature.parameters)[2:], positional, strict=False)), **options}
        made: Tensor = _Foreign.apply(input, target, run, given, "gradient" not in lacks)  # type: ignore[no-untyped-call]
        return made

    foreign = f"{reason}, whose operations torch cannot see"
    loss.lacks = {**dict.fromkeys(_TRANSFORMS, foreign), **without, **lacks}  # type: ignore[attr-defined]
    return loss


class _Foreign(torch.autograd.Function):
    """The autograd function of an adapted loss, such as a numpy function.

    The forward pass calls `run`, which returns the loss and a :data:`Pull`. The backward pass calls this `Pull`, which
    returns the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, run: Callable[..., Any], options: dict[str, Any], differentiable: bool
    ) -> Tensor:
        wanted = differentiable and any(ctx.needs_input_grad)
        made, ctx.pull = run(input.detach(), target.detach(), options, wanted)
        loss = _tensor(made, input.device, "loss")
        if not differentiable:
            ctx.mark_non_differentiable(loss)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return (*ctx.pull(upstream), None, None, None)


def _is_wide(value: Any) -> bool:
    """Return whether an argument needs JAX's 64-bit mode."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or not value.numel():
            return value.dtype == torch.float64
        return value.dtype == torch.int64 and bool((value != value.int()).any())
    return isinstance(value, int) and not -(2**31) <= value < 2**31


def _array(tensor: Tensor) -> _Array:
    """Return a tensor as a numpy array, in the same memory if possible."""
    here = tensor.detach().resolve_neg().cpu()
    if here.dtype != torch.bfloat16:
        return here.numpy()
    import ml_dtypes

    made: _Array = here.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return made


def _tensor(value: Any, device: torch.device, noun: str) -> Tensor:
    """Return an array or a number as a tensor, in the same memory if possible. Errors call the value `noun`."""
    array = np.asarray(value)
    if array.dtype.kind in "OUSMmVc" and array.dtype.name != "bfloat16":
        given = quoted(array.item()) if array.dtype == object and not array.ndim else f"an array of {array.dtype}"
        raise TypeError(f"the {noun} is {given}; return an array of real numbers")
    fits = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)  # as torch requires
    if not (fits and array.flags.writeable and array.dtype.isnative):
        array = np.array(array, array.dtype.newbyteorder("="), order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)
