"""The built-in subjects by name: the forms, and torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY, Operation
from crossent.forms import FORMS, LINEAR_FORMS, fused, scalar
from crossent.forms.fused import path_of
from crossent.numerics.bounds.contracts import Promise
from crossent.subjects.callables import with_weight
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.subjects.contracts import DEFAULT_CONTRACT, TORCH_CONTRACT, grades_by_dtype
from crossent.subjects.subject import Loss, Subject


def _scalar_on_tensors(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Call the form `scalar`, which takes Python numbers, with tensors."""
    if isinstance(weight := options.get("weight"), Tensor):
        options["weight"] = weight.tolist()
    loss = scalar(input.tolist(), target.tolist(), **options)
    return torch.tensor(loss, dtype=torch.float64, device=input.device)


def _why_not_scalar(inputs: Inputs) -> str | None:
    return None if inputs.input.dim() == 1 else "takes one row only"


def _torch(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    loss: Tensor = torch.nn.CrossEntropyLoss(**options)(input, target)
    return loss


# The forms that do not promise the arithmetic of torch's operations ("eager"), with their promises.
_PROMISES: dict[str, Promise] = {"blocked": "blocked", "linear_blocked": "kernel"}


def _form(name: str, loss: Loss, operation: Operation = CROSS_ENTROPY) -> Subject:
    promise = _PROMISES.get(name, "eager")
    return Subject(name, loss, promise=promise, source=name, contract=promise, operation=operation)


def _linear_form(name: str) -> Subject:
    return _form(name, partial(with_weight, LINEAR_FORMS[name]), LINEAR_CROSS_ENTROPY)


_SCALAR = Subject(
    "scalar",
    _scalar_on_tensors,
    differentiable=False,
    not_applicable=_why_not_scalar,
    dtype=torch.float64,
    promise="eager",
    not_transformed="computes with Python numbers, not with tensors",
    source="scalar",
    contract="eager",
)
FORM_SUBJECTS = {name: _SCALAR if form is scalar else _form(name, form) for name, form in FORMS.items()}


def _why_not_on_path(path: str, inputs: Inputs) -> str | None:
    return None if path_of(inputs.input.device.type) == path else _NEEDED[path]


# The reason why the kernel's subjects lack `target_gradient`. Without this feature, no target requires a gradient, so
# the kernel also runs on cases with class probabilities.
_ONLY_OF_LOGITS = "calls formula instead of its kernel if the target requires a gradient"


def _fused(name: str, path: str, promise: Promise) -> Subject:
    lacks = {} if path == "blocked" else {"target_gradient": _ONLY_OF_LOGITS}
    not_applicable = partial(_why_not_on_path, path)
    return Subject(
        name, fused, not_applicable=not_applicable, promise=promise, source=name, contract=promise, lacks=lacks
    )


# `fused` has three paths (see `crossent.forms.fused.path_of`). `_NEEDED` says what each path needs. Each path has its
# own subject, whose name says in a report which code ran.
_NEEDED = {
    "kernel": "needs CUDA and the package triton, without TRITON_INTERPRET=1",
    "interpreter": "needs the package triton and TRITON_INTERPRET=1",
    "blocked": "runs only where the kernel of fused cannot run",
}
_FUSED = {
    "kernel": _fused("fused", "kernel", "fast_kernel"),
    "interpreter": _fused("fused_interpreter", "interpreter", "kernel").lacking(
        {
            "bfloat16": "runs in Triton's interpreter, which truncates to bfloat16 where a GPU rounds",
            "large": "runs in Triton's interpreter, which would take hours",
        }
    ),
    "blocked": _fused("fused_as_blocked", "blocked", "blocked"),
}
_STORES_LOGITS = "stores all logits"
LINEAR_FORM_SUBJECTS = {
    "linear_formula": _linear_form("linear_formula").lacking({"memory": _STORES_LOGITS}),
    "linear_blocked": replace(_linear_form("linear_blocked"), chunks=("block_size",)),
}


def _torch_nll(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
    """Compute the loss with log_softmax and nll_loss, in a memory layout that F.cross_entropy never uses."""
    options.pop("label_smoothing", None)
    # For logits (N, C, d1, …), nll_loss gets a view that is not contiguous. Its backward pass raises an error for some
    # of these views (pytorch#175084).
    axis = min(1, input.dim() - 1)
    log_probs = torch.log_softmax(input.movedim(axis, -1), -1).movedim(-1, axis)
    return torch.nn.functional.nll_loss(log_probs, target, weight, **options)


def _why_not_nll(inputs: Inputs) -> str | None:
    if inputs.target.is_floating_point():
        return "takes no class probabilities"
    return "has no label_smoothing" if inputs.options["label_smoothing"] != 0 else None


# For float16 and bfloat16 logits on a CPU, torch stores log-probabilities in the same dtype, and cannot reach grade A.
_AS_TORCH: dict[str, Any] = {"promise": "torch", "grades": grades_by_dtype("B"), "contract": TORCH_CONTRACT}
TORCH = Subject("torch", _torch, source="torch", **_AS_TORCH)
TORCH_NLL = Subject(
    "torch_nll",
    _torch_nll,
    not_applicable=_why_not_nll,
    not_transformed="serves only to test memory layouts",
    source="torch_nll",
    **_AS_TORCH,
)


def _torch_linear(
    chunks: Mapping[str, Any] | None, input: Tensor, target: Tensor, *, linear_weight: Tensor, **options: Any
) -> Tensor:
    """Return the loss of F.linear_cross_entropy. `chunks` has arguments of LinearCrossEntropyOptions, or is None."""
    if "batch_chunk_size" in options:
        chunks = {**(chunks or {}), "batch_chunk_size": options.pop("batch_chunk_size")}
    how = None if chunks is None else torch.nn.LinearCrossEntropyOptions(**chunks)
    loss: Tensor = torch.nn.functional.linear_cross_entropy(input, linear_weight, target, options=how, **options)
    return loss


def _composed(
    input: Tensor, target: Tensor, *, linear_weight: Tensor, linear_bias: Tensor | None = None, **options: Any
) -> Tensor:
    logits = torch.nn.functional.linear(input, linear_weight, linear_bias)
    return torch.nn.functional.cross_entropy(logits, target, **options)


def _why_not_linear(inputs: Inputs) -> str | None:
    return None if hasattr(torch.nn.functional, "linear_cross_entropy") else "needs torch 2.13 or newer"


def _accepts(chunks: Mapping[str, Any]) -> bool:
    """Return whether torch.nn.LinearCrossEntropyOptions takes the arguments in `chunks`."""
    try:
        torch.nn.LinearCrossEntropyOptions(**chunks)
    except ValueError:  # for example, torch 2.14 removed acc_policy="balanced"
        return False
    return True


def _why_not_chunked(chunks: Mapping[str, Any], inputs: Inputs) -> str | None:
    """Return the reason why torch does not compute the loss of these inputs in chunks; None if torch does."""
    if reason := _why_not_linear(inputs):
        return reason
    if not _accepts(chunks):
        return f"needs torch 2.13, which has acc_policy={chunks.get('acc_policy')!r}"
    if chunks.get("acc_dtype") == torch.float32 and inputs.input.dtype == torch.float64:
        return "does not add up float64 in float32"
    if inputs.options["label_smoothing"] != 0:
        return "has no label_smoothing"
    dense, reduction = inputs.target.is_floating_point(), inputs.options["reduction"]
    if dense and _accepts({"acc_policy": "balanced"}):
        return "takes class probabilities only since torch 2.14"
    if dense and reduction not in ("mean", "sum"):
        return "takes class probabilities only with the reductions mean and sum"
    if reduction not in ("none", "mean", "sum"):
        return "takes only the reductions none, mean and sum"
    return None if dense or inputs.target.dtype == torch.int64 else "takes class indices only in int64"


_AS_TORCH_LINEAR = {**_AS_TORCH, "operation": LINEAR_CROSS_ENTROPY}
_ONE_PASS = "computes its gradients in the forward pass, where autograd records no operations"


def _chunked(name: str, **chunks: Any) -> Subject:
    lacks = dict.fromkeys(("double_backward", "forward_ad", "batched_gradient"), _ONE_PASS)
    if not chunks.get("allow_retain_graph"):
        lacks["retain_graph"] = "releases the memory of its gradients in the backward pass"
    if chunks.get("chunking_method", "default") is None and "batch_chunk_size" not in chunks:
        lacks["memory"] = _STORES_LOGITS  # one chunk has all rows
    return Subject(
        name,
        partial(_torch_linear, chunks),
        not_applicable=partial(_why_not_chunked, chunks),
        not_transformed=_ONE_PASS,
        source=name,
        chunks=() if chunks else ("batch_chunk_size",),
        lacks=lacks,
        **_AS_TORCH_LINEAR,
    )


TORCH_LINEAR = Subject(
    "torch_linear",
    partial(_torch_linear, None),
    not_applicable=_why_not_linear,
    source="torch_linear",
    **_AS_TORCH_LINEAR,
).lacking({"memory": _STORES_LOGITS})
LINEAR_ALIAS = "torch.nn.functional:linear_cross_entropy"
# The loss of torch for each operation. The linear cross-entropy is a composition of F.linear and F.cross_entropy, since
# torch before 2.13 has no F.linear_cross_entropy.
REFERENCES = {
    CROSS_ENTROPY: TORCH,
    LINEAR_CROSS_ENTROPY: Subject("torch_composed", _composed, source="torch_composed", **_AS_TORCH_LINEAR),
}
# The built-in subjects of each name that a user can give. The name "torch" stands for two subjects. The name "fused"
# stands for one of three subjects, which `subjects_of` chooses.
NAMED = {
    **{name: (form,) for name, form in FORM_SUBJECTS.items()},
    "fused": tuple(_FUSED.values()),
    "torch": (TORCH, TORCH_NLL),
}
# The subjects of torch's linear cross-entropy: without options, then with each option of `LinearCrossEntropyOptions`
# that changes the computation on a CPU. torch_linear_chunked has the default of each option, and computes float16 and
# bfloat16 in float32. torch_linear_accurate computes in the dtype of the input: without acc_dtype, only
# acc_policy="auto" means float32.
LINEAR_NAMED = {
    **{name: (form,) for name, form in LINEAR_FORM_SUBJECTS.items()},
    LINEAR_ALIAS: (
        TORCH_LINEAR,
        _chunked("torch_linear_chunked"),
        _chunked("torch_linear_chunk1", batch_chunk_size=1),
        _chunked("torch_linear_accurate", acc_policy="accurate"),
        _chunked(
            "torch_linear_balanced",
            acc_policy="balanced",
            acc_dtype=torch.float32,
            chunking_method=None,
            allow_retain_graph=True,
        ),
        _chunked(
            "torch_linear_compact", acc_policy="compact", acc_dtype=torch.float32, chunking_method="aspect_ratio:4"
        ),
    ),
}
EVERY_NAMED = {**NAMED, **LINEAR_NAMED}
BY_NAME = {subject.name: subject for group in EVERY_NAMED.values() for subject in group}


# The subjects of torch's own function, by operation.
TORCHS = {CROSS_ENTROPY: NAMED["torch"], LINEAR_CROSS_ENTROPY: LINEAR_NAMED[LINEAR_ALIAS]}


def builtin_subjects(operation: Operation) -> Mapping[str, tuple[Subject, ...]]:
    """Return the built-in subjects of an operation, by the name that a user can write, such as "torch"."""
    return {name: group for name, group in EVERY_NAMED.items() if group[0].operation is operation}


def subjects_of(name: str, device: str) -> tuple[Subject, ...]:
    """Return the built-in subjects that a name such as "torch" stands for, on a device such as "cuda:0"."""
    return (_FUSED[path_of(device.partition(":")[0])],) if name == "fused" else EVERY_NAMED[name]


def default_names(operation: Operation, device: str) -> list[str]:
    """Return the names that a run checks by default: torch and the forms, without `fused` if its kernel cannot run."""
    # Leave out `fused` where its kernel does not run.
    runs = _FUSED["blocked"] not in subjects_of("fused", device)
    return [name for name in builtin_subjects(operation) if name != "fused" or runs]


def builtin_of(subject: Subject) -> Subject | None:
    """Return the built-in subject from which a subject was made, such as `formula` for `formula+compile`, or None."""
    return BY_NAME.get(subject.source.removesuffix(COMPILE_SUFFIX))


def with_unique_names(subjects: Iterable[Subject]) -> list[Subject]:
    """Return the subjects with unique names. Two functions with the name "loss" become "loss" and "loss#2".

    A function of the user with the name of a built-in subject, such as "formula", becomes "formula#2".
    """
    used = Counter([*BY_NAME, *(f"{name}{COMPILE_SUFFIX}" for name in BY_NAME)])
    subjects = list(subjects)
    kept = {subject.name for subject in subjects if builtin_of(subject) is not None}
    named = []
    for subject in subjects:
        if builtin_of(subject) is None:
            same = BY_NAME.get(subject.name)
            # a built-in function that the user passes as a callable keeps its name
            if same is not None and same.loss is subject.loss and subject.name not in kept:
                kept.add(subject.name)
            else:
                used[subject.name] += 1
                if (number := used[subject.name]) > 1:
                    subject = replace(subject, name=f"{subject.name}#{number}")
        named.append(subject)
    return named


def chosen_contract(subject: Subject) -> str:
    """Return the name of a subject's contract, or "" for the subject's default contract."""
    own = builtin_of(subject)
    by_default = DEFAULT_CONTRACT if own is None else own.contract
    if subject.ranks:
        from crossent.subjects.ranks.subject import RANK_PROMISE, RANK_SUBJECTS  # which imports this module

        by_default = RANK_PROMISE if subject.source in RANK_SUBJECTS else DEFAULT_CONTRACT
    return "" if subject.contract == by_default else subject.contract
