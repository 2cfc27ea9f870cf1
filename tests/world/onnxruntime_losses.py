"""ONNX Runtime: the operator SoftmaxCrossEntropyLoss."""

import functools

import onnxruntime
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
    np_dtype_to_tensor_dtype,
)
from packages import INDICES, ROWS, named

from crossent.adapters import from_numpy

FLOATS = "takes float32 and float64"


@functools.cache
def session(types, **options):
    """Return the operator for inputs of these dtypes and ranks."""
    inputs = [make_tensor_value_info(name, np_dtype_to_tensor_dtype(of), [None] * rank) for name, of, rank in types]
    rank = 0 if options["reduction"] != "none" else types[1][2]
    output = make_tensor_value_info("loss", inputs[0].type.tensor_type.elem_type, [None] * rank)
    node = make_node("SoftmaxCrossEntropyLoss", [name for name, _, _ in types], ["loss"], **options)
    model = make_model(
        make_graph([node], "loss", inputs, [output]), opset_imports=[make_opsetid("", 13)], ir_version=10
    )
    return onnxruntime.InferenceSession(model.SerializeToString())


def operator(logits, target, weight=None, ignore_index=-100, reduction="mean"):
    inputs = {"scores": logits, "labels": target} | ({} if weight is None else {"weights": weight})
    types = tuple((name, array.dtype, array.ndim) for name, array in inputs.items())
    return session(types, ignore_index=ignore_index, reduction=reduction).run(None, inputs)[0]


onnxruntime_operator = named(
    "onnxruntime_operator",
    from_numpy(operator),
    **{"bfloat16": FLOATS, "float16": FLOATS, "probability_target": INDICES, "unbatched": ROWS},
    uint8_target="takes int32 and int64",
    empty="refuses an empty batch",
    errors="has errors of its own",
)
