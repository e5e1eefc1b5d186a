"""Measure the inputs of batch norm layers over data, for static batch norm (section 3.2)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.core.fidelity import Fidelity, Variant
from heterofl_flwr.nn.execution import channels_last
from heterofl_flwr.nn.moments import LayerMoments, Moments

JOINT = ("cuda",)
"""Types of device on which a batch norm layer takes several batches in one call; on a CPU that copies too much."""


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return a model's batch norm layers by name, in the model's order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def collect_moments(
    model: nn.Module, batches: Iterable[torch.Tensor], kind: Variant = "paper", *, together: int = 1
) -> Moments:
    """Measure the inputs of every batch norm layer in one pass over ``batches``.

    Batch norm layers normalise with the statistics of each batch, as in training; every other module runs in
    evaluation mode. The model, its modes and its buffers are afterwards as they were before. A model without batch
    norm is not run at all.

    Parameters
    ----------
    model : nn.Module
        Any model with batch norm layers, with or without running statistics.
    batches : Iterable[torch.Tensor]
        Inputs, without labels, on the model's device.
    kind : Variant
        ``paper``: the cumulative average over batches of batch mean and unbiased batch variance, as
        ``BatchNorm2d(momentum=None)`` has it. ``fixed``: moments pooled over all samples and positions, for which
        the size of the batches matters only through the layers before.
    together : int
        How many batches of equal shape may go through the model in one pass, which is faster where they are small.
        Each is normalised by its own statistics all the same. For models in which nothing but batch norm mixes the
        examples of a batch, and whose first axis stays that of the examples.
    """
    Fidelity(moments=kind)
    if together < 1:
        raise DataError(f"together is {together}; expected 1 or more batches")
    if not batch_norms(model):
        return Moments(kind, {})
    place = next(model.parameters(), torch.zeros(()))
    some: Sequence[torch.Tensor] = ()
    number = 0
    with torch.no_grad(), _restored(model), channels_last(model):
        for module in model.modules():
            module.training = False  # not eval(): a model may override train(), for example to freeze layers
        sums = {name: _Sums(name, layer, kind, place) for name, layer in batch_norms(model).items()}
        for some in _alike(batches, together):
            for total in sums.values():
                total.batches = len(some)
            model(some[0] if len(some) == 1 else torch.cat(some))
            number += len(some)
    if not some:
        raise DataError("there are no batches to measure moments on")
    return Moments(kind, {name: sums_of_layer.moments(number) for name, sums_of_layer in sums.items()})


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore modes, attributes and buffers of a model's layers; a copy of the model would cost more than its pass."""
    before = [(layer, dict(vars(layer)), dict(layer._buffers)) for layer in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for layer, attributes, buffers in before:
            vars(layer).clear()
            vars(layer).update(attributes)
            layer._buffers.clear()
            layer._buffers.update(buffers)
        for buffer, value in values:
            buffer.copy_(value)


def _alike(batches: Iterable[torch.Tensor], most: int) -> Iterator[list[torch.Tensor]]:
    """Yield lists of up to ``most`` neighbouring batches of equal shape."""
    some: list[torch.Tensor] = []
    for number, batch in enumerate(batches, 1):
        if isinstance(batch, list | tuple):
            raise DataError(f"batch {number} is a {type(batch).__name__}; expected the model's input alone")
        if some and (len(some) == most or batch.shape != some[0].shape):
            yield some
            some = []
        some.append(batch)
    if some:
        yield some


class _Sums:
    """The growing sums of one layer; they stay on its device, so that a batch costs no synchronisation.

    From now on the layer normalises by batch and is measured. Its buffers take each batch's moments, which it computes
    anyway, so they cost no pass of their own.
    """

    def __init__(self, name: str, layer: _BatchNorm, kind: Variant, place: torch.Tensor) -> None:
        self.name, self.layer, self.kind = name, layer, kind
        self.normalise = layer.forward
        self.batches = 1  # in what comes next
        self.count = 0
        self.first_sum = self.second_sum = torch.zeros(layer.num_features, dtype=torch.float64)
        layer.training = layer.track_running_stats = True
        layer.momentum, layer.num_batches_tracked = 1.0, None  # keeps nothing of the batch before
        place = next(layer.parameters(), place)
        layer.running_mean = torch.zeros_like(self.first_sum, dtype=place.dtype, device=place.device)
        layer.running_var = torch.zeros_like(layer.running_mean)
        vars(layer)["forward"] = self.forward

    def moments(self, batches: int) -> LayerMoments:
        """Return the sums over a number of batches; several calls of the layer for one batch count once."""
        count = min(self.count, batches) if self.kind == "paper" else self.count
        calls = self.count / count if count else 1
        return LayerMoments(count, (self.first_sum / calls).cpu(), (self.second_sum / calls).cpu())

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # so torch calls it
        """Normalise each batch by its own statistics, and add them up; takes the place of the layer's ``forward``."""
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
        """Normalise one batch, (examples, channels, ...)."""
        output: torch.Tensor = self.normalise(x)  # it leaves the batch's moments in the layer's buffers
        self._add(x, self.layer.running_mean, self.layer.running_var)
        return output

    def _normalise_jointly(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise several batches in one call, in which the channels of each are channels of their own."""
        layer, number = self.layer, self.batches
        wide = x.reshape(number, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)  # (examples, batches * channels, ...)
        tensors = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        mean, variance, scale, shift = (None if tensor is None else tensor.repeat(number) for tensor in tensors)
        output = F.batch_norm(wide, mean, variance, scale, shift, training=True, momentum=1.0, eps=layer.eps)
        self._add(wide, mean, variance)
        return output.reshape(-1, number, *x.shape[1:]).transpose(0, 1).flatten(0, 1)

    def _add(self, x: torch.Tensor, *moments: torch.Tensor | None) -> None:
        """Add the means and variances of a batch, or of several whose channels lie side by side."""
        # A layer in half precision keeps its moments in half precision too.
        half = x.dtype in (torch.float16, torch.bfloat16)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        statistics = torch.var_mean(x.float(), axes)[::-1] if half else moments
        place = torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64
        shape = (-1, self.layer.num_features)
        mean, variance = (
            tensor.to(place).double().view(shape) for tensor in statistics if tensor is not None
        )  # (batches, channels)
        if self.kind == "paper":
            weight, second = 1, variance
        else:
            weight = x.numel() // mean.numel()
            second = variance * ((weight - 1) / weight) + mean**2
        self.count += weight * len(mean)
        self.first_sum = self.first_sum.to(place) + mean.sum(0) * weight
        self.second_sum = self.second_sum.to(place) + second.sum(0) * weight
