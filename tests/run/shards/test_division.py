"""The division of a plan into shards: each case is in one shard, and the shards have about equal cost."""

import pytest

from crossent.cases.axes import DTYPES
from crossent.run.order import cost
from crossent.run.plan import plan
from crossent.run.shards.division import divide, plan_of_shard


@pytest.mark.parametrize("level", ["quick", "normal", "thorough"])
def test_each_case_is_in_one_shard_and_the_shards_have_about_equal_cost(level):
    planned = plan(level, tuple(DTYPES), 0)
    costs = [cost(case, checks)[0] for case, checks in planned.items()]
    for count in (1, 2, 3, 8, 64):
        shards = divide(planned, count)
        assert sorted(case for shard in shards for case in shard) == list(range(len(planned)))
        goal = sum(costs) / count
        most = max(sum(costs[at] for at in shard) for shard in shards)
        assert most <= max(1.34 * goal, max(costs) + goal / 3)


def test_the_division_depends_on_the_plan_alone():
    one, other = (divide(plan("normal", ("float32",), seed), 5) for seed in (0, 9))
    assert one == other == divide(plan("normal", ("float32",), 0), 5)


def test_shards_beyond_the_number_of_cases_are_empty():
    planned = dict(list(plan("quick", ("float32",), 0).items())[:3])
    parts = [plan_of_shard(planned, (number, 5)) for number in range(1, 6)]
    assert sorted(map(len, parts)) == [0, 0, 1, 1, 1]
    assert {case: checks for part in parts for case, checks in part.items()} == planned
