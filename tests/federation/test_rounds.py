"""A round of the Message API on LocalGrid: who trains at which rate, on what, and what becomes of it."""

import gc
import time
import weakref
from functools import cache, partial

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord

from heterofl_flwr import Evaluation, HeteroFL, HeteroFLError, LocalGrid, Momentum, RoundCallback, elastic
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import ConfigError, RoundError, ShapeError
from heterofl_flwr.federation.callbacks import RunState
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.stages.server_stage import ServerStage
from heterofl_flwr.transport.compat import set_metadata
from tests.federation.tiny import Shuffled, Tiny, Watched, add_one, build, build_normed, equal, make_app, play, untimed


def run(nodes=2, mix="a1-c1", num_rounds=1, app=None, **options):
    start = {key: options.pop(key) for key in list(options) if key in ("initial_arrays", "train_config")}
    return play(app, mix, nodes, num_rounds, start=start, **options)


def test_levels_get_their_rate_and_share_one_record_each():
    grid = run(6, "a1-b1-c1").grid
    messages = grid.of("train")
    rates = {grid.partition_of(message): message.content["config"]["rate"] for message in messages}
    assert rates == {0: 1.0, 1: 1.0, 2: 0.5, 3: 0.5, 4: 0.25, 5: 0.25}
    records = {message.content["config"]["rate"]: id(message.content["arrays"]) for message in messages}
    assert len({id(message.content["arrays"]) for message in messages}) == len(set(records.values())) == 3
    assert [message.content["arrays"]["hidden.weight"].shape for message in messages[::2]] == [(8, 3), (4, 3), (2, 3)]


def test_every_message_has_a_config_of_its_own():
    asked = ConfigRecord({"epochs": 3})
    sent = run(3, train_config=asked, seed=5, num_rounds=2, learning_rate=0.1, milestones=[1]).grid.of("train")
    configs = [dict(message.content["config"]) for message in sent]
    assert len({id(message.content["config"]) for message in sent}) == 6
    assert asked == ConfigRecord({"epochs": 3})
    told = {"rate": 1.0, "global-rate": 1.0, "server-round": 1, "seed": 5, "partition": 0}
    assert configs[0] == told | {"rates": [1.0, 0.25], "heterofl-schema": 2, "epochs": 3, "lr": 0.1}
    assert [config["lr"] for config in configs] == [0.1] * 3 + [0.1 * 0.1] * 3


def sampled(seed, *, grid_seed=0, rounds=4):
    grid = run(10, fraction_train=0.3, seed=seed, num_rounds=rounds, grid=partial(Watched, seed=grid_seed)).grid
    return [
        [grid.partition_of(m) for m in grid.of("train") if m.content["config"]["server-round"] == server_round]
        for server_round in range(1, rounds + 1)
    ]


def test_the_sample_depends_on_seed_and_round_alone():
    assert sampled(0) == sampled(0, grid_seed=9) != sampled(1)
    assert len({tuple(sorted(partitions)) for partitions in sampled(0)}) > 1


def test_nodes_that_hold_no_rate_of_the_mix_are_not_drawn():
    node_config = [{"rate": 0.4}, {}, {"rate": 0.3}].__getitem__
    found = run(3, "a1-b1", 2, node_config=node_config, assignment="dynamic")
    assert [list(record.rates) for record in found.records] == [[1], [1]]


def test_a_nodes_own_level_wins_up_to_the_global_rate():
    node_config = {0: {"level": "e"}, 1: {"rate": 0.3}, 2: {"level": "a"}, 3: {}}
    assert run(4, "b1-c1", node_config=node_config.__getitem__).log.rates == {0: 0.0625, 1: 0.3, 2: 0.5, 3: 0.25}


def test_a_reported_capacity_counts_from_the_next_round_on():
    def shrink(message, context):
        return add_one(message, context, capacity="e")

    class Holders(ServerStage):
        def on_mean(self, new, holders, context):
            counts.append(context.holders("hidden.bias").tolist())
            return new

    counts = []
    grid = run(app=make_app(odd={0: shrink}), num_rounds=2, stages=[Holders()]).grid
    assert counts == [[2.0, 2.0, *[1.0] * 6], [2.0, 1.0, *[0.0] * 6]]  # SCAFFOLD divides by them
    rates = [m.content["config"]["rate"] for m in grid.of("train") if grid.partition_of(m) == 0]
    assert rates == [1.0, 0.0625]


@pytest.mark.parametrize("rule", ["prefix", "rolling", "random-level", "random-client"])
def test_a_stage_counts_the_holders_of_the_slices_of_its_round(rule):
    """Of slices that move, it got the counts of the first channels."""

    class Compares(ServerStage):
        def on_mean(self, new, holders, context):
            equal_counts.extend(torch.equal(holders(name), context.holders(name)) for name in new)
            return new

    equal_counts = []
    run(4, "b1-c1", num_rounds=3, stages=[Compares()], slice_rule=rule, global_rate="" if rule == "prefix" else "a")
    assert equal_counts
    assert all(equal_counts)


@pytest.mark.parametrize(
    ("level", "replied", "expected"),
    [("a", "e", [1.0, 0.0625, 0.0625]), (None, "e", [1.0, 0.0625, 0.0625]), ("e", "a", [0.0625, 1.0, 0.0625])],
)
def test_a_capacity_reported_in_a_reply_outlives_a_failure_if_it_is_smaller(level, replied, expected):
    nodes = {0: {"level": level} if level else {}, 1: {"level": "a"}}

    def report_then_fail(message, context):
        server_round = message.content["config"]["server-round"]
        if server_round == 2:
            raise RuntimeError("another reason")
        return add_one(message, context, capacity=replied if server_round == 1 else None)

    app = make_app(odd={0: report_then_fail})
    grid = run(2, "a1", app=app, num_rounds=3, node_config=nodes.__getitem__).grid
    rates = [m.content["config"]["rate"] for m in grid.of("train") if grid.partition_of(m) == 0]
    assert rates == expected


@pytest.mark.parametrize(("labels", "gained"), [("sent", [1.0, 1.5, 0.0, 2.0]), ("none", [1.5] * 4)])
def test_rows_count_for_the_classes_of_a_reply(labels, gained):
    def knows(labels):
        return lambda message, context: add_one(message, context, labels=labels)

    found = run(2, "a1", app=make_app(odd={0: knows([0, 1]), 1: knows([1, 3])}), labels=labels)
    gain = found.state["classifier.bias"] - found.before["classifier.bias"]
    torch.testing.assert_close(gain, torch.tensor(gained))


def test_running_statistics_neither_travel_nor_count():
    found = run(num_rounds=2, build=build_normed, evaluation=Evaluation())
    travelled = {name for message in found.grid.sent for name in message.content.array_records.get("arrays", ())}
    assert travelled == set(found.state) == {name for name, _ in build_normed(1.0).named_parameters()}
    assert found.log.failures == {}


def test_replies_are_added_by_one_thread_and_the_mean_is_made_by_all():
    threads = []

    class Counts(ServerStage):
        def on_reply(self, update, context):
            threads.append(torch.get_num_threads())
            return update

        def on_mean(self, new, holders, context):
            threads.append(torch.get_num_threads())
            return new

    with torch_threads(2):
        run(3, "a1", stages=[Counts()])
    assert threads == [1, 1, 1, 2]


def test_the_order_of_replies_does_not_matter():
    one, two = (
        run(7, "a1-b1-c1", 3, grid=grid, evaluation=Evaluation(levels=True), stages=[Momentum(server_momentum=0.5)])
        for grid in (LocalGrid, Shuffled)
    )
    assert equal(one.state, two.state)
    assert equal(one.strategy.chain.state(), two.strategy.chain.state())
    assert untimed(one.strategy) == untimed(two.strategy)


def test_slices_are_freed_after_the_round():
    with LocalGrid(make_app(), 4) as grid:
        strategy = HeteroFL(build, "a1-c1", evaluation=Evaluation(every=0))
        messages = strategy.configure_train(
            1, ArrayRecord(strategy.federation.architecture.initial_state()), ConfigRecord(), grid
        )
        slices = [weakref.ref(message.content["arrays"]) for message in messages]
        strategy.aggregate_train(1, grid.send_and_receive(messages))
    del messages
    gc.collect()
    assert not any(ref() for ref in slices)


def test_a_strategy_that_starts_again_begins_anew():
    app = make_app(odd={0: lambda message, context: add_one(message, context, capacity="e")})
    strategy = HeteroFL(build, "a1-c1", stages=[Momentum(server_momentum=0.9)], evaluation=Evaluation(every=0))
    states = []
    for seed in (0, 1):  # the second grid has other node ids for the same partitions
        with LocalGrid(app, 3, seed=seed) as grid:
            states.append(strategy.start(grid, num_rounds=2).arrays.to_torch_state_dict())
    assert equal(*states)


def test_clients_that_take_no_part_are_never_drawn(caplog):
    drawn = [set(record.rates) for record in run(8, "a1-x3", 6, fraction_train=0.5).records]
    assert all(len(own) == 1 for own in drawn)
    assert set.union(*drawn) == {0, 1}
    assert "not drawn" not in caplog.text


def test_where_all_clients_are_idle_the_error_says_so():
    with pytest.raises(RoundError, match="none of 3 clients can train, as all of them are in the idle part of the mix"):
        run(3, "a1-x3", node_config=lambda partition: {"partition-id": 1 + partition, "num-partitions": 4})


class Fails(RoundCallback):
    def on_round_end(self, progress):
        raise OSError("the round cannot be stored")

    def on_error(self):
        raise OSError("the error cannot be stored")


def test_each_callback_learns_of_an_error_and_the_runs_own_error_is_raised(caplog):
    class Hears(RoundCallback):
        heard = 0

        def on_error(self):
            self.heard += 1

    hears = Hears()
    with pytest.raises(OSError, match="the round cannot be stored"):
        run(callbacks=[Fails(), hears])
    assert hears.heard == 1
    assert "Fails.on_error failed" in caplog.text


def infinite():
    state = build(1.0).state_dict()
    state["hidden.bias"][0] = torch.inf
    return ArrayRecord(state)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        *(({"num_rounds": own}, f"num_rounds is {own!r}; expected an integer of 0 or more") for own in ("3", -1, None)),
        ({"num_rounds": 3, "timeout": None}, "timeout is None; expected a number of seconds"),
        ({"num_rounds": 3, "resume": RunState(server_round=4, state={})}, "after round 4; expected num_rounds"),
        ({"initial_arrays": ArrayRecord(Tiny(0.5).state_dict())}, r"hidden.weight .* \(4, 3\)"),
        *(
            ({"num_rounds": 3, "resume": own}, f"resume is of type {type(own).__name__}; expected the state of a run")
            for own in ("runs/a", {"server_round": 1})
        ),
        *(
            ({"resume": RunState(server_round=1, state=state)}, f"state is of type {type(state).__name__}; expected")
            for state in (ArrayRecord(Tiny(1.0).state_dict()), {"hidden.weight": np.zeros(3)}, [torch.zeros(3)])
        ),
        ({"initial_arrays": infinite()}, r"not usable: hidden\.bias contains NaN or infinity; .* initial_arrays"),
        ({"evaluate_fn": lambda *_: 0.5}, "evaluate_fn returned 0.5; expected a MetricRecord, or None"),
        (
            {"evaluate_fn": lambda *_: {"accuracy": torch.tensor(0.5)}},  # it was in no record
            r"evaluate_fn returned tensor\(0.5000\) as accuracy; expected a number",
        ),
        ({"initial_arrays": build(1.0).state_dict()}, "initial_arrays is of type OrderedDict; expected an ArrayRecord"),
    ],
)
def test_a_run_that_cannot_start_says_why(start, said):
    with LocalGrid(make_app(), 2) as grid, pytest.raises(HeteroFLError, match=said):
        HeteroFL(build).start(grid, **start)


def test_a_resumed_run_has_its_data_in_as_many_parts():
    state = run(num_rounds=2).progress[-1]
    assert state.dealt == 2
    with pytest.raises(RoundError, match=r"data in 3 parts, and the clients of the resumed run had them in 2: start 2"):
        play(None, "a1-c1", 3, 3, start={"resume": state})


@pytest.mark.parametrize("found", ["fast", -0.1, float("nan"), None])
def test_a_schedule_that_gives_no_learning_rate_is_named(found):
    with pytest.raises(ConfigError, match=rf"learning_rate\(1\) returned {found!r}; expected a number of 0 or more"):
        play(learning_rate=lambda _: found)


def test_a_schedule_may_give_a_number_of_numpy():
    assert play(learning_rate=lambda _: np.float32(0.25)).log.learning_rate == 0.25


def test_a_round_of_clients_that_count_no_example_fails():
    def zero(message, context):
        return (task := Task(message, context, build)).reply(task.model(), num_examples=0)

    with pytest.raises(RoundError, match=r"round 1: all replies \(3\) report 0 examples"):
        play(make_app(zero))


def untrained(message, context):
    task = Task(message, context, build)
    return task.reply(task.model(), num_examples=3)


def wrong_clock(message, context, seconds):
    reply = add_one(message, context)
    set_metadata(reply, created_at=time.time() + seconds)
    return reply


@pytest.mark.parametrize(
    ("train", "upload", "remark"),
    [(partial(wrong_clock, seconds=60), "float32", "over 2 s ahead of the server's")]
    + [(partial(wrong_clock, seconds=-600), "float32", "over 2 s behind the server's")]
    + [(untrained, upload, "trained nothing") for upload in ("float32", "float16", "int8")],
)
def test_an_unusual_reply_is_named_once(train, upload, remark, caplog):
    play(make_app(odd={1: train}), num_rounds=3, upload=upload)
    (line,) = [line for line in caplog.messages if remark in line and line.startswith("round")]
    assert "partition 1 " in line


def test_a_level_that_nobody_can_train_any_more_is_warned_of(caplog):
    play(make_app(partial(add_one, capacity="b")), "a1-b1", nodes=4, num_rounds=3)
    (line,) = [line for line in caplog.messages if "never trained" in line]
    assert "32 of its 68 parameters" in line


def test_a_build_for_which_the_seed_means_nothing_is_warned_of(caplog):
    play(nodes=2)
    assert "seed" not in caplog.text
    for number, constant in enumerate((cache(build), elastic(build(1.0), torch.zeros(2, 3))), 1):
        play(make_app(build=constant), nodes=2, build=constant)
        assert caplog.text.count("seed=0 does not draw the first model") == number


def test_initial_arrays_of_a_model_with_more_layers_are_refused():
    """As ``load_state_dict`` does; buffers may be there."""
    state = build_normed(1.0).state_dict()
    assert not play(build=build_normed, start={"initial_arrays": ArrayRecord(state)}).log.failures
    more = ArrayRecord({**state, "layer4.weight": torch.zeros(2)})
    with pytest.raises(ShapeError, match=r"has layer4\.weight, which the model of build lacks: leave these out"):
        play(build=build_normed, start={"initial_arrays": more})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_initial_arrays_of_another_type_are_converted_for_every_level(dtype):
    state = {name: parameter.detach().half() for name, parameter in build(1.0).named_parameters()}
    runs = [
        play(nodes=4, start={"initial_arrays": ArrayRecord({name: tensor.to(kind) for name, tensor in state.items()})})
        for kind in (dtype, torch.float32)
    ]
    assert not runs[0].log.failures
    assert equal(runs[0].state, runs[1].state)
