"""Comparison of a slice with the full model, whose entries outside the slice are set to zero."""

# Zeros do not change sums and products. What depends on the width is taken from a recorded run of the slice: the count
# by which a mean or a norm divides, the entries over which a softmax or a maximum runs, and factors such as the scale
# of attention. False alarms are possible: dropped channels are 1, not 0, after ``exp``.

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from heterofl_flwr.common.errors import first_line
from heterofl_flwr.elastic_models.channels import kept_positions
from heterofl_flwr.elastic_models.check_slice import QUIET, SCALES
from heterofl_flwr.elastic_models.cut_layers import Slice
from heterofl_flwr.elastic_models.rules import Call
from heterofl_flwr.elastic_models.skeleton import copy_with
from heterofl_flwr.nn.execution import call, evaluating, named_tensors, plain_attention, tensors_in

_TOLERANCE = 1e-6
_FILLS = {
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "logsumexp", "amax", "max", "argmax"), -torch.inf),
    **dict.fromkeys(("amin", "min", "argmin"), torch.inf),
    "prod": 1.0,
}
"""For each operator, the value at which dropped entries do not affect the result."""


class _Record(NamedTuple):
    name: str
    shape: torch.Size
    args: Sequence[Any]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records: list[_Record] = []

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        name, shape = func.overloadpacket.__name__, _shape(args)
        if name not in QUIET:
            self.records.append(_Record(name, shape, args))
        return func(*args, **(kwargs or {}))


class _Replayer(TorchDispatchMode):
    """Torch mode that runs the full model with numbers that were recorded in a run of the slice.

    These numbers are the counts by which means and norms divide, and factors such as the scale of attention.
    """

    def __init__(self, records: Sequence[_Record]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._records = iter(records)

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name in QUIET:
            return func(*args, **kwargs)
        record = next(self._records, None)
        if record is None or record.name != name:
            raise RuntimeError(f"the full model calls {name}, the slice {record and record.name}")
        if name.removesuffix("_") in SCALES:
            pairs = zip(args, record.args, strict=True)
            args = [few if isinstance(of, int | float) else of for of, few in pairs]
        if record.shape == _shape(args):
            return func(*args, **kwargs)
        called = Call(func, args, kwargs, None)
        if name in ("mean", "var", "var_mean", "std", "std_mean"):
            return _moments(called, record.shape)
        if name in ("native_layer_norm", "native_group_norm"):
            return _norm(args[0], record.shape, called.named_arguments)
        if name in _FILLS:
            dropped = _dropped(args[0], record.shape, called.axes(args[0].dim()))
            args = [args[0].masked_fill(dropped, _FILLS[name]), *args[1:]]
        output = func(*args, **kwargs)
        if name == "_weight_norm_interface":  # dropped rows are 0 / 0
            return tree_map(torch.nan_to_num, output)
        return output.masked_fill(_dropped(args[0], record.shape), 0.0) if "softmax" in name else output


def _shape(args: Sequence[Any]) -> torch.Size:
    return args[0].shape if args and isinstance(args[0], Tensor) else torch.Size()


def _dropped(x: Tensor, shape: torch.Size, axes: Sequence[int] | None = None) -> Tensor:
    # On an axis that is shorter in the slice, an index is outside the slice if all entries at this index are zero.
    dropped = torch.zeros_like(x, dtype=torch.bool)
    for axis, (length, slice_length) in enumerate(zip(x.shape, shape, strict=True)):
        if slice_length < length and (axes is None or axis in axes):
            other_axes = [other_axis for other_axis in range(x.dim()) if other_axis != axis]
            dropped |= (x == 0).all(other_axes, keepdim=True) if other_axes else x == 0
    return dropped


def _moments(called: Call, shape: torch.Size) -> object:
    name, x, arguments = called.name, called.args[0], called.named_arguments
    axes = called.axes(x.dim())
    count, keep = float(np.prod([shape[axis] for axis in axes])), bool(arguments.get("keepdim"))
    mean = x.sum(axes, keepdim=keep) / count
    correction = arguments.get("correction", arguments.get("unbiased", 1))
    correction = 1.0 if correction is None else float(correction)
    variance = (x.square().sum(axes, keepdim=keep) - count * mean.square()) / (count - correction)
    spread = variance.clamp(min=0).sqrt() if name.startswith("std") else variance
    return mean if name == "mean" else (spread, mean) if name.endswith("_mean") else spread


def _norm(x: Tensor, shape: torch.Size, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    groups, dropped = arguments.get("group"), _dropped(x, shape)
    if groups is None:
        axes, parts, alive = list(range(-len(arguments["normalized_shape"]), 0)), x, ~dropped
    else:  # (batch, groups, channels of a group x positions)
        axes, parts, alive = [2], x.reshape(x.shape[0], groups, -1), (~dropped).reshape(x.shape[0], groups, -1)
    count = alive.sum(axes, keepdim=True).clamp(min=1)
    mean = parts.sum(axes, keepdim=True) / count
    variance = (parts.square().sum(axes, keepdim=True) / count - mean.square()).clamp(min=0)
    scale = (variance + arguments["eps"]).rsqrt()
    output = ((parts - mean) * scale).reshape(x.shape).masked_fill(dropped, 0.0)
    along = (1, -1, *[1] * (x.dim() - 2)) if groups is not None else arguments["normalized_shape"]
    for tensor, operate in ((arguments["weight"], torch.mul), (arguments["bias"], torch.add)):
        output = output if tensor is None else operate(output, tensor.reshape(along))
    return output, mean, scale


def compare_by_zeroing(full_model: nn.Module, slice_: nn.Module, part: Slice, example_inputs: object) -> str:
    """Return a description of the first output that differs between a slice and the zeroed full model; '' if none does.

    If one of the models fails, return the error's text.
    """
    inputs = tree_map(lambda leaf: _double(leaf) if isinstance(leaf, Tensor) else leaf, example_inputs)
    models = [copy_with(model, lambda name, tensor: _double(tensor)) for model in (slice_, full_model)]
    for name, tensor in named_tensors(models[1]).items():
        for axis, places in enumerate(part.channels.axes.get(name, ())):
            if places is not None:
                dropped = np.setdiff1d(np.arange(len(places)), kept_positions(places, part.widths))
                tensor.detach().index_fill_(axis, torch.from_numpy(dropped), 0)
    recorder = _Recorder()
    try:
        outputs, sums = _run(models[0], inputs, recorder)
        expected, expected_sums = _run(models[1], inputs, _Replayer(recorder.records))
    except Exception as error:  # the model's own code may raise anything in double precision
        return f"the comparison ends early: {first_line(error)}"
    for number, (output, expected_output) in enumerate(zip(outputs, expected, strict=False)):
        if output.shape != expected_output.shape or not output.is_floating_point():
            continue  # for example hidden states that no code reads
        largest, distance = float(expected_output.abs().max()), float((output - expected_output).abs().max())
        if not distance <= _TOLERANCE * max(1.0, largest):
            layers = (name for name, value in sums.items() if not np.isclose(value, expected_sums.get(name, value)))
            return (
                f"output {number} differs by up to {distance:.3g}, where the full model's is up to {largest:.3g}; the "
                f"first layer that differs is {next(layers, None) or '(the model itself)'}"
            )
    return ""


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


@torch.no_grad()
def _run(model: nn.Module, inputs: object, mode: TorchDispatchMode) -> tuple[list[Tensor], dict[str, float]]:
    sums: dict[str, float] = {}

    def note(name: str, output: object) -> None:
        tensors = [tensor.detach() for tensor in tensors_in(output) if tensor.is_floating_point()]
        with torch.utils._python_dispatch._disable_current_modes(), suppress(RuntimeError):  # raised inside vmap
            sums[name] = float(sum(tensor.sum() for tensor in tensors))

    for name, layer in model.named_modules():
        layer.register_forward_hook(lambda layer, arguments, output, name=name: note(name, output))
    with evaluating(model), plain_attention(), mode:  # fused attention would use the full model's scale
        return list(tensors_in(call(model, inputs))), sums
