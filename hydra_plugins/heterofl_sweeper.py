"""The Hydra sweeper of ``conf/``; Hydra loads plug-ins from folders with the name ``hydra_plugins``.

It is Hydra's basic sweeper with four additions. An experiment may have several blocks, each with all combinations of
its values. A setting that has no effect in a job is left out of it, if another job uses the setting. All jobs that have
not ended are checked before the first job starts; with ``dry``, jobs are only listed. A job that fails does not stop
the other jobs.
Every Hydra program in the environment loads this module, so slow imports are inside functions.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from heterofl_flwr.app.sweep.blocks import combine_blocks
from heterofl_flwr.common.errors import ConfigError, counted

if TYPE_CHECKING:
    from heterofl_flwr.app.sweep.job import Job

logger = logging.getLogger("sweep")

LONGEST_CAUSE = 300  # characters of a failed job's error in the summary


class BlockSweeper(Sweeper):
    """Sweeper over the rows of an experiment's blocks (``combine_blocks``); each row is a job."""

    def __init__(self, **options: object) -> None:
        """Ignore the options: Hydra has resolved ${...} in them. ``sweep`` reads them with the values of each job."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Instantiate the launcher that the configuration names."""
        self._master, self._loader = config, hydra_context.config_loader
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Check the jobs that have not ended, launch all jobs, and print results.

        With ``dry``, only list the jobs. Raise ``RunError`` if a job or the launcher fails.
        """
        from heterofl_flwr.app.run_app import RunError
        from heterofl_flwr.app.sweep.job import DIVERGED, DONE, ENDED, check_jobs
        from heterofl_flwr.app.sweep.listing import list_jobs, list_results

        for part in ("dir", "subdir"):  # stores the time of ${now:...}, which each job's configuration copies
            OmegaConf.select(self._master, f"hydra.sweep.{part}", throw_on_resolution_failure=False)
        options = cast("dict[str, Any]", OmegaConf.to_container(self._master.hydra.sweeper, resolve=False))
        rows = combine_blocks(OverridesParser.create(self._loader), options["blocks"], options["params"], arguments)
        try:
            jobs, rows = self._build_jobs(rows)
        except ConfigError:
            if (shorter := self._without_unused(rows)) == rows:
                raise
            jobs, rows = self._build_jobs(shorter)
        if self._master.dry:
            print(list_jobs(jobs))
            return []
        check_jobs(job for job in jobs if job.stage not in ENDED)
        folder = Path(self._master.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._master, folder / "multirun.yaml")
        print(
            f"{counted(len(jobs), 'job')} in {folder}, {sum(job.stage == DONE for job in jobs)} done before", flush=True
        )
        try:
            results: list[JobReturn] = list(self._launcher.launch(rows, initial_job_idx=0))
        except Exception as error:
            remedy = "the same command resumes the unfinished jobs"
            raise RunError(f"the launcher ended: {type(error).__name__}: {error}; {remedy}") from error
        stages = [job.stage for job in jobs]
        diverged = f", {stages.count(DIVERGED)} diverged" if DIVERGED in stages else ""
        ends = f"{stages.count(DONE)} of {counted(len(jobs), 'job')} done{diverged}; the runs are in {folder}"
        print(*filter(None, [list_results(jobs, rows), ends]), sep="\n")
        failed = {
            job.path.name: shorten(str(result._return_value), LONGEST_CAUSE, placeholder=" ...")
            for job, result in zip(jobs, results, strict=True)
            if result.status is JobStatus.FAILED  # reading return_value would print the job's overrides
        }
        if failed:
            causes = (f"  {name}: {cause}" for name, cause in failed.items())
            raise RunError("\n".join([f"{len(failed)} of {counted(len(jobs), 'job')} failed:", *causes]))
        return results

    def _without_unused(self, rows: list[list[str]]) -> list[list[str]]:
        """Return the rows without the overrides that have no effect in their row, but have one in another row.

        With ``privacy.noise=0,1 privacy.delta=1e-6``, the row without noise loses ``privacy.delta``.
        """
        from heterofl_flwr.app.sweep.job import flat, unused_in

        pairs = [
            [(text, text.partition("=")[0] in unused) for text in row]
            for row, unused in zip(rows, (unused_in(flat(config)) for config in self._compose(rows)), strict=True)
        ]
        used = {text.partition("=")[0] for row in pairs for text, is_unused in row if not is_unused}
        return [
            [text for text, is_unused in row if not (is_unused and text.partition("=")[0] in used)] for row in pairs
        ]

    def _build_jobs(self, rows: list[list[str]]) -> tuple[list["Job"], list[list[str]]]:
        """Return the jobs and their rows. Of the rows of equal jobs, only the first is returned."""
        from heterofl_flwr.app.sweep.job import build_job, flat

        jobs: dict[Path, tuple[Job, list[str]]] = {}
        for row, config in zip(rows, self._compose(rows), strict=True):
            job, config.hydra.job.num = build_job(flat(config)), len(jobs)
            path = Path(os.path.abspath(Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)))
            earlier, _ = jobs.setdefault(path, (replace(job, path=path), row))
            # data.root is not part of a job's name, because equal data may be in another folder on another machine.
            names = [f"{each.name} with data.root={each.config['data.root']!r}" for each in (earlier, job)]
            if len(set(names)) > 1:
                raise ConfigError(
                    f"{path} would hold two jobs, {' and '.join(names)}; expected hydra.sweep.subdir to differ in them"
                )
        return [job for job, _ in jobs.values()], [row for _, row in jobs.values()]

    def _compose(self, rows: Iterable[list[str]]) -> Iterator[DictConfig]:
        """Yield the configuration of each row.

        Hydra needs 0.2 s to compose a configuration. Therefore, rows that choose the same options of groups share one
        configuration, and the other overrides of a row are applied to a copy. A row gets its own configuration if
        ``_is_plain`` is False for one of these other overrides.
        """
        groups, parser = self._master.hydra.runtime.choices, OverridesParser.create(self._loader)
        shared: dict[tuple[str, ...], DictConfig] = {}
        for row in rows:
            overrides = parser.parse_overrides(row)
            # A mapping is a value even if its key is a group, as in train={lr: 0.1}.
            values = [each for each in overrides if each.key_or_group not in groups or isinstance(each.value(), dict)]
            if not all(_is_plain(override, self._master) for override in values):
                yield self._loader.load_sweep_config(self._master, row)
                continue
            choices = tuple(text for text, override in zip(row, overrides, strict=True) if override not in values)
            if choices not in shared:
                shared[choices] = self._loader.load_sweep_config(self._master, list(choices))
            config = deepcopy(shared[choices])
            for override in values:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
            # Names of folders may depend on these entries about a row's overrides, which Hydra would set.
            tasks = [override for override in overrides if not override.is_hydra_override()]
            config.hydra.overrides.task = [override.input_line for override in tasks]
            dirname = config.hydra.job.config.override_dirname
            lines = sorted(str(each.input_line) for each in tasks if each.key_or_group not in dirname.exclude_keys)
            config.hydra.job.override_dirname = dirname.item_sep.join(lines).replace("=", dirname.kv_sep)
            yield config


def _is_plain(override: Override, config: DictConfig) -> bool:
    """Whether an override changes an existing value outside the section ``hydra``."""
    key = override.key_or_group
    changes = override.type is OverrideType.CHANGE and override.package is None and not key.startswith("hydra.")
    # The override may replace an interpolation that fails.
    return changes and OmegaConf.select(config, key, default=config, throw_on_resolution_failure=False) is not config
