import pytest

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.report import EarlyStopping

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
    ("values", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None),
        ([0.5, 0.4, 0.4, 0.4], 3),
        ([0.5, 0.4, 0.6, 0.5, 0.5], 5),
        ([0.5, 0.5, 0.5], 3),
        ([0.5, None, None, None, 0.4, None, 0.4], 7),
        ([0.5, NAN, NAN], 3),
        ([NAN, 0.5, 0.6, 0.7], None),
        ([None, None, None, None], None),
    ],
)
def test_it_stops_after_so_many_evaluations_without_a_new_best(fake, values, expected):
    assert stops_at(EarlyStopping(patience=2), fake, values) == expected


@pytest.mark.parametrize(("mode", "expected"), [(None, 4), ("min", 4), ("max", 3)])
def test_the_mode_follows_the_name_unless_given(fake, mode, expected):
    stopping = EarlyStopping("global-loss", patience=2, mode=mode)
    assert stops_at(stopping, fake, [0.5, 0.4, 0.45, 0.42], "global-loss") == expected


@pytest.mark.parametrize(
    ("metric", "target", "values", "expected"),
    [
        ("global-accuracy", 0.8, [0.7, 0.8, 0.9], 2),
        ("global-accuracy", 0.8, [0.7, NAN, 0.79], None),
        ("global-perplexity", 5.0, [9.0, 5.1, 4.0], 3),
    ],
)
def test_it_stops_at_the_target(fake, metric, target, values, expected):
    assert stops_at(EarlyStopping(metric, patience=None, target=target), fake, values, metric) == expected


@pytest.mark.parametrize("split", range(1, 7))
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(fake, split):
    values = [0.5, 0.6, None, 0.55, 0.58, 0.59, 0.4]
    expected = stops_at(EarlyStopping(patience=3), fake, values)
    assert expected == 6
    # The history reaches further than the checkpoint: what is run again must not count twice.
    evaluations = [{} if value is None else {"global-accuracy": value} for value in values[:5]]
    history = [fake.progress(number, 99, evaluate=own).record for number, own in enumerate(evaluations, 1)]
    resumed = EarlyStopping(patience=3, history=history)
    first = min(split, 5)
    assert stops_at(resumed, fake, values[first - 1 :], first=first) == expected


def test_a_metric_that_evaluation_lacks_is_told_once(fake, caplog):
    assert stops_at(EarlyStopping("glbal", patience=1), fake, [0.1, 0.2, 0.3]) is None
    assert caplog.text.count("early stopping waits for glbal; evaluation gives global-accuracy") == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mode": "upwards"}, "mode is 'upwards'; expected max or min"),
        ({"patience": 0}, "a patience of 0"),
        ({"patience": None}, "needs a patience or a target"),
    ],
)
def test_unusable_arguments_are_refused(arguments, match):
    with pytest.raises(ConfigError, match=match):
        EarlyStopping(**arguments)
