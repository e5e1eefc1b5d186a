"""Parameters that the example does not reach stay whole, and a warning names them."""

import warnings

import pytest
import torch
from torch import nn

from heterofl_flwr.elastic_models import elastic
from tests.elastic_models.families import Then

X = torch.randn(2, 12)
RATES = (1.0, 0.5, 0.3, 0.125, 0.0625)


class Autoencoder(nn.Module):
    """As Lightning's examples write it: ``forward`` embeds, a training step of the user's calls the decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12))

    def forward(self, x):
        return self.encoder(x)


def test_a_decoder_that_forward_does_not_call_stays_whole_and_is_named():
    model = Autoencoder()
    with pytest.warns(UserWarning, match=r"no use of decoder on the example inputs.*fixed=\[") as caught:
        build = elastic(model, X)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for rate in RATES:
        small = build(rate)
        loss = (small.decoder(small.encoder(X)) - X).square().mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in small.parameters())
        assert all(map(torch.equal, model.decoder.parameters(), small.decoder.parameters()))
    assert build.plan(0.5).shapes["encoder.0.weight"] == (8, 12)
    assert build(0.5).decoder[1].running_mean.shape == (16,)


def test_what_is_fixed_needs_no_warning():
    shapes = elastic(Autoencoder(), X, fixed=["decoder"]).plan(0.5).shapes
    assert shapes["decoder.0.weight"] == (16, 3)


def test_a_model_around_it_that_uses_the_decoder_has_it_cut():
    def forward(self, x):
        return self.model.decoder(self.model.encoder(x))

    shapes = elastic(Then(forward, model=Autoencoder()), X, fixed=["model.encoder.2"]).plan(0.5).shapes
    assert shapes["model.decoder.0.weight"] == (8, 3)
    assert shapes["model.decoder.3.weight"] == (12, 8)


def test_single_parameters_and_several_layers_are_named_in_one_warning():
    model = Then(lambda self, x: self.last(torch.relu(self.first(x))), first=nn.Linear(12, 8), last=nn.Linear(8, 3))
    model.first.spare = nn.Parameter(torch.zeros(8, 8))
    model.one, model.two = Then(lambda self, x: x, inner=nn.Linear(8, 8)), nn.LayerNorm(8)
    with pytest.warns(UserWarning, match="no use of first.spare, one, two on the example"):
        shapes = elastic(model, X).plan(0.5).shapes
    assert shapes["first.spare"] == (8, 8)
    assert shapes["first.weight"] == (4, 12)
    assert shapes["two.weight"] == (8,)


def test_what_is_used_in_one_mode_only_is_used():
    def forward(self, x):
        x = self.first(x)
        return (self.last(x), self.extra(x)) if self.training else self.last(x)

    model = Then(forward, first=nn.Linear(12, 8), last=nn.Linear(8, 3), extra=nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert elastic(model, X).plan(0.5).shapes["extra.weight"] == (3, 4)
