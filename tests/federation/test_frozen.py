"""Frozen parameters stay out of messages, and nodes that build others are refused."""

import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from heterofl_flwr import HeteroFL, Slicing
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import exchange_frozen, width
from tests.federation.tiny import add_one, make_app, play

BACKBONE = torch.linspace(-1, 1, 24).reshape(8, 3)


def build(rate, scale=1.0, mark=lambda model: model):
    """Return a model with a frozen backbone, which is cut with its head."""
    model = nn.Sequential(nn.Linear(3, width(8, rate), bias=False), nn.Linear(width(8, rate), 4))
    with torch.no_grad():
        model[0].weight.copy_(scale * BACKBONE[: width(8, rate)])
    model[0].requires_grad_(False)
    return mark(model)


def run(build, app=None, **options):
    return play(app or make_app(build=build), "a1-c1", 4, 2, build=build, **options)


def test_frozen_parameters_do_not_travel_and_do_not_change():
    found = run(build)
    assert found.log.failures == {}
    assert set(found.state) == {"1.weight", "1.bias"}
    for message in found.grid.of("train"):
        assert set(message.content["arrays"]) == {"1.weight", "1.bias"}
    head = found.before["1.bias"]
    torch.testing.assert_close(found.state["1.bias"], head + 2 * 2.5)  # clients add 1 to 4


def test_a_node_with_other_frozen_values_is_refused():
    app = make_app(build=build, odd={1: lambda message, context: add_one(message, context, partial(build, scale=2.0))})
    failures = run(build, app).log.failures
    assert failures.keys() == {1}
    assert "frozen parameters of this node's model" in failures[1]


def test_a_build_may_let_them_travel():
    found = run(partial(build, mark=exchange_frozen))
    assert found.log.failures == {}
    assert "0.weight" in found.state


def test_they_do_not_fit_slices_that_move():
    with pytest.raises(ConfigError, match=r"frozen parameters 0.weight are not sent.*exchange_frozen"):
        HeteroFL(build, "a1-c1", slicing=Slicing(slice_rule="rolling"))
    assert run(partial(build, mark=exchange_frozen), slice_rule="rolling").log.failures == {}


def test_initial_arrays_with_other_frozen_values_are_refused():
    federation = HeteroFL(build, "a1").federation
    state = build(1.0).state_dict()
    assert set(federation.architecture.check_state(state)) == {"1.weight", "1.bias"}
    with pytest.raises(ConfigError, match=r"other values of 0.weight than build gives it"):
        federation.architecture.check_state({**state, "0.weight": 2 * state["0.weight"]})


@pytest.mark.parametrize(
    ("draw", "warns"),
    [
        (lambda: torch.randn(3, 3), True),
        (lambda: torch.from_numpy(np.random.default_rng().normal(size=(3, 3))).float(), True),
        (lambda: torch.tensor([random.random(), math.nan, 0.0]).diag(), True),
        (lambda: torch.tensor([1.0, math.nan, -math.inf]).diag(), False),
    ],
)
def test_random_buffers_are_warned_of(caplog, draw, warns):
    """They are not sent: the mean was of models that computed with other projections, and nothing said so."""

    def build(rate):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
        model.register_buffer("projection", draw())
        return model

    HeteroFL(build, "a1")
    warnings = [line for line in caplog.messages if "build gives projection other values in each call" in line]
    assert len(warnings) == warns


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [nn.utils.spectral_norm, nn.utils.weight_norm, partial(prune.random_unstructured, name="weight", amount=0.5)],
)
def test_random_attributes_are_warned_of_unless_computed_from_parameters(caplog, norm):
    def build(rate):
        model = nn.Sequential(norm(nn.Linear(3, 4)))
        model.order = torch.randperm(99)
        return model

    HeteroFL(build, "a1")
    drawn = "0.weight_mask, order" if isinstance(norm, partial) else "order"
    assert f"build gives {drawn} other values in each call" in caplog.text


@pytest.mark.parametrize("seeded", ["base", "build"])
def test_frozen_values_that_follow_the_rate_are_warned_of(caplog, seeded):
    """One seed at the start of ``build`` gave each level another base, because the adapter before it draws less."""

    def build(rate):
        torch.manual_seed(0)
        adapter = nn.Linear(3, width(8, rate))
        if seeded == "base":
            torch.manual_seed(1)
        base = nn.Linear(3, 3).requires_grad_(False)
        model = nn.ModuleList([adapter, base, nn.Linear(width(8, rate), 4)])
        model.register_buffer("divisor", torch.tensor([rate]))
        return model

    HeteroFL(build, "a1-c1").federation.architecture.plan(0.25)
    warns = "build(0.25) gives 1.bias, 1.weight other values than build(1), and neither" in caplog.text
    assert warns == (seeded == "build")
