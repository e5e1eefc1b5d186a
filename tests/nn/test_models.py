"""The paper's models, the models of its baselines, and their registry."""

import pickle

import pytest
import torch
from torch.nn import functional as F

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import LEVELS
from heterofl_flwr.nn import PAPER, PreResNet, build_model

# method.md, section 1: parameters at levels a to e
COUNTS = {
    ("cnn", ()): (1_556_874, 391_370, 98_922, 25_274, 6_594),
    ("mlp", ()): (633_226, 259_274, 115_306, 54_074, 26_146),
    ("lenet", ()): (64_102, 16_456, 4_421, 1_241, 453),
    ("preresnet18", ()): (9_622_090, 2_408_746, 603_802, 151_762, 38_350),
    ("preresnet18-later", ()): (11_172_170, 2_796_714, 701_018, 176_178, 44_510),
    ("transformer", (("vocabulary", 33_279),)): (19_263_999, 9_107_967, 4_435_455, 2_200_575, 1_108_479),
}


@pytest.mark.parametrize(("name", "options"), COUNTS)
def test_parameters_are_exactly_the_papers(name, options):
    build = build_model(name, **dict(options))
    with torch.device("meta"):
        models = [build(rate) for rate in LEVELS.values()]
    found = tuple(sum(parameter.numel() for parameter in model.parameters()) for model in models)
    assert found == COUNTS[name, options]


def test_options_reach_the_model():
    build = build_model("cnn", classes=3, norm="gn", global_rate=0.5)
    model = pickle.loads(pickle.dumps(build))(0.25)  # as it travels to other processes
    assert model.linear.out_features == 3
    assert model.features.scaler1.rate == 0.5
    assert PAPER["mnist"].build(classes=4)(0.25).linear.out_features == 4


@pytest.mark.parametrize(
    ("name", "options"), [("resnet", {}), ("cnn", {"widths": (1, 2)}), ("transformer", {}), ("cnn", {"rate": 0.5})]
)
def test_unknown_models_and_options_raise(name, options):
    with pytest.raises(
        ConfigError, match=r"is no model; expected one of cnn, mlp|'widths'; its options|'vocabulary'|rate"
    ):
        build_model(name, **options)


HIDDEN = (8, 8, 16, 16)


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
