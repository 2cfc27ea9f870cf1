"""The plan of a run: the cases of a level, and the checks that run on each case.

The cases come from :mod:`crossent.cases`: the corpus of published bugs, the edges (cases at limits), the large cases
(more than 2^31 elements), and the covering arrays. The covering arrays are pairs, triples, sizes, size_triples and
transformed. `samples` are a few cases of the corpus and of `transformed`.

CALL, AGAIN, CALLS, STRUCTURE, CODE and TILES are costs of checks, from a single call to gigabytes of memory
(:class:`crossent.trials.check.Cost`). A graph is torch's record of the operations of the subject, which torch.compile
and torch.export need. A row with "graphs" has the checks that trace a graph. "Other circumstances" are calls without
gradients, in other threads, in modes of torch, or with tensors that are not leaves
(:mod:`crossent.checks.circumstances`, :mod:`crossent.checks.leaves`).

In each table, level normal also runs the rows of level quick. Level thorough runs all rows except `samples`:

    level      cases            costs of the checks
    quick      corpus           CALL, AGAIN, and the checks that the bug names, except checks of compiled code;
                                graphs of one case
               some per dtype   calls in other circumstances
               edges            CALL
               pairs            CALL
               sizes            CALL, AGAIN; without the cases with the most classes
    normal     edges            CALL, AGAIN; more edges
               pairs            CALL, AGAIN, CALLS
               triples          CALL
               sizes            CALL, AGAIN
               size_triples     CALL
               corpus           graphs of one case of each bug of compiled code
               transformed      CALL, AGAIN, STRUCTURE; graphs of a few cases, which have every choice on each axis
               samples          CODE, each check on one case
    thorough   edges            CALL, AGAIN; more edges
               pairs, triples   as at level normal, four times, each with different numbers
               sizes            as at level normal, four times, each with different numbers
               size_triples     as at level normal, four times, each with different numbers
               corpus           all checks that the bug names
               transformed      CALL, AGAIN, STRUCTURE, CODE; graphs of all cases
               large            TILES

A linear cross-entropy has other cases (:mod:`crossent.cases.linear`):

    level      cases            costs of the checks
    quick      edges            CALL, AGAIN
               pairs            CALL
               some per dtype   CALLS, STRUCTURE
    normal     edges            CALL, AGAIN, CALLS, STRUCTURE
               pairs            CALL, AGAIN, CALLS
               triples          CALL
    thorough   edges            as at level normal
               pairs, triples   as at level normal, four times, each with different numbers

Each level also has all bad inputs, on which the checks `errors`, `arguments` and `state` run
(:mod:`crossent.checks.refusals`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.corpus import Bug, bugs
from crossent.cases.edges import edges, large_cases
from crossent.cases.grid import WIDEST, each_choice, grid
from crossent.cases.ids import BAD_INPUT_OF
from crossent.cases.linear.case import LinearCase
from crossent.cases.linear.edges import linear_edges
from crossent.cases.linear.grid import linear_grid
from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY, Operation
from crossent.checks import CHECKS, RANK_CHECKS, checks_of, circumstances, compiled_code, leaves, transforms
from crossent.trials.check import Check, Cost

Plan = Mapping[Case | BadInput, tuple[Check, ...]]  # each case with its checks; a bad input has an empty tuple
# How often the covering arrays run at each level, each time with another seed.
_REPETITIONS = {"quick": 1, "normal": 1, "thorough": 4}
# A second call finds a result that depends on earlier calls. Such a bug shows with any numbers, so a few cases suffice.
# The covering arrays of triples have no second call. At level quick, only the sizes, the corpus and the edges of a
# linear cross-entropy have a second call.
_TWICE = (Cost.CALL, Cost.AGAIN)
# The checks that trace a graph, which takes a tenth of a second or more. The graphs at level normal cover each choice,
# and the graphs at level thorough cover each pair of choices.
_GRAPHS = (compiled_code.trace, transforms.export)
_OF_CODE = {compiled_code.trace, *(check for check in CHECKS.values() if check.cost is Cost.CODE)}
# The only case with a graph at level quick. The case finds a graph that takes the ignore_index -1 for the last class,
# and a graph that reads the logit of an ignored target before the row is masked.
_QUICK_GRAPH = Case.of("float32-7x5-normal-int64-none-ignored_minus_one-rows")

# Level quick calls a subject in other circumstances on one case of each dtype, and on two more cases: a one-hot target,
# which need not have a gradient, and ignored rows, where the upstream gradient may be NaN.
_QUICK_CIRCUMSTANCES = (
    *(circumstances.no_grad, leaves.non_leaf, leaves.alone, circumstances.threads),
    circumstances.circumstances,
)
_QUICK_CALLS = (
    *(Case(dtype) for dtype in ("float32", "float16")),
    *(
        Case(dtype, target="probabilities", reduction="none", weight="weighted", upstream="rows")
        for dtype in ("float64", "bfloat16")
    ),
    Case("float32", target="hard", weight="weighted"),
    Case("float32", reduction="none", ignored="ignored_default", upstream="rows"),
)

# Level quick calls a linear cross-entropy in other circumstances on these cases. A kernel with few options can run
# the plain cases among these cases.
_QUICK_LINEAR_CALLS = (
    *(LinearCase(dtype) for dtype in DTYPES),
    *(LinearCase(dtype, bias="bias") for dtype in ("float32", "float16")),
    *(
        LinearCase(dtype, reduction="none", weight="weighted", upstream="rows", bias="bias")
        for dtype in ("float64", "bfloat16")
    ),
)

# The checks of ranks run on these cases of each dtype: a plain case; a case with a weight, no reduction and an upstream
# gradient for each row; and a case with rows in two further dimensions.
_RANK_CASES = tuple(
    case
    for dtype in DTYPES
    for case in (
        Case(dtype),
        Case(dtype, reduction="none", weight="weighted", upstream="rows"),
        Case.of(f"{dtype}-2x5x3x2-normal-int64-sum-scalar"),
    )
)


def plan(level: str, dtypes: Sequence[str], seed: int, operation: Operation = CROSS_ENTROPY) -> Plan:
    """Return the cases of a level in these dtypes, each with the checks that run on the case.

    `seed` determines the random numbers of the cases. A bad input has an empty tuple in place of its checks, which
    `judge_bad_input` chooses.
    """
    planned: dict[Case | BadInput, set[Check]] = {}
    of_operation = _of_linear if operation is LINEAR_CROSS_ENTROPY else _planned
    for case, checks in of_operation(level, dtypes, seed):
        planned.setdefault(case, set()).update(checks)
    every = checks_of(operation).values()
    ordered = {case: tuple(check for check in every if check in checks) for case, checks in planned.items()}
    bad_inputs = [bad for bad in BAD_INPUT_OF.values() if bad.operation is operation and bad.dtype in dtypes]
    return {**ordered, **dict.fromkeys(bad_inputs, ())}


def with_rank_checks(planned: Plan, dtypes: Sequence[str], seed: int) -> Plan:
    """Add the checks of losses on several ranks to a plan, on a few cases of each dtype, and return the new plan."""
    own = tuple(RANK_CHECKS.values())
    more: dict[Case | BadInput, tuple[Check, ...]] = {
        case: (*planned.get(case, of_cost(Cost.CALL)), *own)
        for case in (case.seeded(seed) for case in _RANK_CASES if case.dtype in dtypes)
    }
    return {**more, **{case: more.get(case, checks) for case, checks in planned.items()}}


@cache
def of_cost(*costs: Cost) -> tuple[Check, ...]:
    """Return the checks that have one of these costs."""
    return tuple(check for check in CHECKS.values() if check.cost in costs)


def _planned(level: str, dtypes: Sequence[str], seed: int) -> Iterator[tuple[Case, Iterable[Check]]]:
    yield from _of_corpus(level, dtypes, seed)  # first, so that a case of two sources keeps the name of its bug
    for case in edges(dtypes, seed, level):
        yield case, of_cost(Cost.CALL) if level == "quick" else of_cost(*_TWICE)
    for at in range(_REPETITIONS[level]):
        for case in grid(dtypes, seed + at, "pairs"):
            yield case, of_cost(Cost.CALL) if level == "quick" else of_cost(*_TWICE, Cost.CALLS)
        for case in grid(dtypes, seed + at, "sizes"):
            if level != "quick" or case.class_size != WIDEST:
                yield case, of_cost(*_TWICE)
        if level != "quick":
            for array in ("triples", "size_triples"):
                yield from ((case, of_cost(Cost.CALL)) for case in grid(dtypes, seed + at, array))
    yield from ((case.seeded(seed), _QUICK_CIRCUMSTANCES) for case in _QUICK_CALLS if case.dtype in dtypes)
    if level == "quick":
        return
    transformed = list(grid(dtypes, seed, "transformed"))
    if level == "thorough":
        yield from ((case, of_cost(*_TWICE, Cost.STRUCTURE, Cost.CODE)) for case in transformed)
        yield from ((case, of_cost(Cost.TILES)) for case in large_cases(dtypes, seed))
        return
    for case in transformed:
        yield case, [check for check in of_cost(*_TWICE, Cost.STRUCTURE) if check not in _GRAPHS]
    of_corpus = [case for bug in bugs() for case in _of_bug(bug, dtypes, seed)[:1] if _OF_CODE & _named(bug)]
    yield from ((case, [compiled_code.trace]) for case in each_choice(transformed, of_corpus))
    yield from ((case, [transforms.export]) for case in each_choice(transformed))
    yield from _samples([*of_corpus, *transformed])


def _of_linear(level: str, dtypes: Sequence[str], seed: int) -> Iterator[tuple[Case, Iterable[Check]]]:
    """Yield the cases of a linear cross-entropy at a level, each with its checks."""
    quick = level == "quick"
    of_edges = of_cost(*_TWICE) if quick else of_cost(*_TWICE, Cost.CALLS, Cost.STRUCTURE)
    of_pairs = of_cost(Cost.CALL) if quick else of_cost(*_TWICE, Cost.CALLS)
    of_calls = of_cost(Cost.CALLS, Cost.STRUCTURE)
    yield from ((case, of_edges) for case in linear_edges(dtypes, seed))
    yield from ((case.seeded(seed), of_calls) for case in _QUICK_LINEAR_CALLS if case.dtype in dtypes)
    for at in range(_REPETITIONS[level]):
        yield from ((case, of_pairs) for case in linear_grid(dtypes, seed + at, "pairs"))
        if not quick:
            yield from ((case, of_cost(Cost.CALL)) for case in linear_grid(dtypes, seed + at, "triples"))


def _of_corpus(level: str, dtypes: Sequence[str], seed: int) -> Iterator[tuple[Case, Iterable[Check]]]:
    """Yield the cases of the published bugs at a level, each with its checks."""
    for bug in bugs():
        of_code = _OF_CODE & _named(bug)  # checks that trace or compile code, which is slow
        for at, case in enumerate(_of_bug(bug, dtypes, seed)):
            yield case, {*of_cost(*_TWICE), *_named(bug)} - of_code
            if of_code and level == "thorough":
                yield case, {compiled_code.trace, *of_code}
            elif of_code and at == 0 and (level == "normal" or case.seeded(0) == _QUICK_GRAPH):
                yield case, [compiled_code.trace]


def _named(bug: Bug) -> set[Check]:
    return {CHECKS[name] for name in bug.checks if name in CHECKS}


def _of_bug(bug: Bug, dtypes: Sequence[str], seed: int) -> list[Case]:
    return [case.seeded(seed) for case in bug.cases if case.dtype in dtypes and case.tiled == 1]


def _samples(cases: Sequence[Case]) -> Iterator[tuple[Case, Iterable[Check]]]:
    """Yield a case for each check of the cost CODE, with this check: the first case that `Check.sample` selects.

    Cases without rows, or with a uint8 target, are left out.
    """
    some = [case for case in cases if case.rows and case.target != "uint8"]
    for check in of_cost(Cost.CODE):
        yield from ((case, [check]) for case in [case for case in some if check.sample(case)][:1])
