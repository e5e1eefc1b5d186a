"""The benchmark for GPUs, on a CPU and with a small model."""

import argparse
from dataclasses import replace

import pytest
import torch

from heterofl_flwr.app.cli.main import parser
from heterofl_flwr.app.cli.run import build_request
from heterofl_flwr.data import load_dataset
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.models import Setup
from heterofl_flwr.settings import from_flat
from heterofl_flwr.training import ENGINES, train_together
from simulations.bench import gpu
from simulations.bench import gpu_task as task
from simulations.bench.gpu import arguments, grid_side
from simulations.bench.gpu_task import RATES, Engine, Experiment, check_equal

SMALL = Experiment(root="", steps=1, device="cpu")


@pytest.fixture
def small(monkeypatch):
    """Let the benchmark have narrow models and few images."""
    options = {"channels": 3, "classes": 10, "hidden": (8, 16, 16, 16)}
    monkeypatch.setattr(task, "PAPER", {"cifar10": Setup("preresnet18", (3, 32, 32), options=options)})
    monkeypatch.setattr(task, "CLIENTS", 10)
    task._data.cache_clear()
    yield
    task._data.cache_clear()


def asked(*words: str) -> argparse.Namespace:
    this = argparse.ArgumentParser()
    gpu.add_arguments(this)
    return this.parse_args(words)


def test_a_round_is_that_of_the_paper():
    whole = Experiment(root="", steps=250, device="cpu")
    assert (whole.epochs, whole.images) == (5, 500)
    assert {rate: RATES.count(rate) for rate in RATES} == {1.0: 2, 0.5: 2, 0.25: 2, 0.125: 2, 0.0625: 2}
    assert (SMALL.epochs, SMALL.images) == (1, 10)
    # Level a has 9.6 million parameters and three quarters of the multiplications.
    assert whole.tera_flop() == pytest.approx(13.2, abs=0.1)
    assert whole.tera_flop() == pytest.approx(250 * SMALL.tera_flop())


@pytest.mark.usefixtures("small")
def test_runs_train_on_the_images_of_the_engines(monkeypatch):
    for name, value in SMALL.variables.items():
        monkeypatch.setenv(name, value)
    data = load_dataset(from_flat({"data.name": "simulations.bench.gpu_task:images"}).data.name)
    splits = [SMALL.job(number, torch.nn.Flatten()).split for number in range(len(RATES))]
    assert torch.equal(data.train.inputs, torch.cat([split.inputs for split in splits]))
    assert data.augment == "crop-flip"


@pytest.mark.parametrize("grid", ["local", "ray"])
def test_runs_are_asked_for_the_same_work(tmp_path, grid):
    words = arguments(replace(SMALL, precision="bfloat16"), grid, "plain", 3, tmp_path / "run")
    request = build_request(parser().parse_args(words))
    settings = from_flat(request.config)
    assert request.clients == len(RATES)
    assert (settings.num_rounds, settings.sample.fraction, settings.assignment) == (3, 1.0, "fix")
    train, options = settings.train, SMALL.options
    assert (train.lr, train.epochs, train.batch_size) == (options.learning_rate, options.epochs, options.batch_size)
    assert (train.momentum, train.weight_decay, train.clip) == (options.momentum, options.weight_decay, options.clip)
    assert (train.mask_fill, train.precision) == (options.mask_fill, "bfloat16")
    assert (settings.engine.name, settings.engine.device, settings.evaluate.every) == ("plain", "cpu", 0)
    assert request.share.at_once == (10 if grid == "ray" else None)


@pytest.mark.usefixtures("small")
def test_engines_agree():
    assert 0 < check_equal("cohort", "plain", SMALL) < 1e-3


def wrong(works, options):
    return train_together(works, replace(options, momentum=0.5), engine="plain")


@pytest.mark.usefixtures("small")
def test_an_engine_that_does_other_work_is_found(monkeypatch):
    monkeypatch.setitem(ENGINES, "wrong", wrong)
    with pytest.raises(RuntimeError, match=r"engines plain and wrong differ by .* so their times cannot be compared"):
        check_equal("wrong", "plain", SMALL)


@pytest.mark.usefixtures("small")
def test_each_round_starts_from_the_same_parameters():
    engine = Engine("plain", SMALL)
    first, second = engine.round(), engine.round()
    assert len(first) == len(RATES)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert engine.seconds(1) > 0


@pytest.mark.usefixtures("small")
def test_it_can_be_tried_on_a_cpu(capsys):
    assert gpu.run(asked("--device", "cpu", "--steps", "1", "--rounds", "1", "--grids"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "random images, 1 steps of 10 images, float32; cpu; median of 1 rounds after one"
    assert [line.split()[1] for line in lines if line.startswith("engine ")] == ["plain", "cohort"]
    assert any(line.startswith("static batch norm of the global model in batches of 500 ") for line in lines)
    assert lines[-1] == "no GPU: no verdict; everything ran, and the engines agree"


def test_without_a_gpu_it_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not gpu.run(asked())
    assert capsys.readouterr().out.startswith("needs a CUDA device, and torch ")


FAST = gpu.Side(round=0.5, evaluation=2.0, whole=True)
BARE = gpu.Side(round=0.1, evaluation=2.0, whole=False)


def test_a_run_evaluates_every_tenth_round():
    assert FAST.minutes == pytest.approx((400 * 0.5 + 40 * 2.0) / 60)


@pytest.mark.parametrize(
    ("theirs", "ours", "passed", "said"),
    [
        (7.6, {"LocalGrid": FAST}, True, "PASS with LocalGrid: 400 rounds in 4.7 min (goal 5); 15.2 times as fast"),
        (7.4, {"LocalGrid": FAST}, False, "FAIL with LocalGrid: 400 rounds in 4.7 min (goal 5); 14.8 times as fast"),
        (30.0, {"Ray": gpu.Side(1.0, 2.0, whole=True)}, False, "400 rounds in 8.0 min (goal 5); 30.0 times as fast"),
        (7.6, {"engine graph": BARE, "LocalGrid": FAST}, True, "PASS with LocalGrid"),
        (7.6, {"engine graph": BARE}, False, "FAIL: not measured: whole rounds (--grids)"),
        (None, {"LocalGrid": FAST}, False, "FAIL: not measured: the authors' code (--authors)"),
    ],
)
def test_the_verdict_is_on_whole_rounds(capsys, theirs, ours, passed, said):
    sides = {} if theirs is None else {gpu.AUTHORS: gpu.Side(theirs, 30.0, whole=True)}
    assert gpu.verdict({**sides, **ours}, []) is passed
    assert said in capsys.readouterr().out


def test_what_failed_is_no_pass(capsys):
    sides = {gpu.AUTHORS: gpu.Side(30.0, 30.0, whole=True), "LocalGrid": FAST}
    assert not gpu.verdict(sides, ["Ray"])
    assert not gpu.verdict({"LocalGrid": FAST}, [gpu.AUTHORS])
    assert capsys.readouterr().out.split("\n")[1::2] == [
        "FAIL: not measured: Ray",
        "FAIL: not measured: the authors' code",
    ]


@pytest.mark.usefixtures("small")
def test_a_side_that_fails_leaves_the_others(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(gpu, "grid_side", fail)
    monkeypatch.setitem(ENGINES, "wrong", wrong)
    assert not gpu.run(asked("--device", "cpu", "--steps", "1", "--rounds", "1", "--grids", "ray"))
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("engine wrong               failed: engines plain and wrong differ by") for line in lines
    )
    assert sum(line.startswith("engine ") for line in lines) == 3
    assert "Ray, engine auto           failed: no room" in lines
    assert lines[-1] == "no GPU: no verdict; these failed: engine wrong, Ray, engine auto"


def test_a_folder_without_the_authors_code_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected a checkout of the authors' repository"):
        gpu.authors_side(tmp_path, SMALL, 1)


@pytest.mark.slow
@pytest.mark.simulation
@pytest.mark.parametrize("grid", ["local", "ray"])
def test_whole_rounds_run(grid):
    assert grid_side(grid, "plain", SMALL, 1, 0.0).round > 0


@pytest.mark.slow
@pytest.mark.parity
def test_the_authors_code_runs(checkout, monkeypatch):
    for module in (task, gpu):
        monkeypatch.setattr(module, "CLIENTS", len(RATES))
    task._data.cache_clear()
    found = gpu.authors_side(checkout, SMALL, 1)
    task._data.cache_clear()
    assert min(found.round, found.evaluation) > 0
