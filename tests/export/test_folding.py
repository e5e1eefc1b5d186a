"""Folding is exact where it is done, and not done where it would not be."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.export.program import fold_batch_norms, fold_constants, out_of_place
from tests.elastic_models.families import Then
from tests.export.models import cnn, images, measured


def folded(model, inputs):
    """Return a model's folded module and what was folded."""
    program = torch.export.export(model.eval(), (inputs,))
    before = {name: value.clone() for name, value in program.state_dict.items()}
    module, folding = fold_batch_norms(program)
    assert all(value.equal(before[name]) for name, value in program.state_dict.items())
    return module, folding


def norms_in(module) -> int:
    return sum("batch_norm" in str(node.target) for node in module.graph.nodes)


def test_constants_by_hand():
    weight, bias = torch.tensor([[[[2.0]]], [[[3.0]]]]), torch.tensor([1.0, 5.0])  # two outputs of one pixel
    affine = torch.tensor([10.0, 1.0]), torch.tensor([0.5, 0.0])
    statistics = torch.tensor([3.0, 1.0]), torch.tensor([3.0, 15.0])
    new_weight, new_bias = fold_constants(weight, bias, affine, statistics, epsilon=1.0)
    assert new_weight.flatten().tolist() == [2 * 10 / 2, 3 / 4]
    assert new_bias.tolist() == [(1 - 3) * 10 / 2 + 0.5, (5 - 1) / 4]
    new_weight, new_bias = fold_constants(weight, None, (None, None), statistics, epsilon=1.0)
    assert (new_weight.flatten().tolist(), new_bias.tolist()) == ([1.0, 0.75], [-1.5, -0.25])


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (3, 6, 6)),
        (nn.Conv2d(3, 4, 3, bias=False, padding="same", groups=1), nn.BatchNorm2d(4, affine=False), (3, 6, 6)),
        (nn.Conv2d(4, 8, 3, groups=4, stride=2, bias=False), nn.BatchNorm2d(8, eps=0.1), (4, 6, 6)),
        (nn.Conv1d(3, 4, 2, dilation=2), nn.BatchNorm1d(4), (3, 7)),
        (nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), (2, 3, 3, 3)),
        (nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), (3,)),
    ],
)
def test_a_norm_behind_a_layer_becomes_part_of_it(layer, norm, shape):
    """The whole in float64 differs from the model's by rounding alone."""
    model = nn.Sequential(layer, norm).double()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    inputs = torch.randn(5, *shape, dtype=torch.float64)
    module, folding = folded(model, inputs)
    assert (folding.folded, folding.kept) == ({"1": "0"}, ())
    assert norms_in(module) == 0
    assert set(module.state_dict()) == {"0.weight", "0.bias"}
    torch.testing.assert_close(module(inputs), model(inputs), atol=1e-13, rtol=1e-13)


def test_a_scaler_between_is_no_obstacle():
    model, inputs = cnn(0.25), images(1)
    assert list(model.features._modules)[:3] == ["conv1", "scaler1", "norm1"]
    module, folding = folded(model, inputs)
    assert folding.folded == {"features.norm1": "features.conv1", "features.norm2": "features.conv2"}
    torch.testing.assert_close(module(inputs), model(inputs), atol=1e-5, rtol=0)


CONV = {"conv": nn.Conv2d(3, 3, 1), "norm": nn.BatchNorm2d(3)}
KEPT = {
    "added": (lambda self, x: self.norm(y := self.conv(x)) + y, CONV),
    "used twice": (lambda self, x: self.norm(self.conv(x)) + self.conv(x + 1), CONV),
    "after an activation": (lambda self, x: self.norm(torch.relu(self.conv(x))), CONV),
    "computed": (lambda self, x: self.norm(F.conv2d(x, self.conv.weight * 2)), CONV),
    "along a sequence": (
        lambda self, x: self.norm(self.linear(x.flatten(2))),
        {"linear": nn.Linear(36, 5), "norm": nn.BatchNorm1d(3)},
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_other_norms_stay(case):
    forward, layers = KEPT[case]
    inputs = images(3, 6)
    model = measured(Then(forward, **layers), inputs)
    module, folding = folded(model, inputs)
    assert (folding.folded, folding.kept) == ({}, ("norm",))
    assert norms_in(module) == 1
    torch.testing.assert_close(module(inputs), model(inputs))


def test_a_layer_used_twice_with_a_norm_each_is_not_folded():
    def forward(self, x):
        return self.one(self.conv(x)) + self.two(self.conv(x))

    model = measured(Then(forward, conv=nn.Conv2d(3, 3, 1), one=nn.BatchNorm2d(3), two=nn.BatchNorm2d(3)), images(3))
    assert folded(model, images(3))[1].kept == ("one", "two")


def test_a_norm_by_batch_is_left_as_it_is():
    """A model of somebody's may normalise by batch on purpose, without a layer that keeps statistics."""
    model = Then(lambda self, x: F.batch_norm(self.conv(x), None, None, training=True), conv=nn.Conv2d(3, 3, 1))
    module, folding = folded(model, images(3))
    assert (folding.folded, len(folding.kept)) == ({}, 1)
    torch.testing.assert_close(module(images(3)), model(images(3)))


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.SiLU, nn.LeakyReLU, nn.ELU)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_activation_in_place_becomes_one_that_is_not(kind):
    model = nn.Sequential(nn.Linear(3, 4), kind(inplace=True))
    inputs = 4 * torch.randn(5, 3)
    module, _ = folded(model, inputs)
    assert out_of_place(module) == 1
    assert not any(str(node.target).endswith("_.default") for node in module.graph.nodes)
    assert module(inputs).equal(model(inputs))


@pytest.mark.parametrize(
    ("forward", "changed"),
    [
        (lambda self, x: F.relu_((y := self.conv(x)).flatten(1)).sum() + y, 0),
        (lambda self, x: F.relu_(x + 0), 0),
        (lambda self, x: F.relu_(y := self.conv(x)) + y, 1),  # torch's trace lets it read the activation's output
    ],
)
def test_an_activation_that_something_else_may_notice_stays(forward, changed):
    model, inputs = Then(forward, conv=nn.Conv2d(3, 3, 1)), images(3)
    module, _ = folded(model, inputs)
    assert out_of_place(module) == changed
    torch.testing.assert_close(module(inputs), model(inputs))
