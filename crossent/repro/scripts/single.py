"""Script functions for the checks of one call, of a repeated call, and of a call on repeated logits."""

# mypy: allow-untyped-defs, allow-untyped-calls

import math

import torch

from crossent.repro.scripts.case import (
    device,
    each_row,
    exact,
    gib,
    given,
    index,
    logits,
    many,
    options,
    other,
    part,
    subject,
    target,
    times,
    upstream,
)
from crossent.repro.scripts.functions import (
    bits,
    cannot_run,
    evaluate,
    fresh,
    judged,
    memory,
    overwrite,
    poison,
    require_shape,
    verdict,
)


def call_once():
    """Return the result of a call with the inputs of the case."""
    return evaluate(*given)


def judge_number(result):
    """Compare one number of a result with the exact value, and end the script."""
    verdict(*judged(result[part][index].item(), exact))


def judge_sign(result):
    """Judge whether a number of the loss is below 0 by more than the error bound, and end the script."""
    got = result[part][index].item()
    verdict(*(judged(got, 0.0) if got < 0 else (False, f"got {got!r}, which is not negative")))


def judge_row_sum(result):
    """Compare the sum of a row of the gradient with 0, and end the script."""
    row = result[part].movedim(min(1, logits.dim() - 1), -1)[index].tolist()
    verdict(*judged(math.fsum(row) if all(map(math.isfinite, row)) else sum(row), exact))


def show_call():
    """Call the subject, read all values of the result, and print the loss."""
    try:
        result = evaluate(*given)
    except SystemExit as error:  # the status of the exception may be 0
        verdict(True, f"the call raised {error!r}")
    bits(result)  # reads the values, which a tensor on the meta device does not have
    print(f"loss {result['loss']}")


def check_shape():
    """Check the dtype, the shape and the device of the loss."""
    require_shape(evaluate(*given)["loss"], *given)


def arguments():
    """Return the shape, strides, offset and memory of each argument and of the upstream gradient, by name."""
    tensors = {"input": logits, "target": target, "the upstream gradient": upstream}
    tensors |= {name: value for name, value in options.items() if torch.is_tensor(value)}
    return {name: (view(one), memory(one).tolist()) for name, one in tensors.items()}


def view(tensor):
    """Return the shape, the strides and the offset of a tensor."""
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def require_unchanged(before, after, when=""):
    """End the script with status 1 if a value of `before` differs in `after`. The message ends in `when`."""
    # the state of CUDA's generators is [] until a call initializes CUDA
    names = [name for name in before if before[name] not in (after[name], [])]
    if names:
        verdict(True, f"the call changed {', '.join(names)}{when}")


def check_arguments():
    """Check that a call leaves its arguments unchanged, and that no result shares memory with an argument."""
    passed = []

    def watched(input, target, **options):
        tensors = {"input": input, "target": target, **options}
        for name, one in tensors.items():
            if torch.is_tensor(one):
                passed.append((name, one, one.requires_grad, view(one)))
        loss = subject(input, target, **options)
        require_unchanged(before, arguments(), " in the forward pass")
        return loss

    before = arguments()
    result = evaluate(*given, loss_of=watched)
    require_unchanged(before, arguments(), " in the backward pass")
    for name, argument, wanted, view_before in passed:
        if argument.is_leaf and argument.grad is not None:
            verdict(True, f"the call set the .grad of {name}")
        if argument.requires_grad != wanted:
            verdict(True, f"the call changed the requires_grad of {name}")
        if view(argument) != view_before:
            verdict(True, f"the call changed the shape, strides or offset of {name}")
    for name, tensor in result.items():
        for argument_name, argument in {"input": logits, "target": target, **options}.items():
            if not torch.is_tensor(argument) or not tensor.numel():
                continue
            if tensor.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr():
                verdict(True, f"the {name} shares memory with {argument_name}")


def numpy_state():
    """Return the state of numpy's random generator, and how numpy handles floating-point errors.

    Without numpy, return None twice.
    """
    try:
        import numpy
    except ImportError:
        return None, None
    return [numpy.array(one).tolist() for one in numpy.random.get_state()], numpy.geterr()


def state():
    """Return the global state of torch, Python and numpy, by name."""
    import os
    import random
    import warnings

    subnormal = torch.tensor(2.0**-149, dtype=torch.float32, device="cpu")
    generators = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    if hasattr(torch, "get_autocast_dtype"):
        autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    else:
        autocast = [
            (torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()),
            (torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()),
        ]
    try:
        precision = [torch.get_float32_matmul_precision()]
    except RuntimeError:  # torch 2.9 and newer, if the precisions of the backends differ
        get = torch._C._get_fp32_precision_getter
        precision = [get(backend, "matmul") for backend in ("cuda", "mkldnn")]
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda tracing: None)
    modes = [torch._C._get_function_stack_at(at) for at in range(torch._C._len_torch_function_stack())]
    devices = [mode for mode in modes if type(mode).__name__ == "DeviceContext"]
    modes = [mode for mode in modes if mode not in devices]
    modes += [torch._C._get_dispatch_stack_at(at) for at in range(torch._C._len_torch_dispatch_stack())]
    settings = "mkldnn_enabled", "mkldnn_deterministic", "cudnn_enabled", "cudnn_benchmark", "cudnn_deterministic"
    compilers = "TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TORCH_WARM_POOL", "TRITON_", "CUDA_HOME", "CUDA_MODULE_LOADING"
    numpy_generator, numpy_errors = numpy_state()
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": (torch.empty(0).device, len(devices)),
        "the gradient mode": torch.is_grad_enabled(),
        "autocast": (autocast, torch.is_autocast_cache_enabled()),
        "the deterministic mode": (torch.are_deterministic_algorithms_enabled(), warn_only),
        "the number of threads": torch.get_num_threads(),
        "the multithreading mode of autograd": getattr(torch._C, "_is_multithreading_enabled", lambda: None)(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "the hooks of saved tensors": hooks(True),
        "the modes of torch": tuple(modes),
        "the float32 matmul precision": precision,
        "the settings of mkldnn and cuDNN": [getattr(torch._C, f"_get_{name}", int)() for name in settings],
        "the flush of subnormal numbers": bool(subnormal * 1 == 0),
        "the random generator": torch.random.get_rng_state().tolist(),
        "the random generators of CUDA": [generator.tolist() for generator in generators],
        "Python's random generator": random.getstate(),
        "numpy's random generator": numpy_generator,
        "numpy's handling of floating-point errors": numpy_errors,
        "the filters of warnings": tuple(one for one in warnings.filters if one[2].__module__ == "builtins"),
        "the environment variables": {
            name: value for name, value in os.environ.items() if not name.startswith(compilers)
        },
    }


def require_state(before, modules):
    """End the script with status 1 if the state differs from `before`, when Python had imported `modules` modules."""
    import sys

    after, variables = state(), "the environment variables"
    if len(sys.modules) > modules:  # a library may set variables when it is imported
        after[variables] = {name: value for name, value in after[variables].items() if name in before[variables]}
    require_unchanged(before, after)


def check_state():
    """Check that a call leaves the global state unchanged."""
    import sys

    before, modules = state(), len(sys.modules)
    evaluate(*given)
    require_state(before, modules)


def check_ignored_rows():
    """Check that the loss and the gradient of ignored rows are 0."""
    axis = min(1, logits.dim() - 1)
    x = logits.movedim(axis, -1)
    ignored = target.long() == options.get("ignore_index", -100)
    has_softmax = x.amax(-1).isfinite()  # in any other row, the gradient may be NaN
    rows = {"gradient": ignored & has_softmax}
    if options["reduction"] == "none":
        rows["loss"] = ignored
    result = evaluate(*given)
    require_shape(result["loss"], *given)
    for name, those in rows.items():
        if name not in result:  # the subject has no gradients
            continue
        numbers = result[name] if name == "loss" else result[name].movedim(axis, -1)
        if (numbers[those] != 0).any():
            verdict(True, f"{name}: got {numbers[those].tolist()} in the ignored rows; expected 0")


def check_repeat():
    """Check that a second call gives the same bits, and that another call leaves the first result unchanged."""
    result = evaluate(*fresh(*given))
    first, again = bits(result), fresh(*other)
    tensors = {"input": again[0], "target": again[1], **again[2]}
    leaves = {"gradient": "input", "target_gradient": "target"}
    leaves |= {"weight_gradient": "linear_weight", "bias_gradient": "linear_bias"}
    for gradient, name in leaves.items():
        if gradient in result:
            tensors[name].requires_grad_()  # `evaluate` passes the same leaf in both calls
    try:
        evaluate(*again)
    except Exception as error:
        print(f"the call with other numbers raised {error!r}")
    if not overwrite([*tensors.values(), again[3]], [logits, target, *options.values(), upstream]):
        again = fresh(*given)
    poison(*given)
    later = bits(result)
    if bits(evaluate(*again)) != first:
        verdict(True, "a second call with the same arguments gives different bits")
    if later != first:
        verdict(True, "a later call writes into the result of the first call")


def repeated(tile):
    """Return `times` copies of `tile` along the first axis, with the strides of `tile`."""
    sizes = times * len(tile), *tile.shape[1:]
    whole = torch.empty_strided(sizes, tile.stride(), dtype=tile.dtype, device=tile.device)
    block = tile.repeat(min(times, max(1, 2**24 // max(1, tile.numel()))), *[1] * (tile.dim() - 1))
    for start in range(0, len(whole), len(block)):
        rows = whole[start : start + len(block)]
        rows.copy_(block[: len(rows)])
    return whole


def call_on_repeated():
    """Return the result of a call on the inputs of the case, repeated along the batch."""
    print(f"this script needs about {gib:.1f} GiB of memory")
    every = upstream
    try:
        if upstream.dim():
            sizes = times * len(upstream), *upstream.shape[1:]
            every = repeated(upstream) if each_row else upstream.flatten()[0].expand(sizes)
        whole = repeated(logits), repeated(target), options, every
        result = evaluate(*whole)
    except (RuntimeError, MemoryError) as error:
        no_memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in str(error)
        if no_memory:
            cannot_run(f"{type(error).__name__}: {error}")
        raise
    require_shape(result["loss"], *whole)
    return result


def check_memory():
    """Check that a large call takes less memory than its logits would take: one number for each row and class."""
    rows, classes = many
    x = logits.repeat(-(-rows // len(logits)), 1)[:rows]
    y = target.repeat(-(-rows // len(target)))[:rows]
    weight = options["linear_weight"]
    weight = weight.repeat(-(-classes // len(weight)), 1)[:classes]
    everything = x, y, {**options, "linear_weight": weight}, upstream
    most = rows * classes * x.element_size()
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        evaluate(*everything)
        grown = torch.cuda.max_memory_allocated(device) - before
    else:
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # resets VmHWM, the largest memory of this process
            before = resident("VmRSS")
        except OSError as error:
            cannot_run(f"the measurement needs CUDA, or Linux with a writable /proc/self/clear_refs: {error}")
        evaluate(*everything)
        grown = resident("VmHWM") - before
    took, due = (f"{size / 2**20:.0f} MiB" for size in (grown, most))
    verdict(grown >= most, f"the call took {took}; one number for each row and class would take {due}")


def resident(name):
    """Return the memory of this process in bytes: "VmRSS" is the current memory, "VmHWM" the largest since a reset."""
    with open("/proc/self/status") as file:
        (found,) = (line.split()[1] for line in file if line.startswith(f"{name}:"))
    return int(found) * 1024
