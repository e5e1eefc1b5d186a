"""Every way in which axes belong together, against the full model with zeros in it."""

import pytest
import torch
from torch import nn

from heterofl_flwr import Plan, elastic
from simulations.model_zoo.check import check
from simulations.model_zoo.models import draw_weights
from tests.elastic_models.families import CASES

LONG = ("swin", "recurrent", "mobilenet", "vit", "masked_encoder", "torchs_encoder")


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.release] * (name in LONG)) for name in CASES], scope="module"
)
def case(request):
    """Return a model with drawn weights and its inputs."""
    torch.manual_seed(0)
    model, inputs = CASES[request.param]()
    model = model.double().eval()
    draw_weights(model, 0)
    return model, inputs.double() if inputs.is_floating_point() else inputs


def test_slices_compute_what_the_model_does_without_the_rest(case):
    found = check(*case, (1.0, 0.5, 0.3))
    assert found.difference < 1e-9
    assert found.unproven == ""
    assert found.parameters[0.3] < found.parameters[0.5] < found.parameters[1.0]


def test_slices_are_nested_and_say_how_wide_they_are(case):
    model, inputs = case
    build = elastic(model, inputs[:1])
    half, least = build.plan(0.5), build.plan(0.01)  # torch chooses operators by strides, and so by widths of 1
    assert half.contains(least)
    whole, odd, middle, small = (build(rate) for rate in (1.0, 0.9, 0.5, 0.01))
    sizes = [sum(own.numel() for own in each.parameters()) for each in (whole, odd, middle, small)]
    assert sizes == sorted(sizes, reverse=True)
    state = {name: parameter.detach() for name, parameter in whole.named_parameters(remove_duplicate=False)}
    twice = Plan.of(middle, small).extract(half.extract(state))
    assert all(torch.equal(tensor, twice[name]) for name, tensor in least.extract(state).items())
    for layer in small.modules():
        if isinstance(layer, nn.Linear):
            assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)
        if isinstance(layer, nn.Conv2d) and not layer.transposed:
            assert (layer.out_channels, layer.in_channels // layer.groups) == layer.weight.shape[:2]
        if isinstance(layer, nn.MultiheadAttention):
            assert layer.embed_dim == layer.num_heads * layer.head_dim == layer.out_proj.in_features
        if isinstance(layer, nn.RNNBase):
            assert layer.input_size == layer.weight_ih_l0.shape[1]
            assert layer.hidden_size == layer.weight_hh_l0.shape[1]
