"""The wide layers of torch's own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heterofl_flwr.learn.wide.registry import joined, stacked, widens


@widens(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _convolution(layer: nn.Module, clients: int) -> nn.Module:
    return joined(layer, clients, "in_channels", "out_channels", "groups")


@widens(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _channel_norm(layer: nn.Module, clients: int) -> nn.Module:
    return joined(layer, clients, "num_features")


@widens(nn.GroupNorm)
def _group_norm(layer: nn.GroupNorm, clients: int) -> nn.Module:
    return joined(layer, clients, "num_groups", "num_channels")


@widens(nn.Linear)
class _Linear(nn.Module):
    """Each client's linear layer on its part of (batch, clients * inputs)."""

    def __init__(self, layer: nn.Linear, clients: int) -> None:
        super().__init__()
        self.weight = stacked(layer.weight, clients)  # (clients, outputs, inputs)
        self.bias = None if layer.bias is None else stacked(layer.bias, clients)

    def forward(self, x: Tensor) -> Tensor:
        clients, _, inputs = self.weight.shape
        parts = x.reshape(len(x), clients, inputs).transpose(0, 1)
        outputs = (
            torch.bmm(parts, self.weight.mT)
            if self.bias is None
            else torch.baddbmm(self.bias[:, None], parts, self.weight.mT)
        )  # (clients, batch, outputs)
        return outputs.transpose(0, 1).flatten(1)


@widens(nn.LayerNorm)
class _LayerNorm(nn.Module):
    """Each client's layer norm over all axes but the batch."""

    def __init__(self, layer: nn.LayerNorm, clients: int) -> None:
        super().__init__()
        self.clients, self.shape, self.eps = clients, layer.normalized_shape, layer.eps
        self.weight = None if layer.weight is None else stacked(layer.weight, clients)
        self.bias = None if layer.bias is None else stacked(layer.bias, clients)

    def forward(self, x: Tensor) -> Tensor:
        parts = F.layer_norm(x.reshape(len(x), self.clients, *self.shape), self.shape, eps=self.eps)
        parts = parts if self.weight is None else parts * self.weight
        parts = parts if self.bias is None else parts + self.bias
        return parts.flatten(1, 2)


@widens(nn.PReLU)
class _PReLU(nn.Module):
    """Each client's slopes, one or as many as it has channels."""

    def __init__(self, layer: nn.PReLU, clients: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.new_empty(clients * len(layer.weight)), layer.weight.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.repeat_interleave(x.shape[1] // len(self.weight)))
