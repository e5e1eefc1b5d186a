"""The paper's pre-activation residual network (CIFAR10)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.core.levels import width
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.layers import make_scaler
from heterofl_flwr.nn.static_norm import make_norm


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Conv2d | None:
    """Return the 1x1 convolution of a block that changes the shape; ``None`` where the input is added as it is."""
    return _conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each after Scaler, norm and ReLU, and a shortcut.

    Parameters
    ----------
    inputs, planes, stride : int
        Channels in, channels within, and the stride of the block; it puts out ``planes * expansion`` channels.
    norm : str
        See ``make_norm``.
    scaler : nn.Module
        The model's Scaler.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, planes: int, stride: int, *, norm: str, scaler: nn.Module) -> None:
        super().__init__()
        self.scaler = scaler
        self.norm1 = make_norm(norm, inputs)
        self.conv1 = _conv(inputs, planes, 3, stride)
        self.norm2 = make_norm(norm, planes)
        self.conv2 = _conv(planes, planes, 3)
        self.shortcut = _shortcut(inputs, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output; a shortcut convolution sees the first activation, not the raw input."""
        h = F.relu(self.norm1(self.scaler(x)))
        y: torch.Tensor = self.conv2(F.relu(self.norm2(self.scaler(self.conv1(h)))))
        return y + (x if self.shortcut is None else self.shortcut(h))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution that widens by four; see ``BasicBlock`` for the parameters."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, planes: int, stride: int, *, norm: str, scaler: nn.Module) -> None:
        super().__init__()
        self.scaler = scaler
        self.norm1 = make_norm(norm, inputs)
        self.conv1 = _conv(inputs, planes, 1)
        self.norm2 = make_norm(norm, planes)
        self.conv2 = _conv(planes, planes, 3, stride)
        self.norm3 = make_norm(norm, planes)
        self.conv3 = _conv(planes, planes * self.expansion, 1)
        self.shortcut = _shortcut(inputs, planes * self.expansion, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output; a shortcut convolution sees the first activation, not the raw input."""
        h = F.relu(self.norm1(self.scaler(x)))
        y = self.conv2(F.relu(self.norm2(self.scaler(self.conv1(h)))))
        y = self.conv3(F.relu(self.norm3(self.scaler(y))))
        z: torch.Tensor = y + (x if self.shortcut is None else self.shortcut(h))
        return z


class PreResNet(nn.Module):
    """A 3x3 stem, stages of pre-activation blocks (strides 1, 2, 2, 2), then a linear classifier.

    See ``CNN`` for the parameters not named here.

    Parameters
    ----------
    blocks : Sequence[int]
        Blocks of each stage. The published results are of (1, 1, 1, 2); the authors' later code has (2, 2, 2, 2).
    """

    label_rows: tuple[str, ...] = ("linear.weight", "linear.bias")
    block: ClassVar[type[BasicBlock] | type[Bottleneck]] = BasicBlock

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        blocks: Sequence[int] = (1, 1, 1, 2),
        hidden: Sequence[int] = (64, 128, 256, 512),
        *,
        rate: float = 1.0,
        global_rate: float = 1.0,
        norm: str = "sbn",
        scaler: bool = True,
    ) -> None:
        super().__init__()
        if len(blocks) != len(hidden):
            raise ConfigError(
                f"{len(hidden)} widths do not fit {len(blocks)} numbers of blocks: expected one each per stage"
            )
        self.scaler = make_scaler(rate, global_rate, scaler)
        inputs = width(hidden[0], rate)
        self.stem = _conv(channels, inputs, 3)
        self.stages = nn.Sequential()
        for stage, (full, number) in enumerate(zip(hidden, blocks, strict=True)):
            planes = width(full, rate)
            layers = nn.Sequential()
            for position in range(number):
                stride = 2 if stage > 0 and position == 0 else 1
                layers.append(self.block(inputs, planes, stride, norm=norm, scaler=self.scaler))
                inputs = planes * self.block.expansion
            self.stages.append(layers)
        self.norm = make_norm(norm, inputs)
        self.linear = nn.Linear(inputs, classes)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of images (batch, channels, height, width)."""
        x = F.relu(self.norm(self.scaler(self.stages(self.stem(images)))))
        logits: torch.Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class BottleneckPreResNet(PreResNet):
    """A ``PreResNet`` of bottleneck blocks, such as (3, 4, 6, 3), the 50-layer one."""

    block = Bottleneck
