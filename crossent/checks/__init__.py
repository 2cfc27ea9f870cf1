"""The checks: each tests one property of a subject on a case.

The docstring of a check states the property that must hold. In these docstrings, "the exact loss" means a loss whose
distance from the exact value is within the error bound.

A `Trial` is one subject on one case, and a `Question` is a case with its exact values. An *act* is a function
`act(loss, …)` that a check runs in the process of the subject, which may be a separate process. In an act, `loss` is
the subject, `inputs` are the inputs of a call, and `gradients` names the gradients to compute. An act that cannot run
on this machine returns `NotRun` with the reason.

The variable `way` holds the name of a further call: a phrase for messages, such as "under no_grad".

In formulas, `c` and `k` are classes, `x` are the logits of a row, and `p` is their softmax. `w` are the class weights,
and `q` are the target probabilities after label smoothing. A class index counts as a one-hot row of probabilities. `g`
is the upstream gradient of the row. `D` is the denominator of a mean; with "sum" and "none", `D` is 1.

single         the first call: loss, gradients, arguments, global state, sign of the loss, row sums of the gradient,
               ignored rows; a repeated call
relations/     two or more calls: memory layouts, shifted logits, reversed rows and classes, parts of a batch, dtypes,
               chunk sizes; several backward passes
options        the effect of an option, and options with a neutral value
leaves         gradients of some arguments alone, and arguments that are not leaves
circumstances  calls under no_grad, in threads, with Parameters or hooks, and in modes of torch
derivatives    double backward and forward mode
determinism    identical bits in ten calls, and a call on another CUDA stream
jacobians      derivatives for a batch of upstream gradients or of directions, as in torch's Jacobians and Hessians
transforms     torch.func.vjp, torch.func.vmap, autocast, meta tensors, torch.export
compiled_code  torch.compile: traced graphs, compiled code, and class indices out of range
large          a small case repeated many times, to more elements than 31 or 32 bits can count; memory of a call of
               a linear cross-entropy
ranks/         subjects on several ranks: shards of the logits, other numbers of ranks, contexts; not in `CHECKS`
refusals       a bad call raises the right error and changes nothing; not in `CHECKS`, since a bad call is not a case
"""

from __future__ import annotations

from functools import cache

from crossent.cases.operation import Operation
from crossent.checks import (
    circumstances,
    compiled_code,
    derivatives,
    determinism,
    jacobians,
    large,
    leaves,
    options,
    single,
    transforms,
)
from crossent.checks.ranks import contexts, shards
from crossent.checks.relations import backward, chunks, two_calls
from crossent.trials.check import Check

# Checks run in this order, and a report lists them in this order. If `call` fails on a case, the other checks of the
# case are skipped. If `result` fails, the other checks are skipped too, with one exception: if the only error is a
# float32 loss for half-precision logits, the checks of the first call still run.
CHECKS = {
    check.name: check
    for check in (
        single.call,
        single.result,
        single.arguments,
        single.state,
        single.loss,
        single.gradient,
        single.target_gradient,
        single.weight_gradient,
        single.bias_gradient,
        single.repeat,
        single.sign,
        single.row_sums,
        single.ignored_rows,
        two_calls.layout,
        two_calls.shift,
        two_calls.rows_permuted,
        two_calls.classes_permuted,
        two_calls.split,
        chunks.chunks,
        two_calls.widened,
        options.options,
        backward.two_backwards,
        circumstances.no_grad,
        leaves.non_leaf,
        leaves.alone,
        circumstances.threads,
        circumstances.circumstances,
        derivatives.double_backward,
        derivatives.forward_ad,
        determinism.deterministic,
        determinism.stream,
        transforms.func_grad,
        transforms.vmap,
        jacobians.batched_gradient,
        jacobians.jacrev,
        jacobians.jacfwd,
        jacobians.batched_second,
        jacobians.hessian,
        transforms.autocast,
        transforms.meta,
        transforms.export,
        compiled_code.trace,
        compiled_code.trace_dynamic,
        compiled_code.fixed_code,
        compiled_code.dynamic_code,
        compiled_code.compiled_error,
        large.memory,
        large.large,
    )
}


# The checks of subjects on several ranks. A report lists these checks after all other checks, in this order.
RANK_CHECKS = {
    check.name: check
    for check in (
        shards.world_sizes,
        shards.one_shard,
        shards.ignored_shard,
        shards.whole_smoothing,
        shards.uneven_shards,
        shards.empty_shard,
        shards.padding_target,
        shards.micro_batches,
        shards.idle_rank,
        contexts.context,
        contexts.nested_context,
    )
}


@cache
def checks_of(operation: Operation) -> dict[str, Check]:
    """Return the checks in `CHECKS` that run on the cases of an operation, by name."""
    return {name: check for name, check in CHECKS.items() if operation in check.operations}
