"""The words that options accept, where the rooms of the package import them from.

This module imports nothing, so the command prints its help without importing torch.
"""

from __future__ import annotations

# The dtypes of logits.
DTYPE_NAMES = ("float16", "bfloat16", "float32", "float64")
# The levels of a run, each with all cases and checks of the levels before it; see crossent.run.plan.
LEVELS = ("quick", "normal", "thorough")
# The contracts that a user can choose; see crossent.subjects.contracts.
CONTRACT_NAMES = ("kernel", "fast", "eager", "torch")
