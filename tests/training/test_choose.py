import pytest
import torch
from torch import nn

from heterofl_flwr.data import Split
from heterofl_flwr.training import ENGINES, TrainingJob, engines, train_together
from heterofl_flwr.training.engines import MOST_ON_CPU, fastest_engine
from heterofl_flwr.training.options import TrainOptions

SPLIT = Split(torch.ones(3, 2), torch.tensor([0, 1, 1]))
ALL = ("plain", "graph", "cohort")


def jobs(number, model=None):
    return [TrainingJob(model=model or nn.Linear(2, 2), split=SPLIT, seed=client) for client in range(number)]


@pytest.mark.parametrize(
    ("device", "number", "chosen"),
    [
        ("cpu", 0, "plain"),
        ("cpu", 1, "plain"),
        ("cpu", 2, "cohort"),
        ("mps", 1, "plain"),
        ("mps", 5, "plain"),
        ("cuda", 1, "graph"),
        ("cuda", 2, "cohort"),
    ],
)
def test_the_device_and_the_number_of_clients_decide(monkeypatch, device, number, chosen):
    monkeypatch.setattr(engines, "device_of", lambda model: torch.device(device))
    assert fastest_engine(jobs(number), ALL) == chosen


def test_only_what_there_is_is_chosen(monkeypatch):
    assert fastest_engine(jobs(2), ("plain",)) == "plain"
    monkeypatch.setattr(engines, "device_of", lambda model: torch.device("cuda"))
    assert fastest_engine(jobs(1), ("plain", "cohort")) == "plain"


def test_large_models_train_together_on_a_gpu_only(monkeypatch):
    with torch.device("meta"):
        small, large = (nn.Linear(MOST_ON_CPU // 2, 2, bias=False), nn.Linear(MOST_ON_CPU // 2 + 1, 2, bias=False))
    for device, chosen in (("cpu", "plain"), ("cuda", "cohort")):
        monkeypatch.setattr(engines, "device_of", lambda model, device=device: torch.device(device))
        assert fastest_engine(jobs(2, small), ALL) == "cohort"
        assert fastest_engine(jobs(2, large), ALL) == chosen


@pytest.mark.parametrize(
    ("layer", "chosen"),
    [
        (nn.Dropout(0.1), "plain"),
        (nn.Dropout(0.0), "cohort"),
        (nn.AlphaDropout(0.5), "plain"),
        (nn.BatchNorm1d(2), "plain"),
        (nn.BatchNorm1d(2, track_running_stats=False), "cohort"),
        (nn.InstanceNorm1d(2, track_running_stats=True), "plain"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "cohort"),
    ],
)
def test_models_that_cannot_train_together_train_alone(layer, chosen):
    assert fastest_engine(jobs(2, nn.Sequential(nn.Linear(2, 2), layer)), ALL) == chosen


def hooked(kind: str) -> nn.Module:
    layer = nn.Linear(2, 2)
    target = layer.weight if kind in ("register_hook", "register_post_accumulate_grad_hook") else layer
    getattr(target, kind)(lambda *_: None)
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    "kind",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_hook",
        "register_post_accumulate_grad_hook",
    ],
)
def test_models_with_hooks_train_alone(kind):
    assert fastest_engine(jobs(2, hooked(kind)), ALL) == "plain"


def test_auto_takes_the_chosen_engine(monkeypatch):
    options = TrainOptions(learning_rate=0.1)
    for name in ("plain", "cohort"):
        monkeypatch.setitem(ENGINES, name, lambda jobs, options, name=name: [name] * len(jobs))
    assert train_together(jobs(2), options) == ["cohort"] * 2
    assert train_together(jobs(1), options) == ["plain"]
    assert train_together([], options) == []
