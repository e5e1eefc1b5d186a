"""Architectures of torchvision, made small by the options of their constructors."""

from collections.abc import Callable
from functools import partial

from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.resnet import BasicBlock

from tests.elastic_models.families import FAMILIES, Case, images

CLASSES = 5
_MOBILE = partial(InvertedResidualConfig, stride=2, dilation=1, width_mult=1)


def _mobilenet() -> Case:
    blocks = [_MOBILE(8, 3, 8, 8, True, "RE"), _MOBILE(8, 3, 20, 12, False, "RE"), _MOBILE(12, 5, 32, 16, True, "HS")]
    return models.MobileNetV3(blocks, 24, CLASSES), images(32)


ARCHITECTURES: dict[str, Callable[[], Case]] = {
    "resnet": lambda: (models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES), images(32)),
    "mobilenet": _mobilenet,
    "squeezenet": lambda: (models.SqueezeNet("1_1", CLASSES), images(32)),
    "convnext": lambda: (
        models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.1, 1, CLASSES),
        images(16),
    ),
    "vit": lambda: (models.VisionTransformer(16, 8, 2, 4, 32, 40, num_classes=CLASSES), images(16)),
    "swin": lambda: (models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [2, 2], num_classes=CLASSES), images(16)),
}

CASES = FAMILIES | ARCHITECTURES
