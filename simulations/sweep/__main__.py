"""Run what conf/ describes with Hydra: a job, or all jobs of a sweep, several seeds, a table or a figure of the paper.

What it adds to Hydra: a job's folder is named by its settings, so what is done is not repeated, whichever sweep it was
done for, and the same command again resumes what was cut off. Jobs are checked before the first one starts.

The exit status is 0 if nothing failed, 1 if jobs failed, and 2 if nothing was run because something was wrong with what
was asked.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

import hydra
from filelock import Timeout
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from heterofl_flwr.app.cli.main import status_of
from heterofl_flwr.app.launch.running import LOG, RunError
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.runs.origin import command_known, own_command
from heterofl_flwr.settings import from_flat
from simulations.sweep.cost import describe_changes, list_jobs
from simulations.sweep.job import DONE, Job, build_job, check_jobs, flat, read_metric, run_once
from simulations.sweep.sweeper import TARGET, BlockSweeper

CONF = Path(__file__).parents[2] / "conf"
FULL_ERROR = "HYDRA_FULL_ERROR"
PROGRAM = "simulations.sweep"
HELD = "runs in another process"
LONGEST_CAUSE = 300  # characters in the list at the end

_jobs: dict[Path, Job] = {}
"""The jobs of this process, by folder."""
_causes: dict[Path, str] = {}
"""Why some of them are not done."""


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def run(config: DictConfig) -> float | None:
    """Run one job; return its metric, for sweepers that optimise it, or None if another process runs it."""
    path = Path(HydraConfig.get().runtime.output_dir)
    job = replace(build_job(flat(config)), path=path)
    if path not in _jobs:  # this is no sweep, or its launcher has started this process
        check_jobs([job] if job.stage != DONE else [])
        _jobs[path] = job
    print("; ".join(filter(None, [f"job {path.name}", describe_changes(job)])), flush=True)
    try:
        if not run_once(job):
            print("done before", flush=True)
    except Timeout:
        _causes[path] = HELD
        print(f"not done here: {path.name} {HELD}", flush=True)
        return None
    except Exception as error:
        _causes[path] = str(error) if isinstance(error, HeteroFLError) else f"{type(error).__name__}: {error}"
        print(f"failed: {_causes[path]}", flush=True)
        raise RunError(_causes[path]) from error
    return read_metric(job)


def check_batch(sweeper: Sweeper, batch: Sequence[Sequence[str]]) -> None:
    """Check the jobs of a sweep before the first one starts; if they are only to be listed, list them and exit."""
    if sweeper.hydra_context is None or sweeper.config is None:
        raise TypeError("a sweeper checks its jobs after its setup")
    jobs = {}
    for number, row in enumerate(batch):
        config = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(row))
        job, config.hydra.job.num = build_job(flat(config)), number
        path = Path(os.path.abspath(Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)))
        jobs[path] = replace(job, path=path)
    if sweeper.config["dry"]:
        print(list_jobs(list(jobs.values())))
        sys.exit()
    left = [job for job in jobs.values() if job.stage != DONE]
    check_jobs(left)
    print(f"{len(jobs)} jobs in {sweeper.config.hydra.sweep.dir}, {len(jobs) - len(left)} done before", flush=True)
    _jobs.update(jobs)


def register() -> None:
    """Let Hydra find our sweeper, and let all sweepers check their jobs before they call a launcher."""
    Plugins.instance().class_name_to_class[TARGET] = BlockSweeper
    Sweeper.validate_batch_is_legal = check_batch  # type: ignore[assignment, method-assign]


def main() -> int:
    """Run what the command line says; return the exit status."""
    _jobs.clear()
    _causes.clear()
    register()
    with command_known(own_command()):
        return status_of(PROGRAM, _run)


def _run() -> int:
    shown = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # else Hydra itself prints what is wrong, in many lines, and ends the process
    failed = False
    try:
        sys.argv[1:] = translate(sys.argv[1:])
        run()
    except RunError:  # Hydra raises what the first job that failed has raised
        failed = True
    except (HydraException, OmegaConfBaseException, OSError) as error:  # Hydra itself makes the folders of jobs
        if shown:
            raise
        raise ConfigError(_describe_misuse(error)) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    left = [path for path, job in _jobs.items() if job.stage != DONE]
    if _jobs:
        print(f"{len(_jobs) - len(left)} of {len(_jobs)} jobs done")
    if failed:
        causes = {
            path.name: _causes.get(path, f"see {LOG} in its folder") for path in left if _causes.get(path) != HELD
        }
        lines = [f"  {name}: {shorten(cause, LONGEST_CAUSE, placeholder=' ...')}" for name, cause in causes.items()]
        heading = f"{PROGRAM}: {len(lines)} of {len(_jobs)} jobs failed:"
        print(heading, *lines, f"the whole log of each: {LOG} in its folder", sep="\n", file=sys.stderr)
    return failed


def translate(arguments: Sequence[str]) -> list[str]:
    """Return the arguments for Hydra: an experiment is a sweep also without ``-m``, and several are blocks of one."""
    translated = list(arguments)
    for override in OverridesParser.create().parse_overrides(get_args_parser().parse_args(arguments).overrides):
        several = override.is_sweep_override()
        if override.key_or_group == "experiment":
            names = list(override.sweep_string_iterator()) if several else override.value()
            several = names is not None
            if isinstance(names, list):
                translated.remove(str(override.input_line))
                blocks = (f"+experiment@hydra.sweeper.blocks.part{place}={name}" for place, name in enumerate(names))
                translated += ["hydra/sweeper=blocks", *blocks]
        if several or override.key_or_group == "dry":
            translated.append("hydra.mode=MULTIRUN")
    return translated


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
