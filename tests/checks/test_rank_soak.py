"""Right losses on 2 and 3 ranks pass the random and adversarial cases of `nox -s soak`.

A call on ranks takes much longer than a call in one process, so only an eighth of the cases of a soak runs here.
`pytest tests/checks/test_rank_soak.py --crossent-soak 4000` runs 500 cases in each dtype, on 2 and on 3 ranks.
"""

import pytest
from batch_parallel import BatchParallel
from support.running import run_isolated
from token_mean import TokenMean
from vocab_parallel import PaddedVocabParallel, VocabParallel

from crossent.cases.axes import DTYPES
from crossent.checks import CHECKS
from crossent.run.soak.draws import draws
from crossent.subjects.loader import load
from crossent.subjects.ranks.protocol import can_start_ranks
from crossent.trials.check import Cost

pytestmark = pytest.mark.skipif(not can_start_ranks(), reason="needs a system that forks, and torch 2.3 or newer")
SHARE = 8  # one case in eight
PART = 50  # the number of cases in one test
LARGEST = 100_000  # the most logits of a case, since sending a larger case to the ranks takes seconds
LOSSES = (VocabParallel, PaddedVocabParallel, BatchParallel, TokenMean)


def pytest_generate_tests(metafunc):
    if "part" in metafunc.fixturenames:
        count = metafunc.config.getoption("--crossent-soak") // SHARE
        parts = [
            (ranks, dtype, start, min(PART, count - start))
            for ranks in (2, 3)
            for dtype in DTYPES
            for start in range(0, count, PART)
        ]
        metafunc.parametrize("part", parts, ids=lambda part: "{}-ranks-{}-{}".format(*part))


def test_a_right_loss_on_ranks_passes_random_cases(part, seed):
    ranks, dtype, first, count = part
    checks = [check for check in CHECKS.values() if check.cost == Cost.CALL]
    loss = LOSSES[first // PART % len(LOSSES)]  # each part has another loss
    cases = [case.id for case in draws(count, [dtype], seed, first=first) if case.rows * case.classes <= LARGEST]
    (subject,) = load(loss, ranks=ranks)
    report = run_isolated(subject, seconds=300, cases=cases, checks=checks)
    assert [str(finding) for finding in report.findings] == []
    (part_of_subject,) = report.subjects
    assert len(part_of_subject.outcomes) + part_of_subject.not_applicable.total() == len(cases)
    assert len(part_of_subject.outcomes) > 0
