"""Measurement of moments for static batch norm (section 3.2)."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_map_only

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.core.fidelity import Fidelity, Variant
from heterofl_flwr.nn.execution import call, save_state, tensors_in, to_double
from heterofl_flwr.nn.memory_format import in_channels_last
from heterofl_flwr.nn.moments import LayerMoments, Moments

Batches = Iterable[torch.Tensor | Sequence[object] | Mapping[str, object]]
"""Batches of a model's inputs; see ``collect_moments``."""

JOINT = ("cuda",)
"""Device types on which a batch norm layer processes several batches in one call; on a CPU, this would copy too much.
"""


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norm layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def collect_moments(model: nn.Module, batches: Batches, kind: Variant = "paper", *, together: int = 1) -> Moments:
    """Return the moments of the inputs of every batch norm layer, measured in one pass over ``batches``.

    Batch norm layers normalise each batch by the batch's statistics, and instance norm layers each example by the
    example's statistics, as in training. All other modules run in evaluation mode. The model is restored afterwards.

    Parameters
    ----------
    model : nn.Module
        Any model with batch norm layers.
    batches : Iterable[Tensor | tuple | list | Mapping]
        Inputs on the model's device. A batch is the input of the model, or a tuple, list or mapping whose first entry
        is the input: a tensor, or a tuple, list or mapping of the model's arguments. Batches without examples are
        skipped.
    kind : Variant
        With ``paper``, batch means and unbiased batch variances are averaged over batches, as in
        ``BatchNorm2d(momentum=None)``. With ``fixed``, mean and variance are those of all samples together.
    together : int
        Maximum number of batches of equal shape in one forward pass. More than 1 is faster for small batches, but
        requires that only batch norm mixes examples, and that examples are the first dimension in all layers.
    """
    Fidelity(moments=kind)
    if not batch_norms(model):
        return Moments(kind, {})
    inputs = (each for batch in batches if next(tensors_in(each := first_entry(batch))).numel())
    groups = _alike(inputs, together)
    first = next(groups, None)
    if first is None:
        raise DataError("there are no examples to measure moments on")
    restore = save_state(model)
    try:
        return in_channels_last(model, lambda: _measure(model, chain([first], groups), kind))
    finally:
        restore()


@torch.no_grad()
def _measure(model: nn.Module, groups: Iterable[list[Any]], kind: Variant) -> Moments:
    for module in model.modules():
        # Not eval(), which calls train(): a model may override train() to freeze layers. Instance norm stays in
        # training mode, or it would use running statistics, which with_static_norm removes.
        module.training = isinstance(module, _InstanceNorm)
    place = next(model.parameters(), torch.zeros(()))
    sums = {name: _Sums(name, layer, kind, place) for name, layer in batch_norms(model).items()}
    number = 0
    for batches in groups:
        for total in sums.values():
            total.batches = len(batches)
        joined = batches[0] if len(batches) == 1 else torch.cat(batches)
        call(model, tree_map_only(torch.Tensor, torch.clone, joined))  # a model may change its inputs in place
        number += len(batches)
    return Moments(kind, {name: total.moments(number) for name, total in sums.items()})


def first_entry(batch: object) -> object:
    """Return the model's input: ``batch`` if it is a tensor, or the first entry of a tuple, list or mapping."""
    entry = batch
    if isinstance(batch, tuple | list | Mapping) and batch:
        entry = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    if isinstance(entry, list):  # a DataLoader's batch of tuples
        entry = tuple(entry)
    if isinstance(entry, torch.Tensor | tuple | Mapping) and any(True for _ in tensors_in(entry)):
        return entry
    raise DataError(
        f"data for static batch norm gave a batch of {type(batch).__name__} without inputs; expected a tensor of "
        f"inputs, or a tuple or a mapping that begins with one, or with a tuple or a mapping of the model's arguments"
    )


def _alike(inputs: Iterable[object], most: int) -> Iterator[list[Any]]:
    """Yield lists of up to ``most`` tensors of equal shape; a tuple or a mapping of arguments is alone in its list."""
    some: list[object] = []
    for each in inputs:
        shapes = {getattr(entry, "shape", None) for entry in (each, *some[:1])}
        if some and (len(some) == most or len(shapes) > 1 or None in shapes):
            yield some
            some = []
        some.append(each)
    if some:
        yield some


class _Sums:
    """Running sums of the moments of one batch norm layer. ``forward`` replaces the layer's method of this name.

    The layer writes each batch's mean and variance into its running statistics, which are then added to the sums.
    """

    def __init__(self, name: str, layer: _BatchNorm, kind: Variant, place: torch.Tensor) -> None:
        self.name, self.layer, self.kind = name, layer, kind
        self.normalise = layer.forward
        self.batches = 1  # number of batches in the next input
        self.count = 0
        self.first_sum = self.second_sum = torch.zeros(layer.num_features, dtype=torch.float64)
        layer.training = layer.track_running_stats = True
        layer.momentum, layer.num_batches_tracked = 1.0, None  # running statistics are those of the latest batch
        place = next(layer.parameters(), place)
        layer.running_mean = torch.zeros_like(self.first_sum, dtype=place.dtype, device=place.device)
        layer.running_var = torch.zeros_like(layer.running_mean)
        vars(layer)["forward"] = self.forward

    def moments(self, batches: int) -> LayerMoments:
        count = min(self.count, batches) if self.kind == "paper" else self.count
        calls = self.count / count if count else 1
        return LayerMoments(count, (self.first_sum / calls).cpu(), (self.second_sum / calls).cpu())

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # the parameter's name in torch
        if len(input) % self.batches:
            raise DataError(
                f"batch norm layer {self.name} got an input of shape {tuple(input.shape)}, which is not made of "
                f"{self.batches} batches: leave together at 1"
            )
        shape = (len(input) // self.batches, *input.shape[1:])
        values = shape[0] * math.prod(shape[2:])
        if values < 2:
            raise DataError(
                f"batch norm layer {self.name} got a batch of shape {shape}, {values} value(s) per channel; "
                "a variance needs 2 or more: use larger batches, or leave out the last, short one"
            )
        if self.batches > 1 and input.device.type in JOINT and type(self.layer).forward is _BatchNorm.forward:
            return self._normalise_jointly(input)
        outputs = [self._normalise(batch) for batch in input.chunk(self.batches)]
        return outputs[0] if self.batches == 1 else torch.cat(outputs)

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.normalise(x)  # writes the batch's moments into the layer's buffers
        self._add(x, self.layer.running_mean, self.layer.running_var)
        return output

    def _normalise_jointly(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise several batches in one call, as one batch in which the channels of all batches are side by side."""
        layer, number = self.layer, self.batches
        wide = x.reshape(number, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)  # (examples, batches * channels, ...)
        tensors = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        mean, variance, scale, shift = (None if tensor is None else tensor.repeat(number) for tensor in tensors)
        output = F.batch_norm(wide, mean, variance, scale, shift, training=True, momentum=1.0, eps=layer.eps)
        self._add(wide, mean, variance)
        return output.reshape(-1, number, *x.shape[1:]).transpose(0, 1).flatten(0, 1)

    def _add(self, x: torch.Tensor, *moments: torch.Tensor | None) -> None:
        # A layer in half precision computes its moments in half precision, so compute them again in float32.
        half = x.dtype in (torch.float16, torch.bfloat16)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        statistics = torch.var_mean(x.float(), axes)[::-1] if half else moments
        shape = (-1, self.layer.num_features)
        both = (tensor for tensor in statistics if tensor is not None)
        mean, variance = (to_double(tensor).view(shape) for tensor in both)  # (batches, channels)
        if self.kind == "paper":
            weight, second = 1, variance
        else:
            weight = x.numel() // mean.numel()
            second = variance * ((weight - 1) / weight) + mean**2
        self.count += weight * len(mean)
        self.first_sum = self.first_sum.to(mean.device) + mean.sum(0) * weight
        self.second_sum = self.second_sum.to(mean.device) + second.sum(0) * weight
