"""``open_grid``: the grid of a simulation, with its clients' share of the GPUs and the size of its cohorts."""

import math
from collections.abc import Callable
from functools import partial

import torch
from flwr.app import Message

from heterofl_flwr.app.request import Request
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.client.state import NODE_STATES
from heterofl_flwr.grids import LocalGrid, RayGrid
from heterofl_flwr.grids.queued import QueuedGrid
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.training.engines.choose import MOST_ON_CPU
from heterofl_flwr.transport.arrays import content_bytes

STEP = 500_000
"""Constant part of the cost of a training step, in units of the cost of one byte of parameters.

With the paper's CNN on a CPU, steps of 10 images at levels a to e take 29, 9, 3.4, 2.4 and 2.3 ms. The constant part is
about 2.3 ms, as much as 0.5 MB of parameters.
"""


def open_grid(request: Request) -> QueuedGrid:
    """Return the grid for an app's clients; the caller must close it."""
    states = {NODE_STATES: str(RunFolder(request.out).clients.resolve())}
    kind: Callable[..., QueuedGrid] = LocalGrid
    if request.grid == "ray":
        kind = partial(RayGrid, num_cpus=request.cpus, num_gpus=gpus_per_client(request), at_once=request.parallel)
    return kind(
        request.client,
        request.clients,
        cohort=cohort_limit(request),
        by_rate=request.app is not None or not load_workload(request.config).mixes_rates,
        run_config=request.config,
        cost=cost,
        node_config=lambda partition: states,
    )


def gpus_per_client(request: Request) -> float:
    """Return the number of GPUs for each client, such as 0.25: ``request.gpus``, or a default if it is None.

    By default, ``parallel`` clients share all GPUs. If ``parallel`` is None too, each client has one GPU. The default
    is 0 if the machine has no GPU, if clients compute on the CPU, or if the app is not this package's.
    """
    number = torch.cuda.device_count()
    if request.gpus is not None or request.app is not None or request.config["engine.device"] == "cpu" or not number:
        return request.gpus or 0.0
    return math.floor(1e4 / math.ceil((request.parallel or number) / number)) / 1e4


def cohort_limit(request: Request) -> Callable[[Message], int]:
    """Return a function from a client's message to the maximum size of the client's group, which trains together."""
    if request.app is not None:
        return lambda message: 1
    workload = load_workload(request.config)
    # On a CPU, only clients of smaller models train together; for larger ones, Ray uses the cores better.
    limit = 4 * MOST_ON_CPU if workload.device.type == "cpu" and workload.settings.engine.name == "auto" else math.inf
    return lambda message: workload.cohort if cost(message) - STEP <= limit else 1


def cost(message: Message) -> float:
    """Return the estimated cost of a client's training step: the bytes of its message, plus ``STEP``."""
    return STEP + content_bytes(message.content)
