"""Script functions for torch.func, batches of derivatives, autocast, the meta device and torch.export."""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: B905  # a script may run on Python 3.9, whose zip has no `strict`

import torch

from crossent.repro.scripts.case import direction, exact, given, index, logits, options, part, subject, target, upstream
from crossent.repro.scripts.functions import cannot_run, evaluate, judged, require_shape, verdict


def loss_of(logits, target):
    """Call the subject with the options of the case, and return the loss."""
    return subject(logits, target, **options)


def pull(logits, target):
    """Return the loss, and a function that takes an upstream gradient and returns a tuple of gradients."""
    if target.is_floating_point():
        return torch.func.vjp(loss_of, logits, target)
    return torch.func.vjp(lambda logits: loss_of(logits, target), logits)


def gradients_of(logits, target, upstream):
    """Return a tuple of the loss and the gradients."""
    loss, back = pull(logits, target)
    return loss, *back(upstream.to(loss.dtype))


def call_under_vjp():
    """Call the subject under torch.func.vjp, and return the loss and the gradients."""
    loss, back = pull(logits, target)
    require_shape(loss, *given)
    return dict(zip(("loss", "gradient", "target_gradient"), (loss.detach(), *back(upstream.to(loss.dtype)))))


def call_linear_under_vjp():
    """Call a linear cross-entropy under torch.func.vjp, and return the loss and the gradients."""
    names = [name for name in ("linear_weight", "linear_bias") if name in options]

    def of_leaves(x, *tensors):
        return subject(x, target, **{**options, **dict(zip(names, tensors))})

    loss, back = torch.func.vjp(of_leaves, logits, *(options[name] for name in names))[:2]
    require_shape(loss, *given)
    parts = ("loss", "gradient", "weight_gradient", "bias_gradient")
    return dict(zip(parts, (loss.detach(), *back(upstream.to(loss.dtype)))))


def call_under_vmap():
    """Call the subject on each sample. Return the results of torch.func.vmap, and of torch.func.vjp under vmap."""
    axis = 0 if logits.dim() == 2 else -1  # the axis of the samples
    each = options["reduction"] == "none"
    losses = torch.func.vmap(loss_of, axis, axis)(logits, target)
    require_shape(losses, logits, target, options, upstream if each else upstream.expand(logits.shape[axis]))
    mapped = torch.func.vmap(gradients_of, (axis, axis, axis if each else None), axis)(logits, target, upstream)
    return [{"loss": losses}, dict(zip(("loss", "gradient", "target_gradient"), mapped))]


def judge_samples(results):
    """Compare one number of each result with the exact value, and end the script."""
    verdict(*max(judged(result[part].detach()[index].item(), exact) for result in results if part in result))


def differentiate_batch():
    """Return the gradients for a batch of two upstream gradients, by torch.autograd.grad(is_grads_batched=True)."""
    leaves = [logits.detach().requires_grad_()]
    if target.is_floating_point():
        leaves.append(target.detach().requires_grad_())
    loss = subject(leaves[0], leaves[1] if len(leaves) > 1 else target, **options)
    require_shape(loss, *given)
    batch = batch_of_two(upstream).to(loss.dtype)
    gradients = torch.autograd.grad(loss, leaves, batch, is_grads_batched=True, allow_unused=True)
    return dict(zip(("gradient", "target_gradient"), gradients))


def batch_of_two(tensor):
    """Return a batch of two tensors: `tensor` and -2 times `tensor`."""
    return torch.stack([tensor, -2 * tensor])


def differentiate_by_jacrev():
    """Return the gradients for a batch of two upstream gradients, by vjp and vmap, like torch.func.jacrev."""
    loss, back = pull(logits, target)
    require_shape(loss, *given)
    return dict(zip(("gradient", "target_gradient"), torch.func.vmap(back)(batch_of_two(upstream).to(loss.dtype))))


def differentiate_by_jacfwd():
    """Return the derivatives of the loss along a batch of two directions, by jvp and vmap, like torch.func.jacfwd."""
    return {"tangent": pushed(lambda logits: loss_of(logits, target))}


def differentiate_by_hessian():
    """Return derivatives of the gradient along a batch of two directions, by jvp of vjp, like torch.func.hessian."""

    def gradient(logits):
        loss, back = torch.func.vjp(lambda logits: loss_of(logits, target), logits)[:2]
        return back(upstream.to(loss.dtype))[0]

    return {"second": pushed(gradient)}


def pushed(function):
    """Return the forward-mode derivatives of `function` along a batch of two directions."""
    repeats = any(stride == 0 and size > 1 for size, stride in zip(logits.shape, logits.stride()))
    x = logits.contiguous() if repeats else logits  # forward mode refuses elements that share memory
    return torch.func.vmap(lambda u: torch.func.jvp(function, (x,), (u,))[1])(batch_of_two(direction)).detach()


def differentiate_batch_twice():
    """Return two derivatives of the inner product `<gradient, direction>`, for a batch of two directions.

    The first is with respect to the logits, the second with respect to the upstream gradient. A derivative is
    None if autograd cannot compute it.
    """
    x, g = logits.detach().requires_grad_(), upstream.detach().requires_grad_()
    loss = subject(x, target, **options)
    (gradient,) = torch.autograd.grad(loss, x, g.to(loss.dtype), create_graph=True)
    names = "second", "upstream_gradient"
    if not gradient.requires_grad:
        return dict.fromkeys(names)
    along = batch_of_two(direction)
    return dict(zip(names, torch.autograd.grad(gradient, (x, g), along, is_grads_batched=True, allow_unused=True)))


def call_under_autocast():
    """Call the subject under torch.autocast. Half-precision logits must give a float32 loss."""

    def under_autocast(*arguments, **options):
        cast = torch.float16 if logits.dtype == torch.float16 else torch.bfloat16
        with torch.autocast(logits.device.type, dtype=cast):
            return subject(*arguments, **options)

    result = evaluate(*given, loss_of=under_autocast)
    x, y = (one.float() if one.dtype in (torch.float16, torch.bfloat16) else one for one in (logits, target))
    require_shape(result["loss"], x, y, options, upstream)
    return result


def empty(value):
    """Return a copy of a tensor on the meta device, or any other value unchanged."""
    if not torch.is_tensor(value):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def call_on_meta():
    """Call the subject on the meta device, and check the dtype, shape and device of the loss."""
    meta = empty(logits), empty(target), {name: empty(value) for name, value in options.items()}, empty(upstream)
    require_shape(evaluate(*meta)["loss"], *meta)


class Module(torch.nn.Module):
    """A module that calls `loss`, for torch.export.

    `names` are the options that `forward` takes as arguments. `options` has the values of the other options.
    """

    def __init__(self, loss, names, options):
        super().__init__()
        self.loss, self.names, self.options = loss, names, options

    def forward(self, logits, target, *tensors):
        """Return the loss. `tensors` are the values of the options in `names`."""
        return self.loss(logits, target, **self.options, **dict(zip(self.names, tensors)))


def call_exported():
    """Export the subject with torch.export, call the exported module, and return the result."""
    try:
        from torch.export import export

        export(Module(torch.add, (), {}), (torch.ones(2), torch.ones(2)))
    except Exception as error:
        cannot_run(f"{type(error).__name__}: {error}")
    tensors = {name: value for name, value in options.items() if torch.is_tensor(value)}
    others = {name: value for name, value in options.items() if name not in tensors}
    arguments = logits, target, *tensors.values()
    loss = export(Module(subject, tuple(tensors), others), arguments).module()(*arguments)
    require_shape(loss, *given)
    return {"loss": loss.detach()}
