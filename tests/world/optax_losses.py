"""optax: the loss of probabilities, with gradients by JAX."""

import optax
from packages import lacks

from crossent.adapters import from_jax


def adapted(loss, name, **lacking):
    """Return a loss of rows as a loss on tensors, with an axis of classes and three reductions."""

    def reduced(logits, labels, reduction="mean"):
        losses = loss(logits, labels, axis=min(1, logits.ndim - 1))
        return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()

    made = from_jax(reduced)
    made.__name__ = name
    return lacks(**made.lacks, **lacking, errors="leaves errors to JAX")(made)


optax_dense = adapted(optax.softmax_cross_entropy, "optax_dense", index_target="takes class probabilities")
