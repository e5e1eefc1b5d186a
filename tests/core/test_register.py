import copy

import pytest
import torch
from torch import nn

from heterofl_flwr.core import Aggregator, Axis, Plan, axes_between, register
from heterofl_flwr.core import layer_rules as registry
from heterofl_flwr.core.layer_rules import find_rule
from heterofl_flwr.errors import ConfigError, ShapeError, UnsupportedLayerError


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_rules", copy.copy(registry._rules))


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


def test_an_unknown_layer_is_refused_by_name_with_the_decorator_to_use():
    with pytest.raises(UnsupportedLayerError) as caught:
        Plan.of(Model(4), Model(2))
    message = str(caught.value)
    assert "layer body.1 of type Gain" in message
    assert "kernel (4,) -> (2,)" in message
    assert "@heterofl_flwr.core.register(Gain)" in message
    assert "Embedding, EmbeddingBag, GRU" in message  # what there is, from the registry
    assert isinstance(caught.value, TypeError)


def test_a_model_that_is_itself_unknown_is_named_too():
    with pytest.raises(UnsupportedLayerError, match=r"layer \(the model itself\) of type Gain"):
        Plan.of(Gain(4), Gain(2))


def test_an_unknown_layer_that_keeps_its_width_needs_no_rule():
    assert Plan.of(Gain(4), Gain(4)).axes == {"kernel": (Axis(4, 4),)}


def test_a_rule_of_ones_own():
    assert register(Gain)(_gain_axes) is _gain_axes
    assert Plan.of(Model(4), Model(2)).axes["body.1.kernel"] == (Axis(4, 2, 2),)


def test_a_rule_serves_subclasses_and_the_nearest_one_wins():
    class Special(Gain):
        pass

    register(Gain)(_gain_axes)
    assert find_rule(Special(4)) is _gain_axes

    @register(Special)
    def special(full, local):
        return {"kernel": axes_between(full.kernel.shape, local.kernel.shape)}

    assert find_rule(Special(4)) is special
    assert find_rule(Gain(4)) is _gain_axes
    assert Plan.of(Special(4), Special(2)).axes["kernel"] == (Axis(4, 2),)


def test_a_later_rule_replaces_an_earlier_one():
    register(Gain)(lambda full, local: {})
    register(Gain, nn.Linear)(_gain_axes)
    assert find_rule(Gain(2)) is find_rule(nn.Linear(2, 2)) is _gain_axes


@pytest.mark.parametrize("kinds", [(), (Gain(2),), ("Linear",), (int,), (nn.Linear, None)])
def test_only_layer_types_have_rules(kinds):
    with pytest.raises(ConfigError, match=r"register takes subclasses of torch.nn.Module, got"):
        register(*kinds)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (lambda full, local: {}, "its rule gives None"),
        (lambda full, local: {"kernel": (Axis(4, 3),)}, "its rule gives .*kept=3"),
        (lambda full, local: {"kernel": (Axis(5, 2),)}, "its rule gives .*full=5"),
        (lambda full, local: {"kernel": ()}, r"its rule gives \(\)"),
        (lambda full, local: {"kernel": (Axis(4, 2), Axis(1, 1))}, "its rule gives .*full=1"),
    ],
)
def test_a_rule_that_does_not_fit_the_models_is_refused(rule, found):
    register(Gain)(rule)
    with pytest.raises(ShapeError, match=rf"parameter body.1.kernel: {found}.*, but the model has \(2,\) of \(4,\)"):
        Plan.of(Model(4), Model(2))


def test_a_rule_may_speak_of_parts_where_nothing_is_cut():
    register(Gain)(lambda full, local: {"kernel": (Axis(full.kernel.numel(), local.kernel.numel(), full.heads),)})
    plan = Plan.of(Gain(4), Gain(4))
    assert plan.axes["kernel"] == (Axis(4, 4),)
    aggregator = Aggregator({"kernel": torch.zeros(4)}, label_rows=["kernel"])
    aggregator.add(plan, {"kernel": torch.ones(4)})
    aggregator.add(plan, {"kernel": torch.full((4,), 3.0)}, labels=[3])
    assert aggregator.result()["kernel"].tolist() == [1, 1, 1, 2]


def test_a_rules_own_shape_error_names_the_layer():
    register(Gain)(_gain_axes)
    with pytest.raises(ShapeError, match=r"layer body.1 of type Gain: .* does not divide into 2 parts"):
        Plan.of(Model(4), Model(3))


class Pair(nn.Module):
    """A container whose children are coupled, so that only it can say how they are cut."""

    def __init__(self, width):
        super().__init__()
        self.gain = Gain(width)
        self.linear = nn.Linear(width, 3)


def test_a_containers_rule_speaks_for_children_that_have_none():
    @register(Pair)
    def pair(full, local):
        return {"gain.kernel": axes_between(full.gain.kernel.shape, local.gain.kernel.shape, {0: 4})}

    plan = Plan.of(nn.Sequential(Pair(8)), nn.Sequential(Pair(4)))
    assert plan.axes["0.gain.kernel"] == (Axis(8, 4, 4),)
    assert plan.axes["0.linear.weight"] == (Axis(3, 3), Axis(8, 4))


def test_what_a_containers_rule_says_stands_against_its_childrens():
    @register(Pair)
    def pair(full, local):
        return {"linear.weight": axes_between(full.linear.weight.shape, local.linear.weight.shape, {1: 2})}

    register(Gain)(_gain_axes)
    plan = Plan.of(Pair(8), Pair(4))
    assert plan.axes["linear.weight"] == (Axis(3, 3), Axis(8, 4, 2))
    assert plan.axes["linear.bias"] == (Axis(3, 3),)
    assert plan.axes["gain.kernel"] == (Axis(8, 4, 2),)


def test_a_containers_rule_may_speak_for_a_child_whose_own_rule_would_refuse():
    class Shuffle(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv1d(width, width, 1, groups=2, bias=False)

    with pytest.raises(ShapeError, match="groups must shrink"):
        Plan.of(Shuffle(8), Shuffle(4))

    @register(Shuffle)
    def shuffle(full, local):
        return {"conv.weight": axes_between(full.conv.weight.shape, local.conv.weight.shape, {0: 2})}

    assert Plan.of(Shuffle(8), Shuffle(4)).axes["conv.weight"][0] == Axis(8, 4, 2)
