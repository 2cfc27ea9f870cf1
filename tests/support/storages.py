"""The storages of tensors."""

from crossent.cases.inputs import Inputs


def in_one_storage(inputs: Inputs) -> bool:
    """Return whether the hidden states and the weight of a linear cross-entropy share a storage."""
    return inputs.input.untyped_storage().data_ptr() == inputs.options["linear_weight"].untyped_storage().data_ptr()
