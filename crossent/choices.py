"""The words that options accept, where the rooms of the package import them from.

This module imports no other, so the command prints its help without importing torch.
"""

from __future__ import annotations

from typing import Literal, get_args

# The dtypes of logits.
DtypeName = Literal["float16", "bfloat16", "float32", "float64"]
# The levels of a run, each with all cases and checks of the levels before it; see crossent.run.plan.
Level = Literal["quick", "normal", "thorough"]
# The contracts that a user can choose; see crossent.subjects.contracts.
ContractName = Literal["kernel", "fast", "logsumexp", "eager", "torch"]
# The grades that a user can choose for half precision; `float16=B` is grade B in float16 alone.
GradeName = Literal["A", "B", "float16=B", "bfloat16=B"]
DTYPE_NAMES: tuple[DtypeName, ...] = get_args(DtypeName)
LEVELS: tuple[Level, ...] = get_args(Level)
CONTRACT_NAMES: tuple[ContractName, ...] = get_args(ContractName)
GRADE_NAMES: tuple[GradeName, ...] = get_args(GradeName)
# The checks, in the order of a report; see crossent.checks. `errors` runs on bad inputs alone.
# fmt: off
CHECK_NAMES = (
    "call", "result", "arguments", "state", "loss", "gradient", "target_gradient", "repeat", "sign", "row_sums",
    "ignored_rows", "layout", "shift", "rows_permuted", "classes_permuted", "split", "widened", "options",
    "two_backwards", "no_grad", "non_leaf", "alone", "threads", "double_backward", "forward_ad", "deterministic",
    "stream", "func_grad", "vmap", "batched_gradient", "jacrev", "jacfwd", "batched_second", "hessian", "autocast",
    "meta", "export", "trace", "trace_dynamic", "compile", "compile_dynamic", "compiled_error", "large", "errors",
)
# fmt: on
