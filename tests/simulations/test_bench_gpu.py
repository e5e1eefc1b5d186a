"""The benchmark for GPUs, on a CPU."""

import argparse
import math

import pytest
import torch

from heterofl_flwr.app.cli.main import parser
from heterofl_flwr.app.cli.run import build_request
from heterofl_flwr.data import load_dataset
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.settings import from_flat
from simulations.bench import gpu
from simulations.bench.measure import print_verdict


def parse(*words: str) -> argparse.Namespace:
    own = argparse.ArgumentParser()
    gpu.add_arguments(own)
    return own.parse_args(words)


SMALL = parse("--device", "cpu", "--steps", "1", "--rounds", "1")


def test_a_round_is_that_of_the_paper():
    assert (gpu.count_epochs(250), gpu.count_epochs(1)) == (5, 1)
    # Level a has 9.6 million parameters and three quarters of the multiplications.
    assert gpu.tera_flop(250) == pytest.approx(13.2, abs=0.1)
    assert gpu.tera_flop(250) == pytest.approx(250 * gpu.tera_flop(1))


@pytest.mark.parametrize("grid", ["local", "ray"])
def test_runs_are_asked_for_a_round_of_the_paper(tmp_path, monkeypatch, grid):
    words = gpu.list_arguments(grid, "plain", parse("--device", "cpu", "--precision", "bfloat16"), tmp_path / "run")
    request = build_request(parser().parse_args(words))
    settings = from_flat(request.config)
    assert request.clients == 10
    assert (settings.num_rounds, settings.sample.fraction, settings.assignment) == (4, 1.0, "fix")
    assert (settings.train.epochs, settings.train.batch_size, settings.train.precision) == (5, 10, "bfloat16")
    assert (settings.engine.name, settings.engine.device, settings.evaluate.every) == ("plain", "cpu", 0)
    assert request.share.at_once == (10 if grid == "ray" else None)
    monkeypatch.setenv(gpu.IMAGES, "2")
    data = load_dataset(settings.data.name)
    assert (data.train.inputs.shape, data.classes, data.augment) == ((20, 3, 32, 32), 10, "crop-flip")


def test_without_a_gpu_it_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device is 'cuda', but torch .* finds none here: use auto or cpu"):
        gpu.run(parse())
    with pytest.raises(ConfigError, match="device is 'gpu'; expected one of"):
        gpu.run(parse("--device", "gpu"))


@pytest.mark.parametrize(
    ("losses", "passed"),
    [((2.0, 2.0, 2.0), True), ((2.0, 2.2, 2.0), False), ((2.0, None, 2.0), False)],
    ids=["alike", "another loss", "failed"],
)
def test_sides_must_run_and_agree(monkeypatch, capsys, losses, passed):
    found = iter(losses)

    def measure(*_):
        loss = next(found)
        if loss is None:
            raise HeteroFLError("no room")
        return 0.5, loss

    monkeypatch.setattr(gpu, "measure", measure)
    assert print_verdict(gpu.run(SMALL)) is passed
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if "min" in line] == [
        "LocalGrid, engine plain",
        "LocalGrid, engine cohort",
        "RayGrid, engine auto",
    ]
    assert any("LocalGrid, engine cohort failed: no room" in line for line in lines) is (None in losses)


def test_a_gpu_has_a_goal_for_a_whole_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "measure", lambda *_: (0.5, 2.0))
    goals = gpu.run(parse("--grids", "local"))
    assert (goals[-1].value, goals[-1].met) == (pytest.approx(400 * 0.5 / 60), True)


@pytest.mark.slow
def test_whole_rounds_run():
    seconds, loss = gpu.measure("local", "plain", SMALL)
    assert seconds > 0
    assert math.isfinite(loss)
