"""The class or function that a user writes for a loss on several ranks, and the rules that cut logits into shards.

Each rank joins the group, and makes one instance of the user's class, without arguments:

    class VocabParallel:
        split = "classes"  # the default: see `SPLITS`
        lacks = {"weight": "has no weight"}  # optional: the features that the loss lacks, with the reasons

        def context(self): ...  # optional: a context manager around each forward and each backward pass
        def forward(self, local_logits, target, shape, axis, options): ...  # returns the loss
        def backward(self, loss, upstream): ...  # optional: computes local_logits.grad

A loss without `context` and `backward` can be a function with the arguments of `forward`.

`local_logits` is the shard of this rank: a leaf, which requires a gradient if the caller needs one. Every rank gets the
whole `target` and all options: `weight`, `ignore_index`, `reduction` and `label_smoothing`. `shape` is the shape of all
logits, and `axis` is the axis that is cut. Every rank must return the whole loss, with the same bits. If the loss is a
DTensor, crossent takes its full tensor. `backward` gets the result of `forward` and the upstream gradient.

A loss for data-parallel training divides by `tokens`, the number of kept rows of the whole batch. A row is kept if its
target is not `ignore_index`:

    class TokenMean:
        split = "batch"
        normalization = "tokens"

        def count(self, targets, options): ...  # optional: returns `tokens`
        def forward(self, local_logits, target, shape, axis, options, tokens): ...

Such a loss may get a batch in micro-batches, as in gradient accumulation. `target` is this rank's shard of the target,
and `shape` is the shape of the logits of the micro-batch on all ranks. `targets` has the `target` of each micro-batch.
Each rank returns its part of the loss. The loss is the sum of the parts of all ranks and micro-batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.cases.operation import CROSS_ENTROPY, Operation
from crossent.machine import can_fork
from crossent.words import cut, quoted

# The rules by which the logits are cut into shards. The padding belongs to no class, so a loss must ignore the padding.
SPLITS = {
    "classes": "the class axis, cut as torch.chunk does; the last ranks may have fewer classes, or none",
    "padded": "the class axis, padded with further logits so that all shards have the same size",
    "batch": "the first axis, cut as torch.chunk does; the last ranks may have fewer samples, or none",
}
# The divisor of a loss: "" for the divisor of `F.cross_entropy`, "tokens" for the number of kept rows of a whole batch.
NORMALIZATIONS = ("", "tokens")
MOST_RANKS = 64
_PADDING = 10_000.0  # a finite number in every dtype, far above most logits
_FORWARD = ("local_logits", "target", "shape", "axis", "options")


def require_ranks(ranks: object, operation: Operation = CROSS_ENTROPY) -> None:
    """Raise ValueError if this machine cannot run the operation on this number of ranks."""
    require_number_of_ranks(ranks, operation)
    if not can_fork():
        raise ValueError(f"ranks: got {ranks}, but this system cannot fork processes; use Linux or macOS")
    if not _has_launcher():
        needed = "use torch 2.3 or newer, with torch.distributed"
        raise ValueError(f"ranks: got {ranks}, but torch {torch.__version__} cannot start ranks; {needed}")


def require_number_of_ranks(ranks: object, operation: Operation = CROSS_ENTROPY) -> None:
    """Raise ValueError for a number of ranks outside 1 to `MOST_RANKS`, or an operation that cannot run on ranks."""
    if type(ranks) is not int or not 1 <= ranks <= MOST_RANKS:
        raise ValueError(f"ranks: got {quoted(ranks)}; allowed are whole numbers from 1 to {MOST_RANKS}")
    if operation is not CROSS_ENTROPY:
        can = f"only {CROSS_ENTROPY.name} runs on ranks; leave out ranks"
        raise ValueError(f"ranks: got {ranks} with the operation {operation.name}; {can}")


def can_start_ranks() -> bool:
    """Return whether this system and this torch can start ranks."""
    return can_fork() and _has_launcher()


def _has_launcher() -> bool:
    try:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs  # noqa: F401  # since torch 2.3
    except ImportError:
        return False
    return True


class RankEndedError(RuntimeError):
    """A rank ended or sent a damaged message (`kind` is "crashed"), or did not reply in time (`kind` is "hung")."""

    def __init__(self, kind: str, how: str) -> None:
        super().__init__(how)
        self.kind = kind


class RanksDifferError(RuntimeError):
    """Some ranks raised an exception and others did not, or the ranks returned different losses."""


class OnRank:
    """The user's loss on one rank, with a default for each optional method that the user did not write.

    `made` is an instance of the user's class, or the user's function. `of_tokens` says whether the loss has
    `normalization = "tokens"`.
    """

    def __init__(self, made: Any) -> None:
        self._made = made
        self._forward: Callable[..., Any] = getattr(made, "forward", made)
        self.of_tokens = normalization_of(made) == "tokens"

    def context(self) -> AbstractContextManager[Any]:
        """Return the result of the user's method `context`; without this method, a context that does nothing."""
        make = getattr(self._made, "context", nullcontext)
        made: AbstractContextManager[Any] = make()
        return made

    def forward(
        self, local: Tensor, target: Tensor, shape: torch.Size, axis: int, options: dict[str, Any], tokens: Any = None
    ) -> Any:
        """Return the result of the user's `forward`. This module's docstring explains the arguments."""
        return self._forward(local, target, shape, axis, options, *([tokens] if self.of_tokens else []))

    def tokens(self, own: list[Tensor], whole: Tensor, logits: Tensor, options: dict[str, Any]) -> Any:
        """Return the divisor of the loss: the result of `count` or, without `count`, the number of kept rows.

        `own` has this rank's target of each micro-batch. `whole` and `logits` are the target and the logits
        of the whole batch.
        """
        count = getattr(self._made, "count", None)
        if count is not None:
            return count(own, options)
        if whole.is_floating_point():
            return logits.numel() // max(1, logits.shape[1])
        return int((whole != options["ignore_index"]).sum())

    def backward(self, loss: Any, upstream: Tensor) -> None:
        """Run the backward pass of `loss`, which sets the `.grad` of this rank's shard of the logits."""
        own = getattr(self._made, "backward", None)
        if own is not None:
            own(loss, upstream)
        elif hasattr(loss, "full_tensor"):
            from torch.distributed.tensor import DTensor, Replicate

            everywhere = [Replicate()] * loss.device_mesh.ndim
            loss.backward(
                DTensor.from_local(upstream, loss.device_mesh, everywhere, run_check=False), retain_graph=True
            )
        else:
            loss.backward(upstream, retain_graph=True)


def require_protocol(given: object) -> None:
    """Raise TypeError if an object is not a loss on several ranks, as this module describes.

    The message begins with a phrase for the object, such as "the class Loss". The caller puts "got" or
    "it is" before the message.
    """
    arguments = forward_arguments(given)
    names = ", ".join(arguments)
    allowed = f"a class with forward(self, {names}), and a function with these arguments"
    if isinstance(given, type):
        what, forward = f"the class {cut(given.__name__)}", getattr(given, "forward", None)
        if forward is None:
            raise TypeError(f"{what}, which has no method forward; allowed are {allowed}")
        bound = isinstance(inspect.getattr_static(given, "forward"), staticmethod | classmethod)
        places, takes = [*([] if bound else [None]), *arguments], "whose method forward does not take"
    elif hasattr(given, "forward"):
        raise TypeError(f"an instance of the class {cut(type(given).__name__)}; give the class itself")
    elif callable(given):
        what, forward = f"the function {cut(getattr(given, '__name__', repr(given)))}", given
        places, takes = [*arguments], "which does not take"
    else:
        raise TypeError(f"an object of type {cut(type(given).__name__)}; allowed are {allowed}")
    try:
        inspect.signature(forward).bind(*places)
    except TypeError:
        raise TypeError(f"{what}, {takes} these positional arguments: {names}") from None
    except ValueError:
        pass  # Python cannot read the signature
    if not _is_split(rule := split_of(given)):
        raise TypeError(f"{what}, whose attribute split is {quoted(rule)}; allowed are {', '.join(SPLITS)}")
    if (normalization := normalization_of(given)) not in NORMALIZATIONS:
        default = "leave out normalization to divide as F.cross_entropy does"
        got = f"{what}, whose attribute normalization is {quoted(normalization)}"
        raise TypeError(f"{got}; allowed is 'tokens'; {default}")
    if normalization and rule != "batch":
        raise TypeError(
            f"{what}, whose attribute split is {quoted(rule)}; normalization = 'tokens' needs split = 'batch'"
        )


def forward_arguments(given: object) -> tuple[str, ...]:
    """Return the names of the arguments that `forward` of the user's class or function must take."""
    return (*_FORWARD, "tokens") if normalization_of(given) == "tokens" else _FORWARD


def normalization_of(given: object) -> str:
    """Return the attribute `normalization` of the user's class or function; by default ""."""
    word: str = getattr(given, "normalization", "")
    return word


def split_of(given: object) -> str:
    """Return the attribute `split` of the user's class or function; by default "classes"."""
    rule: str = getattr(given, "split", "classes")
    return rule


def require_normalization(word: object) -> str:
    """Return `word` if `NORMALIZATIONS` has this word; otherwise raise ValueError."""
    if word not in NORMALIZATIONS:
        raise ValueError(f"normalization: got {quoted(word)}; allowed are 'tokens' and ''")
    return str(word)


def require_split(rule: object) -> str:
    """Return `rule` if `SPLITS` has this rule; otherwise raise ValueError."""
    if not _is_split(rule):
        raise ValueError(f"split: got {quoted(rule)}; allowed are {', '.join(SPLITS)}")
    return str(rule)


def _is_split(rule: object) -> bool:
    return isinstance(rule, str) and rule in SPLITS  # a list, which has no hash, cannot be looked up in a dict


def cut_axis(rule: str, dimensions: int) -> int:
    """Return the axis along which a rule of `SPLITS` cuts logits with this number of dimensions."""
    return 0 if rule == "batch" else min(1, dimensions - 1)


def why_no_classes(rule: str, ranks: int, lacks: Mapping[str, str], inputs: Inputs) -> str | None:
    """Return the reason `lacks["one_class"]` if these inputs leave a rank without classes, or None."""
    if rule != "classes" or "one_class" not in lacks or not inputs.input.dim() or not inputs.classes:
        return None
    largest = -(-inputs.classes // ranks)
    return lacks["one_class"] if -(-inputs.classes // largest) < ranks else None


def shard(logits: Tensor, rule: str, rank: int, ranks: int) -> Tensor:
    """Return the shard of the logits for rank `rank` of `ranks` ranks. The shard may use the memory of `logits`.

    With the rule "padded", the shard may end with padding. With the rule "batch", `logits` may be a target.
    """
    axis = cut_axis(rule, logits.dim())
    if rule == "padded":
        short = -logits.shape[axis] % ranks
        padding = logits.new_full((*logits.shape[:axis], short, *logits.shape[axis + 1 :]), _PADDING)
        whole = torch.cat([logits, padding], axis)
        part = whole.chunk(ranks, axis)[rank] if whole.shape[axis] else whole
    else:
        parts = logits.chunk(ranks, axis) if logits.shape[axis] else ()
        part = parts[rank] if rank < len(parts) else logits.narrow(axis, 0, 0)
    # contiguous like the logits that a rank of a real model computes
    return part.contiguous() if logits.is_contiguous() else part


def join(shards: Sequence[Tensor], rule: str, shape: Sequence[int]) -> Tensor:
    """Return the gradient of the logits, joined from the gradients of all shards without the padding.

    `shape` is the shape of the logits.

    Raises:
        RuntimeError: the gradient of the padding is not 0.
    """
    axis = cut_axis(rule, len(shape))
    whole = torch.cat(list(shards), axis)
    if rule != "padded":
        return whole
    padding = whole.narrow(axis, shape[axis], whole.shape[axis] - shape[axis])
    if bool((padding != 0).any()):
        worst = float(padding.flatten()[padding.abs().argmax()])
        raise RuntimeError(f"the gradient of the padding is not 0, but {worst:.3g}; leave the padding out of the loss")
    return whole.narrow(axis, 0, shape[axis])


def write_shard(logits: Tensor, content: Tensor, rule: str, rank: int, ranks: int) -> None:
    """Copy `content`, a shard of rank `rank`, into `logits`. Leave out the padding of `content`."""
    axis = cut_axis(rule, logits.dim())
    shards = [content if at == rank else shard(logits, rule, at, ranks) for at in range(ranks)]
    logits.copy_(torch.cat(shards, axis).narrow(axis, 0, logits.shape[axis]))


# Whether this process knows no exact value, so that ranks may be forked from this process.
_knows_nothing = False


def allow_fork() -> None:
    """Let this process fork ranks. The process must know no exact value."""
    global _knows_nothing
    _knows_nothing = True


def may_fork() -> bool:
    """Return whether ranks may be forked from this process."""
    return _knows_nothing
