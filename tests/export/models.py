"""Small models of each kind, at any rate, with batch norm that has been measured, and inputs for them."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

from heterofl_flwr.elastic_models import Elastic, elastic
from heterofl_flwr.nn import CNN, PreResNet, Transformer, collect_moments, with_static_norm
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.transformer import TransformerShape

BATCH = {0: "batch"}
WORDS = 20


def images(channels: int, size: int = 8, number: int = 6) -> Tensor:
    return torch.randn(number, channels, size, size, generator=torch.Generator().manual_seed(1))


def text(length: int = 12) -> Tensor:
    return torch.randint(WORDS, (4, length), generator=torch.Generator().manual_seed(1))


def measured(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Return a model whose batch norm has gains, shifts and statistics that are nowhere 0 or 1."""
    generator = torch.Generator().manual_seed(2)
    for layer in batch_norms(model).values():
        nn.init.uniform_(layer.weight, 0.5, 2, generator=generator)
        nn.init.uniform_(layer.bias, -1, 1, generator=generator)
    return with_static_norm(model, collect_moments(model, [inputs]))


def cnn(rate: float) -> nn.Module:
    torch.manual_seed(0)
    return measured(CNN(1, 10, (16, 16), rate=rate), images(1))


def preresnet(rate: float) -> nn.Module:
    torch.manual_seed(0)
    return measured(PreResNet(3, 10, (1, 1), (16, 16), rate=rate), images(3))


def transformer(rate: float) -> nn.Module:
    torch.manual_seed(0)
    shape = TransformerShape(sequence=16, embedding=32, hidden=16, heads=2, layers=1)
    return Transformer(WORDS, shape, rate=rate).eval()


@cache
def _mobilenets() -> Elastic:
    torch.manual_seed(0)
    block = InvertedResidualConfig(16, 5, 32, 16, True, "HS", 1, 1, 1.0)
    model = MobileNetV3([block], 32, num_classes=5)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()  # torchvision's weights are so small that logits are next to nothing
    return elastic(model, torch.zeros(2, 3, 16, 16))


def mobilenet(rate: float) -> nn.Module:
    """Return a slice of torchvision's MobileNetV3 with a single block, which has all that they can have."""
    return measured(_mobilenets()(rate), images(3, 16))


CASES: dict[str, tuple[Callable[[float], nn.Module], Tensor, dict[int, str]]] = {
    "cnn": (cnn, images(1), BATCH),
    "preresnet": (preresnet, images(3), BATCH),
    "transformer": (transformer, text(), {**BATCH, 1: "sequence"}),
    "mobilenet": (mobilenet, images(3, 16), BATCH),
}
