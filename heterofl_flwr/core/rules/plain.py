"""Layers whose parameters keep a prefix on every axis that shrinks: linear, convolution, norms, embedding."""

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from heterofl_flwr.core.axes import Axes, axes_between
from heterofl_flwr.core.rules.registry import register
from heterofl_flwr.errors import ShapeError


@register(nn.Linear, nn.Embedding, nn.EmbeddingBag)
@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@register(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, _InstanceNorm)
def prefix_of_every_axis(full: nn.Module, local: nn.Module) -> dict[str, Axes]:
    """Keep a prefix of every axis."""
    kept = dict(local.named_parameters(recurse=False))
    return {
        name: axes_between(parameter.shape, kept[name].shape)
        for name, parameter in full.named_parameters(recurse=False)
    }


@register(_ConvNd)
def convolution(full: _ConvNd, local: _ConvNd) -> dict[str, Axes]:
    """Keep a prefix of the input and the output channels, and every tap of the kernel.

    Groups must shrink with the channels and keep their size, as in a depthwise convolution: otherwise a prefix of the
    channels would move to other groups.
    """
    if full.kernel_size != local.kernel_size:
        raise ShapeError(f"kernel sizes {full.kernel_size} and {local.kernel_size} differ; kernels are never cut")
    if max(full.groups, local.groups) > 1 and _group_size(full) != _group_size(local):
        raise ShapeError(
            f"{full.in_channels} to {full.out_channels} channels in {full.groups} groups became {local.in_channels} to "
            f"{local.out_channels} in {local.groups}: groups must shrink with the channels and keep their size"
        )
    return prefix_of_every_axis(full, local)


def _group_size(layer: _ConvNd) -> tuple[int, int]:
    return layer.in_channels // layer.groups, layer.out_channels // layer.groups
