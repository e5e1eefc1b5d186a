"""Norms: the channels that they scale and shift are those of their input."""

from heterofl_flwr.slicing.operators.groups import couple_groups
from heterofl_flwr.slicing.operators.registry import Call, operator
from heterofl_flwr.slicing.trace import Trace


@operator(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
)
def batch_norm(trace: Trace, call: Call) -> None:
    """Let the input's channels meet those of weight, bias and running statistics."""
    rows = list(trace.rows(call.inputs[0]))
    rows[1] = trace.meet(rows[1], *(trace.rows(tensor)[0] for tensor in call.inputs[1:]))
    trace.mark(call.outputs[0], rows)


@operator("native_layer_norm", "_fused_rms_norm")
def layer_norm(trace: Trace, call: Call) -> None:
    """Let the last axes of the input meet those of weight and bias. A smaller model's moments are its own."""
    rows = list(trace.rows(call.inputs[0]))
    for axis in range(-len(call.given["normalized_shape"]), 0):
        rows[axis] = trace.meet(rows[axis], *(trace.rows(tensor)[axis] for tensor in call.inputs[1:]))
    trace.mark(call.outputs[0], rows)


@operator("native_group_norm")
def group_norm(trace: Trace, call: Call) -> None:
    """Drop groups, or make each of them smaller."""
    rows = list(trace.rows(call.inputs[0]))
    rows[1] = trace.meet(rows[1], *(trace.rows(tensor)[0] for tensor in call.inputs[1:]))
    couple_groups(trace, rows[1], call.given["group"])
    trace.mark(call.outputs[0], rows)
