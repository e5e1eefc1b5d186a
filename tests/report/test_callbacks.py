import sys
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from heterofl_flwr.report import MLflow, TensorBoard, WandB
from heterofl_flwr.runs.folder import RunFolder

SETTINGS = {"optim": {"lr": 0.1}}


def test_tensorboard_gets_every_round_once_also_of_a_resumed_run(folder, fake):
    fake.run([TensorBoard(folder)], 1, 9, dies_after=5)
    fake.run([TensorBoard(folder)], 4, 6)
    events = EventAccumulator(str(folder.events), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("round/seconds")] == [1, 2, 3, 4, 5, 6]
    values = [(event.step, event.value) for event in events.Scalars("evaluate/global-accuracy")]
    expected = [(number, fake.progress(number, 6).record.evaluate["global-accuracy"]) for number in (2, 4, 6)]
    assert values == [(number, pytest.approx(value)) for number, value in expected]
    assert "train/a/loss" in events.Tags()["scalars"]


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
