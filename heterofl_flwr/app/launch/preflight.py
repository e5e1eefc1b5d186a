"""What is checked before a run starts, and the note with which one that ended at once can be resumed."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from heterofl_flwr.app.launch import machine
from heterofl_flwr.app.launch.request import CLUSTER, Share
from heterofl_flwr.app.server_app import build_devices, make_strategy
from heterofl_flwr.app.task import Task
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.nn.models import MODELS, Build
from heterofl_flwr.nn.profile import build_and_profile
from heterofl_flwr.runs.files import to_json, write_atomic
from heterofl_flwr.settings.presets import architectures

FILE = Path("logs", "launch.json")


@dataclass(frozen=True, slots=True)
class LaunchNote:
    """The number of virtual clients, and the run config."""

    clients: int
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, out: Path) -> Self | None:
        """Return the note in a run's folder, if there is one."""
        try:
            found = json.loads((out / FILE).read_text(encoding="utf-8"))
            return cls(int(found["clients"]), dict(found.get("config", {})))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, out: Path) -> None:
        """Write the note; the folder is made with it."""
        write_atomic(out / FILE, to_json({"clients": self.clients, "config": dict(self.config)}).encode())


def check_folder(out: Path, option: str) -> None:
    """Raise ``ConfigError`` if a folder is not there and cannot be made."""
    try:
        there = next(path for path in (out, *out.parents) if path.exists())
    except OSError as error:  # such as a name that is too long
        raise ConfigError(f"{option} {out}: {error.strerror}; name another folder") from error
    if not there.is_dir():
        raise ConfigError(f"{option} {out}: {there} is a file; expected a folder, or none")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {out}: {there} cannot be written to; name another folder")


def check_share(share: Share) -> None:
    """Raise ``ConfigError`` if this machine lacks what a single client is to get."""
    if CLUSTER in os.environ:
        return
    cores, devices = machine.cores(), machine.devices()
    faults = []
    if share.cpus > cores:
        faults.append(f"cpus is {share.cpus}, and this machine has {cores} cores: ask for {cores} or fewer")
    if share.gpus > devices:
        remedy = f"ask for {devices} or fewer" if devices else "ask for 0, or for auto"
        faults.append(f"gpus is {share.gpus:g}, and this machine has {devices or 'none'}: {remedy}")
    if faults:
        raise ConfigError("; ".join(faults))


def check_task(task: Task, clients: int) -> None:
    """Raise an error if there is no such data set, if it is too small for the clients, or if a model does not fit it.

    The data set is loaded for it.
    """
    try:
        task.partitions(clients)
        make_strategy(task, ())
        build_devices(task)
        if task.settings.server.strategy == "fedh2l":
            task.seeds(clients)
        _ = task.metric  # loads the user's function
    except HeteroFLError:
        raise
    except Exception:  # a user's own function raises what it likes; the run itself will say so, with its trace
        return
    names = architectures(task.settings) or (task.settings.model.name,)
    for name, build in zip(names, task.builds, strict=True):
        if name in MODELS:  # a user's own may do what no test can foresee
            _check_fit(task, name, build)
    _say_size(task, clients)


def _say_size(task: Task, clients: int) -> None:
    """Print how many clients a round asks, and how far each trains."""
    train, parts = task.settings.train, task.partitions(clients).train
    asked = task.settings.sample.number(clients, "train")
    steps = f", about {max(train.epochs * sum(map(len, parts)) / clients / train.batch_size, 1):.0f} steps each"
    text = task.dataset.train.reading is not None  # whose rows are long
    print(f"{asked} of {clients} clients train in each round{'' if text else steps}")
    if task.settings.assignment == "fix" and clients < len(task.mix.parts):
        print(f"{clients} clients share the {len(task.mix.parts)} parts of the mix {task.mix}, so some level has none")


def _check_fit(task: Task, name: str, build: Build) -> None:
    example = task.example()
    try:
        build_and_profile(build, task.mix.global_rate, example)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"the model {name} cannot read the data set {task.settings.data.name}, whose inputs are "
            f"{example.dtype} of shape {tuple(example.shape[1:])} ({reason}): name another model (model.name), or auto"
        ) from error
