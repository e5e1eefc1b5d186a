"""How many clients fit on a GPU, with its memory simulated."""

import pytest
import torch

from heterofl_flwr.app.launch import gpus
from heterofl_flwr.app.launch.gpus import CONTEXT, FILL, Measured, measure, measure_peaks, plan
from heterofl_flwr.app.task import Task
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.settings import from_flat

GIB = 1024**3


def test_clients_are_packed_by_the_largest_level():
    measured = Measured(1, 100 * GIB, {1.0: 4 * GIB, 0.0625: GIB})
    fit = int(100 * FILL // 5)  # 4 GiB and the context
    share = plan(measured, clients=100, cores=64)
    assert share.at_once == fit - 1  # the server evaluates too
    assert share.clients(64, 1) == share.at_once
    assert share.gpus * share.at_once <= 1


@pytest.mark.parametrize(("clients", "cores", "cpus", "at_once"), [(3, 64, 1, 3), (100, 4, 1, 4), (100, 8, 4, 2)])
def test_there_are_no_more_at_once_than_clients_and_cores(clients, cores, cpus, at_once):
    measured = Measured(2, 100 * GIB, {1.0: GIB})
    assert plan(measured, clients=clients, cores=cores, cpus=cpus).at_once == at_once


def test_all_gpus_are_used():
    share = plan(Measured(4, 20 * GIB, {1.0: GIB}), clients=100, cores=100)
    assert share.at_once == 4 * (int(20 * FILL // 2) - 1)
    assert share.clients(100, 4) == share.at_once


def test_one_that_fits_alone_runs_alone():
    assert plan(Measured(1, 10 * GIB, {1.0: 7 * GIB}), clients=9, cores=9).gpus == 1.0


def test_one_that_does_not_fit_is_named_with_its_bytes():
    with pytest.raises(ConfigError, match=r"level b needs 11\.0 GiB of GPU memory, and 8\.0 GiB are free"):
        plan(Measured(1, 8 * GIB, {0.5: 10 * GIB, 0.25: GIB}), clients=9, cores=9)
    assert CONTEXT == GIB


def test_each_level_is_trained_and_its_peak_read(monkeypatch):
    events = []

    def peak() -> int:
        events.append("peak")
        return len(events)

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: events.append("reset"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("clear"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", peak)
    assert measure_peaks(Task(from_flat({"mix": "a1-e1"})), "cpu") == {1.0: 3, 0.0625: 6}
    assert events == ["clear", "reset", "peak"] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_remedy_is_named():
    assert gpus.devices() == 0
    with pytest.raises(HeteroFLError, match=r"could not be measured: .*; name a share: --gpus 0\.25"):
        measure({})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_is_measured_larger_levels_take_more():
    measured = measure({"model.hidden": "512,1024,2048"})
    assert measured.devices >= 1
    assert measured.peaks[1.0] > measured.peaks[0.0625] > 0
