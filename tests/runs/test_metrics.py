import math
from dataclasses import replace

import pytest

from heterofl_flwr.runs.metrics import deviation, mean
from heterofl_flwr.runs.scores import headline, headline_kind, is_better, scores, seconds_to


def test_what_is_not_a_number_loses_to_everything():
    assert not is_better(math.nan, None, "max")
    assert is_better(0.1, math.nan, "max")
    assert is_better(0.1, None, "min")
    assert not is_better(0.1, 0.1, "max")


@pytest.mark.parametrize(
    ("values", "means"),
    [
        ([], (None, None)),
        ([2.0], (2.0, None)),
        ([1.0, 3.0], (2.0, 2**0.5)),
        ([1.0, math.inf], (math.inf, math.nan)),
        ([math.inf, -math.inf], (math.nan, math.nan)),
    ],
)
def test_values_of_runs_that_diverged_have_a_mean_too(values, means):
    assert (mean(values), deviation(values)) == pytest.approx(means, nan_ok=True)


@pytest.mark.parametrize(
    ("evaluate", "kind", "name"),
    [
        ({"local-accuracy": 1, "global-loss": 1, "global-accuracy": 1}, "accuracy", "global-accuracy"),
        ({"global-accuracy": 1, "local-accuracy": 1, "global-perplexity": 1}, "perplexity", "global-perplexity"),
        ({"perplexity": 1, "global-loss": 1}, "perplexity", "perplexity"),
        ({"global-loss": 1}, "loss", "global-loss"),
        ({"coverage": 1, "test-loss": 1}, "loss", "test-loss"),
        ({}, "accuracy", ""),
    ],
)
def test_the_headline_is_perplexity_else_accuracy_else_loss(record, evaluate, kind, name):
    one = replace(record(1), evaluate=evaluate, evaluate_by_level={})
    assert headline_kind([one]) == kind
    assert headline([one]) == name


@pytest.mark.parametrize(
    ("name", "best"),
    [
        *(("global-loss", 0.1), ("perplexity", 0.1), ("calibration-error", 0.1), ("global-accuracy", 0.3), ("f1", 0.3)),
        *(("rmse", 0.1), ("val-mae", 0.1), ("mape", 0.1), ("test-nll", 0.1)),
    ],
)
def test_the_best_value_is_the_smallest_of_errors_and_the_largest_of_other_metrics(record, name, best):
    records = [replace(record(number), evaluate={name: value}) for number, value in enumerate((0.2, 0.1, 0.3), 1)]
    (score,) = scores(records)
    assert score.best == best


def test_the_best_loss_is_that_of_the_median_client(record):
    values = [(0.5, 3.0, -1e30), (0.7, 2.0, 9.0), (0.6, 2.5, 1.0)]
    records = [
        replace(
            record(number),
            evaluate={"global-accuracy": one, "global-loss": mean},
            evaluate_medians={"global-accuracy": 0.1 * number, "global-loss": median},
        )
        for number, (one, median, mean) in enumerate(values, 1)
    ]
    accuracy, loss = scores(records)
    assert (accuracy.label, accuracy.final, accuracy.best, accuracy.best_round) == ("global-accuracy", 0.6, 0.7, 2)
    assert (loss.label, loss.final, loss.best, loss.best_round) == ("global-loss (median)", 2.5, 2.0, 2)
    assert loss.finals["mean"] == 1.0
    assert seconds_to(records, "global-loss", 1.5) is None
