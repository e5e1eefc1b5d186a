"""What code does by a comparison of widths, it does at every rate; where that cannot be, a rate is refused."""

import pytest
import torch
from torch import nn

from heterofl_flwr.common.errors import UnsupportedLayerError
from heterofl_flwr.elastic_models import elastic
from simulations.model_zoo.check import check
from simulations.model_zoo.models import draw_weights
from tests.elastic_models.families import around, classifier, conv, images

RATES = (0.9, 0.5, 0.3, 0.25, 0.125, 0.0625, 0.01)
X = torch.randn(2, 3)


class Block(nn.Module):
    """A residual block that compares what comes in with what it puts out."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.o = outputs
        self.conv, self.skip = conv(inputs, outputs), conv(inputs, outputs, 1)

    def forward(self, x):
        y = self.conv(x)
        if x.shape[1] != self.o:
            x = self.skip(x)
        return torch.relu(x + y)


@pytest.mark.parametrize("widths", [(64, 32), (32, 64), (48, 32), (10, 12)])
def test_a_shortcut_between_two_widths_is_there_at_every_rate(widths):
    model = classifier(conv(3, widths[0]), Block(*widths), channels=widths[1]).double().eval()
    draw_weights(model, 0)
    found = check(model, images().double(), (1.0, *RATES))
    assert found.parameters[0.9] < found.parameters[1.0]


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        (lambda self, x: x.shape[1] == 32, 32),
        (lambda self, x: x.shape[1] <= 20.0, 32),
        (lambda self, x: x.shape == (2, 32), 32),
        (lambda self, x: x.shape[1] in (16, 32), 32),
        (lambda self, x: 40 - x.shape[1], 32),
        (lambda self, x: (x.shape[1] + 1) * 2 > 40, 32),
        (lambda self, x: x.shape[1] // 8, 32),  # 0 at small rates
        (lambda self, x: x.shape[1] > 0, 16),
        (lambda self, x: x.shape[1] == self.other(x).shape[1], 16),
        (lambda self, x: 2 * x.shape[1] == self.other(x).shape[1] * 2, 16),
        (lambda self, x: 2 * x.shape[1] > self.other(x).shape[1], 16),
        (lambda self, x: x.shape[1] + 1 > self.other(x).shape[1], 32),
    ],
)
@pytest.mark.filterwarnings("ignore:at rate 0.5 a slice keeps")
def test_a_condition_has_one_outcome_at_every_rate(condition, kept):
    def forward(self, x):
        return self.other(x) if condition(self, x) else self.other(self.other(x))

    build = elastic(around(forward, 32, other=nn.Linear(32, 32)), X)
    for rate in (0.9, 0.3, 0.01):
        build(rate)
    assert build.plan(0.5).shapes["0.weight"][0] == kept


def _moody(self, x):
    """Choose by a comparison that is not followed: a product with a fraction does not remember the width."""
    return self.one(self.two(x)) if x.shape[1] * 0.5 > 8 else self.two(self.one(x))


def _moody_model():
    return around(_moody, 64, one=nn.Linear(64, 64), two=nn.Linear(64, 64))


def test_a_rate_at_which_the_model_does_otherwise_is_refused():
    build = elastic(_moody_model(), X)
    build(0.5)
    for _ in range(2):
        with pytest.raises(UnsupportedLayerError) as caught:
            build(0.25)
        message = str(caught.value)
        assert "at rate 0.25 layer 1.one of type Linear does something else than in the full model" in message
        assert "t of 1.one.weight gives [[16, 16]], where t of 1.two.weight must give [[16, 16]]" in message
        assert "(fixed=...)" in message
        assert caught.value.__cause__ is None
