import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from heterofl_flwr.client.load_model import load_parameters
from heterofl_flwr.nn.buffers import copy_unsent, count_batches, find_changed, find_channel_tables, find_frozen_norms

FORMS = pytest.mark.parametrize("form", [spectral_norm, parametrizations.spectral_norm], ids=["older", "newer"])


def build(form):
    """Return a model whose vectors are drawn anew each time."""
    return nn.Sequential(form(nn.Conv2d(3, 6, 3)), nn.Flatten(), form(nn.Linear(6, 4)), form(nn.Linear(4, 2), dim=1))


def norms(model, x):
    """Return the largest singular value of each layer's weight as the layer uses it."""
    model(x)
    return [torch.linalg.matrix_norm(model[place].weight.detach().flatten(1), 2) for place in (0, 2, 3)]


@FORMS
def test_layers_are_normed_after_other_parameters_were_loaded(form):
    torch.manual_seed(0)
    model, x = build(form), torch.ones(2, 3, 3, 3)
    state = {name: 5 * torch.randn_like(own) for name, own in model.named_parameters()}
    load_parameters(model.eval(), state)
    torch.testing.assert_close(norms(model, x), [torch.tensor(1.0)] * 3, atol=0.05, rtol=0)


@FORMS
def test_what_was_loaded_alone_decides(form):
    torch.manual_seed(0)
    one, other, x = build(form), build(form).train(), torch.ones(2, 3, 3, 3)
    other(x)
    state = {name: own.detach().clone() for name, own in one.named_parameters()}
    generator = torch.get_rng_state()
    for model in (one, other):
        load_parameters(model, state)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(layer.training for model in (one, other) for layer in model.modules())
    assert torch.equal(one.eval()(x), other.eval()(x))


def test_tables_by_channel_are_told_from_other_buffers():
    def build(hidden):
        model = nn.Sequential(
            *(parametrizations.spectral_norm(nn.Linear(3, hidden)), nn.BatchNorm1d(hidden)),
            *(spectral_norm(nn.Linear(hidden, hidden)), nn.InstanceNorm1d(hidden, track_running_stats=True)),
            nn.Linear(hidden, 3),
        )
        for norm in (model[1], model[3]):
            norm.running_mean.normal_()
        model.register_buffer("gain", torch.full((hidden,), 2.0))
        model.register_buffer("mask", torch.ones(6, 6).tril())
        model[4].register_buffer("waves", torch.arange(6.0).outer(torch.arange(hidden)))
        return model

    assert find_channel_tables(build(8), build(2)) == ["4.waves"]
    assert find_channel_tables(build(8), build(8)) == []
    assert find_channel_tables(build(8), nn.Sequential(nn.Linear(3, 2))) == []


@FORMS
def test_unsent_tensors_are_buffers_and_frozen_parameters_without_statistics(form):
    model = nn.Sequential(form(nn.Linear(3, 4)), nn.BatchNorm1d(4), nn.Linear(4, 600))
    model[2].weight.requires_grad_(False)
    model.register_buffer("steps", torch.zeros((), dtype=torch.long))
    model.register_buffer("gap", torch.tensor([1.0, torch.nan]))  # equals itself
    model.register_buffer("cache", torch.zeros(2), persistent=False)
    before = copy_unsent(model)
    assert before.keys() == {"2.weight", "steps", "gap"}
    assert 256 <= len(before["2.weight"]) < 600
    model.train()(torch.randn(5, 3))
    model.cache += 1
    assert find_changed(model.half(), before) == []
    model.steps += 1
    assert find_changed(model, before) == ["steps"]
    nn.init.zeros_(model[2].weight)
    assert sorted(find_changed(model, before)) == ["2.weight", "steps"]
    del model.steps
    assert find_changed(model, before) == ["2.weight"]


def test_frozen_norms_are_those_in_evaluation_mode_that_got_no_batch():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    before = count_batches(model)
    assert before == {"0": 0, "1": 0}
    assert find_frozen_norms(model, before) == []
    model[1].eval()
    model(torch.randn(3, 2))
    assert find_frozen_norms(model.eval(), before) == ["1"]
