"""Architectures of torchvision, made small by the options of their constructors."""

from collections.abc import Callable
from functools import partial

from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck

from tests.elastic_models.families import FAMILIES, Case, images

CLASSES = 5
_MOBILE = partial(InvertedResidualConfig, stride=2, dilation=1, width_mult=1)
_EFFICIENT = partial(MBConvConfig, width_mult=1, depth_mult=1)


def _mobilenet() -> Case:
    blocks = [_MOBILE(8, 3, 8, 8, True, "RE"), _MOBILE(8, 3, 20, 12, False, "RE"), _MOBILE(12, 5, 32, 16, True, "HS")]
    return models.MobileNetV3(blocks, 24, CLASSES), images(32)


def _efficientnet() -> Case:
    blocks = [_EFFICIENT(1, 3, 1, 8, 8, 1), _EFFICIENT(6, 3, 2, 8, 16, 2), _EFFICIENT(6, 5, 2, 16, 24, 1)]
    return models.EfficientNet(blocks, 0.1, num_classes=CLASSES, last_channel=40), images(32)


ARCHITECTURES: dict[str, Callable[[], Case]] = {
    "resnet": lambda: (models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES), images(32)),
    "resnext": lambda: (models.ResNet(Bottleneck, [1, 1, 1, 1], CLASSES, groups=8, width_per_group=2), images(32)),
    "densenet": lambda: (models.DenseNet(6, (2, 2), 8, 2, num_classes=CLASSES), images(32)),
    "mobilenet": _mobilenet,
    "efficientnet": _efficientnet,
    "regnet": lambda: (
        models.RegNet(BlockParams([1, 2], [16, 32], [4, 16], [1, 1], [2, 2], 0.25), CLASSES, 8),
        images(32),
    ),
    "squeezenet": lambda: (models.SqueezeNet("1_1", CLASSES), images(32)),
    "shufflenet": lambda: (models.ShuffleNetV2([4, 2, 2], [8, 32, 32, 32, 40], num_classes=CLASSES), images(32)),
    "convnext": lambda: (
        models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.1, 1, CLASSES),
        images(16),
    ),
    "vit": lambda: (models.VisionTransformer(16, 8, 2, 4, 32, 40, num_classes=CLASSES), images(16)),
    "swin": lambda: (models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [2, 2], num_classes=CLASSES), images(16)),
}

CASES = FAMILIES | ARCHITECTURES
