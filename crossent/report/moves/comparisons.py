"""Compare the checks of one subject in two runs, case by case."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from crossent.cases.edges import POLICY_NAMES
from crossent.report.findings import Finding, Outcome, SubjectReport
from crossent.report.moves.rules import Kind, Move, Side, kind_of

# For each check that needs only the first call, but has no result of its own name: the results that the check uses.
ABOUT = {"sign": ("loss",), "row_sums": ("gradient",), "ignored_rows": ("loss", "gradient")}


def comparisons(old: SubjectReport, new: SubjectReport) -> Iterator[Move]:
    """Yield the comparison of each check that both runs have on a case with the same input bits."""
    findings = [{(finding.case, finding.check): finding for finding in part.findings} for part in (old, new)]
    for case, now in new.outcomes.items():
        before = old.outcomes.get(case)
        if before is None or before.inputs != now.inputs:
            continue
        both = before.checks.keys() & now.checks.keys()
        # NaN is not equal to NaN, but both have the same repr.
        alike = before.results == now.results or repr(before.results) == repr(now.results)
        for check in [check for check in now.checks if check in both]:
            was = _side(check, before, findings[0].get((case, check)), both, alike)
            now_is = _side(check, now, findings[1].get((case, check)), both, alike)
            policy = POLICY_NAMES.get(case, "")
            kind = kind_of(check, was, now_is, bool(policy))
            if (old.contract, [*old.declared]) != (new.contract, [*new.declared]) and kind is not Kind.SAME:
                kind = Kind.BEHAVIOUR  # with another contract or other declarations, no other kind can be determined
            found = ((name, findings[1].get((case, name))) for name in now.checks if name not in both)
            # A refusal by a further check, such as a transform, does not make the result of the call wrong.
            also = tuple(name for name, finding in found if finding is not None and finding.kind != "refused")
            if kind in (Kind.ACCEPTED, Kind.FIXED) and check == "call" and also:
                kind = Kind.BROKEN
            else:
                also = ()
            yield Move(kind, new.name, check, case, now.dtype, was, now_is, policy, also)


def _side(check: str, outcome: Outcome, finding: Finding | None, checked: Collection[str], alike: bool) -> Side:
    """Return the `Side` of a check on one case in one run.

    `checked` has the checks that both runs have on the case. `alike` says whether the results of the first call are
    equal in both runs.
    """
    whose = {name: shown for name, shown in outcome.results.items() if name == check}
    digest = "-".join(outcome.results[name].digest for name in ABOUT.get(check, ()) if name in outcome.results)
    if check == "call":  # show the results that no check compared, for example a loss of the wrong shape
        whose = {name: shown for name, shown in outcome.results.items() if name not in checked}
    return Side(
        outcome.checks[check],
        finding,
        whose,
        outcome.raised if check in ("call", "errors") else "",
        outcome.digest if check == "call" and alike else digest,
        outcome.grade if check == "result" else "",
    )
