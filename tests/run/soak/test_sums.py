"""The sums of a soak do not depend on the order of its parts."""

import itertools
from dataclasses import replace

from crossent.report.findings import Finding, Measured, Outcome, SubjectReport, Verdict
from crossent.run.soak.sums import FINDINGS_KEPT, SoakTally, SubjectSums, sums_of


def part(*numbers, ratio=0.5, failed=False):
    """Return the sums of some cases with equal results. The number of a case is also its id."""
    report = SubjectReport("mine")
    for number in numbers:
        outcome = Outcome("float32", "", checks={"loss": Measured(failed, 1.0, ratio, elements=2)})
        findings = [Finding("mine", "loss", str(number), "wrong", "")] if failed else []
        report.enter(Verdict(str(number), replace(outcome, not_run={"gradient": "a reason"}), findings))
    report.enter(Verdict("other", not_applicable="lacks something"))
    return sums_of(report, {str(number): number for number in numbers})


def joined(parts):
    whole = SubjectSums("mine")
    for one in parts:
        whole.join(one)
    return whole


def test_the_sums_are_equal_in_every_order_of_the_parts():
    parts = [part(5, 6, ratio=0.5), part(0, 1, ratio=0.25), part(2, 3, 4, ratio=0.5), part(7, 8, 9, 11, failed=True)]
    orders = [joined(order) for order in itertools.permutations(parts)]
    assert all(order == orders[0] for order in orders)
    tally = orders[0].tallies["loss", "float32"]
    assert (tally.ran, tally.failed, tally.elements) == (11, 4, 22)
    assert orders[0].tallies["gradient", "float32"].skipped == 11
    assert orders[0].not_applicable == {"lacks something": 4}


def test_of_equally_bad_cases_the_lowest_number_counts():
    for order in itertools.permutations([part(5, 6), part(2, 9), part(0, ratio=0.25)]):
        tally = joined(order).tallies["loss", "float32"]
        assert (tally.ratio, tally.number, tally.case) == (0.5, 2, "2")


def test_a_case_with_an_error_of_zero_is_a_worst_case_and_no_case_is_none():
    tally = SoakTally()
    tally.join(SoakTally(ran=3))
    assert (tally.ran, tally.ratio, tally.case) == (3, None, "")
    tally.join(part(7, ratio=0.0).tallies["loss", "float32"])
    assert (tally.ratio, tally.number, tally.case) == (0.0, 7, "7")


def test_the_findings_with_the_lowest_numbers_are_kept_and_all_are_counted():
    for order in itertools.permutations([part(5, 6, failed=True), part(1, 9, failed=True), part(3, failed=True)]):
        (failures,) = joined(order).failures.values()
        assert failures.count == 5
        assert [number for number, _ in failures.first] == [1, 3, 5][:FINDINGS_KEPT]
