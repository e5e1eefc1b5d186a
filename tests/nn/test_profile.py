import copy
import random
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

from heterofl_flwr.core.levels import LEVELS
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.nn.models import PAPER
from heterofl_flwr.nn.profile import build_and_profile, mean_profile, profile


@pytest.fixture(scope="module")
def paper_profiles():
    profiles = {}
    for name, setup in PAPER.items():
        for rate in LEVELS.values():
            with torch.device("meta"):
                model = setup.build()(rate)
            profiles.setdefault(name, {})[rate] = profile(model, setup.example())
    return profiles


def test_macs_are_counted_by_hand(paper_profiles):
    pixels, widths = (28**2, 14**2, 7**2, 3**2), (1, 64, 128, 256, 512)
    cnn = sum(9 * n * m * size for n, m, size in zip(widths, widths[1:], pixels, strict=False)) + 512 * 10
    assert paper_profiles["mnist"][1.0].macs == cnn
    blocks = [(64, 64, 1024), (64, 128, 256), (128, 256, 64), (256, 512, 16), (512, 512, 16)]
    convolutions = sum((9 * n * m + 9 * m * m + n * m * (n != m)) * pixels for n, m, pixels in blocks)
    assert paper_profiles["cifar10"][1.0].macs == 9 * 3 * 64 * 1024 + convolutions + 512 * 10
    layer = 4 * 256**2 + 2 * 256 * 512 + 2 * 64 * 256
    assert paper_profiles["wikitext2"][1.0].macs == 64 * (4 * layer + 256**2 + 256 * 33_279)


def test_a_mix_costs_the_mean_of_its_models(paper_profiles):
    cost = mean_profile(paper_profiles["mnist"], Mix.parse("a1-e3"))
    large, small = paper_profiles["mnist"][1.0], paper_profiles["mnist"][0.0625]
    assert cost.parameters == (large.parameters + 3 * small.parameters) / 4
    assert cost.macs == (large.macs + 3 * small.macs) / 4
    assert cost.ratio == cost.parameters / large.parameters


class _Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(11, 8), nn.LSTM(8, 16, 2, **options)
        self.linear = nn.Linear(32 if self.lstm.bidirectional else 16, 11)

    def forward(self, words):
        return self.linear(self.lstm(self.embedding(words))[0][:, -1])


class _Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x):
        (x,) = x
        return self.weight.mv(x).addmv(self.weight, x) + self.weight[0].dot(x) * self.weight[0].vdot(x)


class _Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 8, 16, dtype=torch.bfloat16))

    def forward(self, x):
        ends = torch.tensor([2, 5], dtype=torch.int32, device=x.device)
        return nn.functional.grouped_mm(x, self.weight, offs=ends)


WORDS = torch.zeros(2, 9, dtype=torch.int64)
LSTM = 9 * (4 * 16 * (8 + 16) + 4 * 16 * (16 + 16))
BOTH_WAYS = 9 * 2 * (4 * 16 * (8 + 16) + 4 * 16 * (32 + 16))
ENCODER = 5 * (4 * 8 * 8 + 2 * 8 * 16 + 2 * 5 * 8)
PRODUCTS = [
    (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(1, 5, 8), ENCODER),
    (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False), torch.zeros(1, 5, 8), ENCODER),
    (_Words(batch_first=True), WORDS, 2 * (LSTM + 16 * 11)),
    (_Words(), WORDS, 2 * (LSTM + 16 * 11)),
    (_Words(bidirectional=True), WORDS[:1], BOTH_WAYS + 32 * 11),
    (nn.Bilinear(3, 4, 5), (torch.zeros(2, 3), torch.zeros(2, 4)), 2 * 3 * 4 * 5),
    (_Vector(), UserDict(x=torch.zeros(1, 3)), 2 * 4 * 3 + 2 * 3),
    (_Experts(), torch.zeros(5, 8, dtype=torch.bfloat16), 5 * 8 * 16),
]


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("model", "inputs", "macs"), PRODUCTS)
def test_macs_are_counted_on_every_device(model, inputs, macs, device):
    assert profile(copy.deepcopy(model).to(device), inputs).macs == macs
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_build_that_draws_leaves_no_trace():
    def build(rate):
        return nn.Linear(3, 1 + round(random.random() + np.random.rand()))  # noqa: NPY002 - as a user's build may

    def states():
        return repr((torch.get_rng_state(), random.getstate(), np.random.get_state()))  # noqa: NPY002

    before = states()
    build_and_profile(build, 1.0, torch.zeros(1, 3))
    assert states() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tracks", [True, False])
def test_a_norm_on_an_image_of_one_pixel_is_profiled_with_and_without_statistics(tracks, dtype):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, track_running_stats=tracks), nn.ReLU()).to(dtype)
    found = profile(model, torch.zeros(1, 3, 1, 1, dtype=dtype))
    assert (found.parameters, found.macs) == (3 * 8 + 8 + 8 + 8, 3 * 8)
    assert (model[1].running_mean is not None) is tracks
