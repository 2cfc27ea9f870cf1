"""Snippets: the functions that scripts of `script` define, as text that needs torch and nothing else.

They are put together and never filled in. What they are about stands in the script by name: `device`, `subject`, the
`own_dtype` of its results, and the number `found`, how much is `allowed`, and `versus` what.
"""

TENSOR = """
def tensor(bits, dtype, sizes, strides, offset):
    raw = bytearray(zlib.decompress(base64.b85decode(bits)))
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.to(device).as_strided(sizes, strides, offset)
"""
VERDICT = """
def verdict(wrong, message):
    print(f"torch {torch.__version__}: {message}")
    print("wrong" if wrong else "right", flush=True)
    raise SystemExit(wrong)
"""
UNASKED = """
def unasked(message):
    print(f"torch {torch.__version__}: it cannot be asked here: {message}")
    raise SystemExit(2)
"""

# Subjects, by name.
SUBJECTS = {
    "torch": """
def subject(input, target, **options):
    return torch.nn.CrossEntropyLoss(**options)(input, target)
""",
    "torch_nll": """
def subject(input, target, weight=None, label_smoothing=0.0, **options):
    axis = min(1, input.dim() - 1)
    log_probs = torch.log_softmax(input.movedim(axis, -1), -1).movedim(-1, axis)
    return torch.nn.functional.nll_loss(log_probs, target, weight, **options)
""",
    "scalar": """
def subject(*arguments, **options):  # all but torch that this needs
    from crossent import scalar

    given = [tensor.tolist() for tensor in arguments]
    options = {k: v.tolist() if torch.is_tensor(v) else v for k, v in options.items()}
    return torch.tensor(scalar(*given, **options), dtype=torch.float64)
""",
}

EVALUATE = '''
def evaluate(logits, target, options, upstream, loss_of=None):
    """The loss, and its gradients: of the logits, and of probabilities."""
    logits = logits.detach().requires_grad_()
    target = target.detach().requires_grad_(target.is_floating_point())
    loss = (loss_of or subject)(logits, target, **options)
    assert torch.is_tensor(loss) and loss.layout == torch.strided and not loss.is_complex(), type(loss)
    assert loss.requires_grad, "the loss is cut off from the logits"
    result = {"loss": loss.detach()}
    if loss.shape == upstream.shape:
        wanted = {"gradient": logits, "target_gradient": target}
        wanted = {name: of for name, of in wanted.items() if of.requires_grad}
        result |= zip(wanted, torch.autograd.grad(loss, list(wanted.values()), upstream.to(loss.dtype)))
    return result
'''
LOSS_ALONE = '''
def evaluate(logits, target, options, upstream, loss_of=None):
    """The loss."""
    loss = (loss_of or subject)(logits, target, **options)
    assert torch.is_tensor(loss) and loss.layout == torch.strided and not loss.is_complex(), type(loss)
    return {"loss": loss}
'''
SHAPED = '''
def shaped(loss, logits, target, options, upstream):
    """Stop where the loss is not of the dtype, shape and device that these arguments call for."""
    dtype = torch.promote_types(logits.dtype, target.dtype) if target.is_floating_point() else logits.dtype
    due = own_dtype or dtype, upstream.shape, logits.device
    if (loss.dtype, loss.shape, loss.device) != due:
        got = f"{loss.dtype} {tuple(loss.shape)} on {loss.device}"
        verdict(True, f"got {got}; expected {due[0]} {tuple(due[1])} on {due[2]}")
'''
JUDGED = '''
def judged(got, exact):
    """Whether a number is wrong, and how far it is off."""
    same = got == exact or (got != got and exact != exact)
    off = 0.0 if same else abs(got - exact)
    wrong = not same and (got == found or not off <= allowed)
    return wrong, f"got {got!r}, {versus} {exact!r}, off by {off:.6g}, allowed {allowed:.6g}"
'''
FRESH = '''
def fresh(logits, target, options, upstream):
    """The same arguments in memory of their own, laid out as they are."""

    def copy(value):
        if not torch.is_tensor(value):
            return value
        whole = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage())
        return whole.clone().as_strided(value.shape, value.stride(), value.storage_offset())

    return copy(logits), copy(target), {name: copy(value) for name, value in options.items()}, copy(upstream)
'''
POISON = '''
def poison(logits, target, options, upstream):
    """Fill with NaN, and give back, memory of the sizes that results will have."""
    for like in (logits, upstream, target):
        held = [torch.full(like.shape, torch.nan, dtype=logits.dtype, device=logits.device) for _ in range(8)]
        del held
'''
BITS = '''
def bits(result):
    """Every bit of a result, whatever NaN is made of."""
    plain = {name: part.where(~part.isnan(), torch.nan).flatten() for name, part in result.items()}
    return {name: (result[name].shape, part.dtype, part.view(torch.uint8).tolist()) for name, part in plain.items()}
'''
MEMORY = '''
def memory(tensor):
    """All bytes of the storage that it is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.detach().untyped_storage())
'''
ARGUMENTS = '''
def arguments():
    """Every bit of the arguments, and of the memory that they are views of."""
    tensors = {"input": logits, "target": target, "the upstream gradient": upstream}
    tensors |= {name: value for name, value in options.items() if torch.is_tensor(value)}
    views = {name: (one.shape, one.stride(), one.storage_offset()) for name, one in tensors.items()}
    return {name: (view, memory(tensors[name]).tolist()) for name, view in views.items()}
'''
WATCHED = '''
def watched(input, target, **options):
    """The loss; what it was given, and whether that wanted a gradient, is kept."""
    tensors = {"input": input, "target": target, **options}
    passed.extend((name, one, one.requires_grad) for name, one in tensors.items() if torch.is_tensor(one))
    return subject(input, target, **options)
'''
STATE = '''
def state():
    """What is global, of torch, Python and numpy, where that is there."""
    import random
    import warnings

    try:
        import numpy
    except ImportError:
        numpy = None
    subnormal = torch.tensor(2.0**-149, dtype=torch.float32, device="cpu")
    generators = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    if hasattr(torch, "get_autocast_dtype"):
        autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    else:
        autocast = [
            (torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()),
            (torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()),
        ]
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda tracing: None)
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.empty(0).device,
        "the gradient mode": torch.is_grad_enabled(),
        "autocast": autocast,
        "the deterministic mode": (torch.are_deterministic_algorithms_enabled(), warn_only),
        "the number of threads": torch.get_num_threads(),
        "the threads of autograd": getattr(torch._C, "_is_multithreading_enabled", lambda: None)(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "the hooks of saved tensors": hooks(True),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "the flush of subnormal numbers": bool(subnormal * 1 == 0),
        "the random generator": torch.random.get_rng_state().tolist(),
        "the random generators of CUDA": [generator.tolist() for generator in generators],
        "Python's random generator": random.getstate(),
        "numpy's random generator": numpy and [numpy.array(one).tolist() for one in numpy.random.get_state()],
        "numpy's answer to floating-point errors": numpy and numpy.geterr(),
        "the filters of warnings": tuple(one for one in warnings.filters if one[2].__module__ == "builtins"),
    }
'''
CHANGED = '''
def changed(before, after):
    """Stop where something is no longer as it was."""
    names = [name for name in before if before[name] not in (after[name], [])]
    if names:
        verdict(True, f"it changed {', '.join(names)}")
'''

# Of one check each.
BOTH = '''
def both(input, target, **options):
    """A loss that goes back once before it is returned, with another one of the same logits, and once more."""
    another = other[1].detach().requires_grad_(target.requires_grad)
    one, two = subject(input, target, **options), subject(input, another, **other[2])
    for loss, of, by in ((one, target, upstream), (two, another, upstream), (one, target, -2 * upstream)):
        wanted = {"gradient": input, "target_gradient": of}
        wanted = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
        gradients = torch.autograd.grad(loss, list(wanted.values()), by.to(loss.dtype), retain_graph=True)
        seen.append(bits({"loss": loss.detach(), **dict(zip(wanted, gradients))}))
    return one
'''
LOSS_OF = """
def loss_of(logits, target):
    return subject(logits, target, **options)
"""
PULL = '''
def pull(logits, target):
    """The loss, and what takes an upstream gradient back."""
    if target.is_floating_point():
        return torch.func.vjp(loss_of, logits, target)
    return torch.func.vjp(lambda logits: loss_of(logits, target), logits)
'''
GRADIENTS_OF = """
def gradients_of(logits, target, upstream):
    loss, back = pull(logits, target)
    return loss, *back(upstream.to(loss.dtype))
"""
UNDER_AUTOCAST = """
def under_autocast(*arguments, **options):
    with torch.autocast(logits.device.type, dtype=torch.bfloat16):
        return subject(*arguments, **options)
"""
EMPTY = """
def empty(value):
    if not torch.is_tensor(value):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
"""
MODULE = """
class Module(torch.nn.Module):
    def __init__(self, loss, names, options):
        super().__init__()
        self.loss, self.names, self.options = loss, names, options

    def forward(self, logits, target, *tensors):
        return self.loss(logits, target, **self.options, **dict(zip(self.names, tensors)))
"""
CALL = """
def call(*arguments, **options):  # in no file of torch's: it would not be compiled
    return subject(*arguments, **options)
"""
REPEATED = '''
def repeated(tile):
    """The tile so many times along its first axis, laid out as it is."""
    sizes = times * len(tile), *tile.shape[1:]
    whole = torch.empty_strided(sizes, tile.stride(), dtype=tile.dtype, device=tile.device)
    block = tile.repeat(min(times, max(1, 2**24 // max(1, tile.numel()))), *[1] * (tile.dim() - 1))
    for start in range(0, len(whole), len(block)):
        rows = whole[start : start + len(block)]
        rows.copy_(block[: len(rows)])
    return whole
'''
UNTOUCHED = '''
def untouched(way, x, y, its_options, x_wanted, y_wanted):
    """Stop where arguments, copies of the given ones, are no longer what they were."""
    tensors = {"input": (x, logits, x_wanted), "target": (y, target, y_wanted)}
    tensors |= {name: (its_options[name], one, False) for name, one in options.items() if torch.is_tensor(one)}
    for name, (one, before, wanted) in tensors.items():
        views = [(each.shape, each.stride(), each.storage_offset()) for each in (one, before)]
        if views[0] != views[1] or not memory(one).equal(memory(before)):
            verdict(True, f"{way}: it wrote into {name}")
        if one.is_leaf and one.grad is not None:
            verdict(True, f"{way}: it set the .grad of {name}")
        if one.requires_grad != wanted:
            verdict(True, f"{way}: it changed the requires_grad of {name}")
'''
CLONED = '''
def cloned(input, target, **options):
    """The loss of logits that an operation has made."""
    input = input.clone()
    made.append((input.detach(), input.detach().clone()))
    return subject(input, target, **options)
'''
AT_ONCE = '''
def at_once(*all_inputs):
    """The result of each, in a thread each, all of which go forward before any goes back."""
    barrier, results, errors = threading.Barrier(len(all_inputs)), {}, []

    def forward(*arguments, **options):
        barrier.wait()
        loss = subject(*arguments, **options)
        barrier.wait()
        return loss

    def work(at, inputs):
        try:
            results[at] = evaluate(*fresh(*inputs), forward)
        except BaseException as error:
            barrier.abort()
            errors.append(error)

    threads = [threading.Thread(target=work, args=numbered) for numbered in enumerate(all_inputs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [result for _, result in sorted(results.items())]
'''
