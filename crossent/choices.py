"""The words that options accept, where the rooms of the package import them from.

This module imports nothing, so the command prints its help without importing torch.
"""

from __future__ import annotations

# The dtypes of logits.
DTYPE_NAMES = ("float16", "bfloat16", "float32", "float64")
# The levels of a run, each with all cases and checks of the levels before it; see crossent.run.plan.
LEVELS = ("quick", "normal", "thorough")
# The contracts that a user can choose; see crossent.subjects.contracts.
CONTRACT_NAMES = ("kernel", "fast", "logsumexp", "eager", "torch")
# The grades that a user can choose for half precision; `float16=B` is grade B in float16 alone.
GRADE_NAMES = ("A", "B", "float16=B", "bfloat16=B")
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
