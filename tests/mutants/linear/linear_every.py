"""All mutants of a linear cross-entropy, in the order of their files."""

import linear_chunks
import linear_denominators
import linear_gradients
import linear_layouts
import linear_logits
import linear_memories
import linear_options
import linear_roundings
import linear_tiles
import linear_upstream

LINEAR_FILES = (
    linear_chunks,
    linear_denominators,
    linear_logits,
    linear_tiles,
    linear_roundings,
    linear_gradients,
    linear_upstream,
    linear_options,
    linear_layouts,
    linear_memories,
)
LINEAR_MUTANTS = tuple(
    loss.mutant
    for file in LINEAR_FILES
    for loss in vars(file).values()
    if hasattr(loss, "mutant") and loss.__module__ == file.__name__
)
