"""WHAT MUST HOLD: the checks, each one property of a subject on a case. No check imports another.

    single          of one call: loss, gradients, arguments, global state, the same bits twice, signs, sums of rows
    relations       of two calls: other layouts, shifted logits, permuted rows and classes, parts of a batch
    options         an option that is given changes the result; one that is off does not
    circumstances   as programs call a loss: under no_grad, on tensors that are no leaves, in threads
    derivatives     double backward and forward mode
    determinism     the same bits each time, also on a CUDA stream
    transforms      func_grad, vmap, autocast, meta tensors, export
    compiled_code   traced, compiled for one size and for any, and a class out of range
    large           more elements than 31 or 32 bits count
    refusals        a bad call raises the right error; not in `CHECKS`, since it runs on bad inputs, not on cases

A check declares everything about itself where it is defined, by `@check` of :mod:`crossent.trials.check`. `CHECKS`
gives each check its place in a report.
"""

from __future__ import annotations

from crossent.checks import (
    circumstances,
    compiled_code,
    derivatives,
    determinism,
    large,
    options,
    relations,
    single,
    transforms,
)

# In the order in which they run on a case and stand in a report. After a failed `call` or `result` no other check runs.
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
        single.repeat,
        single.sign,
        single.row_sums,
        single.ignored_rows,
        relations.layout,
        relations.shift,
        relations.rows_permuted,
        relations.classes_permuted,
        relations.split,
        relations.widened,
        options.options,
        relations.two_backwards,
        circumstances.no_grad,
        circumstances.non_leaf,
        circumstances.alone,
        circumstances.threads,
        derivatives.double_backward,
        derivatives.forward_ad,
        determinism.deterministic,
        determinism.stream,
        transforms.func_grad,
        transforms.vmap,
        transforms.autocast,
        transforms.meta,
        transforms.export,
        compiled_code.trace,
        compiled_code.trace_dynamic,
        compiled_code.fixed_code,
        compiled_code.dynamic_code,
        compiled_code.compiled_error,
        large.large,
    )
}
