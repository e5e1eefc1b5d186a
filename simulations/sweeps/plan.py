"""Which jobs a command asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from heterofl_flwr.errors import ConfigError
from simulations.sweeps.composer import Composer
from simulations.sweeps.job import Job, job_of
from simulations.sweeps.rows import Row, axes_of, block_of, rows_of


@dataclass(frozen=True, slots=True)
class Planned:
    """A job, and the overrides of which Hydra makes it."""

    job: Job
    row: Row


def plan(loader: ConfigLoader, master: DictConfig, arguments: Sequence[str]) -> dict[str, Planned]:
    """Return the different jobs by name; refuse all if one is faulty.

    Parameters
    ----------
    loader : ConfigLoader
        Hydra's.
    master : DictConfig
        The configuration that all jobs share; its ``hydra.sweeper.params`` has the blocks of experiments.
    arguments : Sequence[str]
        The overrides of the command line.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = axes_of(arguments, parser)
    _check_experiment(given.get("experiment", ()))
    blocks = _blocks(master.hydra.sweeper.params)
    compose = Composer(loader, master, parser)
    planned: dict[str, Planned] = {}
    faults: dict[str, None] = {}  # one fault may be that of all jobs
    for row in rows_of([block_of(block, parser) for block in blocks], given):
        try:
            job = job_of(compose(row))
            planned.setdefault(job.name, Planned(job, row))
        except ConfigError as error:
            faults[str(error)] = None
    if faults:
        raise ConfigError("\n".join(faults))
    return planned


def _blocks(params: Mapping[str, object]) -> list[Mapping[str, object]]:
    for key, block in params.items():
        if not isinstance(block, Mapping):
            raise ConfigError(f"hydra.sweeper.params.{key}: found {block!r}, expected a block; write {key}=... itself")
    return [block for block in params.values() if isinstance(block, Mapping)]


def _check_experiment(texts: Sequence[str]) -> None:
    if len(texts) > 1:  # Hydra would compose them job by job, too late for their rows to count
        names = ",".join(text.partition("=")[2] for text in texts)
        raise ConfigError(f"experiment={names} is no choice of rows; write experiment=[{names}]")
