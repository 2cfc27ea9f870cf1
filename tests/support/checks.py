"""The checks of a cross-entropy in groups, by the module that declares them."""

import crossent.checks
from crossent.cases.operation import CROSS_ENTROPY
from crossent.checks import (
    circumstances,
    compiled_code,
    derivatives,
    determinism,
    jacobians,
    large,
    leaves,
    options,
    single,
    transforms,
)
from crossent.checks.relations import backward, two_calls
from crossent.trials.check import Cost

CHECKS = crossent.checks.checks_of(CROSS_ENTROPY)


def checks_of(*modules):
    """Return the checks that these modules of `crossent.checks` declare, in the order of a report."""
    declared = [value for module in modules for value in vars(module).values()]
    return tuple(check for check in CHECKS.values() if any(check is one for one in declared))


CALL, RESULT = single.call, single.result
INVARIANTS = (single.sign, single.row_sums, single.ignored_rows)
SINGLE = tuple(check for check in checks_of(single) if check not in INVARIANTS)
ALWAYS = (*SINGLE, *INVARIANTS)
TWO_BACKWARDS = (backward.two_backwards,)
OPTIONS = checks_of(options)
RELATIONS = checks_of(two_calls)
CIRCUMSTANCES = checks_of(circumstances, leaves)
DERIVATIVES = checks_of(derivatives)
DETERMINISM = checks_of(determinism)
JACOBIANS = checks_of(jacobians)
TRANSFORMS = (*checks_of(transforms), compiled_code.trace, compiled_code.trace_dynamic)
COMPILED_CODE = (compiled_code.fixed_code, compiled_code.dynamic_code, compiled_code.compiled_error)
LARGE = checks_of(large)
SLOW = tuple(check.name for check in CHECKS.values() if check.cost is Cost.CODE)
FAST = compiled_code.trace.name
