"""When a run ends early."""

import pytest

from heterofl_flwr.runs.early_stopping import EarlyStopping
from tests.runs.conftest import progress_of

NAN = float("nan")


def stops_at(stopping: EarlyStopping, fake, values, metric="global-accuracy", first=1) -> int | None:
    """Return the round after which the run is stopped; a value of None is a round without evaluation."""
    stopping.on_start(first, 99, {})
    for number, value in enumerate(values, first):
        evaluate = {} if value is None else {metric: value}
        if stopping.on_round_end(fake.progress(number, 99, evaluate=evaluate)):
            return number
    return None


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.5, 0.5], 5),
        ({"patience": 2}, [0.5, None, None, None, 0.4, None, 0.4], 7),
        ({"patience": 2}, [NAN, 0.5, 0.6, 0.7], None),
        ({"patience": 2}, [0.5, 0.5, 0.5], 3),
        ({"patience": 2, "metric": "global-loss"}, [0.5, 0.4, 0.45, 0.42], 4),
    ],
)
def test_it_stops_without_a_new_best(fake, options, values, expected):
    metric = options.get("metric", "global-accuracy")
    assert stops_at(EarlyStopping(**options), fake, values, metric) == expected


@pytest.mark.parametrize("first", [1, 3, 5])
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(fake, first):
    values = [0.5, 0.6, None, 0.55, 0.58, 0.59, 0.4]
    expected = stops_at(EarlyStopping(patience=3), fake, values)
    assert expected == 6
    # The history reaches further than the checkpoint: what is run again must not count twice.
    evaluations = [{} if value is None else {"global-accuracy": value} for value in values[:5]]
    history = [fake.progress(number, 99, evaluate=own).record for number, own in enumerate(evaluations, 1)]
    resumed = EarlyStopping(patience=3, history=history)
    assert stops_at(resumed, fake, values[first - 1 :], first=first) == expected


def test_a_metric_that_evaluation_lacks_is_logged_once(fake, caplog):
    assert stops_at(EarlyStopping("glbal", patience=1), fake, [0.1, 0.2, 0.3]) is None
    assert caplog.text.count("early stopping waits for glbal; evaluation gives global-accuracy") == 1


def test_metrics_of_few_clients_neither_stop_a_run_nor_help(few, fake):
    stopping = EarlyStopping("global-accuracy", 2)
    stopping.on_start(1, 9, {})
    for record in (few[0], few[2], few[2], few[2]):
        assert not stopping.on_round_end(progress_of(record, 9))
