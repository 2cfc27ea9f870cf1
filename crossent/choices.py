"""The allowed words and limits of the command's options, and the completion of these words in a shell.

This module imports no other module of the package, so that help and completion do not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from click import Context, Parameter
    from click.shell_completion import CompletionItem

# The dtypes of logits.
DtypeName = Literal["float16", "bfloat16", "float32", "float64"]
# The levels of a run, from the fewest cases and checks to the most; see crossent.run.plan.
Level = Literal["quick", "normal", "thorough"]
# The functions of torch that a subject may compute; see crossent.cases.operation.
OperationName = Literal["cross_entropy", "linear_cross_entropy"]
# The contracts that a user can choose; see crossent.subjects.contracts.
ContractName = Literal["kernel", "fast", "logsumexp", "eager", "torch"]
# The grades that a user can choose for half precision; `float16=B` is grade B in float16 alone.
GradeName = Literal["A", "B", "float16=B", "bfloat16=B"]
DTYPE_NAMES: tuple[DtypeName, ...] = get_args(DtypeName)
LEVELS: tuple[Level, ...] = get_args(Level)
OPERATION_NAMES: tuple[OperationName, ...] = get_args(OperationName)
CONTRACT_NAMES: tuple[ContractName, ...] = get_args(ContractName)
GRADE_NAMES: tuple[GradeName, ...] = get_args(GradeName)
# The largest number of shards of a run: more than any level has cases.
MOST_SHARDS = 100_000
# The checks, in the order of a report; see crossent.checks. `errors` runs on bad inputs alone.
# fmt: off
CHECK_NAMES = (
    "call", "result", "arguments", "state", "loss", "gradient", "target_gradient", "weight_gradient", "bias_gradient",
    "repeat", "sign", "row_sums", "ignored_rows", "layout", "shift", "rows_permuted", "classes_permuted", "split",
    "chunks", "widened", "options", "two_backwards", "no_grad", "non_leaf", "alone", "threads", "circumstances",
    "double_backward", "forward_ad", "deterministic", "stream", "func_grad", "vmap", "batched_gradient", "jacrev",
    "jacfwd", "batched_second", "hessian", "autocast", "meta", "export", "trace", "trace_dynamic", "compile",
    "compile_dynamic", "compiled_error", "memory", "large", "errors",
)
# The checks that run only with --ranks.
RANK_CHECK_NAMES = (
    "world_sizes", "one_shard", "ignored_shard", "whole_smoothing", "uneven_shards", "empty_shard", "padding_target",
    "micro_batches", "idle_rank",
    "context", "nested_context",
)
# The built-in subjects, as `crossent list subjects` prints them; see crossent.subjects.builtin.
SUBJECT_NAMES = (
    "formula", "log_softmax_nll", "one_hot", "blocked", "scalar", "fused", "torch", "linear_formula", "linear_blocked",
    "torch.nn.functional:linear_cross_entropy",
)
# The names of the built-in subjects in a report: a name above may stand for several subjects, as "torch" does.
BUILTIN_NAMES = (
    "formula", "log_softmax_nll", "one_hot", "blocked", "scalar", "fused", "fused_interpreter", "fused_as_blocked",
    "torch", "torch_nll", "linear_formula", "linear_blocked", "torch_linear", "torch_linear_chunked",
    "torch_linear_chunk1", "torch_linear_accurate", "torch_linear_balanced", "torch_linear_compact",
)
# The features that a subject may lack, as `crossent list features` prints them; see crossent.subjects.features.
FEATURE_NAMES = (
    *DTYPE_NAMES, "reduction_none", "reduction_mean", "reduction_sum", "reduction", "weight", "linear_bias",
    "ignore_index", "label_smoothing", "index_target", "uint8_target", "probability_target", "unbatched", "spatial",
    "empty", "one_class", "nonfinite", "unnormalised", "strided", "gradient", "target_gradient", "retain_graph",
    "double_backward", "batched_gradient", "forward_ad", "vmap", "compile", "autocast", "half_result", "nan_mean",
    "subnormal", "arguments", "errors", "index_errors", "index_dtype_errors", "dtype_errors", "size_errors",
    "option_errors", "error_classes", "repeatable", "memory", "large",
)
# fmt: on


def complete_subject(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the subjects, and after `--without` also the features, that begin with `incomplete`.

    If no name matches, the shell completes the name of a file.
    """
    from click.shell_completion import CompletionItem

    names = (*SUBJECT_NAMES, *(FEATURE_NAMES if context.params.get("without") else ()))
    matching = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return matching or [CompletionItem(incomplete, type="file")]  # the shell completes the name of a file


def complete_feature(context: Context, parameter: Parameter, incomplete: str) -> list[str]:
    """Return the features that begin with `incomplete`."""
    return [name for name in FEATURE_NAMES if name.startswith(incomplete)]


def complete_case(context: Context, parameter: Parameter, incomplete: str) -> list[str]:
    """Return the ids of cases in the covering arrays that begin with `incomplete`."""
    # to list other cases, this function would have to import torch
    arrays = Path(__file__).with_name("cases").rglob("*.txt")
    ids = {line for array in arrays for line in array.read_text(encoding="utf-8").splitlines()}
    return sorted(case for case in ids if case.startswith(incomplete))
