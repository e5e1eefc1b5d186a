"""Run what conf/ describes with Hydra: a job, or all jobs of a sweep, several seeds, a table or a figure of the paper.

What it adds to Hydra: a job's folder is named by its settings, so what is done is not repeated, whichever sweep it was
done for, and the same command again resumes what was cut off. Jobs are checked before the first one starts.

The exit status is 0 if nothing failed, 1 if jobs failed, and 2 if nothing was run because something was wrong with what
was asked.
"""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from filelock import Timeout
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from heterofl_flwr.app.cli.main import FAILED, status_of
from heterofl_flwr.app.launch.running import LOG, RunError
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.runs.origin import command
from heterofl_flwr.settings.flat import from_flat
from simulations.sweep.cost import describe_changes
from simulations.sweep.job import DIVERGED, ENDED, build_job, check_jobs, flat, read_metric, run_once

CONF = Path(__file__).parents[2] / "conf"
FULL_ERROR = "HYDRA_FULL_ERROR"
PROGRAM = "simulations.sweep"


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def run(config: DictConfig) -> float | None:
    """Run one job; return its metric, for sweepers that optimise it, or None if another process runs it."""
    own = HydraConfig.get()
    path = Path(own.runtime.output_dir)
    job = replace(build_job(flat(config)), path=path)
    checked = own.mode is RunMode.MULTIRUN and "blocks" in own.sweeper  # our sweeper has done it
    if config.dry:
        raise ConfigError("dry: found true, but this sweeper chooses jobs one after the other; expected false")
    check_jobs([job] if not checked and job.stage not in ENDED else [])
    print("; ".join(filter(None, [f"job {path.name}", describe_changes(job)])), flush=True)
    try:
        if not run_once(job):
            again = "; remove its folder to run it again" if job.stage == DIVERGED else ""
            print(f"{job.stage} before{again}", flush=True)
    except Timeout:
        print(f"not done here: {path.name} runs in another process", flush=True)
        return None
    except Exception as error:
        cause = str(error) if isinstance(error, HeteroFLError) else f"{type(error).__name__}: {error}"
        print(f"failed: {cause}", flush=True)
        raise RunError(cause) from error
    return read_metric(job)


def main() -> int:
    """Run what the command line says; return the exit status."""
    command()  # as it was typed; the jobs know it
    return status_of(PROGRAM, _run)


def _run() -> int:
    shown = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # else Hydra itself prints what is wrong, in many lines, and ends the process
    try:
        sys.argv[1:] = translate(sys.argv[1:])
        run()
    except RunError as error:
        print(f"{PROGRAM}: {error}\nthe whole log of a job: {LOG} in its folder", file=sys.stderr)
        return FAILED
    except (HydraException, OmegaConfBaseException, OSError) as error:  # Hydra itself makes the folders of jobs
        if shown:
            traceback.print_exc()
            return FAILED
        raise ConfigError(_describe_misuse(error)) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    return 0


def translate(arguments: Sequence[str]) -> list[str]:
    """Return the arguments for Hydra: an experiment is a sweep also without ``-m``, and several are blocks of one."""
    translated, given = list(arguments), get_args_parser().parse_args(arguments)
    for override in OverridesParser.create(_config_loader(given.config_dir)).parse_overrides(given.overrides):
        several = override.is_sweep_override()
        if override.key_or_group == "experiment":
            names = list(override.sweep_string_iterator()) if several else override.value()
            if several and not names:
                raise ConfigError(f"{override.input_line}: no experiment matches it; conf/experiment/ has them all")
            several = names is not None
            if names is None or isinstance(names, list):
                translated.remove(str(override.input_line))
                own = enumerate(names or [])
                translated += [f"+experiment@hydra.sweeper.blocks.part{place}={name}" for place, name in own]
        if several or override.key_or_group == "dry":
            translated.append("hydra.mode=MULTIRUN")
    return translated


def _config_loader(config_dir: str | None) -> ConfigLoader:
    """Return what knows the groups of ``conf/`` and of a user's own folder, from which ``glob(...)`` picks."""
    search_path = create_config_search_path(str(CONF))
    if config_dir is not None:
        search_path.append("command-line", f"file://{os.path.abspath(config_dir)}")
    return ConfigLoaderImpl(search_path)


def _describe_misuse(error: Exception) -> str:
    """Return in a line what is wrong with the command, where Hydra says it in many."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: this is no override such as key=value; {str(error).partition(chr(10))[0]}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: found {name!r}, expected one of {', '.join(error.options)}"
    if match := re.match("Could not override '([^']+)'", str(error)):
        try:
            from_flat({match[1]: ""})
        except ConfigError as unknown:
            return str(unknown)
    lines = re.sub(r"^\w+ raised while resolving interpolation: |\s+full_key: (?s:.*)", "", str(error))
    return " ".join(lines.split())


if __name__ == "__main__":
    sys.exit(main())
