"""Trace rules of elementwise operators, reductions, products, convolutions and norms.

A rule records which axes of inputs and outputs are sliced alike, and which are never sliced. ``rows`` has the positions
of each axis of the first input: integers that identify its entries. An axis that is never sliced has None.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from heterofl_flwr.common.errors import UnsupportedLayerError
from heterofl_flwr.elastic_models.channels import Row, Rows
from heterofl_flwr.elastic_models.lengths import Trace
from heterofl_flwr.elastic_models.rules import Call, aten, operator, stand_in

# Operators that get the elementwise rule but lack torch's tag. A softmax over channels runs over the kept channels.
_ENTRYWISE = (
    *("copy", "fill", "zero", "normal", "uniform", "bernoulli", "exponential"),
    *("native_dropout", "detach", "alias", "lift_fresh", "_to_copy", "_softmax", "_safe_softmax", "_log_softmax"),
    *("hardswish", "hardtanh", "relu6", "_prelu_kernel", "polar"),
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
)
_SUMS = (
    *("mean", "sum", "amax", "amin", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "any", "all"),
    *("norm", "linalg_vector_norm"),
)
_SEARCHES = (
    *("argmax", "argmin", "max", "min", "median", "mode", "topk", "sort", "kthvalue", "argsort", "cummax", "cumsum"),
)
_POOLS = (
    *("avg_pool{}d", "max_pool{}d_with_indices", "_adaptive_avg_pool{}d", "adaptive_max_pool{}d"),
    *("upsample_nearest{}d", "upsample_linear{}d", "upsample_bilinear{}d", "upsample_bicubic{}d"),
    *("upsample_trilinear{}d", "reflection_pad{}d", "replication_pad{}d"),
    *("_upsample_bilinear{}d_aa", "_upsample_bicubic{}d_aa", "_upsample_nearest_exact{}d"),
)


@operator("add", *_ENTRYWISE)
def entrywise(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Trace rule of elementwise operators: inputs and output are sliced alike."""
    for output in call.outputs:
        trace.mark(broadcast(trace, call.inputs, output.shape), output)


def broadcast(trace: Trace, tensors: Sequence[Tensor], shape: Sequence[int], inner: int = 0) -> list[Row | None]:
    """Require that tensors that are broadcast to ``shape`` are sliced alike along all but the last ``inner`` axes.

    Return the positions along each axis of ``shape`` except the last ``inner`` ones; None for an axis that has length 1
    or is never sliced.
    """
    row_lists = [(tensor, trace.rows(tensor)) for tensor in tensors]
    rows = []
    for axis in range(-len(shape), -inner):
        meeting = [r[axis] for tensor, r in row_lists if tensor.dim() >= -axis and tensor.shape[axis] == shape[axis]]
        rows.append(trace.meet(*meeting) if meeting and shape[axis] > 1 else None)
    return rows


@operator("empty", "zeros", "ones", "full", "rand", "randn", "scalar_tensor")
@operator("new_empty", "new_zeros", "new_ones", "new_full")
def created(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Trace rule of new tensors, such as zeros: later operators decide how their axes are sliced."""
    trace.fresh(*call.outputs)


@operator("tril", "triu")
def triangle(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Trace rule of ``tril`` and ``triu``: the last two axes are never sliced."""
    trace.pin(*rows[-2:])
    trace.mark(rows, *call.outputs)


@operator(*_SUMS, *_SEARCHES)
def reduced(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Trace rule of reductions and searches: axes searched by ``argmax`` or ``sort`` are never sliced."""
    axes = call.axes(len(rows))
    if call.name in _SEARCHES:
        trace.pin(*(rows[axis] for axis in axes))
    keep = call.outputs[0].dim() == len(rows)
    remaining = [None if axis in axes else row for axis, row in enumerate(rows) if keep or axis not in axes]
    trace.mark(remaining, *call.outputs)


@operator(*(name.format(dimensions) for name in _POOLS for dimensions in (1, 2, 3)))
def pooled(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Trace rule of pooling, resizing and padding of images: spatial axes are never sliced."""
    space = next(int(letter) for letter in call.name if letter.isdigit())
    trace.pin(*rows[len(rows) - space :])
    trace.mark([*rows[: len(rows) - space], *[None] * space], *call.outputs)


@operator("mm", "bmm", "mv", "dot", "vdot", "addmm", "baddbmm", "addmv", "addbmm")
def product(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of matrix products: the two axes that are summed over are sliced alike."""
    *added, a, b = call.inputs
    a_rows, b_rows = trace.rows(a), trace.rows(b)
    inner = max(len(b_rows) - 2, 0)
    trace.meet(a_rows[-1], b_rows[inner])
    batch = [trace.meet(a_rows[0], b_rows[0])] if len(a_rows) == 3 else []
    output_rows, output = [*batch, *a_rows[len(batch) : -1], *b_rows[inner + 1 :]], call.outputs[0]
    if not added:
        return output_rows
    trace.mark(output_rows, output)
    return broadcast(trace, [*added, output], output.shape)


@stand_in(aten._grouped_mm)
def grouped_product(
    tokens: Tensor, experts: Tensor, offsets: object = None, bias: Tensor | None = None, out_dtype: object = None
) -> Tensor:
    """Stand-in for ``grouped_mm`` that multiplies all tokens by the first expert's matrix.

    It calls ``unbind`` to get this matrix, so the axis of experts is never sliced.
    """
    entries = 16 // tokens.element_size()
    if any(length % entries for length in (tokens.shape[-1], *experts.shape[-2:])):
        raise UnsupportedLayerError(
            f"grouped_mm multiplies matrices of {tokens.dtype} whose sides are multiples of {entries}, and here they "
            f"are {tuple(tokens.shape)} and {tuple(experts.shape)}: give multiple_of={entries}"
        )
    product = tokens.mm(experts.unbind()[0])
    return product if bias is None else product + bias.unbind()[0]


@operator("linalg_solve_triangular")
def solved(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``linalg_solve_triangular``: axes of equations and unknowns are never sliced."""
    right_rows = trace.rows(call.inputs[1])
    trace.pin(*rows[-2:], right_rows[-2])
    return [*broadcast(trace, call.inputs, call.outputs[0].shape, inner=2), None, right_rows[-1]]


@operator("_fft_c2c", "_fft_r2c", "_fft_c2r")
def fourier(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of Fourier transforms: transformed axes are never sliced."""
    for axis in call.named_arguments["dim"]:
        trace.pin(rows[axis])
        rows[axis] = None
    return rows


def drops_groups(groups: int, channels: int) -> bool:
    """Return True if slices drop whole groups of a convolution or norm, False if each group gets narrower."""
    return groups >= channels // groups  # the choice that allows more widths


def couple_groups(trace: Trace, channels: Row | None, groups: int) -> Row | None:
    """Tie channels (keep or drop them together) for a convolution or norm with ``groups`` groups.

    If slices drop groups, tie all channels of a group to one another, and return the position of each group's first
    channel. Otherwise, tie the first channels of all groups to one another, then the second ones, and so on, and return
    None.
    """
    if channels is None:
        return None
    parts = channels.reshape(groups, -1)  # (groups, channels of a group)
    dropped = drops_groups(groups, len(channels))
    trace.positions.unite(parts, parts[:, :1] if dropped else parts[:1])
    return parts[:, 0] if dropped else None


def _grouped(trace: Trace, channels: Row | None, weight: Tensor, groups: int, *, transposed: bool) -> Row | None:
    """Tie input channels of a grouped convolution to its weight. Return positions of its output channels."""
    first_row, second_row, *_ = trace.rows(weight)
    inputs = weight.shape[0] if transposed else weight.shape[1] * groups
    if transposed:
        channels = trace.meet(channels, first_row)
    group_rows = couple_groups(trace, channels, groups)
    # Weights are (outputs, inputs of a group, ...), transposed ones (inputs, outputs of a group, ...). If groups are
    # dropped, each group is kept in full and the outputs follow their group; otherwise all groups are sliced alike.
    if drops_groups(groups, inputs):
        trace.pin(second_row)
        each = weight.shape[1] if transposed else weight.shape[0] // groups
        outputs = None if group_rows is None else np.repeat(group_rows, each)
        return outputs if transposed else trace.meet(first_row, outputs)
    if transposed:
        return None if second_row is None else np.tile(second_row, groups)
    trace.meet(second_row, None if channels is None else channels[: weight.shape[1]])
    if first_row is not None:
        trace.positions.unite(first_row.reshape(groups, -1), first_row[: weight.shape[0] // groups])
    return first_row


@operator("convolution", "_convolution")
def convolution(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of convolutions: input and output channels may be sliced, spatial and kernel axes never."""
    weight, bias, transposed, groups = (call.args[place] for place in (1, 2, 6, 8))
    batch, channels, *space = rows
    first_row, second_row, *kernel = trace.rows(weight)
    trace.pin(*space, *kernel)
    if groups == 1:
        outputs = second_row if transposed else first_row
        trace.meet(channels, first_row if transposed else second_row)
    else:
        outputs = _grouped(trace, channels, weight, groups, transposed=transposed)
    if bias is not None:
        outputs = trace.meet(outputs, *trace.rows(bias))
    return [batch, outputs, *[None] * len(space)]


@operator("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
@operator("_native_batch_norm_legit_functional", "_batch_norm_with_update", "_batch_norm_no_update")
@operator("cudnn_batch_norm", "native_group_norm")
def channel_norm(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of batch and group norm: parameters and statistics are sliced like the channels."""
    rows[1] = trace.meet(rows[1], *(trace.rows(tensor)[0] for tensor in call.inputs[1:]))
    if "group" in call.named_arguments:
        couple_groups(trace, rows[1], call.named_arguments["group"])
    return rows


@operator("_weight_norm_interface")
def weight_norm(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Trace rule of weight norm: directions and magnitudes are sliced alike."""
    directions, lengths = call.inputs
    joined = broadcast(trace, [directions, lengths], directions.shape)
    trace.mark(joined, call.outputs[0])
    trace.mark(
        [row if length > 1 else None for row, length in zip(joined, lengths.shape, strict=True)], call.outputs[1]
    )


@operator("native_layer_norm", "_fused_rms_norm")
def layer_norm(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of layer norm: weight and bias are sliced like the input's last axes."""
    for axis in range(-len(call.named_arguments["normalized_shape"]), 0):
        rows[axis] = trace.meet(rows[axis], *(trace.rows(tensor)[axis] for tensor in call.inputs[1:]))
    return rows
