"""The grid of a run: processes of this machine, or Ray's actors."""

import math
from collections.abc import Callable
from functools import partial

from flwr.app import ArrayRecord, Message

from heterofl_flwr.app.launch.gpus import cores
from heterofl_flwr.app.launch.request import App, Request
from heterofl_flwr.app.node import NODE_STATES
from heterofl_flwr.app.task import task_of
from heterofl_flwr.grids import LocalGrid, RayGrid
from heterofl_flwr.grids.local import QueuedGrid
from heterofl_flwr.messages import size_of
from heterofl_flwr.runs import RunFolder
from heterofl_flwr.training.engines import MOST_ON_CPU

STEP = 500_000
"""Bytes of parameters that take a training step as long as all that does not depend on the model's size.

With the paper's CNN on a CPU, steps of 10 images at levels a to e take 29, 9, 3.4, 2.4 and 2.3 ms (0.5 MB: 2.3 ms).
"""


def open_grid(request: Request, app: App) -> QueuedGrid:
    """Return the grid on which an app's clients run; it is the caller's to close."""
    states = {} if request.app is not None else {NODE_STATES: str(RunFolder(request.out).clients.resolve())}
    share = request.share
    open_one = (
        partial(RayGrid, num_cpus=share.cpus, num_gpus=share.gpus, at_once=share.at_once)
        if request.grid == "ray"
        else partial(LocalGrid, processes=processes_of(request))
    )
    return open_one(
        app.client,
        request.clients,
        cohort=cohort_of(request),
        run_config=app.config,
        cost=cost,
        node_config=lambda partition: states,
    )


def processes_of(request: Request) -> int:
    """Return how many worker processes run the clients; 0 for this process alone.

    On a GPU one process is best, unless the user asks for more: clients that train together keep it busy.
    """
    if request.app is None and task_of(request.config).device.type != "cpu" and request.share.at_once is None:
        return 0
    return request.share.clients(cores(), 0)


def cohort_of(request: Request) -> Callable[[Message], int]:
    """Return from a message to how many clients may train together."""
    if request.app is not None:
        return lambda message: 1
    task = task_of(request.config)
    # On a CPU, clients of larger models do not train together, and had better train on all cores.
    limit = 4 * MOST_ON_CPU if task.device.type == "cpu" and task.settings.engine.name == "auto" else math.inf
    return lambda message: task.cohort if _bytes_of(message) <= limit else 1


def cost(message: Message) -> float:
    """Return how long a client takes beside others: the larger its model, the longer."""
    return STEP + _bytes_of(message)


def _bytes_of(message: Message) -> int:
    return sum(size_of(record) for record in message.content.values() if isinstance(record, ArrayRecord))
