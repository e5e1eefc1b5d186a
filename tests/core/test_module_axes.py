"""Axes of the parameters of two models: which rule speaks for a layer, flattened channels, and what does not fit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from heterofl_flwr.common.errors import ConfigError, ShapeError, UnsupportedLayerError
from heterofl_flwr.core import Axis, Plan, axes_between, layer_rules, module_axes, register, width
from tests.core import twin

OLDER = "ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"
ROLLING = twin.rolling(1)


@pytest.mark.filterwarnings(OLDER)
@pytest.mark.parametrize(
    ("of_convolution", "of_linear", "name"),
    [
        (nn.Identity(), nn.Identity(), "weight"),
        (weight_norm, spectral_norm, "parametrizations.weight.original"),
        (spectral_norm, weight_norm, "parametrizations.weight.original1"),
        (nn.utils.weight_norm, nn.utils.spectral_norm, "weight_orig"),
        (nn.utils.spectral_norm, nn.utils.weight_norm, "weight_v"),
    ],
)
def test_a_layer_behind_flatten_keeps_a_prefix(of_convolution, of_linear, name):
    full, local = (
        nn.Sequential(of_convolution(nn.Conv2d(1, n, 1)), nn.Flatten(), of_linear(nn.Linear(4 * n, 3))) for n in (4, 2)
    )
    with pytest.raises(ConfigError, match=rf"^2\.{name} keep a prefix of their groups, heads or flattened channels"):
        Plan.of(full, local).sliced(ROLLING)


FLATTENED = {
    "norm of images": (lambda n: [nn.Conv2d(1, n, 1), nn.LayerNorm([n, 2, 2]), nn.Linear(4 * n, 3)], "2.weight"),
    "recurrent": (lambda n: [nn.Conv2d(1, n, 1), nn.GRU(4 * n, n, 2)], "1.weight_ih_l0"),
    "recurrent cell": (lambda n: [nn.Conv2d(1, n, 1), nn.LSTMCell(4 * n, n)], "1.weight_ih"),
    "generator": (lambda n: [nn.Linear(3, 4 * n), nn.ConvTranspose2d(n, 1, 3)], "0.bias, 0.weight"),
}


@pytest.mark.parametrize(("layers", "names"), FLATTENED.values(), ids=FLATTENED)
def test_layers_beside_flattened_channels_keep_a_prefix(layers, names):
    plan = Plan.of(nn.ModuleList(layers(4)), nn.ModuleList(layers(2)))
    with pytest.raises(ConfigError, match=f"^{names} keep a prefix"):
        plan.sliced(ROLLING)


def test_a_linear_layer_whose_outputs_another_reads_may_move():
    layers = [[nn.Linear(3, 4 * n), nn.Conv2d(n, n, 3), nn.Linear(4 * n, n)] for n in (4, 2)]
    full, local = (nn.ModuleList([one, two, nn.Embedding(3, 2), three]) for one, two, three in layers)
    Plan.of(full, local).sliced(ROLLING)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    rules = copy.copy(layer_rules.RULES)
    for module in (layer_rules, module_axes):
        monkeypatch.setattr(module, "RULES", rules)


class Gain(nn.Module):
    """A layer of a user's own, of heads that stand one after another."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.heads = heads
        self.kernel = nn.Parameter(torch.randn(width))


class Model(nn.Module):
    """The layer within a model, beside one that has a rule."""

    def __init__(self, width, layer=Gain):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), layer(width))


def _gain_axes(full, local):
    return {"kernel": axes_between(full.kernel.shape, local.kernel.shape, {0: full.heads})}


def test_an_unknown_layer_raises_an_error_that_names_it():
    with pytest.raises(UnsupportedLayerError) as caught:
        Plan.of(Model(4), Model(2))
    message = str(caught.value)
    assert "layer body.1 of type Gain" in message
    assert "kernel (4,) -> (2,)" in message
    assert "@heterofl_flwr.core.register(Gain)" in message
    assert "Embedding, EmbeddingBag, GRU" in message  # what there is, from the registry
    assert isinstance(caught.value, TypeError)


def test_a_user_registers_a_rule():
    assert Plan.of(Gain(4), Gain(4)).axes == {"kernel": (Axis(4, 4),)}
    assert register(Gain)(_gain_axes) is _gain_axes
    assert Plan.of(Model(4), Model(2)).axes["body.1.kernel"] == (Axis(4, 2, 2),)
    for kinds in ((), (Gain(2),), (int,)):
        with pytest.raises(ConfigError, match=r"register takes subclasses of torch.nn.Module, got"):
            register(*kinds)
    with pytest.raises(ShapeError, match=r"layer body.1 of type Gain: .* does not divide into 2 parts"):
        Plan.of(Model(4), Model(3))


def test_a_rule_serves_subclasses_and_the_nearest_one_wins():
    class Special(Gain):
        pass

    register(Gain)(_gain_axes)
    assert Plan.of(Special(4), Special(2)).axes["kernel"] == (Axis(4, 2, 2),)

    @register(Special)
    def special(full, local):
        return {"kernel": axes_between(full.kernel.shape, local.kernel.shape)}

    assert Plan.of(Special(4), Special(2)).axes["kernel"] == (Axis(4, 2),)
    assert Plan.of(Gain(4), Gain(2)).axes["kernel"] == (Axis(4, 2, 2),)


@pytest.mark.parametrize(
    ("axes", "found"),
    [
        ({}, "None"),
        (None, "None"),
        ({"kernel": (Axis(4, 3),)}, ".*local_size=3"),
        ({"kernel": (Axis(5, 2),)}, ".*size=5"),
    ],
)
def test_a_rule_that_does_not_fit_the_models_raises(axes, found):
    register(Gain)(lambda full, local: axes)
    reason = rf"parameter body.1.kernel: its rule gives {found}.*, but the model has \(2,\) of \(4,\)"
    with pytest.raises(ShapeError, match=reason):
        Plan.of(Model(4), Model(2))


def test_a_rule_that_names_no_parameter_raises():
    register(Model)(lambda full, local: {"body.2.weight": (Axis(4, 2), Axis(3, 3))})
    register(Gain)(_gain_axes)
    with pytest.raises(ShapeError, match=r"Model: its rule names body\.2\.weight; expected .*body\.1\.kernel"):
        Plan.of(Model(4), Model(2))


def test_a_containers_rule_speaks_for_its_children():
    class Pair(nn.Module):
        """A container whose children are coupled, so that only it can say how they are cut."""

        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv1d(width, width, 1, groups=2, bias=False)
            self.linear = nn.Linear(width, 3)

    with pytest.raises(ShapeError, match="groups must shrink"):
        Plan.of(Pair(8), Pair(4))

    @register(Pair)
    def pair(full, local):
        return {
            "conv.weight": axes_between(full.conv.weight.shape, local.conv.weight.shape, {0: 4}),
            "linear.weight": axes_between(full.linear.weight.shape, local.linear.weight.shape, {1: 2}),
        }

    plan = Plan.of(nn.Sequential(Pair(8)), nn.Sequential(Pair(4)))
    assert plan.axes["0.conv.weight"][0] == Axis(8, 4, 4)
    assert plan.axes["0.linear.weight"] == (Axis(3, 3), Axis(8, 4, 2))
    assert plan.axes["0.linear.bias"] == (Axis(3, 3),)


def test_a_slice_of_elastic_beside_another_model_raises():
    full, local = nn.Linear(4, 4), nn.Linear(4, 2)
    vars(full)["plan_rule"] = layer_rules.RULES.find(full)
    with pytest.raises(ShapeError, match=r"\(the model itself\): only one .* of elastic: build both with it"):
        Plan.of(full, local)


def deep(rate, head):
    """Return a model with two hidden layers, and one at a smaller rate; ``head`` is the classifier's name in it."""
    model = nn.Sequential(nn.Linear(4, width(8, rate)))
    if rate == 1:
        model.append(nn.Linear(8, 8))
    model.add_module("2" if rate == 1 else head, nn.Linear(width(8, rate), 3))
    return model


def test_a_classifier_with_the_name_of_a_hidden_layer_is_refused():
    with pytest.raises(ShapeError, match="layer 1, the last of the local model, has 3 outputs, as has 2, the last of"):
        Plan.of(deep(1, "2"), deep(0.5, "1"))
    plan = Plan.of(deep(1, "2"), deep(0.5, "2"))
    assert plan.shapes == {"0.weight": (4, 4), "0.bias": (4,), "2.weight": (3, 4), "2.bias": (3,)}
    hidden = Plan.of(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8)), nn.Sequential(nn.Linear(4, 4)))
    assert hidden.shapes["0.weight"] == (4, 4)  # the last of a body without a classifier
