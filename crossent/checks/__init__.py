"""The checks: properties of a subject on a case. No check knows another."""

from __future__ import annotations

from crossent.checks.circumstances import CIRCUMSTANCES
from crossent.checks.compiled_code import COMPILED_CODE
from crossent.checks.derivatives import DERIVATIVES
from crossent.checks.determinism import DETERMINISM
from crossent.checks.large import LARGE
from crossent.checks.options import OPTIONS
from crossent.checks.relations import RELATIONS, TWO_BACKWARDS
from crossent.checks.single import INVARIANTS, SINGLE
from crossent.checks.transforms import TRANSFORMS

# What a call costs and little more; these run on every case.
ALWAYS = (*SINGLE, *INVARIANTS)
# In the order in which they run on a case, and stand in a report.
CHECKS = {
    check.name: check
    for check in (
        *ALWAYS,
        *RELATIONS,
        *OPTIONS,
        *TWO_BACKWARDS,
        *CIRCUMSTANCES,
        *DERIVATIVES,
        *DETERMINISM,
        *TRANSFORMS,
        *COMPILED_CODE,
        *LARGE,
    )
}
