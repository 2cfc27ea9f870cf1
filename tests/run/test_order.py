"""The order of a run: the first cases find most mutants, and a run is divided into parts of equal cost.

`nox -s mutants` chooses the first cases again and writes them to the files in `order.FIRST_CASES`.
"""

from pathlib import Path
from random import Random

import pytest
from every import MUTANTS
from linear_every import LINEAR_MUTANTS
from support.running import run

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY
from crossent.checks import CHECKS
from crossent.run import order
from crossent.run.order import PARTS_PER_WORKER, SUBJECTS_AT_ONCE, cost, first_cases, imports_compilers, ordered, parts
from crossent.run.plan import plan
from crossent.subjects.callables import as_subject
from crossent.trials.check import Cost

MUTANTS_OF = {CROSS_ENTROPY: MUTANTS, LINEAR_CROSS_ENTROPY: LINEAR_MUTANTS}
JOBS = 2


@pytest.fixture(scope="module")
def planned():
    """Return the plan of level normal with a seed, as for a foreign subject."""
    return plan("normal", tuple(DTYPES), 5)


def candidates(operation):
    """Return the cases that may be among the first, with their checks."""
    planned = plan("quick", tuple(DTYPES), 0, operation)
    return {case: checks for case, checks in planned.items() if not imports_compilers(checks)}


def found_by(case, checks, mutants):
    """Return the names of the mutants that have a finding on a case."""
    report = run([as_subject(mutant.loss, operation=case.operation) for mutant in mutants], case, checks)
    return {part.name for part in report.subjects if part.findings}


def greedy(found):
    """Return cases in an order in which each finds the most mutants that the cases before do not find."""
    left, chosen = set().union(*found.values()), []
    while left:
        chosen.append(max(found, key=lambda case: len(left & found[case])))
        left -= found[chosen[-1]]
    return chosen


def choose(operation):
    """Return the ids of the first cases: named cases, then cases of the arrays for mutants that no named case finds.

    `nox -s cover` may change the cases of the arrays, so few of them should be first. The cases of a linear
    cross-entropy have no names, so only cases that a mutant names are chosen.
    """
    chosen, left, shown = [], MUTANTS_OF[operation], {mutant.case for mutant in MUTANTS_OF[operation]}
    for named in (True, False):
        these = [case for case in candidates(operation) if named == (isinstance(case, BadInput) or bool(case.name))]
        if operation is LINEAR_CROSS_ENTROPY:
            these = [case for case in these if case.id in shown]
        found = {case.id: found_by(case, candidates(operation)[case], left) for case in these}
        chosen += greedy(found)
        left = [mutant for mutant in left if not any(mutant.name in names for names in found.values())]
    return chosen


def test_the_greedy_choice_takes_the_most_first():
    assert greedy({"a": {1, 2}, "b": {2, 3, 4}, "c": {1}, "d": {4}}) == ["b", "a"]


@pytest.fixture(scope="module", params=MUTANTS_OF, ids=lambda operation: operation.name)
def operation(request):
    return request.param


@pytest.fixture(scope="module")
def chosen(pytestconfig, operation):
    if pytestconfig.getoption("--crossent-write-figures"):
        file = Path(order.__file__).with_name(order.FIRST_CASES[operation])
        file.write_text("".join(f"{case}\n" for case in choose(operation)), encoding="utf-8")
        first_cases.cache_clear()
    return first_cases(operation)


def test_the_first_cases_are_in_every_plan_and_need_no_compiler(chosen, operation):
    assert len(set(chosen)) == len(chosen) > 10
    known = {case.id for case in candidates(operation)}
    missing = [case for case in chosen if case not in known]
    assert len(missing) <= len(chosen) / 6, f"nox -s mutants chooses them again: {missing}"


def test_the_first_cases_find_most_mutants(chosen, operation):
    checks = {case.id: (case, checks) for case, checks in candidates(operation).items()}
    some = MUTANTS_OF[operation][::12]
    found = [any(found_by(*checks[case], [mutant]) for case in chosen if case in checks) for mutant in some]
    assert sum(found) >= 0.8 * len(some)


def test_the_first_cases_come_first_in_their_order_whatever_the_seed(planned):
    first, others, compiling = ordered(planned)
    cases = list(planned)
    ids = [case.seeded(0).id if isinstance(case, Case) else case.id for case in (cases[at] for at in first)]
    assert ids == [case for case in first_cases(CROSS_ENTROPY) if case in ids]
    assert len(ids) > len(first_cases(CROSS_ENTROPY)) / 2
    assert sorted([*first, *others, *compiling]) == list(range(len(cases)))
    assert all(imports_compilers(planned[cases[at]]) for at in compiling)
    assert not any(imports_compilers(planned[cases[at]]) for at in [*first, *others])


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("brief", [True, False])
@pytest.mark.parametrize("subjects", [1, SUBJECTS_AT_ONCE + 1])
def test_every_case_runs_once_on_every_subject_and_each_first_case_is_a_separate_part(
    planned, subjects, brief, isolated
):
    made = parts(planned, subjects, JOBS, isolated, brief, Random(1))
    pairs = [(case, subject) for part in made for case in part.cases for subject in part.subjects]
    assert sorted(pairs) == [(case, subject) for case in range(len(planned)) for subject in range(subjects)]
    first = ordered(planned)[0]
    assert [part.cases for part in made[: len(first)]] == [[at] for at in first]


def test_the_parts_have_equal_cost_and_the_most_expensive_cases_start_first(planned):
    cases = list(planned)
    other_parts = parts(planned, 4, JOBS, False, False, Random(1))[len(ordered(planned)[0]) :]
    costs = [part.cost for part in other_parts if len(part.cases) > 1]  # a case cannot be split
    assert len(costs) > 1.5 * PARTS_PER_WORKER
    assert max(costs) < 1.3 * sum(costs) / len(costs)
    tops = [max(cost(cases[at], planned[cases[at]])[0] for at in part.cases) for part in other_parts]
    assert tops == sorted(tops, reverse=True)
    assert CHECKS[other_parts[0].what.split()[0]].cost is Cost.CODE


def test_a_run_that_may_end_soon_leaves_the_compilers_for_the_end(planned):
    cases = list(planned)
    made = parts(planned, 1, JOBS, True, True, Random(1))
    compiling = [any(imports_compilers(planned[cases[at]]) for at in part.cases) for part in made]
    assert compiling == sorted(compiling)
    assert any(compiling)


def test_foreign_subjects_see_the_other_cases_in_random_order(planned):
    one, other = ([at for part in parts(planned, 1, JOBS, True, False, Random(n)) for at in part.cases] for n in (1, 2))
    first = len(ordered(planned)[0])
    assert one[:first] == other[:first]
    assert sum(a == b for a, b in zip(one[first:], other[first:], strict=True)) < 0.02 * len(one)


def test_a_few_cheap_cases_are_not_divided_into_many_parts(planned):
    quick = plan("quick", ("float32",), 0)
    other_parts = parts(quick, 1, JOBS, True, False, Random(1))[len(ordered(quick)[0]) :]
    assert len(other_parts) < len(parts(planned, 4, JOBS, True, False, Random(1))) / 2
