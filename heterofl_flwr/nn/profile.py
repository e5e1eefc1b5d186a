"""Costs of a model: parameters, multiplications and size in memory."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from heterofl_flwr.core.exchanged import copy_exchanged
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.nn.execution import arguments, device_of, num_parameters, plain_attention
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.models import Build

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class Profile:
    """Cost of one model.

    Attributes
    ----------
    parameters
        Number of parameters.
    macs
        Number of multiply-accumulate operations of one forward pass.
    megabytes
        Size of the parameters in float32, in units of 1024 * 1024 bytes.
    """

    parameters: int
    macs: int
    megabytes: float


@dataclass(frozen=True, slots=True)
class MixProfile:
    """Mean costs of a training client in a mix.

    ``ratio`` is the mean number of parameters, divided by the number of parameters of the global model.
    """

    parameters: float
    macs: float
    megabytes: float
    ratio: float


def _lstm_flops(x: Sequence[int], of_x: Sequence[int], of_hidden: Sequence[int], *_: object, **__: object) -> int:
    """Return the number of operations (FLOPs) of torch's LSTM operator, from its arguments' shapes."""
    return 2 * math.prod(x[:-1]) * (math.prod(of_x) + math.prod(of_hidden))


def _bilinear_flops(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return 2 * math.prod(x[:-1]) * math.prod(weight)


def _vector_flops(factor: Sequence[int], *_: object, **__: object) -> int:
    """Return the number of operations (FLOPs) of a product of ``factor``, a matrix or a vector, with a vector."""
    return 2 * math.prod(factor)


def _addmv_flops(_: Sequence[int], matrix: Sequence[int], *__: object, **___: object) -> int:
    return _vector_flops(matrix)


def _grouped_flops(x: Sequence[int], matrices: Sequence[int], *_: object, **__: object) -> int:
    """Return the number of operations (FLOPs) of ``grouped_mm``, which multiplies each row of ``x`` by one matrix."""
    return 2 * math.prod(x) * matrices[-1]


COUNTED = {
    torch.ops.aten.mkldnn_rnn_layer: _lstm_flops,
    torch.ops.aten._trilinear: _bilinear_flops,
    torch.ops.aten.mv: _vector_flops,
    torch.ops.aten.dot: _vector_flops,
    torch.ops.aten.vdot: _vector_flops,
    torch.ops.aten.addmv: _addmv_flops,
    torch.ops.aten._grouped_mm: _grouped_flops,
}
"""Functions that return the FLOPs of a call, by operator. Torch's counter lacks these operators."""


def profile(model: nn.Module, example_input: object) -> Profile:
    """Return the costs of a model, counted in a forward pass on ``example_input``.

    ``example_input`` is a tensor, a tuple of arguments or a mapping of keyword arguments. For a model on
    ``torch.device("meta")``, no values are computed.
    """
    device = device_of(model)
    probe = copy_exchanged(model).eval()
    for norm in batch_norms(probe).values():
        # Without running statistics, batch norm refuses one example whose image has shrunk to one pixel.
        if norm.running_mean is None:
            place = next(chain(norm.parameters(), probe.parameters(), [torch.zeros(())]))
            norm.running_mean = torch.zeros(norm.num_features).to(place)
            norm.running_var = torch.ones(norm.num_features).to(place)
    # The counter does not know cuDNN's recurrent layers. Without cuDNN, these layers are matrix products.
    with plain_attention(), torch.backends.cudnn.flags(enabled=False), _flop_counter() as counter:
        inputs = arguments(example_input)
        positional, keywords = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), inputs)
        probe(*positional, **keywords)
    parameters = num_parameters(model)
    return Profile(parameters, counter.get_total_flops() // 2, parameters * 4 / 1024**2)


@contextmanager
def _flop_counter() -> Iterator["FlopCounterMode"]:
    """Context manager: count operations without loading torch's compiler, which takes seconds.

    Torch would load the compiler only to mark the counter as excluded from compilation. To avoid this, the mark is
    set beforehand.
    """
    from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode  # loads triton, which no client needs

    counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
    function = getattr(_FlopCounterMode.__torch_dispatch__, "__wrapped__", None)
    exempt = function is not None and "torch._dynamo" not in sys.modules
    if exempt:
        vars(function)["__dynamo_disable"] = function
    try:
        with counter:
            yield counter
    finally:
        if exempt:
            vars(function).pop("__dynamo_disable", None)


def build_and_profile(build: Build, rate: float, example_input: torch.Tensor) -> tuple[nn.Module, Profile]:
    """Return a new model of a rate, and its profile. Global random generators do not change.

    The model is not built on ``meta``, because torch would load its compiler for batch norm.
    """
    with kept_random_state():
        model = build(rate)
        return model, profile(model, example_input)


def mean_profile(profiles: Mapping[float, Profile], mix: Mix) -> MixProfile:
    """Return the mean costs of a client in a mix, from the profile of each rate."""
    means = {
        field.name: mix.mean({rate: getattr(cost, field.name) for rate, cost in profiles.items()})
        for field in fields(Profile)
    }
    return MixProfile(**means, ratio=means["parameters"] / profiles[mix.global_rate].parameters)
