"""Run what conf/ describes: a single job, or all jobs of a sweep, several seeds, a table or a figure of the paper.

Usage, from the project's root:

    python -m simulations.sweep data=mnist mix=a-e
    python -m simulations.sweep -m experiment=table7 seed=0,1,2
    python -m simulations.sweep -m experiment=table7 dry=true
    python -m simulations.sweep -m experiment=table5 data=mnist mix=e

A value that an experiment has picks its rows with that value; any other takes the place of the experiment's own. The
same command again goes on where the last one was: each job has a folder of its own, below ``folder``, and what is done
is not repeated, whichever experiment it was done for. Several processes may work at one sweep.

Jobs run one after the other, each with as many clients at once as there are cores. With the package
hydra-joblib-launcher several run at once: hydra/launcher=joblib hydra.launcher.n_jobs=4 engine.parallel=1. With
hydra-ray-launcher they spread over a Ray cluster: hydra/launcher=ray. Not to be confused with engine=ray, where the
clients of one job are Ray's.

The exit status is 0 if nothing failed, 1 if jobs failed, and 2 if nothing was run because something was wrong with what
was asked.
"""

import os
import re
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from heterofl_flwr.app.cli.main import FAILED, status_of
from heterofl_flwr.app.launch.running import RunError
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.runs.origin import command_known, own_command
from heterofl_flwr.settings import from_flat
from simulations.sweep.job import job_of
from simulations.sweep.plan import flat
from simulations.sweep.state import run_once
from simulations.sweep.sweeper import register

_KEY = re.compile(r"Could not override '(?P<key>[^']+)'")


def complaint(error: Exception) -> str:
    """Return what to tell the user."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: this is no override such as key=value; {str(error).partition(chr(10))[0]}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: found {name!r}, expected one of {', '.join(error.options)}"
    match = _KEY.match(str(error))
    if match:
        return _unknown(match["key"])
    return " ".join(str(error).split())


def _unknown(key: str) -> str:
    try:
        from_flat({key: ""})
    except ConfigError as error:
        return str(error)
    return f"{key}: the configuration has no such key"


CONF = Path(__file__).parents[2] / "conf"
FULL_ERROR = "HYDRA_FULL_ERROR"
PROGRAM = "simulations.sweep"


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def run(config: DictConfig) -> bool:
    """Run one job."""
    return run_once(job_of(flat(config)))


def main() -> int:
    """Run what the command line says; return the exit status."""
    register()
    if FULL_ERROR in os.environ:
        run()
        return 0
    os.environ[FULL_ERROR] = "1"  # else Hydra itself prints what is wrong, in many lines, and ends the process
    try:
        with command_known(own_command()):
            return status_of(PROGRAM, _run)
    finally:
        del os.environ[FULL_ERROR]


def _run() -> int:
    try:
        run()
    except RunError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return FAILED
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(complaint(error)) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
