import sys
from types import ModuleType, SimpleNamespace

import pytest

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.report import MLflow, WandB
from heterofl_flwr.runs.metrics import scalars

SETTINGS = {"optim": {"lr": 0.1}}


@pytest.fixture
def calls(monkeypatch):
    """Install modules that note every call, and return the notes."""
    notes: list[tuple[str, tuple, dict]] = []

    def noting(name):
        return lambda *args, **kwargs: notes.append((name, args, kwargs))

    run = SimpleNamespace(log=noting("log"), finish=noting("finish"))
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.init = lambda **kwargs: notes.append(("init", (), kwargs)) or run
    for name in ("set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
        setattr(mlflow, name, noting(name))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return notes


def test_wandb_gets_every_number_of_every_round(calls, fake):
    fake.run([WandB("heterofl", settings=SETTINGS, run_id="one", options={"mode": "offline"})], 1, 2)
    expected = {"project": "heterofl", "config": {"optim.lr": 0.1}, "mode": "offline", "id": "one", "resume": "allow"}
    assert calls[0] == ("init", (), expected)
    records = [fake.progress(number, 2).record for number in (1, 2)]
    assert calls[1:3] == [("log", (scalars(record),), {"step": record.server_round}) for record in records]
    assert [name for name, *_ in calls] == ["init", "log", "log", "finish"]


def test_mlflow_gets_every_number_of_every_round(calls, fake):
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


def test_a_run_that_goes_on_keeps_its_parameters_there(calls, fake):
    fake.run([MLflow("heterofl", settings=SETTINGS)], 3, 4)
    assert [name for name, *_ in calls] == ["set_experiment", "start_run", "log_metrics", "log_metrics", "end_run"]


@pytest.mark.parametrize(("tracker", "name"), [(WandB, "wandb"), (MLflow, "mlflow")])
def test_a_tracker_that_is_not_installed_says_how_to_install_it(tracker, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed: pip install 'heterofl-flwr\[{name}\]'"):
        tracker("heterofl")
