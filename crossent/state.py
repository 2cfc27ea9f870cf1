"""Read and restore the global state of torch, numpy and Python, which a call must not change."""

from __future__ import annotations

import ctypes
import os
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import overrides
from torch.utils import _python_dispatch
from torch.utils._device import DeviceContext

_SUBNORMAL = 2.0**-1074


def _flushes() -> bool:
    """Return whether the processor replaces subnormal numbers by 0."""
    # torch has no function to read this mode, so a multiplication tests it. A library that gcc before 13 built with
    # -ffast-math sets the mode when it is loaded. Older versions of torch build such libraries in torch.compile.
    return _SUBNORMAL * 1.0 == 0


def _torch_generator() -> bytes:
    return torch.random.get_rng_state().numpy().tobytes()  # comparing bytes is ten times as fast as comparing tensors


def _set_torch_generator(to: bytes) -> None:
    torch.random.set_rng_state(torch.frombuffer(bytearray(to), dtype=torch.uint8))


_MT19937_BYTES = 4 * 625  # 624 numbers and a position, in numpy's struct of this generator
_known_numpy: tuple[object, bytes, dict[str, Any]] | None = None


def _numpy_generator() -> dict[str, Any]:
    """Return the state of numpy's global generator."""
    global _known_numpy
    generator: Any = np.random.mtrand._rand._bit_generator
    if type(generator) is not np.random.MT19937:
        return dict(np.random.get_state(legacy=False))
    # Reading the state takes 0.1 ms; comparing the memory is faster.
    bits = ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    if _known_numpy is None or _known_numpy[0] is not generator or _known_numpy[1] != bits:
        state = dict(np.random.get_state(legacy=False))
        if state["has_gauss"]:  # numpy stores the Gaussian number for the next draw outside this memory
            return state
        _known_numpy = generator, bits, state
    return _known_numpy[2]


def _set_numpy_generator(to: dict[str, Any]) -> None:
    global _known_numpy
    _known_numpy = None  # its Gaussian number may differ
    np.random.set_state(to)


def _cuda_generators() -> list[torch.Tensor]:
    # Reading a state would initialise CUDA.
    initialised = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch annotates this module in part
    return torch.cuda.get_rng_state_all() if initialised else []


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _autocast() -> tuple[Any, ...]:
    """Return whether autocast is on and its dtype, for CPU and for CUDA, and whether autocast caches weights."""
    cached = torch.is_autocast_cache_enabled()
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and newer, where the other functions warn
        cpu, cuda = ((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))
        return cpu, cuda, cached
    return (
        (torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()),
        (torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()),
        cached,
    )


def _set_autocast(to: tuple[Any, ...]) -> None:
    (cpu, cpu_dtype), (cuda, cuda_dtype), cached = to
    torch.set_autocast_cache_enabled(cached)
    if hasattr(torch, "get_autocast_dtype"):
        for kind, on, dtype in (("cpu", cpu, cpu_dtype), ("cuda", cuda, cuda_dtype)):
            torch.set_autocast_enabled(kind, on)
            torch.set_autocast_dtype(kind, dtype)
    else:
        torch.set_autocast_cpu_enabled(cpu)
        torch.set_autocast_cpu_dtype(cpu_dtype)
        torch.set_autocast_enabled(cuda)
        torch.set_autocast_gpu_dtype(cuda_dtype)


def _default_device() -> tuple[torch.device, int]:
    """Return the device of new tensors, and the number of entered modes that choose a device."""
    # With torch.set_default_device("cpu"), torch enters such a mode, which makes every call slower.
    entered = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return torch.empty(0).device, sum(isinstance(mode, DeviceContext) for mode in entered)


def _set_default_device(to: tuple[torch.device, int]) -> None:
    torch.set_default_device(None)  # None removes the mode of the default device
    if _default_device() != to:
        torch.set_default_device(to[0])


# The settings of mkldnn and cuDNN that torch reads in each call.
_SETTINGS = ("mkldnn_enabled", "mkldnn_deterministic", "cudnn_enabled", "cudnn_benchmark", "cudnn_deterministic")
# Older versions of torch lack some of these settings.
_GET = tuple(getattr(torch._C, f"_get_{name}") for name in _SETTINGS if hasattr(torch._C, f"_set_{name}"))
_SET = tuple(getattr(torch._C, f"_set_{name}") for name in _SETTINGS if hasattr(torch._C, f"_set_{name}"))


def _settings() -> tuple[bool, ...]:
    return tuple([get() for get in _GET])  # a list is faster than a generator


def _set_settings(to: tuple[bool, ...]) -> None:
    for set_to, value in zip(_SET, to, strict=True):
        set_to(value)


# torch and Triton set variables with these names when a call first needs a compiler or CUDA.
_OF_TORCH = ("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TORCH_WARM_POOL", "TRITON_", "CUDA_HOME", "CUDA_MODULE_LOADING")


class _Environment(NamedTuple):
    """The environment variables as Python stores them, and the number of imported modules."""

    variables: dict[Any, Any]
    modules: int


def _environment() -> _Environment:
    stored: Any = os.environ  # to decode the variables for each call would take 30 times as long
    return _Environment(stored._data.copy(), len(sys.modules))


def _changed_variables(now: _Environment, before: _Environment) -> list[str]:
    """Return the names of the variables that changed, except those that torch or a new module may set."""
    if now.variables == before.variables:
        return []
    names = before.variables if now.modules > before.modules else {**before.variables, **now.variables}
    changed = [os.fsdecode(name) for name in names if now.variables.get(name) != before.variables.get(name)]
    return [name for name in changed if not name.startswith(_OF_TORCH)]


def _set_environment(to: _Environment) -> None:
    before = {os.fsdecode(name): os.fsdecode(value) for name, value in to.variables.items()}
    for name in _changed_variables(_environment(), to):
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]


# The backends whose matmul precisions torch 2.9 and newer can set separately. torch's functions have no public name.
_BACKENDS = ("cuda", "mkldnn")


def _matmul_precision() -> str | tuple[str, ...]:
    """Return the float32 matmul precision, such as "highest"; a tuple if the precisions of the backends differ."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the backends have different precisions
        get: Any = torch._C._get_fp32_precision_getter
        return tuple(get(backend, "matmul") for backend in _BACKENDS)


def _set_matmul_precision(to: str | tuple[str, ...]) -> None:
    if isinstance(to, str):
        torch.set_float32_matmul_precision(to)
        return
    for backend, precision in zip(_BACKENDS, to, strict=True):
        torch._C._set_fp32_precision_setter(backend, "matmul", precision)


def _filters() -> list[Any]:
    """Return the warning filters for builtin categories, such as UserWarning. A call must not change these filters."""
    # Libraries such as sympy, which torch may import during a call, add filters for their own categories.
    return [one for one in _all_filters() if _is_builtin(one[2])]


def _set_filters(to: list[Any]) -> None:
    others = [one for one in _all_filters() if not _is_builtin(one[2])]
    warnings.resetwarnings()  # tells Python that the filters have changed
    _all_filters()[:] = [*others, *to]


def _all_filters() -> Any:
    return warnings.filters


def _is_builtin(category: Any) -> bool:
    return getattr(category, "__module__", "builtins") == "builtins"  # a category can be a tuple of classes


# These functions have no public name, and older versions of torch lack some of them.
_autograd: Any = torch._C._autograd
_threaded = getattr(torch._C, "_is_multithreading_enabled", lambda: None)
_set_threaded = getattr(torch._C, "_set_multithreading_enabled", lambda to: None)
_HAS_HOOKS = hasattr(_autograd, "_top_saved_tensors_default_hooks")


def _hooks() -> Any:
    """Return the pair of hooks for saved tensors that was installed last, or None."""
    return _autograd._top_saved_tensors_default_hooks(True) if _HAS_HOOKS else None


def _set_hooks(to: Any) -> None:
    while (top := _hooks()) is not None and top != to:
        _autograd._pop_saved_tensors_default_hooks()
    if top != to:  # the call removed the hooks of its caller
        _autograd._push_saved_tensors_default_hooks(*to)


def _function_modes() -> tuple[Any, ...]:
    """Return the entered modes of class TorchFunctionMode, except the mode of the default device."""
    entered = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return tuple(mode for mode in entered if not isinstance(mode, DeviceContext))


def _dispatch_modes() -> tuple[Any, ...]:
    return tuple(map(torch._C._get_dispatch_stack_at, range(torch._C._len_torch_dispatch_stack())))


def _modes() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return _function_modes(), _dispatch_modes()


def _set_modes(to: tuple[tuple[Any, ...], tuple[Any, ...]]) -> None:
    kinds: Any = (_function_modes, overrides), (_dispatch_modes, _python_dispatch)
    for modes, (entered, module) in zip(to, kinds, strict=True):
        while entered() != modes[: len(entered())]:
            module._pop_mode()
        for mode in modes[len(entered()) :]:
            module._push_mode(mode)


# The parts of the global state: for each part, a function that reads the part and a function that sets the part.
STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (_default_device, _set_default_device),
    "the gradient mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "autocast": (_autocast, _set_autocast),
    "the deterministic mode": (
        _deterministic,
        lambda to: torch.use_deterministic_algorithms(to[0], warn_only=to[1]),
    ),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the multithreading mode of autograd": (_threaded, _set_threaded),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "the hooks of saved tensors": (_hooks, _set_hooks),
    "the modes of torch": (_modes, _set_modes),
    "the float32 matmul precision": (_matmul_precision, _set_matmul_precision),
    "the settings of mkldnn and cuDNN": (_settings, _set_settings),
    "the flush of subnormal numbers": (_flushes, torch.set_flush_denormal),
    "the random generator": (_torch_generator, _set_torch_generator),
    "the random generators of CUDA": (_cuda_generators, torch.cuda.set_rng_state_all),
    "Python's random generator": (random.getstate, random.setstate),
    "numpy's random generator": (_numpy_generator, _set_numpy_generator),
    "numpy's handling of floating-point errors": (np.geterr, lambda to: np.seterr(**to)),
    "the filters of warnings": (_filters, _set_filters),
    "the environment variables": (_environment, _set_environment),
}


def snapshot() -> dict[str, Any]:
    """Return the value of each part of the global state, by the names in `STATES`."""
    return {name: read() for name, (read, _) in STATES.items()}


def restore(before: dict[str, Any]) -> list[str]:
    """Restore each part of the global state that differs from `before`, a snapshot. Return the names of these parts."""
    names = [name for name, (read, _) in STATES.items() if not _same(read(), before[name])]
    for name in names:
        STATES[name][1](before[name])
    return names


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, _Environment):
        return not _changed_variables(one, other)
    if isinstance(one, list) and all(isinstance(each, torch.Tensor) for each in one + other):
        # The list has one state for each CUDA device. The lengths differ only if the call initialised CUDA. Then the
        # earlier state is unknown, and counts as the same.
        return len(one) != len(other) or all(map(torch.equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
