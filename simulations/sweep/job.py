"""A job: one run of a sweep, under a name that its settings alone decide."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

from heterofl_flwr.app.cli.run import WINDOW
from heterofl_flwr.app.server_app import MAY_DIFFER_ON_RESUME
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.data.load import ROOT_VARIABLE
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.runs.files import to_json
from heterofl_flwr.settings import (
    AUTO,
    CLIENTS,
    DEFAULTS,
    PRESETS,
    Flat,
    Settings,
    flatten,
    from_flat,
    preset,
    short_name,
    to_flat,
)
from heterofl_flwr.settings.flat import Setting, read_specs, validate
from heterofl_flwr.settings.types import Count, Group, matching, setting

CLIENTS_KEY = "engine.clients"


def _read_auto(value: object) -> object:
    """Return None for ``auto``."""
    if value is None:
        raise ValueError
    return None if value == AUTO else value


def _check_share(value: float | None) -> float | None:
    if value is not None and (value < 0 or (value > 1 and value != int(value))):
        raise ValueError
    return value


_CountOrAuto = Annotated[Count | None, BeforeValidator(_read_auto), "an integer of 1 or more"]
_ShareOrAuto = Annotated[
    float | None, BeforeValidator(_read_auto), AfterValidator(_check_share), "a share such as 0.25, or a whole number"
]


class EngineOptions(Group):
    """What runs a job's clients."""

    grid: Literal["local", "ray"] = setting("local", "processes of this machine, or Ray's")
    clients: _CountOrAuto = setting(AUTO, "virtual clients")
    cpus: Count = setting(1, "cores for each client")
    gpus: _ShareOrAuto = setting(AUTO, "share of a GPU for each client")
    parallel: _CountOrAuto = setting(AUTO, "clients at once")


class LaunchOptions(Group):
    """What a configuration says beside a run's settings: how it is started."""

    folder: Annotated[str, matching(r"[^\x00]+"), "a path"] = setting("", "the folder of all runs")
    dry: bool = setting(False, "whether the jobs are only listed")
    engine: EngineOptions


KINDS: Mapping[str, Setting] = read_specs(LaunchOptions)
"""The launch options by key."""

KEPT = ("engine.timeout", "run.callbacks", "run.checkpoint-every", "sample.min-nodes", "sample.wait")
"""Settings that change no result, and that a run which goes on has to keep all the same."""

INCIDENTAL = (*(key for key in MAY_DIFFER_ON_RESUME if key != "num-rounds"), *KEPT)
"""Settings that change no result; jobs that differ in nothing else are one."""

IN_NAME = ("data.name", "data.split", "mix", "assignment", "seed")

ALWAYS = (*IN_NAME, "model.name", "num-rounds")
"""Settings that tell jobs apart, whatever is published."""

LONGEST_MIX = 60  # characters of a folder's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a job is started; None stands for ``auto``."""

    grid: str
    clients: int
    cpus: int
    gpus: float | None
    parallel: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of a sweep, and the folder of all of them."""

    settings: Settings
    launch: Launch
    folder: Path

    @property
    def name(self) -> str:
        """The name: the same in every sweep for the same results, and readable."""
        flat = to_flat(self.settings)
        data = re.sub(r"[^\w.-]+", "-", Path(short_name(self.settings.data.name)).name)
        mix = str(self.settings.mix)[:LONGEST_MIX]
        identity = {**{key: flat[key] for key in ALWAYS}, **self.changes, CLIENTS_KEY: self.launch.clients}
        digest = sha256(to_json(dict(sorted(identity.items()))).encode()).hexdigest()[:8]
        return f"{data}-{flat['data.split']}-{mix}-{flat['assignment']}-s{flat['seed']}-{digest}"

    @property
    def changes(self) -> dict[str, Flat]:
        """What differs from the published settings of the data set, beside what is in the name.

        A setting that a later version adds, with a default that changes nothing, leaves jobs as they are.
        """
        flat = to_flat(self.settings)
        data, split, model = (str(flat[key]) for key in ("data.name", "data.split", "model.name"))
        usual = {
            **to_flat(from_flat({"data.name": data, "data.split": split, "model.name": model})),
            "model.name": preset(data, split)["model.name"],
        }
        told = (*IN_NAME, *INCIDENTAL)
        changes = {key: value for key, value in flat.items() if key not in told and value != usual[key]}
        clients = {} if self.launch.clients == _clients(data) else {CLIENTS_KEY: self.launch.clients}
        return changes | clients

    @property
    def path(self) -> Path:
        """The job's folder."""
        return self.folder / self.name

    @property
    def config(self) -> dict[str, Flat]:
        """The run config."""
        flat = to_flat(self.settings)
        root = str(flat["data.root"]) or os.environ.get(ROOT_VARIABLE, "")
        own = flat["sample.min-nodes"] != DEFAULTS["sample.min-nodes"]
        return flat | {
            "engine.device": "cpu"
            if self.launch.gpus == 0 and flat["engine.device"] == AUTO
            else flat["engine.device"],
            "run.dir": str(self.path),
            "data.root": str(Path(root).expanduser().resolve()) if root else "",
            "engine.window": flat["engine.window"] or WINDOW,
            # Flower starts the server before the nodes.
            "sample.min-nodes": flat["sample.min-nodes"] if own else self.launch.clients,
        }


def job_of(config: Mapping[str, object]) -> Job:
    """Return the job that a composed configuration describes; all its faults are raised in one ``ConfigError``."""
    flat = {key: _plain(value) for key, value in flatten(config).items()}
    given = {key: value for key, value in flat.items() if key not in KINDS}
    options, faults = validate(LaunchOptions, {key: flat.get(key) for key in KINDS}, KINDS)
    for key in ("run.dir", "run.resume"):
        if given.get(key):
            faults.append(f"{key}: found {given[key]!r}, but a sweep names and resumes its jobs itself; set folder")
    try:
        settings = _canonical(from_flat(given))
    except ConfigError as error:
        faults.append(str(error))
    if options is None or faults:
        raise ConfigError("\n  ".join(faults))
    engine = options.engine
    launch = Launch(
        grid=engine.grid,
        clients=engine.clients or _clients(settings.data.name),
        cpus=engine.cpus,
        gpus=engine.gpus,
        parallel=engine.parallel,
    )
    return Job(settings=settings, launch=launch, folder=Path(options.folder).expanduser().resolve())


def _clients(data: str) -> int:
    return CLIENTS.get(short_name(data), 100)


def _canonical(settings: Settings) -> Settings:
    """Return equal settings in one form."""
    path = Path(settings.data.name).expanduser()
    name = str(path.resolve()) if path.is_dir() and settings.data.name not in PRESETS else settings.data.name
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"name": short_name(name)})})
    if len(settings.mix.rates) > 1:
        return settings
    # Of a single level all clients have it, however it is dealt.
    return settings.model_copy(update={"assignment": "fix", "mix": Mix(settings.mix.rates, (1,))})


def _plain(value: object) -> object:
    # Hydra reads -inf, which train.mask-fill can be, as a number.
    return str(value) if value in (float("inf"), float("-inf")) else value
