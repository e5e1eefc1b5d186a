"""Clients that lie about their metrics: how far one of them moves what a run reports and decides by."""

import math
from pathlib import Path

import pytest
from flwr.app import MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr import Evaluation, Limits
from heterofl_flwr.client import reply, submodel
from heterofl_flwr.data import load_dataset, split_dataset
from heterofl_flwr.federation.evaluation import example_bound, medians, weighted_means
from heterofl_flwr.federation.limits import read_numbers
from heterofl_flwr.report import EarlyStopping, Recorder
from tests.federation import tiny
from tests.federation.tiny import build, make_app

HONEST = {"global-accuracy": 0.9, "local-accuracy": 0.8, "global-loss": 0.5, "accuracy": 93.2}
LIAR = 3
PAGE = Path(__file__).parents[2] / "docs" / "explain" / "hostile.md"


def lying(metrics=None, number=10, rounds=(1, 2, 3, 4)):
    """Return an evaluation in which the liar says something of its own in some rounds; all others improve slowly."""

    def evaluate(message, context):
        server_round = message.content["config"]["server-round"]
        if context.node_config["partition-id"] == LIAR and server_round in rounds:
            return reply(message, num_examples=number, metrics={**HONEST, **(metrics or {})})
        gain = 0.01 * (server_round - 1)
        own = {name: value - gain if "loss" in name else value + gain for name, value in HONEST.items()}
        return reply(message, num_examples=10, metrics=own)

    return evaluate


def play(evaluate, num_rounds=1, nodes=5, callbacks=(), **options):
    options = {"evaluation": Evaluation(), "callbacks": callbacks, **options}
    found = tiny.play(make_app(evaluate=evaluate), "a1", nodes, num_rounds, **options)
    return found.log, found.result


def test_a_client_that_claims_ten_million_examples_weighs_ten_at_most(caplog):
    record, _ = play(lying({"global-accuracy": 0.0}, number=10_000_000), num_rounds=2)
    assert record.evaluate["global-accuracy"] == pytest.approx(0.91 * 4 / 14)
    assert record.evaluate_medians["global-accuracy"] == pytest.approx(0.91)
    (said,) = [line for line in caplog.messages if "10,000,000" in line]  # once, and not in each round
    assert f"partition {LIAR}" in said


@pytest.mark.parametrize(("ratio", "mean"), [(10.0, 0.426), (3.0, 0.675), (1.0, 0.81), (0.0, 0.0)])
def test_the_page_says_how_far_one_of_ten_clients_moves_a_mean(ratio, mean):
    lie = lying({"global-accuracy": 0.0}, number=10_000_000)
    record, _ = play(lie, nodes=10, limits=Limits(examples_ratio=ratio))
    assert record.evaluate["global-accuracy"] == pytest.approx(mean, abs=5e-4)
    assert record.evaluate_medians["global-accuracy"] == 0.9
    assert f"{100 * mean:.1f} %" in PAGE.read_text()


def test_training_metrics_are_capped_alike_in_the_run_and_in_its_level():
    def train(message, context):
        model = submodel(message, build)
        return reply(message, model, num_examples=10_000_000, metrics={"loss": 0.0})

    def honest(message, context):
        return reply(message, submodel(message, build), num_examples=10, metrics={"loss": 1.0})

    log = tiny.play(make_app(honest, odd={LIAR: train}), nodes=5).log
    assert log.train == {"loss": pytest.approx(4 / 14)}
    assert log.train_by_level == {"a": {"loss": pytest.approx(4 / 14)}}


def test_sizes_that_do_not_differ_more_count_in_full_to_the_bit():
    numbers = [3, 10, 17, 99, 100]
    assert example_bound(numbers, 10.0) == 170.0
    said = [(float(number), {"x": 0.1 * number}) for number in numbers]
    bound = example_bound(numbers, 10.0)
    assert weighted_means([(min(number, bound), own) for number, own in said]) == weighted_means(said)


@pytest.mark.parametrize("kind", ["iid", "non-iid-2", "rotated-15"])
def test_no_client_of_the_papers_splits_is_capped(kind):
    parts = split_dataset(load_dataset("digits"), kind, 20, seed=0)
    for rows in (parts.train, parts.test):
        sizes = [len(own) for own in rows]
        assert max(sizes) <= example_bound(sizes, Limits().examples_ratio)


@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_where_nobody_has_examples_nothing_is_capped(sizes):
    assert example_bound(sizes, 10.0) == math.inf


EXAMPLES = st.integers(1, 10_000_000)
SHARE = st.floats(0, 1)


@given(
    st.lists(st.tuples(EXAMPLES, SHARE), min_size=1, max_size=12),
    EXAMPLES,
    SHARE,
    st.sampled_from([1.0, 3.0, 10.0]),
)
def test_one_client_moves_a_mean_of_shares_by_no_more_than_its_weight(others, number, value, ratio):
    bound = example_bound([number, *(own for own, _ in others)], ratio)
    capped = [(min(own, bound), {"x": said}) for own, said in others]
    mean = weighted_means([*capped, (min(number, bound), {"x": value})])["x"]
    most = ratio / (ratio + (len(others) + 1) // 2)
    assert abs(mean - weighted_means(capped)["x"]) <= most + 1e-9


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(-1e30, 1e30), EXAMPLES)
def test_one_client_moves_a_median_no_further_than_the_others_reach(others, value, number):
    (median,) = medians([*((1.0, {"x": own}) for own in others), (float(number), {"x": value})]).values()
    assert min(others) <= median <= max(others)


@pytest.mark.parametrize("name", ["global-accuracy", "local-accuracy/0.25", "worst-accuracy", "cnn/local-accuracy"])
def test_an_accuracy_that_is_no_share_is_dropped_and_its_client_named(name, caplog):
    for value in (7.0, -0.1, 1e30, math.nan, math.inf):
        found = read_numbers([(name, value), ("top", 7.0)], "node 17")
        assert math.isnan(found[name])
        assert found["top"] == 7.0
    assert "node 17 sent" in caplog.text
    assert "expected 0 to 1" in caplog.text


def test_an_accuracy_that_is_a_share_counts(caplog):
    for value in (0, 1, 0.0, 0.5, 1.0):
        assert read_numbers([("global-accuracy", value)], "node 17") == {"global-accuracy": value}
    assert not caplog.text


@pytest.mark.parametrize("value", [7.0, math.nan])
def test_a_false_accuracy_is_in_no_mean_and_never_the_worst(value):
    record, _ = play(lying({"global-accuracy": value, "local-accuracy": -value}))
    assert record.evaluate["global-accuracy"] == pytest.approx(0.9)
    assert record.evaluate["local-accuracy"] == pytest.approx(0.8)
    assert record.evaluate["worst-accuracy"] == 0.8
    assert record.worst_client == 0


def test_a_converted_apps_accuracy_in_percent_counts_as_it_is(caplog):
    record, _ = play(lying(rounds=()))
    assert record.evaluate["accuracy"] == pytest.approx(93.2)
    assert record.comparable["accuracy"] == 93.2
    assert "counts in no mean" not in caplog.text


def test_the_middle_of_clients_that_measured_stands_beside_the_mean():
    def evaluate(message, context):
        number = context.node_config["partition-id"]
        metrics = {"loss": [1.0, 2.0, 4.0, math.nan, 100.0][number], "local-accuracy": 1.0}
        return reply(message, num_examples=0 if number == 4 else 1 + number, metrics=metrics)

    record, _ = play(evaluate)
    assert record.evaluate["loss"] == pytest.approx((1 + 2 * 2 + 3 * 4) / 6)
    assert record.evaluate_medians == {"loss": 2.0, "local-accuracy": 1.0}


LIES = [
    ("global-loss", {"global-loss": -1e30}),
    ("accuracy", {"accuracy": 1e30}),
    ("global-accuracy", {"global-accuracy": 1e30}),
]


@pytest.mark.parametrize(("metric", "lie"), LIES)
def test_a_huge_metric_in_one_round_does_not_stop_the_run_nor_freeze_its_best_round(metric, lie, tmp_path):
    stopping, recorder = EarlyStopping(metric, patience=2), Recorder(tmp_path / "run", metric=metric)
    _, result = play(lying(lie, rounds=(1,)), num_rounds=4, callbacks=[recorder, stopping])
    assert list(result.evaluate_metrics_clientapp) == [1, 2, 3, 4]
    assert recorder.best.server_round == 4


@pytest.mark.parametrize(("metric", "lie"), LIES)
def test_a_huge_metric_does_not_reach_the_target(metric, lie):
    target = EarlyStopping(metric, patience=None, target=0.1 if "loss" in metric else 100.0)
    _, result = play(lying(lie), num_rounds=2, callbacks=[target])
    assert list(result.evaluate_metrics_clientapp) == [1, 2]


def test_what_the_server_or_the_users_own_function_finds_decides_in_place_of_the_middle(tmp_path):
    def largest(contents, key):
        return MetricRecord({"global-loss": max(content["metrics"]["global-loss"] for content in contents)})

    record, _ = play(lying({"global-loss": 3.0}), evaluate_metrics_aggr_fn=largest)
    assert record.comparable["global-loss"] == 3.0
    assert record.comparable["accuracy"] == record.evaluate_medians["accuracy"]
    central = {"evaluate_fn": lambda number, arrays: MetricRecord({"global-loss": 9.0})}
    assert play(lying(), nodes=2, start=central)[0].comparable["global-loss"] == 9.0
