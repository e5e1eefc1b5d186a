"""Descriptions of models: equal for those that compute alike, different for any others."""

import copy
import random
import threading
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.nn.inner_widths import Nested
from heterofl_flwr.nn.layers import Scaler
from heterofl_flwr.training.engines.structure import describe
from heterofl_flwr.training.exit_losses import mutual_loss
from heterofl_flwr.training.inplace_distillation import nested_loss
from tests.training.conftest import small


def scaled(factor):
    return lambda x: factor * x


def calling(function):
    model = nn.Linear(2, 2)
    model.function = function
    return model


class Settings:
    def __init__(self, number):
        self.number, self.model = number, [self]


def cast(**changes):
    return nn.Linear(2, 2).to(**changes)


@pytest.mark.parametrize(
    ("build", "other"),
    [
        (small(norm="gn"), small(norm="ln")),
        (small(norm="gn"), small(norm="gn", rate=0.5)),
        (lambda: Scaler(0.5), lambda: Scaler(0.25)),
        (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.2)),
        (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.1).eval()),
        (lambda: cast(dtype=torch.float32), lambda: cast(dtype=torch.float64)),
        (lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2).requires_grad_(False)),
        (lambda: calling(F.relu), lambda: calling(F.gelu)),
        (lambda: calling(lambda x: x + 1), lambda: calling(lambda x: x + 2)),
        (lambda: calling(scaled(2)), lambda: calling(scaled(3))),
        (lambda: calling({"a": [1, True]}), lambda: calling({"a": [1, 1]})),
        (lambda: calling(Settings(1)), lambda: calling(Settings(2))),
        (lambda: calling(random.Random(1)), lambda: calling(random.Random(2))),
        (lambda: calling(torch.Generator().manual_seed(1)), lambda: calling(torch.Generator().manual_seed(2))),
        (lambda: calling(Settings(1).__init__), lambda: calling(Settings(2).__init__)),
        (lambda: Nested(small()(), [small(rate=0.5)()]), lambda: Nested(small()(), [small(rate=0.25)()])),
        (lambda: partial(nested_loss, weight=0.5), lambda: partial(nested_loss, weight=1.0)),
        (lambda: partial(nested_loss, weight=0.5), lambda: partial(mutual_loss, weight=0.5)),
    ],
)
def test_models_are_alike_only_if_they_compute_alike(build, other):
    assert describe(build()) == describe(build())
    assert hash(describe(build())) == hash(describe(build()))
    assert describe(build()) != describe(other())


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: torch.ones(2), lambda value: value.mul_(0.5)),
        (lambda: torch.ones(2, dtype=torch.bfloat16), lambda value: value.mul_(0.5)),
        (lambda: np.ones(2), lambda value: value.fill(0.5)),
        (lambda: np.random.default_rng(0), lambda value: value.random()),
        (lambda: {1, 2}, lambda value: value.add(3)),
        (lambda: count(), next),
    ],
)
def test_objects_without_attributes_are_alike_if_their_contents_are_equal(make, change):
    model, twin = calling(make()), calling(make())
    before = describe(model)
    assert before == describe(twin)
    change(model.function)
    assert before != describe(model)


@pytest.mark.parametrize("make", [threading.Lock, lambda: torch.ones(2).to_sparse(), lambda: nn.Parameter()])
def test_what_cannot_be_compared_equals_itself_alone(make):
    value = make()
    assert describe(calling([value])) == describe(calling([value]))
    assert describe(calling([value])) != describe(calling([make()]))


def test_equal_sets_are_alike_in_any_order_and_in_copies():
    # These numbers collide in a set, so that their order is that of insertion.
    ascending, descending = set(range(0, 64, 8)), set(range(56, -1, -8))
    assert list(ascending) != list(descending)
    assert describe(ascending) == describe(descending)
    assert describe(ascending) != describe({*ascending, 1})
    layers = {nn.Linear(2, 2)}
    assert describe(layers) == describe(copy.deepcopy(layers))
