"""ONNX: the operator SoftmaxCrossEntropyLoss, in the reference evaluator."""

from packages import ROWS, named

from crossent.adapters import from_onnx

onnx_reference = named(
    "onnx_reference",
    from_onnx(),
    unbatched=ROWS,
    empty="reshapes an empty array to an unknown size",
    errors="has no errors of its own",
)
