"""A call to cross-entropy, checked and laid out as rows: what the forms share.

Every form starts with :func:`lay_out`, which refuses bad arguments, moves the class axis last and widens
half precision to float32, and ends with :meth:`Rows.reduce`, which drops the ignored rows, applies the
reduction and rounds once to the dtype of the result. Between the two a form is only its formula.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int64, torch.uint8)
REDUCTIONS = ("none", "mean", "sum")


@dataclass  # not frozen: up to torch 2.2, Dynamo makes no object of a class that has its own __setattr__
class Rows:
    """The rows of one call. `...` stands for the batch and every further dimension, `C` for the classes.

    Attributes:
        logits: (..., C), float32 or float64.
        index: (...), int64, the true class of each row and 0 on ignored rows; None for probability targets.
        kept: (...), bool, False on ignored rows; None for probability targets.
        probabilities: (..., C), `(1 - ε)·target + ε/C`; None for index targets.
        weight: (C,), or None where every weight is one.
        target_weight: (...), the weight of each row's true class, 0 on ignored rows; None for probability targets.
        label_smoothing: ε, from 0 to 1.
        reduction: "none", "mean" or "sum".
        dtype: dtype of the result.
    """

    logits: Tensor
    index: Tensor | None
    kept: Tensor | None
    probabilities: Tensor | None
    weight: Tensor | None
    target_weight: Tensor | None
    label_smoothing: float
    reduction: str
    dtype: torch.dtype

    @property
    def dense(self) -> bool:
        """Whether every class counts in a row's loss, and not the true one alone."""
        return self.index is None or self.label_smoothing > 0

    def pick(self, values: Tensor) -> Tensor:
        """The entry of each row's true class: (..., C) to (...)."""
        assert self.index is not None
        return values.gather(-1, self.index.unsqueeze(-1)).squeeze(-1)

    def weigh(self, values: Tensor) -> Tensor:
        """`w_y · values`: (...) to (...)."""
        assert self.target_weight is not None
        return self.target_weight * values

    def weighted(self, values: Tensor) -> Tensor:
        """`w_c · values_c`: (..., C) to (..., C)."""
        return values if self.weight is None else self.weight * values

    def expect(self, values: Tensor) -> Tensor:
        """`Σ_c w_c q_c values_c`, with `q` the smoothed target: (..., C) to (...)."""
        if self.probabilities is not None:
            return self.weighted(self.probabilities * values).sum(-1)
        uniform = self.weighted(values).sum(-1) * (self.label_smoothing / values.shape[-1])
        if self.label_smoothing == 1:  # q is uniform; 0 · inf of the true class must not enter
            return uniform
        return (1 - self.label_smoothing) * self.weigh(self.pick(values)) + uniform

    def one_hot(self) -> Tensor:
        """The dense target `q`, (..., C): probabilities, or the smoothed one-hot of the index."""
        if self.probabilities is not None:
            return self.probabilities
        assert self.index is not None
        hot = torch.zeros_like(self.logits).scatter(-1, self.index.unsqueeze(-1), 1.0)
        return _smooth(hot, self.label_smoothing)

    def reduce(self, losses: Tensor) -> Tensor:
        """The result from the loss of each row, (...): 0 on ignored rows, reduced, rounded once.

        `mean` divides by the weight of the kept rows' true classes, and by the number of rows where targets
        are probabilities. Over no rows that is 0/0, NaN.
        """
        if self.kept is not None:
            losses = torch.where(self.kept, losses, 0.0)  # not a product: an ignored row may hold NaN
        if self.reduction != "none":
            rows = losses.numel()
            losses = losses.sum()
            if self.reduction == "mean":
                losses = losses / rows if self.target_weight is None else _mean(losses, self.target_weight.sum())
        return losses.to(self.dtype)


def _mean(total: Tensor, weight: Tensor) -> Tensor:
    """`total / weight`, and NaN where nothing is weighted, though smoothing may have left something to divide."""
    # A divisor of NaN, and not a result of NaN that was chosen: its derivatives are NaN too, and not a sure 0.
    return total / torch.where(weight == 0, torch.nan, weight)


def lay_out(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Rows:
    """Check the arguments of a form and lay them out as :class:`Rows`.

    Raises what `F.cross_entropy` raises: TypeError, ValueError, RuntimeError, NotImplementedError for dtypes
    that are no floats, IndexError for a target outside `[0, C)` that is not ignored. On CUDA that last one is
    a device-side assert, as torch's own is: nothing here makes the host wait for the device.
    """
    ignore_index, label_smoothing = _check_options(input, target, weight, ignore_index, reduction, label_smoothing)
    dense = target.shape == input.shape
    _check_target(input, target, dense, ignore_index)
    dtype = _check_dtypes(input, target if dense else None, weight)
    compute = torch.float32 if dtype in HALVES else dtype

    logits = input.to(compute)
    class_weight = None if weight is None else weight.to(compute)
    if input.dim() > 1:
        logits = logits.movedim(1, -1)
    if dense:
        target = target.to(compute)
        if target.dim() > 1:
            target = target.movedim(1, -1)
    elif input.dim() == 1:
        target = target.reshape(())
    classes = input.shape[min(1, input.dim() - 1)]
    if classes == 0:
        # No classes: an empty sum, so a loss of 0. One class with a logit of 0 has that loss too, and a maximum.
        logits = logits.sum(-1, keepdim=True)
        target = target.sum(-1, keepdim=True) if dense else target
        class_weight = None

    if dense:
        probabilities = _smooth(target, label_smoothing)
        return Rows(logits, None, None, probabilities, class_weight, None, label_smoothing, reduction, dtype)

    index = target.to(torch.int64)  # before the comparison: as uint8, -100 would be 156
    kept = index != ignore_index
    index = torch.where(kept, index if classes else 1, 0)  # without classes, no kept row has one
    if _compiling():  # and some versions of torch compile a gather that counts -1 from the end (pytorch#135546)
        index = torch.where(index < 0, 2**62, index)
    ones = _look_up(logits.new_ones(logits.shape[-1]), index, classes, ignore_index)
    kept = kept & (ones > 0)  # which each result is made of, so that no compiler drops the look
    picked = ones if class_weight is None else _look_up(class_weight, index, classes, ignore_index)
    target_weight = torch.where(kept, picked, 0.0)
    return Rows(logits, index, kept, None, class_weight, target_weight, label_smoothing, reduction, dtype)


def _smooth(probabilities: Tensor, label_smoothing: float) -> Tensor:
    """`(1 - ε)·q + ε/C`."""
    if label_smoothing == 0:
        return probabilities
    return (1 - label_smoothing) * probabilities + label_smoothing / probabilities.shape[-1]


def _look_up(table: Tensor, index: Tensor, classes: int, ignore_index: int) -> Tensor:
    """`table[y]`, and the one place where a target outside `[0, C)` is caught.

    It is the gather that looks: in eager mode, under vmap and in compiled code on CPU alike, and on CUDA
    without a copy to the host. A check in Python could do none of the last three (pytorch#135546).
    """
    try:
        return table.gather(0, index.reshape(-1)).reshape(index.shape)
    except (IndexError, RuntimeError) as error:
        if "out of bounds" not in str(error):
            raise
        raise IndexError(
            f"target: {error}; allowed are the classes 0 to {classes - 1} and ignore_index, {ignore_index}"
        ) from None


def as_float(name: str, value: object) -> float:
    """A number given for an option: what has `__float__`, as a tensor of one has, and not a string."""
    try:
        if not hasattr(value, "__float__"):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # which one, for a tensor of several, varies
        raise TypeError(f"{name}: got {type(value).__name__}; allowed is a float") from None


def as_int(name: str, value: object) -> int:
    """An integer given for an option: what has `__index__`, and not a bool."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # it says itself what it cannot take
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: got {type(value).__name__}; allowed is an int") from None


def _check_options(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> tuple[int, float]:
    for name, value in (("input", input), ("target", target), ("weight", weight)):
        if not isinstance(value, Tensor) and not (name == "weight" and value is None):
            raise TypeError(f"{name}: got {type(value).__name__}; allowed is a torch.Tensor")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}; allowed are 'none', 'mean' and 'sum'")
    if type(ignore_index) is not int:  # as with label_smoothing
        ignore_index = as_int("ignore_index", ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: got {ignore_index}; allowed are 64-bit integers")
    if type(label_smoothing) is not float:  # of a float that a compiler traces no more can be asked
        label_smoothing = as_float("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:  # NaN too, which torch lets pass together with negative values
        raise RuntimeError(f"label_smoothing: got {label_smoothing}; allowed is 0 to 1")
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.layout != torch.strided:
            raise NotImplementedError(f"{name}: got layout {tensor.layout}; allowed is a dense tensor")
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"{name}: got a tensor on {tensor.device}; allowed is {input.device}, where input is")
    return ignore_index, label_smoothing


def _check_target(input: Tensor, target: Tensor, dense: bool, ignore_index: int) -> None:
    """Shape and dtype of the target. A wrong batch size is torch's ValueError, any other size its RuntimeError."""
    if input.dim() == 0:
        raise RuntimeError("input: got 0 dimensions; allowed are (C), (N, C) and (N, C, d1, …, dK)")
    if dense:
        if not target.dtype.is_floating_point:
            raise RuntimeError(
                f"target: got {_name(target.dtype)} of the logits' shape {tuple(target.shape)}, so class "
                "probabilities; allowed for them is a floating-point dtype"
            )
        if ignore_index >= 0:
            raise RuntimeError(
                f"ignore_index: got {ignore_index} with class probabilities; allowed with them is a negative one, "
                "which is not used"
            )
        return
    rows = (input.shape[0], *input.shape[2:]) if input.dim() > 1 else ()
    if tuple(target.shape) != rows and not (input.dim() == 1 and tuple(target.shape) == (1,)):
        wrong_batch = target.dim() <= 1 if input.dim() == 1 else target.shape[:1] != input.shape[:1]
        raise (ValueError if wrong_batch else RuntimeError)(
            f"target: got shape {tuple(target.shape)} with logits {tuple(input.shape)}; allowed are {rows} for "
            f"class indices and {tuple(input.shape)} for class probabilities"
        )
    if target.dtype not in INDEX_DTYPES:
        raise RuntimeError(f"target: got {_name(target.dtype)}; allowed for class indices are int64 and uint8")


def _check_dtypes(input: Tensor, probabilities: Tensor | None, weight: Tensor | None) -> torch.dtype:
    """The dtype of the result, once the dtypes are known to go together."""
    classes = input.shape[min(1, input.dim() - 1)]
    if input.dtype not in FLOATS:
        allowed = ", ".join(map(_name, FLOATS))
        raise NotImplementedError(f"input: got {_name(input.dtype)}; allowed are {allowed}")
    if input.layout != torch.strided:
        raise NotImplementedError(f"input: got layout {input.layout}; allowed is a dense tensor")
    if weight is not None and tuple(weight.shape) != (classes,):
        raise RuntimeError(f"weight: got shape {tuple(weight.shape)}; allowed is {(classes,)}, one for each class")
    dtype = _lifted(input)
    if probabilities is not None:
        dtype = _promoted(dtype, _lifted(probabilities))
        if weight is not None:
            dtype = _promoted(dtype, _lifted(weight))
        if dtype not in FLOATS:
            raise RuntimeError(f"target, weight: promote the result to {_name(dtype)}; allowed are real floats")
    elif weight is not None and _lifted(weight) != dtype:
        raise RuntimeError(f"weight: got {_name(weight.dtype)}; allowed is {_name(dtype)}, the logits' dtype")
    return dtype


def _promoted(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """As `torch.promote_types`, without a call of it for floats: Dynamo of torch 2.1 takes none."""
    if one == other:
        return one
    if one in FLOATS and other in FLOATS:
        return torch.float64 if torch.float64 in (one, other) else torch.float32
    return torch.promote_types(one, other)


def _lifted(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype; float32 for half precision under autocast, which computes this loss in float32."""
    if tensor.dtype in HALVES and _autocasting(tensor.device.type):
        return torch.float32
    return tensor.dtype


def _autocasting(device_type: str) -> bool:
    if device_type == "meta":
        return False
    if device_type == "cpu":
        return torch.is_autocast_cpu_enabled() if _OLD_AUTOCAST else torch.is_autocast_enabled("cpu")
    return torch.is_autocast_enabled() if _OLD_AUTOCAST else torch.is_autocast_enabled(device_type)


# Asked of a function that torch's tracers know; the first versions that compile have none.
_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)

# torch before 2.4 asks each device by a function of its own.
_OLD_AUTOCAST = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 4)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
