"""What each client gets of the machine, and how many fit on a GPU, with its memory simulated."""

import pytest
import torch

from heterofl_flwr.app.launch import gpus
from heterofl_flwr.app.launch.gpus import CONTEXT, FILL, Measured, measure, measure_peaks, plan
from heterofl_flwr.app.launch.request import Share, gpu_share
from heterofl_flwr.app.task import Task
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.settings import from_flat

GIB = 1024**3


FIT = int(100 * FILL // 5) - 1  # clients of 4 GiB and their context on 100 GiB; the server evaluates too


@pytest.mark.parametrize(
    ("devices", "peaks", "machine", "at_once"),
    [
        (1, {1.0: 4, 0.0625: 1}, {"clients": 100, "cores": 64}, FIT),
        (4, {1.0: 4}, {"clients": 100, "cores": 100}, 4 * FIT),
        (2, {1.0: 4}, {"clients": 3, "cores": 64}, 3),
        (2, {1.0: 4}, {"clients": 100, "cores": 4}, 4),
        (2, {1.0: 4}, {"clients": 100, "cores": 8, "cpus": 4}, 2),
        (1, {1.0: 70}, {"clients": 9, "cores": 9}, 1),
    ],
)
def test_as_many_clients_of_the_largest_level_are_packed_as_fit(devices, peaks, machine, at_once):
    measured = Measured(devices, 100 * GIB, {rate: peak * GIB for rate, peak in peaks.items()})
    share = plan(measured, **machine)
    assert share.at_once == share.clients(machine["cores"], devices) == at_once
    assert share.gpus * at_once <= devices


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


@pytest.mark.parametrize(
    ("share", "cores", "devices", "clients"),
    [
        (Share(), 8, 0, 8),
        (Share(cpus=3), 8, 0, 2),
        (Share(cpus=16), 8, 0, 1),
        (Share(at_once=3), 8, 0, 3),
        (Share(gpus=0.25), 16, 1, 4),
        (Share(gpus=0.25), 2, 4, 2),
        (Share(gpus=0.3), 16, 2, 6),
        (Share(gpus=1.0), 16, 2, 2),
        (Share(gpus=2.0), 16, 4, 2),
    ],
)
def test_how_many_clients_run_at_once(share, cores, devices, clients):
    assert share.clients(cores, devices) == clients


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_share_lets_at_least_so_many_clients_run(devices):
    for clients in range(1, 40):
        share = Share(gpus=gpu_share(devices, clients))
        assert clients <= share.clients(1000, devices) < clients + devices


def test_fewer_is_half_until_there_is_one():
    share = Share(gpus=0.1)
    seen = [share.clients(16, 1)]
    while seen[-1] > 1:
        share = share.fewer(seen[-1], 1)
        seen.append(share.clients(16, 1))
    assert seen == [10, 5, 2, 1]
    assert share.gpus == 1.0
    with pytest.raises(ConfigError, match="one client alone"):
        share.fewer(1, 1)
    assert Share().fewer(8, 0) == Share(at_once=4)
