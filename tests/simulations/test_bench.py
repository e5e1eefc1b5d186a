"""The benchmarks: what they measure, their goals, and their command."""

import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from heterofl_flwr.core import LEVELS
from heterofl_flwr.data import load_dataset
from heterofl_flwr.training.batches import steps_per_epoch
from heterofl_flwr.training.engines.structure import log_once
from simulations.bench import __main__ as bench, gpu, pfl, step
from simulations.bench.measure import Goal
from tests.simulations.tiny_data import write_tiny


@pytest.mark.parametrize(("value", "code"), [(1.0, 0), (2.0, 1), (math.nan, 1)])
def test_exit_status_is_the_verdict(monkeypatch, value, code):
    goals = [Goal("memory", value, most=1), Goal("speed", 30, least=30)]
    monkeypatch.setattr(bench.BENCHMARKS["scale"], "run", lambda options: goals)
    assert bench.main(["scale"]) == code


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("step --rounds 1 --steps 2 --cohort 2", marks=pytest.mark.slow),
        pytest.param("gpu --device cpu --rounds 1 --steps 1 --width 0.03", marks=pytest.mark.release),
        pytest.param("gpu --device cpu --jobs MNIST --rounds 1 --steps 1 --width 0.03", marks=pytest.mark.slow),
        pytest.param("gpu --device cuda --rounds 1 --steps 5", marks=pytest.mark.gpu),
        "scale --nodes 40 --sizes 4 8 --model mnist --rounds 1 --actors 0",
        pytest.param("round --root . --clients 20 --overhead 1", marks=pytest.mark.release),
    ],
)
def test_a_benchmark_ends_with_its_verdict(monkeypatch, capsys, tmp_path, line):
    if line.startswith("round"):
        monkeypatch.chdir(tmp_path)
        write_tiny("mnist", tmp_path)
    # A thread stands for a process, which would take seconds to start.
    monkeypatch.setattr(step, "ProcessPoolExecutor", lambda number, *of_processes: ThreadPoolExecutor(number))
    monkeypatch.setattr(step, "LEVELS", dict.fromkeys(LEVELS, LEVELS["e"]))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    code = bench.main(line.split())
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAIL" if code else "PASS")


def test_an_engine_that_trains_otherwise_is_not_timed(monkeypatch, capsys):
    monkeypatch.setitem(step.ENGINES, "seats", lambda jobs, options: [])
    assert bench.main(["step", "--engines", "seats", "--levels", "e"]) == 2
    assert "engine seats and the plain loop differ by" in capsys.readouterr().err


def test_an_engine_that_trains_by_plain_says_so_beside_its_times(monkeypatch, capsys):
    def measure(*_):
        log_once("a reason")
        return {"cohort": 2.0}

    log_once.cache_clear()
    for name, fake in (("measure", measure), ("limit", lambda *_: 1.0), ("JOBS", gpu.JOBS[:1])):
        monkeypatch.setattr(gpu, name, fake)
    for name in ("matrix_rate", "copy_rate"):
        monkeypatch.setattr(gpu, name, lambda device: 1.0)
    assert bench.main(["gpu", "--device", "cpu", "--engines", "cohort"]) == 0
    assert "a reason" in capsys.readouterr().err


def test_the_steps_of_a_text_are_pieces_of_the_same_rows():
    """As in WikiText2: else each step of the benchmark would wait for masked words that are drawn on the CPU."""
    job = next(job for job in gpu.JOBS if job.data == "wikitext2")
    split = job.split(seed=0, steps=7)
    assert (len(split), steps_per_epoch(split, job.batch)) == (job.batch, 7)


def test_pfl_research_reads_the_images_of_the_data_set(tmp_path):
    write_tiny("cifar10", tmp_path)
    pfl.write_images(str(tmp_path), tmp_path)
    data = load_dataset("cifar10", str(tmp_path))
    for part, split in (("train", data.train), ("test", data.test)):
        images, labels = pickle.loads((tmp_path / f"cifar10_{part}.p").read_bytes())
        assert images.shape == (len(split), 32, 32, 3)
        assert labels.ravel().tolist() == split.targets.tolist()
        channels = [
            (torch.tensor(images[..., channel]) / 255 - data.normal.mean[channel]) / data.normal.deviation[channel]
            for channel in range(3)
        ]
        torch.testing.assert_close(torch.stack(channels, 1), split.inputs, atol=1e-5, rtol=0)


def test_the_benchmark_of_pfl_research_names_a_folder_that_is_no_checkout(capsys, tmp_path):
    assert bench.main(["pfl", "--pfl", str(tmp_path)]) == 2
    assert f"--pfl is {tmp_path}" in capsys.readouterr().err
