"""All mutants, in the order of their files."""

import denominators
import gradients
import interfaces
import jacobians
import layouts
import memories
import published
import roundings
import sizes
import smoothings
import targets
import tiles

FILES = (
    denominators,
    smoothings,
    gradients,
    roundings,
    tiles,
    sizes,
    targets,
    layouts,
    memories,
    interfaces,
    jacobians,
    published,
)
MUTANTS = tuple(
    loss.mutant
    for file in FILES
    for loss in vars(file).values()
    if hasattr(loss, "mutant") and loss.__module__ == file.__name__
)
