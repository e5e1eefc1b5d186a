"""A round of the Message API on LocalGrid: who trains at which rate, on what, and what becomes of it."""

import gc
import re
import weakref
from collections import Counter
from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord

from heterofl_flwr import Evaluation, HeteroFL, HeteroFLError, LocalGrid, Windowed, classic, multi_step
from heterofl_flwr.core import width
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.stages.server_optimizer import Momentum
from tests.federation.tiny import (
    NEVER,
    Shuffled,
    Tiny,
    Watched,
    add_one,
    build,
    build_normed,
    equal,
    make_app,
    play,
    untimed,
)


def run(nodes=2, mix="a1-c1", num_rounds=1, app=None, **options):
    start = {key: options.pop(key) for key in list(options) if key in ("initial_arrays", "train_config")}
    return play(app, mix, nodes, num_rounds, start=start, **options)


def test_a_round_is_the_mean_over_those_who_held_an_entry():
    found = run()
    strategy, state = found.strategy, found.state
    before = strategy.federation.initial_state()
    gain = {name: state[name] - before[name] for name in state}
    # Node 0 holds all and adds 1; node 1 holds the first two hidden units and adds 2.
    expected = torch.ones(8)
    expected[:2] = 1.5
    torch.testing.assert_close(gain["hidden.bias"], expected)
    torch.testing.assert_close(gain["hidden.weight"], expected[:, None].expand(8, 3))
    torch.testing.assert_close(gain["classifier.weight"], expected.expand(4, 8))
    torch.testing.assert_close(gain["classifier.bias"], torch.full((4,), 1.5))


def test_levels_get_their_rate_and_share_one_record_each():
    grid = run(6, "a1-b1-c1").grid
    messages = grid.of("train")
    rates = {grid.partition_of(message): message.content["config"]["rate"] for message in messages}
    assert rates == {0: 1.0, 1: 1.0, 2: 0.5, 3: 0.5, 4: 0.25, 5: 0.25}
    records = {message.content["config"]["rate"]: id(message.content["arrays"]) for message in messages}
    assert len({id(message.content["arrays"]) for message in messages}) == len(set(records.values())) == 3
    assert [message.content["arrays"]["hidden.weight"].shape for message in messages[::2]] == [(8, 3), (4, 3), (2, 3)]


def test_every_message_has_a_config_of_its_own_and_keeps_the_callers_keys():
    asked = ConfigRecord({"epochs": 3})
    sent = run(3, train_config=asked, seed=5, num_rounds=2, learning_rate=multi_step(0.1, [1])).grid.of("train")
    configs = [dict(message.content["config"]) for message in sent]
    assert len({id(message.content["config"]) for message in sent}) == 6
    assert asked == ConfigRecord({"epochs": 3})
    assert configs[0] == {
        "heterofl-schema": 1,
        "epochs": 3,
        "rate": 1.0,
        "global-rate": 1.0,
        "server-round": 1,
        "seed": 5,
        "partition": 0,
        "lr": 0.1,
    }
    assert [config["lr"] for config in configs] == [0.1] * 3 + [0.1 * 0.1] * 3


def test_without_a_schedule_the_callers_learning_rate_stays():
    sent = run(train_config=ConfigRecord({"lr": 0.7})).grid.of("train")
    assert [message.content["config"]["lr"] for message in sent] == [0.7, 0.7]


@pytest.mark.parametrize(("fraction", "number"), [(1.0, 10), (0.5, 5), (0.3, 3), (0.11, 2), (0.001, 1)])
def test_fraction_of_clients_rounded_up_and_at_least_one(fraction, number):
    sent = run(10, fraction_train=fraction).grid.of("train")
    assert len({message.metadata.dst_node_id for message in sent}) == number


def sampled(seed, *, grid_seed=0, rounds=4):
    grid = run(10, fraction_train=0.3, seed=seed, num_rounds=rounds, grid=partial(Watched, seed=grid_seed)).grid
    return [
        [grid.partition_of(m) for m in grid.of("train") if m.content["config"]["server-round"] == server_round]
        for server_round in range(1, rounds + 1)
    ]


def test_the_sample_depends_on_seed_and_round_and_not_on_node_ids():
    assert sampled(0) == sampled(0, grid_seed=9) != sampled(1)
    assert len({tuple(sorted(partitions)) for partitions in sampled(0)}) > 1


def test_evaluation_draws_clients_of_its_own():
    grid = run(10, fraction_train=0.3, fraction_evaluate=0.4, evaluation=Evaluation()).grid
    trained = {grid.partition_of(message) for message in grid.of("train")}
    judged = {grid.partition_of(message) for message in grid.of("evaluate")}
    assert len(judged) == 4
    assert not trained <= judged


def test_all_clients_come_by_partition_when_all_are_asked():
    grid = run(5, grid=partial(Watched, seed=3)).grid
    assert [grid.partition_of(message) for message in grid.of("train")] == [0, 1, 2, 3, 4]


def test_nodes_that_hold_no_rate_of_the_mix_are_not_drawn_and_warned_of_once(caplog):
    node_config = [{"rate": 0.4}, {}, {"rate": 0.3}].__getitem__
    found = run(3, "a1-b1", 2, node_config=node_config, assignment="dynamic")
    assert [list(record.rates) for record in found.records] == [[1], [1]]
    warned = [own.message for own in caplog.records if "can hold rate" in own.message]
    assert len(warned) == 1
    assert re.fullmatch(
        r"2 nodes are not drawn: node \d+ can hold rate 0.3, but the smallest rate of the mix a1-b1 is 0.5; .*-0.3x1.*",
        warned[0],
    )


def test_dynamic_rates_are_redrawn_each_round_and_repeat_with_the_seed():
    def rates(seed):
        return [record.rates for record in run(20, "a1-e1", 2, assignment="dynamic", seed=seed).records]

    first, second = rates(0)
    assert set(first.values()) == {1.0, 0.0625}
    assert first != second
    assert rates(0) == [first, second] != rates(1)


def test_capability_is_asked_once_for_each_node():
    grid = run(4, num_rounds=3, evaluation=Evaluation()).grid
    assert Counter(grid.partition_of(m) for m in grid.of("query.capability")) == dict.fromkeys(range(4), 1)


def test_a_nodes_own_level_wins_up_to_the_global_rate():
    node_config = {0: {"level": "e"}, 1: {"rate": 0.3}, 2: {"level": "a"}, 3: {}}
    assert run(4, "b1-c1", node_config=node_config.__getitem__).log.rates == {0: 0.0625, 1: 0.3, 2: 0.5, 3: 0.25}


def test_a_reported_capacity_counts_from_the_next_round_on():
    def shrink(message, context):
        return add_one(message, context, capacity="e")

    grid = run(app=make_app(odd={0: shrink}), num_rounds=3).grid
    rates = [m.content["config"]["rate"] for m in grid.of("train") if grid.partition_of(m) == 0]
    assert rates == [1.0, 0.0625, 0.0625]


def test_what_a_reply_says_of_its_classes_decides_whose_rows_count():
    def knows(labels):
        return lambda message, context: add_one(message, context, labels=labels)

    found = run(2, "a1", app=make_app(odd={0: knows([0, 1]), 1: knows([1, 3])}))
    gain = found.state["classifier.bias"] - found.strategy.federation.initial_state()["classifier.bias"]
    torch.testing.assert_close(gain, torch.tensor([1.0, 1.5, 0.0, 2.0]))


def test_running_statistics_neither_travel_nor_count():
    found = run(num_rounds=2, build=build_normed, evaluation=Evaluation())
    travelled = {name for message in found.grid.sent for name in message.content.array_records.get("arrays", ())}
    assert travelled == set(found.state) == {name for name, _ in build_normed(1.0).named_parameters()}
    assert found.log.failures == {}


def test_initial_arrays_may_hold_running_statistics():
    arrays = ArrayRecord(build_normed(1.0).state_dict())
    found = run(build=build_normed, initial_arrays=arrays)
    assert "norm.running_mean" in arrays
    assert "norm.running_mean" not in found.state


def test_the_order_of_replies_does_not_matter():
    one, two = (
        run(7, "a1-b1-c1", 3, grid=grid, evaluation=Evaluation(levels=True), stages=[Momentum(server_momentum=0.5)])
        for grid in (LocalGrid, Shuffled)
    )
    assert equal(one.state, two.state)
    assert equal(one.strategy.engine.chain.state(), two.strategy.engine.chain.state())
    assert untimed(one.strategy) == untimed(two.strategy)


@pytest.mark.parametrize("window", [1, 3, 100])
def test_a_window_changes_nothing(window):
    options = {"build": build_normed, "evaluation": Evaluation(levels=True)}
    one, two = (run(5, "a1-b1-c1", 2, wrap=wrap, **options) for wrap in (None, lambda grid: Windowed(grid, window)))
    assert equal(one.state, two.state)
    assert untimed(one.strategy) == untimed(two.strategy)
    assert equal(one.strategy.moment_tensors(), two.strategy.moment_tensors())


def test_slices_are_freed_after_the_round():
    with LocalGrid(make_app(), 4) as grid:
        strategy = HeteroFL(build, "a1-c1", evaluation=NEVER)
        messages = strategy.configure_train(1, ArrayRecord(strategy.federation.initial_state()), ConfigRecord(), grid)
        slices = [weakref.ref(message.content["arrays"]) for message in messages]
        strategy.aggregate_train(1, grid.send_and_receive(messages))
    del messages
    gc.collect()
    assert not any(ref() for ref in slices)


def test_training_metrics_are_means_weighted_by_examples():
    strategy = run(4).strategy
    # Partitions 0 to 3 report their number as loss and one example more.
    assert strategy.log.train == {"loss": pytest.approx((1 * 2 + 2 * 3 + 3 * 4) / 10)}
    assert strategy.log.train_by_level == {"a": {"loss": pytest.approx(2 / 3)}, "c": {"loss": pytest.approx(18 / 7)}}


def test_a_strategy_that_starts_again_begins_anew():
    app = make_app(odd={0: lambda message, context: add_one(message, context, capacity="e")})
    strategy = HeteroFL(build, "a1-c1", stages=[Momentum(server_momentum=0.9)], evaluation=NEVER)
    states = []
    for seed in (0, 1):  # the second grid has other node ids for the same partitions
        with LocalGrid(app, 3, seed=seed) as grid:
            states.append(strategy.start(grid, num_rounds=2).arrays.to_torch_state_dict())
    assert equal(*states)


def test_the_initial_model_depends_on_the_seed_alone_and_draws_nothing():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    states = [HeteroFL(build, seed=seed).federation.initial_state() for seed in (3, 3, 4)]
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])
    assert torch.equal(before, torch.get_rng_state())


def test_a_global_rate_below_one_is_the_mixs_largest():
    found = run(2, "c1-b1")
    config = found.grid.of("train")[1].content["config"]
    assert found.state["hidden.bias"].shape == (width(8, 0.5),)
    assert (config["rate"], config["global-rate"]) == (0.25, 0.5)


@pytest.mark.parametrize("number", ["3", 2.5, -1, None])
def test_a_number_of_rounds_is_an_integer(number):
    said = re.escape(f"num_rounds is {number!r}; expected an integer of 0 or more")
    with LocalGrid(make_app(), 2) as grid, pytest.raises(ConfigError, match=said):
        HeteroFL(build).start(grid, num_rounds=number)
    with pytest.raises(ConfigError, match=said):
        classic.HeteroFL(build, num_rounds=number)


@pytest.mark.parametrize("first_round", [0, 5])
def test_a_first_round_out_of_range_is_refused(first_round):
    with LocalGrid(make_app(), 2) as grid, pytest.raises(ConfigError, match=f"first_round is {first_round}"):
        HeteroFL(build).start(grid, num_rounds=3, first_round=first_round)


def test_a_run_that_goes_on_needs_what_it_had():
    with (
        LocalGrid(make_app(), 2) as grid,
        pytest.raises(ConfigError, match="give those that the run had after round 2"),
    ):
        HeteroFL(build).start(grid, num_rounds=3, first_round=3)


def test_initial_arrays_of_another_model_are_refused():
    arrays = ArrayRecord(Tiny(0.5).state_dict())
    with LocalGrid(make_app(), 2) as grid, pytest.raises(HeteroFLError, match=r"hidden.weight .* \(4, 3\)"):
        HeteroFL(build).start(grid, initial_arrays=arrays)


def test_clients_that_take_no_part_are_never_drawn(caplog):
    drawn = [set(record.rates) for record in run(8, "a1-x3", 6, fraction_train=0.5).records]
    assert all(len(own) == 1 for own in drawn)
    assert set.union(*drawn) == {0, 1}
    assert "not drawn" not in caplog.text


def test_who_takes_no_part_must_be_the_same_in_each_round():
    with pytest.raises(ConfigError, match="in the mix a1-x1 some clients take no part, always the same ones"):
        HeteroFL(build, "a1-x1", assignment="dynamic")
