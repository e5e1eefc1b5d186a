"""Widths and NumPy numbers that code uses as values: followed, or refused where a slice would compute otherwise."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from heterofl_flwr.common.errors import UnsupportedLayerError
from heterofl_flwr.elastic_models import elastic
from simulations.model_zoo.check import check
from tests.elastic_models.families import Then, around

X = torch.randn(4, 3)


def numbered(self, x):
    both = torch.cat([self.one(x), self.two(x)], 1)
    return both * torch.ones_like(both).cumsum(1)


def table():
    """Return a model that scales channels by a parameter, which it also writes into a table by index."""

    def forward(self, x):
        written = x.new_zeros(12).index_put((torch.arange(12)[4:],), self.gain)
        return self.last(self.first(x) * self.gain) + written[6]

    model = Then(forward, first=nn.Linear(3, 8), last=nn.Linear(8, 2))
    model.gain = nn.Parameter(torch.randn(8))
    return model


EXACT = {
    "a NumPy index": around(lambda self, x: x * x[:, np.int64(-1)][:, None]),
    "a NumPy number selects": around(lambda self, x: x * x.select(1, np.int64(-1))[:, None]),
    "more chunks than channels": around(lambda self, x: torch.cat(x.chunk(99, 1)[::-1], 1)),
    "a part of a computed length": around(lambda self, x: x * x[:, : x.shape[1] - 2].sum(1, keepdim=True)),
    "a NumPy number of chunks": around(lambda self, x: torch.cat(x.chunk(np.int64(2), 1)[::-1], 1)),
    "a NumPy number in a shape": around(lambda self, x: x.view(-1, np.int64(2), np.int64(4)).flatten(1)),
    "channels numbered": nn.Sequential(Then(numbered, one=nn.Linear(3, 6), two=nn.Linear(3, 4)), nn.Linear(10, 2)),
    "a parameter put by index": table(),
    "axes moved in place": around(lambda self, x: x.clone().transpose_(0, 1).unsqueeze_(0).sin().squeeze_(0).t_()),
    "an orthogonal matrix": nn.Sequential(
        nn.Linear(3, 8), parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2)
    ),
}


@pytest.mark.parametrize("model", EXACT.values(), ids=EXACT)
@pytest.mark.filterwarnings("ignore:at rate 0.5 a slice keeps")
def test_a_slice_computes_what_the_full_model_does_with_zeros(model):
    found = check(copy.deepcopy(model).double().eval(), X[:2].double())
    assert found.difference < 1e-9
    assert found.unproven == ""


AS_VALUES = {
    "modulus": (lambda self, x: x % x.shape[1], "remainder"),
    "clamp": (lambda self, x: x.clamp(max=x.shape[1] / 16), "clamp"),
    "exponent": (lambda self, x: x.abs().pow(x.shape[1]), "pow"),
    "slope": (lambda self, x: F.leaky_relu(x, 1 / x.shape[1]), "leaky_relu"),
    "summand": (lambda self, x: x + x.shape[1], "add"),
    "dilation": (lambda self, x: x + F.conv1d(self.s[None, None], self.k, dilation=x.shape[1] // 2).sum(), ""),
    "window": (lambda self, x: x + F.max_pool1d(self.s[None, None], x.shape[1] // 2, 1).sum(), "pool"),
    "middle": (lambda self, x: x * x[:, x.shape[1] // 2][:, None], "select"),
    "in a narrow group too": (lambda self, x: (x + self.b(self.g(x).sin())) % x.shape[1], "remainder"),
}


@pytest.mark.parametrize("name", AS_VALUES)
@pytest.mark.filterwarnings("ignore:at rate 0.5 a slice keeps")
def test_a_width_that_is_a_value_is_refused(name):
    function, operator = AS_VALUES[name]
    layers = {"g": nn.Linear(8, 3), "b": nn.Linear(3, 8)} if "narrow" in name else {}
    model = around(function, **layers)
    model[1].register_buffer("s", torch.randn(40))
    model[1].register_buffer("k", torch.randn(1, 1, 3))
    with pytest.raises(UnsupportedLayerError, match=f"layer 1 of type Then does something else.*{operator}"):
        elastic(model, X)


def test_a_factor_that_is_chosen_by_a_width_is_a_warning():
    with pytest.warns(UserWarning, match=r"layer 1 of type Then \(3 for 2\) multiplies by a number"):
        elastic(around(lambda self, x: x * 2 if x.shape[1] / 4 > 1 else x * 3), X)


def test_inputs_and_tensors_that_cannot_lose_their_values_are_refused():
    class Graph:
        def __init__(self):
            self.x = X

        def __call__(self, *names):  # as PyG's Data has it
            return names

    weight = torch.randn(8)
    refused = [
        (Then(lambda self, graph: graph.x), Graph(), "example_inputs has a Graph with tensors in its attributes"),
        (around(lambda self, x: x), X.to_sparse(), "sparse tensors, and a trace follows dense"),
        (around(lambda self, x: x * weight), X, "neither a parameter nor a buffer of a layer"),
        (around(lambda self, x: torch.eye(4).to_sparse() @ x), X, "sparse tensors, and a trace follows dense"),
        (around(lambda self, x: x * x.max().item()), X, r"item\(\) needs the values of tensors"),
    ]
    for model, inputs, text in refused:
        with pytest.raises(UnsupportedLayerError, match=text):
            elastic(model, inputs)
