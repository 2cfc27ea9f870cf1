"""Script functions for the checks of calls without gradients, on non-leaf tensors, in threads and in modes of torch."""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: B905  # a script may run on Python 3.9, whose zip has no `strict`

import threading

import torch

from crossent.repro.scripts.case import (
    calls,
    exact,
    given,
    index,
    logits,
    options,
    other,
    part,
    subject,
    target,
    wanted_of,
    which_call,
)
from crossent.repro.scripts.functions import bits, evaluate, fresh, judged, memory, require_shape, verdict


def judge_one_call(results):
    """Compare one number of one call with the exact value, and end the script."""
    verdict(*judged(results[which_call][part][index].item(), exact))


def judge_every_try(tries):
    """Judge the same number in each try, and end the script with status 1 if any try is wrong."""
    verdict(*max(judged(results[which_call][part][index].item(), exact) for results in tries))


def require_untouched(call, x, y, its_options, x_wanted, y_wanted):
    """End the script with status 1 if a call changed an argument, or the .grad or requires_grad of an argument.

    `x_wanted` and `y_wanted` say whether `x` and `y` required a gradient before the call.
    """
    tensors = {"input": (x, logits, x_wanted), "target": (y, target, y_wanted)}
    tensors |= {
        name: (its_options[name], one, x_wanted and name.startswith("linear_"))
        for name, one in options.items()
        if torch.is_tensor(one)
    }
    for name, (one, before, wanted) in tensors.items():
        views = [(each.shape, each.stride(), each.storage_offset()) for each in (one, before)]
        if views[0] != views[1]:
            verdict(True, f"{call}: the call changed the shape, strides or offset of {name}")
        if not memory(one).equal(memory(before)):
            verdict(True, f"{call}: the call wrote into {name}")
        if one.is_leaf and one.grad is not None:
            verdict(True, f"{call}: the call set the .grad of {name}")
        if one.requires_grad != wanted:
            verdict(True, f"{call}: the call changed the requires_grad of {name}")


def require_clones_untouched(clones):
    """End the script with status 1 if a call changed a clone."""
    for name, after, before in clones:
        if not memory(after).equal(memory(before)):
            verdict(True, f"the call changed `{name}` in place; `{name}` is not a leaf in this call")


def fresh_for(inputs, wanted):
    """Return copies of the arguments. The tensors that can have a gradient require one if `wanted` is true."""
    x, y, its_options, _ = fresh(*inputs)
    for name, one in its_options.items():
        if name.startswith("linear_"):
            its_options[name] = one.detach().requires_grad_(wanted)
    return x.detach().requires_grad_(wanted), y.detach().requires_grad_(wanted and y.is_floating_point()), its_options


def require_kept(call, loss, mode, wanted):
    """End the script with status 1 if a further call, with other numbers, writes into `loss`, the loss of a call."""
    first = bits({"loss": loss})
    try:
        with mode:
            x, y, its_options = fresh_for(other, wanted)
            subject(x, y, **its_options)
    except Exception as error:
        print(f"the call with other numbers raised {error!r}")
    if bits({"loss": loss}) != first:
        verdict(True, f"loss, {call}: a later call writes into the result of the first call")


def allow_changes(*_):
    """Do nothing: a subject without the feature "arguments" may change its arguments."""


def allow_overwriting(*_):
    """Do nothing: a subject without the feature "repeatable" may overwrite the result of an earlier call."""


def call_without_gradients():
    """Return the results of calls under no_grad, under inference_mode and without requires_grad, by name."""
    results = {}
    for call, mode, wanted in (
        ("under no_grad", torch.no_grad(), True),
        ("under inference_mode", torch.inference_mode(), False),
        ("without requires_grad", torch.enable_grad(), False),
    ):
        with mode:
            x, y, its_options = fresh_for(given, wanted)
            loss = subject(x, y, **its_options)
        require_shape(loss, *given)
        if loss.requires_grad:
            verdict(True, f"loss, {call}: got requires_grad=True; expected requires_grad=False")
        require_untouched(call, x, y, its_options, wanted, wanted and y.is_floating_point())
        results[call] = {"loss": loss.clone()}
        require_kept(call, loss, mode, wanted)
    return results


def call_on_non_leaf():
    """Return the result of a call on clones of the logits and of options; the clones are not leaves."""
    made = []

    def cloned(input, target, **options):
        needed = [name for name, one in options.items() if torch.is_tensor(one) and one.requires_grad]
        clones = {"input": input.clone(), **{name: options[name].clone() for name in needed}}
        for name, clone in clones.items():
            made.append((name, clone.detach(), clone.detach().clone()))
        return subject(clones.pop("input"), target, **{**options, **clones})

    result = evaluate(*fresh(*given), loss_of=cloned)
    require_shape(result["loss"], *given)
    require_clones_untouched(made)
    return result


def call_for_some_gradients():
    """Return the results of calls in which only some arguments require a gradient, by name."""
    results = {}
    for call, names in wanted_of:
        x, y, its_options, g = fresh(*given)
        arguments = {"input": x, "target": y, **its_options}
        for name in names.values():
            arguments[name].requires_grad_()
        tensors = {name: one for name, one in arguments.items() if torch.is_tensor(one)}
        loss = subject(arguments.pop("input"), arguments.pop("target"), **arguments)
        require_shape(loss, *given)
        required = " and ".join(names.values())
        if not loss.requires_grad:
            expected = f"requires_grad=True, since requires_grad is True for {required}"
            verdict(True, f"loss: got requires_grad=False; expected {expected}")
        loss.backward(g.to(loss.dtype))
        for name, one in tensors.items():
            if (one.grad is None) == (name in names.values()):
                got = "None; expected a tensor" if one.grad is None else "a tensor; expected None"
                verdict(True, f"gradient of {name}: got {got}, since requires_grad is True only for {required}")
        results[call] = {"loss": loss.detach(), **{of: tensors[name].grad for of, name in names.items()}}
    return results


def in_parallel(*all_inputs):
    """Return the results of calls in parallel threads, one call for each of the inputs.

    All forward passes end before any backward pass starts.
    """
    barrier, results, errors = threading.Barrier(len(all_inputs)), {}, []

    def forward(*arguments, **options):
        barrier.wait()
        loss = subject(*arguments, **options)
        barrier.wait()
        return loss

    def work(at, inputs):
        try:
            results[at] = evaluate(*fresh(*inputs), loss_of=forward)
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


def call_in_threads():
    """Try 50 times: make one call in a thread, then two calls in parallel threads. Return the results of each try."""
    tries = []
    for _ in range(50):
        results = [*in_parallel(given), *in_parallel(given, other)]
        for result in results:
            require_shape(result["loss"], *given)
        tries.append(dict(zip(calls, results)))
    return tries


def call_in_circumstances():
    """Return the results of calls in unusual circumstances, such as "under anomaly detection", by name.

    End the script with status 1 if an upstream gradient of NaN gives a gradient without NaN.
    """

    def hooked(logits):
        logits.requires_grad_().register_hook(lambda gradient: None)
        return logits

    def with_gradient(logits):
        logits.requires_grad_().grad = torch.ones_like(logits)
        return logits

    makers = {
        "of a Parameter": torch.nn.Parameter,
        "with a hook": hooked,
        "with a .grad": with_gradient,
        "of a lazily negated view": lambda logits: torch._neg_view(-logits),
    }
    results, usual = {}, (torch.is_anomaly_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    deterministic = torch.are_deterministic_algorithms_enabled()
    for call in calls:
        x, y, its_options, g = fresh(*given)
        make = makers.get(call, torch.Tensor.detach)
        x = make(x.detach()).requires_grad_()
        y = y.detach().requires_grad_(y.is_floating_point())
        if call == "with a weight that requires a gradient":
            its_options["weight"].requires_grad_()
        torch.autograd.set_detect_anomaly(call == "under anomaly detection", check_nan=False)
        if call == "with another default dtype":
            torch.set_default_dtype(torch.float32 if usual[1] == torch.float64 else torch.float64)
        torch.use_deterministic_algorithms(deterministic or call == "with deterministic algorithms", warn_only=True)
        if call == "with another number of threads":
            torch.set_num_threads(usual[2] + 1)
        leaves = {"gradient": x, **({"target_gradient": y} if y.requires_grad else {})}
        for gradient, name in (("weight_gradient", "linear_weight"), ("bias_gradient", "linear_bias")):
            if name in its_options:
                leaves[gradient] = its_options[name] = make(its_options[name].detach()).requires_grad_()
        loss = subject(x, y, **its_options)
        require_shape(loss, *given)
        g, kept = g.to(loss.dtype), loss.detach().clone()
        if call == "with an upstream gradient of NaN in ignored rows":
            g = g.masked_fill(y.long() == its_options.get("ignore_index", -100), torch.nan)
        if call == "with the loss negated in place":
            try:
                made = torch.autograd.grad(loss.neg_(), list(leaves.values()), -g)
            except RuntimeError:  # torch refuses the change, so the caller notices it
                results[call] = evaluate(*fresh(*given))
                continue
        else:
            made = torch.autograd.grad(loss, list(leaves.values()), g, create_graph="create_graph" in call)
        results[call] = {"loss": kept, **dict(zip(leaves, (one.detach() for one in made)))}
        torch.autograd.set_detect_anomaly(usual[0])
        torch.use_deterministic_algorithms(deterministic)
        torch.set_default_dtype(usual[1])
        torch.set_num_threads(usual[2])
    usual_parts = evaluate(*fresh(*given))
    for value, due in ((torch.nan, "NaN"), (torch.inf, "inf or NaN")):
        x, y, its_options, g = fresh(*given)
        found = evaluate(x, y, its_options, torch.full_like(g, value))
        for name, number in usual_parts.items():
            lost = ~found[name].isnan() if due == "NaN" else found[name].isfinite()
            if name != "loss" and ((number != 0) & lost).any():
                said = f"some elements are not {due}; expected {due} in each element that is not 0 with the upstream"
                upstream = f"with an upstream gradient of {due.split()[0]}"
                verdict(True, f"{name}, {upstream}: {said} gradient of the case")
    return results
