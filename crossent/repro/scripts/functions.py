"""Functions that most scripts use: call the subject, show one number of its result, end the script."""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: B905  # a script may run on Python 3.9, whose zip has no `strict`

import base64
import zlib

import torch

from crossent.repro.scripts.case import allowed, device, found, other, own_dtype, subject, versus


def tensor(bits, dtype, sizes, strides, offset):
    """Make a tensor from the compressed bytes of its memory."""
    raw = bytearray(zlib.decompress(base64.b85decode(bits)))
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.to(device).as_strided(sizes, strides, offset)


def verdict(wrong, message):
    """End the script: status 1 if the subject is wrong, 0 if the subject is right."""
    print(f"torch {torch.__version__}: {message}")
    print("wrong" if wrong else "right", flush=True)
    raise SystemExit(wrong)


def verdict_of_attempt(wrong, message):
    """End the script with status 1 if the subject is wrong. Otherwise the script makes another attempt."""
    if wrong:
        print(f"torch {torch.__version__}: {message}")
        print("wrong", flush=True)
        raise SystemExit(1)


def end_right():
    """End the script with status 0: no attempt shows the finding."""
    print(f"torch {torch.__version__}: as it should be, in every attempt")
    print("right", flush=True)
    raise SystemExit(0)


def end_unknown():
    """End the script with status 2: the earlier calls that cause the finding are unknown."""
    print(f"torch {torch.__version__}: no attempt shows the finding.")
    print("The result depends on calls that the run made before, and this script does not have them.")
    print("Repeat the run with its level and seed: crossent check --level LEVEL --seed SEED", flush=True)
    raise SystemExit(2)


def cannot_run(message):
    """End the script with status 2: the call cannot run here."""
    first_line = str(message).partition("\n")[0]
    print(f"torch {torch.__version__}: the script cannot run here: {first_line}", flush=True)
    raise SystemExit(2)


def evaluate(logits, target, options, upstream, *, loss_of=None):
    """Call the subject, and return its loss and the gradients of logits and of probabilities."""
    logits = logits.detach().requires_grad_()
    target = target.detach().requires_grad_(target.is_floating_point())
    loss = (loss_of or subject)(logits, target, **options)
    is_dense = torch.is_tensor(loss) and loss.layout == torch.strided and not loss.is_complex()
    assert is_dense, type(loss)
    assert loss.requires_grad, "the loss is cut off from the logits"
    result = {"loss": loss.detach()}
    if loss.shape == upstream.shape:
        wanted = {"gradient": logits, "target_gradient": target}
        wanted = {name: of for name, of in wanted.items() if of.requires_grad}
        result |= zip(wanted, torch.autograd.grad(loss, list(wanted.values()), upstream.to(loss.dtype)))
    return result


def evaluate_loss(logits, target, options, upstream, *, loss_of=None):
    """Call a subject without a gradient, and return its loss."""
    loss = (loss_of or subject)(logits, target, **options)
    is_dense = torch.is_tensor(loss) and loss.layout == torch.strided and not loss.is_complex()
    assert is_dense, type(loss)
    return {"loss": loss}


def shaped(loss, logits, target, options, upstream):
    """Stop the script if the loss has a wrong dtype, shape or device."""
    dtype = torch.promote_types(logits.dtype, target.dtype) if target.is_floating_point() else logits.dtype
    due = own_dtype or dtype, upstream.shape, logits.device
    if (loss.dtype, loss.shape, loss.device) != due:
        got = f"{loss.dtype} {tuple(loss.shape)} on {loss.device}"
        verdict(True, f"got {got}; expected {due[0]} {tuple(due[1])} on {due[2]}")


def judged(got, exact):
    """Return whether a number is wrong, and its error as text."""
    same = got == exact or (got != got and exact != exact)
    off = 0.0 if same else abs(got - exact)
    wrong = not same and (got == found or not off <= allowed)
    return wrong, f"got {got!r}, {versus} {exact!r}, off by {off:.6g}, allowed {allowed:.6g}"


def fresh(logits, target, options, upstream):
    """Copy the arguments, their whole memory and their strides."""

    def copy(value):
        if not torch.is_tensor(value):
            return value
        whole = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage())
        return whole.clone().as_strided(value.shape, value.stride(), value.storage_offset())

    return copy(logits), copy(target), {name: copy(value) for name, value in options.items()}, copy(upstream)


def call_others(attempt):
    """Call the subject with other numbers, other reductions and a batch of one, as a run does."""
    logits, target, options, upstream = fresh(*other)
    calls = [(logits, target, options, upstream)]
    calls += [(logits, target, {**options, "reduction": word}, upstream) for word in ("none", "mean", "sum")]
    if logits.dim() > 1:
        calls.append((logits[:1], target[:1], options, upstream[:1] if upstream.dim() else upstream))
    for at in range(attempt):  # each attempt makes one more call, as a subject may count its calls
        try:
            evaluate(*calls[at % len(calls)])
        except Exception as error:
            print(f"another call: {error!r}")


def poison(logits, target, options, upstream):
    """Allocate memory of the size of each result, fill the memory with NaN, and free it."""
    for like in (logits, upstream, target):
        held = [torch.full(like.shape, torch.nan, dtype=logits.dtype, device=logits.device) for _ in range(8)]
        del held


def bits(result):
    """Return the bits of a result, with one NaN in place of all NaN."""
    plain = {name: part.where(~part.isnan(), torch.nan).flatten() for name, part in result.items()}
    return {name: (result[name].shape, part.dtype, part.view(torch.uint8).tolist()) for name, part in plain.items()}


def memory(tensor):
    """Return all bytes of the storage of a tensor."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.detach().untyped_storage())
