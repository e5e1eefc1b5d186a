import sys
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.records import Progress
from heterofl_flwr.report import EarlyStopping, MLflow, Recorder, TensorBoard, WandB
from heterofl_flwr.runs import RunFolder
from heterofl_flwr.runs.metrics import scalars

NAN = float("nan")
SETTINGS = {"optim": {"lr": 0.1}}


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
        ({"patience": 2}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None),
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.5, 0.5], 5),
        ({"patience": 2}, [0.5, 0.5, 0.5], 3),
        ({"patience": 2}, [0.5, None, None, None, 0.4, None, 0.4], 7),
        ({"patience": 2}, [0.5, NAN, NAN], 3),
        ({"patience": 2}, [NAN, 0.5, 0.6, 0.7], None),
        ({"patience": 2, "metric": "global-loss"}, [0.5, 0.4, 0.45, 0.42], 4),
        ({"patience": 2, "metric": "global-loss", "mode": "max"}, [0.5, 0.4, 0.45, 0.42], 3),
        ({"patience": None, "target": 0.8}, [0.7, 0.8, 0.9], 2),
        ({"patience": None, "target": 0.8}, [0.7, NAN, 0.79], None),
        ({"patience": None, "target": 5.0, "metric": "global-perplexity"}, [9.0, 5.1, 4.0], 3),
    ],
)
def test_it_stops_after_so_many_evaluations_without_a_new_best_or_at_the_target(fake, options, values, expected):
    metric = options.get("metric", "global-accuracy")
    assert stops_at(EarlyStopping(**options), fake, values, metric) == expected


def test_without_a_metric_it_follows_that_by_which_the_best_round_is_chosen(fake, folder):
    stopping, recorder = EarlyStopping(patience=2), Recorder(folder)
    recorder.on_start(1, 9, fake.state(0))
    for evaluations, expected in (
        ([{"global-accuracy": 0.8 + number / 100, "global-perplexity": 4.0 + number} for number in range(4)], 3),
        ([{"test-loss": 4.0 + number} for number in range(4)], 3),
        ([{"global-accuracy": 0.8 + number / 100, "global-loss": 4.0 + number} for number in range(4)], None),
    ):
        stopping.on_start(1, 9, {})
        rounds = [fake.progress(number, 9, evaluate=own) for number, own in enumerate(evaluations, 1)]
        assert next((one.record.server_round for one in rounds if stopping.on_round_end(one)), None) == expected
    texts = {"global-accuracy": 0.9, "global-perplexity": 4.0}
    recorder.on_round_end(fake.progress(1, 9, evaluate=texts))
    assert recorder.best.metric == "global-perplexity"


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
    assert stops_at(EarlyStopping(patience=1), fake, [0.1, 0.2], metric="f1") is None
    assert "early stopping waits for a perplexity, an accuracy or a loss; evaluation gives f1" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mode": "upwards"}, "mode is 'upwards'; expected max or min"),
        ({"patience": 0}, "a patience of 0"),
        ({"patience": None}, "needs a patience or a target"),
    ],
)
def test_invalid_arguments_are_errors(arguments, match):
    with pytest.raises(ConfigError, match=match):
        EarlyStopping(**arguments)


def test_metrics_of_few_clients_neither_stop_a_run_nor_let_it_go_on(few, fake):
    for patience, target in ((2, None), (None, 0.99)):
        stopping = EarlyStopping("global-accuracy", patience, target=target)
        stopping.on_start(1, 9, {})
        for record in (few[0], few[2], few[2], few[2]):
            assert not stopping.on_round_end(Progress(record, {}, {}, {}, {}, 9))


def test_tensorboard_gets_every_number_of_every_round_once_also_of_a_resumed_run(folder, fake):
    fake.run([TensorBoard(folder)], 1, 9, dies_after=5)
    fake.run([TensorBoard(folder)], 4, 6)
    events = EventAccumulator(str(folder.events), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("round/seconds")] == [1, 2, 3, 4, 5, 6]
    values = [(event.step, event.value) for event in events.Scalars("evaluate/global-accuracy")]
    expected = [(number, fake.progress(number, 6).record.evaluate["global-accuracy"]) for number in (2, 4, 6)]
    assert values == [(number, pytest.approx(value)) for number, value in expected]
    assert "train/a/loss" in events.Tags()["scalars"]


def test_tensorboard_gets_what_a_round_is_evaluated_for_as_the_last(folder, fake):
    tracker, progress = TensorBoard(folder), fake.progress(2, 6)
    levels, progress.record.evaluate_by_level = progress.record.evaluate_by_level, {}
    tracker.on_start(1, 6, {})
    tracker.on_round_end(progress)
    progress.record.evaluate_by_level = levels
    tracker.on_last_evaluation(progress)
    tracker.on_end({})
    events = EventAccumulator(str(folder.events))
    events.Reload()
    assert [event.step for event in events.Scalars("evaluate/b/global-accuracy")] == [2]


def test_a_tensorboard_that_ends_without_a_start_writes_nothing(folder):
    TensorBoard(folder).on_end({})
    assert not folder.events.exists()


@pytest.fixture
def calls(monkeypatch):
    """Install modules that note every call, and return the notes."""
    notes: list[tuple[str, tuple, dict]] = []

    def noting(name):
        return lambda *args, **kwargs: notes.append((name, args, kwargs))

    run = SimpleNamespace(id="one", info=SimpleNamespace(run_id="one"), log=noting("log"), finish=noting("finish"))
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.init = lambda **kwargs: notes.append(("init", (), kwargs)) or run
    for name in ("set_tracking_uri", "set_experiment", "log_params", "log_metrics", "end_run"):
        setattr(mlflow, name, noting(name))
    mlflow.start_run = lambda **kwargs: notes.append(("start_run", (), kwargs)) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return notes


def test_wandb_gets_every_number_of_every_round(calls, fake):
    fake.run([WandB("heterofl", settings=SETTINGS, options={"mode": "offline"})], 1, 2)
    expected = {"project": "heterofl", "config": {"optim.lr": 0.1}, "mode": "offline"}
    assert calls[0] == ("init", (), expected)
    records = [fake.progress(number, 2).record for number in (1, 2)]
    assert calls[1:3] == [("log", (scalars(record),), {"step": record.server_round}) for record in records]
    assert [name for name, *_ in calls] == ["init", "log", "log", "finish"]


@pytest.mark.parametrize(
    ("tracker", "opens", "goes_on"),
    [(WandB, "init", {"id": "one", "resume": "allow"}), (MLflow, "start_run", {"run_id": "one"})],
)
def test_a_run_that_goes_on_does_so_at_the_service(calls, fake, tmp_path, tracker, opens, goes_on):
    folder = RunFolder(tmp_path)
    folder.start({"mix": "a1"})
    for first_round in (1, 3):
        fake.run([tracker("heterofl", settings=SETTINGS, folder=folder)], first_round, first_round + 1)
    first, second = (kwargs for name, _, kwargs in calls if name == opens)
    assert first.keys().isdisjoint(goes_on)
    assert second == {**first, **goes_on}
    assert [name for name, *_ in calls].count("log_params") == (tracker is MLflow)


def test_mlflow_gets_every_number_of_every_round_and_the_settings(calls, fake):
    tracker = MLflow("heterofl", tracking_uri="file:runs", settings=SETTINGS, options={"run_name": "one"})
    fake.run([tracker], 1, 2)
    assert calls[:4] == [
        ("set_tracking_uri", ("file:runs",), {}),
        ("set_experiment", ("heterofl",), {}),
        ("start_run", (), {"run_name": "one"}),
        ("log_params", ({"optim.lr": 0.1},), {}),
    ]
    records = [fake.progress(number, 2).record for number in (1, 2)]
    assert calls[4:6] == [("log_metrics", (scalars(record),), {"step": record.server_round}) for record in records]
    assert [name for name, *_ in calls[6:]] == ["end_run"]
