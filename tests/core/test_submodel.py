"""A client's model computes what the global model does with the dropped channels zeroed (evaluation mode)."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.core import Plan, prefix, width
from tests.core import extension, twin

SLICE_FUNCTIONS = {"prefix": prefix, "rolling": twin.rolling(2), "scattered": twin.scattered(8)}
RATES = (1.0, 0.75, 0.5, 0.3, 0.07)


def _cnn(rate):
    one, two = width(8, rate), width(14, rate)
    return nn.Sequential(
        nn.Conv2d(3, one, 3, padding=1),
        nn.BatchNorm2d(one),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(one, two, 3, bias=False),
        nn.InstanceNorm2d(two, affine=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(two, 5),
    )


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


IMAGES, WORDS = (5, 3, 8, 8), (5, 6)
MODELS = {
    "cnn": (_cnn, IMAGES, {}),
    "residual": (Residual, IMAGES, {}),
    "tagger": (Tagger, WORDS, {"linear.weight": (2, 1)}),
}


def _example(shape):
    generator = torch.Generator().manual_seed(3)
    if shape == WORDS:
        return torch.randint(11, shape, generator=generator)
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def _with_statistics(model):
    """Give batch norm layers statistics that matter, and every parameter a random value."""
    generator = torch.Generator().manual_seed(4)
    for tensor in (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1 - 0.5 * isinstance(tensor, nn.Parameter))
    return model.eval()


def _load(plan, full, local):
    """Load the client's slice, and the statistics of the channels that it keeps."""
    local.load_state_dict(plan.extract(full.state_dict()), strict=False)
    places = extension.origins(plan, full)
    for name, buffer in local.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(full.get_buffer(name)[places[f"{name.rpartition('.')[0]}.weight"]])


@pytest.mark.parametrize("slice_function", SLICE_FUNCTIONS.values(), ids=SLICE_FUNCTIONS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", MODELS)
def test_a_clients_model_is_the_global_one_with_the_dropped_channels_zeroed(name, rate, slice_function):
    build, shape, heads = MODELS[name]
    full, local = _with_statistics(build(1.0)), build(rate).eval()
    plan = Plan.of(full, local, heads=heads, slice_function=slice_function)
    _load(plan, full, local)
    masked = copy.deepcopy(full)
    extension.zero_extend(plan, masked, local)
    x = _example(shape)
    expected = local(x)
    torch.testing.assert_close(masked(x), expected, rtol=1e-4, atol=1e-5)
    assert rate == 1 or not torch.allclose(full(x), expected, rtol=1e-4, atol=1e-5)
