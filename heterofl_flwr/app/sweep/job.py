"""``Job``: one run of a sweep, in a folder named after its settings."""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from heterofl_flwr.app.preflight import check_task
from heterofl_flwr.app.report import lost_evaluation
from heterofl_flwr.app.request import Request
from heterofl_flwr.app.run_app import RunError, run_request
from heterofl_flwr.app.server_app import MAY_DIFFER, RESUMED
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.common.files import to_json
from heterofl_flwr.common.options import Count, Natural, ShareOrNone
from heterofl_flwr.common.user_code import allow_modules, named_modules
from heterofl_flwr.data.known import short_name
from heterofl_flwr.data.load import absolute_paths
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.scores import Score, headline, scores
from heterofl_flwr.settings.auto_values import CLIENTS, preset
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.renamed import first_names
from heterofl_flwr.settings.validate import (
    DEFAULTS,
    INCIDENTAL,
    flatten,
    from_flat,
    read_specs,
    to_flat,
    unused_settings,
    validate,
)
from heterofl_flwr.settings.value_types import AUTO, Flat, Group, Text
from heterofl_flwr.settings.without_torch import Setting
from heterofl_flwr.training.engines.plain import DivergedError

NEW, BEGUN, DONE, DIVERGED, BLOCKED = "new", "begun", "done", "diverged", "blocked"
ENDED = (DONE, DIVERGED)
"""Stages of jobs that are not run again; a diverged job would diverge again."""

LOCKS = ".locks"

_Auto = Literal["auto"]
_CountOrAuto = Annotated[Count | _Auto, "an integer of 1 or more"]


class EngineOptions(Group):
    """Options of the grid that runs a job's clients."""

    grid: Literal["local", "ray"] = "local"
    """clients run in the process of the job (local) or in Ray actors (ray)"""
    clients: _CountOrAuto = "auto"
    """number of virtual clients"""
    cpus: Count = 1
    """cores for each client"""
    gpus: Annotated[Natural | ShareOrNone | _Auto, "a share such as 0.25, or a whole number"] = "auto"
    """fraction of a GPU for each client, or a number of whole GPUs"""
    parallel: _CountOrAuto = "auto"
    """maximum number of clients at once"""


class LaunchOptions(Group):
    """Options of a sweep that are not settings of its runs."""

    folder: Text = ""
    """folder in which each run has its own folder"""
    dry: bool = False
    """only list the jobs"""
    engine: EngineOptions


LAUNCH: Mapping[str, Setting] = read_specs(LaunchOptions)
"""The launch options by key."""

IN_NAME = ("data.name", "data.split", "mix", "assignment", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of a sweep."""

    settings: Settings
    engine: EngineOptions
    path: Path = Path()  # the run's folder

    @property
    def name(self) -> str:
        """Name of the job's folder. It depends only on the number of clients and settings that can change results."""
        flat, changes = to_flat(self.settings), self.changes
        always = {key: flat[key] for key in (*IN_NAME, "model.name", "num-rounds")}
        identity = {**always, **changes, "engine.clients": self.clients}
        # The digest uses setting keys of the first version, so folders of earlier versions are found.
        digest = sha256(to_json(dict(sorted(first_names(identity).items()))).encode()).hexdigest()[:8]
        data, mix = re.sub(r"[^\w.-]+", "-", Path(self.settings.data.name).name), str(self.settings.mix)[:60]
        return f"{data}-{flat['data.split']}-{mix}-{flat['assignment']}-s{flat['seed']}-{digest}"

    @property
    def changes(self) -> dict[str, Flat]:
        """Settings, and the number of clients, that differ from the defaults for the job's data set, split and model.

        Settings in ``IN_NAME`` and ``INCIDENTAL`` are left out.
        """
        flat = to_flat(self.settings) | {"engine.clients": self.clients}
        data, split, model = (str(flat[key]) for key in ("data.name", "data.split", "model.name"))
        usual = to_flat(from_flat({"data.name": data, "data.split": split, "model.name": model}))
        usual |= {"model.name": preset(data, split)["model.name"], "engine.clients": CLIENTS.get(data, 100)}
        return {key: value for key, value in flat.items() if key not in (*IN_NAME, *INCIDENTAL) and value != usual[key]}

    def describe_changes(self) -> str:
        """Return ``changes`` as text such as ``train.lr=0.05 num-rounds=20``."""
        return " ".join(f"{key}={value}" for key, value in self.changes.items())

    @property
    def clients(self) -> int:
        """Number of virtual clients."""
        number = self.engine.clients
        return CLIENTS.get(self.settings.data.name, 100) if number == "auto" else number

    @property
    def config(self) -> dict[str, Flat]:
        """Run config of the job for Flower."""
        name, root = absolute_paths(self.settings.data.name, self.settings.data.root)
        flat = {**to_flat(self.settings), "data.name": name, "data.root": root}
        if self.engine.gpus == 0 and flat["engine.device"] == AUTO:
            flat["engine.device"] = "cpu"
        if flat["sample.min-nodes"] == DEFAULTS["sample.min-nodes"]:
            flat["sample.min-nodes"] = self.clients  # wait for all, because Flower starts the server before the nodes
        return flat | {"run.dir": str(self.path)}

    @property
    def stage(self) -> str:
        """Stage of the job: ``new``, ``begun``, ``done``, ``diverged``; ``blocked`` if its folder is unusable."""
        try:
            if is_done(self):
                return DONE
            folder = RunFolder(self.path)
            return NEW if not folder.started else DIVERGED if folder.about().get(DIVERGED) else BEGUN
        except HeteroFLError:  # running the job raises the error again
            return BLOCKED


def flat(config: DictConfig) -> dict[str, object]:
    """Return a job's configuration, without its ``hydra`` section, as a dictionary with dotted keys."""
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return flatten(cast("dict[str, object]", OmegaConf.to_container(settings, resolve=True)))


def unused_in(config: Mapping[str, object]) -> set[str]:
    """Return the keys of a flat configuration that have no effect, whatever their values, because of another key."""
    return unused_settings(_with_text(config))


def _with_text(config: Mapping[str, object]) -> dict[str, object]:
    """Return a configuration with -inf, a value of train.mask-fill, as text; Hydra reads it as a number."""
    return {key: "-inf" if value == -math.inf else value for key, value in config.items()}


def build_job(config: Mapping[str, object]) -> Job:
    """Return the job of a flat configuration; raise one ``ConfigError`` that names all faults."""
    config = _with_text(config)
    assigned = {key: value for key, value in config.items() if key not in LAUNCH}
    allow_modules(named_modules(assigned.values()))  # trusted, because the command line names this configuration
    options, faults = validate(LaunchOptions, {key: config.get(key) for key in LAUNCH}, LAUNCH)
    for key in ("run.dir", "run.resume"):
        if assigned.get(key):
            faults.append(f"{key}: found {assigned[key]!r}, but a sweep names and resumes its jobs itself; set folder")
    if options is not None and options.engine.grid == "local":
        for name, usual in (("cpus", (1,)), ("parallel", (1, AUTO)), ("gpus", (0, 1, AUTO))):
            if (value := getattr(options.engine, name)) not in usual:
                faults.append(
                    f"engine.{name}: found {value!r}, but engine.grid is local, which runs the clients in the job's "
                    f"process; expected engine=ray with it"
                )
    try:
        settings = _canonical(from_flat(assigned))
    except ConfigError as error:
        faults.append(str(error))
    if options is None or faults:
        raise ConfigError("\n  ".join(faults))
    return Job(settings=settings, engine=options.engine)


def _canonical(settings: Settings) -> Settings:
    """Return the settings in a standard form, so that settings with the same meaning are equal."""
    name = short_name(absolute_paths(settings.data.name, settings.data.root)[0])
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"name": name})})
    if len(settings.mix.rates) > 1 or settings.mix.idle:
        return settings
    # With a single level, the assignment and the counts make no difference.
    return settings.model_copy(update={"assignment": "fix", "mix": replace(settings.mix, counts=(1,))})


# Resolvers for names of folders in conf/config.yaml. Workers of launchers import this module, so they have them too.
OmegaConf.register_new_resolver("job_name", lambda *, _root_: build_job(flat(_root_)).name, replace=True)
OmegaConf.register_new_resolver("expanduser", os.path.expanduser, replace=True)


def is_done(job: Job) -> bool:
    """Whether the job's run is finished. Raise ``ConfigError`` if its folder has other settings or clients."""
    folder = RunFolder(job.path)
    if not folder.started:
        return False
    folder.check(job.config, **{**RESUMED, "resume": True, "may_differ": MAY_DIFFER})
    about = folder.about()
    if (clients := about.get("clients") or job.clients) != job.clients:
        raise ConfigError(
            f"engine.clients: found {job.clients}, but the run in {job.path} has {clients}; expected {clients}, or "
            f"another folder"
        )
    return about.get("finished") is not None


def check_jobs(jobs: Iterable[Job]) -> None:
    """Raise an error if a job's data set or model is unusable. Print the distinct lines that ``check_task`` returns.

    To save time, a job is skipped if earlier jobs of its group have all levels of its mix. The jobs of a group differ
    only in seed, number of rounds and mix. Jobs with idle clients and jobs without are in different groups, and so are
    jobs with and without clients of the global rate.
    """
    checked: dict[tuple[object, ...], set[float]] = defaultdict(set)
    sizes = []
    for job in jobs:
        mix = job.settings.mix
        kind: dict[str, object] = {**to_flat(job.settings), "seed": 0, "num-rounds": 0}
        kind["mix"] = mix.idle > 0, mix.global_rate in mix.rates
        rates = checked[*kind.values(), job.clients]
        if not rates.issuperset(mix.all_rates):
            rates.update(mix.all_rates)
            sizes.append(check_task(load_workload(job.config), job.clients))
    for size in filter(None, dict.fromkeys(sizes)):
        print(size, flush=True)


def run_once(job: Job) -> bool:
    """Run or resume a job, and return True; return False if it finished or diverged before.

    Raise ``filelock.Timeout`` if another process runs the job, and ``RunError`` if no client evaluated its last models.
    """
    with FileLock(job.path.parent / LOCKS / job.path.name, blocking=False):  # released also if the process dies
        if is_done(job) or job.stage == DIVERGED:
            return False
        folder, config = RunFolder(job.path), job.config
        if folder.started:
            config["run.resume"] = True
        options: dict[str, Any] = {name: None if value == AUTO else value for name, value in job.engine}
        options["clients"] = job.clients
        try:
            run_request(Request(config=config, out=job.path, **options))
        except HeteroFLError as error:
            if DivergedError.__name__ in str(error):  # by name, because errors of clients arrive as text
                folder.note(**{DIVERGED: True})
            raise
    if fault := lost_evaluation(job.path):
        raise RunError(f"{fault}; the job is done: to run it again, remove its folder")
    return True


def read_score(job: Job) -> Score | None:
    """Return the score of ``run.metric`` or, if that is empty, of the headline metric.

    Return None if it was not measured, or if the run diverged.
    """
    if job.stage == DIVERGED:
        return None
    records = RunFolder(job.path).history()
    name = job.settings.run.metric or headline(records[::-1])
    return next((score for score in scores(records) if score.name == name), None)
