"""State: what of torch is global, and must be after a call what it was before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_SUBNORMAL = torch.tensor(2.0**-149)


def _flushes() -> bool:
    # There is nothing to ask. Libraries set it too: of gcc before 13, those that are made with -ffast-math, by being
    # loaded, as the compiled code of older versions of torch is.
    return bool(_SUBNORMAL * 1 == 0)


def _cuda_generators() -> list[torch.Tensor]:
    """The state of each CUDA device's generator; none before CUDA is initialised, which reading would do."""
    initialised = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch annotates it in part
    return torch.cuda.get_rng_state_all() if initialised else []


# What can be read, and how it is set back.
STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the gradient mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "the deterministic mode": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "the flush of subnormal numbers": (_flushes, torch.set_flush_denormal),
    "the random generator": (torch.random.get_rng_state, torch.random.set_rng_state),
    "the random generators of CUDA": (_cuda_generators, torch.cuda.set_rng_state_all),
}


def snapshot() -> dict[str, Any]:
    """All of it, as it is."""
    return {name: read() for name, (read, _) in STATES.items()}


def restore(before: dict[str, Any]) -> list[str]:
    """Set back what is no longer as it was; the names of that."""
    names = [name for name, (read, _) in STATES.items() if not _same(read(), before[name])]
    for name in names:
        STATES[name][1](before[name])
    return names


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        # As many as there are devices; none where CUDA has been initialised in between, and nothing is known.
        return len(one) != len(other) or all(map(torch.equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
