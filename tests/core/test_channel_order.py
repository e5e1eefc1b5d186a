"""Order of channels by importance: norms and the sort written out, the model's function, and what is refused."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import Plan
from heterofl_flwr.core.axes import build_channel_axis
from heterofl_flwr.core.channel_order import ChannelOrder
from heterofl_flwr.core.levels import width
from heterofl_flwr.elastic_models import elastic
from heterofl_flwr.nn import build_model
from heterofl_flwr.nn.transformer import TransformerShape

RATES = (1.0, 0.5, 0.25)


class Net(nn.Module):
    """Two hidden layers of unequal width."""

    def __init__(self, rate=1.0):
        super().__init__()
        first, second = width(8, rate), width(12, rate)
        self.one, self.two, self.out = nn.Linear(3, first), nn.Linear(first, second), nn.Linear(second, 5)

    def forward(self, x):
        return self.out(self.two(self.one(x).relu()).relu())


class Residual(nn.Module):
    """A residual stream beside inner channels of the same number, and a group norm on it."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 1), nn.GroupNorm(4, 8)
        self.inner, self.back, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8 * 4, 3)

    def forward(self, x):
        x = self.norm(self.stem(x))
        return self.out((x + self.back(self.inner(x).relu())).flatten(1))


def plans_of(build, rates=RATES):
    full = build(rates[0])
    return [Plan.of(full, build(rate)) for rate in rates]


def slow_norm(entries):
    return math.sqrt(math.fsum(value * value for value in entries))


def moved(order, model, found):
    changed = copy.deepcopy(model)
    changed.load_state_dict({name: order.apply(found, name, tensor) for name, tensor in model.state_dict().items()})
    return changed.eval()


def test_importance_and_order_against_loops():
    torch.manual_seed(0)
    model = Net()
    state = model.state_dict()
    order = ChannelOrder(model, plans_of(Net), margin=0.25)
    one, bias, two = (state[name].tolist() for name in ("one.weight", "one.bias", "two.weight"))
    norms = [slow_norm([*one[c], bias[c], *(row[c] for row in two)]) for c in range(8)]
    two_bias, out = state["two.bias"].tolist(), state["out.weight"].tolist()
    more = [slow_norm([*two[c], two_bias[c], *(row[c] for row in out)]) for c in range(12)]
    for computed, expected in zip(order.importance(state), (norms, more), strict=True):
        assert computed.tolist() == pytest.approx(expected)
    expected = []
    for start, values, widths in ((0, norms, (8, 4, 2)), (8, more, (12, 6, 3))):
        scores = [value * 1.25 ** sum(channel < number for number in widths) for channel, value in enumerate(values)]
        expected += [start + channel for channel in sorted(range(len(scores)), key=lambda place: -scores[place])]
    found = order.find(state)
    assert found.tolist() == expected
    x = torch.randn(4, 3)
    torch.testing.assert_close(moved(order, model, found)(x), model(x))


def test_equal_widths_have_nothing_to_order():
    model = Net()
    order = ChannelOrder(model, plans_of(Net, (1.0,)))
    assert order.importance(model.state_dict()) == []
    assert order.find(model.state_dict()) is None


@pytest.mark.parametrize("wrap", [nn.Module.train, weight_norm], ids=["plain", "weight norm"])
def test_a_transposed_convolution_has_its_inputs_first(wrap):
    def build(rate):
        few, many = width(8, rate), width(12, rate)
        middle = wrap(nn.ConvTranspose2d(few, many, 2))
        return nn.Sequential(nn.Conv2d(1, few, 1), nn.ReLU(), middle, nn.Conv2d(many, 3, 1))

    model, images = build(1.0).eval(), torch.randn(2, 1, 4, 4)
    order = ChannelOrder(model, plans_of(build))
    torch.testing.assert_close(moved(order, model, order.find(model.state_dict()))(images), model(images))


def test_heads_of_a_transformer_keep_their_channels():
    build = build_model(
        "transformer", vocabulary=11, shape=TransformerShape(embedding=16, hidden=24, heads=2, layers=1)
    )
    torch.manual_seed(1)
    model = build(1.0).eval()
    order = ChannelOrder(model, plans_of(build, (1.0, 0.5)))
    found = order.find(model.state_dict())
    words = torch.randint(11, (2, 6))
    torch.testing.assert_close(moved(order, model, found)(words), model(words))
    weight = model.state_dict()["decoder.linear1.weight"]
    assert not torch.equal(order.apply(found, "decoder.linear1.weight", weight), weight)


def test_a_traced_model_has_a_group_for_each_set_of_tied_axes():
    torch.manual_seed(0)
    build = elastic(Residual(), torch.randn(2, 1, 2, 2))
    model = build(1.0)
    order = ChannelOrder(model, plans_of(build, (1.0, 0.5)))
    state = model.state_dict()
    inner = [slow_norm([*state["inner.weight"][c].flatten().tolist(), state["inner.bias"][c].item(),
                        *state["back.weight"][:, c].flatten().tolist()]) for c in range(8)]  # fmt: skip
    assert any(norms.tolist() == pytest.approx(inner) for norms in order.importance(state))
    images = torch.randn(3, 1, 2, 2)
    found = order.find(state)
    torch.testing.assert_close(moved(order, model, found)(images), model(images))
    assert len(order.importance(state)) > 1


class Flat(nn.Module):
    def __init__(self, rate):
        super().__init__()
        channels = width(8, rate)
        self.conv, self.out = nn.Conv2d(1, channels, 1), nn.Linear(4 * channels, 3)


class Normed(nn.Module):
    def __init__(self, rate, affine=True):
        super().__init__()
        channels = width(8, rate)
        norm = nn.GroupNorm(4, channels, affine=affine)
        self.conv, self.norm, self.out = nn.Conv2d(1, channels, 1), norm, nn.Linear(channels, 3)


class Shallow(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.one = nn.Linear(3, 3)
        if rate == 1:
            self.two = nn.Linear(3, 3)
        self.out = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (Flat, "conv.weight, out.weight"),
        (Normed, "norm.weight"),
        (partial(Normed, affine=False), "norm.weight"),
        (Shallow, r"has no two.bias, two.weight"),
    ],
)
def test_models_whose_channels_cannot_move_alone_are_refused(build, text):
    with pytest.raises(ConfigError, match=text):
        ChannelOrder(build(1.0), plans_of(build, (1.0, 0.5)))


def test_channels_that_occur_unequally_often_are_refused():
    rows = build_channel_axis([(0, 0), (0, 1), (0, 0)], [(2, 1)])
    columns = build_channel_axis([(0, 0), (0, 1), (-1, 0)], [(2, 1)])
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    whole = Plan.of(nn.Linear(4, 2), nn.Linear(4, 2)).axes["weight"]
    plan = Plan({"0.weight": (rows, whole[1]), "1.weight": (whole[0], columns)})
    with pytest.raises(ConfigError, match=r"0\.weight"):
        ChannelOrder(model, [plan, plan])
