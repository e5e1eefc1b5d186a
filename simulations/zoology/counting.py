"""The number of parameters that a slice should have, axis by axis.

Which axes shrink follows from the types of the layers, not from a trace: inputs and outputs of linear layers and
convolutions, the channels of norms; not kernels, the model's own inputs and outputs. So an axis that a trace kept whole
without need is noticed. By how much an axis shrinks is its channels times the rate, rounded up for each group of
channels by itself: behind a concatenation, for each of its parts.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from heterofl_flwr.core import width
from heterofl_flwr.elastic_models import Elastic
from heterofl_flwr.elastic_models.channels import Places


def expected_parameters(model: nn.Module, build: Elastic, rate: float, ends: tuple[int, int]) -> dict[str, float]:
    """Return the number for each parameter; ``ends`` are the lengths of the model's own input and output."""
    channels = build.part(rate).channels
    expected, counted = {}, set()
    for prefix, layer in model.named_modules():
        for own, parameter in layer.named_parameters(recurse=False):
            if parameter in counted:  # tied to one of another layer
                continue
            counted.add(parameter)
            name = f"{prefix}.{own}" if prefix else own
            places = channels.axes[name]
            axes = zip(parameter.shape, _shrinks(layer, parameter.shape, places), places, strict=True)
            expected[name] = math.prod(
                _length(length, of, rate) if cut and length != ends[axis == 0] else length
                for axis, (length, cut, of) in enumerate(axes)
            )
    return expected


def _shrinks(layer: nn.Module, shape: Sequence[int], places: Sequence[Places | None]) -> list[bool]:
    """Return which axes of a parameter of a layer shrink."""
    traced = [one is not None for one in places]
    if isinstance(layer, _ConvNd) and len(shape) > 1:
        # Groups are dropped whole, or each of them shrinks: that is for the trace to choose.
        return [True, layer.groups == 1 or traced[1], *[False] * (len(shape) - 2)]
    if isinstance(layer, nn.Embedding):
        return [False, True]
    known = (nn.Linear, _ConvNd, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention, nn.RNNBase)
    return [True] * len(shape) if isinstance(layer, known) else traced


def _length(length: int, places: Places | None, rate: float) -> float:
    """Return how many entries of an axis should be left."""
    if places is None:
        return length * rate
    groups, numbers = places.T
    whole = int((groups < 0).sum())
    counted = 0.0
    for group in np.unique(groups[groups >= 0]):
        own = numbers[groups == group]
        channels = len(np.unique(own))
        counted += len(own) / channels * width(channels, rate)
    return counted + whole * rate
