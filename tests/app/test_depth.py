"""The app's models of unequal depth, and what its clients train of them, as the settings say."""

import math

import pytest
import torch

from heterofl_flwr.app.task import Task, load_task
from heterofl_flwr.data.known import Facts
from heterofl_flwr.nn.layers import Scaler
from heterofl_flwr.settings.flat import from_flat

DEEP = {"data.name": "digits", "model.hidden": "4,4,6,6", "mix": "a1-b1-c1"}


def task(**settings):
    return load_task({**DEEP, **{key.replace("__", "."): value for key, value in settings.items()}})


def test_a_level_may_be_narrower_and_shallower():
    build = task(model__shrink="b=0.5:1,c=0.5:0.25").build
    full, narrow, both = (build(rate) for rate in (1.0, 0.5, 0.25))
    assert [len(model.exits) for model in (full, narrow, both)] == [4, 4, 1]
    assert [model.exits[0].body.conv.out_channels for model in (full, narrow, both)] == [4, 2, 2]
    assert {layer.rate for layer in both.modules() if isinstance(layer, Scaler)} == {0.5}


def test_the_scaler_divides_by_the_width_of_the_global_model():
    build = task(mix="b1-c1", model__shrink="b=0.5:1,c=0.25:0.5").build
    assert {layer.rate for layer in build(0.5).modules() if isinstance(layer, Scaler)} == {1.0}
    assert {layer.rate for layer in build(0.25).modules() if isinstance(layer, Scaler)} == {0.5}
    shallow = task(mix="b1-c1", model__shrink="depth").build(0.5)
    assert {layer.rate for layer in shallow.modules() if isinstance(layer, Scaler)} == {1.0}


def test_settings_say_which_exits_are_trained_and_evaluated():
    last = task(model__shrink="depth", model__ensemble=True)
    model = last.build(1.0).eval()
    assert len(model.untrained) == 3
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(model(images), torch.stack(model.all_logits(images)).mean(0))
    assert last.joint_loss(1) is None
    assert task(model__shrink="depth", train__distill="ordered").build(1.0).untrained == ()
    mutual = task(
        model__shrink="depth", train__exits="mutual", distill__ramp=0.5, distill__weight=2.0, **{"num-rounds": 4}
    )
    assert mutual.build(1.0).untrained == ()
    weights = [mutual.joint_loss(server_round).keywords["weight"] for server_round in (1, 2, 3)]
    assert weights == pytest.approx([2 * math.exp(-5), 2 * math.exp(-5 / 4), 2])


def test_inner_widths_are_those_below_a_clients_own():
    own = task(train__distill="all")
    nested = own.with_inner_widths(own.build(0.5), 0.5, own.build)
    assert len(nested.all_logits(torch.zeros(2, 1, 8, 8))) == 2


def test_a_transformer_has_fewer_layers_and_one_head():
    own = Task(from_flat({"data.name": "wikitext2", "model.shrink": "depth"}))
    own.__dict__["facts"] = Facts((64,), 20)  # so that no data are read
    assert [len(own.build(rate).encoder) for rate in (1.0, 0.5, 0.25)] == [4, 2, 1]
