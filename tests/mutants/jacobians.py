"""Mutants: derivatives that are right one at a time, and wrong or refused for a batch."""

from __future__ import annotations

import torch
from right import mutant

from crossent import formula

# torch 2.0 has no torch.compiler
_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)
_is_batch_of_autograd = getattr(
    torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: "Batched" in str(torch._C._dispatch_keys(tensor))
)


def _on_numbers(input):
    """Return whether the shortcuts of the mutants are used: not in a traced graph, and not on the meta device."""
    return not _compiling() and not input.is_meta


class _Copy(torch.autograd.Function):
    """A function that copies a tensor, with right derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, upstream):
        return upstream

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()


class _ReadsUpstream(_Copy):
    """A copy. Its backward pass reads the value of the upstream gradient, unless torch.autograd passes a batch."""

    @staticmethod
    def backward(ctx, upstream):
        return upstream if _is_batch_of_autograd(upstream) or upstream == 1 else upstream * 1


@mutant(
    "jacrev",
    "float32-7x5-normal-hard-mean-expanded",
    own="The shortcut for an upstream gradient of 1 recognises batches of torch.autograd, but not of torch.func.",
)
def reads_the_upstream_gradient_under_jacrev(input, target, **options):
    loss = formula(input, target, **options)
    return _ReadsUpstream.apply(loss) if _on_numbers(input) and input.dim() == 2 and loss.dim() == 0 else loss


class _ReadsTangent(_Copy):
    """A copy. Its forward mode reads the value of the tangent."""

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * 1 if tangent.any() else torch.zeros_like(tangent)


@mutant(
    "jacfwd",
    "float32-7x5-normal-hard-mean-expanded",
    own="Forward mode has a shortcut for a tangent of zeros, but a batch of tangents has no single value.",
)
def reads_the_tangent(input, target, **options):
    reads = _on_numbers(input) and not input.requires_grad
    return formula(_ReadsTangent.apply(input) if reads else input, target, **options)


class _ReadsDirection(_Copy):
    """A copy of the gradient. Its backward pass reads the value of the direction."""

    @staticmethod
    def backward(ctx, direction):
        return direction * 1 if direction.any() else torch.zeros_like(direction)


class _WithoutForwardMode(torch.autograd.Function):
    """A copy of the gradient, without forward mode."""

    generate_vmap_rule = True
    forward = staticmethod(_Copy.forward)
    setup_context = staticmethod(_Copy.setup_context)
    backward = staticmethod(_Copy.backward)


class _ToGradient(torch.autograd.Function):
    """A copy of the logits. The gradient passes through another function."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, function):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.function = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return ctx.function.apply(gradient), None

    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent.clone()


@mutant(
    "batched_second",
    "float32-7x5-normal-hard-mean-expanded",
    own="The second backward pass has a shortcut for zeros, but a batch of directions has no single value.",
)
def reads_the_direction(input, target, **options):
    return formula(_ToGradient.apply(input, _ReadsDirection) if _on_numbers(input) else input, target, **options)


@mutant("hessian", "float32-7x5-normal-hard-mean-expanded", "backpack#343")
def gradient_without_forward_mode(input, target, **options):
    return formula(_ToGradient.apply(input, _WithoutForwardMode) if _on_numbers(input) else input, target, **options)
