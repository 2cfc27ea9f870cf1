"""Subjects that a script defines itself. A printed script has at most one of them, under the name `subject`."""

# mypy: allow-untyped-defs, allow-untyped-calls

import torch


def torch_loss(input, target, **options):
    """Call torch.nn.CrossEntropyLoss(**options)."""
    return torch.nn.CrossEntropyLoss(**options)(input, target)


def torch_nll(input, target, weight=None, label_smoothing=0.0, **options):
    """Call log_softmax on the classes, then nll_loss. `label_smoothing` is ignored, since nll_loss has none."""
    axis = min(1, input.dim() - 1)
    log_probs = torch.log_softmax(input.movedim(axis, -1), -1).movedim(-1, axis)
    return torch.nn.functional.nll_loss(log_probs, target, weight, **options)


def scalar_on_tensors(*arguments, **options):
    """Call crossent.scalar with the tensors as Python numbers, and return the loss as a float64 tensor."""
    from crossent import scalar

    given = [tensor.tolist() for tensor in arguments]
    options = {k: v.tolist() if torch.is_tensor(v) else v for k, v in options.items()}
    return torch.tensor(scalar(*given, **options), dtype=torch.float64)


def linear_formula_of_crossent(input, target, linear_weight, **options):
    """Call crossent.linear_formula."""
    from crossent import linear_formula

    return linear_formula(input, linear_weight, target, **options)


def linear_blocked_of_crossent(input, target, linear_weight, **options):
    """Call crossent.linear_blocked."""
    from crossent import linear_blocked

    return linear_blocked(input, linear_weight, target, **options)


def torch_linear(input, target, linear_weight, **options):
    """Call F.linear_cross_entropy without chunks."""
    return torch.nn.functional.linear_cross_entropy(input, linear_weight, target, **options)


def torch_linear_chunked(input, target, linear_weight, batch_chunk_size=None, **options):
    """Call F.linear_cross_entropy in chunks of `batch_chunk_size` rows. For None, torch chooses the size."""
    chunks = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=batch_chunk_size)
    return torch.nn.functional.linear_cross_entropy(input, linear_weight, target, options=chunks, **options)


def torch_linear_chunk1(input, target, linear_weight, **options):
    """Call F.linear_cross_entropy in chunks of one row."""
    chunks = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=1)
    return torch.nn.functional.linear_cross_entropy(input, linear_weight, target, options=chunks, **options)


def torch_linear_accurate(input, target, linear_weight, **options):
    """Call F.linear_cross_entropy in chunks, with acc_policy="accurate"."""
    chunks = torch.nn.LinearCrossEntropyOptions(acc_policy="accurate")
    return torch.nn.functional.linear_cross_entropy(input, linear_weight, target, options=chunks, **options)


def torch_linear_balanced(input, target, linear_weight, **options):
    """Call F.linear_cross_entropy in one chunk, with acc_policy="balanced"."""
    chunks = torch.nn.LinearCrossEntropyOptions(
        acc_policy="balanced", acc_dtype=torch.float32, chunking_method=None, allow_retain_graph=True
    )
    return torch.nn.functional.linear_cross_entropy(input, linear_weight, target, options=chunks, **options)


def torch_linear_compact(input, target, linear_weight, **options):
    """Call F.linear_cross_entropy in small chunks, with acc_policy="compact"."""
    chunks = torch.nn.LinearCrossEntropyOptions(
        acc_policy="compact", acc_dtype=torch.float32, chunking_method="aspect_ratio:4"
    )
    return torch.nn.functional.linear_cross_entropy(input, linear_weight, target, options=chunks, **options)
