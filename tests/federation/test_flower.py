"""The arguments of Flower's FedAvg do here what they do there; Flower's own loop, wrappers and mods."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.serverapp import strategy as flowers

from heterofl_flwr import Averaging, Evaluation, HeteroFL, LocalGrid, Momentum, Training
from heterofl_flwr.client import Task, answer_queries
from heterofl_flwr.common.errors import ConfigError
from tests.federation import tiny
from tests.federation.grouped import grouped
from tests.federation.tiny import Watched, bare_reply, build, build_normed, config, make_app, play


def plain_train(message, context):
    """Train for any strategy: add one more than the partition, whatever the names of the records."""
    partition = context.node_config["partition-id"]
    (state,) = message.content.array_records.values()
    state = {name: tensor + 1 + partition for name, tensor in state.to_torch_state_dict().items()}
    return bare_reply(message, arrays=ArrayRecord(state), metrics=said(partition), config=config())


def plain_evaluate(message, context):
    return bare_reply(message, metrics=said(context.node_config["partition-id"]), config=config())


def said(partition):
    return MetricRecord({"num-examples": 1 + partition, "weight": float(10 - partition), "loss": 0.5 * partition})


def both(nodes=5, num_rounds=2, ours=None, **options):
    """Return what Flower's FedAvg and ours of one full-size level give with the same arguments."""
    results = []
    for strategy in (
        flowers.FedAvg(**options),
        HeteroFL(build, "a1", averaging=Averaging(weights="examples"), **grouped(options), **grouped(ours or {})),
    ):
        arrays = ArrayRecord(HeteroFL(build, "a1").federation.architecture.initial_state())
        with Watched(make_app(plain_train, plain_evaluate), nodes) as grid:
            result = strategy.start(grid, arrays, num_rounds=num_rounds)
            results.append((result, grid.of("train"), grid.of("evaluate")))
    return results


def test_metrics_functions_get_what_flower_gives_them():
    seen = []

    def largest(records, key):
        found = sorted((record["metrics"][key], record["metrics"]["loss"]) for record in records)
        seen.append((found, key))
        return MetricRecord({"largest": max(loss for _, loss in found), "all": [loss for _, loss in found]})

    options = {"train_metrics_aggr_fn": largest, "evaluate_metrics_aggr_fn": largest}
    (theirs, *_), (ours, *_) = both(**options)
    assert seen[:4] == seen[4:]
    assert ours.train_metrics_clientapp == theirs.train_metrics_clientapp
    assert ours.evaluate_metrics_clientapp == theirs.evaluate_metrics_clientapp
    assert ours.train_metrics_clientapp[2] == {"largest": 2.0, "all": [0.0, 0.5, 1.0, 1.5, 2.0]}


def test_lists_that_no_function_gets_are_warned_of_once(caplog):
    def train(message, context):
        task = Task(message, context, build)
        return task.reply(task.model(), num_examples=1, metrics={"hits": [1, 2], "loss": 1.0})

    app = make_app(train)
    found = play(app, num_rounds=2, evaluation=Evaluation(every=0), evaluate_metrics_aggr_fn=lambda *_: None)
    assert found.log.train == {"loss": 1.0}
    assert caplog.text.count("lists as metrics (['hits']), which are left out: only a function in train_metrics") == 1


@pytest.mark.parametrize("name", ["train_metrics_aggr_fn", "evaluate_metrics_aggr_fn", "evaluate_fn", "should_stop"])
def test_a_function_of_other_arguments_is_an_error_before_training(name):
    """As those of the classic API: ``evaluate_fn(server_round, parameters, config)``, ``weighted_average(metrics)``."""
    where, called = "start" if name in ("evaluate_fn", "should_stop") else "options", []
    app = make_app(lambda *_: called.append(1))
    for function in (lambda metrics: None, lambda server_round, parameters, config: None):
        options = {name: function}
        with pytest.raises(ConfigError, match=rf"{name} is called as {name}\(\w+, \w+\), which fails: "):
            play(app, start=options) if where == "start" else play(app, **options)
    assert not called


def test_metrics_functions_may_return_nothing():
    options = {"train_metrics_aggr_fn": lambda *_: None, "evaluate_metrics_aggr_fn": lambda *_: None}
    (theirs, *_), (ours, *_) = both(**options)
    assert ours.train_metrics_clientapp == theirs.train_metrics_clientapp == {}
    assert ours.evaluate_metrics_clientapp == theirs.evaluate_metrics_clientapp == {}


def test_one_level_is_fedavg():
    (theirs, *_), (ours, *_) = both()
    assert ours.train_metrics_clientapp[2] == pytest.approx(dict(theirs.train_metrics_clientapp[2]))
    expected, found = (one.arrays.to_torch_state_dict() for one in (theirs, ours))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize(
    ("fraction", "least", "nodes"), [(0.5, 2, 5), (0.2, 4, 5), (0.3, 1, 5), (1.0, 3, 5), (0.29, 0, 100)]
)
def test_as_many_take_part_as_with_fedavg(fraction, least, nodes):
    options = {"fraction_train": fraction, "fraction_evaluate": fraction, "min_train_nodes": least}
    options["min_evaluate_nodes"] = least + 1
    (_, *theirs), (_, *ours) = both(nodes, 1, **options)
    assert [len(sent) for sent in ours] == [len(sent) for sent in theirs]


@pytest.mark.parametrize("which", ["train_config", "evaluate_config"])
@pytest.mark.parametrize("key", ["client-stages", "heterofl-schema", "seed", "shared", "upload", "window"])
def test_a_users_config_cannot_have_keys_of_ours(which, key):
    with pytest.raises(ConfigError, match=f"has {key}, .* choose another name, such as my-{key}"):
        play(make_app(), start={which: ConfigRecord({"lr": 0.1, key: 1.0})})


@pytest.mark.parametrize(("key", "option"), [("lr", {"learning_rate": 0.2}), ("proximal-mu", {"proximal_mu": 0.1})])
def test_a_users_config_cannot_have_what_the_strategy_sends(key, option):
    with pytest.raises(ConfigError, match=f"has {key}, but the strategy itself sends values by that name"):
        play(make_app(), start={"train_config": ConfigRecord({key: 1.0})}, **option)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("fraction_fit", "use fraction_train"),
        ("proximal_mu", r"use training=Training\(proximal_mu=...\)"),
        ("fractoin_train", r"did you mean fraction_train\?"),
        ("learning_rat", r"use training=Training\(learning_rate=...\)"),
        ("train_config", r"use start\(train_config=...\)"),
        ("resume", r"use start\(resume=...\)"),
        ("weighted_by_key", "leave it out: the number of examples is num-examples"),
        ("zebra", "it has build, mix, fraction_train"),
        ("extra", "it has build, mix, fraction_train"),  # not eta of a server optimiser
    ],
)
def test_an_unknown_argument_raises_an_error_with_the_right_one(name, remedy):
    with pytest.raises(TypeError, match=f"HeteroFL has no argument {name}: {remedy}"):
        HeteroFL(build, **{name: 1})


def test_a_misspelt_option_of_a_group_is_answered_with_the_nearest():
    with pytest.raises(TypeError, match=r"Training: unexpected keyword argument, learning_rat; did you mean learning_"):
        Training(learning_rat=0.1)


def test_clients_are_sent_fedproxs_weight_as_flower_sends_it():
    def prox(strategy):
        with Watched(make_app(plain_train, plain_evaluate), 2) as grid:
            strategy.start(grid, ArrayRecord(build(1.0).state_dict()), num_rounds=1)
        return [message.content["config"].get("proximal-mu") for message in grid.of("train")]

    assert (
        prox(HeteroFL(build, "a1", training=Training(proximal_mu=0.25)))
        == prox(flowers.FedProx(proximal_mu=0.25))
        == [0.25, 0.25]
    )
    assert prox(HeteroFL(build, "a1")) == [None, None]


def app_with(mod, build=build):
    """Return an app whose mod works on training alone; queries carry no parameters to clip."""
    app = ClientApp()
    app.train(mods=[mod])(lambda message, context: tiny.add_one(message, context, build=build))
    app.evaluate()(lambda message, context: tiny.judge(message, context, build=build))
    answer_queries(app, build, data=lambda context: [tiny.inputs(context.node_config["partition-id"])])
    return app


def initial(strategy):
    return ArrayRecord(strategy.federation.architecture.initial_state())


def test_flowers_own_loop_gives_the_same_model():
    states = []
    for start in (HeteroFL.start, flowers.Strategy.start):
        with LocalGrid(make_app(build=build_normed), 5) as grid:
            strategy = HeteroFL(build_normed, "a1-b1-c1", stages=[Momentum(server_momentum=0.5)])
            result = start(strategy, grid, initial(strategy), 3)
            states.append((result.arrays.to_torch_state_dict(), result.evaluate_metrics_clientapp))
    assert tiny.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_fixed_clipping_on_clients_bounds_their_changes():
    """The noise is switched off here: its scale assumes that all clients hold every entry, which is not so."""
    with Watched(app_with(fixedclipping_mod, build_normed), 4) as grid:
        inner = HeteroFL(build_normed, "a1-c1", training=Training(learning_rate=lambda server_round: 0.1))
        strategy = flowers.DifferentialPrivacyClientSideFixedClipping(
            inner, noise_multiplier=0.0, clipping_norm=0.25, num_sampled_clients=4
        )
        first = initial(inner)
        result = strategy.start(grid, first, num_rounds=2)
        configs = [message.content["config"] for message in grid.of("train")]
    assert {(config["rate"], config["clipping_norm"]) for config in configs} == {(1.0, 0.25), (0.25, 0.25)}
    old, new = first.to_torch_state_dict(), result.arrays.to_torch_state_dict()
    change = torch.cat([(new[name] - old[name]).flatten() for name in new])
    # In each round two regions, held by four and by two clients, each move by a mean of changes of at most 0.25.
    assert 0.01 < change.norm() <= 2 * 0.25 * 2**0.5 + 1e-5
    assert list(result.evaluate_metrics_clientapp) == [1, 2]


def test_noise_on_the_clients_runs_with_slices():
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=10.0, delta=1e-5)
    found = play(app_with(mod), "a1-c1", 4)
    assert found.log.failures == {}
    assert all(tensor.isfinite().all() for tensor in found.state.values())


def whole_model(message, context, **records):
    """Answer as an app of Flower's own does that trains a model of its own size."""
    arrays = ArrayRecord(build(1.0).state_dict())
    return bare_reply(message, arrays=arrays, metrics=MetricRecord({"num-examples": 1}), **records)


def load_whole(message, context):
    build(1.0).load_state_dict(message.content["arrays"].to_torch_state_dict())


@pytest.mark.parametrize(
    ("train", "fault"), [(whole_model, "sent the whole model, expected the slice"), (load_whole, "size mismatch")]
)
def test_a_client_that_is_not_converted_is_refused(train, fault):
    failure = play(make_app(odd={1: train}), "a1-c1", 2).log.failures[1]
    assert fault in failure
    assert "its ClientApp is not converted: let it call answer_queries" in failure
