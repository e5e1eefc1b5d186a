"""Clients of unequal depth: what counts in a round."""

from functools import partial

import torch
from torch import nn

from heterofl_flwr import HeteroFL, shallow
from heterofl_flwr.core import Mix
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.federation.round import Round, TrainReply
from heterofl_flwr.nn import build_model, with_exits
from tests.federation import tiny


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), nn.Linear(4, 4))


build = shallow(stack(), "1.*", torch.zeros(1, 3))


def add(message, context, build):
    """Train: add one more than the partition to every parameter."""
    model = tiny.submodel(message, build)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1 + context.node_config["partition-id"]
    return tiny.reply(message, model, num_examples=1)


def run(build, mix, odd=None, **options):
    """Run a round with one client for each part of the mix; return the state before and after."""
    app, clients = tiny.make_app(partial(add, build=build), build=build, odd=odd), sum(Mix.parse(mix).counts)
    found = tiny.play(app, mix, clients, build=build, labels="none", min_available_nodes=clients, **options)
    return found.strategy.federation.initial_state(), found.state


def change(before, after, name):
    """Return by how much the entries of a parameter changed, each number once."""
    return sorted({round(own, 3) for own in (after[name] - before[name]).flatten().tolist()})


def test_a_block_changes_by_the_mean_over_those_who_have_it():
    before, after = run(build, "b1-c2")  # client 0 has two blocks, 1 and 2 have one; nobody has four
    assert list(before) == list(after)
    assert change(before, after, "1.0.weight") == change(before, after, "1.0.bias") == [2.0]
    assert change(before, after, "1.1.weight") == [1.0]
    assert "1.2.weight" not in after


def test_what_nobody_has_stays_to_the_bit():
    before, after = run(build, "a1-b1-c1", odd={0: lambda message, context: None}, min_replies=1)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith(("1.2", "1.3"))


def test_heads_that_a_client_does_not_train_do_not_count():
    exits = with_exits(build_model("cnn", classes=4, hidden=(4, 4), norm="gn"), deepest_only=True)
    with_depth = shallow(exits, "exits.*", None)
    federation = HeteroFL(with_depth, "a1-b1").federation
    assert federation.untrained(1.0) == {"exits.0.head.linear.weight", "exits.0.head.linear.bias"}
    assert federation.untrained(0.5) == set()
    before, after = run(with_depth, "a1-b1")
    assert change(before, after, "exits.0.head.linear.bias") == [2.0]  # client 1's alone
    assert change(before, after, "exits.1.head.linear.bias") == [1.0]
    assert change(before, after, "exits.0.body.conv.bias") == [1.5]


def test_untrained_heads_say_nothing_of_classes():
    """Weight decay shrinks all rows of the deepest head; the earlier one is as it was sent."""
    exits = with_exits(build_model("cnn", classes=4, hidden=(4, 4), norm="none"), deepest_only=True)
    strategy = HeteroFL(shallow(exits, "exits.*", None), "a1", labels="inferred")
    strategy.federation.register({7: Capability()})
    state = strategy.federation.initial_state()
    sub = {name: own if name.startswith("exits.0.head") else own * 0.95 for name, own in state.items()}
    sub["exits.1.head.linear.weight"][2] += torch.arange(4.0)
    current = Round(strategy.federation, strategy.chain, 1, [7], state)
    current.add(7, TrainReply(sub, num_examples=1, labels=None, capacity=None, metrics={}, num_bytes=0))
    changed = (current.close()["exits.1.head.linear.weight"] != state["exits.1.head.linear.weight"]).any(1)
    assert changed.tolist() == [False, False, True, False]
