"""Client stages on the client: what a hostile server may send, unknown names, classes that nothing would call."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from heterofl_flwr.client import Task
from heterofl_flwr.client.stages import ClientChain
from heterofl_flwr.common.errors import ConfigError, ReplyError, RoundError
from heterofl_flwr.nn.penalty import Penalty, Quadratic
from heterofl_flwr.stages.client_stage import (
    ClientContext,
    ClientStage,
    Outgoing,
    RespondingStage,
    client_stage,
    read_stages,
    write_stages,
)
from heterofl_flwr.stages.server_stage import ServerStage
from tests.federation.tiny import build, make_app, play


@client_stage("sample-stage")
@dataclass(frozen=True)
class Sample(ClientStage):
    strength: float
    places: int = 1
    kind: str = "up"
    flag: bool = False


FIELDS = {"strength": 0.5, "places": 2, "kind": "down", "flag": True}
CONFIG = {"client-stages": "sample-stage", **{f"sample-stage.{name}": value for name, value in FIELDS.items()}}


def test_name_and_fields_travel():
    stage = Sample(**FIELDS)
    assert write_stages([stage]) == CONFIG
    assert read_stages(CONFIG) == [stage]
    assert read_stages({"lr": 0.1}) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"sample-stage.places": None}, "sample-stage.places"),
        ({"client-stages": "nobodys"}, "'nobodys', which this client does not know: import the module"),
        ({"client-stages": "feddyn", "feddyn.alpha": 0.0}, "alpha is 0.0"),
        ({"client-stages": "compress", "compress.upload": "x"}, "upload is 'x'"),
        ({"sample-stage.strength": "0.5"}, "sample-stage.strength"),
        ({"sample-stage.strength": math.nan}, "sample-stage.strength"),
        ({"sample-stage.strength": -math.inf}, "sample-stage.strength"),
        ({"sample-stage.strength": True}, "sample-stage.strength"),
        ({"sample-stage.places": 1.0}, "sample-stage.places"),
        ({"sample-stage.kind": [1]}, "sample-stage.kind"),
        ({"sample-stage.flag": 1}, "sample-stage.flag"),
        ({"client-stages": ["sample-stage"]}, "client-stages"),
        ({"client-stages": "sample-stage,sample-stage"}, "client-stages"),
    ],
)
def test_unknown_names_and_values_of_other_types_and_out_of_bounds_are_rejected(change, fault):
    with pytest.raises(ReplyError, match=fault):
        read_stages({**CONFIG, **change})


def test_classes_that_nothing_would_call_are_refused():
    @dataclass(frozen=True)
    class OnServer(ClientStage):
        def on_mean(self, new, holders, context):
            return new

    @dataclass(frozen=True)
    class Twice(ClientStage):
        def quadratic(self, context):
            return None

        def penalty(self, model, context):
            return 0.0

    @dataclass(frozen=True)
    class Lists(ClientStage):
        places: list

    @dataclass
    class Thawed(ClientStage):
        places: int

    kinds = {OnServer: "ServerStage", Twice: "quadratic", Lists: "places", Thawed: "frozen"}
    for kind, cause in kinds.items():
        with pytest.raises(ConfigError, match=cause):
            client_stage("refused")(kind)
    with pytest.raises(ConfigError, match="sample-stage"):
        client_stage("sample-stage")(Counts)


def context(**values):
    return ClientContext(received=lambda: {"weight": torch.zeros(1, 2)}, seed=0, **values)


@client_stage("counting-stage")
@dataclass(frozen=True)
class Counts(ClientStage):
    def on_update(self, update, context):
        context.state["number"] = torch.ones(1)
        return update


def test_state_without_stateful_is_an_error():
    with pytest.raises(ConfigError, match="stateful = True in Counts"):
        ClientChain([Counts()], context()).on_update(Outgoing(tensors={}))


@client_stage("returning-stage")
@dataclass(frozen=True)
class Returns(RespondingStage):
    returned = None

    def on_update(self, update, context):
        return self.returned

    def answer(self, context):
        return self.returned


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        (None, "Returns.on_update returned NoneType; expected Outgoing"),
        (
            Outgoing(tensors=[torch.ones(2)]),
            "an Outgoing whose tensors is of type list; expected Mapping",
        ),
        (
            Outgoing(tensors={}, form=8),
            "an Outgoing whose form is of type int; expected str",
        ),
        (
            Outgoing(tensors={}, metrics=0.5),
            "an Outgoing whose metrics is of type float; expected Mapping",
        ),
        (
            Outgoing(tensors={}, fields=["norm"]),
            "an Outgoing whose fields is of type list; expected Mapping",
        ),
    ],
)
def test_what_a_client_stage_may_not_return_is_named(returned, fault):
    stage = type("Returns", (Returns,), {"returned": returned})()
    with pytest.raises(ConfigError, match=fault):
        ClientChain([stage], context()).on_update(Outgoing(tensors={}))
    with pytest.raises(ConfigError, match=r"Returns.answer returned .*; expected a mapping"):
        ClientChain([stage], context()).answer()


def test_a_users_stage_keeps_its_state_where_nothing_was_trained():
    class Keeps(Counts):
        stateful = True

    chain = ClientChain([Keeps()], context())
    chain.on_update(Outgoing(tensors={}, num_examples=0))
    assert not chain.state
    chain.on_update(Outgoing(tensors={}))
    assert list(chain.state) == ["counting-stage/number"]


def test_a_stage_may_drop_what_it_keeps():
    """A tensor that a stage had removed came back in the next round."""

    @client_stage("dropping-stage")
    @dataclass(frozen=True)
    class Drops(ClientStage):
        stateful = True

        def on_update(self, update, context):
            context.state.pop("number")
            return update

    kept = {"dropping-stage/number": torch.ones(1), "other-stage/number": torch.ones(1)}
    chain = ClientChain([Drops()], context(state=kept))
    chain.on_update(Outgoing(tensors={}))
    assert list(chain.state) == ["other-stage/number"]


def test_state_of_another_slice_is_refused():
    with pytest.raises(ReplyError, match=r"stores w of shape \(2,\) on this client, expected \(3,\): .* keep its rate"):
        replace(context(), state={"w": torch.ones(2)}).stored("w", torch.ones(3))


def test_the_sum_of_quadratic_penalties_has_the_sum_of_the_gradients():
    generator = torch.Generator().manual_seed(0)
    model, draw = nn.Linear(3, 2).double(), lambda own: torch.randn(own.shape, generator=generator).double()
    parts = [
        Quadratic(strength, *({name: draw(own) for name, own in model.named_parameters()} for _ in range(2)))
        for strength in (0.3, 0.0, 1.7)
    ]
    parameters = list(model.parameters())
    expected = torch.autograd.grad(Penalty(terms=parts)(model), parameters)
    together = Quadratic.sum(parts)
    for one, other in zip(torch.autograd.grad(together(model), parameters), expected, strict=True):
        torch.testing.assert_close(one, other)
    aligned = together.aligned(model)
    for parameter, center, direction, other in zip(
        parameters, aligned.centers, aligned.directions, expected, strict=True
    ):
        torch.testing.assert_close(aligned.strength * (parameter - center) + direction, other)


@pytest.mark.parametrize("strengths", [(0.3, 1.7), (0.0, 1.7), (1.7, 0.0), (0.0, 0.0)])
def test_penalties_on_different_parameters_add_up(strengths):
    model = nn.Linear(3, 2).double()
    centers = {"weight": torch.ones(2, 3).double()}, {"weight": torch.zeros(2, 3).double(), "bias": torch.ones(2)}
    parts = [Quadratic(strength, center) for strength, center in zip(strengths, centers, strict=True)]
    expected = sum(
        strength / 2 * (model.get_parameter(name) - tensor).square().sum()
        for strength, center in zip(strengths, centers, strict=True)
        for name, tensor in center.items()
    )
    parameters = list(model.parameters())
    grads = (
        torch.autograd.grad(value + model.bias.sum(), parameters, materialize_grads=True)
        for value in (Penalty.of(parts)(model), expected)
    )
    for found, other in zip(*grads, strict=True):
        torch.testing.assert_close(found, other)


def test_a_penalty_is_that_of_parameters_that_are_trained_and_were_received():
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    center = {name: tensor.detach() + 2 for name, tensor in model.named_parameters()}
    assert Quadratic(0.5, center)(model).item() == pytest.approx(0.25 * 2 * 2**2)  # without the bias
    model.weight.requires_grad_(False)  # as in an epoch that trains only what stays with the client
    assert Quadratic(0.5, center)(model) == 0.0
    with pytest.raises(ConfigError, match=r"Sequential has none of the parameters .* not a wrapper of it"):
        Quadratic(0.5, center)(nn.Sequential(model))


@client_stage("late-stage")
@dataclass(frozen=True)
class Late(ClientStage):
    stateful = True
    since: int

    def on_update(self, update, context):
        if context.config["server-round"] >= self.since:
            context.state.update(update.tensors)
        return update


class KeepsLate(ServerStage):
    def __init__(self, since):
        self.since = since

    def client(self):
        return Late(self.since)


def train_without_penalty(message, context):
    task = Task(message, context, build)
    task.penalty_used = True  # as a loop that computes FedProx's term itself
    model = task.model()
    with torch.no_grad():
        model.hidden.bias += 0.1
    return task.reply(model, num_examples=1)


def test_tensors_are_lost_only_if_a_client_has_saved_some():
    """A stage that keeps nothing in its first rounds failed, and a loop without task.penalty never noticed a loss."""
    app = make_app(train_without_penalty)
    first = play(app, stages=[KeepsLate(2)], num_rounds=3)
    assert not first.log.failures
    with pytest.raises(RoundError, match="the tensors that late-stage keeps are gone"):
        play(app, stages=[KeepsLate(2)], num_rounds=4, start={"resume": first.progress[-1]})
