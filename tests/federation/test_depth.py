"""Clients of unequal depth: what counts in a round, and InclusiveFL's momentum between blocks."""

from functools import partial

import pytest
import torch
from torch import nn

from heterofl_flwr import BlockMomentum, HeteroFL, LocalGrid, shallow
from heterofl_flwr.core import Mix
from heterofl_flwr.errors import ConfigError
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


def run(build, mix, *, odd=None, rounds=1, **options):
    """Run rounds with one client for each part of the mix; return the state before and after."""
    clients = sum(Mix.parse(mix).counts)
    with LocalGrid(tiny.make_app(partial(add, build=build), build=build, odd=odd), clients) as grid:
        strategy = HeteroFL(build, mix, evaluation=tiny.NEVER, labels="none", min_available_nodes=clients, **options)
        before = strategy.federation.initial_state()
        after = strategy.start(grid, num_rounds=rounds).arrays.to_torch_state_dict()
    return before, after


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
    with_depth = shallow(exits, "exits.*")
    federation = HeteroFL(with_depth, "a1-b1").federation
    assert federation.untrained(1.0) == {"exits.0.head.linear.weight", "exits.0.head.linear.bias"}
    assert federation.untrained(0.5) == set()
    before, after = run(with_depth, "a1-b1")
    assert change(before, after, "exits.0.head.linear.bias") == [2.0]  # client 1's alone
    assert change(before, after, "exits.1.head.linear.bias") == [1.0]
    assert change(before, after, "exits.0.body.conv.bias") == [1.5]


def test_heads_that_a_client_does_not_train_say_nothing_of_its_classes():
    """Weight decay shrinks all rows of the deepest head; the earlier one is as it was sent."""
    exits = with_exits(build_model("cnn", classes=4, hidden=(4, 4), norm="none"), deepest_only=True)
    engine = HeteroFL(shallow(exits, "exits.*"), "a1", labels="inferred").engine
    engine.federation.register({7: None})
    state = engine.federation.initial_state()
    sub = {name: own if name.startswith("exits.0.head") else own * 0.95 for name, own in state.items()}
    sub["exits.1.head.linear.weight"][2] += torch.arange(4.0)
    current = Round(engine, 1, [7], state)
    current.add(7, TrainReply(sub, num_examples=1, labels=None, capacity=None, metrics={}, num_bytes=0))
    changed = (current.close()["exits.1.head.linear.weight"] != state["exits.1.head.linear.weight"]).any(1)
    assert changed.tolist() == [False, False, True, False]


def momentum(share):
    return BlockMomentum(build, "a1-b1-c1", "1.*", share)


def test_the_last_block_of_a_level_takes_a_share_of_what_deeper_blocks_change_by():
    """Levels of one, two and four blocks, which change by 1, 2, 5 and 11."""
    old = {name: torch.zeros_like(own) for name, own in build(1.0).named_parameters()}
    changes = {"1.0": 1.0, "1.1": 2.0, "1.2": 5.0, "1.3": 11.0}
    new = {name: own + changes.get(name.rpartition(".")[0], 7.0) for name, own in old.items()}
    adjusted = momentum(0.2).adjust(old, new, lambda name: torch.ones_like(old[name]))
    found = {name: change(old, adjusted, name) for name in old}
    assert found["1.0.weight"] == found["1.0.bias"] == [1.1]  # 0.8 * 1 + 0.2 * (1 + 2) / 2
    assert found["1.1.weight"] == [2.8]  # 0.8 * 2 + 0.2 * (2 + 5 + 11) / 3
    assert [found[f"1.{number}.weight"] for number in (2, 3)] == [[5.0], [11.0]]
    assert found["0.weight"] == found["2.bias"] == [7.0]


def test_blocks_that_nobody_trained_teach_nothing_and_learn_nothing():
    old = {name: torch.zeros_like(own) for name, own in build(1.0).named_parameters()}
    new = {name: own + 1.0 for name, own in old.items()}
    new |= {name: old[name] for name in old if name.startswith(("1.1", "1.3"))}
    held = {name: (new[name] - own) for name, own in old.items()}
    adjusted = momentum(0.5).adjust(old, new, held.__getitem__)
    assert change(old, adjusted, "1.0.weight") == [1.0]  # block 1 was not trained
    assert change(old, adjusted, "1.1.weight") == [0.0]


@pytest.mark.parametrize(
    ("depths", "last_blocks"),
    [
        ({"a": 1, "b": 0.5, "c": 0.75}, ["1.1", "1.2"]),  # a smaller rate, but deeper
        ({"a": 1, "b": 0.5, "c": 0.5}, ["1.1"]),
        ({"a": 1, "b": 0.25, "c": 0.1}, ["1.0"]),  # one block at both rates
    ],
)
def test_levels_are_compared_by_their_depths(depths, last_blocks):
    some = shallow(stack(), "1.*", levels={level: (1, depth) for level, depth in depths.items()})
    old = {name: torch.zeros_like(own) for name, own in some(1.0).named_parameters()}
    new = {name: own + number for number, (name, own) in enumerate(old.items())}
    adjusted = BlockMomentum(some, "a1-b1-c1", "1.*").adjust(old, new, lambda name: torch.ones_like(old[name]))
    moved = {name for name in old if not torch.equal(adjusted[name], new[name])}
    assert moved == {f"{block}.{own}" for block in last_blocks for own in ("weight", "bias")}


def test_a_round_of_the_strategy_applies_it():
    before, after = run(build, "a1-b1-c1", aggregator=momentum(0.2))  # blocks change by 2, 1.5, 1 and 1
    assert change(before, after, "1.0.weight") == [1.95]  # 0.8 * 2 + 0.2 * (2 + 1.5) / 2
    assert change(before, after, "1.1.weight") == [1.433]  # 0.8 * 1.5 + 0.2 * (1.5 + 1 + 1) / 3
    assert change(before, after, "1.3.weight") == [1.0]


def test_momentum_keeps_nothing_from_round_to_round_so_that_a_run_can_resume():
    aggregator = momentum(0.2)
    (_, first), (_, second) = (run(build, "a1-b1-c1", rounds=2, aggregator=aggregator) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_momentum_needs_blocks_of_equal_shapes_and_a_share():
    unequal = shallow(with_exits(build_model("cnn", hidden=(4, 8))), "exits.*")
    with pytest.raises(
        ConfigError, match=r"nothing can be distilled: .* choose a model of equal blocks \(model\.hidden="
    ):
        BlockMomentum(unequal, "a1-b1", "exits.*.body")
    with pytest.raises(ConfigError, match="share is 2; expected a number from 0 to 1"):
        momentum(2)
    with pytest.raises(ConfigError, match=r"needs 1\.1\.bias, .*, which the server does not have: let the parameters"):
        run(build, "a1-b1-c1", aggregator=momentum(0.2), shared=("0.*", "1.0.*"))
