"""The order of a run: the first cases find most mutants, and a run is divided into parts of equal cost.

`nox -s mutants` chooses the first cases again and writes them to `crossent/run/first_cases.txt`.
"""

from pathlib import Path
from random import Random

import pytest
from every import MUTANTS
from support.running import run

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.checks import CHECKS
from crossent.run import order
from crossent.run.order import PARTS_PER_WORKER, SUBJECTS_AT_ONCE, cost, first_cases, imports_compilers, ordered, parts
from crossent.run.plan import plan
from crossent.subjects.subject import Subject
from crossent.trials.check import Cost

FILE = Path(order.__file__).with_name(order.FIRST_CASES)
JOBS = 2


@pytest.fixture(scope="module")
def planned():
    """Return the plan of level normal with a seed, as for a foreign subject."""
    return plan("normal", tuple(DTYPES), 5)


def candidates():
    """Return the cases that may be among the first, with their checks."""
    planned = plan("quick", tuple(DTYPES), 0)
    return {case: checks for case, checks in planned.items() if not imports_compilers(checks)}


def found_by(case, checks, mutants):
    """Return the names of the mutants that have a finding on a case."""
    report = run([Subject(mutant.name, mutant.loss) for mutant in mutants], case, checks)
    return {part.name for part in report.subjects if part.findings}


def greedy(found):
    """Return cases in an order in which each finds the most mutants that the cases before do not find."""
    left, chosen = set().union(*found.values()), []
    while left:
        chosen.append(max(found, key=lambda case: len(left & found[case])))
        left -= found[chosen[-1]]
    return chosen


def choose():
    """Return the ids of the first cases: named cases, then cases of the arrays for mutants that no named case finds.

    `nox -s cover` may change the cases of the arrays, so few of them should be first.
    """
    chosen, left = [], MUTANTS
    for named in (True, False):
        these = [case for case in candidates() if named == (isinstance(case, BadInput) or bool(case.name))]
        found = {case.id: found_by(case, candidates()[case], left) for case in these}
        chosen += greedy(found)
        left = [mutant for mutant in left if not any(mutant.name in names for names in found.values())]
    return chosen


def test_the_greedy_choice_takes_the_most_first():
    assert greedy({"a": {1, 2}, "b": {2, 3, 4}, "c": {1}, "d": {4}}) == ["b", "a"]


@pytest.fixture
def chosen(pytestconfig):
    if pytestconfig.getoption("--crossent-write-figures"):
        FILE.write_text("".join(f"{case}\n" for case in choose()), encoding="utf-8")
        first_cases.cache_clear()
    return first_cases()


def test_the_first_cases_are_in_every_plan_and_need_no_compiler(chosen):
    assert len(set(chosen)) == len(chosen) > 20
    known = {case.id for case in candidates()}
    missing = [case for case in chosen if case not in known]
    assert len(missing) <= len(chosen) / 6, f"nox -s mutants chooses them again: {missing}"


def test_the_first_cases_find_most_mutants(chosen):
    checks = {case.id: (case, checks) for case, checks in candidates().items()}
    some = MUTANTS[::12]
    found = [
        any(run(Subject(mutant.name, mutant.loss), *checks[case]).findings for case in chosen if case in checks)
        for mutant in some
    ]
    assert sum(found) >= 0.8 * len(some)


def test_the_first_cases_come_first_in_their_order_whatever_the_seed(planned):
    first, others, compiling = ordered(planned)
    cases = list(planned)
    ids = [case.seeded(0).id if isinstance(case, Case) else case.id for case in (cases[at] for at in first)]
    assert ids == [case for case in first_cases() if case in ids]
    assert len(ids) > len(first_cases()) / 2
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
