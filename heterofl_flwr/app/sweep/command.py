"""The command that runs a sweep with Hydra."""

import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from heterofl_flwr.common.errors import ConfigError, HeteroFLError, extra

with extra("sweeps"):
    import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from heterofl_flwr.app.main import FAILED
from heterofl_flwr.app.run_app import LOG, RunError
from heterofl_flwr.app.sweep.job import DIVERGED, ENDED, LAUNCH, build_job, check_jobs, flat, read_score, run_once
from heterofl_flwr.runs.origin import command
from heterofl_flwr.settings.validate import SPECS, unknown_settings

logger = logging.getLogger("sweep")  # not a child of the package's logger, which a run redirects to its folder

PACKAGE = Path(__file__).parents[2]
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())
"""Folder of the configurations: inside an installed package, or next to the package in a checkout."""


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def run_job(config: DictConfig) -> float | None:
    """Run a job, unless it has ended; return the final value of the job's metric, for optimising sweepers.

    Return None if another process runs the job, if it diverged before, or if it has not measured the metric. Raise
    ``RunError`` if the job fails.
    """
    hydra_config = HydraConfig.get()
    job = replace(build_job(flat(config)), path=Path(hydra_config.runtime.output_dir))
    if hydra_config.mode is RunMode.RUN or "blocks" not in hydra_config.sweeper:  # BlockSweeper has checked its jobs
        if config.dry:
            raise ConfigError("dry: found true, but here the jobs are not known in advance; expected false")
        check_jobs([job] if job.stage not in ENDED else [])
    logger.info("%s", "; ".join(filter(None, [f"job {job.path.name}", job.describe_changes()])))
    try:
        if not run_once(job):
            remedy = "; remove its folder to run it again" if job.stage == DIVERGED else ""
            logger.info("%s before%s", job.stage, remedy)
    except Timeout:
        logger.warning("not done here: %s runs in another process", job.path.name)
        return None
    except Exception as error:
        cause = str(error) if isinstance(error, HeteroFLError) else f"{type(error).__name__}: {error}"
        logger.error("failed: %s", cause)
        raise RunError(cause) from error
    score = read_score(job)
    if score is None and job.stage != DIVERGED and (metric := job.settings.run.metric):
        logger.warning("run.metric: found %r, but no evaluation of this job has this metric", metric)
    return score.final if score else None


def run_sweep(arguments: Sequence[str]) -> int:
    """Run a sweep with Hydra's arguments; return the exit code."""
    command()  # stores the user's command in the environment, for the processes of the jobs
    sys.argv = [f"{Path(sys.argv[0]).name} sweep", *arguments]  # Hydra reads its arguments only from here
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints errors itself, in many lines, and ends the process
    try:
        run_job()
    except RunError as error:
        print(f"heterofl: {error}\nthe whole log of a job: {LOG} in its folder", file=sys.stderr)
        return FAILED
    except (HydraException, OmegaConfBaseException, YAMLError) as error:  # of the arguments, or of the user's files
        raise ConfigError(_describe_misuse(error)) from error
    except ValueError as error:
        if "override must be a string" not in str(error):  # Hydra does not name the group
            raise
        named = " ".join([text for text in arguments if text.endswith("=null")] or arguments)
        raise ConfigError(f"{named}: a group such as experiment or data is null; {error}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    return 0


def _describe_misuse(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        return f"{error.override}: this is no override such as key=value; {str(error).partition(chr(10))[0]}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        path = str(error.missing_cfg_file)
        group, _, name = path.rpartition("/") if path.startswith("hydra/") else path.partition("/")
        more = "; the extra sweep-plugins has more" if group.startswith("hydra/") else ""
        more = f", or {group}.name={name}" if f"{group}.name" in SPECS else more
        return f"{group}: found {name!r}, expected one of {', '.join(error.options)}{more}"
    if match := re.match("Could not override '([^']+)'", str(error)):
        return "; ".join(unknown_settings([match[1]], [*SPECS, *LAUNCH]))
    lines = re.sub(r"^\w+ raised while resolving interpolation: |\s+full_key: (?s:.*)", "", str(error))
    return " ".join(lines.split())
