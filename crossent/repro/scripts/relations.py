"""Script functions for the checks that compare the results of several calls of the subject."""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: B905  # a script may run on Python 3.9, whose zip has no `strict`

import torch

from crossent.repro.scripts.case import chunk_sizes, equations, given, index, other, part, subject, terms, upstream
from crossent.repro.scripts.functions import bits, evaluate, fresh, judged, require_shape, verdict


def call_each():
    """Make the calls of each equation in `equations`, and return the results of the calls of the last equation."""
    results = []
    for equation in equations:
        results = [evaluate(*fresh(*inputs)) for inputs in equation]
        for result, inputs in zip(results, equation):
            require_shape(result["loss"], *inputs)
    return results


def call_in_chunks():
    """Call the subject with several chunk sizes, and return the results by name, such as "with chunk_size=8".

    Sizes that the subject refuses are left out. If the subject refuses all sizes, end the script with status 0.
    """
    results = {}
    for call, keyword, size in chunk_sizes:

        def in_chunks(*arguments, keyword=keyword, size=size, **options):
            return subject(*arguments, **options, **{keyword: size})

        try:
            results[call] = evaluate(*fresh(*given), loss_of=in_chunks)
        except (ValueError, AssertionError, NotImplementedError) as error:
            print(f"{call}: {error!r}")
            continue
        require_shape(results[call]["loss"], *given)
    if not results:
        verdict(False, "the subject refuses the sizes of the chunks, so the finding does not happen")
    return results


def judge_terms(results):
    """Compare a number of the first result with the weighted sum of the numbers in `terms`, and end the script."""
    total = sum(factor * results[which][part][place].item() for which, factor, place in terms)
    verdict(*judged(results[0][part][index].item(), total))


def judge_unchanged(results):
    """End the script with status 1 if a call with an option and a call without the option give the same values."""
    one, without = (result[part] for result in results)
    if ((one == without) | (one.isnan() & without.isnan())).all():
        verdict(True, f"{part}: got the same values with and without the option; expected different values")


def check_two_backwards():
    """Check that another backward pass, or another loss of the same logits, changes no bit of the result."""
    seen = []

    def both(input, target, **options):
        another = other[1].detach().requires_grad_(target.requires_grad)
        layer = {name: of for name, of in options.items() if name.startswith("linear_")}
        one, two = subject(input, target, **options), subject(input, another, **{**other[2], **layer})
        for loss, of, by in ((one, target, upstream), (two, another, upstream), (one, target, -2 * upstream)):
            wanted = {"gradient": input, "target_gradient": of, **layer}
            wanted = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
            by = by.to(loss.dtype)
            gradients = torch.autograd.grad(loss, list(wanted.values()), by, retain_graph=True)
            seen.append(list(bits({"loss": loss.detach(), **dict(zip(wanted, gradients))}).values()))
            for gradient in gradients:
                # torch refuses to write into an expanded tensor; and a gradient may be the upstream gradient itself
                owners = [one.untyped_storage().data_ptr() for one in (gradient, by)]
                if 0 not in gradient.stride() and owners[0] != owners[1]:
                    gradient.detach().fill_(torch.nan)
        return one  # `evaluate` differentiates this graph again

    first, alone = evaluate(*fresh(*given)), evaluate(*fresh(*other))
    require_shape(alone["loss"], *other)
    last = evaluate(*fresh(*given), loss_of=both)
    if list(bits(last).values()) != seen[0]:
        passes = "after another backward pass through the same graph, and NaN written into the gradients in place,"
        verdict(True, f"{passes} the same upstream gradient gives a different result")
    if seen[:2] != [list(bits(one).values()) for one in (first, alone)]:
        losses = "two losses of the same logits, or their gradients,"
        verdict(True, f"{losses} have different bits than each loss computed alone")
