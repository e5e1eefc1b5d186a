"""What the strategies share: whose rows belong to classes, and models of odd shapes."""

import numpy as np
import pytest
import torch
from flwr.common import parameters_to_ndarrays
from torch import nn

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, Mix
from heterofl_flwr.classic import HeteroFL as Classic
from heterofl_flwr.client import reply, submodel
from heterofl_flwr.core import width
from heterofl_flwr.core.reply_checks import find_label_rows
from heterofl_flwr.errors import ShapeError
from heterofl_flwr.federation import federation
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.round import Round, TrainReply
from heterofl_flwr.nn import CNN, build_model
from tests.classic.fakes import Fake, fit_all, manager_of
from tests.federation.tiny import build, build_normed, equal, make_app

MIX = Mix.parse("a1-b1")


def rows_of(build, mix=MIX):
    return set(find_label_rows(build, mix))


class Encoder(nn.Module):
    """All of its outputs scale."""

    def __init__(self, rate):
        super().__init__()
        self.layer = nn.Linear(4, width(8, rate))


class Named(Encoder):
    label_rows = ("layer.bias",)


class Odd(nn.Module):
    """A scalar, a parameter that is frozen, one that no layer has, one without entries, and one that is shared."""

    def __init__(self, rate):
        super().__init__()
        hidden = width(8, rate)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0))
        self.one = nn.Linear(3, hidden)
        self.two = nn.Linear(hidden, 3, bias=False)
        self.two.weight.requires_grad_(False)
        self.again = self.one

    def forward(self, x):
        return self.two(self.again(x)) / self.temperature


def test_the_classifier_is_the_last_linear_layer_whose_outputs_do_not_scale():
    assert rows_of(build) == {"classifier.weight", "classifier.bias"}
    assert rows_of(lambda rate: CNN(1, 10, hidden=(8,), rate=rate)) == {"linear.weight", "linear.bias"}
    assert rows_of(build, Mix.parse("a1")) == {"classifier.weight", "classifier.bias"}


def test_a_bare_linear_layer_and_one_without_bias():
    assert rows_of(lambda rate: nn.Linear(3, 5)) == {"weight", "bias"}
    assert rows_of(lambda rate: nn.Sequential(nn.Linear(3, 5, bias=False))) == {"0.weight"}


def test_a_model_without_classifier_has_none():
    assert rows_of(Encoder) == set()
    assert rows_of(lambda rate: nn.Conv2d(3, width(8, rate), 3)) == set()


def test_a_model_may_name_its_rows():
    assert rows_of(Named) == {"layer.bias"}
    # The paper's Transformer counts its token embedding by word too.
    assert any("embedding" in name for name in rows_of(build_model("transformer", vocabulary=20)))


def test_layers_of_another_type_in_a_smaller_model_are_refused():
    with pytest.raises(ShapeError, match="layer 0 is Linear in the global model, but Conv2d in a smaller"):
        rows_of(lambda rate: nn.Sequential(nn.Linear(1, 1) if rate == 1 else nn.Conv2d(1, 1, 1)))


def add_one(message, context):
    model = submodel(message, Odd)
    assert not model.two.weight.requires_grad
    with torch.no_grad():
        for parameter in {id(own): own for own in model.parameters()}.values():
            parameter += 1
    return reply(message, model, num_examples=1)


def test_parameters_of_odd_shapes_travel_and_count():
    with LocalGrid(make_app(add_one), 3) as grid:
        strategy = HeteroFL(Odd, "a1-c1", server_momentum=0.5, evaluation=Evaluation(every=0))
        state = strategy.start(grid, num_rounds=2).arrays.to_torch_state_dict()
    before = strategy.federation.initial_state()
    assert strategy.log.failures == {}
    assert list(state) == list(before)
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, before[name] + 2.5)
    assert "again.weight" not in state  # it is one.weight


def test_so_they_do_in_the_classic_api():
    fakes = [Fake(str(cid)) for cid in range(3)]
    strategy = Classic(Odd, "a1-c1", wait=1.0)
    manager = manager_of(*fakes)
    before = strategy.initialize_parameters(manager)
    after, _ = strategy.aggregate_fit(1, fit_all(strategy.configure_fit(1, before, manager)), [])
    for old, new in zip(parameters_to_ndarrays(before), parameters_to_ndarrays(after), strict=True):
        np.testing.assert_allclose(new, old + 1, rtol=1e-6)


def test_what_is_kept_of_a_state_are_parameters():
    federation = HeteroFL(build_normed).federation
    model = build_normed(1.0)
    kept = federation.check_state(model.state_dict())
    assert equal(kept, {name: parameter.detach() for name, parameter in model.named_parameters()})


def test_each_slice_is_worked_out_once():
    calls = []

    def counted(rate):
        calls.append(rate)
        return build(rate)

    own = HeteroFL(counted, "a1-c1").federation
    plans = [own.plan(rate) for rate in (1.0, 0.25, 1.0, 0.25)]
    assert plans[0] is plans[2]
    assert plans[1] is plans[3]
    assert len(calls) == 3


@pytest.mark.parametrize("labels", ["sent", "inferred", "none"])
def test_rows_count_as_the_rule_for_labels_says(labels):
    engine = HeteroFL(build, "a1", labels=labels).engine
    engine.federation.register({7: None})
    state = engine.federation.initial_state()
    current = Round(engine, 1, [7], state)
    sub = {name: own * 0.99 for name, own in state.items()}
    sub["classifier.weight"][2] += torch.arange(8.0)
    current.add(7, TrainReply(sub, num_examples=1, labels=[1], capacity=None, metrics={}, num_bytes=0))
    new = current.close()["classifier.weight"]
    counted = {"sent": [1], "inferred": [2], "none": [0, 1, 2, 3]}[labels]
    for row in range(4):
        expected = sub if row in counted else state
        assert torch.equal(new[row], expected["classifier.weight"][row])


def test_nodes_that_name_ever_new_rates_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(federation, "KEPT_RATES", 4)
    own = Federation(build=build, mix=Mix.parse("a1"))
    for number in range(1, 21):
        own.plan(number / 20)
        own.norms(number / 20)
    assert own.plan.cache_info().currsize == own.norms.cache_info().currsize == 4
