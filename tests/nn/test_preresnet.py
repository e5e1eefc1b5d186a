import pytest
import torch
from torch.nn import functional as F

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.layers import NORMS
from heterofl_flwr.nn.preresnet import BottleneckPreResNet, PreResNet

HIDDEN = (8, 8, 16, 16)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [PreResNet, BottleneckPreResNet])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_logits_have_one_column_per_class(kind, norm, rate):
    assert kind(3, 7, hidden=HIDDEN, norm=norm, rate=rate)(torch.randn(2, 3, 16, 16)).shape == (2, 7)


def test_parameters_stand_in_the_papers_order():
    names = [name for name, _ in PreResNet(hidden=HIDDEN).named_parameters() if name.startswith("stages.1")]
    block = ["norm1.weight", "norm1.bias", "conv1.weight", "norm2.weight", "norm2.bias", "conv2.weight"]
    assert names == [f"stages.1.0.{name}" for name in [*block, "shortcut.weight"]]


def test_blocks_are_the_published_ones_by_default():
    assert [len(stage) for stage in PreResNet(hidden=HIDDEN).stages] == [1, 1, 1, 2]


def test_stages_after_the_first_halve_the_image():
    model = PreResNet(hidden=HIDDEN).eval()
    x = model.stem(torch.randn(1, 3, 32, 32))
    sizes = []
    for stage in model.stages:
        x = stage(x)
        sizes.append(x.shape[-1])
    assert sizes == [32, 16, 8, 4]


def test_a_block_adds_its_raw_input_where_the_shape_stays():
    block = PreResNet(hidden=HIDDEN).stages[0][0]
    assert block.shortcut is None
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_a_shortcut_convolution_sees_the_first_activation():
    block = PreResNet(hidden=HIDDEN, norm="none", rate=0.5).stages[1][0].train()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(block(x), block.shortcut(F.relu(x / 0.5)))


def test_a_bottleneck_of_stride_one_that_widens_has_a_shortcut():
    first, second = BottleneckPreResNet(hidden=HIDDEN, blocks=(2, 1, 1, 1)).stages[0]
    assert first.shortcut.weight.shape == (32, 8, 1, 1)
    assert second.shortcut is None


def test_convolutions_have_no_bias_and_the_classifier_starts_without():
    model = PreResNet(hidden=HIDDEN)
    assert not [name for name, _ in model.named_parameters() if "conv" in name and "bias" in name]
    assert (model.linear.bias == 0).all()


def test_stages_and_blocks_must_match():
    with pytest.raises(ConfigError, match="2 widths do not fit 4 numbers of blocks"):
        PreResNet(hidden=(8, 8))
