"""Functions that most scripts use: call the subject, judge one number of the result, end the script."""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: B905  # a script may run on Python 3.9, whose zip has no `strict`

import base64
import zlib

import torch

from crossent.repro.scripts.case import allowed, device, found, other, own_dtype, subject, versus


def tensor(bits, dtype, sizes, strides, offset):
    """Return a tensor on `device`. `bits` has the tensor's memory, compressed and in base 85."""
    raw = bytearray(zlib.decompress(base64.b85decode(bits)))
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.to(device).as_strided(sizes, strides, offset)


def verdict(wrong, message):
    """Print the message and the verdict. End the script with status 1 if the subject is wrong, otherwise 0."""
    print(f"torch {torch.__version__}: {message}")
    print("wrong" if wrong else "right", flush=True)
    raise SystemExit(wrong)


def verdict_of_attempt(wrong, message):
    """Print the message and end the script with status 1 if the subject is wrong. Otherwise return."""
    if wrong:
        print(f"torch {torch.__version__}: {message}")
        print("wrong", flush=True)
        raise SystemExit(1)


def end_right():
    """End the script with status 0, since the result is right in every attempt."""
    print(f"torch {torch.__version__}: the result is right in every attempt")
    print("right", flush=True)
    raise SystemExit(0)


def end_unknown():
    """End the script with status 2, since the script does not have the earlier calls that cause the finding."""
    print(f"torch {torch.__version__}: no attempt shows the finding.")
    print("The result depends on calls that the run made before, and this script does not have them.")
    print("Repeat the run with its level and seed: crossent check SUBJECT --level LEVEL --seed SEED", flush=True)
    raise SystemExit(2)


def cannot_run(message):
    """Print why the script cannot run on this machine, and end the script with status 2."""
    first_line = str(message).partition("\n")[0]
    print(f"torch {torch.__version__}: the script cannot run here: {first_line}", flush=True)
    raise SystemExit(2)


def leaf(tensor):
    """Return a tensor that requires a gradient: the tensor itself, or a leaf that shares its memory."""
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


def evaluate(logits, target, options, upstream, *, loss_of=None):
    """Call the subject, or `loss_of` if given, and return a dict with the loss and the gradients.

    If the loss has a wrong shape, the dict has no gradients.
    """
    logits = leaf(logits)
    target = leaf(target) if target.is_floating_point() else target.detach()
    loss = (loss_of or subject)(logits, target, **options)
    require_dense(loss, requires_grad=True)
    result = {"loss": loss.detach()}
    if loss.shape == upstream.shape:
        wanted = {"gradient": logits, "target_gradient": target}
        wanted = {name: of for name, of in wanted.items() if of.requires_grad}
        result |= zip(wanted, torch.autograd.grad(loss, list(wanted.values()), upstream.to(loss.dtype)))
    return result


def evaluate_linear(logits, target, options, upstream, *, loss_of=None):
    """Call a linear cross-entropy, the subject or `loss_of`, and return a dict with the loss and the gradients.

    `logits` are the hidden states. If the loss has a wrong shape, the dict has no gradients.
    """
    leaves, options = {"gradient": leaf(logits)}, dict(options)
    for name, of in (("weight_gradient", "linear_weight"), ("bias_gradient", "linear_bias")):
        if of in options:
            leaves[name] = options[of] = leaf(options[of])
    loss = (loss_of or subject)(leaves["gradient"], target, **options)
    require_dense(loss, requires_grad=True)
    result = {"loss": loss.detach()}
    if loss.shape == upstream.shape:
        result |= zip(leaves, torch.autograd.grad(loss, list(leaves.values()), upstream.to(loss.dtype)))
    return result


def evaluate_logits(logits, target, options, upstream, *, loss_of=None):
    """Call the subject, or `loss_of` if given, and return a dict with the loss and the gradient of the logits.

    If the loss has a wrong shape, the dict has no gradient.
    """
    logits = leaf(logits)
    loss = (loss_of or subject)(logits, target.detach(), **options)
    require_dense(loss, requires_grad=True)
    result = {"loss": loss.detach()}
    if loss.shape == upstream.shape:
        (result["gradient"],) = torch.autograd.grad(loss, logits, upstream.to(loss.dtype))
    return result


def evaluate_loss(logits, target, options, upstream, *, loss_of=None):
    """Call a subject without gradients, or `loss_of` if given, and return a dict with the loss."""
    loss = (loss_of or subject)(logits, target, **options)
    require_dense(loss)
    return {"loss": loss}


def require_dense(loss, requires_grad=False):
    """Raise TypeError if a loss is not a dense tensor of real numbers.

    If `requires_grad` is true, the loss must also require a gradient.
    """
    kind = f"a tensor of {loss.dtype} with layout {loss.layout}" if torch.is_tensor(loss) else type(loss).__name__
    if not torch.is_tensor(loss) or loss.layout != torch.strided or loss.is_complex():
        raise TypeError(f"loss: got {kind}; expected a dense tensor of real numbers")
    if requires_grad and not loss.requires_grad:
        raise TypeError("loss: got requires_grad=False; expected requires_grad=True")


def require_shape(loss, logits, target, options, upstream):
    """End the script with status 1 if a loss has a wrong dtype, shape or device.

    The right shape is the shape of `upstream`.
    """
    dtype = torch.promote_types(logits.dtype, target.dtype) if target.is_floating_point() else logits.dtype
    due = own_dtype or dtype, upstream.shape, logits.device
    if (loss.dtype, loss.shape, loss.device) != due:
        got = f"{loss.dtype} with shape {tuple(loss.shape)} on {loss.device}"
        verdict(True, f"loss: got {got}; expected {due[0]} with shape {tuple(due[1])} on {due[2]}")


def judged(got, exact):
    """Return whether the number `got` is wrong, and a text with `got`, `exact`, the error and the error bound."""
    same = got == exact or (got != got and exact != exact)
    off = 0.0 if same else abs(got - exact)
    # `found`, the wrong number of the run, is wrong within the bound too
    wrong = not same and (got == found or not off <= allowed)
    expected = "exact value" if versus == "exact" else "value from other calls"
    return wrong, f"got {got!r}, {expected} {exact!r}, error {off:.6g}, error bound {allowed:.6g}"


def fresh(logits, target, options, upstream):
    """Return copies of the arguments, with the same strides. Copies share memory if the arguments share memory."""
    copies = {}

    def copy(value):
        if not torch.is_tensor(value):
            return value
        storage = value.untyped_storage()
        key = storage.data_ptr(), value.dtype
        if key not in copies or not storage.data_ptr():  # tensors without memory all have the address 0
            copies[key] = torch.empty(0, dtype=value.dtype, device=value.device).set_(storage).clone()
        return copies[key].as_strided(value.shape, value.stride(), value.storage_offset())

    return copy(logits), copy(target), {name: copy(value) for name, value in options.items()}, copy(upstream)


def call_others(attempt):
    """Call the subject `attempt` times with other numbers. Later results may depend on these calls."""
    logits, target, options, upstream = fresh(*other)
    calls = [(logits, target, options, upstream)]
    calls += [(logits, target, {**options, "reduction": word}, upstream) for word in ("none", "mean", "sum")]
    if logits.dim() > 1:
        calls.append((logits[:1], target[:1], options, upstream[:1] if upstream.dim() else upstream))
    for at in range(attempt):  # one more call in each attempt, since a subject may count its calls
        try:
            evaluate(*calls[at % len(calls)])
        except Exception as error:
            print(f"another call raised {error!r}")


def poison(logits, target, options, upstream):
    """Fill memory with NaN and free the memory, so that a call that reads uninitialized memory returns NaN."""
    for like in (logits, upstream, target):
        blocks = [torch.full(like.shape, torch.nan, dtype=logits.dtype, device=logits.device) for _ in range(8)]
        del blocks


def bits(result):
    """Return the shape, dtype and bytes of each part of a result. All NaNs have the same bytes."""
    plain = {name: part.where(~part.isnan(), torch.nan).flatten() for name, part in result.items()}
    return {name: (result[name].shape, part.dtype, part.view(torch.uint8).tolist()) for name, part in plain.items()}


def overwrite(tensors, sources):
    """Copy the memory of `sources` into `tensors` in place. Return whether all sizes are equal."""
    pairs = [(flat(new), flat(old)) for new, old in zip(tensors, sources) if torch.is_tensor(new)]
    if any(len(new) != len(old) for new, old in pairs):
        return False
    for new, old in pairs:
        new.copy_(old)
    return True


def flat(tensor):
    """Return the storage of a tensor as a view with one dimension."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((size,), (1,), 0)


def memory(tensor):
    """Return a uint8 tensor that shares the storage of a tensor."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.detach().untyped_storage())
