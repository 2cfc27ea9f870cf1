"""Script functions for checks with torch.func, batches of derivatives, autocast, the meta device or torch.export."""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: B905  # a script may run on Python 3.9, whose zip has no `strict`

import torch

from crossent.repro.scripts.case import direction, exact, given, index, logits, options, part, subject, target, upstream
from crossent.repro.scripts.functions import cannot_run, evaluate, judged, require_shape, verdict


def loss_of(logits, target):
    """Call the subject with `logits`, `target` and the options of the case, and return the loss."""
    return subject(logits, target, **options)


def pull(logits, target):
    """Call the subject, and return the loss and a function from an upstream gradient to a tuple of gradients.

    The tuple has the gradient of the logits and, if the target has probabilities, the gradient of the target.
    """
    if target.is_floating_point():
        return torch.func.vjp(loss_of, logits, target)
    return torch.func.vjp(lambda logits: loss_of(logits, target), logits)


def gradients_of(logits, target, upstream):
    """Return a tuple of the loss and the gradients for the upstream gradient `upstream` (:func:`pull`)."""
    loss, back = pull(logits, target)
    return loss, *back(upstream.to(loss.dtype))


def call_under_vjp():
    """Call the subject under torch.func.vjp, and return the loss and the gradients."""
    loss, back = pull(logits, target)
    require_shape(loss, *given)
    return dict(zip(("loss", "gradient", "target_gradient"), (loss.detach(), *back(upstream.to(loss.dtype)))))


def call_linear_under_vjp():
    """Call a linear cross-entropy under torch.func.vjp, and return the loss and the gradients.

    The result has the gradients of the input and of linear_weight. If the case has linear_bias, the result also has the
    gradient of linear_bias.
    """
    names = [name for name in ("linear_weight", "linear_bias") if name in options]

    def of_leaves(x, *tensors):
        return subject(x, target, **{**options, **dict(zip(names, tensors))})

    loss, back = torch.func.vjp(of_leaves, logits, *(options[name] for name in names))[:2]
    require_shape(loss, *given)
    parts = ("loss", "gradient", "weight_gradient", "bias_gradient")
    return dict(zip(parts, (loss.detach(), *back(upstream.to(loss.dtype)))))


def call_under_vmap():
    """Call the subject on each sample by torch.func.vmap, and return two results.

    The first result has the losses. The second result has the losses and the gradients, by torch.func.vjp under vmap.

    The samples of 2-dimensional logits are the rows. The samples of other logits are the slices along the last
    dimension.
    """
    axis = 0 if logits.dim() == 2 else -1
    each = options["reduction"] == "none"
    losses = torch.func.vmap(loss_of, axis, axis)(logits, target)
    require_shape(losses, logits, target, options, upstream if each else upstream.expand(logits.shape[axis]))
    mapped = torch.func.vmap(gradients_of, (axis, axis, axis if each else None), axis)(logits, target, upstream)
    return [{"loss": losses}, dict(zip(("loss", "gradient", "target_gradient"), mapped))]


def judge_samples(results):
    """Compare one number of each result with the exact value, and end the script.

    `results` are the two results of :func:`call_under_vmap`. The exit status is 1 if the number is wrong in any result.
    If the number belongs to a gradient, this function skips the first result, which has only losses.
    """
    verdict(*max(judged(result[part].detach()[index].item(), exact) for result in results if part in result))


def differentiate_batch():
    """Return the gradients for a batch of two upstream gradients, by torch.autograd.grad(is_grads_batched=True).

    If autograd finds that the loss does not depend on an argument, the gradient of this argument is None.
    """
    leaves = [logits.detach().requires_grad_()]
    if target.is_floating_point():
        leaves.append(target.detach().requires_grad_())
    loss = subject(leaves[0], leaves[1] if len(leaves) > 1 else target, **options)
    require_shape(loss, *given)
    batch = batch_of_two(upstream).to(loss.dtype)
    gradients = torch.autograd.grad(loss, leaves, batch, is_grads_batched=True, allow_unused=True)
    return dict(zip(("gradient", "target_gradient"), gradients))


def batch_of_two(tensor):
    """Return a batch of two tensors: the tensor, and the tensor multiplied by -2."""
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
    """Return the forward-mode derivatives of `function` along a batch of two directions.

    `function` is a function of the logits. Forward mode refuses logits whose elements share memory, so this function
    copies such logits.
    """
    repeats = any(stride == 0 and size > 1 for size, stride in zip(logits.shape, logits.stride()))
    x = logits.contiguous() if repeats else logits
    return torch.func.vmap(lambda u: torch.func.jvp(function, (x,), (u,))[1])(batch_of_two(direction)).detach()


def differentiate_batch_twice():
    """Return two derivatives of the inner product `<gradient, direction>`, for a batch of two directions.

    The derivative "second" is with respect to the logits. The derivative "upstream_gradient" is with respect to the
    upstream gradient. If autograd finds that the inner product does not depend on one of these two tensors, the
    derivative with respect to this tensor is None.
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
    """Call the subject under torch.autocast, and return the result. End the script if the loss has a wrong dtype.

    Under autocast, float16 and bfloat16 logits must give a float32 loss.
    """

    def under_autocast(*arguments, **options):
        cast = torch.float16 if logits.dtype == torch.float16 else torch.bfloat16
        with torch.autocast(logits.device.type, dtype=cast):
            return subject(*arguments, **options)

    result = evaluate(*given, loss_of=under_autocast)
    x, y = (one.float() if one.dtype in (torch.float16, torch.bfloat16) else one for one in (logits, target))
    require_shape(result["loss"], x, y, options, upstream)
    return result


def empty(value):
    """Return a tensor on the meta device with the same shape, strides and dtype. Return any other value unchanged."""
    if not torch.is_tensor(value):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def call_on_meta():
    """Call the subject on the meta device. End the script if the loss has a wrong dtype, shape or device."""
    meta = empty(logits), empty(target), {name: empty(value) for name, value in options.items()}, empty(upstream)
    require_shape(evaluate(*meta)["loss"], *meta)


class Module(torch.nn.Module):
    """A module that calls the function `loss`, for torch.export.

    `names` are the names of the options that are tensors. `forward` takes these tensors. `options` has the other
    options.
    """

    def __init__(self, loss, names, options):
        super().__init__()
        self.loss, self.names, self.options = loss, names, options

    def forward(self, logits, target, *tensors):
        """Return the loss of a call. `tensors` are the values of the options in `names`."""
        return self.loss(logits, target, **self.options, **dict(zip(self.names, tensors)))


def call_exported():
    """Export the subject with torch.export, call the exported module, and return the result.

    End the script with status 2 if torch cannot export even an addition on this machine.
    """
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
