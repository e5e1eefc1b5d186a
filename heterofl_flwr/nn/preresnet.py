"""The paper's pre-activation residual network (CIFAR10)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import width
from heterofl_flwr.nn.layers import make_norm, make_scaler


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """Convolutions with a shortcut. Scaler, norm and ReLU come before each convolution.

    ``convolutions`` has (output channels, kernel size, stride) for each convolution.
    """

    def __init__(
        self, inputs: int, convolutions: Sequence[tuple[int, int, int]], *, norm: str, scaler: nn.Module
    ) -> None:
        super().__init__()
        self.scaler = scaler
        self._numbers = range(1, len(convolutions) + 1)
        channels, total = inputs, 1
        for number, (outputs, size, stride) in zip(self._numbers, convolutions, strict=True):
            self.add_module(f"norm{number}", make_norm(norm, channels))
            self.add_module(f"conv{number}", _conv(channels, outputs, size, stride))
            channels, total = outputs, total * stride
        # Without a change of shape, the input itself is the shortcut.
        self.shortcut = _conv(inputs, channels, 1, total) if total != 1 or inputs != channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, activation = x, x
        for number in self._numbers:
            y = F.relu(getattr(self, f"norm{number}")(self.scaler(y)))
            activation = y if number == 1 else activation
            y = getattr(self, f"conv{number}")(y)
        return y + (x if self.shortcut is None else self.shortcut(activation))


class PreResNet(nn.Module):
    """The paper's residual network: 3x3 convolution, stages of pre-activation blocks, linear classifier.

    From the second stage on, the first block of a stage has stride 2. The other parameters are those of ``CNN``.

    Parameters
    ----------
    blocks : Sequence[int]
        Number of blocks of each stage. The published results use (1, 1, 1, 2); the authors' later code has (2, 2, 2,
        2).
    """

    label_rows: tuple[str, ...] = ("linear.weight", "linear.bias")
    bottleneck: ClassVar[bool] = False

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
        for stage, (full_width, number) in enumerate(zip(hidden, blocks, strict=True)):
            planes = width(full_width, rate)
            layers = nn.Sequential()
            for position in range(number):
                stride = 2 if stage > 0 and position == 0 else 1
                # Basic: two 3x3 convolutions. Bottleneck: a 1x1, a 3x3 and a 1x1 with four times the channels.
                basic = [(planes, 3, stride), (planes, 3, 1)]
                wide = [(planes, 1, 1), (planes, 3, stride), (4 * planes, 1, 1)]
                convolutions = wide if self.bottleneck else basic
                layers.append(_Block(inputs, convolutions, norm=norm, scaler=self.scaler))
                inputs = convolutions[-1][0]
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
    """A ``PreResNet`` with bottleneck blocks. With (3, 4, 6, 3) blocks it is the 50-layer network."""

    bottleneck = True
