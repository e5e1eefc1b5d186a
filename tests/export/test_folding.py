"""Folding is exact where it is done, and not done where it would not be."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.export.program import fold_batch_norms, out_of_place
from tests.elastic_models.families import Then
from tests.export.models import images, measured


def fold(model, inputs):
    """Return a model's folded module, which norm is part of which layer, and the norms that remain."""
    program = torch.export.export(model.eval(), (inputs,))
    before = {name: value.clone() for name, value in program.state_dict.items()}
    module, folding = fold_batch_norms(program)
    assert all(value.equal(before[name]) for name, value in program.state_dict.items())
    return module, folding["folded"], folding["kept"]


def norms_in(module) -> int:
    return sum("batch_norm" in str(node.target) for node in module.graph.nodes)


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
    module, folded, kept = fold(model, inputs)
    assert (folded, kept) == ({"1": "0"}, ())
    assert norms_in(module) == 0
    assert set(module.state_dict()) == {"0.weight", "0.bias"}
    torch.testing.assert_close(module(inputs), model(inputs), atol=1e-13, rtol=1e-13)


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
    module, folded, kept = fold(model, inputs)
    assert (folded, kept) == ({}, ("norm",))
    assert norms_in(module) == 1
    torch.testing.assert_close(module(inputs), model(inputs))


def test_a_layer_used_twice_with_a_norm_each_is_not_folded():
    def forward(self, x):
        return self.one(self.conv(x)) + self.two(self.conv(x))

    model = measured(Then(forward, conv=nn.Conv2d(3, 3, 1), one=nn.BatchNorm2d(3), two=nn.BatchNorm2d(3)), images(3))
    assert fold(model, images(3))[2] == ("one", "two")


def test_a_norm_by_batch_is_left_as_it_is():
    """A model of somebody's may normalise by batch on purpose, without a layer that keeps statistics."""
    model = Then(lambda self, x: F.batch_norm(self.conv(x), None, None, training=True), conv=nn.Conv2d(3, 3, 1))
    module, folded, kept = fold(model, images(3))
    assert (folded, len(kept)) == ({}, 1)
    torch.testing.assert_close(module(images(3)), model(images(3)))


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.SiLU, nn.LeakyReLU, nn.ELU)


def test_activations_in_place_become_others_that_are_not():
    model = nn.Sequential(*(layer for kind in ACTIVATIONS for layer in (nn.Linear(4, 4), kind(inplace=True))))
    inputs = 4 * torch.randn(5, 4)
    module, *_ = fold(model, inputs)
    assert out_of_place(module) == len(ACTIVATIONS)
    assert not any(str(node.target).endswith("_.default") for node in module.graph.nodes)
    assert module(inputs).equal(model(inputs))


@pytest.mark.parametrize(
    ("forward", "changed"),
    [
        (lambda self, x: F.relu_((y := self.conv(x)).flatten(1)).sum() + y, 0),
        (lambda self, x: ((y := self.conv(x)), (view := y.flatten(1)), F.relu_(y).flatten(1) + view)[2], 0),
        (lambda self, x: F.relu_(x + 0), 0),
        (lambda self, x: F.relu_(y := self.conv(x)) + y, 1),  # torch's trace lets it read the activation's output
    ],
)
def test_an_activation_that_something_else_may_notice_stays(forward, changed):
    model, inputs = Then(forward, conv=nn.Conv2d(3, 3, 1)), images(3)
    module, *_ = fold(model, inputs)
    assert out_of_place(module) == changed
    torch.testing.assert_close(module(inputs), model(inputs))
