import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from heterofl_flwr.core.levels import LEVELS, Mix
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


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("mnist", (80_504_320, 20_493_056, 5_306_752, 1_418_432, 400_480)),
        ("cifar10", (330_246_144, 83_334_144, 21_219_840, 5_498_112, 1_471_104)),
        ("wikitext2", (1_367_965_696, 614_776_832, 290_086_912, 140_718_080, 69_277_696)),
    ],
)
def test_printed_flops_are_exactly_the_papers(paper_profiles, name, flops):
    assert tuple(one.printed_flops for one in paper_profiles[name].values()) == flops


def test_macs_are_counted_by_hand(paper_profiles):
    pixels, widths = (28**2, 14**2, 7**2, 3**2), (1, 64, 128, 256, 512)
    cnn = sum(9 * n * m * size for n, m, size in zip(widths, widths[1:], pixels, strict=False)) + 512 * 10
    assert paper_profiles["mnist"][1.0].macs == cnn
    layer = 4 * 256**2 + 2 * 256 * 512 + 2 * 64 * 256
    assert paper_profiles["wikitext2"][1.0].macs == 64 * (4 * layer + 256**2 + 256 * 33_279)


def test_a_mix_costs_the_mean_of_its_models(paper_profiles):
    cost = mean_profile(paper_profiles["mnist"], Mix.parse("a1-e3"))
    large, small = paper_profiles["mnist"][1.0], paper_profiles["mnist"][0.0625]
    assert cost.parameters == (large.parameters + 3 * small.parameters) / 4
    assert cost.macs == (large.macs + 3 * small.macs) / 4
    assert cost.ratio == cost.parameters / large.parameters


@pytest.mark.parametrize(
    ("layer", "shape", "flops"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), 2 * (9 * 2 + 1) * 6 * 2 * 9),
        (nn.Linear(4, 6), (2, 3, 4), 2 * 2 * 3 * 4 * 6),
        (nn.BatchNorm2d(4), (2, 4, 3, 3), 2 * 2 * 72),
        (nn.LayerNorm(4), (2, 4), 2 * 2 * 8),
        (nn.GroupNorm(2, 4), (2, 4, 3, 3), 0),
    ],
)
def test_printed_flops_of_a_layer_are_the_papers_formula(layer, shape, flops):
    assert profile(layer, torch.zeros(shape)).printed_flops == flops


class _Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(11, 8), nn.LSTM(8, 16, 2, **options)
        self.linear = nn.Linear(32 if self.lstm.bidirectional else 16, 11)

    def forward(self, words):
        return self.linear(self.lstm(self.embedding(words))[0][:, -1])


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
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
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
