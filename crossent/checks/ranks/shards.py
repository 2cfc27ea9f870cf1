"""Checks of the shards of a subject on several ranks.

Most checks call the subject with other inputs, or on another number of ranks. They compare the result with the exact
values for the inputs of this call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.subjects.features import FEATURES, is_dense
from crossent.subjects.ranks.protocol import cut_axis, shard
from crossent.trials.act import Performed
from crossent.trials.agreement import call_anyway, further_call
from crossent.trials.call import Gradients, Result, evaluate
from crossent.trials.check import Cost, check
from crossent.trials.difference import Difference
from crossent.trials.exact import solve
from crossent.trials.trial import NotRunError, Problem, Trial
from crossent.words import DECLARED, counted

# A larger batch is not cut into single samples, because a call with so many parts would take long.
_MOST_MICRO_BATCHES = 16
_ONE_RANK = "runs on one rank, which has all classes"
_PROBABILITIES = "gets class probabilities; this check needs class indices"


def evaluate_on(loss: Any, inputs: Inputs, gradients: Gradients, ranks: int) -> Result:
    """Act: call the loss on `ranks` ranks, and return the loss and the gradients."""
    return evaluate(loss.on(ranks), inputs, gradients)


def _has_classes(case: Case) -> bool:
    return case.rows > 0 and case.classes > 1


def _compared(trial: Trial, inputs: Inputs, way: str) -> Iterator[Difference]:
    """Call the subject with `inputs`, and yield the differences of the result from the exact values."""
    yield from _named(trial, further_call(trial, inputs), inputs, way)


def _named(trial: Trial, got: Result, inputs: Inputs, way: str) -> Iterator[Difference]:
    for difference in trial.compare(got, solve(inputs)):
        yield replace(difference, of=f"{difference.of} {way}")


def _class_ranges(trial: Trial, inputs: Inputs) -> list[tuple[int, int]]:
    """Return, for each rank, the first class of its shard and the first class after the shard.

    Raise NotRunError if the subject cuts the batch.
    """
    if trial.subject.split == "batch":
        raise NotRunError("cuts the batch, so each rank has all classes")
    axis, ranks = cut_axis(trial.subject.split, inputs.input.dim()), trial.subject.ranks
    sizes = [shard(inputs.input, trial.subject.split, rank, ranks).shape[axis] for rank in range(ranks)]
    ends = [min(sum(sizes[: rank + 1]), inputs.classes) for rank in range(ranks)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@check(cost=Cost.CALLS, applies=_has_classes)
def world_sizes(trial: Trial) -> Iterator[Difference]:
    """On a single rank, and on one rank fewer than `--ranks`, the same call gives the exact loss and gradient."""
    if trial.subject.ranks == 1:
        raise NotRunError("runs on one rank; this check needs two or more")
    for ranks in sorted({1, trial.subject.ranks - 1}):
        got = further_call(trial, trial.question.fresh(), evaluate_on, ranks)
        yield from _named(trial, got, trial.question.inputs, f"on {counted(ranks, 'rank')}")


@check("index_target", cost=Cost.CALLS, applies=_has_classes)
def one_shard(trial: Trial) -> Iterator[Difference]:
    """For each rank: if the classes of all targets are on this rank, loss and gradient are exact."""
    inputs = trial.question.inputs
    if is_dense(inputs):
        raise NotRunError(_PROBABILITIES)
    kept = _kept(inputs)
    for rank, (start, end) in enumerate(_class_ranges(trial, inputs)):
        if end > start:
            target = torch.where(kept, start + inputs.target.long() % (end - start), inputs.target.long())
            yield from _compared(trial, _with_target(inputs, target), f"with all targets on rank {rank}")


@check("index_target", "ignore_index", cost=Cost.CALLS, applies=_has_classes)
def ignored_shard(trial: Trial) -> Iterator[Difference]:
    """For each rank: if all rows whose class is on this rank are ignored, loss and gradient are exact."""
    inputs = trial.question.inputs
    if is_dense(inputs):
        raise NotRunError("gets class probabilities, with which no row can be ignored")
    for rank, (start, end) in enumerate(_class_ranges(trial, inputs)):
        own = (inputs.target >= start) & (inputs.target < end) & _kept(inputs)
        if bool(own.any()):
            target = torch.where(_kept(inputs) & ~own, inputs.target.long(), -100)
            options = {**inputs.options, "ignore_index": -100}
            changed = replace(_with_target(inputs, target), options=options)
            yield from _compared(trial, changed, f"with the targets on rank {rank} ignored")


@check("label_smoothing", cost=Cost.CALLS, applies=_has_classes)
def whole_smoothing(trial: Trial) -> Iterator[Difference]:
    """With label_smoothing=1, where each loss is a mean over the classes of all ranks, loss and gradient are exact."""
    inputs = trial.question.inputs
    smoothed = replace(inputs, options={**inputs.options, "label_smoothing": 1.0})
    yield from _compared(trial, smoothed, "with label_smoothing=1")


@check(cost=Cost.CALLS, applies=_has_classes)
def uneven_shards(trial: Trial) -> Iterator[Difference]:
    """If the number of classes is not a multiple of the number of ranks, loss and gradient are exact."""
    inputs, ranks = trial.question.inputs, trial.subject.ranks
    _class_ranges(trial, inputs)  # raises NotRunError if the subject cuts the batch
    if ranks == 1:
        raise NotRunError(_ONE_RANK)
    uneven = [classes for classes in range(inputs.classes, ranks, -1) if classes % ranks]
    if not uneven:
        raise NotRunError("gets too few classes for shards of different sizes")
    yield from _compared(trial, _of_classes(inputs, uneven[0]), f"of {uneven[0]} classes")


@check(cost=Cost.CALLS, applies=_has_classes)
def empty_shard(trial: Trial) -> Iterator[Difference]:
    """If there are fewer classes than ranks, so that a rank has no classes, loss and gradient are exact.

    On `R` ranks, the call has at most `R - 1` classes.
    """
    inputs, ranks = trial.question.inputs, trial.subject.ranks
    _class_ranges(trial, inputs)  # raises NotRunError if the subject cuts the batch
    # The attribute `lacks` of the loss does not stop this check; --without does.
    if (reason := trial.subject.lacks.get("one_class", "")).startswith(DECLARED):
        raise NotRunError(reason)
    if ranks == 1:
        raise NotRunError(_ONE_RANK)
    narrowed = _of_classes(inputs, min(inputs.classes, ranks - 1))
    lacks = trial.subject.lacks.items()
    if missing := [reason for name, reason in lacks if name != "one_class" and FEATURES[name].needs(narrowed)]:
        raise NotRunError(missing[0])
    got = call_anyway(trial, narrowed)
    yield from _named(trial, got, narrowed, f"of {narrowed.classes} {'class' if narrowed.classes == 1 else 'classes'}")


@check("index_target", "errors", "index_errors", cost=Cost.CALLS, applies=_has_classes)
def padding_target(trial: Trial) -> Iterator[Problem]:
    """A target that is no class, but an index in the padding of the class axis, raises an error.

    The padding consists of further logits at the end of the class axis, so that all shards have the same size.
    """
    inputs, ranks = trial.question.inputs, trial.subject.ranks
    if trial.subject.split != "padded":
        raise NotRunError("pads no shard")
    if ranks == 1:
        raise NotRunError(_ONE_RANK)
    if is_dense(inputs):
        raise NotRunError(_PROBABILITIES)
    # A target with the value of ignore_index would be ignored.
    ignore_index = inputs.options.get("ignore_index", -100)
    classes = next((one for one in range(inputs.classes, 1, -1) if one % ranks and one != ignore_index), 0)
    if not classes:
        raise NotRunError("gets too few classes for a shard with padding")
    narrowed = _of_classes(inputs, classes)
    if not (kept := _kept(narrowed)).any():
        raise NotRunError("gets only ignored rows; this check needs a row that is not ignored")
    target = torch.where(kept, classes, narrowed.target.long())
    performed: Performed[Result] = trial.host.perform(evaluate, _with_target(narrowed, target), ())
    if performed.ended:
        yield Problem(performed.ended, performed.how)
    elif performed.raised is None:
        due = f"should have raised an error, since the last class is {classes - 1}"
        yield Problem("accepted", f"the call returned a loss for the target {classes}; {due}")


def evaluate_in_parts(loss: Any, inputs: Inputs, gradients: Gradients, sizes: Sequence[int]) -> Result:
    """Act: call the loss on micro-batches of `sizes` samples, and return the loss and gradient of the whole batch."""
    return Result(*loss.accumulate(inputs, sizes, "gradient" in gradients))


@check(cost=Cost.CALLS, applies=lambda case: case.rows > 1)
def micro_batches(trial: Trial) -> Iterator[Difference]:
    """The losses and gradients of micro-batches add up to the exact loss and gradient of the whole batch.

    Micro-batches are the parts of a batch in gradient accumulation. A sample is an entry of the first axis. The check
    cuts the batch into two halves, into the first sample and the rest, and a small batch into single samples.
    """
    inputs = trial.question.inputs
    if not trial.subject.normalization:
        raise NotRunError('has no attribute normalization = "tokens", which micro-batches need')
    size = inputs.input.shape[0]
    if size < 2:
        raise NotRunError("gets a batch of one sample, which cannot be cut into micro-batches")
    halves = [size - size // 2, size // 2]
    for sizes in dict.fromkeys((tuple(halves), (1, size - 1), *([(1,) * size] if size <= _MOST_MICRO_BATCHES else []))):
        of = " and ".join(map(str, sizes)) if len(sizes) == 2 else "one sample"
        yield from _named(
            trial, further_call(trial, inputs, evaluate_in_parts, sizes), inputs, f"in micro-batches of {of}"
        )
    if not is_dense(inputs):
        ignoring = _ignoring(inputs, torch.arange(size) < halves[0])
        got = further_call(trial, ignoring, evaluate_in_parts, halves)
        yield from _named(trial, got, ignoring, "with an ignored micro-batch")


@check("index_target", "ignore_index", cost=Cost.CALLS, applies=lambda case: case.rows > 1)
def idle_rank(trial: Trial) -> Iterator[Difference]:
    """If all rows of one rank are ignored, loss and gradient are exact."""
    inputs, ranks = trial.question.inputs, trial.subject.ranks
    if trial.subject.split != "batch":
        raise NotRunError("cuts the classes, so each rank has all rows")
    if is_dense(inputs):
        raise NotRunError("gets class probabilities, with which no row can be ignored")
    rows = torch.arange(inputs.input.shape[0])
    parts = rows.chunk(ranks)
    if len(parts) == 1:
        raise NotRunError("has all rows on one rank")
    for rank, own in enumerate(parts):
        yield from _compared(trial, _ignoring(inputs, torch.isin(rows, own)), f"with all rows of rank {rank} ignored")


def _ignoring(inputs: Inputs, ignored: Tensor) -> Inputs:
    """Return the inputs with more ignored rows: all rows of the samples in the mask `ignored`."""
    mask = ignored.reshape(-1, *[1] * (inputs.target.dim() - 1)) | ~_kept(inputs)
    options = {**inputs.options, "ignore_index": -100}
    return replace(_with_target(inputs, torch.where(mask, -100, inputs.target.long())), options=options)


def _kept(inputs: Inputs) -> Tensor:
    kept: Tensor = inputs.target != inputs.options.get("ignore_index", -100)
    return kept


def _with_target(inputs: Inputs, target: Tensor) -> Inputs:
    return replace(inputs, target=target.to(torch.int64))


def _of_classes(inputs: Inputs, classes: int) -> Inputs:
    """Return the inputs with only the first `classes` classes. Class indices are taken modulo `classes`."""
    axis = min(1, inputs.input.dim() - 1)
    options = dict(inputs.options)
    if isinstance(weight := options.get("weight"), Tensor):
        options["weight"] = weight[:classes].clone()
    if is_dense(inputs):
        target = inputs.target.narrow(axis, 0, classes).clone()
    else:
        target = torch.where(_kept(inputs), inputs.target.long() % classes, inputs.target.long())
    return replace(inputs, input=inputs.input.narrow(axis, 0, classes).clone(), target=target, options=options)
