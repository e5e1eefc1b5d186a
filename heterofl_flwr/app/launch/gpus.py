"""How many clients fit on the GPUs at once: measured, level by level, before the run."""

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch

from heterofl_flwr.app.launch.request import Flat, Share, gpu_share
from heterofl_flwr.app.task import Task
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.errors import ConfigError, HeteroFLError, first_line
from heterofl_flwr.settings import from_flat
from heterofl_flwr.training import evaluate, train

CONTEXT = 1024**3
"""Bytes that CUDA and its libraries take in each process, on the safe side."""

FILL = 0.9
"""Share of the free memory that is handed out; caches break into pieces."""

EVALUATED = 100
"""Examples of a batch of evaluation."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The visible GPUs, and what a training step needs."""

    devices: int
    free: int  # bytes of the GPU that has the fewest
    peaks: Mapping[float, int]  # by rate: the most bytes that a training step held at once


def devices() -> int:
    """Return how many GPUs are visible."""
    return torch.cuda.device_count()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(measured: Measured, *, clients: int, cores: int, cpus: int = 1) -> Share:
    """Return a share that packs as many clients on the GPUs as fit, whatever their levels.

    The server evaluates on a GPU too, so the memory of one client is kept for it.
    """
    rate, peak = max(measured.peaks.items(), key=lambda item: item[1])
    need = peak + CONTEXT
    each = int(measured.free * FILL // need)
    if each < 1:
        raise ConfigError(
            f"level {level_name(rate)} needs {need / 1024**3:.1f} GiB of GPU memory, and "
            f"{measured.free / 1024**3:.1f} GiB are free: use a smaller batch (train.batch-size) or a smaller model, "
            "or --gpus 0"
        )
    each = max(each - 1, 1)
    at_once = max(min(each * measured.devices, clients, cores // cpus), 1)
    return Share(cpus=cpus, gpus=gpu_share(measured.devices, at_once), at_once=at_once)


def measure(config: Mapping[str, Flat]) -> Measured:
    """Measure in a process of its own, so that nothing of it stays on the GPU."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_measure_here, dict(config)).result()
        except Exception as error:
            raise HeteroFLError(
                f"the memory that clients need could not be measured: {first_line(error)}; name a share: --gpus 0.25"
            ) from error


def _measure_here(config: Mapping[str, Flat]) -> Measured:
    free = min(torch.cuda.mem_get_info(number)[0] for number in range(devices()))
    return Measured(devices(), free, measure_peaks(Task(from_flat(config))))


def measure_peaks(task: Task, device: str = "cuda:0") -> dict[float, int]:
    """Return the most bytes that a client of each level holds: the data, two steps of training, some of evaluation."""
    options = replace(task.options(task.settings.train.lr), epochs=1)
    data, test = task.dataset.train.to(device), task.dataset.test.to(device)  # as the ClientApp holds them
    peaks = {}
    for rate in task.mix.rates:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        # The second step has the optimizer's buffers.
        rows = torch.arange(min(2 * options.batch_size, len(data)))
        for build in task.families.values():  # one after the other: the most that any of them takes
            model = build(rate).to(device)
            train(model, data.select(rows), options, seed=0, engine=task.settings.engine.name)
            evaluate(model, test.select(torch.arange(min(EVALUATED, len(test)))))
            del model  # before there is another
        peaks[rate] = torch.cuda.max_memory_reserved()
    return peaks
