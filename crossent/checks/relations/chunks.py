"""The check of functions with an argument for the chunk size: every size must give the exact result.

The chunk size counts rows, classes or logits, depending on the function.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from crossent.cases.inputs import Inputs
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.subjects.subject import Loss
from crossent.trials.call import Gradients, Result, evaluate
from crossent.trials.check import Cost, Found, check
from crossent.trials.trial import NotRunError, Problem, RefusedError, Trial, misshapen

# The errors that a function may raise to refuse a chunk size, such as a size that is not a power of two.
REFUSALS_OF_SIZES = (ValueError, AssertionError, NotImplementedError)


@check(cost=Cost.CALLS, applies=lambda case: case.rows > 0, operations=(LINEAR_CROSS_ENTROPY,))
def chunks(trial: Trial) -> Found:
    """The result is exact with each chunk size: 1, 2, the number of rows, and this number plus 1.

    The check also tries the number of logits in two rows, since a chunk size may count logits. The check skips a size
    that the function refuses with a ValueError, AssertionError or NotImplementedError.
    Liger-Kernel#1391: the error of a gradient grew with the number of chunks.
    """
    if not trial.subject.chunks:
        raise NotRunError("has no known argument for the chunk size; the attribute `chunks` can name such an argument")
    question, ran = trial.question, False
    for way, (keyword, size) in chunk_sizes_by_call(question.inputs, trial.subject.chunks).items():
        try:
            got = trial.evaluate(question.fresh(), evaluate_in_chunks, keyword, size)
        except RefusedError as error:
            if error.raised.is_a(*REFUSALS_OF_SIZES):
                continue
            yield Problem("refused", f"{way}: {error}")
            return
        ran = True
        if problem := misshapen(trial, got.loss, question.exact, way=way):
            yield problem
            return
        yield from (replace(one, of=f"{one.of} {way}") for one in trial.compare(got, question.exact))
    if not ran:
        raise NotRunError("refuses every chunk size that the check tries")


def chunk_sizes_by_call(inputs: Inputs, keywords: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """Return a dict from the name of each call, such as "with chunk_size=8", to its keyword and its chunk size."""
    rows = len(inputs.input)
    sizes = dict.fromkeys((1, 2, rows, rows + 1, 2 * inputs.classes))
    return {f"with {keyword}={size}": (keyword, size) for keyword in keywords for size in sizes}


def evaluate_in_chunks(loss: Loss, inputs: Inputs, gradients: Gradients, keyword: str, size: int) -> Result:
    """Act: call the subject with the chunk size `size` as the argument `keyword`, and return the result."""
    return evaluate(partial(loss, **{keyword: size}), inputs, gradients)
