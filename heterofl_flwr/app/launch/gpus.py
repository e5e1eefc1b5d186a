"""How many clients fit on the GPUs at once: measured, level by level, before the run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from heterofl_flwr.app.launch.request import Flat, Request, Share, gpu_share
from heterofl_flwr.app.task import Task
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.errors import ConfigError, HeteroFLError, first_line
from heterofl_flwr.settings import from_flat
from heterofl_flwr.training import evaluate, train

CONTEXT = 1024**3
"""Bytes that CUDA and its libraries take in each process, on the safe side."""

FILL = 0.9
"""Share of the free memory that is handed out; the rest is lost to fragmentation."""

EVALUATED = 100
"""Examples of a batch of evaluation."""

LONGEST = 600.0
"""Seconds that measuring may take."""


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


def measured_share(request: Request) -> Share:
    """Return what each client of a run gets: as much of a GPU as it needs, where its grid can give one."""
    share = request.share
    if request.grid == "local" or request.config["engine.device"] == "cpu" or not devices():
        return share
    clients = share.at_once or request.clients
    return plan(measure(request.config), clients=clients, cores=cores(), cpus=share.cpus)


def measure(config: Mapping[str, Flat]) -> Measured:
    """Measure in a process of its own, so that nothing of it stays on the GPU."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_measured, args=(theirs, dict(config)))
    process.start()
    theirs.close()  # so that the death of the process ends the wait
    try:
        found = ours.recv() if ours.poll(LONGEST) else f"no answer in {LONGEST:.0f} s"
    except EOFError:
        found = "the process that measures has died"
    finally:
        process.kill()
        process.join()
        ours.close()
    if not isinstance(found, Measured):
        raise HeteroFLError(f"the memory that clients need could not be measured: {found}; name a share: --gpus 0.25")
    return found


def _send_measured(connection: Connection, config: Mapping[str, Flat]) -> None:
    """Send what was measured, or why it could not be."""
    try:
        free = min(torch.cuda.mem_get_info(number)[0] for number in range(devices()))
        connection.send(Measured(devices(), free, measure_peaks(Task(from_flat(config)))))
    except Exception as error:
        connection.send(first_line(error))


def measure_peaks(task: Task, device: str = "cuda:0") -> dict[float, int]:
    """Return the most bytes that a client of each level holds: the data, two steps of training, some of evaluation."""
    options = replace(task.options(task.settings.train.lr), epochs=1)
    data, test = task.dataset.train.to(device), task.dataset.test.to(device)  # as the ClientApp holds them
    peaks = {}
    for rate in task.mix.all_rates:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        # The second step has the optimizer's buffers.
        rows = torch.arange(min(2 * options.batch_size, len(data)))
        for build in task.builds:  # one after the other: the most that any of them takes
            model = build(rate).to(device)
            train(model, data.select(rows), options, seed=0, engine=task.settings.engine.name)
            evaluate(model, test.select(torch.arange(min(EVALUATED, len(test)))))
            del model  # before there is another
        peaks[rate] = torch.cuda.max_memory_reserved()
    return peaks
