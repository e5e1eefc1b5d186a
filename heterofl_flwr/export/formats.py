"""Export formats: functions that write and open files."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves, tree_map

from heterofl_flwr.common.errors import ConfigError, ShapeError, check_list, extra
from heterofl_flwr.common.files import reading
from heterofl_flwr.common.named_tensors import pack
from heterofl_flwr.core.exchanged import first_names
from heterofl_flwr.nn.execution import call, device_of
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.static_norm import remove_statistics

Axes = Mapping[int, str]
"""Axes of the inputs that may have any length, with their names."""

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
"""Arguments of a model: tensors by position, or by name."""

Run = Callable[[Inputs], object]


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A model to export, on the CPU and in evaluation mode."""

    model: nn.Module
    program: ExportedProgram
    inputs: Inputs  # examples; only their axes are used
    axes: Axes
    outputs: Sequence[str]


def write_state(traced: Traced, path: Path) -> None:
    """Write parameters and buffers as safetensors; a tied parameter is written once, under its first name."""
    names = first_names(traced.model)
    state = {name: tensor for name, tensor in traced.model.state_dict().items() if names.get(name, name) == name}
    path.write_bytes(pack(state))


def open_state(traced: Traced, path: Path) -> Run:
    """Return a function that runs the model with the tensors of the file."""
    bare = copy.deepcopy(traced.model)
    for tensor in bare.state_dict().values():  # other buffers, such as position tables, are not in files
        tensor.zero_()
    return partial(call, load_state(bare, path))


def load_state(model: nn.Module, path: str | Path) -> nn.Module:
    """Copy a model, load an exported ``model.safetensors`` into the copy, and return the copy in evaluation mode.

    A batch norm layer without statistics gets the statistics in the file. An instance norm layer whose statistics are
    not in the file loses them.

    Parameters
    ----------
    model : nn.Module
        A model of the exported level, such as ``build(0.5)``.
    path : str | Path
        Path of the file.
    """
    with reading(Path(path), "expected a model.safetensors of an export"):
        state: Mapping[str, Tensor] = load(Path(path).read_bytes())
    loaded = copy.deepcopy(model).eval()
    device = device_of(loaded)
    for name, layer in batch_norms(loaded).items():
        if f"{name}.running_mean" in state and layer.running_mean is None:
            layer.track_running_stats = True
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(layer, buffer, torch.zeros_like(state[f"{name}.{buffer}"], device=device))
    for name, layer in loaded.named_modules():
        if isinstance(layer, _InstanceNorm) and f"{name}.running_mean" not in state:
            remove_statistics(layer)
    tied = {name: state[alias] for name, alias in first_names(loaded).items() if name not in state and alias in state}
    try:
        loaded.load_state_dict({**state, **tied})
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise ShapeError(
            f"{path} does not fit this {type(model).__name__}; expected one of the level that was exported: {details}"
        ) from error
    return loaded


def write_onnx(traced: Traced, path: Path) -> None:
    """Write the program as an ONNX file; tensors of a large model go to a second file, with the suffix ``.data``."""
    axes = tree_map(lambda leaf: {axis: name for axis, name in traced.axes.items() if axis < leaf.dim()}, traced.inputs)
    names = list(traced.outputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")  # two inputs have an axis with the same name
        exported: Any = torch.onnx.export(traced.program, (), output_names=names, dynamic_shapes=axes, verbose=False)
    for node in exported.model.graph.all_nodes():  # remove paths of the model's code
        node.metadata_props.clear()
    exported.save(path)


def open_onnx(traced: Traced, path: Path) -> Run:
    """Return a function that runs the file in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        feed = {name: leaf.numpy() for name, leaf in zip(names, tree_leaves(inputs), strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


@dataclass(frozen=True, slots=True)
class Format:
    """An export format. ``needs`` lists the packages that the format requires."""

    file: str
    write: Callable[[Traced, Path], None]
    open: Callable[[Traced, Path], Run]
    needs: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "safetensors": Format("model.safetensors", write_state, open_state),
        "pt2": Format(
            "model.pt2",
            lambda traced, path: torch.export.save(traced.program, path),
            lambda traced, path: partial(call, torch.export.load(path).module()),
        ),
        "onnx": Format("model.onnx", write_onnx, open_onnx, ("onnx", "onnxscript", "onnxruntime")),
    }
)
"""Export formats by name.

``safetensors`` holds tensors for the model's own code, ``pt2`` a program for torch, and ``onnx`` a program for any ONNX
runtime.
"""


def formats_named(names: Sequence[str]) -> dict[str, Format]:
    """Return the named export formats; raise an error if a format is unknown or needs a missing package."""
    check_list("formats", names, "onnx")
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ConfigError(f"formats are {', '.join(unknown) or 'none'}; expected some of {', '.join(FORMATS)}")
    chosen = {name: FORMATS[name] for name in FORMATS if name in names}
    with extra(
        "export", f"choose other formats ({','.join(name for name, kind in FORMATS.items() if not kind.needs)})"
    ):
        for package in (package for kind in chosen.values() for package in kind.needs):
            import_module(package)
    return chosen
