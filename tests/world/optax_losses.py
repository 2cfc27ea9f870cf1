"""optax: the loss of probabilities, with gradients by JAX."""

import optax
from packages import INDICES, named

from crossent.adapters import from_jax


def with_reductions(loss, name, **lacking):
    """Return a loss of rows as a loss on tensors, with an axis of classes and three reductions."""

    def reduced(logits, labels, reduction="mean"):
        losses = loss(logits, labels, axis=min(1, logits.ndim - 1))
        return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()

    return named(name, from_jax(reduced), **lacking, errors="leaves errors to JAX")


optax_dense = with_reductions(optax.softmax_cross_entropy, "optax_dense", index_target="takes class probabilities")
optax_sparse = with_reductions(
    optax.softmax_cross_entropy_with_integer_labels, "optax_sparse", probability_target=INDICES
)
