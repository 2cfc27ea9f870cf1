"""Script functions for the checks of second derivatives, and of derivatives in forward mode."""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: B905  # a script may run on Python 3.9, whose zip has no `strict`

import torch

from crossent.repro.scripts.case import direction, exact, index, logits, options, part, shape, subject, target, upstream
from crossent.repro.scripts.functions import judged, verdict


def differentiate_twice():
    """Return the derivatives of `<gradient, direction>` with respect to the logits and the upstream gradient."""
    x, g = logits.detach().requires_grad_(), upstream.detach().requires_grad_()
    loss = subject(x, target, **options)
    (gradient,) = torch.autograd.grad(loss, x, g.to(loss.dtype), create_graph=True)
    names = "second", "upstream_gradient"
    if not gradient.requires_grad:
        return dict.fromkeys(names)
    return dict(zip(names, torch.autograd.grad(gradient, (x, g), direction, allow_unused=True)))


def differentiate_forward():
    """Return the derivative of the loss along the direction, in forward mode."""
    # Forward mode refuses logits whose elements share memory.
    repeats = any(stride == 0 and size > 1 for size, stride in zip(logits.shape, logits.stride()))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits.contiguous() if repeats else logits, direction)
        tangent = torch.autograd.forward_ad.unpack_dual(subject(dual, target, **options)).tangent
    return {"tangent": None if tangent is None else tangent.detach()}


def judge_derivative(result):
    """Compare one number of a derivative with the exact value, and end the script. None counts as 0."""
    verdict(*judged(0.0 if result[part] is None else result[part][index].item(), exact))


def judge_presence(result):
    """End the script with status 1 if a derivative is None or has a wrong shape."""
    got = result[part]
    if got is None or got.shape != shape:
        verdict(True, f"{part}: got {got if got is None else tuple(got.shape)}; expected the shape {tuple(shape)}")
