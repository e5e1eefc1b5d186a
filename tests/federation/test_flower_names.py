"""The arguments of Flower's FedAvg do here what they do there."""

from dataclasses import fields
from inspect import signature

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedProx
from pydantic.fields import FieldInfo

from heterofl_flwr import Evaluation, FedH2L, HeteroFL, classic
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.options import Averaging, Options, Sampling, Transfer
from tests.federation import tiny
from tests.federation.tiny import Watched, add_one, bare_reply, build, build_normed, config, equal, make_app, play


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
    for strategy in (FedAvg(**options), HeteroFL(build, "a1", weights="examples", **options, **(ours or {}))):
        arrays = ArrayRecord(HeteroFL(build, "a1").federation.initial_state())
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


@pytest.mark.parametrize("key", ["num-examples", "weight"])
def test_one_level_is_fedavg_whichever_key_weights(key):
    (theirs, *_), (ours, *_) = both(weighted_by_key=key)
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


@pytest.mark.parametrize("static", [False, True])
def test_records_under_other_names_give_the_same_model(static):
    models = build_normed if static else build
    states, evaluated = [], []
    for names in ({}, {"arrayrecord_key": "model", "configrecord_key": "settings"}):
        options = {"upload": "int8" if static else "float32", "evaluation": Evaluation(), **names}
        found = play(None, "a1-c1", 4, 2, build=models, **options)
        states.append(found.state)
        sent = [*found.grid.of("train"), *found.grid.of("evaluate")]
        evaluated.append(found.log.evaluate)
        assert found.log.failures == found.log.evaluate_failures == {}
    assert equal(*states)
    assert evaluated[0] == evaluated[1]
    for message in sent:
        assert isinstance(message.content["model"], ArrayRecord)
        assert isinstance(message.content["settings"], ConfigRecord)
        assert {"arrays", "config"}.isdisjoint(message.content)


def test_replies_are_read_under_any_name_of_their_records():
    def train(message, context):
        answer = add_one(message, context)
        answer.content["model"] = answer.content.pop("arrays")
        answer.content["settings"] = answer.content.pop("config")
        return rename(answer)

    def rename(answer):
        answer.content["numbers"] = answer.content.pop("metrics")
        return answer

    log = play(make_app(train, lambda *asked: rename(tiny.judge(*asked))), "a1-c1", 4, evaluation=Evaluation()).log
    assert (log.failures, log.evaluate_failures) == ({}, {})
    assert log.train["loss"] > 0
    assert log.evaluate["local-accuracy"] > 0


@pytest.mark.parametrize("which", ["train_config", "evaluate_config"])
@pytest.mark.parametrize("key", ["clip", "seed", "shared", "upload", "window"])
def test_a_users_config_cannot_have_keys_of_ours(which, key):
    with pytest.raises(ConfigError, match=f"has {key}: .* choose another name, as my-{key}"):
        play(make_app(), start={which: ConfigRecord({"lr": 0.1, key: 1.0})})


@pytest.mark.parametrize(
    ("strategy", "name", "remedy"),
    [
        (HeteroFL, "fraction_fit", "use fraction_train"),
        (HeteroFL, "noise", r"use privacy=Privacy\(noise=...\)"),
        (HeteroFL, "proximal", r"did you mean proximal_mu\?"),
        (HeteroFL, "zebra", "it has build, mix, assignment, global_rate"),
        (FedH2L, "privacy", "it exchanges posteriors, and no parameters"),
        (classic.HeteroFL, "fraction_train", "use fraction_fit"),
        (classic.HeteroFL, "upload", r"use heterofl_flwr\.HeteroFL"),
    ],
)
def test_an_unknown_argument_raises_an_error_with_the_right_one(strategy, name, remedy):
    with pytest.raises(TypeError, match=f"{strategy.__name__} has no argument {name}: {remedy}"):
        strategy(build, **{name: 1})


@pytest.mark.parametrize("kind", [HeteroFL, FedH2L, classic.HeteroFL])
def test_the_signature_shows_every_argument_with_its_default(kind):
    shown = {name: own.default for name, own in signature(kind).parameters.items() if own.kind is own.KEYWORD_ONLY}
    groups = (Sampling, Transfer, Averaging, Options)
    defaults = {
        own.name: own.default.default if isinstance(own.default, FieldInfo) else own.default
        for group in groups
        for own in fields(group)
    }
    assert not {own for own in signature(kind).parameters.values() if own.kind in (own.VAR_KEYWORD, own.VAR_POSITIONAL)}
    assert {name: shown[name] for name in defaults.keys() & shown} == {
        name: defaults[name] for name in defaults.keys() & shown
    }
    if kind is HeteroFL:
        assert defaults.keys() - {"sampling", "transfer", "averaging", "counts_examples"} <= shown.keys()


def test_clients_are_sent_fedproxs_weight_as_flower_sends_it():
    def prox(strategy):
        with Watched(make_app(plain_train, plain_evaluate), 2) as grid:
            strategy.start(grid, ArrayRecord(build(1.0).state_dict()), num_rounds=1)
        return [message.content["config"].get("proximal-mu") for message in grid.of("train")]

    assert prox(HeteroFL(build, "a1", proximal_mu=0.25)) == prox(FedProx(proximal_mu=0.25)) == [0.25, 0.25]
    assert prox(HeteroFL(build, "a1")) == [None, None]
