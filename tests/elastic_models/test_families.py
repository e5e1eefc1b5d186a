"""Every way in which axes belong together, against the full model with zeros in it."""

import copy

import pytest
import torch
from torch import nn

from heterofl_flwr.core import Aggregator, Plan
from heterofl_flwr.core.axes import positions
from heterofl_flwr.elastic_models import elastic
from simulations.model_zoo.models import draw_weights
from simulations.model_zoo.twin import Twin, difference
from tests.elastic_models.architectures import CASES

LONG = {"resnext", "densenet", "efficientnet", "regnet", "shufflenet"}  # what they are made of is in shorter ones too
PARAMS = [pytest.param(own, marks=[pytest.mark.slow] if own in LONG else []) for own in CASES]


@pytest.fixture(params=PARAMS, scope="module")
def case(request):
    """Return a model with drawn weights, its inputs and its ``build``."""
    torch.manual_seed(0)
    model, inputs = CASES[request.param]()
    model = model.double().eval()
    draw_weights(model, 0)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return model, inputs, elastic(model, inputs[:1])


def test_the_whole_model_is_the_users(case):
    model, inputs, build = case
    whole = build(1.0)
    assert isinstance(whole, type(model))
    assert all(torch.equal(own, its) for own, its in zip(model.parameters(), whole.parameters(), strict=True))
    assert torch.equal(whole(inputs), model(inputs))


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_a_slice_computes_what_the_model_does_without_the_rest(case, rate):
    model, inputs, build = case
    small, plan = build(rate), build.plan(rate)
    assert plan == Plan.of(build(1.0), small)
    state = dict(model.named_parameters())
    assert plan.parameters < sum(parameter.numel() for parameter in state.values())
    cut = plan.extract(state)
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, cut[name])
        assert torch.equal(parameter, _by_hand(state[name], plan.axes[name]))
    for layer in small.modules():
        _check_numbers(layer)
    assert difference(small, Twin(model).narrowed(plan, small), inputs) < 1e-9


def _by_hand(tensor, axes):
    for number, axis in enumerate(axes):
        tensor = tensor.index_select(number, torch.tensor(sorted(positions(axis))))
    return tensor


def _check_numbers(layer):
    """Check that a layer says how wide it is."""
    if isinstance(layer, nn.Linear):
        assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)
    if isinstance(layer, nn.Conv2d) and not layer.transposed:
        assert layer.out_channels == layer.weight.shape[0]
        assert layer.in_channels == layer.weight.shape[1] * layer.groups
    if isinstance(layer, nn.MultiheadAttention):
        assert layer.embed_dim == layer.num_heads * layer.head_dim == layer.out_proj.in_features


def test_slices_are_nested_also_from_a_smaller_largest(case):
    _, _, build = case
    half, quarter = build.plan(0.5), build.plan(0.25)
    assert half.contains(quarter)
    inner = Plan.of(build(0.5), build(0.25))
    state = {name: parameter.detach() for name, parameter in build(1.0).named_parameters(remove_duplicate=False)}
    twice = inner.extract(half.extract(state))
    assert all(torch.equal(tensor, twice[name]) for name, tensor in quarter.extract(state).items())


def test_a_slice_trains_and_what_it_learns_is_averaged(case):
    model, inputs, build = case
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    aggregator = Aggregator(state)
    for rate in (1.0, 0.3):
        small = build(rate).train()
        small(torch.cat([inputs] * 2)).square().mean().backward()
        assert all(parameter.grad is not None for parameter in small.parameters())
        sent = {name: parameter.detach() + 1 for name, parameter in small.named_parameters()}
        aggregator.add(Plan.of(build(1.0), small), sent)
    new = aggregator.result()
    assert all(torch.allclose(new[name], state[name] + 1) for name in state)
    copy.deepcopy(model).load_state_dict(new, strict=False)


def test_no_rate_is_refused(case):  # though torch chooses operators by strides, and so by widths of 1
    _, _, build = case
    sizes = [sum(own.numel() for own in build(rate).parameters()) for rate in (0.9, 0.125, 0.01)]
    assert sizes == sorted(sizes, reverse=True)
