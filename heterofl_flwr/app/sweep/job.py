"""A job: one run of a sweep. Its settings alone decide its name; its folder tells what is left to do."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from heterofl_flwr.app.preflight import check_task
from heterofl_flwr.app.run_request import WINDOW, Request
from heterofl_flwr.app.server_app import MAY_DIFFER_ON_RESUME, RESUMED
from heterofl_flwr.app.simulation import run_request
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.common.files import to_json
from heterofl_flwr.common.options import Count
from heterofl_flwr.common.user_code import allow_modules, named_modules
from heterofl_flwr.data.known import short_name
from heterofl_flwr.data.load import absolute_paths
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.metrics import Score, headline, scores
from heterofl_flwr.settings.defaults import CLIENTS, preset
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.flat import DEFAULTS, first_names, flatten, from_flat, read_specs, to_flat, validate
from heterofl_flwr.settings.stored_settings import Setting
from heterofl_flwr.settings.value_types import AUTO, Flat, Group, Text
from heterofl_flwr.training.engines.plain import DivergedError

NEW, BEGUN, DONE, DIVERGED, BLOCKED = "new", "begun", "done", "diverged", "blocked"
ENDED = (DONE, DIVERGED)
"""Stages without further work; a diverged job would diverge again."""

LOCKS = ".locks"

_Auto = Literal["auto"]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_WholeNumber = Annotated[float, Field(ge=1, multiple_of=1)]
_CountOrAuto = Annotated[Count | _Auto, "an integer of 1 or more"]


class EngineOptions(Group):
    """Options of the grid that runs a job's clients."""

    grid: Literal["local", "ray"] = "local"
    """the process of the job, or Ray's"""
    clients: _CountOrAuto = "auto"
    """virtual clients"""
    cpus: Count = 1
    """cores for each client"""
    gpus: Annotated[_Fraction | _WholeNumber | _Auto, "a share such as 0.25, or a whole number"] = "auto"
    """share of a GPU for each client"""
    parallel: _CountOrAuto = "auto"
    """clients at once"""


class LaunchOptions(Group):
    """Options of a configuration that are no settings of a run: how it is started."""

    folder: Text = ""
    """the folder of all runs"""
    dry: bool = False
    """whether the jobs are only listed"""
    engine: EngineOptions


LAUNCH: Mapping[str, Setting] = read_specs(LaunchOptions)
"""The launch options by key."""

KEPT = ("engine.timeout", "run.callbacks", "run.checkpoint-every", "sample.min-nodes", "sample.wait")
"""Settings that change no result, and that a run which is resumed has to keep all the same."""

MAY_DIFFER = (*(key for key in MAY_DIFFER_ON_RESUME if key != "num-rounds"), *KEPT)
"""Settings in which a job may differ from what its folder holds of it."""

INCIDENTAL = tuple(key for key in MAY_DIFFER if key != "sample.min-replies")
"""Settings that change no result; jobs that differ in nothing else are one."""

IN_NAME = ("data.name", "data.split", "mix", "assignment", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of a sweep."""

    settings: Settings
    engine: EngineOptions
    path: Path = Path()  # the run's folder

    @property
    def name(self) -> str:
        """The name: the same in every sweep for the same results, and readable."""
        flat, changes = to_flat(self.settings), self.changes
        always = {key: flat[key] for key in (*IN_NAME, "model.name", "num-rounds")}
        identity = {**always, **changes, "engine.clients": self.clients}
        # Names of earlier versions, so that folders of finished jobs are found.
        digest = sha256(to_json(dict(sorted(first_names(identity).items()))).encode()).hexdigest()[:8]
        data, mix = re.sub(r"[^\w.-]+", "-", Path(self.settings.data.name).name), str(self.settings.mix)[:60]
        return f"{data}-{flat['data.split']}-{mix}-{flat['assignment']}-s{flat['seed']}-{digest}"

    @property
    def changes(self) -> dict[str, Flat]:
        """Differences from the published settings of the data set that are not in the name.

        A setting that a later version adds, with a default that changes nothing, leaves jobs as they are.
        """
        flat = to_flat(self.settings) | {"engine.clients": self.clients}
        data, split, model = (str(flat[key]) for key in ("data.name", "data.split", "model.name"))
        usual = to_flat(from_flat({"data.name": data, "data.split": split, "model.name": model}))
        usual |= {"model.name": preset(data, split)["model.name"], "engine.clients": CLIENTS.get(data, 100)}
        return {key: value for key, value in flat.items() if key not in (*IN_NAME, *INCIDENTAL) and value != usual[key]}

    def describe_changes(self) -> str:
        """Return in a line what differs from the published settings."""
        return " ".join(f"{key}={value}" for key, value in self.changes.items())

    @property
    def clients(self) -> int:
        """The number of virtual clients."""
        number = self.engine.clients
        return CLIENTS.get(self.settings.data.name, 100) if number == "auto" else number

    @property
    def config(self) -> dict[str, Flat]:
        """The run config."""
        name, root = absolute_paths(self.settings.data.name, self.settings.data.root)
        flat = {**to_flat(self.settings), "data.name": name, "data.root": root}
        if self.engine.gpus == 0 and flat["engine.device"] == AUTO:
            flat["engine.device"] = "cpu"
        if flat["sample.min-nodes"] == DEFAULTS["sample.min-nodes"]:
            flat["sample.min-nodes"] = self.clients  # Flower starts the server before the nodes
        return flat | {"run.dir": str(self.path), "engine.window": flat["engine.window"] or WINDOW}

    @property
    def stage(self) -> str:
        """``new``, ``begun``, ``done``, ``diverged`` or, where its folder cannot be used, ``blocked``."""
        try:
            if is_done(self):
                return DONE
            folder = RunFolder(self.path)
            return NEW if not folder.started else DIVERGED if folder.about().get(DIVERGED) else BEGUN
        except HeteroFLError:  # running the job will say why
            return BLOCKED


def flat(config: DictConfig) -> dict[str, object]:
    """Return a composed configuration without Hydra's own part, with dotted keys."""
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return flatten(cast("dict[str, object]", OmegaConf.to_container(settings, resolve=True)))


def build_job(config: Mapping[str, object]) -> Job:
    """Return the job of a configuration with dotted keys; all its faults are raised in one ``ConfigError``."""
    # Hydra reads -inf, which train.mask-fill can be, as a number.
    config = {key: str(value) if value in (float("inf"), float("-inf")) else value for key, value in config.items()}
    assigned = {key: value for key, value in config.items() if key not in LAUNCH}
    allow_modules(named_modules(assigned.values()))  # the command line chose this configuration
    options, faults = validate(LaunchOptions, {key: config.get(key) for key in LAUNCH}, LAUNCH)
    for key in ("run.dir", "run.resume"):
        if assigned.get(key):
            faults.append(f"{key}: found {assigned[key]!r}, but a sweep names and resumes its jobs itself; set folder")
    try:
        settings = _canonical(from_flat(assigned))
    except ConfigError as error:
        faults.append(str(error))
    if options is None or faults:
        raise ConfigError("\n  ".join(faults))
    return Job(settings=settings, engine=options.engine)


def _canonical(settings: Settings) -> Settings:
    """Return equal settings in one form."""
    name = short_name(absolute_paths(settings.data.name, settings.data.root)[0])
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"name": name})})
    if len(settings.mix.rates) > 1 or settings.mix.idle:
        return settings
    # Of a single level all clients have it, however it is assigned.
    return settings.model_copy(update={"assignment": "fix", "mix": replace(settings.mix, counts=(1,))})


# conf/config.yaml names folders by these. A launcher's worker imports this module with the job, and so has them too.
OmegaConf.register_new_resolver("job_name", lambda *, _root_: build_job(flat(_root_)).name, replace=True)
OmegaConf.register_new_resolver("expanduser", os.path.expanduser, replace=True)


def is_done(job: Job) -> bool:
    """Return whether the job's folder holds all of its run; raise ``ConfigError`` if it holds another one."""
    folder = RunFolder(job.path)
    if not folder.started:
        return False
    folder.check(job.config, **{**RESUMED, "resume": True, "may_differ": MAY_DIFFER})
    return folder.about().get("finished") is not None


def check_jobs(jobs: Iterable[Job]) -> None:
    """Raise what would end jobs before their first round: one of each kind is checked, which loads its data.

    Jobs of one kind differ in mix, seed and rounds alone, which were checked when they were read.
    """
    kinds: dict[tuple[object, ...], Job] = {}
    for job in jobs:
        kind = {**to_flat(job.settings), "mix": "", "assignment": "", "seed": 0, "num-rounds": 0}
        kinds[*kind.values(), job.clients] = job
    for job in kinds.values():
        check_task(load_workload(job.config), job.clients)


def run_once(job: Job) -> bool:
    """Run a job, or resume it, if it is not done; return whether there was anything to do.

    Raises
    ------
    filelock.Timeout
        If another process runs it.
    HeteroFLError
        If it ended before its end, or its folder holds another run.
    """
    with FileLock(job.path.parent / LOCKS / job.path.name, blocking=False):  # the system unlocks it with the process
        if is_done(job) or job.stage == DIVERGED:
            return False
        folder, config = RunFolder(job.path), job.config
        if folder.started:
            stored = cast("dict[str, Flat]", folder.settings())
            config |= {"run.resume": True, **{key: stored[key] for key in KEPT if key in stored}}
        options: dict[str, Any] = {name: None if value == AUTO else value for name, value in job.engine}
        options["clients"] = job.clients
        try:
            run_request(Request(config=config, out=job.path, **options))
        except HeteroFLError as error:
            if DivergedError.__name__ in str(error):  # by name, as clients answer with text
                folder.note(**{DIVERGED: True})
            raise
    return True


def read_score(job: Job) -> Score | None:
    """Return the score of the metric by which the run chooses its best round (``run.metric``)."""
    records = RunFolder(job.path).history()
    name = job.settings.run.metric or headline(records[::-1])
    return next((score for score in scores(records) if score.name == name), None)
