"""A loss on several ranks, as a callable with the signature of `F.cross_entropy`."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs, bits
from crossent.cases.operation import CROSS_ENTROPY
from crossent.subjects.callables import declared_lacks
from crossent.subjects.ranks.group import Ranks
from crossent.subjects.ranks.protocol import (
    RanksDifferError,
    join,
    normalization_of,
    require_protocol,
    split_of,
    write_shard,
)

_REASON = "runs on ranks, whose operations torch does not see in this process"
_TRANSFORMS = ("double_backward", "forward_ad", "batched_gradient", "vmap", "compile", "autocast")
_ONE_BACKWARD = "has its own backward, which need not work twice"


def lacks_of(given: object) -> dict[str, str]:
    """Return the features that a loss on several ranks lacks, with the reasons.

    The attribute `lacks` of `given`, the user's class or function, adds features or replaces reasons.

    Raises:
        TypeError: the attribute `lacks` is not a dict from features to reasons.
    """
    lacks = dict.fromkeys(_TRANSFORMS, _REASON)
    lacks["large"] = "runs on ranks, to which each call sends its tensors"
    lacks["target_gradient"] = "runs on ranks, and gives no gradient of target probabilities"
    if hasattr(given, "backward"):
        lacks["retain_graph"] = _ONE_BACKWARD
    if split_of(given) == "batch":
        lacks["unbatched"] = "cuts the batch axis, which a single row does not have"
    if normalization_of(given) == "tokens":
        names = ("reduction", "reduction_none", "reduction_sum", "weight")
        lacks |= dict.fromkeys(names, "divides by the number of kept rows of the whole batch")
    return {**lacks, **declared_lacks(given)}


class RankLoss:
    """A loss on several ranks, as a callable with the signature of `F.cross_entropy`.

    The first call starts the ranks. If a rank blocks or ends, the next call starts new ranks.

    Args:
        given: the user's class or function.
        ranks: the number of ranks.
        description: a description from which a new process can load `given`; by default its package.module:NAME.
        seconds: the time limit of a request, such as a forward pass.
        backend: the backend of torch.distributed; by default, :class:`crossent.subjects.ranks.group.Ranks` chooses one.

    Raises:
        TypeError: `given` does not follow :mod:`crossent.subjects.ranks.protocol`, or has an attribute `lacks` that is
            no dict from features to reasons.
    """

    def __init__(
        self, given: Any, ranks: int, *, description: str = "", seconds: float = 30.0, backend: str | None = None
    ) -> None:
        require_protocol(given)
        self.__name__ = getattr(given, "__name__", type(given).__name__)
        self.lacks = lacks_of(given)
        self.split = split_of(given)
        self.normalization = normalization_of(given)
        description = description or _description_of(given)
        self._given, self._description, self._seconds, self._backend = given, description, seconds, backend
        self._ranks = Ranks(self._load, ranks, description=description, seconds=seconds, backend=backend)
        self._keys, self._freed = itertools.count(), deque[int]()
        self._others: dict[int, RankLoss] = {}

    @property
    def count(self) -> int:
        """The number of ranks."""
        return self._ranks.count

    def on(self, ranks: int) -> RankLoss:
        """Return the same loss on another number of ranks. :meth:`close` also ends the ranks of the returned loss."""
        how: dict[str, Any] = {"seconds": self._seconds, "backend": self._backend}
        if ranks not in self._others:
            self._others[ranks] = RankLoss(self._given, ranks, description=self._description, **how)
        return self._others[ranks]

    def use_context(self, input: Tensor, target: Tensor, options: Mapping[str, Any], scenario: str) -> list[str] | None:
        """Test the context of the loss on all ranks, and return the problems; None if the loss has no context.

        The scenario "twice" enters a second context inside the first. The scenario "exception" raises an exception in
        a context. Calls before and after this context must have the same results.
        """
        if not hasattr(self._given, "context"):
            return None
        whole = {**CROSS_ENTROPY.options, **options}
        request = {"action": "use_context", "scenario": scenario, **_arguments(input, target, whole)}
        replies = self._ask(request, input.device)
        return list(dict.fromkeys(text for reply in replies for text in reply["problems"]))

    def __call__(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Return the loss, computed on all ranks."""
        options = {
            "weight": weight,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "label_smoothing": label_smoothing,
        }
        loss: Tensor = _OnRanks.apply(input, target, self, options)  # type: ignore[no-untyped-call]
        return loss

    def close(self) -> None:
        """End the ranks, and the ranks of all losses that :meth:`on` has returned."""
        for other in self._others.values():
            other.close()
        self._ranks.close()

    def take_changed_state(self) -> list[str]:
        """Return the names of the parts of the global state that ranks changed since the last call of this method."""
        changed = self._ranks.take_changed_state()
        changed += [name for other in self._others.values() for name in other.take_changed_state()]
        return list(dict.fromkeys(changed))

    def forward(self, input: Tensor, target: Tensor, options: Mapping[str, Any], differentiable: bool) -> Any:
        """Return the loss, and a key that :meth:`backward` needs to find the graphs on the ranks.

        If a rank changed its copy of an argument, change the argument too. If `differentiable` is False, the ranks keep
        no graphs.

        Raises:
            RanksDifferError: without normalization="tokens", two ranks return different losses.
            RuntimeError: with normalization="tokens", a rank does not return a single number.
        """
        key = next(self._keys)
        request = {
            "action": "forward",
            "key": key,
            "freed": [self._freed.popleft() for _ in range(len(self._freed))],
            "differentiable": differentiable,
            **_arguments(input, target, options),
        }
        replies = self._ask(request, input.device)
        self._write_back(replies, {"input": input, "target": target, **options})
        if self.normalization == "tokens":
            return _sum([reply["loss"] for reply in replies], _dtype_of(input, target)).to(input.device), key
        first: Tensor = replies[0]["loss"]
        for at, reply in enumerate(replies):
            if not _same(first, reply["loss"]):
                raise RanksDifferError(f"the ranks return different losses: {_difference(first, reply['loss'], at)}")
        return first.to(input.device), key

    def backward(self, key: int, upstream: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of the logits, joined from the gradients of all shards.

        `key` is the key that :meth:`forward` returned. `shape` is the shape of the logits.
        """
        request = {"action": "backward", "key": key, "upstream": _plain(upstream)}
        replies = self._ask(request, upstream.device)
        return join([reply["gradient"] for reply in replies], self.split, shape).to(upstream.device)

    def accumulate(self, inputs: Inputs, sizes: Sequence[int], differentiable: bool) -> tuple[Tensor, Tensor | None]:
        """Return the loss and the gradient of a batch, computed in micro-batches.

        The loss must have normalization="tokens". `sizes` has the number of samples of each micro-batch. If
        `differentiable` is False, the gradient is None.

        Raises:
            RuntimeError: a rank does not return a single number.
        """
        logits, whole = inputs.input, {**CROSS_ENTROPY.options, **inputs.options}
        request = {"action": "accumulate", "sizes": list(sizes), "differentiable": differentiable}
        request |= {"upstream": _plain(inputs.upstream), **_arguments(logits, inputs.target, whole)}
        replies = self._ask(request, logits.device)
        loss = _sum([part for reply in replies for part in reply["parts"]], _dtype_of(logits, inputs.target))
        loss = loss.to(logits.device)
        if not differentiable:
            return loss, None
        of_parts = zip(sizes, *(reply["gradients"] for reply in replies), strict=True)
        joined = [join(shards, self.split, (size, *logits.shape[1:])) for size, *shards in of_parts]
        return loss, torch.cat(joined).to(logits.device)

    def free(self, key: int) -> None:
        """Let the ranks free the graphs with this key at the next forward pass."""
        self._freed.append(key)

    def _load(self) -> Any:
        return self._given

    def _ask(self, request: dict[str, Any], device: torch.device) -> list[dict[str, Any]]:
        return self._ranks.ask(request, "cpu" if device.type == "cpu" else str(device))

    def _write_back(self, replies: list[dict[str, Any]], arguments: Mapping[str, Any]) -> None:
        """Copy the tensors that ranks changed from the replies into `arguments`, so that checks see the change."""
        for rank, reply in enumerate(replies):
            for name, content in reply["written"].items():
                with torch.no_grad():
                    if name == "input":
                        write_shard(arguments[name].detach(), content, self.split, rank, len(replies))
                    else:
                        arguments[name].detach().copy_(content)


def _description_of(given: Any) -> str:
    """Return the description package.module:NAME of an object, or "" if a new process cannot import the object."""
    module, name = getattr(given, "__module__", ""), getattr(given, "__qualname__", "")
    if module == "__main__" or not name:
        return ""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is given else ""


class _OnRanks(torch.autograd.Function):
    """An autograd function whose forward and backward passes run on the ranks."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, loss: RankLoss, options: dict[str, Any]) -> Tensor:
        differentiable = "gradient" not in loss.lacks
        wanted = differentiable and ctx.needs_input_grad[0]
        made: Tensor
        made, key = loss.forward(input, target, options, wanted)
        ctx.shape, ctx.loss, ctx.graphs = input.shape, loss, _GraphKey(loss.free, key)
        if not differentiable:
            ctx.mark_non_differentiable(made)
        return made

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return ctx.loss.backward(ctx.graphs.key, upstream, ctx.shape), None, None, None


class _GraphKey:
    """The key of the graphs of a call. Deleting this object calls `free(key)`."""

    def __init__(self, free: Callable[[int], None], key: int) -> None:
        self._free, self.key = free, key

    def __del__(self) -> None:
        self._free(self.key)


def _arguments(input: Tensor, target: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input": _plain(input),
        "target": _plain(target),
        "options": {name: _plain(one) if isinstance(one, Tensor) else one for name, one in options.items()},
    }


def _dtype_of(input: Tensor, target: Tensor) -> torch.dtype:
    """Return the dtype that torch gives the loss of this input and target."""
    return torch.promote_types(input.dtype, target.dtype) if target.is_floating_point() else input.dtype


def _sum(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the sum of the parts of a loss, computed in float64 and rounded once."""
    if wrong := [tuple(part.shape) for part in parts if part.dim()]:
        todo = "with normalization = 'tokens', return a single number on each rank"
        raise RuntimeError(f"forward: got a loss of shape {wrong[0]}; {todo}")
    return torch.stack([part.double() for part in parts]).sum().to(dtype)


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor that a message can contain: on the CPU, without a graph or a lazy negation."""
    return tensor.detach().resolve_neg().cpu().as_subclass(Tensor)


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two losses have the same dtype, shape and bits. All NaN count as equal."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and not bool(_different(one, other).any())


def _different(one: Tensor, other: Tensor) -> Any:
    """Return where the bits of two losses differ, as an array of bool. All NaN count as equal."""
    return (bits(one) != bits(other)) & ~(one.isnan() & other.isnan()).numpy()


def _difference(one: Tensor, other: Tensor, rank: int) -> str:
    """Return a phrase with the first difference between the losses of rank 0 and rank `rank`."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        first, second = (f"the shape {tuple(loss.shape)} in {loss.dtype}" for loss in (one, other))
    else:
        at = _different(one, other).reshape(-1).argmax()
        first, second = (repr(loss.reshape(-1)[at].item()) for loss in (one, other))
    return f"rank 0 returns {first}, and rank {rank} returns {second}; every rank must return the same bits"
