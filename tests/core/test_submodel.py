"""A client's model computes what the global model does with the dropped channels zeroed (evaluation mode)."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.core import Plan, prefix, width
from tests.core import twin

SLICE_FUNCTIONS = {"prefix": prefix, "rolling": twin.rolling(2), "scattered": twin.scattered(8)}


class Residual(nn.Module):
    """Two blocks on one residual stream, the second with a shortcut of its own."""

    def __init__(self, rate):
        super().__init__()
        stream, inner, wide = width(10, rate), width(6, rate), width(16, rate)
        self.stem = nn.Conv2d(3, stream, 3)
        self.conv1, self.conv2 = nn.Conv2d(stream, inner, 3, padding=1), nn.Conv2d(inner, stream, 3, padding=1)
        self.shortcut, self.conv3 = nn.Conv2d(stream, wide, 1), nn.Conv2d(stream, wide, 3, padding=1)
        self.linear = nn.Linear(wide, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.conv1(x)))
        x = self.shortcut(x) + F.relu(self.conv3(x))
        return self.linear(x.mean((2, 3)))


class Tagger(nn.Module):
    """An embedding, a recurrent network both ways, and a linear layer on both directions."""

    def __init__(self, rate):
        super().__init__()
        embedding, hidden = width(10, rate), width(7, rate)
        self.embedding = nn.Embedding(11, embedding)
        self.lstm = nn.LSTM(embedding, hidden, 2, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, 5)

    def forward(self, tokens):
        return self.linear(self.lstm(self.embedding(tokens))[0])


def _example(name):
    generator = torch.Generator().manual_seed(3)
    if name == "tagger":
        return torch.randint(11, (5, 6), generator=generator)
    return torch.randn((5, 3, 8, 8), generator=generator)


MODELS = {"residual": (Residual, {}), "tagger": (Tagger, {"linear.weight": (2, 1)})}


@pytest.mark.parametrize("slice_function", SLICE_FUNCTIONS.values(), ids=SLICE_FUNCTIONS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_clients_model_is_the_global_one_with_the_dropped_channels_zeroed(name, slice_function):
    build, heads = MODELS[name]
    full, x = build(1.0), _example(name)
    for parameter in full.parameters():
        parameter.copy_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(4)) - 0.4)
    for rate in (0.75, 0.5, 0.3, 0.07):
        local, masked = build(rate), copy.deepcopy(full)
        plan = Plan.of(full, local, heads=heads, slice_function=slice_function)
        local.load_state_dict(plan.extract(full.state_dict()))
        twin.zero_extend(plan, masked, local)
        expected = local(x)
        torch.testing.assert_close(masked(x), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(full(x), expected, rtol=1e-4, atol=1e-5)
