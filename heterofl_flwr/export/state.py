"""The format ``safetensors``: a model's own tensors under its own names, its static batch norm among them."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from heterofl_flwr.core.ties import first_names
from heterofl_flwr.errors import ConfigError, ShapeError
from heterofl_flwr.export.inputs import Inputs, outputs_of
from heterofl_flwr.export.runs import Run
from heterofl_flwr.export.tracing import Traced
from heterofl_flwr.learn.model_state import device_of
from heterofl_flwr.nn.static_norm import batch_norms


def write_state(traced: Traced, path: Path) -> None:
    """Write a model's parameters and buffers; a tied parameter once, under the first of its names."""
    first = first_names(traced.model)
    state = {name: one for name, one in traced.model.state_dict().items() if first.get(name, name) == name}
    # Others may share memory, which the format refuses, so each tensor is copied.
    path.write_bytes(save({name: one.clone(memory_format=torch.contiguous_format) for name, one in state.items()}))


def open_state(traced: Traced, path: Path) -> Run:
    """Return what runs a copy of the model into which the file is read; nothing else of it is left."""
    bare = copy.deepcopy(traced.model)
    for tensor in bare.state_dict().values():  # what is not in it, such as a table of positions, the code makes
        tensor.zero_()
    model = load_state(bare, path)

    def run(inputs: Inputs) -> list[Tensor]:
        return outputs_of(model, inputs)

    return run


def load_state(model: nn.Module, path: str | Path) -> nn.Module:
    """Return a copy of a model in evaluation mode with the tensors of an exported ``model.safetensors``.

    Batch norm layers get their statistics, whether they kept any before or not.

    Parameters
    ----------
    model : nn.Module
        A model of the level that was exported, such as ``build(0.5)``.
    path : str | Path
        The file.
    """
    try:
        state: Mapping[str, Tensor] = load(Path(path).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; expected a model.safetensors of an export") from error
    own = copy.deepcopy(model).eval()
    for name, layer in batch_norms(own).items():
        if f"{name}.running_mean" in state and layer.running_mean is None:
            layer.track_running_stats = True
            layer.running_mean = torch.zeros(layer.num_features, device=device_of(own))
            layer.running_var = torch.ones(layer.num_features, device=device_of(own))
            layer.num_batches_tracked = torch.tensor(0, device=device_of(own))
    tied = {name: state[first] for name, first in first_names(own).items() if name not in state and first in state}
    try:
        own.load_state_dict({**state, **tied})
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ShapeError(
            f"{path} does not fit this {type(model).__name__}; expected one of the level that was exported: {said}"
        ) from error
    return own
