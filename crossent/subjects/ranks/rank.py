"""The process of one rank, which joins the group, makes the user's loss, and replies to the calling process.

A request is a dict with the name of an action and the arguments of the action. A reply is a dict with the result or the
exception. A reply also names the parts of the global state that the action changed.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import socket
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, PrefixStore, TCPStore

from crossent.cases.inputs import DENSE, bits, class_and_layout
from crossent.machine import ambient
from crossent.state import restore, snapshot
from crossent.subjects.confinement import close_all_but, end_with_parent, read_nothing
from crossent.subjects.ranks.messages import pack, receive, unpack
from crossent.subjects.ranks.protocol import OnRank, cut_axis, shard, split_of
from crossent.words import name_of_class, said, text_of

# The time limit, in seconds, of an operation on the store of a torchrun job. A rank may wait there for other ranks.
_SECONDS_TO_START = 180.0


@dataclass(frozen=True)
class Place:
    """The data with which a process joins a torch.distributed group as a rank.

    Attributes:
        store: the path of the file through which the ranks find each other, or a name in the store of a torchrun job.
            "" until the launcher chooses a file.
        seconds: the time limit of a collective operation.
    """

    rank: int
    ranks: int
    backend: str
    device: str
    store: str
    seconds: float

    @property
    def own_device(self) -> torch.device:
        """The device of this rank: the CPU, or one GPU."""
        if self.device == "cpu":
            return torch.device("cpu")
        count = torch.cuda.device_count()
        return torch.device("cuda", self.rank % count if self.backend == "nccl" else 0)

    def join(self) -> None:
        """Make this process a member of the group."""
        store: Any
        if os.path.isabs(self.store):
            store = FileStore(self.store, self.ranks)
        else:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            wait = timedelta(seconds=_SECONDS_TO_START)
            store = PrefixStore(self.store, TCPStore(address, port, is_master=False, timeout=wait))
        if self.device != "cpu":
            torch.cuda.set_device(self.own_device)
        dist.init_process_group(
            self.backend,
            store=store,
            rank=self.rank,
            world_size=self.ranks,
            timeout=timedelta(seconds=self.seconds),
        )


def run_rank(place: Place, stream: int, load: Callable[[], Any]) -> NoReturn:
    """Join the group, reply to requests until the calling process closes its socket, and end this process.

    `stream` is the file descriptor of the socket. `load` returns the user's class or function.
    """
    status = 0
    try:
        with suppress(OSError):
            os.setpgid(0, 0)  # so that the launcher can also end the processes that the user's code starts
        end_with_parent()
        faulthandler.disable()  # the report says how a rank ended
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        close_all_but({0, 1, 2, stream})
        read_nothing()
        connection = socket.socket(fileno=stream)
        with ambient():  # a rank may be forked inside `_OnRanks.forward`, where autograd is off
            connection.sendall(pack(_start(place, load)))
            _serve(connection)
    except OSError:  # the calling process has ended
        status = 1
    finally:
        os._exit(status)


def _serve(connection: socket.socket) -> None:
    while True:
        try:
            request = unpack(receive(connection))
        except (EOFError, OSError):
            return
        connection.sendall(pack(_reply(request)))
        for file in (sys.stdout, sys.stderr):
            with suppress(Exception):
                file.flush()


@dataclass
class _RankState:
    """The state of this rank: the user's loss, and the graphs of forward passes by key.

    `rule` is the user's `split`. A graph is the loss of a forward pass, with this rank's shard of the logits.
    """

    place: Place
    rule: str
    loss: OnRank
    graphs: dict[int, tuple[Any, Tensor]] = field(default_factory=dict)


_rank_state: _RankState | None = None


def _start(place: Place, load: Callable[[], Any]) -> dict[str, Any]:
    """Join the group, make the user's loss, and return a dict with the id of this process and any exception."""
    global _rank_state
    process = 0
    with suppress(OSError, ValueError):  # not Linux; in a PID namespace, the id in /proc is another than os.getpid()
        process = int(os.readlink("/proc/self"))
    try:
        place.join()
        given = load()
        _rank_state = _RankState(place, split_of(given), OnRank(given() if isinstance(given, type) else given))
    except BaseException as error:
        return {"process": process, "raised": exception_record(error)}
    return {"process": process}


def exception_record(error: BaseException) -> dict[str, Any]:
    """Return an exception as a dict: the names of its class and base classes, and its message."""
    return {"classes": [name_of_class(one) for one in type(error).__mro__], "message": text_of(error)}


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    assert _rank_state is not None
    before = snapshot()
    try:
        made = _ACTIONS[request["action"]](_rank_state, request)
    except BaseException as error:  # any exception of the user's code is a finding, even SystemExit
        made = {"raised": exception_record(error)}
    made["state"] = restore(before)
    return made


def _forward(state: _RankState, request: dict[str, Any]) -> dict[str, Any]:
    """Call the loss on the shard of this rank, and return the loss and the tensors that the call changed."""
    for key in request["freed"]:
        state.graphs.pop(key, None)
    logits, target, options = _arguments_on(state.place.own_device, request)
    local = shard(logits, state.rule, state.place.rank, state.place.ranks).detach()
    tensors = {"input": local, "target": target, **{n: one for n, one in options.items() if isinstance(one, Tensor)}}
    before = {name: bits(one).tobytes() for name, one in tensors.items()}
    local.requires_grad_(request["differentiable"])
    with torch.set_grad_enabled(request["differentiable"]), state.loss.context():
        loss = _loss_of(state, local, logits, target, options)
        full = _full(loss)
    if request["differentiable"]:
        state.graphs[request["key"]] = loss, local
    written = {n: one.detach().cpu() for n, one in tensors.items() if bits(one.detach()).tobytes() != before[n]}
    return {"loss": full.cpu(), "written": written}


def _arguments_on(device: torch.device, request: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return the logits, the target and the options of a request, on a device."""
    options = {name: one.to(device) if isinstance(one, Tensor) else one for name, one in request["options"].items()}
    return request["input"].to(device), request["target"].to(device), options


def _loss_of(state: _RankState, local: Tensor, logits: Tensor, target: Tensor, options: dict[str, Any]) -> Any:
    """Return the loss or, with normalization="tokens", this rank's part of the loss."""
    axis = cut_axis(state.rule, logits.dim())
    if not state.loss.of_tokens:
        return state.loss.forward(local, target, logits.shape, axis, options)
    own = shard(target, state.rule, state.place.rank, state.place.ranks)
    tokens = state.loss.tokens([own], target, logits, options)
    return state.loss.forward(local, own, logits.shape, axis, options, tokens)


def _accumulate(state: _RankState, request: dict[str, Any]) -> dict[str, Any]:
    """Return this rank's part of the loss, and the gradient of its shard, for each micro-batch."""
    device, place = state.place.own_device, state.place
    logits, target, options = _arguments_on(device, request)
    own = [shard(one, state.rule, place.rank, place.ranks) for one in torch.split(target, request["sizes"])]
    parts, gradients = [], []
    with torch.set_grad_enabled(request["differentiable"]):
        tokens = state.loss.tokens(own, target, logits, options)
        for of_batch, of_target in zip(torch.split(logits, request["sizes"]), own, strict=True):
            local = shard(of_batch, state.rule, place.rank, place.ranks).detach()
            local.requires_grad_(request["differentiable"])
            with state.loss.context():
                loss = state.loss.forward(local, of_target, of_batch.shape, 0, options, tokens)
                parts.append(_full(loss).cpu())
            if request["differentiable"]:
                gradients.append(_gradient_after(state, loss, local, request["upstream"].to(device)))
    return {"parts": parts, "gradients": gradients}


def _full(loss: Any) -> Tensor:
    """Return the loss as a dense tensor in new memory. For a DTensor, return its full tensor."""
    dense: Any = loss.full_tensor() if hasattr(loss, "full_tensor") else loss
    if type(dense) is not Tensor or dense.layout != torch.strided:
        raise TypeError(f"loss: got {class_and_layout(dense)}; expected a DTensor or {DENSE}")
    return dense.detach().clone()


def _backward(state: _RankState, request: dict[str, Any]) -> dict[str, Any]:
    """Run the backward pass of an earlier call, and return the gradient of this rank's shard of the logits."""
    if request["key"] not in state.graphs:
        lost = "the ranks were started again after the forward pass, so its graph is lost"
        raise RuntimeError(f"{lost}; run the forward pass again")
    loss, local = state.graphs[request["key"]]
    return {"gradient": _gradient_after(state, loss, local, request["upstream"].to(state.place.own_device))}


def _gradient_after(state: _RankState, loss: Any, local: Tensor, upstream: Tensor) -> Tensor:
    """Run the backward pass of `loss`, and return the gradient of `local`, this rank's shard of the logits."""
    local.grad = None
    with state.loss.context():
        state.loss.backward(loss, upstream.to(loss.dtype) if state.loss.of_tokens else upstream)
    gradient = _gradient_of(local)
    if gradient is None and local.numel():
        how = "compute the loss from the logits without detach, or set their .grad in the method backward"
        raise TypeError(f"logits: .grad is None after the backward pass on this rank; {how}")
    return (local if gradient is None else gradient).detach().cpu()


# In a function that has set `local.grad` to None, mypy would infer None.
def _gradient_of(local: Tensor) -> Tensor | None:
    return local.grad


class _ProbeError(Exception):
    """The exception that ends a context in :func:`_use_context`."""


def _use_context(state: _RankState, request: dict[str, Any]) -> dict[str, Any]:
    """Test the context of the loss, and return {"problems": …}, a list of phrases.

    The scenario "twice" enters a second context inside the first. The scenario "exception" raises an exception in a
    context, and compares the calls before and after this context.
    """
    if request["scenario"] == "twice":
        try:
            with state.loss.context(), state.loss.context():
                pass
        except Exception as error:
            return {"problems": [f"entering a second context inside the first raises {said(error)}"]}
        return {"problems": []}
    before = _outside(state, request)
    with suppress(_ProbeError), state.loss.context():
        raise _ProbeError
    after = _outside(state, request)
    of_after = f"after an exception in the context, a call outside of the context {after}"
    wrong = f"{of_after}\nbefore the exception, the call {before}"
    return {"problems": [] if before == after else [wrong]}


def _outside(state: _RankState, request: dict[str, Any]) -> str:
    """Run a forward and a backward pass outside of the context, and return a phrase about the results or the error."""
    logits, target, options = _arguments_on(state.place.own_device, request)
    local = shard(logits, state.rule, state.place.rank, state.place.ranks).detach().requires_grad_()
    try:
        loss = _loss_of(state, local, logits, target, options)
        full = _full(loss)
        state.loss.backward(loss, torch.ones_like(full))
    except Exception as error:
        return f"raises {said(error)}"
    parts = {"loss": full} if local.grad is None else {"loss": full, "gradient": local.grad}
    checksum = zlib.crc32(b"".join(bits(one).tobytes() for one in parts.values()))
    return f"returns a {' and a '.join(parts)} with the checksum {checksum:08x}"


_ACTIONS: dict[str, Callable[[_RankState, dict[str, Any]], dict[str, Any]]] = {
    "forward": _forward,
    "accumulate": _accumulate,
    "backward": _backward,
    "use_context": _use_context,
}


def collective_limit(seconds: float) -> float:
    """Round the time limit of a collective operation up to whole seconds, at least 1."""
    return max(1.0, math.ceil(seconds))
