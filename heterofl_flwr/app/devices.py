"""The simulated devices that the settings name."""

import math
from collections.abc import Callable

from flwr.serverapp import Grid
from torch import nn

from heterofl_flwr import messages as wire
from heterofl_flwr.app.task import Task, load_function
from heterofl_flwr.grids.devices import BUNDLED, PASSES, Devices, Profiles, Training
from heterofl_flwr.grids.simulated import SimulatedDevices
from heterofl_flwr.settings.presets import EXCHANGES


def on_devices(grid: Grid, task: Task) -> Grid:
    """Return a grid with the devices that the settings name on it; the grid itself where nothing is simulated."""
    devices = devices_of(task)
    return SimulatedDevices(grid, devices, min_replies=task.settings.sample.min_replies) if devices else grid


def devices_of(task: Task) -> Devices | None:
    """Return what the clients' devices can do; None where nothing is simulated."""
    devices = task.settings.devices
    name = devices.profile
    if not name:
        return None
    profiles: Profiles = BUNDLED[name] if name in BUNDLED else load_function(name, "devices.profile")()
    work = Distilling(task) if task.settings.server.strategy in EXCHANGES else training_of(task, task.build)
    return Devices(profiles, work, deadline=devices.deadline or math.inf)


def training_of(task: Task, build: Callable[[float], nn.Module]) -> Training:
    """Return the work of training a model on a client's own examples."""
    train, settings = task.dataset.train, task.settings.train
    pieces = 1.0 if train.reading is None else train.inputs.shape[1] / train.reading.length
    smaller = task.mix.rates if settings.ordered_dropout else ()
    return Training(build, task.example(), epochs=settings.epochs, inputs=pieces, smaller=smaller)


class Distilling:
    """The work of two exchanges: training and publishing, then the seed steps; each architecture has its own."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._training: dict[Callable[[float], nn.Module], Training] = {}

    def __call__(self, kind: str, partition: int, rate: float, examples: int) -> float:
        """Return the multiplications of a client's work."""
        build, settings = self._task.build_of(partition), self._task.settings
        if build not in self._training:
            self._training[build] = training_of(self._task, build)
        training, distill = self._training[build], settings.distill
        if kind == wire.TRAIN_PUBLISH:
            return training(kind, partition, rate, examples) + distill.seed_batch * training.forward(rate)
        a_step = min(settings.train.batch_size, examples) + distill.seed_batch
        return PASSES * distill.steps * a_step * training.forward(rate)
